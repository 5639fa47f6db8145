/* Shared state: what users offer, and a model of the transfer in csrc/net: plans are taken a little late,
 * leaves come one by one from holders that live and can be reached, and what is half copied is a mixture.
 * Here also what must hold of it (5). */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

enum sync_step_kind { STEP_TAKE_PLAN, STEP_ASK_HASHES, STEP_TAKE_LEAF };

static uint64_t mix(uint64_t a, uint64_t b) {
    struct random_source source = {a * UINT64_C(0x9e3779b97f4a7c15) ^ b};
    random_next(&source);
    return random_next(&source);
}

static struct digest digest_of(const uint64_t leaves[SYNC_LEAVES]) {
    uint64_t words[2] = {1, 2};
    for (int i = 0; i < SYNC_LEAVES; i++) {
        words[0] = mix(words[0], leaves[i]);
        words[1] = mix(words[1], words[0]);
    }
    struct digest digest;
    memcpy(digest.bytes, words, sizeof digest.bytes);
    return digest;
}

static bool same_digest(const struct digest *a, const struct digest *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

/* ---- the user's part ---- */

void sync_init(struct process *process) {
    struct sim_sync *sync = &process->sync;
    for (int i = 0; i < SYNC_LEAVES; i++) {
        sync->leaves[i] = mix((uint64_t)process->index + 1, (uint64_t)i);
    }
}

bool sync_planned(const struct process *process, uint64_t round) {
    return !process->world->wrong_users &&
           mix(process->world->options.seed * 31 + process->group, round) % 100 < 40;
}

/* A step of training: the same for all who hold the same, but for one who drifts. */
void sync_train(struct process *process) {
    struct sim_sync *sync = &process->sync;
    struct random_source *random = &process->world->random_user;
    uint64_t round = process->user.round;
    for (int i = 0; i < SYNC_LEAVES; i++) {
        if (mix(round, (uint64_t)i) % 3 > 0) {
            sync->leaves[i] = mix(sync->leaves[i], round);
        }
    }
    if (chance(random, 10)) {
        sync->leaves[below(random, SYNC_LEAVES)]++;
    }
}

void sync_call(struct process *process) {
    struct world *world = process->world;
    struct sim_sync *sync = &process->sync;
    struct call *call = user_call(process, CALL_VOTE);
    call->vote = VOTE_SYNC_STATE;
    call->attempt = process->user.attempts[0];
    struct message_sync_offer *offer = arena_take(sizeof *offer);
    offer->revision = sync->revision + 1;
    offer->content = digest_of(sync->leaves);
    bool mixture = sync->has_mixture && same_digest(&sync->mixture, &offer->content);
    bool shy = sync->receives_once && !world->faultless && chance(&world->random_user, 50);
    offer->mixed = mixture;
    offer->requires_peers = mix(call->round, world->options.seed) % 4 == 0;
    if (mixture || shy) {
        offer->strategy = PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY;
    }
    if (!mixture) {
        struct sync_record *record = arena_take(sizeof *record);
        *record = (struct sync_record){.next = world->offers,
                                       .run = process->master_run,
                                       .group = process->group,
                                       .revision = offer->revision,
                                       .content = offer->content,
                                       .only = shy ? process : NULL};
        world->offers = record;
    }
    sync->receives_once = false;
    sync->call = call->number;
    sync->offered = offer->content;
    sync->serves = offer->strategy != PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY;
    sync->plan = (struct message_sync_plan){0};
    sync->touched = sync->fetching = sync->new_plan = sync->stuck = false;
    sync->generation++;
    trace(world, "%s calls sync_shared_state revision=%" PRIu64 "%s (round %" PRIu64 " attempt %d)",
          process->name, offer->revision, sync->serves ? "" : " receive only", call->round, call->attempt);
    process->user.open_blocking++;
    struct peer_event event = {.kind = PEER_EVENT_SYNC, .call = call->number, .offer = offer};
    process_step(process, &event);
}

/* ---- the transfer ---- */

static void step_later(struct process *process, uint64_t delay, enum sync_step_kind kind) {
    struct sync_step *step = arena_take(sizeof *step);
    step->kind = kind;
    step->generation = process->sync.generation;
    post(process->world, delay, EVENT_SYNC, process, step, 0);
}

void sync_plan(struct process *process, const struct peer_action *action) {
    struct sim_sync *sync = &process->sync;
    if (sync->call != action->call) {
        violate(process->world, 5, "%s: a plan for call %" PRIu64 ", which does not synchronise",
                process->name, action->call);
    }
    sync->desk = *action->plan;
    sync->new_plan = true;
    trace(process->world, "%s: plan %" PRIu64 ": %s", process->name, action->plan->sync,
          action->plan->role == SYNC_HOLD ? "hold" : "fetch");
    struct sync_step *step = arena_take(sizeof *step);
    step->kind = STEP_TAKE_PLAN;
    step->call = action->call;
    post(process->world, 1 + below(&process->world->random_net, 2 * process->world->latency_ns), EVENT_SYNC,
         process, step, 0);
}

static void report(struct process *process, enum sync_progress progress, uint16_t status,
                   const char *reason) {
    struct message_sync_report *message = arena_take(sizeof *message);
    message->sync = process->sync.plan.sync;
    message->progress = (uint8_t)progress;
    message->status = status;
    strncpy(message->reason, reason, sizeof message->reason - 1);
    struct peer_event event = {.kind = PEER_EVENT_SYNC_REPORT, .report = message};
    process_step(process, &event);
}

static bool holds(const struct process *process) {
    struct digest content = digest_of(process->sync.leaves);
    return same_digest(&content, &process->sync.plan.content);
}

static bool is_stuck(const struct process *process) {
    const struct world *world = process->world;
    return !world->faultless && !world->scripted &&
           mix(world->options.seed * 37 + (uint64_t)process->index, process->user.round) % 30 == 0;
}

static void take_plan(struct process *process) {
    struct sim_sync *sync = &process->sync;
    bool again = sync->desk.sync == sync->plan.sync && sync->desk.role == sync->plan.role;
    sync->plan = sync->desk;
    sync->new_plan = false;
    sync->progress_at = process->world->now;
    if (again) {
        return;
    }
    sync->generation++;
    sync->fetching = false;
    if (holds(process)) {
        report(process, SYNC_FETCHED, pcclSuccess, "");
    } else if (sync->plan.role == SYNC_HOLD) {
        report(process, SYNC_TOUCHED, pcclSuccess, "");
    } else if (is_stuck(process)) {
        sync->stuck = true;
    } else {
        sync->source = (int)below(&process->world->random_net, MAX_SYNC_SOURCES);
        sync->fetching = true;
        step_later(process, process->world->latency_ns, STEP_ASK_HASHES);
    }
}

/* The next source, if it answers; NULL: not now. */
static struct process *find_source(struct process *process) {
    struct world *world = process->world;
    struct sim_sync *sync = &process->sync;
    if (sync->plan.source_count == 0) {
        return NULL;
    }
    const struct member *member = &sync->plan.sources[sync->source % sync->plan.source_count];
    int index = member->address.port - 1000;
    if (index <= 0 || index >= world->process_count) {
        violate(world, 5, "%s: a source without an address", process->name);
    }
    struct process *source = world->processes[index];
    const struct sim_sync *other = &source->sync;
    bool answers =
        source->alive && !source->frozen && id_equal(&source->id, &member->id) && other->call != 0 &&
        other->serves && other->plan.role == SYNC_HOLD && id_equal(&other->plan.key, &sync->plan.key) &&
        path_open(world, process->host, source->host) && path_open(world, source->host, process->host);
    return answers ? source : NULL;
}

/* Bytes between peers may be far ahead of what either has said to the master. */
static void next_leaf(struct process *process) {
    struct world *world = process->world;
    bool near = chance(&world->random_net, 50);
    uint64_t longest = near ? world->latency_ns / 2 : world->timeout_ns / 10;
    step_later(process, 1 + below(&world->random_net, longest + 1), STEP_TAKE_LEAF);
}

static void try_another(struct process *process, enum sync_step_kind kind) {
    struct sim_sync *sync = &process->sync;
    if (process->world->now - sync->progress_at > 3 * process->timeout_ns) {
        sync->fetching = false;
        report(process, SYNC_FAILED, pcclRankConnectionLost, "no holder answers");
        return;
    }
    sync->source++;
    step_later(process, process->timeout_ns / 8, kind);
}

static void ask_hashes(struct process *process) {
    struct sim_sync *sync = &process->sync;
    struct process *source = find_source(process);
    struct digest content;
    if (source != NULL) {
        content = digest_of(source->sync.leaves);
    }
    if (source == NULL || !same_digest(&content, &sync->plan.content)) {
        try_another(process, STEP_ASK_HASHES);
        return;
    }
    memcpy(sync->elected, source->sync.leaves, sizeof sync->elected);
    sync->progress_at = process->world->now;
    report(process, SYNC_TOUCHED, pcclSuccess, "");
    sync->touched = true;
    next_leaf(process);
}

static void take_leaf(struct process *process) {
    struct sim_sync *sync = &process->sync;
    struct process *source = find_source(process);
    int leaf = 0;
    while (leaf < SYNC_LEAVES && sync->leaves[leaf] == sync->elected[leaf]) {
        leaf++;
    }
    if (source == NULL || source->sync.leaves[leaf] != sync->elected[leaf]) {
        try_another(process, STEP_TAKE_LEAF);
        return;
    }
    sync->leaves[leaf] = sync->elected[leaf];
    sync->progress_at = process->world->now;
    sync->source++;
    if (holds(process)) {
        sync->fetching = false;
        report(process, SYNC_FETCHED, pcclSuccess, "");
    } else {
        report(process, SYNC_MOVING, pcclSuccess, "");
        next_leaf(process);
    }
}

void sync_stepped(struct process *process, const struct sync_step *step) {
    struct sim_sync *sync = &process->sync;
    if (sync->call == 0 || !process->alive) {
        return;
    }
    if (step->kind == STEP_TAKE_PLAN) {
        if (step->call == sync->call && sync->new_plan) {
            take_plan(process);
        }
    } else if (step->generation == sync->generation && sync->fetching) {
        step->kind == STEP_ASK_HASHES ? ask_hashes(process) : take_leaf(process);
    }
}

/* ---- who knows the revision ---- */

/* A revision that others of the group know, at this master; NULL: nobody knows one. */
static const struct conn *find_knower(const struct world *world, const struct conn *told) {
    for (const struct conn *conn = world->conns; conn != NULL; conn = conn->next) {
        if (conn->control && conn->knows_revision &&
            conn->ends[1].process->run == told->ends[1].process->run &&
            conn->ends[0].process->group == told->ends[0].process->group) {
            return conn;
        }
    }
    return NULL;
}

void sync_result(struct world *world, struct conn *conn, const struct message_vote_result *result) {
    if (result->kind != VOTE_SYNC_STATE) {
        return;
    }
    const struct conn *knower = find_knower(world, conn);
    const char *expected = strstr(result->reason, "expected ");
    const char *name = conn->ends[0].process->name;
    if (result->status == pcclSuccess) {
        /* This one may not be the first who is told. */
        if (knower != NULL && result->value != knower->revision && result->value != knower->revision + 1) {
            violate(world, 5, "%s is given revision %" PRIu64 " although %s knows %" PRIu64, name,
                    result->value, knower->ends[0].process->name, knower->revision);
        }
        conn->knows_revision = !conn->alone;
        conn->revision = result->value;
    } else if (result->status == pcclInvalidUsage && expected != NULL) {
        uint64_t revision = strtoull(expected + strlen("expected "), NULL, 10);
        if (knower == NULL || revision != knower->revision + 1) {
            violate(world, 5, "%s is held to revision %" PRIu64 ", which nobody knows", name, revision);
        }
    }
}

/* ---- the end ---- */

/* It has one revision and one content for all, and the content is one that was offered whole. */
static void check_success(struct process *process, const struct call *call, const struct digest *content) {
    struct world *world = process->world;
    const struct sync_record *offer = world->offers;
    while (offer != NULL && (offer->run != process->master_run || offer->group != process->group ||
                             offer->revision != call->value || !same_digest(&offer->content, content) ||
                             (offer->only != NULL && offer->only != process))) {
        offer = offer->next;
    }
    if (offer == NULL) {
        violate(world, 5, "%s holds what nobody has offered as revision %" PRIu64, process->name,
                call->value);
    }
    struct sync_record *record = world->syncs;
    while (record != NULL && (record->run != process->master_run || record->group != process->group ||
                              record->round != call->round || record->attempt != call->attempt)) {
        record = record->next;
    }
    if (record == NULL) {
        record = arena_take(sizeof *record);
        *record = (struct sync_record){.next = world->syncs,
                                       .run = process->master_run,
                                       .group = process->group,
                                       .round = call->round,
                                       .attempt = call->attempt,
                                       .revision = call->value,
                                       .content = *content};
        world->syncs = record;
        world->synchronised++;
    } else if (record->revision != call->value || !same_digest(&record->content, content)) {
        violate(world, 5, "%s holds other bits than another after the sync of round %" PRIu64, process->name,
                call->round);
    }
}

void sync_over(struct process *process, const struct call *call, const char *text) {
    struct sim_sync *sync = &process->sync;
    struct digest content = digest_of(sync->leaves);
    sync->call = 0;
    sync->generation++;
    sync->fetching = false;
    if (call->status == pcclSuccess) {
        check_success(process, call, &content);
        sync->revision = call->value;
        sync->has_mixture = false;
        return;
    }
    if (!sync->touched && !same_digest(&content, &sync->offered)) {
        violate(process->world, 5, "%s: memory has changed without a word", process->name);
    }
    if (!same_digest(&content, &sync->offered) && !same_digest(&content, &sync->plan.content)) {
        sync->has_mixture = true;
        sync->mixture = content;
    }
    const char *expected = strstr(text, "expected ");
    if (call->status == pcclTooFewPeers) {
        sync->revision++; /* it goes on by itself */
    } else if (call->status == pcclInvalidUsage && expected != NULL) {
        sync->revision = strtoull(expected + strlen("expected "), NULL, 10) - 1; /* as the sentence says */
    } else if (call->status == pcclNoSharedStateAvailable) { /* all load what they have saved */
        sync->has_mixture = false;
        for (int i = 0; i < SYNC_LEAVES; i++) {
            sync->leaves[i] = mix((uint64_t)process->index + 1, (uint64_t)i);
        }
    }
}
