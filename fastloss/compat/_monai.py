"""What MONAI's losses share: the classes that count, labels that stay labels, activations, and checks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from .. import _checks

_MASKED = -100  # marks pixels that a mask leaves out


def one_of(name: str, argument: str, value: object, allowed: tuple[str, ...]) -> str:
    """A string, or a member of one of MONAI's string enumerations."""
    value = getattr(value, "value", value)
    if value not in allowed:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


_REDUCTIONS = ("none", "mean", "sum")


def plain(tensor: Tensor) -> Tensor:
    """A MetaTensor without its metadata, since kernels run on plain tensors."""
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor


def not_negative(name: str, **factors: float) -> None:
    for argument, value in factors.items():
        _checks.positive(name, argument, value, zero=True)


def class_weight(name: str, weight: Tensor | None, classes: int, device: torch.device) -> Tensor | None:
    """(C,) factors for the classes that count; a single class has none."""
    if weight is None or classes == 1:
        return None
    if weight.dim() == 0:
        weight = weight.expand(classes)
    if weight.shape[0] != classes:
        raise ValueError(
            f"{name}: weight must have one number for each of the {classes} classes that count (without the background's where "
            f"include_background=False), got shape {tuple(weight.shape)}"
        )
    _checks.not_negative(name, "weight", weight)
    return weight.to(device)


class Classes(_Loss):
    """What all these losses do with their targets: the classes that count, and labels that stay labels."""

    mismatch: type[Exception] = AssertionError

    def __init__(self, include_background: bool, to_onehot_y: bool, reduction: str) -> None:
        super().__init__(reduction=one_of(type(self).__name__, "reduction", reduction, _REDUCTIONS))
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y

    def ignored(self, argument: str) -> None:
        _checks.warn(f"{type(self).__name__}: {argument} has no effect, since the prediction has a single channel")

    def targets(self, input: Tensor, target: Tensor, labels: bool | None = None) -> tuple[Tensor, bool, bool]:
        """(labels (N, d1, ...) or numbers of input's shape, whether they are labels, whether the background counts)"""
        name, single = type(self).__name__, input.shape[1] == 1
        labels, background = self.to_onehot_y if labels is None else labels, self.include_background
        if labels and single:
            self.ignored("to_onehot_y=True")
            labels = False
        if not background and single:
            self.ignored("include_background=False")
            background = True
        if labels:
            if target.dim() < 2:
                target = target.unsqueeze(1)
            if target.shape[1] != 1:
                raise AssertionError(f"{name}: with to_onehot_y=True expected target of one channel (N, 1, ...), got {tuple(target.shape)}")
        wanted = (input.shape[0], 1, *input.shape[2:]) if labels else tuple(input.shape)
        if tuple(target.shape) != wanted:
            got = tuple(target.shape)
            raise self.mismatch(f"{name}: expected target of shape {wanted} for input of shape {tuple(input.shape)}, got {got}")
        return (target[:, 0].long() if labels else target), labels, background


class Region(Classes):
    """What the losses over regions share: activations, smoothing, groups."""

    def __init__(
        self, include_background: bool, to_onehot_y: bool, sigmoid: bool, softmax: bool, other_act: Callable | None, reduction: str,
        smooth_nr: float, smooth_dr: float, batch: bool, soft_label: bool,
    ) -> None:
        super().__init__(include_background, to_onehot_y, reduction)
        name = type(self).__name__
        if other_act is not None and not callable(other_act):
            raise TypeError(f"{name}: other_act must be None or callable, got {type(other_act).__name__}")
        if int(sigmoid) + int(softmax) + int(other_act is not None) > 1:
            raise ValueError(f"{name}: at most one of sigmoid=True, softmax=True and other_act may be given")
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.soft_label = soft_label

    def prepare(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, labels: bool | None = None
    ) -> tuple[Tensor, Tensor, dict[str, object]]:
        """The tensors for a function of fastloss.functional, and the options that all of them take."""
        input, target = plain(input), plain(target)
        activation = "sigmoid" if self.sigmoid else "none"
        if self.softmax:
            if input.shape[1] == 1:
                self.ignored("softmax=True")
            else:
                activation = "softmax"
        if self.other_act is not None:
            input = plain(self.other_act(input))
        target, labels, background = self.targets(input, target, labels)
        if mask is not None:
            shape = (input.shape[0], 1, *input.shape[2:])
            kept = torch.broadcast_to(plain(mask) != 0, shape)
            dense = target if target.is_floating_point() else target.to(input.dtype)
            target = torch.where(kept[:, 0], target, _MASKED) if labels else torch.where(kept, dense, _MASKED)
        return input, target, {
            "activation": activation, "smooth": self.smooth_nr, "smooth_denominator": self.smooth_dr, "eps": 0.0,
            "soft_label": self.soft_label, "include_background": background, "ignore_index": None if mask is None else _MASKED,
            "reduction": self.reduction,
        }
