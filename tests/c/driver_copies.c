/* How often the bytes of an all-reduce are touched: linked so that each call of these functions from the core
 * comes through here and is counted. What is small, headers and messages, is not. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver.h"

enum { MOST_PEERS = 4, SMALL = 1024 };

static atomic_size_t copied, saved, reduced, averaged, checked;

void *__real_memcpy(void *to, const void *from, size_t bytes);
void *__wrap_memcpy(void *to, const void *from, size_t bytes);
void *__wrap_memcpy(void *to, const void *from, size_t bytes) {
    atomic_fetch_add(&copied, bytes >= SMALL ? bytes : 0);
    return __real_memcpy(to, from, bytes);
}

void *__real_memmove(void *to, const void *from, size_t bytes);
void *__wrap_memmove(void *to, const void *from, size_t bytes);
void *__wrap_memmove(void *to, const void *from, size_t bytes) {
    atomic_fetch_add(&copied, bytes >= SMALL ? bytes : 0);
    return __real_memmove(to, from, bytes);
}

void __real_copy_past_cache(void *to, const void *from, size_t bytes);
void __wrap_copy_past_cache(void *to, const void *from, size_t bytes);
void __wrap_copy_past_cache(void *to, const void *from, size_t bytes) {
    atomic_fetch_add(&saved, bytes);
    __real_copy_past_cache(to, from, bytes);
}

void __real_reduce(uint8_t type, uint8_t op, void *to, const void *a, const void *b, size_t count);
void __wrap_reduce(uint8_t type, uint8_t op, void *to, const void *a, const void *b, size_t count);
void __wrap_reduce(uint8_t type, uint8_t op, void *to, const void *a, const void *b, size_t count) {
    atomic_fetch_add(&reduced, count);
    __real_reduce(type, op, to, a, b, count);
}

void __real_reduce_average(uint8_t type, void *to, const void *a, const void *b, uint32_t by, size_t count);
void __wrap_reduce_average(uint8_t type, void *to, const void *a, const void *b, uint32_t by, size_t count);
void __wrap_reduce_average(uint8_t type, void *to, const void *a, const void *b, uint32_t by, size_t count) {
    atomic_fetch_add(&reduced, count);
    atomic_fetch_add(&averaged, count);
    __real_reduce_average(type, to, a, b, by, count);
}

uint32_t __real_crc32c_extend(uint32_t crc, const void *bytes, size_t size);
uint32_t __wrap_crc32c_extend(uint32_t crc, const void *bytes, size_t size);
uint32_t __wrap_crc32c_extend(uint32_t crc, const void *bytes, size_t size) {
    atomic_fetch_add(&checked, size >= SMALL ? size : 0);
    return __real_crc32c_extend(crc, bytes, size);
}

uint32_t __real_crc32c(const void *bytes, size_t size);
uint32_t __wrap_crc32c(const void *bytes, size_t size);
uint32_t __wrap_crc32c(const void *bytes, size_t size) {
    atomic_fetch_add(&checked, size >= SMALL ? size : 0);
    return __real_crc32c(bytes, size);
}

/* ---- what is measured ---- */

static int peers;
static bool tcp_only;
static ccoip_socket_address_t master_address;
static pthread_barrier_t barrier;
static const size_t count = 4 * 1024 * 1024 + 5;

struct counts {
    size_t copied, saved, reduced, averaged, checked;
};

static struct counts take_counts(void) {
    return (struct counts){.copied = atomic_exchange(&copied, 0),
                           .saved = atomic_exchange(&saved, 0),
                           .reduced = atomic_exchange(&reduced, 0),
                           .averaged = atomic_exchange(&averaged, 0),
                           .checked = atomic_exchange(&checked, 0)};
}

/* Of all peers together. What comes with a header is read with it, and moved from there. */
static void require_counts(const struct counts *counts, bool in_place, pcclRedOp_t op) {
    size_t bytes = count * sizeof(float), world = (size_t)peers;
    printf("%zu peers, %s, %s: copied %.4f, saved %.4f, reduced %.4f, checked %.4f of the buffers\n", world,
           tcp_only ? "TCP" : "memory", in_place ? "in place" : "out of place",
           (double)counts->copied / (double)(world * bytes), (double)counts->saved / (double)(world * bytes),
           (double)counts->reduced / (double)(world * count),
           (double)counts->checked / (double)(world * bytes));
    /* Through memory each byte goes into a channel once and out of it once; of TCP the system does that. */
    size_t sent = 2 * (world - 1) * bytes, needed = tcp_only ? 0 : 2 * sent;
    REQUIRE(counts->copied >= needed && counts->copied <= needed + world * bytes / 20,
            "%zu bytes were copied", counts->copied);
    REQUIRE(counts->saved == (in_place ? world * bytes : 0), "%zu bytes were saved", counts->saved);
    REQUIRE(counts->reduced == (world - 1) * count, "%zu elements were reduced", counts->reduced);
    /* Averages: with the last sum of each element, not after it. */
    REQUIRE(counts->averaged == (op == pcclAvg ? count : 0), "%zu were averaged", counts->averaged);
    /* Where it is sent first, and where it arrives; who passes it on takes the checksum as it came. */
    size_t made = (world - 1) * bytes + bytes;
    REQUIRE(counts->checked <= sent + made, "%zu bytes were checked", counts->checked);
}

static void reduce_once(pcclComm_t *comm, int index, bool in_place, pcclRedOp_t op) {
    float *send = malloc(count * sizeof *send), *receive = in_place ? send : malloc(count * sizeof *receive);
    for (size_t i = 0; i < count; i++) {
        send[i] = (float)(index + 1);
    }
    pcclReduceDescriptor_t descriptor = {.count = count, .op = op, .src_descriptor.datatype = pcclFloat};
    if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
        take_counts();
    }
    pthread_barrier_wait(&barrier);
    REQUIRE(pcclAllReduce(send, receive, &descriptor, comm, NULL) == pcclSuccess, "all-reduce");
    bool tells = pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD;
    if (tells) {
        struct counts counts = take_counts();
        require_counts(&counts, in_place, op);
    }
    float sum = (float)(peers * (peers + 1)) / 2;
    float expected = op == pcclAvg ? sum / (float)peers : sum;
    for (size_t i = 0; i < count; i++) {
        REQUIRE(receive[i] == expected, "element %zu is %f", i, (double)receive[i]);
    }
    if (!in_place) {
        free(receive);
    }
    free(send);
}

static int world_size(const pcclComm_t *comm) {
    int world;
    REQUIRE(pcclGetAttribute(comm, PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE, &world) == pcclSuccess, "world");
    return world;
}

static void *run_peer(void *argument) {
    int index = *(int *)argument;
    pcclCommCreateParams_t params = {.master_address = master_address,
                                     .data_threads = 1 + (uint32_t)index,
                                     .flags = tcp_only ? pcclCommTcpOnly : 0};
    pcclComm_t *comm;
    REQUIRE(pcclCreateCommunicator(&params, &comm) == pcclSuccess, "create");
    REQUIRE(pcclConnect(comm) == pcclSuccess, "connect");
    while (world_size(comm) < peers) {
        usleep(2000);
        REQUIRE(pcclUpdateTopology(comm) == pcclSuccess, "update topology");
    }
    for (int round = 0; round < 4; round++) {
        reduce_once(comm, index, round % 2 == 1, round < 2 ? pcclSum : pcclAvg);
    }
    REQUIRE(pcclDestroyCommunicator(comm) == pcclSuccess, "destroy");
    return NULL;
}

static void run_world(int size, bool over_tcp) {
    peers = size;
    tcp_only = over_tcp;
    ccoip_socket_address_t listen = {.inet = {.protocol = inetIPv4, .ipv4.data = {127, 0, 0, 1}}};
    pcclMasterInstance_t *master;
    REQUIRE(pcclCreateMaster(listen, &master) == pcclSuccess, "create master");
    REQUIRE(pcclRunMaster(master) == pcclSuccess, "run master");
    REQUIRE(pcclMasterGetAddress(master, &master_address) == pcclSuccess, "address");
    pthread_barrier_init(&barrier, NULL, (unsigned)peers);
    pthread_t threads[MOST_PEERS];
    int indices[MOST_PEERS];
    for (int i = 0; i < peers; i++) {
        indices[i] = i;
        REQUIRE(pthread_create(&threads[i], NULL, run_peer, &indices[i]) == 0, "thread");
    }
    for (int i = 0; i < peers; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_barrier_destroy(&barrier);
    REQUIRE(pcclDestroyMaster(master) == pcclSuccess, "destroy master");
}

int main(void) {
    REQUIRE(pcclInit() == pcclSuccess, "init");
    for (int size = 2; size <= MOST_PEERS; size++) {
        run_world(size, true);
        run_world(size, false);
    }
    printf("copies: all good\n");
    return 0;
}
