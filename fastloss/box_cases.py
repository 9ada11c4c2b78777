"""Cases of the box engine for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .box import overlap
from .cases import LAYOUTS, NamedCall
from .elementwise_cases import middle
from .engine import accumulate_dtype
from .registry import LOSSES


@dataclass(frozen=True)
class BoxCase:
    """One call of a box loss.

    Args:
        loss: name in the registry.
        shape: of the losses.
        dtype: of the boxes, as ``"float32"``.
        seed: every number of the case is drawn from it.
        layout: how the first set lies in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        layout2: how the second set does.
        values: what the pairs of boxes look like; a key of :data:`PAIRS`.
        broadcast: how the sets broadcast to `shape`; a key of :data:`SHAPES`.
        params: the loss's own parameters, as pairs of name and value.
        gradients: "input" for the first set, or "all".
    """

    loss: str = "box_iou"
    shape: tuple[int, ...] = (5,)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    layout2: str = "contiguous"
    values: str = "random"
    broadcast: str = "none"
    reduction: str = "mean"
    params: tuple[tuple[str, float], ...] = (("eps", 1e-7),)
    gradients: str = "input"

    inplace = False
    extras = ()

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"BoxCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> BoxCase:
        """The same case of another loss, with its parameters in the middle of their ranges."""
        return replace(self, loss=loss, params=tuple((name, middle(bounds)) for name, bounds in LOSSES[loss].params.items()))

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        return {"reduction": self.reduction, **dict(self.params)}

    def build(self) -> BoxCall:
        """Make the tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        first, second = PAIRS[self.values](self.shape, generator)
        shape1, shape2 = SHAPES[self.broadcast](self.shape)
        tensors, memories = {}, {}
        for name, boxes, shape, layout in (("boxes1", first, shape1, self.layout), ("boxes2", second, shape2, self.layout2)):
            if shape != self.shape:  # the first of each dimension that is broadcast, or a box where there is none
                index = tuple(slice(None) if n == m else slice(0, n) for n, m in zip(shape, self.shape[len(self.shape) - len(shape) :]))
                while boxes.dim() - 1 > len(shape):
                    boxes = boxes[0] if boxes.shape[0] else torch.zeros(boxes.shape[1:], dtype=boxes.dtype)
                boxes = boxes[index] if boxes[index].shape[:-1] == shape else torch.zeros(*shape, 4, dtype=boxes.dtype)
            memories[name], tensors[name] = LAYOUTS[layout](boxes.to(getattr(torch, self.dtype)))
        return BoxCall(self, tensors, memories)


class BoxCall(NamedCall):
    """A call of a box loss."""

    @property
    def result_dtype(self) -> torch.dtype:
        return accumulate_dtype(self.by_name["boxes1"].dtype)

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        return {"loss": self.case.shape if self.case.reduction == "none" else ()}

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        return ["boxes1"] if self.case.gradients == "input" else ["boxes1", "boxes2"]

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword."""
        return tuple(tensors.values()), {}

    def operators(self, backend: str) -> list[str]:
        """The operators that a forward and backward on a compiled backend run."""
        return [f"box_forward.{backend}", f"box_backward.{backend}"]

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """The size of the terms that each result is summed from; what the accumulation dtype's eps is relative to."""
        eps = float(dict(self.case.params)["eps"])
        a, b = (self.by_name[name].double() for name in ("boxes1", "boxes2"))
        value, slope = _sizes(self.case.loss, a, b, eps)
        count = max(value.numel(), 1)
        share = 1.0 / count if self.case.reduction == "mean" else 1.0
        back = upstream["loss"].double().abs() * share if "loss" in upstream else torch.zeros(())
        gradient = (back * slope).expand(value.shape)[..., None].expand(*value.shape, 4)
        summed = self.case.reduction != "none" or a.shape != b.shape
        return {
            "truth": 1.0 + math.sqrt(count) if summed else 1.0,
            "relative": 1.0,
            "loss": value if self.case.reduction == "none" else value.sum() * share,
            "boxes1": gradient.sum_to_size(a.shape),
            "boxes2": gradient.sum_to_size(b.shape),
        }


def _sizes(loss: str, a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """How large the terms are that a loss and that its derivatives are added up from."""
    o = overlap(a, b, eps)
    x, y = o.x, o.y
    sides = x.first.abs() + y.first.abs() + x.second.abs() + y.second.abs()
    value, slope = torch.ones_like(o.iou), _over(o.iou * sides + (o.iou > 0) * 2 * (x.common.abs() + y.common.abs()), o.union + eps)
    if loss == "generalized_box_iou":
        areas = (x.first * y.first).abs() + (x.second * y.second).abs()
        around = x.hull * y.hull + eps
        outside = 1 + _over(areas, around)
        value = value + outside
        slope = slope + _over(sides + outside * (x.hull.abs() + y.hull.abs()), around)
    elif loss != "box_iou":
        square = x.hull**2 + y.hull**2 + eps
        distance = _over(x.offset**2 + y.offset**2, square)
        value = value + distance
        slope = slope + _over(x.offset.abs() + y.offset.abs() + distance * (x.hull.abs() + y.hull.abs()), square / 2)
    if loss == "complete_box_iou":
        angle1, angle2 = (torch.atan2(w * torch.where(h < 0, -1.0, 1.0), h.abs()) for w, h in ((x.first, y.first), (x.second, y.second)))
        turn = (angle1 - angle2).abs()
        below = o.complement + 0.41 * turn**2 + eps
        # alpha is a quotient of small numbers for nearly equal boxes: turn is off by 4 roundings, and alpha by that share of it.
        alpha = _over(0.41 * turn**2, below)
        steep = alpha * 4 + _over(0.41 * turn**2, below) * 2
        value = value + steep * math.pi
        longest = (x.first.abs().maximum(y.first.abs()), x.second.abs().maximum(y.second.abs()))
        slope = slope + steep * sum(_over(torch.ones_like(turn), size) for size in longest)
    return value, slope


def _over(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, 0.0, a / b.abs().where(b != 0, 1.0))


def _sorted(raw: Tensor) -> Tensor:
    """Corners in order."""
    return torch.cat([torch.minimum(raw[..., :2], raw[..., 2:]), torch.maximum(raw[..., :2], raw[..., 2:])], -1)


def _two(make: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Both sets alike, and independent."""
    return lambda shape, g: (make(shape, g), make(shape, g))


def _uniform(shape, generator) -> Tensor:
    return torch.rand((*shape, 4), generator=generator).double()


def _beside(change: Callable[[Tensor, Tensor], Tensor], step: float = 0.0) -> Callable[..., tuple[Tensor, Tensor]]:
    """A second set made from the first one and its widths and heights; corners are multiples of `step`."""

    def make(shape, generator) -> tuple[Tensor, Tensor]:
        boxes = _sorted(10 * _uniform(shape, generator))
        if step:
            boxes = torch.cat([(boxes[..., :2] / step).floor() * step, ((boxes[..., 2:]) / step).floor() * step + step], -1)
        size = boxes[..., 2:] - boxes[..., :2]
        return boxes, change(boxes, size)

    return make


def _degenerate(shape, generator) -> tuple[Tensor, Tensor]:
    """Boxes without width, without height or without both, some of them the same."""
    first, second = (_sorted((4 * _uniform(shape, generator)).floor()) for _ in range(2))
    kind = torch.randint(8, shape, generator=generator)
    for boxes, bits in ((first, (1, 2)), (second, (2, 4))):
        for axis, bit in enumerate(bits):
            boxes[..., axis + 2] = torch.where(kind & bit > 0, boxes[..., axis], boxes[..., axis + 2])
    same = torch.rand(shape, generator=generator) < 0.3
    return first, torch.where(same[..., None], first, second)


PAIRS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "random": _two(lambda shape, g: _sorted(10 * _uniform(shape, g))),
    "unit": _two(lambda shape, g: _sorted(_uniform(shape, g))),
    "tiny": _two(lambda shape, g: _sorted(1e-3 * _uniform(shape, g))),
    "huge": _two(lambda shape, g: _sorted(6e4 * _uniform(shape, g))),
    "far": _two(lambda shape, g: _sorted(2e3 + 4 * _uniform(shape, g))),
    "lattice": _two(lambda shape, g: _sorted((4 * _uniform(shape, g)).floor())),
    "inverted": _two(lambda shape, g: 10 * _uniform(shape, g)),
    "identical": _beside(lambda boxes, size: boxes),
    "nearly": _beside(lambda boxes, size: boxes + size.repeat_interleave(2, -1) / 64),
    "touching": _beside(lambda boxes, size: boxes + size.repeat(*[1] * (size.dim() - 1), 2) * torch.tensor([1.0, 0.0, 1.0, 0.0]), 0.25),
    "nested": _beside(lambda boxes, size: torch.cat([boxes[..., :2] + size / 4, boxes[..., 2:] - size / 8], -1)),
    "disjoint": _beside(lambda boxes, size: boxes + 20),
    "degenerate": _degenerate,
}

# The shapes of both sets, without the coordinates.
SHAPES: dict[str, Callable[[tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "none": lambda shape: (shape, shape),
    "one second": lambda shape: (shape, ()),
    "one first": lambda shape: ((), shape),
    "row": lambda shape: (shape, shape[-1:]),
    "column": lambda shape: (shape, (*shape[:-1], 1) if shape else ()),
    "outer": lambda shape: ((*shape[:-1], 1), shape[-1:]) if shape and len(shape) < 3 else (shape, shape),
}
