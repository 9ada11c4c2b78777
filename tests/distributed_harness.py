"""What the cases of distributed_cases.py are made of: how rows are spread, and the comparison with one process that has them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from fastloss import oracle
from fastloss.distributed import ring
from fastloss.engine import accumulate_dtype

SPLITS = ((3, 3, 3, 3), (5, 1, 3, 2), (3, 0, 4, 2))  # rows of each rank
FEATURES = 6
CASES: dict[str, Callable[[], None]] = {}
ONCE = set()  # cases for which one number of processes is as good as another; of two


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def once(function: Callable[[], None]) -> Callable[[], None]:
    ONCE.add(function.__name__)
    return case(function)


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

    def alone(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        given = [t.to(dtype, copy=True).requires_grad_() if t.is_floating_point() else t for t in (*sets, *shared)]
        value = loss(*given, **options, backend="eager")
        value.backward(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype))
        return value, given

    wanted, exact = alone(torch.float64)
    sums = accumulate_dtype(sets[0].dtype)
    plain, near = (wanted, exact) if sums == torch.float64 else alone(sums)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    per_row = wanted.dim() > 0
    for backend in ways():
        mine = [own(t, s).requires_grad_(t.is_floating_point()) for t, s in zip(sets, split)]
        factors = [t.clone().requires_grad_() for t in shared]
        got = loss(*mine, *factors, **options, group=group, backend=backend)
        got.backward((own(upstream, rows) if per_row else upstream).to(got.dtype))
        close(got, *(own(value, rows) if per_row else value for value in (wanted, plain)))
        for x, t, n, s in zip(mine, exact, near, split):
            if x.requires_grad:
                close(x.grad, own(t.grad, s), own(n.grad, s))
        for x, t, n in zip(factors, exact[len(sets) :], near[len(sets) :]):
            close(x.grad, t.grad, n.grad)


def close(got: Tensor, wanted: Tensor, plain: Tensor | None = None) -> None:
    """In float64 to 1e-12; else within four times the error of `plain`, the same in plain torch, and a few roundings of the sums' dtype."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    got, wanted = got.detach(), wanted.detach().double()
    if got.dtype == torch.float64:  # torch.testing would import sympy in every process, 2 s
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12, equal_nan=True), f"got {got}, wanted {wanted}"
        return
    few = oracle.FEW * torch.finfo(accumulate_dtype(got.dtype)).eps * max([1.0, *wanted[wanted.isfinite()].abs().flatten().tolist()])
    off = [] if plain is None else (plain.detach().double() - wanted).abs().nan_to_num(0.0).flatten().tolist()
    oracle.compare("", got, wanted, few + oracle.K * max(off, default=0.0))


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


def like_one(loss: Callable, sets: list[Tensor], rows: list[int]) -> list[Tensor]:
    """Value and gradients of ``loss(*sets, group=)``, which has no backend to choose; gives this process's sets."""

    def run(given: list[Tensor], **more) -> tuple[Tensor, list[Tensor]]:
        given = [t.detach().clone().requires_grad_() for t in given]
        value = loss(*given, **more)
        value.backward()
        return value, given

    wanted, exact = run([t.double() for t in sets])
    plain, near = (wanted, exact) if sets[0].dtype == torch.float64 else run(sets)
    got, mine = run([own(t, rows) for t in sets], group=dist.group.WORLD)
    close(got, wanted, plain)
    for z, t, n in zip(mine, exact, near):
        close(z.grad, own(t.grad, rows), own(n.grad, rows))
    return mine
