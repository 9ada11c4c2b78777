"""Losses and miners over the batches of all processes of ``torch.distributed``."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from . import common_functions as c_f
from . import loss_and_miner_utils as lmu


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def all_gather(x: Tensor) -> Tensor | None:
    """The rows of the other processes, in their order, without gradients; None of one process."""
    world = torch.distributed.get_world_size()
    if world == 1:
        return None
    parts = [torch.empty_like(x) for _ in range(world)]
    torch.distributed.all_gather(parts, x.detach().contiguous())
    del parts[torch.distributed.get_rank()]
    return torch.cat(parts)


def all_gather_embeddings_and_labels(emb: Tensor, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Those of the other processes."""
    return all_gather(emb), None if labels is None else all_gather(labels)


def _with_others(own: Tensor, others: Tensor | None) -> Tensor:
    return own if others is None else torch.cat([own, others])


def gather(emb: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """All embeddings and labels, this process's first, and its labels on the embeddings' device."""
    if labels is not None:
        labels = c_f.to_device(labels, emb)
    others, other_labels = all_gather_embeddings_and_labels(emb, labels)
    return _with_others(emb, others), None if labels is None else _with_others(labels, other_labels), labels


def gather_emb_and_ref(emb: Tensor, labels: Tensor | None, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None):
    """All embeddings and labels, all references, or None, and the labels of this process."""
    all_emb, all_labels, labels = gather(emb, labels)
    all_ref_emb = all_ref_labels = None
    if ref_emb is not None:
        all_ref_emb, all_ref_labels, ref_labels = gather(ref_emb, ref_labels)
    return all_emb, all_labels, all_ref_emb, all_ref_labels, labels


def get_indices_tuple(labels: Tensor, ref_labels: Tensor, embeddings: Tensor | None = None, ref_emb: Tensor | None = None, miner=None):
    """All pairs, or a miner's, of rows with the rows of all processes, but for a row with itself."""
    pairs = lmu.get_all_pairs_indices(labels, ref_labels) if miner is None else miner(embeddings, labels, ref_emb, ref_labels)
    return lmu.remove_self_comparisons(pairs, torch.arange(len(labels), device=labels.device), len(ref_labels))


def gather_enqueue_mask(enqueue_mask: Tensor | None, device: torch.device) -> Tensor | None:
    """The masks of all processes, this one's first."""
    if enqueue_mask is None:
        return None
    enqueue_mask = enqueue_mask.to(device)
    return _with_others(enqueue_mask, all_gather(enqueue_mask))


def select_ref_or_regular(regular, ref):
    return regular if ref is None else ref


class DistributedLossWrapper(torch.nn.Module):
    """A loss over the batches of all processes, times their number, as ``DistributedDataParallel`` takes the mean of gradients.

    Rows of other processes have no gradient here. With one process, or none initialised, it is the loss itself.

    Args:
        loss: of this interface; a :class:`~fastloss.metric.losses.CrossBatchMemory` too.
        efficient: whether this process's rows alone are anchors, with those of all processes as references.
    """

    def __init__(self, loss: torch.nn.Module, efficient: bool = False) -> None:
        super().__init__()
        self.loss = loss
        self.efficient = efficient

    def forward(
        self, emb: Tensor, labels: Tensor | None = None, indices_tuple=None, ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None, enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        if not is_distributed():
            warnings.warn("DistributedLossWrapper is being used without torch.distributed being initialized", stacklevel=2)
        world = torch.distributed.get_world_size() if is_distributed() else 1
        more = {} if enqueue_mask is None else {"enqueue_mask": enqueue_mask}
        if world == 1:
            more |= {} if ref_emb is None else {"ref_emb": ref_emb, "ref_labels": ref_labels}
            return self.loss(emb, labels, indices_tuple=indices_tuple, **more)
        if not self.efficient:
            return self._over_all(emb, labels, indices_tuple, ref_emb, ref_labels, enqueue_mask) * world
        all_emb, all_labels, all_ref_emb, all_ref_labels, labels = gather_emb_and_ref(emb, labels, ref_emb, ref_labels)
        references = select_ref_or_regular(all_emb, all_ref_emb)
        reference_labels = select_ref_or_regular(all_labels, all_ref_labels)
        if indices_tuple is None and ref_emb is None and labels is not None:
            known = getattr(self.loss, "takes_copies", False)
            indices_tuple = lmu.Copies(0) if known else get_indices_tuple(labels, reference_labels)
        return self.loss(emb, labels, indices_tuple, references, reference_labels) * world

    def _over_all(self, emb, labels, indices_tuple, ref_emb, ref_labels, enqueue_mask) -> Tensor:
        all_emb, all_labels, all_ref_emb, all_ref_labels, _ = gather_emb_and_ref(emb, labels, ref_emb, ref_labels)
        if enqueue_mask is not None:
            return self.loss(all_emb, all_labels, indices_tuple, enqueue_mask=gather_enqueue_mask(enqueue_mask, emb.device))
        if ref_emb is None:
            return self.loss(all_emb, all_labels, indices_tuple)
        return self.loss(all_emb, all_labels, indices_tuple, all_ref_emb, all_ref_labels)


class DistributedMinerWrapper(torch.nn.Module):
    """A miner over the batches of all processes.

    Args:
        miner: of this interface.
        efficient: whether this process's rows alone are anchors, with those of all processes as references.
    """

    def __init__(self, miner: torch.nn.Module, efficient: bool = False) -> None:
        super().__init__()
        self.miner = miner
        self.efficient = efficient

    def forward(self, emb: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None):
        all_emb, all_labels, all_ref_emb, all_ref_labels, labels = gather_emb_and_ref(emb, labels, ref_emb, ref_labels)
        if not self.efficient:
            return self.miner(all_emb, all_labels, all_ref_emb, all_ref_labels)
        if ref_emb is not None:
            return self.miner(emb, labels, all_ref_emb, all_ref_labels)
        return get_indices_tuple(labels, all_labels, emb, all_emb, self.miner)
