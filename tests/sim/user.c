/* The users: each runs the same program, a function of the seed and the round, as trainers do. What a
 * call returns decides what comes next, so users stay in step only if outcomes are one for all. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/describe.h"
#include "tests/sim/sim.h"

static uint64_t mix(uint64_t a, uint64_t b, uint64_t c) {
    struct random_source source = {a * UINT64_C(0x9e3779b97f4a7c15) ^ b * UINT64_C(0xc2b2ae3d27d4eb4f) ^
                                   c * UINT64_C(0x165667b19e3779f9)};
    random_next(&source);
    return random_next(&source);
}

static void plan_round(const struct process *process, uint64_t round, struct round_plan *plan) {
    const struct world *world = process->world;
    struct random_source all = {mix(world->options.seed, round, 1)};
    struct random_source group = {mix(world->options.seed, round, 2 + process->group)};
    memset(plan, 0, sizeof *plan);
    plan->pending = chance(&all, 30);
    plan->skip_if_none = chance(&all, 50);
    plan->optimize = chance(&all, 10);
    plan->straight_to_ops = chance(&all, 25);
    plan->sync = sync_planned(process, round);
    bool amid = chance(&all, 15);
    plan->async = chance(&all, 60) || amid;
    plan->ops = (int)below(&group, MAX_BATCH + 1);
    if (world->wrong_users) {
        plan->async = false; /* an async op does not wait: nobody could tell that it waits in vain */
    }
    plan->pending_amid_ops = amid && plan->async;
    bool bounded = !world->faultless && chance(&group, 10);
    bool one_tag = !plan->async && chance(&group, 50); /* ops follow each other under it without a pause */
    struct random_source manner = {mix(world->options.seed, round, 99 + process->group)};
    bool early = chance(&manner, 50), all_early = early && chance(&manner, 40);
    for (int i = 0; i < plan->ops; i++) {
        struct planned_op *op = &plan->op[i];
        op->tag = one_tag ? 0 : chance(&group, 60) ? (uint64_t)i : 1000 + round * MAX_BATCH + (uint64_t)i;
        op->descriptor.kind =
            chance(&group, 60) ? OP_ALL_REDUCE : (uint8_t)(OP_ALL_REDUCE + below(&group, 5));
        op->descriptor.datatype = pcclInt64;
        op->descriptor.reduce_op =
            (uint8_t[]){pcclSum, pcclSum, pcclMax, pcclProd, pcclMin}[below(&group, 5)];
        op->descriptor.algorithm = (uint8_t)below(&group, OP_ALGORITHM_END);
        op->descriptor.count = 1 + below(&group, chance(&group, 50) ? 24 : MAX_CALL_ELEMENTS);
        op->descriptor.root_or_world = 0; /* worked out for each call */
        if (op->descriptor.kind == OP_ALL_GATHER || op->descriptor.kind == OP_REDUCE_SCATTER) {
            op->descriptor.count = 1 + below(&group, MAX_CALL_ELEMENTS / MAX_WORLD);
        } else if (op->descriptor.kind == OP_BARRIER) {
            op->descriptor.count = 0;
        } else if (op->descriptor.kind == OP_BROADCAST) {
            op->descriptor.root_or_world = (uint16_t)below(&group, 8);
        }
        if (all_early) { /* one behind the other: more and more are returned and not committed */
            op->descriptor.kind = OP_ALL_REDUCE;
            op->descriptor.count = 1 + below(&manner, MAX_CALL_ELEMENTS);
        }
        op->descriptor.early =
            all_early || (early && op->descriptor.kind == OP_ALL_REDUCE && chance(&manner, 70));
        op->bound_ns = bounded ? world->timeout_ns / 8 + below(&group, 3 * world->timeout_ns) : 0;
    }
}

void user_init(struct process *process) {
    struct user *user = &process->user;
    memset(user, 0, sizeof *user);
    user->stage = STAGE_CONNECT;
    user_wake(process, below(&process->world->random_user, 20 * MILLISECOND));
}

void user_wake(struct process *process, uint64_t delay) {
    if (!process->user.awake_scheduled) {
        process->user.awake_scheduled = true;
        post(process->world, delay, EVENT_USER, process, NULL, 0);
    }
}

static void think(struct process *process) {
    struct world *world = process->world;
    uint64_t delay = below(&world->random_user, world->think_ns) + process->user.slow_ns;
    if (process->user.rounds_done > world->active_rounds && world->end_round == NEVER) {
        delay += below(&world->random_user, world->timeout_ns / 8); /* enough was done: wait for the faults */
    }
    process->user.slow_ns = 0;
    user_wake(process, delay);
}

/* ---- calls ---- */

uint64_t call_input_count(const struct call *call) {
    const struct op_descriptor *descriptor = &call->descriptor;
    return descriptor->count * (descriptor->kind == OP_REDUCE_SCATTER ? descriptor->root_or_world : 1);
}

uint64_t call_result_count(const struct call *call) {
    const struct op_descriptor *descriptor = &call->descriptor;
    return descriptor->count * (descriptor->kind == OP_ALL_GATHER ? descriptor->root_or_world : 1);
}

bool call_names_ranks(const struct call *call) {
    return call->descriptor.kind != OP_ALL_REDUCE && call->descriptor.kind != OP_BARRIER;
}

/* The same call at the same peer has the same input whenever it is made again. */
void user_fill(struct call *call) {
    uint64_t base = mix((uint64_t)call->process->index * 7919 + call->round, (uint64_t)call->slot, call->tag);
    for (uint64_t i = 0; i < MAX_CALL_ELEMENTS; i++) {
        call->input[i] = i < call_input_count(call) ? (int64_t)(base + i * (base >> 40 | 1)) : 0;
    }
}

struct call *user_call(struct process *process, enum call_kind kind) {
    struct call *call = arena_take(sizeof *call);
    call->number = ++process->next_call;
    call->process = process;
    call->kind = kind;
    call->round = process->user.round;
    call->blocking = true;
    call->opened_at = process->world->now;
    call->open = true;
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        if (process->calls[i] == NULL) {
            process->calls[i] = call;
            return call;
        }
    }
    violate(process->world, 0, "%s has too many calls open", process->name);
}

static void trace_call(const struct call *call) {
    struct world *world = call->process->world;
    char what[64] = "connect", which[64] = "";
    if (call->kind == CALL_CLOSE) {
        snprintf(what, sizeof what, "close");
    } else if (call->kind == CALL_VOTE) {
        snprintf(what, sizeof what, "%s", vote_name(call->vote));
    } else if (call->kind == CALL_OP) {
        snprintf(what, sizeof what, "%s tag=%" PRIu64 " count=%" PRIu64 "%s",
                 op_kind_name(call->descriptor.kind), call->tag, call->descriptor.count,
                 call->blocking ? "" : " async");
    }
    if (!world->scripted) {
        snprintf(which, sizeof which, " (round %" PRIu64 " slot %d attempt %d)", call->round, call->slot,
                 call->attempt);
    }
    trace(world, "%s calls %s%s", call->process->name, what, which);
}

void user_issue(struct process *process, struct call *call, uint64_t bound_ns) {
    static const enum peer_event_kind kinds[] = {[CALL_CONNECT] = PEER_EVENT_CONNECT,
                                                 [CALL_CLOSE] = PEER_EVENT_CLOSE,
                                                 [CALL_VOTE] = PEER_EVENT_VOTE,
                                                 [CALL_OP] = PEER_EVENT_OP};
    struct peer_event event = {.kind = kinds[call->kind],
                               .call = call->number,
                               .vote = call->vote,
                               .tag = call->tag,
                               .blocking = call->blocking,
                               .descriptor = call->descriptor};
    if (call->kind == CALL_OP) {
        event.deadline_ns = bound_ns == 0 ? 0 : local_time(process) + bound_ns;
        user_fill(call);
    }
    trace_call(call);
    process->user.open_blocking += call->blocking && call->kind != CALL_CLOSE;
    process->user.open_async += !call->blocking;
    process_step(process, &event);
}

static void vote(struct process *process, uint8_t kind, bool wrong, bool amid_ops) {
    struct call *call = user_call(process, CALL_VOTE);
    call->vote = kind;
    call->wrong = wrong;
    call->slot = amid_ops;
    call->attempt = amid_ops ? 0 : process->user.attempts[0];
    user_issue(process, call, 0);
}

static bool take_wrong(struct process *process, uint8_t wrong) {
    if (process->user.wrong != wrong || process->world->phase != PHASE_ACTIVE) {
        return false;
    }
    process->user.wrong = WRONG_NONE;
    return true;
}

void user_close(struct process *process, bool reconnects) {
    struct user *user = &process->user;
    if (!process->alive || user->stage == STAGE_DONE || user->closing) {
        return;
    }
    user->closing = true;
    user->reconnects = reconnects;
    user_issue(process, user_call(process, CALL_CLOSE), 0);
}

/* ---- the program ---- */

static void enter(struct process *process, enum user_stage stage) {
    struct user *user = &process->user;
    user->stage = stage;
    user->mismatches = 0;
    user->batch_ready = false;
    memset(user->attempts, 0, sizeof user->attempts);
    think(process);
}

static void enter_sync(struct process *process) {
    if (process->user.plan.sync) {
        sync_train(process);
        enter(process, STAGE_SYNC);
    } else {
        enter(process, STAGE_OPS);
    }
}

static void begin_batch(struct process *process) {
    struct user *user = &process->user;
    struct random_source *random = &process->world->random_user;
    for (int i = 0; i < MAX_BATCH; i++) {
        user->slots[i] = i < user->plan.ops ? SLOT_TODO : SLOT_NONE;
        user->attempts[i] = 0;
        user->order[i] = i;
    }
    for (int i = user->plan.ops - 1; i > 0 && user->plan.async; i--) {
        int j = (int)below(random, (uint64_t)i + 1);
        int kept = user->order[i];
        user->order[i] = user->order[j];
        user->order[j] = kept;
    }
    user->asked_amid_ops = false;
    user->batch_ready = true;
}

/* As a caller does who asks for the world size and makes buffers for it. */
static void fit_to_world(const struct process *process, struct op_descriptor *descriptor) {
    struct peer_status status;
    peer_get_status(process->peer, &status);
    uint16_t world = status.world > 0 ? status.world : 1;
    if (descriptor->kind == OP_ALL_GATHER || descriptor->kind == OP_REDUCE_SCATTER) {
        descriptor->root_or_world = world;
    } else if (descriptor->kind == OP_BROADCAST && descriptor->root_or_world >= world) {
        descriptor->root_or_world = (uint16_t)(world - 1);
    }
}

static void start_op(struct process *process, int slot) {
    struct user *user = &process->user;
    const struct planned_op *planned = &user->plan.op[slot];
    struct call *call = user_call(process, CALL_OP);
    call->tag = planned->tag;
    call->descriptor = planned->descriptor;
    fit_to_world(process, &call->descriptor);
    call->slot = slot;
    call->attempt = user->attempts[slot];
    call->blocking = !user->plan.async;
    if (take_wrong(process, WRONG_DESCRIPTOR)) {
        call->wrong = true;
        if (call->descriptor.kind == OP_BROADCAST) {
            call->descriptor.root_or_world = (uint16_t)(call->descriptor.root_or_world > 0 ? 0 : 1);
        } else if (chance(&process->world->random_user, 50) || call->descriptor.kind != OP_ALL_REDUCE) {
            call->descriptor.reduce_op = call->descriptor.reduce_op == pcclSum ? pcclMax : pcclSum;
        } else {
            call->descriptor.count = call->descriptor.count % MAX_CALL_ELEMENTS + 1;
        }
    }
    user->slots[slot] = SLOT_OPEN;
    uint64_t bound = planned->bound_ns;
    if (bound == 0 && process->world->wrong_users) {
        bound = 2 * process->world->timeout_ns; /* users that lose step must not wait for ever */
    }
    user_issue(process, call, bound);
    if (!call->blocking) {
        think(process);
    }
}

static bool batch_step(struct process *process) {
    struct user *user = &process->user;
    if (!user->batch_ready) {
        begin_batch(process);
    }
    bool failed = false;
    for (int i = 0; i < user->plan.ops; i++) {
        int slot = user->order[i];
        if (user->slots[slot] == SLOT_TODO) {
            if (take_wrong(process, WRONG_SKIP_OP)) {
                user->slots[slot] = SLOT_DONE;
                think(process);
            } else if (take_wrong(process, WRONG_VOTE_FOR_OP)) {
                vote(process, VOTE_UPDATE_TOPOLOGY, true, false);
            } else {
                start_op(process, slot);
            }
            return false;
        }
        failed |= user->slots[slot] == SLOT_FAILED;
    }
    if (user->plan.pending_amid_ops && !user->asked_amid_ops) {
        user->asked_amid_ops = true;
        vote(process, VOTE_PEERS_PENDING, false, true);
        return false;
    }
    if (user->open_async > 0 || user->open_blocking > 0) {
        return false;
    }
    for (int i = 0; i < user->plan.ops && failed; i++) {
        if (user->slots[i] == SLOT_FAILED) {
            user->slots[i] = SLOT_TODO;
            user->attempts[i]++;
        }
    }
    if (failed) {
        think(process);
    }
    return !failed;
}

static void end_round(struct process *process) {
    struct user *user = &process->user;
    struct world *world = process->world;
    user->round++;
    user->rounds_done++;
    if (user->round >= world->end_round) {
        user->stage = STAGE_IDLE;
        trace(world, "%s rests", process->name);
        return;
    }
    enter(process, STAGE_BEGIN);
}

void user_step(struct process *process) {
    struct user *user = &process->user;
    user->awake_scheduled = false;
    if (user->leaves_now) {
        user->leaves_now = false;
        user_close(process, true);
        return;
    }
    if (user->open_blocking > 0 || user->closing) {
        return;
    }
    switch (user->stage) {
    case STAGE_CONNECT:
        user_issue(process, user_call(process, CALL_CONNECT), 0);
        break;
    case STAGE_BEGIN:
        plan_round(process, user->round, &user->plan);
        user->attempts[0] = user->mismatches;
        if (user->round >= process->world->calm_round) {
            user->plan.skip_if_none = false;
        }
        if (user->plan.straight_to_ops && user->round < process->world->calm_round) {
            enter_sync(process);
            break;
        }
        if (user->plan.pending) {
            vote(process, VOTE_PEERS_PENDING, false, false);
            break;
        }
        user->stage = STAGE_TOPOLOGY;
        /* fall through */
    case STAGE_TOPOLOGY:
        if (take_wrong(process, WRONG_VOTE)) {
            vote(process, VOTE_PEERS_PENDING, true, false);
        } else {
            vote(process, VOTE_UPDATE_TOPOLOGY, false, false);
        }
        break;
    case STAGE_OPTIMIZE:
        vote(process, VOTE_OPTIMIZE_TOPOLOGY, false, false);
        break;
    case STAGE_SYNC:
        sync_call(process);
        break;
    case STAGE_OPS:
        if (batch_step(process)) {
            end_round(process);
        }
        break;
    default:
        break;
    }
}

/* ---- answers ---- */

static void start_anew(struct process *process, uint64_t delay) {
    struct user *user = &process->user;
    user->stage = STAGE_CONNECT;
    user->batch_ready = false;
    process->connected = false;
    user_wake(process, delay + below(&process->world->random_user, process->world->timeout_ns / 5));
}

/* Somebody is not in yet: those who rest must let it in, or find out that it is they. */
void user_go_on(struct process *process) {
    if (process->user.stage == STAGE_IDLE && process->connected) {
        enter(process, STAGE_BEGIN);
    } else if (process->user.stage == STAGE_IDLE) {
        start_anew(process, 0);
    }
}

/* The newcomer takes over the round of those who let it in. */
static void joined(struct process *process) {
    process->user.round = process->user.admitted_round;
    process->sync.receives_once = true;
    plan_round(process, process->user.round, &process->user.plan);
    process->user.plan.optimize ? enter(process, STAGE_OPTIMIZE) : enter_sync(process);
}

static void vote_over(struct process *process, struct call *call) {
    struct user *user = &process->user;
    if (call->vote == VOTE_SYNC_STATE && call->status == pcclTooFewPeers) {
        enter(process, STAGE_OPS); /* alone */
        return;
    }
    if (user->stage == STAGE_OPS) { /* amid ops, or wrong in place of an op */
        think(process);
        return;
    }
    if (call->wrong || call->status != pcclSuccess) {
        if (++user->mismatches > 200) {
            violate(process->world, 4, "%s: %s failed 200 times in a row", process->name,
                    vote_name(call->vote));
        }
        if (!call->wrong) {
            user->attempts[0]++;
        }
        if (process->world->wrong_users && call->status == pcclMismatch) {
            user->stage = STAGE_TOPOLOGY; /* where all who lost step meet again */
        }
        think(process);
        return;
    }
    if (user->stage == STAGE_BEGIN) {
        bool skip = call->value == 0 && user->plan.skip_if_none;
        if (!skip) {
            enter(process, STAGE_TOPOLOGY);
        } else {
            user->plan.optimize ? enter(process, STAGE_OPTIMIZE) : enter_sync(process);
        }
    } else if (user->stage == STAGE_TOPOLOGY) {
        if (process->world->wrong_users && user->admitted_round > user->round) {
            user->round = user->admitted_round;
            plan_round(process, user->round, &user->plan);
        }
        user->plan.optimize ? enter(process, STAGE_OPTIMIZE) : enter_sync(process);
    } else if (user->stage == STAGE_OPTIMIZE) {
        enter_sync(process);
    } else {
        enter(process, STAGE_OPS);
    }
}

static void op_over(struct process *process, struct call *call) {
    struct user *user = &process->user;
    int slot = call->slot;
    bool again = call->status == pcclRankConnectionLost;
    if (call->status == pcclMismatch || call->status == pcclTimeout) {
        again = user->attempts[slot] < 3;
    }
    if (call->status == pcclSuccess && call->descriptor.early && user->leaves_early &&
        process->world->phase == PHASE_ACTIVE) {
        user->leaves_early = false;
        user->leaves_now = true;
        user_wake(process, 0);
        return;
    }
    user->slots[slot] = again ? SLOT_FAILED : SLOT_DONE;
    if (user->attempts[slot] > 200) {
        violate(process->world, 4, "%s: tag %" PRIu64 " failed 200 times in a row", process->name, call->tag);
    }
    if (call->blocking && again) { /* at once, before the next op */
        user->slots[slot] = SLOT_TODO;
        user->attempts[slot]++;
    }
    think(process);
}

static bool must_join_anew(uint16_t status) {
    return status == pcclMasterConnectionLost || status == pcclEvicted || status == pcclRefused ||
           status == pcclMasterConnectionFailed || status == pcclRankConnectionFailed;
}

void user_complete(struct process *process, struct call *call) {
    struct user *user = &process->user;
    user->open_blocking -= call->blocking && call->kind != CALL_CLOSE;
    user->open_async -= !call->blocking;
    if (user->stage == STAGE_SCRIPTED) {
        return;
    }
    if (call->kind == CALL_CLOSE) {
        user->closing = false;
        if (user->reconnects && process->world->phase == PHASE_ACTIVE) {
            start_anew(process, 0);
        } else {
            user->stage = STAGE_DONE;
            process->connected = false;
        }
        return;
    }
    if (user->closing || user->stage == STAGE_DONE) {
        return;
    }
    if (call->kind == CALL_CONNECT) {
        if (call->status == pcclSuccess) {
            joined(process);
        } else {
            start_anew(process, process->world->timeout_ns / 10);
        }
        return;
    }
    if (must_join_anew(call->status)) {
        start_anew(process, 0);
    } else if (call->status == pcclInvalidUsage && call->vote != VOTE_SYNC_STATE) {
        violate(process->world, 4, "%s: a call that fits ends with InvalidUsage", process->name);
    } else if (user->stage == STAGE_CONNECT) {
        return; /* a straggler of the life before */
    } else if (call->kind == CALL_VOTE) {
        vote_over(process, call);
    } else {
        op_over(process, call);
    }
}
