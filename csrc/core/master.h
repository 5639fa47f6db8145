/* The master: who is in, which epoch each group is in, which ops and votes have ended. A pure state
 * machine: no socket, clock, thread or allocation; the same events give the same actions.
 *
 * Duties of the caller (csrc/net, or the simulator):
 *  - call master_step() for one event at a time, with a clock that never goes back;
 *  - perform each action at once and in order, inside master_perform, without calling back;
 *  - give each connection a number that is never used again, and report MASTER_CLOSED exactly once for
 *    each connection whose first message was handed in, also when the machine had it closed;
 *  - call with MASTER_TICK when master_deadline() has passed and nothing else happened. */
#ifndef PCCL_CORE_MASTER_H
#define PCCL_CORE_MASTER_H

#include <stddef.h>
#include <stdint.h>

#include "base/address.h"
#include "base/id.h"
#include "wire/message.h"

struct master; /* the state: core/master_state.h */

struct master_options {
    uint64_t seed;               /* of ids and keys */
    char run[MAX_RUN_BYTES + 1]; /* the name of the only run to let in; "": that of the first peer */
};

enum master_event_kind {
    MASTER_MESSAGE, /* `message` arrived on `connection`, which may be new */
    MASTER_CLOSED,  /* `connection` is gone; `reason` says how */
    MASTER_TICK,    /* time passed */
};

struct master_event {
    enum master_event_kind kind;
    uint64_t now_ns;
    uint64_t connection;           /* > 0 */
    struct address remote;         /* MASTER_MESSAGE: where the connection comes from */
    const struct message *message; /* MASTER_MESSAGE: borrowed for the call */
    const char *reason;            /* MASTER_CLOSED: borrowed for the call */
};

enum master_action_kind {
    MASTER_SEND,  /* `message` to `connection` */
    MASTER_CLOSE, /* close `connection` once all that was sent on it is out */
    MASTER_LOG,   /* a decision, with its reason */
};

struct master_action {
    enum master_action_kind kind;
    uint64_t connection;
    const struct message *message; /* borrowed for the call */
    const char *text;              /* MASTER_LOG: borrowed for the call */
    bool routine;                  /* MASTER_LOG: one of many of its kind, and nothing has changed */
};

/* Performs one action. `context` is the caller's. */
typedef void (*master_perform)(void *context, const struct master_action *action);

/* The state is a few MiB of flat memory; most of it is never touched. */
size_t master_bytes(void);
/* `master` points to master_bytes() zeroed bytes, which the caller keeps and frees. */
void master_init(struct master *master, const struct master_options *options, master_perform perform,
                 void *context);
void master_step(struct master *master, const struct master_event *event);
/* When MASTER_TICK is due at the latest; UINT64_MAX: never. */
uint64_t master_deadline(const struct master *master);

/* For `pccl status` and for tests. */
struct master_status {
    struct id run;
    uint32_t peers, pending, groups;
    uint64_t epoch; /* the highest committed */
};
void master_get_status(const struct master *master, struct master_status *status);

#endif
