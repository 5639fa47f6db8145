/* Epochs: proposed, made ready by their members, committed, ended. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "core/master_state.h"
#include "pccl.h"

/* A link that breaks this often in a row, each time within two timeouts, counts as one that can't be
 * made. */
enum { LINK_LOSSES_TO_GIVE_UP = 3 };
/* A member reports within one timeout what it can't link; after this many it is itself at fault. */
enum { TIMEOUTS_TO_GET_READY = 4 };
/* To find out that a pair still can't be linked takes about two timeouts: long enough for many pairs. */
enum { TIMEOUTS_TO_FORGIVE = 20 };

static struct ending ending_make(enum fate fate, uint16_t status, const char *format, va_list arguments) {
    struct ending ending = {.fate = fate, .status = status};
    vsnprintf(ending.reason, sizeof ending.reason, format, arguments);
    return ending;
}

struct ending ending_abort(uint16_t status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    struct ending ending = ending_make(FATE_ABORT, status, format, arguments);
    va_end(arguments);
    return ending;
}

struct ending ending_carry(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    struct ending ending = ending_make(FATE_CARRY, pcclSuccess, format, arguments);
    va_end(arguments);
    return ending;
}

static int position(const struct group *group, int slot) {
    for (int i = 0; i < group->size; i++) {
        if (group->ring[i] == slot) {
            return i;
        }
    }
    return -1;
}

/* At the end of the ring, and in the last place of the tree. */
void master_epoch_append(struct master *master, int slot) {
    struct group *group = &master->groups[master->slots[slot].group];
    group->ring[group->size] = (int16_t)slot;
    group->tree[group->size] = (int16_t)slot;
    group->size++;
    master->slots[slot].link_count = 0;
}

/* In the tree the last one takes over its place: all others keep theirs, and with them their links. */
void master_epoch_remove(struct master *master, int slot) {
    struct group *group = &master->groups[master->slots[slot].group];
    int at = position(group, slot);
    if (at < 0) {
        return;
    }
    size_t behind = (size_t)(group->size - at - 1);
    memmove(&group->ring[at], &group->ring[at + 1], behind * sizeof group->ring[0]);
    group->size--;
    for (int i = 0; i < group->size; i++) {
        if (group->tree[i] == slot) {
            group->tree[i] = group->tree[group->size];
        }
    }
}

static void mark_bad(struct master *master, int a, int b) {
    slot_set_add(&master->bad[a], b);
    slot_set_add(&master->bad[b], a);
}

/* Before anybody is left out, pairs that failed long ago get another chance: what was wrong between them
 * may be over. The pair that failed last gets none, and the whole group one in a while only. */
static void forgive_pairs(struct master *master, struct group *group) {
    uint64_t longest_ns = 0;
    for (int i = 0; i < group->size; i++) {
        const struct slot *peer = &master->slots[group->ring[i]];
        longest_ns = peer->timeout_ns > longest_ns ? peer->timeout_ns : longest_ns;
    }
    if (group->forgiven_ns != 0 && master->now_ns - group->forgiven_ns < TIMEOUTS_TO_FORGIVE * longest_ns) {
        return;
    }
    group->forgiven_ns = master->now_ns;
    int a = master_find_id(master, &group->last_failed[0]),
        b = master_find_id(master, &group->last_failed[1]);
    bool fresh = a != NO_SLOT && b != NO_SLOT && group->last_failed_ns == master->now_ns;
    for (int i = 0; i < group->size; i++) {
        for (int k = 0; k < group->size; k++) {
            slot_set_remove(&master->bad[group->ring[i]], group->ring[k]);
            slot_set_remove(&master->flipped[group->ring[i]], group->ring[k]);
        }
    }
    if (fresh) {
        mark_bad(master, a, b);
    }
    master_log(master, "pairs of group %" PRIu32 " that could not be linked before may try again",
               group->number);
}

/* Orders the ring, without those that no ring can include. */
static void plan_ring(struct master *master, int index, const char *why) {
    struct group *group = &master->groups[index];
    if (!master_ring_order(master, group->ring, group->size)) {
        forgive_pairs(master, group);
    }
    while (!master_ring_order(master, group->ring, group->size)) {
        int slot = master_ring_outcast(master, group->ring, group->size);
        CHECK(slot != NO_SLOT);
        bool newcomer = master->slots[slot].state == SLOT_JOINING;
        char reason[MAX_REASON_BYTES + 1];
        int room = MAX_REASON_BYTES - 96;
        snprintf(reason, sizeof reason, "no ring of links includes it (%.*s): check its address and firewall",
                 room, why);
        master_join_expel(master, slot, newcomer ? pcclRankConnectionFailed : pcclEvicted, reason);
    }
}

static void propose_to(struct master *master, const struct group *group, int rank,
                       const uint16_t ranks[MAX_PEERS]) {
    const struct slot *peer = &master->slots[group->ring[rank]];
    struct message_propose *propose = &master->message.as.propose;
    propose->rank = (uint16_t)rank;
    propose->link_count = peer->link_count;
    for (int i = 0; i < peer->link_count; i++) {
        const struct master_link *link = &peer->links[i];
        propose->links[i] = (struct link_plan){
            .rank = ranks[link->other], .streams = link->streams, .opener = link->opener, .key = link->key};
    }
    master_send(master, group->ring[rank], &master->message);
}

static void propose_to_all(struct master *master, const struct group *group, enum fate fate,
                           const struct ending *ending) {
    master->message.type = MESSAGE_PROPOSE;
    struct message_propose *propose = &master->message.as.propose;
    memset(propose, 0, offsetof(struct message_propose, members));
    propose->epoch = group->plan_epoch;
    propose->fate = (uint8_t)fate;
    propose->status = ending->status;
    propose->has_guilty_tag = fate == FATE_ABORT && ending->has_guilty_tag;
    propose->guilty_tag = ending->guilty_tag;
    memcpy(propose->reason, ending->reason, sizeof propose->reason);
    propose->world = group->size;
    propose->has_tree = master_links_has_tree(master, group);
    uint16_t ranks[MAX_PEERS];
    for (int i = 0; i < group->size; i++) {
        ranks[group->ring[i]] = (uint16_t)i;
    }
    for (int i = 0; i < group->size; i++) {
        propose->places[ranks[group->tree[i]]] = (uint16_t)i;
        const struct slot *peer = &master->slots[group->ring[i]];
        struct member *member = &propose->members[i];
        member->id = peer->id;
        member->address = peer->address;
        memcpy(member->name, peer->name, sizeof member->name);
    }
    for (int rank = 0; rank < group->size; rank++) {
        propose_to(master, group, rank, ranks);
    }
}

void master_epoch_reform(struct master *master, int index, const struct ending *ending) {
    struct group *group = &master->groups[index];
    /* While an epoch is being formed no op runs: those that the ending before this one has suspended
     * simply wait longer. */
    enum fate fate = group->epoch == 0 ? FATE_CARRY : ending->fate;
    master_op_forget(master, index);
    group->epoch = 0;
    group->kept_count = 0; /* all will name theirs again */
    plan_ring(master, index, ending->reason);
    if (group->size == 0) {
        return;
    }
    master_links_plan(master, group);
    group->plan_epoch = ++master->last_epoch;
    group->formed_since_ns = master->now_ns;
    master_watch(master, master->now_ns); /* its deadline is worked out by the next check */
    for (int i = 0; i < group->size; i++) {
        master->slots[group->ring[i]].ready = false;
    }
    master_log(master, "epoch %" PRIu64 " of group %" PRIu32 " is proposed to %d peers: %s",
               group->plan_epoch, group->number, (int)group->size, ending->reason);
    propose_to_all(master, group, fate, ending);
}

bool master_epoch_all_formed(const struct master *master) {
    for (int i = 0; i < MAX_PEERS; i++) {
        const struct group *group = &master->groups[i];
        if (group->used && group->size > 0 && group->epoch != group->plan_epoch) {
            return false;
        }
    }
    return true;
}

void master_epoch_tell_census(struct master *master) {
    struct message message = {.type = MESSAGE_CENSUS};
    struct message_census *census = &message.as.census;
    uint32_t sizes[MAX_PEERS] = {0};
    for (int slot = slot_set_next(&master->members, 0); slot >= 0;
         slot = slot + 1 < MAX_PEERS ? slot_set_next(&master->members, slot + 1) : -1) {
        uint32_t size = ++sizes[master->slots[slot].group];
        census->peers++;
        census->groups += size == 1;
        census->largest_group = size > census->largest_group ? size : census->largest_group;
    }
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(&master->members, slot)) {
            master_send(master, slot, &message);
        }
    }
}

/* What the commit says to one member. */
static void list_failed_tags(const struct group *group, int slot, struct message_commit_epoch *commit) {
    bool excused = slot_set_has(&group->excused, slot);
    commit->failed_count = 0;
    for (uint16_t i = 0; i < group->failed_count; i++) {
        if (!excused || group->failed[i].tag != group->excused_tag) {
            commit->failed_tags[commit->failed_count++] = group->failed[i].tag;
        }
    }
}

static bool is_same(const struct ended_op *a, const struct ended_op *b) {
    return a->tag == b->tag && a->number == b->number;
}

static void add_failed(struct group *group, const struct ended_op *op) {
    for (uint16_t i = 0; i < group->failed_count; i++) {
        if (is_same(&group->failed[i], op)) {
            return;
        }
    }
    if (group->failed_count < MAX_FAILED_TAGS) {
        group->failed[group->failed_count++] = *op;
    }
}

static void remove_failed(struct group *group, const struct ended_op *op) {
    uint16_t left = 0;
    for (uint16_t i = 0; i < group->failed_count; i++) {
        if (!is_same(&group->failed[i], op)) {
            group->failed[left++] = group->failed[i];
        }
    }
    group->failed_count = left;
}

/* What a member has returned early does not fail: that member serves it to all. */
static void serve_kept_ops(struct group *group, struct message_commit_epoch *commit) {
    commit->served_count = group->kept_count;
    for (uint16_t i = 0; i < group->kept_count; i++) {
        const struct kept_op *kept = &group->kept_ops[i];
        commit->served_ops[i] =
            (struct served_op){.op = kept->op, .rank = (uint16_t)position(group, kept->holder)};
        remove_failed(group, &kept->op);
    }
    group->kept_count = 0;
}

static void commit(struct master *master, struct group *group) {
    group->epoch = group->plan_epoch;
    for (int i = 0; i < group->size; i++) {
        master->slots[group->ring[i]].state = SLOT_MEMBER;
        slot_set_add(&master->members, group->ring[i]);
    }
    master_epoch_tell_census(master);
    struct message *message = &master->message;
    message->type = MESSAGE_COMMIT_EPOCH;
    message->as.commit_epoch.epoch = group->epoch;
    message->as.commit_epoch.tree_bytes = master_links_tree_bytes(master, group);
    serve_kept_ops(group, &message->as.commit_epoch);
    for (int i = 0; i < group->size; i++) {
        list_failed_tags(group, group->ring[i], &message->as.commit_epoch);
        master_send(master, group->ring[i], message);
    }
    group->failed_count = 0;
    slot_set_clear(&group->excused);
    master_log(master, "epoch %" PRIu64 " of group %" PRIu32 " is committed: %d peers", group->epoch,
               group->number, (int)group->size);
    master_settle(master);
}

/* False if there are more than a group can have open. Of two under one tag the later one counts: it has been
 * called by all, and so all have the one before. */
static bool add_kept_ops(struct group *group, int slot, const struct message_ready *ready) {
    for (uint16_t i = 0; i < ready->kept_count; i++) {
        const struct ended_op *op = &ready->kept[i];
        uint16_t k = 0;
        while (k < group->kept_count && group->kept_ops[k].op.tag != op->tag) {
            k++;
        }
        if (k == MAX_OP_SLOTS) {
            return false;
        }
        if (k == group->kept_count || group->kept_ops[k].op.number < op->number) {
            group->kept_ops[k] = (struct kept_op){.op = *op, .holder = (int16_t)slot};
        }
        group->kept_count = (uint16_t)(k == group->kept_count ? k + 1 : group->kept_count);
    }
    return true;
}

void master_epoch_ready(struct master *master, int slot, const struct message_ready *ready) {
    struct group *group = &master->groups[master->slots[slot].group];
    if (master->slots[slot].state == SLOT_PENDING || ready->epoch != group->plan_epoch || group->epoch != 0) {
        return; /* a newer proposal has overtaken it */
    }
    for (uint16_t i = 0; i < ready->failed_count; i++) {
        add_failed(group, &ready->failed[i]);
    }
    if (!add_kept_ops(group, slot, ready)) {
        master_join_evict(master, slot, pcclEvicted, "it keeps the results of more ops than a peer can have");
        return;
    }
    master->slots[slot].ready = true;
    master->slots[slot].rtt_us = ready->rtt_us;
    for (int i = 0; i < group->size; i++) {
        if (!master->slots[group->ring[i]].ready) {
            return;
        }
    }
    commit(master, group);
}

/* The other end of a report about the plan that stands, or NO_SLOT if the report is out of date. */
static int reported_peer(const struct master *master, int slot, const struct message_unreachable *report) {
    const struct group *group = &master->groups[master->slots[slot].group];
    int other = master_find_id(master, &report->peer);
    if (master->slots[slot].state == SLOT_PENDING || report->epoch != group->plan_epoch || other == NO_SLOT ||
        other == slot || position(group, other) < 0) {
        return NO_SLOT;
    }
    return other;
}

/* No link can be made between these two, as far as anybody can see now. */
static void give_pair_up(struct master *master, struct group *group, int a, int b) {
    mark_bad(master, a, b);
    group->last_failed[0] = master->slots[a].id;
    group->last_failed[1] = master->slots[b].id;
    group->last_failed_ns = master->now_ns;
}

void master_epoch_unreachable(struct master *master, int slot, const struct message_unreachable *report) {
    int other = reported_peer(master, slot, report);
    if (other == NO_SLOT) {
        return;
    }
    if (slot_set_has(&master->flipped[slot], other)) {
        give_pair_up(master, &master->groups[master->slots[slot].group], slot,
                     other); /* neither can open it */
    } else {
        slot_set_add(&master->flipped[slot], other);
        slot_set_add(&master->flipped[other], slot);
    }
    master_links_drop(master, slot, other);
    char from[LABEL_BYTES], to[LABEL_BYTES];
    struct ending ending =
        ending_abort(pcclRankConnectionLost, "no link between peers %s and %s: %s",
                     master_label(master, slot, from), master_label(master, other, to), report->reason);
    master_epoch_reform(master, master->slots[slot].group, &ending);
    master_settle(master);
}

static void count_loss(struct master *master, struct group *group, int a, int b) {
    const struct id *x = &master->slots[a].id, *y = &master->slots[b].id;
    bool same = (id_equal(&group->last_lost[0], x) && id_equal(&group->last_lost[1], y)) ||
                (id_equal(&group->last_lost[0], y) && id_equal(&group->last_lost[1], x));
    bool soon = master->now_ns - group->last_lost_ns < 2 * master->slots[a].timeout_ns;
    group->lost_streak = same && soon ? group->lost_streak + 1 : 1;
    group->last_lost[0] = *x;
    group->last_lost[1] = *y;
    group->last_lost_ns = master->now_ns;
    if (group->lost_streak >= LINK_LOSSES_TO_GIVE_UP) {
        give_pair_up(master, group, a, b);
    }
}

void master_epoch_link_lost(struct master *master, int slot, const struct message_unreachable *report) {
    int other = reported_peer(master, slot, report);
    if (other == NO_SLOT) {
        return;
    }
    struct group *group = &master->groups[master->slots[slot].group];
    count_loss(master, group, slot, other);
    master_links_drop(master, slot, other);
    char from[LABEL_BYTES], to[LABEL_BYTES];
    struct ending ending =
        ending_abort(pcclRankConnectionLost, "the link between peers %s and %s broke: %s",
                     master_label(master, slot, from), master_label(master, other, to), report->reason);
    master_epoch_reform(master, master->slots[slot].group, &ending);
    master_settle(master);
}

static int find_unready(const struct master *master, const struct group *group, uint64_t *deadline_ns) {
    for (int i = 0; i < group->size; i++) {
        const struct slot *peer = &master->slots[group->ring[i]];
        if (!peer->ready) {
            *deadline_ns = group->formed_since_ns + TIMEOUTS_TO_GET_READY * peer->timeout_ns;
            return group->ring[i];
        }
    }
    return NO_SLOT;
}

void master_epoch_check(struct master *master) {
    for (int i = 0; i < MAX_PEERS; i++) {
        struct group *group = &master->groups[i];
        if (!group->used || group->epoch == group->plan_epoch) {
            continue;
        }
        uint64_t deadline_ns = UINT64_MAX;
        int slot = find_unready(master, group, &deadline_ns);
        if (slot != NO_SLOT && master->now_ns >= deadline_ns) {
            master_join_evict(master, slot, pcclEvicted, "it did not make its links within %.1f s",
                              (double)(master->now_ns - group->formed_since_ns) / 1e9);
        } else {
            master_watch(master, deadline_ns);
        }
    }
}
