"""sentence-transformers' losses on embeddings, following sentence-transformers 6.2.

``from fastloss.compat.sentence_transformers import MultipleNegativesRankingLoss``. Arguments, defaults and formulas are that library's,
without its first one, `model`: a loss takes the embeddings that the model gave, in the order of the columns of the data set, and the
labels. Wherever that library has ``compute_loss_from_embeddings(embeddings, labels)``, this is it.

A loss with a second model, a guide or a teacher, takes its embeddings or scores too.

What differs: :class:`ContrastiveLoss`, :class:`OnlineContrastiveLoss` and :class:`TripletLoss` have their distances as names; rows of
:class:`BatchHardTripletLoss` that lack a positive or a negative give 0; `gather_across_devices` is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from .. import functional as F
from ..metric import distances
from ..metric.losses import TripletMarginLoss
from ..pair import normalised

__all__ = [
    "AnglELoss", "BatchAllTripletLoss", "BatchHardSoftMarginTripletLoss", "BatchHardTripletLoss", "BatchSemiHardTripletLoss", "CoSENTLoss",
    "ContrastiveLoss", "CosineSimilarityLoss", "DistillKLDivLoss", "GISTEmbedLoss", "GlobalOrthogonalRegularizationLoss",
    "MarginMSELoss", "MegaBatchMarginLoss", "MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss",
    "OnlineContrastiveLoss", "TripletLoss",
]


def _columns(name: str, embeddings: Sequence[Tensor], least: int, most: int | None = None) -> list[Tensor]:
    found = list(embeddings)
    if len(found) < least or (most is not None and len(found) > most):
        wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: wanted {wanted} tensors of embeddings, got {len(found)}")
    return found


def _similarity(function: str | Callable) -> str:
    """``"cosine"`` or ``"dot"``, from a name or from that library's functions of all pairs."""
    named = getattr(function, "__name__", function)
    known = {"cosine": "cosine", "cos_sim": "cosine", "pytorch_cos_sim": "cosine", "dot": "dot", "dot_score": "dot"}
    if named not in known:
        raise ValueError(f"similarity_fct: wanted 'cosine', 'dot', cos_sim or dot_score, got {named!r}")
    return known[named]


class MultipleNegativesRankingLoss(nn.Module):
    """:func:`fastloss.functional.multiple_negatives_ranking_loss` of queries, their documents and any number of negatives.

    Args:
        scale: an inverse temperature. Default: 20.
        similarity_fct: ``"cosine"``, ``"dot"``, or that library's ``util.cos_sim`` or ``util.dot_score``. Default: ``"cosine"``.
        directions, partition_mode, hardness_mode, hardness_strength: as of the function.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        ValueError: another similarity.
    """

    def __init__(
        self, scale: float = 20.0, similarity_fct: str | Callable = "cosine", directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint", hardness_mode: str | None = None, hardness_strength: float = 0.0, *, backend: str | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.similarity, self.directions = scale, _similarity(similarity_fct), tuple(directions)
        self.partition_mode = partition_mode
        self.hardness_mode, self.hardness_strength, self.backend = hardness_mode, hardness_strength, backend

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The mean loss; labels make no difference."""
        queries, documents, *negatives = _columns(type(self).__name__, embeddings, 2)
        return F.multiple_negatives_ranking_loss(
            queries, documents, negatives or None, self.scale, self.directions, self.partition_mode, self.hardness_mode,
            self.hardness_strength, similarity=self.similarity, backend=self.backend,
        )


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """:class:`MultipleNegativesRankingLoss` in both directions, the mean of the two.

    Args:
        scale: an inverse temperature. Default: 20.
        similarity_fct: as of :class:`MultipleNegativesRankingLoss`.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, scale: float = 20.0, similarity_fct: str | Callable = "cosine", *, backend: str | None = None) -> None:
        super().__init__(scale, similarity_fct, ("query_to_doc", "doc_to_query"), "per_direction", backend=backend)


class MarginMSELoss(nn.Module):
    """:func:`fastloss.functional.margin_mse_loss` of queries, positives and any number of negatives."""

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The mean loss, of the teacher's margins or scores."""
        query, positive, *negatives = _columns("MarginMSELoss", embeddings, 3)
        return F.margin_mse_loss(query, positive, torch.stack(negatives, 1), labels)


class CosineSimilarityLoss(nn.Module):
    """:func:`fastloss.functional.cosine_similarity_loss` of two columns."""

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The mean loss, of similarities."""
        return F.cosine_similarity_loss(*_columns("CosineSimilarityLoss", embeddings, 2, 2), labels.view(-1))


class CoSENTLoss(nn.Module):
    """:func:`fastloss.functional.cosent_loss` of two columns.

    Args:
        scale: Default: 20.
    """

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss, of similarities."""
        return F.cosent_loss(*_columns("CoSENTLoss", embeddings, 2, 2), labels.view(-1), self.scale)


class AnglELoss(CoSENTLoss):
    """:func:`fastloss.functional.angle_loss` of two columns.

    Args:
        scale: Default: 20.
    """

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss, of similarities."""
        return F.angle_loss(*_columns("AnglELoss", embeddings, 2, 2), labels.view(-1), self.scale)


class _OfDistances(nn.Module):
    """What the losses of labelled pairs share."""

    def __init__(self, distance_metric: str, margin: float) -> None:
        super().__init__()
        if distance_metric not in ("cosine", "euclidean", "manhattan"):
            raise ValueError(f"{type(self).__name__}: wanted the distance 'cosine', 'euclidean' or 'manhattan', got {distance_metric!r}")
        self.distance_metric, self.margin = distance_metric, margin

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair of rows."""
        if self.distance_metric == "cosine":
            return 1 - nn.functional.cosine_similarity(x, y)
        return nn.functional.pairwise_distance(x, y, p=2.0 if self.distance_metric == "euclidean" else 1.0)


class ContrastiveLoss(_OfDistances):
    """Half of :func:`fastloss.functional.contrastive_loss`, with any of three distances.

    Args:
        distance_metric: ``"cosine"``, ``"euclidean"`` or ``"manhattan"``. Default: ``"cosine"``.
        margin: Default: 0.5.
        size_average: a mean over the pairs, else their sum. Default: True.
    """

    def __init__(self, distance_metric: str = "cosine", margin: float = 0.5, size_average: bool = True) -> None:
        super().__init__(distance_metric, margin)
        self.size_average = size_average

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss, of labels 1 for pairs that belong together and 0 for others."""
        d, y = self.distance(*_columns("ContrastiveLoss", embeddings, 2, 2)), labels.view(-1)
        rows = 0.5 * (y * d.square() + (1 - y) * (self.margin - d).clamp_min(0).square())
        return rows.mean() if self.size_average else rows.sum()


class OnlineContrastiveLoss(_OfDistances):
    """Contrastive loss of hard pairs: negatives nearer than the farthest positive, positives farther than the nearest negative.

    Args:
        distance_metric: ``"cosine"``, ``"euclidean"`` or ``"manhattan"``. Default: ``"cosine"``.
        margin: Default: 0.5.
    """

    def __init__(self, distance_metric: str = "cosine", margin: float = 0.5) -> None:
        super().__init__(distance_metric, margin)

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The sum of the hard pairs' losses; where there is at most one pair of a kind, the mean of the other kind is the limit."""
        d, y = self.distance(*_columns("OnlineContrastiveLoss", embeddings, 2, 2)), labels.view(-1)
        together, apart = y == 1, y == 0
        fixed = d.detach()

        def mean(mask: Tensor) -> Tensor:
            return torch.where(mask, fixed, 0.0).sum() / mask.sum()

        farthest = torch.where(together.sum() > 1, torch.where(together, fixed, -torch.inf).amax(0), mean(apart))
        nearest = torch.where(apart.sum() > 1, torch.where(apart, fixed, torch.inf).amin(0), mean(together))
        pulled = torch.where(together & (fixed > nearest), d.square(), 0.0)
        pushed = torch.where(apart & (fixed < farthest), (self.margin - d).clamp_min(0).square(), 0.0)
        return pulled.sum() + pushed.sum()


class TripletLoss(_OfDistances):
    """Triplet loss of three columns: anchors, positives, negatives.

    Args:
        distance_metric: ``"cosine"``, ``"euclidean"`` or ``"manhattan"``. Default: ``"euclidean"``.
        triplet_margin: Default: 5.
    """

    def __init__(self, distance_metric: str = "euclidean", triplet_margin: float = 5.0) -> None:
        super().__init__(distance_metric, triplet_margin)

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The mean loss; labels make no difference."""
        return F.triplet_margin_with_distance_loss(
            *_columns("TripletLoss", embeddings, 3, 3), distance_function=self.distance, margin=self.margin
        )


class BatchHardTripletLoss(nn.Module):
    """:func:`fastloss.functional.batch_hard_triplet_loss` of one column and the classes of its rows.

    Args:
        distance_metric: ``"euclidean"`` or ``"cosine"``. Default: ``"euclidean"``.
        margin: Default: 5.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, distance_metric: str = "euclidean", margin: float | None = 5.0, *, backend: str | None = None) -> None:
        super().__init__()
        self.distance_metric, self.margin, self.backend = distance_metric, margin, backend

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The mean loss."""
        (x,) = _columns(type(self).__name__, embeddings, 1, 1)
        return F.batch_hard_triplet_loss(x, labels, self.margin, self.distance_metric, backend=self.backend)


class BatchHardSoftMarginTripletLoss(BatchHardTripletLoss):
    """:class:`BatchHardTripletLoss` with the soft margin ``log(1 + exp(x))``.

    Args:
        distance_metric: ``"euclidean"`` or ``"cosine"``. Default: ``"euclidean"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, distance_metric: str = "euclidean", *, backend: str | None = None) -> None:
        super().__init__(distance_metric, None, backend=backend)


def _metric(name: str, distance_metric: str) -> str:
    if distance_metric not in ("euclidean", "cosine"):
        raise ValueError(f"{name}: wanted the distance 'euclidean' or 'cosine', got {distance_metric!r}")
    return distance_metric


class BatchAllTripletLoss(nn.Module):
    """All triplets of one column and the classes of its rows: the mean over those whose loss is not 0.

    It is :class:`fastloss.metric.losses.TripletMarginLoss`, which enumerates no triplets.

    Args:
        distance_metric: ``"euclidean"`` or ``"cosine"``. Default: ``"euclidean"``.
        margin: Default: 5.
    """

    def __init__(self, distance_metric: str = "euclidean", margin: float = 5.0) -> None:
        super().__init__()
        euclidean = _metric("BatchAllTripletLoss", distance_metric) == "euclidean"
        self.distance_metric, self.margin = distance_metric, margin
        distance = distances.LpDistance(normalize_embeddings=False) if euclidean else distances.CosineSimilarity()
        self.loss = TripletMarginLoss(margin, distance=distance)

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The mean loss; 0 where no triplet has one."""
        (x,) = _columns("BatchAllTripletLoss", embeddings, 1, 1)
        return self.loss(x, labels)


class BatchSemiHardTripletLoss(nn.Module):
    """Each pair of one class with the nearest negative that is farther than it, or else the farthest (Schroff et al. 2015, section 3.2).

    Distances of all pairs take :math:`O(N^2)` memory.

    Args:
        distance_metric: ``"euclidean"`` or ``"cosine"``. Default: ``"euclidean"``.
        margin: Default: 5.
    """

    def __init__(self, distance_metric: str = "euclidean", margin: float = 5.0) -> None:
        super().__init__()
        self.distance_metric, self.margin = _metric("BatchSemiHardTripletLoss", distance_metric), margin

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The mean over the pairs; 0 where there are none."""
        (x,) = _columns("BatchSemiHardTripletLoss", embeddings, 1, 1)
        if self.distance_metric == "euclidean":
            distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            unit = normalised(x)
            distance = 1 - unit @ unit.t()
        together = labels.unsqueeze(1) == labels
        pairs = together & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        negatives, order = torch.where(together, torch.inf, distance.detach()).sort(1)
        count = (~together).sum(1, keepdim=True)
        farther = torch.searchsorted(negatives, distance.detach(), right=True)
        chosen = order.gather(1, torch.minimum(farther, count - 1).clamp_min(0))
        losses = (self.margin + distance - distance.gather(1, chosen)).clamp_min(0)
        pairs = pairs & (count > 0)
        return torch.where(pairs, losses, 0.0).sum() / pairs.sum().clamp_min(1)


class DistillKLDivLoss(nn.Module):
    """:func:`fastloss.functional.distillation_loss` of the scores of a query's documents, and a teacher's scores of them.

    Args:
        similarity_fct: gives the similarity of each pair of rows. Default: the dot product.
        temperature: positive. Default: 1.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(
        self, similarity_fct: Callable[[Tensor, Tensor], Tensor] | None = None, temperature: float = 1.0, *, backend: str | None = None
    ) -> None:
        super().__init__()
        _checks.positive("DistillKLDivLoss", "temperature", temperature)
        self.similarity_fct, self.temperature, self.backend = similarity_fct, temperature, backend

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The mean loss over queries, positives and negatives, and the teacher's scores (B, 1 + negatives)."""
        query, *documents = _columns("DistillKLDivLoss", embeddings, 3)
        similarity = self.similarity_fct or (lambda x, y: (x * y).sum(-1))
        scores = torch.stack([similarity(query, document) for document in documents], 1)
        return F.distillation_loss(scores, labels.to(scores.dtype), self.temperature, backend=self.backend)


class GISTEmbedLoss(nn.Module):
    """In-batch negatives of which a guide drops what it finds nearer than the positive (Solatorio 2024, equation 4).

    Anchors are compared with positives, other anchors and explicit negatives, and positives with other positives; all scores of a row
    are in one softmax. They take :math:`O(N^2)` memory, as the guide's do.

    Args:
        temperature: positive. Default: 0.01.
        margin_strategy: ``"absolute"``, or ``"relative"`` to the guide's score of the positive. Default: ``"absolute"``.
        margin: a negative counts if the guide scores it at most that of the positive less the margin. Default: 0.
        contrast_anchors: compare anchors with each other too. Default: True.
        contrast_positives: compare positives with each other too. Default: True.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(
        self, temperature: float = 0.01, margin_strategy: str = "absolute", margin: float = 0.0, contrast_anchors: bool = True,
        contrast_positives: bool = True, *, backend: str | None = None,
    ) -> None:
        super().__init__()
        _checks.positive("GISTEmbedLoss", "temperature", temperature)
        if margin_strategy not in ("absolute", "relative"):
            raise ValueError(f"GISTEmbedLoss: margin_strategy must be 'absolute' or 'relative', got {margin_strategy!r}")
        self.temperature, self.margin_strategy, self.margin, self.backend = temperature, margin_strategy, margin, backend
        self.contrast_anchors, self.contrast_positives = contrast_anchors, contrast_positives

    def forward(self, embeddings: Sequence[Tensor], guide_embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The mean loss of anchors, positives and any negatives, and the guide's embeddings of the same; labels make no difference."""
        columns = [normalised(x) for x in _columns("GISTEmbedLoss", embeddings, 2)]
        guides = [normalised(x) for x in _columns("GISTEmbedLoss", guide_embeddings, len(columns), len(columns))]
        limit = (guides[0] * guides[1]).sum(1, keepdim=True)
        limit = limit - (self.margin if self.margin_strategy == "absolute" else limit.abs() * self.margin)
        blocks = [(0, 1), *([(0, 0)] if self.contrast_anchors else []), *([(1, 1)] if self.contrast_positives else [])]
        blocks += [(0, negative) for negative in range(2, len(columns))]
        own, scores = torch.eye(len(limit), dtype=torch.bool, device=limit.device), []
        for block in blocks:
            row, column = block
            dropped = guides[row] @ guides[column].t() > limit
            dropped = dropped & ~own if block == (0, 1) else dropped | own if row == column else dropped
            scores.append((columns[row] @ columns[column].t()).masked_fill(dropped, -torch.inf))
        target = torch.arange(len(limit), device=limit.device)
        return F.cross_entropy(torch.cat(scores, 1), target, logit_scale=1 / self.temperature, backend=self.backend)


class GlobalOrthogonalRegularizationLoss(nn.Module):
    """Similarities of different rows of a column should have the mean 0 and the second moment 1 / D (Zhang et al. 2017, equation 6).

    Args:
        similarity_fct: as of :class:`MultipleNegativesRankingLoss`. Default: ``"cosine"``.
        mean_weight: weight of the squared mean; None for none. Default: 1.
        second_moment_weight: weight of what the second moment is above 1 / D; None for none. Default: 1.
        aggregation: ``"mean"`` or ``"sum"`` over the columns. Default: ``"mean"``.

    Raises:
        ValueError: unknown similarity or aggregation.
    """

    def __init__(
        self, similarity_fct: str | Callable = "cosine", mean_weight: float | None = 1.0, second_moment_weight: float | None = 1.0,
        aggregation: str = "mean",
    ) -> None:
        super().__init__()
        self.similarity = _similarity(similarity_fct)
        if aggregation not in ("mean", "sum"):
            raise ValueError(f"GlobalOrthogonalRegularizationLoss: aggregation must be 'mean' or 'sum', got {aggregation!r}")
        self.mean_weight, self.second_moment_weight, self.aggregation = mean_weight, second_moment_weight, aggregation

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of columns (N, D) with N > 1; labels make no difference."""
        unit = normalised if self.similarity == "cosine" else (lambda x: x)
        losses = torch.stack([self._of(unit(x)) for x in _columns("GlobalOrthogonalRegularizationLoss", embeddings, 1)])
        return losses.mean() if self.aggregation == "mean" else losses.sum()

    def _of(self, x: Tensor) -> Tensor:
        count, features = x.shape
        if count < 2:
            raise ValueError(f"GlobalOrthogonalRegularizationLoss: wanted at least 2 rows, got {count}")
        own = torch.eye(count, dtype=torch.bool, device=x.device)
        scores = torch.where(own, 0.0, x @ x.t())
        pairs = count * (count - 1)
        mean, second = scores.sum() / pairs, scores.square().sum() / pairs
        return (self.mean_weight or 0.0) * mean.square() + (self.second_moment_weight or 0.0) * (second - 1 / features).clamp_min(0)


class MegaBatchMarginLoss(nn.Module):
    """Each anchor with its positive and the positive of another that it is most similar to (Wieting and Gimpel 2018, equation 1).

    Args:
        positive_margin: cosine that the positive should reach. Default: 0.8.
        negative_margin: cosine that the negative should not exceed. Default: 0.3.
    """

    def __init__(self, positive_margin: float = 0.8, negative_margin: float = 0.3) -> None:
        super().__init__()
        self.positive_margin, self.negative_margin = positive_margin, negative_margin

    def forward(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The mean loss of anchors and positives (N, D) with N > 1; labels make no difference."""
        anchors, positives = (normalised(x) for x in _columns("MegaBatchMarginLoss", embeddings, 2, 2))
        own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        hardest = (anchors.detach() @ positives.detach().t()).masked_fill(own, -torch.inf).argmax(1)
        near, far = (anchors * positives).sum(1), (anchors * positives[hardest]).sum(1)
        return ((self.positive_margin - near).clamp_min(0) + (far - self.negative_margin).clamp_min(0)).mean()
