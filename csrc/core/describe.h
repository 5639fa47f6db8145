/* Ops in words, for errors and logs. */
#ifndef PCCL_CORE_DESCRIBE_H
#define PCCL_CORE_DESCRIBE_H

#include "wire/message.h"

enum { DESCRIBE_BYTES = 128 };

/* "all_reduce(sum of 100 float32)" written to `text`, which is returned. */
const char *describe_op(const struct op_descriptor *descriptor, char text[DESCRIBE_BYTES]);
const char *op_kind_name(uint8_t kind);

#endif
