/* The net thread of a communicator: sockets, clock and timers around the machine of core/peer.h, and the
 * engine that moves the bytes. It branches on the kinds of actions only. Blocking calls drive it in their own
 * threads where they can: csrc/README.md, "Threads". */
#ifndef PCCL_NET_PEER_LOOP_H
#define PCCL_NET_PEER_LOOP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/address.h"
#include "core/peer.h"
#include "net/buffer_pool.h"
#include "net/control.h"
#include "net/dial.h"
#include "net/engine.h"
#include "net/link.h"
#include "net/listener.h"
#include "net/mailbox.h"
#include "net/poller.h"
#include "net/share.h"

struct peer_loop_options {
    struct dial_place master;   /* unless a call of connect says otherwise */
    struct message_hello hello; /* `listen.port` 0: filled in */
    uint16_t listen_port;       /* 0: the first free one from the default up */
    bool tcp_only;              /* no links through memory */
    uint32_t data_threads;      /* at most MAX_DATA_THREADS; 0: as many as are best */
};

enum { MAX_CALLS = MAX_OPS + 64 }; /* of one communicator at a time */

enum control_state { CONTROL_NONE, CONTROL_CONNECTING, CONTROL_OPEN, CONTROL_LOST };

struct peer_loop {
    struct peer_loop_options options;
    struct mailbox *mailbox;  /* the communicator's */
    struct buffer_pool *pool; /* likewise */
    pthread_t thread;
    char who[MAX_NAME_BYTES + 16]; /* in log lines */

    struct poller poller;
    struct poll_item wake_item;
    struct peer *machine;  /* owned */
    struct engine *engine; /* owned */
    struct link_set links;
    struct listener listener;
    struct sharing sharing;

    struct dial dial;            /* CONTROL_CONNECTING */
    struct dial_place place;     /* where to connect to next time */
    uint16_t first_address;      /* of the place: who answered at the one before was no master */
    char where[DIAL_TEXT_BYTES]; /* CONTROL_OPEN: who is at the other end */
    struct control control;
    struct poll_item control_item;
    enum control_state control_state;
    char control_reason[MAX_REASON_BYTES + 1]; /* CONTROL_LOST: the machine does not know yet */
    struct message message;                    /* the one being worked on */

    /* Calls under way; the slot of each is its number's remainder. */
    struct call *calls[MAX_CALLS];
    uint32_t call_count;
    uint64_t last_number;
    struct list retries; /* calls whose op a lost peer has failed, to be started again */
    bool answered;       /* a blocking call has ended in this turn: the next may come soon */
    uint64_t crowded_since_ns, crowded_until_ns; /* ops wait for places of MAX_OPS; until this is said next,
                                                    or UINT64_MAX if none do */
    uint64_t pool_deadline_ns;
    uint64_t shortage_told_ns; /* not again before; see check_shortage() */
};

/* Listens, and starts the thread. Returns 0 and *loop_out, or a negative errno value; `what` then says
 * what failed, as a static text. */
int peer_loop_start(const struct peer_loop_options *options, struct mailbox *mailbox,
                    struct buffer_pool *pool, struct peer_loop **loop_out, const char **what);
/* For who got `loop` from mailbox_take_over(): drives it until one of the calls is done, for a bounded time,
 * and hands it back. Returns the place of the call, or -1. */
int peer_loop_drive(struct peer_loop *loop, struct call *const *calls, int count);
/* After mailbox_stop(): waits for the end of the thread and frees everything. Calls that were under way
 * are completed with pcclInvalidUsage. */
void peer_loop_join(struct peer_loop *loop);

/* Between the files of the loop. */
void peer_loop_perform(void *context, const struct peer_action *action); /* peer_actions.c */
struct call *peer_loop_find_call(struct peer_loop *loop, uint64_t number);
void peer_loop_complete(struct peer_loop *loop, struct call *call);
void peer_loop_publish(struct peer_loop *loop);
bool peer_loop_dial(struct peer_loop *loop, struct poll_item *item);
/* The control connection is gone, or there is none to be had. */
__attribute__((format(printf, 2, 3))) void peer_loop_lose_control(struct peer_loop *loop, const char *format,
                                                                  ...);

#endif
