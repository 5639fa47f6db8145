"""Python objects over the collectives: MessagePack, never pickle.

The sizes go first and then the bytes, so that all peers find an object too large at the same time. What has
come from another peer is checked before memory is taken for it: no size beyond the limit, and no MessagePack
length that its bytes do not bear out. Decoded, it takes at most about a hundred times the bytes.
"""

from __future__ import annotations

import math
import secrets
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack

from ._enums import Result
from ._errors import PeerLostError

if TYPE_CHECKING:
    from ._collectives import Collectives

__all__ = ["GATHERED_BYTES", "OBJECT_BYTES", "all_gather", "attempt", "broadcast", "decode", "encode"]

OBJECT_BYTES = 16 << 20  # of one object, encoded
GATHERED_BYTES = 64 << 20  # of world size times the largest object
_HEADER_BYTES = 8

T = TypeVar("T")


# --- bytes ------------------------------------------------------------------------------------------------


def _other_type(value: Any) -> Any:
    """What the packer calls for a type that MessagePack does not have."""
    if type(value) is tuple:
        return list(value)
    if type(value) is int:
        raise ValueError(f"the integer {value:.20g} has more than 64 bits, which MessagePack cannot carry")
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    advice = (
        "pass its .item() or .tolist(), or send the array itself with broadcast() or all_gather()"
        if name.startswith(("numpy.", "torch.", "ml_dtypes."))
        else "pass None, bool, int, float, str, bytes, and lists and dicts of these"
    )
    raise TypeError(f"an object of type {name} cannot be sent: {advice}")


def encode(value: Any) -> bytes:
    """TypeError or ValueError for what would not come out as it should at the others."""
    try:
        data = bytes(msgpack.packb(value, default=_other_type, strict_types=True))
    except (OverflowError, BufferError) as error:
        raise ValueError(f"this object cannot be sent: {error}") from error
    if len(data) <= OBJECT_BYTES:
        _check(data)
    return data


def _check(data: bytes) -> None:
    """Extension types and dict keys that nobody could take apart are the sender's mistake."""
    try:
        decode(data)
    except ValueError as error:
        if isinstance(error.__cause__, TypeError):  # unhashable
            raise TypeError(
                "a dict with a key of type list or tuple cannot be sent: keys must be None, bool, int, "
                "float, str or bytes"
            ) from error
        raise


def decode(data: bytes | bytearray | memoryview) -> Any:
    """ValueError unless it is one object and nothing else."""
    try:
        # Without building anything: afterwards every length that is claimed is known to be there.
        unpacker = msgpack.Unpacker(max_buffer_size=max(1, len(data)))  # 0 would mean much
        unpacker.feed(data)
        unpacker.skip()
        if unpacker.tell() != len(data):
            raise ValueError(f"{len(data) - unpacker.tell()} bytes follow it")
        return msgpack.unpackb(
            data,
            strict_map_key=False,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=len(data),
            max_map_len=len(data),
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(
            f"{len(data)} bytes of MessagePack are no object that can be sent (nor are extension types): "
            f"{str(error) or repr(error)}"
        ) from error


# --- peers ------------------------------------------------------------------------------------------------


def attempt(function: Callable[[float | None], T], may_retry: Callable[[], bool], timeout: float | None) -> T:
    """function(seconds left), again after each loss of a peer as long as may_retry() says so."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    left = timeout
    while True:
        try:
            return function(left)
        except PeerLostError:
            if time.monotonic() >= deadline or not may_retry():
                raise
        left = _left(deadline)


def _left(deadline: float) -> float | None:
    return None if deadline == math.inf else max(0.001, deadline - time.monotonic())


def _deadline(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout


def _refuse_large(size: int, rank: int) -> None:
    if size > OBJECT_BYTES:
        raise ValueError(
            f"the object of rank {rank} has {size} bytes as MessagePack, and may have {OBJECT_BYTES}: send "
            "large data as arrays, with broadcast() or all_gather()"
        )


def broadcast(
    communicator: Collectives, data: bytes | None, root: int, tag: int, timeout: float | None
) -> Any:
    """`data` is None at those who are not the root."""
    deadline = _deadline(timeout)
    # Ranks may change between this peer's look at its own and the ops, or between the two ops. Then somebody
    # else is the root, who has no object, and does not know the mark.
    mark = secrets.randbits(64) | 1
    announced = array("Q", [0, 0] if data is None else [len(data), mark])
    communicator.broadcast(announced, root, tag=tag, timeout=timeout)
    size, mark = announced
    if size == 0 or mark == 0:
        raise _ranks_changed()
    _refuse_large(size, root)
    expected = mark.to_bytes(_HEADER_BYTES, "little")
    buffer = bytearray(_HEADER_BYTES + size) if data is None else bytearray(expected + data)
    if len(buffer) != _HEADER_BYTES + size:  # another object than this peer's own was announced
        buffer = bytearray(_HEADER_BYTES + size)
    communicator.broadcast(buffer, root, tag=tag, timeout=_left(deadline))
    if buffer[:_HEADER_BYTES] != expected:
        raise _ranks_changed()
    return decode(memoryview(buffer)[_HEADER_BYTES:])


def _ranks_changed() -> PeerLostError:
    return PeerLostError(
        Result.RANK_CONNECTION_LOST,
        "ranks have changed during the broadcast: choose the root anew, and call again",
    )


def all_gather(communicator: Collectives, data: bytes, tag: int, timeout: float | None) -> list[Any]:
    deadline = _deadline(timeout)
    world = communicator._place()[0]
    sizes = array("Q", bytes(8 * world))
    communicator.all_gather(array("Q", [len(data)]), sizes, tag=tag, timeout=timeout)
    largest = max(sizes)
    _refuse_large(largest, sizes.index(largest))
    part = _HEADER_BYTES + largest
    if part * world > GATHERED_BYTES:
        raise ValueError(
            f"the objects of {world} peers take {part * world} bytes, since that of rank "
            f"{sizes.index(largest)} has {largest} as MessagePack, and may take {GATHERED_BYTES}: send large "
            "data as arrays, with all_gather()"
        )
    # Each part tells its own size: ranks may have changed since the sizes were gathered.
    send = bytearray(len(data).to_bytes(_HEADER_BYTES, "little") + data).ljust(part, b"\0")
    recv = bytearray(part * world)
    communicator.all_gather(send, recv, tag=tag, timeout=_left(deadline))
    return [_decode_part(memoryview(recv)[i * part : (i + 1) * part], i) for i in range(world)]


def _decode_part(part: memoryview, rank: int) -> Any:
    size = int.from_bytes(part[:_HEADER_BYTES], "little")
    if size > len(part) - _HEADER_BYTES:
        raise ValueError(f"rank {rank} says that its object has {size} bytes, of {len(part) - _HEADER_BYTES}")
    return decode(part[_HEADER_BYTES : _HEADER_BYTES + size])
