"""The divergence engine in Triton: one forward and one backward kernel.

A program works on ROWS rows of both sides, BLOCK classes at a time. csrc/divergence.h says what each field means; this file computes the
same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastloss.divergence import forward_outputs, gradients
from fastloss.engine import REDUCTIONS, accumulate_dtype, library

from . import INTERPRETED, launch
from .functors import expm1, log1p
from .tuning import DIVERGENCE as TUNING
from .tuning import layout_class

NONE = tl.constexpr(REDUCTIONS["none"])
MEAN = tl.constexpr(REDUCTIONS["mean"])
LOWEST = tl.constexpr(-1e4)


# Functors: of log-probabilities l and m and probabilities p and q of both sides, a value and its derivatives by l and by m.


@triton.jit
def jensen_shannon(l, m, p, q, beta):
    gap = tl.where(m < LOWEST, LOWEST, m) - tl.where(l < LOWEST, LOWEST, l)
    extra = log1p(tl.where(gap > 0.0, 1.0 - beta, beta) * expm1(-tl.abs(gap)))
    first = -(1.0 - beta) * p * (tl.where(gap < 0.0, 0.0, gap) + extra)
    second = -beta * q * (tl.where(gap > 0.0, 0.0, -gap) + extra)
    return first + second, first, second


@triton.jit
def total_variation(l, m, p, q, beta):
    gap = p - q
    half = tl.where(gap > 0.0, 0.5, tl.where(gap < 0.0, -0.5, 0.0))
    return 0.5 * tl.abs(gap), half * p, -half * q


# Each functor; or for a mean under q of `own * log q - log p`, which needs no second sweep, that factor.
FUNCTORS = {"kl": (None, 1.0), "cross": (None, 0.0), "jensen_shannon": (jensen_shannon, None), "total_variation": (total_variation, None)}


@triton.jit
def _finite(top):
    return tl.where(top == float("-inf"), 0.0, top)  # so that blocks of -inf give 0, not NaN


@triton.jit
def _load(
    first_ptr, second_ptr, centre_ptr, row, live, start, classes, first_stride, second_stride, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """Logits of both sides, those of the second centred, and which of them there are."""
    column = tl.arange(0, BLOCK)[None, :]
    inside = live[:, None] & (column < classes - start)
    x = tl.load(first_ptr + (row * first_stride)[:, None] + column + start, mask=inside).to(ACC)
    y = tl.load(second_ptr + (row * second_stride)[:, None] + column + start, mask=inside).to(ACC)
    if centre_ptr is not None:
        y -= tl.load(centre_ptr + start + column, mask=column < classes - start)
    return x, y, inside


@triton.jit
def divergence_forward_kernel(
    first_ptr,
    second_ptr,
    centre_ptr,  # (classes,) ACC, or None
    weight_ptr,  # (rows,) ACC, or None
    loss_ptr,  # NONE: (rows,) of the loss dtype; else (2, programs) ACC, sums of losses and of weights
    stats_ptr,  # (6, rows) ACC
    divisor_ptr,  # () ACC; written here for NONE only
    rows: tl.int64,
    classes: tl.int64,
    first_stride: tl.int64,
    second_stride: tl.int64,
    first_scale: tl.float64,
    second_scale: tl.float64,
    factor: tl.float64,
    beta: tl.float64,
    FN: tl.constexpr,
    OWN: tl.constexpr,
    REDUCTION: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Scalars arrive as doubles so that double inputs lose nothing.
    first_scale = tl.full((), first_scale, ACC)
    second_scale = tl.full((), second_scale, ACC)
    beta = tl.full((), beta, ACC)
    program = tl.program_id(0).to(tl.int64)
    row = program * ROWS + tl.arange(0, ROWS)
    live = row < rows
    weight = tl.where(live, tl.full((ROWS,), 1.0, ACC), 0.0)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + row, mask=live, other=0.0)
    counts = weight != 0.0

    top1 = tl.full((ROWS,), float("-inf"), ACC)
    top2 = tl.full((ROWS,), float("-inf"), ACC)
    sum1 = tl.full((ROWS,), 0.0, ACC)
    sum2 = tl.full((ROWS,), 0.0, ACC)
    mean = tl.full((ROWS,), 0.0, ACC)
    for start in tl.range(0, classes, BLOCK):
        x, y, inside = _load(first_ptr, second_ptr, centre_ptr, row, counts, start, classes, first_stride, second_stride, ACC, BLOCK)
        x = tl.where(inside, x, float("-inf"))
        y = tl.where(inside, y, float("-inf"))
        higher1 = tl.maximum(top1, tl.max(x, 1))
        higher2 = tl.maximum(top2, tl.max(y, 1))
        shift1 = _finite(higher1)
        shift2 = _finite(higher2)
        shrink2 = tl.exp((top2 - shift2) * second_scale)
        v = (x - shift1[:, None]) * first_scale
        u = (y - shift2[:, None]) * second_scale
        under = tl.exp(u)
        if OWN is not None:
            moved1 = tl.where(top1 == float("-inf"), 0.0, (top1 - shift1) * first_scale)
            moved2 = tl.where(top2 == float("-inf"), 0.0, (top2 - shift2) * second_scale)
            mean = tl.where(shrink2 == 0.0, 0.0, shrink2 * (mean + sum2 * (OWN * moved2 - moved1)))
            mean += tl.sum(tl.where(under == 0.0, 0.0, under * ((u - v) if OWN == 1.0 else -v)), 1)
        sum1 = sum1 * tl.exp((top1 - shift1) * first_scale) + tl.sum(tl.exp(v), 1)
        sum2 = sum2 * shrink2 + tl.sum(under, 1)
        top1 = higher1
        top2 = higher2
    log_sum1 = tl.log(sum1)
    log_sum2 = tl.log(sum2)
    if OWN is not None:
        slope1 = tl.full((ROWS,), -1.0, ACC)
        slope2 = mean / sum2
        value = slope2 + (log_sum1 - OWN * log_sum2)
    else:
        value = tl.full((ROWS,), 0.0, ACC)
        slope1 = tl.full((ROWS,), 0.0, ACC)
        slope2 = tl.full((ROWS,), 0.0, ACC)
        for start in tl.range(0, classes, BLOCK):
            x, y, inside = _load(first_ptr, second_ptr, centre_ptr, row, counts, start, classes, first_stride, second_stride, ACC, BLOCK)
            l = (x - top1[:, None]) * first_scale - log_sum1[:, None]
            m = (y - top2[:, None]) * second_scale - log_sum2[:, None]
            values, by_first, by_second = FN(l, m, tl.exp(l), tl.exp(m), beta)
            value += tl.sum(tl.where(inside, values, 0.0), 1)
            slope1 += tl.sum(tl.where(inside, by_first, 0.0), 1)
            slope2 += tl.sum(tl.where(inside, by_second, 0.0), 1)
    loss = tl.where(counts, value * (tl.full((), factor, ACC) * weight), 0.0)
    tl.store(stats_ptr + row, tl.where(counts, top1, 0.0), mask=live)
    tl.store(stats_ptr + rows + row, tl.where(counts, log_sum1, 0.0), mask=live)
    tl.store(stats_ptr + 2 * rows + row, tl.where(counts, top2, 0.0), mask=live)
    tl.store(stats_ptr + 3 * rows + row, tl.where(counts, log_sum2, 0.0), mask=live)
    tl.store(stats_ptr + 4 * rows + row, tl.where(counts, slope1, 0.0), mask=live)
    tl.store(stats_ptr + 5 * rows + row, tl.where(counts, slope2, 0.0), mask=live)
    if REDUCTION == NONE:
        tl.store(loss_ptr + row, loss, mask=live)
        if program == 0:
            tl.store(divisor_ptr, 1.0)
    else:
        tl.store(loss_ptr + program, tl.sum(loss, 0))
        tl.store(loss_ptr + tl.num_programs(0) + program, tl.sum(weight, 0))


@triton.jit
def divergence_backward_kernel(
    grad_loss_ptr,  # ACC: one per row when REDUCTION is NONE, else one
    first_ptr,
    second_ptr,
    centre_ptr,
    weight_ptr,
    stats_ptr,
    divisor_ptr,
    grad_first_ptr,  # (rows, classes), or None
    grad_second_ptr,  # (rows, classes), or None
    rows: tl.int64,
    classes: tl.int64,
    first_stride: tl.int64,
    second_stride: tl.int64,
    first_scale: tl.float64,
    second_scale: tl.float64,
    factor: tl.float64,
    beta: tl.float64,
    FN: tl.constexpr,
    OWN: tl.constexpr,
    REDUCTION: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,  # classes of a program, a multiple of BLOCK
):
    first_scale = tl.full((), first_scale, ACC)
    second_scale = tl.full((), second_scale, ACC)
    beta = tl.full((), beta, ACC)
    program = tl.program_id(0).to(tl.int64)
    spans = tl.cdiv(classes, SPAN)
    group = program // spans
    begin = (program - group * spans) * SPAN
    row = group * ROWS + tl.arange(0, ROWS)
    live = row < rows
    weight = tl.full((ROWS,), 1.0, ACC)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + row, mask=live, other=0.0)
    counts = live & (weight != 0.0)
    if REDUCTION == NONE:
        g = tl.load(grad_loss_ptr + row, mask=live, other=0.0)
    elif REDUCTION == MEAN:
        g = tl.full((ROWS,), tl.load(grad_loss_ptr) / tl.load(divisor_ptr), ACC)
    else:
        g = tl.full((ROWS,), tl.load(grad_loss_ptr), ACC)
    # An ignored row never sees the upstream gradient, which may be infinite where every row is ignored.
    g = tl.where(counts, g * (tl.full((), factor, ACC) * weight), 0.0)
    top1 = tl.load(stats_ptr + row, mask=live, other=0.0)
    log_sum1 = tl.load(stats_ptr + rows + row, mask=live, other=0.0)
    top2 = tl.load(stats_ptr + 2 * rows + row, mask=live, other=0.0)
    log_sum2 = tl.load(stats_ptr + 3 * rows + row, mask=live, other=0.0)
    slope1 = tl.load(stats_ptr + 4 * rows + row, mask=live, other=0.0)
    slope2 = tl.load(stats_ptr + 5 * rows + row, mask=live, other=0.0)
    column = tl.arange(0, BLOCK)[None, :]
    for start in tl.range(begin, tl.minimum(begin + SPAN, classes), BLOCK):
        x, y, inside = _load(first_ptr, second_ptr, centre_ptr, row, counts, start, classes, first_stride, second_stride, ACC, BLOCK)
        v = (x - top1[:, None]) * first_scale
        u = (y - top2[:, None]) * second_scale
        l = v - log_sum1[:, None]
        m = u - log_sum2[:, None]
        p = tl.exp(l)
        q = tl.exp(m)
        if OWN is not None:
            by_first = p - q
            # 0 where q is 0, unless the loss is no finite number
            by_second = q * tl.where(q == 0.0, slope2[:, None], ((u - v) if OWN == 1.0 else -v) - slope2[:, None])
        else:
            _, by_first, by_second = FN(l, m, p, q, beta)
            by_first -= p * slope1[:, None]
            by_second -= q * slope2[:, None]
        to = (row * classes)[:, None] + column + start
        there = live[:, None] & (column < classes - start)
        if grad_first_ptr is not None:
            tl.store(grad_first_ptr + to, tl.where(inside, (g * first_scale)[:, None] * by_first, 0.0), mask=there)
        if grad_second_ptr is not None:
            tl.store(grad_second_ptr + to, tl.where(inside, (g * second_scale)[:, None] * by_second, 0.0), mask=there)


class Configuration(NamedTuple):
    """Tile and launch options."""

    rows: int
    block: int
    num_warps: int


# The interpreter pays by the operation, not by the element: tall tiles, and blocks short enough that most rows span several.
INTERPRETER_ROWS, INTERPRETER_BLOCK = 256, 128
SPAN = 512  # classes that a program of the backward goes over at the least


def configuration(rows: int, classes: int, dtype: torch.dtype) -> Configuration:
    """The tile for rows of so many classes: a function of the shape alone, never of a measurement."""
    if INTERPRETED:
        tall = min(INTERPRETER_ROWS, triton.next_power_of_2(max(rows, 1)))
        return Configuration(tall, min(INTERPRETER_BLOCK, triton.next_power_of_2(max(classes, 1))), 1)
    for most, tall, block, threads in TUNING[layout_class(True, dtype)]:
        if most is None or classes <= most:
            break
    return Configuration(tall, block, threads // launch.warp_size())


class _Call:
    """What both launches derive from their arguments."""

    def __init__(self, first: Tensor, second: Tensor, functor: str, params: list[float], first_scale: float, second_scale: float,
                 factor: float, reduction: int) -> None:
        rows, classes = first.shape
        self.tile = configuration(rows, classes, first.dtype)
        self.groups = triton.cdiv(rows, self.tile.rows)
        self.numbers = (
            rows, classes, first.stride(0), second.stride(0), first_scale, second_scale, factor, params[0] if params else 0.0,
        )
        function, own = FUNCTORS[functor]
        self.constants = dict(
            FN=function, OWN=own, REDUCTION=reduction, ACC=tl.float64 if first.dtype == torch.float64 else tl.float32, ROWS=self.tile.rows,
            BLOCK=self.tile.block, num_warps=self.tile.num_warps, **launch.registers(self.tile.num_warps),
        )


def divergence_forward(first, second, centre, weight, functor, params, first_scale, second_scale, factor, reduction, zero_empty, dtype):
    call = _Call(first, second, functor, params, first_scale, second_scale, factor, reduction)
    loss, stats, divisor = forward_outputs(first, reduction, dtype)
    reduced = reduction != REDUCTIONS["none"]
    partial = first.new_empty((2, call.groups), dtype=accumulate_dtype(first.dtype)) if reduced else loss
    if call.groups:
        launch.run(
            divergence_forward_kernel, call.groups, first.device, first, second, centre, weight, partial, stats, divisor, *call.numbers,
            **call.constants,
        )
    elif not reduced:
        divisor.fill_(1.0)
    if reduced:
        launch.run(
            launch.reduce_kernel, 1, first.device, partial, loss, divisor, call.groups, len(first), MEAN=reduction == REDUCTIONS["mean"],
            SUMMED=True, EMPTY="inf" if zero_empty else "nan", ACC=call.constants["ACC"], BLOCK=1024,
        )
    return loss, stats, divisor


def divergence_backward(grad_loss, first, second, centre, weight, stats, divisor, functor, params, first_scale, second_scale, factor,
                        reduction, zero_empty, dtype, *wanted):
    call = _Call(first, second, functor, params, first_scale, second_scale, factor, reduction)
    grads = gradients(first, second, wanted)
    span = max(call.tile.block, SPAN)
    programs = call.groups * triton.cdiv(first.shape[1], span)
    if programs and any(wanted):
        launch.run(
            divergence_backward_kernel, programs, first.device, grad_loss, first, second, centre, weight, stats, divisor,
            *(grad if want else None for grad, want in zip(grads, wanted)), *call.numbers, SPAN=span, **call.constants,
        )
    return grads


for _device in ("CPU", "CUDA", "XPU"):
    library.impl("divergence_forward.triton", divergence_forward, _device)
    library.impl("divergence_backward.triton", divergence_backward, _device)
