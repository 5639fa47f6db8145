"""What keeps the bytes of an array where they are while C works on them.

An array object may let go of its bytes while it lives on: `tensor.data = ...`, `storage.resize_(0)`,
`array.resize(n, refcheck=False)`, `mmap.close()`. So besides the object something
is held that makes its library refuse to move or free them; each function returns that.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

__all__ = ["hold_numpy", "hold_torch"]


def hold_torch(tensor: Any) -> object:
    """The storage, which lives on when the tensor gets another one. From now on torch refuses to resize it,
    as it does after tensor.numpy(); there is no way back."""
    storage = tensor.untyped_storage()
    if storage.resizable():
        torch = sys.modules["torch"]
        torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()
    return storage


def hold_numpy(array: Any) -> object:
    """NumPy resizes no array that has a weak reference, whatever `refcheck` says. A view's bytes are those
    of the array that it was made of, and that one's may be another library's."""
    numpy = sys.modules["numpy"]
    base = array
    while (below := base.base) is not None:
        if not isinstance(below, numpy.ndarray):
            return _hold_foreign(below)
        base = below
    return weakref.ref(base)


def _hold_foreign(base: Any) -> object:
    """Of what NumPy was given as memory: it holds the object alone."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(base, getattr(torch, "Tensor", ())):
        return hold_torch(base)
    try:
        return memoryview(base)  # an mmap or a bytearray refuses to move as long as there is one
    except (TypeError, BufferError, ValueError):
        return base
