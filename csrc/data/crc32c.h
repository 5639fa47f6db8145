/* CRC32C (Castagnoli, RFC 3720), by the processor's instructions where it has them. */
#ifndef PCCL_DATA_CRC32C_H
#define PCCL_DATA_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Of `size` bytes. crc32c_extend(crc32c(a), b) is the CRC of a followed by b. */
uint32_t crc32c(const void *bytes, size_t size);
uint32_t crc32c_extend(uint32_t crc, const void *bytes, size_t size);

/* How it is computed: in the best way that the processor has, unless a test asks for less. A processor
 * that has one of these has those before it. */
enum crc32c_level {
    CRC32C_SCALAR,       /* by tables */
    CRC32C_INSTRUCTIONS, /* crc32 of x86-64 or ARM */
    CRC32C_AVX2,         /* the same, and carry-less products of 256 bits */
    CRC32C_AVX512        /* and of 512 bits */
};
enum crc32c_level crc32c_best_level(void);
/* The same as crc32c_extend() by one level, which the processor must have. For tests. */
uint32_t crc32c_extend_at(enum crc32c_level level, uint32_t crc, const void *bytes, size_t size);

#endif
