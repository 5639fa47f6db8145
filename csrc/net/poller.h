/* Readiness of many descriptors, on epoll. What is ready stands in the `hot` list until whoever owns
 * the item has dealt with it; nothing is called back, so items may be removed at any moment. One thread. */
#ifndef PCCL_NET_POLLER_H
#define PCCL_NET_POLLER_H

#include <stdbool.h>
#include <stdint.h>

#include "net/list.h"

enum poll_mode {
    POLL_EDGE,  /* `readable` and `writable` stay set until the owner clears them, having met EAGAIN */
    POLL_LEVEL, /* they are set anew by each wait; writability only after poller_watch_writable() */
};

/* Lies in the object that owns the descriptor. */
struct poll_item {
    int fd;       /* -1: not watched */
    uint8_t kind; /* the owner's */
    uint8_t mode; /* enum poll_mode */
    bool readable, writable;
    bool hangup; /* the other side has ended or broken the connection: read until that shows */
    bool watches_writable;
    bool rung; /* by the descriptor, not by look(); the owner clears it */
    struct list hot;
    struct list looking;
    bool (*look)(struct poll_item *item, bool sleeps); /* poller_look_too() */
};

struct poller {
    int fd;
    struct list hot;
    struct list looking; /* items with a look() */
};

/* Return 0 or a negative errno value. */
int poller_open(struct poller *poller);
void poller_close(struct poller *poller);

/* Once, before anything else. */
void poll_item_init(struct poll_item *item, uint8_t kind);
/* Watches `fd`, which remains the caller's to close, after poller_remove(). 0 or a negative errno value. */
int poller_add(struct poller *poller, struct poll_item *item, int fd, enum poll_mode mode);
void poller_watch_writable(struct poller *poller, struct poll_item *item, bool watch);
/* From now on the item is also looked at: look() sets `readable` and `writable` and returns whether either is
 * new. If the poller `sleeps` after it, what comes then has to show at the descriptor. */
void poller_look_too(struct poller *poller, struct poll_item *item,
                     bool (*look)(struct poll_item *item, bool sleeps));
/* Does nothing if it is not watched. */
void poller_remove(struct poller *poller, struct poll_item *item);
/* Puts the item into the hot list if it is not there: it has more to do. */
void poller_heat(struct poller *poller, struct poll_item *item);
/* Waits until something is ready or `timeout_ns` has passed (UINT64_MAX: for ever). */
void poller_wait(struct poller *poller, uint64_t timeout_ns);
/* The same for what is expected at any moment: looks for it for up to 100 us before it sleeps, which saves
 * the time that it takes to be woken, and yields the core to whoever else needs it. */
void poller_wait_soon(struct poller *poller, uint64_t timeout_ns);

#endif
