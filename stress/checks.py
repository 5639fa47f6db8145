"""What must hold in every run. Fed by the orchestrator with faults and with what peers tell; knows no
process.

Each peer verifies its own results (operations.py) and that a sync changes nothing for those who are in step
(peer.py). Here all peers are compared: the same state at the same revision, the same members of the same
op; each error has to have a cause among the faults; nobody waits for ever; groups advance.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .causes import COMMITTED_BY_PEERS, ENDING, MASTER_ENDING, REMEMBERED, Disturbance, explains

__all__ = ["Checks", "Limits", "Violated"]

_SECONDS_OF_DOUBT = 1.0  # the faults of one peer may be heard of after the errors of another
_REMEMBERED_REVISIONS = 500


@dataclass(frozen=True)
class Limits:
    """Seconds. `bound_s`: of any call; `settled_s`: after a fault of its own, until a peer in step counts as
    company; `progress_s`: without a step in a group that has peers."""

    timeout_s: float
    bound_s: float
    settled_s: float
    progress_s: float

    @classmethod
    def of(cls, timeout_s: float) -> Limits:
        return cls(
            timeout_s=timeout_s,
            bound_s=10 * timeout_s + 10,
            settled_s=4 * timeout_s + 3,
            progress_s=20 * timeout_s + 20,
        )


@dataclass
class Violated:
    """What, when, and the peers whose logs tell more."""

    at: float
    what: str
    peers: list[str]


@dataclass
class _Peer:
    group: int
    born: float
    heard: float
    outside_since: float  # when it last was a newcomer
    inside_since: float | None = None  # as a member that agrees with the others
    memberships: int = 0  # that it has lost
    undisturbed_since: float = 0.0
    expected_to_end: bool = False
    hang_told: bool = False


@dataclass
class _Brought:
    """A state of its own that a peer has kept from a membership that it lost, until it agreed with others."""

    group: int
    at: float
    until: float = math.inf


@dataclass
class _Agreement:
    """What was told of one revision or step first, and by whom: names and how many memberships they had
    lost."""

    value: Any
    tellers: set[tuple[str, int]] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        return sorted({name for name, _ in self.tellers})


class _Table:
    """What has to be equal at all peers, for the latest keys."""

    def __init__(self) -> None:
        self._known: OrderedDict[Any, _Agreement] = OrderedDict()
        self.compared = 0

    def put(
        self, key: Any, value: Any, teller: tuple[str, int], holders: set[tuple[str, int]]
    ) -> _Agreement | None:
        """The agreement that this contradicts. None that could be told only by peers that are no holders any
        more: it was lost with them, and is made anew."""
        known = self._known.get(key)
        if known is None or (known.value != value and not known.tellers & holders):
            known = self._known[key] = _Agreement(value)
            self._known.move_to_end(key)
            while len(self._known) > _REMEMBERED_REVISIONS:
                self._known.popitem(last=False)
        else:
            self.compared += 1
        if known.value != value:
            return known
        known.tellers.add(teller)
        return None


class Checks:
    def __init__(self, limits: Limits, began: float) -> None:
        self.limits = limits
        self.violations: list[Violated] = []
        self.peers: dict[str, _Peer] = {}
        self._began = began
        self._disturbances: list[Disturbance] = []
        self._brought: dict[str, list[_Brought]] = {}
        self._doubts: list[tuple[str, dict[str, Any]]] = []  # errors without a cause so far
        self._states, self._ops, self._crossed = _Table(), _Table(), _Table()
        self._advanced: dict[int, float] = {}
        self.steps: dict[int, int] = {}  # by group: made so far
        self.errors: dict[str, int] = {}

    @property
    def parity_checks(self) -> int:
        """Comparisons of the state, and of the members of ops, between two peers."""
        return self._states.compared + self._ops.compared + self._crossed.compared

    @property
    def state_checks(self) -> int:
        """Those of the state."""
        return self._states.compared

    def violate(self, at: float, what: str, peers: Iterable[str] = ()) -> None:
        self.violations.append(Violated(at, what, sorted(peers)))

    # --- what happens ------------------------------------------------------------------------------------

    def born(self, name: str, group: int, at: float) -> None:
        self.peers[name] = _Peer(group, at, at, at)

    def disturbed(self, disturbance: Disturbance) -> None:
        """A fault begins; `until` may be moved on later."""
        if disturbance.kind not in COMMITTED_BY_PEERS:
            self._disturbances.append(disturbance)
        for name in disturbance.peers:
            if name in self.peers:
                peer = self.peers[name]
                peer.undisturbed_since = max(peer.undisturbed_since, disturbance.until)
                if disturbance.kind in ENDING:
                    peer.expected_to_end = True

    def ended(self, name: str, status: int | None, at: float) -> None:
        """The process is gone."""
        peer = self.peers.pop(name)
        self._end_brought(name, at)
        for one in self._disturbances:
            if one.kind in ENDING and name in one.peers:
                one.until = at
        if not peer.expected_to_end:
            self.violate(at, f"{name} ended by itself with status {status}", [name])

    def told(self, name: str, message: dict[str, Any]) -> None:
        peer, at = self.peers[name], message["at"]
        peer.heard = max(peer.heard, at)
        handler = getattr(self, "_on_" + message["kind"], None)
        if handler is not None:
            handler(name, peer, message, at)

    def _on_in(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        peer.group = message["group"]

    def _on_out(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        peer.inside_since = None
        peer.outside_since = at
        peer.memberships += 1
        self._end_brought(name, at)
        if message.get("keeps_state"):
            self._brought.setdefault(name, []).append(_Brought(peer.group, at))

    def _on_does(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        """It now carries out what it was ordered."""
        self._disturbances.append(Disturbance(message["what"], at, at, frozenset([name])))

    def _on_left(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        peer.inside_since = None

    def _on_violation(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        peer.expected_to_end = True  # one violation is enough
        self.violate(at, f"{name}: {message['what']}", [name])

    def _on_beat(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        if message["seconds"] > self.limits.bound_s and not peer.hang_told:
            peer.hang_told = True
            self.violate(at, f"{name}: {message['call']} hangs: {message['seconds']:.0f} s so far", [name])

    def _on_agreed(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        self._compare(
            self._states, f"state at revision {message['revision']}", name, message, message["hash"]
        )
        self._inside(name, peer, at)

    def _on_counted(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        """It knows which step comes next; there is no state."""
        self._inside(name, peer, at)

    def _inside(self, name: str, peer: _Peer, at: float) -> None:
        if peer.inside_since is None:
            peer.inside_since = at
            self._end_brought(name, at)

    def _on_step(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        group, step = message["group"], message["step"]
        self._advanced[group] = at
        self.steps[group] = step + 1
        self._compare(self._ops, f"members of each op at step {step}", name, message, message["members"])

    def _on_crossed(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        what = f"members of each crossing op from step {message['step']} on (0: given up)"
        self._compare(self._crossed, what, name, message, message["members"])

    def _compare(self, table: _Table, what: str, name: str, message: dict[str, Any], value: Any) -> None:
        """With what others told of the same group."""
        group = message["group"]
        teller = (name, self.peers[name].memberships)
        known = table.put((group, what), value, teller, self._holders(group))
        if known is not None:
            self.violate(
                message["at"],
                f"{what} of group {group}: {value} at {name}, {known.value} at {', '.join(known.names)}",
                {name, *known.names},
            )

    def _on_error(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        result = message["result"]
        self.errors[result] = self.errors.get(result, 0) + 1
        # Not before all that was told until now has been heard.
        self._doubts.append((name, {**message, "outside_since": peer.outside_since, "group": peer.group}))

    def judge(self, now: float) -> None:
        """The errors that were told a moment ago: each must have a cause."""
        doubts, self._doubts = self._doubts, []
        for name, message in doubts:
            at = message["at"]
            if self._is_allowed(name, message):
                continue
            if now < at + _SECONDS_OF_DOUBT:
                self._doubts.append((name, message))
                continue
            what = f"{message['call']} failed without a cause: {message['result']}: {message['text']}"
            self.violate(at, f"{name}: {what}", [name])

    # --- what holds --------------------------------------------------------------------------------------

    def _holders(self, group: int) -> set[tuple[str, int]]:
        """Memberships in which peers are in step still."""
        return {
            (name, peer.memberships)
            for name, peer in self.peers.items()
            if peer.group == group and peer.inside_since is not None
        }

    def _end_brought(self, name: str, at: float) -> None:
        for one in self._brought.get(name, []):
            one.until = min(one.until, at)

    def _may_clash(self, message: dict[str, Any]) -> bool:
        """Whether a peer of the group offered a revision that it has kept from another membership."""
        return message["call"] == "sync_shared_state" and any(
            one.group == message["group"] and one.at <= message["at"] <= one.until
            for kept in self._brought.values()
            for one in kept
        )

    def _is_allowed(self, name: str, message: dict[str, Any]) -> bool:
        if message["result"] == "TOO_FEW_PEERS":
            return not self._has_company(name, message["at"])
        if message["result"] == "INVALID_USAGE":
            return self._may_clash(message)
        return explains(
            self._disturbances,
            message,
            name,
            message["since"],
            message["at"],
            message["outside_since"],
            self.limits.timeout_s,
        )

    def _has_company(self, name: str, at: float) -> bool:
        """Whether it and another of its group have been in step, undisturbed, for so long that this is
        certain."""
        since = at - self.limits.settled_s
        master_ended = any(one.kind in MASTER_ENDING and one.until > since for one in self._disturbances)
        if name not in self.peers or master_ended:
            return False
        peer = self.peers[name]
        settled = [
            other
            for other, record in self.peers.items()
            if record.group == peer.group
            and record.inside_since is not None
            and record.inside_since < since
            and record.undisturbed_since < since
            and not record.expected_to_end
        ]
        return name in settled and len(settled) > 1

    def forget(self, now: float) -> None:
        """Faults that explain nothing any more: no call and no pause between two takes longer, and nobody has
        been a member since then who could be put out for a pair that can't be linked."""
        oldest = now - self.limits.settled_s - 2 * self.limits.bound_s
        self._brought = {
            name: left
            for name, kept in self._brought.items()
            if (left := [one for one in kept if one.until > oldest])
        }
        newcomers = [peer.outside_since for peer in self.peers.values()]
        first = min([oldest, *(since - self.limits.settled_s for since in newcomers)])
        self._disturbances = [
            one for one in self._disturbances if one.until > (first if one.kind in REMEMBERED else oldest)
        ]

    def look(self, now: float, stopped: set[str]) -> list[str]:
        """Who is silent, which group stands still; peers that should say where they hang."""
        self.forget(now)
        self.judge(now)
        hanging = [name for name, peer in self.peers.items() if peer.hang_told]
        for name, peer in self.peers.items():
            if name in stopped or peer.expected_to_end or peer.hang_told:
                continue
            if now - max(peer.heard, peer.undisturbed_since) > self.limits.bound_s:
                peer.hang_told = True
                hanging.append(name)
                self.violate(now, f"{name} has said nothing for {self.limits.bound_s:.0f} s", [name])
        for group in {peer.group for peer in self.peers.values()}:
            members = [name for name, peer in self.peers.items() if peer.group == group]
            known = self._advanced.setdefault(group, now)
            if len(members) < 2:
                self._advanced[group] = now
            elif now - known > self.limits.progress_s:
                self._advanced[group] = now
                self.violate(
                    now, f"group {group} has made no step for {self.limits.progress_s:.0f} s", members
                )
        return hanging
