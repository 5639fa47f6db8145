#define _GNU_SOURCE
#include "base/address.h"

#include <arpa/inet.h>
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
