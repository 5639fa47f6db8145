"""Dependencies point down only: what points up fails. csrc/README.md has the floors."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

# The folders of csrc by height; "." is csrc itself, the public calls. An include points down or sideways.
FLOORS = {"include": 0, "base": 1, "wire": 2, "data": 2, "core": 3, "net": 4, ".": 5}
# Sockets, threads, clocks and pollers belong to net/; core/ does not even allocate.
SYSTEM = {"pthread.h", "threads.h", "time.h", "poll.h", "signal.h", "netdb.h", "unistd.h"}
SYSTEM_FOLDERS = ("sys/", "netinet/", "arpa/", "linux/")
ALLOWED_SYSTEM = {
    "base/log.c": {"poll.h", "pthread.h", "signal.h", "sys/socket.h", "sys/stat.h", "time.h", "unistd.h"},
    "base/address.c": {"arpa/inet.h"},  # inet_ntop
}

# Top folders of the repository, and the modules of the repository that they may import. A module is
# allowed with all that is below it, unless its entry ends in "!".
IMPORTS = {
    "bindings": set(),
    "pccl": {"pccl"},
    "benchmarks": {"pccl!", "pccl.benchmarks", "pccl._kernels"},  # which have no public call
    "stress": {"pccl!", "pccl.stress"},
    "examples": {"pccl!"},
}
OURS = {"pccl", "bindings", "benchmarks", "stress", "examples", "tests"}


def floor_of(path: str) -> str:
    return path.partition("/")[0] if "/" in path else "."


def include_faults(path: str, text: str) -> Iterator[str]:
    """What is wrong with the includes of one file; `path` is below csrc."""
    floor = floor_of(path)
    for line in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE):
        target = line if (CSRC / line).exists() else f"include/{line}"
        if not (CSRC / target).exists():
            yield f"{path}: {line} is not in csrc"
        elif FLOORS[floor_of(target)] > FLOORS[floor]:
            yield f"{path}: {floor} must not include {line}"
    if floor in ("include", "base", "wire", "data", "core"):
        for header in re.findall(r"^\s*#\s*include\s*<([^>]+)>", text, re.MULTILINE):
            forbidden = header in SYSTEM or header.startswith(SYSTEM_FOLDERS)
            if floor == "core" and header == "stdlib.h":
                forbidden = True
            if forbidden and header not in ALLOWED_SYSTEM.get(path, set()):
                yield f"{path}: <{header}> belongs to net/"


def imported(path: Path, text: str) -> Iterator[str]:
    """Full names of the modules that one Python file imports."""
    package = ["pccl", *path.parts[:-1]] if path.parts[0] in ("benchmarks", "stress") else [*path.parts[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if node.level and node.module is None:
                yield from (f"{module}.{alias.name}" for alias in node.names)
            else:
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names if alias.name.startswith("_"))


def import_faults(path: str, text: str) -> Iterator[str]:
    """What is wrong with the imports of one file; `path` is below the repository."""
    allowed = IMPORTS[path.partition("/")[0]]
    for name in imported(Path(path), text):
        if name.partition(".")[0] not in OURS:
            continue
        if path.startswith("examples/") and name.startswith("examples"):
            continue
        upward = path.startswith("pccl/") and name.startswith(("pccl.benchmarks", "pccl.stress"))
        if upward or not any(
            name == entry.rstrip("!") or (not entry.endswith("!") and name.startswith(entry + "."))
            for entry in allowed
        ):
            yield f"{path}: must not import {name}"


def c_files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in (".c", ".h"))


def python_files() -> list[Path]:
    return sorted(path for top in IMPORTS for path in (ROOT / top).rglob("*.py"))


def test_includes_point_down() -> None:
    files = c_files()
    assert len(files) > 40
    faults = [
        fault
        for path in files
        for fault in include_faults(path.relative_to(CSRC).as_posix(), path.read_text())
    ]
    assert faults == []


def test_imports_point_down() -> None:
    files = python_files()
    assert {path.relative_to(ROOT).parts[0] for path in files} >= {"pccl", "bindings"}
    faults = [
        fault
        for path in files
        for fault in import_faults(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    assert faults == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("base/id.c", '#include "wire/message.h"'),
        ("data/reduce.c", '#include "core/ring.h"'),
        ("wire/frame.c", '#include "net/stream.h"'),
        ("core/ring.c", '#include "net/link.h"'),
        ("net/link.c", '#include "pccl_comm.h"'),
        ("include/pccl.h", '#include "base/id.h"'),
        ("core/ring.c", "#include <pthread.h>"),
        ("core/ring.c", "#include <stdlib.h>"),
        ("wire/frame.c", "#include <sys/socket.h>"),
        ("core/ring.c", '#include "core/nowhere.h"'),
    ],
)
def test_an_include_that_points_up_is_found(path: str, line: str) -> None:
    assert list(include_faults(path, f"#include <stdint.h>\n  {line}\n")) != []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("net/link.c", '#include "core/ring.h"'),
        ("core/ring.c", '#include "pccl.h"'),
        ("wire/frame.c", '#include "data/crc32c.h"'),
        ("pccl.c", '#include "net/comm.h"'),
        ("net/link.c", "#include <pthread.h>"),
    ],
)
def test_an_include_that_points_down_is_fine(path: str, line: str) -> None:
    assert list(include_faults(path, line + "\n")) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pccl/communicator.py", "from .benchmarks import table"),
        ("pccl/communicator.py", "import examples.digits"),
        ("benchmarks/table.py", "from pccl._native import lib"),
        ("benchmarks/table.py", "import pccl.communicator"),
        ("benchmarks/table.py", "from .. import _errors"),
        ("benchmarks/kernels.py", "from pccl import _errors"),
        ("examples/digits/run.py", "import pccl._arrays"),
        ("examples/digits/run.py", "from benchmarks import table"),
        ("bindings/build_native.py", "import pccl"),
    ],
)
def test_an_import_that_points_up_is_found(path: str, line: str) -> None:
    assert list(import_faults(path, f"import os\n{line}\n")) != []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pccl/communicator.py", "from ._errors import check"),
        ("benchmarks/table.py", "import pccl"),
        ("benchmarks/table.py", "from . import plan"),
        ("benchmarks/kernels.py", "import pccl._kernels"),
        ("benchmarks/rivals/gloo.py", "from ..plan import Plan"),
        ("examples/digits/run.py", "from pccl import Communicator"),
    ],
)
def test_an_import_that_points_down_is_fine(path: str, line: str) -> None:
    assert list(import_faults(path, line + "\n")) == []


# What makes or ends a descriptor; DESCRIPTOR(...) and descriptor_close() are there for both.
RAW_DESCRIPTORS = re.compile(
    r"(?<![\w(])(close|socket|accept4?|eventfd|epoll_create1?|memfd_create|timerfd_create|pipe2?|dup[23]?)\("
)


def test_descriptors_are_made_and_closed_in_one_place() -> None:
    faults = []
    for path in sorted((CSRC / "net").glob("*.[ch]")):
        if path.name.startswith("descriptors."):
            continue
        code = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL)
        faults += [f"{path.name}: {found[0]}" for found in RAW_DESCRIPTORS.finditer(code)]
    assert faults == []
    assert RAW_DESCRIPTORS.search("    int fd = socket(AF_INET, SOCK_STREAM, 0);")
    assert not RAW_DESCRIPTORS.search("DESCRIPTOR(socket(AF_INET, SOCK_STREAM, 0))")
