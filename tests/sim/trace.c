/* The story of a run in lines, for people and for scenarios. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tests/sim/sim.h"

static void (*output)(void *context, const char *text);
static void *output_context;

void trace_set_output(void (*line)(void *context, const char *text), void *context) {
    output = line;
    output_context = context;
}

void trace(struct world *world, const char *format, ...) {
    if (!world->options.trace || output == NULL) {
        return;
    }
    char text[2 * TEXT_BYTES];
    int used = world->scripted ? snprintf(text, sizeof text, "%9.3f ", (double)world->now / 1e6)
                               : snprintf(text, sizeof text, "%12.6f #%-5" PRIu64 " ",
                                          (double)world->now / 1e6, world->events);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, sizeof text - (size_t)used, format, arguments);
    va_end(arguments);
    output(output_context, text);
}

const char *process_name(const struct process *process) {
    return process == NULL ? "nobody" : process->name;
}

const char *id_name(struct world *world, const struct id *id) {
    for (int i = world->process_count - 1; i >= 0; i--) {
        if (world->processes[i]->has_id && id_equal(&world->processes[i]->id, id)) {
            return world->processes[i]->name;
        }
    }
    return id_is_zero(id) ? "-" : "?";
}

const char *status_name(uint16_t status) {
    static const char *const names[] = {"Success",
                                        "NotInitialized",
                                        "InternalError",
                                        "InvalidArgument",
                                        "InvalidUsage",
                                        "TooFewPeers",
                                        "MasterConnectionFailed",
                                        "RankConnectionFailed",
                                        "RankConnectionLost",
                                        "NoSharedStateAvailable",
                                        "PendingAsyncOps",
                                        "UpdateTopologyFailed",
                                        "TopologyOptimizationFailed",
                                        "Timeout",
                                        "MasterConnectionLost",
                                        "Mismatch",
                                        "Evicted",
                                        "Refused",
                                        "OutOfMemory"};
    return status < sizeof names / sizeof names[0] ? names[status] : "?";
}

const char *vote_name(uint8_t vote) {
    static const char *const names[] = {"none", "update_topology", "are_peers_pending", "optimize_topology",
                                        "sync_state"};
    return vote < VOTE_KIND_END ? names[vote] : "?";
}

const char *fault_name(enum fault_kind kind) {
    static const char *const names[] = {"newcomer",      "crash",
                                        "power-off",     "freeze",
                                        "control reset", "link reset",
                                        "one-way block", "cut",
                                        "isolation",     "stall",
                                        "master crash",  "master freeze",
                                        "close",         "close after an early return",
                                        "slow user",     "wrong user"};
    return kind < FAULT_KIND_END ? names[kind] : "?";
}

static size_t append(char *text, size_t bytes, size_t used, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static size_t append(char *text, size_t bytes, size_t used, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int more = vsnprintf(text + used, bytes - used, format, arguments);
    va_end(arguments);
    used += more > 0 ? (size_t)more : 0;
    return used < bytes ? used : bytes - 1;
}

static void describe_propose(struct world *world, const struct message_propose *propose, char *text,
                             size_t bytes) {
    size_t used = append(text, bytes, 0, "PROPOSE epoch=%" PRIu64 " ring=", propose->epoch);
    for (uint16_t i = 0; i < propose->world; i++) {
        used = append(text, bytes, used, "%s%s", i == 0 ? "" : ",", id_name(world, &propose->members[i].id));
    }
    used = append(text, bytes, used, " links=");
    for (uint16_t i = 0; i < propose->link_count; i++) {
        const struct link_plan *link = &propose->links[i];
        used = append(text, bytes, used, "%s%s%s", i == 0 ? "" : ",", link->opener ? ">" : "<",
                      id_name(world, &propose->members[link->rank].id));
    }
    used = append(text, bytes, used, " ops=%s", propose->fate == FATE_ABORT ? "abort" : "carry");
    if (propose->fate == FATE_ABORT) {
        used = append(text, bytes, used, "(%s%s)", status_name(propose->status),
                      propose->has_guilty_tag ? ", one tag" : "");
    }
    append(text, bytes, used, ": %s", propose->reason);
}

static void describe_stragglers(struct world *world, const char *name, const struct message_stragglers *who,
                                char *text, size_t bytes) {
    size_t used = append(text, bytes, 0, "%s after %u ms, %u missing:", name, (unsigned)who->waited_ms,
                         (unsigned)who->total);
    for (uint16_t i = 0; i < who->named; i++) {
        used = append(text, bytes, used, " %s", id_name(world, &who->peers[i]));
    }
}

static void describe_op_message(struct world *world, const struct message *message, char *text,
                                size_t bytes) {
    const char *name = message_name(message->type);
    switch (message->type) {
    case MESSAGE_OP_DONE:
    case MESSAGE_OP_COMMIT:
        snprintf(text, bytes, "%s epoch=%" PRIu64 " tag=%" PRIu64, name, message->as.op.epoch,
                 message->as.op.tag);
        break;
    case MESSAGE_OP_WAITING:
        snprintf(text, bytes, "%s epoch=%" PRIu64 " tag=%" PRIu64 " %s for %u ms", name,
                 message->as.op_waiting.epoch, message->as.op_waiting.tag,
                 (const char *[]){"who", "in", "absent"}[message->as.op_waiting.part],
                 (unsigned)message->as.op_waiting.waited_ms);
        break;
    case MESSAGE_OP_MISMATCH:
        snprintf(text, bytes, "%s epoch=%" PRIu64 " tag=%" PRIu64 " with %s", name,
                 message->as.op_mismatch.epoch, message->as.op_mismatch.tag,
                 id_name(world, &message->as.op_mismatch.other));
        break;
    case MESSAGE_OP_CONFLICT:
        snprintf(text, bytes, "%s epoch=%" PRIu64 " tag=%" PRIu64 " with %s", name,
                 message->as.op_conflict.epoch, message->as.op_conflict.tag,
                 vote_name(message->as.op_conflict.kind));
        break;
    case MESSAGE_OP_ABORT:
        snprintf(text, bytes, "%s epoch=%" PRIu64 " tag=%" PRIu64 " %s: %s", name, message->as.op_abort.epoch,
                 message->as.op_abort.tag, status_name(message->as.op_abort.status),
                 message->as.op_abort.reason);
        break;
    default:
        snprintf(text, bytes, "%s", name);
        break;
    }
}

void message_describe(struct world *world, const struct message *message, char *text, size_t bytes) {
    if (!world->options.trace) {
        text[0] = '\0';
        return;
    }
    const char *name = message_name(message->type);
    switch (message->type) {
    case MESSAGE_PROPOSE:
        describe_propose(world, &message->as.propose, text, bytes);
        break;
    case MESSAGE_READY:
        snprintf(text, bytes, "%s epoch=%" PRIu64 " failed_tags=%u%s", name, message->as.ready.epoch,
                 (unsigned)message->as.ready.failed_count, message->as.ready.kept_count > 0 ? " keeps" : "");
        break;
    case MESSAGE_COMMIT_EPOCH:
        snprintf(text, bytes, "%s epoch=%" PRIu64 " failed_tags=%u%s", name, message->as.commit_epoch.epoch,
                 (unsigned)message->as.commit_epoch.failed_count,
                 message->as.commit_epoch.served_count > 0 ? " serves" : "");
        break;
    case MESSAGE_UNREACHABLE:
    case MESSAGE_LINK_LOST:
        snprintf(text, bytes, "%s epoch=%" PRIu64 " %s: %s", name, message->as.unreachable.epoch,
                 id_name(world, &message->as.unreachable.peer), message->as.unreachable.reason);
        break;
    case MESSAGE_VOTE:
    case MESSAGE_VOTE_OPENED:
        snprintf(text, bytes, "%s %s %s", name, vote_name(message->as.vote.kind),
                 message->type == MESSAGE_VOTE ? "" : id_name(world, &message->as.vote.peer));
        break;
    case MESSAGE_VOTE_RESULT:
        snprintf(text, bytes, "%s %s: %s %" PRIu64 " %s", name, vote_name(message->as.vote_result.kind),
                 status_name(message->as.vote_result.status), message->as.vote_result.value,
                 message->as.vote_result.reason);
        break;
    case MESSAGE_OP_STRAGGLERS:
    case MESSAGE_VOTE_WAITING:
        describe_stragglers(world, name, &message->as.stragglers, text, bytes);
        break;
    case MESSAGE_REFUSED:
    case MESSAGE_EVICTED:
        snprintf(text, bytes, "%s %s: %s", name, status_name(message->as.refused.status),
                 message->as.refused.reason);
        break;
    case MESSAGE_PROBE:
        snprintf(text, bytes, "%s %s%s", name,
                 id_is_zero(&message->as.probe.member.id) ? ""
                 : message->as.probe.opener               ? ">"
                                                          : "<",
                 id_name(world, &message->as.probe.member.id));
        break;
    case MESSAGE_PROBED:
        snprintf(text, bytes, "%s %s%s", name,
                 message->as.probed.reached ? "works" : "fails: ", message->as.probed.reason);
        break;
    case MESSAGE_CENSUS:
        snprintf(text, bytes, "%s peers=%u groups=%u largest=%u", name, (unsigned)message->as.census.peers,
                 (unsigned)message->as.census.groups, (unsigned)message->as.census.largest_group);
        break;
    default:
        describe_op_message(world, message, text, bytes);
        break;
    }
}
