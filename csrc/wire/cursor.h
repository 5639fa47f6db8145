/* A place in a run of bytes that one description of a message both reads and writes: each cursor_ call
 * moves one field, little-endian, in the direction of the cursor, and is where all bounds are checked.
 * After a failure every further field is skipped, and reads as zero. Writing changes nothing but the
 * bytes: what is written may be constant. */
#ifndef PCCL_WIRE_CURSOR_H
#define PCCL_WIRE_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/address.h"
#include "base/check.h"
#include "base/id.h"

struct cursor {
    bool reading;
    const uint8_t *source; /* when reading */
    uint8_t *target;       /* when writing */
    size_t at, size;
    bool failed; /* reading: the bytes are no message; writing: there is too little room */
};

static inline struct cursor cursor_read(const uint8_t *bytes, size_t size) {
    return (struct cursor){.reading = true, .source = bytes, .size = size};
}

static inline struct cursor cursor_write(uint8_t *bytes, size_t capacity) {
    return (struct cursor){.target = bytes, .size = capacity};
}

/* A limit that the fields so far must keep. Bytes that break it are bad; a struct of ours that breaks it
 * is our own mistake. */
static inline void cursor_require(struct cursor *cursor, bool kept) {
    if (cursor->reading) {
        cursor->failed = cursor->failed || !kept;
    } else {
        CHECK(kept);
    }
}

static inline void cursor_bytes(struct cursor *cursor, uint8_t *bytes, size_t count) {
    if (cursor->failed || cursor->size - cursor->at < count) {
        cursor->failed = true;
        if (cursor->reading) {
            memset(bytes, 0, count);
        }
        return;
    }
    if (cursor->reading) {
        memcpy(bytes, cursor->source + cursor->at, count);
    } else {
        memcpy(cursor->target + cursor->at, bytes, count);
    }
    cursor->at += count;
}

/* `count` <= 8 bytes of *value. */
static inline void cursor_integer(struct cursor *cursor, uint64_t *value, size_t count) {
    uint8_t bytes[8] = {0};
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)(*value >> (8 * i));
    }
    cursor_bytes(cursor, bytes, count);
    if (cursor->reading) {
        *value = 0;
        for (size_t i = 0; i < count; i++) {
            *value |= (uint64_t)bytes[i] << (8 * i);
        }
    }
}

static inline void cursor_u8(struct cursor *cursor, uint8_t *value) {
    cursor_bytes(cursor, value, 1);
}

static inline void cursor_u16(struct cursor *cursor, uint16_t *value) {
    uint64_t wide = *value;
    cursor_integer(cursor, &wide, sizeof *value);
    if (cursor->reading) {
        *value = (uint16_t)wide;
    }
}

static inline void cursor_u32(struct cursor *cursor, uint32_t *value) {
    uint64_t wide = *value;
    cursor_integer(cursor, &wide, sizeof *value);
    if (cursor->reading) {
        *value = (uint32_t)wide;
    }
}

static inline void cursor_u64(struct cursor *cursor, uint64_t *value) {
    cursor_integer(cursor, value, sizeof *value);
}

static inline void cursor_bool(struct cursor *cursor, bool *value) {
    uint8_t byte = !cursor->reading && *value; /* what is read into may hold no bool yet */
    cursor_u8(cursor, &byte);
    cursor_require(cursor, byte <= 1);
    if (cursor->reading) {
        *value = byte == 1;
    }
}

static inline void cursor_id(struct cursor *cursor, struct id *id) {
    cursor_bytes(cursor, id->bytes, sizeof id->bytes);
}

/* A constant that must stand here. */
static inline void cursor_constant(struct cursor *cursor, const uint8_t *constant, size_t count) {
    uint8_t bytes[16];
    CHECK(count <= sizeof bytes);
    memcpy(bytes, constant, count);
    cursor_bytes(cursor, bytes, count);
    cursor_require(cursor, memcmp(bytes, constant, count) == 0 || cursor->failed);
}

static inline size_t cursor_address_bytes(uint8_t family) {
    return family == ADDRESS_IPV6 ? 16 : family == ADDRESS_IPV4 ? 4 : 0;
}

/* Only as many address bytes as the family has; the rest of the struct reads as zero. */
static inline void cursor_address(struct cursor *cursor, struct address *address) {
    cursor_u8(cursor, &address->family);
    cursor_require(cursor, address->family == ADDRESS_NONE || cursor_address_bytes(address->family) > 0);
    cursor_u16(cursor, &address->port);
    if (cursor->reading) {
        memset(address->bytes, 0, sizeof address->bytes);
    }
    cursor_bytes(cursor, address->bytes, cursor_address_bytes(address->family));
}

/* What a terminal or a log might obey. Bytes above 127 pass: UTF-8 is made of them. */
static inline bool cursor_is_control(char character) {
    return (unsigned char)character < 0x20 || character == 0x7f;
}

/* A u16 length and that many bytes; in memory a zero follows them. `max_bytes` does not count it. */
static inline void cursor_string(struct cursor *cursor, char *text, size_t max_bytes) {
    uint16_t length = 0;
    if (!cursor->reading) {
        const char *end = memchr(text, '\0', max_bytes);
        length = (uint16_t)(end != NULL ? (size_t)(end - text) : max_bytes);
    }
    cursor_u16(cursor, &length);
    cursor_require(cursor, length <= max_bytes);
    if (cursor->failed) {
        length = 0;
    }
    cursor_bytes(cursor, (uint8_t *)text, length);
    if (!cursor->reading) {
        return;
    }
    text[length] = '\0';
    cursor_require(cursor, strlen(text) == length);
    for (size_t i = 0; i < length; i++) {
        if (cursor_is_control(text[i])) {
            text[i] = '?';
        }
    }
}

/* Reading: everything must have been read. */
static inline void cursor_end(struct cursor *cursor) {
    if (cursor->reading) {
        cursor_require(cursor, cursor->at == cursor->size);
    }
}

#endif
