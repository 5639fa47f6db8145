#include "data/datatype.h"

#include "include/pccl.h"

static const struct {
    const char *name;
    uint32_t bytes;
} datatypes[] = {
    [pcclUint8] = {"uint8", 1},       [pcclInt8] = {"int8", 1},     [pcclInt16] = {"int16", 2},
    [pcclUint16] = {"uint16", 2},     [pcclUint32] = {"uint32", 4}, [pcclInt32] = {"int32", 4},
    [pcclUint64] = {"uint64", 8},     [pcclInt64] = {"int64", 8},   [pcclFloat16] = {"float16", 2},
    [pcclBFloat16] = {"bfloat16", 2}, [pcclFloat] = {"float32", 4}, [pcclDouble] = {"float64", 8},
};

static const char *const reduce_ops[] = {
    [pcclSum] = "sum", [pcclAvg] = "avg", [pcclProd] = "prod", [pcclMax] = "max", [pcclMin] = "min",
};

enum {
    DATATYPES = sizeof(datatypes) / sizeof(datatypes[0]),
    REDUCE_OPS = sizeof(reduce_ops) / sizeof(reduce_ops[0]),
};

bool datatype_valid(int datatype) {
    return datatype >= 0 && datatype < DATATYPES;
}

uint32_t datatype_bytes(uint8_t datatype) {
    return datatype_valid(datatype) ? datatypes[datatype].bytes : 0;
}

const char *datatype_name(uint8_t datatype) {
    return datatype_valid(datatype) ? datatypes[datatype].name : "?";
}

bool reduce_op_valid(int reduce_op) {
    return reduce_op >= 0 && reduce_op < REDUCE_OPS;
}

const char *reduce_op_name(uint8_t reduce_op) {
    return reduce_op_valid(reduce_op) ? reduce_ops[reduce_op] : "?";
}
