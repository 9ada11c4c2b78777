"""Values, gradients and invariants of every box loss and of matrices of scores on every backend."""

from __future__ import annotations

import itertools
import math
import random
import re
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastloss
import fastloss.functional as ours
from fastloss.box import overlap, pairs_formula
from fastloss.box_cases import PAIRS, SHAPES, BoxCase
from fastloss.cases import LAYOUTS
from fastloss.functional.boxes import KINDS
from fastloss.fuzz import DTYPES, run
from fastloss.oracle import check, evaluate, make_upstream, same_bits
from fastloss.registry import LOSSES
from graphs import recording
from test_memory import poisoned

ENGINE = "box"
INTERPRETED = ("triton",)
REDUCTIONS = ("none", "mean", "sum")


def some(backend: str, cases: list, most: int) -> list:
    """A fixed sample of the cases, smaller on a slow backend."""
    most = most if backend in INTERPRETED else 12 * most
    return cases if len(cases) <= most else random.Random(0).sample(cases, most)


def pairs(shape=(6,), values="random", dtype=torch.float64, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(boxes.to(dtype) for boxes in PAIRS[values](shape, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("values", PAIRS)
def test_values(loss, backend, values):
    cases = [
        BoxCase(loss, (37,), values=values, dtype=dtype, reduction=reduction, gradients="all", params=(("eps", eps),))
        for dtype in DTYPES for reduction in REDUCTIONS for eps in (1e-7, 0.0, 1e-3)
    ]
    for case in some(backend, cases, 1):
        check(case, None, backend)


def test_layouts_and_broadcasting(loss, backend):
    cases = [
        BoxCase(loss, shape, layout=layout, layout2=layout2, broadcast=broadcast, dtype=dtype, reduction="none", gradients="all")
        for shape in ((), (5,), (3, 7), (2, 3, 4))
        for layout in LAYOUTS
        for layout2 in ("contiguous", "transposed", "every second", "expanded rows")
        for broadcast in SHAPES
        for dtype in DTYPES
    ]
    for case in some(backend, cases, 4):
        check(case, None, backend)


def test_counts_around_block_edges(loss, backend):
    sizes = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 255, 257) if backend not in INTERPRETED else (1, 1025)
    for i, size in enumerate(sizes):
        check(BoxCase(loss, (size,), dtype=DTYPES[i % 4], seed=i, layout=("contiguous", "shifted")[i % 2], reduction="none"), None, backend)
    if backend == "cpu":
        for size, reduction in itertools.product((4095, 4096, 4097, 20000), ("none", "mean")):
            check(BoxCase(loss, (size,), seed=size, reduction=reduction, gradients="all"), None, backend)


@pytest.mark.parametrize("shape", [(0,), (0, 3)], ids=str)
def test_empty(loss, backend, shape):
    for reduction, broadcast in itertools.product(REDUCTIONS, ("none", "one second")):
        check(BoxCase(loss, shape, reduction=reduction, broadcast=broadcast, gradients="all"), None, backend)
    boxes = torch.empty(*shape, 4, requires_grad=True)
    one = torch.tensor([0.0, 0.0, 1.0, 1.0], requires_grad=True)
    value = LOSSES[loss].function(boxes, one, reduction="mean", backend=backend)
    assert value == 0
    grads = torch.autograd.grad(value, [boxes, one])
    assert grads[0].shape == boxes.shape and torch.equal(grads[1], torch.zeros(4))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_is_not_swallowed(loss, backend, reduction):
    for which, corner in ((0, 0), (0, 3), (1, 1), (1, 2)):
        boxes = list(pairs((40,), dtype=torch.float32))
        boxes[which][17, corner] = math.nan
        value = LOSSES[loss].function(*boxes, reduction=reduction, backend=backend)
        assert value.isnan().sum() == 1 and (reduction != "none" or value[17].isnan())


@pytest.mark.slow
def test_random_cases(loss, backend):
    finding = run(loss, backend, examples=12 if backend in INTERPRETED else 200, seed=11)
    assert finding is None, finding.script


def test_poisoned_buffers(loss, backend):
    with poisoned():
        for case in (BoxCase(loss, (33,), reduction="none", gradients="all"), BoxCase(loss, (5, 3), dtype="bfloat16", layout="transposed")):
            check(case, None, backend)


# Derivatives, and what of torch a loss passes through


def test_gradcheck(loss, backend):
    if loss == "complete_box_iou":
        return  # alpha has no derivative: see below
    for values, reduction in (("random", "none"), ("inverted", "mean")):
        inputs = [boxes.requires_grad_() for boxes in pairs((5,), values)]
        function = lambda a, b: LOSSES[loss].function(a, b, reduction=reduction, backend=backend)  # noqa: E731
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


def test_gradient_of_complete_box_iou_leaves_alpha_out(backend):
    a, b = (boxes.requires_grad_() for boxes in pairs((50,)))
    o = overlap(a.detach(), b.detach(), 1e-7)

    def aspect(boxes):
        return torch.atan2(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])

    v = (4 / math.pi**2) * (aspect(a) - aspect(b)) ** 2
    alpha = (v / (o.complement + v + 1e-7)).detach()
    wanted = ours.distance_box_iou_loss(a, b, backend="eager") + alpha * v
    got = ours.complete_box_iou_loss(a, b, backend=backend)
    torch.testing.assert_close(got, wanted)
    upstream = torch.randn(50, dtype=torch.float64)
    for ours_, theirs in zip(torch.autograd.grad(got, [a, b], upstream), torch.autograd.grad(wanted, [a, b], upstream)):
        torch.testing.assert_close(ours_, theirs)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(loss, compiled, layout):
    a, b = (LAYOUTS[layout](boxes.float())[1] for boxes in pairs((5,)))
    settings, ops = (loss, [1e-7, 1e-7]), torch.ops.fastloss
    for reduction in (0, 1):
        args = a, b, *settings, reduction
        torch.library.opcheck(getattr(ops.box_forward, compiled), args)
        value = getattr(ops.box_forward, compiled)(*args)
        torch.library.opcheck(getattr(ops.box_backward, compiled), (torch.ones_like(value), *args, True, reduction == 0))
    torch.library.opcheck(getattr(ops.box_pairs_forward, compiled), (a, b[:3], *settings))
    torch.library.opcheck(getattr(ops.box_pairs_backward, compiled), (torch.ones(5, 3), a, b[:3], *settings, True, True))


def test_func_transforms_and_checkpointing(loss):
    a, b = (boxes.float() for boxes in pairs((4,)))
    function = lambda x: LOSSES[loss].function(x, b, reduction="sum")  # noqa: E731
    leaf = a.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(function)(a), wanted)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(function))(torch.stack([a, a]))[1], wanted)
    (again,) = torch.autograd.grad(checkpoint(function, leaf, use_reentrant=False), leaf)
    torch.testing.assert_close(again, wanted)
    _, tangent = torch.func.jvp(function, (a,), (torch.ones_like(a),))
    torch.testing.assert_close(tangent, wanted.sum())


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_torch_compile(loss, compiled, reduction):
    a, b = (boxes.float().requires_grad_() for boxes in pairs((6,)))

    def step(x, y):
        return LOSSES[loss].function(x, y, reduction=reduction, backend=compiled)

    def gradients(value):
        return torch.autograd.grad(value, [a, b], torch.ones_like(value))

    wanted = step(a, b)
    torch._dynamo.reset()
    graphs: list[list[str]] = []
    got = torch.compile(step, backend=recording(graphs), fullgraph=True)(a, b)
    assert torch.equal(got, wanted)
    assert all(torch.equal(x, y) for x, y in zip(gradients(got), gradients(wanted)))
    assert graphs == [[f"box_forward.{compiled}"], [f"box_backward.{compiled}"]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_same_bits_for_any_number_of_threads(loss, reduction):
    call = BoxCase(loss, (30000,), reduction=reduction, gradients="all", dtype="bfloat16").build()
    outcomes = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outcomes.append(evaluate(LOSSES[loss].function, call, make_upstream(call), backend="cpu"))
    for outcome in outcomes[1:]:
        assert same_bits(outcome.values["loss"], outcomes[0].values["loss"])
        assert all(same_bits(outcome.gradients[name], outcomes[0].gradients[name]) for name in outcome.gradients)


def test_a_subclass_of_tensor_is_asked(loss):
    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return function, args, kwargs

    boxes = torch.rand(3, 4)
    function, args, kwargs = LOSSES[loss].function(boxes.as_subclass(Own), boxes, eps=0.5)
    assert function is LOSSES[loss].function and len(args) == 2 and kwargs["eps"] == 0.5
    function, args, kwargs = ours.pairwise_box_iou(boxes.as_subclass(Own), boxes, "giou")
    assert function is ours.pairwise_box_iou and kwargs["kind"] == "giou"


# Values by hand: loss, boxes, options, value

ANGLE = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
BY_HAND = [
    ("box_iou", [0, 0, 2, 2], [1, 0, 3, 2], {}, 1 - 2 / 6),
    ("box_iou", [0, 0, 2, 2], [0, 0, 2, 2], {"eps": 1.0}, 1 / 5),
    ("box_iou", [0, 0, 1, 1], [1, 0, 2, 1], {}, 1.0),
    ("box_iou", [2, 2, 0, 0], [0, 0, 2, 2], {}, 1.0),
    ("box_iou", [1, 1, 1, 1], [1, 1, 1, 1], {"eps": 0.0}, 1.0),
    ("generalized_box_iou", [0, 0, 2, 2], [1, 1, 3, 3], {}, 1 - 1 / 7 + 2 / 9),
    ("generalized_box_iou", [0, 0, 1, 1], [3, 0, 4, 1], {}, 1.5),
    ("generalized_box_iou", [0, 0, 0, 0], [0, 0, 0, 0], {"eps": 1e-7}, 1.0),
    ("distance_box_iou", [0, 0, 1, 1], [3, 0, 4, 1], {}, 1 + 9 / 17),
    ("distance_box_iou", [0, 0, 2, 2], [1, 1, 3, 3], {"eps": 2.0}, 1 - 1 / 9 + 2 / 20),
    ("complete_box_iou", [0, 0, 2, 1], [0, 0, 1, 2], {}, 2 / 3 + 1 / 16 + ANGLE**2 / (2 / 3 + ANGLE)),
    ("complete_box_iou", [0, 0, 4, 4], [1, 1, 3, 3], {}, 3 / 4),
    ("complete_box_iou", [5, 5, 5, 5], [0, 0, 1, 1], {}, 1 + 40.5 / 50 + (1 / 4) ** 2 / (1 + 1 / 4)),  # the angle without size is 0
    ("complete_box_iou", [0, 0, 1, 0], [0, 0, 0, 1], {"eps": 0.0}, 1 + 0.25 + 1 / 2),
]


@pytest.mark.parametrize(("name", "a", "b", "options", "wanted"), BY_HAND)
def test_by_hand(backend, name, a, b, options, wanted):
    a, b = (torch.tensor(box, dtype=torch.float64) for box in (a, b))
    options = {"eps": 1e-300, **options}
    for first, second in ((a, b), (b, a)):
        got = LOSSES[name].function(first, second, **options, backend=backend)
        assert got.shape == () and got.item() == pytest.approx(wanted, rel=1e-12)


def test_every_loss_is_computed_by_hand(loss):
    assert loss in {name for name, *_ in BY_HAND}


def test_gradients_by_hand(backend):
    a = torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.0, 0.0, 3.0, 2.0], dtype=torch.float64, requires_grad=True)
    grads = torch.autograd.grad(ours.box_iou_loss(a, b, eps=0.0, backend=backend), [a, b])
    # I = 2, U = 6. Their widths move I and A; equal ends of their heights share the gradient of I.
    d_inter, d_area = -(1 / 6 + 2 / 36), 2 / 36
    wanted_a = [-2 * d_area, -d_inter / 2 - 2 * d_area, 2 * d_inter + 2 * d_area, d_inter / 2 + 2 * d_area]
    wanted_b = [-2 * d_inter - 2 * d_area, -d_inter / 2 - 2 * d_area, 2 * d_area, d_inter / 2 + 2 * d_area]
    for got, wanted in zip(grads, (wanted_a, wanted_b)):
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_nearly_equal_boxes_keep_their_accuracy(backend):
    a = torch.tensor([[10.0, 10.0, 20.0, 20.0], [0.1, 0.1, 0.3, 0.4]])
    b = a + torch.tensor([0.0, 0.0, 1e-3, 0.0])
    wanted = ours.box_iou_loss(a.double(), b.double(), eps=0.0, backend="eager")
    torch.testing.assert_close(ours.box_iou_loss(a, b, eps=0.0, backend=backend).double(), wanted, rtol=1e-6, atol=0)
    assert (ours.box_iou_loss(a, a, eps=0.0, backend=backend) == 0).all()


# Defects of other libraries


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("eps", [1e-7, 0.0])
def test_defect_22_boxes_without_size_are_finite(loss, backend, dtype, eps):
    kinds = [[1, 1, 1, 1], [0, 0, 0, 2], [0, 0, 2, 0], [2, 2, 0, 0], [2, 0, 0, 2], [0, 0, 2, 2], [-1, -1, -1, -1]]
    a, b = zip(*itertools.product(kinds, kinds))
    a, b = (torch.tensor(boxes, dtype=getattr(torch, dtype), requires_grad=True) for boxes in (a, b))
    value = LOSSES[loss].function(a, b, eps=eps, backend=backend)
    assert value.isfinite().all()
    for grad in torch.autograd.grad(value.sum(), [a, b]):  # up to 2 / eps, which float16 does not hold
        assert (grad.nan_to_num(math.nan, 0, 0) if dtype == "float16" else grad).isfinite().all()


def test_defect_20_areas_of_half_precision_do_not_overflow(loss, backend):
    a = torch.tensor([[0.0, 0.0, 60000.0, 60000.0]], dtype=torch.float16, requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 30000.0, 60000.0]], dtype=torch.float16)
    value = LOSSES[loss].function(a, b, backend=backend)
    wanted = LOSSES[loss].function(a.double(), b.double(), backend="eager")
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, wanted.float())
    assert torch.autograd.grad(value.sum(), a)[0].isfinite().all()


def test_defect_21_no_value_is_looked_at(loss):
    """On tensors without data whatever looks at a value raises, indexing by a mask included."""
    boxes = torch.empty(6, 4, device="meta", requires_grad=True)
    value = LOSSES[loss].function(boxes, boxes.detach(), reduction="mean", backend="eager")
    assert torch.autograd.grad(value, boxes)[0].shape == (6, 4)


# Matrices of scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pairwise(backend, kind, dtype):
    dtype = getattr(torch, dtype)
    cases = [
        ((0, 3), "random"), ((3, 0), "random"), ((1, 1), "random"), ((5, 67), "lattice"), ((70, 9), "degenerate"), ((33, 40), "random"),
    ]
    for (n, m), values in cases[2:5] if backend in INTERPRETED else cases:
        a, b = pairs((n,), values, dtype)[0].requires_grad_(), pairs((m,), values, dtype)[1].requires_grad_()
        got = ours.pairwise_box_iou(a, b, kind, backend=backend)
        assert got.shape == (n, m) and got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        wide = [boxes.detach().double().requires_grad_() for boxes in (a, b)]
        truth = pairs_formula(LOSSES[KINDS[kind]].point, (0.0, 1e-7), *wide)
        upstream = torch.randn(n, m, dtype=torch.float64).to(got.dtype)
        exact = dtype == torch.float64
        torch.testing.assert_close(got.double(), truth, rtol=1e-11 if exact else 1e-5, atol=1e-12 if exact else 2e-6)
        wanted = torch.autograd.grad(truth, wide, upstream.double())
        for mine, theirs in zip(torch.autograd.grad(got, [a, b], upstream), wanted):
            assert mine.dtype == dtype
            half = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 1e-4)
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-10 if exact else half, atol=1e-10 if exact else 1e-4)


def test_pairwise_is_one_minus_the_loss(loss, backend):
    kind = next(kind for kind, name in KINDS.items() if name == loss)
    a, b = pairs((4,))
    got = ours.pairwise_box_iou(a, b, kind, eps=0.0, backend=backend)
    torch.testing.assert_close(got, 1 - LOSSES[loss].function(a[:, None], b[None], eps=0.0, backend=backend))


def test_pairwise_takes_any_strides_and_a_part_of_the_gradients(backend):
    a, b = pairs((5,))
    for layout in ("transposed", "every second", "expanded rows"):
        x, y = LAYOUTS[layout](a)[1].requires_grad_(), LAYOUTS[layout](b)[1]
        got = ours.pairwise_box_iou(x, y, "giou", backend=backend)
        plain = x.detach().contiguous().requires_grad_()
        wanted = ours.pairwise_box_iou(plain, y.contiguous(), "giou", backend="eager")
        torch.testing.assert_close(got, wanted)
        upstream = torch.randn(5, 5, dtype=torch.float64).t()
        torch.testing.assert_close(torch.autograd.grad(got, x, upstream)[0], torch.autograd.grad(wanted, plain, upstream)[0])
    got = ours.pairwise_box_iou(a, y.requires_grad_(), backend=backend)
    assert torch.autograd.grad(got.sum(), y)[0].shape == (5, 4)


def test_pairwise_derivatives(backend):
    a, b = (boxes[:3].requires_grad_() for boxes in pairs((6,)))
    for kind in ("iou", "giou", "diou"):
        function = lambda x, y: ours.pairwise_box_iou(x, y, kind, backend=backend)  # noqa: E731
        assert gradcheck(function, (a, b[:2])) and gradgradcheck(function, (a, b[:2]))


def test_pairwise_torch_compile(compiled):
    a, b = (boxes.float().requires_grad_() for boxes in pairs((6,)))
    step = lambda x, y: ours.pairwise_box_iou(x, y, "ciou", backend=compiled)  # noqa: E731
    torch._dynamo.reset()
    graphs: list[list[str]] = []
    got, wanted = torch.compile(step, backend=recording(graphs), fullgraph=True)(a, b), step(a, b)
    assert torch.equal(got, wanted)
    for mine, theirs in zip(torch.autograd.grad(got.sum(), [a, b]), torch.autograd.grad(wanted.sum(), [a, b])):
        assert torch.equal(mine, theirs)
    assert graphs == [[f"box_pairs_forward.{compiled}"], [f"box_pairs_backward.{compiled}"]]


def test_pairwise_gradients_are_the_same_for_any_number_of_threads():
    outcomes = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        a, b = (boxes.requires_grad_() for boxes in pairs((700,), dtype=torch.float32))
        scores = ours.pairwise_box_iou(a, b, "giou", backend="cpu")
        outcomes.append([scores.detach(), *torch.autograd.grad(scores.square().sum(), [a, b])])
    assert all(torch.equal(x, y) for other in outcomes[1:] for x, y in zip(other, outcomes[0]))


def test_pairwise_backward_needs_no_memory_of_the_matrix():
    def resident(key: str) -> int:
        return 1024 * int(re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])

    a, b = (boxes.requires_grad_() for boxes in pairs((3000,), dtype=torch.float32))  # 36 MB: the C library gives it back when freed
    grown = {}
    for backend in ("cpu", "eager"):
        scores = ours.pairwise_box_iou(a, b, backend=backend)
        upstream = torch.ones_like(scores)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present
        torch.autograd.grad(scores, [a, b], upstream)
        grown[backend] = resident("VmHWM") - before
        del scores, upstream
    assert grown["cpu"] < 5e6 < 36e6 < grown["eager"]


def test_pairwise_sums_keep_float32s_accuracy(backend):
    count = 20000 if backend not in INTERPRETED else 2000
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
    b = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(count, 4)
    for x, y in ((a, b), (b, a)):
        (grad,) = torch.autograd.grad(ours.pairwise_box_iou(x, y, backend=backend).sum(), a)
        torch.testing.assert_close(grad / count, torch.tensor([[-0.03125, -0.03125, -0.125, -0.125]]), rtol=2e-6, atol=0)


# Kernels


def test_functors_are_those_of_every_backend():
    from fastloss.kernels.box import BOX

    source = (Path(__file__).parents[1] / "csrc" / "box.h").read_text()
    assert list(BOX) == re.findall(r"^  X\((\w+), \w+\)", source, re.MULTILINE)
    assert set(BOX) == {name for name, about in LOSSES.items() if about.engine == "box"} == set(KINDS.values())


def test_launchers_read_no_data(monkeypatch):
    from fastloss.kernels import box, launch

    launched = []
    monkeypatch.setattr(launch, "run", lambda kernel, *_, **__: launched.append(kernel))
    boxes = torch.empty(50, 4, device="meta")
    loss = box.box_forward(boxes, boxes, "box_iou", [0.0, 0.0], 1)
    box.box_backward(loss, boxes, boxes, "box_iou", [0.0, 0.0], 1, True, True)
    box.box_pairs_backward(box.box_pairs_forward(boxes, boxes, "box_iou", [0.0, 0.0]), boxes, boxes, "box_iou", [0.0, 0.0], True, True)
    assert launched == [box.box_forward_kernel, launch.reduce_kernel, box.box_backward_kernel, box.box_scores_kernel] + [
        box.box_scores_backward_kernel
    ] * 2


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_order_of_programs_does_not_matter(monkeypatch, reduction):
    from fastloss.kernels import box
    from test_triton import same_in_any_order

    monkeypatch.setattr(box, "configuration", lambda *_: box.Configuration(16, 1))
    monkeypatch.setattr(box, "pairs_configuration", lambda *_: box.PairsConfiguration(4, 16, 1))
    a, b = (boxes.requires_grad_() for boxes in pairs((40,), dtype=torch.float32))

    def outputs():
        value = ours.generalized_box_iou_loss(a, b, reduction, backend="triton")
        scores = ours.pairwise_box_iou(a[:7], b[:20], backend="triton")
        grads = torch.autograd.grad([value, scores], [a, b], [torch.ones_like(value), torch.ones_like(scores)])
        return [value.detach(), scores.detach(), *grads]

    same_in_any_order(monkeypatch, outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic_is_the_floor(monkeypatch, dtype):
    """The forward reads each box once, and the backward reads it once and writes each gradient once."""
    from fastloss.kernels import box, launch
    from test_triton import counted_traffic

    traffic = counted_traffic(monkeypatch)
    monkeypatch.setattr(box, "INTERPRETED", False)
    monkeypatch.setattr(launch, "warp_size", lambda: 32)
    a, b = pairs((3000,), dtype=dtype)
    floor, settings = 2 * a.numel() * a.element_size(), ("complete_box_iou", [1e-7, 1e-7], 1)
    loss = torch.ops.fastloss.box_forward.triton(a, b, *settings)
    assert floor <= traffic["read"] <= 1.05 * floor and traffic["written"] <= 0.05 * floor
    traffic.clear()
    torch.ops.fastloss.box_backward.triton(loss, a, b, *settings, True, False)
    assert floor <= traffic["read"] <= 1.05 * floor and floor <= 2 * traffic["written"] <= 1.05 * floor


def test_order_of_threads_does_not_change_a_bit(loss):
    import fastloss.cuda  # noqa: F401  registers the ops
    from fastloss import _cuda_emulated as emulated
    from test_cuda import box_calls, run_box

    def outputs(seed):
        emulated.set_order(seed)
        return [out.reshape(-1).view(torch.uint8) for call in box_calls() for out in run_box(loss, *call)]

    try:
        first = outputs(0)
        assert all(torch.equal(x, y) for seed in (1, 2) for x, y in zip(first, outputs(seed), strict=True))
    finally:
        emulated.set_order(1)


# Bad input

X = torch.rand(3, 4)
BAD = [
    ("box_iou_loss", (X.tolist(), X), {}, TypeError, ["boxes1", "Tensor", "list"]),
    ("box_iou_loss", (X, None), {}, TypeError, ["boxes2", "Tensor", "NoneType"]),
    ("generalized_box_iou_loss", (X[:, :3], X), {}, ValueError, ["boxes1", "(..., 4)", "(3, 3)"]),
    ("generalized_box_iou_loss", (X, torch.tensor(1.0)), {}, ValueError, ["boxes2", "(..., 4)", "()"]),
    ("distance_box_iou_loss", (X, X[:2]), {}, RuntimeError, ["(3, 4)", "(2, 4)", "broadcast"]),
    ("distance_box_iou_loss", (X, X.to("meta")), {}, RuntimeError, ["cpu", "meta"]),
    ("complete_box_iou_loss", (X, X), {"reduction": "avg"}, ValueError, ["avg", "'mean'"]),
    ("complete_box_iou_loss", (X, X), {"eps": -1.0}, ValueError, ["eps", "-1.0"]),
    ("complete_box_iou_loss", (X, X), {"backend": "gpu"}, ValueError, ["gpu", "cpu"]),
    ("complete_box_iou_loss", (X.to(torch.complex64), X), {}, NotImplementedError, ["boxes1", "complex64"]),
    ("pairwise_box_iou", (X[0], X), {}, ValueError, ["boxes1", "(N, 4)", "(4,)"]),
    ("pairwise_box_iou", (X, X), {"kind": "siou"}, ValueError, ["siou", "'giou'"]),
    ("pairwise_box_iou", (X, X), {"eps": math.nan}, ValueError, ["eps", "nan"]),
    ("pairwise_box_iou", (X, None), {}, TypeError, ["boxes2", "NoneType"]),
]


@pytest.mark.parametrize(("name", "boxes", "options", "kind", "words"), BAD)
def test_bad_calls(backend, name, boxes, options, kind, words):
    with pytest.raises(kind) as raised:
        getattr(ours, name)(*boxes, **{"backend": backend, **options})
    assert type(raised.value) is kind
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_integers_and_mixed_dtypes(loss, backend):
    a, b = torch.tensor([[0, 0, 2, 2]]), torch.tensor([[1, 0, 3, 2]])
    wanted = LOSSES[loss].function(a.float(), b.float(), backend=backend)
    assert torch.equal(LOSSES[loss].function(a, b, backend=backend), wanted)
    assert torch.equal(LOSSES[loss].function(a.half(), b, backend=backend), wanted)
    assert LOSSES[loss].function(a.double(), b.bfloat16(), backend=backend).dtype == torch.float64
    told = fastloss.explain(LOSSES[loss].function, a.float(), b.float().requires_grad_(), backend=backend)
    assert told.backend == backend and not told.notes  # the kernels give the second set its gradient too
