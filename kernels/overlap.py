"""The overlap engine in Triton: one forward and one backward kernel.

A program works on SPAN pixels of one sample. Where a tile holds all classes (FITS) it goes over blocks of pixels and reads every element
once. Otherwise it goes over blocks of classes, and once more for each thing that must be known of a pixel before the next: the softmax's
normaliser, and what centres its gradient. csrc/overlap.h says what each field means; this file computes the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastloss import _checks
from fastloss.engine import accumulate_dtype, library
from fastloss.overlap import STATISTICS, gradients

from . import INTERPRETED, launch
from .functors import OVERLAP, sign
from .tuning import OVERLAP as TUNING
from .tuning import layout_class

WIDTH = tl.constexpr(len(STATISTICS))
NO_CLASS, IGNORED = tl.constexpr(-1), tl.constexpr(-2)


@triton.jit
def _tile(c, s, strides):
    """Where classes `c` of pixels `s` are in a sample."""
    return (c.to(tl.int64) * strides[1])[:, None] + (s * strides[2])[None, :]


@triton.jit
def _labels(target_ptr, s, strides, live, classes, first_label, ignore_index, IGNORES: tl.constexpr):
    """The class of each pixel, NO_CLASS for none of them, IGNORED where it does not count."""
    label = tl.load(target_ptr + s * strides[2], mask=live, other=0).to(tl.int64)
    place = label - first_label
    place = tl.where((place >= 0) & (place < classes), place, NO_CLASS).to(tl.int32)
    if IGNORES:
        return tl.where(live & (label != ignore_index), place, IGNORED)
    else:
        return tl.where(live, place, IGNORED)


@triton.jit
def _operands(
    input_ptr, input_strides, target_ptr, target_strides, c, s, classes, live, label, ignore_index,
    SOFTMAX: tl.constexpr, LABELS: tl.constexpr, IGNORES: tl.constexpr, ACC: tl.constexpr,
):
    """Input and target of a tile, and which elements count. What does not is 0, but for numbers that take part in a softmax."""
    inside = (c < classes)[:, None] & live[None, :]
    x = tl.load(input_ptr + _tile(c, s, input_strides), mask=inside, other=0.0).to(ACC)
    if LABELS:
        valid = inside & (label > IGNORED)[None, :]
        t = (valid & (label[None, :] == c[:, None])).to(ACC)
    else:
        valid = inside
        t = tl.load(target_ptr + _tile(c, s, target_strides), mask=inside, other=0.0).to(ACC)
        if IGNORES:
            valid = inside & (t != ignore_index.to(ACC))
            t = tl.where(valid, t, 0.0)
    if IGNORES and (LABELS or not SOFTMAX):
        x = tl.where(valid, x, 0.0)
    return x, t, valid


@triton.jit
def _normaliser(
    input_ptr, strides, s, live, label, classes,
    LABELS: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """The maximum of each pixel and the sum of exponentials relative to it, over blocks of classes."""
    top = tl.full((BLOCK_S,), float("-inf"), ACC)
    total = tl.full((BLOCK_S,), 0.0, ACC)
    for block in tl.range(0, classes, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        known = (c < classes)[:, None]
        x = tl.load(input_ptr + _tile(c, s, strides), mask=known & live[None, :], other=0.0).to(ACC)
        if LABELS:
            x = tl.where((label > IGNORED)[None, :], x, 0.0)
        x = tl.where(known, x, float("-inf"))
        higher = tl.maximum(top, tl.max(x, 0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # so that blocks of -inf give 0, not NaN
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(x - shift[None, :]), 0)
        top = higher
    return top, total


@triton.jit
def _softmax(x, c, classes, top, total, FITS: tl.constexpr):
    """Probabilities and their logarithms; `top` and `total` are found here where the tile holds all classes."""
    if FITS:
        x = tl.where((c < classes)[:, None], x, float("-inf"))
        top = tl.max(x, 0)
    x = x - top[None, :]
    e = tl.exp(x)
    if FITS:
        total = tl.sum(e, 0)
    return e * (1.0 / total)[None, :], x - tl.log(total)[None, :]


@triton.jit
def _terms(
    x, t, valid, c, classes, top, total, p,
    FN: tl.constexpr, SOFTMAX: tl.constexpr, LOSS: tl.constexpr, LABELS: tl.constexpr, FITS: tl.constexpr,
):
    """Probability and pointwise loss of each element, 0 where it does not count."""
    if SOFTMAX:
        prob, log_prob = _softmax(x, c, classes, top, total, FITS)
        loss = tl.zeros_like(x)
        if LOSS:
            value, _ = FN(log_prob, p)
            # 0 times the loss of a class that is impossible would be NaN.
            loss = tl.where(t != 0.0, value, 0.0) if LABELS else t * value
    else:
        prob, _, loss, _, _ = FN(x, t, p)
    return tl.where(valid, prob, 0.0), tl.where(valid, loss, 0.0)


@triton.jit
def _gradients(
    x, t, valid, c, classes, top, total, g, p,
    FN: tl.constexpr, SOFTMAX: tl.constexpr, LOSS: tl.constexpr, LABELS: tl.constexpr, FITS: tl.constexpr,
):
    """Of each element the probability, and the gradients to the input (of a softmax, to the log-probability) and to the target."""
    if SOFTMAX:
        prob, log_prob = _softmax(x, c, classes, top, total, FITS)
    else:
        prob, slope, _, loss_input, loss_target = FN(x, t, p)
    side = g[5] * sign(prob - t)
    by_input = g[0] * t + g[1] + 2.0 * g[2] * prob + side
    by_target = g[0] * prob + g[3] + 2.0 * g[4] * t - side
    by_input *= prob if SOFTMAX else slope
    if LOSS:
        if SOFTMAX:
            loss_target, derivative = FN(log_prob, p)
            loss_input = tl.where(t != 0.0, derivative, 0.0) if LABELS else t * derivative
        by_input += g[6] * loss_input
        by_target += g[6] * loss_target
    return prob, tl.where(valid, by_input, 0.0), tl.where(valid, by_target, 0.0)


@triton.jit
def _fold(x, FOLD: tl.constexpr):
    """Sums of FOLD neighbouring pixels, which one thread holds: as many fewer registers for what is summed."""
    if FOLD == 1:
        return x
    elif len(x.shape) == 3:
        return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // FOLD, FOLD, x.shape[2])), 2)
    else:
        return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // FOLD, FOLD)), 2)


@triton.jit
def overlap_forward_kernel(
    input_ptr,
    target_ptr,  # labels of any integer type when LABELS, else numbers of the input's type
    sums_ptr,  # (samples, spans, classes, WIDTH) ACC
    input_strides,  # of samples, classes and pixels
    target_strides,
    classes: tl.int64,
    pixels: tl.int64,
    first_label: tl.int64,
    ignore_index: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    FN: tl.constexpr,
    SOFTMAX: tl.constexpr,
    LOSS: tl.constexpr,
    LABELS: tl.constexpr,
    IGNORES: tl.constexpr,
    ACC: tl.constexpr,
    FITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPAN: tl.constexpr,  # pixels of a program, a multiple of BLOCK_S; BLOCK_S unless FITS
    FOLD: tl.constexpr,
):
    # Scalars arrive as doubles so that double inputs lose nothing.
    p = (tl.full((), p0, ACC), tl.full((), p1, ACC), tl.full((), p2, ACC), tl.full((), p3, ACC))
    program = tl.program_id(0).to(tl.int64)
    spans = tl.cdiv(pixels, SPAN)
    sample = program // spans
    first = (program - sample * spans) * SPAN
    input_ptr += sample * input_strides[0]
    target_ptr += sample * target_strides[0]
    sums_ptr += program * classes * WIDTH
    lane = tl.arange(0, BLOCK_S)

    span_label, top, total = None, None, None
    if not FITS:
        span = first + lane
        span_live = span < pixels
        if LABELS:
            span_label = _labels(target_ptr, span, target_strides, span_live, classes, first_label, ignore_index, IGNORES)
        if SOFTMAX:
            top, total = _normaliser(input_ptr, input_strides, span, span_live, span_label, classes, LABELS, ACC, BLOCK_C, BLOCK_S)

    for block in tl.range(0, 1 if FITS else classes, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        SHAPE: tl.constexpr = (BLOCK_C, BLOCK_S // FOLD)
        both = tl.zeros((BLOCK_C, BLOCK_S // FOLD, 2), ACC)
        products = tl.zeros((BLOCK_C, BLOCK_S // FOLD, 2), ACC)
        target_square = tl.zeros(SHAPE, ACC)
        difference = tl.zeros(SHAPE, ACC)
        losses = tl.zeros(SHAPE, ACC)
        count = tl.zeros((BLOCK_S,) if LABELS else SHAPE, ACC)
        for start in tl.range(first, tl.minimum(first + SPAN, pixels), BLOCK_S):
            s = start + lane
            live = lane < pixels - start
            if LABELS and FITS:
                label = _labels(target_ptr, s, target_strides, live, classes, first_label, ignore_index, IGNORES)
            else:
                label = span_label
            x, t, valid = _operands(
                input_ptr, input_strides, target_ptr, target_strides, c, s, classes, live, label, ignore_index,
                SOFTMAX, LABELS, IGNORES, ACC,
            )
            prob, loss = _terms(x, t, valid, c, classes, top, total, p, FN, SOFTMAX, LOSS, LABELS, FITS)
            # Joined, since a label compares so cheaply that alone its sum would be compiled for threads of its own, and then moved; and
            # both in pairs, so that where t is 1 the sums of p and p t have the same bits.
            both += _fold(tl.join(prob, t), FOLD)
            products += _fold(tl.join(prob * t, prob * prob), FOLD)
            if not LABELS:
                target_square += _fold(t * t, FOLD)
            difference += _fold(tl.abs(prob - t), FOLD)
            if LOSS:
                losses += _fold(loss, FOLD)
            count += (label > IGNORED).to(ACC) if LABELS else _fold(valid.to(ACC), FOLD)
        known = c < classes
        sums = sums_ptr + c.to(tl.int64) * WIDTH
        input, target = tl.split(tl.sum(both, 1))
        intersection, input_square = tl.split(tl.sum(products, 1))
        tl.store(sums, intersection, mask=known)
        tl.store(sums + 1, input, mask=known)
        tl.store(sums + 2, input_square, mask=known)
        tl.store(sums + 3, target, mask=known)
        tl.store(sums + 4, target if LABELS else tl.sum(target_square, 1), mask=known)
        tl.store(sums + 5, tl.sum(difference, 1), mask=known)
        tl.store(sums + 6, tl.sum(losses, 1), mask=known)
        tl.store(sums + 7, tl.sum(count, 0) if LABELS else tl.sum(count, 1), mask=known)


@triton.jit
def _upstream(grad_ptr, c, classes):
    """The upstream gradients of a block of classes; the number of elements has none."""
    grad = grad_ptr + c.to(tl.int64) * WIDTH
    known = c < classes
    return (
        tl.load(grad, mask=known, other=0.0)[:, None],
        tl.load(grad + 1, mask=known, other=0.0)[:, None],
        tl.load(grad + 2, mask=known, other=0.0)[:, None],
        tl.load(grad + 3, mask=known, other=0.0)[:, None],
        tl.load(grad + 4, mask=known, other=0.0)[:, None],
        tl.load(grad + 5, mask=known, other=0.0)[:, None],
        tl.load(grad + 6, mask=known, other=0.0)[:, None],
    )


@triton.jit
def overlap_backward_kernel(
    grad_ptr,  # (samples, classes, WIDTH) ACC
    input_ptr,
    target_ptr,
    grad_input_ptr,  # None where not wanted
    grad_target_ptr,
    input_strides,
    target_strides,
    grad_input_strides,
    grad_target_strides,
    classes: tl.int64,
    pixels: tl.int64,
    first_label: tl.int64,
    ignore_index: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    FN: tl.constexpr,
    SOFTMAX: tl.constexpr,
    LOSS: tl.constexpr,
    LABELS: tl.constexpr,
    IGNORES: tl.constexpr,
    ACC: tl.constexpr,
    FITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SPAN: tl.constexpr,
):
    p = (tl.full((), p0, ACC), tl.full((), p1, ACC), tl.full((), p2, ACC), tl.full((), p3, ACC))
    program = tl.program_id(0).to(tl.int64)
    spans = tl.cdiv(pixels, SPAN)
    sample = program // spans
    first = (program - sample * spans) * SPAN
    grad_ptr += sample * classes * WIDTH
    input_ptr += sample * input_strides[0]
    target_ptr += sample * target_strides[0]
    lane = tl.arange(0, BLOCK_S)

    span_label, top, total, span_shared = None, None, None, None
    if not FITS:
        span = first + lane
        span_live = span < pixels
        if LABELS:
            span_label = _labels(target_ptr, span, target_strides, span_live, classes, first_label, ignore_index, IGNORES)
        if SOFTMAX:
            top, total = _normaliser(input_ptr, input_strides, span, span_live, span_label, classes, LABELS, ACC, BLOCK_C, BLOCK_S)
            span_shared = tl.full((BLOCK_S,), 0.0, ACC)
            for block in tl.range(0, classes, BLOCK_C):
                c = block + tl.arange(0, BLOCK_C)
                x, t, valid = _operands(
                    input_ptr, input_strides, target_ptr, target_strides, c, span, classes, span_live, span_label, ignore_index,
                    SOFTMAX, LABELS, IGNORES, ACC,
                )
                g = _upstream(grad_ptr, c, classes)
                _, by_input, _ = _gradients(x, t, valid, c, classes, top, total, g, p, FN, SOFTMAX, LOSS, LABELS, FITS)
                span_shared += tl.sum(by_input, 0)

    for block in tl.range(0, 1 if FITS else classes, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        g = _upstream(grad_ptr, c, classes)
        for start in tl.range(first, tl.minimum(first + SPAN, pixels), BLOCK_S):
            s = start + lane
            live = lane < pixels - start
            if LABELS and FITS:
                label = _labels(target_ptr, s, target_strides, live, classes, first_label, ignore_index, IGNORES)
            else:
                label = span_label
            x, t, valid = _operands(
                input_ptr, input_strides, target_ptr, target_strides, c, s, classes, live, label, ignore_index,
                SOFTMAX, LABELS, IGNORES, ACC,
            )
            prob, by_input, by_target = _gradients(x, t, valid, c, classes, top, total, g, p, FN, SOFTMAX, LOSS, LABELS, FITS)
            if SOFTMAX:
                shared = tl.sum(by_input, 0) if FITS else span_shared
                by_input -= prob * shared[None, :]
            inside = (c < classes)[:, None] & live[None, :]
            if grad_input_ptr is not None:
                place = sample * grad_input_strides[0] + _tile(c, s, grad_input_strides)
                tl.store(grad_input_ptr + place, by_input, mask=inside)
            if grad_target_ptr is not None:
                place = sample * grad_target_strides[0] + _tile(c, s, grad_target_strides)
                tl.store(grad_target_ptr + place, by_target, mask=inside)


class Configuration(NamedTuple):
    """Tile and launch options of one class of problems."""

    block_c: int
    block_s: int
    span: int  # pixels of a program
    fold: int
    num_warps: int


# The interpreter pays by the operation, not by the element; still several programs for tensors that tests call large, and several blocks
# of classes where there are many.
INTERPRETER_CLASSES, INTERPRETER_PIXELS, INTERPRETER_SPAN = 128, 512, 2048
# What a program writes, 8 sums a class, is at the most a hundredth of what it has read.
SPAN_BYTES, SPAN_PIXELS = 4096, 1024


def configuration(layout: str, classes: int, pixels: int, dtype: torch.dtype) -> Configuration:
    """The tile for a problem in a layout of the tuning table: a function of its shape, never of a measurement."""
    tall, wide = triton.next_power_of_2(max(classes, 1)), triton.next_power_of_2(max(pixels, 1))
    if INTERPRETED:
        block_c, block_s = min(INTERPRETER_CLASSES, tall), min(INTERPRETER_PIXELS, wide)
        return Configuration(block_c, block_s, block_s if block_c < classes else INTERPRETER_SPAN, 1, 1)
    for most, block_c, elements, fold, threads in TUNING[layout]:
        if most is None or classes <= most:
            break
    warps = triton.cdiv(threads, launch.warp_size())
    elements = elements * warps * launch.warp_size() // threads
    block_c = tall if block_c is None else block_c
    block_s = min(elements // block_c, wide)
    span = max(SPAN_BYTES // dtype.itemsize, SPAN_PIXELS) if block_c >= classes else block_s
    return Configuration(block_c, block_s, span, min(fold, block_s), warps)


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides over samples, classes and pixels; 0 where there is one or, of labels, none."""
    sizes, strides = tensor.shape, tensor.stride()
    if tensor.dim() == 2:
        sizes, strides = (sizes[0], 1, sizes[1]), (strides[0], 0, strides[1])
    return tuple(stride if size > 1 else 0 for size, stride in zip(sizes, strides))


def _layout(strides: tuple[int, int, int], dtype: torch.dtype) -> str:
    sample, class_, pixel = strides
    channels_last = class_ == 1 and pixel != 1
    # Else no thread's pixels could be one access.
    return layout_class(pixel == 1 and sample % 16 == class_ % 16 == 0, dtype, channels_last)


class _Call:
    """What both launches derive from their arguments."""

    def __init__(
        self, input: Tensor, target: Tensor, functor: str, params: list[float], first_label: int, ignore_index: int | None
    ) -> None:
        self.samples, self.classes, self.pixels = input.shape
        self.input_strides, self.target_strides = _strides(input), _strides(target)
        self.tile = configuration(_layout(self.input_strides, input.dtype), self.classes, self.pixels, input.dtype)
        self.spans = triton.cdiv(self.pixels, self.tile.span)
        self.programs = self.samples * self.spans if self.classes else 0
        ignored = 0 if ignore_index is None else ignore_index
        self.settings = self.classes, self.pixels, first_label, ignored, *params, *(0.0,) * (4 - len(params))
        function, softmax, loss = OVERLAP[functor]
        self.constants = dict(
            FN=function, SOFTMAX=softmax, LOSS=loss, LABELS=target.dim() < input.dim(), IGNORES=ignore_index is not None,
            ACC=tl.float64 if input.dtype == torch.float64 else tl.float32, FITS=self.tile.block_c >= self.classes,
            BLOCK_C=self.tile.block_c, BLOCK_S=self.tile.block_s, SPAN=self.tile.span, num_warps=self.tile.num_warps,
            **launch.registers(self.tile.num_warps),
        )


def _numbers(target: Tensor) -> Tensor:
    """Kernels know no bool."""
    return target.view(torch.uint8) if target.dtype == torch.bool else target


def overlap_forward(input, target, functor, params, first_label, ignore_index):
    if target.dim() < input.dim():
        _checks.labels_in_range(functor, target, input.shape[1] + first_label, ignore_index)
    target = _numbers(target)
    call = _Call(input, target, functor, params, first_label, ignore_index)
    shape = call.samples, call.spans, call.classes, len(STATISTICS)
    accumulate = accumulate_dtype(input.dtype)
    if not call.programs:
        return input.new_zeros(shape[:1] + shape[2:], dtype=accumulate)
    sums = input.new_empty(shape, dtype=accumulate)
    launch.run(
        overlap_forward_kernel, call.programs, input.device, input, target, sums, call.input_strides, call.target_strides, *call.settings,
        FOLD=call.tile.fold, **call.constants,
    )
    return sums.squeeze(1) if call.spans == 1 else sums.sum(1)


def overlap_backward(grad, input, target, functor, params, first_label, ignore_index, want_input, want_target):
    by_input, by_target = gradients(input, target, want_input, want_target)
    target = _numbers(target)
    call = _Call(input, target, functor, params, first_label, ignore_index)
    none = 0, 0, 0
    if call.programs and (want_input or want_target):
        launch.run(
            overlap_backward_kernel, call.programs, input.device, grad, input, target, by_input if want_input else None,
            by_target if want_target else None, call.input_strides, call.target_strides, _strides(by_input) if want_input else none,
            _strides(by_target) if want_target else none, *call.settings, **call.constants,
        )
    return by_input, by_target


for _device in ("CPU", "CUDA", "XPU"):
    library.impl("overlap_forward.triton", overlap_forward, _device)
    library.impl("overlap_backward.triton", overlap_backward, _device)
