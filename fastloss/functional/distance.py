"""Segmentation losses that weigh errors by their distance from the border of the target."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from .._backends import choose
from ..distance import distance_transform
from ..engine import accumulate_dtype, overridden
from ..registry import register

__all__ = ["boundary_loss", "hausdorff_dt_loss"]

_BACKENDS = ("eager", "cpu")


@register(
    "distance",
    point=lambda input, distance: input * distance,
    formula="p D, D the signed distance from the border of t, negative inside",
    source="Kervadec et al. 2019, equation 5",
    backends=_BACKENDS,
)
def boundary_loss(
    input: Tensor, target: Tensor, distance: Tensor | None = None, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    """Boundary loss: probabilities weighed by their signed distance from the border of the target's region.

    ``loss = p D`` of each element, with D the Euclidean distance to the nearest element outside of the region, taken negative, for
    elements inside, and to the nearest inside for elements outside. Where a region is empty or everything, D is 0.

    Args:
        input: probabilities.
        target: the region of each sample and class: not 0 inside.
        distance: D, where it is known beforehand; the target is not read then.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        backend: ``"eager"``, ``"cpu"``; None for the one in force. On a GPU the distances are computed in plain torch.

    Shape:
        - input: (N, C, d1, ...)
        - target, distance: as input
        - output: a scalar; of ``reduction="none"`` as input

    Raises:
        TypeError: an argument is no tensor.
        ValueError: shapes differ, input has less than 3 dimensions, or reduction is unknown.
        NotImplementedError: input is not float32, float64, bfloat16 or float16.

    Source:
        Kervadec, Bouchtiba, Desrosiers, Granger, Dolz and Ben Ayed 2019, "Boundary loss for highly unbalanced segmentation", equation 5.

    Example:
        >>> import torch
        >>> from fastloss.functional import boundary_loss
        >>> boundary_loss(torch.tensor([[[0.5, 0.5, 0.5, 0.5]]]), torch.tensor([[[0, 1, 1, 0]]]))
        tensor(0.)
    """
    if has_torch_function_variadic(input, target, distance):
        options = dict(input=input, target=target, distance=distance, reduction=reduction, backend=backend)
        return overridden("boundary", options, (input, target, distance))
    dtype = _checks.dense_segmentation("boundary", input, target if distance is None else distance, reduction)
    accumulate = accumulate_dtype(input.dtype)
    backend, _ = choose("boundary", backend, input, target, distance)
    if distance is None:
        inside = target.detach() != 0
        field = distance_transform(inside.flatten(0, 1), accumulate, backend).view(input.shape)
        distance = torch.where(inside, -field, field)
    values = input.to(accumulate) * distance.to(accumulate)
    return _reduced(values, reduction).to(dtype)


@register(
    "distance",
    point=lambda input, target, distance: (input - target) ** 2 * distance,
    formula="(p - t)^2 (D_p^alpha + D_t^alpha), D the distance from the border of p > 1/2 and of t",
    source="Karimi and Salcudean 2019, equation 8",
    params={"alpha": (0.5, 3.0)},
    backends=_BACKENDS,
)
def hausdorff_dt_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 2.0,
    include_background: bool = False,
    to_onehot_y: bool = False,
    sigmoid: bool = False,
    softmax: bool = False,
    reduction: str = "mean",
    batch: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Hausdorff distance loss by distance transforms, with MONAI's arguments.

    ``loss = mean((p - t)^2 (D_p^alpha + D_t^alpha))`` over the space of each sample and class, with D_p and D_t the Euclidean distances of
    each element from the nearest one on the other side of ``p > 1/2`` and of ``t > 1/2``; 0 where there is none. They carry no gradient.

    Args:
        input: probabilities, or logits with `sigmoid` or `softmax`.
        target: masks, or with `to_onehot_y` class indices.
        alpha: the power of distances.
        include_background: whether the first class counts. A single class always does.
        to_onehot_y: whether target holds class indices.
        sigmoid, softmax: how input becomes probabilities; the softmax is over the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, of the means of samples and classes.
        batch: whether the mean is over the samples too.
        backend: ``"eager"``, ``"cpu"``; None for the one in force. On a GPU the distances are computed in plain torch.

    Shape:
        - input: (N, C, d1, ...)
        - target: as input; class indices (N, 1, d1, ...)
        - output: a scalar; of ``reduction="none"`` (N, C, 1, ...), C less a background that does not count, N = 1 for a batch

    Raises:
        TypeError: an argument is no tensor.
        ValueError: shapes differ, input has less than 3 dimensions, `sigmoid` and `softmax` are both asked for, or reduction is unknown.
        NotImplementedError: input is not float32, float64, bfloat16 or float16.

    Source:
        Karimi and Salcudean 2019, "Reducing the Hausdorff distance in medical image segmentation", equation 8; MONAI's HausdorffDTLoss.

    Example:
        >>> import torch
        >>> from fastloss.functional import hausdorff_dt_loss
        >>> hausdorff_dt_loss(torch.tensor([[[0.0, 1.0, 1.0, 0.0]]]), torch.tensor([[[0, 0, 1, 0]]]))
        tensor(0.5000)
    """
    if has_torch_function_variadic(input, target):
        options = dict(
            input=input, target=target, alpha=alpha, include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid,
            softmax=softmax, reduction=reduction, batch=batch, backend=backend,
        )
        return overridden("hausdorff_dt", options, (input, target))
    if sigmoid and softmax:
        raise ValueError("hausdorff_dt: sigmoid and softmax exclude each other, got both")
    if to_onehot_y and isinstance(target, Tensor) and isinstance(input, Tensor) and input.dim() > 2:
        if target.shape != (*input.shape[:1], 1, *input.shape[2:]):
            raise ValueError(f"hausdorff_dt: target of class indices must be (N, 1, d1, ...) for input of shape {tuple(input.shape)}, "
                             f"got {tuple(target.shape)}")
        classes = torch.arange(input.shape[1], device=target.device).view(-1, *[1] * (input.dim() - 2))
        target = target == classes
    dtype = _checks.dense_segmentation("hausdorff_dt", input, target, reduction)
    accumulate = accumulate_dtype(input.dtype)
    backend, _ = choose("hausdorff_dt", backend, input, target)
    p = input.to(accumulate)
    p = torch.sigmoid(p) if sigmoid else torch.softmax(p, 1) if softmax and p.shape[1] > 1 else p
    if not include_background and p.shape[1] > 1:
        p, target = p[:, 1:], target[:, 1:]
    t = target.to(accumulate)
    with torch.no_grad():
        fields = [distance_transform((x > 0.5).flatten(0, 1), accumulate, backend).view(x.shape) for x in (p.detach(), t.detach())]
        weight = fields[0] ** alpha + fields[1] ** alpha
    means = ((p - t) ** 2 * weight).mean([*([0] if batch else []), *range(2, p.dim())], keepdim=True)
    return _reduced(means, reduction).to(dtype)


def _reduced(values: Tensor, reduction: str) -> Tensor:
    return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()
