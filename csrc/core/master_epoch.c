/* Epochs: proposed, made ready by their members, committed, ended. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "core/master_state.h"
#include "pccl.h"

/* A link that breaks this often in a row, with no epoch of two timeouts between, counts as one that can't be
 * made. */
enum { LINK_LOSSES_TO_GIVE_UP = 3 };
/* Links to so many others that were given up tell who is at fault. */
enum { LOSSY_PAIRS_OF_A_CULPRIT = 3 };
/* A member reports within one timeout what it can't link; after this many it is itself at fault. It is the
 * timeout of the members that counts, who wait. */
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
    slot_set_remove(&master->good[a], b);
    slot_set_remove(&master->good[b], a);
}

/* Before anybody is left out, pairs that failed long ago get another chance: what was wrong between them
 * may be over. The pair that failed last gets none, and the whole group one in a while only. */
bool master_epoch_forgive(struct master *master, struct group *group) {
    uint64_t longest_ns = 0;
    bool any = false;
    for (int i = 0; i < group->size; i++) {
        const struct slot *peer = &master->slots[group->ring[i]];
        longest_ns = peer->timeout_ns > longest_ns ? peer->timeout_ns : longest_ns;
        for (int k = 0; k < group->size && !any; k++) {
            any = slot_set_has(&master->bad[group->ring[i]], group->ring[k]);
        }
    }
    if (!any ||
        (group->forgiven_ns != 0 && master->now_ns - group->forgiven_ns < TIMEOUTS_TO_FORGIVE * longest_ns)) {
        return false;
    }
    group->forgiven_ns = master->now_ns;
    int a = master_find_id(master, &group->last_failed[0]),
        b = master_find_id(master, &group->last_failed[1]);
    bool fresh = a != NO_SLOT && b != NO_SLOT && group->last_failed_ns == master->now_ns;
    for (int i = 0; i < group->size; i++) {
        for (int k = 0; k < group->size; k++) {
            slot_set_remove(&master->bad[group->ring[i]], group->ring[k]);
            slot_set_remove(&master->cant_open[group->ring[i]], group->ring[k]);
        }
    }
    if (fresh) {
        mark_bad(master, a, b);
    }
    master_log(master, "pairs of group %" PRIu32 " that could not be linked before may try again",
               group->number);
    return true;
}

/* Orders the ring, without those that no ring can include. */
static void plan_ring(struct master *master, int index, const char *why) {
    struct group *group = &master->groups[index];
    if (!master_ring_order(master, group->ring, group->size)) {
        master_epoch_forgive(master, group);
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
    propose->guilty_blocking = propose->has_guilty_tag && ending->guilty_blocking;
    memcpy(propose->reason, ending->reason, sizeof propose->reason);
    propose->world = group->size;
    propose->has_tree = master_links_has_tree(master, group);
    uint16_t ranks[MAX_PEERS];
    for (int i = 0; i < group->size; i++) {
        ranks[group->ring[i]] = (uint16_t)i;
    }
    for (int i = 0; i < group->size; i++) {
        propose->places[ranks[group->tree[i]]] = (uint16_t)i;
        master_describe(master, NO_SLOT, group->ring[i], &propose->members[i]);
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
    } else {
        group->untold_count++;
    }
}

/* Whoever calls one of these late is not told, and may wait for those in whom it has failed. */
static void log_untold(struct master *master, struct group *group) {
    if (group->untold_count > 0) {
        master_log(
            master,
            "the members of group %" PRIu32 " had more different collectives in flight that have failed "
            "than they can be told of: %d are told, up to %" PRIu32 " are not. Who calls one of these only "
            "now may wait for the others: set timeout= for them, or start fewer at once",
            group->number, (int)MAX_FAILED_TAGS, group->untold_count);
    }
    group->untold_count = 0;
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
    group->committed_ns = master->now_ns;
    for (int i = 0; i < group->size; i++) {
        const struct slot *peer = &master->slots[group->ring[i]];
        for (int k = 0; k < peer->link_count; k++) {
            master_probe_pair_works(master, group->ring[i], peer->links[k].other);
        }
        if (peer->state == SLOT_JOINING) {
            master_probe_has_joined(master, group->ring[i]);
        }
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
    log_untold(master, group);
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
    if (master->slots[slot].state == SLOT_PENDING || ready->epoch != group->plan_epoch || group->epoch != 0 ||
        master->slots[slot].ready) {
        return; /* a newer proposal has overtaken it, or it has been said */
    }
    if (ready->failed_count > MAX_OP_SLOTS) {
        master_join_evict(master, slot, pcclEvicted, "it has failed more ops than a peer can have");
        return;
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

/* The link of the plan that stands which a report is about; NULL if it is out of date, or about none. */
static const struct master_link *reported_link(struct master *master, int slot,
                                               const struct message_unreachable *report) {
    const struct group *group = &master->groups[master->slots[slot].group];
    int other = master_find_id(master, &report->peer);
    if (master->slots[slot].state == SLOT_PENDING || report->epoch != group->plan_epoch || other == NO_SLOT) {
        return NULL;
    }
    return master_links_find(master, slot, other);
}

/* No link can be made between these two, as far as anybody can see now. */
static void give_pair_up(struct master *master, struct group *group, int a, int b) {
    mark_bad(master, a, b);
    group->last_failed[0] = master->slots[a].id;
    group->last_failed[1] = master->slots[b].id;
    group->last_failed_ns = master->now_ns;
}

static void reform_without_link(struct master *master, int slot, int other, const char *what,
                                const char *reason) {
    master_links_drop(master, slot, other);
    char from[LABEL_BYTES], to[LABEL_BYTES];
    struct ending ending = ending_abort(pcclRankConnectionLost, what, master_label(master, slot, from),
                                        master_label(master, other, to), reason);
    master_epoch_reform(master, master->slots[slot].group, &ending);
    master_settle(master);
}

void master_epoch_unreachable(struct master *master, int slot, const struct message_unreachable *report) {
    const struct master_link *link = reported_link(master, slot, report);
    if (link == NULL) {
        return;
    }
    int other = link->other, opener = link->opener ? slot : other, acceptor = link->opener ? other : slot;
    slot_set_add(&master->cant_open[opener], acceptor);
    if (slot_set_has(&master->cant_open[acceptor], opener)) {
        give_pair_up(master, &master->groups[master->slots[slot].group], slot, other);
    }
    reform_without_link(master, slot, other, "no link between peers %s and %s: %s", report->reason);
}

/* ---- links that break again and again ---- */

static struct lossy_pair *find_lossy(struct group *group, int a, int b) {
    struct lossy_pair *oldest = &group->lossy[0];
    for (int i = 0; i < MAX_LOSSY_PAIRS; i++) {
        struct lossy_pair *pair = &group->lossy[i];
        if (pair->count > 0 &&
            ((pair->slots[0] == a && pair->slots[1] == b) || (pair->slots[0] == b && pair->slots[1] == a))) {
            return pair;
        }
        oldest = pair->last_ns < oldest->last_ns ? pair : oldest;
    }
    *oldest = (struct lossy_pair){.slots = {(int16_t)a, (int16_t)b}};
    return oldest;
}

void master_epoch_forget_losses(struct group *group, int slot) {
    for (int i = 0; i < MAX_LOSSY_PAIRS; i++) {
        if (group->lossy[i].slots[0] == slot || group->lossy[i].slots[1] == slot) {
            group->lossy[i] = (struct lossy_pair){0};
        }
    }
}

/* Losses count in a row: until the group has had an epoch that lasted. */
static void count_loss(struct master *master, struct group *group, int reporter, int other) {
    uint64_t lasting_ns = 2 * master_group_timeout_ns(master, group);
    if (group->epoch != 0 && master->now_ns - group->committed_ns >= lasting_ns) {
        memset(group->lossy, 0, sizeof group->lossy);
    }
    struct lossy_pair *pair = find_lossy(group, reporter, other);
    pair->last_ns = master->now_ns;
    pair->count++;
    pair->told_by[pair->slots[0] == reporter ? 0 : 1]++;
    if (pair->count >= LINK_LOSSES_TO_GIVE_UP) {
        give_pair_up(master, group, reporter, other);
    }
}

bool master_epoch_accuses_alone(const struct master *master, int slot) {
    const struct group *group = &master->groups[master->slots[slot].group];
    bool accuses = false;
    for (int i = 0; i < MAX_LOSSY_PAIRS; i++) {
        const struct lossy_pair *pair = &group->lossy[i];
        int side = pair->slots[0] == slot ? 0 : 1;
        if (pair->count >= LINK_LOSSES_TO_GIVE_UP && pair->slots[side] == slot) {
            if (pair->told_by[1 - side] > 0) {
                return false;
            }
            accuses = true;
        }
    }
    return accuses;
}

/* A peer whose links to several others were given up, while each of these has the trouble with it alone, is
 * the one at fault: it is not tried out on all of them. */
static bool is_common_culprit(const struct group *group, int slot) {
    int pairs = 0;
    for (int i = 0; i < MAX_LOSSY_PAIRS; i++) {
        const struct lossy_pair *pair = &group->lossy[i];
        bool has_it = pair->slots[0] == slot || pair->slots[1] == slot;
        if (pair->count >= LINK_LOSSES_TO_GIVE_UP) {
            if (!has_it) {
                return false;
            }
            pairs++;
        }
    }
    return pairs >= LOSSY_PAIRS_OF_A_CULPRIT;
}

void master_epoch_link_lost(struct master *master, int slot, const struct message_unreachable *report) {
    const struct master_link *link = reported_link(master, slot, report);
    if (link == NULL) {
        return;
    }
    int other = link->other;
    struct group *group = &master->groups[master->slots[slot].group];
    count_loss(master, group, slot, other);
    bool mine = is_common_culprit(group, slot), theirs = is_common_culprit(group, other);
    if (mine != theirs) {
        master_join_evict(master, mine ? slot : other, pcclEvicted,
                          "its links to %d other peers broke again and again, and theirs to each other did "
                          "not: check its network (the last: %s)",
                          (int)LOSSY_PAIRS_OF_A_CULPRIT, report->reason);
        return;
    }
    reform_without_link(master, slot, other, "the link between peers %s and %s broke: %s", report->reason);
}

/* ---- who is late ---- */

/* Those whose plan does not get ready go, all at once: else each had its time after the others. */
static void evict_late(struct master *master, struct group *group) {
    struct slot_set late;
    slot_set_clear(&late);
    for (int i = 0; i < group->size; i++) {
        if (!master->slots[group->ring[i]].ready) {
            slot_set_add(&late, group->ring[i]);
        }
    }
    double seconds = (double)(master->now_ns - group->formed_since_ns) / 1e9;
    char reason[MAX_REASON_BYTES + 1], label[LABEL_BYTES];
    snprintf(reason, sizeof reason, "it did not make its links within %.1f s", seconds);
    int first = slot_set_next(&late, 0), others = slot_set_count(&late) - 1;
    struct ending ending =
        ending_abort(pcclRankConnectionLost, "peer %s%s evicted: %s", master_label(master, first, label),
                     others > 0 ? " and others were" : " was", reason);
    int index = (int)(group - master->groups);
    for (int slot = first; slot >= 0; slot = slot + 1 < MAX_PEERS ? slot_set_next(&late, slot + 1) : -1) {
        master_join_expel(master, slot, pcclEvicted, reason);
    }
    if (group->used) {
        master_epoch_reform(master, index, &ending);
    }
    master_epoch_tell_census(master);
    master_settle(master);
}

static bool has_late(const struct master *master, const struct group *group) {
    for (int i = 0; i < group->size; i++) {
        if (!master->slots[group->ring[i]].ready) {
            return true;
        }
    }
    return false;
}

void master_epoch_check(struct master *master) {
    for (int i = 0; i < MAX_PEERS; i++) {
        struct group *group = &master->groups[i];
        if (!group->used || group->epoch == group->plan_epoch || !has_late(master, group)) {
            continue;
        }
        uint64_t deadline_ns =
            group->formed_since_ns + TIMEOUTS_TO_GET_READY * master_group_timeout_ns(master, group);
        if (master->now_ns >= deadline_ns) {
            evict_late(master, group);
        } else {
            master_watch(master, deadline_ns);
        }
    }
}
