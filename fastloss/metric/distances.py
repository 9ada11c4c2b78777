"""Distances and similarities of the rows of two tensors.

A distance gives the matrix of all pairs, as pytorch-metric-learning's does, and, for those that the pair engine knows, :meth:`scores`:
what its kernels need to go through all pairs without a matrix. Deviations from that library are in the docstrings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine import accumulate_dtype
from ..pair import Scores, euclidean
from .utils.module_with_records import ModuleWithRecords

__all__ = ["BaseDistance", "BatchedDistance", "CosineSimilarity", "DotProductSimilarity", "LpDistance", "SNRDistance"]


class BaseDistance(ModuleWithRecords):
    """A function of two rows, for all rows of ``query_emb`` (N, D) and ``ref_emb`` (M, D): (N, M).

    A subclass has ``compute_mat(query_emb, ref_emb)`` for the matrix and ``pairwise_distance(query_emb, ref_emb)`` for row with row.

    Args:
        normalize_embeddings: divide each row by its p-norm, or by 1e-12 where that is more.
        p: of the norm.
        power: what every value is raised to.
        is_inverted: whether large values mean close rows.

    Raises:
        ValueError: the embeddings do not have two dimensions.
    """

    def __init__(self, normalize_embeddings: bool = True, p: float = 2, power: float = 1, is_inverted: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.normalize_embeddings = normalize_embeddings
        self.p = p
        self.power = power
        self.is_inverted = is_inverted
        self.add_to_recordable_attributes(list_of_names=["p", "power"])

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        self.check_shapes(query_emb, ref_emb)
        query = self.maybe_normalize(query_emb)
        ref = query if ref_emb is None or ref_emb is query_emb else self.maybe_normalize(ref_emb)
        matrix = self.compute_mat(query, ref)
        return matrix if self.power == 1 else matrix**self.power

    def check_shapes(self, query_emb: Tensor, ref_emb: Tensor | None) -> None:
        for embeddings in (query_emb, ref_emb):
            if embeddings is not None and embeddings.ndim != 2:
                raise ValueError(
                    f"{type(self).__name__}: embeddings must be a 2D tensor of shape (batch_size, embedding_size), "
                    f"got shape {tuple(embeddings.shape)}"
                )

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no compute_mat")

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no pairwise_distance")

    def scores(self, query: Tensor, ref: Tensor | None) -> Scores | None:
        """What the pair engine computes this distance from, `ref` None for the queries themselves; None where it cannot."""
        return None

    def smallest_dist(self, *args, **kwargs):
        """``torch.min`` of distances, ``torch.max`` of similarities."""
        return (torch.max if self.is_inverted else torch.min)(*args, **kwargs)

    def largest_dist(self, *args, **kwargs):
        """``torch.max`` of distances, ``torch.min`` of similarities."""
        return (torch.min if self.is_inverted else torch.max)(*args, **kwargs)

    def margin(self, x, y):
        """By how much `x` is farther than `y`: ``x - y`` of distances, ``y - x`` of similarities."""
        return y - x if self.is_inverted else x - y

    def normalize(self, embeddings: Tensor, dim: int = 1, **kwargs) -> Tensor:
        """`embeddings` divided by their p-norm."""
        return F.normalize(embeddings, p=self.p, dim=dim, **kwargs)

    def maybe_normalize(self, embeddings: Tensor, dim: int = 1, **kwargs) -> Tensor:
        """`embeddings`, normalised if this distance does that."""
        return self.normalize(embeddings, dim=dim, **kwargs) if self.normalize_embeddings else embeddings

    def get_norm(self, embeddings: Tensor, dim: int = 1, **kwargs) -> Tensor:
        """The p-norm of `embeddings`."""
        return torch.norm(embeddings, p=self.p, dim=dim, **kwargs)

    def _rows(self, query: Tensor, ref: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """Both sets, and whether the engine has to normalise them; other norms than it knows are taken here."""
        if self.p == 2 or not self.normalize_embeddings:
            return query, ref, self.normalize_embeddings
        wide = accumulate_dtype(query.dtype)
        return self.normalize(query.to(wide)), None if ref is None else self.normalize(ref.to(wide)), False


class LpDistance(BaseDistance):
    """``|x_i - r_j|_p`` of rows normalised by their own p-norm; the default of most losses.

    float16 and bfloat16 rows are compared in float32, by the same formula.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(is_inverted=False, **kwargs)

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        wide = accumulate_dtype(query_emb.dtype)
        return torch.cdist(query_emb.to(wide), ref_emb.to(wide), p=float(self.p)).to(query_emb.dtype)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """``|x_i - r_i + 1e-6|_p``."""
        return F.pairwise_distance(query_emb, ref_emb, p=self.p)

    def scores(self, query: Tensor, ref: Tensor | None) -> Scores | None:
        if type(self) is not LpDistance or self.p != 2 or self.power not in (1, 2):
            return None
        rows, ref, unit = self._rows(query, ref)
        return euclidean(rows, ref, self.power == 2, unit)


class DotProductSimilarity(BaseDistance):
    """``x_i . r_j``; the rows are normalised unless ``normalize_embeddings=False``."""

    def __init__(self, **kwargs) -> None:
        super().__init__(is_inverted=True, **kwargs)

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return query_emb @ ref_emb.t()

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """``x_i . r_i``."""
        return (query_emb * ref_emb).sum(dim=1)

    def scores(self, query: Tensor, ref: Tensor | None) -> Scores | None:
        if type(self) not in (DotProductSimilarity, CosineSimilarity) or self.power != 1:
            return None
        rows, ref, unit = self._rows(query, ref)
        return Scores(rows, ref, unit=unit)


class CosineSimilarity(DotProductSimilarity):
    """``x_i . r_j / (|x_i| |r_j|)``."""

    def __init__(self, **kwargs) -> None:
        super().__init__(normalize_embeddings=True, **kwargs)


class SNRDistance(BaseDistance):
    """``Var_d(x_id - r_jd) / Var_d(x_id)``, unbiased variances over the features (Yuan et al. 2019).

    Losses compute it from dot products of centred rows, ``|c_i - c_j|^2 / |c_i|^2``, with no N x M x D tensor; there it is 1 for a row x_i
    without variance, for which the matrix has 0/0.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(is_inverted=False, **kwargs)

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        signal = query_emb.var(dim=1, unbiased=True).unsqueeze(1)
        return (query_emb.unsqueeze(1) - ref_emb).var(dim=2, unbiased=True) / signal

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """``Var_d(x_id - r_id) / Var_d(x_id)``."""
        return (query_emb - ref_emb).var(dim=1, unbiased=True) / query_emb.var(dim=1, unbiased=True)

    def scores(self, query: Tensor, ref: Tensor | None) -> Scores | None:
        if type(self) is not SNRDistance or self.power != 1:
            return None
        wide = accumulate_dtype(query.dtype)
        x, y = (self.maybe_normalize(rows.to(wide)) for rows in (query, query if ref is None else ref))
        varies = (x != x[:, :1]).any(1, keepdim=True)  # a mean may be rounded
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        square = x.square().sum(1, keepdim=True)
        inverse = torch.where(varies, 1 / torch.where(varies, square, 1.0), 0.0)
        a = torch.cat([x * inverse, inverse], 1)
        b = torch.cat([-2 * y, y.square().sum(1, keepdim=True)], 1)
        return Scores(a, b, x.new_ones(len(x)), None, 1.0, "clamp")


class BatchedDistance(torch.nn.Module):
    """A distance over slices of the queries; its other attributes are those of the distance.

    Args:
        distance: called as ``distance(query_emb[start:end], ref_emb)``.
        iter_fn: called as ``iter_fn(matrix, start, end)``; what it returns is dropped.
        batch_size: rows of a slice.
    """

    def __init__(self, distance: BaseDistance, iter_fn: Callable[[Tensor, int, int], object] | None = None, batch_size: int = 32) -> None:
        super().__init__()
        self.distance = distance
        self.iter_fn = iter_fn
        self.batch_size = batch_size

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> None:
        ref_emb = query_emb if ref_emb is None else ref_emb
        for start in range(0, len(query_emb), self.batch_size):
            end = min(start + self.batch_size, len(query_emb))
            self.iter_fn(self.distance(query_emb[start:end], ref_emb), start, end)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("distance"), name)
