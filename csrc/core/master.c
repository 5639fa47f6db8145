#include "core/master.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/master_state.h"
#include "pccl.h"

static const uint64_t ns_per_ms = 1000000;

size_t master_bytes(void) {
    return sizeof(struct master);
}

void master_init(struct master *master, const struct master_options *options, master_perform perform,
                 void *context) {
    master->random.state = options->seed;
    master->perform = perform;
    master->context = context;
    master->run = random_id(&master->random);
    memcpy(master->run_name, options->run, sizeof master->run_name);
    master->next_check_ns = UINT64_MAX;
    master->tick_ns = UINT64_MAX;
    master_op_init(master);
}

void master_send(struct master *master, int slot, const struct message *message) {
    struct master_action action = {
        .kind = MASTER_SEND, .connection = master->connections[slot], .message = message};
    master->perform(master->context, &action);
}

void master_send_type(struct master *master, int slot, enum message_type type) {
    struct message message = {.type = type};
    master_send(master, slot, &message);
}

__attribute__((format(printf, 3, 0))) static void write_log(struct master *master, bool routine,
                                                            const char *format, va_list arguments) {
    char text[2 * MAX_REASON_BYTES];
    vsnprintf(text, sizeof text, format, arguments);
    struct master_action action = {.kind = MASTER_LOG, .text = text, .routine = routine};
    master->perform(master->context, &action);
}

void master_log(struct master *master, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    write_log(master, false, format, arguments);
    va_end(arguments);
}

void master_log_routine(struct master *master, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    write_log(master, true, format, arguments);
    va_end(arguments);
}

const char *master_label(const struct master *master, int slot, char text[LABEL_BYTES]) {
    const struct slot *peer = &master->slots[slot];
    char digits[ID_TEXT_BYTES];
    id_text(&peer->id, digits);
    if (peer->name[0] != '\0') {
        snprintf(text, LABEL_BYTES, "%s (%.8s)", peer->name, digits);
    } else {
        snprintf(text, LABEL_BYTES, "%.8s", digits);
    }
    return text;
}

int master_find_id(const struct master *master, const struct id *id) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state != SLOT_FREE && id_equal(&master->slots[slot].id, id)) {
            return slot;
        }
    }
    return NO_SLOT;
}

void master_describe(const struct master *master, int to, int other, struct member *member) {
    (void)to;
    const struct slot *peer = &master->slots[other];
    member->id = peer->id;
    member->address = peer->address;
    memcpy(member->name, peer->name, sizeof member->name);
}

/* At most `ns`, in how many of `slots`? */
static int count_up_to(const struct master *master, const struct slot_set *slots, uint64_t ns) {
    int count = 0;
    for (int slot = slot_set_next(slots, 0); slot >= 0;
         slot = slot + 1 < MAX_PEERS ? slot_set_next(slots, slot + 1) : -1) {
        count += master->slots[slot].timeout_ns <= ns;
    }
    return count;
}

static uint64_t median_timeout_ns(const struct master *master, const struct slot_set *slots) {
    int half = (slot_set_count(slots) + 1) / 2;
    uint64_t low_ms = MIN_TIMEOUT_MS, high_ms = half == 0 ? DEFAULT_TIMEOUT_MS : MAX_TIMEOUT_MS;
    while (low_ms < high_ms && half > 0) {
        uint64_t middle_ms = (low_ms + high_ms) / 2;
        if (count_up_to(master, slots, middle_ms * ns_per_ms) >= half) {
            high_ms = middle_ms;
        } else {
            low_ms = middle_ms + 1;
        }
    }
    return high_ms * ns_per_ms;
}

uint64_t master_run_timeout_ns(const struct master *master) {
    struct slot_set all;
    slot_set_clear(&all);
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state != SLOT_FREE) {
            slot_set_add(&all, slot);
        }
    }
    bool has_members = slot_set_next(&master->members, 0) >= 0;
    return median_timeout_ns(master, has_members ? &master->members : &all);
}

uint64_t master_group_timeout_ns(const struct master *master, const struct group *group) {
    struct slot_set members;
    slot_set_clear(&members);
    for (int i = 0; i < group->size; i++) {
        if (slot_set_has(&master->members, group->ring[i])) {
            slot_set_add(&members, group->ring[i]);
        }
    }
    return slot_set_next(&members, 0) >= 0 ? median_timeout_ns(master, &members)
                                           : master_run_timeout_ns(master);
}

static int find_connection(const struct master *master, uint64_t connection) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->connections[slot] == connection) {
            return slot;
        }
    }
    return NO_SLOT;
}

void master_watch(struct master *master, uint64_t deadline_ns) {
    if (deadline_ns < master->next_check_ns) {
        master->next_check_ns = deadline_ns;
    }
}

void master_settle(struct master *master) {
    master_probe_settle(master);
    /* Nobody is left who could vote the newcomers in. */
    if (slot_set_next(&master->members, 0) >= 0) {
        master->left_alone_ns = 0;
    } else if (master_epoch_all_formed(master) && !master_probe_try_among_pending(master)) {
        master_join_admit(master);
    }
    master_sync_settle(master);
    master_vote_settle(master);
}

static void member_message(struct master *master, int slot, const struct message *message) {
    switch (message->type) {
    case MESSAGE_READY:
        master_epoch_ready(master, slot, &message->as.ready);
        break;
    case MESSAGE_UNREACHABLE:
        master_epoch_unreachable(master, slot, &message->as.unreachable);
        break;
    case MESSAGE_LINK_LOST:
        master_epoch_link_lost(master, slot, &message->as.unreachable);
        break;
    case MESSAGE_EVICTED: /* what ails it is its own, and must not be told as another one's */
        master_join_evict(master, slot, pcclEvicted, "%s", message->as.refused.reason);
        break;
    case MESSAGE_VOTE:
        master_vote(master, slot, &message->as.vote);
        break;
    case MESSAGE_SYNC_OFFER:
        master_sync_offer(master, slot, &message->as.sync_offer);
        break;
    case MESSAGE_SYNC_REPORT:
        master_sync_report(master, slot, &message->as.sync_report);
        break;
    case MESSAGE_OP_DONE:
        master_op_done(master, slot, &message->as.op);
        break;
    case MESSAGE_OP_MISMATCH:
        master_op_mismatch(master, slot, &message->as.op_mismatch);
        break;
    case MESSAGE_OP_CONFLICT:
        master_vote_conflict(master, slot, &message->as.op_conflict);
        break;
    case MESSAGE_OP_ABORT:
        master_op_abort(master, slot, &message->as.op_abort);
        break;
    case MESSAGE_OP_WAITING:
        master_op_waiting(master, slot, &message->as.op_waiting);
        break;
    case MESSAGE_HEARTBEAT:
        if (master->slots[slot].state == SLOT_PENDING) {
            master_probe_tell(master, slot);
        } else {
            master_send_type(master, slot, MESSAGE_HEARTBEAT);
        }
        break;
    case MESSAGE_PROBED:
        master_probe_answered(master, slot, &message->as.probed);
        break;
    case MESSAGE_GOODBYE:
        master_join_goodbye(master, slot);
        break;
    default:
        master_join_evict(master, slot, pcclEvicted, "it sent a message (%s) that has no place here",
                          message_name(message->type));
        break;
    }
}

static void message_arrived(struct master *master, const struct master_event *event) {
    int slot = find_connection(master, event->connection);
    if (slot != NO_SLOT) {
        master->slots[slot].last_heard_ns = master->now_ns;
        master->slots[slot].has_spoken = true;
        member_message(master, slot, event->message);
    } else if (event->message->type == MESSAGE_HELLO) {
        master_join_hello(master, event);
    } /* else: said before it learned that it is out */
}

/* A gap far longer than the time between two checks means that this process itself stood still, and what
 * the peers sent meanwhile is still unread. */
static void forgive_own_sleep(struct master *master) {
    uint64_t gap_ns = master->now_ns - master->last_step_ns;
    if (master->tick_ns == UINT64_MAX || gap_ns <= 3 * master->tick_ns) {
        return;
    }
    master_log(master, "the master stood still for %.1f s: silence before that counts against nobody",
               (double)gap_ns / 1e9);
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        master->slots[slot].last_heard_ns += gap_ns;
        master->slots[slot].sync_moved_ns += gap_ns;
    }
    /* Votes, offers and answers that came meanwhile are unread, too. */
    rendezvous_postpone(&master->vote, gap_ns);
    for (int group = 0; group < MAX_PEERS; group++) {
        master->groups[group].formed_since_ns += gap_ns;
        rendezvous_postpone(&master->groups[group].sync, gap_ns);
    }
    master_probe_forgive(master, gap_ns);
    master_op_postpone(master, gap_ns);
    master->awake_since_ns = master->now_ns;
}

static void check_time(struct master *master) {
    if (master->now_ns < master->next_check_ns) {
        return;
    }
    master->next_check_ns = UINT64_MAX;
    master->tick_ns = UINT64_MAX;
    master_join_check(master);
    master_epoch_check(master);
    master_probe_check(master);
    if (master->left_alone_ns != 0) {
        master_settle(master);
    }
    master_op_check(master);
    master_vote_check(master);
    master_sync_check(master);
    if (master->tick_ns != UINT64_MAX) {
        master_watch(master, master->now_ns + master->tick_ns);
    }
}

void master_step(struct master *master, const struct master_event *event) {
    master->now_ns = event->now_ns;
    forgive_own_sleep(master);
    master->last_step_ns = master->now_ns;
    int slot;
    switch (event->kind) {
    case MASTER_MESSAGE:
        message_arrived(master, event);
        break;
    case MASTER_CLOSED:
        slot = find_connection(master, event->connection);
        if (slot != NO_SLOT) {
            master_join_lost(master, slot, event->reason);
        }
        break;
    case MASTER_TICK:
        break;
    }
    check_time(master);
}

uint64_t master_deadline(const struct master *master) {
    return master->next_check_ns;
}

void master_get_status(const struct master *master, struct master_status *status) {
    *status = (struct master_status){.run = master->run,
                                     .peers = (uint32_t)slot_set_count(&master->members),
                                     .pending = master_join_pending(master)};
    for (int group = 0; group < MAX_PEERS; group++) {
        const struct group *formed = &master->groups[group];
        if (formed->used && formed->size > 0) {
            status->groups++;
            status->epoch = formed->epoch > status->epoch ? formed->epoch : status->epoch;
        }
    }
}
