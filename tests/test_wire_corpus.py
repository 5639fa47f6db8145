"""The fuzzer's seeds are messages of this version: a stale seed would start it from noise."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fuzz"))

from make_wire_corpus import CORPUS, seeds


def test_corpus_is_what_the_protocol_says_now() -> None:
    assert {path.name: path.read_bytes() for path in CORPUS.iterdir()} == seeds()
