#include "core/rendezvous.h"

#include <string.h>

enum { WORDS = MAX_PEERS / 64 };

void slot_set_clear(struct slot_set *set) {
    memset(set, 0, sizeof *set);
}

void slot_set_add(struct slot_set *set, int slot) {
    set->words[slot / 64] |= UINT64_C(1) << (slot % 64);
}

void slot_set_remove(struct slot_set *set, int slot) {
    set->words[slot / 64] &= ~(UINT64_C(1) << (slot % 64));
}

bool slot_set_has(const struct slot_set *set, int slot) {
    return (set->words[slot / 64] >> (slot % 64) & 1) != 0;
}

int slot_set_count(const struct slot_set *set) {
    int count = 0;
    for (int i = 0; i < WORDS; i++) {
        count += __builtin_popcountll(set->words[i]);
    }
    return count;
}

int slot_set_next(const struct slot_set *set, int from) {
    for (int word = from / 64; word < WORDS; word++) {
        uint64_t bits = set->words[word];
        if (word == from / 64) {
            bits &= ~UINT64_C(0) << (from % 64);
        }
        if (bits != 0) {
            return word * 64 + __builtin_ctzll(bits);
        }
    }
    return -1;
}

bool slot_set_within(const struct slot_set *part, const struct slot_set *whole) {
    for (int i = 0; i < WORDS; i++) {
        if ((part->words[i] & ~whole->words[i]) != 0) {
            return false;
        }
    }
    return true;
}

bool rendezvous_come(struct rendezvous *rendezvous, uint8_t kind, int slot, uint64_t now_ns) {
    if (!rendezvous->open) {
        slot_set_clear(&rendezvous->come);
        rendezvous->open = true;
        rendezvous->kind = kind;
        rendezvous->first = (int16_t)slot;
        rendezvous->opened_ns = now_ns;
        rendezvous->next_report_ns = 0;
    }
    bool new_here = !slot_set_has(&rendezvous->come, slot);
    slot_set_add(&rendezvous->come, slot);
    return new_here;
}

void rendezvous_withdraw(struct rendezvous *rendezvous, int slot) {
    if (!rendezvous->open) {
        return;
    }
    slot_set_remove(&rendezvous->come, slot);
    int left = slot_set_next(&rendezvous->come, 0);
    if (left < 0) {
        rendezvous->open = false;
    } else if (rendezvous->first == slot) {
        rendezvous->first = (int16_t)left;
    }
}

bool rendezvous_complete(const struct rendezvous *rendezvous, const struct slot_set *members) {
    return rendezvous->open && slot_set_within(members, &rendezvous->come);
}

void rendezvous_postpone(struct rendezvous *rendezvous, uint64_t by_ns) {
    if (rendezvous->open) {
        rendezvous->opened_ns += by_ns;
        rendezvous->next_report_ns += rendezvous->next_report_ns != 0 ? by_ns : 0;
    }
}

void rendezvous_close(struct rendezvous *rendezvous) {
    rendezvous->open = false;
}
