/* Reduce kernels: memory in, memory out, no state. f16 and bf16 add in float and round to nearest even;
 * integers wrap; NaN wins in max and min, where +0 is greater than -0. A NaN result is always the same
 * one (positive, quiet, no payload). All levels of kernels give the same bits for the same input, in
 * whatever floating-point mode the calling thread is. */
#ifndef PCCL_DATA_REDUCE_H
#define PCCL_DATA_REDUCE_H

#include <stddef.h>
#include <stdint.h>

/* destination[i] = a[i] (op) b[i]; `destination` may be `a` or `b`; no other overlap. Any alignment.
 * pcclAvg adds: reduce_average() takes the place of the last one. */
void reduce(uint8_t datatype, uint8_t reduce_op, void *destination, const void *a, const void *b,
            size_t count);
/* destination[i] = (a[i] + b[i]) / divisor, integers toward zero; f16 and bf16 in float, the sum rounded
 * first. 1 <= divisor <= MAX_PEERS. */
void reduce_average(uint8_t datatype, void *destination, const void *a, const void *b, uint32_t divisor,
                    size_t count);

/* Which kernels to use: the best that the processor has, unless a test asks for less. */
enum reduce_level { REDUCE_SCALAR, REDUCE_AVX2, REDUCE_AVX512, REDUCE_NEON };
enum reduce_level reduce_best_level(void);
/* The same as above with kernels of one level, which the processor must have. For tests. */
void reduce_at(enum reduce_level level, uint8_t datatype, uint8_t reduce_op, void *destination, const void *a,
               const void *b, size_t count);
void reduce_average_at(enum reduce_level level, uint8_t datatype, void *destination, const void *a,
                       const void *b, uint32_t divisor, size_t count);

#endif
