"""Other libraries' names: signatures, defaults, errors, and the values of formulas written out plainly."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fastloss.box_cases import PAIRS
from fastloss.compat import fvcore, torchvision

# Names, and the arguments of each with their defaults, as the libraries document them.
LOSS = {"boxes1": None, "boxes2": None, "reduction": "none", "eps": 1e-7}
SIGNATURES = {
    torchvision: {
        "sigmoid_focal_loss": {"inputs": None, "targets": None, "alpha": 0.25, "gamma": 2, "reduction": "none"},
        "generalized_box_iou_loss": LOSS,
        "distance_box_iou_loss": LOSS,
        "complete_box_iou_loss": LOSS,
        "box_iou": {"boxes1": None, "boxes2": None, "fmt": "xyxy"},
        "generalized_box_iou": {"boxes1": None, "boxes2": None},
        "distance_box_iou": {"boxes1": None, "boxes2": None, "eps": 1e-7},
        "complete_box_iou": {"boxes1": None, "boxes2": None, "eps": 1e-7},
    },
    fvcore: {
        "sigmoid_focal_loss": {"inputs": None, "targets": None, "alpha": -1, "gamma": 2, "reduction": "none"},
        "sigmoid_focal_loss_star": {"inputs": None, "targets": None, "alpha": -1, "gamma": 1, "reduction": "none"},
        "giou_loss": LOSS,
        "diou_loss": LOSS,
        "ciou_loss": LOSS,
    },
}


@pytest.mark.parametrize("module", SIGNATURES, ids=lambda module: module.__name__)
def test_names_and_signatures(module):
    assert set(module.__all__) == set(SIGNATURES[module])
    for name, wanted in SIGNATURES[module].items():
        parameters = inspect.signature(getattr(module, name)).parameters
        found = {n: None if p.default is p.empty else p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
        assert list(found.items()) == list(wanted.items()), name
        assert parameters["backend"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_package_imports_nothing():
    found = "import sys, fastloss.compat; print([name for name in sys.modules if name.startswith('fastloss.compat.')])"
    assert subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def pieces(a: torch.Tensor, b: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    """IoU, and the penalties of the generalised, distance and complete forms."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a.unbind(-1), b.unbind(-1)
    width, height = torch.min(x2, u2) - torch.max(x1, u1), torch.min(y2, v2) - torch.max(y1, v1)
    inter = torch.where((width > 0) & (height > 0), width * height, 0.0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter
    iou = inter / (union + eps)
    across, down = torch.max(x2, u2) - torch.min(x1, u1), torch.max(y2, v2) - torch.min(y1, v1)
    generalized = (across * down - union) / (across * down + eps)
    apart = ((x1 + x2 - u1 - u2) ** 2 + (y1 + y2 - v1 - v2) ** 2) / 4
    distance = apart / (across**2 + down**2 + 1e-7)
    v = 4 / math.pi**2 * (torch.atan((x2 - x1) / (y2 - y1)) - torch.atan((u2 - u1) / (v2 - v1))) ** 2
    alpha = (v / (1 - iou + v + 1e-7)).detach()
    return iou, generalized, distance, distance + alpha * v


PENALTY = {"generalized": 1, "distance": 2, "complete": 3, "giou": 1, "diou": 2, "ciou": 3}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("module", "name"),
    [(torchvision, "generalized_box_iou_loss"), (torchvision, "distance_box_iou_loss"), (torchvision, "complete_box_iou_loss"),
     (fvcore, "giou_loss"), (fvcore, "diou_loss"), (fvcore, "ciou_loss")],
)
def test_box_losses(module, name, reduction):
    a, b = (boxes.requires_grad_() for boxes in PAIRS["random"]((40,), torch.Generator().manual_seed(0)))
    found = pieces(a, b, 1e-7)
    wanted = 1 - found[0] + found[PENALTY[name.split("_")[0]]]
    wanted = {"none": wanted, "mean": wanted.mean(), "sum": wanted.sum()}[reduction]
    got = getattr(module, name)(a, b, reduction)
    torch.testing.assert_close(got, wanted)
    upstream = torch.rand(got.shape, dtype=got.dtype)
    for mine, theirs in zip(torch.autograd.grad(got, [a, b], upstream), torch.autograd.grad(wanted, [a, b], upstream)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"])
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_scores_of_all_pairs(name, batch):
    generator = torch.Generator().manual_seed(0)
    a, b = PAIRS["random"]((*batch, 5), generator)[0], PAIRS["random"]((*batch[-1:], 4), generator)[0]
    found = pieces(a[..., :, None, :], b[..., None, :, :], 0.0)
    penalty = 0.0 if name == "box_iou" else found[PENALTY[name.split("_")[0]]]
    got = getattr(torchvision, name)(a, b)
    assert got.shape == (*batch, 5, 4)
    torch.testing.assert_close(got, found[0] - penalty)
    assert getattr(torchvision, name)(torch.empty(0, 3, 4), torch.empty(2, 4)).shape == (0, 3, 2)


def test_formats_of_box_iou():
    a, b = PAIRS["random"]((6,), torch.Generator().manual_seed(0))
    wanted = torchvision.box_iou(a, b)
    for fmt, place in (("xywh", 0.0), ("cxcywh", 0.5)):
        given = [torch.cat([x[:, :2] + place * (x[:, 2:] - x[:, :2]), x[:, 2:] - x[:, :2]], 1) for x in (a, b)]
        torch.testing.assert_close(torchvision.box_iou(*given, fmt=fmt), wanted)
    with pytest.raises(NotImplementedError, match="xywhr"):
        torchvision.box_iou(a, b, fmt="xywhr")
    with pytest.raises(ValueError, match="xxyy"):
        torchvision.box_iou(a, b, fmt="xxyy")


def focal(x, t, alpha, gamma):
    p = torch.sigmoid(x)
    p_t = p * t + (1 - p) * (1 - t)
    loss = F.binary_cross_entropy_with_logits(x, t, reduction="none") * (1 - p_t) ** gamma
    return loss * (alpha * t + (1 - alpha) * (1 - t)) if alpha >= 0 else loss


def star(x, t, alpha, gamma):
    loss = -F.logsigmoid(gamma * x * (2 * t - 1)) / gamma
    return loss * (alpha * t + (1 - alpha) * (1 - t)) if alpha >= 0 else loss


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("function", "formula", "options"),
    [
        (torchvision.sigmoid_focal_loss, focal, {}),
        (torchvision.sigmoid_focal_loss, focal, {"alpha": -1, "gamma": 1.5}),
        (fvcore.sigmoid_focal_loss, focal, {}),
        (fvcore.sigmoid_focal_loss, focal, {"alpha": 0.3, "gamma": 3.0}),
        (fvcore.sigmoid_focal_loss, focal, {"alpha": -0.5}),
        (fvcore.sigmoid_focal_loss_star, star, {}),
        (fvcore.sigmoid_focal_loss_star, star, {"alpha": 0.25, "gamma": 2.0}),
    ],
)
def test_focal_losses(function, formula, options, reduction):
    x, t = torch.randn(5, 7, dtype=torch.float64, requires_grad=True), (torch.rand(5, 7) < 0.3).double()
    defaults = {n: p.default for n, p in inspect.signature(function).parameters.items() if n in ("alpha", "gamma")}
    wanted = formula(x, t, **{**defaults, **options})
    wanted = {"none": wanted, "mean": wanted.mean(), "sum": wanted.sum()}[reduction]
    got = function(x, t, reduction=reduction, **options)
    torch.testing.assert_close(got, wanted)
    upstream = torch.rand(got.shape, dtype=got.dtype)
    torch.testing.assert_close(torch.autograd.grad(got, x, upstream)[0], torch.autograd.grad(wanted, x, upstream)[0])


@pytest.mark.parametrize("name", [name for name in torchvision.__all__ if name.endswith("loss")])
def test_torchvisions_errors(name):
    boxes = torch.rand(3, 4)
    with pytest.raises(ValueError, match="Invalid Value for arg 'reduction'.*avg"):
        getattr(torchvision, name)(boxes, boxes, reduction="avg")
    if name == "sigmoid_focal_loss":
        with pytest.raises(ValueError, match="Invalid alpha value"):
            torchvision.sigmoid_focal_loss(boxes, boxes, alpha=-0.5)
        with pytest.raises(ValueError, match="Target size"):
            torchvision.sigmoid_focal_loss(boxes, boxes[:1])
    else:
        half = getattr(torchvision, name)(boxes.half(), boxes.half(), reduction="mean")
        assert half.dtype == torch.float32
        empty = torch.empty(0, 4, requires_grad=True)
        value = getattr(torchvision, name)(empty, empty, reduction="mean")
        assert value == 0 and torch.autograd.grad(value, empty)[0].shape == (0, 4)


@pytest.mark.parametrize("name", ["giou_loss", "diou_loss", "ciou_loss"])
def test_fvcores_asserts(name):
    good, bad = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 2.0, 1.0, 1.0])
    with pytest.raises(AssertionError, match="bad box: y1 larger than y2"):
        getattr(fvcore, name)(bad, good)
    with pytest.raises(AssertionError, match="bad box: x1 larger than x2"):
        getattr(fvcore, name)(torch.tensor([2.0, 0.0, 1.0, 1.0]), good)
    getattr(fvcore, name)(good, bad)
    getattr(fvcore, name)(bad.to("meta"), good.to("meta"), backend="eager")  # nothing is looked at
