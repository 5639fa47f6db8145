/* The state of a peer, and the calls between the files that step it. Only core/peer*.c and tests look
 * in here. */
#ifndef PCCL_CORE_PEER_STATE_H
#define PCCL_CORE_PEER_STATE_H

#include "core/peer.h"

enum peer_phase {
    PEER_IDLE,       /* not connected, never or not any more by its own will */
    PEER_CONNECTING, /* the control connection is being made */
    PEER_GREETING,   /* hello is sent */
    PEER_PENDING,    /* welcome: waits for its first epoch */
    PEER_MEMBER,
    PEER_LEAVING, /* goodbye is sent */
    PEER_OUT,     /* lost the master, or evicted: every call fails with `out_status` */
};

enum peer_op_state {
    OP_FREE,
    OP_QUEUED,    /* called between epochs: starts with the next one */
    OP_SUSPENDED, /* was running in an epoch that ended in good order: starts over with the next one */
    OP_RUNNING,
    OP_WHOLE, /* the result is complete here and reported */
    OP_KEPT,  /* the same, and returned: its caller is gone, a copy is kept until the verdict */
};

/* Ops in flight are in one list in the order of their calls and in the chain of their tag's bucket. */
struct peer_op {
    enum peer_op_state state;
    bool blocking, accused; /* accused: a mismatch, a conflict or an abort was reported */
    bool returned;          /* before its commit: there is no call any more, and the result is kept */
    bool served;            /* starts, or runs, as a broadcast of the result by who has kept it */
    bool doomed;            /* OP_SUSPENDED: fails with the next epoch, unless it is served there */
    uint64_t number;        /* under its tag in this epoch; 0: ops under it are not numbered */
    uint64_t done_due_ns;   /* returned: when OP_DONE is to be sent at the latest; 0: it was */
    uint32_t check;         /* that OP_DONE says */
    uint16_t root;          /* of `served` */
    uint16_t world;         /* that the result is of; 0 until it has started */
    uint64_t call, tag, commits_seen;
    uint64_t deadline_ns;    /* 0: none */
    uint64_t next_report_ns; /* when to ask the master who is missing */
    uint64_t started_ns;
    uint32_t told_ms; /* the wait that was logged last */
    struct op_descriptor descriptor;
    int16_t previous, next; /* in the list; `next` alone for the free ones */
    int16_t chained;        /* in the bucket */
};

enum { OP_BUCKETS = 1024, NO_OP = -1 };

/* A tag under which small ops follow each other without waiting for commits: all number them alike. */
struct numbered_tag {
    uint64_t tag, next; /* the number of the next op; 0: the place is free */
    uint32_t check;     /* over all results since, of those that each peer has worked out for itself */
};

enum { NUMBERED_PLACES = 2 * MAX_NUMBERED_TAGS };

struct peer_link {
    struct id key, member;
    bool up;
    uint32_t rtt_us;
};

/* A link that is tried before an epoch needs it. Whoever opened it closes it, at its second heartbeat after
 * it is up: by then the other end has seen it up, too. */
struct peer_probe {
    bool used, opener, up;
    uint8_t heartbeats; /* since it is up */
    struct id key;
};

struct peer_mark {
    uint64_t tag;
    uint16_t status;
};

struct peer {
    struct peer_options options;
    peer_perform perform;
    void *context;
    uint64_t now_ns, last_step_ns;

    enum peer_phase phase;
    uint16_t out_status;
    char out_reason[MAX_REASON_BYTES + 1];
    char master_where[160]; /* as PEER_EVENT_CONTROL_OPEN has told, cut to fit */
    struct id id, run;
    uint64_t connect_call, close_call; /* 0: none */
    uint64_t connect_deadline_ns;      /* 0: none */
    uint64_t connect_since_ns, next_pending_log_ns;
    char pending_reason[MAX_REASON_BYTES + 1]; /* why this peer is not let in yet; "" if nobody has said */
    /* For the commit of ops returned early: the goodbye is said then. All other calls have ended. */
    bool close_waits;
    uint64_t phase_deadline_ns; /* of CONNECTING, GREETING and LEAVING, and of `close_waits` */
    uint64_t last_heard_ns, next_heartbeat_ns;
    bool control_open;

    struct message_propose plan; /* the newest proposal */
    uint64_t epoch;              /* committed; 0 while an epoch is being formed */
    bool ready_sent;
    struct peer_link links[MAX_LINKS];
    uint32_t link_count;
    struct peer_probe probes[MAX_PROBES];
    uint32_t tree_bytes;       /* up to which ops use the tree in this epoch */
    uint64_t commits_seen;     /* in this epoch */
    struct peer_status status; /* of the last committed epoch */

    struct peer_op ops[MAX_OP_SLOTS];
    int16_t first_op, last_op, free_op;
    int16_t buckets[OP_BUCKETS];
    uint32_t op_count, returned_count;             /* those returned early are among both */
    uint64_t op_check_ns;                          /* no op has anything to do before */
    struct numbered_tag numbered[NUMBERED_PLACES]; /* in this epoch; by open addressing */
    uint32_t numbered_count;

    /* Aborted since the last committed epoch, or about to be; they go into READY. */
    struct ended_op failed[MAX_FAILED_TAGS];
    uint16_t failed_count;
    /* Aborted elsewhere before this peer had called them: its next call fails likewise. */
    struct peer_mark marks[MAX_FAILED_TAGS];
    uint16_t marked_count, marks_before_vote;
    bool has_guilty_tag;
    uint64_t guilty_tag;
    bool guilty_blocking;
    uint16_t guilty_status;
    char guilty_reason[MAX_REASON_BYTES + 1]; /* the sentence of the op that was at fault */
    char lost_reason[MAX_REASON_BYTES + 1];   /* the sentence of all other ops */

    uint64_t vote_call; /* 0: none */
    uint8_t vote_kind;
    bool ballot_waits;               /* for the commit of ops that were returned early: it is cast then */
    struct message_sync_offer offer; /* of a ballot that waits */
    struct id open_voter;            /* the first of the group who waits in it */
    uint8_t open_vote; /* kind of the joint call that a member of the group waits in, or VOTE_NONE */
};

/* peer.c */
void peer_complete(struct peer *peer, uint64_t call, uint16_t status, uint64_t value, const char *text);
void peer_send(struct peer *peer, const struct message *message);
__attribute__((format(printf, 3, 4))) void peer_log(struct peer *peer, enum peer_log_level level,
                                                    const char *format, ...);
uint64_t peer_timeout_ns(const struct peer *peer);
uint64_t peer_heartbeat_ns(const struct peer *peer);
/* "name (3f09ab12)" of a member of the plan, or the digits alone. */
enum { PEER_LABEL_BYTES = MAX_NAME_BYTES + 16 };
const char *peer_label(const struct peer *peer, const struct id *id, char text[PEER_LABEL_BYTES]);

/* peer_join.c */
void peer_join_connect(struct peer *peer, const struct peer_event *event);
void peer_join_close(struct peer *peer, const struct peer_event *event);
void peer_join_say_goodbye(struct peer *peer); /* at the end of the wait */
void peer_join_control_open(struct peer *peer, const struct peer_event *event);
void peer_join_control_closed(struct peer *peer, const char *reason);
void peer_join_welcome(struct peer *peer, const struct message_welcome *welcome);
void peer_join_refused(struct peer *peer, const struct message_refused *refused);
void peer_join_evicted(struct peer *peer, const struct message_refused *evicted);
void peer_join_farewell(struct peer *peer);
void peer_join_pending(struct peer *peer, const struct message_pending *pending);
void peer_join_tick(struct peer *peer);
uint64_t peer_join_deadline(const struct peer *peer);
/* Why a call can't be made now: writes a status and a sentence, or returns false if it can. */
bool peer_join_hinders(const struct peer *peer, uint16_t *status, const char **text);

/* peer_epoch.c */
void peer_epoch_propose(struct peer *peer, const struct message_propose *propose);
void peer_epoch_commit(struct peer *peer, const struct message_commit_epoch *commit);
void peer_epoch_link_up(struct peer *peer, const struct id *key, uint32_t rtt_us);
void peer_epoch_unable(struct peer *peer, const char *reason);
void peer_epoch_link_down(struct peer *peer, const struct id *key, const char *reason);
void peer_epoch_leave(struct peer *peer); /* closes all links and forgets the plan */

/* peer_probe.c */
void peer_probe_start(struct peer *peer, const struct message_probe *probe);
/* These ignore a key that no probe has. */
void peer_probe_link_up(struct peer *peer, const struct id *key);
void peer_probe_link_down(struct peer *peer, const struct id *key, const char *reason);
void peer_probe_heartbeat(struct peer *peer);
void peer_probe_leave(struct peer *peer); /* closes all of them */

/* peer_op.c */
void peer_op_init(struct peer *peer);
void peer_op_call(struct peer *peer, const struct peer_event *event);
void peer_op_whole(struct peer *peer, const struct peer_event *event);
void peer_op_mismatch(struct peer *peer, const struct peer_event *event);
void peer_op_refused(struct peer *peer, const struct peer_event *event);
void peer_op_commit(struct peer *peer, const struct message_op *commit);
void peer_op_fail_all(struct peer *peer, uint16_t status, const char *text);
/* Those that have not been returned. */
void peer_op_fail_called(struct peer *peer, uint16_t status, const char *text);
void peer_op_tick(struct peer *peer);
uint64_t peer_op_deadline(const struct peer *peer);
/* The oldest with this tag, or NO_OP; behind one that was returned early there may be one more. */
int peer_op_find(const struct peer *peer, uint64_t tag);
/* The newest. */
int peer_op_find_newest(const struct peer *peer, uint64_t tag);
bool peer_op_is_moving(const struct peer_op *op);
/* For the commit of one with its tag that was returned early. */
bool peer_op_waits_its_turn(const struct peer *peer, int index);
/* OP_DONE for all that was returned early: something waits for their commits. */
void peer_op_say_done(struct peer *peer);
/* What was returned early is of no use any more. */
void peer_op_forget(struct peer *peer, int index);
void peer_op_start(struct peer *peer, int index);
void peer_op_stop(struct peer *peer, int index); /* if it moves */
/* Ends it, and its call unless that has returned. */
void peer_op_fail(struct peer *peer, int index, uint16_t status, const char *text);

/* peer_wait.c */
/* When the master is to be told, the next time, that a running op waits. */
uint64_t peer_wait_next_report(const struct peer *peer, const struct peer_op *op);
void peer_wait_report(struct peer *peer, const struct peer_op *op);
void peer_wait_asked(struct peer *peer, const struct message_op_waiting *question);
void peer_wait_stragglers(struct peer *peer, const struct message_stragglers *stragglers);
/* Tells the master of ops that can't end because a member waits in the open joint call. */
void peer_wait_check_conflict(struct peer *peer);

/* peer_fate.c */
void peer_fate_epoch_ended(struct peer *peer, const struct message_propose *propose);
/* What was returned early and is not known to be committed; how many. */
uint16_t peer_fate_list_kept(const struct peer *peer, struct ended_op kept[MAX_KEPT_OPS]);
void peer_fate_epoch_begun(struct peer *peer, const struct message_commit_epoch *commit, bool newcomer);
/* Takes the oldest mark of `tag` away and returns what its call fails with, or pcclSuccess. */
uint16_t peer_fate_take_mark(struct peer *peer, uint64_t tag);
/* The sentence that goes with it. */
const char *peer_fate_mark_text(const struct peer *peer, uint64_t tag, uint16_t status);
/* Takes the oldest `count` marks away. Whoever votes for update_topology has called all that it was going
 * to call before; what newcomers do from then on is not forgotten. */
void peer_fate_forget_marks(struct peer *peer, uint16_t count);

/* peer_number.c */
/* NULL if ops under this tag are not numbered. */
struct numbered_tag *peer_number_find(const struct peer *peer, uint64_t tag);
/* False if there are too many. */
bool peer_number_add(struct peer *peer, uint64_t tag);
void peer_number_clear(struct peer *peer);

/* peer_vote.c */
void peer_vote_call(struct peer *peer, const struct peer_event *event);
void peer_vote_sync(struct peer *peer, const struct peer_event *event);
void peer_vote_cast(struct peer *peer); /* the ballot that has waited */
void peer_vote_sync_plan(struct peer *peer, const struct message_sync_plan *plan);
void peer_vote_sync_report(struct peer *peer, const struct message_sync_report *report);
void peer_vote_opened(struct peer *peer, const struct message_vote *vote);
void peer_vote_result(struct peer *peer, const struct message_vote_result *result);
void peer_vote_waiting(struct peer *peer, const struct message_stragglers *stragglers);
void peer_vote_fail(struct peer *peer, uint16_t status, const char *text);
const char *vote_kind_name(uint8_t kind);

#endif
