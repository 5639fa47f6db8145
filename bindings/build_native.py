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
    ffi.set_source("pccl._native", '#include "pccl.h"\n')
    return ffi


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make_ffi().emit_c_code(sys.argv[1])
