"""Cases of the overlap engine for tests and fuzzing: as :mod:`fastloss.cases`, which has those of the row engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cases import LAYOUTS, WEIGHTS, NamedCall
from .elementwise_cases import VALUES, middle
from .functional.metric import METRICS, soft_confusion_matrix
from .regions import ABSENT, GROUPS
from .registry import LOSSES

IGNORED = 255


@dataclass(frozen=True)
class OverlapCase:
    """One call of an overlap loss.

    Args:
        loss: name in the registry.
        shape: of the input, channels second; of a loss without channels, any.
        dtype: of the input and of a target of numbers.
        seed: every number of the case is drawn from it.
        layout: how the input lies in memory; a key of :data:`fastloss.cases.LAYOUTS`.
        values: what the logits look like; a key of :data:`fastloss.elementwise_cases.VALUES`.
        target: what the target is; a key of :data:`TARGETS`.
        target_dtype: of labels.
        target_layout: how the target lies in memory.
        weight: a key of :data:`fastloss.cases.WEIGHTS`.
        params: the loss's own numbers, as pairs of name and value.
        options: other keyword arguments that are not at their default, as pairs of name and value.
        gradients: "input", or "all" for a target of numbers as well.
    """

    loss: str = "dice"
    shape: tuple[int, ...] = (2, 3, 5)
    dtype: str = "float32"
    seed: int = 0
    layout: str = "contiguous"
    values: str = "normal"
    target: str = "labels"
    target_dtype: str = "int64"
    target_layout: str = "contiguous"
    weight: str = "none"
    params: tuple[tuple[str, float], ...] = ()
    options: tuple[tuple[str, object], ...] = ()
    gradients: str = "input"

    inplace = False
    extras = ()

    def __str__(self) -> str:
        changed = (f.name for f in fields(self) if f.name in ("loss", "shape", "seed") or getattr(self, f.name) != f.default)
        return f"OverlapCase({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def of(self, loss: str) -> OverlapCase:
        """The same case of another loss: its numbers in the middle of their ranges, options that it does not take left out."""
        about = LOSSES[loss]
        taken = about.parameters
        options = tuple((name, value) for name, value in self.options if name in taken and (name, value) in choices(loss, name))
        params = tuple((name, middle(bounds)) for name, bounds in about.params.items())
        weighted = "weight" in taken and dict(options).get("group") in (None, "batch")
        target = self.target if self.target in targets(loss) else "labels"
        return replace(
            self, loss=loss, weight=self.weight if weighted else "none", params=params, options=options, target=target
        )

    def keywords(self) -> dict:
        """The keyword arguments of the call, without tensors."""
        ignore = {"ignore_index": IGNORED if self.labels else 0} if "ignored" in self.target else {}
        return {**dict(self.options), **dict(self.params), **ignore}

    @property
    def labels(self) -> bool:
        return self.target.startswith("labels")

    @property
    def channels(self) -> bool:
        """Whether the loss tells channels apart."""
        return self.loss != "any"

    def build(self) -> OverlapCall:
        """Make the tensors."""
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(self.seed)
        options = dict(self.options)
        raw = VALUES[self.values](self.shape, generator)
        probabilities = options.get("activation") == "none" or (not self.channels and not options.get("from_logits"))
        shape = self.shape if not self.channels else (self.shape[0], *self.shape[2:])
        classes = self.shape[1] if self.channels and self.shape[1] > 1 else 2
        target = TARGETS[self.target](shape if self.labels else self.shape, classes, generator)
        memory, input = LAYOUTS[self.layout]((torch.sigmoid(raw) if probabilities else raw).to(dtype))
        kind = getattr(torch, self.target_dtype) if self.labels else dtype
        target_memory, target = LAYOUTS[self.target_layout](target.to(kind))
        tensors, memories = {"input": input, "target": target}, {"input": memory, "target": target_memory}
        weight = WEIGHTS[self.weight](self.shape[1], generator) if self.channels else None
        if weight is not None:
            tensors["weight"] = memories["weight"] = weight.to(dtype)
        if options.get("channel_dim") == -1:
            for name in ("input", *(() if self.labels else ("target",))):
                tensors[name] = tensors[name].movedim(1, -1)
        return OverlapCall(self, tensors, memories)


class OverlapCall(NamedCall):
    """A call of an overlap loss."""

    @property
    def options(self) -> dict:
        return self.case.keywords()

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every output by name."""
        options = dict(self.case.options)
        if options.get("reduction") != "none":
            return {"loss": ()}
        samples, classes = self.case.shape[:2]
        classes -= options.get("include_background") is False and classes > 1
        if self.case.loss == "generalized_dice":
            return {"loss": () if options.get("batch") else (samples,)}
        shapes = {"sample": (samples, classes), "batch": (classes,), "image": (samples,), "all": ()}
        return {"loss": shapes[options.get("group", "sample")]}

    def differentiable(self) -> list[str]:
        """The tensors that gradients are compared of."""
        return ["input", *(["target"] if self.case.gradients == "all" and not self.case.labels else [])]

    def arguments(self, tensors: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the loss takes these tensors: by position, and by keyword."""
        return (tensors["input"], tensors["target"]), {name: t for name, t in tensors.items() if name == "weight"}

    def operators(self, backend: str) -> list[str]:
        """The operators that a forward and backward on a compiled backend run."""
        return [f"overlap_forward.{backend}", f"overlap_backward.{backend}"]

    def scales(self, upstream: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """The size of the terms that each result is summed from; what the accumulation dtype's eps is relative to.

        Scores are ratios of sums, of the order of 1; a gradient is compared relative to the largest of its tensor.
        """
        case, wide = self.case, self.to(torch.float64)
        options = self.options
        positional, named = wide.arguments(wide.tensors())
        factor = 1.0 + sum(abs(float(value)) for _, value in case.params) + 20.0 * bool(options.get("log"))
        if "weight" in named and named["weight"].numel():
            factor *= 1.0 + float(named["weight"].amax())
        steep = 1.0
        if case.loss == "focal_tversky":  # a power below 1 is steep where the regions agree
            each = {name: value for name, value in options.items() if name not in ("reduction", "weight", "absent", "gamma")}
            with torch.no_grad():
                base = LOSSES[case.loss].function(*positional, **each, gamma=1.0, reduction="none", backend="eager")
            gamma = float(options["gamma"])
            if base.numel() and gamma < 1:
                least = max(float(base.nan_to_num().amin()), 1e-6)
                factor, steep = factor + least ** (gamma - 1), 1.0 + 1.0 / least
        part = 1.0 / max(1, torch.Size(case.shape[2:]).numel())  # of a score that one pixel is
        if case.loss == "tversky" and all(value < 1e-3 for _, value in case.params):
            # Errors have next to no price: what overlaps, however little, is divided by itself. A 1 more above the bar is one over it.
            each = {name: value for name, value in options.items() if name not in ("reduction", "weight", "log")}
            smooth, below = each.pop("smooth", 1e-5), each.pop("smooth_denominator", None)
            each |= {"smooth_denominator": smooth if below is None else below, "reduction": "none", "backend": "eager"}
            with torch.no_grad():
                score, higher = (1.0 - LOSSES[case.loss].function(*positional, **each, smooth=smooth + more) for more in (0.0, 1.0))
            part = max(part, float((higher - score).nan_to_num().amax())) if score.numel() else part
            if options.get("soft_label"):  # and what overlaps is a difference of sums
                factor += part * case.shape[0] * torch.Size(case.shape[2:]).numel()
        rare = 1.0  # the smallest number that a metric of counts divides by, of the number of elements
        if case.loss == "any":
            given = {name: value for name, value in options.items() if name in ("amplifying_scale", "from_logits")}
            tp, fn, fp, tn = soft_confusion_matrix(*positional, **given, backend="eager")
            every = tp + fn + fp + tn
            rare = max(float(torch.stack((tp + fn, tn + fp, tp + fp, tn + fn)).amin() / every), 1e-5)
            if options.get("metric") in ("mcc", "cohen_kappa"):  # what is predicted as negative is a difference of sums
                factor *= 1.0 + min(float(every / (tn + fn)), 1e5) / 16.0
        leaves = {name: t.detach().requires_grad_() for name, t in zip(("input", "target"), positional) if t.is_floating_point()}
        loss = LOSSES[case.loss].function(*(leaves.get(n, t) for n, t in zip(("input", "target"), positional)), **named, **options,
                                          backend="eager")
        shape = loss.shape
        sizes: dict[str, Tensor | float] = {"truth": (1.0 + sum(case.shape) ** 0.5) / rare, "relative": 1.0, "loss": factor}
        if case.options and dict(case.options).get("reduction") == "sum":
            sizes["loss"] = factor * max(1, case.shape[0] * case.shape[1])
        back = upstream["loss"].double().reshape(shape) if "loss" in upstream else torch.zeros(shape, dtype=torch.float64)
        for name, grad in zip(leaves, torch.autograd.grad(loss, list(leaves.values()), back, allow_unused=True)):
            largest = 0.0 if grad is None or not grad.numel() else float(grad.abs().nan_to_num().amax())
            # Where a softmax is sure of a class, terms of the order of one pixel's share cancel.
            share = float(back.abs().amax()) * part if back.numel() else 0.0
            sizes[name] = (largest + share) * factor * steep
        return sizes


def targets(loss: str) -> tuple[str, ...]:
    """The keys of :data:`TARGETS` that a loss takes."""
    ignores = "ignore_index" in LOSSES[loss].parameters
    return tuple(name for name in TARGETS if ignores or "ignored" not in name)


def choices(loss: str, option: str) -> tuple[tuple[str, object], ...]:
    """The pairs of a keyword and a value that cases of a loss draw from."""
    values: dict[str, tuple] = {
        "activation": ("softmax", "sigmoid", "none"), "smooth": (1.0, 0.0, 1e-3), "smooth_denominator": (1e-5, 0.5), "eps": (1e-4,),
        "power": (2,), "soft_label": (True,), "group": GROUPS[1:], "absent": ABSENT[1:], "include_background": (False,), "log": (True,),
        "channel_dim": (-1,), "reduction": ("none", "sum"), "batch": (True,), "class_weighting": ("simple", "uniform"),
        "metric": METRICS, "from_logits": (True,), "beta": (0.5, 2.0),
    }
    if option not in LOSSES[loss].parameters or option in LOSSES[loss].params:
        return ()
    if option == "activation" and loss in ("dice_ce", "dice_focal"):
        return (("activation", "softmax"), ("activation", "sigmoid"))
    return tuple((option, value) for value in values.get(option, ()))


def _labels(shape: tuple[int, ...], classes: int, generator: torch.Generator) -> Tensor:
    return torch.randint(classes, shape, generator=generator)


def _some(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) < 0.3


# From a shape, the number of classes and a generator to labels, or to numbers of the input's shape.
TARGETS: dict[str, Callable[[tuple[int, ...], int, torch.Generator], Tensor]] = {
    "labels": _labels,
    "labels of one class": lambda shape, classes, g: torch.full(shape, classes - 1),
    "labels, none of class 0": lambda shape, classes, g: _labels(shape, classes, g).clamp_min(min(1, classes - 1)),
    "labels, some ignored": lambda shape, classes, g: _labels(shape, classes, g).masked_fill(_some(shape, g), IGNORED),
    "labels, all ignored": lambda shape, classes, g: torch.full(shape, IGNORED),
    "several labels": lambda shape, classes, g: _some(shape, g).double(),
    "soft": lambda shape, classes, g: torch.rand(shape, generator=g).double(),
    "soft, some ignored": lambda shape, classes, g: torch.rand(shape, generator=g).double().masked_fill(_some(shape, g), 0.0),
    "zero": lambda shape, classes, g: torch.zeros(shape, dtype=torch.float64),
}
