"""Losses between two rows of logits: values, gradients and invariants on every backend, and the modules that keep a centre."""

from __future__ import annotations

import itertools
import math
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastloss
import fastloss.functional as ours
from fastloss.cases import LAYOUTS
from fastloss.divergence_cases import ROWS, VALUES, DivergenceCase
from fastloss.engine import accumulate_dtype
from fastloss.fuzz import DTYPES, run
from fastloss.oracle import check, evaluate, make_upstream, same_bits
from fastloss.registry import LOSSES
from graphs import recording
from test_memory import poisoned

ENGINE = "divergence"
QUICK = ("cpu",)
REDUCTIONS = ("none", "mean", "sum")
DETACHED = ("dino", "ibot_patch")  # whose teacher gets no gradient
LOG2, LOG3 = math.log(2), math.log(3)


def some(backend: str, cases: list, most: int) -> list:
    """A fixed sample of the cases, smaller on a slow backend."""
    most = most if backend == "triton" else 6 * most
    return cases if len(cases) <= most else random.Random(0).sample(cases, most)


def case(loss: str, **choices) -> DivergenceCase:
    return DivergenceCase(**choices).of(loss)


@pytest.mark.parametrize("values", VALUES)
def test_values(loss, backend, values):
    cases = [
        case(loss, shape=(5, classes), values=values, dtype=dtype, reduction=reduction, gradients="all", center=True)
        for classes in (37, 300) for dtype in DTYPES for reduction in REDUCTIONS
    ]
    for one in some(backend, cases, 1):
        check(one, None, backend)


def test_layouts_rows_and_shapes(loss, backend):
    cases = [
        case(loss, shape=shape, layout=layout, target_layout=target, rows=rows, reduction=REDUCTIONS[i % 3], dtype=DTYPES[i % 4], seed=i)
        for i, (shape, layout, target, rows) in enumerate(
            itertools.product(((7,), (4, 9), (2, 3, 5), (0, 4)), LAYOUTS, ("contiguous", "transposed", "expanded rows"), ROWS)
        )
    ]
    for one in some(backend, cases, 4):
        check(one, None, backend)


def test_choices(loss, backend):
    about = LOSSES[loss]
    grids = [(low, high) for low, high in about.params.values()] + list(about.choices.values())
    names = [*about.params, *about.choices]
    points = [tuple(zip(names, point)) for point in itertools.product(*grids)]
    for i, params in enumerate(some(backend, points, 3)):
        check(DivergenceCase(loss, (3, 20), params=params, gradients="all", reduction=REDUCTIONS[i % 3], center=i % 2 == 0), None, backend)


def test_sizes_around_block_edges(loss, compiled):
    sizes = (127, 129) if compiled == "triton" else (1, 15, 16, 17, 31, 33, 63, 65, 255, 257, 1000)
    sizes = (*sizes, 1023, 1024, 1025, 2049, 5000) if compiled == "cpu" else sizes
    for i, classes in enumerate(sizes):
        one = case(loss, shape=(3, classes), dtype=DTYPES[i % 4], seed=i, values=("normal", "late")[i % 2], gradients="all")
        check(one, None, compiled)


@pytest.mark.slow
def test_random_cases(loss, compiled):
    finding = run(loss, compiled, examples={"triton": 4, "cuda": 20}.get(compiled, 60), seed=11)
    assert finding is None, finding.script


def test_poisoned_buffers(loss, compiled):
    with poisoned():
        check(case(loss, shape=(9, 33), rows="mask", gradients="all", reduction="none"), None, compiled)
        check(case(loss, shape=(5, 8), rows="labels", gradients="all", dtype="bfloat16"), None, compiled)


# Derivatives, and what of torch a loss passes through


def test_gradcheck(loss, compiled):
    call = case(loss, shape=(3, 4), dtype="float64", gradients="all").build()
    x, t, *rest = call.arguments(call.tensors())[0]
    leaves = [x.clone().requires_grad_()] if loss in DETACHED else [x.clone().requires_grad_(), t.clone().requires_grad_()]

    def function(x, t=t):
        return LOSSES[loss].function(x, t, *rest, **call.options, backend=compiled)

    assert gradcheck(function, leaves)
    if compiled == "cpu":
        assert gradgradcheck(function, leaves)


@pytest.mark.one_of_a_kind
def test_opcheck(loss, compiled):
    x, t = torch.randn(3, 10)[:, :5], torch.randn(3, 5)
    functor, params = {"js_divergence": ("jensen_shannon", [0.5]), "dino": ("cross", [])}.get(loss, ("kl", []))
    centre, weight = torch.randn(5), torch.tensor([1.0, 0.0, 0.5])
    forward, backward = (getattr(getattr(torch.ops.fastloss, f"divergence_{d}"), compiled) for d in ("forward", "backward"))
    for reduction, given, dtype in ((0, (None, None), torch.float32), (1, (centre, weight), torch.bfloat16)):
        settings = functor, params, 0.5, 2.0, 3.0, reduction, True, dtype
        torch.library.opcheck(forward, (x, t, *given, *settings))
        loss_, stats, divisor = forward(x, t, *given, *settings)
        torch.library.opcheck(backward, (loss_.float() + 1, x, t, *given, stats, divisor, *settings, True, reduction == 0))


def test_func_transforms(loss):
    call = case(loss, shape=(3, 4)).build()
    x, *rest = call.arguments(call.tensors())[0]

    def function(x):
        return LOSSES[loss].function(x, *rest, **call.options)

    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(function)(x), wanted)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(function))(torch.stack([x, x]))[1], wanted)
    _, tangent = torch.func.jvp(function, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, wanted.sum(), atol=1e-6, rtol=1e-5)


@pytest.mark.one_of_a_kind
def test_torch_compile(loss, compiled):
    call = case(loss, shape=(3, 4), rows="mask").build()
    (x, *rest), named = call.arguments(call.tensors())
    x = x.clone().requires_grad_()

    def step(x):
        return LOSSES[loss].function(x, *rest, **named, **call.options, backend=compiled)

    wanted = step(x)
    torch._dynamo.reset()
    graphs: list[list[str]] = []
    got = torch.compile(step, backend=recording(graphs), fullgraph=True)(x)
    assert torch.equal(got, wanted)
    assert torch.equal(*(torch.autograd.grad(value, x)[0] for value in (got, wanted)))
    assert graphs == [[f"divergence_forward.{compiled}"], [f"divergence_backward.{compiled}"]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_bits_for_any_number_of_threads(loss, reduction):
    call = case(loss, shape=(300, 257), reduction=reduction, gradients="all", dtype="bfloat16").build()
    outcomes = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outcomes.append(evaluate(LOSSES[loss].function, call, make_upstream(call), backend="cpu"))
    for outcome in outcomes[1:]:
        assert same_bits(outcome.values["loss"], outcomes[0].values["loss"])
        assert all(same_bits(outcome.gradients[name], outcomes[0].gradients[name]) for name in outcome.gradients)


def test_rows_that_do_not_count_are_not_read(loss, backend):
    if "mask" not in LOSSES[loss].operands:
        return
    for values in (math.nan, math.inf):
        call = case(loss, shape=(2, 4, 6)).build()
        x, t = call.by_name["input"].clone(), call.by_name["target"].clone()
        mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
        x[~mask], t[~mask] = values, -values
        x.requires_grad_()
        params = dict(call.case.params)
        got = LOSSES[loss].function(x, t, mask=mask, reduction="mean", **params, backend=backend)
        kept = LOSSES[loss].function(x[mask][None], t[mask][None], mask=mask[mask][None], reduction="mean", **params, backend="eager")
        torch.testing.assert_close(got, kept)
        (grad,) = torch.autograd.grad(got, x)
        assert grad[mask].isfinite().all() and not grad[~mask].any()


def test_subclasses_and_meta(loss):
    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function, args, kwargs

    call = case(loss, shape=(2, 3, 4)).build()
    x, *rest = call.arguments(call.tensors())[0]
    function, args, kwargs = LOSSES[loss].function(x.as_subclass(Own), *rest, **call.options)
    assert function is LOSSES[loss].function and len(args) == len(rest) + 1
    assert all(kwargs[name] == value for name, value in call.options.items())
    x = torch.empty(2, 3, 4, device="meta", requires_grad=True)  # where whatever looks at a value raises
    value = LOSSES[loss].function(x, *(t.to("meta") for t in rest), backend="eager")
    assert torch.autograd.grad(value, x)[0].shape == x.shape


def cuda_calls():
    """Rows around packs, a warp's and a block's, aligned and not, with every option of the op and with none."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        wide = accumulate_dtype(dtype)
        for classes in (1, 7, 64, 130, 600):
            x, t = torch.randn(5, classes + 1).to(dtype), torch.randn(5, classes).to(dtype)
            yield x[:, 1:], t, torch.randn(classes, dtype=wide), torch.tensor([1, 0, 2, 1, 1], dtype=wide), 1
            yield x[:, :-1].contiguous(), t, None, None, 0


def run_on_cuda(name, *call) -> list[torch.Tensor]:
    """The ops themselves; used by test_cuda."""
    (*given, reduction), params = call, [0.3] if name == "jensen_shannon" else []
    settings = name, params, 0.5, 2.0, 3.0, reduction, False, torch.float32
    loss, stats, divisor = torch.ops.fastloss.divergence_forward.cuda(*given, *settings)
    upstream = torch.ones_like(loss, dtype=stats.dtype)
    return [loss, stats, *torch.ops.fastloss.divergence_backward.cuda(upstream, *given, stats, divisor, *settings, True, True)]


# Values by hand: student (3/4, 1/4), teacher (1/2, 1/2) unless given otherwise

S, T = [[LOG3, 0.0]], [[0.0, 0.0]]
KL = 0.5 * math.log(4 / 3)
REVERSE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
HALFWAY = 0.5 * (0.5 * math.log(0.8) + 0.5 * math.log(4 / 3)) + 0.5 * (0.75 * math.log(1.2) + 0.25 * math.log(2 / 3))
# beta = 1/4: the mixture is (11/16, 5/16)
QUARTER = 0.25 * (0.5 * math.log(8 / 11) + 0.5 * math.log(8 / 5)) + 0.75 * (0.75 * math.log(12 / 11) + 0.25 * math.log(0.8))
CE = LOG2 - 0.5 * LOG3 + LOG2  # -(log 3/4 + log 1/4) / 2
BY_HAND = [
    ("distillation", (S, T), {}, [KL]),
    ("distillation", (S, T), {"reverse": True}, [REVERSE]),
    ("distillation", ([[2 * LOG3, 0.0]], T), {"temperature": 2.0}, [4 * KL]),
    ("distillation", ([[2 * LOG3, 0.0]], T), {"temperature": 2.0, "squared_temperature": False}, [KL]),
    ("distillation", (S + T + S, T * 3), {"labels": [1, 0, 7], "ignore_index": 7}, [KL, 0.0, 0.0]),
    ("js_divergence", (S, T), {}, [HALFWAY]),
    ("js_divergence", ([[0.0, -math.inf]], [[-math.inf, 0.0]]), {}, [LOG2]),
    ("generalized_jsd", (S, T), {"beta": 0.25}, [QUARTER]),
    ("generalized_jsd", (S, T), {"beta": 0.0}, [KL]),
    ("generalized_jsd", (S, T), {"beta": 1.0}, [REVERSE]),
    ("total_variation", (S, T), {}, [0.25]),
    ("total_variation", (S + S, T + T), {"mask": [False, True]}, [0.0, 0.25]),
    ("dino", (S, T), {"student_temp": 1.0, "teacher_temp": 1.0}, [CE]),
    ("dino", ([[0.5 * LOG3, 0.0]], [[3.0, 1.0]], [3.0, 1.0]), {"student_temp": 0.5, "teacher_temp": 0.1}, [CE]),
    # views: the teacher's first with the student's second and third, its second with the first and third
    ("dino", ([S, T, S], [T, [[0.0, -math.inf]]]), {"student_temp": 1.0, "teacher_temp": 1.0, "crops": True},
     [[LOG2], [CE], [math.log(4 / 3)], [math.log(4 / 3)]]),
    ("ibot_patch", ([S + T, S + S], [T + T, T + T], [[True, True], [True, False]]), {"student_temp": 1.0, "teacher_temp": 1.0},
     [[CE, LOG2], [CE, 0.0]]),
    ("ibot_patch", ([S + T, S + S], [T + T, T + T], [[True, True], [True, False]]),
     {"student_temp": 1.0, "teacher_temp": 1.0, "per_image": True}, [[CE / 2, LOG2 / 2], [CE, 0.0]]),
]


@pytest.mark.parametrize(("name", "operands", "options", "wanted"), BY_HAND)
def test_by_hand(backend, name, operands, options, wanted):
    options = {key: torch.tensor(value) if key in ("labels", "mask") else value for key, value in options.items()}
    given = [torch.tensor(o, dtype=None if torch.tensor(o).dtype == torch.bool else torch.float64) for o in operands]
    got = LOSSES[name].function(*given, **options, reduction="none", backend=backend)
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    total = LOSSES[name].function(*given, **options, reduction="sum", backend=backend)
    torch.testing.assert_close(total, wanted.sum(), rtol=1e-12, atol=1e-14)


def test_every_loss_is_computed_by_hand(loss):
    assert loss in {name for name, *_ in BY_HAND}


def test_means(backend):
    x, t = torch.randn(3, 4, 6, dtype=torch.float64), torch.randn(3, 4, 6, dtype=torch.float64)
    mask = torch.rand(3, 4) < 0.5
    mask[2] = False
    rows = ours.ibot_patch_loss(x, t, torch.ones(3, 4), reduction="none", backend=backend)
    torch.testing.assert_close(ours.ibot_patch_loss(x, t, mask, backend=backend), rows[mask].mean())
    images = [row[m].mean() if m.any() else torch.zeros((), dtype=torch.float64) for row, m in zip(rows, mask)]
    torch.testing.assert_close(ours.ibot_patch_loss(x, t, mask, per_image=True, backend=backend), torch.stack(images).mean())
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    assert ours.ibot_patch_loss(x, t, nothing, backend=backend) == 0 == ours.ibot_patch_loss(x, t, nothing, per_image=True, backend=backend)
    assert ours.distillation_loss(x, t, mask=nothing, backend=backend).isnan()
    labels = torch.where(mask, 3, -100)
    kept = ours.distillation_loss(x[mask], t[mask], 2.0, backend=backend)
    torch.testing.assert_close(ours.distillation_loss(x, t, 2.0, labels=labels, backend=backend), kept)
    torch.testing.assert_close(kept, 4 * F.kl_div(F.log_softmax(x[mask] / 2, -1), F.softmax(t[mask] / 2, -1), reduction="batchmean"))


def test_equal_rows_and_large_offsets(loss, backend):
    if loss in DETACHED:
        return
    x = torch.randn(4, 50)
    value = LOSSES[loss].function(x, x.clone(), reduction="none", backend=backend)
    assert value.abs().max() < 1e-6
    steps = (16 * x).round() / 16
    far = LOSSES[loss].function(steps + 2**16, steps.flip(0) - 2**16, backend=backend)
    torch.testing.assert_close(far, LOSSES[loss].function(steps, steps.flip(0), backend=backend), rtol=2e-6, atol=0)


def test_no_gradient_at_ties_of_total_variation(backend):
    x = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(ours.total_variation(x, torch.zeros(1, 4), backend=backend), x)
    assert not grad.any()


WRONG = [
    ("distillation", (torch.zeros(2, 3), torch.zeros(2, 4)), {}, ValueError, r"one shape \(\.\.\., C\), got \(2, 3\) and \(2, 4\)"),
    ("distillation", (torch.zeros(2, 3), torch.zeros(2, 3)), {"temperature": 0.0}, ValueError, "temperature must be positive, got 0.0"),
    ("distillation", (torch.zeros(2, 3), [1.0]), {}, TypeError, "target must be a Tensor, got list"),
    ("distillation", (torch.zeros(2, 3).long(), torch.zeros(2, 3)), {}, NotImplementedError, "input must be float32.*got torch.int64"),
    ("distillation", (torch.zeros(2, 3), torch.zeros(2, 3)), {"mask": torch.ones(3) > 0}, ValueError,
     r"mask must have.*\(2,\), got \(3,\)"),
    ("distillation", (torch.zeros(2, 3), torch.zeros(2, 3)), {"mask": torch.ones(2)}, RuntimeError, "mask must be booleans"),
    ("distillation", (torch.zeros(2, 3), torch.zeros(2, 3)), {"labels": torch.ones(2)}, RuntimeError, "labels must be integers"),
    ("distillation", (torch.zeros(2, 3), torch.zeros(2, 3)), {"labels": 3}, TypeError, "labels must be a Tensor or None, got int"),
    ("total_variation", (torch.zeros(2, 3), torch.zeros(2, 3)), {"reduction": "batchmean"}, ValueError, "not a valid value for reduction"),
    ("generalized_jsd", (torch.zeros(2, 3), torch.zeros(2, 3)), {"beta": 1.5}, ValueError, r"beta must be in \[0, 1\], got 1.5"),
    ("dino", (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(4)), {}, ValueError, r"center must have 3 elements, got shape \(4,\)"),
    ("dino", (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)), {"crops": True}, ValueError, "got 1 and 1 views"),
    ("dino", (torch.zeros(3), torch.zeros(3)), {"crops": True}, ValueError, r"wants input of shape \(views, \.\.\., K\), got \(3,\)"),
    ("ibot_patch", (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(3, 2)), {}, ValueError, r"mask \(B, P\), got.*mask of \(3, 2\)"),
    ("linear_distillation", (torch.zeros(2, 3), torch.zeros(5, 4), torch.zeros(2, 5)), {}, ValueError, r"linear_weight \(C, D\), got"),
    ("linear_distillation", (torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, 4)), {}, ValueError, r"shape \(2, 5\), got \(2, 4\)"),
    ("linear_distillation", (torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, 5)), {"kind": "l2"}, ValueError, "one of 'kl'"),
    ("linear_distillation", (torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, 5)), {"target_bias": torch.zeros(5)}, ValueError,
     "target_bias wants target_weight"),
]


@pytest.mark.parametrize(("name", "operands", "options", "error", "words"), WRONG)
def test_wrong_arguments(name, operands, options, error, words):
    with pytest.raises(error, match=words):
        LOSSES[name].function(*operands, **options)


# Modules with a centre, and Sinkhorn-Knopp


def test_dino_module_keeps_its_centre():
    criterion = fastloss.nn.DINOLoss(6, 0.2, 0.3, center_momentum=0.75)
    student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6) + 2
    first = criterion(student, teacher)
    assert torch.equal(criterion.center, torch.zeros(1, 6)) and torch.equal(first, ours.dino_loss(student, teacher, None, 0.2, 0.3))
    criterion.update_center(teacher)
    torch.testing.assert_close(criterion.center, 0.25 * teacher.mean(0, keepdim=True))
    second = criterion(student, teacher)
    criterion.update_center([teacher, 3 * teacher])  # before the backward of the loss that has the old centre
    torch.testing.assert_close(criterion.center, 0.75 * 0.25 * teacher.mean(0, keepdim=True) + 0.25 * 2 * teacher.mean(0, keepdim=True))
    wanted = ours.dino_loss(student, teacher, 0.25 * teacher.mean(0), 0.2, 0.3)
    torch.testing.assert_close(torch.autograd.grad(second, student), torch.autograd.grad(wanted, student))
    again = fastloss.nn.DINOLoss(6)
    again.load_state_dict(criterion.state_dict())
    assert torch.equal(again.center, criterion.center) and list(criterion.state_dict()) == ["center"]
    assert repr(pickle.loads(pickle.dumps(criterion))) == repr(criterion) == "DINOLoss(6, student_temp=0.2, teacher_temp=0.3)"


def test_centres_update_themselves_on_request():
    criterion = fastloss.nn.DINOLoss(6, auto_update=True, crops=True)
    teacher = [torch.randn(4, 6) for _ in range(2)]
    student = [torch.randn(4, 6, requires_grad=True) for _ in range(3)]
    loss = criterion(student, teacher)
    torch.testing.assert_close(loss, ours.dino_loss(torch.stack(student), torch.stack(teacher), crops=True))
    assert torch.autograd.grad(loss, student)[2].abs().sum() > 0
    torch.testing.assert_close(criterion.center, 0.1 * torch.cat(teacher).mean(0, keepdim=True))
    before = criterion.center.clone()
    criterion.eval()(student, teacher)
    assert torch.equal(criterion.center, before)

    criterion = fastloss.nn.IBOTPatchLoss(6, auto_update=True, per_image=True)
    student, teacher, mask = torch.randn(2, 5, 6), torch.randn(2, 5, 6), torch.rand(2, 5) < 0.5
    assert torch.equal(criterion(student, teacher, mask), ours.ibot_patch_loss(student, teacher, mask, per_image=True))
    torch.testing.assert_close(criterion.center, 0.1 * teacher.mean((0, 1), keepdim=True))
    with pytest.raises(ValueError, match=r"wanted outputs \(\.\.\., 6\), got \(2, 5\)"):
        criterion.update_center(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="center_momentum must be in"):
        fastloss.nn.DINOLoss(6, center_momentum=2.0)


def test_sinkhorn_knopp():
    scores = torch.randn(8, 4)
    got = ours.sinkhorn_knopp(scores, 0.5, 3)
    q = torch.exp(scores.double() / 0.5).t()
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * 4
        q /= q.sum(0, keepdim=True) * 8
    torch.testing.assert_close(got.double(), 8 * q.t(), rtol=1e-5, atol=1e-7)
    many = ours.sinkhorn_knopp(scores, 0.5, 200)
    torch.testing.assert_close(many.sum(0), torch.full((4,), 2.0), rtol=1e-4, atol=0)
    far = ours.sinkhorn_knopp(1000 * scores.half(), 0.05)
    assert far.isfinite().all() and far.dtype == torch.float32
    torch.testing.assert_close(far.sum(1), torch.ones(8))
    flat = torch.zeros(3)
    for wrong, words in (((flat,), r"\(B, K\), got \(3,\)"), ((scores, 0.0), "temperature must be"), ((scores, 1.0, 0), "at least 1")):
        with pytest.raises(ValueError, match=words):
            ours.sinkhorn_knopp(*wrong)


def test_over_two_processes(monkeypatch):
    """Centres and columns are those of all rows, also where processes, here threads, have different numbers of them."""
    scores, barrier, given = torch.randn(8, 4), threading.Barrier(2, timeout=60), {}

    def all_reduce(tensor, op=dist.ReduceOp.SUM):
        given[threading.get_ident()] = tensor.clone()
        barrier.wait()
        parts = torch.stack(list(given.values()))
        barrier.wait()
        tensor.copy_(parts.sum(0) if op == dist.ReduceOp.SUM else parts.amax(0))

    def process(mine):
        criterion = fastloss.nn.DINOLoss(4)
        criterion.update_center(mine)
        return criterion.center, ours.sinkhorn_knopp(mine, 0.3)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    with ThreadPoolExecutor(2) as pool:
        (first, top), (second, bottom) = pool.map(process, scores.split((3, 5)))
    monkeypatch.undo()
    torch.testing.assert_close(first, 0.1 * scores.mean(0, keepdim=True))
    assert torch.equal(first, second)
    torch.testing.assert_close(torch.cat([top, bottom]), ours.sinkhorn_knopp(scores, 0.3), rtol=1e-5, atol=1e-7)


# Linear layers whose logits never exist


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["kl", "jsd"])
def test_linear_distillation_in_parts(compiled, kind, dtype, monkeypatch):
    """Teacher and student with biases, every gradient, rows that do not count, a row at a time and in blocks of classes."""
    monkeypatch.setattr("fastloss.functional.linear_distillation.BLOCK", 4)
    generator = torch.Generator().manual_seed(0)
    shapes = (5, 3), (11, 3), (5, 2), (11, 2), (11,), (11,)
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    mask = torch.tensor([True, False, True, True, True])
    with torch.no_grad():
        tensors[0][1] = math.nan
    wide = [t.detach().double().requires_grad_() for t in tensors]
    x, w, h, v, b, c = wide
    relative = ours.distillation_loss if kind == "kl" else lambda *sides, **options: 4 * ours.generalized_jsd(*sides, beta=0.3, **options)
    wanted = relative(x.nan_to_num() @ w.t() + b, h @ v.t() + c, temperature=2.0, mask=mask)
    wanted_grads = torch.autograd.grad(wanted, wide)
    half = dtype == torch.bfloat16
    for budget in (None, 1):
        got = ours.linear_distillation_loss(
            *tensors[:4], *tensors[4:], 2.0, kind, 0.3, mask=mask, memory_budget=budget, backend=compiled
        )
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=4e-3 if half else 1e-5, atol=0)
        for mine, theirs in zip(torch.autograd.grad(got, tensors), wanted_grads):
            assert mine.dtype == dtype
            torch.testing.assert_close(mine.double(), theirs, rtol=5e-3 if half else 1e-5, atol=1e-6)


def test_linear_distillation_stores_no_logits():
    """The largest tensor that a step makes is a gradient, though the logits are larger."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, torch.Tensor))
            return out

    x, w, h, v = (torch.randn(shape).requires_grad_() for shape in ((64, 4), (500, 4), (64, 4), (500, 4)))
    with Watch():
        ours.linear_distillation_loss(x, w, h, v, memory_budget=4 * 4 * 500 * 2, backend="cpu").backward()
    assert max(sizes) == 500 * 4 < 64 * 500


def test_linear_distillation_under_autocast():
    x, w, t = torch.randn(4, 8), torch.randn(6, 8), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        got = ours.linear_distillation_loss(x, w, t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, ours.distillation_loss(x.bfloat16().float() @ w.bfloat16().float().t(), t))
