#define _GNU_SOURCE
#include "net/state_holder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "net/clock.h"
#include "net/descriptors.h"
#include "net/socket.h"

enum {
    SEND_PIECES = 64,
    SEND_BYTES = 512 * 1024, /* of one call of the system */
    SENDS_PER_TURN = 4,      /* then the next visitor has its turn */
};

void state_holder_init(struct state_holder *holder, struct poller *poller, const struct state_table *table,
                       uint32_t timeout_ms) {
    *holder = (struct state_holder){.poller = poller, .table = table, .timeout_ms = timeout_ms};
    list_init(&holder->visitors);
}

static void part(struct state_holder *holder, struct state_visitor *visitor) {
    int fd = visitor->item.fd;
    poller_remove(holder->poller, &visitor->item);
    descriptor_close(fd);
    list_remove(&visitor->node);
    holder->visitor_count--;
    free(visitor);
}

void state_holder_close(struct state_holder *holder) {
    while (!list_is_empty(&holder->visitors)) {
        part(holder, LIST_ENTRY(holder->visitors.next, struct state_visitor, node));
    }
}

static uint32_t count_of(const struct state_holder *holder, const struct id *peer) {
    uint32_t count = 0;
    for (struct list *node = holder->visitors.next; node != &holder->visitors; node = node->next) {
        count += id_equal(&LIST_ENTRY(node, struct state_visitor, node)->peer, peer);
    }
    return count;
}

/* False if all are at work. */
static bool make_room(struct state_holder *holder) {
    struct state_visitor *oldest = NULL;
    for (struct list *node = holder->visitors.next; node != &holder->visitors; node = node->next) {
        struct state_visitor *visitor = LIST_ENTRY(node, struct state_visitor, node);
        if (visitor->question_count == 0 && (oldest == NULL || visitor->active_ns < oldest->active_ns)) {
            oldest = visitor;
        }
    }
    if (oldest == NULL || clock_now_ns() - oldest->active_ns < holder->timeout_ms * NS_PER_MS / 4) {
        return false;
    }
    part(holder, oldest);
    return true;
}

/* NULL if there is no room for it; then the socket is closed, and the peer will come again. */
static struct state_visitor *add_visitor(struct state_holder *holder, int fd, const struct id *peer) {
    bool room = count_of(holder, peer) < MAX_VISITORS_OF_ONE_PEER &&
                (holder->visitor_count < MAX_VISITORS || make_room(holder));
    struct state_visitor *visitor = room ? calloc(1, sizeof *visitor) : NULL;
    if (visitor == NULL) {
        descriptor_close(fd);
        return NULL;
    }
    poll_item_init(&visitor->item, STATE_ITEM_VISITOR);
    if (poller_add(holder->poller, &visitor->item, fd, POLL_EDGE) != 0) {
        free(visitor);
        descriptor_close(fd);
        return NULL;
    }
    visitor->peer = *peer;
    visitor->active_ns = clock_now_ns();
    list_append(&holder->visitors, &visitor->node);
    holder->visitor_count++;
    return visitor;
}

void state_holder_admit(struct state_holder *holder, int fd, const struct id *peer) {
    struct socket_options options = {.user_timeout_ms = holder->timeout_ms};
    if (socket_set_options(fd, &options) != 0) {
        descriptor_close(fd);
        return;
    }
    add_visitor(holder, fd, peer);
}

void state_holder_call(struct state_holder *holder, const struct member *fetcher,
                       const struct link_greeting *greeting) {
    struct socket_options options = {.user_timeout_ms = holder->timeout_ms};
    int fd = socket_connect(&fetcher->address, &options);
    struct state_visitor *visitor = fd < 0 ? NULL : add_visitor(holder, fd, &fetcher->id);
    if (visitor != NULL) { /* else the fetcher says once more that it reaches nobody */
        link_greeting_encode(greeting, visitor->out);
        visitor->out_end = LINK_GREETING_BYTES;
    }
}

/* ---- questions ---- */

static bool is_answerable(const struct state_holder *holder, const struct state_header *question) {
    if (question->subject == STATE_KEYS) {
        return question->first == 0;
    }
    return question->first < holder->table->leaf_count &&
           question->count <= holder->table->leaf_count - question->first;
}

/* Each dispute costs the hash of a leaf: there are no more of them than leaves that were asked for. */
static bool may_dispute(struct state_visitor *visitor, const struct state_header *question) {
    if (question->subject == STATE_LEAVES) {
        visitor->leaves_due += question->count;
    } else if (question->subject == STATE_DISPUTE) {
        return visitor->leaves_due > 0 && visitor->leaves_due-- > 0;
    }
    return true;
}

/* Takes what has arrived; false if the connection has to go. */
static bool read_questions(struct state_holder *holder, struct state_visitor *visitor) {
    while (visitor->item.readable && visitor->question_count < MAX_QUESTIONS) {
        ssize_t size = recv(visitor->item.fd, visitor->in + visitor->in_bytes,
                            STATE_HEADER_BYTES - visitor->in_bytes, MSG_DONTWAIT);
        if (size < 0 && errno == EINTR) {
            continue;
        }
        if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            visitor->item.readable = false;
            break;
        }
        if (size <= 0) {
            return false;
        }
        visitor->in_bytes += (uint32_t)size;
        if (visitor->in_bytes < STATE_HEADER_BYTES) {
            continue;
        }
        visitor->in_bytes = 0;
        uint32_t place = (visitor->first_question + visitor->question_count) % MAX_QUESTIONS;
        struct state_header *question = &visitor->questions[place];
        if (!state_header_decode(visitor->in, question) || !is_answerable(holder, question) ||
            !may_dispute(visitor, question)) {
            return false;
        }
        visitor->active_ns = clock_now_ns();
        visitor->question_count++;
    }
    return true;
}

/* ---- answers ---- */

static uint64_t keys_bytes(const struct state_table *table) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < table->tensor_count; i++) {
        bytes += STATE_KEY_FIXED_BYTES + strlen(table->tensors[i].name);
    }
    return bytes;
}

/* Somebody has got other bytes than were offered: were they damaged on the way, or has the user written? */
static void look_again(struct state_holder *holder, uint64_t leaf) {
    size_t tensor = 0;
    struct state_hash hash;
    state_table_hash_leaf(holder->table, leaf, &tensor, &hash);
    if (memcmp(&hash, &holder->table->hashes[leaf], sizeof hash) != 0) {
        holder->changed = true;
        holder->changed_leaf = leaf;
    }
}

static void begin_answer(struct state_holder *holder, struct state_visitor *visitor) {
    struct state_header answer = visitor->questions[visitor->first_question];
    visitor->next = answer.first;
    visitor->end = answer.first + answer.count;
    switch (answer.subject) {
    case STATE_KEYS:
        visitor->end = holder->table->tensor_count;
        answer.bytes = keys_bytes(holder->table);
        break;
    case STATE_HASHES:
        answer.bytes = (uint64_t)answer.count * STATE_HASH_BYTES;
        break;
    case STATE_DISPUTE:
        look_again(holder, answer.first);
        visitor->next = visitor->end;
        break;
    default:
        answer.bytes = state_table_bytes(holder->table, answer.first, answer.count);
        break;
    }
    visitor->answering = true;
    visitor->offset = 0;
    state_header_encode(&answer, visitor->out + visitor->out_end);
    visitor->out_end += STATE_HEADER_BYTES;
}

static void write_hash(const struct state_hash *hash, uint8_t bytes[STATE_HASH_BYTES]) {
    for (size_t i = 0; i < STATE_HASH_BYTES; i++) {
        bytes[i] = (uint8_t)(hash->words[i / 8] >> (8 * (i % 8)));
    }
}

/* Hashes and keys go through the buffer, as many as there is room for. */
static void fill_buffer(const struct state_holder *holder, struct state_visitor *visitor) {
    uint8_t subject = visitor->questions[visitor->first_question].subject;
    while (subject == STATE_HASHES && visitor->next < visitor->end &&
           VISITOR_BUFFER_BYTES - visitor->out_end >= STATE_HASH_BYTES) {
        write_hash(&holder->table->hashes[visitor->next++], visitor->out + visitor->out_end);
        visitor->out_end += STATE_HASH_BYTES;
    }
    while (subject == STATE_KEYS && visitor->next < visitor->end &&
           VISITOR_BUFFER_BYTES - visitor->out_end >= MAX_STATE_KEY_BYTES) {
        struct state_key key;
        state_table_key(holder->table, visitor->next++, &key);
        visitor->out_end += (uint32_t)state_key_encode(&key, visitor->out + visitor->out_end);
    }
}

static bool sends_leaves(const struct state_visitor *visitor) {
    return visitor->answering && visitor->questions[visitor->first_question].subject == STATE_LEAVES;
}

/* What goes out next: the buffer, then leaves out of the user's memory. Returns the number of pieces. */
static int gather(const struct state_holder *holder, struct state_visitor *visitor,
                  struct iovec pieces[SEND_PIECES]) {
    int count = 0;
    if (visitor->out_end > visitor->out_begin) {
        pieces[count++] = (struct iovec){.iov_base = visitor->out + visitor->out_begin,
                                         .iov_len = visitor->out_end - visitor->out_begin};
    }
    size_t bytes = 0, tensor = visitor->tensor;
    for (uint64_t leaf = visitor->next;
         sends_leaves(visitor) && leaf < visitor->end && count < SEND_PIECES && bytes < SEND_BYTES; leaf++) {
        struct state_leaf place = state_table_leaf(holder->table, leaf, &tensor);
        size_t from = leaf == visitor->next ? visitor->offset : 0;
        size_t size = place.size - from < SEND_BYTES - bytes ? place.size - from : SEND_BYTES - bytes;
        pieces[count++] = (struct iovec){.iov_base = place.bytes + from, .iov_len = size};
        bytes += size;
    }
    return count;
}

/* `bytes` of what gather() put together are out. */
static void advance(struct state_holder *holder, struct state_visitor *visitor, size_t bytes) {
    size_t buffered = visitor->out_end - visitor->out_begin;
    if (bytes < buffered) {
        visitor->out_begin += (uint32_t)bytes;
        return;
    }
    bytes -= buffered;
    visitor->out_begin = 0;
    visitor->out_end = 0;
    holder->tx_bytes += bytes;
    while (bytes > 0) {
        size_t left = state_table_leaf(holder->table, visitor->next, &visitor->tensor).size - visitor->offset;
        if (bytes < left) {
            visitor->offset += bytes;
            return;
        }
        bytes -= left;
        visitor->offset = 0;
        visitor->next++;
    }
}

/* Moves on to the next answer when one is out; false if there is nothing to send. */
static bool has_more(struct state_holder *holder, struct state_visitor *visitor) {
    bool buffer_empty = visitor->out_end == visitor->out_begin;
    if (visitor->answering && buffer_empty && visitor->next == visitor->end) {
        visitor->answering = false;
        visitor->first_question = (visitor->first_question + 1) % MAX_QUESTIONS;
        visitor->question_count--;
    }
    if (!visitor->answering && visitor->question_count > 0) {
        begin_answer(holder, visitor);
    }
    if (holder->changed) {
        return false; /* who asks must not take it for settled before the master knows */
    }
    if (visitor->answering && visitor->out_begin == 0) {
        fill_buffer(holder, visitor);
    }
    return visitor->answering || visitor->out_end > visitor->out_begin; /* a greeting */
}

/* False if the connection has to go. */
static bool write_answers(struct state_holder *holder, struct state_visitor *visitor) {
    for (int i = 0; i < SENDS_PER_TURN && visitor->item.writable && has_more(holder, visitor); i++) {
        struct iovec pieces[SEND_PIECES];
        struct msghdr message = {.msg_iov = pieces};
        message.msg_iovlen = (size_t)gather(holder, visitor, pieces);
        ssize_t size = sendmsg(visitor->item.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (size >= 0) {
            visitor->active_ns = clock_now_ns();
            advance(holder, visitor, (size_t)size);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            visitor->item.writable = false;
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

void state_holder_ready(struct state_holder *holder, struct poll_item *item) {
    struct state_visitor *visitor = LIST_ENTRY(item, struct state_visitor, item);
    if (!read_questions(holder, visitor) || !write_answers(holder, visitor)) {
        part(holder, visitor);
        return;
    }
    bool can_read = visitor->item.readable && visitor->question_count < MAX_QUESTIONS;
    if (can_read || (visitor->item.writable && has_more(holder, visitor))) {
        poller_heat(holder->poller, item);
    }
}
