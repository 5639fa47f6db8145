/* The public calls of a master: checks and sentences around net/master_loop.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/last_error.h"
#include "include/pccl.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/master_loop.h"
#include "net/port_holder.h"
#include "net/socket.h"
#include "pccl_comm.h"

struct pcclMasterInstance_t {
    struct master_loop *loop; /* owned */
    uint32_t forks;           /* descriptors_forks() of the process that made it */
    pthread_mutex_t mutex;    /* guards `run` */
    bool run;                 /* pcclRunMaster has been called */
};

static pcclResult_t fail_with_errno(int error, const char *what) {
    char text[DESCRIPTORS_TEXT_BYTES];
    last_error_set("%s: %s", what, descriptors_error_text(error, text));
    return error == -ENOMEM ? pcclOutOfMemory : pcclInternalError;
}

static pcclResult_t fail_null(const char *call, const char *argument) {
    last_error_set("%s: %s is NULL", call, argument);
    return pcclInvalidArgument;
}

/* A forked child has a copy, but no thread and no descriptor of it. */
static bool is_of_a_parent(const pcclMasterInstance_t *master) {
    return master->forks != descriptors_forks();
}

/* What a call begins with. */
static pcclResult_t check_master(const pcclMasterInstance_t *master, const char *call) {
    last_error_clear();
    if (master == NULL) {
        return fail_null(call, "master");
    }
    if (is_of_a_parent(master)) {
        last_error_set("%s: " FORKED_TEXT("master"), call);
        return pcclInvalidUsage;
    }
    return pcclSuccess;
}

static pcclResult_t fail_listen(const struct address *address, int error) {
    char why[DESCRIPTORS_TEXT_BYTES];
    char text[ADDRESS_TEXT_BYTES], holder[PORT_HOLDER_BYTES];
    address_text(address, text);
    switch (-error) {
    case EADDRINUSE:
        last_error_set(
            "pcclCreateMaster: can't listen on %s: %s: %s. Wait until it is free, or choose another "
            "port (0: any that is free)",
            text, strerror(-error), port_holder_describe(address, holder));
        return pcclInvalidArgument;
    case EADDRNOTAVAIL:
        last_error_set(
            "pcclCreateMaster: can't listen on %s: %s: no address of this machine. 0.0.0.0 stands for "
            "all that it has",
            text, strerror(-error));
        return pcclInvalidArgument;
    case EACCES:
    case EAFNOSUPPORT:
        last_error_set("pcclCreateMaster: can't listen on %s: %s; choose another address or port", text,
                       strerror(-error));
        return pcclInvalidArgument;
    case ENOMEM:
        last_error_set("pcclCreateMaster: out of memory");
        return pcclOutOfMemory;
    default:
        last_error_set("pcclCreateMaster: can't listen on %s: %s", text, descriptors_error_text(error, why));
        return pcclInternalError;
    }
}

pcclResult_t pcclCreateMasterWithParams(const pcclMasterCreateParams_t *params,
                                        pcclMasterInstance_t **master_out) {
    last_error_clear();
    if (params == NULL || master_out == NULL) {
        return fail_null("pcclCreateMaster", params == NULL ? "params" : "master_out");
    }
    struct address address;
    if (!address_from_public(&params->listen_address, &address)) {
        last_error_set(
            "pcclCreateMaster: inet.protocol of the address is %d, which is neither inetIPv4 nor inetIPv6",
            (int)params->listen_address.inet.protocol);
        return pcclInvalidArgument;
    }
    char run[MAX_RUN_BYTES + 1];
    if (!public_run_name(params->run, "pcclCreateMaster", run)) {
        return pcclInvalidArgument;
    }
    pcclMasterInstance_t *master = calloc(1, sizeof *master);
    if (master == NULL) {
        last_error_set("pcclCreateMaster: out of memory");
        return pcclOutOfMemory;
    }
    descriptors_raise_limit();
    int error = master_loop_create(&address, run, &master->loop);
    if (error != 0) {
        free(master);
        return fail_listen(&address, error);
    }
    pthread_mutex_init(&master->mutex, NULL);
    master->forks = descriptors_forks();
    *master_out = master;
    return pcclSuccess;
}

pcclResult_t pcclCreateMaster(ccoip_socket_address_t listen_address, pcclMasterInstance_t **master_out) {
    const pcclMasterCreateParams_t params = {.listen_address = listen_address};
    return pcclCreateMasterWithParams(&params, master_out);
}

pcclResult_t pcclRunMaster(pcclMasterInstance_t *master) {
    pcclResult_t result = check_master(master, "pcclRunMaster");
    if (result != pcclSuccess) {
        return result;
    }
    pthread_mutex_lock(&master->mutex);
    bool run_before = master->run;
    int error = run_before ? 0 : master_loop_start(master->loop);
    master->run = run_before || error == 0;
    pthread_mutex_unlock(&master->mutex);
    if (run_before) {
        last_error_set("pcclRunMaster: this master has been run already; a master runs once");
        return pcclInvalidUsage;
    }
    return error == 0 ? pcclSuccess : fail_with_errno(error, "pcclRunMaster: the system gave no thread");
}

/* In a signal handler: nothing here but master_loop_stop(), and no sentence for NULL. */
pcclResult_t pcclInterruptMaster(pcclMasterInstance_t *master) {
    if (master == NULL) {
        return pcclInvalidArgument;
    }
    if (is_of_a_parent(master)) {
        return pcclInvalidUsage;
    }
    master_loop_stop(master->loop);
    return pcclSuccess;
}

pcclResult_t pcclMasterAwaitTermination(pcclMasterInstance_t *master) {
    bool terminated;
    return pcclMasterAwaitTerminationFor(master, UINT32_MAX, &terminated);
}

pcclResult_t pcclMasterAwaitTerminationFor(pcclMasterInstance_t *master, uint32_t timeout_ms,
                                           bool *terminated_out) {
    pcclResult_t result = check_master(master, "pcclMasterAwaitTermination");
    if (result != pcclSuccess) {
        return result;
    }
    if (terminated_out == NULL) {
        return fail_null("pcclMasterAwaitTermination", "terminated_out");
    }
    uint64_t until_ns = timeout_ms == UINT32_MAX ? UINT64_MAX : clock_now_ns() + timeout_ms * NS_PER_MS;
    if (!master_loop_wait(master->loop, until_ns, terminated_out)) {
        last_error_set("pcclMasterAwaitTermination: this master does not run; call pcclRunMaster first");
        return pcclInvalidUsage;
    }
    return pcclSuccess;
}

pcclResult_t pcclDestroyMaster(pcclMasterInstance_t *master) {
    pcclResult_t result = check_master(master, "pcclDestroyMaster");
    if (result != pcclSuccess) {
        return result;
    }
    master_loop_destroy(master->loop);
    pthread_mutex_destroy(&master->mutex);
    free(master);
    return pcclSuccess;
}

pcclResult_t pcclMasterGetAddress(const pcclMasterInstance_t *master, ccoip_socket_address_t *address_out) {
    last_error_clear();
    if (master == NULL || address_out == NULL) {
        return fail_null("pcclMasterGetAddress", master == NULL ? "master" : "address_out");
    }
    struct address address = master_loop_address(master->loop);
    *address_out = address_to_public(&address);
    return pcclSuccess;
}

pcclResult_t pcclMasterGetStatus(const pcclMasterInstance_t *master, pcclMasterStatus_t *status_out) {
    last_error_clear();
    if (master == NULL || status_out == NULL) {
        return fail_null("pcclMasterGetStatus", master == NULL ? "master" : "status_out");
    }
    struct master_status status;
    master_loop_get_status(master->loop, &status);
    *status_out = (pcclMasterStatus_t){
        .epoch = status.epoch,
        .peers = status.peers,
        .pending = status.pending,
        .groups = status.groups,
    };
    memcpy(status_out->run_id, status.run.bytes, sizeof status_out->run_id);
    return pcclSuccess;
}
