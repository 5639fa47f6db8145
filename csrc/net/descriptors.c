#define _GNU_SOURCE
#include "net/descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/limits.h"

enum { WORD_BITS = 64, WORDS = MAX_DESCRIPTORS / WORD_BITS, FORK_TRIES = 1000 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* of `ours` and `words_used` */
static uint64_t ours[WORDS];                              /* a bit for each descriptor */
static int words_used;
static bool forking_with_mutex;
static _Atomic uint32_t forks;

/* ---- fork ---- */

/* Whoever holds the mutex holds it for some system calls. Only a fork in a handler of a signal that has
 * interrupted him could wait in vain: it goes on. */
static void before_fork(void) {
    const struct timespec pause = {.tv_nsec = 1000000};
    forking_with_mutex = false;
    for (int i = 0; i < FORK_TRIES && !forking_with_mutex; i++) {
        if (i > 0) {
            nanosleep(&pause, NULL);
        }
        forking_with_mutex = pthread_mutex_trylock(&mutex) == 0;
    }
}

static void after_fork_in_parent(void) {
    if (forking_with_mutex) {
        pthread_mutex_unlock(&mutex);
    }
}

/* Nothing here but what a signal handler may do. The sockets are not shut down: they are the parent's. */
static void after_fork_in_child(void) {
    for (int word = 0; word < words_used; word++) {
        for (int bit = 0; ours[word] != 0 && bit < WORD_BITS; bit++) {
            if ((ours[word] >> bit & 1) != 0) {
                close(word * WORD_BITS + bit);
            }
        }
        ours[word] = 0;
    }
    words_used = 0;
    atomic_fetch_add(&forks, 1);
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    mutex = fresh;
}

static void watch_forks(void) {
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

uint32_t descriptors_forks(void) {
    return atomic_load(&forks);
}

/* ---- open and close ---- */

void descriptors_begin(void) {
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&mutex);
}

static int above_standard(int fd) {
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int error = errno;
    close(fd);
    return moved >= 0 ? moved : -error;
}

int descriptors_end(int fd) {
    int result = fd >= 0 ? fd : -errno;
    if (result >= 0 && result <= STDERR_FILENO) {
        result = above_standard(result);
    }
    if (result >= 0 && result < MAX_DESCRIPTORS) {
        int word = result / WORD_BITS;
        ours[word] |= UINT64_C(1) << result % WORD_BITS;
        words_used = words_used > word ? words_used : word + 1;
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

void descriptor_close(int fd) {
    int saved_errno = errno;
    pthread_mutex_lock(&mutex);
    if (fd < MAX_DESCRIPTORS) {
        ours[fd / WORD_BITS] &= ~(UINT64_C(1) << fd % WORD_BITS);
    }
    shutdown(fd, SHUT_RDWR);
    close(fd);
    pthread_mutex_unlock(&mutex);
    errno = saved_errno;
}

/* ---- the limit ---- */

bool descriptors_are_out(int error) {
    return error == -EMFILE || error == -ENFILE;
}

static void raise_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return;
    }
    rlim_t most = limit.rlim_max < MAX_RAISED_DESCRIPTORS ? limit.rlim_max : MAX_RAISED_DESCRIPTORS;
    if (limit.rlim_cur < most) {
        limit.rlim_cur = most;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

void descriptors_raise_limit(void) {
    static pthread_once_t raised = PTHREAD_ONCE_INIT;
    pthread_once(&raised, raise_limit);
}

const char *descriptors_error_text(int error, char text[DESCRIPTORS_TEXT_BYTES]) {
    struct rlimit limit;
    if (error == -EMFILE && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        snprintf(
            text, DESCRIPTORS_TEXT_BYTES,
            "the process has no file descriptor left (its limit is %llu, of at most %llu): close files, or "
            "raise the limit with `ulimit -n`",
            (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    } else if (!descriptors_are_out(error)) {
        snprintf(text, DESCRIPTORS_TEXT_BYTES, "%s", strerror(-error));
    } else {
        snprintf(text, DESCRIPTORS_TEXT_BYTES,
                 "the machine has no file descriptor left: close files, or raise the sysctl fs.file-max");
    }
    return text;
}
