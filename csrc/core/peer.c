#include "core/peer.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/heartbeat.h"
#include "core/peer_state.h"
#include "pccl.h"

static const uint64_t ns_per_ms = 1000000;

size_t peer_bytes(void) {
    return sizeof(struct peer);
}

void peer_init(struct peer *peer, const struct peer_options *options, peer_perform perform, void *context) {
    peer->options = *options;
    peer->perform = perform;
    peer->context = context;
    peer_op_init(peer);
}

uint64_t peer_timeout_ns(const struct peer *peer) {
    return peer->options.hello.timeout_ms * ns_per_ms;
}

uint64_t peer_heartbeat_ns(const struct peer *peer) {
    return heartbeat_of(peer_timeout_ns(peer));
}

void peer_complete(struct peer *peer, uint64_t call, uint16_t status, uint64_t value, const char *text) {
    struct peer_action action = {
        .kind = PEER_COMPLETE, .call = call, .status = status, .value = value, .text = text};
    peer->perform(peer->context, &action);
}

void peer_send(struct peer *peer, const struct message *message) {
    struct peer_action action = {.kind = PEER_CONTROL_SEND, .message = message};
    peer->perform(peer->context, &action);
}

void peer_log(struct peer *peer, enum peer_log_level level, const char *format, ...) {
    char text[2 * MAX_REASON_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    struct peer_action action = {.kind = PEER_LOG, .level = level, .text = text};
    peer->perform(peer->context, &action);
}

const char *peer_label(const struct peer *peer, const struct id *id, char text[PEER_LABEL_BYTES]) {
    char digits[ID_TEXT_BYTES];
    id_text(id, digits);
    for (uint16_t rank = 0; rank < peer->plan.world; rank++) {
        const struct member *member = &peer->plan.members[rank];
        if (id_equal(&member->id, id) && member->name[0] != '\0') {
            snprintf(text, PEER_LABEL_BYTES, "%s (%.8s)", member->name, digits);
            return text;
        }
    }
    snprintf(text, PEER_LABEL_BYTES, "%.8s", digits);
    return text;
}

static void message_arrived(struct peer *peer, const struct message *message) {
    peer->last_heard_ns = peer->now_ns;
    switch (message->type) {
    case MESSAGE_WELCOME:
        peer_join_welcome(peer, &message->as.welcome);
        break;
    case MESSAGE_REFUSED:
        peer_join_refused(peer, &message->as.refused);
        break;
    case MESSAGE_EVICTED:
        peer_join_evicted(peer, &message->as.refused);
        break;
    case MESSAGE_FAREWELL:
        peer_join_farewell(peer);
        break;
    case MESSAGE_CENSUS:
        peer->status.census = message->as.census;
        break;
    case MESSAGE_PROPOSE:
        peer_epoch_propose(peer, &message->as.propose);
        break;
    case MESSAGE_COMMIT_EPOCH:
        peer_epoch_commit(peer, &message->as.commit_epoch);
        break;
    case MESSAGE_VOTE_OPENED:
        peer_vote_opened(peer, &message->as.vote);
        break;
    case MESSAGE_VOTE_WAITING:
        peer_vote_waiting(peer, &message->as.stragglers);
        break;
    case MESSAGE_SYNC_PLAN:
        peer_vote_sync_plan(peer, &message->as.sync_plan);
        break;
    case MESSAGE_VOTE_RESULT:
        peer_vote_result(peer, &message->as.vote_result);
        break;
    case MESSAGE_OP_COMMIT:
        peer_op_commit(peer, &message->as.op);
        break;
    case MESSAGE_OP_WAITING:
        peer_wait_asked(peer, &message->as.op_waiting);
        break;
    case MESSAGE_OP_STRAGGLERS:
        peer_wait_stragglers(peer, &message->as.stragglers);
        break;
    case MESSAGE_PROBE:
        peer_probe_start(peer, &message->as.probe);
        break;
    case MESSAGE_PENDING:
        peer_join_pending(peer, &message->as.pending);
        break;
    case MESSAGE_HEARTBEAT:
        break;
    default:
        peer_join_control_closed(peer, "it sent a message that only a peer sends");
        break;
    }
}

static void dispatch(struct peer *peer, const struct peer_event *event) {
    switch (event->kind) {
    case PEER_EVENT_CONNECT:
        peer_join_connect(peer, event);
        break;
    case PEER_EVENT_CLOSE:
        peer_join_close(peer, event);
        break;
    case PEER_EVENT_VOTE:
        peer_vote_call(peer, event);
        break;
    case PEER_EVENT_SYNC:
        peer_vote_sync(peer, event);
        break;
    case PEER_EVENT_SYNC_REPORT:
        peer_vote_sync_report(peer, event->report);
        break;
    case PEER_EVENT_OP:
        peer_op_call(peer, event);
        break;
    case PEER_EVENT_CONTROL_OPEN:
        peer_join_control_open(peer, event);
        break;
    case PEER_EVENT_CONTROL_CLOSED:
        peer_join_control_closed(peer, event->reason);
        break;
    case PEER_EVENT_MESSAGE:
        message_arrived(peer, event->message);
        break;
    case PEER_EVENT_LINK_UP:
        peer_epoch_link_up(peer, &event->key, event->rtt_us);
        break;
    case PEER_EVENT_LINK_DOWN:
        peer_epoch_link_down(peer, &event->key, event->reason);
        break;
    case PEER_EVENT_UNABLE:
        peer_epoch_unable(peer, event->reason);
        break;
    case PEER_EVENT_OP_WHOLE:
        peer_op_whole(peer, event);
        break;
    case PEER_EVENT_OP_MISMATCH:
        peer_op_mismatch(peer, event);
        break;
    case PEER_EVENT_OP_REFUSED:
        peer_op_refused(peer, event);
        break;
    case PEER_EVENT_TICK:
        break;
    }
}

void peer_step(struct peer *peer, const struct peer_event *event) {
    peer->now_ns = event->now_ns;
    /* While connected there is a heartbeat to send many times per timeout. A longer gap means that this
     * process itself stood still, and what the master sent meanwhile is still unread: it is not the
     * master that was silent. Nor is it time to write: if the master has closed, the answer would be a
     * reset, which throws unread bytes away, and with them the reason. */
    uint64_t gap_ns = peer->now_ns - peer->last_step_ns;
    if (gap_ns > 3 * peer_heartbeat_ns(peer)) {
        peer->last_heard_ns += gap_ns;
        peer->next_heartbeat_ns = peer->now_ns + peer_heartbeat_ns(peer);
    }
    peer->last_step_ns = peer->now_ns;
    dispatch(peer, event);
    if (peer->returned_count == 0 && peer->ballot_waits) {
        peer_vote_cast(peer);
    }
    if (peer->returned_count == 0 && peer->close_waits) {
        peer_join_say_goodbye(peer);
    }
    peer_join_tick(peer);
    peer_op_tick(peer);
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

uint64_t peer_deadline(const struct peer *peer) {
    return earlier(peer_join_deadline(peer), peer_op_deadline(peer));
}

void peer_get_status(const struct peer *peer, struct peer_status *status) {
    *status = peer->status;
    status->connected = peer->phase == PEER_MEMBER;
    status->out_status = peer->phase == PEER_OUT ? peer->out_status : 0;
    status->id = peer->id;
    status->run = peer->run;
}

const struct member *peer_get_member(const struct peer *peer, uint16_t rank) {
    return peer->epoch != 0 && rank < peer->plan.world ? &peer->plan.members[rank] : NULL;
}
