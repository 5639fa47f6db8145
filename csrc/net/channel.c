#define _GNU_SOURCE
#include "net/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "net/descriptors.h"

enum {
    LINE_BYTES = 128, /* processors fetch cache lines in pairs */
    /* What is copied is shown to the other end in pieces, so that both copy at the same time. */
    PIECE_BYTES = 32 * 1024,
    /* Less room is not worth a turn. */
    ROOM_BYTES = CHANNEL_BYTES / 4,
};

_Static_assert((CHANNEL_BYTES & (CHANNEL_BYTES - 1)) == 0,
               "places in a ring are remainders of a wrapping count");

/* One direction. Each end writes to its own line, and reads the other's. Counts of bytes only grow. */
struct lane {
    _Alignas(LINE_BYTES) _Atomic uint64_t written;
    _Atomic uint32_t writer_waits;
    _Alignas(LINE_BYTES) _Atomic uint64_t read;
    _Atomic uint32_t reader_waits;
    _Alignas(LINE_BYTES) uint8_t bytes[CHANNEL_BYTES];
};

struct channel_memory {
    struct lane lanes[2]; /* by the end that writes */
};

static struct lane *lane_out(const struct channel *channel) {
    return &channel->memory->lanes[channel->end];
}

static struct lane *lane_in(const struct channel *channel) {
    return &channel->memory->lanes[1 - channel->end];
}

/* ---- open, close ---- */

static int map(struct channel *channel, int bell, int descriptor, uint8_t end) {
    void *memory =
        mmap(NULL, sizeof(struct channel_memory), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (memory == MAP_FAILED) {
        return -errno;
    }
    /* A child that is forked has no end of it. */
    (void)madvise(memory, sizeof(struct channel_memory), MADV_DONTFORK);
    *channel = (struct channel){.memory = memory, .end = end, .bell = bell};
    return 0;
}

/* With these nobody can cut the memory off from under a reader, who would be killed by it. */
static const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

int channel_create(struct channel *channel, int bell) {
    int descriptor = DESCRIPTOR(memfd_create("pccl", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (descriptor < 0) {
        return descriptor;
    }
    int error = 0;
    /* The memory is taken now: where there is none left, its first use would be a signal. */
    if (ftruncate(descriptor, sizeof(struct channel_memory)) != 0 ||
        fallocate(descriptor, 0, 0, sizeof(struct channel_memory)) != 0 ||
        fcntl(descriptor, F_ADD_SEALS, seals) != 0) {
        error = -errno;
    } else {
        error = map(channel, bell, descriptor, 0);
    }
    if (error != 0) {
        descriptor_close(descriptor);
        return error;
    }
    return descriptor;
}

int channel_open(struct channel *channel, int bell, int memory) {
    struct stat status;
    int sealed = fcntl(memory, F_GET_SEALS);
    if (sealed < 0 || (sealed & seals) != seals || fstat(memory, &status) != 0 ||
        status.st_size != (off_t)sizeof(struct channel_memory)) {
        return -EINVAL;
    }
    return map(channel, bell, memory, 1);
}

void channel_close(struct channel *channel) {
    if (channel->memory != NULL) {
        munmap(channel->memory, sizeof(struct channel_memory));
        channel->memory = NULL;
    }
}

/* ---- how much there is ---- */

/* More than CHANNEL_BYTES is nonsense. */
static uint64_t input_bytes(const struct channel *channel) {
    return atomic_load_explicit(&lane_in(channel)->written, memory_order_acquire) - channel->read;
}

/* Written and not read; likewise. */
static uint64_t pending_bytes(const struct channel *channel) {
    return channel->written - atomic_load_explicit(&lane_out(channel)->read, memory_order_acquire);
}

size_t channel_waiting(const struct channel *channel) {
    uint64_t input = input_bytes(channel);
    return input <= CHANNEL_BYTES ? (size_t)input : 0;
}

bool channel_has_input(const struct channel *channel) {
    return input_bytes(channel) != 0;
}

bool channel_has_room(const struct channel *channel) {
    uint64_t pending = pending_bytes(channel);
    return pending <= CHANNEL_BYTES - ROOM_BYTES || pending > CHANNEL_BYTES;
}

/* ---- the bell ---- */

void channel_await(struct channel *channel, bool input, bool room) {
    channel->awaits = true;
    atomic_store_explicit(&lane_in(channel)->reader_waits, input, memory_order_relaxed);
    atomic_store_explicit(&lane_out(channel)->writer_waits, room, memory_order_relaxed);
    /* Either the other end sees that we wait, or we see what it has done: see ring_if(). */
    atomic_thread_fence(memory_order_seq_cst);
}

void channel_awake(struct channel *channel) {
    if (channel->awaits) {
        channel->awaits = false;
        atomic_store_explicit(&lane_in(channel)->reader_waits, 0, memory_order_relaxed);
        atomic_store_explicit(&lane_out(channel)->writer_waits, 0, memory_order_relaxed);
    }
}

/* Rings if the other end waits. */
static void ring_if(const struct channel *channel, _Atomic uint32_t *waits) {
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(waits, memory_order_relaxed) != 0 &&
        atomic_exchange_explicit(waits, 0, memory_order_relaxed) != 0) {
        /* If the socket is full the other end has bells enough to hear; if it is broken, the poller tells. */
        (void)send(channel->bell, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
}

bool channel_quiet(const struct channel *channel) {
    uint8_t rung[64]; /* two for each time that we have slept */
    return recv(channel->bell, rung, sizeof rung, MSG_DONTWAIT) < (ssize_t)sizeof rung;
}

/* ---- bytes ---- */

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Between a ring and plain memory: the part up to the ring's end, and the part from its beginning. */
static void copy_out(uint8_t *to, const struct lane *lane, uint64_t from, size_t size) {
    size_t place = from % CHANNEL_BYTES, first = smaller(size, CHANNEL_BYTES - place);
    memcpy(to, lane->bytes + place, first);
    memcpy(to + first, lane->bytes, size - first);
}

static void copy_in(struct lane *lane, uint64_t to, const uint8_t *from, size_t size) {
    size_t place = to % CHANNEL_BYTES, first = smaller(size, CHANNEL_BYTES - place);
    memcpy(lane->bytes + place, from, first);
    memcpy(lane->bytes, from + first, size - first);
}

/* What has been read is free for the other end. */
static void show_read(const struct channel *channel) {
    struct lane *lane = lane_in(channel);
    atomic_store_explicit(&lane->read, channel->read, memory_order_release);
    if (input_bytes(channel) <= CHANNEL_BYTES - ROOM_BYTES) {
        ring_if(channel, &lane->writer_waits);
    }
}

static void show_written(const struct channel *channel) {
    struct lane *lane = lane_out(channel);
    atomic_store_explicit(&lane->written, channel->written, memory_order_release);
    ring_if(channel, &lane->reader_waits);
}

/* Copies as much of a piece as there is. The number of bytes, or -EPROTO. `unshown` counts on. */
static ssize_t read_piece(struct channel *channel, uint8_t *to, size_t size, size_t *unshown) {
    size_t done = 0;
    while (done < size) {
        uint64_t input = input_bytes(channel);
        if (input > CHANNEL_BYTES) {
            return -EPROTO;
        }
        size_t step = smaller(smaller(size - done, (size_t)input), PIECE_BYTES);
        if (step == 0) {
            break;
        }
        copy_out(to + done, lane_in(channel), channel->read, step);
        done += step;
        channel->read += step;
        *unshown += step;
        if (*unshown >= PIECE_BYTES) {
            show_read(channel);
            *unshown = 0;
        }
    }
    return (ssize_t)done;
}

static ssize_t write_piece(struct channel *channel, uint8_t *from, size_t size, size_t *unshown) {
    size_t done = 0;
    while (done < size) {
        uint64_t pending = pending_bytes(channel);
        if (pending > CHANNEL_BYTES) {
            return -EPROTO;
        }
        size_t step = smaller(smaller(size - done, CHANNEL_BYTES - (size_t)pending), PIECE_BYTES);
        if (step == 0) {
            break;
        }
        copy_in(lane_out(channel), channel->written, from + done, step);
        done += step;
        channel->written += step;
        *unshown += step;
        if (*unshown >= PIECE_BYTES) {
            show_written(channel);
            *unshown = 0;
        }
    }
    return (ssize_t)done;
}

typedef ssize_t piece_mover(struct channel *channel, uint8_t *piece, size_t size, size_t *unshown);

static ssize_t move(struct channel *channel, const struct iovec *pieces, int count, piece_mover *move_piece,
                    void (*show)(const struct channel *channel)) {
    ssize_t total = 0;
    size_t unshown = 0;
    for (int i = 0; i < count; i++) {
        ssize_t size = move_piece(channel, pieces[i].iov_base, pieces[i].iov_len, &unshown);
        if (size < 0) {
            return size;
        }
        total += size;
        if ((size_t)size < pieces[i].iov_len) {
            break;
        }
    }
    if (unshown > 0) {
        show(channel);
    }
    return total > 0 ? total : -EAGAIN;
}

ssize_t channel_read(struct channel *channel, const struct iovec *pieces, int count) {
    return move(channel, pieces, count, read_piece, show_read);
}

ssize_t channel_write(struct channel *channel, const struct iovec *pieces, int count) {
    return move(channel, pieces, count, write_piece, show_written);
}
