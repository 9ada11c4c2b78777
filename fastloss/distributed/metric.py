"""Losses of :mod:`fastloss.metric` over the batches of all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..metric.utils import common_functions as c_f
from ..pair import Scores, Statistic, Term
from .group import Group
from .ring import statistics


class Rows(Group):
    """Processes each of which has some rows of one set."""

    def centre(self, x: Tensor) -> Tensor:
        """The mean of all rows, without a gradient."""
        return self.sum(x.sum(0)) / max(self.count(), 1)

    def statistics(self, scores: Scores, terms: Sequence[Term], **about) -> list[Statistic]:
        """See :func:`fastloss.distributed.ring.statistics`."""
        return statistics(self, scores, terms, **about)


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
            "the loss's settings": [(type(part).__name__, settings_of(part)) for part in parts],
            "requires_grad": embeddings.requires_grad and torch.is_grad_enabled(),
        }
        return None, about, (len(embeddings),)

    together.agree(check, embeddings)
    return with_group(loss, together, forward, given)


def with_group(loss: torch.nn.Module, group: Group, forward: Callable[..., Tensor], given: tuple) -> Tensor:
    """Call `forward` while the loss has the group as its own."""
    loss._over = group
    try:
        return forward(*given)
    finally:
        loss._over = None


def settings_of(module: torch.nn.Module) -> dict[str, object]:
    """The plain numbers and words among a module's attributes."""
    return {key: value for key, value in sorted(vars(module).items()) if isinstance(value, (bool, int, float, str))}
