"""The element-wise engine: losses that are a function of single numbers.

Every loss of this engine is one *point function* ``f(input, target[, third], *params) -> value`` under the same machinery:
broadcasting, weights, reductions, dtypes and layouts. :func:`formula` says it in plain torch: it is the `eager` backend, the oracle of
the tests, and what second derivatives, `torch.func` and gradients to weights run through. The other backends read each operand once
forward and once backward, and keep nothing but the operands themselves in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from . import _checks
from ._backends import choose
from .engine import REDUCTIONS, accumulate_dtype, define, fast_apply, formula_backward, overridden
from .registry import LOSSES

MAX_DIMS = 3  # that kernels walk over, after neighbouring dimensions were merged


def formula(
    point: Callable[..., Tensor],
    params: tuple[float, ...],
    reduction: int,
    input: Tensor,
    target: Tensor,
    third: Tensor | None,
    weight: Tensor | None,
) -> Tensor:
    """The engine's mathematics in plain torch."""
    accumulate = accumulate_dtype(input.dtype)
    values = point(*(t.to(accumulate) for t in (input, target, third) if t is not None), *params)
    if weight is not None:
        weight = weight.to(accumulate)
        values = values * weight
    if reduction == REDUCTIONS["none"]:
        return values.to(input.dtype)
    if reduction == REDUCTIONS["row_sums"]:
        return values.sum(-1).to(input.dtype)
    loss = values.sum()
    if reduction in (REDUCTIONS["mean"], REDUCTIONS["row_mean"], REDUCTIONS["column_mean"]):
        loss = loss / divided_by(values, reduction)
    elif reduction == REDUCTIONS["weighted_mean"]:
        loss = loss / weight.expand_as(values).sum()
    return loss.to(input.dtype)


_SETTINGS = "str functor, float[] params, int reduction"


def divided_by(input: Tensor, reduction: int) -> int:
    """What a mean that is not weighted divides by."""
    if reduction == REDUCTIONS["row_mean"]:
        return input.shape[:-1].numel()
    return input.shape[-1] if reduction == REDUCTIONS["column_mean"] else input.numel()


def forward_outputs(input: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    """The uninitialised outputs of ``elementwise_forward``: loss and divisor."""
    shape = input.shape if reduction == REDUCTIONS["none"] else input.shape[:-1] if reduction == REDUCTIONS["row_sums"] else ()
    return input.new_empty(shape), input.new_empty((), dtype=accumulate_dtype(input.dtype))


def _forward_fake(input, target, third, weight, functor, params, reduction):
    return forward_outputs(input, reduction)


def gradients(input: Tensor, target: Tensor, third: Tensor | None, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    """The uninitialised outputs of ``elementwise_backward``; empty where not wanted."""
    return tuple(input.new_empty(input.shape if want else (0,)) for want in wanted)


def _backward_fake(grad_loss, input, target, third, weight, divisor, functor, params, reduction, *wanted):
    return gradients(input, target, third, wanted)


# All operands have one shape and dtype, and are contiguous or have at most MAX_DIMS dimensions. What comes out is contiguous.
_FORWARD = define(
    "elementwise_forward",
    f"(Tensor input, Tensor target, Tensor? third, Tensor? weight, {_SETTINGS}) -> (Tensor loss, Tensor divisor)",
    _forward_fake,
)
_BACKWARD = define(
    "elementwise_backward",
    f"(Tensor grad_loss, Tensor input, Tensor target, Tensor? third, Tensor? weight, Tensor divisor, {_SETTINGS}, "
    "bool want_input, bool want_target, bool want_third) -> (Tensor grad_input, Tensor grad_target, Tensor grad_third)",
    _backward_fake,
)


class _Elementwise(torch.autograd.Function):
    """Forward and backward of the engine on a compiled backend. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, input, target, third, weight, backend, settings):
        loss, divisor = _FORWARD[backend](input, target, third, weight, *settings)
        ctx.save_for_backward(input, target, third, weight, divisor)
        ctx.plan = backend, settings
        return loss

    @staticmethod
    def backward(ctx, grad):
        input, target, third, weight, divisor = ctx.saved_tensors
        backend, (name, params, reduction) = ctx.plan
        need_input, need_target, need_third, need_weight, *_ = ctx.needs_input_grad
        if need_weight or (torch.is_grad_enabled() and not torch.compiler.is_compiling()):
            run = lambda *inputs: [formula(LOSSES[name].point, params, reduction, *inputs)]  # noqa: E731
            return *formula_backward(run, (input, target, third, weight), ctx.needs_input_grad[:4], [grad]), None, None
        if reduction == REDUCTIONS["row_sums"]:
            grad, reduction = grad.unsqueeze(-1).expand_as(input), REDUCTIONS["none"]
        if grad.dim() > MAX_DIMS:  # it may have other strides than the operands
            grad = grad.contiguous()
        by_input, by_target, by_third = _BACKWARD[backend](
            grad, input, target, third, weight, divisor, name, params, reduction, need_input, need_target, need_third
        )
        return by_input if need_input else None, by_target if need_target else None, by_third if need_third else None, None, None, None


_apply = fast_apply(_Elementwise)


def canonical(*tensors: Tensor | None) -> tuple[tuple[Tensor | None, ...], Callable[[Tensor], Tensor]]:
    """Bring tensors that broadcast to one shape and a layout that kernels walk over, as views wherever strides allow.

    Returns the tensors, and what brings a contiguous result of their shape back to the broadcast shape.
    """
    lead = tensors[0]
    if all(t is None or t.shape == lead.shape and t.is_contiguous() for t in tensors):
        return tensors, lambda result: result
    given = [t for t in tensors if t is not None]
    given = torch.broadcast_tensors(*given)
    shape = given[0].shape
    # Dimensions in the order in which the first tensor has them in memory, so that neighbours merge. (Dynamo cannot sort symbolic strides.)
    order: list[int] = []
    for d in range(len(shape)):
        place = 0
        while place < len(order) and given[0].stride(order[place]) >= given[0].stride(d):
            place += 1
        order.insert(place, d)
    permuted = [t.permute(order) for t in given]
    sizes: list[int] = []
    for d, size in enumerate(permuted[0].shape):
        if sizes and (size == 1 or last == 1 or all(t.stride(d - 1) == t.stride(d) * size for t in permuted)):
            sizes[-1] *= size
            last = size if size != 1 else last
        else:
            sizes.append(size)
            last = size
    merged = [t.reshape(sizes) for t in permuted] if len(sizes) <= MAX_DIMS else [t.contiguous() for t in permuted]
    found = iter(merged)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return (
        tuple(None if t is None else next(found) for t in tensors),
        lambda result: result.reshape([shape[d] for d in order]).permute(inverse),
    )


def elementwise_loss(
    name: str,
    params: tuple[float, ...],
    operands: tuple[Tensor, Tensor, Tensor | None],
    weight: Tensor | None = None,
    reduction: str = "mean",
    weighted_mean: bool = False,
    backend: str | None = None,
    rows: str | None = None,
) -> Tensor:
    """Run the registered element-wise loss `name`: check, choose a backend, bring to a canonical layout, run, give the shape back.

    `weighted_mean` makes a mean divide by the sum of `weight` instead of the number of elements. `rows` "sum" or "mean" reduces the last
    dimension first, so that the reduction is over rows; by default as the loss is registered.
    """
    entry = LOSSES[name]
    rows = entry.rows if rows is None else rows
    if has_torch_function_variadic(*operands, weight):
        options = dict(zip(entry.operands, operands)) | dict(zip(entry.params, params))
        return overridden(name, options | dict(weight=weight, reduction=reduction, backend=backend), (*operands, weight))
    code, dtype = _checks.elementwise(entry, operands, weight, reduction)
    if code == REDUCTIONS["mean"] and weighted_mean and weight is not None:
        code = REDUCTIONS["weighted_mean"]
    backend, _ = choose(name, backend, *operands, weight)
    tensors = tuple(t if t is None or t.dtype == dtype else t.to(dtype) for t in (*operands, weight))
    if rows:
        code = _OF_ROWS[rows, code]
    divides_rows = code == REDUCTIONS["row_sums"] and rows == "mean"
    if dtype.itemsize == 2 and (divides_rows or (rows or backend != "eager") and _sums_gradients(tensors)):
        tensors = tuple(t if t is None else t.float() for t in tensors)
    if rows:
        tensors, restore = as_rows(*tensors)
    if backend == "eager":
        loss = formula(entry.point, params, code, *tensors)
    else:
        if not rows:
            tensors, restore = canonical(*tensors)
        loss = _apply(*tensors, backend, (entry.functor or name, params, code))
    if code == REDUCTIONS["row_sums"] or backend != "eager" and code == REDUCTIONS["none"]:
        loss = restore(loss)
    if divides_rows:
        loss = loss / tensors[0].shape[-1]
    return loss if loss.dtype == dtype else loss.to(dtype)


# The engine's reduction for what `rows` are reduced by and the reduction that a caller asks for.
_OF_ROWS = {
    ("sum", REDUCTIONS["none"]): REDUCTIONS["row_sums"],
    ("sum", REDUCTIONS["mean"]): REDUCTIONS["row_mean"],
    ("sum", REDUCTIONS["sum"]): REDUCTIONS["sum"],
    ("mean", REDUCTIONS["none"]): REDUCTIONS["row_sums"],
    ("mean", REDUCTIONS["mean"]): REDUCTIONS["mean"],
    ("mean", REDUCTIONS["sum"]): REDUCTIONS["column_mean"],
}


def as_rows(*tensors: Tensor | None) -> tuple[tuple[Tensor | None, ...], Callable[[Tensor], Tensor]]:
    """Bring tensors that broadcast to (R, C), as views wherever strides allow, and what brings R results to the broadcast shape less C."""
    given = torch.broadcast_tensors(*(t for t in tensors if t is not None))
    *outer, columns = given[0].shape
    found = iter([t.reshape(math.prod(outer), columns) for t in given])
    return tuple(None if t is None else next(found) for t in tensors), lambda result: result.reshape(outer)


def _sums_gradients(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a tensor that is broadcast gets a gradient, whose terms must not be rounded before they are summed."""
    given = [t for t in tensors if t is not None]
    if all(t.shape == given[0].shape for t in given):
        return False
    shape = torch.broadcast_shapes(*(t.shape for t in given))
    return any(t.requires_grad and t.shape != shape for t in given)

