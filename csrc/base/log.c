#define _GNU_SOURCE
#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 1280 };

static const char *const level_names[] = {"DEBUG", "INFO", "WARN", "ERROR"};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static enum log_level threshold = LOG_WARN;

static void read_level(void) {
    const char *text = getenv("PCCL_LOG_LEVEL");
    for (int level = LOG_DEBUG; text != NULL && level <= LOG_ERROR; level++) {
        if (strcasecmp(text, level_names[level]) == 0) {
            threshold = (enum log_level)level;
        }
    }
}

bool log_enabled(enum log_level level) {
    pthread_once(&once, read_level);
    return level >= threshold;
}

/* "2026-01-31T12:34:56.789Z INFO master: " */
static size_t write_prefix(char line[LINE_BYTES], enum log_level level, const char *who) {
    struct timespec now;
    struct tm utc;
    char time_text[32];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%S", &utc);
    int size = snprintf(line, LINE_BYTES, "%s.%03ldZ %s %.64s: ", time_text, now.tv_nsec / 1000000,
                        level_names[level], who);
    return size > 0 ? (size_t)size : 0;
}

void log_line(enum log_level level, const char *who, const char *format, ...) {
    if (!log_enabled(level)) {
        return;
    }
    int saved_errno = errno;
    char line[LINE_BYTES];
    size_t size = write_prefix(line, level, who);
    va_list arguments;
    va_start(arguments, format);
    int body = vsnprintf(line + size, sizeof line - size - 1, format, arguments);
    va_end(arguments);
    if (body > 0) {
        size_t room = sizeof line - size - 2; /* for the newline, and the zero that vsnprintf needs */
        size += (size_t)body < room ? (size_t)body : room;
    }
    line[size++] = '\n';
    /* One write per line, so that lines of several threads and processes do not mix. What stderr does
     * not take is lost: a log must never fail its caller. */
    ssize_t written = write(STDERR_FILENO, line, size);
    (void)written;
    errno = saved_errno;
}
