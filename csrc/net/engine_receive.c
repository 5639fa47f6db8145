/* What arrives for ops: grants and chunks, at once or held until the op is called here. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "data/reduce.h"
#include "net/engine.h"
#include "pccl.h"

static bool same_descriptor(const struct op_descriptor *a, const struct op_descriptor *b) {
    return a->kind == b->kind && a->datatype == b->datatype && a->reduce_op == b->reduce_op &&
           a->quant_datatype == b->quant_datatype && a->quant_algorithm == b->quant_algorithm &&
           a->algorithm == b->algorithm && a->root == b->root && a->count == b->count;
}

/* True, and a report to come, if the other side calls something else under this op's tag. */
static bool is_mismatch(struct engine *engine, struct op *op, const struct link *link,
                        const struct frame *frame) {
    if (same_descriptor(&op->call->descriptor, &frame->descriptor)) {
        return false;
    }
    if (!op->mismatched) {
        op->mismatched = true;
        op->other = link->member.id;
        op->theirs = frame->descriptor;
        engine_report(engine, op, REPORT_MISMATCH);
    }
    return true;
}

/* Nothing more can come of the op here; the machine knows or is about to. */
static bool is_given_up(struct engine *engine, struct op *op, const struct link *link,
                        const struct frame *frame) {
    return op->memory == NULL || is_mismatch(engine, op, link, frame);
}

/* ---- room for early data ---- */

static bool take_room(struct link *link, uint32_t payload_bytes) {
    uint32_t cost = engine_eager_cost(payload_bytes);
    if (cost > EAGER_WINDOW_BYTES - link->eager_taken) {
        return link_fail(link, "it sent more early data than it was given room for");
    }
    link->eager_taken += cost;
    return true;
}

static void give_back_room(struct engine *engine, struct link *link, uint32_t payload_bytes) {
    link->credit_due += engine_eager_cost(payload_bytes);
    if (engine_has_output(engine, link)) {
        link_wants_write(link);
    }
}

static bool credit_arrived(struct engine *engine, struct link *link, uint32_t credit) {
    if (credit > EAGER_WINDOW_BYTES - link->eager_left) {
        return link_fail(link, "it gave back more room for early data than was used");
    }
    link->eager_left += credit;
    if (credit > 0 && link == engine->next && !list_is_empty(&engine->starved)) {
        list_append_all(&engine->ready, &engine->starved);
        link_wants_write(link);
    }
    return true;
}

/* ---- chunks ---- */

static uint8_t *place_of(const struct op *op, uint32_t step, uint32_t chunk, struct ring_range *range) {
    const struct ring_plan *plan = &op->transfer.plan;
    *range = ring_chunk(plan, ring_segment_received(plan, step), chunk);
    return op->result + range->offset * op->element_bytes;
}

/* The chunk fits the op: it is awaited, comes from the right side and has the right size. */
static bool chunk_fits(const struct engine *engine, const struct op *op, const struct link *link,
                       const struct frame *frame) {
    if (link != engine->previous || !ring_transfer_expects(&op->transfer, frame->step, frame->chunk)) {
        return false;
    }
    struct ring_range range;
    place_of(op, frame->step, frame->chunk, &range);
    return frame->payload_bytes == range.count * op->element_bytes;
}

static bool unexpected(struct link *link, const struct frame *frame) {
    return link_fail(link, "it sent a chunk that nobody waits for (step %u, chunk %u, %u bytes)",
                     (unsigned)frame->step, (unsigned)frame->chunk, (unsigned)frame->payload_bytes);
}

/* A result is reported only when the next rank's grant has come as well: if it was not needed, it may be
 * under way for long, and would be taken for the grant of the next op under this tag. */
static void report_if_whole(struct engine *engine, struct op *op) {
    if (op->granted && ring_transfer_whole(&op->transfer)) {
        engine_report(engine, op, REPORT_WHOLE);
    }
}

/* Reduces or stores a chunk that fits. `payload` may be its place already. */
static void use_chunk(struct engine *engine, struct op *op, const struct frame *frame, const uint8_t *payload,
                      uint32_t crc) {
    const struct ring_plan *plan = &op->transfer.plan;
    const struct op_descriptor *descriptor = &op->call->descriptor;
    struct ring_range range;
    uint8_t *place = place_of(op, frame->step, frame->chunk, &range);
    engine_save_input(op, ring_segment_received(plan, frame->step), frame->chunk);
    if (ring_step_reduces(plan, frame->step)) {
        const uint8_t *own = (const uint8_t *)op->call->input + range.offset * op->element_bytes;
        reduce(descriptor->datatype, descriptor->reduce_op, place, payload, own, range.count);
        if (descriptor->reduce_op == pcclAvg && ring_step_finishes(plan, frame->step)) {
            reduce_divide(descriptor->datatype, place, plan->world, range.count);
        }
    } else {
        if (payload != place) {
            memcpy(place, payload, frame->payload_bytes);
        }
        op->crcs[ring_segment_received(plan, frame->step) * plan->chunks_per_segment + frame->chunk] = crc;
    }
    op->call->rx_bytes += FRAME_HEADER_BYTES + frame->payload_bytes + FRAME_TRAILER_BYTES;
    ring_transfer_received(&op->transfer, frame->step, frame->chunk);
    report_if_whole(engine, op);
    engine_op_moved(engine, op);
}

/* ---- grants ---- */

static bool grant_matched(struct engine *engine, struct op *op, struct link *link,
                          const struct frame *frame) {
    if (is_given_up(engine, op, link, frame)) {
        return true;
    }
    if (link != engine->next || op->granted) {
        return link_fail(link, "it granted an op twice, or one that it does not receive");
    }
    op->granted = true;
    op->grant = frame->grant;
    op->call->rx_bytes += FRAME_HEADER_BYTES;
    list_remove(&op->ready); /* it may have been among the starved */
    engine_op_moved(engine, op);
    report_if_whole(engine, op);
    return true;
}

/* ---- held frames ---- */

static struct held_frame *hold(const struct frame *frame) {
    struct held_frame *held = malloc(sizeof *held + frame->payload_bytes);
    if (held != NULL) {
        list_init(&held->node);
        held->frame = *frame;
    }
    return held;
}

static void keep(struct engine *engine, struct link *link, struct held_frame *held) {
    list_append(&link->held, &held->node);
    link->held_grants += held->frame.type == FRAME_GRANT;
    engine->held_count++;
}

static void drop(struct engine *engine, struct link *link, struct held_frame *held) {
    list_remove(&held->node);
    link->held_grants -= held->frame.type == FRAME_GRANT;
    engine->held_count--;
    if (held->frame.type == FRAME_DATA) {
        give_back_room(engine, link, held->frame.payload_bytes);
    }
    free(held);
}

static bool held_matched(struct engine *engine, struct op *op, struct link *link,
                         const struct held_frame *held) {
    const struct frame *frame = &held->frame;
    if (frame->type == FRAME_GRANT) {
        return grant_matched(engine, op, link, frame);
    }
    if (is_given_up(engine, op, link, frame)) {
        return true;
    }
    if (!chunk_fits(engine, op, link, frame)) {
        return unexpected(link, frame);
    }
    use_chunk(engine, op, frame, held->payload, held->crc);
    return true;
}

/* Uses, drops or keeps one frame in `link->held`. */
static bool sort_one(struct engine *engine, struct link *link, struct held_frame *held) {
    const struct frame *frame = &held->frame;
    uint32_t index;
    enum peer_match match =
        peer_find_op(engine->machine, frame->epoch, frame->tag, frame->commits_seen, &index);
    if (match == PEER_MATCH_LATER) {
        return true;
    }
    bool good = true;
    if (match == PEER_MATCH_OP) {
        good = held_matched(engine, &engine->ops[index], link, held);
    }
    drop(engine, link, held);
    return good;
}

static void sort_link(struct engine *engine, struct link *link) {
    struct list *next;
    for (struct list *node = link->held.next; node != &link->held; node = next) {
        next = node->next;
        struct held_frame *held = LIST_ENTRY(node, struct held_frame, node);
        if ((engine->sort_all || held->frame.tag == engine->tag_to_sort) && !sort_one(engine, link, held)) {
            return;
        }
    }
}

void engine_sort_held(struct engine *engine) {
    if (engine->held_count > 0 && (engine->sort_all || engine->sort_tag)) {
        for (int i = 0; i < MAX_LINKS; i++) {
            struct link *link = &engine->links->links[i];
            if (link->state == LINK_UP) {
                sort_link(engine, link);
            }
        }
    }
    engine->sort_all = false;
    engine->sort_tag = false;
}

/* ---- from the streams ---- */

bool engine_control_frame(struct engine *engine, struct link *link, const struct frame *frame) {
    if (!credit_arrived(engine, link, frame->credit)) {
        return false;
    }
    if (frame->type == FRAME_PING) {
        link_ping_arrived(link, frame->grant);
    }
    if (frame->type != FRAME_GRANT) {
        return true;
    }
    uint32_t index;
    switch (peer_find_op(engine->machine, frame->epoch, frame->tag, frame->commits_seen, &index)) {
    case PEER_MATCH_OP:
        return grant_matched(engine, &engine->ops[index], link, frame);
    case PEER_MATCH_LATER: {
        if (link->held_grants >= MAX_HELD_GRANTS) {
            return link_fail(link, "it granted more than %d ops that were not called here", MAX_HELD_GRANTS);
        }
        struct held_frame *held = hold(frame);
        if (held == NULL) {
            return link_fail(link, "out of memory");
        }
        keep(engine, link, held);
        return true;
    }
    case PEER_MATCH_STALE:
        break;
    }
    return true;
}

static bool begin_chunk(struct engine *engine, struct stream *stream, struct op *op) {
    struct stream_in *in = &stream->in;
    const struct frame *frame = &in->frame;
    if (is_given_up(engine, op, stream->link, frame)) {
        return true;
    }
    if (!chunk_fits(engine, op, stream->link, frame)) {
        return unexpected(stream->link, frame);
    }
    in->op = op;
    if (ring_step_reduces(&op->transfer.plan, frame->step)) {
        in->payload = stream_scratch(stream, frame->payload_bytes);
        in->sink = SINK_SCRATCH;
        return in->payload != NULL || link_fail(stream->link, "out of memory");
    }
    struct ring_range range;
    in->payload = place_of(op, frame->step, frame->chunk, &range);
    engine_save_input(op, ring_segment_received(&op->transfer.plan, frame->step), frame->chunk);
    in->sink = SINK_RESULT;
    return true;
}

static bool begin_early(struct engine *engine, struct stream *stream) {
    struct stream_in *in = &stream->in;
    const struct frame *frame = &in->frame;
    if (!take_room(stream->link, frame->payload_bytes)) {
        return false;
    }
    uint32_t index;
    switch (peer_find_op(engine->machine, frame->epoch, frame->tag, frame->commits_seen, &index)) {
    case PEER_MATCH_OP:
        return begin_chunk(engine, stream, &engine->ops[index]);
    case PEER_MATCH_LATER:
        in->held = hold(frame);
        if (in->held == NULL) {
            return link_fail(stream->link, "out of memory");
        }
        in->payload = in->held->payload;
        in->sink = SINK_HOLD;
        return true;
    case PEER_MATCH_STALE:
        break;
    }
    return true;
}

bool engine_data_begin(struct engine *engine, struct stream *stream) {
    struct stream_in *in = &stream->in;
    in->sink = SINK_DISCARD;
    in->payload = NULL;
    in->op = NULL;
    in->held = NULL;
    if (!credit_arrived(engine, stream->link, in->frame.credit)) {
        return false;
    }
    if (in->frame.flags & FRAME_EAGER) {
        return begin_early(engine, stream);
    }
    struct op *op = engine_granted_op(engine, in->frame.grant);
    return op == NULL || begin_chunk(engine, stream, op); /* NULL: it has ended here */
}

/* The op may have been called while its chunk was coming in. */
static bool end_held(struct engine *engine, struct stream *stream, bool cancelled) {
    struct held_frame *held = stream->in.held;
    stream->in.held = NULL;
    held->crc = stream->in.crc;
    keep(engine, stream->link, held);
    if (cancelled) {
        drop(engine, stream->link, held);
        return true;
    }
    return sort_one(engine, stream->link, held);
}

bool engine_data_end(struct engine *engine, struct stream *stream, bool cancelled) {
    struct stream_in *in = &stream->in;
    struct op *op = in->op;
    in->op = NULL;
    if (in->sink == SINK_HOLD) {
        return end_held(engine, stream, cancelled);
    }
    bool used = !cancelled && (in->sink == SINK_RESULT || in->sink == SINK_SCRATCH);
    if (used) {
        /* Once more: the same chunk may have come on another stream meanwhile. */
        if (!chunk_fits(engine, op, stream->link, &in->frame)) {
            return unexpected(stream->link, &in->frame);
        }
        use_chunk(engine, op, &in->frame, in->payload, in->crc);
    }
    if (in->frame.flags & FRAME_EAGER) {
        give_back_room(engine, stream->link, in->frame.payload_bytes);
    }
    return true;
}
