"""The scores of all pairs as a matrix, for losses that compare them with one another, with their gradient written out.

:func:`fastloss.pair.score_matrix` says it in plain torch: what second derivatives and `torch.func` run through. Here each step overwrites
the one before, and what rows need done to them is done by the pair engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._backends import choose
from .engine import accumulate_dtype, fast_apply, formula_backward, without_autocast
from .pair import Preparation, Scores, score_matrix


class _Matrix(torch.autograd.Function):
    """Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, about, how, backend, *tensors):
        wide = accumulate_dtype(tensors[0].dtype)
        a, b, row_bias, column_bias = how.rows(*tensors, backend)
        with without_autocast(a.device):
            matrix = (a.to(wide) @ b.to(wide).t()).mul_(about.scale)
        for bias, dim in ((row_bias, 1), (column_bias, 0)):
            if bias is not None:
                matrix += bias.unsqueeze(dim)
        if about.transform == "softcap":
            matrix.div_(about.cap).tanh_().mul_(about.cap)
        elif about.transform != "none":
            matrix.relu_()
        if about.transform == "sqrt":
            matrix.sqrt_()
        ctx.save_for_backward(*tensors, matrix)
        ctx.plan = about, how, backend
        return matrix

    @staticmethod
    def backward(ctx, grad):
        *tensors, matrix = ctx.saved_tensors
        (about, how, backend), need = ctx.plan, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            run = lambda *given: [score_matrix(Scores(*given, *about[4:]))]  # noqa: E731
            return None, None, None, *formula_backward(run, tensors, need, [grad])
        if about.transform == "softcap":
            grad = grad * (1 - (matrix / about.cap).square())
        elif about.transform == "clamp":
            grad = torch.where(matrix > 0, grad, 0.0)
        elif about.transform == "sqrt":
            grad = torch.where(matrix > 0, grad / matrix, 0.0).mul_(0.5)
        ready, want = how.rows(*tensors, backend), how.wanted(need)
        with without_autocast(grad.device):
            by = [
                (grad @ ready[1].to(grad.dtype)).mul_(about.scale) if want[0] else None,
                (grad.t() @ ready[0].to(grad.dtype)).mul_(about.scale) if want[1] else None,
                grad.sum(1) if want[2] else None, grad.sum(0) if want[3] else None,
            ]
        return None, None, None, *how.gradients(tensors, ready, by, need, backend)


_apply = fast_apply(_Matrix)


def stored_scores(name: str, scores: Scores) -> Tensor:
    """The score of every pair, (N, M), in the dtype that sums are kept in, for the loss `name`."""
    backend, _ = choose(name, None, scores.a)
    if backend == "eager" or torch.compiler.is_compiling():
        return score_matrix(scores)
    how = Preparation(scores.unit, scores.euclidean, scores.b is None)
    tensors = (None if t is None else t.contiguous() for t in scores[:4])
    return _apply(scores._replace(a=None, b=None, row_bias=None, column_bias=None), how, backend, *tensors)
