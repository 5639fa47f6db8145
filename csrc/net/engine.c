/* Ops: from start to stop or finish. What they send: engine_send.c; what arrives: engine_receive.c. */
#include "net/engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "data/copy.h"
#include "data/crc32c.h"
#include "data/datatype.h"
#include "net/share.h"
#include "pccl.h"

enum { GRANT_SLOT_BITS = 11 };

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

/* All that this peer sends of an op that is whole has left its buffers. */
static bool is_out(const struct op *op) {
    bool out = op->transfer.sent == op->transfer.queued && op->chunks_in_batches == 0;
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        out = out && list_is_empty(&op->granting[edge]);
    }
    return out;
}

void engine_check_whole(struct engine *engine, struct op *op) {
    bool told = (op->granted & op->sends_over) == op->sends_over && !op->awaits_called;
    bool may_return = op->kept != NULL; /* early: its buffers are to be free then */
    if (!op->told_whole && told && transfer_whole(&op->transfer) && (!may_return || is_out(op))) {
        op->told_whole = true;
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

uint32_t engine_largest_chunk_bytes(const struct op *op) {
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
    bool lacks_room = op->call->work_bytes > 0 && op->call->work.memory == NULL;
    if (lacks_room || !allot_transfer(op, &schedule)) {
        engine_report(engine, op, REPORT_REFUSED);
        return;
    }
    op->call->tree = action->tree;
    op->large = !schedule.in_order && engine_largest_chunk_bytes(op) >= SHARED_CHUNK_BYTES;
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
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
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
    if (result_bytes(op) == 0) { /* there may be no buffers */
        return;
    }
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
    if (result_bytes(op) > 0) {
        memcpy(op->kept->bytes, op->result, result_bytes(op));
    }
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
        event->reason = "ranks have changed since the call was made, or it was made for a wrong one: in "
                        "place, but not at "
                        "this peer's rank. Read rank, and call again";
    } else if (op->reports & REPORT_MISMATCH) {
        op->reports &= (uint8_t)~REPORT_MISMATCH;
        event->kind = PEER_EVENT_OP_MISMATCH;
        event->other = op->other;
        event->descriptor = op->theirs;
    } else {
        op->reports &= (uint8_t)~REPORT_WHOLE;
        event->kind = PEER_EVENT_OP_WHOLE;
        event->check = result_check(op);
    }
    if (op->reports == 0) {
        list_remove(&op->reporting);
    }
    return true;
}
