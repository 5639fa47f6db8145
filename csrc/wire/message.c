#include "wire/message.h"

#include "base/result.h"
#include "wire/cursor.h"
#include "wire/descriptor.h"

/* Each body_ function below describes one body for both directions (wire/cursor.h). */

static const uint8_t magic[8] = {'P', 'C', 'C', 'L', 0, 'r', 'u', 'n'};

static void status(struct cursor *cursor, uint16_t *value) {
    cursor_u16(cursor, value);
    cursor_require(cursor, *value < RESULT_COUNT);
}

/* What a call fails with. A failure that calls itself a success would end calls as if they had succeeded. */
static void error(struct cursor *cursor, uint16_t *value) {
    status(cursor, value);
    cursor_require(cursor, *value != pcclSuccess);
}

static void reason(struct cursor *cursor, char text[MAX_REASON_BYTES + 1]) {
    cursor_string(cursor, text, MAX_REASON_BYTES);
}

static void vote_kind(struct cursor *cursor, uint8_t *kind, uint8_t lowest) {
    cursor_u8(cursor, kind);
    cursor_require(cursor, *kind >= lowest && *kind < VOTE_KIND_END);
}

static void streams(struct cursor *cursor, uint16_t *count) {
    cursor_u16(cursor, count);
    cursor_require(cursor, *count >= 1 && *count <= MAX_STREAMS);
}

static bool version_known(uint16_t version) {
    return version >= OLDEST_PROTOCOL_VERSION && version <= PROTOCOL_VERSION;
}

/* Frozen up to the versions: any version must be able to say which ones it speaks. */
static void body_hello(struct cursor *cursor, struct message_hello *hello) {
    cursor_constant(cursor, magic, sizeof magic);
    cursor_u16(cursor, &hello->version);
    cursor_u16(cursor, &hello->oldest_version);
    if (!version_known(hello->version)) {
        if (cursor->reading) {
            uint16_t version = hello->version, oldest_version = hello->oldest_version;
            memset(hello, 0, sizeof *hello);
            hello->version = version;
            hello->oldest_version = oldest_version;
            cursor->at = cursor->failed ? cursor->at : cursor->size;
        }
        return;
    }
    cursor_u32(cursor, &hello->group);
    streams(cursor, &hello->streams);
    cursor_u32(cursor, &hello->timeout_ms);
    cursor_require(cursor, hello->timeout_ms >= MIN_TIMEOUT_MS && hello->timeout_ms <= MAX_TIMEOUT_MS);
    cursor_u32(cursor, &hello->straggler_timeout_ms);
    cursor_address(cursor, &hello->listen);
    cursor_string(cursor, hello->name, MAX_NAME_BYTES);
    cursor_string(cursor, hello->run, MAX_RUN_BYTES);
}

static void body_welcome(struct cursor *cursor, struct message_welcome *welcome) {
    cursor_constant(cursor, magic, sizeof magic);
    cursor_id(cursor, &welcome->run);
    cursor_id(cursor, &welcome->peer);
}

/* Frozen: a peer of any version must be able to read why it was refused. */
static void body_refused(struct cursor *cursor, struct message_refused *refused) {
    cursor_constant(cursor, magic, sizeof magic);
    cursor_u16(cursor, &refused->status);
    if (cursor->reading && (refused->status == pcclSuccess || refused->status >= RESULT_COUNT)) {
        refused->status = pcclRefused;
    }
    reason(cursor, refused->reason);
}

static void body_evicted(struct cursor *cursor, struct message_refused *evicted) {
    error(cursor, &evicted->status);
    reason(cursor, evicted->reason);
}

static void body_census(struct cursor *cursor, struct message_census *census) {
    cursor_u32(cursor, &census->peers);
    cursor_u32(cursor, &census->groups);
    cursor_u32(cursor, &census->largest_group);
    cursor_require(cursor, census->peers <= MAX_PEERS && census->groups <= MAX_PEERS &&
                               census->largest_group <= MAX_PEERS);
}

static void link_plan(struct cursor *cursor, struct link_plan *link, uint16_t world) {
    cursor_u16(cursor, &link->rank);
    cursor_require(cursor, link->rank < world);
    streams(cursor, &link->streams);
    cursor_bool(cursor, &link->opener);
    cursor_id(cursor, &link->key);
}

static void member(struct cursor *cursor, struct member *member) {
    cursor_id(cursor, &member->id);
    cursor_address(cursor, &member->address);
    cursor_string(cursor, member->name, MAX_NAME_BYTES);
}

static void body_propose(struct cursor *cursor, struct message_propose *propose) {
    cursor_u64(cursor, &propose->epoch);
    cursor_u8(cursor, &propose->fate);
    cursor_require(cursor, propose->fate >= FATE_ABORT && propose->fate < FATE_END);
    status(cursor, &propose->status);
    cursor_require(cursor, propose->fate != FATE_ABORT || propose->status != pcclSuccess);
    cursor_bool(cursor, &propose->has_guilty_tag);
    cursor_u64(cursor, &propose->guilty_tag);
    cursor_bool(cursor, &propose->guilty_blocking);
    reason(cursor, propose->reason);
    cursor_bool(cursor, &propose->has_tree);
    cursor_u16(cursor, &propose->rank);
    cursor_u16(cursor, &propose->world);
    cursor_require(cursor, propose->rank < propose->world && propose->world <= MAX_PEERS);
    cursor_u16(cursor, &propose->link_count);
    cursor_require(cursor, propose->link_count <= MAX_LINKS);
    for (uint16_t i = 0; i < propose->link_count && !cursor->failed; i++) {
        link_plan(cursor, &propose->links[i], propose->world);
    }
    for (uint16_t i = 0; i < propose->world && !cursor->failed; i++) {
        member(cursor, &propose->members[i]);
        cursor_u16(cursor, &propose->places[i]);
        cursor_require(cursor, propose->places[i] < propose->world);
    }
}

static void ended_op(struct cursor *cursor, struct ended_op *op) {
    cursor_u64(cursor, &op->tag);
    cursor_u64(cursor, &op->number);
}

static void ended_ops(struct cursor *cursor, uint16_t *count, struct ended_op *list, uint16_t most) {
    cursor_u16(cursor, count);
    cursor_require(cursor, *count <= most);
    for (uint16_t i = 0; i < *count && !cursor->failed; i++) {
        ended_op(cursor, &list[i]);
    }
}

static void body_ready(struct cursor *cursor, struct message_ready *ready) {
    cursor_u64(cursor, &ready->epoch);
    cursor_u32(cursor, &ready->rtt_us);
    ended_ops(cursor, &ready->kept_count, ready->kept, MAX_KEPT_OPS);
    ended_ops(cursor, &ready->failed_count, ready->failed, MAX_FAILED_TAGS);
}

static void body_commit_epoch(struct cursor *cursor, struct message_commit_epoch *commit) {
    cursor_u64(cursor, &commit->epoch);
    cursor_u32(cursor, &commit->tree_bytes);
    cursor_u16(cursor, &commit->served_count);
    cursor_require(cursor, commit->served_count <= MAX_OP_SLOTS);
    for (uint16_t i = 0; i < commit->served_count && !cursor->failed; i++) {
        ended_op(cursor, &commit->served_ops[i].op);
        cursor_u16(cursor, &commit->served_ops[i].rank);
        cursor_require(cursor, commit->served_ops[i].rank < MAX_PEERS);
    }
    cursor_u16(cursor, &commit->failed_count);
    cursor_require(cursor, commit->failed_count <= MAX_FAILED_TAGS);
    for (uint16_t i = 0; i < commit->failed_count && !cursor->failed; i++) {
        cursor_u64(cursor, &commit->failed_tags[i]);
    }
}

static void body_unreachable(struct cursor *cursor, struct message_unreachable *unreachable) {
    cursor_u64(cursor, &unreachable->epoch);
    cursor_id(cursor, &unreachable->peer);
    reason(cursor, unreachable->reason);
}

static void body_probe(struct cursor *cursor, struct message_probe *probe) {
    cursor_id(cursor, &probe->key);
    cursor_bool(cursor, &probe->opener);
    member(cursor, &probe->member);
}

static void body_probed(struct cursor *cursor, struct message_probed *probed) {
    cursor_id(cursor, &probed->key);
    cursor_bool(cursor, &probed->reached);
    reason(cursor, probed->reason);
}

static void body_pending(struct cursor *cursor, struct message_pending *pending) {
    cursor_u32(cursor, &pending->waited_ms);
    reason(cursor, pending->reason);
}

static void body_vote(struct cursor *cursor, struct message_vote *vote) {
    vote_kind(cursor, &vote->kind, VOTE_NONE);
    cursor_id(cursor, &vote->peer);
}

static void digest(struct cursor *cursor, struct digest *value) {
    cursor_bytes(cursor, value->bytes, sizeof value->bytes);
}

static void body_sync_offer(struct cursor *cursor, struct message_sync_offer *offer) {
    cursor_u64(cursor, &offer->revision);
    cursor_u8(cursor, &offer->strategy);
    cursor_require(cursor, offer->strategy <= PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY);
    cursor_bool(cursor, &offer->mixed);
    cursor_bool(cursor, &offer->requires_peers);
    digest(cursor, &offer->keys);
    digest(cursor, &offer->content);
}

static void body_sync_plan(struct cursor *cursor, struct message_sync_plan *plan) {
    cursor_u64(cursor, &plan->sync);
    cursor_u32(cursor, &plan->patience_ms);
    cursor_u64(cursor, &plan->revision);
    digest(cursor, &plan->keys);
    digest(cursor, &plan->content);
    cursor_u8(cursor, &plan->role);
    cursor_require(cursor, plan->role >= SYNC_HOLD && plan->role < SYNC_ROLE_END);
    cursor_id(cursor, &plan->key);
    cursor_u16(cursor, &plan->source_count);
    cursor_require(cursor, plan->source_count <= MAX_SYNC_SOURCES);
    for (uint16_t i = 0; i < plan->source_count && !cursor->failed; i++) {
        member(cursor, &plan->sources[i]);
    }
}

static void body_sync_report(struct cursor *cursor, struct message_sync_report *report) {
    cursor_u64(cursor, &report->sync);
    cursor_u8(cursor, &report->progress);
    cursor_require(cursor, report->progress >= SYNC_TOUCHED && report->progress < SYNC_PROGRESS_END);
    cursor_id(cursor, &report->peer);
    status(cursor, &report->status);
    cursor_require(cursor, report->progress != SYNC_FAILED || report->status != pcclSuccess);
    reason(cursor, report->reason);
}

static void body_vote_result(struct cursor *cursor, struct message_vote_result *result) {
    vote_kind(cursor, &result->kind, VOTE_UPDATE_TOPOLOGY);
    status(cursor, &result->status);
    cursor_u64(cursor, &result->value);
    reason(cursor, result->reason);
}

static void body_op(struct cursor *cursor, struct message_op *op) {
    cursor_u64(cursor, &op->epoch);
    cursor_u64(cursor, &op->tag);
    cursor_u64(cursor, &op->number);
    cursor_u32(cursor, &op->check);
    cursor_bool(cursor, &op->returned);
    cursor_bool(cursor, &op->numbered);
}

static void body_op_waiting(struct cursor *cursor, struct message_op_waiting *waiting) {
    cursor_u64(cursor, &waiting->epoch);
    cursor_u64(cursor, &waiting->tag);
    cursor_u64(cursor, &waiting->number);
    cursor_u8(cursor, &waiting->part);
    cursor_require(cursor, waiting->part < WAITING_END);
    cursor_u32(cursor, &waiting->question);
    cursor_u32(cursor, &waiting->waited_ms);
    cursor_bool(cursor, &waiting->stuck);
    cursor_u64(cursor, &waiting->stuck_tag);
}

static void body_op_mismatch(struct cursor *cursor, struct message_op_mismatch *mismatch) {
    cursor_u64(cursor, &mismatch->epoch);
    cursor_u64(cursor, &mismatch->tag);
    cursor_descriptor(cursor, &mismatch->mine);
    cursor_descriptor(cursor, &mismatch->theirs);
    cursor_id(cursor, &mismatch->other);
}

static void body_op_conflict(struct cursor *cursor, struct message_op_conflict *conflict) {
    cursor_u64(cursor, &conflict->epoch);
    cursor_u64(cursor, &conflict->tag);
    vote_kind(cursor, &conflict->kind, VOTE_UPDATE_TOPOLOGY);
    cursor_descriptor(cursor, &conflict->mine);
}

static void body_op_abort(struct cursor *cursor, struct message_op_abort *abort_) {
    cursor_u64(cursor, &abort_->epoch);
    cursor_u64(cursor, &abort_->tag);
    error(cursor, &abort_->status);
    reason(cursor, abort_->reason);
}

static void body_stragglers(struct cursor *cursor, struct message_stragglers *stragglers) {
    vote_kind(cursor, &stragglers->kind, VOTE_NONE);
    cursor_u64(cursor, &stragglers->epoch);
    cursor_u64(cursor, &stragglers->tag);
    cursor_u32(cursor, &stragglers->waited_ms);
    cursor_u16(cursor, &stragglers->total);
    cursor_require(cursor, stragglers->total <= MAX_PEERS);
    cursor_u16(cursor, &stragglers->named);
    cursor_require(cursor,
                   stragglers->named <= MAX_NAMED_STRAGGLERS && stragglers->named <= stragglers->total);
    for (uint16_t i = 0; i < stragglers->named && !cursor->failed; i++) {
        cursor_id(cursor, &stragglers->peers[i]);
    }
}

/* Who is in, and in which epoch. */
static bool body_of_membership(struct cursor *cursor, struct message *message) {
    switch (message->type) {
    case MESSAGE_HELLO:
        body_hello(cursor, &message->as.hello);
        return true;
    case MESSAGE_WELCOME:
        body_welcome(cursor, &message->as.welcome);
        return true;
    case MESSAGE_REFUSED:
        body_refused(cursor, &message->as.refused);
        return true;
    case MESSAGE_CENSUS:
        body_census(cursor, &message->as.census);
        return true;
    case MESSAGE_PROPOSE:
        body_propose(cursor, &message->as.propose);
        return true;
    case MESSAGE_READY:
        body_ready(cursor, &message->as.ready);
        return true;
    case MESSAGE_UNREACHABLE:
    case MESSAGE_LINK_LOST:
        body_unreachable(cursor, &message->as.unreachable);
        return true;
    case MESSAGE_COMMIT_EPOCH:
        body_commit_epoch(cursor, &message->as.commit_epoch);
        return true;
    case MESSAGE_EVICTED:
        body_evicted(cursor, &message->as.refused);
        return true;
    case MESSAGE_PROBE:
        body_probe(cursor, &message->as.probe);
        return true;
    case MESSAGE_PROBED:
        body_probed(cursor, &message->as.probed);
        return true;
    case MESSAGE_PENDING:
        body_pending(cursor, &message->as.pending);
        return true;
    case MESSAGE_HEARTBEAT:
    case MESSAGE_GOODBYE:
    case MESSAGE_FAREWELL:
        return true; /* no body */
    default:
        return false;
    }
}

/* Joint calls, shared state and ops. */
static bool body_of_calls(struct cursor *cursor, struct message *message) {
    switch (message->type) {
    case MESSAGE_VOTE:
    case MESSAGE_VOTE_OPENED:
        body_vote(cursor, &message->as.vote);
        return true;
    case MESSAGE_VOTE_RESULT:
        body_vote_result(cursor, &message->as.vote_result);
        return true;
    case MESSAGE_SYNC_OFFER:
        body_sync_offer(cursor, &message->as.sync_offer);
        return true;
    case MESSAGE_SYNC_PLAN:
        body_sync_plan(cursor, &message->as.sync_plan);
        return true;
    case MESSAGE_SYNC_REPORT:
        body_sync_report(cursor, &message->as.sync_report);
        return true;
    case MESSAGE_OP_DONE:
    case MESSAGE_OP_COMMIT:
        body_op(cursor, &message->as.op);
        return true;
    case MESSAGE_OP_WAITING:
        body_op_waiting(cursor, &message->as.op_waiting);
        return true;
    case MESSAGE_OP_MISMATCH:
        body_op_mismatch(cursor, &message->as.op_mismatch);
        return true;
    case MESSAGE_OP_CONFLICT:
        body_op_conflict(cursor, &message->as.op_conflict);
        return true;
    case MESSAGE_OP_ABORT:
        body_op_abort(cursor, &message->as.op_abort);
        return true;
    case MESSAGE_VOTE_WAITING:
    case MESSAGE_OP_STRAGGLERS:
        body_stragglers(cursor, &message->as.stragglers);
        return true;
    default:
        return false;
    }
}

static void body(struct cursor *cursor, struct message *message) {
    bool described = body_of_membership(cursor, message) || body_of_calls(cursor, message);
    CHECK(described); /* types that do not exist have been turned away before */
    cursor_end(cursor);
}

static bool type_known(uint32_t type) {
    return type >= MESSAGE_HELLO && type < MESSAGE_TYPE_END;
}

static void header(struct cursor *cursor, uint32_t *body_bytes, uint16_t *type) {
    cursor_u32(cursor, body_bytes);
    cursor_u16(cursor, type);
}

size_t message_encode(const struct message *message, uint8_t *bytes, size_t capacity) {
    CHECK(type_known(message->type));
    if (capacity < MESSAGE_HEADER_BYTES) {
        return 0;
    }
    struct cursor rest = cursor_write(bytes + MESSAGE_HEADER_BYTES, capacity - MESSAGE_HEADER_BYTES);
    body(&rest, (struct message *)message); /* a writing cursor changes nothing in it */
    if (rest.failed) {
        return 0;
    }
    uint32_t body_bytes = (uint32_t)rest.at;
    uint16_t type = (uint16_t)message->type;
    struct cursor front = cursor_write(bytes, MESSAGE_HEADER_BYTES);
    header(&front, &body_bytes, &type);
    return MESSAGE_HEADER_BYTES + rest.at;
}

static bool has_magic(uint16_t type) {
    return type == MESSAGE_HELLO || type == MESSAGE_WELCOME || type == MESSAGE_REFUSED;
}

/* What the bytes that have arrived so far show already: waiting for the rest of something that is no
 * message would only hold memory, and hide from the user that he talks to something else. */
static enum decode_status look_ahead(const uint8_t *bytes, size_t size, size_t limit, size_t *total) {
    uint8_t start[MESSAGE_HEADER_BYTES] = {0};
    memcpy(start, bytes, size < sizeof start ? size : sizeof start);
    uint32_t body_bytes = 0;
    uint16_t type = 0;
    struct cursor cursor = cursor_read(start, sizeof start);
    header(&cursor, &body_bytes, &type);
    if (size >= sizeof body_bytes && (limit < sizeof start || body_bytes > limit - sizeof start)) {
        return DECODE_BAD;
    }
    if (size < sizeof start) {
        return DECODE_INCOMPLETE;
    }
    size_t arrived = size - sizeof start < body_bytes ? size - sizeof start : body_bytes;
    size_t comparable = arrived < sizeof magic ? arrived : sizeof magic;
    if (!type_known(type) || (has_magic(type) && memcmp(bytes + sizeof start, magic, comparable) != 0)) {
        return DECODE_BAD;
    }
    *total = sizeof start + body_bytes;
    return size < *total ? DECODE_INCOMPLETE : DECODE_OK;
}

enum decode_status message_decode(const uint8_t *bytes, size_t size, size_t limit, struct message *message,
                                  size_t *used) {
    size_t total = 0;
    enum decode_status ahead = size == 0 ? DECODE_INCOMPLETE : look_ahead(bytes, size, limit, &total);
    if (ahead != DECODE_OK) {
        return ahead;
    }
    message->type = (enum message_type)(bytes[4] | bytes[5] << 8);
    struct cursor cursor = cursor_read(bytes + MESSAGE_HEADER_BYTES, total - MESSAGE_HEADER_BYTES);
    body(&cursor, message);
    if (cursor.failed) {
        return DECODE_BAD;
    }
    *used = total;
    return DECODE_OK;
}

const char *message_name(enum message_type type) {
    static const char *const names[MESSAGE_TYPE_END] = {
        [MESSAGE_HELLO] = "HELLO",
        [MESSAGE_WELCOME] = "WELCOME",
        [MESSAGE_REFUSED] = "REFUSED",
        [MESSAGE_CENSUS] = "CENSUS",
        [MESSAGE_PROPOSE] = "PROPOSE",
        [MESSAGE_READY] = "READY",
        [MESSAGE_UNREACHABLE] = "UNREACHABLE",
        [MESSAGE_COMMIT_EPOCH] = "COMMIT_EPOCH",
        [MESSAGE_LINK_LOST] = "LINK_LOST",
        [MESSAGE_VOTE] = "VOTE",
        [MESSAGE_VOTE_OPENED] = "VOTE_OPENED",
        [MESSAGE_VOTE_WAITING] = "VOTE_WAITING",
        [MESSAGE_VOTE_RESULT] = "VOTE_RESULT",
        [MESSAGE_SYNC_OFFER] = "SYNC_OFFER",
        [MESSAGE_SYNC_PLAN] = "SYNC_PLAN",
        [MESSAGE_SYNC_REPORT] = "SYNC_REPORT",
        [MESSAGE_PROBE] = "PROBE",
        [MESSAGE_PROBED] = "PROBED",
        [MESSAGE_PENDING] = "PENDING",
        [MESSAGE_OP_DONE] = "OP_DONE",
        [MESSAGE_OP_COMMIT] = "OP_COMMIT",
        [MESSAGE_OP_MISMATCH] = "OP_MISMATCH",
        [MESSAGE_OP_CONFLICT] = "OP_CONFLICT",
        [MESSAGE_OP_ABORT] = "OP_ABORT",
        [MESSAGE_OP_WAITING] = "OP_WAITING",
        [MESSAGE_OP_STRAGGLERS] = "OP_STRAGGLERS",
        [MESSAGE_HEARTBEAT] = "HEARTBEAT",
        [MESSAGE_GOODBYE] = "GOODBYE",
        [MESSAGE_FAREWELL] = "FAREWELL",
        [MESSAGE_EVICTED] = "EVICTED",
    };
    return type_known((uint32_t)type) ? names[type] : "?";
}
