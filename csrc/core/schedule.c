#include "core/schedule.h"

#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "core/ring.h"
#include "core/tree.h"
#include "wire/frame.h"
#include "wire/message.h"

enum {
    BLOCK_BYTES = 64, /* a cache line: segments that are dealt out, and all chunks, begin at whole ones */
    /* Large enough that a write of one carries what loopback and wide links can, small enough to stay in a
     * core's own cache from the wire through the reduction and back to the wire. The frame of the largest
     * fills four TCP segments of the loopback device (IPv6, with timestamps: the smallest): a few bytes more,
     * and a large op takes a sixth more time. */
    LOOPBACK_SEGMENT_BYTES = 65463,
    USUAL_FRAME_BYTES = 4 * LOOPBACK_SEGMENT_BYTES,
    USUAL_CHUNK_BYTES =
        (USUAL_FRAME_BYTES - FRAME_HEADER_BYTES - FRAME_TRAILER_BYTES) / BLOCK_BYTES * BLOCK_BYTES,
    /* A shorter segment is cut in this many, so that its wire time and its arithmetic overlap, if they are
     * not too small: a frame costs as much as some tens of KiB. */
    CHUNKS_TO_OVERLAP = 2,
};

_Static_assert(MAX_PEERS <= 1 << (MAX_EDGES - EDGE_CUBE), "an edge for each dimension of the largest cube");

static uint64_t divide_up(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* All chunks of a segment are of one size, but for what the last one lacks. Peers have to cut alike: to
 * change this is to change the protocol (PROTOCOL_VERSION). */
static uint64_t chunk_bytes_for(uint64_t segment_bytes) {
    if (segment_bytes == 0) { /* of a barrier, or of no elements: there are none */
        return BLOCK_BYTES;
    }
    uint64_t least_chunks = divide_up(segment_bytes, USUAL_CHUNK_BYTES);
    uint64_t chunks = least(CHUNKS_TO_OVERLAP, segment_bytes / MIN_CHUNK_BYTES);
    chunks = chunks < least_chunks ? least_chunks : chunks;
    return divide_up(segment_bytes, chunks);
}

/* Each rank has as much in its segment, as the caller said. */
static bool has_equal_segments(const struct schedule *schedule) {
    return schedule->kind == OP_ALL_GATHER || schedule->kind == OP_REDUCE_SCATTER;
}

struct schedule schedule_make(uint8_t kind, bool tree, uint16_t place, uint16_t world, uint16_t root,
                              uint64_t count, uint32_t element_bytes) {
    CHECK(world >= 2 && world <= MAX_PEERS && place < world && root < world);
    CHECK(count == 0 || kind != OP_BARRIER);
    CHECK(element_bytes >= 1 && element_bytes <= BLOCK_BYTES && BLOCK_BYTES % element_bytes == 0);
    CHECK(!tree || kind == OP_ALL_REDUCE || kind == OP_BROADCAST);
    struct schedule schedule = {.kind = kind,
                                .tree = tree,
                                .place = place,
                                .world = world,
                                .root = root,
                                .segments = tree || kind == OP_BROADCAST ? 1 : world,
                                .count = count,
                                .element_bytes = element_bytes,
                                .block_elements = BLOCK_BYTES / element_bytes,
                                .in_order = tree && kind == OP_ALL_REDUCE};
    if (has_equal_segments(&schedule)) {
        CHECK(count <= UINT64_MAX / world);
        schedule.count = count * world;
    }
    schedule.steps = tree ? tree_steps(&schedule) : ring_steps(&schedule);
    schedule.scratch_levels = (uint32_t)(kind == OP_REDUCE_SCATTER) + (tree ? tree_levels(&schedule) : 0);
    uint64_t longest = schedule_segment(&schedule, 0).count;
    uint64_t blocks = divide_up(chunk_bytes_for(longest * element_bytes), BLOCK_BYTES);
    schedule.chunk_elements = blocks * schedule.block_elements;
    schedule.chunks_per_segment = (uint32_t)divide_up(longest, schedule.chunk_elements);
    return schedule;
}

struct step schedule_step(const struct schedule *schedule, uint32_t step) {
    return schedule->tree ? tree_step(schedule, step) : ring_step(schedule, step);
}

/* Whole blocks are dealt out evenly, the first segments take the rest; the last block may be short. */
struct chunk_range schedule_segment(const struct schedule *schedule, uint32_t segment) {
    uint32_t segments = schedule->segments;
    if (has_equal_segments(schedule)) {
        uint64_t count = schedule->count / segments;
        return (struct chunk_range){.offset = segment * count, .count = count};
    }
    uint64_t blocks = divide_up(schedule->count, schedule->block_elements);
    uint64_t base = blocks / segments, rest = blocks % segments;
    uint64_t first = segment * base + least(segment, rest);
    uint64_t end = first + base + (segment < rest);
    struct chunk_range range = {.offset = least(first * schedule->block_elements, schedule->count)};
    range.count = least(end * schedule->block_elements, schedule->count) - range.offset;
    return range;
}

uint32_t schedule_segment_chunks(const struct schedule *schedule, uint32_t segment) {
    return (uint32_t)divide_up(schedule_segment(schedule, segment).count, schedule->chunk_elements);
}

struct chunk_range schedule_chunk(const struct schedule *schedule, uint32_t segment, uint32_t chunk) {
    struct chunk_range whole = schedule_segment(schedule, segment);
    uint64_t begin = least(chunk * schedule->chunk_elements, whole.count);
    uint64_t end = least(begin + schedule->chunk_elements, whole.count);
    return (struct chunk_range){.offset = whole.offset + begin, .count = end - begin};
}

struct chunk_range schedule_buffer(const struct schedule *schedule, enum buffer_kind buffer) {
    bool own = (schedule->kind == OP_ALL_GATHER && buffer == BUFFER_INPUT) ||
               (schedule->kind == OP_REDUCE_SCATTER && buffer == BUFFER_RESULT);
    return own ? schedule_segment(schedule, schedule->place)
               : (struct chunk_range){.offset = 0, .count = schedule->count};
}

struct buffer_place schedule_result_place(const struct schedule *schedule) {
    if (schedule->scratch_levels == 0) {
        return (struct buffer_place){.buffer = BUFFER_RESULT};
    }
    return (struct buffer_place){.buffer = BUFFER_SCRATCH, .level = (uint8_t)(schedule->scratch_levels - 1)};
}

uint32_t schedule_sends_over(const struct schedule *schedule) {
    uint32_t edges = 0;
    for (uint32_t step = 0; step < schedule->steps; step++) {
        uint8_t to = schedule_step(schedule, step).to;
        edges |= to != EDGE_NONE ? 1u << to : 0;
        if (!schedule->tree && edges != 0) {
            break; /* a ring sends over one */
        }
    }
    return edges;
}

uint32_t schedule_next_receive(const struct schedule *schedule, uint32_t step) {
    while (step < schedule->steps && schedule_step(schedule, step).from == EDGE_NONE) {
        step++;
    }
    return step;
}

/* ---- progress ---- */

static void count_chunks(const struct schedule *schedule, uint64_t *to_send, uint64_t *to_receive) {
    *to_send = *to_receive = 0;
    for (uint32_t i = 0; i < schedule->steps; i++) {
        struct step step = schedule_step(schedule, i);
        *to_send += step.to != EDGE_NONE ? schedule_segment_chunks(schedule, step.sends) : 0;
        *to_receive += step.from != EDGE_NONE ? schedule_segment_chunks(schedule, step.receives) : 0;
    }
}

static size_t due_bytes(const struct schedule *schedule) {
    return schedule->in_order ? schedule->chunks_per_segment * sizeof(uint16_t) : 0;
}

static size_t received_bytes(const struct schedule *schedule) {
    return (size_t)divide_up((uint64_t)schedule->steps * schedule->chunks_per_segment, 8);
}

size_t transfer_bytes(const struct schedule *schedule) {
    uint64_t to_send, to_receive;
    count_chunks(schedule, &to_send, &to_receive);
    return (size_t)to_send * sizeof(struct chunk_id) + due_bytes(schedule) + received_bytes(schedule);
}

/* `chunk` may now be sent in the steps from `first` up to the next in which it is received. */
static void release(struct transfer *transfer, uint32_t first, uint32_t chunk) {
    const struct schedule *schedule = &transfer->schedule;
    uint32_t end = schedule_next_receive(schedule, first);
    for (uint32_t i = first; i <= end && i < schedule->steps; i++) {
        struct step step = schedule_step(schedule, i);
        if (step.to != EDGE_NONE && chunk < schedule_segment_chunks(schedule, step.sends)) {
            CHECK(transfer->queued < transfer->to_send);
            transfer->queue[transfer->queued++] = (struct chunk_id){.step = i, .chunk = chunk};
        }
    }
}

void transfer_init(struct transfer *transfer, const struct schedule *schedule, void *memory) {
    *transfer = (struct transfer){.schedule = *schedule, .queue = memory};
    count_chunks(schedule, &transfer->to_send, &transfer->to_receive);
    transfer->due = (uint16_t *)(transfer->queue + transfer->to_send);
    transfer->received = (uint8_t *)transfer->due + due_bytes(schedule);
    memset(transfer->received, 0, received_bytes(schedule));
    uint32_t first = schedule_next_receive(schedule, 0);
    for (uint32_t chunk = 0; chunk < schedule->chunks_per_segment; chunk++) {
        if (schedule->in_order) {
            transfer->due[chunk] = (uint16_t)first;
        }
        release(transfer, 0, chunk);
    }
}

bool transfer_next(struct transfer *transfer, struct chunk_id *chunk) {
    if (transfer->sent == transfer->queued) {
        return false;
    }
    *chunk = transfer->queue[transfer->sent++];
    return true;
}

static uint64_t received_bit(const struct transfer *transfer, uint32_t step, uint32_t chunk) {
    return (uint64_t)step * transfer->schedule.chunks_per_segment + chunk;
}

static bool has_received(const struct transfer *transfer, uint32_t step, uint32_t chunk) {
    uint64_t bit = received_bit(transfer, step, chunk);
    return (transfer->received[bit / 8] >> (bit % 8) & 1) != 0;
}

/* Around a ring a sum comes back only after the part that it was made of has come and gone on from here. What
 * comes sooner would be written over by that part, after its checksum was noted. */
static bool is_too_soon(const struct transfer *transfer, uint32_t step, uint32_t chunk) {
    const struct schedule *schedule = &transfer->schedule;
    return schedule->kind == OP_ALL_REDUCE && !schedule->tree && step >= schedule->world &&
           !has_received(transfer, step - schedule->world, chunk);
}

bool transfer_expects(const struct transfer *transfer, uint32_t step, uint32_t chunk) {
    const struct schedule *schedule = &transfer->schedule;
    if (step >= schedule->steps) {
        return false;
    }
    struct step found = schedule_step(schedule, step);
    return found.from != EDGE_NONE && chunk < schedule_segment_chunks(schedule, found.receives) &&
           !has_received(transfer, step, chunk) && !is_too_soon(transfer, step, chunk);
}

void transfer_received(struct transfer *transfer, uint32_t step, uint32_t chunk) {
    CHECK(transfer_expects(transfer, step, chunk));
    uint64_t bit = received_bit(transfer, step, chunk);
    transfer->received[bit / 8] = (uint8_t)(transfer->received[bit / 8] | 1u << (bit % 8));
}

bool transfer_due(const struct transfer *transfer, uint32_t chunk, uint32_t *step) {
    *step = transfer->due[chunk];
    return *step < transfer->schedule.steps && has_received(transfer, *step, chunk);
}

void transfer_done(struct transfer *transfer, uint32_t step, uint32_t chunk) {
    transfer->done_count++;
    if (transfer->schedule.in_order) {
        transfer->due[chunk] = (uint16_t)schedule_next_receive(&transfer->schedule, step + 1);
    }
    release(transfer, step + 1, chunk);
}

bool transfer_whole(const struct transfer *transfer) {
    return transfer->done_count == transfer->to_receive;
}
