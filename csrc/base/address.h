/* An IP address with a port, free of any system header so that the machines can hold one. */
#ifndef PCCL_BASE_ADDRESS_H
#define PCCL_BASE_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>

enum address_family { ADDRESS_NONE = 0, ADDRESS_IPV4 = 4, ADDRESS_IPV6 = 6 };

struct address {
    uint8_t family;    /* enum address_family */
    uint8_t bytes[16]; /* network order; IPv4 uses the first four */
    uint16_t port;     /* host order */
};

enum { ADDRESS_TEXT_BYTES = 56 };

/* Why no other machine can connect to this address, whatever the port: "it is a multicast address". NULL:
 * perhaps some can. Loopback is another matter: it serves peers of one machine. */
const char *address_unusable(const struct address *address);
bool address_is_loopback(const struct address *address);

/* Writes "1.2.3.4:5" or "[::1]:5" to `text` and returns it. */
const char *address_text(const struct address *address, char text[ADDRESS_TEXT_BYTES]);

#endif
