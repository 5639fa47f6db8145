/* All-reduces of one master and several communicators in one process, through the public calls only; for
 * the sanitizers, and as a first test of the whole. Prints a line per part; exits with 1 at the first
 * thing that is wrong. Usage: driver_allreduce [peers] [seed] */
#define _GNU_SOURCE
#include <fenv.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "driver.h"
#include "elements.h"
#include "pccl.h"

enum { MAX_DRIVEN = 8, TAGS = 24, CALLERS = 4 };

static int peers = 3;
static uint64_t seed = 1;
static ccoip_socket_address_t master_address;
static pthread_barrier_t barrier;

static void require_success(pcclResult_t result, const char *what) {
    REQUIRE(result == pcclSuccess, "%s: %s", what, pcclResultString(result));
}

struct peer_thread {
    pthread_t thread;
    int index;
    pcclComm_t *comm;
    uint64_t random;
};

static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static pcclReduceDescriptor_t describe(size_t count, pcclDataType_t type, pcclRedOp_t op, uint64_t tag) {
    return (pcclReduceDescriptor_t){.count = count, .op = op, .tag = tag, .src_descriptor.datatype = type};
}

static void fill(void *array, size_t count, pcclDataType_t type, pcclRedOp_t op, uint64_t tag, int index) {
    for (size_t i = 0; i < count; i++) {
        put(type, array, i, own_value(index, i, tag, op));
    }
}

static void require_result(const void *result, size_t count, pcclDataType_t type, pcclRedOp_t op,
                           uint64_t tag) {
    for (size_t i = 0; i < count; i++) {
        unsigned char expected[8];
        put(type, expected, 0, expected_value(peers, i, tag, op));
        const unsigned char *at = (const unsigned char *)result + i * size_of(type);
        REQUIRE(memcmp(at, expected, size_of(type)) == 0, "type %d op %d tag %" PRIu64 " element %zu of %zu",
                (int)type, (int)op, tag, i, count);
    }
}

/* ---- joining ---- */

static void create(struct peer_thread *peer) {
    char name[16];
    snprintf(name, sizeof name, "peer-%d", peer->index);
    pcclCommCreateParams_t params = {
        .master_address = master_address, .name = name, .data_threads = 1 + (uint32_t)peer->index};
    require_success(pcclCreateCommunicator(&params, &peer->comm), "create");
}

static int world_size(const struct peer_thread *peer) {
    int world;
    require_success(pcclGetAttribute(peer->comm, PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE, &world), "attribute");
    return world;
}

static void join(struct peer_thread *peer, int world) {
    require_success(pcclConnect(peer->comm), "connect");
    while (world_size(peer) < world) {
        usleep(2000);
        require_success(pcclUpdateTopology(peer->comm), "update topology");
    }
}

/* ---- the parts ---- */

static void one_reduce(struct peer_thread *peer, size_t count, pcclDataType_t type, pcclRedOp_t op,
                       bool in_place) {
    uint64_t tag = count + (uint64_t)type;
    size_t bytes = count * size_of(type);
    unsigned char *send = malloc(bytes), *before = malloc(bytes);
    unsigned char *receive = in_place ? send : malloc(bytes);
    fill(send, count, type, op, tag, peer->index);
    memcpy(before, send, bytes);
    pcclReduceDescriptor_t descriptor = describe(count, type, op, tag);
    pcclReduceInfo_t info;
    require_success(pcclAllReduce(send, receive, &descriptor, peer->comm, &info), "all-reduce");
    require_result(receive, count, type, op, tag);
    REQUIRE((int)info.local_world_size == peers, "world %u", info.local_world_size);
    uint64_t payload = bytes; /* at the least, by ring or tree */
    REQUIRE(info.tx_bytes + 64 * (uint64_t)peers >= payload &&
                info.rx_bytes + 64 * (uint64_t)peers >= payload,
            "tx %" PRIu64 " rx %" PRIu64 " of %" PRIu64, info.tx_bytes, info.rx_bytes, payload);
    if (!in_place) {
        REQUIRE(memcmp(send, before, bytes) == 0, "the input was changed");
        free(receive);
    }
    free(before);
    free(send);
}

static void part_sizes(struct peer_thread *peer) {
    static const size_t counts[] = {1, 2, 3, 15, 16, 17, 255, 1000, 4096, 16385, 70001, 300007};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        for (int type = pcclUint8; type <= pcclDouble; type++) {
            pcclRedOp_t op = (pcclRedOp_t)((c + (size_t)type) % 5);
            if (op == pcclAvg && type >= pcclFloat16) {
                op = pcclSum; /* its quotients are no integers */
            }
            one_reduce(peer, counts[c], (pcclDataType_t)type, op, (c + (size_t)type) % 2 == 0);
        }
    }
    one_reduce(peer, 3000017, pcclFloat, pcclSum, true);
    one_reduce(peer, 3000017, pcclFloat, pcclSum, false);
}

static void shuffle(struct peer_thread *peer, int *order, int count) {
    for (int i = 0; i < count; i++) {
        order[i] = i;
    }
    for (int i = count - 1; i > 0; i--) {
        int j = (int)(next_random(&peer->random) % (uint64_t)(i + 1));
        int former = order[i];
        order[i] = order[j];
        order[j] = former;
    }
}

/* Many tags at once, started and awaited in other orders at each peer, again and again. */
static void part_tags(struct peer_thread *peer) {
    size_t counts[TAGS];
    float *arrays[TAGS];
    pcclAsyncReduceOp_t handles[TAGS];
    int order[TAGS];
    for (int i = 0; i < TAGS; i++) {
        counts[i] = (size_t)1 << (i % 19);
        arrays[i] = malloc(counts[i] * sizeof(float));
    }
    for (int round = 0; round < 6; round++) {
        shuffle(peer, order, TAGS);
        for (int k = 0; k < TAGS; k++) {
            int i = order[k];
            fill(arrays[i], counts[i], pcclFloat, pcclSum, (uint64_t)i, peer->index);
            pcclReduceDescriptor_t descriptor = describe(counts[i], pcclFloat, pcclSum, (uint64_t)i);
            require_success(pcclAllReduceAsync(arrays[i], arrays[i], &descriptor, peer->comm, &handles[i]),
                            "start");
        }
        shuffle(peer, order, TAGS);
        for (int k = 0; k < TAGS; k++) {
            int i = order[k];
            require_success(pcclAwaitAsyncReduce(&handles[i], NULL), "await");
            require_result(arrays[i], counts[i], pcclFloat, pcclSum, (uint64_t)i);
            REQUIRE(pcclAwaitAsyncReduce(&handles[i], NULL) == pcclInvalidArgument, "awaited twice");
        }
    }
    for (int i = 0; i < TAGS; i++) {
        free(arrays[i]);
    }
}

/* Far more small ops than the window for early data holds, called late and in reverse by some. */
static void part_early(struct peer_thread *peer) {
    enum { OPS = 400, COUNT = 8000 };
    float **arrays = malloc(OPS * sizeof *arrays);
    pcclAsyncReduceOp_t handle = {.comm = peer->comm};
    if (peer->index == 0) {
        usleep(50000);
    }
    for (int k = 0; k < OPS; k++) {
        int i = peer->index % 2 == 0 ? k : OPS - 1 - k;
        arrays[i] = malloc(COUNT * sizeof(float));
        fill(arrays[i], COUNT, pcclFloat, pcclMin, (uint64_t)i, peer->index);
        pcclReduceDescriptor_t descriptor = describe(COUNT, pcclFloat, pcclMin, (uint64_t)i);
        require_success(pcclAllReduceAsync(arrays[i], arrays[i], &descriptor, peer->comm, &handle), "start");
    }
    for (int i = 0; i < OPS; i++) {
        handle.tag = (uint64_t)i;
        require_success(pcclAwaitAsyncReduce(&handle, NULL), "await");
        require_result(arrays[i], COUNT, pcclFloat, pcclMin, (uint64_t)i);
        free(arrays[i]);
    }
    free(arrays);
}

/* Results come before their commit: the buffers are used again at once, and calls that wait for it follow. */
static void part_early_return(struct peer_thread *peer) {
    enum { ROUNDS = 300, MOST = 16384 };
    const pcclOpOptions_t options = {.flags = pcclOpEarlyReturn};
    static const size_t counts[] = {1, 17, 1024, MOST, MOST + 1}; /* the last is too large for it */
    uint32_t *send = malloc((MOST + 1) * sizeof *send), *receive = malloc((MOST + 1) * sizeof *receive);
    for (int round = 0; round < ROUNDS; round++) {
        size_t count = counts[round % 5];
        uint32_t *result = round % 2 == 0 ? send : receive;
        for (size_t i = 0; i < count; i++) {
            send[i] = (uint32_t)(round + peer->index) + (uint32_t)i;
        }
        pcclReduceDescriptor_t descriptor = describe(count, pcclUint32, pcclSum, (uint64_t)(round / 7 % 3));
        pcclReduceInfo_t info;
        require_success(pcclAllReduceWithOptions(send, result, &descriptor, &options, peer->comm, &info),
                        "early return");
        REQUIRE((int)info.local_world_size == peers, "world %u", info.local_world_size);
        for (size_t i = 0; i < count; i++) {
            uint32_t sum = (uint32_t)peers * ((uint32_t)round + (uint32_t)i);
            sum += (uint32_t)(peers * (peers - 1) / 2);
            REQUIRE(result[i] == sum, "round %d element %zu: %u is not %u", round, i, result[i], sum);
        }
        if (round % 50 == 49) {
            require_success(pcclUpdateTopology(peer->comm), "update topology after an early return");
        }
    }
    pcclCollectiveDescriptor_t other = {.count = 1, .datatype = pcclUint32, .tag = 1};
    REQUIRE(pcclBroadcast(send, &other, &options, peer->comm, NULL) == pcclInvalidArgument, "broadcast");
    free(receive);
    free(send);
}

static void part_multiple(struct peer_thread *peer) {
    enum { OPS = 40, COUNT = 5003 };
    pcclReduceOpDescriptor_t ops[OPS];
    for (int i = 0; i < OPS; i++) {
        int32_t *array = malloc(COUNT * sizeof(int32_t));
        fill(array, COUNT, pcclInt32, pcclMax, (uint64_t)i, peer->index);
        ops[i] = (pcclReduceOpDescriptor_t){.sendbuf = array,
                                            .recvbuf = array,
                                            .descriptor = describe(COUNT, pcclInt32, pcclMax, (uint64_t)i)};
    }
    pcclReduceInfo_t info;
    require_success(pcclAllReduceMultipleWithRetry(ops, OPS, peer->comm, &info, 5), "multiple");
    for (int i = 0; i < OPS; i++) {
        require_result(ops[i].recvbuf, COUNT, pcclInt32, pcclMax, (uint64_t)i);
        free(ops[i].recvbuf);
    }
}

static void require_refused(pcclResult_t result, pcclResult_t expected, const char *what) {
    REQUIRE(result == expected, "%s: %s", what, pcclResultString(result));
    REQUIRE(pcclGetLastError(NULL)[0] != '\0', "%s: without a sentence", what);
}

/* What must not be called now or so is refused, and does no harm. */
static void part_usage(struct peer_thread *peer) {
    enum { COUNT = 1000 };
    float array[COUNT], other[COUNT];
    pcclReduceDescriptor_t good = describe(COUNT, pcclFloat, pcclSum, 9), bad = good;
    pcclAsyncReduceOp_t handle;
    bool flag = true;
    fill(array, COUNT, pcclFloat, pcclSum, 9, peer->index);
    if (peer->index == 0) { /* the others have not called it, so it can't end */
        require_success(pcclAllReduceAsync(array, array, &good, peer->comm, &handle), "start");
        pcclResult_t twice = pcclAllReduceAsync(other, other, &good, peer->comm, &handle);
        require_refused(twice, pcclInvalidUsage, "a tag in flight, async");
        require_refused(pcclAllReduce(other, other, &good, peer->comm, NULL), pcclInvalidUsage,
                        "a tag in flight");
        require_refused(pcclUpdateTopology(peer->comm), pcclPendingAsyncOps, "a joint call");
        require_success(pcclTestAsyncReduce(&handle, &flag), "test");
        REQUIRE(!flag, "the others have not called it");
    }
    pthread_barrier_wait(&barrier);
    bad.count = SIZE_MAX / 2;
    require_refused(pcclAllReduce(other, other, &bad, peer->comm, NULL), pcclInvalidArgument, "size");
    require_refused(pcclAllReduce(other, other + 1, &good, peer->comm, NULL), pcclInvalidArgument, "overlap");
    require_refused(pcclAllReduce(NULL, other, &good, peer->comm, NULL), pcclInvalidArgument, "NULL");
    if (peer->index != 0) {
        require_success(pcclAllReduceAsync(array, array, &good, peer->comm, &handle), "start");
    }
    require_success(pcclAwaitAsyncReduce(&handle, NULL), "await");
    require_result(array, COUNT, pcclFloat, pcclSum, 9);
    require_refused(pcclTestAsyncReduce(&handle, &flag), pcclInvalidArgument, "test of no op");
}

/* One peer calls something else: all fail with the same result, inputs stay, and the next op works. */
static void part_mismatch(struct peer_thread *peer) {
    enum { COUNT = 100000 };
    int32_t *array = malloc((COUNT + 1) * sizeof(int32_t));
    fill(array, COUNT + 1, pcclInt32, pcclSum, 5, peer->index);
    for (int odd_one = 0; odd_one < peers; odd_one++) {
        size_t count = peer->index == odd_one ? COUNT + 1 : COUNT;
        pcclReduceDescriptor_t descriptor = describe(count, pcclInt32, pcclSum, 77);
        pcclResult_t result = pcclAllReduce(array, array, &descriptor, peer->comm, NULL);
        REQUIRE(result == pcclMismatch, "%s", pcclResultString(result));
        for (size_t i = 0; i <= COUNT; i++) {
            REQUIRE(array[i] == own_value(peer->index, i, 5, pcclSum), "the input was changed at %zu", i);
        }
        one_reduce(peer, 1000, pcclFloat, pcclSum, true);
    }
    free(array);
}

/* The last peer leaves while the others wait for it in an op: they end it without it. Then it comes back. */
static void part_leave(struct peer_thread *peer) {
    enum { COUNT = 50000 };
    uint32_t *array = malloc(COUNT * sizeof(uint32_t));
    for (size_t i = 0; i < COUNT; i++) {
        array[i] = 1u << peer->index;
    }
    if (peer->index == peers - 1) {
        usleep(20000);
        require_success(pcclCloseCommunicator(peer->comm), "close");
        REQUIRE(pcclUpdateTopology(peer->comm) == pcclInvalidUsage, "after close");
        require_success(pcclConnect(peer->comm), "connect again");
    } else {
        pcclReduceDescriptor_t descriptor = describe(COUNT, pcclUint32, pcclSum, 3);
        pcclResult_t result = pcclAllReduce(array, array, &descriptor, peer->comm, NULL);
        REQUIRE(result == (peers == 2 ? pcclTooFewPeers : pcclSuccess), "%s", pcclResultString(result));
        uint32_t expected = peers == 2 ? 1 : (1u << (peers - 1)) - 1;
        for (size_t i = 0; i < COUNT; i++) {
            REQUIRE(array[i] == expected, "element %zu is %x", i, array[i]);
        }
    }
    while (world_size(peer) < peers) {
        usleep(2000);
        require_success(pcclUpdateTopology(peer->comm), "update topology");
    }
    free(array);
    one_reduce(peer, 1000, pcclFloat, pcclSum, true);
}

/* ---- several threads of one peer ---- */

struct caller {
    pthread_t thread;
    struct peer_thread *peer;
    int index;
    uint64_t random;
    void (*part)(struct caller *);
};

static void *run_caller(void *argument) {
    struct caller *caller = argument;
    caller->part(caller);
    return NULL;
}

static void start_callers(struct peer_thread *peer, struct caller *callers, void (*part)(struct caller *)) {
    for (int i = 0; i < CALLERS; i++) {
        callers[i] =
            (struct caller){.peer = peer, .index = i, .part = part, .random = next_random(&peer->random)};
        REQUIRE(pthread_create(&callers[i].thread, NULL, run_caller, &callers[i]) == 0, "thread");
    }
}

static void join_callers(struct caller *callers) {
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(callers[i].thread, NULL);
    }
}

/* Blocking and async ops in turn, at once in all callers, some a moment later: so that a call finds the loop
 * parked, or driven by another caller, or by the net thread. */
static void call_by_turns(struct caller *caller) {
    enum { ROUNDS = 200, COUNT = 300 };
    const pcclComm_t *comm = caller->peer->comm;
    int32_t blocking[COUNT], async[COUNT];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t tag = 1000 + 2 * (uint64_t)caller->index;
        bool is_async = (round + caller->index) % 3 == 0;
        pcclReduceDescriptor_t first = describe(COUNT, pcclInt32, pcclSum, tag);
        pcclReduceDescriptor_t second = describe(COUNT, pcclInt32, pcclMax, tag + 1);
        pcclAsyncReduceOp_t handle;
        fill(blocking, COUNT, pcclInt32, pcclSum, tag, caller->peer->index);
        fill(async, COUNT, pcclInt32, pcclMax, tag + 1, caller->peer->index);
        if (is_async) {
            require_success(pcclAllReduceAsync(async, async, &second, comm, &handle), "start");
        }
        require_success(pcclAllReduce(blocking, blocking, &first, comm, NULL), "all-reduce");
        require_result(blocking, COUNT, pcclInt32, pcclSum, tag);
        if (is_async) {
            require_success(pcclAwaitAsyncReduce(&handle, NULL), "await");
            require_result(async, COUNT, pcclInt32, pcclMax, tag + 1);
        }
        if (next_random(&caller->random) % 16 == 0) {
            usleep((useconds_t)(next_random(&caller->random) % 8000));
        }
    }
}

static void part_callers(struct peer_thread *peer) {
    struct caller callers[CALLERS];
    start_callers(peer, callers, call_by_turns);
    join_callers(callers);
    one_reduce(peer, 1000, pcclFloat, pcclSum, true);
}

/* Until the communicator is closed, or all others are. */
static void call_until_closed(struct caller *caller) {
    enum { COUNT = 300 };
    int32_t array[COUNT] = {0};
    pcclResult_t result = pcclSuccess;
    while (result == pcclSuccess || result == pcclRankConnectionLost) {
        pcclReduceDescriptor_t descriptor = describe(COUNT, pcclInt32, pcclSum, (uint64_t)caller->index);
        result = pcclAllReduce(array, array, &descriptor, caller->peer->comm, NULL);
    }
    REQUIRE(result == pcclInvalidUsage || result == pcclTooFewPeers, "%s", pcclResultString(result));
}

/* Every call ends when the communicator is closed from another thread, whoever drives the loop just then. */
static void part_close(struct peer_thread *peer) {
    enum { ROUNDS = 8 };
    struct caller callers[CALLERS];
    for (int round = 0; round < ROUNDS; round++) {
        start_callers(peer, callers, call_until_closed);
        usleep((useconds_t)(next_random(&peer->random) % 8000));
        require_success(pcclCloseCommunicator(peer->comm), "close");
        join_callers(callers);
        pthread_barrier_wait(&barrier);
        join(peer, peers);
        one_reduce(peer, 1000, pcclFloat, pcclSum, true);
    }
}

/* ---- what a program has chosen for its own arithmetic ---- */

static unsigned flush_to_zero(bool on) {
#if defined(__SSE2__)
    unsigned bits = 0x8040; /* FTZ, DAZ */
    _mm_setcsr(on ? _mm_getcsr() | bits : _mm_getcsr() & ~bits);
    return _mm_getcsr();
#else
    (void)on;
    return 0;
#endif
}

/* Sums are rounded to nearest, and denormals kept, whatever the thread that calls has set; and that stays. */
static void part_environment(struct peer_thread *peer) {
    enum { ROUNDS = 20, COUNT = 64 };
    uint32_t denormal[COUNT]; /* the bits of floats */
    float rounded[COUNT];
    fesetround(FE_UPWARD);
    unsigned settings = flush_to_zero(true);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < COUNT; i++) {
            denormal[i] = 100 + (uint32_t)i;
            rounded[i] = peer->index == 0 ? 1.0f : 1e-10f;
        }
        pcclReduceDescriptor_t descriptor = describe(COUNT, pcclFloat, pcclSum, 8);
        require_success(pcclAllReduce(denormal, denormal, &descriptor, peer->comm, NULL), "all-reduce");
        require_success(pcclAllReduce(rounded, rounded, &descriptor, peer->comm, NULL), "all-reduce");
        float one = 1.0f;
        for (int i = 0; i < COUNT; i++) {
            REQUIRE(denormal[i] == (uint32_t)peers * (100 + (uint32_t)i), "a denormal became %x",
                    denormal[i]);
            REQUIRE(memcmp(&rounded[i], &one, sizeof one) == 0, "rounded to %.9g", (double)rounded[i]);
        }
        REQUIRE(fegetround() == FE_UPWARD, "the rounding mode was changed");
#if defined(__SSE2__)
        REQUIRE((_mm_getcsr() & 0x8040) == (settings & 0x8040), "MXCSR was changed: %x", _mm_getcsr());
#endif
    }
    flush_to_zero(false);
    fesetround(FE_TONEAREST);
    (void)settings;
}

/* The last peer goes in the middle. Each brings one bit, so that a sum tells who took part. */
static void part_loss(struct peer_thread *peer) {
    enum { COUNT = 2000000, ROUNDS = 12 };
    uint32_t *array = malloc(COUNT * sizeof(uint32_t));
    bool goes = peer->index == peers - 1;
    const pcclOpOptions_t options = {.flags = peer->index % 2 == 0 ? pcclOpRetry : 0};
    for (int round = 0; round < ROUNDS; round++) {
        pcclReduceDescriptor_t descriptor = describe(COUNT, pcclUint32, pcclSum, (uint64_t)(round % 2));
        pcclReduceInfo_t info;
        pcclResult_t result;
        for (size_t i = 0; i < COUNT; i++) {
            array[i] = 1u << peer->index;
        }
        if (goes && round == ROUNDS / 2) {
            pcclAsyncReduceOp_t handle;
            require_success(pcclAllReduceAsync(array, array, &descriptor, peer->comm, &handle), "start");
            usleep((useconds_t)(next_random(&peer->random) % 3000));
            break;
        }
        do { /* after a failure the input is as it was */
            result = pcclAllReduceWithOptions(array, array, &descriptor, &options, peer->comm, &info);
        } while (result == pcclRankConnectionLost && options.flags == 0);
        if (result == pcclTooFewPeers && peers == 2) {
            break;
        }
        require_success(result, "all-reduce");
        for (size_t i = 0; i < COUNT; i++) {
            REQUIRE(array[i] == array[0], "element %zu differs", i);
        }
        REQUIRE(__builtin_popcount(array[0]) == (int)info.local_world_size, "bits %x, world %u", array[0],
                info.local_world_size);
    }
    if (goes) {
        require_success(pcclDestroyCommunicator(peer->comm), "destroy");
        peer->comm = NULL;
    }
    free(array);
}

static void run_part(struct peer_thread *peer, const char *name, void (*part)(struct peer_thread *)) {
    pthread_barrier_wait(&barrier);
    part(peer);
    if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
        printf("%s: good\n", name);
        fflush(stdout);
    }
}

static void *run_peer(void *argument) {
    struct peer_thread *peer = argument;
    create(peer);
    REQUIRE(pcclUpdateTopology(peer->comm) == pcclInvalidUsage, "before connect");
    join(peer, peers);
    run_part(peer, "sizes and types", part_sizes);
    run_part(peer, "many tags", part_tags);
    run_part(peer, "early data", part_early);
    run_part(peer, "early return", part_early_return);
    run_part(peer, "multiple with retry", part_multiple);
    run_part(peer, "usage", part_usage);
    run_part(peer, "mismatch", part_mismatch);
    run_part(peer, "a peer leaves and comes back", part_leave);
    run_part(peer, "several threads at once", part_callers);
    run_part(peer, "close while others call", part_close);
    run_part(peer, "floating point environment", part_environment);
    run_part(peer, "loss of a peer", part_loss);
    if (peer->comm != NULL) {
        require_success(pcclDestroyCommunicator(peer->comm), "destroy");
    }
    return NULL;
}

int main(int argc, char **argv) {
    peers = argc > 1 ? atoi(argv[1]) : peers;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) : seed;
    REQUIRE(peers >= 2 && peers <= MAX_DRIVEN, "2 to %d peers", MAX_DRIVEN);
    require_success(pcclInit(), "init");
    ccoip_socket_address_t listen = {.inet = {.protocol = inetIPv4, .ipv4.data = {127, 0, 0, 1}}};
    pcclMasterInstance_t *master;
    require_success(pcclCreateMaster(listen, &master), "create master");
    require_success(pcclRunMaster(master), "run master");
    require_success(pcclMasterGetAddress(master, &master_address), "address");
    pthread_barrier_init(&barrier, NULL, (unsigned)peers);
    struct peer_thread threads[MAX_DRIVEN];
    for (int i = 0; i < peers; i++) {
        threads[i] = (struct peer_thread){.index = i, .random = seed * 1000 + (uint64_t)i};
        REQUIRE(pthread_create(&threads[i].thread, NULL, run_peer, &threads[i]) == 0, "thread");
    }
    for (int i = 0; i < peers; i++) {
        pthread_join(threads[i].thread, NULL);
    }
    pthread_barrier_destroy(&barrier);
    require_success(pcclDestroyMaster(master), "destroy master");
    printf("%d peers, seed %" PRIu64 ": all good\n", peers, seed);
    return 0;
}
