"""`pccl`, `pccl bench`: what they dispatch to."""

import json
import subprocess
import sys

import pytest

import pccl
from pccl.cli import BENCHMARKS, main


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pccl", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["bench"], ["bench", "nothing"], ["bench", "allreduce", "-x"]]
)
def test_wrong_usage_is_status_2(arguments) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["bench", "allreduce", "--help"]])
def test_help_goes_to_stdout(arguments) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: pccl")


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout == f"pccl {pccl.__version__}\n"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_is_there(name, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", name, "--help"])
    assert ended.value.code == 0
    assert name in capsys.readouterr().out


def test_a_missing_library_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    for name in [name for name in sys.modules if name.startswith("pccl.benchmarks")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["bench", "allreduce"]) == 1
    assert capsys.readouterr().err == "pccl bench: numpy is missing: pip install 'pccl[bench]'\n"


def test_a_benchmark_prints_json_that_programs_can_read() -> None:
    done = run("bench", "allreduce", "-b", "1K", "-e", "1K", "-n", "2", "-w", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--minutes", "1"], 1)])
def test_stress_tells_its_options_without_what_it_needs(arguments, status) -> None:
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["psutil", "rich", "matplotlib", "ml_dtypes"]))
from pccl.cli import main
sys.exit(main(["stress", *{arguments!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith("usage: pccl stress") if status == 0 else "psutil is missing" in done.stderr
