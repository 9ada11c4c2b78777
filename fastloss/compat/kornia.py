"""kornia's segmentation losses, following kornia 0.9.0 (``from fastloss.compat import kornia; kornia.dice_loss(logits, labels)``).

Functions and classes, arguments, defaults, error types and return shapes are kornia's. Logits are (B, C, H, W), or (B, C, ...) for the
focal losses; labels (B, H, W) int64. No one-hot target, mask or probability is stored.

What differs:

- A label that is out of range raises IndexError on CPU tensors (kornia: RuntimeError).
- A negative gamma, and an alpha outside [0, 1] of :func:`binary_focal_loss_with_logits`, raise ValueError.
- The errors of failed checks are this module's classes of kornia's names, with the same built-in base classes.

Targets of :func:`binary_focal_loss_with_logits` of an integer dtype or bool take one sweep; floating ones, which may be soft, and
`pos_weight` take two, one for each of the terms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from .. import functional as F
from ._overlap import class_labels, statistics

__all__ = [
    "BaseError", "BinaryFocalLossWithLogits", "DiceLoss", "FocalLoss", "LovaszHingeLoss", "LovaszSoftmaxLoss", "ShapeError",
    "TverskyLoss", "TypeCheckError", "binary_focal_loss_with_logits", "dice_loss", "focal_loss", "lovasz_hinge_loss", "lovasz_softmax_loss",
    "tversky_loss",
]


class BaseError(Exception):
    """A check failed; neither a ValueError nor a TypeError, as in kornia."""


class ShapeError(BaseError, ValueError):
    """A tensor has the wrong number of dimensions."""


class TypeCheckError(BaseError, TypeError):
    """An argument is not a tensor."""


def _image_labels(name: str, pred: Tensor, target: Tensor, error: type[Exception]) -> None:
    if not isinstance(pred, Tensor):
        raise error(f"{name}: pred must be a Tensor, got {type(pred).__name__}")
    if pred.dim() != 4:
        raise ValueError(f"{name}: expected pred of shape (B, C, H, W), got {tuple(pred.shape)}")
    if pred.device != target.device:
        raise ValueError(f"{name}: pred and target must be on one device, got {pred.device} and {target.device}")
    wanted = (pred.shape[0], *pred.shape[2:])
    if tuple(target.shape) != wanted:
        raise ValueError(f"{name}: expected target of shape {wanted} for pred of shape {tuple(pred.shape)}, got {tuple(target.shape)}")


def _int64(name: str, target: Tensor) -> None:
    if target.dtype != torch.int64:
        raise BaseError(f"{name}: labels must be int64, got {target.dtype}")


def _per_class(name: str, argument: str, weight: Tensor | None, pred: Tensor) -> None:
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeCheckError(f"{name}: {argument} must be a Tensor or None, got {type(weight).__name__}")
    classes = pred.shape[1]
    if weight.dim() < 1 or weight.shape[0] != classes or weight.numel() != classes:
        raise BaseError(f"{name}: {argument} must have one number for each of {classes} classes, got shape {tuple(weight.shape)}")
    if weight.device != pred.device:
        raise BaseError(f"{name}: {argument} and pred must be on one device, got {weight.device} and {pred.device}")


def _reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise NotImplementedError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0."""
    empty = denominator == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))


def dice_loss(
    pred: Tensor, target: Tensor, average: str = "micro", eps: float = 1e-8, weight: Tensor | None = None, ignore_index: int | None = -100
) -> Tensor:
    r"""kornia's Dice loss of the softmax of logits, a mean over samples.

    .. math:: \text{micro: } \ell = 1 - \frac{2 \sum_c w_c I_c}{\sum_c w_c (P_c + T_c) + \text{eps}}, \qquad
        \text{macro: } \ell = \frac{\sum_c w_c \ell_c}{\sum_c w_c}, \;
        \ell_c = 1 - \frac{2 I_c}{P_c + T_c + \text{eps}}

    with macro's sums over the classes that the sample's target has. A sample without any, or with zero weights, has loss 1.

    Args:
        pred: logits (B, C, H, W).
        target: labels (B, H, W), int64.
        average: ``"micro"`` or ``"macro"``. Default: ``"micro"``.
        eps: added to the denominator. Default: 1e-8.
        weight: a factor for each class. Default: 1.
        ignore_index: label of pixels that do not count, or None. Default: -100.

    Shape:
        loss: ``()``

    Raises:
        TypeCheckError: pred or weight is not a Tensor.
        ValueError: shapes or devices do not fit.
        BaseError: unknown average; weight does not fit; labels are not int64.
    """
    _image_labels("dice_loss", pred, target, TypeCheckError)
    if average not in ("micro", "macro"):
        raise BaseError(f"dice_loss: average must be 'micro' or 'macro', got {average!r}")
    _int64("dice_loss", target)
    _per_class("dice_loss", "weight", weight, pred)
    sums, dtype = statistics("dice_loss", "softmax", (), pred, *class_labels(target, pred.shape[1], ignore_index))
    shared, both, factors = sums["intersection"], sums["input"] + sums["target"], torch.ones_like(sums["target"])
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
        factors = factors * weight.reshape(-1).to(factors.dtype)
    if average == "micro":
        shared, both = (factors * shared).sum(1), (factors * both).sum(1)
    # Of nothing the score is 0 whatever eps is.
    losses = 1.0 - _ratio(2.0 * shared, torch.where(both == 0, 0.0, both + eps))
    if average == "macro":
        factors = factors * (sums["target"] > 0)
        total = factors.sum(1)
        losses = torch.where(total == 0, 1.0, _ratio((losses * factors).sum(1), total))
    return losses.mean().to(dtype)


def tversky_loss(
    pred: Tensor, target: Tensor, alpha: float, beta: float, eps: float = 1e-8, ignore_index: int | None = -100
) -> Tensor:
    r"""kornia's Tversky loss of the softmax of logits, a mean over the classes that a sample's target has, and over samples.

    .. math:: \ell_c = 1 - \frac{TP}{TP + \alpha FP + \beta FN + \text{eps}}

    A sample without a pixel that counts has loss 1.

    Args:
        pred: logits (B, C, H, W).
        target: labels (B, H, W), int64.
        alpha, beta: prices of false positives and false negatives.
        eps: added to the denominator. Default: 1e-8.
        ignore_index: label of pixels that do not count, or None. Default: -100.

    Shape:
        loss: ``()``

    Raises:
        TypeError: pred is not a Tensor.
        ValueError: shapes or devices do not fit.
        BaseError: labels are not int64.
    """
    _image_labels("tversky_loss", pred, target, TypeError)
    _int64("tversky_loss", target)
    sums, dtype = statistics("tversky_loss", "softmax", (), pred, *class_labels(target, pred.shape[1], ignore_index))
    hit, present = sums["intersection"], sums["target"] > 0
    denominator = hit + alpha * (sums["input"] - hit) + beta * (sums["target"] - hit) + eps
    scores = torch.where(present, hit / torch.where(present, denominator, 1.0), 0.0)
    return (1.0 - (scores.sum(1) / present.sum(1).clamp_min(1)).mean()).to(dtype)


def focal_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float | None,
    gamma: float = 2.0,
    reduction: str = "none",
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    r"""kornia's focal loss of the softmax of logits, :math:`\ell = -w_y \alpha_y (1 - p_y)^\gamma \log p_y`.

    :math:`\alpha_y` is :math:`1 - \alpha` for class 0 and :math:`\alpha` for the others.

    Args:
        pred: logits (B, C, ...).
        target: labels (B, ...), int64.
        alpha: balance, or None for 1.
        gamma: focusing power, at least 0. Default: 2.
        reduction: ``"none"``; ``"sum"``; or ``"mean"``: the sum over the number of elements of `pred`. Default: ``"none"``.
        weight: a factor for each class. Default: 1.
        ignore_index: label of pixels whose loss is 0, or None. Default: -100.

    Shape:
        loss: ``()``; for ``reduction="none"`` `pred`'s, with 0 for the classes that are not the pixel's.

    Raises:
        ShapeError: pred has fewer than two dimensions.
        BaseError: target or weight does not fit; labels are not int64.
        NotImplementedError: unknown reduction.
        ValueError: gamma is negative.
    """
    name = "focal_loss"
    if pred.dim() < 2:
        raise ShapeError(f"{name}: expected pred of shape (B, C, ...), got {tuple(pred.shape)}")
    wanted = (pred.shape[0], *pred.shape[2:])
    if tuple(target.shape) != wanted:
        raise BaseError(f"{name}: expected target of shape {wanted} for pred of shape {tuple(pred.shape)}, got {tuple(target.shape)}")
    if pred.device != target.device:
        raise BaseError(f"{name}: pred and target must be on one device, got {pred.device} and {target.device}")
    _int64(name, target)
    _per_class(name, "weight", weight, pred)
    _reduction(reduction)
    _checks.positive(name, "gamma", gamma, zero=True)
    accumulate = torch.float64 if pred.dtype == torch.float64 else torch.float32
    factors = torch.ones(pred.shape[1], dtype=accumulate, device=pred.device)
    if alpha is not None:
        factors = torch.where(torch.arange(pred.shape[1], device=pred.device) == 0, 1 - alpha, alpha).to(accumulate)
    promoted = pred.dtype
    if weight is not None:
        factors = factors * weight.reshape(-1).to(accumulate)
        promoted = torch.promote_types(promoted, weight.dtype)
    if reduction == "none":
        ignored = torch.iinfo(torch.int64).min if ignore_index is None else ignore_index
        losses = F.softmax_focal_loss(pred, target, gamma, ignore_index=ignored, reduction="none")
        labels = target if ignore_index is None else torch.where(target == ignore_index, 0, target)
        losses = losses * factors.to(torch.promote_types(losses.dtype, promoted))[labels]
        return torch.zeros_like(pred, dtype=losses.dtype, requires_grad=False).scatter(1, labels.unsqueeze(1), losses.unsqueeze(1))
    sums, dtype = statistics(name, "softmax_focal", (float(gamma),), pred, target, ignore_index)
    loss = (sums["loss"] * factors).sum()
    return (loss / pred.numel() if reduction == "mean" else loss).to(torch.promote_types(dtype, promoted))


def binary_focal_loss_with_logits(
    pred: Tensor,
    target: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    r"""kornia's focal loss of logits of the positive class.

    .. math:: \ell = -w_c \left(w^+_c \alpha t (1 - p)^\gamma \log p + (1 - \alpha) (1 - t) p^\gamma \log(1 - p)\right)

    Args:
        pred: logits (B, C, ...).
        target: numbers in [0, 1] of `pred`'s shape.
        alpha: balance in [0, 1], or None for neither factor. Default: 0.25.
        gamma: focusing power, at least 0. Default: 2.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``: over all elements. Default: ``"none"``.
        pos_weight: a factor for the positive part of each class. Default: 1.
        weight: a factor for each class. Default: 1.
        ignore_index: target of elements whose loss is 0, or None. Default: -100.

    Shape:
        loss: ``()``; for ``reduction="none"`` `pred`'s.

    Raises:
        ShapeError: pred has fewer than two dimensions.
        BaseError: target, weight or pos_weight does not fit.
        NotImplementedError: unknown reduction.
        ValueError: alpha is not in [0, 1] or gamma is negative.
    """
    name = "binary_focal_loss_with_logits"
    if pred.dim() < 2:
        raise ShapeError(f"{name}: expected pred of shape (B, C, ...), got {tuple(pred.shape)}")
    if pred.shape != target.shape:
        raise BaseError(f"{name}: expected target of shape {tuple(pred.shape)}, got {tuple(target.shape)}")
    if pred.device != target.device:
        raise BaseError(f"{name}: pred and target must be on one device, got {pred.device} and {target.device}")
    _per_class(name, "pos_weight", pos_weight, pred)
    _per_class(name, "weight", weight, pred)
    _reduction(reduction)
    _checks.positive(name, "gamma", gamma, zero=True)
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"{name}: alpha must be in [0, 1] or None, got {alpha}")
    balance = -1.0 if alpha is None else float(alpha)
    hard = not target.is_floating_point()
    if hard and pos_weight is None and reduction != "none":
        sums, dtype = statistics(name, "sigmoid_focal", (balance, float(gamma)), pred, target, ignore_index)
        loss = sums["loss"]
        if weight is not None:
            loss, dtype = loss * weight.reshape(-1).to(loss.dtype), torch.promote_types(dtype, weight.dtype)
        loss = loss.sum()
        return (loss / pred.numel() if reduction == "mean" else loss).to(dtype)
    per_class = (-1, *[1] * (pred.dim() - 2))
    kept = None if ignore_index is None else target != ignore_index
    if kept is not None:
        target = torch.where(kept, target, 0)
        pred = torch.where(kept, pred, 0.0)
    target = target.to(torch.promote_types(pred.dtype, target.dtype))
    factor = target.new_ones(()) if weight is None else weight.view(per_class)
    factor = factor if kept is None else factor * kept
    positive = factor * target if pos_weight is None else factor * target * pos_weight.view(per_class)
    one, zero = target.new_ones(()), target.new_zeros(())
    hit = F.sigmoid_focal_loss(pred, one, balance, gamma, reduction, weight=positive)
    return hit + F.sigmoid_focal_loss(pred, zero, balance, gamma, reduction, weight=factor * (1 - target))


def _lovasz(name: str, pred: Tensor, target: Tensor, fits: bool, channels: str, batches: tuple[int, ...]) -> None:
    if pred.dim() != 4 or not fits:
        raise (ShapeError if pred.dim() != 4 or channels == "1" else ValueError)(
            f"{name}: expected pred of shape (B, {channels}, H, W), got {tuple(pred.shape)}"
        )
    if target.dim() != 3:
        raise ShapeError(f"{name}: expected target of shape (B, H, W), got {tuple(target.shape)}")
    if pred.shape[0] not in batches or pred.shape[2:] != target.shape[1:]:
        raise ValueError(f"{name}: expected target of shape (B, H, W) for pred of shape {tuple(pred.shape)}, got {tuple(target.shape)}")
    if pred.device != target.device:
        raise ValueError(f"{name}: pred and target must be on one device, got {pred.device} and {target.device}")


def lovasz_hinge_loss(pred: Tensor, target: Tensor) -> Tensor:
    """kornia's Lovasz hinge: :func:`fastloss.functional.lovasz_hinge_loss`, the mean over images.

    Args:
        pred: logits (B, 1, H, W).
        target: labels (B, H, W), 0 and 1.

    Shape:
        loss: ``()``

    Raises:
        ShapeError: the dimensions are others.
        ValueError: sizes or devices do not fit.
        IndexError: a label is neither 0 nor 1 (on CPU tensors; kornia reads it as a number).
    """
    _lovasz("lovasz_hinge_loss", pred, target, pred.dim() == 4 and pred.shape[1] == 1, "1", target.shape[:1])
    return F.lovasz_hinge_loss(pred, target)


def lovasz_softmax_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""kornia's Lovasz-softmax: :func:`fastloss.functional.lovasz_softmax_loss`, the mean over images and over all classes.

    Args:
        pred: logits (B, C, H, W) of at least two classes; with B = 1 for every target.
        target: labels (B, H, W).
        weight: a factor for the loss of each class; the mean divides by C all the same. Each class then takes a sweep. Default: 1.

    Shape:
        loss: ``()``

    Raises:
        ShapeError: the dimensions are others.
        ValueError: sizes or devices do not fit, or there is one class.
        BaseError: weight does not fit.
    """
    name = "lovasz_softmax_loss"
    _lovasz(name, pred, target, pred.dim() == 4 and pred.shape[1] > 1, "C > 1", (*target.shape[:1], 1))
    _per_class(name, "weight", weight, pred)
    pred = pred.expand(target.shape[0], -1, -1, -1)
    if weight is None:
        return F.lovasz_softmax_loss(pred, target, "all", per_image=True)
    losses = [F.lovasz_softmax_loss(pred, target, [c], per_image=True) for c in range(pred.shape[1])]
    return (torch.stack(losses) * weight.reshape(-1)).mean()


def _keep(module: nn.Module, name: str, weight: Tensor | None) -> None:
    """Keep class weights as kornia does: a parameter, or a buffer that is not saved."""
    if isinstance(weight, nn.Parameter):
        setattr(module, name, weight)
    else:
        module.register_buffer(name, weight, persistent=False)


class DiceLoss(nn.Module):
    """The module of :func:`dice_loss`."""

    def __init__(
        self, average: str = "micro", eps: float = 1e-8, weight: Tensor | None = None, ignore_index: int | None = -100
    ) -> None:
        super().__init__()
        self.average = average
        self.eps = eps
        _keep(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return dice_loss(pred, target, self.average, self.eps, self.weight, self.ignore_index)


class TverskyLoss(nn.Module):
    """The module of :func:`tversky_loss`."""

    def __init__(self, alpha: float, beta: float, eps: float = 1e-8, ignore_index: int | None = -100) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.eps = eps
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return tversky_loss(pred, target, self.alpha, self.beta, self.eps, self.ignore_index)


class FocalLoss(nn.Module):
    """The module of :func:`focal_loss`."""

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        _keep(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return focal_loss(pred, target, self.alpha, self.gamma, self.reduction, self.weight, self.ignore_index)


class BinaryFocalLossWithLogits(nn.Module):
    """The module of :func:`binary_focal_loss_with_logits`; `alpha` has no default here, as in kornia."""

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        pos_weight: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        _keep(self, "pos_weight", pos_weight)
        _keep(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return binary_focal_loss_with_logits(
            pred, target, self.alpha, self.gamma, self.reduction, self.pos_weight, self.weight, self.ignore_index
        )


class LovaszHingeLoss(nn.Module):
    """The module of :func:`lovasz_hinge_loss`."""

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return lovasz_hinge_loss(pred, target)


class LovaszSoftmaxLoss(nn.Module):
    """The module of :func:`lovasz_softmax_loss`."""

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        _keep(self, "weight", weight)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return lovasz_softmax_loss(pred, target, self.weight)
