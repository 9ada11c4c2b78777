"""Defects of released loss libraries that a row loss can have, each as a test on every backend with random upstream gradients."""

from __future__ import annotations

import ast
import math
import pathlib
import re

import pytest
import torch
import torch.nn.functional as F

import fastloss
from fastloss.cases import Case
from fastloss.functional import cross_entropy
from fastloss.oracle import check

QUICK = ("eager", "cpu", "triton", "cuda")  # backends of the quick run

ROOT = pathlib.Path(fastloss.__file__).resolve().parent.parent


def gradient(value, leaf):
    """Of the value with a random upstream gradient, and that gradient."""
    upstream = torch.randn(value.shape).to(value.dtype)
    return torch.autograd.grad(value, leaf, upstream)[0], upstream


def test_defect_01_softcap_adds_no_phantom_classes(backend):
    """Padding lanes must be masked after the cap: 41 classes, cap 1."""
    x = torch.linspace(-3, 3, 41).repeat(2, 1).requires_grad_()
    t = torch.tensor([0, 40])
    wanted_x = x.detach().double().requires_grad_()
    wanted = F.cross_entropy(torch.tanh(wanted_x), t, reduction="none")
    value = cross_entropy(x, t, softcap=1.0, reduction="none", backend=backend)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=0)
    grad, upstream = gradient(value, x)
    torch.testing.assert_close(grad.double(), torch.autograd.grad(wanted, wanted_x, upstream.double())[0], rtol=1e-5, atol=1e-8)
    for classes in (1, 2, 15, 17, 33, 65, 129, 257, 1025):
        check(Case(shape=(2, classes), softcap=1.0, seed=classes, reduction="none", extras=("lse", "entropy")), None, backend)
        check(Case(shape=(2, classes, 3), softcap=1.0, seed=classes, reduction="none"), None, backend)


@pytest.mark.parametrize("classes", [40000, 2049, 33])
def test_defect_02_first_blocks_of_minus_infinity(backend, classes):
    x = torch.randn(3, classes)
    x[0, : classes - 2] = -math.inf
    x[1, : classes // 2] = -math.inf
    x.requires_grad_()
    t = torch.tensor([classes - 1, classes - 2, 0])
    value = cross_entropy(x, t, reduction="none", backend=backend)
    torch.testing.assert_close(value, F.cross_entropy(x, t, reduction="none"), rtol=1e-5, atol=1e-6)
    grad, upstream = gradient(value, x)
    torch.testing.assert_close(grad, torch.autograd.grad(F.cross_entropy(x, t, reduction="none"), x, upstream)[0], rtol=1e-5, atol=1e-7)
    assert (grad[x == -math.inf] == 0).all()


@pytest.mark.parametrize("layout", ["every second", "last axis by 3", "transposed", "padded rows", "channels last", "shifted"])
def test_defect_03_gradient_of_strided_logits(backend, layout):
    for dtype in ("float32", "bfloat16"):
        check(Case(shape=(4, 41), layout=layout, dtype=dtype, reduction="none"), None, backend)
        check(Case(shape=(3, 7, 5), layout=layout, dtype=dtype, labels="some ignored"), None, backend)


@pytest.mark.parametrize("layout", ["expanded rows", "expanded classes", "expanded inner"])
def test_defect_04_expanded_rows_do_not_corrupt_each_other(backend, layout):
    check(Case(shape=(6, 41), layout=layout, reduction="none"), None, backend)
    check(Case(shape=(3, 7, 5), layout=layout, reduction="none", labels="soft"), None, backend)


def test_defect_05_logits_are_left_alone(backend):
    x = torch.randn(4, 37, requires_grad=True)
    before = x.detach().clone()
    value = cross_entropy(x, torch.tensor([0, 1, -100, 36]), backend=backend)
    assert torch.equal(x, before)
    gradient(value, x)
    assert torch.equal(x, before) and x._version == 0


def test_defect_06_second_backward_scales_nothing_twice(backend):
    x = torch.randn(4, 37, requires_grad=True)
    value = cross_entropy(x, torch.tensor([0, 1, -100, 36]), backend=backend)
    first, second, third = (torch.autograd.grad(value, x, torch.tensor(u), retain_graph=True)[0].clone() for u in (0.5, 0.5, 1.0))
    assert torch.equal(first, second) and torch.equal(2 * first, third)


@pytest.mark.parametrize("offset", [1e3, 1e5, 2.0**24, -(2.0**24)])
def test_defect_07_large_common_offset_cancels_nothing(backend, offset):
    """Logits that are exact in float32 at any of the offsets: the loss must not change by more than a few roundings."""
    step = 2.0 if abs(offset) > 1e6 else 0.25
    x = (step * torch.randint(-8, 9, (5, 41)).float() + offset).requires_grad_()
    t = torch.tensor([0, 40, 7, 8, 9])
    exact = (x.detach().double() - offset).requires_grad_()
    wanted = F.cross_entropy(exact, t, reduction="none")
    value = cross_entropy(x, t, reduction="none", backend=backend)
    torch.testing.assert_close(value.double(), wanted.detach(), rtol=5e-7, atol=5e-7)
    grad, upstream = gradient(value, x)
    torch.testing.assert_close(grad.double(), torch.autograd.grad(wanted, exact, upstream.double())[0], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_defect_08_half_gradients_are_rounded_once(backend, dtype):
    """For confident rows p - 1 is small: p rounded to a half type before the 1 is subtracted is off by 12 %."""
    x = torch.zeros(40, 9, dtype=dtype)
    x[:, 3] = torch.linspace(3, 11, 40).to(dtype)
    x.requires_grad_()
    t = torch.full((40,), 3)
    grad, upstream = gradient(cross_entropy(x, t, reduction="none", backend=backend), x)
    wide = x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(F.cross_entropy(wide, t, reduction="none"), wide, upstream.double())[0]
    share = 1.0 if backend == "triton" else 0.51  # Triton's interpreter truncates to bfloat16, a GPU rounds
    rounding = share * torch.finfo(dtype).eps * wanted.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((grad.double() - wanted).abs() <= rounding + 2**-22 * upstream.double().abs().unsqueeze(1)).all()


def test_defect_09_bfloat16_mean_is_rounded_once(backend):
    x = (3 * torch.randn(512, 50)).bfloat16()
    t = torch.randint(0, 50, (512,))
    wanted = F.cross_entropy(x.double(), t)
    for reduction, scale in (("mean", 1), ("sum", 512)):
        value = cross_entropy(x, t, reduction=reduction, backend=backend)
        assert abs(value.double() / scale - wanted) <= 0.502 * torch.finfo(torch.bfloat16).eps * wanted


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": torch.arange(1.0, 6.0)}], ids=["plain", "smoothed", "weight"])
def test_defect_10_all_rows_ignored(backend, options):
    """torch's: NaN for a mean, 0 for a sum, zero gradients in both, connected to the graph; and the option that makes the mean 0."""
    for reduction, empty, wanted in (("mean", "nan", math.nan), ("sum", "nan", 0.0), ("mean", "zero", 0.0)):
        x = torch.randn(3, 5, requires_grad=True)
        value = cross_entropy(x, torch.full((3,), -100), reduction=reduction, empty=empty, backend=backend, **options)
        assert value.requires_grad
        torch.testing.assert_close(value.detach(), torch.tensor(wanted), equal_nan=True)
        grad, _ = gradient(value, x)
        assert torch.equal(grad, torch.zeros(3, 5))


def test_defect_11_empty_batch(backend):
    for shape in ((0, 5), (0, 5, 3), (2, 5, 0)):
        for reduction, wanted in (("mean", math.nan), ("sum", 0.0), ("none", None)):
            x = torch.randn(shape, requires_grad=True)
            value = cross_entropy(x, torch.zeros((shape[0], *shape[2:]), dtype=torch.int64), reduction=reduction, backend=backend)
            if wanted is None:
                assert value.shape == (shape[0], *shape[2:])
            else:
                torch.testing.assert_close(value.detach(), torch.tensor(wanted), equal_nan=True)
            assert gradient(value, x)[0].shape == shape


def test_defect_13_offsets_are_64_bits_wide():
    """Sources: no product of sizes is held in 32 bits. The runs above 2^31 elements are marked huge."""
    for path in [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.cu")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            narrow = re.search(r"\b(?:unsigned|u?int32_t|int) \w+ = [^;]*(?:rows|classes|inner|outer|stride)\w* \* ", line)
            assert narrow is None, f"{path}:{number}: {line.strip()}"


def test_defect_14_labels_are_tested_before_they_index(compiled):
    """Ignored labels far outside the classes read nothing: guards around the logits would change the result, addresses would fault."""
    for ignored in (-(2**62), 2**62, -1, 41):
        x = torch.randn(4, 41, requires_grad=True)
        weight = torch.rand(41)
        t = torch.tensor([0, ignored, 40, ignored])
        value = cross_entropy(x, t, weight, ignore_index=ignored, backend=compiled)
        torch.testing.assert_close(value, F.cross_entropy(x, t, weight, ignore_index=ignored))
        grad, _ = gradient(value, x)
        assert (grad[1::2] == 0).all() and grad[::2].isfinite().all()


def test_defect_15_ignored_rows_are_written_under_compilation(backend):
    torch._dynamo.reset()
    step = torch.compile(lambda x, t: cross_entropy(x, t, reduction="none", backend=backend), fullgraph=True, backend="aot_eager")
    x, t = torch.randn(64, 37, requires_grad=True), torch.randint(0, 37, (64,))
    t[::3] = -100
    for _ in range(3):
        torch.full((64,), math.nan)  # freed at once: the next result may get this memory
        value = step(x, t)
        assert (value[::3] == 0).all()
        assert (gradient(value, x)[0][::3] == 0).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_defect_16_the_dtype_reaches_the_kernel(compiled, dtype):
    """Inputs that differ only beyond the dtype's precision give the same bits, those that differ within it do not."""
    kind = getattr(torch, dtype)
    x, t = torch.randn(3, 5, dtype=kind), torch.tensor([0, 1, 2])
    value = cross_entropy(x, t, reduction="none", backend=compiled)
    assert value.dtype == kind
    precise = F.cross_entropy(x.double(), t, reduction="none")
    error = ((value.double() - precise).abs() / precise).max()
    assert error <= 4 * torch.finfo(kind).eps
    if kind == torch.float64:
        assert error < 1e-13


def test_defect_19_half_sums_do_not_overflow(backend):
    """70,000 rows of loss about 1: their sum leaves float16's range, their mean does not."""
    x = torch.zeros(70000 if backend in ("eager", "cpu") else 7000, 3, dtype=torch.float16) + torch.tensor([0.0, 0.0, 30.0]).half()
    t = torch.zeros(x.shape[0], dtype=torch.int64)
    torch.testing.assert_close(cross_entropy(x, t, backend=backend), torch.tensor(30.0, dtype=torch.float16))


def test_defect_20_zero_loss_does_not_read_the_data(backend):
    """Ignored rows that hold NaN and infinities: loss 0 and gradients exactly 0, capped and scaled too."""
    for options in ({}, {"softcap": 3.0}, {"logit_scale": 2.0}, {"label_smoothing": 0.1, "z_loss": 0.1}):
        x = torch.randn(4, 37)
        x[1], x[3, 5], x[3, 6] = math.nan, math.inf, -math.inf
        x.requires_grad_()
        value = cross_entropy(x, torch.tensor([0, -100, 1, -100]), reduction="sum", backend=backend, **options)
        grad, _ = gradient(value, x)
        assert value.isfinite() and (grad[1::2] == 0).all() and grad[::2].isfinite().all(), options


SYNCHRONISING = {"item", "tolist", "cpu", "nonzero", "numpy", "synchronize", "is_nonzero", "masked_select", "unique", "argwhere"}
# The label check reads CPU tensors only, and says so in its first lines.
CPU_ONLY = {("fastloss/_checks.py", "labels_in_range"), ("fastloss/functional/detection.py", "_with_object")}


def _hot_python():
    return [*sorted((ROOT / "kernels").glob("*.py")), *(ROOT / "fastloss" / f for f in ("row.py", "_checks.py", "_backends.py", "cuda.py")),
            *sorted((ROOT / "fastloss" / "functional").glob("*.py"))]


def test_defect_21_no_device_synchronisation_in_the_hot_path():
    found = []
    for path in _hot_python():
        if not path.exists():
            continue
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text())
        for function in [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]:
            if (name, function.name) in CPU_ONLY:
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SYNCHRONISING:
                    found.append(f"{name}:{node.lineno} {node.func.attr}")
    for path in [*(ROOT / "csrc" / "cuda").rglob("*.cu"), *(ROOT / "csrc" / "cuda").rglob("*.cpp")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"DeviceSynchronize|StreamSynchronize|cudaMemcpy\(|cudaMalloc\(", line):
                found.append(f"{path.relative_to(ROOT)}:{number} {line.strip()}")
    assert not found, found


def test_defect_21_compiles_without_a_graph_break(backend):
    """A read of a tensor's value would break the graph."""
    torch._dynamo.reset()
    explained = torch._dynamo.explain(lambda x, t: cross_entropy(x, t, label_smoothing=0.1, backend=backend))(
        torch.randn(3, 5, requires_grad=True), torch.tensor([0, 1, -100])
    )
    assert explained.graph_break_count == 0, explained.break_reasons
