#define _GNU_SOURCE
#include "net/comm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/last_error.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/port_holder.h"

enum thread_state { THREAD_NONE, THREAD_STARTING, THREAD_RUNNING };

struct comm {
    struct peer_loop_options options;
    uint32_t forks; /* descriptors_forks() of the process that made it */
    struct mailbox mailbox;
    struct buffer_pool pool;
    struct peer_loop *loop; /* of THREAD_RUNNING */

    pthread_mutex_t mutex; /* of what follows */
    pthread_cond_t nobody;
    uint32_t users; /* threads between comm_enter() and comm_leave() */
    bool closing;
    enum thread_state thread_state;
    struct dial_place master; /* as the user has set it last */
    bool has_mixture;
    struct digest mixture;

    bool (*check)(void *); /* changes only while no call waits */
    void *check_context;
    uint64_t check_interval_ns;
};

struct comm *comm_create(const struct peer_loop_options *options) {
    struct comm *comm = calloc(1, sizeof *comm);
    if (comm == NULL) {
        last_error_set("out of memory for a communicator");
        return NULL;
    }
    int error = mailbox_init(&comm->mailbox);
    if (error != 0) {
        char text[DESCRIPTORS_TEXT_BYTES];
        last_error_set("can't make a communicator: %s", descriptors_error_text(error, text));
        free(comm);
        return NULL;
    }
    comm->options = *options;
    comm->master = options->master;
    comm->forks = descriptors_forks();
    buffer_pool_init(&comm->pool);
    pthread_mutex_init(&comm->mutex, NULL);
    pthread_cond_init(&comm->nobody, NULL);
    return comm;
}

void comm_set_interrupt_check(struct comm *comm, bool (*check)(void *), void *context, uint32_t interval_ms) {
    comm->check = check;
    comm->check_context = context;
    comm->check_interval_ns = interval_ms * NS_PER_MS;
}

bool comm_enter(struct comm *comm) {
    if (comm->forks != descriptors_forks()) { /* locks may be held for ever, and descriptors are others' */
        last_error_set(FORKED_TEXT("communicator"));
        return false;
    }
    pthread_mutex_lock(&comm->mutex);
    bool open = !comm->closing;
    comm->users += open;
    pthread_mutex_unlock(&comm->mutex);
    if (!open) {
        last_error_set("the communicator is being destroyed by another thread");
    }
    return open;
}

void comm_leave(struct comm *comm) {
    pthread_mutex_lock(&comm->mutex);
    comm->users--;
    bool last = comm->users == 0 && comm->closing;
    if (last) {
        /* Under the mutex: without it the communicator could be freed before the signal. */
        pthread_cond_signal(&comm->nobody);
    }
    pthread_mutex_unlock(&comm->mutex);
}

uint32_t comm_group(const struct comm *comm) {
    return comm->options.hello.group;
}

const struct message_hello *comm_hello(const struct comm *comm) {
    return &comm->options.hello;
}

void comm_get_status(struct comm *comm, struct peer_status *status) {
    mailbox_get_status(&comm->mailbox, status);
}

/* ---- waiting ---- */

pcclResult_t comm_result(const struct call *call) {
    if (call->status != pcclSuccess) {
        last_error_set("%s", call->text);
    }
    return (pcclResult_t)call->status;
}

static struct call *new_close_call(void) {
    struct call *call = calloc(1, sizeof *call);
    if (call != NULL) {
        call->kind = PEER_EVENT_CLOSE;
        call->blocking = true;
    }
    return call;
}

/* A goodbye that nobody waits for. False if there was no memory for it. */
static bool close_unattended(struct comm *comm) {
    struct call *call = new_close_call();
    if (call == NULL) {
        return false;
    }
    call->abandoned = true;
    if (!mailbox_post(&comm->mailbox, call, false)) {
        free(call);
    }
    return true;
}

int comm_wait_any(struct comm *comm, struct call *const *calls, int count) {
    int found = mailbox_first_done(calls, count);
    struct peer_loop *loop = found < 0 ? mailbox_take_over(&comm->mailbox) : NULL;
    if (loop != NULL) {
        found = peer_loop_drive(loop, calls, count);
    }
    if (found >= 0) {
        return found;
    }
    bool interrupted = comm->check == NULL; /* it can't be, or has been */
    for (;;) {
        uint64_t until_ns = interrupted ? UINT64_MAX : clock_now_ns() + comm->check_interval_ns;
        found = mailbox_wait(&comm->mailbox, calls, count, until_ns);
        if (found >= 0) {
            return found;
        }
        /* Closing ends the calls at once, so that the wait is over soon. */
        if (comm->check(comm->check_context)) {
            interrupted = close_unattended(comm);
        }
    }
}

uint64_t comm_check_interval_ns(const struct comm *comm) {
    return comm->check != NULL ? comm->check_interval_ns : UINT64_MAX;
}

bool comm_interrupted(struct comm *comm) {
    return comm->check != NULL && comm->check(comm->check_context) && close_unattended(comm);
}

static pcclResult_t not_connected(void) {
    last_error_set("the communicator is not connected: call connect first");
    return pcclInvalidUsage;
}

static pcclResult_t post(struct comm *comm, struct call *call, bool waits) {
    call->blocking = true;
    return mailbox_post(&comm->mailbox, call, waits) ? pcclSuccess : not_connected();
}

pcclResult_t comm_post(struct comm *comm, struct call *call) {
    return post(comm, call, false);
}

pcclResult_t comm_run(struct comm *comm, struct call *call) {
    pcclResult_t result = post(comm, call, true);
    if (result == pcclSuccess) {
        comm_wait_any(comm, &call, 1);
        result = comm_result(call);
    }
    return result;
}

/* ---- joining and leaving ---- */

static pcclResult_t start_failed(const struct comm *comm, int error, const char *what) {
    uint16_t port = comm->options.listen_port;
    if (error == -EADDRINUSE && port != 0) {
        struct address all = {.family = ADDRESS_IPV6, .port = port};
        char holder[PORT_HOLDER_BYTES];
        last_error_set(
            "port %u, on which this peer is to listen, is in use: %s. Wait until it is free, choose "
            "another port, or none: then the first free one is taken",
            (unsigned)port, port_holder_describe(&all, holder));
    } else {
        char text[DESCRIPTORS_TEXT_BYTES];
        last_error_set("%s: %s", what, descriptors_error_text(error, text));
    }
    return error == -ENOMEM ? pcclOutOfMemory : pcclInternalError;
}

/* The net thread runs when this returns pcclSuccess. */
static pcclResult_t start_thread(struct comm *comm) {
    pthread_mutex_lock(&comm->mutex);
    enum thread_state state = comm->thread_state;
    if (state == THREAD_NONE) {
        comm->thread_state = THREAD_STARTING;
    }
    pthread_mutex_unlock(&comm->mutex);
    if (state == THREAD_STARTING) {
        last_error_set("another thread is connecting this communicator");
        return pcclInvalidUsage;
    }
    if (state == THREAD_RUNNING) {
        return pcclSuccess;
    }
    struct peer_loop *loop = NULL;
    const char *what;
    int error = peer_loop_start(&comm->options, &comm->mailbox, &comm->pool, &loop, &what);
    pthread_mutex_lock(&comm->mutex);
    comm->loop = loop;
    comm->thread_state = error == 0 ? THREAD_RUNNING : THREAD_NONE;
    pthread_mutex_unlock(&comm->mutex);
    return error == 0 ? pcclSuccess : start_failed(comm, error, what);
}

pcclResult_t comm_connect(struct comm *comm, uint32_t timeout_ms) {
    uint64_t deadline_ns = timeout_ms == 0 ? 0 : clock_now_ns() + timeout_ms * NS_PER_MS;
    pcclResult_t result = start_thread(comm);
    if (result != pcclSuccess) {
        return result;
    }
    pthread_mutex_lock(&comm->mutex);
    struct dial_place place = comm->master;
    pthread_mutex_unlock(&comm->mutex);
    struct call call = {.kind = PEER_EVENT_CONNECT, .place = &place, .deadline_ns = deadline_ns};
    return comm_run(comm, &call);
}

void comm_set_master(struct comm *comm, const struct dial_place *place) {
    pthread_mutex_lock(&comm->mutex);
    comm->master = *place;
    pthread_mutex_unlock(&comm->mutex);
}

/* Says goodbye and waits for the answer until `until_ns`, or until the check says stop. */
static pcclResult_t close_until(struct comm *comm, uint64_t until_ns) {
    struct call *call = new_close_call();
    if (call == NULL) {
        last_error_set("out of memory");
        return pcclOutOfMemory;
    }
    if (!mailbox_post(&comm->mailbox, call, false)) {
        free(call);
        return pcclSuccess; /* there is nothing to close */
    }
    int found = -1;
    bool stop = false;
    while (found < 0 && !stop) {
        uint64_t now_ns = clock_now_ns();
        uint64_t slice_ns = comm->check != NULL ? now_ns + comm->check_interval_ns : UINT64_MAX;
        found = mailbox_wait(&comm->mailbox, &call, 1, slice_ns < until_ns ? slice_ns : until_ns);
        stop = found < 0 &&
               (clock_now_ns() >= until_ns || (comm->check != NULL && comm->check(comm->check_context)));
    }
    if (mailbox_abandon(&comm->mailbox, call)) {
        last_error_set("interrupted before the master had answered the goodbye");
        return pcclInvalidUsage;
    }
    pcclResult_t result = comm_result(call);
    free(call);
    return result;
}

pcclResult_t comm_close(struct comm *comm) {
    return close_until(comm, UINT64_MAX); /* the machine itself waits no longer than the timeout */
}

static void wait_until_alone(struct comm *comm) {
    pthread_mutex_lock(&comm->mutex);
    comm->closing = true;
    while (comm->users > 0) {
        pthread_cond_wait(&comm->nobody, &comm->mutex);
    }
    pthread_mutex_unlock(&comm->mutex);
}

void comm_destroy(struct comm *comm) {
    pthread_mutex_lock(&comm->mutex);
    comm->closing = true; /* nobody new comes in */
    pthread_mutex_unlock(&comm->mutex);
    uint64_t timeout_ns = comm->options.hello.timeout_ms * NS_PER_MS;
    close_until(comm, clock_now_ns() + timeout_ns);
    mailbox_stop(&comm->mailbox);
    wait_until_alone(comm);
    if (comm->thread_state == THREAD_RUNNING) {
        peer_loop_join(comm->loop);
    }
    mailbox_free(&comm->mailbox);
    buffer_pool_free(&comm->pool);
    pthread_cond_destroy(&comm->nobody);
    pthread_mutex_destroy(&comm->mutex);
    free(comm);
}

/* ---- joint calls ---- */

pcclResult_t comm_vote(struct comm *comm, uint8_t kind, uint64_t *value_out) {
    struct call call = {.kind = PEER_EVENT_VOTE, .vote = kind};
    pcclResult_t result = comm_run(comm, &call);
    *value_out = call.value;
    return result;
}

/* ---- shared state ---- */

void comm_set_mixture(struct comm *comm, const struct digest *content) {
    pthread_mutex_lock(&comm->mutex);
    comm->has_mixture = content != NULL;
    if (content != NULL) {
        comm->mixture = *content;
    }
    pthread_mutex_unlock(&comm->mutex);
}

bool comm_is_mixture(struct comm *comm, const struct digest *content) {
    pthread_mutex_lock(&comm->mutex);
    bool is = comm->has_mixture && memcmp(&comm->mixture, content, sizeof *content) == 0;
    pthread_mutex_unlock(&comm->mutex);
    return is;
}

/* ---- ops ---- */

/* What it lacks is told to the net thread: others may wait in the op, so that it has to fail for all. */
static void take_room(struct comm *comm, struct call *call) {
    call->kind = PEER_EVENT_OP;
    if (call->work_bytes > 0) {
        call->work = buffer_pool_take(&comm->pool, call->work_bytes);
    }
}

static void give_room(struct comm *comm, struct call *call) {
    if (call->work.memory != NULL) {
        buffer_pool_give(&comm->pool, &call->work, clock_now_ns());
    }
}

pcclResult_t comm_post_op(struct comm *comm, struct call *call) {
    call->blocking = true;
    take_room(comm, call);
    if (!mailbox_post(&comm->mailbox, call, true)) {
        give_room(comm, call);
        return not_connected();
    }
    return pcclSuccess;
}

static pcclResult_t start_refused(enum mailbox_start why, uint64_t tag) {
    switch (why) {
    case MAILBOX_TAG_TAKEN:
        last_error_set("an async op with tag %" PRIu64 " is under way: await it first, or use another tag",
                       tag);
        return pcclInvalidUsage;
    case MAILBOX_FULL:
        last_error_set("%d async ops have been started and not awaited on this communicator, which is the "
                       "limit: await some first",
                       (int)MAX_STARTED_OPS);
        return pcclRefused;
    default:
        return not_connected();
    }
}

/* Nobody could join the op: whoever comes in later does so in a joint call of this peer. */
static bool is_alone(struct comm *comm) {
    struct peer_status status;
    mailbox_get_status(&comm->mailbox, &status);
    return status.connected && status.world < 2;
}

pcclResult_t comm_start_async(struct comm *comm, struct call *call, uint64_t *id_out) {
    if (is_alone(comm)) {
        free(call);
        last_error_set("this peer is alone in its group: wait for others to join, then call update_topology");
        return pcclTooFewPeers;
    }
    uint64_t tag = call->tag; /* once it is started, another thread may await and free it */
    call->blocking = false;
    take_room(comm, call);
    enum mailbox_start start = mailbox_start_async(&comm->mailbox, call, id_out);
    if (start == MAILBOX_STARTED) {
        return pcclSuccess;
    }
    give_room(comm, call);
    free(call);
    return start_refused(start, tag);
}

static pcclResult_t unknown_op(uint64_t tag) {
    last_error_set(
        "no such async op with tag %" PRIu64 " is to be awaited: it was never started, or was "
        "awaited already, or its tag was used again after it had ended, or another thread awaits it",
        tag);
    return pcclInvalidArgument;
}

pcclResult_t comm_await_async(struct comm *comm, uint64_t tag, uint64_t id, struct call **call_out) {
    struct call *call = mailbox_claim_async(&comm->mailbox, tag, id);
    if (call == NULL) {
        return unknown_op(tag);
    }
    comm_wait_any(comm, &call, 1);
    mailbox_remove_async(&comm->mailbox, call);
    *call_out = call;
    return comm_result(call);
}

pcclResult_t comm_test_async(struct comm *comm, uint64_t tag, uint64_t id, bool *done_out) {
    bool known;
    *done_out = mailbox_is_async_done(&comm->mailbox, tag, id, &known);
    return known ? pcclSuccess : unknown_op(tag);
}
