"""Losses of numbers, time series, and depth maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ... import _checks
from ... import functional as F
from ._loss import Loss, fraction, numbers

__all__ = [
    "AffineInvariantLoss", "FeatureAlignmentLoss", "HuberLoss", "MASELoss", "MQLoss", "QuantileLoss", "SMAPELoss", "TabMLoss",
    "mase_metric", "smape_metric",
]


class HuberLoss(Loss):
    """:func:`fastloss.functional.huber_loss`, the mean over all elements.

    Args:
        delta: where the loss becomes linear, positive. Default: 1.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: `delta` is not positive.
    """

    def __init__(
        self, delta: float = 1.0, name: str | None = "huber_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        _checks.positive("HuberLoss", "delta", delta)
        self.delta = delta

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of truth and predictions of one shape."""
        return F.huber_loss(y_pred, numbers(y_true, y_pred), delta=self.delta, backend=self.backend)


class SMAPELoss(Loss):
    """:func:`fastloss.functional.smape_loss` in per cent, the mean over all elements.

    Args:
        epsilon: the least denominator, positive. Default: 1e-8.
        name, reduction, backend: as for :class:`Loss`.
    """

    def __init__(
        self, epsilon: float = 1e-8, name: str | None = "smape_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        _checks.positive("SMAPELoss", "epsilon", epsilon)
        self.epsilon = epsilon

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar in [0, 200]."""
        return F.smape_loss(y_pred, numbers(y_true, y_pred), self.epsilon, backend=self.backend)


def smape_metric(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """:class:`SMAPELoss` with its defaults, as a function."""
    return SMAPELoss()(y_true, y_pred)


class MASELoss(Loss):
    """:func:`fastloss.functional.mase_loss`, with one scale for the whole batch, which is that of its targets.

    Args:
        seasonal_periods: the length of a period, at least 1. Default: 1.
        epsilon: the least scale, positive; constant targets have this one. Default: 1e-8.
        name, reduction, backend: as for :class:`Loss`.
        scale: ``"series"`` for a scale of each series, or a tensor of scales, such as those of the training data. Default: ``"batch"``.

    Raises:
        ValueError: `seasonal_periods` is below 1 or `epsilon` not positive.
    """

    def __init__(
        self, seasonal_periods: int = 1, epsilon: float = 1e-8, name: str | None = "mase_loss",
        reduction: str | None = "sum_over_batch_size", *, scale: str | Tensor = "batch", backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        if seasonal_periods < 1:
            raise ValueError(f"MASELoss: seasonal_periods must be at least 1, got {seasonal_periods}")
        _checks.positive("MASELoss", "epsilon", epsilon)
        self.seasonal_periods, self.epsilon, self.scale = seasonal_periods, epsilon, scale

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of truth and forecasts (B, T, ...)."""
        return F.mase_loss(
            y_pred, numbers(y_true, y_pred), self.seasonal_periods, self.epsilon, self.scale, backend=self.backend
        )


def mase_metric(seasonal_periods: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
    """:class:`MASELoss` of this period, as a function of truth and forecasts."""
    loss = MASELoss(seasonal_periods)

    def metric(y_true: Tensor, y_pred: Tensor) -> Tensor:
        return loss(y_true, y_pred)

    metric.__name__ = f"mase_{seasonal_periods}"
    return metric


def _level(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name}: a quantile must be in (0, 1), got {value}")
    return value


class MQLoss(Loss):
    """:func:`fastloss.functional.quantile_loss` of one quantile, whatever its name says; :class:`QuantileLoss` is of several.

    Args:
        quantile: in (0, 1). Default: 0.5.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: `quantile` is not in (0, 1).
    """

    def __init__(
        self, quantile: float = 0.5, name: str | None = "mq_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.quantile = _level("MQLoss", quantile)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar."""
        return F.quantile_loss(y_pred, numbers(y_true, y_pred), self.quantile, backend=self.backend)


class QuantileLoss(Loss):
    """:func:`fastloss.functional.quantile_loss` of several quantiles, the mean over them and over all elements.

    Args:
        quantiles: each in (0, 1).
        normalize: divide each series by its mean absolute value, where above 1. Default: False.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: there are no quantiles, or one is not in (0, 1).
    """

    def __init__(
        self, quantiles: Sequence[float], normalize: bool = False, name: str | None = "quantile_loss",
        reduction: str | None = "sum_over_batch_size", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.quantiles, self.normalize = [_level("QuantileLoss", q) for q in quantiles], normalize
        if not self.quantiles:
            raise ValueError("QuantileLoss: wanted at least one quantile, got none")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of the truth (B, T) and a forecast of each quantile (B, T, Q)."""
        return F.quantile_loss(y_pred, numbers(y_true, y_pred), self.quantiles, normalize=self.normalize, backend=self.backend)


# Of predictions and truth (N, O): a loss for each row.
_BASE = {
    "mse": lambda x, t, **how: F.mse_loss(x, t, reduction="none", **how).mean(-1),
    "mae": lambda x, t, **how: F.l1_loss(x, t, reduction="none", **how).mean(-1),
    "binary_crossentropy": lambda x, t, **how: F.binary_cross_entropy(x.clamp(1e-7, 1 - 1e-7), t, reduction="none", **how).mean(-1),
    "categorical_crossentropy": lambda x, t, **how: F.categorical_focal_loss(x, t, 0.0, normalize=True, reduction="none", **how),
    "sparse_categorical_crossentropy": lambda x, t, **how: F.nll_loss(
        x.clamp(1e-7, 1 - 1e-7).log(), t.reshape(-1).long(), reduction="none", **how
    ),
}
_BASE |= {"mean_squared_error": _BASE["mse"], "mean_absolute_error": _BASE["mae"]}


class TabMLoss(Loss):
    """A loss of the members of an ensemble, each of which predicts every sample.

    Args:
        base_loss: ``"mse"``, ``"mae"``, or ``"binary_crossentropy"``, ``"categorical_crossentropy"`` or
            ``"sparse_categorical_crossentropy"`` of probabilities; or a :class:`Loss`, of which :meth:`Loss.call` is taken, or any
            function of truth and predictions. Default: ``"mse"``.
        share_training_batches: every member has every sample, and a sample's loss is the mean over the members; else each prediction has
            a sample of its own, and `y_true` as many rows as there are predictions. Default: True.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: unknown `base_loss`.
    """

    def __init__(
        self, base_loss: str | Loss | Callable[[Tensor, Tensor], Tensor] = "mse", share_training_batches: bool = True,
        name: str | None = "tabm_loss", reduction: str | None = "sum_over_batch_size", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        if not callable(base_loss) and base_loss not in _BASE:
            raise ValueError(f"TabMLoss: base_loss must be one of {', '.join(_BASE)} or a loss, got {base_loss!r}")
        self.base_loss, self.share_training_batches = base_loss, share_training_batches

    def _rows(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if callable(self.base_loss):
            return (self.base_loss.call if isinstance(self.base_loss, Loss) else self.base_loss)(y_true, y_pred)
        if not self.base_loss.startswith("sparse"):
            y_true = numbers(y_true, y_pred).reshape(y_pred.shape)
        return _BASE[self.base_loss](y_pred, y_true, backend=self.backend)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """(B) losses of the truth (B) or (B, O) and predictions (B, k, O) of k members; not shared (B k) of a truth of as many rows."""
        if y_pred.dim() != 3:
            raise ValueError(f"TabMLoss: y_pred must be (B, k, O), got {tuple(y_pred.shape)}")
        members = y_pred.shape[1]
        flat = y_pred.flatten(0, 1)
        if not self.share_training_batches:
            return self._rows(y_true, flat)
        rows = self._rows(y_true.repeat_interleave(members, 0), flat)
        return rows.unflatten(0, (-1, members)).mean(1) if rows.dim() else rows


class AffineInvariantLoss(Loss):
    """:func:`fastloss.functional.affine_invariant_loss`, the mean over the samples.

    Args:
        epsilon: the least scale, positive. Default: 1e-6.
        name, reduction, backend: as for :class:`Loss`.
    """

    def __init__(
        self, epsilon: float = 1e-6, name: str | None = "affine_invariant_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        _checks.positive("AffineInvariantLoss", "epsilon", epsilon)
        self.epsilon = epsilon

    def call(self, y_true: Tensor, y_pred: Tensor, mask: Tensor | None = None) -> Tensor:
        """A scalar, of maps (B, ...); `mask` says which pixels count."""
        return F.affine_invariant_loss(y_pred, numbers(y_true, y_pred), mask, self.epsilon, backend=self.backend)

    def forward(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of the pixels that count; without a mask as :meth:`Loss.forward`."""
        return super().forward(y_true, y_pred, sample_weight) if mask is None else self.call(y_true, y_pred, mask)


class FeatureAlignmentLoss(Loss):
    """:func:`fastloss.functional.feature_alignment_loss`, the mean over all positions.

    Args:
        margin: the cosine from which features are aligned, in [0, 1]. Default: 0.85.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: `margin` is not in [0, 1].
    """

    def __init__(
        self, margin: float = 0.85, name: str | None = "feature_alignment_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        fraction("FeatureAlignmentLoss", "margin", margin)
        self.margin = margin

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of features (..., D)."""
        return F.feature_alignment_loss(y_pred, y_true, self.margin, backend=self.backend)
