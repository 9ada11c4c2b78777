"""The losses of nexus.training.losses (``from fastloss.compat.nexus import InfoNCELoss``).

Classes, arguments, defaults and call order are nexus's. What differs:

- Sums of exponentials do not overflow at small temperatures, and :class:`VICRegLoss` and :class:`BarlowTwinsLoss` of a single sample raise
  instead of giving NaN.
- The focal factor of :class:`FocalLoss` is that of the probability, whatever the class weights; in nexus the weights change it too.
- :class:`CircleLoss` is that of its paper; nexus multiplies the sums over all pairs of the batch.
- Its losses of images, AdaCos and SFT are not offered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from .. import functional as F
from ..metric import losses as metric
from ..metric import reducers
from ..pair import normalised

__all__ = [
    "BarlowTwinsLoss", "CircleLoss", "ContrastiveLoss", "DiceLoss", "FocalLoss", "InfoNCELoss", "NTXentLoss", "SigmoidContrastiveLoss",
    "TripletLoss", "VICRegLoss", "WeightedFocalLoss", "WingLoss",
]


class InfoNCELoss(nn.Module):
    """nexus's ``InfoNCELoss``: :func:`fastloss.functional.info_nce_loss` with negatives that all anchors share.

    Args:
        temperature: positive. Default: 0.07.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, temperature: float = 0.07, *, backend: str | None = None) -> None:
        super().__init__()
        self.temperature, self.backend = temperature, backend

    def forward(self, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """The mean loss of anchors and positives (B, D) and negatives (N, D); 0 of none."""
        return F.info_nce_loss(anchors, positives, negatives, self.temperature, backend=self.backend)


class SigmoidContrastiveLoss(nn.Module):
    """nexus's ``SigmoidContrastiveLoss``: :func:`fastloss.functional.siglip_loss` of normalised features, a mean over all pairs.

    Args:
        temperature: positive; scores are cosines divided by it. Default: 0.1.
        bias: added to scores; where training starts from. Default: 0.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Attributes:
        bias: the parameter.
    """

    def __init__(self, temperature: float = 0.1, bias: float = 0.0, *, backend: str | None = None) -> None:
        super().__init__()
        self.temperature, self.backend = temperature, backend
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, features_a: Tensor, features_b: Tensor) -> Tensor:
        """The loss of features (B, D) of which each pair of rows belongs together."""
        a, b = normalised(features_a), normalised(features_b)
        loss = F.siglip_loss(a, b, 1 / self.temperature, self.bias, "mean", backend=self.backend)
        return loss.to(torch.promote_types(features_a.dtype, features_b.dtype))


class NTXentLoss(nn.Module):
    """nexus's ``NTXentLoss``: :func:`fastloss.functional.nt_xent_loss`.

    Args:
        temperature: positive. Default: 0.5.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, temperature: float = 0.5, *, backend: str | None = None) -> None:
        super().__init__()
        self.temperature, self.backend = temperature, backend

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The mean loss of two views (B, D)."""
        return F.nt_xent_loss(z1, z2, self.temperature, backend=self.backend)


class VICRegLoss(nn.Module):
    """nexus's ``VICRegLoss``: :func:`fastloss.functional.vicreg_loss` with the sum, not the mean, of both views' variance terms.

    Args:
        sim_coeff, std_coeff, cov_coeff: weights of the terms. Default: 25, 25, 1.
        variance_target: the wanted standard deviation. Default: 1.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(
        self, sim_coeff: float = 25.0, std_coeff: float = 25.0, cov_coeff: float = 1.0, variance_target: float = 1.0, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.sim_coeff, self.std_coeff, self.cov_coeff, self.variance_target = sim_coeff, std_coeff, cov_coeff, variance_target
        self.backend = backend

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views (B, D)."""
        return F.vicreg_loss(z1, z2, self.sim_coeff, 2 * self.std_coeff, self.cov_coeff, self.variance_target, backend=self.backend)


class BarlowTwinsLoss(nn.Module):
    """nexus's ``BarlowTwinsLoss``: :func:`fastloss.functional.barlow_twins_loss` with unbiased deviations plus 1e-4.

    Args:
        lambd: weight of the off-diagonal terms. Default: 0.005.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, lambd: float = 0.005, *, backend: str | None = None) -> None:
        super().__init__()
        self.lambd, self.backend = lambd, backend

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views (B, D)."""
        return F.barlow_twins_loss(z1, z2, self.lambd, "unbiased", backend=self.backend)


class _Focal(nn.Module):
    """What both focal losses share: rows of :func:`fastloss.functional.softmax_focal_loss`, of which ignored ones count in a mean."""

    def __init__(self, gamma: float, reduction: str, backend: str | None) -> None:
        super().__init__()
        _checks.positive(type(self).__name__, "gamma", gamma, zero=True)
        _checks.reduction_code(type(self).__name__, reduction)
        self.gamma, self.reduction, self.backend = gamma, reduction, backend

    def _loss(self, inputs: Tensor, targets: Tensor, alpha: float | Tensor | None) -> Tensor:
        rows = F.softmax_focal_loss(
            inputs, targets, self.gamma, alpha, reduction="none" if self.reduction == "mean" else self.reduction, backend=self.backend
        )
        return rows.mean() if self.reduction == "mean" else rows


class FocalLoss(_Focal):
    """nexus's ``FocalLoss``: :func:`fastloss.functional.softmax_focal_loss`.

    Args:
        alpha: a factor of all classes. Default: 1.
        gamma: focusing parameter, at least 0. Default: 2.
        reduction: ``"mean"`` over all rows, ``"sum"`` or ``"none"``. Default: ``"mean"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, alpha: float = 1.0, gamma: float = 2.0, reduction: str = "mean", *, backend: str | None = None) -> None:
        super().__init__(gamma, reduction, backend)
        self.alpha = alpha

    def forward(self, inputs: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of logits (N, C, ...) and classes (N, ...); `weight` (C) multiplies the loss of each class."""
        return self._loss(inputs, targets, self.alpha if weight is None else self.alpha * weight.to(inputs.dtype))


class WeightedFocalLoss(_Focal):
    """nexus's ``WeightedFocalLoss``: :func:`fastloss.functional.softmax_focal_loss` with a factor of each class.

    Args:
        alpha: one factor, or a list of one for each class.
        gamma: focusing parameter, at least 0. Default: 2.
        reduction: ``"mean"`` over all rows, ``"sum"`` or ``"none"``. Default: ``"mean"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Attributes:
        alpha: the factors, a buffer.
    """

    def __init__(
        self, alpha: float | Sequence[float], gamma: float = 2.0, reduction: str = "mean", *, backend: str | None = None
    ) -> None:
        super().__init__(gamma, reduction, backend)
        self.register_buffer("alpha", torch.as_tensor(alpha, dtype=torch.get_default_dtype()))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits (N, C, ...) and classes (N, ...)."""
        classes = inputs.shape[1] if inputs.dim() > 1 else inputs.shape[0]
        return self._loss(inputs, targets, self.alpha.to(inputs.dtype).expand(classes).contiguous())


class DiceLoss(nn.Module):
    """nexus's ``DiceLoss``: :func:`fastloss.functional.dice_loss` of sigmoids, the mean over samples and channels.

    Args:
        smooth: added to the numerator and the denominator. Default: 1.
        square: square probabilities and targets in the denominator. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, smooth: float = 1.0, square: bool = False, *, backend: str | None = None) -> None:
        super().__init__()
        self.smooth, self.square, self.backend = smooth, square, backend

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of logits and masks (N, C, H, W)."""
        if pred.shape != target.shape:
            raise ValueError(f"DiceLoss: pred and target must have one shape, got {tuple(pred.shape)} and {tuple(target.shape)}")
        target = target if target.is_floating_point() else target.to(pred.dtype)
        power = 2 if self.square else 1
        return F.dice_loss(pred, target, activation="sigmoid", smooth=self.smooth, eps=0.0, power=power, backend=self.backend)


class ContrastiveLoss(nn.Module):
    """nexus's ``ContrastiveLoss``: :func:`fastloss.functional.contrastive_loss`.

    Args:
        margin: distance that pairs which do not belong together should have. Default: 1.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings1: Tensor, embeddings2: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of pairs (N, D), and labels (N), 1 for those that belong together."""
        return F.contrastive_loss(embeddings1, embeddings2, labels.to(embeddings1.dtype), self.margin)


class TripletLoss(nn.Module):
    """nexus's ``TripletLoss``: :func:`fastloss.functional.triplet_margin_loss`.

    Args:
        margin: Default: 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. Default: ``"mean"``.
    """

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.margin, self.reduction = margin, reduction

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of anchors, positives and negatives (N, D)."""
        return F.triplet_margin_loss(anchor, positive, negative, self.margin, reduction=self.reduction)


class CircleLoss(nn.Module):
    """nexus's ``CircleLoss``, with the formula of :class:`fastloss.metric.losses.CircleLoss`, on cosines.

    Args:
        m: relaxation. Default: 0.25.
        gamma: scale. Default: 256.
        reduction: ``"mean"`` over the rows whose loss is not 0, ``"sum"``, or ``"none"``. Default: ``"mean"``.
    """

    def __init__(self, m: float = 0.25, gamma: float = 256, reduction: str = "mean") -> None:
        super().__init__()
        _checks.reduction_code("CircleLoss", reduction)
        self.m, self.gamma, self.reduction = m, gamma, reduction
        self.loss = metric.CircleLoss(m, gamma, reducer=None if reduction == "mean" else reducers.DoNothingReducer())

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings (N, D) and their classes (N)."""
        found = self.loss(embeddings, labels)
        if self.reduction == "mean":
            return found
        rows = found["loss"]["losses"]
        rows = rows if isinstance(rows, Tensor) else embeddings.new_zeros(len(embeddings))
        return rows.sum() if self.reduction == "sum" else rows


class WingLoss(nn.Module):
    """nexus's ``WingLoss``: :func:`fastloss.functional.wing_loss`.

    Args:
        omega: where the logarithm ends. Default: 10.
        epsilon: curvature of the logarithm. Default: 2.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, omega: float = 10.0, epsilon: float = 2.0, *, backend: str | None = None) -> None:
        super().__init__()
        self.omega, self.epsilon, self.backend = omega, epsilon, backend

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The mean loss of predictions and truth of one shape."""
        return F.wing_loss(pred, target, self.omega, self.epsilon, backend=self.backend)
