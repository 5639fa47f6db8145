/* CRC32C by carry-less products for x86-64 with AVX-512 F and VPCLMULQDQ. */
#if defined(__x86_64__)

#include "data/crc32c_kernels.h"

#include <immintrin.h>
#include <string.h>

#define KERNEL_TARGET __attribute__((target("avx512f,vpclmulqdq,sse4.2")))

enum { VECTOR = CRC32C_AVX512_VECTOR, VECTORS = 4, STEP = VECTORS * VECTOR };
_Static_assert((int)CRC32C_LONG >= (int)STEP, "the first vectors are taken unasked");

/* So far ahead memory is asked, and L2, which unaligned input would wait for. Half and twice as far are no
 * better. */
enum { AHEAD = 4096 };

/* A vector is folded over n bits by multiplying it with x^n, modulo the polynomial: added to what lies n
 * bits behind, it leaves the CRC as it was (Gopal et al., "Fast CRC Computation for Generic Polynomials
 * Using PCLMULQDQ Instruction", 2009). Each lane of 128 bits has two factors. The one for the 64 bits that
 * come first stands for 64 bits more; the reflected product adds 1 to the power. So they are x^(n + 63) and
 * x^(n - 1). */
struct factors {
    uint64_t first, second;
};

static const struct factors over_one = {0x1C19243B00000000, 0x75BBA45B00000000};  /* x^575, x^511 */
static const struct factors over_two = {0x6577B24500000000, 0x7417153F00000000};  /* x^1087, x^1023 */
static const struct factors over_four = {0xE9A5D8BE00000000, 0x1426A81500000000}; /* x^2111, x^2047 */

KERNEL_TARGET static inline __m512i spread(const struct factors *factors) {
    return _mm512_broadcast_i32x4(_mm_set_epi64x((long long)factors->second, (long long)factors->first));
}

KERNEL_TARGET static inline __m512i load(const uint8_t *at) {
    return _mm512_loadu_si512(at);
}

KERNEL_TARGET static inline __m512i fold(__m512i vector, __m512i factors, __m512i next) {
    __m512i first = _mm512_clmulepi64_epi128(vector, factors, 0x00);
    __m512i second = _mm512_clmulepi64_epi128(vector, factors, 0x11);
    return _mm512_ternarylogic_epi64(first, second, next, 0x96); /* their sum: xor of all three */
}

/* One product can start in each cycle, and a fold of two takes about nine: four vectors keep it busy. They
 * are no array, since that would live in memory if the compiler did not unroll its loops. CRC instructions
 * beside them could take a fifth of the bytes at most. */
KERNEL_TARGET uint32_t crc32c_fold_avx512(uint32_t state, const uint8_t *at, size_t size) {
    const uint8_t *end = at + size;
    __m512i before = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)state)); /* meets the first 32 bits */
    __m512i a = _mm512_xor_si512(load(at), before), b = load(at + VECTOR);
    __m512i c = load(at + 2 * VECTOR), d = load(at + 3 * VECTOR);
    __m512i factors = spread(&over_four);
    for (at += STEP; end - at >= STEP; at += STEP) {
        for (int i = 0; i < STEP; i += VECTOR) {
            _mm_prefetch((const char *)at + AHEAD + i, _MM_HINT_T0);
        }
        a = fold(a, factors, load(at));
        b = fold(b, factors, load(at + VECTOR));
        c = fold(c, factors, load(at + 2 * VECTOR));
        d = fold(d, factors, load(at + 3 * VECTOR));
    }
    factors = spread(&over_two);
    c = fold(a, factors, c);
    d = fold(b, factors, d);
    factors = spread(&over_one);
    d = fold(c, factors, d);
    for (; at < end; at += VECTOR) {
        d = fold(d, factors, load(at));
    }
    uint64_t words[VECTOR / 8], rest = 0; /* nothing came before */
    memcpy(words, &d, sizeof words);
    for (size_t i = 0; i < VECTOR / 8; i++) {
        rest = _mm_crc32_u64(rest, words[i]);
    }
    return (uint32_t)rest;
}

#else
typedef int crc32c_avx512_has_nothing_here;
#endif
