"""Losses made of other losses, and VICReg, which needs no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...engine import over_group
from ..utils import common_functions as c_f
from ..utils import loss_and_miner_utils as lmu
from ..utils.module_with_records import ModuleWithRecords
from .base import BaseMetricLossFunction
from .proxies import wide


class VICRegLoss(BaseMetricLossFunction):
    """Invariance ``invariance_lambda mean_d (x_id - z_id)^2``, variance ``variance_mu / 2 relu(1 - sqrt(var_d + eps))`` of both sets,
    covariance ``covariance_v / D sum_{a != b} (cov(x)_ab^2 + cov(z)_ab^2)``, each reduced, then added (Bardes et al. 2022):
    ``loss(x, ref_emb=z)``.

    The sum over covariances comes from the smaller one of the two Gram matrices. Named invariance_loss, variance_loss1, variance_loss2 and
    covariance_loss. No labels, no indices, no distance, no regularizer of embeddings. Reducer: Mean.

    Raises:
        ValueError: a distance or an embedding_regularizer is given.
    """

    def __init__(
        self, invariance_lambda: float = 25, variance_mu: float = 25, covariance_v: float = 1, eps: float = 1e-4, **kwargs
    ) -> None:
        if kwargs.get("distance") is not None:
            raise ValueError("VICRegLoss cannot use a distance function")
        if kwargs.get("embedding_regularizer") is not None:
            raise ValueError("VICRegLoss cannot use an embedding_regularizer")
        super().__init__(**kwargs)
        self.invariance_lambda = invariance_lambda
        self.variance_mu = variance_mu
        self.covariance_v = covariance_v
        self.eps = eps
        self.add_to_recordable_attributes(list_of_names=["invariance_lambda", "variance_mu", "covariance_v", "eps"])

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> dict:
        c_f.labels_not_supported(labels, ref_labels)
        c_f.indices_tuple_not_supported(indices_tuple)
        x, z = wide(embeddings), wide(ref_emb)
        variances = [torch.relu(1 - torch.sqrt(rows.var(dim=0) + self.eps)) / 2 for rows in (x, z)]
        covariance = self.covariance_v * (_off_diagonal(x) + _off_diagonal(z)) / x.shape[1]
        return {
            **self.elements(self.invariance_lambda * (x - z).square().mean(dim=1), "invariance_loss"),
            **self.elements(self.variance_mu * variances[0], "variance_loss1"),
            **self.elements(self.variance_mu * variances[1], "variance_loss2"),
            "covariance_loss": {"losses": covariance, "indices": None, "reduction_type": "already_reduced"},
        }

    def _sub_loss_names(self) -> list[str]:
        return ["invariance_loss", "variance_loss1", "variance_loss2", "covariance_loss"]


def _off_diagonal(rows: Tensor) -> Tensor:
    """The sum of the squared covariances of different features."""
    centred = rows - rows.mean(dim=0)
    gram = centred @ centred.t() if rows.shape[0] < rows.shape[1] else centred.t() @ centred
    return (gram.square().sum() - centred.square().sum(dim=0).square().sum()) / (len(rows) - 1) ** 2


class BaseLossWrapper(torch.nn.Module):
    """A loss that calls another one, of those that it supports.

    Args:
        loss: the other one.

    Raises:
        Exception: the loss is not supported.
    """

    def __init__(self, loss: BaseMetricLossFunction, **kwargs) -> None:
        super().__init__(**kwargs)
        self.loss = loss
        self.check_loss_support()

    @staticmethod
    def supported_losses() -> list[str]:
        raise NotImplementedError

    def check_loss_support(self) -> None:
        if type(self.loss).__name__ not in self.supported_losses():
            raise Exception(f"{type(self).__name__} not supported for {type(self.loss).__name__}")


_OVER_PAIRS = [
    "AngularLoss", "CircleLoss", "ContrastiveLoss", "GeneralizedLiftedStructureLoss", "IntraPairVarianceLoss", "LiftedStructureLoss",
    "MultiSimilarityLoss", "NCALoss", "NTXentLoss", "SignalToNoiseRatioContrastiveLoss", "SupConLoss", "TripletMarginLoss",
    "TupletMarginLoss",
]


class SelfSupervisedLoss(BaseLossWrapper):
    """``loss(embeddings, ref_emb)`` of rows and reference rows that belong together by index, others being negatives.

    Args:
        loss: over pairs or triplets.
        symmetric: whether both sets are one batch, in which both give anchors; else the embeddings are anchors. A loss over a group has to
            be symmetric.
    """

    def __init__(self, loss: BaseMetricLossFunction, symmetric: bool = True, **kwargs) -> None:
        super().__init__(loss, **kwargs)
        self.symmetric = symmetric

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        labels = c_f.torch_arange_from_size(embeddings)
        group = getattr(self.loss, "group", None)
        if group is not None:  # numbers among the rows of all processes
            labels = labels + over_group("metric", "first_row", group, type(self).__name__, embeddings)
        if self.symmetric:
            return self.loss(torch.cat([embeddings, ref_emb]), torch.cat([labels, labels]))
        return self.loss(embeddings, labels, ref_emb=ref_emb, ref_labels=labels.clone())

    @staticmethod
    def supported_losses() -> list[str]:
        return list(_OVER_PAIRS)


class MultipleLosses(torch.nn.Module):
    """The weighted sum of losses, each with its miner.

    Args:
        losses: a list, or a dictionary, of losses.
        miners: as many, or some of the keys; None for none. A miner's pairs go to its loss.
        weights: as many, or by key; None for 1.

    Raises:
        AssertionError: miners or weights that do not go with the losses, or indices together with miners.
    """

    def __init__(
        self, losses: Sequence | Mapping, miners: Sequence | Mapping | None = None, weights: Sequence | Mapping | None = None
    ) -> None:
        super().__init__()
        self.is_dict = isinstance(losses, Mapping)
        self.losses = torch.nn.ModuleDict(losses) if self.is_dict else torch.nn.ModuleList(losses)
        self.miners = None
        if miners is not None:
            self._check("miners", losses, miners)
            self.miners = torch.nn.ModuleDict(miners) if self.is_dict else torch.nn.ModuleList(miners)
        if weights is not None:
            self._check("weights", losses, weights)
        self.weights = weights if weights is not None else dict.fromkeys(losses, 1) if self.is_dict else [1] * len(losses)

    def _check(self, name: str, losses: Sequence | Mapping, given: Sequence | Mapping) -> None:
        same_kind = isinstance(given, Mapping) == self.is_dict
        if self.is_dict:
            fits = same_kind and (set(given) <= set(losses) if name == "miners" else set(given) == set(losses))
        else:
            fits = same_kind and len(given) == len(losses)
        if not fits:
            raise AssertionError(f"MultipleLosses: {name} must go with losses {list(losses) if self.is_dict else len(losses)}, got {given}")

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple=None) -> Tensor:
        if self.miners is not None and indices_tuple is not None:
            raise AssertionError("MultipleLosses: indices_tuple is not allowed together with miners")
        total = 0
        for key, loss in self.losses.items() if self.is_dict else enumerate(self.losses):
            pairs = self.get_indices_tuple(key, embeddings, labels, indices_tuple)
            total = total + loss(embeddings, labels, pairs) * self.weights[key]
        return total

    def get_indices_tuple(self, i, embeddings: Tensor, labels: Tensor, indices_tuple):
        """What loss `i` gets."""
        if self.miners is None or (self.is_dict and i not in self.miners):
            return indices_tuple
        return self.miners[i](embeddings, labels)


class CrossBatchMemory(BaseLossWrapper, ModuleWithRecords):
    """A loss of the rows of a batch against the last rows seen, which enter a ring first (Wang et al. 2020).

    A row is no positive of its own copy. Indices that are passed are of the batch, and become those of the copies in the ring;
    pytorch-metric-learning takes them for positions in the ring. From labels alone nothing is listed, unless the batch goes around the
    ring's end.

    Args:
        loss: over pairs or triplets.
        embedding_size: D.
        memory_size: rows of the ring.
        miner: of pairs of the batch with the ring, or None for all.
        group: processes whose batches enter one ring, in the order of their ranks, as of :func:`fastloss.functional.clip_loss`; each has
            an even part of the ring. The loss is that of the rows of all; `loss` is one that takes a group but has none. Without `miner`,
            indices and masks. None for this process alone.

    Attributes:
        embedding_memory, label_memory: the ring (memory_size, D), detached, and its labels; with `group` this process's part.
        queue_idx: where the next row goes.
        has_been_filled: whether all of the ring is in use.
        curr_batch_idx: where the rows of the last batch are.
    """

    def __init__(
        self, loss: BaseMetricLossFunction, embedding_size: int, memory_size: int = 1024, miner=None, group: object = None, **kwargs
    ) -> None:
        super().__init__(loss, **kwargs)
        self.miner = miner
        self.group = group
        self.embedding_size = embedding_size
        self.memory_size = memory_size
        self._part = (0, memory_size) if group is None else over_group("metric", "part", group, type(self).__name__, memory_size)
        self.reset_queue()
        self.add_to_recordable_attributes(list_of_names=["embedding_size", "memory_size", "queue_idx"])

    @staticmethod
    def supported_losses() -> list[str]:
        return sorted([*_OVER_PAIRS, "MarginLoss"])

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple=None, enqueue_mask: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            embeddings: (N, D).
            labels: (N,).
            indices_tuple: pairs or triplets of the batch, besides those with the ring.
            enqueue_mask: (N,), of the rows that only enter the ring; the others are only compared.

        Raises:
            ValueError: both are given.
            AssertionError: the batch is larger than the ring.
        """
        if indices_tuple is not None and enqueue_mask is not None:
            raise ValueError("indices_tuple and enqueue_mask are mutually exclusive")
        if self.group is not None:
            return over_group("metric", "remembered", self.group, self, embeddings, labels, indices_tuple, enqueue_mask)
        c_f.check_shapes(embeddings, labels)
        labels = c_f.to_device(labels, embeddings)
        if enqueue_mask is None:
            self.add_to_memory(embeddings, labels, len(embeddings))
        else:
            enqueue_mask = enqueue_mask.to(embeddings.device)
            self.add_to_memory(embeddings[enqueue_mask], labels[enqueue_mask], int(enqueue_mask.sum()))
            embeddings, labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
        used = self.memory_size if self.has_been_filled else self.queue_idx
        rows, row_labels = self.embedding_memory[:used], self.label_memory[:used]
        pairs = self.create_indices_tuple(embeddings, labels, rows, row_labels, indices_tuple, enqueue_mask is None)
        return self.loss(embeddings, labels, pairs, rows, row_labels)

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        """Put rows into the ring."""
        if batch_size > self.memory_size:
            raise AssertionError(f"CrossBatchMemory: the batch of {batch_size} rows is larger than memory_size={self.memory_size}")
        self.embedding_memory = self.embedding_memory.to(device=embeddings.device, dtype=embeddings.dtype)
        self.label_memory = self.label_memory.to(device=labels.device, dtype=labels.dtype)
        self.curr_batch_idx = torch.arange(self.queue_idx, self.queue_idx + batch_size, device=labels.device) % self.memory_size
        end = self.queue_idx + batch_size
        first, count = self._part
        to_end = self.memory_size - self.queue_idx
        for begin, until, row in ((self.queue_idx, min(end, self.memory_size), 0), (0, end - self.memory_size, to_end)):
            low, high = max(begin, first), min(until, first + count)
            if low < high:
                batch = slice(row + low - begin, row + high - begin)
                self.embedding_memory[low - first : high - first] = embeddings[batch].detach()
                self.label_memory[low - first : high - first] = labels[batch].detach()
        self.has_been_filled = self.has_been_filled or end >= self.memory_size
        self._goes_around = end > self.memory_size
        self._begin = self.queue_idx
        self.queue_idx = end % self.memory_size

    def create_indices_tuple(
        self, embeddings: Tensor, labels: Tensor, E_mem: Tensor, L_mem: Tensor, input_indices_tuple, do_remove_self_comparisons: bool
    ):
        """The pairs or triplets of the batch with the ring, and those passed."""
        if self.miner is None and input_indices_tuple is None:
            if not do_remove_self_comparisons:
                return None
            if self.loss.takes_copies and not self._goes_around:
                return lmu.Copies(self._begin)
        found = lmu.get_all_pairs_indices(labels, L_mem) if self.miner is None else self.miner(embeddings, labels, E_mem, L_mem)
        if do_remove_self_comparisons:
            found = lmu.remove_self_comparisons(found, self.curr_batch_idx, self.memory_size)
        if input_indices_tuple is None:
            return found
        if len(found) == 4:
            a1, p, a2, n = lmu.convert_to_pairs(input_indices_tuple, labels)
            passed = a1, self.curr_batch_idx[p], a2, self.curr_batch_idx[n]
        else:
            a, p, n = lmu.convert_to_triplets(input_indices_tuple, labels)
            passed = a, self.curr_batch_idx[p], self.curr_batch_idx[n]
        if do_remove_self_comparisons:
            passed = lmu.remove_self_comparisons(passed, self.curr_batch_idx, self.memory_size)
        return c_f.concatenate_indices_tuples(found, passed)

    def reset_queue(self) -> None:
        """Empty the ring."""
        self.register_buffer("embedding_memory", torch.zeros(self._part[1], self.embedding_size))
        self.register_buffer("label_memory", torch.zeros(self._part[1], dtype=torch.long))
        self.has_been_filled = False
        self.queue_idx = 0
