/* float16 and bfloat16 as bits: one element to float (exact) and back (to nearest, ties to even; any
 * NaN to the canonical one, positive and quiet). They need subnormals, so no flush-to-zero mode. */
#ifndef PCCL_DATA_HALF_H
#define PCCL_DATA_HALF_H

#include <stdint.h>
#include <string.h>

enum { F16_NAN = 0x7E00, BF16_NAN = 0x7FC0, F32_NAN = 0x7FC00000 };

__attribute__((always_inline)) static inline float f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

__attribute__((always_inline)) static inline uint32_t f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

__attribute__((always_inline)) static inline float f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t rest = (uint32_t)(half & 0x7FFF) << 13;
    if (rest >= 0x0F800000) { /* infinity or NaN */
        return f32_from_bits(sign | 0x70000000 | rest);
    }
    /* The fields are in place, but the exponent's bias is 127 instead of 15: a factor of 2^112, which
     * turns f16's subnormals, so far subnormal too, into normal numbers. */
    return f32_from_bits(sign | rest) * 0x1p112f;
}

__attribute__((always_inline)) static inline uint16_t f16_from_f32(float value) {
    uint32_t bits = f32_bits(value);
    uint32_t sign = bits >> 16 & 0x8000;
    uint32_t rest = bits & 0x7FFFFFFF;
    if (rest > 0x7F800000) {
        return F16_NAN;
    }
    if (rest >= 0x47800000) { /* 2^16 and more */
        return (uint16_t)(sign | 0x7C00);
    }
    if (rest < 0x38800000) { /* below 2^-14: subnormal or zero. The last place of 0.5 is 2^-24, f16's. */
        return (uint16_t)(sign | (f32_bits(f32_from_bits(rest) + 0.5f) - 0x3F000000));
    }
    /* Up to 65519.99 this rounds to 65504 at most; from 65520 on it carries into infinity, as it must. */
    return (uint16_t)(sign | (rest - 0x38000000 + 0xFFF + (rest >> 13 & 1)) >> 13);
}

__attribute__((always_inline)) static inline float bf16_to_f32(uint16_t half) {
    return f32_from_bits((uint32_t)half << 16);
}

__attribute__((always_inline)) static inline uint16_t bf16_from_f32(float value) {
    uint32_t bits = f32_bits(value);
    uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return (uint16_t)(value != value ? (uint32_t)BF16_NAN : rounded);
}

#endif
