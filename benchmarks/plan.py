"""What is to be measured, and what has been."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .elements import numpy_dtype
from .measure import Request
from .summary import Ratio, Summary

__all__ = ["Case", "Plan", "Row"]


@dataclass(frozen=True)
class Case:
    """One line of the result."""

    size_bytes: int
    count: int
    datatype: str
    redop: str


@dataclass(frozen=True)
class Plan:
    """The options of one call; the same on all hosts."""

    world_size: int
    streams: int
    sizes_bytes: Sequence[int]
    datatypes: Sequence[str]
    redops: Sequence[str]
    iterations: int
    warmup: int
    checks: int
    rounds: int
    rivals: Sequence[str]
    concurrent: int = 1  # ops of each size at once, beside one op of their size together
    algorithm: str = "auto"  # of pccl
    early_return: bool = False  # of pccl
    tcp_only: bool = False  # pccl, also within this machine
    in_place: bool = True  # also in place
    seconds: float = 0  # that a batch takes about, instead of `iterations`; 0: as many as these

    def cases(self) -> Iterator[Case]:
        """Sizes are rounded down to whole elements, and left out where that leaves nothing."""
        for datatype in self.datatypes:
            element_bytes = numpy_dtype(datatype).itemsize
            for redop in self.redops:
                for size_bytes in self.sizes_bytes:
                    count = size_bytes // element_bytes
                    if count > 0:
                        yield Case(count * element_bytes, count, datatype, redop)

    @property
    def is_contest(self) -> bool:
        """Whether there is anyone to compare with."""
        return bool(self.rivals) or self.concurrent > 1

    def request(self, case: Case, in_place: bool, seed: int, concurrent: int = 1) -> Request:
        """One batch of it, in `concurrent` ops at once."""
        return Request(
            case.count * self.concurrent,
            case.datatype,
            case.redop,
            in_place,
            self.warmup,
            self.iterations,
            self.checks,
            seed,
            concurrent,
            self.algorithm,
            self.early_return,
        )


@dataclass(frozen=True)
class Row:
    """A case: what each contestant did in it, pccl first, and how pccl compares with each rival."""

    case: Case
    out_of_place: Mapping[str, Summary]
    in_place: Mapping[str, Summary]
    out_of_place_ratios: Mapping[str, Ratio] = field(default_factory=dict)
    in_place_ratios: Mapping[str, Ratio] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """Wrong elements of all contestants, in both modes."""
        return sum(
            summary.wrong or 0 for mode in (self.out_of_place, self.in_place) for summary in mode.values()
        )
