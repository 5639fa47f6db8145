/* The network: TCP connections whose two directions are queues, each item with its time of arrival.
 * What is blocked waits, as TCP would send it again; nothing is reordered within a direction. */
#include <string.h>

#include "tests/sim/sim.h"

bool path_open(const struct world *world, int from, int to) {
    return world->blocked[from][to] == 0;
}

uint64_t path_delay(struct world *world, int from, int to) {
    if (from == to) {
        return 1000;
    }
    uint64_t delay = world->latency_ns + below(&world->random_net, world->jitter_ns + 1);
    uint64_t stall = world->stall_until[from][to];
    return world->now + delay < stall ? stall - world->now : delay;
}

struct conn *conn_make(struct world *world, struct process *from, struct process *to, bool control) {
    struct conn *conn = arena_take(sizeof *conn);
    conn->number = ++world->conn_count;
    conn->control = control;
    conn->ends[0].process = from;
    conn->ends[1].process = to;
    conn->ends[0].open = conn->ends[1].open = true;
    conn->next = world->conns;
    world->conns = conn;
    return conn;
}

static void schedule_head(struct world *world, struct conn *conn, int end) {
    struct pipe *pipe = &conn->pipes[end];
    if (pipe->head != NULL && !pipe->scheduled) {
        uint64_t delay = pipe->head->at > world->now ? pipe->head->at - world->now : 0;
        pipe->scheduled = true;
        post(world, delay, EVENT_PIPE, conn->ends[1 - end].process, conn, (uint64_t)end);
    }
}

void conn_send(struct world *world, struct conn *conn, int end, enum item_kind kind, const void *data,
               size_t bytes, const char *reason) {
    struct pipe *pipe = &conn->pipes[end];
    struct item *item = arena_take(sizeof *item);
    item->kind = kind;
    item->bytes = bytes;
    item->data = data;
    item->reason = reason;
    item->at =
        world->now + path_delay(world, conn->ends[end].process->host, conn->ends[1 - end].process->host);
    if (item->at < pipe->last_at) {
        item->at = pipe->last_at;
    }
    pipe->last_at = item->at;
    if (pipe->tail == NULL) {
        pipe->head = item;
    } else {
        pipe->tail->next = item;
    }
    pipe->tail = item;
    schedule_head(world, conn, end);
}

/* What of the struct says something: a copy of the rest would cost more than all else here. */
static size_t bytes_used(const struct message *message) {
    switch (message->type) {
    case MESSAGE_PROPOSE:
        return offsetof(struct message, as.propose.members) +
               message->as.propose.world * sizeof(struct member);
    case MESSAGE_READY:
        return offsetof(struct message, as.ready.failed) +
               message->as.ready.failed_count * sizeof(struct ended_op);
    case MESSAGE_COMMIT_EPOCH:
        if (message->as.commit_epoch.failed_count == 0) {
            return offsetof(struct message, as.commit_epoch.served_ops) +
                   message->as.commit_epoch.served_count * sizeof(struct served_op);
        }
        return offsetof(struct message, as.commit_epoch.failed_tags) +
               message->as.commit_epoch.failed_count * sizeof(uint64_t);
    default:
        return offsetof(struct message, as) + 1024;
    }
}

void conn_send_message(struct world *world, struct conn *conn, int end, const struct message *message) {
    if (!conn->ends[end].open) {
        return;
    }
    if (world->options.wire) {
        static uint8_t bytes[MAX_MESSAGE_BYTES];
        size_t size = message_encode(message, bytes, sizeof bytes);
        if (size == 0 || (message->type == MESSAGE_HELLO && size > MAX_GREETING_BYTES)) {
            violate(world, 0, "a %s does not fit its limit on the wire", message_name(message->type));
        }
        void *copy = arena_take(size);
        memcpy(copy, bytes, size);
        conn_send(world, conn, end, ITEM_MESSAGE, copy, size, NULL);
    } else {
        size_t size = bytes_used(message);
        void *copy = arena_take(size);
        memcpy(copy, message, size);
        conn_send(world, conn, end, ITEM_MESSAGE, copy, size, NULL);
    }
    faults_on_message(world, conn->ends[end].process->host, message);
}

/* The end stops listening at once; what it has sent still arrives, then the other sees the end. */
void conn_close(struct world *world, struct conn *conn, int end, const char *reason) {
    if (conn->ends[end].open) {
        conn->ends[end].open = false;
        conn_send(world, conn, end, ITEM_FIN, NULL, 0, reason);
    }
}

static void lose_some(struct world *world, struct conn *conn, int end) {
    struct pipe *pipe = &conn->pipes[end];
    uint64_t count = 0;
    for (const struct item *item = pipe->head; item != NULL; item = item->next) {
        count++;
    }
    uint64_t kept = below(&world->random_net, count + 1);
    if (kept == 0 && pipe->scheduled) {
        kept = 1; /* its arrival is due; an event that finds nothing would be a special case */
    }
    struct item *last = pipe->head;
    for (uint64_t i = 1; i < kept; i++) {
        last = last->next;
    }
    if (kept > 0 && last != NULL) {
        last->next = NULL;
        pipe->tail = last;
    }
}

/* Something in between kills the connection: some of what is under way is lost, both ends see it. */
void conn_reset(struct world *world, struct conn *conn, const char *reason) {
    for (int end = 0; end < 2; end++) {
        lose_some(world, conn, end);
        /* Told in the other end's name: it has not closed, it will hear of it the same way. */
        conn_send(world, conn, end, ITEM_FIN, NULL, 0, reason);
    }
}

/* The host of this end is gone without a word. */
void conn_vanish(struct conn *conn, int end) {
    conn->ends[end].open = false;
}

static void deliver(struct world *world, struct conn *conn, int end, const struct item *item) {
    struct conn_end *to = &conn->ends[1 - end];
    if (!to->open) {
        return;
    }
    struct process *process = to->process;
    if (item->kind == ITEM_FRAME) {
        to->link->last_heard = world->now;
        engine_frame(to->link, item->data);
    } else if (item->kind == ITEM_FIN) {
        conn_close(world, conn, 1 - end, "closed by the other side");
        if (!conn->control) {
            link_lost(to->link, item->reason);
        } else if (process->is_master) {
            master_closed(process, conn, item->reason);
        } else if (process->control == conn) {
            struct peer_event event = {.kind = PEER_EVENT_CONTROL_CLOSED, .reason = item->reason};
            process->control = NULL;
            process_step(process, &event);
        }
    } else {
        const struct message *message = item->data;
        size_t used = 0;
        if (!world->options.wire) {
            memcpy(&world->scratch, message, item->bytes);
        } else if (message_decode(item->data, item->bytes, MAX_MESSAGE_BYTES, &world->scratch, &used) !=
                       DECODE_OK ||
                   used != item->bytes) {
            violate(world, 0, "a message does not survive the wire");
        }
        if (process->is_master) {
            master_message(process, conn, &world->scratch);
        } else if (process->control == conn) {
            struct peer_event event = {.kind = PEER_EVENT_MESSAGE, .message = &world->scratch};
            process_step(process, &event);
        }
    }
}

void net_pipe(struct world *world, struct conn *conn, int end, const struct event *event) {
    struct pipe *pipe = &conn->pipes[end];
    int from = conn->ends[end].process->host, to = conn->ends[1 - end].process->host;
    if (!path_open(world, from, to)) {
        struct event_list *entry = arena_take(sizeof *entry);
        entry->event = *event;
        entry->next = world->path_backlog;
        world->path_backlog = entry;
        return;
    }
    struct item *item = pipe->head;
    pipe->scheduled = false;
    pipe->head = item->next;
    if (pipe->head == NULL) {
        pipe->tail = NULL;
    }
    deliver(world, conn, end, item);
    schedule_head(world, conn, end);
}

/* Some path has opened: everything that waits tries again, as retransmission timers would have it. */
void net_unblock(struct world *world) {
    struct event_list *entry = world->path_backlog;
    world->path_backlog = NULL;
    for (; entry != NULL; entry = entry->next) {
        repost(world, &entry->event, below(&world->random_net, world->timeout_ns / 10));
    }
}

/* ---- making connections ---- */

void net_connect_master(struct process *process) {
    struct world *world = process->world;
    struct attempt *attempt = arena_take(sizeof *attempt);
    attempt->from = process;
    attempt->started = world->now;
    attempt->generation = ++process->connect_generation;
    post(world, path_delay(world, process->host, 0), EVENT_ATTEMPT, NULL, attempt, 0);
}

static void master_refuses(struct attempt *attempt, uint64_t delay, const char *reason) {
    struct process *process = attempt->from;
    if (process->connect_generation == attempt->generation) {
        process->connect_generation++;
        struct peer_event event = {.kind = PEER_EVENT_CONTROL_CLOSED, .reason = reason};
        process_post(process, delay, &event, NULL);
    }
}

static bool attempt_is_over(const struct attempt *attempt) {
    const struct process *from = attempt->from;
    if (!from->alive) {
        return true;
    }
    if (attempt->link == NULL) {
        return from->connect_generation != attempt->generation;
    }
    return attempt->link->closed || attempt->link->state != LINK_BUILDING;
}

/* A SYN arrives, or would have. */
void net_attempt(struct world *world, struct attempt *attempt, const struct event *event) {
    struct process *from = attempt->from;
    if (attempt_is_over(attempt)) {
        return;
    }
    struct process *to = attempt->link == NULL ? world->master : attempt->to;
    int host = to == NULL ? 0 : to->host;
    uint64_t elapsed = world->now - attempt->started;
    bool listens = to != NULL && to->alive;
    bool silent = !path_open(world, from->host, host) || !path_open(world, host, from->host) ||
                  (!listens && world->host_off[host]);
    if (attempt->link == NULL && !silent && !listens) {
        master_refuses(attempt, path_delay(world, host, from->host), "connection refused");
        return;
    }
    if (attempt->link == NULL && silent && elapsed > 2 * from->timeout_ns) {
        master_refuses(attempt, 0, "connection timed out");
        return;
    }
    if (silent || !listens) {
        repost(world, event, world->timeout_ns / 20);
        return;
    }
    struct link_end *peer_end = NULL;
    if (attempt->link != NULL) {
        peer_end = to->frozen ? NULL : link_find(to, &attempt->link->key);
        if (peer_end == NULL) { /* parked at the acceptor until it expects this key */
            repost(world, event, MILLISECOND + world->timeout_ns / 200);
            return;
        }
        if (peer_end->state != LINK_BUILDING || peer_end->opener) {
            repost(world, event, world->timeout_ns / 20); /* turned away; it tries again until it gives up */
            return;
        }
    }
    attempt->conn = conn_make(world, from, to, attempt->link == NULL);
    attempt->conn->ends[0].link = attempt->link;
    attempt->conn->ends[1].link = peer_end;
    post(world, path_delay(world, host, from->host), EVENT_ESTABLISHED, from, attempt, 0);
    if (peer_end != NULL) {
        link_bound(peer_end, attempt->conn, attempt->stream);
    }
}

/* The answer arrives. A block that came up meanwhile is left to the first item that follows. */
void net_established(struct world *world, struct attempt *attempt) {
    struct process *from = attempt->from;
    if (attempt_is_over(attempt)) {
        conn_close(world, attempt->conn, 0, "closed by the other side");
        return;
    }
    if (attempt->link != NULL) {
        link_bound(attempt->link, attempt->conn, attempt->stream);
        return;
    }
    if (!attempt->conn->ends[0].open) {
        master_refuses(attempt, 0, "connection reset");
        return;
    }
    from->control = attempt->conn;
    struct peer_event event = {.kind = PEER_EVENT_CONTROL_OPEN};
    process_step(from, &event);
}
