#define _GNU_SOURCE
#include "net/data_threads.h"

#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "net/clock.h"

/* How long to look for the next turn, or for the end of this one, before sleeping: to be woken takes as long
 * as a good part of a share. */
static const uint64_t patience_ns = 50000;

/* ---- shares ---- */

/* A ticket has all that tells shares apart, so that a helper which comes late can't take one of a turn that
 * it does not know: 32 bits number of the turn, 8 bits number of the last one that may help, 12 bits
 * shares dealt out, 12 bits taken. */
static uint64_t first_ticket(uint64_t previous, uint32_t helpers, uint32_t count) {
    return ((previous >> 32) + 1) << 32 | (uint64_t)helpers << 24 | (uint64_t)count << 12;
}

_Static_assert(MAX_DATA_THREADS <= 0x100 && MAX_SHARES < 0x1000, "a ticket has room for them");

static uint32_t dealt_of(uint64_t ticket) {
    return (uint32_t)(ticket >> 12 & 0xfff);
}

static uint32_t taken_of(uint64_t ticket) {
    return (uint32_t)(ticket & 0xfff);
}

/* There is one for this thread. When the crew was made smaller, those beyond sleep. */
static bool is_for(uint64_t ticket, uint32_t number) {
    return taken_of(ticket) < dealt_of(ticket) && number <= (ticket >> 24 & 0xff);
}

static bool has_share(struct data_threads *crew, uint32_t number) {
    return is_for(atomic_load(&crew->ticket), number);
}

static void *take_share(struct data_threads *crew, uint32_t number) {
    uint64_t ticket = atomic_load(&crew->ticket);
    while (is_for(ticket, number)) {
        if (atomic_compare_exchange_weak(&crew->ticket, &ticket, ticket + 1)) {
            return crew->shares[taken_of(ticket)];
        }
    }
    return NULL;
}

static void work_off(struct data_threads *crew, uint32_t number) {
    void *share;
    while ((share = take_share(crew, number)) != NULL) {
        crew->work(share);
        /* Either the driver sees that none is left, or we see that it sleeps. */
        if (atomic_fetch_sub(&crew->left, 1) == 1 && atomic_load(&crew->driver_sleeps)) {
            pthread_mutex_lock(&crew->mutex);
            pthread_cond_signal(&crew->done);
            pthread_mutex_unlock(&crew->mutex);
        }
    }
}

/* ---- helpers ---- */

/* Yields the core after each look: whoever needs it may be the one that we wait for. */
static bool comes_soon(struct data_threads *crew, uint32_t number,
                       bool (*come)(struct data_threads *crew, uint32_t number)) {
    uint64_t end_ns = clock_now_ns() + patience_ns;
    do {
        if (come(crew, number)) {
            return true;
        }
        sched_yield();
    } while (clock_now_ns() < end_ns);
    return false;
}

static bool has_news(struct data_threads *crew, uint32_t number) {
    return has_share(crew, number) || atomic_load(&crew->stop);
}

static void sleep_until_dealt(struct data_threads *crew, uint32_t number) {
    pthread_mutex_lock(&crew->mutex);
    atomic_fetch_add(&crew->asleep, 1);
    while (!has_news(crew, number)) {
        pthread_cond_wait(&crew->dealt, &crew->mutex);
    }
    atomic_fetch_sub(&crew->asleep, 1);
    pthread_mutex_unlock(&crew->mutex);
}

static void *help(void *argument) {
    struct data_helper *helper = argument;
    struct data_threads *crew = helper->crew;
    while (!atomic_load(&crew->stop)) {
        work_off(crew, helper->number);
        if (!comes_soon(crew, helper->number, has_news)) {
            sleep_until_dealt(crew, helper->number);
        }
    }
    return NULL;
}

/* On the cores of the process: whoever starts them may have bound itself to one. */
static bool start_helper(struct data_threads *crew) {
    struct data_helper *helper = &crew->helpers[crew->started];
    *helper = (struct data_helper){.crew = crew, .number = crew->started + 1};
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) {
        return false;
    }
    cpu_set_t cores;
    if (sched_getaffinity(getpid(), sizeof cores, &cores) == 0) { /* of the main thread, as in net/cores */
        pthread_attr_setaffinity_np(&attributes, sizeof cores, &cores);
    }
    bool started = pthread_create(&helper->thread, &attributes, help, helper) == 0;
    pthread_attr_destroy(&attributes);
    if (started) {
        pthread_setname_np(helper->thread, "pccl-data");
    }
    return started;
}

/* As many as are wanted, or as can be had. */
static void start_helpers(struct data_threads *crew) {
    sigset_t all, before;
    sigfillset(&all); /* signals are for the threads of the program */
    if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0) {
        return;
    }
    while (crew->started + 1 < crew->threads && start_helper(crew)) {
        crew->started++;
    }
    crew->threads = crew->started + 1; /* until it is set anew */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- the driver ---- */

void data_threads_init(struct data_threads *crew, void (*work)(void *share)) {
    memset(crew, 0, sizeof *crew);
    crew->threads = 1;
    crew->work = work;
    pthread_mutex_init(&crew->mutex, NULL);
    pthread_cond_init(&crew->dealt, NULL);
    pthread_cond_init(&crew->done, NULL);
}

void data_threads_free(struct data_threads *crew) {
    pthread_mutex_lock(&crew->mutex);
    atomic_store(&crew->stop, true);
    pthread_cond_broadcast(&crew->dealt);
    pthread_mutex_unlock(&crew->mutex);
    for (uint32_t i = 0; i < crew->started; i++) {
        pthread_join(crew->helpers[i].thread, NULL);
    }
    pthread_cond_destroy(&crew->done);
    pthread_cond_destroy(&crew->dealt);
    pthread_mutex_destroy(&crew->mutex);
}

/* Those that are awake find the shares by themselves. */
static void wake_helpers(struct data_threads *crew, uint32_t wanted) {
    uint32_t asleep = atomic_load(&crew->asleep), awake = crew->started - asleep;
    bool all_help = crew->started + 1 <= crew->threads;
    if (asleep == 0 || (all_help && awake >= wanted)) {
        return;
    }
    pthread_mutex_lock(&crew->mutex);
    if (!all_help) { /* a signal might go to one that is not to help */
        pthread_cond_broadcast(&crew->dealt);
    }
    for (uint32_t i = awake; i < wanted && all_help; i++) {
        pthread_cond_signal(&crew->dealt);
    }
    pthread_mutex_unlock(&crew->mutex);
}

static bool is_done(struct data_threads *crew, uint32_t number) {
    (void)number;
    return atomic_load(&crew->left) == 0;
}

static void wait_until_done(struct data_threads *crew) {
    if (comes_soon(crew, 0, is_done)) {
        return;
    }
    pthread_mutex_lock(&crew->mutex);
    atomic_store(&crew->driver_sleeps, true);
    while (!is_done(crew, 0)) {
        pthread_cond_wait(&crew->done, &crew->mutex);
    }
    atomic_store(&crew->driver_sleeps, false);
    pthread_mutex_unlock(&crew->mutex);
}

void data_threads_run(struct data_threads *crew, void *const *shares, uint32_t count) {
    CHECK(count <= MAX_SHARES && crew->threads >= 1 && crew->threads <= MAX_DATA_THREADS);
    if (crew->started + 1 < crew->threads) {
        start_helpers(crew);
    }
    memcpy(crew->shares, shares, count * sizeof shares[0]);
    atomic_store(&crew->left, count);
    atomic_store(&crew->ticket, first_ticket(atomic_load(&crew->ticket), crew->threads - 1, count));
    uint32_t others = crew->threads < count ? crew->threads - 1 : count - 1;
    wake_helpers(crew, others < crew->started ? others : crew->started);
    work_off(crew, 0);
    wait_until_done(crew);
}
