"""Cases of the pair engine for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cases import LAYOUTS
from .elementwise_cases import middle
from .pair_sum import FUSED
from .plain_cases import PlainCall
from .registry import LOSSES

SIZES = (1, 2, 3, 4, 5, 8, 17, 33)
FEATURES = (1, 2, 3, 8, 16, 17, 40)


@dataclass(frozen=True)
class PairCase:
    """One call of a loss of the pair engine.

    Args:
        loss: name in the registry.
        shape: (rows, features), or (rows, features, rows of the other set) where that has a size of its own.
        dtype: of all floating tensors, as ``"float32"``.
        seed: every number of the case is drawn from it.
        layout: how sets lie in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        values: what the numbers look like; a key of :data:`VALUES`.
        optional: whether the operands are there that may be left out.
        params: the loss's own parameters and choices, as pairs of name and value.
        extras: the extra outputs asked for, of ``("lse",)``.
        gradients: "input" for the first set, or "operands" for all floating tensors.
        budget: bytes, as of :func:`fastloss.use_memory_budget`.
        precision: of products of bfloat16 rows, as ``torch.backends.mkldnn.matmul.fp32_precision``: "ieee", or "bf16" where gradients of
            scores are rounded.
    """

    loss: str = "info_nce"
    shape: tuple[int, ...] = (5, 8, 4)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    values: str = "normal"
    optional: bool = True
    reduction: str = "mean"
    params: tuple[tuple[str, object], ...] = ()
    extras: tuple[str, ...] = ()
    gradients: str = "operands"
    budget: int | None = None
    precision: str = "ieee"

    inplace = False

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"PairCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> PairCase:
        """The same case of another loss: parameters in the middle of their ranges, the first of each choice."""
        about = LOSSES[loss]
        params = {name: middle(bounds) for name, bounds in about.params.items()}
        params |= {name: values[0] for name, values in about.choices.items()}
        return replace(self, loss=loss, params=tuple(params.items()))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows, features, and rows of the other set."""
        return (*self.shape, self.shape[0])[:3]

    def options(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        taken = LOSSES[self.loss].parameters
        chosen = ({"reduction": self.reduction} if "reduction" in taken else {}) | dict(self.params)
        if not {"query_to_doc", "doc_to_query"}.issuperset(chosen.get("directions", ())):
            chosen["partition_mode"] = "joint"
        return chosen | {f"return_{extra}": True for extra in self.extras}

    def build(self) -> PairCall:
        """Make the tensors."""
        generator = torch.Generator().manual_seed(self.seed)
        about, dtype, chosen = LOSSES[self.loss], getattr(torch, self.dtype), dict(self.params)
        tensors: dict[str, Tensor] = {}
        memories: dict[str, Tensor] = {}
        for name, kind in about.operands.items():
            if about.optional and not self.optional and _may_be_left_out(about.function, name):
                continue
            kind = chosen.get("negative_mode", kind) if kind == "negatives" else kind
            if kind in NUMBERS:
                tensors[name] = memories[name] = NUMBERS[kind](self, generator)
                if tensors[name].is_floating_point():
                    tensors[name] = memories[name] = tensors[name].to(dtype)
                continue
            shape = list(SETS[kind](*self.sizes))
            shape[-1] = max(shape[-1], LEAST_FEATURES.get(self.loss, 1))
            rows = VALUES[self.values](torch.Size(shape), generator, tensors)
            if kind in UNIT:
                rows = UNIT[kind](rows)
            repeats = self.loss in LEAST_FEATURES and self.layout.startswith("expanded")  # the same row or feature again and again
            memories[name], tensors[name] = LAYOUTS["contiguous" if repeats else self.layout](rows.to(dtype))
        return PairCall(self, tensors, memories)


def _may_be_left_out(function: Callable, name: str) -> bool:
    return inspect.signature(function).parameters[name].default is not inspect.Parameter.empty


class PairCall(PlainCall):
    """A call of a loss of the pair engine."""

    def _run(self, call: PairCall) -> Tensor:
        positional, named = call.arguments(call.tensors())
        found = LOSSES[self.case.loss].function(*positional, **named, **call.options, backend="eager")
        return found if isinstance(found, Tensor) else found[0]

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        rows = tuple(next(iter(self.by_name.values())).shape[:-1])
        return super().output_shapes() | {extra: rows for extra in self.case.extras}

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword where something may be left out."""
        parameters = LOSSES[self.case.loss].parameters
        named = {name: t for name, t in tensors.items() if parameters[name].default is not inspect.Parameter.empty}
        return tuple(t for name, t in tensors.items() if name not in named), named

    def operators(self, backend: str) -> list[str] | None:
        """The operators that a forward and backward on a compiled backend run; None where another engine does."""
        if backend in FUSED and self.case.loss in SUMS and SUMS[self.case.loss](self):
            return [f"pair_sum.{backend}"]
        forward, backward = CALLS.get(self.case.loss, lambda call: (1, 1))(self)
        if forward is None:
            return None
        return [f"pair_forward.{backend}"] * forward + [f"pair_backward.{backend}"] * backward

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """The size of the terms that each result is summed from.

        A score of size S is off by S roundings, and so is the probability that follows from it, whose size is 1; the gradient of a row is
        the sum of such probabilities times rows of the other set, divided by the row's norm where the loss normalises it.
        """
        largest = self._largest_score()
        found = super().scales(upstream)
        loss = upstream.get("loss")
        whole = {"sum": 1.0, "none": 1.0}.get(self.case.options().get("reduction"), 1.0 / self._divisor())
        back = (float(loss.double().abs().max()) if loss is not None and loss.numel() else 0.0) * whole
        back += sum(float(upstream[extra].double().abs().max()) for extra in self.case.extras if extra in upstream)
        steep = self._steepness()
        for name, t in self.by_name.items():
            if name in found and t.dim() > 1:
                norm = t.double().norm(dim=-1, keepdim=True)
                width = 1 / norm.clamp_min(1e-12) if self.case.loss in NORMALISING else torch.ones_like(norm)
                found[name] = found[name] + back * steep * width * (1 + largest)
            elif name in found:
                found[name] = (found[name] + back * steep * max(self.case.sizes[0], self.case.sizes[2]) * (1 + largest)) * (1 + largest)
        count = max(self.case.shape[0], 1) if self.case.options().get("reduction") == "sum" else 1
        found["loss"] = found["loss"] + (1 + largest) * count * max(self.case.sizes[0] if self.case.loss == "siglip" else 1, 1)
        found["truth"] = 64.0 + largest
        found["relative"] = 1.0 + largest
        return found | {extra: 1 + largest for extra in self.case.extras}

    def _divisor(self) -> float:
        """What a mean divides by."""
        if self.case.loss != "linear_cross_entropy":
            return max(self.case.shape[0], 1)
        counted = self.by_name["target"][self.by_name["target"] >= 0]
        weight = self.by_name.get("weight")
        return float(counted.numel() if weight is None else weight.double()[counted].sum()) or 1.0

    def _steepness(self) -> float:
        """The factor from a product of two rows to a score."""
        chosen = dict(self.case.params)
        scale = self.by_name.get("logit_scale")
        factor = abs(float(scale)) if scale is not None else float(chosen.get("scale", chosen.get("logit_scale") or 1.0))
        factor += float(chosen.get("hardness_strength", 0.0))
        return max(factor / float(chosen.get("temperature", 1.0)), 1.0)

    def _largest_score(self) -> float:
        """The largest size that a score can have."""
        sets = [t.double().norm(dim=-1) for t in self.by_name.values() if t.is_floating_point() and t.dim() > 1]
        norms = [float(s.max()) if s.numel() else 0.0 for s in sets]
        unit = self.case.loss in NORMALISING and dict(self.case.params).get("similarity") != "dot"
        bias = sum(float(self.by_name[n].double().abs().max()) for n in ("logit_bias", "linear_bias") if n in self.by_name)
        return self._steepness() * (1.0 if unit else norms[0] * max(norms[1:], default=norms[0])) + bias


# The shape of each kind of set, from the rows, the features, and the rows of the other set.
SETS: dict[str, Callable[[int, int, int], tuple[int, ...]]] = {
    "rows": lambda n, d, m: (n, d),
    "unit": lambda n, d, m: (n, d),
    "batch": lambda n, d, m: (max(n, 2), d),
    "unpaired": lambda n, d, m: (m, d),
    "paired": lambda n, d, m: (n, m, d),
    "each": lambda n, d, m: (n, min(m, 3), d),
    "hidden": lambda n, d, m: (n, d),
    "classes": lambda n, d, m: (max(m, 1), d),
}
# What losses want that do not normalise.
UNIT: dict[str, Callable[[Tensor], Tensor]] = {
    "unit": lambda rows: torch.nn.functional.normalize(rows, dim=-1),
    "hidden": lambda rows: rows / rows.shape[-1] ** 0.5,
}
NORMALISING = ("info_nce", "nt_xent", "sup_con", "dcl", "koleo", "multiple_negatives_ranking")
LEAST_FEATURES = {"koleo": 3, "batch_hard_triplet": 3}  # in fewer dimensions neighbours tie

# Tensors that are no sets of rows.
NUMBERS: dict[str, Callable[[PairCase, torch.Generator], Tensor]] = {
    "labels": lambda case, g: torch.randint(-1, max(case.shape[0] // 2, 1), case.shape[:1], generator=g),
    "scale": lambda case, g: torch.exp(2.3 * torch.rand((), generator=g)),
    "bias": lambda case, g: -5 * torch.rand((), generator=g),
    "class": lambda case, g: _classes(case, g),
    "class bias": lambda case, g: torch.randn(max(case.sizes[2], 1), generator=g),
    "class weight": lambda case, g: 0.1 + torch.rand(max(case.sizes[2], 1), generator=g),
}


def _classes(case: PairCase, generator: torch.Generator) -> Tensor:
    """Labels, a few of them ignored."""
    labels = torch.randint(max(case.sizes[2], 1), case.shape[:1], generator=generator)
    return torch.where(torch.rand(case.shape[:1], generator=generator) < 0.2, -100, labels)


# How many times the engine runs forward and backward, where that is not once.
CALLS: dict[str, Callable[[PairCall], tuple[int, int]]] = {
    "koleo": lambda call: (1, 0),
    "batch_hard_triplet": lambda call: (1, 0),
}


def _calls_of_info_nce(call: PairCall) -> tuple[int, int]:
    paired = "negatives" in call.by_name and dict(call.case.params).get("negative_mode") == "paired"
    return (0, 0) if paired else (1, 1)


def _calls_of_ranking(call: PairCall) -> tuple[int, int]:
    chosen = call.case.options()
    harder = chosen["hardness_mode"] is not None and chosen["hardness_strength"]
    others = [d for d in chosen["directions"] if d != "query_to_doc" and (d != "doc_to_query" or harder)]
    of_documents = "doc_to_doc" in others and call.case.gradients == "input"
    return 1 + len(others), 1 + len(others) - of_documents


CALLS |= {
    "info_nce": _calls_of_info_nce,
    "multiple_negatives_ranking": _calls_of_ranking,
    "dcl": lambda call: (1, 1) if dict(call.case.params)["denominator"] == "joint" else (3, 3),
    "linear_cross_entropy": lambda call: (None, None) if _stores_logits(call) else (1, 1),
}


def _stores_logits(call: PairCall) -> bool:
    chosen = call.options
    return bool(chosen.get("softcap") and chosen.get("label_smoothing") and "weight" in call.by_name)


def _is_linear_in_statistics(call: PairCall) -> bool:
    chosen = call.options
    alone = chosen["reduction"] != "none" and not chosen["z_loss"] and "lse" not in call.case.extras
    return alone and "weight" not in call.differentiable() and not _stores_logits(call)


# Losses that are found together with their gradient where a backend can, and when they are.
SUMS: dict[str, Callable[[PairCall], bool]] = {
    "linear_cross_entropy": _is_linear_in_statistics,
    "siglip": lambda call: call.case.reduction != "none" and call.case.shape[0] > 0,
}


def _normal(shape, generator, before) -> Tensor:
    return torch.randn(shape, generator=generator).double()


def _like(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Rows made from those of the first set, where there is one of that shape."""

    def make(shape, generator, before) -> Tensor:
        rows, first = _normal(shape, generator, before), next(iter(before.values()), None)
        return rows if first is None or first.shape != shape else change(first.double(), rows)

    return make


def _some_zero(shape, generator, before) -> Tensor:
    rows = _normal(shape, generator, before)
    return torch.where(torch.rand(shape[:-1], generator=generator).unsqueeze(-1) < 0.3, 0.0, rows)


def _repeated(shape, generator, before) -> Tensor:
    """The first row again and again."""
    rows = _normal(shape, generator, before)
    return torch.where(torch.rand(shape[:-1], generator=generator).unsqueeze(-1) < 0.5, rows[..., :1, :], rows)


VALUES: dict[str, Callable[..., Tensor]] = {
    "normal": _normal,
    "wide": lambda shape, g, before: 30 * _normal(shape, g, before),
    "tiny": lambda shape, g, before: 1e-3 * _normal(shape, g, before),
    "offset": lambda shape, g, before: 4 + _normal(shape, g, before),
    "some zero": _some_zero,
    "repeated": _repeated,
    "aligned": _like(lambda first, rows: first),
    "nearly aligned": _like(lambda first, rows: first + rows / 16),
    "opposite": _like(lambda first, rows: -first),
}


def fitting(loss: str) -> tuple[str, ...]:
    """The values that a loss can be compared on: neighbours that tie have gradients of their own."""
    return tuple(VALUES) if loss not in LEAST_FEATURES else ("normal", "wide", "tiny", "offset")

