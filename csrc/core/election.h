/* Whose shared state it is. A pure function of what the peers of a group have offered, whatever the order
 * in which they are listed. */
#ifndef PCCL_CORE_ELECTION_H
#define PCCL_CORE_ELECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/id.h"
#include "wire/message.h"

struct candidate {
    struct id peer;
    struct message_sync_offer offer;
    bool touched; /* its memory is not what it offered any more: it can't be elected */
};

enum election_outcome {
    ELECTED,      /* `candidate` holds the state that all shall have */
    NO_CANDIDATE, /* nobody may be elected: all only receive, or have been touched */
    BAD_REVISION, /* `candidate` offers another revision than `expected` */
};

struct election {
    enum election_outcome outcome;
    size_t candidate;  /* index of the elected with the lowest id, or of the offender */
    uint64_t expected; /* BAD_REVISION */
};

/* The newest legal revision, then the content that most hold, then the lowest peer id among its holders.
 * If some only send, the choice is among those. The legal revision is one more than `last_revision`; any
 * is legal while `has_last` is false, which is before the first sync, and after the highest that there is.
 * Offers that are older than legal can't win; one that is newer is an offence, and so is it if nobody offers
 * the legal one. */
struct election elect(const struct candidate *candidates, size_t count, bool has_last,
                      uint64_t last_revision);

/* Both are about the same tensors with the same contents. */
bool same_state(const struct message_sync_offer *a, const struct message_sync_offer *b);

#endif
