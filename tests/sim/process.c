/* Processes: the machines with their clocks, and what becomes of their actions. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

/* ---- clocks ---- */

uint64_t local_time(struct process *process) {
    int64_t now = (int64_t)process->world->now;
    return (uint64_t)(process->offset_ns + now + now * process->skew_ppm / 1000000);
}

/* The true time at which the local clock has reached `local`. */
static uint64_t true_time(const struct process *process, uint64_t local) {
    if (local == NEVER) {
        return NEVER;
    }
    int64_t since = (int64_t)local - process->offset_ns;
    return since <= 0 ? 0 : (uint64_t)(since / (1000000 + process->skew_ppm) * 1000000 + 1000000);
}

static uint64_t next_deadline(const struct process *process) {
    return process->is_master ? master_deadline(process->master) : peer_deadline(process->peer);
}

static void arm(struct process *process) {
    struct world *world = process->world;
    uint64_t at = true_time(process, next_deadline(process));
    if (at == NEVER || at >= process->timer_at) {
        return;
    }
    at = at > world->now ? at : world->now + 1;
    if (!world->options.no_jitter && !world->scripted) {
        at += below(&world->random_net, MILLISECOND); /* a loop is woken a little late */
    }
    process->timer_at = at;
    post(world, at - world->now, EVENT_TIMER, process, NULL, at);
}

void process_tick(struct process *process) {
    uint64_t deadline = next_deadline(process);
    if (deadline == NEVER || local_time(process) < deadline) {
        arm(process);
    } else if (process->is_master) {
        struct master_event event = {.kind = MASTER_TICK, .now_ns = local_time(process)};
        master_step(process->master, &event);
        arm(process);
    } else {
        struct peer_event event = {.kind = PEER_EVENT_TICK};
        process_step(process, &event);
        if (peer_deadline(process->peer) <= local_time(process)) {
            violate(process->world, 4, "%s: the deadline has passed and a tick does not move it",
                    process->name);
        }
    }
}

/* ---- peers ---- */

static void expect_complete(struct process *process, const struct peer_action *action) {
    if (process->expect_complete && action->kind != PEER_LOG) {
        process->expect_complete = false;
        if (action->kind != PEER_COMPLETE || action->call != process->finishing->number ||
            action->status != pcclSuccess) {
            violate(process->world, 2, "%s: the result of call %" PRIu64 " is not followed by its success",
                    process->name, process->finishing->number);
        }
    }
}

struct call *process_call(struct process *process, uint64_t number) {
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        if (process->calls[i] != NULL && process->calls[i]->number == number) {
            return process->calls[i];
        }
    }
    violate(process->world, 4, "%s: an action names call %" PRIu64 ", which is not open (or ended before)",
            process->name, number);
}

static void complete(struct process *process, const struct peer_action *action) {
    struct call *call = process_call(process, action->call);
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        if (process->calls[i] == call) {
            process->calls[i] = NULL;
        }
    }
    call->open = false;
    call->status = action->status;
    call->value = action->value;
    const char *kind = call->kind == CALL_CONNECT ? "connect"
                       : call->kind == CALL_CLOSE ? "close"
                       : call->kind == CALL_VOTE  ? vote_name(call->vote)
                                                  : "op";
    if (call->kind == CALL_OP) {
        trace(process->world, "%s: op tag=%" PRIu64 " ends: %s%s%s", process->name, call->tag,
              status_name(call->status), action->text[0] == '\0' ? "" : ": ", action->text);
    } else {
        trace(process->world, "%s: %s ends: %s%s%s", process->name, kind, status_name(call->status),
              action->text[0] == '\0' ? "" : ": ", action->text);
    }
    if ((action->status == pcclSuccess) != (action->text[0] == '\0')) {
        violate(process->world, 4, "%s: %s ends with %s and the text \"%s\"", process->name, kind,
                status_name(call->status), action->text);
    }
    if (call->kind == CALL_CONNECT && call->status == pcclSuccess) {
        process->connected = true;
        process->gave_up = false;
    }
    process->world->last_progress = process->world->now;
    if (call->kind == CALL_VOTE && call->vote == VOTE_SYNC_STATE) {
        sync_over(process, call, action->text);
    }
    check_call_over(process, call);
    user_complete(process, call);
}

static void control_closed_by_peer(struct process *process) {
    process->connect_generation++;
    if (process->control != NULL) {
        conn_close(process->world, process->control, 0, "closed by the peer");
        process->control = NULL;
    }
    process->connected = false;
}

static void control_send(struct process *process, const struct message *message) {
    struct world *world = process->world;
    if (message->type != MESSAGE_HEARTBEAT) {
        char text[TEXT_BYTES];
        message_describe(world, message, text, sizeof text);
        trace(world, "%s > master: %s", process->name, text);
    }
    if (process->control == NULL) {
        return; /* it was closed, and the peer is about to hear of it */
    }
    if (message->type == MESSAGE_GOODBYE) {
        check_goodbye(process);
        process->control->ends[1].leaving = true;
    }
    conn_send_message(world, process->control, 0, message);
}

static void perform(void *context, const struct peer_action *action) {
    struct process *process = context;
    expect_complete(process, action);
    switch (action->kind) {
    case PEER_CONTROL_CONNECT:
        net_connect_master(process);
        break;
    case PEER_CONTROL_SEND:
        control_send(process, action->message);
        break;
    case PEER_CONTROL_CLOSE:
        control_closed_by_peer(process);
        break;
    case PEER_LINK_OPEN:
    case PEER_LINK_EXPECT:
        link_make(process, action);
        break;
    case PEER_LINK_CLOSE:
        link_close(process, &action->link.key);
        break;
    case PEER_EPOCH:
        trace(process->world, "%s: epoch %" PRIu64 ", rank %u of %u", process->name, action->epoch,
              (unsigned)action->rank, (unsigned)action->world);
        check_peer_epoch(process, action);
        process->reexamine = true;
        break;
    case PEER_OP_START:
        op_start(process, action);
        process->reexamine = true;
        break;
    case PEER_OP_STOP:
        op_stop(process, action);
        break;
    case PEER_OP_KEEP:
        op_keep(process, action);
        break;
    case PEER_OP_FORGET:
        op_forget(process, action);
        break;
    case PEER_OP_FINISH:
        op_finish(process, action);
        process->reexamine = true;
        break;
    case PEER_SYNC_PLAN:
        sync_plan(process, action);
        break;
    case PEER_COMPLETE:
        complete(process, action);
        break;
    case PEER_LOG:
        trace(process->world, "%s: log: %s", process->name, action->text);
        break;
    default:
        violate(process->world, 0, "%s: the simulator does not know action %d", process->name,
                (int)action->kind);
    }
}

void process_step(struct process *process, const struct peer_event *event) {
    struct peer_event timed = *event;
    timed.now_ns = local_time(process);
    if (timed.now_ns < process->last_local) {
        violate(process->world, 0, "the simulated clock of %s went back", process->name);
    }
    process->last_local = timed.now_ns;
    peer_step(process->peer, &timed);
    if (process->expect_complete) {
        violate(process->world, 2, "%s: OP_FINISH without the end of its call", process->name);
    }
    if (process->reexamine) {
        process->reexamine = false;
        engine_reexamine(process);
    }
    arm(process);
}

void process_post(struct process *process, uint64_t delay, const struct peer_event *event,
                  struct conn *conn) {
    struct posted_event *posted = arena_take(sizeof *posted);
    posted->event = *event;
    posted->conn = conn;
    post(process->world, delay, EVENT_PEER, process, posted, 0);
}

void process_posted(struct process *process, const struct posted_event *posted) {
    if (posted->op_generation != 0) {
        const struct sim_op *op = &process->ops[posted->event.op];
        if (!op->active || op->generation != posted->op_generation) {
            return;
        }
    }
    process_step(process, &posted->event);
}

static struct process *make(struct world *world, int host) {
    if (world->process_count == MAX_PROCESSES) {
        violate(world, 0, "the simulator ran out of processes");
    }
    struct process *process = arena_take(sizeof *process);
    process->world = world;
    process->index = world->process_count;
    process->host = host;
    process->alive = true;
    process->timer_at = NEVER;
    process->backlog_tail = &process->backlog;
    world->processes[world->process_count++] = process;
    world->at_host[host] = process->index;
    world->host_off[host] = false;
    if (world->skewed) {
        process->offset_ns = (int64_t)(below(&world->random_user, 1000) * SECOND);
        process->skew_ppm = (int64_t)below(&world->random_user, 40001) - 20000;
    }
    process->offset_ns += (int64_t)SECOND; /* 0 may mean "never" to a machine */
    return process;
}

static struct address address_of(int host, uint16_t port) {
    return (struct address){.family = ADDRESS_IPV4, .bytes = {10, 0, 0, (uint8_t)host}, .port = port};
}

static void name_run(char name[MAX_RUN_BYTES + 1], uint32_t run) {
    if (run != 0) {
        snprintf(name, MAX_RUN_BYTES + 1, "run-%u", (unsigned)run);
    }
}

struct process *process_start(struct world *world, int host, uint32_t group, uint32_t run) {
    struct process *process = make(world, host);
    struct random_source *random = &world->random_user;
    uint32_t drawn = (uint32_t)below(random, (uint64_t)world->groups);
    process->group = group == UINT32_MAX ? drawn : group;
    process->timeout_ns = world->timeout_ns;
    if (world->uneven_timeouts) {
        process->timeout_ns = world->timeout_ns * (70 + below(random, 80)) / 100 / MILLISECOND * MILLISECOND;
    }
    int incarnation = 0;
    for (int i = 0; i < process->index; i++) {
        incarnation += world->processes[i]->host == host;
    }
    snprintf(process->name, sizeof process->name, "%c", 'a' + host - 1);
    if (incarnation > 0) {
        snprintf(process->name + 1, sizeof process->name - 1, "%d", incarnation + 1);
    }
    struct peer_options options = {
        .hello = {.version = PROTOCOL_VERSION,
                  .oldest_version = OLDEST_PROTOCOL_VERSION,
                  .group = process->group,
                  .streams = world->streams,
                  .timeout_ms = (uint32_t)(process->timeout_ns / MILLISECOND),
                  .straggler_timeout_ms = (uint32_t)(world->straggler_ns / MILLISECOND)}};
    options.hello.listen = address_of(host, (uint16_t)(1000 + process->index));
    if (host % 2 == 1) {
        options.hello.listen.family = ADDRESS_NONE; /* the master knows where the connection comes from */
    }
    snprintf(options.hello.name, sizeof options.hello.name, "%s", process->name);
    name_run(options.hello.run, run);
    process->peer = calloc(1, peer_bytes());
    if (process->peer == NULL) {
        violate(world, 0, "out of memory");
    }
    peer_init(process->peer, &options, perform, process);
    trace(world, "%s starts, group %u", process->name, (unsigned)process->group);
    sync_init(process);
    if (!world->scripted) {
        user_init(process);
    } else {
        process->user.stage = STAGE_SCRIPTED;
    }
    return process;
}

/* ---- the master ---- */

static struct conn *find_conn(struct world *world, uint64_t number) {
    for (struct conn *conn = world->conns; conn != NULL; conn = conn->next) {
        if (conn->number == number) {
            return conn;
        }
    }
    violate(world, 0, "the master names connection %" PRIu64 ", which never was", number);
}

static void master_send(struct process *master, struct conn *conn, const struct message *message) {
    struct world *world = master->world;
    struct process *peer = conn->ends[0].process;
    if (message->type != MESSAGE_HEARTBEAT && message->type != MESSAGE_PENDING) {
        char text[TEXT_BYTES];
        message_describe(world, message, text, sizeof text);
        trace(world, "master > %s: %s", peer->name, text);
    }
    if (!conn->ends[1].open) {
        violate(world, 7, "the master sends %s to %s on a connection that is closed",
                message_name(message->type), peer->name);
    }
    if (message->type == MESSAGE_WELCOME) {
        conn->id = message->as.welcome.peer;
        conn->welcomed_at = world->now;
        if (peer->control == conn) { /* else it has given this connection up, and may have made another */
            peer->id = conn->id;
            peer->has_id = true;
            peer->master_run = master->run;
            peer->member = false;
        }
    } else if (message->type == MESSAGE_PROPOSE) {
        check_propose(world, conn, &message->as.propose);
        conn->alone = message->as.propose.world == 1;
        conn->knows_revision = conn->knows_revision && !conn->alone;
    } else if (message->type == MESSAGE_VOTE_RESULT) {
        check_vote_result(world, conn, &message->as.vote_result);
        sync_result(world, conn, &message->as.vote_result);
    } else if (message->type == MESSAGE_EVICTED || message->type == MESSAGE_REFUSED) {
        check_put_out(world, conn, message->type == MESSAGE_EVICTED ? "evicted" : "refused",
                      message->as.refused.reason);
        conn->ends[1].leaving = true;
        conn->knows_revision = false;
    } else if (message->type == MESSAGE_FAREWELL) {
        conn->ends[1].leaving = true;
        conn->knows_revision = false;
    }
    conn_send_message(world, conn, 1, message);
}

static void perform_master(void *context, const struct master_action *action) {
    struct process *master = context;
    struct world *world = master->world;
    if (action->kind == MASTER_LOG) {
        if (strstr(action->text, "may try again") != NULL) {
            world->forgiven_at = world->now;
        }
        trace(world, "master: %s", action->text);
        return;
    }
    struct conn *conn = find_conn(world, action->connection);
    if (action->kind == MASTER_SEND) {
        master_send(master, conn, action->message);
        return;
    }
    if (!conn->ends[1].leaving) {
        check_put_out(world, conn, "cut off", "the master closed its connection");
    }
    if (!conn->ends[1].open) {
        violate(world, 7, "the master closes the connection of %s twice", conn->ends[0].process->name);
    }
    conn_close(world, conn, 1, "closed by the master");
    post(world, below(&world->random_net, 50 * MILLISECOND), EVENT_MASTER_CLOSED, master, conn, 0);
}

void master_message(struct process *master, struct conn *conn, const struct message *message) {
    if (conn->ends[1].process != master) {
        return;
    }
    conn->ends[1].greeted = true;
    struct master_event event = {.kind = MASTER_MESSAGE,
                                 .now_ns = local_time(master),
                                 .connection = conn->number,
                                 .remote = address_of(conn->ends[0].process->host, 40000),
                                 .message = message};
    master_step(master->master, &event);
    arm(master);
}

void master_closed(struct process *master, struct conn *conn, const char *reason) {
    if (!conn->ends[1].greeted || conn->ends[1].reported) {
        return;
    }
    conn->ends[1].reported = true;
    conn->knows_revision = false;
    struct master_event event = {
        .kind = MASTER_CLOSED, .now_ns = local_time(master), .connection = conn->number, .reason = reason};
    master_step(master->master, &event);
    arm(master);
}

struct process *master_start(struct world *world, uint32_t run) {
    struct process *master = make(world, 0);
    master->is_master = true;
    master->run = ++world->runs;
    snprintf(master->name, sizeof master->name, "master");
    struct master_options options = {.seed = world->options.seed * 1000 + (uint64_t)master->run};
    name_run(options.run, run);
    master->master = calloc(1, master_bytes());
    if (master->master == NULL) {
        violate(world, 0, "out of memory");
    }
    master_init(master->master, &options, perform_master, master);
    world->master = master;
    trace(world, "master starts");
    return master;
}

/* ---- ends ---- */

void process_die(struct process *process, bool silent) {
    struct world *world = process->world;
    if (!process->alive) {
        return;
    }
    trace(world, "%s dies%s", process->name, silent ? " without a word" : "");
    process->alive = false;
    if (world->at_host[process->host] == process->index) {
        world->at_host[process->host] = -1;
    }
    world->host_off[process->host] = silent;
    for (struct conn *conn = world->conns; conn != NULL; conn = conn->next) {
        for (int end = 0; end < 2; end++) {
            if (conn->ends[end].process != process || !conn->ends[end].open) {
                continue;
            }
            if (silent) {
                conn_vanish(conn, end);
            } else {
                conn_close(world, conn, end, "connection reset by peer");
            }
        }
    }
}

void process_freeze(struct process *process) {
    trace(process->world, "%s is stopped", process->name);
    process->frozen = true;
}

void process_resume(struct process *process) {
    struct world *world = process->world;
    if (!process->alive || !process->frozen) {
        return;
    }
    trace(world, "%s goes on", process->name);
    process->frozen = false;
    for (struct event_list *entry = process->backlog; entry != NULL; entry = entry->next) {
        repost(world, &entry->event, 0);
    }
    process->backlog = NULL;
    process->backlog_tail = &process->backlog;
}
