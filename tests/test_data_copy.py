"""Copies past the cache are copies."""

from __future__ import annotations

import numpy as np
import pytest
from native import load

ffi, lib = load("data/copy.h")


@pytest.mark.parametrize("offset", [0, 1, 15, 63])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 511, 512, 576, 577, 4096, 100_001])
def test_copies_what_is_asked_for_and_no_more(size: int, offset: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size + 64, dtype=np.uint8)
    target = np.full(size + 192, 170, np.uint8)
    lib.copy_past_cache(
        ffi.cast("uint8_t *", target.ctypes.data) + 64 + offset, ffi.from_buffer(source[7 : 7 + size]), size
    )
    assert (target[64 + offset : 64 + offset + size] == source[7 : 7 + size]).all()
    assert (target[: 64 + offset] == 170).all()
    assert (target[64 + offset + size :] == 170).all()
