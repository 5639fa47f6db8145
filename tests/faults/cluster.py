"""A master and its peers as processes, told what to do at once, watched, and cleaned away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pytest

from .data import digest, reduction
from .model import expect_parity
from .spawner import spawner

# How links carry their bytes within this machine.
TRANSPORTS = [pytest.param(False, id="memory"), pytest.param(True, id="TCP")]
# When a wait counts as a hang: far beyond every bound of the library, and of a busy machine.
HANG_SECONDS = 30.0
LOG_LINES = 60
Answer = dict[str, Any]


def readable(descriptors: Iterable[int], seconds: float) -> list[int]:
    """Those that have something to read, or have ended, within `seconds`; any number of them."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]


class Network(Protocol):
    """Where processes live; None of it is plain loopback."""

    def place(self, name: str) -> tuple[str, str]:
        """The namespace of a new process and its address there."""


@dataclass
class Process:
    """One of ours, known by a descriptor: no signal can reach a stranger who got the same id."""

    name: str
    pid: int
    log: Path
    expected_to_live: bool = True

    def __post_init__(self) -> None:
        self.handle = os.pidfd_open(self.pid)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def is_alive(self) -> bool:
        return not readable([self.handle], 0)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.expected_to_live = False
        self.signal(signal.SIGKILL)
        assert readable([self.handle], HANG_SECONDS), f"{self.name} does not die"

    def stop(self) -> None:
        """SIGSTOP, and wait until no thread of it runs any more."""
        self.signal(signal.SIGSTOP)
        wait_until(self._stands_still, f"{self.name} stands still")

    def _stands_still(self) -> bool:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)


@dataclass
class Pending:
    """A command that is under way."""

    peer: Peer
    number: int
    do: str
    answer: Answer | None = None


@dataclass
class Peer:
    process: Process
    index: int
    connection: socket.socket
    address: str
    open: dict[int, Pending] = field(default_factory=dict)
    _rest: bytes = b""
    _last: int = 0

    @property
    def name(self) -> str:
        return self.process.name

    def tell(self, do: str, **arguments: Any) -> Pending:
        self._last += 1
        pending = Pending(self, self._last, do)
        self.open[pending.number] = pending
        with contextlib.suppress(BrokenPipeError):  # killed: collect() will see
            self.connection.sendall(
                json.dumps({"id": pending.number, "do": do, **arguments}).encode() + b"\n"
            )
        return pending

    def receive(self) -> None:
        """Takes in what has come; on the end, commands that are under way have no answer."""
        try:
            data = self.connection.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self.open.pop(answer["id"]).answer = answer
        if not data:
            for pending in self.open.values():
                pending.answer = {"ok": False, "error": "Dead", "text": f"{self.name} is dead", "dead": True}
            self.open.clear()

    def kill(self) -> None:
        self.process.kill()


class Cluster:
    """with Cluster(seed=1) as cluster: a, b, c = cluster.form(3)"""

    def __init__(
        self, *, seed: int, timeout: float = 1.0, network: Network | None = None, tcp_only: bool = False
    ) -> None:
        self.seed, self.timeout, self.network, self.tcp_only = seed, timeout, network, tcp_only
        self.peers: list[Peer] = []
        self.next_index = 0
        self._folder = tempfile.TemporaryDirectory(prefix="pccl-faults-")
        self.folder = Path(self._folder.name)
        self._keep: list[socket.socket] = []
        self.master: Process
        self.address = ""

    def __enter__(self) -> Cluster:
        try:
            self.start_master()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            processes = [self.master, *(peer.process for peer in self.peers)]
            fallen = [one.name for one in processes if one.expected_to_live and not one.is_alive()]
            if exception is not None or fallen:
                self._print_logs()
            if exception is None:
                assert not fallen, f"ended by themselves: {fallen}"
        finally:
            self._clean()

    def _clean(self) -> None:
        for process in [*(peer.process for peer in self.peers), *([self.master] if self.address else [])]:
            process.kill()
            os.close(process.handle)
        for connection in [*self._keep, *(peer.connection for peer in self.peers)]:
            connection.close()
        self._folder.cleanup()

    def _print_logs(self) -> None:
        print(f"seed {self.seed}, timeout {self.timeout} s")
        for log in sorted(self.folder.glob("*.log")):
            print(f"--- {log.name}")
            print("\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]))

    # --- processes ---------------------------------------------------------------------------------------

    def _spawn(self, name: str, request: dict[str, Any]) -> tuple[Process, socket.socket, str]:
        address = "127.0.0.1"
        if self.network is not None:
            request["netns"], address = self.network.place(name)
        if request["role"] == "master":
            request["listen"] = f"{address}:{request['port']}"
        mine, theirs = socket.socketpair()
        log = self.folder / f"{name}.log"
        with log.open("ab") as file, theirs:
            pid = spawner().spawn(request, theirs.fileno(), file.fileno())
        return Process(name, pid, log), mine, address

    def start_master(self, port: int = 0) -> None:
        self.master, connection, _ = self._spawn("master", {"role": "master", "port": port})
        self._keep.append(connection)
        self.address = self.wait_for_log(self.master, r"listening on (\S+)")[1]

    def add(self, **options: Any) -> Peer:
        """A peer that is not connected yet. `options` are those of pccl.Communicator."""
        index, self.next_index = self.next_index, self.next_index + 1
        request = {"role": "peer", "seed": self.seed, "index": index}
        process, connection, address = self._spawn(f"p{index}", request)
        peer = Peer(process, index, connection, address)
        self.peers.append(peer)
        options = {"address": self.address, "timeout": self.timeout, "name": process.name} | options
        options.setdefault("tcp_only", self.tcp_only)
        peer.tell("create", options=options)
        return peer

    def wait_for_log(self, process: Process, pattern: str, count: int = 1) -> re.Match[str]:
        """The `count`th line of its log that matches."""
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            found = list(re.finditer(pattern, process.log.read_text(errors="replace")))
            if len(found) >= count:
                return found[count - 1]
            assert time.monotonic() < deadline, f"{process.name} never logged {pattern!r} {count} times"
            time.sleep(0.005)

    def wait_until_known(self, peer: Peer) -> None:
        """Until the master has the peer, pending or admitted."""
        self.wait_for_log(self.master, rf"peer {peer.name} \S+ asks to join")

    def forget_dead(self) -> None:
        """Lets go of what belongs to killed peers. Indices stay unique."""
        for peer in [
            one for one in self.peers if not one.process.expected_to_live and not one.process.is_alive()
        ]:
            self.peers.remove(peer)
            peer.connection.close()
            os.close(peer.process.handle)

    def is_admitted(self, peer: Peer) -> bool:
        """Whether it is a member of an epoch; also while its main thread waits in a call."""
        return bool(self.collect([peer.tell("info", aside=True)])[0]["world"])

    # --- commands ----------------------------------------------------------------------------------------

    def collect(self, pendings: Sequence[Pending], within: float = HANG_SECONDS) -> list[Answer]:
        """All answers; a command without one in time is a hang. That of a killed peer is {"dead": True}."""
        deadline = time.monotonic() + within
        while waiting := [pending for pending in pendings if pending.answer is None]:
            peers = {pending.peer.connection.fileno(): pending.peer for pending in waiting}
            left = deadline - time.monotonic()
            if left <= 0:
                for pending in waiting:
                    pending.peer.process.signal(signal.SIGUSR1)  # where it hangs
                time.sleep(0.5)
                hung = [(one.peer.name, one.do) for one in waiting]
                failed = [one.answer for one in pendings if one.answer is not None and not one.answer["ok"]]
                raise AssertionError(f"hung: {hung}; had failed before: {failed}")
            for descriptor in readable(peers, left):
                peers[descriptor].receive()
        answers = [pending.answer for pending in pendings if pending.answer is not None]
        expect_parity((place, text) for answer in answers for place, text in answer.get("states", ()))
        return answers

    def ask(self, peer: Peer, do: str, **arguments: Any) -> Answer:
        return self.collect([peer.tell(do, **arguments)])[0]

    def ask_all(self, peers: Iterable[Peer], do: str, **arguments: Any) -> list[Answer]:
        return self.collect([peer.tell(do, **arguments) for peer in peers])

    def admit(self, members: Sequence[Peer], newcomers: Sequence[Peer]) -> None:
        """Let the newcomers, created but not connected, into the run of the members."""
        joining = [peer.tell("connect") for peer in newcomers]
        for peer in newcomers:
            self.wait_until_known(peer)
        answers = self._update_until(members, len(members) + len(newcomers)) + self.collect(joining)
        expect_ok(answers)
        assert len({answer["epoch"] for answer in answers}) == 1

    def _update_until(self, members: Sequence[Peer], world: int) -> list[Answer]:
        """Who has not been reached yet is let in by the next call, or the one after that."""
        if not members:
            return []  # the first one is in by itself
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            answers = self.ask_all(members, "update_topology")
            expect_ok(answers)
            worlds = {answer["world"] for answer in answers}
            if worlds == {world} or time.monotonic() > deadline:
                assert worlds == {world}
                return answers
            time.sleep(0.05)

    def admit_again(self, members: Sequence[Peer], peer: Peer) -> None:
        """The same for one that was in before."""
        pattern = rf"peer {peer.name} \S+ asks to join"
        known = len(re.findall(pattern, self.master.log.read_text()))
        joining = peer.tell("connect")
        self.wait_for_log(self.master, pattern, known + 1)
        self._update_until(members, len(members) + 1)
        expect_ok(self.collect([joining]))

    def form(self, count: int, **options: Any) -> list[Peer]:
        """A run of `count` new peers."""
        peers = [self.add(**options) for _ in range(count)]
        expect_ok([self.ask(peers[0], "connect")])
        if count > 1:
            self.admit(peers[:1], peers[1:])
        return peers

    # --- what must come out ------------------------------------------------------------------------------

    def expected(
        self,
        members: Iterable[Peer],
        *,
        count: int,
        step: int = 0,
        dtype: str = "float32",
        op: str = "sum",
        **_: Any,
    ) -> str:
        return digest(reduction(self.seed, [peer.index for peer in members], step, count, dtype, op))

    def reduce(self, members: Sequence[Peer], **op: Any) -> None:
        """An all-reduce of exactly these, with the exact result on each."""
        op = {"count": 1000, "step": 1000} | op
        self.check(self.ask_all(members, "all_reduce", **op), members, **op)

    def check(self, answers: Sequence[Answer], members: Sequence[Peer], **op: Any) -> None:
        """All succeeded, with the exact reduction of the members' inputs."""
        expect_ok(answers)
        assert [answer["world"] for answer in answers] == [len(members)] * len(answers)
        assert {answer["digest"] for answer in answers} == {self.expected(members, **op)}
        assert all(answer["intact"] for answer in answers)

    def check_either(self, answers: Sequence[Answer], *memberships: Sequence[Peer], **op: Any) -> bool:
        """Committed for all, over one of these memberships (of different sizes), or lost for all, with inputs
        as they were. Which?"""
        if not answers[0]["ok"]:
            expect_error(answers, "PeerLostError")
            return False
        members = [members for members in memberships if len(members) == answers[0]["world"]]
        assert members, f"committed with a world of {answers[0]['world']}"
        self.check(answers, members[0], **op)
        return True


def expect_ok(answers: Iterable[Answer]) -> None:
    failed = [answer for answer in answers if not answer["ok"]]
    assert not failed, failed


def expect_error(answers: Iterable[Answer], *names: str) -> None:
    """Each failed in one of these ways, and left its input as it was."""
    answers = list(answers)
    other = [answer for answer in answers if answer["ok"] or answer["error"] not in names]
    assert not other, other
    assert all(answer.get("intact", True) for answer in answers), answers


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.005)
