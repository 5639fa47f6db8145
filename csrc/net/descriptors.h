/* The descriptors of this library. They are above 2, so that what a program writes to a stdin, stdout or
 * stderr that was closed does not go into our connections, and what it opens as these is not ours. A child
 * that is forked has none of them: else it would keep its parent's connections and port, and nobody could see
 * that the parent has died. (Programs that a child executes have none either: all are close-on-exec.) Any
 * thread. */
#ifndef PCCL_NET_DESCRIPTORS_H
#define PCCL_NET_DESCRIPTORS_H

#include <stdbool.h>
#include <stdint.h>

/* The descriptor that a system call has just made (close-on-exec), as ours; or -errno if it has failed:
 *     int fd = DESCRIPTOR(socket(...));
 * A fork in another thread comes before or after all of it. */
#define DESCRIPTOR(call) (descriptors_begin(), descriptors_end(call))
void descriptors_begin(void);
int descriptors_end(int fd);

/* Closes one of ours. A socket is shut down first, so that its other end knows even if somebody else has a
 * copy. */
void descriptor_close(int fd);

/* How many processes this one is forked away from the first one that used the library. What was made
 * at another count has neither threads nor descriptors here. */
uint32_t descriptors_forks(void);
#define FORKED_TEXT(what)                                                                                    \
    "this " what " belongs to the process that this one was forked from: make a new one here"

/* Descriptors are out: at this process (EMFILE), or at this machine (ENFILE). `error` as in -errno. */
bool descriptors_are_out(int error);
/* Raises the soft limit of this process to its hard limit, or to MAX_RAISED_DESCRIPTORS. It is raised once:
 * who lowers it later means it. */
void descriptors_raise_limit(void);

enum { DESCRIPTORS_TEXT_BYTES = 256 };
/* As strerror(); of a shortage it says where, the limit, and what to do. `error` as in -errno. */
const char *descriptors_error_text(int error, char text[DESCRIPTORS_TEXT_BYTES]);

#endif
