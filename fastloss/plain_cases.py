"""Cases of losses in plain torch, for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cases import LAYOUTS, NamedCall
from .elementwise_cases import DOMAINS, middle
from .elementwise_cases import VALUES as ALL_VALUES
from .engine import accumulate_dtype
from .registry import LOSSES

VALUES = {name: ALL_VALUES[name] for name in ("normal", "wide", "tiny", "equal")}
DETACHED = "detached"  # the kind of an operand that no gradient flows to
SIZES = (1, 2, 3, 4, 5, 8, 17, 33, 64, 129)


@dataclass(frozen=True)
class PlainCase:
    """One call of a loss in plain torch.

    Args:
        loss: name in the registry.
        shape: of the first operand; the others follow from it.
        dtype: of all floating tensors, as ``"float32"``.
        seed: every number of the case is drawn from it.
        layout: how floating tensors lie in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        values: what the numbers look like; a key of :data:`VALUES`.
        params: the loss's own parameters and choices, as pairs of name and value.
        gradients: "input", or "operands" for all floating tensors.
    """

    loss: str = "multi_margin"
    shape: tuple[int, ...] = (4, 3)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    values: str = "normal"
    reduction: str = "mean"
    params: tuple[tuple[str, object], ...] = ()
    gradients: str = "input"

    inplace = False
    extras = ()

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"PlainCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> PlainCase:
        """The same case of another loss: parameters in the middle of their ranges, the first of each choice."""
        about = LOSSES[loss]
        least, most = about.dims
        shape = self.shape[:most] + (3,) * (least - len(self.shape))
        params = {name: middle(bounds) for name, bounds in about.params.items()}
        params |= {name: values[0] for name, values in about.choices.items()}
        return replace(self, loss=loss, shape=shape, params=tuple(params.items()))

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        taken = LOSSES[self.loss].parameters
        return ({"reduction": self.reduction} if "reduction" in taken else {}) | dict(self.params)

    def build(self) -> PlainCall:
        """Make the tensors."""
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(self.seed)
        tensors: dict[str, Tensor] = {}
        memories: dict[str, Tensor] = {}
        first, operands = None, LOSSES[self.loss].operands
        size = (max(self.shape[0], 2), *self.shape[1:]) if "batch" in operands.values() else self.shape
        for name, kind in operands.items():
            if kind in INDICES:
                tensors[name] = memories[name] = INDICES[kind](size, generator)
                continue
            shape, domain = OPERANDS.get(kind, (lambda shape: shape, kind))
            raw = VALUES[self.values](shape(size), generator)
            if first is not None and self.values == "equal" and raw.shape == first.shape:
                raw = torch.where(torch.rand(raw.shape, generator=generator) < 0.5, first, raw)
            first = raw if first is None else first
            memories[name], tensors[name] = LAYOUTS[self.layout](DOMAINS[domain](raw).to(dtype))
        return PlainCall(self, tensors, memories)


class PlainCall(NamedCall):
    """A call of a plain loss."""

    def _run(self, call: PlainCall) -> Tensor:
        return LOSSES[self.case.loss].function(*call.by_name.values(), **call.options, backend="eager")

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        with torch.no_grad():
            return {"loss": tuple(self._run(self).shape)}

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        kinds = LOSSES[self.case.loss].operands
        names = [name for name, t in self.by_name.items() if t.is_floating_point() and kinds[name] != DETACHED]
        return names[:1] if self.case.gradients == "input" else names

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword."""
        return tuple(tensors.values()), {}

    def operators(self, backend: str) -> None:
        """The operators that run are those of the losses that this one is made of."""

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """The size of each result; statistics of all elements enter each gradient, so its size is that of the largest one, or of what a
        single element gets of the upstream gradient, where terms of that size cancel (a softmax over one class).
        """
        wide = self.to(torch.float64)
        leaves = {name: wide.by_name[name].detach().requires_grad_() for name in self.differentiable()}
        value = self._run(replace(wide, by_name=wide.by_name | leaves))
        result = {"truth": 64.0, "relative": 1.0, "loss": float(value.detach().abs().max()) if value.numel() else 0.0}
        found = torch.autograd.grad(value, list(leaves.values()), upstream["loss"].double().reshape(value.shape), allow_unused=True)
        for name, grad in zip(leaves, found):
            share = float(upstream["loss"].double().abs().amax()) / leaves[name].numel() if value.numel() and leaves[name].numel() else 0.0
            result[name] = (float(grad.abs().max()) if grad is not None and grad.numel() else 0.0) + share
        if self.case.loss in TERMS and value.numel():
            terms = TERMS[self.case.loss](wide.by_name, **dict(self.case.params))
            largest = max(float(t.detach().abs().max()) for t in leaves.values()) * float(upstream["loss"].abs().max())
            rows = next(iter(wide.by_name.values())).shape[:-1].numel() if self.case.reduction == "sum" else 1
            for name in ("loss", *(leaves if self.case.loss not in HINGES else ())):
                result[name] += terms * (largest if name != "loss" else rows)
            if dict(self.case.params).get("kind") == "tv" and _alike(wide.by_name, dict(self.case.params)["temperature"], self.case.dtype):
                for name in leaves:  # the sign of a difference that is a rounding is anything, and it enters a whole row
                    result[name] /= torch.finfo(accumulate_dtype(getattr(torch, self.case.dtype))).eps
        return result


def _label_list(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Some of the classes in random order, then -1, then whatever."""
    order = torch.rand(shape, generator=generator).argsort(-1)
    ends = (torch.rand(shape[:-1], generator=generator) * (shape[-1] + 1)).long().unsqueeze(-1)
    return torch.where(torch.arange(shape[-1]) == ends, -1, order)


def _logits(tensors: Mapping[str, Tensor], temperature: float, **choices) -> float:
    """How large log-probabilities of either side are, softened and scaled back."""
    student = tensors["input"].detach().abs() @ tensors["linear_weight"].abs().t()
    return max(temperature, 1.0) ** 2 * (float(student.max() + tensors["target"].abs().max()) / temperature + 4.0)


def _alike(tensors: Mapping[str, Tensor], temperature: float, dtype: str) -> bool:
    """Whether some class has, but for roundings, the same probability on both sides of a distillation."""
    x, y = tensors["input"].detach() @ tensors["linear_weight"].detach().t(), tensors["target"].detach()
    p, q = (torch.softmax(z / temperature, -1) for z in (x, y))
    size = 1 + (tensors["input"].detach().abs() @ tensors["linear_weight"].detach().abs().t() + y.abs()) / temperature
    eps = torch.finfo(accumulate_dtype(getattr(torch, dtype))).eps
    return bool(((p - q).abs() < 64 * eps * (p + q) * size).any())


def _correlations(tensors: Mapping[str, Tensor], lambd: float, **choices) -> float:
    """How large the slope of a standardised feature is; of a batch of two rows nearly nothing of it is left for the feature itself."""
    return 2.0 * max(1.0, lambd * tensors["z1"].shape[-1])


def _hinge(tensors: Mapping[str, Tensor], **choices) -> float:
    """How large the margin and the two scores are, of which a hinge may be what little is left."""
    return 1.0 + 2.0 * float(tensors["input"].detach().abs().amax())


# Losses whose gradients are counts, which nothing cancels in.
HINGES = ("multi_margin", "multilabel_margin")

# Losses that are differences of larger terms: how large those are.
TERMS: dict[str, Callable[..., float]] = {
    **dict.fromkeys(HINGES, _hinge),
    "linear_distillation": _logits, "barlow_twins": _correlations,
    # Entropies, up to log C, less cross-entropies or entropies.
    **{name: lambda tensors, **choices: 8.0 for name in ("decoupled_information", "focal_uncertainty", "goodhart_aware")},
}

# Tensors of integers, which are not differentiated.
INDICES: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "class": lambda shape, g: torch.randint(0, shape[-1], shape[:-1], generator=g),
    "labels": _label_list,
}

# Operands that have another shape than the first: what it is, and the numbers they take (fastloss.elementwise_cases.DOMAINS). Any other
# kind is a key of DOMAINS, of the first one's shape.
OPERANDS: dict[str, tuple[Callable[[tuple[int, ...]], tuple[int, ...]], str]] = {
    "batch": (lambda shape: shape, "real"),  # of at least two rows
    "latent": (lambda shape: (shape[0], 5), "real"),
    "log variance": (lambda shape: (shape[0], 5), "rate"),
    "even": (lambda shape: (*shape[:-1], 2 * shape[-1]), "real"),
    "several": (lambda shape: (shape[0], 3, shape[1]), "real"),
    "head": (lambda shape: (7, shape[-1]), "real"),  # of a linear layer, and its results
    "head scores": (lambda shape: (*shape[:-1], 7), "real"),
    "row scores": (lambda shape: (shape[0], 3), "real"),
    "row distance": (lambda shape: shape[:-1], "positive"),
    "row score": (lambda shape: shape[:-1], "real"),
    "row label": (lambda shape: shape[:-1], "binary"),
    "row sign": (lambda shape: shape[:-1], "sign"),
    "sample score": (lambda shape: shape[:1], "real"),
    "sample label": (lambda shape: shape[:1], "binary"),
    DETACHED: (lambda shape: shape, "real"),
}
