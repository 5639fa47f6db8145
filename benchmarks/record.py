"""`make bench-table`: measures a fixed small set, and writes the table into a text between two markers.

python -m pccl.benchmarks.record README.md
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import rivals
from .command import exit_status
from .contest import run_contest
from .elements import size_bytes
from .launch import BenchmarkError
from .machine import machine
from .plan import Plan, Row
from .progress import Progress
from .teams import OURSELVES

__all__ = ["main", "replace"]

BEGIN, END = "<!-- bench-table: begin -->", "<!-- bench-table: end -->"

COMMAND = "make bench-table"
_WORLD_SIZES = (2, 4)
_LINES: Sequence[tuple[Sequence[str], dict[str, Any]]] = (
    (("4K", "64K", "1M", "16M", "128M"), {}),
    (("4K", "64K"), {"early_return": True}),
    (("4K", "1M", "16M", "128M"), {"tcp_only": True}),
)
_ROUNDS = 5
# Of a batch; the largest buffers take one op at least, and one more for warm-up.
_SECONDS = 0.25
_TIMEOUT_S = 300
_RIVAL_NAMES = {"gloo": "Gloo", "mpi": "Open MPI", "raw": "raw TCP"}


def _plan(world_size: int, sizes: Sequence[str], rounds: int, seconds: float) -> Plan:
    there = [name for name in _RIVAL_NAMES if rivals.load(name).missing(world_size, "float", "sum") is None]
    if there == [] or there[0] != "gloo":
        raise BenchmarkError(rivals.load("gloo").missing(world_size, "float", "sum"))
    return Plan(
        world_size=world_size,
        streams=0,
        sizes_bytes=[size_bytes(size) for size in sizes],
        datatypes=["float"],
        redops=["sum"],
        iterations=0,
        warmup=1,
        checks=0,
        rounds=rounds,
        rivals=there,
        seconds=seconds,
    )


def _size_text(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _ratio_cell(row: Row, name: str) -> str:
    modes = (row.out_of_place_ratios, row.in_place_ratios)
    return " / ".join(str(mode[name]) for mode in modes if name in mode)


def table(measured: Sequence[tuple[Plan, Sequence[Row]]]) -> list[str]:
    """In Markdown: a line for each world size and size; cells tell out of place / in place."""
    names = [name for name in _RIVAL_NAMES if any(name in plan.rivals for plan, _ in measured)]
    titles = ["peers", "size", "", "time", *(f"beside {_RIVAL_NAMES[name]}" for name in names)]
    lines = [_markdown(titles), _markdown(["---"] * len(titles))]
    for plan, rows in measured:
        manner = "early return" if plan.early_return else "TCP only" if plan.tcp_only else ""
        for row in rows:
            times = [mode[OURSELVES].p50_us for mode in (row.out_of_place, row.in_place)]
            head = [str(plan.world_size), _size_text(row.case.size_bytes), manner]
            time_cell = f"{' / '.join(f'{time_us:.0f}' for time_us in times)} µs"
            lines.append(_markdown([*head, time_cell, *(_ratio_cell(row, name) for name in names)]))
    return lines


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _origin(load: float, date: str) -> str:
    here = machine()
    return (
        f"`{COMMAND}`, {date}: {here['model']}, {here['cores']} cores, {here['system']}; "
        f"congestion control {here['congestion_control']}; load average at the start {load:.2f}."
    )


def replace(text: str, lines: Sequence[str]) -> str:
    """`text` with `lines` between the markers. BenchmarkError unless each is there once, in order."""
    found = re.findall(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", text, re.DOTALL)
    if len(found) != 1 or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise BenchmarkError(f"there must be one line {BEGIN}, and one line {END} below it")
    return text.replace(found[0], "\n".join([BEGIN, *lines, END]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="record", description=__doc__)
    parser.add_argument("path", type=Path, help="of the text")
    parser.add_argument("--tiny", action="store_true", help="one small size: to try it")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit status. The text is written last: a run that fails leaves it as it was."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _record(options.path, tiny=options.tiny))


def _record(path: Path, *, tiny: bool) -> int:
    load, date = os.getloadavg()[0], time.strftime("%Y-%m-%d")
    replace(path.read_text(encoding="utf-8"), [])  # before anything is measured
    measured = []
    with Progress() as progress:
        for world_size in _WORLD_SIZES:
            for sizes, manner in _LINES:
                plan = _plan(world_size, sizes[:1] if tiny else sizes, 1 if tiny else _ROUNDS, _SECONDS)
                plan = dataclasses.replace(plan, **manner)
                measured.append((plan, list(run_contest(plan, _TIMEOUT_S, progress))))
    lines = [*table(measured), "", _origin(load, date)]
    path.write_text(replace(path.read_text(encoding="utf-8"), lines), encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
