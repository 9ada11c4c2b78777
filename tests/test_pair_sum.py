"""Weighted sums of statistics of rows: value and gradient as from the statistics themselves, and what is kept until the backward."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastloss import pair
from fastloss._backends import unavailable
from fastloss.oracle import Recorder
from fastloss.pair import Scores, Term, pair_statistics
from fastloss.pair_sum import pair_sum
from test_pair import CASES, Pairs, some

OF_ROWS = [case for case in CASES if case.columns and all(side == "row" and not q for *_, side, _, q in case.terms)]


def sum_of(case: Pairs, dtype: torch.dtype, backend: str, **options):
    """The sum of a case over rows of finite statistics, all statistics, and its gradient for an upstream gradient of 0.3."""
    scores, terms, more, leaves = case.build(dtype)
    generator = torch.Generator().manual_seed(case.seed + 1)
    wide = pair.accumulate_dtype(dtype)
    counts = torch.stack([one.value.isfinite() for one in pair_statistics("pair", scores, terms, backend="eager", **more)]).all(0)
    weights = [None if term.reduce == "max" else torch.where(counts, torch.randn(case.rows, generator=generator), 0.0).to(wide)
               for term in terms]
    if all(weight is None for weight in weights):
        return None
    total, found = pair_sum("pair", scores, terms, weights, counts, backend=backend, **more, **options)
    grads = torch.autograd.grad(0.3 * total, list(leaves.values()), allow_unused=True)
    assert not any(one.value.requires_grad or one.count.requires_grad for one in found)
    return total.detach(), found, {name: grad for name, grad in zip(leaves, grads) if grad is not None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_agrees_with_the_formula(compiled, dtype, exact_products):
    assert len(OF_ROWS) > 12
    for case in random_cases(compiled):
        if dtype != torch.float64 and any(functor in ("relu", "square", "lifted", "tuplet") for _, _, functor, *_ in case.terms):
            continue  # whose counts depend on the last bit of a score
        got, wanted = sum_of(case, dtype, compiled), sum_of(case, torch.float64, "eager")
        if wanted is None:
            continue
        near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-4}
        torch.testing.assert_close(got[0].double(), wanted[0], msg=lambda text: f"{case}: {text}", **near)
        for mine, exact in zip(got[1], wanted[1]):
            torch.testing.assert_close(mine.value.double(), exact.value, msg=lambda text: f"{case}: {text}", **near)
            assert torch.equal(mine.count.double(), exact.count)
        if dtype == torch.bfloat16:
            near |= {"rtol": 0.02 if compiled == "triton" else 0.004}
        for name, grad in got[2].items():
            torch.testing.assert_close(grad.double(), wanted[2].get(name, torch.zeros_like(grad, dtype=torch.float64)),
                                       msg=lambda text: f"{case}: {name}: {text}", **near)


def random_cases(backend: str) -> list[Pairs]:
    return [case for case in some(backend, 60) if case in OF_ROWS] if backend == "triton" else OF_ROWS


@pytest.mark.parametrize("budget", [None, 0, 4 * 64 * 300, 2**24])
def test_strips_of_any_size_give_the_same(budget):
    """Also of more blocks than go over the other set together."""
    a, b = (torch.randn(rows, 16, dtype=torch.float64, requires_grad=True) for rows in (700, 300))
    p = torch.randn(700, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(300, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(700, dtype=torch.float64), torch.randn(700, dtype=torch.float64)]
    terms = [Term("lse"), Term("sum", functor="softplus", row=p)]
    leaves = a, b, bias, p
    total, found = pair_sum("pair", Scores(a, b, None, bias, 0.5, "softcap", 3.0), terms, weights, backend="cpu", memory_budget=budget)
    wanted = pair_statistics("pair", Scores(a, b, None, bias, 0.5, "softcap", 3.0), terms, backend="eager")
    exact = sum((w * one.value).sum() for w, one in zip(weights, wanted))
    torch.testing.assert_close(total, exact)
    torch.testing.assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(exact, leaves))


def test_rows_that_do_not_count_add_nothing(backend):
    """Others do, also where their weight is 0."""
    a, b = torch.tensor([[torch.inf, 1.0], [1.0, 2.0]]), torch.eye(2, requires_grad=True)
    for counts, wanted in ((torch.tensor([False, True]), torch.tensor([1.0, 2.0]).logsumexp(0)), (None, torch.tensor(torch.nan))):
        total, _ = pair_sum("pair", Scores(a, b), [Term("lse")], [torch.tensor([0.0, 1.0])], counts, backend=backend)
        torch.testing.assert_close(total, wanted, equal_nan=True)


def test_one_operator_where_there_is_one():
    """And two sweeps where statistics of all rows come first, where one is of columns, and without a gradient."""
    a, b, q = torch.randn(9, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True), torch.randn(7, requires_grad=True)
    one = torch.ones(9)

    def operators(scores, term, weight=one):
        with Recorder() as ran:
            pair_sum("pair", scores, [term], [weight], backend="cpu")[0].sum()
        return ran.ops

    assert operators(Scores(a, b), Term("lse")) == ["pair_sum.cpu"]
    for scores, term, weight in (
        (Scores(a), Term("lse"), one), (Scores(a, b), Term("lse", side="column"), one[:7]),
        (Scores(a, b), Term("sum", functor="relu", column=q), one), (Scores(a.detach(), b.detach()), Term("lse"), one),
        (Scores(a, b), Term("lse"), one.clone().requires_grad_()),
    ):
        assert operators(scores, term, weight) == ["pair_forward.cpu"]
    with torch.no_grad():
        assert operators(Scores(a, b), Term("lse")) == ["pair_forward.cpu"]


def test_what_is_kept_are_gradients():
    a, b = (torch.randn(256, 4, requires_grad=True) for _ in range(2))
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        pair_sum("pair", Scores(a, b), [Term("lse")], [torch.ones(256)], backend="cpu", memory_budget=2**24)
    assert max(sizes) == 256 * 4


def test_backwards_of_one_graph():
    """Again and again, with other upstream gradients, whatever was done to the gradients before, and for second derivatives."""
    a, b = (torch.randn(rows, 4, dtype=torch.float64, requires_grad=True) for rows in (5, 6))
    weight = torch.rand(5, dtype=torch.float64)

    def loss(a, b, backend="cpu"):
        return pair_sum("pair", Scores(a, b), [Term("lse")], [weight], backend=backend)[0]

    total, exact = loss(a, b), (weight * (a @ b.t()).logsumexp(1)).sum()
    for upstream in (1.0, 0.25, 1.0, 0.0, -3.0):
        factor = torch.tensor(upstream, dtype=torch.float64)
        grads = [torch.autograd.grad(value, (a, b), factor, retain_graph=True) for value in (total, exact)]
        torch.testing.assert_close(*grads)
    assert torch.autograd.gradcheck(loss, (a, b)) and torch.autograd.gradgradcheck(loss, (a, b))
    for _ in range(3):
        torch.autograd.grad(total, a, retain_graph=True)[0].zero_()
        a.grad = None
        total.backward(retain_graph=True)
        torch.testing.assert_close(a.grad, torch.autograd.grad(exact, a, retain_graph=True)[0])
        a.grad.data.zero_()


def test_in_a_compiled_graph():
    a, b = (torch.randn(rows, 4, requires_grad=True) for rows in (70, 30))

    def loss(a, b):
        return 0.5 * pair_sum("pair", Scores(a, b), [Term("lse"), Term("max")], [torch.ones(len(a))], backend="cpu")[0]

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(a, b), (a, b)), torch.autograd.grad(loss(a, b), (a, b)))


def test_the_operator():
    assert unavailable("cpu", "cpu") is None  # which loads the operators
    a, b, weight = torch.randn(70, 4), torch.randn(30, 4), torch.rand(70)
    settings, params = pair._settings([Term("lse")], None, 1.0, 0, 1.0)
    run, inputs, want = torch.ops.fastloss.pair_sum.cpu, (a, b, None, None, None, None, None, params), [True, True] + [False] * 4
    torch.library.opcheck(run, ([weight], *inputs, *settings, want, 2**26))
    with pytest.raises(RuntimeError, match="set compared with itself"):
        run([weight], a, None, *inputs[2:], *settings, want, 2**26)
    with pytest.raises(RuntimeError, match="column's parameter"):
        run([weight], *inputs, *settings, [True] * 6, 2**26)
    with pytest.raises(RuntimeError, match="wanted a weight of each of 1 terms, got 0"):
        run([], *inputs, *settings, want, 2**26)
    with pytest.raises(RuntimeError, match="wanted 6 flags, got 2"):
        run([weight], *inputs, *settings, [True, True], 2**26)
    of_columns, _ = pair._settings([Term("lse", side="column")], None, 1.0, 0, 1.0)
    with pytest.raises(RuntimeError, match="weighted sums are of rows"):
        run([weight], *inputs, *of_columns, want, 2**26)


def test_gradients_of_scores_of_bfloat16_rows_round():
    """By half a unit of 8 bits each where the processor multiplies them; and so come closer than plain torch, which rounds scores too."""
    x, y, target = torch.randn(700, 48).bfloat16(), torch.randn(1001, 48).bfloat16(), torch.randint(1001, (700,))
    weight, index = torch.full((700,), 1 / 700), torch.arange(1001)

    def gradients(dtype, backend):
        leaves = [t.to(dtype).requires_grad_() for t in (x, y)]
        weights = [weight.to(pair.accumulate_dtype(dtype)), -weight.to(pair.accumulate_dtype(dtype))]
        total, _ = pair_sum("pair", Scores(*leaves), [Term("lse"), Term("sum", "positive")], weights, None, (target, index), backend=backend)
        return torch.autograd.grad(total, leaves)

    leaves = [t.detach().requires_grad_() for t in (x, y)]
    plain = torch.autograd.grad(torch.nn.functional.cross_entropy(leaves[0] @ leaves[1].t(), target), leaves)
    scores = (x.double() @ y.double().t()).requires_grad_()
    each = torch.autograd.grad(torch.nn.functional.cross_entropy(scores, target), scores)[0].abs()
    sizes = each @ y.double().abs(), each.t() @ x.double().abs()
    eps, differ = torch.finfo(torch.bfloat16).eps, []
    for got, rival, exact, size in zip(gradients(torch.bfloat16, "cpu"), plain, gradients(torch.float64, "eager"), sizes):
        error = (got.double() - exact).abs()
        assert (error <= 0.51 * eps * (exact.abs() + size)).all()
        assert error.norm() < (rival.double() - exact).norm()
        differ.append(bool((error > 0.51 * eps * exact.abs() + 1e-5 * size).any()))
    assert any(differ) == torch.cpu._is_avx512_bf16_supported()


def test_derivatives_by_weights(backend):
    """Which are no constants then: forward and backward, inside torch.func and outside."""
    a, b, weight, tangent = (torch.rand(*size, dtype=torch.float64) for size in ((5, 4), (6, 4), (5,), (5,)))
    a.requires_grad_()

    def loss(weight):
        asked = None if torch._C._are_functorch_transforms_active() else backend
        return pair_sum("pair", Scores(a, b), [Term("lse")], [weight], backend=asked)[0]

    lse = (a @ b.t()).logsumexp(1).detach()
    torch.testing.assert_close(torch.autograd.grad(loss(weight.clone().requires_grad_()), a), torch.autograd.grad(loss(weight), a))
    leaf = weight.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(leaf), leaf)[0], lse)
    torch.testing.assert_close(torch.func.jvp(loss, (weight,), (tangent,))[1].detach(), (tangent * lse).sum())
    torch.testing.assert_close(torch.func.grad(loss)(weight).detach(), lse)


def test_in_fake_tensors_and_traces():
    """Nothing is looked at that has no value yet."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def grads(a, b):
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        return torch.autograd.grad(2 * pair_sum("pair", Scores(a, b), [Term("lse")], [a.new_ones(5)], backend="cpu")[0], (a, b))

    a, b = torch.randn(5, 4), torch.randn(6, 4)
    for mode in ("real", "fake"):
        torch.testing.assert_close(make_fx(grads, tracing_mode=mode)(a, b)(a, b), grads(a, b))
    with FakeTensorMode():
        assert [g.shape for g in grads(torch.randn(5, 4), torch.randn(6, 4))] == [(5, 4), (6, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_at_work_are_bounded(dtype):
    """Also where the other set has no gradient, and of bfloat16 rows; those of all rows would be 67 MB."""
    def resident(key: str) -> int:
        return 1024 * int(re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])

    def run(rows: int) -> None:
        x, y = torch.randn(rows, 8).to(dtype).requires_grad_(), torch.randn(8192, 8).to(dtype)
        pair_sum("pair", Scores(x, y), [Term("lse")], [torch.ones(rows)], backend="cpu", memory_budget=2**22)

    run(64)  # starts threads
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present
    run(2048)
    assert resident("VmHWM") - before < 2.5e7
