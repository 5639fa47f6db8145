#include "core/ring.h"

#include <string.h>

#include "base/check.h"
#include "base/limits.h"

enum {
    BLOCK_BYTES = 64, /* a cache line: segments and chunks begin at whole ones */
    /* Large enough that a write of one carries what loopback and wide links can, small enough to stay in
     * a core's own cache from the wire through the reduction and back to the wire. */
    RING_CHUNK_BYTES = 256 * 1024,
    /* A short segment is still cut in this many, so that its wire time and its arithmetic overlap. */
    CHUNKS_TO_OVERLAP = 4,
};

static uint64_t divide_up(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

struct ring_plan ring_plan_make(uint32_t rank, uint32_t world, uint64_t count, uint32_t element_bytes) {
    CHECK(world >= 2 && rank < world && count >= 1);
    CHECK(element_bytes >= 1 && element_bytes <= BLOCK_BYTES && BLOCK_BYTES % element_bytes == 0);
    struct ring_plan plan = {.rank = rank, .world = world, .count = count, .element_bytes = element_bytes};
    plan.block_elements = BLOCK_BYTES / element_bytes;
    uint64_t segment_bytes = ring_segment(&plan, 0).count * element_bytes; /* the longest */
    uint64_t chunk_bytes = segment_bytes / CHUNKS_TO_OVERLAP;
    if (chunk_bytes < MIN_CHUNK_BYTES) {
        chunk_bytes = MIN_CHUNK_BYTES;
    }
    if (chunk_bytes > RING_CHUNK_BYTES) {
        chunk_bytes = RING_CHUNK_BYTES;
    }
    plan.chunk_elements = divide_up(chunk_bytes, BLOCK_BYTES) * plan.block_elements;
    plan.chunks_per_segment = (uint32_t)divide_up(ring_segment(&plan, 0).count, plan.chunk_elements);
    return plan;
}

uint32_t ring_steps(const struct ring_plan *plan) {
    return 2 * (plan->world - 1);
}

/* Whole blocks are dealt out evenly, the first segments take the rest; the last block may be short. */
struct ring_range ring_segment(const struct ring_plan *plan, uint32_t segment) {
    uint64_t blocks = divide_up(plan->count, plan->block_elements);
    uint64_t base = blocks / plan->world, rest = blocks % plan->world;
    uint64_t first = segment * base + least(segment, rest);
    uint64_t end = first + base + (segment < rest);
    struct ring_range range = {.offset = least(first * plan->block_elements, plan->count)};
    range.count = least(end * plan->block_elements, plan->count) - range.offset;
    return range;
}

uint32_t ring_segment_chunks(const struct ring_plan *plan, uint32_t segment) {
    return (uint32_t)divide_up(ring_segment(plan, segment).count, plan->chunk_elements);
}

struct ring_range ring_chunk(const struct ring_plan *plan, uint32_t segment, uint32_t chunk) {
    struct ring_range whole = ring_segment(plan, segment);
    uint64_t begin = least(chunk * plan->chunk_elements, whole.count);
    uint64_t end = least(begin + plan->chunk_elements, whole.count);
    return (struct ring_range){.offset = whole.offset + begin, .count = end - begin};
}

uint32_t ring_segment_sent(const struct ring_plan *plan, uint32_t step) {
    /* step < 2 * world, so one more turn keeps the difference positive */
    return (plan->rank + 2 * plan->world - step) % plan->world;
}

uint32_t ring_segment_received(const struct ring_plan *plan, uint32_t step) {
    return ring_segment_sent(plan, step + 1);
}

bool ring_step_reduces(const struct ring_plan *plan, uint32_t step) {
    return step < plan->world - 1;
}

bool ring_step_finishes(const struct ring_plan *plan, uint32_t step) {
    return step == plan->world - 2;
}

static uint64_t chunks_to_send(const struct ring_plan *plan) {
    uint64_t total = 0;
    for (uint32_t step = 0; step < ring_steps(plan); step++) {
        total += ring_segment_chunks(plan, ring_segment_sent(plan, step));
    }
    return total;
}

static size_t received_bytes(const struct ring_plan *plan) {
    return (size_t)divide_up((uint64_t)ring_steps(plan) * plan->chunks_per_segment, 8);
}

size_t ring_transfer_bytes(const struct ring_plan *plan) {
    return (size_t)chunks_to_send(plan) * sizeof(struct ring_chunk_id) + received_bytes(plan);
}

void ring_transfer_init(struct ring_transfer *transfer, const struct ring_plan *plan, void *memory) {
    *transfer = (struct ring_transfer){.plan = *plan, .queue = memory, .to_send = chunks_to_send(plan)};
    transfer->received = (uint8_t *)(transfer->queue + transfer->to_send);
    memset(transfer->received, 0, received_bytes(plan));
    for (uint32_t step = 0; step < ring_steps(plan); step++) {
        transfer->to_receive += ring_segment_chunks(plan, ring_segment_received(plan, step));
    }
    uint32_t own = ring_segment_chunks(plan, ring_segment_sent(plan, 0));
    for (uint32_t chunk = 0; chunk < own; chunk++) {
        transfer->queue[transfer->queued++] = (struct ring_chunk_id){.step = 0, .chunk = chunk};
    }
}

bool ring_transfer_next(struct ring_transfer *transfer, struct ring_chunk_id *chunk) {
    if (transfer->sent == transfer->queued) {
        return false;
    }
    *chunk = transfer->queue[transfer->sent++];
    return true;
}

static uint64_t received_bit(const struct ring_transfer *transfer, uint32_t step, uint32_t chunk) {
    return (uint64_t)step * transfer->plan.chunks_per_segment + chunk;
}

bool ring_transfer_expects(const struct ring_transfer *transfer, uint32_t step, uint32_t chunk) {
    const struct ring_plan *plan = &transfer->plan;
    if (step >= ring_steps(plan) || chunk >= ring_segment_chunks(plan, ring_segment_received(plan, step))) {
        return false;
    }
    uint64_t bit = received_bit(transfer, step, chunk);
    return (transfer->received[bit / 8] >> (bit % 8) & 1) == 0;
}

void ring_transfer_received(struct ring_transfer *transfer, uint32_t step, uint32_t chunk) {
    CHECK(ring_transfer_expects(transfer, step, chunk));
    uint64_t bit = received_bit(transfer, step, chunk);
    transfer->received[bit / 8] = (uint8_t)(transfer->received[bit / 8] | 1u << (bit % 8));
    transfer->received_count++;
    if (step + 1 < ring_steps(&transfer->plan)) {
        CHECK(transfer->queued < transfer->to_send);
        transfer->queue[transfer->queued++] = (struct ring_chunk_id){.step = step + 1, .chunk = chunk};
    }
}

bool ring_transfer_whole(const struct ring_transfer *transfer) {
    return transfer->received_count == transfer->to_receive;
}
