"""The wheel: one for all Pythons from 3.10 on, with nothing missing."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")

PROGRAM = """
import sys, pccl
assert pccl.__file__.startswith(sys.prefix), pccl.__file__
x = bytearray(b"\\1" * 8)
with pccl.MasterNode("127.0.0.1:0") as master, pccl.Communicator(master.address) as comm:
    try:
        comm.all_reduce(x)
    except pccl.TooFewPeersError:
        print("alone on", *sys.version_info[:2])
"""


def run(*command: str | Path) -> str:
    # What is installed in the folder of the tests must not be seen.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, cwd="/", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def find_python(version: str) -> str | None:
    """A Python of this version: of this machine, or of pyenv."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python3"))]
    for candidate in candidates:
        if candidate is None:
            continue
        asked = subprocess.run(
            [candidate, "-c", "import sys, ensurepip; print(*sys.version_info[:2], sep='.')"],
            capture_output=True,
            text=True,
            check=False,
        )  # pyenv's shims are there for versions that are not
        if asked.stdout.strip() == version:
            return str(candidate)
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        *(f"--config-settings=build-dir={folder / 'build'}", "-w", folder, ROOT),
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_is_for_the_stable_abi(wheel: Path) -> None:
    assert "-cp310-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "pccl/_native.abi3.so" in names
    # All of the package, and nothing that belongs elsewhere.
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pccl").glob("*.py")}
    for folder in ("benchmarks", "stress"):
        sources |= {f"pccl/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    assert sources | {"pccl/py.typed"} <= set(names)
    elsewhere = ("tests", "include", "lib", "examples", "benchmarks", "stress")
    assert not [name for name in names if name.startswith(elsewhere)]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_wheel_works_on(version: str, wheel: Path, tmp_path: Path) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    run(python, "-m", "venv", tmp_path)
    run(tmp_path / "bin" / "python", "-m", "pip", "install", "-q", wheel)
    assert run(tmp_path / "bin" / "python", "-c", PROGRAM) == f"alone on {version.replace('.', ' ')}\n"
    assert run(tmp_path / "bin" / "pccl", "--version").startswith("pccl ")


def test_the_module_shows_only_its_entry() -> None:
    import pccl._native

    lines = run("nm", "-D", "--defined-only", pccl._native.__file__).splitlines()
    assert [line.split()[-1] for line in lines if line.split()[-1] not in ("_init", "_fini")] == [
        "PyInit__native"
    ]
