"""What the commands have in common: their options, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import pccl

from .launch import BenchmarkError, end_on_sigterm

__all__ = ["exit_status", "new_parser", "whole_number"]


def new_parser(name: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """For `pccl bench NAME`; the texts are printed as they are."""
    return argparse.ArgumentParser(
        prog=f"pccl bench {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole_number(lowest: int, highest: int = 2**31 - 1) -> Any:
    """For argparse: an int in this range."""

    def parse(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is not from {lowest} to {highest}")
        return value

    parse.__name__ = "whole number"  # argparse puts it into "invalid ... value"
    return parse


def exit_status(work: Callable[[], int]) -> int:
    """What `work` returns, or 1 with a sentence on stderr if it fails. SIGTERM ends it as Ctrl-C does."""
    end_on_sigterm()
    try:
        return work()
    except ImportError as error:
        if error.name is None or error.name.startswith("pccl"):
            raise
        text = f"{error.name} is missing: pip install {error.name}"
    except (BenchmarkError, pccl.PCCLError) as error:
        text = str(error)
    except KeyboardInterrupt:
        text = "interrupted"
    print(f"pccl bench: {text}", file=sys.stderr)
    return 1
