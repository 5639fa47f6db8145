/* Ring all-reduce: who owns which elements, which chunk moves in which step, and when an op is whole.
 * Pure arithmetic and bookkeeping; the caller moves and reduces the bytes.
 *
 * With n ranks there are 2(n-1) steps. In step t rank r sends segment (r - t) mod n to rank r+1 and
 * receives segment (r - t - 1) mod n from rank r-1. The first n-1 steps reduce (reduce-scatter), the
 * rest forward finished segments verbatim (all-gather): what arrives in step t is sent on in step t+1.
 * Rank r finishes segment (r + 1) mod n in step n-2. Each segment is cut into chunks that move
 * independently of each other, in any order. */
#ifndef PCCL_CORE_RING_H
#define PCCL_CORE_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring_plan {
    uint32_t rank, world; /* world >= 2 */
    uint64_t count;       /* elements of the whole buffer, >= 1 */
    uint32_t element_bytes;
    uint64_t block_elements;     /* segments begin at multiples of this: 64 bytes */
    uint64_t chunk_elements;     /* a multiple of block_elements */
    uint32_t chunks_per_segment; /* of the longest segment */
};

struct ring_range {
    uint64_t offset, count; /* elements; count may be 0 */
};

/* The same on all ranks for equal arguments (`rank` excepted). */
struct ring_plan ring_plan_make(uint32_t rank, uint32_t world, uint64_t count, uint32_t element_bytes);
uint32_t ring_steps(const struct ring_plan *plan);
struct ring_range ring_segment(const struct ring_plan *plan, uint32_t segment);
uint32_t ring_segment_chunks(const struct ring_plan *plan, uint32_t segment);
struct ring_range ring_chunk(const struct ring_plan *plan, uint32_t segment, uint32_t chunk);
uint32_t ring_segment_sent(const struct ring_plan *plan, uint32_t step);
uint32_t ring_segment_received(const struct ring_plan *plan, uint32_t step);
/* Received data of this step is reduced with the own input (else stored). */
bool ring_step_reduces(const struct ring_plan *plan, uint32_t step);
/* The reduction of this step completes the segment: here `avg` divides. */
bool ring_step_finishes(const struct ring_plan *plan, uint32_t step);

struct ring_chunk_id {
    uint32_t step, chunk;
};

/* The progress of one op at one rank. Owns nothing: `queue` and `received` lie in memory that the
 * caller gave to ring_transfer_init() and keeps until it is done with the transfer. */
struct ring_transfer {
    struct ring_plan plan;
    struct ring_chunk_id *queue; /* chunks in the order in which they became ready to send */
    uint8_t *received;           /* a bit per (step, chunk) */
    uint64_t queued, sent;       /* entries of `queue` written / taken */
    uint64_t to_send, to_receive, received_count;
};

/* Bytes of memory (aligned for uint64_t) that a transfer needs. */
size_t ring_transfer_bytes(const struct ring_plan *plan);
/* Starts over from nothing received; the chunks of step 0 are ready to send. `memory` is written whole. */
void ring_transfer_init(struct ring_transfer *transfer, const struct ring_plan *plan, void *memory);
/* Takes the next chunk that is ready to send, in order; false if there is none now. */
bool ring_transfer_next(struct ring_transfer *transfer, struct ring_chunk_id *chunk);
/* Whether this chunk may arrive now: in range and not received before. Never trusts its arguments. */
bool ring_transfer_expects(const struct ring_transfer *transfer, uint32_t step, uint32_t chunk);
/* The chunk has arrived and been reduced or stored: it is noted and, unless it was the last step, ready
 * to be sent on. The caller has asked ring_transfer_expects(). */
void ring_transfer_received(struct ring_transfer *transfer, uint32_t step, uint32_t chunk);
/* Everything has arrived: the result is whole. */
bool ring_transfer_whole(const struct ring_transfer *transfer);

#endif
