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
