"""Ctrl-C, and every other Python signal handler, during a wait in C; and what C tells meanwhile.

While a call waits, C asks pccl_interrupted() every INTERVAL_MS. Entering Python code is what gives pending
signal handlers their turn (in the main thread). What a handler raises is kept aside, the wait is ended, and
the caller raises it again once the C call has returned. So it is with what a progress callback raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from ._errors import check, last_error
from ._native import ffi, lib

__all__ = ["SyncOptions", "call", "try_call", "watch"]

INTERVAL_MS = 50

_SUCCESS = lib.pcclSuccess


class _Raised(threading.local):
    """What a signal handler or a progress callback raised in this thread's wait."""

    exception: BaseException | None = None


_raised = _Raised()


def _keep(kind: type[BaseException], exception: BaseException | None, trace: TracebackType | None) -> None:
    _raised.exception = exception if exception is not None else kind()


@ffi.def_extern(error=True, onerror=_keep)  # type: ignore[untyped-decorator]
def pccl_interrupted(context: Any) -> bool:
    # A handler of a pending signal runs, and may raise, as this function is entered or left; the bytecode
    # of the loop gives it a safe point within.
    for _ in range(2):
        pass
    return _raised.exception is not None


@ffi.def_extern(onerror=_keep)  # type: ignore[untyped-decorator]
def pccl_sync_progress(context: Any, progress: Any) -> None:
    if _raised.exception is None:
        ffi.from_handle(context)(progress)


class SyncOptions:
    """A pcclSyncOptions_t; it calls `function` with each pcclSyncProgress_t, in the thread that waits."""

    def __init__(self, require_peers: bool, function: Callable[[Any], object] | None) -> None:
        self.pointer = ffi.new("pcclSyncOptions_t *")
        if require_peers:
            self.pointer.flags = lib.pcclSyncRequirePeers
        if function is not None:
            self._handle = ffi.new_handle(function)
            self.pointer.progress = lib.pccl_sync_progress
            self.pointer.context = self._handle


def watch(comm: Any) -> None:
    """Have waits of this communicator interrupted."""
    check(lib.pcclSetInterruptCheck(comm, lib.pccl_interrupted, ffi.NULL, INTERVAL_MS))


def try_call(function: Any, *arguments: Any) -> int:
    """Call a C function that may wait, and return its result; raise what Python code raised meanwhile."""
    result: int = function(*arguments)
    if _raised.exception is not None:
        _raise()
    return result


def call(function: Any, *arguments: Any) -> None:
    """Call a C function that may wait; raise unless it succeeds. try_call() is written out: small ops are
    as fast as the calls between Python and C are few."""
    result = function(*arguments)
    if _raised.exception is not None:
        _raise()
    if result != _SUCCESS:
        raise last_error(result)


def _raise() -> NoReturn:
    exception, _raised.exception = _raised.exception, None
    assert exception is not None
    raise exception
