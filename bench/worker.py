"""One measurement in a process of its own: `python -m bench.worker KIND NAME ...`; the last line of its output is JSON."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from fastloss.oracle import Mismatch

from .workload import Workload
from .workloads import WORKLOADS

TINY = 2**17  # elements; below it a call is too short for a single clock reading
COPY_BYTES = 2**28
FEW = 3  # repeats of what takes minutes
PRODUCT_ROWS = 2048


def copy_bandwidth(repeats: int = 7) -> float:
    """Bytes a second that a copy into memory already touched reads and writes."""
    source = torch.ones(COPY_BYTES // 4)
    sink = torch.zeros_like(source)
    return 2 * COPY_BYTES / min(_seconds(lambda: sink.copy_(source)) for _ in range(repeats))


def product_rate(dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations a second of torch's product of square matrices."""
    first, second = torch.ones(2, PRODUCT_ROWS, PRODUCT_ROWS, dtype=dtype)
    return 2 * PRODUCT_ROWS**3 / min(_seconds(lambda: first @ second) for _ in range(repeats))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = action()
    elapsed = time.perf_counter() - start
    del result  # freeing the gradient is not part of the call
    return elapsed


def _step(call: Callable[..., Tensor], input: Tensor, others: tuple[Tensor, ...], view: bool) -> Tensor | tuple[Tensor, ...]:
    # An output of an operation, as a model gives it: an input may be overwritten only when it is no leaf.
    logits = input.view_as(input) if view else input
    weights = call.parameters() if isinstance(call, torch.nn.Module) else ()
    leaves = [logits, *(other for other in others if other.requires_grad), *weights]
    grads = torch.autograd.grad(call(logits, *others), leaves)
    return grads if len(grads) > 1 else grads[0]


def _spread(times: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(times, n=4)
    return {"median_ms": 1e3 * median, "low_ms": 1e3 * low, "high_ms": 1e3 * high, "repeats": len(times)}


def measure_time(workload: Workload, repeats: int, compiled: bool) -> dict:
    """Alternate the sides, one repeat of each in turn."""
    input, *others = workload.tensors()
    fresh = input.clone() if workload.inplace else None
    input.requires_grad_()
    calls = {"ours": workload.our_call} | ({} if workload.alone else {"eager": workload.rival_call})
    failed = {}
    if compiled:
        calls["compiled"] = torch.compile(workload.rival_call)
        try:
            _step(calls["compiled"], input, others, False)
        except Exception as error:  # Inductor needs a C++ compiler and can fail in many ways; the other sides are still worth timing
            failed["compiled"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            del calls["compiled"]

    def run(side: str) -> float:
        inplace = workload.inplace and side == "ours"
        if fresh is not None:
            with torch.no_grad():
                input.copy_(fresh)
        return _seconds(lambda: _step(calls[side], input, others, inplace))

    def run_tiny(side: str) -> float:
        names = {"step": _step, "call": calls[side], "input": input, "others": others, "view": workload.inplace}
        return Timer("step(call, input, others, view)", globals=names).blocked_autorange(min_run_time=0.05).median

    timed = run_tiny if workload.elements < TINY and not workload.capacity else run
    times: dict[str, list[float]] = {side: [] for side in calls}
    for repeat in range(-1, FEW) if workload.capacity else range(-2, repeats):
        for side in calls:
            elapsed = timed(side)
            if repeat >= 0:
                times[side].append(elapsed)
    sides = {side: _spread(values) for side, values in times.items()}
    rate = product_rate(getattr(torch, workload.dtype)) if workload.flops else None
    return {"sides": sides, "failed": failed, "copy_bytes_per_second": copy_bandwidth(), "flops_per_second": rate}


def _resident(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def measure_memory(workload: Workload, side: str) -> dict:
    """Growth of the resident set at its peak, over the inputs, in bytes."""
    call = workload.our_call if side == "ours" else workload.rival_call
    small, *few = workload.smaller(workload.shape[0]).tensors()
    inplace = workload.inplace and side == "ours"
    _step(call, small.requires_grad_(), few, inplace)  # loads libraries and starts threads, which is not the loss's memory
    input, *others = workload.tensors()
    input.requires_grad_()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present
    gradient = _step(call, input, others, inplace)
    grown = _resident("VmHWM") - before
    del gradient
    return {"extra_bytes": max(grown, 0)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("check", "time", "memory"))
    parser.add_argument("name", choices=WORKLOADS)
    parser.add_argument("--smaller", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--side", choices=("ours", "eager"), default="ours")
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.name]
    if arguments.smaller > 1:
        workload = workload.smaller(arguments.smaller)
    if arguments.kind == "check":
        try:
            chosen = workload.verify()
            result = {"wrong": None, "backend": chosen.backend, "reason": chosen.reason}
        except Mismatch as mismatch:
            result = {"wrong": str(mismatch)}
    elif arguments.kind == "time":
        result = measure_time(workload, arguments.repeats, arguments.compiled)
    else:
        result = measure_memory(workload, arguments.side)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
