/* The state hash's inner loop for x86-64 with AVX-512 F. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>

#include "data/vectorize.h"

#define KERNEL_TARGET __attribute__((target("avx512f")))
#define KERNEL_NAME state_hash_absorb_avx512
#define VECTORS 4
typedef __m512i vector;

KERNEL_TARGET static inline vector vector_load(const uint8_t *at) {
    return _mm512_loadu_si512(at);
}

KERNEL_TARGET static inline vector vector_get(const uint64_t *at) {
    return _mm512_loadu_si512(at);
}

KERNEL_TARGET static inline void vector_put(uint64_t *at, vector v) {
    _mm512_storeu_si512(at, v);
}

KERNEL_TARGET static inline vector vector_xor(vector v, vector w) {
    return _mm512_xor_si512(v, w);
}

KERNEL_TARGET static inline vector vector_swap(vector v) {
    return _mm512_shuffle_epi32(v, _MM_PERM_CDAB);
}

KERNEL_TARGET static inline vector vector_add_product(vector v, vector w, vector swapped) {
    return _mm512_add_epi64(v, _mm512_mul_epu32(w, swapped));
}

#include "data/state_hash_loops.h"

#else
typedef int state_hash_avx512_has_nothing_here;
#endif
