/* The state hash's inner loop for x86-64 with AVX2. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>

#include "data/vectorize.h"

#define KERNEL_TARGET __attribute__((target("avx2")))
#define KERNEL_NAME state_hash_absorb_avx2
#define VECTORS 4
typedef __m256i vector;

KERNEL_TARGET static inline vector vector_load(const uint8_t *at) {
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

KERNEL_TARGET static inline vector vector_get(const uint64_t *at) {
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}

KERNEL_TARGET static inline void vector_put(uint64_t *at, vector v) {
    _mm256_storeu_si256((__m256i *)(void *)at, v);
}

KERNEL_TARGET static inline vector vector_xor(vector v, vector w) {
    return _mm256_xor_si256(v, w);
}

KERNEL_TARGET static inline vector vector_swap(vector v) {
    return _mm256_shuffle_epi32(v, _MM_SHUFFLE(2, 3, 0, 1));
}

KERNEL_TARGET static inline vector vector_add_product(vector v, vector w, vector swapped) {
    return _mm256_add_epi64(v, _mm256_mul_epu32(w, swapped));
}

#include "data/state_hash_loops.h"

#else
typedef int state_hash_avx2_has_nothing_here;
#endif
