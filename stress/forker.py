"""Imported once by the process from which all others are forked, and nowhere else: what they need, and
their end."""

from __future__ import annotations

from . import peer, proxy
from .lifeline import end_with_parent

__all__ = ["peer", "proxy"]

end_with_parent()
