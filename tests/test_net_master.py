"""csrc/net/master_loop.c and csrc/pccl_master.c: a real master on loopback, spoken to by plain sockets.

Whatever strangers do, a healthy peer is served meanwhile: `Master.check_serves()` joins and leaves.
"""

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wire_messages as wire
from native import PUBLIC_HEADERS, load
from wire_messages import EXAMPLES, Message, pack, with_header

ffi, lib = load(*PUBLIC_HEADERS, "base/limits.h")

WAIT_S = 30  # far beyond anything that these tests wait for


def public_address(host: str, port: int) -> Any:
    address = ffi.new("ccoip_socket_address_t *", {"port": port})
    address.inet.protocol = lib.inetIPv6 if ":" in host else lib.inetIPv4
    part = address.inet.ipv6 if ":" in host else address.inet.ipv4
    raw = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    ffi.memmove(part.data, raw, len(raw))
    return address[0]


def last_error() -> str:
    return ffi.string(lib.pcclGetLastError(ffi.NULL)).decode()


class Client:
    """One control connection from a peer's side."""

    def __init__(self, port: int, sock: socket.socket | None = None) -> None:
        self.sock = sock or socket.socket()
        self.sock.settimeout(WAIT_S)
        self.sock.connect(("127.0.0.1", port))
        self.data = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, message: Message) -> None:
        self.sock.sendall(pack(message))

    def hello(self, **changes: Any) -> None:
        fields = {**EXAMPLES["HELLO"].fields, "timeout_ms": 60_000, **changes}
        self.send(Message("HELLO", fields))

    def join(self) -> None:
        """Alone in the run: becomes a member at once."""
        self.hello()
        epoch = self.expect("PROPOSE").fields["epoch"]
        self.send(Message("READY", {"epoch": epoch, "failed": []}))
        self.expect("COMMIT_EPOCH")

    def link(self) -> None:
        """Says that the link works which the master wants to be tried."""
        key = self.expect("PROBE").fields["key"]
        self.send(Message("PROBED", {"key": key, "reached": True, "reason": b""}))

    def receive(self) -> Message | None:
        """None at the end of the connection."""
        while True:
            status, message, used = wire.decode(self.data)
            assert status != wire.lib.DECODE_BAD
            if message is not None:
                self.data = self.data[used:]
                return message
            more = self.sock.recv(1 << 16)
            if not more:
                assert not self.data
                return None
            self.data += more

    def expect(self, name: str) -> Message:
        """The next message of this type; others, but no end, may come before it."""
        while True:
            message = self.receive()
            assert message is not None, f"the connection ended before {name}"
            if message.name == name:
                return message

    def ends(self) -> bool:
        """The master has closed, whatever it said before."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True


class Master:
    def __init__(self, host: str = "127.0.0.1") -> None:
        pointer = ffi.new("pcclMasterInstance_t **")
        assert lib.pcclCreateMaster(public_address(host, 0), pointer) == lib.pcclSuccess, last_error()
        self.handle = pointer[0]
        address = ffi.new("ccoip_socket_address_t *")
        assert lib.pcclMasterGetAddress(self.handle, address) == lib.pcclSuccess
        self.port = address.port

    def run(self) -> None:
        assert lib.pcclRunMaster(self.handle) == lib.pcclSuccess, last_error()

    def client(self) -> Client:
        return Client(self.port)

    def status(self) -> Any:
        status = ffi.new("pcclMasterStatus_t *")
        assert lib.pcclMasterGetStatus(self.handle, status) == lib.pcclSuccess
        return status

    def known(self) -> int:
        status = self.status()
        return int(status.peers + status.pending)

    def wait_for_known(self, count: int) -> None:
        until = time.monotonic() + WAIT_S
        while self.known() != count:
            assert time.monotonic() < until, f"{self.known()} peers instead of {count}"
            time.sleep(0.01)

    def check_serves(self) -> None:
        """A newcomer is heard and answered (it need not be admitted: that is for the others to say)."""
        with self.client() as client:
            client.hello()
            client.expect("WELCOME")
            client.send(Message("GOODBYE", {}))
            client.expect("FAREWELL")

    def destroy(self) -> None:
        assert lib.pcclDestroyMaster(self.handle) == lib.pcclSuccess


@pytest.fixture
def master() -> Iterator[Master]:
    instance = Master()
    instance.run()
    yield instance
    instance.destroy()


# A healthy peer -------------------------------------------------------------------------------------------


def test_a_peer_is_welcomed_proposed_to_and_committed(master: Master) -> None:
    with master.client() as client:
        client.hello()
        welcome = client.expect("WELCOME")
        propose = client.expect("PROPOSE")
        assert [member["id"] for member in propose.fields["members"]] == [welcome.fields["peer"]]
        assert propose.fields["members"][0]["address"] == EXAMPLES["HELLO"].fields["listen"]
        client.send(Message("READY", {"epoch": propose.fields["epoch"], "failed": []}))
        client.expect("COMMIT_EPOCH")
        status = master.status()
        assert bytes(status.run_id) == welcome.fields["run"]
        assert (status.peers, status.pending, status.groups) == (1, 0, 1)
        assert status.epoch == propose.fields["epoch"]
    master.wait_for_known(0)


def test_a_peer_that_gives_no_address_is_known_by_the_one_it_connects_from(master: Master) -> None:
    with master.client() as client:
        client.hello(listen={"family": 0, "bytes": b"", "port": 4242})
        (member,) = client.expect("PROPOSE").fields["members"]
        assert member["address"] == {"family": 4, "bytes": bytes([127, 0, 0, 1]), "port": 4242}


def test_messages_in_pieces_and_several_at_once(master: Master) -> None:
    with master.client() as client:
        for byte in pack(EXAMPLES["HELLO"]):
            client.sock.sendall(bytes([byte]))
        epoch = client.expect("PROPOSE").fields["epoch"]
        ready = Message("READY", {"epoch": epoch, "failed": []})
        client.sock.sendall(pack(ready) + pack(EXAMPLES["HEARTBEAT"]) + pack(EXAMPLES["GOODBYE"]))
        client.expect("COMMIT_EPOCH")
        client.expect("FAREWELL")


def test_results_that_differ_are_committed_to_nobody(master: Master) -> None:
    with Client(master.port) as one, Client(master.port) as other:
        one.join()
        other.hello()
        other.expect("WELCOME")
        one.link()
        other.link()
        one.send(Message("VOTE", {"kind": wire.lib.VOTE_UPDATE_TOPOLOGY, "peer": bytes(16)}))
        epoch = one.expect("PROPOSE").fields["epoch"]
        for client in (one, other):
            client.send(Message("READY", {"epoch": epoch, "failed": []}))
        for tag, checks in ((1, (5, 5)), (2, (5, 6))):
            for client, check in zip((one, other), checks, strict=True):
                client.send(Message("OP_DONE", {"epoch": epoch, "tag": tag, "check": check}))
        for client in (one, other):
            assert client.expect("OP_COMMIT").fields["tag"] == 1
            ended = client.expect("PROPOSE").fields
            assert (ended["fate"], ended["status"]) == (wire.lib.FATE_ABORT, lib.pcclInternalError)
            assert ended["guilty_tag"] == 2
            assert b"different results of the collective with tag 2" in ended["reason"]


def test_heartbeats_are_answered(master: Master) -> None:
    with master.client() as client:
        client.hello()
        for _ in range(3):
            client.send(EXAMPLES["HEARTBEAT"])
            client.expect("HEARTBEAT")


def test_a_silent_peer_is_evicted_with_a_sentence(master: Master) -> None:
    with master.client() as client:
        client.hello(timeout_ms=lib.MIN_TIMEOUT_MS)
        client.expect("WELCOME")
        evicted = client.expect("EVICTED")
        assert evicted.fields["reason"]
        assert client.receive() is None
    master.wait_for_known(0)


# Strangers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 6,
        b"\xff" * 5000,
        struct.pack("<IH", 2**32 - 1, 1),
        struct.pack("<IH", lib.MAX_GREETING_BYTES, 1),
        with_header("HELLO", b"PCCL\0ruN" + bytes(20)),
        with_header("HELLO", b"PCCL\0run\x01\0\x01\0" + b"\xff" * 20),
        pack(EXAMPLES["HEARTBEAT"]),
        pack(EXAMPLES["GOODBYE"]),
        pack(EXAMPLES["OP_DONE"]),
        pack(EXAMPLES["WELCOME"]),
    ],
    ids=lambda garbage: repr(garbage[:12]),
)
def test_who_does_not_greet_properly_is_closed_and_unknown(master: Master, garbage: bytes) -> None:
    with master.client() as healthy, master.client() as stranger:
        healthy.join()
        with contextlib.suppress(ConnectionError):
            stranger.sock.sendall(garbage)
        assert stranger.ends()
        assert master.known() == 1
        master.check_serves()


def test_random_bytes_are_closed(master: Master) -> None:
    for _ in range(20):
        with master.client() as stranger:
            with contextlib.suppress(ConnectionError):
                stranger.sock.sendall(b"\x01" + os.urandom(2000))
            assert stranger.ends()
    master.check_serves()


def test_half_a_greeting_and_silence_end_by_themselves(master: Master) -> None:
    with master.client() as silent, master.client() as half:
        half.sock.sendall(pack(EXAMPLES["HELLO"])[:-1])
        master.check_serves()
        assert silent.ends()
        assert half.ends()
        assert master.known() == 0


def test_a_connection_that_is_reset_before_it_greets(master: Master) -> None:
    for size in (0, 1, 10, len(pack(EXAMPLES["HELLO"])) - 1):
        client = master.client()
        client.sock.sendall(pack(EXAMPLES["HELLO"])[:size])
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()
    master.check_serves()
    assert master.known() == 0


def test_hundreds_of_silent_connections_keep_nobody_out(master: Master) -> None:
    with contextlib.ExitStack() as stack:
        healthy = stack.enter_context(master.client())
        healthy.join()
        silent = [stack.enter_context(master.client()) for _ in range(lib.MAX_STRANGERS + 100)]
        master.check_serves()
        # The oldest have had to go; the limit holds.
        readable, _, _ = select.select(silent_sockets := [one.sock for one in silent], [], [], 0)
        assert len(readable) >= 100
        assert silent_sockets[0] in readable
        healthy.send(EXAMPLES["HEARTBEAT"])
        assert master.known() == 1


@pytest.mark.parametrize("version", [0, 2, 65535])
def test_hello_of_another_version_is_refused_with_a_sentence(master: Master, version: int) -> None:
    with master.client() as client:
        body = wire.MAGIC + struct.pack("<HH", version, version) + os.urandom(64)
        client.sock.sendall(with_header("HELLO", body))
        refused = client.expect("REFUSED")
        assert refused.fields["status"] == lib.pcclRefused
        assert str(version) in refused.fields["reason"].decode()
        assert client.receive() is None
    master.check_serves()


def test_a_refusal_arrives_although_more_was_sent_than_the_master_reads(master: Master) -> None:
    with master.client() as client:
        body = wire.MAGIC + struct.pack("<HH", 2, 2)
        client.sock.sendall(with_header("HELLO", body) + bytes(100_000))
        client.expect("REFUSED")
        assert client.receive() is None


def test_who_never_closes_after_a_refusal_is_closed(master: Master) -> None:
    with master.client() as client:
        client.sock.sendall(with_header("HELLO", wire.MAGIC + struct.pack("<HH", 2, 2)))
        client.expect("REFUSED")
        assert client.receive() is None
        closed = False
        until = time.monotonic() + WAIT_S
        while not closed and time.monotonic() < until:
            try:
                client.sock.sendall(b"x")
                time.sleep(0.1)
            except (ConnectionResetError, BrokenPipeError):
                closed = True
        assert closed


def test_more_peers_than_there_is_room_for_are_refused(master: Master) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(master.client()).join()
            peers = []
            for place in range(lib.MAX_PEERS - 1):
                peers.append(stack.enter_context(master.client()))
                peers[-1].hello(group=place)
            silent = peers.pop(3)
            silent.expect("WELCOME")
            for peer in peers:
                peer.expect("WELCOME")
                peer.send(EXAMPLES["HEARTBEAT"])
            peers.append(stack.enter_context(master.client()))
            peers[-1].hello()
            peers[-1].expect("WELCOME")  # in the place of the one that has said nothing
            assert b"said nothing" in silent.expect("EVICTED").fields["reason"]
            peers[-1].send(EXAMPLES["HEARTBEAT"])
            with master.client() as late:
                late.hello()
                assert late.expect("REFUSED").fields["reason"]
                assert late.receive() is None
            assert master.known() == lib.MAX_PEERS
            peers[-1].send(EXAMPLES["GOODBYE"])
            peers[-1].expect("FAREWELL")
            master.check_serves()
        master.wait_for_known(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Peers that go wrong after their greeting -----------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 20, struct.pack("<IH", 2**32 - 1, 1), pack(EXAMPLES["VOTE"])[:-1]]
)
def test_a_peer_that_sends_garbage_or_breaks_off_is_out(master: Master, garbage: bytes) -> None:
    with master.client() as client:
        client.hello()
        client.expect("PROPOSE")
        client.sock.sendall(garbage)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.ends()
        master.wait_for_known(0)
    master.check_serves()


def test_a_second_hello_harms_nobody_else(master: Master) -> None:
    with master.client() as healthy, master.client() as odd:
        healthy.join()
        odd.hello()
        odd.expect("WELCOME")
        odd.hello()
        healthy.send(EXAMPLES["HEARTBEAT"])
        with master.client() as third:
            third.hello()
            third.expect("WELCOME")


# Descriptors, threads, signals ----------------------------------------------------------------------------

OUT_OF_DESCRIPTORS = """
import contextlib, os, resource, socket, time
from test_net_master import EXAMPLES, Client, Master
master = Master()
master.run()
with contextlib.ExitStack() as stack:
    held = stack.enter_context(master.client())
    held.join()
    ours = [stack.enter_context(socket.socket()) for _ in range(2)]
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    waiting = [Client(master.port, sock) for sock in ours]
    waiting[0].hello()
    cpu = time.process_time()
    time.sleep(1)
    print(time.process_time() - cpu)
    held.send(EXAMPLES["HEARTBEAT"])
    held.expect("HEARTBEAT")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting[0].expect("WELCOME")
    master.check_serves()
master.destroy()
print("served")
"""


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=2 * WAIT_S,
    )


def test_without_descriptors_it_neither_ends_nor_spins() -> None:
    done = run_python(OUT_OF_DESCRIPTORS)
    assert done.returncode == 0, done.stderr
    assert "can't accept connections for now: the process has no file descriptor left" in done.stderr
    busy_s, served = done.stdout.splitlines()
    assert served == "served"
    assert float(busy_s) < 0.1  # of one second: a loop that spins takes all that it can get


def test_decisions_are_logged() -> None:
    code = "from test_net_master import Master\nm = Master()\nm.run()\nm.check_serves()\nm.destroy()"
    done = run_python(code, PCCL_LOG_LEVEL="INFO")
    assert done.returncode == 0, done.stderr
    assert any(" INFO master: " in line and "ada" in line for line in done.stderr.splitlines()), done.stderr
    assert run_python(code, PCCL_LOG_LEVEL="WARN").stderr == ""


def test_nothing_stays_behind() -> None:
    def descriptors() -> int:
        gc.collect()
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def threads() -> int:
        return sum(1 for _ in Path("/proc/self/task").iterdir())

    def once() -> None:
        instance = Master()
        instance.run()
        with instance.client() as client, instance.client():
            client.hello()
            client.expect("PROPOSE")
            instance.destroy()
            assert client.ends()

    once()
    before = descriptors(), threads()
    for _ in range(5):
        once()
    assert (descriptors(), threads()) == before


def test_interrupting_from_a_signal_handler_ends_the_wait() -> None:
    instance = Master()
    instance.run()
    results = []
    waiter = threading.Thread(target=lambda: results.append(lib.pcclMasterAwaitTermination(instance.handle)))
    waiter.start()
    before = signal.signal(signal.SIGUSR1, lambda *_: lib.pcclInterruptMaster(instance.handle))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        waiter.join(WAIT_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert results == [lib.pcclSuccess]
    assert lib.pcclMasterAwaitTermination(instance.handle) == lib.pcclSuccess
    instance.destroy()


def test_its_thread_takes_no_signals(master: Master) -> None:
    masks = []
    for task in Path("/proc/self/task").iterdir():
        status = (task / "status").read_text()
        masks.append(
            int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        )
    usual = sum(1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGUSR1))
    assert any(mask & usual == usual for mask in masks)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


# The public calls -----------------------------------------------------------------------------------------


def test_a_taken_address_is_named_with_the_reason(master: Master) -> None:
    pointer = ffi.new("pcclMasterInstance_t **")
    result = lib.pcclCreateMaster(public_address("127.0.0.1", master.port), pointer)
    assert result == lib.pcclInvalidArgument
    assert f"127.0.0.1:{master.port}" in last_error()
    assert os.strerror(errno.EADDRINUSE) in last_error()
    assert pointer[0] == ffi.NULL


def test_an_address_of_another_machine_is_named_with_the_reason() -> None:
    pointer = ffi.new("pcclMasterInstance_t **")
    assert lib.pcclCreateMaster(public_address("192.0.2.1", 0), pointer) == lib.pcclInvalidArgument
    assert "192.0.2.1:0" in last_error()
    assert os.strerror(errno.EADDRNOTAVAIL) in last_error()


def test_wrong_arguments_are_named() -> None:
    pointer = ffi.new("pcclMasterInstance_t **")
    strange = ffi.new("ccoip_socket_address_t *")
    strange.inet.protocol = 7
    assert lib.pcclCreateMaster(strange[0], pointer) == lib.pcclInvalidArgument
    assert "protocol" in last_error()
    assert "7" in last_error()
    calls = {
        "master_out": lambda: lib.pcclCreateMaster(public_address("127.0.0.1", 0), ffi.NULL),
        "pcclRunMaster: master": lambda: lib.pcclRunMaster(ffi.NULL),
        "pcclMasterAwaitTermination: master": lambda: lib.pcclMasterAwaitTermination(ffi.NULL),
        "pcclDestroyMaster: master": lambda: lib.pcclDestroyMaster(ffi.NULL),
        "pcclMasterGetAddress: master": lambda: lib.pcclMasterGetAddress(ffi.NULL, ffi.NULL),
        "pcclMasterGetStatus: master": lambda: lib.pcclMasterGetStatus(ffi.NULL, ffi.NULL),
    }
    for expected, call in calls.items():
        assert call() == lib.pcclInvalidArgument
        assert f"{expected} is NULL" in last_error()
    assert lib.pcclInterruptMaster(ffi.NULL) == lib.pcclInvalidArgument


def test_calls_that_do_not_fit_the_life_of_a_master() -> None:
    instance = Master()
    assert lib.pcclMasterAwaitTermination(instance.handle) == lib.pcclInvalidUsage
    assert "pcclRunMaster" in last_error()
    instance.run()
    assert lib.pcclRunMaster(instance.handle) == lib.pcclInvalidUsage
    assert "once" in last_error()
    assert lib.pcclMasterGetAddress(instance.handle, ffi.NULL) == lib.pcclInvalidArgument
    assert lib.pcclMasterGetStatus(instance.handle, ffi.NULL) == lib.pcclInvalidArgument
    instance.check_serves()
    instance.destroy()


def test_interrupted_before_it_runs_it_ends_at_once() -> None:
    instance = Master()
    assert lib.pcclInterruptMaster(instance.handle) == lib.pcclSuccess
    instance.run()
    assert lib.pcclMasterAwaitTermination(instance.handle) == lib.pcclSuccess
    instance.destroy()


def test_the_address_is_in_use_before_it_runs_and_destroying_frees_it() -> None:
    instance = Master()
    with socket.socket() as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", instance.port))
        instance.destroy()
        other.bind(("127.0.0.1", instance.port))


def test_any_ipv6_address_takes_ipv4_too() -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    instance = Master("::")
    instance.run()
    instance.check_serves()
    instance.destroy()
