/* What the files of the public calls of a communicator share. */
#ifndef PCCL_COMM_H
#define PCCL_COMM_H

#include "net/comm.h"
#include "pccl.h"

/* pcclComm_t is what net/comm.h calls struct comm. Constness of the handle is the caller's promise not to
 * change its settings; calls go through it all the same. */
static inline struct comm *comm_of(const pcclComm_t *comm) {
    return (struct comm *)(uintptr_t)comm;
}

/* Begins a public call: clears the last error, and says why not if the library is not initialized, `comm`
 * is NULL or is being destroyed. After pcclSuccess the call ends with comm_leave(). */
pcclResult_t public_call_begin(const pcclComm_t *comm, const char *call);

/* The run that a program means: what it says itself (`given`, not NULL), else PCCL_RUN of the environment,
 * else
 * "": none. False, with the last error set, if that name is too long. */
bool public_run_name(const char *given, const char *call, char name_out[MAX_RUN_BYTES + 1]);

/* Sets "call: argument is NULL". */
pcclResult_t public_call_null(const char *call, const char *argument);

#endif
