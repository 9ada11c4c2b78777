"""Cases of the losses of detectors for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cases import LAYOUTS
from .engine import accumulate_dtype
from .functional.detection import anchor_points
from .plain_cases import PlainCall

EXTRAS = ()
CLASSES, BINS = 3, 4


@dataclass(frozen=True)
class DetectionCase:
    """One call of a detector's loss.

    Args:
        loss: name in the registry.
        shape: images, and objects in each.
        dtype: of the predictions, as ``"float32"``; targets are float32, but float64 beside float64.
        seed: every number of the case is drawn from it.
        layout: how the predictions lie in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        target_layout: how the target lies in memory.
        values: what the predictions look like; a key of :data:`VALUES`.
        objects: what the objects look like; a key of :data:`OBJECTS`.
        params: arguments of the loss, as pairs of name and value.
    """

    loss: str = "yolov12_detection"
    shape: tuple[int, ...] = (2, 3)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    target_layout: str = "contiguous"
    values: str = "normal"
    objects: str = "random"
    params: tuple[tuple[str, object], ...] = ()

    reduction = "mean"
    inplace = False
    extras = ()

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"DetectionCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> DetectionCase:
        """The same case of another loss; images of 32 x 64 unless the case says otherwise."""
        params = {"num_classes": CLASSES, "input_shape": (32, 64), "reg_max": BINS} | dict(self.params)
        return replace(self, loss=loss, shape=(*self.shape, 2)[:2], params=tuple(params.items()))

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        return dict(self.params)

    def build(self) -> DetectionCall:
        """Make the tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        options, (images, count) = self.options(), self.shape[:2]
        points, _ = anchor_points(options["input_shape"])
        size = images, len(points), 4 * options["reg_max"] + options["num_classes"]
        predicted = VALUES[self.values](torch.randn(size, generator=generator))
        label = torch.randint(options["num_classes"], (images, count, 1), generator=generator)
        objects = torch.cat([label, OBJECTS[self.objects](torch.rand((images, count, 4), generator=generator))], -1)
        objects = torch.where(torch.rand((images, count, 1), generator=generator) < 0.25, 0.0, objects)  # padding
        dtype = getattr(torch, self.dtype)
        tensors: dict[str, Tensor] = {}
        memories: dict[str, Tensor] = {}
        memories["input"], tensors["input"] = LAYOUTS[self.layout](predicted.to(dtype))
        memories["target"], tensors["target"] = LAYOUTS[self.target_layout](objects.to(dtype if dtype == torch.float64 else torch.float32))
        return DetectionCall(self, tensors, memories)


class DetectionCall(PlainCall):
    """A call of a detector's loss."""

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        return ["input"]

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """As for other plain losses; without a bound where two anchors are so alike that roundings decide which of them an object gets."""
        result = super().scales(upstream)
        return result if self._decided() else {**result, "loss": 1e30, "input": 1e30}

    def _decided(self) -> bool:
        """Whether the loss moves no further than its slope says where every prediction moves by a few roundings."""
        wide = self.to(torch.float64)
        x = wide.by_name["input"].detach().requires_grad_()
        value = self._run(replace(wide, by_name=wide.by_name | {"input": x}))
        slope = torch.autograd.grad(value, x)[0] if value.requires_grad else torch.zeros_like(x)
        eps = torch.finfo(accumulate_dtype(self.by_name["input"].dtype)).eps
        generator = torch.Generator().manual_seed(self.case.seed)
        for _ in range(3):
            step = 32 * eps * (1 + x.detach().abs()) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            moved = self._run(replace(wide, by_name=wide.by_name | {"input": x.detach() + step}))
            if (moved - value).abs() > 8 * (slope * step).abs().sum() + 64 * eps * (1 + value.abs()):
                return False
        return True


def _corners(raw: Tensor) -> Tensor:
    return torch.cat([torch.minimum(raw[..., :2], raw[..., 2:]), torch.maximum(raw[..., :2], raw[..., 2:])], -1)


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda raw: 2 * raw,
    "wide": lambda raw: 20 * raw,
    "tiny": lambda raw: 0.1 * raw,
}

OBJECTS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": _corners,
    "small": lambda raw: torch.cat([0.9 * raw[..., :2], 0.9 * raw[..., :2] + 0.1 * raw[..., 2:]], -1),
    "without size": lambda raw: torch.cat([raw[..., :2], raw[..., :2] + (raw[..., 2:] < 0.5) * 0.3], -1),
    "none": torch.zeros_like,
}
