#include "core/tree.h"

#include "wire/message.h"

static uint32_t dimensions(uint16_t world) {
    uint32_t count = 0;
    while (2u << count <= world) {
        count++;
    }
    return count;
}

uint16_t tree_partner(uint16_t world, uint16_t place, enum edge edge) {
    uint32_t count = dimensions(world), corners = 1u << count;
    if (edge == EDGE_FOLD) {
        uint32_t other = place < corners ? place + corners : place - corners;
        return other < world ? (uint16_t)other : NO_PLACE;
    }
    if (edge < EDGE_CUBE || (uint32_t)(edge - EDGE_CUBE) >= count || place >= corners) {
        return NO_PLACE;
    }
    return (uint16_t)(place ^ 1u << (edge - EDGE_CUBE));
}

uint32_t tree_steps(const struct schedule *schedule) {
    return dimensions(schedule->world) + 2;
}

/* One for each step but the last: what arrives in it, and then the sum so far. */
uint32_t tree_levels(const struct schedule *schedule) {
    return schedule->kind == OP_ALL_REDUCE ? dimensions(schedule->world) + 1 : 0;
}

/* The sum so far before step `step`. */
static void set_sum(const struct schedule *schedule, uint32_t step, uint8_t *buffer, uint8_t *level) {
    bool has_folded = tree_partner(schedule->world, schedule->place, EDGE_FOLD) != NO_PLACE;
    bool own = step == 0 || (step == 1 && !has_folded);
    *buffer = own ? BUFFER_INPUT : BUFFER_SCRATCH;
    *level = own ? 0 : (uint8_t)(step - 1);
}

static struct step all_reduce_step(const struct schedule *schedule, uint32_t step) {
    uint32_t count = dimensions(schedule->world);
    bool folded = schedule->place >= 1u << count;
    bool first = step == 0, last = step == count + 1;
    struct step found = {.to = EDGE_NONE, .from = EDGE_NONE};
    set_sum(schedule, step, &found.source, &found.source_level);
    found.own = found.source;
    found.own_level = found.source_level;
    found.target = BUFFER_SCRATCH;
    found.target_level = (uint8_t)(last ? count : step);
    if (first || last) {
        if (tree_partner(schedule->world, schedule->place, EDGE_FOLD) == NO_PLACE) {
            return found;
        }
        bool sends = folded == first;
        *(sends ? &found.to : &found.from) = EDGE_FOLD;
        found.reduces = first;
        found.own_first = true;
        return found;
    }
    if (folded) {
        return found;
    }
    uint16_t other = tree_partner(schedule->world, schedule->place, (enum edge)(EDGE_CUBE + step - 1));
    found.to = found.from = (uint8_t)(EDGE_CUBE + step - 1);
    found.reduces = true;
    found.finishes = step == count;
    found.own_first = schedule->place < other;
    return found;
}

static struct step broadcast_step(const struct schedule *schedule, uint32_t step) {
    uint32_t count = dimensions(schedule->world), corners = 1u << count;
    uint32_t source = schedule->root % corners; /* the corner that it starts from: root < 2 * corners */
    bool is_root = schedule->place == schedule->root, folded = schedule->place >= corners;
    struct step found = {.to = EDGE_NONE,
                         .from = EDGE_NONE,
                         .source = is_root ? BUFFER_INPUT : BUFFER_RESULT,
                         .forwards = !is_root,
                         .target = BUFFER_RESULT};
    bool root_folded = schedule->root >= corners;
    if (step == 0) {
        found.to = is_root && folded ? EDGE_FOLD : EDGE_NONE;
        found.from = root_folded && schedule->place == source ? EDGE_FOLD : EDGE_NONE;
    } else if (step == count + 1) {
        uint16_t other = tree_partner(schedule->world, schedule->place, EDGE_FOLD);
        found.to = !folded && other != NO_PLACE && other != schedule->root ? EDGE_FOLD : EDGE_NONE;
        found.from = folded && !is_root ? EDGE_FOLD : EDGE_NONE;
    } else if (!folded) {
        uint32_t away = schedule->place ^ source, bit = 1u << (step - 1);
        found.to = away < bit ? (uint8_t)(EDGE_CUBE + step - 1) : EDGE_NONE;
        found.from = away >= bit && away < 2 * bit ? (uint8_t)(EDGE_CUBE + step - 1) : EDGE_NONE;
    }
    return found;
}

struct step tree_step(const struct schedule *schedule, uint32_t step) {
    return schedule->kind == OP_BROADCAST ? broadcast_step(schedule, step) : all_reduce_step(schedule, step);
}
