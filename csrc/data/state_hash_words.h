/* The state hash's operations on single words (state_hash.h). */
#ifndef PCCL_DATA_STATE_HASH_WORDS_H
#define PCCL_DATA_STATE_HASH_WORDS_H

#include <stdint.h>
#include <string.h>

static inline uint64_t word_at(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static inline uint64_t word_swap(uint64_t v) {
    return v << 32 | v >> 32;
}

static inline uint64_t word_product(uint64_t v) {
    return (v & UINT32_MAX) * (v >> 32);
}

#endif
