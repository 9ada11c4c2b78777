"""Losses of :mod:`fastloss.metric` over the batches of all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..engine import accumulate_dtype
from ..metric.utils import common_functions as c_f
from ..metric.utils import loss_and_miner_utils as lmu
from ..pair import Scores, Statistic, Term
from .group import Group, first_derivative
from .ring import statistics


class Rows(Group):
    """Processes each of which has some rows of one set."""

    def centre(self, x: Tensor) -> Tensor:
        """The mean of all rows, without a gradient."""
        return self.sum(x.sum(0)) / max(self.count(), 1)

    def begin(self) -> int:
        """The place of this process's first row among those of all."""
        return sum(self.every()[: self.rank])

    def rows(self, own: Tensor) -> Tensor:
        """The rows of all processes, each of which computes a part of the loss from them: a row's gradient is the sum of what all give."""
        return _Rows.apply(self, own)

    def statistics(self, scores: Scores, terms: Sequence[Term], **about) -> list[Statistic]:
        """See :func:`fastloss.distributed.ring.statistics`."""
        return statistics(self, scores, terms, **about)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, own):
        ctx.group, ctx.rows = group, len(own)
        return group.concatenated(own)

    @staticmethod
    def backward(ctx, grad):
        first_derivative(ctx.group)
        whole, begin = ctx.group.all_reduce(grad.contiguous().clone()), ctx.group.begin()
        return None, whole[begin : begin + ctx.rows].clone()


def first_row(group: object, name: str, embeddings: Tensor) -> int:
    """The number of this process's first row among those of all."""
    together = Rows(name, group)
    together.agree(lambda: (None, {}, (len(embeddings),)), embeddings)
    return together.begin()


def run(group: object, loss: torch.nn.Module, forward: Callable[..., Tensor], given: tuple) -> Tensor:
    """What `forward` gives of the arguments `given` while the loss knows its processes, all of which have the same kind of rows."""
    embeddings, labels, indices_tuple, ref_emb, ref_labels = given
    name = type(loss).__name__
    together = Rows(name, group)

    def check():
        if indices_tuple is not None or ref_emb is not None or ref_labels is not None or labels is None:
            raise NotImplementedError(f"{name}: with group labels are wanted, and neither indices nor references")
        if loss.has_embedding_regularizer:
            raise NotImplementedError(f"{name}: with group there is no embedding_regularizer")
        if not loss.takes_sums():
            raise NotImplementedError(f"{name}: with group a reducer that needs sums only is wanted, got {type(loss.reducer).__name__}")
        c_f.check_shapes(embeddings, labels)
        parts = (loss, loss.distance, *loss.reducer.modules())
        about = {
            "features": embeddings.shape[1], "embeddings' dtype": embeddings.dtype, "labels' dtype": labels.dtype,
            "the loss's settings": [(type(part).__name__, settings_of(part)) for part in parts], "the loss": loss.alike(labels),
            "requires_grad": embeddings.requires_grad and torch.is_grad_enabled(),
        }
        return None, about, (len(embeddings),)

    together.agree(check, embeddings)
    return rounded_once(loss, together, forward, given)


def with_group(loss: torch.nn.Module, group: Group, forward: Callable[..., Tensor], given: tuple) -> Tensor:
    """Call `forward` while the loss has the group as its own."""
    loss._over = group
    try:
        return forward(*given)
    finally:
        loss._over = None


def rounded_once(loss: torch.nn.Module, group: Group, forward: Callable[..., Tensor], given: tuple) -> Tensor:
    """:func:`with_group` of rows in the dtype that sums are kept in, so that what processes add to a gradient is not rounded before."""
    embeddings, labels, indices_tuple, ref_emb, ref_labels = given
    wide = accumulate_dtype(embeddings.dtype)
    ref_emb = None if ref_emb is None else ref_emb.to(wide)
    value = with_group(loss, group, forward, (embeddings.to(wide), labels, indices_tuple, ref_emb, ref_labels))
    return value if torch.is_autocast_enabled(embeddings.device.type) else value.to(embeddings.dtype)


def remembered(
    group: object, memory: torch.nn.Module, embeddings: Tensor, labels: Tensor, indices_tuple, enqueue_mask: Tensor | None
) -> Tensor:
    """The loss of a :class:`fastloss.metric.losses.CrossBatchMemory` whose ring takes the rows of all processes; each has a part of it."""
    name, loss = type(memory).__name__, memory.loss
    together = Rows(name, group)

    def check():
        if indices_tuple is not None or enqueue_mask is not None or memory.miner is not None:
            raise NotImplementedError(f"{name}: with group neither a miner, nor indices, nor a mask can be had")
        takes_group = loss.takes_copies and hasattr(loss, "group") and loss.group is None
        if not takes_group or loss.has_embedding_regularizer or not loss.takes_sums():
            raise NotImplementedError(
                f"{name}: with group a loss over pairs or triplets that takes a group, but has none, without a regularizer and with a "
                f"reducer that needs sums only is wanted, got {type(loss).__name__}"
            )
        c_f.check_shapes(embeddings, labels)
        parts = (memory, loss, loss.distance, *loss.reducer.modules())
        about = {
            "features": embeddings.shape[1], "embeddings' dtype": embeddings.dtype, "labels' dtype": labels.dtype,
            "the settings": [(type(part).__name__, settings_of(part)) for part in parts], "the loss": loss.alike(labels),
            "requires_grad": embeddings.requires_grad and torch.is_grad_enabled(),
        }
        return None, about, (len(embeddings),)

    together.agree(check, embeddings)
    labels = c_f.to_device(labels, embeddings)
    memory.add_to_memory(together.concatenated(embeddings.detach()), together.concatenated(labels), together.count())
    used = memory.memory_size if memory.has_been_filled else memory.queue_idx
    parts = [together.share(memory.memory_size, rank) for rank in range(together.world)]
    filled = [max(0, min(first + count, used) - first) for first, count in parts]
    together.sizes = list(zip(together.every(), filled))
    mine = filled[together.rank]
    rows, row_labels = memory.embedding_memory[:mine], memory.label_memory[:mine]
    if memory._goes_around:  # gathered for once, and turned so that the batch lies together
        rows, row_labels = (together.concatenated(part, 1).roll(-memory._begin, 0) for part in (rows, row_labels))
        copies = lmu.Copies(together.begin())
    else:
        copies = lmu.Copies(memory._begin + together.begin(), spread=True)
    return rounded_once(loss, together, loss, (embeddings, labels, copies, rows, row_labels))


def part(group: object, name: str, rows: int) -> tuple[int, int]:
    """The first row of a ring that this process has, and how many it has."""
    return Group(name, group).share(rows)


def settings_of(module: torch.nn.Module) -> dict[str, object]:
    """The plain numbers and words among a module's attributes."""
    return {key: value for key, value in sorted(vars(module).items()) if isinstance(value, (bool, int, float, str))}
