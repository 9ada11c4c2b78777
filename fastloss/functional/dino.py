"""Self-distillation: cross-entropies of a student's rows with a centred, sharpened teacher's, on the `divergence` engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..divergence import divergence
from ..engine import accumulate_dtype, overridden
from ..registry import register

__all__ = ["dino_loss", "ibot_patch_loss", "sinkhorn_knopp"]

_PARAMS = {"student_temp": (0.05, 1.0), "teacher_temp": (0.04, 1.0)}


@register(
    "divergence", formula="-sum_c q_c log p_c, p = softmax(x / ts), q = softmax((t - c) / tt)", source="Caron et al. 2021, algorithm 1",
    operands={"input": "logits", "target": "teacher", "center": "center"}, optional=True, params=_PARAMS, choices={"crops": (False, True)},
)
def dino_loss(
    input: Tensor,
    target: Tensor,
    center: Tensor | None = None,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    crops: bool = False,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""DINO: cross-entropy of a student's distribution with a centred and sharpened teacher's.

    .. math:: \ell = -\sum_c q_c \log p_c, \qquad p = \mathrm{softmax}(x / \tau_s),\ q = \mathrm{softmax}((t - c) / \tau_t)

    The teacher gets no gradient. Both softmaxes and the sum are one sweep over both rows, and the gradient is one more; no probability is
    stored. :class:`fastloss.nn.DINOLoss` keeps the centre.

    Args:
        input: the student's outputs :math:`x`; float32, float64, bfloat16 or float16, any strides.
        target: the teacher's outputs :math:`t`.
        center: what is subtracted from the teacher's, without a gradient. Default: None, 0.
        student_temp: :math:`\tau_s`, positive. Default: 0.1.
        teacher_temp: :math:`\tau_t`, positive. Default: 0.04.
        crops: whether the first dimension is that of views, of which student and teacher may have different numbers: every teacher's view
            is compared with every student's view of another index, as in the paper. Default: False.
        reduction: ``"none"``: a loss for each row; ``"mean"`` or ``"sum"`` over them, and over the pairs of views.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: :math:`(K)` or :math:`(..., K)`; with `crops` :math:`(S, ..., K)` and :math:`(T, ..., K)`
        - center: any with :math:`K` elements, as :math:`(K)` and :math:`(1, K)`
        - loss: scalar; for ``reduction="none"`` :math:`(...)`, with `crops` :math:`(P, ...)`, the pairs in the order of the teacher's views

    Raises:
        ValueError: shapes do not fit; a temperature is not positive; no two views of different indices; unknown reduction or backend.
        TypeError: an argument is not a Tensor.
        RuntimeError: tensors are on different devices; the backend cannot run here.
        NotImplementedError: outputs of another dtype.

    Source:
        Caron et al. 2021, "Emerging properties in self-supervised vision transformers", algorithm 1.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.dino_loss(torch.tensor([[0.1, 0.0]]), torch.tensor([[0.5, 0.0]]), center=torch.tensor([0.5, 0.0]))
        tensor(0.8133)
    """
    name = "dino"
    if has_torch_function_variadic(input, target, center):
        return overridden(name, locals(), (input, target, center))
    _checks.reduction_code(name, reduction)
    if not crops:
        return _against_teacher(name, input, target, center, student_temp, teacher_temp, reduction=reduction, backend=backend)
    for argument, tensor in (("input", input), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dim() < 2:
            raise ValueError(f"{name}: crops=True wants {argument} of shape (views, ..., K), got {tuple(tensor.shape)}")
    return between_views(name, input.unbind(0), target.unbind(0), center, student_temp, teacher_temp, reduction, backend)


def between_views(
    name: str, students: Sequence[Tensor], teachers: Sequence[Tensor], center: Tensor | None, student_temp: float, teacher_temp: float,
    reduction: str, backend: str | None,
) -> Tensor:
    """:func:`dino_loss` of every teacher's view with every student's view of another index."""
    indices = [(s, t) for t in range(len(teachers)) for s in range(len(students)) if s != t]
    if not indices:
        raise ValueError(
            f"{name}: wanted views of student and teacher with different indices, got {len(students)} and {len(teachers)} views"
        )
    dtype = _checks.logit_rows(name, students[indices[0][0]], teachers[indices[0][1]])
    if students[0].dtype.itemsize == 2:  # a view gets gradients from several pairs, which are added before they are rounded
        students = [view.to(accumulate_dtype(dtype)) for view in students]
    values = torch.stack(
        [
            _against_teacher(name, students[s], teachers[t], center, student_temp, teacher_temp, reduction=reduction, backend=backend)
            for s, t in indices
        ]
    )
    values = values.mean() if reduction == "mean" else values.sum() if reduction == "sum" else values
    return values.to(dtype)


@register(
    "divergence", formula="-sum_c q_c log p_c of masked patches, as dino_loss", source="Zhou et al. 2022, equation 3",
    operands={"input": "logits", "target": "teacher", "mask": "patches", "center": "center"}, optional=True, params=_PARAMS,
    choices={"per_image": (False, True)},
)
def ibot_patch_loss(
    input: Tensor,
    target: Tensor,
    mask: Tensor,
    center: Tensor | None = None,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    per_image: bool = False,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""iBOT: the loss of DINO for the patches that the student did not see.

    .. math:: L = \frac{\sum_{bp} m_{bp} \ell_{bp}}{\sum_{bp} m_{bp}}, \qquad
        \ell_{bp} = -\sum_c q_{bpc} \log p_{bpc},\ p = \mathrm{softmax}(x / \tau_s),\ q = \mathrm{softmax}((t - c) / \tau_t)

    or with `per_image` :math:`L = \frac{1}{B} \sum_b \frac{1}{\max(n_b, 1)} \sum_p m_{bp} \ell_{bp}`, :math:`n_b = \sum_p m_{bp}`. Patches
    outside the mask are not read. The teacher gets no gradient. :class:`fastloss.nn.IBOTPatchLoss` keeps the centre.

    Args:
        input: the student's outputs :math:`x`; float32, float64, bfloat16 or float16, any strides.
        target: the teacher's outputs :math:`t`.
        mask: :math:`m`: booleans, or numbers of at least 0, which get no gradient.
        center: what is subtracted from the teacher's, without a gradient. Default: None, 0.
        student_temp: :math:`\tau_s`, positive. Default: 0.1.
        teacher_temp: :math:`\tau_t`, positive. Default: 0.04.
        per_image: whether every image counts the same, as in the authors' code, or every masked patch. Default: False.
        reduction: ``"none"``: a loss for each patch, times :math:`m` (and :math:`1 / \max(n_b, 1)`), 0 outside the mask; ``"mean"`` as
            above, 0 where no patch is masked; ``"sum"`` of what ``"none"`` gives.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: :math:`(B, P, K)` or :math:`(B, ..., K)`
        - mask: the same without :math:`K`
        - center: any with :math:`K` elements
        - loss: scalar, or the mask's shape for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit; a temperature is not positive; unknown reduction or backend.
        TypeError: an argument is not a Tensor.
        RuntimeError: tensors are on different devices; the backend cannot run here.
        NotImplementedError: outputs of another dtype.

    Source:
        Zhou et al. 2022, "iBOT: image BERT pre-training with online tokenizer", equation 3; Oquab et al. 2023 (DINOv2).

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> student, teacher = torch.tensor([[[0.1, 0.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
        >>> F.ibot_patch_loss(student, teacher, torch.tensor([[True, False]]))
        tensor(0.8133)
    """
    name = "ibot_patch"
    if has_torch_function_variadic(input, target, mask, center):
        return overridden(name, locals(), (input, target, mask, center))
    _checks.reduction_code(name, reduction)
    dtype = _checks.logit_rows(name, input, target)
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: mask must be a Tensor, got {type(mask).__name__}")
    if input.dim() < 3 or mask.shape != input.shape[:-1]:
        raise ValueError(
            f"{name}: wanted input (B, P, K) and mask (B, P), got input of shape {tuple(input.shape)} and mask of {tuple(mask.shape)}"
        )
    if mask.device != input.device:
        raise RuntimeError(f"{name}: expected all tensors on one device, but input is on {input.device} and mask on {mask.device}")
    weight = mask.detach().to(accumulate_dtype(dtype))
    if per_image:
        over = tuple(range(1, weight.dim()))
        weight = weight / weight.sum(over, keepdim=True).clamp_min(1)
        if reduction == "mean":
            weight, reduction = weight / max(len(weight), 1), "sum"
    return _against_teacher(name, input, target, center, student_temp, teacher_temp, weight, reduction, backend)


def _against_teacher(
    name: str, input: Tensor, target: Tensor, center: Tensor | None, student_temp: float, teacher_temp: float, weight: Tensor | None = None,
    reduction: str = "mean", backend: str | None = None,
) -> Tensor:
    """The cross-entropy of rows."""
    dtype = _checks.logit_rows(name, input, target)
    _checks.positive(name, "student_temp", student_temp)
    _checks.positive(name, "teacher_temp", teacher_temp)
    if center is not None:
        if not isinstance(center, Tensor):
            raise TypeError(f"{name}: center must be a Tensor or None, got {type(center).__name__}")
        if center.numel() != input.shape[-1]:
            raise ValueError(f"{name}: center must have {input.shape[-1]} elements, got shape {tuple(center.shape)}")
        if center.device != input.device:
            raise RuntimeError(f"{name}: expected all tensors on one device, but input is on {input.device} and center on {center.device}")
        center = center.reshape(-1)
    return divergence(
        name, "cross", input, target.detach(), centre=center, weight=weight, scales=(1.0 / float(student_temp), 1.0 / float(teacher_temp)),
        reduction=reduction, zero_empty=weight is not None, dtype=dtype, backend=backend,
    )


@torch.no_grad()
def sinkhorn_knopp(scores: Tensor, temperature: float = 0.05, iterations: int = 3) -> Tensor:
    r"""Assignments of samples to prototypes of which every prototype gets about the same number, by alternate normalisation.

    Starting from :math:`Q_{bk} = e^{t_{bk} / \tau}`, columns are made to sum to :math:`B / K` and then rows to 1, `iterations` times. This
    is the alternative to a centre: :func:`fastloss.functional.cross_entropy` takes the result for class probabilities. It is computed in
    logarithms, so nothing overflows or divides by 0. Where torch.distributed is initialised, columns are summed over all processes.

    Args:
        scores: the teacher's outputs :math:`t`; float32, float64, bfloat16 or float16.
        temperature: :math:`\tau`, positive. Default: 0.05.
        iterations: at least 1. Default: 3.

    Returns:
        :math:`Q`, without a gradient; float64 for float64 scores, else float32.

    Shape:
        - scores: :math:`(B, K)`
        - result: :math:`(B, K)`

    Raises:
        ValueError: `scores` are not :math:`(B, K)`; the temperature is not positive; less than one iteration.
        TypeError: `scores` is not a Tensor.
        NotImplementedError: scores of another dtype.

    Source:
        Cuturi 2013, "Sinkhorn distances", algorithm 1; Caron et al. 2020 (SwAV), section 3.1.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.sinkhorn_knopp(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    name = "sinkhorn_knopp"
    _checks.logit_rows(name, scores, scores)
    if scores.dim() != 2:
        raise ValueError(f"{name}: scores must be (B, K), got {tuple(scores.shape)}")
    _checks.positive(name, "temperature", temperature)
    if iterations < 1:
        raise ValueError(f"{name}: iterations must be at least 1, got {iterations}")
    log_q = scores.to(accumulate_dtype(scores.dtype)) / float(temperature)
    together = dist.is_available() and dist.is_initialized()
    for _ in range(iterations):
        if len(log_q) or together:
            log_q -= _log_sum_of_samples(log_q, together)
        log_q -= torch.logsumexp(log_q, 1, keepdim=True)
    return log_q.exp_()


def _log_sum_of_samples(log_q: Tensor, together: bool) -> Tensor:
    """The log-sum-exp of each column (K), over the rows of all processes."""
    if not together:
        return torch.logsumexp(log_q, 0)
    top = log_q.amax(0) if len(log_q) else log_q.new_full(log_q.shape[1:], -torch.inf)
    dist.all_reduce(top, dist.ReduceOp.MAX)
    total = (log_q - top).exp_().sum(0)
    dist.all_reduce(total)
    return total.log_().add_(top)
