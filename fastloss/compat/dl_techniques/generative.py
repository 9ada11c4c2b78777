"""Losses of Wasserstein critics and generators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import _checks
from ... import functional as F
from ._loss import Loss, numbers

__all__ = [
    "WassersteinDivergence", "WassersteinGradientPenaltyLoss", "WassersteinLoss", "compute_gradient_penalty", "create_wgan_gp_losses",
    "create_wgan_losses",
]


class WassersteinLoss(Loss):
    """:func:`fastloss.functional.wasserstein_loss`: ``(1 - 2 y) f`` of the critic, y = 1 for real samples, ``-f`` of the generator.

    Args:
        for_critic: the critic's loss, else the generator's. Default: True.
        reduction, name, backend: as for :class:`Loss`.
    """

    def __init__(
        self, for_critic: bool = True, reduction: str | None = "sum_over_batch_size", name: str | None = None, *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.for_critic = for_critic

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A number for each score; the generator's do not depend on the truth."""
        return F.wasserstein_loss(y_pred, numbers(y_true, y_pred), self.for_critic, "none", backend=self.backend)


class WassersteinGradientPenaltyLoss(WassersteinLoss):
    """The same as :class:`WassersteinLoss`: the penalty is :func:`compute_gradient_penalty`, to be added.

    Args:
        for_critic: the critic's loss, else the generator's. Default: True.
        lambda_gp: kept for :func:`compute_gradient_penalty`; this loss does not depend on it. Default: 10.
        reduction, name, backend: as for :class:`Loss`.
    """

    def __init__(
        self, for_critic: bool = True, lambda_gp: float = 10.0, reduction: str | None = "sum_over_batch_size", name: str | None = None, *,
        backend: str | None = None,
    ) -> None:
        super().__init__(for_critic, reduction, name, backend=backend)
        self.lambda_gp = lambda_gp


class WassersteinDivergence(Loss):
    """:func:`fastloss.functional.wasserstein_divergence` of histograms.

    Args:
        smooth_eps: the least mass of a bin, positive. Default: 1e-7.
        reduction, name, backend: as for :class:`Loss`.
    """

    def __init__(
        self, smooth_eps: float = 1e-7, reduction: str | None = "sum_over_batch_size", name: str | None = None, *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        _checks.positive("WassersteinDivergence", "smooth_eps", smooth_eps)
        self.smooth_eps = smooth_eps

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """(...) distances of histograms (..., K)."""
        return F.wasserstein_divergence(y_pred, numbers(y_true, y_pred), self.smooth_eps, "none", backend=self.backend)


def compute_gradient_penalty(
    critic: Callable[[Tensor], Tensor], real_samples: Tensor, fake_samples: Tensor, lambda_gp: float = 10.0, *,
    alpha: Tensor | None = None, generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`fastloss.functional.compute_gradient_penalty`, with the norm over all but the first dimension.

    Args:
        critic: gives scores of samples.
        real_samples, fake_samples: (N, ...), of one shape.
        lambda_gp: factor of the penalty. Default: 10.
        alpha, generator: as of the function.
    """
    return F.compute_gradient_penalty(critic, real_samples, fake_samples, lambda_gp, alpha=alpha, generator=generator)


def create_wgan_losses(lambda_gp: float = 10.0) -> tuple[WassersteinLoss, WassersteinLoss]:
    """The losses of critic and generator; they do not depend on `lambda_gp`."""
    return WassersteinLoss(True), WassersteinLoss(False)


def create_wgan_gp_losses(lambda_gp: float = 10.0) -> tuple[WassersteinGradientPenaltyLoss, WassersteinGradientPenaltyLoss]:
    """The losses of critic and generator, beside which the critic needs :func:`compute_gradient_penalty`."""
    return WassersteinGradientPenaltyLoss(True, lambda_gp), WassersteinGradientPenaltyLoss(False, lambda_gp)
