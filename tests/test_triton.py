"""What only the Triton backend has to show: the compiled code of every kernel, its traffic, and freedom from the order of programs."""

from __future__ import annotations

import random
from collections import Counter

import numpy
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastloss import _checks, aot
from fastloss.functional import cross_entropy
from fastloss.kernels import functors, row, tuning


def small_tiles(monkeypatch, rows: int = 2, block: int = 16) -> None:
    """Tiles so small that a modest tensor has many programs and several blocks a row."""
    monkeypatch.setattr(row, "configuration", lambda *_: row.Configuration(rows, block, 1, 1))


def run(input: torch.Tensor, target: torch.Tensor, grad_seed: int = 0, **options) -> list[torch.Tensor]:
    """Every output, and the gradient for random upstream gradients."""
    leaf = input.detach().requires_grad_()
    outputs = cross_entropy(leaf, target, backend="triton", **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(grad_seed)
    chosen = [output for output in outputs if output.requires_grad]
    upstream = [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype) for output in chosen]
    return [output.detach() for output in outputs] + list(torch.autograd.grad(chosen, leaf, upstream))


# Compiled ahead of time


def test_compiled_kernels_do_not_spill():
    rows = aot.rows(["sm_90", "gfx942"], quick=True)
    assert {(r["kernel"], r["variant"]) for r in rows} >= {
        (kernel, variant) for kernel in ("forward_kernel", "backward_kernel") for variant in aot.VARIANTS
    }
    assert aot.check(rows) == []
    assert all(r["registers"] > 0 and not r["has_mma"] for r in rows)


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target():
    rows = aot.rows()
    found = Counter((r["target"], r["functor"], r["dtype"]) for r in rows if r["variant"] == "plain" and r["kernel"] == "forward_kernel")
    tiles = {
        dtype: sum(len(tuning.TUNING[row.layout_class(contiguous, dtype)]) for contiguous in (True, False)) for dtype in aot.DTYPES
    }
    assert found == {
        (target, functor, str(dtype).removeprefix("torch.")): count
        for target in aot.TARGETS for functor in functors.FUNCTORS for dtype, count in tiles.items()
    }
    assert aot.check(rows) == []


@pytest.mark.parametrize("fault", [{"spills": 1}, {"shared": 232_449}, {"access_bytes": 8}])
def test_check_finds_faults(fault):
    good = {
        "kernel": "forward_kernel", "functor": "nll", "variant": "plain", "dtype": "float32", "configuration": "rows=1", "target": "sm_90",
        "registers": 40, "spills": 0, "has_mma": False, "access_bytes": 16, "shared": 232_448, "streams": True,
    }
    assert aot.check([good]) == []
    assert len(aot.check([good, {**good, **fault}])) == 1


def test_unknown_target_is_refused():
    with pytest.raises(ValueError, match="unknown target 'sm_1'.*sm_80"):
        aot.rows(["sm_1"])


# Launches


@pytest.mark.parametrize(
    "make, contiguous",
    [
        (lambda: torch.randn(5, 7), True),
        (lambda: torch.randn(5, 20)[:, 3:10], True),
        (lambda: torch.randn(7, 5).t(), False),
        (lambda: torch.randn(2, 7, 3, 4), False),
        (lambda: torch.randn(2, 7, 3, 4).contiguous(memory_format=torch.channels_last), True),
    ],
    ids=["rows", "sliced", "transposed", "image", "channels_last"],
)
def test_layout_decides_the_kernel(monkeypatch, make, contiguous):
    launched = []
    launch = row.launch

    def spy(kernel, programs, device, *args, **options):
        launched.append((kernel.fn.__name__, options.get("CONTIGUOUS")))
        launch(kernel, programs, device, *args, **options)

    monkeypatch.setattr(row, "launch", spy)
    input = make()
    run(input, torch.randint(0, 7, input.shape[:1] + input.shape[2:]))
    assert launched == [("forward_kernel", contiguous), ("reduce_kernel", None), ("backward_kernel", contiguous)]


@pytest.mark.parametrize("soft", [False, True])
def test_launchers_read_no_data(monkeypatch, soft):
    """On tensors without data, whatever looks at a value raises."""
    launched = []
    monkeypatch.setattr(row, "launch", lambda kernel, *_, **__: launched.append(kernel))
    input = torch.empty(6, 50, device="meta")
    target = input if soft else torch.empty(6, dtype=torch.int64, device="meta")
    settings = "cross_entropy", [], 0.1, 1e-3, 5.0, 1.0, -100, row.REDUCTIONS["mean"]
    loss, stats, divisor, entropy, _ = row.row_forward(input, target, input[0], *settings, True, True, True, torch.float32)
    row.row_backward(loss, stats[0], stats[0], input, target, input[0], stats, divisor, entropy, *settings)
    row.row_backward_(loss, stats[0], stats[0], input, target, input[0], stats, divisor, entropy, *settings)
    assert launched == [row.forward_kernel, row.reduce_kernel, row.backward_kernel, row.backward_kernel]


@pytest.mark.parametrize("warp_size", [32, 64])
def test_configuration_covers_every_size(monkeypatch, warp_size):
    monkeypatch.setattr(row, "INTERPRETED", False)
    monkeypatch.setattr(row, "_warp_size", lambda: warp_size)
    for dtype in aot.DTYPES:
        for contiguous in (True, False):
            table = tuning.TUNING[row.layout_class(contiguous, dtype)]
            assert table[-1][0] is None
            for most, tall, block, threads, stages in table:
                found = row.configuration(contiguous, 10, most or 2**40, dtype)
                assert found == (tall, block, threads // warp_size, stages)


# Interpreted


LAYOUTS = {"contiguous": lambda: torch.randn(9, 50), "strided": lambda: torch.randn(3, 50, 7)}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_of_programs_does_not_matter(monkeypatch, layout, reduction):
    small_tiles(monkeypatch)
    input = LAYOUTS[layout]()
    target = torch.randint(0, 50, input.shape[:1] + input.shape[2:])
    target[0] = -100
    options = dict(reduction=reduction, label_smoothing=0.1, z_loss=1e-2, return_entropy=True, return_lse=True)
    expected = run(input, target, **options)

    builder = interpreter.InterpreterBuilder
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx
    orders = []

    def shuffled_dim(self, x, y, z):
        orders.append(random.Random(x).sample(range(x), x))
        set_dim(self, x, y, z)

    monkeypatch.setattr(builder, "set_grid_dim", shuffled_dim)
    monkeypatch.setattr(builder, "set_grid_idx", lambda self, x, y, z: set_idx(self, orders[-1][x], y, z))
    shuffled = run(input, target, **options)
    assert any(order != sorted(order) for order in orders)
    for ours, theirs in zip(shuffled, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def traffic(monkeypatch):
    """Bytes that kernels load and store."""
    moved = Counter()
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self, ptrs, mask, *rest):
        result = load(self, ptrs, mask, *rest)
        moved["read"] += int(numpy.broadcast_to(mask.data, result.data.shape).sum()) * result.data.itemsize
        return result

    def counted_store(self, ptrs, value, mask, *rest):
        moved["written"] += int(numpy.broadcast_to(mask.data, ptrs.data.shape).sum()) * value.data.itemsize
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", counted_load)
    monkeypatch.setattr(builder, "create_masked_store", counted_store)
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 1000), (2, 600, 33)], ids=["contiguous", "strided"])
def test_traffic_is_the_floor(monkeypatch, traffic, shape, dtype):
    """With a GPU's tiles the forward reads the logits once, and the backward reads them once and writes the gradient once."""
    monkeypatch.setattr(row, "INTERPRETED", False)
    monkeypatch.setattr(row, "_warp_size", lambda: 32)
    input = torch.randn(shape).to(dtype).requires_grad_()
    floor = input.numel() * input.element_size()
    loss = cross_entropy(input, torch.randint(0, shape[1], shape[:1] + shape[2:]), backend="triton")
    assert floor <= traffic["read"] <= 1.05 * floor
    assert traffic["written"] <= 0.05 * floor
    traffic.clear()
    loss.backward()
    assert floor <= traffic["read"] <= 1.05 * floor
    assert floor <= traffic["written"] <= 1.05 * floor


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_unknown_label_is_nan_and_never_read(monkeypatch, layout, weighted):
    """On a GPU nobody raises for a label out of range; its row must be NaN, and memory outside the tensors untouched."""
    small_tiles(monkeypatch)
    monkeypatch.setattr(_checks, "labels_in_range", lambda *_: None)
    input = LAYOUTS[layout]()
    target = torch.randint(0, 50, input.shape[:1] + input.shape[2:])
    weight = torch.rand(50) if weighted else None
    good = run(input, target, reduction="none", weight=weight)
    bad = target.clone()
    bad[0], bad[-1] = 50, -(2**40)  # reading either would leave the tensor, the second the address space
    loss, grad = run(input, bad, reduction="none", weight=weight)
    assert loss[0].isnan().all() and loss[-1].isnan().all()
    assert torch.equal(loss[1:-1], good[0][1:-1])
    assert grad[0].isnan().all() and grad[-1].isnan().all()
    assert torch.equal(grad[1:-1], good[1][1:-1])
    assert run(input, bad, reduction="mean", weight=weight)[0].isnan()


def test_overlapping_rows():
    """Rows of a sliding window share memory, and empty_like gives their gradient another order of strides."""
    input = torch.randn(20).as_strided((4, 5), (1, 1))
    target = torch.tensor([0, 3, 4, 1])
    for ours, theirs in zip(run(input, target), run(input.contiguous(), target), strict=True):
        assert torch.equal(ours, theirs)


@triton.jit
def _vocabulary_kernel(x_ptr, y_ptr, FN: tl.constexpr, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    tl.store(y_ptr + lane, FN(tl.load(x_ptr + lane)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name, low, high, reference",
    [
        ("tanh", -20.0, 20.0, numpy.tanh),
        ("tanh", -1e-3, 1e-3, numpy.tanh),
        ("tanh", 0.5, 0.75, numpy.tanh),
        ("log1p", -0.5, 3.0, numpy.log1p),
        ("log1p", -1e-6, 1e-6, numpy.log1p),
        ("expm1", -0.7, 0.7, numpy.expm1),
        ("expm1", -1e-6, 1e-6, numpy.expm1),
        ("log1mexp", -30.0, -0.7, lambda x: numpy.log1p(-numpy.exp(x))),
        ("log1mexp", -0.69, -1e-6, lambda x: numpy.log(-numpy.expm1(x))),
    ],
)
def test_vocabulary(name, low, high, reference, dtype):
    x = torch.linspace(low, high, 1024, dtype=torch.float64).to(dtype)
    y = torch.empty_like(x)
    with numpy.errstate(all="ignore"):
        _vocabulary_kernel[(1,)](x, y, getattr(functors, name), 1024)
        expected = torch.from_numpy(reference(x.double().numpy()))
    torch.testing.assert_close(y.double(), expected, rtol=8 * torch.finfo(dtype).eps, atol=0.0)
