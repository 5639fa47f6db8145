"""The demo: its network, its hand-over of the state, and the whole of it with a late join and a kill."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pccl

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))

import network  # noqa: E402
import run  # noqa: E402
import worker  # noqa: E402

SIZES = (5, 4, 3, 3)
STEPS = 120


# --- the network -----------------------------------------------------------------------------------------


@pytest.fixture
def batch():
    random = np.random.default_rng(20261121)
    return random.random((7, SIZES[0])), random.integers(0, SIZES[-1], 7)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradient_agrees_with_finite_differences(batch, seed):
    vector = network.initial_parameters(seed, SIZES, np.float64)
    vector += 0.1  # biases too: at zero a mistake in them could hide
    _, gradient = network.loss_and_gradient(vector, *batch, SIZES)
    delta = 1e-6
    expected = np.empty_like(vector)
    for i in range(len(vector)):
        losses = []
        for change in (delta, -delta):
            moved = vector.copy()
            moved[i] += change
            losses.append(network.loss_and_gradient(moved, *batch, SIZES)[0])
        expected[i] = (losses[0] - losses[1]) / (2 * delta)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_loss_of_a_network_that_knows_nothing_is_the_logarithm_of_the_number_of_classes(batch):
    loss, _ = network.loss_and_gradient(np.zeros(network.parameter_count(SIZES)), *batch, SIZES)
    assert loss == pytest.approx(np.log(SIZES[-1]))


def test_layers_are_views_that_cover_the_vector_once():
    vector = np.zeros(network.parameter_count(SIZES))
    for weights, biases in network.layers(vector, SIZES):
        weights += 1
        biases += 1
    assert (vector == 1).all()


def test_parameters_depend_on_the_seed_alone():
    assert (network.initial_parameters(3) == network.initial_parameters(3)).all()
    assert (network.initial_parameters(3) != network.initial_parameters(4)).any()


def test_batches_of_the_peers_of_a_step_are_disjoint_and_differ_from_step_to_step():
    options = SimpleNamespace(seed=0, batch=32)
    parts = [worker.own_batch(5, rank, 4, 1438, options) for rank in range(4)]
    assert [len(part) for part in parts] == [32] * 4
    assert len(set(np.concatenate(parts))) == 4 * 32
    assert set(worker.own_batch(6, 0, 4, 1438, options)) != set(parts[0])


# --- the hand-over ---------------------------------------------------------------------------------------


class FakeCommunicator:
    """One all-reduce (max) together with peers that have offered `others`."""

    rank, epoch = 0, 1

    def __init__(self, others):
        self.others = others

    def all_reduce(self, offer, *, op, retry):
        assert (op, retry) == ("max", True)
        if not self.others:
            raise pccl.TooFewPeersError(pccl.Result.TOO_FEW_PEERS)
        np.max([offer, *self.others], axis=0, out=offer)
        return pccl.ReduceInfo(1 + len(self.others), 0, 0)


def trained_state(steps=3):
    state = worker.TrainingState(0)
    for step in range(steps):
        state.advance(np.random.default_rng(step).normal(size=state.parameters.size).astype(np.float32), 0.1)
    state.known = True
    return state


def offer_of(state):
    return state.memory if state.known else np.zeros_like(state.memory)


@pytest.mark.parametrize("holders", [1, 2, 3])
@pytest.mark.parametrize("newcomers", [0, 1, 2])
def test_a_newcomer_has_the_state_whoever_of_the_holders_survives(holders, newcomers):
    others = [trained_state() for _ in range(holders)] + [worker.TrainingState(0) for _ in range(newcomers)]
    for count in range(1, len(others) + 1):
        for survivors in itertools.combinations(others, count):
            newcomer = worker.TrainingState(0)
            peers = worker.share_state(FakeCommunicator([offer_of(state) for state in survivors]), newcomer)
            holder = next((state for state in survivors if state.known), None)
            expected = worker.TrainingState(0) if holder is None else holder
            assert newcomer.known
            assert peers == count + 1
            assert newcomer.step == expected.step
            assert newcomer.digest() == expected.digest()


def test_a_holder_keeps_its_state():
    state, before = trained_state(), trained_state().digest()
    for others in ([], [worker.TrainingState(0)], [trained_state()]):
        worker.share_state(FakeCommunicator([offer_of(other) for other in others]), state)
        assert state.digest() == before


def test_a_peer_that_is_alone_begins():
    state = worker.TrainingState(0)
    assert worker.share_state(FakeCommunicator([]), state) == 1
    assert state.known
    assert state.step == 0
    assert state.digest() == worker.TrainingState(0).digest()


def test_the_state_differs_in_every_part_of_it():
    digests = {trained_state().digest()}
    for part in ("parameters", "momentum", "_step"):
        state = trained_state()
        getattr(state, part)[-1] += 1
        digests.add(state.digest())
    assert len(digests) == 4


# --- the whole -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_goes_on_through_a_late_join_and_a_kill():
    command = [sys.executable, str(DIGITS / "run.py"), "--plain", "--steps", str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    results = re.findall(r"^(peer-\d)  step (\d+)  state (\w+)  test accuracy ([\d.]+)$", done.stdout, re.M)
    assert [name for name, *_ in results] == ["peer-1", "peer-3", "peer-4", "peer-5"], text
    assert {int(step) for _, step, *_ in results} == {STEPS}
    assert len({digest for *_, digest, _ in results}) == 1
    assert min(float(accuracy) for *_, accuracy in results) >= run.ACCURACY
    joined = re.search(r"peer-5 has joined at step (\d+) \(peers: 5\)", text)
    killed = re.search(r"peer-2 was killed \(SIGKILL\) at step (\d+)", text)
    assert joined, text
    assert killed, text
    assert STEPS * run.JOIN_AT <= int(joined[1]) < int(killed[1]) < STEPS
    assert re.search(r"all survivors have gone on, \d+\.\d+ s after the kill", text), text
    compared, differ = re.search(r"states compared after (\d+) steps: (\d+) differ", text).groups()
    assert int(compared) >= STEPS // 10
    assert int(differ) == 0


SABOTAGE = f"""
import sys
sys.path.insert(0, {str(DIGITS)!r})
import worker
advance = worker.TrainingState.advance
def sabotaged(state, gradient, learning_rate):
    advance(state, gradient, learning_rate)
    if "peer-3" in sys.argv and state.step == 30:
        {{deed}}
worker.TrainingState.advance = sabotaged
sys.exit(worker.main())
"""


def run_sabotaged(deed, tmp_path, monkeypatch, capsys):
    """What the demo says when peer-3 does `deed` after step 30."""
    script = tmp_path / "sabotaged.py"
    script.write_text(SABOTAGE.format(deed=deed))
    monkeypatch.setattr(run, "WORKER", script)
    assert run.main(["--plain", "--steps", "60"]) == 1
    return capsys.readouterr().out


@pytest.mark.slow
def test_demo_fails_when_a_peer_differs_or_the_network_reads_too_badly(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "ACCURACY", 1.01)
    text = run_sabotaged("state.parameters[7] += 1e-3", tmp_path, monkeypatch, capsys)
    assert re.search(r"^FAILED: the peers differ after step 30: .*\w{16} at peer-3(;|$)", text, re.M)
    assert re.search(r"^FAILED: peer-1: accuracy 0\.\d+ is below 1\.01$", text, re.M)


@pytest.mark.slow
def test_demo_fails_when_a_worker_ends_by_itself(tmp_path, monkeypatch, capsys):
    text = run_sabotaged("sys.exit(3)", tmp_path, monkeypatch, capsys)
    assert "FAILED: peer-3 ended with status 3" in text
