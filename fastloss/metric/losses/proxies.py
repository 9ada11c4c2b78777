"""Losses over classes, centres or proxies of classes, and neighbourhood components, whose softmax is over rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import labels_in_range
from ...engine import accumulate_dtype, over_group
from ...functional.classification import cross_entropy
from ...pair import Term, dense_labels, softplus
from ..distances import BaseDistance, CosineSimilarity, DotProductSimilarity, LpDistance
from ..pairing import PairScores
from ..reducers import BaseReducer, DivisorReducer, Sums
from ..utils import common_functions as c_f
from ..utils import loss_and_miner_utils as lmu
from .base import BaseMetricLossFunction, OverGroupMixin, WeightRegularizerMixin


def wide(x: Tensor) -> Tensor:
    """In the dtype that sums are kept in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def class_rows(loss, embeddings: Tensor, labels: Tensor | None, ref_emb, ref_labels) -> tuple[Tensor, Tensor]:
    """Rows in the dtype that sums are kept in and labels as class numbers of a loss that takes no references."""
    c_f.labels_required(labels)
    c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
    labels_in_range(type(loss).__name__, labels, loss.num_classes, None)
    return wide(embeddings), labels.long()


def class_scores(loss, embeddings: Tensor, weights: Tensor, labels: Tensor) -> PairScores:
    """Scores of rows (N, D) with class numbers and the weights (C, D) of classes: each row has one positive pair."""
    dtype = accumulate_dtype(embeddings.dtype)
    classes = torch.arange(len(weights), dtype=dtype, device=labels.device)
    return PairScores(type(loss).__name__, loss.distance, embeddings, weights, labels.to(dtype), classes)


def softmax_losses(pairs: PairScores, scale: float, over=None) -> Tensor:
    """Cross-entropies of logits ``scale * S`` of rows that have one positive pair each, here or, with `over`, on some process."""
    terms = Term("lse", "negative", "linear", (scale,)), Term("sum", "positive", "linear", (scale,))
    found = pairs.statistics(*terms)
    others, target = found if over is None else over.merged(terms, found)
    return softplus(others.value - target.value)


def weighted(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Losses of rows, each times its weight."""
    return losses if weight is None else losses * weight


class ClassLoss(WeightRegularizerMixin, BaseMetricLossFunction):
    """The base of losses that compare rows with weights of classes; without indices each row counts alike, else as often as it is listed.

    Labels are class numbers. References are not supported. Weights keep their dtype and device, whatever the embeddings have.

    Args:
        num_classes: C.
        group: processes over which the classes are spread, as of :func:`fastloss.functional.cross_entropy`: each has the weights of
            neighbouring classes, as many as the others or one more, and all rows with their labels, and gets the whole loss, the whole
            gradient of the rows, and that of its weights, which ``DistributedDataParallel`` must not average. ``get_logits`` then gives
            those of this process's classes. None where all classes are here.
    """

    of_classes = False  # whether the losses are those of classes, not of rows

    def __init__(self, num_classes: int, group: object = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.group, self._over = group, None
        here = (0, num_classes) if group is None else over_group("margins", "share", group, type(self).__name__, num_classes)
        self.first_class, self.own_classes = here

    def forward(self, embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None) -> Tensor:
        given = embeddings, labels, indices_tuple, ref_emb, ref_labels
        if self.group is None:
            return super().forward(*given)
        return over_group("margins", "run", self.group, self, super().forward, given)

    def shared(self, x: Tensor) -> Tensor:
        """The rows, for what each process computes of its classes: their gradients are added up."""
        return x if self._over is None else self._over.shared(x)

    def of_own_classes(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """Which labels are of this process's classes, None for all, and the labels as numbers of these classes, 0 for others."""
        if self._over is None:
            return None, labels
        here = (labels >= self.first_class) & (labels < self.first_class + self.own_classes)
        return here, torch.where(here, labels - self.first_class, 0)

    def pair_scores(self, x: Tensor, weights: Tensor, labels: Tensor) -> PairScores:
        """Scores of rows and the weights of this process's classes; a row has one positive pair where its class is."""
        here, own = self.of_own_classes(labels)
        return class_scores(self, self.shared(x), weights, own if here is None else torch.where(here, own, -1))

    def checked(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rows in the dtype that sums are kept in, their class numbers, and how much each counts, None for all alike."""
        x, labels = class_rows(self, embeddings, labels, ref_emb, ref_labels)
        return x, labels, None if indices_tuple is None else lmu.convert_to_weights(indices_tuple, labels, dtype=x.dtype)

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the module; losses themselves work with weights of any dtype."""
        self.to(device=device, dtype=dtype)

    def as_rows(self, weights: Tensor, embeddings: Tensor) -> Tensor:
        """Weights (D, C) as rows of the embeddings' dtype and device."""
        return weights.t().to(device=embeddings.device, dtype=embeddings.dtype)

    def with_regularizer(self, loss_dict: dict, weights: Tensor) -> dict:
        """With the loss of the weights, given as rows."""
        self.add_weight_regularization_to_loss_dict(loss_dict, weights)
        return loss_dict


class NormalizedSoftmaxLoss(ClassLoss):
    """Cross-entropy of logits ``cos(x_i, W_j) / temperature`` (Zhai and Wu 2019); of distances ``-S_ij / temperature`` of normalised W.

    Distance: DotProduct, which normalises. Reducer: Mean.

    Args:
        num_classes: C.
        embedding_size: D.
        temperature: divides the scores.

    Attributes:
        W: (D, C), from the normal distribution.
    """

    def __init__(self, num_classes: int, embedding_size: int, temperature: float = 0.05, **kwargs) -> None:
        super().__init__(num_classes, **kwargs)
        self.temperature = temperature
        self.embedding_size = embedding_size
        self.W = self.new_weights(embedding_size, self.own_classes)
        self.add_to_recordable_attributes(list_of_names=["embedding_size", "num_classes", "temperature"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        x, labels, weight = self.checked(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        pairs = self.pair_scores(x, self._directions(x), labels)
        losses = softmax_losses(pairs, -pairs.sign / self.temperature, self._over)
        return self.with_regularizer(self.elements(weighted(losses, weight)), self.W.t())

    def _directions(self, x: Tensor) -> Tensor:
        """The weights as rows of norm 1, unless the distance normalises them anyway."""
        rows = self.as_rows(self.W, x)
        return rows if self.distance.normalize_embeddings else F.normalize(rows, dim=1)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """(N, C)."""
        x = wide(embeddings)
        scale = (1.0 if self.distance.is_inverted else -1.0) / self.temperature
        return scale * self.distance(x, self._directions(x))

    def get_default_distance(self) -> BaseDistance:
        return DotProductSimilarity()


class NCALoss(OverGroupMixin, BaseMetricLossFunction):
    """``-log sum_{j: y_j = y_i} softmax_j(-softmax_scale S_ij)`` of each row, j all others (Goldberger et al. 2005); rows without positives
    are left out, and of no rows the mean is NaN.

    Rows whose probability underflows keep their loss, where pytorch-metric-learning leaves them out. Listed pairs only weigh rows.
    Distance: Lp with power 2; of similarities the sign turns. Reducer: Mean.
    """

    def __init__(self, softmax_scale: float = 1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.softmax_scale = softmax_scale
        self.add_to_recordable_attributes(list_of_names=["softmax_scale"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_required(labels)
        if (len(embeddings) if self._over is None else self._over.count()) <= 1:
            return self.zero_losses()
        weight = lmu.convert_to_weights(indices_tuple, labels, dtype=wide(embeddings).dtype, using_ref=ref_emb is not embeddings)
        ref_labels = labels if ref_labels is None else ref_labels
        if ref_emb is not embeddings and ref_labels is labels:
            ref_labels = labels.view_as(labels)  # of another set nothing is left out
        pairs = PairScores(type(self).__name__, self.distance, embeddings, ref_emb, labels, ref_labels, over=self._over)
        constants = (-pairs.sign * self.softmax_scale,)
        neg, pos = pairs.statistics(Term("lse", "negative", "linear", constants), Term("lse", "positive", "linear", constants))
        kept = pos.count > 0
        losses = torch.where(kept, softplus(neg.value - torch.where(kept, pos.value, 0.0)), 0.0) * weight
        if self.takes_sums():
            sums = self.sums(losses.sum(), kept.sum(), (losses > 0).sum(), least=0)
            return {"loss": {"losses": sums, "indices": None, "reduction_type": "element"}}
        (rows,) = kept.nonzero(as_tuple=True)
        return {"loss": {"losses": losses[rows], "indices": rows, "reduction_type": "element"}}

    def get_default_distance(self) -> BaseDistance:
        return LpDistance(power=2)


class ProxyNCALoss(ClassLoss):
    """:class:`NCALoss` of the rows among proxies, one a class: ``-log softmax_y(-softmax_scale |x_i - p_j|^2)`` (Movshovitz-Attias et al.
    2017, with the row's own proxy in the denominator). Of listed pairs the anchors weigh rows.

    Distance: Lp with power 2; of similarities the sign turns. Reducer: Mean. No subclass of :class:`NCALoss`, as it is in
    pytorch-metric-learning.

    Args:
        num_classes: C.
        embedding_size: D.
        softmax_scale: of the scores.

    Attributes:
        proxies: (C, D), from the normal distribution.
    """

    def __init__(self, num_classes: int, embedding_size: int, softmax_scale: float = 1, **kwargs) -> None:
        super().__init__(num_classes, **kwargs)
        self.softmax_scale = softmax_scale
        self.proxies = self.new_weights(self.own_classes, embedding_size)
        self.proxy_labels = torch.arange(num_classes)
        self.add_to_recordable_attributes(list_of_names=["softmax_scale", "num_classes"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        x, labels = class_rows(self, embeddings, labels, ref_emb, ref_labels)
        weight = None if indices_tuple is None else lmu.convert_to_weights(indices_tuple, labels, dtype=x.dtype, using_ref=True)
        pairs = self.pair_scores(x, self.proxies.to(x), labels)
        losses = softmax_losses(pairs, -pairs.sign * self.softmax_scale, self._over)
        return self.with_regularizer(self.elements(weighted(losses, weight)), self.proxies)

    def get_default_distance(self) -> BaseDistance:
        return LpDistance(power=2)


class ProxyAnchorLoss(ClassLoss):
    """``sum_j log(1 + sum_{i: y_i = j} exp(-alpha (S_ij - margin))) / #{classes present}``, named pos_loss, and
    ``sum_j log(1 + sum_{i: y_i != j} exp(alpha (S_ij + margin))) / C``, named neg_loss, over proxies j (Kim et al. 2020, equation 4).

    Weights w_i of rows enter as ``w_i - 1`` inside the exponent. Of distances S the exponents are negative. Distance: Cosine. Reducer:
    Divisor.

    Args:
        num_classes: C.
        embedding_size: D.
        margin: of the similarity.
        alpha: scale of the similarity.

    Attributes:
        proxies: (C, D), He's initialisation over the outputs.
    """

    of_classes = True

    def __init__(self, num_classes: int, embedding_size: int, margin: float = 0.1, alpha: float = 32, **kwargs) -> None:
        super().__init__(num_classes, **kwargs)
        self.margin = margin
        self.alpha = alpha
        self.proxies = self.new_weights(self.own_classes, embedding_size)
        self.add_to_recordable_attributes(list_of_names=["num_classes", "alpha", "margin"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        x, labels, weight = self.checked(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        pairs = self.pair_scores(x, self.proxies.to(x), labels)
        near = pairs.sign * self.alpha
        shift = None if weight is None else weight - 1
        terms = [
            Term("lse", mask, "linear", (scale, -scale * margin), "column", row=shift)
            for mask, scale, margin in (("positive", near, self.margin), ("negative", -near, -self.margin))
        ]
        pos, neg = pairs.statistics(*terms)
        number = {"pos_loss": (pos.count > 0).sum(), "neg_loss": self.num_classes}
        found = {
            name: {"losses": softplus(of.value), "indices": c_f.torch_arange_from_size(of.value), "reduction_type": "element",
                   "divisor": number[name]}
            for name, of in (("pos_loss", pos), ("neg_loss", neg))
        }
        if self._over is not None:
            present = self._over.sum(number["pos_loss"])
            for name, divisor in (("pos_loss", present), ("neg_loss", torch.full_like(present, self.num_classes))):
                losses = found[name]["losses"]
                total, above = self._over.sum(torch.stack([losses.sum(), (losses > 0).sum().to(losses)]))
                found[name]["losses"] = Sums(total, torch.full_like(present, self.num_classes), above, divisor)
        return self.with_regularizer(found, self.proxies)

    def get_default_reducer(self) -> BaseReducer:
        return DivisorReducer()

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()

    def get_default_weight_init_func(self) -> Callable[[Tensor], object]:
        return c_f.TorchInitWrapper(torch.nn.init.kaiming_normal_, mode="fan_out")

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]


class SoftTripleLoss(ClassLoss):
    """Cross-entropy of logits ``la (a_ic - margin [c = y_i])``, ``a_ic = sum_k softmax_k(S_ick / gamma) S_ick`` over the centres k of a
    class (Qian et al. 2019, equation 7).

    Distance: Cosine, or any other similarity. Reducer: Mean.

    Args:
        num_classes: C.
        embedding_size: D.
        centers_per_class: K.
        la: scale of the logits.
        gamma: temperature among the centres of a class.
        margin: taken from the target's score.

    Attributes:
        fc: (D, C K), the centres of a class side by side, He's uniform initialisation.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, centers_per_class: int = 10, la: float = 20, gamma: float = 0.1, margin: float = 0.01,
        **kwargs,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if not self.distance.is_inverted:
            raise AssertionError(f"SoftTripleLoss requires a similarity as distance, got {type(self.distance).__name__}")
        self.la = la
        self.gamma = 1.0 / gamma
        self.margin = margin
        self.embedding_size = embedding_size
        self.centers_per_class = centers_per_class
        self.fc = self.new_weights(embedding_size, self.own_classes * centers_per_class)
        self.add_to_recordable_attributes(
            list_of_names=["la", "gamma", "margin", "num_classes", "centers_per_class", "embedding_size"]
        )

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        x, labels, weight = self.checked(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        here, own = self.of_own_classes(labels)
        shift = F.one_hot(own, self.own_classes) * self.margin
        if here is not None:
            shift = shift * here.unsqueeze(1)
        logits = self.la * (self._similarity(self.shared(x)) - shift)
        if here is None:
            losses = F.cross_entropy(logits, labels, reduction="none")
        else:
            losses = cross_entropy(logits, labels, reduction="none", group=self._over.process_group)
        return self.with_regularizer(self.elements(weighted(losses, weight)), self.fc.t())

    def _similarity(self, embeddings: Tensor) -> Tensor:
        x = wide(embeddings)
        to_centers = self.distance(x, self.as_rows(self.fc, x)).unflatten(1, (self.own_classes, self.centers_per_class))
        return (F.softmax(to_centers * self.gamma, dim=2) * to_centers).sum(2)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """(N, C), without margin."""
        return self._similarity(embeddings)

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()

    def get_default_weight_init_func(self) -> Callable[[Tensor], object]:
        return c_f.TorchInitWrapper(torch.nn.init.kaiming_uniform_, a=5**0.5)


class P2SGradLoss(BaseMetricLossFunction):
    """Mean over rows and classes of ``(cos(x_i, w_j) - [j = y_i])^2`` (Zhang et al. 2019, as in Wang and Yamagishi 2021).

    The weights are normalised in the formula, not in place; a row of zeros has the cosine 0, where pytorch-metric-learning gives NaN.
    Distance: Cosine, the only one allowed.

    Args:
        descriptors_dim: D.
        num_classes: C.

    Attributes:
        weight: (D, C), uniform in (-1, 1), then of norm 1.
    """

    def __init__(self, descriptors_dim: int, num_classes: int, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.descriptors_dim = descriptors_dim
        self.num_classes = num_classes
        self.weight = torch.nn.Parameter(F.normalize(torch.empty(descriptors_dim, num_classes).uniform_(-1, 1), dim=0))
        self.add_to_recordable_attributes(list_of_names=["descriptors_dim", "num_classes"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.indices_tuple_not_supported(indices_tuple)
        x, labels = class_rows(self, embeddings, labels, ref_emb, ref_labels)
        found = class_scores(self, x, self.weight.t().to(x), labels).statistics(
            Term("sum", "negative", "square"), Term("sum", "negative", "square", (-1.0,)),
            Term("sum", "positive", "square", (-1.0, 1.0)),  # a cosine is at most 1
        )
        losses = torch.stack([term.value for term in found]).sum() / (len(x) * self.num_classes)
        return {"loss": {"losses": losses, "indices": None, "reduction_type": "already_reduced"}}

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class InstanceLoss(OverGroupMixin, BaseMetricLossFunction):
    """Cross-entropy of logits ``gamma cos(x_i, x_j)`` over all rows j of the batch, the row itself too, whose target is the first row of
    the same label (Zheng et al. 2020, with rows of the batch as the weights of instances).

    pytorch-metric-learning takes for a target the row whose index is the label's rank among the labels of the batch; the same where each
    row has its own label, in order. Distance: Cosine, the only one allowed. Reducer: Mean.

    Args:
        gamma: scale of the cosine.
    """

    def __init__(self, gamma: float = 64, **kwargs) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.gamma = gamma
        self.add_to_recordable_attributes(list_of_names=["gamma"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_required(labels)
        c_f.indices_tuple_not_supported(indices_tuple)
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        others, labels, begin = self.everyone(embeddings, labels)
        labels, _ = dense_labels(labels, None, torch.int64)
        ordered, order = labels.sort(stable=True)
        first = order[torch.searchsorted(ordered, labels)] if len(labels) else order
        number, first = c_f.torch_arange_from_size(labels), first[begin : begin + len(embeddings)]
        pairs = PairScores(type(self).__name__, self.distance, embeddings, others.view_as(others), first, number)
        return self.elements(softmax_losses(pairs, self.gamma))

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()


class NPairsLoss(OverGroupMixin, BaseMetricLossFunction):
    """Cross-entropy of the logits ``S(a_k, p_l)``, target k, over the first positive pair (a_k, p_k) of each label (Sohn 2016).

    Distance: DotProduct, which normalises; of distances the logits are negative. Reducer: Mean. An indices_tuple says which pairs there
    are.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.add_to_recordable_attributes(name="num_pairs", is_stat=True)

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_required(labels)
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        others, labels, begin = self.everyone(embeddings, labels)
        a, p = lmu.convert_to_pos_pairs_with_unique_labels(indices_tuple, labels)
        if self.collect_stats:
            self.num_pairs = len(a)
        if len(a) == 0:
            return self.zero_losses()
        (number,) = ((a >= begin) & (a < begin + len(embeddings))).nonzero(as_tuple=True)  # of those whose anchors are here
        a = a[number]
        pairs = class_scores(self, embeddings[a - begin], others[p], number)
        return {"loss": {"losses": self.one_by_one(softmax_losses(pairs, -pairs.sign)), "indices": a, "reduction_type": "element"}}

    def get_default_distance(self) -> BaseDistance:
        return DotProductSimilarity()
