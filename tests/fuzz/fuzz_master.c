/* The master's machine, fed with any messages from up to 16 connections that open, talk and close in any
 * order. To get past the checks on numbers that a fuzzer can't guess, a bit of each record asks for the
 * right epoch or for the id of a peer that exists. Whatever comes, the books must add up. */
#include <stdlib.h>

#include "base/check.h"
#include "core/master_state.h"
#include "machine_input.h"

enum { CONNECTIONS = 16 };

static uint64_t numbers[CONNECTIONS]; /* of the connections that are open; 0: none */
static uint64_t last_number;

static void perform(void *context, const struct master_action *action) {
    (void)context;
    static uint8_t bytes[MAX_MESSAGE_BYTES];
    if (action->kind == MASTER_SEND) {
        CHECK(message_encode(action->message, bytes, sizeof bytes) > 0);
        CHECK(action->connection != 0);
    } else if (action->kind == MASTER_LOG) {
        CHECK(action->text[0] != '\0');
    }
}

static void check_books(const struct master *master) {
    for (int slot = 0; slot < MAX_PEERS; slot++) {
        const struct slot *peer = &master->slots[slot];
        CHECK((peer->state == SLOT_MEMBER) == slot_set_has(&master->members, slot));
        CHECK((peer->state == SLOT_FREE) == (master->connections[slot] == 0));
    }
    int open = 0;
    for (int i = 0; i < MAX_PEERS; i++) {
        const struct group *group = &master->groups[i];
        CHECK(group->size == 0 || group->used);
        for (int k = 0; k < group->size; k++) {
            const struct slot *peer = &master->slots[group->ring[k]];
            CHECK(peer->group == i && (peer->state == SLOT_MEMBER || peer->state == SLOT_JOINING));
            CHECK(peer->link_count <= MAX_LINKS && (peer->link_count > 0) == (group->size > 1));
            for (int l = 0; l < peer->link_count; l++) {
                CHECK(!id_is_zero(&peer->links[l].key) && master->slots[peer->links[l].other].group == i);
            }
        }
        for (int at = group->used ? group->first_op : NO_MASTER_OP; at != NO_MASTER_OP;
             at = master->ops[at].next) {
            CHECK(master->ops[at].used && master->ops[at].group == i && ++open <= MAX_MASTER_OPS);
        }
    }
}

static void set_numbers(struct master *master, struct message *message, uint8_t control, int slot) {
    uint64_t *epoch = message_epoch(message);
    if ((control & 1) != 0 && epoch != NULL && slot >= 0) {
        *epoch = master->groups[master->slots[slot].group].plan_epoch;
    }
    int other = control >> 1 & 7;
    if ((control & 16) != 0 && master->slots[other].state != SLOT_FREE) {
        struct id id = master->slots[other].id;
        if (message->type == MESSAGE_UNREACHABLE || message->type == MESSAGE_LINK_LOST) {
            message->as.unreachable.peer = id;
        } else if (message->type == MESSAGE_OP_MISMATCH) {
            message->as.op_mismatch.other = id;
        }
    }
}

static void one_record(struct master *master, struct input *input, uint64_t *now_ns) {
    static struct message message;
    uint8_t control = input_u8(input), which = input_u8(input) % CONNECTIONS;
    *now_ns += (uint64_t)input_u8(input) * 10000000;
    struct master_event event = {.kind = MASTER_TICK, .now_ns = *now_ns, .reason = "closed"};
    if ((control & 0xe0) == 0xe0) {
        event.kind = numbers[which] != 0 ? MASTER_CLOSED : MASTER_TICK;
        event.connection = numbers[which];
        numbers[which] = 0;
    } else if ((control & 0xe0) != 0xc0 && input_message(input, &message)) {
        if (numbers[which] == 0) {
            numbers[which] = ++last_number;
        }
        int slot = -1;
        for (int i = 0; i < MAX_PEERS && slot < 0; i++) {
            slot = master->connections[i] == numbers[which] ? i : -1;
        }
        set_numbers(master, &message, control, slot);
        event.kind = MASTER_MESSAGE;
        event.connection = numbers[which];
        event.remote = (struct address){.family = ADDRESS_IPV4, .bytes = {127, 0, 0, 1}, .port = 9};
        event.message = &message;
    }
    master_step(master, &event);
    (void)master_deadline(master);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct master *master;
    master = master != NULL ? master : malloc(master_bytes());
    memset(master, 0, master_bytes());
    struct master_options options = {.seed = 1};
    master_init(master, &options, perform, NULL);
    memset(numbers, 0, sizeof numbers);
    last_number = 0;
    struct input input = {.bytes = data, .left = size};
    uint64_t now_ns = 1000000000;
    for (int records = 0; input.left > 0 && records < 200; records++) {
        one_record(master, &input, &now_ns);
    }
    check_books(master);
    return 0;
}
