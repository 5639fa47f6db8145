/* Between the users' threads and the net thread of one communicator: calls go in, wait, and come back
 * done; what the user may ask at any time lies here as a copy. One mutex, under which nothing blocks.
 *
 * Exactly one thread at a time drives the loop (net/peer_loop.h), which means that it does what is said of
 * the net thread everywhere else. It is the net thread itself, or, for the time of its call, a user's
 * thread that found the loop parked: the guest. */
#ifndef PCCL_NET_MAILBOX_H
#define PCCL_NET_MAILBOX_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/peer.h"
#include "net/call.h"
#include "net/list.h"

/* Where a thread waits. Waiters are kept until the mailbox goes: the net thread signals them after it has
 * let go of the call, which may be gone by then. */
struct waiter {
    pthread_cond_t wake;
    struct waiter *next_free, *next_made;
};

enum {
    ASYNC_BUCKETS = 1024,
    /* How long the loop is parked after a blocking call, at the most, and how often the net thread looks
     * whether guests still come: longer than what programs do between the ops of a burst, so rarely that it
     * takes no time from them, and so short that what arrives meanwhile may wait. */
    PARK_MS = 5,
};

struct peer_loop;

enum driver {
    DRIVER_NET_THREAD,
    DRIVER_NOBODY, /* parked: the net thread waits here for a guest, until `parked_until_ns` */
    DRIVER_GUEST,
};

struct mailbox {
    pthread_mutex_t mutex;
    struct list posted; /* calls on their way to the net thread */
    struct list queued; /* ops that wait for one of MAX_OPS places, in order */
    uint32_t op_count;  /* places that are taken: by ops that the net thread has */
    bool open;          /* there is a net thread that takes them */
    bool stop;          /* it is to end */
    bool asleep;        /* it has to be woken */
    int wake_fd;        /* eventfd, owned: readable when the net thread has to look here */
    enum driver driver;
    struct peer_loop *parked; /* the loop, unless the net thread drives it */
    uint64_t parked_until_ns; /* when the net thread takes the loop back from nobody */
    struct waiter recall;     /* where the net thread waits while it does not drive */
    struct waiter *free_waiters, *made_waiters;
    struct waiter spare; /* shared by those that found no memory for one of their own */
    struct peer_status status;
    struct list async[ASYNC_BUCKETS]; /* calls that can be awaited, by tag */
    uint32_t async_count;
    uint32_t async_number; /* of the latest */
};

/* 0 or a negative errno value. */
int mailbox_init(struct mailbox *mailbox);
/* No thread may be in it any more. Frees the calls that nobody has awaited. */
void mailbox_free(struct mailbox *mailbox);

/* ---- users' threads ---- */

/* False if no net thread takes calls. Else `call` is the net thread's until it is done. `waits`: the caller
 * goes on to comm_wait_any(), so that a parked loop need not be woken for it. */
bool mailbox_post(struct mailbox *mailbox, struct call *call, bool waits);
/* Waits until one of `calls` is done, or `until_ns` (UINT64_MAX: for ever). Returns its place, or -1. */
int mailbox_wait(struct mailbox *mailbox, struct call *const *calls, int count, uint64_t until_ns);
/* If `call` is not done, lets the net thread free it (by free()) when it is. True if so. */
bool mailbox_abandon(struct mailbox *mailbox, struct call *call);
void mailbox_get_status(struct mailbox *mailbox, struct peer_status *status);
/* Asks the net thread to end. */
void mailbox_stop(struct mailbox *mailbox);
/* The place of the first call that is done, or -1. */
int mailbox_first_done(struct call *const *calls, int count);

/* The loop, if it is parked: the caller has to drive it now. Else NULL. */
struct peer_loop *mailbox_take_over(struct mailbox *mailbox);
/* Ends that. The loop is parked until `until_ns`; 0, or a call that was posted: the net thread goes on. */
void mailbox_hand_back(struct mailbox *mailbox, uint64_t until_ns);

enum mailbox_start {
    MAILBOX_STARTED,
    MAILBOX_SHUT,      /* no net thread takes calls */
    MAILBOX_TAG_TAKEN, /* the op before under its tag is not done yet */
    MAILBOX_FULL,      /* MAX_STARTED_OPS have not been awaited */
};

/* Posts a call that can be awaited from then on, in one step: nobody finds it before it is posted. A finished
 * one with its tag that nobody has awaited is replaced. Once it is started, it is the mailbox's; `*id` tells
 * it from those under its tag before and after. */
enum mailbox_start mailbox_start_async(struct mailbox *mailbox, struct call *call, uint64_t *id);
/* NULL if there is none with this tag and id (0, or one of another tag: any), or if another thread awaits it.
 * The caller alone may wait for it from now on. */
struct call *mailbox_claim_async(struct mailbox *mailbox, uint64_t tag, uint64_t id);
/* After mailbox_claim_async(): takes it out; the call is the caller's to free once it is done. */
void mailbox_remove_async(struct mailbox *mailbox, struct call *call);
/* Whether that call is done; false in *known if there is none. */
bool mailbox_is_async_done(struct mailbox *mailbox, uint64_t tag, uint64_t id, bool *known);

/* ---- the net thread ---- */

void mailbox_open(struct mailbox *mailbox);
/* Makes `wake_fd` unreadable again. */
void mailbox_woken(struct mailbox *mailbox);
/* No calls are taken from now on; those on their way, and those that wait for a place, are moved to `calls`.
 */
void mailbox_shut(struct mailbox *mailbox, struct list *calls);
/* Moves what was posted to `calls`, but for ops beyond MAX_OPS: these follow, in order, in a later call, once
 * others have been completed; *ops_wait says so. If that is nothing and `may_sleep`, the next one to post
 * makes `wake_fd` readable. Returns whether the thread is to end. */
bool mailbox_collect(struct mailbox *mailbox, struct list *calls, bool may_sleep, bool *ops_wait);
/* Lets guests drive `loop`; returns when the caller has to do it again: from `until_ns` on, or sooner if
 * there is work that nobody else does. */
void mailbox_park(struct mailbox *mailbox, struct peer_loop *loop, uint64_t until_ns);
/* `call` has ended as it says; it is not the net thread's any more. */
void mailbox_complete(struct mailbox *mailbox, struct call *call);
/* Before the calls that change it complete. */
void mailbox_publish(struct mailbox *mailbox, const struct peer_status *status);

#endif
