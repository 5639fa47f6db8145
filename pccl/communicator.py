"""One peer of a run."""

from __future__ import annotations

import atexit
import logging
import math
import os
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from . import _interrupt
from ._address import c_addresses, look_up, parse_address
from ._arguments import boolean, c_string, integer, milliseconds
from ._arrays import memory_pair
from ._collectives import AsyncReduceHandle, Collectives, Request
from ._descriptors import (
    QuantizationOptions,
    ReduceInfo,
    ReduceOpDescriptor,
    ReduceOperandDescriptor,
    algorithm_value,
    check_tag,
    new_descriptor,
)
from ._enums import Attribute, ReduceOp, Result
from ._errors import PCCLError, check, check_process, error_for
from ._exit import is_ending, set_close_all
from ._native import ffi, lib
from ._operations import InFlight
from .state import Progress, SharedState, SharedStateSyncInfo, SharedStateSyncStrategy, progress_from_c

__all__ = ["AsyncReduceHandle", "Communicator"]

_logger = logging.getLogger("pccl")
_open: weakref.WeakSet[Communicator] = weakref.WeakSet()

# What another attempt of connect() can cure.
_WORTH_ANOTHER_ATTEMPT = frozenset(
    {
        Result.MASTER_CONNECTION_FAILED,
        Result.MASTER_CONNECTION_LOST,
        Result.RANK_CONNECTION_FAILED,
        Result.RANK_CONNECTION_LOST,
        Result.TIMEOUT,
        Result.EVICTED,
        Result.INTERNAL_ERROR,  # the system gave no socket
        Result.OUT_OF_MEMORY,
        Result.REFUSED,  # the run is full
        Result.UPDATE_TOPOLOGY_FAILED,
    }
)
_SECONDS_BETWEEN_ATTEMPTS = 1.0


def _destroy(comm: Any, in_flight: InFlight, process_id: int) -> None:
    # A forked child has a copy of the handle but none of its threads. in_flight is an argument so that the
    # memory of ops outlives the threads that write to it.
    if os.getpid() == process_id:
        # Collected, so no call waits. What a signal handler raises must not be lost in a finaliser: it runs
        # once this has returned, within the timeout.
        lib.pcclSetInterruptCheck(comm, ffi.NULL, ffi.NULL, 0)
        lib.pcclDestroyCommunicator(comm)


@atexit.register
def _close_all() -> None:
    for communicator in list(_open):
        communicator.close()


set_close_all(_close_all)


def _all_reduce(
    send: Any,
    recv: Any,
    op: ReduceOp | str,
    tag: int,
    operand: ReduceOperandDescriptor | None,
    quantization: QuantizationOptions | None,
    algorithm: str,
    retry: bool,
    early_return: bool,
    timeout: float | None,
) -> Request:
    source, target = memory_pair(send, recv)
    tag = check_tag(tag)  # an int from here on
    return Request(
        lib.pcclAllReduceWithOptions,
        lib.pcclAllReduceAsyncWithOptions,
        (source.pointer, target.pointer, new_descriptor(source, op, tag, operand, quantization)),
        (source, target),
        tag,
        timeout,
        algorithm_value(algorithm),
        retry,
        early_return,
    )


class Communicator(Collectives):
    """A peer. Connect it to the run of a master, then call joint calls and collectives with the other peers.

    address: of the master, "127.0.0.1:48148", "[::1]:48148" or "host.example:48148"; by default that in the
        environment variable PCCL_MASTER. connect() looks a name up in each of its attempts, and tries all
        addresses that it stands for.
    peer_group: collectives span the peers of one group.
    p2p_connection_pool_size: TCP streams per link; more than 64 are 64, with a warning; 0 is our default.
    timeout: seconds of silence, or of a stall of what ought to move, after which a peer or the master counts
        as lost.
    straggler_timeout: seconds to wait for a peer that has not called yet; None: no bound.
    name: shown in logs and errors.
    advertise: "host", "host:port" or "[IPv6]:port" that other peers reach this one by; None: PCCL_ADVERTISE,
        else the address from which it comes to the master. It is needed where others can't connect to that
        one (NAT, containers). A name is looked up here, once.
    port: to listen on; None: the first free one from 48149 up.
    data_threads: that move and reduce the bytes of large ops, at most 16; None: PCCL_DATA_THREADS of the
        environment, else as many as cores and load allow.
    run: the name of the run, such as "llm-7", at most 63 bytes; None: PCCL_RUN of the environment, else none.
        All peers at one master have to name the same one: a second job that was given the same master by
        mistake gets a RefusedError, and does not average with the first.
    tcp_only: links to processes of the same user on this machine go over TCP too, not through memory that
        both share. PCCL_TCP_ONLY=1 in the environment says the same.

    All calls release the GIL, and may come from any thread. Ctrl-C ends a wait and closes the communicator;
    connect() joins again.
    """

    def __init__(
        self,
        address: str | None = None,
        peer_group: int = 0,
        p2p_connection_pool_size: int = 0,
        *,
        timeout: float | None = 10.0,
        straggler_timeout: float | None = None,
        name: str | None = None,
        advertise: str | None = None,
        port: int | None = None,
        data_threads: int | None = None,
        tcp_only: bool = False,
        run: str | None = None,
    ) -> None:
        if address is None:
            address = os.environ.get("PCCL_MASTER")
            if not address:
                raise ValueError("no address of a master: pass one, or set PCCL_MASTER")
        self._group = integer(peer_group, 0, 2**32 - 1, "peer_group")
        name_text, host_text = c_string(name, "name"), c_string(advertise, "advertise")
        run_text = c_string(run, "run")
        params = ffi.new("pcclCommCreateParams_t *")
        params.peer_group = self._group
        params.p2p_connection_pool_size = integer(
            p2p_connection_pool_size, 0, 2**32 - 1, "p2p_connection_pool_size"
        )
        params.timeout_ms = milliseconds(timeout, "timeout")
        self._timeout = params.timeout_ms / 1000 or 10.0
        params.straggler_timeout_ms = milliseconds(straggler_timeout, "straggler_timeout")
        params.name, params.advertise_host, params.run = name_text, host_text, run_text
        params.listen_port = 0 if port is None else integer(port, 1, 65535, "port")
        params.data_threads = 0 if data_threads is None else integer(data_threads, 1, 16, "data_threads")
        params.flags = lib.pcclCommTcpOnly if boolean(tcp_only, "tcp_only") else 0
        _, params.master_address.port = parse_address(address)
        self._address = address  # connect() looks it up
        self._timeout_s = params.timeout_ms / 1000 or 10.0
        check(lib.pcclInit())
        handle = ffi.new("pcclComm_t **")
        check(lib.pcclCreateCommunicator(params, handle))
        self._comm = handle[0]
        self._process_id = os.getpid()
        self._in_flight = InFlight()
        finalizer = weakref.finalize(self, _destroy, self._comm, self._in_flight, self._process_id)
        finalizer.atexit = False  # _close_all() says goodbye; other threads may still be in calls
        _interrupt.watch(self._comm)
        _open.add(self)

    @property
    def _handle(self) -> Any:
        check_process(self._process_id)
        return self._comm

    # --- joining and leaving -----------------------------------------------------------------------------

    def connect(self, n_attempts: int = 5, *, timeout: float | None = None) -> Communicator:
        """Join the run. Returns at once when alone; else when the accepted peers have called
        update_topology(). What another attempt may cure is tried again a second later, `n_attempts` times in
        all: no master that answers, a full run, an eviction before this peer was let in, no descriptor.

        timeout: seconds that all attempts, and the wait to be let in, may take together; then
            PCCLTimeoutError, which says who has not called what. connect() may be called again. None: no
            bound.
        """
        integer(n_attempts, 1, 2**31, "n_attempts")
        milliseconds(timeout, "timeout")
        ends = math.inf if timeout is None else time.monotonic() + timeout
        if is_ending() is not None:
            raise error_for(
                Result.INVALID_USAGE, f"the program is ending: its main thread has ended by {is_ending()!r}"
            )
        for attempt in range(1, n_attempts + 1):
            try:
                self._find_master()
                left_s = max(ends - time.monotonic(), 0.001) if timeout is not None else None
                _interrupt.call(lib.pcclConnectWithin, self._handle, milliseconds(left_s, "timeout"))
                break
            except PCCLError as error:
                if error.result not in _WORTH_ANOTHER_ATTEMPT:
                    raise
                if attempt == n_attempts or time.monotonic() + _SECONDS_BETWEEN_ATTEMPTS >= ends:
                    if attempt > 1:
                        raise error_for(error.result, f"{error} ({attempt} attempts)") from None
                    raise
                _logger.warning("attempt %d of %d to connect failed: %s", attempt, n_attempts, error)
                time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
        return self

    def _find_master(self) -> None:
        """Tells C what the master's name stands for now: it may be known only now, or have moved."""
        handle = self._handle
        _, port = parse_address(self._address)
        ips = look_up(self._address, Result.MASTER_CONNECTION_FAILED, self._timeout_s)
        addresses, name = c_addresses(ips, port), c_string(self._address, "address")
        check(lib.pcclSetMasterAddresses(handle, addresses, len(addresses), name))

    def close(self) -> None:
        """Say goodbye. Ends every call that waits on other threads, and fails the async ops that are in
        flight: await them first. connect() joins again; closing what is not connected does nothing."""
        if os.getpid() == self._process_id:
            _interrupt.try_call(lib.pcclCloseCommunicator, self._comm)  # gone all the same if it fails
            self._in_flight.settle()

    def __enter__(self) -> Communicator:
        if not self._info().connected:
            self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- joint calls: they return when all accepted peers of the run have made the same one ----------------

    def update_topology(self) -> None:
        """Admit peers that wait in connect(). Joint: every member calls it at the same point of its loop. If
        it fails, call it again.

        The connect() of the newcomers returns together with this call, and they go on with what the members
        do next. So put it into the last line of the loop. Anywhere else, newcomers must skip it in their
        first round.
        """
        handle = self._handle  # first: in a forked process locks may be held for ever
        self._in_flight.settle()
        _interrupt.call(lib.pcclUpdateTopology, handle)

    def are_peers_pending(self) -> bool:
        """Whether peers wait to be let in: one answer for all. Joint; may run while ops are in flight."""
        pending = ffi.new("bool *")
        _interrupt.call(lib.pcclArePeersPending, self._handle, pending)
        return bool(pending[0])

    def optimize_topology(self) -> None:
        """Measure the links and order the ring after them. Joint."""
        _interrupt.call(lib.pcclOptimizeTopology, self._handle)

    # --- shared state ------------------------------------------------------------------------------------

    def sync_shared_state(
        self,
        shared_state: SharedState,
        strategy: SharedStateSyncStrategy = SharedStateSyncStrategy.ENFORCE_POPULAR,
        *,
        require_peers: bool = False,
        progress: Progress | None = None,
    ) -> SharedStateSyncInfo:
        """Make the tensors of all peers of the group equal, bit for bit. Joint, within the group.

        The highest revision wins, and ties go to the state that most peers hold. The others download only the
        pieces that differ. The revision must rise by one from sync to sync; the first sync sets
        it; afterwards shared_state.revision is the elected one. The tensors must not be touched meanwhile.

        Alone in the group it succeeds: this peer's state is the state. With require_peers it is a
        TooFewPeersError then.

        If it fails, the error says whether this peer's tensors were changed; once the cause is gone, call
        again. Names, element types and counts have to be equal at all peers: MismatchError. A tensor whose
        element type or number of elements has changed since the state was made: ValueError, before anything
        is sent.

        progress: called about ten times a second with a SharedStateSyncProgress, in this thread. What it
            raises ends the call and closes the communicator, as Ctrl-C does. It must not call pccl.
        """
        if not isinstance(shared_state, SharedState):
            raise TypeError(
                f"shared_state must be a SharedState, not {type(shared_state).__name__}: make one with "
                "pccl.SharedState(tensors), once, and pass it to each sync"
            )
        if not isinstance(strategy, SharedStateSyncStrategy):
            raise TypeError(f"strategy must be a SharedStateSyncStrategy, not {type(strategy).__name__}")
        state = shared_state.open()  # holds the memory of the tensors
        info = ffi.new("pcclSharedStateSyncInfo_t *")
        options = _interrupt.SyncOptions(
            boolean(require_peers, "require_peers"),
            None if progress is None else lambda c_progress: progress(progress_from_c(c_progress)),
        )
        _interrupt.call(
            lib.pcclSynchronizeSharedStateWithOptions,
            self._handle,
            state.pointer,
            strategy.value,
            options.pointer,
            info,
        )
        state.close()
        return SharedStateSyncInfo(info.tx_bytes, info.rx_bytes)

    # --- what it knows of itself -------------------------------------------------------------------------

    def get_attribute(self, attribute: Attribute) -> int:
        """A count of accepted peers. InvalidUsage before connect(); MasterLostError or EvictedError once that
        has happened."""
        if not isinstance(attribute, Attribute):
            raise TypeError(f"attribute must be an Attribute, not {type(attribute).__name__}")
        value = ffi.new("int *")
        check(lib.pcclGetAttribute(self._handle, attribute.value, value))
        return int(value[0])

    def _info(self) -> Any:
        info = ffi.new("pcclCommInfo_t *")
        check(lib.pcclGetCommInfo(self._handle, info))
        return info

    @property
    def world_size(self) -> int:
        """Accepted peers of the own group; 0 before connect()."""
        return int(self._info().world_size)

    @property
    def global_world_size(self) -> int:
        """Accepted peers of all groups; 0 before connect()."""
        return int(self._info().global_world_size)

    @property
    def rank(self) -> int:
        """Place in the ring of the own group. Valid within one epoch."""
        return int(self._info().rank)

    @property
    def epoch(self) -> int:
        """Number of the agreed membership; 0 before connect()."""
        return int(self._info().epoch)

    @property
    def peer_id(self) -> str:
        """32 hex digits, never used again by another peer; all zero before connect()."""
        return bytes(self._info().peer_id).hex()

    @property
    def group(self) -> int:
        """The peer group."""
        return self._group

    def __repr__(self) -> str:
        info = self._info()
        if not info.connected:
            return f"<pccl.Communicator group={self._group}, not connected>"
        return (
            f"<pccl.Communicator group={self._group} rank={info.rank} world_size={info.world_size} "
            f"epoch={info.epoch}>"
        )

    # --- collectives -------------------------------------------------------------------------------------

    def all_reduce(
        self,
        send: Any,
        recv: Any = None,
        *,
        op: ReduceOp | str = ReduceOp.SUM,
        tag: int = 0,
        operand_descriptor: ReduceOperandDescriptor | None = None,
        quantization_options: QuantizationOptions | None = None,
        algorithm: str = "auto",
        retry: bool = False,
        early_return: bool = False,
        timeout: float | None = None,
    ) -> ReduceInfo:
        """Combine `send` of all peers of the group, element by element, into `recv` of each: the same bits.

        Without `recv` the result replaces `send`. On failure `send` is as it was. All peers pass the same
        number of elements, element type, op, tag and algorithm.

        algorithm: "auto", "ring" (bandwidth), or "tree" (few hops); see docs/collectives.md.
        retry: when a peer is lost, do it again with those that are left, until it succeeds or this peer is
            alone (TooFewPeersError).
        early_return: return a result of up to 64 KiB before the master has confirmed that all have it. The
            others will have it too, unless all die that have it now; see docs/collectives.md. Equal at all
            peers.
        timeout: seconds after which the op fails for all; None: no bound.
        """
        return self._run(
            _all_reduce(
                send,
                recv,
                op,
                tag,
                operand_descriptor,
                quantization_options,
                algorithm,
                retry,
                early_return,
                timeout,
            )
        )

    def all_reduce_async(
        self,
        send: Any,
        recv: Any = None,
        *,
        op: ReduceOp | str = ReduceOp.SUM,
        tag: int = 0,
        operand_descriptor: ReduceOperandDescriptor | None = None,
        quantization_options: QuantizationOptions | None = None,
        algorithm: str = "auto",
        retry: bool = False,
        early_return: bool = False,
        timeout: float | None = None,
    ) -> AsyncReduceHandle:
        """Start what all_reduce() does. The arrays must not be touched until the op is over; they are kept
        alive until then, also when the handle is dropped. Ops in flight at the same time need different
        tags; peers may start them in any order. 1024 are in flight on a communicator: more wait for a place.
        Alone in the group: TooFewPeersError, at once."""
        return self._start(
            _all_reduce(
                send,
                recv,
                op,
                tag,
                operand_descriptor,
                quantization_options,
                algorithm,
                retry,
                early_return,
                timeout,
            )
        )

    def all_reduce_multiple_with_retry(
        self, descriptors: Sequence[ReduceOpDescriptor], *, max_in_flight: int = 4
    ) -> ReduceInfo:
        """Several ops, started in the order of `descriptors`, each as soon as fewer than `max_in_flight` run;
        beyond 1024 it makes no difference. Those that a lost peer fails are done again with the peers that
        are left, until all have succeeded or this peer is alone (TooFewPeersError). Unless all have
        succeeded, all inputs are as they were, those of ops in place too: that takes a copy of them.

        All peers pass the same list; its tags must differ (InvalidArgumentError). An op that fails for
        another reason than a lost peer, such as calls that differ, fails at all of them; the others are run
        all the same, and the first failure is raised. The bytes of the ReduceInfo are sums."""
        descriptors = list(descriptors)  # holds the arrays
        integer(max_in_flight, 1, 2**31 - 1, "max_in_flight")
        items = ffi.new("pcclReduceOpDescriptor_t[]", len(descriptors))
        memory = []  # kept until the call is over
        for i, descriptor in enumerate(descriptors):
            if not isinstance(descriptor, ReduceOpDescriptor):
                raise TypeError(f"descriptors must be ReduceOpDescriptor, not {type(descriptor).__name__}")
            memory.append(descriptor.fill(items[i]))
        info = ffi.new("pcclReduceInfo_t *")
        _interrupt.call(
            lib.pcclAllReduceMultipleWithRetry, items, len(descriptors), self._handle, info, max_in_flight
        )
        return ReduceInfo.from_c(info)
