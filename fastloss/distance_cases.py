"""Cases of the losses over distances for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cases import LAYOUTS
from .registry import LOSSES

EXTRAS = ()


@dataclass(frozen=True)
class DistanceCase:
    """One call of a loss over distances.

    Args:
        loss: name in the registry.
        shape: of the input: (N, C, d1, ...).
        dtype: of the input, as ``"float32"``.
        seed: every number of the case is drawn from it.
        layout: how the input lies in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        masks: what the target looks like; a key of :data:`MASKS`.
        target_dtype: of the target.
        target_layout: how it lies in memory.
        flags: the switches that are on.
        params: the loss's own parameters, as pairs of name and value.
    """

    loss: str = "boundary"
    shape: tuple[int, ...] = (2, 3, 4)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    masks: str = "random"
    target_dtype: str = "int64"
    target_layout: str = "contiguous"
    reduction: str = "mean"
    flags: tuple[str, ...] = ()
    params: tuple[tuple[str, float], ...] = ()

    inplace = False
    extras = ()

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"DistanceCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> DistanceCase:
        """The same case of another loss: its parameters in the middle of their ranges, switches that it does not have off."""
        params = tuple((name, (low + high) / 2) for name, (low, high) in LOSSES[loss].params.items())
        shape = self.shape + (2,) * (3 - len(self.shape))
        return replace(self, loss=loss, shape=shape, params=params, flags=self.flags if loss == "hausdorff_dt" else ())

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        return {"reduction": self.reduction, **dict.fromkeys(self.flags, True), **dict(self.params)}

    def build(self) -> DistanceCall:
        """Make the tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        mask = MASKS[self.masks](self.shape, generator)
        chance = torch.rand(self.shape, generator=generator)
        memory, input = LAYOUTS[self.layout](chance.to(getattr(torch, self.dtype)))
        target_memory, target = LAYOUTS[self.target_layout](mask.to(getattr(torch, self.target_dtype)))
        return DistanceCall(self, input, target, memory, target_memory)


@dataclass
class DistanceCall:
    """The tensors of a case, with the memory that they are views of."""

    case: DistanceCase
    input: Tensor
    target: Tensor
    input_memory: Tensor
    target_memory: Tensor

    @property
    def options(self) -> dict:
        return self.case.options()

    @property
    def result_dtype(self) -> torch.dtype:
        return self.input.dtype

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        if self.case.reduction != "none":
            return {"loss": ()}
        shape = tuple(self.input.shape)
        if self.case.loss == "boundary":
            return {"loss": shape}
        classes = shape[1] - (shape[1] > 1 and "include_background" not in self.case.flags)
        return {"loss": (1 if "batch" in self.case.flags else shape[0], classes, *(1 for _ in shape[2:]))}

    def to(self, dtype: torch.dtype) -> DistanceCall:
        """The same numbers in another dtype."""
        return replace(self, input=self.input.to(dtype))

    def memory(self) -> dict[str, Tensor]:
        """A copy of all the memory behind the inputs, as bytes."""
        whole = {"input": self.input_memory, "target": self.target_memory}
        return {name: tensor.reshape(-1).view(torch.uint8).clone() for name, tensor in whole.items() if tensor.numel()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"input": self.input, "target": self.target}

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        return ["input"]

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword."""
        return (tensors["input"], tensors["target"]), {}

    def operators(self, backend: str) -> list[str]:
        """The operators that a forward and backward on a compiled backend run."""
        return ["distance_transform.cpu"] * (1 if self.case.loss == "boundary" else 2)

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, float]:
        """The size of the terms that each result is summed from: of the largest distance that there can be, and its power."""
        far = float(sum(n * n for n in self.input.shape[2:])) ** 0.5
        power = dict(self.case.params).get("alpha", 1.0)
        unit = (1.0 + far) ** power * 2
        many = self.input.shape[:2].numel() if self.case.loss == "hausdorff_dt" else self.input.numel()
        share = max(many, 1) if self.case.reduction == "sum" else 1.0
        back = float(upstream["loss"].double().abs().max()) if "loss" in upstream and upstream["loss"].numel() else 0.0
        return {"truth": 1.0 + max(many, 1) ** 0.5, "loss": unit * share, "input": back * unit, "relative": 1.0}

    def excused(self, name: str) -> Tensor | None:
        """Where a result may be NaN whatever the truth: nowhere."""
        return None


MASKS: dict[str, Callable[..., Tensor]] = {
    "random": lambda shape, g: torch.rand(shape, generator=g) < 0.4,
    "rare": lambda shape, g: torch.rand(shape, generator=g) < 0.03,
    "halves": lambda shape, g: torch.arange(shape[-1]).expand(shape) < shape[-1] // 2,
    "empty": lambda shape, g: torch.zeros(shape, dtype=torch.bool),
    "full": lambda shape, g: torch.ones(shape, dtype=torch.bool),
}
