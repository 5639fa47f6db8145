"""`pccl stress` as a command: it holds, it reports, and it finds what is planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from faults.netns import reason_not_to

ROOT = Path(__file__).resolve().parents[1]
HANG_S = 240.0  # far beyond a short run with all its bounds


def stress(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pccl", "stress", *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["mixed", "master"])
def test_all_holds_under_churn(profile: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = stress(
        *("--minutes", "0.3", "--peers", "6", "--seed", "5", "--profile", profile),
        *("--report", str(file), "--keep", str(tmp_path / "logs")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert report["schema"] == "pccl.stress/1"
    assert report["outcome"] == "held"
    assert report["violations"] == []
    assert sum(report["faults"].values()) >= 8
    assert report["ops_committed"] > 100
    assert report["parity_checks"] > 100
    assert report["state_checks"] > 30
    assert report["ops_crossed"] > 30
    assert all(step > 1 for step in report["last_step"].values())
    assert file.with_suffix(".png").stat().st_size > 1000
    journal = [json.loads(line) for line in (tmp_path / "logs" / "journal.jsonl").read_text().splitlines()]
    assert sum(line["who"] == "schedule" for line in journal) == sum(report["faults"].values())


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["sync,async", "sync,crossing"])
def test_without_state_among_the_kinds_newcomers_find_their_step(kinds: str) -> None:
    done = stress(
        *("--minutes", "0.2", "--peers", "5", "--seed", "5", "--profile", "joinstorm"),
        *("--ops", kinds, "--json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["state_checks"] == 0
    assert report["parity_checks"] > 50
    assert report["processes"] > 5
    assert report["last_step"]["0"] > 10
    assert (report["ops_crossed"] > 20) == ("crossing" in kinds)


def test_state_may_be_the_only_kind() -> None:
    done = stress(
        *("--minutes", "0.05", "--peers", "4", "--seed", "5", "--profile", "none"),
        *("--ops", "state", "--json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["state_checks"] > 10
    assert report["ops_crossed"] == 0


needs_namespaces = pytest.mark.skipif(reason_not_to() is not None, reason=str(reason_not_to()))


@pytest.mark.slow
@needs_namespaces
def test_faults_between_peers_leave_nothing_behind(tmp_path: Path) -> None:
    def devices() -> str:
        return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout

    before = devices()
    done = stress(*("--minutes", "0.4", "--peers", "5", "--seed", "5", "--profile", "net", "--json"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["setting"]["namespaces"]
    assert {"pair_oneway", "pair_cut", "cut_off"} <= set(report["faults"])
    assert devices() == before


def test_without_namespaces_all_other_faults_happen(tmp_path: Path) -> None:
    arguments = ("--minutes", "0.1", "--peers", "4", "--seed", "5", "--profile", "net", "--json")
    done = stress(*arguments, PATH=str(tmp_path))  # no iproute2
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("no faults between peers: network namespaces: needs") == 1
    report = json.loads(done.stdout)
    assert not report["setting"]["namespaces"]
    assert not {"pair_reset", "pair_oneway", "pair_cut", "cut_off"} & set(report["faults"])
    assert sum(report["faults"].values()) >= 1


def test_namespaces_that_are_wanted_and_missing_are_told(tmp_path: Path) -> None:
    done = stress("--namespaces", "yes", "--minutes", "0.1", PATH=str(tmp_path))
    assert done.returncode == 2
    assert "--namespaces yes: needs" in done.stderr


def planted(*arguments: str) -> list[str]:
    """The lines of `python -m tests.planted`, which fails if a defect is not caught."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.planted", *arguments],
        capture_output=True,
        text=True,
        timeout=2 * HANG_S,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_planted_defect_is_caught() -> None:
    """All of them: python -m tests.planted."""
    (line,) = planted("input_not_restored")
    assert " caught " in line


def test_every_planted_defect_fits_the_code_as_it_is() -> None:
    assert len(planted("--check")) >= 8


@pytest.mark.parametrize(
    "arguments",
    [
        ["--peers", "3"],
        ["--peers", "17"],
        ["--profile", "nonsense"],
        ["--ops", "nonsense"],
        ["--minutes", "0"],
        ["--fault-every", "2-1"],
        ["--max-bytes", "12X"],
        ["--groups", "2", "--peers", "5"],
        ["--report", "/nowhere/at/all.json"],
    ],
)
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    done = stress(*arguments)
    assert done.returncode == 2
    assert arguments[-2] in done.stderr or arguments[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'psutil'\", name='psutil')"
    )
    done = stress("--minutes", "0.1", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'pccl[stress]'" in done.stderr


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_until_joined(run: subprocess.Popen[bytes], journal: Path, peers: int) -> None:
    """Until all have joined: what they do to start is done."""
    deadline = time.monotonic() + HANG_S
    while not journal.exists() or journal.read_text().count('"kind": "in"') < peers:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("namespaces", ["no", pytest.param("yes", marks=needs_namespaces)])
def test_nothing_is_left_when_it_is_killed(tmp_path: Path, namespaces: str) -> None:
    command = [sys.executable, "-m", "pccl", "stress", "--profile", "none", "--peers", "4"]
    command += ["--namespaces", namespaces]
    run = subprocess.Popen([*command, "--keep", str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        wait_until_joined(run, tmp_path / "journal.jsonl", peers=4)
        left = children(run.pid)
        assert len(left) >= 6
        left[-1].suspend()  # one that cannot see that anybody has ended
    finally:
        run.kill()
        run.wait()
    _, alive = psutil.wait_procs(left, timeout=HANG_S)
    assert alive == []


_HOLES = """
import numpy as np
from pccl.stress.peer import give_memory_back

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

give_memory_back()
np.ones(4 << 20, np.uint8)  # glibc learns from the first that is freed
began, kept, large = resident(), [], []
for _ in range(100):
    large.append(np.ones(1 << 20, np.uint8))
    kept.append(bytearray(30_000))
del large
print(resident() - began)
"""


def test_what_a_peer_has_freed_does_not_count_as_its_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20 << 20
