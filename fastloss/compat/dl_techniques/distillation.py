"""Self-distillation: the centred teacher's distribution against the student's."""

from __future__ import annotations

from torch import Tensor, nn

from ... import _checks
from ... import nn as modules
from ._loss import Loss

__all__ = ["DINOLoss", "iBOTPatchLoss"]


class DINOLoss(Loss):
    """:class:`fastloss.nn.DINOLoss` of logits (..., K), the teacher's first; ``update_center(teacher)`` is to be called after it.

    Args:
        out_dim: K.
        student_temp, teacher_temp: positive. Default: 0.1 and 0.04.
        center_momentum: in [0, 1]. Default: 0.9.
        name, reduction, backend: as for :class:`Loss`.
        auto_update: let each call in training mode update the centre, with the loss's own from before. Default: False.

    Attributes:
        center: (1, K), the moving average of the teacher's outputs.

    Raises:
        ValueError: a temperature or `out_dim` is not positive, or `center_momentum` not in [0, 1].
    """

    def __init__(
        self, out_dim: int, student_temp: float = 0.1, teacher_temp: float = 0.04, center_momentum: float = 0.9,
        name: str | None = "dino_loss", reduction: str | None = "sum_over_batch_size", *, auto_update: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.out_dim, self.student_temp, self.center_momentum, self.auto_update = out_dim, student_temp, center_momentum, auto_update
        self.loss = self._made(out_dim, student_temp, teacher_temp, center_momentum, auto_update=auto_update, backend=backend)

    def _made(self, *args, **options) -> nn.Module:
        return modules.DINOLoss(*args, **options)

    @property
    def center(self) -> Tensor:
        """The moving average of the teacher's outputs."""
        return self.loss.center

    @property
    def teacher_temp(self) -> float:
        """The teacher's temperature, which a schedule may set."""
        return self.loss.teacher_temp

    @teacher_temp.setter
    def teacher_temp(self, value: float) -> None:
        _checks.positive(type(self).__name__, "teacher_temp", value)
        self.loss.teacher_temp = value

    def update_center(self, teacher_logits: Tensor) -> None:
        """Move the centre towards the mean of the teacher's outputs, of all processes: ``c <- m c + (1 - m) mean``."""
        self.loss.update_center(teacher_logits)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of the teacher's logits and the student's, of one shape (..., K)."""
        return self.loss(y_pred, y_true)


class iBOTPatchLoss(DINOLoss):
    """:class:`fastloss.nn.IBOTPatchLoss`: ``loss(teacher, student, mask)`` of patches, the mean over those that are masked.

    Args:
        out_dim: K.
        student_temp, teacher_temp, center_momentum, name, reduction, auto_update, backend: as for :class:`DINOLoss`.

    Attributes:
        center: (1, 1, K), the moving average of the teacher's outputs of all patches, masked or not.
    """

    def __init__(
        self, out_dim: int, student_temp: float = 0.1, teacher_temp: float = 0.04, center_momentum: float = 0.9,
        name: str | None = "ibot_loss", reduction: str | None = "sum_over_batch_size", *, auto_update: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            out_dim, student_temp, teacher_temp, center_momentum, name, reduction, auto_update=auto_update, backend=backend
        )

    def _made(self, *args, **options) -> nn.Module:
        return modules.IBOTPatchLoss(*args, **options)

    def call(self, y_true: Tensor, y_pred: Tensor, mask: Tensor) -> Tensor:
        """A scalar, of the teacher's logits and the student's (B, P, K), and which patches are masked (B, P); 0 if none is."""
        return self.loss(y_pred, y_true, mask)

    def forward(self, y_true: Tensor, y_pred: Tensor, mask: Tensor) -> Tensor:
        """The loss, which is a scalar whatever the reduction."""
        return self.call(y_true, y_pred, mask)
