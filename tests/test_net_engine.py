"""csrc/net/engine*.c, where no real network can be made to stop: in the middle of a chunk, before a write."""

from __future__ import annotations

import contextlib
import itertools
import socket

import pytest
from native import FRAME_HEADERS, load

ffi, lib = load(
    *FRAME_HEADERS,
    "core/schedule.h",
    "core/peer.h",
    "net/list.h",
    "net/channel.h",
    "net/poller.h",
    "net/buffer_pool.h",
    "net/call.h",
    "net/stream.h",
    "net/link.h",
    "net/engine.h",
)
COUNT = 64
TAG = 7
OWN, OTHER, SUM = (bytes([value]) * COUNT for value in (1, 2, 3))


class Engine:
    """Rank 0, with links of one stream each, over which the test plays the others."""

    def __init__(self, *edges: tuple[int, ...]) -> None:
        """Link i has the edges of edges[i]."""
        self.machine = ffi.new("uint8_t[]", lib.peer_bytes())
        self.links = ffi.new("struct link_set *")
        self.engine = ffi.new("struct engine *")
        self.streams = ffi.new("struct stream[]", len(edges))
        for i, led in enumerate(edges):
            link = self.links.links[i]
            link.state, link.set = lib.LINK_UP, self.links
            link.streams, link.stream_count = ffi.addressof(self.streams, i), 1
            link.eager_left = lib.EAGER_WINDOW_BYTES
            for name in ("ready", "starved", "granting", "held"):
                node = ffi.addressof(link, name)
                node.next = node.previous = node
            self.streams[i].link = ffi.addressof(link)
            for edge in led:
                self.engine.edges[edge] = ffi.addressof(link)
        assert lib.engine_init(self.engine, ffi.cast("struct peer *", self.machine), self.links)
        self.links.engine = self.engine
        self.op = self.engine.ops[0]

    @classmethod
    def of_two(cls) -> Engine:
        return cls((lib.EDGE_NEXT, lib.EDGE_PREVIOUS))

    def start(
        self,
        kind: int,
        call=ffi.NULL,
        *,
        root: int = 0,
        world: int = 2,
        tree: bool = False,
        early: bool = True,
    ) -> None:
        descriptor = {"kind": kind, "datatype": lib.pcclUint8, "count": COUNT}
        descriptor |= {"early": early} if kind == lib.OP_ALL_REDUCE else {"root_or_world": root}
        fields = {
            "kind": lib.PEER_OP_START,
            "descriptor": descriptor,
            "tag": TAG,
            "world": world,
            "root": root,
        }
        fields |= {"served": kind == lib.OP_BROADCAST, "tree": tree}
        action = ffi.new("struct peer_action *", fields)
        if call != ffi.NULL:
            call.descriptor = action.descriptor
        lib.engine_start(self.engine, action, call)

    def arrive(self, step: int, payload: bytes, *, link: int = 0, cancelled: bool = False) -> None:
        """A chunk comes in; one that is cancelled is filled up with zeros."""
        stream = ffi.addressof(self.streams, link)
        frame = getattr(stream, "in").frame
        frame.step, frame.chunk, frame.payload_bytes = step, 0, len(payload)
        frame.grant = lib.engine_grant_number(self.engine, ffi.addressof(self.op))
        frame.descriptor = self.op.call.descriptor
        assert lib.engine_data_begin(self.engine, stream)
        ffi.memmove(getattr(stream, "in").payload, payload, len(payload))
        assert lib.engine_data_end(self.engine, stream, cancelled)

    def call(self, *, world: int = 2, tree: bool = False, early: bool = True) -> None:
        """An all-reduce in place, which all others have granted."""
        self.buffer = ffi.new("uint8_t[]", OWN)
        self.work = ffi.new("uint8_t[]", COUNT)
        self.users_call = ffi.new("struct call *", {"tag": TAG, "bytes": COUNT})
        self.users_call.input = self.users_call.output = self.buffer
        self.users_call.work.memory = self.work
        self.start(lib.OP_ALL_REDUCE, self.users_call, world=world, tree=tree, early=early)
        self.op.granted = self.op.sends_over

    def all_arrive(self) -> None:
        """Both chunks of the ring of two."""
        schedule = ffi.addressof(self.op.transfer.schedule)
        for step, payload in enumerate((OTHER, SUM)):
            chunk = lib.schedule_chunk(schedule, lib.schedule_step(schedule, step).receives, 0)
            if chunk.count > 0:
                self.arrive(step, payload[: chunk.count])

    def sends(self) -> bytes:
        stream = ffi.addressof(self.streams, 0)
        stream.out.count = 0
        lib.engine_pull(self.engine, stream)
        frames = stream.out.frames[0 : stream.out.count]
        return b"".join(ffi.buffer(frame.payload, frame.payload_bytes)[:] for frame in frames if frame.op)

    def says_whole(self) -> bool:
        event = ffi.new("struct peer_event *")
        return lib.engine_next_report(self.engine, event) and event.kind == lib.PEER_EVENT_OP_WHOLE

    def end(self) -> None:
        lib.engine_stop(self.engine, 0)
        if self.op.is_kept:
            lib.engine_forget(self.engine, 0)
        lib.engine_free(self.engine)


@pytest.mark.parametrize("arrived", [0, 1, COUNT // 2])
def test_a_result_that_was_returned_outlasts_a_broadcast_that_is_cut_short(arrived):
    engine = Engine.of_two()
    engine.call()
    engine.all_arrive()
    engine.sends()
    lib.engine_keep(engine.engine, 0)
    ffi.memmove(engine.buffer, bytes(COUNT), COUNT)  # they are the user's again
    engine.start(lib.OP_BROADCAST, root=1)
    engine.arrive(0, SUM[:arrived] + bytes(COUNT - arrived), cancelled=True)
    lib.engine_stop(engine.engine, 0)

    engine.start(lib.OP_BROADCAST, root=0)

    assert engine.sends() == SUM
    engine.end()


@pytest.mark.parametrize("early", [False, True])
def test_an_op_that_may_be_returned_early_is_whole_when_all_that_it_sends_is_out(early):
    engine = Engine.of_two()
    engine.call(early=early)
    engine.all_arrive()
    assert engine.says_whole() == (not early), "nothing is out yet"
    engine.sends()
    assert not engine.says_whole(), "it may be on its way"

    lib.engine_batch_out(engine.engine, ffi.addressof(engine.streams, 0))

    assert engine.says_whole() == early
    engine.end()


@pytest.mark.parametrize("first", [0, 1])
def test_one_turn_sends_all_there_is_over_whichever_link(first):
    """A tree of four: who is called last has two chunks to send, one after the other over two links."""
    cube = [(lib.EDGE_CUBE,), (lib.EDGE_CUBE + 1,)]
    engine = Engine(*(cube if first == 0 else reversed(cube)))
    pairs = [socket.socketpair() for _ in cube]
    for stream, (near, _) in zip(engine.streams, pairs, strict=True):
        stream.state, stream.item.fd, stream.item.writable = lib.STREAM_OPEN, near.fileno(), True
    with contextlib.ExitStack() as stack:
        for end in itertools.chain(*pairs):
            stack.enter_context(end)
        engine.call(world=4, tree=True)
        for step, link in enumerate((first, 1 - first), start=1):
            engine.arrive(step, OTHER, link=link)

        lib.link_set_write(engine.links)

        for _, far in pairs:
            sent = far.recv(4096, socket.MSG_DONTWAIT)
            assert len(sent) >= lib.FRAME_HEADER_BYTES + COUNT + lib.FRAME_TRAILER_BYTES
    assert engine.says_whole()
    engine.end()


def test_a_chunk_that_is_open_on_one_stream_is_refused_on_another():
    """Else its second copy could change what the checksum of the first one was said for."""
    engine = Engine((lib.EDGE_NEXT, lib.EDGE_PREVIOUS))
    streams = ffi.new("struct stream[]", 2)
    link = engine.links.links[0]
    link.streams, link.stream_count = streams, 2
    for stream in (streams[0], streams[1]):
        stream.link, stream.item.fd = ffi.addressof(link), -1
    engine.call(tree=True, early=False)

    def begins(index: int) -> bool:
        stream = ffi.addressof(streams, index)
        incoming = getattr(stream, "in")
        frame = incoming.frame
        frame.step, frame.chunk, frame.payload_bytes = step, 0, COUNT
        frame.grant = lib.engine_grant_number(engine.engine, ffi.addressof(engine.op))
        frame.descriptor = engine.op.call.descriptor
        incoming.busy = True
        return bool(lib.engine_data_begin(engine.engine, stream))

    schedule = ffi.addressof(engine.op.transfer.schedule)
    step = lib.schedule_next_receive(schedule, 0)
    engine.engine.edges[getattr(lib.schedule_step(schedule, step), "from")] = ffi.addressof(link)
    assert begins(0)
    assert not begins(1)
    assert b"nobody waits for" in ffi.string(link.reason)
    engine.end()


def test_a_sum_does_not_come_around_before_its_part_has_come():
    """Else the part would be added to what is complete, after its checksum was noted."""
    schedule = lib.schedule_make(lib.OP_ALL_REDUCE, False, 0, 3, 0, 3 * COUNT, 1)
    memory = ffi.new("uint64_t[]", lib.transfer_bytes(ffi.new("struct schedule *", schedule)))
    transfer = ffi.new("struct transfer *")
    lib.transfer_init(transfer, ffi.new("struct schedule *", schedule), memory)
    assert [lib.transfer_expects(transfer, step, 0) for step in range(4)] == [True, True, True, False]
    lib.transfer_received(transfer, 0, 0)
    assert lib.transfer_expects(transfer, 3, 0)
