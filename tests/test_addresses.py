"""Addresses, ports and names, as users give them: what can't work is refused with a sentence that helps."""

import os
import socket
from pathlib import Path

import pytest

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
