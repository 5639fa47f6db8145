"""The enums of the public C headers, with the same values."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

from ._native import lib

__all__ = [
    "Attribute",
    "DataType",
    "DeviceType",
    "DistributionHint",
    "QuantizationAlgorithm",
    "ReduceOp",
    "Result",
]


class Result(IntEnum):
    """How a call ended. See the comments at pcclResult_t in pccl.h for what to do about each."""

    SUCCESS = lib.pcclSuccess
    NOT_INITIALIZED = lib.pcclNotInitialized
    INTERNAL_ERROR = lib.pcclInternalError
    INVALID_ARGUMENT = lib.pcclInvalidArgument
    INVALID_USAGE = lib.pcclInvalidUsage
    TOO_FEW_PEERS = lib.pcclTooFewPeers
    MASTER_CONNECTION_FAILED = lib.pcclMasterConnectionFailed
    RANK_CONNECTION_FAILED = lib.pcclRankConnectionFailed
    RANK_CONNECTION_LOST = lib.pcclRankConnectionLost
    NO_SHARED_STATE_AVAILABLE = lib.pcclNoSharedStateAvailable
    PENDING_ASYNC_OPS = lib.pcclPendingAsyncOps
    UPDATE_TOPOLOGY_FAILED = lib.pcclUpdateTopologyFailed
    TOPOLOGY_OPTIMIZATION_FAILED = lib.pcclTopologyOptimizationFailed
    TIMEOUT = lib.pcclTimeout
    MASTER_CONNECTION_LOST = lib.pcclMasterConnectionLost
    MISMATCH = lib.pcclMismatch
    EVICTED = lib.pcclEvicted
    REFUSED = lib.pcclRefused
    OUT_OF_MEMORY = lib.pcclOutOfMemory


class ReduceOp(Enum):
    """How elements are combined. Integers wrap; AVG of integers rounds toward zero; NaN wins in MAX and MIN.

    Wherever one is wanted, its name in lower case will do: "sum", "avg", "prod", "max", "min".
    """

    SUM = lib.pcclSum
    AVG = lib.pcclAvg
    PROD = lib.pcclProd
    MAX = lib.pcclMax
    MIN = lib.pcclMin

    @classmethod
    def of(cls, op: ReduceOp | str) -> ReduceOp:
        """The op itself, or the one with that name."""
        if isinstance(op, str):
            if (named := _BY_OP_NAME.get(op.lower())) is not None:
                return named
        elif isinstance(op, cls):
            return op
        names = ", ".join(repr(member.name.lower()) for member in cls)
        if not isinstance(op, str):
            raise TypeError(f"op must be a ReduceOp or one of {names}, not {type(op).__name__}")
        raise ValueError(f"op must be a ReduceOp or one of {names}, not {op!r}")


_BY_OP_NAME = {member.name.lower(): member for member in ReduceOp}


class Attribute(Enum):
    """What Communicator.get_attribute() can tell. All count accepted peers only."""

    GLOBAL_WORLD_SIZE = lib.PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE
    PEER_GROUP_WORLD_SIZE = lib.PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE
    LOCAL_WORLD_SIZE = PEER_GROUP_WORLD_SIZE
    NUM_DISTINCT_PEER_GROUPS = lib.PCCL_ATTRIBUTE_NUM_DISTINCT_PEER_GROUPS
    LARGEST_PEER_GROUP_WORLD_SIZE = lib.PCCL_ATTRIBUTE_LARGEST_PEER_GROUP_WORLD_SIZE


class DeviceType(Enum):
    """Where a tensor lies. Only memory of the CPU is synchronised."""

    CPU = lib.pcclDeviceCpu
    CUDA = lib.pcclDeviceCuda


class DistributionHint(Enum):
    """How the elements of an operand are distributed."""

    NONE = lib.pcclDistributionNone
    NORMAL = lib.pcclDistributionNormal
    UNIFORM = lib.pcclDistributionUniform


class QuantizationAlgorithm(Enum):
    """How elements are made smaller for the wire."""

    NONE = lib.pcclQuantNone
    MIN_MAX = lib.pcclQuantMinMax
    ZERO_POINT_SCALE = lib.pcclQuantZeroPointScale


class DataType(Enum):
    """Element types."""

    UINT8 = lib.pcclUint8
    INT8 = lib.pcclInt8
    INT16 = lib.pcclInt16
    UINT16 = lib.pcclUint16
    UINT32 = lib.pcclUint32
    INT32 = lib.pcclInt32
    UINT64 = lib.pcclUint64
    INT64 = lib.pcclInt64
    FLOAT16 = lib.pcclFloat16
    BFLOAT16 = lib.pcclBFloat16
    FLOAT = lib.pcclFloat
    DOUBLE = lib.pcclDouble

    @property
    def dtype_name(self) -> str:
        """What NumPy and torch call it, such as "float32"."""
        return {"FLOAT": "float32", "DOUBLE": "float64"}.get(self.name, self.name.lower())

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int("".join(filter(str.isdigit, self.dtype_name.removeprefix("b")))) // 8

    @classmethod
    def from_dtype_name(cls, name: str) -> DataType:
        """From what NumPy and torch call it. TypeError if pccl has no such type."""
        try:
            return _BY_DTYPE_NAME[name]
        except KeyError:
            known = ", ".join(_BY_DTYPE_NAME)
            raise TypeError(f"elements of type {name} cannot be reduced; convert to one of {known}") from None

    @classmethod
    def from_numpy_dtype(cls, dtype: Any) -> DataType:
        """From a numpy.dtype, or what numpy.dtype() takes; ml_dtypes.bfloat16 too."""
        # A dtype puts its name together anew whenever asked, which takes longer than the rest of a call.
        try:
            return BY_NUMPY_DTYPE[dtype]
        except (KeyError, TypeError):
            import numpy

            dtype = numpy.dtype(dtype)
        known = BY_NUMPY_DTYPE[dtype] = cls.from_dtype_name(dtype.name)
        return known

    @classmethod
    def from_torch_dtype(cls, dtype: Any) -> DataType:
        """From a torch.dtype."""
        known = BY_TORCH_DTYPE[dtype] = cls.from_dtype_name(str(dtype).removeprefix("torch."))
        return known

    def to_numpy_dtype(self) -> Any:
        """The numpy.dtype. BFLOAT16 needs the package ml_dtypes."""
        import numpy

        if self is DataType.BFLOAT16:
            import ml_dtypes

            return numpy.dtype(ml_dtypes.bfloat16)
        return numpy.dtype(self.dtype_name)

    def to_torch_dtype(self) -> Any:
        """The torch.dtype. Imports torch."""
        import torch

        return getattr(torch, self.dtype_name)


_BY_DTYPE_NAME = {member.dtype_name: member for member in DataType}
# Those that were asked for; others are refused.
BY_NUMPY_DTYPE: dict[Any, DataType] = {}
BY_TORCH_DTYPE: dict[Any, DataType] = {}
