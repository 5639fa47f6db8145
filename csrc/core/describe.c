#include "core/describe.h"

#include <inttypes.h>
#include <stdio.h>

#include "data/datatype.h"
#include "pccl.h"

const char *op_kind_name(uint8_t kind) {
    static const char *const names[] = {"?",          "all_reduce",     "broadcast",
                                        "all_gather", "reduce_scatter", "barrier"};
    return kind < OP_KIND_END ? names[kind] : "?";
}

const char *describe_op(const struct op_descriptor *descriptor, char text[DESCRIBE_BYTES]) {
    if (descriptor->kind == OP_BARRIER) {
        snprintf(text, DESCRIBE_BYTES, "barrier()");
        return text;
    }
    bool reduces = descriptor->kind == OP_ALL_REDUCE || descriptor->kind == OP_REDUCE_SCATTER;
    int used = snprintf(text, DESCRIBE_BYTES, "%s(%s%s%" PRIu64 " %s", op_kind_name(descriptor->kind),
                        reduces ? reduce_op_name(descriptor->reduce_op) : "", reduces ? " of " : "",
                        descriptor->count, datatype_name(descriptor->datatype));
    if (!reduces || descriptor->kind == OP_REDUCE_SCATTER) {
        used += snprintf(text + used, (size_t)(DESCRIBE_BYTES - used), ", %s %u",
                         descriptor->kind == OP_BROADCAST ? "root" : "for a world of",
                         (unsigned)descriptor->root_or_world);
    }
    if (descriptor->algorithm != OP_ALGORITHM_AUTO) {
        used += snprintf(text + used, (size_t)(DESCRIBE_BYTES - used), ", by %s",
                         descriptor->algorithm == OP_ALGORITHM_TREE ? "tree" : "ring");
    }
    if (descriptor->quant_algorithm != pcclQuantNone && used > 0 && used < DESCRIBE_BYTES) {
        used += snprintf(text + used, (size_t)(DESCRIBE_BYTES - used), ", quantised to %s by method %u",
                         datatype_name(descriptor->quant_datatype), (unsigned)descriptor->quant_algorithm);
    }
    if (descriptor->early && used > 0 && used < DESCRIBE_BYTES) {
        used += snprintf(text + used, (size_t)(DESCRIBE_BYTES - used), ", returning early");
    }
    if (used > 0 && used < DESCRIBE_BYTES) {
        snprintf(text + used, (size_t)(DESCRIBE_BYTES - used), ")");
    }
    return text;
}
