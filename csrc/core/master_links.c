/* The links of a plan: one for each pair of neighbours in the ring or in the tree. */
#include "base/check.h"
#include "core/master_state.h"
#include "core/tree.h"

/* A tree moves more bytes than a ring, in fewer hops: with four peers twice the vector in 2 hops, not one and
 * a half in 6. It is the better one as long as the hops that it saves take longer than the bytes that it
 * adds: up to about as much as a link carries in one round trip. How much that is per second is not known;
 * this is what a wide link of today carries. On one machine, where a hop costs little, the tree wins up to
 * the least value. */
enum { TREE_BYTES_PER_US = 100, LEAST_TREE_BYTES = 64 * 1024, MOST_TREE_BYTES = 1024 * 1024 };
/* Payloads of a tree are small: one stream carries them. */
enum { TREE_STREAMS = 1 };
/* Exchanges of places that are tried, so that a large group does not hold the master up. */
enum { ARRANGE_TRIES = 2000 };

static struct master_link *find(struct master *master, int slot, int other) {
    struct slot *peer = &master->slots[slot];
    for (int i = 0; i < peer->link_count; i++) {
        if (peer->links[i].other == other) {
            return &peer->links[i];
        }
    }
    return NULL;
}

static void remove_one(struct master *master, int slot, int other) {
    struct master_link *link = find(master, slot, other);
    if (link != NULL) {
        *link = master->slots[slot].links[--master->slots[slot].link_count];
    }
}

void master_links_drop(struct master *master, int a, int b) {
    remove_one(master, a, b);
    remove_one(master, b, a);
}

static void add(struct master *master, int slot, const struct master_link *link) {
    struct slot *peer = &master->slots[slot];
    CHECK(peer->link_count < 2 * MAX_LINKS);
    peer->links[peer->link_count++] = *link;
}

const struct master_link *master_links_find(struct master *master, int slot, int other) {
    return find(master, slot, other);
}

/* A link that the plan has already is enough, however many streams it has. */
static void need(struct master *master, int a, int b, uint16_t streams) {
    struct master_link *mine = find(master, a, b);
    if (mine != NULL && mine->kept) {
        return;
    }
    if (mine != NULL && mine->streams >= streams) {
        mine->kept = find(master, b, a)->kept = true;
        return;
    }
    master_links_drop(master, a, b);
    struct master_link link = {.other = (int16_t)b,
                               .streams = streams,
                               .opener = !slot_set_has(&master->cant_open[a], b),
                               .kept = true,
                               .key = random_id(&master->random)};
    add(master, a, &link);
    link.other = (int16_t)a;
    link.opener = !link.opener;
    add(master, b, &link);
}

/* Each pair of the tree once. */
static void visit_tree(const struct group *group, pair_visitor visit, void *context) {
    for (uint16_t place = 0; place < group->size; place++) {
        for (int edge = EDGE_FOLD; edge < MAX_EDGES; edge++) {
            uint16_t other = tree_partner(group->size, place, (enum edge)edge);
            if (other != NO_PLACE && place < other) {
                visit(context, group->tree[place], group->tree[other]);
            }
        }
    }
}

static void need_for_tree(void *context, int a, int b) {
    need(context, a, b, TREE_STREAMS);
}

struct count {
    const struct master *master;
    int bad;
};

static void count_bad(void *context, int a, int b) {
    struct count *count = context;
    count->bad += slot_set_has(&count->master->bad[a], b);
}

/* How many of the tree's pairs can't be linked. */
static int bad_pairs(const struct master *master, const struct group *group) {
    struct count count = {.master = master};
    visit_tree(group, count_bad, &count);
    return count.bad;
}

bool master_links_has_tree(const struct master *master, const struct group *group) {
    return group->size >= 2 && bad_pairs(master, group) == 0;
}

static void swap(int16_t *a, int16_t *b) {
    int16_t kept = *a;
    *a = *b;
    *b = kept;
}

/* Moves peers to other places as long as that leaves fewer pairs that can't be linked. It need not find a
 * tree if there is one: without it small ops go round the ring. */
void master_links_arrange(const struct master *master, struct group *group) {
    int bad = bad_pairs(master, group), tries = 0;
    for (int a = 0; a < group->size && bad > 0; a++) {
        for (int b = a + 1; b < group->size && bad > 0 && tries < ARRANGE_TRIES; b++, tries++) {
            swap(&group->tree[a], &group->tree[b]);
            int now = bad_pairs(master, group);
            if (now < bad) {
                bad = now;
            } else {
                swap(&group->tree[a], &group->tree[b]);
            }
        }
    }
}

void master_links_visit(const struct master *master, const struct group *group, pair_visitor visit,
                        void *context) {
    for (int i = 0; i < group->size && group->size >= 2; i++) {
        visit(context, group->ring[i], group->ring[(i + 1) % group->size]);
    }
    if (master_links_has_tree(master, group)) {
        visit_tree(group, visit, context);
    }
}

uint32_t master_links_tree_bytes(const struct master *master, const struct group *group) {
    uint64_t bytes = LEAST_TREE_BYTES;
    for (int i = 0; i < group->size; i++) {
        uint64_t one = (uint64_t)master->slots[group->ring[i]].rtt_us * TREE_BYTES_PER_US;
        bytes = one > bytes ? one : bytes;
    }
    return bytes < MOST_TREE_BYTES ? (uint32_t)bytes : MOST_TREE_BYTES;
}

void master_links_plan(struct master *master, struct group *group) {
    master_links_arrange(master, group);
    for (int i = 0; i < group->size && group->size >= 2; i++) {
        int a = group->ring[i], b = group->ring[(i + 1) % group->size];
        uint16_t x = master->slots[a].streams, y = master->slots[b].streams;
        need(master, a, b, x < y ? x : y);
    }
    if (master_links_has_tree(master, group)) {
        visit_tree(group, need_for_tree, master);
    }
    for (int i = 0; i < group->size; i++) {
        struct slot *peer = &master->slots[group->ring[i]];
        uint16_t kept = 0;
        for (int k = 0; k < peer->link_count; k++) {
            if (peer->links[k].kept) {
                peer->links[kept] = peer->links[k];
                peer->links[kept++].kept = false;
            } else { /* whether another would come up is not known */
                slot_set_remove(&master->good[group->ring[i]], peer->links[k].other);
                slot_set_remove(&master->good[peer->links[k].other], group->ring[i]);
            }
        }
        peer->link_count = kept;
    }
}
