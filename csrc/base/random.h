/* A small seeded generator (splitmix64): the machines draw ids and link keys from it, so that a run
 * of the simulator is repeatable. It keeps strangers and stale connections apart; it is no secret. */
#ifndef PCCL_BASE_RANDOM_H
#define PCCL_BASE_RANDOM_H

#include <stdint.h>

#include "base/id.h"

struct random_source {
    uint64_t state;
};

uint64_t random_next(struct random_source *source);
struct id random_id(struct random_source *source);

#endif
