"""The sums of the overlap engine on every backend, and values, gradients and invariants of the losses made of them."""

from __future__ import annotations

import inspect
import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastloss.functional as ours
from fastloss import overlap
from fastloss._backends import unavailable
from fastloss.cases import LAYOUTS
from fastloss.fuzz import DTYPES, run
from fastloss.oracle import check, evaluate, make_upstream, same_bits
from fastloss.overlap_cases import TARGETS, OverlapCase, choices, targets
from fastloss.regions import power_of
from fastloss.registry import LOSSES
from graphs import recording

ENGINE = "overlap"
PARAMS = {"sigmoid_focal": (0.25, 1.5), "softmax_focal": (1.5,), "amplified": (5.0,), "amplified_sigmoid": (5.0,)}
LABELS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8, torch.bool)


def some(backend: str, cases: list, most: int) -> list:
    """A fixed sample of the cases, smaller on the interpreted backend."""
    most = max(most // 6, 1) if backend == "triton" else most
    return cases if len(cases) <= most else random.Random(0).sample(cases, most)


# The sums themselves


def sums(functor: str, backend: str, shape, dtype: str, labels, layout: str, ignore: bool, seed: int = 0):
    """The statistics of one call and their gradients for a random upstream, with what the formula gives in float64."""
    g = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    classes, first = shape[1], int(shape[1] == 1)
    raw = 2 * torch.randn(shape, generator=g)
    x = LAYOUTS[layout]((torch.sigmoid(raw) if functor in ("none", "amplified") else raw).to(kind))[1].requires_grad_()
    if labels is None:
        t = LAYOUTS[layout](torch.rand(shape, generator=g).masked_fill(torch.rand(shape, generator=g) < 0.3, 1.0).to(kind))[1]
        t.requires_grad_()
    else:
        t = torch.randint(min(classes + first, torch.iinfo(labels).max if labels != torch.bool else 2), (shape[0], shape[2]), generator=g)
        t = t.to(labels)
    settings = functor, PARAMS.get(functor, ()), first, 1 if ignore else None
    statistics = overlap._apply(x, t, backend, settings)
    upstream = torch.randn(statistics.shape, generator=g).to(statistics.dtype)
    inputs = [x, *([t] if labels is None else [])]
    found = torch.autograd.grad(statistics, inputs, upstream)
    wide = [i.detach().double().requires_grad_() for i in inputs]
    truth = overlap.formula(*settings, wide[0], wide[1] if labels is None else t)
    wanted = torch.autograd.grad(truth, wide, upstream.double())
    return statistics, truth, list(zip(found, wanted))


SHAPES = ((1, 1, 1), (2, 3, 65), (3, 2, 64), (1, 17, 1000), (2, 33, 5), (1, 130, 63), (2, 1, 1500), (1, 300, 40), (1, 2, 4099))


@pytest.mark.parametrize("functor", overlap.FUNCTORS)
def test_statistics(functor, compiled):
    layouts = ("contiguous", "transposed", "every second", "channels last")
    grid = list(itertools.product(SHAPES, DTYPES, (None, *LABELS), layouts, (True, False)))
    for shape, dtype, labels, layout, ignore in some(compiled, grid, 120):
        if labels is torch.bool and shape[1] > 2:
            continue
        statistics, truth, gradients = sums(functor, compiled, shape, dtype, labels, layout, ignore)
        eps = torch.finfo(statistics.dtype).eps
        about = f"{functor} {shape} {dtype} {labels} {layout} {ignore}"
        assert ((statistics.double() - truth).abs() <= 30 * eps * (truth.abs() + 1 + 0.05 * shape[2])).all(), about
        for found, wanted in gradients:
            rounding = 0.51 * torch.finfo(found.dtype).eps * (2 if compiled == "triton" else 1)  # the interpreter truncates
            assert ((found.double() - wanted).abs() <= (rounding + 30 * eps) * wanted.abs() + 60 * eps).all(), about
            assert found.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4)], ids=str)
def test_statistics_of_nothing(shape, compiled):
    for functor in overlap.FUNCTORS:
        x = torch.zeros(shape, requires_grad=True)
        found = overlap._apply(x, torch.zeros((shape[0], shape[2]), dtype=torch.long), compiled, (functor, PARAMS.get(functor, ()), 0, 0))
        assert torch.equal(found, torch.zeros(*shape[:2], 8))
        assert torch.autograd.grad(found.sum(), x)[0].shape == shape


@pytest.mark.parametrize("functor", overlap.FUNCTORS)
def test_ignored_pixels_do_not_count_whatever_they_hold(functor, backend):
    torch.manual_seed(1)
    x, y = torch.rand(2, 3, 40), torch.randint(3, (2, 40))
    y[:, ::3] = 255
    settings = functor, PARAMS.get(functor, ()), 0, 255
    bad = x.clone()
    bad[:, :, 0], bad[:, :, 3], bad[:, :, 6] = math.nan, math.inf, -math.inf
    results = []
    for values in (x, bad):
        leaf = values.clone().requires_grad_()
        value = overlap.formula(*settings, leaf, y) if backend == "eager" else overlap._apply(leaf, y, backend, settings)
        results.append((value.detach(), torch.autograd.grad(value, leaf, torch.ones_like(value))[0]))
    assert same_bits(results[0][0], results[1][0]) and same_bits(results[0][1], results[1][1])
    assert (results[1][1][:, :, ::3] == 0).all()


def test_the_same_bits_for_any_number_of_threads():
    assert unavailable("cpu", "cpu") is None
    x, y = torch.randn(3, 5, 70000), torch.randint(5, (3, 70000))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        value = overlap._apply(leaf, y, "cpu", ("softmax_cross_entropy", (), 0, None))
        results.append((value.detach(), torch.autograd.grad(value, leaf, torch.ones_like(value))[0]))
    assert all(same_bits(a, b) for result in results[1:] for a, b in zip(result, results[0]))


# Losses over them


@pytest.mark.parametrize("target", TARGETS)
def test_targets(loss, backend, target):
    if target not in targets(loss):
        pytest.raises(TypeError, LOSSES[loss].function, torch.rand(2, 3), torch.rand(2, 3), ignore_index=0)
        return
    cases = [
        OverlapCase(shape=shape, target=target, dtype=dtype, layout=layout, gradients="all").of(loss)
        for shape in ((2, 3, 5, 4), (3, 1, 17), (2, 2, 33), (1, 9, 70)) for dtype in DTYPES for layout in ("contiguous", "channels last")
    ]
    for case in some(backend, cases, 8):
        check(case, None, backend)


def test_options(loss, backend):
    cases = []
    for option in inspect.signature(LOSSES[loss].function).parameters:
        for pair in choices(loss, option):
            for target in ("labels, none of class 0", "soft"):
                if target in targets(loss):
                    cases.append(OverlapCase(shape=(2, 3, 11), target=target, options=(pair,)).of(loss))
    for case in some(backend, cases, 60):
        check(case, None, backend)



def test_layouts(loss, backend):
    cases = [
        OverlapCase(shape=(2, 3, 4, 5), layout=layout, target_layout=target_layout, target="soft", gradients="all").of(loss)
        for layout in LAYOUTS for target_layout in LAYOUTS
    ]
    for case in some(backend, cases, 24):
        check(case, None, backend)


@pytest.mark.slow
def test_random_cases(loss, backend):
    finding = run(loss, backend, examples={"cuda": 80, "triton": 8}.get(backend, 400), seed=13)
    assert finding is None, finding.script


def closed(loss: str, backend: str | None):
    """A function of a loss's input and soft target, and those."""
    # The weights of generalised Dice are no function of the target as far as gradients go.
    options = (("class_weighting", "uniform"),) if loss == "generalized_dice" else ()
    call = OverlapCase(shape=(2, 3, 4), dtype="float64", target="soft", gradients="all", options=options).of(loss).build()
    leaves = [call.by_name[name].clone().requires_grad_() for name in ("input", "target")]
    return lambda *inputs: LOSSES[loss].function(*inputs, **call.options, backend=backend), leaves


def test_gradcheck(loss, backend):
    function, inputs = closed(loss, backend)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("functor", overlap.FUNCTORS)
def test_opcheck(functor, compiled):
    x, y = torch.rand(2, 3, 5), torch.randint(3, (2, 5))
    for target in (y, torch.rand(2, 3, 5)):
        args = (x, target, functor, list(PARAMS.get(functor, ())), 0, None)
        torch.library.opcheck(getattr(torch.ops.fastloss.overlap_forward, compiled), args)
        backward = (torch.ones(2, 3, 8), *args, True, target.is_floating_point())
        torch.library.opcheck(getattr(torch.ops.fastloss.overlap_backward, compiled), backward)


def test_func_transforms(loss):
    function, (x, t) = closed(loss, None)
    wanted = torch.autograd.grad(function(x, t), x)[0]
    torch.testing.assert_close(torch.func.grad(function)(x.detach(), t.detach()), wanted)
    stacked = torch.func.vmap(function)(torch.stack([x, x + 1]).detach(), torch.stack([t, t]).detach())
    torch.testing.assert_close(stacked[0], function(x, t).detach())


def test_compiles_without_graph_breaks(compiled):
    x, y = torch.randn(2, 3, 6, 5, requires_grad=True), torch.randint(3, (2, 6, 5))
    graphs: list[list[str]] = []
    function = torch.compile(ours.dice_ce_loss, fullgraph=True, backend=recording(graphs))
    found = torch.autograd.grad(function(x, y, backend=compiled), x)[0]
    assert [op for graph in graphs for op in graph] == [f"overlap_forward.{compiled}", f"overlap_backward.{compiled}"]
    torch.testing.assert_close(found, torch.autograd.grad(ours.dice_ce_loss(x, y, backend="eager"), x)[0])


def test_autocast_gives_float32(loss, backend):
    call = OverlapCase(dtype="bfloat16").of(loss).build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LOSSES[loss].function(*call.arguments(call.tensors())[0], **call.options, backend=backend)
    assert value.dtype == torch.float32


def test_memory_of_the_call_is_small():
    """Forward + backward allocate the gradient, and what is small beside it."""
    call = OverlapCase(shape=(2, 4, 64, 64)).of("dice_ce").build()
    upstream = make_upstream(call)
    with torch.profiler.profile(profile_memory=True) as profile:
        evaluate(LOSSES["dice_ce"].function, call, upstream, backend="cpu")
    allocated = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0)
    assert allocated < 1.2 * call.by_name["input"].nbytes + 2e5


# Values by hand

TWO = torch.tensor([[[2.0, -1.0], [-2.0, 1.0]]])  # softmax: 0.98201, 0.11920 of class 0
PIXELS = torch.tensor([[0, 1]])
HIGH, LOW = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(2))


def both(ratio) -> float:
    """The mean loss of the two classes from a function of (I, P, T)."""
    return 1 - (ratio(HIGH, HIGH + LOW, 1.0) + ratio(1 - LOW, 2 - HIGH - LOW, 1.0)) / 2


@pytest.mark.parametrize(
    "name, options, wanted",
    [
        ("dice", {}, both(lambda i, p, t: (2 * i + 1e-5) / (p + t + 1e-5))),
        ("dice", {"smooth": 1.0, "smooth_denominator": 0.0}, both(lambda i, p, t: (2 * i + 1) / (p + t))),
        ("dice", {"group": "all"}, 1 - (2 * (HIGH + 1 - LOW) + 1e-5) / (4 + 1e-5)),
        ("dice", {"include_background": False}, 1 - (2 * (1 - LOW) + 1e-5) / (3 - HIGH - LOW + 1e-5)),
        ("dice", {"power": 2, "group": "all"},
         1 - (2 * (HIGH + 1 - LOW) + 1e-5) / (HIGH**2 + LOW**2 + (1 - HIGH) ** 2 + (1 - LOW) ** 2 + 2 + 1e-5)),
        ("jaccard", {}, both(lambda i, p, t: (i + 1e-5) / (p + t - i + 1e-5))),
        ("tversky", {"alpha": 0.2, "beta": 0.9}, both(lambda i, p, t: (i + 1e-5) / (i + 0.2 * (p - i) + 0.9 * (t - i) + 1e-5))),
        ("generalized_dice", {}, 1 - (2 * (HIGH + 1 - LOW) + 1e-5) / (4 + 1e-5)),
        ("dice_ce", {"lambda_dice": 0.0}, (math.log1p(math.exp(-4)) + math.log1p(math.exp(-2))) / 2),
        ("dice_focal", {"lambda_dice": 0.0, "gamma": 2.0},
         ((1 - HIGH) ** 2 * math.log1p(math.exp(-4)) + LOW**2 * math.log1p(math.exp(-2))) / 2),
    ],
    ids=str,
)
def test_values_by_hand(name, options, wanted, backend):
    value = LOSSES[name].function(TWO, PIXELS, **options, backend=backend)
    assert float(value) == pytest.approx(wanted, abs=3e-7)


def test_combo_loss():
    p = (HIGH, 1 - LOW)
    cross_entropy, dice = -sum(map(math.log, p)) / 2, both(lambda i, p, t: (2 * i + 1e-5) / (p + t + 1e-5))
    for alpha in (0.0, 0.25, 1.0):
        assert float(ours.combo_loss(TWO, PIXELS, alpha)) == pytest.approx(alpha * cross_entropy + (1 - alpha) * dice, abs=3e-7)
    for option, value in (("group", "all"), ("reduction", "none"), ("power", 2), ("include_background", False), ("smooth", 0.5)):
        assert torch.equal(ours.combo_loss(TWO, PIXELS, **{option: value}), ours.dice_ce_loss(TWO, PIXELS, 0.5, 0.5, **{option: value}))
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.5"):
        ours.combo_loss(TWO, PIXELS, 1.5)


def test_absent_classes_by_hand(backend):
    logits = torch.tensor([[[4.0, 4.0], [-4.0, -4.0]]])
    labels = torch.tensor([[0, 0]])
    dice = lambda absent: float(ours.dice_loss(logits, labels, smooth=0.0, absent=absent, backend=backend))  # noqa: E731
    keep, zero, skip = dice("keep"), dice("zero"), dice("skip")
    present = 1 - 2 * 2 / (1 + math.exp(-8)) / (2 / (1 + math.exp(-8)) + 2)
    assert keep == pytest.approx((present + 1) / 2, abs=1e-6)
    assert zero == pytest.approx(present / 2, abs=1e-6)
    assert skip == pytest.approx(present, abs=1e-6)


def test_anyloss_by_hand(backend):
    """a = (1, 0, 0.18844), t = (1, 0, 1)."""
    p, t = torch.tensor([0.9, 0.2, 0.48]), torch.tensor([1, 0, 1])
    a = 1 / (1 + math.exp(73 * 0.02))
    tp, fn, fp, tn = 1 + a, 1 - a, 0.0, 1.0
    wanted = {
        "accuracy": (tp + tn) / 3, "f1": 2 * tp / (2 * tp + fn), "precision": 1.0, "recall": tp / 2, "specificity": 1.0, "iou": tp / 2,
        "balanced_accuracy": (tp / 2 + 1) / 2, "geometric_mean": math.sqrt(tp / 2), "dice": 2 * tp / (2 * tp + fn),
        "youden_j": (tp / 2 + 1) / 2, "f_beta": 5 * tp / (5 * tp + 4 * fn),
        "mcc": ((tp * tn - fp * fn) / math.sqrt(tp * 2 * 1 * (tn + fn)) + 1) / 2,
        "cohen_kappa": (((tp + tn) / 3 - (tp * 2 + (tn + fn)) / 9) / (1 - (tp * 2 + (tn + fn)) / 9) + 1) / 2,
        "tversky": tp / (tp + 0.5 * fn),
    }
    for metric, score in wanted.items():
        assert float(ours.anyloss(p, t, metric, beta=2.0, backend=backend)) == pytest.approx(1 - score, abs=2e-6), metric
    focal = (1 - tp / (tp + 0.3 * fn)) ** 0.75
    assert float(ours.anyloss(p, t, "focal_tversky", backend=backend)) == pytest.approx(focal, abs=2e-6)


def test_cross_entropy_part_is_torchs(backend):
    torch.manual_seed(2)
    x, y, weight = torch.randn(2, 4, 5, 6), torch.randint(4, (2, 5, 6)), torch.rand(4)
    y[0, :2] = 255
    part = lambda *args, **options: ours.dice_ce_loss(*args, lambda_dice=0.0, backend=backend, **options)  # noqa: E731
    torch.testing.assert_close(part(x, y, weight=weight, ignore_index=255), F.cross_entropy(x, y, weight, ignore_index=255))
    soft = torch.softmax(torch.randn(2, 4, 5, 6), 1)
    torch.testing.assert_close(part(x, soft, weight=weight), F.cross_entropy(x, soft, weight))
    torch.testing.assert_close(part(x, soft, activation="sigmoid"), F.binary_cross_entropy_with_logits(x, soft))
    mask = torch.randint(2, (2, 1, 5, 6))
    torch.testing.assert_close(part(x[:, :1], mask), F.binary_cross_entropy_with_logits(x[:, :1], mask.float()))
    assert float(ours.dice_focal_loss(x[:, :1], mask, lambda_dice=0.0, alpha=0.25, backend=backend)) == pytest.approx(
        float(ours.sigmoid_focal_loss(x[:, :1], mask.float(), reduction="mean")), rel=1e-5)


def test_defect_19_a_large_half_precision_mask_is_finite(backend):
    size = (512, 512) if backend in ("cpu", "eager") else (64, 64)
    x = torch.randn(1, 1, *size).to(torch.float16).requires_grad_()
    y = torch.ones(1, 1, *size, dtype=torch.uint8)
    value = ours.dice_loss(x, y, backend=backend)
    wide = ours.dice_loss(x.double(), y, backend="eager")
    assert value.item() == pytest.approx(wide.item(), abs=1e-3) and torch.autograd.grad(value, x)[0].isfinite().all()


def test_defect_20_infinite_logits_of_ignored_images_give_no_nan(backend):
    x = torch.full((1, 3, 4), math.inf, requires_grad=True)
    value = ours.dice_loss(x, torch.full((1, 4), 255), ignore_index=255, backend=backend)
    assert value.isfinite() and (torch.autograd.grad(value, x)[0] == 0).all()


def test_defect_29_alpha_prices_false_positives(backend):
    x, none, all_ = torch.full((1, 1, 8), 9.0), torch.zeros(1, 1, 8), torch.ones(1, 1, 8)
    half = torch.cat([none[..., :4], all_[..., :4]], -1)
    assert float(ours.tversky_loss(x, half, 1.0, 0.0, backend=backend)) == pytest.approx(0.5, abs=1e-3)
    assert float(ours.tversky_loss(x, half, 0.0, 1.0, backend=backend)) == pytest.approx(0.0, abs=1e-3)


def test_a_power_keeps_its_slope_where_a_rounding_makes_the_index_larger_than_1():
    base = torch.tensor([1e-3, 1e-9, 0.0, -1e-9, -1e-3], dtype=torch.float64, requires_grad=True)
    value = power_of(base, 0.5)
    assert value.tolist() == pytest.approx([1e-3**0.5, 1e-6, 0.0, 0.0, 0.0])
    assert torch.autograd.grad(value.sum(), base)[0].tolist() == pytest.approx([0.5 * 1e-3**-0.5, 1e3, 1e3, 1e3, 0.0])
    assert power_of(torch.tensor(math.nan), 0.5).isnan()


# Bad input


@pytest.mark.parametrize(
    "arguments, options, error, words",
    [
        ((torch.rand(2, 3, 4), torch.zeros(2, 5).long()), {}, ValueError, "labels \\(2, 4\\)"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 3, 5)), {}, ValueError, "\\(2, 3, 4\\)"),
        ((torch.rand(3), torch.zeros(3)), {}, ValueError, "2 or more dimensions"),
        ((torch.zeros(2, 3, 4).long(), torch.zeros(2, 4).long()), {}, NotImplementedError, "float32"),
        (([1.0], torch.zeros(2, 4).long()), {}, TypeError, "input must be a Tensor"),
        ((torch.rand(2, 3, 4), torch.full((2, 4), 3)), {}, IndexError, "3 is out of bounds"),
        ((torch.rand(2, 3, 4), torch.full((2, 4), -1)), {}, IndexError, "-1 is out of bounds"),
        ((torch.rand(2, 1, 4), torch.full((2, 4), 2)), {}, IndexError, "2 is out of bounds"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"activation": "relu"}, ValueError, "'softmax'"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"group": "pixel"}, ValueError, "'sample'"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"absent": "drop"}, ValueError, "'keep'"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"reduction": "max"}, ValueError, "'mean'"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"power": 3}, ValueError, "power"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"smooth": -1.0}, ValueError, "smooth"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"eps": -1.0}, ValueError, "eps"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"weight": torch.ones(4)}, ValueError, "3 classes"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"weight": [1.0]}, TypeError, "weight must be a Tensor"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"weight": torch.ones(3), "group": "all"}, ValueError, "single classes"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"channel_dim": 3}, ValueError, "channel_dim=3"),
        ((torch.rand(2, 3, 4), torch.zeros(2, 4).long()), {"ignore_index": 1.5}, TypeError, "ignore_index must be an int"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else str(value)[:30],
)
def test_bad_input(arguments, options, error, words, backend):
    with pytest.raises(error, match=words):
        ours.dice_loss(*arguments, **options, backend=backend)


def test_bad_options_of_the_others():
    x, y = torch.rand(2, 3, 4), torch.zeros(2, 4).long()
    for function, options, words in (
        (ours.tversky_loss, {"alpha": -1.0}, "alpha"), (ours.focal_tversky_loss, {"gamma": 0.0}, "gamma"),
        (ours.generalized_dice_loss, {"class_weighting": "cube"}, "'square'"), (ours.dice_focal_loss, {"gamma": -1.0}, "gamma"),
        (ours.dice_focal_loss, {"alpha": 0.25}, "activation='sigmoid'"), (ours.dice_ce_loss, {"activation": "none"}, "'softmax'"),
        (ours.anyloss, {"metric": "auc"}, "unknown metric"), (ours.anyloss, {}, "one shape"),
    ):
        with pytest.raises(ValueError, match=words):
            function(x, y, **options)


# Found by reading


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32], ids=str)
def test_labels_of_unsigned_dtypes_are_not_negative(dtype, backend):
    top = 2 ** (8 * dtype.itemsize) - 1
    labels, x = torch.tensor([[0, 1, 2, 0, 1, top]]), torch.randn(1, 3, 6)
    value = ours.dice_loss(x, labels.to(dtype), ignore_index=top, backend=backend)
    torch.testing.assert_close(value, ours.dice_loss(x, labels, ignore_index=top, backend="eager"))
    with pytest.raises(IndexError, match=str(top)):
        ours.dice_loss(x, labels.to(dtype), backend=backend)


@pytest.mark.parametrize("label", [0, 1])
def test_kappa_of_one_class_is_finite(label, backend):
    p = (0.1 * torch.rand(50) + 0.9 * label).requires_grad_()
    labels = torch.full((50,), label)
    value = ours.anyloss(p, labels, "cohen_kappa", backend=backend)
    assert value.item() == pytest.approx(ours.anyloss(p.detach().double(), labels, "cohen_kappa", backend="eager").item(), abs=1e-4)
    assert torch.autograd.grad(value, p)[0].isfinite().all()


def test_soft_labels_and_squares_of_hard_labels_are_the_same(backend):
    p, y = torch.tensor([[[0.5, 0.5, 0.5, 0.9]]]), torch.tensor([[0, 0, 0, 1]])
    for power in (1, 2):
        hard, soft = (
            ours.dice_loss(p, y, activation="none", smooth=0.0, power=power, soft_label=soft, backend=backend) for soft in (False, True)
        )
        torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("absent", ["zero", "skip"])
def test_an_absent_class_of_no_score_is_left_out(absent, backend):
    x = torch.randn(2, 3, 16, requires_grad=True)
    options = {"smooth": 0.0, "eps": 0.0, "log": True, "absent": absent, "backend": backend}
    value = ours.dice_loss(x, torch.zeros(2, 16).long(), **options)
    assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize("name", ["dice_ce_loss", "dice_focal_loss"])
def test_a_mean_of_no_pixel_has_no_gradient(name, backend):
    """One channel as a softmax, and nothing of it there."""
    x = torch.randn(2, 1, 5, requires_grad=True)
    value = getattr(ours, name)(x, torch.zeros(2, 5, dtype=torch.long), activation="softmax", backend=backend)
    assert value.isnan() and not torch.autograd.grad(value, x)[0].any()
