"""pccl with a defect planted, in an environment of its own.

One copy of the sources and one build folder serve all defects, one after the other: only what changes is
compiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from ..sim.build import Mutation

__all__ = ["ROOT", "build", "defects"]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
OUTPUT = ROOT / "build" / "defects"
# Faults planted for the simulator that a run of real processes has to catch as well.
SHARED = ("commit_one_early", "ring_one_step_short", "sync_one_early")
_NEEDED = ("csrc", "bindings", "cmake", "pccl", "benchmarks", "stress")
_FILES = ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")


def defects() -> dict[str, Mutation]:
    """By name: ours, and those of the simulator that are caught here too."""
    paths = [*HERE.glob("defects/*.txt"), *(ROOT / "tests/sim/mutations" / f"{name}.txt" for name in SHARED)]
    return {path.stem: Mutation(path) for path in sorted(paths, key=lambda path: path.stem)}


def _copy_sources(tree: Path) -> None:
    """Only what differs, so that the build sees what has changed."""
    wanted = [Path(name) for name in _FILES]
    for top in _NEEDED:
        wanted += [path.relative_to(ROOT) for path in (ROOT / top).rglob("*") if path.is_file()]
    wanted = [path for path in wanted if path.suffix not in (".pyc", ".so")]
    for path in wanted:
        target = tree / path
        content = (ROOT / path).read_bytes()
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for path in [path for path in tree.rglob("*") if path.is_file()]:
        if path.relative_to(tree) not in wanted:
            path.unlink()


def build(defect: Mutation | None) -> Path:
    """The Python of an environment whose pccl has this defect (None: it has none)."""
    tree, environment = OUTPUT / "tree", OUTPUT / "environment"
    _copy_sources(tree)
    if defect is not None:
        defect.apply(tree)
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python3*/site-packages")
    shutil.rmtree(site)
    site.mkdir()
    # All that pccl needs is where this Python has it; an editable pccl there is out of sight: .pth files
    # count in no folder that a .pth file names.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheels = OUTPUT / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps"),
            *("--no-build-isolation", f"--config-settings=build-dir={OUTPUT / 'build'}"),
            *("-w", str(wheels), str(tree)),
        ],
        check=True,
        env={**os.environ, "CFLAGS": "-w"},
    )
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return python
