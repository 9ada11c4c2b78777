"""What each process of test_distributed.py runs: every case on all processes of a group, against one process with the whole batch."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

import fastloss.distributed.contrastive  # noqa: F401  so that it is imported before processes part
import fastloss.functional as F
from fastloss.distributed import Group, ring

CASES: dict[str, Callable[[], None]] = {}
SPLITS = ((3, 3, 3, 3), (5, 1, 3, 2), (3, 0, 4, 2))  # rows of each rank
FEATURES = 6


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def run(rank: int, world: int, path: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world, timeout=timedelta(seconds=20))
    found = {}
    for name, function in CASES.items():
        torch.manual_seed(0)
        try:
            function()
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
            break  # the other processes are somewhere else now
    results.put((rank, found))
    dist.destroy_process_group()


def splits() -> Iterator[list[int]]:
    for rows in SPLITS:
        yield list(rows[: dist.get_world_size()])


def ways() -> Iterator[str]:
    """By gathering in plain torch, then round the ring with kernels: the two choices have nothing to do with one another."""
    usual = ring.GATHER_BYTES
    yield "eager"
    ring.GATHER_BYTES = 0
    yield "auto"
    ring.GATHER_BYTES = usual


def own(tensor: Tensor, rows: list[int]) -> Tensor:
    return tensor.split(rows)[dist.get_rank()].clone()


def compare(loss: Callable, sets: list[Tensor], shared: list[Tensor], rows: list[int], split: list[list[int]] | None = None, **options) -> None:
    """Value and gradients of `loss(*sets, *shared)`; floating sets and all of `shared` have gradients."""
    split = [rows] * len(sets) if split is None else split
    group = dist.group.WORLD
    exact = [t.clone().double().requires_grad_() if t.is_floating_point() else t for t in (*sets, *shared)]
    wanted = loss(*exact, **options, backend="eager")
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).bfloat16().double()
    wanted.backward(upstream)
    per_row = wanted.dim() > 0
    for backend in ways():
        mine = [own(t, s).requires_grad_(t.is_floating_point()) for t, s in zip(sets, split)]
        factors = [t.clone().requires_grad_() for t in shared]
        got = loss(*mine, *factors, **options, group=group, backend=backend)
        got.backward((own(upstream, rows) if per_row else upstream).to(got.dtype))
        close(got, own(wanted, rows) if per_row else wanted)
        for x, t, s in zip(mine, exact, split):
            if x.requires_grad:
                close(x.grad, own(t.grad, s))
        for x, t in zip(factors, exact[len(sets) :]):
            close(x.grad, t.grad)


def close(got: Tensor, wanted: Tensor) -> None:
    eps = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}[got.dtype]
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    torch.testing.assert_close(got.detach().double(), wanted.detach(), rtol=eps, atol=eps, equal_nan=True)


def rows_of(total: int, dtype: torch.dtype = torch.float64, features: int = FEATURES) -> Tensor:
    return torch.randn(total, features, dtype=torch.float64).to(dtype)


def number(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)


@case
def clip():
    for rows in splits():
        x, t = rows_of(sum(rows)), rows_of(sum(rows))
        for reduction in ("mean", "none"):
            compare(F.clip_loss, [x, t], [number(1.5), number(-0.5)], rows, reduction=reduction)
    for dtype in (torch.float32, torch.bfloat16):
        x, t = (torch.nn.functional.normalize(rows_of(sum(rows)), dim=1).to(dtype) for _ in range(2))
        compare(F.clip_loss, [x, t], [number(3.0, torch.float32)], rows)


@case
def siglip():
    for rows in splits():
        x, t = rows_of(sum(rows)), rows_of(sum(rows))
        for reduction in ("batch_sum", "mean", "sum", "none"):
            compare(F.siglip_loss, [x, t], [number(1.5), number(-2.0)], rows, reduction=reduction)
    compare(F.siglip_loss, [x.float(), t.float()], [number(1.5, torch.float32), number(-2.0, torch.float32)], rows)
    compare(lambda a, b, s, **more: F.siglip_loss(a, b, s, None, **more), [x, t], [number(1.5)], rows)


@case
def info_nce():
    for rows in splits():
        x, t, n = (rows_of(sum(rows)) for _ in range(3))
        for reduction in ("mean", "none"):
            compare(lambda q, k, s, **more: F.info_nce_loss(q, k, temperature=s, **more), [x, t], [number(0.3)], rows, reduction=reduction)
        compare(F.info_nce_loss, [x, t], [], rows, temperature=0.2)
        others = [1, 3, 0, 2][: len(rows)]
        compare(F.info_nce_loss, [x, t, rows_of(sum(others))], [number(0.4)], rows, [rows, rows, others])
        compare(F.info_nce_loss, [x, t, n.unsqueeze(1).repeat(1, 2, 1)], [number(0.4)], rows, negative_mode="paired")
    compare(F.info_nce_loss, [x.float(), t.float()], [], rows, temperature=0.2)


def _nt_xent(views: Tensor, *factors, reduction: str = "mean", **more) -> Tensor:
    """Of pairs of views, so that the rows of a process are both views of its samples."""
    return F.nt_xent_loss(views[:, 0], views[:, 1], *factors, reduction=reduction, **more)


@case
def nt_xent():
    for rows in splits():
        x = torch.stack([rows_of(sum(rows)), rows_of(sum(rows))], 1)
        for reduction in ("mean", "sum"):
            compare(_nt_xent, [x], [number(0.3)], rows, reduction=reduction)
    compare(_nt_xent, [x.float()], [number(0.3, torch.float32)], rows)
    views = [own(x[:, k], rows) for k in (0, 1)]
    every = F.nt_xent_loss(x[:, 0], x[:, 1], reduction="none").chunk(2)
    close(F.nt_xent_loss(*views, reduction="none", group=dist.group.WORLD), torch.cat([own(v, rows) for v in every]))


@case
def sup_con():
    for rows in splits():
        total = sum(rows)
        # Classes on all processes, no positives at all, and classes of one process with labels that no float holds.
        for labels in (torch.arange(total) % 3, torch.arange(total), torch.arange(total) // rows[0] + 2**60):
            compare(F.sup_con_loss, [rows_of(total), labels], [number(0.3)], rows)
        compare(F.sup_con_loss, [rows_of(total), torch.arange(total) % 3], [number(0.3)], rows, reduction="none")
    compare(F.sup_con_loss, [rows_of(total, torch.float32), labels], [number(0.3, torch.float32)], rows)


@case
def agreement():
    rank, world = dist.get_rank(), dist.get_world_size()
    x = torch.randn(3, 4)
    wrong = {
        "features must be the same on all ranks of the group, got 5 on rank 0": lambda: F.info_nce_loss(
            *(2 * [torch.randn(3, 5 if rank == 0 else 4)]), group=dist.group.WORLD
        ),
        "temperature must be .*'0.5' on rank": lambda: F.nt_xent_loss(x, x, 0.5 if rank == world - 1 else 0.25, group=dist.group.WORLD),
        "image's dtype must be": lambda: F.clip_loss(*(2 * [x.double() if rank else x]), 2.0, group=dist.group.WORLD),
        "requires_grad must be": lambda: F.clip_loss(x, x.clone().requires_grad_(rank == 0), 2.0, group=dist.group.WORLD),
        "compute different losses: clip on rank": lambda: (F.clip_loss if rank else F.siglip_loss)(
            x, x, 2.0, None, group=dist.group.WORLD
        ),
        "rank 0 of the group has failed: ValueError: clip: text must have image's shape|clip: text must have": lambda: F.clip_loss(
            x, x[:2] if rank == 0 else x, 2.0, group=dist.group.WORLD
        ),
    }
    for message, call in wrong.items():
        raises(call, message, (ValueError, RuntimeError))
    raises(lambda: F.clip_loss(x, x, 2.0, group="world"), "group must be a ProcessGroup", TypeError)
    mesh = dist.init_device_mesh("cpu", (world,), mesh_dim_names=("dp",))
    for group in (mesh, mesh["dp"], (mesh, "dp"), (mesh, 0)):
        assert Group("clip", group).world == world


def raises(call: Callable, message: str, kind) -> None:
    try:
        call()
    except kind as error:
        assert re.search(message, str(error)), str(error)
        return
    raise AssertionError(f"nothing was raised: {message}")
