/* CRC32C (Castagnoli, RFC 3720), by the processor's instructions where it has them. */
#ifndef PCCL_DATA_CRC32C_H
#define PCCL_DATA_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Of `size` bytes. crc32c_extend(crc32c(a), b) is the CRC of a followed by b. */
uint32_t crc32c(const void *bytes, size_t size);
uint32_t crc32c_extend(uint32_t crc, const void *bytes, size_t size);
/* The table-driven twin, for tests. */
uint32_t crc32c_extend_scalar(uint32_t crc, const void *bytes, size_t size);

#endif
