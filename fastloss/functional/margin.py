"""Losses of classes against each other, by margins between their scores, and of several labels a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..elementwise import elementwise_loss
from ..engine import overridden
from ..margin import margin_loss
from ..plain import checked, widened
from ..registry import register
from .binary import _bce_with_logits

__all__ = [
    "analyze_margin_loss_components", "capsule_margin_loss", "multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss",
]


@register(
    "elementwise", point=_bce_with_logits, formula="mean_c -w_c (t log sigmoid(x) + (1 - t) log sigmoid(-x))",
    source="torch.nn.functional.multilabel_soft_margin_loss", torch="multilabel_soft_margin_loss", rows="mean",
    operands={"input": "real", "target": "binary"}, functor="binary_cross_entropy_with_logits",
)
def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Mean over the classes of the cross-entropy of each. Drop-in for :func:`torch.nn.functional.multilabel_soft_margin_loss`.

    .. math:: \ell = -\frac{1}{C} \sum_c w_c \left(t_c \log \sigma(x_c) + (1 - t_c) \log \sigma(-x_c)\right)

    Args:
        input: logits; float32, float64, bfloat16 or float16, any strides.
        target: labels or probabilities in [0, 1]; broadcasts with `input`.
        weight: a factor for each class; broadcasts with `input`. Default: 1.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``: a loss for each row; ``"mean"`` or ``"sum"`` over the rows.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: :math:`(\dots, C)`
        - loss: scalar, or the broadcast shape without its last dimension for ``reduction="none"``

    Raises:
        IndexError: `input` has no dimension; otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        torch.nn.functional.multilabel_soft_margin_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.multilabel_soft_margin_loss(torch.zeros(2, 3), torch.ones(2, 3), reduction="none")
        tensor([0.6931, 0.6931])
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    if isinstance(input, Tensor) and not input.dim():
        raise IndexError("multilabel_soft_margin: input must have a dimension of classes, got a scalar")
    return elementwise_loss("multilabel_soft_margin", (), (input, target, None), weight, reduction, backend=backend)


def _scores(name: str, input: Tensor) -> bool:
    """Whether scores are a batch of rows; raises unless they are (N, C), (C) or one score."""
    shape = tuple(input.shape)
    if len(shape) > 2 or shape[-1:] == (0,):
        raise RuntimeError(f"{name}: Expected non-empty vector or matrix with optional 0-dim batch size, but got: {list(shape)}")
    return len(shape) == 2


def _in_range(name: str, target: Tensor, least: int, classes: int) -> None:
    """Raise for a label that no class has. Only for CPU tensors, where reading one costs no synchronisation."""
    if target.dtype != torch.int64:
        raise RuntimeError(f"{name}: expected target of dtype Long, but got {target.dtype}")
    if _checks.readable(target):
        low, high = torch.aminmax(target)
        if low < least or high >= classes:
            raise RuntimeError(f"{name}: target is out of range: wanted {least} <= target < {classes}, got {int(low)} to {int(high)}")


@register(
    "plain", formula="w_y sum_(j != y) max(0, margin - x_y + x_j)^p / C",
    source="Crammer and Singer 2001, equation 4; Weston and Watkins 1999",
    operands={"input": "real", "target": "class"}, params={"margin": (0.5, 2.0)}, choices={"p": (1, 2)}, torch="multi_margin_loss",
    dims=(1, 2), backends=("eager", "cpu"),
)
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""What the scores of other classes lack to a margin below the label's. Drop-in for :func:`torch.nn.functional.multi_margin_loss`.

    .. math:: \ell = \frac{w_y}{C} \sum_{j \ne y} \max(0, \text{margin} - x_y + x_j)^p

    Args:
        input: scores; float32, float64, bfloat16 or float16, any strides.
        target: class indices in ``[0, C)``, int64.
        p: 1 or 2. Default: 1.
        margin: by how much the label's score has to lead. Default: 1.
        weight: a factor for each class, of the rows with that label, of `input`'s dtype. Default: 1.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the rows, whatever their weights.
        backend: ``"auto"``, ``"eager"`` or ``"cpu"``; on a GPU ``"auto"`` is plain torch. Default: the one in force.

    Shape:
        - input: :math:`(N, C)` or :math:`(C)`
        - target: :math:`(N)` or :math:`()`
        - loss: scalar, or the target's shape for ``reduction="none"``

    Raises:
        ValueError: `p` is neither 1 nor 2; `weight` has not one dimension; unknown reduction or backend.
        RuntimeError: a label on the CPU is out of range; shapes, dtypes or devices do not fit.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        Crammer and Singer 2001, equation 4; Weston and Watkins 1999; torch.nn.functional.multi_margin_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.multi_margin_loss(torch.tensor([[0.5, 1.0, -2.0]]), torch.tensor([0]))
        tensor(0.5000)
    """
    if has_torch_function_variadic(input, target, weight):
        return overridden("multi_margin", locals(), (input, target, weight))
    name = "multi_margin"
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    if p != 1 and p != 2:
        raise ValueError(f"{name}: only p == 1 and p == 2 supported, got {p}")
    if isinstance(weight, Tensor) and weight.dim() != 1:
        raise ValueError(f"{name}: weight must be one-dimensional, got {tuple(weight.shape)}")
    if isinstance(weight, Tensor) and isinstance(input, Tensor) and weight.dtype != input.dtype and not _checks.autocast(input):
        raise RuntimeError(f"{name}: expected weight of input's dtype {input.dtype}, but found {weight.dtype}")
    tensors = {"input": input, "target": target, "weight": weight}
    dtype, chosen = checked(name, tensors, backend, reduction)
    batched = _scores(name, input)
    rows = input if batched else input.reshape(1, -1)
    count, classes = rows.shape
    if target.dim() > 1 or target.numel() != count:
        raise RuntimeError(f"{name}: inconsistent target size, expected {count} but got {list(target.shape)}")
    if weight is not None and weight.numel() != classes:
        raise RuntimeError(f"{name}: inconsistent weight size, expected {classes} but got {list(weight.shape)}")
    _in_range(name, target, 0, classes)
    loss = margin_loss(rows.to(dtype), target.reshape(count, 1), weight, int(p), float(margin), reduction, chosen)
    return loss.reshape(target.shape) if reduction == "none" else loss


@register(
    "plain", formula="sum_(y in labels) sum_(j not in labels) max(0, 1 - x_y + x_j) / C",
    source="Weston and Watkins 1999; torch.nn.functional.multilabel_margin_loss", operands={"input": "real", "target": "labels"},
    torch="multilabel_margin_loss", dims=(1, 2), backends=("eager", "cpu"),
)
def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""What the scores of other classes lack to a margin of 1 below each label's. Drop-in for
    :func:`torch.nn.functional.multilabel_margin_loss`.

    .. math:: \ell = \frac{1}{C} \sum_{y \in L} \sum_{j \notin L} \max(0, 1 - x_y + x_j)

    On the CPU every label sweeps over the other classes; plain torch sorts the scores, :math:`O(C \log C)` a row.

    Args:
        input: scores; float32, float64, bfloat16 or float16, any strides.
        target: class indices, int64, of which those before the first -1 of a row are its labels :math:`L`; one that is listed twice
            counts twice.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the rows.
        backend: ``"auto"``, ``"eager"`` or ``"cpu"``; on a GPU ``"auto"`` is plain torch. Default: the one in force.

    Shape:
        - input, target: :math:`(N, C)` or :math:`(C)`
        - loss: scalar, or :math:`(N)` or :math:`()` for ``reduction="none"``

    Raises:
        RuntimeError: a label on the CPU is out of range; shapes, dtypes or devices do not fit.
        ValueError: unknown reduction or backend.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        Weston and Watkins 1999; torch.nn.functional.multilabel_margin_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.multilabel_margin_loss(torch.tensor([[0.1, 0.2, 0.4, 0.8]]), torch.tensor([[3, 0, -1, 1]]))
        tensor(0.8500)
    """
    if has_torch_function_variadic(input, target):
        return overridden("multilabel_margin", locals(), (input, target))
    name = "multilabel_margin"
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    dtype, chosen = checked(name, {"input": input, "target": target}, backend, reduction)
    batched = _scores(name, input)
    if target.shape != input.shape and (batched or target.dim() > 1 or target.numel() != input.numel()):
        raise RuntimeError(f"{name}: inconsistent target size: {list(target.shape)} for input of size: {list(input.shape)}")
    rows = input if batched else input.reshape(1, -1)
    _in_range(name, target, -1, rows.shape[1])
    loss = margin_loss(rows.to(dtype), target.reshape(rows.shape), None, 1, 1.0, reduction, chosen)
    return loss if batched or reduction != "none" else loss.squeeze(0)


def _capsule_margin(input: Tensor, target: Tensor, positive_margin: float, negative_margin: float, downweight: float) -> Tensor:
    present, absent = (positive_margin - input).clamp_min(0) ** 2, (input - negative_margin).clamp_min(0) ** 2
    return target * present + downweight * (1 - target) * absent


def _capsule_settings(positive_margin: float, negative_margin: float, downweight: float) -> None:
    if not 0 < negative_margin < positive_margin < 1:
        raise ValueError(
            f"capsule_margin: wanted 0 < negative_margin < positive_margin < 1, got {negative_margin} and {positive_margin}"
        )
    if not 0 < downweight <= 1:
        raise ValueError(f"capsule_margin: downweight must be in (0, 1], got {downweight}")
    if positive_margin - negative_margin < 0.3:
        _checks.warn(f"capsule_margin: the margins {negative_margin} and {positive_margin} are close, less than 0.3 apart", 1)
    if downweight < 0.1:
        _checks.warn(f"capsule_margin: with downweight={downweight} absent classes hardly count", 1)


@register(
    "elementwise", point=_capsule_margin, formula="sum_c t max(0, m+ - v)^2 + downweight (1 - t) max(0, v - m-)^2",
    source="Sabour et al. 2017, equation 4", rows="sum", operands={"input": "real", "target": "binary"},
    params={"positive_margin": (0.7, 0.95), "negative_margin": (0.05, 0.3), "downweight": (0.2, 1.0)},
)
def capsule_margin_loss(
    input: Tensor,
    target: Tensor,
    positive_margin: float = 0.9,
    negative_margin: float = 0.1,
    downweight: float = 0.5,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Margin loss of the lengths of class capsules.

    .. math:: \ell = \sum_c t_c \max(0, m^+ - v_c)^2 + \lambda (1 - t_c) \max(0, v_c - m^-)^2

    Args:
        input: lengths :math:`v`; float32, float64, bfloat16 or float16, any strides.
        target: 1 for the classes that are present, else 0; broadcasts with `input`.
        positive_margin: :math:`m^+`, the length that present classes should reach. Default: 0.9.
        negative_margin: :math:`m^-`, the length that others should not exceed. Default: 0.1.
        downweight: :math:`\lambda`, in (0, 1]. Default: 0.5.
        reduction: ``"none"``: a loss for each row; ``"mean"`` or ``"sum"`` over the rows.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: :math:`(\dots, C)`, of the same number of dimensions
        - loss: scalar, or input's shape without its last dimension for ``reduction="none"``

    Raises:
        ValueError: not :math:`0 < m^- < m^+ < 1` or not :math:`0 < \lambda \le 1`; the numbers of dimensions differ. Otherwise as
            :func:`fastloss.functional.mse_loss`. Warns of margins less than 0.3 apart and of :math:`\lambda < 0.1`.

    Source:
        Sabour et al. 2017, equation 4.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.capsule_margin_loss(torch.tensor([[0.4, 0.6]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.3750)
    """
    _capsule_settings(positive_margin, negative_margin, downweight)
    if isinstance(input, Tensor) and isinstance(target, Tensor) and (input.dim() != target.dim() or not input.dim()):
        raise ValueError(f"capsule_margin: input and target must be (..., C), got {tuple(input.shape)} and {tuple(target.shape)}")
    return elementwise_loss(
        "capsule_margin", (float(positive_margin), float(negative_margin), float(downweight)), (input, target, None), None, reduction,
        backend=backend,
    )


def analyze_margin_loss_components(
    input: Tensor, target: Tensor, positive_margin: float = 0.9, negative_margin: float = 0.1, downweight: float = 0.5
) -> dict[str, Tensor]:
    r"""The two parts of :func:`capsule_margin_loss` and what they come from, as tensors on the device, without gradients.

    Args:
        input, target, positive_margin, negative_margin, downweight: as for :func:`capsule_margin_loss`.

    Returns:
        ``positive_loss``, ``negative_loss`` (with `downweight`) and ``total_loss``, sums over classes and means over rows;
        ``mean_present_length``, ``mean_absent_length``; ``present_below_margin``, ``absent_above_margin``: how many lengths cost something.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.analyze_margin_loss_components(torch.tensor([[0.4, 0.6]]), torch.tensor([[1.0, 0.0]]))["negative_loss"]
        tensor(0.1250)
    """
    _capsule_settings(positive_margin, negative_margin, downweight)
    with torch.no_grad():
        _, (v, t) = widened("analyze_margin_loss_components", {"input": input, "target": target}, None)
        v, t = torch.broadcast_tensors(v, t.to(v.dtype))
        rows = v.shape[:-1].numel()
        missing, extra = (positive_margin - v).clamp_min(0), (v - negative_margin).clamp_min(0)
        positive, negative = (t * missing**2).sum() / rows, downweight * ((1 - t) * extra**2).sum() / rows
        return {
            "positive_loss": positive,
            "negative_loss": negative,
            "total_loss": positive + negative,
            "mean_present_length": (t * v).sum() / t.sum(),
            "mean_absent_length": ((1 - t) * v).sum() / (1 - t).sum(),
            "present_below_margin": ((t > 0) & (missing > 0)).sum(),
            "absent_above_margin": ((t < 1) & (extra > 0)).sum(),
        }
