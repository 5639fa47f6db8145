#include "data/copy.h"

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>

enum { LINE_BYTES = 64, AHEAD_BYTES = 4096 /* the source is asked for so early: it comes from memory */ };

/* Whole cache lines at an aligned destination. */
static void copy_lines(uint8_t *destination, const uint8_t *source, size_t lines) {
    for (size_t i = 0; i < lines; i++, destination += LINE_BYTES, source += LINE_BYTES) {
        const __m128i *from = (const __m128i *)(const void *)source;
        __m128i *to = (__m128i *)(void *)destination;
        _mm_prefetch((const char *)source + AHEAD_BYTES, _MM_HINT_T0);
        __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
        __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
        _mm_stream_si128(to, a);
        _mm_stream_si128(to + 1, b);
        _mm_stream_si128(to + 2, c);
        _mm_stream_si128(to + 3, d);
    }
    _mm_sfence();
}

void copy_past_cache(void *destination, const void *source, size_t bytes) {
    size_t head = (LINE_BYTES - (uintptr_t)destination % LINE_BYTES) % LINE_BYTES;
    if (bytes < head + 8 * LINE_BYTES) {
        memcpy(destination, source, bytes);
        return;
    }
    uint8_t *to = destination;
    const uint8_t *from = source;
    size_t lines = (bytes - head) / LINE_BYTES, done = head + lines * LINE_BYTES;
    memcpy(to, from, head);
    copy_lines(to + head, from + head, lines);
    memcpy(to + done, from + done, bytes - done);
}
#else
void copy_past_cache(void *destination, const void *source, size_t bytes) {
    memcpy(destination, source, bytes);
}
#endif
