"""What each peer reduces and what must come out, computable by all from (members, step, op) alone.

Each input bears its owner's mark in its first elements (the head), so that each result tells over whom it was
taken; the rest repeats a period of small values that depend on owner, step and op. All arithmetic is exact
in every type used, or wraps, so that it does not depend on the order of the additions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["MOST_MEMBERS", "SLOTS", "Shape", "contribution", "draw_shape", "members_of", "reduction"]

Array = np.ndarray[Any, np.dtype[Any]]

SLOTS = 60  # as many as an int64 has bits to spare: see MASKED
MOST_MEMBERS = 16  # of one op, for which sums are exact
_PERIOD = 251  # prime: no segment or chunk is a multiple of it
_DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
_DTYPES += ["float16", "float32", "float64"]
_OPS = ["sum", "sum", "avg", "prod", "max", "min"]
# The type and op whose head is one element, with a bit for each member: for the smallest tensors.
_MASKED = ("int64", "sum")


@dataclass(frozen=True)
class Shape:
    """One reduction: `key` is all that its values depend on besides the peer; `count` elements."""

    key: str
    tag: int
    count: int
    dtype: str
    op: str

    @property
    def masked(self) -> bool:
        return self.count <= SLOTS


def draw_shape(choice: random.Random, key: str, tag: int, max_bytes: int) -> Shape:
    """One of any size, most of them small, up to max_bytes."""
    if choice.random() < 0.15:
        return Shape(key, tag, choice.randint(1, SLOTS), *_MASKED)
    op = choice.choice(_OPS)
    exact_averages = ["int32", "int64", "float32", "float64"]
    dtype = choice.choice(exact_averages if op == "avg" else _DTYPES)
    most = max(max_bytes // np.dtype(dtype).itemsize, 2 * SLOTS)
    count = int(SLOTS + 1 + (most - SLOTS - 1) * choice.random() ** 8)
    return Shape(key, tag, count, dtype, op)


# Elements of the head, by op: of the owner, and of all others. The value must survive the op recognisably.
_MARKS = {"sum": (1, 0), "avg": (SLOTS + 4, 0), "prod": (2, 1), "max": (1, 0), "min": (0, 1)}


def _period(shape: Shape, slot: int) -> Array:
    numbers = random.Random(f"{shape.key} {slot}")
    start, stride = numbers.randrange(_PERIOD), numbers.randrange(1, _PERIOD)
    values = (start + stride * np.arange(_PERIOD)) % _PERIOD
    if shape.op == "prod":
        # Odd numbers lose nothing when integers wrap; floats only change sign.
        values = 2 * values + 1 if shape.dtype[0] != "f" else np.where(values % 2, 1, -1)
    elif shape.dtype == "float16":
        values %= 2048 // MOST_MEMBERS
    return values.astype(shape.dtype)


def _whole(shape: Shape, head: Array, period: Array) -> Array:
    array = np.resize(period, shape.count)
    array[: len(head)] = head
    return array


def _head(shape: Shape, slot: int) -> Array:
    if shape.masked:
        return np.array([1 << slot], shape.dtype)
    own, other = _MARKS[shape.op]
    head = np.full(SLOTS, other, shape.dtype)
    head[slot] = own
    return head


def contribution(shape: Shape, slot: int) -> Array:
    """The input of the peer in `slot`."""
    return _whole(shape, _head(shape, slot), _period(shape, slot))


def _combined(shape: Shape, parts: list[Array]) -> Array:
    ufunc = {"sum": np.add, "avg": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[
        shape.op
    ]
    together = ufunc.reduce(np.stack(parts), axis=0, dtype=parts[0].dtype)
    if shape.op == "avg":
        number = np.asarray(len(parts), together.dtype)
        together = together / number if shape.dtype[0] == "f" else together // number
    return np.asarray(together, shape.dtype)


def reduction(shape: Shape, members: list[int]) -> Array:
    """What must come out for the peers in these slots."""
    head = _combined(shape, [_head(shape, slot) for slot in members])
    period = _combined(shape, [_period(shape, slot) for slot in members])
    return _whole(shape, head, period)


def members_of(shape: Shape, result: Array) -> list[int]:
    """The slots whose marks a result bears. Only a comparison with reduction() tells whether it is right."""
    if shape.masked:
        mask = int(result[0])
        return [slot for slot in range(SLOTS) if mask >> slot & 1]
    other = np.asarray(_MARKS[shape.op][1], shape.dtype)
    return [int(slot) for slot in np.flatnonzero(result[:SLOTS] != other)]
