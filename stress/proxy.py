"""Where peers connect instead of the master: a TCP proxy, one port per peer, that can stand still in either
direction, or reset what goes through it. A process of its own, so that nothing the orchestrator does delays
heartbeats.

What cannot be passed on is kept back, not dropped: TCP would send it again, once the network is well.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from .lifeline import end_with_parent

__all__ = ["Proxy", "serve"]

_READ_BYTES = 1 << 16
_MOST_HELD_BYTES = 1 << 20  # in each direction: no more is read until it is gone


@dataclass
class _End:
    """One of the two sockets of a connection."""

    socket: socket.socket
    door: _Door
    upstream: bool  # whether what is read here goes to the master
    other: _End = field(init=False)
    held: bytearray = field(default_factory=bytearray)  # read here, not yet written there
    ended: bool = False  # nothing more will be read here


@dataclass
class _Door:
    """The port of one peer."""

    listener: socket.socket
    stalled: dict[bool, bool] = field(default_factory=lambda: {True: False, False: False})
    ends: set[int] = field(default_factory=set)


class _Proxy:
    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._rest = b""
        self._target = ("127.0.0.1", 0)
        self._doors: dict[str, _Door] = {}
        self._ends: dict[int, _End] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ, self._obey)

    def run(self) -> None:
        while True:
            for key, events in self._selector.select():
                if callable(key.data):
                    key.data()
                elif isinstance(key.data, _Door):
                    self._accept(key.data)
                elif key.fd in self._ends:
                    self._serve(key.data, events)

    # --- orders ------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        data = self._orders.recv(_READ_BYTES)
        if not data:
            os._exit(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            answer = getattr(self, "_do_" + order.pop("do"))(**order)
            self._orders.sendall(json.dumps(answer).encode() + b"\n")

    def _do_target(self, host: str, port: int) -> None:
        self._target = (host, port)

    def _do_open(self, name: str, host: str) -> int:
        listener = socket.create_server((host, 0))
        listener.setblocking(False)
        door = self._doors[name] = _Door(listener)
        self._selector.register(listener, selectors.EVENT_READ, door)
        return int(listener.getsockname()[1])

    def _do_close(self, name: str) -> None:
        door = self._doors.pop(name, None)
        if door is not None:
            self._selector.unregister(door.listener)
            door.listener.close()

    def _do_reset(self, name: str) -> None:
        door = self._doors.get(name)
        for number in list(door.ends) if door is not None else []:
            if number in self._ends:
                self._drop(self._ends[number])

    def _do_stall(self, name: str, upstream: bool, downstream: bool) -> None:
        door = self._doors.get(name)
        if door is not None:
            door.stalled = {True: upstream, False: downstream}
            for number in door.ends:
                self._attend(self._ends[number])

    # --- connections -------------------------------------------------------------------------------------

    def _accept(self, door: _Door) -> None:
        try:
            client, _ = door.listener.accept()
        except OSError:
            return
        target = socket.socket()
        try:
            target.connect(self._target)  # on this machine: answered at once
        except OSError:
            client.close()  # no master just now
            target.close()
            return
        ends = [_End(client, door, True), _End(target, door, False)]
        ends[0].other, ends[1].other = ends[1], ends[0]
        for end in ends:
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends[end.socket.fileno()] = end
            door.ends.add(end.socket.fileno())
            self._attend(end)

    def _attend(self, end: _End) -> None:
        """Wait for what this end can do now."""
        stalled = end.door.stalled
        events = 0
        if not end.ended and not stalled[end.upstream] and len(end.held) < _MOST_HELD_BYTES:
            events |= selectors.EVENT_READ
        if end.other.held and not stalled[end.other.upstream]:
            events |= selectors.EVENT_WRITE
        with contextlib.suppress(KeyError):
            self._selector.unregister(end.socket)
        if events:
            self._selector.register(end.socket, events, end)

    def _serve(self, end: _End, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = end.socket.recv(_READ_BYTES)
                end.held += data
                end.ended = not data
            if events & selectors.EVENT_WRITE:
                sent = end.socket.send(end.other.held)
                del end.other.held[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(end)
            return
        for one in (end, end.other):
            if one.other.ended and not one.other.held:
                with contextlib.suppress(OSError):
                    one.socket.shutdown(socket.SHUT_WR)
        if end.ended and end.other.ended and not end.held and not end.other.held:
            self._drop(end)
            return
        self._attend(end)
        self._attend(end.other)

    def _drop(self, end: _End) -> None:
        """Both sides are reset, unless they have ended by themselves."""
        for one in (end, end.other):
            with contextlib.suppress(KeyError):
                self._selector.unregister(one.socket)
            self._ends.pop(one.socket.fileno(), None)
            one.door.ends.discard(one.socket.fileno())
            with contextlib.suppress(OSError):
                one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.socket.close()


def serve(orders: socket.socket) -> None:
    """The life of the process. Does not return."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Proxy(orders).run()


class Proxy:
    """The orchestrator's side."""

    def __init__(self, start: Any) -> None:
        """`start(function, arguments)` makes a process."""
        self._socket, theirs = socket.socketpair()
        self.process = start(serve, (theirs,))
        theirs.close()
        self._file = self._socket.makefile("rb")

    def ask(self, do: str, **more: Any) -> Any:
        self._socket.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
        return json.loads(self._file.readline())

    def close(self) -> None:
        self._file.close()
        self._socket.close()
        self.process.kill()
        self.process.join(5)
