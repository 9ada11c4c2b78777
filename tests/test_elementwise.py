"""Values, gradients and invariants of every element-wise loss on every backend."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastloss.functional as ours
from fastloss.cases import LAYOUTS
from fastloss.elementwise import MAX_DIMS, canonical
from fastloss.elementwise_cases import SHAPES, VALUES, WEIGHTS, ElementwiseCase, middle, target_shapes, third_shapes
from fastloss.fuzz import DTYPES, run
from fastloss.oracle import check, evaluate, make_upstream, same_bits
from fastloss.registry import LOSSES
from graphs import recording

ENGINE = "elementwise"
INTERPRETED = ("triton",)  # run by an interpreter here, 50 times slower
REDUCTIONS = ("none", "mean", "sum")


def some(backend: str, cases: list, most: int, seed: str = "") -> list:
    """A fixed sample of the cases, smaller on a slow backend."""
    most = most if backend in INTERPRETED else 4 * most
    return cases if len(cases) <= most else random.Random(seed).sample(cases, most)


@pytest.mark.parametrize("values", VALUES)
def test_values(loss, backend, values):
    cases = [
        ElementwiseCase(shape=(7, 33), values=values, dtype=dtype, reduction=reduction, gradients=gradients, third_shape=third).of(loss)
        for dtype in DTYPES for reduction in REDUCTIONS for gradients in ("input", "operands") for third in third_shapes(loss)
    ]
    for case in some(backend, cases, 4, loss + values):
        check(case, None, backend)


def test_layouts_and_broadcasting(loss, backend):
    cases = [
        ElementwiseCase(shape=shape, layout=layout, target_layout=target_layout, target_shape=target_shape, third_shape=third, dtype=dtype,
                        reduction="none", gradients="operands").of(loss)
        for shape in ((), (5,), (6, 17), (3, 9, 4), (2, 5, 3, 4))
        if shape or not LOSSES[loss].rows
        for layout in LAYOUTS
        for target_layout in ("contiguous", "transposed", "every second", "expanded rows", "channels last")
        for target_shape in target_shapes(loss)
        for third in third_shapes(loss)
        for dtype in DTYPES
    ]
    for case in some(backend, cases, 12, loss) if backend in INTERPRETED else some(backend, cases, 24, loss):
        check(case, None, backend)


def test_element_counts_around_block_edges(loss, backend):
    sizes = (0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 255, 256, 257, 1023, 1024, 1025)
    for i, size in enumerate(sizes if backend not in INTERPRETED else (0, 1, 17, 1023, 1025)):
        check(ElementwiseCase(shape=(size,), dtype=DTYPES[i % 4], seed=i, layout=("contiguous", "shifted")[i % 2]).of(loss), None, backend)
        check(ElementwiseCase(shape=(2, size), layout="padded rows", dtype=DTYPES[i % 4], seed=i, reduction="none").of(loss), None, backend)
    for size in (32767, 32768, 32769, 100000) if backend == "cpu" else (5000,):
        for reduction in ("mean", "none"):
            check(ElementwiseCase(shape=(size,), seed=size, reduction=reduction, gradients="operands").of(loss), None, backend)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights(loss, backend, weight):
    cases = [
        ElementwiseCase(shape=(5, 9), weight=weight, reduction=reduction, dtype=dtype, gradients=gradients).of(loss)
        for reduction in REDUCTIONS for dtype in ("float32", "bfloat16") for gradients in ("input", "all")
    ]
    for case in some(backend, cases, 4, loss + weight):
        check(case, None, backend)


def test_parameters(loss, backend):
    params = LOSSES[loss].params
    grids = [[low, middle((low, high)), high] for low, high in params.values()]
    cases = [
        ElementwiseCase(shape=(6, 9), values=values, dtype=dtype, reduction="none", gradients="operands").of(loss)
        for values in ("normal", "huge", "tiny", "ties") for dtype in DTYPES[:3]
    ]
    for case in some(backend, cases, 3, loss):
        for point in itertools.product(*grids):
            check(case.__class__(**{**vars(case), "params": tuple(zip(params, point))}), None, backend)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)], ids=str)
def test_empty(loss, backend, shape):
    for reduction, layout in itertools.product(REDUCTIONS, ("contiguous", "every second")):
        check(ElementwiseCase(shape=shape, reduction=reduction, layout=layout).of(loss), None, backend)
    call = ElementwiseCase(shape=shape).of(loss).build()
    assert call.case.reduction == "mean"
    value = LOSSES[loss].function(*call.arguments(call.tensors())[0], **call.options, backend=backend)
    rows = LOSSES[loss].rows == "sum" and shape[:-1].count(0) == 0  # sums of nothing have a mean
    assert value == 0 if rows else value.isnan()  # torch's mean of nothing


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_is_not_swallowed(loss, backend, reduction):
    call = ElementwiseCase(shape=(40,), reduction=reduction).of(loss).build()
    names = [name for name, domain in LOSSES[loss].operands.items() if domain in ("real", "positive", "rate", "log_prob")]
    for name in names:
        tensors = call.tensors()
        if name not in tensors:
            continue
        tensors[name] = tensors[name].clone()
        tensors[name][17] = math.nan
        positional, named = call.arguments(tensors)
        value = LOSSES[loss].function(*positional, **named, **call.options, backend=backend)
        assert value.isnan().sum() == 1 and (reduction != "none" or LOSSES[loss].rows or value[17].isnan())


@pytest.mark.slow
def test_random_cases(loss, backend):
    # eager is compared with itself in float64, cuda shares cpu's functors
    finding = run(loss, backend, examples={"eager": 200, "cpu": 600, "cuda": 300, "triton": 24}[backend], seed=11)
    assert finding is None, finding.script


# What brings tensors to the kernels


@pytest.mark.parametrize("layout", LAYOUTS)
def test_canonical_gives_views_of_few_dimensions(layout):
    for shape, target in (((6, 5), (6, 5)), ((3, 4, 5), (5,)), ((3, 4, 5), (3, 1, 5)), ((2, 3, 4, 5), (3, 1, 1)), ((), ()), ((2, 0), (1,))):
        _, x = LAYOUTS[layout](torch.randn(shape))
        t = torch.randn(target)
        (a, b, none), restore = canonical(x, t, None)
        assert none is None and a.shape == b.shape
        assert a.is_contiguous() and b.is_contiguous() or a.dim() <= MAX_DIMS
        assert torch.equal(restore((a - b).contiguous()), x - t)
        if x.dim() <= 3 and x.numel():
            assert a.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()  # no copy


def test_canonical_copies_what_has_too_many_dimensions():
    x, t = torch.randn(2, 3, 4, 5, 6)[:, :2, ::2, :4, ::2], torch.randn(3, 1, 5, 1)[:2, :, :4]
    (a, b, _), restore = canonical(x, t, None)
    assert a.is_contiguous() and b.is_contiguous()
    assert torch.equal(restore(a - b), x - t)


# Derivatives, and what of torch a loss passes through


def closed(loss: str, backend: str | None, dtype: str = "float64", shape: tuple[int, ...] = (4, 3), **choices):
    """A function of the differentiable inputs only, and those inputs."""
    case = ElementwiseCase(shape=shape, dtype=dtype, gradients="operands", **choices).of(loss)
    # A clamped variance has a gradient on purpose, which is not its derivative.
    case = replace(case, params=tuple((name, 1e-2 if name == "eps" else value) for name, value in case.params))
    call = case.build()
    # Numbers are differentiated within their domains; labels are not.
    names = [name for name, domain in LOSSES[loss].operands.items() if domain in ("real", "positive", "rate") and name in call.by_name]
    leaves = {name: call.by_name[name].clone().requires_grad_() for name in names}

    def function(*values):
        positional, named = call.arguments(call.tensors() | dict(zip(leaves, values)))
        return LOSSES[loss].function(*positional, **named, **call.options, backend=backend)

    return function, list(leaves.values()) or [torch.ones((), dtype=torch.float64, requires_grad=True)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(loss, backend, reduction):
    shape = (2, 2) if backend in INTERPRETED else (4, 3)  # the work grows with the square of the elements
    function, inputs = closed(loss, backend, shape=shape, reduction=reduction)
    if next(iter(LOSSES[loss].operands.values())) in ("probability", "log_prob"):
        call = ElementwiseCase(shape=shape, dtype="float64", reduction=reduction).of(loss).build()
        inputs = [call.by_name["input"].requires_grad_()]
        function = lambda x: LOSSES[loss].function(x, call.by_name["target"], **call.options, backend=backend)  # noqa: E731
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.one_of_a_kind
@pytest.mark.parametrize("layout", ["contiguous", "padded rows"])
def test_opcheck(loss, compiled, layout):
    call = ElementwiseCase(shape=(4, 5), dtype="float32", layout=layout).of(loss).build()
    operands = [call.by_name.get(name) for name in (*LOSSES[loss].operands, None, None)][:3]
    settings = LOSSES[loss].functor or loss, [float(v) for _, v in call.case.params], 1
    args = (*operands, None, *settings)
    torch.library.opcheck(getattr(torch.ops.fastloss.elementwise_forward, compiled), args)
    loss_value, divisor = getattr(torch.ops.fastloss.elementwise_forward, compiled)(*args)
    backward = (torch.ones_like(loss_value), *operands, None, divisor, *settings, True, True, operands[2] is not None)
    torch.library.opcheck(getattr(torch.ops.fastloss.elementwise_backward, compiled), backward)


def test_second_backward_and_accumulation(loss, backend):
    function, inputs = closed(loss, backend, "float32")
    if not inputs[0].dim():
        return
    value = function(*inputs)
    first = torch.autograd.grad(value, inputs[0], torch.tensor(3.0), retain_graph=True)[0]
    second = torch.autograd.grad(value, inputs[0], torch.tensor(3.0), retain_graph=True)[0]
    assert torch.equal(first, second)
    value.backward()
    torch.testing.assert_close(inputs[0].grad, first / 3)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_func_transforms_and_checkpointing(loss):
    function, (x, *rest) = closed(loss, None, "float32")
    if not x.dim():
        return
    (wanted,) = torch.autograd.grad(function(x, *rest), x)
    torch.testing.assert_close(torch.func.grad(function)(x.detach(), *rest), wanted)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda v: function(v, *rest)))(torch.stack([x.detach()] * 2))[1], wanted)
    (again,) = torch.autograd.grad(checkpoint(function, x, *rest, use_reentrant=False), x)
    torch.testing.assert_close(again, wanted)


@pytest.mark.one_of_a_kind
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("layout", ["contiguous", pytest.param("transposed", marks=pytest.mark.slow)])
def test_torch_compile(loss, compiled, layout, reduction):
    call = ElementwiseCase(shape=(4, 6), layout=layout, reduction=reduction, gradients="operands").of(loss).build()
    leaves = {name: tensor.requires_grad_() for name, tensor in call.tensors().items()}
    positional, named = call.arguments(leaves)
    options, function = {**named, **call.options}, LOSSES[loss].function

    def step(*tensors):
        return function(*tensors, **options, backend=compiled)

    def gradients(value):
        return torch.autograd.grad(value, list(leaves.values()), torch.ones_like(value), allow_unused=True)

    wanted = step(*positional)
    torch._dynamo.reset()  # else the tests count as recompilations of one function
    graphs: list[list[str]] = []
    got = torch.compile(step, backend=recording(graphs), fullgraph=True)(*positional)
    assert torch.equal(got, wanted)
    for a, b in zip(gradients(got), gradients(wanted)):
        assert torch.equal(a, b)
    assert graphs == [[f"elementwise_forward.{compiled}"], [f"elementwise_backward.{compiled}"]]


def test_autocast_computes_in_float32(backend):
    x, t = torch.randn(50, dtype=torch.bfloat16, requires_grad=True), torch.randn(50, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = ours.mse_loss(x, t, backend=backend)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, F.mse_loss(x.float(), t.float()))
    assert torch.autograd.grad(value, x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_bits_for_any_number_of_threads(loss, reduction):
    call = ElementwiseCase(shape=(300, 1000), reduction=reduction, gradients="operands", dtype="bfloat16").of(loss).build()
    outcomes = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outcomes.append(evaluate(LOSSES[loss].function, call, make_upstream(call), backend="cpu"))
    for outcome in outcomes[1:]:
        assert same_bits(outcome.values["loss"], outcomes[0].values["loss"])
        assert all(same_bits(outcome.gradients[name], outcomes[0].gradients[name]) for name in outcome.gradients)


def test_a_long_sum_keeps_float32s_accuracy(backend):
    """2^20 equal terms: a running float32 sum would be off by thousands of units in the last place; float16 would overflow."""
    count = 2**20 if backend != "triton" else 2**16
    for dtype in (torch.float32, torch.float16):
        x = torch.full((count,), 0.1, dtype=dtype)
        wanted = x.double().square().sum().item()
        got = ours.mse_loss(x.float(), torch.zeros(count), reduction="sum", backend=backend).item()
        assert got == pytest.approx(wanted, rel=2e-7)
        mean = ours.mse_loss(x, torch.zeros(count, dtype=dtype), backend=backend)
        assert mean.item() == pytest.approx(0.01, rel=1e-3)


# Values by hand: (function, operands, options, value of each element)
L2 = math.log(2)
BY_HAND = [
    ("mse_loss", ([3.0, -1.0], [1.0, -1.0]), {}, [4.0, 0.0]),
    ("l1_loss", ([3.0, -1.0], [1.0, 1.0]), {}, [2.0, 2.0]),
    ("smooth_l1_loss", ([0.5, 3.0], [0.0, 0.0]), {"beta": 2.0}, [0.0625, 2.0]),
    ("huber_loss", ([1.0, 5.0], [0.0, 0.0]), {"delta": 2.0}, [0.5, 8.0]),
    ("log_cosh_loss", ([0.0, L2], [0.0, 0.0]), {}, [0.0, math.log(1.25)]),
    ("quantile_loss", ([1.0, 3.0, 2.0], [2.0, 2.0, 2.0]), {"tau": 0.75}, [0.75, 0.25, 0.0]),
    ("mape_loss", ([1.0, 3.0, 1.0], [2.0, -4.0, 0.0]), {"eps": 0.5}, [50.0, 175.0, 200.0]),
    ("smape_loss", ([1.0, 0.0], [3.0, 0.0]), {}, [100.0, 0.0]),
    ("msle_loss", ([math.e - 1, 0.0], [0.0, 0.0]), {}, [1.0, 0.0]),
    ("charbonnier_loss", ([3.0], [0.0]), {"eps": 4.0}, [5.0]),
    ("cauchy_loss", ([2.0], [0.0]), {}, [math.log(3.0)]),
    ("wing_loss", ([2 * (math.e - 1), 12.0], [0.0, 0.0]), {}, [10.0, 12.0 - 10.0 + 10.0 * math.log(6.0)]),
    ("poisson_nll_loss", ([0.0, L2], [3.0, 1.0]), {}, [1.0, 2.0 - L2]),
    ("poisson_nll_loss", ([1.0, 2.0], [1.0, 1.0]), {"log_input": False, "eps": 0.0}, [1.0, 2.0 - L2]),
    ("poisson_nll_loss", ([0.0], [2.0]), {"full": True}, [1.0 + 2 * L2 - 2.0 + 0.5 * math.log(4 * math.pi)]),
    ("gaussian_nll_loss", ([3.0, 1.0], [1.0, 1.0], [2.0, 1.0]), {}, [0.5 * (L2 + 2.0), 0.0]),
    ("gaussian_nll_loss", ([1.0], [1.0], [1.0]), {"full": True}, [0.5 * math.log(2 * math.pi)]),
    ("kl_div", ([-L2, -L2], [1.0, 0.0]), {}, [L2, 0.0]),
    ("kl_div", ([-L2], [-2 * L2]), {"log_target": True}, [-0.25 * L2]),
    ("hinge_embedding_loss", ([0.25, 0.25, 3.0, 0.25], [1.0, -1.0, -1.0, 0.0]), {}, [0.25, 0.75, 0.0, 1.0]),
    ("soft_margin_loss", ([0.0, 1000.0], [1.0, -1.0]), {}, [L2, 1000.0]),
    ("hinge_loss", ([0.5, 2.0], [-1.0, 1.0]), {}, [1.5, 0.0]),
    ("squared_hinge_loss", ([0.5, 2.0], [-1.0, 1.0]), {}, [2.25, 0.0]),
    ("margin_ranking_loss", ([1.0, 3.0], [3.0, 1.0], [1.0, 1.0]), {"margin": 0.5}, [2.5, 0.0]),
    ("binary_cross_entropy", ([0.5, 1.0, 0.0], [1.0, 1.0, 1.0]), {}, [L2, 0.0, 100.0]),
    ("binary_cross_entropy_with_logits", ([0.0, math.log(3)], [1.0, 0.0]), {}, [L2, 2 * L2]),
    ("sigmoid_focal_loss", ([0.0, 0.0], [0.0, 1.0]), {}, [0.75 * 0.25 * L2, 0.25 * 0.25 * L2]),
    ("sigmoid_focal_loss", ([math.log(3)], [1.0]), {"alpha": -1, "gamma": 1.0}, [0.25 * math.log(4 / 3)]),
    ("brier_loss", ([0.25, 1.0], [1.0, 1.0]), {}, [0.5625, 0.0]),
    ("brier_loss", ([0.0], [1.0]), {"from_logits": True}, [0.25]),
    ("sigmoid_focal_loss", ([math.log(3)], [1.0]), {"alpha": 0.5, "gamma": 1.0, "alpha_mode": "constant"}, [0.125 * math.log(4 / 3)]),
    # p_t is 3/4 and 1/4; the factor ((1 - p_t) / 0.5)^2, and 1 below the threshold
    ("sigmoid_focal_loss", ([math.log(3)] * 2, [1.0, 0.0]), {"alpha": -1, "reduced_threshold": 0.5}, [0.25 * math.log(4 / 3), 2 * L2]),
    # factors 1/4 and 3/4 add up to 1
    ("sigmoid_focal_loss", ([math.log(3)] * 2, [1.0, 0.0]), {"alpha": -1, "gamma": 1.0, "normalized": True},
     [0.25 * math.log(4 / 3), 1.5 * L2]),
    ("wasserstein_loss", ([3.0, 1.0], [1.0, 0.0]), {}, [-3.0, 1.0]),
    ("wasserstein_loss", ([3.0, 1.0], [1.0, 0.0]), {"for_critic": False}, [-3.0, -1.0]),
    ("quantile_loss", ([[1.0, 3.0], [2.0, 6.0]], [2.0, 4.0]), {"tau": [0.25, 0.75]}, [[0.25, 0.25], [0.5, 0.5]]),
    ("quantile_loss", ([[1.0, 3.0], [2.0, 6.0]], [[2.0, 2.0], [4.0, 4.0]]), {"normalize": True}, [[0.25, 0.25], [0.25, 0.25]]),
    ("quantile_loss", ([[1.0, 3.0], [2.0, 6.0]], [2.0, 4.0]), {"tau": [0.25, 0.75], "normalize": True}, [[1 / 12, 1 / 12], [1 / 6, 1 / 6]]),
    ("gaussian_kl_loss", ([2.0, 0.0, 1.0], [0.0, L2, 2 * L2]), {}, [2.0, 0.5 - 0.5 * L2, 2.0 - L2]),
    ("gaussian_kl_loss", ([2.0, 0.0], [0.0, L2]), {"free_bits": 0.25}, [2.0, 0.25]),
    ("multilabel_soft_margin_loss", ([[0.0, math.log(3)], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]), {}, [1.5 * L2, L2]),
    ("capsule_margin_loss", ([[0.4, 0.6], [0.95, 0.05]], [[1.0, 0.0], [1.0, 0.0]]), {}, [0.375, 0.0]),
]


@pytest.mark.parametrize(("name", "operands", "options", "wanted"), BY_HAND)
def test_by_hand(backend, name, operands, options, wanted):
    tensors = [torch.tensor(values, dtype=torch.float64) for values in operands]
    got = getattr(ours, name)(*tensors, **options, reduction="none", backend=backend)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_every_loss_is_computed_by_hand(loss):
    assert LOSSES[loss].function.__name__ in {name for name, *_ in BY_HAND}


# Defects of other libraries


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_defect_17_focal_gradient_of_saturated_logits(backend, gamma, dtype):
    x = torch.tensor([200.0, -200.0, 200.0, -200.0, 0.0], dtype=getattr(torch, dtype), requires_grad=True)
    t = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=x.dtype)
    value = ours.sigmoid_focal_loss(x, t, alpha=-1, gamma=gamma, backend=backend)
    assert value.isfinite().all() and value[:2].double().abs().lt(1e-40).all() and value[2:4].eq(200).all()
    (grad,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(grad[:4], torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=x.dtype), rtol=1e-6, atol=1e-30)


def test_defect_18_focal_of_a_confident_mistake_is_not_cut_off(backend):
    value = ours.sigmoid_focal_loss(torch.tensor([60.0]), torch.tensor([0.0]), alpha=-1, backend=backend)
    assert value.item() == 60.0


@pytest.mark.parametrize(("x", "t", "dtype", "slope"), [
    (-75.53746461868286, 3.8411167204624607e-32, torch.float64, 2.8852987198006005e-11),
    (-70.0, 1e-31, torch.float32, 5.7444032067851931e-11),
])
def test_slope_of_sigmoid_focal_at_targets_near_0(x, t, dtype, slope, backend):
    t = torch.tensor([t], dtype=dtype, requires_grad=True)
    value = ours.sigmoid_focal_loss(torch.tensor([x], dtype=dtype), t, alpha=0.0, gamma=0.4, backend=backend)
    (grad,) = torch.autograd.grad(value.sum(), t)
    assert grad.item() == pytest.approx(slope, rel=2e-6 if dtype == torch.float32 else 1e-12)


def test_small_errors_of_log_cosh_keep_their_accuracy(backend):
    if backend == "eager":
        return  # the formula cancels; it is the truth in float64 only
    x = torch.tensor([1e-3, 1e-4, 1e-6])
    got = ours.log_cosh_loss(x, torch.zeros(3), reduction="none", backend=backend)
    torch.testing.assert_close(got, x * x / 2, rtol=1e-6, atol=0)


# Bad input: torch's exception types, and messages that name what was wanted and what came

X, T = torch.rand(3, 4), torch.rand(3, 4)
BAD = [
    ("mse_loss", (X, T[:, :3]), {}, RuntimeError, ["(3, 4)", "(3, 3)"]),
    ("mse_loss", (X.tolist(), T), {}, TypeError, ["input", "Tensor", "list"]),
    ("mse_loss", (X, None), {}, TypeError, ["target", "Tensor", "NoneType"]),
    ("binary_cross_entropy_with_logits", (None, T), {}, TypeError, ["input", "Tensor", "NoneType"]),
    ("gaussian_nll_loss", (X, T, None), {}, TypeError, ["var", "Tensor", "NoneType"]),
    ("mse_loss", (X, T), {"weight": 2.0}, TypeError, ["weight", "Tensor", "float"]),
    ("mse_loss", (X, T), {"reduction": "avg"}, ValueError, ["avg", "'mean'"]),
    ("mse_loss", (X, T), {"reduction": "weighted_mean"}, ValueError, ["weighted_mean", "'mean'"]),
    ("mse_loss", (X, T), {"weight": torch.ones(4)}, ValueError, ["(3, 4)", "(4,)"]),
    ("mse_loss", (X.long(), T.long()), {}, NotImplementedError, ["float32", "int64"]),
    ("mse_loss", (X, T.to("meta")), {}, RuntimeError, ["cpu", "meta"]),
    ("mse_loss", (X, T), {"backend": "gpu"}, ValueError, ["gpu", "cpu"]),
    ("huber_loss", (X, T), {"delta": 0.0}, RuntimeError, ["non-positive values for delta", "0.0"]),
    ("smooth_l1_loss", (X, T), {"beta": -1.0}, RuntimeError, ["beta", "-1.0"]),
    ("binary_cross_entropy", (X, T[:2]), {}, ValueError, ["[3, 4]", "[2, 4]"]),
    ("binary_cross_entropy", (X + 1, T), {}, RuntimeError, ["between 0 and 1"]),
    ("binary_cross_entropy_with_logits", (X, T[:2]), {}, ValueError, ["must be the same as input size"]),
    ("gaussian_nll_loss", (X, T, -X), {}, ValueError, ["negative"]),
    ("gaussian_nll_loss", (X, T, -1.0), {}, ValueError, ["negative"]),
    ("gaussian_nll_loss", (X, T, torch.ones(2, 2)), {}, ValueError, ["incorrect size", "(2, 2)"]),
    ("margin_ranking_loss", (X, T, torch.ones(4)), {}, RuntimeError, ["same dimension"]),
    ("quantile_loss", (X, T), {"tau": 1.0}, ValueError, ["(0, 1)", "1.0"]),
    ("sigmoid_focal_loss", (X, T), {"alpha": 2.0}, ValueError, ["alpha", "2.0"]),
    ("sigmoid_focal_loss", (X, T), {"gamma": -1.0}, ValueError, ["gamma", "-1.0"]),
    ("charbonnier_loss", (X, T), {"eps": 0.0}, ValueError, ["eps", "0.0"]),
    ("wing_loss", (X, T), {"width": 0.0}, ValueError, ["width", "0.0"]),
]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(("name", "tensors", "options", "kind", "words"), BAD)
def test_bad_calls(backend, name, tensors, options, kind, words):
    with pytest.raises(kind) as raised:
        getattr(ours, name)(*tensors, **{"backend": backend, **options})
    assert type(raised.value) is kind
    for word in words:
        assert word in str(raised.value), str(raised.value)
    twin = None if kind is TypeError or "backend" in options else getattr(F, name, None)  # None and lists fail in torch wherever it is
    if twin and options.get("reduction") != "weighted_mean":
        with pytest.raises(Exception) as theirs:
            twin(*tensors, **options)
        assert type(theirs.value) is kind, theirs.value


def test_a_target_of_another_size_is_warned_of():
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        with pytest.warns(UserWarning, match="Using a target size"):
            getattr(ours, name)(torch.ones(3, 4), torch.ones(3, 1))


def test_numbers_of_other_dtypes_are_promoted_as_in_torch(backend):
    x = torch.randn(5, requires_grad=True)
    for other in (torch.float64, torch.bfloat16):
        t = torch.randn(5, dtype=other)
        got, wanted = ours.mse_loss(x, t, backend=backend), F.mse_loss(x, t)
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted)
    assert ours.l1_loss(torch.tensor([3 + 4j]), torch.tensor([0j]), backend=backend).item() == 5.0
    got, wanted = ours.gaussian_nll_loss(x, torch.zeros(5), 2.0, backend=backend), F.gaussian_nll_loss(x, torch.zeros(5), 2.0)
    torch.testing.assert_close(got, wanted)


def test_shapes_of_the_variance_are_torchs(backend):
    x, t = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    for shape in ((4, 3, 2), (4, 3), (4, 3, 1), (4, 1, 2), (1, 3, 2)):
        var = torch.rand(shape) + 0.1
        got = ours.gaussian_nll_loss(x, t, var, reduction="none", backend=backend)
        torch.testing.assert_close(got, F.gaussian_nll_loss(x, t, var, reduction="none"))


def test_shapes_table_covers_every_case():
    assert set(target_shapes("mse")) == set(SHAPES)
