"""Losses over triplets of an anchor, a positive and a negative row, and over thresholds of pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._checks import labels_in_range
from ...pair import Scores, Term, pair_statistics, softplus
from ...triplets import triplet_sums
from ..blocks import block_sums
from ..distances import BaseDistance, CosineSimilarity, LpDistance
from ..pairing import PairScores, by_labels, listed_pairs, listed_scores, listed_triplets, without_lists
from ..reducers import AvgNonZeroReducer, BaseReducer, DivisorReducer, MeanReducer, SumReducer, reducer_of
from ..utils import common_functions as c_f
from .base import BaseMetricLossFunction, OverGroupMixin


_PLAIN = (MeanReducer, SumReducer, DivisorReducer)  # that do not look at single losses


def _all_triplets(loss) -> None:
    """Raise unless a loss over a group takes all triplets."""
    if loss.triplets_per_anchor != "all":
        name, number = type(loss).__name__, loss.triplets_per_anchor
        raise NotImplementedError(f"{name}: with group all triplets count, got triplets_per_anchor={number}")


class TripletMarginLoss(OverGroupMixin, BaseMetricLossFunction):
    """``relu(margin(S_ap, S_an) + margin)`` of triplets (Weinberger and Saul 2009, Schroff et al. 2015).

    All triplets of labels are not listed: the negatives of each row are sorted, and sums of the sorted scores give the sum, the number
    above 0 and the gradient for every positive, exactly, in O(N M log M) time and O(N) memory; on the CPU a few positives are compared
    with all negatives instead. With ``swap``, ``smooth_loss``, a number of
    triplets an anchor, listed ones, or a reducer that needs each of them, they are listed. With a reference set ``swap`` compares reference
    rows with one another, where pytorch-metric-learning takes embeddings of the same index. Distance: Lp. Reducer: AvgNonZero.

    Args:
        margin: added to the difference.
        swap: whether the nearer of anchor and positive to the negative counts as its anchor.
        smooth_loss: softplus instead of relu.
        triplets_per_anchor: "all", or how many are drawn at random where there is no indices_tuple.
    """

    takes_copies = True

    def __init__(
        self, margin: float = 0.05, swap: bool = False, smooth_loss: bool = False, triplets_per_anchor: int | str = "all", **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.swap = swap
        self.smooth_loss = smooth_loss
        self.triplets_per_anchor = triplets_per_anchor
        self.add_to_recordable_attributes(list_of_names=["margin"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        indices_tuple, ref_emb, ref_labels = self.as_references(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        plain = not self.swap and not self.smooth_loss and self.triplets_per_anchor == "all"
        if plain:
            indices_tuple = without_lists(indices_tuple, labels, ref_labels, triplets=True)
        if plain and by_labels(labels, indices_tuple) and self.takes_sums():
            return self._all(PairScores(type(self).__name__, self.distance, embeddings, ref_emb, labels, ref_labels, indices_tuple))
        a, p, n = listed_triplets(indices_tuple, labels, ref_labels, self.triplets_per_anchor)
        if len(a) == 0 and self._over is None:
            return self.zero_losses()
        ap, an = listed_scores(self.distance, embeddings, ref_emb, (a, p), (a, n))
        if self.swap:
            (pn,) = listed_scores(self.distance, ref_emb, ref_emb, (p, n))
            an = self.distance.smallest_dist(an, pn)
        violation = self.distance.margin(ap, an) + self.margin
        losses = softplus(violation) if self.smooth_loss else torch.relu(violation)
        return {"loss": {"losses": self.one_by_one(losses), "indices": (a, p, n), "reduction_type": "triplet"}}

    def alike(self, labels: Tensor) -> object:
        _all_triplets(self)

    def _all(self, pairs: PairScores) -> dict:
        labels, ref_labels = pairs.labels
        ref_labels = labels if ref_labels is None else ref_labels

        def formula(matrix: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
            skip = None if pairs.skip is None else start + pairs.skip
            return triplet_sums(pairs.name, pairs.sign * matrix, labels[start:end], ref_labels, skip, self.margin)

        if pairs.scores is None:
            total, above = formula(pairs.matrix, 0, pairs.rows)
        else:
            total, above = block_sums(pairs.name, formula, pairs.scores)
        positive, negative = pairs.counts()
        sums = self.sums(total.to(pairs.dtype), (positive * negative).sum(), above)
        return {"loss": {"losses": sums, "indices": None, "reduction_type": "triplet"}}

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()


class MarginLoss(OverGroupMixin, BaseMetricLossFunction):
    """``relu(margin(S_ap, beta) + margin) + relu(margin(beta, S_an) + margin)`` of triplets, over the number of the two parts that are
    above 0 (Wu et al. 2017), named margin_loss, and of a beta that is learned ``nu beta`` as beta_reg_loss, of one a class for each
    triplet.

    All triplets of labels are pairs, each weighted by the number of the anchor's pairs of the other kind. Distance: Lp. Reducer: Divisor.

    Args:
        margin: half the width between positives and negatives.
        nu: weight of beta.
        beta: where it starts.
        triplets_per_anchor: "all", or how many are drawn at random where there is no indices_tuple.
        learn_beta: whether beta is a parameter.
        num_classes: for a beta of each class; None for one.
    """

    takes_copies = True

    def __init__(
        self, margin: float = 0.2, nu: float = 0, beta: float = 1.2, triplets_per_anchor: int | str = "all", learn_beta: bool = False,
        num_classes: int | None = None, **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.nu = nu
        self.learn_beta = learn_beta
        self.triplets_per_anchor = triplets_per_anchor
        start = torch.full((1 if num_classes is None else num_classes,), float(beta))
        self.beta = torch.nn.Parameter(start) if learn_beta else start
        self.add_to_recordable_attributes(list_of_names=["margin", "nu", "beta"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        indices_tuple, ref_emb, ref_labels = self.as_references(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        beta = self.beta.to(device=embeddings.device, dtype=torch.promote_types(embeddings.dtype, torch.float32))
        reducer = reducer_of(self.reducer, "margin_loss")
        usual = type(reducer) in _PLAIN and type(reducer_of(self.reducer, "beta_reg_loss")) in _PLAIN
        if self.triplets_per_anchor == "all":
            indices_tuple = without_lists(indices_tuple, labels, ref_labels, triplets=True)
        if usual and by_labels(labels, indices_tuple) and self.triplets_per_anchor == "all":
            pairs = PairScores(type(self).__name__, self.distance, embeddings, ref_emb, labels, ref_labels, indices_tuple)
            return self._all(pairs, beta, labels)
        a, p, n = listed_triplets(indices_tuple, labels, ref_labels, self.triplets_per_anchor)
        if len(a) == 0 and self._over is None:
            return self.zero_losses()
        ap, an = listed_scores(self.distance, embeddings, ref_emb, (a, p), (a, n))
        of_anchor = self._of_rows(beta, labels, a)
        pos = torch.relu(self.distance.margin(ap, of_anchor) + self.margin)
        neg = torch.relu(self.distance.margin(of_anchor, an) + self.margin)
        divisor = (pos > 0).sum() + (neg > 0).sum()
        losses = self.one_by_one(pos + neg, divisor)
        found = {"losses": losses, "indices": (a, p, n), "reduction_type": "triplet", "divisor": divisor}
        if self.learn_beta and len(beta) > 1:
            of_beta = self.one_by_one(self.nu * of_anchor, divisor)
            regular = {"losses": of_beta, "indices": a, "reduction_type": "element", "divisor": divisor}
        else:
            regular = self._of_beta(torch.where(self.total(torch.tensor(len(a), device=beta.device)) > 0, beta, 0.0))
        return {"margin_loss": found, "beta_reg_loss": regular}

    def _of_rows(self, beta: Tensor, labels: Tensor | None, rows: Tensor) -> Tensor:
        """The beta of each of some rows; of several processes its gradient is that of the rows of all."""
        beta = beta if self._over is None else self._over.shared(beta)
        return beta.expand(len(rows)) if len(beta) == 1 else beta[labels[rows]]

    def alike(self, labels: Tensor) -> object:
        _all_triplets(self)
        if len(self.beta) > 1:
            labels_in_range(type(self).__name__, labels, len(self.beta), None)
            if self.learn_beta and type(reducer_of(self.reducer, "beta_reg_loss")) not in _PLAIN:
                raise NotImplementedError("MarginLoss: with group beta_reg_loss of a beta for each class is averaged, summed or divided")
        return len(self.beta)

    def _of_beta(self, beta: Tensor) -> dict:
        return self.zero_loss() | ({"losses": self.nu * beta} if self.learn_beta else {})

    def _all(self, pairs: PairScores, beta: Tensor, labels: Tensor) -> dict:
        beta = beta.to(pairs.dtype)
        of_row = self._of_rows(beta, labels, torch.arange(pairs.rows, device=beta.device))
        pos, neg = pairs.statistics(
            Term("sum", "positive", "relu", (pairs.sign, self.margin), row=-pairs.sign * of_row),
            Term("sum", "negative", "relu", (-pairs.sign, self.margin), row=pairs.sign * of_row),
        )
        positive, negative = pairs.counts()
        total = (pos.value * negative + neg.value * positive).sum()
        divisor = (pos.count.long() * negative + neg.count.long() * positive).sum()
        number = (positive * negative).sum()
        found = {"losses": self.sums(total, number, None, divisor), "indices": None, "reduction_type": "triplet"}
        weight = positive * negative
        if not self.learn_beta or len(beta) > 1:
            regular = self.zero_loss()
            if self.learn_beta:
                regular["losses"] = self.sums(self.nu * (weight * of_row).sum(), number, None, divisor)
        else:
            regular = self._of_beta(torch.where(self.total(number) > 0, beta, 0.0))
        return {"margin_loss": found, "beta_reg_loss": regular}

    def get_default_reducer(self) -> BaseReducer:
        return DivisorReducer()

    def _sub_loss_names(self) -> list[str]:
        return ["margin_loss", "beta_reg_loss"]


class AngularLoss(OverGroupMixin, BaseMetricLossFunction):
    """``log(1 + sum_n exp(4 tan(alpha)^2 (x_a + x_p) . x_n - 2 (1 + tan(alpha)^2) x_a . x_p))`` of each positive pair, n all rows of
    another label (Wang et al. 2017, equation 8).

    All rows are normalised, as in the paper; pytorch-metric-learning leaves the negatives as they are. An indices_tuple says which positive
    pairs count, the negatives come from labels. Distance: Lp, normalised, p = 2 and power 1, only to normalise. Reducer: Mean.

    Args:
        alpha: in degrees.
    """

    takes_copies = True

    def __init__(self, alpha: float = 40, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, p=2, power=1, normalize_embeddings=True)
        self.angle = math.radians(alpha)
        self.add_to_recordable_attributes(list_of_names=["angle"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_required(labels)
        indices_tuple, ref_emb, ref_labels = self.as_references(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        a, p, other, _ = listed_pairs(indices_tuple, labels, ref_labels)
        if self._over is None and (len(a) == 0 or len(other) == 0):
            return self.zero_losses()
        ref_labels = labels if ref_labels is None else ref_labels
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        rows = self.distance.normalize(embeddings.to(wide))
        ref = rows if ref_emb is embeddings else self.distance.normalize(ref_emb.to(wide))
        anchors, positives = rows[a], ref[p]
        tangent = math.tan(self.angle) ** 2
        both = Scores(anchors + positives, ref, scale=4 * tangent)
        (against,) = pair_statistics(type(self).__name__, both, [Term("lse", "negative")], labels=(labels[a], ref_labels))
        losses = softplus(against.value - 2 * (1 + tangent) * (anchors * positives).sum(1))
        return {"loss": {"losses": self.one_by_one(losses), "indices": (a, p), "reduction_type": "pos_pair"}}


class ThresholdConsistentMarginLoss(OverGroupMixin, BaseMetricLossFunction):
    """``lambda_plus mean(margin_plus - cos)`` over positive pairs below margin_plus, and ``lambda_minus mean(cos - margin_minus)`` over
    negative pairs above margin_minus; no pairs count 0 (Zhang et al. 2024, equation 4).

    Pairs with a reference set compare with its rows; pytorch-metric-learning takes embeddings of the same index. Distance: Cosine, the only
    one allowed.
    """

    def __init__(
        self, lambda_plus: float = 1.0, lambda_minus: float = 1.0, margin_plus: float = 0.9, margin_minus: float = 0.5, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.lambda_plus = lambda_plus
        self.lambda_minus = lambda_minus
        self.margin_plus = margin_plus
        self.margin_minus = margin_minus
        self.add_to_recordable_attributes(list_of_names=["lambda_plus", "lambda_minus", "margin_plus", "margin_minus"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        indices_tuple = without_lists(indices_tuple, labels, ref_labels)
        if by_labels(labels, indices_tuple):
            pairs = PairScores(type(self).__name__, self.distance, embeddings, ref_emb, labels, ref_labels, over=self._over)
            pos, neg = pairs.statistics(
                Term("sum", "positive", "relu", (-1.0, self.margin_plus)), Term("sum", "negative", "relu", (1.0, -self.margin_minus))
            )
            sums = [(self.total(found.value.sum()), self.total(found.count.sum())) for found in (pos, neg)]
        else:
            a1, p, a2, n = listed_pairs(indices_tuple, labels, ref_labels)
            pos, neg = listed_scores(self.distance, embeddings, ref_emb, (a1, p), (a2, n))
            sums = [(torch.relu(x).sum(), (x > 0).sum()) for x in (self.margin_plus - pos, neg - self.margin_minus)]
        losses = sum(weight * total / count.clamp(min=1) for weight, (total, count) in zip((self.lambda_plus, self.lambda_minus), sums))
        return {"loss": {"losses": losses, "indices": None, "reduction_type": "already_reduced"}}

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()
