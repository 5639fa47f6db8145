/* What becomes of ops when their epoch ends: they fail for all, start over for all, or are handed on by those
 * who have returned them. And of calls that come too late for an op that has failed at the others. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "core/peer_state.h"
#include "pccl.h"

uint16_t peer_fate_take_mark(struct peer *peer, uint64_t tag) {
    for (uint16_t i = 0; i < peer->marked_count; i++) {
        if (peer->marks[i].tag == tag) {
            uint16_t status = peer->marks[i].status;
            size_t behind = (size_t)(--peer->marked_count - i);
            memmove(&peer->marks[i], &peer->marks[i + 1], behind * sizeof peer->marks[0]);
            return status;
        }
    }
    return pcclSuccess;
}

/* What an op aborted with the last epoch fails with: the guilty one with its own sentence. */
static void verdict(const struct peer *peer, uint64_t tag, bool blocking, uint16_t *status,
                    const char **text) {
    bool guilty = peer->has_guilty_tag && (peer->guilty_tag == tag || (peer->guilty_blocking && blocking));
    *status = guilty ? peer->guilty_status : (uint16_t)pcclRankConnectionLost;
    *text = guilty ? peer->guilty_reason : peer->lost_reason;
}

/* That of the guilty op if no other abort has come since. */
const char *peer_fate_mark_text(const struct peer *peer, uint64_t tag, uint16_t status) {
    uint16_t newest;
    const char *text;
    verdict(peer, tag, true, &newest, &text);
    return status == newest ? text : "the collective was aborted at the others before this peer called it";
}

static struct ended_op ended(const struct peer_op *op) {
    return (struct ended_op){.tag = op->tag, .number = op->number};
}

/* Only a committed epoch starts ops, and each is noted once. */
_Static_assert(MAX_OP_SLOTS <= MAX_FAILED_TAGS, "all ops of an epoch can be noted");

static void note_failed(struct peer *peer, const struct peer_op *op) {
    if (peer->failed_count < MAX_FAILED_TAGS) {
        peer->failed[peer->failed_count++] = ended(op);
    }
}

static void unnote_failed(struct peer *peer, const struct peer_op *op) {
    uint16_t left = 0;
    for (uint16_t i = 0; i < peer->failed_count; i++) {
        if (peer->failed[i].tag != op->tag || peer->failed[i].number != op->number) {
            peer->failed[left++] = peer->failed[i];
        }
    }
    peer->failed_count = left;
}

static void remember_verdict(struct peer *peer, const struct message_propose *propose) {
    if (propose->has_guilty_tag) {
        peer->has_guilty_tag = true;
        peer->guilty_tag = propose->guilty_tag;
        peer->guilty_blocking = propose->guilty_blocking;
        peer->guilty_status = propose->status;
        snprintf(peer->guilty_reason, sizeof peer->guilty_reason, "%s", propose->reason);
    }
    int size = (int)sizeof peer->lost_reason;
    snprintf(peer->lost_reason, (size_t)size, "the collective was aborted and may be retried: %.*s",
             size - 64, propose->reason);
}

/* What its caller asked for depends on who has which rank: it can't start over among others. */
static bool names_ranks(const struct op_descriptor *descriptor) {
    return descriptor->kind != OP_ALL_REDUCE && descriptor->kind != OP_BARRIER;
}

static const char ranks_changed[] =
    "ranks have changed since the call was made, or it was made for others than there are: read rank and "
    "world size, and call again";

/* Some may have returned it already: what becomes of it is known when all have said so in READY. */
static void leave_open(struct peer *peer, int index, uint8_t fate) {
    struct peer_op *op = &peer->ops[index];
    peer_op_stop(peer, index);
    op->state = OP_SUSPENDED;
    op->served = false;
    if (fate == FATE_ABORT && !op->returned && !op->doomed) { /* once, however many proposals come */
        op->doomed = true;
        note_failed(peer, op); /* the master leaves it out if somebody has returned it */
    }
}

uint16_t peer_fate_list_kept(const struct peer *peer, struct ended_op kept[MAX_KEPT_OPS]) {
    uint16_t count = 0;
    for (int index = peer->first_op; index != NO_OP; index = peer->ops[index].next) {
        if (peer->ops[index].returned) {
            CHECK(count < MAX_KEPT_OPS);
            kept[count++] = ended(&peer->ops[index]);
        }
    }
    return count;
}

void peer_fate_epoch_ended(struct peer *peer, const struct message_propose *propose) {
    if (peer->epoch != 0) { /* else the verdict on the last committed epoch still holds */
        peer->has_guilty_tag = false;
    }
    if (propose->fate == FATE_ABORT) {
        remember_verdict(peer, propose);
    } else if (peer->epoch != 0) {
        snprintf(peer->lost_reason, sizeof peer->lost_reason, "%s", ranks_changed);
    }
    int next;
    for (int index = peer->first_op; index != NO_OP; index = next) {
        struct peer_op *op = &peer->ops[index];
        next = op->next;
        if (op->state == OP_QUEUED) {
            continue;
        }
        if (op->descriptor.early) {
            leave_open(peer, index, propose->fate);
        } else if (propose->fate == FATE_ABORT) {
            uint16_t status;
            const char *text;
            verdict(peer, op->tag, op->blocking, &status, &text);
            note_failed(peer, op);
            peer_op_fail(peer, index, status, text);
        } else if (names_ranks(&op->descriptor)) {
            note_failed(peer, op);
            peer_op_fail(peer, index, pcclRankConnectionLost, ranks_changed);
        } else {
            peer_op_stop(peer, index);
            op->state = OP_SUSPENDED;
        }
    }
}

static bool is_failed_here(const struct peer *peer, uint64_t tag) {
    for (uint16_t i = 0; i < peer->failed_count; i++) {
        if (peer->failed[i].tag == tag) {
            return true;
        }
    }
    return false;
}

/* One mark for each time: the others may have called, failed and called again. */
static void add_mark(struct peer *peer, uint64_t tag, uint16_t status) {
    if (peer->marked_count == MAX_FAILED_TAGS) {
        peer_fate_forget_marks(peer, 1);
        peer->marks_before_vote = (uint16_t)(peer->marks_before_vote - (peer->marks_before_vote > 0));
    }
    peer->marks[peer->marked_count++] = (struct peer_mark){.tag = tag, .status = status};
}

/* Ops that failed at others before this peer called them fail here too, now or at the call. */
static void apply_failed_tags(struct peer *peer, const struct message_commit_epoch *commit) {
    bool forgotten = false;
    for (uint16_t i = 0; i < commit->failed_count; i++) {
        uint64_t tag = commit->failed_tags[i];
        if (is_failed_here(peer, tag)) {
            continue;
        }
        uint16_t status;
        const char *text;
        verdict(peer, tag, true, &status, &text); /* whether others waited in it nobody knows here */
        int index = peer_op_find_newest(peer, tag);
        bool called =
            index != NO_OP && !peer->ops[index].served; /* what is served is the op before that one */
        if (called && peer->ops[index].state == OP_QUEUED) {
            peer_op_fail(peer, index, status, text);
        } else if (!called) {
            forgotten = forgotten || peer->marked_count == MAX_FAILED_TAGS;
            add_mark(peer, tag, status);
        }
    }
    if (forgotten) {
        peer_log(
            peer, PEER_LOG_WARN,
            "more than %d collectives have failed at other peers that this one has not called: the oldest of "
            "them are forgotten. If it still calls one of these, it waits for the others to call it again",
            (int)MAX_FAILED_TAGS);
    }
}

static void log_served(struct peer *peer, const struct peer_op *op) {
    char label[PEER_LABEL_BYTES];
    peer_log(peer, PEER_LOG_INFO,
             "the result of the collective with tag %" PRIu64 " comes from peer %s, which has returned it",
             op->tag, peer_label(peer, &peer->plan.members[op->root].id, label));
}

/* The master wants this op served. False if this peer has no part in it, or none could serve it. */
static bool apply_served_op(struct peer *peer, const struct served_op *served) {
    int index = peer_op_find(peer, served->op.tag);
    if (index == NO_OP || served->rank >= peer->plan.world) {
        return false;
    }
    if (peer->ops[index].returned && peer->ops[index].number < served->op.number) {
        peer_op_forget(peer, index); /* who has returned a later one tells: all have this one */
        index = peer_op_find(peer, served->op.tag);
        if (index == NO_OP) {
            return false;
        }
    }
    struct peer_op *op = &peer->ops[index];
    if (op->state != OP_SUSPENDED || !op->descriptor.early || op->number != served->op.number ||
        (served->rank == peer->plan.rank && !op->returned)) {
        return false;
    }
    op->served = true;
    op->root = served->rank;
    unnote_failed(peer, op);
    if (!op->returned) {
        log_served(peer, op);
    }
    return true;
}

static bool apply_served_ops(struct peer *peer, const struct message_commit_epoch *commit) {
    for (uint16_t i = 0; i < commit->served_count; i++) {
        if (!apply_served_op(peer, &commit->served_ops[i])) {
            return false;
        }
    }
    return true;
}

/* The others among those left open fail, or start over. False if one has been returned. */
static bool end_doomed(struct peer *peer) {
    int next;
    for (int index = peer->first_op; index != NO_OP; index = next) {
        struct peer_op *op = &peer->ops[index];
        next = op->next;
        if (op->state != OP_SUSPENDED || !op->descriptor.early || op->served) {
            continue;
        }
        if (op->returned) {
            return false;
        }
        if (op->doomed) {
            uint16_t status;
            const char *text;
            verdict(peer, op->tag, op->blocking, &status, &text);
            peer_op_fail(peer, index, status, text);
        }
    }
    return true;
}

void peer_fate_epoch_begun(struct peer *peer, const struct message_commit_epoch *commit, bool newcomer) {
    bool sound = apply_served_ops(peer, commit) && end_doomed(peer);
    if (!sound && peer->close_waits) { /* an op that it has given up itself */
        peer_join_say_goodbye(peer);
        return;
    }
    if (!sound) {
        peer_join_control_closed(peer, "its verdict on a collective that was returned early makes no sense");
        return;
    }
    if (!newcomer) {
        apply_failed_tags(peer, commit);
    }
    peer->failed_count = 0;
    peer_number_clear(peer);
    int next;
    for (int index = peer->first_op; index != NO_OP; index = next) {
        next = peer->ops[index].next;
        if (peer_op_waits_its_turn(peer, index)) {
            peer->ops[index].state = OP_QUEUED; /* in this epoch it is as if it had been called just now */
        } else {
            peer_op_start(peer, index);
        }
    }
    peer_wait_check_conflict(peer);
}

void peer_fate_forget_marks(struct peer *peer, uint16_t count) {
    peer->marked_count = (uint16_t)(peer->marked_count - count);
    memmove(peer->marks, peer->marks + count, peer->marked_count * sizeof peer->marks[0]);
}
