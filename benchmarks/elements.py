"""Element types and reductions by their names in nccl-tests, algorithms, and sizes such as 64M."""

from __future__ import annotations

import argparse
import re
from typing import Any, cast

import numpy

__all__ = [
    "ALGORITHMS",
    "ALL_DATATYPES",
    "ALL_REDOPS",
    "datatypes",
    "numpy_dtype",
    "redops",
    "size_bytes",
    "sizes",
]

_DTYPE_NAMES = {
    "int8": "int8",
    "uint8": "uint8",
    "int16": "int16",
    "uint16": "uint16",
    "int32": "int32",
    "uint32": "uint32",
    "int64": "int64",
    "uint64": "uint64",
    "half": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "double": "float64",
}
_ALIASES = {"float16": "half", "float32": "float", "float64": "double"}

ALL_DATATYPES = tuple(_DTYPE_NAMES)
ALGORITHMS = ("auto", "ring", "tree")
ALL_REDOPS = ("sum", "prod", "max", "min", "avg")

_SIZE = re.compile(r"(\d+)([KMG]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def numpy_dtype(datatype: str) -> numpy.dtype[Any]:
    """The NumPy type for a name of ALL_DATATYPES. bfloat16 comes from ml_dtypes: ImportError without it."""
    if datatype == "bfloat16":
        import ml_dtypes

        return cast("numpy.dtype[Any]", numpy.dtype(ml_dtypes.bfloat16))
    return numpy.dtype(_DTYPE_NAMES[datatype])


def size_bytes(text: str) -> int:
    """For argparse: a number of bytes, K, M and G being powers of 1024."""
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 4096, 4K, 64M or 1G")
    return int(match[1]) * _UNITS[match[2].upper()]


def sizes(first: int, last: int, factor: int) -> list[int]:
    """From `first` up to `last` bytes, each `factor` times the one before."""
    found = []
    while first <= last:
        found.append(first)
        first *= factor
    return found


def datatypes(text: str) -> list[str]:
    """For argparse: one element type, or all."""
    if text == "all":
        return list(ALL_DATATYPES)
    name = _ALIASES.get(text, text)
    if name not in _DTYPE_NAMES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(ALL_DATATYPES)}, all")
    return [name]


def redops(text: str) -> list[str]:
    """For argparse: one reduction, or all."""
    if text == "all":
        return list(ALL_REDOPS)
    if text not in ALL_REDOPS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(ALL_REDOPS)}, all")
    return [text]
