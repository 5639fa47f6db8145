"""Where elements lie: every kind of array is taken as it is or refused with a cure, and never copied."""

import array
import ctypes
import mmap
import subprocess
import sys
import weakref

import numpy
import pytest

from pccl import DataType
from pccl._arrays import memory_of, memory_pair

DTYPES = ["u1", "i1", "i2", "u2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


class OnlyDLPack:
    """An array that has nothing but DLPack: torch's or NumPy's, without its other faces."""

    def __init__(self, inner, *, versions=True, device=None) -> None:
        self._inner, self._versions, self._device = inner, versions, device

    def __dlpack_device__(self):
        return self._device or self._inner.__dlpack_device__()

    def __dlpack__(self, **options):
        if options and not self._versions:
            raise TypeError("unexpected keyword argument")
        return self._inner.__dlpack__(**options)


# --- NumPy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_numpy_array_is_found_where_it_lies(dtype) -> None:
    values = numpy.arange(24, dtype=dtype).reshape(2, 3, 4)
    memory = memory_of(values, "send", writable=True)
    assert memory.address == values.ctypes.data
    assert memory.count == 24
    assert memory.datatype.to_numpy_dtype() == values.dtype
    assert memory.owner is values


def test_a_subclass_of_a_numpy_array_is_found_where_it_lies() -> None:
    class Named(numpy.ndarray):
        name = "weights"

    values = numpy.arange(24, dtype="f4").view(Named)
    for array_of_either in (values, numpy.asarray(values), values):
        memory = memory_of(array_of_either, "send", writable=True)
        assert (memory.address, memory.count) == (values.ctypes.data, 24)


def test_only_the_owner_holds_a_numpy_array() -> None:
    values = numpy.arange(3.0)
    watched = weakref.ref(values)
    memory = memory_of(values, "send", writable=True)
    del values
    assert watched() is not None
    memory.owner = None
    assert watched() is None


def test_bfloat16_of_ml_dtypes_is_taken() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = numpy.zeros(5, dtype=ml_dtypes.bfloat16)
    memory = memory_of(values, "send", writable=True)
    assert (memory.address, memory.count, memory.datatype) == (values.ctypes.data, 5, DataType.BFLOAT16)


def test_a_contiguous_part_is_taken() -> None:
    values = numpy.arange(100, dtype="f4")
    memory = memory_of(values[10:20], "send", writable=True)
    assert (memory.address, memory.count) == (values.ctypes.data + 40, 10)


@pytest.mark.parametrize(
    "strided",
    [
        numpy.zeros(10, "f4")[::2],
        numpy.zeros(10, "f4")[::-1],
        numpy.zeros((3, 4), "f4").T,
        numpy.zeros((3, 4), "f4")[:, 1:],
        numpy.broadcast_to(numpy.zeros(1, "f4"), 10),
    ],
)
def test_a_strided_array_is_refused(strided) -> None:
    with pytest.raises(ValueError, match=r"strided.*numpy.ascontiguousarray"):
        memory_of(strided, "send", writable=False)


def test_a_read_only_array_can_be_sent_but_not_written() -> None:
    values = numpy.zeros(3)
    values.flags.writeable = False
    assert memory_of(values, "send", writable=False).count == 3
    with pytest.raises(ValueError, match=r"read-only.*recv="):
        memory_of(values, "send", writable=True)


def test_foreign_byte_order_is_refused() -> None:
    with pytest.raises(ValueError, match="byte order"):
        memory_of(numpy.zeros(3, ">f4"), "send", writable=False)


@pytest.mark.parametrize("dtype", ["bool", "c8", "O", "S4", "f4,f4"])
def test_other_elements_are_refused(dtype) -> None:
    with pytest.raises(TypeError, match="cannot be reduced"):
        memory_of(numpy.zeros(3, dtype), "send", writable=False)


@pytest.mark.parametrize("empty", [numpy.zeros(0), numpy.zeros((3, 0)), bytearray()])
def test_an_empty_array_has_no_elements(empty) -> None:
    assert memory_of(empty, "send", writable=False).count == 0


# --- buffers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buffer", "datatype", "count"),
    [
        (bytearray(6), DataType.UINT8, 6),
        (array.array("h", [1, 2]), DataType.INT16, 2),
        (array.array("H", [1, 2]), DataType.UINT16, 2),
        (array.array("i", [1, 2]), DataType.INT32, 2),
        (array.array("l", [1, 2]), {4: DataType.INT32, 8: DataType.INT64}[array.array("l").itemsize], 2),
        (array.array("Q", [1]), DataType.UINT64, 1),
        (array.array("f", [1]), DataType.FLOAT, 1),
        (array.array("d", [1]), DataType.DOUBLE, 1),
        ((ctypes.c_float * 4)(), DataType.FLOAT, 4),
        ((ctypes.c_int16 * 4)(), DataType.INT16, 4),
        (memoryview(numpy.zeros(4, "f2")), DataType.FLOAT16, 4),
        (memoryview(bytearray(24)).cast("i", (2, 3)), DataType.INT32, 6),
        (mmap.mmap(-1, 16), DataType.UINT8, 16),
    ],
)
def test_a_buffer_is_found_where_it_lies(buffer, datatype, count) -> None:
    memory = memory_of(buffer, "send", writable=True)
    assert (memory.datatype, memory.count) == (datatype, count)
    size = count * datatype.itemsize
    ctypes.memset(memory.address, 0x41, size)
    assert bytes(memoryview(buffer).cast("B")) == b"A" * size


def test_the_memory_of_a_buffer_is_pinned_while_held() -> None:
    values = bytearray(10)
    memory = memory_of(values, "send", writable=True)
    with pytest.raises(BufferError):
        values.append(0)
    del memory
    values.append(0)


def test_the_memory_of_a_buffer_may_be_garbage_in_a_cycle() -> None:
    program = """
import array, gc
from pccl._arrays import memory_of

def fail() -> None:
    memory = memory_of(array.array("Q", [1]), "send", writable=True)
    try:
        raise ValueError
    except ValueError as error:
        kept = error  # refers to this frame, and so to memory

for _ in range(100):
    fail()
gc.collect()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bytes_can_be_sent_but_not_written() -> None:
    assert memory_of(b"abc", "send", writable=False).count == 3
    with pytest.raises(ValueError, match="read-only"):
        memory_of(b"abc", "recv", writable=True)


@pytest.mark.parametrize("buffer", [memoryview(bytearray(8))[::2]])
def test_a_strided_buffer_is_refused(buffer) -> None:
    with pytest.raises(ValueError, match="strided"):
        memory_of(buffer, "send", writable=False)


@pytest.mark.parametrize("code", ["c", "?"])
def test_buffers_of_other_elements_are_refused(code) -> None:
    with pytest.raises(TypeError, match="format"):
        memory_of(memoryview(bytearray(4)).cast(code), "send", writable=False)


def test_a_buffer_in_foreign_byte_order_is_refused() -> None:
    foreign = (ctypes.c_uint32.__ctype_be__ * 2)()
    with pytest.raises(ValueError, match="byte order"):
        memory_of(foreign, "send", writable=False)


@pytest.mark.parametrize("thing", [[1.0, 2.0], 3, None, "text", object()])
def test_what_is_no_array_is_a_type_error(thing) -> None:
    with pytest.raises(TypeError, match=f"not {type(thing).__name__}"):
        memory_of(thing, "send", writable=False)


# --- DLPack -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_is_found_where_it_lies(dtype) -> None:
    values = numpy.arange(24, dtype=dtype).reshape(4, 6)
    memory = memory_of(OnlyDLPack(values), "send", writable=True)
    assert memory.address == values.ctypes.data
    assert (memory.count, memory.datatype.to_numpy_dtype()) == (24, values.dtype)


def test_dlpack_holds_its_tensor() -> None:
    values = numpy.full(1000, 7.0)
    memory = memory_of(OnlyDLPack(values), "send", writable=True)
    del values
    assert (
        list(numpy.ctypeslib.as_array((ctypes.c_double * 1000).from_address(memory.address))) == [7.0] * 1000
    )


def test_strided_dlpack_is_refused() -> None:
    with pytest.raises(ValueError, match="strided"):
        memory_of(OnlyDLPack(numpy.zeros(10)[::2]), "send", writable=False)


def test_read_only_dlpack_can_be_sent_but_not_written() -> None:
    values = numpy.zeros(3)
    values.flags.writeable = False
    assert memory_of(OnlyDLPack(values), "send", writable=False).address == values.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        memory_of(OnlyDLPack(values), "send", writable=True)


def test_dlpack_before_version_1_counts_as_read_only() -> None:
    values = numpy.zeros(3)
    old = OnlyDLPack(values, versions=False)
    assert memory_of(old, "send", writable=False).address == values.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        memory_of(old, "send", writable=True)


def test_dlpack_on_a_device_is_refused() -> None:
    with pytest.raises(ValueError, match="device of DLPack type 2"):
        memory_of(OnlyDLPack(numpy.zeros(3), device=(2, 0)), "send", writable=False)


def test_dlpack_of_other_elements_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be reduced"):
        memory_of(OnlyDLPack(numpy.zeros(3, "c8")), "send", writable=False)


# --- torch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", DataType)
def test_a_torch_tensor_is_found_where_it_lies(datatype, torch) -> None:
    tensor = torch.zeros(2, 3, dtype=datatype.to_torch_dtype())
    memory = memory_of(tensor, "send", writable=True)
    assert (memory.address, memory.count, memory.datatype) == (tensor.data_ptr(), 6, datatype)
    assert memory.owner is tensor


def test_a_parameter_is_taken(torch) -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    assert memory_of(parameter, "send", writable=True).address == parameter.data_ptr()


def test_a_part_of_a_tensor_is_taken(torch) -> None:
    tensor = torch.zeros(10)
    assert memory_of(tensor[4:], "send", writable=True).address == tensor.data_ptr() + 16


def test_a_strided_tensor_is_refused(torch) -> None:
    with pytest.raises(ValueError, match=r"strided.*contiguous\(\)"):
        memory_of(torch.zeros(3, 4).T, "send", writable=False)


def test_tensors_without_memory_on_the_cpu_are_refused(torch) -> None:
    with pytest.raises(ValueError, match="is on meta"):
        memory_of(torch.zeros(3, device="meta"), "send", writable=False)
    with pytest.raises(TypeError, match="to_dense"):
        memory_of(torch.eye(3).to_sparse(), "send", writable=False)


def test_tensors_of_other_elements_are_refused(torch) -> None:
    with pytest.raises(TypeError, match="complex64"):
        memory_of(torch.zeros(3, dtype=torch.complex64), "send", writable=False)


def test_dlpack_of_torch_is_taken(torch) -> None:
    tensor = torch.zeros(3, dtype=torch.bfloat16)
    memory = memory_of(OnlyDLPack(tensor), "send", writable=False)
    assert (memory.address, memory.datatype) == (tensor.data_ptr(), DataType.BFLOAT16)


# --- pairs ------------------------------------------------------------------------------------------------


def test_without_recv_it_is_in_place() -> None:
    values = numpy.zeros(3)
    for recv in (None, values):
        source, target = memory_pair(values, recv)
        assert source is target
        assert source.address == values.ctypes.data


def test_in_place_needs_a_writable_array() -> None:
    values = numpy.zeros(3)
    values.flags.writeable = False
    with pytest.raises(ValueError, match="recv="):
        memory_pair(values, None)
    source, target = memory_pair(values, numpy.zeros(3))
    assert source.address != target.address


def test_both_must_be_alike() -> None:
    with pytest.raises(ValueError, match="float64 but recv float32"):
        memory_pair(numpy.zeros(3), numpy.zeros(3, "f4"))
    with pytest.raises(ValueError, match="3 elements but recv 4"):
        memory_pair(numpy.zeros(3), numpy.zeros(4))


def test_kinds_may_be_mixed() -> None:
    source, target = memory_pair(array.array("d", [1, 2, 3]), numpy.zeros((3, 1)))
    assert (source.count, target.count) == (3, 3)
