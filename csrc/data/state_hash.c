#include "data/state_hash.h"

#include "base/check.h"
#include "data/state_hash_kernels.h"
#include "data/state_hash_words.h"

/* key(i) of the specification, as a constant expression. */
#define SHIFTED(z, bits) ((z) ^ (z) >> (bits))
#define KEY_0(i) (((i) + 1) * UINT64_C(0x9E3779B97F4A7C15))
#define KEY_1(i) (SHIFTED(KEY_0(i), 30) * UINT64_C(0xBF58476D1CE4E5B9))
#define KEY_2(i) (SHIFTED(KEY_1(i), 27) * UINT64_C(0x94D049BB133111EB))
#define KEY(i) SHIFTED(KEY_2(i), 31)
#define KEYS_4(i) KEY(i), KEY((i) + 1), KEY((i) + 2), KEY((i) + 3)
#define KEYS_16(i) KEYS_4(i), KEYS_4((i) + 4), KEYS_4((i) + 8), KEYS_4((i) + 12)

enum { TENSOR_KEY = 2 * STATE_HASH_LANES, STATE_KEY = TENSOR_KEY + 2, EMPTY_ROUNDS = 4 };

struct lanes {
    uint64_t a[STATE_HASH_LANES], b[STATE_HASH_LANES];
};

static const struct lanes first_lanes = {{KEYS_16(0), KEYS_16(16)}, {KEYS_16(32), KEYS_16(48)}};

static void absorb(uint64_t *lane_a, uint64_t *lane_b, uint64_t x, uint64_t y) {
    uint64_t a = *lane_a ^ x, b = *lane_b ^ y;
    for (int twice = 0; twice < 2; twice++) {
        b += word_product(a);
        a = word_swap(a);
        a += word_product(b);
        b = word_swap(b);
    }
    *lane_a = a;
    *lane_b = b;
}

static void finish(uint64_t a, uint64_t b, uint64_t x, uint64_t y, struct state_hash *out) {
    absorb(&a, &b, x, y);
    for (int round = 0; round < EMPTY_ROUNDS; round++) {
        absorb(&a, &b, 0, 0);
    }
    out->words[0] = a;
    out->words[1] = b;
}

static state_hash_kernel *kernel_of(enum reduce_level level) {
    switch (level) {
    case REDUCE_SCALAR:
        return state_hash_absorb_scalar;
#if defined(__x86_64__)
    case REDUCE_AVX2:
        return state_hash_absorb_avx2;
    case REDUCE_AVX512:
        return state_hash_absorb_avx512;
#endif
#if defined(__aarch64__)
    case REDUCE_NEON:
        return state_hash_absorb_neon;
#endif
    default:
        return NULL;
    }
}

void state_hash_leaf_at(enum reduce_level level, const void *bytes, size_t size, uint64_t index,
                        struct state_hash *out) {
    state_hash_kernel *kernel = kernel_of(level);
    CHECK(kernel != NULL && size <= STATE_LEAF_BYTES);
    struct lanes lanes = first_lanes;
    size_t whole = size / STATE_HASH_STRIPE_BYTES, rest = size % STATE_HASH_STRIPE_BYTES;
    if (whole > 0) {
        kernel(lanes.a, lanes.b, bytes, whole);
    }
    if (rest > 0) {
        uint8_t last[STATE_HASH_STRIPE_BYTES] = {0};
        memcpy(last, (const uint8_t *)bytes + (size - rest), rest);
        kernel(lanes.a, lanes.b, last, 1);
    }
    for (int half = STATE_HASH_LANES / 2; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) {
            absorb(&lanes.a[j], &lanes.b[j], lanes.a[j + half], lanes.b[j + half]);
        }
    }
    finish(lanes.a[0], lanes.b[0], size, index, out);
}

void state_hash_leaf(const void *bytes, size_t size, uint64_t index, struct state_hash *out) {
    state_hash_leaf_at(reduce_best_level(), bytes, size, index, out);
}

void state_hash_tensor(uint8_t datatype, uint64_t count, const struct state_hash *leaves, uint64_t leaf_count,
                       struct state_hash *out) {
    uint64_t a = KEY(TENSOR_KEY), b = KEY(TENSOR_KEY + 1);
    for (uint64_t i = 0; i < leaf_count; i++) {
        absorb(&a, &b, leaves[i].words[0], leaves[i].words[1]);
    }
    finish(a, b, count, datatype + 256 * leaf_count, out);
}

void state_digest_init(struct state_digest *digest) {
    digest->a = KEY(STATE_KEY);
    digest->b = KEY(STATE_KEY + 1);
    digest->tensor_count = 0;
}

void state_digest_add(struct state_digest *digest, const char *name, size_t name_size,
                      const struct state_hash *tensor) {
    struct state_hash name_hash;
    state_hash_leaf(name, name_size, 0, &name_hash);
    absorb(&digest->a, &digest->b, name_hash.words[0], name_hash.words[1]);
    absorb(&digest->a, &digest->b, tensor->words[0], tensor->words[1]);
    digest->tensor_count++;
}

void state_digest_final(const struct state_digest *digest, struct state_hash *out) {
    finish(digest->a, digest->b, digest->tensor_count, 0, out);
}
