/* The sentence of the calling thread's last failure, behind pcclGetLastError(). One per thread, kept
 * until that thread's next public call. */
#ifndef PCCL_BASE_LAST_ERROR_H
#define PCCL_BASE_LAST_ERROR_H

enum { LAST_ERROR_BYTES = 1024 }; /* longer sentences are cut */

__attribute__((format(printf, 1, 2))) void last_error_set(const char *format, ...);
/* To "": every public call begins with it. */
void last_error_clear(void);
/* Never NULL. Valid until this thread sets or clears it. */
const char *last_error_get(void);

#endif
