/* One rank of the Open MPI rival. Usage: mpi CONTROL_SOCKET
 *
 * Reads requests "count datatype redop in_place warmup iterations" from the Unix socket, one line each, and
 * answers {"times_ns": [...], "wrong": null, "cpu_ns": ...}. Every rank has its own connection, because a
 * rank that waited in MPI for the next request would spin and take the processor from those that are measured
 * meanwhile. */

#define _POSIX_C_SOURCE 200809L

#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int count;
    MPI_Datatype datatype;
    MPI_Op redop;
    bool in_place;
    int warmup;
    int iterations;
} request_t;

static int64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static FILE *control_open(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return NULL;
    strcpy(address.sun_path, path);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        return NULL;
    return fdopen(fd, "r+");
}

static bool datatype_parse(const char *name, MPI_Datatype *datatype) {
    const struct {
        const char *name;
        MPI_Datatype datatype;
    } known[] = {
        {"int8", MPI_INT8_T},   {"uint8", MPI_UINT8_T},   {"int16", MPI_INT16_T}, {"uint16", MPI_UINT16_T},
        {"int32", MPI_INT32_T}, {"uint32", MPI_UINT32_T}, {"int64", MPI_INT64_T}, {"uint64", MPI_UINT64_T},
        {"float", MPI_FLOAT},   {"double", MPI_DOUBLE},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(name, known[i].name) == 0) {
            *datatype = known[i].datatype;
            return true;
        }
    }
    return false;
}

static bool redop_parse(const char *name, MPI_Op *redop) {
    const struct {
        const char *name;
        MPI_Op redop;
    } known[] = {{"sum", MPI_SUM}, {"prod", MPI_PROD}, {"max", MPI_MAX}, {"min", MPI_MIN}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(name, known[i].name) == 0) {
            *redop = known[i].redop;
            return true;
        }
    }
    return false;
}

static bool request_parse(const char *line, request_t *request) {
    char datatype[16], redop[8];
    int in_place;
    if (sscanf(line, "%d %15s %7s %d %d %d", &request->count, datatype, redop, &in_place, &request->warmup,
               &request->iterations) != 6) {
        return false;
    }
    request->in_place = in_place != 0;
    return request->count > 0 && request->iterations > 0 && datatype_parse(datatype, &request->datatype) &&
           redop_parse(redop, &request->redop);
}

/* The caller frees the times. *cpu_ns is what the process has used while the timed ops ran. */
static int64_t *measure(const request_t *request, int64_t *cpu_ns) {
    int size_bytes;
    MPI_Type_size(request->datatype, &size_bytes);
    const size_t bytes = (size_t)request->count * (size_t)size_bytes;
    int64_t *times_ns = calloc((size_t)request->iterations, sizeof *times_ns);
    void *send = malloc(bytes), *recv = request->in_place ? send : malloc(bytes);
    if (times_ns && send && recv) {
        /* Zeros stay zeros under every op; the pages are touched before the clock runs. */
        memset(send, 0, bytes);
        memset(recv, 0, bytes);
        const void *source = request->in_place ? MPI_IN_PLACE : send;
        for (int i = -request->warmup; i < request->iterations; i++) {
            if (i == 0)
                *cpu_ns = -now_ns(CLOCK_PROCESS_CPUTIME_ID);
            const int64_t begin_ns = now_ns(CLOCK_MONOTONIC);
            MPI_Allreduce(source, recv, request->count, request->datatype, request->redop, MPI_COMM_WORLD);
            if (i >= 0)
                times_ns[i] = now_ns(CLOCK_MONOTONIC) - begin_ns;
        }
        *cpu_ns += now_ns(CLOCK_PROCESS_CPUTIME_ID);
    } else {
        free(times_ns);
        times_ns = NULL;
    }
    if (recv != send)
        free(recv);
    free(send);
    return times_ns;
}

static void answer(FILE *control, const char *line) {
    request_t request;
    int64_t cpu_ns = 0;
    int64_t *times_ns = request_parse(line, &request) ? measure(&request, &cpu_ns) : NULL;
    if (!times_ns) {
        fprintf(control, "{\"error\": \"a request that cannot be understood, or no memory for it\"}\n");
    } else {
        fprintf(control, "{\"times_ns\": [");
        for (int i = 0; i < request.iterations; i++) {
            fprintf(control, "%s%lld", i ? ", " : "", (long long)times_ns[i]);
        }
        fprintf(control, "], \"wrong\": null, \"cpu_ns\": %lld}\n", (long long)cpu_ns);
    }
    fflush(control);
    free(times_ns);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    FILE *control = argc == 2 ? control_open(argv[1]) : NULL;
    if (!control) {
        fprintf(stderr, "mpi: no control socket\n");
        MPI_Abort(MPI_COMM_WORLD, 1);
        return 1;
    }
    fprintf(control, "{\"rank\": %d}\n{\"ready\": true}\n", rank);
    fflush(control);
    char line[128];
    while (fgets(line, sizeof line, control))
        answer(control, line);
    MPI_Finalize();
    return 0;
}
