/* Copying to memory that will not be read soon. */
#ifndef PCCL_DATA_COPY_H
#define PCCL_DATA_COPY_H

#include <stddef.h>

/* As memcpy, but, where the processor can, past the caches: what they hold stays, and the destination's
 * old bytes are not fetched just to be overwritten. */
void copy_past_cache(void *destination, const void *source, size_t bytes);

#endif
