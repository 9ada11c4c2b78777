"""What the adapters of segmentation libraries share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..overlap import STATISTICS, overlap_statistics


def statistics(
    name: str, functor: str, params: tuple[float, ...], input: Tensor, target: Tensor, ignore_index: int | None = None
) -> tuple[dict[str, Tensor], torch.dtype]:
    """The overlap engine's sums by name, each (N, C) in the accumulation dtype, and the dtype of a loss of this input."""
    sums, dtype = overlap_statistics(name, functor, params, input, target, ignore_index)
    return dict(zip(STATISTICS, sums.unbind(-1))), dtype


def class_labels(labels: Tensor, classes: int, ignore_index: int | None) -> tuple[Tensor, int | None]:
    """Labels from 0 to C - 1, and the one to ignore, for an engine that reads 0 and 1 as "not" and "yes" where there is one class."""
    if classes != 1:
        return labels, ignore_index
    if ignore_index is None:
        return labels + 1, None
    return torch.where(labels == ignore_index, -1, labels + 1), -1


def one_hot(labels: Tensor, input: Tensor) -> Tensor:
    """Labels (N, d1, ...) as numbers of the shape and dtype of `input`, for losses that are wanted element by element."""
    return torch.zeros_like(input, requires_grad=False).scatter_(1, labels.unsqueeze(1), 1)


def volume(tensor: Tensor) -> int:
    """Number of pixels of a sample: the product of all but the first two sizes."""
    return torch.Size(tensor.shape[2:]).numel()
