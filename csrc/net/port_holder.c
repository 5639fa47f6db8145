/* /proc/net/tcp and tcp6 list the sockets of this network name space with their inodes; which process has an
 * inode open shows in /proc/PID/fd, of processes of the same user. */
#define _GNU_SOURCE
#include "net/port_holder.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* In the column `st`; the others are of connections that live. */
enum { TCP_STATE_TIME_WAIT = 0x06, TCP_STATE_LISTEN = 0x0a };

/* The later ones say more about why. */
enum holder_kind { HOLDER_UNKNOWN, HOLDER_OLD_CONNECTION, HOLDER_CONNECTION, HOLDER_LISTENER };

struct holder {
    enum holder_kind kind;
    uint64_t inode;
};

struct program {
    char name[32];
    char process[16];
};

static const uint8_t mapped_prefix[12] = {[10] = 0xff, [11] = 0xff};

/* Each word of 8 digits is four bytes in network order, printed as a number of this machine. */
static bool parse_host(const char *digits, struct address *address) {
    size_t length = strlen(digits);
    uint8_t bytes[16] = {0};
    if (length != 8 && length != 32) {
        return false;
    }
    for (size_t i = 0; i < length / 8; i++) {
        char word_digits[9] = {0};
        memcpy(word_digits, digits + 8 * i, 8);
        uint32_t word = (uint32_t)strtoul(word_digits, NULL, 16);
        memcpy(bytes + 4 * i, &word, sizeof word);
    }
    bool mapped = length == 32 && memcmp(bytes, mapped_prefix, sizeof mapped_prefix) == 0;
    address->family = length == 8 || mapped ? ADDRESS_IPV4 : ADDRESS_IPV6;
    memcpy(address->bytes, bytes + (mapped ? sizeof mapped_prefix : 0), mapped ? 4 : 16);
    return true;
}

static bool is_any(const struct address *address) {
    static const uint8_t zero[16];
    return memcmp(address->bytes, zero, sizeof zero) == 0;
}

static bool conflicts(const struct address *held, const struct address *wanted) {
    if (held->family != wanted->family) { /* an IPv6 socket on all addresses takes IPv4 too */
        return (held->family == ADDRESS_IPV6 && is_any(held)) ||
               (wanted->family == ADDRESS_IPV6 && is_any(wanted));
    }
    return is_any(held) || is_any(wanted) || memcmp(held->bytes, wanted->bytes, sizeof held->bytes) == 0;
}

static enum holder_kind kind_of(unsigned state, uint64_t inode) {
    if (state == TCP_STATE_LISTEN) {
        return HOLDER_LISTENER;
    }
    return state == TCP_STATE_TIME_WAIT || inode == 0 ? HOLDER_OLD_CONNECTION : HOLDER_CONNECTION;
}

static void look_into(const char *table, const struct address *wanted, struct holder *found) {
    FILE *file = fopen(table, "re");
    char line[512];
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char host[33];
        unsigned port, state;
        struct holder holder;
        struct address held = {0};
        if (sscanf(line, " %*u: %32[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x %*x:%*x %*x:%*x %*x %*u %*u %" SCNu64,
                   host, &port, &state, &holder.inode) != 4 ||
            port != wanted->port || !parse_host(host, &held) || !conflicts(&held, wanted)) {
            continue;
        }
        holder.kind = kind_of(state, holder.inode);
        if (holder.kind > found->kind) {
            *found = holder;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

static bool has_open(const char *process, const char *socket_name) {
    char path[64], target[64];
    snprintf(path, sizeof path, "/proc/%.16s/fd", process);
    DIR *descriptors = opendir(path);
    bool has = false;
    struct dirent *entry;
    while (descriptors != NULL && !has && (entry = readdir(descriptors)) != NULL) {
        ssize_t size = readlinkat(dirfd(descriptors), entry->d_name, target, sizeof target - 1);
        target[size > 0 ? size : 0] = '\0';
        has = strcmp(target, socket_name) == 0;
    }
    if (descriptors != NULL) {
        closedir(descriptors);
    }
    return has;
}

static void read_name(struct program *program) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/comm", program->process);
    FILE *file = fopen(path, "re");
    if (file == NULL || fgets(program->name, sizeof program->name, file) == NULL) {
        snprintf(program->name, sizeof program->name, "a program");
    }
    if (file != NULL) {
        fclose(file);
    }
    program->name[strcspn(program->name, "\n")] = '\0';
    for (char *c = program->name; *c != '\0'; c++) { /* a program may call itself anything */
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
}

/* False if it is another user's, or in another process name space. */
static bool find_program(uint64_t inode, struct program *program) {
    char socket_name[64];
    snprintf(socket_name, sizeof socket_name, "socket:[%" PRIu64 "]", inode);
    DIR *processes = opendir("/proc");
    bool found = false;
    struct dirent *entry;
    while (processes != NULL && !found && (entry = readdir(processes)) != NULL) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && has_open(entry->d_name, socket_name)) {
            snprintf(program->process, sizeof program->process, "%.15s", entry->d_name);
            read_name(program);
            found = true;
        }
    }
    if (processes != NULL) {
        closedir(processes);
    }
    return found;
}

const char *port_holder_describe(const struct address *address, char text[PORT_HOLDER_BYTES]) {
    struct holder holder = {.kind = HOLDER_UNKNOWN};
    look_into("/proc/net/tcp", address, &holder);
    look_into("/proc/net/tcp6", address, &holder);
    char who[96] = "a program of another user or container";
    struct program program;
    bool is_open = holder.kind == HOLDER_LISTENER || holder.kind == HOLDER_CONNECTION;
    if (is_open && find_program(holder.inode, &program)) {
        snprintf(who, sizeof who, "%s (process %s)", program.name, program.process);
    }
    switch (holder.kind) {
    case HOLDER_LISTENER:
        snprintf(text, PORT_HOLDER_BYTES, "%s listens on it", who);
        break;
    case HOLDER_CONNECTION:
        snprintf(text, PORT_HOLDER_BYTES, "a connection that %s has made uses it until it is closed", who);
        break;
    case HOLDER_OLD_CONNECTION:
        snprintf(text, PORT_HOLDER_BYTES,
                 "a connection that has ended still holds it, for a minute at most (TIME_WAIT)");
        break;
    case HOLDER_UNKNOWN:
        snprintf(text, PORT_HOLDER_BYTES, "another program has bound it without listening on it");
        break;
    }
    return text;
}
