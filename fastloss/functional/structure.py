"""Losses of representations: soft cluster assignments and aligned features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from ..elementwise import elementwise_loss
from ..engine import overridden
from ..plain import reduced, same_shape, widened
from ..registry import register

__all__ = ["ClusteringMetrics", "clustering_loss", "clustering_metrics", "feature_alignment_loss"]


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


class ClusteringMetrics(NamedTuple):
    """What :func:`clustering_metrics` gives.

    Args:
        silhouette: the mean silhouette of the samples, in [-1, 1]; -1 where there is one cluster, or as many as samples.
        inertia: the sum of the squared distances of the samples from the means of their clusters.
        cluster_sizes: (K,) numbers of samples.
        cluster_distribution: (K,) shares of the samples.
        mean_distance: the mean distance of the samples from the means of their clusters.
    """

    silhouette: Tensor
    inertia: Tensor
    cluster_sizes: Tensor
    cluster_distribution: Tensor
    mean_distance: Tensor


_TABLE = 1 << 22  # distances held at once


def clustering_metrics(data: Tensor, assignments: Tensor) -> ClusteringMetrics:
    r"""How well samples are clustered: silhouette, inertia, sizes. Metrics on the samples' device, without gradients.

    A sample belongs to the cluster that it is assigned to most. With :math:`a_i` its mean distance to the others of its cluster and
    :math:`b_i` the least mean distance to another cluster, its silhouette is

    .. math:: s_i = \frac{b_i - a_i}{\max(a_i, b_i)}

    and 0 where it is alone in its cluster. Distances are computed for some rows at a time, so memory is :math:`O(N (D + K))`.

    Args:
        data: samples; float32, float64, bfloat16 or float16.
        assignments: to K clusters, soft or one-hot.

    Returns:
        A :class:`ClusteringMetrics` of tensors.

    Shape:
        - data: :math:`(N, D)`
        - assignments: :math:`(N, K)`

    Raises:
        ValueError: shapes do not fit. Otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Rousseeuw 1987, section 2; inertia: Lloyd 1982.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> found = F.clustering_metrics(torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> found.inertia, found.cluster_sizes
        (tensor(2.), tensor([2, 1]))
    """
    name = "clustering_metrics"
    for argument, tensor in (("data", data), ("assignments", assignments)):
        if isinstance(tensor, Tensor) and tensor.dim() != 2:
            raise ValueError(f"{name}: {argument} must have 2 dimensions, got {tuple(tensor.shape)}")
    with torch.no_grad():
        _, (x, weights) = widened(name, {"data": data, "assignments": assignments}, None)
        if len(x) != len(weights):
            raise ValueError(f"{name}: data and assignments must have as many rows, got {len(x)} and {len(weights)}")
        label = weights.argmax(1)
        member = torch.nn.functional.one_hot(label, weights.shape[1]).to(x.dtype)
        sizes = member.sum(0)
        means = member.t() @ x / sizes.clamp_min(1).unsqueeze(1)
        square = (x - means[label]).square().sum(1)
        used = (sizes > 0).sum()
        silhouette = _silhouettes(x, member, label, sizes).mean()
        valid = (used > 1) & (used < len(x))
        return ClusteringMetrics(
            torch.where(valid, silhouette, -1.0), square.sum(), sizes.long(), sizes / len(x), square.sqrt().mean()
        )


def _silhouettes(x: Tensor, member: Tensor, label: Tensor, sizes: Tensor) -> Tensor:
    rows = max(_TABLE // max(len(x), 1), 1)
    to_clusters = [torch.cdist(part, x, compute_mode="donot_use_mm_for_euclid_dist") @ member for part in x.split(rows)]
    total, own = torch.cat(to_clusters), label.unsqueeze(1)
    others = (sizes[label] - 1).clamp_min(1)
    near = total.gather(1, own).squeeze(1) / others
    elsewhere = torch.where(sizes > 0, total / sizes.clamp_min(1), torch.inf).scatter(1, own, torch.inf).amin(1)
    largest = torch.maximum(near, elsewhere)
    return torch.where((sizes[label] > 1) & (largest > 0), (elsewhere - near) / largest, 0.0)


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
