/* The model of the peer's engine: ops that move int64 elements in chunks over its links, by the schedules of
 * core/schedule.h. The rules are those of csrc/net: data moves to who has granted it; small ops go ahead of
 * the grant while the link's eager window lasts; peer_find_op() says where a frame belongs. */
#include <inttypes.h>
#include <string.h>

#include "tests/sim/sim.h"

/* ---- frames out ---- */

static void send_frame(struct link_end *link, const struct frame *frame, const int64_t *payload,
                       uint32_t count) {
    if (link == NULL || link->closed || link->state != LINK_UP) {
        return; /* the machine knows, or will */
    }
    struct world *world = link->process->world;
    size_t bytes = sizeof(struct sim_frame) + count * sizeof(int64_t);
    struct sim_frame *copy = arena_take(bytes);
    copy->frame = *frame;
    copy->count = count;
    if (count > 0) {
        memcpy(copy->payload, payload, count * sizeof(int64_t));
    }
    struct conn *conn = link->conns[below(&world->random_net, link->streams)];
    int end = conn->ends[0].link == link ? 0 : 1;
    if (conn->ends[end].open) {
        conn_send(world, conn, end, ITEM_FRAME, copy, bytes, NULL);
    }
}

/* Grants the op to whom it receives from in the first such step from `step` on. */
static void offer(struct process *process, struct sim_op *op, uint32_t step) {
    const struct schedule *schedule = &op->transfer.schedule;
    step = schedule_next_receive(schedule, step);
    if (step >= schedule->steps) {
        return;
    }
    uint8_t edge = schedule_step(schedule, step).from;
    if ((op->offered >> edge & 1) != 0) {
        return;
    }
    op->offered |= 1u << edge;
    struct frame frame = {.type = FRAME_GRANT,
                          .epoch = op->epoch,
                          .tag = op->call->tag,
                          .commits_seen = op->commits_seen,
                          .grant = op->given_grant,
                          .descriptor = op->call->descriptor};
    send_frame(process->edges[edge], &frame, NULL, 0);
}

/* In a broadcast who only sends shows what it has called. */
static void announce(struct process *process, struct sim_op *op) {
    const struct schedule *schedule = &op->transfer.schedule;
    if (schedule->kind != OP_BROADCAST) {
        return;
    }
    op->awaits_called = schedule_next_receive(schedule, 0) < schedule->steps;
    struct frame frame = {.type = FRAME_CALLED,
                          .epoch = op->epoch,
                          .tag = op->call->tag,
                          .commits_seen = op->commits_seen,
                          .descriptor = op->call->descriptor};
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        if ((op->sends_over >> edge & 1) != 0) {
            send_frame(process->edges[edge], &frame, NULL, 0);
        }
    }
}

/* Where the elements of `range` lie. */
static int64_t *place_of(const struct sim_op *op, uint8_t buffer, uint8_t level, struct chunk_range range) {
    const struct schedule *schedule = &op->transfer.schedule;
    uint64_t at = range.offset - schedule_buffer(schedule, (enum buffer_kind)buffer).offset;
    switch (buffer) {
    case BUFFER_INPUT:
        return op->call->input + at;
    case BUFFER_RESULT:
        return op->result + at;
    default:
        return op->scratch + level * schedule->count + at;
    }
}

static struct chunk_range chunk_sent(const struct sim_op *op, const struct chunk_id *id) {
    const struct schedule *schedule = &op->transfer.schedule;
    return schedule_chunk(schedule, schedule_step(schedule, id->step).sends, id->chunk);
}

static void send_chunk(struct process *process, struct sim_op *op, const struct chunk_id *id, bool eager) {
    struct step step = schedule_step(&op->transfer.schedule, id->step);
    struct chunk_range range = chunk_sent(op, id);
    struct frame frame = {.type = FRAME_DATA,
                          .flags = eager ? FRAME_EAGER : 0,
                          .step = (uint16_t)id->step,
                          .chunk = id->chunk,
                          .payload_bytes = (uint32_t)(range.count * sizeof(int64_t)),
                          .epoch = op->epoch,
                          .tag = op->call->tag,
                          .commits_seen = op->commits_seen,
                          .grant = eager ? 0 : op->got_grants[step.to],
                          .descriptor = op->call->descriptor};
    const int64_t *from = place_of(op, step.source, step.source_level, range);
    if (step.source == BUFFER_INPUT && op->call->descriptor.kind == OP_ALL_GATHER) {
        memcpy(place_of(op, BUFFER_RESULT, 0, range), from, range.count * sizeof(int64_t));
    }
    send_frame(process->edges[step.to], &frame, from, (uint32_t)range.count);
}

/* Sends all that may go now. */
static void pump(struct process *process, struct sim_op *op) {
    struct world *world = process->world;
    bool small = op->call->descriptor.count * sizeof(int64_t) <= world->eager_op_bytes;
    while (op->transfer.sent < op->transfer.queued) {
        const struct chunk_id *next = &op->transfer.queue[op->transfer.sent];
        uint8_t edge = schedule_step(&op->transfer.schedule, next->step).to;
        bool eager = (op->granted >> edge & 1) == 0;
        uint64_t bytes = chunk_sent(op, next).count * sizeof(int64_t);
        struct link_end *link = process->edges[edge];
        if (eager && (!small || link == NULL || link->eager_credit < bytes)) {
            return;
        }
        if (eager) {
            link->eager_credit -= bytes;
        }
        struct chunk_id id;
        if (!transfer_next(&op->transfer, &id)) {
            violate(world, 2, "transfer_next gives nothing though something is queued");
        }
        send_chunk(process, op, &id, eager);
    }
}

static void give_credit(struct link_end *link, const struct frame *frame) {
    if ((frame->flags & FRAME_EAGER) != 0) {
        struct frame credit = {.type = FRAME_CREDIT, .credit = frame->payload_bytes};
        send_frame(link, &credit, NULL, 0);
    }
}

/* ---- frames in ---- */

static bool same_descriptor(const struct op_descriptor *a, const struct op_descriptor *b) {
    return a->kind == b->kind && a->datatype == b->datatype && a->reduce_op == b->reduce_op &&
           a->quant_datatype == b->quant_datatype && a->quant_algorithm == b->quant_algorithm &&
           a->algorithm == b->algorithm && a->early == b->early && a->root_or_world == b->root_or_world &&
           a->count == b->count;
}

static void tell_mismatch(struct process *process, uint32_t index, const struct link_end *link,
                          const struct frame *frame) {
    struct sim_op *op = &process->ops[index];
    if (op->mismatch_told) {
        return;
    }
    op->mismatch_told = true;
    struct posted_event *posted = arena_take(sizeof *posted);
    posted->event = (struct peer_event){.kind = PEER_EVENT_OP_MISMATCH,
                                        .op = index,
                                        .descriptor = frame->descriptor,
                                        .other = process->world->processes[link->target]->id};
    posted->op_generation = op->generation;
    post(process->world, 0, EVENT_PEER, process, posted, 0);
}

/* Of an op that is whole; `*count` elements. */
static const int64_t *complete_result(const struct sim_op *op, uint64_t *count) {
    const struct schedule *schedule = &op->transfer.schedule;
    struct chunk_range whole = schedule_buffer(schedule, BUFFER_RESULT);
    struct buffer_place place = schedule_result_place(schedule);
    *count = whole.count;
    return place_of(op, place.buffer, place.level, whole);
}

/* As the checksum of a tree's result: equal for equal results. */
static uint32_t result_check(const struct sim_op *op) {
    if (!op->transfer.schedule.in_order) {
        return 0;
    }
    uint64_t count, sum = 0;
    const int64_t *result = complete_result(op, &count);
    for (uint64_t i = 0; i < count; i++) {
        sum = sum * 31 + (uint64_t)result[i];
    }
    return (uint32_t)(sum ^ sum >> 32);
}

enum { MAX_LEAVING_NS = 20000000 };

/* Whole, granted by all it sends to, and the CALLED that it awaits has come: one that came after the op's end
 * would look like one of the next op under the same tag. It was on its way before they could finish, so this
 * waits for nothing new. */
static void tell_if_whole(struct process *process, uint32_t index) {
    struct sim_op *op = &process->ops[index];
    if (op->whole || op->awaits_called || (op->granted & op->sends_over) != op->sends_over ||
        !transfer_whole(&op->transfer)) {
        return;
    }
    op->whole = true;
    struct posted_event *posted = arena_take(sizeof *posted);
    posted->event = (struct peer_event){.kind = PEER_EVENT_OP_WHOLE, .op = index, .check = result_check(op)};
    posted->op_generation = op->generation;
    /* An op that may be returned early is told when all of it has left, which now and then takes a while. */
    bool leaves_late = op->call->descriptor.early && chance(&process->world->random_user, 5);
    uint64_t delay_ns = leaves_late ? below(&process->world->random_user, MAX_LEAVING_NS) : 0;
    post(process->world, delay_ns, EVENT_PEER, process, posted, 0);
}

static void store(struct sim_op *op, const struct step *step, struct chunk_range range,
                  const int64_t *arrived) {
    int64_t *place = place_of(op, step->target, step->target_level, range);
    const int64_t *own = place_of(op, step->own, step->own_level, range);
    for (uint64_t i = 0; i < range.count; i++) {
        place[i] =
            step->reduces ? reduce_one(op->call->descriptor.reduce_op, own[i], arrived[i]) : arrived[i];
    }
}

static void work_off_in_order(struct sim_op *op, uint32_t chunk) {
    uint32_t due;
    while (transfer_due(&op->transfer, chunk, &due)) {
        struct step step = schedule_step(&op->transfer.schedule, due);
        struct chunk_range range = schedule_chunk(&op->transfer.schedule, step.receives, chunk);
        store(op, &step, range, place_of(op, step.target, step.target_level, range));
        transfer_done(&op->transfer, due, chunk);
    }
}

static void use_chunk(struct sim_op *op, const struct sim_frame *in, const struct step *step,
                      struct chunk_range range) {
    const struct frame *frame = &in->frame;
    transfer_received(&op->transfer, frame->step, frame->chunk);
    if (op->transfer.schedule.in_order) {
        memcpy(place_of(op, step->target, step->target_level, range), in->payload,
               range.count * sizeof(int64_t));
        work_off_in_order(op, frame->chunk);
    } else {
        store(op, step, range, in->payload);
        transfer_done(&op->transfer, frame->step, frame->chunk);
    }
}

static void take_chunk(struct process *process, uint32_t index, const struct link_end *link,
                       const struct sim_frame *in) {
    struct sim_op *op = &process->ops[index];
    const struct frame *frame = &in->frame;
    if (op->unfit) {
        return;
    }
    if (!same_descriptor(&frame->descriptor, &op->call->descriptor)) {
        tell_mismatch(process, index, link, frame);
        return;
    }
    if (!transfer_expects(&op->transfer, frame->step, frame->chunk)) {
        violate(process->world, 2, "%s: step %u chunk %u of tag %" PRIu64 " is not expected", process->name,
                (unsigned)frame->step, (unsigned)frame->chunk, frame->tag);
    }
    struct step step = schedule_step(&op->transfer.schedule, frame->step);
    struct chunk_range range = schedule_chunk(&op->transfer.schedule, step.receives, frame->chunk);
    if (link != process->edges[step.from]) {
        violate(process->world, 2, "%s: data of tag %" PRIu64 " comes over the wrong link", process->name,
                frame->tag);
    }
    if (range.count != in->count) {
        violate(process->world, 2, "%s: a chunk has %u elements instead of %" PRIu64, process->name,
                (unsigned)in->count, range.count);
    }
    use_chunk(op, in, &step, range);
    offer(process, op, frame->step + 1u);
    pump(process, op);
    tell_if_whole(process, index);
}

static void hold(struct process *process, struct link_end *link, const struct sim_frame *frame) {
    struct held **place = &process->held;
    while (*place != NULL) {
        place = &(*place)->next;
    }
    *place = arena_take(sizeof **place);
    (*place)->link = link;
    (*place)->frame = frame;
}

static void take_grant(struct process *process, uint32_t index, const struct link_end *link,
                       const struct frame *frame) {
    struct sim_op *op = &process->ops[index];
    if (op->unfit) {
        return;
    }
    if (!same_descriptor(&frame->descriptor, &op->call->descriptor)) {
        tell_mismatch(process, index, link, frame);
        return;
    }
    int edge = 0;
    while (edge < MAX_EDGES && (process->edges[edge] != link || (op->sends_over >> edge & 1) == 0)) {
        edge++;
    }
    if (edge == MAX_EDGES) {
        violate(process->world, 2, "%s: a grant of tag %" PRIu64 " comes over the wrong link", process->name,
                frame->tag);
    }
    if ((op->granted >> edge & 1) != 0) {
        violate(process->world, 2, "%s: tag %" PRIu64 " is granted twice", process->name, frame->tag);
    }
    op->granted |= 1u << edge;
    op->got_grants[edge] = frame->grant;
    pump(process, op);
    tell_if_whole(process, index);
}

static void take_called(struct process *process, uint32_t index, const struct link_end *link,
                        const struct frame *frame) {
    struct sim_op *op = &process->ops[index];
    if (op->unfit) {
        return;
    }
    if (!same_descriptor(&frame->descriptor, &op->call->descriptor)) {
        tell_mismatch(process, index, link, frame);
        return;
    }
    op->awaits_called = false;
    tell_if_whole(process, index);
}

/* False if the frame must wait. */
static bool place(struct process *process, struct link_end *link, const struct sim_frame *in) {
    const struct frame *frame = &in->frame;
    uint32_t index = 0;
    switch (peer_find_op(process->peer, frame->epoch, frame->tag, frame->commits_seen, &index)) {
    case PEER_MATCH_LATER:
        return false;
    case PEER_MATCH_STALE:
        give_credit(link, frame);
        return true;
    case PEER_MATCH_OP:
        break;
    }
    if (index >= SIM_OPS || !process->ops[index].active || process->ops[index].epoch != frame->epoch ||
        process->ops[index].call->tag != frame->tag) {
        violate(process->world, 2, "%s: peer_find_op names an op that was not started", process->name);
    }
    if (frame->type == FRAME_GRANT) {
        take_grant(process, index, link, frame);
    } else if (frame->type == FRAME_CALLED) {
        take_called(process, index, link, frame);
    } else {
        take_chunk(process, index, link, in);
        give_credit(link, frame);
    }
    return true;
}

void engine_frame(struct link_end *link, const struct sim_frame *in) {
    struct process *process = link->process;
    const struct frame *frame = &in->frame;
    if (link->closed || link->state == LINK_DOWN) {
        return;
    }
    if (frame->type == FRAME_CREDIT) {
        link->eager_credit += frame->credit;
        for (int i = 0; i < SIM_OPS; i++) {
            if (process->ops[i].active && !process->ops[i].unfit) {
                pump(process, &process->ops[i]);
            }
        }
        return;
    }
    if (frame->type == FRAME_DATA && (frame->flags & FRAME_EAGER) == 0) {
        for (uint32_t i = 0; i < SIM_OPS; i++) {
            if (process->ops[i].active && process->ops[i].given_grant == frame->grant) {
                take_chunk(process, i, link, in);
                return;
            }
        }
        return; /* an outdated grant: the op was stopped */
    }
    if (!place(process, link, in)) {
        hold(process, link, in);
    }
}

void engine_reexamine(struct process *process) {
    struct held *list = process->held;
    process->held = NULL;
    for (; list != NULL; list = list->next) {
        if (!list->link->closed && !place(process, list->link, list->frame)) {
            hold(process, list->link, list->frame);
        }
    }
}

/* ---- ops ---- */

/* A call that nobody has made: it moves what was kept, or makes room for it. */
static struct call *made_up_call(struct process *process, const struct peer_action *action,
                                 const struct sim_op *op) {
    struct call *call = arena_take(sizeof *call);
    call->number = action->call;
    call->process = process;
    call->kind = CALL_OP;
    call->tag = action->tag;
    call->descriptor = action->descriptor;
    if (op->kept) {
        memcpy(call->input, op->result, action->descriptor.count * sizeof(int64_t));
    }
    return call;
}

void op_start(struct process *process, const struct peer_action *action) {
    struct world *world = process->world;
    if (action->op >= SIM_OPS || process->ops[action->op].active) {
        violate(world, 7, "%s: op index %u is in use or beyond what is in flight", process->name,
                (unsigned)action->op);
    }
    struct sim_op *op = &process->ops[action->op];
    if (op->kept ? action->call != 0 || !action->served : action->call == 0) {
        violate(world, 2, "%s: OP_START of tag %" PRIu64 " does not fit what was kept", process->name,
                action->tag);
    }
    struct call *origin = op->kept ? op->origin : process_call(process, action->call);
    check_start(process, origin, action);
    struct call *call = action->served ? made_up_call(process, action, op) : origin;
    *op = (struct sim_op){.active = true,
                          .unfit = action->unfit,
                          .kept = op->kept,
                          .served = action->served,
                          .call = call,
                          .origin = origin,
                          .epoch = action->epoch,
                          .commits_seen = action->commits_seen,
                          .given_grant = ++process->next_grant,
                          .generation = ++process->op_generation};
    if (action->unfit) {
        return;
    }
    struct schedule schedule =
        schedule_make(call->descriptor.kind, action->tree, action->place, action->world, action->root,
                      call->descriptor.count, sizeof(int64_t));
    /* A few dozen elements would be one chunk: cut finer, so that chunks overtake each other. */
    schedule.chunk_elements = schedule.block_elements;
    uint64_t longest = schedule_segment(&schedule, 0).count;
    schedule.chunks_per_segment =
        (uint32_t)((longest + schedule.chunk_elements - 1) / schedule.chunk_elements);
    op->result = arena_take(MAX_CALL_ELEMENTS * sizeof(int64_t));
    op->scratch = arena_take((schedule.scratch_levels * schedule.count + 1) * sizeof(int64_t));
    if (call->descriptor.kind == OP_BROADCAST) { /* in place */
        memcpy(op->result, call->input, schedule.count * sizeof(int64_t));
    }
    op->sends_over = schedule_sends_over(&schedule);
    transfer_init(&op->transfer, &schedule, arena_take(transfer_bytes(&schedule) + 1));
    offer(process, op, 0);
    announce(process, op);
    pump(process, op);
    tell_if_whole(process, action->op);
}

/* Running, or kept. */
static struct sim_op *find_op(struct process *process, const struct peer_action *action) {
    struct sim_op *op = action->op < SIM_OPS ? &process->ops[action->op] : NULL;
    uint64_t number = op == NULL || op->kept || !op->active ? 0 : op->call->number;
    if (op == NULL || (!op->active && !op->kept) || number != action->call) {
        violate(process->world, 2, "%s: stops or ends op %u, which is not running", process->name,
                (unsigned)action->op);
    }
    return op;
}

void op_stop(struct process *process, const struct peer_action *action) {
    struct sim_op *op = find_op(process, action);
    op->active = false;
    if (op->kept) {
        return;
    }
    op->origin->stopped = true;
    op->origin->started = false;
    op->origin->record->stopped[op->origin->record_rank] = true;
}

static void take_result(struct process *process, struct sim_op *op) {
    if (op->unfit || !op->whole || !transfer_whole(&op->transfer)) {
        violate(process->world, 2, "%s: tag %" PRIu64 " ends before its result is whole", process->name,
                op->call->tag);
    }
    uint64_t count;
    const int64_t *result = complete_result(op, &count);
    memcpy(op->origin->result, result, count * sizeof(int64_t));
}

static void expect_complete(struct process *process, struct call *call) {
    call->finished = true;
    process->expect_complete = true;
    process->finishing = call;
}

void op_keep(struct process *process, const struct peer_action *action) {
    struct sim_op *op = find_op(process, action);
    if (op->kept || !op->active || !op->call->descriptor.early) {
        violate(process->world, 2, "%s: tag %" PRIu64 " is kept and should not be", process->name,
                op->call->tag);
    }
    take_result(process, op);
    check_return(process, op->origin, op);
    op->result = arena_take(MAX_CALL_ELEMENTS * sizeof(int64_t));
    memcpy(op->result, op->origin->result, sizeof op->origin->result);
    op->kept = true;
    op->active = false;
    expect_complete(process, op->origin);
}

void op_forget(struct process *process, const struct peer_action *action) {
    struct sim_op *op = find_op(process, action);
    if (!op->kept || op->active) {
        violate(process->world, 2, "%s: forgets op %u, of which nothing is kept, or which runs",
                process->name, (unsigned)action->op);
    }
    op->kept = false;
    check_forget(process, op->origin);
}

void op_finish(struct process *process, const struct peer_action *action) {
    struct sim_op *op = find_op(process, action);
    if (op->active) {
        take_result(process, op);
    } else {
        memcpy(op->origin->result, op->result, sizeof op->origin->result);
    }
    check_finish(process, op->origin, op);
    op->active = false;
    if (op->kept) {
        op->kept = false;
    } else {
        expect_complete(process, op->origin);
    }
}
