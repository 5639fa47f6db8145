/* A C99 program against the public headers and libpccl alone: a master, two peers in one process, and an
 * all-reduce between them. Exit status 0 if the result is right. */
#include <pccl.h>

#include <stdio.h>
#include <string.h>

#define COUNT 1000

static int failed(const char *what, pcclResult_t result) {
    fprintf(stderr, "%s: %s (%s)\n", what, pcclResultString(result), pcclGetLastError(NULL));
    return 1;
}

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        pcclResult_t tried = (call);                                                                         \
        if (tried != pcclSuccess)                                                                            \
            return failed(#call, tried);                                                                     \
    } while (0)

static pcclCommCreateParams_t params_for(ccoip_socket_address_t master) {
    pcclCommCreateParams_t params;
    memset(&params, 0, sizeof params);
    params.master_address = master;
    params.timeout_ms = 5000;
    return params;
}

/* One thread drives both peers: async ops need nobody to wait in between. */
static int reduce(pcclComm_t *comms[2]) {
    static float input[2][COUNT], output[2][COUNT];
    pcclAsyncReduceOp_t handles[2];
    pcclReduceDescriptor_t descriptor;
    pcclReduceInfo_t info;
    int peer, i;

    memset(&descriptor, 0, sizeof descriptor);
    descriptor.count = COUNT;
    descriptor.op = pcclSum;
    descriptor.tag = 7;
    descriptor.src_descriptor.datatype = pcclFloat;
    descriptor.quantization_options.quantized_datatype = pcclFloat;
    for (peer = 0; peer < 2; peer++) {
        for (i = 0; i < COUNT; i++) {
            input[peer][i] = (float)(i * (peer + 1));
        }
        TRY(pcclAllReduceAsync(input[peer], output[peer], &descriptor, comms[peer], &handles[peer]));
    }
    for (peer = 0; peer < 2; peer++) {
        TRY(pcclAwaitAsyncReduce(&handles[peer], &info));
        if (info.local_world_size != 2 || info.tx_bytes == 0) {
            return failed("info", pcclInternalError);
        }
        for (i = 0; i < COUNT; i++) {
            if (output[peer][i] < (float)(3 * i) || output[peer][i] > (float)(3 * i)) {
                fprintf(stderr, "peer %d holds %g at %d\n", peer, (double)output[peer][i], i);
                return 1;
            }
        }
    }
    return 0;
}

#include "public_pair.h"

int main(void) {
    ccoip_socket_address_t address;
    pcclMasterInstance_t *master;
    pcclComm_t *comms[2];
    pcclCommCreateParams_t params;
    int status, peer;

    memset(&address, 0, sizeof address);
    address.inet.protocol = inetIPv4;
    address.inet.ipv4.data[0] = 127;
    address.inet.ipv4.data[3] = 1;
    TRY(pcclInit());
    TRY(pcclCreateMaster(address, &master));
    TRY(pcclRunMaster(master));
    TRY(pcclMasterGetAddress(master, &address));
    params = params_for(address);
    for (peer = 0; peer < 2; peer++) {
        TRY(pcclCreateCommunicator(&params, &comms[peer]));
    }
    status = join_pair(comms);
    if (status == 0) {
        status = reduce(comms);
    }
    for (peer = 0; peer < 2; peer++) {
        TRY(pcclDestroyCommunicator(comms[peer]));
    }
    TRY(pcclInterruptMaster(master));
    TRY(pcclMasterAwaitTermination(master));
    TRY(pcclDestroyMaster(master));
    if (status == 0) {
        puts("all reduced");
    }
    return status;
}
