"""Losses made of the metrics of a confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import _checks
from ... import functional as F
from ._loss import Loss, fraction, numbers

__all__ = [
    "AccuracyLoss", "AnyLoss", "ApproximationFunction", "BalancedAccuracyLoss", "CohenKappaLoss", "DiceLoss", "F1Loss", "FBetaLoss",
    "FocalTverskyLoss", "GeometricMeanLoss", "IoULoss", "MCCLoss", "PrecisionLoss", "RecallLoss", "SpecificityLoss", "TverskyLoss",
    "WeightedCrossEntropyWithAnyLoss", "YoudenJLoss",
]


class ApproximationFunction(nn.Module):
    """Amplifies probabilities towards 0 and 1, ``sigmoid(L (p - 1/2))``.

    Args:
        amplifying_scale: L, positive. Default: 73.

    Raises:
        ValueError: `amplifying_scale` is not positive.
    """

    def __init__(self, amplifying_scale: float = 73.0) -> None:
        super().__init__()
        _checks.positive("ApproximationFunction", "amplifying_scale", amplifying_scale)
        self.amplifying_scale = amplifying_scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Amplified probabilities, of the shape of `inputs`."""
        return torch.sigmoid(self.amplifying_scale * (inputs - 0.5))


class AnyLoss(Loss):
    """One minus a metric of the soft confusion matrix of all elements; a class for each metric, and the base of one's own.

    A subclass has the name of a metric of :func:`fastloss.functional.anyloss`, or defines :meth:`Loss.call` with the counts that
    :meth:`compute_confusion_matrix` gives.

    Args:
        amplifying_scale: L, positive. Default: 73.
        from_logits: whether predictions are logits. Default: False.
        reduction, name, backend: as for :class:`Loss`.

    Raises:
        ValueError: `amplifying_scale` is not positive.
    """

    metric: str = ""

    def __init__(
        self, amplifying_scale: float = 73.0, from_logits: bool = False, reduction: str | None = "sum_over_batch_size",
        name: str | None = None, *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        _checks.positive(type(self).__name__, "amplifying_scale", amplifying_scale)
        self.amplifying_scale, self.from_logits = amplifying_scale, from_logits

    def compute_confusion_matrix(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The soft counts TN, FN, FP and TP over all elements; see :func:`fastloss.functional.soft_confusion_matrix`."""
        tp, fn, fp, tn = F.soft_confusion_matrix(y_pred, y_true, self.amplifying_scale, self.from_logits, backend=self.backend)
        return tn, fn, fp, tp

    def options(self) -> dict[str, float]:
        """The settings of the metric."""
        return {}

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of truth and predictions of one shape."""
        if not self.metric:
            raise NotImplementedError(f"{type(self).__name__} must define call(y_true, y_pred), or metric")
        scale, logits = self.amplifying_scale, self.from_logits
        return F.anyloss(
            y_pred, y_true, self.metric, amplifying_scale=scale, from_logits=logits, **self.options(), backend=self.backend
        )


def _of(name: str, metric: str, about: str) -> type[AnyLoss]:
    """The class of a metric that has no settings."""
    first = f'One minus {about}, of soft counts: :func:`fastloss.functional.anyloss` of ``"{metric}"``.'
    text = f"{first}\n\n    Arguments as for :class:`AnyLoss`."
    return type(name, (AnyLoss,), {"metric": metric, "__doc__": text, "__module__": __name__})


AccuracyLoss = _of("AccuracyLoss", "accuracy", "the accuracy")
F1Loss = _of("F1Loss", "f1", "the F1 score")
BalancedAccuracyLoss = _of("BalancedAccuracyLoss", "balanced_accuracy", "the balanced accuracy")
GeometricMeanLoss = _of("GeometricMeanLoss", "geometric_mean", "the geometric mean of recall and specificity")
PrecisionLoss = _of("PrecisionLoss", "precision", "the precision")
RecallLoss = _of("RecallLoss", "recall", "the recall")
SpecificityLoss = _of("SpecificityLoss", "specificity", "the specificity")
YoudenJLoss = _of("YoudenJLoss", "youden_j", "Youden's J, brought to [0, 1]")
MCCLoss = _of("MCCLoss", "mcc", "Matthews' correlation coefficient, brought to [0, 1]")
CohenKappaLoss = _of("CohenKappaLoss", "cohen_kappa", "Cohen's kappa, brought to [0, 1]")
IoULoss = _of("IoULoss", "iou", "the intersection over union")
DiceLoss = _of("DiceLoss", "dice", "the Dice coefficient, which is the F1 score")


class FBetaLoss(AnyLoss):
    """One minus the F-beta score, of soft counts.

    Args:
        beta: weight of recall, positive. Default: 1.
        amplifying_scale, from_logits, reduction, name, backend: as for :class:`AnyLoss`.

    Raises:
        ValueError: `beta` or `amplifying_scale` is not positive.
    """

    metric = "f_beta"

    def __init__(
        self, beta: float = 1.0, amplifying_scale: float = 73.0, from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size", name: str | None = None, *, backend: str | None = None,
    ) -> None:
        super().__init__(amplifying_scale, from_logits, reduction, name, backend=backend)
        _checks.positive("FBetaLoss", "beta", beta)
        self.beta = beta

    def options(self) -> dict[str, float]:
        """`beta`."""
        return {"beta": self.beta}


class TverskyLoss(AnyLoss):
    """One minus the Tversky index, of soft counts.

    Args:
        alpha: price of false positives, at least 0. Default: 0.5.
        beta: price of false negatives, at least 0. Default: 0.5.
        amplifying_scale, from_logits, reduction, name, backend: as for :class:`AnyLoss`.

    Raises:
        ValueError: a price is negative, or `amplifying_scale` is not positive.
    """

    metric = "tversky"

    def __init__(
        self, alpha: float = 0.5, beta: float = 0.5, amplifying_scale: float = 73.0, from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size", name: str | None = None, *, backend: str | None = None,
    ) -> None:
        super().__init__(amplifying_scale, from_logits, reduction, name, backend=backend)
        for argument, value in (("alpha", alpha), ("beta", beta)):
            _checks.positive(type(self).__name__, argument, value, zero=True)
        self.alpha, self.beta = alpha, beta

    def options(self) -> dict[str, float]:
        """The prices."""
        return {"alpha": self.alpha, "tversky_beta": self.beta}


class FocalTverskyLoss(TverskyLoss):
    """One minus the Tversky index, to a power, of soft counts.

    Args:
        alpha: price of false positives, at least 0. Default: 0.7.
        beta: price of false negatives, at least 0. Default: 0.3.
        gamma: the power, positive. Default: 0.75.
        amplifying_scale, from_logits, reduction, name, backend: as for :class:`AnyLoss`.

    Raises:
        ValueError: `gamma` is not positive; otherwise as :class:`TverskyLoss`.
    """

    metric = "focal_tversky"

    def __init__(
        self, alpha: float = 0.7, beta: float = 0.3, gamma: float = 0.75, amplifying_scale: float = 73.0, from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size", name: str | None = None, *, backend: str | None = None,
    ) -> None:
        super().__init__(alpha, beta, amplifying_scale, from_logits, reduction, name, backend=backend)
        _checks.positive("FocalTverskyLoss", "gamma", gamma)
        self.gamma = gamma

    def options(self) -> dict[str, float]:
        """The prices and the power."""
        return super().options() | {"gamma": self.gamma}


class WeightedCrossEntropyWithAnyLoss(AnyLoss):
    """A loss of a metric and the binary cross-entropy, ``alpha anyloss + (1 - alpha) BCE``.

    Args:
        anyloss: the loss of a metric, with a scale of its own.
        alpha: its weight, in [0, 1]. Default: 0.5.
        amplifying_scale: of :meth:`AnyLoss.compute_confusion_matrix`; the loss does not depend on it. Default: 73.
        from_logits: whether the cross-entropy is of logits, else of probabilities, clamped to [1e-7, 1 - 1e-7]. Default: False.
        reduction, name, backend: as for :class:`Loss`.

    Raises:
        TypeError: `anyloss` is not an :class:`AnyLoss`.
        ValueError: `alpha` is not in [0, 1].
    """

    def __init__(
        self, anyloss: AnyLoss, alpha: float = 0.5, amplifying_scale: float = 73.0, from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size", name: str | None = None, *, backend: str | None = None,
    ) -> None:
        if not isinstance(anyloss, AnyLoss):
            raise TypeError(f"WeightedCrossEntropyWithAnyLoss: anyloss must be an AnyLoss, got {type(anyloss).__name__}")
        super().__init__(amplifying_scale, from_logits, reduction, name, backend=backend)
        fraction("WeightedCrossEntropyWithAnyLoss", "alpha", alpha)
        self.anyloss, self.alpha = anyloss, alpha

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of truth and predictions of one shape."""
        truth = numbers(y_true, y_pred)
        if self.from_logits:
            cross_entropy = F.binary_cross_entropy_with_logits(y_pred, truth, backend=self.backend)
        else:
            cross_entropy = F.binary_cross_entropy(y_pred.clamp(1e-7, 1 - 1e-7), truth, backend=self.backend)
        return self.alpha * self.anyloss(y_true, y_pred) + (1 - self.alpha) * cross_entropy
