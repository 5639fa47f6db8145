#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>

noreturn void check_failed(const char *file, int line, const char *expression) {
    fprintf(stderr, "pccl: internal error: %s:%d: %s\n", file, line, expression);
    abort();
}
