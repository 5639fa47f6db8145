"""`pccl bench kernels`: what one core does with memory, beside NumPy and memcpy over the same memory."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

import pccl
from pccl import _kernels

from . import pattern
from .command import exit_status, new_parser, whole_number
from .elements import datatypes, numpy_dtype, redops, size_bytes
from .machine import machine
from .measure import measure_times
from .progress import Progress
from .summary import Ratio, ratio_of_times

__all__ = ["SCHEMA", "main"]

SCHEMA = "pccl.bench.kernels/1"

_DESCRIPTION = """\
Measure the kernels on one core, for each level that the processor has: reductions beside those of NumPy (of
element type and op; avg, which also divides, beside add), CRC32C, state hash and copy beside memcpy. GB/s
are 1e9 bytes of one operand per second; the ratio, above 1 if the kernel is faster, is that of the median
times of two adjacent batches over the same memory: its median over the rounds (and its range).

cache   the same --cache-size bytes of each operand again and again
memory  pieces of --piece-size bytes in turn, of a buffer that exceeds the caches

Exit status: 0 done, 1 failed, 2 wrong usage."""

_UFUNCS = {"sum": "add", "avg": "add", "prod": "multiply", "max": "maximum", "min": "minimum"}
_MEMCPY = "memcpy"
# Together much more than caches hold, and little enough to have.
_LEAST_MEMORY_BYTES, _MOST_MEMORY_BYTES = 192 << 20, 2 << 30
# A batch goes over so many bytes of an operand, in a few pieces at least: enough to time.
_BATCH_BYTES = 32 << 20
_LEAST_CALLS = 4

Call = Callable[[], object]


@dataclass(frozen=True)
class Kernel:
    """What is measured, in all its levels, beside one reference. `bind` takes as many operands as it says."""

    name: str
    datatype: str
    operands: int
    reference: str
    bind: Callable[..., Mapping[str, Call]]  # by level; the reference under its own name


@dataclass(frozen=True)
class Place:
    """Where the operands are. Whoever is next gets the next piece, so that nobody finds what another one has
    just left in the cache, unless there is but one piece."""

    name: str
    piece_bytes: int
    pool: Any  # uint8

    def pieces(self, operands: int) -> Any:
        """Of shape (pieces, operands, bytes)."""
        count = self.pool.size // (operands * self.piece_bytes)
        return self.pool[: count * operands * self.piece_bytes].reshape(count, operands, self.piece_bytes)


@dataclass(frozen=True)
class Speed:
    """One level of a kernel in one place."""

    gb_s: float
    reference_gb_s: float
    ratio: Ratio


@dataclass(frozen=True)
class Row:
    """One level of a kernel: its speed by the name of the place."""

    kernel: str
    datatype: str
    level: str
    reference: str
    places: Mapping[str, Speed]


def _reduction(datatype: str, redop: str) -> Kernel:
    dtype, ufunc = numpy_dtype(datatype), getattr(numpy, _UFUNCS[redop])

    def bind(*memory: Any) -> dict[str, Call]:
        out, a, b = (operand.view(dtype) for operand in memory)
        calls: dict[str, Call] = {
            level: _kernels.reduction(level, redop, out, a, b) for level in _kernels.levels()
        }
        calls[ufunc.__name__] = lambda: ufunc(a, b, out=out)
        return calls

    return Kernel(redop, datatype, 3, ufunc.__name__, bind)


def _bind_copy(destination: Any, source: Any) -> dict[str, Call]:
    return {"best": _kernels.copy(destination, source), _MEMCPY: _kernels.memcpy(destination, source)}


def _bind_checksum(destination: Any, source: Any) -> dict[str, Call]:
    calls: dict[str, Call] = {level: _kernels.checksum(level, source) for level in _kernels.checksum_levels()}
    calls[_MEMCPY] = _kernels.memcpy(destination, source)
    return calls


def _bind_state_hash(destination: Any, source: Any) -> dict[str, Call]:
    calls: dict[str, Call] = {level: _leaf_by_leaf(level, source) for level in _kernels.levels()}
    calls[_MEMCPY] = _kernels.memcpy(destination, source)
    return calls


def _leaf_by_leaf(level: str, source: Any) -> Call:
    starts = range(0, source.size, _kernels.LEAF_BYTES)
    leaves = [_kernels.state_hash(level, source[start : start + _kernels.LEAF_BYTES]) for start in starts]

    def run() -> None:
        for leaf in leaves:
            leaf()

    return run


def kernels(chosen_datatypes: Sequence[str], chosen_redops: Sequence[str]) -> list[Kernel]:
    """All that is measured."""
    found = [_reduction(datatype, redop) for datatype in chosen_datatypes for redop in chosen_redops]
    bytewise = (("crc32c", _bind_checksum), ("hash", _bind_state_hash), ("copy", _bind_copy))
    return found + [Kernel(name, "bytes", 2, _MEMCPY, bind) for name, bind in bytewise]


def _measure(kernel: Kernel, place: Place, rounds: int) -> dict[str, Speed]:
    """By level."""
    calls = [kernel.bind(*operands) for operands in place.pieces(kernel.operands)]
    turn = itertools.cycle(range(len(calls)))

    def batch(name: str) -> list[int]:
        if len(calls) == 1:
            return measure_times(calls[0][name], 1, iterations)
        return measure_times(lambda: calls[next(turn)][name](), 1, iterations)

    iterations = max(_LEAST_CALLS, _BATCH_BYTES // place.piece_bytes)
    times: dict[str, list[list[int]]] = {name: [] for name in calls[0]}
    for _ in range(rounds):
        for name in times:
            times[name].append(batch(name))
    reference = times.pop(kernel.reference)
    reference_gb_s = _gb_s(reference, place)
    return {
        level: Speed(_gb_s(batches, place), reference_gb_s, ratio_of_times(batches, reference))
        for level, batches in times.items()
    }


def _gb_s(batches: Sequence[Sequence[int]], place: Place) -> float:
    return place.piece_bytes / float(numpy.median(batches))  # bytes per nanosecond are GB/s


def _fill(pool: Any, kernel: Kernel) -> None:
    """With small numbers of the kernel's type, other ones in each operand."""
    dtype = numpy.dtype(numpy.uint8) if kernel.datatype == "bytes" else numpy_dtype(kernel.datatype)
    pattern.fill(pool[: pool.size - pool.size % dtype.itemsize].view(dtype), 0, 0, 2, "sum")


def _run(options: argparse.Namespace, progress: Progress) -> Iterator[Row]:
    cache_pool = numpy.empty(3 * options.cache_size, numpy.uint8)
    memory_pool = numpy.empty(max(options.memory_size, 3 * options.piece_size), numpy.uint8)
    places = [
        Place("cache", options.cache_size, cache_pool),
        Place("memory", options.piece_size, memory_pool),
    ]
    chosen = kernels(options.datatype, options.op)
    filled = None
    for number, kernel in enumerate(chosen, 1):
        progress(f"{kernel.name} {kernel.datatype}: {number} of {len(chosen)}")
        if kernel.datatype != filled:
            filled = kernel.datatype
            for place in places:
                _fill(place.pool, kernel)
        speeds = {place.name: _measure(kernel, place, options.rounds) for place in places}
        for level in speeds["cache"]:
            in_places = {name: by_level[level] for name, by_level in speeds.items()}
            yield Row(kernel.name, kernel.datatype, level, kernel.reference, in_places)


def _header(options: argparse.Namespace) -> list[str]:
    columns = f" {'GB/s':>7} {'ref.':>7} {'ratio':<18}"
    return [
        f"# one core; {options.rounds} rounds; 1e9 bytes of one operand a second; above 1: pccl is faster",
        f"#{'':39}{'cache, ' + str(options.cache_size) + ' B':^36}"
        f"{'memory, ' + str(options.piece_size) + ' B':^36}".rstrip(),
        f"#{'kernel':>7} {'type':>9} {'level':>7} {'reference':>10} {columns} {columns}".rstrip(),
    ]


def _line(row: Row) -> str:
    speeds = " ".join(
        f" {speed.gb_s:7.2f} {speed.reference_gb_s:7.2f} {speed.ratio!s:18}" for speed in row.places.values()
    )
    return f"{row.kernel:>8} {row.datatype:>9} {row.level:>7} {row.reference:>10} {speeds}".rstrip()


def _as_json(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "pccl_version": pccl.__version__,
        "machine": machine(),
        "levels": _kernels.levels(),
        "cache_bytes": options.cache_size,
        "piece_bytes": options.piece_size,
        "memory_bytes": options.memory_size,
        "rounds": options.rounds,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def _beyond_the_caches() -> int:
    """Bytes that the largest cache can't hold, as far as the system tells its size."""
    try:
        cached_bytes = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (OSError, ValueError):
        cached_bytes = 0
    return min(max(cached_bytes * 3 // 2, _LEAST_MEMORY_BYTES), _MOST_MEMORY_BYTES)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("kernels", _DESCRIPTION)
    add = parser.add_argument
    add("-d", "--datatype", type=datatypes, default="all", metavar="TYPE", help="one, or all (default)")
    add("-o", "--op", type=redops, default="all", metavar="OP", help="sum prod max min avg, or all (default)")
    add("--rounds", type=whole_number(1), default=5, metavar="N", help="batches of each (default 5)")
    add("--cache-size", type=size_bytes, default="128K", metavar="SIZE", help="of an operand (default 128K)")
    add("--piece-size", type=size_bytes, default="8M", metavar="SIZE", help="of an operand (default 8M)")
    add(
        "--memory-size",
        type=size_bytes,
        default=_beyond_the_caches(),
        metavar="SIZE",
        help="that pieces are taken from (default: more than the caches hold)",
    )
    add("--json", action="store_true", help=f"one document, {SCHEMA}, instead of a table")
    return parser


def main(arguments: list[str]) -> int:
    """Run it with the words behind `pccl bench kernels`; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for size in (options.cache_size, options.piece_size):
        if size % 8 != 0:
            parser.error(f"{size} bytes are no whole number of elements: choose multiples of 8")
    return exit_status(lambda: _measure_and_print(options))


def _measure_and_print(options: argparse.Namespace) -> int:
    rows: list[Row] = []
    with Progress() as progress:
        for row in _run(options, progress):
            if not options.json:
                progress.clear()
                print("\n".join([*([] if rows else _header(options)), _line(row)]), flush=True)
            rows.append(row)
    if options.json:
        print(json.dumps(_as_json(rows, options), indent=1))
    return 0
