"""What the adapters of other libraries' cross-entropies share."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from .. import functional as F


def float32_losses(input: Tensor) -> contextlib.AbstractContextManager:
    """A block in which losses of half-precision tensors like `input` are float32, never rounded to their dtype.

    That is what autocast does; to the dtype that the tensors have, it casts none of them.
    """
    device, half = input.device.type, input.dtype in (torch.bfloat16, torch.float16)
    if not half or device == "meta" or torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, input.dtype)


def linear_cross_entropy(input: Tensor, linear_weight: Tensor, target: Tensor, **options) -> Tensor | tuple[Tensor, ...]:
    """:func:`fastloss.functional.linear_cross_entropy`, with losses in float32 also of half-precision inputs."""
    with float32_losses(input) if linear_weight.dtype == input.dtype else contextlib.nullcontext():
        return F.linear_cross_entropy(input, linear_weight, target, **options)


def z_losses(lse: Tensor, target: Tensor, ignore_index: int, scale: float) -> Tensor:
    """What the squared log-partition adds to each row: 0 of ignored rows."""
    return torch.where(target != ignore_index, scale * lse.square(), 0.0)


def reduced(rows: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Losses of rows, their sum, or their mean over the rows that count."""
    if reduction == "none":
        return rows
    return rows.sum() / (target != ignore_index).sum() if reduction == "mean" else rows.sum()
