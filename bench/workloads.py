"""What is timed, as data: the workloads with targets, and one for every registered loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastloss.assign import assign
from fastloss.box_cases import PAIRS, BoxCase
from fastloss.compat import monai
from fastloss.detection_cases import DetectionCase
from fastloss.distance_cases import DistanceCase
from fastloss.divergence_cases import DivergenceCase
from fastloss.elementwise_cases import DOMAINS, ElementwiseCase
from fastloss.functional import anchor_points, decode_boxes
from fastloss.oracle import Recorder
from fastloss.overlap_cases import OverlapCase
from fastloss.pair_cases import NUMBERS, SETS, PairCase
from fastloss.plain_cases import INDICES, OPERANDS, PlainCase
from fastloss.registry import LOSSES
from fastloss.sort_cases import SortCase

from . import metric, rivals
from .workload import Workload


@dataclass(frozen=True)
class ElementwiseWorkload(Workload):
    """A row of the table for a loss of the element-wise engine: `shape` is of every operand."""

    @property
    def bytes_moved(self) -> int:
        """Every operand read forward and backward, the gradient of the first written."""
        return (2 * len(self.domains) + 1) * self.elements * getattr(torch, self.dtype).itemsize

    @property
    def domains(self) -> list[str]:
        """The numbers that each operand takes; an optional one is left out."""
        return list(self.about.operands.values())[: len(self.about.operands) - self.about.optional]

    def check_case(self, rows: int = 5000) -> ElementwiseCase:
        """The same call on few elements, for the correctness check."""
        case = ElementwiseCase(shape=(min(self.elements, rows),), dtype=self.dtype, third_shape="" if self.about.optional else "same")
        return replace(case.of(self.loss), **self.options)

    def tensors(self) -> tuple[Tensor, ...]:
        """The operands, the same on every run."""
        torch.manual_seed(0)
        return tuple(DOMAINS[domain](torch.randn(self.shape)).to(getattr(torch, self.dtype)) for domain in self.domains)

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return functools.partial(self.about.function, **dict(self.check_case().params), **self.options)

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """torch's own function; of sigmoid focal the formula as others compute it; else ours in plain torch."""
        params = dict(self.check_case().params)
        if self.about.torch:
            return functools.partial(getattr(F, self.about.torch), **params, **self.options)
        if self.loss == "sigmoid_focal":
            return functools.partial(rivals.sigmoid_focal, **params, **self.options)
        return functools.partial(self.about.function, **params, **self.options, backend="eager")


@dataclass(frozen=True)
class OverlapWorkload(Workload):
    """A row of the table for a loss of the overlap engine: `shape` is of the logits, or of all elements."""

    @property
    def bytes_moved(self) -> int:
        """Logits and labels read forward and backward, the gradient written."""
        labels = self.elements // (self.shape[1] if len(self.shape) > 1 else 1)
        return 3 * self.elements * getattr(torch, self.dtype).itemsize + 2 * 8 * labels

    def check_case(self, rows: int = 2) -> OverlapCase:
        """The same call on few pixels, for the correctness check."""
        shape = (min(self.shape[0], rows), *self.shape[1:2], *(min(n, 6) for n in self.shape[2:]))
        case = OverlapCase(shape=shape, dtype=self.dtype).of(self.loss)
        named = {name: value for name, value in self.options.items() if name not in self.about.params}
        params = tuple((name, self.options.get(name, value)) for name, value in case.params)
        return replace(case, params=params, options=tuple(named.items()))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Logits (or probabilities) and labels, the same on every run."""
        torch.manual_seed(0)
        input = torch.randn(self.shape).to(getattr(torch, self.dtype))
        if len(self.shape) == 1:
            return torch.sigmoid(input), torch.randint(2, self.shape)
        return input, torch.randint(self.shape[1], self.shape[:1] + self.shape[2:])

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return functools.partial(self.about.function, **{**dict(self.check_case().params), **self.options})

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """MONAI's; of the losses that it has not, ours in plain torch."""
        return rivals.find(self.loss, self.options) or functools.partial(self.our_call, backend="eager")


@dataclass(frozen=True)
class FocalWorkload(OverlapWorkload):
    """MONAI's focal loss of a volume and its labels, against the class of that name in :mod:`fastloss.compat.monai`."""

    rival = property(lambda self: rivals.name("focal"))
    rival_call = property(lambda self: rivals.find("focal", self.options))

    @property
    def our_call(self) -> Callable[..., Tensor]:
        made = monai.FocalLoss(to_onehot_y=True, **self.options)
        return lambda input, target: made(input, target.unsqueeze(1))


@dataclass(frozen=True)
class BoxWorkload(Workload):
    """A row of the table for a loss of the box engine: `shape` is of the losses."""

    @property
    def bytes_moved(self) -> int:
        """Both sets of four coordinates read forward and backward, the gradient of the first written."""
        return 5 * 4 * self.elements * getattr(torch, self.dtype).itemsize

    def check_case(self, rows: int = 5000) -> BoxCase:
        """The same call on few boxes, for the correctness check."""
        return BoxCase(loss=self.loss, shape=(min(self.elements, rows),), dtype=self.dtype, **self.options)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both sets, the same on every run."""
        first, second = PAIRS["random"](self.shape, torch.Generator().manual_seed(0))
        return first.to(getattr(torch, self.dtype)), second.to(getattr(torch, self.dtype))

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return functools.partial(self.about.function, **self.options)

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """The loss as torchvision computes it."""
        return functools.partial(rivals.box_loss, self.loss)


@dataclass(frozen=True)
class SortWorkload(Workload):
    """A row of the table for a loss of the sort engine: `shape` is of the logits."""

    @property
    def bytes_moved(self) -> int:
        """Logits and labels read forward and backward, the gradient written; the sort itself is not counted."""
        labels = self.elements if self.loss == "lovasz_hinge" else self.elements // self.shape[1]
        return 3 * self.elements * getattr(torch, self.dtype).itemsize + 2 * labels * 8

    def check_case(self, rows: int = 24) -> SortCase:
        """The same call on small images, for the correctness check."""
        shape = (min(self.shape[0], 2), *self.shape[1:2], *(min(n, 4) for n in self.shape[2:]))
        return replace(SortCase(shape=shape, dtype=self.dtype).of(self.loss), **self.options)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Logits and labels, the same on every run."""
        torch.manual_seed(0)
        input = torch.randn(self.shape, dtype=getattr(torch, self.dtype))
        if self.loss == "lovasz_hinge":
            return input, torch.randint(2, self.shape)
        return input, torch.randint(self.shape[1], self.shape[:1] + self.shape[2:])

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return functools.partial(self.about.function, **self.options)

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """The formula as others compute it, class by class or image by image."""
        if self.loss == "lovasz_hinge":
            return rivals.lovasz_hinge
        return rivals.lovasz_softmax


@dataclass(frozen=True)
class DistanceWorkload(Workload):
    """A row of the table for a loss over distances: `shape` is of the probabilities."""

    @property
    def bytes_moved(self) -> int:
        """Probabilities and target read, the gradient written."""
        return self.elements * (3 * getattr(torch, self.dtype).itemsize + 8)

    def check_case(self, rows: int = 24) -> DistanceCase:
        """The same call on small images, for the correctness check."""
        shape = (min(self.shape[0], 2), *(min(n, 6) for n in self.shape[1:]))
        return replace(DistanceCase(shape=shape, dtype=self.dtype).of(self.loss), **self.options)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Probabilities and masks, the same on every run."""
        torch.manual_seed(0)
        return torch.rand(self.shape).to(getattr(torch, self.dtype)), torch.randint(2, self.shape)

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return functools.partial(self.about.function, **dict(self.check_case().params), **self.options)

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """The formula in plain torch, whose distances take time proportional to the side of an image for each element."""
        return functools.partial(self.our_call, backend="eager")


@dataclass(frozen=True)
class PlainWorkload(Workload):
    """A row of the table for a loss in plain torch: `shape` is of the first operand."""

    @property
    def bytes_moved(self) -> int:
        """Every operand read forward and backward, the gradient of the first written."""
        size, total = getattr(torch, self.dtype).itemsize, 0
        for kind in self.about.operands.values():
            if kind == "class":
                total += 8 * torch.Size(self.shape[:-1]).numel()
            else:
                shape = OPERANDS[kind][0](self.shape) if kind in OPERANDS else self.shape
                total += (8 if kind in INDICES else size) * torch.Size(shape).numel()
        return 2 * total + size * self.elements

    @property
    def flops(self) -> int:
        """Of VICReg and Barlow Twins: Gram matrices of the rows forward, and the gradients of both views from them."""
        return 4 * 2 * self.shape[0] * self.elements if self.loss in ("vicreg", "barlow_twins") else 0

    def check_case(self, rows: int = 24) -> PlainCase:
        """The same call on few rows, for the correctness check."""
        shape = (min(self.shape[0], rows), *(min(n, 200) for n in self.shape[1:]))
        return replace(PlainCase(shape=shape, dtype=self.dtype).of(self.loss), **self.options)

    def tensors(self) -> tuple[Tensor, ...]:
        """The operands, the same on every run."""
        return tuple(PlainCase(shape=self.shape, dtype=self.dtype).of(self.loss).build().by_name.values())

    @property
    def alone(self) -> bool:
        """Whether no kernel of ours runs and nobody else's formula is known: the same lines would be timed twice."""
        if self.capacity or self.about.torch or self.rival != "plain torch":
            return self.capacity
        with Recorder() as recorder:
            self.our_call(*self.smaller(self.shape[0]).tensors())
        return not recorder.ops

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """torch's own function, else ours in plain torch all the way."""
        params = dict(self.check_case().params) | self.options
        if self.about.torch:
            return functools.partial(getattr(F, self.about.torch), **params)
        found = None if self.rival == "plain torch" else rivals.find(self.loss, params)
        return found or functools.partial(self.about.function, **params, backend="eager")


@dataclass(frozen=True)
class HeadWorkload(PlainWorkload):
    """A row of the table for a loss of a linear layer's results: `shape` is (rows, features, classes)."""

    @property
    def bytes_moved(self) -> int:
        """Rows, weights and what they are compared with read forward and backward, the gradients of the first two written."""
        rows, features, classes = self.shape
        return (3 * (rows + classes) * features + 2 * rows * classes) * getattr(torch, self.dtype).itemsize

    @property
    def flops(self) -> int:
        """The layer's results, and the gradients of rows and weights."""
        return 3 * 2 * self.elements

    def check_case(self, rows: int = 24) -> PlainCase:
        """The same call on few rows, for the correctness check."""
        return replace(PlainCase(shape=(min(self.shape[0], rows), 200), dtype=self.dtype).of(self.loss), **self.options)

    def tensors(self) -> tuple[Tensor, ...]:
        """Rows, weights and the other side's results, the same on every run."""
        torch.manual_seed(0)
        rows, features, classes = self.shape
        dtype = getattr(torch, self.dtype)
        weight = torch.randn(classes, features) / features**0.5
        return torch.randn(rows, features).to(dtype), weight.to(dtype).requires_grad_(), torch.randn(rows, classes).to(dtype)


@dataclass(frozen=True)
class PairWorkload(Workload):
    """A row of the table for a loss of the pair engine: `shape` is (rows, features), or (rows, features, rows of the other set).

    Gradients of all sets are computed.
    """

    @property
    def bytes_moved(self) -> int:
        """Every set read forward and backward, its gradient written."""
        sizes = (*self.shape, self.shape[0])[:3]
        kinds = [kind for kind in self.about.operands.values() if kind in SETS]
        return 3 * sum(torch.Size(SETS[kind](*sizes)).numel() for kind in kinds) * getattr(torch, self.dtype).itemsize

    @property
    def flops(self) -> int:
        """The scores, and the product of their gradients with each set; of a set against itself half of the scores and one product."""
        rows, features, others = (*self.shape, self.shape[0])[:3]
        views = 2 if self.loss in ("nt_xent", "dcl") else 1  # two sets compared as one of all their rows
        both = views == 1 and sum(kind in SETS for kind in self.about.operands.values()) > 1
        return (6 if both else 3) * views**2 * rows * features * others

    def check_case(self, rows: int = 24) -> PairCase:
        """The same call on few rows, for the correctness check."""
        shape = (min(self.shape[0], rows), min(self.shape[1], 200), *(min(n, 50) for n in self.shape[2:]))
        case = PairCase(shape=shape, dtype=self.dtype, optional=False).of(self.loss)
        return replace(case, params=tuple((dict(case.params) | self.options).items()))

    def tensors(self) -> tuple[Tensor, ...]:
        """The sets, the same on every run."""
        case = replace(self.check_case(), shape=self.shape)
        made = case.build().by_name
        for name, tensor in made.items():
            if self.about.operands[name] not in NUMBERS:
                made[name] = tensor.requires_grad_()
        first = next(iter(made))
        made[first] = made[first].detach()
        return tuple(made.values())

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return functools.partial(self.about.function, **dict(self.check_case().params))

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """torch's own function; in float32 the formula as others compute it, of a stored matrix; else ours in plain torch."""
        params = dict(self.check_case().params)
        if self.about.torch:
            taken = inspect.signature(getattr(F, self.about.torch)).parameters
            return functools.partial(getattr(F, self.about.torch), **{name: value for name, value in params.items() if name in taken})
        found = None if self.rival == "plain torch" else rivals.find(self.loss, params)
        return found or functools.partial(self.our_call, backend="eager")


@dataclass(frozen=True)
class DetectionWorkload(Workload):
    """A row of the table for a loss of detectors: `shape` is images, objects in each, and their height and width in units of 32 pixels."""

    @property
    def elements(self) -> int:
        """Numbers predicted: of each anchor 4 x 16 for distances and 80 for classes."""
        images, _, height, width = self.shape
        return images * len(anchor_points((32 * height, 32 * width))[0]) * (4 * 16 + 80)

    @property
    def bytes_moved(self) -> int:
        """The predictions read forward and backward, their gradient written."""
        return 3 * self.elements * getattr(torch, self.dtype).itemsize

    @property
    def _settings(self) -> dict[str, object]:
        height, width = self.shape[2:]
        return {"num_classes": 80, "input_shape": (32 * height, 32 * width), "reg_max": 16, **self.options}

    def check_case(self, rows: int = 24) -> DetectionCase:
        """The same call on few small images, for the correctness check."""
        params = self._settings | {"input_shape": (64, 64)}
        return DetectionCase(loss=self.loss, shape=(min(self.shape[0], 2), self.shape[1]), dtype=self.dtype, params=tuple(params.items()))

    def tensors(self) -> tuple[Tensor, ...]:
        """Predictions and objects, the same on every run."""
        case = DetectionCase(loss=self.loss, shape=self.shape, dtype=self.dtype, params=tuple(self._settings.items()))
        return tuple(case.build().by_name.values())

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return functools.partial(self.about.function, **self._settings)

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """The formula in plain torch."""
        return functools.partial(self.our_call, backend="eager")


@dataclass(frozen=True)
class AssignmentWorkload(DetectionWorkload):
    """The assignment of anchors by itself: its weights times the predicted boxes, so that there is a gradient."""

    @property
    def bytes_moved(self) -> int:
        """Boxes and points read, objects and weights written."""
        boxes = self.tensors()[0]
        return len(boxes) * boxes.shape[1] * (4 * 4 + 8 + 4) + boxes.shape[1] * 2 * 4

    def tensors(self) -> tuple[Tensor, ...]:
        """Boxes, scores, points, labels, objects and which are there."""
        predicted, target = super().tensors()
        points, stride = anchor_points(self._settings["input_shape"])
        distances, scores = predicted.split([64, 80], -1)
        height, width = self._settings["input_shape"]
        objects = target[..., 1:] * torch.tensor([width, height, width, height])
        return decode_boxes(distances, points, stride), scores, points, target[..., 0].long(), objects, objects.sum(-1) > 0

    def _call(self, boxes: Tensor, scores: Tensor, *others: Tensor, backend: str | None = None) -> Tensor:
        additive = self.options.get("assigner", "source") == "source"
        _, weight = assign(self.loss, scores, boxes, *others, additive, True, 10, 0.5, 6.0, backend)
        return (boxes * weight.unsqueeze(2)).sum()

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return self._call


@dataclass(frozen=True)
class DivergenceWorkload(Workload):
    """A row of the table for a loss between two rows of logits: `shape` is of either."""

    @property
    def bytes_moved(self) -> int:
        """Both sides read forward and backward, the gradient of the first written."""
        return 5 * self.elements * getattr(torch, self.dtype).itemsize

    def check_case(self, rows: int = 24) -> DivergenceCase:
        """The same call on few rows, for the correctness check."""
        case = DivergenceCase(shape=(min(self.shape[0], rows), *self.shape[1:]), dtype=self.dtype, center="center" in self.about.operands)
        case = case.of(self.loss)
        return replace(case, params=tuple((dict(case.params) | self.options).items()))

    def tensors(self) -> tuple[Tensor, ...]:
        """Both sides, a mask where the loss takes one, and the centre, the same on every run."""
        call = replace(self.check_case(), shape=self.shape).build()
        return (*call.arguments(call.tensors())[0], *(call.by_name[name] for name in ("center",) if name in call.by_name))

    @property
    def our_call(self) -> Callable[..., Tensor]:
        return functools.partial(self.about.function, **dict(self.check_case().params))

    @property
    def rival_call(self) -> Callable[..., Tensor]:
        """The formula as others compute it, over softmaxes that are stored; else ours in plain torch."""
        return rivals.find(self.loss, dict(self.check_case().params)) or functools.partial(self.our_call, backend="eager")


_LARGE = {"eager_ratio": 4.0, "compiled_ratio": 2.0, "huge_pages": True}
_IMAGE = (4, 21, 256, 256)
_VOLUME = (4, 8, 64, 64, 64)
# Where a loss has parameters that the peer calls otherwise, both sides get them by name.
_MONAI = {
    "dice": {}, "dice_ce": {}, "tversky": {"alpha": 0.5, "beta": 0.5}, "dice_focal": {"gamma": 2.0, "activation": "sigmoid"},
}

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("ce fp32 4096x32000", shape=(4096, 32000), **_LARGE),
        Workload("ce bf16 4096x32000", shape=(4096, 32000), dtype="bfloat16", **_LARGE),
        Workload("ce fp32 65536x1000", shape=(65536, 1000), **_LARGE),
        Workload("ce fp32 (4,21,256,256)", shape=_IMAGE, eager_ratio=3.0),
        Workload("ce in place fp32 4096x32000", shape=(4096, 32000), ours={"inplace": True}, eager_ratio=8.0, huge_pages=True),
        Workload("ce in place bf16 4096x32000", shape=(4096, 32000), dtype="bfloat16", ours={"inplace": True}, eager_ratio=8.0,
                 huge_pages=True),
        Workload("ce in place fp32 65536x1000", shape=(65536, 1000), ours={"inplace": True}, eager_ratio=8.0, huge_pages=True),
        Workload("ce in place (4,21,256,256)", shape=_IMAGE, ours={"inplace": True}),
        Workload("ce smoothing fp32 4096x32000", shape=(4096, 32000), options={"label_smoothing": 0.1}),
        Workload("ce soft targets fp32 4096x8000", shape=(4096, 8000), soft=True),
        Workload("ce tiny fp32 32x10", shape=(32, 10), eager_ratio=0.8),
        *(
            Workload(f"{name} {short} 8192x2000", loss=name, shape=(8192, 2000), dtype=dtype)
            for name, about in LOSSES.items()
            if about.engine == "row"
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        ElementwiseWorkload("sigmoid_focal fp32 2^24", loss="sigmoid_focal", shape=(2**24,), options={"reduction": "mean"},
                            eager_ratio=6.0),
        ElementwiseWorkload("mse tiny fp32 64", loss="mse", shape=(64,), eager_ratio=0.8),
        SortWorkload("lovasz_softmax fp32 (4,19,256,256)", loss="lovasz_softmax", shape=(4, 19, 256, 256), eager_ratio=4.0),
        SortWorkload("lovasz_softmax bf16 (4,19,256,256)", loss="lovasz_softmax", shape=(4, 19, 256, 256), dtype="bfloat16"),
        SortWorkload("lovasz_hinge fp32 (16,512,512)", loss="lovasz_hinge", shape=(16, 512, 512), eager_ratio=4.0),
        SortWorkload("lovasz_hinge bf16 (16,512,512)", loss="lovasz_hinge", shape=(16, 512, 512), dtype="bfloat16"),
        *(
            DistanceWorkload(f"{name} {short} (2,3,96,96)", loss=name, shape=(2, 3, 96, 96), dtype=dtype)
            for name in ("boundary", "hausdorff_dt")
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        *(
            ElementwiseWorkload(f"{name} {short} 2^23", loss=name, shape=(2**13, 2**10) if about.rows else (2**23,), dtype=dtype,
                                options={"reduction": "mean"})
            for name, about in LOSSES.items()
            if about.engine == "elementwise"
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        *(
            OverlapWorkload(f"{name} {short} {'2^23' if name == 'any' else '4x8x64^3'}", loss=name, dtype=dtype,
                            shape=(2**23,) if name == "any" else _VOLUME, options=_MONAI.get(name, {}),
                            eager_ratio=5.0 if name in _MONAI and dtype == "float32" else None)
            for name, about in LOSSES.items()
            if about.engine == "overlap"
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        FocalWorkload("MONAI focal fp32 4x8x64^3", loss="dice_focal", shape=_VOLUME, options={"gamma": 2.0}, eager_ratio=5.0),
        *(
            BoxWorkload(f"{name} {short} 2^18", loss=name, shape=(2**18,), dtype=dtype, options={"reduction": "mean"})
            for name, about in LOSSES.items()
            if about.engine == "box"
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        PairWorkload("clip fp32 4096x512", loss="clip", shape=(4096, 512), eager_ratio=1.6),
        PairWorkload("siglip fp32 4096x512", loss="siglip", shape=(4096, 512), eager_ratio=1.8),
        PairWorkload("nt_xent fp32 8192x128", loss="nt_xent", shape=(8192, 128)),
        PairWorkload("info_nce tiny fp32 32x64", loss="info_nce", shape=(32, 64), eager_ratio=0.8),
        *(
            PairWorkload(f"linear_cross_entropy {short} 4096x1024x32000", loss="linear_cross_entropy", shape=(4096, 1024, 32000),
                         dtype=dtype, eager_ratio=1.3)
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        *(
            PairWorkload(f"{name} {short} 2048x512", loss=name, shape=(2048, 512), dtype=dtype)
            for name, about in LOSSES.items()
            if about.engine == "pair" and name != "linear_cross_entropy"
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        DivergenceWorkload("dino fp32 256x65536", loss="dino", shape=(256, 65536), eager_ratio=4.0,
                           options={"student_temp": 0.1, "teacher_temp": 0.04}),
        DivergenceWorkload("distillation fp32 4096x32000", loss="distillation", shape=(4096, 32000), eager_ratio=4.0, huge_pages=True),
        *(
            DivergenceWorkload(f"{name} {short} 4096x4000", loss=name, shape=(4096, 4000), dtype=dtype)
            for name, about in LOSSES.items()
            if about.engine == "divergence"
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
        *metric.WORKLOADS,
        PairWorkload("clip fp32 65536x256", loss="clip", shape=(65536, 256), capacity=True),
        PlainWorkload("vicreg fp32 256x8192", loss="vicreg", shape=(256, 8192), eager_ratio=20.0),
        PlainWorkload("barlow_twins fp32 256x8192", loss="barlow_twins", shape=(256, 8192), eager_ratio=10.0),
        *(
            kind(f"{name} {short} 16x64, 640x640{also}", loss="yolov12_detection", shape=(16, 64, 20, 20), dtype=dtype, options=options)
            for kind, name in ((DetectionWorkload, "yolov12_detection"), (AssignmentWorkload, "assignment"))
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
            for also, options in (("", {}), (", tood", {"assigner": "tood"}))
            if kind is DetectionWorkload or dtype == "float32"
        ),
        PlainWorkload("dfl fp32 2^17x16", loss="dfl", shape=(2**17, 16)),
        *(
            kind(f"{name} {short} {'x'.join(map(str, shape))}", loss=name, shape=shape, dtype=dtype)
            for name, about in LOSSES.items()
            if about.engine == "plain"
            for kind, shape in (
                (HeadWorkload, (1024, 512, 16000)) if "head" in about.operands.values()
                else (PlainWorkload, (4096, 1000) if about.dims[0] < 3 else (64, 64, 1000)),
            )
            for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
            if about.torch is None or dtype == "float32"  # torch takes no halves on the CPU
        ),
    )
}
