/* Newcomers are tried while the old epoch runs on: whoever is let in has been reached already, so that
 * members do not wait for somebody who can't be.
 *
 * A newcomer first tries links to some members of its group, its anchors. Once one of them is up it counts as
 * reached and is drafted: all links that an epoch of the members and the drafted would need, and that are not
 * known to work, are tried as well. update_topology admits those of the draft whose links all work. */
#include <stdio.h>
#include <string.h>

#include "base/heartbeat.h"
#include "core/master_state.h"
#include "pccl.h"

enum {
    ANCHORS_AT_A_TIME = 3,
    /* So many anchors fail before a newcomer counts as one that nobody reaches. */
    MOST_ANCHORS = 9,
    /* One peer tries half of what it could: what is up there already is closed a little later. */
    PROBES_OF_A_PEER = MAX_PROBES / 2,
    SILENT_HEARTBEATS = 3,
    /* Whoever has failed is not tried again for one timeout, then for two, then for so many. */
    MOST_TIMEOUTS_TO_BACK_OFF = 4,
};

/* A machine that is busy takes that long to make a few connections. */
static const uint64_t least_patience_ns = UINT64_C(500000000);

uint64_t master_probe_patience_ns(const struct master *master) {
    uint64_t timeout_ns = master_run_timeout_ns(master), patience_ns = heartbeat_of(timeout_ns);
    patience_ns = patience_ns > least_patience_ns ? patience_ns : least_patience_ns;
    return patience_ns < timeout_ns / 2 ? patience_ns : timeout_ns / 2;
}

static bool is_good(const struct master *master, int a, int b) {
    return slot_set_has(&master->good[a], b);
}

static bool is_bad(const struct master *master, int a, int b) {
    return slot_set_has(&master->bad[a], b);
}

void master_probe_pair_works(struct master *master, int a, int b) {
    slot_set_add(&master->good[a], b);
    slot_set_add(&master->good[b], a);
    slot_set_remove(&master->bad[a], b);
    slot_set_remove(&master->bad[b], a);
}

/* ---- single probes ---- */

static struct probe *find_key(struct master *master, const struct id *key) {
    for (int i = 0; i < MAX_MASTER_PROBES; i++) {
        if (master->probes[i].used && id_equal(&master->probes[i].key, key)) {
            return &master->probes[i];
        }
    }
    return NULL;
}

static const struct probe *find_way(const struct master *master, int opener, int acceptor) {
    for (int i = 0; i < MAX_MASTER_PROBES; i++) {
        const struct probe *probe = &master->probes[i];
        if (probe->used && probe->opener == opener && probe->acceptor == acceptor) {
            return probe;
        }
    }
    return NULL;
}

static void tell(struct master *master, int slot, const struct id *key, bool opener, int other) {
    struct message *message = &master->message;
    message->type = MESSAGE_PROBE;
    struct message_probe *probe = &message->as.probe;
    *probe = (struct message_probe){.key = *key, .opener = opener};
    if (other != NO_SLOT) {
        master_describe(master, slot, other, &probe->member);
    }
    master_send(master, slot, message);
}

static void start(struct master *master, int opener, int acceptor) {
    struct slot *a = &master->slots[opener], *b = &master->slots[acceptor];
    struct probe *probe = master->probes;
    while (probe < master->probes + MAX_MASTER_PROBES && probe->used) {
        probe++;
    }
    if (probe == master->probes + MAX_MASTER_PROBES || a->probe_count >= PROBES_OF_A_PEER ||
        b->probe_count >= PROBES_OF_A_PEER) {
        return; /* it has its turn when others have ended */
    }
    a->probe_count++;
    b->probe_count++;
    uint64_t timeout_ns = a->timeout_ns < b->timeout_ns ? a->timeout_ns : b->timeout_ns;
    *probe =
        (struct probe){.used = true,
                       .opener = (int16_t)opener,
                       .acceptor = (int16_t)acceptor,
                       .key = random_id(&master->random),
                       .started_ns = master->now_ns,
                       .deadline_ns = master->now_ns + timeout_ns + 2 * timeout_ns / HEARTBEATS_PER_TIMEOUT};
    master_watch(master, probe->deadline_ns);
    struct id key = probe->key;
    tell(master, acceptor, &key, false, opener);
    tell(master, opener, &key, true, acceptor);
}

static void end(struct master *master, struct probe *probe) {
    probe->used = false;
    master->slots[probe->opener].probe_count--;
    master->slots[probe->acceptor].probe_count--;
}

static void note_failure(struct slot *newcomer, const char *text) {
    if (newcomer->state == SLOT_PENDING) {
        snprintf(newcomer->failure, sizeof newcomer->failure, "%s", text);
    }
}

/* It may be dead, or cut off from the master, and nobody knows yet. */
static bool is_silent(const struct master *master, int slot) {
    const struct slot *peer = &master->slots[slot];
    return master->now_ns - peer->last_heard_ns >
           SILENT_HEARTBEATS * peer->timeout_ns / HEARTBEATS_PER_TIMEOUT;
}

/* What two peers can do that seem to be one host to all others. */
static const char *hint(const struct master *master, int a, int b) {
    const struct address *x = &master->slots[a].address, *y = &master->slots[b].address;
    bool same = x->family == y->family && memcmp(x->bytes, y->bytes, sizeof x->bytes) == 0;
    return same && !address_is_loopback(x)
               ? "; both have the same address to the master: if they are behind one "
                 "NAT, give the one inside with advertise="
               : "";
}

/* Nothing is held against a healthy peer because the other one is about to be put out. */
static void fail(struct master *master, struct probe *probe, const char *reason) {
    int a = probe->opener, b = probe->acceptor;
    end(master, probe);
    if (is_silent(master, a) || is_silent(master, b)) {
        return;
    }
    slot_set_add(&master->cant_open[a], b);
    char text[MAX_REASON_BYTES + 1], from[LABEL_BYTES], to[LABEL_BYTES];
    snprintf(text, sizeof text, "no link between peers %s and %s: %.*s%s", master_label(master, a, from),
             master_label(master, b, to), MAX_REASON_BYTES / 2, reason, hint(master, a, b));
    note_failure(&master->slots[a], text);
    note_failure(&master->slots[b], text);
    if (slot_set_has(&master->cant_open[b], a) && !is_good(master, a, b)) {
        slot_set_add(&master->bad[a], b);
        slot_set_add(&master->bad[b], a);
        master_log(master, "%s", text);
    }
}

static void succeed(struct master *master, struct probe *probe) {
    int a = probe->opener, b = probe->acceptor;
    end(master, probe);
    slot_set_remove(&master->cant_open[a], b);
    const struct probe *back = find_way(master, b, a);
    if (back != NULL && back->started_ns < probe->started_ns) {
        slot_set_add(&master->cant_open[b], a); /* it was first, and has not come through */
    }
    master_probe_pair_works(master, a, b);
}

void master_probe_answered(struct master *master, int slot, const struct message_probed *answer) {
    master->slots[slot].answered = true;
    struct probe *probe = find_key(master, &answer->key);
    if (probe != NULL && (probe->opener == slot || probe->acceptor == slot)) {
        *(probe->opener == slot ? &probe->opener_up : &probe->acceptor_up) = answer->reached;
        if (!answer->reached) {
            fail(master, probe, answer->reason);
        } else if (probe->opener_up && probe->acceptor_up) {
            succeed(master, probe);
        }
    }
    master_settle(master);
}

void master_probe_forget(struct master *master, int slot) {
    for (int i = 0; i < MAX_MASTER_PROBES; i++) {
        struct probe *probe = &master->probes[i];
        if (probe->used && (probe->opener == slot || probe->acceptor == slot)) {
            end(master, probe);
        }
    }
}

void master_probe_forgive(struct master *master, uint64_t gap_ns) {
    for (int i = 0; i < MAX_MASTER_PROBES; i++) {
        master->probes[i].started_ns += gap_ns;
        master->probes[i].deadline_ns += gap_ns;
    }
}

/* Tries a pair that is not known to work or to fail: first from one end, soon from both. */
static void try_pair(struct master *master, int a, int b) {
    if (is_good(master, a, b) || is_bad(master, a, b)) {
        return;
    }
    const struct probe *there = find_way(master, a, b), *back = find_way(master, b, a);
    bool may_there = there == NULL && !slot_set_has(&master->cant_open[a], b);
    bool may_back = back == NULL && !slot_set_has(&master->cant_open[b], a);
    if (there == NULL && back == NULL) {
        start(master, may_there ? a : b, may_there ? b : a);
        return;
    }
    const struct probe *running = there != NULL ? there : back;
    uint64_t due_ns = running->started_ns + master_run_timeout_ns(master) / (4 * HEARTBEATS_PER_TIMEOUT);
    if (!may_there && !may_back) {
        return;
    }
    if (master->now_ns >= due_ns) {
        start(master, may_there ? a : b, may_there ? b : a);
    } else {
        master_watch(master, due_ns);
    }
}

/* ---- who is to be tried ---- */

static bool backs_off(const struct master *master, const struct slot *peer) {
    return master->now_ns < peer->try_after_ns;
}

/* Those who wait for the group, in the order of arrival; how many. */
static int list_pending(const struct master *master, int group, int16_t list[MAX_PEERS]) {
    int count = 0;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        const struct slot *peer = &master->slots[slot];
        if (peer->state != SLOT_PENDING || peer->group != group) {
            continue;
        }
        int at = count++;
        for (; at > 0 && master->slots[list[at - 1]].order > peer->order; at--) {
            list[at] = list[at - 1];
        }
        list[at] = (int16_t)slot;
    }
    return count;
}

/* Whom a newcomer tries first: the members between whom it would stand, then the others; if its group has
 * none, others who wait for it. */
static int list_anchors(const struct master *master, int newcomer, int16_t anchors[MAX_PEERS]) {
    const struct group *group = &master->groups[master->slots[newcomer].group];
    if (group->size == 0) {
        int16_t pending[MAX_PEERS];
        int all = list_pending(master, master->slots[newcomer].group, pending), count = 0;
        for (int i = 0; i < all; i++) {
            const struct slot *peer = &master->slots[pending[i]];
            if (pending[i] != newcomer && peer->answered && !backs_off(master, peer)) {
                anchors[count++] = pending[i];
            }
        }
        return count;
    }
    for (int i = 0; i < group->size; i++) { /* the last, the first, the middle, the others */
        anchors[i] = group->ring[(i + group->size - 1) % group->size];
    }
    if (group->size > 3) {
        int middle = group->size / 2 + 1;
        int16_t kept = anchors[2];
        anchors[2] = anchors[middle];
        anchors[middle] = kept;
    }
    return group->size;
}

static bool is_reached(const struct master *master, int newcomer) {
    int16_t anchors[MAX_PEERS];
    int count = list_anchors(master, newcomer, anchors);
    for (int i = 0; i < count; i++) {
        if (is_good(master, newcomer, anchors[i])) {
            return true;
        }
    }
    return false;
}

static void leave_out(struct master *master, int newcomer) {
    char reason[MAX_REASON_BYTES + 1];
    const char *why = master->slots[newcomer].failure;
    snprintf(reason, sizeof reason, "no ring of links includes it (%.*s): check its address and firewall",
             MAX_REASON_BYTES - 96, why[0] != '\0' ? why : "its links are too few");
    master_join_expel(master, newcomer, pcclRankConnectionFailed, reason);
}

/* False if nobody reaches it. */
static bool try_anchors(struct master *master, int newcomer) {
    int16_t anchors[MAX_PEERS];
    int count = list_anchors(master, newcomer, anchors), failed = 0, trying = 0;
    for (int i = 0; i < count && failed < MOST_ANCHORS; i++) {
        failed += is_bad(master, newcomer, anchors[i]);
    }
    if (count > 0 && (failed == count || failed == MOST_ANCHORS)) {
        return false;
    }
    for (int i = 0; i < count && trying < ANCHORS_AT_A_TIME; i++) {
        if (!is_bad(master, newcomer, anchors[i])) {
            try_pair(master, anchors[i], newcomer);
            trying++;
        }
    }
    return true;
}

/* ---- the draft ---- */

/* The plan of the members and of `count` newcomers, in master->draft. False if they form no ring. */
static bool make_draft(struct master *master, int index, const int16_t *newcomers, int count) {
    const struct group *group = &master->groups[index];
    struct group *draft = &master->draft;
    memcpy(draft->ring, group->ring, group->size * sizeof group->ring[0]);
    memcpy(draft->tree, group->tree, group->size * sizeof group->tree[0]);
    memcpy(draft->ring + group->size, newcomers, (size_t)count * sizeof newcomers[0]);
    memcpy(draft->tree + group->size, newcomers, (size_t)count * sizeof newcomers[0]);
    draft->size = (uint16_t)(group->size + count);
    return master_ring_order(master, draft->ring, draft->size);
}

/* Of those who wait for the group, who has been reached. If nobody is in it yet, one of them begins. */
static int list_reached(const struct master *master, int index, int16_t reached[MAX_PEERS]) {
    int16_t pending[MAX_PEERS];
    int all = list_pending(master, index, pending), count = 0, first = NO_SLOT;
    for (int i = 0; i < all; i++) {
        const struct slot *peer = &master->slots[pending[i]];
        if (backs_off(master, peer) || !peer->answered) {
            continue;
        }
        first = first == NO_SLOT ? pending[i] : first;
        if (is_reached(master, pending[i])) {
            reached[count++] = pending[i];
        }
    }
    if (count == 0 && master->groups[index].size == 0 && first != NO_SLOT) {
        reached[count++] = (int16_t)first;
    }
    return count;
}

static void remove_at(int16_t *list, int *count, int at) {
    memmove(&list[at], &list[at + 1], (size_t)(*count - at - 1) * sizeof list[0]);
    --*count;
}

static void visit_try(void *context, int a, int b) {
    try_pair(context, a, b);
}

/* The one who can't be linked to most of the draft; the latest if there is no difference. */
static int find_outcast(const struct master *master, const int16_t *newcomers, int count) {
    int worst = count - 1, most = 0;
    for (int i = count - 1; i >= 0; i--) {
        int bad = 0;
        for (int k = 0; k < master->draft.size; k++) {
            bad += is_bad(master, newcomers[i], master->draft.ring[k]);
        }
        if (bad > most) {
            most = bad;
            worst = i;
        }
    }
    return worst;
}

static void try_draft(struct master *master, int index) {
    int16_t reached[MAX_PEERS];
    int count = list_reached(master, index, reached);
    while (count > 0 && !make_draft(master, index, reached, count)) {
        if (master_epoch_forgive(master, &master->groups[index])) {
            continue;
        }
        int at = find_outcast(master, reached, count);
        leave_out(master, reached[at]);
        remove_at(reached, &count, at);
    }
    if (count > 0) {
        master_links_arrange(master, &master->draft);
        master_links_visit(master, &master->draft, visit_try, master);
    }
}

static void try_newcomers(struct master *master, int index) {
    int16_t pending[MAX_PEERS];
    int count = list_pending(master, index, pending);
    for (int i = count - 1; i >= 0; i--) {
        struct slot *peer = &master->slots[pending[i]];
        if (backs_off(master, peer)) {
            master_watch(master, peer->try_after_ns);
        } else if (!peer->answered && master->groups[index].size == 0) {
            if (!peer->asked) {
                struct id key = random_id(&master->random);
                peer->asked = true;
                tell(master, pending[i], &key, false, NO_SLOT);
            }
        } else if (!is_reached(master, pending[i]) && !try_anchors(master, pending[i])) {
            leave_out(master, pending[i]);
        }
    }
    if (master->groups[index].used) {
        try_draft(master, index);
    }
}

static void find_groups_with_pending(const struct master *master, bool found[MAX_PEERS]) {
    memset(found, 0, MAX_PEERS * sizeof found[0]);
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state == SLOT_PENDING) {
            found[master->slots[slot].group] = true;
        }
    }
}

void master_probe_settle(struct master *master) {
    if (slot_set_next(&master->members, 0) < 0 && master_join_pending(master) < 2) {
        return; /* who comes first is let in at once */
    }
    bool waited_for[MAX_PEERS];
    find_groups_with_pending(master, waited_for);
    for (int index = 0; index < MAX_PEERS; index++) {
        if (waited_for[index]) {
            try_newcomers(master, index);
        }
    }
}

void master_probe_check(struct master *master) {
    bool ended = false;
    for (int i = 0; i < MAX_MASTER_PROBES; i++) {
        struct probe *probe = &master->probes[i];
        if (!probe->used) {
            continue;
        }
        if (master->now_ns >= probe->deadline_ns) {
            fail(master, probe, "no answer within the timeout");
            ended = true;
        } else {
            master_watch(master, probe->deadline_ns);
        }
    }
    if (ended || master_join_pending(master) > 0) {
        master_probe_settle(master);
    }
}

/* ---- who is let in ---- */

static void visit_unknown(void *context, int a, int b) {
    const struct master *master = context;
    if (!is_good(master, a, b)) {
        ((struct master *)context)->unknown[a]++;
        ((struct master *)context)->unknown[b]++;
    }
}

/* How many links of the draft are not known to work, for each of its peers. Returns whether there are any. */
static bool count_unknown(struct master *master) {
    struct group *draft = &master->draft;
    for (int i = 0; i < draft->size; i++) {
        master->unknown[draft->ring[i]] = 0;
    }
    master_links_arrange(master, draft);
    master_links_visit(master, draft, visit_unknown, master);
    for (int i = 0; i < draft->size; i++) {
        if (master->unknown[draft->ring[i]] > 0) {
            return true;
        }
    }
    return false;
}

int master_probe_admissible(struct master *master, int index, int16_t admissible[MAX_PEERS]) {
    int count = list_reached(master, index, admissible);
    while (count > 0) {
        int worst = count - 1;
        if (make_draft(master, index, admissible, count)) {
            if (!count_unknown(master)) {
                break;
            }
            for (int i = count - 1; i >= 0; i--) {
                worst = master->unknown[admissible[i]] > master->unknown[admissible[worst]] ? i : worst;
            }
        } else {
            worst = find_outcast(master, admissible, count);
        }
        remove_at(admissible, &count, worst);
    }
    return count;
}

int master_probe_first_pending(const struct master *master, int index) {
    int16_t pending[MAX_PEERS];
    return list_pending(master, index, pending) > 0 ? pending[0] : NO_SLOT;
}

uint64_t master_probe_wait_ns(struct master *master) {
    uint64_t until_ns = 0;
    bool waited_for[MAX_PEERS];
    find_groups_with_pending(master, waited_for);
    for (int index = 0; index < MAX_PEERS; index++) {
        int16_t admissible[MAX_PEERS];
        if (!waited_for[index]) {
            continue;
        }
        int count = master_probe_admissible(master, index, admissible);
        for (int slot = 0; slot < MAX_PEERS; slot++) {
            const struct slot *peer = &master->slots[slot];
            bool waits = peer->state == SLOT_PENDING && peer->group == index && peer->try_after_ns == 0;
            for (int i = 0; i < count && waits; i++) {
                waits = admissible[i] != slot;
            }
            uint64_t patience_ns = peer->since_ns + master_probe_patience_ns(master);
            until_ns = waits && patience_ns > until_ns ? patience_ns : until_ns;
        }
    }
    return until_ns > master->now_ns ? until_ns : 0;
}

bool master_probe_try_among_pending(struct master *master) {
    uint32_t pending = master_join_pending(master), admissible = 0;
    for (int index = 0; index < MAX_PEERS; index++) {
        int16_t list[MAX_PEERS];
        admissible += master->groups[index].used ? (uint32_t)master_probe_admissible(master, index, list) : 0;
    }
    master->left_alone_ns = master->left_alone_ns == 0 ? master->now_ns : master->left_alone_ns;
    uint64_t until_ns = master->left_alone_ns + master_probe_patience_ns(master);
    if (pending < 2 || admissible == pending || master->now_ns >= until_ns) {
        master->left_alone_ns = 0;
        return false;
    }
    master_watch(master, until_ns);
    return true;
}

bool master_probe_anybody(const struct master *master) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        const struct slot *peer = &master->slots[slot];
        if (peer->state == SLOT_PENDING && !backs_off(master, peer)) {
            return true;
        }
    }
    return false;
}

/* ---- newcomers that have failed before ---- */

static struct failed_newcomer *find_failed(struct master *master, const struct slot *peer) {
    for (int i = 0; i < MAX_FAILED_NEWCOMERS; i++) {
        struct failed_newcomer *failed = &master->failed_newcomers[i];
        const struct address *a = &failed->address, *b = &peer->address;
        bool same_host = a->family == b->family && memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
        bool same_port = peer->name[0] != '\0' || a->port == b->port;
        if (failed->wait_ns != 0 && same_host && same_port && strcmp(failed->name, peer->name) == 0) {
            return failed;
        }
    }
    return NULL;
}

static struct failed_newcomer *oldest_failed(struct master *master) {
    struct failed_newcomer *oldest = master->failed_newcomers;
    for (int i = 1; i < MAX_FAILED_NEWCOMERS; i++) {
        if (master->failed_newcomers[i].failed_ns < oldest->failed_ns) {
            oldest = &master->failed_newcomers[i];
        }
    }
    return oldest;
}

void master_probe_has_failed(struct master *master, int slot) {
    const struct slot *peer = &master->slots[slot];
    uint64_t timeout_ns = master_run_timeout_ns(master), most_ns = MOST_TIMEOUTS_TO_BACK_OFF * timeout_ns;
    struct failed_newcomer *failed = find_failed(master, peer);
    uint64_t wait_ns = failed == NULL ? timeout_ns : 2 * failed->wait_ns;
    failed = failed == NULL ? oldest_failed(master) : failed;
    failed->failed_ns = master->now_ns;
    failed->wait_ns = wait_ns < most_ns ? wait_ns : most_ns;
    failed->address = peer->address;
    memcpy(failed->name, peer->name, sizeof failed->name);
}

void master_probe_has_joined(struct master *master, int slot) {
    struct failed_newcomer *failed = find_failed(master, &master->slots[slot]);
    if (failed != NULL) {
        failed->wait_ns = 0;
        failed->failed_ns = 0;
    }
}

uint64_t master_probe_try_after_ns(struct master *master, int slot) {
    const struct failed_newcomer *failed = find_failed(master, &master->slots[slot]);
    return failed == NULL ? 0 : failed->failed_ns + failed->wait_ns;
}

/* ---- what a newcomer is told ---- */

static void say_who_is_missing(const struct master *master, char *text, size_t bytes) {
    bool open = master->vote.open && master->vote.kind == VOTE_UPDATE_TOPOLOGY;
    int first = NO_SLOT, missing = 0;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (slot_set_has(&master->members, slot) && !(open && slot_set_has(&master->vote.come, slot))) {
            first = first == NO_SLOT ? slot : first;
            missing++;
        }
    }
    char label[LABEL_BYTES], others[32] = "";
    if (missing > 1) {
        snprintf(others, sizeof others, " and %d other%s", missing - 1, missing > 2 ? "s" : "");
    }
    if (missing == 0) {
        snprintf(text, bytes, "the members are forming their next epoch");
    } else {
        snprintf(text, bytes, "peer %s%s %s not called update_topology()", master_label(master, first, label),
                 others, missing > 1 ? "have" : "has");
    }
}

void master_probe_tell(struct master *master, int slot) {
    const struct slot *peer = &master->slots[slot];
    struct message message = {.type = MESSAGE_PENDING};
    char *text = message.as.pending.reason;
    size_t bytes = sizeof message.as.pending.reason;
    message.as.pending.waited_ms = (uint32_t)((master->now_ns - peer->since_ns) / 1000000);
    if (backs_off(master, peer)) {
        snprintf(text, bytes, "no peer of the group could link to it before; they try again in %.1f s",
                 (double)(peer->try_after_ns - master->now_ns) / 1e9);
    } else if (slot_set_next(&master->members, 0) >= 0 && master->groups[peer->group].size > 0 &&
               !is_reached(master, slot)) {
        snprintf(text, bytes, "no peer of the group has been able to link to it yet%s%.*s",
                 peer->failure[0] != '\0' ? ": " : "", MAX_REASON_BYTES / 2, peer->failure);
    } else {
        say_who_is_missing(master, text, bytes);
    }
    master_send(master, slot, &message);
}
