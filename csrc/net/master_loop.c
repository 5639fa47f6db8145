#define _GNU_SOURCE
#include "net/master_loop.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "net/clock.h"
#include "net/control.h"
#include "net/descriptors.h"
#include "net/list.h"
#include "net/poller.h"
#include "net/socket.h"

enum {
    CONNECTIONS = MAX_PEERS + MAX_STRANGERS,
    ACCEPTS_PER_TURN = MAX_STRANGERS / 4, /* so that each newcomer is read before others push it out */
    ACCEPT_PAUSE_MS = 50,                 /* when descriptors or memory are out */
    GREETING_GRACE_MS = 500,              /* until then nobody is late with a greeting */
};

enum item_kind { ITEM_LISTENER, ITEM_WAKE, ITEM_CONNECTION };

enum phase {
    PHASE_FREE,
    PHASE_STRANGER, /* has not greeted: the machine does not know of it */
    PHASE_KNOWN,    /* the machine's */
    PHASE_CLOSING,  /* the machine is done with it; what was sent still has to go out */
    PHASE_DRAINING, /* all is sent and the machine has been told; waits for the other side to close */
};

struct connection {
    uint64_t id; /* never reused; its low bits are the place in `connections` */
    enum phase phase;
    struct control control;
    struct poll_item item;
    struct address remote;
    uint64_t deadline_ns;  /* while on probation */
    struct list probation; /* in all phases but FREE and KNOWN; in order of deadlines */
    struct list dirty;     /* has something to flush, to finish or to report */
};

struct master_loop {
    struct master *machine; /* owned */
    struct message message; /* the one that is being handed in */
    struct poller poller;
    struct poll_item listener_item, wake_item;
    int listener, wake;
    struct address address;

    struct connection connections[CONNECTIONS];
    uint64_t next_serial;
    struct list probation, dirty;
    uint32_t probation_count;
    uint64_t accept_again_ns; /* while accepting pauses, else 0 */
    bool accept_failed;       /* and the log has said so */
    bool stopping;

    pthread_t thread;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t ended_condition;
    bool started, ended;
    struct master_status status;
    bool status_stale; /* the loop's own */
};

enum { PLACE_BITS = 16 };
_Static_assert(CONNECTIONS < 1 << PLACE_BITS, "a place fits into a connection's number");

static struct connection *find(struct master_loop *loop, uint64_t id) {
    uint64_t place = id & ((1 << PLACE_BITS) - 1);
    struct connection *connection = place < CONNECTIONS ? &loop->connections[place] : NULL;
    return connection != NULL && connection->phase != PHASE_FREE && connection->id == id ? connection : NULL;
}

static void make_dirty(struct master_loop *loop, struct connection *connection) {
    if (list_is_empty(&connection->dirty)) {
        list_append(&loop->dirty, &connection->dirty);
    }
}

static void start_probation(struct master_loop *loop, struct connection *connection) {
    connection->deadline_ns = clock_now_ns() + STRANGER_TIMEOUT_MS * NS_PER_MS;
    list_append(&loop->probation, &connection->probation);
    loop->probation_count++;
}

static void end_probation(struct master_loop *loop, struct connection *connection) {
    if (!list_is_empty(&connection->probation)) {
        list_remove(&connection->probation);
        loop->probation_count--;
    }
}

static struct connection *first_on_probation(const struct master_loop *loop) {
    return list_is_empty(&loop->probation) ? NULL
                                           : LIST_ENTRY(loop->probation.next, struct connection, probation);
}

/* The machine and its actions. */

static void send_message(struct master_loop *loop, const struct master_action *action) {
    struct connection *connection = find(loop, action->connection);
    if (connection != NULL && connection->phase == PHASE_KNOWN) {
        control_send(&connection->control, action->message); /* settle() sees a failure */
        make_dirty(loop, connection);
    }
}

static void close_when_sent(struct master_loop *loop, const struct master_action *action) {
    struct connection *connection = find(loop, action->connection);
    if (connection != NULL && connection->phase == PHASE_KNOWN) {
        connection->phase = PHASE_CLOSING;
        start_probation(loop, connection);
        make_dirty(loop, connection);
    }
}

static void perform(void *context, const struct master_action *action) {
    struct master_loop *loop = context;
    switch (action->kind) {
    case MASTER_SEND:
        send_message(loop, action);
        break;
    case MASTER_CLOSE:
        close_when_sent(loop, action);
        break;
    case MASTER_LOG:
        log_line(action->routine ? LOG_DEBUG : LOG_INFO, "master", "%s", action->text);
        break;
    }
}

static void step(struct master_loop *loop, const struct master_event *event) {
    master_step(loop->machine, event);
    loop->status_stale = true;
}

static void step_closed(struct master_loop *loop, uint64_t id, const char *reason) {
    struct master_event event = {
        .kind = MASTER_CLOSED, .now_ns = clock_now_ns(), .connection = id, .reason = reason};
    step(loop, &event);
}

static void publish_status(struct master_loop *loop) {
    if (!loop->status_stale) {
        return;
    }
    struct master_status status;
    master_get_status(loop->machine, &status);
    loop->status_stale = false;
    pthread_mutex_lock(&loop->mutex);
    loop->status = status;
    pthread_mutex_unlock(&loop->mutex);
}

/* Connections. Nothing below runs inside perform(). */

static const char *describe(const struct connection *connection, char text[ADDRESS_TEXT_BYTES]) {
    return address_text(&connection->remote, text);
}

/* Closes it at once, and tells the machine if it knows of it. */
static void drop(struct master_loop *loop, struct connection *connection, const char *why) {
    char text[ADDRESS_TEXT_BYTES], reason[CONTROL_REASON_BYTES];
    enum phase phase = connection->phase;
    uint64_t id = connection->id;
    snprintf(reason, sizeof reason, "%s", why);
    if (phase == PHASE_STRANGER) {
        /* Who has sent nothing was a health check, of which there may be one every second. */
        bool silent = why == connection->control.reason && connection->control.inbox.end == 0;
        log_line(silent ? LOG_DEBUG : LOG_INFO, "master",
                 "closed the connection from %s, which has not greeted: %s", describe(connection, text),
                 reason);
    }
    end_probation(loop, connection);
    list_remove(&connection->dirty);
    poller_remove(&loop->poller, &connection->item);
    control_free(&connection->control);
    connection->phase = PHASE_FREE;
    if (phase == PHASE_KNOWN || phase == PHASE_CLOSING) {
        step_closed(loop, id, reason);
    }
}

static const char crowded[] = "others need its place";

static struct connection *free_connection(struct master_loop *loop) {
    for (int place = 0; place < CONNECTIONS; place++) {
        if (loop->connections[place].phase == PHASE_FREE) {
            return &loop->connections[place];
        }
    }
    return NULL;
}

/* Takes `fd` over. */
static void admit(struct master_loop *loop, int fd, const struct address *remote) {
    /* The oldest goes, not the newest: who means to greet does so at once, so that a crowd of silent
     * connections can't keep anybody out. */
    if (loop->probation_count >= MAX_STRANGERS) {
        drop(loop, first_on_probation(loop), crowded);
    }
    struct connection *connection = free_connection(loop);
    if (connection == NULL) {
        descriptor_close(fd);
        log_line(LOG_WARN, "master", "turned a connection away: there are %d already", CONNECTIONS);
        return;
    }
    uint64_t place = (uint64_t)(connection - loop->connections);
    *connection = (struct connection){.id = loop->next_serial++ << PLACE_BITS | place, .remote = *remote};
    connection->phase = PHASE_STRANGER;
    control_init(&connection->control, fd);
    list_init(&connection->probation);
    list_init(&connection->dirty);
    start_probation(loop, connection);
    poll_item_init(&connection->item, ITEM_CONNECTION);
    int error = poller_add(&loop->poller, &connection->item, fd, POLL_LEVEL);
    if (error != 0) {
        drop(loop, connection, strerror(-error));
    }
}

/* Descriptors or memory are out: the connection that waits keeps the listener readable, so that without
 * a pause the loop would spin. */
static void pause_accepting(struct master_loop *loop, int error) {
    if (!loop->accept_failed) {
        char text[DESCRIPTORS_TEXT_BYTES];
        log_line(LOG_WARN, "master", "can't accept connections for now: %s",
                 descriptors_error_text(error, text));
    }
    loop->accept_failed = true;
    poller_remove(&loop->poller, &loop->listener_item);
    uint64_t now_ns = clock_now_ns();
    loop->accept_again_ns = now_ns + ACCEPT_PAUSE_MS * NS_PER_MS;
    struct connection *oldest = first_on_probation(loop);
    uint64_t left_at_grace_ns = (STRANGER_TIMEOUT_MS - GREETING_GRACE_MS) * NS_PER_MS;
    if (oldest != NULL && oldest->deadline_ns <= now_ns + left_at_grace_ns) {
        drop(loop, oldest, crowded);
    }
}

static void resume_accepting(struct master_loop *loop) {
    int error = poller_add(&loop->poller, &loop->listener_item, loop->listener, POLL_LEVEL);
    loop->accept_again_ns = error == 0 ? 0 : clock_now_ns() + ACCEPT_PAUSE_MS * NS_PER_MS;
}

static void accept_waiting(struct master_loop *loop) {
    static const struct socket_options options = {.user_timeout_ms = DEFAULT_TIMEOUT_MS};
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct address remote;
        int fd = socket_accept(loop->listener, &options, &remote);
        if (fd == -EAGAIN) {
            return;
        }
        if (fd < 0) {
            pause_accepting(loop, fd);
            return;
        }
        loop->accept_failed = false;
        admit(loop, fd, &remote);
    }
}

/* False if the stranger was dropped, because its first message is no HELLO. */
static bool greet(struct master_loop *loop, struct connection *connection) {
    if (loop->message.type != MESSAGE_HELLO) {
        char why[CONTROL_REASON_BYTES];
        snprintf(why, sizeof why, "it began with %s", message_name(loop->message.type));
        drop(loop, connection, why);
        return false;
    }
    const struct socket_options options = {.user_timeout_ms = loop->message.as.hello.timeout_ms};
    socket_set_options(connection->control.fd, &options); /* else the default stays */
    end_probation(loop, connection);
    control_vouch(&connection->control);
    connection->phase = PHASE_KNOWN;
    return true;
}

static void hand_in_messages(struct master_loop *loop, struct connection *connection) {
    for (;;) {
        switch (control_next(&connection->control, &loop->message)) {
        case CONTROL_NOTHING:
            return;
        case CONTROL_BAD:
            drop(loop, connection, connection->control.reason);
            return;
        case CONTROL_MESSAGE:
            break;
        }
        if (connection->phase == PHASE_STRANGER && !greet(loop, connection)) {
            return;
        }
        struct master_event event = {.kind = MASTER_MESSAGE,
                                     .now_ns = clock_now_ns(),
                                     .connection = connection->id,
                                     .remote = connection->remote,
                                     .message = &loop->message};
        step(loop, &event);
        if (connection->phase != PHASE_KNOWN) { /* the machine has had it closed */
            return;
        }
    }
}

static void read_connection(struct master_loop *loop, struct connection *connection) {
    bool open;
    if (connection->phase == PHASE_STRANGER || connection->phase == PHASE_KNOWN) {
        open = control_receive(&connection->control);
    } else {
        open = control_drain(&connection->control);
    }
    if (!open) {
        drop(loop, connection, connection->control.reason);
    } else if (connection->phase == PHASE_STRANGER || connection->phase == PHASE_KNOWN) {
        hand_in_messages(loop, connection);
    }
}

/* Flushes one connection; when all is out that the machine wanted to be, the machine is told. */
static void settle(struct master_loop *loop, struct connection *connection) {
    if (!control_flush(&connection->control)) {
        drop(loop, connection, connection->control.reason);
        return;
    }
    bool unsent = control_unsent(&connection->control) > 0;
    poller_watch_writable(&loop->poller, &connection->item, unsent);
    if (connection->phase == PHASE_CLOSING && !unsent) {
        control_finish(&connection->control);
        connection->phase = PHASE_DRAINING;
        step_closed(loop, connection->id, "closed by the master");
    }
}

/* Once per turn, so that all a turn's messages to one peer go out in one write. */
static void settle_all(struct master_loop *loop) {
    while (!list_is_empty(&loop->dirty)) {
        struct connection *connection = LIST_ENTRY(loop->dirty.next, struct connection, dirty);
        list_remove(&connection->dirty);
        publish_status(loop); /* who has our message must not find an older status */
        settle(loop, connection);
    }
    publish_status(loop);
}

/* The thread. */

static void handle_connection(struct master_loop *loop, struct connection *connection) {
    bool readable = connection->item.readable, writable = connection->item.writable;
    connection->item.readable = false;
    connection->item.writable = false;
    if (writable) {
        make_dirty(loop, connection);
    }
    if (readable) {
        read_connection(loop, connection);
    }
}

static void handle_ready(struct master_loop *loop) {
    while (!list_is_empty(&loop->poller.hot)) {
        struct poll_item *item = LIST_ENTRY(loop->poller.hot.next, struct poll_item, hot);
        list_remove(&item->hot);
        switch ((enum item_kind)item->kind) {
        case ITEM_LISTENER:
            accept_waiting(loop);
            break;
        case ITEM_WAKE:
            loop->stopping = true;
            break;
        case ITEM_CONNECTION:
            handle_connection(loop, LIST_ENTRY(item, struct connection, item));
            break;
        }
    }
}

static void handle_time(struct master_loop *loop) {
    uint64_t now_ns = clock_now_ns();
    if (master_deadline(loop->machine) <= now_ns) {
        struct master_event event = {.kind = MASTER_TICK, .now_ns = now_ns};
        step(loop, &event);
    }
    struct connection *oldest;
    while ((oldest = first_on_probation(loop)) != NULL && oldest->deadline_ns <= now_ns) {
        drop(loop, oldest, "it took too long");
    }
    if (loop->accept_again_ns != 0 && loop->accept_again_ns <= now_ns) {
        resume_accepting(loop);
    }
}

static uint64_t time_to_wait_ns(const struct master_loop *loop) {
    uint64_t deadline_ns = master_deadline(loop->machine);
    const struct connection *oldest = first_on_probation(loop);
    if (oldest != NULL && oldest->deadline_ns < deadline_ns) {
        deadline_ns = oldest->deadline_ns;
    }
    if (loop->accept_again_ns != 0 && loop->accept_again_ns < deadline_ns) {
        deadline_ns = loop->accept_again_ns;
    }
    if (deadline_ns == UINT64_MAX) {
        return UINT64_MAX;
    }
    uint64_t now_ns = clock_now_ns();
    return deadline_ns > now_ns ? deadline_ns - now_ns : 0;
}

static void *run(void *argument) {
    struct master_loop *loop = argument;
    while (!loop->stopping) {
        settle_all(loop);
        poller_wait(&loop->poller, time_to_wait_ns(loop));
        handle_ready(loop);
        handle_time(loop);
    }
    settle_all(loop);
    for (int place = 0; place < CONNECTIONS; place++) {
        struct connection *connection = &loop->connections[place];
        if (connection->phase != PHASE_FREE) {
            poller_remove(&loop->poller, &connection->item);
            control_free(&connection->control);
            connection->phase = PHASE_FREE;
        }
    }
    pthread_mutex_lock(&loop->mutex);
    loop->ended = true;
    pthread_cond_broadcast(&loop->ended_condition);
    pthread_mutex_unlock(&loop->mutex);
    return NULL;
}

/* The calls of other threads. */

static uint64_t random_seed(void) {
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) {
        seed = clock_now_ns() ^ (uint64_t)getpid() << 32; /* a kernel that has no getrandom */
    }
    return seed;
}

/* Everything that can fail. What was opened is in the loop, for master_loop_destroy() to close. */
static int open_all(struct master_loop *loop, const struct address *address) {
    int error = poller_open(&loop->poller);
    if (error != 0) {
        return error;
    }
    loop->wake = DESCRIPTOR(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (loop->wake < 0) {
        return loop->wake;
    }
    loop->machine = calloc(1, master_bytes());
    if (loop->machine == NULL) {
        return -ENOMEM;
    }
    loop->listener = socket_listen(address);
    if (loop->listener < 0) {
        return loop->listener;
    }
    loop->address = socket_local_address(loop->listener);
    error = poller_add(&loop->poller, &loop->wake_item, loop->wake, POLL_LEVEL);
    return error != 0 ? error : poller_add(&loop->poller, &loop->listener_item, loop->listener, POLL_LEVEL);
}

int master_loop_create(const struct address *address, const char *run, struct master_loop **loop_out) {
    struct master_loop *loop = calloc(1, sizeof *loop);
    if (loop == NULL) {
        return -ENOMEM;
    }
    loop->listener = loop->wake = loop->poller.fd = -1;
    loop->next_serial = 1;
    list_init(&loop->probation);
    list_init(&loop->dirty);
    poll_item_init(&loop->listener_item, ITEM_LISTENER);
    poll_item_init(&loop->wake_item, ITEM_WAKE);
    pthread_mutex_init(&loop->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&loop->ended_condition, &attributes);
    pthread_condattr_destroy(&attributes);
    int error = open_all(loop, address);
    if (error != 0) {
        master_loop_destroy(loop);
        return error;
    }
    struct master_options options = {.seed = random_seed()};
    snprintf(options.run, sizeof options.run, "%s", run);
    master_init(loop->machine, &options, perform, loop);
    master_get_status(loop->machine, &loop->status);
    *loop_out = loop;
    return 0;
}

int master_loop_start(struct master_loop *loop) {
    /* The thread takes no signal: those are the program's, for threads of its own. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&loop->mutex);
    CHECK(!loop->started);
    int error = pthread_create(&loop->thread, NULL, run, loop);
    loop->started = error == 0;
    pthread_mutex_unlock(&loop->mutex);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

void master_loop_stop(struct master_loop *loop) {
    int saved_errno = errno;
    uint64_t one = 1;
    ssize_t written = write(loop->wake, &one, sizeof one); /* fails only when it is set already */
    (void)written;
    errno = saved_errno;
}

/* With the mutex held. False if the time has passed. */
static bool wait_until(struct master_loop *loop, uint64_t until_ns) {
    if (until_ns == UINT64_MAX) {
        pthread_cond_wait(&loop->ended_condition, &loop->mutex);
        return true;
    }
    struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_S), .tv_nsec = (long)(until_ns % NS_PER_S)};
    return pthread_cond_timedwait(&loop->ended_condition, &loop->mutex, &until) != ETIMEDOUT;
}

bool master_loop_wait(struct master_loop *loop, uint64_t until_ns, bool *ended_out) {
    pthread_mutex_lock(&loop->mutex);
    bool in_time = true;
    while (loop->started && !loop->ended && in_time) {
        in_time = wait_until(loop, until_ns);
    }
    *ended_out = loop->ended;
    bool started = loop->started;
    pthread_mutex_unlock(&loop->mutex);
    return started;
}

static void close_if_open(int fd) {
    if (fd >= 0) {
        descriptor_close(fd);
    }
}

void master_loop_destroy(struct master_loop *loop) {
    if (loop->started) {
        master_loop_stop(loop);
        pthread_join(loop->thread, NULL);
    }
    close_if_open(loop->listener);
    close_if_open(loop->wake);
    poller_close(&loop->poller);
    pthread_cond_destroy(&loop->ended_condition);
    pthread_mutex_destroy(&loop->mutex);
    free(loop->machine);
    free(loop);
}

struct address master_loop_address(const struct master_loop *loop) {
    return loop->address;
}

void master_loop_get_status(struct master_loop *loop, struct master_status *status) {
    pthread_mutex_lock(&loop->mutex);
    *status = loop->status;
    pthread_mutex_unlock(&loop->mutex);
}
