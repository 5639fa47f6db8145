/* Ops: from start to stop or finish, and what they send. What arrives: engine_receive.c. */
#include "net/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "data/copy.h"
#include "data/crc32c.h"
#include "data/datatype.h"
#include "net/share.h"
#include "pccl.h"

enum {
    /* Small frames share one call of the system up to here; a chunk that is larger goes alone. */
    BATCH_PAYLOAD_BYTES = 64 * 1024,
    /* Credit that no grant has taken along goes back by itself when it is so much. */
    CREDIT_TO_RETURN_BYTES = EAGER_WINDOW_BYTES / 4,
    GRANT_SLOT_BITS = 11,
};

_Static_assert(MAX_OP_SLOTS <= 1 << GRANT_SLOT_BITS, "a grant number holds the op's slot in its low bits");

bool engine_init(struct engine *engine, const struct peer *machine, struct link_set *links) {
    engine->machine = machine;
    engine->links = links;
    list_init(&engine->reporting);
    engine->trash = malloc(TRASH_BYTES);
    return engine->trash != NULL;
}

void engine_free(struct engine *engine) {
    for (uint32_t i = 0; i < MAX_OP_SLOTS; i++) {
        CHECK(!engine->ops[i].active && engine->ops[i].kept == NULL);
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
    if (slot >= MAX_OP_SLOTS) {
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
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        engine->edges[edge] = link_find(engine->links, &action->edges[edge]);
    }
    engine->sort_all = true;
}

static void empty(struct list *list) {
    while (!list_is_empty(list)) {
        list_remove(list->next);
    }
}

void engine_forget_link(struct engine *engine, struct link *link) {
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        if (engine->edges[edge] == link) {
            engine->edges[edge] = NULL;
        }
    }
    empty(&link->ready);
    empty(&link->starved);
    empty(&link->granting);
    while (!list_is_empty(&link->held)) {
        struct held_frame *held = LIST_ENTRY(link->held.next, struct held_frame, node);
        list_remove(&held->node);
        engine->held_count--;
        free(held);
    }
}

static size_t vector_bytes(const struct schedule *schedule) {
    return schedule->count * schedule->element_bytes;
}

uint8_t *engine_place(const struct op *op, uint8_t buffer, uint8_t level, struct chunk_range range) {
    const struct schedule *schedule = &op->transfer.schedule;
    uint64_t origin = schedule_buffer(schedule, (enum buffer_kind)buffer).offset;
    size_t offset = (range.offset - origin) * op->element_bytes;
    switch (buffer) {
    case BUFFER_INPUT:
        return (uint8_t *)(uintptr_t)op->call->input + offset; /* nobody writes there */
    case BUFFER_RESULT:
        return op->result + offset;
    default:
        return op->scratch + level * vector_bytes(schedule) + offset;
    }
}

/* Memory for the progress of `op`, for checksums, for the levels of a tree, and for a result that has to stay
 * apart from the one that is kept: what arrives may be cancelled, or not be intact. */
static bool allot_transfer(struct op *op, const struct schedule *schedule) {
    size_t transfer_size = (transfer_bytes(schedule) + 7) / 8 * 8;
    size_t chunks = (size_t)schedule->segments * schedule->chunks_per_segment;
    size_t head = transfer_size + chunks * sizeof(uint32_t) + chunks;
    head = (head + 63) / 64 * 64;
    size_t levels = schedule->tree ? schedule->scratch_levels * vector_bytes(schedule) : 0;
    uint8_t *memory = malloc(head + levels + (op->is_kept ? vector_bytes(schedule) : 0));
    if (memory == NULL) {
        return false;
    }
    if (op->is_kept) {
        op->result = memory + head + levels;
    }
    op->memory = memory;
    op->crcs = (uint32_t *)(void *)(memory + transfer_size);
    op->saved = memory + transfer_size + chunks * sizeof(uint32_t);
    memset(op->saved, 0, chunks);
    if (schedule->scratch_levels > 0) {
        op->scratch = schedule->tree ? memory + head : op->call->work.memory;
    } else {
        op->undo = op->call->work.memory;
    }
    transfer_init(&op->transfer, schedule, memory);
    op->sends_over = schedule_sends_over(schedule);
    return true;
}

/* ---- ops in place ---- */

void engine_save_input(struct op *op, uint32_t segment, uint32_t chunk) {
    const struct schedule *schedule = &op->transfer.schedule;
    uint8_t *saved = &op->saved[segment * schedule->chunks_per_segment + chunk];
    if (op->undo == NULL || *saved) {
        return;
    }
    *saved = 1;
    struct chunk_range range = schedule_chunk(schedule, segment, chunk);
    size_t offset = range.offset * op->element_bytes;
    copy_past_cache(op->undo + offset, op->result + offset, range.count * op->element_bytes);
}

static void restore_input(struct op *op) {
    const struct schedule *schedule = &op->transfer.schedule;
    for (uint32_t segment = 0; op->undo != NULL && segment < schedule->segments; segment++) {
        for (uint32_t chunk = 0; chunk < schedule_segment_chunks(schedule, segment); chunk++) {
            if (op->saved[segment * schedule->chunks_per_segment + chunk]) {
                struct chunk_range range = schedule_chunk(schedule, segment, chunk);
                size_t offset = range.offset * op->element_bytes;
                memcpy(op->result + offset, op->undo + offset, range.count * op->element_bytes);
            }
        }
    }
}

/* ---- begin ---- */

void engine_offer(struct engine *engine, struct op *op, uint32_t step) {
    const struct schedule *schedule = &op->transfer.schedule;
    step = schedule_next_receive(schedule, step);
    if (step >= schedule->steps) {
        return;
    }
    uint8_t edge = schedule_step(schedule, step).from;
    struct link *link = engine->edges[edge];
    if ((op->offered >> edge & 1) == 0 && link != NULL) {
        op->offered |= 1u << edge;
        list_append(&link->granting, &op->granting[edge]);
        link_wants_write(link);
    }
}

/* Whoever receives grants, and so shows what it has called. In a broadcast some only send: if their receivers
 * have called something else, and never grant, both would wait for ever. */
static void announce(struct engine *engine, struct op *op) {
    if (op->transfer.schedule.kind != OP_BROADCAST) {
        return;
    }
    op->awaits_called = schedule_next_receive(&op->transfer.schedule, 0) < op->transfer.schedule.steps;
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        struct link *link = engine->edges[edge];
        if ((op->sends_over >> edge & 1) != 0 && link != NULL) {
            list_append(&link->granting, &op->granting[edge]);
            link_wants_write(link);
        }
    }
}

void engine_check_whole(struct engine *engine, struct op *op) {
    bool told = (op->granted & op->sends_over) == op->sends_over && !op->awaits_called;
    if (told && transfer_whole(&op->transfer)) {
        engine_report(engine, op, REPORT_WHOLE);
    }
}

/* In place, the part of this peer lies in the other buffer at its rank. Where it lies elsewhere in there, it
 * would be overwritten before it is sent: the caller saw another rank. */
static bool is_misplaced(const struct op *op, const struct schedule *schedule) {
    const struct call *call = op->call;
    if (schedule->kind != OP_ALL_GATHER && schedule->kind != OP_REDUCE_SCATTER) {
        return false;
    }
    struct chunk_range own = schedule_segment(schedule, schedule->place);
    size_t part = own.count * op->element_bytes, offset = own.offset * op->element_bytes;
    uintptr_t input = (uintptr_t)call->input, result = (uintptr_t)call->output;
    bool gathers = schedule->kind == OP_ALL_GATHER;
    uintptr_t at = gathers ? input : result, begin = gathers ? result : input;
    bool inside = at + part > begin && at < begin + vector_bytes(schedule);
    return inside && at != begin + offset;
}

/* No chunk of the op is larger. */
static uint32_t largest_chunk_bytes(const struct op *op) {
    return (uint32_t)(op->transfer.schedule.chunk_elements * op->element_bytes);
}

static void begin(struct engine *engine, struct op *op, const struct peer_action *action) {
    const struct op_descriptor *descriptor = &op->call->descriptor;
    struct schedule schedule = schedule_make(descriptor->kind, action->tree, action->place, action->world,
                                             action->root, descriptor->count, op->element_bytes);
    if (is_misplaced(op, &schedule)) {
        engine_report(engine, op, REPORT_MISPLACED);
        return;
    }
    if (!allot_transfer(op, &schedule)) {
        engine_report(engine, op, REPORT_REFUSED);
        return;
    }
    op->call->tree = action->tree;
    op->large = !schedule.in_order && largest_chunk_bytes(op) >= SHARED_CHUNK_BYTES;
    engine->large_ops += op->large;
    engine_offer(engine, op, 0);
    announce(engine, op);
    engine_op_moved(engine, op);
    engine_check_whole(engine, op);
}

/* ---- ops that may be returned early ---- */

/* Room for the result, from the start: to find none later would be too late. False if there is none. */
static bool make_room(struct op *op, const struct op_descriptor *descriptor) {
    if (op->kept == NULL) {
        size_t bytes = descriptor->count * datatype_bytes(descriptor->datatype);
        op->kept = malloc(sizeof *op->kept + bytes);
    }
    return op->kept != NULL;
}

static void drop_kept(struct op *op) {
    free(op->kept);
    op->kept = NULL;
    op->is_kept = false;
}

/* The call that moves the result, from or to where it is kept. */
static struct call *serving_call(struct op *op, const struct peer_action *action) {
    const struct op_descriptor *descriptor = &action->descriptor;
    op->kept->call = (struct call){.kind = PEER_EVENT_OP,
                                   .tag = action->tag,
                                   .descriptor = *descriptor,
                                   .input = op->kept->bytes,
                                   .output = op->kept->bytes,
                                   .bytes = descriptor->count * datatype_bytes(descriptor->datatype)};
    return &op->kept->call;
}

static bool is_in_batch(const struct stream *stream, const struct op *op) {
    for (uint32_t i = 0; i < stream->out.count; i++) {
        if (stream->out.frames[i].op == op) {
            return true;
        }
    }
    return false;
}

/* All that this peer sends of an op that is whole has left its buffers. */
static bool is_sent(const struct engine *engine, const struct op *op) {
    bool sent = op->transfer.sent == op->transfer.queued;
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        sent = sent && list_is_empty(&op->granting[edge]);
    }
    for (int i = 0; i < MAX_LINKS && sent; i++) {
        const struct link *link = &engine->links->links[i];
        for (uint16_t s = 0; link->streams != NULL && s < link->stream_count; s++) {
            sent = sent && !is_in_batch(&link->streams[s], op);
        }
    }
    return sent;
}

/* Else what waits is written at the end of the turn: too late for the report that is due now. */
static bool send_rest(struct engine *engine, const struct op *op) {
    if (!is_sent(engine, op)) {
        link_set_write(engine->links);
    }
    return is_sent(engine, op);
}

/* ---- start and end ---- */

void engine_start(struct engine *engine, const struct peer_action *action, struct call *call) {
    CHECK(action->op < MAX_OP_SLOTS && action->world >= 2);
    struct op *op = &engine->ops[action->op];
    CHECK(!op->active && (call != NULL || (op->is_kept && action->served)));
    *op = (struct op){.active = true,
                      .generation = op->generation + 1,
                      .is_kept = op->is_kept,
                      .kept = op->kept,
                      .call = call,
                      .user = call,
                      .epoch = action->epoch,
                      .commits_seen = action->commits_seen,
                      .element_bytes = datatype_bytes(action->descriptor.datatype)};
    list_init(&op->ready);
    list_init(&op->reporting);
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        list_init(&op->granting[edge]);
    }
    bool early = action->served || action->descriptor.early;
    if (early && !make_room(op, &action->descriptor)) {
        engine_report(engine, op, REPORT_REFUSED);
    } else if (!action->unfit) {
        op->call = action->served ? serving_call(op, action) : call;
        op->eager = op->call->bytes <= EAGER_OP_BYTES;
        op->result = op->call->output;
        begin(engine, op, action);
    }
    engine->sort_all = engine->sort_all || engine->sort_tag; /* there is room for one tag */
    engine->sort_tag = true;
    engine->tag_to_sort = action->tag;
}

static void end_op(struct engine *engine, struct op *op) {
    for (int i = 0; i < MAX_LINKS; i++) {
        struct link *link = &engine->links->links[i];
        for (uint16_t s = 0; link->streams != NULL && s < link->stream_count; s++) {
            stream_forget_op(&link->streams[s], op);
        }
    }
    list_remove(&op->ready);
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        list_remove(&op->granting[edge]);
    }
    list_remove(&op->reporting);
    engine->large_ops -= op->large;
    free(op->memory);
    op->memory = NULL;
    op->call = NULL;
    op->user = NULL;
    op->active = false;
}

void engine_stop(struct engine *engine, uint32_t index) {
    CHECK(index < MAX_OP_SLOTS && engine->ops[index].active);
    struct op *op = &engine->ops[index];
    if (op->memory != NULL) {
        restore_input(op);
    }
    end_op(engine, op);
    if (!op->is_kept) {
        drop_kept(op);
    }
}

void engine_forget(struct engine *engine, uint32_t index) {
    CHECK(index < MAX_OP_SLOTS && engine->ops[index].is_kept && !engine->ops[index].active);
    drop_kept(&engine->ops[index]);
}

static size_t result_bytes(const struct op *op) {
    return schedule_buffer(&op->transfer.schedule, BUFFER_RESULT).count * op->element_bytes;
}

/* Of an op that is whole: in the user's output, or in scratch space until the commit. */
static const uint8_t *complete_result(const struct op *op) {
    const struct schedule *schedule = &op->transfer.schedule;
    struct buffer_place place = schedule_result_place(schedule);
    return engine_place(op, place.buffer, place.level, schedule_buffer(schedule, BUFFER_RESULT));
}

/* To the user's output, `result`: that may hold the input still. */
static void hand_over(const struct call *call, uint8_t *result, const uint8_t *complete, size_t bytes) {
    if (call->keep_work && call->work.memory != NULL) { /* of an op in place: its input */
        memcpy(call->work.memory, result, bytes);
    }
    memcpy(result, complete, bytes);
}

/* Copies what has waited for the commit in scratch space, or was served. */
static void deliver(struct op *op) {
    const uint8_t *complete = complete_result(op);
    if (complete != op->result) {
        hand_over(op->call, op->result, complete, result_bytes(op));
    }
    if (op->user != NULL && op->user != op->call) {
        hand_over(op->user, op->user->output, op->result, result_bytes(op));
    }
}

void engine_keep(struct engine *engine, uint32_t index) {
    CHECK(index < MAX_OP_SLOTS && engine->ops[index].active);
    struct op *op = &engine->ops[index];
    CHECK(op->memory != NULL && transfer_whole(&op->transfer) && op->kept != NULL && !op->is_kept);
    deliver(op);
    memcpy(op->kept->bytes, op->result, result_bytes(op));
    op->is_kept = true;
    end_op(engine, op);
}

void engine_finish(struct engine *engine, uint32_t index) {
    CHECK(index < MAX_OP_SLOTS);
    struct op *op = &engine->ops[index];
    if (op->active) {
        CHECK(op->memory != NULL && transfer_whole(&op->transfer));
        deliver(op);
        end_op(engine, op);
    } else {
        CHECK(op->is_kept);
    }
    drop_kept(op);
    engine->sort_all = true; /* one more commit seen */
}

/* In a tree each peer reduces the whole result by itself: the master compares their checksums. */
static uint32_t result_check(const struct op *op) {
    return op->transfer.schedule.in_order ? crc32c(complete_result(op), result_bytes(op)) : 0;
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
    } else if (op->reports & REPORT_MISPLACED) {
        op->reports &= (uint8_t)~REPORT_MISPLACED;
        event->kind = PEER_EVENT_OP_REFUSED;
        event->status = pcclRankConnectionLost;
        event->reason = "in place, but not at this peer's rank: ranks have changed since, or it is wrong";
    } else if (op->reports & REPORT_MISMATCH) {
        op->reports &= (uint8_t)~REPORT_MISMATCH;
        event->kind = PEER_EVENT_OP_MISMATCH;
        event->other = op->other;
        event->descriptor = op->theirs;
    } else {
        op->reports &= (uint8_t)~REPORT_WHOLE;
        event->kind = PEER_EVENT_OP_WHOLE;
        event->check = result_check(op);
        event->sent = op->kept != NULL && send_rest(engine, op);
    }
    if (op->reports == 0) {
        list_remove(&op->reporting);
    }
    return true;
}

/* ---- what goes out ---- */

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
        uint32_t chunk_bytes = largest_chunk_bytes(op);
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
