"""Writes tests/fuzz/corpus/wire: one small input per message type, frame and greeting.

python tests/fuzz/make_wire_corpus.py, after a change of the protocol; tests/test_wire_corpus.py tells when.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_wire_frame import DATA, HELLO, encode, greeting_encode, trailer_encode
from wire_messages import EXAMPLES, pack

CORPUS = Path(__file__).resolve().parent / "corpus" / "wire"


def seeds() -> dict[str, bytes]:
    inputs = {name.lower(): pack(message) for name, message in EXAMPLES.items()}
    inputs |= {"frame_data": encode(DATA), "frame_trailer": trailer_encode(1, cancelled=True)}
    return inputs | {"link_greeting": greeting_encode(HELLO)}


def main() -> None:
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (CORPUS / name).write_bytes(data)


if __name__ == "__main__":
    main()
