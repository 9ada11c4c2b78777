"""The classes of `fastloss.metric` against those of pytorch-metric-learning."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from fastloss import Explanation, explain
from fastloss.metric import losses
from fastloss.oracle import Mismatch
from fastloss.registry import LOSSES

from .workload import Workload


@dataclass(frozen=True)
class MetricWorkload(Workload):
    """A row of the table for a class of `fastloss.metric`, against pytorch-metric-learning's: `shape` is of the embeddings.

    Gradients of the embeddings, rows of norm 1, and of weights of classes are computed; a label has 8 rows on average, or there are 16.
    """

    CLASSES = 16

    @property
    def bytes_moved(self) -> int:
        """Embeddings read forward and backward, the gradient written."""
        return 3 * self.elements * getattr(torch, self.dtype).itemsize

    @property
    def flops(self) -> int:
        """Half of the scores of the rows with one another and the product of their gradients with the rows; all of them with classes."""
        return 6 * self.elements * self.CLASSES if self._sizes() else 3 * self.elements * self.shape[0]

    def missing(self) -> str | None:
        found = self.capacity or importlib.util.find_spec("pytorch_metric_learning")
        return None if found else "pytorch-metric-learning is not installed; pip install fastloss[peers]"

    def verify(self) -> Explanation:
        """Compare with pytorch-metric-learning in float64."""
        small = replace(self, shape=(min(self.shape[0], 24), min(self.shape[1], 64)), dtype="float64")
        calls = (small.our_call,) if self.capacity else (small.our_call, small.rival_call)
        values = [float(call(*small.tensors())) for call in calls]
        if not math.isclose(values[0], values[-1], rel_tol=1e-6, abs_tol=1e-9):
            raise Mismatch(f"{self.loss}: {values[0]}, pytorch-metric-learning gives {values[1]}")
        return explain(LOSSES["nt_xent"].function, *(small.tensors()[:1] * 2))  # of the same engine

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Embeddings and labels, the same on every run."""
        torch.manual_seed(0)
        classes = self.CLASSES if self._sizes() else max(2, self.shape[0] // 8)
        rows = F.normalize(torch.randn(self.shape, dtype=getattr(torch, self.dtype)))
        return rows, torch.randint(classes, self.shape[:1])

    def _sizes(self) -> dict[str, int]:
        """The constructor's arguments that are sizes."""
        given = {"num_classes": self.CLASSES, "embedding_size": self.shape[1], "descriptors_dim": self.shape[1]}
        return {name: given[name] for name in METRIC[self.loss] if name in given}

    def _module(self, library: ModuleType) -> torch.nn.Module:
        torch.manual_seed(1)
        options = {name: value for name, value in METRIC[self.loss].items() if value is not None}
        return getattr(library, self.loss)(**options, **self._sizes()).to(getattr(torch, self.dtype))

    @property
    def our_call(self) -> torch.nn.Module:
        return self._module(losses)

    @property
    def rival(self) -> str:
        return f"pytorch-metric-learning {version('pytorch-metric-learning')}"

    @property
    def rival_call(self) -> torch.nn.Module:
        """pytorch-metric-learning's class, with the same weights."""
        made = self._module(importlib.import_module("pytorch_metric_learning.losses"))
        made.load_state_dict(self._module(losses).state_dict())
        return made


_CLASSES = {"num_classes": None, "embedding_size": None}
# The losses of pytorch-metric-learning whose values are the same here, and their options; None is a size.
METRIC: dict[str, dict[str, object]] = {
    **{name: {} for name in (
        "AngularLoss", "CircleLoss", "ContrastiveLoss", "FastAPLoss", "GeneralizedLiftedStructureLoss", "IntraPairVarianceLoss",
        "LiftedStructureLoss", "MarginLoss", "MultiSimilarityLoss", "NCALoss", "NPairsLoss", "NTXentLoss", "PNPLoss",
        "SignalToNoiseRatioContrastiveLoss", "SupConLoss", "ThresholdConsistentMarginLoss", "TripletMarginLoss", "TupletMarginLoss",
    )},
    **{name: _CLASSES for name in (
        "ArcFaceLoss", "CosFaceLoss", "SphereFaceLoss", "LargeMarginSoftmaxLoss", "SubCenterArcFaceLoss", "NormalizedSoftmaxLoss",
        "ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss",
    )},
    "P2SGradLoss": {"descriptors_dim": None, "num_classes": None}, "HistogramLoss": {"n_bins": 50},
    "RankedListLoss": {"margin": 1, "Tn": 1},
}

WORKLOADS = (
    *(
        MetricWorkload(f"metric {name} fp32 {rows}x{features}", loss=name, shape=(rows, features), eager_ratio=ratio)
        for name, rows, features, ratio in (
            ("ContrastiveLoss", 2048, 512, 2.5), ("SupConLoss", 2048, 512, 2.5), ("MultiSimilarityLoss", 2048, 512, 3.5),
            ("CircleLoss", 2048, 512, 5.0), ("NTXentLoss", 256, 128, 200.0), ("LiftedStructureLoss", 256, 128, 200.0),
            ("TripletMarginLoss", 256, 128, 20.0), *((name, 128, 128, None) for name in METRIC),
        )
    ),
    *(
        MetricWorkload(f"metric {name} fp32 {rows}x128", loss=name, shape=(rows, 128), capacity=True)
        for name, rows in (("NTXentLoss", 8192), ("TripletMarginLoss", 4096))
    ),
)
