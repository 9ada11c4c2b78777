"""Losses in plain torch: values by hand, gradients against formulas, every backend underneath, and what they refuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastloss
import fastloss.functional as ours
from fastloss.cases import LAYOUTS
from fastloss.elementwise_cases import middle
from fastloss.fuzz import DTYPES, run
from fastloss.oracle import check
from fastloss.plain_cases import VALUES, PlainCase
from fastloss.registry import LOSSES

ENGINE = "plain"
REDUCTIONS = ("none", "mean", "sum")
L2, LOG3 = math.log(2), math.log(3)
# Entropies of (3/4, 1/4), and of (5/8, 3/8): the mean of that and (1/2, 1/2).
H4, H8 = (-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.25, 0.375))
COST = -0.25 * (L2 + H4) + 0.1 * (H8 - 0.5 * (L2 + H4))


@pytest.mark.parametrize("values", VALUES)
def test_values(loss, backend, values):
    for dtype, reduction in itertools.product(DTYPES if backend != "triton" else DTYPES[:1], REDUCTIONS):
        check(PlainCase(shape=(5, 9), values=values, dtype=dtype, reduction=reduction, gradients="operands").of(loss), None, backend)


def test_layouts_and_shapes(loss, backend):
    shapes = ((7,), (1, 1), (3, 8), (4, 33), (2, 3, 5), (2, 3, 4, 2))
    shapes = [s for s in shapes if LOSSES[loss].dims[0] <= len(s) <= LOSSES[loss].dims[1]]
    for i, (shape, layout) in enumerate(itertools.product(shapes, LAYOUTS if backend == "cpu" else ["transposed"])):
        check(PlainCase(shape=shape, layout=layout, dtype=DTYPES[i % 4], seed=i, reduction=REDUCTIONS[i % 3]).of(loss), None, backend)


def test_parameters(loss, backend):
    about = LOSSES[loss]
    grids = [[low, middle((low, high)), high] for low, high in about.params.values()] + [list(values) for values in about.choices.values()]
    names = [*about.params, *about.choices]
    case = PlainCase(shape=(4, 6), gradients="operands").of(loss)
    points = list(itertools.product(*grids))
    for point in points[:: max(len(points) // 6, 1)] if backend == "triton" else points:
        check(PlainCase(**{**vars(case), "params": tuple(zip(names, point))}), None, backend)


def test_gradcheck(loss):
    for reduction in REDUCTIONS:
        call = PlainCase(shape=(3, 4), dtype="float64", reduction=reduction, gradients="operands").of(loss).build()
        leaves = {name: call.by_name[name].clone().requires_grad_() for name in call.differentiable()}

        def function(*values):
            positional, named = call.arguments(call.tensors() | dict(zip(leaves, values)))
            return LOSSES[loss].function(*positional, **named, **call.options)

        assert gradcheck(function, tuple(leaves.values()))
        assert gradgradcheck(function, tuple(leaves.values()))


def test_func_and_compile(loss):
    call = PlainCase(shape=(3, 4)).of(loss).build()
    name = call.differentiable()[0]

    def function(x):
        positional, named = call.arguments(call.tensors() | {name: x})
        return LOSSES[loss].function(*positional, **named, **call.options)

    x = call.by_name[name].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(function(x), x)
    torch.testing.assert_close(torch.func.grad(function)(x.detach()), wanted)
    torch._dynamo.reset()
    (got,) = torch.autograd.grad(torch.compile(function, backend="aot_eager", fullgraph=True)(x), x)
    torch.testing.assert_close(got, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert function(x.detach().bfloat16()).dtype == torch.float32


def test_tensor_subclasses(loss):
    """Every option reaches the loss also through __torch_function__."""
    kind = type("Mine", (torch.Tensor,), {})
    about = LOSSES[loss]
    case = PlainCase(shape=(3, 4), reduction="none").of(loss)
    last = {name: values[-1] for name, values in about.choices.items()} | {name: high for name, (_, high) in about.params.items()}
    call = PlainCase(**{**vars(case), "params": tuple(last.items())}).build()
    tensors = call.arguments(call.tensors())[0]
    wanted = about.function(*tensors, **call.options)
    got = about.function(*(t.as_subclass(kind) for t in tensors), **call.options)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), wanted)


@pytest.mark.slow
def test_random_cases(loss, backend):
    finding = run(loss, backend, examples={"cuda": 100, "triton": 12}.get(backend, 300), seed=11)
    assert finding is None, finding.script


BY_HAND = [
    # probabilities 1/4, 1/2, 1/4; the last is clipped to 1.99
    ("dfl_loss", ([[0.0, L2, 0.0]] * 3, [0.25, 1.5, 7.0]), {}, [1.75 * L2, 1.5 * L2, 1.99 * L2]),
    ("dfl_loss", ([[0.0, L2, 0.0]] * 2, [1.0, -3.0]), {"weight": [3.0, 0.5]}, [3 * L2, L2]),
    ("classification_focal_loss", ([[0.0, 0.0]], [[0.0, 1.0]]), {}, [L2 / 8]),
    ("dice_focal_segmentation_loss", ([[[[0.0, 0.0], [0.0, 0.0]]]], [[[0, 1]]]), {}, [0.5 - 0.5 * (1 + 1e-7) / (2 + 1e-7) + L2 / 8]),
    # (1 - 0.5 + 1) / 3; squared
    ("multi_margin_loss", ([[0.5, 1.0, -2.0]], [0]), {}, [0.5]),
    ("multi_margin_loss", ([[0.5, 1.0, -2.0]], [0]), {"p": 2}, [0.75]),
    ("multi_margin_loss", ([[0.5, 1.0, -2.0], [0.0, 0.0, 0.0]], [0, 2]), {"margin": 0.5, "weight": [3.0, 1.0, 6.0]}, [1.0, 2.0]),
    # labels 3 and 0 of four: 1 - 0.8 + 0.2, 1 - 0.8 + 0.4, 1 - 0.1 + 0.2, 1 - 0.1 + 0.4
    ("multilabel_margin_loss", ([[0.1, 0.2, 0.4, 0.8]], [[3, 0, -1, 1]]), {}, [0.85]),
    ("multilabel_margin_loss", ([[0.1, 0.2, 0.4, 0.8]], [[3, 3, -1, 1]]), {}, [(2 * 0.3 + 2 * 0.4 + 2 * 0.6) / 4]),
    ("multilabel_margin_loss", ([[0.1, 0.2], [5.0, 1.0]], [[-1, 0], [0, 1]]), {}, [0.0, 0.0]),
    ("vae_elbo_loss", ([[0.0, 0.0]], [[1.0, 0.0]], [[1.0]], [[L2]]), {}, [2 * L2 + 0.5 * (2.0 - L2)]),
    ("vae_elbo_loss", ([[3.0, 0.0]], [[1.0, 0.0]], [[1.0]], [[0.0]]), {"recon": "gaussian", "beta": 4.0}, [4.0]),
    ("vae_elbo_loss", ([[3.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]), {"recon": "l1", "kl_free_bits": 0.75}, [3.5]),
    ("vae_elbo_loss", ([[0.5, 0.25]], [[1.0, 1.0]], [[0.0]], [[0.0]]), {"recon": "bce"}, [3 * L2]),
    ("linear_distillation_loss", ([[1.0]], [[LOG3], [0.0]], [[0.0, 0.0]]), {}, [0.5 * math.log(4 / 3)]),
    ("linear_distillation_loss", ([[0.5]], [[LOG3], [0.0]], [[0.0, 0.0]]), {"kind": "tv", "temperature": 0.5}, [0.25 * 0.25]),
    ("linear_distillation_loss", ([[1.0]], [[0.0], [0.0]], [[1.0]], [[0.0], [0.0]], [LOG3, 0.0]), {"kind": "reverse_kl"},
     [0.75 * math.log(1.5) + 0.25 * math.log(0.5)]),
    ("wasserstein_divergence", ([[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]]), {"eps": 1e-12}, [0.5]),
    ("mase_loss", ([[2.0, 2.0, 5.0], [1.0, 1.0, 1.0]], [[1.0, 2.0, 4.0], [1.0, 1.0, 2.0]]), {},
     [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
    ("mase_loss", ([[2.0, 2.0, 5.0], [1.0, 1.0, 1.0]], [[1.0, 2.0, 4.0], [1.0, 1.0, 2.0]]), {"scale": "series"},
     [[1 / 1.5, 0.0, 1 / 1.5], [0.0, 0.0, 2.0]]),
    ("mase_loss", ([[2.0, 2.0, 5.0]], [[1.0, 2.0, 4.0]]), {"seasonal_periods": 2}, [[1 / 3, 0.0, 1 / 3]]),
    ("mase_loss", ([[2.0, 2.0, 5.0]], [[1.0, 2.0, 4.0]]), {"seasonal_periods": 7}, [[1 / 1.5, 0.0, 1 / 1.5]]),
    ("mase_loss", ([1.0, 2.0], [2.0, -4.0]), {}, [1 / 3, 2.0]),
    # medians 2.5 and 2, mean distances 1 and 1.5 of [1, 2, 3, 4] and [0, 1, 3, 4]: even numbers
    ("affine_invariant_loss", ([[1.0, 2.0, 3.0, 4.0]], [[0.0, 1.0, 3.0, 4.0]]), {}, [1 / 6]),
    ("affine_invariant_loss", ([[1.0, 2.0, 9.0]], [[0.0, 1.0, 8.0]]), {}, [0.0]),
    ("affine_invariant_loss", ([[1.0, 2.0, 3.0, 4.0]], [[0.0, 1.0, 77.0, 4.0]]), {"mask": [[True, True, False, True]]}, [1 / 6]),
    ("clustering_loss", ([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]), {}, [0.125, 1.125]),
    ("feature_alignment_loss", ([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]], [[0.0, 2.0], [3.0, 4.0], [1.0, 0.0]]), {}, [1.0, 0.0, 1.0]),
    ("spiegelhalter_z_loss", ([0.5, 0.5], [1.0, 1.0]), {}, 1 / (0.5 + 1e-7)),
    ("spiegelhalter_z_loss", ([0.25, 0.25], [1.0, 0.0]), {"use_squared": False}, 0.5 / math.sqrt(0.375 + 1e-7)),
    ("spiegelhalter_z_loss", ([0.25, 0.5], [1.0, 1.0]), {"variant": "classical"}, 0.375**2 / (0.25 * 0.1875 + 1e-7)),
    ("spiegelhalter_z_loss", ([-math.log(3), 0.0], [1.0, 1.0]), {"variant": "classical", "from_logits": True},
     0.375**2 / (0.25 * 0.1875 + 1e-7)),
    ("decoupled_information_loss", ([[0.0, 0.0], [LOG3, 0.0]], [0, 1]), {"uncertainty_weight": 0.5, "diversity_weight": 0.25},
     [L2 - 0.25 * (L2 + H4) - 0.25 * H8, 2 * L2 - 0.25 * (L2 + H4) - 0.25 * H8]),
    ("decoupled_information_loss", ([[0.25, 0.25], [0.75, 0.25]], [0, 1]), {"from_logits": False, "diversity_weight": 0.25},
     [L2 - 0.1 * (L2 + H4) - 0.25 * H8, 2 * L2 - 0.1 * (L2 + H4) - 0.25 * H8]),
    ("decoupled_information_loss", ([[LOG3, 0.0]], [0]), {"uncertainty_weight": 0.0, "diversity_weight": 0.0, "label_smoothing": 0.5},
     [0.75 * math.log(4 / 3) + 0.5 * L2]),
    ("focal_uncertainty_loss", ([[0.0, 0.0], [LOG3, 0.0]], [0, 1]), {"alpha": 1.0},
     [0.25 * L2 - 0.1 * (L2 + H4), 0.5625 * 2 * L2 - 0.1 * (L2 + H4)]),
    ("focal_uncertainty_loss", ([[LOG3, 0.0]], [1]), {"alpha": 0.5, "gamma": 1.0, "label_smoothing": 0.5, "uncertainty_weight": 0.0},
     [0.5 * (0.25 * 0.25 * math.log(4 / 3) + 0.75 * 0.75 * 2 * L2)]),
    ("goodhart_aware_loss", ([[0.0, 0.0], [LOG3, 0.0]], [0, 1]), {"entropy_weight": 0.5, "mi_weight": 0.1},
     [L2 + COST, 2 * L2 + COST]),
    ("categorical_focal_loss", ([[0.5, 0.5], [0.75, 0.25]], [[1.0, 0.0], [0.5, 0.5]]), {"alpha": 0.5},
     [0.125 * L2, 0.25 * (math.log(4 / 3) / 16 + 9 / 16 * 2 * L2)]),
    ("categorical_focal_loss", ([[1.0, 3.0], [0.0, 2.0]], [[1.0, 0.0], [0.5, 0.5]]), {"gamma": 0.0, "normalize": True, "eps": 0.125},
     [2 * L2, 0.5 * (3 * L2 + math.log(8 / 7))]),
    ("calibration_loss", ([0.5, 0.5], [1.0, 1.0]), {"alpha": 0.75}, 0.75 * 0.25 + 0.25 / (0.5 + 1e-7)),
    # margins 2 - 1 and 2 - (-3), of a teacher 0.5 and 4
    ("margin_mse_loss", ([[1.0, 1.0]], [[2.0, 0.0]], [[[0.0, 1.0], [-3.0, 0.0]]], [[0.5, 4.0]]), {}, [[0.25, 1.0]]),
    ("margin_mse_loss", ([[1.0, 1.0]], [[2.0, 0.0]], [[[0.0, 1.0], [-3.0, 0.0]]], [[1.5, 1.0, -2.5]]), {}, [[0.25, 1.0]]),
    ("margin_mse_loss", ([[1.0, 1.0]], [[2.0, 0.0]], [[0.0, 1.0]], [3.0]), {}, [[4.0]]),
    ("cosine_similarity_loss", ([[1.0, 0.0], [0.0, 0.0]], [[3.0, 4.0], [1.0, 1.0]], [0.1, 0.5]), {}, [0.25, 0.25]),
    # cosines 1, 0, -1 in this order, wanted the other way round but for one tie
    ("cosent_loss", ([[1.0, 0.0]] * 3, [[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [0.1, 0.3, 0.3]), {"scale": 1.0},
     math.log(1 + math.e + math.exp(2))),
    ("cosent_loss", ([[1.0, 0.0]] * 2, [[2.0, 0.0], [0.0, 1.0]], [0.3, 0.3]), {}, 0.0),
    # 1 with itself, |0.6 - 0.8| = 0.2 with (3 + 4i) / 5
    ("angle_loss", ([[1.0, 0.0]] * 2, [[1.0, 0.0], [3.0, 4.0]], [0.2, 0.9]), {"scale": 1.0}, math.log(1 + math.exp(0.8))),
    ("contrastive_loss", ([[0.0], [0.0], [0.0]], [[0.5 - 1e-6], [0.5 + 1e-6], [3.0]], [1.0, 0.0, 0.0]), {"margin": 2.0},
     [0.25 - 2e-6 + 4e-12, 2.25, 0.0]),
    ("contrastive_loss", ([[1.0, 0.0], [1.0, 0.0]], [[3.0, 4.0], [3.0, 4.0]], [1.0, 0.0]), {"margin": 0.5, "distance": "cosine"},
     [0.16, 0.01]),
    ("triplet_margin_loss", ([[0.0, 0.0]] * 2, [[3.0, 4.0]] * 2, [[0.0, 2.0], [0.0, 9.0]]), {"eps": 0.0}, [4.0, 0.0]),
    ("triplet_margin_loss", ([[0.0, 0.0]], [[3.0, 0.0]], [[5.0, 0.0]]), {"eps": 0.0, "swap": True, "p": 1.0}, [2.0]),
    ("triplet_margin_with_distance_loss", ([[0.0, 0.0]], [[3.0, 4.0]], [[0.0, 2.0]]),
     {"distance_function": lambda x, y: (x - y).abs().sum(-1)}, [6.0]),
    ("cosine_embedding_loss", ([[1.0, 0.0]] * 4, [[3.0, 4.0], [3.0, 4.0], [-1.0, 0.0], [1.0, 1.0]], [1, -1, -1, 0]), {"margin": 0.25},
     [0.4, 0.35, 0.0, 0.0]),
    # variances 2 and 8 (no hinge), covariance 4, of both views
    ("vicreg_loss", ([[1.0, 2.0], [-1.0, -2.0]], [[1.0, 2.0], [-1.0, -2.0]]), {}, 2 * 2 * 16 / 2),
    # the views differ by 1 and 3; variances 2 and 0
    ("vicreg_loss", ([[1.0, 0.0], [-1.0, 0.0]], [[2.0, 3.0], [0.0, 3.0]]), {"sim_coeff": 1.0, "std_coeff": 4.0, "eps": 1e-8},
     5.0 + 2 * 0.9999),
    ("barlow_twins_loss", ([[1.0, 2.0], [-1.0, -2.0]], [[1.0, 2.0], [-1.0, -2.0]]), {"lambd": 0.5, "eps": 1e-13}, 1.0),
    ("barlow_twins_loss", ([[1.0, 2.0], [-1.0, -2.0]], [[1.0, 2.0], [-1.0, -2.0]]), {"lambd": 2.0, "eps": 1e-13, "deviation": "unbiased"},
     1.5),
    # cosines 0.6 and 1
    ("simsiam_loss", ([[1.0, 0.0]], [[2.0, 0.0]], [[1.0, 0.0]], [[3.0, 4.0]]), {}, [-0.8]),
    ("byol_loss", ([[1.0, 0.0]], [[2.0, 0.0]], [[1.0, 0.0]], [[3.0, 4.0]]), {}, [2 - 2 * 0.6]),
    ("nano_vlm_loss", ([[[0.0] * 4] * 3], [[3, 2, 0]]), {}, [[2 * L2, 0.0]]),
    ("nano_vlm_loss", ([[[0.0, LOG3], [9.0, 9.0]]], [[1, 1]]), {"ignore_index": -100, "label_smoothing": 0.5},
     [[2 * L2 - 0.75 * LOG3]]),
    ("nano_vlm_loss", ([[[0.25, 0.75], [9.0, 9.0]]], [[0, 1]]), {"from_logits": False, "label_smoothing": 0.2},
     [[-0.9 * math.log(0.75 + 1e-8) - 0.1 * math.log(0.25 + 1e-8)]]),
    # stablemax of 4, 1/2 and 1: one token, right, so the halting score log 3 has the cross-entropy log(4 / 3)
    ("hrm_loss", ([[[3.0, -1.0, 0.0], [0.0, 0.0, 0.0]]], [[0, -100]], [LOG3]), {}, math.log(5.5 / 4) + 0.5 * math.log(4 / 3)),
    ("hrm_loss", ([[[0.0, LOG3]]], [[0]], [0.0], [-LOG3], [0.5]), {"lm_loss_type": "softmax", "q_loss_weight": 2.0},
     2 * L2 + 2 * (L2 + 2 * L2 - 0.5 * LOG3)),
]
SCALAR = ("spiegelhalter_z_loss", "calibration_loss", "cosent_loss", "angle_loss", "vicreg_loss", "barlow_twins_loss", "hrm_loss")


def _tensor(value):
    return torch.tensor(value, dtype=torch.float64 if torch.tensor(value).is_floating_point() else None)


@pytest.mark.parametrize(("name", "operands", "options", "wanted"), BY_HAND)
def test_by_hand(backend, name, operands, options, wanted):
    options = {key: _tensor(value) if key in ("weight", "mask") else value for key, value in options.items()}
    summed = {} if name in SCALAR else {"reduction": "none"}
    got = getattr(ours, name)(*map(_tensor, operands), **options, **summed, backend=backend)
    torch.testing.assert_close(got, _tensor(wanted), rtol=1e-9, atol=1e-12)


def test_every_loss_is_computed_by_hand(loss):
    assert LOSSES[loss].function.__name__ in {name for name, *_ in BY_HAND}


# Gradients against formulas that were derived on paper, in float64


def _gradient(value, leaf):
    return torch.autograd.grad(value, leaf)[0]


def test_gradient_of_the_negative_elbo():
    r, x, mu, v = (torch.randn(5, 7, dtype=torch.float64, requires_grad=i != 1) for i in range(4))
    value = ours.vae_elbo_loss(r, torch.sigmoid(x), mu, v, beta=3.0)
    torch.testing.assert_close(_gradient(value, mu), 3 * mu / 5, rtol=1e-12, atol=0)
    value = ours.vae_elbo_loss(r, torch.sigmoid(x), mu, v, beta=3.0)
    torch.testing.assert_close(_gradient(value, v), 3 * torch.expm1(v) / 10, rtol=1e-12, atol=0)
    value = ours.vae_elbo_loss(r, torch.sigmoid(x), mu, v, recon="gaussian")
    torch.testing.assert_close(_gradient(value, r), (r - torch.sigmoid(x)) / 5, rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**126, 0.0])
def test_normalized_probabilities_of_any_size(factor):
    p, t = torch.rand(5, 4), torch.rand(5, 4)
    small = (p * factor).requires_grad_()
    value = ours.categorical_focal_loss(small, t, normalize=True)
    if not factor:
        torch.testing.assert_close(value, ours.categorical_focal_loss(torch.zeros(5, 4), t))
        assert not _gradient(value, small).any()
        return
    torch.testing.assert_close(value, ours.categorical_focal_loss(p, t, normalize=True), rtol=0, atol=0)
    p.requires_grad_()
    wanted = _gradient(ours.categorical_focal_loss(p, t, normalize=True), p)
    torch.testing.assert_close(_gradient(value, small) * factor, wanted, rtol=1e-5, atol=1e-7)


def test_one_class_that_is_normalized_has_no_gradient():
    p = torch.tensor([[2.0**-130], [2.0**-149], [1.0], [3e38]], requires_grad=True)
    assert not _gradient(ours.categorical_focal_loss(p, torch.ones(4, 1), gamma=0.0, normalize=True), p).any()


@pytest.mark.parametrize("squared", [True, False])
def test_gradient_of_spiegelhalters_statistic(squared):
    p = torch.rand(30, dtype=torch.float64, requires_grad=True)
    y = (torch.rand(30, dtype=torch.float64) < 0.5).double()
    residual, variance = (y - p).sum().item(), (p * (1 - p)).sum().item() + 1e-7
    z = residual / math.sqrt(variance)
    slope = -(variance**-0.5) - residual * (1 - 2 * p) / (2 * variance**1.5)
    wanted = 2 * z * slope if squared else math.copysign(1, z) * slope
    torch.testing.assert_close(_gradient(ours.spiegelhalter_z_loss(p, y, squared), p), wanted, rtol=1e-12, atol=1e-14)


def _affine_gradient(g, d, eps):
    """To d of sum g n, n = (d - t) / max(s, eps), for one row."""
    n = d.numel()
    order = d.argsort()
    m = torch.zeros_like(d)
    m[order[(n - 1) // 2]] += 0.5
    m[order[n // 2]] += 0.5
    t = (m * d).sum()
    s = (d - t).abs().mean()
    q = (torch.sign(d - t) - m * torch.sign(d - t).sum()) / n
    unit = max(s, eps)
    along = (g * (d - t) / unit).sum() if s > eps else 0.0
    return (g - g.sum() * m - along * q) / unit


@pytest.mark.parametrize("pixels", [7, 8])
def test_gradient_of_the_affine_invariant_loss(pixels):
    x, t = torch.randn(3, pixels, dtype=torch.float64, requires_grad=True), torch.randn(3, pixels, dtype=torch.float64)
    value = ours.affine_invariant_loss(x, t)

    def normal(d):
        middle = d.sort().values
        center = 0.5 * (middle[(pixels - 1) // 2] + middle[pixels // 2])
        return (d - center) / (d - center).abs().mean()

    wanted = [_affine_gradient(torch.sign(normal(a) - normal(b)) / (3 * pixels), a, 1e-6) for a, b in zip(x.detach(), t)]
    torch.testing.assert_close(_gradient(value, x), torch.stack(wanted), rtol=1e-9, atol=1e-12)


def test_affine_invariance_and_masks():
    x, t = torch.randn(2, 5, 5), torch.randn(2, 5, 5)
    torch.testing.assert_close(ours.affine_invariant_loss(3 * x + 2, t - 7), ours.affine_invariant_loss(x, t))
    mask = torch.rand(2, 5, 5) < 0.6
    mask[1] = False
    x = torch.where(mask, x, math.nan).requires_grad_()
    got = ours.affine_invariant_loss(x, t, mask, reduction="none")
    alone = ours.affine_invariant_loss(x[0][mask[0]].unsqueeze(0), t[0][mask[0]].unsqueeze(0))
    torch.testing.assert_close(got, torch.stack([alone, torch.zeros(())]))
    grad = _gradient(got.sum(), x)
    assert grad.isfinite().all() and not grad[~mask].any()
    module = fastloss.nn.AffineInvariantLoss()
    torch.testing.assert_close(module(x, t, mask=mask), got.mean())
    constant = torch.ones(1, 4, requires_grad=True)
    assert _gradient(ours.affine_invariant_loss(constant, t[:1, 0, :4]), constant).isfinite().all()


def test_gradient_of_the_wasserstein_divergence():
    p, t = torch.rand(3, 6, dtype=torch.float64, requires_grad=True), torch.rand(3, 6, dtype=torch.float64)
    a, b = p.detach() / (p.detach().sum(1, keepdim=True) + 1e-7), t / (t.sum(1, keepdim=True) + 1e-7)
    sign = torch.sign((a - b).cumsum(1))
    by_share = sign.flip(1).cumsum(1).flip(1) / 6
    wanted = (by_share - (by_share * a).sum(1, keepdim=True)) / (p.detach().sum(1, keepdim=True) + 1e-7) / 3
    torch.testing.assert_close(_gradient(ours.wasserstein_divergence(p, t), p), wanted, rtol=1e-10, atol=1e-14)


def test_gradient_of_feature_alignment():
    x, t = torch.randn(20, 3, dtype=torch.float64, requires_grad=True), torch.randn(20, 3, dtype=torch.float64)
    unit, wanted_unit, length = F.normalize(x.detach(), dim=1), F.normalize(t, dim=1), x.detach().norm(dim=1, keepdim=True)
    cosine = (unit * wanted_unit).sum(1, keepdim=True)
    assert 0 < (cosine > 0.5).sum() < 20
    wanted = torch.where(cosine <= 0.5, -(wanted_unit - cosine * unit) / length, 0.0)
    torch.testing.assert_close(_gradient(ours.feature_alignment_loss(x, t, 0.5, "sum"), x), wanted, rtol=1e-10, atol=1e-14)


def test_gradient_of_decoupled_information():
    x, y, u, d = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.randint(0, 4, (6,)), 0.4, 0.3
    p = x.detach().softmax(1)
    mean = p.mean(0)
    g = u / 6 * (p.log() + 1) + d / 6 * (mean.log() + 1)
    wanted = (p - F.one_hot(y, 4)) / 6 + p * (g - (p * g).sum(1, keepdim=True))
    torch.testing.assert_close(_gradient(ours.decoupled_information_loss(x, y, u, d), x), wanted, rtol=1e-10, atol=1e-14)


# The gradient penalty, class weights, focal options


def test_gradient_penalty_by_hand():
    """f(x) = w x^2 has the slope 2 w x: at x = 0.25 * 4 + 0.75 * 0 = 1 it is 2 w."""
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    real, fake = torch.full((2, 1, 1), 4.0, dtype=torch.float64), torch.zeros(2, 1, 1, dtype=torch.float64)
    penalty = ours.compute_gradient_penalty(lambda x: w * x**2, real, fake, 0.5, alpha=torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(penalty, torch.tensor(0.5 * 25.0, dtype=torch.float64))
    torch.testing.assert_close(_gradient(penalty, w), torch.tensor(0.5 * 2 * 5 * 2.0, dtype=torch.float64))


def test_gradient_penalty_is_reproducible_and_finite_at_slope_zero():
    critic = torch.nn.Linear(3, 1)
    real, fake = torch.randn(4, 3), torch.randn(4, 3)
    curved = lambda x: critic(x).square()  # noqa: E731
    first, second = (ours.compute_gradient_penalty(curved, real, fake, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    other = ours.compute_gradient_penalty(curved, real, fake, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, second) and first != other
    flat = torch.nn.Linear(3, 1)
    torch.nn.init.zeros_(flat.weight)
    penalty = ours.compute_gradient_penalty(flat, real, fake)
    torch.testing.assert_close(penalty, torch.tensor(10.0), rtol=1e-4, atol=0)
    assert _gradient(penalty, flat.weight).isfinite().all()
    with torch.no_grad():
        assert ours.compute_gradient_penalty(flat, real, fake).isfinite()
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(2, 3\)"):
        ours.compute_gradient_penalty(flat, real, fake[:2])
    with pytest.raises(ValueError, match="4 numbers"):
        ours.compute_gradient_penalty(flat, real, fake, alpha=torch.ones(3))


def test_class_balanced_weights():
    counts = torch.tensor([1, 10, 1000, 0])
    beta = 0.9
    raw = torch.tensor([(1 - beta) / (1 - beta**n) if n else 0.0 for n in counts.tolist()])
    torch.testing.assert_close(ours.class_balanced_weights(counts, beta, normalize=None), raw)
    torch.testing.assert_close(ours.class_balanced_weights(counts, beta), raw * 3 / raw.sum())
    assert ours.class_balanced_weights(counts, 0.0).tolist() == [1.0, 1.0, 1.0, 0.0]
    near = ours.class_balanced_weights(counts, 1 - 1e-14)
    torch.testing.assert_close(near, ours.class_balanced_weights(counts, 1.0), rtol=1e-2, atol=0)
    assert ours.class_balanced_weights(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    for options in ({"beta": 1.5}, {"beta": -0.1}, {"normalize": "sum"}):
        with pytest.raises(ValueError):
            ours.class_balanced_weights(counts, **options)


FOCAL = [
    {"alpha_mode": "constant"}, {"reduced_threshold": 0.4}, {"normalized": True}, {"alpha": torch.tensor([0.1, 0.5, 0.9])},
    {"alpha": torch.tensor([0.1, 0.5, 0.9]), "alpha_mode": "constant", "reduced_threshold": 0.6, "normalized": True, "gamma": 0.5},
]


@pytest.mark.parametrize("options", FOCAL, ids=str)
def test_focal_options(backend, options):
    x, t = 3 * torch.randn(40, 3, dtype=torch.float64, requires_grad=True), (torch.rand(40, 3) < 0.4).double()
    alpha, gamma = options.get("alpha", 0.25), options.get("gamma", 2.0)
    p = torch.where(t == 1, torch.sigmoid(x), torch.sigmoid(-x))
    threshold = options.get("reduced_threshold", 1.0)
    factor = torch.where(p < threshold, 1.0, ((1 - p) / threshold) ** gamma) if threshold < 1 else (1 - p) ** gamma
    factor = factor / factor.sum() if options.get("normalized") else factor
    balance = alpha if options.get("alpha_mode") == "constant" else alpha * t + (1 - alpha) * (1 - t)
    wanted = (-balance * factor * p.log()).sum()
    got = ours.sigmoid_focal_loss(x, t, reduction="sum", backend=backend, **options)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(_gradient(got, x), _gradient(wanted, x), rtol=1e-6, atol=1e-9)


def test_gradient_to_the_focal_losss_alphas(backend):
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    for mode in ("balanced", "constant"):
        alpha = torch.rand(3, dtype=torch.float64, requires_grad=True)
        assert gradcheck(lambda a: ours.sigmoid_focal_loss(x, t, a, alpha_mode=mode, backend=backend), (alpha,))


def test_alphas_of_another_dtype():
    x, t, alpha = torch.randn(5, 3).bfloat16(), (torch.rand(5, 3) < 0.5).bfloat16(), torch.tensor([0.3, 0.6, 0.7])
    got = ours.sigmoid_focal_loss(x, t, alpha)  # float32, as torch promotes; 0.3 is not rounded
    assert torch.equal(got, ours.sigmoid_focal_loss(x.float(), t.float(), alpha))


BAD = [
    ("vae_elbo_loss", ((2, 3), (2, 4), (2, 1), (2, 1)), {}, ["(2, 3)", "(2, 4)"]),
    ("vae_elbo_loss", ((2, 3), (2, 3), (3, 1), (3, 1)), {}, ["(2, 3)", "(3, 1)"]),
    ("vae_elbo_loss", ((2, 3), (2, 3), (2, 1), (2, 1)), {"recon": "ssim"}, ["ssim", "bce_logits"]),
    ("vae_elbo_loss", ((2, 3), (2, 3), (2, 1), (2, 1)), {"beta": -1.0}, ["beta", "-1.0"]),
    ("gaussian_kl_loss", ((2, 3), (2, 3)), {"free_bits": -1.0}, ["free_bits"]),
    ("wasserstein_divergence", ((2, 3), (2, 3)), {"eps": 0.0}, ["eps"]),
    ("mase_loss", ((2, 3), (2, 4)), {}, ["(2, 3)", "(2, 4)"]),
    ("mase_loss", ((2, 3), (2, 3)), {"seasonal_periods": 0}, ["seasonal_periods", "0"]),
    ("mase_loss", ((2, 3), (2, 3)), {"scale": "train"}, ["train", "series"]),
    ("affine_invariant_loss", ((3,), (3,)), {}, ["(3,)"]),
    ("clustering_loss", ((2, 3), (2, 3)), {"distance_weight": 0.0}, ["distance_weight"]),
    ("clustering_loss", ((2, 3, 1), (2, 3, 1)), {}, ["(N, K)", "(2, 3, 1)"]),
    ("feature_alignment_loss", ((2, 3), (2, 3)), {"margin": 1.5}, ["margin", "1.5"]),
    ("spiegelhalter_z_loss", ((2, 3), (2, 3)), {"variant": "other"}, ["classical", "other"]),
    ("calibration_loss", ((2, 3), (2, 3)), {"alpha": 2.0}, ["alpha", "2.0"]),
    ("calibration_loss", ((2, 3), (2,)), {}, ["(2, 3)", "(2,)"]),
    ("sigmoid_focal_loss", ((2, 3), (2, 3)), {"alpha_mode": "other"}, ["balanced", "other"]),
    ("sigmoid_focal_loss", ((2, 3), (2, 3)), {"reduced_threshold": 1.0}, ["reduced_threshold", "1.0"]),
    ("quantile_loss", ((2, 3), (2,)), {"tau": [0.1, 0.9]}, ["2", "(2, 3)"]),
    ("quantile_loss", ((2, 2), (2,)), {"tau": [0.1, 1.0]}, ["(0, 1)"]),
    ("decoupled_information_loss", ((2, 3, 4), (2, 3, 4)), {}, ["(N, C)"]),
    ("decoupled_information_loss", ((2, 3), (2, 3)), {"label_smoothing": 2.0}, ["label_smoothing"]),
    ("focal_uncertainty_loss", ((2, 3), (2, 3)), {"alpha": 2.0}, ["alpha", "2.0"]),
    ("goodhart_aware_loss", ((2, 3), (2, 3)), {"mi_weight": -1.0}, ["mi_weight"]),
    ("mase_loss", ((2, 3), (2, 3)), {"reduction": "avg"}, ["avg"]),
    ("mase_loss", ((2, 3), (2, 3)), {"backend": "gpu"}, ["gpu"]),
]


@pytest.mark.parametrize(("name", "shapes", "options", "words"), BAD)
def test_bad_calls(name, shapes, options, words):
    with pytest.raises(ValueError) as raised:
        getattr(ours, name)(*(torch.rand(shape) for shape in shapes), **options)
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_other_errors():
    x = torch.rand(2, 3)
    with pytest.raises(TypeError, match="target must be a Tensor, got list"):
        ours.clustering_loss(x, [[0.0] * 3] * 2)
    with pytest.raises(NotImplementedError, match="int64"):
        ours.mase_loss(x.long(), x)
    with pytest.raises(RuntimeError, match="cpu.*meta"):
        ours.mase_loss(x, x.to("meta"))
    with pytest.warns(UserWarning, match="outweighs"):
        ours.goodhart_aware_loss(x, torch.tensor([0, 1]), entropy_weight=2.0)
