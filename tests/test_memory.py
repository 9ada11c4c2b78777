"""Memory and determinism: poisoned buffers, guards, in-place gradients, threads, instruction sets, more than 2^31 elements."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
import torch

from fastloss import functional as F
from fastloss.cases import Case
from fastloss.functional import cross_entropy
from fastloss.oracle import EXTRAS, check, evaluate, make_upstream, same_bits
from fastloss.registry import LOSSES

CASES = [
    Case(shape=(5, 33), labels="some ignored", reduction="none", extras=EXTRAS),
    Case(shape=(5, 33), labels="all ignored", weight="random"),
    Case(shape=(3, 1025), dtype="bfloat16", labels="some ignored", label_smoothing=0.1, weight="random"),
    Case(shape=(2, 17, 5), labels="some ignored", reduction="sum", softcap=3.0, extras=EXTRAS),
    Case(shape=(2, 5, 33), dtype="float16", labels="soft", reduction="none", layout="every second"),
    Case(shape=(0, 5), reduction="none", extras=EXTRAS),
    Case(shape=(7,), dtype="float64"),
]


@contextlib.contextmanager
def poisoned():
    """Every uninitialised tensor, made in Python or in C++, is full of NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all() and torch.ones(3).new_empty(3, dtype=torch.bfloat16).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_poisoned_buffers(loss, backend, case):
    with poisoned():
        check(case.of(loss), None, backend)


@pytest.mark.parametrize(
    "layout", ["contiguous", "shifted", "padded rows", "transposed", "channels last", "padded classes", "every second"]
)
@pytest.mark.parametrize("shape", [(5, 33), (3, 9, 4)], ids=str)
def test_inplace_writes_the_gradient_over_the_logits_and_nothing_else(compiled, layout, shape):
    for dtype in ("float32", "bfloat16"):
        case = Case(shape=shape, layout=layout, dtype=dtype, labels="some ignored", reduction="none")
        call = case.build()
        upstream = make_upstream(call)
        wanted = evaluate(cross_entropy, call, upstream, backend=compiled)
        leaf = torch.zeros((), dtype=call.input.dtype, requires_grad=True)
        memory = call.input_memory + leaf  # a result, so that it may be overwritten; guards included
        offset = call.input.storage_offset() - call.input_memory.storage_offset()
        logits = memory.as_strided(call.input.shape, call.input.stride(), offset)
        touched = torch.zeros_like(memory, dtype=torch.bool)
        touched.as_strided(call.input.shape, call.input.stride(), offset).fill_(True)
        before = memory.detach().clone()
        value = cross_entropy(logits, call.target, reduction="none", inplace=True, backend=compiled)
        assert torch.equal(value, wanted.values["loss"])
        logits.retain_grad()
        value.backward(upstream["loss"])
        assert torch.equal(logits.grad, wanted.gradients["input"])
        assert torch.equal(memory.detach()[~touched], before[~touched])
        if layout != "every second" and (layout, len(shape)) != ("transposed", 3):  # those are swept as a copy
            assert torch.equal(logits.detach(), wanted.gradients["input"]), "the gradient must be where the logits were"


def test_inplace_agrees_with_the_oracle(loss, backend):
    for case in CASES:
        check(Case(**{**vars(case), "inplace": True}).of(loss), None, backend)


def test_inplace_refuses_what_it_would_destroy(compiled):
    x, t = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 3])
    with pytest.raises(RuntimeError, match="leaf"):
        cross_entropy(x, t, inplace=True, backend=compiled)
    with pytest.raises(RuntimeError, match=r"share memory.*\(4, 5\)"):
        cross_entropy((x[:1] * 2).expand(4, 5), t, inplace=True, backend=compiled)
    value = cross_entropy(x * 2, t, inplace=True, backend=compiled)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        value.backward()


def test_inplace_with_another_consumer_of_the_logits(compiled):
    """Either the gradient is right or autograd raises, whichever of the two consumers came first."""
    leaf, t = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])

    def total(x, inplace, loss_first):
        y = x * 2
        parts = [lambda: cross_entropy(y, t, inplace=inplace, backend=compiled), lambda: y.sin().sum()]
        first, second = (parts if loss_first else parts[::-1])
        return first() + second()

    wanted = leaf.clone().requires_grad_()
    total(wanted, False, True).backward()
    right = 0
    for loss_first in (True, False):
        x = leaf.clone().requires_grad_()
        with contextlib.suppress(RuntimeError):
            total(x, True, loss_first).backward()
            torch.testing.assert_close(x.grad, wanted.grad)
            right += 1
    assert right, "one of the two orders can be served"


def test_without_inplace_the_forward_leaves_logits_to_their_other_consumers(backend):
    x, t = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 3])
    y = x * 2
    before = y.detach().clone()
    (cross_entropy(y, t, backend=backend) + y.sin().sum()).backward()
    assert torch.equal(y.detach(), before)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(3000, 100), (3, 60000), (2, 19, 4000), (70000, 3)], ids=str)
def test_same_bits_for_any_number_of_threads(loss, compiled, shape, reduction):
    if compiled != "cpu":
        shape = (min(shape[0], 40), *(min(n, 300) for n in shape[1:]))
    case = Case(shape=shape, labels="some ignored", weight="random", reduction=reduction, dtype="bfloat16", label_smoothing=0.1)
    call = case.of(loss).build()
    upstream = make_upstream(call)
    outcomes = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        outcomes.append(evaluate(LOSSES[loss].function, call, upstream, backend=compiled))
    for outcome in outcomes[1:]:
        assert same_bits(outcome.values["loss"], outcomes[0].values["loss"])
        assert same_bits(outcome.gradients["input"], outcomes[0].gradients["input"])


INSTRUCTION_SETS = ("default", "avx2", "avx512")
FORCED = """
import sys, torch
torch.set_num_threads(1)
from fastloss import _cpu
from fastloss.cases import LAYOUTS, VALUES, Case
from fastloss.fuzz import CLASSES, DTYPES, run
from fastloss.oracle import EXTRAS, check
from fastloss.registry import LOSSES
assert _cpu.INSTRUCTION_SET == sys.argv[1], _cpu.INSTRUCTION_SET
for loss, about in LOSSES.items():
    for i, classes in enumerate(CLASSES + (1023, 1025) if about.engine == "row" else ()):
        for dtype in DTYPES:
            check(Case(shape=(3, classes), dtype=dtype, seed=i, reduction="none", extras=EXTRAS, softcap=3.0).of(loss), None, "cpu")
            check(Case(shape=(2, 3, classes), dtype=dtype, seed=i, reduction="none", labels="soft").of(loss), None, "cpu")
    finding = run(loss, "cpu", examples=400 if about.engine == "row" else 120, seed=5)
    assert finding is None, finding.script
print("agreed")
"""


def _machine_has() -> tuple[str, ...]:
    best = torch.backends.cpu.get_cpu_capability().lower()
    return INSTRUCTION_SETS[: INSTRUCTION_SETS.index(best) + 1] if best in INSTRUCTION_SETS else ("default",)


@pytest.mark.slow
@pytest.mark.parametrize("name", _machine_has())
def test_forced_instruction_sets(name):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": name, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FORCED, name], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("agreed\n"), done.stdout + done.stderr


# Of a hundred million elements in 16 bits: the loss, its operands, and the same in float64 from sums over pieces.
COUNT = 10**8
LONG = {
    "mse": lambda x, t: (x - t).square().sum(),
    "sigmoid_focal": lambda x, t: F.sigmoid_focal_loss(x, t, reduction="sum", backend="eager"),
    "binary_cross_entropy_with_logits": lambda x, t: torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="sum"),
    "dice": lambda x, t: torch.stack([(torch.sigmoid(x) * t).sum(), (torch.sigmoid(x) + t).sum()]),
    "lovasz_hinge": None,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, torch.bfloat16 if i % 2 else torch.float16) for i, name in enumerate(LONG)], ids=list(LONG)
)
def test_a_hundred_million_elements(name, dtype):
    """Sums of as many numbers as no 16-bit and no single float32 accumulator can count, with saturated ones among them."""
    some = torch.randn(COUNT // 100)
    some[::1000] = 60000.0 if dtype == torch.float16 and name != "mse" else 100.0
    x = some.to(dtype).repeat(100)
    t = (torch.rand(COUNT // 100) < 0.25).to(dtype).repeat(100)
    x.requires_grad_()
    if name == "lovasz_hinge":
        value = F.lovasz_hinge_loss(x.view(1, 10**4, 10**4), t.view(1, 10**4, 10**4).to(torch.int8), backend="cpu")
        # Equal errors share one place in the order, so that a hundred copies of an image have the loss of one.
        one = x.detach()[: COUNT // 100].double().view(1, 1000, 1000)
        wanted = F.lovasz_hinge_loss(one, t[: COUNT // 100].view(1, 1000, 1000).to(torch.int8), backend="eager")
    else:
        wanted = 100 * LONG[name](x.detach()[: COUNT // 100].double(), t[: COUNT // 100].double())
        if name == "dice":
            value = F.dice_loss(x.view(1, 1, -1), t.view(1, 1, -1), activation="sigmoid", backend="cpu")
            wanted = 1 - (2 * wanted[0] + 1e-5) / (wanted[1] + 1e-5)
        else:
            value = getattr(F, LOSSES[name].function.__name__)(x, t, reduction="mean", backend="cpu")
            wanted = wanted / COUNT
    (grad,) = torch.autograd.grad(value, x)
    rounding = torch.finfo(dtype).eps if value.dtype == dtype else 1e-5
    assert value.isfinite() and abs(value.double() - wanted) <= rounding * abs(wanted)
    assert grad.dtype == dtype and grad.isfinite().all()
    assert name == "lovasz_hinge" or same_bits(grad[: COUNT // 100], grad[-COUNT // 100 :])  # of equal errors the first counts most


@pytest.mark.huge
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(70000, 32000), (1, 32800, 65600)], ids=["rows", "columns"])
def test_more_than_2_to_31_elements(shape, inplace):
    """The last rows of a bfloat16 input of 4.3 GB get the loss and the gradient that they get alone."""
    logits = torch.empty(shape, dtype=torch.bfloat16)
    assert logits.numel() > 2**31
    some = torch.randn(1 << 20).bfloat16()
    flat = logits.view(-1)
    for start in range(0, flat.numel(), some.numel()):
        flat[start : start + some.numel()] = some[: flat.numel() - start]
    target = torch.randint(0, shape[1], shape[:1] + shape[2:])
    ends = [slice(0, 3), slice(shape[0] // 2, shape[0] // 2 + 3), slice(-3, None)] if len(shape) == 2 else [slice(0, 3), slice(-3, None)]
    alone = []
    for end in ends:
        part = logits[..., end] if len(shape) == 3 else logits[end]
        part = part.clone().requires_grad_()
        value = cross_entropy(part, target[..., end], reduction="none", backend="cpu")
        alone.append((value.detach(), torch.autograd.grad(value.sum(), part)[0]))
    logits.requires_grad_()
    input = logits.view_as(logits) if inplace else logits  # a view made under autograd is no leaf, and takes no memory
    value = cross_entropy(input, target, reduction="none", inplace=inplace, backend="cpu")
    (grad,) = torch.autograd.grad(value, input, torch.ones_like(value))
    assert (grad.data_ptr() == logits.data_ptr()) == inplace
    for end, (wanted, wanted_grad) in zip(ends, alone):
        assert torch.equal(value[..., end], wanted)
        assert torch.equal(grad[..., end] if len(shape) == 3 else grad[end], wanted_grad)
