"""Sums of what the pair engine finds of each row, with the weights of rows known beforehand, and so with their gradient in one sweep.

A loss of the form ::

    sum over terms k and rows i of  w_ki * value_ki

has gradients of scores that are known, but for one factor, as soon as the statistics of a row are. On the ``cpu`` backend they are found
with them, a few blocks of rows at a time, while the scores of these are there: three products of matrices for the two gradients instead of
the four of a forward and a backward sweep (:func:`fastloss.pair.pair_statistics`). What stands between forward and backward are the
gradients, in the dtype that sums are kept in.
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


_SCALED = define(
    "pair_scaled", "(Tensor numbers, Tensor factor, ScalarType dtype) -> Tensor",
    lambda numbers, factor, dtype: torch.empty_like(numbers, dtype=dtype),
)


def _total(values: Sequence[Tensor], weights: Sequence[Tensor | None], counts: Tensor | None) -> Tensor:
    rows = [weight * value for value, weight in zip(values, weights) if weight is not None]
    rows = sum(rows[1:], rows[0])
    return (rows if counts is None else torch.where(counts, rows, 0.0)).sum()


class _PairSum(torch.autograd.Function):
    """The sum, whose gradient the forward finds, and the statistics, which have none."""

    @staticmethod
    def forward(ctx, backend, settings, memory_budget, how, need, counts, terms, *tensors):
        weights, inputs = tensors[:terms], tensors[terms:]
        want = [*how.wanted(need[:4]), *need[7:]]
        found = _SUM[backend](
            list(weights), *how.rows(*inputs[:4], backend), *inputs[4:7], list(inputs[7:]), *settings, want, memory_budget
        )
        found, by = found[: 2 * terms], found[2 * terms :]
        ctx.mark_non_differentiable(*found)
        ctx.save_for_backward(counts, *tensors, *by)
        ctx.plan = backend, settings, how, need, want, terms
        return _total(found[::2], weights, counts), *found

    @staticmethod
    def backward(ctx, grad, *_):
        backend, settings, how, need, want, terms = ctx.plan
        counts, *saved = ctx.saved_tensors
        weights, inputs, by = saved[:terms], tuple(saved[terms : -len(want)]), saved[-len(want) :]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            run = lambda *given: (_total(formula(settings, *how.rows(*given[:4]), *given[4:])[::2], weights, counts),)  # noqa: E731
            return (None,) * (7 + terms) + tuple(formula_backward(run, inputs, need, (grad,)))
        dtypes = [grad.dtype if t is None or any(how) else t.dtype for t in (*inputs[:4], *inputs[7:])]
        by = [_SCALED[backend](each, grad, dtype) if wanted else None for each, dtype, wanted in zip(by, dtypes, want)]
        by[:4] = how.gradients(inputs, how.rows(*inputs[:4], backend), by, need, backend)
        return (None,) * (7 + terms) + (*by[:4], None, None, None, *by[4:])


_apply = fast_apply(_PairSum)


def pair_sum(
    name: str,
    scores: Scores,
    terms: Sequence[Term],
    weights: Sequence[Tensor | None],
    counts: Tensor | None = None,
    labels: tuple[Tensor, Tensor | None] | None = None,
    codes: Tensor | None = None,
    skip: int | None = None,
    backend: str | None = None,
    memory_budget: int | None = None,
) -> tuple[Tensor, list[Statistic]]:
    """The weighted sum of statistics of rows, for the registered loss `name`.

    Args:
        weights: of each term a factor for each row, or None for a term that is not part of the sum, as a maximum must be.
        counts: bool (N,), the rows that are part of the sum; the others need weights of 0. None for all.
        memory_budget: bytes, as of :func:`fastloss.pair.pair_statistics`, of those for gradients of scores. As many again are for scores of
            rows at work, where the dtype of gradients is not theirs or none is wanted of the other set. No less than 256 rows are.

    Other arguments are as for :func:`fastloss.pair.pair_statistics`.

    Returns:
        The sum, and a :class:`Statistic` for each term, without a gradient.
    """
    call = prepared_call(name, scores, terms, labels, codes, skip, backend, memory_budget)
    weights = [*weights, *[None] * (len(terms) - len(weights))]
    need = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in call.inputs)
    of_rows = scores.b is not None and all(term.side == "row" for term in terms) and not any(need[8::2])
    learned = torch.is_grad_enabled() and any(weight is not None and weight.requires_grad for weight in weights)
    if call.backend not in FUSED or not of_rows or learned or not any(need):
        found = statistics_of(call)
        return _total([one.value for one in found], weights, counts), [Statistic(one.value.detach(), one.count) for one in found]
    weights = [None if weight is None else weight.contiguous() for weight in weights]
    total, *found = _apply(call.backend, call.settings, call.room[1], call.how, need, counts, len(terms), *weights, *call.inputs)
    return total, paired(found)
