"""That nothing grows: resident memory, open files and threads of processes that live long.

What is sampled goes up and down with the work, so the least of one span of time is compared with the most
of an earlier one: only what is never given back can lift the least above that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["ALLOWED", "Flat", "Sample"]

_WARM_UP_S = 10.0  # what a process does once
_BASELINE_S = 25.0  # then, for as long, the most that it needs
_RECENT_S = 15.0

# How far the least of the last 15 s may lie above the most of the first half minute.
ALLOWED = {"memory_bytes": 48 << 20, "files": 24, "threads": 6}


@dataclass(frozen=True)
class Sample:
    """`at` on the clock; then what a process holds."""

    at: float
    memory_bytes: int
    files: int
    threads: int


class Flat:
    """The samples of one process."""

    def __init__(self, born: float) -> None:
        self._born = born
        self.baseline: dict[str, int] = {}
        self.recent: deque[Sample] = deque()
        self.most: dict[str, int] = {}
        self._told: set[str] = set()

    def add(self, sample: Sample) -> list[str]:
        """What has grown, each told once."""
        for name in ALLOWED:
            self.most[name] = max(self.most.get(name, 0), getattr(sample, name))
        age = sample.at - self._born
        if age < _WARM_UP_S:
            return []
        if age < _WARM_UP_S + _BASELINE_S:
            for name in ALLOWED:
                self.baseline[name] = max(self.baseline.get(name, 0), getattr(sample, name))
            return []
        self.recent.append(sample)
        if sample.at - self.recent[0].at < _RECENT_S:
            return []
        while sample.at - self.recent[0].at > _RECENT_S:
            self.recent.popleft()
        return [text for name in ALLOWED if (text := self._grown(name)) is not None]

    def _grown(self, name: str) -> str | None:
        least = min(getattr(sample, name) for sample in self.recent)
        if name in self._told or name not in self.baseline or least <= self.baseline[name] + ALLOWED[name]:
            return None
        self._told.add(name)
        return (
            f"{name} grow: never below {least} in the last {_RECENT_S:.0f} s, {self.baseline[name]} at first"
        )
