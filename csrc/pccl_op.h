/* What the public calls of all collectives share: checks of arguments, and the way through net/. `name` is
 * always that of the public call, for the sentence. */
#ifndef PCCL_OP_H
#define PCCL_OP_H

#include "pccl_comm.h"

/* Sets "name: why". */
pcclResult_t op_refuse(const char *name, const char *why);
/* Elements of a type that there is, and `parts` times as many are not more than memory. */
pcclResult_t op_check_elements(const char *name, size_t count, int datatype, size_t parts);
pcclResult_t op_check_reduce_op(const char *name, int op);
/* `options` may be NULL. */
pcclResult_t op_check_options(const char *name, uint8_t kind, const pcclOpOptions_t *options);
/* Whether the buffers have a byte in common. */
bool op_overlaps(const void *a, size_t a_bytes, const void *b, size_t b_bytes);

/* The call of an op without its buffers, its sizes, and what else is in its descriptor. */
void op_prepare(struct call *call, uint8_t kind, uint64_t tag, const pcclOpOptions_t *options);
/* Blocks until it is over. */
pcclResult_t op_run(struct comm *comm, struct call *call, pcclReduceInfo_t *info_out);
/* Copies `call`, and returns at once. */
pcclResult_t op_start(struct comm *comm, const struct call *call, pcclAsyncReduceOp_t *handle_out);

#endif
