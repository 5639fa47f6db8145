/* Compares the tensors of two peers, names, datatypes and counts, as the other's list arrives, and puts the
 * first differences into a sentence. */
#ifndef PCCL_NET_STATE_COMPARE_H
#define PCCL_NET_STATE_COMPARE_H

#include "net/state_table.h"
#include "wire/state.h"

struct state_compare {
    const struct state_table *table; /* borrowed: this peer's */
    const char *mine, *theirs;       /* borrowed: what the peers are called */
    uint8_t buffer[2 * MAX_STATE_KEY_BYTES];
    size_t filled;
    size_t next;          /* this peer's tensor that has not been compared yet */
    uint32_t differences; /* so far */
    char text[MAX_REASON_BYTES + 1];
};

void state_compare_init(struct state_compare *compare, const struct state_table *table, const char *mine,
                        const char *theirs);
/* Where the next bytes of the list go, and how many may come. */
uint8_t *state_compare_room(struct state_compare *compare, size_t *size);
/* So many have come. False if they are no list. */
bool state_compare_take(struct state_compare *compare, size_t size);
/* Enough is known: `text` will not grow any more. */
bool state_compare_is_full(const struct state_compare *compare);
/* The list is complete; false if it ended in the middle of a tensor. Afterwards `text` is a sentence. */
bool state_compare_end(struct state_compare *compare);

#endif
