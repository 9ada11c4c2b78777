"""Cases of the sort engine for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine.

Gradients are compared where every row has errors that differ by more than their rounding: among equal ones any order is right, and each
has a gradient of its own. Elsewhere the value is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cases import LAYOUTS
from .engine import accumulate_dtype
from .sort import ERRORS

EXTRAS = ()
GAP = 64.0  # of errors, in units of eps of the sums and of the largest score: closer ones may change places


@dataclass(frozen=True)
class SortCase:
    """One call of a loss of the sort engine.

    Args:
        loss: name in the registry.
        shape: of the input: (N, C, d1, ...), and (N, ...) of a loss with one class.
        dtype: of the input, as ``"float32"``.
        seed: every number of the case is drawn from it.
        layout: how the input lies in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        values: what the numbers look like; a key of :data:`VALUES`.
        labels: a key of :data:`LABELS`.
        target_dtype: of the target.
        target_layout: how it lies in memory.
        classes: "present", "all", or "list" for every other class, the last first.
        from_logits: whether the input is logits; else probabilities.
    """

    loss: str = "lovasz_softmax"
    shape: tuple[int, ...] = (2, 3)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    values: str = "normal"
    labels: str = "random"
    target_dtype: str = "int64"
    target_layout: str = "contiguous"
    classes: str = "present"
    per_image: bool = False
    ignore_index: int | None = None
    from_logits: bool = True

    inplace = False
    extras = ()
    params = ()

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"SortCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> SortCase:
        """The same case of another loss, choices that it does not have at their default."""
        if loss != "lovasz_hinge":
            return replace(self, loss=loss, target_dtype="int64" if self.target_dtype in FLOATING_LABELS else self.target_dtype)
        return replace(self, loss=loss, classes="present", from_logits=True)

    @property
    def errors(self) -> str:
        """A key of :data:`fastloss.sort.ERRORS`."""
        return "hinge" if self.loss == "lovasz_hinge" else "softmax" if self.from_logits else "probability"

    @property
    def chosen(self) -> list[int]:
        """The classes whose losses are averaged."""
        if self.errors == "hinge":
            return [1]
        channels = self.shape[1]
        if channels == 1:
            return [1]
        return list(range(channels - 1, -1, -2)) if self.classes == "list" else list(range(channels))

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        common = {"per_image": self.per_image, "ignore_index": self.ignore_index}
        if self.errors == "hinge":
            return common
        listed = self.classes == "list" or self.shape[1] == 1
        return common | {"classes": self.chosen if listed else self.classes, "from_logits": self.from_logits}

    def build(self) -> SortCall:
        """Make the tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        hinge = self.errors == "hinge"
        rows = self.shape if hinge else (self.shape[0], *self.shape[2:])
        known = 2 if hinge or self.shape[1] == 1 else self.shape[1]
        label = LABELS[self.labels](rows, known, generator)
        kind = getattr(torch, self.target_dtype)
        if self.ignore_index is not None and kind is not torch.bool:
            label = torch.where(torch.rand(rows, generator=generator) < 0.3, self.ignore_index, label)
        if self.labels == "all ignored" and self.ignore_index is not None and kind is not torch.bool:
            label = torch.full(rows, self.ignore_index)
        raw = VALUES[self.values](self.shape, generator)
        if self.errors == "probability":
            raw = torch.sigmoid(raw) if self.shape[1] == 1 else torch.softmax(raw, 1)
            raw[raw < torch.finfo(torch.float32).tiny] = 0.0  # an error has the sign of zero there or not: interpreters differ
        memory, input = LAYOUTS[self.layout](raw.to(getattr(torch, self.dtype)))
        target_memory, target = LAYOUTS[self.target_layout](label.to(kind))
        call = SortCall(self, input, target, memory, target_memory, True)
        return replace(call, compares_gradients=call.distinct())


FLOATING_LABELS = ("float32", "bfloat16")


@dataclass
class SortCall:
    """The tensors of a case, with the memory that they are views of."""

    case: SortCase
    input: Tensor
    target: Tensor
    input_memory: Tensor
    target_memory: Tensor
    compares_gradients: bool

    @property
    def options(self) -> dict:
        return self.case.options()

    @property
    def result_dtype(self) -> torch.dtype:
        return self.input.dtype

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        return {"loss": ()}

    def to(self, dtype: torch.dtype) -> SortCall:
        """The same numbers in another dtype."""
        return replace(self, input=self.input.to(dtype))

    def memory(self) -> dict[str, Tensor]:
        """A copy of all the memory behind the inputs, as bytes."""
        whole = {"input": self.input_memory, "target": self.target_memory}
        return {name: tensor.reshape(-1).view(torch.uint8).clone() for name, tensor in whole.items() if tensor.numel()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"input": self.input, "target": self.target}

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword."""
        return (tensors["input"], tensors["target"]), {}

    def rows(self) -> tuple[Tensor, Tensor]:
        """The errors in float64, -1 where a label is ignored, and whether each is foreground: (groups, rows, elements)."""
        case, point = self.case, ERRORS[self.case.errors][0]
        scores = self.input.double()
        scores = scores.unsqueeze(1) if case.errors == "hinge" else scores
        scores = torch.softmax(scores, 1) if case.errors == "softmax" else scores
        images, channels = scores.shape[:2]
        scores = scores.reshape(images, channels, self.target.numel() // max(images, 1))
        label = self.target.long().reshape(images, 1, -1) if images else self.target.long().reshape(0, 1, 0)
        if not case.per_image:
            scores, label = scores.movedim(1, 0).reshape(1, channels, -1), label.reshape(1, 1, -1)
        scores = torch.stack([scores[:, c if channels > 1 else 0] for c in case.chosen], 1)
        foreground = label == torch.tensor(case.chosen).view(1, -1, 1)
        used = label != case.ignore_index if case.ignore_index is not None else torch.ones_like(label, dtype=torch.bool)
        return torch.where(used, point(scores, foreground), -1.0), foreground & used

    def distinct(self) -> bool:
        """Whether no two errors that count are as close as rounding may make them."""
        errors, _ = self.rows()
        eps = torch.finfo(accumulate_dtype(self.input.dtype)).eps
        largest = float(self.input.double().abs().max()) if self.input.numel() else 0.0
        gap = GAP * eps * (1.0 + (largest if self.case.errors == "hinge" else 0.0))
        ordered = errors.sort(-1).values
        close = (ordered.diff(dim=-1) <= gap) & (ordered[..., 1:] > 0)
        return not close.any()

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        return ["input"] if self.compares_gradients else []

    def operators(self, backend: str) -> list[str]:
        """The operators that a forward and backward on a compiled backend run."""
        return [f"sort_forward.{backend}", *(f"sort_backward.{backend}" for _ in self.differentiable())]

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """The size of the terms that each result is summed from; what the accumulation dtype's eps is relative to.

        The weights of a row add up to at most 1, and none is larger than the inverse of its foreground.
        """
        errors, foreground = self.rows()
        largest = 1.0 + (float(self.input.double().abs().max()) if self.case.errors == "hinge" and self.input.numel() else 0.0)
        total = foreground.sum(-1)
        counts = total > 0 if self.case.options().get("classes") == "present" else torch.ones_like(total, dtype=torch.bool)
        share = counts / (counts.sum(1, keepdim=True).clamp_min(1) * max(total.shape[0], 1))
        steepest = float((share / total.clamp_min(1)).sum(1).max()) if total.numel() else 0.0
        back = float(upstream["loss"].double().abs()) if "loss" in upstream else 0.0
        return {"truth": 1.0 + errors.shape[-1] ** 0.5, "loss": largest, "input": back * steepest}

    def excused(self, name: str) -> Tensor | None:
        """Where a result may be NaN whatever the truth: nowhere."""
        return None


def _randn(shape, generator) -> Tensor:
    return torch.randn(shape, generator=generator).double()


VALUES: dict[str, Callable[..., Tensor]] = {
    "normal": lambda shape, g: 2 * _randn(shape, g),
    "wide": lambda shape, g: 30 * _randn(shape, g),
    "huge": lambda shape, g: 8e3 * _randn(shape, g),
    "offset": lambda shape, g: 1e4 + _randn(shape, g),
    "ties": lambda shape, g: _randn(shape, g).round(),
    "zero": lambda shape, g: torch.zeros(shape, dtype=torch.float64),
}

# Labels in [0, known)
LABELS: dict[str, Callable[..., Tensor]] = {
    "random": lambda shape, known, g: torch.randint(known, shape, generator=g),
    "one class": lambda shape, known, g: torch.full(shape, known - 1),
    "first class": lambda shape, known, g: torch.zeros(shape, dtype=torch.int64),
    "rare": lambda shape, known, g: torch.where(torch.rand(shape, generator=g) < 0.05, known - 1, 0),
    "all ignored": lambda shape, known, g: torch.randint(known, shape, generator=g),
}
