"""csrc/wire/frame.c: frame headers, trailers and link greetings."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native import load
from wire_messages import descriptor_bytes, descriptors, ids, u16, u32, u64, up_to

ffi, lib = load(
    "base/limits.h", "base/id.h", "base/address.h", "wire/message.h", "wire/frame.h", "data/crc32c.h"
)

NUMBERS = (
    "type",
    "flags",
    "step",
    "chunk",
    "payload_bytes",
    "credit",
    "epoch",
    "tag",
    "commits_seen",
    "grant",
)
HEADER = "<BBHIIIQQQI"


def frames_of(kind: int) -> st.SearchStrategy[dict[str, Any]]:
    data = kind == lib.FRAME_DATA
    described = kind in (lib.FRAME_DATA, lib.FRAME_GRANT, lib.FRAME_CALLED)
    return st.fixed_dictionaries(
        {
            "type": st.just(kind),
            "flags": st.sampled_from([0, lib.FRAME_EAGER]) if data else st.just(0),
            "step": u16,
            "chunk": u32,
            "payload_bytes": up_to(lib.MAX_CHUNK_BYTES, 1) if data else st.just(0),
            "credit": u32,
            "epoch": u64,
            "tag": u64,
            "commits_seen": u64,
            "grant": u32,
            "descriptor": descriptors if described else st.none(),
        }
    )


frames = st.integers(lib.FRAME_GRANT, lib.FRAME_TYPE_END - 1).flatmap(frames_of)
PLAIN = {
    "kind": 1,
    "datatype": 10,
    "reduce_op": 0,
    "quant_datatype": 0,
    "quant_algorithm": 0,
    "algorithm": 0,
    "early": True,
    "root_or_world": 0,
    "count": 77,
}
DATA = dict(zip(NUMBERS, (lib.FRAME_DATA, 0, 3, 5, 1000, 0, 8, 42, 9, 6), strict=True)) | {
    "descriptor": PLAIN
}


def sealed(raw: bytes) -> bytes:
    """`raw` with its CRC behind it: whatever is wrong with it then, the CRC is not."""
    return raw + struct.pack("<I", lib.crc32c(raw, len(raw)))


def pack(frame: dict[str, Any]) -> bytes:
    descriptor = frame["descriptor"]
    tail = bytes(16) if descriptor is None else descriptor_bytes(descriptor)
    return sealed(struct.pack(HEADER, *(frame[key] for key in NUMBERS)) + tail)


def encode(frame: dict[str, Any]) -> bytes:
    native = ffi.new("struct frame *", {key: frame[key] for key in NUMBERS})
    if frame["descriptor"] is not None:
        native.descriptor = frame["descriptor"]
    target = ffi.new("uint8_t[]", lib.FRAME_HEADER_BYTES)
    lib.frame_encode(native, target)
    return bytes(ffi.buffer(target))


def decode(data: bytes) -> dict[str, Any] | None:
    native = ffi.new("struct frame *")
    ffi.memmove(native, b"\xa5" * ffi.sizeof(native[0]), ffi.sizeof(native[0]))
    if not lib.frame_decode(ffi.new("uint8_t[]", data), native):
        return None
    descriptor = {key: getattr(native.descriptor, key) for key in PLAIN}
    return {key: getattr(native, key) for key in NUMBERS} | {
        "descriptor": descriptor if any(descriptor.values()) else None
    }


@given(frame=frames)
def test_round_trip_by_the_bytes_of_a_second_description(frame: dict[str, Any]) -> None:
    encoded = encode(frame)
    assert len(encoded) == lib.FRAME_HEADER_BYTES
    assert encoded == pack(frame)
    assert decode(encoded) == frame


def with_flipped_bit(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_any_flipped_bit_is_caught() -> None:
    encoded = encode(DATA)
    for bit in range(8 * lib.FRAME_HEADER_BYTES):
        assert decode(with_flipped_bit(encoded, bit)) is None, bit


@given(data=st.binary(min_size=64, max_size=64))
def test_arbitrary_bytes_are_no_frame(data: bytes) -> None:
    assert decode(data) is None  # but for one in 2^32


@given(data=st.binary(min_size=60, max_size=60))
def test_arbitrary_bytes_with_a_good_crc_give_a_frame_within_limits_or_none(data: bytes) -> None:
    frame = decode(sealed(data))
    if frame is not None:
        assert encode(frame) == sealed(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"type": 0},
        {"type": lib.FRAME_TYPE_END},
        {"type": 255},
        {"flags": 2},
        {"flags": 0x80 | lib.FRAME_EAGER},
        {"payload_bytes": 0},
        {"payload_bytes": lib.MAX_CHUNK_BYTES + 1},
        {"payload_bytes": 2**32 - 1},
        {"type": lib.FRAME_GRANT},
        {"type": lib.FRAME_CALLED},
        {"type": lib.FRAME_PING, "payload_bytes": 0},
        {"type": lib.FRAME_CREDIT, "payload_bytes": 0, "descriptor": None, "flags": lib.FRAME_EAGER},
        {"type": lib.FRAME_CREDIT, "descriptor": None},
        {"descriptor": None},
        {"descriptor": {**PLAIN, "kind": 0}},
        {"descriptor": {**PLAIN, "kind": lib.OP_KIND_END}},
        {"descriptor": {**PLAIN, "datatype": 12}},
        {"descriptor": {**PLAIN, "root_or_world": lib.MAX_PEERS + 1}},
    ],
    ids=str,
)
def test_values_beyond_their_limits_are_refused(changes: dict[str, Any]) -> None:
    assert decode(pack(DATA)) == DATA
    assert decode(pack({**DATA, **changes})) is None


def trailer_decode(data: bytes) -> tuple[int, bool] | None:
    native = ffi.new("struct frame_trailer *")
    good = lib.frame_trailer_decode(ffi.new("uint8_t[]", data), native)
    return (native.crc32c, native.cancelled) if good else None


def trailer_encode(crc: int, cancelled: bool) -> bytes:
    target = ffi.new("uint8_t[]", lib.FRAME_TRAILER_BYTES)
    lib.frame_trailer_encode(
        ffi.new("struct frame_trailer *", {"crc32c": crc, "cancelled": cancelled}), target
    )
    return bytes(ffi.buffer(target))


@given(crc=u32, cancelled=st.booleans())
def test_trailers_round_trip(crc: int, cancelled: bool) -> None:
    assert trailer_decode(trailer_encode(crc, cancelled)) == (crc, cancelled)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_damaged_trailer_is_never_taken_for_the_other_kind(cancelled: bool) -> None:
    encoded = trailer_encode(0x12345678, cancelled)
    for place in range(4, 8):
        for change in range(1, 256):
            damaged = bytearray(encoded)
            damaged[place] ^= change
            assert trailer_decode(bytes(damaged)) is None
    assert trailer_decode(bytes(lib.FRAME_TRAILER_BYTES)) is None


GREETING = struct.Struct("<8sHHH16s16s16s16s14x")


def greeting_pack(
    values: dict[str, Any], magic: bytes = b"PCCL\0lnk", version: int = lib.PROTOCOL_VERSION
) -> bytes:
    numbers = (values["stream"], values["streams"])
    return sealed(
        GREETING.pack(magic, version, *numbers, *(values[key] for key in ("run", "key", "from", "to")))
    )


def greeting_decode(data: bytes) -> dict[str, Any] | None:
    native = ffi.new("struct link_greeting *")
    if not lib.link_greeting_decode(ffi.new("uint8_t[]", data), native):
        return None
    values = {key: bytes(ffi.buffer(getattr(native, key).bytes)) for key in ("run", "key", "from", "to")}
    return values | {"stream": native.stream, "streams": native.streams}


def greeting_encode(values: dict[str, Any]) -> bytes:
    native = ffi.new("struct link_greeting *", {key: values[key] for key in ("stream", "streams")})
    for key in ("run", "key", "from", "to"):
        ffi.memmove(getattr(native, key).bytes, values[key], 16)
    target = ffi.new("uint8_t[]", lib.LINK_GREETING_BYTES)
    lib.link_greeting_encode(native, target)
    return bytes(ffi.buffer(target))


@st.composite
def greetings(draw: st.DrawFn) -> dict[str, Any]:
    streams = draw(up_to(lib.MAX_STREAMS, 1))
    return {key: draw(ids) for key in ("run", "key", "from", "to")} | {
        "stream": draw(up_to(streams - 1)),
        "streams": streams,
    }


HELLO = {"run": b"r" * 16, "key": b"k" * 16, "from": b"f" * 16, "to": b"t" * 16, "stream": 1, "streams": 4}


@given(values=greetings())
def test_greetings_round_trip(values: dict[str, Any]) -> None:
    encoded = greeting_encode(values)
    assert len(encoded) == lib.LINK_GREETING_BYTES
    assert encoded == greeting_pack(values)
    assert greeting_decode(encoded) == values


def test_any_flipped_bit_of_a_greeting_is_caught() -> None:
    encoded = greeting_encode(HELLO)
    for bit in range(8 * lib.LINK_GREETING_BYTES):
        assert greeting_decode(with_flipped_bit(encoded, bit)) is None, bit


def test_greetings_of_others_are_refused() -> None:
    assert greeting_decode(greeting_pack(HELLO)) == HELLO
    assert greeting_decode(greeting_pack(HELLO, magic=b"PCCL\0run")) is None
    assert greeting_decode(greeting_pack(HELLO, version=lib.PROTOCOL_VERSION + 1)) is None
    for changes in ({"streams": 0, "stream": 0}, {"streams": lib.MAX_STREAMS + 1}, {"stream": 4}):
        assert greeting_decode(greeting_pack({**HELLO, **changes})) is None
    unreserved = bytearray(greeting_pack(HELLO)[:-4])
    unreserved[-1] = 1
    assert greeting_decode(sealed(bytes(unreserved))) is None
