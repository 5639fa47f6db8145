"""The measuring loop, the same for pccl and for every rival that is driven from Python."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy

import pccl

from . import pattern
from .elements import numpy_dtype

__all__ = ["MakeOp", "Reply", "Request", "measure", "measure_ops", "measure_times"]

# make_op(send, recv, redop) gives what runs one all-reduce; recv is send in place.
MakeOp = Callable[[Any, Any, str], Callable[[], object]]


@dataclass(frozen=True)
class Request:
    """One batch: `warmup` untimed and `iterations` timed ops, after `checks` ops that are checked. With
    `concurrent` above 1 each of these is so many ops at once, of `count` elements together. `algorithm` and
    `early_return` are pccl's."""

    count: int
    datatype: str
    redop: str
    in_place: bool
    warmup: int
    iterations: int
    checks: int
    seed: int
    concurrent: int = 1
    algorithm: str = "auto"
    early_return: bool = False


@dataclass(frozen=True)
class Reply:
    """What one rank saw. `wrong` counts elements over all checks; None where nothing was checked. `cpu_ns` is
    what all threads of the process have used, in user and system, while the timed ops ran. `wire_bytes` is
    what the rank has sent in the last of them, headers included; None where it is not known."""

    times_ns: list[int]
    wrong: int | None
    cpu_ns: int
    wire_bytes: int | None = None


def measure(make_op: MakeOp, request: Request, rank: int, world_size: int) -> Reply:
    """Run one batch as `rank` of `world_size`."""
    send = numpy.empty(request.count, dtype=numpy_dtype(request.datatype))
    recv = send if request.in_place else numpy.empty_like(send)
    run = make_op(send, recv, request.redop)
    wrong = 0
    for seed in range(request.seed, request.seed + request.checks):
        # What the check before left behind must not pass for a result.
        recv.view(numpy.uint8)[:] = 0xA5
        pattern.fill(send, seed, rank, world_size, request.redop)
        run()
        wrong += pattern.count_wrong(recv, seed, world_size, request.redop)
    pattern.fill(send, request.seed, rank, world_size, request.redop)
    return measure_ops(run, request, wrong if request.checks else None)


def measure_ops(run: Callable[[], object], request: Request, wrong: int | None = None) -> Reply:
    """The timed part of a batch, `run` being one op of it."""
    result: object = None

    def run_and_note() -> None:
        nonlocal result
        result = run()

    for _ in range(request.warmup):
        run()
    begin_ns = time.process_time_ns()
    times_ns = measure_times(run_and_note, 0, request.iterations)
    return Reply(times_ns, wrong, time.process_time_ns() - begin_ns, _wire_bytes(result))


def _wire_bytes(result: object) -> int | None:
    """Of an op that returned a ReduceInfo, or of several that returned a list of them."""
    if isinstance(result, pccl.ReduceInfo):
        return int(result.tx_bytes)
    if isinstance(result, list) and all(isinstance(info, pccl.ReduceInfo) for info in result):
        return sum(int(info.tx_bytes) for info in result)
    return None


def measure_times(run: Callable[[], object], warmup: int, iterations: int) -> list[int]:
    """The nanoseconds that each of `iterations` runs took, back to back, after `warmup` runs."""
    for _ in range(warmup):
        run()
    times_ns = []
    for _ in range(iterations):
        begin = time.perf_counter_ns()
        run()
        times_ns.append(time.perf_counter_ns() - begin)
    return times_ns
