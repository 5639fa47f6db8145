"""csrc/net/channel.c: bytes through memory that two processes share, and what the other end can't do."""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from native import load

ffi, lib = load("net/channel.h")
ffi.cdef("struct iovec { void *iov_base; size_t iov_len; };")
SEED = 20261128
BYTES = lib.CHANNEL_BYTES
LINE = 128  # LINE_BYTES of channel.c: the counts of a direction begin its first two lines
LANE = 2 * LINE + BYTES
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Pair:
    """Both ends, in one process; `memory` is what they share."""

    def __init__(self) -> None:
        self.bells = socket.socketpair()
        self.ends = [ffi.new("struct channel *") for _ in range(2)]
        descriptor = lib.channel_create(self.ends[0], self.bells[0].fileno())
        assert descriptor >= 0, os.strerror(-descriptor)
        assert lib.channel_open(self.ends[1], self.bells[1].fileno(), descriptor) == 0
        self.memory = mmap.mmap(descriptor, 2 * LANE)
        os.close(descriptor)

    def close(self) -> None:
        self.memory.close()
        for end, bell in zip(self.ends, self.bells, strict=True):
            lib.channel_close(end)
            bell.close()

    def rings(self, end: int) -> int:
        """How many bells wait for this end; they are taken."""
        try:
            return len(self.bells[end].recv(1 << 16, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def vectors(buffer: Any, size: int, cuts: Sequence[int]) -> tuple[Any, int]:
    """An iovec of `buffer`, cut at these places."""
    bounds = [0, *sorted(cuts), size]
    pieces = [{"iov_base": buffer + a, "iov_len": b - a} for a, b in itertools.pairwise(bounds)]
    return ffi.new("struct iovec[]", pieces), len(pieces)


def write(end: Any, data: bytes, cuts: Sequence[int] = ()) -> int:
    buffer = ffi.new("uint8_t[]", data)
    return int(lib.channel_write(end, *vectors(buffer, len(data), cuts)))


def read(end: Any, size: int, cuts: Sequence[int] = ()) -> bytes | int:
    """What was read, or a negative error."""
    buffer = ffi.new("uint8_t[]", size)
    done = lib.channel_read(end, *vectors(buffer, size, cuts))
    return bytes(ffi.buffer(buffer, done)) if done >= 0 else int(done)


def test_bytes_arrive_in_order_whatever_their_pieces(pair):
    source = random.Random(SEED)
    for sender, receiver in ((0, 1), (1, 0)):
        sent, received = bytearray(), bytearray()
        while len(sent) < 20 * BYTES:
            data = source.randbytes(source.choice([1, 72, 4096, 100_000, BYTES, BYTES + 5]))
            cuts = [source.randrange(len(data) + 1) for _ in range(source.randrange(4))]
            done = write(pair.ends[sender], data, cuts)
            assert done in (-errno.EAGAIN, len(data)) or 0 < done < len(data)
            sent += data[: max(done, 0)]
            assert lib.channel_waiting(pair.ends[receiver]) == len(sent) - len(received)
            size = source.choice([1, 72, 4096, 100_000, 2 * BYTES])
            found = read(pair.ends[receiver], size, [size // 2])
            received += found if isinstance(found, bytes) else b""
            assert len(sent) - len(received) <= BYTES
        while isinstance(found := read(pair.ends[receiver], BYTES), bytes):
            received += found
        assert found == -errno.EAGAIN
        assert received == sent


def test_what_is_full_or_empty_says_so(pair):
    near, far = pair.ends
    assert read(far, 10) == -errno.EAGAIN
    assert not lib.channel_has_input(far)
    assert write(near, bytes(BYTES + 1)) == BYTES
    assert write(near, b"x") == -errno.EAGAIN
    assert not lib.channel_has_room(near)
    assert lib.channel_has_input(far)
    assert len(read(far, 1)) == 1
    assert not lib.channel_has_room(near), "a byte is not worth a turn"
    assert write(near, b"xy") == 1, "though it may be used"
    read(far, BYTES // 2)
    assert lib.channel_has_room(near)


def test_the_bell_rings_once_for_who_asked(pair):
    near, far = pair.ends
    write(near, b"1")
    assert pair.rings(1) == 0, "nobody asked"
    read(far, 10)
    lib.channel_await(far, True, False)
    write(near, b"2")
    write(near, b"3")
    assert pair.rings(1) == 1
    assert pair.rings(0) == 0
    lib.channel_await(far, True, False)
    lib.channel_awake(far)
    write(near, b"4")
    assert pair.rings(1) == 0, "it is awake"


def test_the_bell_rings_for_room_when_there_is_enough(pair):
    near, far = pair.ends
    write(near, bytes(BYTES))
    lib.channel_await(near, False, True)
    read(far, 100)
    assert pair.rings(0) == 0
    read(far, BYTES // 2)
    read(far, BYTES // 2)
    assert pair.rings(0) == 1


def test_bells_are_taken_off(pair):
    near, far = pair.ends
    for _ in range(3):
        lib.channel_await(far, True, False)
        write(near, b"x")
    assert lib.channel_quiet(far)
    assert pair.rings(1) == 0
    pair.bells[0].send(bytes(100))  # more than there is a reason for
    assert not lib.channel_quiet(far), "there is more"
    assert lib.channel_quiet(far)
    assert pair.rings(1) == 0


@pytest.mark.parametrize("cuts", [0, 2])
def test_who_sleeps_is_always_woken(pair, cuts):
    """Both ends on threads of their own, asleep whenever they can be. A lost bell is a time-out here."""
    total, source = 40 * BYTES, random.Random(SEED)
    data = source.randbytes(1 << 20)
    failures: list[str] = []

    def wait(end: int, *, room: bool) -> None:
        channel = pair.ends[end]
        ready = lib.channel_has_room if room else lib.channel_has_input
        lib.channel_quiet(channel)
        lib.channel_await(channel, not room, room)
        if not ready(channel) and not select.select([pair.bells[end]], [], [], 10)[0]:
            failures.append(f"end {end} was not woken (room: {room})")
        lib.channel_awake(channel)

    def send() -> None:
        sizes, sent = random.Random(SEED + 1), 0
        while sent < total and not failures:
            at = sent % len(data)
            size = min(sizes.choice([1, 100, 5000, BYTES]), total - sent, len(data) - at)
            done = write(pair.ends[0], data[at : at + size], [size // 3] * cuts)
            if done == -errno.EAGAIN:
                wait(0, room=True)
            sent += max(done, 0)

    sender = threading.Thread(target=send)
    sender.start()
    received = 0
    while received < total and not failures:
        found = read(pair.ends[1], source.choice([7, 4096, BYTES]), [3] * cuts)
        if isinstance(found, bytes):
            at = received % len(data)
            expected = data[at : at + len(found)] + data[: max(0, at + len(found) - len(data))]
            assert found == expected
            received += len(found)
        else:
            wait(1, room=False)
    sender.join()
    assert not failures


# --- the other end is hostile ------------------------------------------------------------------------------


def memory_of(size: int, seals: int) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.mark.parametrize(
    ("size", "seals", "good"),
    [
        pytest.param(2 * LANE, SEALS, True, id="as it is made"),
        pytest.param(2 * LANE, SEALS | fcntl.F_SEAL_WRITE, False, id="that nobody may write to"),
        pytest.param(2 * LANE, SEALS & ~fcntl.F_SEAL_SHRINK, False, id="that can be cut off"),
        pytest.param(2 * LANE, 0, False, id="without seals"),
        pytest.param(2 * LANE - 1, SEALS, False, id="too small"),
        pytest.param(3 * LANE, SEALS, False, id="too large"),
    ],
)
def test_only_memory_that_stays_is_mapped(size, seals, good):
    descriptor = memory_of(size, seals)
    channel = ffi.new("struct channel *")
    result = lib.channel_open(channel, -1, descriptor)
    os.close(descriptor)
    assert (result == 0) == good
    assert (channel.memory != ffi.NULL) == good
    lib.channel_close(channel)
    assert channel.memory == ffi.NULL


def test_what_is_no_memory_is_refused():
    channel = ffi.new("struct channel *")
    with socket.socket() as other:
        assert lib.channel_open(channel, -1, other.fileno()) == -errno.EINVAL
    assert lib.channel_open(channel, -1, -1) == -errno.EINVAL


@pytest.mark.parametrize(
    ("line", "count"), [(0, BYTES + 1), (0, 2**63), (0, 2**64 - 1), (LINE, 1), (LINE, BYTES), (LINE, 2**63)]
)
def test_counts_that_can_not_be_are_noticed(pair, line, count):
    """Those that the second end writes: how much it has written, and how much it has read."""
    near = pair.ends[0]
    lane = LANE if line == 0 else 0
    pair.memory[lane + line : lane + line + 8] = struct.pack("<Q", count)
    if line == 0:
        assert lib.channel_has_input(near)
        assert lib.channel_waiting(near) == 0
        assert read(near, 100) == -errno.EPROTO
    else:
        assert lib.channel_has_room(near)
        assert write(near, b"x") == -errno.EPROTO


def test_counts_that_jump_lead_nowhere_else(pair):
    """Nothing but the ring is read or written, whatever stands in the shared memory."""
    source, near = random.Random(SEED), pair.ends[0]
    for _ in range(3000):
        for place in (0, LINE, LANE, LANE + LINE):
            pair.memory[place : place + 16] = source.choice(
                [source.randbytes(16), struct.pack("<QQ", source.randrange(2 * BYTES), 1), bytes(16)]
            )
        found = read(near, source.randrange(1, 2 * BYTES))
        assert found in (-errno.EPROTO, -errno.EAGAIN) or len(found) <= BYTES
        done = write(near, bytes(source.randrange(1, 2 * BYTES)))
        assert done in (-errno.EPROTO, -errno.EAGAIN) or 0 < done <= BYTES
        lib.channel_await(near, True, True)
        pair.rings(1)
