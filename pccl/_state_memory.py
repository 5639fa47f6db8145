"""Where the bytes of a tensor of a shared state lie. A sync only compares and copies, so it takes more than
an op that computes: element types that pccl can't reduce, tensors without elements, and memory orders other
than C order, as long as the elements leave no gaps.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._arrays import _other_memory as other_memory
from ._arrays import read_only_error
from ._enums import BY_NUMPY_DTYPE, BY_TORCH_DTYPE, DataType
from ._native import ffi
from ._owners import hold_numpy, hold_torch

__all__ = ["Place", "advice_for", "place_of"]


@dataclass(slots=True)
class Place:
    """`count` elements of `datatype` from `pointer` on, as long as `owner` is held.

    kind: what the datatype does not say, "" if it says all: an element type that is synchronised as bytes,
    the order of the dimensions in memory. It must be equal at all peers, too.
    """

    pointer: Any
    count: int
    datatype: DataType
    kind: str
    owner: object

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self.pointer))

    def __str__(self) -> str:
        kind = f" ({self.kind})" if self.kind else ""
        return f"{self.datatype.dtype_name}[{self.count}]{kind}"


def place_of(array: Any, role: str) -> Place:
    """The memory of `array`, which must be writable. `role` is what errors call it."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if isinstance(array, getattr(numpy, "ndarray", ())):
        return _numpy_place(array, role)
    if isinstance(array, getattr(torch, "Tensor", ())):
        return _torch_place(array, role)
    if (advice := advice_for(array, role)) is not None:
        raise TypeError(advice)
    memory = other_memory(array, role, True)
    return Place(memory.pointer, memory.count, memory.datatype, "", memory.owner)


def advice_for(value: Any, role: str) -> str | None:
    """What to do with a thing that holds tensors, or stands for one, and is none."""
    name = type(value).__name__
    if hasattr(value, "named_parameters"):
        return (
            f"{role} is a module ({name}): pass its state_dict function, pccl.SharedState(model.state_dict)"
        )
    if isinstance(value, Mapping) or callable(getattr(value, "state_dict", None)):
        return (
            f"{role} is a {name}, which holds tensors under names of its own: list each tensor in one flat "
            'dict, such as {"optimizer.0.exp_avg": tensor, …}'
        )
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview | str):
        if hasattr(value, "typecode"):  # an array.array
            return None
        return f"{role} is a {name}: give each tensor in it a name of its own, such as 'betas.0'"
    if isinstance(value, bool | int | float | complex | str) or value is None:
        return (
            f"{role} is a {name}, which can't be written in place: keep it in an array of one element, or "
            "leave it out"
        )
    return None


def _memory_order(shape: Sequence[int], steps: Sequence[int], role: str) -> str:
    """The dimensions from the widest step to the narrowest, "" for C order. `steps` are in elements."""
    if 0 in shape:
        return ""
    sides = [i for i, length in enumerate(shape) if length != 1]  # the step of a side of 1 means nothing
    order = sorted(sides, key=lambda i: -steps[i])
    expected = 1
    for i in reversed(order):
        if steps[i] != expected:
            raise ValueError(
                f"{role} does not fill its memory (shape {tuple(shape)}, strides {tuple(steps)}): "
                "pass a contiguous copy, and keep that one"
            )
        expected *= shape[i]
    return "" if order == sides else "dimensions in memory " + ",".join(map(str, order))


def _place(
    address: int, items: int, item_bytes: int, known: DataType | None, kinds: Sequence[str], owner: Any
) -> Place:
    count = items if known is not None else items * item_bytes
    kind = ", ".join(filter(None, kinds))
    return Place(ffi.cast("void *", address), count, known or DataType.UINT8, kind, owner)


def _numpy_place(array: Any, role: str) -> Place:
    dtype = array.dtype
    if dtype.hasobject:
        raise TypeError(f"{role} holds Python objects ({dtype}): their bytes mean nothing to another process")
    if not array.flags.writeable:
        raise read_only_error(role)
    if not dtype.isnative:
        raise ValueError(f"{role} is in foreign byte order: convert it with .astype(dtype.newbyteorder('='))")
    order = ""
    if not array.flags.c_contiguous:
        size = dtype.itemsize
        if any(step % size for step in array.strides):
            raise ValueError(f"{role} does not fill its memory: pass a contiguous copy, and keep that one")
        order = _memory_order(array.shape, [step // size for step in array.strides], role)
    known = _numpy_type(dtype)
    kinds = ("" if known else dtype.name, order)
    hold = hold_numpy(array)  # before its address: it does not move from now on
    return _place(array.ctypes.data, array.size, dtype.itemsize, known, kinds, (array, hold))


def _numpy_type(dtype: Any) -> DataType | None:
    try:
        return BY_NUMPY_DTYPE.get(dtype) or DataType.from_numpy_dtype(dtype)
    except TypeError:
        return None


def _torch_type(dtype: Any) -> DataType | None:
    try:
        return BY_TORCH_DTYPE.get(dtype) or DataType.from_torch_dtype(dtype)
    except TypeError:
        return None


def _torch_place(tensor: Any, role: str) -> Place:
    if not tensor.is_cpu:
        raise ValueError(f"{role} is on {tensor.device}: pass a CPU tensor (tensor.cpu() copies it there)")
    if hasattr(tensor, "to_local"):
        raise TypeError(f"{role} is a distributed tensor: pass its local part, tensor.to_local()")
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        kind = "a quantised tensor" if tensor.is_quantized else f"of layout {tensor.layout}"
        raise TypeError(f"{role} is {kind}: pass the dense tensors that it consists of, each with a name")
    if tensor.grad_fn is not None:
        raise ValueError(
            f"{role} is the result of a computation that autograd follows, which must not be overwritten: "
            "pass tensor.detach()"
        )
    if tensor.is_neg() or tensor.is_conj():
        raise ValueError(f"{role} is a lazy view: pass tensor.resolve_neg().resolve_conj()")
    storage: Any = hold_torch(tensor)  # before its address: it does not move from now on
    count, address = tensor.numel(), tensor.data_ptr()
    if count > 0 and address == 0:
        raise TypeError(f"{role} has no memory of its own ({type(tensor).__name__}): pass a plain tensor")
    last = tensor.storage_offset() + sum(
        (length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
    if count > 0 and (last + 1) * tensor.element_size() > storage.nbytes():
        raise ValueError(f"{role} is larger than its storage, which has been resized: give it memory first")
    order = "" if tensor.is_contiguous() else _memory_order(tensor.shape, tensor.stride(), role)
    known = _torch_type(tensor.dtype)
    kinds = ("" if known else str(tensor.dtype).removeprefix("torch."), order)
    return _place(address, count, tensor.element_size(), known, kinds, (tensor, storage))
