"""The sort engine in Triton: the kernels before and after torch's sort.

Elements of an image are neighbours; a program works on BLOCK of them, or on BLOCK ranks of a sorted row. csrc/sort.h says what the numbers
mean; this file computes the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastloss.engine import accumulate_dtype, library
from fastloss.sort import DeviceCall, Settings, device_call, gradient_like, sorted_forward

from . import INTERPRETED, launch
from .functors import SORT
from .tuning import SORT as TUNING


@triton.jit
def _place(program, inner, BLOCK: tl.constexpr):
    """The image of a program, its elements' places in the image and which of them exist."""
    tiles = tl.cdiv(inner, BLOCK)
    image = program // tiles
    place = (program - image * tiles) * BLOCK + tl.arange(0, BLOCK)
    return image, place, place < inner


@triton.jit
def _probability(score, top, inverse, NORMALISE: tl.constexpr):
    return tl.exp(score - top) * inverse if NORMALISE else score


@triton.jit
def _foreground(label, k, ignored, IGNORES: tl.constexpr):
    """Whether a label is of class k, and whether it takes part."""
    label = label.to(tl.int64)
    used = label != ignored if IGNORES else label == label
    return (label == k) & used, used


@triton.jit
def sort_statistics_kernel(
    input_ptr,
    stats_ptr,  # (2, elements) ACC
    elements: tl.int64,
    inner: tl.int64,
    channels: tl.int64,
    image_stride: tl.int64,
    channel_stride: tl.int64,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, place, inside = _place(tl.program_id(0).to(tl.int64), inner, BLOCK)
    score_ptr = input_ptr + image * image_stride + place
    top = tl.full((BLOCK,), float("-inf"), ACC)
    for _ in tl.range(0, channels):
        top = tl.maximum(top, tl.load(score_ptr, mask=inside, other=0.0).to(ACC))
        score_ptr += channel_stride
    score_ptr = input_ptr + image * image_stride + place
    total = tl.full((BLOCK,), 0.0, ACC)
    for _ in tl.range(0, channels):
        total += tl.exp(tl.load(score_ptr, mask=inside, other=0.0).to(ACC) - top)
        score_ptr += channel_stride
    element = image * inner + place
    tl.store(stats_ptr + element, top, mask=inside)
    tl.store(stats_ptr + elements + element, 1.0 / total, mask=inside)


@triton.jit
def sort_keys_kernel(
    input_ptr,
    target_ptr,
    stats_ptr,
    class_of_row_ptr,  # (rows,) int64, or None for the row itself
    keys_ptr,  # (rows of the launch, elements of a group) ACC
    elements: tl.int64,
    inner: tl.int64,
    image_stride: tl.int64,
    channel_stride: tl.int64,
    images: tl.int64,  # of a group
    rows: tl.int64,  # of a group
    first_row: tl.int64,
    lone: tl.int64,  # the class of the only channel, or -1
    ignored: tl.int64,
    FN: tl.constexpr,
    NORMALISE: tl.constexpr,
    IGNORES: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slab, place, inside = _place(tl.program_id(0).to(tl.int64), inner, BLOCK)  # an image of a row
    row = slab // images
    group = (first_row + row) // rows
    k = first_row + row - group * rows
    image = group * images + slab - row * images
    if class_of_row_ptr is not None:
        k = tl.load(class_of_row_ptr + k)
    channel = tl.where(lone >= 0, 0, k)
    k = tl.where(lone >= 0, lone, k)
    element = image * inner + place
    score = tl.load(input_ptr + image * image_stride + channel * channel_stride + place, mask=inside, other=0.0).to(ACC)
    if NORMALISE:
        top = tl.load(stats_ptr + element, mask=inside, other=0.0)
        inverse = tl.load(stats_ptr + elements + element, mask=inside, other=0.0)
        score = _probability(score, top, inverse, NORMALISE)
    foreground, used = _foreground(tl.load(target_ptr + element, mask=inside, other=0), k, ignored, IGNORES)
    error, _ = FN(score, foreground.to(ACC))
    tl.store(keys_ptr + slab * inner + place, tl.where(used, error, -1.0), mask=inside)


@triton.jit
def _sorted_labels(
    program, target_ptr, order_ptr, class_of_row_ptr, size, rows, first_row, lone, ignored, IGNORES: tl.constexpr, BLOCK: tl.constexpr
):
    """The row of a program, its ranks, the elements there and whether these are foreground."""
    row, rank, inside = _place(program, size, BLOCK)
    group = (first_row + row) // rows
    k = first_row + row - group * rows
    if class_of_row_ptr is not None:
        k = tl.load(class_of_row_ptr + k)
    k = tl.where(lone >= 0, lone, k)
    element = tl.load(order_ptr + row * size + rank, mask=inside, other=0)
    foreground, _ = _foreground(tl.load(target_ptr + group * size + element, mask=inside, other=0), k, ignored, IGNORES)
    return row, rank, inside, element, foreground & inside


@triton.jit
def sort_count_kernel(
    target_ptr,
    order_ptr,  # (rows of the launch, elements of a group) int64
    class_of_row_ptr,
    counts_ptr,  # (rows of the launch, tiles) int64
    size: tl.int64,
    rows: tl.int64,
    first_row: tl.int64,
    lone: tl.int64,
    ignored: tl.int64,
    IGNORES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    _, _, _, _, foreground = _sorted_labels(
        program, target_ptr, order_ptr, class_of_row_ptr, size, rows, first_row, lone, ignored, IGNORES, BLOCK
    )
    tl.store(counts_ptr + program, tl.sum(foreground.to(tl.int32), 0).to(tl.int64))


@triton.jit
def sort_weigh_kernel(
    target_ptr,
    keys_ptr,  # (rows of the launch, elements of a group) ACC, the largest first
    order_ptr,
    class_of_row_ptr,
    before_ptr,  # (rows of the launch, tiles) int64
    total_ptr,  # (rows of the launch,) int64
    partial_ptr,  # (rows of the launch, tiles) ACC
    slopes_ptr,  # (rows of the launch, elements of a group) ACC, or None
    size: tl.int64,
    rows: tl.int64,
    first_row: tl.int64,
    lone: tl.int64,
    ignored: tl.int64,
    IGNORES: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, rank, inside, element, foreground = _sorted_labels(
        program, target_ptr, order_ptr, class_of_row_ptr, size, rows, first_row, lone, ignored, IGNORES, BLOCK
    )
    error = tl.load(keys_ptr + row * size + rank, mask=inside, other=0.0)
    total = tl.load(total_ptr + row)
    seen = tl.load(before_ptr + program) + tl.cumsum(foreground.to(tl.int32), 0).to(tl.int64)
    others = rank + 1 - seen
    joint = (total + others).to(ACC)
    background = (total - seen).to(ACC) / (joint * tl.maximum(joint - 1.0, 1.0))
    background = tl.where((total == 0) & (others == 1), 1.0, background)
    weight = tl.where(foreground, 1.0 / joint, background)
    counts = inside & ((error > 0) | (error != error))
    weight = tl.where(counts, weight, 0.0)
    tl.store(partial_ptr + program, tl.sum(tl.where(counts, error * weight, 0.0), 0))
    if slopes_ptr is not None:
        tl.store(slopes_ptr + row * size + element, weight, mask=inside)


@triton.jit
def _slope(
    score, label, row, slopes_ptr, shares_ptr, class_of_row_ptr, group, rows, size, place, inside, lone, ignored, FN: tl.constexpr,
    IGNORES: tl.constexpr, ACC: tl.constexpr,
):
    """d loss / d score of a row."""
    k = row
    if class_of_row_ptr is not None:
        k = tl.load(class_of_row_ptr + row)
    k = tl.where(lone >= 0, lone, k)
    foreground, _ = _foreground(label, k, ignored, IGNORES)
    _, derivative = FN(score, foreground.to(ACC))
    weight = tl.load(slopes_ptr + (group * rows + row) * size + place, mask=inside, other=0.0)
    return derivative * weight * tl.load(shares_ptr + group * rows + row)


@triton.jit
def sort_backward_kernel(
    grad_loss_ptr,
    input_ptr,
    target_ptr,
    stats_ptr,
    slopes_ptr,  # (groups, rows, elements of a group) ACC
    shares_ptr,  # (groups, rows) ACC
    class_of_row_ptr,
    row_of_channel_ptr,  # (channels,) int64, -1 for none; or None
    grad_ptr,  # contiguous
    elements: tl.int64,
    inner: tl.int64,
    channels: tl.int64,
    image_stride: tl.int64,
    channel_stride: tl.int64,
    images: tl.int64,
    rows: tl.int64,
    lone: tl.int64,
    ignored: tl.int64,
    FN: tl.constexpr,
    NORMALISE: tl.constexpr,
    IGNORES: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, place, inside = _place(tl.program_id(0).to(tl.int64), inner, BLOCK)
    group = image // images
    size = images * inner
    element = image * inner + place
    within = element - group * size
    label = tl.load(target_ptr + element, mask=inside, other=0)
    _, used = _foreground(label, 0, ignored, IGNORES)
    upstream = tl.load(grad_loss_ptr).to(ACC)
    score_ptr = input_ptr + image * image_stride + place
    dot = tl.full((BLOCK,), 0.0, ACC)
    top = dot
    inverse = dot
    if NORMALISE:
        top = tl.load(stats_ptr + element, mask=inside, other=0.0)
        inverse = tl.load(stats_ptr + elements + element, mask=inside, other=0.0)
        for row in tl.range(0, rows):
            channel = row
            if class_of_row_ptr is not None:
                channel = tl.load(class_of_row_ptr + row)
            p = _probability(tl.load(score_ptr + channel * channel_stride, mask=inside, other=0.0).to(ACC), top, inverse, NORMALISE)
            dot += p * _slope(
                p, label, row, slopes_ptr, shares_ptr, class_of_row_ptr, group, rows, size, within, inside, lone, ignored, FN, IGNORES, ACC
            )
    for channel in tl.range(0, channels):
        row = channel
        if row_of_channel_ptr is not None:
            row = tl.load(row_of_channel_ptr + channel)
        score = _probability(tl.load(score_ptr + channel * channel_stride, mask=inside, other=0.0).to(ACC), top, inverse, NORMALISE)
        grad = _slope(
            score, label, tl.maximum(row, 0), slopes_ptr, shares_ptr, class_of_row_ptr, group, rows, size, within, inside, lone, ignored,
            FN, IGNORES, ACC,
        )
        grad = tl.where(row >= 0, grad, 0.0)
        if NORMALISE:
            grad = score * (grad - dot)
        tl.store(grad_ptr + (image * channels + channel) * inner + place, tl.where(used, upstream * grad, 0.0), mask=inside)


class _Launch:
    """What all launches derive from a call."""

    def __init__(self, call: DeviceCall) -> None:
        settings = call.settings
        self.call = call
        self.accumulate = tl.float64 if call.input.dtype == torch.float64 else tl.float32
        images, self.channels, self.inner = call.input.shape
        self.elements = images * self.inner
        self.images = 1 if settings.per_image else images
        self.lone = settings.classes[0] if self.channels == 1 else -1
        self.ignored = 0 if settings.ignore_index is None else settings.ignore_index
        self.ignores = settings.ignore_index is not None
        self.functor, self.normalise = SORT[settings.errors]
        self.strides = call.input.stride()[:2]

    def run(self, kernel, slabs: int, length: int, *args, **constants) -> None:
        """A program for every block of `slabs` times `length` neighbours."""
        block, num_warps = configuration(self.call.input.dtype)
        launch.run(
            kernel, slabs * triton.cdiv(length, block), self.call.input.device, *args, BLOCK=block, num_warps=num_warps, **constants,
            **launch.registers(num_warps),
        )


def configuration(dtype: torch.dtype) -> tuple[int, int]:
    """Elements of a program, and warps."""
    if INTERPRETED:
        return 1024, 1
    block, threads = TUNING[accumulate_dtype(dtype)]
    return block, threads // launch.warp_size()


class _Kernels:
    """:class:`fastloss.sort.DeviceKernels` in Triton."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.tile = configuration(dtype)[0]

    def statistics(self, call: DeviceCall, stats: Tensor) -> None:
        it = _Launch(call)
        it.run(
            sort_statistics_kernel, call.input.shape[0], it.inner, call.input, stats, it.elements, it.inner, it.channels, *it.strides,
            ACC=it.accumulate,
        )

    def keys(self, call: DeviceCall, stats: Tensor, first_row: int, keys: Tensor) -> None:
        it = _Launch(call)
        it.run(
            sort_keys_kernel, keys.shape[0] * it.images, it.inner, call.input, call.target, stats, call.class_of_row, keys, it.elements,
            it.inner, *it.strides, it.images, call.rows, first_row, it.lone, it.ignored, FN=it.functor, NORMALISE=it.normalise,
            IGNORES=it.ignores, ACC=it.accumulate,
        )

    def count(self, call: DeviceCall, first_row: int, order: Tensor, counts: Tensor) -> None:
        it = _Launch(call)
        it.run(
            sort_count_kernel, order.shape[0], call.size, call.target, order, call.class_of_row, counts, call.size, call.rows, first_row,
            it.lone, it.ignored, IGNORES=it.ignores,
        )

    def weigh(
        self, call: DeviceCall, first_row: int, keys: Tensor, order: Tensor, before: Tensor, total: Tensor, partial: Tensor,
        slopes: Tensor | None,
    ) -> None:
        it = _Launch(call)
        it.run(
            sort_weigh_kernel, order.shape[0], call.size, call.target, keys, order, call.class_of_row, before, total, partial, slopes,
            call.size, call.rows, first_row, it.lone, it.ignored, IGNORES=it.ignores, ACC=it.accumulate,
        )


def sort_forward(input, target, errors, classes, per_image, present, ignore_index, want_slopes):
    settings = Settings(errors, classes, per_image, present, ignore_index)
    return sorted_forward(_Kernels(input.dtype), input, target, settings, want_slopes)


def sort_backward(grad_loss, input, target, stats, slopes, shares, errors, classes, per_image, present, ignore_index):
    call = device_call(input, target, Settings(errors, classes, per_image, present, ignore_index))
    it = _Launch(call)
    grad = gradient_like(input)
    if grad.numel():
        it.run(
            sort_backward_kernel, input.shape[0], it.inner, grad_loss, input, target, stats, slopes, shares, call.class_of_row,
            call.row_of_channel, grad, it.elements, it.inner, it.channels, *it.strides, it.images, call.rows, it.lone, it.ignored,
            FN=it.functor, NORMALISE=it.normalise, IGNORES=it.ignores, ACC=it.accumulate,
        )
    return grad


for _device in ("CPU", "CUDA", "XPU"):
    library.impl("sort_forward.triton", sort_forward, _device)
    library.impl("sort_backward.triton", sort_backward, _device)
