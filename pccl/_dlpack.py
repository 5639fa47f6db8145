"""The memory behind a DLPack capsule. Layout: dlpack.h, version 1 and the unversioned one before it.

The capsule is kept but never consumed, so that it remains the owner and frees the tensor when it goes.
"""

from __future__ import annotations

import ctypes
from typing import Any

from ._arrays import Memory, read_only_error, strided_error
from ._enums import DataType
from ._native import ffi

__all__ = ["dlpack_memory"]

_CPU = 1
_READ_ONLY = 1
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def dlpack_memory(array: Any, role: str, writable: bool) -> Memory:
    """The memory of an object with __dlpack__."""
    device_type = int(array.__dlpack_device__()[0])
    if device_type != _CPU:
        raise ValueError(f"{role} is on a device of DLPack type {device_type}: pass an array on the CPU")
    capsule = _capsule(array)
    tensor, read_only = _open(capsule)
    if tensor.device_type != _CPU:
        raise ValueError(
            f"{role} is on a device of DLPack type {tensor.device_type}: pass an array on the CPU"
        )
    if tensor.lanes != 1 or tensor.code not in _KINDS:
        raise TypeError(f"{role} has elements of DLPack type {tensor.code}, which cannot be reduced")
    datatype = DataType.from_dtype_name(f"{_KINDS[tensor.code]}{tensor.bits}")
    shape = [tensor.shape[i] for i in range(tensor.ndim)]
    if tensor.strides and not _in_c_order(shape, [tensor.strides[i] for i in range(tensor.ndim)]):
        raise strided_error(role, "a copy in C order")
    if writable and read_only:
        raise read_only_error(role)
    count = 1
    for length in shape:
        count *= length
    pointer = ffi.cast("void *", (tensor.data or 0) + tensor.byte_offset)
    return Memory(pointer, count, datatype, (capsule, array))


def _capsule(array: Any) -> Any:
    try:
        return array.__dlpack__(max_version=(1, 0), copy=False)
    except TypeError:  # its producer knows the protocol before version 1
        return array.__dlpack__()


def _open(capsule: Any) -> tuple[_Tensor, bool]:
    """The tensor in the capsule, and whether it must not be written. The unversioned form cannot say, and
    arrays that are constant by design (JAX) come in it: so it counts as read-only."""
    get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    try:
        address = get_pointer(capsule, b"dltensor_versioned")
    except ValueError:
        return _Tensor.from_address(get_pointer(capsule, b"dltensor")), True
    versioned = _Versioned.from_address(address)
    if versioned.major != 1:
        raise TypeError(f"DLPack version {versioned.major}.{versioned.minor} is not known; known is 1")
    return versioned.tensor, bool(versioned.flags & _READ_ONLY)


def _in_c_order(shape: list[int], strides: list[int]) -> bool:
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
