"""The row engine in Triton: one forward and one backward kernel for both layouts.

A program works on a tile of ROWS rows and BLOCK classes. In the contiguous layout a row's classes are neighbours in memory and
rows are `inner_stride` apart; in the strided layout neighbours are rows and classes are `class_stride` apart. csrc/row.h says what
each field means; this file computes the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastloss import _checks
from fastloss.engine import REDUCTIONS, accumulate_dtype, library
from fastloss.row import forward_outputs, gradient_like

from . import INTERPRETED, launch
from .functors import FUNCTORS, symlog, tanh
from .tuning import TUNING, layout_class

NONE = tl.constexpr(REDUCTIONS["none"])
MEAN = tl.constexpr(REDUCTIONS["mean"])
SUM = tl.constexpr(REDUCTIONS["sum"])
# exp(-1e4) is 0 in every type, so a product with the clamped logarithm is 0 where the true one is 0 * -inf.
LOWEST = tl.constexpr(-1e4)


@triton.jit
def transform(x, logit_scale, softcap, SOFTCAP: tl.constexpr, STABLEMAX: tl.constexpr):
    z = x * logit_scale
    if STABLEMAX:
        z = symlog(z)
    elif SOFTCAP:
        z = softcap * tanh(z / softcap)
    return z


@triton.jit
def _largest(z, top, total):
    return (z >= top) & (total == total)  # the maximum skips NaN, the sum does not


@triton.jit
def forward_kernel(
    input_ptr,
    target_ptr,  # int64 labels, or probabilities when SOFT
    weight_ptr,  # (classes,) ACC, or None
    loss_ptr,  # NONE: (rows,) of the loss dtype; else (2, programs) ACC, sums of losses and of divisors
    stats_ptr,  # (3, rows) ACC: max, log_sum, slope
    divisor_ptr,  # () ACC; written here for NONE only
    entropy_ptr,  # (rows,) ACC, or None
    accuracy_ptr,  # (rows,) ACC, or None
    outer: tl.int64,
    inner: tl.int64,
    classes: tl.int64,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    class_stride: tl.int64,
    target_outer_stride: tl.int64,
    target_inner_stride: tl.int64,
    target_class_stride: tl.int64,
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    spread: tl.float64,  # label_smoothing / classes
    z_loss: tl.float64,
    softcap: tl.float64,
    logit_scale: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    FN: tl.constexpr,
    NORMALISE: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    SOFT: tl.constexpr,
    SMOOTH: tl.constexpr,
    SOFTCAP: tl.constexpr,
    STABLEMAX: tl.constexpr,
    REDUCTION: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Scalars arrive as doubles so that double inputs lose nothing.
    p = (tl.full((), p0, ACC), tl.full((), p1, ACC), tl.full((), p2, ACC), tl.full((), p3, ACC))
    keep = 1.0 - tl.full((), label_smoothing, ACC)
    spread = tl.full((), spread, ACC)
    z_loss = tl.full((), z_loss, ACC)
    softcap = tl.full((), softcap, ACC)
    logit_scale = tl.full((), logit_scale, ACC)

    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    if CONTIGUOUS:
        o = program * 0
        i = program * ROWS + tl.arange(0, ROWS)
        row_offset = i * inner_stride
        tile = row_offset[:, None] + column[None, :]
        class_step = 1
    else:
        tiles = tl.cdiv(inner, ROWS)
        o = program // tiles
        i = (program - o * tiles) * ROWS + tl.arange(0, ROWS)
        row_offset = o * outer_stride + i
        tile = row_offset[:, None] + (column.to(tl.int64) * class_stride)[None, :]
        class_step = class_stride
    r = o * inner + i
    rows = outer * inner
    live = i < inner
    if SOFT:
        target_row = o * target_outer_stride + i * target_inner_stride
        if CONTIGUOUS:
            target_tile = target_row[:, None] + column[None, :]
            target_step = 1
        else:
            target_tile = target_row[:, None] + (column.to(tl.int64) * target_class_stride)[None, :]
            target_step = target_class_stride

    top = tl.full((ROWS,), float("-inf"), ACC)
    total = tl.full((ROWS,), 0.0, ACC)
    if SOFT and accuracy_ptr is not None:
        likeliest = tl.full((ROWS,), float("-inf"), ACC)
        target_z = tl.full((ROWS,), 0.0, ACC)
    if NORMALISE:
        for start in tl.range(0, classes, BLOCK, num_stages=STAGES):
            inside = live[:, None] & (column[None, :] < classes - start)
            x = tl.load(input_ptr + tile + start * class_step, mask=inside).to(ACC)
            # Padding becomes -inf after the transformation: a softcap would turn -inf into a phantom class.
            z = tl.where(inside, transform(x, logit_scale, softcap, SOFTCAP, STABLEMAX), float("-inf"))
            higher = tl.maximum(top, tl.max(z, 1))
            shift = tl.where(tl.abs(higher) == float("inf"), 0.0, higher)  # blocks of -inf give 0, inf gives inf, only NaN gives NaN
            total = total * tl.exp(top - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
            top = higher
            if SOFT and accuracy_ptr is not None:
                t = tl.load(target_ptr + target_tile + start * target_step, mask=inside).to(ACC)
                t = tl.where(inside, t, float("-inf"))
                block_likeliest = tl.max(t, 1)
                first = tl.min(tl.where(t == block_likeliest[:, None], column[None, :], BLOCK), 1)
                z_first = tl.sum(tl.where(column[None, :] == first[:, None], z, 0.0), 1)
                target_z = tl.where(block_likeliest > likeliest, z_first, target_z)
                likeliest = tl.maximum(likeliest, block_likeliest)
        log_sum = tl.where(top == float("inf"), float("nan"), tl.log(total))
    else:
        top = tl.full((ROWS,), 0.0, ACC)
        log_sum = tl.full((ROWS,), 0.0, ACC)

    tl.store(stats_ptr + r, top, mask=live)
    tl.store(stats_ptr + rows + r, log_sum, mask=live)
    if SOFT and accuracy_ptr is not None:
        tl.store(accuracy_ptr + r, _largest(target_z, top, total).to(ACC), mask=live)

    loss = tl.full((ROWS,), 0.0, ACC)
    slope = tl.full((ROWS,), 0.0, ACC)
    entropy = tl.full((ROWS,), 0.0, ACC)
    if SOFT or SMOOTH or entropy_ptr is not None:
        for start in tl.range(0, classes, BLOCK, num_stages=STAGES):
            inside = live[:, None] & (column[None, :] < classes - start)
            x = tl.load(input_ptr + tile + start * class_step, mask=inside).to(ACC)
            log_prob = (transform(x, logit_scale, softcap, SOFTCAP, STABLEMAX) - top[:, None]) - log_sum[:, None]
            if SOFT or SMOOTH:
                values, derivatives = FN(log_prob, p)
                if SOFT:
                    t = tl.load(target_ptr + target_tile + start * target_step, mask=inside).to(ACC)
                    if SMOOTH:
                        t = t * keep + spread
                    values *= t
                    derivatives *= t
                if weight_ptr is not None:
                    weight = tl.load(weight_ptr + start + column, mask=column < classes - start)[None, :]
                    values *= weight
                    derivatives *= weight
                block_value = tl.sum(tl.where(inside, values, 0.0), 1)
                block_slope = tl.sum(tl.where(inside, derivatives, 0.0), 1)
                if SOFT:
                    loss += block_value
                    slope += block_slope
                else:
                    loss += spread * block_value
                    slope += spread * block_slope
            if entropy_ptr is not None:
                clamped = tl.where(log_prob < LOWEST, LOWEST, log_prob)
                entropy -= tl.sum(tl.where(inside, tl.exp(log_prob) * clamped, 0.0), 1)

    # The label's part comes last: kept over the second sweep it would cost registers.
    count = live
    if not SOFT:
        label = tl.load(target_ptr + o * target_outer_stride + i * target_inner_stride, mask=live, other=0)
        count = live & (label != ignore_index)
        known = (label >= 0) & (label < classes)
        target_x = tl.load(input_ptr + row_offset + label * class_step, mask=count & known, other=0.0).to(ACC)
        target_z = transform(target_x, logit_scale, softcap, SOFTCAP, STABLEMAX)
        value, derivative = FN((target_z - top) - log_sum, p)
        row_weight = tl.full((ROWS,), 1.0, ACC)
        if weight_ptr is not None:
            row_weight = tl.load(weight_ptr + label, mask=count & known, other=0.0)
        loss += keep * row_weight * value
        slope += keep * row_weight * derivative
    lse = top + log_sum
    loss += tl.where(z_loss != 0.0, z_loss * lse * lse, 0.0)
    if not SOFT:
        # A label that no class has was never read; its row says so, since a kernel cannot raise.
        loss = tl.where(count, tl.where(known, loss, float("nan")), 0.0)
        slope = tl.where(count, tl.where(known, slope, float("nan")), 0.0)
        if accuracy_ptr is not None:
            tl.store(accuracy_ptr + r, (count & known & _largest(target_z, top, total)).to(ACC), mask=live)
    tl.store(stats_ptr + 2 * rows + r, slope, mask=live)
    if entropy_ptr is not None:
        tl.store(entropy_ptr + r, entropy, mask=live)
    if REDUCTION == NONE:
        tl.store(loss_ptr + r, loss, mask=live)
        if program == 0:
            tl.store(divisor_ptr, 1.0)
    else:
        tl.store(loss_ptr + program, tl.sum(tl.where(live, loss, 0.0), 0))
        if not SOFT and REDUCTION != SUM:
            divisor = row_weight if REDUCTION == MEAN else tl.full((ROWS,), 1.0, ACC)
            tl.store(loss_ptr + tl.num_programs(0) + program, tl.sum(tl.where(count, divisor, 0.0), 0))


@triton.jit
def backward_kernel(
    grad_loss_ptr,  # None, or one per row when REDUCTION is NONE, else one
    grad_lse_ptr,  # None, or one per row
    grad_entropy_ptr,  # None, or one per row
    input_ptr,
    target_ptr,
    weight_ptr,
    stats_ptr,
    divisor_ptr,
    entropy_ptr,  # needed with grad_entropy_ptr
    grad_ptr,  # may be input_ptr: a lane has read an element before it writes it, and reads no other lane's
    grad_loss_stride: tl.int64,
    grad_lse_stride: tl.int64,
    grad_entropy_stride: tl.int64,
    outer: tl.int64,
    inner: tl.int64,
    classes: tl.int64,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    class_stride: tl.int64,
    target_outer_stride: tl.int64,
    target_inner_stride: tl.int64,
    target_class_stride: tl.int64,
    grad_outer_stride: tl.int64,
    grad_inner_stride: tl.int64,
    grad_class_stride: tl.int64,
    ignore_index: tl.int64,
    label_smoothing: tl.float64,
    spread: tl.float64,
    z_loss: tl.float64,
    softcap: tl.float64,
    logit_scale: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    FN: tl.constexpr,
    NORMALISE: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    SOFT: tl.constexpr,
    SMOOTH: tl.constexpr,
    SOFTCAP: tl.constexpr,
    STABLEMAX: tl.constexpr,
    REDUCTION: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,  # classes of a program, a multiple of BLOCK
):
    p = (tl.full((), p0, ACC), tl.full((), p1, ACC), tl.full((), p2, ACC), tl.full((), p3, ACC))
    keep = 1.0 - tl.full((), label_smoothing, ACC)
    spread = tl.full((), spread, ACC)
    z_loss = tl.full((), z_loss, ACC)
    softcap = tl.full((), softcap, ACC)
    logit_scale = tl.full((), logit_scale, ACC)

    program = tl.program_id(0).to(tl.int64)
    spans = tl.cdiv(classes, SPAN)
    group = program // spans
    first = (program - group * spans) * SPAN
    column = tl.arange(0, BLOCK)
    if CONTIGUOUS:
        o = group * 0
        i = group * ROWS + tl.arange(0, ROWS)
        tile = (i * inner_stride)[:, None] + column[None, :]
        grad_tile = (i * grad_inner_stride)[:, None] + column[None, :]
        target_tile = (i * target_inner_stride)[:, None] + column[None, :]
        class_step = 1
        grad_step = 1
        target_step = 1
    else:
        tiles = tl.cdiv(inner, ROWS)
        o = group // tiles
        i = (group - o * tiles) * ROWS + tl.arange(0, ROWS)
        c = column.to(tl.int64)[None, :]
        tile = (o * outer_stride + i)[:, None] + c * class_stride
        grad_tile = (o * grad_outer_stride + i)[:, None] + c * grad_class_stride
        target_tile = (o * target_outer_stride + i)[:, None] + c * target_class_stride
        class_step = class_stride
        grad_step = grad_class_stride
        target_step = target_class_stride
    r = o * inner + i
    rows = outer * inner
    live = i < inner

    count = live
    if not SOFT:
        label = tl.load(target_ptr + o * target_outer_stride + i * target_inner_stride, mask=live, other=0)
        count = live & (label != ignore_index)
        row_weight = tl.full((ROWS,), 1.0, ACC) * keep
        if weight_ptr is not None:
            row_weight *= tl.load(weight_ptr + label, mask=count & (label >= 0) & (label < classes), other=0.0)
    if NORMALISE:
        top = tl.load(stats_ptr + r, mask=live)
        log_sum = tl.load(stats_ptr + rows + r, mask=live)
    # The gradient is direct + prob * shared, with a part of its own for the entropy.
    shared = tl.full((ROWS,), 0.0, ACC)
    if grad_loss_ptr is not None:
        if REDUCTION == NONE:
            g = tl.load(grad_loss_ptr + r * grad_loss_stride, mask=live).to(ACC)
        else:
            g = tl.full((ROWS,), tl.load(grad_loss_ptr).to(ACC) / tl.load(divisor_ptr), ACC)
        if NORMALISE:
            shared = -g * tl.load(stats_ptr + 2 * rows + r, mask=live)
            lse = top + log_sum
            shared += tl.where(z_loss != 0.0, 2.0 * z_loss * lse * g, 0.0)
            shared = tl.where(count, shared, 0.0)
    if grad_lse_ptr is not None:
        shared += tl.load(grad_lse_ptr + r * grad_lse_stride, mask=live).to(ACC)
    if grad_entropy_ptr is not None:
        grad_entropy = tl.load(grad_entropy_ptr + r * grad_entropy_stride, mask=live).to(ACC)
        entropy = tl.load(entropy_ptr + r, mask=live)

    for start in tl.range(first, tl.minimum(first + SPAN, classes), BLOCK):
        inside = live[:, None] & (column[None, :] < classes - start)
        x = tl.load(input_ptr + tile + start * class_step, mask=inside).to(ACC)
        z = transform(x, logit_scale, softcap, SOFTCAP, STABLEMAX)
        log_prob = z
        dz = tl.full((ROWS, BLOCK), 0.0, ACC)
        if NORMALISE:
            log_prob = (z - top[:, None]) - log_sum[:, None]
            prob = tl.exp(log_prob)
            dz = prob * shared[:, None]
        if grad_loss_ptr is not None:
            _, derivative = FN(log_prob, p)
            if SOFT or SMOOTH:
                spread_weight = spread
                if weight_ptr is not None:
                    weight = tl.load(weight_ptr + start + column, mask=column < classes - start)[None, :]
                    spread_weight = spread * weight
            if SOFT:
                q = tl.load(target_ptr + target_tile + start * target_step, mask=inside).to(ACC)
                if weight_ptr is not None:
                    q *= weight
                if SMOOTH:
                    q = q * keep + spread_weight
                direct = q * derivative
                direct = g[:, None] * direct
            else:
                chosen = (start + column)[None, :] == label[:, None]
                direct = tl.where(chosen, (g * row_weight)[:, None] * derivative, 0.0)
                if SMOOTH:
                    direct += g[:, None] * (spread_weight * derivative)
            dz += tl.where(count[:, None], direct, 0.0)
        if grad_entropy_ptr is not None:
            clamped = tl.where(log_prob < LOWEST, LOWEST, log_prob)
            dz -= grad_entropy[:, None] * prob * (clamped + entropy[:, None])
        dx = dz * logit_scale
        if STABLEMAX:
            dx *= tl.exp(-tl.abs(z))
        elif SOFTCAP:
            ratio = z / softcap
            dx *= 1.0 - ratio * ratio
        if grad_lse_ptr is None and grad_entropy_ptr is None:
            dx = tl.where(count[:, None], dx, 0.0)  # also where the logit is NaN
        tl.store(grad_ptr + grad_tile + start * grad_step, dx, mask=inside)


class Configuration(NamedTuple):
    """Tile and launch options of one class of problems."""

    rows: int
    block: int
    num_warps: int
    num_stages: int


# The interpreter pays by the operation, not by the element: tall tiles, and blocks short enough that most rows span several.
INTERPRETER_ROWS, INTERPRETER_BLOCK = 512, 128
# Classes that a program of the backward goes over at the least, so that what it reads of the row itself costs little beside them.
SPAN = 512


def configuration(contiguous: bool, rows: int, classes: int, dtype: torch.dtype) -> Configuration:
    """The tile for `rows` neighbouring rows of `classes` classes: a function of the shape alone, never of a measurement."""
    if INTERPRETED:
        tall = min(INTERPRETER_ROWS, triton.next_power_of_2(max(rows, 1)))
        return Configuration(tall, min(INTERPRETER_BLOCK, triton.next_power_of_2(max(classes, 1))), 1, 1)
    for most, tall, block, threads, stages in TUNING[layout_class(contiguous, dtype)]:
        if most is None or classes <= most:
            break
    return Configuration(tall, block, threads // launch.warp_size(), stages)


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides over outer, inner and class axes."""
    return (0, tensor.stride(0), 1) if tensor.dim() == 2 else (tensor.stride(0), 1, tensor.stride(1))


class _Call:
    """What both launches derive from their arguments."""

    def __init__(self, input: Tensor, target: Tensor, functor: str, params: list[float], label_smoothing: float, z_loss: float,
                 softcap: float, logit_scale: float, stablemax: bool, ignore_index: int, reduction: int) -> None:
        self.contiguous = input.dim() == 2
        self.classes = input.shape[1]
        self.outer, self.inner = (1, input.shape[0]) if self.contiguous else (input.shape[0], input.shape[2])
        soft = target.is_floating_point()
        label_stride = 0 if soft else target.stride(0)
        # Stablemax takes registers, so in half precision a thread gets the ones of a smaller block.
        dtype = accumulate_dtype(input.dtype) if stablemax else input.dtype
        self.tile = configuration(self.contiguous, self.inner, self.classes, dtype)
        self.groups = self.outer * triton.cdiv(self.inner, self.tile.rows)
        self.shape = self.outer, self.inner, self.classes
        self.strides = *_strides(input), *(_strides(target) if soft else (self.inner * label_stride, label_stride, 0))
        spread = label_smoothing / self.classes if self.classes else 0.0
        self.settings = (
            ignore_index, label_smoothing, spread, z_loss, softcap, logit_scale, *params, *(0.0,) * (4 - len(params)),
        )
        function, normalise = FUNCTORS[functor]
        self.constants = dict(
            FN=function, NORMALISE=normalise, CONTIGUOUS=self.contiguous, SOFT=soft, SMOOTH=label_smoothing != 0.0,
            SOFTCAP=softcap != 0.0, STABLEMAX=stablemax, REDUCTION=reduction,
            ACC=tl.float64 if input.dtype == torch.float64 else tl.float32, ROWS=self.tile.rows, BLOCK=self.tile.block,
            num_warps=self.tile.num_warps, **launch.registers(self.tile.num_warps),
        )


def row_forward(input, target, weight, functor, params, label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index,
                reduction, zero_empty, want_entropy, want_accuracy, dtype):
    if not target.is_floating_point():
        _checks.labels_in_range(functor, target, input.shape[1], ignore_index)
    call = _Call(input, target, functor, params, label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction)
    loss, stats, divisor, entropy, accuracy = forward_outputs(input, reduction, want_entropy, want_accuracy, dtype)
    reduced = reduction != REDUCTIONS["none"]
    partial = input.new_empty((2, call.groups), dtype=accumulate_dtype(input.dtype)) if reduced else None
    if call.groups:
        launch.run(
            forward_kernel, call.groups, input.device,
            input, target, weight, partial if reduced else loss, stats, divisor, entropy if want_entropy else None,
            accuracy if want_accuracy else None, *call.shape, *call.strides, *call.settings, STAGES=call.tile.num_stages, **call.constants,
        )
    elif not reduced:
        divisor.fill_(1.0)
    if reduced:
        launch.run(
            launch.reduce_kernel, 1, input.device, partial, loss, divisor, call.groups, call.outer * call.inner,
            MEAN=reduction != REDUCTIONS["sum"], SUMMED=not call.constants["SOFT"], EMPTY="inf" if zero_empty else "nan",
            ACC=call.constants["ACC"], BLOCK=1024,
        )
    return loss, stats, divisor, entropy, accuracy


def _backward(grad, grad_loss, grad_lse, grad_entropy, input, target, weight, stats, divisor, entropy, functor, params, label_smoothing,
              z_loss, softcap, logit_scale, stablemax, ignore_index, reduction):
    call = _Call(input, target, functor, params, label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction)
    span = max(call.tile.block, SPAN)
    programs = call.groups * triton.cdiv(call.classes, span)
    per_row = [0 if g is None or g.dim() == 0 else g.stride(0) for g in (grad_loss, grad_lse, grad_entropy)]
    if programs:
        launch.run(
            backward_kernel, programs, input.device,
            grad_loss, grad_lse, grad_entropy, input, target, weight, stats, divisor, None if grad_entropy is None else entropy, grad,
            *per_row, *call.shape, *call.strides, *_strides(grad), *call.settings, SPAN=span, **call.constants,
        )


def row_backward(grad_loss, grad_lse, grad_entropy, input, *rest):
    grad = gradient_like(input)
    _backward(grad, grad_loss, grad_lse, grad_entropy, input, *rest)
    return grad


def row_backward_(grad_loss, grad_lse, grad_entropy, input, *rest):
    _backward(input, grad_loss, grad_lse, grad_entropy, input, *rest)


for _device in ("CPU", "CUDA", "XPU"):
    library.impl("row_forward.triton", row_forward, _device)
    library.impl("row_backward.triton", row_backward, _device)
    library.impl("row_backward_.triton", row_backward_, _device)
