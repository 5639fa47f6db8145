"""The protocol in the simulator: scenarios tell what they should, and no seed violates an invariant."""

import subprocess
from pathlib import Path

import pytest
from sim import scenario
from sim.__main__ import run_mutation
from sim.build import build, mutations


@pytest.mark.parametrize("path", scenario.scenarios(), ids=lambda path: path.stem)
def test_scenario_tells_what_is_expected(path: Path) -> None:
    difference = scenario.difference(path)
    assert not difference, f"{path.name}: review, then `python -m tests.sim --rewrite`\n{difference}"


def run_seeds(first: int, count: int, *arguments: str) -> None:
    command = [str(build()), "--seed", str(first), "--count", str(count), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr


def test_no_seed_violates_an_invariant() -> None:
    run_seeds(1, 300)


def test_the_same_seed_tells_the_same_story() -> None:
    command = [str(build()), "--seed", "12", "--trace"]
    stories = [subprocess.run(command, capture_output=True, timeout=60).stdout for _ in range(2)]
    lines = [story.splitlines()[:-1] for story in stories]  # the last one says how long it took
    assert len(lines[0]) > 100
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_no_seed_violates_an_invariant_in_many() -> None:
    run_seeds(1_000_000, 5000)


@pytest.mark.slow
@pytest.mark.parametrize("name", [mutation.name for mutation in mutations()])
def test_planted_fault_is_caught(name: str) -> None:
    caught, line = run_mutation(name)
    assert caught, line
