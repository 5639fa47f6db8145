"""The program of one peer: what a trainer does that wants to stay in, whatever happens, and checks
everything.

It tells the orchestrator what happens to it, one JSON object per line, and takes orders the same way.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import hashlib
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import pccl

from .crossing import Crossings, draw_crossing
from .lifeline import end_with_parent
from .namespaces import address_of, connect_namespace
from .operations import CROSSING, STATE, ViolationError, draw_step
from .schedule import WITNESSES
from .steps import AloneError, Mischief, Step

__all__ = ["Config", "give_memory_back", "serve"]

T = TypeVar("T")

_SECONDS_BETWEEN_BEATS = 0.5
_SECONDS_BETWEEN_LOOKS = 0.02  # for others, while there are none
_VIOLATED = 3  # exit status
_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_NUMBER_TAG = 1 << 63  # no other op has it


@dataclass(frozen=True)
class Config:
    """What a peer has to know. `bound_s`: of any one call. `life` counts the processes of the run.
    `namespace`: whether it is to have a network namespace of its own."""

    address: str
    seed: int
    slot: int
    life: int
    group: int
    kinds: tuple[str, ...]
    timeout_s: float
    bound_s: float
    step_s: float
    max_bytes: int
    state_bytes: int
    log: str
    namespace: bool = False


class _OrderedError(Exception):
    """The orchestrator wants it so: not an error."""


class Peer:
    def __init__(self, config: Config, orders: socket.socket) -> None:
        self.config = config
        self._choice = random.Random(f"{config.seed} {config.life}")
        self._orders = orders
        self._sending = threading.Lock()
        self._call: tuple[str, float] | None = None
        self._returned = time.monotonic()  # when the last call did
        self._mischief = Mischief(self._tell_what)
        self._slow_s = 0.0
        self._leaving = False  # after this step
        self._closed_by_order = ""  # "leave" or "rejoin", from the middle of a call
        self._closed = threading.Event()  # that close() has returned
        self._group = self._wanted_group = config.group
        self._alone = False
        self._in_step = False  # whether it holds what the group agreed upon, since it joined
        self._number = 0  # of the step that comes next
        self._newcomers = True  # whether there may be some, which do not know that number
        self._hash = ""
        words = max(config.state_bytes // 8, 64)
        # A newcomer holds other bits than anybody else.
        self._words = np.random.default_rng(config.life).integers(0, 2**63, words, np.uint64)
        self._small = np.zeros(3, np.int64)
        # Whoever is there from the start knows more than any newcomer.
        revision = 1 if config.life < WITNESSES else 0
        self._state = pccl.SharedState({"words": self._words, "small": self._small}, revision=revision)
        self._ahead = False  # whether it has changed since the last sync
        self._comm = self._communicator()
        self._crossings = self._no_crossings()

    def _communicator(self) -> pccl.Communicator:
        return pccl.Communicator(
            self.config.address,
            self._group,
            timeout=self.config.timeout_s,
            name=f"s{self.config.slot}-{self.config.life}",
            # The master sees the address of the proxy between them.
            advertise=address_of(self.config.life) if self.config.namespace else None,
        )

    def _no_crossings(self) -> Crossings:
        return Crossings(self._comm, self.config.slot, self._watch, self._choice, self._tell_crossed)

    # --- talking to the orchestrator ---------------------------------------------------------------------

    def _tell(self, kind: str, **more: Any) -> None:
        line = json.dumps({"kind": kind, "at": time.monotonic(), **more}).encode() + b"\n"
        with self._sending:
            try:
                self._orders.sendall(line)
            except OSError:
                os._exit(0)  # the orchestrator is gone

    def _tell_what(self, what: str) -> None:
        """What it is about to do wrong, or to leave: from now on, not from when it was ordered."""
        self._tell("does", what=what)

    def _tell_crossed(self, step: int, members: list[int], sent: int) -> None:
        self._tell("crossed", group=self._group, step=step, members=members, bytes=sent)

    def _listen(self) -> None:
        """A thread: takes orders, and tells twice a second that this process is there and what it waits
        in."""
        rest = b""
        self._orders.settimeout(_SECONDS_BETWEEN_BEATS)
        while True:
            call = self._call
            if call is not None:
                self._tell("beat", call=call[0], seconds=time.monotonic() - call[1])
            else:
                self._tell("beat", call="", seconds=0.0)
            try:
                data = self._orders.recv(1 << 16)
            except TimeoutError:
                continue
            if not data:
                os._exit(0)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        do = order["do"]
        if do == "slow":
            self._slow_s = order["seconds"]
        elif do in ("mismatch", "misplaced"):
            setattr(self._mischief, do, True)
        elif do == "group":
            self._wanted_group = order["group"]
        elif do == "finish":
            self._leaving = True
        else:  # "leave" or "rejoin", whatever the main thread waits in
            self._closed.clear()
            self._closed_by_order = do
            self._tell_what(do)
            self._comm.close()
            self._closed.set()

    @contextlib.contextmanager
    def _watch(self, call: str, started: float | None = None) -> Iterator[None]:
        """Around a call: what it waits in, how long it took, and how it failed. `started`: the async op whose
        result it awaits.

        It may fail for anything since the call before returned: since then there was nobody to be told."""
        began = time.monotonic()
        self._call = (call, began)
        try:
            yield
        except pccl.PCCLError as error:
            if self._closed_by_order:
                raise _OrderedError from None
            alone = isinstance(error, pccl.TooFewPeersError)
            if alone and self._alone:
                raise  # still
            self._alone = alone
            self._tell(
                "error",
                call=call,
                error=type(error).__name__,
                result=error.result.name,
                text=str(error),
                since=min(self._returned, began, began if started is None else started),
            )
            raise
        finally:
            self._call = None
            self._returned = time.monotonic()
            seconds = time.monotonic() - began
            if seconds > self.config.bound_s:
                self._tell(
                    "violation", what=f"{call} took {seconds:.1f} s; the bound is {self.config.bound_s} s"
                )

    # --- the program -------------------------------------------------------------------------------------

    def run(self) -> None:
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        while not self._leaving:
            try:
                self._live()
            except (pccl.EvictedError, pccl.MasterLostError) as error:
                # Whoever was put out while others went on is a newcomer again.
                keeps_state = isinstance(error, pccl.MasterLostError) and self._has_state
                self._lose(type(error).__name__, keeps_state)
            except _OrderedError:
                if not self._closed.wait(self.config.bound_s):
                    raise ViolationError(f"close() took more than {self.config.bound_s} s") from None
                if self._closed_by_order == "leave":
                    break
                self._closed_by_order = ""
                self._comm.close()  # the order may have come while this peer was out and about to connect
                self._lose("rejoin", keeps_state=False)
        self._tell("left")
        self._tell_what("close")
        self._comm.close()
        self._crossings.drop()

    @property
    def _has_state(self) -> bool:
        return STATE in self.config.kinds

    def _lose(self, why: str, keeps_state: bool) -> None:
        self._crossings.drop()
        self._in_step = False
        if not keeps_state:
            self._state.revision = self._number = 0
            self._ahead = False
        self._tell("out", why=why, keeps_state=keeps_state)

    def _live(self) -> None:
        """From joining to the end of this membership."""
        self._join()
        self._newcomers = True
        while not self._leaving:
            self._agree()
            self._step()
            self._admit()
            if self._wanted_group != self._group:
                self._tell_what("regroup")
                self._comm.close()
                self._group = self._wanted_group
                self._lose("regroup", keeps_state=False)
                self._comm = self._communicator()
                self._crossings = self._no_crossings()
                return
            if self._closed_by_order:
                raise _OrderedError

    def _join(self) -> None:
        until = time.monotonic() + self.config.bound_s
        while True:
            try:
                with self._watch("connect"):
                    self._comm.connect(n_attempts=1)
                break
            except (pccl.EvictedError, pccl.RefusedError):
                raise
            except pccl.PCCLError:  # there may be no master just now
                if time.monotonic() > until:
                    raise ViolationError(f"could not join for {self.config.bound_s} s") from None
                time.sleep(0.1)
        self._tell("in", group=self._group, epoch=self._comm.epoch, world=self._comm.world_size)

    def _again(self, name: str, call: Callable[[], T]) -> T:
        """Until it succeeds. TooFewPeersError is passed on."""
        for _ in range(100):
            try:
                with self._watch(name):
                    return call()
            except (pccl.PeerLostError, pccl.MismatchError):
                continue
        raise ViolationError(f"{name} failed 100 times in a row")

    def _synchronise(self) -> None:
        """A group may have begun afresh while a peer that knew more had lost the master. When that one comes
        back, their revisions do not go together, and the call fails for all: it takes over what they have."""
        for _ in range(10):
            try:
                self._again(
                    "sync_shared_state", lambda: self._comm.sync_shared_state(self._state, require_peers=True)
                )
                return
            except pccl.PCCLError as error:
                if error.result != pccl.Result.INVALID_USAGE:
                    raise
            if not self._in_step:
                self._state.revision = 0
        raise ViolationError("sync_shared_state: revisions did not go together ten times in a row")

    def _agree(self) -> None:
        """Before a step, with all peers of the group: on the state, or at least on the number of the step."""
        if self._has_state:
            if not self._crossings.bar_joint_calls:
                self._crossings.settle()
                self._sync()
        elif self._newcomers:
            self._find_number()
        self._newcomers = False

    def _find_number(self) -> None:
        """Of the next step, which newcomers do not know. So it is the first op after joining."""
        number = np.array([self._number], np.int64)
        try:
            self._again(
                "all_reduce of step numbers",
                lambda: self._comm.all_reduce(number, op="max", tag=_NUMBER_TAG),
            )
        except pccl.TooFewPeersError:
            return
        if self._in_step and number[0] != self._number:
            raise ViolationError(f"in step at {self._number}, and yet others of the group are at {number[0]}")
        self._in_step, self._number, self._alone = True, int(number[0]), False
        self._tell("counted", group=self._group)

    def _sync(self) -> None:
        before = self._state.revision
        try:
            self._synchronise()
        except pccl.TooFewPeersError:
            return
        revision = self._state.revision
        found = self._digest()
        if self._in_step and (revision != before or found != self._hash):
            raise ViolationError(
                f"in step at revision {before} (state {self._hash}), and yet the sync changed that to "
                f"{revision} (state {found})"
            )
        self._in_step, self._hash, self._alone = True, found, False
        self._number, self._ahead = int(self._small[0]), False
        self._tell("agreed", group=self._group, revision=revision, hash=found)

    def _step(self) -> None:
        began = time.monotonic()
        time.sleep(self.config.step_s * self._choice.uniform(0.5, 1.5) + self._slow_s)
        self._slow_s = 0.0
        config, number = self.config, self._number
        if CROSSING in config.kinds:
            plan = draw_crossing(config.seed, self._group, number, config.max_bytes)
            if plan is not None:
                self._crossings.begin(plan)
        self._crossings.start_some(number)
        if self._choice.random() < 0.5:  # some before the ops of this step, some after them
            self._crossings.finish(number)
        unsettled = self._crossings.unsettled
        step = Step(self._comm, config.slot, self._watch, self._mischief, self._choice, unsettled)
        batches = draw_step(config.seed, self._group, number, config.kinds, config.max_bytes)
        try:
            members = step.run(batches)
        except AloneError:
            self._crossings.drop()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            return
        self._crossings.start_some(number)
        self._crossings.finish(number)
        self._advance(step.digest)
        self._tell(
            "step",
            group=self._group,
            step=number,
            epoch=self._comm.epoch,
            members=members,
            seconds=time.monotonic() - began,
            ops=step.committed,
            retries=step.retries,
            bytes=step.bytes,
        )

    def _digest(self) -> str:
        whole = hashlib.blake2b(self._words.data, digest_size=16)
        whole.update(self._small.data)
        return whole.hexdigest()

    def _advance(self, digest: int) -> None:
        """The state after the step: a function of the state before it and of all results."""
        self._number += 1
        if not self._has_state:
            return
        length = max(len(self._words) // 8, 1)
        start = digest % (len(self._words) - length)
        part = self._words[start : start + length]
        part *= np.uint64(0x9E3779B97F4A7C15)
        part += np.uint64(digest)
        if not self._ahead:  # revisions rise by one from sync to sync, however many steps lie between
            self._state.push_revision()
            self._ahead = True
        self._small[:] = (self._number, digest >> 1, start)
        self._hash = self._digest()

    def _admit(self) -> None:
        """Newcomers, after a step. Where ops cross steps only if there are any: the call wants nothing in
        flight, and the group, or another one, may have something."""
        if CROSSING in self.config.kinds:
            if not self._again("are_peers_pending", self._comm.are_peers_pending):
                return
            self._crossings.settle()
        self._again("update_topology", self._comm.update_topology)
        self._newcomers = True


def _quiet_exit(status: int) -> None:
    sys.stderr.flush()
    os._exit(status)


def give_memory_back() -> None:
    """Large buffers come from the system, and go back there. Else glibc learns to keep them: a process is
    then as large as at its worst moment so far, and hides what it really holds."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def serve(config: Config, orders: socket.socket) -> None:
    """The life of a peer process. Does not return."""
    end_with_parent()
    give_memory_back()
    log = os.open(config.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable(all_threads=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the orchestrator
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if config.namespace:
        connect_namespace(config.life)
    peer = Peer(config, orders)
    try:
        peer.run()
    except BaseException as error:
        traceback.print_exc()
        text = str(error) if isinstance(error, ViolationError) else f"{type(error).__name__}: {error}"
        peer._tell("violation", what=text)
        _quiet_exit(_VIOLATED)
    _quiet_exit(0)


def log_tail(path: str, lines: int = 20) -> list[str]:
    """The last lines of a log."""
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace").splitlines()[-lines:]
    return []
