"""Liger-Kernel's losses, following liger_kernel 0.8.2: classes of ``liger_kernel.transformers`` and functions of
``liger_kernel.transformers.functional`` (``from fastloss.compat.liger_kernel import LigerCrossEntropyLoss``).

Arguments, defaults, call order and results are Liger's: a mean over no rows is 0, a z-loss is never weighted by classes, what is returned
beside the loss has no gradient, teachers and targets get none, and losses of a linear layer are float32. Different are: tensors may be on
any device; inputs are not overwritten, and a second backward is right; losses are kept in float32 until they are reduced; `accum_dtype`
makes no difference, since all sums are kept in float32; a label that no class has raises IndexError; class weights are rounded to the
input's dtype; :class:`LigerKLDIVLoss` takes a target of 0 as contributing 0, so that `eps` makes no difference; its losses, and
:class:`LigerTVDLoss`'s, have the input's dtype; the gradient of the latter is 0 where both probabilities are equal; and :class:`LigerJSD`
normalises the log-probabilities that it takes, which changes nothing for those of a ``log_softmax``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..elementwise import elementwise_loss
from ..functional import generalized_jsd, linear_distillation_loss
from ..row import row_loss
from ._cross_entropy import float32_losses, linear_cross_entropy, reduced, z_losses

__all__ = [
    "CrossEntropyOutput", "LigerCrossEntropyLoss", "LigerFusedLinearCrossEntropyLoss", "LigerFusedLinearJSD", "LigerJSD",
    "LigerKLDIVLoss", "LigerTVDLoss", "liger_cross_entropy", "liger_fused_linear_cross_entropy", "liger_fused_linear_jsd", "liger_jsd",
    "liger_kl_div", "liger_tvd",
]

_CHUNK = 1 << 22  # logits that exist at a time where the likeliest classes are asked for


@dataclass
class CrossEntropyOutput:
    """What the cross-entropies return if more than the loss was asked for; None what was not."""

    loss: Tensor
    z_loss: Tensor | None = None
    token_accuracy: Tensor | None = None
    predicted_tokens: Tensor | None = None


def _check(label_smoothing: float, reduction: str, softcap: float | None) -> None:
    """Liger's checks, which are assertions there."""
    if not 0 <= label_smoothing <= 1:
        raise AssertionError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if reduction not in ("mean", "sum", "none"):
        raise AssertionError(f"reduction must be one of 'mean', 'sum', or 'none'. Got: {reduction}")
    if softcap is not None and not softcap > 0:
        raise AssertionError(f"softcap must greater than 0.0 or None. Got: {softcap}")


def _average(rows: Tensor, by: Tensor, reduction: str) -> Tensor:
    """The sum of rows, or their mean by a divisor: 0 of no rows."""
    return rows.sum() / torch.where(by == 0, torch.inf, by) if reduction == "mean" else rows.sum()


def _output(
    loss: Tensor, target: Tensor, ignore_index: int, reduction: str, z_rows: Tensor | None, predicted: Tensor | None, accuracy: bool,
    tokens: bool,
) -> Tensor | CrossEntropyOutput:
    """The loss, or the output that Liger makes of it; `z_rows` are the z-losses of rows, `predicted` the likeliest classes."""
    if z_rows is None and not (accuracy or tokens):
        return loss
    counts, found = target != ignore_index, CrossEntropyOutput(loss)
    if z_rows is not None:
        z_rows = z_rows.detach().to(loss.dtype)
        found.z_loss = z_rows if reduction == "none" else _average(z_rows, counts.sum(), reduction)
    if accuracy:
        right = ((predicted == target) & counts).float()
        found.token_accuracy = right if reduction == "none" else reduced(right, target, ignore_index, "mean")
    if tokens:
        found.predicted_tokens = torch.where(counts, predicted, -1)
    return found


def liger_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: object = None,
    ignore_index: int = -100,
    reduce: object = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    lse_square_scale: float = 0.0,
    softcap: float | None = None,
    return_z_loss: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    *,
    backend: str | None = None,
) -> Tensor | CrossEntropyOutput:
    """Liger's ``liger_cross_entropy``: :func:`fastloss.functional.cross_entropy`.

    Args:
        input: logits, (N, V).
        target: (N,) class indices, or `ignore_index`.
        weight: a weight for each class, or None.
        size_average, reduce: no effect.
        ignore_index: default -100.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: in [0, 1]. Default: 0.
        lse_square_scale: factor of the squared log-sum-exp that is added to each loss; a mean of it is over rows, not weights. Default: 0.
        softcap: bound of the logits, or None.
        return_z_loss, return_token_accuracy, return_predicted_tokens: give a :class:`CrossEntropyOutput` with these. The accuracy is for
            each row with ``reduction="none"``, else a mean; the likeliest class is the first of equal ones, and -1 of an ignored row.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        AssertionError: `label_smoothing`, `reduction` or `softcap` is not among these values.
    """
    _check(label_smoothing, reduction, softcap)
    weight = None if weight is None else weight.to(input.dtype)
    apart = weight is not None and lse_square_scale != 0 and reduction == "mean"  # weights divide one term only
    found = row_loss(
        "cross_entropy", (), input, target, weight, ignore_index, reduction, label_smoothing, 0.0 if apart else lse_square_scale, softcap,
        return_lse=apart or return_z_loss, empty="zero", backend=backend, wide=apart,
    )
    loss, lse = found if apart or return_z_loss else (found, None)
    z_rows = None if lse is None else z_losses(lse, target, ignore_index, lse_square_scale)
    if apart:
        dtype = torch.float32 if torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64 else input.dtype
        loss = (loss + _average(z_rows, (target != ignore_index).sum(), reduction)).to(dtype)
    predicted = input.argmax(-1) if return_token_accuracy or return_predicted_tokens else None
    return _output(
        loss, target, ignore_index, reduction, z_rows if return_z_loss else None, predicted, return_token_accuracy, return_predicted_tokens
    )


class LigerCrossEntropyLoss(nn.Module):
    """Liger's ``LigerCrossEntropyLoss``: :func:`liger_cross_entropy`, which documents the arguments."""

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int = -100, lse_square_scale: float = 0.0, label_smoothing: float = 0.0,
        reduction: str = "mean", softcap: float | None = None, return_z_loss: bool = False, return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False, *, backend: str | None = None,
    ) -> None:
        super().__init__()
        _check(label_smoothing, reduction, softcap)
        self.weight, self.ignore_index, self.lse_square_scale = weight, ignore_index, lse_square_scale
        self.label_smoothing, self.reduction, self.softcap, self.backend = label_smoothing, reduction, softcap, backend
        self.return_z_loss, self.return_token_accuracy = return_z_loss, return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens

    def forward(self, _input: Tensor, target: Tensor) -> Tensor | CrossEntropyOutput:
        return liger_cross_entropy(
            _input, target, self.weight, None, self.ignore_index, None, self.reduction, self.label_smoothing, self.lse_square_scale,
            self.softcap, self.return_z_loss, self.return_token_accuracy, self.return_predicted_tokens, backend=self.backend,
        )


def _likeliest(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The class of the largest logit of each row, a chunk of rows at a time."""
    with torch.no_grad():
        rows = max(_CHUNK // max(len(weight), 1), 1)
        return torch.cat([torch.nn.functional.linear(chunk, weight, bias).argmax(-1) for chunk in input.split(rows)])


def liger_fused_linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ce_weight: Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    *,
    backend: str | None = None,
) -> Tensor | CrossEntropyOutput:
    """Liger's ``liger_fused_linear_cross_entropy``: :func:`fastloss.functional.linear_cross_entropy`.

    Args:
        input: hidden states, (N, D).
        weight: of the linear layer, (V, D).
        target: (N,) class indices, or `ignore_index`.
        bias: (V,), or None.
        ce_weight: a weight for each class, or None.
        accum_dtype: no effect.
        use_token_scaling: multiply each row's loss by the probability of its label, through which no gradient flows. Default: False.
        ignore_index, lse_square_scale, label_smoothing, reduction, softcap: as for :func:`liger_cross_entropy`.
        return_z_loss, return_token_accuracy, return_predicted_tokens: as there; the likeliest classes take a product of their own.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        AssertionError: as :func:`liger_cross_entropy`.
    """
    _check(label_smoothing, reduction, softcap)
    ce_weight = None if ce_weight is None else ce_weight.to(input.dtype)
    options = dict(linear_bias=bias, ignore_index=ignore_index, softcap=softcap, empty="zero", backend=backend)
    apart = use_token_scaling or (ce_weight is not None and lse_square_scale != 0 and reduction == "mean")
    found = linear_cross_entropy(
        input, weight, target, weight=ce_weight, label_smoothing=label_smoothing, reduction="none" if apart else reduction,
        z_loss=0.0 if apart else lse_square_scale, return_lse=apart or return_z_loss, **options,
    )
    loss, lse = found if apart or return_z_loss else (found, None)
    z_rows = None if lse is None else z_losses(lse, target, ignore_index, lse_square_scale)
    if apart:
        if use_token_scaling:
            with torch.no_grad():
                scale = torch.exp(-linear_cross_entropy(input, weight, target, reduction="none", **options))
            loss, z_rows = loss * scale, z_rows * scale
        counts = target != ignore_index
        if reduction == "none":
            loss = loss + z_rows
        else:
            by = counts.sum() if ce_weight is None else torch.where(counts, ce_weight[torch.where(counts, target, 0)], 0.0).sum()
            loss = _average(loss, by.to(loss.dtype), reduction) + _average(z_rows, counts.sum(), reduction)
    predicted = _likeliest(input, weight, bias) if return_token_accuracy or return_predicted_tokens else None
    return _output(
        loss, target, ignore_index, reduction, z_rows if return_z_loss else None, predicted, return_token_accuracy, return_predicted_tokens
    )


class LigerFusedLinearCrossEntropyLoss(nn.Module):
    """Liger's ``LigerFusedLinearCrossEntropyLoss``: :func:`liger_fused_linear_cross_entropy`, which documents the arguments.

    It is called with the layer's weight first: ``loss(lin_weight, _input, target, bias=None)``.
    """

    def __init__(
        self, ce_weight: Tensor | None = None, ignore_index: int = -100, lse_square_scale: float = 0.0, label_smoothing: float = 0.0,
        reduction: str = "mean", softcap: float | None = None, return_z_loss: bool = False, accum_dtype: torch.dtype | None = None,
        use_token_scaling: bool = False, return_token_accuracy: bool = False, return_predicted_tokens: bool = False, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _check(label_smoothing, reduction, softcap)
        self.ce_weight, self.ignore_index, self.lse_square_scale = ce_weight, ignore_index, lse_square_scale
        self.label_smoothing, self.reduction, self.softcap, self.backend = label_smoothing, reduction, softcap, backend
        self.return_z_loss, self.accum_dtype, self.use_token_scaling = return_z_loss, accum_dtype, use_token_scaling
        self.return_token_accuracy, self.return_predicted_tokens = return_token_accuracy, return_predicted_tokens

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor | CrossEntropyOutput:
        return liger_fused_linear_cross_entropy(
            _input, lin_weight, target, bias, self.ce_weight, self.ignore_index, self.lse_square_scale, self.label_smoothing,
            self.reduction, self.softcap, self.return_z_loss, self.accum_dtype, self.use_token_scaling, self.return_token_accuracy,
            self.return_predicted_tokens, backend=self.backend,
        )


def liger_kl_div(
    input: Tensor,
    target: Tensor,
    size_average: object = True,
    reduce: object = True,
    reduction: str = "mean",
    log_target: bool = False,
    eps: float = 1e-10,
    *,
    backend: str | None = None,
) -> Tensor:
    """Liger's ``liger_kl_div``: :func:`fastloss.functional.kl_div`, without a gradient to the target, and without torch's warning.

    Args:
        input: log-probabilities, (N, V).
        target: probabilities, or their logarithms with `log_target`.
        size_average, reduce, eps: no effect.
        reduction: ``"mean"`` over all elements, ``"batchmean"`` over the rows, ``"sum"`` or ``"none"``.
        log_target: default False.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """
    by_row = reduction == "batchmean"
    loss = elementwise_loss(
        "kl_div", (float(log_target),), (input, target.detach(), None), None, "sum" if by_row else reduction, backend=backend
    )
    return loss / len(input) if by_row else loss


class LigerKLDIVLoss(nn.KLDivLoss):
    """Liger's ``LigerKLDIVLoss``: torch's ``KLDivLoss`` by :func:`liger_kl_div`.

    Args:
        eps: no effect. Default: 1e-10.
        args, kwargs: those of :class:`torch.nn.KLDivLoss`.
    """

    def __init__(self, eps: float = 1e-10, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.eps = eps

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        return liger_kl_div(y_pred, y_true, reduction=self.reduction, log_target=self.log_target, eps=self.eps)


def _counts(x: Tensor, shift_labels: Tensor | None, ignore_index: int) -> tuple[Tensor | None, Tensor]:
    """Which rows count, None for all of them, and what a mean over them divides by: infinity for none."""
    if shift_labels is None:
        return None, torch.full((), float(len(x)), device=x.device)
    if shift_labels.shape != x.shape[:1]:
        raise AssertionError(f"the shape of shift_labels must be (BT,). Got: {tuple(shift_labels.shape)}")
    counts = shift_labels != ignore_index
    number = counts.sum().float()
    return counts, torch.where(number == 0, torch.inf, number)


def liger_jsd(
    input: Tensor, target: Tensor, shift_labels: Tensor | None = None, beta: float = 0.5, ignore_index: int = -100, *,
    backend: str | None = None,
) -> Tensor:
    """Liger's ``liger_jsd``: :func:`fastloss.functional.generalized_jsd` of log-probabilities, a mean over the rows that count.

    Args:
        input: the student's log-probabilities, (N, V).
        target: the teacher's.
        shift_labels: (N,), of which `ignore_index` marks rows that do not count, or None.
        beta: in [0, 1]; 0 is the forward Kullback-Leibler divergence and 1 the reverse one. Default: 0.5.
        ignore_index: default -100.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        AssertionError: `shift_labels` has another shape.
    """
    mask, number = _counts(input, shift_labels, ignore_index)
    with float32_losses(input):
        loss = generalized_jsd(input, target.detach(), beta, mask=mask, reduction="sum", backend=backend)
    return (loss / number).to(input.dtype)


class LigerJSD(nn.Module):
    """Liger's ``LigerJSD``: :func:`liger_jsd`, which documents the arguments."""

    def __init__(self, beta: float = 0.5, ignore_index: int = -100, *, backend: str | None = None) -> None:
        super().__init__()
        self.beta, self.ignore_index, self.backend = beta, ignore_index, backend

    def forward(self, log_q: Tensor, log_p: Tensor, shift_labels: Tensor | None = None) -> Tensor:
        return liger_jsd(log_q, log_p, shift_labels, self.beta, self.ignore_index, backend=self.backend)


def liger_fused_linear_jsd(
    student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor, shift_labels: Tensor | None = None,
    jsd_beta: float = 0.5, ignore_index: int = -100, temperature: float = 1.0, accum_dtype: torch.dtype | None = None, *,
    backend: str | None = None,
) -> Tensor:
    """Liger's ``liger_fused_linear_jsd``: :func:`fastloss.functional.linear_distillation_loss`, a mean over the rows that count.

    Args:
        student_input: hidden states, (N, D).
        student_weight: of the linear layer, (V, D).
        teacher_input: the teacher's, (N, E).
        teacher_weight: the teacher's, (V, E).
        shift_labels, ignore_index: as for :func:`liger_jsd`.
        jsd_beta: its `beta`. Default: 0.5.
        temperature: that logits are divided by. Default: 1.
        accum_dtype: no effect.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        AssertionError: `shift_labels` has another shape.
    """
    mask, number = _counts(student_input, shift_labels, ignore_index)
    kind = {0.0: "kl", 1.0: "reverse_kl"}.get(jsd_beta, "jsd")
    with float32_losses(student_input):
        loss = linear_distillation_loss(
            student_input, student_weight, teacher_input.detach(), teacher_weight.detach(), temperature=temperature, kind=kind,
            beta=jsd_beta if kind == "jsd" else 0.5, squared_temperature=False, mask=mask, reduction="sum", backend=backend,
        )
    return loss / number


class LigerFusedLinearJSD(nn.Module):
    """Liger's ``LigerFusedLinearJSD``: :func:`liger_fused_linear_jsd`, which documents the arguments."""

    def __init__(
        self, jsd_beta: float = 0.5, ignore_index: int = -100, temperature: float = 1.0, accum_dtype: torch.dtype | None = None, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if temperature == 0:
            raise AssertionError("temperature cannot be 0.")
        self.jsd_beta, self.ignore_index, self.temperature, self.accum_dtype = jsd_beta, ignore_index, temperature, accum_dtype
        self.backend = backend

    def forward(
        self, student_input: Tensor, student_weight: Tensor, teacher_input: Tensor, teacher_weight: Tensor, shift_labels: Tensor | None
    ) -> Tensor:
        return liger_fused_linear_jsd(
            student_input, student_weight, teacher_input, teacher_weight, shift_labels, self.jsd_beta, self.ignore_index,
            self.temperature, self.accum_dtype, backend=self.backend,
        )


def liger_tvd(
    input: Tensor, target: Tensor, shift_labels: Tensor | None = None, reduction: str = "mean", ignore_index: int = -100, *,
    backend: str | None = None,
) -> Tensor:
    """Liger's ``liger_tvd``: the total variation distance of probabilities, ``0.5 |p - q|`` of each class.

    Args:
        input: the student's probabilities, (N, V).
        target: the teacher's.
        shift_labels, ignore_index: as for :func:`liger_jsd`.
        reduction: ``"batchmean"`` over the rows that count, ``"mean"`` over their elements, ``"sum"``, or ``"none"``: (N, V).
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        ValueError: unknown reduction.
        AssertionError: `shift_labels` has another shape.
    """
    counts, number = _counts(input, shift_labels, ignore_index)
    if reduction not in ("batchmean", "mean", "sum", "none"):
        raise ValueError(f"liger_tvd: reduction must be 'batchmean', 'mean', 'sum' or 'none', got {reduction!r}")
    if counts is not None:  # replaced, since 0 times NaN is NaN
        input, target = (torch.where(counts.unsqueeze(1), x, 0.0) for x in (input, target))
    each = reduction == "none"
    loss = 0.5 * elementwise_loss("l1", (), (input, target.detach(), None), None, "none" if each else "sum", backend=backend)
    if reduction in ("batchmean", "mean"):
        loss = (loss / (number * (input.shape[1] if reduction == "mean" else 1))).to(input.dtype)
    return loss


class LigerTVDLoss(nn.Module):
    """Liger's ``LigerTVDLoss``: :func:`liger_tvd`, which documents the arguments."""

    def __init__(self, reduction: str = "batchmean", ignore_index: int = -100, *, backend: str | None = None) -> None:
        super().__init__()
        self.reduction, self.ignore_index, self.backend = reduction, ignore_index, backend

    def forward(self, p: Tensor, q: Tensor, shift_labels: Tensor | None = None) -> Tensor:
        return liger_tvd(p, q, shift_labels, self.reduction, self.ignore_index, backend=self.backend)
