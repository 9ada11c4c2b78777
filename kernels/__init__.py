"""Triton kernels: importing this package registers the `triton` overloads of the library's operators.

Raises ImportError where Triton is missing.
"""

from __future__ import annotations

import triton

# Triton decides when a kernel is defined, so the answer holds for the life of the process.
INTERPRETED: bool = triton.knobs.runtime.interpret

from . import box, divergence, elementwise, overlap, pair, row, sort  # noqa: E402  the kernels are defined by this import

__all__ = ["INTERPRETED", "box", "divergence", "elementwise", "overlap", "pair", "row", "sort"]
