"""csrc/base: addresses as text, results, the last error, the log."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from native import PUBLIC_HEADERS, load

ffi, lib = load(*PUBLIC_HEADERS, "base/address.h", "base/last_error.h", "base/result.h")


@pytest.mark.parametrize(
    ("family", "raw", "port", "expected"),
    [
        (4, bytes([127, 0, 0, 1]), 48148, "127.0.0.1:48148"),
        (4, bytes([255, 255, 255, 255]), 65535, "255.255.255.255:65535"),
        (6, bytes(15) + b"\x01", 1, "[::1]:1"),
        (
            6,
            bytes([0x20, 1, 0xD, 0xB8] + [0xFF] * 12),
            65535,
            "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
        ),
        (0, b"", 7, "?:7"),
    ],
)
def test_address_text(family: int, raw: bytes, port: int, expected: str) -> None:
    address = ffi.new("struct address *", {"family": family, "port": port})
    ffi.memmove(address.bytes, raw, len(raw))
    text = ffi.new("char[]", lib.ADDRESS_TEXT_BYTES)
    assert lib.address_text(address, text) == text
    assert ffi.string(text).decode() == expected


def test_every_result_has_its_name_and_a_text_of_its_own() -> None:
    enum = ffi.typeof("enum pcclResult_t").elements
    assert sorted(enum) == list(range(lib.RESULT_COUNT))
    for value, name in enum.items():
        assert ffi.string(lib.result_name(value)).decode() == name
    texts = {ffi.string(lib.pcclResultString(value)) for value in enum}
    assert len(texts) == lib.RESULT_COUNT
    assert all(texts)


@pytest.mark.parametrize("value", [2**32 - 1, 19, 2**31 - 1])
def test_results_that_do_not_exist_have_a_text_too(value: int) -> None:
    result = ffi.cast("pcclResult_t", value)
    assert ffi.string(lib.result_name(result)) == b"?"
    assert ffi.string(lib.pcclResultString(result)) == b"an unknown result"


def last_error() -> str:
    return ffi.string(lib.last_error_get()).decode()


def test_last_error_belongs_to_its_thread() -> None:
    lib.last_error_set(b"%s is gone after %d s", ffi.new("char[]", b"peer 3"), ffi.cast("int", 10))
    others = []

    def other() -> None:
        others.append(last_error())
        lib.last_error_set(b"mine")
        others.append(last_error())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert others == ["", "mine"]
    assert last_error() == "peer 3 is gone after 10 s"
    lib.last_error_clear()
    assert last_error() == ""


def test_last_error_may_quote_itself_and_is_cut_when_too_long() -> None:
    lib.last_error_set(b"inner")
    lib.last_error_set(b"outer: %s", lib.last_error_get())
    assert last_error() == "outer: inner"
    lib.last_error_set(b"%s", ffi.new("char[]", b"x" * 3000))
    assert last_error() == "x" * (lib.LAST_ERROR_BYTES - 1)


LOG_LINES = """
from native import load
ffi, lib = load("base/log.h")
for level in (lib.LOG_DEBUG, lib.LOG_INFO, lib.LOG_WARN, lib.LOG_ERROR):
    lib.log_line(level, b"ada", b"%s", ffi.new("char[]", b"line" + b"!" * 5000))
    print(level, lib.log_enabled(level))
"""


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ["WARN", "ERROR"]),
        ("nonsense", ["WARN", "ERROR"]),
        ("debug", ["DEBUG", "INFO", "WARN", "ERROR"]),
        ("INFO", ["INFO", "WARN", "ERROR"]),
        ("ERROR", ["ERROR"]),
    ],
)
def test_log_lines_at_or_above_the_level_go_to_stderr(setting: str | None, expected: list[str]) -> None:
    env = {key: value for key, value in os.environ.items() if key != "PCCL_LOG_LEVEL"}
    if setting is not None:
        env["PCCL_LOG_LEVEL"] = setting
    done = subprocess.run(
        [sys.executable, "-c", LOG_LINES],
        env=env,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    assert [line.split()[1] for line in lines] == expected
    assert all(line.split(maxsplit=2)[2].startswith("ada: line!!!") for line in lines)
    assert all(len(line) < 2000 for line in lines)
    assert done.stdout.count("True") == len(expected)
