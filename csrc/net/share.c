#define _GNU_SOURCE
#include "net/share.h"

#include "net/clock.h"
#include "net/cores.h"
#include "net/engine.h"
#include "net/stream.h"

/* Load and cores are looked up again after so long. */
static const uint64_t decision_ns = NS_PER_S;

struct share {
    struct stream *stream;
    const uint8_t *place; /* of a chunk that is arriving; NULL: the share is the stream's way out */
};

/* Of one turn. */
struct shares {
    struct share all[MAX_SHARES];
    uint32_t count;
};

static void do_share(void *argument) {
    const struct share *share = argument;
    if (share->place != NULL) {
        stream_read_share(share->stream);
    } else {
        stream_write_share(share->stream);
    }
}

void sharing_init(struct sharing *sharing, uint32_t threads) {
    sharing->asked = threads;
    sharing->decide_next_ns = 0;
    data_threads_init(&sharing->crew, do_share);
}

void sharing_free(struct sharing *sharing) {
    data_threads_free(&sharing->crew);
}

/* ---- how many threads ---- */

uint32_t sharing_threads(struct sharing *sharing, const struct link_set *links, uint32_t world) {
    uint64_t now_ns = clock_now_ns();
    if (now_ns >= sharing->decide_next_ns) {
        sharing->decide_next_ns = now_ns + decision_ns;
        /* If a neighbour is on this machine all may be: nobody here knows where the others are. */
        uint32_t peers_here = link_set_is_local(links) ? world : 1;
        sharing->crew.threads = sharing->asked > 0 ? sharing->asked : cores_best_threads_now(peers_here);
    }
    return sharing->crew.threads;
}

/* ---- dealing out ---- */

static void add(struct shares *shares, struct stream *stream, const uint8_t *place) {
    if (shares->count < MAX_SHARES) {
        shares->all[shares->count++] = (struct share){stream, place};
    }
}

/* Large batches become shares, small ones are written. */
static void collect_output(struct shares *shares, struct link *link) {
    for (uint16_t i = 0; i < link->stream_count && link->state == LINK_UP; i++) {
        struct stream *stream = &link->streams[i];
        if (!stream_write_begin(stream)) {
            continue;
        }
        if (stream->out.bytes - stream->out.sent >= SHARED_CHUNK_BYTES) {
            add(shares, stream, NULL);
        } else {
            stream_write(stream);
        }
    }
}

/* There is enough for it in the socket. Where a network delivers little at a time, one thread has time. */
static bool is_worth_it(const struct stream *stream) {
    uint32_t left = stream->in.frame.payload_bytes - stream->in.received;
    return stream->in.frame.payload_bytes >= SHARED_CHUNK_BYTES &&
           stream_waiting(stream) >= (left < SHARED_CHUNK_BYTES ? left : SHARED_CHUNK_BYTES);
}

/* No two shares of a turn may touch the same bytes. From peers that follow the protocol none do: a chunk
 * comes back around the ring only after it has been sent from here. */
static bool is_touched(const struct shares *shares, const uint8_t *place) {
    for (uint32_t i = 0; i < shares->count; i++) {
        const struct share *share = &shares->all[i];
        const struct stream_out *out = &share->stream->out;
        if (share->place == place) {
            return true;
        }
        for (uint32_t k = 0; share->place == NULL && k < out->count; k++) {
            if (out->frames[k].payload == place) {
                return true;
            }
        }
    }
    return false;
}

static void collect_input(struct shares *shares, struct stream *stream) {
    const uint8_t *place = NULL;
    if (stream->state == STREAM_OPEN && stream->item.readable) {
        place = engine_arrival_place(stream->link->set->engine, stream);
    }
    if (place != NULL && is_worth_it(stream) && !is_touched(shares, place)) {
        add(shares, stream, place);
    }
}

/* The streams among the hot items that may bring data. */
static uint32_t find_streams(struct list *hot, struct stream **streams) {
    uint32_t count = 0;
    for (struct list *node = hot->next; node != hot && count < MAX_SHARES; node = node->next) {
        struct poll_item *item = LIST_ENTRY(node, struct poll_item, hot);
        if (item->kind == PEER_ITEM_STREAM) {
            struct stream *stream = LIST_ENTRY(item, struct stream, item);
            if (stream->state == STREAM_OPEN && stream->link->state == LINK_UP) {
                streams[count++] = stream;
            }
        }
    }
    return count;
}

/* A link that fails closes its streams, also those that are among the shares. */
static void drop_closed(struct shares *shares) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < shares->count; i++) {
        if (shares->all[i].stream->state == STREAM_OPEN) {
            shares->all[kept++] = shares->all[i];
        }
    }
    shares->count = kept;
}

static void collect(struct shares *shares, struct link_set *links, struct list *hot) {
    struct stream *streams[MAX_SHARES];
    uint32_t count = find_streams(hot, streams);
    for (uint32_t i = 0; i < count; i++) {
        struct stream *stream = streams[i];
        if (stream->state == STREAM_OPEN) {
            stream->link->wants_write = stream->link->wants_write || stream->item.writable;
            stream_read_begin(stream);
        }
    }
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        if (links->links[i].state == LINK_UP && links->links[i].wants_write) {
            collect_output(shares, &links->links[i]);
        }
    }
    drop_closed(shares);
    for (uint32_t i = 0; i < count; i++) {
        collect_input(shares, streams[i]);
    }
}

/* ---- a turn ---- */

static void end_share(struct link_set *links, const struct share *share) {
    struct stream *stream = share->stream;
    if (stream->state != STREAM_OPEN) {
        return; /* its link has failed with another share */
    }
    if (share->place == NULL) {
        stream_write_end(stream);
        return;
    }
    list_remove(&stream->item.hot);
    if (stream_read_end(stream) && stream->item.readable) {
        poller_heat(links->poller, &stream->item);
    }
}

bool sharing_turn(struct sharing *sharing, struct link_set *links, struct list *hot) {
    struct shares shares;
    shares.count = 0;
    collect(&shares, links, hot);
    if (shares.count < 2) {
        return false;
    }
    void *pointers[MAX_SHARES];
    for (uint32_t i = 0; i < shares.count; i++) {
        pointers[i] = &shares.all[i];
    }
    data_threads_run(&sharing->crew, pointers, shares.count);
    for (uint32_t i = 0; i < shares.count; i++) {
        end_share(links, &shares.all[i]);
    }
    return true;
}
