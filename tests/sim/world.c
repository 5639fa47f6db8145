/* The world: one heap of events, one clock, one arena. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "tests/sim/sim.h"

/* ---- memory of a run ---- */

enum { ARENA_BLOCK_BYTES = 4 << 20 };

static struct block {
    struct block *next;
    size_t used, capacity;
    max_align_t bytes[];
} *first_block, *current_block;

static struct block *block_make(size_t capacity) {
    struct block *block = malloc(sizeof *block + capacity);
    if (block == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    block->next = NULL;
    block->used = 0;
    block->capacity = capacity;
    return block;
}

void *arena_take(size_t bytes) {
    bytes = (bytes + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    if (current_block == NULL) {
        first_block = current_block = block_make(ARENA_BLOCK_BYTES);
    }
    while (current_block->used + bytes > current_block->capacity) {
        if (current_block->next == NULL) {
            current_block->next = block_make(bytes > ARENA_BLOCK_BYTES ? bytes : ARENA_BLOCK_BYTES);
        }
        current_block = current_block->next;
        current_block->used = 0;
    }
    void *memory = (char *)current_block->bytes + current_block->used;
    current_block->used += bytes;
    memset(memory, 0, bytes);
    return memory;
}

void arena_reset(void) {
    current_block = first_block;
    if (first_block != NULL) {
        first_block->used = 0;
    }
}

/* ---- chance ---- */

uint64_t below(struct random_source *source, uint64_t bound) {
    return bound == 0 ? 0 : random_next(source) % bound;
}

bool chance(struct random_source *source, unsigned percent) {
    return below(source, 100) < percent;
}

/* ---- failure ---- */

static struct world *running;

void violate(struct world *world, int invariant, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(world->result.text, sizeof world->result.text, format, arguments);
    va_end(arguments);
    world->result.failed = true;
    world->result.invariant = invariant;
    trace(world, "VIOLATION of invariant %d: %s", invariant, world->result.text);
    longjmp(world->escape, 1);
}

/* Takes the place of base/check.c: a machine that finds a mistake of its own ends the run, not us. */
noreturn void check_failed(const char *file, int line, const char *expression) {
    if (running == NULL) {
        fprintf(stderr, "%s:%d: check failed: %s\n", file, line, expression);
        abort();
    }
    violate(running, 0, "%s:%d: check failed: %s", file, line, expression);
}

/* ---- events ---- */

static bool comes_before(const struct event *a, const struct event *b) {
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

static void heap_push(struct world *world, struct event event) {
    if (world->heap_count == world->heap_capacity) {
        world->heap_capacity = world->heap_capacity == 0 ? 1024 : 2 * world->heap_capacity;
        world->heap = realloc(world->heap, world->heap_capacity * sizeof *world->heap);
    }
    size_t hole = world->heap_count++;
    while (hole > 0 && comes_before(&event, &world->heap[(hole - 1) / 2])) {
        world->heap[hole] = world->heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    world->heap[hole] = event;
}

static struct event heap_pop(struct world *world) {
    struct event top = world->heap[0];
    struct event last = world->heap[--world->heap_count];
    size_t hole = 0;
    for (;;) {
        size_t child = 2 * hole + 1;
        if (child >= world->heap_count) {
            break;
        }
        if (child + 1 < world->heap_count && comes_before(&world->heap[child + 1], &world->heap[child])) {
            child++;
        }
        if (!comes_before(&world->heap[child], &last)) {
            break;
        }
        world->heap[hole] = world->heap[child];
        hole = child;
    }
    world->heap[hole] = last;
    return top;
}

void post(struct world *world, uint64_t delay, enum event_kind kind, struct process *process, void *pointer,
          uint64_t number) {
    heap_push(world, (struct event){.at = world->now + delay,
                                    .order = world->order++,
                                    .kind = kind,
                                    .process = process,
                                    .pointer = pointer,
                                    .number = number});
}

void repost(struct world *world, const struct event *event, uint64_t delay) {
    post(world, delay, event->kind, event->process, event->pointer, event->number);
}

static void hold_back(const struct event *event) {
    struct event_list *entry = arena_take(sizeof *entry);
    entry->event = *event;
    *event->process->backlog_tail = entry;
    event->process->backlog_tail = &entry->next;
}

static void handle(struct world *world, const struct event *event) {
    struct process *process = event->process;
    switch (event->kind) {
    case EVENT_PIPE:
        net_pipe(world, event->pointer, (int)event->number, event);
        break;
    case EVENT_TIMER:
        if (process->timer_at == event->number) {
            process->timer_at = NEVER;
            process_tick(process);
        }
        break;
    case EVENT_USER:
        user_step(process);
        break;
    case EVENT_PEER:
        process_posted(process, event->pointer);
        break;
    case EVENT_SYNC:
        sync_stepped(process, event->pointer);
        break;
    case EVENT_MASTER_CLOSED:
        master_closed(process, event->pointer, "closed");
        break;
    case EVENT_ATTEMPT:
        net_attempt(world, event->pointer, event);
        break;
    case EVENT_ESTABLISHED:
        net_established(world, event->pointer);
        break;
    case EVENT_LINK_TIMER:
        link_timer(event->pointer);
        break;
    case EVENT_FAULT:
        fault_fire(world, event->pointer);
        break;
    case EVENT_FAULT_END:
        fault_end(world, event->pointer);
        break;
    case EVENT_RESTART:
        if (event->number == 0 && world->at_host[0] < 0) {
            master_start(world, 0);
        } else if (event->number == 0 || world->at_host[event->number] >= 0) {
            break;
        } else if (world->phase == PHASE_ACTIVE || world->scripted) {
            process_start(world, (int)event->number, UINT32_MAX, 0);
        }
        break;
    case EVENT_PHASE:
        phase_tick(world);
        break;
    }
}

void world_loop(struct world *world, uint64_t until) {
    while (world->heap_count > 0 && world->heap[0].at <= until && world->phase != PHASE_OVER) {
        struct event event = heap_pop(world);
        world->now = event.at;
        if (event.process != NULL) {
            if (!event.process->alive) {
                continue;
            }
            if (event.process->frozen) {
                hold_back(&event);
                continue;
            }
        }
        world->events++;
        handle(world, &event);
        if (!world->scripted) {
            faults_at_event(world);
        }
        if (world->events > 400000) {
            violate(world, 4, "the run does not end: %llu events in %.1f s",
                    (unsigned long long)world->events, (double)world->now / 1e9);
        }
    }
    if (until != NEVER && world->now < until) {
        world->now = until;
    }
}

/* ---- a run ---- */

static void draw_configuration(struct world *world) {
    struct random_source source = {world->options.seed * UINT64_C(0xd1342543de82ef95) + 7};
    world->hosts = 2 + (int)below(&source, chance(&source, 25) ? 15 : 6);
    if (world->options.max_hosts != 0 && world->hosts > world->options.max_hosts) {
        world->hosts = world->options.max_hosts;
    }
    world->groups = chance(&source, 60) ? 1 : 2 + (int)below(&source, 2);
    world->timeout_ns = chance(&source, 70) ? SECOND : 400 * MILLISECOND + below(&source, 3000) * MILLISECOND;
    world->latency_ns = 20000 + below(&source, chance(&source, 50) ? 200000 : 20 * MILLISECOND);
    world->jitter_ns = world->options.no_jitter ? 0 : below(&source, 2 * world->latency_ns);
    world->streams = (uint16_t)(1 + below(&source, MAX_SIM_STREAMS));
    world->eager_op_bytes = chance(&source, 30) ? 0 : 64 + below(&source, 2048);
    world->eager_window_bytes = chance(&source, 30) ? 64 + below(&source, 512) : 1 << 20;
    world->straggler_ns = 0;
    world->think_ns = (const uint64_t[]){2000, MILLISECOND, MILLISECOND, 30 * MILLISECOND}[below(&source, 4)];
    world->skewed = chance(&source, 40);
    world->faultless = chance(&source, 10);
    world->wrong_users = !world->faultless && chance(&source, 25);
    world->uneven_timeouts = chance(&source, 30);
    world->active_rounds = 4 + below(&source, 8);
    if (world->wrong_users) {
        world->straggler_ns = 2 * world->timeout_ns;
    } else if (!world->faultless && chance(&source, 20)) {
        world->straggler_ns = world->timeout_ns / 2; /* sooner than who is silent is given up */
    }
}

void world_prepare(struct world *world, const struct sim_options *options) {
    struct event *heap = world->heap;
    size_t capacity = world->heap_capacity;
    memset(world, 0, offsetof(struct world, scratch)); /* a machine's scratch needs no clearing */
    world->script = NULL;
    world->heap = heap;
    world->heap_capacity = capacity;
    arena_reset();
    world->options = *options;
    world->random_net = (struct random_source){options->seed * 3 + 1};
    world->random_user = (struct random_source){options->seed * 5 + UINT64_C(0x1000000000000)};
    world->random_fault = (struct random_source){options->seed * 7 + UINT64_C(0x2000000000000)};
    for (int host = 0; host < MAX_HOSTS; host++) {
        world->at_host[host] = -1;
    }
    draw_configuration(world);
    running = world;
}

void world_release(struct world *world) {
    for (int i = 0; i < world->process_count; i++) {
        free(world->processes[i]->master);
        free(world->processes[i]->peer);
    }
    world->process_count = 0;
    running = NULL;
}

static void start_all(struct world *world) {
    master_start(world, 0);
    faults_plan(world);
    int early = world->faultless ? world->hosts : 1 + (int)below(&world->random_user, (uint64_t)world->hosts);
    for (int host = 1; host <= early; host++) {
        process_start(world, host, UINT32_MAX, 0);
    }
    post(world, world->timeout_ns / 4, EVENT_PHASE, NULL, NULL, 0);
    world->end_round = world->calm_round = world->vote_event = NEVER;
    world->last_progress = 0;
}

static void collect(struct world *world) {
    struct sim_result *result = &world->result;
    result->events = world->events;
    result->ops_committed = world->committed;
    result->ops_returned = world->returned;
    result->ops_served = world->served;
    result->ops_implied = world->implied;
    result->ops_failed = world->failed;
    result->evictions = world->evictions;
    result->sim_ns = world->now;
    result->faults = world->fault_count;
    result->epochs = 0;
    for (const struct epoch_record *epoch = world->epochs; epoch != NULL; epoch = epoch->next) {
        result->epochs += epoch->committed;
    }
}

void world_run(struct world *world, const struct sim_options *options) {
    world_prepare(world, options);
    if (setjmp(world->escape) == 0) {
        start_all(world);
        world_loop(world, NEVER);
        if (world->phase != PHASE_OVER) {
            violate(world, 4, "nothing is left to happen, and the run is not over");
        }
    }
    collect(world);
    world_release(world);
}
