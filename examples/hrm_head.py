"""A small hierarchical reasoning model learns to fill in 4 x 4 Sudokus, with fastloss's loss and the formula in plain torch beside it.

    python examples/hrm_head.py             # some seconds
    python examples/hrm_head.py --steps 20

The model (after Wang et al. 2025) goes over a puzzle several times: a fast state is updated at every pass and a slow one at every second.
Gradients flow through the last update of the slow state, and two scores say whether to halt or to go on with another segment. Each
step trains on two segments. For both, value and gradient of `fastloss.functional.hrm_loss` are compared with plain torch's.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastloss.functional as F

CELLS, SYMBOLS, HIDDEN = 16, 5, 6  # symbol 0 is an empty cell
GIVEN = -100  # the target of a cell that is not to be filled in


def sudokus() -> Tensor:
    """All 288 squares of 4 x 4 cells in which every row, column and quarter has the symbols 1 to 4."""
    found = []
    rows = list(itertools.permutations(range(1, 5)))

    def distinct(square: tuple[tuple[int, ...], ...]) -> bool:
        columns = all(len(set(column)) == len(square) for column in zip(*square))
        pairs = [square[i : i + 2] for i in range(0, len(square) - 1, 2)]
        return columns and all(len({*a[j : j + 2], *b[j : j + 2]}) == 4 for a, b in pairs for j in (0, 2))

    def extend(square: tuple[tuple[int, ...], ...]) -> None:
        if len(square) == 4:
            found.append(square)
            return
        for row in rows:
            if distinct((*square, row)):
                extend((*square, row))

    extend(())
    return torch.tensor(found).view(-1, CELLS)


def hide(squares: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Puzzles with HIDDEN empty cells, and the symbols that belong there."""
    hidden = torch.rand(squares.shape, generator=generator).argsort(1) < HIDDEN
    return torch.where(hidden, 0, squares), torch.where(hidden, squares, GIVEN)


def neighbours() -> Tensor:
    """Whether two cells share a row, a column or a quarter."""
    row, column = torch.arange(CELLS) // 4, torch.arange(CELLS) % 4
    quarter = row // 2 * 2 + column // 2
    shared = [kind.unsqueeze(0) == kind.unsqueeze(1) for kind in (row, column, quarter)]
    return (shared[0] | shared[1] | shared[2]).float() - torch.eye(CELLS)


class Update(nn.Module):
    """A new state of each cell from its own and the sum of its neighbours'."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("neighbours", neighbours())

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.layers(torch.cat([x, self.neighbours @ x], -1)))


class Model(nn.Module):
    """Two recurrent states of the cells, and heads for symbols and for halting."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.symbols, self.fast, self.slow = nn.Embedding(SYMBOLS, width), Update(width), Update(width)
        self.head, self.halting = nn.Linear(width, SYMBOLS), nn.Linear(width, 2)

    def forward(self, puzzle: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Logits (B, cells, symbols), scores of halting and of going on (B), and the state that the next segment starts from."""
        given = self.symbols(puzzle)
        low, high = (torch.zeros_like(given),) * 2 if state is None else state
        for last in (False, True):
            with torch.set_grad_enabled(last and torch.is_grad_enabled()):
                for _ in range(2):
                    low = self.fast(low + high + given)
                high = self.slow(high + low)
        halt, go_on = self.halting(high.mean(1)).unbind(1)
        return self.head(high), halt, go_on, (low.detach(), high.detach())


def plain_hrm_loss(logits: Tensor, target: Tensor, halt: Tensor, go_on: Tensor, target_go_on: Tensor) -> Tensor:
    """The loss as its definition says, with every intermediate result stored."""
    counts = target != GIVEN
    s = torch.where(logits < 0, 1 / (1 - logits.clamp_max(0)), logits.clamp_min(0) + 1)
    log_prob = (s / s.sum(-1, keepdim=True)).log()
    losses = -log_prob.gather(-1, target.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    right = ((logits.argmax(-1) == target) | ~counts).all(1).to(halt)
    bce = nn.functional.binary_cross_entropy_with_logits
    return losses[counts].mean() + 0.5 * (bce(halt, right) + bce(go_on, target_go_on))


class Step(NamedTuple):
    """One step: both losses, the largest difference of their gradients, and the shares of cells and of puzzles that were right."""

    ours: float
    plain: float
    gradient_difference: float
    cells: float
    puzzles: float


def segment(model: Model, puzzle: Tensor, target: Tensor, state) -> tuple[Tensor, Step, tuple[Tensor, Tensor]]:
    """The loss of a segment, compared with plain torch's, and the state after it."""
    logits, halt, go_on, state = model(puzzle, state)
    with torch.no_grad():  # going on is worth what the next segment says of halting and of going on
        _, next_halt, next_go_on, _ = model(puzzle, state)
        target_go_on = torch.maximum(next_halt, next_go_on).sigmoid()
    loss, parts = F.hrm_loss(logits, target, halt, go_on, target_go_on, ignore_index=GIVEN, return_parts=True)

    leaves = [t.detach().requires_grad_() for t in (logits, halt, go_on)]
    plain = plain_hrm_loss(leaves[0], target, *leaves[1:], target_go_on)
    wanted = torch.autograd.grad(plain, leaves)
    found = torch.autograd.grad(loss, (logits, halt, go_on), retain_graph=True)
    difference = max(float((a - b).abs().max()) for a, b in zip(found, wanted))
    step = Step(loss.item(), plain.item(), difference, parts.accuracy.mean().item(), parts.correct.double().mean().item())
    return loss, step, state


def train(steps: int, batch: int = 64, seed: int = 0, backend: str = "auto", report=lambda number, step: None) -> list[Step]:
    """Train on two segments a step; gives the second one's figures."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    squares = sudokus()
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    history = []
    for number in range(steps):
        puzzle, target = hide(squares[torch.randint(len(squares), (batch,), generator=generator)], generator)
        state = None
        optimizer.zero_grad()
        for _ in range(2):
            loss, step, state = segment(model, puzzle, target, state)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(step)
        report(number, step)
    return history


def check(history: list[Step]) -> None:
    """Raise unless both losses agree at every step, in value and gradient."""
    for number, step in enumerate(history):
        if abs(step.ours - step.plain) > 1e-5 * abs(step.plain) or step.gradient_difference > 1e-6:
            raise SystemExit(f"step {number}: the losses differ, {step}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    steps = parser.parse_args().steps

    def report(number: int, step: Step) -> None:
        if number % 15 == 0 or number + 1 == steps:
            losses = f"loss {step.ours:.5f}  plain torch {step.plain:.5f}"
            print(f"step {number:4d}  {losses}  cells {step.cells:6.1%}  puzzles {step.puzzles:6.1%}")

    started = time.perf_counter()
    history = train(steps, report=report)
    check(history)
    print(f"{steps} steps in {time.perf_counter() - started:.1f} s; both losses agree at each, in value and gradient")


if __name__ == "__main__":
    main()
