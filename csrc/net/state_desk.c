#define _GNU_SOURCE
#include "net/state_desk.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"
#include "net/descriptors.h"

int state_desk_init(struct state_desk *desk, bool serves) {
    *desk = (struct state_desk){.serves = serves};
    desk->wake_fd = DESCRIPTOR(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (desk->wake_fd < 0) {
        return desk->wake_fd;
    }
    int error = pthread_mutex_init(&desk->mutex, NULL);
    if (error != 0) {
        descriptor_close(desk->wake_fd);
    }
    return -error;
}

/* With the mutex held, or alone. */
static void turn_visitors_away(struct state_desk *desk) {
    while (desk->visitor_count > 0) {
        descriptor_close(desk->visitors[--desk->visitor_count].fd);
    }
}

void state_desk_free(struct state_desk *desk) {
    turn_visitors_away(desk);
    pthread_mutex_destroy(&desk->mutex);
    descriptor_close(desk->wake_fd);
}

/* ---- the waiting thread ---- */

bool state_desk_take_plan(struct state_desk *desk, struct message_sync_plan *plan) {
    pthread_mutex_lock(&desk->mutex);
    bool new_plan = desk->new_plan;
    if (new_plan) {
        *plan = desk->plan;
        desk->new_plan = false;
    }
    pthread_mutex_unlock(&desk->mutex);
    return new_plan;
}

int state_desk_take_visitor(struct state_desk *desk, struct id *from) {
    int fd = -1;
    pthread_mutex_lock(&desk->mutex);
    if (desk->visitor_count > 0) {
        const struct desk_visitor *visitor = &desk->visitors[--desk->visitor_count];
        fd = visitor->fd;
        *from = visitor->from;
    }
    pthread_mutex_unlock(&desk->mutex);
    return fd;
}

bool state_desk_has_ended(struct state_desk *desk) {
    pthread_mutex_lock(&desk->mutex);
    bool ended = desk->ended;
    pthread_mutex_unlock(&desk->mutex);
    return ended;
}

void state_desk_woken(struct state_desk *desk) {
    uint64_t count;
    ssize_t size = read(desk->wake_fd, &count, sizeof count);
    CHECK(size == (ssize_t)sizeof count || errno == EAGAIN || errno == EINTR);
}

/* ---- the net thread ---- */

/* With the mutex held: so that the desk is not gone before its waker is through. */
static void wake(struct state_desk *desk) {
    uint64_t one = 1;
    ssize_t written;
    do {
        written = write(desk->wake_fd, &one, sizeof one);
    } while (written < 0 && errno == EINTR);
    CHECK(written == (ssize_t)sizeof one || errno == EAGAIN);
}

/* Fetchers to connect to that the waiting thread has not heard of yet are not forgotten. */
static void keep_calls(struct state_desk *desk, const struct message_sync_plan *before) {
    struct message_sync_plan *plan = &desk->plan;
    if (!desk->new_plan || plan->role != SYNC_HOLD || before->role != SYNC_HOLD ||
        plan->sync != before->sync) {
        return;
    }
    for (uint16_t i = 0; i < before->source_count && plan->source_count < MAX_SYNC_SOURCES; i++) {
        plan->sources[plan->source_count++] = before->sources[i];
    }
}

void state_desk_put_plan(struct state_desk *desk, const struct message_sync_plan *plan) {
    pthread_mutex_lock(&desk->mutex);
    struct message_sync_plan before = desk->plan;
    if (desk->has_plan && desk->plan.sync != plan->sync) {
        turn_visitors_away(desk); /* they come for what was elected before */
    }
    desk->plan = *plan;
    keep_calls(desk, &before);
    desk->has_plan = true;
    desk->new_plan = true;
    wake(desk);
    pthread_mutex_unlock(&desk->mutex);
}

static bool is_source(const struct message_sync_plan *plan, const struct id *peer) {
    for (uint16_t i = 0; i < plan->source_count; i++) {
        if (id_equal(&plan->sources[i].id, peer)) {
            return true;
        }
    }
    return false;
}

/* A fetcher that comes to a holder, or a holder that the fetcher can't reach. */
bool state_desk_expects(struct state_desk *desk, const struct link_greeting *greeting) {
    pthread_mutex_lock(&desk->mutex);
    const struct message_sync_plan *plan = &desk->plan;
    bool fits = plan->role == SYNC_HOLD ? desk->serves : is_source(plan, &greeting->from);
    bool expected = desk->has_plan && fits && id_equal(&plan->key, &greeting->key) &&
                    desk->visitor_count < MAX_DESK_VISITORS;
    pthread_mutex_unlock(&desk->mutex);
    return expected;
}

void state_desk_put_visitor(struct state_desk *desk, int fd, const struct id *from) {
    pthread_mutex_lock(&desk->mutex);
    CHECK(desk->visitor_count < MAX_DESK_VISITORS); /* others only take some away */
    desk->visitors[desk->visitor_count++] = (struct desk_visitor){.fd = fd, .from = *from};
    wake(desk);
    pthread_mutex_unlock(&desk->mutex);
}

void state_desk_end(struct state_desk *desk) {
    pthread_mutex_lock(&desk->mutex);
    desk->ended = true;
    wake(desk);
    pthread_mutex_unlock(&desk->mutex);
}
