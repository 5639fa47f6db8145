/* What must hold; the numbers are those of README.md. Everything is checked at the action that could
 * break it, so that the trace ends at the culprit. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tests/sim/sim.h"

int64_t reduce_one(uint8_t reduce_op, int64_t a, int64_t b) {
    switch (reduce_op) {
    case pcclProd:
        return (int64_t)((uint64_t)a * (uint64_t)b);
    case pcclMax:
        return a > b ? a : b;
    case pcclMin:
        return a < b ? a : b;
    default:
        return (int64_t)((uint64_t)a + (uint64_t)b);
    }
}

/* ---- 1: one epoch, one membership ---- */

struct epoch_record *check_epoch(struct world *world, int run, uint64_t epoch) {
    for (struct epoch_record *record = world->epochs; record != NULL; record = record->next) {
        if (record->run == run && record->epoch == epoch) {
            return record;
        }
    }
    return NULL;
}

static void check_link_plan(struct world *world, struct epoch_record *record, uint16_t rank,
                            const struct link_plan *plan) {
    for (int i = 0; i < record->link_count; i++) {
        struct plan_seen *seen = &record->links[i];
        if (!id_equal(&seen->key, &plan->key)) {
            continue;
        }
        bool same = (seen->a == rank && seen->b == plan->rank) || (seen->b == rank && seen->a == plan->rank);
        if (!same || seen->streams != plan->streams || (plan->opener && seen->opener_seen) ||
            (!plan->opener && seen->acceptor_seen)) {
            violate(world, 1, "epoch %" PRIu64 ": ranks %u and %u are told different things of their link",
                    record->epoch, (unsigned)rank, (unsigned)plan->rank);
        }
        seen->opener_seen |= plan->opener;
        seen->acceptor_seen |= !plan->opener;
        return;
    }
    if (record->link_count == 8 * MAX_WORLD) {
        violate(world, 7, "epoch %" PRIu64 " has too many links", record->epoch);
    }
    record->links[record->link_count++] = (struct plan_seen){.key = plan->key,
                                                             .a = rank,
                                                             .b = plan->rank,
                                                             .opener_seen = plan->opener,
                                                             .acceptor_seen = !plan->opener,
                                                             .streams = plan->streams};
}

bool is_in(const struct process *process) {
    return process->alive && !process->is_master && process->control != NULL &&
           process->control->ends[1].open;
}

/* The round of those who wait in update_topology: what a newcomer would get by shared state. */
static uint64_t round_of_voters(const struct world *world, const struct process *one) {
    uint64_t highest = 0;
    bool waiting = false;
    for (int i = 0; i < world->process_count; i++) {
        const struct process *process = world->processes[i];
        if (!is_in(process) || process->master_run != one->master_run) {
            continue;
        }
        for (int c = 0; process->member && c < MAX_OPEN_CALLS; c++) {
            const struct call *call = process->calls[c];
            if (call != NULL && call->kind == CALL_VOTE && call->vote == VOTE_UPDATE_TOPOLOGY &&
                (!waiting || call->round > highest)) {
                highest = call->round;
                waiting = true;
            }
        }
    }
    for (int i = 0; i < world->process_count && !waiting; i++) {
        const struct process *process = world->processes[i];
        highest = process->user.round >= highest ? process->user.round + 1 : highest;
    }
    return highest;
}

/* A newcomer is let in, with a link to `other`: somebody has seen that it can be made. */
static void check_was_reached(struct world *world, const struct conn *conn, const struct id *other) {
    const struct process *newcomer = conn->ends[0].process;
    for (int i = 0; i < world->process_count; i++) {
        const struct process *peer = world->processes[i];
        if (!peer->has_id || !id_equal(&peer->id, other)) {
            continue;
        }
        int a = newcomer->host, b = peer->host;
        if (world->blocked[a][b] > 0 && world->blocked[b][a] > 0 &&
            world->blocked_since[a][b] < conn->welcomed_at &&
            world->blocked_since[b][a] < conn->welcomed_at) {
            violate(world, 6, "%s is let in beside %s, which it has never been able to reach", newcomer->name,
                    peer->name);
        }
    }
}

void check_propose(struct world *world, const struct conn *conn, const struct message_propose *propose) {
    struct process *to = conn->ends[0].process;
    int run = conn->ends[1].process->run;
    struct epoch_record *record = check_epoch(world, run, propose->epoch);
    if (propose->world == 0 || propose->world > MAX_WORLD || propose->rank >= propose->world) {
        violate(world, 1, "epoch %" PRIu64 " gives %s rank %u of %u", propose->epoch, to->name,
                (unsigned)propose->rank, (unsigned)propose->world);
    }
    if (!id_equal(&propose->members[propose->rank].id, &conn->id)) {
        violate(world, 1, "epoch %" PRIu64 " gives %s the rank of another", propose->epoch, to->name);
    }
    if (record == NULL) {
        record = arena_take(sizeof *record);
        record->run = run;
        record->epoch = propose->epoch;
        record->group = to->group;
        record->world = propose->world;
        for (uint16_t i = 0; i < propose->world; i++) {
            record->members[i] = propose->members[i].id;
        }
        record->next = world->epochs;
        world->epochs = record;
    }
    bool same = record->world == propose->world && record->group == to->group;
    for (uint16_t i = 0; same && i < propose->world; i++) {
        same = id_equal(&record->members[i], &propose->members[i].id);
    }
    if (!same) {
        violate(world, 1, "epoch %" PRIu64 " is proposed with other members to %s", propose->epoch, to->name);
    }
    for (uint16_t i = 0; i < propose->link_count; i++) {
        check_link_plan(world, record, propose->rank, &propose->links[i]);
    }
    for (uint16_t i = 0; i < propose->link_count && !to->member; i++) {
        check_was_reached(world, conn, &propose->members[propose->links[i].rank].id);
    }
    if (!to->member && id_equal(&conn->id, &to->id)) {
        to->user.admitted_round = round_of_voters(world, to);
        to->member = true;
    }
}

/* All who vote wait in the same round; users that lost step catch up here. */
void check_vote_result(struct world *world, const struct conn *conn,
                       const struct message_vote_result *result) {
    struct process *to = conn->ends[0].process;
    if (to->control != conn || result->kind != VOTE_UPDATE_TOPOLOGY || result->status != pcclSuccess ||
        world->scripted) {
        return;
    }
    if (world->wrong_users) {
        to->user.admitted_round = round_of_voters(world, to);
        return;
    }
    if (world->vote_event != world->events) {
        world->vote_event = world->events;
        world->vote_round = to->user.round;
    } else if (world->vote_round != to->user.round) {
        violate(world, 2, "update_topology joins round %" PRIu64 " of %s with round %" PRIu64, to->user.round,
                to->name, world->vote_round);
    }
}

void check_peer_epoch(struct process *process, const struct peer_action *action) {
    struct world *world = process->world;
    struct epoch_record *record = check_epoch(world, process->master_run, action->epoch);
    if (record == NULL || record->world != action->world) {
        violate(world, 1, "%s: epoch %" PRIu64 " was not proposed so", process->name, action->epoch);
    }
    for (uint16_t rank = 0; rank < action->world; rank++) {
        const struct member *member = peer_get_member(process->peer, rank);
        if (member == NULL || !id_equal(&member->id, &record->members[rank])) {
            violate(world, 1, "%s: rank %u of epoch %" PRIu64 " is another one here", process->name,
                    (unsigned)rank, action->epoch);
        }
    }
    if (!id_equal(&record->members[action->rank], &process->id)) {
        violate(world, 1, "%s: its own rank in epoch %" PRIu64 " is wrong", process->name, action->epoch);
    }
    if (process->epoch != NULL && process->epoch->run == record->run &&
        process->epoch->epoch >= action->epoch) {
        violate(world, 1, "%s: epoch %" PRIu64 " after %" PRIu64, process->name, action->epoch,
                process->epoch->epoch);
    }
    for (int i = 0; i < SIM_OPS; i++) {
        if (process->ops[i].active) {
            violate(world, 2, "%s: tag %" PRIu64 " still runs when epoch %" PRIu64 " begins", process->name,
                    process->ops[i].call->tag, action->epoch);
        }
    }
    record->committed = true;
    process->epoch = record;
    process->commits = 0;
    process->tags = NULL;
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        process->edges[edge] = link_find(process, &action->edges[edge]);
    }
    if (action->world > 1 && (process->edges[EDGE_PREVIOUS] == NULL || process->edges[EDGE_NEXT] == NULL)) {
        trace(world, "%s: epoch %" PRIu64 " begins without a link", process->name, action->epoch);
    }
    world->last_progress = world->now;
}

/* ---- 2 and 3: ops ---- */

static struct tag_count *count_of(struct process *process, uint64_t tag) {
    for (struct tag_count *count = process->tags; count != NULL; count = count->next) {
        if (count->tag == tag) {
            return count;
        }
    }
    struct tag_count *count = arena_take(sizeof *count);
    *count = (struct tag_count){.next = process->tags, .tag = tag};
    process->tags = count;
    return count;
}

static struct op_record *op_record_of(struct epoch_record *epoch, uint64_t tag, uint64_t sequence) {
    for (struct op_record *record = epoch->ops; record != NULL; record = record->next) {
        if (record->tag == tag && record->sequence == sequence) {
            return record;
        }
    }
    struct op_record *record = arena_take(sizeof *record);
    *record = (struct op_record){.next = epoch->ops, .epoch = epoch, .tag = tag, .sequence = sequence};
    epoch->ops = record;
    return record;
}

static bool is_member(const struct epoch_record *epoch, const struct id *id) {
    for (uint16_t rank = 0; rank < epoch->world; rank++) {
        if (id_equal(&epoch->members[rank], id)) {
            return true;
        }
    }
    return false;
}

/* A member that lived on had this op stopped. Those who have returned it must not live on with it. */
static void note_abort(struct process *process, struct call *call) {
    struct op_record *record = call->record;
    if (record == NULL || !record->stopped[call->record_rank]) {
        return;
    }
    record->stopped[call->record_rank] = false;
    record->aborted = process->epoch;
    if (record->finished > 0) {
        violate(process->world, 2,
                "tag %" PRIu64 " of epoch %" PRIu64 " is committed at others and aborted at %s", record->tag,
                record->epoch->epoch, process->name);
    }
    for (uint16_t rank = 0; rank < record->epoch->world; rank++) {
        if (record->returned[rank] && is_member(process->epoch, &record->epoch->members[rank])) {
            violate(process->world, 2,
                    "tag %" PRIu64 " of epoch %" PRIu64 " is returned at rank %u and aborted at %s, in "
                    "epoch %" PRIu64,
                    record->tag, record->epoch->epoch, (unsigned)rank, process->name, process->epoch->epoch);
        }
    }
}

void check_start(struct process *process, struct call *call, const struct peer_action *action) {
    struct world *world = process->world;
    struct epoch_record *epoch = process->epoch;
    bool kept = action->served && action->call == 0;
    if (call->kind != CALL_OP || (!kept && (call->started || call->finished)) || call->tag != action->tag) {
        violate(world, 2, "%s: OP_START of a call that has no op to start", process->name);
    }
    if (epoch == NULL || action->epoch != epoch->epoch || action->world != epoch->world ||
        !id_equal(&epoch->members[action->rank], &process->id) || action->world < 2) {
        violate(world, 2, "%s: OP_START does not fit the epoch", process->name);
    }
    if ((action->commits_seen & NUMBERED_BIT) == 0 && action->commits_seen > process->commits) {
        violate(world, 2, "%s: OP_START counts %" PRIu64 " commits, %" PRIu64 " were", process->name,
                action->commits_seen, process->commits);
    }
    if (action->served) { /* its result is of the epoch in which it was returned */
        if (call->record == NULL || action->descriptor.kind != OP_BROADCAST ||
            action->descriptor.count != call_result_count(call)) {
            violate(world, 2, "%s: tag %" PRIu64 " is served and was never started", process->name,
                    call->tag);
        }
        call->started = call->started || !kept;
        call->stopped = false;
        return;
    }
    if (call->record != NULL) {
        note_abort(process, call); /* it starts over: for this epoch it was aborted here */
    }
    call->started = true;
    call->stopped = false;
    struct op_record *record = op_record_of(epoch, call->tag, count_of(process, call->tag)->starts++);
    call->record = record;
    call->record_rank = action->rank;
    record->calls[action->rank] = call;
    record->stopped[action->rank] = false;
}

static void check_same_instance(struct process *process, const struct op_record *record) {
    for (uint16_t rank = 0; rank < record->epoch->world; rank++) {
        if (record->calls[rank] == NULL) {
            violate(process->world, 2,
                    "tag %" PRIu64 " of epoch %" PRIu64 " is committed, but rank %u never started it",
                    record->tag, record->epoch->epoch, (unsigned)rank);
        }
    }
    const struct call *mine = record->calls[record->epoch->world - 1];
    for (uint16_t rank = 0; rank < record->epoch->world; rank++) {
        const struct call *call = record->calls[rank];
        bool same = call->round == mine->round && call->slot == mine->slot;
        if (!same && !process->world->wrong_users && !process->world->scripted) {
            violate(process->world, 2,
                    "tag %" PRIu64 " of epoch %" PRIu64 " joins different calls: round %" PRIu64 " slot %d"
                    " and round %" PRIu64 " slot %d",
                    record->tag, record->epoch->epoch, call->round, call->slot, mine->round, mine->slot);
        }
    }
}

static int64_t reduced(const struct op_record *record, uint16_t world, const struct call *call, uint64_t at) {
    int64_t expected = record->calls[0]->input[at];
    for (uint16_t rank = 1; rank < world; rank++) {
        expected = reduce_one(call->descriptor.reduce_op, expected, record->calls[rank]->input[at]);
    }
    return expected;
}

/* Element `i` of the result, from the inputs of those who had the op. */
static int64_t expected_element(const struct op_record *record, uint16_t world, const struct call *call,
                                uint64_t i) {
    uint64_t count = call->descriptor.count;
    switch (call->descriptor.kind) {
    case OP_BROADCAST:
        return record->calls[call->descriptor.root_or_world]->input[i];
    case OP_ALL_GATHER:
        return record->calls[i / count]->input[i % count];
    case OP_REDUCE_SCATTER:
        return reduced(record, world, call, call->record_rank * count + i);
    default:
        return reduced(record, world, call, i);
    }
}

void check_result(struct process *process, struct call *call, const struct sim_op *op) {
    struct world *world = process->world;
    struct op_record *record = call->record;
    bool of_before = op->served || op->kept; /* the epoch in which it was returned may be over */
    if (process->epoch == NULL || (!of_before && record->epoch != process->epoch) ||
        (op->active && op->epoch != process->epoch->epoch)) {
        violate(world, 2, "%s: tag %" PRIu64 " ends outside its epoch", process->name, call->tag);
    }
    check_same_instance(process, record);
    const struct id *self = &process->id;
    if (record->aborted != NULL && is_member(record->aborted, self)) {
        violate(world, 2, "tag %" PRIu64 " of epoch %" PRIu64 " is aborted at others and committed at %s",
                record->tag, record->epoch->epoch, process->name);
    }
    for (uint64_t i = 0; i < call_result_count(call); i++) {
        if (call->result[i] != expected_element(record, record->epoch->world, call, i)) {
            violate(world, 2, "%s: element %" PRIu64 " of tag %" PRIu64 " in epoch %" PRIu64 " is wrong",
                    process->name, i, call->tag, record->epoch->epoch);
        }
    }
}

void check_return(struct process *process, struct call *call, const struct sim_op *op) {
    check_result(process, call, op);
    call->record->returned[call->record_rank] = true;
    call->record->has_it[call->record_rank] = true;
    process->world->returned++;
}

/* A member lets go of the result as it knows from the next op that all have it. */
void check_forget(struct process *process, const struct call *call) {
    const struct op_record *record = call->record;
    struct peer_status status;
    peer_get_status(process->peer, &status); /* who is out forgets all */
    process->world->implied += status.connected;
    for (uint16_t rank = 0; status.connected && rank < record->epoch->world; rank++) {
        if (!record->has_it[rank] && is_member(process->epoch, &record->epoch->members[rank])) {
            violate(process->world, 2,
                    "%s forgets the result of tag %" PRIu64 " of epoch %" PRIu64
                    ", which rank %u has not got",
                    process->name, record->tag, record->epoch->epoch, (unsigned)rank);
        }
    }
}

void check_finish(struct process *process, struct call *call, const struct sim_op *op) {
    check_result(process, call, op);
    call->record->finished++;
    call->record->has_it[call->record_rank] = true;
    process->commits++;
    process->world->committed++;
    process->world->served += op->served && !op->kept;
}

/* Results that were returned early are waited for, but not longer than the timeout, or until the second
 * close, or an epoch in which others want to hand on an op that the close has ended here. */
void check_goodbye(struct process *process) {
    uint64_t waited = 0;
    int closes = 0;
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        if (process->calls[i] != NULL && process->calls[i]->kind == CALL_CLOSE) {
            uint64_t since = process->world->now - process->calls[i]->opened_at;
            waited = since > waited ? since : waited;
            closes++;
        }
    }
    for (int i = 0; i < SIM_OPS; i++) {
        if (process->ops[i].kept && closes < 2 && !process->gave_up && waited < process->timeout_ns / 2) {
            violate(process->world, 2, "%s leaves with the result of tag %" PRIu64 ", which others may need",
                    process->name, process->ops[i].call->tag);
        }
    }
}

static void check_input(struct process *process, struct call *call) {
    struct call twin = *call;
    user_fill(&twin);
    if (memcmp(twin.input, call->input, sizeof twin.input) != 0) {
        violate(process->world, 3, "%s: the input of tag %" PRIu64 " has changed", process->name, call->tag);
    }
}

/* The peer has left the op's fate to the others: it was put out, has left, or its master is gone. */
static bool is_out_of_it(uint16_t status) {
    return status == pcclMasterConnectionLost || status == pcclEvicted || status == pcclInvalidUsage ||
           status == pcclRefused || status == pcclMasterConnectionFailed;
}

static void check_same_outcome(struct process *process, struct call *call) {
    struct world *world = process->world;
    if (!is_in(process) || world->wrong_users || world->scripted || is_out_of_it(call->status) ||
        (call->kind != CALL_OP && call->kind != CALL_VOTE) || call->status == pcclTooFewPeers) {
        return;
    }
    int slot = call->kind == CALL_OP ? call->slot : 100 + 2 * call->vote + call->slot;
    bool of_group = call->kind == CALL_OP || call->vote == VOTE_SYNC_STATE;
    uint32_t group = of_group ? process->group : UINT32_MAX;
    size_t bucket = (size_t)(call->round * 31 + (uint64_t)slot * 7 + group) % 256;
    for (struct outcome *outcome = world->outcomes[bucket]; outcome != NULL; outcome = outcome->next) {
        if (outcome->run != process->master_run || outcome->group != group || outcome->round != call->round ||
            outcome->slot != slot || outcome->attempt != call->attempt) {
            continue;
        }
        const struct process *teller = world->processes[outcome->process];
        if (!is_in(teller) || !teller->connected || !id_equal(&teller->id, &outcome->teller)) {
            outcome->status = call->status; /* it did not survive: what it was told binds nobody */
            outcome->value = call->value;
            outcome->process = process->index;
            outcome->teller = process->id;
        }
        if (outcome->status != call->status || (call->kind == CALL_VOTE && outcome->value != call->value)) {
            violate(world, 2,
                    "round %" PRIu64 ", %s %d, attempt %d: %s (%" PRIu64 ") at %s, %s (%" PRIu64 ") at %s",
                    call->round, call->kind == CALL_OP ? "op" : "vote", call->slot, call->attempt,
                    status_name(outcome->status), outcome->value, world->processes[outcome->process]->name,
                    status_name(call->status), call->value, process->name);
        }
        return;
    }
    struct outcome *outcome = arena_take(sizeof *outcome);
    *outcome = (struct outcome){.next = world->outcomes[bucket],
                                .run = process->master_run,
                                .group = group,
                                .round = call->round,
                                .slot = slot,
                                .attempt = call->attempt,
                                .status = call->status,
                                .value = call->value,
                                .process = process->index,
                                .teller = process->id};
    world->outcomes[bucket] = outcome;
}

/* All who held the newest state may have left in good order, before others had it. */
static bool is_state_lost(const struct call *call) {
    return call->vote == VOTE_SYNC_STATE &&
           (call->status == pcclNoSharedStateAvailable || call->status == pcclInvalidUsage);
}

static bool allowed_without_faults(const struct process *process, const struct call *call) {
    return call->status == pcclSuccess || process->user.closing || is_state_lost(call) ||
           (call->kind == CALL_OP && call_names_ranks(call) && call->status == pcclRankConnectionLost) ||
           ((call->kind == CALL_OP || call->vote == VOTE_SYNC_STATE) && call->status == pcclTooFewPeers) ||
           process->world->phase >= PHASE_CLOSING;
}

void check_call_over(struct process *process, struct call *call) {
    struct world *world = process->world;
    if (call->kind == CALL_OP) {
        if ((call->status == pcclSuccess) != call->finished) {
            violate(world, 2, "%s: tag %" PRIu64 " ends with %s, OP_FINISH %s", process->name, call->tag,
                    status_name(call->status), call->finished ? "came" : "did not come");
        }
        if (call->started && !call->finished) {
            violate(world, 3, "%s: tag %" PRIu64 " fails without OP_STOP", process->name, call->tag);
        }
        check_input(process, call);
        process->gave_up |= call->descriptor.early && call->stopped && call->status == pcclInvalidUsage;
        if (call->stopped && !is_out_of_it(call->status)) {
            note_abort(process, call);
        }
        world->failed += call->status != pcclSuccess;
    } else if (call->kind == CALL_CLOSE && call->status == pcclSuccess) {
        for (int i = 0; i < MAX_OPEN_CALLS; i++) {
            if (process->calls[i] != NULL && process->calls[i] != call) {
                violate(world, 4, "%s: close ends while another call is open", process->name);
            }
        }
    }
    check_same_outcome(process, call);
    if (world->faultless && !world->scripted && !allowed_without_faults(process, call)) {
        violate(world, 6, "%s: a call ends with %s though nothing is wrong", process->name,
                status_name(call->status));
    }
}
