"""Cases of the element-wise engine for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cases import LAYOUTS, NamedCall
from .registry import LOSSES

EXTRAS = ()


@dataclass(frozen=True)
class ElementwiseCase:
    """One call of an element-wise loss.

    Args:
        loss: name in the registry.
        shape: of the input.
        dtype: of all tensors, as ``"float32"``.
        seed: every number of the case is drawn from it.
        layout: how the input lies in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        values: what the numbers look like; a key of :data:`VALUES`.
        target_shape: how the second operand broadcasts to the first; a key of :data:`SHAPES`.
        target_layout: how it lies in memory.
        third_shape: the same of the third operand; "" leaves an optional one out.
        weight: a key of :data:`WEIGHTS`.
        params: the loss's own parameters, as pairs of name and value.
        gradients: "input", "operands" for all of them, or "all" for the weight as well.
    """

    loss: str = "mse"
    shape: tuple[int, ...] = (2, 3)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    values: str = "normal"
    target_shape: str = "same"
    target_layout: str = "contiguous"
    third_shape: str = "same"
    weight: str = "none"
    reduction: str = "mean"
    params: tuple[tuple[str, float], ...] = ()
    gradients: str = "input"

    inplace = False
    extras = ()

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"ElementwiseCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> ElementwiseCase:
        """The same case of another loss: its parameters in the middle of their ranges, choices that it does not have at their default."""
        about = LOSSES[loss]
        plain: dict[str, object] = {}
        if self.target_shape not in target_shapes(loss):
            plain["target_shape"] = "same"
        if self.third_shape not in third_shapes(loss):
            plain["third_shape"] = third_shapes(loss)[0]
        if "weight" not in about.parameters:
            plain["weight"] = "none"
        params = tuple((name, middle(bounds)) for name, bounds in about.params.items())
        return replace(self, **plain, loss=loss, params=params)

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        return {"reduction": self.reduction, **dict(self.params)}

    def build(self) -> ElementwiseCall:
        """Make the tensors."""
        about, dtype = LOSSES[self.loss], getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(self.seed)
        shapes = [self.shape, SHAPES[self.target_shape](self.shape), *([SHAPES[self.third_shape](self.shape)] if self.third_shape else [])]
        tensors: dict[str, Tensor] = {}
        memories: dict[str, Tensor] = {}
        layouts = [self.layout, self.target_layout, "contiguous"]
        first = None
        for (name, domain), shape, layout in zip(about.operands.items(), shapes, layouts):
            raw = VALUES[self.values](shape, generator)
            if first is not None and self.values == "equal" and raw.shape == first.shape:
                raw = torch.where(torch.rand(shape, generator=generator) < 0.5, first, raw)
            first = raw if first is None else first
            memories[name], tensors[name] = LAYOUTS[layout](_normal(DOMAINS[domain](raw), dtype))
        weight = WEIGHTS[self.weight](self.shape, generator)
        if weight is not None:
            tensors["weight"] = memories["weight"] = weight.to(dtype)
        return ElementwiseCall(self, tensors, memories)


def _normal(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In a dtype; of bfloat16 no subnormal numbers, which Triton's interpreter reads wrong."""
    if dtype == torch.bfloat16 and values.is_floating_point():
        least = torch.finfo(dtype).smallest_normal
        values = torch.where((values != 0) & (values.abs() < least), torch.copysign(torch.full_like(values, least), values), values)
    return values.to(dtype)


def middle(bounds: tuple[float, float]) -> float:
    """A parameter in the middle of its range; of a switch, on."""
    return bounds[1] if isinstance(bounds[0], bool) else (bounds[0] + bounds[1]) / 2


def target_shapes(loss: str) -> tuple[str, ...]:
    """How the second operand of a loss may broadcast."""
    if LOSSES[loss].torch in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
        return ("same",)
    return ("same", "column") if loss in ("margin_ranking", "capsule_margin") else tuple(SHAPES)


def third_shapes(loss: str) -> tuple[str, ...]:
    """How the third operand of a loss may broadcast; "" where it has none or may be left out."""
    about = LOSSES[loss]
    if len(about.operands) < 3:
        return ("",)
    return ("", "same", "row", "column") if about.optional else ("same", "column")


class ElementwiseCall(NamedCall):
    """A call of an element-wise loss."""

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        shape = torch.broadcast_shapes(*(t.shape for t in self.by_name.values()))
        each = shape[:-1] if LOSSES[self.case.loss].rows else shape
        return {"loss": tuple(each) if self.case.reduction == "none" else ()}

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        names = list(self.by_name)
        if self.case.gradients == "input":
            return names[:1]
        return [name for name in names if name != "weight" or self.case.gradients == "all"]

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword."""
        parameters = LOSSES[self.case.loss].parameters
        positional = tuple(t for name, t in tensors.items() if parameters[name].default is inspect.Parameter.empty)
        return positional, {name: t for name, t in tensors.items() if parameters[name].default is not inspect.Parameter.empty}

    def operators(self, backend: str) -> list[str]:
        """The operators that a forward and backward on a compiled backend run."""
        formula = "weight" in self.differentiable()
        return [f"elementwise_forward.{backend}", *([] if formula else [f"elementwise_backward.{backend}"])]

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """The size of the terms that each result is summed from; what the accumulation dtype's eps is relative to.

        Functions of single numbers are compared element by element, each with its own scale and a few roundings of the result itself
        ("relative"); what an operand was expanded from gets the sum over the elements.
        """
        about = LOSSES[self.case.loss]
        wide = [t.double() for t in self.by_name.values()]
        steep = 1.0 + sum(abs(float(value)) for _, value in self.case.params)
        operands = wide[: len(wide) - ("weight" in self.by_name)]
        largest = 1.0 + sum(t.abs() for t in operands)
        with torch.no_grad():
            values = about.point(*operands, *(value for _, value in self.case.params)).abs()
        weight = self.by_name["weight"].double().abs() if "weight" in self.by_name else 1.0
        unit = (values + largest * steep) * weight
        count = max(unit.numel(), 1)
        columns = max(unit.shape[-1], 1) if about.rows else 1
        share = {"none": 1.0, "sum": 1.0, "mean": columns / count}[self.case.reduction]
        if about.rows == "mean":
            share /= columns
        if self.case.reduction == "mean" and "weight" in self.by_name and self.case.loss in ("mse", "l1"):
            share = 1.0 / (float(self.by_name["weight"].double().sum()) or 1.0)
        back = upstream["loss"].double().abs() * share if "loss" in upstream else 0.0
        if about.rows and self.case.reduction == "none" and "loss" in upstream:
            back = back.unsqueeze(-1)
        # An operand's gradient may be steep where the loss is small: 1 / |t| of a percentage error.
        secant = (values / (operands[0] - operands[1]).abs()).nan_to_num(0.0, 0.0, 0.0)
        slope = back * weight * torch.maximum(torch.maximum(steep * largest, secant), values)
        slope = slope.expand_as(unit) if unit.numel() else unit
        # torch's sums in float64 are not compensated: equal terms round the same way.
        summed = about.rows or self.case.reduction != "none" or any(t.shape != unit.shape for t in wide)
        total = unit.sum() if self.case.reduction != "none" else unit.sum(-1) if about.rows else unit
        result = {"truth": 1.0 + math.sqrt(count) if summed else 1.0, "relative": 1.0, "loss": total * share}
        for name, tensor in self.by_name.items():
            per = slope if name != "weight" else back * (values + unit)
            result[name] = per.sum_to_size(tensor.shape) if unit.numel() else torch.zeros(tensor.shape)
        return result


def _randn(shape, generator) -> Tensor:
    return torch.randn(shape, generator=generator).double()


VALUES: dict[str, Callable[..., Tensor]] = {
    "normal": lambda shape, g: 2 * _randn(shape, g),
    "wide": lambda shape, g: 30 * _randn(shape, g),
    "huge": lambda shape, g: 8e3 * _randn(shape, g),
    "tiny": lambda shape, g: 1e-3 * _randn(shape, g),
    "ties": lambda shape, g: _randn(shape, g).round(),
    "equal": lambda shape, g: 2 * _randn(shape, g),
    "zero": lambda shape, g: torch.zeros(shape, dtype=torch.float64),
}

# From any real number to the numbers that an operand takes.
DOMAINS: dict[str, Callable[[Tensor], Tensor]] = {
    "real": lambda raw: raw,
    "probability": torch.sigmoid,
    "log_prob": lambda raw: -raw.abs(),
    "positive": torch.abs,
    "rate": lambda raw: raw.abs().clamp(max=80.0),  # or its logarithm: exp(80) is near the end of float32
    "count": lambda raw: raw.abs().round().clamp(max=2000),
    "sign": lambda raw: torch.where(raw >= 0, 1.0, -1.0).double(),
    # Labels, and a third of them soft.
    "binary": lambda raw: torch.where((10 * raw).round() % 3 == 0, torch.sigmoid(raw), (raw > 0).double()),
}

SHAPES: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "same": lambda shape: shape,
    "row": lambda shape: shape[-1:],
    "column": lambda shape: (*shape[:-1], 1) if shape else shape,
    "scalar": lambda shape: (),
}

WEIGHTS: dict[str, Callable[..., Tensor | None]] = {
    "none": lambda shape, g: None,
    "random": lambda shape, g: torch.rand(shape, generator=g) + 0.1,
    "some zero": lambda shape, g: (torch.rand(shape, generator=g) - 0.4).clamp_min(0),
    "all zero": lambda shape, g: torch.zeros(shape),
}
