/* Joint calls at a peer. The master counts the votes. */
#include <stdio.h>

#include "core/peer_state.h"
#include "pccl.h"

const char *vote_kind_name(uint8_t kind) {
    static const char *const names[] = {"no joint call", "update_topology", "are_peers_pending",
                                        "optimize_topology", "sync_shared_state"};
    return kind < VOTE_KIND_END ? names[kind] : "?";
}

/* Why a joint call can't be made now: writes a status and a sentence, or returns false if it can. */
static bool is_hindered(const struct peer *peer, uint8_t kind, uint16_t *status, const char **text) {
    if (peer_join_hinders(peer, status, text)) {
        return true;
    }
    if (peer->vote_call != 0) {
        *status = pcclInvalidUsage;
        *text = "another thread waits in a joint call of this communicator: one at a time";
        return true;
    }
    if (peer->op_count > peer->returned_count && kind != VOTE_PEERS_PENDING) {
        *status = pcclPendingAsyncOps;
        *text = "collectives of this communicator are still in flight: await them first";
        return true;
    }
    return false;
}

void peer_vote_cast(struct peer *peer) {
    peer->ballot_waits = false;
    peer->marks_before_vote = peer->marked_count;
    struct message message = {.type = MESSAGE_VOTE};
    message.as.vote = (struct message_vote){.kind = peer->vote_kind};
    if (peer->vote_kind == VOTE_SYNC_STATE) {
        message.type = MESSAGE_SYNC_OFFER;
        message.as.sync_offer = peer->offer;
    }
    peer_send(peer, &message);
}

/* Whoever votes has no op in flight, so that the others can tell who will never join theirs. An op that was
 * returned early is in flight still, though its caller knows nothing of it. */
static void vote(struct peer *peer, const struct peer_event *event, uint8_t kind) {
    uint16_t status;
    const char *text;
    if (is_hindered(peer, kind, &status, &text)) {
        peer_complete(peer, event->call, status, 0, text);
        return;
    }
    peer->vote_call = event->call;
    peer->vote_kind = kind;
    peer->ballot_waits = peer->returned_count > 0 && kind != VOTE_PEERS_PENDING;
    if (peer->ballot_waits) {
        peer_op_say_done(peer);
    } else {
        peer_vote_cast(peer);
    }
}

void peer_vote_call(struct peer *peer, const struct peer_event *event) {
    vote(peer, event, event->vote);
}

/* An offer takes long to make: whoever asks without one learns whether it would be taken. */
static void answer_question(struct peer *peer, uint64_t call) {
    uint16_t status = pcclSuccess;
    const char *text = "";
    is_hindered(peer, VOTE_SYNC_STATE, &status, &text);
    peer_complete(peer, call, status, 0, text);
}

void peer_vote_sync(struct peer *peer, const struct peer_event *event) {
    if (event->offer == NULL) {
        answer_question(peer, event->call);
        return;
    }
    if (peer->vote_call == 0) {
        peer->offer = *event->offer;
    }
    vote(peer, event, VOTE_SYNC_STATE);
}

void peer_vote_sync_plan(struct peer *peer, const struct message_sync_plan *plan) {
    if (peer->vote_call != 0 && peer->vote_kind == VOTE_SYNC_STATE) {
        struct peer_action action = {.kind = PEER_SYNC_PLAN, .call = peer->vote_call, .plan = plan};
        peer->perform(peer->context, &action);
    }
}

void peer_vote_sync_report(struct peer *peer, const struct message_sync_report *report) {
    if (peer->vote_call != 0 && peer->vote_kind == VOTE_SYNC_STATE) {
        struct message message = {.type = MESSAGE_SYNC_REPORT};
        message.as.sync_report = *report;
        peer_send(peer, &message);
    }
}

void peer_vote_opened(struct peer *peer, const struct message_vote *vote) {
    peer->open_vote = vote->kind;
    peer->open_voter = vote->peer;
    peer_wait_check_conflict(peer);
}

void peer_vote_waiting(struct peer *peer, const struct message_stragglers *stragglers) {
    for (uint16_t i = 0; i < stragglers->named && peer->vote_call != 0; i++) {
        char label[PEER_LABEL_BYTES];
        peer_label(peer, &stragglers->peers[i], label);
        const char *call = vote_kind_name(stragglers->kind);
        const char *where_it_belongs =
            stragglers->kind == VOTE_UPDATE_TOPOLOGY
                ? ": every member calls it at the same point of its loop, normally in the last line"
                : "";
        if (stragglers->tag == STUCK_IN_CALL) {
            peer_log(peer, PEER_LOG_WARN,
                     "peer %s has got no further in %s for %.1f s: the others wait for it", label, call,
                     stragglers->waited_ms / 1e3);
        } else {
            peer_log(peer, PEER_LOG_WARN, "peer %s has not called %s for %.1f s (%u missing)%s", label, call,
                     stragglers->waited_ms / 1e3, (unsigned)stragglers->total, where_it_belongs);
        }
    }
}

void peer_vote_result(struct peer *peer, const struct message_vote_result *result) {
    if (peer->open_vote == result->kind) {
        peer->open_vote = VOTE_NONE;
    }
    if (peer->vote_call == 0 || peer->ballot_waits || peer->vote_kind != result->kind) {
        return;
    }
    bool ends_all_before = result->kind == VOTE_UPDATE_TOPOLOGY || result->kind == VOTE_SYNC_STATE;
    if (ends_all_before && result->status == pcclSuccess) {
        peer_fate_forget_marks(peer, peer->marks_before_vote);
    }
    uint64_t call = peer->vote_call;
    peer->vote_call = 0;
    peer_complete(peer, call, result->status, result->value, result->reason);
}

void peer_vote_fail(struct peer *peer, uint16_t status, const char *text) {
    peer->open_vote = VOTE_NONE;
    peer->ballot_waits = false;
    if (peer->vote_call != 0) {
        uint64_t call = peer->vote_call;
        peer->vote_call = 0;
        peer_complete(peer, call, status, 0, text);
    }
}
