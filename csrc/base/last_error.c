#include "base/last_error.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char sentence[LAST_ERROR_BYTES];

void last_error_set(const char *format, ...) {
    /* Through a copy, because the old sentence may be among the arguments. */
    char next[LAST_ERROR_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(next, sizeof next, format, arguments);
    va_end(arguments);
    snprintf(sentence, sizeof sentence, "%s", next);
}

void last_error_clear(void) {
    sentence[0] = '\0';
}

const char *last_error_get(void) {
    return sentence;
}
