/* The kernels for x86-64 with AVX2 and F16C. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "data/half.h"
#include "data/vectorize.h"

#define KERNEL_TARGET __attribute__((target("avx2,f16c")))
#define KERNEL_TABLE reduce_kernels_avx2

enum { F16_LANES = 8 };
typedef __m256 f16_lanes;

KERNEL_TARGET static inline f16_lanes f16_load(const void *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(from));
}

KERNEL_TARGET static inline f16_lanes f16_round(f16_lanes value) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

KERNEL_TARGET static inline void f16_store(void *to, f16_lanes value) {
    __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(F32_NAN));
    value = _mm256_blendv_ps(value, nan, is_nan);
    _mm_storeu_si128(to, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

KERNEL_TARGET static inline f16_lanes f16_splat(float value) {
    return _mm256_set1_ps(value);
}

typedef uint64_t word_lanes __attribute__((vector_size(32)));

KERNEL_TARGET static inline word_lanes word_multiply(word_lanes x, word_lanes y) {
    return (word_lanes)_mm256_mul_epu32((__m256i)x, (__m256i)y);
}

#include "data/reduce_loops.h"

#else
typedef int reduce_avx2_has_nothing_here;
#endif
