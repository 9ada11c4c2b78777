"""Losses of segmentation_models_pytorch, following version 0.6.0 (``from fastloss.compat import smp; smp.DiceLoss("multiclass")``).

Classes, arguments, defaults, attributes and error types are theirs. `mode` says what targets are: ``"binary"``: 0 and 1 in as many
elements as the prediction has; ``"multiclass"``: labels (N, d1, ...); ``"multilabel"``: 0 and 1 in the prediction's shape (N, C, d1, ...).
No one-hot target, mask or probability is stored for integer or bool targets.

What differs:

- Sums are kept in float32 for half precision, where theirs overflow.
- ``SoftCrossEntropyLoss()`` works: ``smooth_factor=None`` means 0, which raises TypeError there.
- :class:`FocalLoss`: the gradient is finite for every gamma, also of saturated logits.
- Labels may have any integer dtype, and multi-class labels be floating. One that is out of range raises IndexError on CPU tensors (there:
  RuntimeError, or no class in :class:`FocalLoss`), and so does an integer target of ``"binary"`` that is neither 0, 1 nor `ignore_index`.
- :class:`FocalLoss` takes `ignore_index` with ``"multilabel"`` too, element by element; there it raises IndexError.
- An ignored pixel has gradient 0 even if its logit is NaN.
- An unknown reduction raises ValueError; there it means no reduction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from .. import functional as F
from ..regions import power_of
from ._overlap import class_labels, one_hot, statistics, volume

__all__ = [
    "BINARY_MODE", "DiceLoss", "FocalLoss", "JaccardLoss", "LovaszLoss", "MULTICLASS_MODE", "MULTILABEL_MODE", "SoftBCEWithLogitsLoss",
    "SoftCrossEntropyLoss", "TverskyLoss",
]

BINARY_MODE = "binary"
MULTICLASS_MODE = "multiclass"
MULTILABEL_MODE = "multilabel"
_NO_LABEL = torch.iinfo(torch.int64).min  # an ignore_index that no label has
_FOCAL_EPS = 1e-6  # what the divisor of a normalised focal loss is at least


def _check_mode(name: str, mode: str, class_weights: Sequence[float] | None) -> Tensor | None:
    """The class weights as a tensor, once the mode is known to take them."""
    if mode not in (BINARY_MODE, MULTICLASS_MODE, MULTILABEL_MODE):
        raise AssertionError(f"{name}: mode must be 'binary', 'multiclass' or 'multilabel', got {mode!r}")
    if class_weights is None:
        return None
    if mode == BINARY_MODE:
        raise ValueError(f"{name}: class_weights need several classes, mode='multiclass' or 'multilabel'")
    return torch.as_tensor(class_weights, dtype=torch.float)


def _mean_of_classes(losses: Tensor, weights: Tensor | None) -> Tensor:
    """(C,) losses to one: their mean, or the mean that weights them."""
    if weights is None:
        return losses.mean()
    weights = weights.to(losses.device, losses.dtype)
    return (losses * weights).sum() / weights.sum()


class _Region(_Loss):
    """What the losses over regions share: modes, and a score of each class over the whole batch."""

    def __init__(self, mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights) -> None:
        super().__init__()
        name = type(self).__name__
        self.class_weights = _check_mode(name, mode, class_weights)
        if classes is not None and mode == BINARY_MODE:
            raise AssertionError(f"{name}: classes need several of them, mode='multiclass' or 'multilabel'")
        self.mode = mode
        self.classes = None if classes is None else torch.as_tensor(classes, dtype=torch.long)
        self.log_loss = log_loss
        self.from_logits = from_logits
        self.smooth = smooth
        self.ignore_index = ignore_index
        self.eps = eps

    def _tensors(self, y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction as (N, C, P), and the target as labels (N, P) or numbers (N, C, P)."""
        name, samples = type(self).__name__, y_pred.shape[0]
        if y_true.shape[0] != samples:
            raise AssertionError(f"{name}: batch sizes differ, got shapes {tuple(y_pred.shape)} and {tuple(y_true.shape)}")
        channels = 1 if self.mode == BINARY_MODE else y_pred.shape[1]
        pixels = y_pred[0].numel() // max(channels, 1) if samples else torch.Size(y_pred.shape[1:]).numel() // max(channels, 1)
        wanted = samples * pixels * (1 if self.mode == MULTICLASS_MODE else channels)
        if y_true.numel() != wanted:
            raise AssertionError(
                f"{name}: with mode={self.mode!r} expected {wanted} targets for y_pred of shape {tuple(y_pred.shape)}, "
                f"got shape {tuple(y_true.shape)}"
            )
        input = y_pred.reshape(samples, channels, pixels)
        if self.mode == MULTICLASS_MODE:
            labels = y_true.reshape(samples, pixels)
            return input, labels.long() if labels.is_floating_point() else labels
        return input, y_true.reshape(samples, channels, pixels)

    def _losses(self, y_pred: Tensor, y_true: Tensor, alpha: float, beta: float) -> Tensor:
        """(C,) losses of the classes that were chosen."""
        input, target = self._tensors(y_pred, y_true)
        multiclass, ignored = self.mode == MULTICLASS_MODE, self.ignore_index
        if multiclass:
            target, ignored = class_labels(target, input.shape[1], ignored)
        losses = F.tversky_loss(
            input, target, alpha, beta, activation="none" if not self.from_logits else "softmax" if multiclass else "sigmoid",
            smooth=self.smooth, eps=self.eps, soft_label=target.is_floating_point(), group="batch", absent="zero",
            ignore_index=ignored, log=self.log_loss, reduction="none",
        )
        return losses if self.classes is None else losses[self.classes.to(losses.device)]

    def aggregate_loss(self, loss: Tensor) -> Tensor:
        """(C,) losses to one: their mean, or their mean weighted by `class_weights`."""
        weights = self.class_weights
        return _mean_of_classes(loss, weights if weights is None or self.classes is None else weights[self.classes])


class DiceLoss(_Region):
    r"""smp's ``DiceLoss``: :func:`fastloss.functional.tversky_loss` with prices of one half, of each class over the batch.

    .. math:: \ell_c = 1 - \frac{I + s}{\max((P + T) / 2 + s, \text{eps})}, \quad I = (P + T - \sum |p - t|) / 2

    or :math:`-\log \max(\text{score}, \text{eps})`; 0 for a class that the target lacks.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        classes: the classes that count. Default: all.
        log_loss: minus the logarithm of the score. Default: False.
        from_logits: whether predictions are logits, not probabilities. Default: True.
        smooth: :math:`s`. Default: 0.
        ignore_index: label, or element of the target, that does not count. Default: None.
        eps: what the denominator, and a score before the logarithm, is at least. Default: 1e-7.
        class_weights: factors of all classes; the loss is their weighted mean. Default: None.

    Shape:
        loss: ``()``

    Raises:
        AssertionError: unknown mode; `classes` with ``"binary"``; sizes do not fit.
        ValueError: `class_weights` with ``"binary"``.
    """

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return self.aggregate_loss(self._losses(y_pred, y_true, 0.5, 0.5))


class JaccardLoss(_Region):
    r"""smp's ``JaccardLoss``: as :class:`DiceLoss` with the score :math:`(I + s) / \max(P + T - I + s, \text{eps})`.

    Args:
        mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights: as in :class:`DiceLoss`.

    Raises:
        As :class:`DiceLoss`.
    """

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return self.aggregate_loss(self._losses(y_pred, y_true, 1.0, 1.0))


class TverskyLoss(DiceLoss):
    r"""smp's ``TverskyLoss``: a power of the mean over classes of :func:`fastloss.functional.tversky_loss`.

    Below 1e-6 the power is continued by a straight line to 0, so that the gradient stays finite for :math:`\gamma < 1`.

    Args:
        alpha, beta: prices of false positives and false negatives. Default: 0.5.
        gamma: the power. Default: 1.
        mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights: as in :class:`DiceLoss`.

    Raises:
        As :class:`DiceLoss`.
    """

    def __init__(
        self,
        mode: str,
        classes: list[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(mode, classes, log_loss, from_logits, smooth, ignore_index, eps, class_weights)
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma

    def aggregate_loss(self, loss: Tensor) -> Tensor:
        """(C,) losses to one: the power of their mean."""
        return power_of(super().aggregate_loss(loss), self.gamma)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return self.aggregate_loss(self._losses(y_pred, y_true, self.alpha, self.beta))


class FocalLoss(_Loss):
    r"""smp's ``FocalLoss``: of every class by its sigmoid, one against the rest, then the mean over classes.

    .. math:: \ell = \alpha_t (1 - p_t)^\gamma \text{BCE}(x, t), \quad p_t = e^{-\text{BCE}(x, t)}

    With `reduced_threshold` r the factor :math:`(1 - p_t)^\gamma` is 1 where :math:`p_t < r` and :math:`((1 - p_t) / r)^\gamma` elsewhere
    (Sergievskiy and Ponamarev 2019); `normalized` divides by the sum of the factors of a class. These two, and floating targets, which
    may be soft, take plain torch; integer and bool targets otherwise one sweep.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        alpha: balance in [0, 1], or None. Default: None.
        gamma: focusing power, at least 0. Default: 2.
        ignore_index: label, or element of the target, that does not count, not in means either. Default: None.
        from_logits: whether predictions are logits. Probabilities are clamped to [eps, 1 - eps] and brought back by the logit;
            those of ``"multiclass"`` by the logarithm. Default: True.
        eps: see `from_logits`. Default: 1e-7.
        reduction: within a class ``"mean"``, ``"sum"``, ``"batchwise_mean"`` (over samples a sum), or ``"none"`` or None. Default: mean.
        normalized, reduced_threshold: see above. Default: False and None.
        class_weights: factors of all classes; the loss is their weighted mean. Default: None.

    Shape:
        loss: ``()``; with ``"binary"`` and ``reduction="none"`` (elements that count,).

    Raises:
        AssertionError: unknown mode.
        ValueError: `class_weights` with ``"binary"``; unknown reduction; alpha or gamma out of range; shapes do not fit.
    """

    def __init__(
        self,
        mode: str,
        alpha: float | None = None,
        gamma: float | None = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        eps: float = 1e-7,
        reduction: str | None = "mean",
        normalized: bool = False,
        reduced_threshold: float | None = None,
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.class_weights = _check_mode("FocalLoss", mode, class_weights)
        if reduction not in ("none", "mean", "sum", "batchwise_mean", None):
            raise ValueError(f"FocalLoss: reduction must be 'none', 'mean', 'sum', 'batchwise_mean' or None, got {reduction!r}")
        if not gamma >= 0:
            raise ValueError(f"FocalLoss: gamma must be at least 0, got {gamma}")
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"FocalLoss: alpha must be in [0, 1] or None, got {alpha}")
        self.mode = mode
        self.alpha = alpha
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.from_logits = from_logits
        self.eps = eps
        self.reduction = reduction
        self.normalized = normalized
        self.reduced_threshold = reduced_threshold

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        multiclass, binary = self.mode == MULTICLASS_MODE, self.mode == BINARY_MODE
        if not self.from_logits:
            y_pred = y_pred.clamp(self.eps, 1 - self.eps)
            y_pred = y_pred.log() if multiclass else torch.logit(y_pred)
        if binary and y_pred.numel() == y_true.numel():
            y_pred, y_true = y_pred.reshape(1, 1, -1), y_true.reshape(1, 1, -1)
        wanted = (y_pred.shape[0], *y_pred.shape[2:]) if multiclass else tuple(y_pred.shape)
        if tuple(y_true.shape) != wanted:
            got = tuple(y_true.shape)
            raise ValueError(f"FocalLoss: y_true must have shape {wanted} for y_pred of shape {tuple(y_pred.shape)}, got {got}")
        if multiclass and y_true.is_floating_point():
            y_true = y_true.long()
        if binary and self.reduction in ("none", None):
            losses, kept = self._elements(y_pred, y_true)
            return losses[kept].to(y_pred.dtype)
        if y_true.is_floating_point() or self.normalized or self.reduced_threshold is not None:
            losses, kept = self._elements(y_pred, y_true)
            rest = [0, *range(2, losses.dim())]
            total, count = torch.where(kept, losses, 0.0).sum(rest), kept.sum(rest)
        else:
            total, count = self._sums(y_pred, y_true)
        if self.reduction == "sum" or self.reduction == "batchwise_mean" and (binary or self.ignore_index is not None):
            losses = total
        else:  # a sum over samples has the size of a sample, over which, as over elements, there is a mean in the end
            losses = total / (volume(y_pred) if self.reduction == "batchwise_mean" else count)
        return _mean_of_classes(losses, self.class_weights).to(y_pred.dtype)

    def _sums(self, y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) sums over the elements that count, and how many these are, from the engine."""
        params, ignored = (-1.0 if self.alpha is None else float(self.alpha), float(self.gamma)), self.ignore_index
        if self.mode == MULTICLASS_MODE:
            y_true, ignored = class_labels(y_true, y_pred.shape[1], ignored)
        sums, _ = statistics("FocalLoss", "sigmoid_focal", params, y_pred, y_true, ignored)
        return sums["loss"].sum(0), sums["count"].sum(0)

    def _elements(self, y_pred: Tensor, y_true: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (N, C, ...) in plain torch, and which of them count."""
        x = y_pred if y_pred.dtype == torch.float64 else y_pred.float()
        kept = torch.ones_like(y_true, dtype=torch.bool) if self.ignore_index is None else y_true != self.ignore_index
        target = torch.where(kept, y_true, 0)
        if self.mode == MULTICLASS_MODE:
            target, kept = one_hot(target, x), kept.unsqueeze(1).expand_as(x)
        target = target.to(x.dtype)
        log_p = -F.binary_cross_entropy_with_logits(torch.where(kept, x, 0.0), target, reduction="none")
        factor = _power_of_miss(log_p, self.gamma)
        if self.reduced_threshold is not None:
            factor = torch.where(log_p.exp() < self.reduced_threshold, 1.0, factor / self.reduced_threshold**self.gamma)
        losses = -factor * log_p
        if self.alpha is not None:
            losses = losses * (self.alpha * target + (1 - self.alpha) * (1 - target))
        if self.normalized:
            losses = losses / torch.where(kept, factor, 0.0).sum([0, *range(2, x.dim())], keepdim=True).clamp_min(_FOCAL_EPS)
        return losses, kept


def _power_of_miss(log_p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma with a gradient that is finite where p rounds to 1."""
    if gamma == 0:
        return torch.ones_like(log_p)
    usual = log_p < -1e-30
    return torch.where(usual, torch.exp(gamma * torch.log(-torch.expm1(torch.where(usual, log_p, -1.0)))), 0.0)


class LovaszLoss(_Loss):
    """smp's ``LovaszLoss``: Lovasz hinge; of ``"multiclass"`` Lovasz-softmax.

    :func:`fastloss.functional.lovasz_hinge_loss` and :func:`fastloss.functional.lovasz_softmax_loss`. The hinge of ``"multilabel"`` takes
    the elements of all channels together; the softmax is over the classes that are present.

    Args:
        mode: ``"binary"``, ``"multiclass"`` or ``"multilabel"``.
        per_image: the mean of the losses of the images, instead of one loss of the batch. Default: False.
        ignore_index: label that does not count. Default: None.
        from_logits: has no effect, as there: predictions are logits.

    Shape:
        loss: ``()``; 0 where everything is ignored (an empty tensor there, of ``"multiclass"``)

    Raises:
        AssertionError: unknown mode.
        ValueError: shapes do not fit, or labels are soft.
    """

    def __init__(self, mode: str, per_image: bool = False, ignore_index: int | None = None, from_logits: bool = True) -> None:
        super().__init__()
        _check_mode("LovaszLoss", mode, None)
        self.mode = mode
        self.ignore_index = ignore_index
        self.per_image = per_image

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if self.mode == MULTICLASS_MODE:
            return F.lovasz_softmax_loss(y_pred, y_true, per_image=self.per_image, ignore_index=self.ignore_index)
        return F.lovasz_hinge_loss(y_pred.flatten(1), y_true.flatten(1), self.per_image, self.ignore_index)


class SoftBCEWithLogitsLoss(nn.Module):
    r"""smp's ``SoftBCEWithLogitsLoss``: :func:`fastloss.functional.binary_cross_entropy_with_logits` with smoothed targets.

    Targets become :math:`t (1 - a) + (1 - t) a`. Ignored elements have loss 0 and count in the mean. Without weights, mean and sum take one
    sweep and store no mask.

    Args:
        weight: a factor for each element; broadcasts. Default: None.
        ignore_index: target that does not count. Default: -100.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. Default: ``"mean"``.
        smooth_factor: :math:`a`. Default: None.
        pos_weight: a factor for the positive part; broadcasts. Default: None.

    Shape:
        loss: ``()``; for ``reduction="none"`` the prediction's shape.

    Raises:
        ValueError: sizes differ; unknown reduction.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.smooth_factor = smooth_factor
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if y_pred.shape != y_true.shape:
            wanted, got = tuple(y_pred.shape), tuple(y_true.shape)
            raise ValueError(f"SoftBCEWithLogitsLoss: y_true must have y_pred's shape {wanted}, got {got}")
        target, ignored = y_true, self.ignore_index
        if self.smooth_factor:
            target = y_true if y_true.is_floating_point() else y_true.to(y_pred.dtype)
            smoothed = target * (1 - self.smooth_factor) + (1 - target) * self.smooth_factor
            target = smoothed if ignored is None else torch.where(y_true == ignored, target, smoothed)
        if ignored is not None and self.weight is None and self.pos_weight is None and self.reduction in ("mean", "sum"):
            sums, dtype = statistics(
                "SoftBCEWithLogitsLoss", "sigmoid_cross_entropy", (), y_pred.reshape(1, 1, -1), target.reshape(1, 1, -1), ignored
            )
            loss = sums["loss"].sum()
            return (loss / y_pred.numel() if self.reduction == "mean" else loss).to(dtype)
        weight = self.weight
        if ignored is not None:
            kept = y_true != ignored
            y_pred, target = torch.where(kept, y_pred, 0.0), torch.where(kept, target, 0)
            weight = kept.to(y_pred.dtype) if weight is None else kept * weight
        target = target if target.is_floating_point() else target.to(y_pred.dtype)
        return F.binary_cross_entropy_with_logits(y_pred, target, weight, pos_weight=self.pos_weight, reduction=self.reduction)


class SoftCrossEntropyLoss(nn.Module):
    r"""smp's ``SoftCrossEntropyLoss``: :func:`fastloss.functional.cross_entropy` with label smoothing.

    Ignored pixels have loss 0 and count in the mean, unlike in torch.

    Args:
        reduction: ``"mean"`` over all pixels, ``"sum"`` or ``"none"``. Default: ``"mean"``.
        smooth_factor: label smoothing in [0, 1]; None is 0. Default: None.
        ignore_index: label that does not count, or None. Default: -100.
        dim: the class axis. Default: 1.

    Shape:
        loss: ``()``; for ``reduction="none"`` the labels' shape, with a class axis of size 1 unless ``ignore_index=None``.

    Raises:
        As :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(
        self, reduction: str = "mean", smooth_factor: float | None = None, ignore_index: int | None = -100, dim: int = 1
    ) -> None:
        super().__init__()
        self.smooth_factor = smooth_factor
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.dim = dim

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        ignored = _NO_LABEL if self.ignore_index is None else self.ignore_index
        labels = (y_true.squeeze(self.dim) if y_true.dim() == y_pred.dim() else y_true).long()
        loss = F.cross_entropy(
            y_pred.movedim(self.dim, 1), labels, ignore_index=ignored, reduction=self.reduction, label_smoothing=self.smooth_factor or 0.0,
            empty="zero" if labels.numel() else "nan",  # all pixels ignored is 0, no pixels at all NaN
        )
        if self.ignore_index is None:
            return loss
        if self.reduction == "mean" and labels.numel():
            return loss * ((labels != ignored).sum() / labels.numel()).to(loss.dtype)  # a mean over ignored pixels too
        return loss.unsqueeze(self.dim) if self.reduction == "none" else loss
