/* How often those who are connected say that they live. */
#ifndef PCCL_BASE_HEARTBEAT_H
#define PCCL_BASE_HEARTBEAT_H

#include <stdint.h>

#include "base/limits.h"

/* The time between two heartbeats of who waits for others for `timeout_ns`. However long that is, NATs and
 * firewalls between the two must not forget the connection meanwhile. */
static inline uint64_t heartbeat_of(uint64_t timeout_ns) {
    uint64_t heartbeat_ns = timeout_ns / HEARTBEATS_PER_TIMEOUT;
    uint64_t longest_ns = MAX_HEARTBEAT_MS * UINT64_C(1000000);
    return heartbeat_ns < longest_ns ? heartbeat_ns : longest_ns;
}

#endif
