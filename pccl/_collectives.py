"""The collectives of a Communicator other than all-reduce, and how all of them are run and retried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from . import _interrupt, _objects
from ._arguments import integer, milliseconds
from ._arrays import Memory, gather_memory, memory_of, scatter_memory
from ._descriptors import ReduceInfo, algorithm_value, check_tag
from ._enums import Attribute, ReduceOp
from ._native import ffi, lib
from ._objects import attempt
from ._operations import InFlight, Operation

__all__ = ["AsyncReduceHandle", "Collectives", "Request"]

_MOST = 2**32 - 1  # that the C struct can say
_AUTO = lib.pcclAlgorithmAuto

T = TypeVar("T")


class AsyncReduceHandle:
    """An op that has started. Await it with wait() or result(), from any thread, as often as you like.

    A handle that is dropped does not end its op: it goes on for all peers, and its arrays are held until it
    is over and the communicator is used again.

    array: where the result will be, if the op has an array of its own for it (recv, or the one that was
        allocated); not to be touched before the op is over. None where the result replaces the input.
    """

    def __init__(self, communicator: Collectives, operation: Operation, array: Any = None) -> None:
        self._communicator = communicator  # an op needs its communicator
        self._operation = operation
        self.array = array

    def wait(self) -> tuple[bool, int, ReduceInfo]:
        """Block until the op is over: whether it succeeded, the value of its Result, and its ReduceInfo."""
        outcome = self._operation.wait()
        return outcome.error is None, int(outcome.result), outcome.info

    def done(self) -> bool:
        """Whether wait() would return at once. Never blocks."""
        return self._operation.done()

    def result(self) -> ReduceInfo:
        """Block until the op is over; its ReduceInfo, or raise what failed it."""
        outcome = self._operation.wait()
        if outcome.error is not None:
            raise outcome.error
        return outcome.info


@lru_cache
def _options(timeout_ms: int, flags: int, algorithm: int) -> Any:
    """A pcclOpOptions_t, which nobody changes: loops ask for the same one again and again."""
    return ffi.new("pcclOpOptions_t *", {"timeout_ms": timeout_ms, "flags": flags, "algorithm": algorithm})


@dataclass(slots=True)
class Request:
    """One op with all its arguments, checked as far as Python can."""

    blocking: Any  # two functions of lib, which take `arguments`, options, the communicator, and a result
    starting: Any
    arguments: tuple[Any, ...]
    memory: tuple[Memory, ...]  # what C reads and writes while the op runs
    tag: int
    timeout: float | None
    algorithm: int
    retry: bool  # by C: it names no ranks
    early_return: bool = False
    fits: Callable[[int, int], bool] = lambda world_size, rank: True  # what it names

    def options(self) -> Any:
        """TypeError or ValueError for what C could not take."""
        flags = (lib.pcclOpRetry if self.retry else 0) | (lib.pcclOpEarlyReturn if self.early_return else 0)
        if self.timeout is None and flags == 0 and self.algorithm == _AUTO:
            return ffi.NULL  # the defaults
        return _options(milliseconds(self.timeout, "timeout"), flags, self.algorithm)


def _root_fits(root: int) -> Callable[[int, int], bool]:
    return lambda world_size, rank: root < world_size


def _parts_fit(parts: int, whole: Memory, part: Memory) -> Callable[[int, int], bool]:
    place = part.place_in(whole)
    return lambda world_size, rank: parts == world_size and place in (None, rank)


class Collectives:
    """What a Communicator does with arrays and objects. Internal: use Communicator."""

    _in_flight: InFlight

    @property
    def _handle(self) -> Any:
        raise NotImplementedError

    def _info(self) -> Any:
        raise NotImplementedError

    def get_attribute(self, attribute: Attribute) -> int:
        raise NotImplementedError

    # --- how an op is done -------------------------------------------------------------------------------

    def _run(self, request: Request) -> ReduceInfo:
        handle = self._handle  # first: in a forked process locks may be held for ever
        options = request.options()
        info = ffi.new("pcclReduceInfo_t *")
        self._in_flight.settle_some()
        _interrupt.call(request.blocking, *request.arguments, options, handle, info)
        return ReduceInfo.from_c(info)

    def _start(self, request: Request, array: Any = None) -> AsyncReduceHandle:
        arguments = (*request.arguments, request.options(), self._handle)
        operation = self._in_flight.start(request.tag, request.memory, request.starting, arguments)
        return AsyncReduceHandle(self, operation, array)

    def _run_at_place(self, request: Request, retry: bool) -> ReduceInfo:
        """With retries as long as this peer's rank and the world size are as they were. C does not retry ops
        that name ranks: they may mean others by then."""
        return self._attempt_at_place(
            lambda left: self._run(replace(request, timeout=left)),
            self._place_now() if retry else None,
            request.fits,
            request.timeout,
        )

    def _attempt_at_place(
        self,
        function: Callable[[float | None], T],
        place: tuple[int, int] | None,
        fits: Callable[[int, int], bool],
        timeout: float | None,
    ) -> T:
        """With retries as long as the place is `place`, if fits(*place): what is called for others than there
        are fails however often it is done. Once it has to be done, since others may wait for it."""
        return attempt(
            function, lambda: place is not None and fits(*place) and self._place_now() == place, timeout
        )

    def _place_now(self) -> tuple[int, int]:
        """World size and rank, (0, 0) when not connected: the op itself says best why it is not."""
        info = self._info()
        return info.world_size, info.rank

    def _place(self) -> tuple[int, int]:
        """World size and rank, of one epoch. InvalidUsage before connect()."""
        info = self._info()
        if not info.connected:
            self.get_attribute(Attribute.PEER_GROUP_WORLD_SIZE)  # raises, with its sentence
        return info.world_size, info.rank

    def _request(
        self,
        name: str,
        buffers: tuple[Memory, ...],
        *,
        tag: int,
        timeout: float | None,
        fits: Callable[[int, int], bool],
        algorithm: str = "auto",
        **fields: int,
    ) -> Request:
        """Of a collective that names ranks."""
        tag = check_tag(tag)
        descriptor = ffi.new(
            "pcclCollectiveDescriptor_t *",
            {"datatype": buffers[0].datatype.value, "tag": tag, **fields},
        )
        return Request(
            getattr(lib, f"pccl{name}"),
            getattr(lib, f"pccl{name}Async"),
            (*(memory.pointer for memory in buffers), descriptor),
            buffers,
            tag,
            timeout,
            algorithm_value(algorithm),
            retry=False,
            fits=fits,
        )

    # --- broadcast ---------------------------------------------------------------------------------------

    def _broadcast(self, x: Any, root: int, **options: Any) -> Request:
        memory = memory_of(x, "x", writable=True)
        root = integer(root, 0, _MOST, "root")
        return self._request(
            "Broadcast", (memory,), count=memory.count, root=root, fits=_root_fits(root), **options
        )

    def broadcast(
        self,
        x: Any,
        root: int = 0,
        *,
        tag: int = 0,
        algorithm: str = "auto",
        retry: bool = False,
        timeout: float | None = None,
    ) -> ReduceInfo:
        """Copy `x` of rank `root` into the `x` of all other peers of the group.

        All peers pass arrays with the same number of elements and element type, writable, and the same root,
        tag and algorithm (else MismatchError). On failure every `x` is as it was.

        When membership changes before it is done, ranks may change with it: PeerLostError; read rank again
        and choose the root anew. A root that the group never had is a ValueError.

        algorithm: "auto", "ring" (bandwidth), or "tree" (few hops); see docs/collectives.md.
        retry: do it again when it fails for another reason than a change of this peer's rank or of the world
            size, such as a broken link.
        timeout: seconds after which the op fails for all; None: no bound.
        """
        request = self._broadcast(x, root, tag=tag, algorithm=algorithm, timeout=timeout)
        return self._run_at_place(request, retry)

    def broadcast_async(
        self,
        x: Any,
        root: int = 0,
        *,
        tag: int = 0,
        algorithm: str = "auto",
        timeout: float | None = None,
    ) -> AsyncReduceHandle:
        """Start what broadcast() does. `x` must not be touched until the op is over."""
        return self._start(self._broadcast(x, root, tag=tag, algorithm=algorithm, timeout=timeout))

    # --- all-gather --------------------------------------------------------------------------------------

    def _all_gather(self, send: Any, recv: Any, **options: Any) -> tuple[Request, Any]:
        source, target, recv, world = gather_memory(send, recv, lambda: self._place()[0])
        world = min(world, _MOST)
        request = self._request(
            "AllGather",
            (source, target),
            count=source.count,
            world_size=world,
            fits=_parts_fit(world, target, source),
            **options,
        )
        return request, recv

    def all_gather(
        self,
        send: Any,
        recv: Any = None,
        *,
        tag: int = 0,
        retry: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Collect `send` of all peers of the group, in order of ranks, and return the array that has it.

        recv: shape (world_size, *send.shape), or flat (world_size * send.size,), with send's element type.
            None: a new array of the first shape, NumPy or torch as send is. send may be recv[rank]: in place.

        All peers pass the same number of elements, element type and tag (else MismatchError). On failure send
        is as it was; what recv holds is undefined.

        When membership changes before it is done, or recv is for the world of an earlier epoch:
        PeerLostError; call again with a recv for those who are there. A recv for a world
        that never was is a ValueError.

        retry: do it again when it fails for another reason than a change of this peer's rank or of the world
            size, such as a broken link.
        timeout: seconds after which the op fails for all; None: no bound.
        """
        request, recv = self._all_gather(send, recv, tag=tag, timeout=timeout)
        self._run_at_place(request, retry)
        return recv

    def all_gather_async(
        self,
        send: Any,
        recv: Any = None,
        *,
        tag: int = 0,
        timeout: float | None = None,
    ) -> AsyncReduceHandle:
        """Start what all_gather() does. The arrays must not be touched until the op is over; the result is in
        the handle's `array`."""
        return self._start(*self._all_gather(send, recv, tag=tag, timeout=timeout))

    # --- reduce-scatter ----------------------------------------------------------------------------------

    def _reduce_scatter(
        self, send: Any, recv: Any, op: ReduceOp | str, **options: Any
    ) -> tuple[Request, Any]:
        op_value = ReduceOp.of(op).value
        source, target, recv, world = scatter_memory(send, recv, lambda: self._place()[0])
        world = min(world, _MOST)
        request = self._request(
            "ReduceScatter",
            (source, target),
            count=target.count,
            world_size=world,
            op=op_value,
            fits=_parts_fit(world, source, target),
            **options,
        )
        return request, recv

    def reduce_scatter(
        self,
        send: Any,
        recv: Any = None,
        *,
        op: ReduceOp | str = ReduceOp.SUM,
        tag: int = 0,
        retry: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Combine `send` of all peers of the group, element by element, and return the array that has this
        peer's part of the result: that at its rank.

        send: shape (world_size, *part), or flat (world_size * n,).
        recv: shape part, or flat, with send's element type. None: a new array of shape part, or (n,), NumPy
            or torch as send is. recv may be send[rank]: in place.

        All peers pass the same number of elements, element type, op and tag (else MismatchError). On failure
        both arrays are as they were.

        When membership changes before it is done, or send is for the world of an earlier epoch:
        PeerLostError; call again with a send for those who are there. A send for a world
        that never was is a ValueError.

        retry: do it again when it fails for another reason than a change of this peer's rank or of the world
            size, such as a broken link.
        timeout: seconds after which the op fails for all; None: no bound.
        """
        request, recv = self._reduce_scatter(send, recv, op, tag=tag, timeout=timeout)
        self._run_at_place(request, retry)
        return recv

    def reduce_scatter_async(
        self,
        send: Any,
        recv: Any = None,
        *,
        op: ReduceOp | str = ReduceOp.SUM,
        tag: int = 0,
        timeout: float | None = None,
    ) -> AsyncReduceHandle:
        """Start what reduce_scatter() does. The arrays must not be touched until the op is over; the result
        is in the handle's `array`."""
        return self._start(*self._reduce_scatter(send, recv, op, tag=tag, timeout=timeout))

    # --- barrier -----------------------------------------------------------------------------------------

    @staticmethod
    def _barrier(tag: int, retry: bool, timeout: float | None) -> Request:
        return Request(
            lib.pcclBarrier,
            lib.pcclBarrierAsync,
            (check_tag(tag),),
            (),
            check_tag(tag),
            timeout,
            algorithm_value("auto"),
            retry,
        )

    def barrier(self, *, tag: int = 0, retry: bool = False, timeout: float | None = None) -> ReduceInfo:
        """Return when all peers of the group have called it with this tag. A peer that leaves in good order
        is not waited for.

        retry: when a peer is lost, do it again with those that are left, until it succeeds or this peer is
            alone (TooFewPeersError).
        timeout: seconds after which it fails for all; None: no bound.
        """
        return self._run(self._barrier(tag, retry, timeout))

    def barrier_async(
        self, *, tag: int = 0, retry: bool = False, timeout: float | None = None
    ) -> AsyncReduceHandle:
        """Start what barrier() does."""
        return self._start(self._barrier(tag, retry, timeout))

    # --- objects -----------------------------------------------------------------------------------------

    def broadcast_object(
        self,
        obj: Any = None,
        root: int = 0,
        *,
        tag: int = 0,
        retry: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Return `obj` of rank `root`, at all peers of the group. What the others pass is not looked at.

        Objects travel as MessagePack, never as pickle: None, bool, int of 64 bits, float, str, bytes, and
        lists and dicts of these. A tuple arrives as a list, a bytearray as bytes. Any other type is a
        TypeError that names it, before anything is sent. At most 16 MiB encoded: if it is more, a ValueError
        at all peers.

        Two ops under `tag`, one after the other. When membership changes before they are done: PeerLostError;
        choose the root anew.

        retry: do it again when it fails for another reason than a change of this peer's rank or of the world
            size.
        timeout: seconds for it all; None: no bound.
        """
        place = self._place()
        root = integer(root, 0, _MOST, "root")
        data = _objects.encode(obj) if root == place[1] else None
        return self._attempt_at_place(
            lambda left: _objects.broadcast(self, data, root, tag, left),
            place if retry else None,
            _root_fits(root),
            timeout,
        )

    def all_gather_object(
        self, obj: Any, *, tag: int = 0, retry: bool = False, timeout: float | None = None
    ) -> list[Any]:
        """Return the `obj` of all peers of the group, in order of ranks.

        What objects can be: see broadcast_object(). World size times the largest of them, encoded, is at most
        64 MiB, and each at most 16 MiB: if it is more, a ValueError at all peers that says whose it is.

        Two ops under `tag`, one after the other.

        retry: when a peer is lost, do it again with those that are left, until it succeeds or this peer is
            alone (TooFewPeersError).
        timeout: seconds for it all; None: no bound.
        """
        data = _objects.encode(obj)
        return attempt(lambda left: _objects.all_gather(self, data, tag, left), lambda: retry, timeout)
