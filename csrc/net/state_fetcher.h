/* The side of a sync that gets the elected state: from several holders at once, over connections of its own
 * (wire/state.h), each leaf straight into its place and checked there. In the thread that waits in
 * sync_shared_state. state_fetcher.c decides what is asked of whom, state_stream.c moves the bytes. */
#ifndef PCCL_NET_STATE_FETCHER_H
#define PCCL_NET_STATE_FETCHER_H

#include <stdbool.h>
#include <stdint.h>

#include "net/poller.h"
#include "net/state_compare.h"
#include "net/state_holder.h"
#include "net/state_table.h"
#include "wire/frame.h"
#include "wire/state.h"

enum { MAX_ASKS = 4, FETCH_REASON_BYTES = 240, MAX_LABEL_BYTES = MAX_NAME_BYTES + 16 };

/* Of a tensor's name and a peer's label. */
#define CHANGED_FORMAT                                                                                       \
    "tensor \"%.200s\" of peer %s has changed since it was offered: a tensor must not be written while it "  \
    "is "                                                                                                    \
    "synchronised"

enum { SLOW_BYTES = 64 * 1024 }; /* fewer in a timeout are no progress */

enum fetch_stage {
    FETCH_IDLE,   /* nothing to do */
    FETCH_KEYS,   /* the tensors are not those that were elected: which differ? */
    FETCH_HASHES, /* which leaves differ? */
    FETCH_READY,  /* that is known: state_fetcher_begin() goes on to change them */
    FETCH_LEAVES,
    FETCH_DONE,   /* the table holds the elected state */
    FETCH_FAILED, /* `status` and `reason` */
};

/* A holder of the plan. */
struct state_source {
    struct member member;
    char label[MAX_LABEL_BYTES];
    uint32_t streams;  /* that there are to it */
    uint32_t failures; /* in a row */
    uint64_t retry_ns; /* no connection to it before */
    bool reached;      /* it has answered on a connection that was made from here */
    bool slow;         /* it was left for another one */
    bool wants_call;   /* it is to connect to this peer, and does not know yet */
    uint64_t call_ns;  /* not asked to do so before */
};

enum stream_phase { FETCH_STREAM_FREE, FETCH_STREAM_CONNECTING, FETCH_STREAM_OPEN };

/* One connection to a holder. */
struct fetch_stream {
    struct poll_item item;
    struct state_fetcher *fetcher;
    uint8_t phase; /* enum stream_phase */
    bool dialled;  /* from here, and not by the source */
    uint16_t source;
    uint64_t heard_ns; /* or asked something when nothing was due */
    uint64_t mark_ns;  /* since then `mark_bytes` have come: less than is worth waiting for */
    uint64_t mark_bytes;
    struct state_header asks[MAX_ASKS]; /* a ring: the first is being answered */
    uint32_t first_ask, ask_count;
    uint8_t out[LINK_GREETING_BYTES + MAX_ASKS * STATE_HEADER_BYTES];
    uint32_t out_begin, out_end;
    uint8_t header[STATE_HEADER_BYTES];
    uint32_t header_bytes;
    bool answering; /* the header has come */
    uint64_t left;  /* bytes of the answer that have not */
    uint64_t next;  /* the leaf that comes next, and what of it has come */
    size_t offset;
    size_t tensor;
    bool disputes; /* `disputed` was wrong, and the source has to be told */
    uint64_t disputed;
};

struct state_fetcher {
    struct poller *poller;
    struct state_table *table; /* borrowed; its hashes are those of what is in memory, at any time */
    struct id run, self;
    char label[MAX_LABEL_BYTES];
    uint64_t timeout_ns;
    uint64_t patience_ns; /* `timeout_ns`, or less if the others have less */
    struct message_sync_plan plan;
    enum fetch_stage stage;
    uint16_t status;
    char reason[MAX_REASON_BYTES + 1];

    struct state_source sources[MAX_SYNC_SOURCES];
    uint16_t source_count;
    struct fetch_stream streams[MAX_STREAMS];
    uint32_t stream_count;        /* that it may use */
    struct state_compare compare; /* FETCH_KEYS */

    struct state_hash *elected; /* owned: of the elected state's leaves */
    uint8_t *leaves;            /* owned: enum leaf_state of each leaf */
    uint8_t *wrong;             /* owned: for each leaf, the sources whose bytes were not those elected */
    uint64_t scan;              /* no leaf before is wanted */
    uint64_t left;              /* leaves that are not right yet */
    uint64_t ask_bytes;         /* of one question */
    bool distrusts;             /* wrong bytes have come */

    bool touched;                      /* the user's memory has been changed, or is about to be */
    uint64_t total_bytes, done_bytes;  /* of leaves that differ */
    uint64_t rx_bytes;                 /* of tensors */
    uint64_t progress_ns, moved_bytes; /* bytes since then that do not count yet */
    char trouble[FETCH_REASON_BYTES];  /* the last of a source */
};

void state_fetcher_init(struct state_fetcher *fetcher, struct poller *poller, struct state_table *table,
                        uint16_t streams, uint64_t timeout_ns);
void state_fetcher_free(struct state_fetcher *fetcher);

/* A plan in which this peer fetches; begins, begins anew, or goes on with other sources. */
void state_fetcher_plan(struct state_fetcher *fetcher, const struct message_sync_plan *plan);
/* A source that this peer gets no connection to, and that has to be told so now. */
bool state_fetcher_take_unreached(struct state_fetcher *fetcher, uint64_t now_ns, struct id *source);
/* A connection that a source has made because it was told so. Takes the socket over. */
void state_fetcher_adopt(struct state_fetcher *fetcher, int fd, const struct id *source);
/* FETCH_READY to FETCH_LEAVES: from here on memory changes. */
void state_fetcher_begin(struct state_fetcher *fetcher);
/* Ends all connections and asks for nothing more. The table's hashes are right afterwards. */
void state_fetcher_stop(struct state_fetcher *fetcher);
/* What the poller has found. */
void state_fetcher_ready(struct state_fetcher *fetcher, struct poll_item *item);
void state_fetcher_tick(struct state_fetcher *fetcher, uint64_t now_ns);
uint64_t state_fetcher_deadline(const struct state_fetcher *fetcher);

/* ---- between the two files ---- */

__attribute__((format(printf, 3, 4))) void state_fetcher_fail(struct state_fetcher *fetcher, uint16_t status,
                                                              const char *format, ...);
/* So many bytes have come. */
void state_fetcher_moved(struct state_fetcher *fetcher, uint64_t bytes);
/* What was asked is wanted again: those that have nothing to do may have it. */
void state_fetcher_wake(struct state_fetcher *fetcher);
/* The next question for this stream, if there is one. */
bool state_fetcher_next_ask(struct state_fetcher *fetcher, const struct fetch_stream *stream,
                            struct state_header *ask);
/* Leaf `leaf` has come from the stream's source: is it right? */
void state_fetcher_take_leaf(struct state_fetcher *fetcher, struct fetch_stream *stream, uint64_t leaf);
/* All hashes have come. False if they are not those elected. */
bool state_fetcher_take_hashes(struct state_fetcher *fetcher);
/* The keys have come, or enough of them. */
void state_fetcher_take_keys(struct state_fetcher *fetcher);
/* These will not come: somebody else has to be asked. */
void state_fetcher_give_back(struct state_fetcher *fetcher, uint64_t first, uint64_t end);

void fetch_stream_init(struct fetch_stream *stream, struct state_fetcher *fetcher);
/* Connects to fetcher->sources[source]. */
void fetch_stream_open(struct fetch_stream *stream, uint16_t source);
/* The same over a connection that is there. Takes the socket over. */
void fetch_stream_adopt(struct fetch_stream *stream, uint16_t source, int fd);
/* `why` NULL: nobody's fault. */
void fetch_stream_close(struct fetch_stream *stream, const char *why);
/* Reads, writes and asks as much as it can in its turn. */
void fetch_stream_work(struct fetch_stream *stream);

#endif
