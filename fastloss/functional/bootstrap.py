"""Self-supervised losses without negatives: each view's prediction is compared with the other view's embedding, which stands still."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from ..engine import overridden
from ..plain import reduced, same_shape, widened
from ..plain_cases import DETACHED
from ..registry import register

__all__ = ["byol_loss", "simsiam_loss"]

_OPERANDS = {"prediction1": "real", "prediction2": "real", "target1": DETACHED, "target2": DETACHED}


def _views(name: str, tensors: Mapping[str, Tensor], backend: str | None, reduction: str) -> tuple[torch.dtype, list[Tensor]]:
    """Check predictions and targets (N, D) of two views; gives the dtype of the result, and all in the dtype that sums are kept in."""
    for argument, x in tensors.items():
        if isinstance(x, Tensor) and x.dim() != 2:
            raise ValueError(f"{name}: {argument} must be (N, D), got {tuple(x.shape)}")
    same_shape(name, tensors)
    dtype, (p1, p2, t1, t2) = widened(name, tensors, backend, reduction)
    return dtype, [p1, p2, t1.detach(), t2.detach()]


@register(
    "plain", formula="-(cos(p1, z2) + cos(p2, z1)) / 2", source="Chen and He 2021, equations 1 and 2", operands=_OPERANDS, dims=(2, 2),
)
def simsiam_loss(
    prediction1: Tensor, prediction2: Tensor, target1: Tensor, target2: Tensor, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""SimSiam: negative cosine similarity of each view's prediction to the other view's projection, through which no gradient flows.

    .. math:: \ell_i = -\tfrac12 \cos(p_{1i}, z_{2i}) - \tfrac12 \cos(p_{2i}, z_{1i}), \qquad
        \cos(p, z) = \frac{p \cdot z}{\max(\|p\|, 10^{-8}) \max(\|z\|, 10^{-8})}

    Args:
        prediction1: the predictor's output :math:`p_1` for the first view; float32, float64, bfloat16 or float16, any strides.
        prediction2: the same of the second view.
        target1: the projection :math:`z_1` of the first view, detached here.
        target2: the same of the second view.
        reduction: ``"none"``: a loss for each sample; ``"mean"`` or ``"sum"`` over the samples.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - prediction1, prediction2, target1, target2: :math:`(N, D)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit; unknown reduction or backend.
        TypeError: an argument is not a tensor.
        NotImplementedError: `prediction1` is not floating point.
        RuntimeError: tensors are on several devices.

    Source:
        Chen and He 2021, "Exploring simple Siamese representation learning", equations 1 and 2.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> F.simsiam_loss(one, one, one, other)  # cosines 0.6 and 1
        tensor(-0.8000)
    """
    tensors = {"prediction1": prediction1, "prediction2": prediction2, "target1": target1, "target2": target2}
    if has_torch_function_variadic(*tensors.values()):
        return overridden("simsiam", locals(), tuple(tensors.values()))
    dtype, (p1, p2, t1, t2) = _views("simsiam", tensors, backend, reduction)
    return reduced(-(F.cosine_similarity(p1, t2) + F.cosine_similarity(p2, t1)) / 2, reduction, dtype)


@register(
    "plain", formula="||p1 / ||p1|| - z2 / ||z2||||^2 + ||p2 / ||p2|| - z1 / ||z1||||^2", source="Grill et al. 2020, equation 2",
    operands=_OPERANDS, dims=(2, 2),
)
def byol_loss(
    prediction1: Tensor, prediction2: Tensor, target1: Tensor, target2: Tensor, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""BYOL: squared distance of each view's prediction to the target network's projection of the other view, both normalised.

    .. math:: \ell_i = \left\|\bar p_{1i} - \bar z_{2i}\right\|^2 + \left\|\bar p_{2i} - \bar z_{1i}\right\|^2, \qquad
        \bar v = \frac{v}{\max(\|v\|, 10^{-8})}

    For vectors longer than that it is :math:`4 - 2 \cos(p_1, z_2) - 2 \cos(p_2, z_1)`, without the cancellation where they are nearly
    parallel. No gradient flows through the targets.

    Args:
        prediction1: the online network's prediction :math:`p_1` for the first view; float32, float64, bfloat16 or float16, any strides.
        prediction2: the same of the second view.
        target1: the target network's projection :math:`z_1` of the first view, detached here.
        target2: the same of the second view.
        reduction: ``"none"``: a loss for each sample; ``"mean"`` or ``"sum"`` over the samples.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - prediction1, prediction2, target1, target2: :math:`(N, D)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        As :func:`simsiam_loss`.

    Source:
        Grill et al. 2020, "Bootstrap your own latent", equation 2 and its symmetric form.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> F.byol_loss(one, one, one, other)  # 2 - 2 * 0.6
        tensor(0.8000)
    """
    tensors = {"prediction1": prediction1, "prediction2": prediction2, "target1": target1, "target2": target2}
    if has_torch_function_variadic(*tensors.values()):
        return overridden("byol", locals(), tuple(tensors.values()))
    dtype, wide = _views("byol", tensors, backend, reduction)
    p1, p2, t1, t2 = (F.normalize(x, dim=1, eps=1e-8) for x in wide)
    return reduced((p1 - t2).square().sum(1) + (p2 - t1).square().sum(1), reduction, dtype)
