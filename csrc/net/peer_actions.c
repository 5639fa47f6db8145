/* Performs what the machine decides. Nothing here calls back into it: what goes wrong is noted, and told
 * to it as an event after the step. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "net/clock.h"
#include "net/peer_loop.h"
#include "net/socket.h"
#include "pccl.h"

/* Before it has greeted it may have been anybody: the next attempt begins with the next address. */
static void drop_control(struct peer_loop *loop) {
    if (loop->control_state == CONTROL_OPEN && !loop->control.vouched) {
        loop->first_address++;
    }
    dial_stop(&loop->dial);
    poller_remove(&loop->poller, &loop->control_item);
    control_free(&loop->control);
}

void peer_loop_lose_control(struct peer_loop *loop, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(loop->control_reason, sizeof loop->control_reason, format, arguments);
    va_end(arguments);
    drop_control(loop);
    loop->control_state = CONTROL_LOST;
}

static void control_connect(struct peer_loop *loop) {
    CHECK(loop->control_state == CONTROL_NONE);
    loop->links.self = (struct id){0}; /* whoever it will be: others may hear of that before we do */
    uint32_t timeout_ms = loop->options.hello.timeout_ms;
    /* A little less than the machine waits, so that it is known of each address what became of it. */
    uint64_t patience_ns = timeout_ms * NS_PER_MS / 8 * 7;
    loop->control_state = CONTROL_CONNECTING;
    dial_start(&loop->dial, &loop->place, loop->first_address, patience_ns, timeout_ms);
    peer_loop_dial(loop, NULL);
}

static void control_write(struct peer_loop *loop, const struct message *message) {
    if (loop->control_state == CONTROL_OPEN && !control_send(&loop->control, message)) {
        peer_loop_lose_control(loop, "the connection to the master at %s: %s", loop->where,
                               loop->control.reason);
    }
}

static void control_close(struct peer_loop *loop) {
    if (loop->control_state == CONTROL_OPEN && control_flush(&loop->control)) {
        control_finish(&loop->control);
    }
    drop_control(loop);
    loop->control_state = CONTROL_NONE;
}

static void build_link(struct peer_loop *loop, const struct peer_action *action) {
    struct peer_status status;
    peer_get_status(loop->machine, &status);
    loop->links.run = status.run;
    loop->links.self = status.id;
    link_build(&loop->links, &action->link, action->member, action->probe);
    if (action->kind == PEER_LINK_EXPECT) {
        listener_match(&loop->listener);
    }
}

static void put_plan(struct peer_loop *loop, const struct peer_action *action) {
    struct call *call = peer_loop_find_call(loop, action->call);
    CHECK(call != NULL && call->desk != NULL);
    state_desk_put_plan(call->desk, action->plan);
    loop->listener.desk = call->desk;
    listener_match(&loop->listener); /* who was told of the plan before us may be here already */
}

static bool is_to_retry(const struct call *call, uint16_t status) {
    return call->retry && status == pcclRankConnectionLost &&
           (call->deadline_ns == 0 || clock_now_ns() < call->deadline_ns);
}

static void complete(struct peer_loop *loop, const struct peer_action *action) {
    struct call *call = peer_loop_find_call(loop, action->call);
    CHECK(call != NULL);
    if (is_to_retry(call, action->status)) {
        list_append(&loop->retries, &call->node);
        return;
    }
    call->status = action->status;
    call->value = action->value;
    snprintf(call->text, sizeof call->text, "%s", action->text);
    peer_loop_publish(loop);
    peer_loop_complete(loop, call);
}

static void write_log(const struct peer_loop *loop, const struct peer_action *action) {
    static const enum log_level levels[] = {
        [PEER_LOG_DEBUG] = LOG_DEBUG, [PEER_LOG_INFO] = LOG_INFO, [PEER_LOG_WARN] = LOG_WARN};
    log_line(levels[action->level], loop->who, "%s", action->text);
}

void peer_loop_perform(void *context, const struct peer_action *action) {
    struct peer_loop *loop = context;
    switch (action->kind) {
    case PEER_CONTROL_CONNECT:
        control_connect(loop);
        break;
    case PEER_CONTROL_SEND:
        control_write(loop, action->message);
        break;
    case PEER_CONTROL_CLOSE:
        control_close(loop);
        peer_loop_publish(loop); /* who asks now must not hear that it is connected */
        break;
    case PEER_LINK_OPEN:
    case PEER_LINK_EXPECT:
        build_link(loop, action);
        break;
    case PEER_LINK_CLOSE:
        link_close(&loop->links, &action->link.key);
        break;
    case PEER_EPOCH:
        engine_set_epoch(loop->engine, action);
        peer_loop_publish(loop);
        break;
    case PEER_OP_START:
        engine_start(loop->engine, action, peer_loop_find_call(loop, action->call));
        break;
    case PEER_OP_STOP:
        engine_stop(loop->engine, action->op);
        break;
    case PEER_OP_KEEP:
        engine_keep(loop->engine, action->op);
        break;
    case PEER_OP_FORGET:
        engine_forget(loop->engine, action->op);
        break;
    case PEER_OP_FINISH:
        engine_finish(loop->engine, action->op);
        break;
    case PEER_SYNC_PLAN:
        put_plan(loop, action);
        break;
    case PEER_COMPLETE:
        complete(loop, action);
        break;
    case PEER_LOG:
        write_log(loop, action);
        break;
    }
}
