/* The public calls of all-reduce: one at a time, async, and many with retries. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/last_error.h"
#include "data/datatype.h"
#include "pccl_op.h"

static size_t buffer_bytes(const pcclReduceDescriptor_t *descriptor) {
    return descriptor->count * datatype_bytes((uint8_t)descriptor->src_descriptor.datatype);
}

static pcclResult_t check_descriptor(const char *call, const pcclReduceDescriptor_t *descriptor) {
    if (descriptor == NULL) {
        return public_call_null(call, "descriptor");
    }
    pcclResult_t result =
        op_check_elements(call, descriptor->count, (int)descriptor->src_descriptor.datatype, 1);
    if (result == pcclSuccess) {
        result = op_check_reduce_op(call, (int)descriptor->op);
    }
    if (result == pcclSuccess && descriptor->quantization_options.algorithm != pcclQuantNone) {
        return op_refuse(call, "quantization is not supported yet: the algorithm must be pcclQuantNone");
    }
    return result;
}

static pcclResult_t check_op(const char *call, const void *sendbuf, const void *recvbuf,
                             const pcclReduceDescriptor_t *descriptor, const pcclOpOptions_t *options) {
    pcclResult_t result = check_descriptor(call, descriptor);
    if (result != pcclSuccess) {
        return result;
    }
    if (descriptor->count > 0 && (sendbuf == NULL || recvbuf == NULL)) {
        return public_call_null(call, sendbuf == NULL ? "sendbuf" : "recvbuf");
    }
    size_t bytes = buffer_bytes(descriptor);
    if (sendbuf != recvbuf && op_overlaps(sendbuf, bytes, recvbuf, bytes)) {
        return op_refuse(call, "sendbuf and recvbuf overlap: they must be the same buffer, or two apart");
    }
    return op_check_options(call, OP_ALL_REDUCE, options);
}

static void fill_call(struct call *call, const void *sendbuf, void *recvbuf,
                      const pcclReduceDescriptor_t *descriptor, const pcclOpOptions_t *options) {
    op_prepare(call, OP_ALL_REDUCE, descriptor->tag, options);
    call->input = sendbuf;
    call->output = recvbuf;
    call->bytes = buffer_bytes(descriptor);
    call->work_bytes = sendbuf == recvbuf ? call->bytes : 0;
    call->descriptor.datatype = (uint8_t)descriptor->src_descriptor.datatype;
    call->descriptor.reduce_op = (uint8_t)descriptor->op;
    call->descriptor.count = descriptor->count;
    bool wished = options != NULL && (options->flags & pcclOpEarlyReturn) != 0;
    call->descriptor.early = wished && call->bytes <= EARLY_RETURN_BYTES;
}

/* ---- one at a time, and async ---- */

static pcclResult_t all_reduce(const char *name, const void *sendbuf, void *recvbuf,
                               const pcclReduceDescriptor_t *descriptor, const pcclOpOptions_t *options,
                               const pcclComm_t *comm, pcclReduceInfo_t *info_out) {
    pcclResult_t result = public_call_begin(comm, name);
    if (result != pcclSuccess) {
        return result;
    }
    result = check_op(name, sendbuf, recvbuf, descriptor, options);
    if (result == pcclSuccess) {
        struct call call;
        fill_call(&call, sendbuf, recvbuf, descriptor, options);
        result = op_run(comm_of(comm), &call, info_out);
    }
    comm_leave(comm_of(comm));
    return result;
}

pcclResult_t pcclAllReduce(const void *sendbuf, void *recvbuf, const pcclReduceDescriptor_t *descriptor,
                           const pcclComm_t *comm, pcclReduceInfo_t *info_out) {
    return all_reduce("pcclAllReduce", sendbuf, recvbuf, descriptor, NULL, comm, info_out);
}

pcclResult_t pcclAllReduceWithOptions(const void *sendbuf, void *recvbuf,
                                      const pcclReduceDescriptor_t *descriptor,
                                      const pcclOpOptions_t *options, const pcclComm_t *comm,
                                      pcclReduceInfo_t *info_out) {
    return all_reduce("pcclAllReduceWithOptions", sendbuf, recvbuf, descriptor, options, comm, info_out);
}

static pcclResult_t all_reduce_async(const char *name, const void *sendbuf, void *recvbuf,
                                     const pcclReduceDescriptor_t *descriptor, const pcclOpOptions_t *options,
                                     const pcclComm_t *comm, pcclAsyncReduceOp_t *handle_out) {
    pcclResult_t result = public_call_begin(comm, name);
    if (result != pcclSuccess) {
        return result;
    }
    result = handle_out == NULL ? public_call_null(name, "handle_out")
                                : check_op(name, sendbuf, recvbuf, descriptor, options);
    if (result == pcclSuccess) {
        struct call call;
        fill_call(&call, sendbuf, recvbuf, descriptor, options);
        result = op_start(comm_of(comm), &call, handle_out);
    }
    comm_leave(comm_of(comm));
    return result;
}

pcclResult_t pcclAllReduceAsync(const void *sendbuf, void *recvbuf, const pcclReduceDescriptor_t *descriptor,
                                const pcclComm_t *comm, pcclAsyncReduceOp_t *handle_out) {
    return all_reduce_async("pcclAllReduceAsync", sendbuf, recvbuf, descriptor, NULL, comm, handle_out);
}

pcclResult_t pcclAllReduceAsyncWithOptions(const void *sendbuf, void *recvbuf,
                                           const pcclReduceDescriptor_t *descriptor,
                                           const pcclOpOptions_t *options, const pcclComm_t *comm,
                                           pcclAsyncReduceOp_t *handle_out) {
    return all_reduce_async("pcclAllReduceAsyncWithOptions", sendbuf, recvbuf, descriptor, options, comm,
                            handle_out);
}

/* ---- many, with retries ---- */

#define MULTIPLE "pcclAllReduceMultipleWithRetry"

/* What the input of an op in place was before it was committed. */
struct undo {
    size_t op;
    struct buffer input;
};

/* Up to `limit` of the ops run at a time; `running` are those, in no order. */
struct window {
    struct comm *comm;
    const pcclReduceOpDescriptor_t *descriptors;
    size_t count, next; /* of all ops; the first that has not been started */
    struct call *calls; /* `limit` of them */
    struct call **running, **idle;
    size_t *op_of; /* which op calls[i] is */
    int limit, running_count, idle_count;
    struct undo *undo; /* in the order of commits */
    size_t undo_count;
    pcclResult_t result; /* of the first that failed for good */
    bool ended;          /* no more are to be started */
    pcclReduceInfo_t info;
};

static void start_next(struct window *window) {
    struct call *call = window->idle[window->idle_count - 1];
    const pcclReduceOpDescriptor_t *descriptor = &window->descriptors[window->next];
    const pcclOpOptions_t options = {.flags = pcclOpRetry};
    fill_call(call, descriptor->sendbuf, descriptor->recvbuf, &descriptor->descriptor, &options);
    call->keep_work = true;
    pcclResult_t result = comm_post_op(window->comm, call);
    if (result == pcclSuccess) {
        window->op_of[call - window->calls] = window->next++;
        window->idle_count--;
        window->running[window->running_count++] = call;
        return;
    }
    window->result = result; /* the last error stands */
    window->ended = true;
}

/* Nobody waits for the rest of the list: this peer is out, or alone, or was never in the op. All else fails
 * an op at all peers, which may be in other places of the list: unless all go on with the rest, those would
 * wait for ever that have started more of it. */
static bool ends_list(uint16_t status) {
    return status == pcclTooFewPeers || status == pcclMasterConnectionLost || status == pcclEvicted ||
           status == pcclInvalidUsage;
}

/* One op has ended: it won't be retried any more. */
static void end_op(struct window *window, int place) {
    struct call *call = window->running[place];
    window->running[place] = window->running[--window->running_count];
    window->idle[window->idle_count++] = call;
    window->info.tx_bytes += call->tx_bytes;
    window->info.rx_bytes += call->rx_bytes;
    if (call->status == pcclSuccess) {
        window->info.local_world_size = (uint32_t)call->value;
        if (call->work.memory != NULL) {
            size_t op = window->op_of[call - window->calls];
            window->undo[window->undo_count++] = (struct undo){.op = op, .input = call->work};
        }
        return;
    }
    buffer_free(&call->work);
    window->ended = window->ended || ends_list(call->status);
    if (window->result == pcclSuccess) {
        window->result = comm_result(call);
    }
}

static void run_window(struct window *window) {
    for (;;) {
        while (!window->ended && window->next < window->count && window->idle_count > 0) {
            start_next(window);
        }
        if (window->running_count == 0) {
            return;
        }
        end_op(window, comm_wait_any(window->comm, window->running, window->running_count));
    }
}

/* All or nothing: results in place of what has been committed are taken back if the whole has failed. */
static void settle_inputs(struct window *window) {
    while (window->undo_count > 0) { /* the latest first: the buffers of two may be the same */
        struct undo *undo = &window->undo[--window->undo_count];
        const pcclReduceOpDescriptor_t *descriptor = &window->descriptors[undo->op];
        if (window->result != pcclSuccess) {
            memcpy(descriptor->recvbuf, undo->input.memory, buffer_bytes(&descriptor->descriptor));
        }
        buffer_free(&undo->input);
    }
}

static bool allot_window(struct window *window) {
    size_t limit = (size_t)window->limit;
    window->calls = calloc(limit, sizeof *window->calls);
    window->running = calloc(limit, sizeof *window->running);
    window->idle = calloc(limit, sizeof *window->idle);
    window->op_of = calloc(limit, sizeof *window->op_of);
    window->undo = calloc(window->count, sizeof *window->undo);
    if (window->calls == NULL || window->running == NULL || window->idle == NULL || window->op_of == NULL ||
        window->undo == NULL) {
        return false;
    }
    for (int i = 0; i < window->limit; i++) {
        window->idle[window->idle_count++] = &window->calls[i];
    }
    return true;
}

static void free_window(struct window *window) {
    free(window->calls);
    free(window->running);
    free(window->idle);
    free(window->op_of);
    free(window->undo);
}

static int compare_tags(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

/* Under one tag at most one op can be in flight. */
static pcclResult_t check_tags(const pcclReduceOpDescriptor_t *descriptors, size_t count) {
    uint64_t *tags = malloc(count * sizeof *tags);
    if (tags == NULL) {
        last_error_set(MULTIPLE ": out of memory");
        return pcclOutOfMemory;
    }
    for (size_t i = 0; i < count; i++) {
        tags[i] = descriptors[i].descriptor.tag;
    }
    qsort(tags, count, sizeof *tags, compare_tags);
    pcclResult_t result = pcclSuccess;
    for (size_t i = 1; i < count && result == pcclSuccess; i++) {
        if (tags[i] == tags[i - 1]) {
            last_error_set(MULTIPLE ": two of the %zu ops have tag %" PRIu64 ": each needs one of its own",
                           count, tags[i]);
            result = pcclInvalidArgument;
        }
    }
    free(tags);
    return result;
}

static pcclResult_t check_multiple(const pcclReduceOpDescriptor_t *descriptors, size_t count,
                                   int max_in_flight) {
    if (descriptors == NULL && count > 0) {
        return public_call_null(MULTIPLE, "descriptors");
    }
    if (max_in_flight < 1) {
        return op_refuse(MULTIPLE, "max_in_flight must be at least 1");
    }
    for (size_t i = 0; i < count; i++) {
        pcclResult_t result = check_op(MULTIPLE, descriptors[i].sendbuf, descriptors[i].recvbuf,
                                       &descriptors[i].descriptor, NULL);
        if (result != pcclSuccess) {
            return result;
        }
    }
    return count > 1 ? check_tags(descriptors, count) : pcclSuccess;
}

static pcclResult_t run_multiple(struct comm *comm, const pcclReduceOpDescriptor_t *descriptors, size_t count,
                                 int max_in_flight, pcclReduceInfo_t *info_out) {
    size_t limit = (size_t)max_in_flight < count ? (size_t)max_in_flight : count;
    limit = limit < MAX_OPS ? limit : MAX_OPS;
    struct window window = {.comm = comm, .descriptors = descriptors, .count = count, .limit = (int)limit};
    if (count == 0) {
        /* nothing to do, and nobody to wait for */
    } else if (allot_window(&window)) {
        run_window(&window);
        settle_inputs(&window);
    } else {
        last_error_set(MULTIPLE ": out of memory");
        window.result = pcclOutOfMemory;
    }
    free_window(&window);
    if (info_out != NULL) {
        *info_out = window.info;
    }
    return window.result;
}

pcclResult_t pcclAllReduceMultipleWithRetry(const pcclReduceOpDescriptor_t *descriptors, size_t count,
                                            const pcclComm_t *comm, pcclReduceInfo_t *info_out,
                                            int max_in_flight) {
    pcclResult_t result = public_call_begin(comm, MULTIPLE);
    if (result != pcclSuccess) {
        return result;
    }
    result = check_multiple(descriptors, count, max_in_flight);
    if (result == pcclSuccess) {
        result = run_multiple(comm_of(comm), descriptors, count, max_in_flight, info_out);
    }
    comm_leave(comm_of(comm));
    return result;
}
