"""The losses of fvcore.nn (0.1.5), and detectron2's of the same kind (detectron2.layers.losses): names, arguments and defaults.

Differences: an unknown reduction raises ValueError (fvcore takes it for "none"); the corners of `boxes1` are asserted to be in order for
CPU tensors only, since to look at a GPU's would wait for it; boxes without size give finite values and gradients. `backend=` is an
addition, as for :func:`fastloss.functional.cross_entropy`.
"""

from __future__ import annotations

from torch import Tensor

from .. import _checks
from .. import functional as F

__all__ = ["ciou_loss", "diou_loss", "giou_loss", "sigmoid_focal_loss", "sigmoid_focal_loss_star"]


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 2, reduction: str = "none", *, backend: str | None = None
) -> Tensor:
    """fvcore.nn.sigmoid_focal_loss; see :func:`fastloss.functional.sigmoid_focal_loss`. A negative alpha weights nothing."""
    return F.sigmoid_focal_loss(inputs, targets, alpha if alpha >= 0 else -1, gamma, reduction, backend=backend)


def sigmoid_focal_loss_star(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 1, reduction: str = "none", *, backend: str | None = None
) -> Tensor:
    """fvcore.nn.sigmoid_focal_loss_star, the FL* of Lin et al. 2017, appendix A: -alpha_t log sigmoid(gamma (2 t - 1) x) / gamma."""
    code = _checks.reduction_code("sigmoid_focal_loss_star", reduction)
    loss = F.soft_margin_loss(gamma * inputs, 2 * targets - 1, reduction="none", backend=backend) / gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss if code == 0 else loss.mean() if reduction == "mean" else loss.sum()


def giou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None) -> Tensor:
    """fvcore.nn.giou_loss; see :func:`fastloss.functional.generalized_box_iou_loss`."""
    _checks.corners_in_order("giou_loss", boxes1)
    return F.generalized_box_iou_loss(boxes1, boxes2, reduction, eps, backend=backend)


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None) -> Tensor:
    """detectron2.layers.losses.diou_loss; see :func:`fastloss.functional.distance_box_iou_loss`."""
    _checks.corners_in_order("diou_loss", boxes1)
    return F.distance_box_iou_loss(boxes1, boxes2, reduction, eps, backend=backend)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None) -> Tensor:
    """detectron2.layers.losses.ciou_loss; see :func:`fastloss.functional.complete_box_iou_loss`."""
    _checks.corners_in_order("ciou_loss", boxes1)
    return F.complete_box_iou_loss(boxes1, boxes2, reduction, eps, backend=backend)
