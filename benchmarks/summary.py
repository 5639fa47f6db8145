"""From times to the numbers that are published. GB/s are 1e9 bytes per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from .measure import Reply

__all__ = ["Batch", "Ratio", "Summary", "joined", "ratio", "ratio_of_times", "summarize"]


@dataclass(frozen=True)
class Batch:
    """What all ranks of a contestant together saw of one batch: the time of each op is its mean over the
    ranks, as nccl-tests has it by default; wrong elements, processor time, and the bytes that one op sends
    are sums."""

    times_ns: list[float]
    wrong: int | None
    cpu_ns: float
    wire_bytes: int | None = None

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> Batch:
        """From those of all ranks."""
        return cls(
            [float(mean) for mean in numpy.mean([reply.times_ns for reply in replies], axis=0)],
            _sum_of_checked([reply.wrong for reply in replies]),
            sum(reply.cpu_ns for reply in replies),
            _sum_of_all([reply.wire_bytes for reply in replies]),
        )


@dataclass(frozen=True)
class Summary:
    """One size in one mode. The bandwidths follow from the mean time, as in nccl-tests. `cpu_s_per_gb` is
    the processor time, of all processes of the contestant, for each 1e9 bytes that an all-reduce has to
    send: all peers together 2(n-1) times its size. `wire_bytes` is what a peer sends in one op, on average
    over the peers, headers included; None where it is not known."""

    time_us: float
    p50_us: float
    p99_us: float
    algbw_gb_s: float
    busbw_gb_s: float
    cpu_s_per_gb: float
    wrong: int | None
    wire_bytes: float | None = None


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as a rival: one number per round, of the medians of two adjacent batches."""

    median: float
    lowest: float
    highest: float
    rounds: list[float]

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f}-{self.highest:.2f})"


def joined(parts: Sequence[Batch]) -> Batch:
    """The parts of one batch as one."""
    return Batch(
        [time_ns for part in parts for time_ns in part.times_ns],
        _sum_of_checked([part.wrong for part in parts]),
        sum(part.cpu_ns for part in parts),
        parts[-1].wire_bytes if parts else None,
    )


def _sum_of_checked(counts: Sequence[int | None]) -> int | None:
    checked = [count for count in counts if count is not None]
    return sum(checked) if checked else None


def _sum_of_all(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def summarize(batches: Sequence[Batch], size_bytes: int, world_size: int) -> Summary:
    """Bring the batches of one contestant together."""
    total = joined(batches)
    times_ns = total.times_ns
    mean_ns = float(numpy.mean(times_ns))
    algbw = size_bytes / mean_ns  # bytes per nanosecond are GB/s
    sent_bytes = 2 * (world_size - 1) * size_bytes * len(times_ns)
    return Summary(
        time_us=mean_ns / 1e3,
        p50_us=float(numpy.percentile(times_ns, 50)) / 1e3,
        p99_us=float(numpy.percentile(times_ns, 99)) / 1e3,
        algbw_gb_s=algbw,
        busbw_gb_s=algbw * 2 * (world_size - 1) / world_size,
        cpu_s_per_gb=total.cpu_ns / sent_bytes,  # ns per byte
        wrong=total.wrong,
        wire_bytes=None if total.wire_bytes is None else total.wire_bytes / world_size,
    )


def ratio(batches: Sequence[Batch], rival_batches: Sequence[Batch]) -> Ratio:
    """Above 1: we are faster. Both sequences hold one batch per round, in the same order."""
    return ratio_of_times([batch.times_ns for batch in batches], [batch.times_ns for batch in rival_batches])


def ratio_of_times(
    batches_ns: Sequence[Sequence[float]], rival_batches_ns: Sequence[Sequence[float]]
) -> Ratio:
    """Above 1: we are faster. Both sequences hold one batch of times per round, in the same order."""
    rounds = [
        float(numpy.median(theirs) / numpy.median(ours))
        for ours, theirs in zip(batches_ns, rival_batches_ns, strict=True)
    ]
    return Ratio(float(numpy.median(rounds)), min(rounds), max(rounds), rounds)
