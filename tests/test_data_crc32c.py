"""csrc/data/crc32c.c against published vectors, a bitwise definition, and itself."""

import functools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native import load

ffi, lib = load("data/crc32c.h")

# RFC 3720, appendix B.4, and the check value of the CRC catalogue.
VECTORS = {
    "nothing": (b"", 0x00000000),
    "zeros": (bytes(32), 0x8A9136AA),
    "ones": (b"\xff" * 32, 0x62A8AB43),
    "increasing": (bytes(range(32)), 0x46DD794E),
    "decreasing": (bytes(range(31, -1, -1)), 0x113FDB5C),
    "iscsi_read": (
        bytes.fromhex(
            "01c000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000"
        ),
        0xD9963A56,
    ),
    "check": (b"123456789", 0xE3069283),
}
LEVELS = {
    "scalar": lib.CRC32C_SCALAR,
    "instructions": lib.CRC32C_INSTRUCTIONS,
    "avx2": lib.CRC32C_AVX2,
    "avx512": lib.CRC32C_AVX512,
}
# Around the vectors of 64 bytes, four of which go side by side, the strides of 256 and 4096 bytes, three of
# which do, and blocks of 7936 bytes.
SIZES = [*range(70), *range(248, 336), *(64 * count + more for count in range(5, 14) for more in (-1, 0, 1))]
SIZES += [*range(760, 785), *range(1020, 1029), 1535, 1536, 1537, 4096, 4096 + 192, 4096 + 255]
SIZES += [7935, 7936, 7937, 7936 + 768, 2 * 7936, 2 * 7936 + 13]
SIZES += [12287, 12288, 12289, 12288 + 768, 12288 + 775, 24576, 40000, 65537]


@pytest.fixture(params=LEVELS)
def extend(request):
    """crc32c_extend() by each level that this processor has."""
    level, best = LEVELS[request.param], lib.crc32c_best_level()
    if level > best:
        pytest.skip(f"this processor has no {request.param}")
    return functools.partial(lib.crc32c_extend_at, level)


def bitwise(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def scalar(crc, data, size):
    return lib.crc32c_extend_at(lib.CRC32C_SCALAR, crc, data, size)


@pytest.mark.parametrize("name", VECTORS)
def test_published_vectors(extend, name):
    data, crc = VECTORS[name]
    assert extend(0, data, len(data)) == crc
    assert lib.crc32c(data, len(data)) == crc
    assert bitwise(data) == crc


def test_every_single_byte(extend):
    for value in range(256):
        data = bytes([value])
        assert extend(0, data, 1) == bitwise(data)


def test_every_level_agrees_with_tables_at_every_size(extend):
    data = random.Random(3).randbytes(max(SIZES) + 8)
    memory = ffi.from_buffer(data)
    for size in SIZES:
        for offset in (0, 1, 3, 7, 8):
            found = extend(0x12345678, memory + offset, size)
            assert found == scalar(0x12345678, memory + offset, size), (size, offset)


@pytest.mark.parametrize("size", [63, 64, 256, 320, 1023, 1024, 8192 + 77])
def test_every_level_agrees_with_tables_at_every_alignment(extend, size):
    memory = ffi.new("uint8_t[]", random.Random(5).randbytes(size + 128))
    first = -int(ffi.cast("uintptr_t", memory)) % 64
    for offset in range(first, first + 64):
        assert extend(0x9ABCDEF0, memory + offset, size) == scalar(0x9ABCDEF0, memory + offset, size), offset


def test_the_best_level_is_used_unasked(extend):
    data = random.Random(6).randbytes(20000)
    for size in (0, 40, 300, 20000):
        assert lib.crc32c(data, size) == lib.crc32c_extend(0, data, size) == extend(0, data, size)


def test_every_bit_of_the_first_crc_counts(extend):
    """Also where it enters a fold."""
    data = random.Random(7).randbytes(9000)
    for size in (8, 256, 1024, 9000):
        for bit in range(32):
            assert extend(1 << bit, data, size) == scalar(1 << bit, data, size), (size, bit)


def test_tables_agree_with_the_definition_at_every_small_size():
    data = random.Random(4).randbytes(80)
    for size in range(80):
        assert scalar(0, data, size) == bitwise(data[:size])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), more=st.binary(max_size=300), repeat=st.integers(1, 60))
def test_extend_is_concatenation(extend, data, more, repeat):
    data *= repeat
    whole = extend(0, data + more, len(data) + len(more))
    assert whole == scalar(0, data + more, len(data) + len(more))
    assert extend(extend(0, data, len(data)), more, len(more)) == whole


def test_extend_piece_by_piece(extend):
    """Cut anywhere, as bytes come from a socket."""
    draw = random.Random(8)
    data = draw.randbytes(100_000)
    memory, whole = ffi.from_buffer(data), scalar(0, data, len(data))
    for most in (7, 70, 700, 7000, 70000):
        crc = at = 0
        while at < len(data):
            size = min(draw.randint(0, most), len(data) - at)
            crc = extend(crc, memory + at, size)
            at += size
        assert crc == whole, most


@given(data=st.binary(min_size=1, max_size=200), repeat=st.integers(1, 100), where=st.integers(0))
def test_every_flipped_bit_shows(data, repeat, where):
    damaged = bytearray(data * repeat)
    bit = where % (8 * len(damaged))
    damaged[bit // 8] ^= 1 << bit % 8
    assert lib.crc32c(bytes(damaged), len(damaged)) != lib.crc32c(data * repeat, len(damaged))
