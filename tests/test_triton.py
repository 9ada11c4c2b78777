"""What only the Triton backend has to show: the compiled code of every kernel, its traffic, and freedom from the order of programs."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastloss import _checks, aot
from fastloss.engine import REDUCTIONS
from fastloss.functional import cross_entropy
from fastloss.kernels import box, divergence, elementwise, functors, launch, overlap, pair_functors, row, tuning
from fastloss.overlap import formula
from test_memory import poisoned


def small_tiles(monkeypatch, rows: int = 2, block: int = 16) -> None:
    """Tiles so small that a modest tensor has many programs and several blocks a row."""
    monkeypatch.setattr(row, "configuration", lambda *_: row.Configuration(rows, block, 1, 1))
    monkeypatch.setattr(elementwise, "configuration", lambda *_: elementwise.Configuration(block, 1))
    monkeypatch.setattr(overlap, "configuration", small_overlap_tile)


def small_overlap_tile(layout: str, classes: int, *_) -> overlap.Configuration:
    """All of up to 8 classes, else blocks of 4."""
    return overlap.Configuration(8, 16, 64, 4, 1) if classes <= 8 else overlap.Configuration(4, 16, 16, 1, 1)


def run(input: torch.Tensor, target: torch.Tensor, grad_seed: int = 0, **options) -> list[torch.Tensor]:
    """Every output, and the gradient for random upstream gradients."""
    leaf = input.detach().requires_grad_()
    outputs = cross_entropy(leaf, target, backend="triton", **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(grad_seed)
    chosen = [output for output in outputs if output.requires_grad]
    upstream = [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype) for output in chosen]
    return [output.detach() for output in outputs] + list(torch.autograd.grad(chosen, leaf, upstream))


def run_elementwise(operands, weight=None, reduction="mean", functor="gaussian_nll", params=(1.0, 1e-6), grad_seed=0):
    """The loss, the divisor and every gradient, for a random upstream gradient."""
    operands = *operands, *(None,) * (3 - len(operands))
    settings = functor, list(params), REDUCTIONS[reduction]
    loss, divisor = torch.ops.fastloss.elementwise_forward.triton(*operands, weight, *settings)
    upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(grad_seed)).to(loss.dtype)
    wanted = [operand is not None for operand in operands]
    grads = torch.ops.fastloss.elementwise_backward.triton(upstream, *operands, weight, divisor, *settings, *wanted)
    return [loss, divisor, *(grad for grad, want in zip(grads, wanted) if want)]


def run_overlap(input, target, functor="softmax_focal", params=(1.5,), ignore_index=None, grad_seed=0):
    """The sums and every gradient, for a random upstream gradient."""
    soft = target.is_floating_point()
    settings = functor, list(params), 0, ignore_index
    sums = torch.ops.fastloss.overlap_forward.triton(input, target, *settings)
    upstream = torch.randn(sums.shape, generator=torch.Generator().manual_seed(grad_seed), dtype=torch.float64).to(sums.dtype)
    grads = torch.ops.fastloss.overlap_backward.triton(upstream, input, target, *settings, True, soft)
    return [sums, *grads[: 1 + soft]]


# Compiled ahead of time


def test_compiled_kernels_do_not_spill():
    rows = aot.rows(["sm_90", "gfx942"], quick=True)
    assert {(r["kernel"], r["variant"]) for r in rows} >= {
        (prefix + kernel, variant)
        for prefix, variants in (
            ("", aot.VARIANTS), ("elementwise_", aot.ELEMENTWISE_VARIANTS), ("overlap_", aot.OVERLAP_VARIANTS), ("box_", aot.BOX_VARIANTS),
            ("divergence_", aot.DIVERGENCE_VARIANTS),
        )
        for kernel, variant in itertools.product(("forward_kernel", "backward_kernel"), variants)
    } | {(f"sort_{step}_kernel", variant) for step in ("keys", "weigh", "backward") for variant in aot.SORT_VARIANTS} | {
        (f"pair_{step}_kernel", variant) for step in ("forward", "backward") for variant in ("plain", "tf32", "alone")
    }
    assert aot.check(rows) == []
    assert all(r["registers"] > 0 and r["has_mma"] == r["kernel"].startswith("pair_") for r in rows)


@pytest.mark.slow
def test_every_kernel_compiles_for_every_target():
    rows = aot.rows()
    found = Counter(
        (r["target"], r["kernel"], r["functor"], r["dtype"])
        for r in rows if r["kernel"].endswith("forward_kernel") and r["variant"] in ("plain", "dense")
    )
    wanted = Counter()
    for target, dtype in itertools.product(aot.TARGETS, aot.DTYPES):
        name, keys = str(dtype).removeprefix("torch."), [tuning.layout_class(contiguous, dtype) for contiguous in (True, False)]
        every = dtype != torch.float16  # which is tried with one functor an engine
        for functor in functors.FUNCTORS if every else ["cross_entropy"]:
            wanted[target, "forward_kernel", functor, name] = sum(len(tuning.TUNING[key]) for key in keys)
        for functor in functors.ELEMENTWISE if every else ["gaussian_nll"]:
            wanted[target, "elementwise_forward_kernel", functor, name] = 1
        for functor in box.BOX if every else [list(box.BOX)[-1]]:
            wanted[target, "box_forward_kernel", functor, name] = 1
        wanted[target, "divergence_forward_kernel", "jensen_shannon", name] = len(tuning.DIVERGENCE[keys[0]])
        for functor in set(divergence.FUNCTORS) - {"jensen_shannon"} if dtype in aot.DTYPES[:2] else ():
            wanted[target, "divergence_forward_kernel", functor, name] = 1
        for functor in functors.OVERLAP if every else ["softmax_focal"]:
            tiles = sum(len(tuning.OVERLAP[key]) for key in (keys[0], tuning.layout_class(False, dtype, channels_last=True)))
            wanted[target, "overlap_forward_kernel", functor, name] = 2 * (tiles if functor == "softmax_focal" else 1)
        for functor in pair_functors.PAIR if dtype == torch.bfloat16 else ["linear"]:
            wanted[target, "pair_forward_kernel", functor, name] = 1
    assert found == wanted
    assert aot.check(rows) == []


@pytest.mark.parametrize(
    "fault",
    [{"spills": 1}, {"shared": 232_449}, {"access_bytes": 8}, {"kernel": "pair_forward_kernel", "dtype": "float16"},
     {"kernel": "pair_backward_kernel", "variant": "tf32"}],
)
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


def test_functors_are_those_of_the_other_backends():
    for engine, names in (("elementwise", functors.ELEMENTWISE), ("overlap", functors.OVERLAP), ("pair", pair_functors.PAIR)):
        source = (Path(__file__).parents[1] / "csrc" / f"{engine}.h").read_text()
        assert list(names) == re.findall(r"^  X\((\w+), [\w<>]+\)", source, re.MULTILINE)


# Launches


@pytest.fixture
def launched(monkeypatch):
    """The name of each kernel that runs, and whether it takes its tensors for contiguous."""
    found = []
    run = launch.run

    def spy(kernel, programs, device, *args, **options):
        found.append((kernel.fn.__name__, options.get("CONTIGUOUS")))
        run(kernel, programs, device, *args, **options)

    monkeypatch.setattr(launch, "run", spy)
    return found


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
def test_layout_decides_the_kernel(launched, make, contiguous):
    input = make()
    run(input, torch.randint(0, 7, input.shape[:1] + input.shape[2:]))
    assert launched == [("forward_kernel", contiguous), ("reduce_kernel", None), ("backward_kernel", contiguous)]


@pytest.mark.parametrize(
    "upstream, contiguous, each",
    [
        (lambda loss: torch.ones_like(loss), True, True),
        (lambda loss: torch.ones(()).expand_as(loss), True, False),
        (lambda loss: torch.ones(2, 1, 1, 1, 1).expand_as(loss), True, True),
        (lambda loss: torch.ones(1, 12).expand(5, 12), False, True),
        (lambda loss: torch.ones(()).expand(5, 12), True, False),
    ],
    ids=["each", "a sum's", "rows of many dimensions", "columns", "a sum's over rows"],
)
def test_upstream_gradients_are_not_copied_without_need(monkeypatch, upstream, contiguous, each):
    found = []
    run = launch.run
    monkeypatch.setattr(launch, "run", lambda *args, **options: (found.append(options), run(*args, **options)))
    shape = upstream(torch.empty(2, 3, 2, 5, 1)).shape
    input, target = torch.randn(shape), torch.randn(shape)
    grad = upstream(input)
    settings = "mse", [], REDUCTIONS["none"]
    loss, divisor = torch.ops.fastloss.elementwise_forward.triton(input, target, None, None, *settings)
    ours, _, _ = torch.ops.fastloss.elementwise_backward.triton(
        grad, input, target, None, None, divisor, *settings, True, False, False
    )
    assert (found[1]["CONTIGUOUS"], found[1]["EACH"]) == (contiguous, each)
    torch.testing.assert_close(ours, grad * 2 * (input - target))


@pytest.mark.parametrize("soft", [False, True])
def test_launchers_read_no_data(monkeypatch, soft):
    """On tensors without data, whatever looks at a value raises."""
    launched = []
    monkeypatch.setattr(launch, "run", lambda kernel, *_, **__: launched.append(kernel))
    input = torch.empty(6, 50, device="meta")
    target = input if soft else torch.empty(6, dtype=torch.int64, device="meta")
    settings = "cross_entropy", [], 0.1, 1e-3, 5.0, 1.0, False, -100, row.REDUCTIONS["mean"]
    loss, stats, divisor, entropy, _ = row.row_forward(input, target, input[0], *settings, True, True, True, torch.float32)
    row.row_backward(loss, stats[0], stats[0], input, target, input[0], stats, divisor, entropy, *settings)
    row.row_backward_(loss, stats[0], stats[0], input, target, input[0], stats, divisor, entropy, *settings)
    assert launched == [row.forward_kernel, launch.reduce_kernel, row.backward_kernel, row.backward_kernel]


@pytest.mark.parametrize("contiguous", [False, True])
def test_elementwise_launchers_read_no_data(monkeypatch, contiguous):
    launched = []
    monkeypatch.setattr(launch, "run", lambda kernel, *_, **__: launched.append(kernel))
    input = torch.empty(6, 50, device="meta")
    target = input if contiguous else torch.empty(50, device="meta").expand(6, 50)
    settings = "gaussian_nll", [0.0, 1e-6], REDUCTIONS["weighted_mean"]
    loss, divisor = elementwise.elementwise_forward(input, target, input, target, *settings)
    elementwise.elementwise_backward(loss, input, target, input, target, divisor, *settings, True, True, True)
    assert launched == [elementwise.elementwise_forward_kernel, launch.reduce_kernel, elementwise.elementwise_backward_kernel]


@pytest.mark.parametrize("soft", [False, True])
def test_overlap_launchers_read_no_data(monkeypatch, soft):
    launched = []
    monkeypatch.setattr(launch, "run", lambda kernel, *_, **__: launched.append(kernel))
    input = torch.empty(2, 5, 50, device="meta")
    target = input if soft else torch.empty(2, 50, dtype=torch.uint8, device="meta")
    settings = "softmax", [], 0, 255
    sums = overlap.overlap_forward(input, target, *settings)
    overlap.overlap_backward(sums, input, target, *settings, True, soft)
    assert launched == [overlap.overlap_forward_kernel, overlap.overlap_backward_kernel]


@pytest.mark.parametrize("warp_size", [32, 64])
@pytest.mark.parametrize("layout", tuning.OVERLAP)
def test_overlap_configuration(monkeypatch, layout, warp_size):
    """What a program writes is little beside what it reads, and a thread has as many elements on every GPU."""
    monkeypatch.setattr(overlap, "INTERPRETED", False)
    monkeypatch.setattr(launch, "warp_size", lambda: warp_size)
    dtype = {"half": torch.bfloat16, "single": torch.float32, "double": torch.float64}[layout.rpartition("_")[2]]
    table = tuning.OVERLAP[layout]
    assert table[-1][0] is None
    sums = 8 * max(dtype.itemsize, 4)
    for classes in (1, 2, 3, 17, 128, 129, 1000, 1025, 2**40):
        most, _, elements, _, threads = next(r for r in table if r[0] is None or classes <= r[0])
        tile = overlap.configuration(layout, classes, 10**6, dtype)
        assert tile.block_c * tile.block_s * threads == elements * tile.num_warps * warp_size
        assert tile.span % tile.block_s == tile.block_s % tile.fold == 0
        assert (tile.block_c >= classes) if most else (tile.span == tile.block_s)
        assert 100 * sums <= tile.span * dtype.itemsize or most is None
        short = overlap.configuration(layout, classes, 5, dtype)
        assert short.block_s <= 8 and short.fold <= short.block_s


@pytest.mark.parametrize("warp_size", [32, 64])
def test_configuration_covers_every_size(monkeypatch, warp_size):
    monkeypatch.setattr(row, "INTERPRETED", False)
    monkeypatch.setattr(elementwise, "INTERPRETED", False)
    monkeypatch.setattr(launch, "warp_size", lambda: warp_size)
    for dtype in aot.DTYPES:
        for contiguous in (True, False):
            key = tuning.layout_class(contiguous, dtype)
            block, threads = tuning.ELEMENTWISE[key]
            assert elementwise.configuration(contiguous, 10, dtype) == (block, threads // warp_size)
            table = tuning.TUNING[key]
            assert table[-1][0] is None
            for most, tall, block, threads, stages in table:
                found = row.configuration(contiguous, 10, most or 2**40, dtype)
                assert found == (tall, block, threads // warp_size, stages)


# Interpreted


LAYOUTS = {"contiguous": lambda: torch.randn(9, 50), "strided": lambda: torch.randn(3, 50, 7)}


def same_in_any_order(monkeypatch, call) -> None:
    """Assert that `call`, a function without arguments that gives tensors, gives the same bits with the programs in random order."""
    expected = call()
    builder = interpreter.InterpreterBuilder
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx
    orders = []

    def shuffled_dim(self, x, y, z):
        orders.append(random.Random(x).sample(range(x), x))
        set_dim(self, x, y, z)

    monkeypatch.setattr(builder, "set_grid_dim", shuffled_dim)
    monkeypatch.setattr(builder, "set_grid_idx", lambda self, x, y, z: set_idx(self, orders[-1][x], y, z))
    shuffled = call()
    assert any(order != sorted(order) for order in orders)
    for ours, theirs in zip(shuffled, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_of_programs_does_not_matter(monkeypatch, layout, reduction):
    small_tiles(monkeypatch)
    input = LAYOUTS[layout]()
    target = torch.randint(0, 50, input.shape[:1] + input.shape[2:])
    target[0] = -100
    options = dict(reduction=reduction, label_smoothing=0.1, z_loss=1e-2, return_entropy=True, return_lse=True)
    same_in_any_order(monkeypatch, lambda: run(input, target, **options))


# Makes `count` operands of one shape from a function of a shape.
OPERANDS = {
    "contiguous": lambda make, count: [make((9, 50)) for _ in range(count)],
    "transposed": lambda make, count: [make((50, 9)).t() if which % 2 else make((9, 50)) for which in range(count)],
    "expanded": lambda make, count: [make((5, *tail)).expand(5, 9, 10) for tail in [(9, 10), (1, 10), (9, 1), (1, 1)][:count]],
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "weighted_mean"])
@pytest.mark.parametrize("layout", OPERANDS)
def test_elementwise_order_of_programs_does_not_matter(monkeypatch, layout, reduction):
    small_tiles(monkeypatch)
    *operands, weight = OPERANDS[layout](lambda shape: torch.rand(shape) + 0.1, 4)
    same_in_any_order(monkeypatch, lambda: run_elementwise(operands, weight, reduction))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "weighted_mean"])
@pytest.mark.parametrize("layout", OPERANDS)
def test_elementwise_fills_every_output(monkeypatch, layout, reduction):
    """Outputs full of NaN beforehand, and a number of elements that blocks do not divide."""
    small_tiles(monkeypatch)
    *operands, weight = OPERANDS[layout](lambda shape: torch.rand(shape, dtype=torch.float64) + 0.1, 4)
    with poisoned():
        loss, divisor, *grads = run_elementwise(operands, weight, reduction)
    leaves = [operand.clone().requires_grad_() for operand in operands]
    values = weight * torch.nn.functional.gaussian_nll_loss(*leaves, full=True, reduction="none")
    divisors = {"mean": float(values.numel()), "weighted_mean": weight.sum().item()}
    expected = values if reduction == "none" else values.sum() / divisors.get(reduction, 1.0)
    upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(0)).to(loss.dtype)
    torch.testing.assert_close(loss, expected.detach())
    assert divisor.item() == pytest.approx(divisors.get(reduction, 1.0), rel=1e-14)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "weighted_mean"])
def test_elementwise_of_nothing(reduction):
    empty = torch.empty(3, 0)
    with poisoned():
        loss, divisor, *grads = run_elementwise([empty, empty], empty, reduction, "mse", ())
    assert all(grad.shape == empty.shape for grad in grads) and len(grads) == 2
    assert divisor == (0.0 if "mean" in reduction else 1.0)
    if reduction == "none":
        assert loss.shape == empty.shape
    else:
        assert loss.isnan() if "mean" in reduction else loss == 0


# (N, C, S), with one program a sample and several, and classes in one tile and in blocks.
IMAGES = {
    "contiguous": lambda make, classes: make((2, classes, 70)),
    "channels_last": lambda make, classes: make((2, 70, classes)).transpose(1, 2),
    "sliced": lambda make, classes: make((2, classes + 2, 150))[:, 1:-1, 3:143:2],
}


@pytest.mark.parametrize("classes, soft", [(5, True), (10, False)])
def test_overlap_order_of_programs_does_not_matter(monkeypatch, classes, soft):
    small_tiles(monkeypatch)
    input = torch.randn(2, classes, 70)
    target = torch.rand_like(input) if soft else torch.randint(classes, (2, 70))
    same_in_any_order(monkeypatch, lambda: run_overlap(input, target))


@pytest.mark.parametrize("functor, params, soft", [("softmax_cross_entropy", (), False), ("sigmoid_focal", (0.25, 1.5), True)])
@pytest.mark.parametrize("layout", IMAGES)
@pytest.mark.parametrize("classes", [5, 10])
def test_overlap_fills_every_output(monkeypatch, classes, layout, soft, functor, params):
    """Outputs full of NaN beforehand, and sizes that blocks do not divide."""
    small_tiles(monkeypatch)
    input = IMAGES[layout](lambda shape: torch.randn(shape, dtype=torch.float64), classes)
    target = torch.rand_like(input) if soft else torch.randint(classes, (2, 70))
    target = torch.where(torch.rand(target.shape) < 0.2, -1, target)
    with poisoned():
        sums, *grads = run_overlap(input, target, functor, params, -1)
    leaves = [t.clone().requires_grad_() for t in (input, target)[: 1 + soft]]
    expected = formula(functor, params, 0, -1, leaves[0], leaves[1] if soft else target)
    upstream = torch.randn(sums.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sums, expected.detach())
    for ours, theirs in zip(grads, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_overlap_sums_of_equal_numbers_are_equal(monkeypatch):
    """Losses take differences of sums that have to be exactly 0: of p and of p t where t is 1."""
    monkeypatch.setattr(overlap, "INTERPRETED", False)
    monkeypatch.setattr(launch, "warp_size", lambda: 32)
    for shape in ((1, 1, 3), (1, 1, 3001), (1, 5, 320), (1, 129, 40)):
        input = torch.rand(shape)
        for functor in ("sigmoid", "softmax")[shape[1] > 128 :]:
            sums = run_overlap(input, torch.ones(shape), functor, ())[0]
            assert torch.equal(sums[..., 0], sums[..., 1])


def test_unknown_label_has_no_class(monkeypatch):
    """On a GPU nobody raises for a label out of range; its pixel has a target of 0, as in the formula."""
    monkeypatch.setattr(_checks, "labels_in_range", lambda *_: None)
    input, target = torch.randn(2, 5, 40, dtype=torch.float64), torch.randint(5, (2, 40))
    target[0, 3], target[1, 7], target[1, 8] = 5, -(2**40), 2**32
    torch.testing.assert_close(run_overlap(input, target)[0], formula("softmax_focal", (1.5,), 0, None, input, target))


elementwise_position = elementwise._position  # a kernel sees only globals


@triton.jit
def _position_kernel(found_ptr, start, sizes, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    a, b, c = elementwise_position(start.to(tl.int64), lane, sizes[1], sizes[2], False)
    tl.store(found_ptr + lane, a)
    tl.store(found_ptr + SIZE + lane, b)
    tl.store(found_ptr + 2 * SIZE + lane, c)


@pytest.mark.parametrize(
    "sizes",
    [(3, 5, 7), (3, 1, 1), (1, 1, 9), (3, 64, 64), (2, 3, 2**33 + 1), (2, 2**33 + 1, 3), (2**33 + 1, 2, 3), (2, 2**30 + 1, 2**31 - 1)],
)
def test_elementwise_positions(sizes):
    """The three indices of an element, where dimensions end and where they are longer than 32 bits."""
    numel = sizes[0] * sizes[1] * sizes[2]
    ends = [0, sizes[2], sizes[1] * sizes[2], 2**30, 2**31, 2**32, numel]
    for start in {min(max(end - back, 0), numel - 1) for end in ends for back in (0, 1, 40, 64, 100)}:
        found = torch.empty(3, 64, dtype=torch.int64)
        _position_kernel[(1,)](found, start, sizes, 64)
        lanes = min(64, numel - start)
        wanted = numpy.unravel_index(range(start, start + lanes), sizes)
        assert numpy.array_equal(found[:, :lanes], wanted), start


@pytest.fixture
def traffic(monkeypatch):
    """Bytes that kernels load and store."""
    return counted_traffic(monkeypatch)


def counted_traffic(monkeypatch) -> Counter:
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
    monkeypatch.setattr(launch, "warp_size", lambda: 32)
    input = torch.randn(shape).to(dtype).requires_grad_()
    floor = input.numel() * input.element_size()
    loss = cross_entropy(input, torch.randint(0, shape[1], shape[:1] + shape[2:]), backend="triton")
    assert floor <= traffic["read"] <= 1.05 * floor
    assert traffic["written"] <= 0.05 * floor
    traffic.clear()
    loss.backward()
    assert floor <= traffic["read"] <= 1.05 * floor
    assert floor <= traffic["written"] <= 1.05 * floor


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_elementwise_traffic_is_the_floor(monkeypatch, traffic, layout, dtype, reduction):
    """The forward reads input and target once, and the backward reads them once and writes the gradient once."""
    monkeypatch.setattr(elementwise, "INTERPRETED", False)
    monkeypatch.setattr(launch, "warp_size", lambda: 32)
    input, target = OPERANDS[layout](lambda shape: torch.randn(100 * shape[0], shape[1]).to(dtype), 2)
    floor = input.numel() * input.element_size()
    settings = "mse", [], REDUCTIONS[reduction]
    loss, divisor = torch.ops.fastloss.elementwise_forward.triton(input, target, None, None, *settings)
    losses = floor if reduction == "none" else 0
    assert 2 * floor <= traffic["read"] <= 1.05 * 2 * floor
    assert losses <= traffic["written"] <= losses + 0.05 * floor
    traffic.clear()
    upstream = torch.ones(()).to(dtype).expand_as(loss)
    torch.ops.fastloss.elementwise_backward.triton(upstream, input, target, None, None, divisor, *settings, True, False, False)
    assert 2 * floor <= traffic["read"] <= 1.05 * 2 * floor
    assert floor <= traffic["written"] <= 1.05 * floor


@pytest.mark.parametrize("soft, dtype", [(False, torch.bfloat16), (True, torch.float32)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_overlap_traffic_is_the_floor(monkeypatch, traffic, layout, soft, dtype):
    """The forward reads input and target once, and the backward reads them once and writes each gradient once."""
    monkeypatch.setattr(overlap, "INTERPRETED", False)
    monkeypatch.setattr(launch, "warp_size", lambda: 32)
    shape = (1, 520, 21) if layout == "channels_last" else (1, 6, 2050 - (layout == "contiguous") * 2)
    input, target = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    if layout == "channels_last":
        input, target = input.transpose(1, 2), target.transpose(1, 2)
    target = target if soft else torch.randint(6, (1, input.shape[2]))
    floor = input.numel() * input.element_size()
    read = floor + target.numel() * target.element_size()
    settings = "softmax_cross_entropy", [], 0, None
    sums = torch.ops.fastloss.overlap_forward.triton(input, target, *settings)
    assert read <= traffic["read"] <= 1.05 * read
    assert traffic["written"] <= 0.04 * floor
    traffic.clear()
    torch.ops.fastloss.overlap_backward.triton(sums, input, target, *settings, True, soft)
    assert read <= traffic["read"] <= 1.05 * read
    assert (1 + soft) * floor <= traffic["written"] <= 1.05 * (1 + soft) * floor


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
        ("atan", -1.0, 1.0, numpy.arctan),
        ("tanh", -20.0, 20.0, numpy.tanh),
        ("tanh", -1e-3, 1e-3, numpy.tanh),
        ("tanh", 0.5, 0.75, numpy.tanh),
        ("log1p", -0.5, 3.0, numpy.log1p),
        ("log1p", -1e-6, 1e-6, numpy.log1p),
        ("expm1", -0.7, 0.7, numpy.expm1),
        ("expm1", -1e-6, 1e-6, numpy.expm1),
        ("softplus", -80.0, 80.0, lambda x: numpy.maximum(x, 0.0) + numpy.log1p(numpy.exp(-abs(x)))),
        ("sigmoid", -80.0, 80.0, lambda x: 1.0 / (1.0 + numpy.exp(-x))),
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


@pytest.mark.parametrize("name, expected", [("log1p", [0.0, float("inf"), float("-inf")]), ("sign", [0.0, 1.0, -1.0])])
def test_vocabulary_at_the_ends(name, expected):
    x = torch.tensor([0.0, float("inf"), -1.0, float("nan")])
    y = torch.empty_like(x)
    with numpy.errstate(all="ignore"):
        _vocabulary_kernel[(1,)](x, y, getattr(functors, name), 4)
    torch.testing.assert_close(y[:3], torch.tensor(expected))
    assert y[3].isnan() if name == "log1p" else y[3] == 0
