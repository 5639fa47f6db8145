#include "base/result.h"

#include <stddef.h>

#define RESULTS(X)                                                                                           \
    X(pcclSuccess, "success")                                                                                \
    X(pcclNotInitialized, "pcclInit has not been called")                                                    \
    X(pcclInternalError, "an internal error, or the system gave no thread, socket or memory")                \
    X(pcclInvalidArgument, "an argument is wrong; nothing was sent")                                         \
    X(pcclInvalidUsage, "the call does not fit what this communicator is doing")                             \
    X(pcclTooFewPeers, "this peer is alone in its group")                                                    \
    X(pcclMasterConnectionFailed, "nobody answers as a master at that address")                              \
    X(pcclRankConnectionFailed, "no link to the other peers could be made")                                  \
    X(pcclRankConnectionLost, "a peer was lost during the call; retry it")                                   \
    X(pcclNoSharedStateAvailable, "no peer offers a shared state to copy")                                   \
    X(pcclPendingAsyncOps, "asynchronous ops are in flight; await them first")                               \
    X(pcclUpdateTopologyFailed, "the topology could not be updated; retry it")                               \
    X(pcclTopologyOptimizationFailed, "the topology could not be optimized; retry it")                       \
    X(pcclTimeout, "the time allowed for the call has passed")                                               \
    X(pcclMasterConnectionLost, "the connection to the master was lost; connect again")                      \
    X(pcclMismatch, "peers called different things")                                                         \
    X(pcclEvicted, "the master has put this peer out of the run; connect again")                             \
    X(pcclRefused, "the master does not let this peer in, or a limit is reached")                            \
    X(pcclOutOfMemory, "out of memory")

#define NAME(result, text) [result] = #result,
#define TEXT(result, text) [result] = text,
static const char *const names[] = {RESULTS(NAME)};
static const char *const texts[] = {RESULTS(TEXT)};
_Static_assert(sizeof names / sizeof names[0] == RESULT_COUNT, "every result has a name");

static const char *lookup(const char *const list[], pcclResult_t result, const char *fallback) {
    int index = (int)result;
    return index >= 0 && index < RESULT_COUNT ? list[index] : fallback;
}

const char *result_name(pcclResult_t result) {
    return lookup(names, result, "?");
}

const char *pcclResultString(pcclResult_t result) {
    return lookup(texts, result, "an unknown result");
}
