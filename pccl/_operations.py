"""Ops in flight: their memory is held until they are over, whatever becomes of their handles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from . import _interrupt
from ._descriptors import ReduceInfo
from ._enums import Result
from ._errors import error_for, last_error
from ._native import ffi, lib

__all__ = ["InFlight", "NativeOperation", "Outcome", "ThreadOperation"]


@dataclass(frozen=True)
class Outcome:
    """How an op ended; `error` is None if it succeeded."""

    result: int
    info: ReduceInfo
    error: BaseException | None


class Operation(Protocol):
    """What AsyncReduceHandle needs of an op."""

    def wait(self) -> Outcome: ...
    def done(self) -> bool: ...


class InFlight:
    """The ops of one communicator that have started and are not awaited yet. C may write to their memory, so
    this holds it, also after a handle was dropped. Given to the communicator's finaliser, which frees it only
    after the communicator's threads have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: dict[Any, object] = {}
        self._dropped: list[Any] = []

    def add(self, handle: Any, memory: object) -> None:
        with self._lock:
            self._memory[handle] = memory

    def remove(self, handle: Any) -> None:
        with self._lock:
            self._memory.pop(handle, None)

    def drop(self, handle: Any) -> None:
        """Nobody will await this op. Called by __del__, so it takes no lock (list.append is atomic)."""
        self._dropped.append(handle)

    def reap(self) -> None:
        """Await the dropped ops that are over."""
        for _ in range(len(self._dropped)):
            try:
                handle = self._dropped.pop(0)
            except IndexError:  # another thread was faster
                return
            done = ffi.new("bool *")
            if lib.pcclTestAsyncReduce(handle, done) == lib.pcclSuccess and not done[0]:
                self._dropped.append(handle)
                continue
            lib.pcclAwaitAsyncReduce(handle, ffi.NULL)
            self.remove(handle)


class NativeOperation:
    """One op in C, awaited exactly once."""

    def __init__(self, handle: Any, in_flight: InFlight) -> None:
        self._handle = handle
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None

    def wait(self) -> Outcome:
        with self._lock:
            if self._outcome is None:
                self._outcome = self._await()
            return self._outcome

    def _await(self) -> Outcome:
        info = ffi.new("pcclReduceInfo_t *")
        try:
            result = _interrupt.try_call(lib.pcclAwaitAsyncReduce, self._handle, info)
        except BaseException as interruption:
            # The wait was interrupted, and with it the communicator closed: the op is over.
            error = error_for(Result.INVALID_USAGE, f"a signal ended the wait: {interruption!r}")
            self._outcome = Outcome(Result.INVALID_USAGE, ReduceInfo(0, 0, 0), error)
            raise
        finally:
            self._in_flight.remove(self._handle)
        failure = None if result == lib.pcclSuccess else last_error(result)
        return Outcome(result, ReduceInfo.from_c(info), failure)

    def done(self) -> bool:
        if not self._lock.acquire(blocking=False):
            return self._outcome is not None  # another thread is in wait()
        try:
            if self._outcome is not None:
                return True
            done = ffi.new("bool *")
            # An op that can't be asked any more (its communicator is closed) keeps nobody waiting.
            return bool(lib.pcclTestAsyncReduce(self._handle, done) != lib.pcclSuccess or done[0])
        finally:
            self._lock.release()

    def __del__(self) -> None:
        if self._outcome is None:
            self._in_flight.drop(self._handle)


class ThreadOperation:
    """A blocking call in a thread of its own: an op that retries. All ops that a lost peer has failed must
    start again at once, in whatever order they are awaited, or two peers could wait for each other."""

    def __init__(self, function: Callable[[], ReduceInfo]) -> None:
        self._function: Callable[[], ReduceInfo] | None = function
        self._over = threading.Event()
        self._outcome = Outcome(Result.INTERNAL_ERROR, ReduceInfo(0, 0, 0), None)
        threading.Thread(target=self._run, name="pccl-retry", daemon=True).start()

    def _run(self) -> None:
        assert self._function is not None
        try:
            self._outcome = Outcome(Result.SUCCESS, self._function(), None)
        except BaseException as error:
            result = getattr(error, "result", Result.INTERNAL_ERROR)
            self._outcome = Outcome(int(result), ReduceInfo(0, 0, 0), error)
        self._function = None
        self._over.set()

    def wait(self) -> Outcome:
        self._over.wait()
        return self._outcome

    def done(self) -> bool:
        return self._over.is_set()
