"""How the process that measures talks to those that are measured: lines of JSON over a Unix socket.

A worker says its rank, then answers each request with one line, and ends when the connection does: workers
do not outlive who started them. The line {"error": text} is a worker's last.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["Connection", "serve"]

_MAX_LINE_BYTES = 1 << 26


class Connection:
    """One end. Each call blocks until the peer answers, closes, or `timeout` seconds have passed."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lines = sock.makefile("rb")

    @classmethod
    def to(cls, path: str) -> Connection:
        """Connect to who listens at `path`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        return cls(sock)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Any) -> None:
        """Send one message: text as it is, for workers that read no JSON; anything else as JSON."""
        text = message if isinstance(message, str) else json.dumps(message)
        self._socket.sendall(text.encode() + b"\n")

    def receive(self, timeout: float | None = None) -> Any:
        """The next message, or None when the other end has closed. TimeoutError when none comes in time."""
        self._socket.settimeout(timeout)
        try:
            line = self._lines.readline(_MAX_LINE_BYTES)
        except ConnectionError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def serve(path: str, rank: int, prepare: Callable[[], Callable[[Any], Any]]) -> int:
    """The life of a worker: say who it is, prepare, answer requests. Returns its exit status."""
    connection = Connection.to(path)
    connection.send({"rank": rank})
    try:
        answer = prepare()
        connection.send({"ready": True})
        while (request := connection.receive()) is not None:
            connection.send(answer(request))
    except (BrokenPipeError, ConnectionResetError):
        pass  # who asked is gone
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        print(f"rank {rank}: {text}", file=sys.stderr)
        with contextlib.suppress(OSError):
            connection.send({"error": text})
        return 1
    return 0
