"""One plan: pccl and its rivals, each a team of processes on this machine, or pccl alone on several, in
turns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

import pccl

from . import rivals
from .launch import BenchmarkError, Team
from .measure import Reply, Request, measure
from .peer import join, make_op_of, master_cpu_ns
from .plan import Case, Plan, Row
from .progress import Progress
from .summary import Batch, Ratio, Summary, joined, ratio, summarize
from .teams import ONE_OP, OURSELVES, start_ourselves, start_rival

__all__ = ["contest_rows", "expect_rivals", "join_contest", "run_contest"]

# How one contestant runs a batch.
Measure = Callable[[Request], Batch]

# A batch that is to take some time is put together of parts, of so many ops at first and at last: what an
# op takes can change by orders of magnitude when the machine has something else to do.
_FIRST_ITERATIONS, _MOST_ITERATIONS = 3, 1000


def contest_rows(plan: Plan, master: str | None, timeout_s: float, progress: Progress) -> Iterator[Row]:
    """A row per case: of processes that are started here, or as one peer of the run of `master`, of which
    only that of rank 0 gets them."""
    if master is not None:
        return join_contest(plan, master, progress)
    expect_rivals(plan)
    return run_contest(plan, timeout_s, progress)


def expect_rivals(plan: Plan) -> None:
    """BenchmarkError, before anything starts, when a rival cannot take part; the text says what to do."""
    for name in plan.rivals:
        for case in plan.cases():
            reason = rivals.load(name).missing(plan.world_size, case.datatype, case.redop)
            if reason is not None:
                raise BenchmarkError(reason)


def run_contest(plan: Plan, timeout_s: float, progress: Progress) -> Iterator[Row]:
    """Start all processes here, and yield a row per case. They end when the iteration does."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pccl-bench-")))
        team, master = start_ourselves(
            stack, directory, plan.world_size, plan.streams, timeout_s, tcp_only=plan.tcp_only
        )
        contestants: dict[str, Measure] = {OURSELVES: lambda request: _ask(team, request, master=master)}
        if plan.concurrent > 1:
            contestants[ONE_OP] = contestants[OURSELVES]
        for name in plan.rivals:
            contestants[name] = _rival(name, start_rival(stack, directory, name, plan.world_size, timeout_s))
        yield from _Contest(plan, contestants, progress).rows()


def _ask(
    team: Team,
    request: Request,
    *,
    encode: Callable[[Request], Any] = dataclasses.asdict,
    master: Team | None = None,
) -> Batch:
    before_ns = 0 if master is None else master_cpu_ns(master)
    batch = Batch.of([Reply(**answer) for answer in team.ask_all(encode(request))])
    if master is None:
        return batch
    # The master has served the untimed ops as well.
    timed = request.iterations / (request.checks + request.warmup + request.iterations)
    used_ns = (master_cpu_ns(master) - before_ns) * timed
    return dataclasses.replace(batch, cpu_ns=batch.cpu_ns + used_ns)


def _rival(name: str, team: Team) -> Measure:
    return lambda request: _ask(team, request, encode=rivals.load(name).encode)


def join_contest(plan: Plan, master: str, progress: Progress) -> Iterator[Row]:
    """Be one peer of the run of `master`, in which all have the same plan. Yields rows on rank 0, nothing on
    the others. The master's processor time is not known here."""
    print(f"pccl bench: waiting for {plan.world_size} peers at {master}", file=sys.stderr)
    with join(master, plan.world_size, plan.streams, "bench", tcp_only=plan.tcp_only) as communicator:
        rank = communicator.rank

        def measure_together(request: Request) -> Batch:
            return _combine(
                communicator, measure(make_op_of(communicator, request), request, rank, plan.world_size), plan
            )

        for row in _Contest(plan, {OURSELVES: measure_together}, progress).rows():
            if rank == 0:
                yield row


def _combine(communicator: pccl.Communicator, reply: Reply, plan: Plan) -> Batch:
    """What all ranks saw, brought together by the library itself: the same on all of them."""
    times_ns = numpy.array(reply.times_ns, dtype=numpy.float64)
    communicator.all_reduce(times_ns, op="avg")
    sums = numpy.array([reply.wrong or 0, reply.cpu_ns, reply.wire_bytes or 0], dtype=numpy.int64)
    if communicator.all_reduce(sums, op="sum").local_world_size != plan.world_size:
        raise BenchmarkError("a peer has left during the run")
    wrong = None if reply.wrong is None else int(sums[0])
    return Batch(times_ns.tolist(), wrong, int(sums[1]), int(sums[2]))


class _Contest:
    def __init__(self, plan: Plan, contestants: Mapping[str, Measure], progress: Progress) -> None:
        self._plan = plan
        self._contestants = contestants
        self._progress = progress
        self._seed = 0

    def rows(self) -> Iterator[Row]:
        cases = list(self._plan.cases())
        for number, case in enumerate(cases, 1):
            place = f"{number} of {len(cases)}"
            out_of_place = self._rounds(case, False, place)
            in_place = self._rounds(case, True, place) if self._plan.in_place else {}
            yield Row(
                case,
                self._summaries(case, out_of_place),
                self._summaries(case, in_place),
                _ratios(out_of_place),
                _ratios(in_place),
            )

    def _rounds(self, case: Case, in_place: bool, place: str) -> dict[str, list[Batch]]:
        """By contestant. Who is compared is measured in turns, so that what else the machine does meanwhile
        hits all alike."""
        batches: dict[str, list[Batch]] = {name: [] for name in self._contestants}
        for round_number in range(1, self._plan.rounds + 1):
            for name in self._contestants:
                self._progress(
                    f"case {place}, {case.size_bytes} B {case.datatype} {case.redop}: {name}, "
                    f"round {round_number} of {self._plan.rounds}"
                )
                self._seed += self._plan.checks
                batches[name].append(self._batch(name, case, in_place))
        return batches

    def _batch(self, name: str, case: Case, in_place: bool) -> Batch:
        plan, run = self._plan, self._contestants[name]
        concurrent = plan.concurrent if name == OURSELVES else 1
        request = plan.request(case, in_place, self._seed, concurrent)
        if plan.seconds == 0:
            return run(request)
        parts = [run(dataclasses.replace(request, iterations=_FIRST_ITERATIONS))]
        while (used_ns := sum(sum(part.times_ns) for part in parts)) < plan.seconds * 1e9:
            done = sum(len(part.times_ns) for part in parts)
            enough = math.ceil((plan.seconds * 1e9 - used_ns) * done / used_ns)
            more = min(enough, 2 * done, _MOST_ITERATIONS)
            parts.append(run(dataclasses.replace(request, iterations=more, warmup=0, checks=0)))
        return joined(parts)

    def _summaries(self, case: Case, batches: Mapping[str, Sequence[Batch]]) -> dict[str, Summary]:
        size_bytes = case.size_bytes * self._plan.concurrent
        return {name: summarize(found, size_bytes, self._plan.world_size) for name, found in batches.items()}


def _ratios(batches: Mapping[str, Sequence[Batch]]) -> dict[str, Ratio]:
    return {name: ratio(batches[OURSELVES], theirs) for name, theirs in batches.items() if name != OURSELVES}
