/* Ops that others have not joined: what the master is told of them, and that some of them never will. */
#include <inttypes.h>

#include "core/peer_state.h"

/* An op that has not ended is reported after `timeout`, then each time its age has doubled, and once when it
 * is as old as the straggler timeout. */
uint64_t peer_wait_next_report(const struct peer *peer, const struct peer_op *op) {
    uint64_t age_ns = peer->now_ns - op->started_ns;
    uint64_t next_ns = peer_timeout_ns(peer);
    while (next_ns <= age_ns) {
        next_ns *= 2;
    }
    uint64_t straggler_ns = peer->options.hello.straggler_timeout_ms * UINT64_C(1000000);
    if (straggler_ns > age_ns && straggler_ns < next_ns) {
        next_ns = straggler_ns;
    }
    return op->started_ns + next_ns;
}

static uint32_t waited_ms(const struct peer *peer, const struct peer_op *op) {
    uint64_t waited = (peer->now_ns - op->started_ns) / 1000000;
    return waited < UINT32_MAX ? (uint32_t)waited : UINT32_MAX;
}

void peer_wait_report(struct peer *peer, const struct peer_op *op) {
    struct message message = {.type = MESSAGE_OP_WAITING};
    message.as.op_waiting = (struct message_op_waiting){.epoch = peer->epoch,
                                                        .tag = op->tag,
                                                        .number = op->number,
                                                        .part = WAITING_ASKS,
                                                        .waited_ms = waited_ms(peer, op)};
    peer_send(peer, &message);
}

/* The user has called the op that the master asks about: it runs, waits its turn, or is done here. Or the one
 * before it under this tag still runs, and the user can't call that one yet. */
static bool is_in(const struct peer *peer, const struct message_op_waiting *question) {
    int index = peer_op_find_newest(peer, question->tag);
    if (index != NO_OP && (!peer->ops[index].returned || peer->ops[index].number >= question->number)) {
        return true;
    }
    const struct numbered_tag *numbered = peer_number_find(peer, question->tag);
    return numbered != NULL && question->number != 0 && question->number < numbered->next;
}

/* The op that a thread of the user has waited in for so long that the others wonder, or NULL. */
static const struct peer_op *find_stuck(const struct peer *peer) {
    for (int index = peer->first_op; index != NO_OP; index = peer->ops[index].next) {
        const struct peer_op *op = &peer->ops[index];
        bool waits = op->blocking && !op->returned && (op->state == OP_RUNNING || op->state == OP_WHOLE);
        if (waits && peer->now_ns - op->started_ns >= peer_timeout_ns(peer)) {
            return op;
        }
    }
    return NULL;
}

/* The master asks who has joined. Everybody answers, so that a long way is not taken for absence. */
void peer_wait_asked(struct peer *peer, const struct message_op_waiting *question) {
    if (question->epoch == 0 || question->epoch != peer->epoch) {
        return;
    }
    int index = peer_op_find_newest(peer, question->tag);
    const struct peer_op *stuck = find_stuck(peer);
    bool runs =
        index != NO_OP && peer->ops[index].state == OP_RUNNING && peer->ops[index].number == question->number;
    struct message message = {.type = MESSAGE_OP_WAITING};
    message.as.op_waiting =
        (struct message_op_waiting){.epoch = peer->epoch,
                                    .tag = question->tag,
                                    .number = question->number,
                                    .question = question->question,
                                    .part = is_in(peer, question) ? WAITING_IS_IN : WAITING_IS_ABSENT,
                                    .waited_ms = runs ? waited_ms(peer, &peer->ops[index]) : 0,
                                    .stuck = stuck != NULL,
                                    .stuck_tag = stuck != NULL ? stuck->tag : 0};
    peer_send(peer, &message);
}

static void report_conflict(struct peer *peer, struct peer_op *op) {
    op->accused = true;
    struct message message = {.type = MESSAGE_OP_CONFLICT};
    message.as.op_conflict = (struct message_op_conflict){
        .epoch = peer->epoch, .tag = op->tag, .kind = peer->open_vote, .mine = op->descriptor};
    peer_send(peer, &message);
}

/* are_peers_pending may be called while ops run, so that its caller may yet join this one, and this peer
 * may yet call it: but not when its user's thread has been waiting in the op for so long, for just that
 * caller. */
static void check_pending_conflict(struct peer *peer, struct peer_op *op,
                                   const struct message_stragglers *stragglers) {
    for (uint16_t i = 0; i < stragglers->named; i++) {
        if (peer->open_vote == VOTE_PEERS_PENDING && op->blocking && peer_op_is_moving(op) && !op->accused &&
            id_equal(&stragglers->peers[i], &peer->open_voter)) {
            report_conflict(peer, op);
        }
    }
}

void peer_wait_stragglers(struct peer *peer, const struct message_stragglers *stragglers) {
    int index = peer_op_find_newest(peer, stragglers->tag);
    if (stragglers->epoch != peer->epoch || index == NO_OP) {
        return;
    }
    struct peer_op *op = &peer->ops[index];
    check_pending_conflict(peer, op, stragglers);
    /* Everybody who waits has it asked at doubling intervals of its own; those of all together would be a
     * line each. */
    if (stragglers->waited_ms < op->told_ms + op->told_ms / 2) {
        return;
    }
    op->told_ms = stragglers->waited_ms;
    for (uint16_t i = 0; i < stragglers->named; i++) {
        char label[PEER_LABEL_BYTES];
        peer_log(peer, PEER_LOG_WARN,
                 "peer %s has not called the collective with tag %" PRIu64 " for %.1f s (%u missing)",
                 peer_label(peer, &stragglers->peers[i], label), stragglers->tag, stragglers->waited_ms / 1e3,
                 (unsigned)stragglers->total);
    }
}

void peer_wait_check_conflict(struct peer *peer) {
    if (peer->open_vote == VOTE_NONE || peer->open_vote == VOTE_PEERS_PENDING) {
        return;
    }
    /* The voter had no op in flight when it voted and can start none now, and the messages of the master
     * keep their order: whatever still runs here will never be joined by it. One is enough to end the epoch.
     * It is the one that the voter is excused from calling: that in which the user's thread waits here, if
     * any. */
    struct peer_op *found = NULL;
    for (int index = peer->first_op; index != NO_OP; index = peer->ops[index].next) {
        struct peer_op *op = &peer->ops[index];
        if (peer_op_is_moving(op) && !op->accused && (found == NULL || (op->blocking && !found->blocking))) {
            found = op;
        }
    }
    if (found != NULL) {
        report_conflict(peer, found);
    }
}
