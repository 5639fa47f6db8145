"""csrc/wire/message.c: bytes of control messages, good and bad."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_messages import (
    EXAMPLES,
    MAGIC,
    TYPES,
    Message,
    decode,
    encode,
    lib,
    messages,
    messages_of,
    pack,
    with_header,
)

ALL = sorted(TYPES)
LARGEST_NAME = b"n" * lib.MAX_NAME_BYTES


def changed(message: str, /, **fields: Any) -> Message:
    return Message(message, {**EXAMPLES[message].fields, **fields})


def test_examples_cover_every_type() -> None:
    assert set(EXAMPLES) == set(TYPES)
    assert len(TYPES) == lib.MESSAGE_TYPE_END - 1


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
def test_round_trip_by_the_bytes_of_the_second_description(name: str, data: st.DataObject) -> None:
    message = data.draw(messages_of(name))
    encoded = encode(message)
    assert encoded == pack(message)
    assert decode(encoded) == (lib.DECODE_OK, message, len(encoded))


@given(message=messages, rest=st.binary(max_size=20))
def test_what_follows_a_message_is_left_alone(message: Message, rest: bytes) -> None:
    encoded = encode(message)
    assert decode(encoded + rest) == (lib.DECODE_OK, message, len(encoded))


@pytest.mark.parametrize("name", ALL)
def test_a_beginning_is_incomplete_at_every_byte(name: str) -> None:
    encoded = encode(EXAMPLES[name])
    for size in range(len(encoded)):
        assert decode(encoded[:size])[0] == lib.DECODE_INCOMPLETE, size


@pytest.mark.parametrize("name", ALL)
def test_a_body_that_ends_early_is_bad_at_every_byte(name: str) -> None:
    body = encode(EXAMPLES[name])[lib.MESSAGE_HEADER_BYTES :]
    for size in range(len(body)):
        assert decode(with_header(name, body[:size]))[0] == lib.DECODE_BAD, size


@pytest.mark.parametrize("name", ALL)
def test_trailing_bytes_in_a_body_are_bad(name: str) -> None:
    body = encode(EXAMPLES[name])[lib.MESSAGE_HEADER_BYTES :]
    assert decode(with_header(name, body + b"\0"))[0] == lib.DECODE_BAD


@pytest.mark.parametrize("name", ALL)
def test_any_changed_byte_gives_a_message_within_limits_or_none(name: str) -> None:
    encoded = encode(EXAMPLES[name])
    for place in range(len(encoded)):
        for value in {0, 1, 0x7F, 0x80, 0xFF, encoded[place] ^ 1, encoded[place] ^ 0x10}:
            status, message, _ = decode(encoded[:place] + bytes([value]) + encoded[place + 1 :])
            if status == lib.DECODE_OK:
                # Encoding ends the process if anything is beyond its limits.
                assert decode(encode(message))[:2] == (lib.DECODE_OK, message)


@given(data=st.binary(max_size=300), limit=st.sampled_from([lib.MAX_GREETING_BYTES, lib.MAX_MESSAGE_BYTES]))
def test_arbitrary_bytes_do_no_harm(data: bytes, limit: int) -> None:
    status, message, used = decode(data, limit)
    if status == lib.DECODE_OK:
        assert used <= len(data)
        assert decode(encode(message))[1] == message


@given(name=st.sampled_from(ALL), body=st.binary(max_size=120))
def test_arbitrary_bodies_do_no_harm(name: str, body: bytes) -> None:
    if name in ("HELLO", "WELCOME", "REFUSED"):
        body = MAGIC + body
    status, message, _ = decode(with_header(name, body))
    assert status in (lib.DECODE_OK, lib.DECODE_BAD)
    if status == lib.DECODE_OK:
        assert decode(encode(message))[1] == message


@pytest.mark.parametrize("limit", [lib.MAX_GREETING_BYTES, lib.MAX_MESSAGE_BYTES])
def test_a_length_beyond_the_limit_is_bad_as_soon_as_it_shows(limit: int) -> None:
    longest = limit - lib.MESSAGE_HEADER_BYTES
    assert decode(struct.pack("<I", longest), limit)[0] == lib.DECODE_INCOMPLETE
    for length in (longest + 1, 2**31, 2**32 - 1):
        assert decode(struct.pack("<I", length), limit)[0] == lib.DECODE_BAD


@pytest.mark.parametrize("limit", range(lib.MESSAGE_HEADER_BYTES))
def test_a_limit_below_the_header_takes_nothing(limit: int) -> None:
    assert decode(encode(EXAMPLES["HEARTBEAT"]), limit)[0] == lib.DECODE_BAD


@pytest.mark.parametrize("number", [0, lib.MESSAGE_TYPE_END, 0xFF, 0x0101, 0xFFFF])
def test_an_unknown_type_is_bad_before_its_body_arrives(number: int) -> None:
    assert decode(struct.pack("<IH", 100, number))[0] == lib.DECODE_BAD


@pytest.mark.parametrize("name", ["HELLO", "WELCOME", "REFUSED"])
def test_a_wrong_magic_is_bad_at_its_first_wrong_byte(name: str) -> None:
    encoded = encode(EXAMPLES[name])
    for place in range(len(MAGIC)):
        end = lib.MESSAGE_HEADER_BYTES + place + 1
        assert decode(encoded[:end])[0] == lib.DECODE_INCOMPLETE
        assert decode(encoded[: end - 1] + bytes([encoded[end - 1] ^ 1]))[0] == lib.DECODE_BAD


@pytest.mark.parametrize(
    "greeting",
    [b"GET / HTTP/1.1\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"*1\r\n$4\r\n"],
)
@pytest.mark.parametrize("limit", [lib.MAX_GREETING_BYTES, lib.MAX_MESSAGE_BYTES])
def test_other_protocols_are_bad_at_once(greeting: bytes, limit: int) -> None:
    assert decode(greeting, limit)[0] == lib.DECODE_BAD


PEER = EXAMPLES["PROPOSE"].fields["members"][0]
LINK = EXAMPLES["PROPOSE"].fields["links"][0]
MINE = EXAMPLES["OP_CONFLICT"].fields["mine"]
BEYOND_LIMITS = [
    changed("HELLO", streams=0),
    changed("HELLO", streams=lib.MAX_STREAMS + 1),
    changed("HELLO", timeout_ms=lib.MIN_TIMEOUT_MS - 1),
    changed("HELLO", timeout_ms=lib.MAX_TIMEOUT_MS + 1),
    changed("HELLO", listen={"family": 5, "bytes": bytes(4), "port": 1}),
    changed("HELLO", name=LARGEST_NAME + b"n"),
    changed("HELLO", name=b"a\0b"),
    changed("HELLO", name=b"ab\0"),
    changed("REFUSED", reason=b"r" * (lib.MAX_REASON_BYTES + 1)),
    changed("CENSUS", peers=lib.MAX_PEERS + 1),
    changed("CENSUS", groups=lib.MAX_PEERS + 1),
    changed("CENSUS", largest_group=lib.MAX_PEERS + 1),
    changed("PROPOSE", fate=lib.FATE_ABORT - 1),
    changed("PROPOSE", fate=lib.FATE_END),
    changed("PROPOSE", status=19),
    changed("PROPOSE", fate=lib.FATE_ABORT, status=0),
    changed("PROPOSE", has_guilty_tag=2),
    changed("PROPOSE", rank=2),
    changed("PROPOSE", world=0, members=[], places=[], links=[], rank=0),
    changed("PROPOSE", members=[PEER] * (lib.MAX_PEERS + 1), places=[0] * (lib.MAX_PEERS + 1)),
    changed("PROPOSE", places=[0, 2]),
    changed("PROPOSE", links=[LINK] * (lib.MAX_LINKS + 1)),
    changed("PROPOSE", links=[{**LINK, "rank": 2}]),
    changed("PROPOSE", links=[{**LINK, "streams": 0}]),
    changed("PROPOSE", links=[{**LINK, "streams": lib.MAX_STREAMS + 1}]),
    changed("PROPOSE", links=[{**LINK, "opener": 2}]),
    changed("PROPOSE", members=[PEER, {**PEER, "name": LARGEST_NAME + b"n"}]),
    changed("READY", failed=[{"tag": 1, "number": 0}] * (lib.MAX_FAILED_TAGS + 1)),
    changed("COMMIT_EPOCH", failed_tags=[1] * (lib.MAX_FAILED_TAGS + 1)),
    changed("VOTE", kind=lib.VOTE_KIND_END),
    changed("VOTE_RESULT", kind=0),
    changed("VOTE_RESULT", status=19),
    changed("OP_CONFLICT", kind=0),
    changed("OP_CONFLICT", mine={**MINE, "kind": 0}),
    changed("OP_CONFLICT", mine={**MINE, "kind": lib.OP_KIND_END}),
    changed("OP_CONFLICT", mine={**MINE, "datatype": 12}),
    changed("OP_CONFLICT", mine={**MINE, "reduce_op": 5}),
    changed("OP_CONFLICT", mine={**MINE, "quant_datatype": 12}),
    changed("OP_CONFLICT", mine={**MINE, "quant_algorithm": 3}),
    changed("OP_CONFLICT", mine={**MINE, "algorithm": lib.OP_ALGORITHM_END}),
    changed("OP_CONFLICT", mine={**MINE, "root_or_world": lib.MAX_PEERS + 1}),
    changed("OP_ABORT", status=19),
    changed("OP_ABORT", status=0),
    changed("OP_WAITING", part=lib.WAITING_END),
    changed("OP_STRAGGLERS", kind=lib.VOTE_KIND_END),
    changed("OP_STRAGGLERS", total=0),
    changed("OP_STRAGGLERS", total=lib.MAX_PEERS + 1),
    changed("OP_STRAGGLERS", total=9, peers=[bytes(16)] * (lib.MAX_NAMED_STRAGGLERS + 1)),
    changed("SYNC_OFFER", strategy=3),
    changed("SYNC_PLAN", role=0),
    changed("SYNC_PLAN", role=lib.SYNC_ROLE_END),
    changed("SYNC_PLAN", sources=[PEER] * (lib.MAX_SYNC_SOURCES + 1)),
    changed("SYNC_REPORT", progress=0),
    changed("SYNC_REPORT", progress=lib.SYNC_PROGRESS_END),
    changed("SYNC_REPORT", status=19),
    changed("SYNC_REPORT", progress=lib.SYNC_FAILED, status=0),
    changed("EVICTED", status=19),
    changed("EVICTED", status=0),
]


@pytest.mark.parametrize("message", BEYOND_LIMITS, ids=lambda message: message.name)
def test_values_beyond_their_limits_are_bad(message: Message) -> None:
    assert decode(pack(message))[0] == lib.DECODE_BAD


@given(name=st.binary(min_size=1, max_size=lib.MAX_NAME_BYTES).filter(lambda name: 0 not in name))
def test_control_characters_become_question_marks(name: bytes) -> None:
    shown = bytes(ord("?") if byte < 0x20 or byte == 0x7F else byte for byte in name)
    assert decode(pack(changed("HELLO", name=name)))[1] == changed("HELLO", name=shown)


@given(
    version=st.integers(0, 2**16 - 1).filter(lambda version: version != lib.PROTOCOL_VERSION),
    oldest=st.integers(0, 2**16 - 1),
    rest=st.binary(max_size=200),
)
def test_hello_of_another_version_gives_its_versions_alone(version: int, oldest: int, rest: bytes) -> None:
    body = MAGIC + struct.pack("<HH", version, oldest) + rest
    status, message, used = decode(with_header("HELLO", body))
    assert (status, used) == (lib.DECODE_OK, len(body) + lib.MESSAGE_HEADER_BYTES)
    assert message is not None
    assert (message.fields.pop("version"), message.fields.pop("oldest_version")) == (version, oldest)
    assert message.fields.pop("listen") == {"family": 0, "bytes": b"", "port": 0}
    assert not any(message.fields.values())


def test_refusal_with_a_result_of_a_later_version_is_still_a_refusal() -> None:
    assert decode(pack(changed("REFUSED", status=999)))[1] == changed("REFUSED", status=17)
    assert decode(pack(changed("REFUSED", status=0)))[1] == changed("REFUSED", status=17)


def test_the_bytes_that_all_versions_share_are_frozen() -> None:
    hello = encode(EXAMPLES["HELLO"])
    assert hello[4:18] == b"\x01\x00PCCL\0run\x01\x00\x01\x00"[:14]
    assert encode(changed("REFUSED", status=17, reason=b"no")) == b"\x0e\0\0\0\x03\0PCCL\0run\x11\0\x02\0no"


def test_the_largest_messages_fit() -> None:
    peer = {"id": bytes(16), "address": {"family": 6, "bytes": bytes(16), "port": 1}, "name": LARGEST_NAME}
    reason = b"r" * lib.MAX_REASON_BYTES
    propose = changed("PROPOSE", members=[peer] * lib.MAX_PEERS, links=[LINK] * lib.MAX_LINKS, reason=reason)
    for message in (
        propose,
        changed("READY", failed=[{"tag": 2**64 - 1, "number": 1}] * lib.MAX_FAILED_TAGS),
    ):
        assert 0 < len(encode(message)) <= lib.MAX_MESSAGE_BYTES
    # What an unvouched connection carries, in both directions.
    for message in (
        changed("HELLO", name=LARGEST_NAME),
        EXAMPLES["WELCOME"],
        changed("REFUSED", reason=reason),
    ):
        assert 0 < len(encode(message)) <= lib.MAX_GREETING_BYTES


@pytest.mark.parametrize("name", ALL)
def test_encoding_needs_exactly_the_room_it_says(name: str) -> None:
    size = len(encode(EXAMPLES[name]))
    assert len(encode(EXAMPLES[name], capacity=size)) == size
    for capacity in range(size):
        assert encode(EXAMPLES[name], capacity=capacity) == b"", capacity


def test_names() -> None:
    assert {name.replace("_", "").isalpha() for name in TYPES} == {True}
    assert "?" not in TYPES
