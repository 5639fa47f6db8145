"""pccl.benchmarks.launch: a team of processes, their answers and their ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pccl.benchmarks.launch import BenchmarkError, Team

WORKER = """
import os, sys
from pccl.benchmarks.control import serve
def answer(request):
    return {"die": lambda: os._exit(3), "raise": lambda: 1 / 0, "echo": lambda: request}[request["do"]]()
sys.exit(serve(sys.argv[1], int(sys.argv[2]), lambda: answer))
"""


def spawn(team: Team, script: str = WORKER) -> list[int]:
    for rank in range(team.world_size):
        team.spawn([sys.executable, "-c", script, team.socket_path, str(rank)])
    return [process.pid for process in team._processes]


def test_workers_answer_in_the_order_of_ranks(tmp_path) -> None:
    with Team("team", 2, tmp_path, 60) as team:
        spawn(team)
        team.wait_until_ready()
        for rank in (1, 0):
            team.ask(rank, {"do": "echo", "rank": rank})
        assert [answer["rank"] for answer in team.receive_all([0, 1])] == [0, 1]


@pytest.mark.parametrize(("what", "text"), [("die", "rank 0 has ended"), ("raise", "ZeroDivisionError")])
def test_the_end_of_a_worker_is_an_error(what, text, tmp_path) -> None:
    with Team("team", 1, tmp_path, 60) as team:
        spawn(team)
        team.wait_until_ready()
        with pytest.raises(BenchmarkError, match=text):
            team.ask_all({"do": what})


def test_a_worker_that_never_starts_is_an_error(tmp_path) -> None:
    with Team("team", 1, tmp_path, 60) as team:
        spawn(team, "raise SystemExit(4)")
        with pytest.raises(BenchmarkError, match="exit status 4"):
            team.wait_until_ready()


def test_a_worker_that_hangs_is_an_error_and_is_killed(tmp_path) -> None:
    team = Team("team", 1, tmp_path, 0.5)
    (pid,) = spawn(team, "import time; time.sleep(600)")
    with pytest.raises(BenchmarkError, match="not started"):
        team.wait_until_ready()
    team.close(at_once=True)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_workers_end_when_their_starter_is_killed() -> None:
    script = (
        "import os, pathlib, sys, tempfile\n"
        "from pccl.benchmarks.launch import Team\n"
        "team = Team('team', 1, pathlib.Path(tempfile.mkdtemp()), 60)\n"
        f"team.spawn([sys.executable, '-c', {WORKER!r}, team.socket_path, '0'])\n"
        "team.wait_until_ready()\n"
        "print(team._processes[0].pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    worker = int(done.stdout)
    deadline = time.monotonic() + 60
    while is_alive(worker):
        assert time.monotonic() < deadline, f"worker {worker} is still there"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # nobody may be there to reap it
