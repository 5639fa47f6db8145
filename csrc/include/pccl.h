/* pccl: fault-tolerant collective communication. The public C interface: C99 and C++20.
 *
 * Every function returns a pcclResult_t. When one is not pcclSuccess, pcclGetLastError() has a full
 * sentence: who, what, how long, what to do. All functions may be called from any thread; those that
 * block say for how long. */
#ifndef PCCL_H
#define PCCL_H

#ifdef __cplusplus
#include <cstddef>
#include <cstdint>
#else
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#endif

#include "ccoip.h"
#include "ccoip_inet.h"

#if defined(_MSC_VER)
#define PCCL_EXPORT
#else
#define PCCL_EXPORT __attribute__((visibility("default")))
#endif
#define PCCL_NULLABLE /* the argument may be NULL */

#ifdef __cplusplus
extern "C" {
#endif

/* <cffi> */
typedef enum pcclResult_t {
    pcclSuccess = 0,
    pcclNotInitialized = 1,         /* call pcclInit first */
    pcclInternalError = 2,          /* a defect of pccl, or the system gave no thread or socket */
    pcclInvalidArgument = 3,        /* nothing was sent; correct the argument */
    pcclInvalidUsage = 4,           /* the call does not fit what this communicator is doing */
    pcclTooFewPeers = 5,            /* alone: wait for others, then pcclUpdateTopology */
    pcclMasterConnectionFailed = 6, /* nobody answers as a master there */
    pcclRankConnectionFailed = 7,   /* no link to the others could be made */
    pcclRankConnectionLost = 8,     /* a peer was lost during the call: retry */
    pcclNoSharedStateAvailable = 9, /* nobody offers a state to copy */
    pcclPendingAsyncOps = 10,       /* await them first */
    pcclUpdateTopologyFailed = 11,  /* retry */
    pcclTopologyOptimizationFailed = 12,
    pcclTimeout = 13,              /* the bound that you set has passed; nothing was changed */
    pcclMasterConnectionLost = 14, /* the run is over for this communicator: connect again */
    pcclMismatch = 15,             /* peers called different things */
    pcclEvicted = 16,              /* the master put this peer out: connect again */
    pcclRefused = 17,              /* the master does not let this peer in (version, secret), or a limit */
    pcclOutOfMemory = 18
} pcclResult_t;

typedef enum pcclDataType_t {
    pcclUint8 = 0,
    pcclInt8 = 1,
    pcclInt16 = 2,
    pcclUint16 = 3,
    pcclUint32 = 4,
    pcclInt32 = 5,
    pcclUint64 = 6,
    pcclInt64 = 7,
    pcclFloat16 = 8,
    pcclBFloat16 = 9,
    pcclFloat = 10,
    pcclDouble = 11
} pcclDataType_t;

typedef enum pcclDeviceType_t { pcclDeviceCpu = 0, pcclDeviceCuda = 1 } pcclDeviceType_t;

/* Integers wrap; avg of integers rounds toward zero; NaN wins in max and min. */
typedef enum pcclRedOp_t { pcclSum = 0, pcclAvg = 1, pcclProd = 2, pcclMax = 3, pcclMin = 4 } pcclRedOp_t;

/* Accepted peers only. */
typedef enum pcclAttribute_t {
    PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE = 1,
    PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE = 2,
    PCCL_ATTRIBUTE_NUM_DISTINCT_PEER_GROUPS = 3,
    PCCL_ATTRIBUTE_LARGEST_PEER_GROUP_WORLD_SIZE = 4
} pcclAttribute_t;

typedef enum pcclSharedStateSyncStrategy_t {
    PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR = 0,
    PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY = 1,
    PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY = 2
} pcclSharedStateSyncStrategy_t;

typedef enum pcclDistributionHint_t {
    pcclDistributionNone = 0,
    pcclDistributionNormal = 1,
    pcclDistributionUniform = 2
} pcclDistributionHint_t;

typedef enum pcclQuantizationAlgorithm_t {
    pcclQuantNone = 0,
    pcclQuantMinMax = 1,
    pcclQuantZeroPointScale = 2
} pcclQuantizationAlgorithm_t;

typedef struct pcclComm_t pcclComm_t;
typedef struct pcclMasterInstance_t pcclMasterInstance_t;

typedef enum pcclCommFlags_t {
    /* Links between processes of one user on one machine go over TCP too, not through memory that they share;
     * the environment variable PCCL_TCP_ONLY=1 says the same for all communicators. */
    pcclCommTcpOnly = 1
} pcclCommFlags_t;

/* Everything after p2p_connection_pool_size is optional: zero means the default. */
typedef struct pcclCommCreateParams_t {
    ccoip_socket_address_t master_address; /* see also pcclSetMasterAddresses */
    uint32_t peer_group;                   /* collectives span the peers of one group */
    uint32_t p2p_connection_pool_size;     /* streams per link, at most 64; 0: 4 */
    uint32_t timeout_ms;           /* silence or stall of what ought to move; 0: 10000, at least 100 */
    uint32_t straggler_timeout_ms; /* how long to wait for a peer that has not called yet; 0: no bound */
    const char *name;              /* shown in logs and errors, at most 63 bytes; copied */
    /* "host", "host:port" or "[IPv6]:port" that other peers reach this one by, if that is not where its
     * connection to the master comes from; a name is looked up here, once. NULL: PCCL_ADVERTISE, else none.
     */
    const char *advertise_host;
    uint16_t listen_port;  /* 0: the first free one from 48149 up */
    const uint8_t *secret; /* not supported yet: must be NULL */
    size_t secret_size;
    uint32_t flags;        /* of pcclCommFlags_t */
    uint32_t data_threads; /* for large ops, at most 16; 0: PCCL_DATA_THREADS, else as many as are best */
    /* The run that this peer belongs to, at most 63 bytes; copied. NULL: PCCL_RUN, else none (""). A master
     * lets in only peers that name the same run, so that no second job joins the first one by mistake: see
     * pcclMasterCreateParams_t. */
    const char *run;
} pcclCommCreateParams_t;

/* How the bytes of an op travel; see docs/collectives.md. Auto: a tree for small payloads, else a ring. */
typedef enum pcclAlgorithm_t {
    pcclAlgorithmAuto = 0,
    pcclAlgorithmRing = 1,
    pcclAlgorithmTree = 2 /* all-reduce and broadcast; the ring where there is no tree in this epoch */
} pcclAlgorithm_t;

typedef struct pcclReduceInfo_t {
    uint32_t local_world_size; /* of the group, when the op was committed */
    uint64_t tx_bytes;         /* on the wire, headers included */
    uint64_t rx_bytes;
    pcclAlgorithm_t algorithm; /* that was used; pcclAlgorithmAuto: none (barrier, failure), or several */
} pcclReduceInfo_t;

typedef struct pcclReduceOperandDescriptor_t {
    pcclDataType_t datatype;
    pcclDistributionHint_t distribution_hint;
} pcclReduceOperandDescriptor_t;

typedef struct pcclQuantizationOptions_t {
    pcclDataType_t quantized_datatype;
    pcclQuantizationAlgorithm_t algorithm;
} pcclQuantizationOptions_t;

typedef struct pcclReduceDescriptor_t {
    size_t count; /* elements; 0: there is nothing to move, all the same all have to call it */
    pcclRedOp_t op;
    uint64_t tag; /* names the op among those in flight; equal at all peers */
    pcclReduceOperandDescriptor_t src_descriptor;
    pcclQuantizationOptions_t quantization_options;
} pcclReduceDescriptor_t;

typedef struct pcclReduceSingleDescriptor_t {
    void *sendbuf;
    void *recvbuf;
    pcclReduceDescriptor_t descriptor;
} pcclReduceOpDescriptor_t;

typedef struct pcclAsyncReduceOp_t {
    pcclComm_t *comm;
    uint64_t tag;
    uint64_t id; /* which of the ops under this tag; 0, or that of an op with another one: the latest */
} pcclAsyncReduceOp_t;

typedef struct pcclTensorInfo_t {
    const char *name;
    void *data;
    size_t count;
    pcclDataType_t datatype;
    pcclDeviceType_t device_type;
    bool allow_content_inequality;
} pcclTensorInfo_t;

typedef struct pcclSharedState_t {
    uint64_t revision;
    size_t count;
    pcclTensorInfo_t *infos;
} pcclSharedState_t;

typedef struct pcclSharedStateSyncInfo_t {
    uint64_t tx_bytes; /* of tensors, that others have fetched here */
    uint64_t rx_bytes; /* of tensors; both are 0 if all states were equal */
} pcclSharedStateSyncInfo_t;

typedef enum pcclSyncPhase_t {
    pcclSyncHashing = 0,
    pcclSyncWaiting = 1,   /* for the others: nothing is counted */
    pcclSyncReceiving = 2, /* bytes that differ */
    pcclSyncSending = 3    /* to all who fetch here; the total is not known: 0 */
} pcclSyncPhase_t;

typedef struct pcclSyncProgress_t {
    pcclSyncPhase_t phase;
    uint64_t done_bytes;
    uint64_t total_bytes;
} pcclSyncProgress_t;

typedef enum pcclSyncFlags_t {
    pcclSyncRequirePeers = 1 /* alone in the group: pcclTooFewPeers, and not pcclSuccess */
} pcclSyncFlags_t;

/* Optional for one sync; zero means the default. */
typedef struct pcclSyncOptions_t {
    /* Called in the thread that synchronises, about ten times a second; must not call pccl. */
    void (*progress)(void *context, const pcclSyncProgress_t *progress);
    void *context;
    uint32_t flags; /* of pcclSyncFlags_t */
} pcclSyncOptions_t;

typedef struct pcclBuildInfo_t {
    bool has_cuda_support;
} pcclBuildInfo_t;

typedef enum pcclOpFlags_t {
    pcclOpRetry = 1,      /* when a peer is lost, start again with those that are left, at once; see below */
    pcclOpEarlyReturn = 2 /* all-reduce: return a result of up to 64 KiB before its commit; see below */
} pcclOpFlags_t;

/* Optional for one op; zero means the default. */
typedef struct pcclOpOptions_t {
    uint32_t timeout_ms;       /* the op fails for all with pcclTimeout when it takes longer; 0: no bound */
    uint32_t flags;            /* of pcclOpFlags_t */
    pcclAlgorithm_t algorithm; /* equal at all peers */
} pcclOpOptions_t;

/* One broadcast, all-gather or reduce-scatter. What it does not use is not looked at. */
typedef struct pcclCollectiveDescriptor_t {
    size_t count; /* elements, 0 or more: of the buffer (broadcast), or of the part of each peer */
    pcclDataType_t datatype;
    pcclRedOp_t op;      /* reduce-scatter */
    uint32_t root;       /* broadcast: the rank whose buffer is copied */
    uint32_t world_size; /* all-gather, reduce-scatter: of the group, which the buffers are made for */
    uint64_t tag;        /* names the op among those in flight; equal at all peers */
} pcclCollectiveDescriptor_t;

/* What a communicator knows of itself. Ids are 16 random bytes; rank and world size are those of the
 * group in `epoch`. All zero before pcclConnect. */
typedef struct pcclCommInfo_t {
    uint8_t peer_id[16];
    uint8_t run_id[16];
    uint64_t epoch;
    uint32_t rank;
    uint32_t world_size;
    uint32_t global_world_size;
    uint32_t peer_group;
    bool connected;
} pcclCommInfo_t;

typedef struct pcclMasterStatus_t {
    uint8_t run_id[16];
    uint64_t epoch; /* the newest one committed in any group */
    uint32_t peers;
    uint32_t pending;
    uint32_t groups;
} pcclMasterStatus_t;

/* Zero means the default. */
typedef struct pcclMasterCreateParams_t {
    ccoip_socket_address_t listen_address; /* port 0 picks a free one */
    /* The only run to serve, at most 63 bytes; copied. NULL: PCCL_RUN, else none (""): then the first peer
     * decides which run it is, or that it has no name, until all have left. Others get pcclRefused. */
    const char *run;
} pcclMasterCreateParams_t;

/* Once per process, before anything else. More calls do no harm. */
PCCL_EXPORT pcclResult_t pcclInit(void);
PCCL_EXPORT pcclResult_t pcclGetBuildInfo(pcclBuildInfo_t *info);

/* "a peer was lost during the call" ... : a static text for any result. Never NULL. */
PCCL_EXPORT const char *pcclResultString(pcclResult_t result);
/* The sentence of the calling thread's last failure, of any communicator; "" if there was none. Valid
 * until this thread's next call of pccl. `comm` may be NULL. */
PCCL_EXPORT const char *pcclGetLastError(const pcclComm_t *comm);

/* Does not connect. The caller destroys *comm_out with pcclDestroyCommunicator. */
PCCL_EXPORT pcclResult_t pcclCreateCommunicator(const pcclCommCreateParams_t *params, pcclComm_t **comm_out);
/* Says goodbye, ends every call that waits on other threads, joins the communicator's threads and frees
 * it. Blocks for at most the communicator's timeout. */
PCCL_EXPORT pcclResult_t pcclDestroyCommunicator(pcclComm_t *comm);
/* Says goodbye and ends every call that waits on other threads (pcclInvalidUsage), but frees nothing.
 * pcclConnect joins again. */
PCCL_EXPORT pcclResult_t pcclCloseCommunicator(pcclComm_t *comm);
/* While a call of this communicator waits, it asks `check` every `interval_ms`; true ends the wait, the
 * call returns pcclInvalidUsage and the communicator is closed. Not while a call waits. NULL: none. */
PCCL_EXPORT pcclResult_t pcclSetInterruptCheck(pcclComm_t *comm, bool (*check)(void *), void *context,
                                               uint32_t interval_ms);

/* pcclInvalidUsage before pcclConnect; pcclMasterConnectionLost or pcclEvicted since that has happened. */
PCCL_EXPORT pcclResult_t pcclGetAttribute(const pcclComm_t *comm, pcclAttribute_t attribute, int *value_out);
PCCL_EXPORT pcclResult_t pcclGetCommInfo(const pcclComm_t *comm, pcclCommInfo_t *info_out);

/* Where the next pcclConnect looks for the master: at any of `count` addresses, 1 to 16. They are tried in
 * this order, each next one when those before it have failed or have not answered for 250 ms. `name` is what
 * the user calls that place ("master.example:48148"), for messages; NULL: nothing. A program whose master has
 * a host name looks that up and calls this before each pcclConnect, since a name may come to stand for other
 * addresses. */
PCCL_EXPORT pcclResult_t pcclSetMasterAddresses(pcclComm_t *comm, const ccoip_socket_address_t *addresses,
                                                size_t count, const char *PCCL_NULLABLE name);

/* Joins the run. Returns at once when alone; else when the accepted peers have called
 * pcclUpdateTopology, without a bound. After the master was lost, or an eviction, it joins anew. */
PCCL_EXPORT pcclResult_t pcclConnect(pcclComm_t *comm);
/* The same, but waits no longer than `timeout_ms` (0: no bound). Then pcclTimeout, and pcclGetLastError says
 * who has not called what; the communicator may connect again. */
PCCL_EXPORT pcclResult_t pcclConnectWithin(pcclComm_t *comm, uint32_t timeout_ms);

/* Joint calls: they return when all accepted peers of the run have made the same call. */
PCCL_EXPORT pcclResult_t pcclUpdateTopology(pcclComm_t *comm); /* admits pending peers */
PCCL_EXPORT pcclResult_t pcclArePeersPending(const pcclComm_t *comm, bool *pending_out);
PCCL_EXPORT pcclResult_t pcclOptimizeTopology(const pcclComm_t *comm);

/* All peers of the group call with the same tag and an equal descriptor. sendbuf == recvbuf is in place;
 * other overlaps are refused. On failure sendbuf is as it was. Blocks until the op is committed or has
 * failed; it waits for peers that have not called yet (see straggler_timeout_ms).
 *
 * At most 1024 ops are in flight on a communicator: those beyond wait for the end of others, in the order in
 * which they were called. With pcclOpRetry an op never fails with pcclRankConnectionLost, unless its
 * timeout_ms is over.
 *
 * With pcclOpEarlyReturn, equal at all peers, a small op returns as soon as its result is complete here. The
 * others get that result too, from those that have it, whoever dies meanwhile, as long as one of these lives
 * on; should all of these die, it fails for the others. Joint calls other than pcclArePeersPending, closing,
 * and some ops under its tag wait for its commit. */
PCCL_EXPORT pcclResult_t pcclAllReduce(const void *sendbuf, void *recvbuf,
                                       const pcclReduceDescriptor_t *descriptor, const pcclComm_t *comm,
                                       pcclReduceInfo_t *PCCL_NULLABLE info_out);
PCCL_EXPORT pcclResult_t pcclAllReduceWithOptions(const void *sendbuf, void *recvbuf,
                                                  const pcclReduceDescriptor_t *descriptor,
                                                  const pcclOpOptions_t *PCCL_NULLABLE options,
                                                  const pcclComm_t *comm,
                                                  pcclReduceInfo_t *PCCL_NULLABLE info_out);
/* Returns at once. The buffers belong to pccl until the op has ended: they must be there, and must not be
 * touched. Ops in flight have different tags (pcclInvalidUsage); peers may start them in any order, as long
 * as no more than 1024 are in flight. Every handle has to be awaited: 65536 that have not been are the limit
 * (pcclRefused). Alone in the group it is pcclTooFewPeers, at once. */
PCCL_EXPORT pcclResult_t pcclAllReduceAsync(const void *sendbuf, void *recvbuf,
                                            const pcclReduceDescriptor_t *descriptor, const pcclComm_t *comm,
                                            pcclAsyncReduceOp_t *handle_out);
PCCL_EXPORT pcclResult_t pcclAllReduceAsyncWithOptions(const void *sendbuf, void *recvbuf,
                                                       const pcclReduceDescriptor_t *descriptor,
                                                       const pcclOpOptions_t *PCCL_NULLABLE options,
                                                       const pcclComm_t *comm,
                                                       pcclAsyncReduceOp_t *handle_out);
/* Of any async op. From any thread, once per handle; blocks until the op has ended. pcclInvalidArgument if it
 * was awaited before, or if its tag was used again after it had ended. */
PCCL_EXPORT pcclResult_t pcclAwaitAsyncReduce(const pcclAsyncReduceOp_t *handle,
                                              pcclReduceInfo_t *PCCL_NULLABLE info_out);
/* Whether awaiting would return at once. Never blocks. */
PCCL_EXPORT pcclResult_t pcclTestAsyncReduce(const pcclAsyncReduceOp_t *handle, bool *done_out);
/* Runs `count` ops, started in the order given: whenever one ends the next is started, so that up to
 * `max_in_flight` (>= 1) of them run at any time; beyond 1024 it makes no difference. Those that a lost peer
 * has failed are retried, until all have succeeded or this peer is alone (pcclTooFewPeers). Unless all have
 * succeeded, every sendbuf is as it was, also in place, where the call needs room for a copy of all inputs.
 * Tags must differ (pcclInvalidArgument). An op that fails for another reason, such as calls that differ,
 * fails at all peers; the others are run all the same, and the call returns the first failure. info_out sums
 * up the bytes. */
PCCL_EXPORT pcclResult_t pcclAllReduceMultipleWithRetry(const pcclReduceOpDescriptor_t *descriptors,
                                                        size_t count, const pcclComm_t *comm,
                                                        pcclReduceInfo_t *PCCL_NULLABLE info_out,
                                                        int max_in_flight);

/* The other collectives. As in an all-reduce, all peers of the group call with the same tag and an equal
 * descriptor (else pcclMismatch), nobody succeeds unless all do, alone in the group it is pcclTooFewPeers,
 * and an Async form returns at once with a handle for pcclAwaitAsyncReduce. `options` may be NULL.
 *
 * Ranks are those of one epoch (pcclGetCommInfo). When membership changes before the op is committed, also by
 * a peer that leaves in good order, it fails with pcclRankConnectionLost: read rank and world size again, and
 * call with buffers for them. The same follows if root or world_size are of an earlier epoch; if the group
 * never had them, pcclInvalidArgument, and nothing was sent. A barrier names no ranks and goes on when a peer
 * leaves; it alone of these takes pcclOpRetry. */

/* Copies the buffer of `root` into that of all others. On failure all buffers are as they were. */
PCCL_EXPORT pcclResult_t pcclBroadcast(void *buffer, const pcclCollectiveDescriptor_t *descriptor,
                                       const pcclOpOptions_t *PCCL_NULLABLE options, const pcclComm_t *comm,
                                       pcclReduceInfo_t *PCCL_NULLABLE info_out);
PCCL_EXPORT pcclResult_t pcclBroadcastAsync(void *buffer, const pcclCollectiveDescriptor_t *descriptor,
                                            const pcclOpOptions_t *PCCL_NULLABLE options,
                                            const pcclComm_t *comm, pcclAsyncReduceOp_t *handle_out);
/* recvbuf (world_size * count elements) gets the sendbuf (count elements) of each rank, in order of ranks.
 * In place: sendbuf == recvbuf + rank * count; other overlaps are refused. On failure sendbuf is as it was,
 * and the rest of recvbuf is undefined. */
PCCL_EXPORT pcclResult_t pcclAllGather(const void *sendbuf, void *recvbuf,
                                       const pcclCollectiveDescriptor_t *descriptor,
                                       const pcclOpOptions_t *PCCL_NULLABLE options, const pcclComm_t *comm,
                                       pcclReduceInfo_t *PCCL_NULLABLE info_out);
PCCL_EXPORT pcclResult_t pcclAllGatherAsync(const void *sendbuf, void *recvbuf,
                                            const pcclCollectiveDescriptor_t *descriptor,
                                            const pcclOpOptions_t *PCCL_NULLABLE options,
                                            const pcclComm_t *comm, pcclAsyncReduceOp_t *handle_out);
/* Combines the sendbufs (world_size * count elements) of all; recvbuf (count elements) gets the part of the
 * own rank, which begins at element rank * count. In place: recvbuf == sendbuf + rank * count; other overlaps
 * are refused. On failure both are as they were. */
PCCL_EXPORT pcclResult_t pcclReduceScatter(const void *sendbuf, void *recvbuf,
                                           const pcclCollectiveDescriptor_t *descriptor,
                                           const pcclOpOptions_t *PCCL_NULLABLE options,
                                           const pcclComm_t *comm, pcclReduceInfo_t *PCCL_NULLABLE info_out);
PCCL_EXPORT pcclResult_t pcclReduceScatterAsync(const void *sendbuf, void *recvbuf,
                                                const pcclCollectiveDescriptor_t *descriptor,
                                                const pcclOpOptions_t *PCCL_NULLABLE options,
                                                const pcclComm_t *comm, pcclAsyncReduceOp_t *handle_out);
/* Succeeds when all peers of the group have called it with this tag. */
PCCL_EXPORT pcclResult_t pcclBarrier(uint64_t tag, const pcclOpOptions_t *PCCL_NULLABLE options,
                                     const pcclComm_t *comm, pcclReduceInfo_t *PCCL_NULLABLE info_out);
PCCL_EXPORT pcclResult_t pcclBarrierAsync(uint64_t tag, const pcclOpOptions_t *PCCL_NULLABLE options,
                                          const pcclComm_t *comm, pcclAsyncReduceOp_t *handle_out);

/* Makes the tensors of all peers of the group equal, bit for bit. They return when all have called. Tensors
 * are matched by name; names, datatypes and counts have to be equal (pcclMismatch), and no two may share
 * memory. The state of the newest revision wins, then the one that most peers hold; only what differs
 * is copied, from all who hold it. The first sync sets the revision, which then rises by one from sync to
 * sync; it is set anew when no peer is left that succeeded in the last one and was never alone since.
 * Tensors must not be written meanwhile. After pcclSuccess
 * `state->revision` is the elected one, and all hold the same bits. After a failure the last error says
 * whether memory was changed; call again. Strategies: ENFORCE_POPULAR takes part in all; RECEIVE_ONLY is
 * never elected and never sends (if all do so: pcclNoSharedStateAvailable); SEND_ONLY is never overwritten,
 * and elected before others; one that differs from the elected state fails with pcclMismatch, alone. Alone in
 * the group: pcclSuccess, the state is as it was; with pcclSyncRequirePeers pcclTooFewPeers. Tensors may be
 * empty, and two of them may be the very same memory. */
PCCL_EXPORT pcclResult_t pcclSynchronizeSharedState(const pcclComm_t *comm, pcclSharedState_t *state,
                                                    pcclSharedStateSyncStrategy_t strategy,
                                                    pcclSharedStateSyncInfo_t *PCCL_NULLABLE info_out);
PCCL_EXPORT pcclResult_t pcclSynchronizeSharedStateWithOptions(
    const pcclComm_t *comm, pcclSharedState_t *state, pcclSharedStateSyncStrategy_t strategy,
    const pcclSyncOptions_t *PCCL_NULLABLE options, pcclSharedStateSyncInfo_t *PCCL_NULLABLE info_out);

/* Port 0 picks a free one. The address is in use when the call returns. */
PCCL_EXPORT pcclResult_t pcclCreateMaster(ccoip_socket_address_t listen_address,
                                          pcclMasterInstance_t **master_out);
PCCL_EXPORT pcclResult_t pcclCreateMasterWithParams(const pcclMasterCreateParams_t *params,
                                                    pcclMasterInstance_t **master_out);
/* Starts the master's thread and returns. */
PCCL_EXPORT pcclResult_t pcclRunMaster(pcclMasterInstance_t *master);
/* Asks it to stop. Safe in a signal handler. */
PCCL_EXPORT pcclResult_t pcclInterruptMaster(pcclMasterInstance_t *master);
/* Blocks until it has stopped. */
PCCL_EXPORT pcclResult_t pcclMasterAwaitTermination(pcclMasterInstance_t *master);
/* Blocks no longer than `timeout_ms` (UINT32_MAX: no bound); *terminated_out says whether it has stopped. */
PCCL_EXPORT pcclResult_t pcclMasterAwaitTerminationFor(pcclMasterInstance_t *master, uint32_t timeout_ms,
                                                       bool *terminated_out);
/* Stops it if it runs, and frees it. */
PCCL_EXPORT pcclResult_t pcclDestroyMaster(pcclMasterInstance_t *master);
PCCL_EXPORT pcclResult_t pcclMasterGetAddress(const pcclMasterInstance_t *master,
                                              ccoip_socket_address_t *address_out);
PCCL_EXPORT pcclResult_t pcclMasterGetStatus(const pcclMasterInstance_t *master,
                                             pcclMasterStatus_t *status_out);
/* </cffi> */

#ifdef __cplusplus
}
#endif

#endif
