"""Builds the simulator, as it is or with a fault planted in the machines, with the C compiler alone."""

import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
OUTPUT = ROOT / "build" / "sim"
OBJECTS = OUTPUT / "objects"
FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
# setjmp leaves a run that has failed; nothing that it lives on is a local variable
FLAGS += ["-Wno-clobbered"] if os.environ.get("CC", "gcc").endswith("gcc") else []
LIBRARY_SOURCES = [
    "csrc/wire/message.c",
    "csrc/base/id.c",
    "csrc/base/random.c",
    "csrc/base/address.c",
    "csrc/data/datatype.c",
]


def build(name: str = "sim", tree: Path = ROOT, flags: list[str] | None = None) -> Path:
    """The program build/sim/<name>, made anew if a source, header or flag has changed. `tree` holds csrc."""
    sources = sorted(HERE.glob("*.c")) + sorted((tree / "csrc/core").glob("*.c"))
    sources += [tree / source for source in LIBRARY_SOURCES]
    headers = sorted((tree / "csrc").glob("*/*.h")) + sorted(HERE.glob("*.h"))
    command = [*shlex.split(os.environ.get("CC", "gcc")), *FLAGS, *(flags or [])]
    common = hashlib.sha256(" ".join(command).encode())
    for header in headers:
        common.update(header.read_bytes())
    include = [f"-I{tree / 'csrc'}", f"-I{tree / 'csrc/include'}", f"-I{ROOT}"]
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        compile_one = functools.partial(_object, [*command, *include], common)
        objects = list(compilers.map(compile_one, sources))
    program, stamp = OUTPUT / name, OUTPUT / f"{name}.stamp"
    expected = "\n".join(file.name for file in objects)
    if not program.exists() or not stamp.exists() or stamp.read_text() != expected:
        subprocess.run([*command, "-o", str(program), *map(str, objects)], check=True, cwd=ROOT)
        stamp.write_text(expected)
    return program


def _object(command: list[str], common: "hashlib._Hash", source: Path) -> Path:
    """What `source` compiles to. Mutants differ in one file: they share the objects of the others."""
    digest = common.copy()
    digest.update(source.read_bytes())
    path = OBJECTS / f"{source.stem}-{digest.hexdigest()[:32]}.o"
    if not path.exists():
        OBJECTS.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-c", "-o", str(unfinished), str(source)], check=True, cwd=ROOT)
        unfinished.replace(path)
    return path


def build_mutant(name: str, mutation: "Mutation") -> Path:
    """The program with one mutation applied to a copy of the machines."""
    tree = OUTPUT / "mutants" / name
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", tree / "csrc", ignore=shutil.ignore_patterns("net", "*.md"))
    mutation.apply(tree)
    try:
        return build(f"mutant-{name}", tree, ["-Wno-error", "-w", "-O1"])
    finally:
        shutil.rmtree(tree, ignore_errors=True)


class Mutation:
    """A planted fault: mutations/<name>.txt holds a sentence, the file, and the lines before and after.

    # what is broken, in one sentence
    file: csrc/core/master_op.c
    --- before
    ...
    --- after
    ...
    """

    def __init__(self, path: Path) -> None:
        head, before, after = _split(path.read_text())
        self.name = path.stem
        self.sentence = head[0].lstrip("# ")
        self.file = next(line.split(":", 1)[1].strip() for line in head if line.startswith("file:"))
        self.before, self.after = before, after

    def apply(self, tree: Path) -> None:
        target = tree / self.file
        text = target.read_text()
        if text.count(self.before) != 1:
            raise ValueError(
                f"mutation {self.name}: {self.file} has its lines {text.count(self.before)} times, not once: "
                "write the mutation anew for the code as it is"
            )
        target.write_text(text.replace(self.before, self.after))


def _split(text: str) -> tuple[list[str], str, str]:
    head, rest = text.split("--- before\n")
    before, after = rest.split("--- after\n")
    return head.splitlines(), before, after


def mutations() -> list[Mutation]:
    return [Mutation(path) for path in sorted((HERE / "mutations").glob("*.txt"))]
