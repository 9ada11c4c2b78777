"""Cases for tests and fuzzing: a small description of one call of a loss, and the tensors made from it.

A :class:`Case` holds choices only (names, sizes, a seed); :meth:`Case.build` derives every number from the seed, so a shrinker works on
structure and a case can be printed as one line of Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .registry import LOSSES

GUARD = 7.25e2  # fills the memory around strided inputs: finite, exact in every dtype, and visible when it leaks into a result


@dataclass(frozen=True)
class Case:
    """One call of a loss.

    Args:
        loss: name in the registry.
        shape: of the logits: ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
        dtype: of the logits, as ``"float32"``.
        seed: every number of the case is drawn from it.
        layout: how the logits lie in memory; a key of :data:`LAYOUTS`.
        values: what the logits look like; a key of :data:`VALUES`.
        labels: a name of :data:`LABELS` (class indices) or :data:`SOFT_LABELS` (class probabilities).
        target_dtype: of the target; "" is int64 for indices, the logits' dtype for probabilities.
        target_layout: how the target lies in memory; a key of :data:`LAYOUTS`.
        weight: a name of :data:`WEIGHTS`.
        extras: the extra outputs asked for, of ``("lse", "entropy", "accuracy")``.
        params: the loss's own parameters, as pairs of name and value.
        gradients: "input", or "all" for the target and the weight as well.
    """

    loss: str = "cross_entropy"
    shape: tuple[int, ...] = (2, 3)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    values: str = "normal"
    labels: str = "random"
    target_dtype: str = ""
    target_layout: str = "contiguous"
    ignore_index: int = -100
    weight: str = "none"
    reduction: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float = 1.0
    extras: tuple[str, ...] = ()
    params: tuple[tuple[str, float], ...] = ()
    inplace: bool = False
    empty: str = "nan"
    gradients: str = "input"

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("shape", "seed") or getattr(self, f.name) != f.default)
        return f"Case({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> Case:
        """The same case of another loss: its parameters in the middle of their ranges, choices that it does not have at their default."""
        about = LOSSES[loss]
        taken = about.parameters
        plain = {name: default for name, default in _DEFAULTS.items() if name in _KEYWORDS and name not in taken}
        plain["extras"] = tuple(extra for extra in self.extras if f"return_{extra}" in taken)
        if weight_keyword(loss) is None:
            plain["weight"] = "none"
        if self.labels in SOFT_LABELS and not about.soft_targets:
            plain["labels"] = "random"
        params = tuple((name, (max(low, -4.0) + min(high, 4.0)) / 2) for name, (low, high) in about.params.items())
        return replace(self, **plain, loss=loss, params=params)

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors; those at their default are left out."""
        chosen = {
            name: getattr(self, name)
            for name in _KEYWORDS
            if getattr(self, name) != _DEFAULTS[name]
        }
        return chosen | dict(self.params) | {f"return_{extra}": True for extra in self.extras}

    def build(self) -> Call:
        """Make the tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        dtype = getattr(torch, self.dtype)
        soft = self.labels in SOFT_LABELS
        axis = 1 if len(self.shape) > 1 else 0
        rows = self.shape[:axis] + self.shape[axis + 1 :]
        classes = self.shape[axis]
        target = (SOFT_LABELS if soft else LABELS)[self.labels](self, rows, classes, generator)
        logits = VALUES[self.values](self, rows, classes, target, generator)
        if self.values != "poisoned":
            logits = logits.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max) if dtype == torch.float16 else logits
        memory, input = LAYOUTS[self.layout](logits.movedim(-1, axis).to(dtype))
        if soft:
            target = target.movedim(-1, axis)
        target_dtype = getattr(torch, self.target_dtype) if self.target_dtype else dtype if soft else torch.int64
        target_memory, target = LAYOUTS[self.target_layout](target.to(target_dtype))
        weight = WEIGHTS[self.weight](classes, generator)
        return Call(self, input, target, None if weight is None else weight.to(dtype), memory, target_memory)


_DEFAULTS = {f.name: f.default for f in fields(Case)}
_KEYWORDS = ("ignore_index", "reduction", "label_smoothing", "z_loss", "softcap", "logit_scale", "inplace", "empty")


def weight_keyword(loss: str) -> str | None:
    """The name under which a loss takes one factor a class."""
    taken = LOSSES[loss].parameters
    return next((name for name in ("weight", "alpha") if name in taken), None)


@dataclass
class NamedCall:
    """The tensors of a case by name, with the memory that they are views of: what the calls of most engines share."""

    case: object
    by_name: dict[str, Tensor]
    memories: dict[str, Tensor]

    @property
    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        return self.case.options()

    @property
    def result_dtype(self) -> torch.dtype:
        """The dtype of the loss."""
        return next(iter(self.by_name.values())).dtype

    def to(self, dtype: torch.dtype) -> NamedCall:
        """The same numbers in another dtype; labels as they are."""
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in self.by_name.items()}
        return replace(self, by_name=tensors)

    def memory(self) -> dict[str, Tensor]:
        """A copy of all the memory behind the inputs, as bytes."""
        return {name: t.reshape(-1).view(torch.uint8).clone() for name, t in self.memories.items() if t.numel()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return dict(self.by_name)

    def excused(self, name: str) -> Tensor | None:
        """Where a result may be NaN whatever the truth: nowhere."""
        return None


@dataclass
class Call:
    """The tensors of a case, with the memory that they are views of."""

    case: Case
    input: Tensor
    target: Tensor
    weight: Tensor | None
    input_memory: Tensor
    target_memory: Tensor

    @property
    def options(self) -> dict:
        return self.case.options()

    @property
    def result_dtype(self) -> torch.dtype:
        return torch.promote_types(self.input.dtype, self.target.dtype) if self.target.is_floating_point() else self.input.dtype

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        axis = 1 if self.input.dim() > 1 else 0
        rows = self.input.shape[:axis] + self.input.shape[axis + 1 :]
        return {"loss": rows if self.case.reduction == "none" else ()} | {e: rows for e in EXTRAS if e in self.case.extras}

    def to(self, dtype: torch.dtype) -> Call:
        """The same numbers, with every floating tensor in another dtype."""
        target = self.target.to(dtype) if self.target.is_floating_point() else self.target
        weight = None if self.weight is None else self.weight.to(dtype)
        return Call(self.case, self.input.to(dtype), target, weight, self.input_memory, self.target_memory)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"input": self.input, "target": self.target} | ({} if self.weight is None else {"weight": self.weight})

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        return [name for name, tensor in self.tensors().items()
                if name == "input" or self.case.gradients == "all" and tensor.is_floating_point()]

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword."""
        named = {weight_keyword(self.case.loss): tensors["weight"]} if "weight" in tensors else {}
        return (tensors["input"], tensors["target"]), named

    def operators(self, backend: str) -> list[str]:
        """The operators that a forward and backward on a compiled backend run."""
        formula = self.case.gradients == "all" and (self.target.is_floating_point() or self.weight is not None)
        backward = [] if formula else [f"row_backward_.{backend}" if self.case.inplace else f"row_backward.{backend}"]
        return [f"row_forward.{backend}", *backward]

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, float]:
        """The size of the terms that each result is summed from; what the accumulation dtype's eps is relative to.

        Scaling or capping the logits rounds each of them, so the error grows with them; without, ``z - max(z)`` is exact and it does not.
        "truth" is what the float64 truth itself is off by, in units of its eps: torch's logsumexp backward rounds to the size of the
        logits, and its sums over classes are not compensated.
        """
        case, loss = self.case, LOSSES[self.case.loss]
        logits = self.input.double() * case.logit_scale
        logits = logits[logits.isfinite()]
        largest = float(logits.abs().max()) if logits.numel() else 0.0
        rounding = 1.0
        if case.softcap:
            rounding += case.softcap + min(largest, case.softcap)
            largest = min(largest, case.softcap)
        elif loss.stablemax:
            largest = math.log1p(largest)
            rounding += largest
        elif case.logit_scale != 1.0 or not loss.logits:
            rounding += largest
        classes = self.input.shape[1 if self.input.dim() > 1 else 0]
        weight = 1.0 if self.weight is None else float(self.weight.double().abs().max()) if self.weight.numel() else 0.0
        steep = 1.0 + sum(abs(value) for _, value in case.params)
        rows = max(self.input.numel() // max(classes, 1), 1)
        if self.target.is_floating_point():
            mass = self.target.double().abs().sum(1 if self.input.dim() > 1 else 0)
            weight *= max(float(mass.max()) if mass.numel() else 0.0, 1.0)
            divisor = float(rows)
        else:
            counted = self.target[self.target != case.ignore_index].long()
            by_weight = self.weight is not None and weight_keyword(case.loss) == "weight"  # other factors do not change a mean's divisor
            divisor = float(self.weight.double()[counted].abs().sum() if by_weight else counted.numel()) or 1.0
        lse = largest + math.log(max(classes, 1))
        unit = weight * steep * rounding + case.z_loss * lse * (lse + 2 * rounding)
        slope = weight * steep + 2 * case.z_loss * lse
        through = {name: float(grad.double().abs().max()) if grad.numel() else 0.0 for name, grad in upstream.items()}
        share = {"none": 1.0, "sum": float(rows), "mean": rows / divisor}[case.reduction]
        each = 1.0 / divisor if case.reduction == "mean" else 1.0
        spread = 1.0 + math.log(max(classes, 1))
        back = through.get("loss", 0.0) * each * slope + through.get("lse", 0.0) + through.get("entropy", 0.0) * spread
        return {
            "truth": largest + math.sqrt(classes),
            "loss": unit * share,
            "lse": rounding + lse,
            "entropy": rounding + math.log(max(classes, 1)),
            "input": back * abs(case.logit_scale) * rounding,
            "target": through.get("loss", 0.0) * each * weight * steep * (rounding + 2 * largest),
            "weight": through.get("loss", 0.0) * share * steep * (rounding + 2 * largest),
        }

    def excused(self, name: str) -> Tensor | None:
        """Where a result may be NaN whatever the truth: a row with a logit of +inf has no distribution, so no lse, entropy or gradient."""
        if name not in ("lse", "entropy", "input"):
            return None
        hot = self.input * self.case.logit_scale == math.inf
        if not hot.any():
            return None
        axis = 1 if hot.dim() > 1 else 0
        return hot.any(axis, keepdim=True).expand_as(hot) if name == "input" else hot.any(axis)

    def memory(self) -> dict[str, Tensor]:
        """A copy of all the memory behind the inputs, as bytes."""
        whole = {"input": self.input_memory, "target": self.target_memory}
        if self.weight is not None:
            whole["weight"] = self.weight
        return {name: tensor.reshape(-1).view(torch.uint8).clone() for name, tensor in whole.items() if tensor.numel()}


EXTRAS = ("lse", "entropy", "accuracy")

# Logits. Each function gives (..., C) float64; `target` is the rows' labels, or their probabilities (..., C).


def _randn(rows, classes, generator) -> Tensor:
    return torch.randn((*rows, classes), generator=generator, dtype=torch.float32).double()


def _at_label(logits: Tensor, target: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a change to the logit of each row's label (the likeliest class of probabilities)."""
    classes = logits.shape[-1]
    if not logits.numel():
        return logits
    index = target.argmax(-1) if target.is_floating_point() else target.long().clamp(0, classes - 1)
    index = index.reshape(logits.shape[:-1]).unsqueeze(-1)
    return logits.scatter(-1, index, change(logits.gather(-1, index)))


def _mostly_minus_inf(hide: Callable[[Tensor, torch.Generator], Tensor]) -> Callable:
    """Logits of which a part is -inf, but never the label's."""

    def make(case, rows, classes, target, generator):
        logits = _randn(rows, classes, generator)
        hidden = torch.where(hide(logits, generator), -math.inf, logits)
        return _at_label(hidden, target, lambda at: torch.where(at.isinf(), 0.5, at))

    return make


def _poisoned(case, rows, classes, target, generator):
    """NaN and infinities in some rows, often ignored ones."""
    logits = _randn(rows, classes, generator)
    pick = torch.rand(logits.shape, generator=generator)
    logits = torch.where(pick < 0.02, math.nan, logits)
    logits = torch.where((pick > 0.02) & (pick < 0.04), math.inf, logits)
    if not target.is_floating_point():
        logits = torch.where((target.reshape(rows) == case.ignore_index).unsqueeze(-1), math.nan, logits)
    return logits


def _offset(amount: float) -> Callable:
    def make(case, rows, classes, target, generator):
        bound = 3e4 if case.dtype == "float16" else math.inf
        return _randn(rows, classes, generator) + max(-bound, min(bound, amount))

    return make


VALUES: dict[str, Callable[..., Tensor]] = {
    "normal": lambda case, rows, classes, target, g: 2 * _randn(rows, classes, g),
    "wide": lambda case, rows, classes, target, g: 30 * _randn(rows, classes, g),
    "huge": lambda case, rows, classes, target, g: 8e3 * _randn(rows, classes, g),
    "constant": lambda case, rows, classes, target, g: _randn((), 1, g).expand(*rows, classes).clone(),
    "ties": lambda case, rows, classes, target, g: _randn(rows, classes, g).round(),
    "zero": lambda case, rows, classes, target, g: torch.zeros(*rows, classes, dtype=torch.float64),
    "confident": lambda case, rows, classes, target, g: _at_label(
        _randn(rows, classes, g), target, lambda at: at + 24 * torch.rand(at.shape, generator=g)
    ),
    "offset 1e3": _offset(1e3),
    "offset 1e5": _offset(1e5),
    "offset 2^24": _offset(2.0**24),
    "offset -2^24": _offset(-(2.0**24)),
    "some -inf": _mostly_minus_inf(lambda logits, g: torch.rand(logits.shape, generator=g) < 0.3),
    "first -inf": _mostly_minus_inf(
        lambda logits, g: torch.arange(logits.shape[-1]) < (torch.rand((*logits.shape[:-1], 1), generator=g) * logits.shape[-1]).long()
    ),
    "last -inf": _mostly_minus_inf(
        lambda logits, g: torch.arange(logits.shape[-1]) > (torch.rand((*logits.shape[:-1], 1), generator=g) * logits.shape[-1]).long()
    ),
    "all -inf but the label": _mostly_minus_inf(lambda logits, g: torch.ones_like(logits, dtype=torch.bool)),
    "label -inf": lambda case, rows, classes, target, g: _at_label(
        _randn(rows, classes, g), target, lambda at: torch.where(torch.rand(at.shape, generator=g) < 0.5, -math.inf, at)
    ),
    "rows of -inf": lambda case, rows, classes, target, g: torch.where(
        torch.rand((*rows, 1), generator=g) < 0.4, -math.inf, _randn(rows, classes, g)
    ),
    "poisoned": _poisoned,
}

# Class indices, shaped as rows.


def _random_labels(case, rows, classes, generator) -> Tensor:
    bound = min(classes, 256) if case.target_dtype == "uint8" else classes
    return torch.randint(0, max(bound, 1), rows, generator=generator)


def _edge_labels(case, rows, classes, generator) -> Tensor:
    """The first and last class and the classes beside multiples of 16."""
    bound = min(classes, 256) if case.target_dtype == "uint8" else classes
    edges = sorted({e for k in range(0, bound + 1, 16) for e in (k - 1, k, k + 1) if 0 <= e < bound} | {0, bound - 1})
    return torch.tensor(edges)[torch.randint(0, len(edges), rows, generator=generator)]


def _some_ignored(case, rows, classes, generator) -> Tensor:
    return torch.where(torch.rand(rows, generator=generator) < 0.4, case.ignore_index, _random_labels(case, rows, classes, generator))


LABELS: dict[str, Callable[..., Tensor]] = {
    "random": _random_labels,
    "edges": _edge_labels,
    "some ignored": _some_ignored,
    "all ignored": lambda case, rows, classes, g: torch.full(rows, case.ignore_index),
}

# Class probabilities, (..., C).

SOFT_LABELS: dict[str, Callable[..., Tensor]] = {
    "soft": lambda case, rows, classes, g: torch.rand((*rows, classes), generator=g).softmax(-1),
    "soft with zeros": lambda case, rows, classes, g: torch.rand((*rows, classes), generator=g).sub(0.5).clamp_min(0),
    "one-hot": lambda case, rows, classes, g: torch.zeros(*rows, classes).scatter_(
        -1, torch.randint(0, max(classes, 1), (*rows, 1), generator=g), 1.0
    ),
    "unnormalised": lambda case, rows, classes, g: 3 * torch.rand((*rows, classes), generator=g),
    "no mass": lambda case, rows, classes, g: torch.zeros(*rows, classes),
}

WEIGHTS: dict[str, Callable[[int, torch.Generator], Tensor | None]] = {
    "none": lambda classes, g: None,
    "random": lambda classes, g: torch.rand(classes, generator=g) + 0.1,
    "some zero": lambda classes, g: (torch.rand(classes, generator=g) - 0.4).clamp_min(0),
    "all zero": lambda classes, g: torch.zeros(classes),
    "spread": lambda classes, g: torch.exp(3 * torch.randn(classes, generator=g)).clamp(max=1e4),
}

# Memory layouts. Each gives the whole memory and a view of it that holds the numbers of its argument.


def _inside(shape, index) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A view of a larger tensor whose other elements are guards."""

    def place(tensor: Tensor) -> tuple[Tensor, Tensor]:
        memory = torch.full(shape(tensor.shape), _guard(tensor.dtype), dtype=tensor.dtype)
        view = memory[index(tensor.shape)]
        view.copy_(tensor)
        return memory, view

    return place


def _guard(dtype: torch.dtype) -> float:
    return GUARD if dtype.is_floating_point else 113


def _shifted(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous, one element behind an aligned address, guards on both sides."""
    memory = torch.full((tensor.numel() + 9,), _guard(tensor.dtype), dtype=tensor.dtype)
    view = memory[1 : tensor.numel() + 1].view(tensor.shape)
    view.copy_(tensor)
    return memory, view


def _permuted(order: Callable[[int], list[int]]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Contiguous in another order of the dimensions."""

    def place(tensor: Tensor) -> tuple[Tensor, Tensor]:
        dims = order(tensor.dim())
        memory = tensor.permute(dims).clone(memory_format=torch.contiguous_format)
        return memory, memory.permute(sorted(range(len(dims)), key=dims.__getitem__))

    return place


def _expanded(axis: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """One slice along a dimension, shared by all of it (stride 0)."""

    def place(tensor: Tensor) -> tuple[Tensor, Tensor]:
        if tensor.dim() <= axis or tensor.shape[axis] == 0:
            return tensor, tensor
        memory = tensor.narrow(axis, 0, 1).clone(memory_format=torch.contiguous_format)
        return memory, memory.expand(tensor.shape)

    return place


def _contiguous(tensor: Tensor) -> tuple[Tensor, Tensor]:
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor, tensor


LAYOUTS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "contiguous": _contiguous,
    "shifted": _shifted,
    "padded rows": _inside(lambda s: (*s[:-1], s[-1] + 5) if s else s, lambda s: (..., slice(2, s[-1] + 2)) if s else ...),
    "every second": _inside(lambda s: tuple(2 * n for n in s), lambda s: tuple(slice(0, 2 * n, 2) for n in s) or ...),
    "last axis by 3": _inside(lambda s: (*s[:-1], 3 * s[-1]) if s else s, lambda s: (..., slice(1, 3 * s[-1], 3)) if s else ...),
    "transposed": _permuted(lambda dims: list(reversed(range(dims)))),
    "channels last": _permuted(lambda dims: [0, *range(2, dims), 1] if dims > 1 else list(range(dims))),
    "padded classes": _inside(
        lambda s: (s[0], s[1] + 3, *s[2:]) if len(s) > 1 else s, lambda s: (slice(None), slice(1, s[1] + 1)) if len(s) > 1 else ...
    ),
    "expanded rows": _expanded(0),
    "expanded classes": _expanded(1),
    "expanded inner": _expanded(2),
}

