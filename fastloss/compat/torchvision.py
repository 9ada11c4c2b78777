"""The losses and scores of torchvision.ops 0.28: same names, arguments, defaults and types of errors, on fastloss's kernels.

Differences: boxes without size give finite values and gradients (0 / 0 counts 0; torchvision gives NaN); complete_box_iou_loss adds `eps`
to every denominator (torchvision adds 1e-7 to those of the distance IoU whatever `eps`); integer boxes are computed in float32; box_iou
takes the axis-aligned formats only. `backend=` is an addition, as for :func:`fastloss.functional.cross_entropy`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional as F

__all__ = [
    "box_iou", "complete_box_iou", "complete_box_iou_loss", "distance_box_iou", "distance_box_iou_loss", "generalized_box_iou",
    "generalized_box_iou_loss", "sigmoid_focal_loss",
]


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"Invalid Value for arg 'reduction': {reduction!r}, wanted 'none', 'mean' or 'sum'")


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none", *, backend: str | None = None
) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss; see :func:`fastloss.functional.sigmoid_focal_loss`."""
    _check_reduction(reduction)
    if targets.shape != inputs.shape:
        raise ValueError(f"Target size ({targets.size()}) must be the same as input size ({inputs.size()})")
    return F.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction, backend=backend)


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    """torchvision.ops.generalized_box_iou_loss; see :func:`fastloss.functional.generalized_box_iou_loss`."""
    _check_reduction(reduction)
    return F.generalized_box_iou_loss(boxes1, boxes2, reduction, eps, backend=backend)


def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    """torchvision.ops.distance_box_iou_loss; see :func:`fastloss.functional.distance_box_iou_loss`."""
    _check_reduction(reduction)
    return F.distance_box_iou_loss(boxes1, boxes2, reduction, eps, backend=backend)


def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    """torchvision.ops.complete_box_iou_loss; see :func:`fastloss.functional.complete_box_iou_loss`."""
    _check_reduction(reduction)
    return F.complete_box_iou_loss(boxes1, boxes2, reduction, eps, backend=backend)


def _all_pairs(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float, backend: str | None) -> Tensor:
    """Scores of (..., N, 4) with (..., M, 4): one matrix after the other."""
    if boxes1.dim() == 2 and boxes2.dim() == 2:
        return F.pairwise_box_iou(boxes1, boxes2, kind, eps, backend=backend)
    batch = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    first, second = (boxes.expand(*batch, *boxes.shape[-2:]) for boxes in (boxes1, boxes2))
    if batch.numel() == 0:
        return (first[..., :, None, :] + second[..., None, :, :]).sum(-1)
    pairs = zip(first.reshape(-1, *first.shape[-2:]), second.reshape(-1, *second.shape[-2:]))
    scores = torch.stack([F.pairwise_box_iou(a, b, kind, eps, backend=backend) for a, b in pairs])
    return scores.reshape(*batch, *scores.shape[-2:])


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy", *, backend: str | None = None) -> Tensor:
    """torchvision.ops.box_iou of (..., N, 4) and (..., M, 4); see :func:`fastloss.functional.pairwise_box_iou`.

    Raises:
        NotImplementedError: a rotated format.
        ValueError: an unknown one.
    """
    if fmt in ("cxcywhr", "xywhr", "xyxyxyxy"):
        raise NotImplementedError(f"box_iou: rotated boxes ({fmt!r}) are not supported; wanted 'xyxy', 'xywh' or 'cxcywh'")
    if fmt not in ("xyxy", "xywh", "cxcywh"):
        raise ValueError(f"Unsupported box format {fmt!r}; wanted 'xyxy', 'xywh' or 'cxcywh'")
    boxes1, boxes2 = (_corners(boxes, fmt) for boxes in (boxes1, boxes2))
    return _all_pairs(boxes1, boxes2, "iou", 0.0, backend)


def _corners(boxes: Tensor, fmt: str) -> Tensor:
    if fmt == "xyxy":
        return boxes
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    place, size = boxes[..., :2], boxes[..., 2:]
    low = place if fmt == "xywh" else place - size / 2
    return torch.cat([low, low + size], -1)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor, *, backend: str | None = None) -> Tensor:
    """torchvision.ops.generalized_box_iou of (..., N, 4) and (..., M, 4); see :func:`fastloss.functional.pairwise_box_iou`."""
    return _all_pairs(boxes1, boxes2, "giou", 0.0, backend)


def distance_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7, *, backend: str | None = None) -> Tensor:
    """torchvision.ops.distance_box_iou of (..., N, 4) and (..., M, 4); see :func:`fastloss.functional.pairwise_box_iou`."""
    return _all_pairs(boxes1, boxes2, "diou", eps, backend)


def complete_box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7, *, backend: str | None = None) -> Tensor:
    """torchvision.ops.complete_box_iou of (..., N, 4) and (..., M, 4); see :func:`fastloss.functional.pairwise_box_iou`."""
    return _all_pairs(boxes1, boxes2, "ciou", eps, backend)
