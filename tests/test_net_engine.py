"""csrc/net/engine.c, where no real network can be made to stop: in the middle of a chunk."""

import pytest
from native import PUBLIC_HEADERS, load

ffi, lib = load(
    *PUBLIC_HEADERS,
    "base/limits.h",
    "base/id.h",
    "base/address.h",
    "wire/message.h",
    "wire/frame.h",
    "core/schedule.h",
    "core/peer.h",
    "net/list.h",
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
    """Rank 0 of 2, with one link of one stream, over which the test plays the other."""

    def __init__(self) -> None:
        self.machine = ffi.new("uint8_t[]", lib.peer_bytes())
        self.links = ffi.new("struct link_set *")
        self.stream = ffi.new("struct stream *")
        self.engine = ffi.new("struct engine *")
        link = self.links.links[0]
        link.state, link.set = lib.LINK_UP, self.links
        link.streams, link.stream_count, self.stream.link = self.stream, 1, ffi.addressof(link)
        link.eager_left = lib.EAGER_WINDOW_BYTES
        for name in ("ready", "starved", "granting", "held"):
            node = ffi.addressof(link, name)
            node.next = node.previous = node
        assert lib.engine_init(self.engine, ffi.cast("struct peer *", self.machine), self.links)
        self.links.engine = self.engine
        for edge in (lib.EDGE_NEXT, lib.EDGE_PREVIOUS):
            self.engine.edges[edge] = ffi.addressof(link)
        self.op = self.engine.ops[0]

    def start(self, kind: int, call=ffi.NULL, *, root: int = 0) -> None:
        descriptor = {"kind": kind, "datatype": lib.pcclUint8, "count": COUNT}
        descriptor |= {"early": True} if kind == lib.OP_ALL_REDUCE else {"root_or_world": root}
        fields = {"kind": lib.PEER_OP_START, "descriptor": descriptor, "tag": TAG, "world": 2, "root": root}
        action = ffi.new("struct peer_action *", fields | {"served": kind == lib.OP_BROADCAST})
        if call != ffi.NULL:
            call.descriptor = action.descriptor
        lib.engine_start(self.engine, action, call)

    def arrive(self, step: int, payload: bytes, *, cancelled: bool = False) -> None:
        """A chunk comes in; one that is cancelled is filled up with zeros."""
        frame = getattr(self.stream, "in").frame
        frame.step, frame.chunk, frame.payload_bytes = step, 0, len(payload)
        frame.grant = lib.engine_grant_number(self.engine, ffi.addressof(self.op))
        frame.descriptor = self.op.call.descriptor
        assert lib.engine_data_begin(self.engine, self.stream)
        ffi.memmove(getattr(self.stream, "in").payload, payload, len(payload))
        assert lib.engine_data_end(self.engine, self.stream, cancelled)

    def sends(self) -> bytes:
        self.stream.out.count = 0
        lib.engine_pull(self.engine, self.stream)
        frames = self.stream.out.frames[0 : self.stream.out.count]
        return b"".join(ffi.buffer(frame.payload, frame.payload_bytes)[:] for frame in frames if frame.op)

    def returned_early(self) -> None:
        """The op is whole, and its call has returned."""
        call = ffi.new("struct call *")
        buffer = ffi.new("uint8_t[]", OWN)
        work = ffi.new("uint8_t[]", COUNT)
        call.tag, call.input, call.output, call.bytes, call.work.memory = TAG, buffer, buffer, COUNT, work
        self.start(lib.OP_ALL_REDUCE, call)
        for step in range(2):
            chunk = lib.schedule_chunk(
                ffi.addressof(self.op.transfer.schedule),
                lib.schedule_step(ffi.addressof(self.op.transfer.schedule), step).receives,
                0,
            )
            if chunk.count > 0:
                self.arrive(step, (OTHER if step == 0 else SUM)[: chunk.count])
        self.sends()
        lib.engine_keep(self.engine, 0)
        ffi.memmove(buffer, bytes(COUNT), COUNT)  # they are the user's again


@pytest.mark.parametrize("arrived", [0, 1, COUNT // 2])
def test_a_result_that_was_returned_outlasts_a_broadcast_that_is_cut_short(arrived):
    engine = Engine()
    engine.returned_early()
    engine.start(lib.OP_BROADCAST, root=1)
    engine.arrive(0, SUM[:arrived] + bytes(COUNT - arrived), cancelled=True)
    lib.engine_stop(engine.engine, 0)

    engine.start(lib.OP_BROADCAST, root=0)

    assert engine.sends() == SUM
    lib.engine_stop(engine.engine, 0)
    lib.engine_forget(engine.engine, 0)
    lib.engine_free(engine.engine)
