/* The state hash's inner loop for AArch64, where NEON is always there. */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stdint.h>

#include "data/vectorize.h"

#define KERNEL_TARGET
#define KERNEL_NAME state_hash_absorb_neon
#define VECTORS 8
typedef uint64x2_t vector;

static inline vector vector_load(const uint8_t *at) {
    uint8x16_t bytes = vld1q_u8(at);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bytes = vrev64q_u8(bytes);
#endif
    return vreinterpretq_u64_u8(bytes);
}

static inline vector vector_get(const uint64_t *at) {
    return vld1q_u64(at);
}

static inline void vector_put(uint64_t *at, vector v) {
    vst1q_u64(at, v);
}

static inline vector vector_xor(vector v, vector w) {
    return veorq_u64(v, w);
}

static inline vector vector_swap(vector v) {
    return vreinterpretq_u64_u32(vrev64q_u32(vreinterpretq_u32_u64(v)));
}

static inline vector vector_add_product(vector v, vector w, vector swapped) {
    return vmlal_u32(v, vmovn_u64(w), vmovn_u64(swapped));
}

#include "data/state_hash_loops.h"

#else
typedef int state_hash_neon_has_nothing_here;
#endif
