/* The shared state of a group: offers, the election, who fetches from whom, and the end. The master never
 * sees a tensor, only digests. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/election.h"
#include "core/master_state.h"
#include "pccl.h"

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
        const struct slot *peer = &master->slots[sources[(turn + i) % count]];
        struct member *source = &plan->sources[plan->source_count++];
        source->id = peer->id;
        source->address = peer->address;
        memcpy(source->name, peer->name, sizeof source->name);
    }
}

static void send_plans(struct master *master, int index) {
    struct message *message = &master->message;
    struct message_sync_plan *plan = &message->as.sync_plan;
    message->type = MESSAGE_SYNC_PLAN;
    for (int slot = next_with(master, index, SYNC_PART_HOLDS, 0); slot != NO_SLOT;
         slot = next_with(master, index, SYNC_PART_HOLDS, slot + 1)) {
        if (is_source(master, slot) || master->slots[slot].sync_unsure) {
            fill_plan(&master->groups[index], SYNC_HOLD, plan);
            master_send(master, slot, message);
        }
    }
    int turn = 0;
    for (int slot = next_with(master, index, SYNC_PART_FETCHES, 0); slot != NO_SLOT;
         slot = next_with(master, index, SYNC_PART_FETCHES, slot + 1)) {
        fill_plan(&master->groups[index], SYNC_FETCH, plan);
        add_sources(master, index, turn++, plan);
        master->slots[slot].sync_unsure = true;
        master_send(master, slot, message);
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

static void fail_election(struct master *master, int index, const struct election *election, int offender) {
    char reason[MAX_REASON_BYTES + 1], label[LABEL_BYTES];
    if (election->outcome == BAD_REVISION) {
        snprintf(reason, sizeof reason,
                 "peer %s offers revision %" PRIu64 " of the shared state, expected %" PRIu64
                 ": one more than the last that was synchronised",
                 master_label(master, offender, label), master->slots[offender].offer.revision,
                 election->expected);
        master_sync_end(master, index, pcclInvalidUsage, reason);
        return;
    }
    bool any_touched = false;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        any_touched = any_touched || (slot_set_has(&master->groups[index].sync.come, slot) &&
                                      master->slots[slot].sync_touched);
    }
    master_sync_end(master, index, pcclNoSharedStateAvailable,
                    any_touched ? "all who held the elected state were lost while it was being copied: peers "
                                  "that were receiving hold a part of it"
                                : "no peer offers a shared state: all only receive");
}

/* Elects among those who have come, and tells everybody its part. */
static void hold_election(struct master *master, int index) {
    struct group *group = &master->groups[index];
    struct candidate candidates[MAX_PEERS];
    int16_t slots[MAX_PEERS];
    size_t count = 0;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(&group->sync.come, slot)) {
            slots[count] = (int16_t)slot;
            candidates[count++] = (struct candidate){.peer = master->slots[slot].id,
                                                     .offer = master->slots[slot].offer,
                                                     .touched = master->slots[slot].sync_touched};
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
    peer->offer = *offer;
    if (master_vote_must_wait(master)) {
        peer->early_vote = VOTE_SYNC_STATE;
    } else if (master_vote_first_of(master, &master->vote, peer->group) != NO_SLOT) {
        master_vote_mismatch(master, slot, VOTE_SYNC_STATE, &master->vote);
    } else if (!group->sync.open || !slot_set_has(&group->sync.come, slot)) {
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

void master_sync_report(struct master *master, int slot, const struct message_sync_report *report) {
    struct slot *peer = &master->slots[slot];
    int index = peer->group;
    bool fetches = peer->sync_part == SYNC_PART_FETCHES;
    if (peer->state != SLOT_MEMBER || report->sync == 0 ||
        report->sync != master->groups[index].sync_number ||
        (!fetches && peer->sync_part != SYNC_PART_HOLDS)) {
        return; /* a newer plan has overtaken it */
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
        if (slot_set_count(&members) < 2) {
            master_sync_end(master, index, pcclTooFewPeers,
                            "this peer is alone in its group: there is nobody to share state with");
        } else {
            hold_election(master, index);
        }
    }
}

void master_sync_check(struct master *master) {
    for (int index = 0; index < MAX_PEERS; index++) {
        struct group *group = &master->groups[index];
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
