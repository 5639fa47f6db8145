/* An op's descriptor as it stands in messages and in frame headers. Internal to csrc/wire. */
#ifndef PCCL_WIRE_DESCRIPTOR_H
#define PCCL_WIRE_DESCRIPTOR_H

#include "include/pccl.h"
#include "wire/cursor.h"
#include "wire/message.h"

enum { DESCRIPTOR_BYTES = 16 };

static inline void cursor_descriptor(struct cursor *cursor, struct op_descriptor *descriptor) {
    cursor_u8(cursor, &descriptor->kind);
    cursor_require(cursor, descriptor->kind >= OP_ALL_REDUCE && descriptor->kind < OP_KIND_END);
    cursor_u8(cursor, &descriptor->datatype);
    cursor_require(cursor, descriptor->datatype <= pcclDouble);
    cursor_u8(cursor, &descriptor->reduce_op);
    cursor_require(cursor, descriptor->reduce_op <= pcclMin);
    cursor_u8(cursor, &descriptor->quant_datatype);
    cursor_require(cursor, descriptor->quant_datatype <= pcclDouble);
    cursor_u8(cursor, &descriptor->quant_algorithm);
    cursor_require(cursor, descriptor->quant_algorithm <= pcclQuantZeroPointScale);
    cursor_u8(cursor, &descriptor->algorithm);
    cursor_require(cursor, descriptor->algorithm < OP_ALGORITHM_END);
    cursor_u16(cursor, &descriptor->root_or_world);
    cursor_require(cursor, descriptor->root_or_world <= MAX_PEERS);
    cursor_u64(cursor, &descriptor->count);
}

#endif
