"""The divergence engine: losses between two rows of logits, a student's and a teacher's.

Every loss of this engine is one *point function* ``f(l, m) -> value`` of the log-probabilities of a class under the same machinery::

    l    = log_softmax(first_scale * first)
    m    = log_softmax(second_scale * (second - centre))
    loss = factor * sum_r w_r sum_c f(l_rc, m_rc), divided by sum_r w_r for a mean

:func:`formula` says it in plain torch: it is the `eager` backend, the oracle of the tests, and what second derivatives and `torch.func`
run through. The other backends keep six numbers a row between forward and backward (maximum, log of the sum and slope of either side); a
row of weight 0 is not read. Either side gets a gradient where it wants one, so a divergence in the other direction is a swap.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._backends import choose
from .engine import REDUCTIONS, accumulate_dtype, define, fast_apply, formula_backward

STATS = 6  # numbers kept of a row


def _weighed(weight: Tensor, value: Tensor) -> Tensor:
    """The product, 0 where the weight is 0 whatever the value."""
    return weight * torch.where(weight == 0, 0.0, value)


def kl(l: Tensor, m: Tensor) -> Tensor:
    """The terms of the divergence of the first side from the second: ``q (log q - log p)``."""
    q = m.exp()
    return _weighed(q, torch.where(q == 0, 0.0, m) - torch.where(q == 0, 0.0, l))


def cross(l: Tensor, m: Tensor) -> Tensor:
    """The terms of the cross-entropy ``-q log p``."""
    return -_weighed(m.exp(), l)


def jensen_shannon(l: Tensor, m: Tensor, beta: float) -> Tensor:
    """The terms of ``beta KL(q || mix) + (1 - beta) KL(p || mix)``, ``mix = beta q + (1 - beta) p``, beta in (0, 1)."""
    p, q = l.exp(), m.exp()
    # Far below 0 the probability is 0 already, and differences stay numbers.
    l, m = l.clamp_min(LOWEST), m.clamp_min(LOWEST)
    gap = m - l
    below = torch.expm1(-gap.abs())
    extra = torch.log1p(torch.where(gap > 0, (1.0 - beta) * below, beta * below))  # log mix less the larger of l and m
    return (1.0 - beta) * p * (-torch.relu(gap) - extra) + beta * q * (-torch.relu(-gap) - extra)


def total_variation(l: Tensor, m: Tensor) -> Tensor:
    """The terms of ``|p - q| / 2``."""
    return 0.5 * (l.exp() - m.exp()).abs()


LOWEST = -1e4  # exp of it is 0 in every type
POINTS: dict[str, Callable[..., Tensor]] = {
    "kl": kl, "cross": cross, "jensen_shannon": jensen_shannon, "total_variation": total_variation,
}


def formula(
    first: Tensor,  # (..., C)
    second: Tensor,
    centre: Tensor | None,  # (C,)
    weight: Tensor | None,  # (...)
    functor: str,
    params: tuple[float, ...],
    first_scale: float,
    second_scale: float,
    factor: float,
    reduction: int,
    zero_empty: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The engine's mathematics in plain torch."""
    wide = accumulate_dtype(first.dtype)
    first, second = first.to(wide), second.to(wide)
    if centre is not None:
        second = second - centre.to(wide)
    if weight is not None:  # a row that does not count must not reach the gradient even when it holds inf or NaN
        counts = weight != 0
        first, second = (torch.where(counts.unsqueeze(-1), t, 0.0) for t in (first, second))
    l, m = torch.log_softmax(first * first_scale, -1), torch.log_softmax(second * second_scale, -1)
    rows = POINTS[functor](l, m, *params).sum(-1) * factor
    if weight is not None:
        rows = rows * weight
    if reduction == REDUCTIONS["none"]:
        return rows.to(dtype)
    loss = rows.sum()
    if reduction == REDUCTIONS["mean"]:
        divisor = loss.new_full((), rows.numel()) if weight is None else weight.sum()
        loss = loss / torch.where(divisor == 0, math.inf if zero_empty else math.nan, divisor)
    return loss.to(dtype)


_SETTINGS = (
    "str functor, float[] params, float first_scale, float second_scale, float factor, int reduction, bool zero_empty, ScalarType dtype"
)


def forward_outputs(first: Tensor, reduction: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The uninitialised outputs of ``divergence_forward``: loss, stats (6, rows), divisor."""
    accumulate, rows = accumulate_dtype(first.dtype), first.shape[0]
    return (
        first.new_empty((rows,) if reduction == REDUCTIONS["none"] else (), dtype=dtype),
        first.new_empty((STATS, rows), dtype=accumulate),
        first.new_empty((), dtype=accumulate),
    )


def _forward_fake(first, second, centre, weight, functor, params, first_scale, second_scale, factor, reduction, zero_empty, dtype):
    return forward_outputs(first, reduction, dtype)


def gradients(first: Tensor, second: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """The uninitialised outputs of ``divergence_backward``, contiguous; empty where not wanted."""
    return tuple(t.new_empty(t.shape if want else (0,)) for t, want in zip((first, second), wanted))


def _backward_fake(grad_loss, first, second, centre, weight, stats, divisor, functor, params, first_scale, second_scale, factor, reduction,
                   zero_empty, dtype, *wanted):
    return gradients(first, second, wanted)


# Both sides are (R, C) of one dtype with unit stride over C; centre (C,), weight (R,) and an upstream gradient, one number or (R,), are of
# the accumulation dtype and contiguous.
_FORWARD = define(
    "divergence_forward",
    f"(Tensor first, Tensor second, Tensor? centre, Tensor? weight, {_SETTINGS}) -> (Tensor loss, Tensor stats, Tensor divisor)",
    _forward_fake,
)
_BACKWARD = define(
    "divergence_backward",
    f"(Tensor grad_loss, Tensor first, Tensor second, Tensor? centre, Tensor? weight, Tensor stats, Tensor divisor, {_SETTINGS}, "
    "bool want_first, bool want_second) -> (Tensor grad_first, Tensor grad_second)",
    _backward_fake,
)


class _Divergence(torch.autograd.Function):
    """Forward and backward of the engine on a compiled backend. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, first, second, centre, weight, backend, settings):
        loss, stats, divisor = _FORWARD[backend](first, second, centre, weight, *settings)
        ctx.save_for_backward(first, second, centre, weight, stats, divisor)
        ctx.plan = backend, settings
        return loss

    @staticmethod
    def backward(ctx, grad):
        first, second, centre, weight, stats, divisor = ctx.saved_tensors
        backend, settings = ctx.plan
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            run = lambda first, second: [formula(first, second, centre, weight, *settings)]  # noqa: E731
            return *formula_backward(run, (first, second), wanted, [grad]), None, None, None, None
        grad = grad.to(stats.dtype).contiguous()
        found = _BACKWARD[backend](grad, first, second, centre, weight, stats, divisor, *settings, *wanted)
        return *(g if want else None for g, want in zip(found, wanted)), None, None, None, None


_apply = fast_apply(_Divergence)


def forward_rows(
    backend: str, first: Tensor, second: Tensor, weight: Tensor | None, settings: tuple[str, tuple[float, ...], float, float, bool]
) -> tuple[Tensor, Tensor]:
    """The losses of rows (R, C) on a compiled backend, and what :func:`backward_rows` wants to know of them; nothing is differentiable.

    `settings` are functor, parameters, scale of both sides, factor, and something of the caller's.
    """
    functor, params, scale, factor, _ = settings
    loss, stats, _ = _FORWARD[backend](first, second, None, weight, functor, params, scale, scale, factor, 0, False, first.dtype)
    return loss, stats


def backward_rows(
    backend: str, grad: Tensor, first: Tensor, second: Tensor, weight: Tensor | None, stats: Tensor, settings: tuple, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of both sides from those of the losses of :func:`forward_rows`."""
    functor, params, scale, factor, _ = settings
    divisor = stats.new_ones(())
    return _BACKWARD[backend](
        grad, first, second, None, weight, stats, divisor, functor, params, scale, scale, factor, 0, False, first.dtype, *wanted
    )


def _as_rows(t: Tensor) -> Tensor:
    """Logits (..., C) as (R, C) with unit stride over C: a view wherever strides allow."""
    t = t if t.dim() == 2 else t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()


def divergence(
    name: str,
    functor: str,
    first: Tensor,  # (..., C)
    second: Tensor,
    *,
    params: tuple[float, ...] = (),
    centre: Tensor | None = None,  # (C,)
    weight: Tensor | None = None,  # (...)
    scales: tuple[float, float] = (1.0, 1.0),
    factor: float = 1.0,
    reduction: str = "mean",
    zero_empty: bool = False,
    dtype: torch.dtype,
    backend: str | None = None,
) -> Tensor:
    """Run `functor` for the loss `name` on checked arguments: choose a backend, bring to rows, run, give the shape back.

    Centre and weight get no gradients; a mean over weights that add up to 0 is NaN, or 0 on request.
    """
    backend, _ = choose(name, backend, first, second, centre, weight)
    common = torch.promote_types(first.dtype, second.dtype)
    first, second = (t if t.dtype == common else t.to(common) for t in (first, second))
    wide = accumulate_dtype(common)
    centre, weight = (None if t is None else t.detach().to(wide).contiguous() for t in (centre, weight))
    code = REDUCTIONS[reduction]
    settings = functor, params, *scales, factor, code, zero_empty, dtype
    shape = first.shape[:-1]
    if backend == "eager" or first.shape[-1] == 0:  # no class: a sum of nothing
        return formula(first, second, centre, weight, *settings)
    loss = _apply(_as_rows(first), _as_rows(second), centre, None if weight is None else weight.view(-1), backend, settings)
    return loss.reshape(shape) if code == REDUCTIONS["none"] else loss
