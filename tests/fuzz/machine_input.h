/* Takes a fuzzer's bytes apart: numbers first, then a message of any type with a body of any bytes. */
#ifndef PCCL_TESTS_FUZZ_MACHINE_INPUT_H
#define PCCL_TESTS_FUZZ_MACHINE_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "wire/message.h"

struct input {
    const uint8_t *bytes;
    size_t left;
};

static inline uint8_t input_u8(struct input *input) {
    if (input->left == 0) {
        return 0;
    }
    input->left--;
    return *input->bytes++;
}

static inline uint16_t input_u16(struct input *input) {
    uint16_t low = input_u8(input);
    return (uint16_t)(low | input_u8(input) << 8);
}

/* Decodes a message whose header is made fit, so that the fuzzer need not guess lengths. Its type and the
 * length of its body come from the input. */
static inline bool input_message(struct input *input, struct message *message) {
    static uint8_t bytes[MESSAGE_HEADER_BYTES + 4096];
    uint8_t type = input_u8(input);
    size_t body = input_u16(input) % 4096;
    body = body < input->left ? body : input->left;
    uint8_t header[MESSAGE_HEADER_BYTES] = {(uint8_t)body, (uint8_t)(body >> 8), 0, 0, type, 0};
    memcpy(bytes, header, sizeof header);
    memcpy(bytes + sizeof header, input->bytes, body);
    input->bytes += body;
    input->left -= body;
    size_t used;
    return message_decode(bytes, sizeof header + body, MAX_MESSAGE_BYTES, message, &used) == DECODE_OK;
}

/* The epoch that a message speaks of, or NULL. */
static inline uint64_t *message_epoch(struct message *message) {
    switch (message->type) {
    case MESSAGE_PROPOSE:
        return &message->as.propose.epoch;
    case MESSAGE_READY:
        return &message->as.ready.epoch;
    case MESSAGE_UNREACHABLE:
    case MESSAGE_LINK_LOST:
        return &message->as.unreachable.epoch;
    case MESSAGE_COMMIT_EPOCH:
        return &message->as.commit_epoch.epoch;
    case MESSAGE_OP_DONE:
    case MESSAGE_OP_COMMIT:
        return &message->as.op.epoch;
    case MESSAGE_OP_WAITING:
        return &message->as.op_waiting.epoch;
    case MESSAGE_OP_MISMATCH:
        return &message->as.op_mismatch.epoch;
    case MESSAGE_OP_CONFLICT:
        return &message->as.op_conflict.epoch;
    case MESSAGE_OP_ABORT:
        return &message->as.op_abort.epoch;
    case MESSAGE_OP_STRAGGLERS:
        return &message->as.stragglers.epoch;
    default:
        return NULL;
    }
}

#endif
