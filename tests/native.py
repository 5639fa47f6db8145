"""The C core as the tests see it: the library that shows every symbol, declarations cut out of its headers.

    ffi, lib = load("base/limits.h", "base/id.h", "wire/message.h")
    ffi, lib = load(*PUBLIC_HEADERS, "data/reduce.h")

Headers include each other; the list names them in order, each after those that it needs.
"""

import os
import re
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(os.environ.get("PCCL_TESTING_LIBRARY", ROOT / "build" / "testing" / "libpccl_testing.so"))

PUBLIC_HEADERS = ("ccoip.h", "ccoip_inet.h", "pccl.h")
# what streams are declared with
FRAME_HEADERS = (
    *PUBLIC_HEADERS,
    "base/limits.h",
    "base/id.h",
    "base/address.h",
    "wire/message.h",
    "wire/frame.h",
)

_CUT = re.compile(r"/\* <cffi> \*/(.*?)/\* </cffi> \*/", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_INTEGER_MACRO = re.compile(r"#\s*define\s+\w+\s+(0[xX][0-9a-fA-F]+|\d+)\s*$")
_WORDS = re.compile(r"\b(?:PCCL_EXPORT|PCCL_NULLABLE|noreturn|_Noreturn)\b")


def load(*headers: str) -> tuple[cffi.FFI, Any]:
    """The declarations of `headers` (paths below csrc, or those of PUBLIC_HEADERS) and the library."""
    if not LIBRARY.exists():
        raise RuntimeError(f"{LIBRARY} is missing: run `make build`, or set PCCL_TESTING_LIBRARY")
    ffi = cffi.FFI()
    for header in headers:
        ffi.cdef(declarations(header), override=False)
    return ffi, ffi.dlopen(str(LIBRARY))


def declarations(header: str) -> str:
    """What cffi can parse of a header: no directives but integer macros, no comments, no attributes,
    no atomics (those used are laid out like their plain types)."""
    path = ROOT / "csrc" / header
    if not path.exists():
        path = ROOT / "csrc" / "include" / header
    text = path.read_text()
    cuts = _CUT.findall(text)
    text = _COMMENT.sub(" ", "\n".join(cuts) if cuts else text)
    text = _without_directives(text)
    for word in ("__attribute__", "_Static_assert", "static_assert"):
        text = _without_call(text, word)
    text = _without_inline_functions(text)
    return _WORDS.sub(" ", text).replace("atomic_bool", "bool")


def _without_directives(text: str) -> str:
    kept = []
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if not stripped.startswith("#") or _INTEGER_MACRO.match(stripped):
            kept.append(line)
    return "\n".join(kept)


def _without_call(text: str, word: str) -> str:
    """Takes out `word(...)`, and the semicolon where it was a declaration of its own."""
    while match := re.search(rf"\b{word}\s*\(", text):
        end = _closing(text, match.end() - 1)
        if word != "__attribute__" and text[end:].lstrip().startswith(";"):
            end = text.index(";", end) + 1
        text = text[: match.start()] + " " + text[end:]
    return text


def _without_inline_functions(text: str) -> str:
    while match := re.search(r"\bstatic\s+inline\b[^;{]*\{", text):
        text = text[: match.start()] + text[_closing(text, match.end() - 1) :]
    return text


def _closing(text: str, opening: int) -> int:
    """The place behind the bracket that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        if text[place] in "({":
            depth += 1
        elif text[place] in ")}":
            depth -= 1
            if depth == 0:
                return place + 1
    raise ValueError(f"a bracket is never closed: {text[opening : opening + 60]!r}")
