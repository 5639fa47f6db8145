/* Which ops have ended. An op is known here by its group and tag alone: successive ops under one tag do
 * not overlap, since a member can only start the second when the master has ended the first. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/heartbeat.h"
#include "core/describe.h"
#include "core/master_state.h"
#include "pccl.h"

static uint32_t bucket_of(int group, uint64_t tag) {
    uint64_t mixed = (tag + (uint64_t)group) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(mixed >> 51); /* 13 bits: MASTER_OP_BUCKETS */
}

void master_op_init(struct master *master) {
    for (int i = 0; i < MASTER_OP_BUCKETS; i++) {
        master->buckets[i] = NO_MASTER_OP;
    }
    for (int i = 0; i < MAX_MASTER_OPS; i++) {
        master->ops[i].next = (int16_t)(i + 1 < MAX_MASTER_OPS ? i + 1 : NO_MASTER_OP);
    }
    master->free_op = 0;
}

static struct master_op *find(struct master *master, int group, uint64_t tag) {
    int index = master->buckets[bucket_of(group, tag)];
    while (index != NO_MASTER_OP && (master->ops[index].group != group || master->ops[index].tag != tag)) {
        index = master->ops[index].chained;
    }
    return index == NO_MASTER_OP ? NULL : &master->ops[index];
}

/* A peer has at most MAX_OP_SLOTS ops under way. What it asks about takes a place no longer than a question
 * lasts; what it has done may come on top of that. So no member can fill the table for the others. */
enum { MAX_ASKED_OPS = MAX_OP_SLOTS, MAX_DONE_OPS = 2 * MAX_OP_SLOTS };

static void discount(struct master *master, struct master_op *op) {
    if (op->opener != NO_SLOT) {
        master->slots[op->opener].opened_ops--;
        op->opener = NO_SLOT;
    }
}

/* NULL when all are taken. */
static struct master_op *find_or_open(struct master *master, int slot, uint64_t tag) {
    int group = master->slots[slot].group;
    struct master_op *op = find(master, group, tag);
    if (op != NULL || master->free_op == NO_MASTER_OP) {
        return op;
    }
    int16_t index = master->free_op;
    op = &master->ops[index];
    master->free_op = op->next;
    int16_t *bucket = &master->buckets[bucket_of(group, tag)];
    *op = (struct master_op){
        .used = true, .group = (int16_t)group, .opener = (int16_t)slot, .tag = tag, .chained = *bucket};
    master->slots[slot].opened_ops++;
    *bucket = index;
    struct group *owner = &master->groups[group];
    op->previous = NO_MASTER_OP;
    op->next = owner->first_op;
    if (owner->first_op != NO_MASTER_OP) {
        master->ops[owner->first_op].previous = index;
    }
    owner->first_op = index;
    return op;
}

static void close_op(struct master *master, struct master_op *op) {
    int16_t index = (int16_t)(op - master->ops);
    int16_t *link = &master->buckets[bucket_of(op->group, op->tag)];
    while (*link != index) {
        link = &master->ops[*link].chained;
    }
    *link = op->chained;
    if (op->previous == NO_MASTER_OP) {
        master->groups[op->group].first_op = op->next;
    } else {
        master->ops[op->previous].next = op->next;
    }
    if (op->next != NO_MASTER_OP) {
        master->ops[op->next].previous = op->previous;
    }
    op->used = false;
    discount(master, op);
    master->groups[op->group].numbered_count -= op->numbered;
    master->numbered_count -= op->numbered;
    op->next = master->free_op;
    master->free_op = index;
}

void master_op_forget(struct master *master, int group) {
    while (master->groups[group].first_op != NO_MASTER_OP) {
        close_op(master, &master->ops[master->groups[group].first_op]);
    }
}

/* The group of `slot`, or NULL if what it says is of an epoch that is over. */
static struct group *current_group(struct master *master, int slot, uint64_t epoch) {
    struct group *group = &master->groups[master->slots[slot].group];
    bool current = master->slots[slot].state == SLOT_MEMBER && group->epoch != 0 && group->epoch == epoch;
    return current ? group : NULL;
}

static void abort_op(struct master *master, int group, uint64_t tag, struct ending *ending) {
    ending->has_guilty_tag = true;
    ending->guilty_tag = tag;
    master_epoch_reform(master, group, ending);
    master_settle(master);
}

static void refuse_more(struct master *master, int group, uint64_t tag) {
    struct ending ending = ending_abort(
        pcclRefused, "%d collectives are open at the master, which is the limit", (int)MAX_MASTER_OPS);
    abort_op(master, group, tag, &ending);
}

/* In a tree each works the sum out for itself. Bits that differ must not reach anybody. What is most likely
 * is said first. */
#define WHY_DIFFERENT                                                                                        \
    "an array was written while the op ran, or their builds of pccl or their machines do not add alike "     \
    "(for "                                                                                                  \
    "these, use the ring)"

static void refuse_difference(struct master *master, int group, const struct master_op *op, int a, int b) {
    char first[LABEL_BYTES], second[LABEL_BYTES];
    uint64_t tag = op->tag;
    if (op->returned) { /* to the caller of one of them: it can't fail for all any more */
        master_join_evict(master, b, pcclEvicted,
                          "its result of the collective with tag %" PRIu64
                          " is not that of peer %s: " WHY_DIFFERENT,
                          tag, master_label(master, a, first));
        return;
    }
    struct ending ending =
        ending_abort(pcclInternalError,
                     "peers %s and %s have worked out different results of the collective with tag %" PRIu64
                     ": " WHY_DIFFERENT,
                     master_label(master, a, first), master_label(master, b, second), tag);
    abort_op(master, group, tag, &ending);
}

static void forget_question(struct master_op *op) {
    op->asked_ns = 0;
    op->waited_ns = 0;
    op->straggler_limit = false;
    slot_set_clear(&op->joined); /* who is absent is known until the next question */
}

static struct message commit_of(uint64_t epoch, uint64_t tag, uint64_t number) {
    struct message message = {.type = MESSAGE_OP_COMMIT};
    message.as.op = (struct message_op){.epoch = epoch, .tag = tag, .number = number};
    return message;
}

/* All members have it. From the first op on that was returned early, the ops under its tag are numbered, so
 * that the next one need not wait for this: the place stays. */
static void commit(struct master *master, struct group *group, struct master_op *op) {
    struct message message = commit_of(group->epoch, op->tag, op->number);
    if (!op->numbered && op->returned && group->numbered_count < MAX_NUMBERED_TAGS &&
        master->numbered_count < MAX_MASTER_OPS / 2) {
        op->numbered = true;
        group->numbered_count++;
        master->numbered_count++;
        message.as.op.numbered = true;
    }
    if (op->numbered) {
        discount(master, op);
        slot_set_clear(&op->done);
        op->returned = false;
        if (op->asked_number <= op->number) {
            forget_question(op);
            slot_set_clear(&op->absent);
        }
    } else {
        close_op(master, op);
    }
    for (int i = 0; i < group->size; i++) {
        master_send(master, group->ring[i], &message);
    }
}

void master_op_done(struct master *master, int slot, const struct message_op *done) {
    struct group *group = current_group(master, slot, done->epoch);
    if (group == NULL) {
        return;
    }
    int index = (int)(group - master->groups);
    if (find(master, index, done->tag) == NULL && master->slots[slot].opened_ops >= MAX_DONE_OPS) {
        master_join_evict(master, slot, pcclEvicted,
                          "it has done more collectives at once than a peer can have");
        return;
    }
    struct master_op *op = find_or_open(master, slot, done->tag);
    if (op == NULL) {
        refuse_more(master, index, done->tag);
        return;
    }
    if (op->numbered ? done->number == 0 : done->number != 0) {
        master_join_evict(master, slot, pcclEvicted,
                          "it has numbered an op that has no number, or not one that has");
        return;
    }
    if (done->number < op->number) { /* somebody has done a later one, so all have this */
        /* It may wait for this, and nobody else will say that the op is done. */
        struct message message = commit_of(done->epoch, done->tag, done->number);
        master_send(master, slot, &message);
        return;
    }
    if (done->number > op->number) {
        op->number = done->number;
        op->returned = false;
        slot_set_clear(&op->done);
    }
    int first = slot_set_next(&op->done, 0);
    op->returned = op->returned || done->returned;
    if (first == NO_SLOT) {
        op->check = done->check;
    } else if (done->check != op->check) {
        refuse_difference(master, index, op, first, slot);
        return;
    }
    slot_set_add(&op->done, slot);
    if (slot_set_count(&op->done) == group->size) {
        commit(master, group, op);
    }
}

void master_op_mismatch(struct master *master, int slot, const struct message_op_mismatch *mismatch) {
    struct group *group = current_group(master, slot, mismatch->epoch);
    int other = master_find_id(master, &mismatch->other);
    if (group == NULL || other == NO_SLOT) {
        return;
    }
    char first[LABEL_BYTES], second[LABEL_BYTES], mine[DESCRIBE_BYTES], theirs[DESCRIBE_BYTES];
    struct ending ending =
        ending_abort(pcclMismatch, "calls with tag %" PRIu64 " differ: peer %s called %s, peer %s called %s",
                     mismatch->tag, master_label(master, slot, first), describe_op(&mismatch->mine, mine),
                     master_label(master, other, second), describe_op(&mismatch->theirs, theirs));
    abort_op(master, (int)(group - master->groups), mismatch->tag, &ending);
}

void master_op_abort(struct master *master, int slot, const struct message_op_abort *abort) {
    struct group *group = current_group(master, slot, abort->epoch);
    if (group == NULL) {
        return;
    }
    char label[LABEL_BYTES];
    /* Called for another world: this op fails, all others start over. */
    if (abort->status == pcclRankConnectionLost) {
        struct ending ending =
            ending_carry("peer %s called the collective with tag %" PRIu64 " for other ranks than there are",
                         master_label(master, slot, label), abort->tag);
        abort_op(master, (int)(group - master->groups), abort->tag, &ending);
        return;
    }
    struct ending ending =
        ending_abort(abort->status, "peer %s gave the collective with tag %" PRIu64 " up: %s",
                     master_label(master, slot, label), abort->tag, abort->reason);
    abort_op(master, (int)(group - master->groups), abort->tag, &ending);
}

/* How long `slot` has waited in the op, as far as it can be: no longer than the epoch lasts, and a time in
 * which the master itself stood still counts against nobody, since who is missing may have waited for an
 * answer. */
static uint64_t believed_wait(const struct master *master, const struct group *group, uint32_t waited_ms) {
    uint64_t since_ns =
        group->committed_ns > master->awake_since_ns ? group->committed_ns : master->awake_since_ns;
    uint64_t most_ns = master->now_ns - since_ns, waited_ns = waited_ms * UINT64_C(1000000);
    return waited_ns < most_ns ? waited_ns : most_ns;
}

static void ask_who_is_in(struct master *master, const struct group *group, struct master_op *op, int asker) {
    op->question =
        ++master->last_question; /* the place may have been another's: late answers are to neither */
    op->asked_ns = master->now_ns;
    if (asker != NO_SLOT) {
        op->pause_ns = heartbeat_of(master->slots[asker].timeout_ns);
    }
    slot_set_clear(&op->absent);
    struct message question = {.type = MESSAGE_OP_WAITING};
    question.as.op_waiting = (struct message_op_waiting){.epoch = group->epoch,
                                                         .tag = op->tag,
                                                         .number = op->asked_number,
                                                         .part = WAITING_ASKS,
                                                         .question = op->question};
    for (int i = 0; i < group->size; i++) {
        if (group->ring[i] != asker) {
            master_send(master, group->ring[i], &question);
        }
    }
    master_watch(master, master->now_ns + op->pause_ns);
}

static void note_absent(struct master *master, struct master_op *op, int slot, uint32_t question) {
    if (op->asked_ns != 0 && question == op->question && !slot_set_has(&op->joined, slot)) {
        slot_set_add(&op->absent, slot);
        master_watch(master, master->now_ns); /* it may be the last answer */
    }
}

/* A member waits, or answers whether it is in the op. */
void master_op_waiting(struct master *master, int slot, const struct message_op_waiting *waiting) {
    struct group *group = current_group(master, slot, waiting->epoch);
    if (group == NULL) {
        return;
    }
    int index = (int)(group - master->groups);
    bool asks = waiting->part == WAITING_ASKS;
    const struct slot *peer = &master->slots[slot];
    uint64_t waited_ns = believed_wait(master, group, waiting->waited_ms);
    bool may_open = asks && waited_ns >= heartbeat_of(peer->timeout_ns) && peer->opened_ops < MAX_ASKED_OPS;
    struct master_op *op =
        may_open ? find_or_open(master, slot, waiting->tag) : find(master, index, waiting->tag);
    if (op == NULL || waiting->number < op->asked_number || (!asks && waiting->number > op->asked_number)) {
        return; /* no room, or of another op under this tag than the one that is asked about */
    }
    if (waiting->number > op->asked_number) {
        op->asked_number = waiting->number;
        forget_question(op);
        slot_set_clear(&op->absent);
    }
    if (waiting->part == WAITING_IS_ABSENT) {
        master->slots[slot].stuck = waiting->stuck;
        master->slots[slot].stuck_tag = waiting->stuck_tag;
        note_absent(master, op, slot, waiting->question);
        return;
    }
    slot_set_add(&op->joined, slot);
    slot_set_remove(&op->absent, slot);
    op->waited_ns = waited_ns > op->waited_ns ? waited_ns : op->waited_ns;
    bool reached = peer->straggler_timeout_ns != 0 && waited_ns >= peer->straggler_timeout_ns;
    if (reached && !op->straggler_limit) {
        op->straggler_limit = true;
        op->asked_ns = 0; /* who is absent is asked once more: it is put out only if it is so now */
    }
    if (op->asked_ns == 0 && (asks || reached) && waited_ns >= heartbeat_of(peer->timeout_ns)) {
        ask_who_is_in(master, group, op, slot);
    }
    master_watch(master, master->now_ns);
}

static bool is_silent(const struct master_op *op, int slot) {
    bool is_done = op->number >= op->asked_number && slot_set_has(&op->done, slot);
    return !is_done && !slot_set_has(&op->joined, slot) && !slot_set_has(&op->absent, slot);
}

/* Who has said that it is not in the op, or has said nothing for as long as it may be silent. */
static bool is_missing(const struct master *master, const struct master_op *op, int slot) {
    bool overdue = master->now_ns >= op->asked_ns + master->slots[slot].timeout_ns;
    return slot_set_has(&op->absent, slot) || (overdue && is_silent(op, slot));
}

static void tell_stragglers(struct master *master, const struct group *group, const struct master_op *op) {
    struct message message = {.type = MESSAGE_OP_STRAGGLERS};
    struct message_stragglers *report = &message.as.stragglers;
    report->epoch = group->epoch;
    report->tag = op->tag;
    report->waited_ms = (uint32_t)(op->waited_ns / 1000000);
    for (int i = 0; i < group->size; i++) {
        int slot = group->ring[i];
        bool missing = is_missing(master, op, slot);
        if (missing && report->named < MAX_NAMED_STRAGGLERS) {
            report->peers[report->named++] = master->slots[slot].id;
        }
        report->total = (uint16_t)(report->total + missing);
    }
    for (int i = 0; i < group->size && report->total > 0; i++) {
        if (!is_missing(master, op, group->ring[i])) {
            master_send(master, group->ring[i], &message);
        }
    }
}

/* Whether it is time to judge: all have answered, or those who have are enough to name somebody, or a silent
 * one has been silent for too long. Else sees to it that it is looked at again. */
static bool is_ripe(struct master *master, const struct group *group, const struct master_op *op) {
    uint64_t next_ns = UINT64_MAX;
    bool missing = false;
    for (int i = 0; i < group->size; i++) {
        int slot = group->ring[i];
        bool is_out = is_missing(master, op, slot);
        missing = missing || is_out;
        if (!is_out && is_silent(op, slot)) {
            uint64_t overdue_ns = op->asked_ns + master->slots[slot].timeout_ns;
            next_ns = overdue_ns < next_ns ? overdue_ns : next_ns;
        }
    }
    if (next_ns == UINT64_MAX || (missing && master->now_ns >= op->asked_ns + op->pause_ns)) {
        return true;
    }
    uint64_t pause_ns = op->asked_ns + op->pause_ns;
    master_watch(master, missing && pause_ns < next_ns ? pause_ns : next_ns);
    return false;
}

/* The op that the user of `slot` waits in, if it was absent from another when it was asked last. */
static struct master_op *find_stuck_op(struct master *master, int group, int slot) {
    const struct slot *peer = &master->slots[slot];
    struct master_op *op = peer->stuck ? find(master, group, peer->stuck_tag) : NULL;
    return op != NULL && !slot_set_has(&op->absent, slot) ? op : NULL;
}

static int next_in(const struct slot_set *set, int slot) {
    return slot + 1 < MAX_PEERS ? slot_set_next(set, slot + 1) : -1;
}

/* One who is absent waits elsewhere: who that is has to be known when that op is judged. */
static bool is_anybody_stuck(const struct master *master, const struct master_op *op) {
    for (int slot = slot_set_next(&op->absent, 0); slot >= 0; slot = next_in(&op->absent, slot)) {
        if (master->slots[slot].stuck) {
            return true;
        }
    }
    return false;
}

/* Follows who waits for whom: those in `op` for those absent from it, these for those absent from the op that
 * they sit in, and so on. True if one of them sits in `op` itself: then nobody in the circle ever goes on.
 * `seen` gets all on the way, `oldest_ns` when the oldest of their answers were complete. */
static bool find_circle(struct master *master, struct master_op *op, struct slot_set *seen,
                        uint64_t *oldest_ns) {
    struct slot_set todo = op->absent;
    slot_set_clear(seen);
    *oldest_ns = UINT64_MAX;
    bool closed = false;
    for (int slot = slot_set_next(&todo, 0); slot >= 0; slot = slot_set_next(&todo, 0)) {
        slot_set_remove(&todo, slot);
        struct master_op *other = find_stuck_op(master, op->group, slot);
        if (other == NULL) {
            continue;
        }
        slot_set_add(seen, slot);
        closed = closed || other == op;
        *oldest_ns = other->judged_ns < *oldest_ns ? other->judged_ns : *oldest_ns;
        for (int next = slot_set_next(&other->absent, 0); next >= 0; next = next_in(&other->absent, next)) {
            if (!slot_set_has(seen, next)) {
                slot_set_add(&todo, next);
            }
        }
    }
    return closed;
}

/* Asks about the ops that those in `slots` sit in; not about `judged`, whose answers are of now, nor where
 * answers are still to come. */
static void ask_again(struct master *master, const struct master_op *judged, const struct slot_set *slots) {
    for (int slot = slot_set_next(slots, 0); slot >= 0; slot = next_in(slots, slot)) {
        struct master_op *op = find_stuck_op(master, judged->group, slot);
        if (op != NULL && op != judged && op->asked_ns == 0) {
            ask_who_is_in(master, &master->groups[judged->group], op, NO_SLOT);
        }
    }
}

/* So long an answer counts for those that come later: more than a round trip, less than users are waited for.
 */
enum { HEARTBEATS_OF_AN_ANSWER = 5 };

/* Those whose users wait for each other in different ops get an error, and the sentence says who sits where.
 * If answers are older than a moment they are asked for anew first: somebody may have called meanwhile.
 * Returns whether the epoch was ended. */
static bool break_circle(struct master *master, struct master_op *op) {
    struct slot_set seen;
    uint64_t oldest_ns;
    int index = op->group;
    if (!find_circle(master, op, &seen, &oldest_ns)) {
        return false;
    }
    if (master->now_ns - oldest_ns > HEARTBEATS_OF_AN_ANSWER * op->pause_ns) {
        ask_again(master, op, &seen); /* when they are judged, the answers to this question still count */
        return false;
    }
    char text[MAX_REASON_BYTES + 1] = "";
    size_t used = 0;
    for (int slot = slot_set_next(&seen, 0); slot >= 0 && used < sizeof text; slot = next_in(&seen, slot)) {
        char label[LABEL_BYTES];
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "%speer %s in the collective with tag %" PRIu64, used > 0 ? ", " : "",
                                 master_label(master, slot, label), master->slots[slot].stuck_tag);
    }
    struct ending ending = ending_abort(
        pcclMismatch,
        "peers wait for each other in different calls (call them in one order at all peers, or start "
        "them as async ops): %s",
        text);
    ending.guilty_blocking = true;
    abort_op(master, index, op->tag, &ending);
    return true;
}

/* Returns the first straggler to evict, or NO_SLOT. */
static int judge(struct master *master, struct master_op *op) {
    const struct group *group = &master->groups[op->group];
    int straggler = NO_SLOT;
    tell_stragglers(master, group, op);
    for (int i = 0; i < group->size && straggler == NO_SLOT && op->straggler_limit; i++) {
        straggler = is_missing(master, op, group->ring[i]) ? group->ring[i] : NO_SLOT;
    }
    forget_question(op); /* who still waits will say so again */
    return straggler;
}

void master_op_postpone(struct master *master, uint64_t by_ns) {
    for (int i = 0; i < MAX_MASTER_OPS; i++) {
        struct master_op *op = &master->ops[i];
        op->asked_ns += op->used && op->asked_ns != 0 ? by_ns : 0;
    }
}

void master_op_check(struct master *master) {
    for (int i = 0; i < MAX_PEERS; i++) {
        if (!master->groups[i].used) {
            continue;
        }
        int next;
        for (int at = master->groups[i].first_op; at != NO_MASTER_OP; at = next) {
            struct master_op *op = &master->ops[at];
            next = op->next;
            if (op->asked_ns == 0 || !is_ripe(master, &master->groups[i], op)) {
                continue;
            }
            op->judged_ns = master->now_ns;
            if (break_circle(master, op)) {
                break; /* the epoch is over, and with it all its ops */
            }
            uint64_t tag = op->tag;
            double waited = (double)op->waited_ns / 1e9;
            int straggler = judge(master, op);
            if (!op->numbered && slot_set_next(&op->done, 0) < 0 && !is_anybody_stuck(master, op)) {
                close_op(master, op); /* nobody has done it: who waits asks again */
            }
            if (straggler != NO_SLOT) {
                master_join_evict(master, straggler, pcclEvicted,
                                  "the others wait for it in the collective with tag %" PRIu64 " for %.1f s",
                                  tag, waited);
                break; /* the epoch is over, and with it all its ops */
            }
        }
    }
}
