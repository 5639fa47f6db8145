/* Hashes the leaves of a table, in as many threads as the state is worth and the machine has. */
#ifndef PCCL_NET_STATE_HASHER_H
#define PCCL_NET_STATE_HASHER_H

#include "net/state_table.h"

/* Fills in table->hashes. Asks `goes_on` in the calling thread, about every millisecond, with the bytes
 * hashed so far; false ends it, and is returned. Only the threads of this call read the tensors. */
bool state_hash_all(struct state_table *table, bool (*goes_on)(void *context, uint64_t bytes), void *context);

#endif
