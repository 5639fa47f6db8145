/* Joining and leaving a run, and losing its master. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/peer_state.h"
#include "pccl.h"

static void emit(struct peer *peer, enum peer_action_kind kind) {
    struct peer_action action = {.kind = kind};
    peer->perform(peer->context, &action);
}

static void enter(struct peer *peer, enum peer_phase phase) {
    peer->phase = phase;
    peer->phase_deadline_ns = UINT64_MAX;
    if (phase == PEER_CONNECTING || phase == PEER_GREETING || phase == PEER_LEAVING) {
        peer->phase_deadline_ns = peer->now_ns + peer_timeout_ns(peer);
    }
}

static bool is_joined(const struct peer *peer) {
    return peer->phase == PEER_PENDING || peer->phase == PEER_MEMBER;
}

/* Ends everything that is under way except a call of close. `text` is not in peer->out_reason. */
static void drop_all(struct peer *peer, enum peer_phase phase, uint16_t status, const char *text) {
    peer->out_status = status;
    snprintf(peer->out_reason, sizeof peer->out_reason, "%s", text);
    enter(peer, phase);
    peer_op_fail_all(peer, status, peer->out_reason);
    peer_epoch_leave(peer);
    if (peer->control_open) {
        peer->control_open = false;
        emit(peer, PEER_CONTROL_CLOSE);
    }
    peer_vote_fail(peer, status, peer->out_reason);
    if (peer->connect_call != 0) {
        uint64_t call = peer->connect_call;
        peer->connect_call = 0;
        peer_complete(peer, call, status, 0, peer->out_reason);
    }
}

static void lose_master(struct peer *peer, const char *why) {
    char text[MAX_REASON_BYTES + 1];
    snprintf(text, sizeof text,
             "the master was lost: %s; the results of unfinished calls are unchanged; connect again", why);
    peer_log(peer, PEER_LOG_WARN, "%s", text);
    drop_all(peer, PEER_OUT, pcclMasterConnectionLost, text);
    peer_join_farewell(peer); /* if a close has waited */
}

void peer_join_connect(struct peer *peer, const struct peer_event *event) {
    if (peer->phase != PEER_IDLE && peer->phase != PEER_OUT) {
        peer_complete(peer, event->call, pcclInvalidUsage, 0,
                      peer->phase == PEER_MEMBER && !peer->close_waits
                          ? "the communicator is connected already"
                          : "another connect or close is under way");
        return;
    }
    peer->connect_call = event->call;
    peer->connect_deadline_ns = event->deadline_ns;
    peer->connect_since_ns = peer->now_ns;
    peer->next_pending_log_ns = peer->now_ns + peer_timeout_ns(peer);
    peer->pending_reason[0] = '\0';
    peer->plan.epoch = 0;
    memset(&peer->status, 0, sizeof peer->status);
    memset(&peer->id, 0, sizeof peer->id);
    memset(&peer->run, 0, sizeof peer->run);
    peer->open_vote = VOTE_NONE;
    peer_fate_forget_marks(peer, peer->marked_count);
    peer->has_guilty_tag = false;
    peer->failed_count = 0;
    enter(peer, PEER_CONNECTING);
    peer->control_open = true;
    emit(peer, PEER_CONTROL_CONNECT);
}

void peer_join_control_open(struct peer *peer, const struct peer_event *event) {
    if (peer->phase != PEER_CONNECTING) {
        return;
    }
    enter(peer, PEER_GREETING);
    snprintf(peer->master_where, sizeof peer->master_where, "%s",
             event->reason != NULL ? event->reason : "it");
    peer->last_heard_ns = peer->now_ns;
    struct message message = {.type = MESSAGE_HELLO};
    message.as.hello = peer->options.hello;
    peer_send(peer, &message);
}

void peer_join_control_closed(struct peer *peer, const char *reason) {
    char text[MAX_REASON_BYTES + 1];
    switch (peer->phase) {
    case PEER_CONNECTING:
    case PEER_GREETING:
        snprintf(text, sizeof text, "can't join the run: %s", reason);
        drop_all(peer, PEER_IDLE, pcclMasterConnectionFailed, text);
        break;
    case PEER_PENDING:
    case PEER_MEMBER:
        lose_master(peer, reason);
        break;
    case PEER_LEAVING:
        peer_join_farewell(peer);
        break;
    case PEER_IDLE:
    case PEER_OUT:
        break;
    }
}

void peer_join_welcome(struct peer *peer, const struct message_welcome *welcome) {
    if (peer->phase != PEER_GREETING) {
        return;
    }
    peer->id = welcome->peer;
    peer->run = welcome->run;
    peer->next_heartbeat_ns = peer->now_ns; /* the master keeps no place for long for who says nothing */
    enter(peer, PEER_PENDING);
}

/* Said after `timeout`, and again each time the wait has doubled; the latest is the text of a time-out. */
void peer_join_pending(struct peer *peer, const struct message_pending *pending) {
    if (peer->phase != PEER_PENDING || peer->connect_call == 0) {
        return;
    }
    memcpy(peer->pending_reason, pending->reason, sizeof peer->pending_reason);
    uint64_t waited_ns = peer->now_ns - peer->connect_since_ns;
    if (peer->now_ns >= peer->next_pending_log_ns) {
        peer_log(peer, PEER_LOG_WARN, "waiting to be let in for %.1f s: %s", (double)waited_ns / 1e9,
                 pending->reason);
        peer->next_pending_log_ns = peer->connect_since_ns + 2 * waited_ns;
    }
}

/* The caller of connect waits no longer. */
static void give_up_connecting(struct peer *peer) {
    double seconds = (double)(peer->now_ns - peer->connect_since_ns) / 1e9;
    char text[MAX_REASON_BYTES + 1];
    if (peer->phase == PEER_PENDING) {
        int room = MAX_REASON_BYTES - 96;
        snprintf(text, sizeof text, "not let in within %.1f s: %.*s", seconds, room,
                 peer->pending_reason[0] != '\0' ? peer->pending_reason
                                                 : "the master has not said yet what it waits for");
    } else {
        snprintf(text, sizeof text, "can't join the run: no answer of the master within %.1f s", seconds);
    }
    drop_all(peer, PEER_IDLE, pcclTimeout, text);
}

void peer_join_refused(struct peer *peer, const struct message_refused *refused) {
    if (peer->phase == PEER_GREETING) {
        drop_all(peer, PEER_IDLE, refused->status, refused->reason);
    }
}

void peer_join_evicted(struct peer *peer, const struct message_refused *evicted) {
    if (is_joined(peer)) {
        peer_log(peer, PEER_LOG_WARN, "put out of the run: %s", evicted->reason);
        drop_all(peer, peer->phase == PEER_PENDING ? PEER_IDLE : PEER_OUT, evicted->status, evicted->reason);
        peer_join_farewell(peer); /* if a close has waited */
    } else if (peer->phase == PEER_LEAVING) {
        peer_join_farewell(peer);
    }
}

static const char closed[] = "the communicator was closed while the call was waiting";

void peer_join_close(struct peer *peer, const struct peer_event *event) {
    if (peer->phase == PEER_LEAVING || peer->close_waits) {
        if (peer->close_waits) { /* whoever closes once more can't wait any longer */
            peer_join_say_goodbye(peer);
        }
        peer_complete(peer, event->call, pcclInvalidUsage, 0, "another close is under way");
        return;
    }
    peer->close_call = event->call;
    if (!is_joined(peer)) {
        drop_all(peer, PEER_IDLE, pcclInvalidUsage, closed);
        peer_join_farewell(peer);
    } else if (peer->returned_count > 0) {
        /* Others may need their results: a peer that leaves with them would take the ops along. */
        peer->close_waits = true;
        peer->phase_deadline_ns = peer->now_ns + peer_timeout_ns(peer);
        peer_op_say_done(peer);
        peer_op_fail_called(peer, pcclInvalidUsage, closed);
        peer_vote_fail(peer, pcclInvalidUsage, closed);
    } else {
        peer_join_say_goodbye(peer);
    }
}

void peer_join_say_goodbye(struct peer *peer) {
    peer->close_waits = false;
    enter(peer, PEER_LEAVING);
    struct message message = {.type = MESSAGE_GOODBYE};
    peer_send(peer, &message);
    /* Links stay until the master has told the others, so that nobody takes this for a failure. */
    peer_op_fail_all(peer, pcclInvalidUsage, closed);
    peer_vote_fail(peer, pcclInvalidUsage, closed);
    if (peer->connect_call != 0) {
        uint64_t call = peer->connect_call;
        peer->connect_call = 0;
        peer_complete(peer, call, pcclInvalidUsage, 0, closed);
    }
}

/* The end of close(): all that is left goes. */
void peer_join_farewell(struct peer *peer) {
    if (peer->close_call == 0) {
        return;
    }
    uint64_t call = peer->close_call;
    peer->close_call = 0;
    peer->close_waits = false;
    drop_all(peer, PEER_IDLE, pcclInvalidUsage, "the communicator is closed");
    peer->status.epoch = 0;
    peer_complete(peer, call, pcclSuccess, 0, "");
}

static void heartbeat(struct peer *peer) {
    if (peer->now_ns < peer->next_heartbeat_ns) {
        return;
    }
    struct message message = {.type = MESSAGE_HEARTBEAT};
    peer_send(peer, &message);
    peer_probe_heartbeat(peer);
    peer->next_heartbeat_ns = peer->now_ns + peer_heartbeat_ns(peer);
}

static void give_up_greeting(struct peer *peer) {
    char why[sizeof peer->master_where + 256];
    double seconds = (double)peer_timeout_ns(peer) / 1e9;
    if (peer->phase == PEER_CONNECTING) {
        snprintf(why, sizeof why, "no connection to the master within the timeout of %.1f s", seconds);
    } else {
        snprintf(
            why, sizeof why,
            "%s took the connection, but no answer of a master came within the timeout of %.1f s. It may be "
            "the port of another program, or of a peer; `pccl master` prints its own",
            peer->master_where, seconds);
    }
    peer_join_control_closed(peer, why);
}

void peer_join_tick(struct peer *peer) {
    if (peer->connect_call != 0 && peer->connect_deadline_ns != 0 &&
        peer->now_ns >= peer->connect_deadline_ns) {
        give_up_connecting(peer);
    } else if (is_joined(peer)) {
        heartbeat(peer);
        uint64_t silent_ns = peer->now_ns - peer->last_heard_ns;
        if (peer->now_ns > peer->last_heard_ns && silent_ns >= peer_timeout_ns(peer)) {
            char why[sizeof peer->master_where + 64];
            snprintf(why, sizeof why, "nothing heard from %s for %.1f s", peer->master_where,
                     (double)silent_ns / 1e9);
            lose_master(peer, why);
        } else if (peer->close_waits && peer->now_ns >= peer->phase_deadline_ns) {
            peer_join_say_goodbye(peer);
        }
    } else if (peer->now_ns >= peer->phase_deadline_ns) {
        if (peer->phase == PEER_LEAVING) {
            peer_join_farewell(peer);
        } else {
            give_up_greeting(peer);
        }
    }
}

static uint64_t deadline_of_phase(const struct peer *peer) {
    if (!is_joined(peer)) {
        return peer->phase == PEER_IDLE || peer->phase == PEER_OUT ? UINT64_MAX : peer->phase_deadline_ns;
    }
    uint64_t deadline_ns = peer->last_heard_ns + peer_timeout_ns(peer);
    deadline_ns = peer->next_heartbeat_ns < deadline_ns ? peer->next_heartbeat_ns : deadline_ns;
    bool closes_first = peer->close_waits && peer->phase_deadline_ns < deadline_ns;
    return closes_first ? peer->phase_deadline_ns : deadline_ns;
}

uint64_t peer_join_deadline(const struct peer *peer) {
    uint64_t deadline_ns = deadline_of_phase(peer);
    bool bounded = peer->connect_call != 0 && peer->connect_deadline_ns != 0;
    return bounded && peer->connect_deadline_ns < deadline_ns ? peer->connect_deadline_ns : deadline_ns;
}

bool peer_join_hinders(const struct peer *peer, uint16_t *status, const char **text) {
    if (peer->close_waits) {
        *status = pcclInvalidUsage;
        *text = "the communicator is being closed";
        return true;
    }
    switch (peer->phase) {
    case PEER_MEMBER:
        return false;
    case PEER_OUT:
        *status = peer->out_status;
        *text = peer->out_reason;
        return true;
    default:
        *status = pcclInvalidUsage;
        *text = "the communicator is not connected: call connect first";
        return true;
    }
}
