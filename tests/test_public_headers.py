"""The public headers are valid C99 and C++20, and programs that know nothing else work with libpccl."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "csrc" / "include"
LIBRARY_DIR = ROOT / "build"
HEADERS = ("ccoip.h", "ccoip_inet.h", "pccl.h")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")


def compiler(language: str) -> str:
    """The compiler for "c" or "c++". C++ is optional on a developer's machine, but not in CI."""
    name = os.environ.get("CC", "cc") if language == "c" else os.environ.get("CXX", "c++")
    if shutil.which(name) is None:
        if language == "c" or os.environ.get("CI"):
            pytest.fail(f"no {name} here")
        pytest.skip(f"no {name} here")
    return name


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(("language", "standard"), [("c", "c99"), ("c", "c11"), ("c++", "c++20")])
def test_each_header_stands_alone(header: str, language: str, standard: str, tmp_path: Path) -> None:
    # Twice, so that a missing include guard shows.
    source = tmp_path / "alone"
    source.write_text(f"#include <{header}>\n#include <{header}>\nint unused;\n")
    run(
        *(compiler(language), "-x", language, f"-std={standard}", *WARNINGS),
        *("-I", INCLUDE, "-fsyntax-only", source),
    )


@pytest.mark.parametrize(
    ("language", "standard", "source"),
    [("c", "c99", "public_c99.c"), ("c++", "c++20", "public_cxx20.cpp")],
)
@pytest.mark.parametrize("linkage", ["shared", "static"])
def test_a_program_reduces_between_two_peers(
    language: str, standard: str, source: str, linkage: str, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    library = (
        [f"-L{LIBRARY_DIR}", "-lpccl", f"-Wl,-rpath,{LIBRARY_DIR}"]
        if linkage == "shared"
        else [str(LIBRARY_DIR / "libpccl.a"), "-lm"]
    )
    run(
        *(compiler(language), f"-std={standard}", *WARNINGS, "-I", INCLUDE, ROOT / "tests" / "c" / source),
        *("-o", program, *library, "-pthread"),
    )
    assert run(program) == "all reduced\n"


def test_the_library_shows_only_public_names() -> None:
    lines = run("nm", "-D", "--defined-only", LIBRARY_DIR / "libpccl.so").splitlines()
    names = {line.split()[-1] for line in lines}
    assert "pcclAllReduce" in names
    assert {name for name in names if not name.startswith("pccl")} == set()


def test_an_installed_library_is_found_by_pkg_config(tmp_path: Path) -> None:
    run("cmake", "--install", LIBRARY_DIR, "--prefix", tmp_path)
    (package,) = tmp_path.rglob("pccl.pc")
    text = package.read_text()
    assert sorted(path.name for path in (tmp_path / "include").iterdir()) == sorted(HEADERS)
    assert "-lpccl" in text
    (config,) = tmp_path.rglob("pcclConfig.cmake")
    assert (config.parent / "pcclTargets.cmake").exists()


def test_pkg_config_finds_it_in_whatever_folder_it_is_installed(tmp_path: Path) -> None:
    for tool in ("cmake", "pkg-config"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    run("cmake", "-S", ROOT, "-B", tmp_path / "build", "-DCMAKE_INSTALL_LIBDIR=lib")
    described = (tmp_path / "build" / "pccl.pc").rename(tmp_path / "pccl.pc")
    folder = tmp_path / "else where" / "lib" / "pkgconfig"
    folder.mkdir(parents=True)
    described.rename(folder / "pccl.pc")
    found = run("env", f"PKG_CONFIG_PATH={folder}", "pkg-config", "--variable=includedir", "pccl").strip()
    assert os.path.normpath(found.replace("\\ ", " ")) == str(tmp_path / "else where" / "include")
