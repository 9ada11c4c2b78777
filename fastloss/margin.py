"""The margin engine: losses of what the scores of other classes lack to a margin below those of a row's labels.

    loss = w_(y_1) / C sum_k sum_j max(0, margin - x_(y_k) + x_j)^p

over the labels y_k of a row and the classes j that are none of them. :func:`formula` says it in plain torch: it is the `eager` backend,
the oracle of the tests, and what second derivatives, `torch.func`, gradients to weights and the other backends run through. The `cpu`
backend reads the scores once forward and once backward, and keeps nothing in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .engine import REDUCTIONS, accumulate_dtype, define, fast_apply, formula_backward


def formula(
    input: Tensor,  # (N, C)
    target: Tensor,  # (N, L): of each row the labels before the first -1
    weight: Tensor | None,  # (C,)
    p: int,
    margin: float,
    reduction: int,
) -> Tensor:
    """The engine's mathematics in plain torch."""
    x = input.to(accumulate_dtype(input.dtype))
    if target.shape[1] == 1:
        # relu has the slope 0 where a class is exactly at the margin, as in torch
        label = target.clamp_min(0)  # of a list that is empty, one that makes no difference: there is one class
        missing = F.relu(margin - x.gather(1, label) + x).scatter(1, label, 0.0)
        rows = (missing if p == 1 else missing * missing).sum(1) / x.shape[1]
    else:
        # In float64 the sum over pairs, which cancels, is exact to a rounding of any float32 result.
        pairs, times = _active_pairs(x.detach().double(), target, margin)
        rows = (margin * pairs + torch.where(times == 0, 0.0, times * x.double()).sum(1)) / x.shape[1]
    if weight is not None:
        rows = rows * weight.to(rows.dtype)[target[:, 0]]
    if reduction == REDUCTIONS["mean"]:
        rows = rows.mean()
    elif reduction == REDUCTIONS["sum"]:
        rows = rows.sum()
    return rows.to(input.dtype)


def _active_pairs(x: Tensor, target: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Of each row, the pairs (label y, other class j) with x_j > x_y - margin: their number, and for each class how often it is a j less
    how often it is a y. By sorting, so that the labels x classes pairs are never listed."""
    classes = x.shape[1]
    listed = (target < 0).cumsum(1) == 0  # up to the first -1
    index = torch.where(listed, target, 0)
    is_label = x.new_zeros((x.shape[0], classes + 1), dtype=torch.bool)
    is_label = is_label.scatter(1, torch.where(listed, target, classes), True)[:, :classes]
    threshold = torch.where(listed, x.gather(1, index) - margin, torch.inf)
    others = torch.where(is_label, -torch.inf, x)
    below = torch.searchsorted(threshold.sort(1).values, others.contiguous())
    above = classes - torch.searchsorted(others.sort(1).values, threshold.contiguous(), right=True)
    return below.sum(1), below.scatter_add(1, index, torch.where(listed, -above, 0))


_SETTINGS = "int p, float margin, int reduction"


def _forward_fake(input, target, weight, p, margin, reduction):
    return input.new_empty(input.shape[:1] if reduction == REDUCTIONS["none"] else ())


_FORWARD = define("margin_forward", f"(Tensor input, Tensor target, Tensor? weight, {_SETTINGS}) -> Tensor", _forward_fake)
_BACKWARD = define(
    "margin_backward",
    f"(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, {_SETTINGS}) -> Tensor",
    lambda grad_loss, input, *_: input.new_empty(input.shape),
)


class _Margin(torch.autograd.Function):
    """Forward and backward of the engine on a compiled backend. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, input, target, weight, backend, settings):
        wide = None if weight is None else weight.to(accumulate_dtype(input.dtype)).contiguous()
        ctx.save_for_backward(input, target, weight)
        ctx.plan = backend, settings
        return _FORWARD[backend](input, target, wide, *settings)

    @staticmethod
    def backward(ctx, grad):
        input, target, weight = ctx.saved_tensors
        backend, settings = ctx.plan
        needed = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        if needed[1] or (torch.is_grad_enabled() and not torch.compiler.is_compiling()):
            run = lambda x, w: [formula(x, target, w, *settings)]  # noqa: E731
            by_input, by_weight = formula_backward(run, (input, weight), needed, [grad])
            return by_input, None, by_weight, None, None
        wide = None if weight is None else weight.to(accumulate_dtype(input.dtype)).contiguous()
        return _BACKWARD[backend](grad, input, target, wide, *settings), None, None, None, None


_apply = fast_apply(_Margin)


def margin_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, p: int, margin: float, reduction: str, backend: str
) -> Tensor:
    """Run a loss of this engine on checked arguments: input (N, C), target (N, L)."""
    code = REDUCTIONS[reduction]
    if backend != "cpu":
        return formula(input, target, weight, p, margin, code)
    return _apply(input, target.contiguous(), weight, backend, (p, margin, code))
