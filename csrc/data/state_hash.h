/* State hash: 128 bits that tell whether peers hold the same tensors. Leaves of 1 MiB are hashed
 * independently of each other, by any thread in any order, and combined; the result is the same on every
 * machine. It finds drift and damage between peers that trust each other: it is no defence against
 * somebody who makes collisions on purpose. Everything here is pure, allocates nothing and may be called
 * from any thread.
 *
 * Specification. Words are unsigned 64-bit integers that wrap; bytes become words little-endian first.
 *
 *   key(i)      z = (i + 1) * 0x9E3779B97F4A7C15;  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
 *               z = (z ^ z >> 27) * 0x94D049BB133111EB;  z ^ z >> 31
 *               (the outputs of SplitMix64 seeded with 0: Steele, Lea and Flood, 2014)
 *   swap(v)     the 32-bit halves of v exchanged
 *   product(v)  the low half of v times its high half, 64 bits
 *   absorb(a, b; x, y)    a ^= x, b ^= y, and then, twice:
 *                         b += product(a), a = swap(a), a += product(b), b = swap(b)
 *   finish(a, b; x, y)    absorb(x, y), then absorb(0, 0) four times: the result is (a, b)
 *
 * Leaf (bytes, size, index). 32 lanes, lane j starting as (key(j), key(32 + j)). The bytes, filled up
 * with zeros to a multiple of 512, are stripes of 64 words; with each, lane j absorbs words j and 32 + j.
 * Fold: for half = 16, 8, 4, 2, 1, each lane j < half absorbs the two words of lane j + half.
 * The hash is finish(size, index) of lane 0.
 *
 * Tensor (datatype, count, leaves). From (key(64), key(65)), absorb each leaf's hash, in order; finish
 * with (count, datatype + 256 * number of leaves).
 *
 * State (list of name and tensor). From (key(66), key(67)), absorb for each tensor the hash of the name's
 * bytes as a leaf of index 0, then the tensor's hash; finish with (number of tensors, 0).
 *
 * Why it holds. absorb() can be undone, for a given (x, y) and for a given (a, b): a change within one
 * lane and stripe always changes the hash. Changes in several stripes of a lane can only cancel if a later
 * (x, y) differs by just what the earlier has made of (a, b). Twins with smaller halves can be tried on all
 * states: the likeliest difference after one absorb() has 2^-6.4 for halves of 4 bits (whatever the
 * difference before), 2^-8.2 and 2^-10.0 for 5 and 6 (single bits before). If that goes on, 32 bits have
 * about 2^-57 for the likeliest change one stripe later, and any other chance is far smaller.
 *
 * For a GPU: a warp takes a leaf, a thread a lane. Loads are coalesced, state is four registers, a step
 * is four 32 x 32 -> 64 bit multiply-adds, the fold five shuffles. */
#ifndef PCCL_DATA_STATE_HASH_H
#define PCCL_DATA_STATE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "data/reduce.h"

enum { STATE_LEAF_BYTES = 1048576 };

/* Compare both words. On a wire: little-endian, words[0] first. */
struct state_hash {
    uint64_t words[2];
};

/* `size` <= STATE_LEAF_BYTES; only the last leaf of a tensor may be shorter. `index` counts the leaves
 * of the tensor from 0. Any alignment. */
void state_hash_leaf(const void *bytes, size_t size, uint64_t index, struct state_hash *out);
/* Root over a tensor's leaves, none if it is empty. `datatype` is a pcclDataType_t. */
void state_hash_tensor(uint8_t datatype, uint64_t count, const struct state_hash *leaves, uint64_t leaf_count,
                       struct state_hash *out);

/* Hash of a whole state: init, add each tensor in order, final. More may be added after final. */
struct state_digest {
    uint64_t a, b, tensor_count;
};

void state_digest_init(struct state_digest *digest);
/* `name_size` <= STATE_LEAF_BYTES; the terminating zero is no part of it. */
void state_digest_add(struct state_digest *digest, const char *name, size_t name_size,
                      const struct state_hash *tensor);
void state_digest_final(const struct state_digest *digest, struct state_hash *out);

/* The same as state_hash_leaf() by one level of kernels, which the processor must have. For tests. */
void state_hash_leaf_at(enum reduce_level level, const void *bytes, size_t size, uint64_t index,
                        struct state_hash *out);

#endif
