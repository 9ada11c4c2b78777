"""What losses over pairs have in common: how labels or indices become scores, and what becomes of these."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pairing import PairScores, by_labels, listed_pairs, listed_scores, without_lists
from ..utils import common_functions as c_f
from .base import BaseMetricLossFunction, OverGroupMixin


class GenericPairLoss(BaseMetricLossFunction):
    """The base of losses over pairs. A subclass has ``_compute_loss``, which gives the dictionary of losses.

    With ``mat_based_loss`` it is called as ``_compute_loss(mat, pos_mask, neg_mask)`` with (N, M) matrices of scores and of 0 and 1, else
    as ``_compute_loss(pos_pair, neg_pair, indices_tuple)`` with the scores of the listed pairs. If there is no list with more than one
    entry, the loss is 0.

    Args:
        mat_based_loss: which of the two.

    Raises:
        ValueError: neither labels nor indices.
    """

    takes_copies = True

    def __init__(self, mat_based_loss: bool, **kwargs) -> None:
        super().__init__(**kwargs)
        self.mat_based = mat_based_loss

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        pairs = listed_pairs(indices_tuple, labels, ref_labels)
        if all(len(x) <= 1 for x in pairs):
            return self.zero_losses()
        a1, p, a2, n = pairs
        if not self.mat_based:
            return self._compute_loss(*listed_scores(self.distance, embeddings, ref_emb, (a1, p), (a2, n)), pairs)
        mat = self.distance(embeddings, ref_emb)
        pos_mask, neg_mask = torch.zeros_like(mat), torch.zeros_like(mat)
        pos_mask[a1, p] = 1
        neg_mask[a2, n] = 1
        return self._compute_loss(mat, pos_mask, neg_mask)

    def _compute_loss(self, *args) -> dict:
        raise NotImplementedError(f"{type(self).__name__} has no _compute_loss")

    @property
    def sign(self) -> float:
        """1 for distances, -1 for similarities: the margin of x over y is ``sign * (x - y)``."""
        return -1.0 if self.distance.is_inverted else 1.0


class StatisticLoss(OverGroupMixin, GenericPairLoss):
    """The base of losses over pairs from statistics of the pair engine, whose blocks go round a ring of several processes."""

    def pair_scores(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> PairScores:
        return PairScores(type(self).__name__, self.distance, embeddings, ref_emb, labels, ref_labels, indices_tuple, self._over)


class RowLoss(StatisticLoss):
    """A loss for each row, from statistics of its pairs: ``row_losses(pairs)``. A pair that is listed more than once counts once."""

    def __init__(self, **kwargs) -> None:
        super().__init__(mat_based_loss=True, **kwargs)

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        if len(embeddings) == 0 and self._over is None:
            return self.zero_losses()
        indices_tuple = without_lists(indices_tuple, labels, ref_labels)
        pairs = self.pair_scores(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        positive, negative = pairs.counts()
        enough = (pairs.sum(positive) > 1) | (pairs.sum(negative) > 1)
        return self.elements(torch.where(enough, self.row_losses(pairs, positive, negative), 0.0), least=1)

    def row_losses(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> Tensor:
        """(N,), of rows that have as many positive and negative pairs."""
        raise NotImplementedError(f"{type(self).__name__} has no row_losses")


class PairLoss(StatisticLoss):
    """Losses of pairs: ``pair_sums(pairs)`` from the engine, and ``_compute_loss`` of listed pairs.

    From labels, for the usual reducers, nothing is listed. Pairs that are listed more than once count as often.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(mat_based_loss=False, **kwargs)

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        indices_tuple = without_lists(indices_tuple, labels, ref_labels)
        if not (by_labels(labels, indices_tuple) and self.takes_sums()):
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        pairs = self.pair_scores(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        positive, negative = pairs.counts()
        enough = (pairs.sum(positive) > 1) | (pairs.sum(negative) > 1)
        found = {}
        for name, (total, count, above) in self.pair_sums(pairs, positive, negative).items():
            sums = self.sums(torch.where(enough, total, 0.0), count, above * enough)
            found[name] = {"losses": sums, "indices": None, "reduction_type": "neg_pair" if name == "neg_loss" else "pos_pair"}
        return found

    def pair_sums(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By name the sum of the losses, their number, and the number of those above 0."""
        raise NotImplementedError(f"{type(self).__name__} has no pair_sums")

    def pos_losses(self, losses: Tensor, pairs, name: str = "loss") -> dict[str, dict]:
        """One loss for each positive pair."""
        return {name: {"losses": losses, "indices": tuple(pairs[:2]), "reduction_type": "pos_pair"} if len(losses) else self.zero_loss()}

    def neg_losses(self, losses: Tensor, pairs, name: str) -> dict[str, dict]:
        """One loss for each negative pair."""
        return {name: {"losses": losses, "indices": tuple(pairs[2:]), "reduction_type": "neg_pair"} if len(losses) else self.zero_loss()}
