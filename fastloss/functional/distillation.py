"""Distances between the distributions that two rows of logits give, a student's and a teacher's, on the `divergence` engine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..divergence import divergence
from ..engine import overridden
from ..registry import register

__all__ = ["distillation_loss", "generalized_jsd", "js_divergence", "total_variation"]

_ABOUT: dict = dict(
    operands={"input": "logits", "target": "logits", "labels": "labels", "mask": "mask"}, optional=True, forward=("labels", "mask"),
)
_TEMPERATURE = {"temperature": (0.5, 4.0)}


@register(
    "divergence", formula="T^2 sum_c q_c (log q_c - log p_c), p = softmax(x / T), q = softmax(t / T)",
    source="Hinton et al. 2015, section 2.1", params=_TEMPERATURE,
    choices={"reverse": (False, True), "squared_temperature": (True, False)}, **_ABOUT,
)
def distillation_loss(
    input: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    reverse: bool = False,
    squared_temperature: bool = True,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Divergence of a student's distribution from a teacher's, both softened by a temperature.

    .. math:: \ell = T^2 \sum_c q_c (\log q_c - \log p_c), \qquad p = \mathrm{softmax}(x / T),\ q = \mathrm{softmax}(t / T)

    The factor :math:`T^2` keeps the size of the gradients. Softmaxes, logarithms and the sum are one sweep over the logits, and the
    gradient is one more; nothing but six numbers a row is kept in between. A class whose teacher's probability is 0 adds 0.

    Args:
        input: the student's logits :math:`x`; float32, float64, bfloat16 or float16, any strides.
        target: the teacher's logits :math:`t`. They get a gradient too where they require one.
        temperature: :math:`T`, positive. Default: 1.
        reverse: :math:`T^2 \sum_c p_c (\log p_c - \log q_c)` instead, which seeks modes (Gu et al. 2024). Default: False.
        squared_temperature: whether to multiply by :math:`T^2`. Default: True.
        labels: integers, one a row; rows whose label is `ignore_index` do not count. Default: None, every row counts.
        ignore_index: see `labels`. Default: -100.
        mask: booleans, one a row; rows that are False do not count. Default: None, every row counts.
        reduction: ``"none"``: a loss for each row, 0 of those that do not count; ``"mean"`` over the rows that count (NaN where none
            does), which is what torch calls "batchmean"; ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: :math:`(C)` or :math:`(..., C)`
        - labels, mask: the same without :math:`C`
        - loss: scalar, or :math:`(...)` for ``reduction="none"``

    Raises:
        ValueError: shapes differ; the temperature is not positive; unknown reduction or backend.
        TypeError: an argument is not a Tensor.
        RuntimeError: labels are not integers or `mask` not booleans; tensors are on different devices; the backend cannot run here.
        NotImplementedError: logits of another dtype.

    Source:
        Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2.1.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.distillation_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]), temperature=2.0)
        tensor(1.0915)
    """
    name = "distillation"
    if has_torch_function_variadic(input, target, labels, mask):
        return overridden(name, locals(), (input, target, labels, mask))
    factor = float(temperature) ** 2 if squared_temperature else 1.0
    return _of_rows(
        name, "kl", input, target, temperature, labels, ignore_index, mask, reduction, backend, swapped=reverse, factor=factor
    )


@register(
    "divergence", formula="(KL(q, m) + KL(p, m)) / 2, m = (p + q) / 2", source="Lin 1991, equation 3.3", params=_TEMPERATURE, **_ABOUT,
)
def js_divergence(
    input: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Jensen-Shannon divergence of two rows of logits.

    .. math:: \ell = \tfrac{1}{2} \mathrm{KL}(q \,\|\, m) + \tfrac{1}{2} \mathrm{KL}(p \,\|\, m), \qquad m = \tfrac{1}{2} (p + q)

    with :math:`p = \mathrm{softmax}(x / T)` and :math:`q = \mathrm{softmax}(t / T)`: symmetric, at most :math:`\log 2`, and finite also
    where one side has probability 0.

    Args:
        input: the student's logits :math:`x`; float32, float64, bfloat16 or float16, any strides.
        target: the teacher's logits :math:`t`.
        temperature: :math:`T`, positive. Default: 1.
        labels, ignore_index, mask: rows that do not count, as for :func:`distillation_loss`.
        reduction: as for :func:`distillation_loss`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        As for :func:`distillation_loss`.

    Raises:
        ValueError: as for :func:`distillation_loss`, and so are the other errors.

    Source:
        Lin 1991, "Divergence measures based on the Shannon entropy", equation 3.3.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.js_divergence(torch.tensor([[0.0, 40.0]]), torch.tensor([[40.0, 0.0]]))
        tensor(0.6931)
    """
    name = "js_divergence"
    if has_torch_function_variadic(input, target, labels, mask):
        return overridden(name, locals(), (input, target, labels, mask))
    return _of_rows(
        name, "jensen_shannon", input, target, temperature, labels, ignore_index, mask, reduction, backend, params=(0.5,)
    )


@register(
    "divergence", formula="beta KL(q, m) + (1 - beta) KL(p, m), m = beta q + (1 - beta) p", source="Agarwal et al. 2024, equation 1",
    params={"beta": (0.0, 1.0), **_TEMPERATURE}, **_ABOUT,
)
def generalized_jsd(
    input: Tensor,
    target: Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence, between the two directions of the Kullback-Leibler divergence.

    .. math:: \ell = \beta\, \mathrm{KL}(q \,\|\, m) + (1 - \beta)\, \mathrm{KL}(p \,\|\, m), \qquad m = \beta q + (1 - \beta) p

    with :math:`p = \mathrm{softmax}(x / T)` and :math:`q = \mathrm{softmax}(t / T)`. For :math:`\beta = 0` and 1, where this is 0, it is
    the limit of :math:`\ell / \beta`, :math:`\mathrm{KL}(q \,\|\, p)`, and of :math:`\ell / (1 - \beta)`, :math:`\mathrm{KL}(p \,\|\, q)`, as
    others do.

    Args:
        input: the student's logits :math:`x`; float32, float64, bfloat16 or float16, any strides.
        target: the teacher's logits :math:`t`.
        beta: in [0, 1]. Default: 0.5, the Jensen-Shannon divergence.
        temperature: :math:`T`, positive. Default: 1.
        labels, ignore_index, mask: rows that do not count, as for :func:`distillation_loss`.
        reduction: as for :func:`distillation_loss`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        As for :func:`distillation_loss`.

    Raises:
        ValueError: `beta` is not in [0, 1]; otherwise as for :func:`distillation_loss`, and so are the other errors.

    Source:
        Agarwal et al. 2024, "On-policy distillation of language models: learning from self-generated mistakes", equation 1.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.generalized_jsd(torch.tensor([[0.0, 40.0]]), torch.tensor([[40.0, 0.0]]), beta=0.25)
        tensor(0.5623)
    """
    name = "generalized_jsd"
    if has_torch_function_variadic(input, target, labels, mask):
        return overridden(name, locals(), (input, target, labels, mask))
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"{name}: beta must be in [0, 1], got {beta}")
    if beta in (0.0, 1.0):
        return _of_rows(name, "kl", input, target, temperature, labels, ignore_index, mask, reduction, backend, swapped=beta == 1.0)
    return _of_rows(
        name, "jensen_shannon", input, target, temperature, labels, ignore_index, mask, reduction, backend, params=(float(beta),)
    )


@register(
    "divergence", formula="sum_c |p_c - q_c| / 2", source="Levin, Peres and Wilmer 2009, proposition 4.2", params=_TEMPERATURE, **_ABOUT,
)
def total_variation(
    input: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Total variation distance of two rows of logits, :math:`\ell = \tfrac{1}{2} \sum_c |p_c - q_c|`.

    :math:`p = \mathrm{softmax}(x / T)`, :math:`q = \mathrm{softmax}(t / T)`. The derivative of the modulus at 0 is 0.

    Args:
        input: the student's logits :math:`x`; float32, float64, bfloat16 or float16, any strides.
        target: the teacher's logits :math:`t`.
        temperature: :math:`T`, positive. Default: 1.
        labels, ignore_index, mask: rows that do not count, as for :func:`distillation_loss`.
        reduction: as for :func:`distillation_loss`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        As for :func:`distillation_loss`.

    Raises:
        ValueError: as for :func:`distillation_loss`, and so are the other errors.

    Source:
        Levin, Peres and Wilmer 2009, "Markov chains and mixing times", proposition 4.2; for distillation Wen et al. 2023, equation 10.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.total_variation(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 40.0]]))
        tensor(0.5000)
    """
    name = "total_variation"
    if has_torch_function_variadic(input, target, labels, mask):
        return overridden(name, locals(), (input, target, labels, mask))
    return _of_rows(name, "total_variation", input, target, temperature, labels, ignore_index, mask, reduction, backend)


def _of_rows(
    name: str, functor: str, input: Tensor, target: Tensor, temperature: float, labels: Tensor | None, ignore_index: int,
    mask: Tensor | None, reduction: str, backend: str | None, *, params: tuple[float, ...] = (), swapped: bool = False, factor: float = 1.0,
) -> Tensor:
    """Check the arguments and run the engine; `swapped` makes the teacher's the first side."""
    dtype = _checks.logit_rows(name, input, target)
    _checks.reduction_code(name, reduction)
    _checks.positive(name, "temperature", temperature)
    weight = rows_that_count(name, input, labels, ignore_index, mask)
    sides = (target, input) if swapped else (input, target)
    scale = 1.0 / float(temperature)
    return divergence(
        name, functor, *sides, params=params, weight=weight, scales=(scale, scale), factor=factor, reduction=reduction, dtype=dtype,
        backend=backend,
    )


def rows_that_count(name: str, input: Tensor, labels: Tensor | None, ignore_index: int, mask: Tensor | None) -> Tensor | None:
    """Which rows of logits (..., C) count, as booleans (...); None for all of them."""
    for argument, tensor in (("labels", labels), ("mask", mask)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor or None, got {type(tensor).__name__}")
        if tensor.device != input.device:
            raise RuntimeError(
                f"{name}: expected all tensors on one device, but input is on {input.device} and {argument} on {tensor.device}"
            )
        if tensor.shape != input.shape[:-1]:
            wanted = tuple(input.shape[:-1])
            raise ValueError(f"{name}: {argument} must have input's shape less the classes, {wanted}, got {tuple(tensor.shape)}")
    if labels is not None and (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool):
        raise RuntimeError(f"{name}: labels must be integers, got {labels.dtype}")
    if mask is not None and mask.dtype != torch.bool:
        raise RuntimeError(f"{name}: mask must be booleans, got {mask.dtype}")
    if labels is None:
        return mask
    counts = labels != ignore_index
    return counts if mask is None else counts & mask
