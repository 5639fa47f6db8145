/* What the drivers share: the end of a driver at the first thing that is wrong. */
#ifndef DRIVER_H
#define DRIVER_H

#include <stdio.h>
#include <stdlib.h>

#include "pccl.h"

#define REQUIRE(condition, ...)                                                                              \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: not so: %s: ", __FILE__, __LINE__, #condition);                          \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fprintf(stderr, " [last error: %s]\n", pcclGetLastError(NULL));                                  \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#endif
