"""Losses in plain torch: a few lines over statistics, or over losses that engines run. What they share before and after those lines."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import _checks
from ._backends import choose
from .engine import accumulate_dtype


def checked(name: str, tensors: Mapping[str, Tensor | None], backend: str | None, reduction: str = "mean") -> tuple[torch.dtype, str]:
    """Check the arguments of a loss; gives the dtype of the result and the backend."""
    for argument, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
    given = {argument: tensor for argument, tensor in tensors.items() if tensor is not None}
    (first, input), *others = given.items()
    _checks.reduction_code(name, reduction)
    if input.dtype not in _checks.FLOATING:
        raise NotImplementedError(f"{name}: {first} must be float32, float64, bfloat16 or float16, got {input.dtype}")
    dtype = input.dtype
    for argument, tensor in others:
        if tensor.device != input.device:
            raise RuntimeError(
                f"{name}: expected all tensors on one device, but {first} is on {input.device} and {argument} on {tensor.device}"
            )
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    backend, _ = choose(name, backend, *given.values())
    device = input.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.float32  # autocast's rule for losses
    return dtype, backend


def widened(
    name: str, tensors: Mapping[str, Tensor | None], backend: str | None, reduction: str = "mean"
) -> tuple[torch.dtype, list[Tensor | None]]:
    """Check the arguments of a loss; gives the dtype of the result, and the floating tensors in the dtype that sums are kept in.

    The lines of the loss compute in that dtype, and :func:`reduced` rounds once.
    """
    dtype, _ = checked(name, tensors, backend, reduction)
    wide = accumulate_dtype(dtype)
    return dtype, [t.to(wide) if t is not None and t.is_floating_point() else t for t in tensors.values()]


def reduced(values: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
    """A loss for each row, or their mean or sum, in the dtype of the result."""
    if reduction == "mean":
        values = values.mean()
    elif reduction == "sum":
        values = values.sum()
    return values.to(dtype)


def same_shape(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless all have the first one's shape."""
    (first, input), *others = tensors.items()
    for argument, tensor in others:
        if isinstance(tensor, Tensor) and isinstance(input, Tensor) and tensor.shape != input.shape:
            raise ValueError(f"{name}: {argument} must have {first}'s shape {tuple(input.shape)}, got {tuple(tensor.shape)}")
