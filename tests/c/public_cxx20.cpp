// A C++20 program against the public headers and libpccl alone: the same as public_c99.c.
#include <pccl.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "public_pair.h"

namespace {

void require(pcclResult_t result, const char *what) {
    if (result != pcclSuccess) {
        std::fprintf(stderr, "%s: %s (%s)\n", what, pcclResultString(result), pcclGetLastError(nullptr));
        std::exit(1);
    }
}

struct DestroyMaster {
    void operator()(pcclMasterInstance_t *master) const {
        require(pcclDestroyMaster(master), "destroy the master");
    }
};

struct DestroyCommunicator {
    void operator()(pcclComm_t *comm) const {
        require(pcclDestroyCommunicator(comm), "destroy a communicator");
    }
};

using Communicator = std::unique_ptr<pcclComm_t, DestroyCommunicator>;

Communicator make_communicator(ccoip_socket_address_t master) {
    pcclCommCreateParams_t params{};
    params.master_address = master;
    params.timeout_ms = 5000;
    params.name = "c++";
    pcclComm_t *comm = nullptr;
    require(pcclCreateCommunicator(&params, &comm), "create a communicator");
    return Communicator(comm);
}

bool reduce(const std::array<pcclComm_t *, 2> &comms) {
    constexpr std::size_t count = 1000;
    std::array<std::vector<double>, 2> values{std::vector<double>(count, 1.0),
                                              std::vector<double>(count, 4.0)};
    std::array<pcclAsyncReduceOp_t, 2> handles{};
    const pcclReduceDescriptor_t descriptor{
        .count = count,
        .op = pcclAvg,
        .tag = 0,
        .src_descriptor = {.datatype = pcclDouble, .distribution_hint = pcclDistributionNone},
        .quantization_options = {.quantized_datatype = pcclDouble, .algorithm = pcclQuantNone}};
    for (std::size_t peer = 0; peer < 2; peer++) {
        double *data = values[peer].data();
        require(pcclAllReduceAsync(data, data, &descriptor, comms[peer], &handles[peer]), "all-reduce");
    }
    for (const auto &handle : handles) {
        require(pcclAwaitAsyncReduce(&handle, nullptr), "await");
    }
    return values[0] == std::vector<double>(count, 2.5) && values[0] == values[1];
}

} // namespace

int main() {
    ccoip_socket_address_t address{};
    address.inet.protocol = inetIPv4;
    address.inet.ipv4 = {{127, 0, 0, 1}};
    require(pcclInit(), "init");
    pcclMasterInstance_t *created = nullptr;
    require(pcclCreateMaster(address, &created), "create the master");
    const std::unique_ptr<pcclMasterInstance_t, DestroyMaster> master(created);
    require(pcclRunMaster(master.get()), "run the master");
    require(pcclMasterGetAddress(master.get(), &address), "ask for the address");

    const Communicator first = make_communicator(address), second = make_communicator(address);
    std::array<pcclComm_t *, 2> comms{first.get(), second.get()};
    if (join_pair(comms.data()) != 0 || !reduce(comms)) {
        std::fputs("wrong\n", stderr);
        return 1;
    }
    std::puts("all reduced");
}
