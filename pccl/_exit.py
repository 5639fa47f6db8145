"""What becomes of a program whose main thread has ended while other threads are in calls.

The interpreter waits for all threads that are no daemons, and a thread in a call may wait for peers for
ever, which wait for this one. So after an exception of the main thread (sys.last_value) all communicators are
closed, which ends their calls, and all masters are stopped. A main thread that has ended well may have left
the work to others: only a call that lasts longer than `timeout` from then on is told. Masters that run keep
the process.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # its own callback, which joins pools, must be there first, to be run last
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

__all__ = ["Master", "add_master", "forget_master", "is_ending", "set_close_all"]

assert concurrent.futures.thread

_PACKAGE = os.path.dirname(__file__) + os.sep  # noqa: PTH120 - frames have strings
_SECONDS_BETWEEN_LOOKS = 0.05
_DEFAULT_PATIENCE = 10.0

_logger = logging.getLogger("pccl")


class Master(Protocol):
    """What of a MasterNode is needed here."""

    @property
    def address(self) -> str: ...

    def interrupt(self) -> None: ...

    def has_ended(self, seconds: float) -> bool: ...


_masters: set[Master] = set()  # that run and were not interrupted: they are not collected either
_ending: BaseException | None = None


def _close_nothing() -> None: ...


_close_all: Callable[[], None] = _close_nothing


def set_close_all(close_all: Callable[[], None]) -> None:
    """How to close all communicators."""
    global _close_all
    _close_all = close_all


def add_master(master: Master) -> None:
    """It runs: the process lives on until it has been interrupted."""
    _masters.add(master)


def forget_master(master: Master) -> None:
    """It was interrupted. May be called in a signal handler."""
    _masters.discard(master)


def is_ending() -> BaseException | None:
    """What the main thread has ended by, once communicators are closed for it."""
    return _ending


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(_PACKAGE)


def _other_threads() -> list[threading.Thread]:
    """That keep the process."""
    this = threading.current_thread()
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not this]


def _calls() -> dict[threading.Thread, FrameType]:
    """The public call in which each thread is that keeps the process, as a frame."""
    frames = sys._current_frames()
    calls = {}
    for thread in _other_threads():
        frame = frames.get(thread.ident or 0)
        if frame is not None and _is_ours(frame):
            while frame.f_back is not None and _is_ours(frame.f_back):
                frame = frame.f_back
            calls[thread] = frame
    return calls


def _describe(frame: FrameType) -> str:
    tag = frame.f_locals.get("tag")
    return f"{frame.f_code.co_name}({'' if tag is None else f'tag={tag}'})"


def _patience(frame: FrameType) -> float:
    return float(getattr(frame.f_locals.get("self"), "_timeout", _DEFAULT_PATIENCE))


def _watch_calls() -> None:
    """Until the calls of this moment are over, or have been told."""
    start = time.monotonic()
    waiting = {
        thread: frame
        for thread, frame in _calls().items()
        if frame.f_locals.get("self") not in _masters  # which are waited for on purpose
    }
    while waiting:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        now = _calls()
        waiting = {thread: frame for thread, frame in waiting.items() if now.get(thread) is frame}
        passed = time.monotonic() - start
        for thread, frame in list(waiting.items()):
            if passed >= _patience(frame):
                _logger.warning(
                    "the main thread has ended, but thread %r has been in %s for another %.1f s, and the "
                    "program does not end before it: call close() of the communicator first, or make it a "
                    "daemon thread",
                    thread.name,
                    _describe(frame),
                    passed,
                )
                del waiting[thread]


def _wait_for_masters() -> None:
    closed = False
    while _masters:
        master = next(iter(_masters))
        if not closed and not _other_threads():
            closed = True
            _close_all()  # nobody is left who could use them; others need not wait for them
            _logger.info("the script has ended; its master at %s runs until it is stopped", master.address)
        if master.has_ended(_SECONDS_BETWEEN_LOOKS):
            forget_master(master)


def _end(reason: BaseException) -> None:
    global _ending
    _ending = reason
    for master in list(_masters):
        master.interrupt()
    _close_all()


def _main_thread_has_ended() -> None:
    failure = getattr(sys, "last_value", None)
    if failure is not None:
        _end(failure)
        return
    try:
        _watch_calls()
        _wait_for_masters()
    except KeyboardInterrupt as interrupt:  # it has done what it was to do
        _end(interrupt)


# Before the interpreter waits for threads; atexit comes after that.
with contextlib.suppress(RuntimeError):  # imported while the interpreter ends
    getattr(threading, "_register_atexit", atexit.register)(_main_thread_has_ended)
