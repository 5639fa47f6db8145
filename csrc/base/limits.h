/* Every maximum of the library in one place. What arrives beyond one of these is refused with a
 * status; nothing grows past it. */
#ifndef PCCL_BASE_LIMITS_H
#define PCCL_BASE_LIMITS_H

enum {
    MAX_PEERS = 512,         /* of one run, pending ones included */
    MAX_OPS = 1024,          /* in flight per communicator; more that are started wait for a place */
    MAX_STARTED_OPS = 65536, /* async ones per communicator that have not been awaited */
    MAX_KEPT_OPS = 64,       /* returned early and not committed yet, per communicator, beside those */
    MAX_OP_SLOTS = MAX_OPS + MAX_KEPT_OPS,
    MAX_NUMBERED_TAGS = 256,        /* under which a group's ops are numbered, in one epoch */
    MAX_MASTER_OPS = 8192,          /* open at the master, all groups together */
    MAX_STREAMS = 64,               /* connections of one link */
    MAX_NAME_BYTES = 63,            /* a peer's name, without the terminating zero */
    MAX_RUN_BYTES = 63,             /* a run's name, without the terminating zero */
    MAX_HOST_BYTES = 255,           /* a host's name, without the terminating zero */
    MAX_MASTER_ADDRESSES = 16,      /* that its name may stand for */
    MAX_TENSOR_NAME_BYTES = 1023,   /* in a shared state, without the terminating zero */
    MAX_REASON_BYTES = 511,         /* a sentence that travels, without the terminating zero */
    MAX_FAILED_TAGS = 4096,         /* that one new epoch reports as failed, of all its members together */
    MAX_MESSAGE_BYTES = 128 * 1024, /* one control message, its header included */
    MAX_GREETING_BYTES = 1024,      /* the first message of a connection nobody has vouched for yet */
    MAX_STRANGERS = 256, /* connections that have not greeted yet, on the listening sockets of a process */
    STRANGER_TIMEOUT_MS = 5000,         /* how long such a connection may stay silent */
    MAX_OUTBOX_BYTES = 4 * 1024 * 1024, /* unsent control bytes before a connection counts as dead */

    MAX_DESCRIPTORS = 1024 * 1024,  /* beyond it, a descriptor is not closed in forked children */
    MAX_RAISED_DESCRIPTORS = 65536, /* no soft limit of open files is raised beyond it */
    MAX_LOG_LINE_BYTES = 1280,

    MIN_TIMEOUT_MS = 100,
    DEFAULT_TIMEOUT_MS = 10000,
    MAX_TIMEOUT_MS = 24 * 3600 * 1000,
    HEARTBEATS_PER_TIMEOUT = 10,
    MAX_HEARTBEAT_MS = 15000,    /* middle boxes forget a connection that is silent for minutes */
    NEWCOMER_SILENCE_MS = 60000, /* after its HELLO, whatever its timeout is: heartbeats come more often */

    DEFAULT_STREAMS = 4,
    MAX_DATA_THREADS = 16,                /* of one communicator, the one that drives it included */
    MAX_AUTOMATIC_DATA_THREADS = 4,       /* unless the user asks for more */
    MIN_CHUNK_BYTES = 64 * 1024,          /* of a segment that is cut at all */
    MAX_CHUNK_BYTES = 1024 * 1024,        /* no data frame carries more */
    EAGER_OP_BYTES = 64 * 1024,           /* ops up to this size do not wait for a grant */
    EARLY_RETURN_BYTES = 64 * 1024,       /* results up to this size can be returned before the commit */
    EAGER_WINDOW_BYTES = 1024 * 1024,     /* early payload that one link may hold at its receiver */
    MAX_HELD_ANNOUNCEMENTS = 2 * MAX_OPS, /* per link: GRANT and CALLED of ops yet to be called */
};

#endif
