/* The kernels for AArch64, where NEON is always there. */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "data/half.h"
#include "data/vectorize.h"

#define KERNEL_TARGET
#define KERNEL_TABLE reduce_kernels_neon

enum { F16_LANES = 4 };
typedef float32x4_t f16_lanes;

static inline f16_lanes f16_load(const void *from) {
    uint16x4_t half;
    memcpy(&half, from, sizeof(half));
    return vcvt_f32_f16(vreinterpret_f16_u16(half));
}

static inline f16_lanes f16_round(f16_lanes value) {
    return vcvt_f32_f16(vcvt_f16_f32(value));
}

static inline void f16_store(void *to, f16_lanes value) {
    value = vbslq_f32(vceqq_f32(value, value), value, vreinterpretq_f32_u32(vdupq_n_u32(F32_NAN)));
    uint16x4_t half = vreinterpret_u16_f16(vcvt_f16_f32(value));
    memcpy(to, &half, sizeof(half));
}

static inline f16_lanes f16_splat(float value) {
    return vdupq_n_f32(value);
}

typedef uint64_t word_lanes __attribute__((vector_size(16)));

static inline word_lanes word_multiply(word_lanes x, word_lanes y) {
    return (word_lanes)vmull_u32(vmovn_u64((uint64x2_t)x), vmovn_u64((uint64x2_t)y));
}

#include "data/reduce_loops.h"

#else
typedef int reduce_neon_has_nothing_here;
#endif
