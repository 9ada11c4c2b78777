"""Losses of language models and of hierarchical reasoning."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ... import _checks
from ... import functional as F
from ._loss import Loss, entries, fraction

__all__ = ["HRMLoss", "NanoVLMLoss", "StableMaxCrossEntropy", "create_hrm_loss"]


class NanoVLMLoss(Loss):
    """:func:`fastloss.functional.nano_vlm_loss`: scores are compared with the next token, and padding does not count.

    Args:
        ignore_index: token that does not count. Default: 0.
        label_smoothing: in [0, 1]. Default: 0.
        from_logits: whether predictions are logits, else probabilities. Default: True.
        reduction: as for :class:`Loss`; a mean is over the tokens that count, without a reduction the loss is (B, T - 1).
        name, backend: as for :class:`Loss`.

    Raises:
        ValueError: `label_smoothing` is not in [0, 1].
    """

    def __init__(
        self, ignore_index: int = 0, label_smoothing: float = 0.0, from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size", name: str | None = "nanovlm_loss", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        fraction("NanoVLMLoss", "label_smoothing", label_smoothing)
        self.ignore_index, self.label_smoothing, self.from_logits = ignore_index, label_smoothing, from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The reduced loss of tokens (B, T) and scores (B, T, V)."""
        reduction = {"sum": "sum", "none": "none", None: "none"}.get(self.reduction, "mean")
        return F.nano_vlm_loss(
            y_pred, y_true, self.ignore_index, self.label_smoothing, self.from_logits, reduction, backend=self.backend
        )


class StableMaxCrossEntropy(Loss):
    """:func:`fastloss.functional.stablemax_cross_entropy` of each token, 0 for one that does not count.

    Args:
        from_logits: accepted; predictions are logits. Default: True.
        ignore_index: token that does not count. Default: -100.
        epsilon: accepted; 1 / (1 - x) needs none. Default: 1e-30.
        name, reduction, backend: as for :class:`Loss`. A mean counts tokens that do not count.
    """

    def __init__(
        self, from_logits: bool = True, ignore_index: int = -100, epsilon: float = 1e-30, name: str | None = None,
        reduction: str | None = "sum_over_batch_size", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        _checks.positive("StableMaxCrossEntropy", "epsilon", epsilon)
        self.from_logits, self.ignore_index, self.epsilon = from_logits, ignore_index, epsilon

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """(...) losses of labels (...) and logits (..., V)."""
        if y_true.shape != y_pred.shape[:-1]:
            raise ValueError(f"{self.name}: y_pred must be (..., V) for y_true {tuple(y_true.shape)}, got {tuple(y_pred.shape)}")
        rows, labels = y_pred.reshape(-1, y_pred.shape[-1]), y_true.reshape(-1).long()
        losses = F.stablemax_cross_entropy(rows, labels, ignore_index=self.ignore_index, reduction="none", backend=self.backend)
        return losses.view(y_true.shape)


class HRMLoss(Loss):
    """:func:`fastloss.functional.hrm_loss` of dictionaries of targets and predictions.

    Args:
        lm_loss_type: ``"stable_max"``; any other is the softmax. Default: ``"stable_max"``.
        q_loss_weight: weight of the scores of halting and going on. Default: 0.5.
        ignore_index: token that does not count. Default: -100.
        name, reduction, backend: as for :class:`Loss`.
        lm_reduction: ``"token"``, or ``"sequence_sum"`` as in the authors' code. Default: ``"token"``.
        source_compat: the original's number, which divides the loss of ``"stable_max"`` by the number of tokens once more. Default:
            False.
    """

    def __init__(
        self, lm_loss_type: str = "stable_max", q_loss_weight: float = 0.5, ignore_index: int = -100, name: str | None = None,
        reduction: str | None = "sum_over_batch_size", *, lm_reduction: str = "token", source_compat: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.lm_loss_type, self.q_loss_weight, self.ignore_index = lm_loss_type, q_loss_weight, ignore_index
        self.lm_reduction, self.source_compat = lm_reduction, source_compat

    def call(self, y_true: Mapping[str, Tensor], y_pred: Mapping[str, Tensor]) -> Tensor:
        """A scalar, of ``labels`` (B, T), of ``logits`` (B, T, V) and ``q_halt_logits`` (B), and of ``q_continue_logits`` and
        ``target_q_continue`` (B) where both are there.
        """
        if not isinstance(y_true, Mapping) or "labels" not in y_true:
            raise ValueError(f"HRMLoss: y_true must be a dictionary with labels, got {type(y_true).__name__}")
        logits, halt = entries("HRMLoss", y_pred, "logits", "q_halt_logits")
        more = [y_pred.get(key) for key in ("q_continue_logits", "target_q_continue")]
        more = [None, None] if any(tensor is None for tensor in more) else [tensor.reshape(-1) for tensor in more]
        kind = "stable_max" if self.lm_loss_type == "stable_max" else "softmax"
        return F.hrm_loss(
            logits, y_true["labels"].long(), halt.reshape(-1), *more, kind, self.q_loss_weight, self.ignore_index,
            "source" if self.source_compat else self.lm_reduction, backend=self.backend,
        )


def create_hrm_loss(lm_loss_type: str = "stable_max", q_loss_weight: float = 0.5, ignore_index: int = -100, **options) -> HRMLoss:
    """An :class:`HRMLoss`, whose arguments these are."""
    return HRMLoss(lm_loss_type, q_loss_weight, ignore_index, **options)
