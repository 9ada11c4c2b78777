"""The losses and samplers of jina's finetuner, following finetuner 0.8.1 (``from fastloss.compat.finetuner import make_loss``).

finetuner takes a loss by its name: ``finetuner.fit(..., loss="ArcFaceLoss", sampler="auto", num_items_per_class=4)``. Here
:func:`make_loss` gives the object of a name, :func:`make_miner` that of a miner, and :func:`make_sampler` what ``fit`` draws batches with.
Most losses are those of :mod:`fastloss.metric`, with the same arguments. What finetuner does not document (what a loss is called with, the
temperature of CLIP) is stated with each class. :class:`CentroidTripletLoss` is that of its paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, RandomSampler, Sampler

from .. import _checks
from .. import functional as F
from ..metric import losses as metric
from ..metric import miners
from ..pair import normalised
from .sentence_transformers import CosineSimilarityLoss, MarginMSELoss

__all__ = [
    "LOSSES", "CLIPLoss", "CentroidTripletLoss", "ClassSampler", "CosineSimilarityLoss", "MarginMSELoss", "NTXLoss", "make_loss",
    "make_miner", "make_sampler", "sampler_of",
]

NTXLoss = metric.NTXentLoss


class CLIPLoss(nn.Module):
    """:func:`fastloss.functional.clip_loss` of features that it normalises, with a learned scale.

    Args:
        temperature: where training starts from; scores are cosines divided by it. Default: 0.07.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Attributes:
        logit_scale: the parameter, the logarithm of the inverse temperature.

    Raises:
        ValueError: `temperature` is not positive.
    """

    def __init__(self, temperature: float = 0.07, *, backend: str | None = None) -> None:
        super().__init__()
        _checks.positive("CLIPLoss", "temperature", temperature)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.backend = backend

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """The mean loss of features (N, D) of images and of the text of each."""
        loss = F.clip_loss(normalised(image), normalised(text), self.logit_scale.exp(), backend=self.backend)
        return loss.to(torch.promote_types(image.dtype, text.dtype))


class CentroidTripletLoss(nn.Module):
    r"""Triplet loss of each row, the mean of the others of its class, and the mean of each other class.

    .. math:: \ell_{ik} = \max\left(0, \text{margin} + \|x_i - c_{y_i \setminus i}\| - \|x_i - c_k\|\right), \qquad k \ne y_i

    with rows x of norm 1; the loss is the mean of those that are not 0, and rows that are alone in their class have none. Distances of rows
    and classes take :math:`O(N^2)` memory.

    Args:
        margin: Default: 0.05.

    Source:
        Wieczorek, Rychalska and Dabrowski 2021, "On the unreasonable effectiveness of centroids in image retrieval", equation 2.
    """

    def __init__(self, margin: float = 0.05) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings (N, D) and their classes (N); 0 where there are no triplets."""
        if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"CentroidTripletLoss: wanted embeddings (N, D) and labels (N), got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
            )
        x = normalised(embeddings)
        together = labels.unsqueeze(1) == labels
        mates = together.to(x.dtype)
        count = mates.sum(1)
        total = mates @ x
        square = (x - (total - x) / (count - 1).clamp_min(1).unsqueeze(1)).square().sum(1)
        apart = square > 0  # the slope of a root at 0 is 0
        positive = torch.where(apart, torch.sqrt(torch.where(apart, square, 1.0)), 0.0)
        negative = torch.cdist(x, total / count.unsqueeze(1), compute_mode="donot_use_mm_for_euclid_dist")
        first = ~torch.triu(together, 1).any(0)  # the row that stands for its class
        gap = self.margin + positive.unsqueeze(1) - negative
        kept = first & ~together & (count > 1).unsqueeze(1) & (gap.detach() > 0)
        losses = torch.where(kept, gap, 0.0)
        return (losses.sum() / kept.sum().clamp_min(1)).to(embeddings.dtype)


_METRIC = (
    "AngularLoss", "ArcFaceLoss", "CircleLoss", "ContrastiveLoss", "CosFaceLoss", "CrossBatchMemory", "FastAPLoss",
    "GeneralizedLiftedStructureLoss", "GenericPairLoss", "IntraPairVarianceLoss", "LargeMarginSoftmaxLoss", "LiftedStructureLoss",
    "MarginLoss", "MultiSimilarityLoss", "MultipleLosses", "NCALoss", "NPairsLoss", "NormalizedSoftmaxLoss", "ProxyAnchorLoss",
    "ProxyNCALoss", "SignalToNoiseRatioContrastiveLoss", "SoftTripleLoss", "SphereFaceLoss", "SupConLoss", "TripletMarginLoss",
    "TupletMarginLoss", "VICRegLoss",
)

# The class of each name that ``fit(loss=...)`` takes.
LOSSES: dict[str, type[nn.Module]] = {name: getattr(metric, name) for name in _METRIC} | {
    "CLIPLoss": CLIPLoss, "CentroidTripletLoss": CentroidTripletLoss, "CosineSimilarityLoss": CosineSimilarityLoss,
    "MarginMSELoss": MarginMSELoss, "NTXLoss": NTXLoss,
}

# Losses with a centre of each class, which need no two rows of one class in a batch; and those of scores, which need no classes.
_CENTRES = (
    "ArcFaceLoss", "CosFaceLoss", "LargeMarginSoftmaxLoss", "NormalizedSoftmaxLoss", "ProxyAnchorLoss", "ProxyNCALoss", "SoftTripleLoss",
    "SphereFaceLoss",
)
_SCORES = ("CosineSimilarityLoss", "MarginMSELoss")


def _known(name: str) -> None:
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; wanted one of {', '.join(sorted(LOSSES))}")


def __getattr__(name: str) -> type[Sampler]:
    """:class:`fastloss.samplers.ClassSampler`, which is imported when it is asked for."""
    if name != "ClassSampler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..samplers import ClassSampler

    return ClassSampler


def make_loss(loss: str = "TripletMarginLoss", /, **options) -> nn.Module:
    """The loss of a name.

    Args:
        loss: a key of :data:`LOSSES`. Default: ``"TripletMarginLoss"``.
        options: of its constructor. Losses in them may be names too, as for ``"CrossBatchMemory"`` and ``"MultipleLosses"``.

    Raises:
        ValueError: unknown name.

    Example:
        >>> make_loss("ArcFaceLoss", num_classes=10, embedding_size=64).W.shape
        torch.Size([64, 10])
    """
    _known(loss)
    if isinstance(options.get("loss"), str):
        options["loss"] = make_loss(options["loss"])
    several = options.get("losses")
    if isinstance(several, dict):
        options["losses"] = {key: make_loss(one) if isinstance(one, str) else one for key, one in several.items()}
    elif several is not None:
        options["losses"] = [make_loss(one) if isinstance(one, str) else one for one in several]
    return LOSSES[loss](**options)


def make_miner(miner: str | None = None, **options) -> nn.Module | None:
    """The miner of a name, a class of :mod:`fastloss.metric.miners`; None of none.

    Args:
        miner: the name, or None.
        options: of its constructor, finetuner's `miner_options`.

    Raises:
        ValueError: unknown name.
    """
    if miner is None:
        return None
    known = [name for name in miners.__all__ if not name.startswith("Base")]
    if miner not in known:
        raise ValueError(f"unknown miner {miner!r}; wanted one of {', '.join(known)}")
    return getattr(miners, miner)(**options)


def sampler_of(loss: str = "TripletMarginLoss", sampler: str = "auto") -> str:
    """Which sampler a loss has, ``"class"`` or ``"random"``.

    Losses that compare the rows of a batch need several of each class: they have the class sampler, whatever is asked for. Losses with a
    centre of each class have a random one, or the class sampler if that is asked for, and losses of scores always a random one.

    Args:
        loss: a key of :data:`LOSSES`. Default: ``"TripletMarginLoss"``.
        sampler: ``"auto"``, ``"class"`` or ``"random"``. Default: ``"auto"``.

    Raises:
        ValueError: unknown loss or sampler.
    """
    _known(loss)
    if sampler not in ("auto", "class", "random"):
        raise ValueError(f"sampler must be 'auto', 'class' or 'random', got {sampler!r}")
    if loss in _SCORES:
        return "random"
    if loss in _CENTRES:
        return "class" if sampler == "class" else "random"
    return "class"


def make_sampler(
    labels: Sequence | Tensor, batch_size: int, loss: str = "TripletMarginLoss", sampler: str = "auto", num_items_per_class: int = 4,
    generator: torch.Generator | None = None,
) -> Sampler | Iterable[list[int]]:
    """Batches of indices for a loss, for ``torch.utils.data.DataLoader(batch_sampler=...)``.

    Args:
        labels: of the samples.
        batch_size: samples in a batch; of a class sampler a multiple of `num_items_per_class`.
        loss, sampler: as for :func:`sampler_of`.
        num_items_per_class: of a class sampler, samples of each class in a batch. Default: 4.
        generator: what random numbers are drawn from. Default: torch's.

    Raises:
        ValueError: unknown loss or sampler; `batch_size` does not fit.
    """
    if sampler_of(loss, sampler) == "random":
        return BatchSampler(RandomSampler(labels, generator=generator), batch_size, drop_last=False)
    if num_items_per_class < 1 or batch_size % num_items_per_class:
        raise ValueError(f"batch_size must be a multiple of num_items_per_class={num_items_per_class}, got {batch_size}")
    return __getattr__("ClassSampler")(labels, batch_size, num_items_per_class, generator=generator)
