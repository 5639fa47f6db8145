/* The library's only output: lines on stderr at or above PCCL_LOG_LEVEL (DEBUG, INFO, WARN, ERROR;
 * default WARN), read once. One line per call, with time and the name of who speaks. */
#ifndef PCCL_BASE_LOG_H
#define PCCL_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

bool log_enabled(enum log_level level);
/* `who` is a short prefix ("master", a peer's name). Any thread. */
__attribute__((format(printf, 3, 4))) void log_line(enum log_level level, const char *who, const char *format,
                                                    ...);

#endif
