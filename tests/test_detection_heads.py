"""Heads of detectors: masks, labels, the module of several tasks, and the example that trains one."""

from __future__ import annotations

import importlib.util
import math
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastloss
import fastloss.functional as ours
from fastloss.detection import YOLOv12MultiTaskLoss, create_yolov12_coco_loss, create_yolov12_crack_loss, create_yolov12_multitask_loss

ENGINE = "detection"
ASSIGNERS = ("source", "tood")
both = pytest.mark.parametrize("assigner", ASSIGNERS)


# Masks and labels


def masks(x, y, alpha=0.25, gamma=2.0):
    """The definition for probabilities (B, H, W, C) and numbers of this shape."""
    inter, both = (x * y).sum((1, 2)), x.sum((1, 2)) + y.sum((1, 2))
    dice = (1 - (2 * inter + 1e-7) / (both + 1e-7)).mean(1)
    if x.shape[-1] == 1:
        right = x * y + (1 - x) * (1 - y)
        focal = (alpha * y + (1 - alpha) * (1 - y)) * (1 - right) ** gamma * -(y * x.log() + (1 - y) * (1 - x).log())
    else:
        focal = (-y * (1 - x) ** gamma * x.log()).sum(-1, keepdim=True)
    return 0.5 * dice + 0.5 * focal.mean((1, 2, 3))


@pytest.mark.parametrize("classes", [1, 4])
def test_masks_are_their_definition(backend, classes):
    x = torch.randn(2, 3, 5, classes, dtype=torch.float64, requires_grad=True)
    y = torch.randint(max(classes, 2), (2, 3, 5))
    p = x.softmax(-1) if classes > 1 else x.sigmoid()
    dense = F.one_hot(y, classes).double() if classes > 1 else y[..., None].double()
    wanted = masks(p, dense)
    for target in (y, dense, y.double(), dense.long() if classes == 1 else y.to(torch.uint8)):
        got = ours.dice_focal_segmentation_loss(x, target, classes, reduction="none", backend=backend)
        torch.testing.assert_close(got, wanted)
    upstream = torch.randn(2, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(got, x, upstream)[0], torch.autograd.grad(wanted, x, upstream, retain_graph=True)[0])
    for options in ({"from_logits": False}, {"from_logits": False, "channel_dim": 1}):
        probable = p.detach().movedim(-1, 1) if "channel_dim" in options else p.detach()
        torch.testing.assert_close(ours.dice_focal_segmentation_loss(probable, y, **options, backend=backend), wanted.mean())
    certain = (torch.eye(2) if classes > 1 else torch.tensor([[0.0], [1.0]])).double()[:, None, None]
    value = ours.dice_focal_segmentation_loss(certain, torch.tensor([1, 0])[:, None, None], from_logits=False, backend=backend)
    assert value.isfinite() and value > 1


def test_labels_are_their_definition(backend):
    x, y = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), (torch.rand(5, 3) < 0.5).double()
    p = x.sigmoid()
    right = p * y + (1 - p) * (1 - y)
    wanted = ((0.25 * y + 0.75 * (1 - y)) * (1 - right) ** 2 * -right.log()).mean(-1)
    torch.testing.assert_close(ours.classification_focal_loss(x, y, reduction="none", backend=backend), wanted)
    torch.testing.assert_close(ours.classification_focal_loss(p, y, from_logits=False, reduction="sum", backend=backend), wanted.sum())
    got = ours.classification_focal_loss(x, y, backend=backend)
    torch.testing.assert_close(torch.autograd.grad(got, x, retain_graph=True)[0], torch.autograd.grad(wanted.mean(), x)[0])
    one = ours.classification_focal_loss(x[:, :1], y[:, :1], reduction="none", backend=backend)
    for first, second in ((x[:, :1], y[:, 0]), (x[:, 0], y[:, 0]), (x[:, 0], y[:, :1])):
        assert torch.equal(ours.classification_focal_loss(first, second, reduction="none", backend=backend), one)


def test_masks_and_labels_refuse():
    x, y = torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 3).long()
    wrong = [
        ({"num_classes": 3}, r"3 classes.*\(2, 3, 3, 4\)"), ({"focal_gamma": -1.0}, "gamma"), ({"focal_alpha": 2.0}, "alpha"),
        ({"channel_dim": 7}, "channel_dim"), ({"target": y[:1]}, r"\(1, 3, 3\)"), ({"reduction": "avg"}, "avg"),
    ]
    for options, words in wrong:
        with pytest.raises(ValueError, match=words):
            ours.dice_focal_segmentation_loss(**({"input": x, "target": y} | options))
    with pytest.raises(IndexError, match="out of bounds"):
        ours.dice_focal_segmentation_loss(x, y + 4)
    for options, words in (({"alpha": -1.0}, "alpha"), ({"gamma": -1.0}, "gamma"), ({"target": torch.zeros(2, 4)}, r"\(2, 3\).*\(2, 4\)")):
        with pytest.raises(ValueError, match=words):
            ours.classification_focal_loss(**({"input": torch.zeros(2, 3), "target": torch.zeros(2, 3)} | options))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 3\)"):
        ours.dfl_loss(torch.zeros(2, 3), torch.zeros(2, 3))


# Several tasks


def heads():
    g = torch.Generator().manual_seed(0)
    return {
        "detection": (torch.randn((1, 21, 4 * 4 + 2), generator=g), torch.tensor([[[1.0, 0.1, 0.2, 0.6, 0.9]]])),
        "segmentation": (torch.randn((2, 4, 4, 2), generator=g), torch.randint(2, (2, 4, 4), generator=g)),
        "classification": (torch.randn((3, 2), generator=g), torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])),
    }


SMALL = {"num_classes": 2, "input_shape": (32, 32), "reg_max": 4}


def alone(task, assigner="source"):
    x, y = heads()[task]
    if task == "detection":
        return ours.yolov12_detection_loss(x, y, 2, (32, 32), 4, assigner=assigner)
    return ours.dice_focal_segmentation_loss(x, y) if task == "segmentation" else ours.classification_focal_loss(x, y)


def test_every_head_has_its_loss():
    tasks = list(heads())
    module = YOLOv12MultiTaskLoss(tasks, **SMALL, detection_weight=2.0, segmentation_weight=3.0, classification_weight=5.0)
    weights = dict(zip(tasks, (2.0, 3.0, 5.0)))
    assert {task: float(w) for task, w in module.get_task_weights().items()} == weights
    assert not list(module.parameters())
    for task, (x, y) in heads().items():
        torch.testing.assert_close(module(x, y), weights[task] * alone(task), rtol=0, atol=0)
        other = YOLOv12MultiTaskLoss([t for t in tasks if t != task], **SMALL)
        x = torch.full_like(x, math.inf).requires_grad_()
        value = other(x, y)
        assert value == 0 and not torch.autograd.grad(value, x)[0].any()
    tood = YOLOv12MultiTaskLoss(["detection"], assigner="tood", **SMALL)(*heads()["detection"])
    assert tood == alone("detection", "tood") != alone("detection")
    nothing = heads()["detection"][0], torch.zeros(1, 1, 5)
    assert YOLOv12MultiTaskLoss(["detection"], **SMALL)(*nothing) == 0
    assert YOLOv12MultiTaskLoss(["detection"], train_negatives=True, **SMALL)(*nothing) > 0
    first = YOLOv12MultiTaskLoss(["segmentation"], channel_dim=1, **SMALL)
    x, y = heads()["segmentation"]
    torch.testing.assert_close(first(x.movedim(-1, 1), y), alone("segmentation"))


def test_tasks_weigh_themselves():
    module = YOLOv12MultiTaskLoss(list(heads()), use_uncertainty_weighting=True, detection_weight=7.0, **SMALL)
    assert len(list(module.parameters())) == 3 and {float(w) for w in module.get_task_weights().values()} == {1.0}
    for task in heads():
        torch.nn.init.constant_(module.log_variances[task], 0.5)
    copy = pickle.loads(pickle.dumps(module))
    for task, (x, y) in heads().items():
        value = copy(x, y)
        torch.testing.assert_close(value, math.exp(-0.5) * alone(task) + 0.5)
        (grad,) = torch.autograd.grad(value, copy.log_variances[task])
        torch.testing.assert_close(grad, 1 - math.exp(-0.5) * alone(task))
    torch.testing.assert_close(copy.get_task_weights()["detection"], torch.tensor(math.exp(-0.5)))
    assert set(module.state_dict()) == {f"log_variances.{task}" for task in heads()}


def test_factories():
    coco, crack = create_yolov12_coco_loss((320, 640)), create_yolov12_crack_loss(reg_max=8)
    assert coco.tasks == crack.tasks == ["detection", "segmentation"] and coco.input_shape == (320, 640) and crack.reg_max == 8
    assert (coco.num_detection_classes, coco.num_segmentation_classes, crack.num_detection_classes) == (80, 80, 1)
    made = create_yolov12_multitask_loss(["classification"], classification_weight=2.0)
    assert isinstance(made, fastloss.nn.YOLOv12MultiTaskLoss) and made(*heads()["classification"]) == 2 * alone("classification")


def test_tasks_refuse():
    for tasks in (["depth"], [], ["detection", "depth"]):
        with pytest.raises(ValueError, match="'detection', 'segmentation', 'classification'"):
            YOLOv12MultiTaskLoss(tasks)
    assert YOLOv12MultiTaskLoss("detection").tasks == ["detection"]
    module = YOLOv12MultiTaskLoss(["classification"], num_classification_classes=4)
    with pytest.raises(ValueError, match=r"2 \(classification\).*\(3,\)"):
        module(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(B, 4\).*\(2, 3\)"):
        module(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(TypeError, match="input must be a Tensor, got list"):
        module([1.0], torch.zeros(1))
    with pytest.raises(ValueError, match="atss"):
        YOLOv12MultiTaskLoss(["detection"], assigner="atss")


# The example


def test_example():
    spec = importlib.util.spec_from_file_location("detector", Path(__file__).parents[1] / "examples" / "detector.py")
    detector = sys.modules["detector"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(detector)
    for assigner in ASSIGNERS:
        result = detector.train(6, assigner, held_out=2)
        assert result.apart < 1e-9 and result.losses[-1] < 0.8 * result.losses[0] and result.before < 0.2
    images, objects = detector.draw(4, torch.Generator().manual_seed(1))
    assert images.shape == (4, 1, 64, 64) and (objects[:, :, 3:] >= objects[:, :, 1:3]).all() and objects[:, 0, 1:].sum(1).all()
    points, stride = ours.anchor_points((64, 64), dtype=torch.float64)

    def certain(images):
        """Every anchor in an object says that it is there."""
        corners = 64 * objects[:, :, None, 1:]
        inside = ((points >= corners[..., :2]) & (points <= corners[..., 2:])).all(-1) & (corners.sum(-1) > 0)
        first = inside.int().argmax(1)
        mine = objects.gather(1, first[..., None].expand(-1, -1, 5))
        sides = torch.cat([points - 64 * mine[..., 1:3], 64 * mine[..., 3:] - points], -1) / stride
        scores = torch.where(inside.any(1)[..., None] & (mine[..., :1] == torch.arange(2)), 9.0, -9.0)
        position = sides.clamp(0, 6.999)[..., None]
        chance = (1 - (position - torch.arange(8)).abs()).clamp_min(1e-30)  # a distribution with this mean
        return torch.cat([chance.log().flatten(-2), scores.double()], -1)

    assert detector.average_precision(certain, images, objects) > 0.7
    assert detector.main(["--steps", "1"]) == 1
