"""From times to the numbers that are published. GB/s are 1e9 bytes per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from .measure import Reply

__all__ = ["Ratio", "Summary", "average_over_ranks", "ratio", "summarize", "total_wrong"]


@dataclass(frozen=True)
class Summary:
    """One size in one mode. The bandwidths follow from the mean time, as in nccl-tests."""

    time_us: float
    p50_us: float
    p99_us: float
    algbw_gb_s: float
    busbw_gb_s: float
    wrong: int | None


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as a rival: one number per round, of the medians of two adjacent batches."""

    median: float
    lowest: float
    highest: float
    rounds: list[float]


def average_over_ranks(replies: Sequence[Reply]) -> list[float]:
    """The time of each iteration: its mean over the ranks, as nccl-tests has it by default."""
    return [float(mean) for mean in numpy.mean([reply.times_ns for reply in replies], axis=0)]


def total_wrong(replies: Sequence[Reply]) -> int | None:
    """Wrong elements on all ranks; None when nobody checked."""
    checked = [reply.wrong for reply in replies if reply.wrong is not None]
    return sum(checked) if checked else None


def summarize(times_ns: Sequence[float], wrong: int | None, size_bytes: int, world_size: int) -> Summary:
    """Summarise the times of all iterations of all batches."""
    mean_ns = float(numpy.mean(times_ns))
    algbw = size_bytes / mean_ns  # bytes per nanosecond are GB/s
    return Summary(
        time_us=mean_ns / 1e3,
        p50_us=float(numpy.percentile(times_ns, 50)) / 1e3,
        p99_us=float(numpy.percentile(times_ns, 99)) / 1e3,
        algbw_gb_s=algbw,
        busbw_gb_s=algbw * 2 * (world_size - 1) / world_size,
        wrong=wrong,
    )


def ratio(batches_ns: Sequence[Sequence[float]], rival_batches_ns: Sequence[Sequence[float]]) -> Ratio:
    """Above 1: we are faster. Both sequences hold one batch of times per round, in the same order."""
    rounds = [
        float(numpy.median(theirs) / numpy.median(ours))
        for ours, theirs in zip(batches_ns, rival_batches_ns, strict=True)
    ]
    return Ratio(float(numpy.median(rounds)), min(rounds), max(rounds), rounds)
