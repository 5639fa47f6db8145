"""What must hold in every run. Fed by the orchestrator with faults and with what peers tell; knows no
process.

Each peer verifies its own results (operations.py) and that a sync changes nothing for those who are in step
(peer.py). Here all peers are compared: the same state at the same revision, the same members of the same
op; each error has to have a cause among the faults; nobody waits for ever; groups advance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Checks", "Disturbance", "Limits", "Violated"]

_NET = ("reset", "stall", "oneway")
_MASTER = ("master_kill",)
# What may make calls of other peers fail: everything that ends a membership, or an epoch, without a goodbye
# between ops.
_DISRUPTIVE = (
    "kill",
    "term",
    "replace",
    "leave",
    "rejoin",
    "pause",
    "mismatch",
    "misplaced",
    "links",
    *_NET,
    *_MASTER,
)

# Results that may be seen, and their causes: faults of the peer itself, and faults of whoever.
_CAUSES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "RANK_CONNECTION_LOST": ((), _DISRUPTIVE),
    "MISMATCH": ((), ("mismatch", "misplaced")),
    "EVICTED": (("pause", "links", *_NET), ()),
    "MASTER_CONNECTION_LOST": (("pause", *_NET), _MASTER),
    "MASTER_CONNECTION_FAILED": (_NET, _MASTER),
}
_REMEMBERED_REVISIONS = 500


@dataclass(frozen=True)
class Limits:
    """Seconds. `bound_s`: of any call; `window_s`: how long after its end a fault explains an error;
    `progress_s`: without a step in a group that has peers."""

    bound_s: float
    window_s: float
    progress_s: float

    @classmethod
    def of(cls, timeout_s: float) -> Limits:
        return cls(bound_s=10 * timeout_s + 10, window_s=4 * timeout_s + 3, progress_s=20 * timeout_s + 20)


@dataclass
class Disturbance:
    """A fault that was done to these peers (none: to all), from `at` to `until` on the clock."""

    kind: str
    at: float
    until: float
    peers: frozenset[str] = frozenset()


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
    inside_since: float | None = None  # as a member that agrees with the others
    memberships: int = 0  # that it has lost
    undisturbed_since: float = 0.0
    expected_to_end: bool = False
    hang_told: bool = False


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


def _names_ranks(call: str) -> bool:
    return any(name in call for name in ("Broadcast", "AllGather", "ReduceScatter"))


class Checks:
    def __init__(self, limits: Limits, began: float) -> None:
        self.limits = limits
        self.violations: list[Violated] = []
        self.peers: dict[str, _Peer] = {}
        self._began = began
        self._disturbances: list[Disturbance] = []
        self._states, self._ops = _Table(), _Table()
        self._advanced: dict[int, float] = {}
        self.revisions: dict[int, int] = {}
        self.errors: dict[str, int] = {}

    @property
    def parity_checks(self) -> int:
        """Comparisons of the state, and of the members of a step's ops, between two peers."""
        return self._states.compared + self._ops.compared

    def violate(self, at: float, what: str, peers: Iterable[str] = ()) -> None:
        self.violations.append(Violated(at, what, sorted(peers)))

    # --- what happens ------------------------------------------------------------------------------------

    def born(self, name: str, group: int, at: float) -> None:
        self.peers[name] = _Peer(group, at, at)

    def disturbed(self, disturbance: Disturbance) -> None:
        """A fault begins; `until` may be moved on later."""
        self._disturbances.append(disturbance)
        for name in disturbance.peers:
            if name in self.peers:
                peer = self.peers[name]
                peer.undisturbed_since = max(peer.undisturbed_since, disturbance.until)
                if disturbance.kind in ("kill", "term", "replace", "close", "leave"):
                    peer.expected_to_end = True

    def ended(self, name: str, status: int | None, at: float) -> None:
        """The process is gone."""
        peer = self.peers.pop(name)
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
        peer.memberships += 1

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
        self._compare(self._states, name, message, message["hash"])
        if peer.inside_since is None:
            peer.inside_since = at

    def _on_step(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        group, revision = message["group"], message["revision"]
        self._advanced[group] = at
        self.revisions[group] = revision + 1
        self._compare(self._ops, name, message, message["members"])

    def _compare(self, table: _Table, name: str, message: dict[str, Any], value: Any) -> None:
        """With what others told of the same group and revision."""
        group, revision = message["group"], message["revision"]
        teller = (name, self.peers[name].memberships)
        known = table.put((group, revision), value, teller, self._holders(group))
        if known is not None:
            what = "state" if table is self._states else "members of each op"
            self.violate(
                message["at"],
                f"{what} at revision {revision} of group {group}: {value} at {name}, "
                f"{known.value} at {', '.join(known.names)}",
                {name, *known.names},
            )

    def _on_error(self, name: str, peer: _Peer, message: dict[str, Any], at: float) -> None:
        result = message["result"]
        self.errors[result] = self.errors.get(result, 0) + 1
        if result == "TOO_FEW_PEERS":
            allowed = not self._has_company(name, peer, at)
        elif result in _CAUSES:
            own, any_ = _CAUSES[result]
            began = at - message["seconds"]
            if result == "RANK_CONNECTION_LOST" and _names_ranks(message["call"]):
                any_ += ("close", "regroup")  # who leaves in good order changes ranks all the same
            allowed = self._is_explained(name, own, any_, began, at)
        else:
            allowed = False
        if not allowed:
            self.violate(
                at, f"{name}: {message['call']} failed without a cause: {result}: {message['text']}", [name]
            )

    # --- what holds --------------------------------------------------------------------------------------

    def _holders(self, group: int) -> set[tuple[str, int]]:
        """Memberships in which peers are in step still."""
        return {
            (name, peer.memberships)
            for name, peer in self.peers.items()
            if peer.group == group and peer.inside_since is not None
        }

    def _is_explained(
        self, name: str, own: tuple[str, ...], any_: tuple[str, ...], began: float, at: float
    ) -> bool:
        return any(
            one.at <= at
            and began <= one.until + self.limits.window_s
            and (one.kind in any_ or (one.kind in own and name in one.peers))
            for one in self._disturbances
        )

    def _has_company(self, name: str, peer: _Peer, at: float) -> bool:
        """Whether it and another of its group have been in step, undisturbed, for so long that this is
        certain."""
        since = at - self.limits.window_s
        if any(one.kind in _MASTER and one.until > since for one in self._disturbances):
            return False
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
        """Faults that explain nothing any more."""
        oldest = now - self.limits.window_s - self.limits.bound_s
        self._disturbances = [one for one in self._disturbances if one.until > oldest]

    def look(self, now: float, stopped: set[str]) -> list[str]:
        """Who is silent, which group stands still; peers that should say where they hang."""
        self.forget(now)
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
