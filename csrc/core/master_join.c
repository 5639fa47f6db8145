/* Who is in: joining, leaving, being lost or put out. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/heartbeat.h"
#include "core/master_state.h"
#include "pccl.h"

static const uint64_t ns_per_ms = 1000000;

static void refuse(struct master *master, const struct master_event *event, const char *reason) {
    uint64_t connection = event->connection;
    char where[ADDRESS_TEXT_BYTES];
    struct message message = {.type = MESSAGE_REFUSED};
    message.as.refused.status = pcclRefused;
    snprintf(message.as.refused.reason, sizeof message.as.refused.reason, "%s", reason);
    struct master_action send = {.kind = MASTER_SEND, .connection = connection, .message = &message};
    struct master_action close = {.kind = MASTER_CLOSE, .connection = connection};
    master->perform(master->context, &send);
    master->perform(master->context, &close);
    const char *name = event->message->as.hello.name;
    master_log(master, "peer %s at %s was refused: %s", name[0] != '\0' ? name : "(unnamed)",
               address_text(&event->remote, where), reason);
}

static int find_or_make_group(struct master *master, uint32_t number) {
    int free = NO_GROUP;
    for (int i = MAX_PEERS - 1; i >= 0; i--) {
        if (!master->groups[i].used) {
            free = i;
        } else if (master->groups[i].number == number) {
            return i;
        }
    }
    struct group *group = &master->groups[free]; /* there are as many groups as slots */
    group->used = true;
    group->number = number;
    group->epoch = group->plan_epoch = 0;
    group->size = 0;
    group->vote_announced = false;
    memset(group->lossy, 0, sizeof group->lossy);
    group->last_failed_ns = group->forgiven_ns = 0;
    group->failed_count = 0;
    group->untold_count = 0;
    slot_set_clear(&group->excused);
    rendezvous_close(&group->sync);
    group->sync_number = 0;
    group->first_op = NO_MASTER_OP;
    return free;
}

static bool group_has_peers(const struct master *master, int group) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state != SLOT_FREE && master->slots[slot].group == group) {
            return true;
        }
    }
    return false;
}

static void forget_pairs(struct master *master, int slot) {
    slot_set_clear(&master->bad[slot]);
    slot_set_clear(&master->cant_open[slot]);
    slot_set_clear(&master->good[slot]);
    for (int other = 0; other < MAX_PEERS; other++) {
        slot_set_remove(&master->bad[other], slot);
        slot_set_remove(&master->cant_open[other], slot);
        slot_set_remove(&master->good[other], slot);
    }
}

static bool has_peers(const struct master *master) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state != SLOT_FREE) {
            return true;
        }
    }
    return false;
}

/* The peers of one job name one run, or all name none: so a second job that was given the same master by
 * mistake is turned away, and does not take part in the first one. False: `text` says why not. */
static bool fits_run(const struct master *master, const struct message_hello *hello,
                     char text[MAX_REASON_BYTES + 1]) {
    bool given = master->run_name[0] != '\0';
    const char *run = given ? master->run_name : master->peers_run;
    if ((!given && !has_peers(master)) || strcmp(hello->run, run) == 0) {
        return true;
    }
    if (run[0] == '\0') {
        snprintf(text, MAX_REASON_BYTES + 1,
                 "the peers at this master name no run, and this peer names the run \"%s\": give each job a "
                 "master of its own, or all peers of one job the same run",
                 hello->run);
    } else if (hello->run[0] == '\0') {
        snprintf(
            text, MAX_REASON_BYTES + 1,
            "this master serves the run \"%s\", and this peer names none: if it belongs to that run, say so "
            "(PCCL_RUN, or run= in Python); else give its job a master of its own",
            run);
    } else {
        snprintf(
            text, MAX_REASON_BYTES + 1,
            "this master serves the run \"%s\", and this peer belongs to the run \"%s\": give each job a "
            "master of its own, or all peers of one job the same run",
            run, hello->run);
    }
    return false;
}

static int find_free_slot(const struct master *master) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        if (master->slots[slot].state == SLOT_FREE) {
            return slot;
        }
    }
    return NO_SLOT;
}

/* A peer sends heartbeats from the moment it is welcome. In a full run the newcomer that has been silent for
 * longest since its HELLO makes room for the next: so silent ones can't keep anybody out. */
static int find_silent(const struct master *master) {
    int silent = NO_SLOT;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        const struct slot *peer = &master->slots[slot];
        if (peer->state == SLOT_PENDING && !peer->has_spoken &&
            (silent == NO_SLOT || peer->order < master->slots[silent].order)) {
            silent = slot;
        }
    }
    return silent;
}

static int make_room(struct master *master) {
    int silent = find_free_slot(master) == NO_SLOT ? find_silent(master) : NO_SLOT;
    if (silent != NO_SLOT) {
        master_join_evict(master, silent, pcclEvicted,
                          "the run is full, and it has said nothing since its HELLO");
    }
    return find_free_slot(master);
}

/* What a peer says of itself counts, unless nobody could connect there: loopback is right only if the peer
 * comes to the master by loopback too. Then it is where it comes from. */
static bool can_be_reached_by(const struct address *listen, const struct address *remote) {
    return address_unusable(listen) == NULL && (!address_is_loopback(listen) || address_is_loopback(remote));
}

static void seat(struct master *master, int slot, const struct master_event *event) {
    const struct message_hello *hello = &event->message->as.hello;
    struct slot *peer = &master->slots[slot];
    *peer = (struct slot){.state = SLOT_PENDING,
                          .id = random_id(&master->random),
                          .streams = hello->streams,
                          .timeout_ns = hello->timeout_ms * ns_per_ms,
                          .straggler_timeout_ns = hello->straggler_timeout_ms * ns_per_ms,
                          .last_heard_ns = master->now_ns,
                          .order = ++master->last_order};
    peer->address = hello->listen;
    if (!can_be_reached_by(&hello->listen, &event->remote)) {
        peer->address = event->remote;
        peer->address.port = hello->listen.port;
    }
    memcpy(peer->name, hello->name, sizeof peer->name);
    peer->since_ns = master->now_ns;
    peer->try_after_ns = master_probe_try_after_ns(master, slot);
    peer->group = (int16_t)find_or_make_group(master, hello->group);
    master->connections[slot] = event->connection;
    forget_pairs(master, slot);
    uint64_t tick_ns = heartbeat_of(peer->timeout_ns);
    if (tick_ns < master->tick_ns) {
        master->tick_ns = tick_ns;
        master_watch(master, master->now_ns + tick_ns);
    }
}

void master_join_hello(struct master *master, const struct master_event *event) {
    const struct message_hello *hello = &event->message->as.hello;
    char text[MAX_REASON_BYTES + 1];
    if (hello->version != PROTOCOL_VERSION) {
        snprintf(text, sizeof text,
                 "the peer speaks protocol version %u and this master version %u: install the same "
                 "version of pccl on both",
                 (unsigned)hello->version, (unsigned)PROTOCOL_VERSION);
        refuse(master, event, text);
        return;
    }
    if (!fits_run(master, hello, text)) {
        refuse(master, event, text);
        return;
    }
    int slot = make_room(master);
    if (slot == NO_SLOT) {
        snprintf(text, sizeof text, "the run is full: it has %d peers, which is the limit", (int)MAX_PEERS);
        refuse(master, event, text);
        return;
    }
    memcpy(master->peers_run, hello->run, sizeof master->peers_run);
    seat(master, slot, event);
    struct message message = {.type = MESSAGE_WELCOME};
    message.as.welcome = (struct message_welcome){.run = master->run, .peer = master->slots[slot].id};
    master_send(master, slot, &message);
    char label[LABEL_BYTES], where[ADDRESS_TEXT_BYTES];
    master_log(master, "peer %s asks to join group %" PRIu32 "; it listens on %s",
               master_label(master, slot, label), hello->group,
               address_text(&master->slots[slot].address, where));
    if (hello->listen.family != ADDRESS_NONE && !can_be_reached_by(&hello->listen, &event->remote)) {
        master_log(master, "peer %s advertised %s, which others can't reach", label,
                   address_text(&hello->listen, where));
    }
    master_settle(master);
}

/* Frees the slot and takes it out of its group's ring. Returns the group if that must be reformed. */
static int free_slot(struct master *master, int slot) {
    struct slot *peer = &master->slots[slot];
    int group = peer->group;
    bool planned = peer->state != SLOT_PENDING;
    if (planned) {
        master_epoch_remove(master, slot);
    }
    master_probe_forget(master, slot);
    master_epoch_forget_losses(&master->groups[group], slot);
    peer->state = SLOT_FREE;
    master->connections[slot] = 0;
    slot_set_remove(&master->members, slot);
    master_vote_withdraw(master, slot);
    master_sync_withdraw(master, slot);
    if (!group_has_peers(master, group)) {
        master_op_forget(master, group);
        master->groups[group].used = false;
        return NO_GROUP;
    }
    return planned ? group : NO_GROUP;
}

static void remove_peer(struct master *master, int slot, const struct ending *ending) {
    bool counted = master->slots[slot].state == SLOT_MEMBER;
    int group = free_slot(master, slot);
    if (group != NO_GROUP) {
        master_epoch_reform(master, group, ending);
    }
    if (counted && (group == NO_GROUP || master->groups[group].size == 0)) {
        master_epoch_tell_census(master); /* the group is gone: no epoch of it will bring the news */
    }
}

void master_join_goodbye(struct master *master, int slot) {
    char label[LABEL_BYTES];
    struct ending ending = ending_carry("peer %s has left", master_label(master, slot, label));
    master_log(master, "%s", ending.reason);
    uint64_t connection = master->connections[slot];
    remove_peer(master, slot, &ending);
    /* The others have been told: now it may take its links down. */
    struct message message = {.type = MESSAGE_FAREWELL};
    struct master_action send = {.kind = MASTER_SEND, .connection = connection, .message = &message};
    struct master_action close = {.kind = MASTER_CLOSE, .connection = connection};
    master->perform(master->context, &send);
    master->perform(master->context, &close);
    master_settle(master);
}

void master_join_lost(struct master *master, int slot, const char *reason) {
    char label[LABEL_BYTES];
    struct ending ending = ending_abort(pcclRankConnectionLost, "peer %s was lost: %s",
                                        master_label(master, slot, label), reason);
    master_log(master, "%s", ending.reason);
    remove_peer(master, slot, &ending);
    master_settle(master);
}

static void tell_evicted(struct master *master, int slot, uint16_t status, const char *reason) {
    struct message message = {.type = MESSAGE_EVICTED};
    message.as.refused.status = status;
    snprintf(message.as.refused.reason, sizeof message.as.refused.reason, "%s", reason);
    struct master_action close = {.kind = MASTER_CLOSE, .connection = master->connections[slot]};
    master_send(master, slot, &message);
    master->perform(master->context, &close);
}

void master_join_expel(struct master *master, int slot, uint16_t status, const char *reason) {
    char label[LABEL_BYTES];
    master_log(master, "peer %s was left out: %s", master_label(master, slot, label), reason);
    if (master->slots[slot].state != SLOT_MEMBER) {
        master_probe_has_failed(master, slot);
    }
    tell_evicted(master, slot, status, reason);
    free_slot(master, slot);
}

void master_join_evict(struct master *master, int slot, uint16_t status, const char *format, ...) {
    char reason[MAX_REASON_BYTES + 1], label[LABEL_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    struct ending ending = ending_abort(pcclRankConnectionLost, "peer %s was evicted: %s",
                                        master_label(master, slot, label), reason);
    master_log(master, "%s", ending.reason);
    tell_evicted(master, slot, status, reason);
    remove_peer(master, slot, &ending);
    master_settle(master);
}

void master_join_admit(struct master *master) {
    bool has_members = slot_set_next(&master->members, 0) >= 0;
    for (int group = 0; group < MAX_PEERS; group++) {
        if (!master->groups[group].used) {
            continue;
        }
        int16_t admitted[MAX_PEERS];
        int count = master_probe_admissible(master, group, admitted);
        int first = count == 0 && !has_members ? master_probe_first_pending(master, group) : NO_SLOT;
        if (first != NO_SLOT) {
            admitted[count++] = (int16_t)first;
        }
        for (int i = 0; i < count; i++) { /* behind those who are in */
            master->slots[admitted[i]].state = SLOT_JOINING;
            master_epoch_append(master, admitted[i]);
        }
        if (count > 0) {
            struct ending ending = ending_carry("%d new", count);
            master_epoch_reform(master, group, &ending);
        }
    }
}

uint32_t master_join_pending(const struct master *master) {
    uint32_t pending = 0;
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        pending += master->slots[slot].state == SLOT_PENDING;
    }
    return pending;
}

/* How long it may be silent. A newcomer that has never sent a heartbeat has not earned a long timeout. */
static uint64_t silence_ns(const struct slot *peer) {
    uint64_t newcomer_ns = NEWCOMER_SILENCE_MS * ns_per_ms;
    bool is_new = peer->state == SLOT_PENDING && !peer->has_spoken;
    return is_new && peer->timeout_ns > newcomer_ns ? newcomer_ns : peer->timeout_ns;
}

void master_join_check(struct master *master) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        const struct slot *peer = &master->slots[slot];
        if (peer->state == SLOT_FREE) {
            continue;
        }
        uint64_t deadline_ns = peer->last_heard_ns + silence_ns(peer);
        if (master->now_ns >= deadline_ns) {
            master_join_evict(master, slot, pcclEvicted, "nothing heard from it for %.1f s",
                              (double)(master->now_ns - peer->last_heard_ns) / 1e9);
            continue;
        }
        master_watch(master, deadline_ns);
        uint64_t tick_ns = heartbeat_of(peer->timeout_ns);
        master->tick_ns = tick_ns < master->tick_ns ? tick_ns : master->tick_ns;
    }
}
