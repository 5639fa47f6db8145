/* A peer's machine, fed with any messages of a master that may be broken or hostile, between any calls of
 * its user and any fate of its links. A bit of each record asks for the epoch that fits. Whatever comes,
 * each call ends at most once, and an op that was started is stopped or finished exactly once. */
#include <stdlib.h>

#include "base/check.h"
#include "core/peer_state.h"
#include "machine_input.h"
#include "pccl.h"

enum { CALLS = 512 };

static bool call_open[CALLS + 1];
static bool moving[MAX_OP_SLOTS], kept[MAX_OP_SLOTS];
static int links;

static void perform(void *context, const struct peer_action *action) {
    (void)context;
    static uint8_t bytes[MAX_MESSAGE_BYTES];
    switch (action->kind) {
    case PEER_CONTROL_SEND:
        CHECK(message_encode(action->message, bytes, sizeof bytes) > 0);
        break;
    case PEER_COMPLETE:
        CHECK(action->call >= 1 && action->call <= CALLS && call_open[action->call]);
        CHECK(action->text != NULL);
        call_open[action->call] = false;
        break;
    case PEER_OP_START:
        CHECK(action->op < MAX_OP_SLOTS && !moving[action->op]);
        CHECK(action->world >= 2 && action->rank < action->world);
        CHECK(kept[action->op] == (action->call == 0) && (action->call != 0 || action->served));
        moving[action->op] = true;
        break;
    case PEER_OP_STOP:
        CHECK(action->op < MAX_OP_SLOTS && moving[action->op]);
        moving[action->op] = false;
        break;
    case PEER_OP_KEEP:
        CHECK(action->op < MAX_OP_SLOTS && moving[action->op] && !kept[action->op]);
        moving[action->op] = false;
        kept[action->op] = true;
        break;
    case PEER_OP_FORGET:
        CHECK(action->op < MAX_OP_SLOTS && !moving[action->op] && kept[action->op]);
        kept[action->op] = false;
        break;
    case PEER_OP_FINISH:
        CHECK(action->op < MAX_OP_SLOTS && (moving[action->op] || kept[action->op]));
        moving[action->op] = false;
        kept[action->op] = false;
        break;
    case PEER_LINK_OPEN:
    case PEER_LINK_EXPECT:
        CHECK(++links <= MAX_LINKS);
        break;
    case PEER_LINK_CLOSE:
        CHECK(--links >= 0);
        break;
    default:
        break;
    }
}

static void set_numbers(const struct peer *peer, struct message *message, uint8_t control) {
    uint64_t *epoch = message_epoch(message);
    if ((control & 1) == 0 || epoch == NULL) {
        return;
    }
    *epoch = peer->plan.epoch + (message->type == MESSAGE_PROPOSE);
    if (peer->first_op == NO_OP) {
        return;
    }
    uint64_t tag = peer->ops[peer->first_op].tag;
    if (message->type == MESSAGE_OP_COMMIT) {
        message->as.op.tag = tag;
    }
    if (message->type == MESSAGE_COMMIT_EPOCH && message->as.commit_epoch.served_count > 0) {
        message->as.commit_epoch.served_ops[0].tag = tag;
    }
}

static void fill_event(const struct peer *peer, struct peer_event *event, struct input *input,
                       uint64_t *last_call) {
    static struct message message;
    uint8_t control = input_u8(input);
    event->kind = (enum peer_event_kind)(control >> 3) % (PEER_EVENT_TICK + 1);
    uint8_t detail = input_u8(input);
    static struct message_sync_offer offer;
    static struct message_sync_report report;
    offer.revision = detail;
    report = (struct message_sync_report){.sync = detail, .progress = SYNC_TOUCHED};
    event->offer = &offer;
    event->report = &report;
    if (event->kind <= PEER_EVENT_OP) {
        if (*last_call == CALLS) {
            event->kind = PEER_EVENT_TICK;
            return;
        }
        event->call = ++*last_call;
        call_open[event->call] = true;
        event->vote = (uint8_t)(VOTE_UPDATE_TOPOLOGY + detail % 3);
        event->tag = detail % 5;
        event->deadline_ns = (detail & 128) != 0 ? event->now_ns + detail * UINT64_C(1000000) : 0;
        event->descriptor =
            (struct op_descriptor){.kind = OP_ALL_REDUCE, .early = (detail & 64) != 0, .count = detail};
    } else if (event->kind == PEER_EVENT_MESSAGE) {
        if (!peer->control_open || !input_message(input, &message)) {
            event->kind = PEER_EVENT_TICK;
            return;
        }
        set_numbers(peer, &message, control);
        event->message = &message;
    } else if (event->kind == PEER_EVENT_LINK_UP || event->kind == PEER_EVENT_LINK_DOWN) {
        event->key =
            peer->link_count > 0 ? peer->links[detail % peer->link_count].key : (struct id){{detail}};
    } else {
        event->op = detail;
        event->sent = (control & 2) != 0;
        event->status = pcclOutOfMemory;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct peer *peer;
    peer = peer != NULL ? peer : malloc(peer_bytes());
    memset(peer, 0, peer_bytes());
    memset(call_open, 0, sizeof call_open);
    memset(moving, 0, sizeof moving);
    memset(kept, 0, sizeof kept);
    links = 0;
    struct peer_options options = {.hello = {.version = PROTOCOL_VERSION, .streams = 2, .timeout_ms = 1000}};
    peer_init(peer, &options, perform, NULL);
    struct input input = {.bytes = data, .left = size};
    uint64_t now_ns = 1000000000, last_call = 0;
    for (int records = 0; input.left > 0 && records < 400; records++) {
        now_ns += (uint64_t)input_u8(&input) * 1000000;
        struct peer_event event = {.now_ns = now_ns, .reason = "reason"};
        fill_event(peer, &event, &input, &last_call);
        peer_step(peer, &event);
        CHECK(peer_deadline(peer) > 0);
    }
    if (last_call < CALLS) { /* whatever has happened, close ends everything */
        struct peer_event close = {.kind = PEER_EVENT_CLOSE, .now_ns = now_ns, .call = ++last_call};
        call_open[last_call] = true;
        peer_step(peer, &close);
        struct peer_event later = {.kind = PEER_EVENT_TICK, .now_ns = now_ns + UINT64_C(100000000000)};
        peer_step(peer, &later);
        peer_step(peer, &later);
        for (int call = 1; call <= CALLS; call++) {
            CHECK(!call_open[call]);
        }
        for (int op = 0; op < MAX_OP_SLOTS; op++) {
            CHECK(!moving[op] && !kept[op]);
        }
        CHECK(links == 0);
    }
    return 0;
}
