/* Brings two communicators of one process together. The second one's pcclConnect blocks until the first
 * one calls pcclUpdateTopology, so it needs a thread of its own; POSIX threads, for C99 and C++ alike. */
#ifndef PUBLIC_PAIR_H
#define PUBLIC_PAIR_H

#include <pccl.h>

#include <pthread.h>
#include <stdio.h>

struct connecting {
    pcclComm_t *comm;
    pcclResult_t result;
};

static void *connect_second(void *context) {
    struct connecting *connecting = (struct connecting *)context;
    connecting->result = pcclConnect(connecting->comm);
    if (connecting->result != pcclSuccess) {
        fprintf(stderr, "the second peer: %s\n", pcclGetLastError(connecting->comm));
    }
    return NULL;
}

static int join_pair(pcclComm_t *comms[2]) {
    struct connecting connecting;
    pthread_t thread;
    int world_size = 0;
    pcclResult_t result = pcclConnect(comms[0]);

    connecting.comm = comms[1];
    connecting.result = pcclSuccess;
    if (result != pcclSuccess || pthread_create(&thread, NULL, connect_second, &connecting) != 0) {
        fprintf(stderr, "the first peer: %s\n", pcclGetLastError(comms[0]));
        return 1;
    }
    while (result == pcclSuccess && world_size < 2) {
        result = pcclUpdateTopology(comms[0]);
        if (result == pcclSuccess) {
            result = pcclGetAttribute(comms[0], PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE, &world_size);
        }
    }
    if (result != pcclSuccess) {
        fprintf(stderr, "waiting for the second peer: %s\n", pcclGetLastError(comms[0]));
        return 1;
    }
    pthread_join(thread, NULL);
    return connecting.result == pcclSuccess ? 0 : 1;
}

#endif
