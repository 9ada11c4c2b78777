"""Losses that decorrelate features, with moments over the batches of all processes.

What is exchanged are sums over the rows: of the features, of their squares, and of their products, a D x D matrix. Means have no gradient
of their own: those of centred rows add up to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..engine import without_autocast
from ..functional.decorrelation import views_of
from .group import Group


def _agreed(name: str, group: object, z1: Tensor, z2: Tensor, options: dict[str, object], backend: str | None) -> tuple:
    """The processes, the dtype of the result, and the views in the dtype that sums are kept in."""
    together = Group(name, group)

    def check():
        for option in ("sim_coeff", "std_coeff", "cov_coeff", "lambd"):
            if option in options:
                _checks.positive(name, option, options[option], zero=True)
        _checks.positive(name, "eps", options["eps"])
        dtype, views, _ = views_of(name, z1, z2, backend, 0)
        about = {
            "features": z1.shape[1], "z1's dtype": z1.dtype, "z2's dtype": z2.dtype, "the options": options,
            "requires_grad": [z.requires_grad and torch.is_grad_enabled() for z in (z1, z2)],
        }
        return (dtype, views), about, (len(z1),)

    dtype, views = together.agree(check, z1)
    if together.count() < 2:
        raise ValueError(f"{name}: wanted at least 2 samples, since features of one have no variance, got {together.count()} in the group")
    return together, dtype, views


def _centred(together: Group, z: Tensor) -> Tensor:
    """Less the mean of each feature over all rows, exactly 0 where a feature is constant: what the rows differ from one by comes first."""
    first = z.new_zeros(z.shape[1]) if not len(z) else z[0].detach()
    origin = next(row for row, count in zip(together.gather(first), together.every()) if count)
    z = z - origin
    return z - together.all_reduce(z.detach().sum(0)) / together.count()


def _products(together: Group, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of ``x.T @ y`` over all rows, and the sum of the squares beside it."""
    with without_autocast(x.device):
        product = together.sum(x.t() @ y)
    return product.diagonal(), (product - torch.diag_embed(product.diagonal())).square().sum()


def vicreg(
    group: object, z1: Tensor, z2: Tensor, sim_coeff: float, std_coeff: float, cov_coeff: float, variance_target: float, eps: float,
    backend: str | None,
) -> Tensor:
    """:func:`fastloss.functional.vicreg_loss` over a group."""
    options = {
        "sim_coeff": sim_coeff, "std_coeff": std_coeff, "cov_coeff": cov_coeff, "variance_target": variance_target, "eps": eps
    }
    together, dtype, views = _agreed("vicreg", group, z1, z2, options, backend)
    count, features = together.count(), z1.shape[1]
    loss = sim_coeff * together.sum((views[0] - views[1]).square().sum()) / (count * features)
    for z in views:
        z = _centred(together, z)
        square, rest = _products(together, z, z)
        loss = loss + 0.5 * std_coeff * (variance_target - torch.sqrt(square / (count - 1) + eps)).clamp_min(0).mean()
        loss = loss + cov_coeff / features * rest / (count - 1) ** 2
    return loss.to(dtype)


def barlow_twins(
    group: object, z1: Tensor, z2: Tensor, lambd: float, deviation: str, eps: float, backend: str | None
) -> Tensor:
    """:func:`fastloss.functional.barlow_twins_loss` over a group."""
    options = {"lambd": lambd, "deviation": deviation, "eps": eps}
    together, dtype, views = _agreed("barlow_twins", group, z1, z2, options, backend)
    count = together.count()
    x, y = (_centred(together, z) for z in views)
    inverses = []
    for square in together.sum(torch.stack([x.square().sum(0), y.square().sum(0)])):
        if deviation == "biased":
            inverses.append(1 / torch.sqrt(square / count + eps))
        else:  # a constant feature has the slope 0, not that of a root at 0
            varies = square > 0
            inverses.append(1 / (torch.where(varies, torch.sqrt(torch.where(varies, square, 1.0) / (count - 1)), 0.0) + eps))
    with without_autocast(x.device):
        product = together.sum(x.t() @ y) * inverses[0].unsqueeze(1) * inverses[1] / count
    diagonal = product.diagonal()
    rest = (product - torch.diag_embed(diagonal)).square().sum()
    return ((1 - diagonal).square().sum() + lambd * rest).to(dtype)
