#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/address.h"
#include "base/check.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/socket.h"
#include "net/state_fetcher.h"

enum {
    RECEIVE_PIECES = 64,
    RECEIVE_BYTES = 512 * 1024,   /* at a time: a leaf is hashed while it is in the processor's cache */
    TURN_BYTES = 2 * 1024 * 1024, /* then the next stream has its turn */
};

static const uint64_t MAX_KEYS_BYTES = UINT64_C(1) << 32;
static const uint64_t first_retry_ns = 20 * NS_PER_MS, longest_retry_ns = NS_PER_S;

void fetch_stream_init(struct fetch_stream *stream, struct state_fetcher *fetcher) {
    *stream = (struct fetch_stream){.fetcher = fetcher};
    poll_item_init(&stream->item, STATE_ITEM_STREAM);
}

/* ---- opening and closing ---- */

static void blame(struct state_fetcher *fetcher, struct state_source *source, const char *why) {
    uint32_t doublings = source->failures < 6 ? source->failures : 6;
    uint64_t wait_ns = first_retry_ns << doublings;
    source->failures++;
    source->retry_ns = clock_now_ns() + (wait_ns < longest_retry_ns ? wait_ns : longest_retry_ns);
    char address[ADDRESS_TEXT_BYTES];
    snprintf(fetcher->trouble, sizeof fetcher->trouble, "peer %s at %s: %s", source->label,
             address_text(&source->member.address, address), why);
}

/* What was asked and has not come is wanted again. The leaf that was being written is hashed, so that the
 * table goes on to tell what is in memory. */
static void give_asks_back(struct fetch_stream *stream) {
    struct state_fetcher *fetcher = stream->fetcher;
    for (uint32_t i = 0; i < stream->ask_count; i++) {
        const struct state_header *ask = &stream->asks[(stream->first_ask + i) % MAX_ASKS];
        if (ask->subject == STATE_LEAVES) {
            bool current = i == 0 && stream->answering;
            state_fetcher_give_back(fetcher, current ? stream->next : ask->first, ask->first + ask->count);
            if (current && stream->offset > 0) {
                state_table_rehash(fetcher->table, stream->next, &stream->tensor);
            }
        }
    }
    state_fetcher_wake(fetcher);
}

void fetch_stream_close(struct fetch_stream *stream, const char *why) {
    struct state_fetcher *fetcher = stream->fetcher;
    if (stream->phase == FETCH_STREAM_FREE) {
        return;
    }
    struct state_source *source = &fetcher->sources[stream->source];
    int fd = stream->item.fd;
    if (fd >= 0) {
        poller_remove(fetcher->poller, &stream->item);
        descriptor_close(fd);
    }
    stream->phase = FETCH_STREAM_FREE; /* what is given back is not for this one */
    give_asks_back(stream);
    source->streams--;
    if (why != NULL) {
        source->wants_call = source->wants_call || (stream->dialled && !source->reached);
        blame(fetcher, source, why);
    }
    fetch_stream_init(stream, fetcher);
}

static void begin(struct fetch_stream *stream, uint16_t source, enum stream_phase phase) {
    stream->phase = (uint8_t)phase;
    stream->dialled = phase == FETCH_STREAM_CONNECTING;
    stream->source = source;
    stream->heard_ns = clock_now_ns();
    stream->mark_ns = stream->heard_ns;
    stream->fetcher->sources[source].streams++;
}

void fetch_stream_adopt(struct fetch_stream *stream, uint16_t source, int fd) {
    struct state_fetcher *fetcher = stream->fetcher;
    struct socket_options options = {.user_timeout_ms = (uint32_t)(fetcher->timeout_ns / NS_PER_MS)};
    if (socket_set_options(fd, &options) != 0 ||
        poller_add(fetcher->poller, &stream->item, fd, POLL_EDGE) != 0) {
        descriptor_close(fd);
        return;
    }
    begin(stream, source, FETCH_STREAM_OPEN);
    poller_heat(fetcher->poller, &stream->item);
}

void fetch_stream_open(struct fetch_stream *stream, uint16_t source) {
    struct state_fetcher *fetcher = stream->fetcher;
    const struct member *member = &fetcher->sources[source].member;
    struct socket_options options = {.user_timeout_ms = (uint32_t)(fetcher->timeout_ns / NS_PER_MS)};
    begin(stream, source, FETCH_STREAM_CONNECTING);
    int fd = socket_connect(&member->address, &options);
    if (fd < 0) {
        char text[DESCRIPTORS_TEXT_BYTES];
        fetch_stream_close(stream, descriptors_error_text(fd, text));
        return;
    }
    int error = poller_add(fetcher->poller, &stream->item, fd, POLL_EDGE);
    if (error != 0) {
        descriptor_close(fd);
        fetch_stream_close(stream, strerror(-error));
        return;
    }
    struct link_greeting greeting = {.run = fetcher->run,
                                     .key = fetcher->plan.key,
                                     .from = fetcher->self,
                                     .to = member->id,
                                     .stream = 0,
                                     .streams = 1};
    link_greeting_encode(&greeting, stream->out);
    stream->out_end = LINK_GREETING_BYTES;
}

/* ---- questions ---- */

static bool next_ask(struct fetch_stream *stream, struct state_header *ask) {
    if (stream->disputes) {
        stream->disputes = false;
        *ask = (struct state_header){.subject = STATE_DISPUTE, .first = stream->disputed, .count = 1};
        return true;
    }
    return state_fetcher_next_ask(stream->fetcher, stream, ask);
}

static void add_asks(struct fetch_stream *stream) {
    struct state_header ask;
    while (stream->phase == FETCH_STREAM_OPEN && stream->ask_count < MAX_ASKS && next_ask(stream, &ask)) {
        if (stream->ask_count == 0) {
            stream->heard_ns = clock_now_ns();
            stream->mark_ns = stream->heard_ns;
            stream->mark_bytes = 0;
        }
        stream->asks[(stream->first_ask + stream->ask_count++) % MAX_ASKS] = ask;
        memmove(stream->out, stream->out + stream->out_begin, stream->out_end - stream->out_begin);
        stream->out_end -= stream->out_begin;
        stream->out_begin = 0;
        state_header_encode(&ask, stream->out + stream->out_end);
        stream->out_end += STATE_HEADER_BYTES;
    }
}

/* Each false if the stream is closed. */
static bool write_out(struct fetch_stream *stream) {
    while (stream->item.writable && stream->out_begin < stream->out_end) {
        ssize_t size = send(stream->item.fd, stream->out + stream->out_begin,
                            stream->out_end - stream->out_begin, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (size >= 0) {
            stream->out_begin += (uint32_t)size;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            stream->item.writable = false;
        } else if (errno != EINTR) {
            fetch_stream_close(stream, strerror(errno));
            return false;
        }
    }
    return true;
}

/* ---- answers ---- */

static struct state_header *current_ask(struct fetch_stream *stream) {
    return &stream->asks[stream->first_ask];
}

static void end_answer(struct fetch_stream *stream) {
    stream->mark_bytes = SLOW_BYTES; /* that counts, be it ever so short */
    stream->answering = false;
    stream->header_bytes = 0;
    stream->first_ask = (stream->first_ask + 1) % MAX_ASKS;
    stream->ask_count--;
}

static bool is_answer(struct fetch_stream *stream, const struct state_header *answer) {
    const struct state_header *ask = current_ask(stream);
    if (answer->subject != ask->subject || answer->first != ask->first || answer->count != ask->count) {
        return false;
    }
    switch (answer->subject) {
    case STATE_KEYS:
        return answer->bytes <= MAX_KEYS_BYTES;
    case STATE_DISPUTE:
        return answer->bytes == 0;
    case STATE_HASHES:
        return answer->bytes == (uint64_t)answer->count * STATE_HASH_BYTES;
    default:
        return answer->bytes == state_table_bytes(stream->fetcher->table, answer->first, answer->count);
    }
}

static bool take_header(struct fetch_stream *stream) {
    struct state_header answer;
    if (stream->ask_count == 0 || !state_header_decode(stream->header, &answer) ||
        !is_answer(stream, &answer)) {
        fetch_stream_close(stream, "it answers what was not asked");
        return false;
    }
    struct state_source *source = &stream->fetcher->sources[stream->source];
    source->reached = source->reached || stream->dialled;
    stream->answering = true;
    stream->left = answer.bytes;
    stream->next = answer.first;
    stream->offset = 0;
    if (stream->left == 0) {
        end_answer(stream);
    }
    return true;
}

/* Where the next bytes go. Returns the number of pieces. */
static int gather(struct fetch_stream *stream, struct iovec pieces[RECEIVE_PIECES]) {
    struct state_fetcher *fetcher = stream->fetcher;
    if (!stream->answering) {
        pieces[0] = (struct iovec){.iov_base = stream->header + stream->header_bytes,
                                   .iov_len = STATE_HEADER_BYTES - stream->header_bytes};
        return 1;
    }
    const struct state_header *ask = current_ask(stream);
    size_t size = 0;
    if (ask->subject == STATE_KEYS) {
        uint8_t *room = state_compare_room(&fetcher->compare, &size);
        pieces[0] = (struct iovec){.iov_base = room, .iov_len = stream->left < size ? stream->left : size};
        return 1;
    }
    if (ask->subject == STATE_HASHES) {
        uint8_t *bytes = (uint8_t *)fetcher->elected;
        size_t from = (size_t)(ask->count * (uint64_t)STATE_HASH_BYTES - stream->left);
        pieces[0] = (struct iovec){.iov_base = bytes + from, .iov_len = stream->left};
        return 1;
    }
    int count = 0;
    size_t tensor = stream->tensor, room = RECEIVE_BYTES;
    for (uint64_t leaf = stream->next; leaf < ask->first + ask->count && count < RECEIVE_PIECES && room > 0;
         leaf++) {
        struct state_leaf place = state_table_leaf(fetcher->table, leaf, &tensor);
        size_t from = leaf == stream->next ? stream->offset : 0;
        size_t bytes = place.size - from < room ? place.size - from : room;
        pieces[count++] = (struct iovec){.iov_base = place.bytes + from, .iov_len = bytes};
        room -= bytes;
    }
    return count;
}

static bool take_leaves(struct fetch_stream *stream, size_t size) {
    struct state_fetcher *fetcher = stream->fetcher;
    fetcher->rx_bytes += size;
    stream->offset += size;
    for (;;) {
        uint64_t end = current_ask(stream)->first + current_ask(stream)->count;
        struct state_leaf place = {0};
        if (stream->next < end) {
            place = state_table_leaf(fetcher->table, stream->next, &stream->tensor);
        }
        if (stream->next == end || stream->offset < place.size) {
            return true;
        }
        stream->offset -= place.size;
        uint64_t leaf = stream->next++;
        state_fetcher_take_leaf(fetcher, stream, leaf);
        if (fetcher->stage != FETCH_LEAVES) {
            return false; /* it is over, and all streams are closed */
        }
    }
}

/* `size` bytes of what gather() has named have come. False if the stream is closed. */
static bool take(struct fetch_stream *stream, size_t size) {
    struct state_fetcher *fetcher = stream->fetcher;
    if (!stream->answering) {
        stream->header_bytes += (uint32_t)size;
        return stream->header_bytes < STATE_HEADER_BYTES || take_header(stream);
    }
    uint8_t subject = current_ask(stream)->subject;
    stream->left -= size;
    if (subject == STATE_LEAVES && !take_leaves(stream, size)) {
        return false;
    }
    if (subject == STATE_KEYS) {
        bool good = state_compare_take(&fetcher->compare, size);
        if (good && (stream->left == 0 || state_compare_is_full(&fetcher->compare))) {
            good = state_compare_end(&fetcher->compare) || stream->left > 0;
            if (good) {
                state_fetcher_take_keys(fetcher);
                return false;
            }
        }
        if (!good) {
            fetch_stream_close(stream, "its list of tensors is broken");
            return false;
        }
    }
    if (stream->left > 0) {
        return true;
    }
    end_answer(stream);
    if (subject == STATE_HASHES && !state_fetcher_take_hashes(fetcher)) {
        fetch_stream_close(stream, "its hashes are not those of the elected state");
        return false;
    }
    return fetcher->stage != FETCH_FAILED && fetcher->stage != FETCH_DONE;
}

static bool read_in(struct fetch_stream *stream) {
    size_t taken = 0;
    while (stream->item.readable && taken < TURN_BYTES) {
        struct iovec pieces[RECEIVE_PIECES];
        struct msghdr message = {.msg_iov = pieces};
        message.msg_iovlen = (size_t)gather(stream, pieces);
        ssize_t size = recvmsg(stream->item.fd, &message, MSG_DONTWAIT);
        if (size > 0) {
            taken += (size_t)size;
            stream->mark_bytes += (size_t)size;
            state_fetcher_moved(stream->fetcher, (uint64_t)size);
            if (!take(stream, (size_t)size)) {
                return false;
            }
            add_asks(stream); /* before the last question is answered in full */
        } else if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            stream->item.readable = false;
        } else if (size == 0 || errno != EINTR) {
            fetch_stream_close(stream, size == 0 ? "it has closed the connection" : strerror(errno));
            return false;
        }
    }
    if (taken > 0) {
        stream->heard_ns = clock_now_ns();
        if (stream->mark_bytes >= SLOW_BYTES) {
            stream->mark_ns = stream->heard_ns;
            stream->mark_bytes = 0;
        }
    }
    return true;
}

static bool has_connected(struct fetch_stream *stream) {
    if (!stream->item.writable) {
        return false;
    }
    int error = socket_connect_result(stream->item.fd);
    if (error == -EINPROGRESS) {
        return false;
    }
    if (error != 0) {
        fetch_stream_close(stream, strerror(-error));
        return false;
    }
    stream->phase = FETCH_STREAM_OPEN;
    return true;
}

void fetch_stream_work(struct fetch_stream *stream) {
    if (stream->phase == FETCH_STREAM_CONNECTING && !has_connected(stream)) {
        return;
    }
    add_asks(stream);
    if (!write_out(stream) || !read_in(stream) || !write_out(stream)) {
        return;
    }
    if (stream->item.readable || (stream->item.writable && stream->out_begin < stream->out_end)) {
        poller_heat(stream->fetcher->poller, &stream->item);
    }
}
