/* The ring: each rank sends to the next and receives from the previous one.
 *
 * With n ranks, in step t rank r sends segment (r - t) mod n and receives segment (r - t - 1) mod n.
 *   all-reduce: 2(n-1) steps. The first n-1 reduce (reduce-scatter), the rest forward finished segments
 *     verbatim (all-gather): what arrives in step t is sent on in step t+1. Rank r finishes segment r+1.
 *     2(n-1)/n of the vector each way: no algorithm moves less.
 *   reduce-scatter: the first half of that, shifted by one so that rank r finishes segment r.
 *   all-gather: the second half; segment r is rank r's input.
 *   broadcast: n-1 steps; in step t the rank at distance t from the root sends all it has to the next.
 *   barrier: no steps. */
#ifndef PCCL_CORE_RING_H
#define PCCL_CORE_RING_H

#include "core/schedule.h"

uint32_t ring_steps(const struct schedule *schedule);
struct step ring_step(const struct schedule *schedule, uint32_t step);

#endif
