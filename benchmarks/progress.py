"""Where a long run is: one line on stderr, only on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

__all__ = ["Progress"]

_PERIOD_S = 0.2
_WIDTH = 78


class Progress:
    """Call it with what begins now, as often as you like. On anything but a terminal it is silent. In a
    with-statement it goes away at the end, also when that is an error."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._next_s = time.monotonic() + _PERIOD_S  # short runs show nothing
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, text: str) -> None:
        if not self._terminal or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + _PERIOD_S
        self._shown = True
        self._write(f"\r{text[:_WIDTH]:<{_WIDTH}}")

    def clear(self) -> None:
        """Before results are printed, which may go to the same terminal."""
        if self._shown:
            self._shown = False
            self._write(f"\r{'':{_WIDTH}}\r")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
