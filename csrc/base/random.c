#include "base/random.h"

#include <string.h>

/* Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014). */
uint64_t random_next(struct random_source *source) {
    source->state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = source->state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

struct id random_id(struct random_source *source) {
    struct id id;
    uint64_t halves[2] = {random_next(source), random_next(source) | 1}; /* never all zero */
    memcpy(id.bytes, halves, sizeof id.bytes);
    return id;
}
