"""Losses whose classes, with their weights or proxies, are spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..metric.utils import common_functions as c_f
from ..pair import Statistic, Term
from .group import Group
from .metric import settings_of, with_group
from .vocabulary import checksum, merged


class Classes(Group):
    """Processes each of which has the weights of some classes."""

    def merged(self, terms: Sequence[Term], found: Sequence[Statistic]) -> list[Statistic]:
        """See :func:`fastloss.distributed.vocabulary.merged`."""
        return merged(self, terms, found)


def share(group: object, name: str, classes: int) -> tuple[int, int]:
    """The first class of this process, and how many it has."""
    among = Classes(name, group)
    if classes < among.world:
        raise ValueError(f"{name}: wanted a class for each of {among.world} processes of the group, got num_classes={classes}")
    return among.share(classes)


def run(group: object, loss: torch.nn.Module, forward: Callable[..., Tensor], given: tuple) -> Tensor:
    """What `forward` gives of the arguments `given` while the loss knows its processes, all of which have the same rows and labels."""
    embeddings, labels = given[:2]
    name = type(loss).__name__
    among = Classes(name, group)

    def check():
        if loss.has_weight_regularizer:
            raise NotImplementedError(f"{name}: with group there is no weight_regularizer")
        if loss.of_classes and not loss.takes_sums():
            raise NotImplementedError(f"{name}: with group a reducer that needs sums only is wanted, got {type(loss.reducer).__name__}")
        c_f.check_shapes(embeddings, labels)
        settings = {key: value for key, value in settings_of(loss).items() if key not in ("first_class", "own_classes")}
        about = {
            "embeddings' shape": tuple(embeddings.shape), "embeddings' dtype": embeddings.dtype,
            "the labels": None if labels is None else checksum(labels), "the loss's settings": settings,
            "requires_grad": [t.requires_grad and torch.is_grad_enabled() for t in (embeddings, *loss.parameters())],
        }
        return None, about, ()

    among.agree(check, embeddings)
    return with_group(loss, among, forward, given)
