"""Local processes: started, talked to, bounded in time, and cleaned up whatever happens."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .control import Connection

__all__ = ["BenchmarkError", "Team", "end_on_sigterm", "python_command"]

_GRACE_S = 5.0
_LOOK_AGAIN_S = 0.1


class BenchmarkError(Exception):
    """A measurement failed. The text says whose, and what to do."""


def python_command(module: str, *arguments: object) -> list[str]:
    """Runs a module of this package with our own interpreter."""
    return [sys.executable, "-m", f"{__package__}.{module}", *map(str, arguments)]


def end_on_sigterm() -> None:
    """Let SIGTERM end this program as Ctrl-C does, through its with-statements."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


class Team:
    """`world_size` workers of one contestant. Use in a with-statement: no process of it outlives that.

    directory: empty, private to this team; its control socket lies there.
    timeout_s: how long the workers may take to start, and to answer one request.
    """

    def __init__(self, name: str, world_size: int, directory: Path, timeout_s: float) -> None:
        self.name = name
        self.world_size = world_size
        self.directory = directory
        self.socket_path = str(directory / "control")
        self._timeout_s = timeout_s
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: dict[int, Connection] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.socket_path)
        self._listener.listen(world_size)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(at_once=exception is not None)

    def spawn(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start one process; one of its own or of its children connects as each rank."""
        # A session of its own: Ctrl-C reaches us alone, and a signal of ours reaches its children too.
        # Stdout is for results: whatever a worker prints is a log.
        self._processes.append(
            subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def wait_until_ready(self) -> None:
        """Block until every rank has connected and has said that it is ready."""
        deadline = time.monotonic() + self._timeout_s
        self._listener.settimeout(_LOOK_AGAIN_S)
        while len(self._connections) < self.world_size:
            try:
                accepted, _ = self._listener.accept()
            except TimeoutError:
                self._expect_alive(deadline)
                continue
            connection = Connection(accepted)
            message = connection.receive(self._timeout_s)
            if message is None:
                raise BenchmarkError(f"{self.name}: a process ended before it said its rank")
            self._connections[message["rank"]] = connection
        for rank in sorted(self._connections):
            self._receive(rank)

    def _expect_alive(self, deadline: float) -> None:
        for process in self._processes:
            if process.poll() is not None:
                raise BenchmarkError(f"{self.name}: a process ended at start, {_ending(process.returncode)}")
        if time.monotonic() > deadline:
            missing = self.world_size - len(self._connections)
            raise BenchmarkError(f"{self.name}: {missing} processes have not started in {self._timeout_s} s")

    def ask(self, rank: int, request: Any) -> None:
        """Send a request; receive() gets the answer."""
        try:
            self._connections[rank].send(request)
        except OSError:
            raise BenchmarkError(f"{self.name}: rank {rank} has ended") from None

    def receive_all(self, ranks: Sequence[int]) -> list[Any]:
        """The answers of `ranks`, in that order, however they come in."""
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            for rank in ranks:
                selector.register(self._connections[rank], selectors.EVENT_READ, rank)
            while len(answers) < len(ranks):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    missing = ", ".join(str(rank) for rank in ranks if rank not in answers)
                    raise BenchmarkError(f"{self.name}: no answer of rank {missing} in {self._timeout_s} s")
                for key, _ in ready:
                    selector.unregister(key.fileobj)
                    answers[key.data] = self._receive(key.data)
        return [answers[rank] for rank in ranks]

    def ask_all(self, request: Any) -> list[Any]:
        """Send a request to all ranks; their answers in the order of ranks."""
        ranks = sorted(self._connections)
        for rank in ranks:
            self.ask(rank, request)
        return self.receive_all(ranks)

    def _receive(self, rank: int) -> Any:
        try:
            answer = self._connections[rank].receive(self._timeout_s)
        except TimeoutError:
            raise BenchmarkError(f"{self.name}: no answer of rank {rank} in {self._timeout_s} s") from None
        if answer is None:
            raise BenchmarkError(f"{self.name}: rank {rank} has ended; its log is on stderr")
        if "error" in answer:
            raise BenchmarkError(f"{self.name}: rank {rank} failed: {answer['error']}")
        return answer

    def kill(self, rank: int) -> None:
        """SIGKILL and forget `rank`. Only where each rank has a command, spawned in the order of ranks."""
        os.kill(self._processes[rank].pid, signal.SIGKILL)
        self._processes[rank].wait()
        self._connections.pop(rank).close()

    def close(self, *, at_once: bool = False) -> None:
        """End all processes: those that do not end by themselves when we hang up are killed."""
        for connection in self._connections.values():
            connection.close()
        self._listener.close()
        deadline = time.monotonic() + (0.0 if at_once else _GRACE_S)
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
                process.wait()
        self._processes.clear()
        self._connections.clear()


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


def _ending(status: int) -> str:
    return f"by signal {-status}" if status < 0 else f"with exit status {status}"
