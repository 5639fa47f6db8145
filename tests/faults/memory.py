"""Commands about the memory of a process, and the bytes that an op moves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

import pccl

Answer = dict[str, Any]


def _status(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def resident_bytes() -> int:
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that was resident since forget_peak()."""
    return _status("VmHWM")


def forget_peak() -> None:
    """The peak begins anew, at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


class MemoryCommands:
    communicator: pccl.Communicator
    _held: tuple[Any, Any]

    def do_hold(self, command: dict[str, Any]) -> None:
        """Buffers of `count` float32, all of their pages there; one buffer is in place."""
        send = np.ones(command["count"], np.float32)
        self._held = (send, None if command["in_place"] else np.full_like(send, 7))

    def do_reduce_held(self, command: dict[str, Any]) -> Answer:
        """All-reduce them. `extra`: how many bytes more were resident than before, at most."""
        send, recv = self._held
        forget_peak()
        before = resident_bytes()
        info = self.communicator.all_reduce(send, recv, algorithm=command["algorithm"])
        extra = peak_bytes() - before
        result = send if recv is None else recv
        assert (result == info.local_world_size).all()
        return {"extra": extra, "tx": info.tx_bytes, "rx": info.rx_bytes}

    def do_peak_memory(self, _: dict[str, Any]) -> Answer:
        """The most memory that was resident since this was asked last."""
        peak = peak_bytes()
        forget_peak()
        return {"peak": peak}
