"""Operands whose reduction is known exactly: small integers, so that every type holds every partial result.

Each rank's elements repeat with a period that is prime, so that no chunk or segment of a buffer looks like
another one, and a result that lies in the wrong place counts as wrong.
"""

from __future__ import annotations

from typing import Any

import numpy

__all__ = ["PERIOD", "count_wrong", "expected", "fill", "operands"]

Array = numpy.ndarray[Any, Any]

PERIOD = 1021

# int8 holds sums up to 127, bfloat16 integers up to 256.
_LARGEST_SUM = 127


def operands(seed: int, world_size: int, redop: str, *, signed: bool) -> Array:
    """One period of every rank's operand, as integers: shape (world_size, PERIOD)."""
    random = numpy.random.default_rng([seed, world_size])
    shape = (world_size, PERIOD)
    values: Array
    if redop == "prod":
        # All ones but one: the product stays small in any world, and tells which elements are missing.
        values = numpy.ones(shape, dtype=numpy.int64)
        odd_ones = random.integers(0, world_size, PERIOD)
        values[odd_ones, numpy.arange(PERIOD)] = random.integers(1, 6, PERIOD)
        return values
    if redop in ("max", "min"):
        values = random.integers(-99 if signed else 0, 100, shape)
        return values
    # One less than fits: for avg, the last rank adds up to world_size - 1.
    bound = max(1, min(3, _LARGEST_SUM // world_size - 1))
    values = random.integers(-bound if signed else 0, bound + 1, shape)
    if redop == "avg":
        # The last rank makes up for what the sum lacks to a multiple of the world size.
        values[-1] = -values[:-1].sum(axis=0) % world_size
    return values


def expected(seed: int, world_size: int, redop: str, *, signed: bool) -> Array:
    """One period of the exact result, as integers."""
    values = operands(seed, world_size, redop, signed=signed)
    exact: Array
    if redop in ("sum", "avg"):
        exact = values.sum(axis=0) // (world_size if redop == "avg" else 1)
    elif redop == "prod":
        exact = values.prod(axis=0)
    else:
        exact = values.max(axis=0) if redop == "max" else values.min(axis=0)
    return exact


def fill(array: Array, seed: int, rank: int, world_size: int, redop: str) -> None:
    """Write the operand of `rank` into a one-dimensional array."""
    period = operands(seed, world_size, redop, signed=_signed(array))[rank].astype(array.dtype)
    whole = array.size - array.size % PERIOD
    array[:whole].reshape(-1, PERIOD)[:] = period
    array[whole:] = period[: array.size - whole]


def count_wrong(array: Array, seed: int, world_size: int, redop: str) -> int:
    """How many elements differ from the exact result. NaN is always wrong."""
    period = expected(seed, world_size, redop, signed=_signed(array)).astype(array.dtype)
    whole = array.size - array.size % PERIOD
    wrong = numpy.count_nonzero(array[:whole].reshape(-1, PERIOD) != period)
    wrong += numpy.count_nonzero(array[whole:] != period[: array.size - whole])
    return int(wrong)


def _signed(array: Array) -> bool:
    return bool(array.dtype.kind != "u")
