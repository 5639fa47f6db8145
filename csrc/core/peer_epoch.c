/* Epochs at a peer: the links that a proposal needs, and the moment when it takes effect. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "core/peer_state.h"
#include "core/tree.h"
#include "pccl.h"

static void close_link(struct peer *peer, uint32_t index) {
    struct peer_action action = {.kind = PEER_LINK_CLOSE, .link.key = peer->links[index].key};
    peer->links[index] = peer->links[--peer->link_count];
    peer->perform(peer->context, &action);
}

static int find_link(const struct peer *peer, const struct id *key) {
    for (uint32_t i = 0; i < peer->link_count; i++) {
        if (id_equal(&peer->links[i].key, key)) {
            return (int)i;
        }
    }
    return -1;
}

static bool plan_needs(const struct message_propose *plan, const struct id *key) {
    for (uint16_t i = 0; i < plan->link_count; i++) {
        if (id_equal(&plan->links[i].key, key)) {
            return true;
        }
    }
    return false;
}

/* Keeps the links whose keys the new plan names again, closes the rest, asks for the missing ones. */
static void change_links(struct peer *peer) {
    for (uint32_t i = peer->link_count; i-- > 0;) {
        if (!plan_needs(&peer->plan, &peer->links[i].key)) {
            close_link(peer, i);
        }
    }
    for (uint16_t i = 0; i < peer->plan.link_count; i++) {
        const struct link_plan *wanted = &peer->plan.links[i];
        if (find_link(peer, &wanted->key) >= 0) {
            continue;
        }
        CHECK(peer->link_count < MAX_LINKS);
        const struct member *member = &peer->plan.members[wanted->rank];
        peer->links[peer->link_count++] = (struct peer_link){.key = wanted->key, .member = member->id};
        struct peer_action action = {
            .kind = wanted->opener ? PEER_LINK_OPEN : PEER_LINK_EXPECT, .member = member, .link = *wanted};
        peer->perform(peer->context, &action);
    }
}

static uint32_t slowest_rtt_us(const struct peer *peer) {
    uint32_t slowest = 0;
    for (uint32_t i = 0; i < peer->link_count; i++) {
        slowest = peer->links[i].rtt_us > slowest ? peer->links[i].rtt_us : slowest;
    }
    return slowest;
}

static void send_ready_if_so(struct peer *peer) {
    if (peer->epoch != 0 || peer->ready_sent || peer->link_count < peer->plan.link_count) {
        return;
    }
    for (uint32_t i = 0; i < peer->link_count; i++) {
        if (!peer->links[i].up) {
            return;
        }
    }
    struct message message = {.type = MESSAGE_READY};
    message.as.ready.epoch = peer->plan.epoch;
    message.as.ready.rtt_us = slowest_rtt_us(peer);
    message.as.ready.failed_count = peer->failed_count;
    memcpy(message.as.ready.failed, peer->failed, peer->failed_count * sizeof peer->failed[0]);
    message.as.ready.kept_count = peer_fate_list_kept(peer, message.as.ready.kept);
    peer_send(peer, &message);
    peer->ready_sent = true;
}

/* The decoder vouches for lengths; this for what the fields say together. */
static bool plan_is_sound(const struct message_propose *plan) {
    if (plan->world < 1 || plan->world > MAX_PEERS || plan->rank >= plan->world ||
        plan->link_count > MAX_LINKS) {
        return false;
    }
    for (uint16_t i = 0; i < plan->link_count; i++) {
        const struct link_plan *link = &plan->links[i];
        if (link->rank >= plan->world || link->rank == plan->rank || link->streams < 1 ||
            link->streams > MAX_STREAMS) {
            return false;
        }
    }
    bool taken[MAX_PEERS] = {false};
    for (uint16_t i = 0; i < plan->world; i++) {
        if (plan->places[i] >= plan->world || taken[plan->places[i]]) {
            return false;
        }
        taken[plan->places[i]] = true;
    }
    return true;
}

static void copy_plan(struct message_propose *to, const struct message_propose *from) {
    memcpy(to, from, offsetof(struct message_propose, members));
    memcpy(to->members, from->members, from->world * sizeof from->members[0]);
}

void peer_epoch_propose(struct peer *peer, const struct message_propose *propose) {
    if (peer->phase != PEER_PENDING && peer->phase != PEER_MEMBER) {
        return;
    }
    if (!plan_is_sound(propose) || propose->epoch <= peer->plan.epoch) {
        peer_join_control_closed(peer, "it proposed an epoch that makes no sense");
        return;
    }
    if (peer->phase == PEER_MEMBER) {
        peer_log(peer, PEER_LOG_INFO, "epoch %" PRIu64 " ends: %s", peer->plan.epoch, propose->reason);
    }
    peer_fate_epoch_ended(peer, propose);
    peer->epoch = 0;
    copy_plan(&peer->plan, propose);
    peer->ready_sent = false;
    change_links(peer);
    send_ready_if_so(peer);
}

void peer_epoch_link_up(struct peer *peer, const struct id *key, uint32_t rtt_us) {
    int index = find_link(peer, key);
    if (index < 0) {
        peer_probe_link_up(peer, key);
    } else {
        peer->links[index].up = true;
        peer->links[index].rtt_us = rtt_us;
        send_ready_if_so(peer);
    }
}

void peer_epoch_link_down(struct peer *peer, const struct id *key, const char *reason) {
    int index = find_link(peer, key);
    if (index < 0) {
        peer_probe_link_down(peer, key, reason);
        return;
    }
    struct peer_link link = peer->links[index];
    close_link(peer, (uint32_t)index);
    if (peer->phase != PEER_PENDING && peer->phase != PEER_MEMBER) {
        return;
    }
    char label[PEER_LABEL_BYTES];
    peer_log(peer, PEER_LOG_INFO, "link to %s: %s", peer_label(peer, &link.member, label), reason);
    struct message message = {.type = link.up ? MESSAGE_LINK_LOST : MESSAGE_UNREACHABLE};
    message.as.unreachable.epoch = peer->plan.epoch;
    message.as.unreachable.peer = link.member;
    snprintf(message.as.unreachable.reason, sizeof message.as.unreachable.reason, "%s", reason);
    peer_send(peer, &message);
}

/* The other ends would report that they can't reach this peer, and the newest of them would be left out for
 * it. */
void peer_epoch_unable(struct peer *peer, const char *reason) {
    if (peer->phase == PEER_PENDING || peer->phase == PEER_MEMBER) {
        struct message message = {.type = MESSAGE_EVICTED};
        message.as.refused.status = pcclEvicted;
        snprintf(message.as.refused.reason, sizeof message.as.refused.reason, "%s", reason);
        peer_send(peer, &message);
    }
}

/* The key of the link to `rank`; zero when there is none (alone). */
static struct id link_key(const struct peer *peer, uint16_t rank) {
    for (uint16_t i = 0; i < peer->plan.link_count; i++) {
        if (peer->plan.links[i].rank == rank) {
            return peer->plan.links[i].key;
        }
    }
    return (struct id){{0}};
}

static void announce(struct peer *peer) {
    const struct message_propose *plan = &peer->plan;
    struct id edges[MAX_EDGES] = {{{0}}};
    edges[EDGE_NEXT] = link_key(peer, (uint16_t)((plan->rank + 1) % plan->world));
    edges[EDGE_PREVIOUS] = link_key(peer, (uint16_t)((plan->rank + plan->world - 1) % plan->world));
    for (uint16_t rank = 0; rank < plan->world && plan->has_tree; rank++) {
        for (int edge = EDGE_FOLD; edge < MAX_EDGES; edge++) {
            if (plan->places[rank] == tree_partner(plan->world, plan->places[plan->rank], (enum edge)edge)) {
                edges[edge] = link_key(peer, rank);
            }
        }
    }
    struct peer_action action = {
        .kind = PEER_EPOCH, .epoch = plan->epoch, .rank = plan->rank, .world = plan->world, .edges = edges};
    peer->perform(peer->context, &action);
}

void peer_epoch_commit(struct peer *peer, const struct message_commit_epoch *commit) {
    if ((peer->phase != PEER_PENDING && peer->phase != PEER_MEMBER) || peer->epoch != 0 ||
        commit->epoch != peer->plan.epoch || !peer->ready_sent) {
        return; /* a newer proposal has overtaken it */
    }
    bool newcomer = peer->phase == PEER_PENDING;
    peer->phase = PEER_MEMBER;
    peer->epoch = commit->epoch;
    peer->tree_bytes = commit->tree_bytes;
    peer->commits_seen = 0;
    peer->status.epoch = peer->epoch;
    peer->status.rank = peer->plan.rank;
    peer->status.world = peer->plan.world;
    if (peer->status.largest_world < peer->plan.world) {
        peer->status.largest_world = peer->plan.world;
    }
    announce(peer);
    peer_log(peer, PEER_LOG_INFO, "epoch %" PRIu64 ": rank %u of %u", peer->epoch, (unsigned)peer->plan.rank,
             (unsigned)peer->plan.world);
    if (peer->connect_call != 0) {
        uint64_t call = peer->connect_call;
        peer->connect_call = 0;
        peer_complete(peer, call, pcclSuccess, 0, "");
    }
    peer_fate_epoch_begun(peer, commit, newcomer);
}

void peer_epoch_leave(struct peer *peer) {
    while (peer->link_count > 0) {
        close_link(peer, peer->link_count - 1);
    }
    peer_probe_leave(peer);
    peer->epoch = 0;
    peer->plan.epoch = 0;
    peer->plan.world = 0;
    peer->plan.link_count = 0;
}
