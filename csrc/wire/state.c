#include "wire/state.h"

#include "data/crc32c.h"
#include "include/pccl.h"
#include "wire/cursor.h"

static const uint8_t magic[4] = {'p', 'c', 'S', '1'};

static void header_fields(struct cursor *cursor, struct state_header *header) {
    cursor_constant(cursor, magic, sizeof magic);
    cursor_u8(cursor, &header->subject);
    cursor_require(cursor, header->subject >= STATE_KEYS && header->subject < STATE_SUBJECT_END);
    static const uint8_t reserved[3];
    cursor_constant(cursor, reserved, sizeof reserved);
    cursor_u32(cursor, &header->count);
    cursor_require(cursor, (header->count == 0) == (header->subject == STATE_KEYS));
    cursor_u64(cursor, &header->first);
    cursor_u64(cursor, &header->bytes);
}

void state_header_encode(const struct state_header *header, uint8_t bytes[STATE_HEADER_BYTES]) {
    struct cursor cursor = cursor_write(bytes, STATE_HEADER_BYTES);
    header_fields(&cursor, (struct state_header *)header); /* a writing cursor changes nothing in it */
    uint32_t crc = crc32c(bytes, cursor.at);
    cursor_u32(&cursor, &crc);
    CHECK(!cursor.failed && cursor.at == STATE_HEADER_BYTES);
}

bool state_header_decode(const uint8_t bytes[STATE_HEADER_BYTES], struct state_header *header) {
    struct cursor cursor = cursor_read(bytes, STATE_HEADER_BYTES);
    header_fields(&cursor, header);
    uint32_t computed = crc32c(bytes, STATE_HEADER_BYTES - sizeof computed), crc = 0;
    cursor_u32(&cursor, &crc);
    cursor_require(&cursor, crc == computed);
    cursor_end(&cursor);
    return !cursor.failed;
}

static void key_fields(struct cursor *cursor, struct state_key *key) {
    cursor_string(cursor, key->name, MAX_TENSOR_NAME_BYTES);
    cursor_require(cursor, cursor->failed || key->name[0] != '\0');
    cursor_u8(cursor, &key->datatype);
    cursor_require(cursor, key->datatype <= pcclDouble);
    cursor_bool(cursor, &key->free);
    cursor_u64(cursor, &key->count);
}

size_t state_key_encode(const struct state_key *key, uint8_t bytes[MAX_STATE_KEY_BYTES]) {
    struct cursor cursor = cursor_write(bytes, MAX_STATE_KEY_BYTES);
    key_fields(&cursor, (struct state_key *)key);
    CHECK(!cursor.failed);
    return cursor.at;
}

enum decode_status state_key_decode(const uint8_t *bytes, size_t size, struct state_key *key, size_t *used) {
    if (size < sizeof(uint16_t)) {
        return DECODE_INCOMPLETE;
    }
    size_t name_bytes = (size_t)(bytes[0] | bytes[1] << 8);
    if (name_bytes > MAX_TENSOR_NAME_BYTES) {
        return DECODE_BAD;
    }
    if (size < STATE_KEY_FIXED_BYTES + name_bytes) {
        return DECODE_INCOMPLETE;
    }
    struct cursor cursor = cursor_read(bytes, STATE_KEY_FIXED_BYTES + name_bytes);
    key_fields(&cursor, key);
    if (cursor.failed) {
        return DECODE_BAD;
    }
    *used = cursor.at;
    return DECODE_OK;
}
