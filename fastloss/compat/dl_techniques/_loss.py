"""What the losses share: the call, the reductions and the settings of Keras."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

REDUCTIONS = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None)


class Loss(nn.Module):
    """A loss that is called with the truth first, ``loss(y_true, y_pred)``, as Keras's are.

    Args:
        reduction: of what :meth:`call` gives: ``"sum_over_batch_size"`` or ``"mean"``, ``"mean_with_sample_weight"`` (divided by the sum
            of the weights), ``"sum"``, ``"none"`` or None. A loss that is a scalar stays one. Default: ``"sum_over_batch_size"``.
        name: a name to show. Default: that of the class.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        ValueError: unknown reduction.
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = None, *, backend: str | None = None
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"{type(self).__name__}: {reduction!r} is not a valid value for reduction; wanted one of {REDUCTIONS}")
        self.reduction, self.name, self.backend = reduction, name or type(self).__name__, backend

    def call(self, y_true: Tensor | Mapping[str, Tensor] | None, y_pred: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The loss before the reduction: a scalar, or a number for each sample."""
        raise NotImplementedError(f"{type(self).__name__} must define call(y_true, y_pred)")

    def forward(
        self, y_true: Tensor | Mapping[str, Tensor] | None, y_pred: Tensor | Mapping[str, Tensor], sample_weight: Tensor | None = None
    ) -> Tensor:
        """The reduced loss; `sample_weight` multiplies what :meth:`call` gives, sample by sample."""
        losses, weight = self.call(y_true, y_pred), None
        if sample_weight is not None:
            weight = sample_weight.to(losses.dtype)
            weight = weight.reshape(weight.shape + (1,) * (losses.dim() - weight.dim()))
            losses = losses * weight
        if self.reduction in ("none", None):
            return losses
        if self.reduction == "sum":
            return losses.sum()
        if self.reduction == "mean_with_sample_weight" and weight is not None:
            total = weight.expand_as(losses).sum()
            return torch.where(total == 0, 0.0, losses.sum() / torch.where(total == 0, 1.0, total))
        return losses.mean() if losses.dim() else losses

    def get_config(self) -> dict[str, object]:
        """The arguments that make this loss again."""
        return {argument: getattr(self, argument) for argument in inspect.signature(type(self)).parameters if hasattr(self, argument)}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Loss:
        """The loss of the arguments that :meth:`get_config` gave."""
        return cls(**config)

    def extra_repr(self) -> str:
        """The arguments that are not the default."""
        parameters = inspect.signature(type(self)).parameters
        defaults = {n: p.default for n, p in parameters.items()} | {"name": parameters["name"].default or type(self).__name__}
        plain = {n: v for n, v in self.get_config().items() if not isinstance(v, (nn.Module, Tensor))}
        return ", ".join(f"{n}={v!r}" for n, v in plain.items() if v != defaults[n])


def numbers(y_true: Tensor, like: Tensor) -> Tensor:
    """The truth as numbers of the dtype of the predictions, where it is integers or bools."""
    return y_true if y_true.is_floating_point() else y_true.to(like.dtype)


def fraction(name: str, argument: str, value: float) -> None:
    """Raise unless a number is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: {argument} must be in [0, 1], got {value}")


def entries(name: str, y_pred: Mapping[str, Tensor], *wanted: str) -> list[Tensor]:
    """The tensors of a dictionary of outputs."""
    missing = [key for key in wanted if not isinstance(y_pred, Mapping) or key not in y_pred]
    if missing:
        got = sorted(y_pred) if isinstance(y_pred, Mapping) else type(y_pred).__name__
        raise ValueError(f"{name}: y_pred must be a dictionary with {', '.join(wanted)}, got {got}")
    return [y_pred[key] for key in wanted]
