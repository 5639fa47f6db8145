"""Shared state: named tensors that sync_shared_state() makes equal on all peers of a group, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ._arguments import integer
from ._arrays import Memory, memory_of
from ._enums import DataType
from ._native import ffi, lib

__all__ = [
    "SharedState",
    "SharedStateSyncInfo",
    "SharedStateSyncProgress",
    "SharedStateSyncStrategy",
    "SyncPhase",
    "TensorInfo",
]


class SharedStateSyncStrategy(Enum):
    """What a peer's state is for."""

    ENFORCE_POPULAR = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR
    """It may be elected, and is overwritten if another one is."""
    RECEIVE_ONLY = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY
    """It is never elected and never sent."""
    SEND_ONLY = lib.PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY
    """It is never overwritten, and elected before others."""


class SyncPhase(Enum):
    """What a sync is doing."""

    HASHING = lib.pcclSyncHashing
    WAITING = lib.pcclSyncWaiting
    RECEIVING = lib.pcclSyncReceiving
    SENDING = lib.pcclSyncSending


@dataclass(frozen=True)
class SharedStateSyncProgress:
    """How far a sync is: `done_bytes` of `total_bytes` of this phase, 0 where the total is not known."""

    phase: SyncPhase
    done_bytes: int
    total_bytes: int


@dataclass
class SharedStateSyncInfo:
    """Bytes of tensors that others have fetched from this peer, and that it has fetched."""

    tx_bytes: int
    rx_bytes: int


class TensorInfo:
    """A tensor and its name. Made by from_torch() or from_numpy(), which keep the tensor alive, or from an
    address that the caller answers for.

    allow_content_inequality: its content may differ between peers; it is neither compared nor copied.
    """

    def __init__(
        self,
        name: str,
        data_ptr: int,
        *,
        numel: int,
        dtype: DataType,
        allow_content_inequality: bool = False,
    ) -> None:
        self._set(name, Memory(ffi.cast("void *", data_ptr), numel, dtype, None), allow_content_inequality)

    def _set(self, name: str, memory: Memory, allow_content_inequality: bool) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a tensor must be a str, not {type(name).__name__}")
        if not name or "\0" in name:
            raise ValueError(f"the name of a tensor must not be empty nor contain a zero character: {name!r}")
        self.name = name
        self.memory = memory
        self.allow_content_inequality = bool(allow_content_inequality)
        self._c_name = ffi.new("char[]", name.encode())

    @classmethod
    def _from_array(cls, array: Any, name: str, allow_content_inequality: bool) -> TensorInfo:
        self = cls.__new__(cls)
        self._set(name, memory_of(array, f"tensor {name!r}", writable=True), allow_content_inequality)
        return self

    @classmethod
    def from_torch(cls, tensor: Any, name: str, *, allow_content_inequality: bool = False) -> TensorInfo:
        """For a contiguous torch tensor on the CPU. It is kept alive."""
        return cls._from_array(tensor, name, allow_content_inequality)

    @classmethod
    def from_numpy(cls, array: Any, name: str, *, allow_content_inequality: bool = False) -> TensorInfo:
        """For a contiguous, writable NumPy array, or anything else that all_reduce() takes in place."""
        return cls._from_array(array, name, allow_content_inequality)

    def fill(self, target: Any) -> None:
        """Write into a pcclTensorInfo_t, which is good as long as this object lives."""
        target.name = self._c_name
        target.data = self.memory.pointer
        target.count = self.memory.count
        target.datatype = self.memory.datatype.value
        target.device_type = lib.pcclDeviceCpu
        target.allow_content_inequality = self.allow_content_inequality

    def __repr__(self) -> str:
        return f"<pccl.TensorInfo {self.name!r} {self.memory.datatype.dtype_name}[{self.memory.count}]>"


class SharedState:
    """Tensors that all peers of a group are to hold equal, and the revision they are at.

    tensors: TensorInfo, or a mapping of names to arrays.
    revision: the number of the state; one more from sync to sync, and the elected one after it.
    """

    def __init__(self, tensors: Sequence[TensorInfo] | Mapping[str, Any], *, revision: int = 0) -> None:
        if isinstance(tensors, Mapping):
            self._infos = [TensorInfo.from_numpy(array, name) for name, array in tensors.items()]
        else:
            self._infos = list(tensors)
        for info in self._infos:
            if not isinstance(info, TensorInfo):
                raise TypeError(f"a shared state consists of TensorInfo, not {type(info).__name__}")
        if not self._infos:
            raise ValueError("a shared state must have at least one tensor")
        self._items = ffi.new("pcclTensorInfo_t[]", len(self._infos))
        for item, info in zip(self._items, self._infos, strict=True):
            info.fill(item)
        self._state = ffi.new("pcclSharedState_t *", {"count": len(self._infos), "infos": self._items})
        self.revision = revision

    @property
    def revision(self) -> int:
        """The number of the state; a sync sets it to the elected one."""
        return int(self._state.revision)

    @revision.setter
    def revision(self, revision: int) -> None:
        self._state.revision = integer(revision, 0, 2**64 - 1, "revision")

    def push_revision(self) -> int:
        """Raise the revision by one, as each sync demands; the new one."""
        self.revision += 1
        return self.revision

    def __len__(self) -> int:
        return len(self._infos)

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self._infos)

    def __repr__(self) -> str:
        return f"<pccl.SharedState of {len(self)} tensors at revision {self.revision}>"

    @property
    def pointer(self) -> Any:
        """The pcclSharedState_t, good as long as this object lives."""
        return self._state


Progress = Callable[[SharedStateSyncProgress], object]


def progress_from_c(progress: Any) -> SharedStateSyncProgress:
    """What C tells of a sync."""
    return SharedStateSyncProgress(SyncPhase(progress.phase), progress.done_bytes, progress.total_bytes)
