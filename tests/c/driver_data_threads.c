/* Turns dealt out to data threads, many of them, after pauses in which they have gone to sleep or are about
 * to: each share is done once, none after its turn has ended, and none is forgotten. */
#include <pthread.h>
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
static pthread_t driver;

static void count(void *share) {
    struct counted *counted = share;
    counted->done++;
    if (!pthread_equal(pthread_self(), driver)) {
        atomic_fetch_add(&done_elsewhere, 1);
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

int main(void) {
    driver = pthread_self();
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
    printf("all good\n");
    return 0;
}
