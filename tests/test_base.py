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


def run_with_level(program: str, setting: str | None, **options: object) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PCCL_LOG_LEVEL"}
    if setting is not None:
        env["PCCL_LOG_LEVEL"] = setting
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", program],
        env=env,
        cwd=Path(__file__).parent,
        text=True,
        check=True,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, ["WARN", "ERROR"]),
        ("", ["WARN", "ERROR"]),
        ("trace", ["DEBUG", "INFO", "WARN", "ERROR"]),
        ("Warn", ["WARN", "ERROR"]),
        ("ERR", ["ERROR"]),
        ("FATAL", ["ERROR"]),
        ("debug", ["DEBUG", "INFO", "WARN", "ERROR"]),
        ("INFO", ["INFO", "WARN", "ERROR"]),
        ("ERROR", ["ERROR"]),
    ],
)
def test_log_lines_at_or_above_the_level_go_to_stderr(setting: str | None, expected: list[str]) -> None:
    done = run_with_level(LOG_LINES, setting)
    lines = done.stderr.splitlines()
    assert [line.split()[1] for line in lines] == expected
    assert all(line.split(maxsplit=2)[2].startswith("ada: line!!!") for line in lines)
    assert all(len(line) < 2000 for line in lines)
    assert done.stdout.count("True") == len(expected)


def test_a_level_that_is_none_is_told_once() -> None:
    done = run_with_level(LOG_LINES, "bogus")
    lines = done.stderr.splitlines()
    assert [line.split()[1] for line in lines] == ["WARN", "WARN", "ERROR"]
    assert 'PCCL_LOG_LEVEL is "bogus", which is none of TRACE, DEBUG, INFO' in lines[0]


LOG_INTO_A_FULL_PIPE = """
import fcntl, os
reading, writing = os.pipe()
fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
os.dup2(writing, 2)
from native import load
ffi, lib = load("base/log.h")
for i in range(1000):
    lib.log_line(lib.LOG_WARN, b"ada", b"%s", ffi.new("char[]", f"line {i}".encode()))
assert os.get_blocking(2), "others share it"
read = os.read(reading, 1 << 20).splitlines()
lib.log_line(lib.LOG_WARN, b"ada", b"%s", ffi.new("char[]", b"again"))
after = os.read(reading, 1 << 20).decode().splitlines()
print(len(read), *(line.split(": ", 1)[1] for line in after), sep="|")
"""


def test_a_line_that_nobody_reads_is_dropped_and_counted() -> None:
    written, confession, last = run_with_level(LOG_INTO_A_FULL_PIPE, None).stdout.strip().split("|")
    assert 10 < int(written) < 1000
    assert confession.startswith(f"{1000 - int(written)} lines dropped")
    assert last == "again"


LOG_WHERE_IT_ENDS = """
import os, signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as a program in C has it
reading, writing = os.pipe()
os.dup2(writing, 2)
from native import load
ffi, lib = load("base/log.h")
os.close(reading)
lib.log_line(lib.LOG_WARN, b"ada", b"nobody is there any more")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
lib.log_line(lib.LOG_WARN, b"ada", b"and this is elsewhere")
print("lives on")
"""


def test_a_reader_that_is_gone_ends_nobody() -> None:
    assert run_with_level(LOG_WHERE_IT_ENDS, None).stdout == "lives on\n"


LOG_BESIDE_A_FILE = """
import os, sys
from native import load
ffi, lib = load("base/log.h")
os.close(2)
file = open(sys.argv[1], "wb", buffering=0)
assert file.fileno() == 2
lib.log_line(lib.LOG_WARN, b"ada", b"for the log")
file.write(b"weights")
"""


def test_a_file_that_has_got_descriptor_2_gets_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    program = f"import sys; sys.argv = ['', {str(path)!r}]\n{LOG_BESIDE_A_FILE}"
    done = run_with_level(program, None)
    assert path.read_bytes() == b"weights"
    assert "for the log" in done.stderr


LOG_THAT_FOLLOWS = """
import os
from native import load
ffi, lib = load("base/log.h")
reading, writing = os.pipe()
os.dup2(writing, 2)
lib.log_line(lib.LOG_WARN, b"ada", b"after the redirection")
assert b"after the redirection" in os.read(reading, 1000)
for fd in range(3, 100):  # as programs do that go into the background
    try:
        if fd not in (reading, writing):
            os.close(fd)
    except OSError:
        pass
other, others_end = os.pipe()
copies = [os.dup(others_end) for _ in range(100)]
lib.log_line(lib.LOG_WARN, b"ada", b"there is no log any more")
os.set_blocking(other, False)
try:
    print(os.read(other, 1000))
except BlockingIOError:
    print("fine")
"""


def test_lines_follow_a_redirection_but_never_a_number() -> None:
    assert run_with_level(LOG_THAT_FOLLOWS, None).stdout == "fine\n"
