"""Losses over positive and negative pairs. S_ij is the distance's value; a margin of u over v is u - v for distances, v - u for
similarities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...pair import Term, softplus
from ..distances import BaseDistance, CosineSimilarity, LpDistance, SNRDistance
from ..pairing import PairScores, by_labels, listed_lse, listed_pairs
from ..reducers import AvgNonZeroReducer, BaseReducer
from ..utils import common_functions as c_f
from .generic import PairLoss, RowLoss


class ContrastiveLoss(PairLoss):
    """``relu(margin(S_ij, pos_margin))`` of positive pairs and ``relu(margin(neg_margin, S_ij))`` of negative ones, named pos_loss and
    neg_loss.

    Hadsell et al. 2006, without squares. Distance: Lp. Reducer: AvgNonZero, the mean of each over the losses above 0.

    Args:
        pos_margin: above which distance positive pairs cost; of similarities, below.
        neg_margin: below which distance negative pairs cost; of similarities, above. The defaults are for distances.
    """

    def __init__(self, pos_margin: float = 0, neg_margin: float = 1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.add_to_recordable_attributes(list_of_names=["pos_margin", "neg_margin"])

    def pair_sums(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> dict:
        pos, neg = pairs.statistics(
            Term("sum", "positive", "relu", (self.sign, -self.sign * self.pos_margin), row=self.row_shift(pairs)),
            Term("sum", "negative", "relu", (-self.sign, self.sign * self.neg_margin), row=self.row_shift(pairs)),
        )
        return {
            name: (found.value.sum(), number.sum(), found.count.sum())
            for name, found, number in (("pos_loss", pos, positive), ("neg_loss", neg, negative))
        }

    def row_shift(self, pairs: PairScores) -> Tensor | None:
        """What is added inside the losses of a row."""
        return None

    def _compute_loss(self, pos_pair: Tensor, neg_pair: Tensor, indices_tuple) -> dict:
        pos = torch.relu(self.distance.margin(pos_pair, self.pos_margin))
        neg = torch.relu(self.distance.margin(self.neg_margin, neg_pair))
        return self.pos_losses(pos, indices_tuple, "pos_loss") | self.neg_losses(neg, indices_tuple, "neg_loss")

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]


class SignalToNoiseRatioContrastiveLoss(ContrastiveLoss):
    """:class:`ContrastiveLoss` of :class:`~fastloss.metric.distances.SNRDistance`, the only one allowed (Yuan et al. 2019).

    Pairs whose anchor has no variance are left out; in pytorch-metric-learning they are NaN, which its reducer leaves out, or infinite.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, SNRDistance)

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        if not (by_labels(labels, indices_tuple) and self.takes_sums()):
            a1, p, a2, n = listed_pairs(indices_tuple, labels, ref_labels)
            varies = (embeddings != embeddings[:, :1]).any(1)
            indices_tuple = a1[varies[a1]], p[varies[a1]], a2[varies[a2]], n[varies[a2]]
        return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def row_shift(self, pairs: PairScores) -> Tensor | None:
        if pairs.scores is None:
            return None
        inverse = pairs.scores.a[:, -1].detach()  # of the variance, 0 of none
        return torch.where(inverse > 0, torch.zeros_like(inverse), -torch.inf)

    def get_default_distance(self) -> BaseDistance:
        return SNRDistance()


class IntraPairVarianceLoss(PairLoss):
    """``relu((1 - pos_eps) mean - S)^2`` of positive pairs and ``relu(S - (1 + neg_eps) mean)^2`` of negative ones, each with its own mean,
    which has a gradient too; of distances ``relu(S - (1 + pos_eps) mean)^2`` and ``relu((1 - neg_eps) mean - S)^2`` (Yu and Tao 2019).

    Named pos_loss and neg_loss. Distance: Cosine. Reducer: Mean.
    """

    def __init__(self, pos_eps: float = 0.01, neg_eps: float = 0.01, **kwargs) -> None:
        super().__init__(**kwargs)
        self.pos_eps = pos_eps
        self.neg_eps = neg_eps
        self.add_to_recordable_attributes(list_of_names=["pos_eps", "neg_eps"])

    def pair_sums(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> dict:
        count = {"positive": positive.sum(), "negative": negative.sum()}
        plain = pairs.statistics(Term("sum", "positive"), Term("sum", "negative"))
        means = [pairs.sum(found.value) / pairs.sum(count[mask]).clamp(min=1) for found, mask in zip(plain, count)]
        pos, neg = pairs.statistics(
            Term("sum", "positive", "square", (self.sign,), row=pairs.constant(-self.sign * self._factors()[0] * means[0])),
            Term("sum", "negative", "square", (-self.sign,), row=pairs.constant(self.sign * self._factors()[1] * means[1])),
        )
        return {
            "pos_loss": (pos.value.sum(), count["positive"], pos.count.sum()),
            "neg_loss": (neg.value.sum(), count["negative"], neg.count.sum()),
        }

    def _factors(self) -> tuple[float, float]:
        return 1 + self.sign * self.pos_eps, 1 - self.sign * self.neg_eps

    def _compute_loss(self, pos_pair: Tensor, neg_pair: Tensor, indices_tuple) -> dict:
        means = [x.sum() / max(len(x), 1) for x in (pos_pair, neg_pair)]
        pos = torch.relu(self.sign * (pos_pair - self._factors()[0] * means[0])).square()
        neg = torch.relu(self.sign * (self._factors()[1] * means[1] - neg_pair)).square()
        return self.pos_losses(pos, indices_tuple, "pos_loss") | self.neg_losses(neg, indices_tuple, "neg_loss")

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]


class _AnchorLoss(PairLoss):
    """A loss of each positive pair against the log-sum-exp of its anchor's negatives; 0 unless there are pairs of both kinds."""

    def pair_sums(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> dict:
        some = (pairs.sum(positive) > 0) & (pairs.sum(negative) > 0)
        total, above = self.anchor_sums(pairs)
        return {"loss": (torch.where(some, total, 0.0), positive.sum(), above * some)}

    def anchor_sums(self, pairs: PairScores) -> tuple[Tensor, Tensor]:
        """The sum over positive pairs, and how many are above 0."""
        raise NotImplementedError

    def _compute_loss(self, pos_pair: Tensor, neg_pair: Tensor, indices_tuple) -> dict:
        if not len(pos_pair) or not len(neg_pair):
            return self.zero_losses()
        return self.pos_losses(self.listed_losses(pos_pair, neg_pair, indices_tuple), indices_tuple)

    def listed_losses(self, pos_pair: Tensor, neg_pair: Tensor, indices_tuple) -> Tensor:
        """One for each positive pair."""
        raise NotImplementedError


def _rows_of(indices_tuple) -> int:
    """More than any index."""
    return int(max(x.max() for x in indices_tuple)) + 1


class NTXentLoss(_AnchorLoss):
    """``-log(exp(s_ap) / (exp(s_ap) + sum_n exp(s_an)))`` of each positive pair, s = S / temperature, n the anchor's negatives (Sohn 2016,
    Chen et al. 2020, with labels): ``softplus(lse_n s_an - s_ap)``, of rows of log-sum-exps instead of positives times negatives.

    As in pytorch-metric-learning a loss never exceeds ``-log(tiny)``, 87.3 in float32, from where its gradient is 0; here by that of the
    dtype that sums are kept in, also for float16. Distance: Cosine; of distances s is negative. Reducer: Mean.

    Args:
        temperature: divides the scores.
    """

    def __init__(self, temperature: float = 0.07, **kwargs) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.add_to_recordable_attributes(list_of_names=["temperature"])

    def anchor_sums(self, pairs: PairScores) -> tuple[Tensor, Tensor]:
        scale, most = -self.sign / self.temperature, -math.log(torch.finfo(pairs.dtype).tiny)
        (against,) = pairs.statistics(Term("lse", "negative", "linear", (scale,)))
        each, excess = pairs.statistics(
            Term("sum", "positive", "softplus", (-scale,), row=against.value),
            Term("sum", "positive", "relu", (-scale, -most), row=against.value),
        )
        return each.value.sum() - excess.value.sum(), torch.where(against.count > 0, each.count, 0).sum()

    def listed_losses(self, pos_pair: Tensor, neg_pair: Tensor, indices_tuple) -> Tensor:
        scale = -self.sign / self.temperature
        against = listed_lse(scale * neg_pair, indices_tuple[2], _rows_of(indices_tuple))[indices_tuple[0]]
        return softplus(against - scale * pos_pair).clamp(max=-math.log(torch.finfo(pos_pair.dtype).tiny))

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class TupletMarginLoss(_AnchorLoss):
    """``log(1 + sum_n exp(scale (S_an - cos(theta_ap - margin))))`` of each positive pair, theta its angle (Yu and Tao 2019).

    cos(theta - m) is computed as S cos(m) + sqrt(1 - S^2) sin(m), with the angle held at parallel rows, where pytorch-metric-learning gives
    NaN. Distance: Cosine, the only one allowed. Reducer: Mean.

    Args:
        margin: in degrees.
        scale: of the scores.
    """

    def __init__(self, margin: float = 5.73, scale: float = 64, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.margin = math.radians(margin)
        self.scale = scale
        self.add_to_recordable_attributes(list_of_names=["margin", "scale"])

    def anchor_sums(self, pairs: PairScores) -> tuple[Tensor, Tensor]:
        (against,) = pairs.statistics(Term("lse", "negative", "linear", (self.scale,)))
        constants = self.scale, 0.0, math.cos(self.margin), math.sin(self.margin)
        (each,) = pairs.statistics(Term("sum", "positive", "tuplet", constants, row=against.value))
        return each.value.sum(), torch.where(against.count > 0, each.count, 0).sum()

    def listed_losses(self, pos_pair: Tensor, neg_pair: Tensor, indices_tuple) -> Tensor:
        against = listed_lse(self.scale * neg_pair, indices_tuple[2], _rows_of(indices_tuple))[indices_tuple[0]]
        inside = pos_pair.abs() < 1
        safe = torch.where(inside, pos_pair, 0.0)
        turned = math.cos(self.margin) * safe + math.sin(self.margin) * torch.sqrt((1 - safe) * (1 + safe))
        return softplus(against - self.scale * torch.where(inside, turned, torch.sign(pos_pair) * math.cos(self.margin)))

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class LiftedStructureLoss(_AnchorLoss):
    """``relu(lse_K margin(neg_margin, S_bn) + margin(S_ap, pos_margin))^2 / 2`` of each positive pair, K the negative pairs (b, n) of both
    ends (Oh Song et al. 2016).

    The negatives of an end that is a reference row are the pairs with it; pytorch-metric-learning takes the pairs of the embedding that
    happens to have its index. Distance: Lp. Reducer: Mean.
    """

    def __init__(self, neg_margin: float = 1, pos_margin: float = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin
        self.add_to_recordable_attributes(list_of_names=["pos_margin", "neg_margin"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        self._own = ref_emb is embeddings
        return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def anchor_sums(self, pairs: PairScores) -> tuple[Tensor, Tensor]:
        constants = -self.sign, self.sign * self.neg_margin
        sides = ("row",) if pairs.own else ("row", "column")
        found = pairs.statistics(*(Term("lse", "negative", "linear", constants, side) for side in sides))
        constants = self.sign, -self.sign * self.pos_margin
        (each,) = pairs.statistics(
            Term("sum", "positive", "lifted", constants, row=found[0].value, column=found[-1].value)
        )
        return each.value.sum(), each.count.sum()

    def listed_losses(self, pos_pair: Tensor, neg_pair: Tensor, indices_tuple) -> Tensor:
        a1, p, a2, n = indices_tuple
        away, rows = self.distance.margin(self.neg_margin, neg_pair), _rows_of(indices_tuple)
        first = listed_lse(away, a2, rows)
        second = first if self._own else listed_lse(away, n, rows)
        both = torch.stack([first[a1], second[p]])
        empty = (both == -torch.inf).all(0)
        against = torch.where(empty, 0.0, torch.logsumexp(torch.where(empty, 0.0, both), 0))
        return 0.5 * torch.relu(against + self.distance.margin(pos_pair, self.pos_margin)).square()

    def get_default_distance(self) -> BaseDistance:
        return LpDistance()


def _finite(value: Tensor) -> Tensor:
    """A log-sum-exp, 0 where there was nothing."""
    return torch.where(value == -torch.inf, 0.0, value)


class GeneralizedLiftedStructureLoss(RowLoss):
    """``relu(lse_p margin(S_ip, pos_margin) + lse_n margin(neg_margin, S_in))`` of each row; a side without pairs adds 0 (Hermans et al.
    2017).

    Distance: Lp. Reducer: Mean over all rows.
    """

    def __init__(self, neg_margin: float = 1, pos_margin: float = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin
        self.add_to_recordable_attributes(list_of_names=["pos_margin", "neg_margin"])

    def row_losses(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> Tensor:
        pos, neg = pairs.statistics(
            Term("lse", "positive", "linear", (self.sign, -self.sign * self.pos_margin)),
            Term("lse", "negative", "linear", (-self.sign, self.sign * self.neg_margin)),
        )
        return torch.relu(_finite(pos.value) + _finite(neg.value))


class SupConLoss(RowLoss):
    """``-1/|P(i)| sum_p (s_ip - lse_j s_ij)`` of each row with positives P(i), j all its pairs, s = S / temperature (Khosla et al. 2020,
    equation 2); 0 without positives, and for all rows if there are no positive or no negative pairs.

    Distance: Cosine; of distances s is negative. Reducer: AvgNonZero.

    Args:
        temperature: divides the scores.
    """

    def __init__(self, temperature: float = 0.1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.add_to_recordable_attributes(list_of_names=["temperature"])

    def row_losses(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> Tensor:
        constants = (-self.sign / self.temperature,)
        every, pos = pairs.statistics(Term("lse", "all", "linear", constants), Term("sum", "positive", "linear", constants))
        kept = (positive > 0) & (pairs.sum(positive) > 0) & (pairs.sum(negative) > 0)
        return torch.where(kept, _finite(every.value) - pos.value / positive.clamp(min=1), 0.0)

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class MultiSimilarityLoss(RowLoss):
    """``log(1 + sum_p exp(alpha (base - S_ip))) / alpha + log(1 + sum_n exp(beta (S_in - base))) / beta`` of each row, the signs turned for
    distances (Wang et al. 2019, equation 15).

    Distance: Cosine. Reducer: Mean over all rows.
    """

    def __init__(self, alpha: float = 2, beta: float = 50, base: float = 0.5, **kwargs) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.add_to_recordable_attributes(list_of_names=["alpha", "beta", "base"])

    def row_losses(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> Tensor:
        near, far = self.sign * self.alpha, -self.sign * self.beta
        pos, neg = pairs.statistics(
            Term("lse", "positive", "linear", (near, -near * self.base)), Term("lse", "negative", "linear", (far, -far * self.base))
        )
        return softplus(pos.value) / self.alpha + softplus(neg.value) / self.beta

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class CircleLoss(RowLoss):
    """``softplus(lse_p(-gamma a_p (S_ip - 1 + m)) + lse_n(gamma a_n (S_in - m)))`` of each row, with weights ``a_p = relu(1 + m - S_ip)``
    and ``a_n = relu(S_in + m)`` that have no gradient (Sun et al. 2020, equations 6 to 8); 0 for rows without positives or negatives.

    Distance: Cosine, the only one allowed. Reducer: AvgNonZero.

    Args:
        m: relaxation.
        gamma: scale.
    """

    def __init__(self, m: float = 0.4, gamma: float = 80, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.m = m
        self.gamma = gamma
        self.add_to_recordable_attributes(list_of_names=["m", "gamma"])

    def row_losses(self, pairs: PairScores, positive: Tensor, negative: Tensor) -> Tensor:
        pos, neg = pairs.statistics(
            Term("lse", "positive", "circle", (-1.0, 1 + self.m, -self.gamma, 1 - self.m)),
            Term("lse", "negative", "circle", (1.0, self.m, self.gamma, self.m)),
        )
        kept = (positive > 0) & (negative > 0)
        return torch.where(kept, softplus(_finite(pos.value) + _finite(neg.value)), 0.0)

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()
