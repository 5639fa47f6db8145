"""Ops in flight: their memory is held until they are over, whatever becomes of their handles."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from . import _interrupt
from ._arrays import Memory
from ._descriptors import ReduceInfo
from ._enums import Result
from ._errors import RefusedError, check_process, error_for, last_error
from ._native import ffi, lib

__all__ = ["InFlight", "Operation", "Outcome"]

_logger = logging.getLogger("pccl")


@dataclass(slots=True)
class Outcome:
    """How an op ended; `error` is None if it succeeded."""

    result: int
    info: ReduceInfo
    error: BaseException | None


class Operation:
    """One op in C, awaited there exactly once, and here as often as you like. Until then it holds the memory
    that C works on."""

    def __init__(self, tag: int, memory: tuple[Memory, ...], process_id: int) -> None:
        self.handle = ffi.new("pcclAsyncReduceOp_t *")
        self._tag = tag
        self._memory = memory
        self._process_id = process_id
        self._lock = threading.Lock()
        self.outcome: Outcome | None = None  # once it has been awaited

    def wait(self) -> Outcome:
        check_process(self._process_id)  # before the lock, which another thread may have held at the fork
        with self._lock:
            if self.outcome is None:
                self.outcome = self._await()
                memory, self._memory = self._memory, ()
                for part in memory if self.outcome.error is None else ():
                    if part.looks_anew is not None and part.looks_anew() != part.address:
                        self._say_moved()
                        break
            return self.outcome

    def _await(self) -> Outcome:
        info = ffi.new("pcclReduceInfo_t *")
        try:
            result = _interrupt.try_call(lib.pcclAwaitAsyncReduce, self.handle, info)
        except BaseException as interruption:
            # The wait was interrupted, and with it the communicator closed: the op is over.
            error = error_for(Result.INVALID_USAGE, f"a signal ended the wait: {interruption!r}")
            self.outcome = Outcome(Result.INVALID_USAGE, ReduceInfo(0, 0, 0), error)
            self._memory = ()
            raise
        failure = None if result == lib.pcclSuccess else last_error(result)
        return Outcome(result, ReduceInfo.from_c(info), failure)

    def _say_moved(self) -> None:
        _logger.warning(
            "the async op with tag %d has worked on the memory that its tensors had when it was started, but "
            "one of them has other memory by now (tensor.data = ..., set_() or share_memory_()): leave them "
            "alone until the op is over",
            self._tag,
        )

    def done(self) -> bool:
        check_process(self._process_id)
        if not self._lock.acquire(blocking=False):
            return self.outcome is not None  # another thread is in wait()
        try:
            if self.outcome is not None:
                return True
            done = ffi.new("bool *")
            # An op that can't be asked any more (its communicator is closed) keeps nobody waiting.
            return bool(lib.pcclTestAsyncReduce(self.handle, done) != lib.pcclSuccess or done[0])
        finally:
            self._lock.release()


class InFlight:
    """The ops of one communicator that have started and were not seen awaited yet: at most one for each tag.

    C knows an async op by its tag alone, counts it as in flight until it is awaited, and may write to its
    memory until it is over. So whatever becomes of its handle, it is held here, and awaited in good time once
    it is over. Given to the communicator's finaliser: memory goes after the communicator's threads are gone.
    """

    _LOOKED_AT = 4  # at a time, once for each op that starts: what is over must not pile up

    def __init__(self) -> None:
        self._process_id = os.getpid()
        self._lock = threading.RLock()  # a signal handler may start an op as well
        self._by_tag: OrderedDict[int, Operation] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_tag)

    def start(
        self, tag: int, memory: tuple[Memory, ...], function: Any, arguments: tuple[Any, ...]
    ) -> Operation:
        """Start an op by `function` of lib, which takes the handle that it is to fill after `arguments`."""
        with self._lock:
            self.settle_some()
            if not self._settle(tag):
                raise error_for(
                    Result.INVALID_USAGE,
                    f"an async op with tag {tag} is under way: await it first, or use another tag",
                )
            operation = self._by_tag[tag] = Operation(tag, memory, self._process_id)
            try:
                self._call(function, *arguments, operation.handle)
            except BaseException:
                # A signal handler may raise when the op has started already.
                if operation.handle.comm == ffi.NULL:
                    del self._by_tag[tag]
                raise
            return operation

    def _call(self, function: Any, *arguments: Any) -> None:
        while True:
            try:
                _interrupt.call(function, *arguments)
                return
            except RefusedError:  # as many as may be have not been awaited
                known = len(self._by_tag)
                self.settle()
                if len(self._by_tag) == known and not self._await_one():
                    raise

    def _await_one(self) -> bool:
        """False if there is none. To fail instead would depend on timing, so that only some peers did."""
        for tag, operation in self._by_tag.items():
            if operation.handle.comm != ffi.NULL:
                operation.wait()
                return self._settle(tag)
        return False

    def settle_some(self) -> None:
        """Await a few, in turn, if they are over."""
        if not self._by_tag:
            return  # what another thread starts right now is not over
        with self._lock:
            for tag in list(itertools.islice(self._by_tag, self._LOOKED_AT)):
                if not self._settle(tag):
                    self._by_tag.move_to_end(tag)

    def settle(self) -> None:
        """Await all that are over."""
        with self._lock:
            for tag in list(self._by_tag):
                self._settle(tag)

    def _settle(self, tag: int) -> bool:
        """Whether the tag is free."""
        operation = self._by_tag.get(tag)
        if operation is None:
            return True
        if operation.outcome is None:
            if operation.handle.comm == ffi.NULL or not operation.done():
                return False  # a signal handler has come in between, or it runs
            operation.wait()
        del self._by_tag[tag]
        return True
