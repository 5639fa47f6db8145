/* One call of a user's thread on its way through the net thread and back. */
#ifndef PCCL_NET_CALL_H
#define PCCL_NET_CALL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/peer.h"
#include "net/buffer_pool.h"
#include "net/list.h"

struct dial_place;
struct state_desk;
struct waiter;

/* Belongs to the user's thread before comm_post() and after it is done; between the two to the net
 * thread, but for what is under the communicator's mutex. */
struct call {
    /* What is asked. */
    enum peer_event_kind kind; /* PEER_EVENT_CONNECT, _CLOSE, _VOTE, _SYNC, _OP, or _SYNC_REPORT */
    uint8_t vote;
    bool blocking;
    bool retry;     /* starts again when a lost peer has failed it, until its deadline */
    bool keep_work; /* `work` is not given back when it is done; after a commit it holds the whole input */
    uint64_t tag;
    uint64_t deadline_ns; /* 0: none */
    struct op_descriptor descriptor;
    const void *input; /* the user's; written by an op in place alone, and put back if it fails */
    void *output;      /* the user's */
    size_t bytes;      /* of the input */
    /* Room beside the user's buffers: for what they held, of an all-reduce in place or a broadcast; for the
     * partial sums of a reduce-scatter; else 0. `work` has so many, from the pool. */
    size_t work_bytes;
    struct buffer work;
    bool tree;                                /* how it was moved in the end */
    const struct message_sync_offer *offer;   /* of _SYNC; NULL: would one be taken? */
    const struct message_sync_report *report; /* of _SYNC_REPORT: done as soon as it is on its way */
    const struct dial_place *place;           /* of _CONNECT: where the master is */
    struct state_desk *desk; /* of _SYNC with an offer: what happens before it is done is put there */

    /* How it ended. */
    uint16_t status; /* pcclResult_t */
    uint64_t value;
    uint64_t tx_bytes, rx_bytes;
    char text[MAX_REASON_BYTES + 1];

    /* Between the threads: under the communicator's mutex, `done` also readable without it. */
    struct list node;
    struct waiter *waiter; /* who is to be woken when it is done */
    atomic_bool done;
    bool abandoned; /* nobody waits any more: the net thread frees it */

    /* The table of calls that can be awaited: under the mutex as well. */
    struct list async_node;
    bool awaited; /* a thread waits for it */
    uint64_t async_id;

    uint64_t number; /* the net thread's */
};

#endif
