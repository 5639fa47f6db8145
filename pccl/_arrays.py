"""Where the elements of an array lie in memory. Nothing here copies.

Takes NumPy arrays (ml_dtypes.bfloat16 too), torch CPU tensors, anything with the buffer protocol, and
anything with DLPack on the CPU. Array libraries are looked up among the modules that are imported already:
an array of a library that nobody has imported cannot have come here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ._enums import DataType
from ._native import ffi

__all__ = ["Memory", "memory_of", "memory_pair"]


@dataclass(frozen=True)
class Memory:
    """`count` elements from `address` on, valid as long as `owner` is held."""

    address: int
    count: int
    datatype: DataType
    owner: object

    @property
    def pointer(self) -> Any:
        return ffi.cast("void *", self.address)


def memory_of(array: Any, role: str, *, writable: bool) -> Memory:
    """The memory of `array`. `role` is what errors call it."""
    for module_name, class_name, look in (
        ("numpy", "ndarray", _numpy_memory),
        ("torch", "Tensor", _torch_memory),
    ):
        module = sys.modules.get(module_name)
        # A module that is being imported in another thread may lack its classes yet.
        array_class = getattr(module, class_name, None)
        if array_class is not None and isinstance(array, array_class):
            memory = look(array, role, writable)
            break
    else:
        memory = _other_memory(array, role, writable)
    if memory.count == 0:
        raise ValueError(f"{role} is empty: it must have at least one element")
    return memory


def memory_pair(send: Any, recv: Any) -> tuple[Memory, Memory]:
    """The memory of both arrays of an op; `recv` None or `send` itself is in place."""
    if recv is None or recv is send:
        both = memory_of(send, "send (which is also the result, as recv is not given)", writable=True)
        return both, both
    source = memory_of(send, "send", writable=False)
    target = memory_of(recv, "recv", writable=True)
    if source.datatype is not target.datatype:
        raise ValueError(
            f"send holds {source.datatype.dtype_name} but recv {target.datatype.dtype_name}: "
            "both must have one element type"
        )
    if source.count != target.count:
        raise ValueError(
            f"send has {source.count} elements but recv {target.count}: both must have the same number"
        )
    return source, target


def strided_error(role: str, cure: str) -> ValueError:
    return ValueError(f"{role} is strided: its elements must lie next to each other in C order; pass {cure}")


def read_only_error(role: str) -> ValueError:
    cure = "pass a writable array as recv=" if role.startswith("send") else "pass one that is writable"
    return ValueError(f"{role} is read-only: {cure}")


def _numpy_memory(array: Any, role: str, writable: bool) -> Memory:
    if not array.flags.c_contiguous:
        raise strided_error(role, "numpy.ascontiguousarray(...), and copy a result back yourself")
    if writable and not array.flags.writeable:
        raise read_only_error(role)
    datatype = DataType.from_numpy_dtype(array.dtype)
    if not array.dtype.isnative:
        raise ValueError(f"{role} is in foreign byte order: convert it with .astype(dtype.newbyteorder('='))")
    return Memory(array.__array_interface__["data"][0], array.size, datatype, array)


def _torch_memory(tensor: Any, role: str, writable: bool) -> Memory:
    if tensor.device.type != "cpu":
        raise ValueError(f"{role} is on {tensor.device}: pass a CPU tensor (tensor.cpu() copies it there)")
    if hasattr(tensor, "to_local"):
        raise TypeError(f"{role} is a distributed tensor: pass its local part, tensor.to_local()")
    if str(tensor.layout) != "torch.strided":
        raise TypeError(f"{role} has layout {tensor.layout}: pass a dense tensor (tensor.to_dense() copies)")
    datatype = DataType.from_torch_dtype(tensor.dtype)
    if not tensor.is_contiguous():
        raise strided_error(role, "tensor.contiguous(), and copy a result back yourself")
    if tensor.is_neg():
        raise ValueError(f"{role} is a lazily negated view: pass tensor.resolve_neg()")
    if tensor.numel() > 0 and tensor.data_ptr() == 0:
        raise TypeError(f"{role} has no memory of its own ({type(tensor).__name__}): pass a plain tensor")
    return Memory(tensor.data_ptr(), tensor.numel(), datatype, tensor)


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
    memory = ffi.from_buffer(view)
    return Memory(int(ffi.cast("uintptr_t", memory)), view.nbytes // view.itemsize, datatype, memory)
