"""Losses over the class axis of logits or log-probabilities, on the `row` engine."""

from __future__ import annotations

from torch import Tensor

from .._checks import reduction_from_legacy
from ..registry import register
from ..row import row_loss


@register(
    "row",
    point=lambda log_prob: -log_prob,
    formula="-w_y log softmax(x)_y",
    source="torch.nn.functional.cross_entropy; z-loss: Chowdhery et al. 2022, section 5; softcap: Gemma Team 2024, section 2",
    torch="cross_entropy",
    name="cross_entropy",
)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_accuracy: bool = False,
    inplace: bool = False,
    empty: str = "nan",
    backend: str | None = None,
):
    reduction = reduction_from_legacy(size_average, reduce, reduction)
    return row_loss(
        "cross_entropy", (), input, target, weight, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale,
        return_lse, return_entropy, return_accuracy, inplace, empty, backend,
    )


@register(
    "row",
    point=lambda log_prob: -log_prob,
    formula="-w_y x_y",
    source="torch.nn.functional.nll_loss",
    torch="nll_loss",
    soft_targets=False,
    smoothing=False,
    logits=False,
)
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    empty: str = "nan",
    backend: str | None = None,
):
    reduction = reduction_from_legacy(size_average, reduce, reduction)
    return row_loss("nll", (), input, target, weight, ignore_index, reduction, empty=empty, backend=backend)
