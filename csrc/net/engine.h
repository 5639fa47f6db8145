/* The ops in flight: their progress, what is granted to whom, and what is held for ops that have not
 * been called here yet. It moves and reduces the bytes that the machine (core/peer.h) decides about. Only
 * whoever drives the loop comes here; data threads in the functions that say so.
 *
 * A receiver grants each op to those whom it receives from, to each when its turn has come; data flows to
 * those who have granted. Ops of at most EAGER_OP_BYTES do not wait: their chunks may be sent early as long
 * as the receiver has room for EAGER_WINDOW_BYTES of them per link. It gives room back as `credit`. */
#ifndef PCCL_NET_ENGINE_H
#define PCCL_NET_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "core/peer.h"
#include "core/schedule.h"
#include "net/call.h"
#include "net/link.h"
#include "net/list.h"
#include "net/stream.h"

/* What the machine has yet to be told of an op. */
enum op_report { REPORT_WHOLE = 1, REPORT_MISMATCH = 2, REPORT_REFUSED = 4, REPORT_MISPLACED = 8 };

/* The result of an op that may be returned before its commit. It outlives its call, and a call that nobody
 * has made moves it if others need it. */
struct kept_result {
    struct call call; /* without a user: its buffers are `bytes` */
    uint8_t bytes[];
};

struct op {
    bool active;
    bool is_kept;             /* its call has returned; may be so without being active */
    struct kept_result *kept; /* owned: room for it from the start; NULL if the op can't be returned early */
    uint32_t generation;      /* counts the ops that have had this slot: tells grants of old ones apart */
    struct call *call;        /* what moves: the user's, or kept->call */
    struct call *user;        /* the user's; NULL if that has returned */
    uint64_t epoch, commits_seen;
    uint32_t element_bytes;
    bool eager;
    bool large;       /* one of `large_ops` */
    uint8_t *result;  /* the user's output; of what is served: `kept`, or where it is kept, in `memory` */
    uint8_t *undo;    /* chunks of the user's buffer, saved before they are overwritten; NULL: need not be */
    uint8_t *scratch; /* borrowed from `memory` or from the call */
    /* Owned: `transfer`, then `crcs`, then `saved`, then `scratch` of a tree, then `result` of one that
     * is kept. NULL: it can't run. */
    void *memory;
    struct transfer transfer;
    uint32_t *crcs; /* of finished chunks, by segment and chunk: they are passed on as they came */
    uint8_t *saved; /* a byte per segment and chunk: it is in `undo` */

    /* Sets of edges, a bit each: over which it sends, which of these have been granted (with `grants`), and
     * whom it has granted the op to. */
    uint32_t sends_over, granted, offered;
    bool awaits_called; /* a CALLED is on its way here: late, it could be taken for one of the next op */
    uint32_t grants[MAX_EDGES];
    struct list ready;               /* in link.ready or link.starved while it has a chunk to send there */
    struct list granting[MAX_EDGES]; /* in link.granting until that GRANT, or CALLED, is out */
    /* Of streams that have not written them to the end. Those that a link took along when it failed are
     * counted for ever: the op ends with its epoch. */
    uint32_t chunks_in_batches;

    struct list reporting;
    uint8_t reports;                  /* set of enum op_report */
    bool told_whole, told_mismatched; /* once is enough */
    struct id other;
    struct op_descriptor theirs;
};

/* A GRANT, a CALLED, or DATA that came early. */
struct held_frame {
    struct list node;
    struct frame frame;
    uint32_t crc; /* of the payload */
    uint8_t payload[];
};

struct engine {
    const struct peer *machine;
    struct link_set *links;
    struct link *edges[MAX_EDGES]; /* of the committed epoch; NULL where none leads */
    struct list reporting;
    uint32_t held_count; /* on all links */
    uint32_t large_ops;  /* in flight, with chunks that are worth sharing out (net/share) */
    bool sort_all;       /* held frames may have found their ops */
    bool sort_tag;       /* likewise, those with `tag_to_sort` */
    uint64_t tag_to_sort;
    uint8_t *trash; /* TRASH_BYTES that are written and never read */
    struct op ops[MAX_OP_SLOTS];
};

enum { TRASH_BYTES = 64 * 1024 };

/* `engine` is zeroed. False if memory is out. */
bool engine_init(struct engine *engine, const struct peer *machine, struct link_set *links);
void engine_free(struct engine *engine);

/* The actions of the machine. */
void engine_set_epoch(struct engine *engine, const struct peer_action *action);
/* `call` is NULL if it has returned already. */
void engine_start(struct engine *engine, const struct peer_action *action, struct call *call);
void engine_stop(struct engine *engine, uint32_t index);
void engine_keep(struct engine *engine, uint32_t index);
void engine_forget(struct engine *engine, uint32_t index);
void engine_finish(struct engine *engine, uint32_t index);
/* A link is about to go. */
void engine_forget_link(struct engine *engine, struct link *link);

/* Finds the ops of held frames, after the machine has moved on. */
void engine_sort_held(struct engine *engine);
/* The next thing that the machine has to be told, as an event with all but its time; false if none. */
bool engine_next_report(struct engine *engine, struct peer_event *event);

/* For streams. All that return bool give false when the link has failed, which link_fail() was told. */
bool engine_control_frame(struct engine *engine, struct link *link, const struct frame *frame);
/* stream->in.frame is the header of DATA: sets `sink` and what belongs to it. */
bool engine_data_begin(struct engine *engine, struct stream *stream);
/* The payload has arrived and is intact, unless `cancelled`. */
bool engine_data_end(struct engine *engine, struct stream *stream, bool cancelled);
/* Fills the stream's empty batch with what is to go out. */
void engine_pull(struct engine *engine, struct stream *stream);
/* The batch is written. */
void engine_batch_out(struct engine *engine, struct stream *stream);

/* The work on the bytes of one chunk. They touch nothing else, and may come from several threads at once, for
 * chunks that lie in different places, while nobody is in any other function of the engine. */
/* Before the first byte of a payload is written. */
void engine_open_payload(struct stream_in *in);
/* Reduces or stores a payload that is whole and intact. */
void engine_place_payload(struct stream_in *in);
/* Before a frame is sent: its checksum, and what else is to be done while it is in the cache. */
void engine_prepare_frame(struct out_frame *frame);

/* Where the chunk that is arriving will be placed; NULL if that is not to be left to another thread. */
const uint8_t *engine_arrival_place(const struct engine *engine, const struct stream *stream);
/* Whether engine_pull() would find something for this link. */
bool engine_has_output(const struct link *link);

/* Between the files of the engine. */
/* The op that `grant` was given for; NULL if it has ended. */
struct op *engine_granted_op(struct engine *engine, uint32_t grant);
uint32_t engine_grant_number(const struct engine *engine, const struct op *op);
/* Something may have become ready to send: queues the op at the link over which its next chunk may go. */
void engine_op_moved(struct engine *engine, struct op *op);
/* Grants the op to whom it receives from in the first such step from `step` on. */
void engine_offer(struct engine *engine, struct op *op, uint32_t step);
/* Reports it, once, when it is whole and, if it may be returned early, all that it sends has left. */
void engine_check_whole(struct engine *engine, struct op *op);
/* Where the elements of `range` lie in a buffer of the op. */
uint8_t *engine_place(const struct op *op, uint8_t buffer, uint8_t level, struct chunk_range range);
/* Before a chunk of the result is written: in place that overwrites the input, which must be as it was if
 * the op fails. Does nothing the second time, or where there is nothing to save. */
void engine_save_input(struct op *op, uint32_t segment, uint32_t chunk);
void engine_report(struct engine *engine, struct op *op, enum op_report report);
/* No chunk of the op is larger. */
uint32_t engine_largest_chunk_bytes(const struct op *op);
/* What an early chunk takes of the window. */
uint32_t engine_eager_cost(uint32_t payload_bytes);

#endif
