"""Results for people, in the columns of nccl-tests and a few more, and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from .machine import machine
from .plan import Plan, Row
from .summary import Summary

__all__ = ["SCHEMA", "as_json", "footer", "header", "ratio_lines", "row_lines"]

SCHEMA = "pccl.bench.allreduce/1"

_MODE_COLUMNS = (
    *(("time", 9), ("p50", 9), ("p99", 9)),
    *(("algbw", 7), ("busbw", 7), ("cpu", 7), ("wire", 10), ("#wrong", 6)),
)
_MODE_UNITS = ("(us)", "(us)", "(us)", "(GB/s)", "(GB/s)", "(s/GB)", "(B)", "")
_MODE_WIDTH = sum(width + 1 for _, width in _MODE_COLUMNS)


def header(plan: Plan) -> list[str]:
    """The lines above the rows."""
    left = _left("size", "count", "type", "redop", "root", "streams", plan, "system")
    units = _left("(B)", "(elements)", "", "", "", "", plan, "")
    names = "".join(f" {name:>{width}}" for name, width in _MODE_COLUMNS)
    mode_units = "".join(
        f" {unit:>{width}}" for unit, (_, width) in zip(_MODE_UNITS, _MODE_COLUMNS, strict=True)
    )
    modes = f"{'out-of-place':^{_MODE_WIDTH}}  {'in-place':^{_MODE_WIDTH}}"
    n = plan.concurrent
    at_once = [f"# pccl: {n} ops of each size at once; one-op: one of {n} times the size"] if n > 1 else []
    manner = f"{'; early return' if plan.early_return else ''}{'; TCP only' if plan.tcp_only else ''}"
    iterations = f"{plan.rounds} x {plan.iterations} iterations, {plan.warmup} for warm-up"
    return [
        f"# {plan.world_size} peers; {iterations}; algorithm: {plan.algorithm}{manner}",
        *at_once,
        "# GB/s = 1e9 bytes/s; busbw = algbw * 2(n-1)/n; cpu: of all processes, for each GB to be sent;",
        "# wire: bytes that a peer sends in one op, with all headers",
        f"# {' ' * (len(left) - 2)}{modes}".rstrip(),
        f"#{left[1:]}{names}  {names}",
        f"#{units[1:]}{mode_units}  {mode_units}".rstrip(),
    ]


def row_lines(row: Row, plan: Plan) -> list[str]:
    """One line per contestant."""
    case, streams = row.case, _streams(plan)
    return [
        _left(case.size_bytes, case.count, case.datatype, case.redop, -1, streams, plan, name)
        + f"{_mode(row.out_of_place[name])}  {_mode(row.in_place[name])}"
        for name in row.out_of_place
    ]


def ratio_lines(rows: Iterable[Row]) -> list[str]:
    """How many times as fast pccl is, per case and rival; nothing without rivals."""
    lines = [
        f"{row.case.size_bytes:>14} {row.case.datatype:>9} {row.case.redop:>7} {name:>7}"
        f"    {row.out_of_place_ratios[name]!s:20}    {row.in_place_ratios[name]}"
        for row in rows
        for name in row.out_of_place_ratios
    ]
    if lines:
        lines[:0] = [
            "#",
            "# Speed of pccl relative to rivals (above 1: pccl is faster): the ratio of the median times of",
            "# two adjacent batches; its median over the rounds (and its range)",
            f"#{'size (B)':>13} {'type':>9} {'redop':>7} {'rival':>7}    {'out-of-place':<20}    in-place",
        ]
    return lines


def footer(rows: Sequence[Row]) -> list[str]:
    """The lines below the rows."""
    wrong = sum(row.wrong for row in rows)
    return [
        f"# Out of bounds values : {wrong} {'FAILED' if wrong else 'OK'}",
        f"# Avg bus bandwidth    : {_average_busbw(rows):.4f}",
    ]


def as_json(plan: Plan, rows: Sequence[Row], version: str) -> dict[str, Any]:
    """A document of SCHEMA. Times in microseconds, bandwidths in 1e9 bytes per second; `wrong` is null where
    nothing was checked; `root` and `ratios` as in the tables."""
    return {
        "schema": SCHEMA,
        "pccl_version": version,
        "machine": machine(),
        "peers": plan.world_size,
        "streams": plan.streams or None,
        "iterations": plan.iterations,
        "warmup": plan.warmup,
        "checks": plan.checks,
        "rounds": plan.rounds,
        "rivals": list(plan.rivals),
        "concurrent": plan.concurrent,
        "algorithm": plan.algorithm,
        "early_return": plan.early_return,
        "tcp_only": plan.tcp_only,
        "rows": [_json_row(row) for row in rows],
        "average_busbw_gb_s": _average_busbw(rows),
        "wrong": sum(row.wrong for row in rows),
    }


def _json_row(row: Row) -> dict[str, Any]:
    systems = [
        {
            "system": name,
            "out_of_place": dataclasses.asdict(row.out_of_place[name]),
            "in_place": dataclasses.asdict(row.in_place[name]),
        }
        for name in row.out_of_place
    ]
    ratios = [
        {
            "rival": name,
            "out_of_place": dataclasses.asdict(row.out_of_place_ratios[name]),
            "in_place": dataclasses.asdict(row.in_place_ratios[name]),
        }
        for name in row.out_of_place_ratios
    ]
    return {**dataclasses.asdict(row.case), "root": -1, "systems": systems, "ratios": ratios}


def _left(
    size: object,
    count: object,
    datatype: str,
    redop: str,
    root: object,
    streams: str,
    plan: Plan,
    system: str,
) -> str:
    text = f"{size:>14} {count:>13} {datatype:>9} {redop:>7} {root:>7} {streams:>7}"
    return f"{text} {system:>7}" if plan.is_contest else text


def _streams(plan: Plan) -> str:
    return str(plan.streams) if plan.streams else "default"


def _mode(summary: Summary) -> str:
    values = (
        _microseconds(summary.time_us),
        _microseconds(summary.p50_us),
        _microseconds(summary.p99_us),
        f"{summary.algbw_gb_s:.2f}",
        f"{summary.busbw_gb_s:.2f}",
        f"{summary.cpu_s_per_gb:.2f}",
        "N/A" if summary.wire_bytes is None else f"{summary.wire_bytes:.0f}",
        "N/A" if summary.wrong is None else str(summary.wrong),
    )
    return "".join(f" {value:>{width}}" for value, (_, width) in zip(values, _MODE_COLUMNS, strict=True))


def _microseconds(value: float) -> str:
    return f"{value:.2f}" if value < 1e4 else f"{value:.0f}"


def _average_busbw(rows: Sequence[Row]) -> float:
    """Of pccl, over all rows and both modes, as in nccl-tests."""
    ours = [next(iter(mode.values())).busbw_gb_s for row in rows for mode in (row.out_of_place, row.in_place)]
    return sum(ours) / len(ours)
