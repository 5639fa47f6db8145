#define _GNU_SOURCE
#include "pccl_op.h"

#include <stdlib.h>
#include <string.h>

#include "base/last_error.h"
#include "data/datatype.h"
#include "net/clock.h"

/* ---- arguments ---- */

pcclResult_t op_refuse(const char *name, const char *why) {
    last_error_set("%s: %s", name, why);
    return pcclInvalidArgument;
}

pcclResult_t op_check_elements(const char *name, size_t count, int datatype, size_t parts) {
    if (!datatype_valid(datatype)) {
        last_error_set("%s: there is no datatype %d", name, datatype);
        return pcclInvalidArgument;
    }
    if (count > PTRDIFF_MAX / datatype_bytes((uint8_t)datatype) / parts) {
        return op_refuse(name, parts == 1 ? "count times the size of an element is more than memory can hold"
                                          : "count times the size of an element, for each peer, is more than "
                                            "memory can hold");
    }
    return pcclSuccess;
}

pcclResult_t op_check_reduce_op(const char *name, int op) {
    if (!reduce_op_valid(op)) {
        last_error_set("%s: there is no reduce op %d", name, op);
        return pcclInvalidArgument;
    }
    return pcclSuccess;
}

pcclResult_t op_check_options(const char *name, uint8_t kind, const pcclOpOptions_t *options) {
    if (options == NULL) {
        return pcclSuccess;
    }
    if ((options->flags & ~(uint32_t)(pcclOpRetry | pcclOpEarlyReturn)) != 0) {
        return op_refuse(name, "options->flags has bits that are none of pcclOpFlags_t");
    }
    if ((options->flags & pcclOpEarlyReturn) != 0 && kind != OP_ALL_REDUCE) {
        return op_refuse(name,
                         "its result is not the same at all peers, or there is none, so that none could "
                         "hand it to another: pcclOpEarlyReturn is for all-reduce");
    }
    if ((options->flags & pcclOpRetry) != 0 && kind != OP_ALL_REDUCE && kind != OP_BARRIER) {
        return op_refuse(name, "it can't be retried by itself, since it names ranks: pcclOpRetry is for "
                               "all-reduce and barrier");
    }
    int algorithm = (int)options->algorithm;
    if (algorithm < pcclAlgorithmAuto || algorithm > pcclAlgorithmTree) {
        last_error_set("%s: there is no algorithm %d", name, algorithm);
        return pcclInvalidArgument;
    }
    if (algorithm == pcclAlgorithmTree && kind != OP_ALL_REDUCE && kind != OP_BROADCAST) {
        return op_refuse(name, "there is no tree for it: the algorithm must be pcclAlgorithmAuto or "
                               "pcclAlgorithmRing");
    }
    return pcclSuccess;
}

bool op_overlaps(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return x < y ? y - x < a_bytes : x - y < b_bytes;
}

/* ---- the way of a call ---- */

void op_prepare(struct call *call, uint8_t kind, uint64_t tag, const pcclOpOptions_t *options) {
    memset(call, 0, sizeof *call);
    call->tag = tag;
    call->descriptor.kind = kind;
    if (options != NULL) {
        call->descriptor.algorithm = (uint8_t)options->algorithm;
        call->retry = (options->flags & pcclOpRetry) != 0;
    }
    if (options != NULL && options->timeout_ms != 0) {
        call->deadline_ns = clock_now_ns() + options->timeout_ms * NS_PER_MS;
    }
}

_Static_assert((int)pcclAlgorithmAuto == OP_ALGORITHM_AUTO && (int)pcclAlgorithmRing == OP_ALGORITHM_RING &&
                   (int)pcclAlgorithmTree == OP_ALGORITHM_TREE,
               "the public names are those of the wire");

static pcclAlgorithm_t algorithm_of(const struct call *call) {
    if (call->status != pcclSuccess || call->descriptor.kind == OP_BARRIER) {
        return pcclAlgorithmAuto;
    }
    return call->tree ? pcclAlgorithmTree : pcclAlgorithmRing;
}

static void fill_info(pcclReduceInfo_t *info, const struct call *call) {
    if (info != NULL) {
        *info = (pcclReduceInfo_t){.local_world_size = (uint32_t)call->value,
                                   .tx_bytes = call->tx_bytes,
                                   .rx_bytes = call->rx_bytes,
                                   .algorithm = algorithm_of(call)};
    }
}

pcclResult_t op_run(struct comm *comm, struct call *call, pcclReduceInfo_t *info_out) {
    pcclResult_t result = comm_post_op(comm, call);
    if (result == pcclSuccess) {
        comm_wait_any(comm, &call, 1);
        result = comm_result(call);
    }
    fill_info(info_out, call);
    return result;
}

pcclResult_t op_start(struct comm *comm, const struct call *call, pcclAsyncReduceOp_t *handle_out) {
    uint64_t tag = call->tag;
    struct call *copy = malloc(sizeof *copy);
    if (copy == NULL) {
        last_error_set("out of memory");
        return pcclOutOfMemory;
    }
    *copy = *call;
    uint64_t id = 0;
    pcclResult_t result = comm_start_async(comm, copy, &id);
    if (result == pcclSuccess) {
        *handle_out = (pcclAsyncReduceOp_t){.comm = (pcclComm_t *)(void *)comm, .tag = tag, .id = id};
    }
    return result;
}

pcclResult_t pcclAwaitAsyncReduce(const pcclAsyncReduceOp_t *handle, pcclReduceInfo_t *info_out) {
    if (handle == NULL) {
        last_error_clear();
        return public_call_null("pcclAwaitAsyncReduce", "handle");
    }
    pcclResult_t result = public_call_begin(handle->comm, "pcclAwaitAsyncReduce");
    if (result != pcclSuccess) {
        return result;
    }
    struct comm *comm = comm_of(handle->comm);
    struct call *call = NULL;
    result = comm_await_async(comm, handle->tag, handle->id, &call);
    if (call != NULL) {
        fill_info(info_out, call);
        free(call);
    }
    comm_leave(comm);
    return result;
}

pcclResult_t pcclTestAsyncReduce(const pcclAsyncReduceOp_t *handle, bool *done_out) {
    if (handle == NULL || done_out == NULL) {
        last_error_clear();
        return public_call_null("pcclTestAsyncReduce", handle == NULL ? "handle" : "done_out");
    }
    pcclResult_t result = public_call_begin(handle->comm, "pcclTestAsyncReduce");
    if (result == pcclSuccess) {
        result = comm_test_async(comm_of(handle->comm), handle->tag, handle->id, done_out);
        comm_leave(comm_of(handle->comm));
    }
    return result;
}
