"""What a peer is told to do with a shared state.

{"do": "state", "tensors": [{"name": "w", "count": 1000, "dtype": "float32", "fill": 1}], "revision": 3}
{"do": "sync", "strategy": "RECEIVE_ONLY", "hold_at": "RECEIVING"}
{"id": 3, "ok": true, "revision": 3, "tx": 0, "rx": 4000, "digest": "9c…"}
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy bfloat16
import numpy as np

import pccl

Command = dict[str, Any]
Answer = dict[str, Any]

HOLD_SECONDS = 60.0


def tensor_bytes(fill: int, size: int) -> np.ndarray:
    """`size` bytes that depend on `fill`, quickly made; no two MiB of them are equal."""
    words = np.arange(-(-size // 8), dtype=np.uint64)
    words *= np.uint64(0x9E3779B97F4A7C15)
    words += np.uint64(fill * 0x1000003)
    return words.view(np.uint8)[:size].copy()


def array_of(tensor: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(tensor.get("dtype", "float32"))
    return tensor_bytes(tensor["fill"], tensor["count"] * dtype.itemsize).view(dtype)


def digest_of(arrays: dict[str, np.ndarray]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        whole.update(name.encode() + b"\0")
        whole.update(arrays[name].view(np.uint8).data)
    return whole.hexdigest()


def digest_for(*tensors: dict[str, Any]) -> str:
    """That of a state with these tensors, none of which may differ."""
    return digest_of({tensor["name"]: array_of(tensor) for tensor in tensors})


class StateCommands:
    """Part of a peer (faults/peer.py)."""

    communicator: Any
    _arrays: dict[str, np.ndarray]
    _free: set[str]
    _state: pccl.SharedState
    _held: threading.Event
    _go: threading.Event
    _phases: list[str]

    def do_state(self, command: Command) -> None:
        self._held, self._go, self._phases = threading.Event(), threading.Event(), []
        tensors = command["tensors"]
        self._arrays = {tensor["name"]: array_of(tensor) for tensor in tensors}
        self._free = {tensor["name"] for tensor in tensors if tensor.get("free")}
        infos = [
            pccl.TensorInfo.from_numpy(array, name, allow_content_inequality=name in self._free)
            for name, array in self._arrays.items()
        ]
        self._state = pccl.SharedState(infos, revision=command.get("revision", 0))

    def do_many(self, command: Command) -> None:
        """A state of `count` tensors of one element each."""
        values = np.arange(command["count"], dtype=np.int64) + command["fill"]
        self._phases = []
        self._arrays = {f"t{i}": values[i : i + 1] for i in range(command["count"])}
        self._free = set()
        self._state = pccl.SharedState(self._arrays, revision=command["revision"])

    def do_vast(self, command: Command) -> None:
        """A state of `size` zero bytes that take no memory."""
        map_noreserve = 0x4000
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_noreserve
        self._arrays = {"w": np.frombuffer(mmap.mmap(-1, command["size"], flags=flags), np.uint8)}
        self._state = pccl.SharedState(self._arrays)

    def do_flip(self, command: Command) -> None:
        """Change single bits of a tensor."""
        flat = self._arrays[command["name"]].view(np.uint8)
        for bit in command["bits"]:
            flat[bit // 8] ^= 1 << bit % 8

    def do_revision(self, command: Command) -> None:
        self._state.revision = command["revision"]

    def do_go(self, command: Command) -> None:
        """Ends the hold of a sync."""
        self._go.set()

    def do_look(self, command: Command) -> Answer:
        equal = {name: array for name, array in self._arrays.items() if name not in self._free}
        free = {name: array for name, array in self._arrays.items() if name in self._free}
        return {"digest": digest_of(equal), "free": digest_of(free), "revision": self._state.revision}

    def do_sync(self, command: Command) -> Answer:
        """hold_at: once for each state, stand still in the callback of this phase, when it has moved some
        bytes (or at once with `hold_early`), until told to go. "held" (aside) waits until that is so."""
        strategy = pccl.SharedStateSyncStrategy[command.get("strategy", "ENFORCE_POPULAR")]

        def progress(step: pccl.SharedStateSyncProgress) -> None:
            self._phases.append(step.phase.name)
            if step.phase.name != command.get("hold_at") or self._held.is_set():
                return
            if not command.get("hold_early") and step.done_bytes == 0:
                threading.Event().wait(0.15)  # so that the next call is due as soon as something has moved
                return
            self._held.set()
            if command.get("fail"):
                raise ZeroDivisionError
            if write := command.get("write"):
                self.do_flip(write)
            else:
                assert self._go.wait(HOLD_SECONDS)

        try:
            info = self.communicator.sync_shared_state(
                self._state,
                strategy,
                require_peers=command.get("require_peers", False),
                progress=progress if command.get("hold_at") else None,
            )
        except (Exception, KeyboardInterrupt) as error:
            if not command.get("blind"):
                error.answer = self.do_look(command)  # type: ignore[attr-defined]
            raise
        return self.do_look(command) | {"tx": info.tx_bytes, "rx": info.rx_bytes, "phases": self._phases}

    def do_held(self, command: Command) -> None:
        """Returns (aside) once the sync stands still."""
        assert self._held.wait(HOLD_SECONDS)
