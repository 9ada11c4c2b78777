"""Losses of binary and multi-label classification and of ranking by margins, on the `elementwise` engine."""

from __future__ import annotations

import math

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
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "brier_loss", "brier_score_loss", "hinge_embedding_loss", "hinge_loss",
    "margin_ranking_loss", "sigmoid_focal_loss", "soft_margin_loss", "squared_hinge_loss",
]

_BINARY = {"input": "real", "target": "binary"}
_SIGNED = {"input": "real", "target": "sign"}


def _equal_sizes(name: str, input: Tensor, target: Tensor) -> None:
    if isinstance(input, Tensor) and isinstance(target, Tensor) and input.shape != target.shape:
        raise ValueError(f"{name}: Target size ({target.size()}) must be the same as input size ({input.size()})")


@register(
    "elementwise", point=lambda input, target: torch._C._nn.binary_cross_entropy(input, target, None, 0),
    formula="-w (t log x + (1 - t) log(1 - x))", source="torch.nn.functional.binary_cross_entropy", torch="binary_cross_entropy",
    operands={"input": "probability", "target": "binary"},
)
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of probabilities of the positive class, :math:`\ell = -w (t \log x + (1 - t) \log(1 - x))`.

    Drop-in for :func:`torch.nn.functional.binary_cross_entropy`; logarithms end at -100. For logits
    :func:`binary_cross_entropy_with_logits` is faster and more accurate.

    Args:
        input: probabilities in [0, 1]; float32, float64, bfloat16 or float16, any strides.
        target: labels or probabilities in [0, 1], of `input`'s shape.
        weight: a factor for each element; broadcasts to `target`. Default: 1.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the elements, whatever their weights.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any, the same
        - loss: scalar, or input's shape for ``reduction="none"``

    Raises:
        ValueError: sizes differ; unknown reduction or backend.
        RuntimeError: a number of `input` on the CPU is not in [0, 1]; otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        torch.nn.functional.binary_cross_entropy.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.binary_cross_entropy(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 1.0]), reduction="none")
        tensor([0.6931, 1.3863])
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    _equal_sizes("binary_cross_entropy", input, target)
    _checks.probabilities("binary_cross_entropy", input)
    if isinstance(weight, Tensor) and weight.shape != target.shape:
        weight = weight.expand(torch.broadcast_shapes(target.shape, weight.shape))
    return elementwise_loss("binary_cross_entropy", (), (input, target, None), weight, reduction, backend=backend)


def _bce_with_logits(input: Tensor, target: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    raised = 1.0 if pos_weight is None else 1 + (pos_weight - 1) * target
    return (1 - target) * input - raised * F.logsigmoid(input)


@register(
    "elementwise", point=_bce_with_logits, formula="-w (w_+ t log sigmoid(x) + (1 - t) log sigmoid(-x))",
    source="torch.nn.functional.binary_cross_entropy_with_logits", torch="binary_cross_entropy_with_logits",
    operands={**_BINARY, "pos_weight": "positive"}, optional=True,
)
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of logits of the positive class. Drop-in for :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    .. math:: \ell = -w \left(w_+ t \log \sigma(x) + (1 - t) \log(1 - \sigma(x))\right)

    Args:
        input: logits; float32, float64, bfloat16 or float16, any strides.
        target: labels or probabilities in [0, 1], of `input`'s shape.
        weight: a factor for each element; broadcasts to `input`. Default: 1.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the elements, whatever their weights.
        pos_weight: a factor of the positive part; broadcasts to `input`: one number a class for (N, C), (C, 1, 1) for images. Default: 1.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any, the same
        - loss: scalar, or input's shape for ``reduction="none"``

    Raises:
        ValueError: sizes differ; unknown reduction or backend. Otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        torch.nn.functional.binary_cross_entropy_with_logits.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.binary_cross_entropy_with_logits(torch.zeros(2), torch.ones(2), pos_weight=torch.tensor([1.0, 2.0]), reduction="none")
        tensor([0.6931, 1.3863])
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    _equal_sizes("binary_cross_entropy_with_logits", input, target)
    return elementwise_loss("binary_cross_entropy_with_logits", (), (input, target, pos_weight), weight, reduction, backend=backend)


def _focal_factor(input: Tensor, target: Tensor, gamma: float, threshold: float) -> Tensor | float:
    if gamma == 0:
        return 1.0
    log_p, log_q = F.logsigmoid(input), F.logsigmoid(-input)
    # Labels take a branch of their own, in which nothing is divided by 1 - p_t.
    hard = (target == 0) | (target == 1)
    miss = torch.where(hard, 0.5, target * log_q.exp() + (1 - target) * log_p.exp())
    log_miss = torch.where(hard, torch.where(target == 1, log_q, log_p), miss.log())
    if threshold <= 0:
        return torch.exp(gamma * log_miss)
    return torch.where(log_miss > math.log1p(-threshold), 1.0, torch.exp(gamma * (log_miss - math.log(threshold))))


def _sigmoid_focal(input: Tensor, target: Tensor, *rest: Tensor | float) -> Tensor:
    *each, alpha, gamma, threshold, constant = rest if len(rest) > 2 else (*rest, 0.0, 0.0)
    balance = alpha * each[0] if each else alpha
    loss = -(target * F.logsigmoid(input) + (1 - target) * F.logsigmoid(-input)) * _focal_factor(input, target, gamma, threshold)
    if alpha < 0:
        return loss
    return loss * balance if constant else loss * (balance * target + (1 - balance) * (1 - target))


@register(
    "elementwise", point=_sigmoid_focal, formula="alpha_t (1 - p_t)^gamma BCE(x, t), p = sigmoid(x)", source="Lin et al. 2017, equation 5",
    params={"alpha": (0.0, 1.0), "gamma": (0.0, 5.0)}, operands=_BINARY,
)
def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float | Tensor = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    weight: Tensor | None = None,
    alpha_mode: str = "balanced",
    reduced_threshold: float | None = None,
    normalized: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Focal loss of logits of the positive class: cross-entropy that well-classified elements hardly count in.

    .. math:: \ell = \alpha_t (1 - p_t)^\gamma \left(-t \log p - (1 - t) \log(1 - p)\right), \qquad p = \sigma(x),\
        p_t = t p + (1 - t)(1 - p),\ \alpha_t = t \alpha + (1 - t)(1 - \alpha)

    Value and gradient are finite for every :math:`\gamma \ge 0` and every finite logit. The gradient to a target of exactly 0 or 1
    leaves the factor :math:`(1 - p_t)^\gamma` out.

    Args:
        input: logits; float32, float64, bfloat16 or float16, any strides.
        target: labels or probabilities in [0, 1]; broadcasts with `input`.
        alpha: balance of the classes in [0, 1], or -1 for none; a tensor of balances, one a class, broadcasts with `input`. Default: 0.25.
        gamma: focusing parameter, at least 0. Default: 2.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. Default: ``"none"``, as in torchvision.
        weight: a factor for each element; broadcasts to `input`. A mean divides by the number of elements. Default: 1.
        alpha_mode: ``"balanced"`` for :math:`\alpha_t`, or ``"constant"`` for :math:`\alpha` whatever the label. Default: ``"balanced"``.
        reduced_threshold: :math:`\theta` in (0, 1): the factor is :math:`((1 - p_t) / \theta)^\gamma`, and 1 where
            :math:`p_t < \theta`. Default: None.
        normalized: divide by the sum of the factors of all elements, through which gradients flow too. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: `alpha` is neither -1 nor in [0, 1]; `gamma` is negative; `alpha_mode` is unknown; `reduced_threshold` is not in (0, 1).
            Otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Lin et al. 2017, equation 5; reduced: Sergievskiy and Ponamarev 2019, equation 3.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.sigmoid_focal_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor([0.1300, 0.0433])
    """
    if has_torch_function_variadic(input, target, alpha, weight):
        return overridden("sigmoid_focal", locals(), (input, target, alpha, weight))
    each = alpha if isinstance(alpha, Tensor) else None
    if each is None and not (alpha == -1 or 0 <= alpha <= 1):
        raise ValueError(f"sigmoid_focal: Invalid alpha value: {alpha}. alpha must be in the range [0,1] or -1 for ignore.")
    _checks.positive("sigmoid_focal", "gamma", gamma, zero=True)
    if alpha_mode not in ("balanced", "constant"):
        raise ValueError(f"sigmoid_focal: alpha_mode must be 'balanced' or 'constant', got {alpha_mode!r}")
    if reduced_threshold is not None and not 0 < reduced_threshold < 1:
        raise ValueError(f"sigmoid_focal: reduced_threshold must be in (0, 1) or None, got {reduced_threshold}")
    factor = dtype = None
    if normalized or (each is not None and isinstance(input, Tensor) and each.dtype != input.dtype):
        dtype, (input, target, each) = widened(
            "sigmoid_focal", {"input": input, "target": target, "alpha": each}, backend, reduction
        )
    if normalized:
        factor = _focal_factor(input, target, gamma, reduced_threshold or 0.0)
        factor = factor.sum() if isinstance(factor, Tensor) else torch.broadcast_shapes(input.shape, target.shape).numel()
    params = 1.0 if each is not None else float(alpha), float(gamma), reduced_threshold or 0.0, float(alpha_mode == "constant")
    loss = elementwise_loss("sigmoid_focal", params, (input, target, each), weight, reduction, backend=backend)
    loss = loss if factor is None else loss / factor
    return loss if dtype is None else loss.to(dtype)


def _brier(input: Tensor, target: Tensor, from_logits: float) -> Tensor:
    return ((torch.sigmoid(input) if from_logits else input) - target) ** 2


@register(
    "elementwise", point=_brier, formula="(p - t)^2, p = x or sigmoid(x)", source="Brier 1950", params={"from_logits": (False, True)},
    operands=_BINARY,
)
def brier_loss(
    input: Tensor, target: Tensor, from_logits: bool = False, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Brier score, :math:`\ell = (p - t)^2` with :math:`p = x` or :math:`p = \sigma(x)`: calibration and sharpness in one number.

    For one-hot targets of C classes this is the multi-class score divided by C.

    Args:
        input: probabilities, or logits with `from_logits`; float32, float64, bfloat16 or float16, any strides.
        target: labels or probabilities in [0, 1]; broadcasts with `input`.
        from_logits: whether `input` is logits. Default: False.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`fastloss.functional.mse_loss`.

    Source:
        Brier 1950.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.brier_loss(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0]))
        tensor(0.1250)
    """
    return elementwise_loss("brier", (float(from_logits),), (input, target, None), None, reduction, backend=backend)


brier_score_loss = brier_loss  # the score's usual name


@register(
    "elementwise", point=lambda input, target: (1 - target * input).clamp_min(0), formula="max(0, 1 - t x)",
    source="Cortes and Vapnik 1995", operands=_SIGNED,
)
def hinge_loss(input: Tensor, target: Tensor, reduction: str = "mean", *, backend: str | None = None) -> Tensor:
    r"""Hinge loss, :math:`\ell = \max(0, 1 - t x)`.

    Args:
        input: scores; float32, float64, bfloat16 or float16, any strides.
        target: labels, -1 or 1; broadcasts with `input`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`fastloss.functional.mse_loss`.

    Source:
        Cortes and Vapnik 1995.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.hinge_loss(torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 1.0]), reduction="none")
        tensor([1.5000, 0.0000])
    """
    return elementwise_loss("hinge", (), (input, target, None), None, reduction, backend=backend)


@register(
    "elementwise", point=lambda input, target: (1 - target * input).clamp_min(0) ** 2, formula="max(0, 1 - t x)^2",
    source="Cortes and Vapnik 1995", operands=_SIGNED,
)
def squared_hinge_loss(input: Tensor, target: Tensor, reduction: str = "mean", *, backend: str | None = None) -> Tensor:
    r"""Squared hinge loss, :math:`\ell = \max(0, 1 - t x)^2`.

    Args:
        input: scores; float32, float64, bfloat16 or float16, any strides.
        target: labels, -1 or 1; broadcasts with `input`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`fastloss.functional.mse_loss`.

    Source:
        Cortes and Vapnik 1995, with the square of the slack.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.squared_hinge_loss(torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 1.0]), reduction="none")
        tensor([2.2500, 0.0000])
    """
    return elementwise_loss("squared_hinge", (), (input, target, None), None, reduction, backend=backend)


def _hinge_embedding(input: Tensor, target: Tensor, margin: float) -> Tensor:
    return torch.where(target != -1, input, 0.0) + torch.where(target != 1, (margin - input).clamp_min(0), 0.0)


@register(
    "elementwise", point=_hinge_embedding, formula="x if t = 1, max(0, margin - x) if t = -1",
    source="torch.nn.functional.hinge_embedding_loss", params={"margin": (0.0, 3.0)}, operands=_SIGNED, torch="hinge_embedding_loss",
)
def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Distances of similar pairs, and what dissimilar ones lack to a margin. Drop-in for :func:`torch.nn.functional.hinge_embedding_loss`.

    .. math:: \ell = \begin{cases} x & t = 1 \\ \max(0, \text{margin} - x) & t = -1 \end{cases}

    Any other target gets both parts, as in torch.

    Args:
        input: distances; float32, float64, bfloat16 or float16, any strides.
        target: 1 for similar, -1 for dissimilar; broadcasts with `input`.
        margin: distance from which dissimilar pairs cost nothing. Default: 1.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`fastloss.functional.mse_loss`.

    Source:
        torch.nn.functional.hinge_embedding_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.hinge_embedding_loss(torch.tensor([0.25, 0.25]), torch.tensor([1.0, -1.0]), reduction="none")
        tensor([0.2500, 0.7500])
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    return elementwise_loss("hinge_embedding", (float(margin),), (input, target, None), None, reduction, backend=backend)


@register(
    "elementwise", point=lambda input, target: -F.logsigmoid(target * input), formula="log(1 + exp(-t x))",
    source="torch.nn.functional.soft_margin_loss", operands=_SIGNED, torch="soft_margin_loss",
)
def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Logistic loss, :math:`\ell = \log(1 + e^{-t x})`. Drop-in for :func:`torch.nn.functional.soft_margin_loss`, without its overflow.

    Args:
        input: logits; float32, float64, bfloat16 or float16, any strides.
        target: labels, -1 or 1; broadcasts with `input`.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`fastloss.functional.mse_loss`.

    Source:
        torch.nn.functional.soft_margin_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.soft_margin_loss(torch.tensor([0.0, 1000.0]), torch.tensor([1.0, -1.0]), reduction="none")
        tensor([6.9315e-01, 1.0000e+03])
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    return elementwise_loss("soft_margin", (), (input, target, None), None, reduction, backend=backend)


def _margin_ranking(input1: Tensor, input2: Tensor, target: Tensor, margin: float) -> Tensor:
    return (margin - target * (input1 - input2)).clamp_min(0)


@register(
    "elementwise", point=_margin_ranking, formula="max(0, margin - t (x_1 - x_2))", source="torch.nn.functional.margin_ranking_loss",
    params={"margin": (0.0, 3.0)}, operands={"input1": "real", "input2": "real", "target": "sign"}, torch="margin_ranking_loss",
)
def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""What two scores lack to their order, :math:`\ell = \max(0, \text{margin} - t (x_1 - x_2))`.

    Drop-in for :func:`torch.nn.functional.margin_ranking_loss`.

    Args:
        input1: first scores; float32, float64, bfloat16 or float16, any strides.
        input2: second scores; broadcasts with `input1`.
        target: 1 where the first should be larger, -1 where the second should; broadcasts with both.
        margin: by how much. Default: 0.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input1, input2, target: any that broadcast, of the same number of dimensions
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        RuntimeError: the numbers of dimensions differ; otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        torch.nn.functional.margin_ranking_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.margin_ranking_loss(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([1.0]), margin=0.5)
        tensor(2.5000)
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    tensors = (input1, input2, target)
    if all(isinstance(t, Tensor) for t in tensors) and len({t.dim() for t in tensors}) > 1:
        sizes = ", ".join(f"{name}: {t.size()}" for name, t in zip(("input1", "input2", "target"), tensors))
        raise RuntimeError(f"margin_ranking: All input tensors should have same dimension but got sizes: {sizes}")
    return elementwise_loss("margin_ranking", (float(margin),), tensors, None, reduction, backend=backend)
