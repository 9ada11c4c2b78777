"""Loss functions for PyTorch with fused forward and backward kernels."""

from . import functional
from ._backends import current_backend, use_backend
from ._version import __version__

__all__ = ["__version__", "current_backend", "functional", "use_backend"]
