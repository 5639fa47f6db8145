"""Exceptions. Each carries the Result and a full sentence: who, what, how long, what to do."""

from __future__ import annotations

import os

from ._enums import Result
from ._native import ffi, lib

__all__ = [
    "EvictedError",
    "InvalidArgumentError",
    "MasterLostError",
    "MismatchError",
    "PCCLError",
    "PCCLTimeoutError",
    "PeerLostError",
    "RefusedError",
    "TooFewPeersError",
    "check",
    "check_process",
    "error_for",
]


class PCCLError(Exception):
    """A call failed. `result` says how; the text says why and what to do."""

    def __init__(self, result: Result | int, message: str = "") -> None:
        self.result = Result(result)
        super().__init__(message or result_text(self.result))

    def __reduce__(self) -> tuple[type[PCCLError], tuple[int, str]]:
        return type(self), (int(self.result), str(self))

    @staticmethod
    def check(result: int, func_name: str) -> None:
        """Raise unless `result` is Result.SUCCESS."""
        if result != Result.SUCCESS:
            raise error_for(Result(result), f"{func_name}: {result_text(Result(result))}")


class InvalidArgumentError(PCCLError, ValueError):
    """An argument was wrong and nothing was sent."""


class TooFewPeersError(PCCLError):
    """This peer is alone. Wait for others, then update_topology()."""


class PeerLostError(PCCLError):
    """A peer was lost during the call. The input is as it was: retrying is right."""


class MismatchError(PCCLError, ValueError):
    """The peers called different things under one tag. The text names both."""


class PCCLTimeoutError(PCCLError, TimeoutError):
    """The bound that you set has passed. The input is as it was."""


class MasterLostError(PCCLError, ConnectionError):
    """The connection to the master is gone, and this communicator is out of the run. No input was changed.

    What to do: see that `pccl master` runs, connect() again, then synchronise the state, as at the start.
    """


class EvictedError(PCCLError):
    """The master put this peer out; the text says why. connect() again."""


class RefusedError(PCCLError):
    """The master does not let this peer in, or a limit is reached; the text says which and what to do."""


_CLASSES: dict[Result, type[PCCLError]] = {
    Result.INVALID_ARGUMENT: InvalidArgumentError,
    Result.TOO_FEW_PEERS: TooFewPeersError,
    Result.RANK_CONNECTION_LOST: PeerLostError,
    Result.MISMATCH: MismatchError,
    Result.TIMEOUT: PCCLTimeoutError,
    Result.MASTER_CONNECTION_LOST: MasterLostError,
    Result.EVICTED: EvictedError,
    Result.REFUSED: RefusedError,
}


for _class in (PCCLError, InvalidArgumentError, *_CLASSES.values()):
    _class.__module__ = "pccl"  # where programs find them, and so what tracebacks say


def result_text(result: Result) -> str:
    """The general text of a result."""
    return str(ffi.string(lib.pcclResultString(result)).decode())


def error_for(result: Result, message: str = "") -> PCCLError:
    """The exception that stands for `result`."""
    return _CLASSES.get(result, PCCLError)(result, message)


def last_error(result: int) -> PCCLError:
    """The exception for a call of this thread that has just ended with `result`."""
    sentence = ffi.string(lib.pcclGetLastError(ffi.NULL)).decode(errors="replace")
    return error_for(Result(result), sentence)


def check_process(process_id: int) -> None:
    """InvalidUsage unless this is the process that made the communicator. Another one is a child forked from
    it, which has a copy of the memory but none of the threads: a call would wait for ever."""
    if os.getpid() != process_id:
        raise error_for(
            Result.INVALID_USAGE,
            "this communicator belongs to the process that this one was forked from: make a new one here",
        )


def check(result: int) -> None:
    """Raise unless a call of this thread, just ended, succeeded."""
    if result != lib.pcclSuccess:
        raise last_error(result)
