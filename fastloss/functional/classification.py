"""Losses over the class axis of logits or log-probabilities, on the `row` engine."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import reduction_from_legacy
from ..engine import is_sharded, over_group
from ..registry import register
from ..row import row_loss

__all__ = ["cross_entropy", "nll_loss", "softmax_focal_loss", "stablemax_cross_entropy"]


@register(
    "row",
    point=lambda log_prob: -log_prob,
    formula="-w_y log softmax(x)_y",
    source="torch.nn.functional.cross_entropy; z-loss: Chowdhery et al. 2022, section 5; softcap: Gemma Team 2024, section 2",
    torch="cross_entropy",
    name="cross_entropy",
)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_accuracy: bool = False,
    inplace: bool = False,
    empty: str = "nan",
    group: object = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Cross-entropy between logits and class indices or class probabilities.

    Drop-in for :func:`torch.nn.functional.cross_entropy`, fused forward and backward. With
    :math:`z = \text{softcap} \tanh(\text{logit\_scale} \cdot x / \text{softcap})` (or :math:`\text{logit\_scale} \cdot x`),
    target distribution :math:`q = (1 - \alpha) \, t + \alpha / C` and class weights :math:`w`, a row's loss in nats is

    .. math:: \ell = -\sum_c w_c q_c \left(z_c - \log \sum_k e^{z_k}\right) + \text{z\_loss} \left(\log \sum_k e^{z_k}\right)^2

    New memory is three numbers a row, and the gradient in the backward: neither probabilities nor a one-hot target exist.

    Args:
        input: logits; float32, float64, bfloat16 or float16, any strides.
        target: class indices (int64 or uint8) in ``[0, C)`` or ``ignore_index``, or class probabilities of `input`'s shape.
        weight: a weight for each class, of `input`'s dtype. Default: 1.
        size_average, reduce: deprecated, as in torch.
        ignore_index: target that marks a row as not counting: loss 0, gradient 0. Not with probabilities. Default: -100.
        reduction: ``"none"``: a loss for each row; ``"sum"``; ``"mean"``: the sum over :math:`\sum_i w_{t_i}` of the rows that
            count (indices), or over the number of rows (probabilities). Default: ``"mean"``.
        label_smoothing: :math:`\alpha \in [0, 1]`. Default: 0.
        z_loss: factor of the squared log-partition, added to each row that counts before the reduction. Default: 0.
        softcap: bound on the logits' magnitude, or None. Default: None.
        logit_scale: factor on the logits (an inverse temperature), before the softcap. Default: 1.
        return_lse: also return :math:`\log \sum_k e^{z_k}` of each row, differentiable.
        return_entropy: also return the entropy of each row's softmax in nats, differentiable.
        return_accuracy: also return for each row 1 if no logit is larger than the target's, else 0; 0 for an ignored row.
        inplace: let the backward write the gradient over `input`'s memory. `input` must not be a leaf that requires grad, nor
            share memory among its elements; another use of its old values after that raises, as does a second backward.
        empty: what a mean over no rows (or zero weight) is: ``"nan"`` as in torch, or ``"zero"``.
        group: processes over which the classes are spread, in the order of their ranks: a ``ProcessGroup``, a ``DeviceMesh`` of one
            dimension, or a mesh and a dimension; None where they are all here. Each process then has the logits of its classes, all
            target indices and all weights, gets the whole loss, and the gradient of its logits; two all-reduces of a few numbers a row
            are all that is exchanged. A DTensor `input` that is sharded over the classes brings its group. Not with probabilities,
            `return_entropy` or `inplace`; softmax sums of smoothed labels are plain torch.
        backend: ``"auto"``, ``"eager"``, ``"cpu"``, ``"triton"``, ``"cuda"``; None takes :func:`fastloss.use_backend`'s choice.

    Returns:
        The loss, of `input`'s dtype (float32 under autocast). If any ``return_`` flag is set, a tuple of the loss and what was
        asked for, in the order above, each of the target rows' shape in float32 (float64 for float64 inputs).

    Shape:
        - input: :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, \dots, d_K)`
        - target: :math:`()`, :math:`(N)` or :math:`(N, d_1, \dots, d_K)` indices, or `input`'s shape
        - loss: scalar, or the shape of index targets for ``reduction="none"``

    Raises:
        IndexError: a label is out of range (on a GPU the row's loss is NaN instead, since looking would synchronise).
        ValueError: unknown reduction, backend or ``empty``; batch sizes differ; softcap not positive.
        RuntimeError: other shapes, dtypes or devices do not fit; ``label_smoothing`` outside [0, 1]; a backend that was asked
            for cannot run; `inplace` on an input that must not be overwritten.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        torch.nn.functional.cross_entropy; label smoothing: Szegedy et al. 2016, section 7; z-loss: Chowdhery et al. 2022, section
        5; softcap: Gemma Team 2024, section 2.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.randn(8, 32000, requires_grad=True)
        >>> labels = torch.randint(32000, (8,))
        >>> loss, lse = F.cross_entropy(logits, labels, label_smoothing=0.1, return_lse=True)
        >>> loss.backward()
    """
    reduction = reduction_from_legacy(size_average, reduce, reduction)
    if group is not None or is_sharded(input, 1):
        return over_group(
            "vocabulary", "cross_entropy", group, input, target, weight, ignore_index, reduction, label_smoothing, z_loss, softcap,
            logit_scale, return_lse, return_entropy, return_accuracy, inplace, empty, backend,
        )
    return row_loss(
        "cross_entropy", (), input, target, weight, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale,
        return_lse, return_entropy, return_accuracy, inplace, empty, backend,
    )


@register(
    "row",
    point=lambda log_prob: -log_prob,
    formula="-w_y x_y",
    source="torch.nn.functional.nll_loss",
    torch="nll_loss",
    soft_targets=False,
    smoothing=False,
    logits=False,
)
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    empty: str = "nan",
    backend: str | None = None,
) -> Tensor:
    r"""Negative log-likelihood of class indices under given log-probabilities.

    Drop-in for :func:`torch.nn.functional.nll_loss`: a row's loss is :math:`\ell = -w_t x_t`.

    Args:
        input: log-probabilities; float32, float64, bfloat16 or float16, any strides.
        target: class indices (int64 or uint8) in ``[0, C)`` or ``ignore_index``.
        weight: a weight for each class, of `input`'s dtype. Default: 1.
        size_average, reduce: deprecated, as in torch.
        ignore_index: target that marks a row as not counting: loss 0, gradient 0. Default: -100.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: the sum over :math:`\sum_i w_{t_i}` of the rows that count.
        empty: what a mean over no rows (or zero weight) is: ``"nan"`` as in torch, or ``"zero"``.
        backend: as for :func:`cross_entropy`.

    Shape:
        - input: :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, \dots, d_K)`
        - target: :math:`()`, :math:`(N)` or :math:`(N, d_1, \dots, d_K)`
        - loss: scalar, or the target's shape for ``reduction="none"``

    Raises:
        As :func:`cross_entropy`.

    Source:
        torch.nn.functional.nll_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.nll_loss(torch.log_softmax(torch.zeros(2, 4), 1), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    reduction = reduction_from_legacy(size_average, reduce, reduction)
    return row_loss("nll", (), input, target, weight, ignore_index, reduction, empty=empty, backend=backend)


def _softmax_focal(log_prob: Tensor, gamma: float) -> Tensor:
    if gamma == 0:
        return -log_prob
    # Each branch sees only arguments for which its derivatives exist, since autograd multiplies unused ones by 0.
    usual = (log_prob < -1e-30) & (log_prob > -1e4)
    inner = torch.where(usual, log_prob, -1.0)
    focal = -inner * torch.exp(gamma * torch.log(-torch.expm1(inner)))
    return torch.where(usual, focal, torch.where(log_prob < -1, -log_prob, 0.0 * log_prob))


@register(
    "row",
    point=_softmax_focal,
    formula="-alpha_y (1 - p_y)^gamma log p_y, p = softmax(x)",
    source="Lin et al. 2017, equation 5",
    params={"gamma": (0.0, 5.0)},
    smoothing=False,
)
def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Focal loss over the softmax of the class axis: cross-entropy that well-classified rows hardly count in.

    .. math:: \ell = -\alpha_t (1 - p_t)^\gamma \log p_t, \qquad p = \operatorname{softmax}(x)

    and for class probabilities as a target the sum of this over classes, each times its probability.
    Value and gradient are finite for every :math:`\gamma \ge 0` and every finite logit.

    Args:
        input: logits; float32, float64, bfloat16 or float16, any strides.
        target: class indices (int64 or uint8) in ``[0, C)`` or ``ignore_index``, or probabilities (one-hot) of `input`'s shape.
        gamma: focusing parameter, at least 0; 0 gives cross-entropy. Default: 2.
        alpha: a factor, or a tensor of one factor a class (of `input`'s dtype), or None for 1. Default: None.
        ignore_index: target that marks a row as not counting: loss 0, gradient 0. Not with probabilities. Default: -100.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the rows that count, whatever their alpha. Default: ``"mean"``.
        backend: as for :func:`cross_entropy`.

    Shape:
        - input: :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, \dots, d_K)`
        - target: :math:`()`, :math:`(N)` or :math:`(N, d_1, \dots, d_K)` indices, or `input`'s shape
        - loss: scalar, or the shape of index targets for ``reduction="none"``

    Raises:
        ValueError: gamma is negative; otherwise as :func:`cross_entropy`.

    Source:
        Lin et al. 2017, equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.softmax_focal_loss(torch.zeros(2, 4), torch.tensor([0, 3]), gamma=1.0)
        tensor(1.0397)
    """
    if not gamma >= 0:
        raise ValueError(f"softmax_focal: gamma must be at least 0, got {gamma}")
    weight = alpha if isinstance(alpha, Tensor) else None
    loss = row_loss(
        "softmax_focal", (float(gamma),), input, target, weight, ignore_index, reduction, backend=backend, mean_of_rows=True
    )
    return loss if alpha is None or weight is not None else alpha * loss


@register(
    "row",
    point=lambda log_prob: -log_prob,
    formula="-w_y log(s(x_y) / sum_c s(x_c)), s(x) = x + 1 for x >= 0, else 1 / (1 - x)",
    source="Prieto et al. 2025, equations 4 and 5",
    name="stablemax_cross_entropy",
    functor="cross_entropy",
    stablemax=True,
)
def stablemax_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_accuracy: bool = False,
    inplace: bool = False,
    empty: str = "nan",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Cross-entropy of stablemax, a softmax with a function in place of the exponential that grows only linearly.

    .. math:: \ell = -\log \frac{s(x_t)}{\sum_c s(x_c)}, \qquad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}

    It is :func:`cross_entropy` of :math:`z = \operatorname{sign}(x) \log(1 + |x|)`, since :math:`s(x) = e^z`, and has its options. The
    gradient of confident rows fades as :math:`1 / (1 + |x|)` instead of exponentially, and nothing overflows.

    Args:
        input: logits; float32, float64, bfloat16 or float16, any strides.
        target: class indices (int64 or uint8) in ``[0, C)`` or ``ignore_index``, or class probabilities of `input`'s shape.
        weight: a weight for each class, of `input`'s dtype. Default: 1.
        ignore_index: target that marks a row as not counting: loss 0, gradient 0. Not with probabilities. Default: -100.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``, as for :func:`cross_entropy`. Default: ``"mean"``.
        label_smoothing: :math:`\alpha \in [0, 1]`, spread over all classes. Default: 0.
        z_loss: factor of the squared :math:`\log \sum_c s(x_c)`, added to each row that counts. Default: 0.
        logit_scale: factor on the logits. Default: 1.
        return_lse, return_entropy, return_accuracy: also return, for each row, :math:`\log \sum_c s(x_c)`, the entropy of stablemax
            in nats, and 1 if no logit is larger than the target's.
        inplace, empty, backend: as for :func:`cross_entropy`.

    Returns:
        As :func:`cross_entropy`.

    Shape:
        - input: :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, \dots, d_K)`
        - target: :math:`()`, :math:`(N)` or :math:`(N, d_1, \dots, d_K)` indices, or `input`'s shape
        - loss: scalar, or the shape of index targets for ``reduction="none"``

    Raises:
        As :func:`cross_entropy`.

    Source:
        Prieto et al. 2025, "Grokking at the edge of numerical stability", equations 4 and 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.stablemax_cross_entropy(torch.tensor([[3.0, -1.0, 0.0]]), torch.tensor([0]))  # s(x) is 4, 1/2 and 1
        tensor(0.3185)
    """
    return row_loss(
        "stablemax_cross_entropy", (), input, target, weight, ignore_index, reduction, label_smoothing, z_loss, None, logit_scale,
        return_lse, return_entropy, return_accuracy, inplace, empty, backend,
    )
