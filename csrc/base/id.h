/* A random 128-bit identity: of a run, of a peer (never reused), of a link (its key). */
#ifndef PCCL_BASE_ID_H
#define PCCL_BASE_ID_H

#include <stdbool.h>
#include <stdint.h>

struct id {
    uint8_t bytes[16];
};

enum { ID_TEXT_BYTES = 33 }; /* 32 hex digits and a zero */

bool id_equal(const struct id *a, const struct id *b);
bool id_is_zero(const struct id *id);
/* Order by bytes: < 0, 0, > 0 as memcmp. */
int id_compare(const struct id *a, const struct id *b);
/* Writes the hex digits of `id` to `text` and returns it. */
const char *id_text(const struct id *id, char text[ID_TEXT_BYTES]);

#endif
