"""What losses over pairs take from the pair engine: the scores of all pairs that count, or of those listed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import readable
from ..engine import accumulate_dtype
from ..listed import listed
from ..matrix import stored_scores
from ..pair import Statistic, Term, dense_labels, matrix_statistics, pair_statistics, prepared
from .distances import BaseDistance
from .utils import loss_and_miner_utils as lmu


def by_labels(labels: Tensor | None, indices_tuple) -> bool:
    """Whether labels alone say which pairs count."""
    return labels is not None and (indices_tuple is None or isinstance(indices_tuple, lmu.Copies))


def without_lists(indices_tuple, labels: Tensor | None, ref_labels: Tensor | None, triplets: bool = False):
    """None for an indices_tuple that lists, in order, just what labels say, so that both forms of a call have the same bits; else it.

    Pairs as :func:`~utils.loss_and_miner_utils.get_all_pairs_indices` gives them and, of losses of `triplets`, triplets as
    :func:`~utils.loss_and_miner_utils.get_all_triplets_indices` does. Looked at on the CPU only.
    """
    if labels is None or indices_tuple is None or isinstance(indices_tuple, lmu.Copies) or not readable(labels):
        return indices_tuple
    own = ref_labels is None or ref_labels is labels
    others = labels if own else ref_labels
    same = equal_labels(*dense_labels(labels, None if own else ref_labels, torch.float64))
    number = torch.stack([same - int(own), len(others) - same])
    if len(indices_tuple) == 4:
        lists, wanted = (indices_tuple[:2], indices_tuple[2:]), number.sum(1)
    else:
        lists, wanted = (indices_tuple,), number.prod(0).sum().reshape(1)
        if not triplets:
            return indices_tuple
    if [len(entries[0]) for entries in lists] != wanted.tolist():
        return indices_tuple
    for k, entries in enumerate(lists):
        place = entries[0]
        for other in entries[1:]:
            place = place * len(others) + other
        equal = [labels[entries[0]] == others[other] for other in entries[1:]]
        right = (place[1:] > place[:-1]).all() & (equal[0] if k == 0 else ~equal[0]).all()
        if k == 0 and own:
            right = right & (entries[0] != entries[1]).all()
        if len(equal) == 2:
            right = right & ~equal[1].any()
        if not right:
            return indices_tuple
    return None


def equal_labels(labels: Tensor, ref_labels: Tensor | None) -> Tensor:
    """How many reference rows have each row's label."""
    ordered = (labels if ref_labels is None else ref_labels).sort().values
    return torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)


def listed_pairs(indices_tuple, labels: Tensor | None, ref_labels: Tensor | None) -> tuple[Tensor, ...]:
    """``(a1, p, a2, n)`` of whatever says which pairs count."""
    if not isinstance(indices_tuple, lmu.Copies):
        return lmu.convert_to_pairs(indices_tuple, labels, ref_labels)
    a1, p, a2, n = lmu.get_all_pairs_indices(labels, ref_labels)
    kept = p != a1 + indices_tuple.offset
    return a1[kept], p[kept], a2, n


def listed_triplets(indices_tuple, labels: Tensor | None, ref_labels: Tensor | None, t_per_anchor: int | str) -> tuple[Tensor, ...]:
    """``(a, p, n)`` of whatever says which triplets count."""
    if isinstance(indices_tuple, lmu.Copies):
        indices_tuple = listed_pairs(indices_tuple, labels, ref_labels)
    return lmu.convert_to_triplets(indices_tuple, labels, ref_labels, t_per_anchor=t_per_anchor)


class PairScores:
    """All scores of rows and reference rows, and which pairs are positive and which negative.

    By labels alone the engine compares labels on its way. Listed pairs become an (M, N) matrix of bytes, which gives the same bits; a pair
    counts once, however often it is listed.

    Args:
        name: of the loss, for messages.
        distance: what gives the scores, without a matrix if the engine knows it.
        embeddings: (N, D).
        ref_emb: (M, D); the same object for the set itself.
        labels: (N,), or None.
        ref_labels: (M,); the same object, or None, for the labels of the rows, of which none is then its own partner.
        indices_tuple: pairs or triplets, :class:`~utils.loss_and_miner_utils.Copies`, or None.
        over: the processes that have other rows, a :class:`fastloss.distributed.Group` that has agreed, or None. References other than the
            set itself are the same in all of them, or spread, as :class:`~utils.loss_and_miner_utils.Copies` says.

    Raises:
        AssertionError: a pair is listed both as positive and as negative; looked at on the CPU only.
    """

    def __init__(
        self, name: str, distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor, labels: Tensor | None = None,
        ref_labels: Tensor | None = None, indices_tuple=None, over=None,
    ) -> None:
        self.name = name
        self.over = over
        self.sign = -1.0 if distance.is_inverted else 1.0
        self.rows, self.columns = len(embeddings), len(ref_emb)
        self.own = ref_emb is embeddings
        copies = indices_tuple if isinstance(indices_tuple, lmu.Copies) else None
        self._spread = over if self.own or copies is not None and copies.spread else None  # who has rows to compare with
        self.scores = distance.scores(embeddings, None if self.own else ref_emb)
        if over is not None and self.scores is None:
            raise NotImplementedError(f"{name}: with group a distance that the pair engine knows is wanted, got {type(distance).__name__}")
        if self._spread is not None:
            self.scores = prepared(self.scores, over.centre)
        self.matrix = distance(embeddings, ref_emb) if self.scores is None else None
        self.dtype, self.device = accumulate_dtype(embeddings.dtype), embeddings.device
        self.labels = self.codes = self.skip = None
        if indices_tuple is None or copies is not None:
            own = ref_labels is None or ref_labels is labels
            self.labels = labels, None if own else ref_labels
            if self._spread is None:
                self.labels = dense_labels(*self.labels, self.dtype)
            self.skip = copies.offset if copies is not None else 0 if own else None
            if copies is not None and self._spread is not None:  # which counts the rows of all
                self.skip -= over.begin()
        else:
            self.codes = self._codes(lmu.convert_to_pairs(indices_tuple, labels, ref_labels))

    def _codes(self, pairs: Sequence[Tensor]) -> Tensor:
        a1, p, a2, n = pairs
        codes = torch.zeros(self.columns, self.rows, dtype=torch.uint8, device=self.device)
        codes[n, a2] = 2
        if codes.device.type == "cpu" and not torch.compiler.is_compiling() and (codes[p, a1] == 2).any():
            raise AssertionError(f"{self.name}: each pair should be either positive or negative, some are listed as both")
        codes[p, a1] = 1
        return codes

    def statistics(self, *terms: Term) -> list[Statistic]:
        """One :class:`Statistic` for each term."""
        if self._spread is not None:
            return self._spread.statistics(self.scores, terms, labels=self.labels, skip=self.skip, sizes=(0, int(not self.own)))
        about = {"labels": self.labels, "codes": self.codes, "skip": self.skip}
        if self.scores is None:
            return matrix_statistics(self.matrix, terms, **about)
        return pair_statistics(self.name, self.scores, terms, **about)

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many positive and how many negative pairs each row has."""
        if self.codes is not None:
            return (self.codes == 1).sum(0), (self.codes == 2).sum(0)
        if self._spread is None:
            same, columns = equal_labels(*self.labels), self.columns
        else:
            of = int(not self.own)
            both = dense_labels(self.labels[0], self._spread.concatenated(self.labels[of], of), self.dtype)
            same, columns = equal_labels(*both), self._spread.count(of)
        return same - int(self.skip is not None), columns - same

    def sum(self, values: Tensor) -> Tensor:
        """Over the rows of all processes; each has the whole sum, and its gradient is that of all uses of it."""
        total = values.sum()
        return total if self.over is None else self.over.shared(self.over.sum(total))

    def constant(self, value: float | Tensor, size: int | None = None) -> Tensor:
        """A parameter that is the same for each row."""
        return torch.as_tensor(value, dtype=self.dtype, device=self.device).expand(self.rows if size is None else size)


def listed_scores(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The scores of listed pairs ``(i, j)``: of few ones from their rows only, of many from the matrix of all."""
    scores = distance.scores(embeddings, None if ref_emb is embeddings else ref_emb)
    if scores is None:
        matrix = distance(embeddings, ref_emb)
    elif 4 * sum(len(i) for i, _ in pairs) > len(embeddings) * len(ref_emb):
        matrix = stored_scores(type(distance).__name__, scores)
    else:
        return [listed(type(distance).__name__, scores, i, j) for i, j in pairs]
    return [matrix[i, j] for i, j in pairs]


def listed_lse(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The log-sum-exp of the values of each group; -inf of none."""
    top = torch.full((groups,), -torch.inf, dtype=values.dtype, device=values.device)
    top = top.scatter_reduce(0, group, values.detach(), "amax")
    some = top > -torch.inf
    shift = torch.where(some, top, 0.0)
    total = torch.zeros_like(top).index_put((group,), torch.exp(values - shift[group]), accumulate=True)
    return torch.where(some, torch.log(torch.where(some, total, 1.0)) + shift, -torch.inf)
