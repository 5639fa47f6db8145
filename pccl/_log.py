"""Lines of Python code go where those of the C code go: see csrc/base/log.h.

Modules use the logger "pccl". A program that configures logging gets their lines its own way; in others they
would come without a time, and wait where nobody reads stderr.
"""

from __future__ import annotations

import logging
import sys

from ._native import lib

__all__ = ["say"]

_LEVELS = ((logging.ERROR, lib.LOG_ERROR), (logging.WARNING, lib.LOG_WARN), (logging.INFO, lib.LOG_INFO))


def say(level: int, who: str, text: str) -> None:
    """A line for somebody who has asked for it, whatever PCCL_LOG_LEVEL is; `level` is one of logging."""
    ours = next((value for least, value in _LEVELS if level >= least), lib.LOG_DEBUG)
    lib.log_always(ours, who.encode(), text.encode(errors="replace"))


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if not logging.root.handlers:  # else the program has its own, which gets the record next
            say(record.levelno, "pccl", record.getMessage())


logging.getLogger("pccl").addHandler(_Handler())
if sys.__stderr__ is None:  # closed at the start: descriptor 2 may be a file of the program by now
    lib.log_to_nowhere()
