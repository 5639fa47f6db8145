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
    if (record->link_count == 4 * MAX_WORLD) {
        violate(world, 7, "epoch %" PRIu64 " has too many links", record->epoch);
    }
    record->links[record->link_count++] = (struct plan_seen){.key = plan->key,
                                                             .a = rank,
                                                             .b = plan->rank,
                                                             .opener_seen = plan->opener,
                                                             .acceptor_seen = !plan->opener,
                                                             .streams = plan->streams};
}

/* As the master sees it; the process itself may not know yet that it is out. */
static bool is_in(const struct process *process) {
    return process->alive && !process->is_master && process->control != NULL && process->control->ends[1].open;
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
    if (!to->member && id_equal(&conn->id, &to->id)) {
        to->user.admitted_round = round_of_voters(world, to);
        to->member = true;
    }
}

/* All who vote wait in the same round; users that lost step catch up here. */
void check_vote_result(struct world *world, const struct conn *conn,
                       const struct message_vote_result *result) {
    struct process *to = conn->ends[0].process;
    if (to->control != conn || result->kind != VOTE_UPDATE_TOPOLOGY || result->status != pcclSuccess || world->scripted) {
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
        violate(world, 2, "update_topology joins round %" PRIu64 " of %s with round %" PRIu64,
                to->user.round, to->name, world->vote_round);
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
    process->previous = link_find(process, &action->previous);
    process->next = link_find(process, &action->next);
    if (action->world > 1 && (process->previous == NULL || process->next == NULL)) {
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

/* A member that lived on had this op stopped. */
static void note_abort(struct process *process, struct call *call) {
    struct op_record *record = call->record;
    if (record == NULL || !record->stopped[call->record_rank]) {
        return;
    }
    record->stopped[call->record_rank] = false;
    record->aborted = true;
    if (record->finished > 0) {
        violate(process->world, 2,
                "tag %" PRIu64 " of epoch %" PRIu64 " is committed at others and aborted at %s", record->tag,
                record->epoch->epoch, process->name);
    }
}

void check_start(struct process *process, struct call *call, const struct peer_action *action) {
    struct world *world = process->world;
    struct epoch_record *epoch = process->epoch;
    if (call->kind != CALL_OP || call->started || call->finished || call->tag != action->tag) {
        violate(world, 2, "%s: OP_START of a call that has no op to start", process->name);
    }
    if (epoch == NULL || action->epoch != epoch->epoch || action->world != epoch->world ||
        !id_equal(&epoch->members[action->rank], &process->id) || action->world < 2) {
        violate(world, 2, "%s: OP_START does not fit the epoch", process->name);
    }
    if (action->commits_seen > process->commits) {
        violate(world, 2, "%s: OP_START counts %" PRIu64 " commits, %" PRIu64 " were", process->name,
                action->commits_seen, process->commits);
    }
    if (call->record != NULL) {
        note_abort(process, call); /* it starts over: for this epoch it was aborted here */
    }
    call->started = true;
    call->stopped = false;
    struct op_record *record = op_record_of(epoch, call->tag, count_of(process, call->tag)->finishes);
    call->record = record;
    call->record_rank = action->rank;
    record->calls[action->rank] = call;
    record->stopped[action->rank] = false;
}

static void check_same_instance(struct process *process, const struct op_record *record) {
    const struct call *mine = record->calls[process->epoch->world - 1];
    for (uint16_t rank = 0; rank < process->epoch->world; rank++) {
        const struct call *call = record->calls[rank];
        if (call == NULL) {
            violate(process->world, 2,
                    "tag %" PRIu64 " of epoch %" PRIu64 " is committed, but rank %u never started it",
                    record->tag, record->epoch->epoch, (unsigned)rank);
        }
        bool same = mine != NULL && call->round == mine->round && call->slot == mine->slot;
        if (!same && !process->world->wrong_users && !process->world->scripted) {
            violate(process->world, 2,
                    "tag %" PRIu64 " of epoch %" PRIu64 " joins different calls: round %" PRIu64 " slot %d"
                    " and round %" PRIu64 " slot %d",
                    record->tag, record->epoch->epoch, call->round, call->slot, mine->round, mine->slot);
        }
    }
}

void check_finish(struct process *process, struct call *call, const struct sim_op *op) {
    struct world *world = process->world;
    struct op_record *record = call->record;
    if (process->epoch == NULL || record->epoch != process->epoch || op->epoch != process->epoch->epoch) {
        violate(world, 2, "%s: tag %" PRIu64 " is committed outside its epoch", process->name, call->tag);
    }
    check_same_instance(process, record);
    if (record->aborted) {
        violate(world, 2, "tag %" PRIu64 " of epoch %" PRIu64 " is aborted at others and committed at %s",
                record->tag, record->epoch->epoch, process->name);
    }
    for (uint64_t i = 0; i < call->descriptor.count; i++) {
        int64_t expected = record->calls[0]->input[i];
        for (uint16_t rank = 1; rank < process->epoch->world; rank++) {
            expected = reduce_one(call->descriptor.reduce_op, expected, record->calls[rank]->input[i]);
        }
        if (call->result[i] != expected) {
            violate(world, 2, "%s: element %" PRIu64 " of tag %" PRIu64 " in epoch %" PRIu64 " is wrong",
                    process->name, i, call->tag, record->epoch->epoch);
        }
    }
    record->finished++;
    process->commits++;
    count_of(process, call->tag)->finishes++;
    world->committed++;
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
    uint32_t group = call->kind == CALL_OP ? process->group : UINT32_MAX;
    size_t bucket = (size_t)(call->round * 31 + (uint64_t)slot * 7 + group) % 256;
    for (struct outcome *outcome = world->outcomes[bucket]; outcome != NULL; outcome = outcome->next) {
        if (outcome->run != process->master_run || outcome->group != group ||
            outcome->round != call->round || outcome->slot != slot || outcome->attempt != call->attempt) {
            continue;
        }
        const struct process *teller = world->processes[outcome->process];
        if (!is_in(teller) || !id_equal(&teller->id, &outcome->teller)) {
            outcome->status = call->status; /* it did not survive: what it was told binds nobody */
            outcome->value = call->value;
            outcome->process = process->index;
            outcome->teller = process->id;
        }
        if (outcome->status != call->status || (call->kind == CALL_VOTE && outcome->value != call->value)) {
            violate(world, 2, "round %" PRIu64 ", %s %d, attempt %d: %s (%" PRIu64 ") at %s, %s (%" PRIu64 ") at %s",
                    call->round, call->kind == CALL_OP ? "op" : "vote", call->slot, call->attempt,
                    status_name(outcome->status), outcome->value,
                    world->processes[outcome->process]->name, status_name(call->status), call->value,
                    process->name);
        }
        return;
    }
    struct outcome *outcome = arena_take(sizeof *outcome);
    *outcome = (struct outcome){.next = world->outcomes[bucket], .run = process->master_run, .group = group,
                                .round = call->round, .slot = slot, .attempt = call->attempt,
                                .status = call->status, .value = call->value, .process = process->index,
                                .teller = process->id};
    world->outcomes[bucket] = outcome;
}

static bool allowed_without_faults(const struct process *process, const struct call *call) {
    return call->status == pcclSuccess || process->user.closing || (call->kind == CALL_OP && call->status == pcclTooFewPeers) ||
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

/* ---- 6: who may be put out ---- */

static bool ring_from(const struct world *world, const int *hosts, int count, int at, unsigned used,
                      int *budget) {
    if (--*budget < 0) {
        return false;
    }
    if (used == (1u << count) - 1) {
        return world->edge_suspect_until[hosts[at]][hosts[0]] <= world->now;
    }
    for (int i = 1; i < count; i++) {
        if ((used >> i & 1) == 0 && world->edge_suspect_until[hosts[at]][hosts[i]] <= world->now &&
            ring_from(world, hosts, count, i, used | 1u << i, budget)) {
            return true;
        }
    }
    return false;
}

static const struct process *process_of(const struct world *world, const struct id *id) {
    for (int i = 0; i < world->process_count; i++) {
        const struct process *process = world->processes[i];
        if (process->has_id && id_equal(&process->id, id)) {
            return is_in(process) && !process->user.closing ? process : NULL;
        }
    }
    return NULL;
}

/* Whether a ring through those in the plan that stood avoids all edges that had a fault lately. */
static bool ring_exists(const struct world *world, const struct process *around) {
    int hosts[MAX_HOSTS], count = 0;
    const struct epoch_record *plan = world->epochs; /* the newest first */
    while (plan != NULL && (plan->run != around->master_run || plan->group != around->group)) {
        plan = plan->next;
    }
    for (uint16_t rank = 0; plan != NULL && rank < plan->world; rank++) {
        const struct process *process = process_of(world, &plan->members[rank]);
        if (process != NULL) {
            hosts[count++] = process->host;
        }
    }
    int budget = 20000;
    return count > 3 && ring_from(world, hosts, count, 0, 1, &budget);
}

void check_put_out(struct world *world, const struct conn *conn, const char *how, const char *why) {
    const struct process *process = conn->ends[0].process;
    bool straggler = world->straggler_ns != 0 && strstr(why, "wait for it") != NULL;
    world->evictions++;
    if (world->scripted || !process->alive || process->frozen || process->control != conn || straggler ||
        world->suspect_until[process->host] > world->now || world->master_suspect_until > world->now) {
        return;
    }
    bool edge = false;
    for (int host = 1; host <= world->hosts; host++) {
        edge |= world->edge_suspect_until[process->host][host] > world->now;
    }
    if (!edge || ring_exists(world, process)) {
        violate(world, 6, "%s is healthy and can be reached, but it was %s: %s", process->name, how, why);
    }
}

/* ---- 4: waiting ---- */

/* The call that has waited longest, or NULL. */
static const struct call *oldest_call(const struct process *process) {
    const struct call *oldest = NULL;
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        const struct call *call = process->calls[i];
        if (call != NULL && (oldest == NULL || call->number < oldest->number)) {
            oldest = call;
        }
    }
    return oldest;
}

/* Whoever waits for a master that does not know it, or not any more, must find out. */
void check_waits(struct world *world) {
    for (int i = 0; i < world->process_count; i++) {
        struct process *process = world->processes[i];
        const struct call *call = oldest_call(process);
        bool lost = !process->is_master && process->alive && !process->frozen && call != NULL &&
                    (!is_in(process) || !world->master->alive || world->master->frozen);
        if (!lost) {
            process->out_call = 0;
        } else if (process->out_call != call->number) {
            process->out_call = call->number;
            process->out_since = world->now;
        } else if (world->now - process->out_since > 3 * process->timeout_ns + world->timeout_ns) {
            violate(world, 4, "%s waits in a call for a master that does not hear it, for %.1f s",
                    process->name, (double)(world->now - process->out_since) / 1e9);
        }
    }
}

/* ---- 4 and 7: at rest ---- */

static void check_census(struct world *world, const struct process *process,
                         const struct message_census *census) {
    uint32_t sizes[8] = {0}, peers = 0, groups = 0, largest = 0;
    for (int i = 0; i < world->process_count; i++) {
        const struct process *other = world->processes[i];
        if (is_in(other) && other->user.stage != STAGE_DONE) {
            uint32_t size = ++sizes[other->group];
            peers++;
            groups += size == 1;
            largest = size > largest ? size : largest;
        }
    }
    if (census->peers != peers || census->groups != groups || census->largest_group != largest) {
        violate(world, 1, "%s believes in %u peers, %u groups, the largest of %u; there are %u, %u, %u",
                process->name, (unsigned)census->peers, (unsigned)census->groups,
                (unsigned)census->largest_group, (unsigned)peers, (unsigned)groups, (unsigned)largest);
    }
}

static void check_process_quiet(struct world *world, struct process *process, uint64_t *epochs) {
    char text[TEXT_BYTES];
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        if (process->calls[i] != NULL) {
            violate(world, 4, "%s: a call is still open at the end", process->name);
        }
    }
    for (int i = 0; i < SIM_OPS; i++) {
        if (process->ops[i].active) {
            violate(world, 7, "%s: op %d is still running at the end", process->name, i);
        }
    }
    if (process->held != NULL) {
        violate(world, 7, "%s: a frame still waits for its op at the end: type %u tag %" PRIu64, process->name,
                (unsigned)process->held->frame->frame.type, process->held->frame->frame.tag);
    }
    struct peer_status status;
    peer_get_status(process->peer, &status);
    if (process->user.stage == STAGE_DONE) {
        if (process->links != NULL) {
            violate(world, 7, "%s has left and keeps a link", process->name);
        }
        return;
    }
    if (!status.connected || process->epoch == NULL || status.epoch != process->epoch->epoch) {
        violate(world, 4, "%s is alive and not a member at the end", process->name);
    }
    if (epochs[process->group] != 0 && epochs[process->group] != status.epoch) {
        violate(world, 4, "group %u ends in two epochs: %" PRIu64 " and %" PRIu64, (unsigned)process->group,
                epochs[process->group], status.epoch);
    }
    epochs[process->group] = status.epoch;
    if (inspect_peer_leftovers(process->peer, text, sizeof text) != 0) {
        violate(world, 7, "%s keeps %s", process->name, text);
    }
    check_census(world, process, &status.census);
    int links = 0;
    for (const struct link_end *link = process->links; link != NULL; link = link->next) {
        links++;
        if (link->state != LINK_UP || link->eager_credit != world->eager_window_bytes) {
            violate(world, 7, "%s: a link is %s with %" PRIu64 " bytes of credit at the end", process->name,
                    link->state == LINK_UP ? "up" : "not up", link->eager_credit);
        }
    }
    int ring_links = status.world > 2 ? 2 : status.world == 2 ? 1 : 0;
    if (links < ring_links || links > MAX_LINKS) {
        violate(world, 7, "%s has %d links in a world of %u", process->name, links, (unsigned)status.world);
    }
}

/* All users rest, all are in. */
void check_quiet(struct world *world) {
    uint64_t epochs[8] = {0};
    uint32_t live = 0;
    char text[TEXT_BYTES];
    for (int i = 0; i < world->process_count; i++) {
        struct process *process = world->processes[i];
        if (process->alive && !process->is_master) {
            check_process_quiet(world, process, epochs);
            live += process->user.stage != STAGE_DONE;
        }
    }
    if (inspect_master_leftovers(world->master->master, text, sizeof text) != 0) {
        violate(world, 7, "the master keeps %s", text);
    }
    struct master_status status;
    master_get_status(world->master->master, &status);
    if (status.peers != live || status.pending != 0) {
        violate(world, 7, "the master has %u peers and %u pending, %u are alive", (unsigned)status.peers,
                (unsigned)status.pending, (unsigned)live);
    }
}

/* All have left. */
void check_empty(struct world *world) {
    char text[TEXT_BYTES];
    struct master_status status;
    master_get_status(world->master->master, &status);
    if (status.peers != 0 || status.pending != 0 || status.groups != 0) {
        violate(world, 7, "all have left, and the master has %u peers, %u pending, %u groups",
                (unsigned)status.peers, (unsigned)status.pending, (unsigned)status.groups);
    }
    if (inspect_master_leftovers(world->master->master, text, sizeof text) != 0) {
        violate(world, 7, "all have left, and the master keeps %s", text);
    }
    for (struct conn *conn = world->conns; conn != NULL; conn = conn->next) {
        for (int end = 0; end < 2; end++) {
            const struct process *process = conn->ends[end].process;
            bool stranger = process->is_master && !conn->ends[1].greeted; /* csrc/net sees to those */
            if (conn->ends[end].open && process->alive && !stranger) {
                violate(world, 7, "all have left, and %s holds a connection open",
                        process->name);
            }
        }
    }
    for (int i = 0; i < world->process_count; i++) {
        struct process *process = world->processes[i];
        if (process->alive && !process->is_master && process->links != NULL) {
            violate(world, 7, "%s has left and keeps a link", process->name);
        }
    }
}
