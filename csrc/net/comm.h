/* A communicator as the public calls use it: its net thread's life, and calls that wait. Arguments have
 * been checked (csrc/pccl.c). Functions that return a pcclResult_t have set the thread's last error when
 * it is not pcclSuccess. Any thread, unless said otherwise. */
#ifndef PCCL_NET_COMM_H
#define PCCL_NET_COMM_H

#include <stdbool.h>
#include <stdint.h>

#include "net/call.h"
#include "net/peer_loop.h"
#include "pccl.h"

struct comm;

/* NULL, with the last error set, if memory or descriptors are out. The caller destroys it. */
struct comm *comm_create(const struct peer_loop_options *options);
/* Leaves the run, within the timeout; ends what waits in other threads, and waits for them to be gone. */
void comm_destroy(struct comm *comm);
/* Not while a call waits. */
void comm_set_interrupt_check(struct comm *comm, bool (*check)(void *), void *context, uint32_t interval_ms);

/* Brackets of every public call: between them the communicator is not freed. False if it is being
 * destroyed, or belongs to the process that this one was forked from. */
bool comm_enter(struct comm *comm);
void comm_leave(struct comm *comm);

/* Starts the net thread if there is none yet, and joins the run, within `timeout_ms`; 0: no bound. */
pcclResult_t comm_connect(struct comm *comm, uint32_t timeout_ms);
/* Where the next comm_connect() looks for the master. */
void comm_set_master(struct comm *comm, const struct dial_place *place);
pcclResult_t comm_close(struct comm *comm);
/* A joint call. *value_out is the result's value. */
pcclResult_t comm_vote(struct comm *comm, uint8_t kind, uint64_t *value_out);
void comm_get_status(struct comm *comm, struct peer_status *status);
uint32_t comm_group(const struct comm *comm);

/* For calls that do more than wait (net/state_sync.c). */
const struct message_hello *comm_hello(const struct comm *comm);
/* Hands a call to the net thread; pcclInvalidUsage if there is none. It is to be awaited. */
pcclResult_t comm_post(struct comm *comm, struct call *call);
/* Hands it over and waits until it is done. */
pcclResult_t comm_run(struct comm *comm, struct call *call);
/* How often a thread that waits has to ask comm_interrupted(); UINT64_MAX: never. */
uint64_t comm_check_interval_ns(const struct comm *comm);
/* Asks the interrupt check. True: the wait is to end, and the communicator is being closed. */
bool comm_interrupted(struct comm *comm);
/* What this peer's memory was left with by a sync that failed half-way: a mix of two states, which must not
 * be elected. NULL: it is none. */
void comm_set_mixture(struct comm *comm, const struct digest *content);
bool comm_is_mixture(struct comm *comm, const struct digest *content);

/* Hands an op to the net thread: of `call`, what is asked is filled in, the rest is zero. Its `work_bytes` of
 * room are taken here; without them it fails for all, with pcclOutOfMemory. Beyond MAX_OPS it waits for its
 * turn. Unless this succeeds (pcclInvalidUsage), the call was not made. It is to be awaited. */
pcclResult_t comm_post_op(struct comm *comm, struct call *call);
/* Waits until one of the calls is done and returns its place. Asks the interrupt check meanwhile. Their
 * results are in the calls; the last error is not set. */
int comm_wait_any(struct comm *comm, struct call *const *calls, int count);
/* The status of a call that is done; sets the last error. */
pcclResult_t comm_result(const struct call *call);

/* The same for ops that are awaited by tag and id; id 0 means whichever has the tag. Starting takes over
 * `call` (from malloc), whatever it returns: pcclTooFewPeers when this peer is alone in its group,
 * pcclRefused when MAX_STARTED_OPS have not been awaited. */
pcclResult_t comm_start_async(struct comm *comm, struct call *call, uint64_t *id_out);
/* *call_out is done, and the caller's to free; pcclInvalidArgument if there is none. */
pcclResult_t comm_await_async(struct comm *comm, uint64_t tag, uint64_t id, struct call **call_out);
pcclResult_t comm_test_async(struct comm *comm, uint64_t tag, uint64_t id, bool *done_out);

#endif
