"""Apple's Cut Cross-Entropy, following cut_cross_entropy 25.6.4 (``from fastloss.compat.cut_cross_entropy import linear_cross_entropy``).

Arguments, defaults, call order and results are cut_cross_entropy's; losses and log-sum-exps are float32 also of half-precision inputs.
`filter_eps`, `filter_e_grad`, `filter_c_grad`, `accum_e_fp32`, `accum_c_fp32` and `impl` are taken and make no difference: no gradient is
left out, and all sums are kept in float32. Tensors may be on any device. The vocabulary cannot be split over several processes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._cross_entropy import linear_cross_entropy as _linear_cross_entropy

__all__ = ["LinearCrossEntropy", "LinearCrossEntropyImpl", "VocabParallelOptions", "linear_cross_entropy"]


class LinearCrossEntropyImpl(enum.IntEnum):
    """cut_cross_entropy's implementations, which are all the same here."""

    CCE = enum.auto()
    TORCH_COMPILE = enum.auto()
    CCE_KAHAN_FULL_C = enum.auto()
    CCE_KAHAN_FULL_E = enum.auto()
    CCE_EXACT = enum.auto()
    CCE_KAHAN_FULL_C_FULL_E = enum.auto()
    CCE_KAHAN_FULL = enum.auto()


@dataclass
class VocabParallelOptions:
    """Which classes this process has. Only all of them are supported: `start` 0, `stop` their number, a `group` of one process."""

    start: int
    stop: int
    group: object = None
    reduce_e_grad: bool = True


def _checked(c: Tensor, bias: Tensor | None, impl: str, options: VocabParallelOptions | None, filter_eps: object) -> None:
    name = impl.name.lower() if isinstance(impl, LinearCrossEntropyImpl) else impl
    if name not in {member.name.lower() for member in LinearCrossEntropyImpl}:
        raise NotImplementedError(f"{impl} is not implemented.")
    if not (filter_eps is None or isinstance(filter_eps, float) or filter_eps == "auto"):
        raise RuntimeError(f"linear_cross_entropy: filter_eps must be a float, 'auto' or None, got {filter_eps!r}")
    if options is not None:
        if c.shape[0] != options.stop - options.start:
            raise ValueError(f"Expected c.size(0) to be {options.stop - options.start}, got {c.shape[0]}.")
        group = torch.distributed.is_available() and torch.distributed.is_initialized()
        if options.start or (group and torch.distributed.get_world_size(options.group) > 1):
            raise NotImplementedError("linear_cross_entropy: a vocabulary split over several processes is not supported")
    if bias is not None and bias.shape[0] != c.shape[0]:
        raise ValueError(f"Bias has a different number of elements than c. {bias.shape[0]} vs. {c.shape[0]}.")


def linear_cross_entropy(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    reduction: str = "mean",
    shift: bool | int = 0,
    return_lse: bool = False,
    filter_eps: float | str | None = "auto",
    accum_e_fp32: bool = False,
    accum_c_fp32: bool = False,
    filter_e_grad: bool = True,
    filter_c_grad: bool = True,
    impl: str | LinearCrossEntropyImpl = LinearCrossEntropyImpl.CCE,
    vocab_parallel_options: VocabParallelOptions | None = None,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """cut_cross_entropy's ``linear_cross_entropy``: cross-entropy of ``e @ c.T + bias``, which is not stored.

    Args:
        e: embeddings, (..., D).
        c: classifier, (V, D).
        targets: (...) class indices in [0, V), or `ignore_index`.
        bias: (V,), or None.
        ignore_index: default -100.
        softcap: bound of the logits, or None.
        reduction: ``"mean"`` over the targets that are not ignored, ``"sum"`` or ``"none"``.
        shift: each embedding predicts the target so many places later in the last dimension; True is 1. Default: 0.
        return_lse: also return the log-sum-exp of the logits, 0 where the target is ignored. Default: False.
        filter_eps, accum_e_fp32, accum_c_fp32, filter_e_grad, filter_c_grad, impl: no effect.
        vocab_parallel_options: None, or all classes.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Returns:
        The loss, for ``reduction="none"`` of the targets' shape, less `shift` in the last dimension; with `return_lse` also the
        log-sum-exps of that shape.

    Raises:
        ValueError: `shift` is not in [0, T); `bias` or `vocab_parallel_options` do not fit `c`; unknown reduction.
        NotImplementedError: the vocabulary is split over several processes; unknown `impl`.
        RuntimeError: other shapes, dtypes or devices do not fit; `filter_eps` is neither a float nor ``"auto"`` nor None.
    """
    if shift < 0 or shift >= targets.size(-1):
        raise ValueError(f"Shift must be in the range [0, {targets.size(-1)}). Got {shift}.")
    _checked(c, bias, impl, vocab_parallel_options, filter_eps)
    shift = int(shift)
    if shift:  # of the targets, which are few: the last embeddings predict nothing, so that none has to be copied
        nothing = torch.full_like(targets[..., :shift], ignore_index)
        targets = torch.cat([targets[..., shift:], nothing], -1)
    found = _linear_cross_entropy(
        e, c, targets, linear_bias=bias, ignore_index=ignore_index, softcap=softcap, reduction=reduction, return_lse=return_lse,
        backend=backend,
    )
    loss, lse = found if return_lse else (found, None)
    if reduction == "none" and shift:
        loss = loss[..., :-shift]
    if lse is None:
        return loss
    lse = torch.where(targets != ignore_index, lse, 0.0)
    return loss, lse[..., :-shift] if shift else lse


class LinearCrossEntropy(nn.Module):
    """cut_cross_entropy's ``LinearCrossEntropy``: :func:`linear_cross_entropy` as a module; `c` is an argument of the call.

    Args:
        ignore_index, softcap, reduction, shift, return_lse, backend: as for :func:`linear_cross_entropy`.
        filter_eps, accum_e_fp32, accum_c_fp32, filter_e_grad, filter_c_grad, impl: no effect.
    """

    def __init__(
        self, ignore_index: int = -100, softcap: float | None = None, reduction: str = "mean", shift: bool | int = 0,
        filter_eps: float | str | None = "auto", accum_e_fp32: bool = False, accum_c_fp32: bool = False, filter_e_grad: bool = True,
        filter_c_grad: bool = True, impl: str | LinearCrossEntropyImpl = LinearCrossEntropyImpl.CCE, return_lse: bool = False, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index, self.softcap, self.reduction, self.shift, self.filter_eps = ignore_index, softcap, reduction, shift, filter_eps
        self.accum_e_fp32, self.accum_c_fp32 = accum_e_fp32, accum_c_fp32
        self.filter_e_grad, self.filter_c_grad = filter_e_grad, filter_c_grad
        self.impl, self.return_lse, self.backend = impl, return_lse, backend

    def forward(self, e: Tensor, c: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return linear_cross_entropy(
            e, c, targets, bias, self.ignore_index, self.softcap, self.reduction, self.shift, self.return_lse, self.filter_eps,
            self.accum_e_fp32, self.accum_c_fp32, self.filter_e_grad, self.filter_c_grad, self.impl, backend=self.backend,
        )
