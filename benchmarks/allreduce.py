"""`pccl bench allreduce`: all-reduce over sizes, on this machine or as one peer of a run of several."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy

import pccl

from . import table
from .contest import expect_rivals, run_contest
from .elements import datatypes, numpy_dtype, redops, size_bytes, sizes
from .launch import BenchmarkError, end_on_sigterm
from .measure import Reply, measure
from .peer import join, make_op_of
from .plan import Case, Plan, Row
from .rivals import RIVALS
from .summary import Summary, average_over_ranks, summarize
from .teams import OURSELVES

__all__ = ["main"]

_DESCRIPTION = """\
Measure all-reduce over sizes. Prints the columns of nccl-tests; time is the mean, p50 and p99 are percentiles
of single operations. Exit status: 0 done, 1 failed or wrong results, 2 wrong usage.

Without --master, --peers processes and a master are started here, and end with it. With --master, this is one
peer of a run on several hosts: start it with the same options on each; the one of rank 0 prints.

There is no point to point benchmark: the library has no send and receive."""

_ROUNDS_AGAINST_RIVALS = 5


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pccl bench allreduce",
        description=_DESCRIPTION,
        epilog="rivals: " + "; ".join(f"{name} = {text}" for name, text in RIVALS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number = _whole_number
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
    add("--json", action="store_true", help=f"one document, {table.SCHEMA}, instead of tables")
    return parser


def _whole_number(lowest: int, highest: int = 2**31 - 1) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not from {lowest} to {highest}")
        return value

    parse.__name__ = "whole number"  # argparse puts it into "invalid ... value"
    return parse


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
    )
    if all(plan.sizes_bytes[-1] < numpy_dtype(datatype).itemsize for datatype in plan.datatypes):
        parser.error(f"-e {options.maxbytes} is less than one element")
    return plan


def _join_run(plan: Plan, master: str) -> Iterator[Row]:
    """Yields rows on rank 0, nothing on the others."""
    print(f"pccl bench: waiting for {plan.world_size} peers at {master}", file=sys.stderr)
    with join(master, plan.world_size, plan.streams, "bench") as communicator:
        rank = communicator.rank
        seed = 0
        for case in plan.cases():
            modes = []
            for in_place in (False, True):
                seed += plan.checks
                request = plan.request(case, in_place, seed)
                make_op = make_op_of(communicator)
                replies = [measure(make_op, request, rank, plan.world_size) for _ in range(plan.rounds)]
                modes.append({OURSELVES: _combine(communicator, replies, case, plan)})
            if rank == 0:
                yield Row(case, modes[0], modes[1])


def _combine(communicator: pccl.Communicator, replies: list[Reply], case: Case, plan: Plan) -> Summary:
    """What all ranks saw, brought together by the library itself."""
    times_ns = numpy.concatenate([average_over_ranks([reply]) for reply in replies])
    communicator.all_reduce(times_ns, op="avg")
    wrong = numpy.array([sum(reply.wrong or 0 for reply in replies)], dtype=numpy.int64)
    if communicator.all_reduce(wrong, op="sum").local_world_size != plan.world_size:
        raise BenchmarkError("a peer has left during the run")
    total = int(wrong[0]) if plan.checks else None
    return summarize(times_ns.tolist(), total, case.size_bytes, plan.world_size)


def _print_rows(rows: Iterator[Row], plan: Plan, progress: table.Progress, *, as_json: bool) -> list[Row]:
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
    end_on_sigterm()
    try:
        plan = _plan(options, parser)
        progress = table.Progress(plan, sys.stderr)
        if options.master is None:
            expect_rivals(plan)
            rows = run_contest(plan, options.timeout, progress)
        else:
            rows = _join_run(plan, options.master)
        done = _print_rows(rows, plan, progress, as_json=options.json)
    except ImportError as error:
        print(f"pccl bench: {error.name} is missing: pip install {error.name}", file=sys.stderr)
        return 1
    except (BenchmarkError, pccl.PCCLError) as error:
        print(f"pccl bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pccl bench: interrupted", file=sys.stderr)
        return 1
    return 1 if any(row.wrong for row in done) else 0
