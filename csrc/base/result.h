/* Every pcclResult_t with its name and its text, in one list (result.c). */
#ifndef PCCL_BASE_RESULT_H
#define PCCL_BASE_RESULT_H

#include "include/pccl.h"

enum { RESULT_COUNT = pcclOutOfMemory + 1 }; /* results are 0 .. RESULT_COUNT - 1 */

/* "pcclTooFewPeers"; "?" for anything else. The text is pcclResultString(). */
const char *result_name(pcclResult_t result);

#endif
