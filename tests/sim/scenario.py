"""Scenarios: text files with commands, a line of dashes, and the story that the simulator tells of them."""

import difflib
import subprocess
from pathlib import Path

from .build import HERE, build

SEPARATOR = "---\n"


def scenarios() -> list[Path]:
    return sorted((HERE / "scenarios").glob("*.txt"))


def tell(path: Path) -> str:
    """What the simulator writes for the commands in `path`. Raises if an invariant is violated."""
    done = subprocess.run([build(), "--scenario", path], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError(f"{path.name}:\n{done.stdout[-4000:]}{done.stderr}")
    return done.stdout


def split(path: Path) -> tuple[str, str]:
    commands, _, expected = path.read_text().partition(SEPARATOR)
    return commands, expected


def difference(path: Path) -> str:
    """Empty if the story is the expected one, else a diff."""
    expected, told = split(path)[1], tell(path)
    lines = difflib.unified_diff(expected.splitlines(), told.splitlines(), "expected", "told", lineterm="")
    return "\n".join(lines)


def rewrite(path: Path) -> bool:
    """Takes what is told for what is expected. Whether that changed the file."""
    commands, expected = split(path)
    told = tell(path)
    path.write_text(commands + SEPARATOR + told)
    return told != expected
