"""csrc/net/state_holder.c and state_fetcher.c, each with Python on the other end of its connections: what a
broken or hostile other side may say costs a connection, never memory or a crash."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from native import load
from test_wire_state import HEADER, MAGIC, pack

ffi, lib = load(
    "ccoip.h",
    "ccoip_inet.h",
    "pccl.h",
    "base/limits.h",
    "base/id.h",
    "base/address.h",
    "wire/message.h",
    "wire/frame.h",
    "wire/state.h",
    "data/reduce.h",
    "data/state_hash.h",
    "data/crc32c.h",
    "net/list.h",
    "net/poller.h",
    "net/state_table.h",
    "net/state_compare.h",
    "net/state_holder.h",
    "net/state_fetcher.h",
)

LEAF = lib.STATE_LEAF_BYTES
MS = 10**6


class Table:
    """A state of arrays of bytes: one leaf or more each."""

    def __init__(self, *sizes: int, fill: int = 1, free: bool = False, tied: bool = False) -> None:
        generator = np.random.default_rng(fill)
        self.arrays = [generator.integers(0, 256, size, np.uint8) for size in sizes]
        if tied:  # the first two are one
            self.arrays[1] = self.arrays[0]
        self._names = [ffi.new("char[]", f"t{i}".encode()) for i in range(len(sizes))]
        infos = ffi.new("pcclTensorInfo_t[]", len(sizes))
        for info, name, array in zip(infos, self._names, self.arrays, strict=True):
            info.name, info.count, info.datatype = name, array.size, lib.pcclUint8
            info.data = ffi.cast("void *", array.ctypes.data)
            info.allow_content_inequality = free
        state = ffi.new("pcclSharedState_t *", {"count": len(sizes), "infos": infos})
        self.native = ffi.new("struct state_table *")
        assert lib.state_table_make(self.native, state, b"test") == lib.pcclSuccess
        tensor = ffi.new("size_t *")
        for leaf in range(self.native.leaf_count):
            lib.state_table_hash_leaf(self.native, leaf, tensor, ffi.addressof(self.native.hashes, leaf))

    def leaves(self) -> list[bytes]:
        return [
            array[start : start + LEAF].tobytes()
            for array in self.arrays
            for start in range(0, array.size, LEAF)
        ]

    def hashes(self) -> bytes:
        return b"".join(
            struct.pack("<QQ", *self.native.hashes[i].words) for i in range(self.native.leaf_count)
        )

    def close(self) -> None:
        lib.state_table_free(self.native)


def hot_items(poller: Any) -> list[Any]:
    """Those that are hot now, taken out, as the loop of a sync does."""
    items, head = [], ffi.addressof(poller, "hot")
    offset = ffi.offsetof("struct poll_item", "hot")
    while head.next != head:
        node = head.next
        node.previous.next, node.next.previous = node.next, node.previous
        node.next = node.previous = node
        items.append(ffi.cast("struct poll_item *", ffi.cast("char *", node) - offset))
    return items


# --- the holder ------------------------------------------------------------------------------------------


class Holder:
    def __init__(self, table: Table) -> None:
        self.table = table
        self.opened: list[socket.socket] = []
        self.poller, self.native = ffi.new("struct poller *"), ffi.new("struct state_holder *")
        assert lib.poller_open(self.poller) == 0
        lib.state_holder_init(self.native, self.poller, table.native, 1000)

    def admit(self, peer: int = 0) -> socket.socket:
        server = socket.create_server(("127.0.0.1", 0))
        mine = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        server.close()
        theirs.setblocking(False)
        mine.setblocking(False)
        self.opened.append(mine)
        lib.state_holder_admit(self.native, theirs.detach(), ffi.new("struct id *", {"bytes": bytes([peer])}))
        return mine

    def turn(self) -> None:
        lib.poller_wait(self.poller, 5 * MS)
        for item in hot_items(self.poller):
            lib.state_holder_ready(self.native, item)

    def ask(self, mine: socket.socket, question: bytes, size: int) -> bytes:
        """`size` bytes of the answer, or less if the connection ends."""
        data, deadline = b"", time.monotonic() + 20
        while len(data) < size:
            assert time.monotonic() < deadline
            if question:
                question = question[mine.send(question) :]
            self.turn()
            with contextlib.suppress(BlockingIOError):
                got = mine.recv(1 << 20)
                if not got:
                    break
                data += got
        return data

    def close(self) -> None:
        lib.state_holder_close(self.native)
        lib.poller_close(self.poller)
        for one in self.opened:
            one.close()


@pytest.fixture
def holder() -> Iterator[Holder]:
    table = Table(3 * LEAF + 5, 7, LEAF)
    holder = Holder(table)
    yield holder
    holder.close()
    table.close()


def question(subject: int, first: int = 0, count: int = 0) -> bytes:
    return pack(subject, count, first, 0)


def test_leaves_hashes_and_keys_as_asked(holder: Holder) -> None:
    mine = holder.admit()
    leaves = holder.table.leaves()
    parts = leaves[2:6]
    size = sum(map(len, parts))
    expected = pack(lib.STATE_LEAVES, 4, 2, size) + b"".join(parts)
    assert holder.ask(mine, question(lib.STATE_LEAVES, 2, 4), len(expected)) == expected
    assert holder.native.tx_bytes == size
    expected = pack(lib.STATE_HASHES, 6, 0, 96) + holder.table.hashes()
    assert holder.ask(mine, question(lib.STATE_HASHES, 0, 6), len(expected)) == expected
    keys = b"".join(
        struct.pack("<H", 2) + f"t{i}".encode() + struct.pack("<BBQ", lib.pcclUint8, 0, array.size)
        for i, array in enumerate(holder.table.arrays)
    )
    expected = pack(lib.STATE_KEYS, 0, 0, len(keys)) + keys
    assert holder.ask(mine, question(lib.STATE_KEYS), len(expected)) == expected


def test_many_questions_at_once_are_answered_in_order(holder: Holder) -> None:
    mine = holder.admit()
    leaves = holder.table.leaves()
    order = [5, 0, 4, 1, 3, 2] * 10
    expected = b"".join(pack(lib.STATE_LEAVES, 1, i, len(leaves[i])) + leaves[i] for i in order)
    asked = b"".join(question(lib.STATE_LEAVES, i, 1) for i in order)
    assert holder.ask(mine, asked, len(expected)) == expected


def test_a_dispute_is_answered_unless_the_leaf_has_changed(holder: Holder) -> None:
    mine = holder.admit()
    size = 32 + 2 * LEAF
    assert len(holder.ask(mine, question(lib.STATE_LEAVES, 0, 2), size)) == size
    assert holder.ask(mine, question(lib.STATE_DISPUTE, 1, 1), 32) == pack(lib.STATE_DISPUTE, 1, 1, 0)
    assert not holder.native.changed
    holder.table.arrays[0][LEAF + 9] ^= 1
    mine.send(question(lib.STATE_DISPUTE, 1, 1))
    for _ in range(5):
        holder.turn()
    assert holder.native.changed
    assert holder.native.changed_leaf == 1
    with pytest.raises(BlockingIOError):
        mine.recv(100)


@pytest.mark.parametrize(
    "bad",
    [
        question(lib.STATE_LEAVES, 6, 1),
        question(lib.STATE_LEAVES, 0, 7),
        question(lib.STATE_LEAVES, 2**64 - 1, 2),
        question(lib.STATE_HASHES, 0, 2**32 - 1),
        question(lib.STATE_DISPUTE, 6, 1),
        question(lib.STATE_KEYS, 1, 0),
        b"GET / HTTP/1.1\r\nHost: pccl\r\n\r\n..",
        bytes(32),
        struct.pack(HEADER, MAGIC, lib.STATE_LEAVES, 1, 0, 0) + bytes(4),
    ],
    ids=[
        "leaf behind the end",
        "too many leaves",
        "numbers that wrap",
        "too many hashes",
        "dispute behind the end",
        "keys in the middle",
        "another protocol",
        "zeros",
        "wrong checksum",
    ],
)
def test_bad_questions_cost_their_connection_alone(holder: Holder, bad: bytes) -> None:
    mine, other = holder.admit(), holder.admit()
    assert holder.ask(mine, bad, 1) == b""
    assert holder.native.visitor_count == 1
    leaf = holder.table.leaves()[4]
    expected = pack(lib.STATE_LEAVES, 1, 4, len(leaf)) + leaf
    assert holder.ask(other, question(lib.STATE_LEAVES, 4, 1), len(expected)) == expected


def test_visitors_that_go_are_forgotten(holder: Holder) -> None:
    visitors = [holder.admit() for _ in range(20)]
    for visitor in visitors[:10]:
        visitor.send(question(lib.STATE_LEAVES, 0, 6)[:20])
        visitor.close()
    for visitor in visitors[10:]:
        visitor.send(question(lib.STATE_LEAVES, 0, 6) * 20)
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        visitor.close()
    for _ in range(20):
        holder.turn()
    assert holder.native.visitor_count == 0


def expect_turned_away(visitor: socket.socket) -> None:
    visitor.setblocking(True)
    assert visitor.recv(1) == b""


def test_one_peer_has_no_more_connections_than_a_link_has_streams(holder: Holder) -> None:
    for _ in range(lib.MAX_STREAMS):
        holder.admit(peer=1)
    expect_turned_away(holder.admit(peer=1))
    holder.admit(peer=2)
    assert holder.native.visitor_count == lib.MAX_STREAMS + 1


def test_the_oldest_visitor_that_asks_nothing_makes_room(holder: Holder) -> None:
    visitors = [holder.admit(peer=i % 8) for i in range(lib.MAX_VISITORS)]
    expect_turned_away(holder.admit(peer=100))  # all have only just come
    time.sleep(0.3)  # more than a quarter of the timeout
    leaf = holder.table.leaves()[4]
    answer = pack(lib.STATE_LEAVES, 1, 4, len(leaf)) + leaf
    assert holder.ask(visitors[0], question(lib.STATE_LEAVES, 4, 1), len(answer)) == answer
    late = holder.admit(peer=100)
    expect_turned_away(visitors[1])
    assert holder.ask(late, question(lib.STATE_LEAVES, 4, 1), len(answer)) == answer
    assert holder.native.visitor_count == lib.MAX_VISITORS


def test_nobody_disputes_more_leaves_than_it_has_asked_for(holder: Holder) -> None:
    mine = holder.admit()
    leaf = holder.table.leaves()[4]
    answer = pack(lib.STATE_LEAVES, 1, 4, len(leaf)) + leaf
    dispute = question(lib.STATE_DISPUTE, 4, 1)
    asked = holder.ask(mine, question(lib.STATE_LEAVES, 4, 1) + dispute, len(answer) + len(dispute))
    assert asked == answer + dispute
    assert holder.ask(mine, dispute, 1) == b""
    assert holder.native.visitor_count == 0


def test_a_holder_calls_a_fetcher_that_cannot_reach_it(holder: Holder) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    member = ffi.new("struct member *")
    member.address.family, member.address.port = lib.ADDRESS_IPV4, server.getsockname()[1]
    member.address.bytes[0:4] = [127, 0, 0, 1]
    greeting = ffi.new("struct link_greeting *", {"streams": 1})
    lib.state_holder_call(holder.native, member, greeting)
    fetcher, _ = server.accept()
    server.close()
    holder.opened.append(fetcher)
    fetcher.setblocking(False)
    greeted = ffi.new("uint8_t[]", lib.LINK_GREETING_BYTES)
    lib.link_greeting_encode(greeting, greeted)
    assert holder.ask(fetcher, b"", lib.LINK_GREETING_BYTES) == bytes(greeted)
    leaf = holder.table.leaves()[4]
    answer = pack(lib.STATE_LEAVES, 1, 4, len(leaf)) + leaf
    assert holder.ask(fetcher, question(lib.STATE_LEAVES, 4, 1), len(answer)) == answer


# --- the fetcher -----------------------------------------------------------------------------------------

Answer = Callable[[int, int, int], bytes | None]


class Source:
    """A holder in Python: a listening socket, and a function that answers questions; None hangs up."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.asked: list[tuple[int, int, int]] = []
        self.connections = 0
        self.trickles = False
        self._trickled = 0.0
        self._open: dict[socket.socket, tuple[bytearray, bytearray]] = {}

    def turn(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if self.listener.fileno() < 0:
                raise BlockingIOError
            one, _ = self.listener.accept()
            self.take(one)
        for one, (incoming, outgoing) in list(self._open.items()):
            try:
                self._read(one, incoming, outgoing)
                if self.trickles and time.monotonic() > self._trickled + 0.02:
                    self._trickled = time.monotonic()
                    outgoing += b"p"  # of a header that never ends
                if outgoing:
                    del outgoing[: one.send(outgoing)]
            except BlockingIOError:
                pass
            except (ConnectionError, EOFError):
                one.close()
                del self._open[one]

    def take(self, one: socket.socket, greeting: bytes = b"") -> None:
        one.setblocking(False)
        self.connections += 1
        self._open[one] = (bytearray(greeting), bytearray())

    def _read(self, one: socket.socket, incoming: bytearray, outgoing: bytearray) -> None:
        with contextlib.suppress(BlockingIOError):
            data = one.recv(1 << 16)
            if not data:
                raise EOFError
            incoming += data
        greeting = lib.LINK_GREETING_BYTES
        while len(incoming) >= greeting + 32:
            header = ffi.new("struct state_header *")
            assert lib.state_header_decode(bytes(incoming[greeting : greeting + 32]), header)
            del incoming[greeting : greeting + 32]
            asked = (header.subject, header.first, header.count)
            self.asked.append(asked)
            reply = self.answer(*asked)
            if reply is None:
                raise EOFError
            outgoing += reply

    def close(self) -> None:
        self.listener.close()
        for one in self._open:
            one.close()


def honest(table: Table) -> Answer:
    leaves, hashes = table.leaves(), table.hashes()

    def answer(subject: int, first: int, count: int) -> bytes:
        if subject == lib.STATE_HASHES:
            data = hashes[16 * first : 16 * (first + count)]
        elif subject == lib.STATE_LEAVES:
            data = b"".join(leaves[first : first + count])
        else:
            assert subject == lib.STATE_DISPUTE
            data = b""
        return pack(subject, count, first, len(data)) + data

    return answer


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    mine.setblocking(False)
    return mine, theirs


_fetchers: list[Fetcher] = []


class Fetcher:
    def __init__(self, table: Table, elected: Table, *answers: Answer, timeout_ms: int = 2000) -> None:
        self.table = table
        _fetchers.append(self)
        self.poller, self.native = ffi.new("struct poller *"), ffi.new("struct state_fetcher *")
        assert lib.poller_open(self.poller) == 0
        lib.state_fetcher_init(self.native, self.poller, table.native, 4, timeout_ms * MS)
        self.sources = [Source(answer) for answer in answers]
        self.plan = ffi.new("struct message_sync_plan *", {"sync": 1, "revision": 7, "role": lib.SYNC_FETCH})
        self.plan.keys = lib.state_table_keys(elected.native)
        self.plan.content = lib.state_table_content(elected.native, elected.native.hashes)
        self.set_sources(self.sources)

    def set_sources(self, sources: list[Source]) -> None:
        self.plan.source_count = len(sources)
        for i, source in enumerate(sources):
            member = self.plan.sources[i]
            member.id.bytes[0] = 1 + self.sources.index(source)
            member.address.family, member.address.port = lib.ADDRESS_IPV4, source.port
            member.address.bytes[0:4] = [127, 0, 0, 1]
        lib.state_fetcher_plan(self.native, self.plan)

    def turn(self) -> None:
        lib.state_fetcher_tick(self.native, time.monotonic_ns())
        if self.native.stage == lib.FETCH_READY:
            lib.state_fetcher_begin(self.native)
        lib.poller_wait(self.poller, MS)
        for item in hot_items(self.poller):
            lib.state_fetcher_ready(self.native, item)
        for source in self.sources:
            source.turn()

    def run(self, seconds: float = 20) -> int:
        deadline = time.monotonic() + seconds
        while self.native.stage not in (lib.FETCH_DONE, lib.FETCH_FAILED):
            assert time.monotonic() < deadline, self.native.stage
            self.turn()
        return int(self.native.stage)

    @property
    def reason(self) -> str:
        return str(ffi.string(self.native.reason).decode())

    def expect_done(self, elected: Table) -> None:
        assert self.run() == lib.FETCH_DONE, self.reason
        self.expect_truth()
        assert self.table.leaves() == elected.leaves()

    def expect_truth(self) -> None:
        """The table tells what is in memory."""
        tensor, found = ffi.new("size_t *"), ffi.new("struct state_hash *")
        for leaf in range(self.table.native.leaf_count):
            lib.state_table_hash_leaf(self.table.native, leaf, tensor, found)
            assert list(found.words) == list(self.table.native.hashes[leaf].words), leaf

    def close(self) -> None:
        lib.state_fetcher_free(self.native)
        lib.poller_close(self.poller)
        for source in self.sources:
            source.close()


SIZES = (5 * LEAF + 17, 3, LEAF, 100)


@pytest.fixture
def tables() -> Iterator[tuple[Table, Table]]:
    mine, elected = Table(*SIZES, fill=1), Table(*SIZES, fill=2)
    elected.arrays[2][:] = mine.arrays[2]  # one leaf is right already
    lib.state_table_hash_leaf(elected.native, 7, ffi.new("size_t *"), ffi.addressof(elected.native.hashes, 7))
    yield mine, elected
    while _fetchers:
        _fetchers.pop().close()
    mine.close()
    elected.close()


@pytest.mark.parametrize("sources", [1, 2, 4, 8])
def test_fetches_what_differs_from_all_sources(tables: tuple[Table, Table], sources: int) -> None:
    mine, elected = tables
    fetcher = Fetcher(mine, elected, *[honest(elected)] * sources)
    fetcher.expect_done(elected)
    leaves = [
        leaf
        for source in fetcher.sources
        for subject, first, count in source.asked
        if subject == lib.STATE_LEAVES
        for leaf in range(first, first + count)
    ]
    assert sorted(leaves) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert fetcher.native.rx_bytes == sum(SIZES) - LEAF
    assert sum(source.connections > 0 for source in fetcher.sources) == min(sources, 4)


def test_has_it_already(tables: tuple[Table, Table]) -> None:
    mine, _ = tables
    fetcher = Fetcher(mine, mine, honest(mine))
    assert fetcher.run() == lib.FETCH_DONE
    assert fetcher.sources[0].connections == 0


def broken(good: Answer, how: Callable[[int, int, int, bytes], bytes | None]) -> Answer:
    return lambda subject, first, count: how(subject, first, count, good(subject, first, count) or b"")


def flipped_leaves(subject: int, first: int, count: int, reply: bytes) -> bytes:
    return (
        reply[:40] + bytes([reply[40] ^ 4]) + reply[41:]
        if subject == lib.STATE_LEAVES and len(reply) > 40
        else reply
    )


FAULTS: dict[str, Callable[[int, int, int, bytes], bytes | None]] = {
    "wrong bytes": flipped_leaves,
    "wrong hashes": lambda s, f, c, reply: reply[:-1] + b"\1" if s == lib.STATE_HASHES else reply,
    "hangs up at once": lambda s, f, c, reply: None,
    "hangs up at leaves": lambda s, f, c, reply: None if s == lib.STATE_LEAVES else reply,
    "another subject": lambda s, f, c, reply: pack(lib.STATE_KEYS, 0, 0, 0),
    "another leaf": lambda s, f, c, reply: pack(s, c, f + 1, len(reply) - 32) + reply[32:],
    "too long": lambda s, f, c, reply: pack(s, c, f, 2**63) + reply[32:],
    "too short": lambda s, f, c, reply: pack(s, c, f, 0),
    "no header": lambda s, f, c, reply: b"\0" * 4096,
    "another protocol": lambda s, f, c, reply: b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9,
    "what was not asked": lambda s, f, c, reply: reply + reply,
    "stops in the middle": lambda s, f, c, reply: (
        reply[: len(reply) // 2] if s == lib.STATE_LEAVES else reply
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_source_is_made_up_for_by_a_good_one(tables: tuple[Table, Table], fault: str) -> None:
    mine, elected = tables
    good = honest(elected)
    fetcher = Fetcher(mine, elected, broken(good, FAULTS[fault]), good, timeout_ms=300)
    fetcher.expect_done(elected)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_source_alone_is_a_failure_with_a_sentence(tables: tuple[Table, Table], fault: str) -> None:
    mine, elected = tables
    fetcher = Fetcher(mine, elected, broken(honest(elected), FAULTS[fault]), timeout_ms=150)
    if fault in ("what was not asked", "hangs up at leaves") and fetcher.run() == lib.FETCH_DONE:
        fetcher.expect_truth()  # what came before was right
    else:
        assert fetcher.run() == lib.FETCH_FAILED
        assert "01000000" in fetcher.reason
        fetcher.expect_truth()
    if fault == "wrong bytes":
        assert "has changed since it was offered" in fetcher.reason
        assert fetcher.native.status == lib.pcclInvalidUsage


def test_a_source_that_says_nothing_is_left_after_the_timeout(tables: tuple[Table, Table]) -> None:
    mine, elected = tables
    fetcher = Fetcher(mine, elected, lambda *_: b"", honest(elected), timeout_ms=200)
    fetcher.expect_done(elected)


@pytest.mark.parametrize("subject", [lib.STATE_HASHES, lib.STATE_LEAVES])
def test_a_source_that_trickles_is_left_for_one_that_does_not(
    tables: tuple[Table, Table], subject: int
) -> None:
    """Its bytes never stop, so that it is never silent for a timeout."""
    mine, elected = tables
    slow = broken(honest(elected), lambda s, f, c, reply: b"" if s == subject else reply)
    fetcher = Fetcher(mine, elected, slow, honest(elected), timeout_ms=300)
    trickling = fetcher.sources[0]
    trickling.trickles = True
    fetcher.expect_done(elected)
    assert fetcher.native.sources[0].slow


def test_a_source_that_trickles_alone_is_no_progress(tables: tuple[Table, Table]) -> None:
    mine, elected = tables
    fetcher = Fetcher(mine, elected, lambda *_: b"", timeout_ms=100)
    fetcher.sources[0].trickles = True
    assert fetcher.run(5) == lib.FETCH_FAILED


def test_a_source_that_cannot_be_reached_calls(tables: tuple[Table, Table]) -> None:
    mine, elected = tables
    fetcher = Fetcher(mine, elected, honest(elected), timeout_ms=1000)
    source, wanted = fetcher.sources[0], ffi.new("struct id *")
    source.listener.close()
    deadline = time.monotonic() + 10
    while not lib.state_fetcher_take_unreached(fetcher.native, time.monotonic_ns(), wanted):
        assert time.monotonic() < deadline
        fetcher.turn()
    assert wanted.bytes[0] == 1
    ours, theirs = connected()
    lib.state_fetcher_adopt(fetcher.native, ours.detach(), wanted)
    source.take(theirs, bytes(lib.LINK_GREETING_BYTES))  # it is the source that greets
    fetcher.expect_done(elected)


def test_a_stranger_that_calls_is_turned_away(tables: tuple[Table, Table]) -> None:
    mine, elected = tables
    fetcher = Fetcher(mine, elected, honest(elected))
    ours, theirs = connected()
    lib.state_fetcher_adopt(fetcher.native, ours.detach(), ffi.new("struct id *", {"bytes": b"x"}))
    expect_turned_away(theirs)
    theirs.close()
    fetcher.expect_done(elected)


def test_nothing_but_content_that_may_differ_is_there_already_whatever_was_elected() -> None:
    """A digest that no state can have must not make anybody ask for no hashes at all."""
    table = Table(100, 5, free=True)
    assert table.native.leaf_count == 0
    fetcher = Fetcher(table, table, honest(table))
    fetcher.plan.sync = 2
    fetcher.plan.content.bytes[0] ^= 1
    fetcher.set_sources(fetcher.sources)
    assert fetcher.run() == lib.FETCH_DONE
    assert fetcher.sources[0].connections == 0
    _fetchers.pop().close()
    table.close()


def test_tied_tensors_are_fetched_once_and_must_be_equal(tables: tuple[Table, Table]) -> None:
    sizes = (LEAF + 5, LEAF + 5, 7)
    mine, equal, unequal = Table(*sizes, tied=True), Table(*sizes, fill=2, tied=True), Table(*sizes, fill=3)
    fetcher = Fetcher(mine, equal, honest(equal))
    fetcher.expect_done(equal)
    assert fetcher.native.rx_bytes == LEAF + 5 + 7
    other = Fetcher(mine, unequal, honest(unequal))
    assert other.run() == lib.FETCH_FAILED
    assert other.native.status == lib.pcclMismatch
    assert 'tensors "t0" and "t1" are one piece of memory' in other.reason
    assert mine.leaves() == equal.leaves()
    for one in (mine, equal, unequal):
        while _fetchers:
            _fetchers.pop().close()
        one.close()


def test_nobody_listens(tables: tuple[Table, Table]) -> None:
    mine, elected = tables
    fetcher = Fetcher(mine, elected, honest(elected), timeout_ms=100)
    fetcher.sources[0].listener.close()
    closed, fetcher.sources = fetcher.sources, []
    assert fetcher.run() == lib.FETCH_FAILED
    assert fetcher.native.status == lib.pcclRankConnectionLost
    assert f"at 127.0.0.1:{closed[0].port}: Connection refused" in fetcher.reason
    closed[0].close()


def test_new_sources_in_the_middle(tables: tuple[Table, Table]) -> None:
    mine, elected = tables
    silent = broken(honest(elected), lambda s, f, c, reply: b"" if s == lib.STATE_LEAVES else reply)
    fetcher = Fetcher(mine, elected, silent, honest(elected), timeout_ms=60_000)
    fetcher.set_sources(fetcher.sources[:1])
    for _ in range(200):
        fetcher.turn()
    assert fetcher.native.stage == lib.FETCH_LEAVES
    fetcher.set_sources(fetcher.sources[1:])
    fetcher.expect_done(elected)


def test_another_state_is_elected_in_the_middle(tables: tuple[Table, Table]) -> None:
    mine, elected = tables
    other = Table(*SIZES, fill=3)
    slow = broken(honest(elected), lambda s, f, c, reply: b"" if s == lib.STATE_LEAVES and f > 3 else reply)
    fetcher = Fetcher(mine, elected, slow, honest(other), timeout_ms=60_000)
    fetcher.set_sources(fetcher.sources[:1])
    for _ in range(200):
        fetcher.turn()
    assert 0 < fetcher.native.left < 8
    fetcher.plan.sync = 2
    fetcher.plan.content = lib.state_table_content(other.native, other.native.hashes)
    fetcher.set_sources(fetcher.sources[1:])
    fetcher.expect_done(other)
    other.close()


def test_stopping_in_the_middle_of_a_leaf_leaves_the_table_true(tables: tuple[Table, Table]) -> None:
    mine, elected = tables
    answered: list[int] = []

    def answer_half(subject: int, first: int, count: int, reply: bytes) -> bytes:
        if subject == lib.STATE_HASHES:
            return reply
        answered.append(first)
        return reply[: LEAF // 2] if len(answered) == 1 else b""  # of one leaf alone

    half = broken(honest(elected), answer_half)
    fetcher = Fetcher(mine, elected, half, timeout_ms=60_000)
    for _ in range(300):
        fetcher.turn()
    assert fetcher.native.stage == lib.FETCH_LEAVES
    assert fetcher.native.rx_bytes == LEAF // 2 - lib.STATE_HEADER_BYTES
    lib.state_fetcher_stop(fetcher.native)
    fetcher.expect_truth()


@pytest.mark.parametrize("seed", range(10))
def test_random_damage_never_ends_in_wrong_memory(tables: tuple[Table, Table], seed: int) -> None:
    mine, elected = tables
    generator = np.random.default_rng(seed)
    good = honest(elected)

    def damage(subject: int, first: int, count: int, reply: bytes) -> bytes | None:
        kind = generator.integers(8)
        if kind == 0:
            return None
        if kind == 1:
            return reply[: generator.integers(len(reply) + 1)] + generator.bytes(100)
        if kind == 2:
            place = int(generator.integers(len(reply)))
            return (
                reply[:place] + bytes([reply[place] ^ 1 << int(generator.integers(8))]) + reply[place + 1 :]
            )
        return reply

    fetcher = Fetcher(mine, elected, broken(good, damage), broken(good, damage), good, timeout_ms=300)
    if fetcher.run() == lib.FETCH_DONE:
        assert mine.leaves() == elected.leaves()
    fetcher.expect_truth()


# --- keys that differ ------------------------------------------------------------------------------------


def test_a_broken_list_of_tensors_is_not_believed(tables: tuple[Table, Table]) -> None:
    mine, _ = tables
    other = Table(1, 2)
    lists = [b"\xff" * 100, struct.pack("<H", 5) + b"ab", b"\0\0" + bytes(10)]

    def answer(subject: int, first: int, count: int) -> bytes:
        assert subject == lib.STATE_KEYS
        data = lists[len(fetcher.sources[0].asked) % 3]
        return pack(subject, 0, 0, len(data)) + data

    fetcher = Fetcher(mine, other, answer, timeout_ms=100)
    assert fetcher.run() == lib.FETCH_FAILED
    assert fetcher.native.status == lib.pcclRankConnectionLost
    other.close()


def test_an_endless_list_of_tensors_is_read_as_far_as_it_is_of_use(tables: tuple[Table, Table]) -> None:
    mine, _ = tables
    other = Table(1, 2)
    keys = b"".join(
        struct.pack("<H", 6) + f"k{i:05}".encode() + struct.pack("<BBQ", 0, 0, 1) for i in range(1000)
    )
    fetcher = Fetcher(mine, other, lambda s, f, c: pack(s, 0, 0, 2**32) + keys, timeout_ms=1000)
    assert fetcher.run() == lib.FETCH_FAILED
    assert fetcher.native.status == lib.pcclMismatch
    assert '"k00000" is missing' in fetcher.reason
    other.close()
