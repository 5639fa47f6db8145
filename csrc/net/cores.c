#define _GNU_SOURCE
#include "net/cores.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
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

/* How many cores a container may use: version 2 of control groups. UINT32_MAX if nothing is said. */
static uint32_t quota(void) {
    unsigned long long granted_us, period_us;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (file == NULL) {
        return UINT32_MAX;
    }
    bool limited = fscanf(file, "%llu %llu", &granted_us, &period_us) == 2 && period_us > 0;
    fclose(file);
    return limited && granted_us / period_us < UINT32_MAX ? (uint32_t)(granted_us / period_us) : UINT32_MAX;
}

uint32_t cores_best_threads_now(uint32_t peers_here) {
    cpu_set_t set;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    /* Of the main thread: the calling one may have been bound to a core by itself. It fails beyond 1024
     * cores: then it is as if we might use all. */
    uint32_t allowed =
        sched_getaffinity(getpid(), sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : (uint32_t)cores;
    uint32_t granted = quota();
    allowed = granted < allowed ? granted : allowed;
    double load;
    if (cores < 1 || getloadavg(&load, 1) != 1) {
        return 1;
    }
    return cores_best_threads((uint32_t)cores, allowed, peers_here, load);
}
