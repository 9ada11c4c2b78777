"""Losses of object detectors: distances as distributions, boxes and classes of the anchors that learn an object, and several tasks at
once. On the `row`, `box`, `elementwise` and `overlap` engines, and the assignment of :mod:`fastloss.assign`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..assign import assign
from ..elementwise import elementwise_loss
from ..engine import accumulate_dtype, fast_apply, formula_backward, overridden, without_autocast
from ..overlap import STATISTICS
from ..plain import checked, reduced, same_shape, widened
from ..regions import DICE, Sums, ratio
from ..registry import register
from ..row import _BACKWARD_OP, _FORWARD, PLAIN_ROWS
from .binary import sigmoid_focal_loss
from .boxes import complete_box_iou_loss

__all__ = [
    "anchor_points", "classification_focal_loss", "decode_boxes", "dfl_loss", "dice_focal_segmentation_loss", "yolov12_detection_loss",
    "yolov12_multitask_loss",
]

STRIDES = (8, 16, 32)
TASKS = {3: "detection", 4: "segmentation", 2: "classification"}  # by the dimensions of what a head predicts
ASSIGNERS = ("source", "tood")


# Distribution focal loss


def _shares(position: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The bins on both sides of each position, and how much of the target the right one has."""
    left = position.detach().floor()
    return left.long(), (left.long() + 1).clamp_max(classes - 1), position - left


def _dfl(input: Tensor, position: Tensor) -> Tensor:
    """The loss of rows (N, R) for positions (N,) in plain torch."""
    log_prob = torch.log_softmax(input.to(accumulate_dtype(input.dtype)), 1)
    left, right, share = _shares(position, input.shape[1])
    return _mixed(-_at(log_prob, left, log_prob), -_at(log_prob, right, log_prob), share)


def _mixed(of_left: Tensor, of_right: Tensor, share: Tensor) -> Tensor:
    """Of a position that is a bin the other one has no share, whatever its loss."""
    return (1 - share) * of_left + share * torch.where((share == 0) & of_right.isinf(), 0.0, of_right)


def _at(input: Tensor, bins: Tensor, like: Tensor) -> Tensor:
    """One logit of each row, in the dtype of `like`."""
    return input.gather(1, bins.unsqueeze(1)).squeeze(1).to(like.dtype)


class _Dfl(torch.autograd.Function):
    """The row engine's cross-entropy of the left bins, and two numbers a row. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, input, position, backend):
        left, right, share = _shares(position, input.shape[1])
        of_left, stats, divisor, *_ = _FORWARD[backend](input, left, None, *PLAIN_ROWS, False, False, False, position.dtype)
        of_right = stats[1] + (stats[0] - _at(input, right, position))
        ctx.save_for_backward(input, position, stats, divisor)
        ctx.backend = backend
        return _mixed(of_left, of_right, share)

    @staticmethod
    def backward(ctx, upstream):
        input, position, stats, divisor = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *formula_backward(lambda *inputs: [_dfl(*inputs)], (input, position), needed, [upstream]), None
        left, right, share = _shares(position, input.shape[1])
        by_input = by_position = None
        if needed[0]:
            by_input = _BACKWARD_OP[ctx.backend](upstream, None, None, input, left, None, stats, divisor, None, *PLAIN_ROWS)
            # The two that have a target once more, from the start: what was rounded to 16 bits must not be added to.
            for bins, target in ((left, 1 - share), (right, share)):
                p = torch.exp((_at(input, bins, position) - stats[0]) - stats[1])
                by_input.scatter_(1, bins.unsqueeze(1), (upstream * (p - target)).to(input.dtype).unsqueeze(1))
        if needed[1]:
            by_position = upstream * (_at(input, left, position) - _at(input, right, position))
        return by_input, by_position, None


_apply_dfl = fast_apply(_Dfl)


@register(
    "plain", formula="(l + 1 - t) CE(x, l) + (t - l) CE(x, l + 1), l = floor(t)", source="Li et al. 2020, equation 6",
    operands={"input": "real", "target": "row distance"}, forward=("weight",),
)
def dfl_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Distribution focal loss: cross-entropy of a distribution over 0, 1, ..., R - 1 with the two numbers next to a distance.

    .. math:: \ell = -(l + 1 - t) \log p_l - (t - l) \log p_{l+1}, \qquad l = \lfloor t \rfloor, \; p = \operatorname{softmax}(x)

    The logits are read once forward and once backward, and no target distribution exists: two numbers a row are added to what
    cross-entropy needs.

    Args:
        input: logits; float32, float64, bfloat16 or float16, any strides.
        target: distances in units of the bins; clipped to [0, R - 1.01].
        weight: a factor for each row; broadcasts with `target`. A mean divides by the number of rows. Default: 1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. A mean over no rows is 0.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(\dots, R)`
        - target: :math:`(\dots)`
        - loss: scalar, or target's shape for ``reduction="none"``

    Raises:
        ValueError: `target` has not input's shape less the last dimension; unknown reduction or backend.
        RuntimeError: `weight` does not broadcast; tensors are on different devices; the backend cannot run here.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        Li et al. 2020 (Generalized Focal Loss), equation 6.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.dfl_loss(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([1.25]))
        tensor(1.3863)
    """
    if has_torch_function_variadic(input, target, weight):
        return overridden("dfl", locals(), (input, target, weight))
    name = "dfl"
    dtype, chosen = checked(name, {"input": input, "target": target, "weight": weight}, backend, reduction)
    if not input.dim() or target.shape != input.shape[:-1] or not input.shape[-1]:
        raise ValueError(f"{name}: wanted input (..., R) and target (...), got {tuple(input.shape)} and {tuple(target.shape)}")
    bins, wide = input.shape[-1], accumulate_dtype(dtype)
    rows = input.reshape(-1, bins)
    if dtype == torch.float64 and rows.dtype != dtype:
        rows = rows.to(dtype)
    position = target.to(wide).clamp(0, max(bins - 1.01, 0)).reshape(-1)
    if chosen == "eager" or bins == 1:
        values = _dfl(rows, position)
    else:
        values = _apply_dfl(rows if rows.stride(1) == 1 else rows.contiguous(), position, chosen)
    values = values.reshape(target.shape)
    if weight is not None:
        values = values * weight.to(wide)
    if reduction == "mean":
        return (values.sum() / max(values.numel(), 1)).to(dtype)
    return reduced(values, reduction, dtype)


# Boxes and classes of anchors


def anchor_points(
    input_shape: Sequence[int], strides: Sequence[int] = STRIDES, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The points that a detector's feature maps predict boxes for: the centres of their cells, row by row, map after map.

    Args:
        input_shape: height and width of the image in pixels.
        strides: pixels between the cells of each map. Default: 8, 16, 32.
        dtype, device: of the results.

    Returns:
        The points (A, 2), (x, y) in pixels, and the stride of each, (A, 1), with A the sum of (height // stride) (width // stride).

    Example:
        >>> import fastloss.functional as F
        >>> points, stride = F.anchor_points((32, 64))
        >>> points.shape, points[1].tolist(), stride[-1].item()
        (torch.Size([42, 2]), [12.0, 4.0], 32.0)
    """
    height, width = input_shape
    points, steps = [], []
    for stride in strides:
        y, x = (stride * (torch.arange(size // stride, dtype=dtype, device=device) + 0.5) for size in (height, width))
        cells = torch.stack([x.expand(len(y), -1), y.unsqueeze(1).expand(-1, len(x))], -1).reshape(-1, 2)
        points.append(cells)
        steps.append(torch.full_like(cells[:, :1], stride))
    return torch.cat(points), torch.cat(steps)


def decode_boxes(distances: Tensor, points: Tensor, stride: Tensor) -> Tensor:
    """Boxes (x1, y1, x2, y2) from distributions over the distances of their sides from a point.

    A distance is the mean of its distribution, the softmax of R logits over 0, 1, ..., R - 1, times the stride.

    Args:
        distances: (..., 4 R) logits, R for each of left, top, right, bottom; converted to at least float32.
        points: (..., 2), as :func:`anchor_points` gives.
        stride: (..., 1), likewise.

    Returns:
        Boxes (..., 4), differentiable.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.decode_boxes(torch.zeros(1, 4 * 3), torch.tensor([[20.0, 12.0]]), torch.tensor([[8.0]]))
        tensor([[12.,  4., 28., 20.]])
    """
    wide = accumulate_dtype(distances.dtype)
    chance = torch.softmax(distances.unflatten(-1, (4, -1)).to(wide), -1)
    with without_autocast(distances.device):
        offset = stride * (chance @ torch.arange(chance.shape[-1], dtype=wide, device=distances.device))
    return torch.cat([points - offset[..., :2], points + offset[..., 2:]], -1)


def _objects(name: str, target: Tensor, classes: int, input_shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, boxes in pixels, and which rows of (B, M, 5) are objects; at least one row an image."""
    if not target.shape[1]:
        target = target.new_zeros((len(target), 1, 5))
    height, width = input_shape
    x1, y1, x2, y2 = target[..., 1:].unbind(-1)
    valid = target[..., 1:].sum(-1) > 0
    labels = torch.where(valid, target[..., 0], 0.0).long()
    _checks.labels_in_range(name, labels, classes, None)
    return labels.clamp(0, classes - 1), torch.stack([x1 * width, y1 * height, x2 * width, y2 * height], -1), valid


def _with_object(index: Tensor) -> Tensor:
    """The points that have an object, where values may be looked at; elsewhere all are taken, those without one with a weight of 0."""
    return (index >= 0).flatten().nonzero().squeeze(1)


@register(
    "detection", formula="(7.5 sum_fg (1 - CIoU) + 0.5 Focal + 1.5 sum_fg DFL) / max(sum_fg weight, 1)",
    source="Feng et al. 2021, section 3; Li et al. 2020, equation 6; Zheng et al. 2020; Lin et al. 2017",
)
def yolov12_detection_loss(
    input: Tensor,
    target: Tensor,
    num_classes: int = 80,
    input_shape: Sequence[int] = (640, 640),
    reg_max: int = 16,
    box_weight: float = 7.5,
    cls_weight: float = 0.5,
    dfl_weight: float = 1.5,
    assigner: str = "source",
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    train_negatives: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Loss of a YOLO detector without anchor boxes: which object each point learns, its box, its distances and its classes.

    .. math::
        \ell = \frac{1}{\max(\sum_a w_a, 1)} \left(7.5 \sum_a w_a \, (1 - \mathrm{CIoU}_a) + 0.5 \sum_a \frac{1}{C} \sum_c
        (1 - p_t)^2 \, \mathrm{BCE}(x_{ac}, t_{ac}) + 1.5 \sum_a w_a \sum_{s=1}^4 \mathrm{DFL}_{as}\right)

    :class:`fastloss.nn.TaskAlignedAssigner` gives each point of :func:`anchor_points` an object or none, and its weight :math:`w`, which is
    also the target of the object's class. No gradient flows through the assignment or to `target`, and boxes without size have finite
    losses and gradients. Of a batch without objects the loss is 0, unless `train_negatives`.

    Args:
        input: predictions: of each point 4 R logits of the distances of left, top, right and bottom, then C class logits; float32,
            float64, bfloat16 or float16, any strides.
        target: objects (class, x1, y1, x2, y2), coordinates as shares of the width and height; rows of zeros are padding.
        num_classes: C. Default: 80.
        input_shape: height and width of the images in pixels. Default: (640, 640).
        reg_max: R, numbers that a distance's distribution is over, in strides. Default: 16.
        box_weight, cls_weight, dfl_weight: factors of the three parts. Default: 7.5, 0.5, 1.5.
        assigner: ``"source"`` (additive, weights 1) or ``"tood"`` (Feng et al. 2021). Default: ``"source"``.
        topk, alpha, beta: as for :class:`fastloss.nn.TaskAlignedAssigner`.
        train_negatives: whether a batch without any object trains its points as background. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(B, A, 4 R + C)`, :math:`A = \sum_{s = 8, 16, 32} \lfloor H / s \rfloor \lfloor W / s \rfloor`
        - target: :math:`(B, M, 5)`
        - loss: scalar

    Raises:
        IndexError: a label is out of range (on the CPU).
        ValueError: shapes do not fit, or an option is out of its range.
        RuntimeError: tensors are on different devices; the backend cannot run here.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        Feng et al. 2021 (TOOD), section 3; Li et al. 2020, equation 6; Zheng et al. 2020, equations 8 to 12; Lin et al. 2017, equation 4.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> objects = torch.tensor([[[0.0, 0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 0.0, 0.0, 0.0]]])
        >>> F.yolov12_detection_loss(torch.zeros(1, 84, 4 * 16 + 3), objects, num_classes=3, input_shape=(64, 64))
        tensor(24.0081)
    """
    if has_torch_function_variadic(input, target):
        return overridden("yolov12_detection", locals(), (input, target))
    name = "yolov12_detection"
    checked(name, {"input": input, "target": target}, backend)
    if assigner not in ASSIGNERS:
        raise ValueError(f"{name}: assigner must be one of {', '.join(map(repr, ASSIGNERS))}, got {assigner!r}")
    for argument, count in (("num_classes", num_classes), ("reg_max", reg_max), ("topk", topk)):
        _checks.positive(name, argument, count)
    points, stride = anchor_points(input_shape, dtype=accumulate_dtype(input.dtype), device=input.device)
    wanted = len(points), 4 * reg_max + num_classes
    if input.dim() != 3 or input.shape[1:] != wanted or target.dim() != 3 or target.shape[::2] != (len(input), 5):
        raise ValueError(
            f"{name}: wanted input (B, {wanted[0]}, {wanted[1]}) and target (B, M, 5) for images of {tuple(input_shape)}, "
            f"reg_max={reg_max} and {num_classes} classes, got {tuple(input.shape)} and {tuple(target.shape)}"
        )
    dtype = torch.float32 if _checks.autocast(input) and input.dtype != torch.float64 else input.dtype
    labels, objects, valid = _objects(name, target.detach().to(points.dtype), num_classes, input_shape)
    distances, logits = input.to(points.dtype).split([4 * reg_max, num_classes], -1)
    boxes = decode_boxes(distances.detach(), points, stride)
    index, weight = assign(
        name, logits.detach(), boxes, points, labels, objects, valid, assigner == "source", True, topk, alpha, beta, backend
    )
    place = index.clamp_min(0)

    scores = torch.zeros_like(logits).scatter_(2, labels.gather(1, place).unsqueeze(2), weight.unsqueeze(2))
    cls = sigmoid_focal_loss(logits, scores, -1, 2.0, "sum", backend=backend) / num_classes
    if not train_negatives:
        cls = torch.where(valid.any(), cls, 0.0)

    rows = _with_object(index) if _checks.readable(input) else None
    near, weight, truth, points, stride = (
        t.flatten(0, 1) if rows is None else t.flatten(0, 1).index_select(0, rows)
        for t in (distances, weight, objects.gather(1, place.unsqueeze(2).expand(-1, -1, 4)), points.expand(len(input), -1, -1),
                  stride.expand(len(input), -1, -1))
    )
    box = (complete_box_iou_loss(decode_boxes(near, points, stride), truth, backend=backend) * weight).sum()
    sides = torch.cat([points - truth[:, :2], truth[:, 2:] - points], 1) / stride
    dfl = dfl_loss(near.unflatten(1, (4, reg_max)), sides, weight.unsqueeze(1), "sum", backend=backend)
    return ((box_weight * box + cls_weight * cls + dfl_weight * dfl) / weight.sum().clamp_min(1.0)).to(dtype)


# Masks and labels


@register(
    "plain", formula="w_d (1 - mean_c (2 I_c + s) / (P_c + T_c + s)) + w_f Focal", source="Milletari et al. 2016; Lin et al. 2017",
    operands={"input": "real", "target": "class"}, dims=(3, 4),
    params={"dice_weight": (0.0, 1.0), "focal_weight": (0.0, 1.0), "focal_gamma": (0.0, 3.0)},
)
def dice_focal_segmentation_loss(
    input: Tensor,
    target: Tensor,
    num_classes: int | None = None,
    dice_weight: float = 0.5,
    focal_weight: float = 0.5,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    from_logits: bool = True,
    channel_dim: int = -1,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Dice loss plus focal loss of masks, one value an image, channels last.

    .. math:: \ell = w_d \left(1 - \frac{1}{C} \sum_c \frac{2 I_c + s}{P_c + T_c + s}\right) + w_f \operatorname{mean}
        (1 - p_t)^\gamma \, \mathrm{CE}, \qquad s = 10^{-7}

    Several classes take a softmax and a single one a sigmoid, whose focal loss is balanced by `focal_alpha`. The logits are read once
    forward, and once backward, where the gradient is written.

    Args:
        input: logits, or probabilities; float32, float64, bfloat16 or float16, any strides.
        target: labels of any integer dtype, or numbers of input's shape such as one-hot targets; of a single class 0 or 1.
        num_classes: C, checked. Default: what `input` has.
        dice_weight, focal_weight: the factors. Default: 0.5.
        focal_alpha: weight of the positives of a single class, :math:`1 - \alpha` of the negatives, in [0, 1]. Default: 0.25.
        focal_gamma: focusing parameter, at least 0. Default: 2.
        from_logits: False for probabilities, which are kept within [1e-7, 1 - 1e-7]. Default: True.
        channel_dim: where `input` has its classes. Default: -1.
        reduction: ``"none"``: a loss for each image; ``"mean"`` or ``"sum"`` of them.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(B, H, W, C)`, or any number of dimensions in the place of H and W
        - target: :math:`(B, H, W)`, or input's shape
        - loss: scalar, or :math:`(B)`

    Raises:
        IndexError: a label is out of range (on the CPU).
        ValueError: shapes do not fit, or an option is out of its range.
        RuntimeError: tensors are on different devices; the backend cannot run here.
        NotImplementedError: `input` is not floating point.
        TypeError: an argument is not a tensor.

    Source:
        Milletari et al. 2016, section 3; Lin et al. 2017, equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.dice_focal_segmentation_loss(torch.tensor([[[[2.0, -2.0], [-1.0, 1.0]]]]), torch.tensor([[[0, 1]]]))
        tensor(0.0348)
    """
    if has_torch_function_variadic(input, target):
        return overridden("dice_focal_segmentation", locals(), (input, target))
    name = "dice_focal_segmentation"
    dtype, _ = checked(name, {"input": input, "target": target}, backend, reduction)
    _checks.positive(name, "focal_gamma", focal_gamma, zero=True)
    if not 0 <= focal_alpha <= 1:
        raise ValueError(f"{name}: focal_alpha must be in [0, 1], got {focal_alpha}")
    if input.dim() < 2 or not -input.dim() <= channel_dim < input.dim():
        raise ValueError(f"{name}: expected input of 2 or more dimensions with channel_dim among them, got {tuple(input.shape)}")
    classes = input.shape[channel_dim]
    if num_classes is not None and classes != num_classes:
        raise ValueError(f"{name}: wanted {num_classes} classes in dimension {channel_dim} of input, got shape {tuple(input.shape)}")
    if target.dim() == input.dim() - 1 and target.is_floating_point():
        target = target.unsqueeze(channel_dim) if classes == 1 else target.long()
    if not from_logits:
        x = input.to(accumulate_dtype(input.dtype))
        input = torch.logit(x, 1e-7) if classes == 1 else x.clamp(1e-7, 1 - 1e-7).log()
    params = (float(focal_alpha), float(focal_gamma)) if classes == 1 else (float(focal_gamma),)
    sums_of = Sums(name, input, target, None, "focal", lambda activation: params, True, None, channel_dim, backend)
    sums = dict(zip(STATISTICS, sums_of.all.unbind(-1)))
    dice = 1 - ratio(sums, DICE, 1e-7, None, 0.0, 1, False).mean(1)
    focal = sums["loss"].sum(1) / max(sums_of.pixels, 1)
    return reduced(dice_weight * dice + focal_weight * focal, reduction, dtype)


@register(
    "plain", formula="mean_c alpha_t (1 - p_t)^gamma BCE(x_c, t_c)", source="Lin et al. 2017, equation 5",
    operands={"input": "real", "target": "probability"}, params={"alpha": (0.0, 1.0), "gamma": (0.0, 5.0)},
)
def classification_focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = True,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Focal loss of several labels a row, its mean over the classes.

    .. math:: \ell = \frac{1}{C} \sum_c \alpha_t (1 - p_t)^\gamma \, \mathrm{BCE}(x_c, t_c)

    Args:
        input: logits, or probabilities; float32, float64, bfloat16 or float16, any strides.
        target: labels or probabilities in [0, 1].
        alpha: weight of the positives, :math:`1 - \alpha` of the negatives, in [0, 1]. Default: 0.25.
        gamma: focusing parameter, at least 0. Default: 2.
        from_logits: False for probabilities, which are kept within [1e-7, 1 - 1e-7]. Default: True.
        reduction: ``"none"``: a loss for each row; ``"mean"`` or ``"sum"`` of them.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(\dots, C)`
        - target: the same, or :math:`(\dots)` for C = 1; a single dimension is rows of one class
        - loss: scalar, or :math:`(\dots)`

    Raises:
        ValueError: shapes do not fit; `alpha` is not in [0, 1]; `gamma` is negative. Otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Lin et al. 2017, equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.classification_focal_loss(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
        tensor(0.0866)
    """
    if has_torch_function_variadic(input, target):
        return overridden("classification_focal", locals(), (input, target))
    name = "classification_focal"
    if isinstance(input, Tensor) and isinstance(target, Tensor):
        if input.dim() == 1:
            input = input.unsqueeze(1)
        if target.dim() == input.dim() - 1 and input.shape[-1] == 1:
            target = target.unsqueeze(-1)
    same_shape(name, {"input": input, "target": target})
    if not 0 <= alpha <= 1:
        raise ValueError(f"{name}: alpha must be in [0, 1], got {alpha}")
    _checks.positive(name, "gamma", gamma, zero=True)
    dtype, chosen = checked(name, {"input": input, "target": target}, backend, reduction)
    if not from_logits:
        _, (input, target) = widened(name, {"input": input, "target": target}, backend)
        input = torch.logit(input, 1e-7)
    params = float(alpha), float(gamma), 0.0, 0.0
    loss = elementwise_loss("sigmoid_focal", params, (input, target, None), None, reduction, backend=backend, rows="mean")
    return loss.to(dtype)


# Several tasks


def yolov12_multitask_loss(
    input: Tensor,
    target: Tensor,
    tasks: Sequence[str] = tuple(TASKS.values()),
    num_detection_classes: int | None = None,
    num_segmentation_classes: int | None = None,
    num_classification_classes: int | None = None,
    num_classes: int = 80,
    input_shape: Sequence[int] = (640, 640),
    detection_weight: float = 1.0,
    segmentation_weight: float = 1.0,
    classification_weight: float = 1.0,
    reg_max: int = 16,
    *,
    assigner: str = "source",
    train_negatives: bool = False,
    channel_dim: int = -1,
    log_variance: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The loss of one head of a detector with several: which task it is for follows from the dimensions of what it predicts.

    Of three dimensions it is :func:`yolov12_detection_loss`, of four :func:`dice_focal_segmentation_loss`, of two
    :func:`classification_focal_loss`, times the weight of the task; a task that is not among `tasks` has loss 0 and gradient 0.

    Args:
        input: predictions of the head.
        target: what the task's loss takes.
        tasks: those that are trained. Default: all.
        num_detection_classes, num_segmentation_classes: the classes of the two tasks. Default: `num_classes`.
        num_classification_classes: the classes of the third, checked. Default: what `input` has.
        num_classes: of the tasks that have no number of their own. Default: 80.
        input_shape: height and width of the images in pixels. Default: (640, 640).
        detection_weight, segmentation_weight, classification_weight: the factors. Default: 1.
        reg_max, assigner, train_negatives: as for :func:`yolov12_detection_loss`.
        channel_dim: as for :func:`dice_focal_segmentation_loss`. Default: -1.
        log_variance: a scalar s, in which the result is :math:`e^{-s} \ell + s` instead of the weight times :math:`\ell`: the task weighs
            itself (Kendall et al. 2018, equation 10, without the halves). Default: None.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown task, or `input` has another number of dimensions; otherwise as the loss of the task.

    Source:
        Kendall et al. 2018, equation 10.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.yolov12_multitask_loss(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]), classification_weight=2.0)
        tensor(0.1733)
    """
    name = "yolov12_multitask"
    for argument, tensor in (("input", input), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
    chosen_tasks(name, tasks)
    if input.dim() not in TASKS:
        kinds = ", ".join(f"{dims} ({task})" for dims, task in TASKS.items())
        raise ValueError(f"{name}: input must have one of these numbers of dimensions: {kinds}; got {tuple(input.shape)}")
    task = TASKS[input.dim()]
    if task not in tasks:
        return input.flatten()[:0].sum()  # reads nothing: inf times 0 would be NaN
    if task == "detection":
        classes = num_classes if num_detection_classes is None else num_detection_classes
        weight, loss = detection_weight, yolov12_detection_loss(
            input, target, classes, input_shape, reg_max, assigner=assigner, train_negatives=train_negatives, backend=backend
        )
    elif task == "segmentation":
        classes = num_classes if num_segmentation_classes is None else num_segmentation_classes
        weight, loss = segmentation_weight, dice_focal_segmentation_loss(input, target, classes, channel_dim=channel_dim, backend=backend)
    else:
        if num_classification_classes is not None and input.shape[1] != num_classification_classes:
            raise ValueError(f"{name}: wanted (B, {num_classification_classes}) class logits, got {tuple(input.shape)}")
        weight, loss = classification_weight, classification_focal_loss(input, target, backend=backend)
    return weight * loss if log_variance is None else torch.exp(-log_variance) * loss + log_variance


def chosen_tasks(name: str, tasks: Sequence[str]) -> list[str]:
    """The tasks as a list; raises for one that there is not."""
    given = [tasks] if isinstance(tasks, str) else list(tasks)
    unknown = [task for task in given if task not in TASKS.values()]
    if unknown or not given:
        raise ValueError(f"{name}: tasks must be among {', '.join(map(repr, TASKS.values()))}, got {given}")
    return given
