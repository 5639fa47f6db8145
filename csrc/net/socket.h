/* Sockets as the library uses them: every descriptor made here is non-blocking and closed on exec; those of
 * TCP have TCP_NODELAY, and what suits loopback between two ends on one machine. Functions that return an int
 * give a descriptor or 0 on success and a negative errno value on failure; strerror(-result) is its text.
 * None blocks, but socket_resolve(). Any thread. */
#ifndef PCCL_NET_SOCKET_H
#define PCCL_NET_SOCKET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/address.h"
#include "include/ccoip_inet.h"

/* Zero means the system's default. */
struct socket_options {
    uint32_t user_timeout_ms;     /* TCP_USER_TIMEOUT: unacknowledged for so long is a broken connection */
    uint32_t notsent_lowat_bytes; /* TCP_NOTSENT_LOWAT: writable only while less is waiting in the kernel */
};

/* A host name or an address literal ("::1" without brackets), for others to connect to: of several addresses
 * the first that they can use; loopback only if there is nothing else. NULL on success, else a static text
 * that says why not. For a name this blocks as long as the system's resolver does: not for the net thread. */
const char *socket_resolve(const char *host, uint16_t port, struct address *address_out);

/* Listens on exactly `address`; port 0 picks a free one. [::] also takes IPv4. Returns the descriptor. */
int socket_listen(const struct address *address);
/* Listens on all addresses of the machine, IPv6 and IPv4 in one where it has IPv6, on the first free
 * port of `first_port` .. `last_port`. Returns the descriptor; -EADDRINUSE if none is free. A single port is
 * taken as socket_listen() takes it; of several, one that nobody else has bound, listening or not. */
int socket_listen_any(uint16_t first_port, uint16_t last_port);

/* The next connection, or -EAGAIN when none waits. After -EMFILE, -ENFILE, -ENOBUFS or -ENOMEM the
 * connection still waits: `listener` stays readable, so the caller must pause before it asks again. */
int socket_accept(int listener, const struct socket_options *options, struct address *remote_out);

/* Starts to connect. The descriptor becomes writable when that has ended; then ask for the result. */
int socket_connect(const struct address *to, const struct socket_options *options);
/* 0: connected. -EINPROGRESS: not yet. Else why it failed: close it. */
int socket_connect_result(int fd);

/* The same within this machine, between processes of one user, without TCP: the listener is known by the port
 * that the same process listens on. Others are refused, whoever is first to take the name. */
int socket_listen_local(uint16_t port);
/* The next connection, or -EAGAIN, or -ECONNABORTED for one that was refused. */
int socket_accept_local(int listener);
/* Returns a connection that is there, or why there is none. */
int socket_connect_local(uint16_t port);
/* The address is one of this machine, in this network name space. False also if that is not certain. */
bool socket_is_own_address(const struct address *address);
/* Bytes, and with them a descriptor, over such a connection. The number of bytes, or a negative errno value.
 */
ssize_t socket_send_descriptor(int fd, const void *bytes, size_t size, int descriptor);
/* *descriptor_out is the caller's to close, -1 if none came. */
ssize_t socket_receive_descriptor(int fd, void *bytes, size_t size, int *descriptor_out);

/* Sets what is not zero on a connection that was made with other options. */
int socket_set_options(int fd, const struct socket_options *options);

/* The round trip time that the system has measured on a connection, in microseconds; 0 if it does not say. */
uint32_t socket_rtt_us(int fd);

/* The two ends of a connection, or where a listener is bound. IPv4-mapped IPv6 addresses come out as
 * IPv4. Family ADDRESS_NONE if the system does not know. */
struct address socket_local_address(int fd);
struct address socket_remote_address(int fd);

/* Both ends of the connection are on this machine. */
bool socket_is_local(int fd);

/* Public form <-> own form. False if `protocol` is neither. An IPv4-mapped IPv6 address becomes IPv4. */
bool address_from_public(const ccoip_socket_address_t *from, struct address *to);
ccoip_socket_address_t address_to_public(const struct address *from);

#endif
