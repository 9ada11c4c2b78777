"""Loss functions for PyTorch with fused forward and backward kernels."""

from . import functional, nn
from ._backends import Explanation, current_backend, explain, use_backend
from ._memory_budget import use_memory_budget
from ._version import __version__
from .patch import patch_torch, unpatch_torch

__all__ = [
    "Explanation", "__version__", "current_backend", "explain", "functional", "nn", "patch_torch", "unpatch_torch", "use_backend",
    "use_memory_budget",
]
