"""The sort engine: losses that weigh errors by their rank, so far the Lovasz extension of the Jaccard index (Berman et al. 2018).

A *row* is what is sorted together: the elements of one class, of an image or of the whole batch. Its elements have an error ``e >= 0``
and are foreground or not. Sorted from the largest error down, the weight of an element depends on the labels up to its rank only::

    G = foreground of the row, c = foreground and b = background among the errors down to this one (itself included)
    weight = 1 / (G + b)                          of foreground
             (G - c) / ((G + b) (G + b - 1))      of background; 1 for the first and 0 for the others where G = 0
    row    = sum_k e_k weight_k
    loss   = mean over groups (images, or the batch) of the mean over the rows that count

These are the increments ``J_k - J_(k-1)`` of the Jaccard loss ``1 - (G - c) / (G + b)`` without its cancellation. The rank of an element
whose error is 0 or less is never used, so such elements need no sorting. :func:`formula` says all this in plain torch: it is the `eager`
backend, the oracle of the tests, and what second derivatives and `torch.func` run through. The other backends sort one row, or a few, at
a time and keep the weight of every element (``slopes``) for the backward, which is one sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import _checks
from ._backends import choose
from .engine import accumulate_dtype, define, fast_apply, formula_backward

CHUNK = 2**24  # elements that are sorted in one go on a GPU, where that is more than a row


def hinge_errors(score: Tensor, foreground: Tensor) -> Tensor:
    """``max(0, 1 - s x)`` with s = 1 for foreground and -1 for background."""
    return torch.relu(1.0 - torch.where(foreground, score, -score))


def distances(score: Tensor, foreground: Tensor) -> Tensor:
    """``|f - p|`` with f = 1 for foreground and 0 for background."""
    return (score - foreground.to(score.dtype)).abs()


# How errors come from the input: the function of a score and its label, and whether scores are the softmax over the channels.
ERRORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "hinge": (hinge_errors, False),
    "softmax": (distances, True),
    "probability": (distances, False),
}


class Settings(NamedTuple):
    """How a call is cut into rows and which of them count.

    Args:
        errors: a key of :data:`ERRORS`.
        classes: the class of each row of a group; of a single channel, the one that is foreground.
        per_image: whether a group is an image, or the whole batch.
        present: whether only the classes count that a group has an element of.
        ignore_index: a label whose elements take no part, or None.
    """

    errors: str
    classes: list[int]
    per_image: bool
    present: bool
    ignore_index: int | None


def formula(settings: Settings, input: Tensor, target: Tensor) -> Tensor:
    """The engine's mathematics in plain torch, for (N, C, I) scores and (N * I,) labels."""
    point, normalise = ERRORS[settings.errors]
    images, channels, inner = input.shape
    label = target.reshape(images, inner).long()  # to compare with numbers that a narrow dtype does not have
    # An ignored element must not reach the gradient even when it holds inf or NaN, so it is replaced before any arithmetic.
    used = torch.ones_like(label, dtype=torch.bool) if settings.ignore_index is None else label != settings.ignore_index
    score = torch.where(used.unsqueeze(1), input, 0.0).to(accumulate_dtype(input.dtype))
    score = torch.softmax(score, 1) if normalise else score
    if not settings.per_image:
        score = score.movedim(1, 0).reshape(1, channels, images * inner)
        label, used = label.reshape(1, -1), used.reshape(1, -1)
    label, used = label.unsqueeze(1), used.unsqueeze(1)
    if channels == 1 or settings.classes != list(range(channels)):
        score = torch.stack([score[:, c if channels > 1 else 0] for c in settings.classes], 1)
        foreground = torch.cat([label == c for c in settings.classes], 1) & used  # (groups, rows, elements)
    else:
        foreground = (label == torch.arange(channels, device=label.device).unsqueeze(1)) & used
    error = torch.where(used, point(score, foreground), 0.0)

    error, order = torch.sort(error, dim=-1, descending=True, stable=True)
    weight, total = jaccard(foreground.gather(-1, order), error.dtype)
    rows = (error * weight).sum(-1)
    return mean_of_rows(rows, total, settings.present)[0]


def jaccard(foreground: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight of each rank for sorted labels (..., elements), and the foreground of each row (...); see the module's formula."""
    seen = foreground.cumsum(-1)
    total = foreground.sum(-1, keepdim=True)
    union = total + torch.arange(1, foreground.shape[-1] + 1, device=foreground.device) - seen
    background = (total - seen).to(dtype) / (union * (union - 1).clamp_min(1)).to(dtype)
    background = torch.where((total == 0) & (union == 1), 1.0, background)
    return torch.where(foreground, 1.0 / union.to(dtype), background), total.squeeze(-1)


def mean_of_rows(rows: Tensor, total: Tensor, present: bool) -> tuple[Tensor, Tensor]:
    """The loss from (groups, rows of a group) sums and their foreground, and the share that each row has in it; nothing gives 0."""
    counts = total > 0 if present else torch.ones_like(total, dtype=torch.bool)
    share = counts / (counts.sum(1, keepdim=True).clamp_min(1) * max(rows.shape[0], 1)).to(rows.dtype)
    return (torch.where(counts, rows, 0.0) * share).sum(), share


def forward_outputs(input: Tensor, settings: Settings, want_slopes: bool) -> tuple[Tensor, ...]:
    """The uninitialised outputs of ``sort_forward``: loss, stats, slopes, shares.

    Stats are (2, elements), maximum and inverse of the sum, of a softmax. Slopes are the weights (groups, rows, elements of a group),
    shares (groups, rows).
    """
    images, _, inner = input.shape
    dtype = accumulate_dtype(input.dtype)
    groups, size = (images, inner) if settings.per_image else (1, images * inner)
    rows = len(settings.classes)
    return (
        input.new_empty((), dtype=dtype),
        input.new_empty((2, images * inner) if ERRORS[settings.errors][1] else (0, 0), dtype=dtype),
        input.new_empty((groups, rows, size) if want_slopes else (0, 0, 0), dtype=dtype),
        input.new_empty((groups, rows), dtype=dtype),
    )


def _forward_fake(input, target, errors, classes, per_image, present, ignore_index, want_slopes):
    return forward_outputs(input, Settings(errors, classes, per_image, present, ignore_index), want_slopes)


def gradient_like(input: Tensor) -> Tensor:
    """An uninitialised gradient of the input: contiguous."""
    return input.new_empty(input.shape)


def _backward_fake(grad_loss, input, *_):
    return gradient_like(input)


# The input is (N, C, I) with unit stride over I, the target (N * I,) contiguous int64 or uint8. The loss has the accumulation dtype.
_SETTINGS = "str errors, int[] classes, bool per_image, bool present, int? ignore_index"
_FORWARD = define(
    "sort_forward",
    f"(Tensor input, Tensor target, {_SETTINGS}, bool want_slopes) -> (Tensor loss, Tensor stats, Tensor slopes, Tensor shares)",
    _forward_fake,
)
_BACKWARD = define(
    "sort_backward",
    f"(Tensor grad_loss, Tensor input, Tensor target, Tensor stats, Tensor slopes, Tensor shares, {_SETTINGS}) -> Tensor",
    _backward_fake,
)


class _Sort(torch.autograd.Function):
    """Forward and backward of the engine on a compiled backend. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, input, target, backend, want_slopes, settings):
        loss, stats, slopes, shares = _FORWARD[backend](input, target, *settings, want_slopes)
        ctx.save_for_backward(input, target, stats, slopes, shares)
        ctx.plan = backend, settings
        return loss

    @staticmethod
    def backward(ctx, grad):
        input, target, stats, slopes, shares = ctx.saved_tensors
        backend, settings = ctx.plan
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            run = lambda x: [formula(settings, x, target)]  # noqa: E731
            return *formula_backward(run, (input,), ctx.needs_input_grad[:1], [grad]), None, None, None, None
        return _BACKWARD[backend](grad, input, target, stats, slopes, shares, *settings), None, None, None, None


_apply = fast_apply(_Sort)


def canonical(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, ...) scores as (N, C, I) with unit stride over I, without a copy where strides allow, and (N, ...) labels as (N * I,)."""
    images, channels = input.shape[:2]
    input = input.reshape(images, channels, target.numel() // images if images else 0)
    if input.shape[2] > 1 and input.stride(2) != 1:
        input = input.contiguous()
    if target.dtype == torch.bool:
        target = target.contiguous().view(torch.uint8)
    elif target.dtype not in (torch.uint8, torch.int64):
        target = target.to(torch.int64)
    return input, target.reshape(-1).contiguous()


def sort_loss(
    name: str,
    input: Tensor,  # (N, C, d1, ...)
    target: Tensor,  # (N, d1, ...)
    settings: Settings,
    known: int | None,
    backend: str | None,
) -> Tensor:
    """Run the registered loss `name` on checked arguments: choose a backend, bring to a canonical layout, run.

    `known` is the number of classes that labels are out of, or None where any label is legal.
    """
    device = input.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    dtype = accumulate_dtype(input.dtype) if autocast else input.dtype  # autocast's rule for losses
    backend, _ = choose(name, backend, input, target)
    input, target = canonical(input, target)
    if backend in ("eager", "cuda", "triton") and known is not None:
        _checks.labels_in_range(name, target, known, settings.ignore_index)
    if backend == "eager":
        loss = formula(settings, input, target)
    else:
        loss = _apply(input, target, backend, input.requires_grad and torch.is_grad_enabled(), settings)
    return loss if loss.dtype == dtype else loss.to(dtype)


class DeviceKernels(Protocol):
    """What a backend offers to :func:`sorted_forward`. `rows` are numbered over all groups; `tile` elements share a partial sum."""

    tile: int

    def statistics(self, call: DeviceCall, stats: Tensor) -> None:
        """The maximum over the channels and the inverse of the sum, for every element."""

    def keys(self, call: DeviceCall, stats: Tensor, first_row: int, keys: Tensor) -> None:
        """The errors of the rows from `first_row` on; below 0 where ignored. keys: (rows, elements)."""

    def count(self, call: DeviceCall, first_row: int, order: Tensor, counts: Tensor) -> None:
        """The foreground of every tile of the sorted rows. counts: (rows, tiles) int64."""

    def weigh(
        self, call: DeviceCall, first_row: int, keys: Tensor, order: Tensor, before: Tensor, total: Tensor, partial: Tensor,
        slopes: Tensor | None,
    ) -> None:
        """The sum of ``error * weight`` of every tile, and the weight of every element where it came from.

        before: (rows, tiles), the foreground before each tile; total: (rows,); partial: (rows, tiles); slopes: (rows, elements).
        """


class DeviceCall(NamedTuple):
    """What the kernels of a GPU need to know about a call."""

    input: Tensor
    target: Tensor
    settings: Settings
    rows: int  # of a group
    size: int  # elements of a row
    class_of_row: Tensor | None  # (rows of a group,) int64; None where a row's number is its class, or there is one channel
    row_of_channel: Tensor | None  # (channels,) int64, -1 where no row has it


def device_call(input: Tensor, target: Tensor, settings: Settings) -> DeviceCall:
    """Describe a call, with tables where rows are not simply the channels. Nothing is copied from the host: that would synchronise."""
    images, channels, inner = input.shape
    classes = settings.classes
    size = inner if settings.per_image else images * inner
    class_of_row = row_of_channel = None
    if channels > 1 and list(classes) != list(range(channels)):
        class_of_row = target.new_empty(len(classes), dtype=torch.int64)
        row_of_channel = target.new_full((channels,), -1, dtype=torch.int64)
        for row, c in enumerate(classes):
            class_of_row[row].fill_(c)
            row_of_channel[c].fill_(row)
    return DeviceCall(input, target, settings, len(classes), size, class_of_row, row_of_channel)


def sorted_forward(kernels: DeviceKernels, input: Tensor, target: Tensor, settings: Settings, want_slopes: bool) -> tuple[Tensor, ...]:
    """``sort_forward`` of a GPU: kernels around torch's own device-wide sort, a few rows at a time."""
    _, stats, slopes, shares = forward_outputs(input, settings, want_slopes)
    call = device_call(input, target, settings)
    rows = shares.numel()
    losses = shares.new_zeros(rows)
    totals = target.new_zeros(rows, dtype=torch.int64)
    if call.size and rows:
        if ERRORS[settings.errors][1]:
            kernels.statistics(call, stats)
        weights = slopes.view(rows, call.size) if want_slopes else None
        step = max(CHUNK // call.size, 1)
        for first in range(0, rows, step):
            some = slice(first, min(first + step, rows))
            keys = shares.new_empty(some.stop - first, call.size)
            kernels.keys(call, stats, first, keys)
            keys, order = keys.sort(dim=1, descending=True, stable=True)
            counts = totals.new_empty(keys.shape[0], -(-call.size // kernels.tile))
            kernels.count(call, first, order, counts)
            before = counts.cumsum(1)
            totals[some] = before[:, -1]
            before -= counts
            partial = keys.new_empty(counts.shape)
            kernels.weigh(call, first, keys, order, before, totals[some], partial, None if weights is None else weights[some])
            losses[some] = partial.sum(1)
    loss, share = mean_of_rows(losses.view(shares.shape), totals.view(shares.shape), settings.present)
    return loss, stats, slopes, share
