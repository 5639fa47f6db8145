/* How many data threads (net/data_threads.h) a communicator had better use, with the one that drives it. */
#ifndef PCCL_NET_CORES_H
#define PCCL_NET_CORES_H

#include <stdint.h>

/* On a machine with so many `cores` and this load average (of threads that run or want to); the process may
 * use `allowed` of them, and shares these with so many peers, itself included. */
uint32_t cores_best_threads(uint32_t cores, uint32_t allowed, uint32_t peers_here, double load);
/* The same for this process now. */
uint32_t cores_best_threads_now(uint32_t peers_here);

#endif
