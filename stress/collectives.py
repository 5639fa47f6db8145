"""Ops beside the all-reduce of operations.py: made for the world there is, and made anew for the next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

import pccl

from .arithmetic import MOST_MEMBERS, Array, Shape, contribution, members_of, reduction
from .operations import REDUCE, AllReduce, Op, ViolationError, difference

__all__ = ["COLLECTIVES"]


class TreeAllReduce(AllReduce):
    """By the algorithm for small arrays, whatever the size."""

    options: ClassVar[dict[str, Any]] = {"algorithm": "tree"}


class EarlyAllReduce(AllReduce):
    """Small ones return before their commit: whoever dies then, all that live on end with the same."""

    options: ClassVar[dict[str, Any]] = {"early_return": True}


def _place(comm: pccl.Communicator) -> tuple[int, int]:
    """Epoch, and rank in that epoch."""
    while True:
        epoch = comm.epoch
        rank = comm.rank
        if comm.epoch == epoch:
            return epoch, rank


class _Other:
    """What the others have in common: ranks, and so the loss of a peer fails them also with retry=True."""

    retries_when_lost: ClassVar[bool] = False
    tells_all: ClassVar[bool] = True

    def __init__(self, shape: Shape, slot: int, in_place: bool) -> None:
        self.shape, self.slot = shape, slot
        self._before: Array = np.empty(0)
        self._send: Array = self._before
        self._comm: pccl.Communicator | None = None
        self._place = (0, 0)

    @property
    def name(self) -> str:
        return f"{type(self).__name__} of {self.shape.count} {self.shape.dtype}, tag {self.shape.tag}"

    def _begin(self, comm: pccl.Communicator) -> int:
        """Right before the call. The world that it is made for."""
        self._comm, self._place = comm, _place(comm)
        return max(comm.world_size, 1)

    def _rank(self) -> int | None:
        """Of this peer in the op: None if that is not certain, since the epoch has changed since the call."""
        epoch, rank = self._place
        return rank if self._comm is not None and _place(self._comm) == (epoch, rank) else None

    def require_intact(self) -> None:
        wrong = difference(self._send, self._before)
        if wrong is not None:
            raise ViolationError(f"{self.name}: its input was changed: {wrong}")

    def _require(self, found: Array, expected: Array, who: object) -> None:
        wrong = difference(found, expected)
        if wrong is not None:
            raise ViolationError(f"{self.name}: a wrong result over {who}: {wrong}")


class Broadcast(_Other):
    """From the rank that the shape's tag falls upon."""

    tells_all: ClassVar[bool] = False  # it tells whose it is

    def _prepare(self, comm: pccl.Communicator) -> int:
        world = self._begin(comm)
        self._before = contribution(self.shape, self.slot)
        self._send = self._before.copy()
        return min(self.shape.count % 5, world - 1)

    def call(self, comm: pccl.Communicator, retry: bool) -> pccl.ReduceInfo:
        root = self._prepare(comm)
        return comm.broadcast(self._send, root, tag=self.shape.tag, retry=retry)

    def start(self, comm: pccl.Communicator, retry: bool) -> pccl.AsyncReduceHandle:
        root = self._prepare(comm)
        return comm.broadcast_async(self._send, root, tag=self.shape.tag)

    def check(self, world: int) -> list[int]:
        roots = members_of(self.shape, self._send)
        if len(roots) != 1:
            raise ViolationError(f"{self.name}: the result is that of {roots}, not of one peer")
        self._require(self._send, contribution(self.shape, roots[0]), roots)
        return roots


class AllGather(_Other):
    def __init__(self, shape: Shape, slot: int, in_place: bool) -> None:
        super().__init__(_smaller(shape), slot, in_place)
        self._recv: Array = np.empty(0)

    def _prepare(self, comm: pccl.Communicator) -> None:
        world = self._begin(comm)
        self._before = contribution(self.shape, self.slot)
        self._send = self._before.copy()
        self._recv = np.full((world, self.shape.count), 77, self.shape.dtype)

    def call(self, comm: pccl.Communicator, retry: bool) -> pccl.ReduceInfo:
        self._prepare(comm)
        comm.all_gather(self._send, self._recv, tag=self.shape.tag, retry=retry)
        return pccl.ReduceInfo(len(self._recv), 0, 0)

    def start(self, comm: pccl.Communicator, retry: bool) -> pccl.AsyncReduceHandle:
        self._prepare(comm)
        return comm.all_gather_async(self._send, self._recv, tag=self.shape.tag)

    def check(self, world: int) -> list[int]:
        marks = [members_of(self.shape, row) for row in self._recv]
        slots = [slot for mark in marks for slot in mark]
        if any(len(mark) != 1 for mark in marks) or len(set(slots)) != len(slots) or self.slot not in slots:
            raise ViolationError(f"{self.name}: the parts are those of {marks}; this is {self.slot}")
        rank = self._rank()
        if rank is not None and slots.index(self.slot) != rank:
            raise ViolationError(
                f"{self.name}: the parts are those of {slots}; this is {self.slot}, rank {rank}"
            )
        for row, slot in zip(self._recv, slots, strict=True):
            self._require(row, contribution(self.shape, slot), slots)
        self.require_intact()
        return slots


class ReduceScatter(_Other):
    def __init__(self, shape: Shape, slot: int, in_place: bool) -> None:
        super().__init__(_smaller(shape), slot, in_place)
        self._recv: Array = np.empty(0)

    def _part(self, rank: int) -> Shape:
        shape = self.shape
        return Shape(f"{shape.key} part {rank}", shape.tag, shape.count, shape.dtype, shape.op)

    def _prepare(self, comm: pccl.Communicator) -> None:
        world = self._begin(comm)
        self._before = np.stack([contribution(self._part(rank), self.slot) for rank in range(world)])
        self._send = self._before.copy()
        self._recv = np.full(self.shape.count, 77, self.shape.dtype)

    def call(self, comm: pccl.Communicator, retry: bool) -> pccl.ReduceInfo:
        self._prepare(comm)
        comm.reduce_scatter(self._send, self._recv, op=self.shape.op, tag=self.shape.tag, retry=retry)
        return pccl.ReduceInfo(len(self._send), 0, 0)

    def start(self, comm: pccl.Communicator, retry: bool) -> pccl.AsyncReduceHandle:
        self._prepare(comm)
        return comm.reduce_scatter_async(self._send, self._recv, op=self.shape.op, tag=self.shape.tag)

    def check(self, world: int) -> list[int]:
        members = members_of(self.shape, self._recv)
        if self.slot not in members or len(members) != len(self._send):
            raise ViolationError(
                f"{self.name}: the result is over {members}; this is {self.slot} of {len(self._send)}"
            )
        rank = self._rank()
        ranks = range(len(self._send)) if rank is None else [rank]
        parts = [reduction(self._part(one), members) for one in ranks]
        if all(difference(self._recv, part) is not None for part in parts):
            which = f"part {rank}" if rank is not None else "any part"
            self._require(self._recv, parts[0], f"{members} ({which})")
        self.require_intact()
        return members


class Barrier(_Other):
    retries_when_lost: ClassVar[bool] = True
    tells_all: ClassVar[bool] = False

    def call(self, comm: pccl.Communicator, retry: bool) -> pccl.ReduceInfo:
        return comm.barrier(tag=self.shape.tag, retry=retry)

    def start(self, comm: pccl.Communicator, retry: bool) -> pccl.AsyncReduceHandle:
        return comm.barrier_async(tag=self.shape.tag, retry=retry)

    def check(self, world: int) -> list[int]:
        return []


def _smaller(shape: Shape) -> Shape:
    """So that all parts together are no larger than other ops."""
    if shape.masked:
        return shape
    count = max(shape.count // MOST_MEMBERS, 64)
    return Shape(shape.key, shape.tag, count, shape.dtype, shape.op)


COLLECTIVES: dict[str, Callable[[Shape, int, bool], Op]] = {
    REDUCE: AllReduce,
    "tree": TreeAllReduce,
    "early": EarlyAllReduce,
    "broadcast": Broadcast,
    "all_gather": AllGather,
    "reduce_scatter": ReduceScatter,
    "barrier": Barrier,
}
