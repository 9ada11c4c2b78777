"""Scores of listed pairs of rows: entry k is that of row i_k of one set and row j_k of another.

The formula is the pair engine's, of which no other pair is computed. The `cpu` backend reads the listed rows where they are, and adds up
the gradient of a row from its own entries, in their order, so that threads make no difference; the others copy some rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._backends import choose
from .engine import accumulate_dtype, define, fast_apply, formula_backward
from .pair import Preparation, Scores, transformed

CHUNK = 2**22  # numbers of rows that are copied at a time

_LISTED = define("pair_listed", "(Tensor a, Tensor b, Tensor i, Tensor j) -> Tensor", lambda a, b, i, j: a.new_empty(i.shape))
_LISTED_BACKWARD = define(
    "pair_listed_backward", "(Tensor weight, Tensor owner, SymInt rows, Tensor other, Tensor j) -> Tensor",
    lambda weight, owner, rows, other, j: other.new_empty(rows, other.shape[1]),
)


def formula(a: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Dot products of listed rows in plain torch."""
    return (a[i] * b[j]).sum(1)


def _chunks(entries: int, features: int) -> list[slice]:
    step = max(1, CHUNK // max(features, 1))
    return [slice(start, start + step) for start in range(0, max(entries, 1), step)]


class _Listed(torch.autograd.Function):
    """Dot products of listed rows. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, backend, a, b, i, j):
        ctx.save_for_backward(a, b, i, j)
        ctx.backend = backend
        if backend == "cpu":
            return _LISTED["cpu"](a, b, i, j)
        return torch.cat([formula(a, b, i[some], j[some]) for some in _chunks(len(i), a.shape[1])])

    @staticmethod
    def backward(ctx, grad):
        a, b, i, j = ctx.saved_tensors
        need = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return None, *formula_backward(lambda *given: [formula(*given)], (a, b, i, j), need, [grad])
        grad = grad.contiguous()
        found = [
            _gradient(ctx.backend, grad, own, len(rows), others, other) if wanted else None
            for wanted, rows, own, others, other in ((need[0], a, i, b, j), (need[1], b, j, a, i))
        ]
        return None, *found, None, None


def _gradient(backend: str, grad: Tensor, own: Tensor, rows: int, others: Tensor, other: Tensor) -> Tensor:
    if backend == "cpu":
        return _LISTED_BACKWARD["cpu"](grad, own, rows, others, other)
    found = others.new_zeros(rows, others.shape[1])
    for some in _chunks(len(own), others.shape[1]):
        found.index_put_((own[some],), grad[some].unsqueeze(1) * others[other[some]], accumulate=True)  # index_add_ is not deterministic
    return found


_apply = fast_apply(_Listed)


def listed(name: str, scores: Scores, i: Tensor, j: Tensor) -> Tensor:
    """Scores of listed pairs, for the loss `name`.

    Args:
        name: of the loss, for messages.
        scores: what is compared, and how.
        i: (K,) int64, rows of the first set.
        j: (K,), of the second.

    Returns:
        (K,), of the dtype that sums are kept in.
    """
    backend, _ = choose(name, None, scores.a)
    wide = accumulate_dtype(scores.a.dtype)
    rows = (None if t is None else t.to(wide) for t in scores[:4])
    a, b, row_bias, column_bias = Preparation(scores.unit, scores.euclidean, scores.b is None).rows(*rows)
    if backend == "eager":
        dots = formula(a, b, i, j)
    else:
        dots = _apply(backend, *(t.contiguous() for t in (a, b, i, j)))
    found = scores.scale * dots
    if row_bias is not None:
        found = found + row_bias[i]
    if column_bias is not None:
        found = found + column_bias[j]
    return transformed(found, scores.transform, scores.cap)
