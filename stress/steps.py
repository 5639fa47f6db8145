"""How one peer makes the ops of a step, until all of them have succeeded.

Peers stay in step because what each does next depends only on what all of them know alike: an op succeeds
at all of them or fails at all of them, so all make it again, or none.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

import numpy as np

import pccl

from .collectives import COLLECTIVES
from .operations import AllReduce, Batch, Op, ViolationError

__all__ = ["AGAIN", "AloneError", "Mischief", "Refused", "Started", "Step", "Watch"]

# What makes an op fail at all peers, with their inputs as they were: they make it again.
AGAIN = (pccl.PeerLostError, pccl.MismatchError)
_MOST_ATTEMPTS = 200


class Watch(Protocol):
    """Around every call: its name, and when an async op was started."""

    def __call__(self, call: str, started: float | None = None) -> AbstractContextManager[None]: ...


class Refused:
    """In place of the handle of an async op that was refused when it was started, for want of others: its
    result says so, after those of the ops that were started before."""

    def __init__(self, error: pccl.TooFewPeersError) -> None:
        self._error = error

    def result(self) -> NoReturn:
        raise self._error

    def done(self) -> bool:
        return True

    def wait(self) -> tuple[bool, int, Any]:
        return False, self._error.result.value, None


# The handle of an async op, and when it was started.
Started = tuple[pccl.AsyncReduceHandle | Refused, float]


class AloneError(Exception):
    """All others are gone: the step is given up, and nothing of it counts."""


class Mischief:
    """What the program of a peer is to do wrong, once each; `tell` is called when it does."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.mismatch = False
        self.misplaced = False

    def takes(self, what: str) -> bool:
        """Whether it does this now."""
        if not getattr(self, what):
            return False
        setattr(self, what, False)
        self._tell(what)
        return True


class Step:
    """One step of one peer: run() makes its batches and returns over whom each op was taken."""

    def __init__(
        self,
        comm: pccl.Communicator,
        slot: int,
        watch: Watch,
        mischief: Mischief,
        choice: random.Random,
        unsettled: bool = False,
    ) -> None:
        """`unsettled`: there are async ops of other steps, in flight or still to be started."""
        self._comm, self._slot, self._watch, self._mischief, self._choice = (
            comm,
            slot,
            watch,
            mischief,
            choice,
        )
        self._unsettled = unsettled
        self.retries = 0
        self.committed = 0
        self.bytes = 0
        self._results = hashlib.blake2b(digest_size=8)
        self._members: list[int] = []

    def run(self, batches: list[Batch]) -> list[int]:
        """The members of each op in turn, as masks of slots. Raises AloneError, or what ends the
        membership."""
        deferred: list[tuple[Batch, list[Op], dict[int, Started]]] = []
        alone = False
        for batch in batches:
            make = COLLECTIVES[batch.collective]
            ops = [
                make(shape, self._slot, place)
                for shape, place in zip(batch.shapes, batch.in_place, strict=True)
            ]
            try:
                if batch.style == "sync":
                    for op in ops:
                        self._one(op, batch.retry)
                elif batch.style == "multiple":
                    self._list(ops)
                elif batch.deferred:
                    self._unsettled = True
                    deferred.append((batch, ops, self._start(ops, range(len(ops)), batch.retry)))
                else:
                    self._await(ops, self._start(ops, range(len(ops)), batch.retry), batch.retry)
            except AloneError:
                alone = True  # nobody is left who could wait for the other batches
                break
        for batch, ops, handles in deferred:
            try:
                self._await(ops, handles, batch.retry)
            except AloneError:
                alone = True
        if alone:
            raise AloneError
        return self._members

    @property
    def digest(self) -> int:
        """Of all results, in the order in which all peers take them in."""
        return int.from_bytes(self._results.digest(), "little")

    # --- styles --------------------------------------------------------------------------------------

    def _one(self, op: Op, retry: bool) -> None:
        # A joint call wants no op in flight, and stands for one op only that the others wait for.
        if not self._unsettled and self._mischief.takes("misplaced"):
            # May succeed, if all others do it too.
            self._do_wrong("update_topology instead of an op", self._comm.update_topology, fails=False)
        if self._mischief.takes("mismatch"):
            wrong = np.ones(op.shape.count + 1 + self._slot, op.shape.dtype)  # no two do the same wrong
            self._do_wrong("a wrong op", lambda: self._comm.all_reduce(wrong, tag=op.shape.tag), fails=True)
        for _ in range(_MOST_ATTEMPTS):
            try:
                with self._watch(op.name):
                    info = op.call(self._comm, retry)
                return self._take(op, info)
            except AGAIN as error:
                self._failed([op], error, retry)
            except pccl.TooFewPeersError:
                op.require_intact()
                raise AloneError from None
        raise ViolationError(f"{op.name}: failed {_MOST_ATTEMPTS} times in a row")

    def _do_wrong(self, name: str, call: Callable[[], object], *, fails: bool) -> None:
        try:
            with self._watch(name):
                call()
        except AGAIN:
            self.retries += 1
        except pccl.TooFewPeersError:
            raise AloneError from None
        else:
            if fails:
                raise ViolationError(f"{name} succeeded, though no other peer made that call")

    def _list(self, ops: list[Op]) -> None:
        window = self._choice.randint(1, len(ops) + 1)  # peers may have different ones
        for _ in range(_MOST_ATTEMPTS):
            try:
                with self._watch(f"all_reduce_multiple_with_retry ({len(ops)} ops)"):
                    info = self._comm.all_reduce_multiple_with_retry(
                        [op.descriptor() for op in ops if isinstance(op, AllReduce)], max_in_flight=window
                    )
                self.bytes += info.tx_bytes
                for op in ops:
                    self._take(op, None)
                return
            except AGAIN as error:
                # The call retries by itself when a peer is lost, but not when peers differ.
                self._failed(ops, error, True)
            except pccl.TooFewPeersError:
                for op in ops:
                    op.require_intact()
                raise AloneError from None
        raise ViolationError(f"a list of {len(ops)} ops failed {_MOST_ATTEMPTS} times in a row")

    def _start(self, ops: list[Op], which: range | list[int], retry: bool) -> dict[int, Started]:
        order = list(which)
        self._choice.shuffle(order)  # every peer has its own
        handles: dict[int, Started] = {}
        for index in order:
            began = time.monotonic()
            try:
                with self._watch(f"start of {ops[index].name}"):
                    handles[index] = ops[index].start(self._comm, retry), began
            except pccl.TooFewPeersError as error:
                handles[index] = Refused(error), began
        return handles

    def _await(self, ops: list[Op], handles: dict[int, Started], retry: bool) -> None:
        taken: dict[int, pccl.ReduceInfo] = {}
        for _ in range(_MOST_ATTEMPTS):
            failed, alone = [], False
            ending: BaseException | None = None
            # All of them, before any is started again: else two peers could wait for each other.
            for index, (handle, began) in handles.items():
                try:
                    with self._watch(f"result of {ops[index].name}", began):
                        taken[index] = handle.result()
                except AGAIN as error:
                    failed.append(index)
                    self._failed([ops[index]], error, retry)
                except pccl.TooFewPeersError:
                    ops[index].require_intact()
                    alone = True
                except pccl.PCCLError as error:  # this membership is over
                    ending = error
            if ending is not None:
                raise ending
            if alone:
                raise AloneError
            if not failed:
                for index, op in enumerate(ops):
                    self._take(op, taken[index])
                return
            handles = self._start(ops, failed, retry)
        raise ViolationError(f"an async op failed {_MOST_ATTEMPTS} times in a row")

    # --- outcomes ----------------------------------------------------------------------------------------

    def _failed(self, ops: list[Op], error: pccl.PCCLError, retry: bool) -> None:
        self.retries += 1
        for op in ops:
            op.require_intact()
        if retry and ops[0].retries_when_lost and isinstance(error, pccl.PeerLostError):
            raise ViolationError(f"{ops[0].name}: with retry, and yet: {error}")

    def _take(self, op: Op, info: pccl.ReduceInfo | None) -> None:
        members = op.check(info.local_world_size if info is not None else 0)
        mask = sum(1 << slot for slot in members)
        if op.tells_all:
            self._members.append(mask)
        self._results.update(f"{op.shape.key} {mask} ".encode())
        self.committed += 1
        if info is not None:
            self.bytes += info.tx_bytes
