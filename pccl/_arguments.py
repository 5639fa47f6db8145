"""Checks of plain arguments: what is wrong is a TypeError or a ValueError before anything is sent."""

from __future__ import annotations

import math
import operator
from typing import Any, SupportsIndex

from ._native import ffi

__all__ = ["boolean", "c_string", "integer", "milliseconds", "whole"]


def milliseconds(seconds: float | None, what: str) -> int:
    """0, which C reads as its default, for None."""
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{what} is a number of seconds, not {type(seconds).__name__}")
    if not 0 < seconds < 2**32 / 1000:
        raise ValueError(f"{what} must be a positive number of seconds below 4294967, not {seconds}")
    return math.ceil(seconds * 1000)


def whole(value: SupportsIndex, what: str) -> int:
    """The value as an int, if it is one, or a NumPy scalar or a tensor that is as good."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an int, not {type(value).__name__}") from None


def integer(value: SupportsIndex, lowest: int, highest: int, what: str) -> int:
    """The value as an int, if it is one within these bounds."""
    value = whole(value, what)
    if not lowest <= value <= highest:
        raise ValueError(f"{what} must be from {lowest} to {highest}, not {value}")
    return value


def boolean(value: bool, what: str) -> bool:
    """The value itself, if it is a bool: "no" is not taken for True."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, not {type(value).__name__}")
    return value


def c_string(text: str | None, what: str) -> Any:
    """A char *, NULL for None. It lives as long as what is returned."""
    if text is None:
        return ffi.NULL
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    if "\0" in text:
        raise ValueError(f"{what} must not contain a zero character")
    return ffi.new("char[]", text.encode())
