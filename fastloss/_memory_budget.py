"""How many bytes of scores the pair engine keeps between forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._settings import Setting

MEMORY_BUDGET = 2**26  # bytes
KEEP = ("cpu",)  # backends that keep scores from the forward for the backward where there is room for them

_budget = Setting("fastloss_memory_budget", None)


@contextlib.contextmanager
def use_memory_budget(memory_budget: int | None) -> Iterator[None]:
    """Let losses over pairs of the block keep scores for their backward instead of computing them again, where they have room.

    A loss over the pairs of two sets computes their scores twice, forward and backward, and stores none of them; with room for all of
    them the backward has two products to do instead of three. This holds for losses over pairs of embeddings and for
    :func:`fastloss.functional.linear_cross_entropy`, on the ``cpu`` backend, of one process; but not where a loss of one number finds its
    gradients along with it, as that one and :func:`fastloss.functional.siglip_loss` do, since there is nothing to compute again. A loss
    that sweeps over several sets has the bytes for each. Where :func:`torch.utils.checkpoint.checkpoint` computes the loss a second time,
    the backward belongs in the block too.

    Args:
        memory_budget: bytes, of which 64 MB, or half if that is less, are for gradients of scores inside the backward and the rest for
            scores kept until then; gradients of the scores of 256 rows have room always. None is what holds outside of any block: no
            scores, and 64 MB.

    Raises:
        ValueError: `memory_budget` is negative.
        TypeError: `memory_budget` is neither an int nor None.

    Example:
        >>> import torch, fastloss
        >>> image, text = (torch.nn.functional.normalize(torch.randn(8, 4), dim=1).requires_grad_() for _ in range(2))
        >>> with fastloss.use_memory_budget(2**28):
        ...     fastloss.functional.clip_loss(image, text, 10.0).backward()
    """
    with _budget.use(_checked("use_memory_budget", memory_budget)):
        yield


def _checked(name: str, memory_budget: int | None) -> int | None:
    if memory_budget is None:
        return None
    if not isinstance(memory_budget, int) or isinstance(memory_budget, bool):
        raise TypeError(f"{name}: memory_budget must be an int or None, got {type(memory_budget).__name__}")
    if memory_budget < 0:
        raise ValueError(f"{name}: memory_budget must not be negative, got {memory_budget}")
    return min(memory_budget, 2**62)  # what an operator takes


def room(name: str, backend: str, memory_budget: int | None, inputs: Sequence[Tensor | None]) -> tuple[int, int]:
    """Bytes for scores that are kept for a backward, and for gradients of scores inside it, of which more than the default gain nothing."""
    memory_budget = _budget.get() if memory_budget is None else _checked(name, memory_budget)
    if memory_budget is None:
        return 0, MEMORY_BUDGET
    differentiates = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    gradients = min(MEMORY_BUDGET, memory_budget // 2)
    return memory_budget - gradients if backend in KEEP and differentiates else 0, gradients
