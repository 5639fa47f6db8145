#define _GNU_SOURCE
#include "net/dial.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/socket.h"

/* How long an address is waited for alone. */
static const uint64_t head_start_ns = 250 * NS_PER_MS;

void dial_init(struct dial *dial, struct poller *poller, uint8_t kind) {
    *dial = (struct dial){.poller = poller};
    for (int i = 0; i < MAX_MASTER_ADDRESSES; i++) {
        poll_item_init(&dial->tries[i].item, kind);
    }
}

/* Of the try's socket, which stays open. */
static int take_out(struct dial *dial, struct dial_try *one) {
    int fd = one->item.fd;
    poller_remove(dial->poller, &one->item);
    return fd;
}

static void fail(struct dial *dial, struct dial_try *one, int error) {
    one->error = error;
    if (one->item.fd >= 0) {
        descriptor_close(take_out(dial, one));
    }
}

static const struct address *address_of(const struct dial *dial, uint16_t i) {
    return &dial->place.addresses[(dial->first + i) % dial->place.count];
}

static void start_next(struct dial *dial, uint64_t now_ns) {
    struct dial_try *one = &dial->tries[dial->started];
    const struct socket_options options = {.user_timeout_ms = dial->timeout_ms};
    int fd = socket_connect(address_of(dial, dial->started), &options);
    dial->started++;
    dial->next_ns = now_ns + head_start_ns;
    one->error = fd < 0 ? fd : poller_add(dial->poller, &one->item, fd, POLL_LEVEL);
    if (one->error == 0) {
        poller_watch_writable(dial->poller, &one->item, true);
    } else if (fd >= 0) {
        descriptor_close(fd);
    }
}

static bool any_open(const struct dial *dial) {
    for (uint16_t i = 0; i < dial->started; i++) {
        if (dial->tries[i].item.fd >= 0) {
            return true;
        }
    }
    return false;
}

void dial_start(struct dial *dial, const struct dial_place *place, uint16_t first, uint64_t patience_ns,
                uint32_t timeout_ms) {
    CHECK(place->count >= 1 && place->count <= MAX_MASTER_ADDRESSES && !any_open(dial));
    dial->place = *place;
    dial->first = (uint16_t)(first % place->count);
    dial->started = 0;
    dial->timeout_ms = timeout_ms;
    dial->begin_ns = clock_now_ns();
    dial->deadline_ns = dial->begin_ns + patience_ns;
    dial->next_ns = dial->begin_ns;
}

void dial_stop(struct dial *dial) {
    for (uint16_t i = 0; i < dial->started; i++) {
        fail(dial, &dial->tries[i], -ECANCELED);
    }
    dial->place.count = dial->started = 0;
}

/* The result of a try that the poller has found something of. */
static int result_of(struct dial *dial, struct poll_item *item, const struct address **address_out) {
    for (uint16_t i = 0; i < dial->started; i++) {
        struct dial_try *one = &dial->tries[i];
        if (&one->item != item || item->fd < 0) {
            continue;
        }
        int error = socket_connect_result(item->fd);
        if (error == 0) {
            *address_out = address_of(dial, i);
            return take_out(dial, one);
        }
        if (error != -EINPROGRESS) {
            fail(dial, one, error);
        }
    }
    return -EINPROGRESS;
}

int dial_turn(struct dial *dial, struct poll_item *item, const struct address **address_out) {
    if (dial->place.count == 0) {
        return -EINPROGRESS;
    }
    if (item != NULL) {
        item->writable = item->readable = false;
        int fd = result_of(dial, item, address_out);
        if (fd >= 0) {
            for (uint16_t i = 0; i < dial->started; i++) {
                fail(dial, &dial->tries[i], -ECANCELED);
            }
            return fd;
        }
    }
    uint64_t now_ns = clock_now_ns();
    while (dial->started < dial->place.count && (!any_open(dial) || now_ns >= dial->next_ns)) {
        start_next(dial, now_ns);
    }
    if (any_open(dial) && now_ns < dial->deadline_ns) {
        return -EINPROGRESS;
    }
    for (uint16_t i = 0; i < dial->started; i++) {
        if (dial->tries[i].item.fd >= 0) {
            fail(dial, &dial->tries[i], -ETIMEDOUT);
        }
    }
    return -ECONNREFUSED;
}

uint64_t dial_deadline(const struct dial *dial) {
    if (!any_open(dial)) {
        return UINT64_MAX;
    }
    bool more = dial->started < dial->place.count && dial->next_ns < dial->deadline_ns;
    return more ? dial->next_ns : dial->deadline_ns;
}

/* ---- in words ---- */

enum { TOLD_ADDRESSES = 3 }; /* of those that failed */

static const char *place_name(const struct dial_place *place, char text[ADDRESS_TEXT_BYTES]) {
    return place->name[0] != '\0' ? place->name : address_text(&place->addresses[0], text);
}

const char *dial_describe_place(const struct dial_place *place, const struct address *address,
                                char text[DIAL_TEXT_BYTES]) {
    char where[ADDRESS_TEXT_BYTES];
    address_text(address, where);
    if (place->name[0] == '\0' || strcmp(place->name, where) == 0) {
        snprintf(text, DIAL_TEXT_BYTES, "%s", where);
    } else {
        snprintf(text, DIAL_TEXT_BYTES, "%.90s (%s)", place->name, where);
    }
    return text;
}

static const char *why(const struct dial *dial, const struct dial_try *one, char text[64]) {
    if (one->error == -ETIMEDOUT) {
        double seconds = (double)(clock_now_ns() - dial->begin_ns) / 1e9;
        snprintf(text, 64, "no answer within %.1f s", seconds);
        return text;
    }
    return strerror(-one->error);
}

const char *dial_describe_failure(const struct dial *dial, char text[DIAL_FAILURE_BYTES]) {
    char where[ADDRESS_TEXT_BYTES], reason[64];
    bool refused = true;
    int at = snprintf(text, DIAL_FAILURE_BYTES, "can't connect to a master at %.60s",
                      place_name(&dial->place, where));
    for (uint16_t i = 0; i < dial->started; i++) {
        const struct dial_try *one = &dial->tries[i];
        refused = refused && one->error == -ECONNREFUSED;
        if (i >= TOLD_ADDRESSES) {
            continue;
        }
        address_text(address_of(dial, i), where);
        bool said =
            dial->started == 1 && (dial->place.name[0] == '\0' || strcmp(where, dial->place.name) == 0);
        at += snprintf(text + at, (size_t)(DIAL_FAILURE_BYTES - at), "%s %s%s%s", i == 0 ? ":" : ";",
                       said ? "" : where, said ? "" : ": ", why(dial, one, reason));
    }
    if (dial->started > TOLD_ADDRESSES) {
        at += snprintf(text + at, (size_t)(DIAL_FAILURE_BYTES - at), "; %d more",
                       dial->started - TOLD_ADDRESSES);
    }
    snprintf(text + at, (size_t)(DIAL_FAILURE_BYTES - at), ". %s",
             refused
                 ? "Does `pccl master` run there, on this port?"
                 : "Is the address right, does `pccl master` run there, may the port be reached (firewall)?");
    return text;
}
