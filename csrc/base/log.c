#define _GNU_SOURCE
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/limits.h"

static const char *const level_names[] = {"DEBUG", "INFO", "WARN", "ERROR"};

/* ---- where lines go ---- */

enum target_kind {
    TARGET_OWN,    /* never waits: opened anew, so that its flags are ours alone; or a file */
    TARGET_SOCKET, /* each send says that it must not wait */
    TARGET_SHARED, /* could not be opened anew: asked first */
};

/* A number of a descriptor may be closed by the program, and then be another file's: each is looked at again
 * before it is used. */
struct file {
    dev_t device;
    ino_t number;
};

static _Atomic int target = -1;
static _Atomic int target_kind; /* enum target_kind */
static struct file target_file; /* what `target` is */
static struct file stderr_file; /* what descriptor 2 was when `target` was taken from it */
static _Atomic unsigned long dropped;

static bool look_at(int fd, struct file *file, mode_t *mode_out) {
    struct stat status;
    if (fstat(fd, &status) != 0) {
        return false;
    }
    *file = (struct file){.device = status.st_dev, .number = status.st_ino};
    *mode_out = status.st_mode;
    return true;
}

static bool is_same(const struct file *a, const struct file *b) {
    return a->device == b->device && a->number == b->number;
}

/* A terminal or a pipe, which may be full: O_NONBLOCK on a copy of the descriptor would be on that of the
 * program too, and of all others that share it. */
static int open_anew(void) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", STDERR_FILENO);
    int fd = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0 || fd > STDERR_FILENO) {
        return fd;
    }
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(fd);
    return moved;
}

static int take(mode_t mode, enum target_kind *kind_out) {
    *kind_out = S_ISSOCK(mode) ? TARGET_SOCKET : TARGET_OWN;
    int fd = S_ISSOCK(mode) || S_ISREG(mode) ? -1 : open_anew();
    if (fd < 0) {
        /* A copy of a file shares the place at which others write. Of a terminal after su, which is another
         * user's, there is only a copy. */
        fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        *kind_out = S_ISREG(mode) ? TARGET_OWN : S_ISSOCK(mode) ? TARGET_SOCKET : TARGET_SHARED;
    }
    return fd;
}

/* True if descriptor 2 can be written to, and is another file than it was. */
static bool has_new_stderr(struct file *file, mode_t *mode) {
    int flags = fcntl(STDERR_FILENO, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && look_at(STDERR_FILENO, file, mode) &&
           !is_same(file, &stderr_file);
}

/* When the library is loaded. */
__attribute__((constructor)) static void take_stderr(void) {
    struct file file;
    mode_t mode;
    enum target_kind kind;
    if (has_new_stderr(&file, &mode)) {
        int fd = take(mode, &kind);
        if (fd >= 0 && look_at(fd, &target_file, &mode)) {
            target_kind = kind;
            stderr_file = file;
            target = fd;
        }
    }
}

/* dup2() to descriptor 2 is meant for all that write to stderr. A file that has only got this number by being
 * opened after stderr was closed is close-on-exec, unless its program is careless; a dup2() never is. */
static void follow_stderr(void) {
    struct file file;
    mode_t mode;
    enum target_kind kind;
    if ((fcntl(STDERR_FILENO, F_GETFD) & FD_CLOEXEC) != 0 || !has_new_stderr(&file, &mode)) {
        return; /* also where there is none */
    }
    int fd = take(mode, &kind);
    if (fd < 0) {
        return;
    }
    /* Threads that write at the same time have the old one or the new one. */
    if (dup3(fd, target, O_CLOEXEC) >= 0 && look_at(fd, &target_file, &mode)) {
        target_kind = kind;
        stderr_file = file;
    }
    close(fd);
}

/* -1: there is none. */
static int current_target(void) {
    struct file file;
    mode_t mode;
    if (target < 0 || !look_at(target, &file, &mode) || !is_same(&file, &target_file)) {
        return -1; /* or the program has closed all descriptors that it does not know */
    }
    follow_stderr();
    return target;
}

__attribute__((destructor)) static void give_back(void) {
    log_to_nowhere();
}

void log_to_nowhere(void) {
    int fd = atomic_exchange(&target, -1);
    if (fd >= 0) {
        close(fd);
    }
}

/* ---- writing ---- */

static bool has_room(int fd) {
    struct pollfd item = {.fd = fd, .events = POLLOUT};
    return poll(&item, 1, 0) == 1 && (item.revents & POLLOUT) != 0;
}

/* One call of the system per line, so that lines of several threads and processes do not mix. A pipe takes so
 * few bytes at once, or not at all. */
static bool put(const char *line, size_t size) {
    int fd = current_target();
    if (fd < 0 || (target_kind == TARGET_SHARED && !has_room(fd))) {
        return false;
    }
    return target_kind == TARGET_SOCKET ? send(fd, line, size, MSG_DONTWAIT | MSG_NOSIGNAL) > 0
                                        : write(fd, line, size) > 0;
}

/* Where nobody reads any more, the system sends a SIGPIPE, which ends a program that has not asked for any of
 * this. */
static bool put_without_signal(const char *line, size_t size) {
    sigset_t pipe_signal, before, pending;
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    sigemptyset(&pending);
    sigpending(&pending);
    bool was_pending = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_signal, &before);
    bool good = put(line, size);
    if (!good && errno == EPIPE && !was_pending) {
        const struct timespec at_once = {0};
        while (sigtimedwait(&pipe_signal, NULL, &at_once) < 0 && errno == EINTR) {
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return good;
}

/* "2026-01-31T12:34:56.789Z INFO master: " */
static size_t write_prefix(char line[MAX_LOG_LINE_BYTES], enum log_level level, const char *who) {
    struct timespec now;
    struct tm utc;
    char time_text[32];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%S", &utc);
    int size = snprintf(line, MAX_LOG_LINE_BYTES, "%s.%03ldZ %s %.64s: ", time_text, now.tv_nsec / 1000000,
                        level_names[level], who);
    return size > 0 ? (size_t)size : 0;
}

__attribute__((format(printf, 3, 0))) static bool write_line(enum log_level level, const char *who,
                                                             const char *format, va_list arguments) {
    char line[MAX_LOG_LINE_BYTES];
    size_t size = write_prefix(line, level, who);
    int body = vsnprintf(line + size, sizeof line - size - 1, format, arguments);
    if (body > 0) {
        size_t room = sizeof line - size - 2; /* for the newline, and the zero that vsnprintf needs */
        size += (size_t)body < room ? (size_t)body : room;
    }
    line[size++] = '\n';
    return put_without_signal(line, size);
}

__attribute__((format(printf, 3, 4))) static bool try_line(enum log_level level, const char *who,
                                                           const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    bool good = write_line(level, who, format, arguments);
    va_end(arguments);
    return good;
}

/* True if nothing is left to be said of lines that were dropped. */
static bool confess(const char *who) {
    unsigned long count = atomic_exchange(&dropped, 0);
    if (count == 0 || try_line(LOG_WARN, who, "%lu lines dropped: nobody took them", count)) {
        return true;
    }
    atomic_fetch_add(&dropped, count);
    return false;
}

__attribute__((format(printf, 3, 0))) static void say(enum log_level level, const char *who,
                                                      const char *format, va_list arguments) {
    int saved_errno = errno;
    if (!confess(who) || !write_line(level, who, format, arguments)) {
        atomic_fetch_add(&dropped, 1);
    }
    errno = saved_errno;
}

/* ---- levels ---- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static enum log_level threshold = LOG_WARN;

static void read_level(void) {
    static const struct {
        const char *name;
        enum log_level level;
    } known[] = {{"TRACE", LOG_DEBUG}, {"DEBUG", LOG_DEBUG}, {"INFO", LOG_INFO},   {"WARN", LOG_WARN},
                 {"ERROR", LOG_ERROR}, {"ERR", LOG_ERROR},   {"FATAL", LOG_ERROR}, {"WARNING", LOG_WARN}};
    const char *text = getenv("PCCL_LOG_LEVEL");
    if (text == NULL || text[0] == '\0') {
        return;
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcasecmp(text, known[i].name) == 0) {
            threshold = known[i].level;
            return;
        }
    }
    (void)try_line(
        LOG_WARN, "pccl",
        "PCCL_LOG_LEVEL is \"%.32s\", which is none of TRACE, DEBUG, INFO, WARN, ERROR and FATAL: it "
        "counts as WARN",
        text);
}

bool log_enabled(enum log_level level) {
    pthread_once(&once, read_level);
    return level >= threshold;
}

void log_line(enum log_level level, const char *who, const char *format, ...) {
    if (log_enabled(level)) {
        va_list arguments;
        va_start(arguments, format);
        say(level, who, format, arguments);
        va_end(arguments);
    }
}

__attribute__((format(printf, 3, 4))) static void say_of(enum log_level level, const char *who,
                                                         const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(level, who, format, arguments);
    va_end(arguments);
}

void log_always(enum log_level level, const char *who, const char *text) {
    say_of(level, who, "%s", text);
}
