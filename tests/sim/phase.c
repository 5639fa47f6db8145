/* A run in four parts: trouble; calm, in which all that live must come together; rest, in which nothing
 * may be left open; and the end, in which all leave and nothing may be left at all. */
#include <inttypes.h>
#include <stdio.h>

#include "tests/sim/sim.h"

static const char *stage_name(const struct process *process) {
    static const char *const names[] = {"connect", "begin",   "update_topology",  "optimize",
                                        "sync",    "ops",     "pending amid ops", "idle",
                                        "done",    "scripted"};
    return names[process->user.stage];
}

static noreturn void did_not_converge(struct world *world, const char *what) {
    char text[TEXT_BYTES];
    size_t used = 0;
    for (int i = 0; i < world->process_count && used < sizeof text - 60; i++) {
        const struct process *process = world->processes[i];
        if (process->alive && !process->is_master) {
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s: %s, round %" PRIu64,
                                     used == 0 ? "" : "; ", process->name, stage_name(process),
                                     process->user.round);
        }
    }
    text[used < sizeof text ? used : sizeof text - 1] = '\0';
    violate(world, 4, "%s: %s", what, text);
}

static bool is_user(const struct process *process) {
    return process->alive && !process->is_master && process->user.stage != STAGE_DONE;
}

static uint64_t round_reached(const struct world *world) {
    uint64_t highest = 0;
    for (int i = 0; i < world->process_count; i++) {
        const struct user *user = &world->processes[i]->user;
        highest = user->round > highest ? user->round : highest;
    }
    return highest;
}

static void active(struct world *world) {
    uint64_t rounds = 0;
    for (int i = 0; i < world->process_count; i++) {
        const struct process *process = world->processes[i];
        rounds = process->user.rounds_done > rounds ? process->user.rounds_done : rounds;
    }
    bool enough = rounds >= world->active_rounds && world->events >= 500 && faults_done(world);
    if (enough || (world->now > 40 * world->timeout_ns && world->events >= 500)) {
        trace(world, "CALM: no more faults");
        world->phase = PHASE_CALM;
        faults_stop(world);
        world->calm_round = round_reached(world) + 2;
        world->phase_deadline = world->now + 50 * world->timeout_ns;
    }
}

static void calm(struct world *world) {
    bool all_in = true, all_rest = true, members_rest = true;
    for (int i = 0; i < world->process_count; i++) {
        const struct process *process = world->processes[i];
        if (!is_user(process)) {
            continue;
        }
        bool in = process->connected && process->user.stage != STAGE_CONNECT;
        all_in &= in;
        members_rest &= !in || process->user.stage == STAGE_IDLE;
        all_rest &= process->user.stage == STAGE_IDLE;
    }
    if (all_in && world->end_round == NEVER) {
        world->end_round = round_reached(world) + 2;
        trace(world, "all are in: they rest after round %" PRIu64, world->end_round - 1);
    }
    if (!all_in && members_rest) {
        world->end_round = NEVER;
        for (int i = 0; i < world->process_count; i++) {
            user_go_on(world->processes[i]);
        }
    }
    if (all_in && all_rest) {
        world->phase = PHASE_QUIET;
        world->phase_deadline = world->now + 3 * world->timeout_ns;
    } else if (world->now > world->phase_deadline) {
        did_not_converge(world, "long after the last fault not all are at rest");
    }
}

static void quiet(struct world *world) {
    if (world->now < world->phase_deadline) {
        return;
    }
    check_quiet(world);
    trace(world, "all rest as they should; now they leave");
    world->phase = PHASE_CLOSING;
    world->phase_deadline = world->now + 20 * world->timeout_ns;
}

static void closing(struct world *world) {
    bool any = false;
    for (int i = 0; i < world->process_count; i++) {
        struct process *process = world->processes[i];
        if (!is_user(process)) {
            continue;
        }
        any = true;
        if (process->user.closing || chance(&world->random_user, 50)) {
            continue;
        }
        if (chance(&world->random_user, 10)) {
            process_die(process, chance(&world->random_user, 30));
        } else {
            user_close(process, false);
        }
    }
    if (any) {
        world->last_progress = world->now;
        if (world->now > world->phase_deadline) {
            did_not_converge(world, "not all can leave");
        }
    } else if (world->now > world->last_progress + 3 * world->timeout_ns) {
        check_empty(world);
        world->phase = PHASE_OVER;
    }
}

void phase_tick(struct world *world) {
    check_waits(world);
    switch (world->phase) {
    case PHASE_ACTIVE:
        active(world);
        break;
    case PHASE_CALM:
        calm(world);
        break;
    case PHASE_QUIET:
        quiet(world);
        break;
    case PHASE_CLOSING:
        closing(world);
        break;
    case PHASE_OVER:
        return;
    }
    post(world, world->timeout_ns / 4, EVENT_PHASE, NULL, NULL, 0);
}
