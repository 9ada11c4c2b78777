"""Cases of the divergence engine for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cases import LAYOUTS, NamedCall
from .elementwise_cases import middle
from .engine import accumulate_dtype
from .registry import LOSSES

STUDENTS, TEACHERS = 3, 2  # views of a case with crops


@dataclass(frozen=True)
class DivergenceCase:
    """One call of a loss between two rows of logits.

    Args:
        loss: name in the registry.
        shape: of the logits; with crops, of each view.
        dtype: of the logits, as ``"float32"``.
        seed: every number of the case is drawn from it.
        layout: how the student's logits lie in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        target_layout: how the teacher's do.
        values: what both look like; a key of :data:`VALUES`.
        rows: which rows count; a key of :data:`ROWS`.
        center: whether the teacher has one, where it may.
        params: the loss's own parameters and choices, as pairs of name and value.
        gradients: "input", or "all" for the teacher as well.
    """

    loss: str = "distillation"
    shape: tuple[int, ...] = (4, 5)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    target_layout: str = "contiguous"
    values: str = "normal"
    rows: str = "all"
    center: bool = False
    reduction: str = "mean"
    params: tuple[tuple[str, object], ...] = ()
    gradients: str = "input"

    inplace = False
    extras = ()

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"DivergenceCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> DivergenceCase:
        """The same case of another loss: parameters in the middle of their ranges, the first of each choice."""
        about = LOSSES[loss]
        params = {name: middle(bounds) for name, bounds in about.params.items()}
        params |= {name: values[0] for name, values in about.choices.items()}
        return replace(self, loss=loss, params=tuple(params.items()))

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        return {"reduction": self.reduction, **dict(self.params)}

    @property
    def crops(self) -> bool:
        """Whether the first dimension is that of views."""
        return bool(dict(self.params).get("crops"))

    def build(self) -> DivergenceCall:
        """Make the tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        dtype, operands = getattr(torch, self.dtype), LOSSES[self.loss].operands
        shape = self.shape if self.loss != "ibot_patch" else (*(1,) * (3 - len(self.shape)), *self.shape)
        center = torch.randn(1, shape[-1], generator=generator).to(dtype) if "center" in operands and self.center else None
        sides = VALUES[self.values]((STUDENTS if self.crops else 1, *shape), generator)
        if "teacher_temp" in dict(self.params):
            # What a class adds whose probability underflows, and which the student has not at all, depends on how it underflows.
            sharp = (sides[1].to(dtype).double() - (0.0 if center is None else center)) / dict(self.params)["teacher_temp"]
            sides[1][sides[0].isinf().any(0) & (torch.softmax(sharp, -1) < 1e-30)] = -math.inf
        tensors: dict[str, Tensor] = {}
        memories: dict[str, Tensor] = {}
        for name, raw, layout in zip(operands, sides, (self.layout, self.target_layout)):
            raw = raw[:TEACHERS] if self.crops and name == "target" else raw if self.crops else raw[0]
            largest = torch.finfo(dtype).max
            raw = torch.where(raw.isfinite(), raw.clamp(-largest, largest), raw)
            memories[name], tensors[name] = LAYOUTS[layout](raw.to(dtype))
        if "mask" in operands:
            tensors |= ROWS[self.rows](shape[:-1], generator)
            if self.loss == "ibot_patch":
                tensors["mask"] = tensors["mask"] if "mask" in tensors else torch.rand(shape[:-1], generator=generator) < 0.6
                tensors.pop("labels", None)
        if center is not None:
            tensors["center"] = center
        return DivergenceCall(self, tensors, memories)


class DivergenceCall(NamedCall):
    """A call of a loss between two rows of logits."""

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        rows = tuple(self.by_name["input"].shape[:-1])
        if self.case.reduction != "none":
            return {"loss": ()}
        return {"loss": (self._pairs, *rows[1:]) if self.case.crops else rows}

    @property
    def _pairs(self) -> int:
        return STUDENTS * TEACHERS - min(STUDENTS, TEACHERS) if self.case.crops else 1

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        return ["input"] if self.case.gradients == "input" else ["input", "target"]

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword."""
        first = [name for name in ("input", "target", "mask") if name in tensors and (name != "mask" or self.case.loss == "ibot_patch")]
        return tuple(tensors[name] for name in first), {name: t for name, t in tensors.items() if name not in first}

    def operators(self, backend: str) -> list[str]:
        """The operators that a forward and backward on a compiled backend run."""
        return [f"divergence_{direction}.{backend}" for direction in ("forward", "backward") for _ in range(self._pairs)]

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """The size of the terms that each result is summed from; what the accumulation dtype's eps is relative to."""
        params = dict(self.case.params)
        t1, t2 = (float(params.get(name, params.get("temperature", 1.0))) for name in ("student_temp", "teacher_temp"))
        x, y = self.by_name["input"].double(), self.by_name["target"].double()
        if "center" in self.by_name:
            y = y - self.by_name["center"].double().flatten()
        (p, l), (q, m) = _softmax(x / t1), _softmax(y / t2)
        factor = t1 * t1 if params.get("squared_temperature") else 1.0
        back = upstream["loss"].double().abs() if "loss" in upstream else torch.zeros(())
        if self.case.crops:  # as if every view met the largest of all others in every pair
            q, m, back = q.amax(0), m.amax(0), back.amax() if back.numel() else torch.zeros(())
            factor = factor * self._pairs
        if self.case.reduction == "mean":
            factor = factor / max(self._counted(x) * (self._pairs / STUDENTS if self.case.crops else 1), 1)
        each = (p + q) * (l + m + 1) * factor
        grads = (back.unsqueeze(-1) if back.dim() else back) * each * (1 + (l + m).amax(-1, keepdim=True) if l.numel() else 1)
        if self.case.loss == "total_variation":
            # Where both sides are equal but for rounding, the sign of their difference is anything, and it enters the whole row.
            eps = torch.finfo(accumulate_dtype(self.by_name["input"].dtype)).eps
            grads = grads + grads / eps * ((p - q).abs() < 64 * eps * (p * (1 + l) + q * (1 + m))).any(-1, keepdim=True)
        rows = each.sum(-1)
        if self.case.reduction != "none":
            rows = rows.sum()
        elif self.case.crops:
            rows = rows.amax() if rows.numel() else torch.zeros(())
        return {"truth": 1.0 + math.sqrt(max(x.numel(), 1)), "relative": 1.0, "loss": rows, "input": grads / t1,
                "target": grads.amax(0, keepdim=True) / t2 if self.case.crops else grads / t2}

    def _counted(self, x: Tensor) -> float:
        """How many rows count."""
        counts = torch.ones(x.shape[:-1], dtype=torch.bool)
        if "labels" in self.by_name:
            counts &= self.by_name["labels"] != -100
        if "mask" in self.by_name:
            counts &= self.by_name["mask"]
        return float(counts.sum())


def _softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and the size of what their logarithms are computed from."""
    log_prob = torch.log_softmax(z, -1)
    top = z.amax(-1, keepdim=True).abs().nan_to_num(0.0, 0.0, 0.0) if z.numel() else z
    size = log_prob.abs() + z.abs() + top
    return log_prob.exp().nan_to_num(0.0), torch.where(size.isfinite(), size, 0.0)


def _normal(shape, generator) -> Tensor:
    return torch.randn(shape, generator=generator).double()


def _hidden(shape, generator, fraction: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Classes that neither side may choose, never all of a row."""
    x, y = _normal(shape, generator), _normal(shape, generator)
    gone = fraction(torch.rand(shape, generator=generator))
    gone[..., -1] = False
    return x.masked_fill(gone, -math.inf), y.masked_fill(gone, -math.inf)


def _near(shape, generator) -> tuple[Tensor, Tensor]:
    x = _normal(shape, generator)
    return x, x + 1e-3 * _normal(shape, generator)


def _peaked(shape, generator) -> tuple[Tensor, Tensor]:
    """One class far above the others, not always the same on both sides."""
    x, y = _normal(shape, generator), _normal(shape, generator)
    x[..., 0] += 60
    y[..., 0 if generator.initial_seed() % 2 else -1] += 60
    return x, y


VALUES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "normal": lambda shape, g: (_normal(shape, g), _normal(shape, g)),
    "wide": lambda shape, g: (20 * _normal(shape, g), 20 * _normal(shape, g)),
    "offset": lambda shape, g: ((16 * _normal(shape, g)).round() / 16 + 4096, (16 * _normal(shape, g)).round() / 16 - 2048),
    "equal": lambda shape, g: (_normal(shape, g),) * 2,
    "near": _near,
    "peaked": _peaked,
    "hidden": lambda shape, g: _hidden(shape, g, lambda chance: chance < 0.4),
    "late": lambda shape, g: _hidden(shape, g, lambda chance: (torch.arange(shape[-1]) < 0.8 * shape[-1]).expand(shape).clone()),
}


def _labels(shape, generator) -> Tensor:
    label = torch.randint(5, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.3, -100, label)


# The tensors that say which rows count.
ROWS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "all": lambda shape, g: {},
    "labels": lambda shape, g: {"labels": _labels(shape, g)},
    "mask": lambda shape, g: {"mask": torch.rand(shape, generator=g) < 0.6},
    "both": lambda shape, g: {"labels": _labels(shape, g), "mask": torch.rand(shape, generator=g) < 0.6},
    "no row": lambda shape, g: {"mask": torch.zeros(shape, dtype=torch.bool)},
}
