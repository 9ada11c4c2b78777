"""What losses of regions share: scores from the overlap engine's sums, what a score is taken over, and the words of their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import positive
from .overlap import STATISTICS, overlap_statistics

GROUPS = ("sample", "batch", "image", "all")
ABSENT = ("keep", "zero", "skip")

# What arguments mean that several losses take.
ARGUMENTS = {
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
    "(Wang et al. 2023). With ``power=2`` :math:`\\sum p t` is, and stays. Default: False.",
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
RAISES = """TypeError: an argument is not a Tensor.
NotImplementedError: `input` is not floating point.
ValueError: shapes do not fit, or an option is unknown or out of its range.
IndexError: a label is out of bounds (on CPU tensors).
RuntimeError: tensors are on several devices, or the backend cannot run here."""


def documented(function: Callable) -> Callable:
    """Write what :data:`ARGUMENTS` says of a function's arguments, and the errors, into its docstring."""
    text = inspect.cleandoc(function.__doc__)
    head, _, tail = text.partition("\nArgs:\n")
    own, _, tail = ("", "", tail[1:]) if tail.startswith("\n") else tail.partition("\n\n")
    written = {line.strip().partition(":")[0] for line in own.splitlines()}
    shared = {name: ARGUMENTS[name] for name in inspect.signature(function).parameters if name not in written}
    lines = [f"    {name}: " + about.replace("\n", "\n        ") for name, about in shared.items()]
    first = lines.index(next(line for line in lines if line.lstrip().startswith("target:"))) + 1
    arguments = "\n".join([*lines[:first], *([own] if own else []), *lines[first:]])
    raises = "    " + RAISES.replace("\n", "\n    ")
    function.__doc__ = f"{head}\nArgs:\n{arguments}\n\nRaises:\n{raises}\n\n{tail}"
    return function


def choice(name: str, argument: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


class Sums:
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
            choice(name, "activation", activation, allowed)
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
        choice(self.name, "group", group, GROUPS)
        over = {"sample": (), "batch": (0,), "image": (1,), "all": (0, 1)}[group]
        sums = self.chosen.sum(over) if over else self.chosen
        return dict(zip(STATISTICS, sums.unbind(-1)))


def ratio(
    sums: dict[str, Tensor],
    coefficients: tuple[float, float, float, float],
    smooth: float,
    smooth_denominator: float | None,
    eps: float,
    power: int,
    soft_label: bool,
    absent: str = "keep",
) -> Tensor:
    """(a I + smooth) / (b_0 I + b_1 P + b_2 T + smooth_denominator) for coefficients (a, b_0, b_1, b_2)."""
    if absent != "keep":  # what will not count must not make a NaN, nor one of a gradient
        present = sums["target"] > 0
        sums = {name: torch.where(present, value, 1.0) for name, value in sums.items()}
    squared = "_square" if power == 2 else ""
    predicted, there = sums["input" + squared], sums["target" + squared]
    shared = (predicted + there - sums["difference"]) / 2 if soft_label and power == 1 else sums["intersection"]
    a, b0, b1, b2 = coefficients
    denominator = b0 * shared + b1 * predicted + b2 * there + (smooth if smooth_denominator is None else smooth_denominator)
    return (a * shared + smooth) / (denominator.clamp_min(eps) if eps else denominator)


def reduce(
    name: str,
    losses: Tensor,
    sums: dict[str, Tensor],
    group: str,
    absent: str,
    weight: Tensor | None,
    include_background: bool,
    reduction: str,
) -> Tensor:
    choice(name, "absent", absent, ABSENT)
    choice(name, "reduction", reduction, ("none", "mean", "sum"))
    present = None if absent == "keep" else (sums["target"] > 0).to(losses.dtype)
    if weight is not None:
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name}: weight must be a Tensor or None, got {type(weight).__name__}")
        if group not in ("sample", "batch"):
            raise ValueError(f"{name}: weight needs scores of single classes, group='sample' or 'batch', got group={group!r}")
        losses = losses * class_weight(name, weight, losses.shape[-1], include_background).to(losses.dtype)
    losses = losses if present is None else torch.where(present > 0, losses, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if absent != "skip" else losses.sum() / present.sum().clamp_min(1.0)


def class_weight(name: str, weight: Tensor, classes: int, include_background: bool) -> Tensor:
    """The weights of the classes that count, which may have come with the background's."""
    chosen = weight if include_background or weight.shape == (classes,) else weight[1:]
    if chosen.shape != (classes,):
        raise ValueError(f"{name}: weight must have one number for each of {classes} classes, got shape {tuple(weight.shape)}")
    return chosen


@torch.no_grad()
def inverse_volume(volume: Tensor, power: int) -> Tensor:
    """One over the volume to a power; where that is infinite, the largest weight that is not in the last dimension."""
    if not volume.shape[-1]:
        return volume
    weight = volume**-power
    finite = weight.isfinite()
    weight = torch.where(finite, weight, 0.0)
    return torch.where(finite, weight, weight.amax(-1, keepdim=True))


def region_loss(name, coefficients, given, gamma: float = 1.0) -> Tensor:
    """(1 - score)^gamma, or -log score, of one of the overlap ratios for the arguments of a public function."""
    check_ratio(name, given)
    sums_of = Sums(name, given["input"], given["target"], given["activation"], None, lambda activation: (),
                    given["include_background"], given["ignore_index"], given["channel_dim"], given["backend"])
    sums = sums_of.grouped(given["group"])
    score = ratio(sums, coefficients, given["smooth"], given["smooth_denominator"], given["eps"], given.get("power", 1),
                  given.get("soft_label", False), given["absent"])
    losses = -torch.log(score.clamp_min(given["eps"])) if given.get("log") else power_of(1.0 - score, gamma)
    loss = reduce(name, losses, sums, given["group"], given["absent"], given["weight"], given["include_background"], given["reduction"])
    return loss.to(sums_of.dtype)


def check_ratio(name: str, given: dict) -> None:
    positive(name, "smooth", given["smooth"], zero=True)
    positive(name, "smooth_denominator", given["smooth_denominator"] or 0.0, zero=True)
    positive(name, "eps", given["eps"], zero=True)
    choice(name, "power", given.get("power", 1), (1, 2))


_NEAR_ZERO = 1e-6


def power_of(base: Tensor, gamma: float) -> Tensor:
    """base^gamma; below 1e-6 a straight line to 0, so that the gradient is finite for gamma < 1.

    A negative base counts as 0; down to -1e-6, where a rounding has made it negative, it keeps the line's slope.
    """
    if gamma == 1.0:
        return base
    line = (base - base.detach().clamp_max(0.0)) * _NEAR_ZERO ** (gamma - 1.0)
    power = torch.where(base > _NEAR_ZERO, base.clamp_min(_NEAR_ZERO) ** gamma, line)
    return torch.where(base < -_NEAR_ZERO, 0.0, power)


DICE, JACCARD = (2.0, 0.0, 1.0, 1.0), (1.0, -1.0, 1.0, 1.0)
