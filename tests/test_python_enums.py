"""Enums: names and values are part of the contract, for programs and for peers of other builds."""

import numpy
import pytest

import pccl
from pccl import (
    Attribute,
    DataType,
    DistributionHint,
    QuantizationAlgorithm,
    ReduceOp,
    Result,
)

VALUES = {
    Result: {
        "SUCCESS": 0,
        "NOT_INITIALIZED": 1,
        "INTERNAL_ERROR": 2,
        "INVALID_ARGUMENT": 3,
        "INVALID_USAGE": 4,
        "TOO_FEW_PEERS": 5,
        "MASTER_CONNECTION_FAILED": 6,
        "RANK_CONNECTION_FAILED": 7,
        "RANK_CONNECTION_LOST": 8,
        "NO_SHARED_STATE_AVAILABLE": 9,
        "PENDING_ASYNC_OPS": 10,
        "UPDATE_TOPOLOGY_FAILED": 11,
        "TOPOLOGY_OPTIMIZATION_FAILED": 12,
        "TIMEOUT": 13,
        "MASTER_CONNECTION_LOST": 14,
        "MISMATCH": 15,
        "EVICTED": 16,
        "REFUSED": 17,
        "OUT_OF_MEMORY": 18,
    },
    DataType: {
        "UINT8": 0,
        "INT8": 1,
        "INT16": 2,
        "UINT16": 3,
        "UINT32": 4,
        "INT32": 5,
        "UINT64": 6,
        "INT64": 7,
        "FLOAT16": 8,
        "BFLOAT16": 9,
        "FLOAT": 10,
        "DOUBLE": 11,
    },
    ReduceOp: {"SUM": 0, "AVG": 1, "PROD": 2, "MAX": 3, "MIN": 4},
    Attribute: {
        "GLOBAL_WORLD_SIZE": 1,
        "PEER_GROUP_WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "NUM_DISTINCT_PEER_GROUPS": 3,
        "LARGEST_PEER_GROUP_WORLD_SIZE": 4,
    },
    DistributionHint: {"NONE": 0, "NORMAL": 1, "UNIFORM": 2},
    QuantizationAlgorithm: {"NONE": 0, "MIN_MAX": 1, "ZERO_POINT_SCALE": 2},
}
NUMPY_TYPES = {
    DataType.UINT8: numpy.uint8,
    DataType.INT8: numpy.int8,
    DataType.INT16: numpy.int16,
    DataType.UINT16: numpy.uint16,
    DataType.UINT32: numpy.uint32,
    DataType.INT32: numpy.int32,
    DataType.UINT64: numpy.uint64,
    DataType.INT64: numpy.int64,
    DataType.FLOAT16: numpy.float16,
    DataType.FLOAT: numpy.float32,
    DataType.DOUBLE: numpy.float64,
}


@pytest.mark.parametrize("enum", VALUES)
def test_members_have_the_values_of_the_contract(enum) -> None:
    assert {name: member.value for name, member in enum.__members__.items()} == VALUES[enum]


@pytest.mark.parametrize(("datatype", "numpy_type"), NUMPY_TYPES.items())
def test_datatypes_are_numpy_dtypes(datatype, numpy_type) -> None:
    assert DataType.from_numpy_dtype(numpy_type) is datatype
    assert DataType.from_numpy_dtype(numpy.dtype(numpy_type)) is datatype
    assert datatype.to_numpy_dtype() == numpy.dtype(numpy_type)
    assert datatype.itemsize == numpy.dtype(numpy_type).itemsize


def test_bfloat16_is_that_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert DataType.from_numpy_dtype(numpy.dtype(ml_dtypes.bfloat16)) is DataType.BFLOAT16
    assert DataType.BFLOAT16.to_numpy_dtype() == ml_dtypes.bfloat16
    assert DataType.BFLOAT16.itemsize == 2


@pytest.mark.parametrize("datatype", DataType)
def test_datatypes_are_torch_dtypes(datatype, torch) -> None:
    dtype = datatype.to_torch_dtype()
    assert DataType.from_torch_dtype(dtype) is datatype
    assert dtype.itemsize == datatype.itemsize


@pytest.mark.parametrize("dtype", ["bool", "complex64", "object", "U3", "datetime64[s]"])
def test_other_dtypes_are_type_errors(dtype) -> None:
    with pytest.raises(TypeError, match="cannot be reduced; convert to one of"):
        DataType.from_numpy_dtype(dtype)


@pytest.mark.parametrize("op", ReduceOp)
def test_ops_have_names(op) -> None:
    assert ReduceOp.of(op) is op
    assert ReduceOp.of(op.name.lower()) is op


def test_other_names_of_ops_are_refused() -> None:
    with pytest.raises(ValueError, match="'mean'"):
        ReduceOp.of("mean")
    with pytest.raises(TypeError, match="not int"):
        ReduceOp.of(0)  # type: ignore[arg-type]


def test_this_build_has_no_cuda() -> None:
    assert pccl.cuda.is_available() is False
