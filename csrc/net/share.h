/* The heavy part of a turn of the loop, dealt out to data threads: to read, check and reduce the chunks that
 * are arriving, and to check and send those that are due. A share is one direction of one stream. Whoever
 * drives decides before and afterwards what it means, as if it had done all by itself. */
#ifndef PCCL_NET_SHARE_H
#define PCCL_NET_SHARE_H

#include <stdbool.h>
#include <stdint.h>

#include "net/data_threads.h"
#include "net/link.h"
#include "net/list.h"

enum { SHARED_CHUNK_BYTES = 64 * 1024 }; /* of smaller ones, none is worth waking a thread for */

struct sharing {
    uint32_t asked;          /* threads; 0: as many as are best */
    uint64_t decide_next_ns; /* how many those are */
    struct data_threads crew;
};

void sharing_init(struct sharing *sharing, uint32_t threads);
/* Waits for the end of the threads. */
void sharing_free(struct sharing *sharing);

/* To be called when large ops are in flight: how many threads there are for them? 1: deal nothing out.
 * `world`: peers of the run. */
uint32_t sharing_threads(struct sharing *sharing, const struct link_set *links, uint32_t world);
/* Works off what is heavy of the items in `hot`, and of what the links have to send. True if there was enough
 * for several threads: then all that could be written has been. */
bool sharing_turn(struct sharing *sharing, struct link_set *links, struct list *hot);

#endif
