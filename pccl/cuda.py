"""What this build of pccl can do with CUDA memory."""

from ._native import ffi, lib

__all__ = ["is_available", "is_cuda_available"]


def is_available() -> bool:
    """Whether this build takes CUDA tensors. (Whether there is a GPU is another question.)"""
    info = ffi.new("pcclBuildInfo_t *")
    lib.pcclGetBuildInfo(info)
    return bool(info.has_cuda_support)


is_cuda_available = is_available
