/* The public calls of broadcast, all-gather, reduce-scatter and barrier. */
#define _GNU_SOURCE
#include "base/last_error.h"
#include "base/limits.h"
#include "data/datatype.h"
#include "pccl_op.h"

/* What a public call has been given. */
struct request {
    const char *name;
    uint8_t kind; /* enum op_kind */
    const void *sendbuf;
    void *recvbuf;
    const pcclCollectiveDescriptor_t *descriptor;
    const pcclOpOptions_t *options;
};

static bool has_parts(const struct request *request) {
    return request->kind == OP_ALL_GATHER || request->kind == OP_REDUCE_SCATTER;
}

static size_t part_bytes(const struct request *request) {
    return request->descriptor->count * datatype_bytes((uint8_t)request->descriptor->datatype);
}

static pcclResult_t check_descriptor(const struct request *request) {
    const pcclCollectiveDescriptor_t *descriptor = request->descriptor;
    if (descriptor == NULL) {
        return public_call_null(request->name, "descriptor");
    }
    uint32_t parts = has_parts(request) ? descriptor->world_size : 1;
    if (parts < 1 || parts > MAX_PEERS) {
        last_error_set("%s: world_size is %u: it must be that of the group, at most %d", request->name,
                       (unsigned)parts, (int)MAX_PEERS);
        return pcclInvalidArgument;
    }
    pcclResult_t result =
        op_check_elements(request->name, descriptor->count, (int)descriptor->datatype, parts);
    if (result == pcclSuccess && request->kind == OP_REDUCE_SCATTER) {
        result = op_check_reduce_op(request->name, (int)descriptor->op);
    }
    return result;
}

/* The part of this peer may lie in the other buffer, where that has the part of a rank. Of which rank is the
 * engine's to judge, since ranks may change before the op begins. */
static pcclResult_t check_buffers(const struct request *request) {
    const void *send = request->sendbuf, *receive = request->recvbuf;
    if (request->descriptor->count == 0) {
        return pcclSuccess; /* there is nothing in them */
    }
    if (request->kind == OP_BROADCAST) {
        return receive == NULL ? public_call_null(request->name, "buffer") : pcclSuccess;
    }
    if (send == NULL || receive == NULL) {
        return public_call_null(request->name, send == NULL ? "sendbuf" : "recvbuf");
    }
    bool gathers = request->kind == OP_ALL_GATHER;
    const void *part = gathers ? send : receive, *whole = gathers ? receive : send;
    size_t size = part_bytes(request);
    bool in_place = (uintptr_t)part >= (uintptr_t)whole && ((uintptr_t)part - (uintptr_t)whole) % size == 0;
    if (!in_place && op_overlaps(part, size, whole, size * request->descriptor->world_size)) {
        return op_refuse(request->name,
                         gathers ? "sendbuf and recvbuf overlap: sendbuf must be recvbuf + rank * count, or "
                                   "apart from it"
                                 : "sendbuf and recvbuf overlap: recvbuf must be sendbuf + rank * count, or "
                                   "apart from it");
    }
    return pcclSuccess;
}

/* Numbers that the group has had may be of an epoch that has just ended: such a call has to fail in the way
 * of a lost peer, and does so in the core. */
static pcclResult_t check_ranks(const struct request *request, struct comm *comm) {
    const pcclCollectiveDescriptor_t *descriptor = request->descriptor;
    struct peer_status status;
    comm_get_status(comm, &status);
    if (!status.connected) {
        return pcclSuccess; /* the way through net/ ends there, with the right sentence */
    }
    if (request->kind == OP_BROADCAST && descriptor->root >= status.largest_world) {
        last_error_set("%s: root is %u, but the ranks of the group are 0 to %u", request->name,
                       (unsigned)descriptor->root, (unsigned)status.world - 1);
        return pcclInvalidArgument;
    }
    if (has_parts(request) &&
        (descriptor->world_size < status.world || descriptor->world_size > status.largest_world)) {
        last_error_set("%s: the buffers are for %u peers, but the group has %u: read its world size",
                       request->name, (unsigned)descriptor->world_size, (unsigned)status.world);
        return pcclInvalidArgument;
    }
    return pcclSuccess;
}

static pcclResult_t check(const struct request *request, struct comm *comm) {
    pcclResult_t result = op_check_options(request->name, request->kind, request->options);
    if (result != pcclSuccess || request->kind == OP_BARRIER) {
        return result;
    }
    result = check_descriptor(request);
    if (result == pcclSuccess) {
        result = check_buffers(request);
    }
    return result == pcclSuccess ? check_ranks(request, comm) : result;
}

static void set_sizes(struct call *call, const struct request *request) {
    const pcclCollectiveDescriptor_t *descriptor = request->descriptor;
    size_t part = part_bytes(request), whole = part * descriptor->world_size;
    call->input = request->sendbuf;
    call->output = request->recvbuf;
    call->descriptor.datatype = (uint8_t)descriptor->datatype;
    call->descriptor.count = descriptor->count;
    switch (request->kind) {
    case OP_BROADCAST:
        call->descriptor.root_or_world = (uint16_t)descriptor->root;
        call->bytes = part;
        call->work_bytes = part; /* to put back what the buffer held */
        break;
    case OP_ALL_GATHER:
        call->descriptor.root_or_world = (uint16_t)descriptor->world_size;
        call->bytes = part;
        break;
    default:
        call->descriptor.root_or_world = (uint16_t)descriptor->world_size;
        call->descriptor.reduce_op = (uint8_t)descriptor->op;
        call->bytes = whole;
        call->work_bytes = whole; /* partial sums */
        break;
    }
}

/* After pcclSuccess the communicator is entered, and `call` can go. */
static pcclResult_t begin(const struct request *request, uint64_t tag, const pcclComm_t *comm,
                          struct call *call) {
    pcclResult_t result = public_call_begin(comm, request->name);
    if (result != pcclSuccess) {
        return result;
    }
    result = check(request, comm_of(comm));
    if (result != pcclSuccess) {
        comm_leave(comm_of(comm));
        return result;
    }
    op_prepare(call, request->kind, tag, request->options);
    if (request->kind != OP_BARRIER) {
        set_sizes(call, request);
    }
    return pcclSuccess;
}

static uint64_t tag_of(const struct request *request) {
    return request->descriptor != NULL ? request->descriptor->tag : 0;
}

static pcclResult_t run(const struct request *request, uint64_t tag, const pcclComm_t *comm,
                        pcclReduceInfo_t *info_out) {
    struct call call;
    pcclResult_t result = begin(request, tag, comm, &call);
    if (result == pcclSuccess) {
        result = op_run(comm_of(comm), &call, info_out);
        comm_leave(comm_of(comm));
    }
    return result;
}

static pcclResult_t start(const struct request *request, uint64_t tag, const pcclComm_t *comm,
                          pcclAsyncReduceOp_t *handle_out) {
    if (handle_out == NULL) {
        last_error_clear();
        return public_call_null(request->name, "handle_out");
    }
    struct call call;
    pcclResult_t result = begin(request, tag, comm, &call);
    if (result == pcclSuccess) {
        result = op_start(comm_of(comm), &call, handle_out);
        comm_leave(comm_of(comm));
    }
    return result;
}

/* ---- broadcast ---- */

pcclResult_t pcclBroadcast(void *buffer, const pcclCollectiveDescriptor_t *descriptor,
                           const pcclOpOptions_t *options, const pcclComm_t *comm,
                           pcclReduceInfo_t *info_out) {
    struct request request = {"pcclBroadcast", OP_BROADCAST, buffer, buffer, descriptor, options};
    return run(&request, tag_of(&request), comm, info_out);
}

pcclResult_t pcclBroadcastAsync(void *buffer, const pcclCollectiveDescriptor_t *descriptor,
                                const pcclOpOptions_t *options, const pcclComm_t *comm,
                                pcclAsyncReduceOp_t *handle_out) {
    struct request request = {"pcclBroadcastAsync", OP_BROADCAST, buffer, buffer, descriptor, options};
    return start(&request, tag_of(&request), comm, handle_out);
}

/* ---- all-gather ---- */

pcclResult_t pcclAllGather(const void *sendbuf, void *recvbuf, const pcclCollectiveDescriptor_t *descriptor,
                           const pcclOpOptions_t *options, const pcclComm_t *comm,
                           pcclReduceInfo_t *info_out) {
    struct request request = {"pcclAllGather", OP_ALL_GATHER, sendbuf, recvbuf, descriptor, options};
    return run(&request, tag_of(&request), comm, info_out);
}

pcclResult_t pcclAllGatherAsync(const void *sendbuf, void *recvbuf,
                                const pcclCollectiveDescriptor_t *descriptor, const pcclOpOptions_t *options,
                                const pcclComm_t *comm, pcclAsyncReduceOp_t *handle_out) {
    struct request request = {"pcclAllGatherAsync", OP_ALL_GATHER, sendbuf, recvbuf, descriptor, options};
    return start(&request, tag_of(&request), comm, handle_out);
}

/* ---- reduce-scatter ---- */

pcclResult_t pcclReduceScatter(const void *sendbuf, void *recvbuf,
                               const pcclCollectiveDescriptor_t *descriptor, const pcclOpOptions_t *options,
                               const pcclComm_t *comm, pcclReduceInfo_t *info_out) {
    struct request request = {"pcclReduceScatter", OP_REDUCE_SCATTER, sendbuf, recvbuf, descriptor, options};
    return run(&request, tag_of(&request), comm, info_out);
}

pcclResult_t pcclReduceScatterAsync(const void *sendbuf, void *recvbuf,
                                    const pcclCollectiveDescriptor_t *descriptor,
                                    const pcclOpOptions_t *options, const pcclComm_t *comm,
                                    pcclAsyncReduceOp_t *handle_out) {
    struct request request = {
        "pcclReduceScatterAsync", OP_REDUCE_SCATTER, sendbuf, recvbuf, descriptor, options};
    return start(&request, tag_of(&request), comm, handle_out);
}

/* ---- barrier ---- */

pcclResult_t pcclBarrier(uint64_t tag, const pcclOpOptions_t *options, const pcclComm_t *comm,
                         pcclReduceInfo_t *info_out) {
    struct request request = {.name = "pcclBarrier", .kind = OP_BARRIER, .options = options};
    return run(&request, tag, comm, info_out);
}

pcclResult_t pcclBarrierAsync(uint64_t tag, const pcclOpOptions_t *options, const pcclComm_t *comm,
                              pcclAsyncReduceOp_t *handle_out) {
    struct request request = {.name = "pcclBarrierAsync", .kind = OP_BARRIER, .options = options};
    return start(&request, tag, comm, handle_out);
}
