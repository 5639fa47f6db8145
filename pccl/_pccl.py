"""The name that PCCL 1.0 has for what it exports: `from pccl._pccl import Communicator` works here too."""

import pccl
from pccl import *  # noqa: F403

__all__ = pccl.__all__
