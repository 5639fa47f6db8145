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
           a->algorithm == b->algorithm && a->early == b->early && a->root_or_world == b->root_or_world &&
           a->count == b->count;
}

/* True, and a report to come, if the other side calls something else under this op's tag. */
static bool is_mismatch(struct engine *engine, struct op *op, const struct link *link,
                        const struct frame *frame) {
    if (same_descriptor(&op->call->descriptor, &frame->descriptor)) {
        return false;
    }
    if (!op->told_mismatched) {
        op->told_mismatched = true;
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

static void give_back_room(struct link *link, uint32_t payload_bytes) {
    link->credit_due += engine_eager_cost(payload_bytes);
    if (engine_has_output(link)) {
        link_wants_write(link);
    }
}

static bool credit_arrived(struct link *link, uint32_t credit) {
    if (credit > EAGER_WINDOW_BYTES - link->eager_left) {
        return link_fail(link, "it gave back more room for early data than was used");
    }
    link->eager_left += credit;
    if (credit > 0 && !list_is_empty(&link->starved)) {
        list_append_all(&link->ready, &link->starved);
        link_wants_write(link);
    }
    return true;
}

/* ---- chunks ---- */

/* The chunk fits the op: it is awaited, comes from the right side and has the right size. */
static bool chunk_fits(const struct engine *engine, const struct op *op, const struct link *link,
                       const struct frame *frame) {
    const struct schedule *schedule = &op->transfer.schedule;
    if (!transfer_expects(&op->transfer, frame->step, frame->chunk)) {
        return false;
    }
    struct step step = schedule_step(schedule, frame->step);
    struct chunk_range range = schedule_chunk(schedule, step.receives, frame->chunk);
    return link == engine->edges[step.from] && frame->payload_bytes == range.count * op->element_bytes;
}

/* A chunk is opened once at a time. A second copy could change it after its checksum was looked at; an honest
 * peer sends none. `except` is the stream that brings this one; NULL: none does. */
static bool is_open_elsewhere(const struct link *link, const struct op *op, const struct frame *frame,
                              const struct stream *except) {
    for (uint16_t i = 0; i < link->stream_count; i++) {
        const struct stream_in *in = &link->streams[i].in;
        if (&link->streams[i] != except && in->busy && in->op == op && in->frame.step == frame->step &&
            in->frame.chunk == frame->chunk) {
            return true;
        }
    }
    return false;
}

static bool unexpected(struct link *link, const struct frame *frame) {
    return link_fail(link, "it sent a chunk that nobody waits for (step %u, chunk %u, %u bytes)",
                     (unsigned)frame->step, (unsigned)frame->chunk, (unsigned)frame->payload_bytes);
}

static uint8_t *target_place(const struct op *op, const struct step *step, uint32_t chunk) {
    struct chunk_range range = schedule_chunk(&op->transfer.schedule, step->receives, chunk);
    return engine_place(op, step->target, step->target_level, range);
}

/* Before the chunk is written to where it is stored. */
static uint8_t *open_place(struct op *op, const struct step *step, uint32_t chunk) {
    if (step->target == BUFFER_RESULT) {
        engine_save_input(op, step->receives, chunk);
    }
    return target_place(op, step, chunk);
}

/* place = arrived (op) own; `place` may be `arrived`. */
static void reduce_chunk(struct op *op, const struct step *step, uint32_t chunk, uint8_t *place,
                         const uint8_t *arrived) {
    const struct schedule *schedule = &op->transfer.schedule;
    const struct op_descriptor *descriptor = &op->call->descriptor;
    struct chunk_range range = schedule_chunk(schedule, step->receives, chunk);
    const uint8_t *own = engine_place(op, step->own, step->own_level, range);
    const uint8_t *first = step->own_first ? own : arrived, *second = step->own_first ? arrived : own;
    if (descriptor->reduce_op == pcclAvg && step->finishes) {
        reduce_average(descriptor->datatype, place, first, second, schedule->world, range.count);
    } else {
        reduce(descriptor->datatype, descriptor->reduce_op, place, first, second, range.count);
    }
}

/* What has arrived lies in its level. It is reduced with what came before, when that is complete. */
static void work_off_in_order(struct op *op, uint32_t chunk) {
    uint32_t due;
    while (transfer_due(&op->transfer, chunk, &due)) {
        struct step step = schedule_step(&op->transfer.schedule, due);
        uint8_t *place = open_place(op, &step, chunk);
        if (step.reduces) {
            reduce_chunk(op, &step, chunk, place, place);
        }
        transfer_done(&op->transfer, due, chunk);
    }
}

/* Reduces or stores a chunk that fits. `payload` may be its place already. */
static void place_chunk(struct op *op, const struct frame *frame, const uint8_t *payload) {
    struct step step = schedule_step(&op->transfer.schedule, frame->step);
    uint8_t *place = open_place(op, &step, frame->chunk);
    if (step.reduces && !op->transfer.schedule.in_order) {
        reduce_chunk(op, &step, frame->chunk, place, payload);
    } else if (payload != place) {
        memcpy(place, payload, frame->payload_bytes);
    }
}

/* The chunk is in its place: what follows from that. */
static void chunk_placed(struct engine *engine, struct op *op, const struct frame *frame, uint32_t crc) {
    const struct schedule *schedule = &op->transfer.schedule;
    op->call->rx_bytes += FRAME_HEADER_BYTES + frame->payload_bytes + FRAME_TRAILER_BYTES;
    transfer_received(&op->transfer, frame->step, frame->chunk);
    if (schedule->in_order) {
        work_off_in_order(op, frame->chunk);
    } else {
        struct step step = schedule_step(schedule, frame->step);
        if (!step.reduces) {
            op->crcs[step.receives * schedule->chunks_per_segment + frame->chunk] = crc;
        }
        transfer_done(&op->transfer, frame->step, frame->chunk);
    }
    if (schedule->tree) {
        engine_offer(engine, op, frame->step + 1u);
    }
    engine_check_whole(engine, op);
    engine_op_moved(engine, op);
}

/* ---- grants ---- */

static bool grant_matched(struct engine *engine, struct op *op, struct link *link,
                          const struct frame *frame) {
    if (is_given_up(engine, op, link, frame)) {
        return true;
    }
    int edge = 0;
    while (edge < MAX_EDGES && (engine->edges[edge] != link || (op->sends_over >> edge & 1) == 0)) {
        edge++;
    }
    if (edge == MAX_EDGES || (op->granted >> edge & 1) != 0) {
        return link_fail(link, "it granted an op twice, or one that it does not receive");
    }
    op->granted |= 1u << edge;
    op->grants[edge] = frame->grant;
    op->call->rx_bytes += FRAME_HEADER_BYTES;
    list_remove(&op->ready); /* it may have been among the starved */
    engine_op_moved(engine, op);
    engine_check_whole(engine, op);
    return true;
}

/* ---- what others have called ---- */

static void called_matched(struct engine *engine, struct op *op, const struct link *link,
                           const struct frame *frame) {
    if (!is_given_up(engine, op, link, frame)) {
        op->call->rx_bytes += FRAME_HEADER_BYTES;
        op->awaits_called = false;
        engine_check_whole(engine, op);
    }
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
    link->held_announcements += held->frame.type != FRAME_DATA;
    engine->held_count++;
}

static void drop(struct engine *engine, struct link *link, struct held_frame *held) {
    list_remove(&held->node);
    link->held_announcements -= held->frame.type != FRAME_DATA;
    engine->held_count--;
    if (held->frame.type == FRAME_DATA) {
        give_back_room(link, held->frame.payload_bytes);
    }
    free(held);
}

static bool held_matched(struct engine *engine, struct op *op, struct link *link,
                         const struct held_frame *held) {
    const struct frame *frame = &held->frame;
    if (frame->type == FRAME_GRANT) {
        return grant_matched(engine, op, link, frame);
    }
    if (frame->type == FRAME_CALLED) {
        called_matched(engine, op, link, frame);
        return true;
    }
    if (is_given_up(engine, op, link, frame)) {
        return true;
    }
    if (!chunk_fits(engine, op, link, frame) || is_open_elsewhere(link, op, frame, NULL)) {
        return unexpected(link, frame);
    }
    place_chunk(op, frame, held->payload);
    chunk_placed(engine, op, frame, held->crc);
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
        for (int i = 0; i < MAX_HELD_LINKS; i++) {
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
    if (!credit_arrived(link, frame->credit)) {
        return false;
    }
    if (frame->type == FRAME_PING) {
        link_ping_arrived(link, frame->grant);
    }
    if (frame->type != FRAME_GRANT && frame->type != FRAME_CALLED) {
        return true;
    }
    uint32_t index;
    switch (peer_find_op(engine->machine, frame->epoch, frame->tag, frame->commits_seen, &index)) {
    case PEER_MATCH_OP:
        if (frame->type == FRAME_GRANT) {
            return grant_matched(engine, &engine->ops[index], link, frame);
        }
        called_matched(engine, &engine->ops[index], link, frame);
        return true;
    case PEER_MATCH_LATER: {
        if (link->held_announcements >= MAX_HELD_ANNOUNCEMENTS) {
            return link_fail(link, "it announced more than %d ops that were not called here",
                             MAX_HELD_ANNOUNCEMENTS);
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
    if (!chunk_fits(engine, op, stream->link, frame) || is_open_elsewhere(stream->link, op, frame, stream)) {
        return unexpected(stream->link, frame);
    }
    in->op = op;
    struct step step = schedule_step(&op->transfer.schedule, frame->step);
    if (step.reduces && !op->transfer.schedule.in_order) {
        in->payload = stream_scratch(stream, frame->payload_bytes);
        in->sink = SINK_SCRATCH;
        return in->payload != NULL || link_fail(stream->link, "out of memory");
    }
    in->payload = target_place(op, &step, frame->chunk);
    in->unopened = step.target == BUFFER_RESULT;
    in->sink = SINK_RESULT;
    return true;
}

void engine_open_payload(struct stream_in *in) {
    in->unopened = false;
    if (in->op != NULL) {
        struct step step = schedule_step(&in->op->transfer.schedule, in->frame.step);
        open_place(in->op, &step, in->frame.chunk);
    }
}

void engine_place_payload(struct stream_in *in) {
    place_chunk(in->op, &in->frame, in->payload);
}

const uint8_t *engine_arrival_place(const struct engine *engine, const struct stream *stream) {
    const struct stream_in *in = &stream->in;
    bool fits =
        in->busy && in->op != NULL && in->op->large && chunk_fits(engine, in->op, stream->link, &in->frame);
    if (!fits) {
        return NULL;
    }
    struct step step = schedule_step(&in->op->transfer.schedule, in->frame.step);
    return target_place(in->op, &step, in->frame.chunk);
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
    in->unopened = false;
    in->placed = false;
    if (!credit_arrived(stream->link, in->frame.credit)) {
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
        /* Once more: the same chunk may have been held, and used, meanwhile. */
        if (!chunk_fits(engine, op, stream->link, &in->frame)) {
            return unexpected(stream->link, &in->frame);
        }
        if (!in->placed) {
            place_chunk(op, &in->frame, in->payload);
        }
        chunk_placed(engine, op, &in->frame, in->crc);
    }
    if (in->frame.flags & FRAME_EAGER) {
        give_back_room(stream->link, in->frame.payload_bytes);
    }
    return true;
}
