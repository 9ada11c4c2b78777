"""Losses of segmentations into classes: of one-hot targets and probabilities, channels last."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ... import functional as F
from ._loss import Loss, numbers

__all__ = ["SegmentationLossConfig", "SegmentationLosses", "SegmentationWrapperLoss", "create_segmentation_loss_function"]


@dataclasses.dataclass
class SegmentationLossConfig:
    """The settings of :class:`SegmentationLosses`.

    Args:
        num_classes: at least 1.
        smooth_factor: added to numerators and denominators, positive. Default: 1e-6.
        focal_gamma: at least 0. Default: 2.
        focal_alpha: factor of all classes, in [0, 1]. Default: 0.25.
        tversky_alpha, tversky_beta: prices of false positives and negatives, at least 0. Default: 0.3 and 0.7.
        focal_tversky_gamma: the power. Default: 1.3.
        combo_alpha, combo_beta: weights of Dice and cross-entropy, at least 0. Default: 0.5.
        boundary_theta: the slope from which an edge counts fully. Default: 1.5.
    """

    num_classes: int
    smooth_factor: float = 1e-6
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7
    focal_tversky_gamma: float = 1.3
    combo_alpha: float = 0.5
    combo_beta: float = 0.5
    boundary_theta: float = 1.5

    def get_config(self) -> dict[str, object]:
        """The settings as a dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> SegmentationLossConfig:
        """The settings of a dictionary."""
        return cls(**config)


def _valid(config: SegmentationLossConfig) -> None:
    if config.num_classes < 1:
        raise ValueError(f"SegmentationLosses: num_classes must be at least 1, got {config.num_classes}")
    for name in ("smooth_factor", "boundary_theta", "focal_tversky_gamma"):
        if not getattr(config, name) > 0:
            raise ValueError(f"SegmentationLosses: {name} must be positive, got {getattr(config, name)}")
    for name in ("focal_gamma", "tversky_alpha", "tversky_beta", "combo_alpha", "combo_beta"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"SegmentationLosses: {name} must be at least 0, got {getattr(config, name)}")
    if not 0 <= config.focal_alpha <= 1:
        raise ValueError(f"SegmentationLosses: focal_alpha must be in [0, 1], got {config.focal_alpha}")


class SegmentationLosses:
    """Losses of one-hot targets and probabilities (B, H, W, C), each a scalar.

    Two of the original's losses do not have their minimum at the truth. :meth:`hausdorff_distance_loss` is therefore
    :func:`fastloss.functional.hausdorff_dt_loss`, and the original's, which is 1 for a perfect prediction and 0 for an empty one, only
    with `source_compat`. :meth:`boundary_loss` is the original's, for which a perfect prediction is not the best; its variant
    ``"kervadec"`` is the boundary loss of the literature.

    Args:
        config: the settings.
        channels_first: targets and predictions are (B, C, H, W). Default: False.
        source_compat: the original's formula where it is wrong. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self, config: SegmentationLossConfig, *, channels_first: bool = False, source_compat: bool = False, backend: str | None = None
    ) -> None:
        _valid(config)
        self.config, self.channels_first, self.source_compat, self.backend = config, channels_first, source_compat, backend

    def _pair(self, y_true: Tensor, y_pred: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Truth as numbers and predictions, channels last or else after the batch."""
        if y_true.shape != y_pred.shape:
            raise ValueError(f"y_true and y_pred must have one shape, got {tuple(y_true.shape)} and {tuple(y_pred.shape)}")
        if y_pred.dim() < 3:
            raise ValueError(f"y_pred must be (B, H, W, C), got {tuple(y_pred.shape)}")
        channel = 1 if self.channels_first else -1
        return tuple(x.movedim(channel, -1 if last else 1) for x in (numbers(y_true, y_pred), y_pred))

    def _regions(self) -> dict[str, object]:
        channel = 1 if self.channels_first else -1
        smooth = self.config.smooth_factor
        return {"activation": "none", "smooth": smooth, "eps": 0.0, "channel_dim": channel, "backend": self.backend}

    def _focal(self, y_true: Tensor, y_pred: Tensor, gamma: float, alpha: float) -> Tensor:
        """(B, H, W)"""
        truth, p = self._pair(y_true, y_pred, last=True)
        return F.categorical_focal_loss(p, truth, gamma, alpha, reduction="none", backend=self.backend)

    def cross_entropy_loss(self, y_true: Tensor, y_pred: Tensor, weights: Tensor | None = None) -> Tensor:
        """The mean over the pixels of ``-w_y log p_y``; `weights` (C) do not change what the mean divides by."""
        values = self._focal(y_true, y_pred, 0.0, 1.0)
        if weights is not None:
            truth = self._pair(y_true, y_pred, last=True)[0]
            if weights.shape != truth.shape[-1:]:
                raise ValueError(f"weights must have one number for each of {truth.shape[-1]} classes, got {tuple(weights.shape)}")
            values = values * (truth * weights).sum(-1)
        return values.mean()

    def dice_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """:func:`fastloss.functional.dice_loss`, the mean over samples and classes."""
        self._pair(y_true, y_pred, last=True)
        return F.dice_loss(y_pred, numbers(y_true, y_pred), **self._regions())

    def focal_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """:func:`fastloss.functional.categorical_focal_loss`, the mean over the pixels."""
        return self._focal(y_true, y_pred, self.config.focal_gamma, self.config.focal_alpha).mean()

    def tversky_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """:func:`fastloss.functional.tversky_loss`, the mean over samples and classes."""
        self._pair(y_true, y_pred, last=True)
        alpha, beta = self.config.tversky_alpha, self.config.tversky_beta
        return F.tversky_loss(y_pred, numbers(y_true, y_pred), alpha, beta, **self._regions())

    def focal_tversky_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """:func:`fastloss.functional.focal_tversky_loss`, the mean over samples and classes."""
        self._pair(y_true, y_pred, last=True)
        alpha, beta, gamma = self.config.tversky_alpha, self.config.tversky_beta, self.config.focal_tversky_gamma
        return F.focal_tversky_loss(y_pred, numbers(y_true, y_pred), alpha, beta, gamma, **self._regions())

    def lovasz_softmax_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """:func:`fastloss.functional.lovasz_softmax_loss` of all classes, absent ones too, over the whole batch; targets are one-hot."""
        truth, p = self._pair(y_true, y_pred, last=False)
        labels, classes = (truth.argmax(1), "all") if p.shape[1] > 1 else ((truth[:, 0] > 0.5).long(), [1])
        return F.lovasz_softmax_loss(p, labels, classes, from_logits=False, backend=self.backend)

    def combo_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """``combo_alpha`` Dice + ``combo_beta`` cross-entropy."""
        dice, cross_entropy = self.dice_loss(y_true, y_pred), self.cross_entropy_loss(y_true, y_pred)
        return self.config.combo_alpha * dice + self.config.combo_beta * cross_entropy

    def boundary_loss(self, y_true: Tensor, y_pred: Tensor, variant: str = "source") -> Tensor:
        """The mean of ``M (1 - p)^2`` over all classes, M the slope of the target, up to `boundary_theta`, as a share of that.

        It asks for every class near an edge, so that the truth does not have the least loss. ``variant="kervadec"`` is
        :func:`fastloss.functional.boundary_loss`.
        """
        if variant not in ("source", "kervadec"):
            raise ValueError(f"boundary_loss: variant must be 'source' or 'kervadec', got {variant!r}")
        truth, p = self._pair(y_true, y_pred, last=False)
        if variant == "kervadec":
            return F.boundary_loss(p, truth, backend=self.backend)
        padded = torch.nn.functional.pad(truth, (1, 1, 1, 1))
        across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
        down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
        theta = self.config.boundary_theta
        edge = (across.square() + down.square() + self.config.smooth_factor).sqrt().clamp_max(theta) / theta
        return (edge * (1 - p).square()).mean()

    def hausdorff_distance_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """:func:`fastloss.functional.hausdorff_dt_loss` of all classes, or the original's largest overlap with widened regions."""
        truth, p = self._pair(y_true, y_pred, last=False)
        if not self.source_compat:
            return F.hausdorff_dt_loss(p, truth, include_background=True, backend=self.backend)
        both = torch.maximum((_widened(truth) * p).amax((2, 3)), (_widened(p) * truth).amax((2, 3)))
        return both.mean()


def _widened(maps: Tensor) -> Tensor:
    """The largest of each pixel's four neighbours and itself, three times."""
    for _ in range(3):
        padded = torch.nn.functional.pad(maps, (1, 1, 1, 1), value=-torch.inf)
        rows = torch.maximum(padded[..., 2:, 1:-1], padded[..., :-2, 1:-1])
        columns = torch.maximum(padded[..., 1:-1, 2:], padded[..., 1:-1, :-2])
        maps = torch.maximum(maps, torch.maximum(rows, columns))
    return maps


_METHODS = {
    "cross_entropy": "cross_entropy_loss", "dice": "dice_loss", "focal": "focal_loss", "tversky": "tversky_loss",
    "focal_tversky": "focal_tversky_loss", "lovasz": "lovasz_softmax_loss", "combo": "combo_loss", "boundary": "boundary_loss",
    "hausdorff": "hausdorff_distance_loss",
}


class SegmentationWrapperLoss(Loss):
    """One of the losses of :class:`SegmentationLosses` by its name.

    Args:
        loss_name: ``"cross_entropy"``, ``"dice"``, ``"focal"``, ``"tversky"``, ``"focal_tversky"``, ``"lovasz"``, ``"combo"``,
            ``"boundary"`` or ``"hausdorff"``.
        config: the settings. Default: those of one class.
        reduction, name, backend: as for :class:`Loss`.
        channels_first, source_compat: as for :class:`SegmentationLosses`.

    Raises:
        ValueError: unknown `loss_name`; a setting is out of its range.
    """

    def __init__(
        self, loss_name: str, config: SegmentationLossConfig | None = None, reduction: str | None = "sum_over_batch_size",
        name: str | None = None, *, channels_first: bool = False, source_compat: bool = False, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        if loss_name not in _METHODS:
            raise ValueError(f"Unknown loss function {loss_name!r}; wanted one of {', '.join(_METHODS)}")
        self.loss_name, self.config = loss_name, SegmentationLossConfig(1) if config is None else config
        self.channels_first, self.source_compat = channels_first, source_compat
        self.losses = SegmentationLosses(self.config, channels_first=channels_first, source_compat=source_compat, backend=backend)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar."""
        return getattr(self.losses, _METHODS[self.loss_name])(y_true, y_pred)


def create_segmentation_loss_function(
    loss_name: str, config: SegmentationLossConfig | None = None, *, channels_first: bool = False, source_compat: bool = False,
    backend: str | None = None,
) -> SegmentationWrapperLoss:
    """A :class:`SegmentationWrapperLoss`, whose arguments these are."""
    return SegmentationWrapperLoss(
        loss_name, config, channels_first=channels_first, source_compat=source_compat, backend=backend
    )
