/* What travels on the streams of a link: one greeting each way, then frames.
 *
 * A frame is a 64-byte header with a CRC32C of its own, then, for FRAME_DATA, the payload and an
 * 8-byte trailer. The trailer and not the header holds the payload's CRC32C, so that a sender whose op
 * is aborted in the middle of a payload can fill up with zeros and mark the frame as cancelled. */
#ifndef PCCL_WIRE_FRAME_H
#define PCCL_WIRE_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/id.h"
#include "wire/message.h"

enum { FRAME_HEADER_BYTES = 64, FRAME_TRAILER_BYTES = 8, LINK_GREETING_BYTES = 96 };

enum frame_type {
    FRAME_GRANT = 1, /* receiver of data to its sender: I have called this op, send */
    FRAME_DATA,      /* one chunk of one step */
    FRAME_CREDIT,    /* `credit` alone */
    FRAME_PING,      /* I live */
    FRAME_CALLED,    /* sender of data to its receiver: I have called this op and wait for your grant */
    FRAME_TYPE_END
};

enum frame_flags {
    FRAME_EAGER = 1, /* DATA sent before a grant: counts against the link's eager window */
};

/* How a frame finds its op at the receiver. Before a grant (GRANT, CALLED, eager DATA): by (epoch, tag),
 * where `commits_seen` tells apart successive ops under one tag, by the commits before them or, with
 * NUMBERED_BIT, by their numbers; see peer_find_op() in core/peer.h. After it: DATA repeats the `grant` that
 * the receiver gave. */
struct frame {
    uint8_t type;           /* enum frame_type */
    uint8_t flags;          /* enum frame_flags */
    uint16_t step;          /* DATA: of the op's schedule */
    uint32_t chunk;         /* DATA: within the segment that this step moves */
    uint32_t payload_bytes; /* DATA: 1 to MAX_CHUNK_BYTES; else 0 */
    uint32_t credit;        /* bytes of the eager window given back */
    uint64_t epoch;
    uint64_t tag;
    uint64_t commits_seen; /* GRANT, CALLED, eager DATA: ops committed in this epoch before the call */
    uint32_t grant;        /* GRANT: the number that granted DATA must bear; granted DATA: that number */
    struct op_descriptor descriptor; /* GRANT, CALLED, DATA */
};

void frame_encode(const struct frame *frame, uint8_t bytes[FRAME_HEADER_BYTES]);
/* False if the header's CRC, an enum or a length is wrong: close the link. */
bool frame_decode(const uint8_t bytes[FRAME_HEADER_BYTES], struct frame *frame);

struct frame_trailer {
    uint32_t crc32c;
    bool cancelled; /* the payload is not to be used */
};

void frame_trailer_encode(const struct frame_trailer *trailer, uint8_t bytes[FRAME_TRAILER_BYTES]);
bool frame_trailer_decode(const uint8_t bytes[FRAME_TRAILER_BYTES], struct frame_trailer *trailer);

/* The first bytes of a stream, from the opener; the acceptor answers with the same, its own id as
 * `from`. It proves by the key that both were put together by the same master. */
struct link_greeting {
    struct id run, key, from, to;
    uint16_t stream, streams;
};

void link_greeting_encode(const struct link_greeting *greeting, uint8_t bytes[LINK_GREETING_BYTES]);
/* False if it is no greeting of this protocol version. */
bool link_greeting_decode(const uint8_t bytes[LINK_GREETING_BYTES], struct link_greeting *greeting);

#endif
