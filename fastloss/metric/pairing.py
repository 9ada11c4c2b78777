"""What losses over pairs take from the pair engine: the scores of all pairs that count, or of those listed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine import formula_backward
from ..pair import Scores, Statistic, Term, dense_labels, matrix_statistics, pair_statistics, score_matrix, transformed
from .distances import BaseDistance
from .utils import loss_and_miner_utils as lmu


def by_labels(labels: Tensor | None, indices_tuple) -> bool:
    """Whether labels alone say which pairs count."""
    return labels is not None and (indices_tuple is None or isinstance(indices_tuple, lmu.Copies))


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
            set itself are the same in all of them.

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
        self._spread = over if self.own else None  # who has rows to compare with
        centre = {} if self._spread is None else {"centre_of": over.centre}
        self.scores = distance.scores(embeddings, None if self.own else ref_emb, **centre)
        if over is not None and self.scores is None:
            raise NotImplementedError(f"{name}: with group a distance that the pair engine knows is wanted, got {type(distance).__name__}")
        self.matrix = distance(embeddings, ref_emb) if self.scores is None else None
        self.like = self.scores.a if self.matrix is None else self.matrix
        self.labels = self.codes = self.skip = None
        if indices_tuple is None or isinstance(indices_tuple, lmu.Copies):
            own = ref_labels is None or ref_labels is labels
            self.labels = labels, None if own else ref_labels
            self.skip = indices_tuple.offset if indices_tuple is not None else 0 if own else None
        else:
            self.codes = self._codes(lmu.convert_to_pairs(indices_tuple, labels, ref_labels))

    def _codes(self, pairs: Sequence[Tensor]) -> Tensor:
        a1, p, a2, n = pairs
        codes = torch.zeros(self.columns, self.rows, dtype=torch.uint8, device=self.like.device)
        codes[n, a2] = 2
        if codes.device.type == "cpu" and not torch.compiler.is_compiling() and (codes[p, a1] == 2).any():
            raise AssertionError(f"{self.name}: each pair should be either positive or negative, some are listed as both")
        codes[p, a1] = 1
        return codes

    def statistics(self, *terms: Term) -> list[Statistic]:
        """One :class:`Statistic` for each term."""
        if self._spread is not None:
            return self._spread.statistics(self.scores, terms, labels=self.labels, skip=self.skip)
        about = {"labels": self.labels, "codes": self.codes, "skip": self.skip}
        if self.scores is None:
            return matrix_statistics(self.matrix, terms, **about)
        return pair_statistics(self.name, self.scores, terms, **about)

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many positive and how many negative pairs each row has."""
        if self.codes is not None:
            return (self.codes == 1).sum(0), (self.codes == 2).sum(0)
        both, columns = self.labels, self.columns
        if self._spread is not None:
            both, columns = (both[0], self._spread.concatenated(both[0])), self._spread.count()
        labels, ref_labels = dense_labels(*both, torch.int64)
        ordered = (labels if ref_labels is None else ref_labels).sort().values
        same = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
        return same - int(self.skip is not None), columns - same

    def sum(self, values: Tensor) -> Tensor:
        """Over the rows of all processes; each has the whole sum, and its gradient is that of all uses of it."""
        total = values.sum()
        return total if self.over is None else self.over.shared(self.over.sum(total))

    def constant(self, value: float | Tensor, size: int | None = None) -> Tensor:
        """A parameter that is the same for each row."""
        return torch.as_tensor(value, dtype=self.like.dtype, device=self.like.device).expand(self.rows if size is None else size)


class _ListedDots(torch.autograd.Function):
    """``a_i . b_j`` of listed i and j, some at a time, so that no copy of all the rows exists."""

    CHUNK = 2**22  # elements of rows that are copied at a time

    @staticmethod
    def forward(a, b, i, j):
        step = max(1, _ListedDots.CHUNK // max(a.shape[1], 1))
        return torch.cat([(a[i[s : s + step]] * b[j[s : s + step]]).sum(1) for s in range(0, max(len(i), 1), step)])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        a, b, i, j = ctx.saved_tensors
        if torch.is_grad_enabled():
            need = [*ctx.needs_input_grad[:2], False, False]
            return tuple(formula_backward(lambda a, b, i, j: [(a[i] * b[j]).sum(1)], (a, b, i, j), need, [grad]))
        found = [torch.zeros_like(x) if needed else None for x, needed in zip((a, b), ctx.needs_input_grad)]
        step = max(1, _ListedDots.CHUNK // max(a.shape[1], 1))
        for s in range(0, len(i), step):
            row, column, weight = i[s : s + step], j[s : s + step], grad[s : s + step].unsqueeze(1)
            if found[0] is not None:
                found[0].index_put_((row,), weight * b[column], accumulate=True)  # index_add_ is not deterministic on GPUs
            if found[1] is not None:
                found[1].index_put_((column,), weight * a[row], accumulate=True)
        return *found, None, None


def listed_scores(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The scores of listed pairs ``(i, j)``: of few ones from their rows only, of many from the matrix of all."""
    scores = distance.scores(embeddings, None if ref_emb is embeddings else ref_emb)
    if scores is None:
        matrix = distance(embeddings, ref_emb)
    elif 4 * sum(len(i) for i, _ in pairs) > len(embeddings) * len(ref_emb):
        matrix = score_matrix(scores)
    else:
        return [_gathered(scores, i, j) for i, j in pairs]
    return [matrix[i, j] for i, j in pairs]


def _gathered(scores: Scores, i: Tensor, j: Tensor) -> Tensor:
    b, column_bias = (scores.a, scores.row_bias) if scores.b is None else (scores.b, scores.column_bias)
    dots = (scores.a[i] * b[j]).sum(1) if torch.compiler.is_compiling() else _ListedDots.apply(scores.a, b, i, j)
    found = scores.scale * dots
    if scores.row_bias is not None:
        found = found + scores.row_bias[i]
    if column_bias is not None:
        found = found + column_bias[j]
    return transformed(found, scores.transform, scores.cap)


def listed_lse(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The log-sum-exp of the values of each group; -inf of none."""
    top = torch.full((groups,), -torch.inf, dtype=values.dtype, device=values.device)
    top = top.scatter_reduce(0, group, values.detach(), "amax")
    some = top > -torch.inf
    shift = torch.where(some, top, 0.0)
    total = torch.zeros_like(top).index_put((group,), torch.exp(values - shift[group]), accumulate=True)
    return torch.where(some, torch.log(torch.where(some, total, 1.0)) + shift, -torch.inf)
