/* Who moves what in a collective, and when: a pure function of its kind, its size and a peer's place.
 * The caller moves and reduces the bytes.
 *
 * The vector is cut into segments, segments into chunks that move independently of each other. A collective
 * is a row of steps, the same for all; in each of them a peer may send a segment over one of its edges and
 * receive one over another. A chunk can be sent in a step when it has arrived (and been reduced) in all the
 * steps before in which this peer receives. The steps of a ring: core/ring.h; of a tree: core/tree.h. */
#ifndef PCCL_CORE_SCHEDULE_H
#define PCCL_CORE_SCHEDULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The ways from one peer to others. Several may lead to the same peer. */
enum edge {
    EDGE_NEXT,                 /* in the ring */
    EDGE_PREVIOUS,             /* in the ring */
    EDGE_FOLD,                 /* in the tree: between a place of the cube and one beyond it */
    EDGE_CUBE,                 /* in the tree: this and those that follow lead along one dimension each */
    MAX_EDGES = EDGE_CUBE + 9, /* 2^9 = MAX_PEERS */
    EDGE_NONE = 0xff
};

/* Where bytes lie. The scratch space has `scratch_levels` levels, each as large as the vector. */
enum buffer_kind { BUFFER_INPUT, BUFFER_RESULT, BUFFER_SCRATCH };

struct buffer_place {
    uint8_t buffer; /* enum buffer_kind */
    uint8_t level;  /* of BUFFER_SCRATCH */
};

struct schedule {
    uint8_t kind; /* enum op_kind */
    bool tree;
    uint16_t place, world; /* place: in the ring, or in the tree */
    uint16_t root;         /* OP_BROADCAST: its place */
    uint32_t steps;
    uint32_t segments;
    uint64_t count; /* elements of the vector */
    uint32_t element_bytes;
    uint64_t block_elements;     /* segments that are dealt out begin at multiples of this: 64 bytes */
    uint64_t chunk_elements;     /* a multiple of block_elements */
    uint32_t chunks_per_segment; /* of the longest segment */
    uint32_t scratch_levels;
    bool in_order; /* a chunk's steps are worked off in their order, whatever arrives first */
};

struct step {
    uint8_t to, from;            /* enum edge; EDGE_NONE: nothing is sent, or received */
    uint32_t sends, receives;    /* segments */
    bool reduces;                /* what arrives is reduced with the own part; else it is stored */
    bool finishes;               /* the reduction is complete with it: here `avg` divides */
    bool own_first;              /* the own part is the first operand */
    bool forwards;               /* what is sent has been stored as it is now in an earlier step */
    uint8_t source, own, target; /* enum buffer_kind: what is sent, what is reduced with, where to */
    uint8_t source_level, own_level, target_level; /* of BUFFER_SCRATCH */
};

struct chunk_range {
    uint64_t offset, count; /* elements; count may be 0 */
};

/* Everything but `place` has to be equal at all peers. `count`: elements of the input (all-reduce,
 * all-gather, broadcast) or of the result (reduce-scatter); 0 for a barrier. world >= 2; world times count
 * must not overflow. */
struct schedule schedule_make(uint8_t kind, bool tree, uint16_t place, uint16_t world, uint16_t root,
                              uint64_t count, uint32_t element_bytes);
struct step schedule_step(const struct schedule *schedule, uint32_t step);
struct chunk_range schedule_segment(const struct schedule *schedule, uint32_t segment);
uint32_t schedule_segment_chunks(const struct schedule *schedule, uint32_t segment);
struct chunk_range schedule_chunk(const struct schedule *schedule, uint32_t segment, uint32_t chunk);
/* What lies in a buffer of the caller's: the whole vector, or the own segment alone. */
struct chunk_range schedule_buffer(const struct schedule *schedule, enum buffer_kind buffer);
/* Where the result lies when it is complete: in BUFFER_RESULT, or else in the last level of the scratch
 * space, from which the caller copies it at the end. */
struct buffer_place schedule_result_place(const struct schedule *schedule);
/* The edges over which this peer sends: a bit for each. */
uint32_t schedule_sends_over(const struct schedule *schedule);
/* The first step from `step` on in which it receives; `steps` if there is none. */
uint32_t schedule_next_receive(const struct schedule *schedule, uint32_t step);

struct chunk_id {
    uint32_t step, chunk;
};

/* The progress of one collective at one peer. Owns nothing: the arrays lie in memory that the caller gave to
 * transfer_init() and keeps until it is done with the transfer. */
struct transfer {
    struct schedule schedule;
    struct chunk_id *queue; /* chunks in the order in which they became ready to send */
    uint16_t *due;          /* in_order: the step that each chunk is to be worked off in next */
    uint8_t *received;      /* a bit per (step, chunk) */
    uint64_t queued, sent;  /* entries of `queue` written / taken */
    uint64_t to_send, to_receive, done_count;
};

/* Bytes of memory (aligned for uint64_t) that a transfer needs. */
size_t transfer_bytes(const struct schedule *schedule);
/* Starts over from nothing received. `memory` is written whole. */
void transfer_init(struct transfer *transfer, const struct schedule *schedule, void *memory);
/* Takes the next chunk that is ready to send, in order; false if there is none now. */
bool transfer_next(struct transfer *transfer, struct chunk_id *chunk);
/* Whether this chunk may arrive now: in range and not received before. Never trusts its arguments. */
bool transfer_expects(const struct transfer *transfer, uint32_t step, uint32_t chunk);
/* The chunk has arrived. The caller has asked transfer_expects(). */
void transfer_received(struct transfer *transfer, uint32_t step, uint32_t chunk);
/* in_order: whether `chunk` has arrived in the step that is due, which it writes to `*step`: reduce or store
 * it, say transfer_done(), and ask again. */
bool transfer_due(const struct transfer *transfer, uint32_t chunk, uint32_t *step);
/* The chunk of this step has been reduced or stored: what it makes ready to send is queued. */
void transfer_done(struct transfer *transfer, uint32_t step, uint32_t chunk);
/* Everything has arrived and been worked off: the result is whole. */
bool transfer_whole(const struct transfer *transfer);

#endif
