/* One call of sync_shared_state, in the thread that makes it: hashes, offers, then serves those who fetch or
 * fetches itself, until the master has spoken. Everything the tensors are touched with is here; the net
 * thread only passes plans, sockets and the verdict. */
#ifndef PCCL_NET_STATE_SYNC_H
#define PCCL_NET_STATE_SYNC_H

#include "net/comm.h"
#include "net/state_table.h"
#include "pccl.h"

struct state_sync_request {
    uint64_t revision;
    bool requires_peers;                                                 /* alone: pcclTooFewPeers */
    uint8_t strategy;                                                    /* pcclSharedStateSyncStrategy_t */
    void (*progress)(void *context, const pcclSyncProgress_t *progress); /* may be NULL */
    void *context;
};

struct state_sync_outcome {
    uint64_t revision;           /* elected, after pcclSuccess */
    uint64_t tx_bytes, rx_bytes; /* of tensors */
};

/* The table is the caller's; its hashes are filled in. Blocks until all members of the group have called,
 * without a bound but their straggler timeouts, and until all hold the elected state. Whether it failed or
 * not, the last error says whether memory was changed. */
pcclResult_t state_sync_run(struct comm *comm, struct state_table *table,
                            const struct state_sync_request *request, struct state_sync_outcome *outcome);

#endif
