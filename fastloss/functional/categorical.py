"""Losses of given class probabilities, where there are no logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..engine import overridden
from ..plain import reduced, same_shape, widened
from ..registry import register

__all__ = ["categorical_focal_loss"]


@register(
    "plain", formula="-alpha sum_c t_c (1 - p_c)^gamma log p_c", source="Lin et al. 2017, equation 5, of probabilities",
    operands={"input": "probability", "target": "probability"}, params={"gamma": (0.0, 4.0), "alpha": (0.0, 1.0)},
    choices={"normalize": (False, True)},
)
def categorical_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 1.0,
    eps: float = 1e-7,
    normalize: bool = False,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Focal loss of class probabilities in the last dimension; with :math:`\gamma = 0` their cross-entropy.

    .. math:: \ell = -\alpha \sum_c t_c (1 - p_c)^\gamma \log p_c, \qquad p = \min(\max(p, \epsilon), 1 - \epsilon)

    A probability that is clamped has a gradient of 0. Where there are logits, :func:`fastloss.functional.softmax_focal_loss` is exact and
    faster.

    Args:
        input: probabilities :math:`p`; float32, float64, bfloat16 or float16, any strides.
        target: wanted probabilities :math:`t`, one-hot or soft, of `input`'s shape.
        gamma: focusing parameter, at least 0. Default: 2.
        alpha: a factor of all classes. Default: 1.
        eps: :math:`\epsilon` in (0, 1/2). Default: 1e-7.
        normalize: divide probabilities by their sum first. Default: False.
        reduction: ``"none"``: a loss for each row of probabilities; ``"mean"`` or ``"sum"`` over the rows.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - input, target: :math:`(\dots, C)`
        - loss: scalar, or input's shape without its last dimension for ``reduction="none"``

    Raises:
        ValueError: shapes differ or have no dimension; `gamma` is negative or `eps` not in (0, 1/2). Otherwise as
            :func:`fastloss.functional.mse_loss`.

    Source:
        Lin et al. 2017, equation 5, for several classes.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.categorical_focal_loss(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]))  # log 2 / 4
        tensor(0.1733)
    """
    if has_torch_function_variadic(input, target):
        return overridden("categorical_focal", locals(), (input, target))
    name = "categorical_focal"
    same_shape(name, {"input": input, "target": target})
    _checks.positive(name, "gamma", gamma, zero=True)
    if not 0 < eps < 0.5:
        raise ValueError(f"{name}: eps must be in (0, 1/2), got {eps}")
    dtype, (p, t) = widened(name, {"input": input, "target": target}, backend, reduction)
    if not p.dim():
        raise ValueError(f"{name}: input must have a dimension of classes, got a scalar")
    if normalize and p.numel():
        # The result does not depend on a row's scale: with a largest number of 1 neither the sum nor its reciprocal leaves the dtype.
        largest = p.detach().abs().amax(-1, keepdim=True)
        p = p / torch.where(largest > 0, largest, 1.0)
        p = p / p.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    p = p.clamp(eps, 1 - eps)
    values = t * p.log()
    if gamma:
        values = values * torch.exp(gamma * torch.log1p(-p))
    return reduced(-alpha * values.sum(-1), reduction, dtype)
