/* The twelve element types: sizes and names. */
#ifndef PCCL_DATA_DATATYPE_H
#define PCCL_DATA_DATATYPE_H

#include <stdbool.h>
#include <stdint.h>

bool datatype_valid(int datatype);             /* a pcclDataType_t */
uint32_t datatype_bytes(uint8_t datatype);     /* of one element; 0 for anything else */
const char *datatype_name(uint8_t datatype);   /* "float32"; "?" for anything else */
bool reduce_op_valid(int reduce_op);           /* a pcclRedOp_t */
const char *reduce_op_name(uint8_t reduce_op); /* "sum"; "?" for anything else */

#endif
