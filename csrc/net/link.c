#define _GNU_SOURCE
#include "net/link.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/heartbeat.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/engine.h"
#include "net/socket.h"

/* The other side may not have heard of the link yet, so connecting is tried again until the build ends. */
static const uint64_t first_retry_ns = 20 * NS_PER_MS, last_retry_ns = 500 * NS_PER_MS;

static const char cant_connect[] = "can't connect to";

enum {
    /* The kernel says that it has room when less than half of this is waiting there: about a chunk. More
     * would bind chunks to a stream that can't carry them yet. */
    NOTSENT_LOWAT_BYTES = 512 * 1024,
    /* How many heartbeat intervals more than the timeout a link may be silent. */
    SILENCE_GRACE_HEARTBEATS = 2,
};

void link_set_init(struct link_set *set, struct poller *poller, struct engine *engine, uint64_t timeout_ns) {
    memset(set, 0, sizeof *set);
    set->poller = poller;
    set->engine = engine;
    set->timeout_ns = timeout_ns;
}

static void tear_down(struct link *link) {
    engine_forget_link(link->set->engine, link);
    for (uint16_t i = 0; link->streams != NULL && i < link->stream_count; i++) {
        stream_free(&link->streams[i]);
    }
    free(link->streams);
    memset(link, 0, sizeof *link);
}

void link_set_free(struct link_set *set) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        if (set->links[i].state != LINK_FREE) {
            tear_down(&set->links[i]);
        }
    }
}

void link_set_note_result(struct link_set *set, int result) {
    int shortage = descriptors_are_out(result) ? result : 0;
    if (shortage != 0 && set->shortage == 0) {
        set->shortage_since_ns = clock_now_ns();
    }
    set->shortage = shortage;
}

static struct link *find_key(struct link_set *set, const struct id *key) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        if (set->links[i].state != LINK_FREE && id_equal(&set->links[i].key, key)) {
            return &set->links[i];
        }
    }
    return NULL;
}

struct link *link_find(struct link_set *set, const struct id *key) {
    struct link *link = find_key(set, key);
    return link != NULL && link->state == LINK_UP ? link : NULL;
}

void link_close(struct link_set *set, const struct id *key) {
    struct link *link = find_key(set, key);
    if (link != NULL) {
        tear_down(link);
    }
}

bool link_fail(struct link *link, const char *format, ...) {
    if (link->state != LINK_BUILDING && link->state != LINK_UP) {
        return false;
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(link->reason, sizeof link->reason, format, arguments);
    va_end(arguments);
    link->state = LINK_DOWN;
    link->report = true;
    for (uint16_t i = 0; link->streams != NULL && i < link->stream_count; i++) {
        stream_close(&link->streams[i]);
    }
    return false;
}

struct link *link_next_report(struct link_set *set) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        if (set->links[i].report) {
            set->links[i].report = false;
            return &set->links[i];
        }
    }
    return NULL;
}

static uint64_t heartbeat_ns(const struct link_set *set) {
    return heartbeat_of(set->timeout_ns);
}

uint32_t link_heartbeat_ms(const struct link *link) {
    return (uint32_t)(heartbeat_ns(link->set) / NS_PER_MS);
}

void link_ping_arrived(struct link *link, uint32_t interval_ms) {
    uint64_t interval_ns = interval_ms * NS_PER_MS;
    uint64_t least_ns = MIN_TIMEOUT_MS / HEARTBEATS_PER_TIMEOUT * NS_PER_MS;
    interval_ns = interval_ns > least_ns ? interval_ns : least_ns;
    if (interval_ns < link->ping_interval_ns) {
        link->ping_interval_ns = interval_ns;
    }
}

void link_wants_write(struct link *link) {
    link->wants_write = true;
}

/* ---- building ---- */

static struct socket_options stream_options(const struct link_set *set) {
    return (struct socket_options){.user_timeout_ms = (uint32_t)(set->timeout_ns / NS_PER_MS),
                                   .notsent_lowat_bytes = NOTSENT_LOWAT_BYTES};
}

/* With the `memory` of a channel, unless that is -1. */
static bool send_greeting(const struct stream *stream, int fd, int memory) {
    const struct link *link = stream->link;
    struct link_greeting greeting = {.run = link->set->run,
                                     .key = link->key,
                                     .from = link->set->self,
                                     .to = link->member.id,
                                     .stream = stream->index,
                                     .streams = link->stream_count};
    uint8_t bytes[LINK_GREETING_BYTES];
    link_greeting_encode(&greeting, bytes);
    /* The socket is new: its buffer takes so few bytes, or the connection is broken. */
    ssize_t sent = memory >= 0 ? socket_send_descriptor(fd, bytes, sizeof bytes, memory)
                               : send(fd, bytes, sizeof bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent == (ssize_t)sizeof bytes;
}

static void stream_is_open(struct stream *stream) {
    struct link *link = stream->link;
    stream->state = STREAM_OPEN;
    if (stream->channel.memory != NULL) {
        stream_look_at_channel(stream);
    }
    link->last_heard_ns = clock_now_ns();
    link->suspect = false;
    link->open_streams++;
    if (link->open_streams == link->stream_count && link->state == LINK_BUILDING) {
        link->last_sent_ns = link->last_heard_ns;
        link->state = LINK_UP;
        link->rtt_us = socket_rtt_us(stream->item.fd);
        link->is_local = socket_is_local(stream->item.fd);
        link->report = true;
        link->ping_due = true; /* tells the other side how often we want to hear from it */
        link->wants_write = true;
    }
}

/* Remembers why, in case that there is no time left to succeed. */
static void retry_later(struct stream *stream, const char *what, const char *why) {
    struct link *link = stream->link;
    char address[ADDRESS_TEXT_BYTES];
    snprintf(link->reason, sizeof link->reason, "stream %u of %u: %s %s: %s", stream->index + 1u,
             (unsigned)link->stream_count, what, address_text(&link->member.address, address), why);
    if (stream->state == STREAM_OPEN) {
        link->open_streams--;
    }
    link->avoids_memory = link->avoids_memory || stream->channel.memory != NULL;
    stream_close(stream);
    if (!link->opener) {
        return; /* the other side will try again */
    }
    stream->state = STREAM_WAITING;
    stream->retry_ns = clock_now_ns() + stream->retry_after_ns;
    stream->retry_after_ns *= 2;
    if (stream->retry_after_ns > last_retry_ns) {
        stream->retry_after_ns = last_retry_ns;
    }
}

bool link_stream_broken(struct stream *stream, const char *why) {
    struct link *link = stream->link;
    if (link->state == LINK_BUILDING) {
        retry_later(stream, "lost", why);
        return false;
    }
    return link_fail(link, "stream %u of %u: %s", stream->index + 1u, (unsigned)link->stream_count, why);
}

/* The connection is there, or it is not to be had. */
static bool connect_in_memory(struct stream *stream) {
    struct link *link = stream->link;
    const struct address *address = &link->member.address;
    if (link->set->tcp_only || link->avoids_memory || !socket_is_own_address(address)) {
        return false;
    }
    int fd = socket_connect_local(address->port);
    int memory = fd >= 0 ? channel_create(&stream->channel, fd) : -1;
    bool good = memory >= 0 && send_greeting(stream, fd, memory) &&
                poller_add(link->set->poller, &stream->item, fd, POLL_EDGE) == 0;
    if (memory >= 0) {
        descriptor_close(memory);
    }
    if (good) {
        stream->state = STREAM_GREETING;
        stream->retry_ns = clock_now_ns() + link->set->timeout_ns / 2;
        return true;
    }
    channel_close(&stream->channel);
    if (fd >= 0) {
        descriptor_close(fd);
    }
    return false;
}

static void connect_stream(struct stream *stream) {
    struct link *link = stream->link;
    if (connect_in_memory(stream)) {
        return;
    }
    struct socket_options options = stream_options(link->set);
    int fd = socket_connect(&link->member.address, &options);
    link_set_note_result(link->set, fd);
    if (fd < 0) {
        char text[DESCRIPTORS_TEXT_BYTES];
        retry_later(stream, cant_connect, descriptors_error_text(fd, text));
        return;
    }
    int error = poller_add(link->set->poller, &stream->item, fd, POLL_EDGE);
    if (error != 0) {
        descriptor_close(fd);
        retry_later(stream, cant_connect, strerror(-error));
        return;
    }
    stream->state = STREAM_CONNECTING;
}

static void connect_ended(struct stream *stream) {
    int error = socket_connect_result(stream->item.fd);
    if (error == -EINPROGRESS) {
        stream->item.writable = false;
        return;
    }
    if (error != 0 || !send_greeting(stream, stream->item.fd, -1)) {
        retry_later(stream, cant_connect, error != 0 ? strerror(-error) : "it was closed at once");
        return;
    }
    stream->state = STREAM_GREETING;
}

static bool greeting_answers(const struct stream *stream, const struct link_greeting *greeting) {
    const struct link *link = stream->link;
    return id_equal(&greeting->run, &link->set->run) && id_equal(&greeting->key, &link->key) &&
           id_equal(&greeting->from, &link->member.id) && id_equal(&greeting->to, &link->set->self) &&
           greeting->stream == stream->index && greeting->streams == link->stream_count;
}

/* The opener waits for the acceptor's greeting. True if frames may have come behind it. */
static bool read_answer(struct stream *stream) {
    struct stream_in *in = &stream->in;
    ssize_t size = recv(stream->item.fd, in->staging + in->end, LINK_GREETING_BYTES - in->end, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        stream->item.readable = errno == EINTR;
        return false;
    }
    if (size <= 0) {
        retry_later(stream, "no answer from", size < 0 ? strerror(errno) : "it was closed at once");
        return false;
    }
    in->end += (uint32_t)size;
    if (in->end < LINK_GREETING_BYTES) {
        return true;
    }
    struct link_greeting greeting;
    if (!link_greeting_decode(in->staging, &greeting) || !greeting_answers(stream, &greeting)) {
        if (stream->channel.memory != NULL) { /* who has this name need not be who has the address */
            retry_later(stream, "a wrong answer from", "it is somebody else");
            return false;
        }
        char address[ADDRESS_TEXT_BYTES];
        return link_fail(stream->link, "who listens at %s is somebody else",
                         address_text(&stream->link->member.address, address));
    }
    in->end = 0;
    stream_is_open(stream);
    return true;
}

static struct link *vacant(struct link_set *set) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        if (set->links[i].state == LINK_FREE) {
            return &set->links[i];
        }
    }
    return NULL;
}

void link_build(struct link_set *set, const struct link_plan *plan, const struct member *member, bool probe) {
    struct link *link = vacant(set);
    CHECK(link != NULL && plan->streams >= 1 && plan->streams <= MAX_STREAMS);
    *link = (struct link){.state = LINK_BUILDING,
                          .set = set,
                          .key = plan->key,
                          .member = *member,
                          .opener = plan->opener,
                          .probe = probe,
                          .stream_count = plan->streams,
                          .build_deadline_ns = clock_now_ns() + set->timeout_ns,
                          .ping_interval_ns = heartbeat_ns(set),
                          .eager_left = EAGER_WINDOW_BYTES};
    list_init(&link->held);
    list_init(&link->ready);
    list_init(&link->starved);
    list_init(&link->granting);
    link->streams = calloc(plan->streams, sizeof link->streams[0]);
    if (link->streams == NULL) {
        link_fail(link, "out of memory");
        return;
    }
    for (uint16_t i = 0; i < plan->streams; i++) {
        stream_init(&link->streams[i], link, i);
        link->streams[i].retry_after_ns = first_retry_ns;
    }
    for (uint16_t i = 0; plan->opener && i < plan->streams; i++) {
        connect_stream(&link->streams[i]);
    }
}

/* The stream that `greeting` names, if it is one that a link waits for. */
static struct stream *expected_stream(struct link *link, const struct link_greeting *greeting) {
    if (link->state != LINK_BUILDING || link->opener || !id_equal(&greeting->from, &link->member.id) ||
        greeting->streams != link->stream_count || greeting->stream >= link->stream_count) {
        return NULL;
    }
    struct stream *stream = &link->streams[greeting->stream];
    if (stream->state == STREAM_OPEN) { /* the opener has given the former one up */
        stream_close(stream);
        link->open_streams--;
    }
    return stream;
}

/* Of an accepted connection, before it is greeted. */
static bool prepare(struct stream *stream, int fd, int memory) {
    struct socket_options options = stream_options(stream->link->set);
    return memory >= 0 ? channel_open(&stream->channel, fd, memory) == 0
                       : socket_set_options(fd, &options) == 0;
}

enum link_adoption link_adopt(struct link_set *set, const struct link_greeting *greeting,
                              struct poll_item *item, int memory) {
    bool ours = id_equal(&greeting->run, &set->run) && id_equal(&greeting->to, &set->self);
    struct link *link = ours ? find_key(set, &greeting->key) : NULL;
    if (link == NULL && (ours || id_is_zero(&set->self))) {
        return LINK_NOT_YET;
    }
    int fd = item->fd;
    poller_remove(set->poller, item);
    struct stream *stream = link != NULL ? expected_stream(link, greeting) : NULL;
    if (stream == NULL) {
        return LINK_REFUSED;
    }
    if (!prepare(stream, fd, memory) || !send_greeting(stream, fd, -1) ||
        poller_add(set->poller, &stream->item, fd, POLL_EDGE) != 0) {
        channel_close(&stream->channel);
        return LINK_REFUSED;
    }
    stream_is_open(stream);
    return LINK_ADOPTED;
}

/* ---- running ---- */

bool link_stream_ready(struct stream *stream) {
    struct poll_item *item = &stream->item;
    if (stream->state == STREAM_CONNECTING && (item->writable || item->hangup)) {
        connect_ended(stream);
    }
    if (stream->state == STREAM_GREETING && item->readable) {
        return read_answer(stream);
    }
    if (stream->state == STREAM_OPEN) {
        if (item->writable) {
            stream->link->wants_write = true;
        }
        if (item->readable) {
            return stream_read(stream) && item->readable;
        }
    }
    return false;
}

static bool has_output(const struct link *link, const struct stream *stream) {
    return stream->state == STREAM_OPEN && stream->item.writable &&
           (stream->out.count > 0 || engine_has_output(link));
}

/* One stream writes one batch, the next one in turn that can. Returns whether there is more to write. */
static bool write_link(struct link *link) {
    bool written = false;
    for (uint16_t i = 0; i < link->stream_count; i++) {
        struct stream *stream = &link->streams[link->turn];
        if (has_output(link, stream)) {
            if (written) {
                return true;
            }
            if (!stream_write(stream)) {
                return false;
            }
            written = true;
        }
        link->turn = (uint16_t)((link->turn + 1) % link->stream_count);
    }
    for (uint16_t i = 0; i < link->stream_count; i++) {
        if (has_output(link, &link->streams[i])) {
            return true;
        }
    }
    return false;
}

/* An op sends its chunks one after the other: what one link has sent may give another, that had nothing left,
 * something to write. A small op is out after as many passes as there are edges. What is left waits for the
 * next turn, as does who has more than a batch: between two reads so little keeps what waits in the kernel
 * short, and in the caches. */
void link_set_write(struct link_set *set) {
    bool has_more[MAX_HELD_LINKS] = {false};
    bool tried = true;
    for (int pass = 0; tried && pass < MAX_EDGES; pass++) {
        tried = false;
        for (int i = 0; i < MAX_HELD_LINKS; i++) {
            struct link *link = &set->links[i];
            if (!has_more[i] && link->state == LINK_UP && link->wants_write) {
                link->wants_write = has_more[i] = write_link(link);
                tried = true;
            }
        }
    }
}

bool link_set_is_building(const struct link_set *set) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        const struct link *link = &set->links[i];
        if (link->state != LINK_FREE && link->state != LINK_UP && !link->probe) {
            return true;
        }
    }
    return false;
}

bool link_set_awaits_connections(const struct link_set *set) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        if (set->links[i].state == LINK_BUILDING) {
            return true;
        }
    }
    return false;
}

bool link_set_is_local(const struct link_set *set) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        if (set->links[i].state == LINK_UP && set->links[i].is_local) {
            return true;
        }
    }
    return false;
}

bool link_set_has_output(const struct link_set *set) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        if (set->links[i].state == LINK_UP && set->links[i].wants_write) {
            return true;
        }
    }
    return false;
}

/* ---- watching ---- */

static uint64_t silence_ns(const struct link_set *set) {
    return set->timeout_ns + SILENCE_GRACE_HEARTBEATS * heartbeat_ns(set);
}

/* At its retry_ns. Of those that wait for an answer only who may still have it over TCP. */
static bool is_to_retry(const struct stream *stream) {
    return stream->state == STREAM_WAITING ||
           (stream->state == STREAM_GREETING && stream->channel.memory != NULL);
}

static void tick_building(struct link *link, uint64_t now_ns) {
    double seconds = (double)link->set->timeout_ns / 1e9;
    if (now_ns >= link->build_deadline_ns) {
        char last[MAX_REASON_BYTES / 2]; /* a copy: link_fail() writes to `reason` */
        snprintf(last, sizeof last, "%.*s", (int)sizeof last - 1, link->reason);
        if (!link->opener) {
            link_fail(link, "%u of %u streams came within %.1f s", (unsigned)link->open_streams,
                      (unsigned)link->stream_count, seconds);
        } else {
            char address[ADDRESS_TEXT_BYTES];
            link_fail(link, "%u of %u streams to %s could be made within %.1f s%s%s",
                      (unsigned)link->open_streams, (unsigned)link->stream_count,
                      address_text(&link->member.address, address), seconds, last[0] == '\0' ? "" : "; ",
                      last);
        }
        return;
    }
    for (uint16_t i = 0; i < link->stream_count; i++) {
        struct stream *stream = &link->streams[i];
        if (!is_to_retry(stream) || now_ns < stream->retry_ns) {
            continue;
        }
        if (stream->state == STREAM_GREETING) {
            retry_later(stream, "no answer from", "its local socket is silent");
        } else {
            connect_stream(stream);
        }
    }
}

static void tick_up(struct link *link, uint64_t now_ns) {
    if (now_ns >= link->last_sent_ns + link->ping_interval_ns) {
        link->ping_due = true;
        link->wants_write = true;
        link->last_sent_ns = now_ns; /* once per interval, even if no stream takes it */
    }
    if (now_ns >= link->last_heard_ns + silence_ns(link->set)) {
        if (link->suspect) {
            link_fail(link, "silent for %.1f s", (double)(now_ns - link->last_heard_ns) / 1e9);
        }
        /* This process may have stood still itself: what has arrived meanwhile is read first. */
        link->suspect = true;
    }
}

void link_set_tick(struct link_set *set, uint64_t now_ns) {
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        struct link *link = &set->links[i];
        if (link->state == LINK_BUILDING) {
            tick_building(link, now_ns);
        } else if (link->state == LINK_UP) {
            tick_up(link, now_ns);
        }
    }
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

uint64_t link_set_deadline(const struct link_set *set) {
    uint64_t deadline = UINT64_MAX;
    for (int i = 0; i < MAX_HELD_LINKS; i++) {
        const struct link *link = &set->links[i];
        if (link->state == LINK_UP) {
            deadline = earlier(deadline, link->last_sent_ns + link->ping_interval_ns);
            deadline = earlier(deadline, link->last_heard_ns + silence_ns(set));
        } else if (link->state == LINK_BUILDING) {
            deadline = earlier(deadline, link->build_deadline_ns);
            for (uint16_t s = 0; s < link->stream_count; s++) {
                if (is_to_retry(&link->streams[s])) {
                    deadline = earlier(deadline, link->streams[s].retry_ns);
                }
            }
        }
    }
    return deadline;
}
