/* One connection of a link, over TCP or through memory (net/channel.h): frames in, frames out. It knows where
 * a frame begins and ends and that its bytes are intact; what they mean and where payload goes is the
 * engine's (net/engine.h).
 *
 * Writing is pulled: whenever the socket has room and the last batch is out, the engine is asked for the
 * next one, so that a chunk is bound to a stream only when that stream can carry it. */
#ifndef PCCL_NET_STREAM_H
#define PCCL_NET_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "net/channel.h"
#include "net/poller.h"
#include "wire/frame.h"

struct held_frame;
struct link;
struct op;

enum {
    STAGING_BYTES = 8 * 1024,
    BATCH_FRAMES = 8,
};

/* What a peer's loop watches (struct poll_item). */
enum peer_item {
    PEER_ITEM_WAKE,
    PEER_ITEM_CONTROL,
    PEER_ITEM_DIAL, /* that is to become the control connection */
    PEER_ITEM_LISTENER,
    PEER_ITEM_STRANGER,
    PEER_ITEM_STREAM
};

enum stream_state {
    STREAM_CLOSED,
    STREAM_WAITING, /* to connect, at `retry_ns` */
    STREAM_CONNECTING,
    STREAM_GREETING, /* the opener's greeting is sent, the answer has not come; through memory until
                        `retry_ns` */
    STREAM_OPEN,
};

/* Where the payload of the frame that is being received goes. */
enum sink {
    SINK_DISCARD,
    SINK_RESULT,  /* into the result buffer of `op` */
    SINK_SCRATCH, /* into `scratch`, to be reduced by `op` */
    SINK_HOLD,    /* into `held`: its op has not been called here yet */
};

struct stream_in {
    uint8_t staging[STAGING_BYTES]; /* headers, trailers, small payloads; bytes begin .. end are unread */
    uint32_t begin, end;
    bool busy; /* a DATA header has been taken, its payload or trailer is due */
    struct frame frame;
    enum sink sink;
    uint8_t *payload; /* where it goes as a whole; not for SINK_DISCARD */
    uint32_t received, crc;
    bool unopened;           /* engine_open_payload() is due, before the first byte is written */
    bool placed;             /* by stream_read_share(): the payload is whole, intact, and where it belongs */
    ssize_t outcome;         /* of stream_read_share(): what read_some() returned last */
    struct op *op;           /* SINK_RESULT, SINK_SCRATCH */
    struct held_frame *held; /* SINK_HOLD: owned */
    uint8_t *scratch;        /* owned; a chunk of the ops that this stream has carried */
    uint32_t scratch_bytes;
};

struct out_frame {
    uint8_t header[FRAME_HEADER_BYTES];
    uint8_t trailer[FRAME_TRAILER_BYTES];
    const uint8_t *payload; /* borrowed from the op */
    uint32_t payload_bytes; /* 0: there is no trailer either */
    struct op *op;          /* DATA; NULL once it is cancelled */
    /* For engine_prepare_frame(). */
    uint32_t segment, chunk;
    bool is_own;   /* the own part of this peer */
    bool forwards; /* it has a checksum, which it came with */
};

/* What goes out with one call of the system. */
struct stream_out {
    struct out_frame frames[BATCH_FRAMES];
    uint32_t count;
    size_t bytes, sent; /* of the batch */
    bool prepared;      /* engine_prepare_frame() has seen to its frames */
    ssize_t outcome;    /* of stream_write_share(): what send_some() returned */
};

struct stream {
    struct poll_item item;
    struct channel channel; /* open: its bytes go through memory, and the socket is the bell */
    struct link *link;
    uint16_t index;
    uint8_t state; /* enum stream_state */
    uint64_t retry_ns, retry_after_ns;
    struct stream_in in;
    struct stream_out out;
};

void stream_init(struct stream *stream, struct link *link, uint16_t index);
/* Closes the socket and forgets all that was under way; the stream may be opened again. */
void stream_close(struct stream *stream);
/* Closes it and frees its memory. */
void stream_free(struct stream *stream);

/* It has a channel, and is open: the poller looks there from now on. */
void stream_look_at_channel(struct stream *stream);
/* How many bytes are there to be read. */
size_t stream_waiting(const struct stream *stream);

/* Takes frames that have arrived, at most about a chunk, so that other streams have their turn. False if
 * the link has failed: it has said so by link_fail(). */
bool stream_read(struct stream *stream);
/* Writes the rest of the current batch, or one new batch. False likewise. */
bool stream_write(struct stream *stream);

/* The same in parts, for net/share: a data thread does the middle one, which touches nothing but the stream
 * and the bytes of its chunk. Another may be in the other direction of the same stream.
 *
 * Out: there is a batch that can be written; it is; what that means. */
bool stream_write_begin(struct stream *stream);
void stream_write_share(struct stream *stream);
bool stream_write_end(struct stream *stream);
/* In: what is there of the rest of the current chunk, and if it is whole, the chunk's arithmetic. To begin
 * with, stream_read_begin() takes a header, if none has been taken. */
bool stream_read_begin(struct stream *stream);
void stream_read_share(struct stream *stream);
bool stream_read_end(struct stream *stream);

/* Adds a frame to the batch, which must have room. Payload only with FRAME_DATA, whose trailer
 * engine_prepare_frame() fills in. */
struct out_frame *stream_add_frame(struct stream *stream, const struct frame *frame, const uint8_t *payload,
                                   struct op *op);
/* The op's buffers are not to be touched any more: what is on its way in is thrown away, what is on its
 * way out is filled up with zeros and marked as cancelled, unless its payload is out. */
void stream_forget_op(struct stream *stream, const struct op *op);
/* A buffer of `bytes`, aligned for the kernels, valid until the next call; NULL if memory is out. */
uint8_t *stream_scratch(struct stream *stream, uint32_t bytes);

#endif
