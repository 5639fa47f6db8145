#include "wire/frame.h"

#include "data/crc32c.h"
#include "wire/cursor.h"
#include "wire/descriptor.h"

enum { CRC_BYTES = 4 };

static bool has_descriptor(const struct frame *frame) {
    return frame->type == FRAME_GRANT || frame->type == FRAME_CALLED || frame->type == FRAME_DATA;
}

static void header(struct cursor *cursor, struct frame *frame) {
    cursor_u8(cursor, &frame->type);
    cursor_require(cursor, frame->type >= FRAME_GRANT && frame->type < FRAME_TYPE_END);
    bool data = frame->type == FRAME_DATA;
    cursor_u8(cursor, &frame->flags);
    cursor_require(cursor, frame->flags == 0 || (data && frame->flags == FRAME_EAGER));
    cursor_u16(cursor, &frame->step);
    cursor_u32(cursor, &frame->chunk);
    cursor_u32(cursor, &frame->payload_bytes);
    cursor_require(cursor, data ? frame->payload_bytes >= 1 && frame->payload_bytes <= MAX_CHUNK_BYTES
                                : frame->payload_bytes == 0);
    cursor_u32(cursor, &frame->credit);
    cursor_u64(cursor, &frame->epoch);
    cursor_u64(cursor, &frame->tag);
    cursor_u64(cursor, &frame->commits_seen);
    cursor_u32(cursor, &frame->grant);
    if (has_descriptor(frame)) {
        cursor_descriptor(cursor, &frame->descriptor);
    } else {
        static const uint8_t zeros[DESCRIPTOR_BYTES];
        cursor_constant(cursor, zeros, sizeof zeros);
    }
}

/* The CRC32C of everything before it, at the end of a header. */
static void append_crc(struct cursor *cursor, uint8_t *bytes) {
    uint32_t crc = crc32c(bytes, cursor->at);
    cursor_u32(cursor, &crc);
    CHECK(!cursor->failed && cursor->at == cursor->size);
}

static bool crc_matches(const uint8_t *bytes, size_t size) {
    struct cursor cursor = cursor_read(bytes + size - CRC_BYTES, CRC_BYTES);
    uint32_t crc = 0;
    cursor_u32(&cursor, &crc);
    return crc == crc32c(bytes, size - CRC_BYTES);
}

void frame_encode(const struct frame *frame, uint8_t bytes[FRAME_HEADER_BYTES]) {
    struct cursor cursor = cursor_write(bytes, FRAME_HEADER_BYTES);
    header(&cursor, (struct frame *)frame); /* a writing cursor changes nothing in it */
    append_crc(&cursor, bytes);
}

bool frame_decode(const uint8_t bytes[FRAME_HEADER_BYTES], struct frame *frame) {
    if (!crc_matches(bytes, FRAME_HEADER_BYTES)) {
        return false;
    }
    memset(frame, 0, sizeof *frame);
    struct cursor cursor = cursor_read(bytes, FRAME_HEADER_BYTES - CRC_BYTES);
    header(&cursor, frame);
    cursor_end(&cursor);
    return !cursor.failed;
}

/* The two marks of a trailer differ in every bit, so that no small damage turns one into the other. */
static const uint8_t mark_valid[4] = {0x5a, 0xc3, 0x96, 0x0f};
static const uint8_t mark_cancelled[4] = {0xa5, 0x3c, 0x69, 0xf0};

void frame_trailer_encode(const struct frame_trailer *trailer, uint8_t bytes[FRAME_TRAILER_BYTES]) {
    struct cursor cursor = cursor_write(bytes, FRAME_TRAILER_BYTES);
    uint32_t crc = trailer->crc32c;
    cursor_u32(&cursor, &crc);
    cursor_constant(&cursor, trailer->cancelled ? mark_cancelled : mark_valid, sizeof mark_valid);
}

bool frame_trailer_decode(const uint8_t bytes[FRAME_TRAILER_BYTES], struct frame_trailer *trailer) {
    struct cursor cursor = cursor_read(bytes, FRAME_TRAILER_BYTES);
    uint8_t mark[sizeof mark_valid];
    cursor_u32(&cursor, &trailer->crc32c);
    cursor_bytes(&cursor, mark, sizeof mark);
    trailer->cancelled = memcmp(mark, mark_cancelled, sizeof mark) == 0;
    return trailer->cancelled || memcmp(mark, mark_valid, sizeof mark) == 0;
}

static const uint8_t greeting_magic[8] = {'P', 'C', 'C', 'L', 0, 'l', 'n', 'k'};

static void greeting_fields(struct cursor *cursor, struct link_greeting *greeting) {
    static const uint8_t reserved[14];
    uint16_t version = PROTOCOL_VERSION;
    cursor_constant(cursor, greeting_magic, sizeof greeting_magic);
    cursor_u16(cursor, &version);
    cursor_require(cursor, version == PROTOCOL_VERSION);
    cursor_u16(cursor, &greeting->stream);
    cursor_u16(cursor, &greeting->streams);
    cursor_require(cursor, greeting->streams <= MAX_STREAMS && greeting->stream < greeting->streams);
    cursor_id(cursor, &greeting->run);
    cursor_id(cursor, &greeting->key);
    cursor_id(cursor, &greeting->from);
    cursor_id(cursor, &greeting->to);
    cursor_constant(cursor, reserved, sizeof reserved);
}

void link_greeting_encode(const struct link_greeting *greeting, uint8_t bytes[LINK_GREETING_BYTES]) {
    struct cursor cursor = cursor_write(bytes, LINK_GREETING_BYTES);
    greeting_fields(&cursor, (struct link_greeting *)greeting); /* unchanged by a writing cursor */
    append_crc(&cursor, bytes);
}

bool link_greeting_decode(const uint8_t bytes[LINK_GREETING_BYTES], struct link_greeting *greeting) {
    if (!crc_matches(bytes, LINK_GREETING_BYTES)) {
        return false;
    }
    struct cursor cursor = cursor_read(bytes, LINK_GREETING_BYTES - CRC_BYTES);
    greeting_fields(&cursor, greeting);
    cursor_end(&cursor);
    return !cursor.failed;
}
