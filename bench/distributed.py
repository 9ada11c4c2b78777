"""CLIP over processes: bytes and memory of each against what they should be, two processes against one, and a large run on paper.

``python -m bench.distributed`` prints all three; every process has one thread and passes blocks on over gloo.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from rich.table import Table

import fastloss.functional as F
from fastloss.cli import console
from fastloss.distributed import ring

from .worker import _resident

FLOAT, BUDGET = 4, 2**26  # bytes: of a number, and that kernels may keep scores in


def bytes_sent(rows: int, features: int, world: int, size: int = FLOAT, forward: bool = True, backward: bool = True) -> int:
    """What each process sends for :func:`fastloss.functional.clip_loss`; `size` is that of a number of the embeddings.

    Forward the rows of text make ``world - 1`` steps, with value and count of their columns, which make the last one home as well. Backward
    they go round again with their upstream gradient and log-sum-exp, and their gradient, in float32, comes home.
    """
    steps, home = (world - 1, world) if world > 1 else (0, 0)
    there = steps * rows * features * size
    return forward * (there + home * rows * 2 * FLOAT) + backward * (there + steps * rows * 2 * FLOAT + home * rows * features * FLOAT)


def peak_bytes(rows: int, features: int, world: int) -> int:
    """New memory at the worst moment of the backward: how many sets of rows there are at once, and what kernels keep scores in.

    The scaled images; gradients of both sets by way of the matching pairs; the gradient of the images and what a block adds to it; the
    block's own gradient. With others there are the block that is here, the one that comes, the gradient that comes and the one that goes.
    """
    return (6 if world == 1 else 10) * rows * features * FLOAT + min(BUDGET, rows * rows * FLOAT)


def _measured(rank: int, world: int, path: str, results, job: str, total: int, features: int, repeats: int) -> None:
    """One process: what it has sent and held, or how long it took."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    ring.GATHER_BYTES = 0
    generator, rows = torch.Generator().manual_seed(rank), total // world
    image, text = (torch.nn.functional.normalize(torch.randn(rows, features, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(20.0, requires_grad=True)

    def step() -> None:
        x, t = image.detach().requires_grad_(), text.detach().requires_grad_()
        F.clip_loss(x, t, scale, group=dist.group.WORLD).backward()

    if job == "time":
        times = []
        for _ in range(repeats + 1):
            dist.barrier()
            start, used = time.perf_counter(), time.process_time()
            step()
            dist.barrier()
            times.append((time.perf_counter() - start, time.process_time() - used))
        results.put(tuple(statistics.median(column) for column in zip(*times[1:])))
    else:
        sent, exchange = [], dist.batch_isend_irecv

        def counting(ops: list[dist.P2POp]) -> list:
            sent.extend(op.tensor.nbytes for op in ops if op.op is dist.isend)
            return exchange(ops)

        small = slice(0, 64)
        F.clip_loss(image[small].clone().requires_grad_(), text[small], scale, group=dist.group.WORLD).backward()  # what is loaded at first
        dist.batch_isend_irecv = counting
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present
        step()
        results.put((sum(sent), _resident("VmHWM") - before))
    dist.barrier()
    dist.destroy_process_group()


def measure(job: str, world: int, total: int, features: int, repeats: int = 1) -> list:
    """What every process of a group of `world` gave."""
    context = multiprocessing.get_context("spawn")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"  # what has been given back to glibc is not counted as held
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, os.path.join(folder, "meet"), results, job, total, features, repeats)
        workers = [context.Process(target=_measured, args=(rank, *arguments)) for rank in range(world)]
        for worker in workers:
            worker.start()
        found = [results.get(timeout=900) for _ in workers]
        for worker in workers:
            worker.join()
    return found


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def laws(total: int, features: int) -> Table:
    """Bytes and memory for 1, 2 and 4 processes, beside the laws."""
    table = _table(
        f"clip_loss of {total} x {features} in float32, forward and backward, of each process", "processes", "MB sent", "law", "ratio",
        "peak MB", "law", "ratio",
    )
    for world in (1, 2, 4):
        found = measure("bytes", world, total, features)
        sent, peak = max(s for s, _ in found), max(p for _, p in found)
        law, memory = bytes_sent(total // world, features, world), peak_bytes(total // world, features, world)
        ratio = f"{sent / law:.4f}" if law else ""
        about = f"{peak / 1e6:.0f}", f"{memory / 1e6:.0f}", f"{peak / memory:.2f}"
        table.add_row(str(world), f"{sent / 1e6:.2f}", f"{law / 1e6:.2f}", ratio, *about)
    return table


def scaling(total: int, features: int, rounds: int) -> Table:
    """Seconds of one and of two processes of one thread each, alternating; and of the processor, which others do not lengthen as much."""
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for world, found in times.items():
            found.append(max(measure("time", world, total, features, repeats=2)))
    title = f"clip_loss of {total} x {features}, forward and backward; best of {rounds}"
    table = _table(title, "seconds", "one process", "each of two", "two / one", "wanted")
    for name, one, two in zip(("passed", "of the processor"), *(map(min, zip(*found)) for found in times.values())):
        table.add_row(name, f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}", "0.60")
    return table


def on_paper(total: int, features: int, world: int, size: int, matrix_rate: float, link_rate: float) -> dict[str, float]:
    """Memory, bytes and seconds of one process, computed and not measured.

    Args:
        total: rows of all processes.
        features: of an embedding.
        world: processes.
        size: bytes of a number of the embeddings on their way.
        matrix_rate: products and sums a second that kernels reach.
        link_rate: bytes a second from each process to the next, while it receives as many.
    """
    rows = total // world
    # Scores forward, scores again backward, and the gradients of both sets: four products of rows x total x features.
    compute = 8 * rows * total * features / matrix_rate
    sent = bytes_sent(rows, features, world, size)
    return {
        "rows": rows,
        "scores of all pairs GB": total * total * FLOAT / 1e9,
        "scores of its rows GB": rows * total * FLOAT / 1e9,
        "memory of the loss GB": peak_bytes(rows, features, world) / 1e9,
        "GB sent": sent / 1e9,
        "s computing": compute,
        "s sending": sent / link_rate,
        "s, the longer": max(compute, sent / link_rate),
    }


def paper(total: int, features: int, world: int) -> Table:
    """The large run at two matrix and two link rates, with bfloat16 on the way."""
    rates = [(100e12, 25e9), (100e12, 200e9), (400e12, 25e9), (400e12, 200e9)]
    cases = [on_paper(total, features, world, 2, *each) for each in rates]
    title = f"On paper: clip_loss of {total:,} x {features} on {world} devices, of each device"
    table = _table(title, "", *(f"{matrix / 1e12:.0f} TFLOP/s, {link / 1e9:.0f} GB/s" for matrix, link in rates))
    for key in cases[0]:
        table.add_row(key, *(f"{case[key]:,.3g}" if key != "rows" else f"{case[key]:,}" for case in cases))
    return table


# Cheng et al. 2024, abstract: the largest batches of CLIP-ViT-L/14, whose embeddings have 768 numbers, that Inf-CL trains on devices of
# 80 GB.
PUBLISHED, PUBLISHED_FEATURES = ((4 * 2**20, 8), (12 * 2**20, 32)), 768


def beside_published() -> Table:
    """What our loss would take of a device where Inf-CL's largest published batches fill it together with the model."""
    about = f"with ViT-L/14 on devices of 80 GB, {PUBLISHED_FEATURES} features"
    title = f"On paper: clip_loss of batches that Inf-CL is published to train {about}"
    table = _table(title, "rows of all", "devices", "scores of a device's rows GB", "memory of the loss GB", "GB sent in bfloat16")
    for total, world in PUBLISHED:
        found = on_paper(total, PUBLISHED_FEATURES, world, 2, 1.0, 1.0)
        keys = "scores of its rows GB", "memory of the loss GB", "GB sent"
        table.add_row(f"{total:,}", str(world), *(f"{found[key]:,.3g}" for key in keys))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2, help="of the times, one process and two processes alternating")
    given = parser.parse_args()
    parts: dict[str, Callable[[], Table]] = {
        "laws": functools.partial(laws, given.rows, given.features),
        "scaling": functools.partial(scaling, given.rows, given.features, given.rounds),
        "paper": functools.partial(paper, 2**20, given.features, 64),
        "beside published": beside_published,
    }
    for part in parts.values():
        console.print(part())


if __name__ == "__main__":
    main()
