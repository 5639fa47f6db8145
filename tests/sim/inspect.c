/* The only file of the simulator that looks into the machines: what they keep when nothing is under way. */
#include <stdio.h>

#include "core/master_state.h"
#include "core/peer_state.h"
#include "tests/sim/sim.h"

static int master_free_ops(const struct master *master) {
    int count = 0;
    for (int16_t at = master->free_op; at != NO_MASTER_OP && count <= MAX_MASTER_OPS;
         at = master->ops[at].next) {
        count++;
    }
    return count;
}

/* Ops of the group that are more than the number of a tag. */
static int open_ops(const struct master *master, const struct group *group) {
    int count = 0;
    for (int16_t at = group->first_op; at != NO_MASTER_OP; at = master->ops[at].next) {
        count += !master->ops[at].numbered || slot_set_count(&master->ops[at].done) > 0;
    }
    return count;
}

int inspect_master_leftovers(const struct master *master, char *text, size_t bytes) {
    int ops = MAX_MASTER_OPS - master_free_ops(master) - (int)master->numbered_count, groups = 0, chained = 0,
        early = 0, lost = 0;
    bool has_peers[MAX_PEERS] = {false};
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state != SLOT_FREE) {
            has_peers[master->slots[slot].group] = true;
            early += master->slots[slot].early_vote != VOTE_NONE;
        } else if (master->connections[slot] != 0) {
            lost++;
        }
    }
    for (int i = 0; i < MAX_PEERS; i++) {
        const struct group *group = &master->groups[i];
        groups += group->used && !has_peers[i];
        chained += group->used && (open_ops(master, group) > 0 || group->failed_count > 0 ||
                                   group->kept_count > 0 || group->sync.open);
    }
    for (int i = 0; i < MASTER_OP_BUCKETS; i++) {
        ops += master->numbered_count == 0 && master->buckets[i] != NO_MASTER_OP;
    }
    for (int i = 0; i < MAX_MASTER_PROBES; i++) {
        lost += master->probes[i].used;
    }
    if (ops == 0 && groups == 0 && chained == 0 && early == 0 && lost == 0 && !master->vote.open &&
        !master->admitting) {
        return 0;
    }
    snprintf(text, bytes,
             "%d ops, %d groups without peers, %d groups with ops or tags, %d early votes, "
             "%d connections without a peer or probes, vote %s",
             ops, groups, chained, early, lost,
             master->vote.open   ? "open"
             : master->admitting ? "admitting"
                                 : "closed");
    return 1;
}

int inspect_peer_leftovers(const struct peer *peer, char *text, size_t bytes) {
    int free_ops = 0, chained = 0;
    for (int16_t at = peer->free_op; at != NO_OP && free_ops <= MAX_OP_SLOTS; at = peer->ops[at].next) {
        free_ops++;
    }
    for (int i = 0; i < MAX_PROBES; i++) {
        chained += peer->probes[i].used;
    }
    for (int i = 0; i < OP_BUCKETS; i++) {
        chained += peer->buckets[i] != NO_OP;
    }
    if (free_ops == MAX_OP_SLOTS && chained == 0 && peer->op_count == 0 && peer->first_op == NO_OP &&
        peer->last_op == NO_OP && peer->returned_count == 0 && peer->failed_count == 0 &&
        peer->vote_call == 0 && !peer->ballot_waits && !peer->close_waits && peer->connect_call == 0 &&
        peer->close_call == 0 && peer->open_vote == VOTE_NONE) {
        return 0;
    }
    snprintf(text, bytes, "%d ops in use, %d in buckets or probes, %u counted, %u failed tags, %s",
             MAX_OP_SLOTS - free_ops, chained, (unsigned)peer->op_count, (unsigned)peer->failed_count,
             peer->vote_call != 0           ? "a vote"
             : peer->connect_call != 0      ? "a connect"
             : peer->close_call != 0        ? "a close"
             : peer->open_vote != VOTE_NONE ? "word of a vote"
                                            : "no call");
    return 1;
}
