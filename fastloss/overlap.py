"""The overlap engine: sums that compare predicted probabilities with targets, for each sample and class.

One sweep over the input gives eight sums a sample and class (:data:`STATISTICS`). Dice, Jaccard, Tversky, F-beta, and their combinations
with cross-entropy and focal loss are formulas in plain torch over these few numbers, and so are their gradients, down to the gradient
of the sums, which a second sweep brings back to the input. No probability, one-hot target or mask is ever stored.

:func:`formula` says the sums in plain torch: it is the `eager` backend, the oracle of the tests, and what second derivatives and
`torch.func` run through.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _checks
from ._backends import choose
from .engine import accumulate_dtype, define, fast_apply, formula_backward
from .registry import LOSSES

# Of probability p and target t, over the elements that count: sums of p t, p, p^2, t, t^2, |p - t|, the functor's pointwise loss, and 1.
# The order is csrc/overlap.h's.
STATISTICS = ("intersection", "input", "input_square", "target", "target_square", "difference", "loss", "count")


def _amplify(p: Tensor, scale: float) -> Tensor:
    return torch.sigmoid(scale * (p - 0.5))


# By functor: from the input, the target and the parameters to probabilities and, where the functor has one, a pointwise loss.
_PLAIN: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "none": lambda x, t: (x, None),
    "sigmoid": lambda x, t: (torch.sigmoid(x), None),
    "sigmoid_cross_entropy": lambda x, t: (torch.sigmoid(x), LOSSES["binary_cross_entropy_with_logits"].point(x, t)),
    "sigmoid_focal": lambda x, t, *params: (torch.sigmoid(x), LOSSES["sigmoid_focal"].point(x, t, *params)),
    "amplified": lambda x, t, scale: (_amplify(x, scale), None),
    "amplified_sigmoid": lambda x, t, scale: (_amplify(torch.sigmoid(x), scale), None),
}
# Probabilities that are normalised over the classes: the row engine's loss whose function of the log-probability is the pointwise loss.
_SOFTMAX: dict[str, str | None] = {"softmax": None, "softmax_cross_entropy": "cross_entropy", "softmax_focal": "softmax_focal"}
FUNCTORS = (*_PLAIN, *_SOFTMAX)


def formula(
    functor: str,
    params: tuple[float, ...],
    first_label: int,
    ignore_index: int | None,
    input: Tensor,  # (N, C, S)
    target: Tensor,  # (N, S) labels, or numbers of the input's shape
) -> Tensor:
    """The sums in plain torch: (N, C, 8)."""
    accumulate = accumulate_dtype(input.dtype)
    x = input.to(accumulate)
    labels = target.dim() < input.dim()
    if labels:
        target = target.long()  # to compare with numbers that a narrow dtype does not have
    counts = None if ignore_index is None else (target.unsqueeze(1) if labels else target) != ignore_index
    if labels:
        classes = torch.arange(first_label, first_label + input.shape[1], device=target.device)
        t = (target.unsqueeze(1) == classes.unsqueeze(1)).to(accumulate)
    else:
        t = target.to(accumulate)
    if counts is not None:
        # What does not count must not reach the gradient even when it holds inf or NaN, so it is replaced before any arithmetic.
        t = torch.where(counts, t, 0.0)
        x = torch.where(counts, x, 0.0) if labels or functor in _PLAIN else x
    if functor in _PLAIN:
        p, loss = _PLAIN[functor](x, t, *params)
    else:
        log_prob, loss = torch.log_softmax(x, 1), None
        p = torch.exp(log_prob)
        if _SOFTMAX[functor]:
            # 0 times the loss of a class that is impossible would be NaN.
            loss = t * LOSSES[_SOFTMAX[functor]].point(torch.where(t == 0, 0.0, log_prob) if labels else log_prob, *params)
    if counts is not None:
        p = torch.where(counts, p, 0.0)
        loss = None if loss is None else torch.where(counts, loss, 0.0)
    count = torch.ones_like(t) if counts is None else counts.to(accumulate).expand_as(t)
    terms = (p * t, p, p * p, t, t * t, (p - t).abs(), torch.zeros_like(t) if loss is None else loss, count)
    return torch.stack([term.sum(2) for term in terms], 2)


_SETTINGS = "str functor, float[] params, int first_label, int? ignore_index"


def _forward_fake(input, target, functor, params, first_label, ignore_index):
    return input.new_empty((*input.shape[:2], len(STATISTICS)), dtype=accumulate_dtype(input.dtype))


def gradients(input: Tensor, target: Tensor, want_input: bool, want_target: bool) -> tuple[Tensor, Tensor]:
    """The uninitialised outputs of ``overlap_backward``; empty where not wanted."""
    return (
        torch.empty_like(input) if want_input else input.new_empty(0),
        torch.empty_like(target) if want_target else target.new_empty(0),
    )


def _backward_fake(grad, input, target, functor, params, first_label, ignore_index, want_input, want_target):
    return gradients(input, target, want_input, want_target)


_FORWARD = define("overlap_forward", f"(Tensor input, Tensor target, {_SETTINGS}) -> Tensor", _forward_fake)
_BACKWARD = define(
    "overlap_backward",
    f"(Tensor grad, Tensor input, Tensor target, {_SETTINGS}, bool want_input, bool want_target)"
    " -> (Tensor grad_input, Tensor grad_target)",
    _backward_fake,
)


class _Overlap(torch.autograd.Function):
    """The sums and their gradient on a compiled backend. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, input, target, backend, settings):
        ctx.save_for_backward(input, target)
        ctx.plan = backend, settings
        return _FORWARD[backend](input, target, *settings)

    @staticmethod
    def backward(ctx, grad):
        input, target = ctx.saved_tensors
        backend, settings = ctx.plan
        need_input, need_target, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            run = lambda *inputs: [formula(*settings, *inputs)]  # noqa: E731
            return *formula_backward(run, (input, target), (need_input, need_target), [grad]), None, None
        by_input, by_target = _BACKWARD[backend](grad.contiguous(), input, target, *settings, need_input, need_target)
        return by_input if need_input else None, by_target if need_target else None, None, None


_apply = fast_apply(_Overlap)


def overlap_statistics(
    name: str,
    functor: str,
    params: tuple[float, ...],
    input: Tensor,
    target: Tensor,
    ignore_index: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, torch.dtype]:
    """The sums of a registered overlap loss over all but the first two dimensions of `input`, and the dtype of its result.

    Args:
        name: of the loss, for messages.
        functor: one of :data:`FUNCTORS`.
        params: the functor's parameters.
        input: (N, C, d1, ...).
        target: labels (N, d1, ...) of an integer dtype or bool, or numbers of `input`'s shape. Where C = 1 a label of 1 is the class and
            0 is not, and integers may have the input's shape.
        ignore_index: labels, or numbers of the target, that do not count.
        backend: as of every loss.

    Returns:
        Tensor: (N, C, 8) in the accumulation dtype, :data:`STATISTICS` in the last dimension.
    """
    labels, dtype, result = _checks.overlap(name, input, target, ignore_index)
    backend, _ = choose(name, backend, input, target)
    samples, classes = input.shape[:2]
    pixels = torch.Size(input.shape[2:]).numel()
    input = input.to(dtype).reshape(samples, classes, pixels)
    first_label = 1 if classes == 1 else 0
    if labels:
        target = target.reshape(samples, pixels)
        if backend == "eager":
            _checks.labels_in_range(name, target, classes + first_label, ignore_index)
    else:
        target = target.to(dtype).reshape(samples, classes, pixels)
    settings = functor, params, first_label, ignore_index
    return (formula(*settings, input, target) if backend == "eager" else _apply(input, target, backend, settings)), result
