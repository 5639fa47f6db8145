/* Large buffers that are used again, so that their pages need not be made anew for each op. It keeps
 * few, and none that has lain idle for long. Any thread. */
#ifndef PCCL_NET_BUFFER_POOL_H
#define PCCL_NET_BUFFER_POOL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { MAX_KEPT_BUFFERS = 4 };

/* <cffi> */
struct buffer {
    void *memory; /* aligned to 64 bytes at least; NULL: none */
    size_t bytes;
};
/* </cffi> */

struct buffer_pool {
    pthread_mutex_t mutex;
    struct buffer kept[MAX_KEPT_BUFFERS];
    uint64_t kept_since_ns[MAX_KEPT_BUFFERS];
};

void buffer_pool_init(struct buffer_pool *pool);
/* Frees what is kept. */
void buffer_pool_free(struct buffer_pool *pool);
/* At least `bytes`. `memory` is NULL if memory is out. The caller gives it back. */
struct buffer buffer_pool_take(struct buffer_pool *pool, size_t bytes);
/* Keeps or frees it; *buffer is empty afterwards. Ignores an empty one. */
void buffer_pool_give(struct buffer_pool *pool, struct buffer *buffer, uint64_t now_ns);
/* Frees it without keeping it. *buffer is empty afterwards. */
static inline void buffer_free(struct buffer *buffer) {
    free(buffer->memory);
    *buffer = (struct buffer){NULL, 0};
}
/* Frees what was last used before `before_ns`. Returns when the oldest of the rest was; UINT64_MAX: none. */
uint64_t buffer_pool_trim(struct buffer_pool *pool, uint64_t before_ns);

#endif
