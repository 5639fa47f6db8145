/* The listening sockets of a peer, one of TCP and one for its own machine, and the strangers on them:
 * connections that have not greeted yet, or whose link is not known here yet. They have 96 bytes, on the
 * local socket a descriptor besides, and STRANGER_TIMEOUT_MS; there are at most MAX_STRANGERS of them. Only
 * the net thread comes here. */
#ifndef PCCL_NET_LISTENER_H
#define PCCL_NET_LISTENER_H

#include <stdbool.h>
#include <stdint.h>

#include "net/link.h"
#include "net/list.h"
#include "net/poller.h"
#include "net/state_desk.h"

struct listener {
    struct poll_item item, local_item; /* own their sockets; `fd` -1: none */
    uint64_t resume_ns; /* the system was out of descriptors: accept again then; 0: it was not */
    struct poller *poller;
    struct link_set *links;
    struct state_desk *desk; /* of a sync of shared state: connections may be for it; NULL: there is none */
    struct list strangers;   /* the oldest first */
    uint32_t stranger_count;
};

struct stranger;

void listener_init(struct listener *listener, struct poller *poller, struct link_set *links);
/* Listens on `port`, or on the first free one from the default up if it is 0; unless `tcp_only`, also for
 * connections through memory, if the system lets it. Returns 0 or a negative errno value. */
int listener_open(struct listener *listener, uint16_t port, bool tcp_only);
void listener_close(struct listener *listener);
uint16_t listener_port(const struct listener *listener);

/* What the poller has found. */
void listener_ready(struct listener *listener, struct poll_item *item);
void listener_stranger_ready(struct listener *listener, struct stranger *stranger);
struct stranger *listener_stranger_of(struct poll_item *item);
/* A link is expected from now on, or a sync: their connections may be among the strangers. */
void listener_match(struct listener *listener);

void listener_tick(struct listener *listener, uint64_t now_ns);
uint64_t listener_deadline(const struct listener *listener);

#endif
