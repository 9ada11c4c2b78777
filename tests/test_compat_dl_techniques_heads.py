"""dl_techniques's losses of language models, self-distillation and detectors: formulas written out, numbers by hand, errors."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

import fastloss.functional as ours
from fastloss.compat import dl_techniques as dl
from test_compat_dl_techniques import SIGNATURES as OTHERS

ANY, MEAN = inspect.Parameter.empty, "sum_over_batch_size"
CENTRED = {"out_dim": ANY, "student_temp": 0.1, "teacher_temp": 0.04, "center_momentum": 0.9}
CLASSES = {"num_detection_classes": None, "num_segmentation_classes": None, "num_classification_classes": None, "num_classes": 80,
           "input_shape": (640, 640)}
SIGNATURES = {
    "NanoVLMLoss": {"ignore_index": 0, "label_smoothing": 0.0, "from_logits": True, "reduction": MEAN, "name": "nanovlm_loss"},
    "StableMaxCrossEntropy": {"from_logits": True, "ignore_index": -100, "epsilon": 1e-30, "name": None, "reduction": MEAN},
    "HRMLoss": {"lm_loss_type": "stable_max", "q_loss_weight": 0.5, "ignore_index": -100, "name": None, "reduction": MEAN},
    "create_hrm_loss": {"lm_loss_type": "stable_max", "q_loss_weight": 0.5, "ignore_index": -100},
    "DINOLoss": {**CENTRED, "name": "dino_loss", "reduction": MEAN},
    "iBOTPatchLoss": {**CENTRED, "name": "ibot_loss", "reduction": MEAN},
    "DiceFocalSegmentationLoss": {"num_classes": 1, "dice_weight": 0.5, "focal_weight": 0.5, "focal_alpha": 0.25, "focal_gamma": 2.0,
                                  "from_logits": True, "name": "dice_focal_segmentation_loss", "reduction": MEAN},
    "ClassificationFocalLoss": {"alpha": 0.25, "gamma": 2.0, "from_logits": True, "name": "classification_focal_loss", "reduction": MEAN},
    "YOLOv12MultiTaskLoss": {
        "tasks": ANY, **CLASSES, "use_uncertainty_weighting": False, "detection_weight": 1.0, "segmentation_weight": 1.0,
        "classification_weight": 1.0, "reg_max": 16, "name": "yolov12_multitask_loss", "reduction": MEAN,
    },
    "create_yolov12_multitask_loss": {"tasks": ANY, **CLASSES},
    "create_yolov12_coco_loss": {"input_shape": (640, 640)},
    "create_yolov12_crack_loss": {"input_shape": (640, 640)},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = inspect.signature(getattr(dl, name)).parameters
    found = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(found.items()) == list(SIGNATURES[name].items())


def test_every_name_has_a_signature():
    assert set(dl.__all__) == {*SIGNATURES, *OTHERS}
    assert len(dl.__all__) == len(set(dl.__all__))


def real(*shape):
    return torch.randn(shape, dtype=torch.float64)


def agree(made, definition, *tensors):
    """Equal values and gradients of all tensors in float64."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    got, wanted = made(*leaves), definition(*leaves)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)
    for mine, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves)):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)


# Language models

TOKENS = torch.tensor([[3, 2, 0, 1], [0, 4, 4, 0]])


def next_token(y, log_p, smoothing=0.0):
    log_p, y = log_p[:, :-1], y[:, 1:]
    nll = -log_p.gather(2, y.unsqueeze(2)).squeeze(2)
    return ((1 - smoothing) * nll - smoothing * log_p.mean(2)) * (y != 0)


def test_nano_vlm():
    x = real(2, 4, 5)
    agree(lambda x: dl.NanoVLMLoss()(TOKENS, x), lambda x: next_token(TOKENS, x.log_softmax(2)).sum() / 4, x)
    for reduction in ("sum", None):
        made = dl.NanoVLMLoss(label_smoothing=0.1, reduction=reduction)
        agree(lambda x: made(TOKENS, x).sum(), lambda x: next_token(TOKENS, x.log_softmax(2), 0.1).sum(), x)
    assert dl.NanoVLMLoss(reduction="none")(TOKENS, x).shape == (2, 3)
    p = x.softmax(2)
    made = dl.NanoVLMLoss(0, 0.1, False)
    agree(lambda p: made(TOKENS, p), lambda p: next_token(TOKENS, (p + 1e-8).log(), 0.1).sum() / 4, p)
    assert dl.NanoVLMLoss()(torch.tensor([[3, 2, 0]]), torch.zeros(1, 3, 4)).item() == pytest.approx(math.log(4))
    assert dl.NanoVLMLoss()(torch.zeros(2, 4, dtype=torch.long), x) == 0
    assert dl.NanoVLMLoss(-100)(TOKENS, x) != dl.NanoVLMLoss()(TOKENS, x)
    with pytest.raises(ValueError, match=r"input must be \(B, T, V\)"):
        dl.NanoVLMLoss()(TOKENS, x[0])
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\]"):
        dl.NanoVLMLoss(label_smoothing=-0.1)


def stable(x):
    s = torch.where(x >= 0, x + 1, 1 / (1 - torch.where(x < 0, x, 0.0)))
    return torch.log(s / s.sum(-1, keepdim=True))


def test_stablemax():
    x, y = real(2, 4, 5), torch.tensor([[3, 2, -100, 1], [0, 4, 4, -100]])
    kept = y >= 0

    def definition(x):
        return -(stable(x).gather(2, y.clamp_min(0).unsqueeze(2)).squeeze(2) * kept)

    agree(lambda x: dl.StableMaxCrossEntropy()(y, x), lambda x: definition(x).mean(), x)
    torch.testing.assert_close(dl.StableMaxCrossEntropy(reduction="none")(y, x), definition(x))
    by_hand = dl.StableMaxCrossEntropy()(torch.tensor([0]), torch.tensor([[3.0, -1.0, 0.0]]))
    assert by_hand.item() == pytest.approx(math.log(5.5 / 4), rel=1e-6)
    with pytest.raises(ValueError, match=r"y_pred must be \(..., V\) for y_true \(2, 4\), got \(2, 3, 5\)"):
        dl.StableMaxCrossEntropy()(y, x[:, :3])
    with pytest.raises(ValueError, match="epsilon must be positive"):
        dl.StableMaxCrossEntropy(epsilon=0.0)


@pytest.mark.parametrize("kind", ["stable_max", "softmax", "cross_entropy"])
@pytest.mark.parametrize("mode", ["token", "sequence_sum", "source"])
def test_hrm(kind, mode):
    y = torch.tensor([[3, 2, -100], [0, 4, 4], [-100, -100, -100]])
    x, halt, further, target = real(3, 3, 5), real(3), real(3), torch.rand(3, dtype=torch.float64)
    x[0] = 5 * F.one_hot(y[0].clamp_min(0), 5)  # all right
    x[1, 0, 3] = 9.0  # one wrong
    kept, wanted = y >= 0, torch.tensor([1.0, 0.0, float(mode == "sequence_sum")], dtype=torch.float64)

    def definition(x, halt, further=None):
        log_p = stable(x) if kind == "stable_max" else x.log_softmax(2)
        nll = -(log_p.gather(2, y.clamp_min(0).unsqueeze(2)).squeeze(2) * kept)
        counts, how = kept.sum(1).clamp_min(1), "sum" if mode == "sequence_sum" else "mean"
        lm = (nll.sum(1) / counts).sum() if mode == "sequence_sum" else nll.sum() / counts.sum()
        lm = lm / 9 if mode == "source" and kind == "stable_max" else lm
        rest = F.binary_cross_entropy_with_logits(halt, wanted, reduction=how)
        if further is not None:
            rest = rest + F.binary_cross_entropy_with_logits(further, target, reduction=how)
        return lm + 0.7 * rest

    how = {"source_compat": True} if mode == "source" else {"lm_reduction": mode}
    made, truth = dl.create_hrm_loss(kind, 0.7, **how), {"labels": y, "halted": torch.zeros(3)}
    agree(lambda x, h: made(truth, {"logits": x, "q_halt_logits": h}), definition, x, halt)

    def both(x, h, g):
        return made(truth, {"logits": x, "q_halt_logits": h.view(3, 1), "q_continue_logits": g, "target_q_continue": target})

    agree(both, definition, x, halt, further)
    torch.testing.assert_close(made(truth, {"logits": x, "q_halt_logits": halt, "q_continue_logits": further}), definition(x, halt))


def test_hrm_refusals():
    with pytest.raises(ValueError, match="y_true must be a dictionary with labels, got Tensor"):
        dl.HRMLoss()(TOKENS, {})
    with pytest.raises(ValueError, match="y_pred must be a dictionary with q_halt_logits|with logits, q_halt_logits, got"):
        dl.HRMLoss()({"labels": TOKENS}, {"logits": real(2, 4, 5)})


# Self-distillation


def distilled(student, teacher, center, ts=0.1, tt=0.04):
    return -(((teacher - center) / tt).softmax(-1) * (student / ts).log_softmax(-1)).sum(-1)


def test_dino():
    s, t = real(6, 5), real(6, 5)
    made = dl.DINOLoss(5, 0.2, 0.3, 0.75)
    agree(lambda s: made(t, s), lambda s: distilled(s, t, 0.0, 0.2, 0.3).mean(), s)
    assert made.center.eq(0).all() and made.center.shape == (1, 5)
    made.double().update_center(t)
    torch.testing.assert_close(made.center, 0.25 * t.mean(0, keepdim=True))
    agree(lambda s: made(t, s), lambda s: distilled(s, t, 0.25 * t.mean(0), 0.2, 0.3).mean(), s)
    made.teacher_temp = 0.5
    agree(lambda s: made(t, s), lambda s: distilled(s, t, 0.25 * t.mean(0), 0.2, 0.5).mean(), s)
    automatic = dl.DINOLoss(5, auto_update=True).double()
    torch.testing.assert_close(automatic(t, s), distilled(s, t, 0.0).mean())  # the centre from before
    torch.testing.assert_close(automatic.center, 0.1 * t.mean(0, keepdim=True))
    leaf = t.clone().requires_grad_()
    assert not made(leaf, s).requires_grad  # the teacher learns nothing
    assert dl.DINOLoss(8)(torch.ones(4, 8), torch.zeros(4, 8)).item() == pytest.approx(math.log(8))
    assert set(made.get_config()) == set(inspect.signature(dl.DINOLoss).parameters) and made.get_config()["teacher_temp"] == 0.5
    with pytest.raises(ValueError, match="student_temp must be positive"):
        dl.DINOLoss(5, 0.0)
    with pytest.raises(ValueError, match="teacher_temp must be positive"):
        made.teacher_temp = 0.0


def test_ibot():
    s, t, mask = real(2, 4, 5), real(2, 4, 5), torch.tensor([[True, False, True, True], [False, True, False, False]])
    made = dl.iBOTPatchLoss(5).double()
    agree(lambda s: made(t, s, mask), lambda s: distilled(s, t, 0.0)[mask].mean(), s)
    made.update_center(t)
    assert made.center.shape == (1, 1, 5)
    torch.testing.assert_close(made.center, 0.1 * t.mean((0, 1), keepdim=True))
    agree(lambda s: made(t, s, mask=mask), lambda s: distilled(s, t, 0.1 * t.mean((0, 1)))[mask].mean(), s)
    assert made(t, s, torch.zeros_like(mask)) == 0


# Detectors


def focal(x, y, alpha, gamma):
    p = torch.sigmoid(x)
    chance, balance = torch.where(y == 1, p, 1 - p), torch.where(y == 1, alpha, 1 - alpha)
    return -balance * (1 - chance) ** gamma * chance.log()


def dice(p, t):
    return 1 - (2 * (p * t).sum((1, 2)) + 1e-7) / (p.sum((1, 2)) + t.sum((1, 2)) + 1e-7)


def test_dice_focal_segmentation():
    y = torch.randint(2, (3, 6, 5, 1))
    made = dl.DiceFocalSegmentationLoss(1, 0.3, 0.7, 0.4, 1.5, reduction=None)

    def single(x):
        return 0.3 * dice(torch.sigmoid(x), y)[:, 0] + 0.7 * focal(x, y, 0.4, 1.5).mean((1, 2, 3))

    agree(lambda x: made(y, x).sum(), lambda x: single(x).sum(), real(3, 6, 5, 1))
    assert made(y, real(3, 6, 5, 1)).shape == (3,)
    labels = torch.randint(4, (3, 6, 5))
    several = dl.DiceFocalSegmentationLoss(4)

    def definition(x):
        p, t = x.softmax(-1), F.one_hot(labels, 4)
        chance = (p * t).sum(-1)
        return (0.5 * dice(p, t).mean(1) - 0.5 * ((1 - chance) ** 2 * chance.log()).mean((1, 2))).mean()

    agree(lambda x: several(labels, x), definition, real(3, 6, 5, 4))


def test_classification_focal():
    y = torch.randint(2, (6, 3))
    agree(lambda x: dl.ClassificationFocalLoss(0.4, 1.5)(y, x), lambda x: focal(x, y, 0.4, 1.5).mean(), real(6, 3))
    assert dl.ClassificationFocalLoss(reduction="none")(y, real(6, 3)).shape == (6,)
    agree(lambda x: dl.ClassificationFocalLoss()(y[:, 0], x), lambda x: focal(x, y[:, :1], 0.25, 2.0).mean(), real(6, 1))
    agree(
        lambda x: dl.ClassificationFocalLoss(from_logits=False)(y, torch.sigmoid(x)), lambda x: focal(x, y, 0.25, 2.0).mean(), real(6, 3)
    )


def test_yolo_routes_by_dimensions():
    shape, classes = (64, 64), 2
    boxes, y = real(2, 84, 4 * 8 + classes), torch.rand(2, 3, 5, dtype=torch.float64).sort(-1).values
    y[..., 0] = torch.randint(classes, (2, 3))
    masks, labels = torch.randint(classes, (2, 6, 5)), torch.randint(2, (2, classes))
    weights = {"detection_weight": 2.0, "segmentation_weight": 3.0, "classification_weight": 4.0}
    tasks = ["detection", "segmentation", "classification"]
    made = dl.create_yolov12_multitask_loss(tasks, num_classes=classes, input_shape=shape, reg_max=8, **weights)
    agree(lambda x: made(y, x), lambda x: 2 * ours.yolov12_detection_loss(x, y, classes, shape, 8), boxes)
    agree(lambda x: made(masks, x), lambda x: 3 * dl.DiceFocalSegmentationLoss(classes)(masks, x), real(2, 6, 5, classes))
    agree(lambda x: made(labels, x), lambda x: 4 * dl.ClassificationFocalLoss()(labels, x), real(2, classes))
    assert {name: float(w) for name, w in made.get_task_weights().items()} == {
        "detection": 2.0, "segmentation": 3.0, "classification": 4.0
    }
    only = dl.YOLOv12MultiTaskLoss(["detection"], num_classes=classes, input_shape=shape, reg_max=8)
    assert only(labels, real(2, classes)) == 0
    learned = dl.YOLOv12MultiTaskLoss(["classification"], use_uncertainty_weighting=True)
    (s,) = learned.parameters()
    with torch.no_grad():
        s.fill_(0.5)
    x = real(2, classes)
    found, plain = learned(labels, x), dl.ClassificationFocalLoss()(labels, x)
    torch.testing.assert_close(found.double(), plain * math.exp(-0.5) + 0.5, rtol=1e-6, atol=0)
    assert float(torch.autograd.grad(found, s)[0]) == pytest.approx(float(1 - plain * math.exp(-0.5)), rel=1e-5)
    assert float(learned.get_task_weights()["classification"]) == pytest.approx(math.exp(-0.5))
    assert set(made.get_config()) == set(inspect.signature(dl.YOLOv12MultiTaskLoss).parameters)
    with pytest.raises(ValueError, match="depth"):
        dl.YOLOv12MultiTaskLoss(["depth"])


def test_yolo_factories():
    coco, crack = dl.create_yolov12_coco_loss((64, 96)), dl.create_yolov12_crack_loss(use_uncertainty_weighting=True)
    assert (coco.num_detection_classes, coco.num_segmentation_classes, coco.input_shape) == (80, 80, (64, 96))
    assert (crack.num_detection_classes, crack.num_segmentation_classes, crack.input_shape) == (1, 1, (640, 640))
    assert list(coco.tasks) == list(crack.tasks) == ["detection", "segmentation"] and len(list(crack.parameters())) == 2
    masks = torch.randint(80, (1, 4, 4))
    assert coco(masks, torch.randn(1, 4, 4, 80)) > 0
