/* Joint calls of the whole run: one rendezvous, and what it leads to. */
#include <inttypes.h>
#include <stdio.h>

#include "core/describe.h"
#include "core/master_state.h"
#include "core/peer_state.h"
#include "pccl.h"

static int next_member(const struct master *master, int from) {
    return from < MAX_PEERS ? slot_set_next(&master->members, from) : -1;
}

void master_vote_result(struct master *master, int slot, uint8_t kind, uint16_t status, uint64_t value,
                        const char *reason) {
    struct message message = {.type = MESSAGE_VOTE_RESULT};
    message.as.vote_result.kind = kind;
    message.as.vote_result.status = status;
    message.as.vote_result.value = value;
    snprintf(message.as.vote_result.reason, sizeof message.as.vote_result.reason, "%s", reason);
    master_send(master, slot, &message);
}

void master_vote_announce(struct master *master, int group, const struct rendezvous *vote, int first) {
    struct message message = {.type = MESSAGE_VOTE_OPENED};
    message.as.vote.kind = first == NO_SLOT ? VOTE_NONE : vote->kind;
    message.as.vote.peer = first == NO_SLOT ? (struct id){{0}} : master->slots[first].id;
    for (int slot = next_member(master, 0); slot >= 0; slot = next_member(master, slot + 1)) {
        if (master->slots[slot].group == group && !slot_set_has(&vote->come, slot)) {
            master_send(master, slot, &message);
        }
    }
    master->groups[group].vote_announced = first != NO_SLOT;
}

int master_vote_first_of(const struct master *master, const struct rendezvous *vote, int group) {
    for (int slot = vote->open ? slot_set_next(&vote->come, 0) : -1; slot >= 0;
         slot = slot + 1 < MAX_PEERS ? slot_set_next(&vote->come, slot + 1) : -1) {
        if (master->slots[slot].group == group) {
            return slot;
        }
    }
    return NO_SLOT;
}

/* Ends the vote with one result for all who came. */
static void end_vote(struct master *master, uint16_t status, uint64_t value, const char *reason) {
    uint8_t kind = master->vote.kind;
    struct slot_set come = master->vote.come;
    for (int group = 0; group < MAX_PEERS; group++) {
        if (master->groups[group].used && !master->groups[group].sync.open &&
            master->groups[group].vote_announced) { /* else it is another call that is announced there */
            master_vote_announce(master, group, &master->vote, NO_SLOT);
        }
    }
    rendezvous_close(&master->vote);
    slot_set_clear(&master->vote.come);
    master->admitting = false;
    master->complete_ns = 0;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(&come, slot)) {
            master_vote_result(master, slot, kind, status, value, reason);
        }
    }
}

/* What the members admitted last have voted for meanwhile. */
static void count_early_votes(struct master *master) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        struct message_vote vote = {.kind = master->slots[slot].early_vote};
        master->slots[slot].early_vote = VOTE_NONE;
        if (vote.kind == VOTE_NONE || !slot_set_has(&master->members, slot)) {
            continue;
        }
        if (vote.kind == VOTE_SYNC_STATE) {
            struct message_sync_offer offer = master->slots[slot].offer;
            master_sync_offer(master, slot, &offer);
        } else {
            master_vote(master, slot, &vote);
        }
    }
}

/* Newcomers vote with the others from the moment they are let in, and so the others wait for them: also
 * when nobody was left to vote them in, and the epochs of several groups are formed one by one. */
static bool is_anybody_joining(const struct master *master) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state == SLOT_JOINING) {
            return true;
        }
    }
    return false;
}

void master_vote_mismatch(struct master *master, int slot, uint8_t kind, struct rendezvous *vote) {
    char reason[MAX_REASON_BYTES + 1], first[LABEL_BYTES], second[LABEL_BYTES];
    int other = master_vote_first_of(master, vote, master->slots[slot].group);
    snprintf(reason, sizeof reason, "joint calls differ: peer %s called %s, peer %s called %s",
             master_label(master, other != NO_SLOT ? other : vote->first, first), vote_kind_name(vote->kind),
             master_label(master, slot, second), vote_kind_name(kind));
    master_log(master, "%s", reason);
    master_vote_end(master, vote, pcclMismatch, reason);
    master_vote_result(master, slot, kind, pcclMismatch, 0, reason);
}

void master_vote_end(struct master *master, struct rendezvous *vote, uint16_t status, const char *reason) {
    if (vote == &master->vote) {
        end_vote(master, status, 0, reason);
    } else {
        master_sync_end(master, master_sync_group(master, vote), status, reason);
    }
}

bool master_vote_must_wait(const struct master *master) {
    return master->admitting || is_anybody_joining(master);
}

void master_vote_come(struct master *master, struct rendezvous *vote, uint8_t kind, int slot) {
    rendezvous_come(vote, kind, slot, master->now_ns);
    if (vote->next_report_ns == 0) {
        vote->next_report_ns = master->now_ns + master->slots[slot].timeout_ns;
    }
    master_watch(master, master->now_ns); /* its straggler timeout may be the shortest */
    if (!master->groups[master->slots[slot].group].vote_announced) {
        master_vote_announce(master, master->slots[slot].group, vote, slot);
    }
}

void master_vote(struct master *master, int slot, const struct message_vote *vote) {
    if (master->slots[slot].state != SLOT_MEMBER || vote->kind == VOTE_NONE ||
        vote->kind == VOTE_SYNC_STATE) {
        master_join_evict(master, slot, pcclEvicted, "it voted although it has no such vote");
        return;
    }
    struct rendezvous *sync = &master->groups[master->slots[slot].group].sync;
    if (master_vote_must_wait(master)) {
        master->slots[slot].early_vote = vote->kind;
    } else if (sync->open) {
        master_vote_mismatch(master, slot, vote->kind, sync);
    } else if (master->vote.open && master->vote.kind != vote->kind) {
        master_vote_mismatch(master, slot, vote->kind, &master->vote);
    } else if (!master->vote.open || !slot_set_has(&master->vote.come, slot)) {
        master_vote_come(master, &master->vote, vote->kind, slot);
        master_settle(master);
    }
}

/* Newcomers that are being reached may come along, if that takes no longer than a few round trips. */
static bool waits_for_newcomers(struct master *master) {
    master->complete_ns = master->complete_ns == 0 ? master->now_ns : master->complete_ns;
    uint64_t until_ns = master_probe_wait_ns(master),
             most_ns = master->complete_ns + master_probe_patience_ns(master);
    until_ns = until_ns < most_ns ? until_ns : most_ns;
    if (master->now_ns >= until_ns) {
        return false;
    }
    master_watch(master, until_ns);
    return true;
}

static void complete(struct master *master) {
    switch (master->vote.kind) {
    case VOTE_PEERS_PENDING:
        end_vote(master, pcclSuccess, master_probe_anybody(master), "");
        break;
    case VOTE_UPDATE_TOPOLOGY:
        if (waits_for_newcomers(master)) {
            break;
        }
        master->admitting = true;
        master->admitted_ns = master->now_ns;
        master_watch(master, master->now_ns);
        master_join_admit(master);
        break;
    default: /* VOTE_OPTIMIZE_TOPOLOGY: bandwidth is not measured, so the order that stands is kept */
        end_vote(master, pcclSuccess, 0, "");
        break;
    }
}

void master_vote_settle(struct master *master) {
    if (!master->vote.open) {
        master->complete_ns = 0;
        if (!is_anybody_joining(master)) {
            count_early_votes(master);
        }
        return;
    }
    if (!master->admitting && rendezvous_complete(&master->vote, &master->members)) {
        complete(master);
    } else if (!master->admitting) {
        master->complete_ns = 0;
    }
    if (master->vote.open && master->admitting && master_epoch_all_formed(master)) {
        end_vote(master, pcclSuccess, 0, "");
        count_early_votes(master);
    }
}

void master_vote_withdraw_from(struct master *master, struct rendezvous *vote, int slot) {
    int group = master->slots[slot].group;
    bool had_come = vote->open && slot_set_has(&vote->come, slot);
    rendezvous_withdraw(vote, slot);
    if (had_come && master->groups[group].vote_announced &&
        master_vote_first_of(master, vote, group) == NO_SLOT) {
        master_vote_announce(master, group, vote, NO_SLOT);
    }
}

void master_vote_withdraw(struct master *master, int slot) {
    master_vote_withdraw_from(master, &master->vote, slot);
    if (!master->vote.open) {
        master->admitting = false;
    }
}

void master_vote_conflict(struct master *master, int slot, const struct message_op_conflict *conflict) {
    int index = master->slots[slot].group;
    struct group *group = &master->groups[index];
    struct rendezvous *vote = conflict->kind == VOTE_SYNC_STATE ? &group->sync : &master->vote;
    bool current = master->slots[slot].state == SLOT_MEMBER && group->epoch != 0 &&
                   group->epoch == conflict->epoch && vote->open && vote->kind == conflict->kind &&
                   !slot_set_has(&vote->come, slot);
    int voter = current ? master_vote_first_of(master, vote, index) : NO_SLOT;
    if (voter == NO_SLOT) {
        return;
    }
    char first[LABEL_BYTES], second[LABEL_BYTES], op[DESCRIBE_BYTES];
    struct ending ending = ending_abort(
        pcclMismatch, "peers wait for each other: peer %s called %s, peer %s called %s with tag %" PRIu64,
        master_label(master, voter, first), vote_kind_name(conflict->kind),
        master_label(master, slot, second), describe_op(&conflict->mine, op), conflict->tag);
    ending.has_guilty_tag = true;
    ending.guilty_tag = conflict->tag;
    group->excused = vote->come;
    group->excused_tag = conflict->tag;
    master_vote_end(master, vote, pcclMismatch, ending.reason);
    master_epoch_reform(master, index, &ending);
    master_settle(master);
}

/* Tells those who came who is missing; returns the shortest straggler timeout among them. */
static uint64_t report_missing(struct master *master, const struct rendezvous *vote,
                               const struct slot_set *members, bool tell) {
    struct message message = {.type = MESSAGE_VOTE_WAITING};
    struct message_stragglers *report = &message.as.stragglers;
    report->kind = vote->kind;
    report->waited_ms = (uint32_t)((master->now_ns - vote->opened_ns) / 1000000);
    uint64_t shortest_ns = UINT64_MAX;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        uint64_t straggler_ns = master->slots[slot].straggler_timeout_ns;
        if (slot_set_has(&vote->come, slot)) {
            shortest_ns = straggler_ns != 0 && straggler_ns < shortest_ns ? straggler_ns : shortest_ns;
        } else if (slot_set_has(members, slot)) {
            report->total++;
            if (report->named < MAX_NAMED_STRAGGLERS) {
                report->peers[report->named++] = master->slots[slot].id;
            }
        }
    }
    for (int slot = 0; slot < MAX_PEERS && tell; slot++) {
        if (slot_set_has(&vote->come, slot)) {
            master_send(master, slot, &message);
        }
    }
    return shortest_ns;
}

static int find_missing(const struct rendezvous *vote, const struct slot_set *members) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(members, slot) && !slot_set_has(&vote->come, slot)) {
            return slot;
        }
    }
    return NO_SLOT;
}

int master_vote_remind(struct master *master, struct rendezvous *vote, const struct slot_set *members) {
    bool due = master->now_ns >= vote->next_report_ns;
    uint64_t straggler_ns = report_missing(master, vote, members, due);
    if (due) {
        vote->next_report_ns = vote->opened_ns + 2 * (vote->next_report_ns - vote->opened_ns);
    }
    master_watch(master, vote->next_report_ns);
    if (straggler_ns == UINT64_MAX) {
        return NO_SLOT;
    }
    if (master->now_ns - vote->opened_ns < straggler_ns) {
        master_watch(master, vote->opened_ns + straggler_ns);
        return NO_SLOT;
    }
    return find_missing(vote, members);
}

void master_vote_evict(struct master *master, int slot, const struct rendezvous *vote) {
    master_join_evict(master, slot, pcclEvicted, "the others wait for it in %s for %.1f s",
                      vote_kind_name(vote->kind), (double)(master->now_ns - vote->opened_ns) / 1e9);
}

/* A group that takes long to be formed holds up no other one: those whose epoch stands have their result. */
static void release_formed_groups(struct master *master) {
    uint64_t due_ns = master->admitted_ns + 2 * master_probe_patience_ns(master);
    if (master->now_ns < due_ns) {
        master_watch(master, due_ns);
        return;
    }
    for (int group = 0; group < MAX_PEERS && master->vote.open; group++) {
        if (!master->groups[group].used || master->groups[group].epoch == 0 ||
            master_vote_first_of(master, &master->vote, group) == NO_SLOT) {
            continue;
        }
        if (master->groups[group].vote_announced) {
            master_vote_announce(master, group, &master->vote, NO_SLOT);
        }
        struct slot_set come = master->vote.come;
        for (int slot = 0; slot < MAX_PEERS; slot++) {
            if (slot_set_has(&come, slot) && master->slots[slot].group == group) {
                master_vote_result(master, slot, VOTE_UPDATE_TOPOLOGY, pcclSuccess, 0, "");
                rendezvous_withdraw(&master->vote, slot);
            }
        }
    }
    if (!master->vote.open) {
        master->admitting = false;
        master_settle(master); /* what others have voted for meanwhile */
    }
}

void master_vote_check(struct master *master) {
    if (master->vote.open && master->admitting) {
        release_formed_groups(master);
    } else if (master->vote.open && master->complete_ns != 0) {
        master_settle(master);
    }
    while (master->vote.open && !master->admitting) {
        int slot = master_vote_remind(master, &master->vote, &master->members);
        if (slot == NO_SLOT) {
            return;
        }
        master_vote_evict(master, slot, &master->vote);
    }
}
