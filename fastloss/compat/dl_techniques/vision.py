"""Clusters and boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import functional as F
from ...functional.structure import ClusteringMetrics
from ._loss import Loss, numbers

__all__ = ["ClusteringLoss", "ClusteringMetrics", "bbox_iou", "compute_clustering_metrics"]


class ClusteringLoss(Loss):
    """:func:`fastloss.functional.clustering_loss`, the mean over samples and clusters.

    Args:
        distance_weight: weight of the squared distance from the wanted assignments, positive and finite. Default: 1.
        distribution_weight: weight of the squared distance of the clusters' shares from equal ones, positive and finite. Default: 0.5.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: a weight is not positive and finite.
    """

    def __init__(
        self, distance_weight: float = 1.0, distribution_weight: float = 0.5, name: str | None = "clustering_loss",
        reduction: str | None = "sum_over_batch_size", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        for argument, value in (("distance_weight", distance_weight), ("distribution_weight", distribution_weight)):
            if not 0 < value < float("inf"):
                raise ValueError(f"ClusteringLoss: {argument} must be positive and finite, got {value}")
        self.distance_weight, self.distribution_weight = distance_weight, distribution_weight

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of assignments (N, K)."""
        return F.clustering_loss(
            y_pred, numbers(y_true, y_pred), self.distance_weight, self.distribution_weight, backend=self.backend
        )


def compute_clustering_metrics(data: Tensor, assignments: Tensor) -> ClusteringMetrics:
    """:func:`fastloss.functional.clustering_metrics`, with Python numbers for ``silhouette``, ``inertia`` and ``mean_distance``.

    Args:
        data: samples (N, D).
        assignments: to clusters (N, K), soft or one-hot.
    """
    data, assignments = torch.as_tensor(data), torch.as_tensor(assignments)
    found = F.clustering_metrics(data, numbers(assignments, data))
    return found._replace(silhouette=float(found.silhouette), inertia=float(found.inertia), mean_distance=float(found.mean_distance))


_KINDS = {"IoU": F.box_iou_loss, "GIoU": F.generalized_box_iou_loss, "DIoU": F.distance_box_iou_loss, "CIoU": F.complete_box_iou_loss}


def _corners(boxes: Tensor) -> Tensor:
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def bbox_iou(
    box1: Tensor, box2: Tensor, xywh: bool = False, GIoU: bool = False, DIoU: bool = False, CIoU: bool = False, eps: float = 1e-7, *,
    backend: str | None = None,
) -> Tensor:
    """The IoU of boxes, or its generalised, distance or complete form: one minus the loss of that name, which is differentiable.

    Args:
        box1, box2: (..., 4) that broadcast.
        xywh: boxes are (centre x, centre y, width, height), else (x1, y1, x2, y2). Default: False.
        GIoU, DIoU, CIoU: at most one of them. Default: False.
        eps: added to denominators. Default: 1e-7. The angle of the complete form has none: it is exact, and finite without it.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Returns:
        Scores of the broadcast shape without the coordinates.

    Raises:
        ValueError: two forms are asked for.
    """
    chosen = [name for name, wanted in (("GIoU", GIoU), ("DIoU", DIoU), ("CIoU", CIoU)) if wanted]
    if len(chosen) > 1:
        raise ValueError(f"Only one of GIoU, DIoU and CIoU can be True at a time, got {' and '.join(chosen)}")
    if xywh:
        box1, box2 = _corners(box1), _corners(box2)
    return 1 - _KINDS[chosen[0] if chosen else "IoU"](box1, box2, "none", eps, backend=backend)
