#include "data/crc32c.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

#include "base/check.h"
#include "data/crc32c_kernels.h"

/* Slicing by 8 (Kounavis and Berry, 2008): table k says what a byte does to the CRC when k more bytes
 * follow it. Tables are linear: entry i is the sum (xor) of the entries of i's bits, so eight constants
 * define each. */
#define BIT(i, n) (0U - ((i) >> (n) & 1U)) /* all ones if the bit is set */
#define ENTRY(i, b0, b1, b2, b3, b4, b5, b6, b7)                                                             \
    ((BIT(i, 0) & b0) ^ (BIT(i, 1) & b1) ^ (BIT(i, 2) & b2) ^ (BIT(i, 3) & b3) ^ (BIT(i, 4) & b4) ^          \
     (BIT(i, 5) & b5) ^ (BIT(i, 6) & b6) ^ (BIT(i, 7) & b7))
#define ENTRIES_4(i, ...)                                                                                    \
    ENTRY(i, __VA_ARGS__), ENTRY(i + 1, __VA_ARGS__), ENTRY(i + 2, __VA_ARGS__), ENTRY(i + 3, __VA_ARGS__)
#define ENTRIES_16(i, ...)                                                                                   \
    ENTRIES_4(i, __VA_ARGS__), ENTRIES_4(i + 4, __VA_ARGS__), ENTRIES_4(i + 8, __VA_ARGS__),                 \
        ENTRIES_4(i + 12, __VA_ARGS__)
#define ENTRIES_64(i, ...)                                                                                   \
    ENTRIES_16(i, __VA_ARGS__), ENTRIES_16(i + 16, __VA_ARGS__), ENTRIES_16(i + 32, __VA_ARGS__),            \
        ENTRIES_16(i + 48, __VA_ARGS__)
#define TABLE(...)                                                                                           \
    ENTRIES_64(0, __VA_ARGS__), ENTRIES_64(64, __VA_ARGS__), ENTRIES_64(128, __VA_ARGS__),                   \
        ENTRIES_64(192, __VA_ARGS__)

static const uint32_t tables[8][256] = {
    {TABLE(0xF26B8303, 0xE13B70F7, 0xC79A971F, 0x8AD958CF, 0x105EC76F, 0x20BD8EDE, 0x417B1DBC, 0x82F63B78)},
    {TABLE(0x13A29877, 0x274530EE, 0x4E8A61DC, 0x9D14C3B8, 0x3FC5F181, 0x7F8BE302, 0xFF17C604, 0xFBC3FAF9)},
    {TABLE(0xA541927E, 0x4F6F520D, 0x9EDEA41A, 0x38513EC5, 0x70A27D8A, 0xE144FB14, 0xC76580D9, 0x8B277743)},
    {TABLE(0xDD45AAB8, 0xBF672381, 0x7B2231F3, 0xF64463E6, 0xE964B13D, 0xD725148B, 0xABA65FE7, 0x52A0C93F)},
    {TABLE(0x38116FAC, 0x7022DF58, 0xE045BEB0, 0xC5670B91, 0x8F2261D3, 0x1BA8B557, 0x37516AAE, 0x6EA2D55C)},
    {TABLE(0xEF306B19, 0xDB8CA0C3, 0xB2F53777, 0x6006181F, 0xC00C303E, 0x85F4168D, 0x0E045BEB, 0x1C08B7D6)},
    {TABLE(0x68032CC8, 0xD0065990, 0xA5E0C5D1, 0x4E2DFD53, 0x9C5BFAA6, 0x3D5B83BD, 0x7AB7077A, 0xF56E0EF4)},
    {TABLE(0x493C7D27, 0x9278FA4E, 0x211D826D, 0x423B04DA, 0x847609B4, 0x0D006599, 0x1A00CB32, 0x34019664)},
};

static uint32_t extend_by_tables(uint32_t crc, const uint8_t *at, size_t size) {
    uint32_t state = ~crc;
    for (; size >= 8; size -= 8, at += 8) {
        state ^= (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
        state = tables[7][state & 0xFF] ^ tables[6][state >> 8 & 0xFF] ^ tables[5][state >> 16 & 0xFF] ^
                tables[4][state >> 24] ^ tables[3][at[4]] ^ tables[2][at[5]] ^ tables[1][at[6]] ^
                tables[0][at[7]];
    }
    for (; size > 0; size--, at++) {
        state = state >> 8 ^ tables[0][(state ^ *at) & 0xFF];
    }
    return ~state;
}

#if defined(__x86_64__)
#define CRC_TARGET __attribute__((target("sse4.2,pclmul")))

CRC_TARGET static inline uint32_t crc_byte(uint32_t state, uint8_t byte) {
    return _mm_crc32_u8(state, byte);
}

CRC_TARGET static inline uint64_t crc_word(uint64_t state, uint64_t word) {
    return _mm_crc32_u64(state, word);
}

CRC_TARGET static inline uint64_t carryless_product(uint64_t a, uint64_t b) {
    __m128i product =
        _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)a), _mm_cvtsi64_si128((long long)b), 0);
    return (uint64_t)_mm_cvtsi128_si64(product);
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#define CRC_TARGET

static inline uint32_t crc_byte(uint32_t state, uint8_t byte) {
    return __crc32cb(state, byte);
}

static inline uint64_t crc_word(uint64_t state, uint64_t word) {
    return __crc32cd((uint32_t)state, word);
}

/* Of two 32-bit values. In steps, since the instruction belongs to another, optional extension. */
static inline uint64_t carryless_product(uint64_t a, uint64_t b) {
    uint64_t product = 0;
    for (int bit = 0; bit < 32; bit++) {
        product ^= (0 - (b >> bit & 1)) & a << bit;
    }
    return product;
}
#endif

#if defined(CRC_TARGET)
/* The instruction takes three cycles but one can start in each, so three stretches of `stride` bytes go
 * side by side. Their CRCs are joined by multiplying with the power of x that the bytes behind them
 * stand for (Gopal et al., "Fast CRC Computation for iSCSI Polynomial", 2011). The reduction through
 * crc_word() and the reflected product add 33 to that power, so the constants are x^(8 n - 33) modulo
 * the polynomial for n bytes behind. */
struct stride {
    size_t bytes;
    uint32_t one, two; /* for n = one and two strides */
};

static const struct stride strides[] = {
    {4096, 0x82F89C77, 0x54A86326},
    {256, 0xB9E02B86, 0xDD7E3B0C},
};

CRC_TARGET static inline uint64_t word_at(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof(word));
    return word;
}

CRC_TARGET static uint64_t extend_three_strides(uint64_t state, const uint8_t *at,
                                                const struct stride *stride) {
    uint64_t second = 0, third = 0;
    for (const uint8_t *end = at + stride->bytes; at < end; at += 8) {
        state = crc_word(state, word_at(at));
        second = crc_word(second, word_at(at + stride->bytes));
        third = crc_word(third, word_at(at + 2 * stride->bytes));
    }
    uint64_t joined = carryless_product(state, stride->two) ^ carryless_product(second, stride->one);
    return crc_word(0, joined) ^ third;
}

#if defined(__x86_64__)
/* Carry-less products and CRC instructions have ports of their own, so a long input is worked off by both at
 * once. Of each block the first part is folded by products: 128 bytes stand in four registers, and each step
 * multiplies them by x^1024, modulo the polynomial, and adds the next 128. What remains has the CRC of the
 * whole part. The other part is three strides, as above. A factor for the 64 bits that come first in a lane
 * stands for 64 bits more; the reflected product adds 1 to the power. */
enum { FOLD_BYTES = 128, FOLDS = 32, FOLD_WORDS = 5, FOLD_STRIDE = 8 * FOLDS * FOLD_WORDS };

static const size_t fold_block = FOLDS * FOLD_BYTES + 3 * FOLD_STRIDE;
static const uint64_t fold_first = 0x6577B24500000000, fold_second = 0x7417153F00000000; /* x^1087, x^1023 */
static const uint32_t fold_strides[3] = {0xDD66CBBB, 0x22C3799F, 0x23D5E7E5}; /* for one, two, three */

#define FOLD_TARGET __attribute__((target("avx2,vpclmulqdq,sse4.2,pclmul")))

FOLD_TARGET static inline __m256i fold(__m256i lanes, __m256i factors, const uint8_t *at) {
    __m256i first = _mm256_clmulepi64_epi128(lanes, factors, 0x00);
    __m256i second = _mm256_clmulepi64_epi128(lanes, factors, 0x11);
    __m256i next = _mm256_loadu_si256((const __m256i *)(const void *)at);
    return _mm256_xor_si256(_mm256_xor_si256(first, second), next);
}

FOLD_TARGET static uint64_t extend_block(uint64_t state, const uint8_t *at) {
    const uint8_t *strided = at + FOLDS * FOLD_BYTES;
    uint64_t first = 0, second = 0, third = 0, rest[FOLD_BYTES / 8];
    __m256i lanes[4], factors = _mm256_set_epi64x((long long)fold_second, (long long)fold_first,
                                                  (long long)fold_second, (long long)fold_first);
    for (int i = 0; i < 4; i++) {
        lanes[i] = _mm256_setzero_si256(); /* nothing came before */
    }
    const uint8_t *ahead = at + 2 * fold_block; /* memory is slower than both: it is asked in time */
    for (int step = 0; step < FOLDS; step++, at += FOLD_BYTES) {
        for (int i = 0; i < 4; i++, ahead += fold_block / FOLDS / 4) {
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
        }
        for (int i = 0; i < 4; i++) {
            lanes[i] = fold(lanes[i], factors, at + 32 * i);
        }
        if (step == 0) {
            lanes[0] = _mm256_xor_si256(lanes[0], _mm256_set_epi64x(0, 0, 0, (long long)state));
        }
        for (int i = 0; i < FOLD_WORDS; i++, strided += 8) {
            first = crc_word(first, word_at(strided));
            second = crc_word(second, word_at(strided + FOLD_STRIDE));
            third = crc_word(third, word_at(strided + 2 * FOLD_STRIDE));
        }
    }
    memcpy(rest, lanes, sizeof rest);
    uint64_t folded = 0;
    for (size_t i = 0; i < FOLD_BYTES / 8; i++) {
        folded = crc_word(folded, rest[i]);
    }
    uint64_t joined = carryless_product(folded, fold_strides[2]) ^ carryless_product(first, fold_strides[1]) ^
                      carryless_product(second, fold_strides[0]);
    return crc_word(0, joined) ^ third;
}
#endif

/* Takes all but a rest of `at`, `size`. A function of its own, so that headers, which are shorter, have no
 * registers to save for it. */
CRC_TARGET static __attribute__((noinline)) uint64_t extend_long(enum crc32c_level level, uint64_t state,
                                                                 const uint8_t **at, size_t *size) {
#if defined(__x86_64__)
    if (level == CRC32C_AVX512) {
        size_t folded = *size - *size % CRC32C_AVX512_VECTOR;
        state = crc32c_fold_avx512((uint32_t)state, *at, folded);
        *size -= folded;
        *at += folded;
    } else if (level == CRC32C_AVX2) {
        for (; *size >= fold_block; *size -= fold_block, *at += fold_block) {
            state = extend_block(state, *at);
        }
    }
#else
    (void)level;
#endif
    for (size_t i = 0; i < sizeof(strides) / sizeof(strides[0]); i++) {
        size_t three = 3 * strides[i].bytes;
        for (; *size >= three; *size -= three, *at += three) {
            state = extend_three_strides(state, *at, &strides[i]);
        }
    }
    return state;
}

CRC_TARGET static uint32_t extend_by_instructions(enum crc32c_level level, uint32_t crc, const uint8_t *at,
                                                  size_t size) {
    uint64_t state = ~crc;
    if (size >= CRC32C_LONG) {
        state = extend_long(level, state, &at, &size);
    }
    for (; size >= 8; size -= 8, at += 8) {
        state = crc_word(state, word_at(at));
    }
    for (; size > 0; size--, at++) {
        state = crc_byte((uint32_t)state, *at);
    }
    return ~(uint32_t)state;
}
#endif

static enum crc32c_level detect_level(void) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul")) {
        return CRC32C_SCALAR;
    }
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("vpclmulqdq")) {
        return CRC32C_INSTRUCTIONS;
    }
    return __builtin_cpu_supports("avx512f") ? CRC32C_AVX512 : CRC32C_AVX2;
#elif defined(CRC_TARGET)
    return CRC32C_INSTRUCTIONS;
#else
    return CRC32C_SCALAR;
#endif
}

enum crc32c_level crc32c_best_level(void) {
    /* Half a dozen questions would cost a header a tenth of its time or more. Threads that race here write
     * the same value. */
    static atomic_int known = -1;
    int level = atomic_load_explicit(&known, memory_order_relaxed);
    if (level < 0) {
        level = (int)detect_level();
        atomic_store_explicit(&known, level, memory_order_relaxed);
    }
    return (enum crc32c_level)level;
}

uint32_t crc32c_extend_at(enum crc32c_level level, uint32_t crc, const void *bytes, size_t size) {
#if defined(CRC_TARGET)
    if (level != CRC32C_SCALAR) {
        return extend_by_instructions(level, crc, bytes, size);
    }
#endif
    CHECK(level == CRC32C_SCALAR);
    return extend_by_tables(crc, bytes, size);
}

uint32_t crc32c_extend(uint32_t crc, const void *bytes, size_t size) {
    return crc32c_extend_at(crc32c_best_level(), crc, bytes, size);
}

uint32_t crc32c(const void *bytes, size_t size) {
    return crc32c_extend(0, bytes, size);
}
