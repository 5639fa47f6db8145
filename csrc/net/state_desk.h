/* Between the thread that waits in sync_shared_state, which moves the tensors itself, and the net thread:
 * plans, connections of those who fetch, and the end come in here; nothing here blocks. */
#ifndef PCCL_NET_STATE_DESK_H
#define PCCL_NET_STATE_DESK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "wire/frame.h"
#include "wire/message.h"

enum { MAX_DESK_VISITORS = 64 }; /* that the waiting thread has not taken yet; more have to come again */

/* A connection, and who says that it comes from. */
struct desk_visitor {
    int fd; /* owned */
    struct id from;
};

struct state_desk {
    pthread_mutex_t mutex;
    int wake_fd; /* eventfd, owned: readable when the waiting thread has to look here */
    bool serves; /* it may send: the user has not said that it only receives */
    bool has_plan, new_plan, ended;
    struct message_sync_plan plan; /* the newest */
    struct desk_visitor visitors[MAX_DESK_VISITORS];
    uint32_t visitor_count;
};

/* 0 or a negative errno value. */
int state_desk_init(struct state_desk *desk, bool serves);
/* Once the net thread is done with the call. Closes what was not taken. */
void state_desk_free(struct state_desk *desk);

/* ---- the waiting thread ---- */

/* False if there is none that has not been taken. */
bool state_desk_take_plan(struct state_desk *desk, struct message_sync_plan *plan);
/* A socket, the caller's from now on, or -1. Those of an older plan never come out. */
int state_desk_take_visitor(struct state_desk *desk, struct id *from);
bool state_desk_has_ended(struct state_desk *desk);
/* Makes `wake_fd` unreadable again. */
void state_desk_woken(struct state_desk *desk);

/* ---- the net thread ---- */

void state_desk_put_plan(struct state_desk *desk, const struct message_sync_plan *plan);
/* Whether a connection that has greeted this peer is for the sync, and there is room for it. */
bool state_desk_expects(struct state_desk *desk, const struct link_greeting *greeting);
/* One that is expected. Takes the socket over. */
void state_desk_put_visitor(struct state_desk *desk, int fd, const struct id *from);
/* The call has ended. The desk may be gone as soon as the call is completed, and not before. */
void state_desk_end(struct state_desk *desk);

#endif
