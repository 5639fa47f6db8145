#include "base/check.h"

#include <stdlib.h>

#include "base/log.h"

noreturn void check_failed(const char *file, int line, const char *expression) {
    log_line(LOG_ERROR, "pccl", "internal error: %s:%d: %s", file, line, expression);
    abort();
}
