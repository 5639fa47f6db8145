#include "base/id.h"

#include <string.h>

bool id_equal(const struct id *a, const struct id *b) {
    return memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

bool id_is_zero(const struct id *id) {
    static const struct id zero;
    return id_equal(id, &zero);
}

int id_compare(const struct id *a, const struct id *b) {
    return memcmp(a->bytes, b->bytes, sizeof a->bytes);
}

const char *id_text(const struct id *id, char text[ID_TEXT_BYTES]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        text[2 * i] = digits[id->bytes[i] >> 4];
        text[2 * i + 1] = digits[id->bytes[i] & 15];
    }
    text[32] = '\0';
    return text;
}
