"""Fixtures that all tests share."""

import importlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("pccl", deadline=None, print_blob=True)
hypothesis.settings.load_profile("pccl")

# Shells start background jobs with Ctrl-C ignored, which programs inherit: what tests it would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def torch() -> Any:
    """The module. Optional on a developer's machine; in CI a missing torch is a failure."""
    if os.environ.get("CI"):
        return importlib.import_module("torch")
    return pytest.importorskip("torch")


@pytest.fixture
def master() -> Iterator[Any]:
    """A running master on a free port of the loopback."""
    import pccl

    with pccl.MasterNode("127.0.0.1:0") as node:
        yield node


@pytest.fixture
def pair(master: Any) -> Iterator[Any]:
    """Two communicators that are accepted."""
    from in_process import group_of

    with group_of(master, 2) as peers:
        yield peers
