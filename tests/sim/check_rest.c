/* What must hold, continued: who may be put out, how long may be waited, what may be left at rest. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/peer_state.h"
#include "tests/sim/sim.h"

/* ---- 6: who may be put out ---- */

/* An edge that has failed lately may still cost somebody its place; one that failed earlier only after the
 * pair has had another chance, which it gets once in a while. */
static bool is_suspect(const struct world *world, int a, int b) {
    uint64_t until = world->edge_suspect_until[a][b];
    bool forgiven = world->forgiven_at != 0 && world->now - world->forgiven_at < 26 * world->timeout_ns;
    uint64_t late = forgiven ? 0 : 18 * world->timeout_ns;
    return until == NEVER || until > world->now + late;
}

static bool ring_from(const struct world *world, const int *hosts, int count, int at, unsigned used,
                      int *budget) {
    if (--*budget < 0) {
        return false;
    }
    if (used == (1u << count) - 1) {
        return !is_suspect(world, hosts[at], hosts[0]);
    }
    for (int i = 1; i < count; i++) {
        if ((used >> i & 1) == 0 && !is_suspect(world, hosts[at], hosts[i]) &&
            ring_from(world, hosts, count, i, used | 1u << i, budget)) {
            return true;
        }
    }
    return false;
}

static const struct process *process_of(const struct world *world, const struct id *id) {
    for (int i = 0; i < world->process_count; i++) {
        const struct process *process = world->processes[i];
        if (process->has_id && id_equal(&process->id, id)) {
            return is_in(process) && !process->user.closing ? process : NULL;
        }
    }
    return NULL;
}

/* Whether a ring through those in the plan that stood avoids all edges that had a fault lately. */
static bool ring_exists(const struct world *world, const struct process *around) {
    int hosts[MAX_HOSTS], count = 0;
    const struct epoch_record *plan = world->epochs; /* the newest first */
    while (plan != NULL && (plan->run != around->master_run || plan->group != around->group)) {
        plan = plan->next;
    }
    for (uint16_t rank = 0; plan != NULL && rank < plan->world; rank++) {
        const struct process *process = process_of(world, &plan->members[rank]);
        if (process != NULL) {
            hosts[count++] = process->host;
        }
    }
    int budget = 20000;
    return count > 3 && ring_from(world, hosts, count, 0, 1, &budget);
}

/* It is for its own lateness, not for a link that is gone with another straggler. */
static bool is_straggler_text(const char *why) {
    static const char text[] = "the others wait for it in ";
    return strncmp(why, text, sizeof text - 1) == 0;
}

/* Its user had not called what the others waited for, or only a moment ago. Who had is no straggler, whoever
 * else was silent or stood still. */
static bool was_late(const struct world *world, const struct process *process, const char *why) {
    const char *what = strstr(why, "wait for it in ");
    if (world->straggler_ns == 0 || what == NULL || !is_straggler_text(why)) {
        return false;
    }
    /* It may have called while its word that it had not was on the way, or its eviction; and its vote may
     * have waited for the commit of an op that was returned early. */
    uint64_t moment_ns = 8 * (world->latency_ns + world->jitter_ns) + MILLISECOND;
    char name[64];
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        const struct call *call = process->calls[i];
        if (call == NULL || world->now - call->opened_at < moment_ns) {
            continue;
        }
        if (call->kind == CALL_VOTE && process->peer->ballot_waits) {
            continue; /* for the commit of what was returned early: it is not cast yet */
        }
        if (call->kind == CALL_OP) {
            snprintf(name, sizeof name, "the collective with tag %" PRIu64 " for", call->tag);
        } else {
            snprintf(name, sizeof name, "%s for", call->kind == CALL_VOTE ? vote_kind_name(call->vote) : "-");
        }
        if (strstr(what, name) != NULL) {
            return false;
        }
    }
    return true;
}

void check_put_out(struct world *world, const struct conn *conn, const char *how, const char *why) {
    const struct process *process = conn->ends[0].process;
    world->evictions++;
    if (world->scripted || !process->alive || process->frozen || process->control != conn ||
        was_late(world, process, why) || process->sync.stuck ||
        world->suspect_until[process->host] > world->now) {
        return;
    }
    if (is_straggler_text(why)) {
        violate(world, 6, "%s has called what the others wait for, but it was %s: %s", process->name, how,
                why);
    }
    if (world->master_suspect_until > world->now) {
        return;
    }
    bool edge = false;
    for (int host = 1; host <= world->hosts; host++) {
        edge |= is_suspect(world, process->host, host);
    }
    if (!edge || ring_exists(world, process)) {
        violate(world, 6, "%s is healthy and can be reached, but it was %s: %s", process->name, how, why);
    }
}

/* ---- 4: waiting ---- */

/* The call that has waited longest, or NULL. */
static const struct call *oldest_call(const struct process *process) {
    const struct call *oldest = NULL;
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        const struct call *call = process->calls[i];
        if (call != NULL && (oldest == NULL || call->number < oldest->number)) {
            oldest = call;
        }
    }
    return oldest;
}

/* Whoever waits for a master that does not know it, or not any more, must find out. */
void check_waits(struct world *world) {
    for (int i = 0; i < world->process_count; i++) {
        struct process *process = world->processes[i];
        const struct call *call = oldest_call(process);
        bool lost = !process->is_master && process->alive && !process->frozen && call != NULL &&
                    (!is_in(process) || !world->master->alive || world->master->frozen);
        if (!lost) {
            process->out_call = 0;
        } else if (process->out_call != call->number) {
            process->out_call = call->number;
            process->out_since = world->now;
        } else if (world->now - process->out_since > 3 * process->timeout_ns + world->timeout_ns) {
            violate(world, 4, "%s waits in a call for a master that does not hear it, for %.1f s",
                    process->name, (double)(world->now - process->out_since) / 1e9);
        }
    }
}

/* ---- 4 and 7: at rest ---- */

static void check_census(struct world *world, const struct process *process,
                         const struct message_census *census) {
    uint32_t sizes[8] = {0}, peers = 0, groups = 0, largest = 0;
    for (int i = 0; i < world->process_count; i++) {
        const struct process *other = world->processes[i];
        if (is_in(other) && other->user.stage != STAGE_DONE) {
            uint32_t size = ++sizes[other->group];
            peers++;
            groups += size == 1;
            largest = size > largest ? size : largest;
        }
    }
    if (census->peers != peers || census->groups != groups || census->largest_group != largest) {
        violate(world, 1, "%s believes in %u peers, %u groups, the largest of %u; there are %u, %u, %u",
                process->name, (unsigned)census->peers, (unsigned)census->groups,
                (unsigned)census->largest_group, (unsigned)peers, (unsigned)groups, (unsigned)largest);
    }
}

static void check_process_quiet(struct world *world, struct process *process, uint64_t *epochs) {
    char text[TEXT_BYTES];
    for (int i = 0; i < MAX_OPEN_CALLS; i++) {
        if (process->calls[i] != NULL) {
            violate(world, 4, "%s: a call is still open at the end", process->name);
        }
    }
    for (int i = 0; i < SIM_OPS; i++) {
        if (process->ops[i].active || process->ops[i].kept) {
            violate(world, 7, "%s: op %d still runs, or is kept, at the end", process->name, i);
        }
    }
    if (process->held != NULL) {
        violate(world, 7, "%s: a frame still waits for its op at the end: type %u tag %" PRIu64,
                process->name, (unsigned)process->held->frame->frame.type, process->held->frame->frame.tag);
    }
    struct peer_status status;
    peer_get_status(process->peer, &status);
    if (process->user.stage == STAGE_DONE) {
        if (process->links != NULL) {
            violate(world, 7, "%s has left and keeps a link", process->name);
        }
        return;
    }
    if (!status.connected || process->epoch == NULL || status.epoch != process->epoch->epoch) {
        violate(world, 4, "%s is alive and not a member at the end", process->name);
    }
    if (epochs[process->group] != 0 && epochs[process->group] != status.epoch) {
        violate(world, 4, "group %u ends in two epochs: %" PRIu64 " and %" PRIu64, (unsigned)process->group,
                epochs[process->group], status.epoch);
    }
    epochs[process->group] = status.epoch;
    if (inspect_peer_leftovers(process->peer, text, sizeof text) != 0) {
        violate(world, 7, "%s keeps %s", process->name, text);
    }
    check_census(world, process, &status.census);
    int links = 0;
    for (const struct link_end *link = process->links; link != NULL; link = link->next) {
        links++;
        if (link->state != LINK_UP || link->eager_credit != world->eager_window_bytes) {
            violate(world, 7, "%s: a link is %s with %" PRIu64 " bytes of credit at the end", process->name,
                    link->state == LINK_UP ? "up" : "not up", link->eager_credit);
        }
    }
    int ring_links = status.world > 2 ? 2 : status.world == 2 ? 1 : 0;
    if (links < ring_links || links > MAX_LINKS) {
        violate(world, 7, "%s has %d links in a world of %u", process->name, links, (unsigned)status.world);
    }
}

/* All users rest, all are in. */
void check_quiet(struct world *world) {
    uint64_t epochs[8] = {0};
    uint32_t live = 0;
    char text[TEXT_BYTES];
    for (int i = 0; i < world->process_count; i++) {
        struct process *process = world->processes[i];
        if (process->alive && !process->is_master) {
            check_process_quiet(world, process, epochs);
            live += process->user.stage != STAGE_DONE;
        }
    }
    if (inspect_master_leftovers(world->master->master, text, sizeof text) != 0) {
        violate(world, 7, "the master keeps %s", text);
    }
    struct master_status status;
    master_get_status(world->master->master, &status);
    if (status.peers != live || status.pending != 0) {
        violate(world, 7, "the master has %u peers and %u pending, %u are alive", (unsigned)status.peers,
                (unsigned)status.pending, (unsigned)live);
    }
}

/* All have left. */
void check_empty(struct world *world) {
    char text[TEXT_BYTES];
    struct master_status status;
    master_get_status(world->master->master, &status);
    if (status.peers != 0 || status.pending != 0 || status.groups != 0) {
        violate(world, 7, "all have left, and the master has %u peers, %u pending, %u groups",
                (unsigned)status.peers, (unsigned)status.pending, (unsigned)status.groups);
    }
    if (inspect_master_leftovers(world->master->master, text, sizeof text) != 0) {
        violate(world, 7, "all have left, and the master keeps %s", text);
    }
    for (struct conn *conn = world->conns; conn != NULL; conn = conn->next) {
        for (int end = 0; end < 2; end++) {
            const struct process *process = conn->ends[end].process;
            bool stranger = process->is_master && !conn->ends[1].greeted; /* csrc/net sees to those */
            if (conn->ends[end].open && process->alive && !stranger) {
                violate(world, 7, "all have left, and %s holds a connection open", process->name);
            }
        }
    }
    for (int i = 0; i < world->process_count; i++) {
        struct process *process = world->processes[i];
        if (process->alive && !process->is_master && process->links != NULL) {
            violate(world, 7, "%s has left and keeps a link", process->name);
        }
    }
}
