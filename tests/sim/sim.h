/* The simulator: one master and up to sixteen peers, the real machines of csrc/core, on a virtual
 * network with a virtual clock. One thread, no socket; the same seed gives the same run to the bit.
 *
 * All memory of a run comes from one arena that is emptied before the next run, so nothing here frees.
 * Times are nanoseconds of the world's true clock unless a name says local. See README.md. */
#ifndef PCCL_TESTS_SIM_H
#define PCCL_TESTS_SIM_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdnoreturn.h>

#include "base/id.h"
#include "base/random.h"
#include "core/master.h"
#include "core/peer.h"
#include "core/schedule.h"
#include "pccl.h"
#include "tests/sim/fault.h"
#include "wire/frame.h"
#include "wire/message.h"

enum {
    MAX_HOSTS = 18,     /* host 0 is the master's */
    MAX_PROCESSES = 96, /* started in one run, dead ones included */
    MAX_WORLD = 64,     /* dead ones may still be in a plan */
    MAX_BATCH = 4,      /* ops of one round */
    MAX_CALL_ELEMENTS = 256,
    MAX_SIM_STREAMS = 3,
    MAX_OPEN_CALLS = 12,
    SIM_OPS = 16, /* in flight at one process */
    SYNC_LEAVES = 4,
    TEXT_BYTES = 1024,
};

#define MILLISECOND UINT64_C(1000000)
#define SECOND UINT64_C(1000000000)
#define NEVER UINT64_MAX

struct world;
struct process;
struct link_end;

/* ---- network: net.c ---- */

enum item_kind { ITEM_MESSAGE, ITEM_FRAME, ITEM_FIN };

struct sim_frame {
    struct frame frame;
    uint32_t count; /* elements of the payload */
    int64_t payload[];
};

struct item {
    struct item *next;
    uint64_t at;
    enum item_kind kind;
    size_t bytes;
    const void *data;   /* a struct message cut to what it uses, or a struct sim_frame */
    const char *reason; /* ITEM_FIN */
};

struct pipe {
    struct item *head, *tail;
    uint64_t last_at;
    bool scheduled;
};

/* One TCP connection; pipe i carries what end i sends. */
struct conn {
    uint64_t number; /* > 0 */
    bool control;
    struct id id;         /* control: that the master gave */
    uint64_t welcomed_at; /* control */
    bool alone;           /* control: in the newest epoch that was proposed to its peer */
    bool knows_revision;  /* control: its peer was told `revision`, and was never alone since */
    uint64_t revision;
    struct conn *next;
    struct conn_end {
        struct process *process;
        struct link_end *link; /* of a stream */
        bool open;
        bool greeted;  /* master's end: its first message was handed in */
        bool leaving;  /* master's end: the machine had it closed, or the peer said goodbye */
        bool reported; /* master's end: MASTER_CLOSED was given */
    } ends[2];
    struct pipe pipes[2];
};

/* A connection that is being made, by SYN after SYN. */
struct attempt {
    struct process *from, *to;
    struct link_end *link; /* NULL: to the master */
    uint16_t stream;
    uint64_t started, generation;
    struct conn *conn;
};

/* ---- engine: links.c, engine.c ---- */

enum link_state { LINK_BUILDING, LINK_UP, LINK_DOWN };

struct link_end {
    struct link_end *next;
    struct process *process;
    int target; /* process index of the other end */
    struct id key;
    bool opener, closed;
    enum link_state state;
    uint16_t streams, bound;
    struct conn *conns[MAX_SIM_STREAMS];
    uint64_t last_heard, build_deadline;
    uint64_t eager_credit; /* what we may still send early */
};

enum call_kind { CALL_CONNECT, CALL_CLOSE, CALL_VOTE, CALL_OP };

struct call {
    uint64_t number;
    struct process *process;
    enum call_kind kind;
    uint8_t vote;
    uint64_t tag;
    bool blocking;
    struct op_descriptor descriptor;
    uint64_t round;
    int slot, attempt; /* of the batch */
    bool wrong;        /* the user means something else than the others do */
    bool open, started, stopped, finished;
    uint16_t status;
    uint64_t value, opened_at;
    struct op_record *record; /* of the last start */
    uint16_t record_rank;
    int64_t input[MAX_CALL_ELEMENTS], result[MAX_CALL_ELEMENTS];
};

struct sim_op {
    bool active, unfit, whole, mismatch_told, awaits_called;
    bool kept, served;   /* kept: `result` outlives its call; served: it is being broadcast */
    struct call *call;   /* whose op moves: the user's, or one made up for the broadcast */
    struct call *origin; /* the user's */
    uint64_t epoch, commits_seen;
    uint32_t given_grant;                  /* the number that we gave to those whom we receive from */
    uint32_t sends_over, granted, offered; /* sets of edges */
    uint32_t got_grants[MAX_EDGES];
    struct transfer transfer;
    int64_t *result, *scratch;
    uint64_t generation;
};

struct held {
    struct held *next;
    struct link_end *link;
    const struct sim_frame *frame;
};

/* ---- users: user.c ---- */

enum user_stage {
    STAGE_CONNECT,
    STAGE_BEGIN,
    STAGE_TOPOLOGY,
    STAGE_OPTIMIZE,
    STAGE_SYNC,
    STAGE_OPS,
    STAGE_PENDING_AMID_OPS,
    STAGE_IDLE,
    STAGE_DONE,
    STAGE_SCRIPTED,
};

enum batch_state { SLOT_NONE, SLOT_TODO, SLOT_OPEN, SLOT_FAILED, SLOT_DONE };

/* What every user does in one round: a function of the seed, the group and the round alone. */
struct round_plan {
    bool pending, skip_if_none, optimize, sync, straight_to_ops, async, pending_amid_ops;
    int ops;
    struct planned_op {
        uint64_t tag;
        struct op_descriptor descriptor;
        uint64_t bound_ns; /* 0: none */
    } op[MAX_BATCH];
};

struct user {
    enum user_stage stage;
    uint64_t round, admitted_round;
    struct round_plan plan;
    enum batch_state slots[MAX_BATCH];
    int attempts[MAX_BATCH], order[MAX_BATCH];
    int mismatches; /* in this stage of this round */
    int open_blocking, open_async;
    bool awake_scheduled, batch_ready, asked_amid_ops, closing;
    bool reconnects;               /* after a close in the middle */
    uint8_t wrong;                 /* enum wrong: the next chance to do so is taken */
    uint64_t slow_ns;              /* added to the next thought */
    bool leaves_early, leaves_now; /* as soon as an op has returned early: after the next one, or this one */
    uint64_t rounds_done;
    uint8_t last_pending;
};

enum wrong { WRONG_NONE, WRONG_DESCRIPTOR, WRONG_VOTE_FOR_OP, WRONG_VOTE, WRONG_SKIP_OP, WRONG_END };

/* ---- shared state: sync.c ---- */

/* Of one process. The leaves are its memory. */
struct sim_sync {
    uint64_t leaves[SYNC_LEAVES];
    uint64_t revision;  /* of the last sync that succeeded */
    bool receives_once; /* a newcomer */
    uint64_t call;      /* 0: none */
    bool serves;
    struct digest offered;
    struct message_sync_plan desk, plan; /* the newest, and the newest that was taken */
    bool new_plan, fetching, touched;
    bool stuck; /* its user's callback blocks: it fetches nothing, while its net thread lives on */
    uint64_t generation, progress_at;
    int source;
    uint64_t elected[SYNC_LEAVES];
    bool has_mixture;
    struct digest mixture;
};

struct sync_step {
    int kind;
    uint64_t generation, call;
};

/* An offer of a whole state, or a sync that has succeeded. */
struct sync_record {
    struct sync_record *next;
    int run;
    uint32_t group;
    uint64_t round;
    int attempt;
    uint64_t revision;
    struct digest content;
    const struct process *only; /* an offer that only receives: good for this one, if it is alone */
};

/* ---- processes: process.c ---- */

struct tag_count {
    struct tag_count *next;
    uint64_t tag, starts;
};

struct process {
    struct world *world;
    int index, host;
    bool alive, frozen, is_master;
    int64_t offset_ns, skew_ppm;
    uint64_t last_local;
    uint64_t timer_at;                          /* of the timer event that counts; NEVER: none */
    struct event_list *backlog, **backlog_tail; /* while frozen */
    /* master */
    struct master *master;
    int run;
    /* peer */
    struct peer *peer;
    uint32_t group;
    uint64_t timeout_ns;
    char name[16];
    struct id id;
    bool has_id;
    bool member; /* proposed to, at least once, since the last welcome */
    struct conn *control;
    uint64_t connect_generation;
    bool connected;
    bool gave_up;                 /* a close has ended an op that others may have returned early */
    uint64_t out_call, out_since; /* has waited in this call, unheard by any master, since then */
    struct link_end *links;
    struct sim_op ops[SIM_OPS];
    struct held *held;
    bool reexamine;
    uint32_t next_grant;
    uint64_t next_call, op_generation;
    struct call *calls[MAX_OPEN_CALLS];
    int master_run; /* of the master that the id is from */
    struct epoch_record *epoch;
    uint64_t commits;       /* OP_FINISH in this epoch */
    struct tag_count *tags; /* in this epoch */
    struct link_end *edges[MAX_EDGES];
    struct user user;
    struct sim_sync sync;
    bool expect_complete; /* OP_FINISH or OP_KEEP was given: the next action must be its PEER_COMPLETE */
    struct call *finishing;
};

/* ---- what must hold: check.c ---- */

struct epoch_record {
    struct epoch_record *next;
    int run;
    uint64_t epoch;
    uint32_t group;
    uint16_t world;
    bool committed;
    struct id members[MAX_WORLD];
    struct plan_seen {
        struct id key;
        uint16_t a, b;
        bool opener_seen, acceptor_seen;
        uint16_t streams;
    } links[8 * MAX_WORLD];
    int link_count;
    struct op_record *ops;
};

struct op_record {
    struct op_record *next;
    struct epoch_record *epoch;
    uint64_t tag, sequence;
    struct call *calls[MAX_WORLD];
    bool stopped[MAX_WORLD];
    int finished;
    bool returned[MAX_WORLD];     /* early, to the caller of this rank */
    bool has_it[MAX_WORLD];       /* returned or committed */
    struct epoch_record *aborted; /* the epoch of the member that aborted it and lived on; NULL: none */
};

struct outcome {
    struct outcome *next;
    int run;
    uint32_t group;
    uint64_t round;
    int slot, attempt;
    uint16_t status;
    uint64_t value;
    int process;
    struct id teller; /* its id then */
};

/* ---- the world: world.c ---- */

enum event_kind {
    EVENT_PIPE,
    EVENT_TIMER,
    EVENT_USER,
    EVENT_PEER,
    EVENT_SYNC,
    EVENT_MASTER_CLOSED,
    EVENT_ATTEMPT,
    EVENT_ESTABLISHED,
    EVENT_LINK_TIMER,
    EVENT_FAULT,
    EVENT_FAULT_END,
    EVENT_RESTART,
    EVENT_PHASE,
};

struct event {
    uint64_t at, order;
    enum event_kind kind;
    struct process *process; /* whose freeze holds the event up; may be NULL */
    void *pointer;
    uint64_t number;
};

struct event_list {
    struct event_list *next;
    struct event event;
};

struct posted_event { /* of EVENT_PEER */
    struct peer_event event;
    struct op_descriptor descriptor;
    uint64_t op_generation; /* 0: not about an op */
    struct conn *conn;      /* CONTROL_OPEN, _CLOSED: of this connection */
};

enum phase { PHASE_ACTIVE, PHASE_CALM, PHASE_QUIET, PHASE_CLOSING, PHASE_OVER };

struct sim_options {
    uint64_t seed;
    bool trace;
    bool wire;        /* messages go through the encoder and the decoder */
    uint64_t without; /* faults left out, by bit */
    int max_hosts;    /* 0: as the seed says */
    bool no_jitter;
};

struct sim_result {
    bool failed;
    int invariant; /* 0: a CHECK of the machine, else the number in README.md */
    char text[TEXT_BYTES];
    uint64_t events, ops_committed, ops_failed, ops_returned, ops_served, ops_implied, epochs, evictions,
        sim_ns;
    int faults;
};

struct world {
    struct sim_options options;
    struct sim_result result;
    jmp_buf escape;
    uint64_t now, events, order;
    struct event *heap;
    size_t heap_count, heap_capacity;
    struct random_source random_net, random_user, random_fault;
    /* configuration, drawn from the seed */
    int hosts; /* 1 .. hosts are peers' */
    int groups;
    uint64_t timeout_ns, latency_ns, jitter_ns;
    uint16_t streams;
    uint64_t eager_op_bytes, eager_window_bytes, straggler_ns, think_ns;
    bool skewed, wrong_users, faultless, uneven_timeouts;
    bool scripted;
    uint64_t active_rounds;
    /* state */
    struct process *processes[MAX_PROCESSES];
    int process_count;
    struct process *master;
    int runs;
    int at_host[MAX_HOSTS]; /* process index, or -1 */
    bool host_off[MAX_HOSTS];
    int blocked[MAX_HOSTS][MAX_HOSTS];
    uint64_t blocked_since[MAX_HOSTS][MAX_HOSTS];
    uint64_t stall_until[MAX_HOSTS][MAX_HOSTS];
    uint64_t suspect_until[MAX_HOSTS]; /* the host or its way to the master had a fault */
    uint64_t edge_suspect_until[MAX_HOSTS][MAX_HOSTS];
    uint64_t master_suspect_until;
    uint64_t forgiven_at; /* when the master last let pairs that had failed try again; 0: never */
    struct event_list *path_backlog;
    struct conn *conns;
    uint64_t conn_count;
    struct epoch_record *epochs;
    struct outcome *outcomes[256];
    struct fault faults[MAX_FAULTS];
    int fault_count;
    uint64_t message_seen[FAULT_MESSAGE_END];
    enum phase phase;
    uint64_t phase_deadline, end_round, last_progress;
    uint64_t calm_round;             /* from here on users skip no update_topology, so that all get in */
    uint64_t vote_event, vote_round; /* when update_topology ended last, and in which round */
    bool fault_ever;
    uint64_t committed, failed, evictions, synchronised;
    /* Results given out early; those that came from who had them; those that the next op has committed. */
    uint64_t returned, served, implied;
    struct sync_record *offers, *syncs;
    struct message scratch; /* what a machine is handed */
    void *script;
};

/* world.c */
void *arena_take(size_t bytes); /* zeroed, of the current run */
void arena_reset(void);
void world_run(struct world *world, const struct sim_options *options);
void post(struct world *world, uint64_t delay, enum event_kind kind, struct process *process, void *pointer,
          uint64_t number);
void repost(struct world *world, const struct event *event, uint64_t delay);
void world_loop(struct world *world, uint64_t until);
void world_prepare(struct world *world, const struct sim_options *options);
void world_release(struct world *world);
uint64_t below(struct random_source *source, uint64_t bound);
bool chance(struct random_source *source, unsigned percent);
noreturn void violate(struct world *world, int invariant, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* trace.c */
void trace(struct world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));
void trace_set_output(void (*line)(void *context, const char *text), void *context);
void message_describe(struct world *world, const struct message *message, char *text, size_t bytes);
const char *process_name(const struct process *process);
const char *id_name(struct world *world, const struct id *id);
const char *status_name(uint16_t status);
const char *vote_name(uint8_t vote);

/* net.c */
bool path_open(const struct world *world, int from, int to);
uint64_t path_delay(struct world *world, int from, int to);
struct conn *conn_make(struct world *world, struct process *from, struct process *to, bool control);
void conn_send(struct world *world, struct conn *conn, int end, enum item_kind kind, const void *data,
               size_t bytes, const char *reason);
void conn_send_message(struct world *world, struct conn *conn, int end, const struct message *message);
void conn_close(struct world *world, struct conn *conn, int end, const char *reason);
void conn_reset(struct world *world, struct conn *conn, const char *reason);
void conn_vanish(struct conn *conn, int end);
void net_pipe(struct world *world, struct conn *conn, int direction, const struct event *event);
void net_attempt(struct world *world, struct attempt *attempt, const struct event *event);
void net_established(struct world *world, struct attempt *attempt);
void net_connect_master(struct process *process);
void net_unblock(struct world *world);

/* process.c */
/* `run`: the number that makes its name; 0: it names none. */
struct process *process_start(struct world *world, int host, uint32_t group, uint32_t run);
struct process *master_start(struct world *world, uint32_t run);
uint64_t local_time(struct process *process);
void process_step(struct process *process, const struct peer_event *event);
void process_tick(struct process *process);
void process_post(struct process *process, uint64_t delay, const struct peer_event *event, struct conn *conn);
void process_posted(struct process *process, const struct posted_event *posted);
void process_die(struct process *process, bool silent);
void process_freeze(struct process *process);
void process_resume(struct process *process);
void master_message(struct process *master, struct conn *conn, const struct message *message);
void master_closed(struct process *master, struct conn *conn, const char *reason);
struct call *process_call(struct process *process, uint64_t number);

/* links.c */
void link_make(struct process *process, const struct peer_action *action);
void link_close(struct process *process, const struct id *key);
struct link_end *link_find(struct process *process, const struct id *key);
void link_bound(struct link_end *link, struct conn *conn, uint16_t stream);
void link_lost(struct link_end *link, const char *reason);
void link_timer(struct link_end *link);

/* engine.c */
void op_start(struct process *process, const struct peer_action *action);
void op_stop(struct process *process, const struct peer_action *action);
void op_keep(struct process *process, const struct peer_action *action);
void op_forget(struct process *process, const struct peer_action *action);
void op_finish(struct process *process, const struct peer_action *action);
void engine_frame(struct link_end *link, const struct sim_frame *frame);
void engine_reexamine(struct process *process);

/* user.c */
void user_init(struct process *process);
void user_wake(struct process *process, uint64_t delay);
void user_step(struct process *process);
void user_complete(struct process *process, struct call *call);
void user_go_on(struct process *process);
void user_close(struct process *process, bool reconnects);
struct call *user_call(struct process *process, enum call_kind kind);
void user_issue(struct process *process, struct call *call, uint64_t bound_ns);
void user_fill(struct call *call);

/* sync.c */
void sync_init(struct process *process);
bool sync_planned(const struct process *process, uint64_t round);
void sync_train(struct process *process);
void sync_call(struct process *process);
void sync_plan(struct process *process, const struct peer_action *action);
void sync_stepped(struct process *process, const struct sync_step *step);
/* As the master sends it. */
void sync_result(struct world *world, struct conn *conn, const struct message_vote_result *result);
/* Before the user hears of it. */
void sync_over(struct process *process, const struct call *call, const char *text);

/* check.c, check_rest.c */
/* Known to the master; the process itself may not know yet that it is out. */
bool is_in(const struct process *process);
struct epoch_record *check_epoch(struct world *world, int run, uint64_t epoch);
void check_propose(struct world *world, const struct conn *conn, const struct message_propose *propose);
void check_vote_result(struct world *world, const struct conn *conn,
                       const struct message_vote_result *result);
void check_peer_epoch(struct process *process, const struct peer_action *action);
void check_start(struct process *process, struct call *call, const struct peer_action *action);
uint64_t call_input_count(const struct call *call);
uint64_t call_result_count(const struct call *call);
/* Who has which rank matters to it: it fails when a peer leaves. */
bool call_names_ranks(const struct call *call);
/* The result of `op` is its call's: by the commit, or early. */
void check_result(struct process *process, struct call *call, const struct sim_op *op);
void check_return(struct process *process, struct call *call, const struct sim_op *op);
void check_forget(struct process *process, const struct call *call);
void check_finish(struct process *process, struct call *call, const struct sim_op *op);
void check_goodbye(struct process *process);
void check_call_over(struct process *process, struct call *call);
void check_put_out(struct world *world, const struct conn *conn, const char *how, const char *why);
void check_waits(struct world *world); /* now and then */
void check_quiet(struct world *world);
void check_empty(struct world *world);
int64_t reduce_one(uint8_t reduce_op, int64_t a, int64_t b);

/* phases: phase.c */
void phase_tick(struct world *world);

/* inspect.c: the only file here that looks into the machines */
int inspect_master_leftovers(const struct master *master, char *text, size_t bytes);
int inspect_peer_leftovers(const struct peer *peer, char *text, size_t bytes);

/* script.c */
int script_run(const char *path, void (*line)(void *context, const char *text), void *context);

#endif
