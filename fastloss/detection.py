"""Modules of object detectors: the assignment of anchors to objects, and the loss of several heads with trainable weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import _checks
from .assign import assign
from .functional.detection import ASSIGNERS, TASKS, chosen_tasks, yolov12_multitask_loss

__all__ = [
    "Assignment", "TaskAlignedAssigner", "YOLOv12MultiTaskLoss", "create_yolov12_coco_loss", "create_yolov12_crack_loss",
    "create_yolov12_multitask_loss",
]


class Assignment(NamedTuple):
    """What each anchor of a batch learns; background has label and index -1, weight 0, and a box of zeros."""

    labels: Tensor  # (B, A)
    boxes: Tensor  # (B, A, 4)
    weight: Tensor  # (B, A), the target of the label's score
    foreground: Tensor  # (B, A) bool
    index: Tensor  # (B, A), of the object among those of its image

    def scores(self, num_classes: int) -> Tensor:
        """The targets of all scores, (B, A, num_classes)."""
        scores = self.weight.new_zeros((*self.labels.shape, num_classes))
        return scores.scatter_(2, self.labels.clamp_min(0).unsqueeze(2), self.weight.unsqueeze(2))


class TaskAlignedAssigner(nn.Module):
    r"""Which object each anchor of a detector learns, by the score of its class and the overlap of its box. No gradient flows.

    With the score :math:`s` of the object's class and the predicted box's overlaps with the object's box:

    - ``"source"``: an anchor is a candidate of an object if its point lies inside the object's box (edges included) or its IoU is among the
      object's `topk` largest. It learns the object with the largest :math:`\alpha s + \beta \, \mathrm{CIoU}`, if that is positive, with a
      weight of 1.
    - ``"tood"`` (Feng et al. 2021): if its point lies inside and :math:`t = s^\alpha \, \mathrm{IoU}^\beta` is among the object's `topk`
      largest, and positive. It learns the object with the largest IoU, with the weight :math:`t / \max t \cdot \max \mathrm{IoU}`, maxima
      over the anchors of the object.

    Of equal anchors and of equal objects the first count. On the CPU nothing of the size of images x objects x anchors is made.

    Args:
        topk: how many anchors. Default: 10.
        alpha, beta: importance of score and overlap. Default: 0.5, 6.
        assigner: ``"source"`` or ``"tood"``. Default: ``"source"``.
        from_logits: whether scores are logits, or probabilities. Default: True.
        backend: as for :func:`fastloss.functional.cross_entropy`; the ``"cpu"`` backend has a kernel, others run plain torch.

    Shape:
        - scores: :math:`(B, A, C)`, boxes: :math:`(B, A, 4)`, anchors: :math:`(A, 2)`
        - labels: :math:`(B, M)` integers in [0, C), objects: :math:`(B, M, 4)`, valid: :math:`(B, M)` bool. Default: all
        - result: an :class:`Assignment`

    Raises:
        ValueError: an option is out of its range, or shapes do not fit.
        IndexError: a label is out of range (on the CPU).
        TypeError: an argument is not a tensor.

    Source:
        Feng et al. 2021 (TOOD), equation 7 and section 3.2.

    Example:
        >>> import torch, fastloss
        >>> assigner = fastloss.nn.TaskAlignedAssigner(topk=1)
        >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0], [8.0, 0.0, 12.0, 4.0]]])
        >>> points = torch.tensor([[2.0, 2.0], [6.0, 2.0], [10.0, 2.0]])
        >>> found = assigner(torch.zeros(1, 3, 2), boxes, points, torch.tensor([[1]]), torch.tensor([[[4.0, 0.0, 8.0, 5.0]]]))
        >>> found.labels
        tensor([[-1,  1, -1]])
    """

    def __init__(
        self, topk: int = 10, alpha: float = 0.5, beta: float = 6.0, assigner: str = "source", from_logits: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        name = "TaskAlignedAssigner"
        _checks.positive(name, "topk", topk)
        _checks.positive(name, "alpha", alpha, zero=True)
        _checks.positive(name, "beta", beta, zero=True)
        if assigner not in ASSIGNERS:
            raise ValueError(f"{name}: assigner must be one of {', '.join(map(repr, ASSIGNERS))}, got {assigner!r}")
        self.topk, self.alpha, self.beta, self.assigner, self.from_logits, self.backend = topk, alpha, beta, assigner, from_logits, backend

    @torch.no_grad()
    def forward(
        self, scores: Tensor, boxes: Tensor, anchors: Tensor, labels: Tensor, objects: Tensor, valid: Tensor | None = None
    ) -> Assignment:
        name = "TaskAlignedAssigner"
        given = {"scores": scores, "boxes": boxes, "anchors": anchors, "labels": labels, "objects": objects}
        for argument, tensor in given.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
        if scores.dtype not in _checks.FLOATING or boxes.dtype not in _checks.FLOATING:
            raise NotImplementedError(f"{name}: scores and boxes must be floating point, got {scores.dtype} and {boxes.dtype}")
        if scores.dim() != 3 or labels.dim() != 2:
            raise ValueError(f"{name}: wanted scores (B, A, C) and labels (B, M), got {tuple(scores.shape)} and {tuple(labels.shape)}")
        (batch, count, classes), many = scores.shape, labels.shape[1]
        valid = labels.new_ones(labels.shape, dtype=torch.bool) if valid is None else valid
        shapes = {"boxes": (batch, count, 4), "anchors": (count, 2), "labels": (batch, many), "objects": (batch, many, 4),
                  "valid": (batch, many)}
        for argument, shape in shapes.items():
            got = tuple((given | {"valid": valid})[argument].shape)
            if got != shape:
                raise ValueError(f"{name}: {argument} must have shape {shape} for scores of shape {tuple(scores.shape)}, got {got}")
        valid = valid.bool()
        labels = torch.where(valid, labels.long(), 0)
        _checks.labels_in_range(name, labels, classes, None)
        index, weight = assign(
            name, scores, boxes, anchors, labels, objects, valid, self.assigner == "source", self.from_logits, self.topk, self.alpha,
            self.beta, self.backend,
        )
        foreground, place = index >= 0, index.clamp_min(0)
        if not many:
            return Assignment(index, boxes.new_zeros(boxes.shape), weight, foreground, index)
        learned = objects.gather(1, place.unsqueeze(2).expand(-1, -1, 4))
        return Assignment(
            torch.where(foreground, labels.gather(1, place), -1), torch.where(foreground.unsqueeze(2), learned, 0), weight, foreground,
            index,
        )

    def extra_repr(self) -> str:
        return f"topk={self.topk}, alpha={self.alpha}, beta={self.beta}, assigner={self.assigner!r}, from_logits={self.from_logits}"


class YOLOv12MultiTaskLoss(nn.Module):
    r"""The losses of a detector's heads: of boxes, of masks, and of labels of the whole image.

    The module of :func:`fastloss.functional.yolov12_multitask_loss`, called once for each head. With `use_uncertainty_weighting` each task
    has a trainable scalar :math:`s`, 0 at first, and its loss becomes :math:`e^{-s} \ell + s` (Kendall et al. 2018, equation 10, without
    the halves).

    Args:
        tasks: of ``"detection"``, ``"segmentation"`` and ``"classification"``.
        num_detection_classes, num_segmentation_classes, num_classification_classes, num_classes, input_shape, detection_weight,
            segmentation_weight, classification_weight, reg_max, assigner, train_negatives, channel_dim, backend: as for the function.
        use_uncertainty_weighting: whether tasks weigh themselves, in place of the three weights. Default: False.

    Shape:
        - input: :math:`(B, A, 4 R + C)` boxes, :math:`(B, H, W, C)` masks or :math:`(B, C)` labels
        - target: :math:`(B, M, 5)`, :math:`(B, H, W)` or :math:`(B, C)`
        - loss: scalar

    Raises:
        ValueError: an unknown task; in the call as the function.

    Source:
        Kendall et al. 2018, equation 10; otherwise as the losses of the tasks.

    Example:
        >>> import torch, fastloss
        >>> loss = fastloss.nn.YOLOv12MultiTaskLoss(["detection", "classification"], num_classes=2, use_uncertainty_weighting=True)
        >>> loss(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
        tensor(0.0866, grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        tasks: Sequence[str],
        num_detection_classes: int | None = None,
        num_segmentation_classes: int | None = None,
        num_classification_classes: int | None = None,
        num_classes: int = 80,
        input_shape: Sequence[int] = (640, 640),
        use_uncertainty_weighting: bool = False,
        detection_weight: float = 1.0,
        segmentation_weight: float = 1.0,
        classification_weight: float = 1.0,
        reg_max: int = 16,
        *,
        assigner: str = "source",
        train_negatives: bool = False,
        channel_dim: int = -1,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.tasks = chosen_tasks("YOLOv12MultiTaskLoss", tasks)
        if assigner not in ASSIGNERS:
            raise ValueError(f"YOLOv12MultiTaskLoss: assigner must be one of {', '.join(map(repr, ASSIGNERS))}, got {assigner!r}")
        self.num_detection_classes = num_detection_classes
        self.num_segmentation_classes = num_segmentation_classes
        self.num_classification_classes = num_classification_classes
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.use_uncertainty_weighting = use_uncertainty_weighting
        self.detection_weight = detection_weight
        self.segmentation_weight = segmentation_weight
        self.classification_weight = classification_weight
        self.reg_max = reg_max
        self.assigner = assigner
        self.train_negatives = train_negatives
        self.channel_dim = channel_dim
        self.backend = backend
        own = {task: nn.Parameter(torch.zeros(())) for task in self.tasks} if use_uncertainty_weighting else {}
        self.log_variances = nn.ParameterDict(own)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        task = TASKS.get(input.dim()) if isinstance(input, Tensor) else None
        return yolov12_multitask_loss(
            input, target, self.tasks, self.num_detection_classes, self.num_segmentation_classes, self.num_classification_classes,
            self.num_classes, self.input_shape, self.detection_weight, self.segmentation_weight, self.classification_weight, self.reg_max,
            assigner=self.assigner, train_negatives=self.train_negatives, channel_dim=self.channel_dim, backend=self.backend,
            log_variance=self.log_variances[task] if task in self.log_variances else None,
        )

    def get_task_weights(self) -> dict[str, Tensor]:
        """What the loss of each task is multiplied by now, as scalars on the device."""
        if self.use_uncertainty_weighting:
            return {task: torch.exp(-value.detach()) for task, value in self.log_variances.items()}
        return {task: torch.tensor(float(getattr(self, f"{task}_weight"))) for task in self.tasks}

    def extra_repr(self) -> str:
        return f"{self.tasks}, input_shape={self.input_shape}, reg_max={self.reg_max}, assigner={self.assigner!r}"


def create_yolov12_multitask_loss(tasks: Sequence[str], **options) -> YOLOv12MultiTaskLoss:
    """A :class:`YOLOv12MultiTaskLoss`, whose arguments `options` are."""
    return YOLOv12MultiTaskLoss(tasks, **options)


def create_yolov12_coco_loss(input_shape: Sequence[int] = (640, 640), **options) -> YOLOv12MultiTaskLoss:
    """A :class:`YOLOv12MultiTaskLoss` of boxes and masks of the 80 classes of COCO (Lin et al. 2014)."""
    classes = {"num_detection_classes": 80, "num_segmentation_classes": 80}
    return YOLOv12MultiTaskLoss(["detection", "segmentation"], input_shape=input_shape, **(classes | options))


def create_yolov12_crack_loss(input_shape: Sequence[int] = (640, 640), **options) -> YOLOv12MultiTaskLoss:
    """A :class:`YOLOv12MultiTaskLoss` of boxes and masks of one class."""
    classes = {"num_detection_classes": 1, "num_segmentation_classes": 1}
    return YOLOv12MultiTaskLoss(["detection", "segmentation"], input_shape=input_shape, **(classes | options))
