"""The losses of pytorch-metric-learning, under its names."""

from .base import BaseMetricLossFunction, WeightRegularizerMixin
from .generic import GenericPairLoss
from .margins import ArcFaceLoss, CosFaceLoss, LargeMarginSoftmaxLoss, SphereFaceLoss, SubCenterArcFaceLoss
from .pairs import (
    CircleLoss, ContrastiveLoss, GeneralizedLiftedStructureLoss, IntraPairVarianceLoss, LiftedStructureLoss, MultiSimilarityLoss,
    NTXentLoss, SignalToNoiseRatioContrastiveLoss, SupConLoss, TupletMarginLoss,
)
from .proxies import (
    InstanceLoss, NCALoss, NormalizedSoftmaxLoss, NPairsLoss, P2SGradLoss, ProxyAnchorLoss, ProxyNCALoss, SoftTripleLoss,
)
from .ranking import (
    DynamicSoftMarginLoss, FastAPLoss, HistogramLoss, ManifoldLoss, PNPLoss, RankedListLoss, SmoothAPLoss,
)
from .triplets import AngularLoss, MarginLoss, ThresholdConsistentMarginLoss, TripletMarginLoss
from .wrappers import BaseLossWrapper, CrossBatchMemory, MultipleLosses, SelfSupervisedLoss, VICRegLoss

__all__ = [
    "AngularLoss", "ArcFaceLoss", "BaseLossWrapper", "BaseMetricLossFunction", "CircleLoss", "ContrastiveLoss", "CosFaceLoss",
    "CrossBatchMemory", "DynamicSoftMarginLoss", "FastAPLoss", "GeneralizedLiftedStructureLoss", "GenericPairLoss", "HistogramLoss",
    "InstanceLoss", "IntraPairVarianceLoss", "LargeMarginSoftmaxLoss", "LiftedStructureLoss", "ManifoldLoss", "MarginLoss",
    "MultiSimilarityLoss", "MultipleLosses", "NCALoss", "NPairsLoss", "NTXentLoss", "NormalizedSoftmaxLoss", "P2SGradLoss", "PNPLoss",
    "ProxyAnchorLoss", "ProxyNCALoss", "RankedListLoss", "SelfSupervisedLoss", "SignalToNoiseRatioContrastiveLoss", "SmoothAPLoss",
    "SoftTripleLoss", "SphereFaceLoss", "SubCenterArcFaceLoss", "SupConLoss", "ThresholdConsistentMarginLoss", "TripletMarginLoss",
    "TupletMarginLoss", "VICRegLoss", "WeightRegularizerMixin",
]
