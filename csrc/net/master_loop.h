/* The master's thread: sockets, clock and timers around the machine of core/master.h. It branches on the
 * kinds of actions only. Limits for those who have not greeted yet: MAX_STRANGERS, STRANGER_TIMEOUT_MS,
 * MAX_GREETING_BYTES. */
#ifndef PCCL_NET_MASTER_LOOP_H
#define PCCL_NET_MASTER_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/address.h"
#include "core/master.h"

struct master_loop;

/* Binds and listens on `address` (port 0: a free one); serves nobody yet. Returns 0 and *loop_out, which
 * the caller destroys, or a negative errno value. `run`: as in struct master_options. */
int master_loop_create(const struct address *address, const char *run, struct master_loop **loop_out);
/* Starts the thread. Once per loop. Returns 0 or a negative errno value. */
int master_loop_start(struct master_loop *loop);
/* Asks the thread to end; does not wait. Any thread, and signal handlers. */
void master_loop_stop(struct master_loop *loop);
/* Blocks until the thread has ended, but not beyond `until_ns` (UINT64_MAX: no bound); *ended_out says
 * whether it has. False at once if it was never started. */
bool master_loop_wait(struct master_loop *loop, uint64_t until_ns, bool *ended_out);
/* Stops the thread, waits for its end and frees the loop. No other call may be under way. */
void master_loop_destroy(struct master_loop *loop);

struct address master_loop_address(const struct master_loop *loop);
/* As of the last event. Any thread; does not wait for the loop's work. */
void master_loop_get_status(struct master_loop *loop, struct master_status *status);

#endif
