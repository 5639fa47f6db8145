/* The command: runs seeds, and makes a failing one as small as it can.
 *
 *   sim --seed N [--count M] [--trace] [--without 1,4] [--max-hosts H] [--no-jitter] [--wire | --no-wire]
 *   sim --scenario FILE */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/sim/sim.h"

static struct world world;

static void print_line(void *context, const char *text) {
    (void)context;
    puts(text);
}

enum { TOLD_LINES = 120 };

static struct {
    char lines[TOLD_LINES][2 * TEXT_BYTES];
    uint64_t count;
} last_lines;

/* Keeps the end of a story. */
static void keep_line(void *context, const char *text) {
    (void)context;
    char *line = last_lines.lines[last_lines.count++ % TOLD_LINES];
    snprintf(line, sizeof last_lines.lines[0], "%s", text);
}

static void print_last_lines(void) {
    uint64_t first = last_lines.count > TOLD_LINES ? last_lines.count - TOLD_LINES : 0;
    if (first > 0) {
        printf("(%" PRIu64 " lines before; the replay tells all)\n", first);
    }
    for (uint64_t i = first; i < last_lines.count; i++) {
        puts(last_lines.lines[i % TOLD_LINES]);
    }
}

/* A machine that reads or writes out of bounds must not take the seed with it. */
static void died(int signal_number) {
    char text[128];
    int size = snprintf(text, sizeof text, "\nFAILED seed %" PRIu64 ": signal %d\n", world.options.seed,
                        signal_number);
    (void)!write(1, text, (size_t)size);
    _exit(1);
}

static struct sim_result run(const struct sim_options *options) {
    world_run(&world, options);
    return world.result;
}

static bool fails_alike(const struct sim_options *options, int invariant) {
    struct sim_options silent = *options;
    silent.trace = false;
    struct sim_result result = run(&silent);
    return result.failed && result.invariant == invariant;
}

/* Leaves out what the failure does not need: jitter, hosts, faults. */
static struct sim_options shrink(struct sim_options options, int invariant) {
    struct sim_options attempt = options;
    attempt.no_jitter = true;
    if (fails_alike(&attempt, invariant)) {
        options = attempt;
    }
    for (int pass = 0; pass < 2; pass++) {
        for (int fault = 0; fault < MAX_FAULTS; fault++) {
            attempt = options;
            attempt.without |= UINT64_C(1) << fault;
            if (attempt.without != options.without && fault < world.result.faults &&
                fails_alike(&attempt, invariant)) {
                options = attempt;
            }
        }
    }
    return options;
}

static void print_replay(const struct sim_options *options) {
    printf("replay: python -m tests.sim --seed %" PRIu64 " --trace%s%s", options->seed,
           options->wire ? " --wire" : " --no-wire", options->no_jitter ? " --no-jitter" : "");
    if (options->max_hosts != 0) {
        printf(" --max-hosts %d", options->max_hosts);
    }
    for (int fault = 0, first = 1; fault < MAX_FAULTS; fault++) {
        if ((options->without >> fault & 1) != 0 && fault < world.result.faults) {
            printf("%s%d", first ? " --without " : ",", fault);
            first = 0;
        }
    }
    printf("\n");
}

static void report_failure(const struct sim_options *options, const struct sim_result *result, bool small) {
    printf("FAILED seed %" PRIu64 ": invariant %d: %s\n", options->seed, result->invariant, result->text);
    struct sim_options smallest = small ? shrink(*options, result->invariant) : *options;
    smallest.trace = true;
    trace_set_output(keep_line, NULL);
    run(&smallest);
    print_last_lines();
    print_replay(&smallest);
}

struct totals {
    uint64_t seeds, failures, events, fewest_events, committed, failed, epochs, evictions;
    uint64_t returned, served, implied;
    uint64_t by_invariant[8];
};

static void count(struct totals *totals, const struct sim_result *result) {
    totals->seeds++;
    totals->events += result->events;
    totals->fewest_events =
        totals->seeds == 1 || result->events < totals->fewest_events ? result->events : totals->fewest_events;
    totals->committed += result->ops_committed;
    totals->failed += result->ops_failed;
    totals->returned += result->ops_returned;
    totals->served += result->ops_served;
    totals->implied += result->ops_implied;
    totals->epochs += result->epochs;
    totals->evictions += result->evictions;
}

struct arguments {
    struct sim_options options;
    uint64_t count, keep_going;
    int wire; /* -1: each fourth seed */
    bool small;
    const char *scenario;
};

static uint64_t parse_list(const char *list) {
    uint64_t mask = 0;
    while (*list != '\0') {
        char *end;
        mask |= UINT64_C(1) << (strtoul(list, &end, 10) % MAX_FAULTS);
        list = *end == ',' ? end + 1 : end + strlen(end);
    }
    return mask;
}

static bool parse_flag(struct arguments *arguments, const char *name) {
    if (strcmp(name, "--trace") == 0) {
        arguments->options.trace = true;
    } else if (strcmp(name, "--no-jitter") == 0) {
        arguments->options.no_jitter = true;
    } else if (strcmp(name, "--wire") == 0) {
        arguments->wire = 1;
    } else if (strcmp(name, "--no-wire") == 0) {
        arguments->wire = 0;
    } else if (strcmp(name, "--no-shrink") == 0) {
        arguments->small = false;
    } else {
        return false;
    }
    return true;
}

static bool parse_value(struct arguments *arguments, const char *name, const char *value) {
    if (strcmp(name, "--seed") == 0) {
        arguments->options.seed = strtoull(value, NULL, 10);
    } else if (strcmp(name, "--count") == 0) {
        arguments->count = strtoull(value, NULL, 10);
    } else if (strcmp(name, "--without") == 0) {
        arguments->options.without = parse_list(value);
    } else if (strcmp(name, "--max-hosts") == 0) {
        arguments->options.max_hosts = atoi(value);
    } else if (strcmp(name, "--keep-going") == 0) {
        arguments->keep_going = strtoull(value, NULL, 10);
    } else if (strcmp(name, "--scenario") == 0) {
        arguments->scenario = value;
    } else {
        return false;
    }
    return true;
}

static bool parse(struct arguments *arguments, int count_given, char **given) {
    *arguments = (struct arguments){.count = 1, .wire = -1, .small = true};
    for (int i = 1; i < count_given; i++) {
        if (parse_flag(arguments, given[i])) {
            continue;
        }
        if (i + 1 == count_given || !parse_value(arguments, given[i], given[i + 1])) {
            fprintf(stderr, "sim: %s is not understood\n", given[i]);
            return false;
        }
        i++;
    }
    return true;
}

static uint64_t run_seeds(struct arguments *arguments, struct totals *totals) {
    for (uint64_t i = 0; i < arguments->count; i++) {
        struct sim_options options = arguments->options;
        options.seed += i;
        options.wire = arguments->wire >= 0 ? arguments->wire == 1 : options.seed % 4 == 0;
        struct sim_result result = run(&options);
        count(totals, &result);
        if (!result.failed) {
            continue;
        }
        totals->by_invariant[result.invariant]++;
        if (totals->failures++ < arguments->keep_going) {
            printf("FAILED seed %" PRIu64 ": invariant %d: %s\n", options.seed, result.invariant,
                   result.text);
            continue;
        }
        if (arguments->keep_going == 0) {
            if (options.trace) {
                print_replay(&options);
            } else {
                report_failure(&options, &result, arguments->small);
            }
        }
        break;
    }
    return totals->failures;
}

int main(int argc, char **argv) {
    struct arguments arguments;
    if (!parse(&arguments, argc, argv)) {
        return 2;
    }
    trace_set_output(print_line, NULL);
    if (arguments.scenario != NULL) {
        return script_run(arguments.scenario, print_line, NULL);
    }
    signal(SIGSEGV, died);
    signal(SIGBUS, died);
    signal(SIGABRT, died);
    struct totals totals = {0};
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    uint64_t failures = run_seeds(&arguments, &totals);
    clock_gettime(CLOCK_MONOTONIC, &after);
    double seconds = (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9;
    printf("%" PRIu64 " seeds, %" PRIu64 " failed, %" PRIu64 " events (%" PRIu64 " at least), %" PRIu64
           " ops ended well at a peer (%" PRIu64 " early, %" PRIu64 " served by others, %" PRIu64
           " committed by the next), %" PRIu64 " failed, %" PRIu64 " epochs, %" PRIu64 " put out, %.1f s\n",
           totals.seeds, failures, totals.events, totals.fewest_events, totals.committed, totals.returned,
           totals.served, totals.implied, totals.failed, totals.epochs, totals.evictions, seconds);
    return failures == 0 ? 0 : 1;
}
