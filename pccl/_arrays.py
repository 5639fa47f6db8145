"""Where the elements of an array lie in memory. Nothing here copies.

Takes NumPy arrays (ml_dtypes.bfloat16 too), torch CPU tensors, anything with the buffer protocol, and
anything with DLPack on the CPU. Array libraries are looked up among the modules that are imported already:
an array of a library that nobody has imported cannot have come here.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._enums import BY_NUMPY_DTYPE, BY_TORCH_DTYPE, DataType
from ._native import ffi
from ._owners import hold_numpy, hold_torch

__all__ = ["Memory", "gather_memory", "memory_of", "memory_pair", "scatter_memory"]


@dataclass(slots=True)
class Memory:
    """`count` elements from `pointer` (a void *) on, which stay there as long as `owner` and `hold` are kept
    (_owners.py)."""

    pointer: Any
    count: int
    datatype: DataType
    owner: object
    hold: object = None
    looks_anew: Callable[[], int] | None = None  # the address as it is then, of an owner that can get another

    @property
    def address(self) -> int:
        return int(ffi.cast("uintptr_t", self.pointer))

    def place_in(self, whole: Memory) -> int | None:
        """Which of the parts of this size it is, if it lies in the whole."""
        distance = self.address - whole.address
        if not 0 <= distance < whole.count * whole.datatype.itemsize:
            return None
        return distance // (self.count * self.datatype.itemsize)


def memory_of(array: Any, role: str, *, writable: bool) -> Memory:
    """The memory of `array`. `role` is what errors call it."""
    look = _LOOKS.get(type(array)) or _look_for(array)
    return look(array, role, writable)


_Look = Callable[[Any, str, bool], Memory]
_LOOKS: dict[type, _Look] = {}  # for the classes themselves; an object of a subclass is looked at anew


def _look_for(array: Any) -> _Look:
    """The one of the functions below that takes such an array."""
    looks: tuple[tuple[str, str, _Look], ...] = (
        ("numpy", "ndarray", _numpy_memory),
        ("torch", "Tensor", _torch_memory),
    )
    for module_name, class_name, look in looks:
        module = sys.modules.get(module_name)
        # A module that is being imported in another thread may lack its classes yet.
        array_class = getattr(module, class_name, None)
        if array_class is not None and isinstance(array, array_class):
            if type(array) is array_class:
                _LOOKS[array_class] = look
            return look
    return _other_memory


def memory_pair(send: Any, recv: Any) -> tuple[Memory, Memory]:
    """The memory of both arrays of an op; `recv` None or `send` itself is in place."""
    if recv is None or recv is send:
        both = memory_of(send, "send (which is also the result, as recv is not given)", writable=True)
        return both, both
    source = memory_of(send, "send", writable=False)
    target = memory_of(recv, "recv", writable=True)
    _check_types(source, target)
    if source.count != target.count:
        raise ValueError(
            f"send has {source.count} elements but recv {target.count}: both must have the same number"
        )
    return source, target


def _check_types(source: Memory, target: Memory) -> None:
    if source.datatype is not target.datatype:
        raise ValueError(
            f"send holds {source.datatype.dtype_name} but recv {target.datatype.dtype_name}: "
            "both must have one element type"
        )


def gather_memory(send: Any, recv: Any, world_size: Callable[[], int]) -> tuple[Memory, Memory, Any, int]:
    """The memory of both arrays of an all-gather, recv or the array allocated for it, and how many peers that
    is for: whoever allocated it knew a world size, which may be that of an earlier epoch."""
    source = memory_of(send, "send", writable=False)
    if recv is None:
        recv = _new_like(send, (world_size(), *(_shape(send) or ())))
    target = memory_of(recv, "recv", writable=True)
    _check_types(source, target)
    return source, target, recv, _parts(recv, target, "recv", send, source, "send", world_size)


def scatter_memory(send: Any, recv: Any, world_size: Callable[[], int]) -> tuple[Memory, Memory, Any, int]:
    """As gather_memory(), of a reduce-scatter."""
    source = memory_of(send, "send", writable=False)
    if recv is None:
        recv = _new_like(send, _part_shape(send, world_size()))
    target = memory_of(recv, "recv", writable=True)
    _check_types(source, target)
    return source, target, recv, _parts(send, source, "send", recv, target, "recv", world_size)


def _shape(array: Any) -> tuple[int, ...] | None:
    shape = getattr(array, "shape", None)
    return None if shape is None else tuple(shape)


def _part_shape(send: Any, world: int) -> tuple[int, ...]:
    shape = _shape(send)
    if shape is None or len(shape) > 1:
        return () if shape is None else shape[1:]
    count = shape[0] if shape else 1
    if count % world != 0:
        raise ValueError(f"send has {count} elements, which cannot be dealt out evenly to {world} peers")
    return (count // world,)


def _parts(
    whole: Any,
    large: Memory,
    whole_role: str,
    part: Any,
    small: Memory,
    part_role: str,
    world_size: Callable[[], int],
) -> int:
    """How many parts fill the whole: its shape is (parts, *part.shape), or one of the two is flat."""
    if large.count == small.count == 0:
        shape = _shape(whole)
        return world_size() if shape is None or len(shape) == 1 else shape[0]  # a flat one does not tell
    parts, rest = divmod(large.count, small.count) if small.count > 0 else (0, 0)
    if rest != 0 or parts == 0:
        raise ValueError(
            f"{whole_role} has {large.count} elements and {part_role} {small.count}: {whole_role} must have "
            "world size times as many"
        )
    whole_shape, part_shape = _shape(whole), _shape(part)
    if whole_shape is None or part_shape is None or len(whole_shape) == 1:
        return parts
    fits = whole_shape[0] == parts and (len(part_shape) == 1 or whole_shape[1:] == part_shape)
    if not fits:
        raise ValueError(
            f"{whole_role} has shape {whole_shape} and {part_role} {part_shape}: {whole_role} must be of "
            f"shape {(parts, *part_shape)} or ({large.count},)"
        )
    return parts


def _new_like(array: Any, shape: tuple[int, ...]) -> Any:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(array, numpy.ndarray):
        return numpy.empty(shape, array.dtype)
    if torch is not None and isinstance(array, torch.Tensor):
        return array.new_empty(shape)
    raise TypeError(
        f"a {type(array).__name__} says nothing of how to make another one for the result: pass one as recv="
    )


def strided_error(role: str, cure: str) -> ValueError:
    return ValueError(f"{role} is strided: its elements must lie next to each other in C order; pass {cure}")


def read_only_error(role: str) -> ValueError:
    cure = "pass a writable array as recv=" if role.startswith("send") else "pass one that is writable"
    return ValueError(f"{role} is read-only: {cure}")


def _numpy_memory(array: Any, role: str, writable: bool) -> Memory:
    flags = array.flags
    if not flags.c_contiguous:
        raise strided_error(role, "numpy.ascontiguousarray(...), and copy a result back yourself")
    if writable and not flags.writeable:
        raise read_only_error(role)
    dtype = array.dtype
    datatype = BY_NUMPY_DTYPE.get(dtype) or DataType.from_numpy_dtype(dtype)
    if not dtype.isnative:
        raise ValueError(f"{role} is in foreign byte order: convert it with .astype(dtype.newbyteorder('='))")
    # Before its address is taken: it does not move from now on. (Calls are few where ops are small.)
    hold = weakref.ref(array) if array.base is None else hold_numpy(array)
    pointer = ffi.cast("void *", ffi.from_buffer(array))  # the buffer is let go of at once: nothing is locked
    return Memory(pointer, array.size, datatype, array, hold)


def _torch_memory(tensor: Any, role: str, writable: bool) -> Memory:
    if not tensor.is_cpu:
        raise ValueError(f"{role} is on {tensor.device}: pass a CPU tensor (tensor.cpu() copies it there)")
    if hasattr(tensor, "to_local"):
        raise TypeError(f"{role} is a distributed tensor: pass its local part, tensor.to_local()")
    if str(tensor.layout) != "torch.strided":
        raise TypeError(f"{role} has layout {tensor.layout}: pass a dense tensor (tensor.to_dense() copies)")
    dtype = tensor.dtype
    datatype = BY_TORCH_DTYPE.get(dtype) or DataType.from_torch_dtype(dtype)
    if not tensor.is_contiguous():
        raise strided_error(role, "tensor.contiguous(), and copy a result back yourself")
    if tensor.is_neg():
        raise ValueError(f"{role} is a lazily negated view: pass tensor.resolve_neg()")
    if tensor.requires_grad and not tensor.is_leaf:
        raise ValueError(
            f"{role} is part of an autograd graph, which would not notice the op: pass its values, "
            "tensor.detach(), or the .grad of a parameter"
        )
    if tensor.numel() > 0 and tensor.data_ptr() == 0:
        raise TypeError(f"{role} has no memory of its own ({type(tensor).__name__}): pass a plain tensor")
    storage = tensor.untyped_storage()
    if storage.resizable():
        hold_torch(tensor)  # before its address is taken: it does not move from now on
    data_ptr = tensor.data_ptr
    return Memory(ffi.cast("void *", data_ptr()), tensor.numel(), datatype, tensor, storage, data_ptr)


def _other_memory(array: Any, role: str, writable: bool) -> Memory:
    try:
        view = memoryview(array)
    except (TypeError, BufferError, ValueError):
        view = None
    if view is not None:
        return _buffer_memory(view, role, writable)
    if hasattr(array, "__dlpack__"):
        from ._dlpack import dlpack_memory

        return dlpack_memory(array, role, writable)
    raise TypeError(
        f"{role} must be a NumPy array, a torch CPU tensor, or an object with a buffer or DLPack on the CPU, "
        f"not {type(array).__name__}"
    )


# What struct's format characters mean; the size is taken from the view itself.
_FORMAT_KINDS = {
    **dict.fromkeys("bhilqn", "int"),
    **dict.fromkeys("BHILQN", "uint"),
    **dict.fromkeys("efd", "float"),
}


def _buffer_memory(view: memoryview, role: str, writable: bool) -> Memory:
    if not view.c_contiguous:
        raise strided_error(role, "a copy")
    if writable and view.readonly:
        raise read_only_error(role)
    order, code = (
        (view.format[0], view.format[1:]) if view.format[:1] in tuple("@=<>!") else ("@", view.format)
    )
    if code not in _FORMAT_KINDS:
        raise TypeError(f"{role} has elements of format {view.format!r}, which cannot be reduced")
    if view.itemsize > 1 and order in (">!" if sys.byteorder == "little" else "<"):
        raise ValueError(f"{role} is in foreign byte order ({view.format!r})")
    datatype = DataType.from_dtype_name(f"{_FORMAT_KINDS[code]}{view.itemsize * 8}")
    # The view pins the memory. What from_buffer() returns must not be held as well: it would lock the view,
    # and the interpreter crashes when both are garbage in one cycle, such as that of a kept exception.
    pointer = ffi.cast("void *", ffi.from_buffer(view))
    return Memory(pointer, view.nbytes // view.itemsize, datatype, view)
