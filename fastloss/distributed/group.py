"""A process group as losses see it: who takes part, what all have to agree on, and sums over it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as functional_collectives
from torch.distributed.device_mesh import DeviceMesh

Found = TypeVar("Found")

SIZES = 3  # that a call tells the others


class Group:
    """The processes of a call, and what each of them brought.

    Args:
        name: of the loss, for messages.
        group: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension, or a mesh and the name or number of one of its dimensions.

    Raises:
        TypeError: `group` is none of these.
        ValueError: the mesh has several dimensions; this process is not of the group.
        NotImplementedError: inside a transform of ``torch.func`` or forward-mode differentiation.
    """

    def __init__(self, name: str, group: object) -> None:
        if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
            raise NotImplementedError(f"{name}: with group there are no torch.func transforms and no forward-mode derivatives")
        self.name = name
        self.process_group = _process_group(name, group)
        self.rank, self.world = dist.get_rank(self.process_group), dist.get_world_size(self.process_group)
        if self.rank < 0:
            raise ValueError(f"{name}: this process is not of the group")
        self.sizes: list[tuple[int, ...]] = []  # of each rank, once they agree

    def agree(self, check: Callable[[], tuple[Found, Mapping[str, object], Sequence[int]]], like: Tensor) -> Found:
        """Check arguments on every process, and that all have brought the same; an error on one becomes an error on all.

        One all-gather of fixed size says whether a check has failed, the hash of what has to be equal, and the sizes. It runs at each
        call, since a process that remembered an answer would not take part in the question of one that did not.

        Args:
            check: gives what the loss goes on with, what has to be equal on all ranks by name, and up to three sizes that need not be.
            like: on the device of the tensors; the exchange is on the CPU where the group can do that, without a synchronisation.

        Raises:
            ValueError: what has to be equal is not; the message names it, and who has what.
            RuntimeError: the check of another process has failed; the message says how. What this process's raised is raised again.
        """
        error, found, fields, sizes = None, None, {}, ()
        try:
            found, fields, sizes = check()
        except Exception as raised:  # of any kind: the others wait for this process
            error = raised
        row = [int(error is not None), _hash((self.name, fields)), *sizes, *[0] * (SIZES - len(sizes))]
        devices = self.process_group._device_types
        on_cpu = any(device.type == "cpu" for device in devices)
        # Not of what is no tensor: that it is none has been found out, and the others have to hear of it.
        own = torch.tensor(row, device="cpu" if on_cpu else getattr(like, "device", devices[0]))
        table = self.gather(own).tolist()
        if any(other[0] for other in table) or len({other[1] for other in table}) > 1:
            self._explain(error, fields)
        self.sizes = [tuple(other[-SIZES:]) for other in table]
        return found

    def _explain(self, error: Exception | None, fields: Mapping[str, object]) -> None:
        """Raise what is wrong; every process comes here together."""
        message = None if error is None else f"{type(error).__name__}: {error}"
        told: list[tuple] = [()] * self.world
        dist.all_gather_object(told, (message, self.name, {key: repr(value) for key, value in fields.items()}), group=self.process_group)
        if error is not None:
            raise error
        for rank, (failed, *_) in enumerate(told):
            if failed is not None:
                raise RuntimeError(f"{self.name}: rank {rank} of the group has failed: {failed}")
        names = [name for _, name, _ in told]
        if len(set(names)) > 1:
            raise ValueError(f"{self.name}: the ranks of the group compute different losses: {_who(names)}")
        for key in fields:
            values = [given.get(key, "nothing") for _, _, given in told]
            if len(set(values)) > 1:
                raise ValueError(f"{self.name}: {key} must be the same on all ranks of the group, got {_who(values)}")
        raise ValueError(f"{self.name}: the ranks of the group have different arguments")

    def gather(self, own: Tensor) -> Tensor:
        """(world, ...) of a tensor of the same shape on each rank."""
        every = own.new_empty((self.world, *own.shape))
        if self.world == 1:
            return every.copy_(own)
        dist.all_gather(list(every.unbind()), own.contiguous(), group=self.process_group)
        return every

    def concatenated(self, own: Tensor, of: int = 0) -> Tensor:
        """The rows of all ranks, as many as one of the sizes says."""
        sizes = self.every(of)
        padded = torch.cat([own, own.new_zeros((max(sizes) - len(own), *own.shape[1:]))])
        return torch.cat([rows[:size] for rows, size in zip(self.gather(padded), sizes)])

    def all_reduce(self, own: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """The sum over the ranks, or another reduction, in place."""
        if self.world > 1:
            dist.all_reduce(own, op=op, group=self.process_group)
        return own

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the ranks; the gradient of each rank's own value is the sum's.

        All ranks have to call the backward with the same upstream gradient: the sum is one loss, of which every process holds a copy.
        """
        return _Sum.apply(self, value)

    def shared(self, value: Tensor | float, ahead: bool = False) -> Tensor | float:
        """A tensor of which all ranks have the same copy: its gradient is the sum of what the ranks have computed.

        With `ahead` the backward goes on while that sum is on its way, up to the first use of the gradient.
        """
        return _Shared.apply(self, value, ahead) if isinstance(value, Tensor) and value.requires_grad else value

    def reduced(self, values: Tensor, reduction: str, dtype: torch.dtype) -> Tensor:
        """As :func:`fastloss.plain.reduced`, over the rows of all ranks, which are the first of the sizes; of "none" those of this one."""
        if reduction != "none":
            values = self.sum(values.sum())
        if reduction == "mean":
            values = values / self.count()
        return values.to(dtype)

    def share(self, total: int, rank: int | None = None) -> tuple[int, int]:
        """Of neighbours that the ranks have evenly, the first of this rank, or of another one, and how many it has."""
        rank = self.rank if rank is None else rank
        each, more = divmod(total, self.world)
        return rank * each + min(rank, more), each + (rank < more)

    def count(self, of: int = 0) -> int:
        """The sum of one of the sizes over the ranks."""
        return sum(sizes[of] for sizes in self.sizes)

    def every(self, of: int = 0) -> list[int]:
        """One of the sizes, of each rank."""
        return [sizes[of] for sizes in self.sizes]


def _process_group(name: str, group: object) -> dist.ProcessGroup:
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"{name}: a DeviceMesh as group must have one dimension, got {group.ndim}; take one of them, as mesh['dp']")
        return group.get_group()
    if isinstance(group, tuple) and len(group) == 2 and isinstance(group[0], DeviceMesh):
        return group[0].get_group(group[1])
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{name}: group must be a ProcessGroup, a DeviceMesh or a mesh and a dimension, got {type(group).__name__}")
    return group


def _hash(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big", signed=True)


def _who(values: Sequence[str]) -> str:
    """``8 on rank 0, 16 on ranks 1 and 2``."""
    by: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        by.setdefault(value, []).append(str(rank))
    return ", ".join(f"{value} on rank{'s' * (len(ranks) > 1)} {' and '.join(ranks)}" for value, ranks in by.items())


def first_derivative(group: Group) -> None:
    """Raise in a backward that would have to be differentiated again: what other processes add to that is not there."""
    if torch.is_grad_enabled():
        raise NotImplementedError(f"{group.name}: with group there are first derivatives only, and so no create_graph")


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, value):
        ctx.group = group
        # Summed here in the order of the ranks, so that all hold the same bits.
        return group.gather(value).sum(0) if value.numel() <= 64 else group.all_reduce(value.clone())

    @staticmethod
    def backward(ctx, grad):
        first_derivative(ctx.group)
        return None, grad


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, value, ahead):
        ctx.group, ctx.ahead = group, ahead
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        group = ctx.group
        first_derivative(group)
        if ctx.ahead and group.world > 1:  # a tensor that waits for the sum where it is used
            return None, functional_collectives.all_reduce(grad.contiguous(), "sum", group.process_group), None
        return None, group.all_reduce(grad.contiguous().clone()), None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def for_ddp(*tensors: Tensor, group: object) -> Tensor | tuple[Tensor, ...]:
    """Embeddings on their way from a model under ``DistributedDataParallel`` to a loss over `group`.

    Their gradients are multiplied by the number of processes, so that the mean that is taken of the parameters' gradients is their sum.
    Factors that the loss shares do not go through here: each process has their whole gradient already, and a mean leaves it.

    Example:
        >>> loss = clip_loss(*for_ddp(image, text, group=group), logit_scale.exp(), group=group)  # doctest: +SKIP
    """
    world = Group("for_ddp", group).world
    found = tuple(_Scaled.apply(t, world) for t in tensors)
    return found[0] if len(found) == 1 else found
