"""What the engines share: launching a kernel, options that depend on the GPU, and the kernel that finishes a reduction."""

from __future__ import annotations

import functools
import warnings

import numpy
import torch
import triton
import triton.language as tl


def run(kernel, programs: int, device: torch.device, *args, **options) -> None:
    """Run a kernel. All launches of all engines go through here, so that fastloss.aot can compile what would have been launched."""
    if device.type != "cpu":
        with torch.accelerator.device_index(device.index):  # Triton launches on the current device
            kernel[(programs,)](*args, **options)
        return
    with numpy.errstate(all="ignore"), warnings.catch_warnings():  # NaN and inf are answers, not accidents
        warnings.simplefilter("ignore", RuntimeWarning)
        kernel[(programs,)](*args, **options)


@functools.cache
def warp_size() -> int:
    return triton.runtime.driver.active.get_current_target().warp_size


@functools.cache
def registers(num_warps: int) -> dict[str, int]:
    """Lets ptxas use every register that a block can have; left alone it spills 8 bytes to reach a step of occupancy."""
    try:
        target = triton.runtime.driver.active.get_current_target()
    except RuntimeError:  # no GPU here, so nothing is launched
        return {}
    return {} if target.backend != "cuda" else {"maxnreg": min(255, 65536 // (32 * num_warps))}


@triton.jit
def reduce_kernel(
    partial_ptr,  # (2, programs) ACC: sums of losses and, when SUMMED, of divisors
    loss_ptr,
    divisor_ptr,  # () ACC
    programs: tl.int64,
    count: tl.int64,  # the divisor of a mean that is not SUMMED
    MEAN: tl.constexpr,
    SUMMED: tl.constexpr,
    EMPTY: tl.constexpr,  # what a divisor of 0 is replaced by: "inf" (a loss of 0), "nan", or None
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program, one order of additions: the same bits for every run."""
    lane = tl.arange(0, BLOCK)
    losses = tl.full((BLOCK,), 0.0, ACC)
    divisors = tl.full((BLOCK,), 0.0, ACC)
    for start in tl.range(0, programs, BLOCK):
        inside = lane < programs - start
        losses += tl.load(partial_ptr + start + lane, mask=inside, other=0.0)
        if MEAN and SUMMED:
            divisors += tl.load(partial_ptr + programs + start + lane, mask=inside, other=0.0)
    loss = tl.sum(losses, 0)
    divisor = tl.full((), 1.0, ACC)
    if MEAN:
        divisor = tl.sum(divisors, 0) if SUMMED else count.to(ACC)
        if EMPTY is not None:
            divisor = tl.where(divisor == 0.0, float(EMPTY), divisor)
        loss = loss / divisor
    tl.store(loss_ptr, loss)
    tl.store(divisor_ptr, divisor)
