"""A master and peers as processes of their own: started, signalled, heard, and ended by their id."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

try:
    import psutil
except ModuleNotFoundError:  # `pccl stress --help` does without it; see main()
    psutil = None

from .lifeline import end_with_parent
from .namespaces import address_of
from .peer import Config, serve

__all__ = ["Master", "PeerProcess", "StressError", "start"]

_SECONDS_TO_START = 30.0


class StressError(Exception):
    """The run could not be carried out: says nothing about pccl."""


def _forkserver() -> Any:
    """Forks peers from a process that has imported all they need: ten times as fast as a start from
    nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pccl.stress.forker"])
    return context


def start(function: Any, arguments: tuple[Any, ...]) -> Any:
    """A process that runs this function."""
    process = _forkserver().Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


class PeerProcess:
    """One peer, and the socket to talk to it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.born = time.monotonic()
        self.socket, theirs = socket.socketpair()
        self._process = start(serve, (config, theirs))
        theirs.close()
        self.socket.setblocking(False)
        self._rest = b""
        # Never reaches a stranger that got the same id: psutil compares when the process was made.
        self.handle: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self.handle = psutil.Process(self._process.pid)

    @property
    def name(self) -> str:
        return f"s{self.config.slot}-{self.config.life}"

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def order(self, do: str, **more: Any) -> None:
        with contextlib.suppress(OSError):  # it may be dead, or stopped with a full buffer
            self.socket.send(json.dumps({"do": do, **more}).encode() + b"\n")

    def hear(self) -> tuple[list[dict[str, Any]], bool]:
        """What it has said, and whether it has ended."""
        ended = False
        chunks = [self._rest]
        while True:
            try:
                data = self.socket.recv(1 << 18)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                ended = True
                break
            chunks.append(data)
        *lines, self._rest = b"".join(chunks).split(b"\n")
        return [json.loads(line) for line in lines], ended

    def signal(self, number: int) -> None:
        if self.handle is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.handle.send_signal(number)

    def exit_status(self, within_s: float) -> int | None:
        """None if it is alive; negative if a signal ended it."""
        self._process.join(within_s)
        status: int | None = self._process.exitcode
        return status

    def end(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.join(5)
        self.socket.close()

    @property
    def host(self) -> str:
        """Where it is."""
        return address_of(self.config.life) if self.config.namespace else "127.0.0.1"

    def port(self) -> int | None:
        """Where it listens for other peers."""
        if self.config.namespace:
            return _only_listener(self.pid)
        with contextlib.suppress(psutil.Error, AttributeError):
            for connection in self.handle.net_connections("tcp"):  # type: ignore[union-attr]
                if connection.status == psutil.CONN_LISTEN:
                    return int(connection.laddr.port)
        return None


def _only_listener(pid: int) -> int | None:
    """The port that is listened on in the namespace of a process."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == "0A":
                    return int(local.rpartition(":")[2], 16)
    return None


class Master:
    """`pccl master`, at the same address each time it is started."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.address = "127.0.0.1:0"
        self.handle: psutil.Process | None = None
        self.lives = 0

    def start(self) -> None:
        before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.handle = psutil.Popen(
                [sys.executable, "-m", "pccl", "master", "--listen-address", self.address],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PCCL_LOG_LEVEL": "INFO", **os.environ},
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the orchestrator
                preexec_fn=end_with_parent,
            )
        self.lives += 1
        deadline = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < deadline:
            with self._log.open("rb") as log:
                log.seek(before)
                found = re.search(rb"listening on (\S+)", log.read())
            if found is not None:
                self.address = found[1].decode()
                return
            if not self.is_alive():
                break
            time.sleep(0.02)
        raise StressError(f"the master does not start; see {self._log}")

    def is_alive(self) -> bool:
        return self.handle is not None and self.handle.poll() is None

    def signal(self, number: int) -> None:
        if self.is_alive():
            assert self.handle is not None
            self.handle.send_signal(number)

    def kill(self) -> None:
        if self.handle is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.handle.kill()
            self.handle.wait(10)
