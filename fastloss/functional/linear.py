"""Cross-entropy of the logits of a linear layer that never exist, on the `pair` engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..engine import accumulate_dtype, is_sharded, over_group, overridden, without_autocast
from ..pair import Scores, Statistic, Term, pair_statistics
from ..pair_sum import pair_sum
from ..registry import register
from .classification import cross_entropy

__all__ = ["linear_cross_entropy"]

NAME = "linear_cross_entropy"


@register(
    "pair", formula="-w_y log softmax(W x + b)_y", source="torch.nn.functional.linear_cross_entropy; Wijmans et al. 2025, section 4",
    name=NAME, torch=NAME if hasattr(torch.nn.functional, NAME) else None,  # from torch 2.13 on
    operands={"input": "hidden", "linear_weight": "classes", "target": "class", "linear_bias": "class bias", "weight": "class weight"},
    optional=True,
    choices={"label_smoothing": (0.0, 0.1), "z_loss": (0.0, 0.01), "softcap": (None, 3.0), "logit_scale": (1.0, 0.5)},
)
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: object = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    return_lse: bool = False,
    return_accuracy: bool = False,
    empty: str = "nan",
    memory_budget: int | None = None,
    group: object = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Cross-entropy of ``linear(input, linear_weight, linear_bias)`` and a target, without the logits.

    Drop-in for :func:`torch.nn.functional.linear_cross_entropy`. With :math:`z = W x + b`, scaled and capped as by
    :func:`fastloss.functional.cross_entropy`, a row's loss is :math:`-w_y (z_y - \log \sum_k e^{z_k})`. Tiles of logits are computed,
    used and forgotten, so new memory is the gradients and :math:`O(N)`, and `memory_budget` where it is given. Where the loss is one
    number, on the CPU, its gradients are found with it, by three products of matrices, and stand until the backward: without a backward
    to come, :class:`torch.no_grad` saves two of the three. With ``"none"``, `z_loss`, `return_lse`, a gradient by class weights or
    probabilities, a `group`, and on GPUs, the backward computes logits again.

    Logits are float32, of half precision too, and so are their gradients, but that a CPU that multiplies bfloat16 numbers itself takes
    those of bfloat16 hidden states rounded, which torch rounds together with the logits: ours come closer to the truth. Where
    ``torch.backends.mkldnn.matmul.fp32_precision`` is ``"ieee"`` while they are found they are exact, and slower; with
    ``torch.backends.cuda.matmul.fp32_precision = "tf32"`` Triton's kernels multiply float32 numbers in TF32.

    Class probabilities take :math:`O(N C)` memory, as their target does. Softcapped logits with class probabilities, or with class
    weights and smoothing at once, and K-dimensional losses go by stored logits.

    Args:
        input: hidden states; float32, float64, bfloat16 or float16, any strides.
        linear_weight: :math:`W`, of `input`'s dtype.
        target: class indices (int64 or uint8) in ``[0, C)`` or `ignore_index`, or class probabilities.
        linear_bias: :math:`b`. Default: 0.
        weight: a weight for each class. Default: 1.
        reduction: as for :func:`fastloss.functional.cross_entropy`.
        ignore_index: target that marks a row as not counting; None for -100. Not with probabilities.
        label_smoothing: in [0, 1]. Default: 0.
        options: :class:`torch.nn.LinearCrossEntropyOptions`, taken for torch's sake: how rows are cut into chunks makes no difference here.
        z_loss: factor of the squared log-partition, added to each row that counts. Default: 0.
        softcap: bound on the logits' magnitude, or None. Default: None.
        logit_scale: factor on the logits, before the softcap. Default: 1.
        return_lse: also return the log-partition of each row, differentiable.
        return_accuracy: also return for each row 1 if no logit is larger than the target's, else 0; 0 for an ignored row.
        empty: what a mean over no rows (or zero weight) is: ``"nan"`` as in torch, or ``"zero"``.
        memory_budget: bytes for ``"cpu"``, of which 64 MB, or half if that is less, are for gradients of logits while they are
            multiplied, and the rest for logits that are kept until the backward where it would compute them again. Gradients that are
            found with the loss keep none, but have as many bytes again for logits at work if `input` is bfloat16 or `linear_weight` has no
            gradient. 256 rows are at work at least. Default: None, that of :func:`fastloss.use_memory_budget`, else no logits and 64 MB.
        group: processes over which the classes are spread, as for :func:`fastloss.functional.cross_entropy`: each has its rows of
            `linear_weight` and `linear_bias`, and all hidden states, targets and class weights. The gradient of `input` is the whole one
            on each. DTensors bring their group: `linear_weight` and `linear_bias` sharded over the classes, `input` replicated or, as under
            sequence parallelism, sharded over its rows; the target is that of all rows. Not with probabilities or K-dimensional losses.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Returns:
        The loss, of `input`'s dtype (float32 under autocast, which casts `input` and weights as it does for a linear layer). If a
        ``return_`` flag is set, a tuple of the loss and what was asked for, in the order above.

    Shape:
        - input: :math:`(D)`, :math:`(N, D)` or :math:`(\dots, D)`
        - linear_weight: :math:`(C, D)`, or :math:`(C, d_1, \dots, d_K, D)` for a K-dimensional loss of `input` :math:`(N, D)`
        - linear_bias: :math:`(C)` or :math:`(C, d_1, \dots, d_K)`
        - target: :math:`()`, :math:`(N)`, :math:`(\dots)` or :math:`(N, d_1, \dots, d_K)` indices; probabilities have the logits' shape
        - loss: scalar, or the shape of index targets for ``reduction="none"``

    Raises:
        IndexError: a label is out of range (on a GPU the row's loss is NaN instead, since looking would synchronise).
        RuntimeError: shapes, dtypes or devices do not fit; `ignore_index` with probabilities; ``label_smoothing`` outside [0, 1].
        ValueError: unknown reduction, backend or ``empty``; softcap not positive.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        torch.nn.functional.linear_cross_entropy; Wijmans et al. 2025, "Cut your losses in large-vocabulary language models", section 4.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.linear_cross_entropy(torch.zeros(4, 16), torch.randn(1000, 16), torch.tensor([5, 0, 999, -100]))
        tensor(6.9078)
    """
    tensors = (input, linear_weight, target, linear_bias, weight)
    if has_torch_function_variadic(*tensors):
        return overridden(NAME, locals(), tensors)
    if group is not None or is_sharded(linear_weight, 0):
        settings = dict(reduction=reduction, ignore_index=-100 if ignore_index is None else ignore_index, label_smoothing=label_smoothing,
                        z_loss=z_loss, softcap=softcap, logit_scale=logit_scale, return_lse=return_lse, return_accuracy=return_accuracy,
                        empty=empty)
        return over_group(
            "linear", NAME, group, input, linear_weight, target, linear_bias, weight, settings, memory_budget, backend
        )
    _shapes(input, linear_weight, target, linear_bias)
    rows, classes, places = input.shape[:-1], linear_weight.shape[0], linear_weight.shape[1:-1]
    soft = target.is_floating_point() and target.shape == (*rows, classes, *places)
    if soft and ignore_index is not None:
        raise RuntimeError(f"{NAME}: ignore_index cannot be specified when target contains probabilities, got {ignore_index}")
    ignore_index = -100 if ignore_index is None else ignore_index
    settings = dict(reduction=reduction, ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap,
                    logit_scale=logit_scale, return_lse=return_lse, return_accuracy=return_accuracy, empty=empty)
    x = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    if not places:
        target = target.reshape(-1, classes) if soft else target.reshape(-1) if target.shape == rows else target
    # Checked as cross_entropy checks the logits, of which this has the shape, dtype and device.
    stand_in = input.new_empty(()).expand(len(x), classes, *places)
    _, soft, dtype = _checks.row(NAME, True, stand_in, target, weight, ignore_index, label_smoothing, softcap, empty)
    _checks.reduction_code(NAME, reduction)
    if places or (softcap is not None and (soft or (label_smoothing > 0 and weight is not None))):
        loss, *extras = _by_logits(x, linear_weight, target, linear_bias, weight, settings, soft, backend)
    else:
        loss, *extras = _by_statistics(x, linear_weight, target, linear_bias, weight, settings, soft, memory_budget, backend)
    shape = (*rows, *places)
    loss = loss.to(dtype).view(shape) if reduction == "none" else loss.to(dtype)
    return (loss, *(extra.view(shape) for extra in extras)) if extras else loss


class Shard(NamedTuple):
    """Which of all classes these are, and how statistics of rows become those over all of them."""

    first: int
    classes: int  # of all
    merged: Callable[[Sequence[Term], Sequence[Statistic]], list[Statistic]]
    sum: Callable[[Tensor], Tensor]
    shared: Callable[[Tensor], list[Tensor]]  # rows that all have, in parts


def _shapes(input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None) -> None:
    """torch's checks of the linear layer."""
    for argument, tensor in (("input", input), ("linear_weight", linear_weight), ("target", target), ("linear_bias", linear_bias)):
        if not isinstance(tensor, Tensor) and not (tensor is None and argument == "linear_bias"):
            raise TypeError(f"{NAME}: {argument} must be a Tensor, got {type(tensor).__name__}")
    if input.dim() < 1:
        raise RuntimeError(f"{NAME}: expected input with dimensionality 1 or more, got 0")
    if linear_weight.dim() < 2:
        raise RuntimeError(f"{NAME}: expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}")
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            f"{NAME}: expected equal input and linear_weight last dimensions (in_features), got {input.shape[-1]} and "
            f"{linear_weight.shape[-1]}"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise RuntimeError(f"{NAME}: expected linear_bias shape {tuple(linear_weight.shape[:-1])}, got {tuple(linear_bias.shape)}")
    if linear_weight.dim() > 2 and input.dim() != 2:
        raise RuntimeError(
            f"{NAME}: K-dimensional loss defined by linear_weight shape {tuple(linear_weight.shape)} requires batched input, "
            f"(N, {input.shape[-1]}), got input of shape {tuple(input.shape)}"
        )
    for argument, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"{NAME}: expected all tensors on one device, but input is on {input.device} and {argument} on {tensor.device}"
            )
        if tensor is not None and tensor.dtype != input.dtype and not _checks.autocast(input):
            raise RuntimeError(f"{NAME}: expected input and {argument} to have the same dtype, got {input.dtype} and {tensor.dtype}")


def _by_logits(
    x: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None, settings: dict, soft: bool,
    backend: str | None, group: object = None,
) -> tuple[Tensor, ...]:
    """The loss, and the extra outputs asked for, of logits that are stored, in the dtype that sums are kept in."""
    classes, *places = linear_weight.shape[:-1]
    x, linear_weight = as_linear_takes_them(x, linear_weight)
    wide = accumulate_dtype(torch.promote_types(x.dtype, target.dtype) if soft else x.dtype)
    with without_autocast(x.device):
        logits = x.to(wide) @ linear_weight.flatten(0, -2).to(wide).t()
        logits = logits if linear_bias is None else logits + linear_bias.flatten().to(wide)
        found = cross_entropy(
            logits.view(len(x), classes, *places), target.to(wide) if soft else target, None if weight is None else weight.to(wide),
            **settings, group=group, backend=backend,
        )
    return found if isinstance(found, tuple) else (found,)


def as_linear_takes_them(x: Tensor, linear_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Operands in autocast's dtype where it is on."""
    if not _checks.autocast(x) or x.dtype == torch.float64:
        return x, linear_weight
    kind = torch.get_autocast_dtype(x.device.type)
    return x.to(kind), linear_weight.to(kind)


def _by_statistics(
    x: Tensor,  # (N, D)
    linear_weight: Tensor,  # (C, D)
    target: Tensor,  # (N) or (N, C)
    linear_bias: Tensor | None,
    weight: Tensor | None,
    settings: dict,
    soft: bool,
    memory_budget: int | None,
    backend: str | None,
    shard: Shard | None = None,
) -> tuple[Tensor, ...]:
    """The loss, and the extra outputs asked for, from statistics of the rows of logits; of a shard of the classes, what all have."""
    smoothing, scale = settings["label_smoothing"], float(settings["logit_scale"])
    ignore_index, classes, first = settings["ignore_index"], linear_weight.shape[0], 0
    if shard is not None:
        first, classes = shard.first, shard.classes
    x, linear_weight = as_linear_takes_them(x, linear_weight)
    wide = accumulate_dtype(torch.promote_types(x.dtype, target.dtype) if soft else x.dtype)
    mixed = soft or (smoothing > 0 and weight is not None)
    if mixed:  # two gradients reach the linear layer: they are added before they are rounded
        x, linear_weight = x.to(wide), linear_weight.to(wide)
    bias = None if linear_bias is None else linear_bias.to(wide) * scale
    weight = None if weight is None else weight.to(wide)
    label, counts = _labels(target, classes, ignore_index, soft)
    parts = [x] if shard is None else shard.shared(x)
    if mixed and shard is not None:  # as these are what another gradient reaches
        x = torch.cat(parts)

    # The loss of a row is the sum of statistics with these weights, less what is expected of its logits beside them.
    terms, expected = [Term("lse"), Term("sum", "positive")], None
    if soft:
        q = target.to(wide) * (1 - smoothing) + smoothing / classes
        q = q if weight is None else q * weight
        known, each, expected = counts, q.sum(1), _expected(x, linear_weight, bias, q, scale)
        weights, divisor = [each, None], each.new_full((), len(each))
    else:
        known = counts & (label >= 0) & (label < classes)
        each = known.to(wide) if weight is None else torch.where(known, weight[torch.where(known, label, 0)], 0.0)
        weights, divisor = [each, (smoothing - 1) * each], each.sum()
        if smoothing and mixed:
            shares = smoothing / classes * weight
            expected = _expected(x, linear_weight, bias, shares[first : first + len(linear_weight)].unsqueeze(0), scale)
            expected = expected if shard is None else shard.sum(expected)
            weights[0] = (1 - smoothing) * each + shares.sum()
        elif smoothing:
            terms.append(Term("sum"))
            weights.append(-smoothing / classes * each)
    if settings["return_accuracy"]:
        terms.append(Term("max"))
    elif soft:
        del terms[1], weights[1]
    if settings["reduction"] != "mean":
        divisor = torch.ones_like(divisor)
    divisor = torch.where(divisor == 0, math.inf if settings["empty"] == "zero" else math.nan, divisor)

    cap = settings["softcap"]
    transform = "none" if cap is None else "softcap", 1.0 if cap is None else float(cap)
    index = torch.arange(first, first + len(linear_weight), device=label.device, dtype=label.dtype)
    scores = [Scores(part, linear_weight, None, bias, scale, *transform) for part in parts]
    if settings["reduction"] != "none" and not settings["z_loss"] and not settings["return_lse"] and shard is None:
        weights = [None if w is None else torch.where(known, w / divisor, 0.0) for w in weights]
        loss, found = pair_sum(NAME, *scores, terms, weights, known, (label, index), backend=backend, memory_budget=memory_budget)
        rows = torch.where(known, 0.0, torch.where(counts, math.nan, 0.0))
        rows = rows if expected is None else rows - torch.where(known, expected, 0.0)
        loss = loss + rows.sum() / divisor
    else:
        found = _statistics(scores, terms, label, index, memory_budget, backend, shard)
        rows = sum(w * one.value for w, one in zip(weights, found) if w is not None)
        rows = rows if expected is None else rows - expected
        rows = rows + settings["z_loss"] * found[0].value.square() if settings["z_loss"] else rows
        rows = torch.where(known, rows, torch.where(counts, math.nan, 0.0))
        loss = rows if settings["reduction"] == "none" else rows.sum() / divisor
    extras = [found[0].value] if settings["return_lse"] else []
    if settings["return_accuracy"]:
        extras.append(((found[1].value >= found[-1].value) & counts).detach().to(wide))
    return loss, *extras


def _statistics(
    scores: Sequence[Scores], terms: Sequence[Term], label: Tensor, index: Tensor, memory_budget: int | None, backend: str | None,
    shard: Shard | None,
) -> list[Statistic]:
    """Statistics of the rows of logits, which come in parts; of a shard of the classes those over all of them."""
    each = memory_budget if len(scores) == 1 or memory_budget is None else memory_budget // len(scores)
    found = [
        pair_statistics(NAME, part, terms, (own, index), backend=backend, memory_budget=each)
        for part, own in zip(scores, label.split([len(part.a) for part in scores]))
    ]
    found = found[0] if len(scores) == 1 else [Statistic(*(torch.cat(t) for t in zip(*each))) for each in zip(*found)]
    return found if shard is None else shard.merged(terms, found)


def _labels(target: Tensor, classes: int, ignore_index: int, soft: bool) -> tuple[Tensor, Tensor]:
    """The class of each row, and which rows count."""
    if soft:
        return target.argmax(1), torch.ones_like(target[:, 0], dtype=torch.bool)
    _checks.labels_in_range(NAME, target, classes, ignore_index)
    label = target.long()
    counts = label != ignore_index
    return torch.where(counts, label, -1), counts


def _expected(x: Tensor, linear_weight: Tensor, bias: Tensor | None, q: Tensor, scale: float) -> Tensor:
    """``sum_c q_c z_c`` of each row, z scaled."""
    with without_autocast(x.device):
        found = scale * (x * (q @ linear_weight)).sum(1)
        return found if bias is None else found + q @ bias
