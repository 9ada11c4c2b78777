"""Losses that compare regions: how much of what was predicted and of what is there overlaps. On the `overlap` engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .._checks import positive
from ..engine import overridden
from ..overlap import STATISTICS, overlap_statistics
from ..registry import register

__all__ = [
    "dice_loss", "generalized_dice_loss", "jaccard_loss", "tversky_loss", "focal_tversky_loss", "dice_ce_loss", "dice_focal_loss",
]

GROUPS = ("sample", "batch", "image", "all")
ABSENT = ("keep", "zero", "skip")

# What arguments mean that several losses take.
_ARGUMENTS = {
    "input": "(N, C, d1, ...) logits, or probabilities with ``activation=\"none\"``; float32, float64, bfloat16 or float16, any strides.",
    "target": "labels (N, d1, ...) of any integer dtype in ``[0, C)``; or numbers of `input`'s shape, such as one-hot or soft targets, or\n"
    "several labels a pixel. With one channel, labels are 0 and 1, and may have `input`'s shape.",
    "activation": "how logits become probabilities: ``\"softmax\"`` over the channels, ``\"sigmoid\"``, or ``\"none\"``. Default:\n"
    "softmax, but sigmoid for one channel.",
    "smooth": "added to the numerator, and to the denominator unless `smooth_denominator` says otherwise.",
    "smooth_denominator": "added to the denominator. Default: `smooth`.",
    "eps": "what the denominator is at least; 0 leaves it as it is, and a score of nothing is then NaN.",
    "power": "1, or 2 to square probabilities and targets in the denominator (Milletari et al. 2016). Default: 1.",
    "soft_label": "take the intersection as :math:`(P + T - \\sum |p - t|) / 2`, which is largest at :math:`p = t` for soft targets too\n"
    "(Wang et al. 2023). Default: False.",
    "group": "what a score is taken over: ``\"sample\"``: each sample and class; ``\"batch\"``: each class over the whole batch;\n"
    "``\"image\"``: each sample over all classes; ``\"all\"``: everything. Default: ``\"sample\"``.",
    "absent": "of scores whose target is empty: ``\"keep\"`` them, count them as a loss of ``\"zero\"``, or ``\"skip\"`` them, which\n"
    "leaves them out of a mean too. Default: ``\"keep\"``.",
    "weight": "(C,), a factor for the loss of each class; for groups ``\"sample\"`` and ``\"batch\"``. A mean divides by the number of\n"
    "scores.",
    "include_background": "whether channel 0 counts. Default: True.",
    "ignore_index": "label of pixels, or number of elements of a dense target, that do not count: gradient 0. Default: None.",
    "log": "take :math:`-\\log(\\max(score, eps))` instead of :math:`1 - score`. Default: False.",
    "channel_dim": "where `input` has its channels; -1 for channels last. Default: 1.",
    "reduction": "``\"mean\"`` or ``\"sum\"`` of the scores' losses, or ``\"none\"``: (N, C), (C,), (N,) or () by\n"
    "`group`. Default: ``\"mean\"``.",
    "backend": "``\"auto\"``, ``\"eager\"``, ``\"cpu\"``, ``\"triton\"`` or ``\"cuda\"``. Default: the one in force.",
}
_RAISES = """TypeError: an argument is not a Tensor.
NotImplementedError: `input` is not floating point.
ValueError: shapes do not fit, or an option is unknown or out of its range.
IndexError: a label is out of bounds (on CPU tensors).
RuntimeError: tensors are on several devices, or the backend cannot run here."""


def _documented(function: Callable) -> Callable:
    """Write what :data:`_ARGUMENTS` says of a function's arguments, and the errors, into its docstring."""
    text = inspect.cleandoc(function.__doc__)
    head, _, tail = text.partition("\nArgs:\n")
    own, _, tail = ("", "", tail[1:]) if tail.startswith("\n") else tail.partition("\n\n")
    written = {line.strip().partition(":")[0] for line in own.splitlines()}
    shared = {name: _ARGUMENTS[name] for name in inspect.signature(function).parameters if name not in written}
    lines = [f"    {name}: " + about.replace("\n", "\n        ") for name, about in shared.items()]
    first = lines.index(next(line for line in lines if line.lstrip().startswith("target:"))) + 1
    arguments = "\n".join([*lines[:first], *([own] if own else []), *lines[first:]])
    raises = "    " + _RAISES.replace("\n", "\n    ")
    function.__doc__ = f"{head}\nArgs:\n{arguments}\n\nRaises:\n{raises}\n\n{tail}"
    return function


def _choice(name: str, argument: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


class _Sums:
    """The engine's statistics of a call by name, with what is common to the losses: layout, activation, background."""

    def __init__(self, name, input, target, activation, term, params, include_background, ignore_index, channel_dim, backend):
        if isinstance(input, Tensor) and isinstance(target, Tensor) and channel_dim != 1:
            if not -input.dim() <= channel_dim < input.dim():
                raise ValueError(f"{name}: channel_dim={channel_dim} is out of range for input of shape {tuple(input.shape)}")
            target = target.movedim(channel_dim, 1) if target.shape == input.shape else target
            input = input.movedim(channel_dim, 1)
        if activation is None and isinstance(input, Tensor) and input.dim() > 1:
            activation = "softmax" if input.shape[1] > 1 else "sigmoid"
        allowed = ("softmax", "sigmoid") if term else ("softmax", "sigmoid", "none")
        if activation is not None:
            _choice(name, "activation", activation, allowed)
        functor = f"{activation}_{term}" if term else activation
        self.name = name
        self.activation = activation
        self.all, self.dtype = overlap_statistics(name, functor, params(activation), input, target, ignore_index, backend)
        self.labels = not target.is_floating_point() and (target.dim() < input.dim() or input.shape[1] == 1)
        self.pixels = input[0, 0].numel() if input.numel() else 0
        background = not include_background and self.all.shape[1] > 1
        self.chosen = self.all[:, 1:] if background else self.all

    def grouped(self, group: str) -> dict[str, Tensor]:
        """The statistics by name, summed over what a score is taken over."""
        _choice(self.name, "group", group, GROUPS)
        over = {"sample": (), "batch": (0,), "image": (1,), "all": (0, 1)}[group]
        sums = self.chosen.sum(over) if over else self.chosen
        return dict(zip(STATISTICS, sums.unbind(-1)))


def _ratio(
    sums: dict[str, Tensor],
    coefficients: tuple[float, float, float, float],
    smooth: float,
    smooth_denominator: float | None,
    eps: float,
    power: int,
    soft_label: bool,
) -> Tensor:
    """(a I + smooth) / (b_0 I + b_1 P + b_2 T + smooth_denominator) for coefficients (a, b_0, b_1, b_2)."""
    squared = "_square" if power == 2 else ""
    predicted, there = sums["input" + squared], sums["target" + squared]
    shared = (predicted + there - sums["difference"]) / 2 if soft_label else sums["intersection"]
    a, b0, b1, b2 = coefficients
    denominator = b0 * shared + b1 * predicted + b2 * there + (smooth if smooth_denominator is None else smooth_denominator)
    return (a * shared + smooth) / (denominator.clamp_min(eps) if eps else denominator)


def _reduce(
    name: str,
    losses: Tensor,
    sums: dict[str, Tensor],
    group: str,
    absent: str,
    weight: Tensor | None,
    include_background: bool,
    reduction: str,
) -> Tensor:
    _choice(name, "absent", absent, ABSENT)
    _choice(name, "reduction", reduction, ("none", "mean", "sum"))
    present = None if absent == "keep" else (sums["target"] > 0).to(losses.dtype)
    if weight is not None:
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name}: weight must be a Tensor or None, got {type(weight).__name__}")
        if group not in ("sample", "batch"):
            raise ValueError(f"{name}: weight needs scores of single classes, group='sample' or 'batch', got group={group!r}")
        losses = losses * _class_weight(name, weight, losses.shape[-1], include_background).to(losses.dtype)
    losses = losses if present is None else losses * present
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if absent != "skip" else losses.sum() / present.sum().clamp_min(1.0)


def _class_weight(name: str, weight: Tensor, classes: int, include_background: bool) -> Tensor:
    """The weights of the classes that count, which may have come with the background's."""
    chosen = weight if include_background or weight.shape == (classes,) else weight[1:]
    if chosen.shape != (classes,):
        raise ValueError(f"{name}: weight must have one number for each of {classes} classes, got shape {tuple(weight.shape)}")
    return chosen


@torch.no_grad()
def _inverse_volume(volume: Tensor, power: int) -> Tensor:
    """One over the volume to a power; where that is infinite, the largest weight that is not in the last dimension."""
    if not volume.shape[-1]:
        return volume
    weight = volume**-power
    finite = weight.isfinite()
    weight = torch.where(finite, weight, 0.0)
    return torch.where(finite, weight, weight.amax(-1, keepdim=True))


def _region_loss(name, coefficients, given, gamma: float = 1.0) -> Tensor:
    """(1 - score)^gamma, or -log score, of one of the overlap ratios for the arguments of a public function."""
    _check_ratio(name, given)
    sums_of = _Sums(name, given["input"], given["target"], given["activation"], None, lambda activation: (),
                    given["include_background"], given["ignore_index"], given["channel_dim"], given["backend"])
    sums = sums_of.grouped(given["group"])
    score = _ratio(sums, coefficients, given["smooth"], given["smooth_denominator"], given["eps"], given.get("power", 1),
                   given.get("soft_label", False))
    losses = -torch.log(score.clamp_min(given["eps"])) if given.get("log") else _power(1.0 - score, gamma)
    loss = _reduce(name, losses, sums, given["group"], given["absent"], given["weight"], given["include_background"], given["reduction"])
    return loss.to(sums_of.dtype)


def _check_ratio(name: str, given: dict) -> None:
    positive(name, "smooth", given["smooth"], zero=True)
    positive(name, "smooth_denominator", given["smooth_denominator"] or 0.0, zero=True)
    positive(name, "eps", given["eps"], zero=True)
    _choice(name, "power", given.get("power", 1), (1, 2))


_NEAR_ZERO = 1e-6


def _power(base: Tensor, gamma: float) -> Tensor:
    """base^gamma; below 1e-6 a straight line to 0, so that the gradient is finite for gamma < 1."""
    if gamma == 1.0:
        return base
    return torch.where(base > _NEAR_ZERO, base.clamp_min(_NEAR_ZERO) ** gamma, base.clamp_min(0.0) * _NEAR_ZERO ** (gamma - 1.0))


_DICE, _JACCARD = (2.0, 0.0, 1.0, 1.0), (1.0, -1.0, 1.0, 1.0)


@register("overlap", formula="1 - (2 sum p t + s) / (sum p + sum t + s)", source="Milletari et al. 2016, equation of section 3")
@_documented
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
    return _region_loss("dice_loss", _DICE, locals())


@register("overlap", formula="1 - (sum p t + s) / (sum p + sum t - sum p t + s)", source="Rahman and Wang 2016, equation 3")
@_documented
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
    return _region_loss("jaccard_loss", _JACCARD, locals())


@register("overlap", formula="1 - (TP + s) / (TP + alpha FP + beta FN + s)", source="Salehi et al. 2017, equation 2",
          params={"alpha": (0.0, 1.0), "beta": (0.0, 1.0)})
@_documented
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
    return _region_loss("tversky_loss", _tversky("tversky_loss", alpha, beta), given)


def _tversky(name: str, alpha: float, beta: float) -> tuple[float, float, float, float]:
    positive(name, "alpha", alpha, zero=True)
    positive(name, "beta", beta, zero=True)
    return 1.0, 1.0 - alpha - beta, alpha, beta


@register("overlap", formula="(1 - (TP + s) / (TP + alpha FP + beta FN + s))^gamma", source="Abraham and Khan 2019, equation 4",
          params={"alpha": (0.0, 1.0), "beta": (0.0, 1.0), "gamma": (0.5, 2.0)})
@_documented
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
    return _region_loss("focal_tversky_loss", _tversky("focal_tversky_loss", alpha, beta), given, gamma)


@register("overlap", formula="1 - (2 sum_c w_c sum p t + s) / (sum_c w_c (sum p + sum t) + s)", source="Sudre et al. 2017, section 2.1")
@_documented
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
    _check_ratio(name, given)
    if given_weight is None:
        _choice(name, "class_weighting", class_weighting, ("square", "simple", "uniform"))
    sums_of = _Sums(name, input, target, activation, None, lambda activation: (), include_background, ignore_index, channel_dim, backend)
    sums = sums_of.grouped("batch" if batch else "sample")
    volume = sums["target"]
    if given_weight is None:
        weight = _inverse_volume(volume, {"square": 2, "simple": 1, "uniform": 0}[class_weighting])
    else:
        weight = _class_weight(name, given_weight, volume.shape[-1], include_background).to(volume.dtype)
    weighted = {}
    for key, value in sums.items():  # a comprehension would make a cell of `weight`, which Dynamo cannot see in locals() above
        weighted[key] = (weight * value).sum(-1)
    losses = 1.0 - _ratio(weighted, _DICE, smooth, smooth_denominator, eps, 1, soft_label)
    return _reduce(name, losses, weighted, "image", "keep", None, include_background, reduction).to(sums_of.dtype)


def _cross_entropy_part(sums_of: _Sums, weight: Tensor | None) -> Tensor:
    """The mean cross-entropy over all channels, from the pointwise sums: torch's, with its divisors."""
    sums = dict(zip(STATISTICS, sums_of.all.sum(0).unbind(-1)))
    loss, there = sums["loss"], sums["target"]
    if weight is not None:
        loss, there = loss * weight.to(loss.dtype), there * weight.to(loss.dtype)
    if sums_of.activation == "sigmoid":
        return loss.sum() / sums["count"].sum()
    return loss.sum() / (there.sum() if sums_of.labels else sums["count"].sum() / sums_of.all.shape[1])


@register("overlap", formula="lambda_dice Dice + lambda_ce CE", source="Isensee et al. 2021, equation 1",
          params={"lambda_dice": (0.0, 2.0), "lambda_ce": (0.0, 2.0)})
@_documented
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


def _with_pointwise(name: str, given: dict, term: str, params: Callable, lambda_dice: float, lambda_term: float) -> Tensor:
    """lambda_dice Dice + lambda_term times the mean of a pointwise loss."""
    _check_ratio(name, given)
    weight, group = given["weight"], given["group"]
    sums_of = _Sums(name, given["input"], given["target"], given["activation"], term, params, given["include_background"],
                    given["ignore_index"], given["channel_dim"], given["backend"])
    classes = sums_of.all.shape[1]
    if isinstance(weight, Tensor) and weight.shape != (classes,):
        raise ValueError(f"{name}: weight must have one number for each of {classes} classes, got shape {tuple(weight.shape)}")
    sums = sums_of.grouped(group)
    score = _ratio(sums, _DICE, given["smooth"], given["smooth_denominator"], given["eps"], given["power"], given["soft_label"])
    by_class = weight if group in ("sample", "batch") or not isinstance(weight, Tensor) else None
    dice = _reduce(name, 1.0 - score, sums, group, given["absent"], by_class, given["include_background"], given["reduction"])
    return (lambda_dice * dice + lambda_term * _cross_entropy_part(sums_of, weight)).to(sums_of.dtype)


@register("overlap", formula="lambda_dice Dice + lambda_focal Focal", source="Zhu et al. 2019, equation 3",
          params={"gamma": (0.0, 3.0), "lambda_dice": (0.0, 2.0), "lambda_focal": (0.0, 2.0)})
@_documented
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
