/* The state hash's inner loop for any processor. */
#include <stdint.h>

#include "data/state_hash_words.h"
#include "data/vectorize.h"

#define KERNEL_TARGET
#define KERNEL_NAME state_hash_absorb_scalar
#define VECTORS 4
typedef uint64_t vector;

static inline vector vector_load(const uint8_t *at) {
    return word_at(at);
}

static inline vector vector_get(const uint64_t *at) {
    return *at;
}

static inline void vector_put(uint64_t *at, vector v) {
    *at = v;
}

static inline vector vector_xor(vector v, vector w) {
    return v ^ w;
}

static inline vector vector_swap(vector v) {
    return word_swap(v);
}

static inline vector vector_add_product(vector v, vector w, vector swapped) {
    return v + (w & UINT32_MAX) * (swapped & UINT32_MAX);
}

#include "data/state_hash_loops.h"
