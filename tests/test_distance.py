"""Distance transforms and the losses over them, on the backends that have them."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastloss
import fastloss.functional as ours
from fastloss.cases import LAYOUTS
from fastloss.distance import distance_transform, formula
from fastloss.distance_cases import MASKS, DistanceCase
from fastloss.fuzz import DTYPES, run
from fastloss.oracle import check
from fastloss.registry import LOSSES
from graphs import recording
from test_memory import poisoned

ENGINE = "distance"
BACKENDS = ("eager", "cpu")
on_both = pytest.mark.parametrize("where", BACKENDS)


def nearest(mask: torch.Tensor) -> torch.Tensor:
    """The definition: the distance of each element of one sample to the nearest of the other value."""
    places = torch.cartesian_prod(*(torch.arange(n) for n in mask.shape)).view(mask.numel(), mask.dim()).double()
    away = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    away[mask.flatten().unsqueeze(1) == mask.flatten()] = math.inf
    found = away.amin(1)
    return torch.where(found.isfinite(), found, 0.0).view(mask.shape)


@on_both
@pytest.mark.parametrize("shape", [(9,), (1,), (6, 7), (1, 8), (5, 1), (3, 4, 5), (2, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("masks", MASKS)
def test_distances_are_their_definition(where, shape, masks):
    fastloss.explain(ours.boundary_loss, torch.rand(1, 1, 1), torch.zeros(1, 1, 1))  # loads the cpu backend
    mask = MASKS[masks]((3, *shape), torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        got = distance_transform(mask, dtype, where)
        assert got.dtype == dtype and got.is_contiguous()
        torch.testing.assert_close(got.double(), torch.stack([nearest(m) for m in mask]), rtol=tolerance, atol=tolerance)


def test_many_lines_on_any_number_of_threads():
    fastloss.explain(ours.boundary_loss, torch.rand(1, 1, 1), torch.zeros(1, 1, 1))
    mask = torch.rand(2, 300, 170, generator=torch.Generator().manual_seed(0)) < 0.01
    torch.set_num_threads(1)
    wanted = distance_transform(mask, torch.float32, "cpu")
    torch.testing.assert_close(wanted, formula(mask, torch.float32), rtol=1e-6, atol=0)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(distance_transform(mask, torch.float32, "cpu"), wanted)
    assert torch.equal(distance_transform(mask.mT, torch.float32, "cpu"), wanted.mT)
    assert distance_transform(mask[:, :0], torch.float32, "cpu").shape == (2, 0, 170)


def test_opcheck():
    mask = torch.rand(2, 5, 4) < 0.5
    torch.library.opcheck(torch.ops.fastloss.distance_transform.cpu, (mask, torch.float64))
    for bad, dtype in ((mask.float(), torch.float32), (mask, torch.float16)):
        with pytest.raises(RuntimeError, match="distance_transform: (mask|dtype) must be"):
            torch.ops.fastloss.distance_transform.cpu(bad, dtype)


R2 = math.sqrt(2)
BY_HAND = [
    ("boundary", [[[[0.5, 1.0, 0.25]]]], [[[[1, 0, 0]]]], {"reduction": "none"}, [[[[-0.5, 1.0, 0.5]]]]),
    ("boundary", [[[[1.0, 1.0], [1.0, 1.0]]]], [[[[1, 0], [0, 0]]]], {"reduction": "sum"}, 1 + R2),
    ("boundary", [[[1.0, 0.5]], [[0.5, 0.5]]], [[[1, 1]], [[0, 0]]], {}, 0.0),
    # Prediction 0 1 1 0, truth 0 0 1 0: squared distances 1 1 1 1 and 4 1 1 1, so the error of 1 is weighed by 2.
    ("hausdorff_dt", [[[0.0, 1.0, 1.0, 0.0]]], [[[0, 0, 1, 0]]], {}, 0.5),
    ("hausdorff_dt", [[[0.5, 0.0, 1.0]]], [[[0, 0, 1]]], {"alpha": 1.0}, 0.25 * 4 / 3),
    ("hausdorff_dt", [[[0.9, 0.9]]], [[[0, 0]]], {}, 0.0),
    ("hausdorff_dt", [[[0.5, 0.5, 0.5], [0.0, 0.25, 1.0]]], [[[2, 0, 1]]], {"to_onehot_y": True}, 0.0625 * 2 / 3),
]


@on_both
@pytest.mark.parametrize(("name", "scores", "target", "options", "wanted"), BY_HAND)
def test_by_hand(where, name, scores, target, options, wanted):
    got = LOSSES[name].function(torch.tensor(scores, dtype=torch.float64), torch.tensor(target), **options, backend=where)
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_every_loss_is_computed_by_hand(loss):
    assert loss in {name for name, *_ in BY_HAND}


@on_both
def test_cases(loss, where):
    cases = [
        DistanceCase(shape=shape, dtype=dtype, masks=masks, reduction=reduction, layout=layout, target_dtype=target, flags=flags).of(loss)
        for shape in ((2, 3, 9), (2, 1, 4, 5), (1, 2, 3, 4, 2), (0, 2, 3), (2, 2, 0))
        for dtype in DTYPES
        for masks in MASKS
        for reduction in ("mean", "none", "sum")
        for layout in LAYOUTS
        for target in ("int64", "bool", "float32")
        for flags in ((), ("include_background", "batch"))
    ]
    for case in random.Random(0).sample(cases, 60):
        check(case, None, where)
    with poisoned():
        check(cases[7], None, where)


@pytest.mark.slow
@on_both
def test_random_cases(loss, where):
    finding = run(loss, where, examples=120, seed=11)
    assert finding is None, finding.script


@on_both
def test_derivatives(loss, where):
    call = DistanceCase(shape=(2, 2, 3, 3), dtype="float64").of(loss).build()
    function = lambda x: LOSSES[loss].function(x, call.target, **call.options, backend=where)  # noqa: E731
    x = call.input.requires_grad_()
    assert gradcheck(function, [x])
    if loss != "boundary":  # which is linear
        assert gradgradcheck(function, [x])
    (wanted,) = torch.autograd.grad(function(x), x)
    if where == "eager":
        torch.testing.assert_close(torch.func.grad(function)(x.detach()), wanted)
    torch._dynamo.reset()
    graphs: list = []
    value = torch.compile(function, fullgraph=True, backend=recording(graphs))(x)
    torch.testing.assert_close(value, function(x))
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], wanted)
    assert graphs[0] == [] if where == "eager" else set(graphs[0]) == {"distance_transform.cpu"}


@on_both
def test_a_known_map_is_used_as_it_is(where):
    p, t = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5) < 0.5
    distance = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(ours.boundary_loss(p, t, distance, backend=where), (p * distance).mean())


@on_both
def test_activations_and_background(where):
    x, t = torch.randn(2, 3, 5, 4), torch.randint(2, (2, 3, 5, 4))
    for options, p in (({"sigmoid": True}, torch.sigmoid(x)), ({"softmax": True}, torch.softmax(x, 1))):
        wanted = ours.hausdorff_dt_loss(p, t, backend=where)
        torch.testing.assert_close(ours.hausdorff_dt_loss(x, t, **options, backend=where), wanted)
        torch.testing.assert_close(ours.hausdorff_dt_loss(p[:, 1:], t[:, 1:], include_background=True, backend=where), wanted)
    half = ours.hausdorff_dt_loss(torch.zeros(1, 1, 400, 400, dtype=torch.float16), torch.ones(1, 1, 400, 400).triu(), backend="cpu")
    assert half.dtype == torch.float16 and half.isfinite()


X, T = torch.rand(2, 3, 4), torch.zeros(2, 3, 4)
BAD = [
    ("boundary", (X.tolist(), T), {}, TypeError, ["input", "list"]),
    ("boundary", (X, None), {}, TypeError, ["target", "NoneType"]),
    ("boundary", (X, T[:1]), {}, ValueError, ["(2, 3, 4)", "(1, 3, 4)"]),
    ("boundary", (X[0], T[0]), {}, ValueError, ["3 or more", "got 2"]),
    ("boundary", (X, T), {"reduction": "avg"}, ValueError, ["avg", "'mean'"]),
    ("hausdorff_dt", (X.long(), T), {}, NotImplementedError, ["float32", "int64"]),
    ("hausdorff_dt", (X, T), {"sigmoid": True, "softmax": True}, ValueError, ["sigmoid", "softmax"]),
    ("hausdorff_dt", (X, T), {"to_onehot_y": True}, ValueError, ["(N, 1, d1, ...)", "(2, 3, 4)"]),
    *((name, (X, T), {"backend": backend}, RuntimeError, [f"{name} has no {backend} kernels", "eager, cpu"])
      for name, backend in itertools.product(("boundary", "hausdorff_dt"), ("triton", "cuda"))),
]


@pytest.mark.parametrize(("name", "tensors", "options", "kind", "words"), BAD)
def test_bad_calls(name, tensors, options, kind, words):
    with pytest.raises(kind) as raised:
        LOSSES[name].function(*tensors, **options)
    assert type(raised.value) is kind
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_explain_names_what_a_loss_lacks():
    told = fastloss.explain(ours.boundary_loss, X, T)
    assert told.backend == "cpu" and told.others["triton"] == "boundary has no triton kernels"
