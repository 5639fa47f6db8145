/* To connect to whoever has one of several addresses, those of one name. They are tried in order, each next
 * one when those before it have failed, or have not answered soon (RFC 8305, "Happy Eyeballs"): so an address
 * that swallows packets costs a quarter of a second, and none is left out. Only the net thread comes here. */
#ifndef PCCL_NET_DIAL_H
#define PCCL_NET_DIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/address.h"
#include "base/limits.h"
#include "net/poller.h"

struct dial_place {
    char name[MAX_HOST_BYTES + 8]; /* as the user wrote it, with its port; "": the addresses say it all */
    uint16_t count;                /* at least 1 */
    struct address addresses[MAX_MASTER_ADDRESSES];
};

struct dial_try {
    struct poll_item item; /* owns its socket, -1 if it has none (any more) */
    int error;             /* why it failed, a negative errno value; 0: it has not, or not yet */
};

struct dial {
    struct poller *poller;
    struct dial_place place;
    struct dial_try tries[MAX_MASTER_ADDRESSES];
    uint16_t first, started; /* the place in `addresses` that comes first; how many have had their try */
    uint32_t timeout_ms;     /* of the connection, once there is one */
    uint64_t begin_ns, next_ns, deadline_ns;
};

enum { DIAL_TEXT_BYTES = 160, DIAL_FAILURE_BYTES = 640 };

/* The items are of this kind. */
void dial_init(struct dial *dial, struct poller *poller, uint8_t kind);
/* Begins with the address at `first`, counted modulo their number, and gives up after `patience_ns`. What
 * comes of it dial_turn() tells. */
void dial_start(struct dial *dial, const struct dial_place *place, uint16_t first, uint64_t patience_ns,
                uint32_t timeout_ms);
/* `item`: what the poller has found of ours; NULL: time has passed. Returns a connected socket, the caller's,
 * with *address_out; -EINPROGRESS: not yet; else all have failed. But for -EINPROGRESS nothing is left open.
 */
int dial_turn(struct dial *dial, struct poll_item *item, const struct address **address_out);
/* When dial_turn() is due at the latest; UINT64_MAX: never. */
uint64_t dial_deadline(const struct dial *dial);
void dial_stop(struct dial *dial);

/* "can't connect to a master at ...", of each address what became of it, and what to look at. */
const char *dial_describe_failure(const struct dial *dial, char text[DIAL_FAILURE_BYTES]);
/* "master.example:48148 (10.0.0.1:48148)": the place, and the one address that has been taken. */
const char *dial_describe_place(const struct dial_place *place, const struct address *address,
                                char text[DIAL_TEXT_BYTES]);

#endif
