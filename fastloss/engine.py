"""What the engines share: reductions, dtypes, the operator library, and gradients through an engine's formula."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from .registry import LOSSES

# Codes shared with csrc/math.h. Of the row engine "row_mean" divides by the rows that count, "mean" by their weights; of the
# element-wise engine "weighted_mean" divides by the weights, "mean" by the number of elements, and of operands (R, C) "row_mean" by R and
# "column_mean" by C; "row_sums" gives R sums.
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "row_mean": 3, "weighted_mean": 4, "column_mean": 5, "row_sums": 6}
COMPILED = ("cpu", "triton", "cuda")

library = torch.library.Library("fastloss", "DEF")


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A block in which products of matrices keep the dtype of their operands."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def define(op: str, schema: str, fake: Callable) -> dict[str, Callable]:
    """Define an operator with one overload a backend, so that a trace shows which backend ran; gives the overloads."""
    for backend in COMPILED:
        library.define(f"{op}.{backend}{schema}")
        torch.library.register_fake(f"fastloss::{op}.{backend}", fake, lib=library)
    return {backend: getattr(getattr(torch.ops.fastloss, op), backend) for backend in COMPILED}


def formula_backward(
    run: Callable[..., Sequence[Tensor | None]], inputs: Sequence[Tensor | None], needed: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients to the `needed` ones of `inputs` through plain torch, differentiable again.

    Args:
        run: the formula, from the inputs to as many outputs as there are `grads`.
        inputs: its arguments.
        needed: which of them a gradient is wanted for.
        grads: upstream gradients; None for an output that took no part.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, for inputs that depend on one another, as a row and its square do: the derivative by each is with the others held.
        leaves = [
            t if not need else (t.view_as(t) if create_graph else t.detach().requires_grad_()) for t, need in zip(inputs, needed)
        ]
        outputs = [(out.reshape(grad.shape), grad) for out, grad in zip(run(*leaves), grads) if grad is not None]
    if not outputs:
        return [None] * len(inputs)
    wanted = [leaf for leaf, need in zip(leaves, needed) if need]
    found = iter(
        torch.autograd.grad([o for o, _ in outputs], wanted, [g for _, g in outputs], create_graph=create_graph, allow_unused=True)
    )
    return [next(found) if need else None for need in needed]


def fast_apply(function: type[torch.autograd.Function]) -> Callable:
    """``function.apply`` without its look for torch.func transforms, 2 us: under one the formula runs."""
    raw, known = super(torch.autograd.Function, function).apply, function.apply

    def apply(*args):
        if not torch.compiler.is_compiling():
            return raw(*args)
        # Dynamo knows only Function.apply, and no tensor twice among its arguments.
        return known(*(x.view_as(x) if torch.is_tensor(x) and any(x is y for y in args[:i]) else x for i, x in enumerate(args)))

    return apply


def overridden(name: str, options: dict[str, object], tensors: tuple[Tensor | None, ...]):
    """Hand the call of a public function to the ``__torch_function__`` of its tensors; `options` may hold more than it takes."""
    function = LOSSES[name].function
    taken = inspect.signature(function).parameters
    positional = [p for p in taken.values() if p.default is p.empty]
    named = {option: value for option, value in options.items() if option in taken}
    return handle_torch_function(function, tensors, *(named.pop(p.name) for p in positional), **named)


def over_group(module: str, name: str, group: object, *args):
    """Hand the call of a public function to the loss `name` of a module of :mod:`fastloss.distributed`, which is imported for that."""
    if not torch.distributed.is_available():
        raise RuntimeError(f"{name}: group needs torch.distributed, which this build of torch does not have")
    run = getattr(importlib.import_module(f"fastloss.distributed.{module}"), name)
    dynamo = sys.modules.get("torch._dynamo")
    return (run if dynamo is None else dynamo.disable(run))(group, *args)


over_group._torchdynamo_disable = True  # what goes between processes is not for a graph; torch.compiler.disable would import Dynamo, 3 s


def is_sharded(tensor: Tensor, dim: int) -> bool:
    """Whether a tensor is a DTensor of which each process has some slices of a dimension, or of the only one."""
    if type(tensor) is Tensor or not hasattr(tensor, "placements"):
        return False
    return any(placement.is_shard(min(dim, tensor.dim() - 1)) for placement in tensor.placements)
