"""Detectors: the assignment of anchors, the loss of boxes and classes and that of distances against their definitions, on every backend."""

from __future__ import annotations

import functools
import math
import random
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastloss.functional as ours
from fastloss import assign as engine
from fastloss.cases import LAYOUTS
from fastloss.detection_cases import OBJECTS, VALUES, DetectionCase
from fastloss.fuzz import DTYPES, run
from fastloss.nn import TaskAlignedAssigner
from fastloss.oracle import Recorder, check
from graphs import recording
from test_memory import poisoned

ENGINE = "detection"
ASSIGNERS = ("source", "tood")
both = pytest.mark.parametrize("assigner", ASSIGNERS)


# The definitions: one image, object and anchor after the other


def iou(a, b):
    """Of one box with another, and its complete form (torch scalars)."""
    width, height = torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]), torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])
    inter = width * height if width > 0 and height > 0 else torch.zeros((), dtype=a.dtype)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    plain = inter / (union + 1e-7)
    around = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).square().sum() + 1e-7
    apart = ((a[:2] + a[2:] - b[:2] - b[2:]) / 2).square().sum() / around
    angle = [torch.atan((x[2] - x[0]) / (x[3] - x[1])) if x[3] > x[1] else (torch.pi / 2 if x[2] > x[0] else 0.0) for x in (a, b)]
    v = torch.as_tensor(4 / math.pi**2 * (angle[0] - angle[1]) ** 2)
    weight = (v / (1 - plain + v + 1e-7)).detach()
    return plain, plain - apart - weight * v


def assigned(scores, boxes, points, labels, objects, valid, assigner, topk=10, alpha=0.5, beta=6.0):
    """For probabilities `scores`: by image and anchor (object, weight), or None."""
    result = []
    for image, predicted in enumerate(boxes):
        worth = {}  # (object, anchor): (what decides between objects, worth, IoU)
        for j, box in enumerate(objects[image]):
            if not valid[image, j]:
                continue
            found = [tuple(map(float, iou(other, box))) for other in predicted.detach()]
            inside = [bool((box[:2] <= p).all() and (p <= box[2:]).all()) for p in points]
            score = scores[image, :, labels[image, j]].detach().tolist()
            if assigner == "source":
                best = sorted(range(len(found)), key=lambda a: (-found[a][0], a))[:topk]
                for a in range(len(found)):
                    if inside[a] or a in best:
                        worth[j, a] = (alpha * score[a] + beta * found[a][1],) * 2 + (0.0,)
            else:
                align = [s**alpha * f[0] ** beta if i else 0.0 for s, f, i in zip(score, found, inside)]
                for a in sorted(range(len(align)), key=lambda a: (-align[a], a))[:topk]:
                    worth[j, a] = found[a][0] if align[a] > 0 else 0.0, align[a], found[a][0]
        chosen = []
        for a in range(len(predicted)):
            rivals = [(-value[0], j) for (j, other), value in worth.items() if other == a and value[0] > 0]
            chosen.append(min(rivals)[1] if rivals else None)
        weights = []
        for a, j in enumerate(chosen):
            mine = [worth[j, other] for other, k in enumerate(chosen) if k == j and j is not None]
            full = assigner == "source" or j is None
            weights.append(1.0 if full else worth[j, a][1] * max(m[2] for m in mine) / (max(m[1] for m in mine) + 1e-9))
        result.append(list(zip(chosen, weights)))
    return result


def detection(input, target, num_classes, input_shape, reg_max, assigner="source", topk=10, train_negatives=False):
    """The loss by its definition, in float64."""
    height, width = input_shape
    points = [((x + 0.5) * s, (y + 0.5) * s, s) for s in (8, 16, 32) for y in range(height // s) for x in range(width // s)]
    where = torch.tensor(points, dtype=torch.float64)
    chance = input[..., : 4 * reg_max].unflatten(-1, (4, reg_max)).softmax(-1)
    offset = where[:, 2:] * (chance * torch.arange(reg_max)).sum(-1)
    boxes = torch.cat([where[:, :2] - offset[..., :2], where[:, :2] + offset[..., 2:]], -1)
    logits = input[..., 4 * reg_max :]
    objects = target[..., 1:] * torch.tensor(input_shape[::-1] * 2)
    valid, labels = target[..., 1:].sum(-1) > 0, target[..., 0].long()
    if not valid.any() and not train_negatives:
        return (0 * input).sum()
    found = assigned(logits.sigmoid(), boxes, where[:, :2], labels, objects, valid, assigner, topk)
    scores = torch.zeros_like(logits)
    box = dfl = count = 0.0
    for image, anchors in enumerate(found):
        for a, (j, weight) in enumerate(anchors):
            if j is None:
                continue
            scores[image, a, labels[image, j]] = weight
            count += weight
            truth = objects[image, j]
            box = box + weight * (1 - iou(boxes[image, a], truth)[1])
            sides = torch.cat([where[a, :2] - truth[:2], truth[2:] - where[a, :2]]) / where[a, 2]
            for side, t in enumerate(sides.clamp(0, reg_max - 1.01)):
                log_prob = input[image, a, side * reg_max : (side + 1) * reg_max].log_softmax(0)
                left = int(t)
                dfl = dfl - weight * ((left + 1 - t) * log_prob[left] + (t - left) * log_prob[left + 1])
    p = torch.sigmoid(logits)
    miss = (1 - (p * scores + (1 - p) * (1 - scores))) ** 2
    cls = (miss * F.binary_cross_entropy(p, scores, reduction="none")).mean(-1).sum()
    return (7.5 * box + 0.5 * cls + 1.5 * dfl) / max(count, 1.0)


def crowd(images=2, count=5, size=(64, 64), classes=3, dtype=torch.float64, seed=0):
    """Scores, boxes, points, labels, objects and which are there."""
    g = torch.Generator().manual_seed(seed)
    points, stride = ours.anchor_points(size, dtype=dtype)
    reach = 1.5 * stride * torch.rand((images, len(points), 4), generator=g, dtype=dtype)
    boxes = torch.cat([points - reach[..., :2], points + reach[..., 2:]], -1)
    middle, sides = (torch.rand((images, count, 2), generator=g, dtype=dtype) for _ in range(2))
    objects = 64 * torch.cat([middle - sides / 3, middle + sides / 3], -1)
    labels = torch.randint(classes, (images, count), generator=g)
    scores = torch.randn((images, len(points), classes), generator=g, dtype=dtype)
    return scores, boxes, points, labels, objects, torch.rand((images, count), generator=g) < 0.8


@functools.cache
def definition_of(assigner, count, topk, dtype, seed):
    """The assignment of a crowd, for every backend to be compared with."""
    scores, *others = (t.double() if t.is_floating_point() else t for t in crowd(count=count, dtype=dtype, seed=seed))
    return assigned(scores.sigmoid(), *others, assigner, topk)


# The assigner


@both
@pytest.mark.parametrize(("count", "topk"), [(5, 10), (9, 2), (1, 200), (0, 10)])
def test_assignment_is_its_definition(backend, assigner, count, topk):
    for dtype, seed in ((torch.float64, 0), (torch.float32, 1)):
        given = crowd(count=count, dtype=dtype, seed=seed)
        got = TaskAlignedAssigner(topk, assigner=assigner, backend=backend)(*given)
        wanted = definition_of(assigner, count, topk, dtype, seed)
        assert got.index.tolist() == [[-1 if j is None else j for j, _ in image] for image in wanted]
        assert count < 2 or 0 < got.foreground.sum() < got.foreground.numel()
        weights = torch.tensor([[0.0 if j is None else weight for j, weight in image] for image in wanted], dtype=dtype)
        torch.testing.assert_close(got.weight, weights, rtol=1e-5, atol=1e-6)
        assert torch.equal(got.foreground, got.index >= 0) and not got.weight[~got.foreground].any()
        for image, a in got.foreground.nonzero().tolist():
            j = got.index[image, a]
            assert got.labels[image, a] == given[3][image, j] and torch.equal(got.boxes[image, a], given[4][image, j])
            assert got.scores(3)[image, a, got.labels[image, a]] == got.weight[image, a]
        assert (got.labels[~got.foreground] == -1).all() and torch.equal(got.scores(3).sum(-1), got.weight)
        probable = TaskAlignedAssigner(topk, assigner=assigner, backend=backend, from_logits=False)
        assert torch.equal(probable(given[0].sigmoid(), *given[1:]).index, got.index)


@both
def test_first_of_equals(backend, assigner):
    scores, boxes, points, labels, objects, valid = crowd(1, 3, dtype=torch.float32)
    # Two equal objects, the first of which is padding; then all anchors with one box and point.
    objects[:, 2] = objects[:, 1] = objects[:, 0]
    labels[:] = 1
    module = TaskAlignedAssigner(4, assigner=assigner, backend=backend)
    found = module(scores, boxes, points, labels, objects, torch.tensor([[False, True, True]]))
    assert set(found.index.unique().tolist()) == {-1, 1}
    scores, points = torch.zeros_like(scores), points[:1].expand_as(points)
    boxes = torch.tensor([0.0, 0.0, 8.0, 8.0]).expand_as(boxes)
    around, beside = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), torch.tensor([[[5.0, 0.0, 8.0, 8.0]]])
    many = boxes.shape[1]
    for box, wanted in ((around, many if assigner == "source" else 4), (beside, 4 if assigner == "source" else 0)):
        found = module(scores, boxes, points, labels[:, :1], box)
        assert found.foreground[0].nonzero().flatten().tolist() == list(range(wanted))
    # A better one that comes last takes the place of the last of the equals, and NaN has none.
    boxes = boxes.clone()
    boxes[0, :-1] = torch.tensor([0.0, 0.0, 8.0, 8.0] if assigner == "source" else [0.0, 0.0, 4.0, 8.0])
    boxes[0, -1] = torch.tensor([4.0, 0.0, 8.0, 8.0] if assigner == "source" else [0.0, 0.0, 8.0, 8.0])
    boxes[0, 1] = math.nan
    found = module(scores, boxes, points, labels[:, :1], beside if assigner == "source" else around)
    assert found.foreground[0].nonzero().flatten().tolist() == [0, 2, 3, many - 1]


@both
def test_objects_at_a_time(assigner, monkeypatch):
    """What other backends take in parts gives the same as all at once."""
    given = crowd(2, 7)
    wanted = TaskAlignedAssigner(3, assigner=assigner, backend="eager")(*given)
    calls = []
    monkeypatch.setattr(engine, "_best", lambda *args, inner=engine._best: calls.append(args[3].shape[1]) or inner(*args))
    monkeypatch.setattr(engine, "MOST_PAIRS", 3 * given[1].shape[:2].numel())
    got = TaskAlignedAssigner(3, assigner=assigner, backend="cuda")(*given)
    assert calls == [3, 3, 1] and torch.equal(got.index, wanted.index)
    torch.testing.assert_close(got.weight, wanted.weight, rtol=1e-12, atol=0)


@both
def test_layouts_dtypes_and_threads(assigner):
    given = crowd(3, 6, dtype=torch.float32)
    module = TaskAlignedAssigner(assigner=assigner, backend="cpu")
    wanted = module(*given)
    for layout in LAYOUTS:
        if "expanded" in layout:
            continue
        with poisoned():
            found = module(*(LAYOUTS[layout](t)[1] if t.is_floating_point() else t for t in given))
        assert torch.equal(found.index, wanted.index) and torch.equal(found.weight, wanted.weight)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(module(*given).weight, wanted.weight)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        narrow = given[0].to(dtype)
        found = module(narrow, *given[1:])
        assert found.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(found.index, module(narrow.to(found.weight.dtype), *given[1:]).index)


@both
def test_nan_is_background(backend, assigner):
    scores, boxes, points, labels, objects, valid = crowd(1, 4)
    before = TaskAlignedAssigner(assigner=assigner, backend=backend)(scores, boxes, points, labels, objects, valid)
    assert before.foreground[0, :40].any()
    boxes[0, :40] = math.nan
    scores[0, 40:50] = math.nan
    got = TaskAlignedAssigner(assigner=assigner, backend=backend)(scores, boxes, points, labels, objects, valid)
    assert not got.foreground[0, :50].any() and got.foreground.any() and got.weight.isfinite().all()


def test_assignment_of_many_objects_needs_no_cube():
    """A small share of one float for each image, object and anchor."""

    def resident(key):
        return 1024 * int(re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])

    given = crowd(2, 200, (640, 640), dtype=torch.float32)
    module = TaskAlignedAssigner()
    module(*given)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    module(*given)
    assert resident("VmHWM") - before < 4e6 < 4 * 2 * 200 * 8400 / 3


def test_opcheck():
    scores, boxes, points, labels, objects, valid = crowd(dtype=torch.float32)
    args = [scores, boxes.mT.contiguous(), points.mT.contiguous(), labels, objects, valid, True, True, 10, 0.5, 6.0]
    torch.library.opcheck(torch.ops.fastloss.assign.cpu, tuple(args))
    for place, bad, error in ((1, boxes, RuntimeError), (2, points.double().mT.contiguous(), RuntimeError), (8, 0, RuntimeError),
                              (3, labels + 3, IndexError), (3, labels - 3, IndexError), (5, valid[:, :2], RuntimeError)):
        with pytest.raises(error, match="assign: "):
            torch.ops.fastloss.assign.cpu(*args[:place], bad, *args[place + 1 :])


def test_assigner_refuses():
    given = crowd(1, 2)
    for options in ({"topk": 0}, {"assigner": "atss"}, {"alpha": -1.0}, {"beta": -0.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TaskAlignedAssigner(**options)
    wrong = [
        (1, given[1][:, 1:], ValueError, r"boxes must have shape \(1, 84, 4\).*\(1, 83, 4\)"),
        (3, given[3] + 5, IndexError, "out of bounds"),
        (2, None, TypeError, "anchors"), (0, given[0].long(), NotImplementedError, "int64"), (5, given[5][:, :1], ValueError, "valid"),
        (3, given[3][0], ValueError, "labels"),
    ]
    for place, bad, error, words in wrong:
        with pytest.raises(error, match=words):
            TaskAlignedAssigner()(*given[:place], bad, *given[place + 1 :])


# The loss of boxes and classes


def test_cases(loss, backend):
    cases = [
        DetectionCase(shape=shape, dtype=dtype, values=values, objects=objects, layout=layout, target_layout=layout, seed=seed,
                      params=tuple({"assigner": assigner, "train_negatives": seed == 1, "topk": 10 - 7 * seed}.items())).of(loss)
        for shape in ((2, 3), (1, 1), (3, 6), (0, 2), (2, 0))
        for dtype in DTYPES
        for values in VALUES
        for objects in OBJECTS
        for layout in LAYOUTS
        for assigner in ASSIGNERS
        for seed in (0, 1)
    ]
    for case in random.Random(0).sample(cases, {"triton": 4, "cuda": 12}.get(backend, 40)):
        check(case, None, backend)


@pytest.mark.slow
def test_random_cases(loss, backend):
    finding = run(loss, backend, examples=8 if backend == "triton" else 80, seed=11)
    assert finding is None, finding.script


@both
def test_loss_is_its_definition(backend, assigner):
    for seed, kind in enumerate(("random", "small", "without size")):
        options = {"assigner": assigner, "topk": 3, "input_shape": (32, 64)}
        case = DetectionCase(shape=(2, 4), dtype="float64", objects=kind, seed=seed, params=tuple(options.items()))
        call = case.of("yolov12_detection").build()
        x, target = call.by_name["input"].requires_grad_(), call.by_name["target"]
        got = ours.yolov12_detection_loss(x, target, **call.options, backend=backend)
        wanted = detection(x, target, **call.options)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in (got, wanted)), rtol=1e-7, atol=1e-10)


def test_without_objects(backend):
    options = {"num_classes": 2, "input_shape": (32, 32), "reg_max": 4, "backend": backend}
    x = torch.randn(2, 21, 18, dtype=torch.float64, requires_grad=True)
    for target in (torch.zeros(2, 3, 5), torch.zeros(2, 0, 5)):
        for assigner in ASSIGNERS:
            value = ours.yolov12_detection_loss(x, target, assigner=assigner, **options)
            assert value == 0 and not torch.autograd.grad(value, x)[0].any()
            value = ours.yolov12_detection_loss(x, target, assigner=assigner, train_negatives=True, **options)
            wanted = 0.5 * (x[..., 16:].sigmoid() ** 2 * F.softplus(x[..., 16:])).sum() / 2
            torch.testing.assert_close(value, wanted)
            torch.testing.assert_close(torch.autograd.grad(value, x)[0], torch.autograd.grad(wanted, x)[0])
    assert ours.yolov12_detection_loss(x[:0], torch.zeros(0, 1, 5), **options) == 0


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_boxes_without_size_are_finite(backend, assigner, dtype):
    x = torch.zeros(1, 21, 18, dtype=getattr(torch, dtype))
    x[..., 0:16:4] = 40.0  # every distance is 0
    target = torch.tensor([[[0, 0.125, 0.125, 0.125, 0.125], [1, 0.5, 0.5, 0.5, 0.9], [1, 0.375, 0.1, 0.375, 0.1]]])
    x.requires_grad_()
    value = ours.yolov12_detection_loss(x, target, 2, (32, 32), 4, assigner=assigner, backend=backend)
    assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()


@both
def test_all_points_give_what_chosen_ones_give(assigner):
    """Where values may not be looked at every point takes part, in torch.func and torch.compile for example."""
    call = DetectionCase(shape=(2, 3), params=(("assigner", assigner),)).of("yolov12_detection").build()
    function = lambda x: ours.yolov12_detection_loss(x, call.by_name["target"], **call.options)  # noqa: E731
    x = call.by_name["input"].requires_grad_()
    value = function(x)
    (wanted,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(torch.func.grad(function)(x.detach()), wanted)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(function))(torch.stack([x.detach()] * 2))[1], wanted)
    torch._dynamo.reset()
    graphs: list[list[str]] = []
    compiled = torch.compile(function, backend=recording(graphs), fullgraph=True)(x)
    torch.testing.assert_close(compiled, value)
    torch.testing.assert_close(torch.autograd.grad(compiled, x)[0], wanted)
    assert {"assign.cpu", "row_forward.cpu", "box_forward.cpu", "elementwise_forward.cpu"} == set(graphs[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert function(x.detach().bfloat16()).dtype == torch.float32
    meta = torch.empty_like(x, device="meta", requires_grad=True)
    value = ours.yolov12_detection_loss(meta, call.by_name["target"].to("meta"), **call.options, backend="eager")
    assert torch.autograd.grad(value, meta)[0].shape == x.shape


def test_second_derivatives():
    call = DetectionCase(shape=(1, 2), dtype="float64").of("yolov12_detection").build()
    x = call.by_name["input"].requires_grad_()
    both = []
    for backend in ("cpu", "eager"):
        value = ours.yolov12_detection_loss(x, call.by_name["target"], **call.options, backend=backend)
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        both.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert both[0].abs().max() > 0
    torch.testing.assert_close(*both)


BAD = [
    ({"num_classes": 0}, ValueError, "num_classes"), ({"assigner": "atss"}, ValueError, "'source', 'tood'.*'atss'"),
    ({"topk": 0}, ValueError, "topk"), ({"backend": "gpu"}, ValueError, "gpu"),
    ({"reg_max": 5}, ValueError, r"\(B, 21, 22\).*\(1, 21, 18\)"), ({"input_shape": (32, 64)}, ValueError, r"\(B, 42, 18\)"),
    ({"target": torch.zeros(2, 1, 5)}, ValueError, r"\(2, 1, 5\)"), ({"target": torch.zeros(1, 1, 4)}, ValueError, r"\(1, 1, 4\)"),
    ({"target": torch.ones(1, 1, 5) * 2}, IndexError, "out of bounds"), ({"target": [[0]]}, TypeError, "target must be a Tensor, got list"),
    ({"input": torch.zeros(1, 21, 18).long()}, NotImplementedError, "int64"),
    ({"target": torch.zeros(1, 1, 5, device="meta")}, RuntimeError, "meta"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD, ids=str)
def test_bad_calls(options, error, words):
    given = {"input": torch.zeros(1, 21, 18), "target": torch.zeros(1, 1, 5), "num_classes": 2, "input_shape": (32, 32), "reg_max": 4}
    with pytest.raises(error, match=words):
        ours.yolov12_detection_loss(**(given | options))


# Distribution focal loss


def test_distances_run_on_the_row_engine(compiled):
    x, t = torch.randn(5, 8, requires_grad=True), torch.rand(5) * 9
    with Recorder() as recorder:
        torch.autograd.grad(ours.dfl_loss(x, t, backend=compiled), x)
    assert recorder.ops == [f"row_forward.{compiled}", f"row_backward.{compiled}"]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_weighted_distances(backend, reduction):
    x, w = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True), torch.rand(3, 1).double()
    t = torch.rand(3, 4).double() * 5 - 0.3
    got = ours.dfl_loss(x, t, w.requires_grad_(), reduction, backend=backend)
    position = t.clamp(0, 4.99)
    left = position.floor().long()
    log_prob = x.log_softmax(-1)
    near, far = (-log_prob.gather(2, bins[..., None])[..., 0] for bins in (left, left + 1))
    wanted = ((left + 1 - position) * near + (position - left) * far) * w
    wanted = wanted.mean() if reduction == "mean" else wanted.sum() if reduction == "sum" else wanted
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn_like(wanted)
    for mine, theirs in zip(torch.autograd.grad(got, [x, w], upstream), torch.autograd.grad(wanted, [x, w], upstream)):
        torch.testing.assert_close(mine, theirs)


def test_distances_at_the_ends(backend):
    x = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    value = ours.dfl_loss(x, torch.tensor([-3.0, 0.0, 100.0, 2.0]).double(), reduction="none", backend=backend)
    torch.testing.assert_close(value, torch.full((4,), math.log(5)).double())
    (grad,) = torch.autograd.grad(value.sum(), x)
    wanted = torch.tensor([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0.01, 0.99], [0, 0, 1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(grad, 0.2 - wanted)
    assert ours.dfl_loss(x[:0], torch.zeros(0).double(), backend=backend) == 0
    assert ours.dfl_loss(x[:, :1], torch.ones(4).double(), backend=backend) == 0
    for offset in (1e4, 1e6):  # where the log-sum-exp less the logit would cancel
        moved = ours.dfl_loss(torch.tensor([[0.0, 1.0, 2.0]]) + offset, torch.tensor([0.5]), backend=backend)
        torch.testing.assert_close(moved, torch.tensor(math.log(1 + math.e + math.e**2) - 0.5))
    never = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    value = ours.dfl_loss(never, torch.tensor([0.0]), backend=backend)
    torch.testing.assert_close(value, torch.tensor(math.log(1 + math.e)))
    assert torch.autograd.grad(value, never)[0].isfinite().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_distances_are_rounded_once(backend, dtype):
    """A distribution that is right has a gradient near 0, in which no rounding of 1 is seen."""
    x = torch.tensor([[5.0, 5.0078125, -8.0, -8.0]], dtype=getattr(torch, dtype), requires_grad=True)
    (grad,) = torch.autograd.grad(ours.dfl_loss(x, torch.tensor([0.5]), backend=backend), x)
    wide = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(ours.dfl_loss(wide, torch.tensor([0.5]).double(), backend="eager"), wide)
    torch.testing.assert_close(grad.double(), wanted, rtol=8e-3, atol=1e-7)
