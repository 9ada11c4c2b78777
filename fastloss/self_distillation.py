"""Modules of self-distillation, which keep the centre of the teacher's outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import _checks
from .functional.dino import between_views, dino_loss, ibot_patch_loss

__all__ = ["DINOLoss", "IBOTPatchLoss"]


@torch.no_grad()
def mean_output(name: str, outputs: Tensor | Sequence[Tensor], features: int) -> Tensor:
    """The mean (K) of outputs (..., K), one tensor or several, over the rows of all processes where torch.distributed is initialised."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    for tensor in outputs:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: wanted a Tensor or several, got {type(tensor).__name__}")
        if not tensor.shape or tensor.shape[-1] != features:
            raise ValueError(f"{name}: wanted outputs (..., {features}), got {tuple(tensor.shape)}")
    wide = torch.float64 if outputs[0].dtype == torch.float64 else torch.float32
    total = torch.stack([t.detach().reshape(-1, features).sum(0, dtype=wide) for t in outputs]).sum(0)
    rows = total.new_full((1,), sum(t.shape[:-1].numel() for t in outputs))
    if dist.is_available() and dist.is_initialized():
        both = torch.cat([total, rows])
        dist.all_reduce(both)
        total, rows = both[:-1], both[-1:]
    return total / rows


def move_center(name: str, center: Tensor, outputs: Tensor | Sequence[Tensor], momentum: float) -> None:
    """Move a buffer towards the mean of outputs: ``c <- m c + (1 - m) mean``."""
    mean = mean_output(name, outputs, center.shape[-1])
    # Another memory, since a backward may still need the old numbers; the same tensor, which others may hold.
    center.data = (center.detach().to(mean.dtype) * momentum + mean * (1.0 - momentum)).to(center.dtype)


class _Centred(nn.Module):
    """A loss with the moving average of the teacher's outputs in its buffer `center`."""

    def __init__(
        self, out_dim: int, leading: int, student_temp: float, teacher_temp: float, center_momentum: float, auto_update: bool,
        reduction: str, backend: str | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value in (("out_dim", out_dim), ("student_temp", student_temp), ("teacher_temp", teacher_temp)):
            _checks.positive(name, argument, value)
        if not 0.0 <= center_momentum <= 1.0:
            raise ValueError(f"{name}: center_momentum must be in [0, 1], got {center_momentum}")
        _checks.reduction_code(name, reduction)
        self.student_temp, self.teacher_temp, self.center_momentum = student_temp, teacher_temp, center_momentum
        self.auto_update, self.reduction, self.backend = auto_update, reduction, backend
        self.register_buffer("center", torch.zeros(*(1,) * leading, out_dim))

    def update_center(self, target: Tensor | Sequence[Tensor]) -> None:
        """Move the centre towards the mean of the teacher's outputs (..., K) (of all processes): ``c <- m c + (1 - m) mean``.

        A collective operation where torch.distributed is initialised, so every process must call it.
        """
        move_center(type(self).__name__, self.center, target, self.center_momentum)

    def _updated(self, loss: Tensor, target: Tensor | Sequence[Tensor]) -> Tensor:
        if self.auto_update and self.training:
            self.update_center(target)
        return loss

    def extra_repr(self) -> str:
        return f"{self.center.shape[-1]}, student_temp={self.student_temp}, teacher_temp={self.teacher_temp}"


class DINOLoss(_Centred):
    """DINO (Caron et al. 2021): :func:`fastloss.functional.dino_loss` with a moving centre.

    Args:
        out_dim: :math:`K`.
        student_temp: positive. Default: 0.1.
        teacher_temp: positive; an attribute that a schedule may change. Default: 0.04.
        center_momentum: in [0, 1]. Default: 0.9.
        auto_update: whether every call in training mode ends with ``update_center(target)``. Default: False, call it yourself.
        crops: whether inputs are views: sequences of tensors, or tensors with the views first. Default: False.
        reduction: as for the function. Default: "mean".
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Attributes:
        center: a buffer (1, K), zeros at first.

    Raises:
        ValueError: a temperature or `out_dim` is not positive, `center_momentum` not in [0, 1], or `reduction` unknown.

    Example:
        >>> import torch, fastloss
        >>> criterion = fastloss.nn.DINOLoss(8)
        >>> student, teacher = torch.zeros(4, 8), torch.ones(4, 8)
        >>> criterion(student, teacher), criterion.update_center(teacher)
        (tensor(2.0794), None)
    """

    def __init__(
        self, out_dim: int, student_temp: float = 0.1, teacher_temp: float = 0.04, center_momentum: float = 0.9, *,
        auto_update: bool = False, crops: bool = False, reduction: str = "mean", backend: str | None = None,
    ) -> None:
        super().__init__(out_dim, 1, student_temp, teacher_temp, center_momentum, auto_update, reduction, backend)
        self.crops = crops

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        """The loss of the student's outputs and the teacher's, with the centre from before this call."""
        settings = self.center, self.student_temp, self.teacher_temp
        if self.crops and not (isinstance(input, Tensor) and isinstance(target, Tensor)):
            loss = between_views("DINOLoss", list(input), list(target), *settings, self.reduction, self.backend)
        else:
            loss = dino_loss(input, target, *settings, self.crops, self.reduction, backend=self.backend)
        return self._updated(loss, target)


class IBOTPatchLoss(_Centred):
    """iBOT (Zhou et al. 2022): :func:`fastloss.functional.ibot_patch_loss` with a moving centre.

    Args:
        out_dim: :math:`K`.
        student_temp: positive. Default: 0.1.
        teacher_temp: positive; an attribute that a schedule may change. Default: 0.04.
        center_momentum: in [0, 1]. Default: 0.9.
        auto_update: whether every call in training mode ends with ``update_center(target)``, of all patches. Default: False.
        per_image: as for the function. Default: False.
        reduction: as for the function. Default: "mean".
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Attributes:
        center: a buffer (1, 1, K), zeros at first.

    Raises:
        ValueError: as for :class:`DINOLoss`.

    Example:
        >>> import torch, fastloss
        >>> criterion = fastloss.nn.IBOTPatchLoss(8, auto_update=True)
        >>> criterion(torch.zeros(2, 3, 8), torch.ones(2, 3, 8), torch.tensor([[True, False, True], [False] * 3]))
        tensor(2.0794)
    """

    def __init__(
        self, out_dim: int, student_temp: float = 0.1, teacher_temp: float = 0.04, center_momentum: float = 0.9, *,
        auto_update: bool = False, per_image: bool = False, reduction: str = "mean", backend: str | None = None,
    ) -> None:
        super().__init__(out_dim, 2, student_temp, teacher_temp, center_momentum, auto_update, reduction, backend)
        self.per_image = per_image

    def forward(self, input: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The loss of masked patches of the student's outputs (B, P, K), with the centre from before this call."""
        loss = ibot_patch_loss(
            input, target, mask, self.center, self.student_temp, self.teacher_temp, self.per_image, self.reduction, backend=self.backend
        )
        return self._updated(loss, target)
