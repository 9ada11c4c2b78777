"""How the cost of a loss grows: with the size of its input beside the floor's growth, and shrinks with a second thread.

``python -m bench.scaling [NAME ...] [--json FILE]``; each row is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import track
from rich.table import Table

from fastloss.cli import console, errors

from .worker import _step, copy_bandwidth, product_rate
from .workload import Workload
from .workloads import WORKLOADS

# Workload, the shape that grows in its first size, and the sizes: 2^16 to 2^26 elements, or 256 to 16,384 rows of pairs.
SERIES = {
    "mse": ("mse fp32 2^23", (), [2**n for n in range(16, 27, 2)]),
    "sigmoid_focal": ("sigmoid_focal fp32 2^23", (), [2**n for n in range(16, 27, 2)]),
    "cross_entropy": ("ce fp32 65536x1000", (1024,), [2**n for n in range(6, 17, 2)]),
    "dice": ("dice fp32 4x8x64^3", (8, 32, 32), [2**n for n in range(3, 14, 2)]),
    "lovasz_softmax": ("lovasz_softmax fp32 (4,19,256,256)", (16, 64, 64), [2**n for n in range(0, 11, 2)]),
    "generalized_box_iou": ("generalized_box_iou fp32 2^18", (), [2**n for n in range(14, 25, 2)]),
    "clip": ("clip fp32 4096x512", (256,), [256, 1024, 4096, 16384]),
    "nt_xent": ("nt_xent fp32 8192x128", (128,), [128, 512, 2048, 8192]),
}
SLOPE_TOLERANCE = 0.1  # by which the log-log slope of cost over floor may differ from 1
TWO_THREADS = 1.7  # times that two threads have to be faster than one
SECONDS = 0.3  # of repeats for one size, of 5 at least


def _median_ms(workload: Workload) -> float:
    input, *others = workload.tensors()
    input.requires_grad_()
    call, times = workload.our_call, []
    _step(call, input, others, False)
    while len(times) < 5 or sum(times) < SECONDS:
        start = time.perf_counter()
        gradient = _step(call, input, others, False)
        times.append(time.perf_counter() - start)
        del gradient  # freeing it is not part of the call
    return 1e3 * statistics.median(times)


def slope(costs: Sequence[float], floors: Sequence[float]) -> float:
    """Of the least-squares line through the logarithms: 1 where cost grows as the floor does."""
    return statistics.linear_regression([math.log(floor) for floor in floors], [math.log(cost) for cost in costs]).slope


def measure(name: str) -> dict:
    """Times of one loss over its sizes, and of the largest with one thread and two."""
    case, tail, sizes = SERIES[name]
    series = [replace(WORKLOADS[case], shape=(size, *tail)) for size in sizes]
    bandwidth, rate = copy_bandwidth(), product_rate(torch.float32)
    floors = [1e3 * max(workload.bytes_moved / bandwidth, workload.flops / rate) for workload in series]
    costs = [_median_ms(workload) for workload in series]
    result = {"name": name, "sizes": sizes, "tail": list(tail), "ms": costs, "floor_ms": floors, "slope": slope(costs, floors)}
    middle = series[-2]  # large enough to share, small enough that memory is not all that counts
    threads = torch.get_num_threads()
    alone, shared = [], []
    for _ in range(3):  # alternating, since other work on the machine comes and goes
        for times, count in ((alone, 1), (shared, threads)):
            torch.set_num_threads(count)
            times.append(_median_ms(middle))
    return result | {"threads": threads, "threads_speedup": statistics.median(a / b for a, b in zip(alone, shared))}


def _verdict(met: bool) -> str:
    return "[green]met[/]" if met else "[red]not met[/]"


def table(rows: list[dict]) -> Table:
    shown = Table(title="forward + backward: growth of cost with the floor, and two threads against one", title_justify="left")
    for heading in ("loss", "first size", "ms", "floor ms", "slope", f"1 ± {SLOPE_TOLERANCE}", "threads", f"{TWO_THREADS}x of two"):
        shown.add_column(heading, justify="left" if heading == "loss" else "right")
    for row in rows:
        shown.add_row(
            row["name"], *("\n".join(f"{value:.3g}" for value in row[key]) for key in ("sizes", "ms", "floor_ms")),
            f"{row['slope']:.2f}", _verdict(abs(row["slope"] - 1) <= SLOPE_TOLERANCE),
            f"{row['threads']}: {row['threads_speedup']:.2f}x",
            _verdict(row["threads_speedup"] >= TWO_THREADS) if row["threads"] == 2 else "",
        )
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Gives the exit status: 1 when a measurement failed; a target that is not met is printed only."""
    commands = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    commands.add_argument("name", nargs="*", metavar="NAME", help=f"of {', '.join(SERIES)} (default: all)")
    commands.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    commands.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    arguments = commands.parse_args(argv)
    names = arguments.name or list(SERIES)
    unknown = [name for name in names if name not in SERIES]
    if unknown:
        commands.error(f"unknown loss {unknown[0]!r}; choose from {', '.join(SERIES)}")
    if arguments.here:
        print(json.dumps([measure(name) for name in names]))
        return 0
    rows, failed = [], False
    for name in track(names, description="scaling", console=errors, transient=True):
        command = [sys.executable, "-m", "bench.scaling", name, "--here"]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
        if done.returncode:
            failed = True
            errors.print(f"[red]not timed:[/] {name}: {done.stderr.strip()}", highlight=False)
        else:
            rows += json.loads(done.stdout.splitlines()[-1])
    console.print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
