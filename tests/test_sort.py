"""Values, gradients and invariants of the losses of the sort engine on every backend."""

from __future__ import annotations

import itertools
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastloss.functional as ours
from fastloss import sort
from fastloss.cases import LAYOUTS
from fastloss.fuzz import DTYPES, run
from fastloss.oracle import check, evaluate, make_upstream, same_bits
from fastloss.registry import LOSSES
from fastloss.sort_cases import LABELS, VALUES, SortCase
from graphs import recording
from test_memory import poisoned

ENGINE = "sort"
INTERPRETED = ("triton",)  # run by an interpreter here, 50 times slower
ROOT = Path(__file__).parents[1]


def some(backend: str, cases: list, most: int) -> list:
    """A fixed sample of the cases, smaller on a slow backend."""
    most = most if backend in INTERPRETED else 8 * most
    return cases if len(cases) <= most else random.Random(0).sample(cases, most)


def definition(errors: list[float], foreground: list[bool]) -> float:
    """The Lovasz extension of the Jaccard loss, from sets."""
    truth = {i for i, is_foreground in enumerate(foreground) if is_foreground}

    def jaccard_loss(mistakes: set[int]) -> float:
        union = truth | (truth ^ mistakes)
        return 1 - len(truth & (truth ^ mistakes)) / len(union) if union else 0.0

    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    increments = [jaccard_loss(set(order[: k + 1])) - jaccard_loss(set(order[:k])) for k in range(len(order))]
    return sum(max(errors[i], 0.0) * increment for i, increment in zip(order, increments))


# Values


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_is_its_definition(backend, count):
    generator = torch.Generator().manual_seed(count)
    for _ in range(1 if backend in INTERPRETED else 8):
        x = torch.randn(2, count, generator=generator, dtype=torch.float64)
        t = (torch.rand(2, count, generator=generator) < 0.3).long()
        errors = (1 - x * (2 * t - 1)).tolist()
        each = [definition(e, f) for e, f in zip(errors, t.bool().tolist())]
        assert ours.lovasz_hinge_loss(x, t, backend=backend).item() == pytest.approx(sum(each) / 2, abs=1e-12)
        flat = definition(sum(errors, []), t.bool().flatten().tolist())
        assert ours.lovasz_hinge_loss(x, t, per_image=False, backend=backend).item() == pytest.approx(flat, abs=1e-12)

        x = torch.randn(2, 4, count, generator=generator, dtype=torch.float64)
        t = torch.randint(4, (2, count), generator=generator)
        p = x.softmax(1)

        def mean(images, classes):
            rows = []
            for c in classes:
                foreground = (t[images] == c).flatten()
                if classes != "present" or foreground.any():
                    rows.append(definition((p[images, c].flatten() - foreground.double()).abs().tolist(), foreground.tolist()))
            return sum(rows) / len(rows)

        present = [[c for c in range(4) if (t[images] == c).any()] for images in (slice(0, 2), slice(0, 1), slice(1, 2))]
        wanted = mean(slice(0, 2), present[0])
        assert ours.lovasz_softmax_loss(x, t, backend=backend).item() == pytest.approx(wanted, abs=1e-12)
        wanted = (mean(slice(0, 1), present[1]) + mean(slice(1, 2), present[2])) / 2
        assert ours.lovasz_softmax_loss(x, t, per_image=True, backend=backend).item() == pytest.approx(wanted, abs=1e-12)
        for classes in ("all", [3, 1]):
            wanted = mean(slice(0, 2), range(4) if classes == "all" else classes)
            got = ours.lovasz_softmax_loss(p, t, classes, from_logits=False, backend=backend).item()
            assert got == pytest.approx(wanted, abs=1e-12)


# Scores, labels, the loss, and its gradient.
BY_HAND = [
    # Errors 0.5 and 1 of foreground, 0 and 2 of background: 2 x 2/(2 x 3) + 1/3 + 0.5/3.
    ("lovasz_hinge", [[0.5, 0.0, -1.0, 1.0]], [[1, 1, 0, 0]], {}, 7 / 6, [[-1 / 3, -1 / 3, 0.0, 1 / 3]]),
    ("lovasz_hinge", [[0.25, -3.0, 1.0]], [[0, 0, 0]], {}, 2.0, [[0.0, 0.0, 1.0]]),  # without foreground: the largest error
    ("lovasz_hinge", [[0.5], [2.0]], [[1], [1]], {}, 0.25, [[-0.5], [0.0]]),
    ("lovasz_hinge", [[0.5, 9.0]], [[1, 7]], {"ignore_index": 7}, 0.5, [[-1.0, 0.0]]),
    ("lovasz_hinge", [[5.0, -5.0]], [[1, 0]], {}, 0.0, [[0.0, 0.0]]),
    # Class 0: errors 1/4 of foreground, 1/2 of background; class 1: 1/2 and 1/4.
    ("lovasz_softmax", [[0.75, 0.25], [0.5, 0.5]], [0, 1], {"from_logits": False}, 0.4375, [[-0.25, 0.0], [0.25, -0.5]]),
    ("lovasz_softmax", [[0.25, 0.75]], [0], {"from_logits": False}, 0.75, [[-1.0, 0.0]]),  # one element
    ("lovasz_softmax", [[0.25, 0.75]], [0], {"from_logits": False, "classes": "all"}, 0.75, [[-0.5, 0.5]]),
    ("lovasz_softmax", [[0.0, math.log(3)]], [0], {}, 0.75, [[-0.1875, 0.1875]]),
    ("lovasz_softmax", [[0.25], [0.5]], [1, 0], {"from_logits": False, "classes": [1]}, 0.25 * 0 + 0.75 * 1, [[-1.0], [0.0]]),
]


@pytest.mark.parametrize(("name", "scores", "labels", "options", "wanted", "slope"), BY_HAND)
def test_by_hand(backend, name, scores, labels, options, wanted, slope):
    x = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    value = LOSSES[name].function(x, torch.tensor(labels), **options, backend=backend)
    assert value.item() == pytest.approx(wanted, abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], torch.tensor(slope, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_every_loss_is_computed_by_hand(loss):
    assert loss in {name for name, *_ in BY_HAND}


def test_perfect_wrong_and_undecided_predictions(backend):
    label = torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    perfect = torch.nn.functional.one_hot(label, 3).movedim(-1, 1).double()
    for p, wanted in ((perfect, 0.0), (torch.zeros_like(perfect), 1.0), (torch.full_like(perfect, 1 / 3), 2 / 3)):
        assert ours.lovasz_softmax_loss(p, label, "all", from_logits=False, backend=backend).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("values", VALUES)
def test_values(loss, backend, values):
    cases = [
        SortCase(shape=shape, values=values, dtype=dtype, labels=labels, per_image=per_image, from_logits=from_logits).of(loss)
        for shape in ((2, 5, 7), (1, 3, 40)) for dtype in DTYPES for labels in LABELS for per_image in (False, True)
        for from_logits in (False, True)
    ]
    for case in some(backend, cases, 1 if backend in INTERPRETED else 5):
        check(case, None, backend)


def test_layouts(loss, backend):
    cases = [
        SortCase(shape=shape, layout=layout, target_layout=target_layout, dtype=dtype).of(loss)
        for shape in ((6, 17), (3, 9, 4), (2, 5, 3, 4))
        for layout in LAYOUTS
        for target_layout in ("contiguous", "transposed", "every second", "expanded rows", "channels last")
        for dtype in DTYPES
    ]
    for case in some(backend, cases, 4 if backend in INTERPRETED else 14):
        check(case, None, backend)


def test_labels_and_classes(loss, backend):
    cases = [
        SortCase(shape=(2, channels, 9), target_dtype=kind, labels=labels, ignore_index=ignored, classes=classes, per_image=per_image,
                 from_logits=channels > 1).of(loss)
        for channels in (1, 2, 6)
        for kind in ("int64", "int32", "int16", "int8", "uint8")
        for labels in LABELS
        for ignored in (None, 0, 1, 77)
        for classes in ("present", "all", "list")
        for per_image in (False, True)
    ]
    for case in some(backend, cases, 4 if backend in INTERPRETED else 14):
        check(case, None, backend)
    if loss == "lovasz_hinge":
        for kind in ("bool", "float32", "bfloat16", "float64"):
            check(SortCase(loss=loss, shape=(3, 11), target_dtype=kind), None, backend)


def test_labels_of_narrow_dtypes_are_compared_as_numbers(backend):
    """-1 is not the 255 that it would wrap to."""
    x, label = torch.randn(1, 257, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[255, 1, 255]])
    for classes in ("present", [255, 256]):
        wanted = ours.lovasz_softmax_loss(x, label, classes, ignore_index=-1, backend="eager")
        got = ours.lovasz_softmax_loss(x, label.to(torch.uint8), classes, ignore_index=-1, backend=backend)
        torch.testing.assert_close(got, wanted)


def test_sizes_around_block_edges(loss, backend):
    sizes = (1, 2, 15, 16, 17, 255, 256, 257, 511, 512, 513, 1025) if backend not in INTERPRETED else (1, 17, 1025)
    for i, size in enumerate(sizes):
        check(SortCase(shape=(2, 3, size), dtype=DTYPES[i % 4], seed=i, per_image=bool(i % 2)).of(loss), None, backend)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (0, 2, 0)], ids=str)
def test_nothing_gives_zero_with_a_gradient(loss, backend, shape):
    for per_image, layout in itertools.product((False, True), ("contiguous", "every second")):
        check(SortCase(shape=shape, per_image=per_image, layout=layout).of(loss), None, backend)
    x = torch.randn(shape, requires_grad=True)
    call = SortCase(shape=shape).of(loss).build()
    value = LOSSES[loss].function(x, call.target, backend=backend)
    assert value.item() == 0.0
    assert torch.autograd.grad(value, x)[0].shape == shape


@pytest.mark.slow
def test_random_cases(loss, backend):
    finding = run(loss, backend, examples={"triton": 6, "cuda": 60}.get(backend, 400), seed=11)
    assert finding is None, finding.script


def test_cases_compare_gradients():
    """The cases that tests rely on have errors far enough apart, and ties are seen."""
    assert all(SortCase(shape=(2, 5, 7)).of(name).build().differentiable() for name in ("lovasz_softmax", "lovasz_hinge"))
    assert not SortCase(shape=(2, 5, 7), values="ties").of("lovasz_hinge").build().differentiable()


# What is particular to sorting


def test_ties_may_come_in_any_order(loss, backend):
    """The value does not depend on the order of the elements, however many are equal."""
    case = SortCase(shape=(1, 4, 300), values="ties", dtype="float64").of(loss)
    call = case.build()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    first = LOSSES[loss].function(call.input, call.target, **call.options, backend=backend)
    again = LOSSES[loss].function(call.input[..., order], call.target[..., order], **call.options, backend=backend)
    torch.testing.assert_close(first, again, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_million_elements_in_a_row(compiled, dtype):
    """Several pieces, and every rank far from the others: value and gradient are those of the formula."""
    if compiled in INTERPRETED:
        count = 3000
    else:
        count = 1_000_000 if compiled == "cpu" else 20_000
    generator = torch.Generator().manual_seed(0)
    label = torch.rand(count, generator=generator) < 0.2
    error = (torch.randperm(count, generator=generator) - count // 3) / count * 4  # exact multiples of 4 / count, a third not positive
    x = torch.where(label, 1 - error.double(), error.double() - 1).to(getattr(torch, dtype)).view(1, count).requires_grad_()
    value = ours.lovasz_hinge_loss(x, label.view(1, count), backend=compiled)
    (grad,) = torch.autograd.grad(value, x)
    wide = x.detach().double().requires_grad_()
    truth = ours.lovasz_hinge_loss(wide, label.view(1, count), backend="eager")
    torch.testing.assert_close(value.double(), truth, rtol=1e-6 if dtype == "float32" else 1e-12, atol=0)
    if dtype == "float64" or count < 1_000_000:  # in float32 neighbours of a million errors are equal
        torch.testing.assert_close(grad.double(), torch.autograd.grad(truth, wide)[0], rtol=1e-5 if dtype == "float32" else 1e-12, atol=0)


def test_errors_of_every_size_are_sorted(compiled):
    """Exponents from the smallest subnormal to infinity, so that every digit of a key takes part."""
    for dtype in (torch.float32, torch.float64):
        info = torch.finfo(dtype)
        low = -149 if dtype == torch.float32 else -1074
        powers = torch.arange(low, int(math.log2(info.max)), dtype=torch.float64)
        error = torch.pow(2.0, powers)[torch.randperm(len(powers), generator=torch.Generator().manual_seed(1))].to(dtype)
        p = error.view(1, 1, -1)  # of background, so that the error is the number itself
        label = torch.zeros(1, error.numel(), dtype=torch.int64)
        label[0, ::3] = 7
        options = {"classes": [7], "from_logits": False}
        x = p.clone().requires_grad_()
        value = ours.lovasz_softmax_loss(x, label, **options, backend=compiled)
        wide = p.double().requires_grad_()
        truth = ours.lovasz_softmax_loss(wide, label, **options, backend="eager")
        torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=0)
        ranks = torch.autograd.grad(value, x)[0][0, 0, 1:].double()
        wanted = torch.autograd.grad(truth, wide)[0][0, 0, 1:]
        large = (p[0, 0, 1:] > 2.0) & (label[0, 1:] == 0)  # foreground's errors are |1 - p|, of which many are equal
        torch.testing.assert_close(ranks[large], wanted[large], rtol=1e-5, atol=0)


def test_rows_in_several_launches(loss, monkeypatch):
    """A GPU sorts as many rows at a time as fit a budget; the result is the same."""
    for backend in ("cuda", "triton"):
        for per_image in (False, True):
            call = SortCase(shape=(2, 5, 30), per_image=per_image).of(loss).build()
            upstream = make_upstream(call)
            whole = evaluate(LOSSES[loss].function, call, upstream, backend=backend)
            monkeypatch.setattr(sort, "CHUNK", 70)
            parts = evaluate(LOSSES[loss].function, call, upstream, backend=backend)
            monkeypatch.undo()
            assert same_bits(parts.gradients["input"], whole.gradients["input"])
            torch.testing.assert_close(parts.values["loss"], whole.values["loss"])


def test_small_tiles_of_triton(loss, monkeypatch):
    from fastloss.kernels import sort as kernels

    monkeypatch.setattr(kernels, "configuration", lambda *_: (16, 1))
    for per_image, classes in ((False, "list"), (True, "all")):
        check(SortCase(shape=(2, 4, 37), per_image=per_image, classes=classes, ignore_index=0).of(loss), None, "triton")


def test_launchers_read_no_data(monkeypatch):
    """On tensors without data: nothing is read on the host, so nothing waits for a GPU."""
    from fastloss.kernels import launch
    from fastloss.kernels import sort as kernels

    names = []
    monkeypatch.setattr(launch, "run", lambda kernel, *args, **options: names.append(kernel.fn.__name__))
    input, target = torch.empty(2, 5, 70, device="meta"), torch.empty(140, dtype=torch.uint8, device="meta")
    settings = "softmax", [3, 1], True, True, 255
    loss, stats, slopes, shares = kernels.sort_forward(input, target, *settings, True)
    assert loss.shape == () and stats.shape == (2, 140) and slopes.shape == (2, 2, 70) and shares.shape == (2, 2)
    assert kernels.sort_backward(loss, input, target, stats, slopes, shares, *settings).shape == input.shape
    assert names == [f"sort_{step}_kernel" for step in ("statistics", "keys", "count", "weigh", "backward")]


def test_functors_are_those_of_every_backend():
    from fastloss.kernels import functors

    source = (ROOT / "csrc" / "sort.h").read_text()
    assert list(functors.SORT) == list(sort.ERRORS) == re.findall(r"^  X\((\w+), \w+\)", source, re.MULTILINE)
    assert [normalise for _, normalise in functors.SORT.values()] == [normalise for _, normalise in sort.ERRORS.values()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_canonical_copies_only_what_has_no_unit_stride(layout):
    memory, x = LAYOUTS[layout](torch.randn(2, 3, 4, 5))
    got, label = sort.canonical(x, torch.zeros(2, 4, 5, dtype=torch.bool))
    assert got.shape == (2, 3, 20) and got.stride(2) == 1 and torch.equal(got, x.reshape(2, 3, 20))
    assert label.shape == (40,) and label.dtype == torch.uint8 and label.is_contiguous()
    if layout in ("contiguous", "shifted", "padded classes", "expanded rows", "expanded classes"):
        assert got.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()


# Determinism and memory


@pytest.mark.parametrize(("name", "shape"), [
    ("lovasz_hinge", (1, 200_000)), ("lovasz_hinge", (50, 700)), ("lovasz_softmax", (3, 5, 170, 170)), ("lovasz_softmax", (2, 3, 9))
])
def test_same_bits_for_any_number_of_threads(compiled, name, shape):
    if compiled != "cpu":
        shape = (*shape[:-1], min(shape[-1], 100))[:3]
    for values in ("normal", "ties"):
        call = replace(SortCase(loss=name, shape=shape, values=values, dtype="bfloat16").build(), compares_gradients=True)
        upstream = make_upstream(call)
        outcomes = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            outcomes.append(evaluate(LOSSES[name].function, call, upstream, backend=compiled))
        for outcome in outcomes[1:]:
            assert same_bits(outcome.values["loss"], outcomes[0].values["loss"])
            assert same_bits(outcome.gradients["input"], outcomes[0].gradients["input"])


def test_poisoned_buffers(loss, backend):
    with poisoned():
        for case in (
            SortCase(shape=(2, 4, 9), ignore_index=1), SortCase(shape=(2, 4, 9), labels="first class", per_image=True),
            SortCase(shape=(2, 4, 9), classes="list", dtype="float16"), SortCase(shape=(3, 2), labels="all ignored", ignore_index=0),
        ):
            check(case.of(loss), None, backend)


MEMORY = """
import re, torch
from pathlib import Path
from fastloss.functional import lovasz_softmax_loss
def resident(key): return 1024 * int(re.search(key + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(2)
def step(x, t): return torch.autograd.grad(lovasz_softmax_loss(x, t, backend="cpu"), x)
step(torch.randn(2, 3, 4, requires_grad=True), torch.randint(3, (2, 4)))
x, t = torch.randn(4, 19, 256, 256, requires_grad=True), torch.randint(19, (4, 256, 256))
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
grad = step(x, t)
print((resident("VmHWM") - before) / (x.numel() * 4))
"""


@pytest.mark.slow
def test_extra_memory_is_the_weights_the_gradient_and_a_few_rows():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.8  # of the logits; plain torch takes more than 6


# Defects of other libraries


def test_defect_19_half_precision_sums_do_not_overflow(backend):
    x = torch.zeros(1, 300, 300 if backend not in INTERPRETED else 20, dtype=torch.float16, requires_grad=True)
    value = ours.lovasz_hinge_loss(x, torch.ones(x.shape), backend=backend)
    assert value.dtype == torch.float16 and value.item() == 1.0
    assert torch.autograd.grad(value, x)[0].isfinite().all()


def test_defect_20_zero_does_not_read_the_data(backend):
    """Where every label is ignored the loss is 0 and so is the gradient, whatever the scores are."""
    for bad in (math.inf, -math.inf, math.nan):
        for name, shape, rows in (("lovasz_hinge", (2, 5), (2, 5)), ("lovasz_softmax", (2, 3, 5), (2, 5))):
            for per_image in (False, True):
                x = torch.full(shape, bad, requires_grad=True)
                target = torch.full(rows, 255)
                value = LOSSES[name].function(x, target, per_image=per_image, ignore_index=255, backend=backend)
                assert value.shape == () and value.item() == 0.0 and value.requires_grad
                assert torch.autograd.grad(value, x)[0].eq(0).all()


def test_ignored_elements_do_not_leak_what_they_hold(loss, backend):
    call = SortCase(shape=(2, 3, 8), dtype="float64").of(loss).build()
    target = call.target.clone()
    target[..., 2] = 99
    hole = torch.zeros(call.input.shape, dtype=torch.bool)
    hole[..., 2] = True
    outcomes = []
    for filler in (0.0, math.nan):
        x = torch.where(hole, filler, call.input).requires_grad_()
        value = LOSSES[loss].function(x, target, ignore_index=99, backend=backend)
        outcomes.append((value.detach(), torch.autograd.grad(value, x)[0]))
    assert outcomes[0][0].isfinite() and all(torch.equal(a, b) for a, b in zip(*outcomes)) and outcomes[1][1][hole].eq(0).all()


def test_nan_is_not_swallowed(loss, backend):
    call = SortCase(shape=(2, 3, 40)).of(loss).build()
    x = call.input.clone()
    x[1, 1, 7] = math.nan
    assert LOSSES[loss].function(x, call.target, backend=backend).isnan()
    assert LOSSES[loss].function(-x.abs(), call.target, per_image=True, backend=backend).isnan()


def test_defect_29_class_ids_are_not_the_labels_of_a_binary_problem(backend):
    """Another numbering of the classes gives the same loss."""
    call = SortCase(shape=(2, 4, 9), dtype="float64").build()
    order = torch.tensor([2, 0, 3, 1])
    renamed = torch.argsort(order)[call.target]
    for classes in ("present", "all"):
        torch.testing.assert_close(
            ours.lovasz_softmax_loss(call.input[:, order], renamed, classes, backend=backend),
            ours.lovasz_softmax_loss(call.input, call.target, classes, backend=backend),
        )


# Derivatives, and what of torch a loss passes through


def closed(loss: str, backend: str | None, dtype: str = "float64", **choices):
    """A function of the input, and an input whose errors differ."""
    call = SortCase(**{"shape": (2, 3, 4), "dtype": dtype, "ignore_index": 1, **choices}).of(loss).build()
    assert call.differentiable()
    return lambda x: LOSSES[loss].function(x, call.target, **call.options, backend=backend), call.input.clone().requires_grad_()


@pytest.mark.parametrize("choices", [{}, {"per_image": True, "classes": "list"}, {"from_logits": False, "classes": "all"}], ids=str)
def test_gradcheck(loss, backend, choices):
    function, x = closed(loss, backend, **choices)
    assert gradcheck(function, [x], fast_mode=backend in INTERPRETED)
    assert gradgradcheck(function, [x], fast_mode=backend in INTERPRETED)


@pytest.mark.parametrize("choices", [{}, {"per_image": True, "classes": "list"}], ids=str)
def test_opcheck(loss, compiled, choices):
    call = SortCase(shape=(2, 4, 5), ignore_index=1, **choices).of(loss).build()
    input = call.input.unsqueeze(1).flatten(2) if loss == "lovasz_hinge" else call.input
    input, target = sort.canonical(input, call.target)
    settings = sort.Settings(call.case.errors, call.case.chosen, call.case.per_image, call.case.classes == "present", 1)
    for want_slopes in (True, False):
        torch.library.opcheck(getattr(torch.ops.fastloss.sort_forward, compiled), (input, target, *settings, want_slopes))
    value, *kept = getattr(torch.ops.fastloss.sort_forward, compiled)(input, target, *settings, True)
    torch.library.opcheck(getattr(torch.ops.fastloss.sort_backward, compiled), (torch.ones_like(value), input, target, *kept, *settings))


def test_second_backward_and_no_grad(loss, backend):
    function, x = closed(loss, backend, "float32")
    value = function(x)
    first, second = (torch.autograd.grad(value, x, torch.tensor(3.0), retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    value.backward()
    torch.testing.assert_close(x.grad, first / 3)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()
    with torch.no_grad():
        assert torch.equal(function(x), value.detach()) and not function(x).requires_grad


def test_func_transforms(loss):
    """torch.func runs the formula: grad, vmap, jvp and hessian agree with plain autograd."""
    function, x = closed(loss, None)
    (wanted,) = torch.autograd.grad(function(x), x)
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(function)(x), wanted)
    tangent = torch.randn_like(x)
    torch.testing.assert_close(torch.func.jvp(function, (x,), (tangent,))[1], (wanted * tangent).sum())
    torch.testing.assert_close(torch.func.hessian(function)(x), torch.func.jacrev(torch.func.jacrev(function))(x))
    batch = torch.stack([x, 2 * x, -x])
    each = torch.func.vmap(torch.func.grad(function))(batch)
    torch.testing.assert_close(each, torch.stack([torch.func.grad(function)(one) for one in batch]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile(loss, backend, dynamic):
    """One graph, the same numbers, and the graphs hold the backend's kernels."""
    torch._dynamo.reset()
    graphs: list = []
    step = torch.compile(
        lambda x, t: LOSSES[loss].function(x, t, ignore_index=1, backend=backend), fullgraph=True, dynamic=dynamic,
        backend=recording(graphs),
    )
    for shape in ((2, 3, 4), (4, 3, 6)) if dynamic else ((2, 3, 4),):
        call = SortCase(shape=shape, ignore_index=1).of(loss).build()
        x = call.input.requires_grad_()
        value, plain = step(x, call.target), LOSSES[loss].function(x, call.target, ignore_index=1, backend=backend)
        torch.testing.assert_close(value, plain)
        torch.testing.assert_close(torch.autograd.grad(value, x)[0], torch.autograd.grad(plain, x)[0])
    assert graphs[:2] == ([[f"sort_forward.{backend}"], [f"sort_backward.{backend}"]] if backend != "eager" else [[], []])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast(loss, backend, dtype):
    function, x = closed(loss, backend, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = function(x)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, x)[0].dtype == getattr(torch, dtype)


def test_activation_checkpointing(loss, backend):
    function, x = closed(loss, backend, "float32")
    (wanted,) = torch.autograd.grad(function(x * 2), x)
    assert torch.equal(torch.autograd.grad(checkpoint(lambda v: function(v * 2), x, use_reentrant=False), x)[0], wanted)


def test_shapes_that_mean_the_same(backend):
    x, t = torch.randn(2, 1, 4, 5), torch.randint(2, (2, 4, 5))
    wanted = ours.lovasz_hinge_loss(x, t, backend=backend)
    for scores, labels in ((x, t.unsqueeze(1)), (x[:, 0], t), (x.flatten(1), t.flatten(1)), (x.double().float(), t.bool()), (x, t.float())):
        torch.testing.assert_close(ours.lovasz_hinge_loss(scores, labels, backend=backend), wanted)
    p = torch.sigmoid(x)
    wanted = ours.lovasz_softmax_loss(p, t, [1], from_logits=False, backend=backend)
    torch.testing.assert_close(ours.lovasz_softmax_loss(p[:, 0], t, [1], from_logits=False, backend=backend), wanted)
    both = torch.cat([1 - p, p], 1)
    torch.testing.assert_close(ours.lovasz_softmax_loss(both, t, [1], from_logits=False, backend=backend), wanted)


# Bad input

X, Y = torch.rand(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64)
BAD = [
    ("lovasz_softmax_loss", (X.tolist(), Y), {}, TypeError, ["input", "Tensor", "list"]),
    ("lovasz_softmax_loss", (X, None), {}, TypeError, ["target", "Tensor", "NoneType"]),
    ("lovasz_softmax_loss", (X.long(), Y), {}, NotImplementedError, ["float32", "int64"]),
    ("lovasz_softmax_loss", (X, Y.float()), {}, RuntimeError, ["integer", "float32"]),
    ("lovasz_softmax_loss", (X, Y.to("meta")), {}, RuntimeError, ["cpu", "meta"]),
    ("lovasz_softmax_loss", (X, Y[:, :3]), {}, ValueError, ["[2, 4]", "[2, 3]"]),
    ("lovasz_softmax_loss", (X[0, 0], Y[0]), {}, ValueError, ["2 or more dimensions", "got 1"]),
    ("lovasz_softmax_loss", (X, Y), {"classes": "some"}, ValueError, ["'present'", "'some'"]),
    ("lovasz_softmax_loss", (X, Y), {"classes": []}, ValueError, ["one or more"]),
    ("lovasz_softmax_loss", (X, Y), {"classes": [0, 0]}, ValueError, ["different", "[0, 0]"]),
    ("lovasz_softmax_loss", (X, Y), {"classes": [3]}, ValueError, ["[0, 3)", "[3]"]),
    ("lovasz_softmax_loss", (X, Y), {"ignore_index": 1.0}, TypeError, ["ignore_index", "float"]),
    ("lovasz_softmax_loss", (X[:, :1], Y), {}, ValueError, ["single channel", "from_logits=True"]),
    ("lovasz_softmax_loss", (X[:, :1], Y), {"from_logits": False}, ValueError, ["single channel", "'present'"]),
    ("lovasz_softmax_loss", (X, Y + 3), {}, IndexError, ["3", "0 <= target < 3"]),
    ("lovasz_softmax_loss", (X, Y - 1), {"ignore_index": 255}, IndexError, ["-1", "ignore_index=255"]),
    ("lovasz_softmax_loss", (X, Y), {"backend": "gpu"}, ValueError, ["gpu", "cpu"]),
    ("lovasz_hinge_loss", (X, Y), {}, ValueError, ["(2, 3, 4)", "(2, 4)"]),
    ("lovasz_hinge_loss", (X[:, 0], Y + 2), {}, IndexError, ["2", "0 <= target < 2"]),
    ("lovasz_hinge_loss", (X[:, 0], Y + 0.5), {}, ValueError, ["0 or 1", "0.5"]),
    ("lovasz_hinge_loss", (X[:, 0], Y.cfloat()), {}, RuntimeError, ["complex64"]),
    ("lovasz_hinge_loss", (X[0, 0, 0], Y[0, 0]), {}, ValueError, ["got 0"]),
]


@pytest.mark.parametrize(("name", "tensors", "options", "kind", "words"), BAD)
def test_bad_calls(backend, name, tensors, options, kind, words):
    with pytest.raises(kind) as raised:
        getattr(ours, name)(*tensors, **{"backend": backend, **options})
    assert type(raised.value) is kind
    for word in words:
        assert word in str(raised.value), str(raised.value)
