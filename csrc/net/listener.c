#define _GNU_SOURCE
#include "net/listener.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ccoip.h"
#include "net/clock.h"
#include "net/descriptors.h"
#include "net/socket.h"

static const uint64_t pause_ns = 100 * NS_PER_MS;

/* So that each newcomer is read before others push it out. */
enum { ACCEPTS_PER_TURN = MAX_STRANGERS / 4 };

struct stranger {
    struct poll_item item;
    struct list node;
    uint64_t deadline_ns;
    uint8_t bytes[LINK_GREETING_BYTES];
    uint32_t size;
    bool is_local;
    int memory;   /* of a channel, which it has brought; owned; -1: none */
    bool greeted; /* its link is not known here yet */
    struct link_greeting greeting;
};

void listener_init(struct listener *listener, struct poller *poller, struct link_set *links) {
    *listener = (struct listener){.poller = poller, .links = links};
    poll_item_init(&listener->item, PEER_ITEM_LISTENER);
    poll_item_init(&listener->local_item, PEER_ITEM_LISTENER);
    list_init(&listener->strangers);
}

static int watch(struct listener *listener, struct poll_item *item, int fd) {
    int error = fd < 0 ? fd : poller_add(listener->poller, item, fd, POLL_EDGE);
    if (error != 0 && fd >= 0) {
        descriptor_close(fd);
    }
    return error;
}

int listener_open(struct listener *listener, uint16_t port, bool tcp_only) {
    int fd = port != 0 ? socket_listen_any(port, port)
                       : socket_listen_any(CCOIP_PROTOCOL_PORT_SHARED_STATE, UINT16_MAX);
    int error = watch(listener, &listener->item, fd);
    if (error == 0 && !tcp_only) {
        /* Without it others come over TCP. */
        (void)watch(listener, &listener->local_item, socket_listen_local(listener_port(listener)));
    }
    return error;
}

/* Closes its socket unless that has become a stream's. */
static void part(struct listener *listener, struct stranger *stranger, bool keep_socket) {
    int fd = stranger->item.fd;
    poller_remove(listener->poller, &stranger->item);
    if (!keep_socket && fd >= 0) {
        descriptor_close(fd);
    }
    if (stranger->memory >= 0) {
        descriptor_close(stranger->memory);
    }
    list_remove(&stranger->node);
    listener->stranger_count--;
    free(stranger);
}

static struct stranger *stranger_at(struct list *node) {
    return LIST_ENTRY(node, struct stranger, node);
}

struct stranger *listener_stranger_of(struct poll_item *item) {
    return LIST_ENTRY(item, struct stranger, item);
}

static void unwatch(struct listener *listener, struct poll_item *item) {
    int fd = item->fd;
    poller_remove(listener->poller, item);
    if (fd >= 0) {
        descriptor_close(fd);
    }
}

void listener_close(struct listener *listener) {
    while (!list_is_empty(&listener->strangers)) {
        part(listener, stranger_at(listener->strangers.next), false);
    }
    unwatch(listener, &listener->item);
    unwatch(listener, &listener->local_item);
}

uint16_t listener_port(const struct listener *listener) {
    return socket_local_address(listener->item.fd).port;
}

static void welcome(struct listener *listener, int fd, bool is_local) {
    /* The oldest goes, not the newest: who means to greet does so at once, so that a crowd of silent
     * connections can't keep anybody out. */
    if (listener->stranger_count >= MAX_STRANGERS) {
        part(listener, stranger_at(listener->strangers.next), false);
    }
    struct stranger *stranger = calloc(1, sizeof *stranger);
    if (stranger == NULL) {
        descriptor_close(fd); /* it will try again */
        return;
    }
    poll_item_init(&stranger->item, PEER_ITEM_STRANGER);
    stranger->is_local = is_local;
    stranger->memory = -1;
    stranger->deadline_ns = clock_now_ns() + STRANGER_TIMEOUT_MS * NS_PER_MS;
    list_append(&listener->strangers, &stranger->node);
    listener->stranger_count++;
    if (poller_add(listener->poller, &stranger->item, fd, POLL_EDGE) != 0) {
        part(listener, stranger, true);
        descriptor_close(fd);
    }
}

void listener_ready(struct listener *listener, struct poll_item *item) {
    bool is_local = item == &listener->local_item;
    for (int i = 0; i < ACCEPTS_PER_TURN && item->readable && listener->resume_ns == 0; i++) {
        struct address remote;
        struct socket_options options = {0};
        int fd = is_local ? socket_accept_local(item->fd) : socket_accept(item->fd, &options, &remote);
        link_set_note_result(listener->links, fd);
        if (fd >= 0) {
            welcome(listener, fd, is_local);
        } else if (fd == -EAGAIN) {
            item->readable = false;
        } else if (fd != -EINTR && fd != -ECONNABORTED) {
            listener->resume_ns = clock_now_ns() + pause_ns;
        }
    }
    if (item->readable && listener->resume_ns == 0) {
        poller_heat(listener->poller, item); /* the rest has its turn after what came before */
    }
}

/* A sync of shared state may be waiting for it: then its socket belongs to that from now on. */
static void try_desk(struct listener *listener, struct stranger *stranger) {
    int fd = stranger->item.fd;
    if (!stranger->is_local && listener->desk != NULL &&
        state_desk_expects(listener->desk, &stranger->greeting)) {
        struct id from = stranger->greeting.from;
        part(listener, stranger, true);
        state_desk_put_visitor(listener->desk, fd, &from);
    }
}

static void try_adopt(struct listener *listener, struct stranger *stranger) {
    int fd = stranger->item.fd;
    switch (link_adopt(listener->links, &stranger->greeting, &stranger->item, stranger->memory)) {
    case LINK_ADOPTED:
        part(listener, stranger, true);
        break;
    case LINK_NOT_YET:
        try_desk(listener, stranger); /* its run and its aim are right, or there is no desk yet */
        break;
    case LINK_REFUSED:
        part(listener, stranger, true);
        descriptor_close(fd);
        break;
    }
}

/* As recv(). */
static ssize_t receive(struct stranger *stranger) {
    uint8_t *to = stranger->bytes + stranger->size;
    size_t room = LINK_GREETING_BYTES - stranger->size;
    if (!stranger->is_local) {
        ssize_t size = recv(stranger->item.fd, to, room, MSG_DONTWAIT);
        return size < 0 ? -errno : size;
    }
    int memory;
    ssize_t size = socket_receive_descriptor(stranger->item.fd, to, room, &memory);
    if (memory >= 0 && stranger->memory >= 0) {
        descriptor_close(memory);
    } else if (memory >= 0) {
        stranger->memory = memory;
    }
    return size;
}

void listener_stranger_ready(struct listener *listener, struct stranger *stranger) {
    if (stranger->greeted) {
        if (stranger->item.hangup) {
            part(listener, stranger, false);
        }
        return;
    }
    while (stranger->size < LINK_GREETING_BYTES) {
        ssize_t size = receive(stranger);
        if (size == -EINTR) {
            continue;
        }
        if (size == -EAGAIN) {
            return;
        }
        if (size <= 0) {
            part(listener, stranger, false);
            return;
        }
        stranger->size += (uint32_t)size;
    }
    stranger->greeted = link_greeting_decode(stranger->bytes, &stranger->greeting) &&
                        stranger->is_local == (stranger->memory >= 0);
    if (!stranger->greeted) {
        part(listener, stranger, false);
        return;
    }
    try_adopt(listener, stranger);
}

void listener_match(struct listener *listener) {
    struct list *next;
    for (struct list *node = listener->strangers.next; node != &listener->strangers; node = next) {
        next = node->next;
        if (stranger_at(node)->greeted) {
            try_adopt(listener, stranger_at(node));
        }
    }
}

void listener_tick(struct listener *listener, uint64_t now_ns) {
    while (!list_is_empty(&listener->strangers) &&
           now_ns >= stranger_at(listener->strangers.next)->deadline_ns) {
        part(listener, stranger_at(listener->strangers.next), false);
    }
    if (listener->resume_ns != 0 && now_ns >= listener->resume_ns) {
        listener->resume_ns = 0;
        listener->item.readable = true;
        listener->local_item.readable = listener->local_item.fd >= 0;
        listener_ready(listener, &listener->item);
        listener_ready(listener, &listener->local_item);
    }
}

uint64_t listener_deadline(const struct listener *listener) {
    uint64_t deadline = listener->resume_ns != 0 ? listener->resume_ns : UINT64_MAX;
    if (!list_is_empty(&listener->strangers)) {
        uint64_t first = stranger_at(listener->strangers.next)->deadline_ns;
        deadline = first < deadline ? first : deadline;
    }
    return deadline;
}
