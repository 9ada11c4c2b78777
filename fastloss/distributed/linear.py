"""Cross-entropy of a linear layer whose classes are spread over processes: the pair engine on each one's, and its statistics merged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from .. import _checks
from ..engine import accumulate_dtype
from ..functional import linear as one
from .group import Group
from .vocabulary import checksum, local_classes, merged, replicated, shards, weights_of

NAME = one.NAME
# The rows' gradients are added up over the processes part by part, each while the next is computed. Parts cost another gradient of the
# weights, and time where they are small.
PARTS, PART_ROWS = 4, 1024


def linear_cross_entropy(
    group: object, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None, settings: dict,
    memory_budget: int | None, backend: str | None,
) -> Tensor | tuple[Tensor, ...]:
    """:func:`fastloss.functional.linear_cross_entropy` of classes that are spread over a group."""
    linear_weight, group = local_classes(NAME, linear_weight, group, 0)
    linear_bias = replicated(linear_bias)  # of a sharded one what is here
    target, weight = replicated(target), replicated(weight)
    together = Group(NAME, group)
    sequence = isinstance(input, DTensor)
    if sequence:  # whose own backward adds the parts up, and leaves each process what it has
        everywhere = [Replicate()] * input.device_mesh.ndim
        input = input.redistribute(placements=everywhere).to_local(grad_placements=[Partial()] * len(everywhere))
    x = input.reshape(-1, input.shape[-1])

    def check():
        one._shapes(input, linear_weight, target, linear_bias)
        if linear_weight.dim() > 2 or target.is_floating_point():
            raise NotImplementedError(f"{NAME}: with group neither class probabilities nor K-dimensional losses can be had")
        stand_in = x.new_empty(()).expand(len(x), len(linear_weight))
        chosen = (settings[key] for key in ("ignore_index", "label_smoothing", "softcap", "empty"))
        _, _, dtype = _checks.row(NAME, False, stand_in, target.reshape(-1), None, *chosen)
        _checks.reduction_code(NAME, settings["reduction"])
        if weight is not None and weight.requires_grad:
            raise NotImplementedError(f"{NAME}: with group there is no gradient to weight")
        about = {
            "input's shape": tuple(input.shape), "input's dtype": input.dtype, "the target": (tuple(target.shape), checksum(target)),
            "weight's shape": None if weight is None else tuple(weight.shape), "a bias": linear_bias is not None, "the options": settings,
            "requires_grad": [t is not None and t.requires_grad and torch.is_grad_enabled() for t in (input, linear_weight, linear_bias)],
        }
        return dtype, about, (len(linear_weight),)

    dtype = together.agree(check, input)
    first, classes = shards(together)
    weight = weights_of(NAME, weight, classes, accumulate_dtype(x.dtype))
    rows = target.shape
    target = target.reshape(-1)
    _checks.labels_in_range(NAME, target, classes, settings["ignore_index"])

    def shared(rows: Tensor) -> list[Tensor]:
        if sequence:
            return [rows]
        parts = rows.split(max(PART_ROWS, -(-len(rows) // PARTS)))
        return [together.shared(part, ahead=len(parts) > 1) for part in parts]

    if settings["softcap"] is not None and settings["label_smoothing"] > 0 and weight is not None:
        loss, *extras = one._by_logits(
            x if sequence else together.shared(x), linear_weight, target, linear_bias, weight, settings, False, backend, together.process_group
        )
    else:
        shard = one.Shard(first, classes, lambda terms, found: merged(together, terms, found), together.sum, shared)
        loss, *extras = one._by_statistics(
            x, linear_weight, target, linear_bias, weight, settings, False, memory_budget, backend, shard
        )
    loss = loss.to(dtype).view(rows) if settings["reduction"] == "none" else loss.to(dtype)
    return (loss, *(extra.view(rows) for extra in extras)) if extras else loss
