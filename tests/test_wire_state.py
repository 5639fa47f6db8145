"""csrc/wire/state.c: what travels between who fetches a shared state and who holds it, against a second
description of its bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native import load

ffi, lib = load(
    "base/limits.h", "base/id.h", "base/address.h", "wire/message.h", "wire/state.h", "data/crc32c.h"
)

HEADER = "<4sB3xIQQ"
MAGIC = b"pcS1"
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


def pack(subject: int, count: int, first: int, size: int) -> bytes:
    body = struct.pack(HEADER, MAGIC, subject, count, first, size)
    return body + struct.pack("<I", lib.crc32c(body, len(body)))


def decode(data: bytes) -> tuple[int, int, int, int] | None:
    assert len(data) == lib.STATE_HEADER_BYTES
    header = ffi.new("struct state_header *")
    if not lib.state_header_decode(data, header):
        return None
    return header.subject, header.count, header.first, header.bytes


@given(st.integers(lib.STATE_KEYS, lib.STATE_SUBJECT_END - 1), u32, u64, u64)
def test_headers(subject: int, count: int, first: int, size: int) -> None:
    count = 0 if subject == lib.STATE_KEYS else max(count, 1)
    data = pack(subject, count, first, size)
    header = ffi.new("struct state_header *", {"subject": subject, "count": count, "first": first})
    header.bytes = size
    out = ffi.new("uint8_t[]", lib.STATE_HEADER_BYTES)
    lib.state_header_encode(header, out)
    assert bytes(out) == data
    assert decode(data) == (subject, count, first, size)


@given(st.integers(0, 8 * 32 - 1))
def test_a_header_with_a_changed_bit_is_none(bit: int) -> None:
    data = bytearray(pack(lib.STATE_LEAVES, 3, 4, 5))
    data[bit // 8] ^= 1 << bit % 8
    assert decode(bytes(data)) is None


@pytest.mark.parametrize(
    ("subject", "count"),
    [(0, 1), (lib.STATE_SUBJECT_END, 1), (255, 1), (lib.STATE_KEYS, 1), (lib.STATE_LEAVES, 0)],
)
def test_headers_beyond_the_limits(subject: int, count: int) -> None:
    assert decode(pack(subject, count, 0, 0)) is None


# --- keys ------------------------------------------------------------------------------------------------

names = st.text(st.characters(min_codepoint=0x20, exclude_characters="\x7f"), min_size=1, max_size=80).filter(
    lambda name: (
        all(byte >= 0x20 and byte != 0x7F for byte in name.encode(errors="ignore"))
        and 0 < len(name.encode(errors="ignore")) <= lib.MAX_TENSOR_NAME_BYTES
    )
)


def pack_key(name: bytes, datatype: int, free: int, count: int) -> bytes:
    return struct.pack("<H", len(name)) + name + struct.pack("<BBQ", datatype, free, count)


def decode_key(data: bytes) -> tuple[int, tuple[Any, ...] | None, int]:
    key, used = ffi.new("struct state_key *"), ffi.new("size_t *")
    status = lib.state_key_decode(data, len(data), key, used)
    if status != lib.DECODE_OK:
        return status, None, 0
    return status, (ffi.string(key.name), key.datatype, key.free, key.count), used[0]


@given(names, st.integers(0, 11), st.booleans(), u64, st.binary(max_size=30))
def test_keys(name: str, datatype: int, free: bool, count: int, rest: bytes) -> None:
    text = name.encode(errors="ignore")
    data = pack_key(text, datatype, free, count)
    key = ffi.new("struct state_key *", {"datatype": datatype, "free": free, "count": count})
    ffi.memmove(key.name, text, len(text))
    out = ffi.new("uint8_t[]", lib.MAX_STATE_KEY_BYTES)
    assert bytes(ffi.buffer(out, lib.state_key_encode(key, out))) == data
    assert decode_key(data + rest) == (lib.DECODE_OK, (text, datatype, free, count), len(data))
    for size in range(len(data)):
        assert decode_key(data[:size])[0] == lib.DECODE_INCOMPLETE


@pytest.mark.parametrize(
    "data",
    [
        pack_key(b"", 0, 0, 1),
        pack_key(b"x" * (lib.MAX_TENSOR_NAME_BYTES + 1), 0, 0, 1),
        pack_key(b"x", 12, 0, 1),
        pack_key(b"x", 0, 2, 1),
        pack_key(b"a\0b", 0, 0, 1),
    ],
)
def test_bad_keys(data: bytes) -> None:
    assert decode_key(data)[0] == lib.DECODE_BAD


def test_the_longest_name() -> None:
    data = pack_key(b"x" * lib.MAX_TENSOR_NAME_BYTES, 0, 0, 1)
    assert decode_key(data)[0] == lib.DECODE_OK
    assert len(data) == lib.MAX_STATE_KEY_BYTES


def test_control_characters_are_shown_as_question_marks() -> None:
    _, key, _ = decode_key(pack_key(b"a\nb\x1b[2J", 0, 0, 1))
    assert key is not None
    assert key[0] == b"a?b?[2J"


def expected_header(data: bytes) -> tuple[int, int, int, int] | None:
    """As decode(), from the description at the top of csrc/wire/state.h."""
    magic, subject, count, first, size = struct.unpack(HEADER, data[:-4])
    good = magic == MAGIC and data[5:8] == bytes(3) and lib.STATE_KEYS <= subject < lib.STATE_SUBJECT_END
    good = good and (count == 0) == (subject == lib.STATE_KEYS) and data == pack(subject, count, first, size)
    return (subject, count, first, size) if good else None


def expected_key(data: bytes) -> tuple[int, tuple[Any, ...] | None, int]:
    """As decode_key()."""
    if len(data) < 2:
        return lib.DECODE_INCOMPLETE, None, 0
    (size,) = struct.unpack_from("<H", data)
    if size > lib.MAX_TENSOR_NAME_BYTES:
        return lib.DECODE_BAD, None, 0
    end = 2 + size + 10
    if len(data) < end:
        return lib.DECODE_INCOMPLETE, None, 0
    name = data[2 : 2 + size]
    datatype, free, count = struct.unpack_from("<BBQ", data, 2 + size)
    if size == 0 or b"\0" in name or datatype > 11 or free > 1:
        return lib.DECODE_BAD, None, 0
    shown = bytes(byte if byte >= 0x20 and byte != 0x7F else ord("?") for byte in name)
    return lib.DECODE_OK, (shown, datatype, free, count), end


@given(st.binary(max_size=200), st.sampled_from([b"", b"\5\0", b"\1\0a\3\1"]))
def test_whatever_bytes_are_told_apart_as_keys(data: bytes, start: bytes) -> None:
    assert decode_key(start + data) == expected_key(start + data)


@given(st.binary(min_size=28, max_size=28), st.integers(0, 28), st.booleans())
def test_whatever_bytes_are_told_apart_as_headers(data: bytes, good: int, signed: bool) -> None:
    body = pack(lib.STATE_LEAVES, 1, 2, 3)[:good] + data[good:]
    crc = lib.crc32c(body, len(body)) if signed else 0
    bytes_ = body + struct.pack("<I", crc)
    assert decode(bytes_) == expected_header(bytes_)
