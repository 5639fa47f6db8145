"""csrc/net/control.c over a socket pair, the other end of which is Python's."""

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import wire_messages as wire
from native import load
from wire_messages import EXAMPLES, TYPES, Message, pack, with_header

ffi, lib = load("base/limits.h", "base/id.h", "base/address.h", "wire/message.h", "net/control.h")

BIG = Message(
    "READY", {"epoch": 1, "rtt_us": 0, "kept": [], "failed": [{"tag": 7, "number": 0}] * lib.MAX_FAILED_TAGS}
)


@dataclass
class Pair:
    control: Any
    other: socket.socket

    def next(self) -> tuple[int, Message | None]:
        native = ffi.new("struct message *")
        status = lib.control_next(self.control, native)
        if status != lib.CONTROL_MESSAGE:
            return status, None
        size = ffi.new("uint8_t[]", lib.MAX_MESSAGE_BYTES)
        used = lib.message_encode(native, size, lib.MAX_MESSAGE_BYTES)
        return status, wire.decode(bytes(ffi.buffer(size, used)))[1]

    def take_all(self) -> list[Message]:
        taken = []
        while True:
            status, message = self.next()
            if message is None:
                assert status == lib.CONTROL_NOTHING
                return taken
            taken.append(message)

    def receive_all(self, size: int) -> list[Message]:
        """All messages in the `size` bytes that were sent."""
        taken: list[Message] = []
        while sum(len(pack(message)) for message in taken) < size:
            assert lib.control_receive(self.control), self.reason()
            taken += self.take_all()
        return taken

    def send(self, message: Message) -> bool:
        native = ffi.new("struct message *")
        data = pack(message)
        used = ffi.new("size_t *")
        status = lib.message_decode(data, len(data), lib.MAX_MESSAGE_BYTES, native, used)
        assert status == lib.DECODE_OK
        return bool(lib.control_send(self.control, native))

    def reason(self) -> str:
        return ffi.string(self.control.reason).decode()


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, other = socket.socketpair()
    control = ffi.new("struct control *")
    lib.control_init(control, ours.detach())
    os.set_blocking(control.fd, False)
    other.settimeout(30)
    yield Pair(control, other)
    lib.control_free(control)
    lib.control_free(control)  # again does no harm
    other.close()


def test_messages_arrive_in_order_however_they_are_cut(pair: Pair) -> None:
    data = b"".join(pack(message) for message in EXAMPLES.values())
    lib.control_vouch(pair.control)
    taken = []
    for place in range(0, len(data), 7):
        pair.other.sendall(data[place : place + 7])
        assert lib.control_receive(pair.control)
        taken += pair.take_all()
    assert taken == list(EXAMPLES.values())


def test_nothing_has_arrived_is_no_failure(pair: Pair) -> None:
    assert lib.control_receive(pair.control)
    assert pair.next() == (lib.CONTROL_NOTHING, None)


def test_an_idle_connection_holds_no_buffers_after_big_messages(pair: Pair) -> None:
    lib.control_vouch(pair.control)
    pair.other.sendall(pack(BIG))
    assert pair.receive_all(len(pack(BIG))) == [BIG]
    assert pair.send(BIG)
    assert lib.control_flush(pair.control)
    assert pair.control.inbox.capacity == pair.control.outbox.capacity == 0
    assert pair.control.inbox.bytes == pair.control.outbox.bytes == ffi.NULL


def test_an_unvouched_connection_may_not_send_big_messages(pair: Pair) -> None:
    pair.other.sendall(pack(BIG)[: lib.MESSAGE_HEADER_BYTES])
    assert lib.control_receive(pair.control)
    assert pair.next()[0] == lib.CONTROL_BAD
    assert not lib.control_receive(pair.control)


def test_an_unvouched_connection_holds_few_bytes_whatever_it_sends(pair: Pair) -> None:
    unfinished = with_header("HELLO", b"PCCL\0run" + bytes(lib.MAX_GREETING_BYTES - 14))[:-1]
    pair.other.sendall(unfinished)
    for _ in range(5):
        assert lib.control_receive(pair.control)
        assert pair.next()[0] == lib.CONTROL_NOTHING
    assert 0 < pair.control.inbox.capacity <= lib.MAX_GREETING_BYTES


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\xff" * 6, b"\0\0\0\0\0\0"])
def test_garbage_is_bad_after_the_messages_before_it(pair: Pair, garbage: bytes) -> None:
    lib.control_vouch(pair.control)
    pair.other.sendall(pack(EXAMPLES["VOTE"]) + garbage)
    assert lib.control_receive(pair.control)
    assert pair.next() == (lib.CONTROL_MESSAGE, EXAMPLES["VOTE"])
    assert pair.next() == (lib.CONTROL_BAD, None)
    assert pair.reason() == "it sent bytes that are not a pccl message"


def test_the_end_is_seen_after_the_last_message(pair: Pair) -> None:
    pair.other.sendall(pack(EXAMPLES["GOODBYE"]))
    pair.other.close()
    assert lib.control_receive(pair.control)
    assert pair.take_all() == [EXAMPLES["GOODBYE"]]
    assert not lib.control_receive(pair.control)
    assert pair.reason() == "the connection was closed by the other side"


def test_an_end_in_the_middle_of_a_message_is_said_to_be(pair: Pair) -> None:
    pair.other.sendall(pack(EXAMPLES["VOTE"])[:-1])
    pair.other.close()
    assert lib.control_receive(pair.control)
    assert pair.take_all() == []
    assert not lib.control_receive(pair.control)
    assert pair.reason() == "the connection was closed in the middle of a message"


def test_sent_messages_wait_for_the_flush_and_go_out_together(pair: Pair) -> None:
    sent = [EXAMPLES[name] for name in sorted(TYPES)]
    assert all(pair.send(message) for message in sent)
    data = b"".join(pack(message) for message in sent)
    assert lib.control_unsent(pair.control) == len(data)
    pair.other.setblocking(False)
    with pytest.raises(BlockingIOError):
        pair.other.recv(1)
    assert lib.control_flush(pair.control)
    assert lib.control_unsent(pair.control) == 0
    assert pair.other.recv(len(data) + 1) == data


def test_what_the_socket_does_not_take_waits_in_order(pair: Pair) -> None:
    sent = 0
    while lib.control_unsent(pair.control) < 100_000:
        assert pair.send(
            Message("READY", {"epoch": sent, "failed": [{"tag": sent, "number": 0}] * lib.MAX_FAILED_TAGS})
        )
        assert lib.control_flush(pair.control)
        sent += 1
    received, data = 0, b""
    while received < sent:
        data += pair.other.recv(1 << 16)
        assert lib.control_flush(pair.control)
        while (decoded := wire.decode(data))[0] == lib.DECODE_OK:
            assert decoded[1] is not None
            assert decoded[1].fields["epoch"] == received
            received += 1
            data = data[decoded[2] :]
    assert (data, lib.control_unsent(pair.control)) == (b"", 0)


def test_an_outbox_that_overflows_fails_the_connection(pair: Pair) -> None:
    most = 0
    while pair.send(BIG):
        assert lib.control_flush(pair.control)
        most = max(most, lib.control_unsent(pair.control))
    assert lib.MAX_OUTBOX_BYTES - 2 * len(pack(BIG)) < most <= lib.MAX_OUTBOX_BYTES
    assert pair.reason().startswith("it does not read: ")
    assert not lib.control_flush(pair.control)
    assert not pair.send(EXAMPLES["HEARTBEAT"])


def test_writing_to_a_closed_socket_fails_without_a_signal(pair: Pair) -> None:
    pair.other.close()
    assert pair.send(EXAMPLES["HEARTBEAT"])
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # it would end this process
    try:
        assert not lib.control_flush(pair.control)
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert pair.reason().startswith("the connection broke (")


def test_finish_lets_the_other_side_read_everything_and_then_the_end(pair: Pair) -> None:
    pair.other.sendall(b"x" * 5000)  # unread: an immediate close could destroy what we sent
    assert pair.send(EXAMPLES["REFUSED"])
    assert lib.control_flush(pair.control)
    lib.control_finish(pair.control)
    assert lib.control_drain(pair.control)
    assert lib.control_drain(pair.control)
    assert pair.other.recv(1000) == pack(EXAMPLES["REFUSED"])
    assert pair.other.recv(1000) == b""
    pair.other.close()
    assert not lib.control_drain(pair.control)
