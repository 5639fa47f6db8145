"""What the README promises: its program runs as printed, and survives a kill."""

import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0


def program() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return found


class Peer:
    """The program as a process, and the world sizes that it prints."""

    def __init__(self, address: str) -> None:
        text = program().replace("127.0.0.1:48148", address).replace("time.sleep(1)", "time.sleep(0.02)")
        self.process = subprocess.Popen([sys.executable, "-uc", text], stdout=subprocess.PIPE, text=True)
        self._changed = threading.Condition()
        self.sizes: list[int] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.sizes.append(int(line.split()[0]))
                self._changed.notify_all()

    def expect(self, size: int) -> None:
        """Wait until it prints `size` from now on."""
        with self._changed:
            seen = len(self.sizes)
            assert self._changed.wait_for(lambda: size in self.sizes[seen:], PATIENCE), self.sizes

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()


def test_the_program_is_as_short_as_promised() -> None:
    assert len(program().strip().splitlines()) <= 12
    assert "127.0.0.1:48148" in program()


def test_the_program_survives_a_kill(master) -> None:
    with ExitStack() as stack:
        peers = [Peer(master.address) for _ in range(3)]
        for peer in peers:
            stack.callback(peer.end)
        peers[0].expect(3)
        peers[1].process.kill()
        peers[0].expect(2)
        peers[2].expect(2)
        newcomer = Peer(master.address)
        stack.callback(newcomer.end)
        for peer in (peers[0], peers[2], newcomer):
            peer.expect(3)
