"""Divergences between the logits of two linear layers, which never exist whole, on the `divergence` engine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from .._backends import choose
from ..divergence import backward_rows, divergence, forward_rows
from ..engine import accumulate_dtype, fast_apply, formula_backward, overridden, without_autocast
from ..registry import register
from .distillation import rows_that_count
from .linear import as_linear_takes_them

__all__ = ["linear_distillation_loss"]

NAME = "linear_distillation"
KINDS = {"kl": "kl", "reverse_kl": "kl", "jsd": "jensen_shannon", "tv": "total_variation"}
BUDGET = 64 * 2**20  # bytes of logits and their gradients at a time
BLOCK = 4096  # classes of a weight of half precision that are widened at a time


@register(
    "plain", formula="T^2 KL(softmax(t / T), softmax((W x + b) / T))", source="Hinton et al. 2015, section 2.1; Hsu et al. 2024",
    operands={"input": "real", "linear_weight": "head", "target": "head scores"}, params={"temperature": (0.5, 4.0)},
    choices={"kind": tuple(KINDS), "squared_temperature": (True, False)},
    forward=("target_weight", "linear_bias", "target_bias", "labels", "mask"), dims=(1, 3),
)
def linear_distillation_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    target_weight: Tensor | None = None,
    linear_bias: Tensor | None = None,
    target_bias: Tensor | None = None,
    temperature: float = 1.0,
    kind: str = "kl",
    beta: float = 0.5,
    squared_temperature: bool = True,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Distillation from the logits of a linear layer, or from given ones, to those of another, which are computed a few rows at a time.

    :func:`fastloss.functional.distillation_loss` (``kind="kl"``) of :math:`W x + b` and the teacher's :math:`W_t h + b_t`, or one of its
    relatives. Rows of logits are computed, used and forgotten, forward and again backward, so that new memory is the gradients and what
    `memory_budget` allows. Logits are not rounded to half precision. In eager, and for second derivatives, logits are stored.

    Args:
        input: the student's hidden states :math:`x`; float32, float64, bfloat16 or float16, any strides.
        linear_weight: :math:`W`.
        target: the teacher's logits, or with `target_weight` its hidden states :math:`h`.
        target_weight: :math:`W_t`. Default: None.
        linear_bias: :math:`b`. Default: None, 0.
        target_bias: :math:`b_t`, with `target_weight`. Default: None, 0.
        temperature: :math:`T`, positive. Default: 1.
        kind: ``"kl"``; ``"reverse_kl"``, the student's from the teacher's; ``"jsd"``, as :func:`fastloss.functional.generalized_jsd`;
            ``"tv"``, as :func:`fastloss.functional.total_variation`. Default: ``"kl"``.
        beta: of ``"jsd"``, in (0, 1). Default: 0.5.
        squared_temperature: whether to multiply by :math:`T^2`. Default: True.
        labels, ignore_index, mask: rows that do not count, as for :func:`fastloss.functional.distillation_loss`.
        reduction: as for :func:`fastloss.functional.distillation_loss`.
        memory_budget: bytes for logits and their gradients; at least a row is computed at a time. Default: None, 64 MB.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Returns:
        The loss, of the dtype that input and target promote to (float32 under autocast, which casts hidden states and weights as it does
        for a linear layer). Every tensor of floating point may require a gradient.

    Shape:
        - input: :math:`(D)` or :math:`(..., D)`
        - linear_weight: :math:`(C, D)`; linear_bias: :math:`(C)`
        - target: :math:`(..., C)`, or :math:`(..., D_t)` with target_weight :math:`(C, D_t)` and target_bias :math:`(C)`
        - labels, mask: :math:`(...)`
        - loss: scalar, or :math:`(...)` for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit; the temperature or the budget is not positive, `beta` not in (0, 1); unknown kind, reduction or
            backend.
        TypeError: an argument is not a Tensor.
        RuntimeError: tensors are on different devices; the backend cannot run here.
        NotImplementedError: tensors of another dtype.

    Source:
        Hinton, Vinyals and Dean 2015, section 2.1; computed in parts as by Hsu et al. 2024 ("Liger kernel"), section 3.2.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> student, teacher = torch.nn.Linear(8, 1000), torch.nn.Linear(16, 1000)
        >>> F.linear_distillation_loss(torch.zeros(4, 8), student.weight, torch.zeros(4, 16), teacher.weight).item()
        0.0
    """
    tensors = (input, linear_weight, target, target_weight, linear_bias, target_bias, labels, mask)
    if has_torch_function_variadic(*tensors):
        return overridden(NAME, locals(), tensors)
    if kind not in KINDS:
        raise ValueError(f"{NAME}: kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    if not 0.0 < beta < 1.0:
        raise ValueError(f"{NAME}: beta must be in (0, 1), got {beta}")
    _checks.positive(NAME, "temperature", temperature)
    if memory_budget is not None:
        _checks.positive(NAME, "memory_budget", memory_budget)
    _checks.reduction_code(NAME, reduction)
    dtype = _checked(input, linear_weight, target, target_weight, linear_bias, target_bias)
    counts = rows_that_count(NAME, input, labels, ignore_index, mask)
    backend, _ = choose(NAME, backend, *tensors)

    input, linear_weight = as_linear_takes_them(input, linear_weight)
    if target_weight is not None:
        target, target_weight = as_linear_takes_them(target, target_weight)
    wide = accumulate_dtype(torch.promote_types(dtype, input.dtype))
    shape, scale = input.shape[:-1], 1.0 / float(temperature)
    weight = None if counts is None else counts.to(wide).reshape(-1)
    given = _flat(input), linear_weight, linear_bias, _flat(target), target_weight, target_bias, weight
    factor = float(temperature) ** 2 if squared_temperature else 1.0
    settings = KINDS[kind], (float(beta),) if kind == "jsd" else (), scale, factor, kind == "reverse_kl"
    with without_autocast(input.device):
        if backend == "eager" or linear_weight.shape[0] == 0:
            rows = _formula(*given, settings, wide)
        else:
            step = max(1, (memory_budget or BUDGET) // max(4 * linear_weight.shape[0] * wide.itemsize, 1))
            rows = _apply(*given, settings, wide, step, backend)
    if reduction == "none":
        return rows.reshape(shape).to(dtype)
    loss = rows.sum()
    if reduction == "mean":
        loss = loss / (rows.numel() if weight is None else weight.sum()) if rows.numel() else loss * float("nan")
    return loss.to(dtype)


def _checked(
    input: Tensor, linear_weight: Tensor, target: Tensor, target_weight: Tensor | None, linear_bias: Tensor | None,
    target_bias: Tensor | None,
) -> torch.dtype:
    """Raise unless the tensors fit; gives the dtype of the loss."""
    named = dict(
        input=input, linear_weight=linear_weight, target=target, target_weight=target_weight, linear_bias=linear_bias,
        target_bias=target_bias,
    )
    for argument, tensor in named.items():
        if tensor is None and argument not in ("input", "linear_weight", "target"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{NAME}: {argument} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _checks.FLOATING:
            raise NotImplementedError(f"{NAME}: {argument} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")
        if tensor.device != input.device:
            raise RuntimeError(
                f"{NAME}: expected all tensors on one device, but input is on {input.device} and {argument} on {tensor.device}"
            )
    if not input.shape or linear_weight.dim() != 2 or linear_weight.shape[1] != input.shape[-1]:
        raise ValueError(
            f"{NAME}: expected input (..., D) and linear_weight (C, D), got {tuple(input.shape)} and {tuple(linear_weight.shape)}"
        )
    classes = linear_weight.shape[0]
    if target_weight is None:
        wanted = (*input.shape[:-1], classes)
        if target.shape != wanted:
            raise ValueError(f"{NAME}: expected target of the logits' shape {tuple(wanted)}, got {tuple(target.shape)}")
        if target_bias is not None:
            raise ValueError(f"{NAME}: target_bias wants target_weight, without which target are logits")
    elif target.shape[:-1] != input.shape[:-1] or not target.shape or target_weight.shape != (classes, target.shape[-1]):
        raise ValueError(
            f"{NAME}: expected target {(*input.shape[:-1], 'D_t')} and target_weight ({classes}, D_t), got {tuple(target.shape)} and "
            f"{tuple(target_weight.shape)}"
        )
    for argument, tensor in (("linear_bias", linear_bias), ("target_bias", target_bias)):
        if tensor is not None and tensor.shape != (classes,):
            raise ValueError(f"{NAME}: {argument} must have shape ({classes},), got {tuple(tensor.shape)}")
    dtype = torch.promote_types(input.dtype, target.dtype)
    return torch.float32 if _checks.autocast(input) and dtype != torch.float64 else dtype


def _flat(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1]) if t.shape[-1] else t.reshape(t.shape[:-1].numel(), 0)


def _formula(x, linear_weight, linear_bias, t, target_weight, target_bias, weight, settings, wide) -> Tensor:
    """The losses of rows (N), 0 of those that do not count, by logits that are stored."""
    functor, params, scale, factor, swapped = settings
    x, t = _kept(x, weight), _kept(t, weight)

    def logits(h: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        z = h.to(wide) if w is None else h.to(wide) @ w.to(wide).t()
        return z if b is None else z + b.to(wide)

    sides = logits(x, linear_weight, linear_bias), logits(t, target_weight, target_bias)
    return divergence(
        NAME, functor, *(sides[::-1] if swapped else sides), params=params, weight=weight, scales=(scale, scale), factor=factor,
        reduction="none", dtype=wide, backend="eager",
    )


def _kept(h: Tensor, weight: Tensor | None) -> Tensor:
    """Hidden states less those of rows that do not count, since 0 times NaN is NaN."""
    return h if weight is None else torch.where((weight != 0).unsqueeze(1), h, 0.0)


def _blocks(w: Tensor, wide: torch.dtype) -> list[slice]:
    """The classes that are computed at once: all of them, unless their weights have to be widened."""
    step = len(w) if w.dtype == wide else BLOCK
    return [slice(c, min(c + step, len(w))) for c in range(0, len(w), step)]


def _logits(h: Tensor, w: Tensor | None, b: Tensor | None, wide: torch.dtype) -> Tensor:
    """A few rows of logits, new memory unless `h` are logits."""
    h = h.to(wide)
    if w is None:
        return h.contiguous()
    blocks = _blocks(w, wide)
    if len(blocks) == 1:
        z = h @ w.to(wide).t()
    else:
        z = h.new_empty((len(h), len(w)))
        for block in blocks:
            z[:, block] = h @ w[block].to(wide).t()
    return z if b is None else z.add_(b.to(wide))


class _Gradients:
    """The gradients of one linear layer, to which those of a few rows at a time are added; None where not wanted."""

    def __init__(self, h: Tensor, w: Tensor | None, b: Tensor | None, needed: tuple[bool, bool, bool], wide: torch.dtype) -> None:
        self.w, self.wide = w, wide
        self.by_h = torch.empty_like(h, memory_format=torch.contiguous_format) if needed[0] else None
        self.by_w = w.new_zeros(w.shape, dtype=wide) if needed[1] else None
        self.by_b = b.new_zeros(b.shape, dtype=wide) if needed[2] else None

    @property
    def wanted(self) -> bool:
        return any(grad is not None for grad in (self.by_h, self.by_w, self.by_b))

    def add(self, rows: slice, h: Tensor, dz: Tensor) -> None:
        """What rows `h` with gradients `dz` of their logits add."""
        h = h.to(self.wide)
        if self.by_b is not None:
            self.by_b += dz.sum(0)
        if self.w is None:
            if self.by_h is not None:
                self.by_h[rows] = dz
            return
        dh = torch.zeros_like(h) if self.by_h is not None else None
        for block in _blocks(self.w, self.wide):
            part = dz[:, block]
            if self.by_w is not None:
                self.by_w[block] += part.t() @ h
            if dh is not None:
                dh += part @ self.w[block].to(self.wide)
        if dh is not None:
            self.by_h[rows] = dh

    def results(self, b: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.by_h, None if self.by_w is None else self.by_w.to(self.w.dtype), None if self.by_b is None else self.by_b.to(b.dtype)


class _ByRows(torch.autograd.Function):
    """:func:`_formula` on a compiled backend, a few rows at a time. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, x, linear_weight, linear_bias, t, target_weight, target_bias, weight, settings, wide, step, backend):
        given = x, linear_weight, linear_bias, t, target_weight, target_bias, weight
        losses, kept = x.new_empty(len(x), dtype=wide), []
        for rows in _row_ranges(len(x), step):
            losses[rows], stats = forward_rows(backend, *_sides(given, rows, settings, wide), settings)
            kept.append(stats)
        ctx.save_for_backward(*given, *kept)
        ctx.plan = settings, wide, step, backend
        return losses

    @staticmethod
    def backward(ctx, grad):
        *given, = ctx.saved_tensors[:7]
        kept = ctx.saved_tensors[7:]
        settings, wide, step, backend = ctx.plan
        needed = ctx.needs_input_grad[:7]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            weight = given[6]
            run = lambda *inputs: [_formula(*inputs, weight, settings, wide)]  # noqa: E731
            return *formula_backward(run, given[:6], needed[:6], [grad]), *(None,) * 5
        swapped = settings[-1]
        with without_autocast(grad.device):
            layers = [_Gradients(*given[i : i + 3], needed[i : i + 3], wide) for i in (0, 3)]
            for rows, stats in zip(_row_ranges(len(given[0]), step), kept):
                *sides, weight = _sides(given, rows, settings, wide)
                wanted = [layer.wanted for layer in layers]
                found = backward_rows(
                    backend, grad[rows].to(wide).contiguous(), *sides, weight, stats, settings, wanted[::-1] if swapped else wanted
                )
                for layer, h, dz in zip(layers, (given[0], given[3]), found[::-1] if swapped else found):
                    if layer.wanted:
                        layer.add(rows, _kept(h[rows], weight), dz)
        return *layers[0].results(given[2]), *layers[1].results(given[5]), *(None,) * 5


def _row_ranges(rows: int, step: int) -> list[slice]:
    return [slice(r, min(r + step, rows)) for r in range(0, rows, step)]


def _sides(given: tuple, rows: slice, settings: tuple, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """The logits of some rows in the order that the engine takes them, and which of the rows count."""
    x, linear_weight, linear_bias, t, target_weight, target_bias, weight = given
    weight = None if weight is None else weight[rows]
    own = _logits(_kept(x[rows], weight), linear_weight, linear_bias, wide)
    other = _logits(_kept(t[rows], weight), target_weight, target_bias, wide)
    return (other, own, weight) if settings[-1] else (own, other, weight)


_apply = fast_apply(_ByRows)
