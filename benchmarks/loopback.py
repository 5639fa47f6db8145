"""Connections within this machine, as fast as they get: what the raw limits are measured over."""

from __future__ import annotations

import socket

__all__ = ["accept", "connect", "listen"]


def listen() -> tuple[socket.socket, int]:
    """The listener and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


def accept(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    return _tuned(sock)


def connect(port: int) -> socket.socket:
    return _tuned(socket.create_connection(("127.0.0.1", port)))


def _tuned(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # As pccl does: the system's defaults are for far links, and cost processor time (csrc/net/socket.c).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 512 << 10)
    return sock
