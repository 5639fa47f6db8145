#define _GNU_SOURCE
#include "net/peer_loop.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "ccoip.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/socket.h"
#include "pccl.h"

static const uint64_t pool_idle_ns = 10 * NS_PER_S;

/* Between two lines that say that descriptors are out. */
static const uint64_t shortage_pause_ns = 10 * NS_PER_S;

/* How long a guest drives. Then it waits as others do, and asks the interrupt check. */
static const uint64_t guest_ns = 10 * NS_PER_MS;

/* ---- calls ---- */

struct call *peer_loop_find_call(struct peer_loop *loop, uint64_t number) {
    struct call *call = loop->calls[number % MAX_CALLS];
    return call != NULL && call->number == number ? call : NULL;
}

void peer_loop_complete(struct peer_loop *loop, struct call *call) {
    uint64_t now_ns = clock_now_ns();
    if (loop->calls[call->number % MAX_CALLS] == call) {
        loop->calls[call->number % MAX_CALLS] = NULL;
        loop->call_count--;
    }
    loop->answered = loop->answered || call->blocking;
    if (call->work.memory != NULL && !call->keep_work) {
        buffer_pool_give(loop->pool, &call->work, now_ns);
        if (loop->pool_deadline_ns == UINT64_MAX) {
            loop->pool_deadline_ns = now_ns + pool_idle_ns;
        }
    }
    if (call->desk != NULL) {
        if (loop->listener.desk == call->desk) {
            loop->listener.desk = NULL;
        }
        state_desk_end(call->desk);
    }
    mailbox_complete(loop->mailbox, call);
}

void peer_loop_publish(struct peer_loop *loop) {
    struct peer_status status;
    peer_get_status(loop->machine, &status);
    mailbox_publish(loop->mailbox, &status);
}

/* Gives the call a slot and a number; false if there are too many. */
static bool number_call(struct peer_loop *loop, struct call *call) {
    for (int tries = 0; tries < MAX_CALLS; tries++) {
        uint64_t number = ++loop->last_number;
        if (loop->calls[number % MAX_CALLS] == NULL) {
            loop->calls[number % MAX_CALLS] = call;
            loop->call_count++;
            call->number = number;
            return true;
        }
    }
    return false;
}

/* ---- the machine ---- */

static void step(struct peer_loop *loop, struct peer_event *event) {
    event->now_ns = clock_now_ns();
    peer_step(loop->machine, event);
}

static void tell_call(struct peer_loop *loop, const struct call *call) {
    struct peer_event event = {.kind = call->kind,
                               .call = call->number,
                               .vote = call->vote,
                               .tag = call->tag,
                               .blocking = call->blocking,
                               .deadline_ns = call->deadline_ns,
                               .descriptor = call->descriptor,
                               .offer = call->offer};
    step(loop, &event);
}

/* All peers that were in a lost op start it again at once, whatever their users do: else two could wait for
 * each other's retries. */
static void retry_call(struct peer_loop *loop) {
    struct call *call = LIST_ENTRY(loop->retries.next, struct call, node);
    list_remove(&call->node);
    tell_call(loop, call);
}

/* Tells the machine what has come up, until nothing more does. */
static void settle(struct peer_loop *loop) {
    struct peer_event event;
    struct link *link;
    for (;;) {
        engine_sort_held(loop->engine);
        if (!list_is_empty(&loop->retries)) {
            retry_call(loop);
        } else if (engine_next_report(loop->engine, &event)) {
            step(loop, &event);
        } else if ((link = link_next_report(&loop->links)) != NULL) {
            char reason[MAX_REASON_BYTES + 1]; /* the step may close the link */
            memcpy(reason, link->reason, sizeof reason);
            event = (struct peer_event){.key = link->key, .reason = reason, .rtt_us = link->rtt_us};
            event.kind = link->state == LINK_UP ? PEER_EVENT_LINK_UP : PEER_EVENT_LINK_DOWN;
            step(loop, &event);
        } else if (loop->control_state == CONTROL_LOST) {
            loop->control_state = CONTROL_NONE;
            event = (struct peer_event){.kind = PEER_EVENT_CONTROL_CLOSED, .reason = loop->control_reason};
            step(loop, &event);
            peer_loop_publish(loop);
        } else {
            return;
        }
    }
}

/* The call never got to the machine, or won't hear of it any more. */
static void end_call(struct peer_loop *loop, struct call *call, const char *text) {
    call->status = pcclInvalidUsage;
    snprintf(call->text, sizeof call->text, "%s", text);
    peer_loop_complete(loop, call);
}

static void start_call(struct peer_loop *loop, struct call *call) {
    if (call->kind == PEER_EVENT_CONNECT && call->place != NULL) {
        loop->place = *call->place;
    }
    if (!number_call(loop, call)) {
        end_call(loop, call, "too many calls of this communicator are under way: await some first");
        return;
    }
    tell_call(loop, call);
    settle(loop);
}

/* Of a call that waits: it has no end of its own. */
static void pass_report(struct peer_loop *loop, struct call *call) {
    struct peer_event event = {.kind = PEER_EVENT_SYNC_REPORT, .report = call->report};
    step(loop, &event);
    settle(loop);
    mailbox_complete(loop->mailbox, call);
}

/* True if there were any. */
static bool collect_calls(struct peer_loop *loop, bool may_sleep, bool *stop) {
    struct list calls;
    list_init(&calls);
    bool ops_wait;
    *stop = mailbox_collect(loop->mailbox, &calls, may_sleep, &ops_wait);
    if (!ops_wait) {
        loop->crowded_until_ns = UINT64_MAX;
    } else if (loop->crowded_until_ns == UINT64_MAX) {
        loop->crowded_since_ns = clock_now_ns();
        loop->crowded_until_ns = loop->crowded_since_ns + loop->options.hello.timeout_ms * NS_PER_MS;
    }
    bool any = !list_is_empty(&calls);
    while (!list_is_empty(&calls)) {
        struct call *call = LIST_ENTRY(calls.next, struct call, node);
        list_remove(&call->node);
        if (call->kind == PEER_EVENT_SYNC_REPORT) {
            pass_report(loop, call);
        } else {
            start_call(loop, call);
        }
    }
    return any;
}

/* ---- the control connection ---- */

/* True if there is a connection now. */
bool peer_loop_dial(struct peer_loop *loop, struct poll_item *item) {
    const struct address *address;
    int fd = dial_turn(&loop->dial, item, &address);
    if (fd == -EINPROGRESS) {
        return false;
    }
    if (fd < 0) {
        char text[DIAL_FAILURE_BYTES];
        peer_loop_lose_control(loop, "%s", dial_describe_failure(&loop->dial, text));
        return false;
    }
    dial_describe_place(&loop->dial.place, address, loop->where);
    control_init(&loop->control, fd);
    int error = poller_add(&loop->poller, &loop->control_item, fd, POLL_LEVEL);
    if (error != 0) {
        peer_loop_lose_control(loop, "can't watch the connection to %s: %s", loop->where, strerror(-error));
        return false;
    }
    loop->control_state = CONTROL_OPEN;
    return true;
}

static void dial_ready(struct peer_loop *loop, struct poll_item *item) {
    if (loop->control_state == CONTROL_CONNECTING && peer_loop_dial(loop, item)) {
        struct peer_event event = {.kind = PEER_EVENT_CONTROL_OPEN, .reason = loop->where};
        step(loop, &event);
    }
}

static void take_messages(struct peer_loop *loop) {
    enum control_next next = CONTROL_NOTHING;
    while (loop->control_state == CONTROL_OPEN &&
           (next = control_next(&loop->control, &loop->message)) == CONTROL_MESSAGE) {
        control_vouch(&loop->control);
        struct peer_event event = {.kind = PEER_EVENT_MESSAGE, .message = &loop->message};
        step(loop, &event);
        settle(loop);
        peer_loop_publish(loop);
    }
    if (loop->control_state == CONTROL_OPEN && next == CONTROL_BAD) {
        peer_loop_lose_control(
            loop,
            "what answers at %s is no pccl master: %s. Are host and port right? `pccl master` "
            "listens on port %d unless it is told otherwise",
            loop->where, loop->control.reason, CCOIP_PROTOCOL_PORT_MASTER);
    }
}

static void read_control(struct peer_loop *loop) {
    bool vouched = loop->control.vouched;
    bool good = control_receive(&loop->control);
    take_messages(loop);
    if (good || loop->control_state != CONTROL_OPEN) {
        return;
    }
    if (vouched) {
        peer_loop_lose_control(loop, "the connection to the master at %s: %s", loop->where,
                               loop->control.reason);
    } else {
        peer_loop_lose_control(
            loop,
            "no answer of a master at %s: %s. It may be the port of another program, or of a "
            "peer; `pccl master` prints its own",
            loop->where, loop->control.reason);
    }
}

static void control_ready(struct peer_loop *loop) {
    bool readable = loop->control_item.readable;
    loop->control_item.readable = false;
    loop->control_item.writable = false; /* flush_control() finds out */
    if (loop->control_state == CONTROL_OPEN && readable) {
        read_control(loop);
    }
}

static void flush_control(struct peer_loop *loop) {
    if (loop->control_state != CONTROL_OPEN) {
        return;
    }
    if (control_unsent(&loop->control) > 0 && !control_flush(&loop->control)) {
        peer_loop_lose_control(loop, "the connection to the master at %s: %s", loop->where,
                               loop->control.reason);
        return;
    }
    poller_watch_writable(&loop->poller, &loop->control_item, control_unsent(&loop->control) > 0);
}

/* ---- the loop ---- */

static void item_ready(struct peer_loop *loop, struct poll_item *item) {
    switch ((enum peer_item)item->kind) {
    case PEER_ITEM_WAKE:
        mailbox_woken(loop->mailbox);
        break;
    case PEER_ITEM_CONTROL:
        control_ready(loop);
        break;
    case PEER_ITEM_DIAL:
        dial_ready(loop, item);
        break;
    case PEER_ITEM_LISTENER:
        listener_ready(&loop->listener, item);
        break;
    case PEER_ITEM_STRANGER:
        listener_stranger_ready(&loop->listener, listener_stranger_of(item));
        break;
    case PEER_ITEM_STREAM:
        if (link_stream_ready(LIST_ENTRY(item, struct stream, item))) {
            poller_heat(&loop->poller, item);
        }
        break;
    }
}

/* With several threads, what large ops have to do in this turn comes first. True if they had enough. */
static bool share_out(struct peer_loop *loop, struct list *hot) {
    struct peer_status status;
    peer_get_status(loop->machine, &status);
    if (sharing_threads(&loop->sharing, &loop->links, status.census.peers) < 2 ||
        !sharing_turn(&loop->sharing, &loop->links, hot)) {
        return false;
    }
    settle(loop);
    return true;
}

/* Each item that is hot now has one turn, and what it brings forth goes out at once; if the turn was shared
 * out, it waits for the next one, to be shared out too. */
static void work_off(struct peer_loop *loop) {
    struct list now;
    list_init(&now);
    list_append_all(&now, &loop->poller.hot);
    bool shared = loop->engine->large_ops > 0 && share_out(loop, &now);
    while (!list_is_empty(&now)) {
        struct poll_item *item = LIST_ENTRY(now.next, struct poll_item, hot);
        list_remove(&item->hot);
        item_ready(loop, item);
        settle(loop);
        if (!shared) {
            link_set_write(&loop->links);
        }
    }
    if (!shared) {
        link_set_write(&loop->links);
    }
}

/* When this peer has itself put out, because it can't make the links that are to be. */
static uint64_t shortage_deadline(const struct peer_loop *loop) {
    const struct link_set *links = &loop->links;
    bool matters = links->shortage != 0 && link_set_awaits_connections(links);
    return matters ? links->shortage_since_ns + links->timeout_ns / 2 : UINT64_MAX;
}

/* Descriptors are out here. That is this peer's own matter, which the other ends can't see. */
static void check_shortage(struct peer_loop *loop, uint64_t now_ns) {
    if (loop->links.shortage == 0) {
        return;
    }
    char text[DESCRIPTORS_TEXT_BYTES];
    descriptors_error_text(loop->links.shortage, text);
    if (now_ns >= loop->shortage_told_ns) {
        log_line(LOG_WARN, loop->who, "no connection can be made or taken: this peer can't work: %s", text);
        loop->shortage_told_ns = now_ns + shortage_pause_ns;
    }
    if (now_ns >= shortage_deadline(loop)) {
        loop->links.shortage = 0;
        struct peer_event event = {.kind = PEER_EVENT_UNABLE, .reason = text};
        step(loop, &event);
    }
}

static uint64_t tick(struct peer_loop *loop) {
    uint64_t now_ns = clock_now_ns();
    check_shortage(loop, now_ns);
    link_set_tick(&loop->links, now_ns);
    listener_tick(&loop->listener, now_ns);
    if (now_ns >= dial_deadline(&loop->dial)) {
        peer_loop_dial(loop, NULL);
    }
    if (now_ns >= peer_deadline(loop->machine)) {
        struct peer_event event = {.kind = PEER_EVENT_TICK};
        step(loop, &event);
    }
    if (now_ns >= loop->crowded_until_ns) {
        uint64_t waited_ns = now_ns - loop->crowded_since_ns;
        log_line(
            LOG_WARN, loop->who,
            "%d collectives are in flight, and for %.1f s others have waited for a place among them: do all "
            "peers start theirs in the same order?",
            (int)MAX_OPS, (double)waited_ns / 1e9);
        loop->crowded_until_ns = now_ns + waited_ns;
    }
    if (now_ns >= loop->pool_deadline_ns) {
        uint64_t oldest_ns = buffer_pool_trim(loop->pool, now_ns - pool_idle_ns);
        loop->pool_deadline_ns = oldest_ns == UINT64_MAX ? UINT64_MAX : oldest_ns + pool_idle_ns + 1;
    }
    settle(loop);
    return now_ns;
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* How long nothing is due. */
static uint64_t idle_ns(const struct peer_loop *loop, uint64_t now_ns) {
    if (link_set_has_output(&loop->links) || !list_is_empty(&loop->poller.hot) ||
        loop->control_state == CONTROL_LOST) {
        return 0;
    }
    uint64_t deadline = earlier(peer_deadline(loop->machine), link_set_deadline(&loop->links));
    deadline = earlier(deadline, listener_deadline(&loop->listener));
    deadline = earlier(deadline, shortage_deadline(loop));
    deadline = earlier(deadline, dial_deadline(&loop->dial));
    deadline = earlier(deadline, loop->pool_deadline_ns);
    deadline = earlier(deadline, loop->crowded_until_ns);
    if (deadline == UINT64_MAX) {
        return UINT64_MAX;
    }
    return deadline > now_ns ? deadline - now_ns : 0;
}

/* The thread ends: whoever waits is told so, and no buffer is touched any more. */
static void fail_calls(struct peer_loop *loop) {
    for (uint32_t i = 0; i < MAX_OP_SLOTS; i++) {
        if (loop->engine->ops[i].active) {
            engine_stop(loop->engine, i);
        }
        if (loop->engine->ops[i].is_kept) {
            engine_forget(loop->engine, i);
        }
    }
    struct list calls;
    list_init(&calls);
    mailbox_shut(loop->mailbox, &calls);
    for (uint32_t i = 0; i < MAX_CALLS; i++) {
        if (loop->calls[i] != NULL) {
            list_append(&calls, &loop->calls[i]->node);
        }
    }
    while (!list_is_empty(&calls)) {
        struct call *call = LIST_ENTRY(calls.next, struct call, node);
        list_remove(&call->node);
        end_call(loop, call, "the communicator was destroyed while the call waited");
    }
}

/* What a turn has found out. */
struct turn {
    uint64_t now_ns;
    uint64_t wait_ns; /* nothing is due for so long; 0: there is more to do at once */
    bool stop;        /* the thread is to end */
};

/* All that can be done without waiting for events. */
static struct turn take_turn(struct peer_loop *loop) {
    struct turn turn;
    do {
        work_off(loop);
        turn.now_ns = tick(loop);
        flush_control(loop);
        turn.wait_ns = idle_ns(loop, turn.now_ns);
    } while (collect_calls(loop, turn.wait_ns > 0, &turn.stop)); /* they have brought something to do */
    return turn;
}

/* Until when the loop may be left alone, although nobody would see what arrives; 0: not at all. */
static uint64_t park_until(const struct peer_loop *loop, const struct turn *turn) {
    if (!loop->answered || loop->call_count > 0 || loop->control_state == CONTROL_CONNECTING ||
        turn->wait_ns == 0 || link_set_is_building(&loop->links) || loop->control_item.watches_writable) {
        return 0;
    }
    return turn->now_ns + earlier(turn->wait_ns, PARK_MS * NS_PER_MS);
}

static void wait_for_events(struct peer_loop *loop, uint64_t timeout_ns) {
    if (loop->call_count > 0) {
        poller_wait_soon(&loop->poller, timeout_ns);
    } else {
        poller_wait(&loop->poller, timeout_ns);
    }
}

static void *run(void *argument) {
    struct peer_loop *loop = argument;
    for (;;) {
        struct turn turn = take_turn(loop);
        if (turn.stop) {
            break;
        }
        uint64_t until_ns = park_until(loop, &turn);
        if (until_ns > 0) {
            mailbox_park(loop->mailbox, loop, until_ns);
            poller_wait(&loop->poller, 0); /* what has arrived meanwhile comes before new calls */
        } else {
            wait_for_events(loop, turn.wait_ns);
        }
        loop->answered = false;
    }
    fail_calls(loop);
    return NULL;
}

int peer_loop_drive(struct peer_loop *loop, struct call *const *calls, int count) {
    poller_wait(&loop->poller, 0); /* what has arrived while the loop was parked comes before the call */
    struct turn turn = take_turn(loop);
    uint64_t end_ns = turn.now_ns + guest_ns;
    int found;
    while ((found = mailbox_first_done(calls, count)) < 0 && !turn.stop && turn.now_ns < end_ns) {
        wait_for_events(loop, earlier(turn.wait_ns, end_ns - turn.now_ns));
        turn = take_turn(loop);
    }
    loop->answered = found >= 0;
    uint64_t until_ns = park_until(loop, &turn);
    mailbox_hand_back(loop->mailbox, until_ns);
    return found;
}

/* ---- start and end ---- */

static void release(struct peer_loop *loop) {
    dial_stop(&loop->dial);
    control_free(&loop->control);
    listener_close(&loop->listener);
    sharing_free(&loop->sharing);
    if (loop->engine != NULL) {
        link_set_free(&loop->links);
        engine_free(loop->engine);
    }
    poller_close(&loop->poller);
    free(loop->engine);
    free(loop->machine);
    free(loop);
}

static int start_thread(struct peer_loop *loop) {
    sigset_t all, before;
    sigfillset(&all); /* signals are for the threads of the program */
    int error = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (error == 0) {
        error = pthread_create(&loop->thread, NULL, run, loop);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    return -error;
}

static int open_sockets(struct peer_loop *loop, const char **what) {
    *what = "can't watch sockets";
    int error = poller_open(&loop->poller);
    if (error == 0) {
        error = poller_add(&loop->poller, &loop->wake_item, loop->mailbox->wake_fd, POLL_LEVEL);
    }
    if (error == 0) {
        *what = "can't listen for other peers";
        error = listener_open(&loop->listener, loop->options.listen_port, loop->options.tcp_only);
    }
    return error;
}

static void init_machine(struct peer_loop *loop) {
    struct peer_options options = {.hello = loop->options.hello};
    if (options.hello.listen.port == 0) { /* no other one is advertised */
        options.hello.listen.port = listener_port(&loop->listener);
    }
    snprintf(loop->who, sizeof loop->who, "%s", options.hello.name[0] != '\0' ? options.hello.name : "peer");
    peer_init(loop->machine, &options, peer_loop_perform, loop);
}

int peer_loop_start(const struct peer_loop_options *options, struct mailbox *mailbox,
                    struct buffer_pool *pool, struct peer_loop **loop_out, const char **what) {
    *what = "out of memory";
    struct peer_loop *loop = calloc(1, sizeof *loop);
    if (loop == NULL) {
        return -ENOMEM;
    }
    loop->options = *options;
    loop->mailbox = mailbox;
    loop->pool = pool;
    loop->pool_deadline_ns = UINT64_MAX;
    loop->crowded_until_ns = UINT64_MAX;
    list_init(&loop->retries);
    sharing_init(&loop->sharing, options->data_threads);
    loop->poller.fd = -1;
    loop->control.fd = -1;
    loop->place = options->master;
    dial_init(&loop->dial, &loop->poller, PEER_ITEM_DIAL);
    poll_item_init(&loop->wake_item, PEER_ITEM_WAKE);
    poll_item_init(&loop->control_item, PEER_ITEM_CONTROL);
    link_set_init(&loop->links, &loop->poller, NULL, options->hello.timeout_ms * NS_PER_MS);
    loop->links.tcp_only = options->tcp_only;
    listener_init(&loop->listener, &loop->poller, &loop->links);
    loop->machine = calloc(1, peer_bytes());
    struct engine *engine = calloc(1, sizeof *engine);
    if (loop->machine == NULL || engine == NULL || !engine_init(engine, loop->machine, &loop->links)) {
        free(engine);
        release(loop);
        return -ENOMEM;
    }
    loop->engine = engine;
    loop->links.engine = engine;
    int error = open_sockets(loop, what);
    if (error == 0) {
        init_machine(loop);
        *what = "can't start a thread";
        error = start_thread(loop);
    }
    if (error != 0) {
        release(loop);
        return error;
    }
    mailbox_open(mailbox);
    *loop_out = loop;
    return 0;
}

void peer_loop_join(struct peer_loop *loop) {
    pthread_join(loop->thread, NULL);
    release(loop);
}
