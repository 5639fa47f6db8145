"""pccl bench p2p, on one machine and as two peers of a run."""

import json
import sys
from pathlib import Path

import pytest
from benching import SUMMARY_KEYS, bench, printed_by_two
from pccl.benchmarks import p2p
from pccl.benchmarks.peer import join

SHORT = ["-t", "0.05", "-l", "64K,1M", "--rounds", "2"]


def test_two_peers_are_measured_beside_raw_tcp() -> None:
    done = bench("p2p", *SHORT, "-P", "2", "-J")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == p2p.SCHEMA == "pccl.bench.p2p/1"
    assert (document["streams"], document["wrong"]) == (2, 0)
    assert document["round_trip"]["size_bytes"] == 4
    assert [row["size_bytes"] for row in document["rows"]] == [64 << 10, 1 << 20]
    for row in (document["round_trip"], *document["rows"]):
        assert [system["system"] for system in row["systems"]] == ["pccl", "raw"]
        for system in row["systems"]:
            assert set(system) == SUMMARY_KEYS | {"system"}
            # Each way goes what the buffer has.
            assert system["algbw_gb_s"] == system["busbw_gb_s"]
            assert system["algbw_gb_s"] == pytest.approx(row["size_bytes"] / (system["time_us"] * 1e3))
        assert [len(one["rounds"]) for one in row["ratios"]] == [2]


def test_two_peers_are_shown_in_bits_and_bytes() -> None:
    done = bench("p2p", *SHORT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("# round trip")
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert [row[:2] for row in rows] == [
        [size, name] for size in ("65536", "1048576") for name in ("pccl", "raw")
    ]
    for row in rows:
        assert float(row[3]) == pytest.approx(8 * float(row[2]), abs=0.01)


def local_sockets() -> set[str]:
    """Names under which peers can be reached without TCP."""
    words = Path("/proc/net/unix").read_text().split()
    return {word for word in words if word.startswith("@pccl/")}


@pytest.mark.parametrize("tcp_only", [False, True])
def test_links_within_the_machine_are_those_that_were_asked_for(master, tcp_only) -> None:
    before = local_sockets()
    with join(master.address, 1, 0, "bench", tcp_only=tcp_only):
        assert (local_sockets() == before) == tcp_only
    for name in ("p2p", "allreduce"):
        few = SHORT[:4] if name == "p2p" else ["-b", "4K", "-e", "4K", "-n", "2"]
        done = bench(name, *few, "--json", *(["--tcp"] if tcp_only else []))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["tcp_only"] == tcp_only


def test_two_peers_meet_at_a_master(master) -> None:
    command = [sys.executable, "-m", "pccl", "bench", "p2p", *SHORT, "--json"]
    (document,) = printed_by_two([*command, "--master", master.address])
    assert [system["system"] for system in document["rows"][0]["systems"]] == ["pccl"]
    assert document["wrong"] == 0


@pytest.mark.parametrize(
    "arguments", [["-t", "0"], ["-t", "x"], ["-t", "nan"], ["-l", "6"], ["-l", ""], ["-P", "65"]]
)
def test_p2p_wants_what_can_be_measured(arguments) -> None:
    with pytest.raises(SystemExit) as ended:
        p2p.main(arguments)
    assert ended.value.code == 2
