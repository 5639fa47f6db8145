"""Which fault explains which error, at whom, and for how long. How to add a fault: its place in these tables.

Bounds of the protocol, in timeouts (csrc/README.md):
  - what ends a process or a connection is known at once to whoever is connected;
  - whoever is silent for 1 is put out, while it is silent;
  - a link that is silent for 1.2 is given up, and made anew within 1 or tried from its other end.
So when packets pass again, what is still under way fails within 1.2; all else has failed before the end of
the fault, if the program was there to be told (`since` in checks.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = [
    "COMMITTED_BY_PEERS",
    "ENDING",
    "MASTER_ENDING",
    "REMEMBERED",
    "Disturbance",
    "explains",
    "window_s",
]

# What a busy machine may add: the processes share its cores.
_SLACK_S = 2.0


@dataclass
class Disturbance:
    """A fault that was done to these peers (none: to all), from `at` to `until` on the clock."""

    kind: str
    at: float
    until: float
    peers: frozenset[str] = frozenset()


# They end the process; their time is over when it has ended, which may have been stopped before.
ENDING = ("kill", "term", "replace", "close", "leave")
# Done by the program of a peer when it comes to it: they count from when it says so.
COMMITTED_BY_PEERS = ("close", "leave", "rejoin", "regroup", "mismatch", "misplaced")

_UNHEARD = ("pause", "stall", "oneway", "unheard")  # by the master
_RESET = ("reset",)
MASTER_ENDING = ("master_kill",)
_LINKS = ("links", "pair_reset", "pair_oneway", "pair_cut")
_CUTS = ("pair_oneway", "pair_cut", "cut_off")
REMEMBERED = (*_LINKS, "cut_off")  # by the master, of pairs that could not be linked
# What may make calls of other peers fail: everything that ends a membership, or an epoch, without a goodbye
# between ops.
_DISRUPTIVE = (
    *("kill", "term", "replace", "leave", "rejoin", "mismatch", "misplaced"),
    *_UNHEARD,
    *_RESET,
    *MASTER_ENDING,
    *_LINKS,
    "cut_off",
)
# Who leaves in good order changes ranks all the same.
_NAME_RANKS = ("Broadcast", "AllGather", "ReduceScatter")


@dataclass(frozen=True)
class _Cause:
    """Faults of the peer itself, and faults of whoever, that explain an error whose text has these words.
    `remembered`: also long after, as long as it is a member, since the master remembers pairs that could not
    be linked."""

    own: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    words: str = ""
    remembered: bool = False


_CAUSES: dict[str, tuple[_Cause, ...]] = {
    "RANK_CONNECTION_LOST": (_Cause(any=_DISRUPTIVE),),
    "MISMATCH": (_Cause(any=("mismatch", "misplaced")),),
    "EVICTED": (
        _Cause(own=_UNHEARD, words="nothing heard from it"),
        _Cause(own=_UNHEARD, words="it did not make its links"),
        # Whoever is cut off has a bad pair with everybody.
        _Cause(own=_LINKS, any=("cut_off",), words="no ring of links includes it", remembered=True),
    ),
    "RANK_CONNECTION_FAILED": (
        _Cause(own=_LINKS, any=("cut_off",), words="no ring of links includes it", remembered=True),
    ),
    "MASTER_CONNECTION_LOST": (_Cause(own=(*_UNHEARD, *_RESET), any=MASTER_ENDING),),
    "MASTER_CONNECTION_FAILED": (_Cause(own=(*_UNHEARD, *_RESET), any=MASTER_ENDING),),
}


def window_s(kind: str, timeout_s: float) -> float:
    """How long after its end a fault explains that a call fails which has only begun then."""
    return (1.5 if kind in _CUTS else 1.0) * timeout_s + _SLACK_S


def _causes(result: str, call: str, text: str) -> Iterator[_Cause]:
    for cause in _CAUSES.get(result, ()):
        if cause.words in text:
            yield cause
    if result == "RANK_CONNECTION_LOST" and any(name in call for name in _NAME_RANKS):
        yield _Cause(any=("close", "regroup"))


def explains(
    disturbances: Iterable[Disturbance],
    error: dict[str, str],
    name: str,
    since: float,
    at: float,
    member_since: float,
    timeout_s: float,
) -> bool:
    """Whether one of them is a cause of this error (call, result, text), which peer `name` had at `at` and
    might have been told of from `since` on."""
    causes = list(_causes(error["result"], error["call"], error["text"]))
    for one in disturbances:
        end = one.until + window_s(one.kind, timeout_s)
        for cause in causes:
            concerned = one.kind in cause.any or (one.kind in cause.own and name in one.peers)
            if concerned and one.at <= at and end >= (member_since if cause.remembered else since):
                return True
    return False
