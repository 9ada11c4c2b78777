"""Losses of language models that are more than one cross-entropy: of a shifted sequence, and of a model that decides when to halt."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from ..engine import overridden
from ..plain import checked
from ..registry import register
from ..row import row_loss
from .binary import binary_cross_entropy_with_logits

__all__ = ["HRMParts", "hrm_loss", "nano_vlm_loss"]

_SMALLEST = 1e-8  # what is added to a probability before its logarithm


def _sequences(name: str, input: Tensor, target: Tensor) -> None:
    for argument, tensor in (("input", input), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
    if input.dim() != 3 or target.shape != input.shape[:2]:
        raise ValueError(
            f"{name}: input must be (B, T, V) and target (B, T), got {tuple(input.shape)} and {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise RuntimeError(f"{name}: expected class indices as target, got {target.dtype}")


@register(
    "plain", formula="-sum_t log softmax(x_t)_(y_(t+1)) / n over the n tokens that count", source="Radford et al. 2018, equation 1",
    operands={"input": "real", "target": "class"}, params={"label_smoothing": (0.0, 0.2)}, dims=(3, 3),
    functor="cross_entropy",
)
def nano_vlm_loss(
    input: Tensor,
    target: Tensor,
    ignore_index: int = 0,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of the next token: the scores at each place are compared with the token at the place after it.

    .. math:: \ell_{bt} = -(1 - \alpha) \, l_{b, t, y_{b, t + 1}} - \frac{\alpha}{V} \sum_v l_{btv}, \qquad l = \log \operatorname{softmax}(x)

    The scores at the last place are compared with nothing. They are not sliced off, so that logits are never copied.

    Args:
        input: logits, or probabilities without `from_logits`; float32, float64, bfloat16 or float16, any strides.
        target: the tokens, class indices in ``[0, V)`` or ``ignore_index``, not yet shifted.
        ignore_index: token that is not to be predicted: loss 0, gradient 0. Default: 0.
        label_smoothing: :math:`\alpha \in [0, 1]`. Default: 0.
        from_logits: whether `input` is logits; otherwise :math:`l = \log(x + 10^{-8})`. Default: True.
        reduction: ``"none"``: a loss for each token but the first of a sequence; ``"sum"``; ``"mean"``: over the tokens that count, 0 if
            there are none.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(B, T, V)`
        - target: :math:`(B, T)`
        - loss: scalar, or :math:`(B, T - 1)` for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit; unknown reduction or backend.
        IndexError: a token on the CPU is out of range.
        RuntimeError: tokens are no integers; ``label_smoothing`` is outside [0, 1]; tensors are on several devices.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        Radford et al. 2018, equation 1; label smoothing: Szegedy et al. 2016, section 7.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.nano_vlm_loss(torch.zeros(1, 3, 4), torch.tensor([[3, 2, 0]]))  # of 2 tokens to predict one is padding
        tensor(1.3863)
    """
    if has_torch_function_variadic(input, target):
        return overridden("nano_vlm", locals(), (input, target))
    name = "nano_vlm"
    _sequences(name, input, target)
    dtype, backend = checked(name, {"input": input, "target": target}, backend, reduction)
    if target.shape[1]:
        target = torch.cat([target[:, 1:], torch.full_like(target[:, :1], ignore_index)], 1)
    options = dict(ignore_index=ignore_index, empty="zero", backend=backend, wide=True)
    if from_logits:
        options |= {"reduction": reduction, "label_smoothing": label_smoothing}
        loss = row_loss("cross_entropy", (), input.movedim(2, 1), target, None, **options)
    else:
        if not 0.0 <= label_smoothing <= 1.0:
            raise RuntimeError(f"{name}: label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
        counts = (target != ignore_index).unsqueeze(2)
        wide = torch.promote_types(input.dtype, torch.float32)
        log_prob = torch.log(torch.where(counts, input, 1.0).to(wide) + _SMALLEST)
        loss = row_loss("nll", (), log_prob.movedim(2, 1), target, None, reduction=reduction, **options)
        if label_smoothing:
            everywhere = torch.where(counts, -log_prob, 0.0).mean(2)
            if reduction != "none":
                everywhere = everywhere.sum() / (counts.sum().clamp_min(1) if reduction == "mean" else 1)
            loss = (1 - label_smoothing) * loss + label_smoothing * everywhere
    return (loss[:, :-1] if reduction == "none" else loss).to(dtype)


class HRMParts(NamedTuple):
    """What :func:`hrm_loss` adds up, and what it found, in float32 (float64 for float64 inputs).

    Args:
        lm: the loss of the tokens.
        q_halt: cross-entropy of the halting scores, before its factor.
        q_continue: the same of the continuing scores, 0 where there are none.
        correct: (B,), whether all tokens of the sequence that count are right.
        accuracy: (B,), how many of them are, divided by their number; 0 where none counts.
    """

    lm: Tensor
    q_halt: Tensor
    q_continue: Tensor
    correct: Tensor
    accuracy: Tensor


_LM_LOSSES = {"stable_max": "stablemax_cross_entropy", "softmax": "cross_entropy"}
_LM_REDUCTIONS = ("token", "sequence_sum", "source")


@register(
    "plain", formula="sum nll / n + w (BCE(q_halt, all right) + BCE(q_continue, target))", source="Wang et al. 2025, equations 7 and 8",
    operands={
        "input": "real", "target": "class", "q_halt_logits": "sample score", "q_continue_logits": "sample score",
        "target_q_continue": "sample label",
    },
    params={"q_loss_weight": (0.0, 1.0)}, choices={"lm_loss_type": tuple(_LM_LOSSES), "lm_reduction": _LM_REDUCTIONS}, dims=(3, 3),
    forward=("q_continue_logits", "target_q_continue"), functor="cross_entropy",
)
def hrm_loss(
    input: Tensor,
    target: Tensor,
    q_halt_logits: Tensor,
    q_continue_logits: Tensor | None = None,
    target_q_continue: Tensor | None = None,
    lm_loss_type: str = "stable_max",
    q_loss_weight: float = 0.5,
    ignore_index: int = -100,
    lm_reduction: str = "token",
    *,
    return_parts: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, HRMParts]:
    r"""Loss of a hierarchical reasoning model: of its tokens, and of its estimates whether to halt or to go on.

    .. math:: \ell = \ell_\text{lm} + w \left(\text{BCE}(h, c) + \text{BCE}(g, \hat g)\right)

    where :math:`c_b` is 1 if the likeliest token is right at every place of sequence :math:`b` that counts, and no gradient flows through
    it. With :math:`n_b` the number of these places, at least 1, and :math:`\ell_{bt}` the cross-entropy of a token

    .. math:: \ell_\text{lm} = \frac{\sum_{bt} \ell_{bt}}{\sum_b n_b} \text{ (token)}, \qquad
        \ell_\text{lm} = \sum_b \frac{\sum_t \ell_{bt}}{n_b} \text{ (sequence\_sum)}

    Args:
        input: logits of the tokens; float32, float64, bfloat16 or float16, any strides.
        target: class indices in ``[0, V)`` or ``ignore_index``.
        q_halt_logits: :math:`h`, a score of halting for each sequence.
        q_continue_logits: :math:`g`, a score of going on. Default: None, without its term.
        target_q_continue: :math:`\hat g \in [0, 1]`, what it should be; goes with `q_continue_logits`.
        lm_loss_type: ``"stable_max"`` (:func:`fastloss.functional.stablemax_cross_entropy`) or ``"softmax"``. Default: ``"stable_max"``.
        q_loss_weight: :math:`w`. Default: 0.5.
        ignore_index: token that does not count: loss 0, gradient 0. Default: -100.
        lm_reduction: ``"token"``; ``"sequence_sum"`` as in the authors' code, where both BCE are sums, too, and a sequence of which no
            place counts is right; ``"source"`` as published for Keras, where the loss of ``"stable_max"`` is divided by :math:`B T` once
            more. Default: ``"token"``.
        return_parts: also return :class:`HRMParts`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(B, T, V)`
        - target: :math:`(B, T)`
        - q_halt_logits, q_continue_logits, target_q_continue: :math:`(B)`
        - loss: scalar; 0 for :math:`B = 0`. A token whose logit ties with the largest is right.

    Raises:
        ValueError: shapes do not fit, one of `q_continue_logits` and `target_q_continue` is missing, or an option is unknown.
        IndexError: a token on the CPU is out of range.
        RuntimeError: tokens are no integers; tensors are on several devices.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        Wang et al. 2025, "Hierarchical Reasoning Model", equations 7 and 8.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.hrm_loss(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]), torch.zeros(1))  # log 4 + log 2 / 2
        tensor(1.7329)
    """
    tensors = input, target, q_halt_logits, q_continue_logits, target_q_continue
    if has_torch_function_variadic(*tensors):
        return overridden("hrm", locals(), tensors)
    name = "hrm"
    _sequences(name, input, target)
    scores = {"q_halt_logits": q_halt_logits, "q_continue_logits": q_continue_logits, "target_q_continue": target_q_continue}
    if (q_continue_logits is None) != (target_q_continue is None):
        raise ValueError(f"{name}: q_continue_logits and target_q_continue go together, got only one of them")
    for argument, tensor in scores.items():
        if isinstance(tensor, Tensor) and tensor.shape != target.shape[:1]:
            raise ValueError(f"{name}: {argument} must be ({len(target)},), got {tuple(tensor.shape)}")
    if lm_loss_type not in _LM_LOSSES:
        raise ValueError(f"{name}: lm_loss_type must be 'stable_max' or 'softmax', got {lm_loss_type!r}")
    if lm_reduction not in _LM_REDUCTIONS:
        raise ValueError(f"{name}: lm_reduction must be 'token', 'sequence_sum' or 'source', got {lm_reduction!r}")
    if q_halt_logits is None:
        raise TypeError(f"{name}: q_halt_logits must be a Tensor, got NoneType")
    dtype, backend = checked(name, {"input": input, "target": target, **scores}, backend)

    losses, right = row_loss(
        _LM_LOSSES[lm_loss_type], (), input.movedim(2, 1), target, None, ignore_index, "none", return_accuracy=True, backend=backend,
        wide=True,
    )
    counted = (target != ignore_index).sum(1)
    number = counted.clamp_min(1)
    by_sequence = lm_reduction == "sequence_sum"
    if by_sequence:
        lm = (losses.sum(1) / number).sum()
    else:
        lm = losses.sum() / number.sum().clamp_min(1)
        if lm_reduction == "source" and lm_loss_type == "stable_max":
            lm = lm / max(target.numel(), 1)
    hits = right.sum(1)
    correct = hits == (counted if by_sequence else number)
    sequences = 1 if by_sequence else max(len(target), 1)

    def halting(score: Tensor, wanted: Tensor) -> Tensor:
        score = score.to(losses.dtype)
        return binary_cross_entropy_with_logits(score, wanted.to(score.dtype), reduction="sum", backend=backend) / sequences

    q_halt = halting(q_halt_logits, correct)
    q_continue = lm.new_zeros(()) if q_continue_logits is None else halting(q_continue_logits, target_q_continue)
    loss = (lm + q_loss_weight * (q_halt + q_continue)).to(dtype)
    if not return_parts:
        return loss
    return loss, HRMParts(lm, q_halt, q_continue, correct, hits / number)
