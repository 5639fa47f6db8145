"""`pccl bench recovery`: how long the death of a peer holds up the others."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

import pccl

from .command import exit_status, new_parser, whole_number
from .elements import size_bytes
from .launch import BenchmarkError, Team
from .rivals import load
from .teams import OURSELVES, start_ourselves, start_rival

__all__ = ["main"]

SCHEMA = "pccl.bench.recovery/1"

_DESCRIPTION = """\
Processes on this machine all-reduce without pause; one of them gets SIGKILL at a random moment. Measured from
there:

recovered  the last survivor has the result of the next all-reduce, committed without the dead peer
alone      (2 peers) the survivor's call has ended with TooFewPeersError
noticed    (gloo, which never recovers) a survivor's call has raised; the first to notice, and the last

Every repetition starts fresh processes. Exit status: 0 done, 1 failed, 2 wrong usage."""

# The kill comes this long after the ops have begun.
_EARLIEST_KILL_S, _LATEST_KILL_S = 0.1, 0.4


@dataclass(frozen=True)
class Row:
    """Seconds from SIGKILL until `event`, over all repetitions."""

    system: str
    peers: int
    event: str
    times_s: list[float]

    @property
    def median_s(self) -> float:
        return float(numpy.median(self.times_s))

    @property
    def p99_s(self) -> float:
        return float(numpy.percentile(self.times_s, 99))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("recovery", _DESCRIPTION)
    add = parser.add_argument
    add(
        "--peers",
        type=_world_sizes,
        default=[2, 4],
        metavar="N,...",
        help="world sizes, 2 to 8 (default 2,4)",
    )
    add(
        "--repetitions",
        type=whole_number(1),
        default=10,
        metavar="N",
        help="kills per world size (default 10)",
    )
    add("--size", type=size_bytes, default="1M", help="of the float32 buffers (default 1M)")
    add(
        "--streams",
        type=int,
        choices=range(65),
        default=0,
        metavar="N",
        help="TCP streams per link (0: default)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of whom to kill when (default 0)")
    add("--versus", choices=["gloo"], help="in the same run, taking turns")
    add(
        "--timeout", type=whole_number(1), default=60, metavar="SECONDS", help="for one recovery (default 60)"
    )
    add("--json", action="store_true", help=f"one document, {SCHEMA}, instead of a table")
    return parser


def _world_sizes(text: str) -> list[int]:
    values = [int(word) for word in text.split(",")]
    if any(not 2 <= value <= 8 for value in values):
        raise argparse.ArgumentTypeError(f"{text}: from 2 to 8")
    return values


def kill_one(team: Team, size: int, choice: random.Random) -> list[tuple[float, Any]]:
    """Let the team all-reduce, kill one of it; seconds from there and the answer, of each survivor."""
    for rank in range(team.world_size):
        team.ask(rank, {"outlive_bytes": size})
    time.sleep(choice.uniform(_EARLIEST_KILL_S, _LATEST_KILL_S))
    victim = choice.randrange(team.world_size)
    killed_ns = time.monotonic_ns()
    team.kill(victim)
    answers = team.receive_all([rank for rank in range(team.world_size) if rank != victim])
    if any(answer["at_ns"] < killed_ns for answer in answers):
        raise BenchmarkError(f"{team.name}: a survivor was ready before the kill")
    return [((answer["at_ns"] - killed_ns) / 1e9, answer) for answer in answers]


def _measure_ourselves(peers: int, options: argparse.Namespace, choice: random.Random) -> float:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pccl-bench-"))
        team, _ = start_ourselves(stack, Path(directory), peers, options.streams, options.timeout)
        found = kill_one(team, options.size, choice)
    for _, answer in found:
        if answer["survivors"] != peers - 1:
            raise BenchmarkError(f"{answer['survivors']} instead of {peers - 1} peers survived")
    return max(seconds for seconds, _ in found)


def _measure_rival(
    name: str, peers: int, options: argparse.Namespace, choice: random.Random
) -> tuple[float, float]:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pccl-bench-"))
        team = start_rival(stack, Path(directory), name, peers, options.timeout)
        seconds = [seconds for seconds, _ in kill_one(team, options.size, choice)]
    return min(seconds), max(seconds)


def _run(options: argparse.Namespace) -> list[Row]:
    choice = random.Random(options.seed)
    rows = []
    for peers in options.peers:
        ours: list[float] = []
        first: list[float] = []
        last: list[float] = []
        for repetition in range(options.repetitions):
            print(f"{peers} peers, kill {repetition + 1} of {options.repetitions}", file=sys.stderr)
            ours.append(_measure_ourselves(peers, options, choice))
            if options.versus is not None:
                times = _measure_rival(options.versus, peers, options, choice)
                first.append(times[0])
                last.append(times[1])
        rows.append(Row(OURSELVES, peers, "recovered" if peers > 2 else "alone", ours))
        if options.versus is not None:
            rows.append(Row(options.versus, peers, "noticed, first", first))
            rows.append(Row(options.versus, peers, "noticed, last", last))
    return rows


def _table(rows: Sequence[Row], options: argparse.Namespace) -> list[str]:
    lines = [f"# {options.repetitions} kills, seed {options.seed}; all-reduce of {options.size} bytes"]
    if options.versus is not None:
        lines.append(f"# {options.versus}: timeout of the process group {load(options.versus).TIMEOUT_S} s")
    lines.append(f"#{'system':>7} {'peers':>6}  {'event':15} {'median (ms)':>12} {'p99 (ms)':>12}")
    for row in rows:
        median_ms, p99_ms = row.median_s * 1e3, row.p99_s * 1e3
        lines.append(f"{row.system:>8} {row.peers:>6}  {row.event:15} {median_ms:>12.1f} {p99_ms:>12.1f}")
    return lines


def _as_json(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "pccl_version": pccl.__version__,
        "size_bytes": options.size,
        "repetitions": options.repetitions,
        "seed": options.seed,
        "rows": [{**dataclasses.asdict(row), "median_s": row.median_s, "p99_s": row.p99_s} for row in rows],
    }


def main(arguments: list[str]) -> int:
    """Run it with the words behind `pccl bench recovery`; the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _measure_and_print(options))


def _measure_and_print(options: argparse.Namespace) -> int:
    if options.versus is not None:
        reason = load(options.versus).missing(2, "float", "sum")
        if reason is not None:
            raise BenchmarkError(reason)
    rows = _run(options)
    if options.json:
        print(json.dumps(_as_json(rows, options), indent=1))
    else:
        print("\n".join(_table(rows, options)))
    return 0
