"""The ops of a step: which there are, and how one peer makes them and checks what came out.

What is done is a function of (seed, group, number of the step), so that all peers of a group make the same
ops. How to add a kind of op: a class like AllReduce, and its line in COLLECTIVES; a way to carry several
out: a style, in steps.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

import pccl

from .arithmetic import Array, Shape, contribution, draw_shape, members_of, reduction

__all__ = [
    "CROSSING",
    "REDUCE",
    "STATE",
    "STYLES",
    "AllReduce",
    "Batch",
    "Op",
    "ViolationError",
    "difference",
    "draw_step",
]

REDUCE = "reduce"  # the collective that is always among the ops
# How the ops of a batch are made: one after the other; at once, in an order that every peer chooses for
# itself; or as a list with retries.
STYLES = ("sync", "async", "multiple")
# Kinds that are no ops of one step: sync_shared_state, and what crossing.py makes.
STATE, CROSSING = "state", "crossing"


class ViolationError(Exception):
    """Something that must never happen did."""


class Op(Protocol):
    """One op of one peer, made as often as it takes. How it fails is told by the exceptions of pccl."""

    shape: Shape
    retries_when_lost: ClassVar[bool]  # with retry=True it never fails for the loss of a peer
    tells_all: ClassVar[bool]  # check() returns all who took part

    @property
    def name(self) -> str: ...

    def call(self, comm: pccl.Communicator, retry: bool) -> pccl.ReduceInfo:
        """Make it."""

    def start(self, comm: pccl.Communicator, retry: bool) -> pccl.AsyncReduceHandle:
        """Start it."""

    def require_intact(self) -> None:
        """After a failure: raise ViolationError unless the input is as it was."""

    def check(self, world: int) -> list[int]:
        """After a success in a world of so many (0: unknown): whose inputs are in the result, by their slots.
        Raises ViolationError unless the result is exactly what these give."""


class AllReduce:
    """One all-reduce of one peer."""

    options: ClassVar[dict[str, Any]] = {}
    retries_when_lost: ClassVar[bool] = True
    tells_all: ClassVar[bool] = True

    def __init__(self, shape: Shape, slot: int, in_place: bool) -> None:
        self.shape, self.slot = shape, slot
        self.before = contribution(shape, slot)
        self.send = self.before.copy()
        self.recv = None if in_place else np.full_like(self.send, 77)

    @property
    def name(self) -> str:
        shape = self.shape
        place = "in place" if self.recv is None else "out of place"
        return f"AllReduce ({shape.op}) of {shape.count} {shape.dtype}, tag {shape.tag}, {place}"

    def call(self, comm: pccl.Communicator, retry: bool) -> pccl.ReduceInfo:
        return comm.all_reduce(
            self.send, self.recv, op=self.shape.op, tag=self.shape.tag, retry=retry, **self.options
        )

    def start(self, comm: pccl.Communicator, retry: bool) -> pccl.AsyncReduceHandle:
        return comm.all_reduce_async(
            self.send, self.recv, op=self.shape.op, tag=self.shape.tag, retry=retry, **self.options
        )

    def descriptor(self) -> pccl.ReduceOpDescriptor:
        """For all_reduce_multiple_with_retry()."""
        descriptor = pccl.ReduceDescriptor(
            count=self.shape.count,
            op=pccl.ReduceOp.of(self.shape.op),
            tag=self.shape.tag,
            operand_descriptor=pccl.ReduceOperandDescriptor(pccl.DataType[_DATATYPES[self.shape.dtype]]),
            quantization_options=pccl.QuantizationOptions(algorithm=pccl.QuantizationAlgorithm.NONE),
        )
        return pccl.ReduceOpDescriptor.from_numpy(
            self.send, self.send if self.recv is None else self.recv, descriptor
        )

    def require_intact(self) -> None:
        wrong = difference(self.send, self.before)
        if wrong is not None:
            raise ViolationError(f"{self.name}: failed, and its input was changed: {wrong}")

    def check(self, world: int) -> list[int]:
        """After a success: the result must be that of `world` peers (0: unknown), this one among them;
        who?"""
        result = self.send if self.recv is None else self.recv
        members = members_of(self.shape, result)
        if self.slot not in members or world not in (0, len(members)):
            raise ViolationError(
                f"{self.name}: the result is over {members}; this is {self.slot}, in a world of {world}"
            )
        wrong = difference(result, reduction(self.shape, members))
        if wrong is not None:
            raise ViolationError(f"{self.name}: a wrong result over {members}: {wrong}")
        if self.recv is not None:
            self.require_intact()
        return members


_DATATYPES = {
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "FLOAT16",
    "float32": "FLOAT",
    "float64": "DOUBLE",
}


def difference(found: Array, expected: Array) -> str | None:
    """Where two arrays of the same shape differ, to the bit; None if they do not."""
    if found.tobytes() == expected.tobytes():
        return None
    places = np.flatnonzero(found != expected)
    first = int(places[0]) if places.size else -1
    return (
        f"{places.size} of {found.size} elements, from {first} to {int(places[-1]) if places.size else -1}; "
        f"the first is {found[first]} instead of {expected[first]}"
    )


@dataclass(frozen=True)
class Batch:
    """Ops that are made together, one way. `retry`: inside the library. `deferred`: only started now, and
    awaited at the end of the step (async)."""

    style: str
    collective: str
    shapes: tuple[Shape, ...]
    in_place: tuple[bool, ...]
    retry: bool
    deferred: bool = False


def draw_step(seed: int, group: int, number: int, kinds: Sequence[str], max_bytes: int) -> list[Batch]:
    """The ops of one step: one to three batches. `kinds`: styles, collectives beside all-reduce, and others,
    which are no part of a step."""
    choice = random.Random(f"{seed} {group} {number}")
    styles = [style for style in STYLES if style in kinds]
    others = [name for name in kinds if name not in (*STYLES, STATE, CROSSING)]
    batches: list[Batch] = []
    tag = 0 if choice.random() < 0.5 else number << 8  # the same tags over and over, or always fresh ones
    for _ in range(choice.randint(1, 3)):
        style = choice.choice(styles)
        # The first one is an all-reduce: it tells over whom it was taken.
        alike = not batches or not others or style == "multiple" or choice.random() < 0.4
        collective = REDUCE if alike else choice.choice(others)
        count = 1 if style == "sync" else choice.randint(2, 5)
        shapes = tuple(
            draw_shape(choice, f"{seed} {group} {number} {tag + i}", tag + i, max_bytes) for i in range(count)
        )
        tag += count
        in_place = tuple(choice.random() < 0.5 for _ in shapes)
        deferred = style == "async" and choice.random() < 0.5
        batches.append(Batch(style, collective, shapes, in_place, choice.random() < 0.5, deferred))
    return batches
