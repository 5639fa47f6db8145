"""Strangers that connect to a listening port, and talk nonsense, half a message, or not at all."""

from __future__ import annotations

import contextlib
import random
import socket

__all__ = ["Strangers"]

_CONNECTIONS = 6
_MOST_OPEN = 60  # of all that are held open; the oldest go first
_NONSENSE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\xff" * 64,
    b"\x00" * 4096,
    b"",
)


class Strangers:
    """They keep their connections open, so that whoever accepts them has to get rid of them."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def visit(self, host: str, port: int, variant: float) -> None:
        """Some connections to this port, and what `variant` says on them."""
        choice = random.Random(variant)
        for _ in range(_CONNECTIONS):
            stranger = socket.socket()
            stranger.settimeout(1.0)
            with contextlib.suppress(OSError):
                stranger.connect((host, port))
                stranger.sendall(choice.choice([*_NONSENSE, choice.randbytes(choice.randint(1, 2000))]))
            if choice.random() < 0.3:
                stranger.close()
            else:
                self._open.append(stranger)
        while len(self._open) > _MOST_OPEN:
            self._open.pop(0).close()

    def close(self) -> None:
        for stranger in self._open:
            stranger.close()
