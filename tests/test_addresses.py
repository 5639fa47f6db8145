"""Addresses, ports and names, as users give them: what can't work is refused with a sentence that helps."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest
from in_process import in_threads

import pccl
from pccl import Communicator, MasterNode

THIS_PROCESS = f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"


# --- ports that can't be had --------------------------------------------------------------------------------


def test_a_master_says_who_has_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(pccl.InvalidArgumentError, match="in use") as raised:
            MasterNode(f"0.0.0.0:{port}")
        assert f"{THIS_PROCESS} listens on it" in str(raised.value)
        assert f"0.0.0.0:{port}" in str(raised.value)


def test_a_master_that_listens_elsewhere_says_so() -> None:
    with pytest.raises(pccl.InvalidArgumentError, match="no address of this machine"):
        MasterNode("192.0.2.1:0")


def test_a_peer_says_who_has_its_port(master) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(pccl.PCCLError, match=f"port {port}, on which this peer is to listen") as raised:
            Communicator(master.address, port=port).connect(1)
        assert f"{THIS_PROCESS} listens on it" in str(raised.value)


# --- which run is meant -------------------------------------------------------------------------------------


def test_a_second_job_at_the_same_master_is_refused() -> None:
    with (
        MasterNode("127.0.0.1:0") as master,
        Communicator(master.address, run="llama") as first,
    ):
        for run in ("digits", "", None):
            with pytest.raises(pccl.RefusedError, match='"llama"') as raised:
                Communicator(master.address, run=run).connect()
            assert not run or f'"{run}"' in str(raised.value)
        assert first.global_world_size == 1
        first.close()
        with Communicator(master.address) as nameless:
            with pytest.raises(pccl.RefusedError, match=r'name no run.*"digits"'):
                Communicator(master.address, run="digits").connect()
            assert nameless.global_world_size == 1


def test_a_master_of_a_run_lets_in_no_other(monkeypatch) -> None:
    with MasterNode("127.0.0.1:0", run="llama") as master:
        with pytest.raises(pccl.RefusedError, match=r'"llama".*"digits"'):
            Communicator(master.address, run="digits").connect()
        with pytest.raises(pccl.RefusedError, match="PCCL_RUN"):
            Communicator(master.address).connect()
        monkeypatch.setenv("PCCL_RUN", "llama")
        with Communicator(master.address) as comm:
            assert comm.world_size == 1
    with MasterNode("127.0.0.1:0") as master, pytest.raises(pccl.RefusedError, match=r'"llama".*names none'):
        Communicator(master.address, run="").connect()


@pytest.mark.parametrize(("run", "error"), [("r" * 64, ValueError), (5, TypeError), ("a\0b", ValueError)])
def test_what_is_no_name_of_a_run_is_refused_at_once(run, error, monkeypatch) -> None:
    for make in (Communicator, MasterNode):
        with pytest.raises(error, match="run"):
            make("127.0.0.1:0" if make is MasterNode else "127.0.0.1:1", run=run)
    monkeypatch.setenv("PCCL_RUN", "r" * 64)
    with pytest.raises(ValueError, match="PCCL_RUN"):
        Communicator("127.0.0.1:1")


# --- the address of the master ------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch) -> dict[str, list[str]]:
    """Host names for as long as a test runs, and what each stands for; [] is not known yet."""
    names: dict[str, list[str]] = {}
    system = socket.getaddrinfo

    def look_up(host, port, *rest, **more):
        if host not in names:
            return system(host, port, *rest, **more)
        if not names[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [entry for one in names[host] for entry in system(one, port, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("pccl.communicator._SECONDS_BETWEEN_ATTEMPTS", 0.01)
    return names


def can_join(address: str, attempts: int = 1, timeout: float = 1.0) -> bool:
    comm = Communicator(address, timeout=timeout)
    comm.connect(attempts)
    comm.close()
    return True


def failure(address: str, attempts: int = 1, timeout: float = 0.5) -> str:
    with pytest.raises(pccl.PCCLError) as raised:
        can_join(address, attempts, timeout)
    return str(raised.value)


def test_a_name_is_looked_up_in_each_attempt(master, names, caplog) -> None:
    names["master.test"] = []
    address = f"master.test:{master.port}"
    comm = Communicator(address)
    with pytest.raises(pccl.PCCLError, match=r"'master.test:.*could not be looked up.*\(3 attempts\)"):
        comm.connect(3)
    assert len(caplog.records) == 2
    names["master.test"] = ["127.0.0.1"]
    comm.connect(1)
    comm.close()


def test_every_address_of_a_name_is_tried(master, names) -> None:
    names["master.test"] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    assert can_join(f"master.test:{master.port}")
    names["master.test"] = ["127.0.0.2", "127.0.0.3"]
    text = failure(f"master.test:{master.port}")
    assert f"a master at master.test:{master.port}: 127.0.0.2:{master.port}: Connection refused" in text
    assert f"; 127.0.0.3:{master.port}: Connection refused. Does `pccl master` run there" in text


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_a_name_of_both_families_finds_a_master_of_one(names) -> None:
    names["master.test"] = ["127.0.0.1", "::1"]
    for host in ("127.0.0.1", "[::1]"):
        with MasterNode(f"{host}:0") as master:
            assert can_join(f"master.test:{master.port}")


@pytest.fixture
def silent_port(master):
    """The master's port at 127.0.0.2, where nothing answers, not even the system: packets are dropped."""
    with socket.create_server(("127.0.0.2", master.port), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield master.port
        for filler in fillers:
            filler.close()


def test_an_address_that_swallows_packets_does_not_hide_the_next(silent_port, names) -> None:
    names["master.test"] = ["127.0.0.2", "127.0.0.1"]
    assert can_join(f"master.test:{silent_port}", timeout=10.0)  # far longer than this test takes
    text = failure(f"127.0.0.2:{silent_port}", timeout=0.5)
    assert f"can't connect to a master at 127.0.0.2:{silent_port}: no answer within 0.4 s" in text


def test_an_address_with_something_else_is_followed_by_the_next(master, names) -> None:
    names["master.test"] = ["127.0.0.2", "127.0.0.1"]
    with socket.create_server(("127.0.0.2", master.port)):
        assert can_join(f"master.test:{master.port}", attempts=2, timeout=0.3)


def test_a_look_up_that_takes_long_ends_with_the_timeout(monkeypatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait(60))
    assert "could not be looked up within 0.2 s" in failure("master.test:1", timeout=0.2)
    answer.set()


def test_who_accepts_but_is_no_master_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        text = failure(f"127.0.0.1:{port}", timeout=0.2)
        assert f"127.0.0.1:{port} took the connection" in text
        assert "may be the port of another program" in text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no pccl master"), (b"", "may be the port of another program")],
)
def test_what_answers_something_else_is_named(answer, expected) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            connection.sendall(answer)
            connection.close()

        address = f"127.0.0.1:{server.getsockname()[1]}"
        text, _ = in_threads(lambda: failure(address, timeout=30), serve)
    assert expected in text
    assert address in text


def test_nobody_listening_asks_for_the_master() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        text = failure(f"127.0.0.1:{unused.getsockname()[1]}")
    assert "Connection refused. Does `pccl master` run there, on this port?" in text


def test_link_local_addresses_are_refused_at_once(names) -> None:
    for host in ("fe80::1", "fe80::1%lo"):
        for make in (Communicator, MasterNode):
            with pytest.raises(ValueError, match="link-local"):
                make(f"[{host}]:48148")
    names["master.test"] = ["fe80::1%lo"]
    assert "link-local" in failure("master.test:1")


# --- the address that a peer advertises ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("0.0.0.0", "stands for all addresses"),
        ("::", "stands for all addresses"),
        ("[::]:48149", "stands for all addresses"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("fe80::1", "link-local"),
        ("fe80::1%lo", "link-local"),
        ("no.such.host.invalid", "no address"),
        ("10.0.0.1:", "host:port"),
        ("10.0.0.1:0", "host:port"),
        ("10.0.0.1:65536", "host:port"),
        ("10.0.0.1:port", "host:port"),
        ("[::1", "host:port"),
        ("[::1]48149", "host:port"),
        (":48149", "host:port"),
        ("", "host:port"),
        ("h" * 300, "host:port"),
    ],
)
def test_an_address_that_nobody_can_connect_to_is_not_advertised(host, why, monkeypatch) -> None:
    with pytest.raises(pccl.InvalidArgumentError, match=why) as raised:
        Communicator("127.0.0.1:48148", advertise=host)
    assert host[:100] in str(raised.value)
    if host:
        monkeypatch.setenv("PCCL_ADVERTISE", host)
        with pytest.raises(pccl.InvalidArgumentError, match=f"PCCL_ADVERTISE.*{why}"):
            Communicator("127.0.0.1:48148")


def test_what_is_advertised_may_have_a_port(monkeypatch) -> None:
    for host in (
        "10.0.0.1",
        "10.0.0.1:50000",
        "2001:db8::1",
        "[2001:db8::1]",
        "[2001:db8::1]:50000",
        "localhost",
    ):
        Communicator("127.0.0.1:48148", advertise=host)
        monkeypatch.setenv("PCCL_ADVERTISE", host)
        Communicator("127.0.0.1:48148")
    monkeypatch.setenv("PCCL_ADVERTISE", "0.0.0.0")
    Communicator("127.0.0.1:48148", advertise="10.0.0.1")  # which comes first


def test_others_connect_to_what_is_advertised(master, monkeypatch) -> None:
    """Through a port that is forwarded, as behind NAT: nobody knows the one that the peer listens on."""
    with socket.create_server(("127.0.0.1", 0)) as forwarder:
        where = f"127.0.0.1:{forwarder.getsockname()[1]}"
        forwarder.settimeout(60)
        first = Communicator(master.address, timeout=2.0)
        monkeypatch.setenv("PCCL_ADVERTISE", where)
        second = Communicator(master.address, timeout=2.0, name="behind")
        monkeypatch.delenv("PCCL_ADVERTISE")
        first.connect()

        def join() -> None:
            with contextlib.suppress(pccl.PCCLError):
                second.connect(1)

        def admit() -> None:
            with contextlib.suppress(pccl.PCCLError):
                while not first.are_peers_pending():
                    pass
                first.update_topology()

        threads = [threading.Thread(target=call, daemon=True) for call in (join, admit)]
        for thread in threads:
            thread.start()
        connection, _ = forwarder.accept()  # somebody dials it
        connection.close()
        for peer in (second, first):
            peer.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def test_an_address_of_the_master_that_is_none_is_refused() -> None:
    for host in ("224.0.0.1", "255.255.255.255", "[ff02::1]"):
        with pytest.raises(pccl.InvalidArgumentError, match=r"multicast|broadcast"):
            Communicator(f"{host}:48148", timeout=0.2).connect(1)
