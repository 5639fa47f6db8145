#include "core/ring.h"

#include "wire/message.h"

uint32_t ring_steps(const struct schedule *schedule) {
    switch (schedule->kind) {
    case OP_ALL_REDUCE:
        return 2u * (schedule->world - 1u);
    case OP_BARRIER:
        return 0;
    default:
        return schedule->world - 1u;
    }
}

/* The segment that is `back` places behind the rank's own, going round. */
static uint32_t behind(const struct schedule *schedule, uint32_t back) {
    return (schedule->place + 2u * schedule->world - back) % schedule->world; /* back <= 2 * world */
}

static struct step broadcast_step(const struct schedule *schedule, uint32_t step) {
    uint32_t distance = (schedule->place + schedule->world - (uint32_t)schedule->root) % schedule->world;
    return (struct step){.to = step == distance ? EDGE_NEXT : EDGE_NONE,
                         .from = step + 1 == distance ? EDGE_PREVIOUS : EDGE_NONE,
                         .source = distance == 0 ? BUFFER_INPUT : BUFFER_RESULT,
                         .forwards = distance != 0,
                         .target = BUFFER_RESULT};
}

struct step ring_step(const struct schedule *schedule, uint32_t step) {
    if (schedule->kind == OP_BROADCAST) {
        return broadcast_step(schedule, step);
    }
    bool scatters = schedule->kind == OP_REDUCE_SCATTER;
    uint32_t reducing = schedule->kind == OP_ALL_GATHER ? 0 : schedule->world - 1u;
    uint32_t back = step + (scatters ? 1 : 0);
    uint8_t kept = scatters ? BUFFER_SCRATCH : BUFFER_RESULT;
    return (struct step){.to = EDGE_NEXT,
                         .from = EDGE_PREVIOUS,
                         .sends = behind(schedule, back),
                         .receives = behind(schedule, back + 1),
                         .reduces = step < reducing,
                         .finishes = step + 1 == reducing,
                         .forwards = step > 0 && step > reducing,
                         .source = step == 0 ? BUFFER_INPUT : kept,
                         .own = BUFFER_INPUT,
                         .target = kept};
}
