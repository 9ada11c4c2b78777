"""Euclidean distances from the elements of a mask, which losses multiply errors by. Not differentiated: a mask has no gradient.

:func:`formula` says it in plain torch; the `cpu` backend takes time proportional to the elements (Felzenszwalb and Huttenlocher 2012).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .engine import library


def formula(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of each element of (N, d1, ...) to the nearest of the other value in its sample; 0 where there is none."""
    total = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    for sources in (mask, ~mask):
        squared = torch.where(sources, 0.0, math.inf).to(dtype)
        for dim in range(1, mask.dim()):
            place = torch.arange(mask.shape[dim], device=mask.device, dtype=dtype)
            line = squared.movedim(dim, -1).unsqueeze(-2) + (place.unsqueeze(1) - place) ** 2
            squared = line.amin(-1).movedim(-1, dim) if mask.numel() else squared
        total = total + squared
    return torch.where(total.isfinite(), total, 0.0).sqrt()


library.define("distance_transform.cpu(Tensor mask, ScalarType dtype) -> Tensor")
torch.library.register_fake("fastloss::distance_transform.cpu", lambda mask, dtype: mask.new_empty(mask.shape, dtype=dtype), lib=library)


def distance_transform(mask: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    """:func:`formula` on a backend: a contiguous tensor like `mask` of `dtype`, float32 or float64."""
    return torch.ops.fastloss.distance_transform.cpu(mask, dtype) if backend == "cpu" else formula(mask, dtype)
