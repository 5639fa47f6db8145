"""Programs written for PCCL 1.0, as printed in docs/coming-from-pccl-1.0.md; its names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pccl

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coming-from-pccl-1.0.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_of_the_page_run(master, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, master.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "p2p_connection_pool_size is 128: 64 connections are made" in done.stderr


def test_the_names_of_its_modules_are_there() -> None:
    import pccl._cuda
    import pccl._pccl

    assert pccl._pccl.Communicator is pccl.Communicator
    assert pccl._cuda.is_cuda_available() == pccl.cuda.is_available() == pccl.cuda.is_cuda_available()


def test_tracebacks_name_what_programs_import() -> None:
    for name in pccl.__all__:
        value = getattr(pccl, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert f"{value.__module__}.{value.__qualname__}" == f"pccl.{name}"


def test_all_attempts_to_connect_are_counted() -> None:
    with pytest.raises(pccl.PCCLError, match="2 attempts"):
        pccl.Communicator("127.0.0.1:1").connect(n_attempts=2)
