"""Losses of representations: soft cluster assignments and aligned features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from ..elementwise import elementwise_loss
from ..engine import overridden
from ..plain import reduced, same_shape, widened
from ..registry import register

__all__ = ["clustering_loss", "feature_alignment_loss"]


@register(
    "plain", formula="w_d mean (p - t)^2 + w_u mean_k (mean_n p_nk - 1 / K)^2",
    source="Xie et al. 2016, section 3.1.2, with squared distances",
    operands={"input": "probability", "target": "probability"}, dims=(2, 2),
    params={"distance_weight": (0.1, 2.0), "distribution_weight": (0.1, 2.0)},
)
def clustering_loss(
    input: Tensor,
    target: Tensor,
    distance_weight: float = 1.0,
    distribution_weight: float = 0.5,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Distance of soft cluster assignments from wanted ones, and of the clusters' sizes from equal ones.

    .. math:: \ell_n = \frac{w_d}{K} \sum_k (p_{nk} - t_{nk})^2 + \frac{w_u}{K} \sum_k \left(\bar p_k - \tfrac{1}{K}\right)^2, \qquad
        \bar p_k = \frac{1}{N} \sum_n p_{nk}

    Args:
        input: assignments :math:`p`; float32, float64, bfloat16 or float16, any strides.
        target: wanted assignments :math:`t`, of `input`'s shape.
        distance_weight: :math:`w_d`, positive. Default: 1.
        distribution_weight: :math:`w_u`, positive. Default: 0.5.
        reduction: ``"none"``: a loss for each sample, all with the same second term; ``"mean"`` or ``"sum"`` over the samples.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: :math:`(N, K)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: shapes differ or are not :math:`(N, K)`; a weight is not positive and finite. Otherwise as
            :func:`fastloss.functional.mse_loss`.

    Source:
        Xie et al. 2016, section 3.1.2, with squared distances and a term for balance.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.clustering_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.6250)
    """
    if has_torch_function_variadic(input, target):
        return overridden("clustering", locals(), (input, target))
    name = "clustering"
    same_shape(name, {"input": input, "target": target})
    for argument, value in (("distance_weight", distance_weight), ("distribution_weight", distribution_weight)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: {argument} must be positive and finite, got {value}")
    dtype, (p, t) = widened(name, {"input": input, "target": target}, backend, reduction)
    if p.dim() != 2:
        raise ValueError(f"{name}: input must be (N, K), got {tuple(p.shape)}")
    distance = elementwise_loss("mse", (), (p, t, None), None, reduction, backend=backend, rows="mean")
    balance = (p.mean(0) - 1 / p.shape[1]).square().mean()
    balance = balance * len(p) if reduction == "sum" else balance
    return (distance_weight * distance + distribution_weight * balance).to(dtype)


@register(
    "plain", formula="1 - cos(x, t) where cos(x, t) <= margin, else 0", source="margin on the cosine of features",
    operands={"input": "real", "target": "real"}, params={"margin": (0.0, 1.0)},
)
def feature_alignment_loss(
    input: Tensor, target: Tensor, margin: float = 0.85, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Cosine distance of features that are not aligned yet.

    .. math:: \ell = \begin{cases} 1 - c & c \le \text{margin} \\ 0 & \text{otherwise} \end{cases}, \qquad
        c = \frac{x \cdot t}{\max(\|x\|, 10^{-12}) \max(\|t\|, 10^{-12})}

    The loss jumps at the margin, on purpose: aligned features are left alone.

    Args:
        input: features; float32, float64, bfloat16 or float16, any strides.
        target: features to align with, of `input`'s shape.
        margin: the cosine from which features are aligned, in [0, 1]. Default: 0.85.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: over all positions, aligned or not.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - input, target: :math:`(\dots, D)`
        - loss: scalar, or input's shape without its last dimension for ``reduction="none"``

    Raises:
        ValueError: shapes differ or have no dimension; `margin` is not in [0, 1]. Otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Margin on a cosine distance between features of two encoders; the cosine as torch.nn.functional.normalize.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.feature_alignment_loss(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 4.0]]), reduction="none")
        tensor([1., 0.])
    """
    if has_torch_function_variadic(input, target):
        return overridden("feature_alignment", locals(), (input, target))
    name = "feature_alignment"
    same_shape(name, {"input": input, "target": target})
    if not 0 <= margin <= 1:
        raise ValueError(f"{name}: margin must be in [0, 1], got {margin}")
    dtype, (x, t) = widened(name, {"input": input, "target": target}, backend, reduction)
    if not x.dim():
        raise ValueError(f"{name}: input must have a dimension of features, got a scalar")
    cosine = (torch.nn.functional.normalize(x, dim=-1) * torch.nn.functional.normalize(t.to(x.dtype), dim=-1)).sum(-1)
    return reduced(torch.where(cosine > margin, 0.0, 1 - cosine), reduction, dtype)
