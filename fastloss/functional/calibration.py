"""Losses of calibrated probabilities, and weights for classes of unequal numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from ..elementwise import elementwise_loss
from ..engine import overridden
from ..plain import same_shape, widened
from ..registry import register

__all__ = ["calibration_loss", "class_balanced_weights", "spiegelhalter_z_loss", "spiegelhalter_z_statistic"]

_VARIANCE = 1e-7  # added to the variance, so that certain predictions have a statistic


def moments(
    input: Tensor, target: Tensor, from_logits: bool = False, variant: str = "source", weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of the residuals, and its variance if the predictions are true; both can be added up over batches."""
    target = target.to(input.dtype)
    p = torch.sigmoid(input) if from_logits else input
    q = torch.sigmoid(-input) if from_logits else 1 - input
    residual, variance = target - p, p * q
    if variant != "source":
        residual, variance = (q - p) * residual, (q - p) ** 2 * variance
    if weight is not None:
        residual, variance = residual * weight, variance * weight
    return residual.sum(), variance.sum()


def normal_score(residual: Tensor, variance: Tensor) -> Tensor:
    """The statistic of these moments; 0 where there is no variance."""
    return torch.where(variance == 0, 0.0, residual / (variance + _VARIANCE).sqrt())


def _statistic(input: Tensor, target: Tensor, from_logits: bool, variant: str, use_squared: bool) -> Tensor:
    residual, variance = moments(input, target, from_logits, variant)
    variance = variance + _VARIANCE
    return residual * residual / variance if use_squared else residual.abs() / variance.sqrt()


def _variant(name: str, variant: str) -> None:
    if variant not in ("source", "classical"):
        raise ValueError(f"{name}: variant must be 'source' or 'classical', got {variant!r}")


@register(
    "plain", formula="Z^2 or |Z|, Z = sum (t - p) / sqrt(sum p (1 - p) + 1e-7)", source="Spiegelhalter 1986, equation 5",
    operands={"input": "probability", "target": "binary"},
    choices={"use_squared": (True, False), "from_logits": (False, True), "variant": ("source", "classical")},
)
def spiegelhalter_z_loss(
    input: Tensor,
    target: Tensor,
    use_squared: bool = True,
    from_logits: bool = False,
    variant: str = "source",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""How surprising the outcomes are if the predicted probabilities were true, as a squared normal score.

    .. math:: \ell = Z^2 \text{ or } |Z|, \qquad Z = \frac{\sum_i w_i (t_i - p_i)}{\sqrt{\sum_i w_i^2 p_i (1 - p_i) + 10^{-7}}}

    with :math:`w_i = 1`, or :math:`w_i = 1 - 2 p_i` for Spiegelhalter's own statistic. Where all probabilities are 0 or 1 and one is
    wrong the value is huge, but finite.

    Args:
        input: probabilities, or logits with `from_logits`; float32, float64, bfloat16 or float16, any strides.
        target: labels or probabilities in [0, 1], of `input`'s shape.
        use_squared: :math:`Z^2`, else :math:`|Z|`. Default: True.
        from_logits: whether `input` is logits. Default: False.
        variant: ``"source"`` for :math:`w = 1`, or ``"classical"`` for :math:`w = 1 - 2p`. Default: ``"source"``.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - input, target: any, the same
        - loss: scalar

    Raises:
        ValueError: shapes differ; `variant` is unknown. Otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Spiegelhalter 1986, equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.spiegelhalter_z_loss(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]))
        tensor(2.0000)
    """
    if has_torch_function_variadic(input, target):
        return overridden("spiegelhalter_z", locals(), (input, target))
    name = "spiegelhalter_z"
    same_shape(name, {"input": input, "target": target})
    _variant(name, variant)
    dtype, (x, t) = widened(name, {"input": input, "target": target}, backend)
    return _statistic(x, t, from_logits, variant, use_squared).to(dtype)


@register(
    "plain", formula="alpha mean (p - t)^2 + (1 - alpha) Z^2", source="Brier 1950; Spiegelhalter 1986, equation 5",
    operands={"input": "probability", "target": "binary"}, params={"alpha": (0.0, 1.0)},
    choices={"use_squared_z": (True, False), "from_logits": (False, True), "variant": ("source", "classical")},
)
def calibration_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.5,
    use_squared_z: bool = True,
    from_logits: bool = False,
    variant: str = "source",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Brier score and Spiegelhalter's statistic together: :math:`\alpha \, \text{Brier} + (1 - \alpha) \, \ell_Z`.

    Args:
        input: probabilities, or logits with `from_logits`; float32, float64, bfloat16 or float16, any strides.
        target: labels or probabilities in [0, 1], of `input`'s shape.
        alpha: weight of :func:`fastloss.functional.brier_loss`, in [0, 1]. Default: 0.5.
        use_squared_z: as `use_squared` of :func:`spiegelhalter_z_loss`. Default: True.
        from_logits: whether `input` is logits. Default: False.
        variant: as for :func:`spiegelhalter_z_loss`. Default: ``"source"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any, the same
        - loss: scalar

    Raises:
        ValueError: `alpha` is not in [0, 1]; otherwise as :func:`spiegelhalter_z_loss`.

    Source:
        Brier 1950; Spiegelhalter 1986, equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.calibration_loss(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]))
        tensor(1.1250)
    """
    if has_torch_function_variadic(input, target):
        return overridden("calibration", locals(), (input, target))
    name = "calibration"
    same_shape(name, {"input": input, "target": target})
    _variant(name, variant)
    if not 0 <= alpha <= 1:
        raise ValueError(f"{name}: alpha must be in [0, 1], got {alpha}")
    dtype, (x, t) = widened(name, {"input": input, "target": target}, backend)
    brier = elementwise_loss("brier", (float(from_logits),), (x, t, None), backend=backend)
    return (alpha * brier + (1 - alpha) * _statistic(x, t, from_logits, variant, use_squared_z)).to(dtype)


def spiegelhalter_z_statistic(input: Tensor, target: Tensor, from_logits: bool = False, variant: str = "source") -> Tensor:
    r"""Spiegelhalter's statistic with its sign: positive where outcomes are more frequent than predicted. A metric, without a gradient.

    .. math:: Z = \frac{\sum_i w_i (t_i - p_i)}{\sqrt{\sum_i w_i^2 p_i (1 - p_i) + 10^{-7}}}

    with :math:`w` as in :func:`spiegelhalter_z_loss`. If the predictions are true it is a standard normal number, so that beyond 1.96
    calibration is rejected at 5 %.

    Args:
        input, target, from_logits, variant: as for :func:`spiegelhalter_z_loss`.

    Returns:
        A scalar in float32 (of float64 input in float64); 0 where all probabilities are 0 or 1.

    Shape:
        - input, target: any, the same

    Raises:
        As :func:`spiegelhalter_z_loss`.

    Source:
        Spiegelhalter 1986, equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.spiegelhalter_z_statistic(torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.0, 0.0, 0.0, 1.0]))
        tensor(-1.)
    """
    name = "spiegelhalter_z_statistic"
    same_shape(name, {"input": input, "target": target})
    _variant(name, variant)
    with torch.no_grad():
        _, (x, t) = widened(name, {"input": input, "target": target}, None)
        return normal_score(*moments(x, t, from_logits, variant))


def class_balanced_weights(counts: Tensor, beta: float = 0.999, normalize: str | None = "num_classes") -> Tensor:
    r"""Weights of classes by the number of samples that each really adds.

    .. math:: w_c = \frac{1 - \beta}{1 - \beta^{n_c}}

    Args:
        counts: number of samples :math:`n_c` of each class, of any dtype.
        beta: in [0, 1): 0 weights all classes alike, and towards 1 weights become :math:`1 / n_c`. 1 stands for that limit. Default: 0.999.
        normalize: ``"num_classes"`` to make the weights of the classes that have samples add up to their number, or None. Default:
            ``"num_classes"``.

    Returns:
        A float32 tensor of `counts`'s shape, computed in float64. A class without samples has weight 0.

    Raises:
        ValueError: `beta` is not in [0, 1], or `normalize` is unknown.
        TypeError: `counts` is not a tensor.

    Source:
        Cui et al. 2019, equation 2.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.class_balanced_weights(torch.tensor([1, 3, 0]), beta=1.0)
        tensor([1.5000, 0.5000, 0.0000])
    """
    name = "class_balanced_weights"
    if not isinstance(counts, Tensor):
        raise TypeError(f"{name}: counts must be a Tensor, got {type(counts).__name__}")
    if not 0 <= beta <= 1:
        raise ValueError(f"{name}: beta must be in [0, 1], got {beta}")
    if normalize not in ("num_classes", None):
        raise ValueError(f"{name}: normalize must be 'num_classes' or None, got {normalize!r}")
    n = counts.double()
    present = n > 0
    n = torch.where(present, n, 1.0)
    if beta == 0:
        weights = torch.ones_like(n)
    elif beta == 1:
        weights = 1 / n
    else:
        weights = (1 - beta) / -torch.expm1(n * math.log(beta))
    weights = torch.where(present, weights, 0.0)
    if normalize is not None:
        weights = weights * (present.sum() / weights.sum().clamp_min(torch.finfo(torch.float64).tiny))
    return weights.float()
