"""Losses made of the metrics of a confusion matrix, with soft counts. On the `overlap` engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .._checks import positive
from ..engine import overridden
from ..overlap import STATISTICS, overlap_statistics
from ..registry import register

__all__ = ["anyloss", "soft_confusion_matrix"]

_TINY = 1e-7  # added to each soft count


def _rates(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor) -> tuple[Tensor, Tensor]:
    return tp / (tp + fn), tn / (tn + fp)


def _mcc(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor) -> Tensor:
    # Each factor under its own root: their product leaves float32 at a few thousand samples.
    return ((tp / (tp + fp).sqrt() / (tp + fn).sqrt()) * (tn / (tn + fp).sqrt() / (tn + fn).sqrt())
            - (fp / (tp + fp).sqrt() / (tp + fn).sqrt()) * (fn / (tn + fp).sqrt() / (tn + fn).sqrt()))


def _kappa(tp: Tensor, fn: Tensor, fp: Tensor, tn: Tensor) -> Tensor:
    n = tp + fn + fp + tn
    # (p_o - p_e) / (1 - p_e), without the difference of numbers that are nearly 1 when one class is all there is.
    return 1.0 - (fn + fp) / ((tp + fp) / n * (tn + fp) + (tp + fn) / n * (tn + fn))


# From the soft counts (TP, FN, FP, TN) and the options beta, alpha, gamma to a score in [0, 1].
_SCORES: dict[str, Callable[..., Tensor]] = {
    "accuracy": lambda tp, fn, fp, tn, **_: (tp + tn) / (tp + fn + fp + tn),
    "f1": lambda tp, fn, fp, tn, **_: 2 * tp / (2 * tp + fn + fp),
    "f_beta": lambda tp, fn, fp, tn, beta, **_: (1 + beta**2) * tp / ((1 + beta**2) * tp + beta**2 * fn + fp),
    "balanced_accuracy": lambda *counts, **_: sum(_rates(*counts)) / 2,
    "geometric_mean": lambda *counts, **_: _rates(*counts)[0].sqrt() * _rates(*counts)[1].sqrt(),
    "precision": lambda tp, fn, fp, tn, **_: tp / (tp + fp),
    "recall": lambda *counts, **_: _rates(*counts)[0],
    "specificity": lambda *counts, **_: _rates(*counts)[1],
    "youden_j": lambda *counts, **_: sum(_rates(*counts)) / 2,
    "mcc": lambda *counts, **_: (_mcc(*counts) + 1) / 2,
    "cohen_kappa": lambda *counts, **_: (_kappa(*counts) + 1) / 2,
    "iou": lambda tp, fn, fp, tn, **_: tp / (tp + fp + fn),
    "dice": lambda tp, fn, fp, tn, **_: 2 * tp / (2 * tp + fn + fp),
    "tversky": lambda tp, fn, fp, tn, alpha, tversky_beta, **_: tp / (tp + alpha * fp + tversky_beta * fn),
}
METRICS = (*_SCORES, "focal_tversky")


def _counts(
    name: str, input: Tensor, target: Tensor, amplifying_scale: float, from_logits: bool, backend: str | None
) -> tuple[tuple[Tensor, ...], torch.dtype]:
    """The soft counts, and the dtype of a loss of this input."""
    positive(name, "amplifying_scale", amplifying_scale)
    if isinstance(input, Tensor) and isinstance(target, Tensor):
        if input.shape != target.shape:
            raise ValueError(f"{name}: input of shape {tuple(input.shape)} and target of shape {tuple(target.shape)} must have one shape")
        input, target = input.reshape(1, 1, -1), target.reshape(1, 1, -1)
    functor = "amplified_sigmoid" if from_logits else "amplified"
    statistics, dtype = overlap_statistics(name, functor, (float(amplifying_scale),), input, target, None, backend)
    sums = dict(zip(STATISTICS, statistics[0, 0].unbind(-1)))
    both, predicted, there = sums["intersection"], sums["input"], sums["target"]
    # Differences of sums over the same elements first: without positives or negatives these are exactly 0.
    fn, fp = (there - both).clamp_min(0.0), (predicted - both).clamp_min(0.0)
    tn = ((sums["count"] - there) - fp).clamp_min(0.0)
    return tuple(count + _TINY for count in (both, fn, fp, tn)), dtype


def soft_confusion_matrix(
    input: Tensor, target: Tensor, amplifying_scale: float = 73.0, from_logits: bool = False, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The counts that :func:`anyloss` scores, for a metric of one's own: whatever is made of them has a gradient.

    .. math:: TP = \sum a t + \epsilon, \; FN = \sum (1 - a) t + \epsilon, \; FP = \sum a (1 - t) + \epsilon, \;
        TN = \sum (1 - a)(1 - t) + \epsilon, \quad a = \sigma(L (p - \tfrac12)), \; \epsilon = 10^{-7}

    Args:
        input: probabilities, or logits with `from_logits`; float32, float64, bfloat16 or float16, any shape.
        target: labels 0 and 1 of any integer dtype or bool, or numbers in [0, 1], of `input`'s shape.
        amplifying_scale: L, positive. Default: 73.
        from_logits: whether `input` is logits. Default: False.
        backend: as for :func:`anyloss`.

    Returns:
        TP, FN, FP and TN over all elements, in float32 (of float64 input in float64).

    Shape:
        four scalars.

    Raises:
        As :func:`anyloss`.

    Source:
        Han et al. 2024 (AnyLoss), equations 9 and 12.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> tp, fn, fp, tn = F.soft_confusion_matrix(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1, 0, 0]))
        >>> tp / (tp + fp)
        tensor(0.5000)
    """
    if has_torch_function_variadic(input, target):
        return handle_torch_function(
            soft_confusion_matrix, (input, target), input, target, amplifying_scale, from_logits, backend=backend
        )
    return _counts("soft_confusion_matrix", input, target, amplifying_scale, from_logits, backend)[0]


@register("overlap", formula="1 - metric(TP, FN, FP, TN) of a = sigmoid(L (p - 1/2))", source="Han et al. 2024, equations 9 and 12",
          name="any", params={"amplifying_scale": (1.0, 80.0)})
def anyloss(
    input: Tensor,
    target: Tensor,
    metric: str = "f1",
    *,
    amplifying_scale: float = 73.0,
    from_logits: bool = False,
    beta: float = 1.0,
    alpha: float | None = None,
    tversky_beta: float | None = None,
    gamma: float = 0.75,
    backend: str | None = None,
) -> Tensor:
    r"""One minus a metric of the confusion matrix, with soft counts instead of hard ones, so that it has a gradient.

    Probabilities are amplified towards 0 and 1, :math:`a = \sigma(L (p - \tfrac12))`, and counted over all elements,

    .. math:: TP = \sum a t + \epsilon, \; FN = \sum (1 - a) t + \epsilon, \; FP = \sum a (1 - t) + \epsilon, \;
        TN = \sum (1 - a)(1 - t) + \epsilon, \quad \epsilon = 10^{-7}

    ==========================================  ==========================================================
    metric                                      loss is 1 -
    ==========================================  ==========================================================
    ``accuracy``                                (TP + TN) / (TP + TN + FP + FN)
    ``f1``, ``dice``                            2 TP / (2 TP + FP + FN)
    ``f_beta``                                  (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP)
    ``balanced_accuracy``, ``youden_j``         (TPR + TNR) / 2
    ``geometric_mean``                          sqrt(TPR TNR)
    ``precision``, ``recall``, ``specificity``  TP / (TP + FP), TPR = TP / (TP + FN), TNR = TN / (TN + FP)
    ``mcc``, ``cohen_kappa``                    (Matthews' coefficient + 1) / 2, (Cohen's kappa + 1) / 2
    ``iou``                                     TP / (TP + FP + FN)
    ``tversky``                                 TP / (TP + alpha FP + beta FN)
    ``focal_tversky``                           the loss is (1 - tversky)^gamma
    ==========================================  ==========================================================

    The gradient vanishes for probabilities far from a half (with L = 73 beyond about 0.45): that is the amplification, not a defect.

    Args:
        input: probabilities, or logits with `from_logits`; float32, float64, bfloat16 or float16, any shape.
        target: labels 0 and 1 of any integer dtype or bool, or numbers in [0, 1], of `input`'s shape.
        metric: a name of the table. Default: ``"f1"``.
        amplifying_scale: L, positive. Default: 73.
        from_logits: whether `input` is logits. Default: False.
        beta: weight of recall in ``f_beta``, positive. Default: 1.
        alpha: price of false positives of ``tversky`` (default 0.5) and ``focal_tversky`` (default 0.7).
        tversky_beta: price of false negatives of ``tversky`` (default 0.5) and ``focal_tversky`` (default 0.3).
        gamma: the power of ``focal_tversky``, positive. Default: 0.75.
        backend: ``"auto"``, ``"eager"``, ``"cpu"``, ``"triton"`` or ``"cuda"``. Default: the one in force.

    Shape:
        ``()``.

    Raises:
        TypeError: an argument is not a Tensor.
        NotImplementedError: `input` is not floating point.
        ValueError: shapes differ, or an option is unknown or out of its range.
        IndexError: a label is neither 0 nor 1 (on CPU tensors).
        RuntimeError: tensors are on several devices, or the backend cannot run here.

    Source:
        Han et al. 2024 (AnyLoss), equations 9 and 12.

    Example:
        >>> import torch, fastloss
        >>> fastloss.functional.anyloss(torch.tensor([0.9, 0.2, 0.48]), torch.tensor([1, 0, 1]), metric="f1")
        tensor(0.2545)
    """
    if has_torch_function_variadic(input, target):
        return overridden("any", locals(), (input, target))
    name = "anyloss"
    if metric not in METRICS:
        raise ValueError(f"{name}: unknown metric {metric!r}; wanted one of {', '.join(METRICS)}")
    for option, value in (("beta", beta), ("gamma", gamma)):
        positive(name, option, value)
    for option, value in (("alpha", alpha), ("tversky_beta", tversky_beta)):
        positive(name, option, 0.0 if value is None else value, zero=True)
    counts, dtype = _counts(name, input, target, amplifying_scale, from_logits, backend)
    focal = metric == "focal_tversky"
    defaults = {"alpha": 0.7, "tversky_beta": 0.3} if focal else {"alpha": 0.5, "tversky_beta": 0.5}
    given = {"alpha": alpha, "tversky_beta": tversky_beta}
    prices = {price: defaults[price] if value is None else value for price, value in given.items()}
    loss = 1.0 - _SCORES["tversky" if focal else metric](*counts, beta=beta, **prices)
    if focal:
        loss = loss.clamp_min(1e-12) ** gamma
    return loss.to(dtype)
