"""Sums of what the pair engine finds of each row, with the weights of rows known beforehand, and so with their gradient in one sweep.

A loss of the form ::

    sum over terms k and rows i of  w_ki * value_ki

has gradients of scores that are known, but for one factor, as soon as the statistics of a row are. On the ``cpu`` backend they are found
with them, one block of rows at a time, while the block's scores are there: three products of matrices for the two gradients instead of the
four of a forward and a backward sweep (:func:`fastloss.pair.pair_statistics`), and no score is kept. What stands between forward and
backward are the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .engine import accumulate_dtype, define, fast_apply, formula_backward
from .pair import INPUTS, SETTINGS, Scores, Statistic, Term, formula, forward_outputs, paired, prepared_call, statistics_of

FUSED = ("cpu",)  # backends that have the operator


def _fake(weights, a, b, row_bias, column_bias, row_label, column_label, codes, params, skip, scale, transform, cap, terms, constants, want,
          memory_budget):
    dtype = accumulate_dtype(a.dtype)
    tensors = (a, b, row_bias, column_bias, *params)
    return forward_outputs(a, b, terms) + [
        torch.empty_like(t, dtype=dtype, memory_format=torch.contiguous_format) if t is not None and wanted else a.new_empty(0, dtype=dtype)
        for t, wanted in zip(tensors, want)
    ]


_SUM = define("pair_sum", f"(Tensor?[] weights, {INPUTS}, {SETTINGS}, bool[] want, int memory_budget) -> Tensor[]", _fake)


def _total(values: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Tensor:
    """The sum; a row of weight 0 adds nothing, whatever its value."""
    rows = [torch.where(weight == 0, 0.0, weight * value) for value, weight in zip(values, weights) if weight is not None]
    return sum(rows[1:], rows[0]).sum()


class _PairSum(torch.autograd.Function):
    """The sum, whose gradient the forward finds, and the statistics, which have none."""

    @staticmethod
    def forward(ctx, backend, settings, memory_budget, how, need, terms, *tensors):
        weights, inputs = tensors[:terms], tensors[terms:]
        want = [*how.wanted(need[:4]), *need[7:]]
        found = _SUM[backend](
            list(weights), *how.rows(*inputs[:4], backend), *inputs[4:7], list(inputs[7:]), *settings, want, memory_budget
        )
        found, by = found[: 2 * terms], found[2 * terms :]
        ctx.mark_non_differentiable(*found)
        ctx.save_for_backward(*tensors, *by)
        ctx.plan = backend, settings, how, need, want, terms
        return _total(found[::2], weights), *found

    @staticmethod
    def backward(ctx, grad, *_):
        backend, settings, how, need, want, terms = ctx.plan
        saved = ctx.saved_tensors
        weights, inputs, by = saved[:terms], saved[terms : -len(want)], saved[-len(want) :]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            run = lambda *given: (_total(formula(settings, *how.rows(*given[:4]), *given[4:])[::2], weights),)  # noqa: E731
            return (None,) * (6 + terms) + tuple(formula_backward(run, inputs, need, (grad,)))
        if torch.compiler.is_compiling() or grad.item() != 1:
            by = [each * grad for each in by]
        by = [each if wanted else None for each, wanted in zip(by, want)]
        by[:4] = how.gradients(inputs, how.rows(*inputs[:4], backend), by, need, backend)
        return (None,) * (6 + terms) + (*by[:4], None, None, None, *by[4:])


_apply = fast_apply(_PairSum)


def pair_sum(
    name: str,
    scores: Scores,
    terms: Sequence[Term],
    weights: Sequence[Tensor | None],
    labels: tuple[Tensor, Tensor | None] | None = None,
    codes: Tensor | None = None,
    skip: int | None = None,
    backend: str | None = None,
    memory_budget: int | None = None,
) -> tuple[Tensor, list[Statistic]]:
    """The weighted sum of statistics of rows, for the registered loss `name`.

    Args:
        weights: of each term a factor for each row, without a gradient, or None for a term that is not part of the sum, as a maximum must
            be. A row of weight 0 adds nothing.
        memory_budget: bytes for gradients of scores inside the call, as of :func:`fastloss.pair.pair_statistics`; scores are never kept.

    Other arguments are as for :func:`fastloss.pair.pair_statistics`.

    Returns:
        The sum, and a :class:`Statistic` for each term, without a gradient.
    """
    call = prepared_call(name, scores, terms, labels, codes, skip, backend, memory_budget)
    weights = [None if weight is None else weight.detach().contiguous() for weight in weights]
    weights += [None] * (len(terms) - len(weights))
    need = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in call.inputs)
    of_rows = scores.b is not None and all(term.side == "row" for term in terms) and not any(need[8::2])
    if call.backend not in FUSED or not of_rows or not any(need):
        found = statistics_of(call)
        return _total([one.value for one in found], weights), [Statistic(one.value.detach(), one.count) for one in found]
    total, *found = _apply(call.backend, call.settings, call.room[1], call.how, need, len(terms), *weights, *call.inputs)
    return total, paired(found)
