/* The kernels of each level, as reduce.c picks from them. */
#ifndef PCCL_DATA_REDUCE_KERNELS_H
#define PCCL_DATA_REDUCE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* destination[i] = a[i] (op) b[i], as reduce(); needs the default floating-point environment. */
typedef void reduce_kernel(void *destination, const void *a, const void *b, size_t count);
/* destination[i] = (a[i] + b[i]) / divisor, as reduce_average(), but not for 1; the same need. */
typedef void average_kernel(void *destination, const void *a, const void *b, uint32_t divisor, size_t count);

enum { REDUCE_DATATYPES = 12, REDUCE_OPS = 5 }; /* pcclDataType_t, pcclRedOp_t */

struct reduce_kernels {
    reduce_kernel *reduce[REDUCE_DATATYPES][REDUCE_OPS];
    average_kernel *average[REDUCE_DATATYPES];
};

extern const struct reduce_kernels reduce_kernels_scalar;
#if defined(__x86_64__)
extern const struct reduce_kernels reduce_kernels_avx2;
extern const struct reduce_kernels reduce_kernels_avx512;
#endif
#if defined(__aarch64__)
extern const struct reduce_kernels reduce_kernels_neon;
#endif

#endif
