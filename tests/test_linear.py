"""linear_cross_entropy beyond what every loss over pairs is tested for: class probabilities, extra outputs, shapes, torch's errors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import fastloss
import fastloss.functional as ours
from fastloss.oracle import Recorder
from graphs import recording



def layer(rows: int = 7, features: int = 5, classes: int = 6, dtype=torch.float64):
    """Hidden states, a linear layer, labels of which one is ignored, and class weights."""
    torch.manual_seed(3)
    x, w, b = (torch.randn(shape, dtype=dtype) for shape in ((rows, features), (classes, features), (classes,)))
    target = torch.randint(classes, (rows,))
    target[1] = -100
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), target, torch.rand(classes, dtype=dtype) + 0.2


def same(got, wanted, leaves, **tolerance) -> None:
    torch.testing.assert_close(got, wanted, **tolerance)
    upstream = torch.randn_like(got)
    both = [torch.autograd.grad(value, leaves, upstream, retain_graph=True) for value in (got, wanted)]
    for mine, theirs in zip(*both):
        torch.testing.assert_close(mine, theirs, **tolerance)


def test_as_cross_entropy_of_logits(backend):
    """Every option that both have, class indices and class probabilities."""
    x, w, b, target, weight = layer()
    soft = torch.rand(7, 6, dtype=torch.float64).requires_grad_()
    grid = itertools.product((None, b), (None, weight), (0.0, 0.3), (None, 2.0), (0.0, 0.1), (target, soft))
    for i, (bias, class_weight, smoothing, softcap, z_loss, labels) in enumerate(grid):
        if backend == "triton" and i % 7:
            continue
        options = dict(weight=class_weight, label_smoothing=smoothing, softcap=softcap, z_loss=z_loss, logit_scale=(1.0, 0.5)[i % 2],
                       reduction=("none", "mean", "sum")[i % 3])
        leaves = [x, w, *([] if bias is None else [bias]), *([soft] if labels is soft else [])]
        got = ours.linear_cross_entropy(x, w, labels, linear_bias=bias, **options, backend=backend)
        same(got, ours.cross_entropy(F.linear(x, w, bias), labels, **options, backend="eager"), leaves, rtol=1e-9, atol=1e-11)


def test_class_weights_get_gradients(backend):
    x, w, b, target, weight = layer()
    for smoothing, softcap in itertools.product((0.0, 0.2), (None, 3.0)):
        options = dict(weight=weight.requires_grad_(), label_smoothing=smoothing, softcap=softcap)
        got = ours.linear_cross_entropy(x, w, target, **options, backend=backend)
        same(got, ours.cross_entropy(F.linear(x, w), target, **options, backend="eager"), [x, w, weight], rtol=1e-9, atol=1e-11)


def test_extra_outputs(backend):
    x, w, b, target, _ = layer()
    for softcap in (None, 2.0):
        options = dict(softcap=softcap, return_lse=True, return_accuracy=True, reduction="none", backend=backend)
        loss, lse, accuracy = ours.linear_cross_entropy(x, w, target, linear_bias=b, **options)
        wanted = ours.cross_entropy(F.linear(x, w, b), target, **(options | {"backend": "eager"}))
        same(loss, wanted[0], [x, w, b], rtol=1e-9, atol=1e-11)
        same(lse, wanted[1], [x, w, b], rtol=1e-9, atol=1e-11)
        assert torch.equal(accuracy, wanted[2]) and 0 < accuracy.sum() < 6
        assert not accuracy.requires_grad
    soft = F.one_hot(target.clamp_min(0), 6).double()
    wanted = ours.cross_entropy(F.linear(x, w), soft, return_accuracy=True, backend="eager")[1]
    assert torch.equal(ours.linear_cross_entropy(x, w, soft, return_accuracy=True, backend=backend)[1], wanted)
    half = ours.linear_cross_entropy(x.bfloat16(), w.bfloat16(), target, return_lse=True, backend=backend)
    assert half[0].dtype == torch.bfloat16 and half[1].dtype == torch.float32


def test_shapes(backend):
    x, w, b, target, _ = layer(12)
    flat = ours.linear_cross_entropy(x, w, target, reduction="none", return_lse=True, backend=backend)
    folded = ours.linear_cross_entropy(x.view(2, 3, 2, 5), w, target.view(2, 3, 2), reduction="none", return_lse=True, backend=backend)
    assert all(torch.equal(a.view(2, 3, 2), c) for a, c in zip(flat, folded))
    one = ours.linear_cross_entropy(x[0], w, target[0], reduction="none", return_lse=True, backend=backend)
    assert one[0].shape == one[1].shape == ()
    torch.testing.assert_close(one[0], flat[0][0])
    soft = torch.rand(6, dtype=torch.float64)
    torch.testing.assert_close(ours.linear_cross_entropy(x[0], w, soft, backend=backend), F.linear_cross_entropy(x[0], w, soft))
    empty = ours.linear_cross_entropy(x[:0], w, target[:0], backend=backend)
    assert empty.isnan() and ours.linear_cross_entropy(x[:0], w, target[:0], empty="zero", backend=backend) == 0
    assert not torch.autograd.grad(ours.linear_cross_entropy(x[:0], w, target[:0], reduction="sum", backend=backend), w)[0].any()


def test_losses_of_several_places(backend):
    """K-dimensional weights go by stored logits."""
    x, places, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(6, 2, 3, 5, dtype=torch.float64), torch.randn(6, 2, 3).double()
    target = torch.randint(6, (4, 2, 3))
    for smoothing in (0.0, 0.1):
        got = ours.linear_cross_entropy(x, places, target, linear_bias=bias, label_smoothing=smoothing, reduction="none", backend=backend)
        wanted = F.linear_cross_entropy(x, places, target, linear_bias=bias, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(got, wanted)


def test_halves_are_rounded_once(backend, exact_products):
    """Also where a loss has gradients to the layer by two ways, and where logits are stored."""
    tight = 0.51 if backend != "triton" else 1.02  # the interpreter truncates
    x, w, b, target, weight = (t.detach() for t in layer(9, 16, 11))
    x, w, weight = x.bfloat16(), w.bfloat16(), weight.bfloat16()
    for options in ({}, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "weight": weight},
                    {"label_smoothing": 0.2, "weight": weight, "softcap": 2.0}):
        wide = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        leaves = [[t.to(kind).requires_grad_() for t in (x, w)] for kind in (torch.bfloat16, torch.float64)]
        got = ours.linear_cross_entropy(*leaves[0], target, reduction="sum", **options, backend=backend)
        truth = ours.linear_cross_entropy(*leaves[1], target, reduction="sum", **wide, backend="eager")
        pairs = zip([got, *torch.autograd.grad(got, leaves[0])], [truth, *torch.autograd.grad(truth, leaves[1])])
        for mine, exact in pairs:
            assert ((mine.double() - exact).abs() <= tight * torch.finfo(torch.bfloat16).eps * exact.abs() + 1e-5).all()


def test_autocast_runs_the_layer_in_half_precision(backend):
    x, w, b, target, _ = layer(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = ours.linear_cross_entropy(x, w, target, linear_bias=b, backend=backend)
        through = ours.linear_cross_entropy(F.linear(x, torch.eye(5)), w, target, backend=backend)  # bfloat16 and float32 meet
    assert got.dtype == through.dtype == torch.float32
    narrow = ours.linear_cross_entropy(x.bfloat16().float(), w.bfloat16().float(), target, linear_bias=b, backend=backend)
    torch.testing.assert_close(got, narrow, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(got, w)[0].dtype == torch.float32


def test_no_logits_are_stored(compiled):
    """Neither kept for the backward, nor made on the way; nor does a budget change a bit."""
    x, w, b, target, _ = layer(64, 4, 512)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t), Recorder() as recorder:
        loss = ours.linear_cross_entropy(x, w, target, label_smoothing=0.1, z_loss=0.1, backend=compiled)
    assert max(sizes) <= 4 * 512 and recorder.ops == [f"pair_forward.{compiled}"]
    kept = torch.autograd.grad(loss, (x, w))
    none = torch.autograd.grad(ours.linear_cross_entropy(x, w, target, label_smoothing=0.1, z_loss=0.1, memory_budget=0, backend=compiled),
                               (x, w))
    for a, c in zip(kept, none):
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-14)


def test_compile_with_options(backend):
    x, w, b, target, weight = layer()

    def step(x, w, b):
        return ours.linear_cross_entropy(x, w, target, linear_bias=b, weight=weight, z_loss=0.1, softcap=4.0, backend=backend)

    torch._dynamo.reset()
    graphs: list = []
    same(torch.compile(step, backend=recording(graphs), fullgraph=True)(x, w, b), step(x, w, b), [x, w, b])
    assert graphs == ([[], []] if backend == "eager" else [[f"pair_forward.{backend}"], [f"pair_backward.{backend}"]])


def test_masked_classes(backend):
    """A bias of -inf takes a class out."""
    x, w, b, target, _ = layer()
    target = target.clamp(0, 4)
    hidden = torch.where(torch.arange(6) == 5, -torch.inf, b.detach())
    got = ours.linear_cross_entropy(x, w, target, linear_bias=hidden, backend=backend)
    torch.testing.assert_close(got, F.cross_entropy(F.linear(x, w[:5], b[:5]), target))
    grads = torch.autograd.grad(got, (x, w))
    assert all(g.isfinite().all() for g in grads) and not grads[1][5].any()


def test_torchs_options_are_accepted():
    x, w, b, target, _ = layer()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)
    torch.testing.assert_close(ours.linear_cross_entropy(x, w, target, options=options), ours.linear_cross_entropy(x, w, target))
    module = fastloss.nn.LinearCrossEntropyLoss(5, 6, bias=True, options=options, softcap=3.0, backend="cpu").double()
    wanted = ours.linear_cross_entropy(x, module.linear.weight, target, linear_bias=module.linear.bias, softcap=3.0)
    torch.testing.assert_close(module(x, target), wanted)
    assert repr(module).count("softcap=3.0, backend='cpu'") == 1
    with pytest.raises(TypeError, match="LinearCrossEntropyLoss: got an unexpected keyword argument 'cap'"):
        fastloss.nn.LinearCrossEntropyLoss(5, 6, cap=3.0)


X, W, T = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 4, -100])
BAD = [
    ((X.tolist(), W, T), {}, TypeError, ["input", "list"]),
    ((X, W, None), {}, TypeError, ["target", "NoneType"]),
    ((X.long(), W.long(), T), {}, NotImplementedError, ["float32", "int64"]),
    ((torch.tensor(1.0), W, T), {}, RuntimeError, ["dimensionality", "got 0"]),
    ((X, W[0], T), {}, RuntimeError, ["at least 2", "got 1"]),
    ((X, W[:, :2], T), {}, RuntimeError, ["in_features", "3", "2"]),
    ((X, W.double(), T), {}, RuntimeError, ["same dtype", "float64"]),
    ((X, W.to("meta"), T), {}, RuntimeError, ["cpu", "meta"]),
    ((X, W, T), {"linear_bias": torch.zeros(4)}, RuntimeError, ["linear_bias", "(5,)", "(4,)"]),
    ((X, W, T[:3]), {}, ValueError, ["(4)", "(3)"]),
    ((X, W, T), {"weight": torch.ones(4)}, RuntimeError, ["5 classes", "[4]"]),
    ((X, W, T.float()), {}, RuntimeError, ["Long", "float32"]),
    ((X, W, T + 1), {}, IndexError, ["5", "0 <= target < 5"]),
    ((X, W, torch.rand(4, 5)), {"ignore_index": 2}, RuntimeError, ["ignore_index", "probabilities"]),
    ((X, W, T), {"label_smoothing": 1.5}, RuntimeError, ["label_smoothing", "1.5"]),
    ((X, W, T), {"softcap": 0.0}, ValueError, ["softcap", "0.0"]),
    ((X, W, T), {"reduction": "avg"}, ValueError, ["avg"]),
    ((X, W, T), {"empty": "one"}, ValueError, ["one"]),
    ((X, W, T), {"backend": "gpu"}, ValueError, ["gpu"]),
    ((X[0], torch.randn(5, 2, 3), T[0]), {}, RuntimeError, ["batched", "(3,)"]),
]


@pytest.mark.parametrize(("operands", "options", "kind", "words"), BAD)
def test_bad_calls(operands, options, kind, words):
    with pytest.raises(kind) as raised:
        ours.linear_cross_entropy(*operands, **options)
    assert type(raised.value) is kind
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_backwards_of_one_graph(backend):
    """Whatever is done to a gradient, the next one is not changed."""
    x, w, *_, target, _ = layer(dtype=torch.float32)
    loss = ours.linear_cross_entropy(x, w, target, backend=backend)
    wanted = torch.autograd.grad(F.cross_entropy(x @ w.t(), target), (x, w))
    for _ in range(3):
        loss.backward(retain_graph=True)
        torch.testing.assert_close((x.grad, w.grad), wanted)
        x.grad.data.zero_()
        w.grad.zero_()


def test_weights_of_next_to_nothing(backend):
    x, w, _, target, _ = layer(dtype=torch.float32)
    tiny = torch.full((6,), 1e-40)
    torch.testing.assert_close(ours.linear_cross_entropy(x, w, target, weight=tiny, backend=backend), ours.linear_cross_entropy(x, w, target),
                               rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_labels_that_no_class_has(backend, monkeypatch, reduction):
    """Where nobody looks at them, as on a GPU: the row's loss is NaN, and it has no gradient."""
    monkeypatch.setattr(fastloss._checks, "labels_in_range", lambda *given: None)
    x, w, b, target, weight = layer()
    for label in (-5, 6):
        target[2] = label
        for options in ({}, {"weight": weight}, {"label_smoothing": 0.1, "weight": weight}, {"z_loss": 0.1}):
            found = ours.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction, **options, backend=backend)
            assert found.isnan().sum() == 1 and (reduction != "none" or found[2].isnan())
            grad = torch.autograd.grad(found.nansum() if reduction == "none" else found, x)[0]
            assert torch.equal(grad[1:3], torch.zeros(2, 5, dtype=grad.dtype)) and grad.isfinite().all()
