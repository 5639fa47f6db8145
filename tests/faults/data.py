"""What each peer reduces, and what must come out: the same arithmetic in the peers and in the tests.

All values are small integers, so that every sum is exact in every type and does not depend on its order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

ENTIRE_FLOAT = 251  # values lie in [0, 251): up to 2**24 / 251 of them add up exactly in float32


def contribution(seed: int, index: int, step: int, count: int, dtype: str) -> np.ndarray:
    """The input of peer `index` in step `step`."""
    start = (seed * 7919 + index * 104729 + step * 1299709) % ENTIRE_FLOAT
    stride = 1 + (seed + 3 * index + 11 * step) % (ENTIRE_FLOAT - 1)  # coprime to 251, which is prime
    period = ((start + stride * np.arange(ENTIRE_FLOAT)) % ENTIRE_FLOAT).astype(dtype)
    return np.resize(period, count)


def reduction(seed: int, members: Iterable[int], step: int, count: int, dtype: str, op: str) -> np.ndarray:
    """What all_reduce must give to peers whose inputs are those of `members`."""
    inputs = [contribution(seed, index, step, min(count, ENTIRE_FLOAT), dtype) for index in sorted(members)]
    together = {"sum": np.add, "avg": np.add, "max": np.maximum, "min": np.minimum}[op].reduce(inputs)
    if op == "avg":
        together = together / np.asarray(len(inputs), dtype)
    return np.resize(together.astype(dtype), count)


def with_signature(seed: int, index: int, count: int) -> np.ndarray:
    """An input whose first element tells whose it is: that of a sum tells who took part."""
    array = contribution(seed, index, 0, count, "int64")
    array[0] = 1 << index
    return array


def signed_by(members: int) -> list[int]:
    """The indices in the first element of a sum."""
    return [index for index in range(63) if members >> index & 1]


def digest(array: np.ndarray) -> str:
    return hashlib.blake2b(array.data.cast("B"), digest_size=16).hexdigest()
