"""Losses by margins between classes against torch's own: edges, ties, bad calls; and what capsule lengths are told."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F

import fastloss.functional as ours
from fastloss.oracle import Recorder
from test_torch import _same_as_torch

X = torch.tensor([[0.5, 1.5, -2.0, 0.5], [3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])  # gaps of exactly 1, where slopes jump
W = torch.tensor([1.0, 0.0, 2.0, 0.5])
EDGES = {
    "multi_margin_loss": [
        ((X, torch.tensor([0, 1, 3])), {}),
        ((X, torch.tensor([0, 1, 3])), {"p": 2}),
        ((X, torch.tensor([0, 1, 3])), {"weight": W, "reduction": "sum"}),
        ((X, torch.tensor([0, 1, 3])), {"weight": W, "reduction": "none", "margin": 0.0}),
        ((X, torch.tensor([0, 1, 3])), {"margin": -1.0, "reduction": "none"}),
        ((X[0], torch.tensor(2)), {"reduction": "none"}),
        ((X[0], torch.tensor([2])), {"reduction": "none"}),
        ((X[:, :1], torch.tensor([0, 0, 0])), {}),
        ((X[:0], torch.zeros(0, dtype=torch.int64)), {"reduction": "none"}),
        ((X.t(), torch.tensor([0, 1, 2, 2])), {}),
        ((X[0, 0], torch.tensor(0)), {}),
    ],
    "multilabel_margin_loss": [
        ((X, torch.tensor([[0, 1, -1, 3], [2, -1, -1, -1], [3, 2, 1, 0]])), {"reduction": reduction})
        for reduction in ("none", "mean", "sum")
    ] + [
        ((X, torch.tensor([[-1, 0, 1, 2], [2, 2, -1, 0], [1, 1, 1, 1]])), {"reduction": "none"}),
        ((X[0], torch.tensor([1, -1, 0, 0])), {"reduction": "none"}),
        ((X[0], torch.tensor([-1, -1, 0, 0])), {}),
        ((X[:0], torch.zeros((0, 4), dtype=torch.int64)), {"reduction": "none"}),
        ((X[:, :1], torch.tensor([[0], [-1], [0]])), {"reduction": "none"}),
    ],
    "multilabel_soft_margin_loss": [
        ((X, (X > 0).float()), {"reduction": reduction, "weight": weight})
        for reduction in ("none", "mean", "sum") for weight in (None, W, X.abs())
    ] + [
        ((X[0], (X[0] > 0).float()), {"reduction": "none"}),
        ((X[:0], X[:0]), {"reduction": "sum"}),
        ((X[:0], X[:0]), {"reduction": "none"}),
        ((X[:0], X[:0]), {}),
        ((X[:, :0], X[:, :0]), {"reduction": "none"}),
        ((X[:, :0], X[:, :0]), {"reduction": "sum"}),
        ((X.reshape(3, 2, 2), (X > 0).float().reshape(3, 2, 2)), {"reduction": "none"}),
        ((100 * X, (X > 0).float()), {"reduction": "none"}),
    ],
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_same_as_torch(name, backend):
    for (x, *others), options in EDGES[name]:
        leaf = x.clone().requires_grad_()
        _same_as_torch(functools.partial(getattr(ours, name), backend=backend), getattr(F, name), (leaf, *others), options)


@pytest.mark.parametrize("where", ["eager", "cpu"])
def test_no_rows(where):
    """torch 2.13 leaves the result of an empty batch uninitialised."""
    labels = torch.zeros((0, 4), dtype=torch.int64)
    for name, target in (("multi_margin_loss", labels[:, 0]), ("multilabel_margin_loss", labels)):
        x = X[:0].clone().requires_grad_()
        assert getattr(ours, name)(x, target, backend=where).isnan()
        total = getattr(ours, name)(x, target, reduction="sum", backend=where)
        assert total == 0 and torch.autograd.grad(total, x)[0].shape == (0, 4)


T = torch.tensor([0, 1, 3])
LIST = torch.tensor([[0, -1, -1, -1]] * 3)
BAD = [
    ("multi_margin_loss", (X, T), {"p": 3}, ["p == 2", "3"]),
    ("multi_margin_loss", (X, T), {"weight": torch.ones(4, 1)}, ["one-dimensional", "(4, 1)"]),
    ("multi_margin_loss", (X, T), {"weight": torch.ones(3)}, ["4", "[3]"]),
    ("multi_margin_loss", (X, T), {"weight": torch.ones(4, dtype=torch.float64)}, ["float32", "float64"]),
    ("multi_margin_loss", (X, T[:2]), {}, ["3", "[2]"]),
    ("multi_margin_loss", (X, torch.tensor([0, 4, 1])), {}, ["out of range", "4"]),
    ("multi_margin_loss", (X, torch.tensor([0, -1, 1])), {}, ["out of range", "-1"]),
    ("multi_margin_loss", (X, T.int()), {}, ["Long", "int32"]),
    ("multi_margin_loss", (X[:, :0], T), {}, ["non-empty", "[3, 0]"]),
    ("multi_margin_loss", (X.reshape(3, 2, 2), T), {}, ["[3, 2, 2]"]),
    ("multi_margin_loss", (X, T), {"reduction": "avg"}, ["avg"]),
    ("multi_margin_loss", (X.long(), T), {}, ["int64"]),
    ("multilabel_margin_loss", (X, LIST[:2]), {}, ["[2, 4]", "[3, 4]"]),
    ("multilabel_margin_loss", (X, LIST + 4), {}, ["out of range", "4"]),
    ("multilabel_margin_loss", (X, LIST - 1), {}, ["out of range", "-2"]),
    ("multilabel_margin_loss", (X, LIST.int()), {}, ["Long", "int32"]),
    ("multilabel_margin_loss", (X.reshape(3, 2, 2), LIST), {}, ["[3, 2, 2]"]),
    ("multilabel_margin_loss", (X, LIST), {"reduction": "avg"}, ["avg"]),
    ("multilabel_soft_margin_loss", (X, X[:2]), {}, ["(3, 4)", "(2, 4)"]),
    ("multilabel_soft_margin_loss", (torch.tensor(1.0), torch.tensor(1.0)), {}, ["scalar"]),
    ("multilabel_soft_margin_loss", (X, X), {"reduction": "avg"}, ["avg"]),
]


@pytest.mark.parametrize(("name", "tensors", "options", "words"), BAD)
def test_bad_calls_raise_what_torch_raises(name, tensors, options, words):
    with pytest.raises(Exception) as theirs:
        getattr(F, name)(*tensors, **options)
    with pytest.raises(Exception) as raised:
        getattr(ours, name)(*tensors, **options)
    assert type(raised.value) is type(theirs.value), f"torch: {theirs.value!r}\nours: {raised.value!r}"
    for word in words:
        assert word in str(raised.value)


def test_many_labels_take_memory_of_the_input_only():
    """Pairs of 2000 labels and 2000 other classes of 8 rows would be 32 million numbers."""
    x, order = torch.randn(8, 4000, requires_grad=True), torch.rand(8, 4000).argsort(1)
    target = torch.where(torch.arange(4000) < 2000, order, -1)
    got, wanted = ours.multilabel_margin_loss(x, target), F.multilabel_margin_loss(x, target)
    torch.testing.assert_close(got, wanted)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        (grad,) = torch.autograd.grad(ours.multilabel_margin_loss(x, target), x)
    assert max(largest) <= x.numel() + len(x)
    torch.testing.assert_close(grad, torch.autograd.grad(wanted, x)[0])


def test_sum_over_pairs_does_not_cancel():
    """Scores with a large offset: the terms of a pair agree, their sums over classes do not."""
    x = torch.randn(3, 50) + 2.0**16
    target = torch.where(torch.arange(50) < 20, torch.rand(3, 50).argsort(1), -1)
    wanted = F.multilabel_margin_loss(x.double(), target).float()
    torch.testing.assert_close(ours.multilabel_margin_loss(x, target), wanted, rtol=1e-6, atol=0)


def test_capsule_margin_warns_and_refuses():
    v, t = torch.rand(2, 3), torch.eye(3)[:2]
    for options in ({"positive_margin": 0.1}, {"positive_margin": 1.0}, {"negative_margin": 0.0}, {"downweight": 0.0}, {"downweight": 1.5}):
        with pytest.raises(ValueError):
            ours.capsule_margin_loss(v, t, **options)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        ours.capsule_margin_loss(v, t[0])
    with pytest.warns(UserWarning, match="close"):
        ours.capsule_margin_loss(v, t, positive_margin=0.5, negative_margin=0.3)
    with pytest.warns(UserWarning, match="hardly"):
        ours.capsule_margin_loss(v, t, downweight=0.05)


def test_components_of_the_capsule_margin():
    v, t = torch.tensor([[0.4, 0.6], [0.95, 0.05]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = ours.analyze_margin_loss_components(v, t)
    wanted = {"positive_loss": 0.125, "negative_loss": 0.0625, "total_loss": 0.1875, "mean_present_length": 0.675,
              "mean_absent_length": 0.325, "present_below_margin": 1, "absent_above_margin": 1}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(wanted)
    assert math.isclose(found["total_loss"].item(), ours.capsule_margin_loss(v, t).item(), rel_tol=1e-6)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_opcheck(reduction):
    ops = torch.ops.fastloss
    for x, target, weight, p in ((X, T.unsqueeze(1), W, 2), (X.t().contiguous().t(), LIST, None, 1)):
        settings = p, 0.75, reduction
        torch.library.opcheck(ops.margin_forward.cpu, (x, target, weight, *settings))
        upstream = torch.ones(3) if reduction == 0 else torch.ones(())
        torch.library.opcheck(ops.margin_backward.cpu, (upstream, x, target, weight, *settings))


def test_kernels_run_and_no_label_is_read_out_of_bounds():
    x = X.clone().requires_grad_()
    with Recorder() as recorder:
        ours.multi_margin_loss(x, T, backend="cpu").backward()
    assert recorder.ops == ["margin_forward.cpu", "margin_backward.cpu"]
    with pytest.raises(RuntimeError, match="out of bounds"):
        torch.ops.fastloss.margin_forward.cpu(X, T.unsqueeze(1) + 4, None, 1, 1.0, 1)


@pytest.mark.parametrize("name", ["multi_margin_loss", "multilabel_margin_loss"])
def test_same_bits_for_any_number_of_threads(name):
    x, order = torch.randn(500, 700).bfloat16().requires_grad_(), torch.rand(500, 700).argsort(1)
    target = order[:, 0] if name == "multi_margin_loss" else torch.where(torch.arange(700) < 3, order, -1)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        value = getattr(ours, name)(x, target, backend="cpu")
        found.append((value.detach(), torch.autograd.grad(value, x)[0]))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0]))


@pytest.mark.parametrize("where", ["eager", "cpu"])
def test_infinite_and_broken_scores(where):
    x = torch.tensor([[-math.inf, 0.0, 1.0], [0.0, -math.inf, 1.0], [0.0, math.nan, 1.0]])
    got = ours.multi_margin_loss(x, torch.zeros(3, dtype=torch.int64), reduction="none", backend=where)
    assert got[0] == math.inf and got[1] == pytest.approx(2 / 3) and got[2].isnan()


def test_compiled_scores_of_a_negative_label_raise():
    x, y = torch.randn(4, 5), torch.tensor([-1, 0, 1, 2])
    with pytest.raises(RuntimeError, match="out of bounds"):
        torch.compile(lambda x, y: ours.multi_margin_loss(x, y), backend="aot_eager")(x, y)


def test_weights_under_autocast_may_be_wider():
    x, y, weight = torch.randn(4, 5).bfloat16(), torch.tensor([0, 1, 2, 3]), torch.rand(5)
    with torch.autocast("cpu"):
        assert ours.multi_margin_loss(x, y, weight=weight).dtype == torch.float32


def test_labels_of_plain_losses_may_be_bool_or_integers():
    p, y = torch.rand(6), torch.tensor([0, 1, 1, 0, 1, 0])
    for function in (ours.spiegelhalter_z_loss, ours.calibration_loss, ours.mase_loss):
        torch.testing.assert_close(function(p, y), function(p, y.float()))
    torch.testing.assert_close(ours.spiegelhalter_z_loss(p, y.bool()), ours.spiegelhalter_z_loss(p, y.float()))
    shown = ours.analyze_margin_loss_components(torch.rand(2, 3), torch.tensor([[True, False, False], [False, True, False]]))
    assert shown["total_loss"].isfinite()


@pytest.mark.parametrize("name, target", [("multi_margin_loss", T), ("multilabel_margin_loss", LIST)])
def test_backends_without_kernels_raise(name, target):
    with pytest.raises(RuntimeError, match="has no triton kernels"):
        getattr(ours, name)(X, target, backend="triton")
