"""apex's cross-entropy, following apex 25.09: ``apex.contrib.xentropy.SoftmaxCrossEntropyLoss``
(``from fastloss.compat.apex import SoftmaxCrossEntropyLoss``).

Called as there, ``SoftmaxCrossEntropyLoss.apply(logits, labels, smoothing, padding_idx, half_to_float)``. Different are: tensors may be on
any device; a label that no class has raises on the CPU and is NaN on a GPU, where apex reads out of bounds; bfloat16 logits may have
float32 losses, too; and an empty batch gives no losses instead of an error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..row import row_loss

__all__ = ["SoftmaxCrossEntropyLoss"]


class SoftmaxCrossEntropyLoss:
    """apex's ``SoftmaxCrossEntropyLoss``: :func:`fastloss.functional.cross_entropy` of each row, whose label `padding_idx` is ignored."""

    @staticmethod
    def apply(
        logits: Tensor, labels: Tensor, smoothing: float = 0.0, padding_idx: int = 0, half_to_float: bool = False, *,
        backend: str | None = None,
    ) -> Tensor:
        """The loss of each row, 0 where the label is `padding_idx`.

        Args:
            logits: (N, V).
            labels: (N,), int64.
            smoothing: in [0, 1]. Default: 0.
            padding_idx: the label of rows that do not count. Default: 0.
            half_to_float: whether the losses of half-precision logits are float32 instead of the logits' dtype. Default: False.
            backend: as for :func:`fastloss.functional.cross_entropy`.

        Returns:
            (N,) losses.

        Raises:
            RuntimeError: shapes do not fit, labels are not int64, or `half_to_float` for logits that are not of half precision.
        """
        name = "SoftmaxCrossEntropyLoss"
        if half_to_float and logits.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError(f"{name}: half_to_float is for float16 and bfloat16 logits, got {logits.dtype}")
        if labels.dtype != torch.int64:
            raise RuntimeError(f"{name}: labels must be int64, got {labels.dtype}")
        if logits.dim() != 2 or labels.shape != logits.shape[:1]:
            raise RuntimeError(f"{name}: logits must be (N, V) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
        return row_loss(
            "cross_entropy", (), logits, labels, None, padding_idx, "none", smoothing, backend=backend, wide=half_to_float
        )
