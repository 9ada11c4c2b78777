"""Scores of listed pairs, stored scores, and rows made ready for the pair engine, against plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastloss
from fastloss import listed, pair
from fastloss.engine import accumulate_dtype
from fastloss.matrix import stored_scores
from fastloss.pair import Scores, Term, euclidean, pair_statistics


def sets(own: bool, dtype: torch.dtype = torch.float64, rows: int = 13, columns: int = 9, features: int = 21) -> list[torch.Tensor | None]:
    a = torch.randn(rows, features).to(dtype)
    a[3] = 0
    return [a.requires_grad_(), None if own else torch.randn(columns, features).to(dtype).requires_grad_()]


def pairs(entries: int, rows: int = 13, columns: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(rows, (entries,)), torch.randint(columns, (entries,))


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(accumulate_dtype(x.dtype))


SCORES = {
    "dot": lambda a, b: Scores(a, b, scale=0.5), "cosine": lambda a, b: Scores(a, b, unit=True), "distance": euclidean,
    "of unit rows": lambda a, b: euclidean(a, b, squared=True, unit=True),
    "biased": lambda a, b: Scores(a, b, wide(a).sum(1), None if b is None else wide(b).sum(1), 0.5, "softcap", 3.0),
}


def matrix(kind: str, a: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """The scores of all pairs by other functions of torch."""
    x = a.double()
    y = x if b is None else b.double()
    if kind == "dot":
        return 0.5 * x @ y.t()
    if kind == "cosine":
        return F.normalize(x) @ F.normalize(y).t()
    if kind == "biased":
        return 3 * torch.tanh((0.5 * x @ y.t() + x.sum(1, keepdim=True) + y.sum(1)) / 3)
    if kind == "distance":
        return torch.cdist(x, y)
    return torch.cdist(F.normalize(x), F.normalize(y)).square()


def gradients(value: torch.Tensor, leaves: list[torch.Tensor | None]) -> list[torch.Tensor]:
    upstream = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view(value.shape)
    return list(torch.autograd.grad((value.double() * upstream).sum(), [t for t in leaves if t is not None]))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("own", (False, True))
@pytest.mark.parametrize("kind", SCORES)
def test_listed_scores(kind, own, dtype, backend, monkeypatch):
    """Pairs listed twice count twice; chunks make no difference."""
    monkeypatch.setattr(listed, "CHUNK", 100)
    leaves = sets(own, dtype)
    i, j = pairs(40)
    i, j = (i[i != j], j[i != j]) if own else (i, j)  # the derivative of a distance of 0 is no matter of accuracy
    with fastloss.use_backend(backend):
        got = listed.listed("pair", SCORES[kind](*leaves), i, j)
    wanted = matrix(kind, *leaves)[i, j]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(got.double(), wanted, tolerance, 20 * tolerance)
    for mine, right in zip(gradients(got, leaves), gradients(wanted, leaves)):
        more = 0.02 if dtype == torch.bfloat16 else 20 * tolerance
        assert mine.dtype == dtype and torch.allclose(mine.double(), right.double(), more, more)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("codes", (False, True))
@pytest.mark.parametrize("own", (False, True))
@pytest.mark.parametrize("kind", ("cosine", "distance", "of unit rows"))
def test_rows_made_ready(kind, own, codes, dtype, backend):
    """The engine's statistics of cosines and distances, and their gradients, are those of the matrix."""
    leaves = sets(own, dtype)
    size = 13 if own else 9
    listing = torch.randint(0, 2, (size, 13), dtype=torch.uint8)
    listing.fill_diagonal_(0)
    about = {"codes": listing} if codes else {"skip": 0}
    if codes:
        mask = listing.t() > 0
    else:
        mask = ~torch.eye(13, size, dtype=torch.bool)
    (total,) = pair_statistics("pair", SCORES[kind](*leaves), [Term("sum", "positive" if codes else "all")], backend=backend, **about)
    wanted = torch.where(mask, matrix(kind, *leaves), 0.0).sum(1)
    tolerance = 1e-11 if dtype == torch.float64 else 5e-5
    assert torch.allclose(total.value.double(), wanted, tolerance, 20 * tolerance)
    for mine, right in zip(gradients(total.value, leaves), gradients(wanted, leaves)):
        more = 0.02 if dtype == torch.bfloat16 else 20 * tolerance
        assert mine.dtype == dtype and torch.allclose(mine.double(), right.double(), more, more)


def test_rows_of_any_length():
    """Tails of vectors; a row shorter than the least norm is divided by that, and NaN is not hidden."""
    for features in range(40):
        x = torch.randn(3, features, dtype=torch.float64, requires_grad=True)
        with torch.no_grad():
            x[1] *= 1e-13
        (total,) = pair_statistics("pair", Scores(x, torch.ones(2, features, dtype=torch.float64), unit=True), [Term("sum")], backend="cpu")
        wanted = (F.normalize(x) @ F.normalize(torch.ones(2, features, dtype=torch.float64)).t()).sum(1)
        assert torch.allclose(total.value, wanted, 1e-12)
        if features:
            assert torch.allclose(*(torch.autograd.grad(v[0] + 1e-12 * v[1], x)[0] for v in (total.value, wanted)), 1e-10, 1e-13)
    bad = torch.tensor([[1.0, float("nan")], [1.0, 1.0]])
    (total,) = pair_statistics("pair", Scores(bad, unit=True), [Term("sum")], backend="cpu")
    assert total.value.isnan().all()


def test_derivatives():
    a, b = sets(False, rows=5, columns=4, features=3)
    with torch.no_grad():
        a[3] = 1.0
    i, j = pairs(6, 5, 4)
    for kind in ("cosine", "of unit rows", "biased"):
        run = lambda x, y: listed.listed("pair", SCORES[kind](x, y), i, j)  # noqa: E731, B023
        assert gradcheck(run, (a, b)) and gradgradcheck(run, (a, b))
        every = lambda x, y: pair_statistics("pair", SCORES[kind](x, y), [Term("lse")], backend="cpu")[0].value  # noqa: E731, B023
        assert gradcheck(every, (a, b)) and gradgradcheck(every, (a, b))


def test_operators():
    a, b = (t.detach() for t in sets(False))
    i, j = pairs(40)
    ops = torch.ops.fastloss
    for op, given in (
        (ops.pair_listed, (a, b, i, j)), (ops.pair_listed_backward, (torch.randn(40).double(), i, 13, b, j)),
        (ops.pair_prepare, (a, True, True, None, 1e-12)), (ops.pair_prepare, (a, True, False, None, 1e-12)),
        (ops.pair_prepare, (a, False, True, a[0], 1e-12)), (ops.pair_prepare_backward, (a, a, a, a[:, 0].contiguous(), True, 1e-12)),
    ):
        torch.library.opcheck(op.cpu, given)
    with pytest.raises(IndexError, match="index 13 is out of bounds for 13 rows"):
        ops.pair_listed.cpu(a, b, i * 0 + 13, j)
    with pytest.raises(IndexError, match="index -1 is out of bounds"):
        ops.pair_listed.cpu(a, b, i, -1 - j * 0)
    with pytest.raises(RuntimeError, match="the other rows must be contiguous Double"):
        ops.pair_listed.cpu(a, b.float(), i, j)
    with pytest.raises(RuntimeError, match=r"rows must be contiguous float32 or float64 \(N, D\)"):
        ops.pair_prepare.cpu(a.t(), True, False, None, 1e-12)


def test_the_same_bits_for_any_number_of_threads():
    x, threads = torch.randn(600, 130, requires_grad=True), torch.get_num_threads()
    i, j = pairs(5000, 600, 600)
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            value = listed.listed("pair", euclidean(x, None, unit=True), i, j)
            (total,) = pair_statistics("pair", euclidean(x, None, unit=True), [Term("sum")], skip=0, backend="cpu")
            found.append((value, total.value, *gradients(value, [x]), *gradients(total.value, [x])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for more in found[1:] for a, b in zip(found[0], more))


def test_compiled():
    a, b = sets(False, torch.float32)
    i, j = pairs(30)

    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        lse = pair_statistics("pair", pair.euclidean(x, y, unit=True), [Term("lse")])[0].value
        return lse.sum() + listed.listed("pair", Scores(x, y, unit=True), i, j).sum()

    wanted, got = call(a, b), torch.compile(call, fullgraph=True, backend="aot_eager")(a, b)
    assert torch.allclose(got, wanted)
    for mine, right in zip(gradients(got, [a, b]), gradients(wanted, [a, b])):
        assert torch.allclose(mine, right, 1e-4, 1e-5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("own", (False, True))
@pytest.mark.parametrize("kind", SCORES)
def test_stored_scores(kind, own, dtype):
    leaves = sets(own, dtype)
    far = torch.ones(13, 13 if own else 9, dtype=torch.float64)
    far.fill_diagonal_(0)
    got = stored_scores("pair", SCORES[kind](*leaves)) * far
    wanted = torch.where(far > 0, matrix(kind, *leaves), 0.0)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert torch.allclose(got, wanted, tolerance, 20 * tolerance)
    for mine, right in zip(gradients(got, leaves), gradients(wanted, leaves)):
        more = 0.02 if dtype == torch.bfloat16 else 20 * tolerance
        assert mine.dtype == dtype and torch.allclose(mine.double(), right.double(), more, more)


def test_derivatives_of_stored_scores():
    a, b = sets(False, rows=5, columns=4, features=3)
    with torch.no_grad():
        a[3] = 1.0
    for kind in SCORES:
        run = lambda x, y: stored_scores("pair", SCORES[kind](x, y))  # noqa: E731, B023
        assert gradcheck(run, (a, b)) and gradgradcheck(run, (a, b))
