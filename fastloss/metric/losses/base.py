"""The protocol of losses: ``loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)``, named losses, reducers and regularizers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...engine import over_group, without_autocast
from ..modules import ModuleWithReducerAndDistance
from ..reducers import Sums, reducer_of
from ..utils import common_functions as c_f
from ..utils import loss_and_miner_utils as lmu


class BaseMetricLossFunction(ModuleWithReducerAndDistance):
    """The base of losses. A subclass has ``compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)``, which gives a dictionary
    ``{name: {"losses", "indices", "reduction_type"}}``, and ``_sub_loss_names()`` for the names if there is not just ``"loss"``.

    A loss computes in float32 (in float64 of float64 embeddings), whatever autocast says, and rounds the result to the embeddings' dtype;
    under autocast it stays float32.

    Args:
        embedding_regularizer: a regularizer of the embeddings, or None.
        embedding_reg_weight: what its value is multiplied with before it is added.
        reducer: None for the loss's default, mostly :class:`~fastloss.metric.reducers.MeanReducer`.
        distance: None for the loss's default, mostly :class:`~fastloss.metric.distances.LpDistance`.
        collect_stats: whether to compute records that cost time.

    Raises:
        ValueError: labels that are not one for each row, or missing ones.

    Example:
        >>> import torch
        >>> from fastloss.metric import losses, miners
        >>> embeddings, labels = torch.randn(8, 4), torch.arange(8) // 2
        >>> pairs = miners.MultiSimilarityMiner()(embeddings, labels)
        >>> loss = losses.MultiSimilarityLoss()(embeddings, labels, pairs)
    """

    takes_copies = False  # whether compute_loss knows pairing.Copies

    def __init__(self, embedding_regularizer=None, embedding_reg_weight: float = 1, **kwargs) -> None:
        self.has_embedding_regularizer = embedding_regularizer is not None
        super().__init__(**kwargs)
        self.embedding_regularizer = embedding_regularizer
        self.embedding_reg_weight = embedding_reg_weight

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, indices_tuple=None, ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        c_f.check_shapes(embeddings, labels)
        if labels is not None:
            labels = c_f.to_device(labels, embeddings) if labels.device != embeddings.device else labels
        ref_emb, ref_labels = c_f.set_ref_emb(embeddings, labels, ref_emb, ref_labels)
        mixed = torch.is_autocast_enabled(embeddings.device.type)
        with without_autocast(embeddings.device):
            loss_dict = self.compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
            total = self.reducer(loss_dict, embeddings, labels)
        rounds = torch.is_tensor(total) and embeddings.is_floating_point() and not mixed
        return total.to(embeddings.dtype) if rounds else total

    def compute_loss(self, embeddings: Tensor, labels: Tensor | None, indices_tuple, ref_emb: Tensor, ref_labels: Tensor | None) -> dict:
        raise NotImplementedError(f"{type(self).__name__} has no compute_loss")

    def _sub_loss_names(self) -> list[str]:
        return ["loss"]

    def sub_loss_names(self) -> list[str]:
        """The names of the losses that are added up, with those of regularizers."""
        return self._sub_loss_names() + self.all_regularization_loss_names()

    def all_regularization_loss_names(self) -> list[str]:
        return ["embedding_reg_loss"] if self.has_embedding_regularizer else []

    def zero_loss(self) -> dict:
        """What says that there are no losses."""
        return {"losses": 0, "indices": None, "reduction_type": "already_reduced"}

    def zero_losses(self) -> dict[str, dict]:
        """The same for each name."""
        return {name: self.zero_loss() for name in self.sub_loss_names()}

    def add_embedding_regularization_to_loss_dict(self, loss_dict: dict, embeddings: Tensor) -> None:
        if self.embedding_regularizer is not None:
            loss_dict["embedding_reg_loss"] = self.embedding_regularization_loss(embeddings)

    def embedding_regularization_loss(self, embeddings: Tensor) -> dict:
        losses = self.embedding_regularizer(embeddings) * self.embedding_reg_weight
        return {"losses": losses, "indices": None, "reduction_type": "already_reduced"}

    def takes_sums(self) -> bool:
        """Whether the reducers of all losses are content with sums, so that nothing has to be listed."""
        return all(reducer_of(self.reducer, name).takes_sums() for name in self._sub_loss_names())

    def elements(self, losses: Tensor, name: str = "loss") -> dict[str, dict]:
        """One loss for each row."""
        return {name: {"losses": losses, "indices": c_f.torch_arange_from_size(losses), "reduction_type": "element"}}


class OverGroupMixin:
    """Losses that can be of the rows of several processes.

    Args:
        group: processes whose batches are one, as of :func:`fastloss.functional.clip_loss`; None for this process alone. From labels,
            with a reducer that needs sums only. The loss is that of all rows, on every process, which gets the gradient of its rows.
    """

    def __init__(self, *args, group: object = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.group = group
        self._over = None

    def forward(self, embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None) -> Tensor:
        given = embeddings, labels, indices_tuple, ref_emb, ref_labels
        if self.group is None:
            return super().forward(*given)
        return over_group("metric", "run", self.group, self, super().forward, given)

    def everyone(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """The rows of all processes, whose gradients go back to them, their labels, and where those of this process begin."""
        if self._over is None:
            return embeddings, labels, 0
        return self._over.rows(embeddings), self._over.concatenated(labels), self._over.begin()

    def as_references(self, embeddings: Tensor, labels: Tensor | None, indices_tuple, ref_emb: Tensor, ref_labels: Tensor | None) -> tuple:
        """What comes after embeddings and labels in a call of ``compute_loss``; of several processes the rows of all are the references."""
        if self._over is None:
            return indices_tuple, ref_emb, ref_labels
        if ref_emb is not embeddings:
            if indices_tuple.spread:
                ref_emb, ref_labels = (self._over.concatenated(part, 1) for part in (ref_emb, ref_labels))
            return lmu.Copies(indices_tuple.offset), ref_emb, ref_labels
        rows, row_labels, begin = self.everyone(embeddings, labels)
        return lmu.Copies(begin), rows, row_labels

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, each of which goes on with it to the same loss."""
        return value if self._over is None else self._over.sum(value)

    def sums(
        self, total: Tensor, count: Tensor, above: Tensor | None = None, divisor: Tensor | None = None, least: int = 1
    ) -> Sums:
        """What reducers get, of the rows of all processes: of at least `least` losses."""
        if self._over is not None:
            parts = [total, count, *(t for t in (above, divisor) if t is not None)]
            found = iter(self._over.sum(torch.stack([part.double() for part in parts])))
            total, count = (next(found).to(total.dtype) for _ in range(2))
            above, divisor = (None if t is None else next(found).to(total.dtype) for t in (above, divisor))
        return Sums(total, count.clamp(min=least), above, divisor)

    def one_by_one(self, losses: Tensor, divisor: Tensor | None = None, least: int = 1) -> Tensor | Sums:
        """Losses as they are or, of several processes, what reducers get."""
        if self._over is None:
            return losses
        return self.sums(losses.sum(), losses.new_tensor(len(losses)), (losses > 0).sum(), divisor, least)

    def elements(self, losses: Tensor, name: str = "loss", least: int = 0) -> dict[str, dict]:
        found = super().elements(losses, name)
        found[name]["losses"] = self.one_by_one(losses, least=least)
        return found

    def alike(self, labels: Tensor) -> object:
        """Of a call over a group what has to be alike on all processes, besides settings; raises for what this loss cannot do there."""
        return None


class WeightRegularizerMixin:
    """Losses with a matrix of weights.

    Args:
        weight_regularizer: a regularizer of the weights (a row for each class or centre), or None.
        weight_reg_weight: what its value is multiplied with before it is added.
        weight_init_func: fills the weights, called with the tensor; None for the loss's default.
    """

    def __init__(
        self, weight_regularizer=None, weight_reg_weight: float = 1, weight_init_func: Callable[[Tensor], object] | None = None, **kwargs
    ) -> None:
        self.has_weight_regularizer = weight_regularizer is not None
        super().__init__(**kwargs)
        self.weight_regularizer = weight_regularizer
        self.weight_reg_weight = weight_reg_weight
        self.weight_init_func = self.get_default_weight_init_func() if weight_init_func is None else weight_init_func

    def get_default_weight_init_func(self) -> Callable[[Tensor], object]:
        return c_f.TorchInitWrapper(torch.nn.init.normal_)

    def new_weights(self, *shape: int) -> torch.nn.Parameter:
        """A parameter that ``weight_init_func`` has filled."""
        weights = torch.nn.Parameter(torch.empty(*shape))
        self.weight_init_func(weights)
        return weights

    def all_regularization_loss_names(self) -> list[str]:
        return super().all_regularization_loss_names() + (["weight_reg_loss"] if self.has_weight_regularizer else [])

    def add_weight_regularization_to_loss_dict(self, loss_dict: dict, weights: Tensor) -> None:
        if self.weight_regularizer is not None:
            losses = self.weight_regularizer(weights) * self.weight_reg_weight
            loss_dict["weight_reg_loss"] = {"losses": losses, "indices": None, "reduction_type": "already_reduced"}
