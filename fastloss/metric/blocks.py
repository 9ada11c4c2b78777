"""Sums over blocks of rows of the score matrix, for losses that compare the scores of a row with one another.

A block is as much of the matrix as exists at a time. The gradient of a sum of blocks is that of each block, so it is taken in the forward,
while the block is there, and scaled in the backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..engine import formula_backward
from ..pair import Scores, prepared, score_matrix

ELEMENTS = 2**19  # of a block; a handful of float64 numbers each

# From the scores of rows start to end, (end - start, M), to a sum and a number without a gradient.
Formula = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


class _BlockSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, formula, scores, *tensors):
        need = ctx.needs_input_grad[2:]
        grads = [torch.zeros_like(t) if needed else None for t, needed in zip(tensors, need)]
        rows, columns = len(tensors[0]), len(tensors[1])
        step = max(1, ELEMENTS // max(columns, 1))
        total, number = tensors[0].new_zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64, device=tensors[0].device)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            leaves = [None if t is None else (t[start:end] if k in (0, 2) else t).detach() for k, t in enumerate(tensors)]
            wanted = [leaf.requires_grad_() for leaf, needed in zip(leaves, need) if needed]
            with torch.set_grad_enabled(bool(wanted)):
                found, count = formula(score_matrix(scores._replace(**dict(zip(_TENSORS, leaves)))), start, end)
            total, number = total + found.detach(), number + count
            by = iter(torch.autograd.grad(found, wanted) if wanted else ())
            for k, grad in enumerate(grads):
                if grad is not None:
                    (grad[start:end] if k in (0, 2) else grad).add_(next(by))
        ctx.mark_non_differentiable(number)
        ctx.save_for_backward(*tensors, *grads)
        ctx.about = formula, scores
        return total, number

    @staticmethod
    def backward(ctx, grad, _):
        tensors, grads = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled():
            formula, scores = ctx.about
            run = lambda *given: formula(score_matrix(scores._replace(**dict(zip(_TENSORS, given)))), 0, len(given[0]))[:1]  # noqa: E731
            return None, None, *formula_backward(run, tensors, ctx.needs_input_grad[2:], [grad])
        return None, None, *(None if g is None else g * grad.to(g.dtype) for g in grads)


_TENSORS = ("a", "b", "row_bias", "column_bias")


def block_sums(formula: Formula, scores: Scores) -> tuple[Tensor, Tensor]:
    """The sum of `formula` over blocks of rows, in float64, and of its numbers, with the scores' gradient."""
    scores = prepared(scores)
    b, column_bias = (scores.a, scores.row_bias) if scores.b is None else (scores.b, scores.column_bias)
    tensors = scores.a, b, scores.row_bias, column_bias
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():  # which take no gradient in a forward
        return formula(score_matrix(scores), 0, len(scores.a))
    return _BlockSums.apply(formula, scores._replace(a=None, b=None, row_bias=None, column_bias=None), *tensors)
