/* The kernels for x86-64 with AVX-512 F, BW, VL and DQ. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "data/half.h"
#include "data/vectorize.h"

#if defined(__clang__)
#define KERNEL_TARGET                                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c"), min_vector_width(512)))
#else
#define KERNEL_TARGET                                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c,prefer-vector-width=512")))
#endif
#define KERNEL_TABLE reduce_kernels_avx512

enum { F16_LANES = 16 };
typedef __m512 f16_lanes;

KERNEL_TARGET static inline f16_lanes f16_load(const void *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(from));
}

KERNEL_TARGET static inline f16_lanes f16_round(f16_lanes value) {
    return _mm512_cvtph_ps(
        _mm512_maskz_cvtps_ph((__mmask16)0xFFFF, value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

KERNEL_TARGET static inline void f16_store(void *to, f16_lanes value) {
    __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    __m512 nan = _mm512_castsi512_ps(_mm512_set1_epi32(F32_NAN));
    value = _mm512_mask_mov_ps(value, is_nan, nan);
    __m256i half =
        _mm512_maskz_cvtps_ph((__mmask16)0xFFFF, value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(to, half);
}

KERNEL_TARGET static inline f16_lanes f16_splat(float value) {
    return _mm512_set1_ps(value);
}

typedef uint64_t word_lanes __attribute__((vector_size(64)));

KERNEL_TARGET static inline word_lanes word_multiply(word_lanes x, word_lanes y) {
    return (word_lanes)_mm512_mul_epu32((__m512i)x, (__m512i)y);
}

#include "data/reduce_loops.h"

#else
typedef int reduce_avx512_has_nothing_here;
#endif
