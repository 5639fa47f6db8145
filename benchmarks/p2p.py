"""`pccl bench p2p`: what the link between two peers carries, on this machine or between two hosts."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pccl

from .command import exit_status, new_parser, whole_number
from .contest import contest_rows
from .elements import size_bytes
from .machine import machine
from .plan import Plan, Row
from .progress import Progress
from .teams import OURSELVES

__all__ = ["SCHEMA", "main"]

SCHEMA = "pccl.bench.p2p/1"

_DESCRIPTION = """\
Measure what the link between two peers carries, by all-reduces of float32: with two peers each sends, and
at the same time receives, as many bytes as the buffer has. GB/s, and Gbit/s as in iperf3, are those of each
way. cpu is the processor time, in user and system, for each GB sent, that of the reductions included. The
round trip is the time of an all-reduce of 4 bytes, which also goes to the master and back.

Without --master, two processes and a master are started here, and raw TCP takes turns with them: as many
bytes each way at once over one connection, without any reduction; for 4 bytes that is one way, not a round
trip. With --master, this is one of two peers on two hosts: start it with the same options on both; the one
of rank 0 prints.

Options are spelled as in iperf3 where they mean the same. Exit status: 0 done, 1 failed or wrong results, 2
wrong usage."""

_ROUND_TRIP_BYTES = 4
_WARMUP = 2
_RAW = "raw"


def _lengths(text: str) -> list[int]:
    found = [size_bytes(word) for word in text.split(",")]
    if any(size % 4 != 0 for size in found):
        raise argparse.ArgumentTypeError(f"{text}: sizes must be multiples of 4, the bytes of a float32")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("p2p", _DESCRIPTION)
    add = parser.add_argument
    add("-t", "--time", type=_seconds, default=2.0, metavar="SECONDS", help="for each size (default 2)")
    add("-P", "--parallel", type=whole_number(0, 64), default=0, metavar="N", help="streams (0: default)")
    add(
        "-l",
        "--length",
        type=_lengths,
        default="64K,1M,16M,64M",
        metavar="SIZE,...",
        help="of the buffers (default 64K,1M,16M,64M)",
    )
    add(
        "--rounds", type=whole_number(1), default=3, metavar="N", help="that the time is cut into (default 3)"
    )
    add("--tcp", action="store_true", help="over TCP also within this machine; else memory")
    add("--master", metavar="HOST:PORT", help="join the run of this master instead of starting one")
    add("--timeout", type=whole_number(1), default=300, metavar="SECONDS", help="for one batch (default 300)")
    add("-J", "--json", action="store_true", help=f"one document, {SCHEMA}, instead of a table")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0, and at most 3600")
    return value


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        world_size=2,
        streams=options.parallel,
        sizes_bytes=[_ROUND_TRIP_BYTES, *options.length],
        datatypes=["float"],
        redops=["sum"],
        iterations=0,
        warmup=_WARMUP,
        checks=1,
        rounds=options.rounds,
        rivals=[_RAW] if options.master is None else [],
        in_place=False,
        tcp_only=options.tcp,
        seconds=options.time / options.rounds,
    )


def _line(row: Row, name: str) -> str:
    found = row.out_of_place[name]
    compared = str(row.out_of_place_ratios.get(name, ""))
    return (
        f"{row.case.size_bytes:>12} {name:>7} {found.algbw_gb_s:>8.3f} {found.algbw_gb_s * 8:>9.2f}"
        f" {found.p50_us:>11.1f} {found.p99_us:>11.1f} {found.cpu_s_per_gb:>9.2f}    {compared}"
    ).rstrip()


def _head(row: Row, options: argparse.Namespace) -> list[str]:
    """What stands above the rows, with the round trip; `row` is that of 4 bytes."""
    streams, seconds = options.parallel or "default", options.time
    times = {
        name: f"{found.p50_us:.1f} us (p99 {found.p99_us:.1f})" for name, found in row.out_of_place.items()
    }
    raw = f"; {_RAW}, one way: {times[_RAW]}" if _RAW in times else ""
    columns = (
        f"#{'size (B)':>11} {'system':>7} {'GB/s':>8} {'Gbit/s':>9} {'p50 (us)':>11} {'p99 (us)':>11}"
        f" {'cpu s/GB':>9}    pccl relative to it"
    )
    links = f"streams: {streams}{'; TCP only' if options.tcp else ''}"
    return [
        f"# 2 peers, both ways at once; {links}; {options.rounds} rounds, {seconds:g} s a size",
        f"# round trip, with that to the master: {times[OURSELVES]}{raw}",
        columns,
    ]


def _print_rows(rows: Iterator[Row], options: argparse.Namespace, progress: Progress) -> int:
    done: list[Row] = []
    for row in rows:
        if not options.json:
            progress.clear()
            lines = [_line(row, name) for name in row.out_of_place] if done else _head(row, options)
            print("\n".join(lines), flush=True)
        done.append(row)
    progress.clear()
    wrong = sum(row.wrong for row in done)
    if done and options.json:
        print(json.dumps(_as_json(done, options), indent=1))
    elif wrong > 0:
        print(f"# {wrong} wrong elements: FAILED")
    return 1 if wrong > 0 else 0


def _as_json(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, Any]:
    """Bandwidths are those of each way, in 1e9 bytes per second; `round_trip` is the row of 4 bytes."""
    found = [
        {
            "size_bytes": row.case.size_bytes,
            "systems": [
                {"system": name, **dataclasses.asdict(one)} for name, one in row.out_of_place.items()
            ],
            "ratios": [
                {"rival": name, **dataclasses.asdict(one)} for name, one in row.out_of_place_ratios.items()
            ],
        }
        for row in rows
    ]
    return {
        "schema": SCHEMA,
        "pccl_version": pccl.__version__,
        "machine": machine(),
        "streams": options.parallel or None,
        "tcp_only": options.tcp,
        "seconds": options.time,
        "rounds": options.rounds,
        "round_trip": found[0],
        "rows": found[1:],
        "wrong": sum(row.wrong for row in rows),
    }


def main(arguments: list[str]) -> int:
    """Run it with the words behind `pccl bench p2p`; the exit status."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _measure_and_print(options))


def _measure_and_print(options: argparse.Namespace) -> int:
    with Progress() as progress:
        rows = contest_rows(_plan(options), options.master, options.timeout, progress)
        return _print_rows(rows, options, progress)
