/* The kernels for any processor. */
#include "data/half.h"
#include "data/vectorize.h"

#define KERNEL_TARGET
#define KERNEL_TABLE reduce_kernels_scalar

enum { F16_LANES = 1 };
typedef float f16_lanes;

__attribute__((always_inline)) static inline f16_lanes f16_load(const void *from) {
    uint16_t half;
    memcpy(&half, from, sizeof(half));
    return f16_to_f32(half);
}

__attribute__((always_inline)) static inline f16_lanes f16_round(f16_lanes value) {
    return f16_to_f32(f16_from_f32(value));
}

__attribute__((always_inline)) static inline void f16_store(void *to, f16_lanes value) {
    uint16_t half = f16_from_f32(value);
    memcpy(to, &half, sizeof(half));
}

__attribute__((always_inline)) static inline f16_lanes f16_splat(float value) {
    return value;
}

typedef uint64_t word_lanes __attribute__((vector_size(8)));

__attribute__((always_inline)) static inline word_lanes word_multiply(word_lanes x, word_lanes y) {
    return (x & UINT32_MAX) * (y & UINT32_MAX);
}

#include "data/reduce_loops.h"
