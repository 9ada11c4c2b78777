"""Losses of bounding boxes (x1, y1, x2, y2), and the scores of all pairs of two sets, on the `box` engine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks
from ..box import Overlap, box_loss, box_pairs, ratio
from ..registry import register

__all__ = ["box_iou_loss", "complete_box_iou_loss", "distance_box_iou_loss", "generalized_box_iou_loss", "pairwise_box_iou"]

_BOXES = {"boxes1": "box", "boxes2": "box"}
_EPS = {"eps": (0.0, 1e-3)}


def _box_iou(overlap: Overlap, eps_area: float, eps: float) -> float:
    return 0.0


def _generalized_box_iou(overlap: Overlap, eps_area: float, eps: float) -> Tensor:
    hull = overlap.x.hull * overlap.y.hull
    return ratio(hull - overlap.union, hull + eps_area)


def _distance_box_iou(overlap: Overlap, eps_area: float, eps: float) -> Tensor:
    x, y = overlap.x, overlap.y
    return ratio(x.offset**2 + y.offset**2, x.hull**2 + y.hull**2 + eps)


def _angle(width: Tensor, height: Tensor) -> Tensor:
    """atan(width / height), and 0 (also its gradient) for a box without size."""
    nothing = (width == 0) & (height == 0)
    side = torch.where(height < 0, -1.0, 1.0).to(height.dtype)
    return torch.where(nothing, 0.0, torch.atan2(side * width, torch.where(nothing, 1.0, side * height)))


def _complete_box_iou(overlap: Overlap, eps_area: float, eps: float) -> Tensor:
    x, y = overlap.x, overlap.y
    v = 4 / math.pi**2 * (_angle(x.first, y.first) - _angle(x.second, y.second)) ** 2
    alpha = ratio(v, overlap.complement + v + eps).detach()
    return _distance_box_iou(overlap, eps_area, eps) + alpha * v


def _loss(name: str, boxes1: Tensor, boxes2: Tensor, reduction: str, eps: float, backend: str | None) -> Tensor:
    _checks.positive(name, "eps", eps, zero=True)
    return box_loss(name, (float(eps), float(eps)), boxes1, boxes2, reduction, backend)


@register(
    "box", point=_box_iou, formula="1 - I / (U + eps)", source="Yu et al. 2016, section 3 (1 - IoU in place of -log IoU)", params=_EPS,
    operands=_BOXES,
)
def box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None) -> Tensor:
    r"""One minus intersection over union, :math:`\ell = 1 - \frac{I}{U + \epsilon}`.

    :math:`I` and :math:`U = A_1 + A_2 - I` are the areas of intersection and union. Boxes that do not meet have loss 1 and no gradient.
    Values and gradients are finite for boxes without size (a quotient by 0 counts 0) and for inverted ones, which meet nothing. Where ends
    of the boxes coincide, each box gets half of the gradient, as of :func:`torch.maximum`.

    Args:
        boxes1, boxes2: corners (x1, y1, x2, y2); float32, float64, bfloat16, float16 or integers, any strides. Both may require gradients.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. A mean over no boxes is 0.
        eps: added to areas that divide. Default: 1e-7.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - boxes1, boxes2: :math:`(4)`, :math:`(N, 4)` or :math:`(..., 4)`; they broadcast
        - loss: scalar, or the broadcast shape without the coordinates for ``reduction="none"``; float64 for float64 boxes, else float32

    Raises:
        ValueError: the last dimension is not 4; eps is negative; unknown reduction or backend.
        TypeError: an argument is not a Tensor.
        RuntimeError: shapes do not broadcast; tensors are on different devices; the backend cannot run here.
        NotImplementedError: boxes of another dtype.

    Source:
        Yu et al. 2016, section 3, with 1 - IoU in place of -log IoU.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.box_iou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
        tensor([0.6667])
    """
    return _loss("box_iou", boxes1, boxes2, reduction, eps, backend)


@register(
    "box", point=_generalized_box_iou, formula="1 - I / (U + eps) + (C - U) / (C + eps), C: area of the enclosing box",
    source="Rezatofighi et al. 2019, algorithm 1", params=_EPS, operands=_BOXES,
)
def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    r"""One minus generalised IoU: the part of the enclosing box outside of the union counts too, so boxes that are apart get a gradient.

    .. math:: \ell = 1 - \frac{I}{U + \epsilon} + \frac{C - U}{C + \epsilon}

    with the areas of intersection, union and smallest enclosing box. Signature, defaults and values of
    torchvision.ops.generalized_box_iou_loss. Two equal boxes without size have loss 1.

    Args:
        boxes1, boxes2: as for :func:`box_iou_loss`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. A mean over no boxes is 0.
        eps: added to areas that divide. Default: 1e-7.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - boxes1, boxes2, loss: as for :func:`box_iou_loss`

    Raises:
        As :func:`box_iou_loss`.

    Source:
        Rezatofighi et al. 2019, algorithm 1.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.generalized_box_iou_loss(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0]))
        tensor(1.5000)
    """
    return _loss("generalized_box_iou", boxes1, boxes2, reduction, eps, backend)


@register(
    "box", point=_distance_box_iou, formula="1 - I / (U + eps) + d^2 / (c^2 + eps), d: of the centres, c: diagonal of the enclosing box",
    source="Zheng et al. 2020, equation 7", params=_EPS, operands=_BOXES,
)
def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    r"""One minus distance IoU: the distance of the centres in units of the enclosing box's diagonal is added.

    .. math:: \ell = 1 - \frac{I}{U + \epsilon} + \frac{d^2}{c_w^2 + c_h^2 + \epsilon}

    Signature, defaults and values of torchvision.ops.distance_box_iou_loss.

    Args:
        boxes1, boxes2: as for :func:`box_iou_loss`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. A mean over no boxes is 0.
        eps: added to the denominators. Default: 1e-7.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - boxes1, boxes2, loss: as for :func:`box_iou_loss`

    Raises:
        As :func:`box_iou_loss`.

    Source:
        Zheng et al. 2020, equation 7.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.distance_box_iou_loss(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0]))
        tensor(1.5294)
    """
    return _loss("distance_box_iou", boxes1, boxes2, reduction, eps, backend)


@register(
    "box", point=_complete_box_iou, formula="distance IoU loss + alpha v, v = (2 (atan(w1 / h1) - atan(w2 / h2)) / pi)^2",
    source="Zheng et al. 2020, equations 8 to 12", params=_EPS, operands=_BOXES,
)
def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    r"""One minus complete IoU: :func:`distance_box_iou_loss` and a term that compares the aspect ratios.

    .. math::
        \ell = 1 - \frac{I}{U + \epsilon} + \frac{d^2}{c_w^2 + c_h^2 + \epsilon} + \alpha v, \quad
        v = \frac{4}{\pi^2} \left(\arctan\frac{w_1}{h_1} - \arctan\frac{w_2}{h_2}\right)^2, \quad
        \alpha = \frac{v}{1 - \mathrm{IoU} + v + \epsilon}

    No gradient flows through :math:`\alpha`. The angle of a box without size is 0 and has no gradient; in torchvision such a box makes
    value and gradient NaN. Signature and defaults are those of torchvision.ops.complete_box_iou_loss, which adds `eps` to the denominator
    of :math:`\alpha` only and 1e-7 to the others.

    Args:
        boxes1, boxes2: as for :func:`box_iou_loss`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. A mean over no boxes is 0.
        eps: added to the denominators. Default: 1e-7.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - boxes1, boxes2, loss: as for :func:`box_iou_loss`

    Raises:
        As :func:`box_iou_loss`.

    Source:
        Zheng et al. 2020, equations 8 to 12.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.complete_box_iou_loss(torch.tensor([0.0, 0.0, 2.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 2.0]))
        tensor(0.7629)
    """
    return _loss("complete_box_iou", boxes1, boxes2, reduction, eps, backend)


KINDS = {"iou": "box_iou", "giou": "generalized_box_iou", "diou": "distance_box_iou", "ciou": "complete_box_iou"}


def pairwise_box_iou(
    boxes1: Tensor, boxes2: Tensor, kind: str = "iou", eps: float = 1e-7, *, backend: str | None = None
) -> Tensor:
    r"""IoU of every box of one set with every box of another, or its generalised, distance or complete form.

    The score is one minus the loss of the same name, except that nothing is added to areas: what is 0 / 0 counts 0. The values of
    torchvision.ops.box_iou, generalized_box_iou, distance_box_iou and complete_box_iou. The compiled backends write the matrix once, and
    their backward adds up each box's gradient in a fixed order without any other tensor of the matrix's size.

    Args:
        boxes1, boxes2: corners (x1, y1, x2, y2); float32, float64, bfloat16, float16 or integers, any strides. Both may require gradients.
        kind: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``.
        eps: added to the squared diagonal of the enclosing box and to the denominator of alpha. Default: 1e-7.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - boxes1, boxes2: :math:`(N, 4)` and :math:`(M, 4)`
        - scores: :math:`(N, M)`; float64 for float64 boxes, else float32

    Raises:
        ValueError: unknown kind; boxes are not (N, 4); eps is negative; unknown backend.
        TypeError, RuntimeError, NotImplementedError: as :func:`box_iou_loss`.

    Source:
        Jaccard 1901; Rezatofighi et al. 2019; Zheng et al. 2020.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
        >>> F.pairwise_box_iou(boxes, boxes)
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]])
    """
    if kind not in KINDS:
        raise ValueError(f"pairwise_box_iou: kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    _checks.positive("pairwise_box_iou", "eps", eps, zero=True)
    return box_pairs(pairwise_box_iou, KINDS[kind], (0.0, float(eps)), boxes1, boxes2, backend, kind=kind, eps=eps)
