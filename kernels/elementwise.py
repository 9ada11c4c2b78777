"""The element-wise engine in Triton: one forward and one backward kernel.

A program works on BLOCK elements that are neighbours in the order of the (contiguous) outputs. Operands are contiguous too, or any views of
at most three dimensions. csrc/elementwise.h says what each functor computes; this file computes the same numbers.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastloss.elementwise import MAX_DIMS, divided_by, forward_outputs, gradients
from fastloss.engine import REDUCTIONS, accumulate_dtype, library

from . import INTERPRETED, launch
from .functors import ELEMENTWISE
from .tuning import ELEMENTWISE as TUNING
from .tuning import ROW_SUMS, layout_class

NONE = tl.constexpr(REDUCTIONS["none"])
WEIGHTED_MEAN = tl.constexpr(REDUCTIONS["weighted_mean"])


@triton.jit
def _divide(first, lane, size):
    """(first + lane) // size less first // size, first // size, and the remainder; lane is small, so each lane divides in 32 bits."""
    quotient = first // size
    remainder = first - quotient * size
    # A longer dimension ends at most once in a block: only the distance to its end counts, and not beyond a block.
    short = tl.minimum(size, 1 << 30)
    carry = (tl.maximum(remainder - (size - short), 0).to(tl.int32) + lane) // short.to(tl.int32)
    return carry, quotient, remainder + lane - carry.to(tl.int64) * size


@triton.jit
def _position(start, lane, size1, size2, CONTIGUOUS: tl.constexpr):
    """Where elements start + lane are: three indices, or one and two zeros."""
    if CONTIGUOUS:
        return start + lane, 0, 0
    else:
        carry, first, c = _divide(start, lane, size2)
        carry, first, b = _divide(first, carry, size1)
        return first + carry, b, c


@triton.jit
def _load(ptr, position, strides, inside, CONTIGUOUS: tl.constexpr, ACC: tl.constexpr):
    if CONTIGUOUS:
        offset = position[0]
    else:
        offset = position[0] * strides[0] + position[1] * strides[1] + position[2] * strides[2]
    return tl.load(ptr + offset, mask=inside, other=0.0).to(ACC)


@triton.jit
def _evaluate(pointers, strides, position, inside, p, FN: tl.constexpr, CONTIGUOUS: tl.constexpr, ACC: tl.constexpr):
    """The value of the loss and its three derivatives, and the weight."""
    x = _load(pointers[0], position, strides[0], inside, CONTIGUOUS, ACC)
    t = _load(pointers[1], position, strides[1], inside, CONTIGUOUS, ACC)
    if pointers[2] is not None:
        z = _load(pointers[2], position, strides[2], inside, CONTIGUOUS, ACC)
    else:
        z = tl.full(x.shape, 1.0, ACC)
    if pointers[3] is not None:
        weight = _load(pointers[3], position, strides[3], inside, CONTIGUOUS, ACC)
    else:
        weight = tl.full(x.shape, 1.0, ACC)
    value, d_input, d_target, d_third = FN(x, t, z, p)
    return value, d_input, d_target, d_third, weight


# Sizes and strides of views are many, and to know that one is 1 or a multiple of 16 gains nothing: one compiled kernel serves them all.
_TENSORS = ("input", "target", "third", "weight", "grad_loss")
LAYOUT = ["size1", "size2", *(f"{name}_stride{d}" for name in _TENSORS for d in range(MAX_DIMS))]


@triton.jit(do_not_specialize=LAYOUT[:-MAX_DIMS])
def elementwise_forward_kernel(
    pointers,  # input, target, third or None, weight or None
    loss_ptr,  # NONE: a loss for each element; else (2, programs) ACC, sums of losses and of weights
    divisor_ptr,  # () ACC; written here for NONE only
    numel: tl.int64,
    size1: tl.int64,  # of the last two dimensions, when not CONTIGUOUS
    size2: tl.int64,
    input_stride0: tl.int64,
    input_stride1: tl.int64,
    input_stride2: tl.int64,
    target_stride0: tl.int64,
    target_stride1: tl.int64,
    target_stride2: tl.int64,
    third_stride0: tl.int64,
    third_stride1: tl.int64,
    third_stride2: tl.int64,
    weight_stride0: tl.int64,
    weight_stride1: tl.int64,
    weight_stride2: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    FN: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    REDUCTION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Scalars arrive as doubles so that double inputs lose nothing.
    p = (tl.full((), p0, ACC), tl.full((), p1, ACC), tl.full((), p2, ACC), tl.full((), p3, ACC))
    program = tl.program_id(0).to(tl.int64)
    start = program * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < numel - start
    strides = (
        (input_stride0, input_stride1, input_stride2),
        (target_stride0, target_stride1, target_stride2),
        (third_stride0, third_stride1, third_stride2),
        (weight_stride0, weight_stride1, weight_stride2),
    )
    position = _position(start, lane, size1, size2, CONTIGUOUS)
    value, _, _, _, weight = _evaluate(pointers, strides, position, inside, p, FN, CONTIGUOUS, ACC)
    value *= weight
    if REDUCTION == NONE:
        tl.store(loss_ptr + start + lane, value, mask=inside)
        if program == 0:
            tl.store(divisor_ptr, 1.0)
    else:
        tl.store(loss_ptr + program, tl.sum(tl.where(inside, value, 0.0), 0))
        if REDUCTION == WEIGHTED_MEAN:
            tl.store(loss_ptr + tl.num_programs(0) + program, tl.sum(tl.where(inside, weight, 0.0), 0))


@triton.jit(do_not_specialize=LAYOUT)
def elementwise_backward_kernel(
    grad_loss_ptr,  # one, or when EACH one for each element
    pointers,
    divisor_ptr,  # () ACC, or None for 1
    gradient_pointers,  # for input, target and third; None where not wanted
    numel: tl.int64,
    size1: tl.int64,
    size2: tl.int64,
    input_stride0: tl.int64,
    input_stride1: tl.int64,
    input_stride2: tl.int64,
    target_stride0: tl.int64,
    target_stride1: tl.int64,
    target_stride2: tl.int64,
    third_stride0: tl.int64,
    third_stride1: tl.int64,
    third_stride2: tl.int64,
    weight_stride0: tl.int64,
    weight_stride1: tl.int64,
    weight_stride2: tl.int64,
    grad_loss_stride0: tl.int64,
    grad_loss_stride1: tl.int64,
    grad_loss_stride2: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    FN: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    EACH: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = (tl.full((), p0, ACC), tl.full((), p1, ACC), tl.full((), p2, ACC), tl.full((), p3, ACC))
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < numel - start
    strides = (
        (input_stride0, input_stride1, input_stride2),
        (target_stride0, target_stride1, target_stride2),
        (third_stride0, third_stride1, third_stride2),
        (weight_stride0, weight_stride1, weight_stride2),
    )
    position = _position(start, lane, size1, size2, CONTIGUOUS)
    if EACH:
        g = _load(grad_loss_ptr, position, (grad_loss_stride0, grad_loss_stride1, grad_loss_stride2), inside, CONTIGUOUS, ACC)
    else:
        g = tl.load(grad_loss_ptr).to(ACC)
        if divisor_ptr is not None:
            g /= tl.load(divisor_ptr)
    _, d_input, d_target, d_third, weight = _evaluate(pointers, strides, position, inside, p, FN, CONTIGUOUS, ACC)
    g = g * weight
    if gradient_pointers[0] is not None:
        tl.store(gradient_pointers[0] + start + lane, g * d_input, mask=inside)
    if gradient_pointers[1] is not None:
        tl.store(gradient_pointers[1] + start + lane, g * d_target, mask=inside)
    if gradient_pointers[2] is not None:
        tl.store(gradient_pointers[2] + start + lane, g * d_third, mask=inside)


@triton.jit
def elementwise_rows_kernel(
    pointers,  # input, target, third or None, weight or None
    loss_ptr,  # (R,)
    divisor_ptr,  # () ACC
    rows: tl.int64,
    columns: tl.int64,
    input_stride0: tl.int64,
    input_stride1: tl.int64,
    target_stride0: tl.int64,
    target_stride1: tl.int64,
    third_stride0: tl.int64,
    third_stride1: tl.int64,
    weight_stride0: tl.int64,
    weight_stride1: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    p3: tl.float64,
    FN: tl.constexpr,
    UNIT: tl.constexpr,  # whether neighbours in a row are neighbours in memory
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program sums ROWS rows of operands (R, C)."""
    p = (tl.full((), p0, ACC), tl.full((), p1, ACC), tl.full((), p2, ACC), tl.full((), p3, ACC))
    if UNIT:
        strides = ((0, input_stride0, 1), (0, target_stride0, 1), (0, third_stride0, 1), (0, weight_stride0, 1))
    else:
        strides = (
            (0, input_stride0, input_stride1), (0, target_stride0, target_stride1), (0, third_stride0, third_stride1),
            (0, weight_stride0, weight_stride1),
        )
    program = tl.program_id(0).to(tl.int64)
    row = program * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    total = tl.full((ROWS, BLOCK), 0.0, ACC)
    lost = tl.full((ROWS, BLOCK), 0.0, ACC)
    for start in tl.range(0, columns, BLOCK):
        column = start + lane
        inside = (row < rows) & (column < columns)
        value, _, _, _, weight = _evaluate(pointers, strides, (0, row, column), inside, p, FN, False, ACC)
        # A lane adds many terms of a long row: what each addition rounds away is kept (Kahan 1965).
        term = tl.where(inside, value * weight, 0.0) - lost
        sum = total + term
        lost = tl.where(tl.abs(sum) < float("inf"), (sum - total) - term, 0.0)
        total = sum
    row = program * ROWS + tl.arange(0, ROWS)
    tl.store(loss_ptr + row, tl.sum(total, 1), mask=row < rows)
    if program == 0:
        tl.store(divisor_ptr, 1.0)


class Configuration(NamedTuple):
    """Block and launch options."""

    block: int
    num_warps: int


# The interpreter pays by the operation, not by the element; still several programs for tensors that tests call large.
INTERPRETER_BLOCK = 4096
# The finishing kernel is one program: as many loads under way as it can have.
REDUCE_BLOCK, REDUCE_THREADS = 4096, 512


def configuration(contiguous: bool, numel: int, dtype: torch.dtype) -> Configuration:
    """The block for a problem: a function of the layout and the size, never of a measurement."""
    if INTERPRETED:
        return Configuration(min(INTERPRETER_BLOCK, triton.next_power_of_2(max(numel, 1))), 1)
    block, threads = TUNING[layout_class(contiguous, dtype)]
    return Configuration(block, threads // launch.warp_size())


class _Call:
    """What both launches derive from their arguments; `tensors` are the ones that are walked over."""

    def __init__(self, tensors: tuple[Tensor | None, ...], functor: str, params: list[float]) -> None:
        input = tensors[0]
        self.numel = input.numel()
        contiguous = all(t is None or t.is_contiguous() for t in tensors)
        block, num_warps = configuration(contiguous, self.numel, input.dtype)
        self.programs = triton.cdiv(self.numel, block)
        lead = (1,) * (MAX_DIMS - input.dim())
        sizes = (1,) * MAX_DIMS if contiguous else (*lead, *input.shape)
        strides = [(0,) * MAX_DIMS if contiguous or t is None else (*lead, *t.stride()) for t in tensors]
        self.layout = *sizes[1:], *itertools.chain(*strides)
        self.params = *params, *(0.0,) * (4 - len(params))
        self.constants = dict(
            FN=ELEMENTWISE[functor], CONTIGUOUS=contiguous, ACC=tl.float64 if input.dtype == torch.float64 else tl.float32,
            BLOCK=block, num_warps=num_warps, **launch.registers(num_warps),
        )


def elementwise_forward(input, target, third, weight, functor, params, reduction):
    operands = input, target, third, weight
    loss, divisor = forward_outputs(input, reduction)
    if reduction == REDUCTIONS["row_sums"]:
        _row_sums(operands, loss, divisor, functor, params)
        return loss, divisor
    call = _Call(operands, functor, params)
    accumulate = accumulate_dtype(input.dtype)
    reduced = reduction != REDUCTIONS["none"]
    partial = input.new_empty((2, call.programs), dtype=accumulate) if reduced else loss
    if call.programs:
        launch.run(
            elementwise_forward_kernel, call.programs, input.device, operands, partial, divisor, call.numel, *call.layout, *call.params,
            REDUCTION=reduction, **call.constants,
        )
    elif not reduced:
        divisor.fill_(1.0)
    if reduced:
        launch.run(
            launch.reduce_kernel, 1, input.device, partial, loss, divisor, call.programs, divided_by(input, reduction),
            MEAN=reduction != REDUCTIONS["sum"], SUMMED=reduction == REDUCTIONS["weighted_mean"], EMPTY=None, ACC=call.constants["ACC"],
            BLOCK=REDUCE_BLOCK, num_warps=1 if INTERPRETED else REDUCE_THREADS // launch.warp_size(),
        )
    return loss, divisor


def _row_sums(operands: tuple[Tensor | None, ...], loss: Tensor, divisor: Tensor, functor: str, params: list[float]) -> None:
    input = operands[0]
    rows, columns = input.shape
    most, elements, threads = ROW_SUMS
    block = min(triton.next_power_of_2(max(columns, 1)), most)
    tile = elements // block
    num_warps = 1 if INTERPRETED else threads // launch.warp_size()
    strides = [stride for t in operands for stride in (t.stride() if t is not None else (0, 0))]
    if not rows:
        divisor.fill_(1.0)
        return
    launch.run(
        elementwise_rows_kernel, triton.cdiv(rows, tile), input.device, operands, loss, divisor, rows, columns, *strides,
        *params, *(0.0,) * (4 - len(params)), FN=ELEMENTWISE[functor], UNIT=all(t is None or t.stride(1) == 1 for t in operands),
        ACC=tl.float64 if input.dtype == torch.float64 else tl.float32, ROWS=tile, BLOCK=block,
        num_warps=num_warps, **launch.registers(num_warps),
    )


def elementwise_backward(grad_loss, input, target, third, weight, divisor, functor, params, reduction, *wanted):
    operands = input, target, third, weight
    # What a sum of losses sends back is one number seen through strides of 0; it is read as one.
    each = reduction == REDUCTIONS["none"] and any(grad_loss.stride())
    if each and input.dim() > MAX_DIMS:
        grad_loss = grad_loss.contiguous()
    call = _Call((*operands, grad_loss if each else None), functor, params)
    grads = gradients(input, target, third, wanted)
    if call.programs and any(wanted):
        divided = reduction not in (REDUCTIONS["none"], REDUCTIONS["sum"])
        launch.run(
            elementwise_backward_kernel, call.programs, input.device, grad_loss, operands, divisor if divided else None,
            tuple(grad if want else None for grad, want in zip(grads, wanted)), call.numel, *call.layout, *call.params,
            EACH=each, **call.constants,
        )
    return grads


for _device in ("CPU", "CUDA", "XPU"):
    library.impl("elementwise_forward.triton", elementwise_forward, _device)
    library.impl("elementwise_backward.triton", elementwise_backward, _device)
