"""Which fault happens when, and to whom: a pure function of the options, so that a seed can be run again.

The schedule knows who is alive because it decides so itself: peers live in numbered slots, `spawn` fills
the one that has been empty for longest, and `kill`, `term` and `close` empty one. Slots below WITNESSES are
never emptied: their peers carry the state from the first step to the last, so that a state that goes back
is a defect.

Kinds that need network namespaces are drawn in any case and left out without them, so that the others are the
same.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from .arithmetic import SLOTS

__all__ = [
    "BETWEEN_PEERS",
    "KINDS",
    "PROFILES",
    "WITNESSES",
    "Fault",
    "Setting",
    "first_peers",
    "needs_namespaces",
    "schedule",
]

# The first peers of group 0, and one of group 1 if there are groups: never killed, closed or moved.
WITNESSES = 2
# By group: so that one may be away and the state lives on among others.
FEWEST_PEERS = (3, 2)

# What can happen.
KINDS = {
    "spawn": "a peer starts",
    "burst": "several peers start at once",
    "kill": "SIGKILL",
    "term": "SIGTERM",
    "replace": "SIGKILL, and another peer starts at once",
    "close": "a peer says goodbye and ends: after its step, or in the middle of its calls",
    "rejoin": "a peer says goodbye in the middle of its calls and connects again",
    "regroup": "a peer leaves its group and joins the other",
    "pause": "SIGSTOP and, up to twice the timeout later, SIGCONT",
    "slow": "the program of a peer thinks for longer than the timeout",
    "mismatch": "a peer calls an op that the others do not call",
    "misplaced": "a peer makes a joint call where the others call an op",
    "links": "the links of a peer with others are reset, by the kernel: for root, where it has iproute2",
    "reset": "the connection of a peer with the master is reset",
    "stall": "nothing passes between a peer and the master for a while",
    "oneway": "what a peer sends to the master is lost for a while, or the other way round",
    "pair_reset": "the connections between two peers are reset",
    "pair_oneway": "what a peer sends to another is lost for a while",
    "pair_cut": "nothing passes between two peers for a while, without a sign or with one (ICMP)",
    "cut_off": "nothing passes between a peer and all others for a while, the master too or not",
    "garbage": "strangers connect to the master and a peer, and talk nonsense or not at all",
    "master_kill": "the master is killed, and another one starts at its address",
    "master_pause": "SIGSTOP and, within the timeout, SIGCONT, for the master",
}

# Those that need network namespaces. The first three have two victims of one group.
BETWEEN_PEERS = ("pair_reset", "pair_oneway", "pair_cut", "cut_off")
# A pair that can't reach each other is routed around after three timeouts or so.
_LONGEST_CUT = 5.0  # timeouts

PROFILES: dict[str, dict[str, float]] = {
    "none": {},
    "replace": {"replace": 1},
    "kill": {"spawn": 4, "burst": 0.5, "kill": 6, "term": 1, "close": 2},
    "pause": {"spawn": 1, "kill": 1, "pause": 5, "slow": 2},
    "net": {
        "spawn": 1,
        "kill": 1,
        "links": 3,
        "reset": 2,
        "stall": 2,
        "oneway": 2,
        "pair_reset": 2,
        "pair_oneway": 3,
        "pair_cut": 3,
        "cut_off": 2,
    },
    "joinstorm": {"spawn": 1, "burst": 6, "kill": 4, "close": 1, "rejoin": 2},
    "garbage": {"spawn": 1, "kill": 1, "garbage": 6, "mismatch": 2, "misplaced": 1},
    "master": {"spawn": 2, "kill": 2, "pause": 0.5, "master_kill": 1.5, "master_pause": 1.5},
    "mixed": {
        "spawn": 4,
        "burst": 0.7,
        "kill": 4,
        "term": 1,
        "close": 1.5,
        "rejoin": 1.5,
        "regroup": 0.7,
        "pause": 2,
        "slow": 1,
        "mismatch": 1,
        "misplaced": 0.6,
        "links": 1,
        "reset": 1,
        "stall": 0.7,
        "oneway": 0.7,
        "pair_reset": 0.5,
        "pair_oneway": 0.7,
        "pair_cut": 0.7,
        "cut_off": 0.5,
        "garbage": 1,
    },
}


@dataclass(frozen=True)
class Setting:
    """What a schedule depends on. Seconds."""

    seed: int
    profile: str
    peers: int
    duration_s: float
    timeout_s: float = 3.0
    gap_s: tuple[float, float] = (0.5, 2.0)
    groups: int = 1
    namespaces: bool = False


@dataclass(frozen=True)
class Fault:
    """At `at_s` from the start, `kind` happens to the peers in `slots`, for `duration_s` where that means
    anything; `variant` in [0, 1) chooses between forms of it; `group` is where spawned and moved peers go."""

    at_s: float
    kind: str
    slots: tuple[int, ...] = ()
    duration_s: float = 0.0
    variant: float = 0.0
    group: int = 0


@dataclass
class _Population:
    """Who is alive, as the schedule will have it."""

    most: int
    group_of: dict[int, int] = field(default_factory=dict)
    free: deque[int] = field(default_factory=deque)

    def count(self, group: int) -> int:
        return list(self.group_of.values()).count(group)

    def dispensable(self) -> list[int]:
        """Those whom their groups can do without."""
        return [
            slot
            for slot, group in self.group_of.items()
            if slot >= WITNESSES and self.count(group) > FEWEST_PEERS[group]
        ]

    def fill(self, group: int) -> int:
        slot = self.free.popleft()
        self.group_of[slot] = group
        return slot

    def empty(self, slot: int) -> None:
        del self.group_of[slot]
        self.free.append(slot)


def _populate(setting: Setting) -> _Population:
    population = _Population(setting.peers, {}, deque(range(SLOTS)))
    fewest = sum(FEWEST_PEERS[: setting.groups])
    grows = "burst" in PROFILES[setting.profile]
    count = max(fewest, (setting.peers + 1) // 2) if grows else setting.peers
    for index in range(min(count, setting.peers)):
        population.fill(1 if setting.groups > 1 and index % 3 == 1 else 0)
    return population


def needs_namespaces(profile: str) -> bool:
    """Whether some of its faults can't happen without."""
    return any(kind in BETWEEN_PEERS for kind in PROFILES[profile])


def first_peers(setting: Setting) -> dict[int, int]:
    """Slots and groups of the peers that are there when the faults begin."""
    return dict(_populate(setting).group_of)


def schedule(setting: Setting) -> Iterator[Fault]:
    """The faults, in the order of their time, until the duration is over."""
    weights = PROFILES[setting.profile]
    choice = random.Random(f"{setting.seed} {setting.profile} {setting.peers}")
    population = _populate(setting)
    at_s = 0.0
    while weights:
        at_s += choice.uniform(*setting.gap_s)
        if at_s >= setting.duration_s:
            return
        fault = _draw(setting, weights, choice, population, at_s)
        if fault is not None and (setting.namespaces or fault.kind not in BETWEEN_PEERS):
            yield fault


def _draw(
    setting: Setting,
    weights: dict[str, float],
    choice: random.Random,
    population: _Population,
    at_s: float,
) -> Fault | None:
    kind = choice.choices(list(weights), list(weights.values()))[0]
    room = population.most - len(population.group_of)
    mortal = population.dispensable()
    if kind == "replace":
        slot = choice.choice([slot for slot in population.group_of if slot >= WITNESSES])
        group = population.group_of[slot]
        population.empty(slot)
        return Fault(at_s, kind, (slot, population.fill(group)), group=group)
    if kind in ("kill", "term", "close") and not mortal:
        kind = "spawn"
    elif kind in ("spawn", "burst") and room == 0:
        if not mortal:
            return None
        kind = "kill"
    elif kind == "regroup" and (setting.groups < 2 or not mortal):
        kind = "rejoin"
    group = int(setting.groups > 1 and 2 * population.count(1) < population.count(0))
    variant = choice.random()
    timeout = setting.timeout_s
    if kind in ("spawn", "burst"):
        count = 1 if kind == "spawn" else min(room, choice.randint(2, max(2, population.most // 2)))
        return Fault(at_s, kind, tuple(population.fill(group) for _ in range(count)), 0.0, variant, group)
    if kind in ("kill", "term", "close"):
        slot = choice.choice(mortal)
        population.empty(slot)
        return Fault(at_s, kind, (slot,), 0.0, variant)
    if kind == "regroup":
        slot = choice.choice(mortal)
        population.group_of[slot] = 1 - population.group_of[slot]
        return Fault(at_s, kind, (slot,), 0.0, variant, population.group_of[slot])
    if kind == "master_kill":
        return Fault(at_s, kind, (), choice.uniform(0.0, timeout), variant)
    if kind == "master_pause":
        return Fault(at_s, kind, (), choice.uniform(0.05, 0.5 * timeout), variant)
    # Half of the waits are short enough to be nothing but a delay.
    short = choice.random() < 0.5
    longest = _LONGEST_CUT if kind in BETWEEN_PEERS else 2.0
    duration_s = choice.uniform(0.05, 0.5) * timeout if short else choice.uniform(0.5, longest) * timeout
    victim = choice.choice(list(population.group_of))
    if not kind.startswith("pair_"):
        return Fault(at_s, kind, (victim,), duration_s, variant)
    group = population.group_of[victim]
    others = [slot for slot, its in population.group_of.items() if its == group and slot != victim]
    if kind == "pair_reset":
        duration_s = 0.0
    return Fault(at_s, kind, (victim, choice.choice(others)), duration_s, variant)
