/* Hostile bytes against csrc/wire: whatever decodes must stay within its limits (encoding ends the
 * process otherwise) and encode to the same bytes again. */
#include <string.h>

#include "base/check.h"
#include "data/crc32c.h"
#include "wire/frame.h"
#include "wire/message.h"

enum { STATUS_AT = MESSAGE_HEADER_BYTES + 8 }; /* of REFUSED, behind the magic */

/* The only differences that decoding may make: control characters of strings become '?', and a result
 * of a later version becomes pcclRefused. */
static bool may_differ(const struct message *message, size_t at, uint8_t before, uint8_t after) {
    bool of_status = message->type == MESSAGE_REFUSED && (at == STATUS_AT || at == STATUS_AT + 1);
    return of_status || (after == '?' && (before < 0x20 || before == 0x7f));
}

static void check_message(const uint8_t *bytes, size_t size, size_t limit) {
    static struct message message, again;
    static uint8_t encoded[MAX_MESSAGE_BYTES], encoded_again[MAX_MESSAGE_BYTES];
    size_t used = 0, used_again = 0;
    if (message_decode(bytes, size, limit, &message, &used) != DECODE_OK) {
        return;
    }
    CHECK(used <= size && used <= limit);
    size_t count = message_encode(&message, encoded, sizeof encoded);
    CHECK(count > 0 && count <= used);
    if (count == used) { /* else it is a HELLO of another version, of which only the beginning is known */
        for (size_t i = 0; i < count; i++) {
            CHECK(bytes[i] == encoded[i] || may_differ(&message, i, bytes[i], encoded[i]));
        }
    } else {
        CHECK(message.type == MESSAGE_HELLO && message.as.hello.version != PROTOCOL_VERSION);
    }
    CHECK(message_decode(encoded, count, limit, &again, &used_again) == DECODE_OK && used_again == count);
    CHECK(message_encode(&again, encoded_again, sizeof encoded_again) == count);
    CHECK(memcmp(encoded, encoded_again, count) == 0);
}

/* Random bytes hardly ever have the header that fits them, nor the magic. */
static void check_fitted_message(const uint8_t *data, size_t size) {
    static uint8_t bytes[MESSAGE_HEADER_BYTES + 8 + 4096];
    if (size == 0) {
        return;
    }
    size_t body = size - 1 < 4096 ? size - 1 : 4096;
    bool with_magic = data[0] >= 0x80;
    size_t shift = with_magic ? 8 : 0;
    memcpy(bytes + MESSAGE_HEADER_BYTES, "PCCL\0run", shift);
    memcpy(bytes + MESSAGE_HEADER_BYTES + shift, data + 1, body);
    body += shift;
    uint8_t header[MESSAGE_HEADER_BYTES] = {(uint8_t)body, (uint8_t)(body >> 8), 0, 0, data[0] & 0x1f, 0};
    memcpy(bytes, header, sizeof header);
    check_message(bytes, sizeof header + body, MAX_MESSAGE_BYTES);
}

/* Puts the right CRC32C behind the first `size - 4` bytes of what is there of `data`. */
static void seal(uint8_t *sealed, size_t size, const uint8_t *data, size_t data_size) {
    memset(sealed, 0, size);
    memcpy(sealed, data, data_size < size - 4 ? data_size : size - 4);
    uint32_t crc = crc32c(sealed, size - 4);
    for (int i = 0; i < 4; i++) {
        sealed[size - 4 + (size_t)i] = (uint8_t)(crc >> (8 * i));
    }
}

static void check_frame(const uint8_t *data, size_t size) {
    uint8_t bytes[FRAME_HEADER_BYTES], encoded[FRAME_HEADER_BYTES];
    struct frame frame;
    seal(bytes, sizeof bytes, data, size);
    if (frame_decode(bytes, &frame)) {
        frame_encode(&frame, encoded);
        CHECK(memcmp(bytes, encoded, sizeof bytes) == 0);
    }
}

static void check_trailer(const uint8_t *data, size_t size) {
    uint8_t bytes[FRAME_TRAILER_BYTES] = {0}, encoded[FRAME_TRAILER_BYTES];
    struct frame_trailer trailer;
    memcpy(bytes, data, size < sizeof bytes ? size : sizeof bytes);
    if (frame_trailer_decode(bytes, &trailer)) {
        frame_trailer_encode(&trailer, encoded);
        CHECK(memcmp(bytes, encoded, sizeof bytes) == 0);
    }
}

static void check_greeting(const uint8_t *data, size_t size) {
    uint8_t bytes[LINK_GREETING_BYTES], encoded[LINK_GREETING_BYTES];
    struct link_greeting greeting;
    seal(bytes, sizeof bytes, data, size);
    if (link_greeting_decode(bytes, &greeting)) {
        link_greeting_encode(&greeting, encoded);
        CHECK(memcmp(bytes, encoded, sizeof bytes) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    check_message(data, size, MAX_MESSAGE_BYTES);
    check_message(data, size, MAX_GREETING_BYTES);
    check_fitted_message(data, size);
    check_frame(data, size);
    check_trailer(data, size);
    check_greeting(data, size);
    return 0;
}
