"""What a row of the table is: the class that all kinds of rows derive from, which is that of the row engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastloss import Explanation, explain
from fastloss.cases import Case
from fastloss.oracle import check
from fastloss.registry import LOSSES, Loss

from . import rivals


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Args:
        name: for `--case` and the table.
        loss: name in the registry.
        shape: of the logits.
        dtype: of the logits.
        soft: class probabilities as target.
        options: arguments of both sides.
        ours: arguments of our side only.
        eager_ratio: how many times faster than torch eager it has to be.
        compiled_ratio: how many times faster than torch.compile it has to be; where given, torch.compile is timed.
        huge_pages: timed a second time with huge pages for both sides, because page faults of fresh buffers dominate.
        capacity: run on request only, a few times, and without a rival, for which it is too large.
    """

    name: str
    loss: str = "cross_entropy"
    shape: tuple[int, ...] = (4096, 1000)
    dtype: str = "float32"
    soft: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    ours: Mapping[str, object] = field(default_factory=dict)
    eager_ratio: float | None = None
    compiled_ratio: float | None = None
    huge_pages: bool = False
    capacity: bool = False

    @property
    def alone(self) -> bool:
        """Whether there is nothing to time it against."""
        return self.capacity

    @property
    def about(self) -> Loss:
        return LOSSES[self.loss]

    @property
    def elements(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def inplace(self) -> bool:
        return bool(self.ours.get("inplace"))

    @property
    def bytes_moved(self) -> int:
        """Bytes that forward + backward must move: inputs read in both, gradient written.

        A loss on log-probabilities reads one of them a row and only writes the gradient.
        """
        sweeps = 5 if self.soft else 3 if self.about.logits else 1
        return sweeps * self.elements * getattr(torch, self.dtype).itemsize

    @property
    def flops(self) -> int:
        """Operations of the products of matrices that forward + backward cannot do without."""
        return 0

    def smaller(self, factor: int) -> Workload:
        """The same with fewer rows, for a quick look; targets are for the full size and fall away."""
        rows = max(self.shape[0] // factor, 1)
        return replace(self, shape=(rows, *self.shape[1:]), eager_ratio=None, compiled_ratio=None, huge_pages=False)

    def check_case(self, rows: int = 24) -> Case:
        """The same call on few rows, for the correctness check."""
        shape = self.shape if len(self.shape) < 3 else (min(self.shape[0], 2), self.shape[1], *(min(n, 16) for n in self.shape[2:]))
        case = Case(
            shape=(min(shape[0], rows), *shape[1:]), dtype=self.dtype, labels="soft" if self.soft else "random", **self.options, **self.ours
        )
        return case.of(self.loss)

    def missing(self) -> str | None:
        """Why the rival is not there, or None."""
        return None

    def verify(self) -> Explanation:
        """Raise :class:`fastloss.oracle.Mismatch` if the loss is wrong; else which backend runs it."""
        check(self.check_case())
        return explain(self.about.function, *self.tensors())

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Logits and target, the same on every run."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        input = torch.randn(self.shape, dtype=dtype)
        if self.soft:
            return input, torch.softmax(torch.randn(self.shape, dtype=dtype), 1)
        return input, torch.randint(self.shape[1], self.shape[:1] + self.shape[2:])

    @property
    def our_call(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The public function with the workload's options bound, so that a timed call does nothing else."""
        return functools.partial(self.about.function, **dict(self.check_case().params), **self.options, **self.ours)

    @property
    def rival(self) -> str:
        """Whose `rival_call` is: eager torch's own, a released library's, a formula of :mod:`bench.rivals`, or ours in plain torch."""
        if self.about.torch:
            return "eager"
        half = self.dtype != "float32" and self.about.engine in ("pair", "plain")  # formulas that round too often in half precision
        return "plain torch" if half else rivals.name("box_loss" if self.about.engine == "box" else self.loss) or "plain torch"

    @property
    def rival_call(self) -> Callable[[Tensor, Tensor], Tensor]:
        """torch's own function; where torch has none, the formula in plain torch."""
        if self.about.torch:
            return functools.partial(getattr(F, self.about.torch), **self.options)
        return functools.partial(self.about.function, **dict(self.check_case().params), **self.options, backend="eager")
