#define _GNU_SOURCE
#include "net/state_sync.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/last_error.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/state_desk.h"
#include "net/state_fetcher.h"
#include "net/state_hasher.h"
#include "net/state_holder.h"

static const uint64_t progress_interval_ns = 100 * NS_PER_MS;
/* While hashing nothing tells us that the communicator was closed: we look. */
static const uint64_t look_interval_ns = 50 * NS_PER_MS;

struct state_sync {
    struct comm *comm;
    struct state_table *table;
    const struct state_sync_request *request;
    struct call call;
    struct message_sync_offer offer;
    struct state_desk desk;
    struct poller poller;
    struct poll_item wake_item;
    struct state_holder holder;
    struct state_fetcher fetcher;
    struct message_sync_plan plan;                 /* the newest */
    uint64_t reported_progress_ns, next_moving_ns; /* of SYNC_MOVING */
    uint64_t reported_sync; /* for which this peer has said that it holds the elected state */
    bool interrupted, told, told_changed;
    pcclSyncPhase_t told_phase;
    uint64_t next_check_ns, next_look_ns, next_progress_ns;
};

/* ---- progress and interrupts ---- */

static void tell(struct state_sync *sync, pcclSyncPhase_t phase, uint64_t done, uint64_t total, bool now) {
    uint64_t now_ns = clock_now_ns();
    bool new_phase = !sync->told || phase != sync->told_phase;
    if (sync->request->progress == NULL || (!now && !new_phase && now_ns < sync->next_progress_ns)) {
        return;
    }
    sync->told = true;
    sync->told_phase = phase;
    sync->next_progress_ns = now_ns + progress_interval_ns;
    pcclSyncProgress_t progress = {.phase = phase, .done_bytes = done, .total_bytes = total};
    sync->request->progress(sync->request->context, &progress);
}

static void tell_transfer(struct state_sync *sync, bool now) {
    const struct state_fetcher *fetcher = &sync->fetcher;
    if (fetcher->stage == FETCH_LEAVES || (now && fetcher->touched)) {
        tell(sync, pcclSyncReceiving, fetcher->done_bytes, fetcher->total_bytes, now);
    } else if (sync->holder.visitor_count > 0) {
        tell(sync, pcclSyncSending, sync->holder.tx_bytes, 0, now);
    }
}

/* False once the call has to end. */
static bool check_interrupt(struct state_sync *sync, uint64_t now_ns) {
    uint64_t interval_ns = comm_check_interval_ns(sync->comm);
    if (!sync->interrupted && interval_ns != UINT64_MAX && now_ns >= sync->next_check_ns) {
        sync->next_check_ns = now_ns + interval_ns;
        sync->interrupted = comm_interrupted(sync->comm);
    }
    return !sync->interrupted;
}

/* ---- before the offer ---- */

static bool goes_on_hashing(void *context, uint64_t bytes) {
    struct state_sync *sync = context;
    uint64_t now_ns = clock_now_ns();
    tell(sync, pcclSyncHashing, bytes, sync->table->leaf_bytes, false);
    if (!check_interrupt(sync, now_ns)) {
        return false;
    }
    if (now_ns < sync->next_look_ns) {
        return true;
    }
    sync->next_look_ns = now_ns + look_interval_ns;
    struct peer_status status;
    comm_get_status(sync->comm, &status);
    return status.connected;
}

/* Whether the call could be made now; else why not. */
static pcclResult_t ask(struct comm *comm) {
    struct call question = {.kind = PEER_EVENT_SYNC};
    return comm_run(comm, &question);
}

static pcclResult_t hash(struct state_sync *sync) {
    sync->next_look_ns = clock_now_ns() + look_interval_ns;
    if (state_hash_all(sync->table, goes_on_hashing, sync)) {
        tell(sync, pcclSyncHashing, sync->table->leaf_bytes, sync->table->leaf_bytes, true);
        return pcclSuccess;
    }
    pcclResult_t result = sync->interrupted ? pcclSuccess : ask(sync->comm);
    if (result == pcclSuccess ||
        result == pcclInvalidUsage) { /* else the master was lost, or has put us out */
        last_error_set("the communicator was closed while the shared state was being hashed");
        return pcclInvalidUsage;
    }
    return result;
}

static void fill_offer(struct state_sync *sync) {
    struct message_sync_offer *offer = &sync->offer;
    offer->revision = sync->request->revision;
    offer->strategy = sync->request->strategy;
    offer->keys = state_table_keys(sync->table);
    offer->content = state_table_content(sync->table, sync->table->hashes);
    offer->requires_peers = sync->request->requires_peers;
    offer->mixed = offer->strategy != PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY &&
                   comm_is_mixture(sync->comm, &offer->content);
    if (offer->mixed) {
        offer->strategy = PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY;
    }
}

/* ---- reports ---- */

/* On its way to the master when this returns. */
static void send_report(struct state_sync *sync, const struct message_sync_report *message) {
    struct call call = {.kind = PEER_EVENT_SYNC_REPORT, .report = message};
    comm_run(sync->comm, &call); /* if it did not get there, the call has ended too */
}

static void report(struct state_sync *sync, enum sync_progress progress, uint16_t status,
                   const char *reason) {
    struct message_sync_report message = {
        .sync = sync->plan.sync, .progress = (uint8_t)progress, .status = status};
    snprintf(message.reason, sizeof message.reason, "%s", reason);
    send_report(sync, &message);
}

/* So that the master does not take this peer for one that does nothing. */
static void report_moving(struct state_sync *sync, uint64_t now_ns) {
    const struct state_fetcher *fetcher = &sync->fetcher;
    if (fetcher->stage == FETCH_LEAVES && fetcher->progress_ns > sync->reported_progress_ns &&
        now_ns >= sync->next_moving_ns) {
        sync->reported_progress_ns = fetcher->progress_ns;
        sync->next_moving_ns = now_ns + fetcher->patience_ns / 4;
        report(sync, SYNC_MOVING, pcclSuccess, "");
    }
}

static void report_unreached(struct state_sync *sync, uint64_t now_ns) {
    struct message_sync_report message = {.sync = sync->plan.sync, .progress = SYNC_UNREACHED};
    while (state_fetcher_take_unreached(&sync->fetcher, now_ns, &message.peer)) {
        send_report(sync, &message);
    }
}

static void report_held(struct state_sync *sync) {
    if (sync->reported_sync != sync->plan.sync) {
        sync->reported_sync = sync->plan.sync;
        report(sync, SYNC_FETCHED, pcclSuccess, "");
    }
}

/* The user has written to what this peer offered. */
static void report_changed(struct state_sync *sync) {
    uint64_t leaf = sync->holder.changed_leaf;
    size_t tensor = 0;
    char reason[MAX_REASON_BYTES + 1];
    state_table_rehash(sync->table, leaf, &tensor);
    snprintf(reason, sizeof reason, CHANGED_FORMAT, sync->table->tensors[tensor].name, sync->fetcher.label);
    report(sync, SYNC_FAILED, pcclInvalidUsage, reason);
}

/* ---- plans ---- */

static bool holds_elected(const struct state_sync *sync) {
    struct digest keys = state_table_keys(sync->table);
    struct digest content = state_table_content(sync->table, sync->table->hashes);
    return memcmp(&keys, &sync->plan.keys, sizeof keys) == 0 &&
           memcmp(&content, &sync->plan.content, sizeof content) == 0;
}

/* Fetchers that get no connection to this peer. */
static void call_fetchers(struct state_sync *sync) {
    const struct message_sync_plan *plan = &sync->plan;
    for (uint16_t i = 0; i < plan->source_count; i++) {
        struct link_greeting greeting = {.run = sync->fetcher.run,
                                         .key = plan->key,
                                         .from = sync->fetcher.self,
                                         .to = plan->sources[i].id,
                                         .stream = 0,
                                         .streams = 1};
        state_holder_call(&sync->holder, &plan->sources[i], &greeting);
    }
}

static void hold(struct state_sync *sync, bool again) {
    state_fetcher_stop(&sync->fetcher);
    if (sync->request->strategy != PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY && holds_elected(sync)) {
        call_fetchers(sync);
    }
    if (again) {
        return;
    }
    if (!holds_elected(sync)) {
        report(sync, SYNC_TOUCHED, pcclSuccess, "");
    } else {
        report_held(sync); /* it may have been told to fetch before: the master can't be sure of its memory */
    }
}

static void take_plan(struct state_sync *sync) {
    struct message_sync_plan plan;
    if (!state_desk_take_plan(&sync->desk, &plan)) {
        return;
    }
    bool again = plan.sync == sync->plan.sync && plan.role == sync->plan.role;
    sync->plan = plan;
    if (!again) {
        state_holder_close(
            &sync->holder); /* they come for something else, or to somebody who has it no more */
        sync->holder.changed = false;
        sync->told_changed = false;
    }
    if (plan.role == SYNC_HOLD) {
        hold(sync, again);
    } else {
        state_fetcher_plan(&sync->fetcher, &plan);
    }
}

static void take_visitors(struct state_sync *sync) {
    int fd;
    struct id from;
    while ((fd = state_desk_take_visitor(&sync->desk, &from)) >= 0) {
        if (sync->plan.role == SYNC_HOLD) {
            state_holder_admit(&sync->holder, fd, &from);
        } else {
            state_fetcher_adopt(&sync->fetcher, fd, &from);
        }
    }
}

/* What the fetcher has come to. */
static void settle(struct state_sync *sync) {
    struct state_fetcher *fetcher = &sync->fetcher;
    if (sync->holder.changed && !sync->told_changed) {
        sync->told_changed = true;
        report_changed(sync);
    }
    if (fetcher->stage == FETCH_READY) {
        /* Before the first byte changes: if the holders die, this peer can't be elected. */
        report(sync, SYNC_TOUCHED, pcclSuccess, "");
        state_fetcher_begin(fetcher);
    } else if (fetcher->stage == FETCH_DONE) {
        tell_transfer(sync, true);
        state_fetcher_stop(fetcher);
        report_held(sync);
    } else if (fetcher->stage == FETCH_FAILED) {
        char reason[MAX_REASON_BYTES + 1];
        memcpy(reason, fetcher->reason, sizeof reason);
        uint16_t status = fetcher->status;
        state_fetcher_stop(fetcher);
        report(sync, SYNC_FAILED, status, reason);
    }
}

/* ---- the loop ---- */

static void work_off(struct state_sync *sync) {
    struct list now;
    list_init(&now);
    list_append_all(&now, &sync->poller.hot);
    while (!list_is_empty(&now)) {
        struct poll_item *item = LIST_ENTRY(now.next, struct poll_item, hot);
        list_remove(&item->hot);
        switch ((enum state_item)item->kind) {
        case STATE_ITEM_WAKE:
            state_desk_woken(&sync->desk);
            break;
        case STATE_ITEM_VISITOR:
            state_holder_ready(&sync->holder, item);
            break;
        case STATE_ITEM_STREAM:
            state_fetcher_ready(&sync->fetcher, item);
            break;
        }
        settle(sync);
    }
}

static uint64_t idle_ns(const struct state_sync *sync, uint64_t now_ns) {
    if (!list_is_empty(&sync->poller.hot)) {
        return 0;
    }
    uint64_t deadline = state_fetcher_deadline(&sync->fetcher);
    if (sync->fetcher.stage == FETCH_LEAVES && sync->fetcher.progress_ns > sync->reported_progress_ns &&
        sync->next_moving_ns < deadline) {
        deadline = sync->next_moving_ns;
    }
    if (!sync->interrupted && comm_check_interval_ns(sync->comm) != UINT64_MAX &&
        sync->next_check_ns < deadline) {
        deadline = sync->next_check_ns;
    }
    if (sync->request->progress != NULL && sync->next_progress_ns > now_ns &&
        sync->next_progress_ns < deadline) {
        deadline = sync->next_progress_ns;
    }
    return deadline == UINT64_MAX ? UINT64_MAX : deadline > now_ns ? deadline - now_ns : 0;
}

/* Until the net thread says that the call has ended. */
static void serve(struct state_sync *sync) {
    while (!state_desk_has_ended(&sync->desk)) {
        take_plan(sync);
        take_visitors(sync);
        work_off(sync);
        uint64_t now_ns = clock_now_ns();
        state_fetcher_tick(&sync->fetcher, now_ns);
        settle(sync);
        report_moving(sync, now_ns);
        report_unreached(sync, now_ns);
        tell_transfer(sync, false);
        check_interrupt(sync, now_ns);
        poller_wait(&sync->poller, idle_ns(sync, now_ns));
    }
}

static void init_parts(struct state_sync *sync) {
    const struct message_hello *hello = comm_hello(sync->comm);
    struct peer_status status;
    comm_get_status(sync->comm, &status);
    state_holder_init(&sync->holder, &sync->poller, sync->table, hello->timeout_ms);
    state_fetcher_init(&sync->fetcher, &sync->poller, sync->table, hello->streams,
                       hello->timeout_ms * NS_PER_MS);
    sync->fetcher.run = status.run;
    sync->fetcher.self = status.id;
    char digits[ID_TEXT_BYTES];
    id_text(&status.id, digits);
    if (hello->name[0] != '\0') {
        snprintf(sync->fetcher.label, sizeof sync->fetcher.label, "%s (%.8s)", hello->name, digits);
    } else {
        snprintf(sync->fetcher.label, sizeof sync->fetcher.label, "%.8s", digits);
    }
}

static pcclResult_t refuse_for(int error) {
    char text[DESCRIPTORS_TEXT_BYTES];
    last_error_set("can't synchronise the shared state: %s", descriptors_error_text(error, text));
    return error == -ENOMEM ? pcclOutOfMemory : pcclInternalError;
}

/* After a failure: what has become of memory? */
static void tell_damage(struct state_sync *sync, const char *sentence) {
    const struct state_fetcher *fetcher = &sync->fetcher;
    struct digest content = state_table_content(sync->table, sync->table->hashes);
    if (memcmp(&content, &sync->offer.content, sizeof content) == 0) {
        last_error_set("%s; the state of this peer is as it was", sentence);
    } else if (fetcher->left == 0) {
        last_error_set("%s; the state of this peer has been replaced by that of revision %" PRIu64
                       ": synchronise again",
                       sentence, sync->plan.revision);
    } else {
        comm_set_mixture(sync->comm, &content);
        last_error_set("%s; of %" PRIu64 " bytes that differ %" PRIu64
                       " had been replaced in this peer's state, "
                       "which is a mix of two revisions now: synchronise again",
                       sentence, fetcher->total_bytes, fetcher->done_bytes);
    }
}

/* The offer is made, the desk open. */
static pcclResult_t wait_for_verdict(struct state_sync *sync, struct state_sync_outcome *outcome) {
    serve(sync);
    struct call *call = &sync->call;
    comm_wait_any(sync->comm, &call, 1);
    tell_transfer(sync, true);
    state_fetcher_stop(&sync->fetcher);
    state_holder_close(&sync->holder);
    outcome->revision = call->value;
    outcome->tx_bytes = sync->holder.tx_bytes;
    outcome->rx_bytes = sync->fetcher.rx_bytes;
    pcclResult_t result = comm_result(call);
    if (result == pcclSuccess) {
        comm_set_mixture(sync->comm, NULL);
    } else if (sync->fetcher.touched) {
        tell_damage(sync, call->text);
    }
    return result;
}

static pcclResult_t offer(struct state_sync *sync, struct state_sync_outcome *outcome) {
    int error = poller_open(&sync->poller);
    if (error != 0) {
        return refuse_for(error);
    }
    error =
        state_desk_init(&sync->desk, sync->request->strategy != PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY);
    if (error != 0) {
        poller_close(&sync->poller);
        return refuse_for(error);
    }
    poll_item_init(&sync->wake_item, STATE_ITEM_WAKE);
    error = poller_add(&sync->poller, &sync->wake_item, sync->desk.wake_fd, POLL_LEVEL);
    pcclResult_t result = error == 0 ? pcclSuccess : refuse_for(error);
    if (result == pcclSuccess) {
        init_parts(sync);
        fill_offer(sync);
        sync->call = (struct call){.kind = PEER_EVENT_SYNC, .offer = &sync->offer, .desk = &sync->desk};
        result = comm_post(sync->comm, &sync->call);
        if (result == pcclSuccess) {
            tell(sync, pcclSyncWaiting, 0, 0, true);
            result = wait_for_verdict(sync, outcome);
        }
        state_fetcher_free(&sync->fetcher);
    }
    state_desk_free(&sync->desk);
    poller_close(&sync->poller);
    return result;
}

pcclResult_t state_sync_run(struct comm *comm, struct state_table *table,
                            const struct state_sync_request *request, struct state_sync_outcome *outcome) {
    *outcome = (struct state_sync_outcome){0};
    pcclResult_t result = ask(comm);
    if (result != pcclSuccess) {
        return result;
    }
    struct peer_status status;
    comm_get_status(comm, &status);
    if (request->requires_peers && status.world < 2) {
        last_error_set("this peer is alone in its group: there is nobody to share state with");
        return pcclTooFewPeers;
    }
    struct state_sync *sync = calloc(1, sizeof *sync);
    if (sync == NULL) {
        last_error_set("out of memory");
        return pcclOutOfMemory;
    }
    sync->comm = comm;
    sync->table = table;
    sync->request = request;
    result = hash(sync);
    if (result == pcclSuccess) {
        result = offer(sync, outcome);
    }
    free(sync);
    return result;
}
