"""Cross-entropies that are wrong on purpose, one defect each, for tests that the fuzzer finds them. `right` has none."""

from __future__ import annotations

import math

import torch

BLOCK = 16


def _log_sum_exp(logits: torch.Tensor, defect: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The maximum and the log of the sum relative to it, online, block by block, as kernels do it."""
    high = torch.full(logits.shape[:1], -math.inf, dtype=logits.dtype)
    total = torch.zeros_like(high)
    for block in logits.split(BLOCK, dim=1):
        new = torch.maximum(high, block.amax(1))
        shift = new if defect == "empty block" else torch.where(new == -math.inf, 0.0, new)
        total = total * torch.exp(high - shift) + torch.exp(block - shift.unsqueeze(1)).sum(1)
        high = new
    return high, total.log()


class _CrossEntropy(torch.autograd.Function):
    """Makes the gradient in the forward, for an upstream gradient of 1."""

    @staticmethod
    def forward(ctx, x, target, ignore_index, reduction, softcap, defect):
        rows, classes = x.shape
        acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        z = x.detach().to(acc)
        if defect == "phantom classes":
            z = torch.nn.functional.pad(z, (0, -classes % BLOCK), value=-math.inf)
        if softcap:
            tanh = torch.tanh(z / softcap)
            z = softcap * tanh
        if defect != "phantom classes":
            z = torch.nn.functional.pad(z, (0, -classes % BLOCK), value=-math.inf)
        high, log_sum = _log_sum_exp(z, defect)
        counted = target != ignore_index
        index = torch.where(counted, target, 0).unsqueeze(1)
        at = z.gather(1, index).squeeze(1)
        loss = high + log_sum - at if defect == "cancelling" else log_sum - (at - high)
        loss = torch.where(counted, loss, 0.0)
        grad = torch.exp(z - high.unsqueeze(1) - log_sum.unsqueeze(1))
        grad = grad.scatter_add(1, index, torch.full_like(at, -1.0).unsqueeze(1))
        grad = (grad * (1 - tanh**2) if softcap and defect == "phantom classes" else grad)[:, :classes]
        if softcap and defect != "phantom classes":
            grad = grad * (1 - tanh**2)
        grad = torch.where(counted.unsqueeze(1), grad, 0.0)
        if reduction != "none":
            divisor = counted.sum() if reduction == "mean" else 1
            loss = loss.sum() / divisor
            grad = torch.where(counted.unsqueeze(1), grad / divisor, 0.0)
        grad = grad.to(x.dtype)
        if defect == "raw logits" and x.stride(-1) != 1:
            grad = x.detach().clone()
        if defect == "overwritten":
            x.detach().copy_(grad)
        ctx.save_for_backward(grad)
        ctx.defect = defect
        return loss.to(x.dtype)

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        upstream = upstream.unsqueeze(1) if upstream.dim() else upstream
        scaled = grad.data.mul_(upstream) if ctx.defect == "scaled twice" else grad * upstream  # .data: unseen by autograd, as a kernel is
        return scaled, None, None, None, None, None


def cross_entropy(input, target, ignore_index=-100, reduction="mean", softcap=None, *, defect=""):
    if input.dim() != 2 or target.dtype != torch.int64:
        raise NotImplementedError("only (N, C) logits and int64 labels")
    return _CrossEntropy.apply(input, target, ignore_index, reduction, softcap, defect)


def _with(name: str, defect: str):
    def function(input, target, ignore_index=-100, reduction="mean", softcap=None):
        return cross_entropy(input, target, ignore_index, reduction, softcap, defect=defect)

    function.__name__ = function.__qualname__ = name
    return function


right = _with("right", "")
phantom_classes = _with("phantom_classes", "phantom classes")
nan_from_empty_block = _with("nan_from_empty_block", "empty block")
raw_logits_as_gradient = _with("raw_logits_as_gradient", "raw logits")
overwrites_logits = _with("overwrites_logits", "overwritten")
scaled_twice = _with("scaled_twice", "scaled twice")
cancelling = _with("cancelling", "cancelling")
