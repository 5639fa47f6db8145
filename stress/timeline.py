"""A run as a picture: peers, steps per second and memory over time, with the faults and recoveries."""

from __future__ import annotations

from pathlib import Path

from .orchestrator import Orchestrator

__all__ = ["draw"]


def draw(run: Orchestrator, path: Path) -> None:
    """Writes a picture; its form follows from the suffix (.png, .svg, .pdf). Wants matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def since(at: float) -> float:
        return (at - run.began) / 60

    figure, (top, faults, middle, low) = pyplot.subplots(
        4, 1, sharex=True, figsize=(12, 11), layout="constrained", height_ratios=(2, 3, 2, 2)
    )
    minutes = [since(at) for at, *_ in run.samples]
    top.step(minutes, [peers for _, peers, *_ in run.samples], where="post", color="black")
    top.set_ylabel("peers")
    top.set_ylim(bottom=0)
    kinds = sorted({text.split()[0] for _, text in run.tally.events}, reverse=True)
    for row, kind in enumerate(kinds):
        times = [since(at) for at, text in run.tally.events if text.split()[0] == kind]
        faults.plot(times, [row] * len(times), "|", color="black", markersize=6)
    faults.set_yticks(range(len(kinds)), kinds)
    middle.plot(minutes, [rate for _, _, rate, _ in run.samples], color="black", label="steps/s")
    middle.set_ylabel("steps per second")
    points = [(since(one.at), one.seconds) for one in run.tally.recoveries]
    if points:
        beside = middle.twinx()
        beside.plot(*zip(*points, strict=True), ".", color="tab:red", markersize=3)
        beside.set_ylabel("recovery (s)", color="tab:red")
    low.plot(minutes, [memory / 2**20 for *_, memory in run.samples], color="black")
    low.set_ylabel("memory of all peers (MiB)")
    low.set_xlabel("minutes")
    for violation in run.checks.violations:
        for axes in (top, faults, middle, low):
            axes.axvline(since(violation.at), color="tab:red", linewidth=0.8)
    setting = run.setting
    top.set_title(f"pccl stress: {setting.profile}, seed {setting.seed}, up to {setting.peers} peers")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
