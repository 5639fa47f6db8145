/* The links of a peer: they are built stream by stream, watched, and taken down, by the rules of
 * csrc/net/link.c. */
#include "tests/sim/sim.h"

struct link_end *link_find(struct process *process, const struct id *key) {
    struct link_end *link = process->links;
    while (link != NULL && !id_equal(&link->key, key)) {
        link = link->next;
    }
    return link;
}

static const char *link_target_name(const struct link_end *link) {
    return link->process->world->processes[link->target]->name;
}

static void start_attempts(struct link_end *link) {
    struct world *world = link->process->world;
    struct process *to = world->processes[link->target];
    for (uint16_t stream = 0; stream < link->streams; stream++) {
        struct attempt *attempt = arena_take(sizeof *attempt);
        attempt->from = link->process;
        attempt->to = to;
        attempt->link = link;
        attempt->stream = stream;
        attempt->started = world->now;
        post(world, path_delay(world, link->process->host, to->host), EVENT_ATTEMPT, NULL, attempt, 0);
    }
}

void link_make(struct process *process, const struct peer_action *action) {
    struct world *world = process->world;
    if (link_find(process, &action->link.key) != NULL) {
        violate(world, 7, "%s: a link with this key is there already", process->name);
    }
    int target = action->member->address.port - 1000;
    if (target <= 0 || target >= world->process_count || action->member->address.family == ADDRESS_NONE ||
        action->member->address.bytes[3] != world->processes[target]->host) {
        violate(world, 1, "%s: the address of %s is not the one that it gave", process->name,
                action->member->name);
    }
    struct link_end *link = arena_take(sizeof *link);
    link->process = process;
    link->target = target;
    link->key = action->link.key;
    link->opener = action->kind == PEER_LINK_OPEN;
    link->streams = action->link.streams < MAX_SIM_STREAMS ? action->link.streams : MAX_SIM_STREAMS;
    link->eager_credit = world->eager_window_bytes;
    link->build_deadline = world->now + process->timeout_ns;
    link->next = process->links;
    process->links = link;
    trace(world, "%s: link %s %s", process->name, link->opener ? "to" : "from", link_target_name(link));
    if (link->opener) {
        start_attempts(link);
    }
    post(world, process->timeout_ns, EVENT_LINK_TIMER, process, link, 0);
}

static void close_conns(struct link_end *link, const char *reason) {
    struct world *world = link->process->world;
    for (int i = 0; i < MAX_SIM_STREAMS; i++) {
        struct conn *conn = link->conns[i];
        if (conn != NULL) {
            conn_close(world, conn, conn->ends[0].link == link ? 0 : 1, reason);
        }
    }
}

void link_close(struct process *process, const struct id *key) {
    struct link_end **place = &process->links;
    while (*place != NULL && !id_equal(&(*place)->key, key)) {
        place = &(*place)->next;
    }
    struct link_end *link = *place;
    if (link == NULL) {
        violate(process->world, 7, "%s: closes a link that it does not have", process->name);
    }
    *place = link->next;
    link->closed = true;
    close_conns(link, "the link was closed by the other side");
    trace(process->world, "%s: link with %s closes", process->name, link_target_name(link));
    for (int edge = 0; edge < MAX_EDGES; edge++) {
        process->edges[edge] = process->edges[edge] == link ? NULL : process->edges[edge];
    }
    for (struct held **held = &process->held; *held != NULL;) {
        if ((*held)->link == link) {
            *held = (*held)->next;
        } else {
            held = &(*held)->next;
        }
    }
}

void link_lost(struct link_end *link, const char *reason) {
    if (link->closed || link->state == LINK_DOWN) {
        return;
    }
    link->state = LINK_DOWN;
    close_conns(link, reason);
    trace(link->process->world, "%s: link with %s is down: %s", link->process->name, link_target_name(link),
          reason);
    struct peer_event event = {.kind = PEER_EVENT_LINK_DOWN, .key = link->key, .reason = reason};
    process_step(link->process, &event);
}

void link_bound(struct link_end *link, struct conn *conn, uint16_t stream) {
    if (link->closed || link->state != LINK_BUILDING || link->conns[stream] != NULL) {
        conn_close(link->process->world, conn, conn->ends[0].link == link ? 0 : 1, "turned away");
        return;
    }
    link->conns[stream] = conn;
    if (++link->bound == link->streams) {
        link->state = LINK_UP;
        link->last_heard = link->process->world->now;
        trace(link->process->world, "%s: link with %s is up", link->process->name, link_target_name(link));
        struct world *world = link->process->world;
        int other = world->processes[link->target]->host;
        uint64_t rtt = 2 * path_delay(world, link->process->host, other);
        struct peer_event event = {
            .kind = PEER_EVENT_LINK_UP, .key = link->key, .rtt_us = (uint32_t)(rtt / 1000)};
        process_step(link->process, &event);
    }
}

/* Pings are not sent one by one: the other side is heard if it runs and the ways are open. */
static bool hears(const struct link_end *link) {
    const struct world *world = link->process->world;
    const struct process *other = world->processes[link->target];
    return other->alive && !other->frozen && path_open(world, other->host, link->process->host) &&
           path_open(world, link->process->host, other->host);
}

void link_timer(struct link_end *link) {
    struct world *world = link->process->world;
    if (link->closed || link->state == LINK_DOWN) {
        return;
    }
    uint64_t timeout = link->process->timeout_ns;
    if (link->state == LINK_BUILDING) {
        if (world->now >= link->build_deadline) {
            link_lost(link, "it could not be built within the timeout");
            return;
        }
    } else if (hears(link)) {
        link->last_heard = world->now;
    } else if (world->now - link->last_heard > timeout + timeout / 5) {
        link_lost(link, "nothing heard on it within the timeout");
        return;
    }
    uint64_t wait = timeout / 4;
    if (link->state == LINK_BUILDING && link->build_deadline - world->now < wait) {
        wait = link->build_deadline - world->now;
    }
    post(world, wait, EVENT_LINK_TIMER, link->process, link, 0);
}
