"""Losses between predicted and true real numbers, on the `elementwise` engine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..elementwise import elementwise_loss
from ..engine import overridden
from ..plain import widened
from ..registry import register

__all__ = [
    "cauchy_loss", "charbonnier_loss", "huber_loss", "l1_loss", "log_cosh_loss", "mape_loss", "mse_loss", "msle_loss", "quantile_loss",
    "smape_loss",
    "smooth_l1_loss", "wing_loss",
]

_SIGNLESS = {"input": "positive", "target": "positive"}


def _same_size(name: str, input: Tensor, weight: Tensor | None) -> None:
    if weight is not None and isinstance(weight, Tensor) and weight.shape != input.shape:
        raise ValueError(f"{name}: weight must have input's shape {tuple(input.shape)}, got {tuple(weight.shape)}")


@register(
    "elementwise", point=lambda input, target: (input - target) ** 2, formula="(x - t)^2", source="torch.nn.functional.mse_loss",
    torch="mse_loss",
)
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Squared error, :math:`\ell = w (x - t)^2`. Drop-in for :func:`torch.nn.functional.mse_loss`.

    Args:
        input: predictions; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`, with torch's warning where the sizes differ.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the elements, or over :math:`\sum w` where `weight` is given.
        weight: a factor for each element, of `input`'s shape. Default: 1.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: unknown reduction or backend; `weight` has another shape than `input`.
        RuntimeError: shapes do not broadcast, devices differ, or a backend that was asked for cannot run.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        torch.nn.functional.mse_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.mse_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        tensor(2.)
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    _checks.sizes_differ(input, target)
    _same_size("mse", input, weight)
    return elementwise_loss("mse", (), (input, target, None), weight, reduction, True, backend)


@register(
    "elementwise", point=lambda input, target: (input - target).abs(), formula="|x - t|", source="torch.nn.functional.l1_loss",
    torch="l1_loss",
)
def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Absolute error, :math:`\ell = w |x - t|`. Drop-in for :func:`torch.nn.functional.l1_loss`. The slope at 0 is 0.

    Args:
        input: predictions; real or complex.
        target: true values; broadcasts with `input`, with torch's warning where the sizes differ.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the elements, or over :math:`\sum w` where `weight` is given.
        weight: a factor for each element, of `input`'s shape. Default: 1.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`mse_loss`.

    Source:
        torch.nn.functional.l1_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.l1_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), reduction="none")
        tensor([0., 2.])
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    _checks.sizes_differ(input, target)
    _same_size("l1", input, weight)
    if isinstance(input, Tensor) and isinstance(target, Tensor) and (input.is_complex() or target.is_complex()):
        input = (input - target).abs()
        target = torch.zeros_like(input)
    return elementwise_loss("l1", (), (input, target, None), weight, reduction, True, backend)


def _smooth_l1(input: Tensor, target: Tensor, beta: float) -> Tensor:
    distance = (input - target).abs()
    return distance if beta == 0 else torch.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


@register(
    "elementwise", point=_smooth_l1, formula="(x - t)^2 / (2 beta) if |x - t| < beta else |x - t| - beta / 2",
    source="Girshick 2015, equation 3", params={"beta": (0.0, 3.0)}, torch="smooth_l1_loss",
)
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Absolute error that is rounded off below `beta`. Drop-in for :func:`torch.nn.functional.smooth_l1_loss`.

    .. math:: \ell = \begin{cases} (x - t)^2 / (2 \beta) & |x - t| < \beta \\ |x - t| - \beta / 2 & \text{otherwise} \end{cases}

    Args:
        input: predictions; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`, with torch's warning where the sizes differ.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        beta: where the parabola ends, at least 0; 0 gives :func:`l1_loss`. Default: 1.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        RuntimeError: `beta` is negative; otherwise as :func:`mse_loss`.

    Source:
        Girshick 2015, equation 3.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.smooth_l1_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 4.0]), reduction="none")
        tensor([0.1250, 1.5000])
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    _checks.sizes_differ(input, target)
    _checks.positive("smooth_l1", "beta", beta, zero=True, error=RuntimeError)
    return elementwise_loss("smooth_l1", (float(beta),), (input, target, None), None, reduction, backend=backend)


def _huber(input: Tensor, target: Tensor, delta: float) -> Tensor:
    distance = (input - target).abs()
    return torch.where(distance < delta, 0.5 * distance**2, delta * (distance - 0.5 * delta))


@register(
    "elementwise", point=_huber, formula="(x - t)^2 / 2 if |x - t| < delta else delta (|x - t| - delta / 2)", source="Huber 1964",
    params={"delta": (0.1, 3.0)}, torch="huber_loss",
)
def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Squared error within `delta`, absolute error beyond. Drop-in for :func:`torch.nn.functional.huber_loss`.

    .. math:: \ell = w \begin{cases} (x - t)^2 / 2 & |x - t| < \delta \\ \delta (|x - t| - \delta / 2) & \text{otherwise} \end{cases}

    Args:
        input: predictions; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`, with torch's warning where the sizes differ.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the elements, whatever their weights.
        delta: where the parabola ends, positive. Default: 1.
        weight: a factor for each element, of `input`'s shape. Default: 1.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        RuntimeError: `delta` is not positive; otherwise as :func:`mse_loss`.

    Source:
        Huber 1964.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.huber_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 4.0]), delta=0.5, reduction="none")
        tensor([0.1250, 0.8750])
    """
    _checks.sizes_differ(input, target)
    if not delta > 0:
        raise RuntimeError(f"huber: huber_loss does not support non-positive values for delta, got {delta}")
    _same_size("huber", input, weight)
    return elementwise_loss("huber", (float(delta),), (input, target, None), weight, reduction, backend=backend)


def _log_cosh(input: Tensor, target: Tensor) -> Tensor:
    distance = (input - target).abs()
    return distance - F.logsigmoid(2 * distance) - math.log(2)


@register("elementwise", point=_log_cosh, formula="log cosh(x - t)", source="Green 1990")
def log_cosh_loss(input: Tensor, target: Tensor, reduction: str = "mean", *, backend: str | None = None) -> Tensor:
    r"""Logarithm of the hyperbolic cosine of the error, :math:`\ell = \log \cosh(x - t)`: squared near 0, absolute far away.

    Never overflows, and small errors keep their relative accuracy.

    Args:
        input: predictions; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`mse_loss`.

    Source:
        Green 1990.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.log_cosh_loss(torch.tensor([0.0, 100.0]), torch.zeros(2), reduction="none")
        tensor([ 0.0000, 99.3069])
    """
    return elementwise_loss("log_cosh", (), (input, target, None), None, reduction, backend=backend)


def _quantile(input: Tensor, target: Tensor, *levels: Tensor | float) -> Tensor:
    tau = math.prod(levels)  # one for each element, if there are, times the parameter
    under = target - input
    return torch.maximum(tau * under, (tau - 1) * under)


@register(
    "elementwise", point=_quantile, formula="max(tau (t - x), (tau - 1) (t - x))", source="Koenker and Bassett 1978",
    params={"tau": (0.05, 0.95)},
)
def quantile_loss(
    input: Tensor,
    target: Tensor,
    tau: float | Sequence[float] = 0.5,
    reduction: str = "mean",
    *,
    normalize: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Pinball loss, whose minimum is the `tau`-quantile: :math:`\ell = \max(\tau (t - x), (\tau - 1)(t - x))`.

    At :math:`x = t` the two slopes count half each.

    Args:
        input: predicted quantiles; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`.
        tau: the quantile, in (0, 1), or several, along a last dimension that `input` has and `target` has not. Default: 0.5, half of
            :func:`l1_loss`.
        normalize: divide what belongs to a series (the last dimension of `target`) by its mean :math:`|t|`, where above 1. Default: False.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast, or :math:`(\dots, Q)` and :math:`(\dots)` for Q levels
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: `tau` is not in (0, 1), or `input` has another last dimension than there are levels; otherwise as :func:`mse_loss`.

    Source:
        Koenker and Bassett 1978.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.quantile_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), tau=0.75, reduction="none")
        tensor([0.7500, 0.2500])
    """
    if has_torch_function_variadic(input, target):
        return overridden("quantile", locals(), (input, target))
    several = not isinstance(tau, (int, float))
    if not all(0 < level < 1 for level in (tau if several else (tau,))):
        raise ValueError(f"quantile: tau must be in (0, 1), got {tau}")
    if not several and not normalize:
        return elementwise_loss("quantile", (float(tau),), (input, target, None), None, reduction, backend=backend)
    dtype, (x, t) = widened("quantile", {"input": input, "target": target}, backend, reduction)
    weight = levels = None
    if normalize:
        weight = 1 / t.detach().abs().mean(-1, keepdim=True).clamp_min(1)
    if several:
        if x.shape[-1:] != (len(tau),):
            raise ValueError(f"quantile: input must have a last dimension of {len(tau)}, one for each tau, got {tuple(x.shape)}")
        levels, t = x.new_tensor(tau), t.unsqueeze(-1)
        weight = None if weight is None else weight.unsqueeze(-1)
    return elementwise_loss("quantile", (1.0 if several else float(tau),), (x, t, levels), weight, reduction, backend=backend).to(dtype)


@register(
    "elementwise", point=lambda input, target, eps, scale: scale * (input - target).abs() / target.abs().clamp_min(eps),
    formula="scale |x - t| / max(|t|, eps)", source="Makridakis 1993", params={"eps": (1e-3, 1.0), "scale": (1.0, 100.0)},
)
def mape_loss(
    input: Tensor, target: Tensor, eps: float = 1e-7, scale: float = 100.0, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Absolute percentage error, :math:`\ell = \text{scale} \cdot |x - t| / \max(|t|, \varepsilon)`.

    Args:
        input: predictions; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`.
        eps: the least denominator, positive. Default: 1e-7.
        scale: 100 for per cent, 1 for a fraction. Default: 100.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: `eps` is not positive; otherwise as :func:`mse_loss`.

    Source:
        Makridakis 1993.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.mape_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        tensor(50.)
    """
    _checks.positive("mape", "eps", eps)
    return elementwise_loss("mape", (float(eps), float(scale)), (input, target, None), None, reduction, backend=backend)


def _smape(input: Tensor, target: Tensor, eps: float, scale: float) -> Tensor:
    return scale * (input - target).abs() / (0.5 * (input.abs() + target.abs())).clamp_min(eps)


@register(
    "elementwise", point=_smape, formula="scale |x - t| / max((|x| + |t|) / 2, eps)", source="Makridakis 1993",
    params={"eps": (1e-3, 1.0), "scale": (1.0, 100.0)},
)
def smape_loss(
    input: Tensor, target: Tensor, eps: float = 1e-8, scale: float = 100.0, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Symmetric absolute percentage error, in [0, 2 scale]:
    :math:`\ell = \text{scale} \cdot |x - t| / \max((|x| + |t|) / 2, \varepsilon)`.

    Args:
        input: predictions; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`.
        eps: the least denominator, positive. Default: 1e-8.
        scale: 100 for per cent, 1 for a fraction. Default: 100.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: `eps` is not positive; otherwise as :func:`mse_loss`.

    Source:
        Makridakis 1993.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.smape_loss(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]), reduction="none")
        tensor([100.,   0.])
    """
    _checks.positive("smape", "eps", eps)
    return elementwise_loss("smape", (float(eps), float(scale)), (input, target, None), None, reduction, backend=backend)


@register(
    "elementwise", point=lambda input, target: (torch.log1p(input) - torch.log1p(target)) ** 2, formula="(log(1 + x) - log(1 + t))^2",
    source="Keras, mean_squared_logarithmic_error", operands=_SIGNLESS,
)
def msle_loss(input: Tensor, target: Tensor, reduction: str = "mean", *, backend: str | None = None) -> Tensor:
    r"""Squared logarithmic error, :math:`\ell = (\log(1 + x) - \log(1 + t))^2`: relative errors of numbers that span decades.

    Args:
        input: predictions, larger than -1; float32, float64, bfloat16 or float16, any strides.
        target: true values, larger than -1; broadcasts with `input`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`mse_loss`. A number below -1 gives NaN.

    Source:
        Keras, mean_squared_logarithmic_error, without its clamp at 1e-7.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.msle_loss(torch.tensor([0.0]), torch.tensor([0.0]))
        tensor(0.)
    """
    return elementwise_loss("msle", (), (input, target, None), None, reduction, backend=backend)


@register(
    "elementwise", point=lambda input, target, eps: torch.sqrt((input - target) ** 2 + eps * eps), formula="sqrt((x - t)^2 + eps^2)",
    source="Charbonnier et al. 1994", params={"eps": (1e-2, 2.0)},
)
def charbonnier_loss(
    input: Tensor, target: Tensor, eps: float = 1e-3, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Absolute error with a rounded tip, :math:`\ell = \sqrt{(x - t)^2 + \varepsilon^2}`.

    Args:
        input: predictions; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`.
        eps: the value at :math:`x = t`, positive. Default: 1e-3.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: `eps` is not positive; otherwise as :func:`mse_loss`.

    Source:
        Charbonnier et al. 1994.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.charbonnier_loss(torch.tensor([3.0]), torch.tensor([0.0]), eps=4.0)
        tensor(5.)
    """
    _checks.positive("charbonnier", "eps", eps)
    return elementwise_loss("charbonnier", (float(eps),), (input, target, None), None, reduction, backend=backend)


def _cauchy(input: Tensor, target: Tensor, scale: float) -> Tensor:
    u = (input - target).abs() / scale
    far = u > 1e9  # where the square would overflow, and 1 + u^2 / 2 is u^2 / 2
    return torch.where(far, 2 * torch.log(torch.where(far, u, 1.0)) - math.log(2), torch.log1p(torch.where(far, 0.0, u) ** 2 / 2))


@register(
    "elementwise", point=_cauchy, formula="log(1 + ((x - t) / c)^2 / 2)", source="Barron 2019 with shape 0", params={"scale": (0.1, 5.0)}
)
def cauchy_loss(input: Tensor, target: Tensor, scale: float = 1.0, reduction: str = "mean", *, backend: str | None = None) -> Tensor:
    r"""Squared error for small differences, a logarithm for large ones, :math:`\ell = \log(1 + ((x - t) / c)^2 / 2)`.

    Args:
        input: predictions; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`.
        scale: :math:`c`, the difference from which on it grows slower than a line, positive, in the units of `input`. Default: 1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: `scale` is not positive; otherwise as :func:`mse_loss`.

    Source:
        Barron 2019 with shape 0; as an estimator Black and Anandan 1996.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.cauchy_loss(torch.tensor([2.0]), torch.tensor([0.0])).exp()
        tensor(3.)
    """
    _checks.positive("cauchy", "scale", scale)
    return elementwise_loss("cauchy", (float(scale),), (input, target, None), None, reduction, backend=backend)


def _wing(input: Tensor, target: Tensor, width: float, eps: float) -> Tensor:
    distance = (input - target).abs()
    shift = width - width * math.log1p(width / eps)
    return torch.where(distance < width, width * torch.log1p(distance / eps), distance - shift)


@register(
    "elementwise", point=_wing, formula="w log(1 + |x - t| / eps) if |x - t| < w else |x - t| - w + w log(1 + w / eps)",
    source="Feng et al. 2018, equation 5", params={"width": (0.5, 10.0), "eps": (0.5, 2.0)},
)
def wing_loss(
    input: Tensor, target: Tensor, width: float = 10.0, eps: float = 2.0, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Wing loss of landmark regression: steeper for small errors than for large ones.

    .. math:: \ell = \begin{cases} w \log(1 + |x - t| / \varepsilon) & |x - t| < w \\ |x - t| - w + w \log(1 + w / \varepsilon)
        & \text{otherwise} \end{cases}

    Args:
        input: predictions, in pixels; float32, float64, bfloat16 or float16, any strides.
        target: true values, in pixels; broadcasts with `input`.
        width: where the logarithm ends, in pixels, positive. Default: 10.
        eps: curvature of the logarithm, in pixels, positive. Default: 2.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: `width` or `eps` is not positive; otherwise as :func:`mse_loss`.

    Source:
        Feng et al. 2018, equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.wing_loss(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]), reduction="none")
        tensor([0.0000, 4.0547])
    """
    _checks.positive("wing", "width", width)
    _checks.positive("wing", "eps", eps)
    return elementwise_loss("wing", (float(width), float(eps)), (input, target, None), None, reduction, backend=backend)
