#define _GNU_SOURCE
#include "net/socket.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "net/descriptors.h"

enum { LOCAL_WINDOW_BYTES = 512 * 1024 }; /* to begin with, between two ends on one machine */

union native {
    struct sockaddr any;
    struct sockaddr_un local;
    struct sockaddr_in ipv4;
    struct sockaddr_in6 ipv6;
};

static const uint8_t mapped_prefix[12] = {[10] = 0xff, [11] = 0xff}; /* ::ffff:0:0/96, RFC 4291 */

static struct address ipv4_address(const void *bytes, uint16_t port) {
    struct address address = {.family = ADDRESS_IPV4, .port = port};
    memcpy(address.bytes, bytes, 4);
    return address;
}

static struct address ipv6_address(const uint8_t bytes[16], uint16_t port) {
    if (memcmp(bytes, mapped_prefix, sizeof mapped_prefix) == 0) {
        return ipv4_address(bytes + sizeof mapped_prefix, port);
    }
    struct address address = {.family = ADDRESS_IPV6, .port = port};
    memcpy(address.bytes, bytes, 16);
    return address;
}

static struct address from_native(const union native *native) {
    if (native->any.sa_family == AF_INET) {
        return ipv4_address(&native->ipv4.sin_addr, ntohs(native->ipv4.sin_port));
    }
    if (native->any.sa_family == AF_INET6) {
        return ipv6_address(native->ipv6.sin6_addr.s6_addr, ntohs(native->ipv6.sin6_port));
    }
    return (struct address){.family = ADDRESS_NONE};
}

/* The size of what was written; 0 if the address has no family. */
static socklen_t to_native(const struct address *address, union native *native) {
    memset(native, 0, sizeof *native);
    if (address->family == ADDRESS_IPV4) {
        native->ipv4.sin_family = AF_INET;
        native->ipv4.sin_port = htons(address->port);
        memcpy(&native->ipv4.sin_addr, address->bytes, 4);
        return sizeof native->ipv4;
    }
    if (address->family == ADDRESS_IPV6) {
        native->ipv6.sin6_family = AF_INET6;
        native->ipv6.sin6_port = htons(address->port);
        memcpy(&native->ipv6.sin6_addr, address->bytes, 16);
        return sizeof native->ipv6;
    }
    return 0;
}

const char *socket_resolve(const char *host, uint16_t port, struct address *address_out) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int error = getaddrinfo(host, NULL, &hints, &found);
    if (error != 0) {
        return error == EAI_SYSTEM ? "the system's resolver failed" : gai_strerror(error);
    }
    const char *reason = "it has no IPv4 or IPv6 address";
    bool has_one = false;
    for (const struct addrinfo *one = found; one != NULL; one = one->ai_next) {
        union native native = {0};
        if (one->ai_addrlen > sizeof native) {
            continue;
        }
        memcpy(&native, one->ai_addr, one->ai_addrlen);
        struct address address = from_native(&native);
        const char *unusable = address_unusable(&address);
        bool better = !has_one || (address_is_loopback(address_out) && !address_is_loopback(&address));
        if (unusable == NULL && better) {
            *address_out = address;
            address_out->port = port;
            has_one = true;
        } else if (unusable != NULL) {
            reason = unusable;
        }
    }
    reason = has_one ? NULL : reason;
    freeaddrinfo(found);
    return reason;
}

static int set_integer(int fd, int level, int option, int value) {
    return setsockopt(fd, level, option, &value, sizeof value) == 0 ? 0 : -errno;
}

int socket_set_options(int fd, const struct socket_options *options) {
    int error = 0;
    if (options->user_timeout_ms > 0) {
        error = set_integer(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)options->user_timeout_ms);
    }
    if (error == 0 && options->notsent_lowat_bytes > 0) {
        error = set_integer(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, (int)options->notsent_lowat_bytes);
    }
    return error;
}

/* Of a connection that is there. What can't be set stays as the system has it. */
static void tune(int fd) {
    if (!socket_is_local(fd)) {
        return;
    }
    /* The system's default may be for far links: BBR paces what it sends, which takes a third of the
     * processor time. Where nothing is lost and no queue is between, Reno does least; every kernel has it,
     * for every user. */
    static const char reno[] = "reno";
    (void)setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, reno, sizeof reno - 1);
    /* Else the window soon holds many MiB, out of the caches. The system may still enlarge it bit by bit. */
    (void)set_integer(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, LOCAL_WINDOW_BYTES);
}

static int set_connection_options(int fd, const struct socket_options *options) {
    int error = set_integer(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    return error == 0 ? socket_set_options(fd, options) : error;
}

static int new_socket(int family) {
    return DESCRIPTOR(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

/* Closes `fd` and passes the error on, which close() could overwrite. */
static int fail(int fd, int error) {
    descriptor_close(fd);
    return error;
}

/* With SO_REUSEADDR the system also gives a port that another program has bound in the same way and does not
 * listen on yet: that one would then fail. Who has asked for the very port wants it all the same, since old
 * connections in TIME_WAIT hold it too; who only looks for a free one does not (`exclusive`). */
static int listen_on(const struct address *address, bool exclusive) {
    union native native;
    socklen_t size = to_native(address, &native);
    if (size == 0) {
        return -EAFNOSUPPORT;
    }
    int fd = new_socket(native.any.sa_family);
    if (fd < 0) {
        return fd;
    }
    int error = exclusive ? 0 : set_integer(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (error == 0 && address->family == ADDRESS_IPV6) {
        error = set_integer(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    }
    if (error == 0 && bind(fd, &native.any, size) != 0) {
        error = -errno;
    }
    if (error ==
        0) { /* its connections inherit it: they must not keep whoever comes after us from the port */
        error = set_integer(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    }
    if (error == 0 && listen(fd, SOMAXCONN) != 0) {
        error = -errno;
    }
    return error == 0 ? fd : fail(fd, error);
}

int socket_listen(const struct address *address) {
    return listen_on(address, false);
}

int socket_listen_any(uint16_t first_port, uint16_t last_port) {
    struct address address = {.family = ADDRESS_IPV6};
    bool exclusive = first_port != last_port;
    int fd = -EADDRINUSE;
    for (uint32_t port = first_port; port <= last_port && fd == -EADDRINUSE; port++) {
        address.port = (uint16_t)port;
        fd = listen_on(&address, exclusive);
        if (fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL) { /* no IPv6 here */
            address.family = ADDRESS_IPV4;
            fd = listen_on(&address, exclusive);
        }
    }
    return fd;
}

/* Errors of the connection that waited, not of the listener: see accept(2). */
static bool accept_goes_on(int error) {
    return error == EINTR || error == ECONNABORTED || error == ENETDOWN || error == EPROTO ||
           error == ENOPROTOOPT || error == EHOSTDOWN || error == ENONET || error == EHOSTUNREACH ||
           error == EOPNOTSUPP || error == ENETUNREACH || error == EPERM || error == ETIMEDOUT;
}

int socket_accept(int listener, const struct socket_options *options, struct address *remote_out) {
    union native native = {0};
    for (;;) {
        socklen_t size = sizeof native;
        int fd = DESCRIPTOR(accept4(listener, &native.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (fd >= 0) {
            if (set_connection_options(fd, options) != 0) { /* reset while it waited */
                descriptor_close(fd);
                continue;
            }
            tune(fd);
            *remote_out = from_native(&native);
            return fd;
        }
        if (!accept_goes_on(-fd)) {
            return fd;
        }
    }
}

int socket_connect(const struct address *to, const struct socket_options *options) {
    union native native;
    socklen_t size = to_native(to, &native);
    if (size == 0) {
        return -EAFNOSUPPORT;
    }
    int fd = new_socket(native.any.sa_family);
    if (fd < 0) {
        return fd;
    }
    int error = set_connection_options(fd, options);
    if (error == 0) { /* the port that the system picks may be the one that somebody is to listen on next */
        error = set_integer(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    }
    if (error != 0) {
        return fail(fd, error);
    }
    /* Interrupted or not, a non-blocking connect goes on by itself. */
    if (connect(fd, &native.any, size) != 0 && errno != EINPROGRESS && errno != EINTR) {
        return fail(fd, -errno);
    }
    return fd;
}

/* ---- within this machine ---- */

/* In the abstract name space, which belongs to a network name space as ports do. */
static socklen_t name_of_port(uint16_t port, struct sockaddr_un *name) {
    memset(name, 0, sizeof *name);
    name->sun_family = AF_UNIX;
    int length = snprintf(name->sun_path + 1, sizeof name->sun_path - 1, "pccl/%u", (unsigned)port);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

static bool is_of_our_user(int fd) {
    struct ucred other;
    socklen_t size = sizeof other;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &other, &size) == 0 && other.uid == geteuid();
}

int socket_listen_local(uint16_t port) {
    struct sockaddr_un name;
    socklen_t size = name_of_port(port, &name);
    int fd = new_socket(AF_UNIX);
    if (fd < 0) {
        return fd;
    }
    if (bind(fd, (const struct sockaddr *)&name, size) != 0 || listen(fd, SOMAXCONN) != 0) {
        return fail(fd, -errno);
    }
    return fd;
}

int socket_accept_local(int listener) {
    for (;;) {
        int fd = DESCRIPTOR(accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (fd < 0 && !accept_goes_on(-fd)) {
            return fd;
        }
        if (fd >= 0 && is_of_our_user(fd)) {
            return fd;
        }
        if (fd >= 0) { /* one at a time: it is not up to him how long this takes */
            descriptor_close(fd);
            return -ECONNABORTED;
        }
    }
}

int socket_connect_local(uint16_t port) {
    struct sockaddr_un name;
    socklen_t size = name_of_port(port, &name);
    int fd = new_socket(AF_UNIX);
    if (fd < 0) {
        return fd;
    }
    if (connect(fd, (const struct sockaddr *)&name, size) != 0) { /* at once, or not at all */
        return fail(fd, -errno);
    }
    return is_of_our_user(fd) ? fd : fail(fd, -EACCES);
}

/* What would come from here to an address of this machine comes from that very address. Nothing is sent. */
bool socket_is_own_address(const struct address *address) {
    union native native;
    socklen_t size = to_native(address, &native);
    int fd = size > 0 ? DESCRIPTOR(socket(native.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0)) : -1;
    if (fd < 0) {
        return false;
    }
    bool own = connect(fd, &native.any, size) == 0 && socket_is_local(fd);
    descriptor_close(fd);
    return own;
}

ssize_t socket_send_descriptor(int fd, const void *bytes, size_t size, int descriptor) {
    union {
        struct cmsghdr header;
        uint8_t room[CMSG_SPACE(sizeof descriptor)];
    } control = {0};
    struct iovec piece = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof descriptor);
    memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent >= 0 ? sent : -errno;
}

ssize_t socket_receive_descriptor(int fd, void *bytes, size_t size, int *descriptor_out) {
    union {
        struct cmsghdr header;
        uint8_t room[CMSG_SPACE(sizeof *descriptor_out)];
    } control = {0};
    struct iovec piece = {.iov_base = bytes, .iov_len = size};
    /* Room for one: if there are more, the system closes them. */
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = CMSG_LEN(sizeof *descriptor_out)};
    int descriptor = -1;
    descriptors_begin();
    ssize_t received = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    ssize_t result = received >= 0 ? received : -errno;
    struct cmsghdr *header = received >= 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof descriptor)) {
        memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    }
    descriptor = descriptors_end(descriptor);
    *descriptor_out = descriptor >= 0 ? descriptor : -1;
    return result;
}

/* ---- connections that are there ---- */

static bool same_address(const struct address *a, const struct address *b) {
    return a->family == b->family && a->port == b->port && memcmp(a->bytes, b->bytes, sizeof a->bytes) == 0;
}

int socket_connect_result(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
        return -errno;
    }
    if (error != 0) {
        return -error;
    }
    struct address remote = socket_remote_address(fd);
    if (remote.family == ADDRESS_NONE) {
        return -EINPROGRESS;
    }
    /* On a port of the ephemeral range where nobody listens, TCP may connect a socket to itself. */
    struct address local = socket_local_address(fd);
    if (same_address(&local, &remote)) {
        /* Disconnected it is reset at once and leaves nothing behind; else its rest would hold the port for a
         * minute. */
        const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
        (void)connect(fd, &nowhere, sizeof nowhere);
        return -ECONNREFUSED;
    }
    tune(fd);
    return 0;
}

bool socket_is_local(int fd) {
    union native native = {0};
    socklen_t size = sizeof native;
    if (getsockname(fd, &native.any, &size) == 0 && native.any.sa_family == AF_UNIX) {
        return true;
    }
    struct address here = socket_local_address(fd), there = socket_remote_address(fd);
    return here.family != ADDRESS_NONE && here.family == there.family &&
           memcmp(here.bytes, there.bytes, sizeof here.bytes) == 0;
}

struct address socket_local_address(int fd) {
    union native native = {0};
    socklen_t size = sizeof native;
    return getsockname(fd, &native.any, &size) == 0 ? from_native(&native)
                                                    : (struct address){.family = ADDRESS_NONE};
}

struct address socket_remote_address(int fd) {
    union native native = {0};
    socklen_t size = sizeof native;
    return getpeername(fd, &native.any, &size) == 0 ? from_native(&native)
                                                    : (struct address){.family = ADDRESS_NONE};
}

bool address_from_public(const ccoip_socket_address_t *from, struct address *to) {
    if (from->inet.protocol == inetIPv4) {
        *to = ipv4_address(from->inet.ipv4.data, from->port);
    } else if (from->inet.protocol == inetIPv6) {
        *to = ipv6_address(from->inet.ipv6.data, from->port);
    } else {
        return false;
    }
    return true;
}

ccoip_socket_address_t address_to_public(const struct address *from) {
    ccoip_socket_address_t to = {.port = from->port};
    if (from->family == ADDRESS_IPV6) {
        to.inet.protocol = inetIPv6;
        memcpy(to.inet.ipv6.data, from->bytes, 16);
    } else {
        to.inet.protocol = inetIPv4;
        memcpy(to.inet.ipv4.data, from->bytes, 4);
    }
    return to;
}

uint32_t socket_rtt_us(int fd) {
    uint32_t rtt_us = 0;
#ifdef TCP_INFO
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0) {
        rtt_us = info.tcpi_rtt;
    }
#else
    (void)fd;
#endif
    return rtt_us;
}
