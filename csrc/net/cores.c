#define _GNU_SOURCE
#include "net/cores.h"

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/limits.h"

/* Half of the cores are for the program. When most of the machine has work, more threads would only take
 * turns with it, and to wake them would cost besides. What all peers do here makes half of that at most, so
 * that they don't take each other, or themselves, for the other work. */
static const double busy = 0.75;

uint32_t cores_best_threads(uint32_t cores, uint32_t allowed, uint32_t peers_here, double load) {
    uint32_t threads = allowed / 2 / (peers_here > 0 ? peers_here : 1);
    if (threads < 2 || load > busy * cores) {
        return 1;
    }
    return threads < MAX_AUTOMATIC_DATA_THREADS ? threads : MAX_AUTOMATIC_DATA_THREADS;
}

uint32_t cores_best_threads_now(uint32_t peers_here) {
    cpu_set_t set;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    /* It fails beyond 1024 cores: then it is as if we might use all. */
    long allowed = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : cores;
    double load;
    if (cores < 1 || getloadavg(&load, 1) != 1) {
        return 1;
    }
    return cores_best_threads((uint32_t)cores, (uint32_t)allowed, peers_here, load);
}
