/* Faults: drawn from the seed before the run begins, so that single ones can be left out when a failing
 * run is made smaller. */
#include <string.h>

#include "tests/sim/sim.h"

/* How long after a fault a peer that it touched may still be put out because of it; for edges, the time
 * after which the master gives a pair that has failed another chance, and what it takes to find out. */
static uint64_t grace(const struct world *world) {
    return 8 * world->timeout_ns;
}

static uint64_t edge_grace(const struct world *world) {
    return 26 * world->timeout_ns;
}

static void raise_to(uint64_t *value, uint64_t to) {
    *value = *value > to && *value != NEVER ? *value : to;
}

void suspect_host(struct world *world, int host, uint64_t until) {
    raise_to(&world->suspect_until[host], until);
}

void suspect_edge(struct world *world, int a, int b, uint64_t until) {
    raise_to(&world->edge_suspect_until[a][b], until);
    raise_to(&world->edge_suspect_until[b][a], until);
}

/* ---- drawing ---- */

static const enum fault_kind harmless_kinds[] = {FAULT_STALL, FAULT_SLOW_USER, FAULT_CLOSE,
                                                 FAULT_CLOSE_EARLY};
static const enum fault_kind all_kinds[] = {
    FAULT_CRASH,       FAULT_CRASH,         FAULT_CRASH,      FAULT_POWEROFF,     FAULT_FREEZE,
    FAULT_FREEZE,      FAULT_RESET_CONTROL, FAULT_RESET_LINK, FAULT_RESET_LINK,   FAULT_BLOCK,
    FAULT_BLOCK,       FAULT_CUT,           FAULT_ISOLATE,    FAULT_STALL,        FAULT_STALL,
    FAULT_CLOSE,       FAULT_CLOSE,         FAULT_SLOW_USER,  FAULT_MASTER_CRASH, FAULT_MASTER_FREEZE,
    FAULT_CLOSE_EARLY,
};
static const uint16_t trigger_messages[] = {
    MESSAGE_WELCOME, MESSAGE_PROPOSE,   MESSAGE_READY,       MESSAGE_COMMIT_EPOCH, MESSAGE_VOTE,
    MESSAGE_OP_DONE, MESSAGE_OP_COMMIT, MESSAGE_VOTE_RESULT, MESSAGE_LINK_LOST,    MESSAGE_UNREACHABLE,
    MESSAGE_GOODBYE, MESSAGE_FAREWELL,  MESSAGE_EVICTED,     MESSAGE_VOTE_OPENED,
};
static const uint16_t early_messages[] = {READY_THAT_KEEPS, READY_THAT_KEEPS, COMMIT_EPOCH_THAT_SERVES,
                                          OP_DONE_THAT_RETURNED, OP_DONE_THAT_RETURNED};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int any_host(struct world *world) {
    return 1 + (int)below(&world->random_fault, (uint64_t)world->hosts);
}

static int other_host(struct world *world, int host) {
    int other = 1 + (int)below(&world->random_fault, (uint64_t)world->hosts - 1);
    return other >= host ? other + 1 : other;
}

static struct fault *add(struct world *world, enum fault_kind kind) {
    struct random_source *random = &world->random_fault;
    struct fault *fault = &world->faults[world->fault_count];
    if (world->fault_count < MAX_FAULTS) {
        world->fault_count++;
    }
    *fault = (struct fault){.kind = kind, .a = any_host(world)};
    fault->b = other_host(world, fault->a);
    uint64_t draw = below(random, 10);
    if (draw < 6) {
        fault->trigger = TRIGGER_EVENT;
        fault->at = 1 + below(random, 60 + 200 * (uint64_t)world->hosts);
    } else if (draw < 8) {
        fault->trigger = TRIGGER_MESSAGE;
        fault->message = trigger_messages[below(random, COUNT(trigger_messages))];
        fault->at = 1 + below(random, 4 * (uint64_t)world->hosts);
        if (kind != FAULT_NEWCOMER && chance(random, 50)) {
            fault->message = early_messages[below(random, COUNT(early_messages))];
            fault->at = 1 + below(random, fault->message == OP_DONE_THAT_RETURNED ? 200 : 8);
            fault->at_sender = chance(random, 50);
        }
    } else {
        fault->trigger = TRIGGER_TIME;
        fault->at = below(random, 3 * world->timeout_ns);
    }
    fault->duration = below(random, chance(random, 60) ? world->timeout_ns : 5 * world->timeout_ns);
    fault->restart_after = chance(random, 50) ? 1 + below(random, 3 * world->timeout_ns) : 0;
    fault->wrong = (uint8_t)(1 + below(random, WRONG_END - 1));
    return fault;
}

static void add_newcomers(struct world *world) {
    for (int host = 1; host <= world->hosts; host++) {
        struct fault *newcomer = add(world, FAULT_NEWCOMER);
        newcomer->a = host;
        if (!world->faultless && chance(&world->random_fault, 15)) {
            struct fault *cut = add(world, chance(&world->random_fault, 50) ? FAULT_CUT : FAULT_BLOCK);
            *cut = (struct fault){.kind = cut->kind,
                                  .trigger = newcomer->trigger,
                                  .at = newcomer->at,
                                  .message = newcomer->message,
                                  .a = host,
                                  .b = other_host(world, host),
                                  .duration = 10 * world->timeout_ns};
        }
    }
}

void faults_plan(struct world *world) {
    struct random_source *random = &world->random_fault;
    add_newcomers(world);
    uint64_t count = below(random, chance(random, 20) ? 20 : 7);
    count += !world->faultless;
    for (uint64_t i = 0; i < count; i++) {
        bool harmless = world->faultless || chance(random, 10);
        add(world, harmless ? harmless_kinds[below(random, COUNT(harmless_kinds))]
                            : all_kinds[below(random, COUNT(all_kinds))]);
    }
    for (uint64_t i = 0; world->wrong_users && i < 1 + below(random, 4); i++) {
        add(world, FAULT_WRONG_USER);
    }
    for (int i = 0; i < world->fault_count; i++) {
        struct fault *fault = &world->faults[i];
        fault->dropped = (world->options.without >> i & 1) != 0;
        if (!fault->dropped && fault->trigger == TRIGGER_TIME) {
            post(world, fault->at, EVENT_FAULT, NULL, fault, 0);
        }
    }
}

/* ---- firing ---- */

static struct process *process_at(struct world *world, int host) {
    return world->at_host[host] < 0 ? NULL : world->processes[world->at_host[host]];
}

static void block(struct world *world, int from, int to, int by) {
    if (world->blocked[from][to] == 0) {
        world->blocked_since[from][to] = world->now;
    }
    world->blocked[from][to] += by;
    uint64_t until = by > 0                 ? NEVER
                     : from == 0 || to == 0 ? world->now + grace(world)
                                            : world->now + edge_grace(world);
    if (by < 0) { /* a suspicion for ever ends now, unless another fault still holds */
        world->edge_suspect_until[from][to] = world->edge_suspect_until[to][from] = until;
        if (from == 0 || to == 0) {
            world->suspect_until[from + to] = until;
        }
    }
    if (world->blocked[from][to] > 0 || world->blocked[to][from] > 0) {
        until = NEVER;
    }
    if (from == 0 || to == 0) {
        suspect_host(world, from + to, until);
    } else {
        suspect_edge(world, from, to, until);
    }
}

static void block_all(struct world *world, const struct fault *fault, int by) {
    switch (fault->kind) {
    case FAULT_BLOCK: /* b may stand for the master */
        block(world, fault->a, fault->duration % 3 == 0 ? 0 : fault->b, by);
        break;
    case FAULT_CUT:
        block(world, fault->a, fault->b, by);
        block(world, fault->b, fault->a, by);
        break;
    case FAULT_ISOLATE:
        for (int host = 0; host <= world->hosts; host++) {
            if (host != fault->a) {
                block(world, fault->a, host, by);
                block(world, host, fault->a, by);
            }
        }
        break;
    default:
        break;
    }
    if (by < 0) {
        net_unblock(world);
    }
}

static void reset(struct world *world, const struct fault *fault) {
    for (struct conn *conn = world->conns; conn != NULL; conn = conn->next) {
        int from = conn->ends[0].process->host, to = conn->ends[1].process->host;
        bool here = fault->kind == FAULT_RESET_CONTROL
                        ? conn->control && from == fault->a
                        : !conn->control && (from == fault->a || to == fault->a);
        if (here && conn->ends[0].open && conn->ends[1].open) {
            conn_reset(world, conn, "connection reset");
            if (conn->control) {
                suspect_host(world, fault->a, world->now + grace(world));
            } else {
                suspect_edge(world, from, to, world->now + edge_grace(world));
            }
            return; /* one connection: of a link, one stream */
        }
    }
}

static void crash(struct world *world, const struct fault *fault, int host) {
    struct process *process = process_at(world, host);
    if (process == NULL) {
        return;
    }
    process_die(process, fault->kind == FAULT_POWEROFF);
    if (host == 0) {
        world->master_suspect_until = world->now + grace(world) + fault->restart_after;
        post(world, fault->restart_after, EVENT_RESTART, NULL, NULL, 0);
    } else if (fault->restart_after != 0) {
        post(world, fault->restart_after, EVENT_RESTART, NULL, NULL, (uint64_t)host);
    }
}

static void freeze(struct world *world, const struct fault *fault, int host) {
    struct process *process = process_at(world, host);
    if (process == NULL || process->frozen) {
        return;
    }
    process_freeze(process);
    if (host == 0) {
        world->master_suspect_until = NEVER;
    } else {
        suspect_host(world, host, NEVER);
    }
    (void)fault;
}

static void thaw(struct world *world, int host) {
    for (int i = 0; i < world->process_count; i++) {
        struct process *process = world->processes[i];
        if (process->host == host && process->frozen) {
            process_resume(process);
        }
    }
    if (host == 0) {
        world->master_suspect_until = world->now + grace(world);
    } else {
        world->suspect_until[host] = world->now + grace(world);
    }
}

static void start_newcomer(struct world *world, const struct fault *fault) {
    if (world->at_host[fault->a] < 0 && world->process_count < MAX_PROCESSES - 8) {
        process_start(world, fault->a, UINT32_MAX, 0);
    }
}

static void trouble_user(struct world *world, const struct fault *fault) {
    struct process *process = process_at(world, fault->a);
    if (process == NULL) {
        return;
    }
    if (fault->kind == FAULT_CLOSE) {
        if (!process->frozen) {
            user_close(process, fault->restart_after != 0);
        }
    } else if (fault->kind == FAULT_CLOSE_EARLY) {
        process->user.leaves_early = true;
    } else if (fault->kind == FAULT_SLOW_USER) {
        process->user.slow_ns = fault->duration;
    } else {
        process->user.wrong = fault->wrong;
    }
}

void fault_fire(struct world *world, struct fault *fault) {
    if (fault->fired || fault->dropped || world->phase != PHASE_ACTIVE) {
        return;
    }
    fault->fired = true;
    fault->ended = true;
    trace(world, "FAULT %d: %s at %c", (int)(fault - world->faults), fault_name(fault->kind),
          'a' + fault->a - 1);
    switch (fault->kind) {
    case FAULT_NEWCOMER:
        start_newcomer(world, fault);
        return;
    case FAULT_CLOSE:
    case FAULT_CLOSE_EARLY:
    case FAULT_SLOW_USER:
    case FAULT_WRONG_USER:
        trouble_user(world, fault);
        world->fault_ever |= fault->kind == FAULT_WRONG_USER;
        return;
    case FAULT_STALL:
        world->stall_until[fault->a][fault->b] = world->stall_until[fault->a][0] =
            world->now + below(&world->random_net, world->timeout_ns * 3 / 10);
        return;
    case FAULT_CRASH:
    case FAULT_POWEROFF:
        crash(world, fault, fault->a);
        break;
    case FAULT_MASTER_CRASH:
        crash(world, fault, 0);
        break;
    case FAULT_RESET_CONTROL:
    case FAULT_RESET_LINK:
        reset(world, fault);
        break;
    case FAULT_FREEZE:
    case FAULT_MASTER_FREEZE:
        freeze(world, fault, fault->kind == FAULT_FREEZE ? fault->a : 0);
        fault->ended = false;
        break;
    default:
        block_all(world, fault, 1);
        fault->ended = false;
        break;
    }
    world->fault_ever = true;
    if (!fault->ended) {
        post(world, fault->duration, EVENT_FAULT_END, NULL, fault, 0);
    }
}

void fault_end(struct world *world, struct fault *fault) {
    if (!fault->fired || fault->ended) {
        return;
    }
    fault->ended = true;
    trace(world, "FAULT %d ends", (int)(fault - world->faults));
    if (fault->kind == FAULT_FREEZE) {
        thaw(world, fault->a);
    } else if (fault->kind == FAULT_MASTER_FREEZE) {
        thaw(world, 0);
    } else {
        block_all(world, fault, -1);
    }
}

void faults_at_event(struct world *world) {
    for (int i = 0; i < world->fault_count && world->phase == PHASE_ACTIVE; i++) {
        struct fault *fault = &world->faults[i];
        if (!fault->fired && fault->trigger == TRIGGER_EVENT && world->events >= fault->at) {
            fault_fire(world, fault);
        }
    }
}

static void count_message(struct world *world, int sender, uint16_t type) {
    uint64_t seen = ++world->message_seen[type];
    for (int i = 0; i < world->fault_count && world->phase == PHASE_ACTIVE; i++) {
        struct fault *fault = &world->faults[i];
        if (!fault->fired && fault->trigger == TRIGGER_MESSAGE && fault->message == type &&
            seen == fault->at) {
            if (fault->at_sender && sender != 0 && sender != fault->b) {
                fault->a = sender;
            }
            post(world, 0, EVENT_FAULT, NULL, fault, 0);
        }
    }
}

/* Called while a machine acts: what it leads to happens right after. */
void faults_on_message(struct world *world, int sender, const struct message *message) {
    count_message(world, sender, (uint16_t)message->type);
    if (message->type == MESSAGE_READY && message->as.ready.kept_count > 0) {
        count_message(world, sender, READY_THAT_KEEPS);
    } else if (message->type == MESSAGE_COMMIT_EPOCH && message->as.commit_epoch.served_count > 0) {
        count_message(world, sender, COMMIT_EPOCH_THAT_SERVES);
    } else if (message->type == MESSAGE_OP_DONE && message->as.op.returned) {
        count_message(world, sender, OP_DONE_THAT_RETURNED);
    }
}

bool faults_done(const struct world *world) {
    for (int i = 0; i < world->fault_count; i++) {
        const struct fault *fault = &world->faults[i];
        if (!fault->dropped && fault->trigger != TRIGGER_MESSAGE && (!fault->fired || !fault->ended)) {
            return false;
        }
    }
    return true;
}

void faults_stop(struct world *world) {
    for (int i = 0; i < world->fault_count; i++) {
        fault_end(world, &world->faults[i]); /* those that were never fired are past: see fault_fire() */
    }
    memset(world->stall_until, 0, sizeof world->stall_until);
    if (world->at_host[0] < 0) {
        master_start(world, 0);
    }
}
