"""csrc/data/reduce*.c against NumPy: every type, operation and level of kernels that this machine has."""

import ctypes
import platform

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native import PUBLIC_HEADERS, load

ffi, lib = load(*PUBLIC_HEADERS, "base/limits.h", "data/reduce.h")

DTYPES = {
    lib.pcclUint8: np.dtype(np.uint8),
    lib.pcclInt8: np.dtype(np.int8),
    lib.pcclInt16: np.dtype(np.int16),
    lib.pcclUint16: np.dtype(np.uint16),
    lib.pcclUint32: np.dtype(np.uint32),
    lib.pcclInt32: np.dtype(np.int32),
    lib.pcclUint64: np.dtype(np.uint64),
    lib.pcclInt64: np.dtype(np.int64),
    lib.pcclFloat16: np.dtype(np.float16),
    lib.pcclBFloat16: np.dtype(ml_dtypes.bfloat16),
    lib.pcclFloat: np.dtype(np.float32),
    lib.pcclDouble: np.dtype(np.float64),
}
FLOATS = [lib.pcclFloat16, lib.pcclBFloat16, lib.pcclFloat, lib.pcclDouble]
NAN_BITS = {
    lib.pcclFloat16: 0x7E00,
    lib.pcclBFloat16: 0x7FC0,
    lib.pcclFloat: 0x7FC00000,
    lib.pcclDouble: 0x7FF8000000000000,
}
INTEGERS = [datatype for datatype in DTYPES if datatype not in FLOATS]
OPS = {"sum": lib.pcclSum, "avg": lib.pcclAvg, "prod": lib.pcclProd, "max": lib.pcclMax, "min": lib.pcclMin}
COUNTS = [*range(10), *range(15, 130), 1000, 4099]
DIVISORS = range(1, lib.MAX_PEERS + 1)


def levels() -> list[int]:
    best = lib.reduce_best_level()
    if best == lib.REDUCE_NEON:
        return [lib.REDUCE_SCALAR, lib.REDUCE_NEON]
    return list(range(lib.REDUCE_SCALAR, best + 1))


LEVELS = levels()
LEVEL_NAMES = {lib.REDUCE_SCALAR: "scalar", lib.REDUCE_AVX2: "avx2", lib.REDUCE_AVX512: "avx512"}
LEVEL_NAMES[lib.REDUCE_NEON] = "neon"

each_level = pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES.get)
each_datatype = pytest.mark.parametrize("datatype", DTYPES, ids=lambda datatype: DTYPES[datatype].name)
each_float = pytest.mark.parametrize("datatype", FLOATS, ids=lambda datatype: DTYPES[datatype].name)
each_op = pytest.mark.parametrize("op", OPS)


def pointer(array: np.ndarray):
    return ffi.cast("void *", array.ctypes.data)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def reduce(level, datatype, op, a, b):
    out = np.empty_like(a)
    lib.reduce_at(level, datatype, OPS[op], pointer(out), pointer(a), pointer(b), a.size)
    return out


def average(level, datatype, a, b, divisor):
    out = np.empty_like(a)
    lib.reduce_average_at(level, datatype, pointer(out), pointer(a), pointer(b), divisor, a.size)
    return out


def special_values(datatype) -> np.ndarray:
    """What is special about the type, with both signs, zero included."""
    dtype = DTYPES[datatype]
    if datatype in INTEGERS:
        info = np.iinfo(dtype)
        values = {info.min, info.min + 1, info.max, info.max - 1, info.max // 2, 0, 1, 2, 3, 7}
        values |= {-1, -2, -7} if info.min < 0 else {info.max // 2 + 1}
        return np.array(sorted(values), dtype)
    info = ml_dtypes.finfo(dtype)
    positive = [
        0.0,
        1,
        1.5,
        2,
        3,
        0.1,
        1 / 3,
        info.max,
        info.smallest_normal,
        info.smallest_subnormal,
        np.inf,
    ]
    positive += [float(info.max) / 2, float(info.smallest_normal) / 2, float(info.smallest_subnormal) * 3]
    positive += [
        1 + float(info.eps),
        1 + float(info.eps) / 2,
        1 - float(info.eps) / 2,
        np.sqrt(float(info.max)),
    ]
    values = np.array(positive + [-value for value in positive], np.float64).astype(dtype)
    nans = [NAN_BITS[datatype] | 1, NAN_BITS[datatype] | 1 << (8 * dtype.itemsize - 1)]
    nans.append(int(bits(np.array([np.inf], dtype))[0]) + 1)  # the first signalling one
    nans.append(2 ** (8 * dtype.itemsize) - 1)
    return np.concatenate([values, np.array(nans, f"u{dtype.itemsize}").view(dtype)])


def pairs_of_special_values(datatype):
    values = special_values(datatype)
    a, b = np.meshgrid(values, values)
    return np.ascontiguousarray(a.ravel()), np.ascontiguousarray(b.ravel())


def random_bits(datatype, count, seed):
    dtype = DTYPES[datatype]
    return np.frombuffer(np.random.default_rng(seed).bytes(count * dtype.itemsize), dtype)


def canonical(datatype, array):
    if datatype in FLOATS:
        array = array.copy()
        bits(array)[np.isnan(array)] = NAN_BITS[datatype]
    return array


def expected_reduce(datatype, op, a, b):
    """By NumPy; 16-bit floats through float32."""
    narrow = datatype in (lib.pcclFloat16, lib.pcclBFloat16)
    x, y = (a.astype(np.float32), b.astype(np.float32)) if narrow else (a, b)
    with np.errstate(all="ignore"):
        if op in ("sum", "avg"):
            result = x + y
        elif op == "prod":
            result = x * y
        else:
            result = np.maximum(x, y) if op == "max" else np.minimum(x, y)
            if datatype in FLOATS:  # NumPy leaves open which zero it returns
                zeros = (x == 0) & (y == 0)
                negative = np.signbit(x) & np.signbit(y) if op == "max" else np.signbit(x) | np.signbit(y)
                result = np.where(zeros, np.where(negative, -0.0, 0.0).astype(x.dtype), result)
        return canonical(datatype, result.astype(a.dtype))


def expected_divide(datatype, array, divisor):
    with np.errstate(all="ignore"):
        if datatype == lib.pcclDouble:
            result = array / float(divisor)
        elif datatype in FLOATS:
            result = (array.astype(np.float32) / np.float32(divisor)).astype(array.dtype)
        else:
            wide = array.astype(np.uint64 if datatype == lib.pcclUint64 else np.int64)
            quotient, remainder = np.divmod(wide, wide.dtype.type(divisor))
            result = (quotient + ((wide < 0) & (remainder != 0))).astype(array.dtype)
    return canonical(datatype, result)


def expected_average(datatype, a, b, divisor):
    return expected_divide(datatype, expected_reduce(datatype, "avg", a, b), divisor)


def nothing_added(datatype, array):
    """What added to any element leaves it as it is, the sign of zero too."""
    return np.full_like(array, -0.0 if datatype in FLOATS else 0)


def assert_same_bits(actual, expected, *inputs):
    wrong = np.flatnonzero(bits(actual) != bits(expected))
    if wrong.size:
        first = wrong[0]
        shown = [hex(bits(array)[first]) for array in (*inputs, actual, expected)]
        raise AssertionError(
            f"{wrong.size} of {actual.size} differ, first at {first}: inputs, is, should be {shown}"
        )


@each_level
@each_op
@each_datatype
def test_special_values(level, datatype, op):
    a, b = pairs_of_special_values(datatype)
    assert_same_bits(reduce(level, datatype, op, a, b), expected_reduce(datatype, op, a, b), a, b)


@each_level
@each_op
@each_datatype
def test_random_bits(level, datatype, op):
    a, b = random_bits(datatype, 20011, 1), random_bits(datatype, 20011, 2)
    assert_same_bits(reduce(level, datatype, op, a, b), expected_reduce(datatype, op, a, b), a, b)


@each_level
@each_op
@each_datatype
def test_operands_may_be_exchanged(level, datatype, op):
    a, b = pairs_of_special_values(datatype)
    assert_same_bits(reduce(level, datatype, op, a, b), reduce(level, datatype, op, b, a), a, b)


@each_level
@each_op
@each_datatype
def test_every_count_and_alignment_touches_exactly_its_elements(level, datatype, op):
    size = DTYPES[datatype].itemsize
    margin = 64
    rng = np.random.default_rng(5)
    for number, count in enumerate(COUNTS):
        offsets = [(number * step + step // 3) % 17 for step in (1, 3, 5)]
        memory = [np.frombuffer(rng.bytes(count * size + 2 * margin + 17), np.uint8).copy() for _ in range(3)]
        before = memory[0].copy()
        places = [slice(margin + offset, margin + offset + count * size) for offset in offsets]
        out, a, b = (array[place] for array, place in zip(memory, places, strict=True))
        lib.reduce_at(level, datatype, OPS[op], pointer(out), pointer(a), pointer(b), count)
        x, y = (np.frombuffer(array.tobytes(), DTYPES[datatype]) for array in (a, b))
        expected = expected_reduce(datatype, op, x, y)
        before[places[0]] = np.frombuffer(expected.tobytes(), np.uint8)
        np.testing.assert_array_equal(memory[0], before, err_msg=f"count {count}, offsets {offsets}")


@each_level
@each_op
@each_datatype
@pytest.mark.parametrize("alias", ["a", "b", "both"])
def test_destination_may_be_an_operand(level, datatype, op, alias):
    for count in (1, 2, 17, 64, 1001):
        a, b = random_bits(datatype, count, 6).copy(), random_bits(datatype, count, 7).copy()
        if alias == "both":
            b = a
        expected = expected_reduce(datatype, op, a, b)
        out = b if alias == "b" else a
        lib.reduce_at(level, datatype, OPS[op], pointer(out), pointer(a), pointer(b), count)
        assert_same_bits(out, expected)


@each_level
@pytest.mark.parametrize("op", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("datatype", FLOATS[:2], ids=["float16", "bfloat16"])
def test_every_16_bit_float_with_a_few_others(level, datatype, op):
    a = np.arange(65536, dtype=np.uint16).view(DTYPES[datatype])
    for other in special_values(datatype):
        b = np.full_like(a, other)
        assert_same_bits(reduce(level, datatype, op, a, b), expected_reduce(datatype, op, a, b), a, b)


@each_level
@each_datatype
def test_average(level, datatype):
    a, b = pairs_of_special_values(datatype)
    a, b = (np.concatenate([x, random_bits(datatype, 1003, seed)]) for seed, x in enumerate((a, b), 8))
    for divisor in DIVISORS:
        expected = expected_average(datatype, a, b, divisor)
        assert_same_bits(average(level, datatype, a, b, divisor), expected, a, b)
        if divisor % 8 == 3:
            assert_same_bits(average(level, datatype, b, a, divisor), expected, b, a)


@pytest.mark.parametrize("datatype", [*INTEGERS, *FLOATS[:2]], ids=lambda datatype: DTYPES[datatype].name)
def test_average_of_every_small_value_and_around_every_multiple(datatype):
    """Of 8 and 16 bits, every sum by every divisor; of more, sums where the quotient changes."""
    dtype = DTYPES[datatype]
    few = np.arange(2 ** (8 * min(dtype.itemsize, 2)), dtype=f"u{min(dtype.itemsize, 2)}")
    for divisor in DIVISORS:
        if dtype.itemsize <= 2:
            values = few.view(dtype)
        else:
            multiples = random_bits(datatype, 400, divisor)
            multiples = multiples >> np.arange(400, dtype=dtype) % (8 * dtype.itemsize)
            multiples = multiples // dtype.type(divisor) * dtype.type(divisor)
            near = [multiples + dtype.type(1), multiples, multiples - dtype.type(1)]
            values = np.concatenate([*near, special_values(datatype)])
        nothing = nothing_added(datatype, values)
        expected = expected_divide(datatype, values, divisor)
        for level in LEVELS:
            assert_same_bits(average(level, datatype, values, nothing, divisor), expected, values)


@each_level
@each_datatype
def test_average_of_every_count_and_alignment_touches_exactly_its_elements(level, datatype):
    size = DTYPES[datatype].itemsize
    margin = 64
    rng = np.random.default_rng(9)
    for number, count in enumerate(COUNTS):
        offsets = [(number * step + step // 3) % 17 for step in (1, 3, 5)]
        memory = [np.frombuffer(rng.bytes(count * size + 2 * margin + 17), np.uint8).copy() for _ in range(3)]
        before = memory[0].copy()
        places = [slice(margin + offset, margin + offset + count * size) for offset in offsets]
        out, a, b = (array[place] for array, place in zip(memory, places, strict=True))
        divisor = (2, 3)[number % 2]
        lib.reduce_average_at(level, datatype, pointer(out), pointer(a), pointer(b), divisor, count)
        x, y = (np.frombuffer(array.tobytes(), DTYPES[datatype]) for array in (a, b))
        expected = expected_average(datatype, x, y, divisor)
        before[places[0]] = np.frombuffer(expected.tobytes(), np.uint8)
        np.testing.assert_array_equal(memory[0], before, err_msg=f"count {count}, offsets {offsets}")


@each_level
@each_datatype
@pytest.mark.parametrize("alias", ["a", "b", "both"])
@pytest.mark.parametrize("divisor", [1, 2, 3])
def test_average_may_take_the_place_of_an_operand(level, datatype, alias, divisor):
    for count in (1, 2, 17, 64, 1001):
        a, b = random_bits(datatype, count, 6).copy(), random_bits(datatype, count, 7).copy()
        if alias == "both":
            b = a
        expected = expected_average(datatype, a, b, divisor)
        out = b if alias == "b" else a
        lib.reduce_average_at(level, datatype, pointer(out), pointer(a), pointer(b), divisor, count)
        assert_same_bits(out, expected)


@st.composite
def operands(draw):
    """A type and two arrays of it, from whole bit patterns, so that the strange ones come up often."""
    datatype = draw(st.sampled_from(list(DTYPES)))
    dtype = DTYPES[datatype]
    pattern = st.integers(0, 2 ** (8 * dtype.itemsize) - 1)
    special = [int(value) for value in bits(special_values(datatype))]
    element = st.one_of(pattern, st.sampled_from(special))
    pairs = draw(st.lists(st.tuples(element, element), min_size=1, max_size=70))
    arrays = np.array(pairs, f"u{dtype.itemsize}").T
    return datatype, arrays[0].copy().view(dtype), arrays[1].copy().view(dtype)


@given(operands=operands(), op=st.sampled_from(list(OPS)), divisor=st.sampled_from(DIVISORS))
def test_all_levels_agree_with_numpy(operands, op, divisor):
    datatype, a, b = operands
    for level in LEVELS:
        assert_same_bits(reduce(level, datatype, op, a, b), expected_reduce(datatype, op, a, b), a, b)
        expected = expected_average(datatype, a, b, divisor)
        assert_same_bits(average(level, datatype, a, b, divisor), expected, a, b)


@each_datatype
def test_plain_calls_use_the_best_level(datatype):
    a, b = random_bits(datatype, 333, 10), random_bits(datatype, 333, 11)
    out = np.empty_like(a)
    lib.reduce(datatype, lib.pcclSum, pointer(out), pointer(a), pointer(b), a.size)
    assert_same_bits(out, expected_reduce(datatype, "sum", a, b))
    lib.reduce_average(datatype, pointer(out), pointer(a), pointer(b), 3, a.size)
    assert_same_bits(out, expected_average(datatype, a, b, 3))


FE_UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}


@each_level
@each_float
def test_result_is_the_same_in_any_rounding_mode_of_the_caller(level, datatype):
    upward = FE_UPWARD[platform.machine()]
    libm = ctypes.CDLL("libm.so.6")
    a, b = pairs_of_special_values(datatype)
    expected = [reduce(level, datatype, op, a, b) for op in OPS] + [
        average(level, datatype, a, b, n) for n in (2, 3)
    ]
    out = [np.empty_like(a) for _ in expected]
    pointers = [pointer(array) for array in out]
    before = libm.fegetround()
    assert libm.fesetround(upward) == 0
    try:
        for op, target in zip(OPS.values(), pointers[:-2], strict=True):
            lib.reduce_at(level, datatype, op, target, pointer(a), pointer(b), a.size)
        for divisor, target in zip((2, 3), pointers[-2:], strict=True):
            lib.reduce_average_at(level, datatype, target, pointer(a), pointer(b), divisor, a.size)
        kept = libm.fegetround()
    finally:
        libm.fesetround(before)
    assert kept == upward
    for actual, wanted in zip(out, expected, strict=True):
        assert_same_bits(actual, wanted, a, b)
