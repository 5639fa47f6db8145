"""Where results go besides the tables: progress, pictures, the README."""

import contextlib
import io
import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benching import has_no, plan, rows_of
from pccl.benchmarks import allreduce, contest, plot, record
from pccl.benchmarks.progress import Progress

# --- progress ----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal_that_goes_away(monkeypatch) -> None:
    now = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    terminal = Terminal()
    progress = Progress(terminal)
    progress("one")
    progress("two " + "x" * 200)
    progress.clear()
    shown = terminal.getvalue().split("\r")
    assert [text.strip()[:3] for text in shown] == ["", "one", "two", "", ""]
    assert "\n" not in terminal.getvalue()
    assert max(map(len, shown)) < 80


def test_short_runs_and_files_show_no_progress(monkeypatch) -> None:
    now = itertools.count()
    terminal, file = Terminal(), io.StringIO()
    short = Progress(terminal)
    short("one")
    short.clear()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    long = Progress(file)
    long("one")
    long.clear()
    assert (terminal.getvalue(), file.getvalue()) == ("", "")


def test_an_error_stands_on_a_line_of_its_own(monkeypatch) -> None:
    now = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    terminal = Terminal()
    with contextlib.suppress(ZeroDivisionError), Progress(terminal) as progress:
        progress("one")
        raise ZeroDivisionError
    assert terminal.getvalue().endswith(f"\r{' ' * 78}\r")


# --- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["picture.png", "picture.svg"])
def test_a_picture_is_drawn(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(contest, "run_contest", lambda *_: iter(rows_of(4096, 1 << 20)))
    assert allreduce.main(["--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).stat().st_size > 10_000


def test_a_picture_has_a_line_for_each_system(tmp_path) -> None:
    lines = plot._lines(plan(), rows_of(4096, 1 << 20), in_place=True)
    assert {name: [size for size, _ in points] for name, points in lines.items()} == {
        "pccl": [4096, 1 << 20],
        "gloo": [4096, 1 << 20],
    }
    assert set(plot._lines(plan(datatypes=["float", "int8"]), rows_of(4096), in_place=False)) == {
        "pccl float",
        "gloo float",
    }


@pytest.mark.parametrize(("path", "says"), [("x.nothing", "must end in one of"), ("no/where.png", "folder")])
def test_where_no_picture_can_be_is_told_at_once(path, says, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contest, "run_contest", lambda *_: pytest.fail("it has begun"))
    assert allreduce.main(["--plot", path]) == 1
    assert says in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_an_error_that_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(contest, "run_contest", lambda *_: pytest.fail("it has begun"))
    assert allreduce.main(["--plot", "picture.png"]) == 1
    assert "pip install 'pccl[plot]'" in capsys.readouterr().err


# --- the table of the README -------------------------------------------------------------------------------


def test_the_table_comes_between_the_markers() -> None:
    text = f"above\n{record.BEGIN}\nold\n{record.END}\nbelow\n"
    replaced = record.replace(text, ["new", "lines"])
    assert replaced == f"above\n{record.BEGIN}\nnew\nlines\n{record.END}\nbelow\n"
    assert record.replace(replaced, ["old"]) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{record.BEGIN}\n",
        f"{record.END}\n{record.BEGIN}\n",
        f"{record.BEGIN}\n{record.END}\n{record.BEGIN}\n{record.END}\n",
    ],
)
def test_a_text_without_its_markers_is_left_alone(text, tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "text.md"
    path.write_text(text)
    monkeypatch.setattr(record, "run_contest", lambda *_: pytest.fail("it has begun"))
    assert record.main([str(path)]) == 1
    assert record.BEGIN in capsys.readouterr().err
    assert path.read_text() == text


def test_the_readme_has_the_markers() -> None:
    record.replace((Path(__file__).resolve().parent.parent / "README.md").read_text(), [])


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_table_has_a_line_for_each_size(tmp_path) -> None:
    two = (plan(rivals=["gloo", "raw"]), rows_of(4096, 16 << 20, rivals=("gloo", "raw")))
    four = (plan(world_size=4, rivals=["gloo"]), rows_of(4096))
    head, rule, *lines = record.table([two, four])
    cells = [cells_of(line) for line in lines]
    assert head.count("|") == rule.count("|") == lines[0].count("|")
    assert "Gloo" in head
    assert "raw TCP" in head
    assert "MPI" not in head
    assert [row[:3] for row in cells] == [["2", "4 KiB", ""], ["2", "16 MiB", ""], ["4", "4 KiB", ""]]
    assert cells[0][3:] == ["8 / 8 µs", *["2.00 (2.00-2.00) / 2.00 (2.00-2.00)"] * 2]
    assert cells[-1][-1] == ""  # raw is for two


@pytest.mark.parametrize(
    ("options", "says"),
    [({}, ""), ({"early_return": True}, "early return"), ({"tcp_only": True}, "TCP only")],
)
def test_the_table_says_how_a_line_was_measured(options, says) -> None:
    assert cells_of(record.table([(plan(**options), rows_of(4096))])[-1])[2] == says


def test_the_table_is_measured_and_written(tmp_path) -> None:
    if has_no("gloo"):
        pytest.skip("gloo is not installed")
    path = tmp_path / "text.md"
    path.write_text(f"above\n{record.BEGIN}\n{record.END}\nbelow\n")
    done = subprocess.run(
        [sys.executable, "-m", "pccl.benchmarks.record", "--tiny", path],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = path.read_text()
    assert text.startswith(f"above\n{record.BEGIN}\n| peers |")
    assert text.endswith(f"{record.END}\nbelow\n")
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + 2 * 3
    for word in (record.COMMAND, "load average", "cores", "Linux", "congestion control"):
        assert word in text, word
