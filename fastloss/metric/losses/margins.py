"""Softmax losses whose target logit keeps a margin. c_ij is the cosine of row i and class j's weights, t_i = c_{i, y_i}, theta its
angle."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...functional.classification import cross_entropy
from ...pair import LEAST_NORM, Scores, Term, pair_statistics, softplus
from ..distances import BaseDistance, CosineSimilarity
from ..utils import common_functions as c_f
from .proxies import ClassLoss, weighted, wide


class LargeMarginSoftmaxLoss(ClassLoss):
    """Cross-entropy of logits ``scale |x_i| |W_j| c_ij`` with ``(-1)^k cos(margin theta) - 2 k`` in t's place, k = floor(margin theta / pi)
    (Liu et al. 2016, equation 6).

    The softmax is over the log-sum-exp of the other classes, which the pair engine gives without a matrix of logits. Distance: Cosine, the
    only one allowed. Reducer: Mean.

    Args:
        num_classes: C.
        embedding_size: D.
        margin: a whole number.
        scale: of the logits.
        group: processes over which the classes are spread, as of :class:`ClassLoss`; None where all classes are here.
        sample_rate: in training, the share of the classes (with `group` of each process's) that a step compares with: as many classes as
            there are rows, or that share if it is larger, always those of the labels, the others drawn anew at random (partial FC, An et
            al. 2022). In evaluation, and by default, all.

    Attributes:
        W: (D, C), from the normal distribution; with `group` of this process's classes.
    """

    normalizes_rows = False
    normalizes_weights = False

    def __init__(
        self, num_classes: int, embedding_size: int, margin: float = 4, scale: float = 1, group: object = None, sample_rate: float = 1.0,
        **kwargs,
    ) -> None:
        super().__init__(num_classes, group, **kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float)):
            raise TypeError(f"{type(self).__name__}: sample_rate must be a number, got {type(sample_rate).__name__}")
        if not 0 < sample_rate <= 1:
            raise ValueError(f"{type(self).__name__}: sample_rate must be above 0 and at most 1, got {sample_rate}")
        self.sample_rate = sample_rate
        self.margin = margin
        self.scale = scale
        self.init_margin()
        self.W = self.new_weights(embedding_size, self.own_classes * self.columns_per_class())
        self.add_to_recordable_attributes(list_of_names=["num_classes", "margin", "scale"])

    def init_margin(self) -> None:
        """Bring the margin into the form that the formula takes."""
        if int(self.margin) != self.margin or self.margin < 1:
            raise ValueError(f"{type(self).__name__}: margin must be a whole number of at least 1, got {self.margin}")
        self.margin = int(self.margin)

    def columns_per_class(self) -> int:
        return 1

    def target_cosine(self, t: Tensor) -> Tensor:
        """What stands in the place of the target's cosine."""
        before, value = torch.ones_like(t), t  # Chebyshev polynomials: cos(m theta) of cos(theta)
        for _ in range(self.margin - 1):
            before, value = value, 2 * t * value - before
        k = torch.floor(self.margin * torch.acos(t.detach().clamp(-1, 1)) / math.pi)
        return (1 - 2 * (k % 2)) * value - 2 * k

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        x, labels, weight = self.checked(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return self.with_regularizer(self.elements(weighted(self.row_losses(x, labels), weight)), self.W.t())

    def row_losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """(N,), from rows in the dtype that sums are kept in."""
        columns, here, index = self._picked(labels)
        w = self.as_rows(self.W if columns is None else self.W[:, columns], x)
        if self.normalizes_weights and not self.normalizes_rows:
            w = F.normalize(w, dim=1)
        classes = torch.arange(len(w), dtype=x.dtype, device=labels.device)
        own = index if here is None else torch.where(here, index, -1)
        terms = [Term("lse", "negative", "linear", (self.scale,)), Term("sum", "positive")]
        found = pair_statistics(
            type(self).__name__, Scores(self.shared(x), w, unit=self.normalizes_rows), terms, labels=(own.to(x.dtype), classes)
        )
        others, own = found if self._over is None else self._over.merged(terms, found)
        if self.normalizes_rows:
            return softplus(others.value - self.scale * self.target_cosine(own.value))
        size = torch.linalg.vector_norm(x, dim=1)
        if not self.normalizes_weights:
            size = size * self._of_all(torch.linalg.vector_norm(w, dim=1)[index], here)
        return softplus(others.value - self.scale * size * self.target_cosine(own.value / size.clamp_min(LEAST_NORM)))

    def _picked(self, labels: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """What a step compares with, among the classes of this process.

        Returns:
            The picked classes in order, None for all; which labels are of this process, None for all; the labels as numbers of picked
            classes, 0 for those of other processes.
        """
        here, labels = self.of_own_classes(labels)
        if self.sample_rate == 1 or not self.training:
            return None, here, labels
        chance = torch.rand(self.own_classes, device=labels.device)
        certain = torch.ones_like(labels, dtype=chance.dtype) if here is None else here.to(chance.dtype)
        chance = chance.scatter_reduce(0, labels, 2 * certain, "amax")
        # As many as the labels can be, so that nothing has to be counted, which on a GPU would wait for it.
        number = min(self.own_classes, max(len(labels), math.ceil(self.sample_rate * self.own_classes)))
        columns = chance.topk(number).indices.sort().values
        return columns, here, torch.searchsorted(columns, labels)

    def _of_all(self, values: Tensor, here: Tensor | None) -> Tensor:
        """A value for each row, from the process that has it."""
        return values if self._over is None else self._over.sum(torch.where(here, values, 0.0))

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """(N, C), without margin."""
        x = wide(embeddings)
        w = self.as_rows(self.W, x)
        a = F.normalize(x, dim=1) if self.normalizes_rows else x
        return self.scale * (a @ (F.normalize(w, dim=1) if self.normalizes_weights else w).t())

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class SphereFaceLoss(LargeMarginSoftmaxLoss):
    """:class:`LargeMarginSoftmaxLoss` with weights of norm 1: logits ``scale |x_i| c_ij`` (Liu et al. 2017, equation 7)."""

    normalizes_weights = True


class CosFaceLoss(LargeMarginSoftmaxLoss):
    """Cross-entropy of logits ``scale c_ij`` with ``t - margin`` in t's place (Wang et al. 2018, equation 4).

    Args:
        num_classes: C.
        embedding_size: D.
        margin: of the cosine.
        scale: of the logits.
    """

    normalizes_rows = normalizes_weights = True

    def __init__(self, *args, margin: float = 0.35, scale: float = 64, **kwargs) -> None:
        super().__init__(*args, margin=margin, scale=scale, **kwargs)

    def init_margin(self) -> None:
        pass

    def target_cosine(self, t: Tensor) -> Tensor:
        return t - self.margin


class ArcFaceLoss(LargeMarginSoftmaxLoss):
    """Cross-entropy of logits ``scale c_ij`` with ``cos(theta + m)`` in t's place, beyond theta = pi - m with ``t - m sin(m)``
    (Deng et al. 2019, equation 3).

    cos(theta + m) is computed as t cos(m) - sqrt(1 - t^2) sin(m), with the root held at t = 1 and -1, where pytorch-metric-learning's
    gradients are NaN.

    Args:
        num_classes: C.
        embedding_size: D.
        margin: m in degrees.
        scale: of the logits.
    """

    normalizes_rows = normalizes_weights = True

    def __init__(self, num_classes: int, embedding_size: int, margin: float = 28.6, scale: float = 64, **kwargs) -> None:
        super().__init__(num_classes, embedding_size, margin=margin, scale=scale, **kwargs)

    def init_margin(self) -> None:
        self.margin = math.radians(self.margin)

    def target_cosine(self, t: Tensor) -> Tensor:
        inside = t.abs() < 1
        safe = torch.where(inside, t, 0.0)
        sine = torch.where(inside, torch.sqrt((1 - safe) * (1 + safe)), 0.0)
        turned = t * math.cos(self.margin) - sine * math.sin(self.margin)
        return torch.where(t >= -math.cos(self.margin), turned, t - self.margin * math.sin(self.margin))


class SubCenterArcFaceLoss(ArcFaceLoss):
    """:class:`ArcFaceLoss` with several centres a class, of which the nearest counts (Deng et al. 2020).

    Args:
        num_classes: C; by name.
        embedding_size: D; by name.
        margin: in degrees.
        scale: of the logits.
        sub_centers: K.

    Attributes:
        W: (D, C K), the centres of a class side by side.
    """

    def __init__(
        self, *, num_classes: int, embedding_size: int, margin: float = 28.6, scale: float = 64, sub_centers: int = 3, **kwargs
    ) -> None:
        self.sub_centers = sub_centers
        super().__init__(num_classes=num_classes, embedding_size=embedding_size, margin=margin, scale=scale, **kwargs)

    def columns_per_class(self) -> int:
        return self.sub_centers

    def _cosines(self, x: Tensor, picked: Tensor | None = None) -> Tensor:
        """(N, C, K), C the picked classes or all."""
        w = self.W if picked is None else self.W.unflatten(1, (self.own_classes, self.sub_centers))[:, picked].flatten(1)
        to_centers = F.normalize(self.shared(x), dim=1) @ F.normalize(self.as_rows(w, x), dim=1).t()
        return to_centers.unflatten(1, (-1, self.sub_centers))

    def row_losses(self, x: Tensor, labels: Tensor) -> Tensor:
        picked, here, index = self._picked(labels)
        cosines = self._cosines(x, picked).amax(2)
        own = cosines.gather(1, index.unsqueeze(1))
        if here is None:
            logits = self.scale * cosines.scatter(1, index.unsqueeze(1), self.target_cosine(own))
            return F.cross_entropy(logits, index, reduction="none")
        kept = torch.where(here.unsqueeze(1), self.target_cosine(own), own)
        logits = self.scale * cosines.scatter(1, index.unsqueeze(1), kept)
        if picked is not None:  # numbers among the picked classes of all processes
            before = self._over.gather(torch.tensor([len(picked)], device=labels.device))[: self._over.rank].sum()
            labels = self._over.sum(torch.where(here, index + before, 0))
        return cross_entropy(logits, labels, reduction="none", group=self._over.process_group)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return self.scale * self._cosines(wide(embeddings)).amax(2)

    def get_outliers(
        self, embeddings: Tensor, labels: Tensor, threshold: float = 75, return_dominant_centers: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Rows farther from their class's dominant centre than an angle.

        Args:
            embeddings: (N, D).
            labels: (N,).
            threshold: in degrees.
            return_dominant_centers: as in pytorch-metric-learning 2.9.0 the centres come in any case.

        Returns:
            Indices of the outliers, class by class, and the dominant centres (D, C): of each class the one that is nearest to most of its
            rows, 0 of a class without rows.
        """
        with torch.no_grad():
            if self.group is not None:
                raise NotImplementedError(f"{type(self).__name__}: get_outliers needs all classes in one process")
            x = wide(embeddings)
            everyone = torch.arange(len(labels), device=labels.device)
            cosines = self._cosines(x)[everyone, labels]
            nearest = cosines.argmax(1)
            votes = torch.zeros(self.num_classes, self.sub_centers, device=labels.device)
            votes.index_put_((labels, nearest), votes.new_ones(()), accumulate=True)
            dominant = votes.argmax(1)
            far = cosines[everyone, dominant[labels]].clamp(-1, 1).acos() > math.radians(threshold)
            columns = torch.arange(self.num_classes, device=labels.device) * self.sub_centers + dominant
            by_class = labels.argsort(stable=True)
            centers = self.W.detach()[:, columns.to(self.W.device)]
            return by_class[far[by_class]], torch.where((votes.sum(1) > 0).to(centers.device), centers, 0.0)
