#define _GNU_SOURCE
#include "net/stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/check.h"
#include "data/crc32c.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/engine.h"
#include "net/link.h"

enum {
    READ_TURN_BYTES = 256 * 1024,
    /* Behind the rest of a long payload only its trailer and the next header are read into the staging
     * buffer: what follows them had better go straight into its place. */
    LONG_PAYLOAD_BYTES = 16 * 1024,
    SCRATCH_ALIGNMENT = 64,
};

/* Never written: what a cancelled frame is filled up with. Costs no memory, being all zero. */
static uint8_t zeros[MAX_CHUNK_BYTES];

void stream_init(struct stream *stream, struct link *link, uint16_t index) {
    memset(stream, 0, sizeof *stream);
    stream->link = link;
    stream->index = index;
    poll_item_init(&stream->item, PEER_ITEM_STREAM);
}

void stream_close(struct stream *stream) {
    if (stream->item.fd >= 0) {
        int fd = stream->item.fd;
        poller_remove(stream->link->set->poller, &stream->item);
        descriptor_close(fd);
    }
    channel_close(&stream->channel);
    free(stream->in.held);
    stream->in.held = NULL;
    stream->in.op = NULL;
    stream->in.busy = false;
    stream->in.begin = 0;
    stream->in.end = 0;
    stream->out.count = 0;
    stream->state = STREAM_CLOSED;
}

void stream_free(struct stream *stream) {
    stream_close(stream);
    free(stream->in.scratch);
    stream->in.scratch = NULL;
}

/* See poller_look_too(). */
static bool look_at_channel(struct poll_item *item, bool sleeps) {
    struct stream *stream = LIST_ENTRY(item, struct stream, item);
    struct channel *channel = &stream->channel;
    bool input = !item->readable, room = !item->writable;
    if (sleeps && item->rung) {
        item->rung = !channel_quiet(channel);
    }
    if (sleeps) {
        channel_await(channel, input, room);
    } else {
        channel_awake(channel);
    }
    item->readable = item->readable || channel_has_input(channel);
    item->writable = item->writable || channel_has_room(channel);
    return (input && item->readable) || (room && item->writable);
}

void stream_look_at_channel(struct stream *stream) {
    poller_look_too(stream->link->set->poller, &stream->item, look_at_channel);
}

size_t stream_waiting(const struct stream *stream) {
    int waiting = 0;
    if (stream->channel.memory != NULL) {
        return channel_waiting(&stream->channel);
    }
    return ioctl(stream->item.fd, FIONREAD, &waiting) == 0 && waiting > 0 ? (size_t)waiting : 0;
}

uint8_t *stream_scratch(struct stream *stream, uint32_t bytes) {
    struct stream_in *in = &stream->in;
    if (bytes > in->scratch_bytes) {
        free(in->scratch);
        uint32_t rounded = (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
        in->scratch = aligned_alloc(SCRATCH_ALIGNMENT, rounded);
        in->scratch_bytes = in->scratch == NULL ? 0 : rounded;
    }
    return in->scratch;
}

void stream_forget_op(struct stream *stream, const struct op *op) {
    struct stream_in *in = &stream->in;
    if (in->busy && in->op == op) {
        in->sink = SINK_DISCARD;
        in->op = NULL;
    }
    size_t begin = 0;
    for (uint32_t i = 0; i < stream->out.count; i++) {
        struct out_frame *frame = &stream->out.frames[i];
        size_t trailer_begin = begin + FRAME_HEADER_BYTES + frame->payload_bytes;
        if (frame->op == op) {
            /* Once the trailer is on its way the frame is whole, and half of another one would spoil it. */
            if (stream->out.sent <= trailer_begin) {
                struct frame_trailer trailer = {.cancelled = true};
                frame_trailer_encode(&trailer, frame->trailer);
            }
            frame->payload = zeros;
            frame->op = NULL;
        }
        begin = trailer_begin + (frame->payload_bytes > 0 ? FRAME_TRAILER_BYTES : 0);
    }
}

/* What arrived can't have been sent: nothing on this link is to be trusted. */
static bool fail(struct stream *stream, const char *what) {
    return link_fail(stream->link, "stream %u of %u: %s", stream->index + 1u,
                     (unsigned)stream->link->stream_count, what);
}

/* ---- in ---- */

static uint32_t payload_left(const struct stream_in *in) {
    return in->busy ? in->frame.payload_bytes - in->received : 0;
}

/* The payload's next `size` bytes stand at `bytes`: in their place if that is where they were read to. */
static void take_payload(struct stream_in *in, const uint8_t *bytes, uint32_t size) {
    if (in->unopened) {
        engine_open_payload(in);
    }
    in->crc = crc32c_extend(in->crc, bytes, size);
    if (in->sink != SINK_DISCARD && bytes != in->payload + in->received) {
        memcpy(in->payload + in->received, bytes, size);
    }
    in->received += size;
}

static bool take_header(struct stream *stream) {
    struct engine *engine = stream->link->set->engine;
    struct stream_in *in = &stream->in;
    if (!frame_decode(in->staging + in->begin, &in->frame)) {
        return fail(stream, "a frame arrived damaged");
    }
    in->begin += FRAME_HEADER_BYTES;
    if (in->frame.type != FRAME_DATA) {
        return engine_control_frame(engine, stream->link, &in->frame);
    }
    in->received = 0;
    in->crc = 0;
    in->busy = true;
    return engine_data_begin(engine, stream);
}

static bool take_trailer(struct stream *stream) {
    struct stream_in *in = &stream->in;
    struct frame_trailer trailer;
    if (!frame_trailer_decode(in->staging + in->begin, &trailer)) {
        return fail(stream, "the end of a frame arrived damaged");
    }
    in->begin += FRAME_TRAILER_BYTES;
    if (!trailer.cancelled && trailer.crc32c != in->crc) {
        return fail(stream, "data arrived damaged (checksum)");
    }
    in->busy = false;
    return engine_data_end(stream->link->set->engine, stream, trailer.cancelled);
}

/* Works off what is in the staging buffer. */
static bool parse(struct stream *stream) {
    struct stream_in *in = &stream->in;
    for (;;) {
        if (!in->busy) {
            if (in->end - in->begin < FRAME_HEADER_BYTES) {
                break;
            }
            if (!take_header(stream)) {
                return false;
            }
            continue;
        }
        uint32_t size = in->end - in->begin;
        size = size < payload_left(in) ? size : payload_left(in);
        if (size > 0) {
            take_payload(in, in->staging + in->begin, size);
            in->begin += size;
        }
        if (payload_left(in) > 0 || in->end - in->begin < FRAME_TRAILER_BYTES) {
            break;
        }
        if (!take_trailer(stream)) {
            return false;
        }
    }
    if (in->begin == in->end) {
        in->begin = 0;
        in->end = 0;
    }
    return true;
}

/* Where the next bytes go: the rest of the payload, then the staging buffer. */
static int plan_read(struct stream *stream, struct iovec where[2]) {
    struct stream_in *in = &stream->in;
    uint32_t left = payload_left(in);
    uint32_t direct = left;
    int count = 0;
    if (in->begin > 0) {
        memmove(in->staging, in->staging + in->begin, in->end - in->begin);
        in->end -= in->begin;
        in->begin = 0;
    }
    if (left > 0) {
        CHECK(in->end == 0);
        if (in->unopened) {
            engine_open_payload(in);
        }
        uint8_t *to = in->payload + in->received;
        if (in->sink == SINK_DISCARD) {
            to = stream->link->set->engine->trash;
            direct = left < TRASH_BYTES ? left : TRASH_BYTES;
        }
        where[count++] = (struct iovec){.iov_base = to, .iov_len = direct};
    }
    if (direct == left) {
        size_t room = STAGING_BYTES - in->end;
        if (left >= LONG_PAYLOAD_BYTES) {
            room = FRAME_TRAILER_BYTES + FRAME_HEADER_BYTES;
        }
        where[count++] = (struct iovec){.iov_base = in->staging + in->end, .iov_len = room};
    }
    return count;
}

/* What is there: the number of bytes, or 0 at the end of the connection, or a negative errno value. */
static ssize_t receive(struct stream *stream, const struct iovec *where, int count) {
    if (stream->channel.memory != NULL) {
        ssize_t size = channel_read(&stream->channel, where, count);
        return size == -EAGAIN && stream->item.hangup ? 0 : size;
    }
    ssize_t size;
    do {
        size = readv(stream->item.fd, where, count);
    } while (size < 0 && errno == EINTR);
    return size < 0 ? -errno : size;
}

/* One call of the system. Returns the number of bytes, or 0 at the end of the connection, or a negative errno
 * value; -EAGAIN: there is nothing now. Touches the stream and its payload alone. */
static ssize_t read_some(struct stream *stream) {
    struct poll_item *item = &stream->item;
    struct stream_in *in = &stream->in;
    struct iovec where[2];
    int count = plan_read(stream, where);
    size_t wanted = where[0].iov_len + (count == 2 ? where[1].iov_len : 0);
    ssize_t size = receive(stream, where, count);
    if (size == -EAGAIN) {
        item->readable = false;
    }
    if (size <= 0) {
        return size;
    }
    if ((size_t)size < wanted && !item->hangup) {
        item->readable = false; /* the kernel will say when there is more */
    }
    size_t rest = (size_t)size;
    if (payload_left(in) > 0) {
        size_t direct = rest < where[0].iov_len ? rest : where[0].iov_len;
        take_payload(in, where[0].iov_base, (uint32_t)direct);
        rest -= direct;
    }
    in->end += (uint32_t)rest;
    return size;
}

/* What read_some() has returned. False if the link has failed. */
static bool judge_read(struct stream *stream, ssize_t size) {
    if (size == -EAGAIN) {
        return true;
    }
    if (size <= 0) {
        return link_stream_broken(stream, size < 0 ? strerror((int)-size) : "the other side closed it");
    }
    stream->link->last_heard_ns = clock_now_ns();
    stream->link->suspect = false;
    return true;
}

bool stream_read(struct stream *stream) {
    ssize_t total = 0;
    while (stream->item.readable && total < READ_TURN_BYTES) {
        ssize_t size = read_some(stream);
        if (!judge_read(stream, size)) {
            return false;
        }
        total += size;
        if (size > 0 && !parse(stream)) {
            return false;
        }
    }
    return true;
}

bool stream_read_begin(struct stream *stream) {
    return stream->in.busy || !stream->item.readable ||
           (judge_read(stream, read_some(stream)) && parse(stream));
}

/* The payload and its trailer have arrived, and may be used. */
static bool is_intact(const struct stream_in *in) {
    struct frame_trailer trailer;
    return payload_left(in) == 0 && in->end - in->begin >= FRAME_TRAILER_BYTES &&
           frame_trailer_decode(in->staging + in->begin, &trailer) && !trailer.cancelled &&
           trailer.crc32c == in->crc;
}

void stream_read_share(struct stream *stream) {
    struct stream_in *in = &stream->in;
    in->outcome = -EAGAIN;
    while (stream->item.readable && (payload_left(in) > 0 || in->end - in->begin < FRAME_TRAILER_BYTES)) {
        ssize_t size = read_some(stream);
        if (size == -EAGAIN) {
            break;
        }
        in->outcome = size;
        if (size <= 0) {
            return;
        }
    }
    if (is_intact(in)) {
        engine_place_payload(in);
        in->placed = true;
    }
}

bool stream_read_end(struct stream *stream) {
    return judge_read(stream, stream->in.outcome) && parse(stream);
}

/* ---- out ---- */

struct out_frame *stream_add_frame(struct stream *stream, const struct frame *frame, const uint8_t *payload,
                                   struct op *op) {
    struct stream_out *out = &stream->out;
    CHECK(out->count < BATCH_FRAMES && out->sent == 0);
    struct out_frame *place = &out->frames[out->count++];
    frame_encode(frame, place->header);
    place->payload = payload;
    place->payload_bytes = frame->payload_bytes;
    place->op = op;
    out->bytes += FRAME_HEADER_BYTES;
    if (frame->payload_bytes > 0) {
        out->bytes += frame->payload_bytes + FRAME_TRAILER_BYTES;
    }
    return place;
}

/* Adds the part of a piece that is not among the first *skip bytes. */
static int add_piece(struct iovec *pieces, int count, const uint8_t *bytes, size_t size, size_t *skip) {
    if (*skip >= size) {
        *skip -= size;
        return count;
    }
    /* iovec is for both directions; sendmsg() does not write to it */
    pieces[count] = (struct iovec){.iov_base = (void *)(uintptr_t)(bytes + *skip), .iov_len = size - *skip};
    *skip = 0;
    return count + 1;
}

static int unsent_pieces(const struct stream_out *out, struct iovec *pieces) {
    size_t skip = out->sent;
    int count = 0;
    for (uint32_t i = 0; i < out->count; i++) {
        const struct out_frame *frame = &out->frames[i];
        count = add_piece(pieces, count, frame->header, FRAME_HEADER_BYTES, &skip);
        if (frame->payload_bytes > 0) {
            count = add_piece(pieces, count, frame->payload, frame->payload_bytes, &skip);
            count = add_piece(pieces, count, frame->trailer, FRAME_TRAILER_BYTES, &skip);
        }
    }
    return count;
}

/* The number of bytes that were taken, or a negative errno value. */
static ssize_t transmit(struct stream *stream, struct iovec *pieces, int count) {
    if (stream->channel.memory != NULL) {
        return channel_write(&stream->channel, pieces, count);
    }
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
    ssize_t size = sendmsg(stream->item.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return size < 0 ? -errno : size;
}

/* One call of the system. Returns the number of bytes, 0 if there is no room now, or a negative errno value.
 * Touches the stream and the chunks of its batch alone. */
static ssize_t send_some(struct stream *stream) {
    struct stream_out *out = &stream->out;
    for (uint32_t i = 0; !out->prepared && i < out->count; i++) {
        engine_prepare_frame(&out->frames[i]);
    }
    out->prepared = true;
    struct iovec pieces[3 * BATCH_FRAMES];
    ssize_t size = transmit(stream, pieces, unsent_pieces(out, pieces));
    if (size == -EINTR) {
        return 0;
    }
    if (size == -EAGAIN) {
        stream->item.writable = false;
        return 0;
    }
    if (size < 0) {
        return size;
    }
    out->sent += (size_t)size;
    if (out->sent < out->bytes) {
        stream->item.writable = false; /* the kernel took what it has room for, and will say more */
    }
    return size;
}

/* What send_some() has returned. False if the link has failed. */
static bool judge_sent(struct stream *stream, ssize_t size) {
    if (size < 0) {
        return link_stream_broken(stream, strerror((int)-size));
    }
    if (size > 0) {
        stream->link->last_sent_ns = clock_now_ns();
    }
    if (stream->out.sent == stream->out.bytes) {
        engine_batch_out(stream->link->set->engine, stream);
        stream->out.count = 0;
    }
    return true;
}

bool stream_write_begin(struct stream *stream) {
    struct stream_out *out = &stream->out;
    if (!stream->item.writable || stream->state != STREAM_OPEN) {
        return false;
    }
    if (out->count == 0) {
        out->bytes = 0;
        out->sent = 0;
        out->prepared = false;
        engine_pull(stream->link->set->engine, stream);
    }
    return out->count > 0;
}

bool stream_write(struct stream *stream) {
    return !stream_write_begin(stream) || judge_sent(stream, send_some(stream));
}

void stream_write_share(struct stream *stream) {
    stream->out.outcome = send_some(stream);
}

bool stream_write_end(struct stream *stream) {
    return judge_sent(stream, stream->out.outcome);
}
