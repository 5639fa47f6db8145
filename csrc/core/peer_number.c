/* The tags under which ops are numbered: a small table, the same at all members of an epoch. */
#include <string.h>

#include "core/peer_state.h"

static struct numbered_tag *place_of(const struct peer *peer, uint64_t tag) {
    uint32_t place = (uint32_t)((tag * UINT64_C(0x9e3779b97f4a7c15)) >> 32) % NUMBERED_PLACES;
    while (peer->numbered[place].next != 0 && peer->numbered[place].tag != tag) {
        place = (place + 1) % NUMBERED_PLACES; /* half of them are free */
    }
    return (struct numbered_tag *)&peer->numbered[place];
}

struct numbered_tag *peer_number_find(const struct peer *peer, uint64_t tag) {
    if (peer->numbered_count == 0) {
        return NULL;
    }
    struct numbered_tag *found = place_of(peer, tag);
    return found->next != 0 ? found : NULL;
}

bool peer_number_add(struct peer *peer, uint64_t tag) {
    struct numbered_tag *place = place_of(peer, tag);
    if (place->next != 0 || peer->numbered_count == MAX_NUMBERED_TAGS) {
        return false;
    }
    *place = (struct numbered_tag){.tag = tag, .next = 1};
    peer->numbered_count++;
    return true;
}

void peer_number_clear(struct peer *peer) {
    if (peer->numbered_count > 0) {
        memset(peer->numbered, 0, sizeof peer->numbered);
        peer->numbered_count = 0;
    }
}
