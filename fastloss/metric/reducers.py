"""What makes one number of a loss's values.

A loss hands over a dictionary ``{name: {"losses", "indices", "reduction_type"}}``, of which each entry is reduced by itself and the results
are added. ``losses`` is a tensor; 0 for no losses; or :class:`Sums`, from losses whose kernels have added up all pairs or triplets already
and whose reducer said that it needs no more (:meth:`BaseReducer.takes_sums`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .utils.module_with_records import ModuleWithRecords

__all__ = [
    "AvgNonZeroReducer", "BaseReducer", "ClassWeightedReducer", "DivisorReducer", "DoNothingReducer", "MeanReducer", "MultipleReducers",
    "PerAnchorReducer", "SumReducer", "ThresholdReducer",
]


class Sums(NamedTuple):
    """Losses of pairs, triplets or rows that are added up already; each a scalar tensor.

    Args:
        total: the sum of all.
        count: how many there are.
        positive: how many are above 0, where the loss can tell; none is below.
        divisor: of :class:`DivisorReducer`, where the loss has one.
    """

    total: Tensor
    count: Tensor
    positive: Tensor | None = None
    divisor: Tensor | None = None


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    """``total / count``; a 0 with a gradient of 0 where there is nothing to divide."""
    empty = count == 0
    return torch.where(empty, 0.0, total) / torch.where(empty, 1, count)


class BaseReducer(ModuleWithRecords):
    """Calls ``element_reduction``, ``pos_pair_reduction``, ``neg_pair_reduction`` or ``triplet_reduction`` of a subclass, by the type of
    losses.

    Each is called as ``reduction(losses, loss_indices, embeddings, labels)``. What is already reduced passes through.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)

    def forward(self, loss_dict: Mapping[str, dict], embeddings: Tensor, labels: Tensor | None) -> Tensor:
        if len(loss_dict) != 1:
            raise AssertionError(f"{type(self).__name__}: wanted one loss, got {list(loss_dict)}; use MultipleReducers")
        (about,) = loss_dict.values()
        losses, indices, kind = about["losses"], about["indices"], about["reduction_type"]
        if isinstance(losses, Sums):
            return self.from_sums(losses)
        if not torch.is_tensor(losses):
            return self.zero_loss(embeddings) if losses == 0 else losses
        self.assert_sizes(losses, indices, kind)
        self.divisor = about.get("divisor")
        reductions = {
            "already_reduced": self.already_reduced_reduction, "element": self.element_reduction, "pos_pair": self.pos_pair_reduction,
            "neg_pair": self.neg_pair_reduction, "triplet": self.triplet_reduction,
        }
        return reductions[kind](losses, indices, embeddings, labels)

    def takes_sums(self) -> bool:
        """Whether :meth:`from_sums` gives what the listed losses would."""
        return False

    def from_sums(self, sums: Sums) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} needs the losses one by one")

    def already_reduced_reduction(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        return losses

    def element_reduction(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no element_reduction")

    def pos_pair_reduction(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no pos_pair_reduction")

    def neg_pair_reduction(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no neg_pair_reduction")

    def triplet_reduction(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no triplet_reduction")

    def zero_loss(self, embeddings: Tensor) -> Tensor:
        """A 0 that has a gradient, of 0, whatever the embeddings hold."""
        return torch.where(torch.zeros_like(embeddings, dtype=torch.bool), embeddings, 0).sum()

    def assert_sizes(self, losses: Tensor, loss_indices, reduction_type: str) -> None:
        """Raise an AssertionError for losses and indices that do not go together."""
        if reduction_type == "already_reduced":
            fits = losses.numel() == 1 and losses.ndim <= 1
        elif reduction_type == "element":
            fits = len(losses) == len(loss_indices)
        else:
            wanted = 3 if reduction_type == "triplet" else 2
            fits = len(loss_indices) == wanted and all(len(i) == len(losses) for i in loss_indices)
        if not fits:
            sizes = [tuple(i.shape) for i in (loss_indices if isinstance(loss_indices, tuple) else (loss_indices,)) if i is not None]
            raise AssertionError(
                f"{type(self).__name__}: losses of shape {tuple(losses.shape)} with indices of shapes {sizes} are not {reduction_type}"
            )


class _SameReducer(BaseReducer):
    """A reducer that does not care what the losses are of: one function, ``reduce``."""

    def reduce(self, losses: Tensor, embeddings: Tensor) -> Tensor:
        raise NotImplementedError

    def element_reduction(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        return self.reduce(losses, embeddings)

    pos_pair_reduction = neg_pair_reduction = triplet_reduction = element_reduction


class MeanReducer(_SameReducer):
    """The mean; NaN of no losses."""

    def reduce(self, losses: Tensor, embeddings: Tensor) -> Tensor:
        return losses.mean()

    def takes_sums(self) -> bool:
        return type(self) in (MeanReducer, SumReducer)

    def from_sums(self, sums: Sums) -> Tensor:
        return sums.total / sums.count


class SumReducer(MeanReducer):
    """The sum."""

    def reduce(self, losses: Tensor, embeddings: Tensor) -> Tensor:
        return losses.sum()

    def from_sums(self, sums: Sums) -> Tensor:
        return sums.total


class ThresholdReducer(_SameReducer):
    """The mean of the losses between two bounds, both excluded; 0 if there are none.

    Args:
        low: the lower bound, or None.
        high: the upper one, or None. At least one is needed.
    """

    def __init__(self, low: float | None = None, high: float | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        if low is None and high is None:
            raise AssertionError("ThresholdReducer: at least one of low or high must be specified")
        self.low = low
        self.high = high
        self.add_to_recordable_attributes(list_of_names=[name for name in ("low", "high") if getattr(self, name) is not None])

    def reduce(self, losses: Tensor, embeddings: Tensor) -> Tensor:
        kept = torch.ones_like(losses, dtype=torch.bool)
        if self.low is not None:
            kept = kept & (losses > self.low)
        if self.high is not None:
            kept = kept & (losses < self.high)
        if self.collect_stats:
            self.num_past_filter = int(kept.sum())
        return _ratio(torch.where(kept, losses, 0).sum(), kept.sum())

    def takes_sums(self) -> bool:
        return type(self) in (ThresholdReducer, AvgNonZeroReducer) and self.low == 0 and self.high is None

    def from_sums(self, sums: Sums) -> Tensor:
        return _ratio(sums.total, sums.positive)


class AvgNonZeroReducer(ThresholdReducer):
    """The mean of the losses above 0; 0 if there are none."""

    def __init__(self, **kwargs) -> None:
        super().__init__(low=0, **kwargs)


class DivisorReducer(_SameReducer):
    """The sum over the divisor that the loss gives; 0 if that is 0."""

    def reduce(self, losses: Tensor, embeddings: Tensor) -> Tensor:
        if self.divisor is None:
            raise KeyError("DivisorReducer: the loss gives no 'divisor'")
        return _ratio(losses.sum(), torch.as_tensor(self.divisor, device=losses.device))

    def takes_sums(self) -> bool:
        return type(self) is DivisorReducer

    def from_sums(self, sums: Sums) -> Tensor:
        if sums.divisor is None:
            raise KeyError("DivisorReducer: the loss gives no 'divisor'")
        return _ratio(sums.total, sums.divisor)


class ClassWeightedReducer(BaseReducer):
    """The mean of ``w_c l``, c the class of the element or of the anchor; not divided by the weights.

    Args:
        weights: one for each class.
    """

    def __init__(self, weights: Tensor, **kwargs) -> None:
        super().__init__(**kwargs)
        self.weights = weights

    def element_reduction(self, losses: Tensor, loss_indices: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.weights = self.weights.to(losses)
        return (losses * self.weights[labels[loss_indices]]).mean()

    def _of_anchor(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.element_reduction(losses, loss_indices[0], embeddings, labels)

    pos_pair_reduction = neg_pair_reduction = triplet_reduction = _of_anchor


def aggregation_func(values: Tensor, num_per_row: Tensor) -> Tensor:
    """The mean of each row over its losses, 0 where there are none; the rest of `values` is infinite."""
    total = torch.where(values.isinf(), 0.0, values).sum(1)
    return _ratio(total, num_per_row)


class PerAnchorReducer(BaseReducer):
    """Losses of pairs become one for each anchor, and those are reduced.

    Args:
        reducer: of the losses of the anchors, one for each row of the embeddings; None for :class:`MeanReducer`.
        aggregation_func: from an (N, N) matrix of losses, infinite where there is none, and their number in each row, to (N,).

    Raises:
        NotImplementedError: for losses of triplets.
        IndexError: for pairs with rows of a larger reference set, as the matrix is that of the embeddings.
    """

    def __init__(
        self, reducer: BaseReducer | None = None, aggregation_func: Callable[[Tensor, Tensor], Tensor] = aggregation_func, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.reducer = MeanReducer() if reducer is None else reducer
        self.aggregation_func = aggregation_func

    def element_reduction(self, losses: Tensor, loss_indices: Tensor, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        about = {"losses": losses, "indices": loss_indices, "reduction_type": "element"}
        return self.reducer({"loss": about}, embeddings, labels)

    def _of_pairs(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        rows, columns = loss_indices
        size = len(embeddings)
        matrix = losses.new_full((size, size), torch.inf)
        matrix = matrix.index_put((rows, columns), losses.reshape(-1))
        number = torch.zeros_like(matrix, dtype=torch.bool).index_put((rows, columns), rows.new_ones((), dtype=torch.bool)).sum(1)
        everyone = torch.arange(size, device=losses.device)
        return self.element_reduction(self.aggregation_func(matrix, number), everyone, embeddings, labels)

    pos_pair_reduction = neg_pair_reduction = _of_pairs

    def triplet_reduction(self, losses: Tensor, loss_indices, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError("PerAnchorReducer: triplet reduction not supported")


class DoNothingReducer(BaseReducer):
    """The dictionary of losses as it is."""

    def forward(self, loss_dict: Mapping[str, dict], embeddings: Tensor, labels: Tensor | None) -> Mapping[str, dict]:
        return loss_dict


class MultipleReducers(BaseReducer):
    """A reducer for each named loss; the results are added.

    Args:
        reducers: by name of the loss.
        default_reducer: of those that are not named; None for :class:`MeanReducer`.
    """

    def __init__(self, reducers: Mapping[str, BaseReducer], default_reducer: BaseReducer | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.reducers = torch.nn.ModuleDict(reducers)
        self.default_reducer = MeanReducer() if default_reducer is None else default_reducer

    def of(self, name: str) -> BaseReducer:
        """The reducer of the loss `name`."""
        return self.reducers[name] if name in self.reducers else self.default_reducer

    def forward(self, loss_dict: Mapping[str, dict], embeddings: Tensor, labels: Tensor | None) -> Tensor:
        total = 0
        for name, about in loss_dict.items():
            total = total + self.of(name)({name: about}, embeddings, labels)
        return total


def reducer_of(reducer: BaseReducer, name: str) -> BaseReducer:
    """Which reducer the loss `name` goes to."""
    return reducer.of(name) if isinstance(reducer, MultipleReducers) else reducer


def of_each(reducer: BaseReducer, names: list[str]) -> BaseReducer:
    """`reducer` for one loss, or a copy of it for each of several."""
    if len(names) == 1 or isinstance(reducer, (MultipleReducers, DoNothingReducer)):
        return reducer if isinstance(reducer, MultipleReducers) else copy.deepcopy(reducer)
    return MultipleReducers({name: copy.deepcopy(reducer) for name in names})
