/* An op's descriptor as it stands in messages and in frame headers. Internal to csrc/wire. */
#ifndef PCCL_WIRE_DESCRIPTOR_H
#define PCCL_WIRE_DESCRIPTOR_H

#include "include/pccl.h"
#include "wire/cursor.h"
#include "wire/message.h"

enum { DESCRIPTOR_BYTES = 16, EARLY_BIT = 0x80 };

/* The wish for an algorithm and, in the highest bit, whether the op may return early. */
static inline void cursor_manner(struct cursor *cursor, struct op_descriptor *descriptor) {
    uint8_t manner = 0; /* what is read into may hold no bool yet */
    if (!cursor->reading) {
        manner = (uint8_t)(descriptor->algorithm | (descriptor->early ? EARLY_BIT : 0));
    }
    cursor_u8(cursor, &manner);
    if (cursor->reading) {
        descriptor->algorithm = (uint8_t)(manner & ~EARLY_BIT);
        descriptor->early = (manner & EARLY_BIT) != 0;
    }
    cursor_require(cursor, descriptor->algorithm < OP_ALGORITHM_END);
    cursor_require(cursor, !descriptor->early || descriptor->kind == OP_ALL_REDUCE);
}

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
    cursor_manner(cursor, descriptor);
    cursor_u16(cursor, &descriptor->root_or_world);
    cursor_require(cursor, descriptor->root_or_world <= MAX_PEERS);
    cursor_u64(cursor, &descriptor->count);
}

#endif
