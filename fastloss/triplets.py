"""Sums over all triplets: an anchor, a row of its label, and a row of another one, none of which are listed.

Of scores that are the smaller the nearer two rows are, (N, M) from anchors to all rows::

    total = sum_i sum_p sum_n max(0, near_ip + margin - near_in)
    count = the number of those terms above 0

over the columns p of the label of row i and the columns n of other labels. :func:`formula` says it in plain torch, by sorting: it is the
`eager` backend, the oracle of the tests, and what second derivatives, `torch.func` and the other backends run through. The `cpu` backend
compares a row's few positives with all its negatives, or merges many with the sorted negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._backends import choose
from .engine import define, fast_apply, formula_backward
from .pair import dense_labels


def formula(near: Tensor, row_label: Tensor, column_label: Tensor, skip: int | None, margin: float) -> tuple[Tensor, Tensor]:
    """The total in float64, and the count; each row's negatives are sorted, and sums of them looked up for every positive."""
    same = row_label.unsqueeze(1) == column_label.unsqueeze(0)
    ordered = torch.where(~same, near, torch.inf).sort(1).values
    if skip is not None:
        same.diagonal(skip).fill_(False)
    limit = near + margin
    below = torch.searchsorted(ordered.detach(), limit.detach().contiguous())
    sums = torch.where(ordered == torch.inf, 0.0, ordered).double().cumsum(1)
    sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], 1)
    below = torch.where(same, below, 0)
    return torch.where(same, below * limit.double() - sums.gather(1, below), 0.0).sum(), below.sum()


_SUMS = define(
    "triplet_sums",
    "(Tensor near, Tensor row_label, Tensor column_label, int? skip, float margin) -> (Tensor total, Tensor count, Tensor grad)",
    lambda near, row_label, *_: (near.new_empty((), dtype=torch.float64), near.new_empty((), dtype=torch.int64), torch.empty_like(near)),
)


class _Triplets(torch.autograd.Function):
    """The sums on the `cpu` backend, the gradient with them. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, near, row_label, column_label, skip, margin):
        total, count, grad = _SUMS["cpu"](near, row_label, column_label, skip, margin)
        ctx.mark_non_differentiable(count)
        ctx.save_for_backward(near, row_label, column_label, grad)
        ctx.settings = skip, margin
        return total, count

    @staticmethod
    def backward(ctx, upstream, _):
        near, row_label, column_label, grad = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            run = lambda x: formula(x, row_label, column_label, *ctx.settings)[:1]  # noqa: E731
            return *formula_backward(run, (near,), (True,), [upstream]), None, None, None, None
        return grad * upstream.to(grad.dtype), None, None, None, None


_apply = fast_apply(_Triplets)


def triplet_sums(
    name: str, near: Tensor, row_label: Tensor, column_label: Tensor, skip: int | None, margin: float
) -> tuple[Tensor, Tensor]:
    """The total and the count, for the loss `name`.

    Args:
        name: of the loss, for messages.
        near: (N, M), float32 or float64; the smaller the nearer.
        row_label: (N,), of any dtype.
        column_label: (M,), the same.
        skip: leave out positives with ``column - row == skip``; None for none.
        margin: added to each difference.
    """
    if choose(name, None, near)[0] != "cpu":
        return formula(near, row_label, column_label, skip, margin)
    row_label, column_label = dense_labels(row_label, column_label, near.dtype)
    return _apply(near.contiguous(), row_label.contiguous(), column_label.contiguous(), skip, float(margin))
