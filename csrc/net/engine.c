/* Ops: from start to stop or finish, and what they send. What arrives: engine_receive.c. */
#include "net/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "data/copy.h"
#include "data/crc32c.h"
#include "data/datatype.h"
#include "pccl.h"

enum {
    /* Small frames share one call of the system up to here; a chunk that is larger goes alone. */
    BATCH_PAYLOAD_BYTES = 64 * 1024,
    /* Credit that no grant has taken along goes back by itself when it is so much. */
    CREDIT_TO_RETURN_BYTES = EAGER_WINDOW_BYTES / 4,
    GRANT_SLOT_BITS = 10,
};

_Static_assert(MAX_OPS <= 1 << GRANT_SLOT_BITS, "a grant number holds the op's slot in its low bits");

bool engine_init(struct engine *engine, const struct peer *machine, struct link_set *links) {
    engine->machine = machine;
    engine->links = links;
    list_init(&engine->ready);
    list_init(&engine->starved);
    list_init(&engine->granting);
    list_init(&engine->reporting);
    engine->trash = malloc(TRASH_BYTES);
    return engine->trash != NULL;
}

void engine_free(struct engine *engine) {
    for (uint32_t i = 0; i < MAX_OPS; i++) {
        CHECK(!engine->ops[i].active);
    }
    free(engine->trash);
    engine->trash = NULL;
}

uint32_t engine_eager_cost(uint32_t payload_bytes) {
    return payload_bytes + FRAME_HEADER_BYTES; /* many tiny ones take up room too */
}

uint32_t engine_grant_number(const struct engine *engine, const struct op *op) {
    return op->generation << GRANT_SLOT_BITS | (uint32_t)(op - engine->ops);
}

struct op *engine_granted_op(struct engine *engine, uint32_t grant) {
    uint32_t slot = grant & ((1u << GRANT_SLOT_BITS) - 1);
    if (slot >= MAX_OPS) {
        return NULL;
    }
    struct op *op = &engine->ops[slot];
    return op->active && engine_grant_number(engine, op) == grant ? op : NULL;
}

void engine_report(struct engine *engine, struct op *op, enum op_report report) {
    op->reports = (uint8_t)(op->reports | report);
    if (list_is_empty(&op->reporting)) {
        list_append(&engine->reporting, &op->reporting);
    }
}

/* ---- the machine's actions ---- */

void engine_set_epoch(struct engine *engine, const struct peer_action *action) {
    engine->previous = link_find(engine->links, &action->previous);
    engine->next = link_find(engine->links, &action->next);
    engine->sort_all = true;
}

void engine_forget_link(struct engine *engine, struct link *link) {
    if (engine->previous == link) {
        engine->previous = NULL;
    }
    if (engine->next == link) {
        engine->next = NULL;
    }
    while (!list_is_empty(&link->held)) {
        struct held_frame *held = LIST_ENTRY(link->held.next, struct held_frame, node);
        list_remove(&held->node);
        engine->held_count--;
        free(held);
    }
}

/* Memory for the progress of `op`, with the checksums behind it. */
static bool allot_transfer(struct op *op, const struct ring_plan *plan) {
    size_t transfer_bytes = (ring_transfer_bytes(plan) + 7) / 8 * 8;
    size_t chunks = (size_t)plan->world * plan->chunks_per_segment;
    size_t crc_bytes = chunks * sizeof(uint32_t);
    uint8_t *memory = malloc(transfer_bytes + crc_bytes + chunks);
    if (memory == NULL) {
        return false;
    }
    op->memory = memory;
    op->crcs = (uint32_t *)(void *)(memory + transfer_bytes);
    op->saved = memory + transfer_bytes + crc_bytes;
    memset(op->saved, 0, chunks);
    ring_transfer_init(&op->transfer, plan, memory);
    return true;
}

/* ---- ops in place ---- */

void engine_save_input(struct op *op, uint32_t segment, uint32_t chunk) {
    const struct ring_plan *plan = &op->transfer.plan;
    uint8_t *saved = &op->saved[segment * plan->chunks_per_segment + chunk];
    if (op->undo == NULL || *saved) {
        return;
    }
    *saved = 1;
    struct ring_range range = ring_chunk(plan, segment, chunk);
    size_t offset = range.offset * op->element_bytes;
    copy_past_cache(op->undo + offset, op->result + offset, range.count * op->element_bytes);
}

static void restore_input(struct op *op) {
    const struct ring_plan *plan = &op->transfer.plan;
    for (uint32_t segment = 0; op->undo != NULL && segment < plan->world; segment++) {
        for (uint32_t chunk = 0; chunk < ring_segment_chunks(plan, segment); chunk++) {
            if (op->saved[segment * plan->chunks_per_segment + chunk]) {
                struct ring_range range = ring_chunk(plan, segment, chunk);
                size_t offset = range.offset * op->element_bytes;
                memcpy(op->result + offset, op->undo + offset, range.count * op->element_bytes);
            }
        }
    }
}

void engine_start(struct engine *engine, const struct peer_action *action, struct call *call) {
    CHECK(action->op < MAX_OPS && call != NULL && action->world >= 2);
    struct op *op = &engine->ops[action->op];
    CHECK(!op->active);
    uint32_t generation = op->generation + 1;
    uint32_t element_bytes = datatype_bytes(call->descriptor.datatype);
    *op = (struct op){.active = true,
                      .generation = generation,
                      .call = call,
                      .epoch = action->epoch,
                      .commits_seen = action->commits_seen,
                      .element_bytes = element_bytes,
                      .eager = call->bytes <= EAGER_OP_BYTES,
                      .result = call->output,
                      .undo = call->work.memory};
    list_init(&op->ready);
    list_init(&op->granting);
    list_init(&op->reporting);
    struct ring_plan plan =
        ring_plan_make(action->rank, action->world, call->descriptor.count, element_bytes);
    if (!allot_transfer(op, &plan)) {
        engine_report(engine, op, REPORT_REFUSED);
        return;
    }
    list_append(&engine->granting, &op->granting);
    if (engine->previous != NULL) {
        link_wants_write(engine->previous);
    }
    engine_op_moved(engine, op);
    engine->sort_all = engine->sort_all || engine->sort_tag;
    engine->sort_tag = true;
    engine->tag_to_sort = call->tag;
}

static void end_op(struct engine *engine, struct op *op) {
    for (int i = 0; i < MAX_LINKS; i++) {
        struct link *link = &engine->links->links[i];
        for (uint16_t s = 0; link->streams != NULL && s < link->stream_count; s++) {
            stream_forget_op(&link->streams[s], op);
        }
    }
    list_remove(&op->ready);
    list_remove(&op->granting);
    list_remove(&op->reporting);
    free(op->memory);
    op->memory = NULL;
    op->call = NULL;
    op->active = false;
}

void engine_stop(struct engine *engine, uint32_t index) {
    CHECK(index < MAX_OPS && engine->ops[index].active);
    struct op *op = &engine->ops[index];
    if (op->memory != NULL) {
        restore_input(op);
    }
    end_op(engine, op);
}

void engine_finish(struct engine *engine, uint32_t index) {
    CHECK(index < MAX_OPS && engine->ops[index].active);
    struct op *op = &engine->ops[index];
    CHECK(op->memory != NULL && ring_transfer_whole(&op->transfer));
    end_op(engine, op);
    engine->sort_all = true; /* one more commit seen */
}

bool engine_next_report(struct engine *engine, struct peer_event *event) {
    if (list_is_empty(&engine->reporting)) {
        return false;
    }
    struct op *op = LIST_ENTRY(engine->reporting.next, struct op, reporting);
    *event = (struct peer_event){.op = (uint32_t)(op - engine->ops)};
    if (op->reports & REPORT_REFUSED) {
        op->reports &= (uint8_t)~REPORT_REFUSED;
        event->kind = PEER_EVENT_OP_REFUSED;
        event->status = pcclOutOfMemory;
        event->reason = "a peer has no memory for it";
    } else if (op->reports & REPORT_MISMATCH) {
        op->reports &= (uint8_t)~REPORT_MISMATCH;
        event->kind = PEER_EVENT_OP_MISMATCH;
        event->other = op->other;
        event->descriptor = op->theirs;
    } else {
        op->reports &= (uint8_t)~REPORT_WHOLE;
        event->kind = PEER_EVENT_OP_WHOLE;
    }
    if (op->reports == 0) {
        list_remove(&op->reporting);
    }
    return true;
}

/* ---- what goes out ---- */

void engine_op_moved(struct engine *engine, struct op *op) {
    if (op->memory == NULL) {
        return;
    }
    bool may_send = op->transfer.sent < op->transfer.queued && (op->granted || op->eager);
    if (may_send && list_is_empty(&op->ready)) {
        list_append(&engine->ready, &op->ready);
        if (engine->next != NULL) {
            link_wants_write(engine->next);
        }
    }
}

bool engine_has_output(const struct engine *engine, const struct link *link) {
    return (link == engine->next && !list_is_empty(&engine->ready)) ||
           (link == engine->previous && !list_is_empty(&engine->granting)) ||
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

static void pull_grants(struct engine *engine, struct stream *stream) {
    while (stream->out.count < BATCH_FRAMES && !list_is_empty(&engine->granting)) {
        struct op *op = LIST_ENTRY(engine->granting.next, struct op, granting);
        list_remove(&op->granting);
        struct frame frame = frame_of(op, FRAME_GRANT);
        frame.grant = engine_grant_number(engine, op);
        frame.credit = take_credit(stream->link);
        stream_add_frame(stream, &frame, NULL, 0, NULL);
        op->call->tx_bytes += FRAME_HEADER_BYTES;
    }
}

/* No chunk of the op is larger. */
static uint32_t largest_chunk_bytes(const struct op *op) {
    return (uint32_t)(op->transfer.plan.chunk_elements * op->element_bytes);
}

/* Takes the next chunk of `op` and adds it to the batch. */
static void send_chunk(struct stream *stream, struct op *op) {
    struct ring_chunk_id id;
    bool taken = ring_transfer_next(&op->transfer, &id);
    CHECK(taken);
    const struct ring_plan *plan = &op->transfer.plan;
    uint32_t segment = ring_segment_sent(plan, id.step);
    struct ring_range range = ring_chunk(plan, segment, id.chunk);
    const uint8_t *from = id.step == 0 ? op->call->input : op->result;
    const uint8_t *payload = from + range.offset * op->element_bytes;
    if (id.step == 0) {
        engine_save_input(op, segment, id.chunk); /* it is in the cache now, and overwritten in the end */
    }
    struct frame frame = frame_of(op, FRAME_DATA);
    frame.step = (uint16_t)id.step;
    frame.chunk = id.chunk;
    frame.payload_bytes = (uint32_t)(range.count * op->element_bytes);
    if (op->granted) {
        frame.grant = op->grant;
    } else {
        frame.flags = FRAME_EAGER;
        stream->link->eager_left -= engine_eager_cost(frame.payload_bytes);
    }
    /* What the step before stored is passed on as it came, with the checksum that it came with. */
    bool passed_on = id.step > 0 && !ring_step_reduces(plan, id.step - 1);
    uint32_t crc = passed_on ? op->crcs[segment * plan->chunks_per_segment + id.chunk]
                             : crc32c(payload, frame.payload_bytes);
    stream_add_frame(stream, &frame, payload, crc, op);
    op->call->tx_bytes += FRAME_HEADER_BYTES + frame.payload_bytes + FRAME_TRAILER_BYTES;
}

static void pull_data(struct engine *engine, struct stream *stream) {
    struct stream_out *out = &stream->out;
    while (out->count < BATCH_FRAMES && out->bytes < BATCH_PAYLOAD_BYTES && !list_is_empty(&engine->ready)) {
        struct op *op = LIST_ENTRY(engine->ready.next, struct op, ready);
        uint32_t chunk_bytes = largest_chunk_bytes(op);
        list_remove(&op->ready);
        if (!op->granted && stream->link->eager_left < engine_eager_cost(chunk_bytes)) {
            list_append(&engine->starved, &op->ready);
            continue;
        }
        if (out->count > 0 && out->bytes + chunk_bytes > 2 * BATCH_PAYLOAD_BYTES) {
            list_append(&engine->ready, &op->ready); /* small frames need not wait behind it */
            return;
        }
        send_chunk(stream, op);
        engine_op_moved(engine, op); /* back to the end of the queue: ops take turns */
    }
}

void engine_pull(struct engine *engine, struct stream *stream) {
    struct link *link = stream->link;
    if (link == engine->previous) {
        pull_grants(engine, stream);
    }
    if (stream->out.count < BATCH_FRAMES && link->credit_due >= CREDIT_TO_RETURN_BYTES) {
        struct frame frame = {.type = FRAME_CREDIT, .credit = take_credit(link)};
        stream_add_frame(stream, &frame, NULL, 0, NULL);
    }
    if (link == engine->next) {
        pull_data(engine, stream);
    }
    if (stream->out.count < BATCH_FRAMES && link->ping_due) {
        struct frame frame = {.type = FRAME_PING, .grant = link_heartbeat_ms(link)};
        stream_add_frame(stream, &frame, NULL, 0, NULL);
        link->ping_due = false;
    }
}
