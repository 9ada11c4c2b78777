"""The contrastive losses of nexus.training.losses (``from fastloss.compat.nexus import InfoNCELoss``).

Classes, arguments, defaults and call order are nexus's. What differs: sums of exponentials do not overflow at small temperatures, and
:class:`VICRegLoss` and :class:`BarlowTwinsLoss` of a single sample raise instead of giving NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional as F
from ..pair import normalised

__all__ = ["BarlowTwinsLoss", "InfoNCELoss", "NTXentLoss", "SigmoidContrastiveLoss", "VICRegLoss"]


class InfoNCELoss(nn.Module):
    """nexus's ``InfoNCELoss``: :func:`fastloss.functional.info_nce_loss` with negatives that all anchors share.

    Args:
        temperature: positive. Default: 0.07.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, temperature: float = 0.07, *, backend: str | None = None) -> None:
        super().__init__()
        self.temperature, self.backend = temperature, backend

    def forward(self, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """The mean loss of anchors and positives (B, D) and negatives (N, D); 0 of none."""
        return F.info_nce_loss(anchors, positives, negatives, self.temperature, backend=self.backend)


class SigmoidContrastiveLoss(nn.Module):
    """nexus's ``SigmoidContrastiveLoss``: :func:`fastloss.functional.siglip_loss` of normalised features, a mean over all pairs.

    Args:
        temperature: positive; scores are cosines divided by it. Default: 0.1.
        bias: added to scores; where training starts from. Default: 0.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Attributes:
        bias: the parameter.
    """

    def __init__(self, temperature: float = 0.1, bias: float = 0.0, *, backend: str | None = None) -> None:
        super().__init__()
        self.temperature, self.backend = temperature, backend
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, features_a: Tensor, features_b: Tensor) -> Tensor:
        """The loss of features (B, D) of which each pair of rows belongs together."""
        a, b = normalised(features_a), normalised(features_b)
        loss = F.siglip_loss(a, b, 1 / self.temperature, self.bias, "mean", backend=self.backend)
        return loss.to(torch.promote_types(features_a.dtype, features_b.dtype))


class NTXentLoss(nn.Module):
    """nexus's ``NTXentLoss``: :func:`fastloss.functional.nt_xent_loss`.

    Args:
        temperature: positive. Default: 0.5.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, temperature: float = 0.5, *, backend: str | None = None) -> None:
        super().__init__()
        self.temperature, self.backend = temperature, backend

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The mean loss of two views (B, D)."""
        return F.nt_xent_loss(z1, z2, self.temperature, backend=self.backend)


class VICRegLoss(nn.Module):
    """nexus's ``VICRegLoss``: :func:`fastloss.functional.vicreg_loss` with the sum, not the mean, of both views' variance terms.

    Args:
        sim_coeff, std_coeff, cov_coeff: weights of the terms. Default: 25, 25, 1.
        variance_target: the wanted standard deviation. Default: 1.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(
        self, sim_coeff: float = 25.0, std_coeff: float = 25.0, cov_coeff: float = 1.0, variance_target: float = 1.0, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.sim_coeff, self.std_coeff, self.cov_coeff, self.variance_target = sim_coeff, std_coeff, cov_coeff, variance_target
        self.backend = backend

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views (B, D)."""
        return F.vicreg_loss(z1, z2, self.sim_coeff, 2 * self.std_coeff, self.cov_coeff, self.variance_target, backend=self.backend)


class BarlowTwinsLoss(nn.Module):
    """nexus's ``BarlowTwinsLoss``: :func:`fastloss.functional.barlow_twins_loss` with unbiased deviations plus 1e-4.

    Args:
        lambd: weight of the off-diagonal terms. Default: 0.005.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, lambd: float = 0.005, *, backend: str | None = None) -> None:
        super().__init__()
        self.lambd, self.backend = lambd, backend

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views (B, D)."""
        return F.barlow_twins_loss(z1, z2, self.lambd, "unbiased", backend=self.backend)
