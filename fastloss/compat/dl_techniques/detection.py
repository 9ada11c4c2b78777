"""The heads of a detector: boxes, masks and labels of images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ... import functional as F
from ... import nn as modules
from ._loss import Loss

__all__ = [
    "ClassificationFocalLoss", "DiceFocalSegmentationLoss", "YOLOv12MultiTaskLoss", "create_yolov12_coco_loss",
    "create_yolov12_crack_loss", "create_yolov12_multitask_loss",
]


class DiceFocalSegmentationLoss(Loss):
    """:func:`fastloss.functional.dice_focal_segmentation_loss`, channels last.

    Args:
        num_classes: the channels. Default: 1.
        dice_weight, focal_weight: the factors. Default: 0.5.
        focal_alpha: of a single class, weight of the positives. Default: 0.25.
        focal_gamma: focusing parameter. Default: 2.
        from_logits: whether predictions are logits. Default: True.
        name, reduction, backend: as for :class:`Loss`.
    """

    def __init__(
        self, num_classes: int = 1, dice_weight: float = 0.5, focal_weight: float = 0.5, focal_alpha: float = 0.25,
        focal_gamma: float = 2.0, from_logits: bool = True, name: str | None = "dice_focal_segmentation_loss",
        reduction: str | None = "sum_over_batch_size", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.num_classes, self.dice_weight, self.focal_weight = num_classes, dice_weight, focal_weight
        self.focal_alpha, self.focal_gamma, self.from_logits = focal_alpha, focal_gamma, from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """(B) losses of masks (B, H, W) or (B, H, W, C) and predictions (B, H, W, C)."""
        return F.dice_focal_segmentation_loss(
            y_pred, y_true, self.num_classes, self.dice_weight, self.focal_weight, self.focal_alpha, self.focal_gamma, self.from_logits,
            reduction="none", backend=self.backend,
        )


class ClassificationFocalLoss(Loss):
    """:func:`fastloss.functional.classification_focal_loss`.

    Args:
        alpha: weight of the positives. Default: 0.25.
        gamma: focusing parameter. Default: 2.
        from_logits: whether predictions are logits. Default: True.
        name, reduction, backend: as for :class:`Loss`.
    """

    def __init__(
        self, alpha: float = 0.25, gamma: float = 2.0, from_logits: bool = True, name: str | None = "classification_focal_loss",
        reduction: str | None = "sum_over_batch_size", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.alpha, self.gamma, self.from_logits = alpha, gamma, from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """(...) losses of labels and predictions (..., C); labels without C where that is 1."""
        return F.classification_focal_loss(
            y_pred, y_true, self.alpha, self.gamma, self.from_logits, "none", backend=self.backend
        )


class YOLOv12MultiTaskLoss(Loss):
    """:class:`fastloss.nn.YOLOv12MultiTaskLoss`, the truth first: the task follows from the dimensions of the predictions.

    Args:
        tasks: some of ``"detection"``, ``"segmentation"`` and ``"classification"``; others have the loss 0.
        num_detection_classes, num_segmentation_classes, num_classification_classes: classes of each task. Default: `num_classes`, of the
            last task what the predictions have.
        num_classes: of tasks that have no number of their own. Default: 80.
        input_shape: height and width of the images. Default: (640, 640).
        use_uncertainty_weighting: learn the weights of the tasks. Default: False.
        detection_weight, segmentation_weight, classification_weight: the weights else. Default: 1.
        reg_max: bins of a distance. Default: 16.
        name, reduction, backend: as for :class:`Loss`.
        assigner: ``"tood"`` for the assignment of Feng et al. 2021. Default: ``"source"``.
        train_negatives: train the scores of images in a batch without objects too. Default: False, as the original.
    """

    def __init__(
        self, tasks: Sequence[str], num_detection_classes: int | None = None, num_segmentation_classes: int | None = None,
        num_classification_classes: int | None = None, num_classes: int = 80, input_shape: Sequence[int] = (640, 640),
        use_uncertainty_weighting: bool = False, detection_weight: float = 1.0, segmentation_weight: float = 1.0,
        classification_weight: float = 1.0, reg_max: int = 16, name: str | None = "yolov12_multitask_loss",
        reduction: str | None = "sum_over_batch_size", *, assigner: str = "source", train_negatives: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        given = dict(
            tasks=tasks, num_detection_classes=num_detection_classes, num_segmentation_classes=num_segmentation_classes,
            num_classification_classes=num_classification_classes, num_classes=num_classes, input_shape=tuple(input_shape),
            use_uncertainty_weighting=use_uncertainty_weighting, detection_weight=detection_weight,
            segmentation_weight=segmentation_weight, classification_weight=classification_weight, reg_max=reg_max, assigner=assigner,
            train_negatives=train_negatives,
        )
        self.loss = modules.YOLOv12MultiTaskLoss(**given, backend=backend)
        for argument, value in given.items():
            setattr(self, argument, value)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """A scalar, of one head: boxes (B, M, 5) and (B, A, 4 R + C), masks and (B, H, W, C), or labels and (B, C)."""
        return self.loss(y_pred, y_true)

    def get_task_weights(self) -> dict[str, Tensor]:
        """What the loss of each task is multiplied by now."""
        return self.loss.get_task_weights()


def create_yolov12_multitask_loss(
    tasks: Sequence[str], num_detection_classes: int | None = None, num_segmentation_classes: int | None = None,
    num_classification_classes: int | None = None, num_classes: int = 80, input_shape: Sequence[int] = (640, 640), **options
) -> YOLOv12MultiTaskLoss:
    """A :class:`YOLOv12MultiTaskLoss`, whose arguments these are."""
    return YOLOv12MultiTaskLoss(
        tasks, num_detection_classes, num_segmentation_classes, num_classification_classes, num_classes, input_shape, **options
    )


def create_yolov12_coco_loss(input_shape: Sequence[int] = (640, 640), **options) -> YOLOv12MultiTaskLoss:
    """A :class:`YOLOv12MultiTaskLoss` of boxes and masks of 80 classes."""
    return create_yolov12_multitask_loss(["detection", "segmentation"], 80, 80, input_shape=input_shape, **options)


def create_yolov12_crack_loss(input_shape: Sequence[int] = (640, 640), **options) -> YOLOv12MultiTaskLoss:
    """A :class:`YOLOv12MultiTaskLoss` of boxes and masks of one class."""
    return create_yolov12_multitask_loss(["detection", "segmentation"], 1, 1, input_shape=input_shape, **options)
