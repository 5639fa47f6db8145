"""`pccl bench allreduce`: all-reduce over sizes, on this machine or as one peer of a run of several."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import pccl

from . import plot, table
from .command import exit_status, new_parser, whole_number
from .contest import contest_rows
from .elements import ALGORITHMS, datatypes, numpy_dtype, redops, size_bytes, sizes
from .plan import Plan, Row
from .progress import Progress
from .rivals import RIVALS

__all__ = ["main"]

_DESCRIPTION = """\
Measure all-reduce over sizes. Prints the columns of nccl-tests; time is the mean, p50 and p99 are
percentiles of single operations, and cpu is the processor time, in user and system, that all processes of a
system, master included, use for each GB that an all-reduce has to send: all peers together 2(n-1) times its
size. Exit status: 0 done, 1 failed or wrong results, 2 wrong usage.

Without --master, --peers processes and a master are started here, and end with it. With --master, this is
one peer of a run on several hosts: start it with the same options on each; the one of rank 0 prints. What a
master elsewhere uses is not counted then."""

_ROUNDS_AGAINST_RIVALS = 5


def _parser() -> argparse.ArgumentParser:
    rivals = "rivals: " + "; ".join(f"{name} = {text}" for name, text in RIVALS.items())
    parser = new_parser("allreduce", _DESCRIPTION, rivals)
    number = whole_number
    add = parser.add_argument
    add("-b", "--minbytes", type=size_bytes, default="4K", metavar="SIZE", help="smallest size (default 4K)")
    add("-e", "--maxbytes", type=size_bytes, default="64M", metavar="SIZE", help="largest size (default 64M)")
    add("-f", "--stepfactor", type=number(2), default=4, metavar="N", help="from size to size (default 4)")
    add("-n", "--iters", type=number(1), default=20, metavar="N", help="timed operations (default 20)")
    add(
        "-w", "--warmup_iters", type=number(0), default=5, metavar="N", help="untimed before them (default 5)"
    )
    add("-c", "--check", type=number(0), default=1, metavar="N", help="checked operations (default 1)")
    add("-d", "--datatype", type=datatypes, default="float", metavar="TYPE", help="or all (default float)")
    add("-o", "--op", type=redops, default="sum", metavar="OP", help="sum prod max min avg, or all")
    add("--peers", type=number(2), default=2, metavar="N", help="world size (default 2)")
    add("--streams", type=number(0, 64), default=0, metavar="N", help="TCP streams per link (0: default)")
    add("--algorithm", choices=ALGORITHMS, default="auto", help="of pccl (default auto: by size)")
    add("--early-return", action="store_true", help="of pccl: results of up to 64K before their commit")
    add("--tcp", action="store_true", help="pccl over TCP also within this machine, as others; else memory")
    add("--master", metavar="HOST:PORT", help="join the run of this master instead of starting one")
    add("--versus", type=_rivals, default=[], metavar="RIVALS", help=f"such as {','.join(RIVALS)}")
    add(
        "--concurrent",
        type=number(1, 1024),
        default=1,
        metavar="N",
        help="so many ops of each size at once, beside one op of N times the size (default 1: neither)",
    )
    add(
        "--rounds",
        type=number(1),
        metavar="N",
        help="batches per size and contestant (default 1; 5 with --versus or --concurrent)",
    )
    add("--timeout", type=number(1), default=300, metavar="SECONDS", help="for one batch (default 300)")
    add("--plot", metavar="FILE", help="bandwidth and latency over size (.png, .svg, .pdf): needs matplotlib")
    add("--json", action="store_true", help=f"one document, {table.SCHEMA}, instead of tables")
    return parser


def _rivals(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in RIVALS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(RIVALS)}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError("each rival once")
    return names


def _plan(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Plan:
    if options.minbytes > options.maxbytes:
        parser.error(f"-b {options.minbytes} is above -e {options.maxbytes}")
    if options.master is not None and options.versus:
        parser.error("--versus starts all processes here: it does not go with --master")
    if options.concurrent > 1 and (options.master is not None or options.versus):
        parser.error("--concurrent compares pccl with itself, here: it does not go with --master or --versus")
    compares = bool(options.versus) or options.concurrent > 1
    plan = Plan(
        world_size=options.peers,
        streams=options.streams,
        sizes_bytes=sizes(options.minbytes, options.maxbytes, options.stepfactor),
        datatypes=options.datatype,
        redops=options.op,
        iterations=options.iters,
        warmup=options.warmup_iters,
        checks=options.check,
        rounds=options.rounds or (_ROUNDS_AGAINST_RIVALS if compares else 1),
        rivals=options.versus,
        concurrent=options.concurrent,
        algorithm=options.algorithm,
        early_return=options.early_return,
        tcp_only=options.tcp,
    )
    if all(plan.sizes_bytes[-1] < numpy_dtype(datatype).itemsize for datatype in plan.datatypes):
        parser.error(f"-e {options.maxbytes} is less than one element")
    return plan


def _print_rows(rows: Iterator[Row], plan: Plan, progress: Progress, *, as_json: bool) -> list[Row]:
    done: list[Row] = []
    for row in rows:
        if not as_json:
            progress.clear()
            print("\n".join([*([] if done else table.header(plan)), *table.row_lines(row, plan)]), flush=True)
        done.append(row)
    progress.clear()
    if done and as_json:
        print(json.dumps(table.as_json(plan, done, pccl.__version__), indent=1))
    elif done:
        print("\n".join([*table.ratio_lines(done), *table.footer(done)]))
    return done


def main(arguments: list[str]) -> int:
    """Run it with the words behind `pccl bench allreduce`; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    return exit_status(lambda: _measure_and_print(options, parser))


def _measure_and_print(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    plan = _plan(options, parser)
    if options.plot is not None:
        plot.expect(options.plot)
    with Progress() as progress:
        rows = contest_rows(plan, options.master, options.timeout, progress)
        done = _print_rows(rows, plan, progress, as_json=options.json)
    if done and options.plot is not None:
        plot.write(options.plot, plan, done)
    return 1 if any(row.wrong for row in done) else 0
