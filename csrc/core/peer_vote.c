/* Joint calls at a peer. The master counts the votes. */
#include <stdio.h>

#include "core/peer_state.h"
#include "pccl.h"

const char *vote_kind_name(uint8_t kind) {
    static const char *const names[] = {"no joint call", "update_topology", "are_peers_pending",
                                        "optimize_topology", "sync_shared_state"};
    return kind < VOTE_KIND_END ? names[kind] : "?";
}

/* Sends the ballot of a joint call, unless it can't be made now. */
static void cast(struct peer *peer, const struct peer_event *event, uint8_t kind,
                 const struct message *ballot) {
    uint16_t status;
    const char *text;
    if (peer_join_hinders(peer, &status, &text)) {
        peer_complete(peer, event->call, status, 0, text);
    } else if (peer->vote_call != 0) {
        peer_complete(peer, event->call, pcclInvalidUsage, 0,
                      "another thread waits in a joint call of this communicator: one at a time");
    } else if (peer->op_count > 0 && kind != VOTE_PEERS_PENDING) {
        peer_complete(peer, event->call, pcclPendingAsyncOps, 0,
                      "collectives of this communicator are still in flight: await them first");
    } else {
        peer->vote_call = event->call;
        peer->vote_kind = kind;
        peer->marks_before_vote = peer->marked_count;
        peer_send(peer, ballot);
    }
}

void peer_vote_call(struct peer *peer, const struct peer_event *event) {
    struct message message = {.type = MESSAGE_VOTE};
    message.as.vote = (struct message_vote){.kind = event->vote};
    cast(peer, event, event->vote, &message);
}

void peer_vote_sync(struct peer *peer, const struct peer_event *event) {
    struct message message = {.type = MESSAGE_SYNC_OFFER};
    message.as.sync_offer = *event->offer;
    cast(peer, event, VOTE_SYNC_STATE, &message);
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
    peer_op_check_conflict(peer);
}

void peer_vote_waiting(struct peer *peer, const struct message_stragglers *stragglers) {
    for (uint16_t i = 0; i < stragglers->named && peer->vote_call != 0; i++) {
        char label[PEER_LABEL_BYTES];
        peer_log(peer, PEER_LOG_WARN, "peer %s has not called %s for %.1f s (%u missing)",
                 peer_label(peer, &stragglers->peers[i], label), vote_kind_name(stragglers->kind),
                 stragglers->waited_ms / 1e3, (unsigned)stragglers->total);
    }
}

void peer_vote_result(struct peer *peer, const struct message_vote_result *result) {
    if (peer->open_vote == result->kind) {
        peer->open_vote = VOTE_NONE;
    }
    if (peer->vote_call == 0 || peer->vote_kind != result->kind) {
        return;
    }
    bool ends_all_before = result->kind == VOTE_UPDATE_TOPOLOGY || result->kind == VOTE_SYNC_STATE;
    if (ends_all_before && result->status == pcclSuccess) {
        peer_op_forget_marks(peer, peer->marks_before_vote);
    }
    uint64_t call = peer->vote_call;
    peer->vote_call = 0;
    peer_complete(peer, call, result->status, result->value, result->reason);
}

void peer_vote_fail(struct peer *peer, uint16_t status, const char *text) {
    peer->open_vote = VOTE_NONE;
    if (peer->vote_call != 0) {
        uint64_t call = peer->vote_call;
        peer->vote_call = 0;
        peer_complete(peer, call, status, 0, text);
    }
}
