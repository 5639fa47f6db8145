/* Well-known ports. A peer listens on one port for everything: the first free one from
 * CCOIP_PROTOCOL_PORT_SHARED_STATE up, unless it was given one. */
#ifndef CCOIP_H
#define CCOIP_H

/* <cffi> */
#define CCOIP_PROTOCOL_PORT_MASTER 48148
#define CCOIP_PROTOCOL_PORT_SHARED_STATE 48149
#define CCOIP_PROTOCOL_PORT_P2P 48150
#define CCOIP_PROTOCOL_PORT_BANDWIDTH_BENCHMARK 48151
/* </cffi> */

#endif
