"""csrc/net/socket.c against the Python sockets at the other end. Loopback only."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from native import PUBLIC_HEADERS, load

ffi, lib = load(*PUBLIC_HEADERS, "base/address.h", "net/socket.h", "net/descriptors.h", "net/port_holder.h")

TCP_NOTSENT_LOWAT = 25


def address(host: str, port: int) -> object:
    family = 6 if ":" in host else 4
    raw = socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, host)
    result = ffi.new("struct address *", {"family": family, "port": port})
    ffi.memmove(result.bytes, raw, len(raw))
    return result


def text(value: object) -> str:
    buffer = ffi.new("char[]", lib.ADDRESS_TEXT_BYTES)
    pointer = value if ffi.typeof(value).kind == "pointer" else ffi.addressof(value)
    return ffi.string(lib.address_text(pointer, buffer)).decode()


def options(user_timeout_ms: int = 0, notsent_lowat_bytes: int = 0) -> object:
    return ffi.new(
        "struct socket_options *",
        {"user_timeout_ms": user_timeout_ms, "notsent_lowat_bytes": notsent_lowat_bytes},
    )


def adopt(fd: int) -> socket.socket:
    assert fd >= 0, os.strerror(-fd)
    return socket.socket(fileno=fd)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with adopt(lib.socket_listen(address("127.0.0.1", 0))) as sock:
        yield sock


def wait_for(sock: socket.socket, write: bool = False) -> None:
    readable, writable, _ = select.select([] if write else [sock], [sock] if write else [], [], 30)
    assert readable or writable


def check_options(sock: socket.socket) -> None:
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert not os.get_blocking(sock.fileno())
    assert not os.get_inheritable(sock.fileno())


def test_resolve_literals_and_names() -> None:
    found = ffi.new("struct address *")
    for host, expected in (("127.0.0.1", "127.0.0.1:9"), ("::1", "[::1]:9"), ("::ffff:1.2.3.4", "1.2.3.4:9")):
        assert lib.socket_resolve(host.encode(), 9, found) == ffi.NULL
        assert text(found) == expected
    assert lib.socket_resolve(b"localhost", 9, found) == ffi.NULL
    assert text(found) in ("127.0.0.1:9", "[::1]:9")


@pytest.mark.parametrize("host", [b"", b"no such name", b"256.1.1.1.1", b"[::1]"])
def test_resolve_says_why_not(host: bytes) -> None:
    reason = lib.socket_resolve(host, 9, ffi.new("struct address *"))
    assert reason != ffi.NULL
    assert ffi.string(reason)


def test_accepted_and_connected_sockets_have_the_options(listener: socket.socket) -> None:
    check = options(user_timeout_ms=1234, notsent_lowat_bytes=70000)
    remote = ffi.new("struct address *")
    assert lib.socket_accept(listener.fileno(), check, remote) == -errno.EAGAIN
    port = listener.getsockname()[1]
    with adopt(lib.socket_connect(address("127.0.0.1", port), check)) as client:
        wait_for(client, write=True)
        assert lib.socket_connect_result(client.fileno()) == 0
        wait_for(listener)
        with adopt(lib.socket_accept(listener.fileno(), check, remote)) as server:
            for sock in (client, server):
                check_options(sock)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1234
                assert sock.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT) == 70000
            assert text(remote) == text(lib.socket_local_address(client.fileno()))
            assert text(lib.socket_remote_address(client.fileno())) == f"127.0.0.1:{port}"
            assert lib.socket_set_options(server.fileno(), options(user_timeout_ms=99)) == 0
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 99
            assert server.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT) == 70000


def congestion_control(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("127.0.0.2", False)])
def test_only_within_a_machine_a_connection_is_tuned_for_loopback(host: str, local: bool) -> None:
    with socket.create_server((host, 0)) as listener, socket.socket() as other:
        expected = b"reno" if local else congestion_control(other)
        with socket.create_connection(listener.getsockname(), source_address=("127.0.0.1", 0)) as client:
            wait_for(listener)
            with adopt(
                lib.socket_accept(listener.fileno(), options(), ffi.new("struct address *"))
            ) as server:
                assert lib.socket_connect_result(client.fileno()) == 0
                for sock in (client, server):
                    assert congestion_control(sock) == expected
                    window = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP)
                    assert (window == 512 * 1024) == local
                    assert lib.socket_is_local(sock.fileno()) == local


def test_connecting_where_nobody_listens_is_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        fd = lib.socket_connect(address("127.0.0.1", unused.getsockname()[1]), options())
        if fd >= 0:
            with adopt(fd) as client:
                wait_for(client, write=True)
                fd = lib.socket_connect_result(client.fileno())
        assert fd == -errno.ECONNREFUSED


def test_a_socket_that_is_still_connecting_is_in_progress() -> None:
    with socket.socket() as idle:
        assert lib.socket_connect_result(idle.fileno()) == -errno.EINPROGRESS


def test_a_socket_connected_to_itself_counts_as_refused() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        assert lib.socket_connect_result(sock.fileno()) == -errno.ECONNREFUSED


def connect_to_itself() -> tuple[socket.socket, tuple[str, int]]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    name = sock.getsockname()
    sock.connect(name)
    return sock, name


def test_a_socket_connected_to_itself_leaves_nothing_behind() -> None:
    sock, name = connect_to_itself()
    assert lib.socket_connect_result(sock.fileno()) == -errno.ECONNREFUSED
    lib.descriptor_close(sock.detach())
    with socket.socket() as next_one:
        next_one.bind(name)  # without SO_REUSEADDR: TIME_WAIT would keep it from the port
    sock, name = connect_to_itself()
    sock.close()
    with socket.socket() as next_one, pytest.raises(OSError, match="in use"):  # else this shows nothing
        next_one.bind(name)


def test_a_connection_that_we_made_keeps_nobody_from_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = adopt(lib.socket_connect(address(*server.getsockname()), options()))
        wait_for(client, write=True)
        accepted, (host, port) = server.accept()
        with adopt(lib.socket_listen(address(host, port))):
            pass
        client.close()  # first: TIME_WAIT is at this end
        wait_for(accepted)
        accepted.close()
        with adopt(lib.socket_listen(address(host, port))):
            pass


@contextlib.contextmanager
def bound_port() -> Iterator[int]:
    """A port that a program has bound, as servers do, and does not listen on yet."""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", 0))
        yield sock.getsockname()[1]
        sock.listen()  # nobody has taken it away


def test_a_port_that_is_bound_but_not_listened_on_is_passed_over() -> None:
    with bound_port() as port, adopt(lib.socket_listen_any(port, 65535)) as sock:
        assert sock.getsockname()[1] > port


def holder(host: str, port: int) -> str:
    buffer = ffi.new("char[]", lib.PORT_HOLDER_BYTES)
    return ffi.string(lib.port_holder_describe(address(host, port), buffer)).decode()


def test_who_holds_a_port_is_told() -> None:
    this = f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0", "::"):
            assert holder(host, port) == f"{this} listens on it"
        assert "without listening" in holder("127.0.0.2", port)  # which nobody holds
        client = socket.create_connection(server.getsockname())
        accepted, (_, client_port) = server.accept()
        assert (
            holder("0.0.0.0", client_port) == f"a connection that {this} has made uses it until it is closed"
        )
        client.close()
        wait_for(accepted)
        accepted.close()
        assert "TIME_WAIT" in holder("0.0.0.0", client_port)
        assert holder("127.0.0.1", port) == f"{this} listens on it"
    if socket.has_dualstack_ipv6():
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
            assert holder("127.0.0.1", server.getsockname()[1]) == f"{this} listens on it"


def test_no_family_is_no_address() -> None:
    nothing = ffi.new("struct address *")
    assert lib.socket_listen(nothing) == -errno.EAFNOSUPPORT
    assert lib.socket_connect(nothing, options()) == -errno.EAFNOSUPPORT
    assert lib.socket_local_address(-1).family == 0
    assert lib.socket_remote_address(-1).family == 0


def test_a_taken_port_is_said_to_be(listener: socket.socket) -> None:
    taken = listener.getsockname()[1]
    assert lib.socket_listen(address("127.0.0.1", taken)) == -errno.EADDRINUSE


def test_listen_any_takes_the_first_free_port_and_both_families(listener: socket.socket) -> None:
    taken = listener.getsockname()[1]
    assert lib.socket_listen_any(taken, taken) == -errno.EADDRINUSE
    with adopt(lib.socket_listen_any(taken, 65535)) as sock:
        port = lib.socket_local_address(sock.fileno()).port
        assert port > taken
        assert not os.get_inheritable(sock.fileno())
        remote = ffi.new("struct address *")
        hosts = ["127.0.0.1"] + (["::1"] if sock.family == socket.AF_INET6 else [])
        for host in hosts:
            with socket.create_connection((host, port), timeout=30) as client:
                wait_for(sock)
                with adopt(lib.socket_accept(sock.fileno(), options(), remote)) as server:
                    own = client.getsockname()
                    # IPv4 through an IPv6 socket still shows as IPv4.
                    assert text(remote) == (f"[{own[0]}]:{own[1]}" if ":" in host else f"{own[0]}:{own[1]}")
                    local = text(lib.socket_local_address(server.fileno()))
                    assert local == (f"[::1]:{port}" if ":" in host else f"127.0.0.1:{port}")


def test_listen_any_ends_at_the_last_port() -> None:
    with adopt(lib.socket_listen_any(0, 0)) as sock:
        port = lib.socket_local_address(sock.fileno()).port
        assert lib.socket_listen_any(port, port) == -errno.EADDRINUSE


def test_accept_without_descriptors_says_so(listener: socket.socket) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection(listener.getsockname(), timeout=30):
        wait_for(listener)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            result = lib.socket_accept(listener.fileno(), options(), ffi.new("struct address *"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert result == -errno.EMFILE


@pytest.mark.parametrize("host", ["10.1.2.3", "2001:db8::7"])
def test_public_addresses_convert_both_ways(host: str) -> None:
    public = lib.address_to_public(address(host, 4242))
    back = ffi.new("struct address *")
    assert lib.address_from_public(ffi.addressof(public), back)
    assert text(back) == text(address(host, 4242))
    assert public.inet.protocol == (lib.inetIPv6 if ":" in host else lib.inetIPv4)


def test_public_addresses_of_no_protocol_are_refused_and_mapped_ones_are_ipv4() -> None:
    public = ffi.new("ccoip_socket_address_t *")
    back = ffi.new("struct address *")
    public.inet.protocol = 7
    assert not lib.address_from_public(public, back)
    public.inet.protocol = lib.inetIPv6
    public.inet.ipv6.data[10:16] = [0xFF, 0xFF, 10, 1, 2, 3]
    assert lib.address_from_public(public, back)
    assert text(back) == "10.1.2.3:0"


# --- within this machine -----------------------------------------------------------------------------------


@pytest.fixture
def local() -> Iterator[tuple[int, socket.socket]]:
    """A port, and what listens for this machine under it."""
    with adopt(lib.socket_listen(address("127.0.0.1", 0))) as tcp:
        port = tcp.getsockname()[1]
        with adopt(lib.socket_listen_local(port)) as sock:
            yield port, sock


def test_local_connections_are_there_at_once(local) -> None:
    port, listener = local
    assert lib.socket_accept_local(listener.fileno()) == -errno.EAGAIN
    with (
        adopt(lib.socket_connect_local(port)) as client,
        adopt(lib.socket_accept_local(listener.fileno())) as server,
    ):
        for sock in (client, server):
            assert sock.family == socket.AF_UNIX
            assert lib.socket_is_local(sock.fileno())
            assert not os.get_blocking(sock.fileno())
            assert not os.get_inheritable(sock.fileno())
        client.send(b"x")
        assert server.recv(9) == b"x"
    assert lib.socket_listen_local(port) == -errno.EADDRINUSE


def test_where_nobody_listens_for_this_machine_is_known_at_once(local) -> None:
    port, listener = local
    listener.close()
    assert lib.socket_connect_local(port) == -errno.ECONNREFUSED


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_local_connections_of_another_user_are_refused(local) -> None:
    """Whether he connects, or has taken the name first."""
    port, listener = local
    with socket.socket(socket.AF_UNIX) as other:
        with somebody_else():
            other.connect(f"\0pccl/{port}")
        assert lib.socket_accept_local(listener.fileno()) == -errno.ECONNABORTED
        assert lib.socket_accept_local(listener.fileno()) == -errno.EAGAIN
        assert other.recv(1) == b"", "it is closed"
    listener.close()
    with socket.socket(socket.AF_UNIX) as other:
        with somebody_else():
            other.bind(f"\0pccl/{port}")
            other.listen()
        assert lib.socket_connect_local(port) == -errno.EACCES
        assert lib.socket_listen_local(port) == -errno.EADDRINUSE


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("::1", True), ("192.0.2.1", False), ("2001:db8::1", False)]
)
def test_own_addresses_are_known_and_no_others(host: str, own: bool) -> None:
    if host == "::1" and not lib.socket_is_own_address(address(host, 9)):
        with pytest.raises(OSError), socket.socket(socket.AF_INET6) as sock:  # noqa: PT011
            sock.bind((host, 0))
        return
    assert lib.socket_is_own_address(address(host, 9)) == own
    assert not lib.socket_is_own_address(ffi.new("struct address *"))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_travel_over_local_connections_one_at_a_time() -> None:
    near, far = socket.socketpair(socket.AF_UNIX)
    bytes_in, found = ffi.new("char[]", 8), ffi.new("int *")
    with near, far, socket.socket() as passed:

        def receive() -> int:
            return int(lib.socket_receive_descriptor(far.fileno(), bytes_in, 8, found))

        assert receive() == -errno.EAGAIN
        assert found[0] == -1
        assert lib.socket_send_descriptor(near.fileno(), b"abc", 3, passed.fileno()) == 3
        assert receive() == 3
        with adopt(found[0]) as arrived:
            assert os.path.sameopenfile(arrived.fileno(), passed.fileno())
            assert not os.get_inheritable(arrived.fileno())
        near.send(b"none with it")
        assert receive() == 8
        assert found[0] == -1
        receive()
        before = open_files()
        socket.send_fds(near, [b"three"], [passed.fileno()] * 3)
        assert receive() == 5
        os.close(found[0])
        assert open_files() == before, "those that were not asked for are closed"
