"""The pair engine's statistics and their gradients on every backend, against the formula in float64."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
import torch

import fastloss
from fastloss import pair
from fastloss._backends import unavailable
from fastloss._memory_budget import KEEP, MEMORY_BUDGET
from fastloss.engine import accumulate_dtype
from fastloss.pair import Scores, Term, pair_statistics
from test_memory import poisoned

INTERPRETED = ("triton",)  # run by an interpreter here, 50 times slower

CONSTANTS = {
    "linear": (1.5, -0.25), "relu": (-1.0, 0.5), "square": (0.75, 0.1), "softplus": (-2.0, 0.3), "circle": (-1.0, 1.25, -4.0, 0.75),
    "lifted": (-1.0, 0.4), "tuplet": (4.0, 0.0, 0.995, 0.0998),
}
BOUNDED = ("tuplet",)  # functors of scores that are cosines


@dataclass(frozen=True)
class Pairs:
    """One call of the engine; every number comes from the seed."""

    rows: int
    columns: int  # 0 for a set compared with itself
    features: int
    terms: tuple[tuple, ...]  # (reduce, mask, functor, side, row parameter, column parameter)
    masks: str = "labels"  # or "none", "codes"
    skip: int | None = None
    biases: bool = False
    transform: str = "none"
    seed: int = 0

    def build(self, dtype: torch.dtype) -> tuple[Scores, list[Term], dict, dict[str, torch.Tensor]]:
        """Scores, terms, the other arguments, and the leaves that gradients are compared of."""
        generator = torch.Generator().manual_seed(self.seed)
        own = self.columns == 0
        sizes = {"row": self.rows, "column": self.rows if own else self.columns}
        wide = accumulate_dtype(dtype)
        leaves: dict[str, torch.Tensor] = {}

        def leaf(name: str, *shape: int, of: torch.dtype = wide) -> torch.Tensor:
            made = torch.randn(*shape, generator=generator).bfloat16()  # numbers that every dtype has
            leaves[name] = made.to(of).requires_grad_()
            return leaves[name]

        bounded = any(functor in BOUNDED for _, _, functor, *_ in self.terms)
        a = leaf("a", sizes["row"], self.features, of=dtype)
        b = None if own else leaf("b", sizes["column"], self.features, of=dtype)
        if bounded:
            a, b = pair.normalised(a).to(dtype), None if own else pair.normalised(b).to(dtype)
        row_bias = leaf("row_bias", sizes["row"]) if self.biases else None
        column_bias = leaf("column_bias", sizes["column"]) if self.biases and not own else None
        scale = 1.0 if bounded else 0.5
        scores = Scores(a, b, row_bias, column_bias, scale, self.transform, 1.5)
        terms = [
            Term(reduce, mask, functor, CONSTANTS[functor], side, leaf(f"p{k}", sizes["row"]) if p else None,
                 leaf(f"q{k}", sizes["column"]) if q else None)
            for k, (reduce, mask, functor, side, p, q) in enumerate(self.terms)
        ]
        more: dict = {"skip": self.skip}
        if self.masks == "labels":
            labels = [torch.randint(-2, 3, (size,), generator=generator) * 7**5 for size in sizes.values()]
            more["labels"] = (labels[0], None if own else labels[1])
        elif self.masks == "codes":
            more["codes"] = torch.randint(0, 4, (sizes["column"], sizes["row"]), generator=generator, dtype=torch.uint8)
        return scores, terms, more, leaves


def evaluate(case: Pairs, dtype: torch.dtype, backend: str, **options) -> tuple[list, list, dict[str, torch.Tensor]]:
    """Values, counts, and gradients for random upstream gradients; of no pair the value is no part of what is differentiated."""
    scores, terms, more, leaves = case.build(dtype)
    found = pair_statistics("pair", scores, terms, backend=backend, **more, **options)
    generator = torch.Generator().manual_seed(case.seed + 1)
    total = 0.0
    for term, statistic in zip(terms, found):
        upstream = torch.randn(statistic.value.shape, generator=generator, dtype=torch.float64)
        if term.reduce != "max":
            total = total + (torch.where(statistic.value.isfinite(), statistic.value, 0.0).double() * upstream).sum()
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True) if torch.is_tensor(total) and total.requires_grad else ()
    by = {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in zip(leaves.items(), grads)}
    return [f.value.detach() for f in found], [f.count for f in found], by


def check(case: Pairs, dtype: torch.dtype, backend: str, **options) -> None:
    """Values, counts and gradients as the formula's in float64, as close as the formula in the dtype that sums are kept in."""
    truth = evaluate(case, torch.float64, "eager")
    peer = evaluate(case, accumulate_dtype(dtype), "eager")
    ours = evaluate(case, dtype, backend, **options)
    for which, count in enumerate(ours[1]):
        assert torch.equal(count.double(), truth[1][which]), f"{case}: count {which}"
    named = [(f"value {k}", *values) for k, values in enumerate(zip(ours[0], peer[0], truth[0]))]
    named += [(name, ours[2][name], peer[2][name], truth[2][name]) for name in truth[2]]
    for name, got, rival, wanted in named:
        finite = wanted.isfinite()
        assert torch.equal(got.isfinite(), finite), f"{case}: {name}: where it is finite"
        error, scale = (rival.double() - wanted)[finite].abs(), wanted[finite].abs()
        size = float(scale.max()) if scale.numel() else 0.0
        wide = torch.finfo(accumulate_dtype(dtype)).eps
        allowed = 4 * (float(error.max()) if error.numel() else 0.0) + 16 * wide * (1 + size) * case.features**0.5
        # Triton's interpreter truncates to bfloat16 where a GPU rounds to nearest.
        rounding = torch.finfo(got.dtype).eps * scale * (1.0 if backend in INTERPRETED else 0.51)
        wrong = (got.double() - wanted)[finite].abs() > allowed + rounding
        assert not wrong.any(), f"{case}: {name}: off by {float((got.double() - wanted)[finite].abs().max()):.3g}, allowed {allowed:.3g}"


SHAPES = ((1, 1, 1), (3, 5, 2), (16, 16, 16), (33, 70, 17), (65, 64, 40), (70, 0, 33), (2, 0, 3), (129, 257, 64))
KINDS = (("linear", "lse"), ("linear", "sum"), ("relu", "sum"), ("square", "sum"), ("softplus", "sum"), ("circle", "lse"),
         ("lifted", "sum"), ("tuplet", "sum"), ("relu", "lse"))


def every_case() -> list[Pairs]:
    """Each functor and reduction alone in every mask and side, and a few terms at once, over the shapes in turn."""
    shapes = itertools.cycle(SHAPES)
    cases = []
    for (functor, reduce), side, masks in itertools.product(KINDS, ("row", "column"), ("labels", "none", "codes")):
        rows, columns, features = next(shapes)
        mask = ("positive", "negative", "all")[len(cases) % 3]
        term = reduce, mask, functor, side, len(cases) % 2 == 0, len(cases) % 4 < 2
        bounded = functor in BOUNDED
        cases.append(
            Pairs(rows, columns, features, (term,), masks,
                  (None, 0, 3)[len(cases) % 3] if columns else 0 if bounded else (None, 0)[len(cases) % 2],
                  not bounded and len(cases) % 2 == 1,
                  "none" if bounded else pair.TRANSFORMS[len(cases) % 4], len(cases))
        )
    pos, neg = ("lse", "positive", "linear", "row", False, False), ("sum", "negative", "relu", "row", True, False)
    both = ("lse", "all", "linear", "row", False, False), ("lse", "all", "linear", "column", False, False)
    best = ("max", "negative", "linear", "row", False, False), ("max", "positive", "circle", "column", False, False)
    for rows, columns, features in SHAPES:
        skip = 0 if columns == 0 else None
        cases.append(Pairs(rows, columns, features, (pos, neg), skip=skip, seed=1))
        if columns:
            cases.append(Pairs(rows, columns, features, both, "none", seed=2))
            cases.append(Pairs(rows, columns, features, (*best, neg), "labels", seed=3))
        else:
            cases.append(Pairs(rows, columns, features, (pos, ("sum", "positive", "lifted", "row", True, True)), skip=0, seed=4))
    return cases


CASES = every_case()


def some(backend: str, most: int) -> list[Pairs]:
    """A fixed sample of the cases on a slow backend."""
    return random.Random(0).sample(CASES, most) if backend in INTERPRETED else CASES


def test_agrees_with_the_formula_in_double(compiled):
    for case in some(compiled, 24):
        check(case, torch.float64, compiled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_agrees_in_narrow_dtypes(compiled, dtype, exact_products):
    # Not those whose counts depend on the last bit of a score; rounded rows are not of norm 1.
    without = ("relu", "square", "lifted", *(BOUNDED if dtype != torch.float32 else ()))
    for case in some(compiled, 8):
        if not any(reduce == "max" or functor in without for reduce, _, functor, *_ in case.terms):
            check(case, dtype, compiled)


@pytest.mark.parametrize("budget", [0, 2 * 8 * 64 * 70, 2**24])
def test_any_budget_gives_the_same(compiled, budget):
    """Scores, and gradients of scores, computed twice or kept: of no rows, of some, of all."""
    for case in some(compiled, 4)[::5]:
        check(case, torch.float64, compiled, memory_budget=budget)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blocks_whose_scores_are_kept_beside_others(threads, dtype):
    """Of blocks that go over the other set together any number may be kept."""
    case = Pairs(520, 200, 6, (("lse", "all", "linear", "row", False, False), ("lse", "all", "linear", "column", False, False)), "none")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kept in range(1, 9):
            budget = 2 * kept * 64 * 200 * accumulate_dtype(dtype).itemsize
            grads, wanted = (evaluate(case, dtype, "cpu", memory_budget=room)[2] for room in (budget, None))
            for name, grad in grads.items():
                near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 0.01, "atol": 0.01}
                torch.testing.assert_close(grad, wanted[name], **near)
    finally:
        torch.set_num_threads(before)


def test_labels_that_are_no_number(backend):
    """Equal none, and are in the way of none, wherever they stand."""
    a = torch.randn(12, 4, dtype=torch.float64)
    for place in range(12):
        labels = torch.arange(12) % 3 + 0.0
        labels[place] = torch.nan
        terms = [Term("sum", "positive"), Term("sum", "positive", side="column")]
        found = pair_statistics("pair", Scores(a, a + 1), terms, labels=(labels.double(), None), backend=backend)
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        scores = a @ (a + 1).t()
        for dim, one in zip((1, 0), found):
            torch.testing.assert_close(one.value, torch.where(same, scores, 0.0).sum(dim))
            assert torch.equal(one.count, same.sum(dim).double())


def test_kept_scores_are_what_the_backward_reads():
    assert unavailable("cpu", "cpu") is None  # which loads the operators
    a, b, bias = torch.randn(150, 8), torch.randn(300, 8), torch.randn(300)
    settings, params = pair._settings([Term("lse")], None, 2.0, pair.TRANSFORMS.index("softcap"), 3.0)
    inputs = a, b, None, bias, None, None, None, params
    value, _, kept = torch.ops.fastloss.pair_forward.cpu(*inputs, *settings, 4 * 300 * 150)
    for room in (4 * 300 * 150, 2**24):
        torch.library.opcheck(torch.ops.fastloss.pair_forward.cpu, (*inputs, *settings, room))
    scores = 3 * torch.tanh((2 * a @ b.t() + bias) / 3)
    torch.testing.assert_close(kept.transpose(1, 2).reshape(128, 300), scores[:128], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value, scores.logsumexp(1))
    grads, want = [torch.ones(150)], [True, True, False, False, False, False]
    computed = torch.ops.fastloss.pair_backward.cpu(grads, [value], *inputs, *settings, want, 2**26)
    for same, given in ((True, kept), (False, torch.zeros_like(kept))):
        found = torch.ops.fastloss.pair_backward.cpu(grads, [value], *inputs, *settings, want, 2**26, given)
        assert torch.equal(found[0][:128], computed[0][:128]) == same and torch.equal(found[0][128:], computed[0][128:])
    with pytest.raises(RuntimeError, match="scores cannot be kept in -1 bytes"):
        torch.ops.fastloss.pair_forward.cpu(*inputs, *settings, -1)
    with pytest.raises(RuntimeError, match=r"kept scores must be .*\(blocks, 300, 64\), got \[2, 299, 64\]"):
        torch.ops.fastloss.pair_backward.cpu(grads, [value], *inputs, *settings, want, 2**26, kept[:, 1:])


def test_a_budget_is_what_scores_are_kept_in(compiled):
    """Without one nothing of the scores' size; with one as many as fit, beside 64 MB or in half of it, where the backend keeps any."""
    a, b = (torch.randn(256, 4, requires_grad=True) for _ in range(2))
    for budget, rows in ((None, 0), (0, 0), (2 * 4 * 256 * 130, 128), (2**20, 256), (2**27, 256)):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            pair_statistics("pair", Scores(a, b), [Term("lse")], backend=compiled, memory_budget=budget)
        assert max(sizes) == max(256 * 4, 256 * (rows if compiled in KEEP else 0))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_kept_that_no_backward_will_read(monkeypatch, mode):
    asked: list[int] = []
    run = pair._FORWARD["cpu"]
    monkeypatch.setitem(pair._FORWARD, "cpu", lambda *given: asked.append(given[-1]) or run(*given))
    a = torch.randn(64, 4, requires_grad=mode is not torch.enable_grad)
    with mode():
        pair_statistics("pair", Scores(a, a + 1), [Term("lse")], backend="cpu", memory_budget=2**20)
    assert asked == [0]
    pair_statistics("pair", Scores(torch.randn(64, 4, requires_grad=True)), [Term("lse")], backend="cpu", memory_budget=2**20)
    assert asked == [0, 2**19]
    pair_statistics("pair", Scores(torch.randn(64, 4, requires_grad=True)), [Term("lse")], backend="cpu", memory_budget=2**28)
    assert asked == [0, 2**19, 2**28 - MEMORY_BUDGET]


def test_empty_sets(compiled):
    for rows, columns in ((0, 4), (4, 0)):
        a = torch.randn(rows, 3, requires_grad=True)
        b = torch.randn(columns, 3, requires_grad=True)
        terms = [Term("lse"), Term("sum", side="column"), Term("max"), Term("max", side="column")]
        lse, total, best, other = pair_statistics("pair", Scores(a, b), terms, backend=compiled)
        assert torch.equal(lse.value, torch.full((rows,), -torch.inf)) and torch.equal(total.value, torch.zeros(columns))
        assert torch.equal(best.count, torch.full((rows,), -1.0)) and torch.equal(other.count, torch.full((columns,), -1.0))
        total.value.sum().backward()
        assert torch.equal(b.grad, torch.zeros_like(b)) and torch.equal(a.grad, torch.zeros_like(a))


def test_gradients_of_what_takes_no_part(compiled):
    """A statistic that nothing is made of leaves the gradients of its own parameters 0, and the others as they are."""
    a, b, p, q = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((9, 4), (6, 4), (9,), (6,)))
    terms = [Term("lse"), Term("sum", functor="softplus", row=p, column=q), Term("max", row=p, side="column")]
    with poisoned():
        lse = pair_statistics("pair", Scores(a, b), terms, backend=compiled)[0].value
        grads = torch.autograd.grad(lse.sum(), (a, b, p, q), allow_unused=True)
    wanted = torch.autograd.grad((a @ b.t()).logsumexp(1).sum(), (a, b))
    assert all(torch.allclose(got, want, rtol=1e-12, atol=1e-14) for got, want in zip(grads, wanted))
    assert all(grad is None or torch.equal(grad, torch.zeros_like(grad)) for grad in grads[2:])


def test_sets_without_features(compiled):
    a = torch.randn(3, 0, requires_grad=True)
    (lse,) = pair_statistics("pair", Scores(a, torch.randn(5, 0)), [Term("lse")], backend=compiled)
    assert torch.allclose(lse.value, torch.full((3,), 5.0).log())
    lse.value.sum().backward()
    assert a.grad.shape == (3, 0)


def test_what_comes_in_another_dtype_is_widened(backend):
    """Biases and parameters beside sets in float64, whose kernels read numbers of eight bytes."""
    a, b, bias = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64), torch.randn(5)
    narrow, wide = (
        pair_statistics("pair", Scores(a, b, t), [Term("sum", functor="relu", row=t)], backend=backend)[0].value for t in (bias, bias.double())
    )
    assert torch.equal(narrow, wide)


def test_views_give_the_same(compiled):
    a, b = torch.randn(3, 9), torch.randn(12, 6)
    plain = pair_statistics("pair", Scores(a.t().contiguous(), b[:, ::2].contiguous()), [Term("lse")], backend=compiled)[0].value
    view = pair_statistics("pair", Scores(a.t(), b[:, ::2]), [Term("lse")], backend=compiled)[0].value
    assert torch.equal(view, plain)


def test_wrong_arguments(backend):
    a = torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"pair: embeddings must be \(N, D\) and \(M, D\), got \(3, 2\) and \(4, 3\)"):
        pair_statistics("pair", Scores(a, torch.randn(4, 3)), [Term("lse")], backend=backend)
    with pytest.raises(ValueError, match=r"pair: embeddings must be .*, got \(3,\)"):
        pair_statistics("pair", Scores(a[:, 0]), [Term("lse")], backend=backend)
    with pytest.raises(ValueError, match="pair: wanted 1 to 4 terms, got 5"):
        pair_statistics("pair", Scores(a), [Term("lse")] * 5, backend=backend)


@pytest.mark.parametrize("features", [1, 2, 7, 64, 130])
@pytest.mark.parametrize("enabled", [True, False])
def test_scores_of_bfloat16_rows_are_not_rounded(features, enabled):
    """Whether the processor multiplies them itself or torch may not use that."""
    a, b = torch.randn(70, features).bfloat16(), torch.randn(300, features).bfloat16()
    with torch.backends.mkldnn.flags(enabled=enabled):
        found = pair_statistics("test", Scores(a, b), [Term("sum", "all"), Term("max", "all")], backend="cpu")
    exact = a.double() @ b.double().t()
    size = (a.double().abs() @ b.double().abs().t()).amax(1)
    assert ((found[1].value - exact.amax(1)).abs() <= 1e-6 * size).all()
    assert ((found[0].value - exact.sum(1)).abs() <= 1e-6 * 300 * size).all()


def test_a_budget_for_a_block():
    sizes: list[int] = []
    a, b = (torch.randn(256, 4, requires_grad=True) for _ in range(2))

    def loss(a, b):
        (found,) = pair_statistics("pair", Scores(a, b), [Term("lse")], backend="cpu")
        return found.value.sum()

    def most(run):
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            return torch.autograd.grad(run(a, b), (a, b)), max(sizes)

    wanted, without = most(loss)
    with fastloss.use_memory_budget(2**20):
        kept, within = most(loss)
        with fastloss.use_memory_budget(None):
            assert most(loss)[1] == without
    assert (without, within, most(loss)[1]) == (256 * 4, 256 * 256, without)
    torch.testing.assert_close(kept, wanted)
    for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="use_memory_budget: memory_budget must"), fastloss.use_memory_budget(wrong):
            pass
        with pytest.raises(error, match="pair: memory_budget must"):
            pair_statistics("pair", Scores(a, b), [Term("lse")], backend="cpu", memory_budget=wrong)
    with fastloss.use_memory_budget(2**80):
        torch.testing.assert_close(most(loss)[0], wanted)


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_a_budget_in_a_compiled_graph(dynamic):
    """Another number of rows is no reason to compile again where it is none without a budget."""
    def loss(a, b):
        (found,) = pair_statistics("pair", Scores(a, b), [Term("lse")], backend="cpu")
        return found.value.sum()

    from torch._dynamo.testing import CompileCounterWithBackend

    frames = []
    for budget in (None, 2**18):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=dynamic)
        with fastloss.use_memory_budget(budget):
            for rows in (128, 256, 200, 70):
                a, b = (torch.randn(rows, 4, requires_grad=True) for _ in range(2))
                torch.testing.assert_close(torch.autograd.grad(compiled(a, b), (a, b)), torch.autograd.grad(loss(a, b), (a, b)))
        frames.append(counter.frame_count)
    assert frames[0] == frames[1] <= 4


@pytest.mark.parametrize(
    "rows, columns, features, budget", [(7, 3, 6, None), (70, 0, 34, None), (333, 1001, 48, 0), (333, 1001, 48, 2**20)]
)
def test_gradients_of_scores_round_to_bfloat16(rows, columns, features, budget):
    """Of bfloat16 rows, where the processor multiplies them itself: each term of a sum is off by half a unit of 8 bits, no more."""
    x, y = torch.randn(rows, features).bfloat16(), torch.randn(columns or rows, features).bfloat16()
    terms = [Term("lse"), Term("lse", side="column")]

    def gradients(dtype, backend):
        leaves = [t.detach().to(dtype).requires_grad_() for t in ((x, y) if columns else (x,))]
        scores = Scores(leaves[0], leaves[1] if columns else None, scale=0.3)
        found = pair_statistics("pair", scores, terms, backend=backend, memory_budget=budget)
        return torch.autograd.grad(sum(one.value.sum() for one in found), leaves)

    scores = (0.3 * x.double() @ (y if columns else x).double().t()).requires_grad_()
    each = torch.autograd.grad(scores.logsumexp(1).sum() + scores.logsumexp(0).sum(), scores)[0]
    sizes = (each @ y.double().abs(), each.t() @ x.double().abs()) if columns else ((each + each.t()) @ x.double().abs(),)
    eps = torch.finfo(torch.bfloat16).eps
    differ = []
    for got, exact, size in zip(gradients(torch.bfloat16, "cpu"), gradients(torch.float64, "eager"), sizes):
        assert ((got.double() - exact).abs() <= 0.51 * eps * (exact.abs() + 0.3 * size)).all()
        differ.append(bool(((got.double() - exact).abs() > 0.51 * eps * exact.abs() + 1e-5 * size).any()))
    assert any(differ) == torch.cpu._is_avx512_bf16_supported()
    for got, exact in zip(gradients(torch.float32, "cpu"), gradients(torch.float64, "eager")):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)
