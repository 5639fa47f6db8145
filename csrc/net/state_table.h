/* The tensors of one call of sync_shared_state, in the order of their names' bytes, and the hash of each of
 * their leaves. Leaves are counted over all tensors whose content has to be equal. The calling thread's
 * alone, but for what net/state_hasher.h says. */
#ifndef PCCL_NET_STATE_TABLE_H
#define PCCL_NET_STATE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/state_hash.h"
#include "pccl.h"
#include "wire/state.h"

struct state_tensor {
    const char *name; /* the user's, as is `data` */
    uint8_t *data;
    uint64_t count, bytes;
    uint8_t datatype;
    bool free;           /* its content may differ: it has no leaves */
    uint64_t first_leaf; /* of the next tensor with leaves, if it has none */
    uint64_t leaf_count;
    size_t tied;      /* the first tensor with the very same memory, if that comes before; else itself */
    size_t next_tied; /* the next one with this memory, in a ring; itself if there is none */
};

struct state_table {
    struct state_tensor *tensors; /* owned */
    size_t tensor_count;
    uint64_t leaf_count, leaf_bytes;
    struct state_hash *hashes; /* owned; of the leaves, as they are in memory */
};

struct state_leaf {
    uint8_t *bytes;
    size_t size;
    uint64_t index; /* in its tensor */
};

/* Checks the user's tensors and lists them. On failure nothing is left to free, and the last error says
 * what is wrong with which one, after `call` and a colon. */
pcclResult_t state_table_make(struct state_table *table, const pcclSharedState_t *state, const char *call);
void state_table_free(struct state_table *table);

/* `tensor` is where the search begins, and the tensor of the leaf afterwards: 0 for the first time. */
struct state_leaf state_table_leaf(const struct state_table *table, uint64_t leaf, size_t *tensor);
/* Of leaves `first` .. `first + count - 1` together. */
uint64_t state_table_bytes(const struct state_table *table, uint64_t first, uint64_t count);
void state_table_hash_leaf(const struct state_table *table, uint64_t leaf, size_t *tensor,
                           struct state_hash *out);
/* Writes the hash of what is in memory now into table->hashes, for all tensors that share it. */
void state_table_rehash(struct state_table *table, uint64_t leaf, size_t *tensor);

/* What the tensors are, and what they hold if their leaves have these hashes. */
struct digest state_table_keys(const struct state_table *table);
struct digest state_table_content(const struct state_table *table, const struct state_hash *hashes);
void state_table_key(const struct state_table *table, size_t tensor, struct state_key *key);

#endif
