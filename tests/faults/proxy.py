"""A TCP proxy on loopback that can stand still in either direction, or reset what goes through it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from types import TracebackType

READ_BYTES = 1 << 16
SHUTDOWN_SECONDS = 5.0


class Proxy:
    """with Proxy("127.0.0.1:48148") as proxy: connect to proxy.address instead"""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._lock = threading.Lock()
        self._stalled = {"upstream": False, "downstream": False}
        self._other: dict[socket.socket, socket.socket] = {}
        self._direction: dict[socket.socket, str] = {}
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def stall(self, *, upstream: bool = True, downstream: bool = True) -> None:
        """From now on nothing is passed on to the target (upstream), or from it; connections stay open."""
        with self._lock:
            self._stalled = {"upstream": upstream, "downstream": downstream}
        self._wake.send(b"s")

    def reset(self) -> None:
        """Every connection ends with a reset on both sides."""
        self._wake.send(b"r")

    def __enter__(self) -> Proxy:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.send(b"q")
        self._thread.join(SHUTDOWN_SECONDS)
        for one in [*self._other, self._listener, self._wake, self._woken]:
            one.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                one = key.fileobj
                assert isinstance(one, socket.socket)
                if one is self._woken:
                    for letter in one.recv(100).decode():
                        if letter == "q":
                            return
                        if letter == "r":
                            self._end_all()
                elif one is self._listener:
                    self._accept()
                elif one in self._other:
                    self._pass_on(one)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        target = socket.create_connection(self._target)
        self._other |= {client: target, target: client}
        self._direction |= {client: "upstream", target: "downstream"}
        for one in (client, target):
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, one: socket.socket) -> None:
        try:
            data = one.recv(READ_BYTES)
        except ConnectionError:
            data = b""
        with self._lock:
            stalled = self._stalled[self._direction[one]]
        if not data:
            self._selector.unregister(one)
            if not stalled:
                with contextlib.suppress(OSError):
                    self._other[one].shutdown(socket.SHUT_WR)
        elif not stalled:  # else it is swallowed: a network that drops packets has no buffers that fill up
            with contextlib.suppress(ConnectionError):
                self._other[one].sendall(data)

    def _end_all(self) -> None:
        for one in self._other:
            with contextlib.suppress(KeyError):
                self._selector.unregister(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        self._other.clear()
