/* Assertions for our own mistakes: on in every build, never used for bytes that came from a network.
 * A failed one ends the process, because going on would mean wrong numbers. */
#ifndef PCCL_BASE_CHECK_H
#define PCCL_BASE_CHECK_H

#include <stdnoreturn.h>

noreturn void check_failed(const char *file, int line, const char *expression);

#define CHECK(expression) ((expression) ? (void)0 : check_failed(__FILE__, __LINE__, #expression))

#endif
