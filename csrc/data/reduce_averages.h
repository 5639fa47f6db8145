/* The averages of one level: (a + b) / divisor in one pass, for 2 <= divisor <= MAX_PEERS. A part of
 * reduce_loops.h. Each gives the bits that C's + and / give one after the other: integers wrap before they
 * are divided, and 16-bit floats are rounded in between.
 *
 * No integer is divided: a product with 2^k / divisor takes its place. How exact that has to be is in
 * Granlund and Montgomery, "Division by Invariant Integers using Multiplication" (PLDI 1994), and for a
 * factor that is rounded down in Robison, "N-Bit Unsigned Division Via N-Bit Multiply-Add" (ARITH 2005).
 *
 * Beside what reduce_loops.h wants, a level defines
 *   word_lanes      the type of a vector of uint64_t, and
 *   word_multiply   the product of the lower halves of each lane of two of these. */
#ifndef PCCL_DATA_REDUCE_AVERAGES_H
#define PCCL_DATA_REDUCE_AVERAGES_H

/* A kernel `name` over elements of `type`; `expression` makes the average from x, y and `by`, which is of
 * by_type and made from `divisor`. Where `by` comes from is hidden from compilers: those that see its range
 * miss that a product is one of narrow lanes. */
#define AVERAGE_LOOP(name, type, by_type, by_value, expression)                                              \
    KERNEL_TARGET static void name(void *destination, const void *a, const void *b, uint32_t divisor,        \
                                   size_t count) {                                                           \
        type *out = destination;                                                                             \
        const type *left = a, *right = b;                                                                    \
        by_type hidden = by_value;                                                                           \
        __asm__("" : "+m"(hidden));                                                                          \
        const by_type by = hidden;                                                                           \
        INDEPENDENT_ITERATIONS                                                                               \
        for (size_t i = 0; i < count; i++) {                                                                 \
            type x = left[i], y = right[i];                                                                  \
            out[i] = (type)(expression);                                                                     \
        }                                                                                                    \
    }

/* The same for elements that go in pairs, as the halves of pair_type; `expression` is of pairs. The last of
 * an odd number is the low half of a pair. */
#define AVERAGE_PAIRS_LOOP(name, type, pair_type, by_type, by_value, expression)                             \
    AVERAGE_LOOP(name##_pairs, pair_type, by_type, by_value, expression)                                     \
    static void name(void *destination, const void *a, const void *b, uint32_t divisor, size_t count) {      \
        name##_pairs(destination, a, b, divisor, count / 2);                                                 \
        if (count % 2 != 0) {                                                                                \
            type *out = destination;                                                                         \
            const type *left = a, *right = b;                                                                \
            pair_type x = left[count - 1], y = right[count - 1], average;                                    \
            name##_pairs(&average, &x, &y, divisor, 1);                                                      \
            out[count - 1] = (type)average;                                                                  \
        }                                                                                                    \
    }

/* ---- 8 and 16 bits, in lanes of 16 ---- */

ELEMENT uint16_t u16_multiply_high(uint16_t x, uint16_t y) {
    return (uint16_t)((uint32_t)x * y >> 16);
}

ELEMENT int16_t i16_multiply_high(int16_t x, int16_t y) {
    return (int16_t)((int32_t)x * y >> 16);
}

/* Two sums of bytes, each in the upper half of its lane, so that a carry falls out at the top. */
ELEMENT uint16_t low_byte_sum(uint16_t x, uint16_t y) {
    return (uint16_t)((x + y) << 8);
}

ELEMENT uint16_t high_byte_sum(uint16_t x, uint16_t y) {
    return (uint16_t)(((x & 0xFF00) + y) & 0xFF00);
}

/* `by` is 2^16 / divisor, and at most 1 more. So the product exceeds x / divisor by x / 2^16 at most. Up to a
 * divisor of 257 that is less than 1 / divisor, too little to reach the next whole number; by a greater one,
 * the product is still below 1. */
ELEMENT uint16_t u8_pair_average(uint16_t x, uint16_t y, uint16_t by) {
    uint16_t low = u16_multiply_high(low_byte_sum(x, y), by);
    uint16_t high = u16_multiply_high(high_byte_sum(x, y), by);
    return (uint16_t)((high & 0xFF00) | low >> 8);
}

/* x / divisor for x = top / 2^8, from `by` = 2^15 / divisor and at most 1 more, as above. The product is
 * rounded down and never a whole number for x < 0, so that one more is rounded toward zero. */
ELEMENT int16_t i8_quotient(uint16_t top, int16_t by) {
    return (int16_t)((i16_multiply_high((int16_t)top, by) >> 7) + (top >> 15));
}

ELEMENT uint16_t i8_pair_average(uint16_t x, uint16_t y, int16_t by) {
    uint16_t low = (uint16_t)i8_quotient(low_byte_sum(x, y), by);
    uint16_t high = (uint16_t)i8_quotient(high_byte_sum(x, y), by);
    return (uint16_t)(high << 8 | (low & 0xFF));
}

struct by16 {
    uint16_t divisor, reciprocal; /* 2^16 / divisor, rounded down; below 2^15 */
};

ELEMENT struct by16 by16_of(uint32_t divisor) {
    return (struct by16){(uint16_t)divisor, (uint16_t)(UINT16_MAX / divisor)};
}

/* The product falls short of x / divisor by x / 2^16 < 1 at most, so it is right or one too small. Remainders
 * are below 2 divisor: they fit a signed lane, which all processors can compare. */
ELEMENT uint16_t u16_quotient(uint16_t x, struct by16 by) {
    uint16_t quotient = u16_multiply_high(x, by.reciprocal);
    int16_t remainder = (int16_t)(x - (uint16_t)((uint32_t)quotient * by.divisor));
    return (uint16_t)(quotient + (remainder >= (int16_t)by.divisor ? 1 : 0));
}

/* The same; a negative product is right or one too small too, because it is rounded down, but what is left
 * over of a negative x is negative or 0. */
ELEMENT int16_t i16_quotient(int16_t x, struct by16 by) {
    int16_t quotient = i16_multiply_high(x, (int16_t)by.reciprocal);
    int16_t remainder = (int16_t)(x - quotient * by.divisor);
    int16_t most = (int16_t)((by.divisor - 1) & ~(x >> 15));
    return (int16_t)(quotient + (remainder > most ? 1 : 0));
}

AVERAGE_PAIRS_LOOP(u8_average, u8, u16, uint16_t, (uint16_t)(0x10000 / divisor + 1),
                   u8_pair_average(x, y, by))
AVERAGE_PAIRS_LOOP(i8_average, u8, u16, int16_t, (int16_t)(0x8000 / divisor + 1), i8_pair_average(x, y, by))
AVERAGE_LOOP(u16_average, u16, struct by16, by16_of(divisor), u16_quotient((uint16_t)(x + y), by))
AVERAGE_LOOP(i16_average, i16, struct by16, by16_of(divisor), i16_quotient((int16_t)(x + y), by))

/* ---- 32 bits: products of 64, which compilers do not find in every level by themselves ---- */

typedef uint32_t u32_lanes __attribute__((vector_size(sizeof(word_lanes))));
typedef int32_t i32_lanes __attribute__((vector_size(sizeof(word_lanes))));

struct by32 {
    uint64_t factor, addend; /* both below 2^32 */
    int shift;
};

/* x / divisor = (x factor + addend) >> shift for all x < 2^32. Of the two factors next to 2^shift / divisor,
 * one misses it by 2^(shift - 32) / divisor at most, which is exact enough: the greater one alone; the lesser
 * one, if it is added once more. */
ELEMENT struct by32 by32_of(uint32_t divisor) {
    int bits = 31 - __builtin_clz(divisor);
    uint64_t one = (uint64_t)1 << (32 + bits), factor = (one - 1) / divisor;
    bool greater = one - factor * divisor > (uint64_t)1 << bits;
    return (struct by32){greater ? factor + 1 : factor, greater ? 0 : factor, 32 + bits};
}

KERNEL_TARGET static inline word_lanes u32_quotients(word_lanes x, const struct by32 *by) {
    word_lanes factor = (word_lanes){0} + by->factor;
    word_lanes low = (word_multiply(x, factor) + by->addend) >> by->shift;
    word_lanes high = (word_multiply(x >> 32, factor) + by->addend) >> by->shift;
    return low | high << 32;
}

KERNEL_TARGET static inline word_lanes u32_averages(word_lanes x, word_lanes y, const struct by32 *by) {
    return u32_quotients((word_lanes)((u32_lanes)x + (u32_lanes)y), by);
}

/* Toward zero: the magnitude is divided, then the sign put back. `sign` is 0 or all ones, and
 * (v ^ sign) - sign is v or -v. */
KERNEL_TARGET static inline word_lanes i32_averages(word_lanes x, word_lanes y, const struct by32 *by) {
    u32_lanes sum = (u32_lanes)x + (u32_lanes)y;
    u32_lanes sign = (u32_lanes)((i32_lanes)sum >> 31);
    u32_lanes quotients = (u32_lanes)u32_quotients((word_lanes)((sum ^ sign) - sign), by);
    return (word_lanes)((quotients ^ sign) - sign);
}

#define WORD_AVERAGE_LOOP(name, type, by_type, by_value, averages)                                           \
    KERNEL_TARGET static void name(void *destination, const void *a, const void *b, uint32_t divisor,        \
                                   size_t count) {                                                           \
        type *out = destination;                                                                             \
        const type *left = a, *right = b;                                                                    \
        const by_type by = by_value;                                                                         \
        word_lanes x, y;                                                                                     \
        size_t i = 0;                                                                                        \
        for (; i + sizeof(x) / sizeof(*out) <= count; i += sizeof(x) / sizeof(*out)) {                       \
            memcpy(&x, left + i, sizeof(x));                                                                 \
            memcpy(&y, right + i, sizeof(y));                                                                \
            x = averages(x, y, &by);                                                                         \
            memcpy(out + i, &x, sizeof(x));                                                                  \
        }                                                                                                    \
        x = y = (word_lanes){0};                                                                             \
        memcpy(&x, left + i, (count - i) * sizeof(*out));                                                    \
        memcpy(&y, right + i, (count - i) * sizeof(*out));                                                   \
        x = averages(x, y, &by);                                                                             \
        memcpy(out + i, &x, (count - i) * sizeof(*out));                                                     \
    }

WORD_AVERAGE_LOOP(u32_average, u32, struct by32, by32_of(divisor), u32_averages)
WORD_AVERAGE_LOOP(i32_average, u32, struct by32, by32_of(divisor), i32_averages)

/* ---- 64 bits ---- */

struct by64 {
    uint64_t divisor, reciprocal; /* (2^64 - 1) / divisor, rounded down */
};

ELEMENT struct by64 by64_of(uint32_t divisor) {
    return (struct by64){divisor, UINT64_MAX / divisor};
}

/* As u16_quotient(). */
ELEMENT uint64_t u64_quotient(uint64_t x, struct by64 by) {
    uint64_t quotient = (uint64_t)((unsigned __int128)x * by.reciprocal >> 64);
    return quotient + (x - quotient * by.divisor >= by.divisor ? 1U : 0U);
}

ELEMENT uint64_t i64_quotient(uint64_t x, struct by64 by) {
    uint64_t sign = 0 - (x >> 63);
    return (u64_quotient((x ^ sign) - sign, by) ^ sign) - sign;
}

AVERAGE_LOOP(u64_average, u64, struct by64, by64_of(divisor), u64_quotient(x + y, by))
AVERAGE_LOOP(i64_average, u64, struct by64, by64_of(divisor), i64_quotient(x + y, by))

/* ---- floats ---- */

/* By a power of two, the product with the inverse, which is exact, is rounded as the quotient is. */
#define FLOAT_AVERAGE(name, type, quiet)                                                                     \
    AVERAGE_LOOP(name##_exact, type, type, 1 / (type)divisor, quiet((x + y) * by))                           \
    AVERAGE_LOOP(name##_divided, type, type, (type)divisor, quiet((x + y) / by))                             \
    static void name(void *destination, const void *a, const void *b, uint32_t divisor, size_t count) {      \
        if ((divisor & (divisor - 1)) == 0) {                                                                \
            name##_exact(destination, a, b, divisor, count);                                                 \
        } else {                                                                                             \
            name##_divided(destination, a, b, divisor, count);                                               \
        }                                                                                                    \
    }

FLOAT_AVERAGE(f32_average, f32, f32_quiet)
FLOAT_AVERAGE(f64_average, f64, f64_quiet)

/* bfloat16: the product with 1 / divisor differs from the quotient in the last places of a float, and no
 * quotient of 8 bits by so few is so near to where bfloat16 rounds the other way; the tests try all. */
ELEMENT float bf16_part(float sum, float by) {
    return f32_from_bits(bf16_rounded(sum) & 0xFFFF0000) * by;
}

ELEMENT uint32_t bf16_pair_average(uint32_t x, uint32_t y, float by) {
    return bf16_pair(bf16_part(bf16_high(x) + bf16_high(y), by), bf16_part(bf16_low(x) + bf16_low(y), by));
}

AVERAGE_PAIRS_LOOP(bf16_average, u16, u32, float, 1 / (float)divisor, bf16_pair_average(x, y, by))

/* float16 does come to lie halfway between two subnormals, so what it is multiplied by has more places: a
 * high part of 12 bits, whose product is exact, and what that lacks, above 0 so that infinity stays. */
struct by_f16 {
    float high, low;
};

ELEMENT struct by_f16 by_f16_of(uint32_t divisor) {
    float high = f32_from_bits((f32_bits(1 / (float)divisor) - 1) & 0xFFFFF000);
    return (struct by_f16){high, (float)(1 / (double)divisor - (double)high)};
}

KERNEL_TARGET static void f16_average(void *destination, const void *a, const void *b, uint32_t divisor,
                                      size_t count) {
    u16 *out = destination;
    const u16 *left = a, *right = b;
    const struct by_f16 by = by_f16_of(divisor);
    size_t i = 0;
    for (; i + F16_LANES <= count; i += F16_LANES) {
        f16_lanes sum = f16_round(f16_load(left + i) + f16_load(right + i));
        f16_store(out + i, sum * f16_splat(by.high) + sum * f16_splat(by.low));
    }
    for (; i < count; i++) {
        float sum = f16_to_f32(f16_from_f32(f16_to_f32(left[i]) + f16_to_f32(right[i])));
        out[i] = f16_from_f32(sum * by.high + sum * by.low);
    }
}

#endif
