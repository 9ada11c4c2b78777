"""Regression losses relative to a scale that the data give: of a series' differences, or of a map's own spread."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..elementwise import elementwise_loss
from ..engine import overridden
from ..plain import same_shape, widened
from ..registry import register

__all__ = ["affine_invariant_loss", "mase_loss"]


def _naive_error(series: Tensor, period: int) -> Tensor:
    """Of each series (B, T, ...), the mean absolute difference to one period before; to one step before where it is too short, and the
    mean absolute value of a single step."""
    steps = series.shape[1] if series.dim() > 1 else 0
    lag = period if steps > period else 1
    if steps > lag:
        return (series[:, lag:] - series[:, :-lag]).abs().flatten(1).mean(1)
    return series.abs().reshape(series.shape[0] if series.dim() else 1, -1).mean(1)


@register(
    "plain", formula="|x - t| / max(mean |t_i - t_(i - m)|, eps)", source="Hyndman and Koehler 2006, section 3",
    operands={"input": "real", "target": "real"}, params={"eps": (1e-8, 1e-3)},
    choices={"seasonal_periods": (1, 2), "scale": ("batch", "series")},
)
def mase_loss(
    input: Tensor,
    target: Tensor,
    seasonal_periods: int = 1,
    eps: float = 1e-8,
    scale: str | Tensor = "batch",
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Absolute error in units of the error of the forecast that repeats the value of one period before.

    .. math:: \ell = \frac{|x - t|}{\max(D, \varepsilon)}, \qquad D = \operatorname{mean}_{i > m} |t_i - t_{i - m}|

    D carries no gradient to `input`. Of constant targets it is 0: the loss is the error over `eps`, 1e8 times as large as the error.

    Args:
        input: forecasts; float32, float64, bfloat16 or float16, any strides.
        target: true values, of `input`'s shape.
        seasonal_periods: :math:`m`, the length of a period, at least 1; 1 is used for series that are not longer. Default: 1.
        eps: the least scale, positive. Default: 1e-8.
        scale: ``"batch"``: one D, the mean over all series; ``"series"``: one for each; or a tensor of scales that broadcasts with
            `input`, such as those of the training data. Default: ``"batch"``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: :math:`(B, T, \dots)`; of :math:`(B)` and of T = 1 the scale is the mean of :math:`|t|`
        - loss: scalar, or input's shape for ``reduction="none"``

    Raises:
        ValueError: shapes differ; `seasonal_periods` is below 1, `eps` is not positive or `scale` is unknown. Otherwise as
            :func:`fastloss.functional.mse_loss`.

    Source:
        Hyndman and Koehler 2006, section 3; there D is that of the training series.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.mase_loss(torch.tensor([[2.0, 2.0, 5.0]]), torch.tensor([[1.0, 2.0, 4.0]]), reduction="none")
        tensor([[0.6667, 0.0000, 0.6667]])
    """
    if has_torch_function_variadic(input, target, scale):
        return overridden("mase", locals(), (input, target, scale))
    name = "mase"
    same_shape(name, {"input": input, "target": target})
    if seasonal_periods < 1:
        raise ValueError(f"{name}: seasonal_periods must be at least 1, got {seasonal_periods}")
    _checks.positive(name, "eps", eps)
    given = scale if isinstance(scale, Tensor) else None
    if given is None and scale not in ("batch", "series"):
        raise ValueError(f"{name}: scale must be 'batch', 'series' or a Tensor, got {scale!r}")
    dtype, (x, t, unit) = widened(name, {"input": input, "target": target, "scale": given}, backend, reduction)
    t = t.to(x.dtype)
    if unit is None:
        unit = _naive_error(t, seasonal_periods)
        unit = unit.mean() if scale == "batch" or not t.dim() else unit.reshape(-1, *[1] * (t.dim() - 1))
    unit = unit.clamp_min(eps)
    if not unit.dim() and not unit.requires_grad:
        return (elementwise_loss("l1", (), (x, t, None), None, reduction, backend=backend) / unit).to(dtype)
    return elementwise_loss("l1", (), (x, t, None), 1 / unit, reduction, backend=backend).to(dtype)


def _standardised(maps: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """(B, n) less the median of each row, over the mean distance from it; 0 where the mask is."""
    if mask is None:
        count = torch.full((len(maps), 1), maps.shape[1], device=maps.device)
        ordered = maps.sort(stable=True, dim=1).values
    else:
        count = mask.sum(1, keepdim=True)
        ordered = torch.where(mask, maps, torch.inf).sort(stable=True, dim=1).values
    last = maps.shape[1] - 1
    # Of an even number the mean of the two middle values; their gradients are halves.
    center = 0.5 * (ordered.gather(1, ((count - 1) // 2).clamp_min(0)) + ordered.gather(1, (count // 2).clamp_max(last)))
    distance = maps - center
    if mask is not None:
        distance = torch.where(mask, distance, 0.0)
    spread = distance.abs().sum(1, keepdim=True) / count
    return distance / spread.clamp_min(eps)


@register(
    "plain", formula="mean_i |n(x)_i - n(t)_i|, n(d) = (d - median d) / max(mean |d - median d|, eps)",
    source="Ranftl et al. 2020, equation 5", operands={"input": "real", "target": "real"}, params={"eps": (1e-6, 1e-2)}, dims=(2, 3),
    forward=("mask",),
)
def affine_invariant_loss(
    input: Tensor, target: Tensor, mask: Tensor | None = None, eps: float = 1e-6, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Absolute error between maps, whatever offset and scale each has: for depth that is known up to both.

    .. math:: \ell = \frac{1}{n} \sum_i |\hat x_i - \hat t_i|, \qquad \hat d = \frac{d - \operatorname{median} d}{\max(s, \varepsilon)}, \
        s = \frac{1}{n} \sum_i |d_i - \operatorname{median} d|

    The median of an even number of pixels is the mean of the two middle values. A constant map has s = 0, and gradients up to
    :math:`1 / \varepsilon`.

    Args:
        input: predicted maps; float32, float64, bfloat16 or float16, any strides.
        target: true maps, of `input`'s shape.
        mask: which pixels count, of `input`'s shape and dtype bool. Default: all.
        eps: the least scale, positive. Default: 1e-6.
        reduction: ``"none"``: a loss for each sample; ``"mean"`` or ``"sum"`` over the samples.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target, mask: :math:`(B, \dots)`
        - loss: scalar, or :math:`(B)` for ``reduction="none"``; 0 for a sample of which no pixel counts

    Raises:
        ValueError: shapes differ, a sample has no pixels, or `eps` is not positive. Otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Ranftl et al. 2020, equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.affine_invariant_loss(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 5.0, 9.0]]))
        tensor(0.)
    """
    if has_torch_function_variadic(input, target, mask):
        return overridden("affine_invariant", locals(), (input, target, mask))
    name = "affine_invariant"
    same_shape(name, {"input": input, "target": target, **({} if mask is None else {"mask": mask})})
    _checks.positive(name, "eps", eps)
    dtype, (x, t, counted) = widened(name, {"input": input, "target": target, "mask": mask}, backend, reduction)
    if x.dim() < 2 or not x[0].numel() and len(x):
        raise ValueError(f"{name}: input must be (B, ...) of samples with pixels, got {tuple(x.shape)}")
    if counted is None:
        maps = (_standardised(d.flatten(1), None, eps) for d in (x, t))
        return elementwise_loss("l1", (), (*maps, None), None, reduction, backend=backend, rows="mean").to(dtype)
    counted = counted.flatten(1).bool()
    count = counted.sum(1, keepdim=True).clamp_min(1)
    # A sample without pixels has neither median nor scale; its maps are replaced before any arithmetic.
    some = counted.any(1, keepdim=True)
    maps = (_standardised(torch.where(counted, d.flatten(1), 0.0), counted | ~some, eps) for d in (x, t))
    weight = counted.to(x.dtype) / count
    return elementwise_loss("l1", (), (*maps, None), weight, reduction, backend=backend, rows="sum").to(dtype)
