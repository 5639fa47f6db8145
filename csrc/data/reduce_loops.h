/* All kernels of one level, in plain C that compilers turn into that level's vector instructions. Each
 * reduce_<level>.c includes this once, after it has defined
 *   KERNEL_TARGET   attributes of a function that may use the level's instructions,
 *   KERNEL_TABLE    the name of the level's struct reduce_kernels,
 *   F16_LANES       how many float16 it converts at a time, with
 *   f16_lanes       the type that holds as many floats and has + * on it,
 *   f16_load(const void *), f16_store(void *, f16_lanes)   which make NaN canonical,
 *   f16_round(f16_lanes)   to what a float16 can hold, and
 *   f16_splat(float),
 * and what reduce_averages.h wants.
 * The expressions below have one result for each input, so all levels agree bit for bit. */

#include <stdbool.h>
#include <string.h>

#include "data/half.h"
#include "data/reduce_kernels.h"
#include "include/pccl.h"

/* `destination` may be `a` or `b`: iterations are independent although the pointers may be equal. */
#if defined(__clang__)
#define INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

#define ELEMENT __attribute__((always_inline)) static inline

/* Elements at any address, of any declared type. */
#define ANYWHERE __attribute__((aligned(1), may_alias))
typedef uint8_t u8 ANYWHERE;
typedef uint16_t u16 ANYWHERE;
typedef uint32_t u32 ANYWHERE;
typedef uint64_t u64 ANYWHERE;
typedef int8_t i8 ANYWHERE;
typedef int16_t i16 ANYWHERE;
typedef int32_t i32 ANYWHERE;
typedef int64_t i64 ANYWHERE;
typedef float f32 ANYWHERE;
typedef double f64 ANYWHERE;

/* A kernel `name` over elements of `type`; `expression` combines x and y. */
#define REDUCE_LOOP(name, type, expression)                                                                  \
    KERNEL_TARGET static void name(void *destination, const void *a, const void *b, size_t count) {          \
        type *out = destination;                                                                             \
        const type *left = a, *right = b;                                                                    \
        INDEPENDENT_ITERATIONS                                                                               \
        for (size_t i = 0; i < count; i++) {                                                                 \
            type x = left[i], y = right[i];                                                                  \
            out[i] = (type)(expression);                                                                     \
        }                                                                                                    \
    }

#define TIMES(x, y) ((x) * (y))

/* Signed sums and products are those of the unsigned type, which wrap. Narrow ones are taken in 32 bits
 * unsigned, because u16 * u16 in int can overflow. */
REDUCE_LOOP(u8_add, u8, x + y)
REDUCE_LOOP(u16_add, u16, x + y)
REDUCE_LOOP(u32_add, u32, x + y)
REDUCE_LOOP(u64_add, u64, x + y)
REDUCE_LOOP(u8_multiply, u8, TIMES((uint32_t)x, y))
REDUCE_LOOP(u16_multiply, u16, TIMES((uint32_t)x, y))
REDUCE_LOOP(u32_multiply, u32, TIMES(x, y))
REDUCE_LOOP(u64_multiply, u64, TIMES(x, y))

#define INTEGER_MAX_MIN(type)                                                                                \
    REDUCE_LOOP(type##_max, type, x > y ? x : y)                                                             \
    REDUCE_LOOP(type##_min, type, x < y ? x : y)

INTEGER_MAX_MIN(u8)
INTEGER_MAX_MIN(u16)
INTEGER_MAX_MIN(u32)
INTEGER_MAX_MIN(u64)
INTEGER_MAX_MIN(i8)
INTEGER_MAX_MIN(i16)
INTEGER_MAX_MIN(i32)
INTEGER_MAX_MIN(i64)

ELEMENT float f32_quiet(float value) {
    return value != value ? f32_from_bits(F32_NAN) : value;
}

ELEMENT double f64_quiet(double value) {
    const uint64_t bits = 0x7FF8000000000000;
    double nan;
    memcpy(&nan, &bits, sizeof(nan));
    return value != value ? nan : value;
}

REDUCE_LOOP(f32_add, f32, f32_quiet(x + y))
REDUCE_LOOP(f64_add, f64, f64_quiet(x + y))
REDUCE_LOOP(f32_multiply, f32, f32_quiet(TIMES(x, y)))
REDUCE_LOOP(f64_multiply, f64, f64_quiet(TIMES(x, y)))

/* Max and min of floats: between equal numbers the bits differ only for +0 and -0, where "and" gives +0
 * and "or" gives -0. Both orders of the comparison, so that no operand is preferred. */
#define FLOAT_MAX_MIN(type, bits, quiet)                                                                     \
    ELEMENT type type##_joined(type x, type y, int all_bits) {                                               \
        bits p, q;                                                                                           \
        memcpy(&p, &x, sizeof(p));                                                                           \
        memcpy(&q, &y, sizeof(q));                                                                           \
        p = all_bits ? p & q : p | q;                                                                        \
        memcpy(&x, &p, sizeof(x));                                                                           \
        return x;                                                                                            \
    }                                                                                                        \
    ELEMENT type type##_greater(type x, type y) {                                                            \
        type best = type##_joined(x > y ? x : y, y > x ? y : x, 1);                                          \
        return __builtin_isunordered(x, y) ? quiet : best;                                                   \
    }                                                                                                        \
    ELEMENT type type##_lesser(type x, type y) {                                                             \
        type best = type##_joined(x < y ? x : y, y < x ? y : x, 0);                                          \
        return __builtin_isunordered(x, y) ? quiet : best;                                                   \
    }                                                                                                        \
    REDUCE_LOOP(type##_max, type, type##_greater(x, y))                                                      \
    REDUCE_LOOP(type##_min, type, type##_lesser(x, y))

FLOAT_MAX_MIN(f32, uint32_t, f32_from_bits(F32_NAN))
FLOAT_MAX_MIN(f64, uint64_t, f64_quiet((double)f32_from_bits(F32_NAN)))

/* The same for 16-bit floats, in integers: flipping the low bits of negative numbers orders the patterns
 * as the values, -0 below +0; flipping again gives the number back. */
#define HALF_MAX_MIN(name, infinity, nan)                                                                    \
    ELEMENT int16_t name##_nan_or(int16_t x, int16_t y, int16_t best) {                                      \
        int16_t p = (int16_t)(x & INT16_MAX), q = (int16_t)(y & INT16_MAX);                                  \
        int16_t greater = p > q ? p : q, limit = infinity, quiet = nan;                                      \
        return greater > limit ? quiet : best;                                                               \
    }                                                                                                        \
    REDUCE_LOOP(name##_max, i16, name##_nan_or(x, y, half_greater(x, y)))                                    \
    REDUCE_LOOP(name##_min, i16, name##_nan_or(x, y, half_lesser(x, y)))

ELEMENT int16_t half_order(int16_t half) {
    return (int16_t)(half ^ ((half >> 15) & INT16_MAX));
}

ELEMENT int16_t half_greater(int16_t x, int16_t y) {
    int16_t p = half_order(x), q = half_order(y);
    return half_order(p > q ? p : q);
}

ELEMENT int16_t half_lesser(int16_t x, int16_t y) {
    int16_t p = half_order(x), q = half_order(y);
    return half_order(p < q ? p : q);
}

HALF_MAX_MIN(f16, 0x7C00, F16_NAN)
HALF_MAX_MIN(bf16, 0x7F80, BF16_NAN)

/* bfloat16 goes in pairs, as the halves of 32-bit lanes: so no lane ever changes its width. */
ELEMENT uint32_t bf16_rounded(float value) {
    uint32_t bits = f32_bits(f32_quiet(value));
    return bits + (value != value ? 0 : 0x7FFF + (bits >> 16 & 1));
}

ELEMENT uint32_t bf16_pair(float high, float low) {
    return (bf16_rounded(high) & 0xFFFF0000) | bf16_rounded(low) >> 16;
}

ELEMENT float bf16_high(uint32_t pair) {
    return f32_from_bits(pair & 0xFFFF0000);
}

ELEMENT float bf16_low(uint32_t pair) {
    return f32_from_bits(pair << 16);
}

#define BF16_REDUCE_LOOP(name, operator)                                                                     \
    REDUCE_LOOP(name##_pairs, u32,                                                                           \
                bf16_pair(bf16_high(x) operator bf16_high(y), bf16_low(x) operator bf16_low(y)))             \
    static void name(void *destination, const void *a, const void *b, size_t count) {                        \
        name##_pairs(destination, a, b, count / 2);                                                          \
        if (count % 2 != 0) {                                                                                \
            const u16 *left = a, *right = b;                                                                 \
            float last = bf16_to_f32(left[count - 1]) operator bf16_to_f32(right[count - 1]);                \
            ((u16 *)destination)[count - 1] = bf16_from_f32(last);                                           \
        }                                                                                                    \
    }

BF16_REDUCE_LOOP(bf16_add, +)
BF16_REDUCE_LOOP(bf16_multiply, *)

/* float16 takes the level's conversion instructions, which compilers do not find by themselves. */
#define F16_REDUCE_LOOP(name, operator)                                                                      \
    KERNEL_TARGET static void name(void *destination, const void *a, const void *b, size_t count) {          \
        u16 *out = destination;                                                                              \
        const u16 *left = a, *right = b;                                                                     \
        size_t i = 0;                                                                                        \
        for (; i + F16_LANES <= count; i += F16_LANES) {                                                     \
            f16_store(out + i, f16_load(left + i) operator f16_load(right + i));                             \
        }                                                                                                    \
        for (; i < count; i++) {                                                                             \
            out[i] = f16_from_f32(f16_to_f32(left[i]) operator f16_to_f32(right[i]));                        \
        }                                                                                                    \
    }

F16_REDUCE_LOOP(f16_add, +)
F16_REDUCE_LOOP(f16_multiply, *)

#include "data/reduce_averages.h"

#define KERNELS_OF(add, multiply, max, min)                                                                  \
    {[pcclSum] = add, [pcclAvg] = add, [pcclProd] = multiply, [pcclMax] = max, [pcclMin] = min}

const struct reduce_kernels KERNEL_TABLE = {
    .reduce =
        {
            [pcclUint8] = KERNELS_OF(u8_add, u8_multiply, u8_max, u8_min),
            [pcclInt8] = KERNELS_OF(u8_add, u8_multiply, i8_max, i8_min),
            [pcclInt16] = KERNELS_OF(u16_add, u16_multiply, i16_max, i16_min),
            [pcclUint16] = KERNELS_OF(u16_add, u16_multiply, u16_max, u16_min),
            [pcclUint32] = KERNELS_OF(u32_add, u32_multiply, u32_max, u32_min),
            [pcclInt32] = KERNELS_OF(u32_add, u32_multiply, i32_max, i32_min),
            [pcclUint64] = KERNELS_OF(u64_add, u64_multiply, u64_max, u64_min),
            [pcclInt64] = KERNELS_OF(u64_add, u64_multiply, i64_max, i64_min),
            [pcclFloat16] = KERNELS_OF(f16_add, f16_multiply, f16_max, f16_min),
            [pcclBFloat16] = KERNELS_OF(bf16_add, bf16_multiply, bf16_max, bf16_min),
            [pcclFloat] = KERNELS_OF(f32_add, f32_multiply, f32_max, f32_min),
            [pcclDouble] = KERNELS_OF(f64_add, f64_multiply, f64_max, f64_min),
        },
    .average =
        {
            [pcclUint8] = u8_average,
            [pcclInt8] = i8_average,
            [pcclInt16] = i16_average,
            [pcclUint16] = u16_average,
            [pcclUint32] = u32_average,
            [pcclInt32] = i32_average,
            [pcclUint64] = u64_average,
            [pcclInt64] = i64_average,
            [pcclFloat16] = f16_average,
            [pcclBFloat16] = bf16_average,
            [pcclFloat] = f32_average,
            [pcclDouble] = f64_average,
        },
};
