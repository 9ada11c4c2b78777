"""Losses of embeddings in plain torch: against definitions over all pairs and whole covariance matrices, extremes, and what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradgradcheck

import fastloss.functional as ours


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same_gradients(got, wanted, leaves) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    for ours_, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves)):
        torch.testing.assert_close(ours_, theirs, rtol=1e-8, atol=1e-11)


def wrong_order(score, target):
    return torch.log1p(sum(torch.exp(score[i] - score[j]) for i, j in itertools.product(range(len(score)), repeat=2)
                           if target[i] < target[j]))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_order_losses_sum_over_all_pairs(levels):
    """With few levels many targets tie."""
    u, v, target = double(17, 6), double(17, 6), torch.randint(0, levels, (17,))
    same_gradients(ours.cosent_loss(u, v, target, 3.0), wrong_order(3 * F.cosine_similarity(u, v), target), (u, v))
    x, y = (torch.complex(*t.chunk(2, 1)) for t in (u, v))
    quotient = (x * y.conj() / (u.norm(dim=1) * v.norm(dim=1)).unsqueeze(1)).sum(1)
    same_gradients(ours.angle_loss(u, v, target, 3.0), wrong_order(3 * (quotient.real + quotient.imag).abs(), target), (u, v))


def test_order_losses_of_sharp_scales_and_few_rows():
    u, v = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    for target in (torch.arange(6.0), torch.zeros(6), torch.tensor([1.0, 0, 0, 0, 0, 0])):
        for name in ("cosent_loss", "angle_loss"):
            value = getattr(ours, name)(u, v, target, 1e4)
            (grad,) = torch.autograd.grad(value, u)
            assert value.isfinite() and value >= 0 and grad.isfinite().all()
            assert target.any() or (value == 0 and not grad.any())
            assert getattr(ours, name)(u[:1], v[:1], target[:1]) == 0
            assert getattr(ours, name)(u[:0], v[:0], target[:0]) == 0


def whole_vicreg(z1, z2, sim, std, cov, target, eps):
    loss = sim * F.mse_loss(z1, z2)
    for z in (z1, z2):
        loss = loss + std * F.relu(target - torch.sqrt(z.var(0) + eps)).mean() / 2
        matrix = torch.cov(z.T)
        loss = loss + cov * (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]
    return loss


def whole_barlow(z1, z2, lambd, deviation, eps):
    if deviation == "biased":
        first, second = (F.batch_norm(z, None, None, training=True, eps=eps) for z in (z1, z2))
    else:
        first, second = ((z - z.mean(0)) / (z.std(0) + eps) for z in (z1, z2))
    matrix = first.T @ second / len(z1)
    wrong = (matrix - torch.eye(z1.shape[1], dtype=z1.dtype)).square()
    return wrong.diagonal().sum() + lambd * (wrong.sum() - wrong.diagonal().sum())


@pytest.mark.parametrize("shape", [(5, 17), (17, 5), (8, 8), (2, 3), (3, 2)], ids=str)
def test_decorrelation_is_that_of_whole_matrices(shape):
    z1, z2 = double(*shape), double(*shape)
    got = ours.vicreg_loss(z1, z2, 3.0, 7.0, 2.0, 1.5, 1e-3)
    same_gradients(got, whole_vicreg(z1, z2, 3.0, 7.0, 2.0, 1.5, 1e-3), (z1, z2))
    for deviation, eps in (("biased", 1e-5), ("unbiased", 1e-4)):
        got = ours.barlow_twins_loss(z1, z2, 0.1, deviation)
        same_gradients(got, whole_barlow(z1, z2, 0.1, deviation, eps), (z1, z2))


@pytest.mark.parametrize("shape", [(3, 4), (4, 3)], ids=str)
def test_second_derivatives_of_decorrelation(shape):
    z1, z2 = double(*shape), double(*shape)
    for function in (ours.vicreg_loss, ours.barlow_twins_loss):
        assert gradgradcheck(function, (z1, z2))
        (wanted, _) = torch.autograd.grad(function(z1, z2, backend="eager"), (z1, z2))
        (got,) = torch.autograd.grad(function(z1, z2.detach()), z1)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_decorrelation_of_many_features_in_float32():
    """What the Gram matrix subtracts is small beside what is left."""
    z1, z2 = torch.randn(32, 2000), torch.randn(32, 2000)
    wide = z1.double(), z2.double()
    torch.testing.assert_close(ours.vicreg_loss(z1, z2).double(), whole_vicreg(*wide, 25, 25, 1, 1, 1e-4), rtol=2e-6, atol=0)
    torch.testing.assert_close(ours.barlow_twins_loss(z1, z2).double(), whole_barlow(*wide, 5e-3, "biased", 1e-5), rtol=2e-6, atol=0)


def test_no_matrix_of_features_by_features():
    """For D = 4000 one would be 64 MB; nothing that is kept is larger than the views."""
    sizes: list[int] = []
    z1, z2 = (torch.randn(8, 4000, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        (ours.vicreg_loss(z1, z2) + ours.barlow_twins_loss(z1, z2)).backward()
    assert max(sizes) <= 8 * 4000


def test_constant_features_have_finite_gradients():
    z = torch.randn(6, 4)
    z[:, 1] = 3.0
    z1, z2 = z.clone().requires_grad_(), z.flip(0).requires_grad_()
    for value in (ours.vicreg_loss(z1, z2), ours.barlow_twins_loss(z1, z2), ours.barlow_twins_loss(z1, z2, deviation="unbiased")):
        assert value.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(value, (z1, z2)))


def test_autocast_keeps_float32_inside():
    z1, z2 = torch.randn(6, 9), torch.randn(6, 9)
    for function in (ours.vicreg_loss, ours.barlow_twins_loss):
        with torch.autocast("cpu", torch.bfloat16):
            inside = function(z1, z2)
        assert torch.equal(inside, function(z1, z2))
    x, y, n = torch.randn(6, 10, requires_grad=True), torch.randn(6, 10), torch.randn(6, 3, 10)
    for run in (lambda: ours.angle_loss(x, y, torch.arange(6.0)), lambda: ours.margin_mse_loss(x, y, n, torch.ones(6, 3))):
        with torch.autocast("cpu", torch.bfloat16):
            inside = run()
        assert torch.equal(inside, run()) and torch.equal(*(torch.autograd.grad(loss, x)[0] for loss in (inside, run())))


def test_scores_in_another_dtype_do_not_widen_the_loss():
    u, v = torch.randn(5, 4).bfloat16(), torch.randn(5, 4).bfloat16()
    for name in ("cosine_similarity_loss", "cosent_loss", "angle_loss", "contrastive_loss"):
        assert getattr(ours, name)(u, v, torch.rand(5)).dtype == torch.bfloat16
        assert getattr(ours, name)(u, v, torch.tensor([0, 1, 1, 0, 1])).dtype == torch.bfloat16


X, Y, S = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4)
BAD = [
    ("margin_mse_loss", (X, Y[:2], Y, S), {}, ValueError, ["(4, 3)", "(2, 3)"]),
    ("margin_mse_loss", (X, Y, Y[:, :2], S), {}, ValueError, ["(N, K, D)", "(4, 2)"]),
    ("margin_mse_loss", (X, Y, Y, S[:2]), {}, ValueError, ["(4, 1)", "(4, 2)", "(2,)"]),
    ("cosine_similarity_loss", (X, Y, S[:2]), {}, ValueError, ["(4,)", "(2,)"]),
    ("cosine_similarity_loss", (X, Y, S.tolist()), {}, TypeError, ["target", "list"]),
    ("cosine_similarity_loss", (X, Y, S.to("meta")), {}, RuntimeError, ["cpu", "meta"]),
    ("cosine_similarity_loss", (X[0], Y[0], S[0]), {}, ValueError, ["(N, D)", "(3,)"]),
    ("cosent_loss", (X, Y, S), {"scale": 0.0}, ValueError, ["scale", "0.0"]),
    ("angle_loss", (X, Y, S), {}, ValueError, ["even", "3"]),
    ("angle_loss", (X, Y, S), {"scale": -1.0}, ValueError, ["scale", "-1.0"]),
    ("contrastive_loss", (X, Y, S), {"distance": "manhattan"}, ValueError, ["manhattan", "euclidean"]),
    ("contrastive_loss", (X, Y, S), {"margin": 0.0}, ValueError, ["margin"]),
    ("contrastive_loss", (X.long(), Y, S), {}, NotImplementedError, ["int64"]),
    ("triplet_margin_loss", (X, Y, Y), {"margin": 0.0}, ValueError, ["margin", "0.0"]),
    ("triplet_margin_loss", (X, Y, Y[0]), {}, RuntimeError, ["2D", "1D"]),
    ("triplet_margin_with_distance_loss", (X, Y, Y), {"reduction": "avg"}, ValueError, ["avg"]),
    ("triplet_margin_with_distance_loss", (X, Y, None), {}, TypeError, ["negative", "NoneType"]),
    ("cosine_embedding_loss", (X, Y, torch.ones(4, 1)), {}, RuntimeError, ["0D or 1D", "(4, 1)"]),
    ("cosine_embedding_loss", (X, Y, torch.ones(())), {}, RuntimeError, ["1D input", "(4, 3)"]),
    ("cosine_embedding_loss", (X, Y, 1), {}, TypeError, ["target", "int"]),
    ("vicreg_loss", (X, Y[:2]), {}, ValueError, ["(4, 3)", "(2, 3)"]),
    ("vicreg_loss", (X[:1], Y[:1]), {}, ValueError, ["at least 2", "got 1"]),
    ("vicreg_loss", (X, Y), {"std_coeff": -1.0}, ValueError, ["std_coeff", "-1.0"]),
    ("vicreg_loss", (X, Y), {"eps": 0.0}, ValueError, ["eps"]),
    ("barlow_twins_loss", (X[0], Y[0]), {}, ValueError, ["(N, D)", "(3,)"]),
    ("barlow_twins_loss", (X, Y), {"lambd": -1.0}, ValueError, ["lambd"]),
    ("barlow_twins_loss", (X, Y), {"deviation": "none"}, ValueError, ["none", "unbiased"]),
]


@pytest.mark.parametrize(("name", "operands", "options", "kind", "words"), BAD)
def test_bad_calls(name, operands, options, kind, words):
    with pytest.raises(kind) as raised:
        getattr(ours, name)(*operands, **options)
    assert type(raised.value) is kind
    for word in words:
        assert word in str(raised.value), str(raised.value)
