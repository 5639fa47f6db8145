#define _GNU_SOURCE
#include "net/state_hasher.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "net/clock.h"

enum {
    MAX_HASH_THREADS = 8,
    BYTES_PER_THREAD = 32 * 1024 * 1024, /* below this a thread costs more than it brings */
    LEAVES_PER_TURN = 16,
};

struct work {
    struct state_table *table;
    _Atomic uint64_t next, bytes;
    atomic_bool stop;
};

/* Takes the next leaves and hashes them; false if there are none left. */
static bool hash_some(struct work *work, size_t *tensor) {
    struct state_table *table = work->table;
    uint64_t first = atomic_fetch_add(&work->next, LEAVES_PER_TURN);
    if (first >= table->leaf_count || atomic_load(&work->stop)) {
        return false;
    }
    uint64_t left = table->leaf_count - first, bytes = 0;
    uint64_t end = first + (left < LEAVES_PER_TURN ? left : LEAVES_PER_TURN);
    for (uint64_t leaf = first; leaf < end; leaf++) {
        struct state_leaf place = state_table_leaf(table, leaf, tensor);
        state_hash_leaf(place.bytes, place.size, place.index, &table->hashes[leaf]);
        bytes += place.size;
    }
    atomic_fetch_add(&work->bytes, bytes);
    return true;
}

static void *help(void *argument) {
    struct work *work = argument;
    size_t tensor = 0;
    while (hash_some(work, &tensor)) {
    }
    return NULL;
}

static int count_helpers(const struct state_table *table) {
    cpu_set_t allowed;
    int processors = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
    uint64_t worth = table->leaf_bytes / BYTES_PER_THREAD;
    int threads = processors < MAX_HASH_THREADS ? processors : MAX_HASH_THREADS;
    threads = worth < (uint64_t)threads ? (int)worth : threads;
    return threads > 1 ? threads - 1 : 0;
}

/* As many as the system gives: without any the caller does it all. */
static int start_helpers(struct work *work, pthread_t threads[MAX_HASH_THREADS]) {
    sigset_t all, before;
    sigfillset(&all); /* signals are for the threads of the program */
    if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0) {
        return 0;
    }
    int wanted = count_helpers(work->table), started = 0;
    while (started < wanted && pthread_create(&threads[started], NULL, help, work) == 0) {
        started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

bool state_hash_all(struct state_table *table, bool (*goes_on)(void *context, uint64_t bytes),
                    void *context) {
    struct work work = {.table = table};
    pthread_t threads[MAX_HASH_THREADS];
    int helpers = start_helpers(&work, threads);
    bool good = true;
    size_t tensor = 0;
    uint64_t asked_ns = clock_now_ns();
    while (good && hash_some(&work, &tensor)) {
        uint64_t now_ns = clock_now_ns();
        if (now_ns - asked_ns >= NS_PER_MS) {
            asked_ns = now_ns;
            good = goes_on(context, atomic_load(&work.bytes));
        }
    }
    if (!good) {
        atomic_store(&work.stop, true);
    }
    for (int i = 0; i < helpers; i++) {
        pthread_join(threads[i], NULL);
    }
    return good;
}
