/* The inner loop of the state hash for one level. Each state_hash_<level>.c includes this once, after it
 * has defined
 *   KERNEL_TARGET          attributes of a function that may use the level's instructions,
 *   KERNEL_NAME            the kernel's name,
 *   VECTORS                how many vectors of each of a and b stay in registers,
 *   vector                 the type that holds some 64-bit lanes,
 *   vector_load(const uint8_t *), little-endian words; vector_get(const uint64_t *), our own words;
 *   vector_put(uint64_t *, vector), vector_xor(v, w), vector_swap(v), and
 *   vector_add_product(v, w, swapped), v + product(w), where `swapped` is vector_swap(w). */

#include "data/state_hash_kernels.h"

enum {
    VECTOR_LANES = (int)(sizeof(vector) / sizeof(uint64_t)),
    GROUP_LANES = VECTORS * VECTOR_LANES, /* they go through a batch of stripes together */
    BATCH_STRIPES = 8,                    /* which the first group leaves in cache for the others */
    CACHE_LINE_BYTES = 64,
    SECOND_WORDS_BYTES = STATE_HASH_STRIPE_BYTES / 2,
};

/* Memory is slower than the arithmetic, and the processor's own prefetching stops at every 4 KiB page:
 * ask for the lines that this place will need in the next batch. An address past the end does no harm. */
#define PREFETCH(at)                                                                                         \
    __builtin_prefetch((const void *)((uintptr_t)(at) + BATCH_STRIPES * STATE_HASH_STRIPE_BYTES))

/* The vectors do not depend on each other: their multiplications overlap. */
#define EACH_VECTOR for (int i = 0; i < VECTORS; i++)

KERNEL_TARGET static void absorb_group(uint64_t *lane_a, uint64_t *lane_b, const uint8_t *bytes,
                                       size_t stripe_count) {
    vector a[VECTORS], b[VECTORS];
    EACH_VECTOR {
        a[i] = vector_get(lane_a + i * VECTOR_LANES);
        b[i] = vector_get(lane_b + i * VECTOR_LANES);
    }
    for (; stripe_count > 0; stripe_count--, bytes += STATE_HASH_STRIPE_BYTES) {
        EACH_VECTOR {
            const uint8_t *at = bytes + (size_t)i * sizeof(vector);
            if ((size_t)i * sizeof(vector) % CACHE_LINE_BYTES == 0) {
                PREFETCH(at);
                PREFETCH(at + SECOND_WORDS_BYTES);
            }
            a[i] = vector_xor(a[i], vector_load(at));
            b[i] = vector_xor(b[i], vector_load(at + SECOND_WORDS_BYTES));
        }
        for (int twice = 0; twice < 2; twice++) {
            EACH_VECTOR {
                vector swapped = vector_swap(a[i]);
                b[i] = vector_add_product(b[i], a[i], swapped);
                a[i] = swapped;
            }
            EACH_VECTOR {
                vector swapped = vector_swap(b[i]);
                a[i] = vector_add_product(a[i], b[i], swapped);
                b[i] = swapped;
            }
        }
    }
    EACH_VECTOR {
        vector_put(lane_a + i * VECTOR_LANES, a[i]);
        vector_put(lane_b + i * VECTOR_LANES, b[i]);
    }
}

KERNEL_TARGET void KERNEL_NAME(uint64_t a[STATE_HASH_LANES], uint64_t b[STATE_HASH_LANES],
                               const uint8_t *stripes, size_t stripe_count) {
    while (stripe_count > 0) {
        size_t batch = stripe_count < BATCH_STRIPES ? stripe_count : BATCH_STRIPES;
        for (int lane = 0; lane < STATE_HASH_LANES; lane += GROUP_LANES) {
            absorb_group(a + lane, b + lane, stripes + 8 * lane, batch);
        }
        stripes += batch * STATE_HASH_STRIPE_BYTES;
        stripe_count -= batch;
    }
}
