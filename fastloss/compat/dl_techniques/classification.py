"""Calibration, capsules, and cross-entropies that weigh the entropy of predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import functional as F
from ...functional.calibration import moments, normal_score
from ._loss import Loss, fraction, numbers

__all__ = [
    "BrierScoreLoss", "BrierScoreMetric", "CapsuleMarginLoss", "CombinedCalibrationLoss", "DecoupledInformationLoss",
    "FocalUncertaintyLoss", "GoodhartAwareLoss", "SpiegelhalterZLoss", "SpiegelhalterZMetric", "analyze_decoupled_information_loss",
    "analyze_focal_uncertainty_loss", "analyze_loss_components", "analyze_margin_loss_components", "capsule_margin_loss",
]


class BrierScoreLoss(Loss):
    """:func:`fastloss.functional.brier_loss`, the mean over all elements; for one-hot targets the multi-class score divided by C.

    Args:
        from_logits: whether predictions are logits. Default: False.
        reduction, name, backend: as for :class:`Loss`.
    """

    def __init__(
        self, from_logits: bool = False, reduction: str | None = "sum_over_batch_size", name: str | None = None, *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.from_logits = from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of truth and predictions of one shape."""
        return F.brier_loss(y_pred, numbers(y_true, y_pred), self.from_logits, backend=self.backend)


class SpiegelhalterZLoss(Loss):
    """:func:`fastloss.functional.spiegelhalter_z_loss`.

    Args:
        use_squared: the square of the statistic, else its absolute value. Default: True.
        from_logits: whether predictions are logits. Default: False.
        reduction, name, backend: as for :class:`Loss`.
        variant: ``"classical"`` for Spiegelhalter's own statistic, which the original leaves the weights out of. Default: ``"source"``.
    """

    def __init__(
        self, use_squared: bool = True, from_logits: bool = False, reduction: str | None = "sum_over_batch_size",
        name: str | None = None, *, variant: str = "source", backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.use_squared, self.from_logits, self.variant = use_squared, from_logits, variant

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of truth and predictions of one shape."""
        return F.spiegelhalter_z_loss(y_pred, y_true, self.use_squared, self.from_logits, self.variant, backend=self.backend)


class CombinedCalibrationLoss(Loss):
    """:func:`fastloss.functional.calibration_loss`.

    Args:
        alpha: weight of the Brier score, in [0, 1]. Default: 0.5.
        use_squared_z: as `use_squared` of :class:`SpiegelhalterZLoss`. Default: True.
        from_logits: whether predictions are logits. Default: False.
        reduction, name, backend: as for :class:`Loss`.
        variant: as for :class:`SpiegelhalterZLoss`. Default: ``"source"``.

    Raises:
        ValueError: `alpha` is not in [0, 1].
    """

    def __init__(
        self, alpha: float = 0.5, use_squared_z: bool = True, from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size", name: str | None = None, *, variant: str = "source", backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        fraction("CombinedCalibrationLoss", "alpha", alpha)
        self.alpha, self.use_squared_z, self.from_logits, self.variant = alpha, use_squared_z, from_logits, variant

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of truth and predictions of one shape."""
        truth = numbers(y_true, y_pred)
        return F.calibration_loss(y_pred, truth, self.alpha, self.use_squared_z, self.from_logits, self.variant, backend=self.backend)


class _Metric(nn.Module):
    """Two sums over batches, of which a result is made."""

    def __init__(self, name: str, from_logits: bool) -> None:
        super().__init__()
        self.name, self.from_logits = name, from_logits
        self.register_buffer("first", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_buffer("second", torch.zeros((), dtype=torch.float64), persistent=False)

    def sums(self, y_true: Tensor, y_pred: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """What a batch adds to the sums."""
        raise NotImplementedError

    @torch.no_grad()
    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        """Take in a batch; weights multiply elements of the predictions, or samples where they have fewer dimensions."""
        y_pred = y_pred.double()
        if sample_weight is not None:
            sample_weight = sample_weight.double().reshape(sample_weight.shape + (1,) * (y_pred.dim() - sample_weight.dim()))
        for total, part in zip((self.first, self.second), self.sums(y_true.double(), y_pred, sample_weight)):
            total += part.to(total.device)

    @torch.no_grad()
    def reset_state(self) -> None:
        """Forget all batches."""
        self.first.zero_()
        self.second.zero_()

    def forward(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Take in a batch; gives the result over all of them."""
        self.update_state(y_true, y_pred, sample_weight)
        return self.result()


class BrierScoreMetric(_Metric):
    """The Brier score over batches: the sum of the squared errors, which weights multiply, over the number of elements.

    Args:
        name: a name to show. Default: ``"brier_score"``.
        from_logits: whether predictions are logits. Default: False.
    """

    def __init__(self, name: str = "brier_score", from_logits: bool = False) -> None:
        super().__init__(name, from_logits)

    def sums(self, y_true: Tensor, y_pred: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The squared errors, and the number of elements."""
        errors = F.brier_loss(y_pred, y_true, self.from_logits, "none")
        return (errors if weight is None else errors * weight).sum(), torch.tensor(float(errors.numel()))

    def result(self) -> Tensor:
        """The score; 0 before the first batch."""
        return torch.where(self.second > 0, self.first / self.second.clamp_min(1.0), 0.0)


class SpiegelhalterZMetric(_Metric):
    """Spiegelhalter's statistic over batches, with its sign.

    Args:
        name: a name to show. Default: ``"spiegelhalter_z"``.
        from_logits: whether predictions are logits. Default: False.
        variant: as for :class:`SpiegelhalterZLoss`. Default: ``"source"``.
    """

    def __init__(self, name: str = "spiegelhalter_z", from_logits: bool = False, *, variant: str = "source") -> None:
        super().__init__(name, from_logits)
        self.variant = variant

    def sums(self, y_true: Tensor, y_pred: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residuals, and their variance."""
        return moments(y_pred, y_true, self.from_logits, self.variant, weight)

    def result(self) -> Tensor:
        """The statistic; 0 where there is no variance."""
        return normal_score(self.first, self.second)


def capsule_margin_loss(
    y_pred: Tensor, y_true: Tensor, downweight: float, positive_margin: float, negative_margin: float, *, backend: str | None = None
) -> Tensor:
    """:func:`fastloss.functional.capsule_margin_loss` of each row, predictions first.

    Args:
        y_pred: lengths (..., C).
        y_true: 1 for the classes that are present, else 0, of as many dimensions.
        downweight, positive_margin, negative_margin: as for :class:`CapsuleMarginLoss`.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """
    return F.capsule_margin_loss(
        y_pred, numbers(y_true, y_pred), positive_margin, negative_margin, downweight, "none", backend=backend
    )


class CapsuleMarginLoss(Loss):
    """:func:`fastloss.functional.capsule_margin_loss`.

    Args:
        positive_margin: the length that capsules of present classes should reach. Default: 0.9.
        negative_margin: the length that others should not exceed. Default: 0.1.
        downweight: weight of absent classes, in (0, 1]. Default: 0.5.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: not 0 < `negative_margin` < `positive_margin` < 1, or not 0 < `downweight` <= 1. Warns of margins less than 0.3 apart
            and of a `downweight` below 0.1.
    """

    def __init__(
        self, positive_margin: float = 0.9, negative_margin: float = 0.1, downweight: float = 0.5,
        name: str | None = "capsule_margin_loss", reduction: str | None = "sum_over_batch_size", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        nothing = torch.zeros(1)  # the function checks the margins
        F.capsule_margin_loss(nothing, nothing, positive_margin, negative_margin, downweight, backend="eager")
        self.positive_margin, self.negative_margin, self.downweight = positive_margin, negative_margin, downweight

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """(...) losses of lengths (..., C)."""
        return capsule_margin_loss(
            y_pred, y_true, self.downweight, self.positive_margin, self.negative_margin, backend=self.backend
        )


def _shares(parts: dict[str, float], **names: str) -> dict[str, float]:
    """Of the total in per cent; 0 where the total is."""
    total = parts["total_loss"]
    return {name: 100 * parts[part] / total if total else 0.0 for name, part in names.items()}


def _as_numbers(parts: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in parts.items()}


def analyze_margin_loss_components(loss_fn: CapsuleMarginLoss, y_true: Tensor, y_pred: Tensor) -> dict[str, float]:
    """What a :class:`CapsuleMarginLoss` is made of: :func:`fastloss.functional.analyze_margin_loss_components`, as Python numbers.

    ``total_loss``, ``positive_loss`` and ``negative_loss`` are means over rows; ``positive_contrib_pct`` and ``negative_contrib_pct``
    shares of the total; ``avg_present_length`` and ``avg_absent_length``; ``present_below_margin`` and ``absent_above_margin`` count
    lengths that cost something; then the settings and ``margin_gap``.
    """
    settings = {name: getattr(loss_fn, name) for name in ("positive_margin", "negative_margin", "downweight")}
    found = _as_numbers(F.analyze_margin_loss_components(y_pred, y_true, **settings))
    found["avg_present_length"], found["avg_absent_length"] = found.pop("mean_present_length"), found.pop("mean_absent_length")
    found |= _shares(found, positive_contrib_pct="positive_loss", negative_contrib_pct="negative_loss")
    return found | settings | {"margin_gap": loss_fn.positive_margin - loss_fn.negative_margin}


class _Informed(Loss):
    """What the three losses below share: one-hot or soft targets, class indices too, and a loss for each sample."""

    settings: tuple[str, ...] = ()
    function = None

    def _set(self, label_smoothing: float, from_logits: bool, epsilon: float, **weights: float) -> None:
        name = type(self).__name__
        fraction(name, "label_smoothing", label_smoothing)
        for argument, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{name}: {argument} must be at least 0, got {value}")
            setattr(self, argument, value)
        if not epsilon > 0:
            raise ValueError(f"{name}: epsilon must be positive, got {epsilon}")
        self.label_smoothing, self.from_logits, self.epsilon = label_smoothing, from_logits, epsilon

    def options(self) -> dict[str, object]:
        """The arguments of the function that this loss is."""
        return {name: getattr(self, name) for name in (*self.settings, "label_smoothing", "from_logits")}

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """(N) losses of predictions (N, C), and of targets (N, C), or class indices (N)."""
        return type(self).function(y_pred, _target(y_true, y_pred), **self.options(), reduction="none", backend=self.backend)


def _target(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Class probabilities as numbers, class indices as they are."""
    return numbers(y_true, y_pred) if y_true.dim() == y_pred.dim() else y_true.long()


class DecoupledInformationLoss(_Informed):
    """:func:`fastloss.functional.decoupled_information_loss`.

    Args:
        uncertainty_weight: reward of the entropy of predictions. Default: 0.2.
        diversity_weight: reward of the entropy of their mean. Default: 0.01.
        label_smoothing: in [0, 1]. Default: 0.
        from_logits: whether predictions are logits. Default: True.
        epsilon: accepted; entropies are exact, with 0 log 0 = 0. Default: 1e-8.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: a weight is negative, `label_smoothing` not in [0, 1] or `epsilon` not positive.
    """

    settings = ("uncertainty_weight", "diversity_weight")
    function = staticmethod(F.decoupled_information_loss)

    def __init__(
        self, uncertainty_weight: float = 0.2, diversity_weight: float = 0.01, label_smoothing: float = 0.0, from_logits: bool = True,
        epsilon: float = 1e-8, name: str | None = "decoupled_information_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self._set(label_smoothing, from_logits, epsilon, uncertainty_weight=uncertainty_weight, diversity_weight=diversity_weight)


class FocalUncertaintyLoss(_Informed):
    """:func:`fastloss.functional.focal_uncertainty_loss`.

    Args:
        uncertainty_weight: reward of the entropy of predictions. Default: 0.2.
        alpha: factor of all classes, in [0, 1]. Default: 0.25.
        gamma: focusing parameter, at least 0. Default: 2.
        label_smoothing, from_logits, epsilon, name, reduction, backend: as for :class:`DecoupledInformationLoss`.

    Raises:
        ValueError: `alpha` is not in [0, 1]; otherwise as :class:`DecoupledInformationLoss`.
    """

    settings = ("uncertainty_weight", "alpha", "gamma")
    function = staticmethod(F.focal_uncertainty_loss)

    def __init__(
        self, uncertainty_weight: float = 0.2, alpha: float = 0.25, gamma: float = 2.0, label_smoothing: float = 0.0,
        from_logits: bool = True, epsilon: float = 1e-8, name: str | None = "focal_uncertainty_loss",
        reduction: str | None = "sum_over_batch_size", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        fraction("FocalUncertaintyLoss", "alpha", alpha)
        self._set(label_smoothing, from_logits, epsilon, uncertainty_weight=uncertainty_weight, alpha=alpha, gamma=gamma)


class GoodhartAwareLoss(_Informed):
    """:func:`fastloss.functional.goodhart_aware_loss`.

    Args:
        label_smoothing: in [0, 1]. Default: 0.
        entropy_weight: reward of the entropy of predictions. Default: 0.1.
        mi_weight: price of what predictions tell about their input. Default: 0.01.
        from_logits, epsilon, name, reduction, backend: as for :class:`DecoupledInformationLoss`.

    Raises:
        ValueError: as :class:`DecoupledInformationLoss`. Calls warn of an `entropy_weight` above 1 and of a `mi_weight` above 0.1.
    """

    settings = ("entropy_weight", "mi_weight")
    function = staticmethod(F.goodhart_aware_loss)

    def __init__(
        self, label_smoothing: float = 0.0, entropy_weight: float = 0.1, mi_weight: float = 0.01, from_logits: bool = True,
        epsilon: float = 1e-8, name: str | None = "goodhart_aware_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self._set(label_smoothing, from_logits, epsilon, entropy_weight=entropy_weight, mi_weight=mi_weight)


def analyze_decoupled_information_loss(loss_fn: DecoupledInformationLoss, y_true: Tensor, y_pred: Tensor) -> dict[str, float]:
    """:func:`fastloss.functional.analyze_decoupled_information_loss` of a loss, as Python numbers, with its weights."""
    found = F.analyze_decoupled_information_loss(y_pred, _target(y_true, y_pred), **loss_fn.options())
    return _as_numbers(found) | {name: getattr(loss_fn, name) for name in loss_fn.settings}


def analyze_focal_uncertainty_loss(loss_fn: FocalUncertaintyLoss, y_true: Tensor, y_pred: Tensor) -> dict[str, float]:
    """:func:`fastloss.functional.analyze_focal_uncertainty_loss` of a loss, as Python numbers, with its settings."""
    found = F.analyze_focal_uncertainty_loss(y_pred, _target(y_true, y_pred), **loss_fn.options())
    settings = {"uncertainty_weight": loss_fn.uncertainty_weight, "focal_alpha": loss_fn.alpha, "focal_gamma": loss_fn.gamma}
    return _as_numbers(found) | settings


def analyze_loss_components(loss_fn: GoodhartAwareLoss, y_true: Tensor, y_pred: Tensor) -> dict[str, float]:
    """:func:`fastloss.functional.analyze_goodhart_aware_loss` of a loss, as Python numbers, with its settings.

    ``ce_contrib_pct``, ``entropy_contrib_pct`` and ``mi_contrib_pct`` are the shares of the total.
    """
    found = _as_numbers(F.analyze_goodhart_aware_loss(y_pred, _target(y_true, y_pred), **loss_fn.options()))
    found |= _shares(
        found, ce_contrib_pct="cross_entropy", entropy_contrib_pct="entropy_term_weighted", mi_contrib_pct="mi_term_weighted"
    )
    return found | {name: getattr(loss_fn, name) for name in ("label_smoothing", *loss_fn.settings)}
