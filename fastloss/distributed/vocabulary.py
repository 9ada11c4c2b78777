"""Cross-entropy over classes that are spread over processes: each has all rows, and the logits of its classes.

Two all-reduces of a few numbers a row make the softmax that of all classes: one of the rows' maxima, one of the sums that are relative to
them. No logit and no gradient of one leaves its process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from .. import _checks
from .._backends import choose
from ..engine import accumulate_dtype
from ..pair import Statistic, Term
from ..row import _BACKWARD_OP, _FORWARD
from .group import Group, first_derivative

CHUNK = 2**18  # logits that plain torch works on at a time
NOWHERE = -100  # label of a row whose class is another process's


def local_classes(name: str, logits: Tensor, group: object, dim: int) -> tuple[Tensor, object]:
    """This process's logits and the group of its classes, of a DTensor whose dimension of classes is sharded; else what was given."""
    if not isinstance(logits, DTensor):
        return logits, group
    mesh, placements = logits.device_mesh, logits.placements
    over = [k for k, placement in enumerate(placements) if placement.is_shard(dim)]
    if len(over) != 1 or any(placement.is_partial() for placement in placements):
        raise ValueError(
            f"{name}: a DTensor must be sharded over the classes, dimension {dim}, by one dimension of its mesh, got {placements}"
        )
    return logits.to_local(), (mesh, over[0]) if group is None else group


def replicated(tensor: Tensor | None) -> Tensor | None:
    """What this process has of a tensor that all of them have."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def checksum(target: Tensor) -> int | None:
    """A number that tells targets apart, on the CPU, where it costs no synchronisation."""
    return int(target.sum()) if target.device.type == "cpu" and target.numel() else None


def shards(together: Group, of: int = 0) -> tuple[int, int]:
    """The first class of this process, and the number of all classes."""
    return sum(together.every(of)[: together.rank]), together.count(of)


def weights_of(name: str, weight: Tensor | None, classes: int, wide: torch.dtype) -> Tensor | None:
    """The weights of all classes, checked."""
    if weight is None:
        return None
    if weight.shape != (classes,):
        raise RuntimeError(
            f"{name}: weight tensor should be defined either for all {classes} classes of the group or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )
    return weight.detach().to(wide)


class _Plan(NamedTuple):
    """A call, but for its tensors."""

    group: Group
    backend: str
    softcap: float  # 0: none
    logit_scale: float
    first: int  # class of this process
    classes: int  # of all processes
    everywhere: bool  # whether the sum over all classes is wanted

    def transform(self, x: Tensor) -> Tensor:
        x = x if self.logit_scale == 1.0 else x * self.logit_scale
        return self.softcap * torch.tanh(x / self.softcap) if self.softcap else x

    @property
    def settings(self) -> tuple:
        """What the row engine's operators take."""
        return "cross_entropy", [], 0.0, 0.0, self.softcap, self.logit_scale, False, NOWHERE, 0

    def by_kernels(self, logits: Tensor) -> bool:
        return self.backend != "eager" and not self.everywhere and logits.numel() > 0


class _Softmax(torch.autograd.Function):
    """Of each row ``lse - z_label``, ``sum_c w_c (lse - z_c)``, lse, and ``max - z_label``, over the classes of all processes.

    Labels are classes of this process, or NOWHERE; weights those of all classes, or None.
    """

    @staticmethod
    def forward(ctx, plan, logits, label, weight):
        wide, classes, group, here = accumulate_dtype(logits.dtype), logits.shape[1], plan.group, label != NOWHERE
        own = None if weight is None else weight[plan.first : plan.first + classes]
        if plan.by_kernels(logits):
            stats = _FORWARD[plan.backend](logits, label, None, *plan.settings, False, False, False, logits.dtype)[1]
            most, total, spread = stats[0], torch.exp(stats[1]), None
        else:
            most, total, spread = _plain_sums(plan, logits, own, wide)
        top = group.all_reduce(most.clone(), dist.ReduceOp.MAX)
        below = torch.zeros_like(top)
        if classes:
            z = plan.transform(logits.gather(1, torch.where(here, label, 0).unsqueeze(1)).squeeze(1).to(wide))
            below = torch.where(here, top - z, 0.0)
        none = most == -torch.inf
        parts = [torch.where(none, 0.0, torch.exp(most - top) * total), below, here.to(wide)]
        if plan.everywhere:
            lower = (top - most) * (classes if own is None else own.sum())
            parts.append(torch.where(none, torch.inf if classes else 0.0, spread + lower))
        total, below, known, *spread = group.all_reduce(torch.stack(parts)).unbind()
        log_sum = torch.log(total)
        below = torch.where(known > 0, below, math.nan)
        weights = plan.classes if weight is None else weight.sum()
        ctx.plan = plan
        ctx.save_for_backward(logits, label, weight, top, log_sum)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(below)
        return log_sum + below, spread[0] + weights * log_sum if spread else None, top + log_sum, below

    @staticmethod
    def backward(ctx, by_nll, by_spread, by_lse, _):
        plan = ctx.plan
        first_derivative(plan.group)
        logits, label, weight, top, log_sum = ctx.saved_tensors
        nothing = torch.zeros_like(top)
        direct = torch.where(label != NOWHERE, nothing if by_nll is None else by_nll, 0.0)  # less at the label
        softmax = sum((g for g in (by_nll, by_lse) if g is not None), nothing)
        if plan.by_kernels(logits):
            # The engine's own loss takes `direct` to the softmax as well.
            stats = torch.stack([top, log_sum, torch.where(label != NOWHERE, -1.0, 0.0).to(top)])
            none = top.new_zeros(())
            return None, _BACKWARD_OP[plan.backend](
                direct, softmax - direct, None, logits, label, None, stats, none, None, *plan.settings
            ), None, None
        if by_spread is not None:
            softmax = softmax + by_spread * (plan.classes if weight is None else weight.sum())
        own = None if weight is None else weight[plan.first : plan.first + logits.shape[1]]
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            z = plan.transform(logits[rows].to(top.dtype))
            by = softmax[rows].unsqueeze(1) * torch.exp((z - top[rows].unsqueeze(1)) - log_sum[rows].unsqueeze(1))
            if by_spread is not None:
                by = by - by_spread[rows].unsqueeze(1) * (1.0 if own is None else own)
            if logits.shape[1]:
                here = torch.where(label[rows] == NOWHERE, 0, label[rows]).unsqueeze(1)
                by = by.scatter_add(1, here, -direct[rows].unsqueeze(1))
            by = by * (plan.logit_scale * (1 - (z / plan.softcap).square()) if plan.softcap else plan.logit_scale)
            idle = (softmax[rows] == 0) & (direct[rows] == 0)  # whatever the row holds
            grad[rows] = torch.where(idle.unsqueeze(1), 0.0, by).to(grad.dtype)
        return None, grad, None, None


def _plain_sums(plan: _Plan, logits: Tensor, weight: Tensor | None, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of each row the maximum, ``sum_c exp(z_c - max)``, and ``sum_c w_c (max - z_c)`` if it is wanted."""
    most = logits.new_full((len(logits),), -torch.inf, dtype=wide)
    total, spread = torch.zeros_like(most), torch.zeros_like(most) if plan.everywhere else None
    for rows in _chunks(logits) if logits.shape[1] else ():
        z = plan.transform(logits[rows].to(wide))
        most[rows] = z.amax(1)
        shifted = z - torch.where(most[rows] == -torch.inf, 0.0, most[rows]).unsqueeze(1)
        total[rows] = torch.exp(shifted).sum(1)
        if spread is not None:
            spread[rows] = -(shifted if weight is None else shifted * weight).sum(1)
    return most, total, spread


def _chunks(logits: Tensor) -> list[slice]:
    step = max(1, CHUNK // max(logits.shape[1], 1))
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def cross_entropy(
    group: object, input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float,
    z_loss: float, softcap: float | None, logit_scale: float, return_lse: bool, return_entropy: bool, return_accuracy: bool, inplace: bool,
    empty: str, backend: str | None,
) -> Tensor | tuple[Tensor, ...]:
    """:func:`fastloss.functional.cross_entropy` of logits whose classes are spread over a group."""
    name = "cross_entropy"
    input, group = local_classes(name, input, group, 1 if input.dim() > 1 else 0)
    target, weight = replicated(target), replicated(weight)
    together = Group(name, group)

    def check():
        if return_entropy or inplace:
            raise NotImplementedError(f"{name}: with group neither return_entropy nor inplace can be had")
        batched, _, dtype = _checks.row(name, False, input, target, None, ignore_index, label_smoothing, softcap, empty)
        _checks.reduction_code(name, reduction)
        if weight is not None and weight.requires_grad:
            raise NotImplementedError(f"{name}: with group there is no gradient to weight")
        about = {
            "input's shape but for the classes": [n for k, n in enumerate(input.shape) if k != int(batched)], "input's dtype": input.dtype,
            "the target": (tuple(target.shape), checksum(target)), "weight's shape": None if weight is None else tuple(weight.shape),
            "ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing, "z_loss": z_loss,
            "softcap": softcap, "logit_scale": logit_scale, "return_lse": return_lse, "return_accuracy": return_accuracy, "empty": empty,
            "requires_grad": input.requires_grad and torch.is_grad_enabled(),
        }
        return (batched, dtype), about, (input.shape[int(batched)],)

    batched, dtype = together.agree(check, input)
    first, classes = shards(together)
    weight = weights_of(name, weight, classes, accumulate_dtype(input.dtype))
    _checks.labels_in_range(name, target, classes, ignore_index)
    shape = target.shape if batched else ()
    label = target.reshape(-1).long()
    counts = label != ignore_index
    here = counts & (label >= first) & (label < first + input.shape[int(batched)])
    logits = input.movedim(1, -1).flatten(0, -2) if batched else input.unsqueeze(0)
    logits = logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()
    plan = _Plan(
        together, choose(name, backend, input)[0], float(softcap or 0.0), float(logit_scale), first, classes, label_smoothing > 0
    )
    nll, spread, lse, below = _Softmax.apply(plan, logits, torch.where(here, label - first, NOWHERE), weight)
    known = counts & (label >= 0) & (label < classes)
    each = None if weight is None else weight[torch.where(known, label, 0)]
    rows = nll if each is None else nll * each
    if label_smoothing:
        rows = rows * (1 - label_smoothing) + spread * (label_smoothing / classes)
    if z_loss:
        rows = rows + z_loss * torch.where(counts, lse, 0.0).square()
    rows = torch.where(counts, rows, 0.0)
    if reduction == "mean":
        divisor = counts.sum().to(rows.dtype) if each is None else torch.where(counts, each, 0.0).sum()
        loss = rows.sum() / torch.where(divisor == 0, math.inf if empty == "zero" else math.nan, divisor)
    else:
        loss = rows.sum() if reduction == "sum" else rows.reshape(shape)
    extras = [lse.reshape(shape)] if return_lse else []
    if return_accuracy:
        extras.append(((below <= 0) & counts).to(lse.dtype).reshape(shape))
    return (loss.to(dtype), *extras) if extras else loss.to(dtype)


class _Merged(torch.autograd.Function):
    """Statistics of rows over the columns of all processes from those over each one's; all ranks have the same upstream gradients."""

    @staticmethod
    def forward(ctx, group, reduces, *values):
        values = torch.stack(values)
        kinds = torch.tensor([reduce != "sum" for reduce in reduces], device=values.device).unsqueeze(1)
        top = group.all_reduce(torch.where(kinds, values, 0.0), dist.ReduceOp.MAX)
        lse = torch.tensor([reduce == "lse" for reduce in reduces], device=values.device).unsqueeze(1)
        shift = torch.where(top == -torch.inf, 0.0, top)
        total = group.all_reduce(torch.where(lse, torch.exp(values - shift), torch.where(kinds, 0.0, values)))
        merged = torch.where(lse, torch.log(total) + shift, torch.where(kinds, top, total))
        ctx.group, ctx.reduces = group, reduces
        ctx.save_for_backward(values, merged)
        return tuple(merged.unbind())

    @staticmethod
    def backward(ctx, *grads):
        first_derivative(ctx.group)
        found = []
        for reduce, grad, value, merged in zip(ctx.reduces, grads, *ctx.saved_tensors):
            share = torch.where(value == -torch.inf, 0.0, torch.exp(value - merged)) if reduce == "lse" else 1.0
            found.append(None if reduce == "max" else grad * share)
        return None, None, *found


def merged(together: Group, terms: Sequence[Term], found: Sequence[Statistic]) -> list[Statistic]:
    """Statistics of rows over the columns of all processes; of a maximum without its index."""
    reduces = [*(term.reduce for term in terms), *("sum" for _ in terms)]
    values = _Merged.apply(together, reduces, *(s.value for s in found), *(s.count for s in found))
    return [Statistic(value, count.detach()) for value, count in zip(values, values[len(terms) :])]
