"""The box engine in Triton: a forward and a backward kernel for rows of boxes, and the same for the scores of all pairs of two sets.

A program of the first works on BLOCK rows; contiguous boxes are read as one run of numbers and taken apart in registers. csrc/box.h says
what is computed. All losses are symmetric in the two boxes, so the gradient of the second set of a matrix of scores is that of the first
set of the transposed one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastloss.box import forward_output, gradients, score_output
from fastloss.engine import REDUCTIONS, accumulate_dtype, library

from . import INTERPRETED, launch
from .elementwise import REDUCE_BLOCK, REDUCE_THREADS
from .functors import atan, larger
from .tuning import BOX as TUNING
from .tuning import BOX_PAIRS, layout_class

# A functor takes four lengths of either axis (of the first and the second box, of the enclosing interval, between the
# centres), the union's area, 1 - IoU, what is added to areas that divide, and what to other denominators. It gives the penalty, its
# derivatives with respect to the intersection's and to either box's area, and those with respect to each axis's four lengths.


@triton.jit
def quotient(a, b):
    """a / b, and 0 where b is 0."""
    nothing = b == 0.0
    return tl.where(nothing, 0.0, a / tl.where(nothing, 1.0, b))


@triton.jit
def box_iou(x, y, union, complement, eps_area, eps):
    none = tl.zeros_like(union)
    return none, none, none, (none, none, none, none), (none, none, none, none)


@triton.jit
def generalized_box_iou(x, y, union, complement, eps_area, eps):
    none = tl.zeros_like(union)
    hull = x[2] * y[2]
    around = hull + eps_area
    value = quotient(hull - union, around)
    unit = quotient(none + 1.0, around)
    slope = (1.0 - value) * unit
    return value, unit, -unit, (none, none, slope * y[2], none), (none, none, slope * x[2], none)


@triton.jit
def distance_box_iou(x, y, union, complement, eps_area, eps):
    none = tl.zeros_like(union)
    square = x[2] * x[2] + y[2] * y[2] + eps
    value = quotient(x[3] * x[3] + y[3] * y[3], square)
    unit = quotient(none + 2.0, square)
    return value, none, none, (none, none, -unit * value * x[2], unit * x[3]), (none, none, -unit * value * y[2], unit * y[3])


@triton.jit
def aspect(width, height):
    """atan(width / height) and its derivatives; all 0 for a box without size."""
    size = larger(tl.abs(width), tl.abs(height))
    nothing = size == 0.0
    scale = tl.where(nothing, 1.0, size)
    flip = tl.where(height < 0, -1.0, 1.0)
    w = flip * width / scale
    h = tl.where(nothing, 1.0, flip * height / scale)
    tall = tl.abs(w) < h
    part = atan(tl.where(tall, w, h))
    rest = 1.5707963267948966 - part
    angle = tl.where(tall, part, tl.where(w < 0, -rest, rest))
    unit = flip / (scale * (w * w + h * h))
    return angle, tl.where(nothing, 0.0, h * unit), tl.where(nothing, 0.0, -w * unit)


@triton.jit
def complete_box_iou(x, y, union, complement, eps_area, eps):
    value, none, _, by_x, by_y = distance_box_iou(x, y, union, complement, eps_area, eps)
    angle1, by_width1, by_height1 = aspect(x[0], y[0])
    angle2, by_width2, by_height2 = aspect(x[1], y[1])
    turn = angle1 - angle2
    v = 0.4052847345693511 * turn * turn
    alpha = quotient(v, complement + v + eps)
    slope = 0.8105694691387022 * alpha * turn
    by_x = (slope * by_width1, -slope * by_width2, by_x[2], by_x[3])
    by_y = (slope * by_height1, -slope * by_height2, by_y[2], by_y[3])
    return value + alpha * v, none, none, by_x, by_y


# The same names as in csrc/box.h and the registry
BOX = {
    "box_iou": box_iou,
    "generalized_box_iou": generalized_box_iou,
    "distance_box_iou": distance_box_iou,
    "complete_box_iou": complete_box_iou,
}


NONE = tl.constexpr(REDUCTIONS["none"])
MEAN = tl.constexpr(REDUCTIONS["mean"])


@triton.jit
def _smaller(a, b):
    return tl.where(b < a, b, a)


@triton.jit
def _share(a, b):
    """The part of the derivative of max(a, b) that is a's: at a tie half, as in torch."""
    return tl.where(b < a, 1.0, tl.where(a == b, 0.5, tl.zeros_like(a + b)))


@triton.jit
def _load_boxes(ptr, first, rows, row_stride, coordinate_stride, CONTIGUOUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """x1, y1, x2, y2 of BLOCK rows from `first` on; zeros after the last."""
    if CONTIGUOUS:
        number = tl.arange(0, 4 * BLOCK)
        flat = tl.load(ptr + first * 4 + number, mask=number < (rows - first) * 4, other=0.0).to(ACC)
        x, y = tl.split(tl.reshape(flat, (BLOCK, 2, 2)))
        x1, x2 = tl.split(x)
        y1, y2 = tl.split(y)
    else:
        lane = tl.arange(0, BLOCK)
        inside = lane < rows - first
        at = ptr + (first + lane) * row_stride
        x1 = tl.load(at, mask=inside, other=0.0).to(ACC)
        y1 = tl.load(at + coordinate_stride, mask=inside, other=0.0).to(ACC)
        x2 = tl.load(at + 2 * coordinate_stride, mask=inside, other=0.0).to(ACC)
        y2 = tl.load(at + 3 * coordinate_stride, mask=inside, other=0.0).to(ACC)
    return x1, y1, x2, y2


@triton.jit
def _store_boxes(ptr, first, rows, box, BLOCK: tl.constexpr):
    number = tl.arange(0, 4 * BLOCK)
    flat = tl.reshape(tl.join(tl.join(box[0], box[2]), tl.join(box[1], box[3])), (4 * BLOCK,))
    tl.store(ptr + first * 4 + number, flat, mask=number < (rows - first) * 4)


@triton.jit
def _axis(a1, a2, b1, b2):
    """Lengths (first, second, hull) and distance of the centres of two intervals; that of the intersection, the rests, the shares."""
    inner1 = larger(a1, b1)
    inner2 = _smaller(a2, b2)
    lengths = (a2 - a1, b2 - b1, larger(a2, b2) - _smaller(a1, b1), 0.5 * ((a1 - b1) + (a2 - b2)))
    more = ((inner1 - a1) + (a2 - inner2), (inner1 - b1) + (b2 - inner2))
    return lengths, inner2 - inner1, more, (_share(a1, b1), _share(b2, a2))


@triton.jit
def _chain(common, slopes, shares):
    """From the derivatives with respect to an axis's lengths to those with respect to the ends of both intervals."""
    by_offset = 0.5 * slopes[3]
    low = shares[0]
    high = shares[1]
    a1 = by_offset - slopes[0] - (common * low + slopes[2] * (1.0 - low))
    a2 = by_offset + slopes[0] + (common * high + slopes[2] * (1.0 - high))
    b1 = -by_offset - slopes[1] - (common * (1.0 - low) + slopes[2] * low)
    b2 = slopes[1] - by_offset + (common * (1.0 - high) + slopes[2] * high)
    return a1, a2, b1, b2


@triton.jit
def _slopes(a, b, eps_area, eps, FN: tl.constexpr):
    """The loss, the score, and the derivatives of the loss with respect to both boxes."""
    x, common_x, more_x, shares_x = _axis(a[0], a[2], b[0], b[2])
    y, common_y, more_y, shares_y = _axis(a[1], a[3], b[1], b[3])
    inter = tl.where((common_x > 0) & (common_y > 0), common_x * common_y, 0.0)
    union = x[0] * y[0] + x[1] * y[1] - inter
    whole = union + eps_area
    iou = quotient(inter, whole)
    apart = x[0] * more_y[0] + more_x[0] * common_y + (x[1] * more_y[1] + more_x[1] * common_y)
    complement = tl.where(iou > 0.5, quotient(apart + eps_area, whole), 1.0 - iou)
    value, by_inter, by_area, by_x, by_y = FN(x, y, union, complement, eps_area, eps)
    unit = quotient(tl.zeros_like(whole) + 1.0, whole)
    by_area += iou * unit
    by_inter = tl.where(inter > 0, by_inter - (1.0 + iou) * unit, 0.0)
    by_x = (by_x[0] + by_area * y[0], by_x[1] + by_area * y[1], by_x[2], by_x[3])
    by_y = (by_y[0] + by_area * x[0], by_y[1] + by_area * x[1], by_y[2], by_y[3])
    ax1, ax2, bx1, bx2 = _chain(by_inter * common_y, by_x, shares_x)
    ay1, ay2, by1, by2 = _chain(by_inter * common_x, by_y, shares_y)
    return complement + value, iou - value, (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2)


STRIDES = ["row_stride1", "coordinate_stride1", "row_stride2", "coordinate_stride2"]


@triton.jit(do_not_specialize=STRIDES)
def box_forward_kernel(
    boxes1_ptr,
    boxes2_ptr,
    loss_ptr,  # NONE: a loss for each row; else (2, programs) ACC, of which the first row gets sums of losses
    rows: tl.int64,
    row_stride1: tl.int64,  # when not CONTIGUOUS
    coordinate_stride1: tl.int64,
    row_stride2: tl.int64,
    coordinate_stride2: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    FN: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    REDUCTION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    first = program * BLOCK
    a = _load_boxes(boxes1_ptr, first, rows, row_stride1, coordinate_stride1, CONTIGUOUS, ACC, BLOCK)
    b = _load_boxes(boxes2_ptr, first, rows, row_stride2, coordinate_stride2, CONTIGUOUS, ACC, BLOCK)
    value, _, _, _ = _slopes(a, b, tl.full((), p0, ACC), tl.full((), p1, ACC), FN)
    lane = tl.arange(0, BLOCK)
    inside = lane < rows - first
    if REDUCTION == NONE:
        tl.store(loss_ptr + first + lane, value, mask=inside)
    else:
        tl.store(loss_ptr + program, tl.sum(tl.where(inside, value, 0.0), 0))


@triton.jit(do_not_specialize=STRIDES)
def box_backward_kernel(
    grad_loss_ptr,  # one, or when EACH one for each row
    boxes1_ptr,
    boxes2_ptr,
    gradient_pointers,  # for both sets; None where not wanted
    rows: tl.int64,
    row_stride1: tl.int64,
    coordinate_stride1: tl.int64,
    row_stride2: tl.int64,
    coordinate_stride2: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    FN: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    EACH: tl.constexpr,
    REDUCTION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    a = _load_boxes(boxes1_ptr, first, rows, row_stride1, coordinate_stride1, CONTIGUOUS, ACC, BLOCK)
    b = _load_boxes(boxes2_ptr, first, rows, row_stride2, coordinate_stride2, CONTIGUOUS, ACC, BLOCK)
    _, _, to_a, to_b = _slopes(a, b, tl.full((), p0, ACC), tl.full((), p1, ACC), FN)
    if EACH:
        lane = tl.arange(0, BLOCK)
        g = tl.load(grad_loss_ptr + first + lane, mask=lane < rows - first, other=0.0)
    else:
        g = tl.load(grad_loss_ptr)
        if REDUCTION == MEAN:
            g /= rows.to(ACC)
    if gradient_pointers[0] is not None:
        _store_boxes(gradient_pointers[0], first, rows, (to_a[0] * g, to_a[1] * g, to_a[2] * g, to_a[3] * g), BLOCK)
    if gradient_pointers[1] is not None:
        _store_boxes(gradient_pointers[1], first, rows, (to_b[0] * g, to_b[1] * g, to_b[2] * g, to_b[3] * g), BLOCK)


@triton.jit
def _columns_of(box):
    return box[0][:, None], box[1][:, None], box[2][:, None], box[3][:, None]


@triton.jit
def _rows_of(box):
    return box[0][None, :], box[1][None, :], box[2][None, :], box[3][None, :]


@triton.jit(do_not_specialize=STRIDES)
def box_scores_kernel(
    boxes1_ptr,
    boxes2_ptr,
    score_ptr,  # (rows, columns) ACC
    rows: tl.int64,
    columns: tl.int64,
    row_stride1: tl.int64,
    coordinate_stride1: tl.int64,
    row_stride2: tl.int64,
    coordinate_stride2: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    FN: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    across = tl.cdiv(columns, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    row = program // across * ROWS
    column = program % across * BLOCK
    a = _load_boxes(boxes1_ptr, row, rows, row_stride1, coordinate_stride1, False, ACC, ROWS)
    b = _load_boxes(boxes2_ptr, column, columns, row_stride2, coordinate_stride2, False, ACC, BLOCK)
    _, score, _, _ = _slopes(_columns_of(a), _rows_of(b), tl.full((), p0, ACC), tl.full((), p1, ACC), FN)
    down = tl.arange(0, ROWS)[:, None]
    right = tl.arange(0, BLOCK)[None, :]
    tl.store(score_ptr + (row + down) * columns + column + right, score, mask=(down < rows - row) & (right < columns - column))


@triton.jit(do_not_specialize=STRIDES)
def box_scores_backward_kernel(
    grad_score_ptr,  # ACC, of row r and column c at r * down_stride + c * right_stride
    boxes1_ptr,
    boxes2_ptr,
    gradient_ptr,  # for boxes1
    rows: tl.int64,
    columns: tl.int64,
    down_stride: tl.int64,
    right_stride: tl.int64,
    row_stride1: tl.int64,
    coordinate_stride1: tl.int64,
    row_stride2: tl.int64,
    coordinate_stride2: tl.int64,
    p0: tl.float64,
    p1: tl.float64,
    FN: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program adds up the gradient of ROWS boxes over all columns, BLOCK at a time."""
    row = tl.program_id(0).to(tl.int64) * ROWS
    a = _columns_of(_load_boxes(boxes1_ptr, row, rows, row_stride1, coordinate_stride1, False, ACC, ROWS))
    eps_area = tl.full((), p0, ACC)
    eps = tl.full((), p1, ACC)
    down = tl.arange(0, ROWS)[:, None]
    right = tl.arange(0, BLOCK)[None, :]
    x1 = tl.full((ROWS, BLOCK), 0.0, ACC)
    y1 = tl.full((ROWS, BLOCK), 0.0, ACC)
    x2 = tl.full((ROWS, BLOCK), 0.0, ACC)
    y2 = tl.full((ROWS, BLOCK), 0.0, ACC)
    for column in tl.range(0, columns, BLOCK):
        b = _rows_of(_load_boxes(boxes2_ptr, column, columns, row_stride2, coordinate_stride2, False, ACC, BLOCK))
        _, _, to_a, _ = _slopes(a, b, eps_area, eps, FN)
        inside = (down < rows - row) & (right < columns - column)
        # Slopes are of losses: scores have the opposite ones.
        g = -tl.load(grad_score_ptr + (row + down) * down_stride + (column + right) * right_stride, mask=inside, other=0.0)
        x1 += to_a[0] * g
        y1 += to_a[1] * g
        x2 += to_a[2] * g
        y2 += to_a[3] * g
    _store_boxes(gradient_ptr, row, rows, (tl.sum(x1, 1), tl.sum(y1, 1), tl.sum(x2, 1), tl.sum(y2, 1)), ROWS)


class Configuration(NamedTuple):
    """Block and launch options."""

    block: int
    num_warps: int


class PairsConfiguration(NamedTuple):
    """Tile and launch options."""

    rows: int
    block: int
    num_warps: int


INTERPRETER_BLOCK = 1024
INTERPRETER_TILE = 64, 64


def configuration(contiguous: bool, rows: int, dtype: torch.dtype) -> Configuration:
    """The block for a problem: a function of the layout and the size, never of a measurement."""
    if INTERPRETED:
        return Configuration(min(INTERPRETER_BLOCK, triton.next_power_of_2(max(rows, 1))), 1)
    block, threads = TUNING[layout_class(contiguous, dtype)]
    return Configuration(block, threads // launch.warp_size())


def pairs_configuration(dtype: torch.dtype) -> PairsConfiguration:
    """The tile of a matrix of scores."""
    if INTERPRETED:
        return PairsConfiguration(*INTERPRETER_TILE, 1)
    rows, block, threads = BOX_PAIRS[dtype.itemsize]
    return PairsConfiguration(rows, block, threads // launch.warp_size())


def _constants(functor: str, dtype: torch.dtype, num_warps: int) -> dict:
    accumulate = tl.float64 if dtype == torch.float64 else tl.float32
    return dict(FN=BOX[functor], ACC=accumulate, num_warps=num_warps, **launch.registers(num_warps))


class _Call:
    """What both launches over rows derive from their arguments."""

    def __init__(self, boxes1: Tensor, boxes2: Tensor, functor: str) -> None:
        contiguous = boxes1.is_contiguous() and boxes2.is_contiguous()
        block, num_warps = configuration(contiguous, len(boxes1), boxes1.dtype)
        self.programs = triton.cdiv(len(boxes1), block)
        self.strides = (0, 0, 0, 0) if contiguous else (*boxes1.stride(), *boxes2.stride())
        self.constants = dict(CONTIGUOUS=contiguous, BLOCK=block, **_constants(functor, boxes1.dtype, num_warps))


def box_forward(boxes1, boxes2, functor, params, reduction):
    call = _Call(boxes1, boxes2, functor)
    loss = forward_output(boxes1, reduction)
    reduced = reduction != REDUCTIONS["none"]
    partial = loss.new_empty((2, call.programs)) if reduced else loss
    if call.programs:
        launch.run(
            box_forward_kernel, call.programs, boxes1.device, boxes1, boxes2, partial, len(boxes1), *call.strides, *params,
            REDUCTION=reduction, **call.constants,
        )
    if reduced:
        launch.run(
            launch.reduce_kernel, 1, boxes1.device, partial, loss, torch.empty_like(loss), call.programs, max(len(boxes1), 1),
            MEAN=reduction == REDUCTIONS["mean"], SUMMED=False, EMPTY=None, ACC=call.constants["ACC"],
            BLOCK=REDUCE_BLOCK, num_warps=1 if INTERPRETED else REDUCE_THREADS // launch.warp_size(),
        )
    return loss


def box_backward(grad_loss, boxes1, boxes2, functor, params, reduction, *wanted):
    call = _Call(boxes1, boxes2, functor)
    grads = gradients(boxes1, boxes2, wanted)
    grad_loss = grad_loss.to(accumulate_dtype(boxes1.dtype))
    # What a sum of losses sends back is one number seen through a stride of 0; it is read as one.
    each = reduction == REDUCTIONS["none"] and any(grad_loss.stride())
    if call.programs and any(wanted):
        launch.run(
            box_backward_kernel, call.programs, boxes1.device, grad_loss.contiguous() if each else grad_loss, boxes1, boxes2,
            tuple(grad if want else None for grad, want in zip(grads, wanted)), len(boxes1), *call.strides, *params,
            EACH=each, REDUCTION=reduction, **call.constants,
        )
    return grads


def box_pairs_forward(boxes1, boxes2, functor, params):
    rows, block, num_warps = pairs_configuration(boxes1.dtype)
    score = score_output(boxes1, boxes2)
    programs = triton.cdiv(len(boxes1), rows) * triton.cdiv(len(boxes2), block)
    if programs:
        launch.run(
            box_scores_kernel, programs, boxes1.device, boxes1, boxes2, score, *score.shape, *boxes1.stride(), *boxes2.stride(), *params,
            ROWS=rows, BLOCK=block, **_constants(functor, boxes1.dtype, num_warps),
        )
    return score


def box_pairs_backward(grad_score, boxes1, boxes2, functor, params, *wanted):
    rows, block, num_warps = pairs_configuration(boxes1.dtype)
    grads = gradients(boxes1, boxes2, wanted)
    grad_score = grad_score.to(accumulate_dtype(boxes1.dtype))
    sides = (grad_score, boxes1, boxes2), (grad_score.mT, boxes2, boxes1)
    for grad, want, (upstream, own, other) in zip(grads, wanted, sides):
        if want and len(own):
            launch.run(
                box_scores_backward_kernel, triton.cdiv(len(own), rows), own.device, upstream, own, other, grad, *upstream.shape,
                *upstream.stride(), *own.stride(), *other.stride(), *params, ROWS=rows, BLOCK=block,
                **_constants(functor, own.dtype, num_warps),
            )
    return grads


for _device in ("CPU", "CUDA", "XPU"):
    library.impl("box_forward.triton", box_forward, _device)
    library.impl("box_backward.triton", box_backward, _device)
    library.impl("box_pairs_forward.triton", box_pairs_forward, _device)
    library.impl("box_pairs_backward.triton", box_pairs_backward, _device)
