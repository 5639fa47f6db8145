/* The public calls of shared state. */
#include <inttypes.h>
#include <string.h>

#include "base/last_error.h"
#include "net/state_sync.h"
#include "pccl_comm.h"

static pcclResult_t check(const char *call, const pcclSharedState_t *state,
                          pcclSharedStateSyncStrategy_t strategy, const pcclSyncOptions_t *options) {
    if (state == NULL) {
        return public_call_null(call, "state");
    }
    if ((int)strategy < PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR ||
        strategy > PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY) {
        last_error_set("%s: there is no strategy %d", call, (int)strategy);
        return pcclInvalidArgument;
    }
    if (options != NULL && (options->flags & ~(uint32_t)pcclSyncRequirePeers) != 0) {
        last_error_set("%s: there is no flag in options->flags = %" PRIu32 " beside pcclSyncRequirePeers",
                       call, options->flags);
        return pcclInvalidArgument;
    }
    return pcclSuccess;
}

static pcclResult_t synchronize(const char *call, struct comm *comm, pcclSharedState_t *state,
                                pcclSharedStateSyncStrategy_t strategy, const pcclSyncOptions_t *options,
                                pcclSharedStateSyncInfo_t *info_out) {
    struct state_sync_request request = {.strategy = (uint8_t)strategy};
    struct state_sync_outcome outcome = {0};
    struct state_table table;
    pcclResult_t result = check(call, state, strategy, options);
    if (result == pcclSuccess) {
        result = state_table_make(&table, state, call);
    }
    if (result != pcclSuccess) {
        return result;
    }
    request.revision = state->revision;
    if (options != NULL) {
        request.progress = options->progress;
        request.context = options->context;
        request.requires_peers = (options->flags & pcclSyncRequirePeers) != 0;
    }
    result = state_sync_run(comm, &table, &request, &outcome);
    state_table_free(&table);
    if (result == pcclSuccess) {
        state->revision = outcome.revision;
    }
    if (info_out != NULL) {
        *info_out = (pcclSharedStateSyncInfo_t){.tx_bytes = outcome.tx_bytes, .rx_bytes = outcome.rx_bytes};
    }
    return result;
}

pcclResult_t pcclSynchronizeSharedStateWithOptions(const pcclComm_t *comm, pcclSharedState_t *state,
                                                   pcclSharedStateSyncStrategy_t strategy,
                                                   const pcclSyncOptions_t *options,
                                                   pcclSharedStateSyncInfo_t *info_out) {
    static const char call[] = "pcclSynchronizeSharedState";
    pcclResult_t result = public_call_begin(comm, call);
    if (result == pcclSuccess) {
        result = synchronize(call, comm_of(comm), state, strategy, options, info_out);
        comm_leave(comm_of(comm));
    }
    return result;
}

pcclResult_t pcclSynchronizeSharedState(const pcclComm_t *comm, pcclSharedState_t *state,
                                        pcclSharedStateSyncStrategy_t strategy,
                                        pcclSharedStateSyncInfo_t *info_out) {
    return pcclSynchronizeSharedStateWithOptions(comm, state, strategy, NULL, info_out);
}
