"""What has happened so far, in numbers: for the view and the report."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Recovery", "Tally", "percentile"]

_RECENT_S = 10.0


@dataclass(frozen=True)
class Recovery:
    """`seconds` from a fault until the group made a step without the peer that it took."""

    at: float
    kind: str
    seconds: float


@dataclass
class _Awaited:
    at: float
    until: float
    kind: str
    group: int
    slot: int


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


@dataclass
class Tally:
    began: float
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: list[Recovery] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # ops, bytes, joins, …
    steps: dict[int, int] = field(default_factory=dict)  # by group: how many were made
    step_times: deque[float] = field(default_factory=lambda: deque(maxlen=500_000))
    events: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=50_000))
    _seen: dict[int, int] = field(default_factory=dict)
    _awaited: list[_Awaited] = field(default_factory=list)

    def event(self, at: float, text: str) -> None:
        self.events.append((at, text))

    def fault(self, kind: str, at: float, until: float, group: int | None, slot: int | None) -> None:
        """`group` and `slot` of the peer that it takes from the others; None: it takes nobody."""
        self.faults[kind] += 1
        if group is not None and slot is not None:
            self._awaited.append(_Awaited(at, until, kind, group, slot))

    def step(self, message: dict[str, Any]) -> None:
        """A peer made a step."""
        group, number, at = message["group"], message["step"], message["at"]
        for name in ("ops", "retries", "bytes"):
            self.counts[name] += message[name]
        if number > self._seen.get(group, -1) or number < self._seen[group] - 10:
            self._seen[group] = number
            self.steps[group] = self.steps.get(group, 0) + 1
            self.step_times.append(at)
        for awaited in [one for one in self._awaited if one.group == group]:
            if not message["members"] or at < awaited.at:
                continue
            if not message["members"][-1] >> awaited.slot & 1:
                self.recoveries.append(Recovery(awaited.at, awaited.kind, at - awaited.at))
                self._awaited.remove(awaited)
            elif at > awaited.until + 1.0:
                self._awaited.remove(awaited)  # it came back before anybody missed it

    def crossed(self, message: dict[str, Any]) -> None:
        """A peer has awaited ops of an earlier step."""
        given_up = message["members"].count(0)
        committed = len(message["members"]) - given_up
        self.counts.update(ops=committed, crossed=committed, given_up=given_up, bytes=message["bytes"])

    def lonely(self, group: int) -> None:
        """It has fewer than two peers left, which make no step until others come: that says nothing."""
        self._awaited = [one for one in self._awaited if one.group != group]

    def rate(self, now: float) -> float:
        """Steps per second, lately, of all groups together."""
        recent = [at for at in self.step_times if at > now - _RECENT_S]
        return len(recent) / min(_RECENT_S, max(now - self.began, 0.1))

    def recovery_times(self) -> list[float]:
        return [one.seconds for one in self.recoveries]
