"""What an op is: plain values, and how they become C structs."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from ._arguments import whole
from ._arrays import Memory, memory_pair
from ._enums import DataType, DistributionHint, QuantizationAlgorithm, ReduceOp
from ._native import ffi, lib

__all__ = [
    "QuantizationOptions",
    "ReduceDescriptor",
    "ReduceInfo",
    "ReduceOpDescriptor",
    "ReduceOperandDescriptor",
    "algorithm_value",
    "check_tag",
    "fill_descriptor",
    "new_descriptor",
]

MAX_TAG = 2**64 - 1

_ALGORITHMS = {"auto": lib.pcclAlgorithmAuto, "ring": lib.pcclAlgorithmRing, "tree": lib.pcclAlgorithmTree}
_ALGORITHM_NAMES = {lib.pcclAlgorithmRing: "ring", lib.pcclAlgorithmTree: "tree"}


@dataclass
class ReduceInfo:
    """How an op went: the world size of the group when it was committed, bytes on the wire, and "ring" or
    "tree", whichever was used ("" for a barrier, for several ops, and for one that failed)."""

    local_world_size: int
    tx_bytes: int
    rx_bytes: int
    algorithm: str = ""

    @classmethod
    def from_c(cls, info: Any) -> ReduceInfo:
        algorithm = _ALGORITHM_NAMES.get(info.algorithm, "")
        return cls(info.local_world_size, info.tx_bytes, info.rx_bytes, algorithm)


@dataclass
class ReduceOperandDescriptor:
    """The elements of the arrays of an op."""

    datatype: DataType
    distribution_hint: DistributionHint = DistributionHint.NONE


@dataclass
class QuantizationOptions:
    """How elements are made smaller for the wire."""

    quantized_datatype: DataType = DataType.UINT8
    algorithm: QuantizationAlgorithm = QuantizationAlgorithm.MIN_MAX


@dataclass
class ReduceDescriptor:
    """One op, without its arrays. Equal at all peers of the group."""

    count: int
    op: ReduceOp | str
    tag: int
    operand_descriptor: ReduceOperandDescriptor
    quantization_options: QuantizationOptions


@dataclass
class ReduceOpDescriptor:
    """One op of all_reduce_multiple_with_retry(), with its arrays. Made by from_torch() and from_numpy(),
    which keep the arrays alive and look anew where they lie in each call, or from two addresses that the
    caller answers for."""

    sendbuf_ptr: int
    recvbuf_ptr: int
    reduce_descriptor: ReduceDescriptor
    _arrays: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def _from_arrays(cls, send: Any, recv: Any, reduce_descriptor: ReduceDescriptor) -> ReduceOpDescriptor:
        source, target = _look(send, recv, reduce_descriptor)
        return cls(source.address, target.address, reduce_descriptor, (send, recv))

    @classmethod
    def from_torch(cls, send: Any, recv: Any, reduce_descriptor: ReduceDescriptor) -> ReduceOpDescriptor:
        """For torch CPU tensors; the same tensor twice is in place."""
        return cls._from_arrays(send, recv, reduce_descriptor)

    @classmethod
    def from_numpy(cls, send: Any, recv: Any, reduce_descriptor: ReduceDescriptor) -> ReduceOpDescriptor:
        """For NumPy arrays; the same array twice is in place."""
        return cls._from_arrays(send, recv, reduce_descriptor)

    def fill(self, target: Any) -> object:
        """Write into a pcclReduceOpDescriptor_t. What is returned has to be kept while C uses it."""
        memory = None
        if self._arrays is not None:  # they may lie elsewhere than when the descriptor was made
            memory = _look(*self._arrays, self.reduce_descriptor)
            self.sendbuf_ptr, self.recvbuf_ptr = (part.address for part in memory)
        target.sendbuf = ffi.cast("void *", self.sendbuf_ptr)
        target.recvbuf = ffi.cast("void *", self.recvbuf_ptr)
        fill_descriptor(target.descriptor, self.reduce_descriptor)
        return memory


def _look(send: Any, recv: Any, descriptor: ReduceDescriptor) -> tuple[Memory, Memory]:
    source, target = memory_pair(send, recv)
    _check_operand(descriptor.operand_descriptor, source.datatype)
    if descriptor.count > source.count:
        raise ValueError(
            f"the descriptor counts {descriptor.count} elements but the arrays have {source.count}"
        )
    return source, target


def _check_operand(operand: ReduceOperandDescriptor, datatype: DataType) -> None:
    if not isinstance(operand, ReduceOperandDescriptor):
        raise TypeError(f"operand_descriptor must be a ReduceOperandDescriptor, not {type(operand).__name__}")
    if operand.datatype is not datatype:
        raise ValueError(
            f"operand_descriptor says {operand.datatype!r} but the arrays hold {datatype.dtype_name}"
        )


def new_descriptor(
    memory: Memory,
    op: ReduceOp | str,
    tag: int,
    operand: ReduceOperandDescriptor | None,
    quantization: QuantizationOptions | None,
) -> Any:
    """A pcclReduceDescriptor_t of the op over a whole array, not to be changed. TypeError or ValueError for
    what C could not take. `tag` has been checked: for the cache, True and 1 would be the same."""
    if operand is None and quantization is None:
        # _value_, since before Python 3.12 it takes several calls to get at .value.
        return _plain_descriptor(memory.count, memory.datatype._value_, ReduceOp.of(op)._value_, tag)
    if operand is None:
        operand = ReduceOperandDescriptor(memory.datatype)
    _check_operand(operand, memory.datatype)
    if quantization is None:
        quantization = QuantizationOptions(memory.datatype, QuantizationAlgorithm.NONE)
    target = ffi.new("pcclReduceDescriptor_t *")
    fill_descriptor(target, ReduceDescriptor(memory.count, op, tag, operand, quantization))
    return target


# C only reads it, and not after the call: calls of one kind, in any thread, may share it.
@functools.lru_cache(maxsize=1024)
def _plain_descriptor(count: int, datatype: int, op: int, tag: int) -> Any:
    """With no hint and no quantization, which are 0."""
    return ffi.new("pcclReduceDescriptor_t *", (count, op, tag, (datatype,)))


def check_tag(tag: SupportsIndex) -> int:
    """The tag as an int, if it can be one."""
    if type(tag) is not int:
        tag = whole(tag, "tag")
    if not 0 <= tag <= MAX_TAG:
        raise ValueError(f"tag must be from 0 to 2**64 - 1, not {tag}")
    return tag


def algorithm_value(algorithm: str) -> int:
    """The pcclAlgorithm_t of that name."""
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be a str, not {type(algorithm).__name__}")
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(map(repr, _ALGORITHMS))}, not {algorithm!r}")
    return int(_ALGORITHMS[algorithm])


def fill_descriptor(target: Any, descriptor: ReduceDescriptor) -> None:
    """Write into a pcclReduceDescriptor_t. TypeError or ValueError for what C could not take."""
    count, tag = whole(descriptor.count, "count"), check_tag(descriptor.tag)
    quantization = descriptor.quantization_options
    if not 0 <= count < 2**63:
        raise ValueError(f"count must be from 0 to 2**63 - 1, not {count}")
    if not isinstance(quantization, QuantizationOptions):
        raise TypeError(
            f"quantization_options must be QuantizationOptions, not {type(quantization).__name__}"
        )
    target.count = count
    target.op = ReduceOp.of(descriptor.op).value
    target.tag = tag
    target.src_descriptor.datatype = descriptor.operand_descriptor.datatype.value
    target.src_descriptor.distribution_hint = descriptor.operand_descriptor.distribution_hint.value
    target.quantization_options.quantized_datatype = quantization.quantized_datatype.value
    target.quantization_options.algorithm = quantization.algorithm.value
