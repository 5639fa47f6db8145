/* A peer's machine, fed with any messages of a master that may be broken or hostile, between any calls of
 * its user and any fate of its links. A bit of each record asks for the epoch that fits, another for a plan
 * that makes sense; one of the input, for a peer that is a member already. Whatever comes, each call ends at
 * most once, and an op that was started is stopped or finished exactly once. */
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
        CHECK(++links <= MAX_LINKS + MAX_PROBES);
        break;
    case PEER_LINK_CLOSE:
        CHECK(--links >= 0);
        break;
    default:
        break;
    }
}

/* A plan that makes sense, of up to three members, all of them neighbours. */
static void fill_plan(struct message *message, uint64_t epoch, uint8_t detail) {
    message->type = MESSAGE_PROPOSE;
    struct message_propose *plan = &message->as.propose;
    memset(plan, 0, sizeof *plan);
    plan->epoch = epoch;
    plan->world = (uint16_t)(1 + detail % 3);
    plan->fate = (detail & 4) != 0 ? FATE_ABORT : FATE_CARRY;
    plan->has_guilty_tag = plan->fate == FATE_ABORT && (detail & 8) != 0;
    plan->guilty_tag = (detail >> 4) % 5;
    plan->status = plan->fate == FATE_ABORT ? pcclRankConnectionLost : pcclSuccess;
    for (uint16_t rank = 0; rank < plan->world; rank++) {
        plan->members[rank].id.bytes[0] = (uint8_t)rank;
        plan->places[rank] = rank;
    }
    for (uint16_t rank = 1; rank < plan->world; rank++) {
        struct link_plan *link = &plan->links[plan->link_count++];
        *link = (struct link_plan){.rank = rank, .streams = 1, .opener = true};
        link->key.bytes[0] = (uint8_t)(rank + 2 * (detail >> 7)); /* the link from before, or a new one */
    }
}

static void tell(struct peer *peer, struct peer_event event, uint64_t now_ns) {
    event.now_ns = now_ns;
    event.reason = "reason";
    peer_step(peer, &event);
}

static void bring_links_up(struct peer *peer, uint64_t now_ns) {
    for (uint32_t i = 0; i < peer->link_count; i++) {
        tell(peer, (struct peer_event){.kind = PEER_EVENT_LINK_UP, .key = peer->links[i].key}, now_ns);
    }
}

/* As far as chance alone hardly gets: a member of an epoch. */
static void join(struct peer *peer, uint64_t now_ns, uint64_t *last_call) {
    static struct message message;
    struct peer_event connect = {.kind = PEER_EVENT_CONNECT, .call = ++*last_call};
    call_open[connect.call] = true;
    tell(peer, connect, now_ns);
    tell(peer, (struct peer_event){.kind = PEER_EVENT_CONTROL_OPEN}, now_ns);
    const struct peer_event arrives = {.kind = PEER_EVENT_MESSAGE, .message = &message};
    message = (struct message){.type = MESSAGE_WELCOME};
    tell(peer, arrives, now_ns);
    fill_plan(&message, 1, 2);
    tell(peer, arrives, now_ns);
    bring_links_up(peer, now_ns);
    message.type = MESSAGE_COMMIT_EPOCH;
    memset(&message.as.commit_epoch, 0, sizeof message.as.commit_epoch);
    message.as.commit_epoch.epoch = 1;
    tell(peer, arrives, now_ns);
    CHECK(peer->phase == PEER_MEMBER);
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
        message->as.op.number = (control & 4) != 0 ? 0 : peer->ops[peer->first_op].number;
    }
    if (message->type == MESSAGE_COMMIT_EPOCH && message->as.commit_epoch.served_count > 0) {
        message->as.commit_epoch.served_ops[0].op.tag = tag;
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
        if (message.type == MESSAGE_PROPOSE && (control & 4) != 0) {
            fill_plan(&message, peer->plan.epoch + 1, detail);
        }
        set_numbers(peer, &message, control);
        event->message = &message;
    } else if (event->kind == PEER_EVENT_LINK_UP || event->kind == PEER_EVENT_LINK_DOWN) {
        event->key =
            peer->link_count > 0 ? peer->links[detail % peer->link_count].key : (struct id){{detail}};
    } else {
        event->op = (control & 4) != 0 ? detail : detail % 4;           /* few are in flight */
        event->descriptor = (struct op_descriptor){.kind = OP_BARRIER}; /* what another calls */
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
    if (size > 0 && (data[size - 1] & 1) != 0) {
        join(peer, now_ns, &last_call);
    }
    for (int records = 0; input.left > 0 && records < 400; records++) {
        now_ns += (uint64_t)input_u8(&input) * 1000000;
        struct peer_event event = {.now_ns = now_ns, .reason = "reason"};
        fill_event(peer, &event, &input, &last_call);
        peer_step(peer, &event);
        CHECK(peer_deadline(peer) > 0);
        CHECK(!peer->ballot_waits || (peer->vote_call != 0 && !peer->close_waits));
    }
    if (last_call < CALLS) { /* whatever has happened, close ends everything */
        struct peer_event close = {.kind = PEER_EVENT_CLOSE, .now_ns = now_ns, .call = ++last_call};
        call_open[last_call] = true;
        peer_step(peer, &close);
        struct peer_event later = {.kind = PEER_EVENT_TICK, .now_ns = now_ns + UINT64_C(100000000000)};
        for (int waits = 0; waits < 3; waits++) { /* for a commit, and for the farewell */
            peer_step(peer, &later);
            later.now_ns += UINT64_C(100000000000);
        }
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
