"""What the adapters of other libraries' cross-entropies share."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from .. import functional as F


def linear_cross_entropy(input: Tensor, linear_weight: Tensor, target: Tensor, **options) -> Tensor | tuple[Tensor, ...]:
    """:func:`fastloss.functional.linear_cross_entropy`, with losses in float32 for half-precision inputs, never rounded to their dtype."""
    device, half = input.device.type, input.dtype in (torch.bfloat16, torch.float16)
    # Autocast to the dtype that the operands have casts none of them, and makes losses float32.
    wide = half and linear_weight.dtype == input.dtype and device != "meta" and not torch.is_autocast_enabled(device)
    with torch.autocast(device, input.dtype) if wide else contextlib.nullcontext():
        return F.linear_cross_entropy(input, linear_weight, target, **options)


def z_losses(lse: Tensor, target: Tensor, ignore_index: int, scale: float) -> Tensor:
    """What the squared log-partition adds to each row: 0 of ignored rows."""
    return torch.where(target != ignore_index, scale * lse.square(), 0.0)


def reduced(rows: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Losses of rows, their sum, or their mean over the rows that count."""
    if reduction == "none":
        return rows
    return rows.sum() / (target != ignore_index).sum() if reduction == "mean" else rows.sum()
