"""What the cases of distributed_cases.py are made of: how rows are spread, and the comparison with one process that has them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from fastloss.distributed import ring

SPLITS = ((3, 3, 3, 3), (5, 1, 3, 2), (3, 0, 4, 2))  # rows of each rank
FEATURES = 6


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


def compare(
    loss: Callable, sets: list[Tensor], shared: list[Tensor], rows: list[int], split: list[list[int]] | None = None, **options
) -> None:
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
    got, wanted = got.detach().double(), wanted.detach().double()  # torch.testing would import sympy in every process, 2 s
    assert torch.allclose(got, wanted, rtol=eps, atol=eps, equal_nan=True), f"got {got}, wanted {wanted}"


def rows_of(total: int, dtype: torch.dtype = torch.float64, features: int = FEATURES) -> Tensor:
    return torch.randn(total, features, dtype=torch.float64).to(dtype)


def number(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def raises(call: Callable, message: str, kind) -> None:
    try:
        call()
    except kind as error:
        assert re.search(message, str(error)), str(error)
        return
    raise AssertionError(f"nothing was raised: {message}")
