/* Async ops of two communicators that are started, awaited and dropped by many threads at once, with blocking
 * ops beside them, whose threads drive the loop as guests. For ThreadSanitizer, and for what only two threads
 * can get wrong: an op is awaited while another thread still starts it. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"
#include "public_pair.h"

enum { PEERS = 2, ROUNDS = 300, COUNT = 1000, LANES = 3, LARGE = 200000 };

static pcclComm_t *comms[PEERS];

/* A tag that threads of both peers share. */
struct lane {
    int peer;
    uint64_t tag;
    atomic_int awaited; /* rounds */
};

static pcclReduceDescriptor_t describe(size_t count, uint64_t tag) {
    return (pcclReduceDescriptor_t){
        .count = count, .op = pcclSum, .tag = tag, .src_descriptor.datatype = pcclFloat};
}

static void require_success(pcclResult_t result, const char *what) {
    REQUIRE(result == pcclSuccess, "%s: %s", what, pcclResultString(result));
}

/* Waits for ops that it has not started, by their tag, from before they are in the table. */
static void *await_others(void *argument) {
    struct lane *lane = argument;
    pcclAsyncReduceOp_t handle = {.comm = comms[lane->peer], .tag = lane->tag};
    for (int round = 0; round < ROUNDS; round++) {
        pcclResult_t result;
        while ((result = pcclAwaitAsyncReduce(&handle, NULL)) == pcclInvalidArgument) {
        }
        require_success(result, "await by tag");
        atomic_store(&lane->awaited, round + 1);
    }
    return NULL;
}

static void *start_for_others(void *argument) {
    struct lane *lane = argument;
    float *array = malloc(LARGE * sizeof *array);
    for (int round = 0; round < ROUNDS; round++) {
        pcclReduceDescriptor_t descriptor = describe(round % 8 == 0 ? LARGE : COUNT, lane->tag);
        pcclAsyncReduceOp_t handle;
        for (size_t i = 0; i < descriptor.count; i++) {
            array[i] = 1;
        }
        require_success(pcclAllReduceAsync(array, array, &descriptor, comms[lane->peer], &handle), "start");
        while (atomic_load(&lane->awaited) <= round) {
            usleep(10);
        }
        REQUIRE(array[0] == 2 && array[descriptor.count - 1] == 2, "%f", (double)array[0]);
    }
    free(array);
    return NULL;
}

/* Awaits some and leaves others to the next op under their tag; a handle of those is stale then. */
static void *start_and_drop(void *argument) {
    struct lane *lane = argument;
    float array[COUNT];
    pcclAsyncReduceOp_t dropped = {0};
    for (int round = 0; round < ROUNDS; round++) {
        pcclReduceDescriptor_t descriptor = describe(COUNT, lane->tag);
        pcclAsyncReduceOp_t handle;
        memset(array, 0, sizeof array);
        require_success(pcclAllReduceAsync(array, array, &descriptor, comms[lane->peer], &handle), "start");
        bool done = false;
        if (dropped.comm != NULL) {
            REQUIRE(pcclTestAsyncReduce(&dropped, &done) == pcclInvalidArgument, "stale: test");
            REQUIRE(pcclAwaitAsyncReduce(&dropped, NULL) == pcclInvalidArgument, "stale: await");
            dropped.comm = NULL;
        }
        if (round % 3 == 0) {
            while (!done) {
                require_success(pcclTestAsyncReduce(&handle, &done), "test");
            }
            dropped = handle;
        } else {
            require_success(pcclAwaitAsyncReduce(&handle, NULL), "await");
        }
    }
    return NULL;
}

/* In its pauses the loop is parked, and taken over by this thread again. */
static void *block(void *argument) {
    struct lane *lane = argument;
    float array[COUNT] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        pcclReduceDescriptor_t descriptor = describe(COUNT, lane->tag);
        require_success(pcclAllReduce(array, array, &descriptor, comms[lane->peer], NULL), "all-reduce");
        if (round % 16 == 0) {
            usleep(1000);
        }
    }
    return NULL;
}

static void run(void *(*const *roles)(void *), int count, const char *name) {
    pthread_t threads[PEERS + PEERS * LANES * 2];
    struct lane lanes[PEERS * LANES];
    int started = 0;
    for (int i = 0; i < PEERS * LANES; i++) {
        lanes[i] = (struct lane){.peer = i % PEERS, .tag = (uint64_t)(i / PEERS)};
    }
    struct lane guests[PEERS] = {{.peer = 0, .tag = LANES}, {.peer = 1, .tag = LANES}};
    for (int i = 0; i < PEERS; i++) {
        REQUIRE(pthread_create(&threads[started++], NULL, block, &guests[i]) == 0, "thread");
    }
    for (int i = 0; i < PEERS * LANES; i++) {
        for (int role = 0; role < count; role++) {
            REQUIRE(pthread_create(&threads[started++], NULL, roles[role], &lanes[i]) == 0, "thread");
        }
    }
    while (started > 0) {
        pthread_join(threads[--started], NULL);
    }
    printf("%s: good\n", name);
    fflush(stdout);
}

/* Closing fails what is in flight, for whoever awaits it. */
static void *await_to_the_end(void *argument) {
    struct lane *lane = argument;
    pcclAsyncReduceOp_t handle = {.comm = comms[lane->peer], .tag = lane->tag};
    pcclResult_t result;
    while ((result = pcclAwaitAsyncReduce(&handle, NULL)) == pcclInvalidArgument) {
    }
    REQUIRE(result == pcclInvalidUsage, "%s", pcclResultString(result));
    return NULL;
}

static void close_in_flight(void) {
    enum { OPS = 8 };
    static float arrays[OPS][COUNT];
    pthread_t threads[OPS];
    struct lane lanes[OPS];
    pcclAsyncReduceOp_t handle;
    for (int i = 0; i < OPS; i++) {
        lanes[i] = (struct lane){.peer = 0, .tag = (uint64_t)i};
        REQUIRE(pthread_create(&threads[i], NULL, await_to_the_end, &lanes[i]) == 0, "thread");
        pcclReduceDescriptor_t descriptor = describe(COUNT, (uint64_t)i);
        require_success(pcclAllReduceAsync(arrays[i], arrays[i], &descriptor, comms[0], &handle), "start");
    }
    pcclReduceDescriptor_t dropped = describe(COUNT, OPS);
    require_success(pcclAllReduceAsync(arrays[0], arrays[1], &dropped, comms[0], &handle), "start");
    require_success(pcclCloseCommunicator(comms[0]), "close");
    for (int i = 0; i < OPS; i++) {
        pthread_join(threads[i], NULL);
    }
    printf("close: good\n");
}

static void require_alone(void) {
    float array[1] = {0};
    pcclReduceDescriptor_t descriptor = describe(1, 0);
    pcclAsyncReduceOp_t handle;
    require_success(pcclConnect(comms[0]), "connect");
    REQUIRE(pcclAllReduceAsync(array, array, &descriptor, comms[0], &handle) == pcclTooFewPeers, "alone");
    require_success(pcclCloseCommunicator(comms[0]), "close");
}

int main(void) {
    require_success(pcclInit(), "init");
    ccoip_socket_address_t listen = {.inet = {.protocol = inetIPv4, .ipv4.data = {127, 0, 0, 1}}};
    pcclMasterInstance_t *master;
    pcclCommCreateParams_t params = {0};
    require_success(pcclCreateMaster(listen, &master), "create master");
    require_success(pcclRunMaster(master), "run master");
    require_success(pcclMasterGetAddress(master, &params.master_address), "address");
    for (int i = 0; i < PEERS; i++) {
        require_success(pcclCreateCommunicator(&params, &comms[i]), "create");
    }
    require_alone();
    REQUIRE(join_pair(comms) == 0, "join");
    void *(*const by_others[])(void *) = {await_others, start_for_others};
    run(by_others, 2, "awaited by others");
    void *(*const dropped[])(void *) = {start_and_drop};
    run(dropped, 1, "dropped");
    close_in_flight();
    for (int i = 0; i < PEERS; i++) {
        require_success(pcclDestroyCommunicator(comms[i]), "destroy");
    }
    require_success(pcclDestroyMaster(master), "destroy master");
    printf("all good\n");
    return 0;
}
