/* Ops: what they send. */
#include <string.h>

#include "base/check.h"
#include "data/crc32c.h"
#include "net/engine.h"

enum {
    /* Small frames share one call of the system up to here; a chunk that is larger goes alone. */
    BATCH_PAYLOAD_BYTES = 64 * 1024,
    /* Credit that no grant has taken along goes back by itself when it is so much. */
    CREDIT_TO_RETURN_BYTES = EAGER_WINDOW_BYTES / 4,
};

/* The edge over which the op's next chunk goes. */
static uint8_t next_edge(const struct op *op) {
    const struct transfer *transfer = &op->transfer;
    return schedule_step(&transfer->schedule, transfer->queue[transfer->sent].step).to;
}

static bool is_granted(const struct op *op, uint8_t edge) {
    return (op->granted >> edge & 1) != 0;
}

void engine_op_moved(struct engine *engine, struct op *op) {
    if (op->memory == NULL || op->transfer.sent == op->transfer.queued || !list_is_empty(&op->ready)) {
        return;
    }
    uint8_t edge = next_edge(op);
    struct link *link = engine->edges[edge];
    if (link != NULL && (op->eager || is_granted(op, edge))) {
        list_append(&link->ready, &op->ready);
        link_wants_write(link);
    }
}

bool engine_has_output(const struct link *link) {
    return !list_is_empty(&link->ready) || !list_is_empty(&link->granting) ||
           link->credit_due >= CREDIT_TO_RETURN_BYTES || link->ping_due;
}

static uint32_t take_credit(struct link *link) {
    uint32_t credit = link->credit_due;
    link->credit_due = 0;
    link->eager_taken -= credit;
    return credit;
}

static struct frame frame_of(const struct op *op, enum frame_type type) {
    return (struct frame){.type = (uint8_t)type,
                          .epoch = op->epoch,
                          .tag = op->call->tag,
                          .commits_seen = op->commits_seen,
                          .descriptor = op->call->descriptor};
}

static void pull_announcements(struct engine *engine, struct stream *stream) {
    struct list *due = &stream->link->granting;
    while (stream->out.count < BATCH_FRAMES && !list_is_empty(due)) {
        /* The node is one of op->granting: which op and which edge it is for, its address tells. */
        size_t offset = (size_t)((uint8_t *)due->next - (uint8_t *)engine->ops);
        struct op *op = &engine->ops[offset / sizeof(struct op)];
        size_t edge = (size_t)(due->next - op->granting);
        list_remove(due->next);
        bool grants = (op->offered >> edge & 1) != 0;
        struct frame frame = frame_of(op, grants ? FRAME_GRANT : FRAME_CALLED);
        frame.grant = grants ? engine_grant_number(engine, op) : 0;
        frame.credit = take_credit(stream->link);
        stream_add_frame(stream, &frame, NULL, NULL);
        op->call->tx_bytes += FRAME_HEADER_BYTES;
        engine_check_whole(engine, op);
    }
}

/* The own part is in the cache now: it goes where it is needed later. */
static void keep_own_part(struct op *op, uint32_t segment, uint32_t chunk, const uint8_t *payload) {
    const struct schedule *schedule = &op->transfer.schedule;
    if (schedule->kind == OP_ALL_REDUCE) {
        engine_save_input(op, segment, chunk); /* overwritten in the end */
    } else if (schedule->kind == OP_ALL_GATHER) {
        struct chunk_range range = schedule_chunk(schedule, segment, chunk);
        uint8_t *place = engine_place(op, BUFFER_RESULT, 0, range);
        if (place != payload) {
            memcpy(place, payload, range.count * op->element_bytes);
        }
    }
}

/* Takes the next chunk of `op` and adds it to the batch. */
static void send_chunk(struct stream *stream, struct op *op) {
    struct chunk_id id;
    bool taken = transfer_next(&op->transfer, &id);
    CHECK(taken);
    const struct schedule *schedule = &op->transfer.schedule;
    struct step step = schedule_step(schedule, id.step);
    struct chunk_range range = schedule_chunk(schedule, step.sends, id.chunk);
    const uint8_t *payload = engine_place(op, step.source, step.source_level, range);
    struct frame frame = frame_of(op, FRAME_DATA);
    frame.step = (uint16_t)id.step;
    frame.chunk = id.chunk;
    frame.payload_bytes = (uint32_t)(range.count * op->element_bytes);
    if (is_granted(op, step.to)) {
        frame.grant = op->grants[step.to];
    } else {
        frame.flags = FRAME_EAGER;
        stream->link->eager_left -= engine_eager_cost(frame.payload_bytes);
    }
    struct out_frame *out = stream_add_frame(stream, &frame, payload, op);
    out->segment = step.sends;
    out->chunk = id.chunk;
    out->is_own = step.source == BUFFER_INPUT;
    out->forwards = step.forwards;
    op->chunks_in_batches++;
    op->call->tx_bytes += FRAME_HEADER_BYTES + frame.payload_bytes + FRAME_TRAILER_BYTES;
}

void engine_prepare_frame(struct out_frame *frame) {
    struct op *op = frame->op;
    if (op == NULL) {
        return; /* no chunk, or cancelled */
    }
    if (frame->is_own) {
        keep_own_part(op, frame->segment, frame->chunk, frame->payload);
    }
    struct frame_trailer trailer;
    if (frame->forwards) {
        trailer.crc32c = op->crcs[frame->segment * op->transfer.schedule.chunks_per_segment + frame->chunk];
    } else {
        trailer.crc32c = crc32c(frame->payload, frame->payload_bytes);
    }
    trailer.cancelled = false;
    frame_trailer_encode(&trailer, frame->trailer);
}

static void pull_data(struct engine *engine, struct stream *stream) {
    struct stream_out *out = &stream->out;
    struct link *link = stream->link;
    while (out->count < BATCH_FRAMES && out->bytes < BATCH_PAYLOAD_BYTES && !list_is_empty(&link->ready)) {
        struct op *op = LIST_ENTRY(link->ready.next, struct op, ready);
        uint32_t chunk_bytes = engine_largest_chunk_bytes(op);
        list_remove(&op->ready);
        if (!is_granted(op, next_edge(op)) && link->eager_left < engine_eager_cost(chunk_bytes)) {
            list_append(&link->starved, &op->ready);
            continue;
        }
        if (out->count > 0 && out->bytes + chunk_bytes > 2 * BATCH_PAYLOAD_BYTES) {
            list_append(&link->ready, &op->ready); /* small frames need not wait behind it */
            return;
        }
        send_chunk(stream, op);
        engine_op_moved(engine, op); /* back to the end of the queue: ops take turns */
    }
}

void engine_pull(struct engine *engine, struct stream *stream) {
    struct link *link = stream->link;
    pull_announcements(engine, stream);
    if (stream->out.count < BATCH_FRAMES && link->credit_due >= CREDIT_TO_RETURN_BYTES) {
        struct frame frame = {.type = FRAME_CREDIT, .credit = take_credit(link)};
        stream_add_frame(stream, &frame, NULL, NULL);
    }
    pull_data(engine, stream);
    if (stream->out.count < BATCH_FRAMES && link->ping_due) {
        struct frame frame = {.type = FRAME_PING, .grant = link_heartbeat_ms(link)};
        stream_add_frame(stream, &frame, NULL, NULL);
        link->ping_due = false;
    }
}

void engine_batch_out(struct engine *engine, struct stream *stream) {
    for (uint32_t i = 0; i < stream->out.count; i++) {
        struct op *op = stream->out.frames[i].op;
        if (op != NULL && --op->chunks_in_batches == 0) {
            engine_check_whole(engine, op);
        }
    }
}
