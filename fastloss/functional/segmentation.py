"""Losses that compare regions: how much of what was predicted and of what is there overlaps. On the `overlap` engine."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .._checks import positive
from ..engine import overridden
from ..overlap import STATISTICS
from ..regions import DICE, JACCARD, Sums, check_ratio, choice, class_weight, documented, inverse_volume, ratio, reduce, region_loss
from ..registry import register

__all__ = [
    "dice_loss", "generalized_dice_loss", "jaccard_loss", "tversky_loss", "focal_tversky_loss", "combo_loss", "dice_ce_loss",
    "dice_focal_loss",
]


@register("overlap", formula="1 - (2 sum p t + s) / (sum p + sum t + s)", source="Milletari et al. 2016, equation of section 3")
@documented
def dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    activation: str | None = None,
    smooth: float = 1e-5,
    smooth_denominator: float | None = None,
    eps: float = 1e-7,
    power: int = 1,
    soft_label: bool = False,
    group: str = "sample",
    absent: str = "keep",
    weight: Tensor | None = None,
    include_background: bool = True,
    ignore_index: int | None = None,
    log: bool = False,
    channel_dim: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Dice loss between predicted probabilities and a segmentation.

    .. math:: \ell = 1 - \frac{2 \sum p t + s}{\sum p^k + \sum t^k + s'}

    with the sums over the pixels of a group. The logits are read once forward, and once backward, where the gradient is written; neither
    probabilities nor a one-hot target exist.

    Args:

    Shape:
        the mean or sum: ``()``; without a reduction by `group`.

    Source:
        Milletari et al. 2016, section 3 (``power=2``); Sudre et al. 2017; soft labels: Wang et al. 2023, equation 5.

    Example:
        >>> import torch, fastloss
        >>> logits = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])  # one sample, two classes, two pixels
        >>> fastloss.functional.dice_loss(logits, torch.tensor([[0, 1]]))
        tensor(0.0688)
    """
    if has_torch_function_variadic(input, target, weight):
        return overridden("dice", locals(), (input, target, weight))
    return region_loss("dice_loss", DICE, locals())


@register("overlap", formula="1 - (sum p t + s) / (sum p + sum t - sum p t + s)", source="Rahman and Wang 2016, equation 3")
@documented
def jaccard_loss(
    input: Tensor,
    target: Tensor,
    *,
    activation: str | None = None,
    smooth: float = 1e-5,
    smooth_denominator: float | None = None,
    eps: float = 1e-7,
    power: int = 1,
    soft_label: bool = False,
    group: str = "sample",
    absent: str = "keep",
    weight: Tensor | None = None,
    include_background: bool = True,
    ignore_index: int | None = None,
    log: bool = False,
    channel_dim: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Jaccard loss, one minus the intersection over union of predicted probabilities and a segmentation.

    .. math:: \ell = 1 - \frac{\sum p t + s}{\sum p^k + \sum t^k - \sum p t + s'}

    Args:

    Shape:
        the mean or sum: ``()``; without a reduction by `group`.

    Source:
        Rahman and Wang 2016, equation 3; soft labels: Wang et al. 2023, equation 4.

    Example:
        >>> import torch, fastloss
        >>> logits = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])
        >>> fastloss.functional.jaccard_loss(logits, torch.tensor([[0, 1]]))
        tensor(0.1287)
    """
    if has_torch_function_variadic(input, target, weight):
        return overridden("jaccard", locals(), (input, target, weight))
    return region_loss("jaccard_loss", JACCARD, locals())


@register("overlap", formula="1 - (TP + s) / (TP + alpha FP + beta FN + s)", source="Salehi et al. 2017, equation 2",
          params={"alpha": (0.0, 1.0), "beta": (0.0, 1.0)})
@documented
def tversky_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    *,
    activation: str | None = None,
    smooth: float = 1e-5,
    smooth_denominator: float | None = None,
    eps: float = 1e-7,
    soft_label: bool = False,
    group: str = "sample",
    absent: str = "keep",
    weight: Tensor | None = None,
    include_background: bool = True,
    ignore_index: int | None = None,
    log: bool = False,
    channel_dim: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Tversky loss: Dice with a price of its own for false positives and false negatives.

    .. math:: \ell = 1 - \frac{TP + s}{TP + \alpha FP + \beta FN + s'},
        \quad TP = \sum p t, \; FP = \sum p (1 - t), \; FN = \sum (1 - p) t

    Args:
        alpha: price of false positives, at least 0. Default: 0.3.
        beta: price of false negatives, at least 0. Default: 0.7.

    Shape:
        the mean or sum: ``()``; without a reduction by `group`.

    Source:
        Salehi et al. 2017, equation 2; soft labels: Wang et al. 2023, equation 5.

    Example:
        >>> import torch, fastloss
        >>> logits = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])
        >>> fastloss.functional.tversky_loss(logits, torch.tensor([[0, 1]]))
        tensor(0.0693)
    """
    if has_torch_function_variadic(input, target, weight):
        return overridden("tversky", locals(), (input, target, weight))
    given = locals()
    return region_loss("tversky_loss", _tversky("tversky_loss", alpha, beta), given)


def _tversky(name: str, alpha: float, beta: float) -> tuple[float, float, float, float]:
    positive(name, "alpha", alpha, zero=True)
    positive(name, "beta", beta, zero=True)
    return 1.0, 1.0 - alpha - beta, alpha, beta


@register("overlap", formula="(1 - (TP + s) / (TP + alpha FP + beta FN + s))^gamma", source="Abraham and Khan 2019, equation 4",
          params={"alpha": (0.0, 1.0), "beta": (0.0, 1.0), "gamma": (0.5, 2.0)})
@documented
def focal_tversky_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    *,
    activation: str | None = None,
    smooth: float = 1e-5,
    smooth_denominator: float | None = None,
    eps: float = 1e-7,
    group: str = "sample",
    absent: str = "keep",
    weight: Tensor | None = None,
    include_background: bool = True,
    ignore_index: int | None = None,
    channel_dim: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Focal Tversky loss: a power of the Tversky loss of each score.

    .. math:: \ell = \left(1 - \frac{TP + s}{TP + \alpha FP + \beta FN + s'}\right)^\gamma

    Below a Tversky loss of 1e-6 the power is continued by a straight line to 0, so that the gradient stays finite for
    :math:`\gamma < 1`.

    Args:
        alpha: price of false positives, at least 0. Default: 0.3.
        beta: price of false negatives, at least 0. Default: 0.7.
        gamma: the power, positive; below 1 it makes hard regions count more. Default: 0.75.

    Shape:
        the mean or sum: ``()``; without a reduction by `group`.

    Source:
        Abraham and Khan 2019, equation 4, whose gamma is the inverse of this one.

    Example:
        >>> import torch, fastloss
        >>> logits = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])
        >>> fastloss.functional.focal_tversky_loss(logits, torch.tensor([[0, 1]]))
        tensor(0.1337)
    """
    if has_torch_function_variadic(input, target, weight):
        return overridden("focal_tversky", locals(), (input, target, weight))
    given = locals()
    positive("focal_tversky_loss", "gamma", gamma)
    return region_loss("focal_tversky_loss", _tversky("focal_tversky_loss", alpha, beta), given, gamma)


@register("overlap", formula="1 - (2 sum_c w_c sum p t + s) / (sum_c w_c (sum p + sum t) + s)", source="Sudre et al. 2017, section 2.1")
@documented
def generalized_dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    class_weighting: str | Tensor = "square",
    activation: str | None = None,
    smooth: float = 1e-5,
    smooth_denominator: float | None = None,
    eps: float = 1e-7,
    soft_label: bool = False,
    batch: bool = False,
    include_background: bool = True,
    ignore_index: int | None = None,
    channel_dim: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Generalised Dice loss: one score over all classes, each weighted by the inverse of its volume.

    .. math:: \ell = 1 - \frac{2 \sum_c w_c \sum p_c t_c + s}{\sum_c w_c \left(\sum p_c + \sum t_c\right) + s'},
        \quad w_c = \left(\sum t_c\right)^{-2}

    A class that is absent gets the largest weight that a class of the same sample has, 0 where there is none. No gradient flows through
    the volumes.

    Args:
        class_weighting: ``"square"``: one over the squared volume; ``"simple"``: one over the volume; ``"uniform"``: 1; or (C,) weights,
            of all classes or of those that count. Default: ``"square"``.
        batch: take one score over the whole batch instead of one a sample. Default: False.
        reduction: ``"mean"`` or ``"sum"`` over the samples, or ``"none"``: (N,), or () with `batch`. Default: ``"mean"``.

    Shape:
        the mean or sum: ``()``; without a reduction (N,), or () with `batch`.

    Source:
        Sudre et al. 2017, section 2.1; Crum et al. 2006.

    Example:
        >>> import torch, fastloss
        >>> logits = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])
        >>> fastloss.functional.generalized_dice_loss(logits, torch.tensor([[0, 1]]))
        tensor(0.0686)
    """
    given_weight = class_weighting if isinstance(class_weighting, Tensor) else None
    if has_torch_function_variadic(input, target, given_weight):
        return overridden("generalized_dice", locals(), (input, target, given_weight))
    given, name = locals(), "generalized_dice_loss"
    check_ratio(name, given)
    if given_weight is None:
        choice(name, "class_weighting", class_weighting, ("square", "simple", "uniform"))
    sums_of = Sums(name, input, target, activation, None, lambda activation: (), include_background, ignore_index, channel_dim, backend)
    sums = sums_of.grouped("batch" if batch else "sample")
    volume = sums["target"]
    if given_weight is None:
        weight = inverse_volume(volume, {"square": 2, "simple": 1, "uniform": 0}[class_weighting])
    else:
        weight = class_weight(name, given_weight, volume.shape[-1], include_background).to(volume.dtype)
    weighted = {}
    for key, value in sums.items():  # a comprehension would make a cell of `weight`, which Dynamo cannot see in locals() above
        weighted[key] = (weight * value).sum(-1)
    losses = 1.0 - ratio(weighted, DICE, smooth, smooth_denominator, eps, 1, soft_label)
    return reduce(name, losses, weighted, "image", "keep", None, include_background, reduction).to(sums_of.dtype)


def _cross_entropy_part(sums_of: Sums, weight: Tensor | None) -> Tensor:
    """The mean cross-entropy over all channels, from the pointwise sums: torch's, with its divisors."""
    sums = dict(zip(STATISTICS, sums_of.all.sum(0).unbind(-1)))
    loss, there = sums["loss"], sums["target"]
    if weight is not None:
        loss, there = loss * weight.to(loss.dtype), there * weight.to(loss.dtype)
    if sums_of.activation == "sigmoid":
        number = sums["count"].sum()
    else:
        number = there.sum() if sums_of.labels else sums["count"].sum() / sums_of.all.shape[1]
    none = number == 0  # of no pixel the mean is NaN, and nothing has a gradient
    return (loss.sum() / number.masked_fill(none, 1.0)).masked_fill(none, float("nan"))


@register("overlap", formula="lambda_dice Dice + lambda_ce CE", source="Isensee et al. 2021, equation 1",
          params={"lambda_dice": (0.0, 2.0), "lambda_ce": (0.0, 2.0)})
@documented
def dice_ce_loss(
    input: Tensor,
    target: Tensor,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    *,
    activation: str | None = None,
    smooth: float = 1e-5,
    smooth_denominator: float | None = None,
    eps: float = 1e-7,
    power: int = 1,
    soft_label: bool = False,
    group: str = "sample",
    absent: str = "keep",
    weight: Tensor | None = None,
    include_background: bool = True,
    ignore_index: int | None = None,
    channel_dim: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Dice loss plus cross-entropy, from one read of the logits.

    .. math:: \ell = \lambda_{dice} \, \text{Dice} + \lambda_{ce} \, \text{CE}

    Dice as in :func:`dice_loss`. CE is torch's: with a softmax its ``cross_entropy``, whose mean over labels divides by their weights, with
    a sigmoid its ``binary_cross_entropy_with_logits``; always the mean, over all channels.

    Args:
        lambda_dice: factor of the Dice loss. Default: 1.
        lambda_ce: factor of the cross-entropy. Default: 1.
        weight: (C,), a factor for each class in both losses; with ``group="image"`` or ``"all"`` in the cross-entropy only.
        activation: ``"softmax"`` over the channels or ``"sigmoid"``. Default: softmax, but sigmoid for one channel.

    Shape:
        the mean or sum: ``()``; without a reduction by `group`, the cross-entropy added to every entry.

    Source:
        Isensee et al. 2021 (nnU-Net), equation 1.

    Example:
        >>> import torch, fastloss
        >>> logits = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])
        >>> fastloss.functional.dice_ce_loss(logits, torch.tensor([[0, 1]]))
        tensor(0.1413)
    """
    if has_torch_function_variadic(input, target, weight):
        return overridden("dice_ce", locals(), (input, target, weight))
    given, name = locals(), "dice_ce_loss"
    return _with_pointwise(name, given, "cross_entropy", lambda activation: (), lambda_dice, lambda_ce)


@documented
def combo_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.5,
    *,
    activation: str | None = None,
    smooth: float = 1e-5,
    smooth_denominator: float | None = None,
    eps: float = 1e-7,
    power: int = 1,
    soft_label: bool = False,
    group: str = "sample",
    absent: str = "keep",
    weight: Tensor | None = None,
    include_background: bool = True,
    ignore_index: int | None = None,
    channel_dim: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Combo loss: a mean of cross-entropy and Dice loss, from one read of the logits.

    .. math:: \ell = \alpha \, \text{CE} + (1 - \alpha) \, \text{Dice}

    Both as in :func:`dice_ce_loss`, which has a factor for each.

    Args:
        alpha: share of the cross-entropy, in [0, 1]. Default: 0.5.
        weight: (C,), a factor for each class in both losses; with ``group="image"`` or ``"all"`` in the cross-entropy only.
        activation: ``"softmax"`` over the channels or ``"sigmoid"``. Default: softmax, but sigmoid for one channel.

    Shape:
        the mean or sum: ``()``; without a reduction by `group`, the cross-entropy added to every entry.

    Source:
        Taghanaki et al. 2019, equation 3, with the Dice loss in the place of minus the Dice coefficient.

    Example:
        >>> import torch, fastloss
        >>> logits = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])
        >>> fastloss.functional.combo_loss(logits, torch.tensor([[0, 1]]))
        tensor(0.0707)
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"combo_loss: alpha must be in [0, 1], got {alpha}")
    return dice_ce_loss(
        input, target, 1.0 - alpha, alpha, activation=activation, smooth=smooth, smooth_denominator=smooth_denominator, eps=eps,
        power=power, soft_label=soft_label, group=group, absent=absent, weight=weight, include_background=include_background,
        ignore_index=ignore_index, channel_dim=channel_dim, reduction=reduction, backend=backend,
    )


def _with_pointwise(name: str, given: dict, term: str, params: Callable, lambda_dice: float, lambda_term: float) -> Tensor:
    """lambda_dice Dice + lambda_term times the mean of a pointwise loss."""
    check_ratio(name, given)
    weight, group = given["weight"], given["group"]
    sums_of = Sums(name, given["input"], given["target"], given["activation"], term, params, given["include_background"],
                    given["ignore_index"], given["channel_dim"], given["backend"])
    classes = sums_of.all.shape[1]
    if isinstance(weight, Tensor) and weight.shape != (classes,):
        raise ValueError(f"{name}: weight must have one number for each of {classes} classes, got shape {tuple(weight.shape)}")
    sums = sums_of.grouped(group)
    score = ratio(sums, DICE, given["smooth"], given["smooth_denominator"], given["eps"], given["power"], given["soft_label"],
                  given["absent"])
    by_class = weight if group in ("sample", "batch") or not isinstance(weight, Tensor) else None
    dice = reduce(name, 1.0 - score, sums, group, given["absent"], by_class, given["include_background"], given["reduction"])
    return (lambda_dice * dice + lambda_term * _cross_entropy_part(sums_of, weight)).to(sums_of.dtype)


@register("overlap", formula="lambda_dice Dice + lambda_focal Focal", source="Zhu et al. 2019, equation 3",
          params={"gamma": (0.0, 3.0), "lambda_dice": (0.0, 2.0), "lambda_focal": (0.0, 2.0)})
@documented
def dice_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    lambda_dice: float = 1.0,
    lambda_focal: float = 1.0,
    *,
    alpha: float | None = None,
    activation: str | None = None,
    smooth: float = 1e-5,
    smooth_denominator: float | None = None,
    eps: float = 1e-7,
    power: int = 1,
    soft_label: bool = False,
    group: str = "sample",
    absent: str = "keep",
    weight: Tensor | None = None,
    include_background: bool = True,
    ignore_index: int | None = None,
    channel_dim: int = 1,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Dice loss plus focal loss, from one read of the logits.

    .. math:: \ell = \lambda_{dice} \, \text{Dice} + \lambda_{focal} \, \text{Focal}

    Dice as in :func:`dice_loss`. With a softmax Focal is the mean of :math:`-(1 - p_y)^\gamma \log p_y` over the pixels, labels divided by
    their weights; with a sigmoid the mean of :func:`sigmoid_focal_loss` over the elements.

    Args:
        gamma: focusing power, at least 0. Default: 2.
        lambda_dice: factor of the Dice loss. Default: 1.
        lambda_focal: factor of the focal loss. Default: 1.
        alpha: with a sigmoid: weight of the positives, :math:`1 - \alpha` of the negatives, in [0, 1]. Default: None, no weights.
        weight: (C,), a factor for each class in both losses; with ``group="image"`` or ``"all"`` in the focal loss only.
        activation: ``"softmax"`` over the channels or ``"sigmoid"``. Default: softmax, but sigmoid for one channel.

    Shape:
        the mean or sum: ``()``; without a reduction by `group`, the focal loss added to every entry.

    Source:
        Zhu et al. 2019 (AnatomyNet), equation 3; Lin et al. 2017, equation 5.

    Example:
        >>> import torch, fastloss
        >>> logits = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])
        >>> fastloss.functional.dice_focal_loss(logits, torch.tensor([[0, 1]]))
        tensor(0.0697)
    """
    if has_torch_function_variadic(input, target, weight):
        return overridden("dice_focal", locals(), (input, target, weight))
    name = "dice_focal_loss"
    given = locals()
    positive(name, "gamma", gamma, zero=True)
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise ValueError(f"{name}: alpha must be in [0, 1] or None, got {alpha}")

    def params(activation: str) -> tuple[float, ...]:
        if activation == "sigmoid":
            return -1.0 if alpha is None else float(alpha), float(gamma)
        if alpha is not None:
            raise ValueError(f"{name}: alpha is for activation='sigmoid'; with a softmax, weight={alpha!r} for each class")
        return (float(gamma),)

    return _with_pointwise(name, given, "focal", params, lambda_dice, lambda_focal)
