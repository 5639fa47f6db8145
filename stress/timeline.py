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

    figure, (top, middle, low) = pyplot.subplots(3, 1, sharex=True, figsize=(12, 8), layout="constrained")
    minutes = [since(at) for at, *_ in run.samples]
    top.step(minutes, [peers for _, peers, *_ in run.samples], where="post", color="black")
    top.set_ylabel("peers")
    for index, kind in enumerate(sorted(run.tally.faults)):
        times = [since(at) for at, text in run.tally.events if text.split()[0] == kind]
        top.plot(times, [-0.4 * (index + 1)] * len(times), "|", markersize=5, label=kind)
    if run.tally.faults:
        top.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
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
        for axes in (top, middle, low):
            axes.axvline(since(violation.at), color="tab:red", linewidth=0.8)
    setting = run.setting
    top.set_title(f"pccl stress: {setting.profile}, seed {setting.seed}, up to {setting.peers} peers")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
