#define _GNU_SOURCE
#include "net/control.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "net/descriptors.h"

enum { FIRST_BUFFER_BYTES = 512 };

static size_t held(const struct control_buffer *buffer) {
    return buffer->end - buffer->begin;
}

static void buffer_free(struct control_buffer *buffer) {
    free(buffer->bytes);
    *buffer = (struct control_buffer){0};
}

/* `count` bytes at the front are used up. An empty buffer is freed: most connections are idle, and
 * one malloc per message is nothing beside its system calls. */
static void buffer_consume(struct control_buffer *buffer, size_t count) {
    buffer->begin += count;
    if (held(buffer) == 0) {
        buffer_free(buffer);
    }
}

/* Makes room for at least one byte more, by moving or by doubling up to `limit` bytes. */
static bool buffer_grow(struct control_buffer *buffer, size_t limit) {
    if (buffer->begin > 0) {
        memmove(buffer->bytes, buffer->bytes + buffer->begin, held(buffer));
        buffer->end -= buffer->begin;
        buffer->begin = 0;
        if (buffer->end <= buffer->capacity / 2) {
            return true;
        }
    }
    if (buffer->capacity >= limit) {
        return buffer->end < buffer->capacity;
    }
    size_t capacity = buffer->capacity > 0 ? 2 * buffer->capacity : FIRST_BUFFER_BYTES;
    capacity = capacity < limit ? capacity : limit;
    uint8_t *bytes = realloc(buffer->bytes, capacity);
    if (bytes == NULL) {
        return false;
    }
    buffer->bytes = bytes;
    buffer->capacity = capacity;
    return true;
}

static size_t message_limit(const struct control *control) {
    return control->vouched ? MAX_MESSAGE_BYTES : MAX_GREETING_BYTES;
}

/* The first reason stays: what follows are consequences. */
__attribute__((format(printf, 2, 3))) static void fail(struct control *control, const char *format, ...) {
    if (control->failed) {
        return;
    }
    control->failed = true;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(control->reason, sizeof control->reason, format, arguments);
    va_end(arguments);
}

static void fail_with_errno(struct control *control, int error) {
    fail(control, "the connection broke (%s)", strerror(error));
}

static bool would_block(int error) {
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

void control_init(struct control *control, int fd) {
    *control = (struct control){.fd = fd};
}

void control_free(struct control *control) {
    if (control->fd >= 0) {
        descriptor_close(control->fd);
    }
    buffer_free(&control->inbox);
    buffer_free(&control->outbox);
    control->fd = -1;
    control->failed = true;
}

void control_vouch(struct control *control) {
    control->vouched = true;
}

bool control_receive(struct control *control) {
    struct control_buffer *inbox = &control->inbox;
    if (inbox->end == inbox->capacity && !buffer_grow(inbox, message_limit(control))) {
        /* control_next() would have found a message or refused its length, so it is the memory. */
        fail(control, "out of memory");
    }
    if (control->failed) {
        return false;
    }
    ssize_t count = recv(control->fd, inbox->bytes + inbox->end, inbox->capacity - inbox->end, MSG_DONTWAIT);
    if (count > 0) {
        inbox->end += (size_t)count;
    } else if (count == 0) {
        fail(control, held(inbox) > 0 ? "the connection was closed in the middle of a message"
                                      : "the connection was closed by the other side");
    } else if (!would_block(errno)) {
        fail_with_errno(control, errno);
    }
    if (held(inbox) == 0) {
        buffer_free(inbox);
    }
    return !control->failed;
}

enum control_next control_next(struct control *control, struct message *message) {
    struct control_buffer *inbox = &control->inbox;
    if (control->failed || held(inbox) == 0) {
        return CONTROL_NOTHING;
    }
    size_t used = 0;
    switch (
        message_decode(inbox->bytes + inbox->begin, held(inbox), message_limit(control), message, &used)) {
    case DECODE_OK:
        buffer_consume(inbox, used);
        return CONTROL_MESSAGE;
    case DECODE_INCOMPLETE:
        return CONTROL_NOTHING;
    case DECODE_BAD:
        break;
    }
    fail(control, "it sent bytes that are not a pccl message");
    return CONTROL_BAD;
}

bool control_send(struct control *control, const struct message *message) {
    struct control_buffer *outbox = &control->outbox;
    if (control->failed) {
        return false;
    }
    for (;;) {
        size_t count = message_encode(message, outbox->bytes + outbox->end, outbox->capacity - outbox->end);
        if (count > 0) {
            outbox->end += count;
            return true;
        }
        if (outbox->capacity == MAX_OUTBOX_BYTES && outbox->begin == 0) {
            fail(control, "it does not read: %zu bytes wait to be sent", held(outbox));
            return false;
        }
        if (!buffer_grow(outbox, MAX_OUTBOX_BYTES)) {
            fail(control, "out of memory");
            return false;
        }
    }
}

bool control_flush(struct control *control) {
    struct control_buffer *outbox = &control->outbox;
    while (!control->failed && held(outbox) > 0) {
        ssize_t count =
            send(control->fd, outbox->bytes + outbox->begin, held(outbox), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count >= 0) {
            buffer_consume(outbox, (size_t)count);
        } else if (errno == EINTR) {
            continue;
        } else if (would_block(errno)) {
            break;
        } else {
            fail_with_errno(control, errno);
        }
    }
    return !control->failed;
}

size_t control_unsent(const struct control *control) {
    return held(&control->outbox);
}

void control_finish(struct control *control) {
    if (!control->failed && shutdown(control->fd, SHUT_WR) != 0) {
        fail_with_errno(control, errno);
    }
}

bool control_drain(struct control *control) {
    uint8_t discarded[4096];
    if (control->failed) {
        return false;
    }
    ssize_t count = recv(control->fd, discarded, sizeof discarded, MSG_DONTWAIT);
    if (count == 0) {
        fail(control, "the connection was closed by the other side");
    } else if (count < 0 && !would_block(errno)) {
        fail_with_errno(control, errno);
    }
    return !control->failed;
}
