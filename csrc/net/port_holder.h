/* Who has a port that can't be had. */
#ifndef PCCL_NET_PORT_HOLDER_H
#define PCCL_NET_PORT_HOLDER_H

#include "base/address.h"

enum { PORT_HOLDER_BYTES = 192 };

/* Writes what the system tells of whoever keeps others from listening on `address`, as a clause with a verb:
 * "python3 (process 17) listens on it". Reads /proc, which takes milliseconds: not for a net thread. */
const char *port_holder_describe(const struct address *address, char text[PORT_HOLDER_BYTES]);

#endif
