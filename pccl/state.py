"""Shared state: named tensors that sync_shared_state() makes equal on all peers of a group, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from ._arguments import integer
from ._enums import DataType, DeviceType
from ._native import ffi, lib
from ._state_memory import Place, advice_for, place_of

__all__ = [
    "SharedState",
    "SharedStateSyncInfo",
    "SharedStateSyncProgress",
    "SharedStateSyncStrategy",
    "SyncPhase",
    "TensorInfo",
]


MAX_REVISION = 2**64 - 1

Item = TypeVar("Item")
Made = TypeVar("Made")


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
    """A tensor and its name. Made by from_torch() or from_numpy(), which hold the tensor, or from an
    address that the caller answers for.

    Each sync looks anew where the tensor lies, so it may get other memory meanwhile (model.half().float(),
    tensor.data = …). Its element type and its number of elements must stay as they are.

    allow_content_inequality: its content may differ between peers; it is neither compared nor copied.
    """

    def __init__(
        self,
        name: str,
        data_ptr: int,
        *,
        numel: int,
        dtype: DataType,
        device_type: DeviceType = DeviceType.CPU,
        allow_content_inequality: bool = False,
    ) -> None:
        if device_type is not DeviceType.CPU:
            raise ValueError(f"tensor {name!r} is not in memory of the CPU: copy it there ({device_type!r})")
        if not isinstance(dtype, DataType):
            raise TypeError(f"the dtype of tensor {name!r} must be a DataType, not {type(dtype).__name__}")
        address = integer(data_ptr, 0, 2**64 - 1, f"data_ptr of tensor {name!r}")
        count = integer(numel, 0, 2**63 - 1, f"numel of tensor {name!r}")
        place = Place(ffi.cast("void *", address), count, dtype, "", None)
        self._set(name, None, place, allow_content_inequality)

    def _set(self, name: str, array: Any, place: Place, allow_content_inequality: bool) -> None:
        self.name = name
        self.allow_content_inequality = bool(allow_content_inequality)
        self._array = array
        self._first = place if array is None else replace(place, owner=None)  # holds nothing beside the array
        # The C core knows twelve element types and C order; what goes beyond them becomes part of the name.
        text = f"{name} ({place.kind})" if place.kind else name
        self._c_name = ffi.new("char[]", text.encode())

    @classmethod
    def _from_array(cls, array: Any, name: str, allow_content_inequality: bool) -> TensorInfo:
        _check_name(name)
        self = cls.__new__(cls)
        self._set(name, array, place_of(array, f"tensor {name!r}"), allow_content_inequality)
        return self

    @classmethod
    def from_torch(cls, tensor: Any, name: str, *, allow_content_inequality: bool = False) -> TensorInfo:
        """For a torch tensor on the CPU of any element type, whose elements fill its memory without gaps (in
        C order, channels_last, …). It is kept alive."""
        return cls._from_array(tensor, name, allow_content_inequality)

    @classmethod
    def from_numpy(cls, tensor: Any, name: str, *, allow_content_inequality: bool = False) -> TensorInfo:
        """For a writable NumPy array of any element type but Python objects, whose elements fill its memory
        without gaps (in C or Fortran order), or anything else that all_reduce() takes in place."""
        return cls._from_array(tensor, name, allow_content_inequality)

    @property
    def data_ptr(self) -> int:
        """Where the tensor lies now."""
        return self.look().address

    @property
    def numel(self) -> int:
        """Elements of `dtype`."""
        return self._first.count

    @property
    def dtype(self) -> DataType:
        """The element type; UINT8 for one that pccl can't reduce (bool, complex, float8): then `numel` counts
        bytes."""
        return self._first.datatype

    @property
    def device_type(self) -> DeviceType:
        """Where tensors are synchronised: in memory of the CPU."""
        return DeviceType.CPU

    def look(self) -> Place:
        """Where the tensor lies now. ValueError if it has become another kind of tensor."""
        if self._array is None:
            return self._first
        place = place_of(self._array, f"tensor {self.name!r}")
        if (place.count, place.datatype, place.kind) != (
            self._first.count,
            self._first.datatype,
            self._first.kind,
        ):
            raise ValueError(
                f"tensor {self.name!r} was {self._first} when the shared state was made and is {place} now: "
                "all peers must hold the same; make a new SharedState, at all peers"
            )
        return place

    def fill(self, target: Any, place: Place) -> None:
        """Write into a pcclTensorInfo_t, which is good as long as this object and the place live."""
        target.name = self._c_name
        target.data = place.pointer
        target.count = place.count
        target.datatype = place.datatype.value
        target.device_type = lib.pcclDeviceCpu
        target.allow_content_inequality = self.allow_content_inequality

    def __repr__(self) -> str:
        return f"<pccl.TensorInfo {self.name!r} {self._first}>"


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a tensor must be a str, not {type(name).__name__}")
    if not name or "\0" in name:
        raise ValueError(f"the name of a tensor must not be empty nor contain a zero character: {name!r}")


Tensors = Sequence[TensorInfo] | Mapping[str, Any] | Callable[[], Mapping[str, Any]]


class SharedState:
    """Tensors that all peers of a group are to hold equal, and the revision they are at.

    tensor_infos: a mapping of names to arrays or torch tensors; or a function that returns one, such as
        model.state_dict, which each sync calls anew; or a list of TensorInfo. A mapping is read anew by each
        sync as well: put another array of the same kind under a name, and that one is synchronised.
    revision: the number of the state; one more from sync to sync, and the elected one after it.
    """

    def __init__(self, tensor_infos: Tensors, *, revision: int = 0) -> None:
        self._source = tensor_infos
        self._infos = _list_infos(tensor_infos)
        if not self._infos:
            raise ValueError("a shared state must have at least one tensor")
        names = Counter(info.name for info in self._infos)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(
                f"several tensors of the shared state are named {', '.join(map(repr, twice))}: "
                "give each a name of its own"
            )
        self.revision = revision

    @property
    def revision(self) -> int:
        """The number of the state; a sync sets it to the elected one."""
        return self._revision

    @revision.setter
    def revision(self, revision: int) -> None:
        self._revision = integer(revision, 0, MAX_REVISION, "revision")

    def push_revision(self) -> int:
        """Raise the revision by one, as each sync demands; the new one."""
        if self._revision == MAX_REVISION:
            raise ValueError(
                f"the revision is {MAX_REVISION}, the highest there is: set revision = 0 at all peers, "
                "and go on"
            )
        self._revision += 1
        return self._revision

    def __len__(self) -> int:
        return len(self._infos)

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self._infos)

    def __repr__(self) -> str:
        return f"<pccl.SharedState of {len(self)} tensors at revision {self.revision}>"

    def open(self) -> OpenState:
        """The state for one sync. ValueError if its tensors are no longer those that it was made of."""
        if not isinstance(self._source, Sequence):
            self._refresh()
        return OpenState(self)

    def _refresh(self) -> None:
        """Take what the mapping, or the function, has under the names now."""
        tensors = _mapping_of(self._source)
        mine = {info.name for info in self._infos}
        changes = [f"{name!r} is missing" for name in mine - set(tensors)]
        changes += [f"{name!r} is new" for name in tensors if name not in mine]
        if changes:
            raise ValueError(
                "the tensors of the shared state are not those that it was made of: "
                f"{', '.join(sorted(changes))}; make a new SharedState, at all peers"
            )
        for info in self._infos:
            info._array = tensors[info.name]


class OpenState:
    """A shared state during one sync: the memory of its tensors is held, and C knows their addresses."""

    def __init__(self, state: SharedState) -> None:
        self._state = state
        self._infos = list(state)
        self._places = _each(self._infos, lambda info: info.look())
        self._items = ffi.new("pcclTensorInfo_t[]", len(self._infos))
        for item, info, place in zip(self._items, self._infos, self._places, strict=True):
            info.fill(item, place)
        self.pointer = ffi.new(
            "pcclSharedState_t *",
            {"revision": state.revision, "count": len(self._infos), "infos": self._items},
        )

    def close(self) -> None:
        """After a sync that succeeded. ValueError if a tensor was given other memory meanwhile."""
        self._state.revision = self.pointer.revision
        moved = [
            info.name
            for info, place in zip(self._infos, self._places, strict=True)
            if info.look().address != place.address
        ]
        if moved:
            raise ValueError(
                f"tensor {', '.join(map(repr, moved))} got other memory while it was synchronised, so it "
                "does not hold the elected values: leave tensors alone until sync_shared_state() has returned"
            )


def _mapping_of(source: Any) -> Mapping[str, Any]:
    tensors = source() if callable(source) else source
    if not isinstance(tensors, Mapping):
        raise TypeError(
            "the function of a shared state must return a dict of names and tensors, not "
            f"{type(tensors).__name__}"
        )
    return tensors


def _list_infos(source: Any) -> list[TensorInfo]:
    if hasattr(source, "named_parameters"):
        raise TypeError(
            f"a shared state {advice_for(source, 'of tensors')}".replace("of tensors is", "can't be")
        )
    if isinstance(source, Mapping) or (callable(source) and not hasattr(source, "__array__")):
        tensors = _mapping_of(source)
        return _each(tensors.items(), lambda item: TensorInfo.from_numpy(item[1], item[0]))
    if not isinstance(source, Iterable) or hasattr(source, "__array__"):
        raise TypeError(
            "a shared state is made of a dict of names and tensors, a function that returns one, or a list "
            f"of TensorInfo, not {type(source).__name__}"
        )
    infos = list(source)
    for info in infos:
        if not isinstance(info, TensorInfo):
            raise TypeError(
                f"a list for a shared state consists of TensorInfo, not {type(info).__name__}: pass a dict "
                "of names and tensors, or TensorInfo.from_torch(tensor, name)"
            )
    return infos


def _each(items: Iterable[Item], make: Callable[[Item], Made]) -> list[Made]:
    """make() of each; one error that lists all that can't be."""
    made: list[Made] = []
    errors: list[TypeError | ValueError] = []
    for item in items:
        try:
            made.append(make(item))
        except (TypeError, ValueError) as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = TypeError if all(isinstance(error, TypeError) for error in errors) else ValueError
        lines = "".join(f"\n  {error}" for error in errors)
        raise kind(f"{len(errors)} tensors of the shared state can't be synchronised:{lines}")
    return made


Progress = Callable[[SharedStateSyncProgress], object]


def progress_from_c(progress: Any) -> SharedStateSyncProgress:
    """What C tells of a sync."""
    return SharedStateSyncProgress(SyncPhase(progress.phase), progress.done_bytes, progress.total_bytes)
