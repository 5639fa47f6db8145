"""Training that goes on when a peer is killed: `make demo`, or `python examples/digits/run.py`.

Starts a master and four workers (worker.py), lets a fifth join late, kills one of the four with SIGKILL, and
checks that the survivors end with the same bits and a network that reads digits. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

WORKER = Path(__file__).with_name("worker.py")
PEERS = 4  # from the start; one more joins late
JOIN_AT, KILL_AT = 0.25, 0.6  # as shares of all steps
ACCURACY = 0.95
REFRESH_SECONDS = 0.1
SHUTDOWN_SECONDS = 10.0
Message = dict[str, Any]


@dataclass
class Worker:
    """One worker process and what it has told."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    state: str = "starting"
    last: Message = field(default_factory=dict)
    loss: float | None = None
    digest: str = ""
    sent_bytes: int = 0
    done: Message | None = None


@dataclass
class Kill:
    """The one that was killed, when, and how the others went on."""

    worker: Worker
    seconds: float
    step: int
    peers: int  # before
    recovered: dict[str, float] = field(default_factory=dict)  # by survivor: seconds to its next step

    def note(self, worker: Worker, message: Message) -> None:
        """A step of a survivor. Those that were complete before the peer died still count its share."""
        if message["seconds"] > self.seconds and message["peers"] < self.peers:
            self.recovered.setdefault(worker.name, message["seconds"] - self.seconds)

    def is_over(self) -> bool:
        return len(self.recovered) == PEERS

    def recovery_seconds(self) -> float:
        """From the kill until all survivors had done their next step."""
        return max(self.recovered.values())


class Run:
    """The master, the workers, and what happens to them."""

    def __init__(self, options: argparse.Namespace, folder: Path, screen: Screen) -> None:
        self.options, self.folder, self.screen = options, folder, screen
        self.started = time.monotonic()
        self.workers: list[Worker] = []
        self.messages: queue.Queue[tuple[Worker, Message | None]] = queue.Queue()
        self.hashes: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.problems: list[str] = []
        self.newcomer: Worker | None = None
        self.kill: Kill | None = None
        self.master_log = folder / "master.log"
        command = [sys.executable, "-m", "pccl.master", "--listen-address", "127.0.0.1:0"]
        self.master = self._spawn(command, self.master_log, subprocess.DEVNULL)

    # --- processes ---------------------------------------------------------------------------------------

    def _spawn(self, command: list[str], log: Path, pipe: int = subprocess.PIPE) -> subprocess.Popen[str]:
        with log.open("w") as file:
            return subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=file,
                text=True,
                cwd=self.folder,  # so that "-m pccl.master" is the pccl that is installed
                start_new_session=True,  # Ctrl-C is ours to handle
            )

    def _master_address(self) -> str:
        """Where the master listens, which it tells on stderr."""
        while time.monotonic() < self.started + self.options.limit:
            found = re.search(r"listening on (\S+)", self.master_log.read_text())
            if found:
                return found[1]
            if self.master.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError("the master did not start")

    def _read(self, worker: Worker, pipe: TextIO) -> None:
        """In a thread of its own: what a worker tells, until its pipe ends."""
        with pipe:
            for line in pipe:
                with contextlib.suppress(ValueError):  # a killed process may leave half a line
                    self.messages.put((worker, json.loads(line)))
        self.messages.put((worker, None))

    def start_workers(self) -> None:
        address = self._master_address()
        options = self.options
        for number in range(1, PEERS + 2):
            name, log = f"peer-{number}", self.folder / f"peer-{number}.log"
            command = [sys.executable, str(WORKER), address, "--name", name, "--hold"]
            command += ["--steps", str(options.steps), "--seed", str(options.seed)]
            command += ["--start-with", str(PEERS)]
            worker = Worker(name, self._spawn(command, log), log)
            self.workers.append(worker)
            assert worker.process.stdout is not None
            threading.Thread(target=self._read, args=(worker, worker.process.stdout), daemon=True).start()

    def release(self, worker: Worker) -> None:
        """Let a worker that holds connect."""
        worker.state = "joining"
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), worker.process.stdin as pipe:
            pipe.write("\n")  # to a dead one in vain, which the end of its stdout tells

    def stop(self) -> None:
        """End what still runs."""
        for process in [worker.process for worker in self.workers] + [self.master]:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()

    # --- what happens ------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        self.screen.note(f"{time.monotonic() - self.started:5.1f} s  {text}")

    def follow(self) -> None:
        """Until all workers have ended, one has failed, or time is up."""
        running = len(self.workers)
        while running and not self.problems:
            self.screen.refresh(self.workers)
            if time.monotonic() > self.started + self.options.limit:
                states = ", ".join(f"{worker.name} {worker.state}" for worker in self.workers)
                self.problems.append(f"not over after {self.options.limit:g} s: {states}")
                break
            try:
                worker, message = self.messages.get(timeout=REFRESH_SECONDS)
            except queue.Empty:
                continue
            if message is None:
                running -= 1
                self._ended(worker)
            else:
                self._heard(worker, message)
        self.screen.refresh(self.workers, final=True)

    def _ended(self, worker: Worker) -> None:
        status = worker.process.wait()
        if self.kill is not None and worker is self.kill.worker:
            worker.state = "killed"
        elif status == 0 and worker.done:
            worker.state = "done"
        else:
            worker.state = f"failed ({status})"
            self.problems.append(f"{worker.name} ended with status {status}")
            self.say(self.problems[-1])

    def _heard(self, worker: Worker, message: Message) -> None:
        event = message["event"]
        if event == "ready":
            worker.state = "ready"
            if all(each.state == "ready" for each in self.workers):
                self.say(f"{PEERS + 1} workers are ready; the first {PEERS} connect")
                for each in self.workers[:PEERS]:
                    self.release(each)
            return
        if event == "transfer":
            self.screen.transfer(worker.name, message["done_bytes"], message["total_bytes"])
            return
        worker.last = message
        worker.sent_bytes += message["sent_bytes"]
        if "hash" in message:
            worker.digest = message["hash"]
            self.hashes[message["step"]][worker.digest].add(worker.name)
        if event == "shared":
            self._shared(worker, message)
        elif event == "step":
            worker.loss = message["loss"]
            self._stepped(worker, message)
        elif event == "done":
            worker.done = message

    def _shared(self, worker: Worker, message: Message) -> None:
        received = message["received_bytes"]
        if received:
            self.screen.transfer(worker.name, received, received)
        if worker.state == "joining":
            worker.state = "training"
            given = f", given {received / 1e6:.2f} MB of state" if received else ""
            peers = f"{message['peers']} peers now" if message["peers"] > 1 else "alone so far"
            self.say(f"{worker.name} has joined at step {message['step']} ({peers}){given}")
        else:
            self.say(f"{worker.name} held other bits than the others: {received} bytes were put right")

    def _stepped(self, worker: Worker, message: Message) -> None:
        step, steps = message["step"], self.options.steps
        if worker is self.workers[0] and (step % max(1, steps // 20) == 0 or step == steps):
            moved = sum(each.sent_bytes for each in self.workers) / 1e6
            self.screen.progress(
                f"{time.monotonic() - self.started:5.1f} s  step {step}/{steps}  peers {message['peers']}  "
                f"epoch {message['epoch']}  loss {message['loss']:.4f}  {moved:.1f} MB moved"
            )
        if self.newcomer is None and step >= JOIN_AT * steps:
            self.newcomer = self.workers[-1]
            self.release(self.newcomer)
        if self.kill is None and worker is self.newcomer and step >= KILL_AT * steps:
            self._kill()
        elif self.kill is not None and worker is not self.kill.worker and not self.kill.is_over():
            self.kill.note(worker, message)
            if self.kill.is_over():
                self.say(f"all survivors have gone on, {self.kill.recovery_seconds():.3f} s after the kill")

    def _kill(self) -> None:
        victim = self.workers[1]
        if victim.process.poll() is not None:
            return
        self.kill = Kill(victim, time.monotonic(), victim.last["step"], victim.last["peers"])
        victim.process.kill()
        self.say(f"{victim.name} was killed (SIGKILL) at step {self.kill.step}")

    # --- what came of it ---------------------------------------------------------------------------------

    def survivors(self) -> list[Worker]:
        return [worker for worker in self.workers if self.kill is None or worker is not self.kill.worker]

    def judge(self) -> list[str]:
        """Everything that is not as it should be."""
        problems = list(self.problems)
        steps = self.options.steps
        for step, digests in sorted(self.hashes.items()):
            if len(digests) > 1:
                who = "; ".join(
                    f"{digest} at {', '.join(sorted(names))}" for digest, names in digests.items()
                )
                problems.append(f"the peers differ after step {step}: {who}")
                break  # and from there on
        for worker in self.survivors():
            if worker.done is None or worker.done["step"] != steps:
                problems.append(f"{worker.name} did not finish")
            elif worker.done["accuracy"] < ACCURACY:
                problems.append(f"{worker.name}: accuracy {worker.done['accuracy']:.3f} is below {ACCURACY}")
        if self.newcomer is None or self.newcomer.state in ("ready", "joining"):
            problems.append("the fifth peer never joined")
        if self.kill is None:
            problems.append("the run was over before a peer was killed")
        elif not self.kill.is_over():
            stuck = {worker.name for worker in self.survivors()} - self.kill.recovered.keys()
            problems.append(f"no step after the kill: {', '.join(sorted(stuck))}")
        return problems

    def summary(self) -> list[str]:
        """The results, as lines of text."""
        lines = []
        for worker in self.survivors():
            if worker.done is not None:
                lines.append(
                    f"{worker.name}  step {worker.done['step']}  state {worker.done['hash']}  "
                    f"test accuracy {worker.done['accuracy']:.3f}"
                )
        compared = [step for step, digests in self.hashes.items() if sum(map(len, digests.values())) > 1]
        differ = sum(len(self.hashes[step]) > 1 for step in compared)
        lines.append(f"states compared after {len(compared)} steps: {differ} differ")
        if self.kill is not None and self.kill.is_over():
            lines.append(
                f"recovery: {self.kill.recovery_seconds():.3f} s from the kill of {self.kill.worker.name} "
                "until all survivors had done their next step"
            )
        moved = sum(worker.sent_bytes for worker in self.workers) / 1e6
        lines.append(f"{moved:.1f} MB moved in {time.monotonic() - self.started:.1f} s")
        return lines

    def logs(self, lines: int = 15) -> str:
        """The ends of what the processes wrote to stderr."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            if tail:
                parts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(parts)


class Screen:
    """Where progress is shown: here lines, for pipes and files."""

    def note(self, text: str) -> None:
        print(text, flush=True)

    def progress(self, text: str) -> None:
        print(text, flush=True)

    def transfer(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """So much of the state has come to a peer."""

    def refresh(self, workers: list[Worker], final: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


class LiveScreen(Screen):
    """A table that is kept up to date, and below it what has happened."""

    def __init__(self) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        self._notes: list[str] = []
        columns = TextColumn("{task.description} receives the state"), BarColumn(), DownloadColumn()
        self._transfers = Progress(*columns, auto_refresh=False)
        self._bars: dict[str, Any] = {}
        self._next = 0.0
        self._live = Live(auto_refresh=False)
        self._live.start()

    def note(self, text: str) -> None:
        self._notes.append(text)

    def progress(self, text: str) -> None:
        pass  # the table shows it

    def transfer(self, name: str, done_bytes: int, total_bytes: int) -> None:
        if name not in self._bars:
            self._bars[name] = self._transfers.add_task(name)
        self._transfers.update(self._bars[name], completed=done_bytes, total=total_bytes)

    def refresh(self, workers: list[Worker], final: bool = False) -> None:
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        if final or now >= self._next:
            self._next = now + REFRESH_SECONDS
            self._live.update(
                Group(self._table(workers), self._transfers, *map(Text, self._notes)), refresh=True
            )

    def _table(self, workers: list[Worker]) -> Any:
        from rich.table import Table

        table = Table(title="handwritten digits, data-parallel over pccl")
        table.add_column("peer")
        table.add_column("", min_width=8)
        for heading in ("peers", "epoch", "rank", "step", "loss", "MB moved"):
            table.add_column(heading, justify="right", min_width=len(heading))
        table.add_column("state's hash", min_width=16)
        colours = {"training": "green", "done": "bold green", "killed": "bold red"}
        for worker in workers:
            last = {key: str(worker.last.get(key, "")) for key in ("peers", "epoch", "rank", "step")}
            loss = "" if worker.loss is None else f"{worker.loss:.4f}"
            moved = f"{worker.sent_bytes / 1e6:.1f}" if worker.last else ""
            colour = colours.get(worker.state, "red" if worker.state.startswith("failed") else "dim")
            state = f"[{colour}]{worker.state}[/]"
            table.add_row(worker.name, state, *last.values(), loss, moved, worker.digest)
        return table

    def close(self) -> None:
        self._live.stop()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on digits while peers join and die.")
    parser.add_argument("--steps", type=int, default=1500, help="of training, at least 50 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and batches (%(default)s)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds to give up after (%(default)s)")
    parser.add_argument("--plain", action="store_true", help="lines instead of a table, as when piped")
    options = parser.parse_args(arguments)
    if options.steps < 50:
        parser.error("--steps must be at least 50")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    screen = Screen() if options.plain or not sys.stdout.isatty() else LiveScreen()
    with tempfile.TemporaryDirectory(prefix="pccl-digits-") as folder:
        run = Run(options, Path(folder), screen)
        try:
            run.start_workers()
            run.follow()
        except KeyboardInterrupt:
            run.problems.append("interrupted")
        except RuntimeError as error:
            run.problems.append(str(error))
        finally:
            screen.close()
            run.stop()
        problems = run.judge()
        print("\n".join(run.summary()))
        if problems:
            print(run.logs(), file=sys.stderr)
            print("\n".join(f"FAILED: {problem}" for problem in problems))
            return 1
    print("all survivors hold the same bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
