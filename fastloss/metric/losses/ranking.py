"""Losses over the ranks and histograms of scores, in plain torch over the (N, N) matrix of scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..distances import BaseDistance, CosineSimilarity, LpDistance
from ..pairing import listed_triplets
from ..utils import common_functions as c_f
from ..utils import loss_and_miner_utils as lmu
from .base import BaseMetricLossFunction, OverGroupMixin
from .proxies import wide

ELEMENTS = 2**22  # of comparisons of pairs that exist at a time


def row_values(function, *matrices: Tensor) -> Tensor:
    """``function`` of blocks of rows, one value a row, computed again in the backward; it compares the scores of a row with one another."""
    rows, columns = matrices[0].shape
    step = max(1, ELEMENTS // max(columns * columns, 1))
    blocks = [[matrix[start : start + step] for matrix in matrices] for start in range(0, max(rows, 1), step)]
    return torch.cat([checkpoint(function, *block, use_reentrant=False) for block in blocks])


class _Ranked(OverGroupMixin, BaseMetricLossFunction):
    """The base of losses that compare the scores of a row with one another."""

    def matrices(self, embeddings, labels, ref_emb, ref_labels) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (N, M) of rows and the rows of all processes, which pairs have one label, and which are a row and itself."""
        c_f.labels_required(labels)
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        rows, row_labels, begin = self.everyone(embeddings, labels)
        x = wide(embeddings)
        scores = self.distance(x, x if rows is embeddings else wide(rows))
        place = torch.arange(len(row_labels), device=labels.device)
        return scores, labels.unsqueeze(1) == row_labels.unsqueeze(0), place == place[begin : begin + len(labels)].unsqueeze(1)


def soft_histogram(values: Tensor, weights: Tensor, low: float, width: float, nodes: int) -> Tensor:
    """(R, nodes): each value (R, M) gives its weight to the two nodes ``low + k width`` around it, the nearer one the more; nodes beyond
    the ends are those at the ends."""
    position = (values - low) / width
    lower = position.detach().floor().clamp(0, nodes - 2)
    part = (position - lower).clamp(0, 1)
    row = torch.arange(len(values), device=values.device).unsqueeze(1).expand_as(values)
    lower = lower.long()
    found = values.new_zeros(len(values), nodes)
    found = found.index_put((row, lower), (1 - part) * weights, accumulate=True)
    return found.index_put((row, lower + 1), part * weights, accumulate=True)


class FastAPLoss(_Ranked):
    """1 - AP of each row that has positives, the average precision over a histogram of distances: ``AP = 1/|P| sum_k h+_k H+_k / H_k`` with
    soft counts h of positives in bin k and sums H up to it, of positives (+) and of all pairs (Cakir et al. 2019, equation 7).

    Distance: Lp, p = 2, normalised, power 2. Reducer: Mean. Listed pairs weigh rows. No references.

    Args:
        num_bins: Q; there are Q + 1 nodes from 0 to 2^power.
    """

    def __init__(self, num_bins: int = 10, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, normalize_embeddings=True, p=2)
        self.num_bins = int(num_bins)
        self.num_edges = self.num_bins + 1
        self.add_to_recordable_attributes(list_of_names=["num_bins"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        far, same, itself = self.matrices(embeddings, labels, ref_emb, ref_labels)
        weight = lmu.convert_to_weights(indices_tuple, labels, dtype=far.dtype)
        same, different = same & ~itself, ~same
        size = 2**self.distance.power / self.num_bins
        pos, neg = (soft_histogram(far, mask.to(far.dtype), 0.0, size, self.num_edges) for mask in (same, different))
        before, every = pos.cumsum(1), (pos + neg).cumsum(1)
        safe = (pos * before > 0) & (every > 0)
        number = same.sum(1)
        precision = torch.where(safe, pos * before / torch.where(safe, every, 1.0), 0.0).sum(1) / number.clamp(min=1)
        kept = (number > 0) & (self.total(safe.any().long()) > 0)
        losses = torch.where(kept, 1 - precision, 0.0) * weight
        if self.takes_sums():
            sums = self.sums(losses.sum(), kept.sum(), (losses > 0).sum())
            return {"loss": {"losses": sums, "indices": None, "reduction_type": "element"}}
        (rows,) = kept.nonzero(as_tuple=True)
        if len(rows) == 0:
            return self.zero_losses()
        return {"loss": {"losses": losses[rows], "indices": rows, "reduction_type": "element"}}

    def get_default_distance(self) -> BaseDistance:
        return LpDistance(power=2)


class SmoothAPLoss(_Ranked):
    """1 - AP of each row, with ranks that are sums of sigmoids of differences over the temperature (Brown et al. 2020, equation 6), over
    the rows of its class, itself too: ``AP_i = 1/m sum_{j in class} (1 + sum_{k in class, k != j} s_kj) / (1 + sum_{k != j} s_kj)``.

    Rows of a class may be anywhere; of a class of one row the loss is 0. pytorch-metric-learning takes blocks of as many rows as there are
    classes for the classes; the same where each has as many. Named ap_loss. Distance: Cosine, the only one allowed. Reducer: Mean. Listed
    pairs weigh rows. No references.

    Raises:
        ValueError: a label occurs more often than another.
    """

    def __init__(self, temperature: float = 0.01, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.temperature = temperature
        self.add_to_recordable_attributes(list_of_names=["temperature"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        scores, same, _ = self.matrices(embeddings, labels, ref_emb, ref_labels)
        counts = same.sum(1)
        rows, each, squares = self.total(torch.stack([counts.new_tensor(len(counts)), counts.sum(), counts.square().sum()])).tolist()
        if rows * squares != each**2:
            counts = counts.unique().tolist()
            raise ValueError(f"SmoothAPLoss: all classes must have the same number of elements in the labels, got rows of {counts}")
        weight = lmu.convert_to_weights(indices_tuple, labels, dtype=scores.dtype)

        def losses(scores: Tensor, same: Tensor) -> Tensor:
            ahead = torch.sigmoid((scores.unsqueeze(1) - scores.unsqueeze(2)) / self.temperature)  # (B, j, k)
            rank = ahead.sum(2) + 0.5  # of k = j the sigmoid is 1/2
            rank_in_class = (ahead * same.unsqueeze(1)).sum(2) + 0.5
            size = same.sum(1)
            return torch.where(size > 1, 1 - torch.where(same, rank_in_class / rank, 0.0).sum(1) / size, 0.0)

        return self.elements(row_values(losses, scores, same) * weight, "ap_loss")

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()

    def _sub_loss_names(self) -> list[str]:
        return ["ap_loss"]


class PNPLoss(_Ranked):
    """Mean over queries with positives, and over their class's rows i, of a function of
    ``R_qi = sum_{j: y_j != y_i} sigmoid((S_qj - S_qi) / anneal)``, how many negatives are ahead (Li et al. 2022): "O" R; "Ds" log(1 + R);
    "Dq" 1 - (1 + R)^-alpha; "Iu" (1 + R) log(1 + R); "Ib" (b R - log(1 + b R)) / b^2.

    The sigmoid's argument is held at 50 and -50. Distance: Cosine, the only one allowed. No references and no listed pairs.
    """

    VARIANTS = ("Ds", "Dq", "Iu", "Ib", "O")

    def __init__(self, b: float = 2, alpha: float = 1, anneal: float = 0.01, variant: str = "O", **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        if variant not in self.VARIANTS:
            raise ValueError(f"PNPLoss: variant must be one of {', '.join(self.VARIANTS)}, got {variant!r}")
        self.b = b
        self.alpha = alpha
        self.anneal = anneal
        self.variant = variant
        self.add_to_recordable_attributes(list_of_names=["b", "alpha", "anneal"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.indices_tuple_not_supported(indices_tuple)
        scores, same, _ = self.matrices(embeddings, labels, ref_emb, ref_labels)
        number = same.sum(1)

        def losses(scores: Tensor, same: Tensor) -> Tensor:
            ahead = torch.sigmoid(((scores.unsqueeze(1) - scores.unsqueeze(2)) / self.anneal).clamp(-50, 50))  # (B, i, j)
            cost = self._cost(torch.where(same.unsqueeze(1), 0.0, ahead).sum(2))
            return torch.where(same, cost, 0.0).sum(1) / same.sum(1)

        each = row_values(losses, scores, same)
        queries = number > 1
        total = self.total(torch.where(queries, each, 0.0).sum()) / self.total(queries.sum()).clamp(min=1)
        return {"loss": {"losses": total, "indices": None, "reduction_type": "already_reduced"}}

    def _cost(self, ahead: Tensor) -> Tensor:
        if self.variant == "Ds":
            return torch.log1p(ahead)
        if self.variant == "Dq":
            return 1 - (1 + ahead) ** -self.alpha
        if self.variant == "Iu":
            return (1 + ahead) * torch.log1p(ahead)
        if self.variant == "Ib":
            return (self.b * ahead - torch.log1p(self.b * ahead)) / self.b**2
        return ahead

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class RankedListLoss(_Ranked):
    """``(1 - imbalance) L+_i + imbalance L-_i`` of each row: weighted means of ``d - (alpha - margin)`` over positives beyond alpha -
    margin, with weights ``exp(Tp (d - alpha + margin))``, and of ``alpha - d`` over negatives with 0 < d < alpha, with weights
    ``exp(Tn (alpha - d))``, each over the sum of the weights plus 1e-5 N (Wang et al. 2019, equations 4 to 10). Weights have gradients.

    Distance: Lp. Reducer: Mean. No references and no listed pairs.

    Args:
        margin: between positives and negatives.
        Tn: how much hard negatives weigh.
        imbalance: the part of negatives.
        alpha: the negatives' bound; None for ``1 + margin / 2``.
        Tp: how much hard positives weigh.
    """

    def __init__(self, margin: float, Tn: float, imbalance: float = 0.5, alpha: float | None = None, Tp: float = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.Tn = Tn
        self.imbalance = imbalance
        self.alpha = 1 + margin / 2 if alpha is None else alpha
        self.Tp = Tp
        self.add_to_recordable_attributes(list_of_names=["imbalance", "alpha", "margin", "Tp", "Tn"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.indices_tuple_not_supported(indices_tuple)
        far, same, own = self.matrices(embeddings, labels, ref_emb, ref_labels)
        beyond, within = far - (self.alpha - self.margin), self.alpha - far
        pos = self._mean(beyond, same & ~own & (beyond > 0), self.Tp)
        neg = self._mean(within, ~same & (far > 0) & (within > 0), self.Tn)
        return self.elements((1 - self.imbalance) * pos + self.imbalance * neg)

    def _mean(self, values: Tensor, mask: Tensor, scale: float) -> Tensor:
        values = torch.where(mask, values, 0.0)
        weights = torch.where(mask, torch.exp(scale * values), 0.0)
        return (weights * values).sum(1) / (weights.sum(1) + 1e-5 * values.shape[1])


class HistogramLoss(_Ranked):
    """The probability that a random negative pair is more similar than a random positive one, by soft histograms:
    ``sum_k h-_k sum_{l <= k} h+_l`` (Ustinova and Lempitsky 2016, equation 7), over the unordered pairs that are part of some triplet.

    Similarities of 1 count in the last bin, where pytorch-metric-learning's index is out of range. Distance: Cosine, the only one allowed.
    No references.

    Args:
        n_bins: of [-1, 1]; None for 2 / delta, and 100 without that.
        delta: the width of a bin, 2 / n_bins.
    """

    def __init__(self, n_bins: int | None = None, delta: float | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        if n_bins is not None and delta is not None and delta != 2 / n_bins:
            raise AssertionError(f"HistogramLoss: delta must be 2 / n_bins, got delta={delta} and n_bins={n_bins}")
        self.delta = delta if delta is not None else 2 / (100 if n_bins is None else n_bins)
        self.add_to_recordable_attributes(list_of_names=["num_bins", "delta"])
        self.num_bins = round(2 / self.delta)

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        if indices_tuple is None:
            scores, *masks = self._by_labels(*self.matrices(embeddings, labels, ref_emb, ref_labels))
        else:
            c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
            scores = self.distance(wide(embeddings))
            masks = [(mask | mask.t()).triu(1) for mask in self._listed(embeddings, labels, indices_tuple)]
        found = []
        for mask in masks:
            mask = mask.reshape(1, -1).to(scores.dtype)
            counts = soft_histogram(scores.reshape(1, -1), mask, -1.0, self.delta, round(1 + 2 / self.delta))
            found.append(self.total(counts.squeeze(0)) / self.total(mask.sum()).clamp(min=1))
        losses = (found[1] * found[0].cumsum(0)).sum()
        return {"loss": {"losses": losses, "indices": None, "reduction_type": "already_reduced"}}

    def _by_labels(self, scores: Tensor, same: Tensor, itself: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scores, and which pairs of a row and a later one are the positive, and the negative, part of a triplet."""
        later = itself.long().cumsum(1) > itself.long()
        paired = (same & ~itself).any(1)
        either = paired.unsqueeze(1) | (paired if self._over is None else self._over.concatenated(paired.byte()).bool())
        return scores, same & later & (~same).any(1, keepdim=True), ~same & later & either

    def _listed(self, embeddings: Tensor, labels: Tensor | None, indices_tuple) -> tuple[Tensor, Tensor]:
        """Which pairs are the positive, and the negative, part of a listed triplet."""
        a, p, n = lmu.convert_to_triplets(indices_tuple, labels, t_per_anchor="all")
        none = torch.zeros(len(embeddings), len(embeddings), dtype=torch.bool, device=embeddings.device)
        return tuple(none.index_put((a, other), none.new_ones(())) for other in (p, n))

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class DynamicSoftMarginLoss(OverGroupMixin, BaseMetricLossFunction):
    """``mean(CDF(delta) delta)`` over the differences ``delta = d_ap - d_an`` of all triplets, by a running histogram of them (Zhang et al.
    2019).

    Without labels d_ap are the distances of row and reference row of one index, and d_an the smallest others of both. Between calls the
    histogram keeps no graph, and differences beyond its last bin count in that, where pytorch-metric-learning fails at the second
    step, and with an index out of range. Distance: Lp, p = 2, normalised.

    Args:
        min_val: the lowest difference; the highest is its negative.
        num_bins: of the histogram.
        momentum: the part of the new batch in it.
    """

    def __init__(self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, p=2, power=1, normalize_embeddings=True)
        self.min_val = min_val
        self.num_bins = int(num_bins)
        self.delta = 2 * abs(min_val) / num_bins
        self.momentum = momentum
        self.hist_ = torch.zeros(self.num_bins)
        self.add_to_recordable_attributes(list_of_names=["num_bins", "min_val"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        indices_tuple, ref_emb, ref_labels = self.as_references(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        far = self.distance(wide(embeddings), wide(ref_emb))
        if labels is None:
            difference = self._without_labels(far)
        else:
            a, p, n = listed_triplets(indices_tuple, labels, ref_labels, "all")
            difference = far[a, p] - far[a, n]
        number = len(difference) if self._over is None else int(self._over.sum(torch.tensor(len(difference), device=far.device)))
        if number == 0:
            return self.zero_losses()
        losses = self.total(self._weigh(difference).sum()) / number
        return {"loss": {"losses": losses, "indices": None, "reduction_type": "already_reduced"}}

    def _without_labels(self, far: Tensor) -> Tensor:
        size = max(far.shape)
        positive = torch.nn.functional.pad(far.diagonal(), (0, size - min(far.shape)))
        own = torch.zeros_like(far, dtype=torch.bool).fill_diagonal_(True)
        others = torch.where(own, torch.inf, far)
        nearest = [torch.nn.functional.pad(others.amin(dim), (0, size - others.shape[1 - dim])) for dim in (0, 1)]
        return positive - torch.minimum(*nearest)

    def _weigh(self, difference: Tensor) -> Tensor:
        before = self.hist_.to(difference)
        position = (difference - self.min_val) / self.delta
        lower = position.detach().floor().clamp(0, self.num_bins - 1)
        part = position - lower
        lower = lower.long()
        counts = torch.zeros_like(before).index_put((lower,), 1 - part, accumulate=True)
        counts = counts.index_put(((lower + 1).clamp(max=self.num_bins - 1),), part, accumulate=True)
        if self._over is not None:
            counts = self._over.shared(self._over.sum(counts))
        momentum = torch.where((before != 0).any(), self.momentum, 1.0)
        after = (1 - momentum) * before + momentum * counts
        after = after / after.sum()
        self.hist_ = after.detach()
        return after.cumsum(0)[lower] * difference


class ManifoldLoss(BaseMetricLossFunction):
    """How much less a row belongs to its proxy than to others, on the manifold of a random walk over rows and proxies: softplus-like sums
    over proxies within `margin` of the walk's affinities, and of the cosines of its rows (Aziere and Todorovic 2019).

    With rows and proxies Z: ``A = exp(relu(cos) / 0.5)``, 0 on the diagonal, ``F = (1 - alpha) (I - alpha D^-1/2 A D^-1/2)^-1``. An
    infinite lambdaC means the second part alone; in pytorch-metric-learning it gives an infinite loss. `indices_tuple` is the proxy of each
    row; None for random ones, each at least once. Distance: Cosine. No labels and no references.

    Args:
        l: embedding size.
        K: number of proxies.
        lambdaC: weight of the second part.
        alpha: of the random walk, above 0 and below 1.
        margin: of the affinities.

    Attributes:
        proxies: (K, l), from the normal distribution.
    """

    def __init__(self, l: int, K: int = 50, lambdaC: float = 1.0, alpha: float = 0.8, margin: float = 5e-4, **kwargs) -> None:
        super().__init__(**kwargs)
        self.l = l
        self.K = K
        self.lambdaC = lambdaC
        self.alpha = alpha
        self.margin = margin
        self.proxies = torch.nn.Parameter(torch.randn(K, l))
        self.add_to_recordable_attributes(list_of_names=["lambdaC", "alpha", "margin", "K"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_not_supported(labels, ref_labels)
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        size = len(embeddings)
        x = wide(embeddings)
        proxy = self._random_proxies(size) if indices_tuple is None else indices_tuple
        proxy = proxy.to(x.device)
        every = torch.cat([x, self.proxies.to(x)])
        affinity = torch.exp(torch.relu(self.distance(every)) / 0.5)
        affinity = affinity * (1 - torch.eye(len(every), device=x.device, dtype=x.dtype))
        root = affinity.sum(1).rsqrt()
        walk = root.unsqueeze(1) * affinity * root.unsqueeze(0)
        identity = torch.eye(len(every), device=x.device, dtype=x.dtype)
        reached = (1 - self.alpha) * torch.linalg.inv(identity - self.alpha * walk)
        direction = torch.nn.functional.normalize(reached, dim=1)
        intrinsic = self._part(reached[:size, size:], proxy)
        context = self._part(direction[:size] @ direction[size:].t(), proxy)
        losses = context if self.lambdaC == float("inf") else intrinsic + self.lambdaC * context
        return {"loss": {"losses": losses, "indices": None, "reduction_type": "already_reduced"}}

    def _part(self, affinity: Tensor, proxy: Tensor) -> Tensor:
        own = torch.arange(self.K, device=proxy.device) == proxy.unsqueeze(1)
        excess = affinity - affinity.gather(1, proxy.unsqueeze(1)) + self.margin
        return torch.log1p(torch.where(~own & (excess >= 0), torch.exp(excess), 0.0).sum(1)).mean()

    def _random_proxies(self, size: int) -> Tensor:
        """A proxy for each row, each proxy once if there are rows enough."""
        first = torch.arange(self.K)[: min(size, self.K)]
        return torch.cat([first, torch.randint(self.K, (max(size - self.K, 0),))])[torch.randperm(size)]

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()
