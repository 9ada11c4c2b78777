"""MONAI's segmentation losses, following MONAI 1.5.2 (``from fastloss.compat.monai import DiceCELoss``).

Classes, arguments, defaults, attributes, warnings and return shapes are MONAI's. Inputs are (N, C, d1, ...); targets have the same shape,
or are labels (N, 1, d1, ...) with ``to_onehot_y=True``: no one-hot target is built. Activations are fused: probabilities are not stored.
`other_act` is applied first, and its result read as probabilities. A MetaTensor gives a plain Tensor.

What differs:

- Sums are kept in float32 for half precision, where MONAI's overflow (Dice of a 512 x 512 mask in float16 is NaN there).
- :class:`FocalLoss` computes float64 inputs in float64; MONAI rounds them to float32. Its gradient is finite for every gamma.
- :class:`MaskedDiceLoss` leaves the masked pixels out. MONAI 1.5 masks logits (from 1.6 on probabilities), whose sigmoid is then one half,
  and makes masked labels class 0.
- A label that is out of range raises IndexError on CPU tensors (MONAI: RuntimeError), and so does an integer target of a single
  channel that is neither 0 nor 1.
- Inputs without spatial dimensions, (N, C), have one pixel; MONAI reduces over everything there.

Floating targets of :class:`FocalLoss` with a sigmoid may be soft, which takes MONAI's formula in plain torch. Labels, and dense targets of
an integer dtype or bool, run fused: where targets are masks, ``target.bool()`` saves time and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from .. import _checks
from .. import functional as F
from .. import nn as fnn
from ..registry import LOSSES
from ._monai import Classes, Region, class_weight, not_negative, one_of, plain
from ._overlap import one_hot, statistics, volume

__all__ = [
    "Dice", "DiceCELoss", "DiceFocalLoss", "DiceLoss", "FocalLoss", "GeneralizedDiceFocalLoss", "GeneralizedDiceLoss", "HausdorffDTLoss",
    "LogHausdorffDTLoss", "MaskedDiceLoss", "TverskyLoss", "dice_ce", "dice_focal", "generalized_dice", "generalized_dice_focal",
]


class DiceLoss(Region):
    r"""MONAI's ``DiceLoss``: :func:`fastloss.functional.dice_loss`, or :func:`~fastloss.functional.jaccard_loss`, of each sample and class.

    .. math:: \ell = 1 - \frac{2 I + \text{smooth\_nr}}{P + T + \text{smooth\_dr}}, \quad
        I = \sum p t, \; P = \sum p^k, \; T = \sum t^k

    and with `jaccard` a denominator of :math:`2 (P + T - I) + \text{smooth\_dr}`.

    Args:
        include_background: whether channel 0 counts. Default: True.
        to_onehot_y: whether targets are labels (N, 1, d1, ...). Default: False.
        sigmoid, softmax, other_act: how inputs become probabilities; at most one. Default: they are probabilities.
        squared_pred: k = 2 instead of 1. Default: False.
        jaccard: the Jaccard index instead of Dice. Default: False.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. Default: ``"mean"``.
        smooth_nr, smooth_dr: added to the numerator and the denominator. Default: 1e-5.
        batch: sum over the batch before dividing. Default: False.
        weight: a factor for each class that counts, or one for all; has no effect on a single class. Default: None.
        soft_label: :math:`I = (P + T - \sum |p - t|) / 2`, which is smallest at p = t for soft targets too. Default: False.

    Shape:
        loss: ``()``; for ``reduction="none"`` (N, C, 1, ...), with `batch` (C, 1, ...).

    Raises:
        TypeError: `other_act` is not callable.
        ValueError: more than one activation; unknown reduction; weights are negative or do not fit the classes.
        AssertionError: target does not have the shape it should.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False, softmax: bool = False,
        other_act: Callable | None = None, squared_pred: bool = False, jaccard: bool = False, reduction: str = "mean",
        smooth_nr: float = 1e-5, smooth_dr: float = 1e-5, batch: bool = False, weight: Sequence[float] | float | Tensor | None = None,
        soft_label: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch, soft_label
        )
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))

    def _options(self, input: Tensor, options: dict[str, object]) -> dict[str, object]:
        """The options of dice_loss."""
        counted = input.shape[1] - (not options["include_background"])
        return options | {
            "group": "batch" if self.batch else "sample",
            "power": 2 if self.squared_pred else 1,
            "soft_label": self.soft_label and not self.squared_pred,  # of squares, MONAI's intersection is the sum of p t in any case
            "weight": class_weight(type(self).__name__, self.class_weight, counted, input.device),
        }

    def _loss(self, input: Tensor, target: Tensor, mask: Tensor | None = None, labels: bool | None = None) -> Tensor:
        input, target, options = self.prepare(input, target, mask, labels)
        options = self._options(input, options)
        if self.jaccard:
            halves = {"smooth": self.smooth_nr / 2, "smooth_denominator": self.smooth_dr / 2}
            loss = F.jaccard_loss(input, target, **options | halves)
        else:
            loss = F.dice_loss(input, target, **options)
        return loss if self.reduction != "none" else loss.reshape(*loss.shape, *[1] * (input.dim() - 2))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self._loss(input, target)


class MaskedDiceLoss(DiceLoss):
    """MONAI's ``MaskedDiceLoss``: :class:`DiceLoss` of the pixels that a mask has 1 for.

    ``forward(input, target, mask=None)`` takes a binary mask (N, 1, d1, ...) or (1, 1, d1, ...), and warns where it is None. Probabilities
    and targets of the other pixels count as 0.

    Raises:
        ValueError: the mask has another batch size, or several channels; otherwise as :class:`DiceLoss`.
    """

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            _checks.warn("MaskedDiceLoss: no mask was given")
            return self._loss(input, target)
        got, wanted = tuple(mask.shape), (input.shape[0], 1, *input.shape[2:])
        if input.shape[0] != mask.shape[0] and mask.shape[0] != 1:
            raise ValueError(f"MaskedDiceLoss: mask must have a batch size of 1 or {input.shape[0]}, got shape {got}")
        if target.dim() > 1 and mask.shape[1] != 1:
            raise ValueError(f"MaskedDiceLoss: mask must have one channel, got shape {got}")
        if got[1:] != wanted[1:]:
            _checks.warn(f"MaskedDiceLoss: expected mask of shape {wanted} for input of shape {tuple(input.shape)}, got {got}")
        return self._loss(input, target, mask)


class GeneralizedDiceLoss(Region):
    """MONAI's ``GeneralizedDiceLoss``: :func:`fastloss.functional.generalized_dice_loss`.

    Args:
        w_type: ``"square"``, ``"simple"`` or ``"uniform"``: `class_weighting` of the function. Default: ``"square"``.
        include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch, soft_label: as in
            :class:`DiceLoss`.

    Shape:
        loss: ``()``; for ``reduction="none"`` (N, 1, 1, ...), with `batch` (1, 1, ...).

    Raises:
        ValueError: unknown `w_type`; otherwise as :class:`DiceLoss`.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False, softmax: bool = False,
        other_act: Callable | None = None, w_type: str = "square", reduction: str = "mean", smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5, batch: bool = False, soft_label: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch, soft_label
        )
        self.w_type = one_of(type(self).__name__, "w_type", w_type, ("square", "simple", "uniform"))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        input, target, options = self.prepare(input, target)
        loss = F.generalized_dice_loss(input, target, class_weighting=self.w_type, batch=self.batch, **options)
        return loss if self.reduction != "none" else loss.reshape(*loss.shape, *[1] * (input.dim() - 1))


class TverskyLoss(Region):
    """MONAI's ``TverskyLoss``: :func:`fastloss.functional.tversky_loss` of each sample and class.

    Args:
        alpha, beta: prices of false positives and false negatives. Default: 0.5.
        include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch, soft_label: as in
            :class:`DiceLoss`.

    Shape:
        loss: ``()``; for ``reduction="none"`` (N, C), with `batch` (C,).

    Raises:
        As :class:`DiceLoss`.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False, softmax: bool = False,
        other_act: Callable | None = None, alpha: float = 0.5, beta: float = 0.5, reduction: str = "mean", smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5, batch: bool = False, soft_label: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, smooth_nr, smooth_dr, batch, soft_label
        )
        self.alpha = alpha
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        input, target, options = self.prepare(input, target)
        return F.tversky_loss(input, target, self.alpha, self.beta, group="batch" if self.batch else "sample", **options)


def _soft_sigmoid_focal(input: Tensor, target: Tensor, gamma: float, alpha: float | None) -> Tensor:
    """Each element's focal loss as MONAI continues it to targets between 0 and 1: 1 - p_t becomes sigmoid(-x (2 t - 1))."""
    miss = torch.exp(gamma * torch.nn.functional.logsigmoid(-input * (2 * target - 1)))
    loss = miss * F.binary_cross_entropy_with_logits(input, target, reduction="none")
    return loss if alpha is None else loss * (alpha * target + (1 - alpha) * (1 - target))


class FocalLoss(Classes):
    r"""MONAI's ``FocalLoss`` of logits: of every channel by its sigmoid, or with `use_softmax` over the channels.

    .. math:: \ell = -\alpha_t (1 - p_t)^\gamma \log p_t

    With a softmax :math:`\alpha_t` is :math:`1 - \alpha` for channel 0 and :math:`\alpha` for the others, and channels other than the
    target's have loss 0 and count in the mean. The result is float32 for half precision too.

    Args:
        include_background: whether channel 0 counts; a softmax is taken over the channels that do. Default: True.
        to_onehot_y: whether targets are labels (N, 1, d1, ...). Default: False.
        gamma: focusing power, at least 0. Default: 2.
        alpha: balance in [0, 1]; with a softmax not without the background. Default: None.
        weight: a factor for each class that counts, or one for all; has no effect on a single class. Default: None.
        reduction: ``"mean"`` over all elements; ``"sum"`` over samples and classes of the mean over pixels; or ``"none"``. Default: mean.
        use_softmax: softmax over the channels instead of a sigmoid. Default: False.

    Shape:
        loss: ``()``; for ``reduction="none"`` (N, C, d1, ...) of the classes that count.

    Raises:
        ValueError: target does not have the shape it should; weights are negative or do not fit the classes; gamma is negative, or alpha
            not in [0, 1].
    """

    mismatch = ValueError

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, gamma: float = 2.0, alpha: float | None = None,
        weight: Sequence[float] | float | Tensor | None = None, reduction: str = "mean", use_softmax: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, reduction)
        self.gamma = gamma
        self.alpha = alpha
        self.weight = weight
        self.use_softmax = use_softmax
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self._loss(plain(input), plain(target))

    def _loss(self, input: Tensor, target: Tensor, labels: bool | None = None) -> Tensor:
        name = type(self).__name__
        target, labels, background = self.targets(input, target, labels)
        alpha = self.alpha
        _checks.positive(name, "gamma", self.gamma, zero=True)
        if alpha is not None and not 0 <= alpha <= 1:
            raise ValueError(f"{name}: alpha must be in [0, 1] or None, got {alpha}")
        if self.use_softmax and not self.include_background and alpha is not None:
            _checks.warn(f"{name}: alpha has no effect with use_softmax=True and include_background=False")
            alpha = None
        if self.reduction == "none" or not (labels or self.use_softmax) and target.is_floating_point():
            losses = self._elements(input, target, labels, background, alpha)
            pixels = losses[0, 0].numel() if losses.numel() else 1
            return losses if self.reduction == "none" else losses.mean() if self.reduction == "mean" else losses.sum() / pixels
        functor, params = "sigmoid_focal", (-1.0 if alpha is None else float(alpha), float(self.gamma))
        ignored, first = None, 0 if background else 1
        if self.use_softmax:
            functor, params = "softmax_focal", (float(self.gamma),)
            if not background:  # the softmax is over the other channels only, and pixels of the background have no class in it
                input, target, first = input[:, 1:], target - 1 if labels else target[:, 1:], 0
                ignored = -1 if labels else None
        sums, dtype = statistics(name, functor, params, input, target, ignored)
        losses = self._weighted(sums["loss"][:, first:], alpha if self.use_softmax else None)  # (N, C)
        pixels = volume(input)
        return losses.sum() / (losses.numel() * pixels if self.reduction == "mean" else pixels)

    def _weighted(self, losses: Tensor, alpha: float | None) -> Tensor:
        """Losses (N, C, ...) times the factors of their classes."""
        weight = class_weight(type(self).__name__, self.class_weight, losses.shape[1], losses.device)
        shape = (-1, *[1] * (losses.dim() - 2))
        losses = losses if weight is None else losses * weight.to(losses.dtype).view(shape)
        if alpha is not None:
            factors = torch.where(torch.arange(losses.shape[1], device=losses.device) == 0, 1 - alpha, alpha)
            losses = losses * factors.to(losses.dtype).view(shape)
        return losses

    def _elements(self, input: Tensor, target: Tensor, labels: bool, background: bool, alpha: float | None) -> Tensor:
        """(N, C, d1, ...) losses."""
        input = input if input.dtype == torch.float64 else input.float()
        target = one_hot(target, input) if labels else target
        if not background:
            input, target = input[:, 1:], target[:, 1:]
        if self.use_softmax:
            losses = target * LOSSES["softmax_focal"].point(torch.log_softmax(input, 1), self.gamma)
            return self._weighted(losses, alpha)
        if labels or not target.is_floating_point():
            return self._weighted(F.sigmoid_focal_loss(input, target, -1 if alpha is None else alpha, self.gamma), None)
        return self._weighted(_soft_sigmoid_focal(input, target.to(input.dtype), self.gamma, alpha), None)


def _check_channels(name: str, input: Tensor, target: Tensor) -> None:
    if input.dim() != target.dim():
        raise ValueError(
            f"{name}: input and target must have the same number of dimensions (labels come as (N, 1, d1, ...)), "
            f"got shapes {tuple(input.shape)} and {tuple(target.shape)}"
        )
    if target.shape[1] not in (1, input.shape[1]):
        raise ValueError(
            f"{name}: target must have 1 or {input.shape[1]} channels for input of shape {tuple(input.shape)}, got {tuple(target.shape)}"
        )


class DiceCELoss(_Loss):
    r"""MONAI's ``DiceCELoss``: :math:`\lambda_{dice} \, \text{Dice} + \lambda_{ce} \, \text{CE}`.

    Dice is :class:`DiceLoss`. CE is :func:`~fastloss.functional.cross_entropy` of several channels, whatever activation Dice takes, and
    :func:`~fastloss.functional.binary_cross_entropy_with_logits` of one channel. A mean with ``softmax=True`` (``sigmoid=True`` for one
    channel) reads the logits once for both; other options run two losses.

    Args:
        weight: (C,), a factor for each class in both losses; of one channel, `pos_weight` of the cross-entropy. Default: None.
        reduction: ``"mean"`` or ``"sum"``. Default: ``"mean"``.
        lambda_dice, lambda_ce: factors of the two, at least 0. Default: 1.
        label_smoothing: of the cross-entropy of several channels, in [0, 1]. Default: 0.
        include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, smooth_nr, smooth_dr, batch: of
            :class:`DiceLoss`.

    Raises:
        ValueError: factors are negative; unknown reduction; dimensions or channels do not fit. Otherwise as :class:`DiceLoss`.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False, softmax: bool = False,
        other_act: Callable | None = None, squared_pred: bool = False, jaccard: bool = False, reduction: str = "mean",
        smooth_nr: float = 1e-5, smooth_dr: float = 1e-5, batch: bool = False, weight: Tensor | None = None, lambda_dice: float = 1.0,
        lambda_ce: float = 1.0, label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        reduction = one_of("DiceCELoss", "reduction", reduction, ("mean", "sum"))
        not_negative("DiceCELoss", lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        self.dice = DiceLoss(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax, other_act=other_act,
            squared_pred=squared_pred, jaccard=jaccard, reduction=reduction, smooth_nr=smooth_nr, smooth_dr=smooth_dr, batch=batch,
            weight=weight if weight is None or include_background else weight[1:],
        )
        self.cross_entropy = fnn.CrossEntropyLoss(weight=weight, reduction=reduction, label_smoothing=label_smoothing)
        self.binary_cross_entropy = fnn.BCEWithLogitsLoss(pos_weight=weight, reduction=reduction)
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce

    def ce(self, input: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy over several channels, of labels (N, 1, ...) or of numbers of `input`'s shape."""
        if target.shape[1] == 1 and input.shape[1] != 1:
            return self.cross_entropy(input, target[:, 0].long())
        return self.cross_entropy(input, target if target.is_floating_point() else target.to(input.dtype))

    def bce(self, input: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of one channel."""
        return self.binary_cross_entropy(input, target if target.is_floating_point() else target.to(input.dtype))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = plain(input), plain(target)
        _check_channels("DiceCELoss", input, target)
        dice, single = self.dice, input.shape[1] == 1
        weight = self.binary_cross_entropy.pos_weight if single else self.cross_entropy.weight
        fused = dice.sigmoid and weight is None if single else dice.softmax and self.cross_entropy.label_smoothing == 0
        if fused and dice.reduction == "mean" and not dice.jaccard:
            input, target, options = dice.prepare(input, target)
            options = dice._options(input, options) | {"weight": weight}
            return F.dice_ce_loss(input, target, self.lambda_dice, self.lambda_ce, **options)
        region = dice(input, target)  # first, for its check of shapes
        return self.lambda_dice * region + self.lambda_ce * (self.bce if single else self.ce)(input, target)


class DiceFocalLoss(_Loss):
    r"""MONAI's ``DiceFocalLoss``: :math:`\lambda_{dice} \, \text{Dice} + \lambda_{focal} \, \text{Focal}`.

    Dice is :class:`DiceLoss`, Focal the sigmoid's :class:`FocalLoss`, whatever activation Dice takes. A mean with ``sigmoid=True`` over all
    channels of labels, or of an integer or bool target, reads float32 logits once for both; other options run two losses.

    Args:
        gamma, alpha: of :class:`FocalLoss`. Default: 2 and None.
        weight: a factor for each class that counts in both losses, or one for all. Default: None.
        lambda_dice, lambda_focal: factors of the two, at least 0. Default: 1.
        include_background, to_onehot_y, reduction: of both.
        sigmoid, softmax, other_act, squared_pred, jaccard, smooth_nr, smooth_dr, batch: of :class:`DiceLoss`.

    Raises:
        ValueError: factors are negative; dimensions or channels do not fit. Otherwise as :class:`DiceLoss` and :class:`FocalLoss`.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False, softmax: bool = False,
        other_act: Callable | None = None, squared_pred: bool = False, jaccard: bool = False, reduction: str = "mean",
        smooth_nr: float = 1e-5, smooth_dr: float = 1e-5, batch: bool = False, gamma: float = 2.0,
        weight: Sequence[float] | float | Tensor | None = None, lambda_dice: float = 1.0, lambda_focal: float = 1.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        self.dice = DiceLoss(
            include_background=include_background, sigmoid=sigmoid, softmax=softmax, other_act=other_act, squared_pred=squared_pred,
            jaccard=jaccard, reduction=reduction, smooth_nr=smooth_nr, smooth_dr=smooth_dr, batch=batch, weight=weight,
        )
        self.focal = FocalLoss(include_background=include_background, gamma=gamma, weight=weight, alpha=alpha, reduction=reduction)
        not_negative("DiceFocalLoss", lambda_dice=lambda_dice, lambda_focal=lambda_focal)
        self.lambda_dice = lambda_dice
        self.lambda_focal = lambda_focal
        self.to_onehot_y = to_onehot_y

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = plain(input), plain(target)
        _check_channels("DiceFocalLoss", input, target)
        dice, focal = self.dice, self.focal
        several = input.shape[1] > 1
        labels = self.to_onehot_y and several
        if self.to_onehot_y and not several:
            dice.ignored("to_onehot_y=True")
        hard = labels or not target.is_floating_point()
        everything = dice.include_background or not several
        full = input.dtype.itemsize > 2  # the focal loss of half precision comes in float32
        if dice.sigmoid and hard and everything and full and dice.reduction == "mean" and not dice.jaccard:
            input, target, options = dice.prepare(input, target, None, labels)
            return F.dice_focal_loss(
                input, target, focal.gamma, self.lambda_dice, self.lambda_focal, alpha=focal.alpha, **dice._options(input, options)
            )
        return self.lambda_dice * dice._loss(input, target, None, labels) + self.lambda_focal * focal._loss(input, target, labels)


class GeneralizedDiceFocalLoss(_Loss):
    r"""MONAI's ``GeneralizedDiceFocalLoss``: :math:`\lambda_{gdl} \, \text{GeneralizedDice} + \lambda_{focal} \, \text{Focal}`.

    Args:
        w_type, sigmoid, softmax, other_act, smooth_nr, smooth_dr, batch: of :class:`GeneralizedDiceLoss`.
        gamma, weight: of :class:`FocalLoss`, which takes the sigmoid.
        include_background, to_onehot_y, reduction: of both.
        lambda_gdl, lambda_focal: factors of the two, at least 0. Default: 1.

    Raises:
        ValueError: factors are negative; dimensions or channels do not fit. Otherwise as the two losses.
    """

    def __init__(
        self, include_background: bool = True, to_onehot_y: bool = False, sigmoid: bool = False, softmax: bool = False,
        other_act: Callable | None = None, w_type: str = "square", reduction: str = "mean", smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5, batch: bool = False, gamma: float = 2.0, weight: Sequence[float] | float | Tensor | None = None,
        lambda_gdl: float = 1.0, lambda_focal: float = 1.0,
    ) -> None:
        super().__init__()
        self.generalized_dice = GeneralizedDiceLoss(
            include_background=include_background, to_onehot_y=to_onehot_y, sigmoid=sigmoid, softmax=softmax, other_act=other_act,
            w_type=w_type, reduction=reduction, smooth_nr=smooth_nr, smooth_dr=smooth_dr, batch=batch,
        )
        self.focal = FocalLoss(
            include_background=include_background, to_onehot_y=to_onehot_y, gamma=gamma, weight=weight, reduction=reduction
        )
        not_negative("GeneralizedDiceFocalLoss", lambda_gdl=lambda_gdl, lambda_focal=lambda_focal)
        self.lambda_gdl = lambda_gdl
        self.lambda_focal = lambda_focal

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = plain(input), plain(target)
        _check_channels("GeneralizedDiceFocalLoss", input, target)
        return self.lambda_gdl * self.generalized_dice(input, target) + self.lambda_focal * self.focal(input, target)


class HausdorffDTLoss(Classes):
    """MONAI's ``HausdorffDTLoss``: :func:`fastloss.functional.hausdorff_dt_loss`.

    Args:
        alpha: the power of distances. Default: 2.
        include_background: whether channel 0 counts. Default: False.
        to_onehot_y: whether targets are labels (N, 1, d1, ...). Default: False.
        sigmoid, softmax: how inputs become probabilities; at most one. Default: they are probabilities.
        other_act: applied after these. Default: None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. Default: ``"mean"``.
        batch: whether the mean over pixels is over the samples too. Default: False.

    Shape:
        loss: ``()``; for ``reduction="none"`` (N, C, 1, ...), with `batch` (1, C, 1, ...), of the classes that count.

    Raises:
        TypeError: `other_act` is not callable.
        ValueError: inputs have no two or three spatial dimensions; sigmoid and softmax; unknown reduction.
        AssertionError: target does not have the shape it should.
    """

    def __init__(
        self, alpha: float = 2.0, include_background: bool = False, to_onehot_y: bool = False, sigmoid: bool = False, softmax: bool = False,
        other_act: Callable | None = None, reduction: str = "mean", batch: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, reduction)
        name = type(self).__name__
        if other_act is not None and not callable(other_act):
            raise TypeError(f"{name}: other_act must be None or callable, got {type(other_act).__name__}")
        if sigmoid and softmax:
            raise ValueError(f"{name}: at most one of sigmoid=True and softmax=True may be given")
        self.alpha = alpha
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.batch = batch

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = plain(input), plain(target)
        if input.dim() not in (4, 5):
            raise ValueError(f"{type(self).__name__}: expected input (N, C, H, W) or (N, C, H, W, D), got shape {tuple(input.shape)}")
        sigmoid, softmax = self.sigmoid, self.softmax and input.shape[1] > 1
        if self.softmax and not softmax:
            self.ignored("softmax=True")
        if self.other_act is not None:
            input = torch.sigmoid(input) if sigmoid else torch.softmax(input, 1) if softmax else input
            input, sigmoid, softmax = plain(self.other_act(input)), False, False
        target, labels, background = self.targets(input, target)
        return F.hausdorff_dt_loss(
            input, target.unsqueeze(1) if labels else target, self.alpha, background, labels, sigmoid, softmax, self.reduction, self.batch
        )


class LogHausdorffDTLoss(HausdorffDTLoss):
    """MONAI's ``LogHausdorffDTLoss``: the logarithm of 1 plus :class:`HausdorffDTLoss`, element by element."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return torch.log1p(super().forward(input, target))


Dice = DiceLoss
dice_ce = DiceCELoss
dice_focal = DiceFocalLoss
generalized_dice = GeneralizedDiceLoss
generalized_dice_focal = GeneralizedDiceFocalLoss
