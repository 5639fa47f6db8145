"""What the peers of a run train: a little state that tells every result that ever went into it.

All peers synchronise it before each step, so that parity is checked at each step twice over: by the library,
which must find nothing to copy but to newcomers, and by the digests that the peers report (expect_parity).
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

import pccl

from .data import digest

COUNT = 3000


class Model:
    """Begins at random; the first sync makes it one for all who begin together."""

    def __init__(self, communicator: pccl.Communicator) -> None:
        self._communicator = communicator
        self._weights = np.zeros(COUNT, np.int64)
        self._line = np.zeros(1, np.int64)  # from one beginning: whoever begins anew is no longer compared
        self._state = pccl.SharedState({"weights": self._weights, "line": self._line})
        self.begin()

    def begin(self) -> None:
        self._weights[:] = self._line[:] = secrets.randbits(62)
        self._state.revision = 0
        self._is_new = True

    @property
    def place(self) -> str:
        """Two models at one place must be equal."""
        return f"{self._line[0]}@{self._state.revision}"

    def digest(self) -> str:
        return digest(self._weights)

    def synchronise(self) -> None:
        """Until it has succeeded. TooFewPeersError: alone, with a model that is whole."""
        while True:
            before = self.place
            may_differ = self._is_new or self._state.revision == 0
            try:
                info = self._communicator.sync_shared_state(self._state)
            except pccl.PeerLostError:
                continue
            except pccl.TooFewPeersError:
                if may_differ:
                    self.begin()  # a transfer may have ended in the middle
                raise
            except pccl.PCCLError as error:
                if error.result is not pccl.Result.NO_SHARED_STATE_AVAILABLE:
                    raise
                self.begin()  # as all others do: nobody has it whole
                continue
            assert may_differ or (info.rx_bytes == 0 and self.place == before), (
                f"differed: given {info.rx_bytes} bytes, from {before} to {self.place}"
            )
            self._is_new = False
            return

    def advance(self, result: np.ndarray) -> None:
        """One step, after a result that all peers have alike."""
        self._weights *= 6364136223846793005  # wraps
        self._weights += np.resize(result, COUNT).astype(np.int64) + 1
        self._state.push_revision()


def expect_parity(reports: Iterable[tuple[str, str]]) -> int:
    """Whoever reports the same place has the same digest. How many places were compared?"""
    digests, times = defaultdict(set), defaultdict(int)
    for place, text in reports:
        digests[place].add(text)
        times[place] += 1
    differ = {place: sorted(texts) for place, texts in digests.items() if len(texts) > 1}
    assert not differ, (
        f"{len(differ)} of {len(digests)} states differ, the first: {next(iter(differ.items()))}"
    )
    return sum(count > 1 for count in times.values())
