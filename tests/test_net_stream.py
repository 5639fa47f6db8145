"""csrc/net/stream.c, where no real network can be made to stop: in the middle of a trailer."""

import pytest
from native import FRAME_HEADERS, load

ffi, lib = load(*FRAME_HEADERS, "net/list.h", "net/channel.h", "net/poller.h", "net/stream.h")
PAYLOAD = 100


@pytest.mark.parametrize("frames_before", [0, 1])
@pytest.mark.parametrize("sent_of_trailer", range(-5, lib.FRAME_TRAILER_BYTES))
def test_an_op_that_ends_while_its_trailer_is_on_its_way_leaves_one_trailer(frames_before, sent_of_trailer):
    stream = ffi.new("struct stream *")
    payload = ffi.new("uint8_t[]", PAYLOAD)
    op = ffi.cast("struct op *", 64)
    stream.out.count = frames_before + 1
    for i in range(frames_before + 1):
        frame = stream.out.frames[i]
        frame.payload, frame.payload_bytes = payload, PAYLOAD
        frame.op = op if i == frames_before else ffi.NULL
        lib.frame_trailer_encode(ffi.new("struct frame_trailer *", {"crc32c": 0x01020304}), frame.trailer)
    last = stream.out.frames[frames_before]
    before = bytes(last.trailer)
    whole = lib.FRAME_HEADER_BYTES + PAYLOAD + lib.FRAME_TRAILER_BYTES
    stream.out.sent = frames_before * whole + lib.FRAME_HEADER_BYTES + PAYLOAD + sent_of_trailer

    lib.stream_forget_op(stream, op)

    arrives = before[: max(sent_of_trailer, 0)] + bytes(last.trailer)[max(sent_of_trailer, 0) :]
    trailer = ffi.new("struct frame_trailer *")
    assert lib.frame_trailer_decode(arrives, trailer)
    assert trailer.cancelled == (sent_of_trailer <= 0)
    assert trailer.cancelled or trailer.crc32c == 0x01020304
    assert last.op == ffi.NULL
    assert last.payload != payload, "it belongs to its user again"
