"""Sums over blocks of rows of the score matrix, for losses that compare the scores of a row with one another.

A block is as much of the matrix as exists at a time. The gradient of a sum of blocks is that of each block, so it is taken in the forward,
while the block is there, and scaled in the backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._backends import choose
from ..engine import formula_backward
from ..matrix import stored_scores
from ..pair import Preparation, Scores, score_matrix

ELEMENTS = 2**19  # of a block; a handful of float64 numbers each

# From the scores of rows start to end, (end - start, M), to a sum and a number without a gradient.
Formula = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


class _BlockSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, name, formula, scores, *tensors):
        need, (backend, _) = ctx.needs_input_grad[3:], choose(name, None, tensors[0])
        how = Preparation(scores.unit, scores.euclidean, tensors[1] is None)
        ready, want = how.rows(*tensors, backend), how.wanted(need)
        plain = scores._replace(unit=False, euclidean=False)
        grads = [torch.zeros_like(t) if wanted else None for t, wanted in zip(ready, want)]
        rows, columns = len(ready[0]), len(ready[1])
        step = max(1, ELEMENTS // max(columns, 1))
        total, number = ready[0].new_zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64, device=ready[0].device)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            leaves = [None if t is None else (t[start:end] if k in (0, 2) else t).detach() for k, t in enumerate(ready)]
            wanted = [leaf.requires_grad_() for leaf, needed in zip(leaves, want) if needed]
            with torch.set_grad_enabled(bool(wanted)):
                found, count = formula(stored_scores(name, plain._replace(**dict(zip(_TENSORS, leaves)))), start, end)
            total, number = total + found.detach(), number + count
            by = iter(torch.autograd.grad(found, wanted) if wanted else ())
            for k, grad in enumerate(grads):
                if grad is not None:
                    (grad[start:end] if k in (0, 2) else grad).add_(next(by))
        ctx.mark_non_differentiable(number)
        ctx.save_for_backward(*tensors, *how.gradients(tensors, ready, grads, need, backend))
        ctx.about = formula, scores
        return total, number

    @staticmethod
    def backward(ctx, grad, _):
        tensors, grads = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled():
            formula, scores = ctx.about
            run = lambda *given: formula(score_matrix(scores._replace(**dict(zip(_TENSORS, given)))), 0, len(given[0]))[:1]  # noqa: E731
            return None, None, None, *formula_backward(run, tensors, ctx.needs_input_grad[3:], [grad])
        return None, None, None, *(None if g is None else g * grad.to(g.dtype) for g in grads)


_TENSORS = ("a", "b", "row_bias", "column_bias")


def block_sums(name: str, formula: Formula, scores: Scores) -> tuple[Tensor, Tensor]:
    """The sum of `formula` over blocks of rows, in float64, and of its numbers, with the scores' gradient, for the loss `name`."""
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():  # which take no gradient in a forward
        return formula(score_matrix(scores), 0, len(scores.a))
    tensors = (None if t is None else t.contiguous() for t in scores[:4])
    return _BlockSums.apply(name, formula, scores._replace(a=None, b=None, row_bias=None, column_bias=None), *tensors)
