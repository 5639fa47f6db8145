"""Writes the C source of pccl._native.

The declarations are cut out of the public headers, between the marker comments, so that there is one copy
of them. API mode: the C compiler checks every type, size and constant against the headers.

    python bindings/build_native.py OUTPUT.c
"""

import re
import sys
from pathlib import Path

import cffi

HEADERS = ("ccoip_inet.h", "ccoip.h", "pccl.h")
INCLUDE_DIR = Path(__file__).resolve().parent.parent / "csrc" / "include"
MARKED = re.compile(r"/\* <cffi> \*/(.*?)/\* </cffi> \*/", re.DOTALL)
MACROS = re.compile(r"\b(PCCL_EXPORT|PCCL_NULLABLE)\b")

# Asked while a call waits, and told how far a sync is; see pccl/_interrupt.py.
CALLBACKS = """
extern "Python" bool pccl_interrupted(void *);
extern "Python" void pccl_sync_progress(void *, const pcclSyncProgress_t *);
"""

# The kernels one by one, for pccl/_kernels.py: no part of the interface. The compiler checks them against the
# headers, as it does all the others.
KERNELS = """
enum reduce_level { REDUCE_SCALAR, REDUCE_AVX2, REDUCE_AVX512, REDUCE_NEON, ... };
enum reduce_level reduce_best_level(void);
void reduce_at(enum reduce_level, uint8_t, uint8_t, void *, const void *, const void *, size_t);
void reduce_average_at(enum reduce_level, uint8_t, void *, const void *, const void *, uint32_t, size_t);
enum crc32c_level { CRC32C_SCALAR, CRC32C_INSTRUCTIONS, CRC32C_AVX2, CRC32C_AVX512, ... };
enum crc32c_level crc32c_best_level(void);
uint32_t crc32c_extend_at(enum crc32c_level, uint32_t, const void *, size_t);
struct state_hash { uint64_t words[2]; };
#define STATE_LEAF_BYTES ...
void state_hash_leaf_at(enum reduce_level, const void *, size_t, uint64_t, struct state_hash *);
void copy_past_cache(void *, const void *, size_t);
void *memcpy(void *, const void *, size_t);
"""
# The log, for pccl/_log.py: no part of the interface either.
LOG = """
enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
void log_always(enum log_level, const char *, const char *);
void log_to_nowhere(void);
"""
INCLUDES = ("pccl.h", "base/log.h", "data/copy.h", "data/crc32c.h", "data/reduce.h", "data/state_hash.h")


def declarations(header: str) -> str:
    """What cffi can read of one public header."""
    parts = MARKED.findall((INCLUDE_DIR / header).read_text(encoding="utf-8"))
    if not parts:
        raise SystemExit(f"{header}: nothing between /* <cffi> */ and /* </cffi> */")
    return MACROS.sub("", "\n".join(parts))


def make_ffi() -> cffi.FFI:
    ffi = cffi.FFI()
    for header in HEADERS:
        ffi.cdef(declarations(header))
    ffi.cdef(CALLBACKS)
    ffi.cdef(KERNELS)
    ffi.cdef(LOG)
    ffi.set_source("pccl._native", "".join(f'#include "{header}"\n' for header in INCLUDES))
    return ffi


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make_ffi().emit_c_code(sys.argv[1])
