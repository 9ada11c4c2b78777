"""Contrastive training by several processes, which has to go as that of one process with the whole batch does.

``torchrun --nproc-per-node 2 -m fastloss.demo_distributed`` trains an encoder of scikit-learn's digits from two altered views of each,
under ``DistributedDataParallel`` with :func:`fastloss.functional.nt_xent_loss` over the processes' batches; the first process then trains
the same encoder alone, compares both curves step by step, and ends with status 1 if they part or if nothing was learned.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .distributed import for_ddp
from .functional import nt_xent_loss

STEPS, BATCH, FEATURES = 100, 128, 32
TEMPERATURE = 0.1  # of the start; it is learned
TOLERANCE = 1e-6  # the most that the curves may differ at any step, in nats; in float64, since training makes rounding grow
LEARNED = 0.75  # the last losses must lie below this share of the first


def encoder() -> torch.nn.Sequential:
    """The same weights in every process."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, FEATURES))


def batches(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Two altered views of each digit of a batch, the same in every process: without some of its pixels, and in noise."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        chosen = images[torch.randint(len(images), (BATCH,), generator=generator)]
        views = []
        for _ in range(2):
            kept = torch.rand(chosen.shape, generator=generator) > 0.3
            views.append((kept * chosen + 0.1 * torch.randn(chosen.shape, generator=generator)).flatten(1))
        found.append((views[0], views[1]))
    return found


def train(model: torch.nn.Module, data: list[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[float]:
    """The loss of every step."""
    log_temperature = torch.nn.Parameter(torch.tensor(TEMPERATURE).log())
    optimizer = torch.optim.Adam([*model.parameters(), log_temperature], lr=2e-3)
    curve = []
    for first, second in data:
        optimizer.zero_grad()
        both = model(torch.cat([first, second]))
        value = loss(*both.chunk(2), log_temperature.exp())
        value.backward()
        optimizer.step()
        curve.append(value.item())
    return curve


def problems(together: list[float], alone: list[float]) -> list[str]:
    """What is wrong with the two curves."""
    found = []
    worst = max(abs(x - y) for x, y in zip(together, alone))
    if not worst <= TOLERANCE:
        found.append(f"the curves differ by {worst:.1e} nats, more than {TOLERANCE:.0e}")
    last, first = sum(together[-5:]) / 5, together[0]
    if not last < LEARNED * first:
        found.append(f"the loss went from {first:.3f} to {last:.3f}, wanted below {LEARNED * first:.3f}")
    return found


def main() -> int:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo")
    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    data = batches(torch.from_numpy(load_digits().images) / 16)
    mine = [(first.tensor_split(world)[rank], second.tensor_split(world)[rank]) for first, second in data]

    def over_all(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
        return nt_xent_loss(*for_ddp(first, second, group=group), temperature, group=group)

    together = train(DistributedDataParallel(encoder()), mine, over_all)
    status = 0
    if rank == 0:
        alone = train(encoder(), data, nt_xent_loss)
        table = Table(title=f"NT-Xent of {BATCH} digits, two views of each")
        for column in ("step", f"{world} processes", "one process", "difference"):
            table.add_column(column, justify="right")
        for step in range(0, STEPS, STEPS // 10):
            x, y = together[step], alone[step]
            table.add_row(str(step), f"{x:.5f}", f"{y:.5f}", f"{abs(x - y):.1e}")
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(table)
        wrong = problems(together, alone)
        for text in wrong:
            console.print(f"failed: {text}")
        worst = max(abs(x - y) for x, y in zip(together, alone))
        console.print(f"largest difference of {STEPS} steps {worst:.1e} nats; last loss {together[-1]:.3f}, first {together[0]:.3f}")
        status = int(bool(wrong))
    dist.barrier()
    dist.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main())
