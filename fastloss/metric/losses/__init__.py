"""The losses of pytorch-metric-learning, under its names."""

from .base import BaseMetricLossFunction, WeightRegularizerMixin
from .generic import GenericPairLoss
from .pairs import (
    CircleLoss, ContrastiveLoss, GeneralizedLiftedStructureLoss, IntraPairVarianceLoss, LiftedStructureLoss, MultiSimilarityLoss, NTXentLoss,
    SignalToNoiseRatioContrastiveLoss, SupConLoss, TupletMarginLoss,
)
from .triplets import AngularLoss, MarginLoss, ThresholdConsistentMarginLoss, TripletMarginLoss
from .margins import ArcFaceLoss, CosFaceLoss, LargeMarginSoftmaxLoss, SphereFaceLoss, SubCenterArcFaceLoss
from .proxies import (
    InstanceLoss, NCALoss, NormalizedSoftmaxLoss, NPairsLoss, P2SGradLoss, ProxyAnchorLoss, ProxyNCALoss, SoftTripleLoss,
)
