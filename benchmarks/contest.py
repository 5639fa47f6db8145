"""One plan on this machine: pccl and its rivals, each a team of processes, take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import rivals
from .launch import BenchmarkError
from .measure import Reply, Request
from .plan import Case, Plan, Row
from .summary import Summary, average_over_ranks, ratio, summarize, total_wrong
from .teams import ONE_OP, OURSELVES, start_ourselves, start_rival

__all__ = ["expect_rivals", "run_contest"]

# Says who is being measured: (case, contestant, number of the round).
Progress = Callable[[Case, str, int], None]


def expect_rivals(plan: Plan) -> None:
    """BenchmarkError, before anything starts, when a rival cannot take part; the text says what to do."""
    for name in plan.rivals:
        for case in plan.cases():
            reason = rivals.load(name).missing(plan.world_size, case.datatype, case.redop)
            if reason is not None:
                raise BenchmarkError(reason)


def run_contest(plan: Plan, timeout_s: float, progress: Progress) -> Iterator[Row]:
    """Yield a row per case. All processes end when the iteration does."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pccl-bench-")))
        contest = _Contest(plan, directory, timeout_s, stack)
        for case in plan.cases():
            yield contest.row(case, progress)


class _Contest:
    def __init__(self, plan: Plan, directory: Path, timeout_s: float, stack: contextlib.ExitStack) -> None:
        self._plan = plan
        self._seed = 0
        self._teams = {OURSELVES: start_ourselves(stack, directory, plan.world_size, plan.streams, timeout_s)}
        self._encoders: dict[str, Callable[[Request], Any]] = {OURSELVES: dataclasses.asdict}
        if plan.concurrent > 1:
            self._teams[ONE_OP] = self._teams[OURSELVES]
            self._encoders[ONE_OP] = dataclasses.asdict
        for name in plan.rivals:
            self._teams[name] = start_rival(stack, directory, name, plan.world_size, timeout_s)
            self._encoders[name] = rivals.load(name).encode

    def row(self, case: Case, progress: Progress) -> Row:
        out_of_place = self._rounds(case, False, progress)
        in_place = self._rounds(case, True, progress)
        return Row(
            case,
            self._summaries(case, out_of_place),
            self._summaries(case, in_place),
            _ratios(out_of_place),
            _ratios(in_place),
        )

    def _rounds(self, case: Case, in_place: bool, progress: Progress) -> dict[str, list[list[Reply]]]:
        """The replies of all ranks in each round, by contestant. Who is compared is measured in turns, so
        that what else the machine does meanwhile hits all alike."""
        replies: dict[str, list[list[Reply]]] = {name: [] for name in self._teams}
        for round_number in range(self._plan.rounds):
            for name, team in self._teams.items():
                progress(case, name, round_number)
                self._seed += self._plan.checks
                concurrent = self._plan.concurrent if name == OURSELVES else 1
                request = self._plan.request(case, in_place, self._seed, concurrent)
                replies[name].append(
                    [Reply(**answer) for answer in team.ask_all(self._encoders[name](request))]
                )
        return replies

    def _summaries(self, case: Case, replies: Mapping[str, list[list[Reply]]]) -> dict[str, Summary]:
        return {
            name: summarize(
                [time_ns for batch in batches for time_ns in average_over_ranks(batch)],
                total_wrong([reply for batch in batches for reply in batch]),
                case.size_bytes * self._plan.concurrent,
                self._plan.world_size,
            )
            for name, batches in replies.items()
        }


def _ratios(replies: Mapping[str, Sequence[Sequence[Reply]]]) -> dict[str, Any]:
    times = {name: [average_over_ranks(batch) for batch in batches] for name, batches in replies.items()}
    ours = times.pop(OURSELVES)
    return {name: ratio(ours, theirs) for name, theirs in times.items()}
