"""csrc/data/datatype.c: sizes and names of element types and reduce operations."""

import pytest
from native import PUBLIC_HEADERS, load

ffi, lib = load(*PUBLIC_HEADERS, "data/datatype.h")

DATATYPES = {
    lib.pcclUint8: ("uint8", 1),
    lib.pcclInt8: ("int8", 1),
    lib.pcclInt16: ("int16", 2),
    lib.pcclUint16: ("uint16", 2),
    lib.pcclUint32: ("uint32", 4),
    lib.pcclInt32: ("int32", 4),
    lib.pcclUint64: ("uint64", 8),
    lib.pcclInt64: ("int64", 8),
    lib.pcclFloat16: ("float16", 2),
    lib.pcclBFloat16: ("bfloat16", 2),
    lib.pcclFloat: ("float32", 4),
    lib.pcclDouble: ("float64", 8),
}
REDUCE_OPS = {
    lib.pcclSum: "sum",
    lib.pcclAvg: "avg",
    lib.pcclProd: "prod",
    lib.pcclMax: "max",
    lib.pcclMin: "min",
}


def test_values_are_those_of_the_public_interface():
    assert list(DATATYPES) == list(range(12))
    assert list(REDUCE_OPS) == list(range(5))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_datatype_has_its_name_and_size(datatype):
    name, size = DATATYPES[datatype]
    assert lib.datatype_valid(datatype)
    assert ffi.string(lib.datatype_name(datatype)).decode() == name
    assert lib.datatype_bytes(datatype) == size


@pytest.mark.parametrize("op", REDUCE_OPS)
def test_reduce_op_has_its_name(op):
    assert lib.reduce_op_valid(op)
    assert ffi.string(lib.reduce_op_name(op)).decode() == REDUCE_OPS[op]


@pytest.mark.parametrize("value", [-(2**31), -1, 12, 13, 255, 256, 2**31 - 1])
def test_other_datatypes_are_invalid(value):
    assert not lib.datatype_valid(value)
    if 0 <= value <= 255:
        assert ffi.string(lib.datatype_name(value)) == b"?"
        assert lib.datatype_bytes(value) == 0


@pytest.mark.parametrize("value", [-(2**31), -1, 5, 6, 255, 256, 2**31 - 1])
def test_other_reduce_ops_are_invalid(value):
    assert not lib.reduce_op_valid(value)
    if 0 <= value <= 255:
        assert ffi.string(lib.reduce_op_name(value)) == b"?"
