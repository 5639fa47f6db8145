/* The side of a sync that has the elected state: answers those who fetch it (wire/state.h), straight out of
 * the user's memory. In the thread that waits in sync_shared_state. */
#ifndef PCCL_NET_STATE_HOLDER_H
#define PCCL_NET_STATE_HOLDER_H

#include "net/list.h"
#include "net/poller.h"
#include "net/state_table.h"
#include "wire/frame.h"
#include "wire/state.h"

enum {
    MAX_VISITORS = 256,            /* connections: the program needs descriptors, too */
    MAX_VISITORS_OF_ONE_PEER = 64, /* MAX_STREAMS */
    MAX_QUESTIONS = 8, /* of one connection that wait for their answer; more are left in the socket */
    VISITOR_BUFFER_BYTES = 4096,
};

/* What a sync's poller watches (struct poll_item). */
enum state_item { STATE_ITEM_WAKE, STATE_ITEM_VISITOR, STATE_ITEM_STREAM };

struct state_visitor {
    struct poll_item item;
    struct list node;
    struct id peer;      /* as it says */
    uint64_t active_ns;  /* when it came, asked, or took something */
    uint64_t leaves_due; /* leaves it was sent, less those that it has disputed */
    uint8_t in[STATE_HEADER_BYTES];
    uint32_t in_bytes;
    struct state_header questions[MAX_QUESTIONS]; /* a ring: the first is being answered */
    uint32_t first_question, question_count;
    bool answering;
    uint64_t next, end; /* leaves, or tensors of STATE_KEYS, that are not in `out` or sent yet */
    size_t offset;      /* in leaf `next`: so much is sent */
    size_t tensor;      /* of that leaf: where to look first */
    uint8_t out[VISITOR_BUFFER_BYTES]; /* headers, hashes, keys */
    uint32_t out_begin, out_end;
};

struct state_holder {
    struct poller *poller;
    const struct state_table *table; /* borrowed; all its leaves as they were offered */
    struct list visitors;
    uint32_t visitor_count;
    uint32_t timeout_ms;
    uint64_t tx_bytes; /* of tensors */
    bool changed;      /* leaf `changed_leaf` is not what was offered: nobody is answered any more */
    uint64_t changed_leaf;
};

void state_holder_init(struct state_holder *holder, struct poller *poller, const struct state_table *table,
                       uint32_t timeout_ms);
/* A connection that has greeted. Takes the socket over. When there are too many, one that has long done
 * nothing makes room, or this one has to go. */
void state_holder_admit(struct state_holder *holder, int fd, const struct id *peer);
/* Connects to a fetcher that gets no connection to this peer; it will ask over this one. */
void state_holder_call(struct state_holder *holder, const struct member *fetcher,
                       const struct link_greeting *greeting);
/* What the poller has found. */
void state_holder_ready(struct state_holder *holder, struct poll_item *item);
/* All who are there have to go: what they came for is not held here any more. */
void state_holder_close(struct state_holder *holder);

#endif
