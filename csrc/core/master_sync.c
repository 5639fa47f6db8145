/* The shared state of a group: offers, the election, who fetches from whom, and the end. The master never
 * sees a tensor, only digests. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/election.h"
#include "core/master_state.h"
#include "pccl.h"

/* After so many times its patience the group goes on without a member that does nothing. Who fetches gives up
 * by itself before, after three. */
enum { SYNC_PATIENCE = 4 };

static void members_of(const struct master *master, int group, struct slot_set *members) {
    slot_set_clear(members);
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state == SLOT_MEMBER && master->slots[slot].group == group) {
            slot_set_add(members, slot);
        }
    }
}

/* The next slot >= `from` that takes part in the group's sync in this role, or NO_SLOT. */
static int next_with(const struct master *master, int group, enum sync_part part, int from) {
    for (int slot = from; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state == SLOT_MEMBER && master->slots[slot].group == group &&
            master->slots[slot].sync_part == part) {
            return slot;
        }
    }
    return NO_SLOT;
}

/* Newcomers whose predecessors have all died are not held to a number that nobody can tell them. */
static bool has_revision(const struct master *master, int group) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state == SLOT_MEMBER && master->slots[slot].group == group &&
            master->slots[slot].knows_revision) {
            return true;
        }
    }
    return false;
}

/* All hold the elected state. One that was told to fetch before may have changed its memory without our
 * knowing yet: it has to say so itself. */
static bool is_settled(const struct master *master, int group) {
    for (int slot = next_with(master, group, SYNC_PART_HOLDS, 0); slot != NO_SLOT;
         slot = next_with(master, group, SYNC_PART_HOLDS, slot + 1)) {
        if (master->slots[slot].sync_unsure) {
            return false;
        }
    }
    return next_with(master, group, SYNC_PART_FETCHES, 0) == NO_SLOT;
}

int master_sync_group(const struct master *master, const struct rendezvous *sync) {
    for (int i = 0; i < MAX_PEERS; i++) {
        if (&master->groups[i].sync == sync) {
            return i;
        }
    }
    return NO_GROUP;
}

/* How long the others of the group wait for this one, in each of its steps. */
static uint64_t patience_ns(const struct master *master, int peer) {
    uint64_t longest_ns = 0;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        const struct slot *other = &master->slots[slot];
        if (slot != peer && other->state == SLOT_MEMBER && other->group == master->slots[peer].group &&
            other->timeout_ns > longest_ns) {
            longest_ns = other->timeout_ns;
        }
    }
    return longest_ns != 0 ? longest_ns : master->slots[peer].timeout_ns;
}

/* From now on its progress is watched. */
static void watch_peer(struct master *master, int slot) {
    master->slots[slot].sync_moved_ns = master->now_ns;
    master->slots[slot].sync_named = false;
    master_watch(master, master->now_ns + patience_ns(master, slot));
}

static void close_sync(struct master *master, int index) {
    struct group *group = &master->groups[index];
    if (group->vote_announced) {
        master_vote_announce(master, index, &group->sync, NO_SLOT);
    }
    rendezvous_close(&group->sync);
    group->sync_number = 0;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].group == index) {
            master->slots[slot].sync_part = SYNC_PART_NONE;
            master->slots[slot].sync_touched = false;
            master->slots[slot].sync_unsure = false;
        }
    }
}

void master_sync_end(struct master *master, int index, uint16_t status, const char *reason) {
    struct slot_set come = master->groups[index].sync.come;
    master_log(master, "sync of group %" PRIu32 " has failed: %s", master->groups[index].number, reason);
    close_sync(master, index);
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(&come, slot)) {
            master_vote_result(master, slot, VOTE_SYNC_STATE, status, 0, reason);
        }
    }
}

static void succeed(struct master *master, int index) {
    struct group *group = &master->groups[index];
    static const char disagrees[] =
        "this peer only sends, but its state differs from the elected one: give the peers that only send "
        "equal states, or let this one receive";
    struct slot_set come = group->sync.come, odd;
    slot_set_clear(&odd);
    for (int slot = next_with(master, index, SYNC_PART_DISAGREES, 0); slot != NO_SLOT;
         slot = next_with(master, index, SYNC_PART_DISAGREES, slot + 1)) {
        slot_set_add(&odd, slot);
    }
    bool alone = slot_set_count(&come) < 2;
    group->revision = group->elected.revision;
    close_sync(master, index);
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(&come, slot)) {
            master->slots[slot].knows_revision = !alone && !slot_set_has(&odd, slot);
        }
        if (slot_set_has(&odd, slot)) {
            master_vote_result(master, slot, VOTE_SYNC_STATE, pcclMismatch, 0, disagrees);
        } else if (slot_set_has(&come, slot)) {
            master_vote_result(master, slot, VOTE_SYNC_STATE, pcclSuccess, group->revision, "");
        }
    }
}

/* ---- the plan ---- */

static void fill_plan(const struct group *group, enum sync_role role, struct message_sync_plan *plan) {
    plan->patience_ms = 0;
    plan->sync = group->sync_number;
    plan->revision = group->elected.revision;
    plan->keys = group->elected.keys;
    plan->content = group->elected.content;
    plan->role = (uint8_t)role;
    plan->key = group->sync_key;
    plan->source_count = 0;
}

static bool is_source(const struct master *master, int slot) {
    return master->slots[slot].offer.strategy != PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY;
}

static void add_member(const struct slot *peer, struct message_sync_plan *plan) {
    struct member *member = &plan->sources[plan->source_count++];
    member->id = peer->id;
    member->address = peer->address;
    memcpy(member->name, peer->name, sizeof member->name);
}

/* Sources for one fetcher: all if they fit, else so many of them, beginning at another one for each. */
static void add_sources(const struct master *master, int index, int turn, struct message_sync_plan *plan) {
    int16_t sources[MAX_PEERS];
    int count = 0;
    for (int slot = next_with(master, index, SYNC_PART_HOLDS, 0); slot != NO_SLOT;
         slot = next_with(master, index, SYNC_PART_HOLDS, slot + 1)) {
        if (is_source(master, slot)) {
            sources[count++] = (int16_t)slot;
        }
    }
    for (int i = 0; i < count && plan->source_count < MAX_SYNC_SOURCES; i++) {
        add_member(&master->slots[sources[(turn + i) % count]], plan);
    }
}

static void send_fetch(struct master *master, int slot, int turn) {
    int index = master->slots[slot].group;
    struct message *message = &master->message;
    message->type = MESSAGE_SYNC_PLAN;
    fill_plan(&master->groups[index], SYNC_FETCH, &message->as.sync_plan);
    message->as.sync_plan.patience_ms = (uint32_t)(patience_ns(master, slot) / 1000000);
    add_sources(master, index, turn, &message->as.sync_plan);
    master->slots[slot].sync_unsure = true;
    master_send(master, slot, message);
}

static void send_hold(struct master *master, int slot, int fetcher) {
    struct message *message = &master->message;
    message->type = MESSAGE_SYNC_PLAN;
    fill_plan(&master->groups[master->slots[slot].group], SYNC_HOLD, &message->as.sync_plan);
    if (fetcher != NO_SLOT) {
        add_member(&master->slots[fetcher], &message->as.sync_plan);
    }
    master_send(master, slot, message);
}

static void send_plans(struct master *master, int index) {
    for (int slot = next_with(master, index, SYNC_PART_HOLDS, 0); slot != NO_SLOT;
         slot = next_with(master, index, SYNC_PART_HOLDS, slot + 1)) {
        if (is_source(master, slot) || master->slots[slot].sync_unsure) {
            send_hold(master, slot, NO_SLOT);
            watch_peer(master, slot);
        }
    }
    int turn = 0;
    for (int slot = next_with(master, index, SYNC_PART_FETCHES, 0); slot != NO_SLOT;
         slot = next_with(master, index, SYNC_PART_FETCHES, slot + 1)) {
        send_fetch(master, slot, turn++);
        watch_peer(master, slot);
    }
}

static void assign_parts(struct master *master, int index) {
    const struct group *group = &master->groups[index];
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        struct slot *peer = &master->slots[slot];
        if (peer->state != SLOT_MEMBER || peer->group != index) {
            continue;
        }
        if (!peer->sync_touched && same_state(&peer->offer, &group->elected)) {
            peer->sync_part = SYNC_PART_HOLDS;
        } else if (peer->offer.strategy == PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY) {
            peer->sync_part = SYNC_PART_DISAGREES;
        } else {
            peer->sync_part = SYNC_PART_FETCHES;
        }
    }
}

/* Where all stand, and how to get on from there. */
static void fail_revision(struct master *master, int index, uint64_t expected, int offender) {
    const struct message_sync_offer *offer = &master->slots[offender].offer;
    char reason[MAX_REASON_BYTES + 1], label[LABEL_BYTES];
    const char *cure =
        "it set its own number, or comes from another run of the group: set its revision to the "
        "expected one if its state is to win, or to 0 if it is to take that of the others";
    if (offer->revision == expected - 1) {
        cure =
            same_state(offer, &master->groups[index].elected)
                ? "that is the one that was synchronised last: call push_revision() (C: revision += 1) once "
                  "between two syncs"
                : "its tensors have changed since that one was synchronised, so push_revision() (C: revision "
                  "+= 1) was forgotten: call it once between two syncs";
    } else if (offer->revision < expected) {
        cure =
            "no peer is one step on: set the revision of the peer whose state is to win to the expected one";
    }
    snprintf(reason, sizeof reason,
             "peer %s offers revision %" PRIu64 " of the shared state, expected %" PRIu64
             ": one more than the last that was synchronised; %s",
             master_label(master, offender, label), offer->revision, expected, cure);
    master_sync_end(master, index, pcclInvalidUsage, reason);
}

static void fail_election(struct master *master, int index, const struct election *election, int offender) {
    if (election->outcome == BAD_REVISION) {
        fail_revision(master, index, election->expected, offender);
        return;
    }
    bool any_touched = false, any_mixed = false;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(&master->groups[index].sync.come, slot)) {
            any_touched = any_touched || master->slots[slot].sync_touched;
            any_mixed = any_mixed || master->slots[slot].offer.mixed;
        }
    }
    const char *reason = "no peer offers a shared state: all only receive";
    if (any_touched) {
        reason =
            "all who held the elected state were lost while it was being copied: peers that were receiving "
            "hold a part of it";
    } else if (any_mixed) {
        reason = "no peer offers a shared state: a sync that failed has left a mix of two revisions, which "
                 "is never "
                 "elected: load a whole state into the tensors of one peer, and call again";
    }
    master_sync_end(master, index, pcclNoSharedStateAvailable, reason);
}

/* What counts in the election. Alone it is nothing but its own state, whatever that is for. */
static struct candidate candidate_of(const struct slot *peer, bool alone) {
    struct candidate candidate = {
        .peer = peer->id, .offer = peer->offer, .touched = peer->sync_touched || peer->offer.mixed};
    if (alone) {
        candidate.offer.strategy = PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR;
    }
    return candidate;
}

/* Elects among those who have come, and tells everybody its part. */
static void hold_election(struct master *master, int index) {
    struct group *group = &master->groups[index];
    struct candidate candidates[MAX_PEERS];
    int16_t slots[MAX_PEERS];
    size_t count = 0;
    bool alone = slot_set_count(&group->sync.come) == 1;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(&group->sync.come, slot)) {
            slots[count] = (int16_t)slot;
            candidates[count++] = candidate_of(&master->slots[slot], alone);
        }
    }
    struct election election = elect(candidates, count, has_revision(master, index), group->revision);
    int chosen = slots[election.candidate];
    if (election.outcome != ELECTED) {
        fail_election(master, index, &election, chosen);
        return;
    }
    group->elected = master->slots[chosen].offer;
    group->sync_number = ++master->last_sync;
    group->sync_key = random_id(&master->random);
    assign_parts(master, index);
    bool settled = is_settled(master, index);
    char label[LABEL_BYTES];
    (settled ? master_log_routine
             : master_log)(master, "revision %" PRIu64 " of group %" PRIu32 " is that of peer %s",
                           group->elected.revision, group->number, master_label(master, chosen, label));
    if (settled) {
        succeed(master, index);
    } else {
        send_plans(master, index);
    }
}

/* Those who hold the elected state are fewer: new plans, or a new election if none is left. */
static void go_on(struct master *master, int index) {
    if (is_settled(master, index)) {
        succeed(master, index);
        return;
    }
    for (int holder = next_with(master, index, SYNC_PART_HOLDS, 0); holder != NO_SLOT;
         holder = next_with(master, index, SYNC_PART_HOLDS, holder + 1)) {
        if (is_source(master, holder)) {
            send_plans(master, index);
            return;
        }
    }
    hold_election(master, index);
}

/* ---- what peers say ---- */

void master_sync_offer(struct master *master, int slot, const struct message_sync_offer *offer) {
    struct slot *peer = &master->slots[slot];
    if (peer->state != SLOT_MEMBER) {
        master_join_evict(master, slot, pcclEvicted, "it offered a shared state although it is no member");
        return;
    }
    struct group *group = &master->groups[peer->group];
    if (master_vote_must_wait(master)) {
        peer->offer = *offer;
        peer->early_vote = VOTE_SYNC_STATE;
    } else if (master_vote_first_of(master, &master->vote, peer->group) != NO_SLOT) {
        master_vote_mismatch(master, slot, VOTE_SYNC_STATE, &master->vote);
    } else if (!group->sync.open || !slot_set_has(&group->sync.come, slot)) {
        peer->offer = *offer;
        peer->sync_part = SYNC_PART_OFFERED;
        peer->sync_touched = false;
        peer->sync_unsure = false;
        master_vote_come(master, &group->sync, VOTE_SYNC_STATE, slot);
        master_settle(master);
    }
}

static void log_held(struct master *master, int slot) {
    char label[LABEL_BYTES];
    const struct group *group = &master->groups[master->slots[slot].group];
    master_log(master, "peer %s of group %" PRIu32 " holds revision %" PRIu64 " now",
               master_label(master, slot, label), group->number, group->elected.revision);
}

/* It has fetched everything: those who still fetch may ask it, too, as long as they have room for a source.
 */
static void add_holder(struct master *master, int index, int slot) {
    int holders = 0, turn = 0;
    for (int other = next_with(master, index, SYNC_PART_HOLDS, 0); other != NO_SLOT;
         other = next_with(master, index, SYNC_PART_HOLDS, other + 1)) {
        holders += is_source(master, other);
    }
    if (!is_source(master, slot) || holders > MAX_SYNC_SOURCES) {
        return;
    }
    send_hold(master, slot, NO_SLOT);
    for (int other = next_with(master, index, SYNC_PART_FETCHES, 0); other != NO_SLOT;
         other = next_with(master, index, SYNC_PART_FETCHES, other + 1)) {
        send_fetch(master, other, turn++);
    }
}

/* `slot` gets no connection to a holder: perhaps the holder gets one to it. */
static void ask_back(struct master *master, int slot, const struct id *id) {
    int index = master->slots[slot].group;
    for (int holder = next_with(master, index, SYNC_PART_HOLDS, 0); holder != NO_SLOT;
         holder = next_with(master, index, SYNC_PART_HOLDS, holder + 1)) {
        if (id_equal(&master->slots[holder].id, id) && is_source(master, holder)) {
            send_hold(master, holder, slot);
        }
    }
}

void master_sync_report(struct master *master, int slot, const struct message_sync_report *report) {
    struct slot *peer = &master->slots[slot];
    int index = peer->group;
    bool fetches = peer->sync_part == SYNC_PART_FETCHES;
    if (peer->state != SLOT_MEMBER || report->sync == 0 ||
        report->sync != master->groups[index].sync_number ||
        (!fetches && peer->sync_part != SYNC_PART_HOLDS)) {
        return; /* a newer plan has overtaken it */
    }
    if (report->progress != SYNC_UNREACHED) {
        watch_peer(master, slot);
    }
    switch (report->progress) {
    case SYNC_TOUCHED:
        peer->sync_touched = true;
        peer->sync_part = SYNC_PART_FETCHES;
        if (!fetches) {
            go_on(master, index);
        }
        break;
    case SYNC_FETCHED:
        peer->sync_part = SYNC_PART_HOLDS;
        peer->sync_touched = false;
        peer->sync_unsure = false;
        peer->offer.revision = master->groups[index].elected.revision;
        peer->offer.keys = master->groups[index].elected.keys;
        peer->offer.content = master->groups[index].elected.content;
        if (fetches) {
            log_held(master, slot);
        }
        if (is_settled(master, index)) {
            succeed(master, index);
        } else if (fetches) {
            add_holder(master, index, slot);
        }
        break;
    case SYNC_MOVING:
        break;
    case SYNC_UNREACHED:
        if (fetches) {
            ask_back(master, slot, &report->peer);
        }
        break;
    default:
        master_sync_end(master, index, report->status != pcclSuccess ? report->status : pcclInternalError,
                        report->reason);
        break;
    }
}

/* A member is gone. The slot is free already, and no part of the group's ring. */
void master_sync_withdraw(struct master *master, int slot) {
    int index = master->slots[slot].group;
    struct group *group = &master->groups[index];
    enum sync_part part = (enum sync_part)master->slots[slot].sync_part;
    master->slots[slot].sync_part = SYNC_PART_NONE;
    master_vote_withdraw_from(master, &group->sync, slot);
    if (group->size == 1) {
        /* It may go on by itself from here, and nobody else knows how far it was. */
        master->slots[group->ring[0]].knows_revision = false;
    }
    if (!group->sync.open) {
        group->sync_number = 0;
        return;
    }
    if (group->sync_number == 0 || part == SYNC_PART_DISAGREES) {
        return;
    }
    go_on(master, index);
}

void master_sync_settle(struct master *master) {
    for (int index = 0; index < MAX_PEERS; index++) {
        struct group *group = &master->groups[index];
        if (!group->used || !group->sync.open || group->sync_number != 0) {
            continue;
        }
        struct slot_set members;
        members_of(master, index, &members);
        if (!rendezvous_complete(&group->sync, &members)) {
            continue;
        }
        int first = slot_set_next(&members, 0);
        if (slot_set_count(&members) < 2 && master->slots[first].offer.requires_peers) {
            master_sync_end(master, index, pcclTooFewPeers,
                            "this peer is alone in its group: there is nobody to share state with");
        } else {
            hold_election(master, index);
        }
    }
}

/* It was told what to do, and does not get on with it: the others hear of it once, and then go on without
 * it. Who fetches and gets nothing from its holders says so itself before (net/state_fetcher). */
static void check_progress(struct master *master, int slot) {
    struct slot *peer = &master->slots[slot];
    uint64_t limit_ns = patience_ns(master, slot);
    uint64_t still_ns = master->now_ns - peer->sync_moved_ns;
    if (still_ns >= SYNC_PATIENCE * limit_ns) {
        master_join_evict(master, slot, pcclEvicted,
                          "the others wait for it in sync_shared_state: it has got no further for %.1f s",
                          (double)still_ns / 1e9);
        return;
    }
    if (still_ns < limit_ns) {
        master_watch(master, peer->sync_moved_ns + limit_ns);
        return;
    }
    master_watch(master, peer->sync_moved_ns + SYNC_PATIENCE * limit_ns);
    if (peer->sync_named) {
        return;
    }
    peer->sync_named = true;
    struct message message = {.type = MESSAGE_VOTE_WAITING};
    struct message_stragglers *report = &message.as.stragglers;
    *report = (struct message_stragglers){.kind = VOTE_SYNC_STATE,
                                          .tag = STUCK_IN_CALL,
                                          .waited_ms = (uint32_t)(still_ns / 1000000),
                                          .total = 1,
                                          .named = 1};
    report->peers[0] = peer->id;
    for (int other = 0; other < MAX_PEERS; other++) {
        if (other != slot && slot_set_has(&master->groups[peer->group].sync.come, other)) {
            master_send(master, other, &message);
        }
    }
}

static void check_parts(struct master *master, int index) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        const struct slot *peer = &master->slots[slot];
        bool acts =
            peer->sync_part == SYNC_PART_FETCHES || (peer->sync_part == SYNC_PART_HOLDS && peer->sync_unsure);
        if (peer->state == SLOT_MEMBER && peer->group == index && acts) {
            check_progress(master, slot);
        }
    }
}

void master_sync_check(struct master *master) {
    for (int index = 0; index < MAX_PEERS; index++) {
        struct group *group = &master->groups[index];
        if (group->used && group->sync.open && group->sync_number != 0) {
            check_parts(master, index);
        }
        while (group->used && group->sync.open && group->sync_number == 0) {
            struct slot_set members;
            members_of(master, index, &members);
            int slot = master_vote_remind(master, &group->sync, &members);
            if (slot == NO_SLOT) {
                break;
            }
            master_vote_evict(master, slot, &group->sync);
        }
    }
}
