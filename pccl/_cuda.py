"""The name that PCCL 1.0 has for pccl.cuda."""

from .cuda import is_available, is_cuda_available

__all__ = ["is_available", "is_cuda_available"]
