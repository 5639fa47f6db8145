/* The state of the master, and the calls between the files that step it. Only core/master*.c and tests
 * look in here. */
#ifndef PCCL_CORE_MASTER_STATE_H
#define PCCL_CORE_MASTER_STATE_H

#include "base/random.h"
#include "core/master.h"
#include "core/rendezvous.h"

enum slot_state {
    SLOT_FREE,
    SLOT_PENDING, /* welcomed, waits for the members to admit it */
    SLOT_JOINING, /* in the plan of an epoch that is not committed yet, for the first time */
    SLOT_MEMBER,  /* accepted: counts in every vote */
};

/* A link that a plan needs, as one of its two ends sees it. */
struct master_link {
    int16_t other; /* slot */
    uint16_t streams;
    bool opener, kept; /* kept: the plan being made needs it */
    struct id key;
};

struct slot {
    enum slot_state state;
    struct id id;
    int16_t group; /* index in master->groups */
    struct address address;
    char name[MAX_NAME_BYTES + 1];
    uint16_t streams;
    uint64_t timeout_ns, straggler_timeout_ns; /* straggler: 0 for none */
    uint64_t last_heard_ns;
    bool has_spoken;     /* since its HELLO */
    uint16_t opened_ops; /* places of master->ops that it has taken; numbered ones do not count */
    uint64_t order;      /* of arrival */
    bool ready;          /* for the group's plan */
    uint32_t rtt_us;     /* of the slowest of its links */
    uint8_t sync_part;   /* enum sync_part */
    bool sync_touched;   /* its memory is not what it offered any more */
    bool sync_unsure;    /* it was told to fetch: its memory may have changed, and only it knows */
    bool stuck;          /* one that is absent from an op: its user waits in another, with `stuck_tag` */
    uint64_t stuck_tag;
    /* It succeeded in the last sync of its group that did, and was never alone in the group since. */
    bool knows_revision;
    struct message_sync_offer offer;
    uint64_t sync_moved_ns; /* when it was told what to do in the sync, or last said that it gets on */
    bool sync_named;        /* the others know that it does not */
    /* Of the plan; while the next is made, those of both. */
    uint16_t link_count;
    struct master_link links[2 * MAX_LINKS];
    /* While it is pending. */
    uint64_t since_ns, try_after_ns; /* it came; before, nobody tries to reach it */
    bool asked, answered;            /* a probe that needs no link; any probe */
    uint16_t probe_count;            /* links that are being tried with it, also by members */
    char failure[MAX_REASON_BYTES + 1];
    uint8_t early_vote; /* cast before the vote that admitted this peer has ended: counts in the next */
};

enum { MAX_MASTER_PROBES = 1024, MAX_FAILED_NEWCOMERS = 64 };

/* A link that is being tried, before an epoch needs it. */
struct probe {
    bool used, opener_up, acceptor_up;
    int16_t opener, acceptor; /* slots */
    struct id key;
    uint64_t started_ns, deadline_ns;
};

/* A newcomer that nobody could link to, or that was late when its first epoch was formed. */
struct failed_newcomer {
    char name[MAX_NAME_BYTES + 1];
    struct address address;
    uint64_t failed_ns, wait_ns; /* wait_ns 0: the place is free */
};

/* What a peer does in the sync of its group. */
enum sync_part {
    SYNC_PART_NONE,
    SYNC_PART_OFFERED, /* waits for the others' offers */
    SYNC_PART_HOLDS,   /* has the elected state */
    SYNC_PART_FETCHES,
    SYNC_PART_DISAGREES, /* only sends, and has another state: the call fails for it alone */
};

/* The latest op under its tag that a member has returned early, before the epoch ended. */
struct kept_op {
    struct ended_op op;
    int16_t holder; /* slot of a member that keeps its result */
};

enum { MAX_LOSSY_PAIRS = 64 };

/* Two members whose link has broken, how often in a row, and how often each of them has said so first. */
struct lossy_pair {
    int16_t slots[2];
    uint16_t count, told_by[2];
    uint64_t last_ns;
};

/* The plan is the newest epoch that was proposed; it is committed if `epoch` equals `plan_epoch`. */
struct group {
    bool used;
    uint32_t number;       /* the user's */
    uint64_t epoch;        /* committed and current; 0 while one is being formed */
    uint64_t committed_ns; /* when it was */
    uint64_t plan_epoch;
    uint16_t size;
    int16_t ring[MAX_PEERS];  /* slots in ring order */
    int16_t tree[MAX_PEERS];  /* the same in the order of their places in the tree */
    uint64_t formed_since_ns; /* when the plan was proposed */
    bool vote_announced;      /* the members know of the open vote */
    struct lossy_pair lossy[MAX_LOSSY_PAIRS];
    struct id last_failed[2]; /* the pair given up last */
    uint64_t last_failed_ns, forgiven_ns;
    uint16_t failed_count; /* aborted since the last committed epoch */
    struct ended_op failed[MAX_FAILED_TAGS];
    uint32_t untold_count; /* that had no room there */
    uint16_t kept_count;   /* that those who are ready have named */
    struct kept_op kept_ops[MAX_OP_SLOTS];
    /* These waited in a joint call that failed together with the op `excused_tag`: they have their error,
     * and are not to fail once more when they call that op. */
    struct slot_set excused;
    uint64_t excused_tag;
    int16_t first_op;        /* list of open ops */
    uint32_t numbered_count; /* of them: under numbered tags */

    struct rendezvous sync; /* of sync_shared_state */
    uint64_t sync_number;   /* of the plan under way; 0: none, still waiting for offers */
    struct id sync_key;
    struct message_sync_offer elected;
    uint64_t revision; /* of the last sync that succeeded; counts while a member knows it */
};

/* An op that some member has finished, or has asked about. */
struct master_op {
    bool used;
    int16_t group;
    int16_t opener; /* slot whose message has taken this place; NO_SLOT: it does not count for anybody */
    uint64_t tag;
    struct slot_set done;
    struct slot_set joined, absent; /* what the members have answered: they are in it, or not */
    uint64_t judged_ns;             /* when the answers were complete last */
    uint32_t check;                 /* of the first who was done */
    bool returned;                  /* by one of them, before its commit */
    bool numbered;                  /* ops under this tag are numbered: this stays until the epoch ends */
    uint64_t number;                /* the highest that somebody has done */
    uint64_t asked_number;          /* of the op that `joined` and what follows are about */
    uint32_t question;              /* how often they were asked */
    uint64_t asked_ns;              /* when the members were asked who has joined; 0: not asked */
    uint64_t pause_ns;              /* after which those who have answered are told who is missing */
    uint64_t waited_ns;             /* the longest wait that a member has reported */
    bool straggler_limit;           /* that wait has reached the member's straggler timeout */
    int16_t previous, next;         /* in the group's list; `next` alone for the free ones */
    int16_t chained;                /* in the bucket */
};

enum { MASTER_OP_BUCKETS = 8192, NO_MASTER_OP = -1, NO_GROUP = -1, NO_SLOT = -1 };

struct master {
    struct random_source random;
    master_perform perform;
    void *context;
    uint64_t now_ns, last_step_ns;
    uint64_t awake_since_ns; /* when this process last went on after it had stood still */
    uint64_t next_check_ns;  /* nothing times out before */
    uint64_t tick_ns;        /* the longest time between two checks */
    struct id run;
    char run_name[MAX_RUN_BYTES + 1];  /* given to the master; "": none */
    char peers_run[MAX_RUN_BYTES + 1]; /* that the peers have named; counts while there are any */
    uint64_t last_epoch, last_order, last_sync;

    uint64_t connections[MAX_PEERS]; /* of each slot; 0: free */
    struct slot slots[MAX_PEERS];
    struct slot_set members;              /* in state SLOT_MEMBER */
    struct slot_set bad[MAX_PEERS];       /* pairs that could not be linked, either way */
    struct slot_set cant_open[MAX_PEERS]; /* to whom each slot could not open a link */
    struct slot_set good[MAX_PEERS];      /* pairs that are linked, or have been tried and could be */
    struct probe probes[MAX_MASTER_PROBES];
    struct failed_newcomer failed_newcomers[MAX_FAILED_NEWCOMERS];
    struct group draft;          /* of a plan with newcomers: only its ring and tree count */
    uint16_t unknown[MAX_PEERS]; /* links of the draft that are not known to work, for each slot */
    struct group groups[MAX_PEERS];

    struct rendezvous vote; /* run-wide */
    bool admitting;         /* all have voted for update_topology: it ends when all groups are formed */
    uint64_t left_alone_ns; /* since when newcomers, but no members, are here; 0: it is not so */
    uint64_t complete_ns;   /* when all had come to it; 0: not yet */
    uint64_t admitted_ns;   /* since when `admitting` holds */

    struct master_op ops[MAX_MASTER_OPS];
    int16_t buckets[MASTER_OP_BUCKETS];
    int16_t free_op;
    uint32_t last_question;  /* who is in an op? */
    uint32_t numbered_count; /* of all groups */

    struct message message; /* the one being built: too large for every stack */
};

/* The *_check functions look for what has taken too long: silent peers, plans that do not get ready,
 * stragglers in ops and votes. */

/* What ends an epoch. */
struct ending {
    enum fate fate;
    uint16_t status;
    bool has_guilty_tag;
    uint64_t guilty_tag;
    bool guilty_blocking;
    char reason[MAX_REASON_BYTES + 1];
};

/* master.c */
void master_send(struct master *master, int slot, const struct message *message);
void master_send_type(struct master *master, int slot, enum message_type type);
__attribute__((format(printf, 2, 3))) void master_log(struct master *master, const char *format, ...);
/* Of what comes with every step of a healthy run. */
__attribute__((format(printf, 2, 3))) void master_log_routine(struct master *master, const char *format, ...);
enum { LABEL_BYTES = MAX_NAME_BYTES + 16 };
const char *master_label(const struct master *master, int slot, char text[LABEL_BYTES]);
/* The slot of the peer with this id, or NO_SLOT. */
int master_find_id(const struct master *master, const struct id *id);
/* Looks again at everything that a change of membership may have completed. */
void master_settle(struct master *master);
/* Something has to be looked at no later than this. */
void master_watch(struct master *master, uint64_t deadline_ns);

/* What `to` is told of `other`. */
void master_describe(const struct master *master, int to, int other, struct member *member);
/* The least timeout that at least half of the members do not exceed: one with a long timeout does not make
 * all others wait, nor does an impatient one hurry them. */
uint64_t master_run_timeout_ns(const struct master *master);
/* The same of the members of one group; if it has none yet, of the run's, who wait for it. */
uint64_t master_group_timeout_ns(const struct master *master, const struct group *group);

/* master_join.c */
void master_join_hello(struct master *master, const struct master_event *event);
void master_join_goodbye(struct master *master, int slot);
void master_join_lost(struct master *master, int slot, const char *reason);
/* Puts a peer out with a reason; its group goes on without it. */
__attribute__((format(printf, 4, 5))) void master_join_evict(struct master *master, int slot, uint16_t status,
                                                             const char *format, ...);
/* The same for a peer whose group is being reformed by the caller. */
void master_join_expel(struct master *master, int slot, uint16_t status, const char *reason);
void master_join_check(struct master *master);
/* Into new plans of their groups: all who can be linked. If the run has no members, those of each group, or
 * else the one who came first. */
void master_join_admit(struct master *master);
uint32_t master_join_pending(const struct master *master);

/* master_epoch.c */
__attribute__((format(printf, 2, 3))) struct ending ending_abort(uint16_t status, const char *format, ...);
__attribute__((format(printf, 1, 2))) struct ending ending_carry(const char *format, ...);
/* Ends the group's epoch and proposes the next one for those in its ring. Leaves out whom it must. */
void master_epoch_reform(struct master *master, int group, const struct ending *ending);
/* Puts a slot into its group's ring, or takes it out; the caller reforms. */
void master_epoch_append(struct master *master, int slot);
void master_epoch_remove(struct master *master, int slot);
void master_epoch_ready(struct master *master, int slot, const struct message_ready *ready);
void master_epoch_unreachable(struct master *master, int slot, const struct message_unreachable *report);
void master_epoch_link_lost(struct master *master, int slot, const struct message_unreachable *report);
void master_epoch_check(struct master *master);
void master_epoch_forget_losses(struct group *group, int slot);
/* Links of this peer broke again and again, and it was always this peer that said so. */
bool master_epoch_accuses_alone(const struct master *master, int slot);
/* Tells all members the sizes that span the run. */
void master_epoch_tell_census(struct master *master);
bool master_epoch_all_formed(const struct master *master);
/* Pairs of its members that could not be linked get another chance, if they have not had one lately. */
bool master_epoch_forgive(struct master *master, struct group *group);

/* master_ring.c */
/* Orders the `size` slots of `ring` so that no two neighbours are a bad pair, changing as little as it
 * can. False if there is no such order, or none was found within a bounded search. */
bool master_ring_order(const struct master *master, int16_t *ring, uint16_t size);
/* Whom to leave out so that the others may form a ring: the one in most bad pairs, of which those with
 * newcomers are not held against members; then a newcomer before a member, then the one who alone says that
 * links break, then the latest to arrive. */
int master_ring_outcast(const struct master *master, const int16_t *ring, uint16_t size);

/* master_op.c */
void master_op_init(struct master *master);
void master_op_done(struct master *master, int slot, const struct message_op *done);
void master_op_waiting(struct master *master, int slot, const struct message_op_waiting *waiting);
void master_op_mismatch(struct master *master, int slot, const struct message_op_mismatch *mismatch);
void master_op_abort(struct master *master, int slot, const struct message_op_abort *abort);
void master_op_forget(struct master *master, int group);        /* all open ops of the group */
void master_op_postpone(struct master *master, uint64_t by_ns); /* what is asked is asked later */
void master_op_check(struct master *master);

/* master_links.c: the links of a plan, known by their keys. */
/* Places the group's tree, and gives each pair that ring or tree needs a link: the one that it has, or a new
 * one. */
void master_links_plan(struct master *master, struct group *group);
/* Places the tree alone. */
void master_links_arrange(const struct master *master, struct group *group);
typedef void (*pair_visitor)(void *context, int a, int b);
/* Each pair that the group's ring and tree need; some twice. */
void master_links_visit(const struct master *master, const struct group *group, pair_visitor visit,
                        void *context);
/* The plan's link between the two; NULL: it has none. */
const struct master_link *master_links_find(struct master *master, int slot, int other);
/* The next plan makes a new one if it needs one. */
void master_links_drop(struct master *master, int a, int b);
/* The plan's links include those of the tree: none of them is known to be impossible. */
bool master_links_has_tree(const struct master *master, const struct group *group);
/* Up to how many bytes the tree serves better than the ring. */
uint32_t master_links_tree_bytes(const struct master *master, const struct group *group);

/* master_probe.c: newcomers are reached before they are let in. */
void master_probe_settle(struct master *master);
void master_probe_check(struct master *master);
void master_probe_forgive(struct master *master, uint64_t gap_ns);
void master_probe_answered(struct master *master, int slot, const struct message_probed *answer);
void master_probe_forget(struct master *master, int slot); /* it is gone */
void master_probe_pair_works(struct master *master, int a, int b);
/* Of those who wait for the group, whom an epoch can include at once, in the order of arrival; how many. */
int master_probe_admissible(struct master *master, int index, int16_t admissible[MAX_PEERS]);
int master_probe_first_pending(const struct master *master, int index); /* or NO_SLOT */
/* Until when the members should wait for newcomers that have not failed before; 0: nobody. */
uint64_t master_probe_wait_ns(struct master *master);
/* The run has lost its members: true while those who waited for them see, for a moment, whom they can reach.
 */
bool master_probe_try_among_pending(struct master *master);
/* About a few round trips: how long that is at most. */
uint64_t master_probe_patience_ns(const struct master *master);
bool master_probe_anybody(const struct master *master); /* is being tried, or could be let in */
void master_probe_has_failed(struct master *master, int slot);
void master_probe_has_joined(struct master *master, int slot);
uint64_t master_probe_try_after_ns(struct master *master, int slot);
/* Tells a pending peer what it waits for. */
void master_probe_tell(struct master *master, int slot);

/* master_vote.c: joint calls. Those of the whole run share the rendezvous master->vote; that of
 * sync_shared_state is one of each group, group->sync. A group never waits in two at a time. */
void master_vote(struct master *master, int slot, const struct message_vote *vote);
void master_vote_result(struct master *master, int slot, uint8_t kind, uint16_t status, uint64_t value,
                        const char *reason);
/* `slot` comes, and those of its group who have not are told, if it is the first. */
void master_vote_come(struct master *master, struct rendezvous *vote, uint8_t kind, int slot);
/* Newcomers are being let in: calls count when that is over. */
bool master_vote_must_wait(const struct master *master);
/* Tells those members of the group who have not come what is open; `first` NO_SLOT: nothing any more. */
void master_vote_announce(struct master *master, int group, const struct rendezvous *vote, int first);
/* The first of this group who has come, or NO_SLOT. */
int master_vote_first_of(const struct master *master, const struct rendezvous *vote, int group);
/* `slot` calls something else than those who wait in `vote`: an error for all of them. */
void master_vote_mismatch(struct master *master, int slot, uint8_t kind, struct rendezvous *vote);
/* One result for all who came. */
void master_vote_end(struct master *master, struct rendezvous *vote, uint16_t status, const char *reason);
void master_vote_withdraw_from(struct master *master, struct rendezvous *vote, int slot);
/* Tells those who wait who is missing, when it is time; returns one whom they have waited for too long,
 * or NO_SLOT. */
int master_vote_remind(struct master *master, struct rendezvous *vote, const struct slot_set *members);
void master_vote_evict(struct master *master, int slot, const struct rendezvous *vote);
void master_vote_conflict(struct master *master, int slot, const struct message_op_conflict *conflict);
void master_vote_withdraw(struct master *master, int slot);
void master_vote_settle(struct master *master);
void master_vote_check(struct master *master);

/* master_sync.c: the joint call sync_shared_state of a group. */
void master_sync_offer(struct master *master, int slot, const struct message_sync_offer *offer);
void master_sync_report(struct master *master, int slot, const struct message_sync_report *report);
void master_sync_withdraw(struct master *master, int slot);
/* Ends the group's call with a failure for all who came. */
void master_sync_end(struct master *master, int group, uint16_t status, const char *reason);
int master_sync_group(const struct master *master, const struct rendezvous *sync);
void master_sync_settle(struct master *master);
void master_sync_check(struct master *master);

#endif
