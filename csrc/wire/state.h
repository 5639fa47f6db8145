/* What travels on a connection over which shared state is fetched, after the greeting of its opener
 * (wire/frame.h; the key is that of the sync). The fetcher asks, the holder answers in the order of the
 * questions: a header that repeats the question, then the payload.
 *
 * Tensors are in the order of their names' bytes. Leaves (data/state_hash.h) are counted over all tensors
 * whose content has to be equal, in that order. Payload proves itself: keys, hashes and leaves are checked
 * against the digests that the master has handed out. */
#ifndef PCCL_WIRE_STATE_H
#define PCCL_WIRE_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "wire/message.h"

enum { STATE_HEADER_BYTES = 32, STATE_HASH_BYTES = 16 };

enum state_subject {
    STATE_KEYS = 1, /* what tensors there are: a struct state_key for each */
    STATE_HASHES,   /* of leaves `first` .. `first + count - 1` */
    STATE_LEAVES,   /* their bytes */
    STATE_DISPUTE,  /* leaf `first` did not have its hash: look at it again. The answer is the header alone */
    STATE_SUBJECT_END
};

struct state_header {
    uint8_t subject; /* enum state_subject */
    uint32_t count;  /* 0 with STATE_KEYS, else at least 1 */
    uint64_t first;
    uint64_t bytes; /* of payload; 0 in a question */
};

void state_header_encode(const struct state_header *header, uint8_t bytes[STATE_HEADER_BYTES]);
/* False if it is none: close the connection. */
bool state_header_decode(const uint8_t bytes[STATE_HEADER_BYTES], struct state_header *header);

enum { STATE_KEY_FIXED_BYTES = 12, MAX_STATE_KEY_BYTES = STATE_KEY_FIXED_BYTES + MAX_TENSOR_NAME_BYTES };

/* A tensor without its content. */
struct state_key {
    char name[MAX_TENSOR_NAME_BYTES + 1];
    uint8_t datatype; /* pcclDataType_t */
    bool free;        /* its content may differ between peers */
    uint64_t count;
};

/* Returns the size, at most MAX_STATE_KEY_BYTES. The name is not empty. */
size_t state_key_encode(const struct state_key *key, uint8_t bytes[MAX_STATE_KEY_BYTES]);
/* As message_decode(). Control characters in the name have become '?'. */
enum decode_status state_key_decode(const uint8_t *bytes, size_t size, struct state_key *key, size_t *used);

#endif
