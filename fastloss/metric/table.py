"""Every loss of :mod:`fastloss.metric.losses` that is no wrapper, and how to build and call it; what tests iterate over."""

from __future__ import annotations

from typing import NamedTuple

from . import losses

CLASSES, FEATURES = 12, 5  # of the losses with weights below

ANY = ("LpDistance", "CosineSimilarity", "DotProductSimilarity", "SNRDistance")
COSINE = ("CosineSimilarity",)
SIMILARITY = ("CosineSimilarity", "DotProductSimilarity")
LP = ("LpDistance",)
SNR = ("SNRDistance",)


class Entry(NamedTuple):
    """A loss.

    Args:
        options: constructor arguments, each to be tried.
        distances: which it takes.
        references: whether it takes ref_emb.
        listed: whether it takes an indices_tuple.
        labels: whether it takes labels.
    """

    options: tuple[dict, ...] = ({},)
    distances: tuple[str, ...] = ANY
    references: bool = True
    listed: bool = True
    labels: bool = True

    @property
    def weights(self) -> bool:
        """Whether the loss has weights of classes."""
        return "num_classes" in self.options[0]


def _classes(*more: dict, distances: tuple[str, ...] = COSINE, size: str = "embedding_size", listed: bool = True) -> Entry:
    options = tuple({"num_classes": CLASSES, size: FEATURES} | each for each in more or ({},))
    return Entry(options, distances, references=False, listed=listed)


LOSSES: dict[str, Entry] = {
    "AngularLoss": Entry(({}, {"alpha": 20}), LP),
    "ArcFaceLoss": _classes({}, {"margin": 100, "scale": 8}),
    "CircleLoss": Entry(({}, {"m": 0.25, "gamma": 4}), COSINE),
    "ContrastiveLoss": Entry(({}, {"pos_margin": 0.3, "neg_margin": 0.8})),
    "CosFaceLoss": _classes({}, {"margin": 0.1, "scale": 4}),
    "DynamicSoftMarginLoss": Entry(({"min_val": -3},), LP),
    "FastAPLoss": Entry(({}, {"num_bins": 5}), LP, references=False),
    "GeneralizedLiftedStructureLoss": Entry(({}, {"neg_margin": 0.6, "pos_margin": 0.2})),
    "HistogramLoss": Entry(({}, {"n_bins": 10}), COSINE, references=False),
    "InstanceLoss": Entry(({}, {"gamma": 4}), COSINE, references=False, listed=False),
    "IntraPairVarianceLoss": Entry(({}, {"pos_eps": 0.1, "neg_eps": 0.2})),
    "LargeMarginSoftmaxLoss": _classes({}, {"margin": 3, "scale": 2}),
    "LiftedStructureLoss": Entry(({}, {"neg_margin": 0.6, "pos_margin": 0.2})),
    "ManifoldLoss": Entry(({"l": FEATURES, "K": 3},), COSINE, references=False, labels=False),
    "MarginLoss": Entry(({}, {"nu": 0.1, "learn_beta": True}, {"nu": 0.1, "learn_beta": True, "num_classes": CLASSES, "margin": 0.6})),
    "MultiSimilarityLoss": Entry(({}, {"alpha": 1, "beta": 8, "base": 0.2})),
    "NCALoss": Entry(({}, {"softmax_scale": 3})),
    "NPairsLoss": Entry(references=False),
    "NTXentLoss": Entry(({}, {"temperature": 0.5})),
    "NormalizedSoftmaxLoss": _classes({}, {"temperature": 0.5}, distances=ANY[:3]),
    "P2SGradLoss": _classes(size="descriptors_dim", listed=False),
    "PNPLoss": Entry(tuple({"variant": v, "anneal": 0.1} for v in ("O", "Ds", "Dq", "Iu", "Ib")), COSINE, references=False, listed=False),
    "ProxyAnchorLoss": _classes({}, {"margin": 0.3, "alpha": 4}, distances=ANY[:3]),
    "ProxyNCALoss": _classes({}, {"softmax_scale": 4}, distances=ANY[:3]),
    "RankedListLoss": Entry(
        ({"margin": 0.4, "Tn": 2, "Tp": 1}, {"margin": 0.5, "Tn": 10, "alpha": 1.1}), LP, references=False, listed=False
    ),
    "SignalToNoiseRatioContrastiveLoss": Entry(({}, {"pos_margin": 0.2, "neg_margin": 3}), SNR),
    "SmoothAPLoss": Entry(({}, {"temperature": 0.1}), COSINE, references=False),
    "SoftTripleLoss": _classes({}, {"centers_per_class": 2, "la": 5, "gamma": 0.5, "margin": 0.1}, distances=SIMILARITY),
    "SphereFaceLoss": _classes({}, {"margin": 2, "scale": 3}),
    "SubCenterArcFaceLoss": _classes({}, {"margin": 10, "scale": 8, "sub_centers": 2}),
    "SupConLoss": Entry(({}, {"temperature": 1})),
    "ThresholdConsistentMarginLoss": Entry(({}, {"lambda_plus": 0.5, "margin_plus": 0.5, "margin_minus": 0.1}), COSINE),
    "TripletMarginLoss": Entry(({}, {"margin": 0.7}, {"margin": 0.7, "smooth_loss": True})),
    "TupletMarginLoss": Entry(({}, {"margin": 20, "scale": 8}), COSINE),
    "VICRegLoss": Entry(({}, {"invariance_lambda": 5, "eps": 1e-2}), (), listed=False, labels=False),
}


def build(name: str, options: dict | None = None, **more) -> losses.BaseMetricLossFunction:
    """The loss of a name with some of its options, the first where none are given."""
    return getattr(losses, name)(**(LOSSES[name].options[0] if options is None else options), **more)
