/* What goes wrong in a run, drawn before it begins. */
#ifndef PCCL_TESTS_SIM_FAULT_H
#define PCCL_TESTS_SIM_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "wire/message.h"

enum { MAX_FAULTS = 64 };

struct world;

enum fault_kind {
    FAULT_NEWCOMER, /* a new process starts at host a (no fault, but timed like one) */
    FAULT_CRASH,    /* the process at a dies, its kernel says so */
    FAULT_POWEROFF, /* the host dies without a word */
    FAULT_FREEZE,
    FAULT_RESET_CONTROL,
    FAULT_RESET_LINK,
    FAULT_BLOCK, /* one way, a to b */
    FAULT_CUT,   /* both ways */
    FAULT_ISOLATE,
    FAULT_STALL, /* within what a healthy network may do */
    FAULT_MASTER_CRASH,
    FAULT_MASTER_FREEZE,
    FAULT_CLOSE,
    FAULT_CLOSE_EARLY, /* right after the next op that returns early */
    FAULT_SLOW_USER,
    FAULT_WRONG_USER,
    FAULT_KIND_END
};

enum trigger { TRIGGER_EVENT, TRIGGER_TIME, TRIGGER_MESSAGE };

/* Beside the types of messages: those that say something of ops that were returned early. */
enum {
    READY_THAT_KEEPS = MESSAGE_TYPE_END,
    COMMIT_EPOCH_THAT_SERVES,
    OP_DONE_THAT_RETURNED,
    FAULT_MESSAGE_END
};

struct fault {
    enum fault_kind kind;
    enum trigger trigger;
    uint64_t at;      /* event number, time, or which occurrence of `message` */
    uint16_t message; /* TRIGGER_MESSAGE: sent by anybody */
    bool at_sender;   /* TRIGGER_MESSAGE: strikes whoever has sent it, unless that is the master */
    int a, b;         /* hosts */
    uint64_t duration;
    uint64_t restart_after; /* 0: never */
    uint8_t wrong;
    bool fired, ended, dropped;
};

void faults_plan(struct world *world);
void faults_at_event(struct world *world);
void faults_on_message(struct world *world, int sender, const struct message *message);
void fault_fire(struct world *world, struct fault *fault);
void fault_end(struct world *world, struct fault *fault);
void faults_stop(struct world *world);
bool faults_done(const struct world *world);
void suspect_host(struct world *world, int host, uint64_t until);
void suspect_edge(struct world *world, int a, int b, uint64_t until);

/* trace.c */
const char *fault_name(enum fault_kind kind);

#endif
