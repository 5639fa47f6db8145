#include "core/election.h"

#include <string.h>

#include "pccl.h"

bool same_state(const struct message_sync_offer *a, const struct message_sync_offer *b) {
    return memcmp(&a->keys, &b->keys, sizeof a->keys) == 0 &&
           memcmp(&a->content, &b->content, sizeof a->content) == 0;
}

static bool may_be_elected(const struct candidate *candidate, bool senders_only) {
    uint8_t strategy = candidate->offer.strategy;
    return !candidate->touched && strategy != PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY &&
           (!senders_only || strategy == PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY);
}

static bool has_senders(const struct candidate *candidates, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (may_be_elected(&candidates[i], true)) {
            return true;
        }
    }
    return false;
}

/* The newest of those that count, then the lowest id: NO_CANDIDATE if there are none. */
static struct election find_newest(const struct candidate *candidates, size_t count, bool senders_only) {
    struct election found = {.outcome = NO_CANDIDATE};
    for (size_t i = 0; i < count; i++) {
        if (!may_be_elected(&candidates[i], senders_only)) {
            continue;
        }
        const struct candidate *best = &candidates[found.candidate];
        uint64_t mine = candidates[i].offer.revision, its = best->offer.revision;
        if (found.outcome == NO_CANDIDATE || mine > its ||
            (mine == its && id_compare(&candidates[i].peer, &best->peer) < 0)) {
            found = (struct election){.outcome = ELECTED, .candidate = i};
        }
    }
    return found;
}

static size_t count_votes(const struct candidate *candidates, size_t count, bool senders_only,
                          const struct message_sync_offer *offer) {
    size_t votes = 0;
    for (size_t i = 0; i < count; i++) {
        votes += may_be_elected(&candidates[i], senders_only) &&
                 candidates[i].offer.revision == offer->revision && same_state(&candidates[i].offer, offer);
    }
    return votes;
}

struct election elect(const struct candidate *candidates, size_t count, bool has_last,
                      uint64_t last_revision) {
    has_last = has_last && last_revision != UINT64_MAX; /* there is no higher one */
    struct election newest = find_newest(candidates, count, false);
    if (newest.outcome == NO_CANDIDATE) {
        return newest;
    }
    /* One that only receives may say what it likes: its revision counts for nothing. */
    if (has_last && candidates[newest.candidate].offer.revision != last_revision + 1) {
        newest.outcome = BAD_REVISION;
        newest.expected = last_revision + 1;
        return newest;
    }
    bool senders_only = has_senders(candidates, count);
    struct election best = find_newest(candidates, count, senders_only);
    uint64_t revision = candidates[best.candidate].offer.revision;
    if (has_last && revision != last_revision + 1) {
        best.outcome = BAD_REVISION;
        best.expected = last_revision + 1;
        return best;
    }
    size_t most = count_votes(candidates, count, senders_only, &candidates[best.candidate].offer);
    for (size_t i = 0; i < count; i++) {
        if (!may_be_elected(&candidates[i], senders_only) || candidates[i].offer.revision != revision) {
            continue;
        }
        size_t votes = count_votes(candidates, count, senders_only, &candidates[i].offer);
        bool lower = id_compare(&candidates[i].peer, &candidates[best.candidate].peer) < 0;
        if (votes > most || (votes == most && lower)) {
            best.candidate = i;
            most = votes;
        }
    }
    return best;
}
