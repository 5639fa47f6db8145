"""What TCP itself carries: the bytes of an all-reduce of two peers, both ways at once."""

from __future__ import annotations

import dataclasses
import select
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from .. import loopback
from ..control import serve
from ..elements import numpy_dtype
from ..launch import Team, python_command
from ..measure import Reply, Request, measure_ops

__all__ = ["connect", "encode", "missing", "spawn"]

_WRITE_BYTES = 256 << 10
# From here on a second thread pays for itself.
_TWO_THREADS_BYTES = 1 << 20


def missing(world_size: int, datatype: str, redop: str) -> str | None:
    return None if world_size == 2 else "raw is the limit for 2 peers: run it with --peers 2"


def spawn(team: Team) -> None:
    for rank in range(team.world_size):
        team.spawn(python_command("rivals.raw", team.socket_path, rank))


def connect(team: Team) -> None:
    team.ask(0, {"listen": True})
    port = team.receive_all([0])[0]["port"]
    team.ask(0, {"accept": True})
    team.ask(1, {"connect": port})
    team.receive_all([0, 1])


def encode(request: Request) -> Any:
    return dataclasses.asdict(request)


class _Sender:
    """A thread that sends a buffer whenever it is told to."""

    def __init__(self, sock: socket.socket, buffer: memoryview) -> None:
        self._go, self._done, self._over = threading.Semaphore(0), threading.Semaphore(0), False
        self._socket, self._buffer = sock, buffer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._go.acquire() and not self._over:
            for start in range(0, len(self._buffer), _WRITE_BYTES):
                self._socket.sendall(self._buffer[start : start + _WRITE_BYTES])
            self._done.release()

    def start(self) -> None:
        self._go.release()

    def wait(self) -> None:
        self._done.acquire()

    def close(self) -> None:
        self._over = True
        self._go.release()
        self._thread.join()


def _receive(sock: socket.socket, buffer: memoryview) -> None:
    received = 0
    while received < len(buffer):
        n = sock.recv_into(buffer[received : received + _WRITE_BYTES])
        if n == 0:
            raise ConnectionError("the other process is gone")
        received += n


def _exchange(sock: socket.socket, send: memoryview, recv: memoryview) -> None:
    """Both ways on one thread: small messages would only wait for a second one to wake up."""
    sent = received = 0
    while sent < len(send) or received < len(recv):
        moved = 0
        if sent < len(send):
            try:
                moved = sock.send(send[sent : sent + _WRITE_BYTES], socket.MSG_DONTWAIT)
                sent += moved
            except BlockingIOError:
                pass
        if received < len(recv):
            try:
                n = sock.recv_into(recv[received : received + _WRITE_BYTES], 0, socket.MSG_DONTWAIT)
                if n == 0:
                    raise ConnectionError("the other process is gone")
                received += n
                moved += n
            except BlockingIOError:
                pass
        if moved == 0 and (sent < len(send) or received < len(recv)):
            poller = select.poll()
            wanted = select.POLLOUT if sent < len(send) else 0
            poller.register(sock, wanted | (select.POLLIN if received < len(recv) else 0))
            poller.poll()


def _measure(sock: socket.socket, request: Request) -> Reply:
    size_bytes = request.count * numpy_dtype(request.datatype).itemsize
    send, recv = memoryview(bytearray(size_bytes)), memoryview(bytearray(size_bytes))
    if size_bytes < _TWO_THREADS_BYTES:
        return measure_ops(lambda: _exchange(sock, send, recv), request)
    sender = _Sender(sock, send)

    def run() -> None:
        sender.start()
        _receive(sock, recv)
        sender.wait()

    reply = measure_ops(run, request)
    sender.close()
    return reply


class _Worker:
    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._socket: socket.socket | None = None

    def answer(self, request: Any) -> Any:
        if "listen" in request:
            self._listener, port = loopback.listen()
            return {"port": port}
        if "accept" in request or "connect" in request:
            if "accept" in request:
                assert self._listener is not None
                self._socket = loopback.accept(self._listener)
            else:
                self._socket = loopback.connect(request["connect"])
            return {}
        assert self._socket is not None
        return dataclasses.asdict(_measure(self._socket, Request(**request)))


def _main(path: str, rank: int) -> int:
    def prepare() -> Callable[[Any], Any]:
        return _Worker().answer

    return serve(path, rank, prepare)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2])))
