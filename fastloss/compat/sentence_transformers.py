"""sentence-transformers' losses on embeddings, following sentence-transformers 6.2.

``from fastloss.compat.sentence_transformers import MultipleNegativesRankingLoss``. Arguments, defaults and formulas are that library's,
without its first one, `model`: a loss takes the embeddings that the model gave, in the order of the columns of the data set, and the
labels. Wherever that library has ``compute_loss_from_embeddings(embeddings, labels)``, this is it.

What differs: :class:`ContrastiveLoss`, :class:`OnlineContrastiveLoss` and :class:`TripletLoss` have their distances as names; rows of
:class:`BatchHardTripletLoss` that lack a positive or a negative give 0; `gather_across_devices` is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import functional as F

__all__ = [
    "AnglELoss", "BatchHardSoftMarginTripletLoss", "BatchHardTripletLoss", "CoSENTLoss", "ContrastiveLoss", "CosineSimilarityLoss",
    "MarginMSELoss", "MultipleNegativesRankingLoss", "MultipleNegativesSymmetricRankingLoss", "OnlineContrastiveLoss", "TripletLoss",
]


def _columns(name: str, embeddings: Sequence[Tensor], least: int, most: int | None = None) -> list[Tensor]:
    found = list(embeddings)
    if len(found) < least or (most is not None and len(found) > most):
        wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: wanted {wanted} tensors of embeddings, got {len(found)}")
    return found


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
        named = getattr(similarity_fct, "__name__", similarity_fct)
        known = {"cosine": "cosine", "cos_sim": "cosine", "pytorch_cos_sim": "cosine", "dot": "dot", "dot_score": "dot"}
        if named not in known:
            raise ValueError(f"similarity_fct: wanted 'cosine', 'dot', cos_sim or dot_score, got {named!r}")
        self.scale, self.similarity, self.directions, self.partition_mode = scale, known[named], tuple(directions), partition_mode
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
