/* What crc32c.c calls when the processor has it. */
#ifndef PCCL_DATA_CRC32C_KERNELS_H
#define PCCL_DATA_CRC32C_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum { CRC32C_LONG = 256 }; /* what is shorter goes word by word */

#if defined(__x86_64__)
enum { CRC32C_AVX512_VECTOR = 64 };

/* The CRC register (the CRC, inverted) after `size` >= CRC32C_LONG more bytes, in whole vectors. */
uint32_t crc32c_fold_avx512(uint32_t state, const uint8_t *at, size_t size);
#endif

#endif
