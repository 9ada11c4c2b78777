"""Lovasz losses: the Jaccard index, extended to real errors, on the `sort` engine."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..engine import overridden
from ..registry import register
from ..sort import Settings, distances, hinge_errors, sort_loss

__all__ = ["lovasz_hinge_loss", "lovasz_softmax_loss"]


@register(
    "sort",
    point=hinge_errors,
    formula="sum_k max(0, 1 - s_k x_k) (J_k - J_(k-1)), s = 2 t - 1, largest error first",
    source="Berman et al. 2018, equation 11",
)
def lovasz_hinge_loss(
    input: Tensor, target: Tensor, per_image: bool = True, ignore_index: int | None = None, *, backend: str | None = None
) -> Tensor:
    """Lovasz hinge: a convex surrogate of the Jaccard loss (1 - intersection over union) of a binary segmentation.

    With the errors ``e = max(0, 1 - s x)``, ``s = 2 t - 1``, sorted from the largest down, and ``J_k`` the Jaccard loss of the set of the
    first k elements taken as mistakes::

        loss = sum_k e_k (J_k - J_(k-1)),   J_k = 1 - (G - c_k) / (G + b_k)

    where G elements are foreground, c_k of the first k are, and b_k are not. Without foreground that is the largest error. Elements that
    tie may be taken in any order: the value is the same, the gradient is one of the subgradients.

    Args:
        input: logits.
        target: labels, 1 for foreground and 0 for background; any integer, boolean or floating dtype.
        per_image: the mean of the losses of the images; else one loss of all elements.
        ignore_index: a label whose elements take no part; None for none.
        backend: ``"eager"``, ``"cpu"``, ``"triton"``, ``"cuda"``; None for the one in force.

    Shape:
        - input: (N, ...), for images (N, H, W) or (N, 1, H, W)
        - target: as input; the dimension of size 1 may be left out
        - output: a scalar; 0, with a gradient of zeros, where there is nothing that counts

    Raises:
        TypeError: an argument is no tensor, or `ignore_index` no int.
        ValueError: shapes do not fit, or a floating label is no whole number.
        NotImplementedError: input is not float32, float64, bfloat16 or float16.
        IndexError: a label is neither 0, 1 nor `ignore_index` (looked at for CPU tensors only; elsewhere such a label is background).

    Source:
        Berman, Rannen Triki and Blaschko 2018, "The Lovasz-Softmax loss", equations 8 and 11.

    Example:
        >>> import torch
        >>> from fastloss.functional import lovasz_hinge_loss
        >>> lovasz_hinge_loss(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]]))
        tensor(0.7500)
    """
    if has_torch_function_variadic(input, target):
        options = dict(input=input, target=target, per_image=per_image, ignore_index=ignore_index, backend=backend)
        return overridden("lovasz_hinge", options, (input, target))
    input, target = _checks.binary_segmentation("lovasz_hinge", input, target, ignore_index)
    settings = Settings("hinge", [1], bool(per_image), False, ignore_index)
    return sort_loss("lovasz_hinge", input, target, settings, 2, backend)


@register(
    "sort",
    point=distances,
    formula="mean_c sum_k e_k (J_k - J_(k-1)), e = |[y = c] - softmax(x)_c|, largest error first",
    source="Berman et al. 2018, equation 13",
)
def lovasz_softmax_loss(
    input: Tensor,
    target: Tensor,
    classes: str | Sequence[int] = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    *,
    from_logits: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Lovasz-softmax: a surrogate of the mean Jaccard loss (1 - intersection over union) of a segmentation into classes.

    For each class c, with the errors ``e = |[y = c] - p_c|`` of all elements, ``p = softmax(x)``, sorted from the largest down, and
    ``J_k`` the Jaccard loss of the class where the first k elements are mistakes::

        loss_c = sum_k e_k (J_k - J_(k-1)),   J_k = 1 - (G - c_k) / (G + b_k)

    where G elements are of the class, c_k of the first k are, and b_k are not; the loss is the mean over the classes. Elements that tie
    may be taken in any order: the value is the same, the gradient is one of the subgradients.

    Args:
        input: logits; with ``from_logits=False`` probabilities.
        target: class indices in [0, C) of any integer dtype.
        classes: ``"present"`` averages over the classes that have an element, ``"all"`` over all, a list over those. Probabilities of one
            channel, of a sigmoid for instance, need a list of the one class that they are of.
        per_image: the mean of the losses of the images; else one loss of all elements.
        ignore_index: a label whose elements take no part; None for none.
        from_logits: whether the softmax over the classes is still to be taken.
        backend: ``"eager"``, ``"cpu"``, ``"triton"``, ``"cuda"``; None for the one in force.

    Shape:
        - input: (N, C, d1, ...), for images (N, C, H, W); probabilities of one channel also (N, d1, ...)
        - target: (N, d1, ...)
        - output: a scalar; 0, with a gradient of zeros, where there is nothing that counts

    Raises:
        TypeError: an argument is no tensor, or `ignore_index` no int.
        ValueError: shapes do not fit, `classes` names none or one twice, or there is a single channel of logits.
        RuntimeError: target is not integer.
        NotImplementedError: input is not float32, float64, bfloat16 or float16.
        IndexError: a label is no class and not `ignore_index` (looked at for CPU tensors only; elsewhere it is background of every class).

    Source:
        Berman, Rannen Triki and Blaschko 2018, "The Lovasz-Softmax loss", equations 12 and 13.

    Example:
        >>> import torch
        >>> from fastloss.functional import lovasz_softmax_loss
        >>> lovasz_softmax_loss(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1]), from_logits=False)
        tensor(0.4375)
    """
    if has_torch_function_variadic(input, target):
        options = dict(
            input=input, target=target, classes=classes, per_image=per_image, ignore_index=ignore_index, from_logits=from_logits,
            backend=backend,
        )
        return overridden("lovasz_softmax", options, (input, target))
    input, target, chosen = _checks.segmentation("lovasz_softmax", input, target, classes, ignore_index, from_logits)
    settings = Settings("softmax" if from_logits else "probability", chosen, bool(per_image), classes == "present", ignore_index)
    return sort_loss("lovasz_softmax", input, target, settings, input.shape[1] if input.shape[1] > 1 else None, backend)
