/* A byte stream, both ways, between two processes of one machine, through memory that both map: a ring buffer
 * for each direction. It carries what a TCP connection would, without the kernel. A socket goes with it,
 * which tells when the other end is gone, and over which each end wakes the other: the bell.
 *
 * One end creates the memory and passes its descriptor on; the other one opens that. Each end may be read by
 * one thread and written to by another. What the other end has written into the memory is checked before it
 * is used: bytes are copied out once and checked after that, and no index of the other one leads out of a
 * ring. */
#ifndef PCCL_NET_CHANNEL_H
#define PCCL_NET_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct channel_memory;
struct iovec;

enum { CHANNEL_BYTES = 256 * 1024 }; /* that fit into one direction */

/* All zero: not open. */
struct channel {
    struct channel_memory *memory; /* mapped; NULL: not open */
    uint8_t end;                   /* 0: who created it */
    int bell;                      /* the socket, borrowed */
    uint64_t written, read;        /* by this end: the copies in `memory` are for the other one */
    bool awaits;                   /* it was asked for a bell */
};

/* Returns the memory's descriptor, for the other end (the caller's to close), or a negative errno value. */
int channel_create(struct channel *channel, int bell);
/* 0, or a negative errno value: -EINVAL if `memory` is no such memory. `memory` remains the caller's. */
int channel_open(struct channel *channel, int bell, int memory);
/* Does nothing if it is not open. */
void channel_close(struct channel *channel);

/* As readv() and writev() on a non-blocking socket: the number of bytes, or -EAGAIN if there are none or no
 * room, or -EPROTO if the other end has left nonsense in the memory. */
ssize_t channel_read(struct channel *channel, const struct iovec *pieces, int count);
ssize_t channel_write(struct channel *channel, const struct iovec *pieces, int count);

/* How many bytes wait to be read. */
size_t channel_waiting(const struct channel *channel);
/* It is worth trying to read, or to write. */
bool channel_has_input(const struct channel *channel);
bool channel_has_room(const struct channel *channel);

/* Before this end sleeps: the bell is to ring when there is input, if `input`, or room, if `room`. What has
 * come until then is to be looked for after that. */
void channel_await(struct channel *channel, bool input, bool room);
/* This end is awake: no bell is needed. */
void channel_awake(struct channel *channel);
/* Takes what the bell has rung off the socket. False if there may be more, as only a hostile end can cause.
 */
bool channel_quiet(const struct channel *channel);

#endif
