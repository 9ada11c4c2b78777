"""Negative log-likelihoods and divergences of given distributions, on the `elementwise` engine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks
from ..elementwise import elementwise_loss
from ..registry import register

__all__ = ["gaussian_nll_loss", "kl_div", "poisson_nll_loss"]


def _poisson_nll(input: Tensor, target: Tensor, log_input: float, full: float, eps: float) -> Tensor:
    loss = torch.exp(input) - target * input if log_input else input - target * torch.log(input + eps)
    if full:
        many = target > 1
        count = torch.where(many, target, 1.0)
        loss = loss + torch.where(many, count * count.log() - count + 0.5 * torch.log(2 * math.pi * count), 0.0)
    return loss


@register(
    "elementwise", point=_poisson_nll, formula="exp(x) - t x, or x - t log(x + eps)", source="torch.nn.functional.poisson_nll_loss",
    params={"log_input": (False, True), "full": (False, True), "eps": (1e-8, 1e-3)}, operands={"input": "rate", "target": "count"},
    torch="poisson_nll_loss",
)
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Negative log-likelihood of counts under Poisson distributions. Drop-in for :func:`torch.nn.functional.poisson_nll_loss`.

    .. math:: \ell = e^x - t x \quad (\text{log\_input}) \qquad \text{or} \qquad \ell = x - t \log(x + \varepsilon)

    Args:
        input: logarithms of the rates, or the rates; float32, float64, bfloat16 or float16, any strides.
        target: counts; broadcasts with `input`.
        log_input: whether `input` is logarithms. Default: True.
        full: add Stirling's approximation of :math:`\log t!`, where :math:`t > 1`. Default: False.
        size_average, reduce: deprecated, as in torch.
        eps: keeps the logarithm of a rate of 0 finite. Default: 1e-8.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`fastloss.functional.mse_loss`.

    Source:
        torch.nn.functional.poisson_nll_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.poisson_nll_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), reduction="none")
        tensor([1.0000, 0.7183])
    """
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    params = float(log_input), float(full), float(eps)
    return elementwise_loss("poisson_nll", params, (input, target, None), None, reduction, backend=backend)


def _gaussian_nll(input: Tensor, target: Tensor, var: Tensor, full: float, eps: float) -> Tensor:
    clamped = var + (var.clamp_min(eps) - var).detach()  # the gradient flows to a clamped variance too, as in torch
    loss = 0.5 * (torch.log(clamped) + (input - target) ** 2 / clamped)
    return loss + 0.5 * math.log(2 * math.pi) if full else loss


@register(
    "elementwise", point=_gaussian_nll, formula="(log v + (x - t)^2 / v) / 2, v = max(var, eps)", source="Nix and Weigend 1994",
    params={"full": (False, True), "eps": (1e-6, 0.5)}, operands={"input": "real", "target": "real", "var": "positive"},
    torch="gaussian_nll_loss",
)
def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Negative log-likelihood of values under normal distributions. Drop-in for :func:`torch.nn.functional.gaussian_nll_loss`.

    .. math:: \ell = \tfrac12 \left(\log v + (x - t)^2 / v\right), \qquad v = \max(\text{var}, \varepsilon)

    Args:
        input: means; float32, float64, bfloat16 or float16, any strides.
        target: true values; broadcasts with `input`.
        var: variances, at least 0: a number, `input`'s shape, or that shape with one dimension 1 or without its last.
        full: add the constant :math:`\tfrac12 \log 2 \pi`. Default: False.
        eps: the least variance; the gradient flows through it. Default: 1e-6.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: a variance on the CPU is negative, or `var` has another shape; otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Nix and Weigend 1994; torch.nn.functional.gaussian_nll_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.gaussian_nll_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), torch.ones(2), reduction="none")
        tensor([0., 2.])
    """
    if isinstance(var, Tensor):
        _checks.not_negative("gaussian_nll", "var", var)
        if isinstance(input, Tensor) and var.shape != input.shape:
            if input.shape[:-1] == var.shape:
                var = var.unsqueeze(-1)
            elif input.dim() != var.dim() or sum(v for x, v in zip(input.shape, var.shape) if x != v) != 1:
                raise ValueError(f"gaussian_nll: var is of incorrect size {tuple(var.shape)} for input of shape {tuple(input.shape)}")
    elif isinstance(var, (int, float)):
        if var < 0:
            raise ValueError(f"gaussian_nll: var has negative entry/entries, got {var}")
        if isinstance(input, Tensor):
            var = torch.full((), var, dtype=input.dtype, device=input.device)
    return elementwise_loss("gaussian_nll", (float(full), float(eps)), (input, target, var), None, reduction, backend=backend)


def _kl_div(input: Tensor, target: Tensor, log_target: float) -> Tensor:
    if log_target:
        return target.exp() * (target - input)
    # 0 log 0 = 0, also in the gradient
    return target * torch.where(target == 0, 1.0, target).log() - target * input


@register(
    "elementwise", point=_kl_div, formula="t (log t - x), or exp(t) (t - x)", source="Kullback and Leibler 1951",
    params={"log_target": (False, True)}, operands={"input": "log_prob", "target": "probability"}, torch="kl_div",
)
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Terms of the Kullback-Leibler divergence, :math:`\ell = t (\log t - x)`, in nats. Drop-in for :func:`torch.nn.functional.kl_div`.

    With `log_target` the target is :math:`\log t`. A target of 0 contributes 0, and the gradient to it is :math:`-x`.

    Args:
        input: log-probabilities of the model; float32, float64, bfloat16 or float16, any strides.
        target: probabilities, or their logarithms with `log_target`; broadcasts with `input`.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``, ``"sum"``, ``"mean"`` over the elements (with torch's warning), or ``"batchmean"``: the sum over the size of
            the first dimension, which is the divergence.
        log_target: whether `target` is logarithms. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        As :func:`fastloss.functional.mse_loss`.

    Source:
        Kullback and Leibler 1951; torch.nn.functional.kl_div.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.kl_div(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]), reduction="batchmean")
        tensor(0.6931)
    """
    if size_average is None and reduce is None and reduction == "mean":
        _checks.warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size. 'batchmean' divides only by the batch "
            "size, and aligns with the KL div math definition."
        )
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    batchmean = reduction == "batchmean"
    loss = elementwise_loss(
        "kl_div", (float(log_target),), (input, target, None), None, "sum" if batchmean else reduction, backend=backend
    )
    return loss / input.shape[0] if batchmean and input.dim() else loss
