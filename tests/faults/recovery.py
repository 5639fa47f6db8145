"""How long a run needs to recover from a SIGKILL: a measurement, not a test.

    cd tests && python -m faults.recovery --peers 8 --kills 20

For each kill in the middle of an all-reduce: until the next epoch is committed (by the master's log, to the
millisecond), until the last survivor has its error, and until all of them have the result of the retry.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from datetime import datetime, timezone

from .cluster import Cluster, expect_error

LINE = re.compile(r"^(\S+)Z INFO master: epoch \d+ of group 0 is committed: (\d+) peers", re.MULTILINE)


def committed_at(cluster: Cluster, size: int) -> float:
    """When the master last committed an epoch of `size` peers."""
    cluster.wait_for_log(cluster.master, rf"is committed: {size} peers")
    found = [one for one in LINE.findall(cluster.master.log.read_text()) if int(one[1]) == size]
    return datetime.fromisoformat(found[-1][0]).replace(tzinfo=timezone.utc).timestamp()


def kill_once(peers: int, count: int, seed: int) -> tuple[float, float, float]:
    with Cluster(seed=seed, timeout=10) as cluster:
        *survivors, victim = cluster.form(peers)
        cluster.reduce([*survivors, victim], count=count)
        ops = [peer.tell("all_reduce", count=count) for peer in survivors]  # the victim keeps them waiting
        time.sleep(0.2)
        killed = time.time()
        victim.kill()
        expect_error(cluster.collect(ops), "PeerLostError")
        failed = time.time()
        cluster.reduce(survivors, count=count)
        return committed_at(cluster, peers - 1) - killed, failed - killed, time.time() - killed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--count", type=int, default=250_000, help="float32 elements (default: %(default)s)")
    options = parser.parse_args()
    results = [kill_once(options.peers, options.count, seed) for seed in range(options.kills)]
    print(f"{options.peers} peers, {options.kills} kills; milliseconds: median, greatest")
    for name, column in zip(("next epoch", "error", "retried"), zip(*results, strict=True), strict=True):
        print(f"{name:12} {1e3 * statistics.median(column):8.1f} {1e3 * max(column):8.1f}")


if __name__ == "__main__":
    main()
