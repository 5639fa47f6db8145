/* The public calls of a communicator, but for the reductions (pccl_reduce.c): checks and sentences around
 * net/comm.h. */
#define _GNU_SOURCE
#include "pccl.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/last_error.h"
#include "base/log.h"
#include "net/descriptors.h"
#include "net/socket.h"
#include "pccl_comm.h"

static atomic_bool initialized;

enum { DEFAULT_CHECK_INTERVAL_MS = 50 };

pcclResult_t pcclInit(void) {
    last_error_clear();
    atomic_store(&initialized, true);
    (void)log_enabled(LOG_ERROR); /* a level that is none is told now */
    return pcclSuccess;
}

pcclResult_t public_call_null(const char *call, const char *argument) {
    last_error_set("%s: %s is NULL", call, argument);
    return pcclInvalidArgument;
}

bool public_run_name(const char *given, const char *call, char name_out[MAX_RUN_BYTES + 1]) {
    const char *environment = getenv("PCCL_RUN");
    const char *name = given != NULL ? given : environment != NULL ? environment : "";
    if (strnlen(name, MAX_RUN_BYTES + 1) > MAX_RUN_BYTES) {
        last_error_set("%s: %s is longer than %d bytes", call, given != NULL ? "run" : "PCCL_RUN",
                       (int)MAX_RUN_BYTES);
        return false;
    }
    snprintf(name_out, MAX_RUN_BYTES + 1, "%s", name);
    return true;
}

static pcclResult_t check_initialized(const char *call) {
    last_error_clear();
    if (!atomic_load(&initialized)) {
        last_error_set("%s: call pcclInit first", call);
        return pcclNotInitialized;
    }
    return pcclSuccess;
}

pcclResult_t public_call_begin(const pcclComm_t *comm, const char *call) {
    pcclResult_t result = check_initialized(call);
    if (result == pcclSuccess && comm == NULL) {
        result = public_call_null(call, "comm");
    }
    if (result == pcclSuccess && !comm_enter(comm_of(comm))) {
        result = pcclInvalidUsage;
    }
    return result;
}

pcclResult_t pcclGetBuildInfo(pcclBuildInfo_t *info) {
    last_error_clear();
    if (info == NULL) {
        return public_call_null("pcclGetBuildInfo", "info");
    }
    *info = (pcclBuildInfo_t){.has_cuda_support = false};
    return pcclSuccess;
}

const char *pcclGetLastError(const pcclComm_t *comm) {
    (void)comm; /* the sentence is the thread's */
    return last_error_get();
}

/* ---- create and destroy ---- */

#define CREATE "pcclCreateCommunicator"

static pcclResult_t refuse(const char *argument, const char *why) {
    last_error_set(CREATE ": %s %s", argument, why);
    return pcclInvalidArgument;
}

static pcclResult_t check_params(const pcclCommCreateParams_t *params) {
    if (params->timeout_ms != 0 && params->timeout_ms < MIN_TIMEOUT_MS) {
        return refuse("timeout_ms", "is less than 100");
    }
    if (params->timeout_ms > MAX_TIMEOUT_MS) {
        return refuse("timeout_ms", "is more than a day");
    }
    if (params->name != NULL && strnlen(params->name, MAX_NAME_BYTES + 1) > MAX_NAME_BYTES) {
        return refuse("name", "is longer than 63 bytes");
    }
    if (params->secret != NULL || params->secret_size != 0) {
        return refuse("secret", "is not supported yet: it must be NULL");
    }
    if ((params->flags & ~(uint32_t)pcclCommTcpOnly) != 0) {
        return refuse("flags", "has bits that are none of pcclCommFlags_t");
    }
    if (params->data_threads > MAX_DATA_THREADS) {
        return refuse("data_threads", "is more than 16");
    }
    return pcclSuccess;
}

/* NULL, or what is wrong with it. */
static const char *check_master(const ccoip_socket_address_t *from, struct address *to) {
    if (!address_from_public(from, to)) {
        return "it is neither inetIPv4 nor inetIPv6";
    }
    const char *unusable = address_unusable(to);
    struct address any = {.family = to->family};
    if (unusable != NULL &&
        memcmp(any.bytes, to->bytes, sizeof any.bytes) != 0) { /* 0.0.0.0 means this machine */
        return unusable;
    }
    return to->port == 0 ? "it has no port" : NULL;
}

/* "host", "host:port", "::1", "[::1]:port"; port 0 if there is none. False: it is none of these. */
static bool split_host(const char *text, char host[MAX_HOST_BYTES + 1], uint16_t *port_out) {
    size_t length = strlen(text);
    const char *end = text + length, *digits = NULL;
    if (text[0] == '[') {
        end = strchr(text, ']');
        if (end == NULL || (end[1] != '\0' && end[1] != ':')) {
            return false;
        }
        digits = end[1] == ':' ? end + 2 : NULL;
        text++;
    } else if (strchr(text, ':') != NULL && strchr(text, ':') == strrchr(text, ':')) {
        end = strchr(text, ':');
        digits = end + 1;
    }
    size_t size = (size_t)(end - text);
    if (size == 0 || size > MAX_HOST_BYTES) {
        return false;
    }
    memcpy(host, text, size);
    host[size] = '\0';
    *port_out = 0;
    if (digits == NULL) {
        return true;
    }
    size_t count = strspn(digits, "0123456789");
    unsigned long port = count >= 1 && count <= 5 && digits[count] == '\0' ? strtoul(digits, NULL, 10) : 0;
    *port_out = (uint16_t)(port <= UINT16_MAX ? port : 0);
    return *port_out != 0;
}

/* What the caller says, else the environment; family and port stay 0 if neither does. */
static pcclResult_t fill_advertised(const pcclCommCreateParams_t *params, struct address *address_out) {
    const char *text = params->advertise_host, *what = "the advertised host";
    if (text == NULL) {
        text = getenv("PCCL_ADVERTISE");
        what = "PCCL_ADVERTISE";
        if (text == NULL || text[0] == '\0') {
            return pcclSuccess;
        }
    }
    char host[MAX_HOST_BYTES + 1];
    uint16_t port;
    const char *error = split_host(text, host, &port) ? socket_resolve(host, port, address_out)
                                                      : "write a host, or host:port";
    if (error == NULL) {
        return pcclSuccess;
    }
    last_error_set(CREATE ": %s \"%.255s\" is no address that other peers can connect to: %s", what, text,
                   error);
    return pcclInvalidArgument;
}

static pcclResult_t fill_addresses(const pcclCommCreateParams_t *params, struct peer_loop_options *options) {
    options->master.count = 1;
    const char *error = check_master(&params->master_address, &options->master.addresses[0]);
    if (error != NULL) {
        return refuse("master_address:", error);
    }
    return fill_advertised(params, &options->hello.listen);
}

/* What the caller says, else the environment; 0: neither does. */
static pcclResult_t fill_data_threads(const pcclCommCreateParams_t *params, uint32_t *threads_out) {
    const char *text = getenv("PCCL_DATA_THREADS");
    *threads_out = params->data_threads;
    if (params->data_threads != 0 || text == NULL || text[0] == '\0') {
        return pcclSuccess;
    }
    char *end;
    unsigned long threads = strtoul(text, &end, 10);
    if (*end != '\0' || text[0] < '0' || text[0] > '9' || threads > MAX_DATA_THREADS) {
        last_error_set(CREATE ": PCCL_DATA_THREADS is \"%.32s\", not a number from 0 to %d", text,
                       (int)MAX_DATA_THREADS);
        return pcclInvalidArgument;
    }
    *threads_out = (uint32_t)threads;
    return pcclSuccess;
}

static pcclResult_t fill_tcp_only(const pcclCommCreateParams_t *params, bool *tcp_only_out) {
    const char *text = getenv("PCCL_TCP_ONLY");
    bool set = text != NULL && strcmp(text, "1") == 0;
    if (!set && text != NULL && text[0] != '\0' && strcmp(text, "0") != 0) {
        last_error_set(CREATE ": PCCL_TCP_ONLY is \"%.32s\", neither 0 nor 1", text);
        return pcclInvalidArgument;
    }
    *tcp_only_out = set || (params->flags & pcclCommTcpOnly) != 0;
    return pcclSuccess;
}

/* More than is possible may well be asked for, by programs that were written for PCCL 1.0. */
static uint16_t streams_of(const pcclCommCreateParams_t *params) {
    uint32_t streams = params->p2p_connection_pool_size;
    if (streams > MAX_STREAMS) {
        log_line(LOG_WARN, "pccl",
                 "p2p_connection_pool_size is %" PRIu32 ": %d connections are made, the most", streams,
                 (int)MAX_STREAMS);
        streams = MAX_STREAMS;
    }
    return streams != 0 ? (uint16_t)streams : DEFAULT_STREAMS;
}

static pcclResult_t fill_options(const pcclCommCreateParams_t *params, struct peer_loop_options *options) {
    pcclResult_t result = check_params(params);
    if (result == pcclSuccess) {
        result = fill_addresses(params, options);
    }
    if (result == pcclSuccess) {
        result = fill_data_threads(params, &options->data_threads);
    }
    if (result == pcclSuccess) {
        result = fill_tcp_only(params, &options->tcp_only);
    }
    if (result != pcclSuccess) {
        return result;
    }
    struct message_hello *hello = &options->hello;
    hello->version = PROTOCOL_VERSION;
    hello->oldest_version = OLDEST_PROTOCOL_VERSION;
    hello->group = params->peer_group;
    hello->streams = streams_of(params);
    hello->timeout_ms = params->timeout_ms != 0 ? params->timeout_ms : DEFAULT_TIMEOUT_MS;
    hello->straggler_timeout_ms = params->straggler_timeout_ms;
    if (params->name != NULL) {
        snprintf(hello->name, sizeof hello->name, "%s", params->name);
    }
    options->listen_port = params->listen_port;
    return public_run_name(params->run, CREATE, hello->run) ? pcclSuccess : pcclInvalidArgument;
}

pcclResult_t pcclCreateCommunicator(const pcclCommCreateParams_t *params, pcclComm_t **comm_out) {
    pcclResult_t result = check_initialized(CREATE);
    if (result != pcclSuccess) {
        return result;
    }
    if (params == NULL || comm_out == NULL) {
        return public_call_null(CREATE, params == NULL ? "params" : "comm_out");
    }
    struct peer_loop_options options;
    memset(&options, 0, sizeof options);
    result = fill_options(params, &options);
    if (result != pcclSuccess) {
        return result;
    }
    descriptors_raise_limit();
    struct comm *comm = comm_create(&options);
    if (comm == NULL) {
        return pcclOutOfMemory;
    }
    *comm_out = (pcclComm_t *)(void *)comm;
    return pcclSuccess;
}

pcclResult_t pcclDestroyCommunicator(pcclComm_t *comm) {
    pcclResult_t result = public_call_begin(comm, "pcclDestroyCommunicator");
    if (result == pcclSuccess) {
        comm_leave(comm_of(comm));
        comm_destroy(comm_of(comm));
        last_error_clear(); /* an unanswered goodbye is no failure of this call */
    }
    return result;
}

pcclResult_t pcclCloseCommunicator(pcclComm_t *comm) {
    pcclResult_t result = public_call_begin(comm, "pcclCloseCommunicator");
    if (result == pcclSuccess) {
        result = comm_close(comm_of(comm));
        comm_leave(comm_of(comm));
    }
    return result;
}

pcclResult_t pcclSetInterruptCheck(pcclComm_t *comm, bool (*check)(void *), void *context,
                                   uint32_t interval_ms) {
    pcclResult_t result = public_call_begin(comm, "pcclSetInterruptCheck");
    if (result == pcclSuccess) {
        uint32_t interval = interval_ms != 0 ? interval_ms : DEFAULT_CHECK_INTERVAL_MS;
        comm_set_interrupt_check(comm_of(comm), check, context, interval);
        comm_leave(comm_of(comm));
    }
    return result;
}

/* ---- what a communicator knows ---- */

static pcclResult_t attribute_of(struct comm *comm, pcclAttribute_t attribute, int *value_out) {
    struct peer_status status;
    comm_get_status(comm, &status);
    uint32_t value;
    switch (attribute) {
    case PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE:
        value = status.census.peers;
        break;
    case PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE:
        value = status.world;
        break;
    case PCCL_ATTRIBUTE_NUM_DISTINCT_PEER_GROUPS:
        value = status.census.groups;
        break;
    case PCCL_ATTRIBUTE_LARGEST_PEER_GROUP_WORLD_SIZE:
        value = status.census.largest_group;
        break;
    default:
        last_error_set("pcclGetAttribute: there is no attribute %d", (int)attribute);
        return pcclInvalidArgument;
    }
    if (status.out_status != 0) {
        const pcclResult_t result = (pcclResult_t)status.out_status;
        last_error_set("pcclGetAttribute: %s", pcclResultString(result));
        return result;
    }
    if (!status.connected) {
        last_error_set("pcclGetAttribute: the communicator is not connected: call connect first");
        return pcclInvalidUsage;
    }
    *value_out = (int)value;
    return pcclSuccess;
}

pcclResult_t pcclGetAttribute(const pcclComm_t *comm, pcclAttribute_t attribute, int *value_out) {
    pcclResult_t result = public_call_begin(comm, "pcclGetAttribute");
    if (result == pcclSuccess) {
        result = value_out == NULL ? public_call_null("pcclGetAttribute", "value_out")
                                   : attribute_of(comm_of(comm), attribute, value_out);
        comm_leave(comm_of(comm));
    }
    return result;
}

static void info_of(struct comm *comm, pcclCommInfo_t *info) {
    struct peer_status status;
    comm_get_status(comm, &status);
    *info = (pcclCommInfo_t){.peer_group = comm_group(comm), .connected = status.connected};
    memcpy(info->peer_id, status.id.bytes, sizeof info->peer_id);
    memcpy(info->run_id, status.run.bytes, sizeof info->run_id);
    if (status.connected) {
        info->epoch = status.epoch;
        info->rank = status.rank;
        info->world_size = status.world;
        info->global_world_size = status.census.peers;
    }
}

pcclResult_t pcclGetCommInfo(const pcclComm_t *comm, pcclCommInfo_t *info_out) {
    pcclResult_t result = public_call_begin(comm, "pcclGetCommInfo");
    if (result == pcclSuccess) {
        if (info_out == NULL) {
            result = public_call_null("pcclGetCommInfo", "info_out");
        } else {
            info_of(comm_of(comm), info_out);
        }
        comm_leave(comm_of(comm));
    }
    return result;
}

/* ---- joining and joint calls ---- */

#define SET_MASTER "pcclSetMasterAddresses"

static pcclResult_t set_master(struct comm *comm, const ccoip_socket_address_t *addresses, size_t count,
                               const char *name) {
    struct dial_place place = {.count = 0};
    if (addresses == NULL) {
        return public_call_null(SET_MASTER, "addresses");
    }
    if (count < 1 || count > MAX_MASTER_ADDRESSES) {
        last_error_set(SET_MASTER ": there are %zu addresses; there may be 1 to %d", count,
                       (int)MAX_MASTER_ADDRESSES);
        return pcclInvalidArgument;
    }
    for (size_t i = 0; i < count; i++) {
        const char *error = check_master(&addresses[i], &place.addresses[place.count++]);
        if (error != NULL) {
            last_error_set(SET_MASTER ": address %zu: %s", i, error);
            return pcclInvalidArgument;
        }
    }
    snprintf(place.name, sizeof place.name, "%s", name != NULL ? name : "");
    comm_set_master(comm, &place);
    return pcclSuccess;
}

pcclResult_t pcclSetMasterAddresses(pcclComm_t *comm, const ccoip_socket_address_t *addresses, size_t count,
                                    const char *name) {
    pcclResult_t result = public_call_begin(comm, SET_MASTER);
    if (result == pcclSuccess) {
        result = set_master(comm_of(comm), addresses, count, name);
        comm_leave(comm_of(comm));
    }
    return result;
}

pcclResult_t pcclConnectWithin(pcclComm_t *comm, uint32_t timeout_ms) {
    pcclResult_t result = public_call_begin(comm, "pcclConnect");
    if (result == pcclSuccess) {
        result = comm_connect(comm_of(comm), timeout_ms);
        comm_leave(comm_of(comm));
    }
    return result;
}

pcclResult_t pcclConnect(pcclComm_t *comm) {
    return pcclConnectWithin(comm, 0);
}

static pcclResult_t vote(const pcclComm_t *comm, const char *call, uint8_t kind, uint64_t *value_out) {
    pcclResult_t result = public_call_begin(comm, call);
    if (result == pcclSuccess) {
        result = comm_vote(comm_of(comm), kind, value_out);
        comm_leave(comm_of(comm));
    }
    return result;
}

pcclResult_t pcclUpdateTopology(pcclComm_t *comm) {
    uint64_t value;
    return vote(comm, "pcclUpdateTopology", VOTE_UPDATE_TOPOLOGY, &value);
}

pcclResult_t pcclOptimizeTopology(const pcclComm_t *comm) {
    uint64_t value;
    return vote(comm, "pcclOptimizeTopology", VOTE_OPTIMIZE_TOPOLOGY, &value);
}

pcclResult_t pcclArePeersPending(const pcclComm_t *comm, bool *pending_out) {
    uint64_t value = 0;
    if (pending_out == NULL) {
        last_error_clear();
        return public_call_null("pcclArePeersPending", "pending_out");
    }
    pcclResult_t result = vote(comm, "pcclArePeersPending", VOTE_PEERS_PENDING, &value);
    if (result == pcclSuccess) {
        *pending_out = value != 0;
    }
    return result;
}
