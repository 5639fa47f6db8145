/* The inner loop of state_hash_leaf() at each level, as state_hash.c picks from them. */
#ifndef PCCL_DATA_STATE_HASH_KERNELS_H
#define PCCL_DATA_STATE_HASH_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { STATE_HASH_LANES = 32, STATE_HASH_STRIPE_BYTES = 16 * STATE_HASH_LANES };

/* Lane j is (a[j], b[j]); each absorbs its two words of each stripe. */
typedef void state_hash_kernel(uint64_t a[STATE_HASH_LANES], uint64_t b[STATE_HASH_LANES],
                               const uint8_t *stripes, size_t stripe_count);

state_hash_kernel state_hash_absorb_scalar;
#if defined(__x86_64__)
state_hash_kernel state_hash_absorb_avx2;
state_hash_kernel state_hash_absorb_avx512;
#endif
#if defined(__aarch64__)
state_hash_kernel state_hash_absorb_neon;
#endif

#endif
