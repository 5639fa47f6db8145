/* The library's only output: lines at or above PCCL_LOG_LEVEL (TRACE, DEBUG, INFO, WARN, ERROR, FATAL;
 * default WARN), read once. One line per call, with time and the name of who speaks.
 *
 * They go to what was stderr when the library was loaded, through a descriptor of its own: a program may
 * close descriptor 2, and the next file that it opens may get this number. They follow a program that
 * redirects descriptor 2 with dup2(). If nobody reads them, they are dropped and counted, and the first line
 * that gets through again says so: no line ever makes its caller wait, and none changes how a shared terminal
 * or pipe behaves for others. Any thread; errno stays. */
#ifndef PCCL_BASE_LOG_H
#define PCCL_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* `who` is a short prefix ("master", a peer's name). */
__attribute__((format(printf, 3, 4))) void log_line(enum log_level level, const char *who, const char *format,
                                                    ...);
bool log_enabled(enum log_level level);
/* Whatever the level: what somebody has asked for. */
void log_always(enum log_level level, const char *who, const char *text);
/* From now on lines go nowhere: what was taken for stderr is none. */
void log_to_nowhere(void);

#endif
