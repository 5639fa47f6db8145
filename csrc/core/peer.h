/* A peer's side of the protocol with the master: joining, epochs and their links, joint calls, and the
 * life of each op from call to verdict. A pure state machine: no socket, clock, thread or allocation.
 * It never sees tensors: it tells its caller (the engine in csrc/net, or the simulator) when to move
 * an op's bytes and when to stop, and is told when they have all arrived.
 *
 * Duties of the caller:
 *  - call peer_step() for one event at a time, with a clock that never goes back;
 *  - perform each action at once and in order, inside peer_perform, without calling back;
 *  - call with PEER_TICK when peer_deadline() has passed and nothing else happened;
 *  - on PEER_OP_START allot the op's progress (core/schedule.h), grant it to those it receives from, send to
 *    those who have granted; on PEER_OP_STOP touch the user's buffers no more, and leave the input as it was
 *    at the call;
 *  - on PEER_OP_KEEP copy the result: the user's buffers are the user's again, while the op goes on. Later
 *    starts of the op move that copy;
 *  - keep each link that PEER_LINK_OPEN / _EXPECT named until PEER_LINK_CLOSE, and report its
 *    PEER_EVENT_LINK_UP once all its streams are there, or PEER_EVENT_LINK_DOWN once when it is broken
 *    or silent. A link is known by its key; PEER_EVENT_LINK_* for an unknown key is ignored. */
#ifndef PCCL_CORE_PEER_H
#define PCCL_CORE_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/address.h"
#include "base/id.h"
#include "core/schedule.h"
#include "wire/message.h"

struct peer; /* the state: core/peer_state.h */

struct peer_options {
    struct message_hello hello; /* what the peer says of itself */
};

enum peer_event_kind {
    /* The user's calls. Each ends in exactly one PEER_COMPLETE with its `call`. */
    PEER_EVENT_CONNECT, /* join the run; may time out at `deadline_ns` */
    PEER_EVENT_CLOSE,   /* leave it; afterwards every other open call has ended too */
    PEER_EVENT_VOTE,    /* joint call `vote` */
    PEER_EVENT_SYNC,    /* joint call sync_shared_state with `offer`; NULL: would one be taken now? */
    PEER_EVENT_OP,      /* op with `tag`, `descriptor`, `blocking`; may time out at `deadline_ns` */
    /* The control connection. */
    PEER_EVENT_CONTROL_OPEN,   /* `reason`: where the other end is, for sentences; NULL: not known */
    PEER_EVENT_CONTROL_CLOSED, /* or could not be opened; `reason` */
    PEER_EVENT_MESSAGE,        /* `message` from the master */
    /* Links, by `key`. */
    PEER_EVENT_LINK_UP,
    PEER_EVENT_LINK_DOWN, /* `reason` */
    PEER_EVENT_UNABLE,    /* no link can be made here, because of this very process: `reason` */
    /* Ops, by `op`. */
    /* Its result is complete here, all whom it sends to have granted it, and the CALLED that it awaits has
     * come: once the op has ended, a late one could not be told from that of the next op under its tag. Of an
     * early op, all that this peer sends of it is out too, so that its buffers are free. */
    PEER_EVENT_OP_WHOLE,
    PEER_EVENT_OP_MISMATCH, /* the member with id `other` calls `descriptor` under this op's tag */
    PEER_EVENT_OP_REFUSED,  /* it can't go on here (`status`, `reason`): fails for all */
    PEER_EVENT_SYNC_REPORT, /* `report`: how far this peer is with its part of a PEER_SYNC_PLAN */
    PEER_EVENT_TICK,
};

struct peer_event {
    enum peer_event_kind kind;
    uint64_t now_ns;
    uint64_t call; /* the caller's number for a user's call, > 0 */
    uint8_t vote;  /* enum vote_kind */
    uint64_t tag;
    bool blocking;        /* EVENT_OP: the user's thread waits in it */
    uint64_t deadline_ns; /* EVENT_OP, EVENT_CONNECT: 0 for none */
    struct op_descriptor descriptor;
    const struct message_sync_offer *offer;   /* EVENT_SYNC: borrowed for the call */
    const struct message_sync_report *report; /* EVENT_SYNC_REPORT: borrowed for the call */
    uint32_t op;                              /* index given by PEER_OP_START */
    uint32_t check;                           /* EVENT_OP_WHOLE: CRC32C of the result, in a tree; else 0 */
    struct id key, other;
    uint32_t rtt_us; /* EVENT_LINK_UP: its round trip time; 0: not known */
    uint16_t status;
    const char *reason;            /* borrowed for the call */
    const struct message *message; /* borrowed for the call */
};

enum peer_action_kind {
    PEER_CONTROL_CONNECT, /* open the control connection, then report CONTROL_OPEN or _CLOSED */
    PEER_CONTROL_SEND,    /* `message` */
    PEER_CONTROL_CLOSE,   /* once all that was sent is out; no CONTROL_CLOSED is reported for it */
    PEER_LINK_OPEN,       /* connect `link.streams` times to `member`, greet with `link.key` */
    PEER_LINK_EXPECT,     /* `member` will connect and greet with `link.key` */
    PEER_LINK_CLOSE,      /* the link with `link.key` is not needed any more */
    PEER_EPOCH,           /* `epoch` is committed: `rank` of `world`; the keys of the links behind `edges` */
    PEER_OP_START,  /* move `op`: `descriptor`, `call`, `tag`, `epoch`, `commits_seen`, `rank` and `place`
                       of `world`, `root`, `tree`, `served` */
    PEER_OP_STOP,   /* `op` is aborted, or will start over: leave all buffers alone */
    PEER_OP_KEEP,   /* put the result of `op`, which is whole, where the user wants it, and keep a copy of
                       it, under `op`, until OP_FINISH or OP_FORGET. Then comes its PEER_COMPLETE. */
    PEER_OP_FORGET, /* what was kept of `op`, which does not run, is of no use any more: the next op under its
                       tag is whole, or this peer is out */
    PEER_OP_FINISH, /* `op` is committed: put the result where the user wants it. Then comes its
                       PEER_COMPLETE, unless it was kept. Frames that were held may fit now. */
    PEER_SYNC_PLAN, /* `plan` for the open call of sync_shared_state, whose number is `call`. Ends with
                       that call's PEER_COMPLETE, whose `value` is the elected revision. */
    PEER_COMPLETE,  /* `call` has ended with `status`, `text`, `value` */
    PEER_LOG,       /* `text` at `level` */
};

enum peer_log_level { PEER_LOG_DEBUG, PEER_LOG_INFO, PEER_LOG_WARN };

struct peer_action {
    enum peer_action_kind kind;
    uint64_t call;
    uint32_t op; /* 0 .. MAX_OP_SLOTS - 1, unique among ops in flight */
    uint64_t tag, epoch, commits_seen;
    uint16_t rank, world;
    uint16_t place, root; /* OP_START: in the ring or, if `tree`, in the tree */
    bool tree;
    bool unfit;  /* OP_START: its buffers are not for this world: move nothing, it is being given up */
    bool served; /* OP_START: broadcast the result, which members have kept, in memory of its own; `call` is
                    0 where it was kept, else the result is the user's on OP_FINISH */
    struct op_descriptor descriptor; /* OP_START: what is moved; that of the call, or of a broadcast */
    uint16_t status;                 /* pcclResult_t */
    uint64_t value; /* PEER_COMPLETE of VOTE_PEERS_PENDING: 1 if some are; of an op: the world size */
    enum peer_log_level level;
    const char *text;                     /* borrowed for the call; "" on success */
    const struct message *message;        /* borrowed for the call */
    const struct message_sync_plan *plan; /* borrowed for the call */
    const struct member *member;          /* PEER_LINK_OPEN, _EXPECT: borrowed for the call */
    struct link_plan link;                /* PEER_LINK_*: the key, and for OPEN and EXPECT the rest */
    bool probe;                           /* PEER_LINK_OPEN, _EXPECT: only tried, nobody waits for it */
    const struct id *edges; /* PEER_EPOCH: MAX_EDGES keys, zero for none (enum edge): borrowed for the call */
};

typedef void (*peer_perform)(void *context, const struct peer_action *action);

size_t peer_bytes(void);
/* `peer` points to peer_bytes() zeroed bytes, which the caller keeps and frees. */
void peer_init(struct peer *peer, const struct peer_options *options, peer_perform perform, void *context);
void peer_step(struct peer *peer, const struct peer_event *event);
/* When PEER_EVENT_TICK is due at the latest; UINT64_MAX: never. */
uint64_t peer_deadline(const struct peer *peer);

/* Where a GRANT or eager DATA frame belongs. Two successive ops under one tag are told apart by
 * `commits_seen`, the number of ops its sender had seen commit in this epoch before its call: while this
 * peer has seen fewer, the frame may be for the op after the one in flight here, so it must wait. Ops
 * that abort end their epoch, so within one epoch nothing else can end an op. Under tags whose ops are
 * numbered (core/peer_number.c) it is the number, with NUMBERED_BIT. */
enum peer_match {
    PEER_MATCH_OP,    /* op `*op` */
    PEER_MATCH_LATER, /* hold it, and ask again after the next OP_START, OP_FINISH or EPOCH action */
    PEER_MATCH_STALE, /* of an epoch that is over: drop it */
};
enum peer_match peer_find_op(const struct peer *peer, uint64_t epoch, uint64_t tag, uint64_t commits_seen,
                             uint32_t *op);

/* What the user may ask at any time; the caller copies it where the user's threads can see it. */
struct peer_status {
    bool connected;      /* member of a committed epoch */
    uint16_t out_status; /* what every call fails with since the master was lost or put this peer out, or 0 */
    struct id id, run;
    uint64_t epoch;
    uint16_t rank, world;   /* of the own group */
    uint16_t largest_world; /* that the own group has had since this peer joined */
    struct message_census census;
};
void peer_get_status(const struct peer *peer, struct peer_status *status);
/* The member with `rank` in the committed epoch, or NULL. */
const struct member *peer_get_member(const struct peer *peer, uint16_t rank);

#endif
