"""Stablemax over long rows and huge logits, losses of sequences against their definitions in float64, and detached targets."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastloss.functional as ours
import fastloss.nn

DOUBLE = torch.float64


def stablemax(x: Tensor) -> Tensor:
    """Its logarithm, by the definition."""
    s = torch.where(x >= 0, x.clamp_min(0) + 1, 1 / (1 - x.clamp_max(0)))
    return s.log() - s.sum(-1, keepdim=True).log()


def nll(log_prob: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    found = -log_prob.gather(-1, target.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(target == ignore_index, 0.0, found)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e30])
@pytest.mark.parametrize("classes", [3, 1000, 100_003])
def test_stablemax_of_any_size(backend, classes, scale):
    classes = min(classes, 5000) if backend == "triton" else classes
    g = torch.Generator().manual_seed(classes)
    x, y = scale * torch.randn(3, classes, generator=g), torch.randint(classes, (3,), generator=g)
    x[1, y[1]] = 2 * x.abs().max()  # one confident row
    x.requires_grad_()
    loss = ours.stablemax_cross_entropy(x, y, reduction="none", backend=backend)
    wide = x.detach().double().requires_grad_()
    truth = nll(stablemax(wide), y, -100)
    # A logarithm of s up to 70 is rounded to 4e-6, which is the relative error of a probability.
    close = 1e-6 if scale < 1e30 else 1e-5
    torch.testing.assert_close(loss.double(), truth, rtol=close, atol=1e-7)
    (grad,), (wanted,) = torch.autograd.grad(loss.sum(), x), torch.autograd.grad(truth.sum(), wide)
    assert grad.isfinite().all()
    torch.testing.assert_close(grad.double(), wanted, rtol=10 * close, atol=1e-37)


def test_stablemax_at_the_ends_of_float32(backend):
    """No overflow, where the sum itself is beyond the largest number; a class of -inf has no share."""
    top = torch.finfo(torch.float32).max
    x = torch.tensor([[top, top, -top], [0.0, -torch.inf, 0.0], [top, 1.0, -torch.inf]], requires_grad=True)
    loss, lse = ours.stablemax_cross_entropy(x, torch.tensor([0, 2, 1]), reduction="none", return_lse=True, backend=backend)
    size = torch.tensor(top, dtype=DOUBLE).log1p().item()
    torch.testing.assert_close(loss, torch.tensor([0.6931472, 0.6931472, size - 0.6931472]))
    torch.testing.assert_close(lse, torch.tensor([size + 0.6931472, 0.6931472, size]))
    (grad,) = torch.autograd.grad(loss.sum(), x)
    torch.testing.assert_close(grad[1], torch.tensor([0.5, 0.0, -0.5]))
    assert grad.isfinite().all() and grad[2, 1] == -0.5


@pytest.mark.parametrize("kernels", ["cpu", "cuda"])
def test_only_cross_entropys_kernels_have_stablemax(kernels):
    """The operator itself refuses what no loss asks for."""
    x, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    ours.cross_entropy(x, y, backend=kernels)  # which loads them
    run = getattr(torch.ops.fastloss.row_forward, kernels)
    for functor, stablemax in (("cross_entropy", True), ("nll", False)):
        run(x, y, None, functor, [], 0.0, 0.0, 0.0, 1.0, stablemax, -100, 1, False, False, False, torch.float32)
    with pytest.raises(RuntimeError, match="no stablemax for nll"):
        run(x, y, None, "nll", [], 0.0, 0.0, 0.0, 1.0, True, -100, 1, False, False, False, torch.float32)


def test_stablemax_slope_on_both_sides_of_zero():
    """The derivative of log s is 1 / (1 + |x|), and 1 at 0 itself."""
    x = torch.tensor([[-3.0, 0.0, 1.0]], dtype=DOUBLE, requires_grad=True)
    (grad,) = torch.autograd.grad(ours.stablemax_cross_entropy(x, torch.tensor([1])), x)
    s = torch.tensor([0.25, 1.0, 2.0], dtype=DOUBLE)
    wanted = (s / s.sum() - torch.tensor([0.0, 1.0, 0.0])) / torch.tensor([4.0, 1.0, 2.0])
    torch.testing.assert_close(grad[0], wanted, rtol=1e-14, atol=0)


def sequences(dtype=DOUBLE, ignore_index=-100):
    """Logits, tokens of which some do not count, in one sequence none, and all right in another; halting scores."""
    g = torch.Generator().manual_seed(3)
    x = 2 * torch.randn(4, 5, 7, generator=g, dtype=DOUBLE)
    y = torch.randint(1, 7, (4, 5), generator=g)
    y[0, 2:] = ignore_index
    y[1] = ignore_index
    x[2] += 20 * F.one_hot(y[2], 7)
    q = torch.randn(4, generator=g, dtype=DOUBLE), torch.randn(4, generator=g, dtype=DOUBLE), torch.rand(4, generator=g, dtype=DOUBLE)
    return x.to(dtype).requires_grad_(), y, *(t.to(dtype) for t in q)


def hrm(x, y, halt, go, target, lm_loss_type, lm_reduction, ignore_index, w=0.5):
    """The loss, whether each sequence is right, and the share of its tokens that are."""
    losses = nll(stablemax(x) if lm_loss_type == "stable_max" else x.log_softmax(-1), y, ignore_index)
    counts = y != ignore_index
    hits = ((x.argmax(-1) == y) & counts).sum(1)
    number = counts.sum(1).clamp_min(1)
    if lm_reduction == "sequence_sum":
        lm, correct, how = (losses.sum(1) / number).sum(), hits == counts.sum(1), "sum"
    else:
        lm, correct, how = losses.sum() / number.sum(), hits == number, "mean"
        if lm_reduction == "source" and lm_loss_type == "stable_max":
            lm = lm / y.numel()
    q = [F.binary_cross_entropy_with_logits(halt, correct.to(halt), reduction=how)]
    if go is not None:
        q.append(F.binary_cross_entropy_with_logits(go, target, reduction=how))
    return lm + w * sum(q), correct, hits / number


@pytest.mark.parametrize("kind, how", list(itertools.product(("stable_max", "softmax"), ("token", "sequence_sum", "source"))))
def test_hrm_is_its_definition(kind, how):
    for ignore_index, alone in ((-100, False), (0, True)):
        x, y, halt, go, target = sequences(ignore_index=ignore_index)
        rest = (None, None) if alone else (go.requires_grad_(), target)
        halt.requires_grad_()
        got, parts = ours.hrm_loss(x, y, halt, *rest, kind, ignore_index=ignore_index, lm_reduction=how, return_parts=True)
        wanted, correct, accuracy = hrm(x, y, halt, *rest, kind, how, ignore_index)
        assert parts.correct.tolist() == correct.tolist() and correct.any() and not correct.all()
        torch.testing.assert_close(parts.accuracy, accuracy.to(DOUBLE))
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
        torch.testing.assert_close(parts.lm + 0.5 * (parts.q_halt + parts.q_continue), got)
        leaves = [t for t in (x, halt, *rest) if t is not None and t.requires_grad]
        for found, truth in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves)):
            torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-14)


def test_hrm_in_half_precision_rounds_once():
    """Losses of single tokens are never rounded to the logits' dtype, nor does their sum overflow in float16."""
    x, y, halt, *_ = sequences(torch.float16)
    long = x.detach().repeat(1, 4000, 1), y.repeat(1, 4000)
    got = ours.hrm_loss(*long, halt, lm_loss_type="softmax", lm_reduction="sequence_sum")
    wanted, *_ = hrm(long[0].double(), long[1], halt.double(), None, None, "softmax", "sequence_sum", -100)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.double(), wanted, rtol=2**-11, atol=0)


def test_hrm_without_sequences():
    x = torch.zeros(0, 3, 4, requires_grad=True)
    loss = ours.hrm_loss(x, torch.zeros(0, 3, dtype=torch.long), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0 and x.grad.shape == x.shape


def test_hrm_module_takes_the_optional_scores_with_the_inputs():
    x, y, *q = sequences()
    module = fastloss.nn.HrmLoss("softmax", 0.25, lm_reduction="sequence_sum")
    assert torch.equal(module(x, y, *q), ours.hrm_loss(x, y, *q, "softmax", 0.25, lm_reduction="sequence_sum"))
    assert torch.equal(module(x, y, q[0]), ours.hrm_loss(x, y, q[0], None, None, "softmax", 0.25, lm_reduction="sequence_sum"))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_nano_vlm_is_the_loss_of_the_shifted_sequence(reduction):
    for ignore_index, smoothing in itertools.product((0, -100), (0.0, 0.3)):
        x, y, *_ = sequences(ignore_index=ignore_index)
        got = ours.nano_vlm_loss(x, y, ignore_index, smoothing, reduction=reduction)
        wanted = F.cross_entropy(x[:, :-1].movedim(2, 1), y[:, 1:], None, None, ignore_index, None, reduction, smoothing)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
        (found,), (truth,) = torch.autograd.grad(got.sum(), x), torch.autograd.grad(wanted.sum(), x)
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-15)
        p = (x / 8).softmax(2)
        wanted = F.cross_entropy((x / 8)[:, :-1].movedim(2, 1), y[:, 1:], None, None, ignore_index, None, reduction, smoothing)
        of_p = ours.nano_vlm_loss(p, y, ignore_index, smoothing, from_logits=False, reduction=reduction)
        torch.testing.assert_close(of_p, wanted, rtol=1e-5, atol=1e-8)


def test_nano_vlm_over_no_token_is_0():
    for tokens in (torch.ones(2, 1), torch.zeros(2, 3), torch.ones(2, 0)):
        x, y = torch.randn(*tokens.shape, 5), tokens
        for options in ({}, {"from_logits": False, "label_smoothing": 0.1}):
            leaf = x.abs().requires_grad_()
            loss = ours.nano_vlm_loss(leaf, y.long(), **options)
            loss.backward()
            assert loss.item() == 0 and not leaf.grad.any()
            assert ours.nano_vlm_loss(leaf, y.long(), **options, reduction="none").shape == (2, max(y.shape[1] - 1, 0))


def test_the_last_place_may_hold_anything():
    x = torch.randn(1, 3, 4)
    x[:, -1] = torch.nan
    x.requires_grad_()
    loss = ours.nano_vlm_loss(x, torch.tensor([[1, 2, 3]]))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all() and not x.grad[:, -1].any()


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_targets_are_detached_and_views_exchange(name):
    function = getattr(ours, f"{name}_loss")
    p1, p2, z1, z2 = (torch.randn(5, 3, dtype=DOUBLE, requires_grad=True) for _ in range(4))
    loss = function(p1, p2, z1, z2)
    grads = torch.autograd.grad(loss, (p1, p2, z1, z2), allow_unused=True)
    assert [g is None for g in grads] == [False, False, True, True]
    torch.testing.assert_close(loss, function(p2, p1, z2, z1))
    cos = F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)
    torch.testing.assert_close(loss, (-cos / 2 if name == "simsiam" else 4 - 2 * cos).mean())


def test_byol_of_parallel_vectors_does_not_cancel():
    p = torch.tensor([[1.0, 1e-5]])
    q = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(ours.byol_loss(p, p, q, q), torch.tensor(2e-10), rtol=1e-5, atol=0)


X, Y, Q = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2)
BAD = [
    (ours.hrm_loss, (X, Y[:, :2], Q), {}, ValueError, [r"(2, 3, 4)", "(2, 2)"]),
    (ours.hrm_loss, (X[0], Y[0], Q), {}, ValueError, ["(B, T, V)", "(3, 4)"]),
    (ours.hrm_loss, (X, Y, X), {}, ValueError, ["q_halt_logits must be (2,)"]),
    (ours.hrm_loss, (X, Y, Q, Q), {}, ValueError, ["go together"]),
    (ours.hrm_loss, (X, Y, None), {}, TypeError, ["q_halt_logits"]),
    (ours.hrm_loss, (X, Y, Q), {"lm_loss_type": "stablemax"}, ValueError, ["stable_max", "'stablemax'"]),
    (ours.hrm_loss, (X, Y, Q), {"lm_reduction": "mean"}, ValueError, ["sequence_sum", "'mean'"]),
    (ours.hrm_loss, (X, Y + 4, Q), {}, IndexError, ["4"]),
    (ours.hrm_loss, (X, Y.float(), Q), {}, RuntimeError, ["class indices", "float32"]),
    (ours.nano_vlm_loss, (X, Y[:1]), {}, ValueError, ["(1, 3)"]),
    (ours.nano_vlm_loss, (X, Y.tolist()), {}, TypeError, ["target", "list"]),
    (ours.nano_vlm_loss, (X, Y), {"label_smoothing": 2.0}, RuntimeError, ["2.0"]),
    (ours.nano_vlm_loss, (X, Y), {"label_smoothing": 2.0, "from_logits": False}, RuntimeError, ["2.0"]),
    (ours.nano_vlm_loss, (X, Y), {"reduction": "avg"}, ValueError, ["avg"]),
    (ours.simsiam_loss, (X, X, X, X), {}, ValueError, ["(N, D)", "(2, 3, 4)"]),
    (ours.byol_loss, (X[0], X[0], X[0], X[1, :2]), {}, ValueError, ["target2", "(2, 4)"]),
    (ours.stablemax_cross_entropy, (X[0], Y[0, :2]), {}, ValueError, ["3", "2"]),
]


@pytest.mark.parametrize(("function", "args", "options", "error", "words"), BAD)
def test_bad_calls(function, args, options, error, words):
    with pytest.raises(error) as raised:
        function(*args, **options)
    for word in words:
        assert word in str(raised.value), str(raised.value)
