/* The links of one communicator: each is a pair of peers, known by its key, with `streams` connections that
 * share its load: through memory if both ends are processes of one user on one machine, else TCP. They are
 * built (one side connects, the other expects), watched (silence, breaks), and taken down. Only the net
 * thread comes here. */
#ifndef PCCL_NET_LINK_H
#define PCCL_NET_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/peer.h"
#include "net/list.h"
#include "net/poller.h"
#include "net/stream.h"
#include "wire/frame.h"

struct engine;

enum link_state {
    LINK_FREE,
    LINK_BUILDING,
    LINK_UP,
    LINK_DOWN, /* `reason` says why; waits for its PEER_LINK_CLOSE */
};

struct link {
    uint8_t state; /* enum link_state */
    bool report;   /* the machine does not know of `state` yet */
    char reason[MAX_REASON_BYTES + 1];
    struct link_set *set;
    struct id key;
    struct member member; /* the other end */
    bool opener;
    bool probe; /* only tried: nobody waits for it */
    uint16_t stream_count, open_streams;
    struct stream *streams; /* owned */
    uint16_t turn;          /* the stream that writes first next time */
    bool wants_write;
    uint32_t rtt_us;    /* measured when it came up */
    bool is_local;      /* the other end is on this machine */
    bool avoids_memory; /* it was tried in vain */

    uint64_t build_deadline_ns;
    uint64_t last_sent_ns, last_heard_ns;
    uint64_t ping_interval_ns; /* of silence, after which we ping: what the more impatient side wants */
    bool suspect;              /* silent for too long when last looked at; one more look decides */
    bool ping_due;

    /* Early data (FRAME_EAGER). What we may still send, what the other side has sent us and not been
     * given back, and the part of that which it may have back. */
    uint32_t eager_left, eager_taken, credit_due;
    struct list held;            /* struct held_frame: for ops that have not been called here yet */
    uint32_t held_announcements; /* how many of these are GRANT or CALLED */
    /* Ops (struct op), in turn: that may send a chunk, that wait for eager room, that have a GRANT or CALLED
     * to send. */
    struct list ready, starved, granting;
};

enum { MAX_HELD_LINKS = MAX_LINKS + MAX_PROBES };

struct link_set {
    struct poller *poller;
    struct engine *engine;
    struct id run, self; /* `self` is zero until the first link of a membership is built */
    uint64_t timeout_ns;
    bool tcp_only; /* none through memory */
    int shortage;  /* the last descriptor could not be had: -EMFILE or -ENFILE; 0: it could */
    uint64_t shortage_since_ns;
    struct link links[MAX_HELD_LINKS];
};

void link_set_init(struct link_set *set, struct poller *poller, struct engine *engine, uint64_t timeout_ns);
void link_set_free(struct link_set *set);
/* What has become of a connection that was to be made or taken: a descriptor, or a negative errno value. */
void link_set_note_result(struct link_set *set, int result);

/* PEER_LINK_OPEN and PEER_LINK_EXPECT; what goes wrong is reported as that the link is down. */
void link_build(struct link_set *set, const struct link_plan *plan, const struct member *member, bool probe);
/* PEER_LINK_CLOSE. Ignores a key that it does not know. */
void link_close(struct link_set *set, const struct id *key);
/* NULL if there is none that is up. */
struct link *link_find(struct link_set *set, const struct id *key);
/* A link whose state the machine does not know yet, or NULL; it counts as known from then on. */
struct link *link_next_report(struct link_set *set);

/* A connection, watched by `item`, has arrived and greeted, and brought the `memory` of a channel (-1: TCP).
 * If a link here expects it, it becomes a stream: then the socket is the link's (LINK_ADOPTED), else it
 * remains the caller's, as `memory` does in any case. `item` watches it no more, unless the answer is
 * LINK_NOT_YET. */
enum link_adoption {
    LINK_ADOPTED,
    LINK_NOT_YET, /* no link with this key, or nobody knows yet who we are: that may come */
    LINK_REFUSED, /* close it */
};
enum link_adoption link_adopt(struct link_set *set, const struct link_greeting *greeting,
                              struct poll_item *item, int memory);

/* What the poller has found about a stream. True if it has more to do at once. */
bool link_stream_ready(struct stream *stream);
/* Writes a batch of each link, and what that makes ready on others. */
void link_set_write(struct link_set *set);
/* A link that an epoch needs is not up yet, or not any more. */
bool link_set_is_building(const struct link_set *set);
/* Connections are to be made or taken, also for a link that is only tried. */
bool link_set_awaits_connections(const struct link_set *set);
/* Some neighbour is on this machine. */
bool link_set_is_local(const struct link_set *set);
/* There may be more to write at once. */
bool link_set_has_output(const struct link_set *set);
/* The other side may be waiting for a frame. */
void link_wants_write(struct link *link);

/* Takes the link down; the first reason counts. Returns false, for callers that return it. */
__attribute__((format(printf, 2, 3))) bool link_fail(struct link *link, const char *format, ...);

/* The connection of a stream is broken. A link that is being built tries again, one that is up fails.
 * Returns false, for callers that return it. */
bool link_stream_broken(struct stream *stream, const char *why);
/* How often this side wants to hear something. */
uint32_t link_heartbeat_ms(const struct link *link);
/* The other side wants to hear something every `interval_ms`. */
void link_ping_arrived(struct link *link, uint32_t interval_ms);

/* Timers: retries, heartbeats, silence. */
void link_set_tick(struct link_set *set, uint64_t now_ns);
uint64_t link_set_deadline(const struct link_set *set);

#endif
