"""Miners, which choose pairs ``(a1, p, a2, n)`` or triplets ``(a, p, n)`` for losses: ``miner(embeddings, labels, ref_emb, ref_labels)``.

They work on blocks of rows, without gradients. d is the distance's value; of similarities every comparison turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .distances import BaseDistance, CosineSimilarity, LpDistance
from .modules import ModuleWithDistance
from .utils import common_functions as c_f
from .utils import loss_and_miner_utils as lmu

__all__ = [
    "AngularMiner", "BaseMiner", "BatchEasyHardMiner", "BatchHardMiner", "DistanceWeightedMiner", "EmbeddingsAlreadyPackagedAsTriplets",
    "HDCMiner", "MultiSimilarityMiner", "PairMarginMiner", "TripletMarginMiner", "UniformHistogramMiner",
]

ELEMENTS = 2**22  # of a block


class Block(NamedTuple):
    """Some rows and all reference rows.

    Args:
        start: the first row.
        far: (B, M), the distances, negative similarities.
        same: (B, M), of equal labels, not the row itself.
        different: (B, M), of other labels.
    """

    start: int
    far: Tensor
    same: Tensor
    different: Tensor

    def listed(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs that are marked, as indices."""
        row, column = torch.where(mask)
        return row + self.start, column


def joined(parts: list[tuple[Tensor, ...]], like: Tensor, size: int) -> tuple[Tensor, ...]:
    """Tuples of `size` tensors of indices, one behind the other."""
    if not parts:
        return tuple(torch.zeros(0, dtype=torch.long, device=like.device) for _ in range(size))
    return tuple(torch.cat(part) for part in zip(*parts))


class BaseMiner(ModuleWithDistance):
    """The base of miners. A subclass has ``mine(embeddings, labels, ref_emb, ref_labels)``, which gives a tuple of 3 or 4 tensors of
    indices.

    Attributes ``num_pos_pairs``, ``num_neg_pairs`` and ``num_triplets`` say what the last call gave.

    Args:
        distance: None for the miner's default.

    Raises:
        ValueError: labels that are not one for each row.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.add_to_recordable_attributes(self, list_of_names=["num_pos_pairs", "num_neg_pairs", "num_triplets"], is_stat=True)

    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        self.reset_stats()
        with torch.no_grad():
            c_f.check_shapes(embeddings, labels)
            if labels is not None:
                labels = labels if labels.device == embeddings.device else c_f.to_device(labels, embeddings)
            ref_emb, ref_labels = c_f.set_ref_emb(embeddings, labels, ref_emb, ref_labels)
            found = self.mine(embeddings, labels, ref_emb, labels if ref_labels is None else ref_labels)
        self.output_assertion(found)
        return found

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{type(self).__name__} has no mine")

    def output_assertion(self, output: tuple[Tensor, ...]) -> None:
        """Count what was found; raise an AssertionError for what is neither pairs nor triplets."""
        if len(output) == 3:
            a, p, n = output
            self.num_triplets = len(a)
            fits = len(a) == len(p) == len(n)
        elif len(output) == 4:
            a1, p, a2, n = output
            self.num_pos_pairs, self.num_neg_pairs = len(a1), len(a2)
            fits = len(a1) == len(p) and len(a2) == len(n)
        else:
            raise TypeError(f"{type(self).__name__}: wanted 3 or 4 tensors of indices, got {len(output)}")
        if not fits:
            raise AssertionError(f"{type(self).__name__}: tensors of indices differ in length: {[len(x) for x in output]}")

    @property
    def sign(self) -> float:
        return -1.0 if self.distance.is_inverted else 1.0

    def blocks(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, row: int | None = None) -> Iterator[Block]:
        """Blocks of so many rows that each has ``ELEMENTS`` elements, a row counting `row` of them."""
        step = max(1, ELEMENTS // max(len(ref_emb) if row is None else row, 1))
        own = ref_labels is labels
        for start in range(0, len(embeddings), step):
            end = min(start + step, len(embeddings))
            matrix = self.distance(embeddings, ref_emb) if step >= len(embeddings) else self.distance(embeddings[start:end], ref_emb)
            same = labels[start:end].unsqueeze(1) == ref_labels.unsqueeze(0)
            different = ~same
            if own:
                same.diagonal(start).fill_(False)
            yield Block(start, self.sign * matrix, same, different)


class EmbeddingsAlreadyPackagedAsTriplets(BaseMiner):
    """Triplets (0, 1, 2), (3, 4, 5), ...

    Raises:
        AssertionError: the number of rows is not a multiple of 3.
    """

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        if len(embeddings) % 3:
            raise AssertionError(f"EmbeddingsAlreadyPackagedAsTriplets: wanted rows by threes, got {len(embeddings)}")
        first = torch.arange(0, len(embeddings), 3, device=embeddings.device)
        return first, first + 1, first + 2


class PairMarginMiner(BaseMiner):
    """Positive pairs with d > pos_margin, negative ones with d < neg_margin. Distance: Lp."""

    def __init__(self, pos_margin: float = 0.2, neg_margin: float = 0.8, **kwargs) -> None:
        super().__init__(**kwargs)
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.add_to_recordable_attributes(list_of_names=["pos_margin", "neg_margin"])

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        found = [
            (*block.listed(block.same & (block.far > self.sign * self.pos_margin)),
             *block.listed(block.different & (block.far < self.sign * self.neg_margin)))
            for block in self.blocks(embeddings, labels, ref_emb, ref_labels)
        ]
        return joined(found, embeddings, 4)


class MultiSimilarityMiner(BaseMiner):
    """Positive pairs less similar than the most similar negative of their row plus epsilon, negative pairs more similar than its least
    similar positive less epsilon (Wang et al. 2019, equations 10 and 11); nothing unless there are pairs of both kinds. Distance:
    Cosine."""

    def __init__(self, epsilon: float = 0.1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.add_to_recordable_attributes(list_of_names=["epsilon"])

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        found = []
        for block in self.blocks(embeddings, labels, ref_emb, ref_labels):
            nearest = block.far.masked_fill(~block.different, torch.inf).amin(1, keepdim=True)
            farthest = block.far.masked_fill(~block.same, -torch.inf).amax(1, keepdim=True)
            found.append(
                (*block.listed(block.same & (block.far + self.epsilon > nearest)),
                 *block.listed(block.different & (block.far - self.epsilon < farthest)))
            )
        return joined(found, embeddings, 4)

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class _TripletMiner(BaseMiner):
    """Of all triplets those that :meth:`keep`."""

    def row_elements(self, embeddings: Tensor, ref_emb: Tensor) -> int:
        """How much memory all triplets of a row may take."""
        return len(ref_emb) ** 2

    def keep(self, block: Block, a: Tensor, p: Tensor, n: Tensor, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """Which triplets; anchors count from the block's start."""
        raise NotImplementedError

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        found = []
        for block in self.blocks(embeddings, labels, ref_emb, ref_labels, self.row_elements(embeddings, ref_emb)):
            a, p, n = lmu.get_all_triplets_indices_loop_method(labels, block.same, block.different)
            kept = self.keep(block, a, p, n, embeddings, ref_emb)
            found.append((a[kept] + block.start, p[kept], n[kept]))
        return joined(found, embeddings, 3)


class TripletMarginMiner(_TripletMiner):
    """Triplets by their gap ``g = d_an - d_ap``: "all" g <= margin, "hard" g <= 0 of these, "semihard" 0 < g of these, "easy" g > margin.

    Schroff et al. 2015. Distance: Lp.
    """

    def __init__(self, margin: float = 0.2, type_of_triplets: str = "all", **kwargs) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.type_of_triplets = type_of_triplets
        self.add_to_recordable_attributes(list_of_names=["margin"])

    def keep(self, block, a, p, n, embeddings, ref_emb):
        gap = block.far[a, n] - block.far[a, p]
        if self.type_of_triplets == "easy":
            return gap > self.margin
        kept = gap <= self.margin
        if self.type_of_triplets == "hard":
            kept &= gap <= 0
        elif self.type_of_triplets == "semihard":
            kept &= gap > 0
        return kept


class AngularMiner(_TripletMiner):
    """Triplets whose angle at the negative, ``atan(|a - p| / (2 |n - (a + p) / 2|))``, is above one, of rows as they are (Wang et al.
    2017).

    Args:
        angle: in degrees.
    """

    def __init__(self, angle: float = 20, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, p=2, power=1, normalize_embeddings=True)
        self.angle = math.radians(angle)
        self.add_to_recordable_attributes(list_of_names=["angle"])

    def row_elements(self, embeddings, ref_emb):
        return len(ref_emb) ** 2 * embeddings.shape[1]

    def keep(self, block, a, p, n, embeddings, ref_emb):
        anchors, positives, negatives = embeddings[a + block.start], ref_emb[p], ref_emb[n]
        base = F.pairwise_distance(anchors, positives)
        height = F.pairwise_distance(negatives, (anchors + positives) / 2)
        return torch.atan(base / (2 * height)) > self.angle


class BatchEasyHardMiner(BaseMiner):
    """One positive and one negative pair for each row that has both, by strategies: "hard", the farthest positive, the nearest negative;
    "easy", the converse; "semihard", the nearest negative farther than the chosen positive, or the farthest positive nearer than the chosen
    negative; "all", all pairs of that side, of all rows (Xuan et al. 2020). Distance: Lp.

    Args:
        pos_strategy: of positives.
        neg_strategy: of negatives.
        allowed_pos_range: (low, high), between which the distance, or similarity, of a chosen positive pair must lie; None for any. Of
            "all"
            it leaves out none.
        allowed_neg_range: the same of negative pairs.

    Raises:
        ValueError: a strategy that does not exist, or "semihard" on both sides or beside "all".
    """

    HARD = "hard"
    SEMIHARD = "semihard"
    EASY = "easy"
    ALL = "all"
    all_batch_mining_strategies = (HARD, SEMIHARD, EASY, ALL)

    def __init__(
        self, pos_strategy: str = "easy", neg_strategy: str = "semihard", allowed_pos_range: tuple[float, float] | None = None,
        allowed_neg_range: tuple[float, float] | None = None, **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        for name, strategy in (("pos_strategy", pos_strategy), ("neg_strategy", neg_strategy)):
            if strategy not in self.all_batch_mining_strategies:
                raise ValueError(f"{name} must be one of {', '.join(self.all_batch_mining_strategies)}, got {strategy!r}")
        if pos_strategy == neg_strategy == self.SEMIHARD:
            raise ValueError('pos_strategy and neg_strategy cannot both be "semihard"')
        if {pos_strategy, neg_strategy} == {self.SEMIHARD, self.ALL}:
            raise ValueError('"semihard" cannot be used in combination with "all"')
        self.pos_strategy = pos_strategy
        self.neg_strategy = neg_strategy
        self.allowed_pos_range = allowed_pos_range
        self.allowed_neg_range = allowed_neg_range

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        parts = [self._of_block(block) for block in self.blocks(embeddings, labels, ref_emb, ref_labels)]
        return joined(parts, embeddings, 4)

    def _of_block(self, block: Block) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        allowed = []
        for mask, limits in ((block.same, self.allowed_pos_range), (block.different, self.allowed_neg_range)):
            if limits is not None:
                value = self.sign * block.far
                mask = mask & (value >= limits[0]) & (value <= limits[1])
            allowed.append(mask)
        same, different = allowed
        far = block.far
        pos = neg = None
        if self.pos_strategy in (self.HARD, self.EASY):
            pos = _chosen(far, same, self.pos_strategy == self.HARD)
        if self.neg_strategy in (self.HARD, self.EASY):
            neg = _chosen(far, different, self.neg_strategy == self.EASY)
        if self.neg_strategy == self.SEMIHARD:
            neg = _chosen(far, different & (far > far.gather(1, pos[0].unsqueeze(1))), False)
        if self.pos_strategy == self.SEMIHARD:
            pos = _chosen(far, same & (far < far.gather(1, neg[0].unsqueeze(1))), True)
        rows = torch.arange(len(far), device=far.device)
        if pos is not None and neg is not None:
            kept = pos[1] & neg[1]
            return rows[kept] + block.start, pos[0][kept], rows[kept] + block.start, neg[0][kept]
        found = [
            block.listed(every) if chosen is None else (rows[chosen[1]] + block.start, chosen[0][chosen[1]])
            for chosen, every in ((pos, block.same), (neg, block.different))
        ]
        return *found[0], *found[1]


def _chosen(far: Tensor, mask: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """The column of the largest, or smallest, value of each row among those marked, and whether there is any."""
    if far.shape[1] == 0:
        return torch.zeros(len(far), dtype=torch.long, device=far.device), mask.any(1)
    worst = far.masked_fill(~mask, -torch.inf if largest else torch.inf)
    return (worst.max(1) if largest else worst.min(1)).indices, mask.any(1)


class BatchHardMiner(BatchEasyHardMiner):
    """A triplet for each row that has one: its farthest positive and its nearest negative (Hermans et al. 2017). Distance: Lp."""

    def __init__(self, **kwargs) -> None:
        super().__init__(pos_strategy=self.HARD, neg_strategy=self.HARD, **kwargs)

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        a, p, _, n = super().mine(embeddings, labels, ref_emb, ref_labels)
        return a, p, n


class DistanceWeightedMiner(BaseMiner):
    """Random triplets, as many for each anchor as its class has rows, whose negatives are drawn in inverse proportion to the density of
    distances on the unit sphere, ``log w = (2 - D) log d - (D - 3) / 2 log(1 - d^2 / 4)`` (Wu et al. 2017, equation 5).

    Distance: Lp, normalised, p = 2 and power 1.

    Args:
        cutoff: the least d.
        nonzero_loss_cutoff: from which d on nothing is drawn.
    """

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, p=2, power=1, normalize_embeddings=True)
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff
        self.add_to_recordable_attributes(list_of_names=["cutoff", "nonzero_loss_cutoff"])

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        size = embeddings.shape[1]
        far = self.distance(embeddings, ref_emb).to(torch.promote_types(embeddings.dtype, torch.float32)).clamp(min=self.cutoff)
        logs = (2.0 - size) * torch.log(far) - (size - 3) / 2 * torch.log1p(-0.25 * far.square())
        different = labels.unsqueeze(1) != ref_labels.unsqueeze(0)
        kept = different & (far < self.nonzero_loss_cutoff) & logs.isfinite()
        top = logs.masked_fill(~kept, -torch.inf).amax(1, keepdim=True)
        weights = torch.where(kept, torch.exp(logs - torch.where(top.isfinite(), top, 0.0)), 0.0)
        return lmu.get_random_triplet_indices(labels, ref_labels, weights=weights)


class HDCMiner(BaseMiner):
    """The hardest part of all positive and of all negative pairs of the batch, hardest first (Yuan et al. 2017). Distance: Lp.

    Args:
        filter_percentage: the part, of which a fraction counts as one.
    """

    def __init__(self, filter_percentage: float = 0.5, **kwargs) -> None:
        super().__init__(**kwargs)
        self.filter_percentage = filter_percentage
        self.add_to_recordable_attributes(list_of_names=["filter_percentage"])
        self.reset_idx()

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        pairs = (self.a1, self.p, self.a2, self.n) if self.was_set_externally else lmu.get_all_pairs_indices(labels, ref_labels)
        far = self.sign * self.distance(embeddings, ref_emb)
        self.a1, self.p = self._hardest(far, pairs[0], pairs[1], True)
        self.a2, self.n = self._hardest(far, pairs[2], pairs[3], False)
        return self.a1, self.p, self.a2, self.n

    def _hardest(self, far: Tensor, a: Tensor, b: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
        number = math.ceil(self.filter_percentage * len(a))
        best = torch.topk(far[a, b], number, largest=largest).indices
        return a[best], b[best]

    def set_idx_externally(self, external_indices_tuple, labels: Tensor) -> None:
        """Filter these pairs or triplets instead of all pairs, in each call what the last one left, until :meth:`reset_idx`."""
        self.a1, self.p, self.a2, self.n = lmu.convert_to_pairs(external_indices_tuple, labels)
        self.was_set_externally = True

    def reset_idx(self) -> None:
        """Forget such pairs."""
        self.a1 = self.p = self.a2 = self.n = None
        self.was_set_externally = False


class UniformHistogramMiner(BaseMiner):
    """Random pairs, equally many from each bin of distances that has any.

    Args:
        num_bins: between the smallest and the largest distance of positive pairs, and of negative ones.
        pos_per_bin: how many positive pairs a bin gives, repeated only if it has fewer.
        neg_per_bin: the same of negative pairs.
    """

    def __init__(self, num_bins: int = 100, pos_per_bin: int = 10, neg_per_bin: int = 10, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_bins = num_bins
        self.pos_per_bin = pos_per_bin
        self.neg_per_bin = neg_per_bin
        self.add_to_recordable_attributes(list_of_names=["num_bins", "pos_per_bin", "neg_per_bin"])

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        a1, p, a2, n = lmu.get_all_pairs_indices(labels, ref_labels)
        matrix = self.distance(embeddings, ref_emb)
        pos, neg = self._drawn(matrix[a1, p], self.pos_per_bin), self._drawn(matrix[a2, n], self.neg_per_bin)
        return a1[pos], p[pos], a2[neg], n[neg]

    def _drawn(self, values: Tensor, number: int) -> Tensor:
        if len(values) == 0:
            return torch.zeros(0, dtype=torch.long, device=values.device)
        low, high = values.min(), values.max()
        bins = ((values - low) / (high - low).clamp(min=c_f.small_val(values.dtype)) * self.num_bins).long().clamp(max=self.num_bins - 1)
        shuffled = torch.randperm(len(bins)).to(values.device)
        order = shuffled[bins[shuffled].argsort(stable=True)]
        size = torch.bincount(bins, minlength=self.num_bins)
        begin, size = (size.cumsum(0) - size)[size > 0].unsqueeze(1), size[size > 0].unsqueeze(1)
        draw = torch.arange(number, device=values.device).expand(len(size), number)
        again = (torch.rand(len(size), number, dtype=torch.float64).to(values.device) * size).long()
        return order[begin + torch.where(size >= number, draw, again)].reshape(-1)
