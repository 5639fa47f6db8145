/* Threads that help the one that drives the loop with the bytes of large ops: it deals out what is to be done
 * in a turn, takes its own share, and goes on when all is done. Between two turns they own nothing and touch
 * nothing, so that the machine, the engine and the links need no locks. They start with the first turn that
 * is dealt out, and sleep when there is none. */
#ifndef PCCL_NET_DATA_THREADS_H
#define PCCL_NET_DATA_THREADS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"

enum { MAX_SHARES = 2 * MAX_STREAMS }; /* of one turn */

struct data_threads;

struct data_helper {
    pthread_t thread;
    struct data_threads *crew;
    uint32_t number; /* from 1 on; the driver is 0 */
};

struct data_threads {
    /* That may work at once, the driving one included. Whoever drives may set it anew between two turns; it
     * falls back to what there is if no more can be started. */
    uint32_t threads;
    void (*work)(void *share);

    struct data_helper helpers[MAX_DATA_THREADS - 1];
    uint32_t started; /* of them */
    void *shares[MAX_SHARES];
    atomic_uint_least64_t ticket; /* number of the turn, who may help, its shares, those taken */
    atomic_uint left;             /* shares that are not done */
    atomic_uint asleep;           /* helpers */
    atomic_bool stop, driver_sleeps;
    pthread_mutex_t mutex; /* for sleeping only */
    pthread_cond_t dealt, done;
};

/* `work` does one share, in any of the threads. Until `threads` is set it is 1. */
void data_threads_init(struct data_threads *crew, void (*work)(void *share));
/* Waits for the end of the helpers. */
void data_threads_free(struct data_threads *crew);
/* Returns when all shares are done, at most MAX_SHARES of them. One thread at a time. */
void data_threads_run(struct data_threads *crew, void *const *shares, uint32_t count);

#endif
