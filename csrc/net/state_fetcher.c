#define _GNU_SOURCE
#include "net/state_fetcher.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "pccl.h"

enum {
    MAX_SOURCES_AT_ONCE = 4,
    LARGEST_ASK_BYTES = 2 * 1024 * 1024,
    LARGEST_ASK_LEAVES = 4096,
    /* A source that has died is known to the master after one timeout, and then to us. */
    TIMEOUTS_TO_GIVE_UP = 3,
};

enum leaf_state {
    LEAF_RIGHT,
    LEAF_WANTED,
    LEAF_ASKED,
    LEAF_STATES = 3,
    LEAF_SECOND_ROUND =
        0x10, /* all sources have given wrong bytes once: what is right may be in flight twice */
};

void state_fetcher_init(struct state_fetcher *fetcher, struct poller *poller, struct state_table *table,
                        uint16_t streams, uint64_t timeout_ns) {
    memset(fetcher, 0, sizeof *fetcher);
    fetcher->poller = poller;
    fetcher->table = table;
    fetcher->timeout_ns = timeout_ns;
    fetcher->patience_ns = timeout_ns;
    fetcher->stream_count = streams;
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        fetch_stream_init(&fetcher->streams[i], fetcher);
    }
}

static void close_streams(struct state_fetcher *fetcher) {
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        fetch_stream_close(&fetcher->streams[i], NULL);
    }
}

void state_fetcher_stop(struct state_fetcher *fetcher) {
    close_streams(fetcher);
    fetcher->stage = FETCH_IDLE;
}

void state_fetcher_free(struct state_fetcher *fetcher) {
    close_streams(fetcher);
    free(fetcher->elected);
    free(fetcher->leaves);
    free(fetcher->wrong);
}

void state_fetcher_fail(struct state_fetcher *fetcher, uint16_t status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fetcher->reason, sizeof fetcher->reason, format, arguments);
    va_end(arguments);
    fetcher->status = status;
    close_streams(fetcher);
    fetcher->stage = FETCH_FAILED;
}

/* ---- plans ---- */

static void set_source(struct state_source *source, const struct member *member) {
    char digits[ID_TEXT_BYTES];
    id_text(&member->id, digits);
    *source = (struct state_source){.member = *member};
    if (member->name[0] != '\0') {
        snprintf(source->label, sizeof source->label, "%s (%.8s)", member->name, digits);
    } else {
        snprintf(source->label, sizeof source->label, "%.8s", digits);
    }
}

static int find_source(const struct message_sync_plan *plan, const struct id *id) {
    for (uint16_t i = 0; i < plan->source_count; i++) {
        if (id_equal(&plan->sources[i].id, id)) {
            return i;
        }
    }
    return -1;
}

/* Connections to sources that remain go on. */
static void replace_sources(struct state_fetcher *fetcher, const struct message_sync_plan *plan) {
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        struct fetch_stream *stream = &fetcher->streams[i];
        if (stream->phase != FETCH_STREAM_FREE &&
            find_source(plan, &fetcher->sources[stream->source].member.id) < 0) {
            fetch_stream_close(stream, NULL);
        }
    }
    struct state_source before[MAX_SYNC_SOURCES];
    uint16_t count_before = fetcher->source_count;
    memcpy(before, fetcher->sources, sizeof before);
    fetcher->source_count = plan->source_count;
    for (uint16_t i = 0; i < plan->source_count; i++) {
        set_source(&fetcher->sources[i], &plan->sources[i]);
        for (uint16_t k = 0; k < count_before; k++) {
            if (id_equal(&before[k].member.id, &plan->sources[i].id)) {
                fetcher->sources[i] = before[k];
                fetcher->sources[i].member = plan->sources[i];
            }
        }
    }
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        struct fetch_stream *stream = &fetcher->streams[i];
        if (stream->phase != FETCH_STREAM_FREE) {
            stream->source = (uint16_t)find_source(plan, &before[stream->source].member.id);
        }
    }
    if (fetcher->wrong != NULL) { /* it counts sources by their old places */
        memset(fetcher->wrong, 0, fetcher->table->leaf_count);
    }
}

static bool is_elected(const struct state_fetcher *fetcher, const struct state_hash *hashes) {
    struct digest content = state_table_content(fetcher->table, hashes);
    return memcmp(&content, &fetcher->plan.content, sizeof content) == 0;
}

static void start_over(struct state_fetcher *fetcher, const struct message_sync_plan *plan) {
    close_streams(fetcher);
    fetcher->plan = *plan;
    fetcher->distrusts = false;
    fetcher->source_count = plan->source_count;
    for (uint16_t i = 0; i < plan->source_count; i++) {
        set_source(&fetcher->sources[i], &plan->sources[i]);
    }
    struct digest keys = state_table_keys(fetcher->table);
    if (memcmp(&keys, &plan->keys, sizeof keys) != 0) {
        fetcher->stage = FETCH_KEYS;
        return;
    }
    /* Without leaves there is nothing that could differ, whatever a digest says. */
    if (fetcher->table->leaf_count == 0 || is_elected(fetcher, fetcher->table->hashes)) {
        fetcher->stage = FETCH_DONE;
        return;
    }
    uint64_t leaves = fetcher->table->leaf_count + 1; /* never nothing */
    free(fetcher->elected);
    free(fetcher->leaves);
    free(fetcher->wrong);
    fetcher->elected = calloc(leaves, sizeof *fetcher->elected);
    fetcher->leaves = calloc(leaves, 1);
    fetcher->wrong = calloc(leaves, 1);
    if (fetcher->elected == NULL || fetcher->leaves == NULL || fetcher->wrong == NULL) {
        state_fetcher_fail(fetcher, pcclOutOfMemory,
                           "peer %s is out of memory for the hashes of the shared state", fetcher->label);
        return;
    }
    fetcher->stage = FETCH_HASHES;
}

void state_fetcher_plan(struct state_fetcher *fetcher, const struct message_sync_plan *plan) {
    bool same = fetcher->plan.sync == plan->sync && fetcher->stage != FETCH_IDLE;
    fetcher->progress_ns = clock_now_ns();
    uint64_t others_ns = plan->patience_ms * NS_PER_MS;
    fetcher->patience_ns =
        others_ns != 0 && others_ns < fetcher->timeout_ns ? others_ns : fetcher->timeout_ns;
    if (!same) {
        start_over(fetcher, plan);
    } else if (fetcher->stage < FETCH_DONE) {
        replace_sources(fetcher, plan);
        fetcher->plan = *plan;
    }
}

/* ---- questions ---- */

static bool is_asked(const struct state_fetcher *fetcher, uint8_t subject) {
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        const struct fetch_stream *stream = &fetcher->streams[i];
        if (stream->ask_count > 0 && stream->asks[stream->first_ask].subject == subject) {
            return true;
        }
    }
    return false;
}

static bool may_ask(const struct state_fetcher *fetcher, const struct fetch_stream *stream, uint64_t leaf) {
    return (fetcher->leaves[leaf] & LEAF_STATES) == LEAF_WANTED &&
           (fetcher->wrong[leaf] >> stream->source & 1) == 0;
}

static bool next_leaves(struct state_fetcher *fetcher, const struct fetch_stream *stream,
                        struct state_header *ask) {
    uint64_t end = fetcher->table->leaf_count;
    while (fetcher->scan < end && (fetcher->leaves[fetcher->scan] & LEAF_STATES) != LEAF_WANTED) {
        fetcher->scan++;
    }
    uint64_t first = fetcher->scan;
    while (first < end && !may_ask(fetcher, stream, first)) {
        first++;
    }
    if (first == end) {
        return false;
    }
    *ask = (struct state_header){.subject = STATE_LEAVES, .first = first};
    uint64_t bytes = 0;
    size_t tensor = 0;
    for (uint64_t leaf = first; leaf < end && bytes < fetcher->ask_bytes && ask->count < LARGEST_ASK_LEAVES &&
                                may_ask(fetcher, stream, leaf);
         leaf++) {
        bytes += state_table_leaf(fetcher->table, leaf, &tensor).size;
        fetcher->leaves[leaf] = (uint8_t)((fetcher->leaves[leaf] & ~LEAF_STATES) | LEAF_ASKED);
        ask->count++;
    }
    return true;
}

bool state_fetcher_next_ask(struct state_fetcher *fetcher, const struct fetch_stream *stream,
                            struct state_header *ask) {
    switch (fetcher->stage) {
    case FETCH_KEYS:
        if (is_asked(fetcher, STATE_KEYS)) {
            return false;
        }
        state_compare_init(&fetcher->compare, fetcher->table, fetcher->label,
                           fetcher->sources[stream->source].label);
        *ask = (struct state_header){.subject = STATE_KEYS};
        return true;
    case FETCH_HASHES:
        *ask = (struct state_header){.subject = STATE_HASHES, .count = (uint32_t)fetcher->table->leaf_count};
        return !is_asked(fetcher, STATE_HASHES);
    case FETCH_LEAVES:
        return next_leaves(fetcher, stream, ask);
    default:
        return false;
    }
}

void state_fetcher_wake(struct state_fetcher *fetcher) {
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        if (fetcher->streams[i].phase == FETCH_STREAM_OPEN) {
            poller_heat(fetcher->poller, &fetcher->streams[i].item);
        }
    }
}

void state_fetcher_give_back(struct state_fetcher *fetcher, uint64_t first, uint64_t end) {
    for (uint64_t leaf = first; leaf < end; leaf++) {
        if ((fetcher->leaves[leaf] & LEAF_STATES) == LEAF_ASKED) {
            fetcher->leaves[leaf] = (uint8_t)((fetcher->leaves[leaf] & ~LEAF_STATES) | LEAF_WANTED);
        }
    }
    fetcher->scan = first < fetcher->scan ? first : fetcher->scan;
    state_fetcher_wake(fetcher);
}

/* ---- answers ---- */

void state_fetcher_take_keys(struct state_fetcher *fetcher) {
    state_fetcher_fail(fetcher, pcclMismatch, "%s", fetcher->compare.text);
}

static bool same_hash(const struct state_hash *a, const struct state_hash *b) {
    return a->words[0] == b->words[0] && a->words[1] == b->words[1];
}

static void read_hash(struct state_hash *hash) {
    uint8_t bytes[STATE_HASH_BYTES];
    memcpy(bytes, hash, sizeof bytes);
    *hash = (struct state_hash){{0, 0}};
    for (size_t i = 0; i < sizeof bytes; i++) {
        hash->words[i / 8] |= (uint64_t)bytes[i] << (8 * (i % 8));
    }
}

/* So that each stream has several questions, of up to the largest size. */
static uint64_t choose_ask_bytes(const struct state_fetcher *fetcher) {
    uint64_t share = fetcher->total_bytes / ((uint64_t)fetcher->stream_count * MAX_ASKS);
    return share < 1 ? 1 : share < LARGEST_ASK_BYTES ? share : LARGEST_ASK_BYTES;
}

/* Tensors that are one piece of memory here can't hold different values; their leaves are fetched once. */
static bool check_tied(struct state_fetcher *fetcher) {
    const struct state_table *table = fetcher->table;
    for (size_t i = 0; i < table->tensor_count; i++) {
        const struct state_tensor *tensor = &table->tensors[i], *first = &table->tensors[tensor->tied];
        for (uint64_t leaf = 0; leaf < tensor->leaf_count; leaf++) {
            if (!same_hash(&fetcher->elected[tensor->first_leaf + leaf],
                           &fetcher->elected[first->first_leaf + leaf])) {
                state_fetcher_fail(
                    fetcher, pcclMismatch,
                    "tensors \"%.150s\" and \"%.150s\" are one piece of memory at peer %s, but "
                    "differ in the elected state: tie them at all peers, or at none",
                    first->name, tensor->name, fetcher->label);
                return false;
            }
        }
    }
    return true;
}

/* A leaf of a tensor whose memory has come before under another name. */
static bool is_copy(const struct state_table *table, uint64_t leaf, size_t *tensor) {
    state_table_leaf(table, leaf, tensor);
    return table->tensors[*tensor].tied != *tensor;
}

bool state_fetcher_take_hashes(struct state_fetcher *fetcher) {
    struct state_table *table = fetcher->table;
    for (uint64_t leaf = 0; leaf < table->leaf_count; leaf++) {
        read_hash(&fetcher->elected[leaf]);
    }
    if (!is_elected(fetcher, fetcher->elected)) {
        return false;
    }
    if (!check_tied(fetcher)) {
        return true;
    }
    size_t tensor = 0;
    fetcher->left = 0;
    fetcher->total_bytes = 0;
    fetcher->done_bytes = 0;
    fetcher->scan = 0;
    for (uint64_t leaf = 0; leaf < table->leaf_count; leaf++) {
        bool right =
            same_hash(&fetcher->elected[leaf], &table->hashes[leaf]) || is_copy(table, leaf, &tensor);
        fetcher->leaves[leaf] = right ? LEAF_RIGHT : LEAF_WANTED;
        if (!right) {
            fetcher->left++;
            fetcher->total_bytes += state_table_leaf(table, leaf, &tensor).size;
        }
    }
    state_fetcher_moved(fetcher, SLOW_BYTES);
    fetcher->ask_bytes = choose_ask_bytes(fetcher);
    fetcher->stage = fetcher->left > 0 ? FETCH_READY : FETCH_DONE;
    return true;
}

void state_fetcher_begin(struct state_fetcher *fetcher) {
    CHECK(fetcher->stage == FETCH_READY);
    fetcher->touched = true;
    fetcher->stage = FETCH_LEAVES;
    state_fetcher_wake(fetcher);
}

/* Whoever holds this leaf has changed it since it was offered, or bytes were damaged on the way. */
static void reject_leaf(struct state_fetcher *fetcher, struct fetch_stream *stream, uint64_t leaf) {
    stream->disputes = true;
    stream->disputed = leaf;
    uint8_t all = (uint8_t)((1u << fetcher->source_count) - 1);
    fetcher->wrong[leaf] = (uint8_t)(fetcher->wrong[leaf] | 1u << stream->source);
    if ((fetcher->wrong[leaf] & all) == all) {
        if ((fetcher->leaves[leaf] & LEAF_SECOND_ROUND) != 0) {
            const struct state_tensor *tensor = &fetcher->table->tensors[stream->tensor];
            state_fetcher_fail(fetcher, pcclInvalidUsage, CHANGED_FORMAT, tensor->name,
                               fetcher->sources[stream->source].label);
            return;
        }
        fetcher->wrong[leaf] = 0;
        fetcher->leaves[leaf] |= LEAF_SECOND_ROUND;
    }
    fetcher->leaves[leaf] = (uint8_t)((fetcher->leaves[leaf] & ~LEAF_STATES) | LEAF_WANTED);
    fetcher->scan = leaf < fetcher->scan ? leaf : fetcher->scan;
    fetcher->distrusts = true;
    state_fetcher_wake(fetcher);
}

void state_fetcher_moved(struct state_fetcher *fetcher, uint64_t bytes) {
    fetcher->moved_bytes += bytes;
    if (fetcher->moved_bytes >= SLOW_BYTES) {
        fetcher->moved_bytes = 0;
        fetcher->progress_ns = clock_now_ns();
    }
}

void state_fetcher_take_leaf(struct state_fetcher *fetcher, struct fetch_stream *stream, uint64_t leaf) {
    state_table_rehash(fetcher->table, leaf, &stream->tensor);
    if (!same_hash(&fetcher->table->hashes[leaf], &fetcher->elected[leaf])) {
        reject_leaf(fetcher, stream, leaf);
        return;
    }
    fetcher->leaves[leaf] = LEAF_RIGHT;
    fetcher->sources[stream->source].failures = 0;
    state_fetcher_moved(fetcher, SLOW_BYTES);
    fetcher->done_bytes += state_table_leaf(fetcher->table, leaf, &stream->tensor).size;
    fetcher->left--;
}

static bool has_dispute(const struct fetch_stream *stream) {
    bool found = stream->disputes;
    for (uint32_t i = 0; i < stream->ask_count; i++) {
        found = found || stream->asks[(stream->first_ask + i) % MAX_ASKS].subject == STATE_DISPUTE;
    }
    return found;
}

/* It is done when all leaves are right, and those whose bytes were wrong have had their say. */
static void conclude(struct state_fetcher *fetcher) {
    if (fetcher->stage != FETCH_LEAVES || fetcher->left > 0) {
        return;
    }
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        if (has_dispute(&fetcher->streams[i])) {
            return;
        }
    }
    fetcher->stage = FETCH_DONE;
    close_streams(fetcher);
}

/* ---- connections ---- */

void state_fetcher_ready(struct state_fetcher *fetcher, struct poll_item *item) {
    struct fetch_stream *stream = LIST_ENTRY(item, struct fetch_stream, item);
    CHECK(stream->fetcher == fetcher);
    fetch_stream_work(stream);
    conclude(fetcher);
}

/* How many are worth while. Bytes that were wrong at some holder may be right at another: then all are. */
static uint32_t wanted_streams(const struct state_fetcher *fetcher) {
    if (fetcher->stage == FETCH_KEYS || fetcher->source_count == 0) {
        return fetcher->source_count > 0;
    }
    uint64_t bytes = fetcher->stage == FETCH_LEAVES ? fetcher->total_bytes : fetcher->table->leaf_bytes;
    uint64_t worth = bytes / STATE_LEAF_BYTES + 1;
    uint32_t wanted = worth < fetcher->stream_count ? (uint32_t)worth : fetcher->stream_count;
    return fetcher->distrusts && wanted < fetcher->source_count ? fetcher->source_count : wanted;
}

static uint32_t count_used(const struct state_fetcher *fetcher) {
    uint32_t used = 0;
    for (uint16_t i = 0; i < fetcher->source_count; i++) {
        used += fetcher->sources[i].streams > 0;
    }
    return used;
}

static bool may_open(const struct state_fetcher *fetcher, uint16_t source, uint32_t used) {
    return fetcher->sources[source].streams > 0 || used < MAX_SOURCES_AT_ONCE || fetcher->distrusts;
}

/* Whether the next connection goes to `a` rather than to `b`: few connections, few failures, and slow ones
 * last. */
static bool is_better(const struct state_source *a, const struct state_source *b) {
    if (a->slow != b->slow) {
        return !a->slow;
    }
    return a->streams < b->streams || (a->streams == b->streams && a->failures < b->failures);
}

/* The source that the next connection goes to, or -1. */
static int choose_source(const struct state_fetcher *fetcher, uint64_t now_ns) {
    uint32_t used = count_used(fetcher);
    int best = -1;
    for (uint16_t i = 0; i < fetcher->source_count; i++) {
        const struct state_source *source = &fetcher->sources[i];
        if (now_ns < source->retry_ns || !may_open(fetcher, i, used)) {
            continue;
        }
        if (best < 0 || is_better(source, &fetcher->sources[best])) {
            best = i;
        }
    }
    return best;
}

static void open_streams(struct state_fetcher *fetcher, uint64_t now_ns) {
    uint32_t open = 0, wanted = wanted_streams(fetcher);
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        open += fetcher->streams[i].phase != FETCH_STREAM_FREE;
    }
    for (uint32_t i = 0; i < MAX_STREAMS && open < wanted; i++) {
        struct fetch_stream *stream = &fetcher->streams[i];
        int source = stream->phase == FETCH_STREAM_FREE ? choose_source(fetcher, now_ns) : -1;
        if (source >= 0) {
            fetch_stream_open(stream, (uint16_t)source);
            open++;
        }
    }
}

static bool is_at_work(const struct state_fetcher *fetcher) {
    return fetcher->stage == FETCH_KEYS || fetcher->stage == FETCH_HASHES || fetcher->stage == FETCH_LEAVES;
}

static bool waits(const struct fetch_stream *stream) {
    return stream->phase == FETCH_STREAM_CONNECTING || stream->ask_count > 0;
}

/* ---- sources that have to call ---- */

/* No answer for so long on a connection that was made from here: it may be that none gets through. */
static uint64_t call_after_ns(const struct state_fetcher *fetcher) {
    return fetcher->timeout_ns / 4;
}

static bool may_be_deaf(const struct state_fetcher *fetcher, const struct fetch_stream *stream) {
    const struct state_source *source = &fetcher->sources[stream->source];
    return waits(stream) && stream->dialled && !source->reached && !source->wants_call;
}

bool state_fetcher_take_unreached(struct state_fetcher *fetcher, uint64_t now_ns, struct id *source) {
    for (uint16_t i = 0; is_at_work(fetcher) && i < fetcher->source_count; i++) {
        struct state_source *one = &fetcher->sources[i];
        if (one->wants_call && now_ns >= one->call_ns) {
            one->wants_call = false;
            one->call_ns = now_ns + fetcher->timeout_ns / 2;
            *source = one->member.id;
            return true;
        }
    }
    return false;
}

/* For a connection that a source has made: one that is free, or that gets no answer from that source. */
static struct fetch_stream *find_stream(struct state_fetcher *fetcher, int source) {
    struct fetch_stream *found = NULL;
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        struct fetch_stream *stream = &fetcher->streams[i];
        bool is_vain = stream->phase != FETCH_STREAM_FREE && stream->source == source && stream->dialled &&
                       !fetcher->sources[source].reached;
        if (is_vain) {
            fetch_stream_close(stream, NULL);
            return stream;
        }
        if (found == NULL && stream->phase == FETCH_STREAM_FREE) {
            found = stream;
        }
    }
    return found;
}

void state_fetcher_adopt(struct state_fetcher *fetcher, int fd, const struct id *source) {
    int place = is_at_work(fetcher) ? find_source(&fetcher->plan, source) : -1;
    bool wanted = place >= 0 && fetcher->sources[place].streams < fetcher->stream_count;
    struct fetch_stream *stream = wanted ? find_stream(fetcher, place) : NULL;
    if (stream == NULL) {
        descriptor_close(fd);
        return;
    }
    fetch_stream_adopt(stream, (uint16_t)place, fd);
}

/* ---- time ---- */

static bool has_better(const struct state_fetcher *fetcher, uint16_t source) {
    for (uint16_t i = 0; i < fetcher->source_count; i++) {
        if (i != source && !fetcher->sources[i].slow && fetcher->sources[i].failures == 0) {
            return true;
        }
    }
    return false;
}

/* Ends what has waited too long. */
static void check_stream(struct state_fetcher *fetcher, struct fetch_stream *stream, uint64_t now_ns) {
    if (!waits(stream)) {
        return;
    }
    if (may_be_deaf(fetcher, stream) && now_ns >= stream->heard_ns + call_after_ns(fetcher)) {
        fetcher->sources[stream->source].wants_call = true;
    }
    if (now_ns > stream->heard_ns && now_ns - stream->heard_ns >= fetcher->timeout_ns) {
        fetch_stream_close(stream, "it does not answer");
    } else if (now_ns > stream->mark_ns && now_ns - stream->mark_ns >= fetcher->timeout_ns &&
               has_better(fetcher, stream->source)) {
        fetcher->sources[stream->source].slow = true;
        fetch_stream_close(stream, "it sends too slowly");
    }
}

void state_fetcher_tick(struct state_fetcher *fetcher, uint64_t now_ns) {
    if (!is_at_work(fetcher)) {
        return;
    }
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        check_stream(fetcher, &fetcher->streams[i], now_ns);
    }
    conclude(fetcher);
    if (!is_at_work(fetcher)) {
        return;
    }
    open_streams(fetcher, now_ns);
    if (now_ns > fetcher->progress_ns &&
        now_ns - fetcher->progress_ns >= TIMEOUTS_TO_GIVE_UP * fetcher->patience_ns) {
        state_fetcher_fail(fetcher, pcclRankConnectionLost,
                           "peer %s got nothing of the shared state from its holders for %.1f s: %s",
                           fetcher->label, (double)(now_ns - fetcher->progress_ns) / 1e9,
                           fetcher->trouble[0] != '\0' ? fetcher->trouble : "they do not answer");
    }
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

uint64_t state_fetcher_deadline(const struct state_fetcher *fetcher) {
    if (!is_at_work(fetcher)) {
        return UINT64_MAX;
    }
    uint64_t deadline = fetcher->progress_ns + TIMEOUTS_TO_GIVE_UP * fetcher->patience_ns;
    uint32_t open = 0;
    for (uint32_t i = 0; i < MAX_STREAMS; i++) {
        const struct fetch_stream *stream = &fetcher->streams[i];
        open += stream->phase != FETCH_STREAM_FREE;
        if (waits(stream)) {
            deadline = earlier(deadline, stream->heard_ns + fetcher->timeout_ns);
            if (has_better(fetcher, stream->source)) {
                deadline = earlier(deadline, stream->mark_ns + fetcher->timeout_ns);
            }
            if (may_be_deaf(fetcher, stream)) {
                deadline = earlier(deadline, stream->heard_ns + call_after_ns(fetcher));
            }
        }
    }
    uint32_t used = count_used(fetcher);
    for (uint16_t i = 0; i < fetcher->source_count; i++) {
        if (fetcher->sources[i].wants_call) {
            deadline = earlier(deadline, fetcher->sources[i].call_ns);
        }
        if (open < wanted_streams(fetcher) && may_open(fetcher, i, used)) {
            deadline = earlier(deadline, fetcher->sources[i].retry_ns);
        }
    }
    return deadline;
}
