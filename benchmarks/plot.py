"""The results of an all-reduce contest as a picture. matplotlib is imported when one is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .launch import BenchmarkError
from .plan import Plan, Row
from .summary import Summary

__all__ = ["expect", "write"]

_SIZE_INCHES = (10, 7)
_TICKS = {1: "B", 1 << 10: "KiB", 1 << 20: "MiB", 1 << 30: "GiB"}


def _new_figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise BenchmarkError("--plot draws with matplotlib: pip install 'pccl[plot]'") from None
    return Figure(figsize=_SIZE_INCHES, layout="constrained")


def expect(path: str) -> None:
    """BenchmarkError, before anything is measured, when no picture can be written there; the text says
    why."""
    formats = sorted(_new_figure().canvas.get_supported_filetypes())
    if Path(path).suffix.removeprefix(".") not in formats:
        raise BenchmarkError(f"--plot {path}: the name must end in one of .{', .'.join(formats)}")
    if not Path(path).absolute().parent.is_dir():
        raise BenchmarkError(f"--plot {path}: there is no such folder")


def write(path: str, plan: Plan, rows: Sequence[Row]) -> None:
    """Bandwidth above latency, out of place beside in place; a line for each system, and for each element
    type and op where there are several."""
    figure = _new_figure()
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    modes = ("out of place", "in place")
    for column, mode in enumerate(modes):
        for label, points in _lines(plan, rows, in_place=column == 1).items():
            sizes = [size for size, _ in points]
            axes[0][column].plot(sizes, [found.algbw_gb_s for _, found in points], ".-", label=label)
            axes[1][column].plot(sizes, [found.p50_us for _, found in points], ".-", label=label)
        axes[0][column].set_title(mode)
        axes[1][column].set_xlabel("size")
    axes[0][0].set_ylabel("algbw (GB/s)")
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].legend()
    axes[1][0].set_ylabel("latency, median (us)")
    axes[1][0].set_yscale("log")
    axes[0][0].set_xscale("log", base=2)
    axes[0][0].xaxis.set_major_formatter(lambda size, _: _size_text(size))
    figure.suptitle(f"all-reduce, {plan.world_size} peers")
    try:
        figure.savefig(path)
    except OSError as error:
        raise BenchmarkError(f"--plot {path}: {error.strerror}") from error


def _lines(plan: Plan, rows: Sequence[Row], *, in_place: bool) -> Mapping[str, Sequence[tuple[int, Summary]]]:
    found: dict[str, list[tuple[int, Summary]]] = {}
    for row in rows:
        for name, summary in (row.in_place if in_place else row.out_of_place).items():
            label = " ".join([name, *_several(plan, row)])
            found.setdefault(label, []).append((row.case.size_bytes, summary))
    return found


def _several(plan: Plan, row: Row) -> Iterator[str]:
    if len(plan.datatypes) > 1:
        yield row.case.datatype
    if len(plan.redops) > 1:
        yield row.case.redop


def _size_text(size: float) -> str:
    unit = max((unit for unit in _TICKS if unit <= size), default=1)
    return f"{size / unit:g} {_TICKS[unit]}"
