"""Fault-tolerant collective communication: peers may join, leave, hang or die at any moment.

    import numpy as np
    import pccl

    with pccl.Communicator("127.0.0.1:48148") as comm:
        for step in range(100):
            gradients = np.ones(1000, dtype=np.float32)
            if comm.world_size > 1:
                comm.all_reduce(gradients, op="avg", retry=True)  # survives the loss of peers
            comm.update_topology()  # lets newcomers in: their connect() returns when ours does

Importing pccl imports neither torch nor any other array library.
"""

from . import _log as _log  # first: where lines go
from . import cuda
from ._descriptors import (
    QuantizationOptions,
    ReduceDescriptor,
    ReduceInfo,
    ReduceOpDescriptor,
    ReduceOperandDescriptor,
)
from ._enums import Attribute, DataType, DeviceType, DistributionHint, QuantizationAlgorithm, ReduceOp, Result
from ._errors import (
    EvictedError,
    InvalidArgumentError,
    MasterLostError,
    MismatchError,
    PCCLError,
    PCCLTimeoutError,
    PeerLostError,
    RefusedError,
    TooFewPeersError,
)
from ._master import MasterNode
from .communicator import AsyncReduceHandle, Communicator
from .state import (
    SharedState,
    SharedStateSyncInfo,
    SharedStateSyncProgress,
    SharedStateSyncStrategy,
    SyncPhase,
    TensorInfo,
)

__version__ = "0.1.0"

__all__ = [
    "AsyncReduceHandle",
    "Attribute",
    "Communicator",
    "DataType",
    "DeviceType",
    "DistributionHint",
    "EvictedError",
    "InvalidArgumentError",
    "MasterLostError",
    "MasterNode",
    "MismatchError",
    "PCCLError",
    "PCCLTimeoutError",
    "PeerLostError",
    "QuantizationAlgorithm",
    "QuantizationOptions",
    "ReduceDescriptor",
    "ReduceInfo",
    "ReduceOp",
    "ReduceOpDescriptor",
    "ReduceOperandDescriptor",
    "RefusedError",
    "Result",
    "SharedState",
    "SharedStateSyncInfo",
    "SharedStateSyncProgress",
    "SharedStateSyncStrategy",
    "SyncPhase",
    "TensorInfo",
    "TooFewPeersError",
    "__version__",
    "cuda",
]
