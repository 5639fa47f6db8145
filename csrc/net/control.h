/* One control connection: bytes of a non-blocking socket <-> messages. Used by the master's loop and
 * by the net thread of a peer; only the thread that owns it may touch it, and no call blocks.
 *
 * In a loop with level-triggered readiness:
 *   readable: control_receive() once, then control_next() until it gives no message;
 *   writable, or after some control_send(): control_flush(); wait for writability while
 *   control_unsent() > 0.
 * One read per turn keeps a busy connection from starving the others; what it leaves in the kernel
 * makes the socket readable again. Idle connections hold a few hundred bytes. */
#ifndef PCCL_NET_CONTROL_H
#define PCCL_NET_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/message.h"

enum { CONTROL_REASON_BYTES = 96 };

struct control_buffer {
    uint8_t *bytes; /* owned, malloc; NULL while empty and idle */
    size_t begin, end, capacity;
};

struct control {
    int fd;       /* owned; -1 when there is none */
    bool vouched; /* messages may be as long as MAX_MESSAGE_BYTES */
    bool failed;  /* `reason` says why; only control_free() is left to do */
    struct control_buffer inbox, outbox;
    char reason[CONTROL_REASON_BYTES];
};

/* Takes over `fd`: a connected socket, or one that still connects (flush nothing until it has). */
void control_init(struct control *control, int fd);
/* Closes the socket, if there is one, and frees everything. May be called again. */
void control_free(struct control *control);
/* From now on, messages may be longer than MAX_GREETING_BYTES: the other side has greeted properly. */
void control_vouch(struct control *control);

/* Reads once. False if the connection has failed or was closed by the other side: see `reason`; messages
 * that arrived before that have been given by control_next() already. */
bool control_receive(struct control *control);

enum control_next {
    CONTROL_MESSAGE, /* `message` is written */
    CONTROL_NOTHING, /* no whole message has arrived yet */
    CONTROL_BAD,     /* what arrived is no message of ours: see `reason` */
};
/* Takes the next message out of what has been read. `message` belongs to the caller; its ~50 KiB are
 * touched only where the message has something to say. */
enum control_next control_next(struct control *control, struct message *message);

/* Queues `message`. False if more than MAX_OUTBOX_BYTES would wait, or memory is out: see `reason`. */
bool control_send(struct control *control, const struct message *message);
/* Writes what the socket takes now. False if the connection has failed: see `reason`. */
bool control_flush(struct control *control);
/* Bytes that wait to be written. */
size_t control_unsent(const struct control *control);

/* Nothing more will be sent: ends the sending direction, so that the other side reads what was sent and
 * then the end. Closing at once instead could destroy it while it is under way. Flush before this. */
void control_finish(struct control *control);
/* Reads once and throws it away. False when the other side has closed too, or the connection failed. */
bool control_drain(struct control *control);

#endif
