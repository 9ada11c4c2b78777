"""Losses of the pair engine: values by hand, against definitions with whole score matrices, extremes, derivatives, and what they refuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastloss
import fastloss.functional as ours
from fastloss.cases import LAYOUTS
from fastloss.elementwise_cases import middle
from fastloss.functional.ranking import DIRECTIONS
from fastloss.fuzz import DTYPES, run
from fastloss.oracle import check
from fastloss.pair_cases import PairCase, fitting
from fastloss.registry import LOSSES
from graphs import recording

ENGINE = "pair"
REDUCTIONS = ("none", "mean", "sum")
L2 = math.log(2)


def whole(loss: str) -> PairCase:
    """A usual case, parameters in the middle of their ranges and choices at their first."""
    return PairCase(shape=(5, 6, 4)).of(loss)


def grid(loss: str) -> list[tuple[tuple[str, object], ...]]:
    """Each parameter at its ends and in the middle, and each choice, one changed at a time; and all of them at their last."""
    about, usual = LOSSES[loss], dict(whole(loss).params)
    values = {name: [low, middle((low, high)), high] for name, (low, high) in about.params.items()} | dict(about.choices)
    points = [usual, *(usual | {name: value} for name, choices in values.items() for value in choices)]
    return [tuple(point.items()) for point in [*points, {name: choices[-1] for name, choices in values.items()}]]


def cosines(a, b):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT


def off_diagonal(scores):
    return torch.where(torch.eye(len(scores), dtype=torch.bool), -math.inf, scores)


def info_nce(q, k, negatives=None, temperature=0.07, negative_mode="unpaired"):
    target = torch.arange(len(q))
    if negatives is None:
        return F.cross_entropy(cosines(q, k) / temperature, target, reduction="none")
    if negative_mode == "paired":
        scores = cosines(q.unsqueeze(1), negatives).squeeze(1)
    else:
        scores = cosines(q, negatives)
    scores = torch.cat([cosines(q, k).diagonal().unsqueeze(1), scores], 1)
    return F.cross_entropy(scores / temperature, torch.zeros_like(target), reduction="none")


def nt_xent(z1, z2, temperature):
    z, n = torch.cat([z1, z2]), len(z1)
    twin = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    return F.cross_entropy(off_diagonal(cosines(z, z) / temperature), twin, reduction="none")


def clip(image, text, logit_scale, logit_bias=None):
    scores = logit_scale * image @ text.T + (0.0 if logit_bias is None else logit_bias)
    target = torch.arange(len(image))
    return (F.cross_entropy(scores, target, reduction="none") + F.cross_entropy(scores.T, target, reduction="none")) / 2


def siglip(a, b, logit_scale, logit_bias):
    sign = 2 * torch.eye(len(a), dtype=a.dtype) - 1
    return F.binary_cross_entropy_with_logits(logit_scale * a @ b.T + logit_bias, (sign > 0).to(a.dtype), reduction="none").sum(1)


def sup_con(x, labels, temperature):
    log_prob = F.log_softmax(off_diagonal(cosines(x, x) / temperature), 1)
    rows = []
    for i, label in enumerate(labels.tolist()):
        same = [j for j, other in enumerate(labels.tolist()) if other == label and j != i]
        rows.append(-log_prob[i, same].mean() if same else torch.zeros((), dtype=x.dtype))
    return torch.stack(rows)


def dcl(z1, z2, temperature, sigma=None, denominator="joint"):
    rows = []
    for a, b in ((z1, z2), (z2, z1)):
        within, across = (off_diagonal(cosines(a, other) / temperature) for other in (a, b))
        if denominator == "joint":
            total = torch.cat([within, across], 1).exp().sum(1).log()
        else:
            total = within.exp().sum(1).log() + across.exp().sum(1).log()
        cosine = cosines(a, b).diagonal()
        weight = 1.0 if sigma is None else 2 - len(a) * torch.softmax(cosine.detach() / sigma, 0)
        rows.append(total - weight * cosine / temperature)
    return torch.cat(rows)


def koleo(x, eps=1e-8):
    x = F.normalize(x, dim=1, eps=eps)
    nearest = off_diagonal(x @ x.T).argmax(1)
    return -torch.log((x - x[nearest]).norm(dim=1) + eps)


def ranking(q, p, negatives=None, scale=20.0, hardness_strength=0.0, directions=("query_to_doc",), partition_mode="joint",
            hardness_mode=None, similarity="cosine"):
    score = cosines if similarity == "cosine" else (lambda a, b: a @ b.T)
    every = p if negatives is None else torch.cat([p, *negatives.unbind(1)])
    n, copies = len(q), len(every) // len(q)
    mine = torch.eye(n, dtype=torch.bool).repeat(1, copies)
    positive = mine & (torch.arange(len(every)) < n)
    harder = {"in_batch_negatives": ~mine, "hard_negatives": mine & ~positive, "all_negatives": ~positive}.get(
        hardness_mode, torch.zeros_like(mine))
    f = score(q, every)
    blocks = {
        "query_to_doc": scale * f + hardness_strength * torch.where(harder, f, 0.0).detach(),
        "query_to_query": off_diagonal(scale * score(q, q)),
        "doc_to_query": scale * score(p, q),
        "doc_to_doc": torch.where(mine, -math.inf, scale * score(p, every)),
    }
    chosen = [blocks[d] for d in directions]
    if partition_mode == "per_direction":
        total = sum(torch.logsumexp(block, 1) for block in chosen) / len(chosen)
    else:
        total = torch.logsumexp(torch.cat(chosen, 1), 1)
    return total - scale * score(q, p).diagonal()


def linear_cross_entropy(x, linear_weight, target, linear_bias=None, weight=None, label_smoothing=0.0, z_loss=0.0, softcap=None,
                         logit_scale=1.0):
    z = logit_scale * F.linear(x, linear_weight, linear_bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    weight = z.new_ones(z.shape[1]) if weight is None else weight
    loss, label = -z.log_softmax(1) * weight, target.clamp_min(0)  # torch's has no gradient to the weights
    loss = (1 - label_smoothing) * loss.gather(1, label.unsqueeze(1)).squeeze(1) + label_smoothing * loss.mean(1)
    return torch.where(target == -100, 0.0, loss + z_loss * torch.logsumexp(z, 1) ** 2)


def batch_hard(x, labels, margin=5.0, distance="euclidean"):
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") if distance == "euclidean" else 1 - cosines(x, x)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    positive, negative = same & ~torch.eye(len(x), dtype=torch.bool), ~same
    gap = torch.where(positive, d, 0.0).amax(1) - torch.where(negative, d, math.inf).amin(1)
    some = positive.any(1) & negative.any(1)
    gap = torch.where(some, gap, 0.0)
    return torch.where(some, F.softplus(gap) if margin is None else F.relu(gap + margin), 0.0)


DEFINITIONS = {
    "batch_hard_triplet": batch_hard, "info_nce": info_nce, "nt_xent": nt_xent, "clip": clip, "siglip": siglip, "sup_con": sup_con,
    "dcl": dcl, "koleo": koleo,
    "multiple_negatives_ranking": ranking, "linear_cross_entropy": linear_cross_entropy,
}


def evaluated(function, call, **options):
    """The losses of the rows, and the gradients of a random combination of them."""
    leaves = {name: t.detach().clone().requires_grad_(t.is_floating_point()) for name, t in call.tensors().items()}
    positional, named = call.arguments(leaves)
    rows = function(*positional, **named, **options)
    weight = torch.randn(rows.shape, dtype=rows.dtype, generator=torch.Generator().manual_seed(9))
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad((rows * weight).sum(), list(wanted.values()), allow_unused=True)
    return rows.detach(), {name: torch.zeros_like(wanted[name]) if g is None else g for name, g in zip(wanted, found)}


def test_agrees_with_its_definition(loss, backend):
    points = grid(loss)
    for i, params in enumerate(points[:: max(len(points) // 4, 1)] if backend == "triton" else points):
        for optional in (True, False):
            case = PairCase(loss, (5 + i % 3, 6, 4), "float64", i, optional=optional, reduction="none", params=params)
            call = case.build()
            options = {name: value for name, value in call.options.items() if name != "reduction"}
            rows, grads = evaluated(LOSSES[loss].function, call, reduction="none", backend=backend, **options)
            wanted, slopes = evaluated(DEFINITIONS[loss], call, **options)
            torch.testing.assert_close(rows, wanted, rtol=1e-9, atol=1e-9, msg=lambda m: f"{case}: {m}")
            for name, slope in slopes.items():
                torch.testing.assert_close(grads[name], slope, rtol=1e-8, atol=1e-8, msg=lambda m: f"{case}: {name}: {m}")


def test_every_loss_has_a_definition(loss):
    assert loss in DEFINITIONS


def test_values(loss, backend):
    for i, (values, dtype) in enumerate(itertools.product(fitting(loss), DTYPES if backend != "triton" else DTYPES[:1])):
        check(PairCase(shape=(6, 9, 3), values=values, dtype=dtype, reduction=REDUCTIONS[i % 3], seed=i).of(loss), None, backend)


def test_layouts_and_shapes(loss, backend):
    shapes = ((1, 1, 1), (2, 3, 0), (3, 17, 9), (19, 8, 33), (0, 4, 2), (65, 5, 4), (3, 4))
    for i, (shape, layout) in enumerate(itertools.product(shapes, LAYOUTS if backend == "cpu" else ["transposed"])):
        if shape[0] or loss not in ("dcl", "koleo"):
            case = PairCase(shape=shape, layout=layout, dtype=DTYPES[i % 4], seed=i, reduction=REDUCTIONS[i % 3], optional=i % 2 == 0)
            check(case.of(loss), None, backend)


def test_parameters(loss, backend):
    points = grid(loss)
    for i, params in enumerate(points[:: max(len(points) // 4, 1)] if backend == "triton" else points):
        check(PairCase(loss, (4, 7, 3), DTYPES[i % 2], i, params=params, optional=i % 3 > 0), None, backend)


def differentiable_in(loss: str) -> list[PairCase]:
    """Cases whose gradient is that of their value: harder negatives weigh more without one."""
    cases = [PairCase(loss, (3, 4, 2), "float64", i, optional=i % 2 == 0, params=params) for i, params in enumerate(grid(loss))]
    return [c for c in cases if not (c.options().get("hardness_mode") and c.options().get("hardness_strength"))
            and c.options().get("sigma") is None]


def closed(case: PairCase, backend: str | None = None):
    """A function of the differentiable tensors, and those."""
    call = case.build()
    leaves = {name: call.by_name[name].clone().requires_grad_() for name in call.differentiable()}

    def function(*values):
        positional, named = call.arguments(call.tensors() | dict(zip(leaves, values)))
        return LOSSES[case.loss].function(*positional, **named, **call.options, backend=backend)

    return function, tuple(leaves.values())


def test_gradcheck(loss):
    for case in differentiable_in(loss):
        function, leaves = closed(case, "eager")
        assert gradcheck(function, leaves), case
    assert gradgradcheck(function, leaves)


def test_second_derivatives_of_kernels(loss, compiled):
    function, leaves = closed(differentiable_in(loss)[0], compiled)
    assert gradgradcheck(function, leaves)


def test_func_and_compile(loss, backend):
    function, (x, *_) = closed(PairCase(shape=(4, 5, 3)).of(loss), backend)
    plain, leaves = closed(PairCase(shape=(4, 5, 3)).of(loss))
    rest = tuple(leaf.detach() for leaf in leaves[1:])
    (wanted,) = torch.autograd.grad(function(x, *rest), x)
    torch.testing.assert_close(torch.func.grad(plain)(x.detach(), *rest), wanted)
    each = torch.func.vmap(torch.func.grad(plain), (0, *(None for _ in rest)))(x.detach().repeat(2, 1, 1), *rest)
    torch.testing.assert_close(each, wanted.expand(2, *wanted.shape))
    torch._dynamo.reset()
    graphs: list = []
    (got,) = torch.autograd.grad(torch.compile(function, backend=recording(graphs), fullgraph=True)(x, *rest), x)
    torch.testing.assert_close(got, wanted)
    assert graphs == [[], []] if backend == "eager" else all(op.endswith(f".{backend}") for graph in graphs for op in graph)


def test_autocast_keeps_float32_inside(loss, backend):
    function, leaves = closed(PairCase(shape=(9, 33, 7), values="nearly aligned" if loss != "koleo" else "normal").of(loss), backend)
    if loss == "linear_cross_entropy":  # whose layer autocast runs in bfloat16
        leaves = tuple(leaf.bfloat16().float() for leaf in leaves)
    wanted = function(*leaves)
    with torch.autocast("cpu", torch.bfloat16):
        inside = function(*leaves)
        narrow = function(*(leaf.detach().bfloat16() for leaf in leaves))
    torch.testing.assert_close(inside, wanted, rtol=1e-6, atol=1e-6)
    assert narrow.dtype == torch.float32


def test_tensor_subclasses(loss):
    """Every option reaches the loss also through __torch_function__."""
    kind = type("Mine", (torch.Tensor,), {})
    call = PairCase(loss, (4, 5, 3), reduction="none", params=grid(loss)[-1]).build()
    positional, named = call.arguments(call.tensors())
    wanted = LOSSES[loss].function(*positional, **named, **call.options, backend="eager")
    got = LOSSES[loss].function(*(t.as_subclass(kind) for t in positional), **named, **call.options)
    assert type(got) is kind
    torch.testing.assert_close(got.as_subclass(torch.Tensor), wanted)


@pytest.mark.slow
def test_random_cases(loss, backend):
    finding = run(loss, backend, examples=16 if backend == "triton" else 200, seed=11)
    assert finding is None, finding.script


E1 = math.log(1 + math.exp(-1))
BY_HAND = [
    ("info_nce", ([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 1.0]]), {"temperature": 1.0}, [E1, E1]),
    ("info_nce", ([[1.0, 0.0]], [[0.0, 1.0]]), {}, [0.0]),
    # cosines 1 with the key, 0 and -1 with the negatives
    ("info_nce", ([[2.0, 0.0]], [[5.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0]]), {"temperature": 0.5},
     [math.log(1 + math.exp(-2) + math.exp(-4))]),
    ("info_nce", ([[2.0, 0.0]], [[5.0, 0.0]], [[[0.0, 1.0], [-1.0, 0.0]]]), {"temperature": 0.5, "negative_mode": "paired"},
     [math.log(1 + math.exp(-2) + math.exp(-4))]),
    # each row: 1 with its twin, 0 with the two others
    ("nt_xent", ([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]]), {"temperature": 1.0}, [math.log(1 + 2 / math.e)] * 4),
    ("nt_xent", ([[1.0, 0.0]], [[0.5, 2.0]]), {}, [0.0, 0.0]),
    ("clip", ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], 2.0), {},
     # scores [[2, 2], [0, 0]]
     [0.5 * L2 + 0.5 * math.log(1 + math.exp(-2)), 0.5 * L2 + 0.5 * (2 + math.log(1 + math.exp(-2)))]),
    ("siglip", ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], 2.0, -1.0), {},
     # scores [[1, 1], [-1, -1]]
     [math.log(1 + math.exp(-1)) + math.log(1 + math.e), math.log(1 + math.e) + math.log(1 + math.exp(-1))]),
    ("sup_con", ([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [4, 4, -7]), {"temperature": 1.0}, [E1, E1, 0.0]),
    ("dcl", ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]), {"temperature": 1.0}, [L2 - 1] * 4),
    ("dcl", ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]), {"temperature": 0.5, "denominator": "split", "sigma": 0.1}, [-2.0] * 4),
    ("koleo", ([[2.0, 0.0], [0.0, 1.0], [0.0, -3.0]],), {"eps": 1e-12}, [-0.5 * L2] * 3),
    ("koleo", ([[2.0, 0.0]],), {}, [0.0]),
    ("multiple_negatives_ranking", ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]), {"scale": 1.0}, [E1, E1]),
    # the explicit negative of the first query is a copy of its document
    ("multiple_negatives_ranking", ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[[2.0, 0.0]], [[-1.0, 0.0]]]), {"scale": 1.0},
     [math.log(2 * math.e + 1 + math.exp(-1)) - 1, math.log(math.e + 3) - 1]),
    # blocks (e, 1), (1), (e, 1), (1)
    ("multiple_negatives_ranking", ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]),
     {"scale": 1.0, "directions": DIRECTIONS}, [math.log(2 * math.e + 4) - 1] * 2),
    # logits (log 3, 0) and (0, 0), and a row that is ignored
    # distances 1, 3, 10; 1, 2, 9; 3, 2, 7; the last has no positive
    ("batch_hard_triplet", ([[0.0], [1.0], [3.0], [10.0]], [0, 0, 0, 1]), {"margin": 5.0}, [0.0, 0.0, 1.0, 0.0]),
    ("batch_hard_triplet", ([[0.0], [1.0], [3.0], [4.0]], [0, 0, 0, 1]), {"margin": None},
     [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(2)), 0.0]),
    ("batch_hard_triplet", ([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], [0, 0, 1]), {"margin": 1.0, "distance": "cosine"}, [0.0, 1.0, 0.0]),
    ("linear_cross_entropy", ([[math.log(3), 1.0], [0.0, 5.0], [7.0, 7.0]], [[1.0, 0.0], [0.0, 0.0]], [1, 0, -100]), {},
     [math.log(4), L2, 0.0]),
    ("linear_cross_entropy", ([[math.log(3)]], [[1.0], [0.0]], [0]), {"label_smoothing": 0.5, "z_loss": 0.5},
     [0.75 * math.log(4 / 3) + 0.25 * math.log(4) + 0.5 * math.log(4) ** 2]),
    ("linear_cross_entropy", ([[1e30]], [[1.0], [-1.0]], [0]), {"softcap": 0.5 * math.log(3)}, [math.log(4 / 3)]),
]


def double(value):
    return torch.tensor(value, dtype=torch.float64 if torch.tensor(value).is_floating_point() else None)


@pytest.mark.parametrize(("name", "operands", "options", "wanted"), BY_HAND)
def test_by_hand(backend, name, operands, options, wanted):
    got = LOSSES[name].function(*map(double, operands), **options, reduction="none", backend=backend)
    torch.testing.assert_close(got, double(wanted), rtol=1e-9, atol=1e-12)
    total = LOSSES[name].function(*map(double, operands), **options, reduction="sum", backend=backend)
    torch.testing.assert_close(total, double(wanted).sum(), rtol=1e-9, atol=1e-12)


def test_every_loss_is_computed_by_hand(loss):
    assert loss in {name for name, *_ in BY_HAND}


def test_reductions_that_are_no_mean_of_rows(backend):
    a, b = (F.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1) for _ in range(2))
    rows = ours.siglip_loss(a, b, 10.0, -10.0, "none", backend=backend)
    torch.testing.assert_close(ours.siglip_loss(a, b, 10.0, -10.0, backend=backend), rows.sum() / 5)
    torch.testing.assert_close(ours.siglip_loss(a, b, 10.0, -10.0, "mean", backend=backend), rows.sum() / 25)
    labels = torch.tensor([3, 3, 1, 0, 2])
    rows = ours.sup_con_loss(a, labels, reduction="none", backend=backend)
    assert torch.equal(rows[2:], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(ours.sup_con_loss(a, labels, backend=backend), rows[:2].mean())
    assert ours.sup_con_loss(a, torch.arange(5), backend=backend) == 0


EXTREME = {
    "info_nce": {"temperature": 0.01}, "nt_xent": {"temperature": 0.01}, "sup_con": {"temperature": 0.01}, "dcl": {"temperature": 0.01},
    "multiple_negatives_ranking": {"scale": 100.0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("values", ["repeated", "some zero", "aligned", "opposite"])
def test_extremes_are_finite(loss, backend, dtype, values):
    """Sharp temperatures, rows that are the same, and rows of zeros."""
    case = PairCase(shape=(7, 8, 5), values=values, dtype=str(dtype).removeprefix("torch."), reduction="none").of(loss)
    call = PairCase(**{**vars(case), "params": tuple((dict(case.params) | EXTREME.get(loss, {})).items())}).build()
    if "logit_scale" in call.by_name:
        call.by_name["logit_scale"] = torch.tensor(100.0, dtype=dtype)
    rows, grads = evaluated(LOSSES[loss].function, call, backend=backend, **call.options)
    assert rows.isfinite().all() and (loss in ("dcl", "koleo") or (rows >= (-1e-4 if loss == "nt_xent" else 0.0)).all())
    assert all(grad.isfinite().all() for grad in grads.values())
    doubled = call.to(torch.float64)
    wanted, _ = evaluated(LOSSES[loss].function, doubled, backend="eager", **call.options)
    torch.testing.assert_close(rows.double(), wanted, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_tiny_losses_are_exact(backend):
    """Of pairs that are told apart easily not only the rounding of a score is left."""
    for scale in (20.0, 60.0):
        got = ours.clip_loss(torch.eye(3), torch.eye(3), scale, backend=backend)
        torch.testing.assert_close(got, torch.tensor(2 * math.exp(-scale)), rtol=1e-5, atol=0)
        got = ours.info_nce_loss(torch.eye(3), torch.eye(3), temperature=1 / scale, backend=backend)
        torch.testing.assert_close(got, torch.tensor(2 * math.exp(-scale)), rtol=1e-4, atol=0)
        got = ours.siglip_loss(torch.eye(3), torch.eye(3), 2 * scale, -scale, backend=backend)
        torch.testing.assert_close(got, torch.tensor(3 * math.exp(-scale)), rtol=1e-5, atol=0)


def test_duplicates_have_no_gradient_in_koleo(backend):
    x = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 1.0, 0.0]], requires_grad=True)
    rows = ours.koleo_loss(x, reduction="none", backend=backend)
    torch.testing.assert_close(rows[:2], torch.full((2,), -math.log(1e-8)))
    assert not torch.autograd.grad(rows[:2].sum(), x, retain_graph=True)[0].any()
    assert torch.autograd.grad(rows[2], x)[0].isfinite().all()


def test_temperatures_can_be_learned(backend):
    x, y = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
    functions = {
        "info_nce": lambda t: ours.info_nce_loss(x, y, temperature=t, backend=backend),
        "nt_xent": lambda t: ours.nt_xent_loss(x, y, temperature=t, backend=backend),
        "sup_con": lambda t: ours.sup_con_loss(x, torch.tensor([0, 0, 1, 1]), temperature=t, backend=backend),
        "dcl": lambda t: ours.dcl_loss(x, y, temperature=t, backend=backend),
        "ranking": lambda t: ours.multiple_negatives_ranking_loss(x, y, scale=t, directions=DIRECTIONS, backend=backend),
    }
    for function in functions.values():
        assert gradcheck(function, torch.tensor([0.5], dtype=torch.float64, requires_grad=True))
        torch.testing.assert_close(function(torch.tensor(0.5)), function(0.5))


def test_gradient_to_a_learned_scale_of_harder_negatives(backend):
    q, p = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    for mode in ("in_batch_negatives", "hard_negatives", "all_negatives"):
        options = {"negatives": torch.randn(4, 2, 3, dtype=torch.float64), "hardness_mode": mode, "hardness_strength": 1.5}
        got = ours.multiple_negatives_ranking_loss(q, p, scale=scale, **options, backend=backend)
        wanted = ranking(q, p, scale=scale, **options).mean()
        torch.testing.assert_close(torch.autograd.grad(got, scale), torch.autograd.grad(wanted, scale))


def test_negatives_as_a_list(backend):
    q, p, *n = (torch.randn(4, 3) for _ in range(4))
    wanted = ours.multiple_negatives_ranking_loss(q, p, torch.stack(n, 1), backend=backend)
    assert torch.equal(ours.multiple_negatives_ranking_loss(q, p, n, backend=backend), wanted)


def test_no_score_matrix_is_stored():
    """What is kept for the backward grows with the rows, not with the pairs."""
    from torch.autograd.graph import saved_tensors_hooks

    for count in (64, 256):
        x, y = (torch.randn(count, 4, requires_grad=True) for _ in range(2))
        for function in (ours.info_nce_loss, ours.nt_xent_loss, lambda a, b, **k: ours.clip_loss(a, b, 10.0, **k),
                         lambda a, b, **k: ours.siglip_loss(a, b, 10.0, -10.0, **k), ours.dcl_loss):
            sizes: list[int] = []
            with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
                function(x, y, backend="cpu")
            assert max(sizes) <= 16 * count


X, Y, Z = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
BAD = [
    ("info_nce", (X.tolist(), Y), {}, TypeError, ["query", "list"]),
    ("info_nce", (X, Y[:2]), {}, ValueError, ["(4, 3)", "(2, 3)"]),
    ("info_nce", (X[0], Y[0]), {}, ValueError, ["(N, D)", "(3,)"]),
    ("info_nce", (X.long(), Y), {}, NotImplementedError, ["float32", "int64"]),
    ("info_nce", (X, Y.to("meta")), {}, RuntimeError, ["cpu", "meta"]),
    ("info_nce", (X, Y), {"temperature": 0.0}, ValueError, ["temperature", "positive", "0.0"]),
    ("info_nce", (X, Y), {"temperature": torch.ones(2)}, ValueError, ["temperature", "(2,)"]),
    ("info_nce", (X, Y), {"negatives": Y[:, :2]}, ValueError, ["(M, 3)", "(4, 2)"]),
    ("info_nce", (X, Y), {"negatives": Y, "negative_mode": "paired"}, ValueError, ["(4, K, 3)", "(4, 3)"]),
    ("info_nce", (X, Y), {"negative_mode": "own"}, ValueError, ["own", "paired"]),
    ("info_nce", (X, Y), {"reduction": "avg"}, ValueError, ["avg", "'mean'"]),
    ("info_nce", (X, Y), {"backend": "gpu"}, ValueError, ["gpu"]),
    ("nt_xent", (X, Y[:, :2]), {}, ValueError, ["(4, 3)", "(4, 2)"]),
    ("clip", (X, Y, -1.0), {}, ValueError, ["logit_scale", "-1.0"]),
    ("clip", (X, Y, torch.ones(3)), {}, ValueError, ["logit_scale", "(3,)"]),
    ("siglip", (X, Y, 1.0, torch.ones(3)), {}, ValueError, ["logit_bias", "(3,)"]),
    ("siglip", (X, Y, 1.0, 0.0), {"reduction": "avg"}, ValueError, ["avg", "'batch_sum'"]),
    ("sup_con", (X, Z[:3]), {}, ValueError, ["(4,)", "(3,)"]),
    ("sup_con", (X, Z.tolist()), {}, TypeError, ["labels", "list"]),
    ("sup_con", (X, Z.to("meta")), {}, RuntimeError, ["cpu", "meta"]),
    ("dcl", (X[:1], Y[:1]), {}, ValueError, ["at least 2", "got 1"]),
    ("dcl", (X, Y), {"sigma": 0.0}, ValueError, ["sigma"]),
    ("dcl", (X, Y), {"denominator": "both"}, ValueError, ["both", "joint"]),
    ("koleo", (X,), {"eps": 0.0}, ValueError, ["eps"]),
    ("batch_hard_triplet", (X, Z), {"margin": -1.0}, ValueError, ["margin", "-1.0"]),
    ("batch_hard_triplet", (X, Z), {"distance": "manhattan"}, ValueError, ["manhattan", "cosine"]),
    ("multiple_negatives_ranking", (X, Y), {"directions": ("doc_to_query",)}, ValueError, ["query_to_doc", "doc_to_query"]),
    ("multiple_negatives_ranking", (X, Y), {"directions": "query_to_doc"}, ValueError, ["directions"]),
    ("multiple_negatives_ranking", (X, Y), {"directions": ("query_to_doc", "doc_to_doc"), "partition_mode": "per_direction"}, ValueError,
     ["per_direction", "doc_to_doc"]),
    ("multiple_negatives_ranking", (X, Y), {"partition_mode": "all"}, ValueError, ["all", "joint"]),
    ("multiple_negatives_ranking", (X, Y), {"hardness_mode": "some"}, ValueError, ["some", "all_negatives"]),
    ("multiple_negatives_ranking", (X, Y), {"hardness_strength": -1.0}, ValueError, ["hardness_strength", "-1.0"]),
    ("multiple_negatives_ranking", (X, Y), {"similarity": "euclidean"}, ValueError, ["euclidean", "cosine"]),
    ("multiple_negatives_ranking", (X, Y), {"negatives": Y}, ValueError, ["(N, h, D)", "(4, 3)"]),
    ("multiple_negatives_ranking", (X, Y), {"negatives": [Y, Y[:2]]}, ValueError, ["(4, 3)", "(2, 3)"]),
    ("multiple_negatives_ranking", (X, Y), {"negatives": [Y, None]}, TypeError, ["negatives", "NoneType"]),
]


@pytest.mark.parametrize(("name", "operands", "options", "kind", "words"), BAD)
def test_bad_calls(name, operands, options, kind, words):
    with pytest.raises(kind) as raised:
        LOSSES[name].function(*operands, **options)
    assert type(raised.value) is kind
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_modules_take_the_scale_with_the_inputs():
    x, y = (F.normalize(torch.randn(4, 3), dim=1) for _ in range(2))
    scale, bias = torch.nn.Parameter(torch.tensor(10.0)), torch.nn.Parameter(torch.tensor(-10.0))
    fastloss.nn.SiglipLoss(backend="eager")(x, y, scale, bias).backward()
    fastloss.nn.ClipLoss(backend="eager")(x, y, logit_scale=scale).backward()
    assert scale.grad and bias.grad
    loss = fastloss.nn.InfoNceLoss(temperature=0.5, backend="eager")(x, y, negatives=y)
    assert torch.equal(loss, ours.info_nce_loss(x, y, y, 0.5, backend="eager"))
