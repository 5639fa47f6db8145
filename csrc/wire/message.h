/* The control messages between a peer and the master, as structs. Their bytes: message.c.
 *
 * On the wire each one is u32 body length, u16 type, body; all integers little-endian. The bodies of
 * HELLO, WELCOME and REFUSED begin with a magic, so that either side notices when it talks to something
 * else. A decoded message has passed every check on lengths, counts, enums and strings; strings end in a
 * zero, and control characters in them have become '?'. */
#ifndef PCCL_WIRE_MESSAGE_H
#define PCCL_WIRE_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/address.h"
#include "base/id.h"
#include "base/limits.h"

enum { PROTOCOL_VERSION = 1, OLDEST_PROTOCOL_VERSION = 1 };
enum { MESSAGE_HEADER_BYTES = 6 };

/* In the `commits_seen` of frames: the rest is the number of an op under its tag. */
#define NUMBERED_BIT (UINT64_C(1) << 63)

enum message_type {
    MESSAGE_HELLO = 1,     /* peer: let me in (first message; its prefix is the same in all versions) */
    MESSAGE_WELCOME,       /* master: you are known as ..., wait for an epoch */
    MESSAGE_REFUSED,       /* master: no, because ... (same in all versions); it then closes */
    MESSAGE_CENSUS,        /* master: the sizes that span the run, sent before what they belong to */
    MESSAGE_PROPOSE,       /* master: your group's next epoch; the one before is over */
    MESSAGE_READY,         /* peer: all links of that epoch are up */
    MESSAGE_UNREACHABLE,   /* peer: the link to ... could not be made */
    MESSAGE_COMMIT_EPOCH,  /* master: all are ready, go */
    MESSAGE_LINK_LOST,     /* peer: the link to ... broke (epoch committed, or 0 between) */
    MESSAGE_VOTE,          /* peer: my user has called the joint call ... */
    MESSAGE_VOTE_OPENED,   /* master: ... is the first who waits in that call */
    MESSAGE_VOTE_WAITING,  /* master: the call waits for ... since ... */
    MESSAGE_VOTE_RESULT,   /* master: the joint call has ended */
    MESSAGE_OP_DONE,       /* peer: I hold the whole result, with this checksum */
    MESSAGE_OP_COMMIT,     /* master: all members do */
    MESSAGE_OP_MISMATCH,   /* peer: ... calls something else under this tag */
    MESSAGE_OP_CONFLICT,   /* peer: I wait in an op for somebody who waits in a joint call */
    MESSAGE_OP_ABORT,      /* peer: my user gives this op up */
    MESSAGE_OP_WAITING,    /* peer: I am in this op; master: who is? */
    MESSAGE_OP_STRAGGLERS, /* master: these have not joined it */
    MESSAGE_HEARTBEAT,     /* both: I live */
    MESSAGE_GOODBYE,       /* peer: I leave */
    MESSAGE_FAREWELL,      /* master: all know, you may go */
    MESSAGE_EVICTED,     /* master: you are out, because ...; it then closes. peer: put me out, because ... */
    MESSAGE_SYNC_OFFER,  /* peer: my user has called sync_shared_state with this state */
    MESSAGE_SYNC_PLAN,   /* master: whose state it is, and your part in it */
    MESSAGE_SYNC_REPORT, /* peer: how far I am with my part */
    MESSAGE_PROBE,       /* master: try a link to ..., which the next epoch may need */
    MESSAGE_PROBED,      /* peer: what came of it */
    MESSAGE_PENDING, /* master: you wait to be let in since ..., because ... (the answer to a HEARTBEAT) */
    MESSAGE_TYPE_END
};

enum op_kind { OP_ALL_REDUCE = 1, OP_BROADCAST, OP_ALL_GATHER, OP_REDUCE_SCATTER, OP_BARRIER, OP_KIND_END };
enum op_algorithm { OP_ALGORITHM_AUTO = 0, OP_ALGORITHM_RING, OP_ALGORITHM_TREE, OP_ALGORITHM_END };
enum vote_kind {
    VOTE_NONE = 0,
    VOTE_UPDATE_TOPOLOGY,
    VOTE_PEERS_PENDING,
    VOTE_OPTIMIZE_TOPOLOGY,
    VOTE_SYNC_STATE,
    VOTE_KIND_END
};
/* What becomes of the ops in flight when an epoch ends. */
enum fate {
    FATE_ABORT = 1, /* they fail: a member was lost, a link broke, calls did not match */
    FATE_CARRY,     /* they start over in the next epoch, unseen: a member left in good order */
    FATE_END
};

/* What must be equal at all peers for calls under one tag to be the same op. */
struct op_descriptor {
    uint8_t kind;           /* enum op_kind */
    uint8_t datatype;       /* pcclDataType_t */
    uint8_t reduce_op;      /* pcclRedOp_t */
    uint8_t quant_datatype; /* pcclDataType_t */
    uint8_t quant_algorithm;
    uint8_t algorithm; /* enum op_algorithm, as the caller wishes */
    bool early;        /* a small all-reduce whose result may be returned before its commit */
    /* broadcast: the root's rank; all-gather and reduce-scatter: the world that the buffers are made for */
    uint16_t root_or_world;
    uint64_t count; /* elements: of the input, or of the result of a reduce-scatter; 0 for a barrier */
};

struct message_hello {
    uint16_t version, oldest_version; /* that the peer speaks; the rest is zero if the decoder does not */
    uint32_t group;
    uint16_t streams;              /* 1 to MAX_STREAMS */
    uint32_t timeout_ms;           /* MIN_TIMEOUT_MS to MAX_TIMEOUT_MS */
    uint32_t straggler_timeout_ms; /* 0: none */
    struct address listen;         /* family 0: the address that I connect from, with this port */
    char name[MAX_NAME_BYTES + 1];
    char run[MAX_RUN_BYTES + 1]; /* the name of the run that the peer means; "": it names none */
};

struct message_welcome {
    struct id run, peer;
};

struct message_refused {
    uint16_t status; /* pcclResult_t; in REFUSED, one that is no error or not known becomes pcclRefused */
    char reason[MAX_REASON_BYTES + 1];
};

struct message_census {
    uint32_t peers, groups, largest_group;
};

struct member {
    struct id id;
    struct address address;
    char name[MAX_NAME_BYTES + 1];
};

/* A link that the epoch needs: a link is known by its key, so an equal key means "keep it". */
struct link_plan {
    uint16_t rank; /* of the other end */
    uint16_t streams;
    bool opener; /* the receiver of this message connects; else it is connected to */
    struct id key;
};

enum { MAX_LINKS = 16 }; /* of one peer in one epoch: two for the ring, the rest for the tree */

enum { MAX_PROBES = 16 }; /* links that one peer tries at a time, beside those of its epoch */

struct message_propose {
    uint64_t epoch;
    uint8_t fate;        /* enum fate: of ops of the epoch before */
    uint16_t status;     /* the error that those ops fail with (FATE_ABORT) */
    bool has_guilty_tag; /* then only the op with that tag gets `status`, others RankConnectionLost */
    uint64_t guilty_tag;
    bool guilty_blocking;              /* so do all ops that a user's thread waits in */
    char reason[MAX_REASON_BYTES + 1]; /* why the epoch before has ended */
    bool has_tree;                     /* the links include those of the tree: it can be used */
    uint16_t rank, world;
    uint16_t link_count;
    struct link_plan links[MAX_LINKS];
    uint16_t places[MAX_PEERS];       /* of the members in the tree; a permutation */
    struct member members[MAX_PEERS]; /* in ring order, `world` of them */
};

/* An op of an epoch that is over. */
struct ended_op {
    uint64_t tag;
    uint64_t number; /* as in MESSAGE_OP_DONE */
};

/* After an abort: the ops that this peer had in flight. After any end of an epoch: those whose results it has
 * returned early, and keeps for the others. */
struct message_ready {
    uint64_t epoch;
    uint32_t rtt_us; /* round trip time of the slowest of its links; 0: not known */
    uint16_t kept_count, failed_count;
    struct ended_op kept[MAX_KEPT_OPS];
    struct ended_op failed[MAX_FAILED_TAGS];
};

struct message_unreachable { /* also MESSAGE_LINK_LOST */
    uint64_t epoch;
    struct id peer;
    char reason[MAX_REASON_BYTES + 1];
};

/* An op that some have returned already: who keeps its result broadcasts it to the others. */
struct served_op {
    struct ended_op op;
    uint16_t rank;
};

/* The union of what the members reported. No op fails that somebody has returned. Whoever had not called one
 * of the failed tags yet fails its next call with the same error, so that the outcome of an op is one for
 * all. */
struct message_commit_epoch {
    uint64_t epoch;
    uint32_t tree_bytes; /* ops of up to so many bytes use the tree */
    uint16_t served_count, failed_count;
    struct served_op served_ops[MAX_OP_SLOTS];
    uint64_t failed_tags[MAX_FAILED_TAGS];
};

/* A link of one stream that is closed again once it is up. Both ends are told, and both answer. */
struct message_probe {
    struct id key;
    bool opener;          /* the receiver of this message connects; else it is connected to */
    struct member member; /* the other end; its id is zero if there is none: only the answer counts */
};

struct message_probed {
    struct id key;
    bool reached;
    char reason[MAX_REASON_BYTES + 1]; /* if not */
};

struct message_pending {
    uint32_t waited_ms;
    char reason[MAX_REASON_BYTES + 1]; /* "peer b (3f09ab12) has not called update_topology()" */
};

struct message_vote { /* also MESSAGE_VOTE_OPENED, where `peer` is the first voter */
    uint8_t kind;     /* enum vote_kind; VOTE_NONE in MESSAGE_VOTE_OPENED: nobody waits any more */
    struct id peer;   /* zero in MESSAGE_VOTE */
};

/* A 128-bit hash (data/state_hash.h), as bytes. */
struct digest {
    uint8_t bytes[16];
};

struct message_sync_offer {
    uint64_t revision;
    uint8_t strategy;      /* pcclSharedStateSyncStrategy_t */
    bool mixed;            /* a sync that failed has left a mix of two revisions: never to be elected */
    bool requires_peers;   /* alone in the group the call fails */
    struct digest keys;    /* of names, datatypes, counts and flags */
    struct digest content; /* of the tensors that have to be equal */
};

enum sync_role {
    SYNC_HOLD = 1, /* serve those who greet with the key, until the verdict */
    SYNC_FETCH,    /* get what differs from the sources */
    SYNC_ROLE_END
};

enum { MAX_SYNC_SOURCES = 8 };

/* One more with the same `sync` replaces the sources; one with a greater `sync` starts over. */
struct message_sync_plan {
    uint64_t sync;
    uint32_t patience_ms;        /* how long the others wait for progress, at the least */
    uint64_t revision;           /* elected */
    struct digest keys, content; /* elected */
    uint8_t role;                /* enum sync_role; SYNC_HOLD: `sources` are fetchers to connect to */
    struct id key;               /* that fetchers greet with */
    uint16_t source_count;
    struct member sources[MAX_SYNC_SOURCES];
};

enum sync_progress {
    SYNC_TOUCHED = 1, /* my memory is not what I offered any more, or is about to change */
    SYNC_FETCHED,     /* I hold the elected content: the answer to SYNC_HOLD, too */
    SYNC_FAILED,      /* I can't: the call fails for all with `status` and `reason` */
    SYNC_MOVING,      /* since my last report I have got more of what I am to fetch */
    SYNC_UNREACHED,   /* I get no connection to `peer`, which is to connect to me */
    SYNC_PROGRESS_END
};

struct message_sync_report {
    uint64_t sync;
    uint8_t progress; /* enum sync_progress */
    struct id peer;   /* SYNC_UNREACHED; else zero */
    uint16_t status;  /* pcclResult_t; of SYNC_FAILED an error */
    char reason[MAX_REASON_BYTES + 1];
};

struct message_vote_result {
    uint8_t kind;
    uint16_t status;
    uint64_t value;
    char reason[MAX_REASON_BYTES + 1];
};

struct message_op { /* MESSAGE_OP_DONE, MESSAGE_OP_COMMIT */
    uint64_t epoch, tag;
    uint64_t number; /* of ops under this tag since they are numbered (in this epoch); 0: they are not */
    uint32_t check;  /* of results that each peer has worked out for itself; else 0 */
    bool returned;   /* OP_DONE: to its caller, before the commit */
    bool numbered;   /* OP_COMMIT: the next op under this tag has the number 1 */
};

/* What MESSAGE_OP_WAITING says. */
enum waiting_part {
    WAITING_ASKS = 0,  /* peer: I wait in this op, who else is in it? master: are you? */
    WAITING_IS_IN,     /* peer, when asked: I have called it */
    WAITING_IS_ABSENT, /* peer, when asked: I have not */
    WAITING_END
};

struct message_op_waiting {
    uint64_t epoch, tag, number;
    uint8_t part;       /* enum waiting_part */
    uint32_t question;  /* the master's, and in the answers to it */
    uint32_t waited_ms; /* since the peer's call, if it runs; else 0 */
    bool stuck;         /* WAITING_IS_ABSENT: a thread of the user has waited in ... for `timeout` */
    uint64_t stuck_tag; /* ... the op with this tag */
};

struct message_op_mismatch {
    uint64_t epoch, tag;
    struct op_descriptor mine, theirs;
    struct id other;
};

struct message_op_conflict {
    uint64_t epoch, tag;
    uint8_t kind; /* of the vote that is open */
    struct op_descriptor mine;
};

struct message_op_abort {
    uint64_t epoch, tag;
    uint16_t
        status; /* an error. pcclRankConnectionLost: its ranks are not those of the epoch; other ops go on */
    char reason[MAX_REASON_BYTES + 1];
};

enum { MAX_NAMED_STRAGGLERS = 8 };

enum { STUCK_IN_CALL = 1 }; /* the peer has made the call, but does not get on in it */

struct message_stragglers { /* MESSAGE_OP_STRAGGLERS, MESSAGE_VOTE_WAITING */
    uint8_t kind;           /* of the vote; VOTE_NONE for an op */
    uint64_t epoch, tag;    /* of the op; 0 for a vote, or `tag` STUCK_IN_CALL */
    uint32_t waited_ms;
    uint16_t total; /* how many are missing */
    uint16_t named; /* how many of them stand below */
    struct id peers[MAX_NAMED_STRAGGLERS];
};

struct message {
    enum message_type type;
    union {
        struct message_hello hello;
        struct message_welcome welcome;
        struct message_refused refused; /* also MESSAGE_EVICTED */
        struct message_census census;
        struct message_propose propose;
        struct message_ready ready;
        struct message_unreachable unreachable; /* also MESSAGE_LINK_LOST */
        struct message_commit_epoch commit_epoch;
        struct message_probe probe;
        struct message_probed probed;
        struct message_pending pending;
        struct message_vote vote; /* also MESSAGE_VOTE_OPENED */
        struct message_sync_offer sync_offer;
        struct message_sync_plan sync_plan;
        struct message_sync_report sync_report;
        struct message_vote_result vote_result;
        struct message_op op; /* MESSAGE_OP_DONE, _COMMIT */
        struct message_op_waiting op_waiting;
        struct message_op_mismatch op_mismatch;
        struct message_op_conflict op_conflict;
        struct message_op_abort op_abort;
        struct message_stragglers stragglers; /* MESSAGE_OP_STRAGGLERS, MESSAGE_VOTE_WAITING */
    } as;
};

/* Writes `message`, header included, to `bytes`. Returns the size, or 0 if `capacity` is too small;
 * MAX_MESSAGE_BYTES always suffices. Strings are cut at their maximum; anything else beyond the limits
 * that message_decode() sets is a mistake of the caller's and ends the process. */
size_t message_encode(const struct message *message, uint8_t *bytes, size_t capacity);

enum decode_status {
    DECODE_OK,
    DECODE_INCOMPLETE, /* a good beginning: call again with more bytes */
    DECODE_BAD,        /* not a message of ours: close the connection */
};

/* Reads one message from the `size` bytes at `bytes`; on DECODE_OK `*used` is what it took.
 * `limit` is the largest message accepted here (MAX_GREETING_BYTES before a greeting, else
 * MAX_MESSAGE_BYTES). Reads nothing beyond `size`, writes nothing but `message` and `used`. */
enum decode_status message_decode(const uint8_t *bytes, size_t size, size_t limit, struct message *message,
                                  size_t *used);

/* "HELLO", "PROPOSE" ...; "?" for anything else. */
const char *message_name(enum message_type type);

#endif
