"""The box engine: losses of pairs of boxes, rows of four coordinates (x1, y1, x2, y2).

Every loss of this engine is ``1 - IoU + penalty``, and its *point function* is the penalty: ``f(overlap, eps_area, eps) -> value``.
:func:`formula` says it in plain torch: it is the `eager` backend, the oracle of the tests, and what second derivatives and `torch.func`
run through. The other backends read each box once forward and once backward, and keep nothing in between. Areas may be negative (inverted
boxes, which meet nothing) or 0; a quotient by 0 is 0, so values and gradients are finite for all finite boxes whose areas are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _checks
from ._backends import choose
from .engine import REDUCTIONS, accumulate_dtype, define, fast_apply, formula_backward, overridden
from .registry import LOSSES


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 (also its gradient) where the denominator is 0."""
    nothing = denominator == 0
    return torch.where(nothing, 0.0, numerator / torch.where(nothing, 1.0, denominator))


class Axis(NamedTuple):
    """What two intervals have to do with each other."""

    first: Tensor  # lengths
    second: Tensor
    common: Tensor  # of the intersection, negative where there is none
    hull: Tensor  # of the smallest interval around both
    offset: Tensor  # of the centres
    more_first: Tensor  # first - common and second - common, which would cancel
    more_second: Tensor


def _axis(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> Axis:
    inner1, inner2 = torch.maximum(a1, b1), torch.minimum(a2, b2)
    return Axis(
        first=a2 - a1,
        second=b2 - b1,
        common=inner2 - inner1,
        hull=torch.maximum(a2, b2) - torch.minimum(a1, b1),
        offset=((a1 - b1) + (a2 - b2)) / 2,
        more_first=(inner1 - a1) + (a2 - inner2),
        more_second=(inner1 - b1) + (b2 - inner2),
    )


class Overlap(NamedTuple):
    """What point functions are functions of."""

    x: Axis
    y: Axis
    union: Tensor  # area, without eps
    iou: Tensor
    complement: Tensor  # 1 - IoU


def overlap(boxes1: Tensor, boxes2: Tensor, eps_area: float) -> Overlap:
    """Compare boxes of shapes (..., 4) that broadcast; `eps_area` is added to the area that divides."""
    a, b = boxes1.unbind(-1), boxes2.unbind(-1)
    x, y = _axis(a[0], a[2], b[0], b[2]), _axis(a[1], a[3], b[1], b[3])
    meet = (x.common > 0) & (y.common > 0)
    inter = torch.where(meet, x.common * y.common, 0.0)
    union = x.first * y.first + x.second * y.second - inter
    iou = ratio(inter, union + eps_area)
    # 1 - IoU of nearly equal boxes loses its digits, and so does the gradient of this form for boxes that hardly meet.
    apart = x.first * y.more_first + x.more_first * y.common + x.second * y.more_second + x.more_second * y.common
    return Overlap(x, y, union, iou, torch.where(iou > 0.5, ratio(apart + eps_area, union + eps_area), 1 - iou))


def formula(
    point: Callable[[Overlap, float, float], Tensor | float],
    params: tuple[float, ...],
    reduction: int,
    boxes1: Tensor,
    boxes2: Tensor,
) -> Tensor:
    """The engine's mathematics in plain torch."""
    accumulate = accumulate_dtype(boxes1.dtype)
    found = overlap(boxes1.to(accumulate), boxes2.to(accumulate), params[0])
    values = found.complement + point(found, *params)
    if reduction == REDUCTIONS["none"]:
        return values
    loss = values.sum()
    return loss / max(values.numel(), 1) if reduction == REDUCTIONS["mean"] else loss


def pairs_formula(point: Callable, params: tuple[float, ...], boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU minus the penalty of every box of (N, 4) with every box of (M, 4)."""
    accumulate = accumulate_dtype(boxes1.dtype)
    found = overlap(boxes1.to(accumulate)[:, None], boxes2.to(accumulate)[None], params[0])
    return found.iou - point(found, *params)


_SETTINGS = "str functor, float[] params"


def forward_output(boxes1: Tensor, reduction: int) -> Tensor:
    """The uninitialised output of ``box_forward``."""
    shape = boxes1.shape[:1] if reduction == REDUCTIONS["none"] else ()
    return boxes1.new_empty(shape, dtype=accumulate_dtype(boxes1.dtype))


def score_output(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """The uninitialised output of ``box_pairs_forward``."""
    return boxes1.new_empty((boxes1.shape[0], boxes2.shape[0]), dtype=accumulate_dtype(boxes1.dtype))


def gradients(boxes1: Tensor, boxes2: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """The uninitialised outputs of the backward ops; empty where not wanted."""
    return tuple(boxes.new_empty(boxes.shape if want else (0,)) for boxes, want in zip((boxes1, boxes2), wanted))


# Boxes are (rows, 4) of one dtype and any strides; losses, scores and their gradients are of the accumulation dtype. What comes out is
# contiguous.
_FORWARD = define(
    "box_forward",
    f"(Tensor boxes1, Tensor boxes2, {_SETTINGS}, int reduction) -> Tensor",
    lambda boxes1, boxes2, functor, params, reduction: forward_output(boxes1, reduction),
)
_BACKWARD = define(
    "box_backward",
    f"(Tensor grad_loss, Tensor boxes1, Tensor boxes2, {_SETTINGS}, int reduction, bool want1, bool want2) -> (Tensor grad1, Tensor grad2)",
    lambda grad_loss, boxes1, boxes2, functor, params, reduction, *wanted: gradients(boxes1, boxes2, wanted),
)
_PAIRS_FORWARD = define(
    "box_pairs_forward",
    f"(Tensor boxes1, Tensor boxes2, {_SETTINGS}) -> Tensor",
    lambda boxes1, boxes2, functor, params: score_output(boxes1, boxes2),
)
_PAIRS_BACKWARD = define(
    "box_pairs_backward",
    f"(Tensor grad_score, Tensor boxes1, Tensor boxes2, {_SETTINGS}, bool want1, bool want2) -> (Tensor grad1, Tensor grad2)",
    lambda grad_score, boxes1, boxes2, functor, params, *wanted: gradients(boxes1, boxes2, wanted),
)


def _backward(ctx, grad: Tensor, run: Callable, op: dict[str, Callable], backend: str, settings: tuple):
    """Gradients to both box sets, through the formula where they are differentiated again."""
    boxes, wanted = ctx.saved_tensors, ctx.needs_input_grad[:2]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return *formula_backward(lambda *inputs: [run(*inputs)], boxes, wanted, [grad]), None, None
    found = op[backend](grad, *boxes, *settings, *wanted)
    return *(g if want else None for g, want in zip(found, wanted)), None, None


class _Box(torch.autograd.Function):
    """Forward and backward of a loss on a compiled backend. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, boxes1, boxes2, backend, settings):
        ctx.save_for_backward(boxes1, boxes2)
        ctx.plan = backend, settings
        return _FORWARD[backend](boxes1, boxes2, *settings)

    @staticmethod
    def backward(ctx, grad):
        backend, (name, params, reduction) = ctx.plan
        run = lambda *boxes: formula(LOSSES[name].point, params, reduction, *boxes)  # noqa: E731
        return _backward(ctx, grad, run, _BACKWARD, backend, (name, params, reduction))


class _BoxPairs(torch.autograd.Function):
    """The same of a matrix of scores."""

    @staticmethod
    def forward(ctx, boxes1, boxes2, backend, settings):
        ctx.save_for_backward(boxes1, boxes2)
        ctx.plan = backend, settings
        return _PAIRS_FORWARD[backend](boxes1, boxes2, *settings)

    @staticmethod
    def backward(ctx, grad):
        backend, (name, params) = ctx.plan
        run = lambda *boxes: pairs_formula(LOSSES[name].point, params, *boxes)  # noqa: E731
        return _backward(ctx, grad, run, _PAIRS_BACKWARD, backend, (name, params))


_apply, _apply_pairs = fast_apply(_Box), fast_apply(_BoxPairs)


def box_loss(
    name: str, params: tuple[float, float], boxes1: Tensor, boxes2: Tensor, reduction: str = "none", backend: str | None = None
) -> Tensor:
    """Run the registered box loss `name`: check, choose a backend, bring to rows, run, give the shape back.

    `params` are what is added to areas before they divide, and what is added to the other denominators.
    """
    if has_torch_function_variadic(boxes1, boxes2):
        options = dict(boxes1=boxes1, boxes2=boxes2, eps=params[1], reduction=reduction, backend=backend)
        return overridden(name, options, (boxes1, boxes2))
    code = _checks.reduction_code(name, reduction)
    dtype, shape = _checks.boxes(name, boxes1, boxes2)
    backend, _ = choose(name, backend, boxes1, boxes2)
    if boxes1.shape != boxes2.shape and dtype.itemsize == 2:
        dtype = torch.float32  # the gradient of a box that is broadcast is a sum, whose terms must not be rounded
    boxes1, boxes2 = (boxes if boxes.dtype == dtype else boxes.to(dtype) for boxes in (boxes1, boxes2))
    if backend == "eager":
        return formula(LOSSES[name].point, params, code, boxes1, boxes2)
    loss = _apply(_rows(boxes1, shape), _rows(boxes2, shape), backend, (name, params, code))
    return loss.reshape(shape) if code == REDUCTIONS["none"] else loss


def _rows(boxes: Tensor, shape: torch.Size) -> Tensor:
    """Boxes of a broadcast shape as (rows, 4): a view wherever strides allow."""
    if boxes.dim() == 2 and boxes.shape[:1] == shape:
        return boxes
    return boxes.expand(*shape, 4).reshape(shape.numel(), 4)


def box_pairs(
    function: Callable, name: str, params: tuple[float, float], boxes1: Tensor, boxes2: Tensor, backend: str | None = None, **options
) -> Tensor:
    """The scores of all pairs of two sets, ``1 - loss`` of the registered box loss `name`; `function` has the `options`."""
    if has_torch_function_variadic(boxes1, boxes2):
        return handle_torch_function(function, (boxes1, boxes2), boxes1, boxes2, **options, backend=backend)
    dtype, _ = _checks.boxes(function.__name__, boxes1, boxes2, pairs=True)
    backend, _ = choose(function.__name__, backend, boxes1, boxes2)
    boxes1, boxes2 = (boxes if boxes.dtype == dtype else boxes.to(dtype) for boxes in (boxes1, boxes2))
    if backend == "eager":
        return pairs_formula(LOSSES[name].point, params, boxes1, boxes2)
    return _apply_pairs(boxes1, boxes2, backend, (name, params))
