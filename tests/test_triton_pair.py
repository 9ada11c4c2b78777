"""What only the Triton backend of the pair engine has to show: both roles of a set with codes, its tiles, and its products of 16 bits."""

from __future__ import annotations

import pytest
import torch

from fastloss import pair
from fastloss.kernels import launch, tuning
from fastloss.kernels import pair as kernels
from fastloss.pair import Scores, Term, pair_statistics
from test_memory import poisoned
from test_triton import same_in_any_order

TERMS = (("lse", "positive", "linear", "row"), ("sum", "negative", "relu", "column"), ("sum", "all", "softplus", "row"))


def run(rows: int, columns: int, features: int, codes: bool, backend: str = "triton", dtype=torch.float64) -> list[torch.Tensor]:
    """Every value and count, and every gradient for random upstream gradients; 0 columns for a set compared with itself."""
    generator = torch.Generator().manual_seed(0)
    alone = columns == 0
    sizes = rows, rows if alone else columns
    leaves = []

    def leaf(*shape: int) -> torch.Tensor:
        leaves.append(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_())
        return leaves[-1]

    sets = leaf(rows, features), None if alone else leaf(columns, features)
    scores = Scores(*sets, leaf(rows), None if alone else leaf(columns), 0.5, "softcap")
    terms = [Term(reduce, mask, name, (0.7, 0.1), side, leaf(sizes[0]), leaf(sizes[1])) for reduce, mask, name, side in TERMS]
    terms.append(Term("max", "positive", side="column"))
    more: dict = {"labels": tuple(torch.randint(3, (size,), generator=generator) for size in sizes[: 2 - alone]) + (None,) * alone}
    if codes:
        more = {"codes": torch.randint(4, sizes[::-1], generator=generator, dtype=torch.uint8)}
    found = pair_statistics("pair", scores, terms, backend=backend, skip=0, **more)
    total = sum((f.value * torch.randn(f.value.shape, generator=generator, dtype=torch.float64)).sum() for f in found[:3])
    return [t.detach() for f in found for t in f] + list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("codes", [False, True], ids=["labels", "codes"])
@pytest.mark.parametrize("rows, columns, features", [(70, 0, 40), (70, 0, 3), (67, 133, 40)])
def test_fills_every_output(rows, columns, features, codes):
    """Outputs full of NaN beforehand, sizes that blocks do not divide, and codes that are not symmetric."""
    with poisoned():
        ours = run(rows, columns, features, codes)
    for found, wanted in zip(ours, run(rows, columns, features, codes, "eager"), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("columns", [0, 33])
def test_order_of_programs_does_not_matter(monkeypatch, columns):
    monkeypatch.setattr(kernels, "INTERPRETER_TILE", (16, 16, 16))
    same_in_any_order(monkeypatch, lambda: run(33, columns, 17, False))


@pytest.mark.parametrize("tile", [(16, 16, 16), (64, 16, 64)])
def test_tiles_of_any_size_agree(monkeypatch, tile):
    expected = run(67, 45, 40, True)
    monkeypatch.setattr(kernels, "INTERPRETER_TILE", tile)
    for found, wanted in zip(run(67, 45, 40, True), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size, upstream", [(2.0**-10, 1e-4), (1.0, 1.0), (32.0, 3e5)])
def test_gradients_of_narrow_sets_are_formed_in_float32(size, upstream, dtype):
    """Gradients to scores from far below to far above what float16 has, over the rows and in one, of sums that float16 does have."""
    generator = torch.Generator().manual_seed(0)
    a, b = (size * torch.randn(n, 40, generator=generator) for n in (12, 150))
    grad = upstream * 2.0 ** torch.arange(-6.0, 6.0)
    shift = torch.linspace(-12, 0, 150)  # later blocks of pairs weigh more

    def gradients(backend: str, widen: torch.dtype) -> tuple[torch.Tensor, ...]:
        leaves = [t.to(dtype).to(widen).requires_grad_() for t in (a, b)]
        wide = pair.accumulate_dtype(widen)
        scores = Scores(*leaves, None, shift.to(wide), 0.1 / size**2)
        (found,) = pair_statistics("pair", scores, [Term("lse")], backend=backend)
        return torch.autograd.grad(found.value, leaves, grad.to(wide))

    for found, wanted in zip(gradients("triton", dtype), gradients("eager", torch.float64), strict=True):
        assert found.dtype == dtype and found.isfinite().all()
        rounding = torch.finfo(dtype).eps * wanted.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((found.double() - wanted).abs() <= rounding + 2e-6 * wanted.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("warp_size", [32, 64])
def test_configuration(monkeypatch, warp_size):
    """Tiles that tensor cores take, and threads without too many numbers of a tile, whatever the number of terms."""
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    monkeypatch.setattr(launch, "warp_size", lambda: warp_size)
    for (step, itemsize), table in tuning.PAIR.items():
        dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
        assert table[-1][0] is None
        for features in (0, 1, 16, 17, 128, 129, 1000):
            tiles = [kernels.configuration(step, features, terms, dtype) for terms in range(1, 9)]
            for tile in tiles:
                assert all(size >= 16 and size & (size - 1) == 0 for size in tile[:4])
                assert tile.rows * tile.block <= 32 * tile.num_warps * warp_size
                assert tile.width == tile.depth if features <= tile.depth else tile.width % 16 == 0
            assert all(few.rows * few.block >= many.rows * many.block for few, many in zip(tiles, tiles[1:]))


@pytest.mark.parametrize("alone", [False, True])
def test_launchers_read_no_data(monkeypatch, alone):
    """On tensors without data, whatever looks at a value raises."""
    launched = []
    monkeypatch.setattr(launch, "run", lambda kernel, programs, *_, **__: launched.append((kernel, programs)))
    a, b = torch.empty(130, 40, device="meta"), None if alone else torch.empty(70, 40, device="meta")
    terms = [Term("lse"), Term("sum", side="column")]
    settings, params = pair._settings(terms, None, 1.0, 0, 1.0)
    values = kernels.pair_forward(a, b, None, None, None, None, None, params, *settings)[::2]
    kernels.pair_backward(values, values, a, b, None, None, None, None, None, params, *settings, [True] * 8, 0)
    forward, backward = kernels.pair_forward_kernel, kernels.pair_backward_kernel
    # Rows in blocks of 64, features in blocks of 32
    assert launched == ([(forward, 3), (backward, 6)] if alone else [(forward, 3), (forward, 2), (backward, 6), (backward, 4)])


def test_only_what_is_wanted_is_launched(monkeypatch):
    launched = []
    monkeypatch.setattr(launch, "run", lambda kernel, programs, device, own, *_, **__: launched.append(len(own)))
    a, b = torch.empty(130, 4, device="meta"), torch.empty(70, 4, device="meta")
    settings, params = pair._settings([Term("lse", row=a[:, 0]), Term("max")], None, 1.0, 0, 1.0)
    for want, rows in (([True] + [False] * 7, [130]), ([False, True] + [False] * 6, [70]), ([False] * 4 + [True] + [False] * 3, [130])):
        kernels.pair_backward([a[:, 0], None], [a[:, 0]] * 2, a, b, None, None, None, None, None, params, *settings, want, 0)
        assert launched == rows
        launched.clear()


def test_terms_without_a_gradient_give_0(monkeypatch):
    a = torch.randn(5, 3)
    settings, params = pair._settings([Term("max", row=a[:, 0], column=a[:, 1]), Term("lse", row=a[:, 0])], None, 1.0, 0, 1.0)
    inputs = a, a, None, None, None, None, None, params
    values = torch.ops.fastloss.pair_forward.triton(*inputs, *settings)[::2]
    backward = torch.ops.fastloss.pair_backward.triton
    with poisoned():
        grads = backward([None, a[:, 0]], values, *inputs, *settings, [True] * 8, 0)
        for grad in grads[4:6]:
            assert torch.equal(grad, torch.zeros(5))
        assert grads[6].count_nonzero() == 5 and grads[0].isfinite().all()
        monkeypatch.setattr(launch, "run", None)
        for grad in backward([None, None], values, *inputs, *settings, [True] * 8, 0):
            assert not grad.count_nonzero()


def test_impossible_pairs():
    """Scores of -inf, alone in a row, and in the whole first block of another: the same as without them."""
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(200, 4, dtype=torch.float64)
    bias = torch.zeros(3, dtype=torch.float64), torch.zeros(200, dtype=torch.float64)
    bias[0][1], bias[1][:150] = -torch.inf, -torch.inf
    possible = [t == 0 for t in bias]

    def run(backend: str, *given: torch.Tensor) -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in given]
        found = pair_statistics("pair", Scores(*leaves), [Term("lse"), Term("lse", side="column")], backend=backend)
        grads = torch.autograd.grad([f.value for f in found], leaves, [torch.ones_like(f.value) for f in found])
        return [*(f.value.detach() for f in found), *grads]

    ours = run("triton", a, b, *bias)
    expected = run("eager", *(t[kept] for t, kept in zip((a, b, *bias), possible * 2)))
    for which, (found, wanted, kept) in enumerate(zip(ours, expected, possible * 3, strict=True)):
        torch.testing.assert_close(found[kept], wanted)
        assert (found[~kept] == (-torch.inf if which < 2 else 0.0)).all()


def test_too_many_terms_are_refused():
    given = [torch.ones(2, 3), *[None] * 6, [None] * 10, None, 1.0, 0, 1.0, [0] * 20, [0.0] * 20]
    with pytest.raises(RuntimeError, match="wanted 1 to 4 terms, got 5"):
        torch.ops.fastloss.pair_forward.triton(*given)


def test_tf32_is_used_where_torch_may(monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    driver = kernels.triton.runtime.driver
    target = type("Target", (), {"backend": "cuda"})
    monkeypatch.setattr(type(driver), "active", property(lambda _: type("Driver", (), {"get_current_target": lambda _: target})()))
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        cases = ("cuda", "none", "ieee"), ("cuda", "tf32", "tf32"), ("cuda", "ieee", "ieee"), ("hip", "tf32", "ieee")
        for target.backend, matmul.fp32_precision, wanted in cases:
            assert kernels.precision(torch.float32) == wanted
            assert kernels.precision(torch.float64) == kernels.precision(torch.bfloat16) == "ieee"
    finally:
        matmul.fp32_precision = before
