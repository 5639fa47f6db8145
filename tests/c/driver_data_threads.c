/* Turns dealt out to data threads, many of them, after pauses in which they have gone to sleep or are about
 * to: each share is done once, none after its turn has ended, and none is forgotten. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"
#include "net/data_threads.h"

enum { ROUNDS = 20000, PAUSES_US = 150 };

struct counted {
    uint32_t done; /* times; not atomic: who runs the turn sees it when it has ended */
};

static atomic_uint done_elsewhere;
static atomic_bool bound; /* a share was done by a thread that is bound to fewer cores than the process */
static uint32_t cores;    /* of the process */
static atomic_uint seen;  /* threads that have done a share since the look began */
static atomic_uint looks; /* its number */
static _Thread_local uint32_t last_look;
static pthread_t driver;

static uint32_t count_cores(void) {
    cpu_set_t set;
    REQUIRE(sched_getaffinity(0, sizeof set, &set) == 0, "affinity");
    return (uint32_t)CPU_COUNT(&set);
}

static void count(void *share) {
    struct counted *counted = share;
    counted->done++;
    if (!pthread_equal(pthread_self(), driver)) {
        atomic_fetch_add(&done_elsewhere, 1);
        if (count_cores() < cores) {
            atomic_store(&bound, true);
        }
    }
    if (last_look != atomic_load(&looks)) {
        last_look = atomic_load(&looks);
        atomic_fetch_add(&seen, 1);
    }
    for (volatile int i = 0; i < 200; i++) {
    }
}

static uint32_t next_random(uint32_t *state) {
    return *state = *state * 1664525u + 1013904223u;
}

static void run_turn(struct data_threads *crew, uint32_t shares) {
    struct counted counted[MAX_SHARES];
    void *pointers[MAX_SHARES];
    memset(counted, 0, sizeof counted);
    for (uint32_t i = 0; i < shares; i++) {
        pointers[i] = &counted[i];
    }
    data_threads_run(crew, pointers, shares);
    for (uint32_t i = 0; i < shares; i++) {
        REQUIRE(counted[i].done == 1, "share %u of %u was done %u times", i, shares, counted[i].done);
    }
}

static void run_turns(uint32_t threads, uint32_t rounds) {
    struct data_threads crew;
    uint32_t random = threads;
    data_threads_init(&crew, count);
    crew.threads = threads;
    REQUIRE(crew.started == 0, "they start with the first turn");
    for (uint32_t round = 0; round < rounds; round++) {
        run_turn(&crew, round % 1000 == 0 ? MAX_SHARES : 2 + (next_random(&random) >> 8) % 8);
        if (round % 8 == 0) {
            usleep((next_random(&random) >> 8) % PAUSES_US);
        }
    }
    REQUIRE(crew.started == threads - 1, "%u of %u", crew.started, threads);
    data_threads_free(&crew);
    printf("%u threads: good\n", threads);
    fflush(stdout);
}

/* A crew that is made smaller works with so many threads and no more. */
static void shrink(void) {
    struct data_threads crew;
    uint32_t random = 1;
    data_threads_init(&crew, count);
    for (uint32_t threads = 8; threads >= 1; threads /= 2) {
        crew.threads = threads;
        atomic_store(&seen, 0);
        atomic_fetch_add(&looks, 1);
        for (int round = 0; round < 1000; round++) {
            run_turn(&crew, 2 + (next_random(&random) >> 8) % 8);
            if (round % 64 == 0) {
                usleep(PAUSES_US);
            }
        }
        REQUIRE(atomic_load(&seen) <= threads, "%u of %u", atomic_load(&seen), threads);
    }
    data_threads_free(&crew);
    printf("made smaller: good\n");
}

/* Helpers that are started by a thread which is bound to one core use those of the process. */
static void *run_bound(void *unused) {
    cpu_set_t all, one;
    REQUIRE(sched_getaffinity(0, sizeof all, &all) == 0, "affinity");
    size_t first = 0;
    while (!CPU_ISSET(first, &all)) {
        first++;
    }
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0, "bind");
    driver = pthread_self();
    run_turns(4, 500);
    return unused;
}

int main(void) {
    driver = pthread_self();
    cores = count_cores();
    run_turns(1, 100);
    REQUIRE(atomic_load(&done_elsewhere) == 0, "alone");
    for (uint32_t threads = 2; threads <= MAX_DATA_THREADS; threads *= 2) {
        run_turns(threads, ROUNDS / threads);
    }
    REQUIRE(atomic_load(&done_elsewhere) > 0, "nobody has helped");
    for (int i = 0; i < 500; i++) { /* that end before they have found out what to do */
        struct data_threads crew;
        data_threads_init(&crew, count);
        crew.threads = 3;
        run_turn(&crew, 2);
        data_threads_free(&crew);
    }
    shrink();
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, run_bound, NULL) == 0, "thread");
    pthread_join(thread, NULL);
    REQUIRE(!atomic_load(&bound), "helpers are bound as the thread was that has started them");
    printf("all good\n");
    return 0;
}
