"""The kernels of the core, one by one: no part of the interface. `pccl bench kernels` measures them.

Each function binds a kernel to memory and returns a call without arguments, so that next to nothing else runs
when it is timed. Memory is given as arrays; they are held as long as the call is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ._enums import DataType, ReduceOp
from ._native import ffi, lib

__all__ = ["LEAF_BYTES", "checksum", "checksum_levels", "copy", "levels", "memcpy", "reduction", "state_hash"]

Call = Callable[[], object]

LEAF_BYTES: int = lib.STATE_LEAF_BYTES

_LEVELS = {
    "scalar": lib.REDUCE_SCALAR,
    "avx2": lib.REDUCE_AVX2,
    "avx512": lib.REDUCE_AVX512,
    "neon": lib.REDUCE_NEON,
}
_CHECKSUM_LEVELS = {
    "scalar": lib.CRC32C_SCALAR,
    "crc32": lib.CRC32C_INSTRUCTIONS,
    "avx2": lib.CRC32C_AVX2,
    "avx512": lib.CRC32C_AVX512,
}


def levels() -> list[str]:
    """The levels of kernels that this processor has, the best one last."""
    best = lib.reduce_best_level()
    x86 = ("scalar", "avx2", "avx512")
    return ["scalar", "neon"] if best == lib.REDUCE_NEON else [name for name in x86 if _LEVELS[name] <= best]


def checksum_levels() -> list[str]:
    """The same for CRC32C: crc32 is the instruction of that name."""
    best = lib.crc32c_best_level()
    return [name for name, level in _CHECKSUM_LEVELS.items() if level <= best]


def _readable(array: Any) -> Any:
    return ffi.from_buffer(array.view("uint8"))


def _writable(array: Any) -> Any:
    return ffi.from_buffer(array.view("uint8"), require_writable=True)


def _at(level: str) -> int:
    if level not in levels():
        raise ValueError(f"this processor has {', '.join(levels())}, not {level!r}")
    return int(_LEVELS[level])


def reduction(level: str, op: ReduceOp | str, destination: Any, a: Any, b: Any) -> Call:
    """destination = a (op) b, element by element, of NumPy arrays of one type and shape; destination may be
    a or b. AVG ends as with two peers: the sum is divided by 2. ValueError for a level that is not here."""
    if not destination.dtype == a.dtype == b.dtype or not destination.size == a.size == b.size:
        raise ValueError("destination, a and b must have one type and one size")
    at, op, datatype = _at(level), ReduceOp.of(op), DataType.from_numpy_dtype(a.dtype).value
    operands = _writable(destination), _readable(a), _readable(b)
    if op is ReduceOp.AVG:
        return functools.partial(lib.reduce_average_at, at, datatype, *operands, 2, a.size)
    return functools.partial(lib.reduce_at, at, datatype, op.value, *operands, a.size)


def checksum(level: str, source: Any) -> Call:
    """CRC32C of the bytes. ValueError for a level that is not among checksum_levels()."""
    if level not in checksum_levels():
        raise ValueError(f"this processor has {', '.join(checksum_levels())}, not {level!r}")
    at = _CHECKSUM_LEVELS[level]
    return functools.partial(lib.crc32c_extend_at, at, 0, _readable(source), source.nbytes)


def state_hash(level: str, source: Any) -> Call:
    """The hash of one leaf, of at most LEAF_BYTES, as two words. ValueError for more."""
    if source.nbytes > LEAF_BYTES:
        raise ValueError(f"a leaf has at most {LEAF_BYTES} bytes, not {source.nbytes}")
    at, leaf, out = _at(level), _readable(source), ffi.new("struct state_hash *")

    def run() -> tuple[int, int]:
        lib.state_hash_leaf_at(at, leaf, source.nbytes, 0, out)
        return out.words[0], out.words[1]

    return run


def _copying(kernel: Any, destination: Any, source: Any) -> Call:
    if destination.nbytes != source.nbytes:
        raise ValueError("destination and source must have one size")
    return functools.partial(kernel, _writable(destination), _readable(source), source.nbytes)


def copy(destination: Any, source: Any) -> Call:
    """The core's copy to memory that is not read soon."""
    return _copying(lib.copy_past_cache, destination, source)


def memcpy(destination: Any, source: Any) -> Call:
    """The C library's."""
    return _copying(lib.memcpy, destination, source)
