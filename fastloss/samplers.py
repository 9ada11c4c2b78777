"""Samplers for losses that compare the samples of a batch: each batch has several samples of each of its classes.

Both are seeded: an epoch's order depends on `seed` and the number of the epoch alone, on every process. Each time that a sampler is
iterated is a new epoch, and ``set_epoch`` goes to one, as for :class:`torch.utils.data.distributed.DistributedSampler`. Over several
processes each takes its share of the same batches.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["ClassSampler", "MPerClassSampler"]


class _Epochs(Sampler):
    """What the samplers share: the samples of each class, the numbers of an epoch, and the share of a process."""

    def __init__(
        self, labels: Sequence[Hashable] | Tensor, seed: int, generator: torch.Generator | None, num_replicas: int | None, rank: int | None
    ) -> None:
        grouped: dict[Hashable, list[int]] = {}
        for index, label in enumerate(labels.tolist() if hasattr(labels, "tolist") else labels):
            grouped.setdefault(label, []).append(index)
        if not grouped:
            raise ValueError(f"{type(self).__name__}: labels must not be empty")
        self.indices = [torch.tensor(indices) for indices in grouped.values()]
        several = dist.is_available() and dist.is_initialized()
        self.num_replicas = (dist.get_world_size() if several else 1) if num_replicas is None else num_replicas
        self.rank = (dist.get_rank() if several else 0) if rank is None else rank
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"{type(self).__name__}: rank must be in [0, {self.num_replicas}), got {self.rank}")
        self.seed, self.generator, self.epoch = seed, generator, 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of epoch `epoch`."""
        self.epoch = epoch

    def _numbers(self) -> torch.Generator:
        """The generator of this epoch; the next one is another's."""
        generator = self.generator
        if generator is None:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        self.epoch += 1
        return generator


class MPerClassSampler(_Epochs):
    """Indices of which every `m` in a row are of one class, for ``DataLoader(batch_size=..., sampler=...)``.

    With `batch_size`, each batch has ``batch_size / m`` classes drawn at random, no class twice. Without, the classes come in random order,
    all of them before any comes again. The samples of a class are drawn without repetition, or with it if it has fewer than `m`.

    Args:
        labels: the class of each sample of the data set.
        m: samples of a class in a row.
        batch_size: of the loader, a multiple of `m`; None for whole passes over the classes. Default: None.
        length_before_new_iter: indices in an epoch of all processes together, rounded down to whole batches or passes for each process,
            but at least one pass. Default: 100000.
        seed: what the order depends on, beside the epoch. Default: 0.
        generator: what random numbers are drawn from instead, as they come; over several processes in the same state on each. Default: None.
        num_replicas, rank: number of processes, and which of them this is. Default: those of ``torch.distributed``, or a single one.

    Raises:
        ValueError: `m`, `batch_size` and the number of classes do not fit; there are no labels.

    Source:
        Musgrave et al. 2020, pytorch-metric-learning's sampler of this name, whose arguments come first.

    Example:
        >>> sampler = MPerClassSampler([0, 0, 1, 1, 2, 2], m=2, batch_size=4, length_before_new_iter=8)
        >>> len(list(sampler))
        8
    """

    def __init__(
        self, labels: Sequence[Hashable] | Tensor, m: int, batch_size: int | None = None, length_before_new_iter: int = 100_000, *,
        seed: int = 0, generator: torch.Generator | None = None, num_replicas: int | None = None, rank: int | None = None,
    ) -> None:
        super().__init__(labels, seed, generator, num_replicas, rank)
        if m < 1:
            raise ValueError(f"MPerClassSampler: m must be at least 1, got {m}")
        classes = len(self.indices)
        if batch_size is not None and (batch_size < 1 or batch_size % m or batch_size > m * classes):
            raise ValueError(
                f"MPerClassSampler: batch_size must be a multiple of m={m}, at most {m * classes} for {classes} classes, got {batch_size}"
            )
        if batch_size is not None and batch_size * self.num_replicas > length_before_new_iter:
            raise ValueError(
                f"MPerClassSampler: length_before_new_iter must be at least batch_size={batch_size} for each of {self.num_replicas} "
                f"processes, got {length_before_new_iter}"
            )
        self.m, self.batch_size = m, batch_size
        self.classes = classes if batch_size is None else batch_size // m  # drawn at a time
        self.rounds = max(length_before_new_iter // (m * self.classes * self.num_replicas), 1)

    def __len__(self) -> int:
        return self.rounds * self.classes * self.m

    def __iter__(self) -> Iterator[int]:
        numbers = self._numbers()
        for turn in range(self.rounds * self.num_replicas):
            chosen = [self._of_class(c, numbers) for c in torch.randperm(len(self.indices), generator=numbers)[: self.classes].tolist()]
            if turn % self.num_replicas == self.rank:
                yield from torch.cat(chosen).tolist()

    def _of_class(self, index: int, numbers: torch.Generator) -> Tensor:
        indices = self.indices[index]
        if len(indices) < self.m:
            return indices[torch.randint(len(indices), (self.m,), generator=numbers)]
        return indices[torch.randperm(len(indices), generator=numbers)[: self.m]]


class ClassSampler(_Epochs):
    """Batches of as many samples of each of their classes, which go through the data once, for ``DataLoader(batch_sampler=...)``.

    The samples of each class are shuffled and cut into groups of `num_items_per_class`; what the last group lacks is repeated from the
    class. A batch is one group each of ``batch_size // num_items_per_class`` classes, those with most groups left, in random order: so
    an epoch has as many batches as are possible, always the same number. Groups that are left when too few classes are do not come.

    Args:
        labels: the class of each sample of the data set.
        batch_size: samples in a batch; what exceeds a multiple of `num_items_per_class` stays empty.
        num_items_per_class: samples of each class in a batch. Default: `batch_size` over the number of classes, at least 1.
        seed, generator, num_replicas, rank: as for :class:`MPerClassSampler`. Every process has the same number of batches.

    Raises:
        ValueError: `batch_size` or `num_items_per_class` is less than 1, or a batch needs more classes than there are.

    Source:
        jina-ai's finetuner 0.8.1, whose sampler of this name draws the classes of a batch at random, so that its epochs vary in length.

    Example:
        >>> [len(batch) for batch in ClassSampler([0, 0, 0, 1, 1, 2], batch_size=4, num_items_per_class=2)]
        [4, 4]
    """

    def __init__(
        self, labels: Sequence[Hashable] | Tensor, batch_size: int, num_items_per_class: int | None = None, *, seed: int = 0,
        generator: torch.Generator | None = None, num_replicas: int | None = None, rank: int | None = None,
    ) -> None:
        super().__init__(labels, seed, generator, num_replicas, rank)
        classes = len(self.indices)
        if batch_size < 1:
            raise ValueError(f"ClassSampler: batch_size must be at least 1, got {batch_size}")
        items = max(batch_size // classes, 1) if num_items_per_class is None else num_items_per_class
        if items < 1 or items > batch_size:
            raise ValueError(f"ClassSampler: num_items_per_class must be in [1, batch_size={batch_size}], got {items}")
        if batch_size // items > classes:
            raise ValueError(
                f"ClassSampler: a batch of {batch_size} with {items} of each class needs {batch_size // items} classes, got {classes}"
            )
        self.batch_size, self.num_items_per_class, self.classes = batch_size, items, batch_size // items
        self.groups = torch.tensor([-(-len(indices) // items) for indices in self.indices])
        # T batches are possible if the classes have that many places for their groups, no class in a batch twice.
        most = int(self.groups.sum()) // self.classes
        while int(self.groups.clamp(max=most).sum()) < most * self.classes:
            most = int(self.groups.clamp(max=most).sum()) // self.classes
        self.batches = most

    def __len__(self) -> int:
        return self.batches // self.num_replicas

    def __iter__(self) -> Iterator[list[int]]:
        numbers, items = self._numbers(), self.num_items_per_class
        orders = []
        for indices, groups in zip(self.indices, self.groups.tolist()):
            order = indices[torch.randperm(len(indices), generator=numbers)]
            again = indices[torch.randint(len(indices), (groups * items - len(order),), generator=numbers)]
            orders.append(torch.cat([order, again]).view(groups, items))
        left = self.groups.clone()
        for turn in range(len(self) * self.num_replicas):
            chosen = (left + torch.rand(len(left), generator=numbers)).topk(self.classes).indices
            left[chosen] -= 1
            if turn % self.num_replicas == self.rank:
                yield torch.cat([orders[c][left[c]] for c in chosen.tolist()]).tolist()
