/* Which order the members of a group stand in. */
#include <string.h>

#include "core/master_state.h"

/* Steps that the search may take before it counts as failed: about a millisecond. */
enum { SEARCH_STEPS = 100000 };

static bool is_bad(const struct master *master, int a, int b) {
    return slot_set_has(&master->bad[a], b);
}

static bool order_holds(const struct master *master, const int16_t *ring, uint16_t size) {
    if (size < 2) {
        return true;
    }
    for (uint16_t i = 0; i < size; i++) {
        if (is_bad(master, ring[i], ring[(i + 1) % size])) {
            return false;
        }
    }
    return true;
}

/* Depth-first search for a ring that starts at wanted[0], trying candidates in the wanted order. At depth
 * d, `choice[d]` is the position in `wanted` of what stands there. */
static bool search(const struct master *master, const int16_t *wanted, uint16_t size, int16_t *found) {
    bool placed[MAX_PEERS] = {false};
    int16_t choice[MAX_PEERS];
    found[0] = wanted[0];
    placed[0] = true;
    int depth = 1;
    choice[1] = 0;
    for (int steps = 0; steps < SEARCH_STEPS && depth >= 1; steps++) {
        if (depth == size) {
            if (!is_bad(master, found[size - 1], found[0])) {
                return true;
            }
            depth--;
            placed[choice[depth]] = false;
        }
        int16_t candidate = (int16_t)(choice[depth] + 1);
        while (candidate < size &&
               (placed[candidate] || is_bad(master, found[depth - 1], wanted[candidate]))) {
            candidate++;
        }
        if (candidate == size) { /* none left here: back */
            depth--;
            if (depth >= 1) {
                placed[choice[depth]] = false;
            }
            continue;
        }
        choice[depth] = candidate;
        placed[candidate] = true;
        found[depth] = wanted[candidate];
        depth++;
        if (depth < size) {
            choice[depth] = 0;
        }
    }
    return false;
}

bool master_ring_order(const struct master *master, int16_t *ring, uint16_t size) {
    if (order_holds(master, ring, size)) {
        return true;
    }
    int16_t found[MAX_PEERS];
    if (size < 3 || !search(master, ring, size, found)) {
        return false;
    }
    memcpy(ring, found, size * sizeof ring[0]);
    return true;
}

/* Pairs with newcomers are not held against a member. */
static int bad_pairs(const struct master *master, int slot, const int16_t *ring, uint16_t size) {
    int count = 0;
    for (uint16_t i = 0; i < size; i++) {
        bool counts = master->slots[slot].state != SLOT_MEMBER || master->slots[ring[i]].state == SLOT_MEMBER;
        count += counts && is_bad(master, slot, ring[i]);
    }
    return count;
}

/* `a` rather than `b`, if both are in as many bad pairs. */
static bool goes_first(const struct master *master, int a, int b) {
    const struct slot *x = &master->slots[a], *y = &master->slots[b];
    if ((x->state == SLOT_MEMBER) != (y->state == SLOT_MEMBER)) {
        return y->state == SLOT_MEMBER;
    }
    bool a_accuses = master_epoch_accuses_alone(master, a), b_accuses = master_epoch_accuses_alone(master, b);
    return a_accuses != b_accuses ? a_accuses : x->order > y->order;
}

int master_ring_outcast(const struct master *master, const int16_t *ring, uint16_t size) {
    int outcast = NO_SLOT, most = 0;
    for (uint16_t i = 0; i < size; i++) {
        int slot = ring[i], count = bad_pairs(master, slot, ring, size);
        if (count > most || (count == most && count > 0 && goes_first(master, slot, outcast))) {
            outcast = slot;
            most = count;
        }
    }
    return outcast;
}
