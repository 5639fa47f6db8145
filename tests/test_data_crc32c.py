"""csrc/data/crc32c.c against published vectors, a bitwise definition, and itself."""

import random

import pytest
from hypothesis import given
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
FORMS = [lib.crc32c_extend, lib.crc32c_extend_scalar]
# Around the strides of 256 and 4096 bytes, three of which go side by side, and blocks of 7936 bytes.
SIZES = [*range(70), 255, 256, 257, *range(760, 785), 1535, 1536, 1537, 4096]
SIZES += [7935, 7936, 7937, 7936 + 768, 2 * 7936, 2 * 7936 + 13]
SIZES += [12287, 12288, 12289, 12288 + 768, 12288 + 775, 24576, 40000, 65537]


def bitwise(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VECTORS)
def test_published_vectors(form, name):
    data, crc = VECTORS[name]
    assert form(0, data, len(data)) == crc
    assert lib.crc32c(data, len(data)) == crc
    assert bitwise(data) == crc


@pytest.mark.parametrize("form", FORMS)
def test_every_single_byte(form):
    for value in range(256):
        data = bytes([value])
        assert form(0, data, 1) == bitwise(data)


def test_instructions_agree_with_tables_at_every_size_and_alignment():
    data = random.Random(3).randbytes(max(SIZES) + 8)
    memory = ffi.from_buffer(data)
    for size in SIZES:
        for offset in (0, 1, 3, 7, 8):
            fast = lib.crc32c_extend(0x12345678, memory + offset, size)
            assert fast == lib.crc32c_extend_scalar(0x12345678, memory + offset, size), (size, offset)


def test_tables_agree_with_the_definition_at_every_small_size():
    data = random.Random(4).randbytes(80)
    for size in range(80):
        assert lib.crc32c_extend_scalar(0, data, size) == bitwise(data[:size])


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary(max_size=300), more=st.binary(max_size=300), repeat=st.integers(1, 60))
def test_extend_is_concatenation(form, data, more, repeat):
    data *= repeat
    whole = form(0, data + more, len(data) + len(more))
    assert form(form(0, data, len(data)), more, len(more)) == whole


@given(data=st.binary(min_size=1, max_size=200), repeat=st.integers(1, 100), where=st.integers(0))
def test_every_flipped_bit_shows(data, repeat, where):
    damaged = bytearray(data * repeat)
    bit = where % (8 * len(damaged))
    damaged[bit // 8] ^= 1 << bit % 8
    assert lib.crc32c(bytes(damaged), len(damaged)) != lib.crc32c(data * repeat, len(damaged))
