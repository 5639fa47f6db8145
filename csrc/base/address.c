#define _GNU_SOURCE
#include "base/address.h"

#include <arpa/inet.h>
#include <stddef.h>
#include <stdio.h>

const char *address_text(const struct address *address, char text[ADDRESS_TEXT_BYTES]) {
    char host[INET6_ADDRSTRLEN] = "?";
    if (address->family == ADDRESS_IPV4) {
        inet_ntop(AF_INET, address->bytes, host, sizeof host);
        snprintf(text, ADDRESS_TEXT_BYTES, "%s:%u", host, address->port);
    } else if (address->family == ADDRESS_IPV6) {
        inet_ntop(AF_INET6, address->bytes, host, sizeof host);
        snprintf(text, ADDRESS_TEXT_BYTES, "[%s]:%u", host, address->port);
    } else {
        snprintf(text, ADDRESS_TEXT_BYTES, "?:%u", address->port);
    }
    return text;
}

static bool is_zero(const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != 0) {
            return false;
        }
    }
    return true;
}

const char *address_unusable(const struct address *address) {
    const uint8_t *bytes = address->bytes;
    static const char any[] = "it stands for all addresses of a machine, not for one";
    static const char multicast[] = "it is a multicast address";
    if (address->family == ADDRESS_IPV4) {
        return bytes[0] == 0    ? any
               : bytes[0] < 224 ? NULL
               : bytes[0] < 240 ? multicast
                                : "it is a broadcast or reserved address";
    }
    if (address->family == ADDRESS_IPV6) {
        bool link_local = bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
        return is_zero(bytes, 16) ? any
               : bytes[0] == 0xff ? multicast
               : link_local       ? "it is a link-local IPv6 address, which holds for one interface only"
                                  : NULL;
    }
    return "it is neither IPv4 nor IPv6";
}

bool address_is_loopback(const struct address *address) {
    if (address->family == ADDRESS_IPV4) {
        return address->bytes[0] == 127;
    }
    return address->family == ADDRESS_IPV6 && is_zero(address->bytes, 15) && address->bytes[15] == 1;
}
