/* The life of an op at a peer: called, running, whole, and then the master's verdict. */
#include <stdio.h>

#include "base/check.h"
#include "core/peer_state.h"
#include "data/datatype.h"
#include "pccl.h"

/* How long OP_DONE of a numbered op may wait for the next op, which says it better: as long as the loop may
 * be left alone between calls. */
static const uint64_t done_delay_ns = 5000000;

static uint32_t bucket_of(uint64_t tag) {
    return (uint32_t)((tag * UINT64_C(0x9e3779b97f4a7c15)) >> 54); /* 10 bits: OP_BUCKETS */
}

void peer_op_init(struct peer *peer) {
    for (int i = 0; i < OP_BUCKETS; i++) {
        peer->buckets[i] = NO_OP;
    }
    for (int i = 0; i < MAX_OP_SLOTS; i++) {
        peer->ops[i].next = (int16_t)(i + 1 < MAX_OP_SLOTS ? i + 1 : NO_OP);
    }
    peer->free_op = 0;
    peer->first_op = NO_OP;
    peer->last_op = NO_OP;
    peer->op_check_ns = UINT64_MAX;
}

/* The first op from `index` on, in its bucket, that has the tag. */
static int find_from(const struct peer *peer, int index, uint64_t tag) {
    while (index != NO_OP && peer->ops[index].tag != tag) {
        index = peer->ops[index].chained;
    }
    return index;
}

int peer_op_find(const struct peer *peer, uint64_t tag) {
    return find_from(peer, peer->buckets[bucket_of(tag)], tag);
}

int peer_op_find_newest(const struct peer *peer, uint64_t tag) {
    int index = peer_op_find(peer, tag);
    int next = index == NO_OP ? NO_OP : find_from(peer, peer->ops[index].chained, tag);
    return next == NO_OP ? index : next;
}

/* A caller waits in an op with this tag. */
static bool is_called(const struct peer *peer, uint64_t tag) {
    int index = peer_op_find_newest(peer, tag);
    return index != NO_OP && !peer->ops[index].returned;
}

/* A small all-reduce need not wait where ops are numbered: frames say which one is meant. And when it is
 * whole, all have called it, so that all have the result of the one before. */
bool peer_op_waits_its_turn(const struct peer *peer, int index) {
    const struct peer_op *op = &peer->ops[index];
    int oldest = peer_op_find(peer, op->tag);
    if (oldest == index) {
        return false;
    }
    bool follows = peer->ops[oldest].state == OP_KEPT && op->descriptor.early;
    return !follows || peer_number_find(peer, op->tag) == NULL;
}

static int allot(struct peer *peer, uint64_t tag) {
    int16_t index = peer->free_op;
    CHECK(index != NO_OP);
    struct peer_op *op = &peer->ops[index];
    peer->free_op = op->next;
    *op = (struct peer_op){.state = OP_QUEUED, .tag = tag, .previous = peer->last_op, .next = NO_OP};
    if (peer->last_op == NO_OP) {
        peer->first_op = index;
    } else {
        peer->ops[peer->last_op].next = index;
    }
    peer->last_op = index;
    op->chained = NO_OP;
    int16_t *link = &peer->buckets[bucket_of(tag)];
    while (*link != NO_OP) {
        link = &peer->ops[*link].chained;
    }
    *link = index;
    peer->op_count++;
    return index;
}

static void release(struct peer *peer, int index) {
    struct peer_op *op = &peer->ops[index];
    if (op->previous == NO_OP) {
        peer->first_op = op->next;
    } else {
        peer->ops[op->previous].next = op->next;
    }
    if (op->next == NO_OP) {
        peer->last_op = op->previous;
    } else {
        peer->ops[op->next].previous = op->previous;
    }
    int16_t *link = &peer->buckets[bucket_of(op->tag)];
    while (*link != index) {
        link = &peer->ops[*link].chained;
    }
    *link = op->chained;
    op->state = OP_FREE;
    op->next = peer->free_op;
    peer->free_op = (int16_t)index;
    peer->op_count--;
    peer->returned_count -= op->returned;
}

bool peer_op_is_moving(const struct peer_op *op) {
    return op->state == OP_RUNNING || op->state == OP_WHOLE;
}

/* Between epochs an op can't time out: it has to fail for all, and there is nobody to tell. It does as
 * soon as the next epoch begins, and that takes a few timeouts at most. */
static uint64_t op_deadline(const struct peer_op *op) {
    if (op->state == OP_KEPT) {
        return op->done_due_ns != 0 ? op->done_due_ns : UINT64_MAX;
    }
    uint64_t deadline = op->deadline_ns != 0 && peer_op_is_moving(op) ? op->deadline_ns : UINT64_MAX;
    /* Whole here (a barrier, a broadcast at its root) does not mean that the others have come. */
    if (peer_op_is_moving(op) && op->next_report_ns < deadline) {
        deadline = op->next_report_ns;
    }
    return deadline;
}

static void watch(struct peer *peer, const struct peer_op *op) {
    uint64_t deadline = op_deadline(op);
    if (deadline < peer->op_check_ns) {
        peer->op_check_ns = deadline;
    }
}

/* The same at all peers: it depends on the plan, and on what has to be equal in all calls. */
static bool uses_tree(const struct peer *peer, const struct op_descriptor *descriptor) {
    bool can = descriptor->kind == OP_ALL_REDUCE || descriptor->kind == OP_BROADCAST;
    /* In a tree, who receives a chunk grants the next one: without chunks there is only the ring. */
    if (!can || !peer->plan.has_tree || descriptor->algorithm == OP_ALGORITHM_RING ||
        descriptor->count == 0) {
        return false;
    }
    uint64_t most = peer->tree_bytes / datatype_bytes(descriptor->datatype);
    return descriptor->algorithm == OP_ALGORITHM_TREE || descriptor->count <= most;
}

/* What moves: for the op itself, or for its result. */
static struct op_descriptor moved(const struct peer_op *op) {
    if (!op->served) {
        return op->descriptor;
    }
    return (struct op_descriptor){.kind = OP_BROADCAST,
                                  .datatype = op->descriptor.datatype,
                                  .root_or_world = op->root,
                                  .count = op->descriptor.count};
}

static void emit_start(struct peer *peer, int index, bool unfit) {
    const struct peer_op *op = &peer->ops[index];
    const struct message_propose *plan = &peer->plan;
    struct op_descriptor descriptor = moved(op);
    bool rooted = descriptor.kind == OP_BROADCAST && descriptor.root_or_world < plan->world;
    uint16_t root = rooted ? descriptor.root_or_world : 0;
    bool tree = uses_tree(peer, &descriptor);
    struct peer_action action = {.kind = PEER_OP_START,
                                 .descriptor = descriptor,
                                 .served = op->served,
                                 .call = op->call,
                                 .op = (uint32_t)index,
                                 .tag = op->tag,
                                 .epoch = peer->epoch,
                                 .commits_seen = op->commits_seen,
                                 .rank = plan->rank,
                                 .world = plan->world,
                                 .place = tree ? plan->places[plan->rank] : plan->rank,
                                 .root = tree ? plan->places[root] : root,
                                 .tree = tree,
                                 .unfit = unfit};
    peer->perform(peer->context, &action);
}

static void emit(struct peer *peer, enum peer_action_kind kind, int index) {
    const struct peer_op *op = &peer->ops[index];
    struct peer_action action = {.kind = kind,
                                 .call = op->call,
                                 .op = (uint32_t)index,
                                 .tag = op->tag,
                                 .epoch = peer->epoch,
                                 .commits_seen = op->commits_seen};
    peer->perform(peer->context, &action);
}

void peer_op_stop(struct peer *peer, int index) {
    if (peer_op_is_moving(&peer->ops[index])) {
        emit(peer, PEER_OP_STOP, index);
    }
}

void peer_op_fail(struct peer *peer, int index, uint16_t status, const char *text) {
    const struct peer_op *op = &peer->ops[index];
    peer_op_stop(peer, index);
    if (op->returned) {
        peer_op_forget(peer, index);
        return;
    }
    uint64_t call = op->call;
    release(peer, index);
    peer_complete(peer, call, status, 0, text);
}

void peer_op_forget(struct peer *peer, int index) {
    emit(peer, PEER_OP_FORGET, index);
    release(peer, index);
}

/* Asks the master to abort the op for all. */
static void give_up(struct peer *peer, struct peer_op *op, uint16_t status, const char *reason) {
    op->accused = true;
    struct message message = {.type = MESSAGE_OP_ABORT};
    message.as.op_abort.epoch = peer->epoch;
    message.as.op_abort.tag = op->tag;
    message.as.op_abort.status = status;
    snprintf(message.as.op_abort.reason, sizeof message.as.op_abort.reason, "%s", reason);
    peer_send(peer, &message);
}

/* Buffers and roots are chosen for the world that the caller saw. What is wrong if this is another one. */
static const char *unfit_for(const struct message_propose *plan, const struct op_descriptor *descriptor) {
    bool per_rank = descriptor->kind == OP_ALL_GATHER || descriptor->kind == OP_REDUCE_SCATTER;
    if (per_rank && descriptor->root_or_world != plan->world) {
        return "the number of peers has changed since it was called: call again with buffers for as many";
    }
    if (descriptor->kind == OP_BROADCAST && descriptor->root_or_world >= plan->world) {
        return "its root is beyond the number of peers: the group has shrunk, or the root is wrong";
    }
    return NULL;
}

void peer_op_start(struct peer *peer, int index) {
    struct peer_op *op = &peer->ops[index];
    if (peer->plan.world < 2) { /* of one that was returned early nobody hears: it is done with */
        peer_op_fail(peer, index, pcclTooFewPeers,
                     "this peer is alone in its group: wait for others to join, then call update_topology");
        return;
    }
    op->state = OP_RUNNING;
    op->accused = false;
    op->doomed = false;
    if (op->served) {
        op->deadline_ns = 0; /* it is too late to give it up: others have returned it */
    } else {
        op->world = peer->plan.world;
    }
    struct numbered_tag *numbered = peer_number_find(peer, op->tag);
    op->number = numbered != NULL ? numbered->next++ : 0;
    op->commits_seen = op->number != 0 ? NUMBERED_BIT | op->number : peer->commits_seen;
    op->started_ns = peer->now_ns;
    op->told_ms = 0;
    op->next_report_ns = peer_wait_next_report(peer, op);
    watch(peer, op);
    const char *hindrance = op->served ? NULL : unfit_for(&peer->plan, &op->descriptor);
    emit_start(peer, index, hindrance != NULL);
    if (hindrance != NULL) {
        give_up(peer, op, pcclRankConnectionLost, hindrance);
    }
}

static bool refuse_call(struct peer *peer, const struct peer_event *event) {
    uint16_t status = pcclInvalidUsage, marked;
    const char *text;
    if (peer_join_hinders(peer, &status, &text)) {
        /* said all */
    } else if (is_called(peer, event->tag)) {
        text = "a collective with this tag is in flight already: await it or use another tag";
    } else if (peer->vote_call != 0 && peer->vote_kind != VOTE_PEERS_PENDING) {
        text = "another thread waits in a joint call of this communicator: let it end first";
    } else if (peer->op_count - peer->returned_count == MAX_OPS) {
        text = "1024 collectives are in flight on this communicator: await some first";
    } else if ((marked = peer_fate_take_mark(peer, event->tag)) != pcclSuccess) {
        status = marked;
        text = peer_fate_mark_text(peer, event->tag, marked);
    } else {
        return false;
    }
    peer_complete(peer, event->call, status, 0, text);
    return true;
}

static void send_done(struct peer *peer, const struct peer_op *op, bool returns) {
    struct message message = {.type = MESSAGE_OP_DONE};
    message.as.op = (struct message_op){
        .epoch = peer->epoch, .tag = op->tag, .number = op->number, .check = op->check, .returned = returns};
    peer_send(peer, &message);
}

/* Unless it was said before, or means nothing any more. */
static void say_done(struct peer *peer, struct peer_op *op) {
    if (op->state == OP_KEPT && op->done_due_ns != 0) {
        op->done_due_ns = 0;
        send_done(peer, op, true);
    }
}

void peer_op_say_done(struct peer *peer) {
    for (int index = peer->first_op; index != NO_OP; index = peer->ops[index].next) {
        say_done(peer, &peer->ops[index]);
    }
}

void peer_op_call(struct peer *peer, const struct peer_event *event) {
    if (refuse_call(peer, event)) {
        return;
    }
    int index = allot(peer, event->tag);
    struct peer_op *op = &peer->ops[index];
    op->call = event->call;
    op->blocking = event->blocking;
    op->deadline_ns = event->deadline_ns;
    op->descriptor = event->descriptor;
    watch(peer, op);
    if (peer->epoch == 0) {
        return;
    }
    if (peer_op_waits_its_turn(peer, index)) {
        say_done(peer, &peer->ops[peer_op_find(peer, event->tag)]);
        return;
    }
    peer_op_start(peer, index);
    peer_wait_check_conflict(peer);
}

/* Its caller goes on. From here on the op commits for all members that live on: this peer has the result. */
static void return_early(struct peer *peer, int index) {
    struct peer_op *op = &peer->ops[index];
    uint64_t call = op->call;
    emit(peer, PEER_OP_KEEP, index);
    op->state = OP_KEPT;
    op->returned = true;
    op->blocking = false;
    op->deadline_ns = 0;
    op->call = 0;
    peer->returned_count++;
    peer_complete(peer, call, pcclSuccess, op->world, "");
}

/* Of all results since ops under this tag are numbered, as DONE is not said of each. */
static uint32_t check_of(struct peer *peer, const struct peer_op *op, uint32_t check) {
    struct numbered_tag *numbered = op->number != 0 ? peer_number_find(peer, op->tag) : NULL;
    if (numbered == NULL) {
        return check;
    }
    numbered->check = (numbered->check << 5 | numbered->check >> 27) ^ check;
    return numbered->check;
}

void peer_op_whole(struct peer *peer, const struct peer_event *event) {
    CHECK(event->op < MAX_OP_SLOTS);
    struct peer_op *op = &peer->ops[event->op];
    if (op->state != OP_RUNNING) {
        return;
    }
    op->state = OP_WHOLE;
    op->check = check_of(peer, op, event->check);
    int before = peer_op_find(peer, op->tag);
    if (before != (int)event->op) { /* it is committed: all have called this one, which they do after it */
        peer_op_forget(peer, before);
    }
    bool returns = op->descriptor.early && !op->served && !op->accused && peer->returned_count < MAX_KEPT_OPS;
    if (!returns) {
        send_done(peer, op, false);
        return;
    }
    bool many = peer->returned_count >= MAX_KEPT_OPS / 2; /* there is to be room when it is needed */
    bool waited_for = op->number == 0 || peer->ballot_waits || peer->close_waits || many;
    if (many) {
        peer_op_say_done(peer);
    }
    if (waited_for) {
        send_done(peer, op, true);
    }
    return_early(peer, (int)event->op);
    if (!waited_for) { /* the next one will most likely say it all */
        op->done_due_ns = peer->now_ns + done_delay_ns;
        watch(peer, op);
    }
}

void peer_op_mismatch(struct peer *peer, const struct peer_event *event) {
    CHECK(event->op < MAX_OP_SLOTS);
    struct peer_op *op = &peer->ops[event->op];
    if (!peer_op_is_moving(op) || op->accused) {
        return;
    }
    op->accused = true;
    struct message message = {.type = MESSAGE_OP_MISMATCH};
    message.as.op_mismatch = (struct message_op_mismatch){.epoch = peer->epoch,
                                                          .tag = op->tag,
                                                          .mine = op->descriptor,
                                                          .theirs = event->descriptor,
                                                          .other = event->other};
    peer_send(peer, &message);
}

void peer_op_refused(struct peer *peer, const struct peer_event *event) {
    CHECK(event->op < MAX_OP_SLOTS);
    struct peer_op *op = &peer->ops[event->op];
    if (!peer_op_is_moving(op) || op->accused) {
        return;
    }
    if (op->served) { /* it can't fail for those who have returned it: who can't take it is none of them */
        peer_join_control_closed(peer, "this peer had no memory for a result that others have returned");
        return;
    }
    give_up(peer, op, event->status, event->reason);
}

static bool is_complete(const struct peer_op *op) {
    return op->state == OP_WHOLE || op->state == OP_KEPT;
}

/* The op that a commit is of; NO_OP: one that this peer knew to be committed. False if it makes no sense. */
static bool find_committed(const struct peer *peer, const struct message_op *commit, int *index) {
    *index = peer_op_find(peer, commit->tag);
    if (commit->epoch == 0 || commit->epoch != peer->epoch) {
        return false;
    }
    const struct numbered_tag *numbered = peer_number_find(peer, commit->tag);
    if (numbered == NULL) {
        return commit->number == 0 && *index != NO_OP && is_complete(&peer->ops[*index]);
    }
    if (commit->number == 0 || commit->number >= numbered->next || commit->numbered) {
        return false;
    }
    if (*index == NO_OP || peer->ops[*index].number > commit->number) {
        *index = NO_OP;
        return true;
    }
    return peer->ops[*index].number == commit->number && is_complete(&peer->ops[*index]);
}

void peer_op_commit(struct peer *peer, const struct message_op *commit) {
    int index;
    if (!find_committed(peer, commit, &index) || (commit->numbered && !peer_number_add(peer, commit->tag))) {
        if (peer->phase == PEER_MEMBER &&
            !peer->close_waits) { /* a close has given up what is not returned */
            peer_join_control_closed(peer, "it committed a collective that is not complete");
        }
        return;
    }
    if (index == NO_OP) {
        return;
    }
    emit(peer, PEER_OP_FINISH, index);
    peer->commits_seen += commit->number == 0; /* of numbered ones, not all are told */
    struct peer_op op = peer->ops[index];
    release(peer, index);
    if (!op.returned) {
        peer_complete(peer, op.call, pcclSuccess, op.world, "");
    }
    int next = peer_op_find(peer, op.tag);
    if (next != NO_OP && !peer_op_is_moving(&peer->ops[next])) { /* it has waited behind this one */
        peer_op_start(peer, next);
        peer_wait_check_conflict(peer);
    }
}

void peer_op_fail_all(struct peer *peer, uint16_t status, const char *text) {
    while (peer->first_op != NO_OP) {
        peer_op_fail(peer, peer->first_op, status, text);
    }
}

void peer_op_fail_called(struct peer *peer, uint16_t status, const char *text) {
    int next;
    for (int index = peer->first_op; index != NO_OP; index = next) {
        next = peer->ops[index].next;
        if (!peer->ops[index].returned) {
            peer_op_fail(peer, index, status, text);
        }
    }
}

static void op_tick(struct peer *peer, int index) {
    struct peer_op *op = &peer->ops[index];
    say_done(peer, op);
    if (op->deadline_ns != 0 && peer_op_is_moving(op) && peer->now_ns >= op->deadline_ns) {
        op->deadline_ns = 0;
        if (!op->accused) {
            give_up(peer, op, pcclTimeout, "it took longer than the timeout set for this call");
        }
    }
    if (peer_op_is_moving(op) && peer->now_ns >= op->next_report_ns) {
        peer_wait_report(peer, op);
        op->next_report_ns = peer_wait_next_report(peer, op);
    }
}

void peer_op_tick(struct peer *peer) {
    if (peer->now_ns < peer->op_check_ns) {
        return;
    }
    peer->op_check_ns = UINT64_MAX;
    int next;
    for (int index = peer->first_op; index != NO_OP; index = next) {
        next = peer->ops[index].next;
        if (peer->now_ns >= op_deadline(&peer->ops[index])) {
            op_tick(peer, index);
        }
        if (peer->ops[index].state != OP_FREE) {
            watch(peer, &peer->ops[index]);
        }
    }
}

uint64_t peer_op_deadline(const struct peer *peer) {
    return peer->op_check_ns;
}

static enum peer_match find_numbered(const struct peer *peer, uint64_t tag, uint64_t number, uint32_t *op) {
    const struct numbered_tag *numbered = peer_number_find(peer, tag);
    if (numbered == NULL || number >= numbered->next) {
        return PEER_MATCH_LATER; /* the commit that starts the numbers, or its call, is yet to come */
    }
    int index = peer_op_find_newest(peer, tag);
    if (index == NO_OP || peer->ops[index].number != number || !peer_op_is_moving(&peer->ops[index])) {
        return PEER_MATCH_STALE;
    }
    *op = (uint32_t)index;
    return PEER_MATCH_OP;
}

enum peer_match peer_find_op(const struct peer *peer, uint64_t epoch, uint64_t tag, uint64_t commits_seen,
                             uint32_t *op) {
    if (epoch < (peer->epoch != 0 ? peer->epoch : peer->plan.epoch)) {
        return PEER_MATCH_STALE;
    }
    if (epoch != peer->epoch) {
        return PEER_MATCH_LATER;
    }
    if ((commits_seen & NUMBERED_BIT) != 0) {
        return find_numbered(peer, tag, commits_seen & ~NUMBERED_BIT, op);
    }
    if (commits_seen > peer->commits_seen) {
        return PEER_MATCH_LATER;
    }
    int index = peer_op_find(peer, tag);
    if (index == NO_OP || peer->ops[index].number != 0 || !peer_op_is_moving(&peer->ops[index])) {
        return PEER_MATCH_LATER;
    }
    *op = (uint32_t)index;
    return PEER_MATCH_OP;
}
