/* "These members must all come before it happens": the one primitive behind every vote. */
#ifndef PCCL_CORE_RENDEZVOUS_H
#define PCCL_CORE_RENDEZVOUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"

/* A set of the master's peer slots. */
struct slot_set {
    uint64_t words[MAX_PEERS / 64];
};

void slot_set_clear(struct slot_set *set);
void slot_set_add(struct slot_set *set, int slot);
void slot_set_remove(struct slot_set *set, int slot);
bool slot_set_has(const struct slot_set *set, int slot);
int slot_set_count(const struct slot_set *set);
/* The lowest slot >= `from` that is in the set, or -1. */
int slot_set_next(const struct slot_set *set, int from);
/* Everything in `part` is in `whole` too. */
bool slot_set_within(const struct slot_set *part, const struct slot_set *whole);

struct rendezvous {
    bool open;
    uint8_t kind;  /* enum vote_kind, or whatever its owner counts with */
    int16_t first; /* slot that came first */
    uint64_t opened_ns;
    uint64_t next_report_ns; /* when to tell those who wait for whom */
    struct slot_set come;
};

/* Opens on the first to come. False if `slot` had come already. */
bool rendezvous_come(struct rendezvous *rendezvous, uint8_t kind, int slot, uint64_t now_ns);
/* A member is gone, or takes its vote back. Closes the rendezvous when nobody is left in it. */
void rendezvous_withdraw(struct rendezvous *rendezvous, int slot);
/* Open, and all of `members` have come. */
bool rendezvous_complete(const struct rendezvous *rendezvous, const struct slot_set *members);
/* All that is yet to happen at a time happens so much later. */
void rendezvous_postpone(struct rendezvous *rendezvous, uint64_t by_ns);
void rendezvous_close(struct rendezvous *rendezvous);

#endif
