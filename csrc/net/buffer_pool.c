#define _GNU_SOURCE
#include "net/buffer_pool.h"

#include <stdlib.h>
#include <sys/mman.h>

enum {
    SMALL_ALIGNMENT = 64,
    HUGE_PAGE_BYTES = 2 * 1024 * 1024, /* from here on whole huge pages: far fewer faults */
};

void buffer_pool_init(struct buffer_pool *pool) {
    *pool = (struct buffer_pool){.mutex = PTHREAD_MUTEX_INITIALIZER};
}

void buffer_pool_free(struct buffer_pool *pool) {
    for (int i = 0; i < MAX_KEPT_BUFFERS; i++) {
        free(pool->kept[i].memory);
    }
    pthread_mutex_destroy(&pool->mutex);
}

static struct buffer allocate(size_t bytes) {
    size_t alignment = bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : SMALL_ALIGNMENT;
    if (bytes > SIZE_MAX - alignment) {
        return (struct buffer){NULL, 0};
    }
    size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    struct buffer buffer = {.memory = aligned_alloc(alignment, rounded), .bytes = rounded};
#ifdef MADV_HUGEPAGE
    if (buffer.memory != NULL && alignment == HUGE_PAGE_BYTES) {
        madvise(buffer.memory, rounded, MADV_HUGEPAGE); /* a hint: no matter if it is refused */
    }
#endif
    return buffer;
}

/* The smallest that does, but none that is much too large. */
static int best_fit(const struct buffer_pool *pool, size_t bytes) {
    int best = -1;
    for (int i = 0; i < MAX_KEPT_BUFFERS; i++) {
        const struct buffer *kept = &pool->kept[i];
        if (kept->memory != NULL && kept->bytes >= bytes && kept->bytes / 4 <= bytes &&
            (best < 0 || kept->bytes < pool->kept[best].bytes)) {
            best = i;
        }
    }
    return best;
}

struct buffer buffer_pool_take(struct buffer_pool *pool, size_t bytes) {
    struct buffer buffer = {NULL, 0};
    pthread_mutex_lock(&pool->mutex);
    int best = best_fit(pool, bytes);
    if (best >= 0) {
        buffer = pool->kept[best];
        pool->kept[best] = (struct buffer){NULL, 0};
    }
    pthread_mutex_unlock(&pool->mutex);
    return buffer.memory != NULL ? buffer : allocate(bytes);
}

/* Where a buffer of `bytes` is kept: a free place, or that of the smallest one if it is smaller still. */
static int place_for(const struct buffer_pool *pool, size_t bytes) {
    int place = -1;
    for (int i = 0; i < MAX_KEPT_BUFFERS; i++) {
        if (pool->kept[i].memory == NULL) {
            return i;
        }
        if (pool->kept[i].bytes < bytes && (place < 0 || pool->kept[i].bytes < pool->kept[place].bytes)) {
            place = i;
        }
    }
    return place;
}

void buffer_pool_give(struct buffer_pool *pool, struct buffer *buffer, uint64_t now_ns) {
    if (buffer->memory == NULL) {
        return;
    }
    struct buffer surplus = *buffer;
    pthread_mutex_lock(&pool->mutex);
    int place = place_for(pool, buffer->bytes);
    if (place >= 0) {
        surplus = pool->kept[place];
        pool->kept[place] = *buffer;
        pool->kept_since_ns[place] = now_ns;
    }
    pthread_mutex_unlock(&pool->mutex);
    free(surplus.memory);
    *buffer = (struct buffer){NULL, 0};
}

uint64_t buffer_pool_trim(struct buffer_pool *pool, uint64_t before_ns) {
    struct buffer old[MAX_KEPT_BUFFERS] = {{NULL, 0}};
    uint64_t oldest_ns = UINT64_MAX;
    pthread_mutex_lock(&pool->mutex);
    for (int i = 0; i < MAX_KEPT_BUFFERS; i++) {
        if (pool->kept[i].memory == NULL) {
            continue;
        }
        if (pool->kept_since_ns[i] < before_ns) {
            old[i] = pool->kept[i];
            pool->kept[i] = (struct buffer){NULL, 0};
        } else if (pool->kept_since_ns[i] < oldest_ns) {
            oldest_ns = pool->kept_since_ns[i];
        }
    }
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < MAX_KEPT_BUFFERS; i++) {
        free(old[i].memory);
    }
    return oldest_ns;
}
