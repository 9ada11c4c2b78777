"""The row engine: losses that are a function of the log-softmax over the class axis.

Every loss of this engine is one *point function* ``f(log_prob) -> value`` under the same machinery::

    z_c  = logit_scale * x_c, softcap * tanh(logit_scale * x_c / softcap), or of stablemax symlog(logit_scale * x_c)
    l_c  = z_c - logsumexp(z)                        (losses on log-probabilities: l = x)
    q    = (1 - label_smoothing) * target + label_smoothing / C
    loss = sum_c w_c q_c f(l_c) + z_loss * logsumexp(z)**2

:func:`formula` says it in plain torch: it is the `eager` backend, the oracle of the tests, and what second derivatives,
`torch.func` and gradients to targets or weights run through. The other backends compute in two sweeps: the forward keeps
three numbers a row (maximum, log of the sum, slope ``sum_c w_c q_c f'(l_c)``), the backward recomputes the softmax from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from . import _checks
from ._backends import choose
from .engine import REDUCTIONS, accumulate_dtype, define, fast_apply, formula_backward, overridden
from .registry import LOSSES


def formula(
    point: Callable[..., Tensor],
    params: tuple[float, ...],
    normalise: bool,
    input: Tensor,  # (N, C, ...)
    target: Tensor,  # (N, ...) class indices, or input's shape
    weight: Tensor | None,  # (C,)
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float,  # 0: none
    logit_scale: float,
    stablemax: bool,
    zero_empty: bool,
    want_lse: bool,
    want_entropy: bool,
    want_accuracy: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The engine's mathematics in plain torch: ``(loss, lse, entropy, accuracy)``."""
    classes = input.shape[1]
    soft = target.is_floating_point()
    input = input.to(accumulate_dtype(dtype))

    def transform(x: Tensor) -> Tensor:
        x = x if logit_scale == 1.0 else x * logit_scale
        if stablemax:
            below = x < 0  # each logarithm sees only numbers that it is the one for, so that NaN reaches the gradient
            return torch.where(below, -torch.log1p(torch.where(below, -x, 0.0)), torch.log1p(torch.where(below, 0.0, x)))
        return softcap * torch.tanh(x / softcap) if softcap else x

    counts = None if soft else target != ignore_index
    # An ignored row must not reach the gradient even when it holds inf or NaN, so it is replaced before any arithmetic.
    used = transform(input if soft else torch.where(counts.unsqueeze(1), input, 0.0))
    logits = transform(input) if want_lse or want_entropy or want_accuracy else used
    if weight is not None:
        weight = weight.to(logits.dtype)
        weight_row = weight.view(classes, *[1] * (input.dim() - 2))

    log_prob = torch.log_softmax(used, 1) if normalise else used

    spread = target.to(logits.dtype) if soft else None  # how the target is spread over the classes
    if soft and label_smoothing:
        spread = spread * (1.0 - label_smoothing) + label_smoothing / classes
    if soft:
        rows = spread * point(log_prob, *params)
        rows = (rows if weight is None else rows * weight_row).sum(1)
    else:
        index = torch.where(counts, target, 0).unsqueeze(1)
        rows = point(log_prob.gather(1, index).squeeze(1), *params)
        row_weight = None if weight is None else weight[index.squeeze(1)]
        if weight is not None:
            rows = rows * row_weight
        if label_smoothing:
            everywhere = point(log_prob, *params)
            everywhere = (everywhere if weight is None else everywhere * weight_row).sum(1)
            rows = rows * (1.0 - label_smoothing) + everywhere * (label_smoothing / classes)
    if z_loss:
        rows = rows + z_loss * torch.logsumexp(used, 1) ** 2
    if not soft:
        rows = torch.where(counts, rows, 0.0)

    if reduction == REDUCTIONS["none"]:
        loss = rows
    else:
        loss = rows.sum()
        if reduction != REDUCTIONS["sum"]:
            if soft:
                divisor = torch.full_like(loss, rows.numel())
            elif weight is not None and reduction == REDUCTIONS["mean"]:
                divisor = torch.where(counts, row_weight, 0.0).sum()
            else:
                divisor = counts.sum().to(loss.dtype)
            # Over nothing: NaN whatever smoothing or z_loss have added, as in torch; or, divided by infinity, 0.
            loss = loss / torch.where(divisor == 0, math.inf if zero_empty else math.nan, divisor)

    lse = torch.logsumexp(logits, 1) if want_lse else None
    entropy = accuracy = None
    if want_entropy:
        shifted = torch.log_softmax(logits, 1)
        # clamp keeps 0 * -inf out of the sum and of its gradient
        entropy = -(shifted.exp() * shifted.clamp_min(-1e4)).sum(1)
    if want_accuracy:
        with torch.no_grad():
            best = logits.amax(1)
            index = target.argmax(1, keepdim=True) if soft else index
            accuracy = (logits.gather(1, index).squeeze(1) >= best).to(logits.dtype)
            if not soft:
                accuracy = torch.where(counts, accuracy, 0.0)
    return loss.to(dtype), lse, entropy, accuracy


_SETTINGS = (
    "str functor, float[] params, float label_smoothing, float z_loss, float softcap, float logit_scale, bool stablemax, "
    "int ignore_index, int reduction"
)
_BACKWARD = (
    "(Tensor? grad_loss, Tensor? grad_lse, Tensor? grad_entropy, Tensor{} input, Tensor target, Tensor? weight, "
    "Tensor stats, Tensor divisor, Tensor? entropy, " + _SETTINGS + ")"
)


def forward_outputs(input: Tensor, reduction: int, want_entropy: bool, want_accuracy: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The uninitialised outputs of ``row_forward``: loss, stats (3, rows), divisor, entropy, accuracy."""
    accumulate = accumulate_dtype(input.dtype)
    rows = input.numel() // input.shape[1] if input.shape[1] else input.shape[0] * (input.shape[2] if input.dim() == 3 else 1)
    return (
        input.new_empty((rows,) if reduction == 0 else (), dtype=dtype),
        input.new_empty((3, rows), dtype=accumulate),
        input.new_empty((), dtype=accumulate),
        input.new_empty((rows if want_entropy else 0,), dtype=accumulate),
        input.new_empty((rows if want_accuracy else 0,), dtype=accumulate),
    )


def _forward_fake(input, target, weight, functor, params, label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index,
                  reduction, zero_empty, want_entropy, want_accuracy, dtype):
    return forward_outputs(input, reduction, want_entropy, want_accuracy, dtype)


def gradient_like(input: Tensor) -> Tensor:
    """An uninitialised gradient: the input's strides where it is dense, always unit stride over the last dimension."""
    grad = torch.empty_like(input)
    return grad if grad.stride(-1) == 1 or grad.shape[-1] == 1 else torch.empty_like(input, memory_format=torch.contiguous_format)


def _backward_fake(grad_loss, grad_lse, grad_entropy, input, *_):
    return gradient_like(input)


_FORWARD = define(
    "row_forward",
    f"(Tensor input, Tensor target, Tensor? weight, {_SETTINGS}, bool zero_empty, bool want_entropy, bool want_accuracy, ScalarType dtype)"
    " -> (Tensor loss, Tensor stats, Tensor divisor, Tensor entropy, Tensor accuracy)",
    _forward_fake,
)
_BACKWARD_OP = define("row_backward", _BACKWARD.format("") + " -> Tensor", _backward_fake)
_BACKWARD_INPLACE = define("row_backward_", _BACKWARD.format("(a!)") + " -> ()", lambda *_: None)

# The settings of cross-entropy of class indices, one a row, for losses that go on from its numbers.
PLAIN_ROWS = ("cross_entropy", (), 0.0, 0.0, 0.0, 1.0, False, -100, REDUCTIONS["none"])


class _Row(torch.autograd.Function):
    """Forward and backward of the engine on a compiled backend. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, input, target, weight, backend, inplace, want_lse, want_entropy, want_accuracy, zero_empty, dtype, settings):
        loss, stats, divisor, entropy, accuracy = _FORWARD[backend](
            input, target, weight, *settings, zero_empty, want_entropy, want_accuracy, dtype
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, weight, stats, divisor, entropy if want_entropy else None)
        ctx.settings = settings
        ctx.plan = backend, inplace, zero_empty, dtype
        if not (want_lse or want_entropy or want_accuracy):
            return loss, None, None, None
        ctx.mark_non_differentiable(accuracy)
        return (
            loss, stats[0] + stats[1] if want_lse else None, entropy if want_entropy else None, accuracy if want_accuracy else None,
        )

    @staticmethod
    def backward(ctx, grad_loss, grad_lse, grad_entropy, _):
        input, target, weight, stats, divisor, entropy = ctx.saved_tensors
        backend, inplace, zero_empty, dtype = ctx.plan
        _, need_target, need_weight = ctx.needs_input_grad[:3]
        rest = (None,) * 8
        compiling = torch.compiler.is_compiling()
        if need_target or need_weight or (torch.is_grad_enabled() and not compiling):
            return *_formula_backward(ctx, grad_loss, grad_lse, grad_entropy), *rest
        args = grad_loss, grad_lse, grad_entropy, input, target, weight, stats, divisor, entropy, *ctx.settings
        if inplace and not compiling:
            _BACKWARD_INPLACE[backend](*args)
            torch.autograd.graph.increment_version(input)  # so that a later use of the overwritten values raises
            return input.detach(), None, None, *rest
        return _BACKWARD_OP[backend](*args), None, None, *rest


_apply = fast_apply(_Row)


def _formula_backward(ctx, *grads):
    """Gradients to input, target and weight through :func:`formula`, differentiable again."""
    input, target, weight, *_ = ctx.saved_tensors
    _, _, zero_empty, dtype = ctx.plan
    functor, params, label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction = ctx.settings
    loss = LOSSES[functor]
    shaped = target if target.is_floating_point() or input.dim() == 2 else target.view(input.shape[0], input.shape[2])

    def run(input, target, weight):
        return formula(
            loss.point, params, loss.logits, input, target, weight, ignore_index, reduction, label_smoothing, z_loss, softcap,
            logit_scale, stablemax, zero_empty, grads[1] is not None, grads[2] is not None, False, dtype,
        )[:3]

    return formula_backward(run, (input, shaped, weight), ctx.needs_input_grad[:3], grads[:3])


MAX_STRIDED_CLASSES = 2**24  # more are copied to contiguous rows


def canonical(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Bring logits to one of the two layouts that kernels sweep, without a copy wherever strides allow.

    Returns ``(R, C)`` with unit stride over classes, or ``(O, C, I)`` with unit stride over ``I`` (images, transposed
    matrices); the target as ``(R,)`` indices, or with the logits' layout.
    """
    soft = target.is_floating_point()
    if input.dim() == 2:
        if input.stride(1) == 1 or input.shape[1] == 1:
            return input, (target.contiguous() if soft and target.stride(1) != 1 else target)
        if input.stride(0) == 1 and input.shape[1] <= MAX_STRIDED_CLASSES:
            if soft:
                return input.t().unsqueeze(0), _unit_stride(target.t().unsqueeze(0))
            return input.t().unsqueeze(0), target
        return input.contiguous(), (target.contiguous() if soft else target)
    if input.dim() > 2 and (input.stride(1) == 1 and input.shape[1] > 1 or input.shape[1] > MAX_STRIDED_CLASSES):
        classes = input.shape[1]
        rows = _unit_stride(input.movedim(1, -1).reshape(-1, classes) if input.numel() else input.reshape(-1, classes))
        return rows, (_unit_stride(target.movedim(1, -1).reshape(rows.shape)) if soft else target.reshape(-1))
    outer, classes = input.shape[:2]
    inner = input[0, 0].numel() if outer and classes else torch.Size(input.shape[2:]).numel()
    shape = (outer, classes, inner)
    return _unit_stride(input.reshape(shape)), (_unit_stride(target.reshape(shape)) if soft else target.reshape(-1))


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def row_loss(
    name: str,
    params: tuple[float, ...],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_accuracy: bool = False,
    inplace: bool = False,
    empty: str = "nan",
    backend: str | None = None,
    mean_of_rows: bool = False,
    wide: bool = False,
):
    """Run the registered row loss `name`: check, choose a backend, bring to a canonical layout, run, give shapes back.

    `mean_of_rows` makes a mean divide by the number of rows that count instead of their weights. `wide` gives the loss in the dtype that
    sums are kept in, for those who go on calculating with it.
    """
    if has_torch_function_variadic(input, target, weight):
        options = dict(
            input=input, target=target, weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
            z_loss=z_loss, softcap=softcap, logit_scale=logit_scale, return_lse=return_lse, return_entropy=return_entropy,
            return_accuracy=return_accuracy, inplace=inplace, empty=empty, backend=backend,
        )
        return overridden(name, options | dict(zip(LOSSES[name].params, params)), (input, target, weight))
    entry = LOSSES[name]
    batched, soft, dtype = _checks.row(
        name, entry.soft_targets, input, target, weight, ignore_index, label_smoothing, softcap, empty
    )
    dtype = accumulate_dtype(dtype) if wide else dtype
    code = _checks.reduction_code(name, reduction)
    if reduction == "mean" and mean_of_rows:
        code = REDUCTIONS["row_mean"]
    backend, _ = choose(name, backend, input, target, weight)
    if not batched:
        input = input.unsqueeze(0)
        target = target.unsqueeze(0) if soft or target.dim() == 0 else target
    if not soft and target.dtype != torch.int64:
        target = target.to(torch.int64)
    shape = target.shape[:1] + target.shape[2:] if soft else target.shape
    settings = label_smoothing, z_loss, softcap or 0.0, logit_scale, entry.stablemax, ignore_index, code
    zero_empty = empty == "zero"

    if backend == "eager":
        if not soft:
            _checks.labels_in_range(name, target, input.shape[1], ignore_index)
        loss, lse, entropy, accuracy = formula(
            entry.point, params, entry.logits, input, target, weight, ignore_index, code, label_smoothing, z_loss, softcap or 0.0,
            logit_scale, entry.stablemax, zero_empty, return_lse, return_entropy, return_accuracy, dtype,
        )
    else:
        if soft and target.dtype != input.dtype:
            common = torch.promote_types(input.dtype, target.dtype)
            input, target = input.to(common), target.to(common)
        if inplace:
            _checks.may_overwrite(name, input)
        rows, targets = canonical(input, target)
        if weight is not None:
            weight = weight.to(accumulate_dtype(rows.dtype)).contiguous()
        loss, lse, entropy, accuracy = _apply(
            rows, targets, weight, backend, inplace, return_lse, return_entropy, return_accuracy, zero_empty, dtype,
            (entry.functor or name, params, *settings),
        )
    if not batched:
        shape = ()
    if code == 0 and loss.shape != shape:
        loss = loss.reshape(shape)
    if not (return_lse or return_entropy or return_accuracy):
        return loss
    per_row = [
        value.reshape(shape)
        for value, wanted in ((lse, return_lse), (entropy, return_entropy), (accuracy, return_accuracy))
        if wanted
    ]
    return loss, *per_row
