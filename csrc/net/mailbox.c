#define _GNU_SOURCE
#include "net/mailbox.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"
#include "net/clock.h"
#include "net/descriptors.h"

static bool init_waiter(struct waiter *waiter) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) {
        return false;
    }
    bool good = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                pthread_cond_init(&waiter->wake, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    return good;
}

static struct waiter *make_waiter(void) {
    struct waiter *waiter = calloc(1, sizeof *waiter);
    if (waiter != NULL && !init_waiter(waiter)) {
        free(waiter);
        waiter = NULL;
    }
    return waiter;
}

int mailbox_init(struct mailbox *mailbox) {
    *mailbox = (struct mailbox){.wake_fd = -1};
    mailbox->wake_fd = DESCRIPTOR(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (mailbox->wake_fd < 0) {
        return mailbox->wake_fd;
    }
    if (pthread_mutex_init(&mailbox->mutex, NULL) != 0) {
        descriptor_close(mailbox->wake_fd);
        return -ENOMEM;
    }
    bool good = init_waiter(&mailbox->spare);
    if (!good || !init_waiter(&mailbox->recall)) {
        if (good) {
            pthread_cond_destroy(&mailbox->spare.wake);
        }
        pthread_mutex_destroy(&mailbox->mutex);
        descriptor_close(mailbox->wake_fd);
        return -ENOMEM;
    }
    list_init(&mailbox->posted);
    list_init(&mailbox->queued);
    for (int i = 0; i < ASYNC_BUCKETS; i++) {
        list_init(&mailbox->async[i]);
    }
    return 0;
}

void mailbox_free(struct mailbox *mailbox) {
    CHECK(list_is_empty(&mailbox->posted) && list_is_empty(&mailbox->queued) && !mailbox->open);
    for (int i = 0; i < ASYNC_BUCKETS; i++) {
        while (!list_is_empty(&mailbox->async[i])) {
            struct call *call = LIST_ENTRY(mailbox->async[i].next, struct call, async_node);
            list_remove(&call->async_node);
            free(call);
        }
    }
    while (mailbox->made_waiters != NULL) {
        struct waiter *waiter = mailbox->made_waiters;
        mailbox->made_waiters = waiter->next_made;
        pthread_cond_destroy(&waiter->wake);
        free(waiter);
    }
    pthread_cond_destroy(&mailbox->recall.wake);
    pthread_cond_destroy(&mailbox->spare.wake);
    pthread_mutex_destroy(&mailbox->mutex);
    descriptor_close(mailbox->wake_fd);
}

/* ---- users' threads ---- */

static void wake(int fd) {
    uint64_t one = 1;
    ssize_t written;
    do {
        written = write(fd, &one, sizeof one);
    } while (written < 0 && errno == EINTR);
    CHECK(written == (ssize_t)sizeof one || errno == EAGAIN); /* EAGAIN: it is awake all the more */
}

/* With the mutex held. True if the net thread has to be signalled. */
static bool recall_parked(struct mailbox *mailbox) {
    bool parked = mailbox->driver == DRIVER_NOBODY;
    if (parked) {
        mailbox->driver = DRIVER_NET_THREAD;
    }
    return parked;
}

/* What the net thread has to be told after a call was posted, and the mutex let go of. */
struct news {
    bool wake, recall;
};

/* With the mutex held, of a mailbox that is open. */
static struct news post(struct mailbox *mailbox, struct call *call, bool waits) {
    struct news news = {.wake = mailbox->asleep, .recall = !waits && recall_parked(mailbox)};
    list_append(&mailbox->posted, &call->node);
    mailbox->asleep = false;
    return news;
}

static void tell(struct mailbox *mailbox, struct news news) {
    if (news.wake) {
        wake(mailbox->wake_fd);
    }
    if (news.recall) {
        pthread_cond_signal(&mailbox->recall.wake);
    }
}

bool mailbox_post(struct mailbox *mailbox, struct call *call, bool waits) {
    atomic_init(&call->done, false);
    call->waiter = NULL;
    struct news news = {0};
    pthread_mutex_lock(&mailbox->mutex);
    bool open = mailbox->open;
    if (open) {
        news = post(mailbox, call, waits);
    }
    pthread_mutex_unlock(&mailbox->mutex);
    tell(mailbox, news);
    return open;
}

/* With the mutex held, which it lets go of meanwhile. */
static struct waiter *take_waiter(struct mailbox *mailbox) {
    struct waiter *waiter = mailbox->free_waiters;
    if (waiter != NULL) {
        mailbox->free_waiters = waiter->next_free;
        return waiter;
    }
    pthread_mutex_unlock(&mailbox->mutex);
    waiter = make_waiter();
    pthread_mutex_lock(&mailbox->mutex);
    if (waiter == NULL) {
        return &mailbox->spare;
    }
    waiter->next_made = mailbox->made_waiters;
    mailbox->made_waiters = waiter;
    return waiter;
}

static void give_waiter(struct mailbox *mailbox, struct waiter *waiter) {
    if (waiter != &mailbox->spare) {
        waiter->next_free = mailbox->free_waiters;
        mailbox->free_waiters = waiter;
    }
}

int mailbox_first_done(struct call *const *calls, int count) {
    for (int i = 0; i < count; i++) {
        if (atomic_load_explicit(&calls[i]->done, memory_order_acquire)) {
            return i;
        }
    }
    return -1;
}

/* With the mutex held. False if `until_ns` has come (UINT64_MAX: never) and nobody has signalled. */
static bool wait_for_signal(struct mailbox *mailbox, struct waiter *waiter, uint64_t until_ns) {
    if (until_ns == UINT64_MAX) {
        pthread_cond_wait(&waiter->wake, &mailbox->mutex);
        return true;
    }
    struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_S), .tv_nsec = (long)(until_ns % NS_PER_S)};
    return pthread_cond_timedwait(&waiter->wake, &mailbox->mutex, &until) != ETIMEDOUT;
}

/* With the mutex held. */
static int wait_on(struct mailbox *mailbox, struct waiter *waiter, struct call *const *calls, int count,
                   uint64_t until_ns) {
    bool signalled = true;
    int found = mailbox_first_done(calls, count);
    while (found < 0 && signalled) {
        signalled = wait_for_signal(mailbox, waiter, until_ns);
        found = mailbox_first_done(calls, count);
    }
    return found;
}

int mailbox_wait(struct mailbox *mailbox, struct call *const *calls, int count, uint64_t until_ns) {
    pthread_mutex_lock(&mailbox->mutex);
    struct waiter *waiter = take_waiter(mailbox);
    for (int i = 0; i < count; i++) {
        calls[i]->waiter = waiter;
    }
    int found = wait_on(mailbox, waiter, calls, count, until_ns);
    for (int i = 0; i < count; i++) {
        calls[i]->waiter = NULL;
    }
    give_waiter(mailbox, waiter);
    pthread_mutex_unlock(&mailbox->mutex);
    return found;
}

bool mailbox_abandon(struct mailbox *mailbox, struct call *call) {
    pthread_mutex_lock(&mailbox->mutex);
    call->abandoned = !atomic_load_explicit(&call->done, memory_order_relaxed);
    bool abandoned = call->abandoned;
    pthread_mutex_unlock(&mailbox->mutex);
    return abandoned;
}

void mailbox_get_status(struct mailbox *mailbox, struct peer_status *status) {
    pthread_mutex_lock(&mailbox->mutex);
    *status = mailbox->status;
    pthread_mutex_unlock(&mailbox->mutex);
}

void mailbox_stop(struct mailbox *mailbox) {
    pthread_mutex_lock(&mailbox->mutex);
    bool open = mailbox->open;
    mailbox->stop = true;
    mailbox->asleep = false;
    bool must_recall = recall_parked(mailbox);
    pthread_mutex_unlock(&mailbox->mutex);
    if (open) {
        wake(mailbox->wake_fd);
    }
    if (must_recall) {
        pthread_cond_signal(&mailbox->recall.wake);
    }
}

struct peer_loop *mailbox_take_over(struct mailbox *mailbox) {
    struct peer_loop *loop = NULL;
    pthread_mutex_lock(&mailbox->mutex);
    if (mailbox->driver == DRIVER_NOBODY) {
        mailbox->driver = DRIVER_GUEST;
        loop = mailbox->parked;
    }
    pthread_mutex_unlock(&mailbox->mutex);
    return loop;
}

void mailbox_hand_back(struct mailbox *mailbox, uint64_t until_ns) {
    pthread_mutex_lock(&mailbox->mutex);
    bool idle = until_ns > 0 && list_is_empty(&mailbox->posted) && !mailbox->stop;
    mailbox->driver = idle ? DRIVER_NOBODY : DRIVER_NET_THREAD;
    mailbox->parked_until_ns = until_ns;
    mailbox->asleep = false;
    pthread_mutex_unlock(&mailbox->mutex);
    if (!idle) {
        pthread_cond_signal(&mailbox->recall.wake);
    }
}

/* ---- calls by tag, under the mutex ---- */

static struct list *bucket_of(struct mailbox *mailbox, uint64_t tag) {
    return &mailbox->async[(tag * UINT64_C(0x9e3779b97f4a7c15)) >> 54]; /* 10 bits: ASYNC_BUCKETS */
}

/* An id says which tag it belongs to: some programs have one handle and write tag after tag into it. */
static uint64_t id_of(uint64_t tag, uint32_t number) {
    return (uint64_t)number << 32 | (uint32_t)tag;
}

static struct call *find_async(struct mailbox *mailbox, uint64_t tag, uint64_t id) {
    bool any = id == 0 || (uint32_t)id != (uint32_t)tag;
    struct list *bucket = bucket_of(mailbox, tag);
    for (struct list *node = bucket->next; node != bucket; node = node->next) {
        struct call *call = LIST_ENTRY(node, struct call, async_node);
        if (call->tag == tag) { /* there is one at most */
            return any || call->async_id == id ? call : NULL;
        }
    }
    return NULL;
}

static void forget_async(struct mailbox *mailbox, struct call *call) {
    list_remove(&call->async_node);
    mailbox->async_count--;
}

/* With the mutex held. MAILBOX_STARTED if nothing is in the way of the call. */
static enum mailbox_start check_start(const struct mailbox *mailbox, const struct call *former) {
    if (!mailbox->open) {
        return MAILBOX_SHUT;
    }
    if (former != NULL && (former->awaited || !atomic_load(&former->done))) {
        return MAILBOX_TAG_TAKEN;
    }
    return mailbox->async_count - (former != NULL) < MAX_STARTED_OPS ? MAILBOX_STARTED : MAILBOX_FULL;
}

enum mailbox_start mailbox_start_async(struct mailbox *mailbox, struct call *call, uint64_t *id) {
    atomic_init(&call->done, false);
    call->waiter = NULL;
    call->awaited = false;
    list_init(&call->async_node);
    struct news news = {0};
    pthread_mutex_lock(&mailbox->mutex);
    struct call *former = find_async(mailbox, call->tag, 0);
    enum mailbox_start start = check_start(mailbox, former);
    if (start == MAILBOX_STARTED) {
        if (former != NULL) {
            forget_async(mailbox, former);
        }
        *id = call->async_id = id_of(call->tag, ++mailbox->async_number);
        mailbox->async_count++;
        list_append(bucket_of(mailbox, call->tag), &call->async_node);
        news = post(mailbox, call, false);
    }
    pthread_mutex_unlock(&mailbox->mutex);
    tell(mailbox, news);
    if (start == MAILBOX_STARTED) {
        free(former);
    }
    return start;
}

struct call *mailbox_claim_async(struct mailbox *mailbox, uint64_t tag, uint64_t id) {
    pthread_mutex_lock(&mailbox->mutex);
    struct call *call = find_async(mailbox, tag, id);
    if (call != NULL && call->awaited) {
        call = NULL;
    }
    if (call != NULL) {
        call->awaited = true;
    }
    pthread_mutex_unlock(&mailbox->mutex);
    return call;
}

void mailbox_remove_async(struct mailbox *mailbox, struct call *call) {
    pthread_mutex_lock(&mailbox->mutex);
    forget_async(mailbox, call);
    pthread_mutex_unlock(&mailbox->mutex);
}

bool mailbox_is_async_done(struct mailbox *mailbox, uint64_t tag, uint64_t id, bool *known) {
    pthread_mutex_lock(&mailbox->mutex);
    const struct call *call = find_async(mailbox, tag, id);
    *known = call != NULL;
    bool done = call != NULL && atomic_load(&call->done);
    pthread_mutex_unlock(&mailbox->mutex);
    return done;
}

/* ---- the net thread ---- */

/* `asleep` is the thread's own: it runs by now, and may have gone to sleep already. */
void mailbox_open(struct mailbox *mailbox) {
    pthread_mutex_lock(&mailbox->mutex);
    mailbox->open = !mailbox->stop; /* it may have been told to end before it had begun */
    pthread_mutex_unlock(&mailbox->mutex);
}

void mailbox_woken(struct mailbox *mailbox) {
    uint64_t count;
    ssize_t size = read(mailbox->wake_fd, &count, sizeof count);
    CHECK(size == (ssize_t)sizeof count || errno == EAGAIN || errno == EINTR);
}

/* With the mutex held. */
static void take(struct mailbox *mailbox, struct list *node, struct list *calls) {
    mailbox->op_count += LIST_ENTRY(node, struct call, node)->kind == PEER_EVENT_OP;
    list_remove(node);
    list_append(calls, node);
}

void mailbox_shut(struct mailbox *mailbox, struct list *calls) {
    pthread_mutex_lock(&mailbox->mutex);
    mailbox->open = false;
    while (!list_is_empty(&mailbox->queued)) {
        take(mailbox, mailbox->queued.next, calls);
    }
    while (!list_is_empty(&mailbox->posted)) {
        take(mailbox, mailbox->posted.next, calls);
    }
    pthread_mutex_unlock(&mailbox->mutex);
}

/* With the mutex held. */
static void take_posted(struct mailbox *mailbox, struct list *calls) {
    while (!list_is_empty(&mailbox->queued) && mailbox->op_count < MAX_OPS) {
        take(mailbox, mailbox->queued.next, calls);
    }
    while (!list_is_empty(&mailbox->posted)) {
        struct list *node = mailbox->posted.next;
        if (LIST_ENTRY(node, struct call, node)->kind == PEER_EVENT_OP && mailbox->op_count >= MAX_OPS) {
            list_remove(node);
            list_append(&mailbox->queued, node);
        } else {
            take(mailbox, node, calls);
        }
    }
}

bool mailbox_collect(struct mailbox *mailbox, struct list *calls, bool may_sleep, bool *ops_wait) {
    pthread_mutex_lock(&mailbox->mutex);
    take_posted(mailbox, calls);
    *ops_wait = !list_is_empty(&mailbox->queued);
    mailbox->asleep = may_sleep && list_is_empty(calls) && !mailbox->stop;
    bool stop = mailbox->stop;
    pthread_mutex_unlock(&mailbox->mutex);
    return stop;
}

void mailbox_park(struct mailbox *mailbox, struct peer_loop *loop, uint64_t until_ns) {
    pthread_mutex_lock(&mailbox->mutex);
    mailbox->asleep = false;
    if (list_is_empty(&mailbox->posted) && !mailbox->stop) {
        mailbox->driver = DRIVER_NOBODY;
        mailbox->parked = loop;
        mailbox->parked_until_ns = until_ns;
        while (mailbox->driver != DRIVER_NET_THREAD) {
            /* A guest that leaves signals only if there is work, so that a call costs no wake-up. */
            if (wait_for_signal(mailbox, &mailbox->recall, until_ns)) {
                continue;
            }
            uint64_t now_ns = clock_now_ns();
            if (mailbox->driver == DRIVER_NOBODY && now_ns >= mailbox->parked_until_ns) {
                mailbox->driver = DRIVER_NET_THREAD;
            }
            until_ns =
                mailbox->driver == DRIVER_NOBODY ? mailbox->parked_until_ns : now_ns + PARK_MS * NS_PER_MS;
        }
        mailbox->parked = NULL;
    }
    pthread_mutex_unlock(&mailbox->mutex);
}

void mailbox_complete(struct mailbox *mailbox, struct call *call) {
    pthread_mutex_lock(&mailbox->mutex);
    struct waiter *waiter = call->waiter;
    bool abandoned = call->abandoned;
    mailbox->op_count -= call->kind == PEER_EVENT_OP;
    atomic_store_explicit(&call->done, true, memory_order_release); /* from here on it may be gone */
    pthread_mutex_unlock(&mailbox->mutex);
    if (waiter != NULL) {
        pthread_cond_broadcast(&waiter->wake); /* several threads only where the spare one is shared */
    }
    if (abandoned) {
        free(call);
    }
}

void mailbox_publish(struct mailbox *mailbox, const struct peer_status *status) {
    pthread_mutex_lock(&mailbox->mutex);
    mailbox->status = *status;
    pthread_mutex_unlock(&mailbox->mutex);
}
