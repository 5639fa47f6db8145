#define _GNU_SOURCE
#include "net/poller.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/check.h"
#include "net/clock.h"
#include "net/descriptors.h"

enum { EVENTS_PER_WAIT = 64 };

/* How long poller_wait_soon() looks before it sleeps. To be woken takes 10 us, on a virtual machine 50. */
static const uint64_t patience_ns = 100000;

int poller_open(struct poller *poller) {
    list_init(&poller->hot);
    list_init(&poller->looking);
    int fd = DESCRIPTOR(epoll_create1(EPOLL_CLOEXEC));
    poller->fd = fd < 0 ? -1 : fd;
    return fd < 0 ? fd : 0;
}

void poller_close(struct poller *poller) {
    if (poller->fd >= 0) {
        descriptor_close(poller->fd);
        poller->fd = -1;
    }
}

void poll_item_init(struct poll_item *item, uint8_t kind) {
    *item = (struct poll_item){.fd = -1, .kind = kind};
    list_init(&item->hot);
    list_init(&item->looking);
}

int poller_add(struct poller *poller, struct poll_item *item, int fd, enum poll_mode mode) {
    CHECK(item->fd < 0 && fd >= 0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = item};
    if (mode == POLL_EDGE) {
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    }
    if (epoll_ctl(poller->fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        return -errno;
    }
    item->fd = fd;
    item->mode = (uint8_t)mode;
    item->readable = false;
    item->writable = false;
    item->hangup = false;
    item->watches_writable = false;
    item->rung = false;
    return 0;
}

void poller_look_too(struct poller *poller, struct poll_item *item,
                     bool (*look)(struct poll_item *item, bool sleeps)) {
    item->look = look;
    list_append(&poller->looking, &item->looking);
}

void poller_watch_writable(struct poller *poller, struct poll_item *item, bool watch) {
    CHECK(item->mode == POLL_LEVEL);
    if (item->fd < 0 || item->watches_writable == watch) {
        return;
    }
    struct epoll_event event = {.events = watch ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = item};
    CHECK(epoll_ctl(poller->fd, EPOLL_CTL_MOD, item->fd, &event) == 0);
    item->watches_writable = watch;
}

void poller_remove(struct poller *poller, struct poll_item *item) {
    list_remove(&item->hot);
    list_remove(&item->looking);
    if (item->fd >= 0) {
        epoll_ctl(poller->fd, EPOLL_CTL_DEL, item->fd, NULL);
        item->fd = -1;
    }
}

void poller_heat(struct poller *poller, struct poll_item *item) {
    if (list_is_empty(&item->hot)) {
        list_append(&poller->hot, &item->hot);
    }
}

static int timeout_ms(uint64_t timeout_ns) {
    if (timeout_ns == UINT64_MAX) {
        return -1;
    }
    uint64_t ms = timeout_ns / NS_PER_MS + (timeout_ns % NS_PER_MS != 0); /* never too early */
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

static void note(struct poll_item *item, uint32_t events) {
    item->rung = true;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        item->readable = true;
    }
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
        item->writable = true;
    }
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        item->hangup = true;
    }
}

static bool look_too(struct poller *poller, bool sleeps) {
    bool found = false;
    for (struct list *node = poller->looking.next; node != &poller->looking; node = node->next) {
        struct poll_item *item = LIST_ENTRY(node, struct poll_item, looking);
        if (item->look(item, sleeps)) {
            poller_heat(poller, item);
            found = true;
        }
    }
    return found;
}

/* Returns whether something was ready. */
static bool look(struct poller *poller, int wait_ms) {
    bool found = look_too(poller, wait_ms != 0);
    if (found) {
        wait_ms = 0;
    }
    struct epoll_event events[EVENTS_PER_WAIT];
    int count = epoll_wait(poller->fd, events, EVENTS_PER_WAIT, wait_ms);
    CHECK(count >= 0 || errno == EINTR);
    for (int i = 0; i < count; i++) {
        struct poll_item *item = events[i].data.ptr;
        note(item, events[i].events);
        poller_heat(poller, item);
    }
    return found || count > 0;
}

void poller_wait(struct poller *poller, uint64_t timeout_ns) {
    look(poller, timeout_ms(timeout_ns));
}

void poller_wait_soon(struct poller *poller, uint64_t timeout_ns) {
    if (timeout_ns > 0) {
        uint64_t end_ns = clock_now_ns() + patience_ns;
        do {
            if (look(poller, 0)) {
                return;
            }
            sched_yield(); /* whoever needs this core has it first, and may be the one that we wait for */
        } while (clock_now_ns() < end_ns);
    }
    look(poller, timeout_ms(timeout_ns));
}
