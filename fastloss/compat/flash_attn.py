"""flash-attention's cross-entropy, following flash_attn 2.8.4: ``flash_attn.losses.cross_entropy.CrossEntropyLoss`` and
``flash_attn.ops.triton.cross_entropy.cross_entropy_loss`` (``from fastloss.compat.flash_attn import CrossEntropyLoss``).

Arguments, defaults, call order and results are flash_attn's: losses are float32 also of half-precision logits, and the z-losses that are
returned are for logging, without a gradient. Different are: tensors may be on any device; `precomputed_lse` is checked and then computed
anew, in the same sweep; a label that no class has raises on the CPU and is NaN on a GPU, where flash_attn gives 0; `inplace_backward`
raises for logits that must not be overwritten; and a `process_group` of several processes is not supported.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..row import row_loss
from ._cross_entropy import reduced, z_losses

__all__ = ["CrossEntropyLoss", "cross_entropy_loss"]


def cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    precomputed_lse: Tensor | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    lse_square_scale: float = 0.0,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    process_group: object = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """flash_attn's ``cross_entropy_loss``: :func:`fastloss.functional.cross_entropy` of each row, and its part from the z-loss.

    Args:
        logits: (N, V).
        labels: (N,) class indices, or `ignore_index` for a row with loss 0.
        precomputed_lse: (N,), no effect. Default: None.
        label_smoothing: in [0, 1]. Default: 0.
        logit_scale: factor on the logits. Default: 1.
        lse_square_scale: factor of the squared log-sum-exp, added to each loss. Default: 0.
        ignore_index: default -100.
        inplace_backward: whether the gradient overwrites the logits. Default: False.
        process_group: of a single process, or None.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Returns:
        Losses and z-losses, (N,) each, float32 (float64 of float64 logits).

    Raises:
        NotImplementedError: the vocabulary is split over several processes.
        ValueError: shapes do not fit.
    """
    if process_group is not None and dist.get_world_size(process_group) > 1:
        raise NotImplementedError("cross_entropy_loss: a vocabulary split over several processes is not supported")
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy_loss: logits must be (N, V) and labels (N,), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if precomputed_lse is not None and precomputed_lse.shape != labels.shape:
        raise ValueError(f"cross_entropy_loss: precomputed_lse must be {tuple(labels.shape)}, got {tuple(precomputed_lse.shape)}")
    losses = row_loss(
        "cross_entropy", (), logits, labels, None, ignore_index, "none", label_smoothing, lse_square_scale, None, logit_scale,
        return_lse=lse_square_scale != 0, inplace=inplace_backward, backend=backend, wide=True,
    )
    if not lse_square_scale:
        return losses, torch.zeros_like(losses)
    losses, lse = losses
    return losses, z_losses(lse.detach(), labels, ignore_index, lse_square_scale)


class CrossEntropyLoss(nn.Module):
    """flash_attn's ``CrossEntropyLoss``: :func:`cross_entropy_loss`, reduced; a mean is over the rows that are not ignored.

    Args:
        ignore_index, label_smoothing, logit_scale, lse_square_scale, inplace_backward, process_group: as for :func:`cross_entropy_loss`.
        reduction: ``"mean"``, ``"none"`` or ``"sum"``. Default: ``"mean"``.
        return_z_loss: also return the reduced z-loss, which has no gradient. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        NotImplementedError: `reduction` is another.
    """

    def __init__(
        self, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0, logit_scale: float = 1.0,
        lse_square_scale: float = 0.0, inplace_backward: bool = False, process_group: object = None, return_z_loss: bool = False, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "none", "sum"):
            raise NotImplementedError(f"CrossEntropyLoss: reduction must be 'mean', 'none' or 'sum', got {reduction!r}")
        self.ignore_index, self.reduction, self.label_smoothing, self.logit_scale = ignore_index, reduction, label_smoothing, logit_scale
        self.lse_square_scale, self.inplace_backward, self.process_group = lse_square_scale, inplace_backward, process_group
        self.return_z_loss, self.backend = return_z_loss, backend

    def forward(self, input: Tensor, target: Tensor, precomputed_lse: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        found = cross_entropy_loss(
            input, target, precomputed_lse, self.label_smoothing, self.logit_scale, self.lse_square_scale, self.ignore_index,
            self.inplace_backward, self.process_group, backend=self.backend,
        )
        loss, z_loss = (reduced(rows, target, self.ignore_index, self.reduction) for rows in found)
        return (loss, z_loss) if self.return_z_loss else loss
