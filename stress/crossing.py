"""Ops that cross steps: started in one, awaited and verified one to three steps later, while the steps
between make ops of their own.

Nothing may be in flight in a joint call but are_peers_pending(), so whether there are crossing ops says
which joint calls come next, and all peers have to say the same. They do because it follows from the numbers
of the steps alone (draw_crossing), and because newcomers join only after settle(): what was started before
is over by then, and concerns those who started it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pccl

from .arithmetic import Shape, draw_shape
from .operations import CROSSING, AllReduce, ViolationError
from .steps import AGAIN, Refused, Started, Watch

__all__ = ["LONGEST", "Crossing", "Crossings", "draw_crossing"]

LONGEST = 3  # steps
_SHARE = 0.4  # of the steps in which some begin
_MOST_OPS = 3
_FIRST_TAG = 1 << 62  # beyond those of all other ops
_SECONDS_BETWEEN_LOOKS = 0.001


@dataclass(frozen=True)
class Crossing:
    """Ops that may start from step `begin` on and are awaited in step `due`. `retry`: inside the library.
    `over`: joint calls come between all the same, before which the ops end, but nobody asks how; else they
    stay in flight, and of the joint calls only are_peers_pending() is made."""

    begin: int
    due: int
    shapes: tuple[Shape, ...]
    in_place: tuple[bool, ...]
    retry: bool
    over: bool


def draw_crossing(seed: int, group: int, step: int, max_bytes: int) -> Crossing | None:
    """What begins in this step, the same at all peers."""
    choice = random.Random(f"{seed} {group} {step} {CROSSING}")
    if choice.random() >= _SHARE:
        return None
    # The same tags over and over, but never two at a time, or always fresh ones.
    places = LONGEST + 1
    place = step % places if choice.random() < 0.5 else places + step
    tags = [_FIRST_TAG + place * _MOST_OPS + i for i in range(choice.randint(1, _MOST_OPS))]
    return Crossing(
        begin=step,
        due=step + choice.randint(1, LONGEST),
        shapes=tuple(draw_shape(choice, f"{seed} {group} {step} {tag}", tag, max_bytes) for tag in tags),
        in_place=tuple(choice.random() < 0.5 for _ in tags),
        retry=choice.random() < 0.5,
        over=choice.random() < 0.5,
    )


@dataclass
class _UnderWay:
    """One of a peer's, `settled` before a joint call: all its ops are over."""

    plan: Crossing
    ops: list[AllReduce]
    started: dict[int, Started] = field(default_factory=dict)
    settled: bool = False


class Crossings:
    """Those of one peer. `tell` is called with what became of each Crossing: its first step, over whom each
    op was taken, as a mask of slots, and the bytes sent. The mask of an op that was given up is 0: all peers
    that had begun it give it up, or none."""

    def __init__(
        self,
        comm: pccl.Communicator,
        slot: int,
        watch: Watch,
        choice: random.Random,
        tell: Callable[..., None],
    ) -> None:
        self._comm, self._slot, self._watch, self._choice, self._tell = comm, slot, watch, choice, tell
        self._under_way: list[_UnderWay] = []

    @property
    def unsettled(self) -> bool:
        """Whether this peer has ops to start, or ones in flight."""
        return any(
            len(one.started) < len(one.ops) or not all(handle.done() for handle, _ in one.started.values())
            for one in self._under_way
        )

    @property
    def bar_joint_calls(self) -> bool:
        """Whether all peers leave out the joint calls that need no op in flight."""
        return any(not one.plan.over and not one.settled for one in self._under_way)

    def begin(self, plan: Crossing) -> None:
        ops = [
            AllReduce(shape, self._slot, place)
            for shape, place in zip(plan.shapes, plan.in_place, strict=True)
        ]
        self._under_way.append(_UnderWay(plan, ops))

    def start_some(self, step: int) -> None:
        """Before the ops of a step, and after them. Every peer chooses when it starts what has begun; but not
        after the ops of the step in which others may await it before theirs."""
        for one in self._under_way:
            if one.plan.due <= step or self._choice.random() < 0.5:
                self._start(one)

    def finish(self, step: int) -> None:
        """Await and verify those that are due."""
        for one in [one for one in self._under_way if one.plan.due <= step]:
            outcomes = [self._outcome(one, index) for index in range(len(one.ops))]
            self._under_way.remove(one)
            masks = [mask for mask, _ in outcomes if mask is not None]
            if len(masks) == len(outcomes):  # else nobody is left who could say the same
                sent = sum(info.tx_bytes for _, info in outcomes if info is not None)
                self._tell(one.plan.begin, masks, sent)

    def settle(self) -> None:
        """Before a joint call: when it returns no op is in flight, though not awaited."""
        for one in self._under_way:
            self._start(one)
        for one in self._under_way:
            for index, (handle, _) in one.started.items():
                with self._watch(f"end of crossing {one.ops[index].name}"):
                    while not handle.done():
                        time.sleep(_SECONDS_BETWEEN_LOOKS)
            one.settled = True

    def drop(self) -> None:
        """The others are gone, or the membership is over: what was under way has ended and counts no more."""
        for one in self._under_way:
            for index, (handle, _) in one.started.items():
                op = one.ops[index]
                with self._watch(f"end of crossing {op.name}"):
                    succeeded, _, info = handle.wait()
                if succeeded:
                    op.check(info.local_world_size)
                else:
                    op.require_intact()
        self._under_way.clear()

    def _start(self, one: _UnderWay) -> None:
        order = [index for index in range(len(one.ops)) if index not in one.started]
        self._choice.shuffle(order)
        for index in order:
            began = time.monotonic()
            try:
                with self._watch(f"start of crossing {one.ops[index].name}"):
                    one.started[index] = one.ops[index].start(self._comm, one.plan.retry), began
            except pccl.TooFewPeersError as error:
                one.started[index] = Refused(error), began

    def _outcome(self, one: _UnderWay, index: int) -> tuple[int | None, Any]:
        """The mask for tell(), None if this peer is alone; and the info of an op that succeeded."""
        op, (handle, began) = one.ops[index], one.started[index]
        try:
            with self._watch(f"result of crossing {op.name}", began):
                info = handle.result()
        except AGAIN as error:
            op.require_intact()
            if one.plan.retry and isinstance(error, pccl.PeerLostError):
                raise ViolationError(f"crossing {op.name}: with retry, and yet: {error}") from None
            # Newcomers that have joined since know nothing of it: it is given up, and not made again.
            return 0, None
        except pccl.TooFewPeersError:
            op.require_intact()
            return None, None
        return sum(1 << slot for slot in op.check(info.local_world_size)), info
