"""The demo: its network, its hand-over of the state, and the whole of it with a late join and a kill."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from faults.model import expect_parity

import pccl

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))

import network  # noqa: E402
import run  # noqa: E402
import worker  # noqa: E402

SIZES = (5, 4, 3, 3)
STEPS = 120
PATIENCE = 60.0


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
    """Each sync_shared_state() does the next of `outcomes`: returns it, raises it, or calls it first."""

    rank, epoch, world_size = 0, 1, 2

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)

    def sync_shared_state(self, shared, *, progress):
        outcome = self.outcomes.pop(0)
        if callable(outcome):
            outcome = outcome(shared)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


LOST = pccl.PeerLostError(pccl.Result.RANK_CONNECTION_LOST)
NO_STATE = pccl.PCCLError(pccl.Result.NO_SHARED_STATE_AVAILABLE)
NOTHING = pccl.SharedStateSyncInfo(0, 0)


def trained_state(steps=3):
    state = worker.TrainingState(0)
    for step in range(steps):
        state.advance(np.random.default_rng(step).normal(size=state.parameters.size).astype(np.float32), 0.1)
        state.shared.push_revision()
    return state


def share(state, *outcomes):
    comm = FakeCommunicator(*outcomes)
    worker.share_state(comm, state)
    assert not comm.outcomes
    assert state.has_joined
    return state


def tear(state, error):
    """A transfer that fails in the middle."""

    def outcome(shared):
        state.parameters[7] += 1
        return error

    return outcome


@pytest.mark.parametrize("outcomes", [(NOTHING,), (LOST, NOTHING), (LOST, LOST, NOTHING)])
def test_a_state_that_no_sync_has_changed_is_kept(outcomes):
    state = share(trained_state(), *outcomes)
    assert state.digest() == trained_state().digest()
    assert state.shared.revision == 3


def test_a_mix_is_left_as_it_is_while_others_can_put_it_right():
    state = trained_state()
    seen = []
    share(state, tear(state, LOST), lambda shared: seen.append(state.digest()) or NOTHING)
    assert seen == [state.digest()] != [trained_state().digest()]


def test_nobody_trains_on_a_mix_when_all_others_are_gone():
    state = trained_state()
    share(state, tear(state, LOST), NO_STATE, NOTHING)
    assert state.digest() == worker.TrainingState(0).digest()
    assert (state.step, state.shared.revision) == (0, 0)


def test_if_nobody_has_the_state_any_more_all_begin_anew_together():
    state = trained_state()
    share(state, tear(state, NO_STATE), NOTHING)
    assert state.digest() == worker.TrainingState(0).digest()


def test_what_no_other_call_can_cure_ends_the_worker():
    with pytest.raises(pccl.MismatchError):
        share(trained_state(), pccl.MismatchError(pccl.Result.MISMATCH))


def test_only_a_newcomer_and_one_that_differed_tell_what_they_were_given(capsys):
    state = trained_state()
    given = pccl.SharedStateSyncInfo(0, 1000)
    told = []
    for outcome in (given, NOTHING, given):
        share(state, outcome)
        told.append(capsys.readouterr().out)
    assert ['"received_bytes": 1000' in line for line in told] == [True, False, True]
    assert told[1] == ""


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
    joined = re.search(r"peer-5 has joined at step (\d+) \(5 peers now\), given 0\.41 MB of state", text)
    killed = re.search(r"peer-2 was killed \(SIGKILL\) at step (\d+)", text)
    assert joined, text
    assert killed, text
    assert STEPS * run.JOIN_AT <= int(joined[1]) < int(killed[1]) < STEPS
    assert re.search(r"all survivors have gone on, \d+\.\d+ s after the kill", text), text
    compared, differ = re.search(r"states compared after (\d+) steps: (\d+) differ", text).groups()
    assert int(compared) >= STEPS
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
    assert re.search(r"peer-3 held other bits than the others: \d+ bytes were put right$", text, re.M)
    assert re.search(r"^states compared after \d+ steps: 1 differ$", text, re.M), (
        "the next sync puts it right"
    )
    assert re.search(r"^FAILED: peer-1: accuracy 0\.\d+ is below 1\.01$", text, re.M)


@pytest.mark.slow
def test_demo_fails_when_a_worker_ends_by_itself(tmp_path, monkeypatch, capsys):
    text = run_sabotaged("sys.exit(3)", tmp_path, monkeypatch, capsys)
    assert "FAILED: peer-3 ended with status 3" in text


def test_the_transfer_of_the_state_is_a_bar_on_a_terminal_and_nothing_on_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    peer = run.Worker("peer-5", None, None)
    screens = run.Screen(), run.LiveScreen()
    for screen in screens:
        screen.transfer("peer-5", 300_000, 400_000)
        assert capsys.readouterr().out == ""
        screen.refresh([peer], final=True)
        screen.close()
        text = capsys.readouterr().out
        expected = isinstance(screen, run.LiveScreen)
        assert bool(re.search(r"peer-5 receives the state .* 300.0/400.0 kB", text)) == expected


# --- workers that come just as others die ------------------------------------------------------------------


class Trainee:
    """A worker that is ready to connect, and what it tells."""

    def __init__(self, address, name):
        command = [sys.executable, str(DIGITS / "worker.py"), address, "--name", name, "--hold"]
        command += ["--steps", str(10**9), "--timeout", "5"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.told = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.endswith("\n"):  # one that is killed may leave half a line
                with self._changed:
                    self.told.append(json.loads(line))
                    self._changed.notify_all()

    def connect(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def expect(self, what, *, after=0):
        """Wait until it tells this, beyond the first `after` messages."""
        with self._changed:
            found = self._changed.wait_for(lambda: any(map(what, self.told[after:])), PATIENCE)
        assert found, f"not told: {self.told[-3:]}"

    def end(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.mark.slow
def test_newcomers_get_the_state_while_others_die_and_the_last_one_goes_on_alone(master):
    random_source = random.Random(20261121)
    with ExitStack() as stack:
        first, *others = trainees = [Trainee(master.address, f"peer-{number}") for number in range(1, 7)]
        for trainee in trainees:
            stack.callback(trainee.end)
        for trainee in trainees:
            trainee.expect(lambda message: message["event"] == "ready")
        first.connect()
        others[0].connect()
        others[0].expect(lambda message: message["event"] == "step")
        for leaver, newcomer in itertools.pairwise(others):
            newcomer.connect()
            time.sleep(random_source.random() * 0.02)
            leaver.process.kill()
            newcomer.expect(lambda message: message["event"] == "step" and message["peers"] == 2)
        others[-1].process.kill()
        others[-1].process.wait()
        first.expect(lambda message: message["event"] == "step" and message["peers"] == 1)
        first.expect(lambda message: message["event"] == "step", after=len(first.told))
        assert first.process.poll() is None
    told = [message for each in trainees for message in each.told if "hash" in message]
    states = [(message["step"], message["hash"]) for message in told]
    assert expect_parity(states) > len(others)
    steps = [message["step"] for message in first.told if message["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1)), "nothing was lost or done twice"
    for newcomer in others[1:]:
        (shared,) = [message for message in newcomer.told if message["event"] == "shared"]
        assert shared["received_bytes"] > 0
