/* What peers bring to an all-reduce, and what comes out: small integers, which all types hold and add
 * exactly. */
#ifndef ELEMENTS_H
#define ELEMENTS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pccl.h"

static inline size_t size_of(pcclDataType_t type) {
    static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8};
    return sizes[type];
}

static inline uint16_t half_of(int value) {
    if (value == 0) {
        return 0;
    }
    int magnitude = abs(value), exponent = 0;
    while (magnitude >> (exponent + 1) != 0) {
        exponent++;
    }
    unsigned mantissa = ((unsigned)magnitude << (10 - exponent)) & 0x3ffu;
    return (uint16_t)((value < 0 ? 0x8000u : 0u) | (unsigned)(exponent + 15) << 10 | mantissa);
}

static inline uint16_t bfloat_of(int value) {
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static inline void put(pcclDataType_t type, void *array, size_t i, int value) {
    unsigned char *to = (unsigned char *)array + i * size_of(type);
    int64_t wide = value;
    double d = value;
    float f = (float)value;
    uint16_t half = type == pcclFloat16 ? half_of(value) : bfloat_of(value);
    switch (type) {
    case pcclFloat16:
    case pcclBFloat16:
        memcpy(to, &half, sizeof half);
        break;
    case pcclFloat:
        memcpy(to, &f, sizeof f);
        break;
    case pcclDouble:
        memcpy(to, &d, sizeof d);
        break;
    default:
        memcpy(to, &wide, size_of(type)); /* little-endian: the low bytes come first */
        break;
    }
}

/* What the peer with this index brings to element i of op `tag`. */
static inline int own_value(int index, size_t i, uint64_t tag, pcclRedOp_t op) {
    int value = (int)((i * 7 + (size_t)index * 5 + tag * 3) % 13);
    return op == pcclProd ? 1 + value % 2 : value;
}

static inline int expected_value(int world, size_t i, uint64_t tag, pcclRedOp_t op) {
    int result = own_value(0, i, tag, op);
    for (int index = 1; index < world; index++) {
        int value = own_value(index, i, tag, op);
        switch (op) {
        case pcclSum:
        case pcclAvg:
            result += value;
            break;
        case pcclProd:
            result *= value;
            break;
        case pcclMax:
            result = value > result ? value : result;
            break;
        case pcclMin:
            result = value < result ? value : result;
            break;
        }
    }
    return op == pcclAvg ? result / world : result;
}

#endif
