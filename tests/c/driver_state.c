/* Shared state of one master and several communicators in one process, through the public calls only; for
 * the sanitizers. Prints a line per part; exits with 1 at the first thing that is wrong.
 * Usage: driver_state [peers] */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "pccl.h"

enum { MAX_DRIVEN = 8, LARGE = 5 * 1024 * 1024 + 77, SMALL = 1000, ROUNDS = 12 };

static int peers = 4;
static ccoip_socket_address_t master_address;
static pthread_barrier_t barrier;

struct peer_thread {
    pthread_t thread;
    int index;
    pcclComm_t *comm;
    uint8_t *large;
    uint16_t *small;
    uint8_t own[8];
    uint64_t told; /* how often the progress was told */
};

static void require_success(pcclResult_t result, const char *what) {
    REQUIRE(result == pcclSuccess, "%s: %s", what, pcclResultString(result));
}

static uint8_t byte_of(int owner, int round, size_t i) {
    return (uint8_t)((unsigned)owner * 31u + (unsigned)round * 7u + (unsigned)(i >> 12));
}

static void fill(struct peer_thread *peer, int owner, int round) {
    for (size_t i = 0; i < LARGE; i++) {
        peer->large[i] = byte_of(owner, round, i);
    }
    for (size_t i = 0; i < SMALL; i++) {
        peer->small[i] = (uint16_t)(byte_of(owner, round, i) + i);
    }
}

static void require_filled(const struct peer_thread *peer, int owner, int round) {
    for (size_t i = 0; i < LARGE; i++) {
        REQUIRE(peer->large[i] == byte_of(owner, round, i), "peer %d, byte %zu", peer->index, i);
    }
    for (size_t i = 0; i < SMALL; i++) {
        REQUIRE(peer->small[i] == (uint16_t)(byte_of(owner, round, i) + i), "peer %d, %zu", peer->index, i);
    }
    for (size_t i = 0; i < sizeof peer->own; i++) {
        REQUIRE(peer->own[i] == (uint8_t)peer->index, "what may differ was written");
    }
}

static void count_progress(void *context, const pcclSyncProgress_t *progress) {
    struct peer_thread *peer = context;
    peer->told++;
    REQUIRE(progress->total_bytes == 0 || progress->done_bytes <= progress->total_bytes, "progress");
}

static pcclSharedState_t describe(struct peer_thread *peer, pcclTensorInfo_t infos[3], uint64_t revision) {
    infos[0] =
        (pcclTensorInfo_t){.name = "large", .data = peer->large, .count = LARGE, .datatype = pcclUint8};
    infos[1] =
        (pcclTensorInfo_t){.name = "small", .data = peer->small, .count = SMALL, .datatype = pcclBFloat16};
    infos[2] = (pcclTensorInfo_t){.name = "own",
                                  .data = peer->own,
                                  .count = sizeof peer->own,
                                  .datatype = pcclInt8,
                                  .allow_content_inequality = true};
    return (pcclSharedState_t){.revision = revision, .count = 3, .infos = infos};
}

/* ---- the parts, each in all threads ---- */

/* In round r peer r % peers alone is up to date; every third round all are. */
static void synchronise_in_turn(struct peer_thread *peer) {
    for (int round = 1; round <= ROUNDS; round++) {
        pcclTensorInfo_t infos[3];
        int owner = round % peers;
        bool equal = round % 3 == 0;
        uint64_t revision = equal || peer->index == owner ? (uint64_t)round : (uint64_t)round - 1;
        pcclSharedState_t state = describe(peer, infos, revision);
        pcclSharedStateSyncInfo_t info;
        pcclSyncOptions_t options = {.progress = count_progress, .context = peer};
        fill(peer, equal ? owner : peer->index, round);
        require_success(pcclSynchronizeSharedStateWithOptions(peer->comm, &state,
                                                              PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR,
                                                              &options, &info),
                        "synchronise");
        require_filled(peer, owner, round);
        REQUIRE(state.revision == (uint64_t)round, "revision");
        bool fetched = !equal && peer->index != owner;
        REQUIRE((info.rx_bytes > 0) == fetched, "round %d, peer %d", round, peer->index);
    }
    REQUIRE(peer->told > 0, "no progress was told");
}

static void only_receive(struct peer_thread *peer) {
    pcclTensorInfo_t infos[3];
    pcclSharedState_t state = describe(peer, infos, ROUNDS + 1);
    pcclResult_t result =
        pcclSynchronizeSharedState(peer->comm, &state, PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY, NULL);
    REQUIRE(result == pcclNoSharedStateAvailable, "%s", pcclResultString(result));
}

static void mismatch(struct peer_thread *peer) {
    pcclTensorInfo_t infos[3];
    pcclSharedState_t state = describe(peer, infos, peer->index == 0 ? ROUNDS + 1 : 1);
    infos[1].count -= peer->index == 0;
    pcclResult_t result =
        pcclSynchronizeSharedState(peer->comm, &state, PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR, NULL);
    REQUIRE(result == pcclMismatch, "%s", pcclResultString(result));
    REQUIRE(strstr(pcclGetLastError(NULL), "bfloat16[999]") != NULL, "the sentence");
}

/* All but one wait; that one is closed. */
static void close_one(struct peer_thread *peer) {
    pcclTensorInfo_t infos[3];
    fill(peer, 0, 0);
    pcclSharedState_t state = describe(peer, infos, ROUNDS + 1);
    if (peer->index == peers - 1) {
        require_success(pcclDestroyCommunicator(peer->comm), "destroy");
        peer->comm = NULL;
        return;
    }
    require_success(
        pcclSynchronizeSharedState(peer->comm, &state, PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR, NULL),
        "synchronise without the one that left");
}

/* ---- the run ---- */

static void *live(void *argument) {
    struct peer_thread *peer = argument;
    pcclCommCreateParams_t params = {.master_address = master_address, .timeout_ms = 20000};
    require_success(pcclCreateCommunicator(&params, &peer->comm), "create");
    for (int turn = 0; turn < peers; turn++) {
        if (turn == peer->index) {
            pthread_barrier_wait(&barrier);
            require_success(pcclConnect(peer->comm), "connect");
        } else {
            pthread_barrier_wait(&barrier);
            if (turn > peer->index) {
                int world = 0;
                while (world <= turn) {
                    require_success(pcclUpdateTopology(peer->comm), "update_topology");
                    require_success(
                        pcclGetAttribute(peer->comm, PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE, &world),
                        "world size");
                }
            }
        }
        pthread_barrier_wait(&barrier);
    }
    static void (*const parts[])(struct peer_thread *) = {synchronise_in_turn, only_receive, mismatch,
                                                          close_one};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        parts[i](peer);
        pthread_barrier_wait(&barrier);
        if (peer->index == 0) {
            printf("part %zu of %zu is done\n", i + 1, sizeof parts / sizeof parts[0]);
        }
    }
    if (peer->comm != NULL) {
        require_success(pcclDestroyCommunicator(peer->comm), "destroy");
    }
    return NULL;
}

int main(int argc, char **argv) {
    peers = argc > 1 ? atoi(argv[1]) : peers;
    REQUIRE(peers >= 2 && peers <= MAX_DRIVEN, "2 to %d peers", MAX_DRIVEN);
    pcclMasterInstance_t *master;
    require_success(pcclInit(), "init");
    ccoip_socket_address_t any = {.inet.protocol = inetIPv4, .inet.ipv4.data = {127, 0, 0, 1}};
    require_success(pcclCreateMaster(any, &master), "master");
    require_success(pcclRunMaster(master), "run");
    require_success(pcclMasterGetAddress(master, &master_address), "address");
    pthread_barrier_init(&barrier, NULL, (unsigned)peers);
    struct peer_thread threads[MAX_DRIVEN] = {0};
    for (int i = 0; i < peers; i++) {
        threads[i].index = i;
        threads[i].large = malloc(LARGE);
        threads[i].small = malloc(SMALL * sizeof *threads[i].small);
        REQUIRE(threads[i].large != NULL && threads[i].small != NULL, "memory");
        memset(threads[i].own, i, sizeof threads[i].own);
        REQUIRE(pthread_create(&threads[i].thread, NULL, live, &threads[i]) == 0, "thread");
    }
    for (int i = 0; i < peers; i++) {
        pthread_join(threads[i].thread, NULL);
        free(threads[i].large);
        free(threads[i].small);
    }
    require_success(pcclInterruptMaster(master), "interrupt");
    require_success(pcclMasterAwaitTermination(master), "await");
    require_success(pcclDestroyMaster(master), "destroy");
    pthread_barrier_destroy(&barrier);
    return 0;
}
