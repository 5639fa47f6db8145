/* Broadcast, all-gather, reduce-scatter and barrier of several communicators in one process, mixed with
 * all-reduces, through the public calls only; for the sanitizers. Exits with 1 at the first thing that is
 * wrong. Usage: driver_collectives [peers] */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"
#include "pccl.h"

enum { MAX_DRIVEN = 8, MAX_COUNT = 100000, TAGS = 20, ROUNDS = 4 };

static int peers = 5;
static ccoip_socket_address_t master_address;
static pthread_barrier_t barrier;

static void require(pcclResult_t expected, pcclResult_t result, const char *what) {
    REQUIRE(result == expected, "%s: %s", what, pcclResultString(result));
}

struct peer {
    pthread_t thread;
    int index;
    pcclComm_t *comm;
};

static pcclCommInfo_t info_of(const struct peer *peer) {
    pcclCommInfo_t info;
    require(pcclSuccess, pcclGetCommInfo(peer->comm, &info), "info");
    return info;
}

static uint32_t value_of(uint32_t rank, size_t i, uint64_t tag) {
    return rank * 1000003u + (uint32_t)i * 7u + (uint32_t)tag;
}

/* ---- one op of each kind, under `tag` ---- */

struct op {
    uint64_t tag;
    size_t count;
    uint32_t *send, *receive; /* of `count` for each peer */
    pcclCollectiveDescriptor_t descriptor;
    pcclOpOptions_t options;
    pcclAsyncReduceOp_t handle;
    bool in_place;
};

static uint32_t *part(uint32_t *whole, const struct op *op, uint32_t rank) {
    return whole + rank * op->count;
}

static void fill(struct op *op, uint32_t rank, uint32_t world) {
    for (size_t i = 0; i < op->count * world; i++) {
        op->send[i] = value_of(rank, i, op->tag);
        op->receive[i] = 77;
    }
}

static void start(const struct peer *peer, struct op *op, uint32_t rank, uint32_t world) {
    pcclReduceDescriptor_t reduce = {
        .count = op->count, .op = pcclSum, .tag = op->tag, .src_descriptor.datatype = pcclUint32};
    fill(op, rank, world);
    op->descriptor = (pcclCollectiveDescriptor_t){.count = op->count,
                                                  .datatype = pcclUint32,
                                                  .op = pcclSum,
                                                  .root = (uint32_t)op->tag % world,
                                                  .world_size = world,
                                                  .tag = op->tag};
    pcclResult_t result;
    switch (op->tag % 5) {
    case 0:
        result = pcclBroadcastAsync(op->send, &op->descriptor, &op->options, peer->comm, &op->handle);
        break;
    case 1: {
        uint32_t *own = op->in_place ? part(op->receive, op, rank) : op->send;
        memcpy(own, op->send, op->count * sizeof *own);
        result = pcclAllGatherAsync(own, op->receive, &op->descriptor, NULL, peer->comm, &op->handle);
        break;
    }
    case 2:
        result = pcclReduceScatterAsync(op->send, op->in_place ? part(op->send, op, rank) : op->receive,
                                        &op->descriptor, NULL, peer->comm, &op->handle);
        break;
    case 3:
        result = pcclBarrierAsync(op->tag, NULL, peer->comm, &op->handle);
        break;
    default:
        result = pcclAllReduceAsyncWithOptions(op->send, op->in_place ? op->send : op->receive, &reduce,
                                               &op->options, peer->comm, &op->handle);
        break;
    }
    require(pcclSuccess, result, "start");
}

static uint32_t sum_of(uint32_t world, size_t i, uint64_t tag) {
    uint32_t sum = 0;
    for (uint32_t rank = 0; rank < world; rank++) {
        sum += value_of(rank, i, tag);
    }
    return sum;
}

static void finish(struct op *op, uint32_t rank, uint32_t world) {
    pcclReduceInfo_t info;
    require(pcclSuccess, pcclAwaitAsyncReduce(&op->handle, &info), "await");
    REQUIRE(info.local_world_size == world, "world %u", info.local_world_size);
    pcclAlgorithm_t wanted = op->options.algorithm;
    if ((op->tag % 5 == 0 || op->tag % 5 == 4) && wanted != pcclAlgorithmAuto) {
        REQUIRE(info.algorithm == wanted, "algorithm %d", (int)info.algorithm);
    }
    const uint32_t *own = op->in_place ? part(op->send, op, rank) : op->receive;
    const uint32_t *reduced = op->in_place ? op->send : op->receive;
    for (size_t i = 0; i < op->count; i++) {
        switch (op->tag % 5) {
        case 0:
            REQUIRE(op->send[i] == value_of(op->descriptor.root, i, op->tag), "broadcast at %zu", i);
            break;
        case 1:
            for (uint32_t other = 0; other < world; other++) {
                REQUIRE(part(op->receive, op, other)[i] == value_of(other, i, op->tag), "gather at %zu", i);
            }
            break;
        case 2:
            REQUIRE(own[i] == sum_of(world, rank * op->count + i, op->tag), "scatter at %zu", i);
            break;
        case 3:
            break;
        default:
            REQUIRE(reduced[i] == sum_of(world, i, op->tag), "reduce at %zu", i);
            break;
        }
    }
}

static void run_rounds(const struct peer *peer, struct op *ops) {
    static const size_t counts[] = {1, 17, 4096, MAX_COUNT};
    pcclCommInfo_t info = info_of(peer);
    for (int round = 0; round < ROUNDS; round++) {
        for (int k = 0; k < TAGS; k++) {
            /* in another order at each */
            struct op *op = &ops[(k * 7 + peer->index * 3 + round) % TAGS];
            op->tag = (uint64_t)(op - ops);
            op->count = counts[(op->tag + (uint64_t)round) % 4];
            op->options.algorithm = (pcclAlgorithm_t)((op->tag / 5 + (uint64_t)round) % 3);
            op->in_place = (op->tag / 5 + (uint64_t)round) % 2 == 0;
            start(peer, op, info.rank, info.world_size);
        }
        for (int k = 0; k < TAGS; k++) {
            finish(&ops[(k * 3 + peer->index) % TAGS], info.rank, info.world_size);
        }
    }
}

/* ---- what must fail ---- */

static void run_refusals(const struct peer *peer) {
    uint32_t buffer[64] = {0};
    pcclCommInfo_t info = info_of(peer);
    pcclReduceInfo_t reduced;
    const pcclCollectiveDescriptor_t good = {
        .count = 2, .datatype = pcclUint32, .world_size = info.world_size, .tag = 3};
    pcclCollectiveDescriptor_t bad = good;
    const pcclComm_t *comm = peer->comm;
    bad.root = info.world_size;
    require(pcclInvalidArgument, pcclBroadcast(buffer, &bad, NULL, comm, &reduced), "root");
    bad = good;
    bad.world_size++;
    require(pcclInvalidArgument, pcclAllGather(buffer, buffer + 32, &bad, NULL, comm, NULL), "world");
    bad.world_size = 0;
    require(pcclInvalidArgument, pcclReduceScatter(buffer, buffer + 32, &bad, NULL, comm, NULL), "no world");
    bad = good;
    bad.count = SIZE_MAX / 4 / info.world_size;
    require(pcclInvalidArgument, pcclAllGather(buffer, buffer + 32, &bad, NULL, comm, NULL), "overflow");
    require(pcclInvalidArgument, pcclAllGather(buffer + 1, buffer, &good, NULL, comm, NULL), "overlap");
    require(pcclInvalidArgument, pcclBroadcast(NULL, &good, NULL, comm, NULL), "NULL");
    require(pcclInvalidArgument, pcclBroadcast(buffer, NULL, NULL, comm, NULL), "no descriptor");
    require(pcclInvalidArgument, pcclBarrierAsync(1, NULL, comm, NULL), "no handle");
    pcclOpOptions_t options = {.algorithm = pcclAlgorithmTree};
    require(pcclInvalidArgument, pcclBarrier(1, &options, comm, NULL), "a tree");
    options = (pcclOpOptions_t){.flags = pcclOpRetry};
    require(pcclInvalidArgument, pcclBroadcast(buffer, &good, &options, comm, NULL), "retry");
    require(pcclSuccess, pcclBarrier(1, &options, comm, NULL), "barrier");
}

/* The last rank goes away without having called: the others' buffers are as they were. */
static void run_loss(struct peer *peer, struct op *ops) {
    pcclCommInfo_t info = info_of(peer);
    if (info.rank + 1 == info.world_size) {
        pthread_barrier_wait(&barrier);
        require(pcclSuccess, pcclDestroyCommunicator(peer->comm), "destroy");
        peer->comm = NULL;
        return;
    }
    for (uint64_t tag = 0; tag < 3; tag++) {
        ops[tag].tag = tag;
        ops[tag].count = MAX_COUNT;
        ops[tag].in_place = true;
        start(peer, &ops[tag], info.rank, info.world_size);
    }
    pthread_barrier_wait(&barrier);
    for (uint64_t tag = 0; tag < 3; tag++) {
        struct op *op = &ops[tag];
        pcclResult_t result = pcclAwaitAsyncReduce(&op->handle, NULL);
        if (tag == 0 && result == pcclSuccess) {
            continue; /* no net thread had seen it before: there is a rank 0 in the next epoch too */
        }
        REQUIRE(result == pcclRankConnectionLost || result == pcclTooFewPeers, "%s",
                pcclResultString(result));
        uint32_t *input = tag == 1 ? part(op->receive, op, info.rank) : op->send;
        for (size_t i = 0; i < op->count * (tag == 2 ? info.world_size : 1); i++) {
            REQUIRE(input[i] == value_of(info.rank, i, tag), "input of %d at %zu", (int)tag, i);
        }
    }
}

static void *run_peer(void *argument) {
    struct peer *peer = argument;
    pcclCommCreateParams_t params = {.master_address = master_address,
                                     .data_threads = 1 + (uint32_t)peer->index};
    require(pcclSuccess, pcclCreateCommunicator(&params, &peer->comm), "create");
    require(pcclSuccess, pcclConnect(peer->comm), "connect");
    while (info_of(peer).world_size < (uint32_t)peers) {
        usleep(2000);
        require(pcclSuccess, pcclUpdateTopology(peer->comm), "update topology");
    }
    struct op ops[TAGS] = {0};
    for (int i = 0; i < TAGS; i++) {
        ops[i].send = malloc(sizeof(uint32_t) * MAX_COUNT * (size_t)peers);
        ops[i].receive = malloc(sizeof(uint32_t) * MAX_COUNT * (size_t)peers);
    }
    run_rounds(peer, ops);
    run_refusals(peer);
    pthread_barrier_wait(&barrier);
    run_loss(peer, ops);
    for (int i = 0; i < TAGS; i++) {
        free(ops[i].send);
        free(ops[i].receive);
    }
    if (peer->comm != NULL) {
        require(pcclSuccess, pcclDestroyCommunicator(peer->comm), "destroy");
    }
    return NULL;
}

int main(int argc, char **argv) {
    peers = argc > 1 ? atoi(argv[1]) : peers;
    REQUIRE(peers >= 2 && peers <= MAX_DRIVEN, "2 to %d peers", MAX_DRIVEN);
    require(pcclSuccess, pcclInit(), "init");
    ccoip_socket_address_t listen = {.inet = {.protocol = inetIPv4, .ipv4.data = {127, 0, 0, 1}}};
    pcclMasterInstance_t *master;
    require(pcclSuccess, pcclCreateMaster(listen, &master), "create master");
    require(pcclSuccess, pcclRunMaster(master), "run master");
    require(pcclSuccess, pcclMasterGetAddress(master, &master_address), "address");
    pthread_barrier_init(&barrier, NULL, (unsigned)peers);
    struct peer threads[MAX_DRIVEN];
    for (int i = 0; i < peers; i++) {
        threads[i] = (struct peer){.index = i};
        REQUIRE(pthread_create(&threads[i].thread, NULL, run_peer, &threads[i]) == 0, "thread");
    }
    for (int i = 0; i < peers; i++) {
        pthread_join(threads[i].thread, NULL);
    }
    pthread_barrier_destroy(&barrier);
    require(pcclSuccess, pcclDestroyMaster(master), "destroy master");
    printf("%d peers: all good\n", peers);
    return 0;
}
