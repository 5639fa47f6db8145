"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["congestion_control", "cpu_model", "machine"]


def cpu_model() -> str:
    """As the system names the processor; the architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def congestion_control() -> str:
    """What TCP connections get that do not choose: those of Gloo and Open MPI."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "unknown"


def machine() -> dict[str, Any]:
    """For JSON."""
    return {
        "processor": platform.machine(),
        "model": cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "congestion_control": congestion_control(),
        "python": platform.python_version(),
    }
