"""fastloss.metric's losses against pytorch-metric-learning 2.9.0 in float64, and what is different on purpose."""

from __future__ import annotations

import inspect
import math

import pytest
import pytorch_metric_learning as peer
import torch
import torch.nn.functional as F
from metric_pairs import MODES, PATTERNS, both, doubles, rows, same, value_and_gradients
from torch.utils._python_dispatch import TorchDispatchMode

import fastloss
from fastloss.metric import blocks, distances, losses, reducers, table
from fastloss.metric.pairing import without_lists
from fastloss.metric.utils import loss_and_miner_utils as lmu
from fastloss.oracle import Recorder

# Where the definition here is another one on purpose, the cases in which both agree; each difference has a test of its own below.
AGREE = {
    "InstanceLoss": lambda pattern, mode: pattern in ("distinct", "single"),
    "SmoothAPLoss": lambda pattern, mode: pattern in ("threes", "single"),
    "LiftedStructureLoss": lambda pattern, mode: mode != "references",
    "ThresholdConsistentMarginLoss": lambda pattern, mode: mode != "references",
}
SHAPED = ("LiftedStructureLoss", "TupletMarginLoss", "AngularLoss", "GeneralizedLiftedStructureLoss", "MultiSimilarityLoss", "CircleLoss")
OPTIONS = {  # of distances
    "LpDistance": ({}, {"power": 2}, {"p": 1}, {"normalize_embeddings": False}), "CosineSimilarity": ({},),
    "DotProductSimilarity": ({}, {"normalize_embeddings": False}), "SNRDistance": ({},),
}
ENFORCED = {"AngularLoss": ({},), "DynamicSoftMarginLoss": ({},), "FastAPLoss": ({"power": 2}, {}), "RankedListLoss": ({}, {"power": 2})}
REDUCERS = {
    "MeanReducer": {}, "SumReducer": {}, "AvgNonZeroReducer": {}, "ThresholdReducer": {"low": 0.1, "high": 2.0},
    "ClassWeightedReducer": {"weights": torch.linspace(0.5, 2, 12, dtype=torch.float64)}, "PerAnchorReducer": {}, "DivisorReducer": {},
}
LOSSES = [name for name, entry in table.LOSSES.items() if entry.labels]


@pytest.fixture(params=("eager", "cpu"))
def runs_on(request):
    with fastloss.use_backend(request.param):
        yield request.param


def modes_of(name: str) -> list[str]:
    entry = table.LOSSES[name]
    return [m for m in MODES if (m != "references" or entry.references) and (m not in ("pairs", "triplets") or entry.listed)]


def compare(name: str, options: dict, pattern: str, mode: str, **parts: tuple[str, dict]) -> bool:
    given = rows(pattern, mode)
    if not AGREE.get(name, lambda *_: True)(pattern, mode) or (given[2] is not None and len(given[2][0]) == 0):
        return False
    through = (lambda x: F.normalize(x, dim=1)) if name == "AngularLoss" else None  # there the negatives are not normalised
    with doubles():
        theirs, ours = both(name, options, **parts)
        wanted = value_and_gradients(theirs, *given, through=through)
    got = value_and_gradients(ours, *given, through=through)
    if name == "P2SGradLoss":  # there the gradient leaves out that weights are normalised, with an epsilon
        unit = F.normalize(ours.weight.detach(), dim=0)
        wanted[1][1] = wanted[1][1] - unit * (wanted[1][1] * unit).sum(0)
    same(got, wanted, f"{name}({options}, {parts}) {pattern} {mode}", value=1e-6 if name == "P2SGradLoss" else 1e-7)
    return True


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name, runs_on):
    compared = [
        compare(name, options, pattern, mode)
        for pattern in PATTERNS for mode in modes_of(name)
        for options in (table.LOSSES[name].options if mode == "labels" or pattern == "mixed" else table.LOSSES[name].options[:1])
    ]
    assert any(compared)


PLAIN = ("DynamicSoftMarginLoss", "FastAPLoss", "HistogramLoss", "PNPLoss", "RankedListLoss", "SmoothAPLoss", "SoftTripleLoss",
         "SubCenterArcFaceLoss", "TripletMarginLoss")  # in plain torch on any backend


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in PLAIN])
def test_kernels_of_every_backend(name, compiled):
    """They run, and give what is right."""
    with fastloss.use_backend(compiled), Recorder() as recorder:
        compare(name, table.LOSSES[name].options[0], "distinct" if name == "InstanceLoss" else "mixed", "labels")
    ops = {op for op in recorder.ops if not op.startswith("pair_prepare")}
    assert ops == {f"pair_forward.{compiled}", f"pair_backward.{compiled}"}


@pytest.mark.parametrize("name", LOSSES)
def test_distances(name, runs_on):
    pattern = "threes" if name == "SmoothAPLoss" else "distinct" if name == "InstanceLoss" else "mixed"
    for kind in table.LOSSES[name].distances:
        for options in ENFORCED.get(name, OPTIONS[kind]):
            for mode in modes_of(name)[:3]:
                compare(name, table.LOSSES[name].options[0], pattern, mode, distance=(kind, options))


@pytest.mark.parametrize("name", LOSSES)
def test_reducers(name):
    pattern = "threes" if name == "SmoothAPLoss" else "distinct" if name == "InstanceLoss" else "mixed"
    divides = name in ("MarginLoss", "ProxyAnchorLoss")
    with fastloss.use_backend("eager"):
        for kind, options in REDUCERS.items():
            # There losses of shape (N, 1) broadcast with weights (N,), and fail to go into a matrix; triplets have no matrix.
            if (kind in ("ClassWeightedReducer", "PerAnchorReducer") and name in SHAPED) or (kind == "DivisorReducer" and not divides):
                continue
            if kind == "PerAnchorReducer" and name in ("TripletMarginLoss", "MarginLoss"):
                continue
            if kind == "AvgNonZeroReducer" and name in ("TupletMarginLoss", "InstanceLoss"):  # losses of 1e-30 are 0 there
                continue
            for mode in modes_of(name):
                if not (kind == "PerAnchorReducer" and mode == "references"):
                    compare(name, table.LOSSES[name].options[0], pattern, mode, reducer=(kind, options))


def test_every_loss_is_in_the_table():
    wrappers = {"BaseLossWrapper", "BaseMetricLossFunction", "CrossBatchMemory", "GenericPairLoss", "MultipleLosses", "SelfSupervisedLoss",
                "WeightRegularizerMixin"}
    public = {name for name, value in vars(peer.losses).items() if inspect.isclass(value)} - {"EmbeddingRegularizerMixin"}
    assert public == set(table.LOSSES) | wrappers
    assert set(losses.__all__) == public


@pytest.mark.parametrize("module", ("losses", "distances", "reducers", "regularizers", "miners"))
def test_signatures(module):
    """Arguments, their order and defaults, with those of base classes."""

    def arguments(library, name):
        found: dict[str, object] = {}
        for kind in getattr(getattr(library, module), name).__mro__:
            if kind.__module__.startswith(library.__name__):
                own = inspect.signature(kind.__init__).parameters if "__init__" in vars(kind) else {}
                for key, value in own.items():
                    if value.kind in (value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY) and key != "self":
                        found.setdefault(key, value.default)
        return found

    for name in getattr(fastloss.metric, module).__all__:
        theirs, ours = arguments(peer, name), arguments(fastloss.metric, name)
        for key, default in theirs.items():
            assert key in ours, f"{name} has no {key}"
            assert callable(default) or ours[key] == default, f"{name}: {key}={ours[key]}, there {default}"


def test_manifold(runs_on):
    for options in ({"l": 5, "K": 3}, {"l": 5, "K": 4, "lambdaC": 0.5, "alpha": 0.5, "margin": 0.01}):
        theirs, ours = both("ManifoldLoss", options)
        embeddings = rows("mixed", "labels")[0]
        clusters = torch.arange(12) % 3
        wanted, got = (value_and_gradients(loss, embeddings, None, clusters) for loss in (theirs, ours))
        same(got, wanted, str(options), 1e-5, 1e-4)  # there the inverse is in float32
    assert losses.ManifoldLoss(l=5, K=20)(embeddings, None).isfinite()
    alone = losses.ManifoldLoss(l=5, K=3, lambdaC=math.inf)
    torch.manual_seed(0)
    parts = [losses.ManifoldLoss(l=5, K=3, lambdaC=c) for c in (0.0, 1.0)]
    for part in parts:
        part.load_state_dict(alone.state_dict())
    values = [part(embeddings.float(), None, clusters) for part in (*parts, alone)]
    assert torch.allclose(values[2], values[1] - values[0], atol=1e-5)


def test_vicreg():
    for shape in ((12, 5), (4, 9)):
        x, z = torch.randn(2, *shape, dtype=torch.float64)
        for options in table.LOSSES["VICRegLoss"].options:
            theirs, ours = both("VICRegLoss", options)
            same(value_and_gradients(ours, x, None, None, z), value_and_gradients(theirs, x, None, None, z), str(options))
    for part in ("distance", "embedding_regularizer"):
        with pytest.raises(ValueError, match="VICRegLoss cannot use"):
            losses.VICRegLoss(**{part: distances.LpDistance()})


# The others weigh rows by how often they are listed, or take no list.
BY_PAIRS = ("AngularLoss", "CircleLoss", "ContrastiveLoss", "GeneralizedLiftedStructureLoss", "HistogramLoss", "IntraPairVarianceLoss",
            "LiftedStructureLoss", "MarginLoss", "MultiSimilarityLoss", "NPairsLoss", "NTXentLoss", "SignalToNoiseRatioContrastiveLoss",
            "SupConLoss", "ThresholdConsistentMarginLoss", "TripletMarginLoss", "TupletMarginLoss")


@pytest.mark.parametrize("name", BY_PAIRS)
def test_labels_and_indices_give_the_same_bits(name, runs_on):
    x, r = torch.randn(50, 33), torch.randn(57, 33)
    y, ry = torch.randint(0, 20, (50,)), torch.randint(0, 20, (57,))
    loss = table.build(name)
    for references in ((None, None), (r, ry))[: 1 + table.LOSSES[name].references]:
        listed = [lmu.get_all_pairs_indices(y, references[1])]
        if name in ("MarginLoss", "TripletMarginLoss"):
            listed.append(lmu.get_all_triplets_indices(y, references[1]))
        by_labels = value_and_gradients(loss, x, y, None, *references)
        assert by_labels[1][0].any()
        for indices in listed:
            by_indices = value_and_gradients(loss, x, y, indices, *references)
            assert torch.equal(by_labels[0], by_indices[0])
            assert all(torch.equal(a, b) for a, b in zip(by_labels[1], by_indices[1]))


def test_what_lists_everything():
    """Only all pairs or triplets, each once and in order, are what labels say."""
    y, ry = torch.tensor([3, 1, 3, 1, 1, 7]), torch.tensor([1, 7, 7, 3])
    for others in (None, ry):
        pairs, triplets = lmu.get_all_pairs_indices(y, others), lmu.get_all_triplets_indices(y, others)
        assert without_lists(pairs, y, others) is None and without_lists(triplets, y, others, triplets=True) is None
        assert without_lists(triplets, y, others) is triplets
        a1, p, a2, n = pairs
        twice = torch.cat([a1[:1], a1[:-1]]), torch.cat([p[:1], p[:-1]])
        for some in ((a1[1:], p[1:], a2, n), (a1, p, a2[:-1], n[:-1]),
                     (*twice, a2, n), (a1.flip(0), p.flip(0), a2, n), (a1, p, a2, n.roll(1)),
                     (a2[: len(a1)], n[: len(a1)], a2, n), (a1, p, *(torch.arange(len(a2)) % 3 for _ in range(2)))):
            assert without_lists(some, y, others) is some
        for some in (tuple(t[1:] for t in triplets), (triplets[0], triplets[1], triplets[2].roll(1)), tuple(t.flip(0) for t in triplets),
                     (triplets[0], triplets[2], triplets[1])):
            assert without_lists(some, y, others, triplets=True) is some
    a1, p, a2, n = lmu.get_all_pairs_indices(y)
    own = a1, torch.cat([a1[:1], p[1:]]), a2, n
    assert without_lists(own, y, None) is own


LISTING = ("AngularLoss", "DynamicSoftMarginLoss")


@pytest.mark.parametrize("name", [name for name in LOSSES if table.LOSSES[name].references and name not in LISTING])
def test_labels_take_no_memory_for_pairs(name, monkeypatch):
    """No tensor of the label form is as large as the matrix of scores."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for out in found if isinstance(found, (tuple, list)) else (found,):
                self.size = max(self.size, out.numel() if torch.is_tensor(out) else 0)
            return found

    monkeypatch.setattr(blocks, "ELEMENTS", 2000)
    x = torch.randn(400, 4, requires_grad=True)
    with fastloss.use_backend("cpu"), Largest() as largest:
        table.build(name)(x, torch.arange(400) % 50).backward()
    assert 0 < largest.size <= 4000


@pytest.mark.parametrize("name", LOSSES)
def test_narrow_dtypes(name):
    """In half precision the loss of float32, rounded; the weights keep their dtype."""
    labels = torch.arange(12) // 3
    x = torch.randn(12, 5).bfloat16()
    wide = table.build(name)
    narrow = table.build(name)
    narrow.load_state_dict(wide.state_dict())
    for dtype in (torch.bfloat16, torch.float16):
        got, wanted = narrow(x.to(dtype), labels), wide(x.float(), labels)
        assert got.dtype == dtype and torch.allclose(got.float(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert all(weight.dtype == torch.float32 for weight in narrow.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(wide(x.float(), labels), wide(x.float(), labels)) and wide(x, labels).dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "DynamicSoftMarginLoss"])
def test_bad_calls(name):
    entry, loss = table.LOSSES[name], table.build(name)
    x, y = torch.randn(4, 5), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="Number of embeddings must equal number of labels"):
        loss(x, y[:3])
    with pytest.raises(ValueError, match="1D tensor"):
        loss(x, y.unsqueeze(1))
    with pytest.raises(ValueError, match="labels"):
        loss(x)
    if not entry.references:
        with pytest.raises(ValueError, match="ref_emb is not supported"):
            loss(x, y, ref_emb=x.clone(), ref_labels=y)
    if not entry.listed:
        with pytest.raises(ValueError, match="indices_tuple is not supported"):
            loss(x, y, (y, y, y))
    for kind in set(table.ANY) - set(entry.distances):
        if entry.distances in (table.COSINE, table.LP, table.SNR) and name != "RankedListLoss" and "Cosine" not in kind:
            with pytest.raises(AssertionError, match=f"{name} requires"):
                table.build(name, distance=getattr(distances, kind)())
    with pytest.raises(TypeError):
        table.build(name, wrong=1)
    if entry.weights and name != "MarginLoss":
        for label in (-1, table.CLASSES):
            with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
                loss(x, torch.full((4,), label))


@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_any_dtype_and_no_rows(name):
    loss, x, labels = table.build(name), torch.randn(8, 5), torch.arange(8) // 4
    state, options = loss.state_dict(), table.LOSSES[name].options[0]
    wanted = loss(x, labels)
    for dtype in (torch.int32, torch.uint8, torch.bool):
        again = table.build(name)
        again.load_state_dict(state)
        assert torch.equal(again(x, labels.to(dtype)), wanted), dtype
    nothing = table.build(name)(torch.zeros(0, 5), labels[:0])
    theirs = math.nan if name == "SmoothAPLoss" else float(getattr(peer.losses, name)(**options)(torch.zeros(0, 5), labels[:0]).detach())
    assert float(nothing.detach()) == pytest.approx(theirs, nan_ok=True)


@pytest.mark.parametrize("name", ("ContrastiveLoss", "TripletMarginLoss", "NTXentLoss", "MultiSimilarityLoss", "MarginLoss", "NCALoss"))
def test_second_derivatives(name):
    """Through the formula of a kernel, and of a sum over blocks."""
    loss = table.build(name, distance=distances.LpDistance(power=2))
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    with fastloss.use_backend("cpu"):
        assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), x)


def test_triplets_in_blocks(monkeypatch):
    """Blocks of two rows give what one block gives, and the number of triplets above 0 what listing them gives."""
    x, y = torch.randn(40, 6), torch.randint(0, 6, (40,))
    loss = losses.TripletMarginLoss(margin=0.4)
    whole = value_and_gradients(loss, x, y)
    monkeypatch.setattr(blocks, "ELEMENTS", 80)
    same(value_and_gradients(loss, x, y), whole, "blocks", 1e-6, 1e-4)
    a, p, n = lmu.get_all_triplets_indices(y)
    same(value_and_gradients(loss, x, y, (a, p, n)), whole, "listed", 1e-6, 1e-4)


def test_functorch():
    labels, x = torch.tensor([0, 0, 1, 1, 2]), torch.randn(5, 3)
    for name in ("TripletMarginLoss", "ContrastiveLoss", "SupConLoss"):
        loss = table.build(name)
        (wanted,) = value_and_gradients(loss, x, labels)[1]
        assert torch.allclose(torch.func.grad(lambda x: loss(x, labels))(x), wanted, atol=1e-6)  # noqa: B023


@pytest.mark.parametrize("name", ("ContrastiveLoss", "NTXentLoss", "TripletMarginLoss", "NormalizedSoftmaxLoss"))
def test_compile(name):
    """One graph: a parameter that two terms share, sums over blocks, listed pairs."""
    loss, x, labels = table.build(name), torch.randn(12, 5), torch.arange(12) // 3
    with fastloss.use_backend("cpu"):
        wanted = value_and_gradients(loss, x, labels)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        same(value_and_gradients(compiled, x, labels), wanted, name, 1e-6, 1e-5)


def test_quirk_1_one_pair_of_each_kind_costs_nothing(runs_on):
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    zero, one, two = torch.arange(3).split(1)
    for listed in ((zero, one, two), (zero, one, zero, two)):
        for name in ("ContrastiveLoss", "NTXentLoss", "SupConLoss", "MultiSimilarityLoss"):
            assert float(table.build(name)(x, None, listed)) == float(getattr(peer.losses, name)()(x, None, listed)) == 0
    assert float(losses.TripletMarginLoss()(x, None, listed)) > 0


def test_quirk_2_per_anchor_reducer_wants_no_larger_reference_set():
    given = rows("mixed", "references")
    for library in (peer, fastloss.metric):
        with pytest.raises(IndexError):
            library.losses.ContrastiveLoss(reducer=library.reducers.PerAnchorReducer())(given[0], given[1], None, *given[3:])


def test_quirk_3_swap_compares_reference_rows(runs_on):
    x, y, _, r, ry = rows("mixed", "references")
    a, p, n = lmu.get_all_triplets_indices(y, ry)
    e, q = F.normalize(x, dim=1), F.normalize(r, dim=1)
    ap, an, pn = ((u - v).norm(dim=1) for u, v in ((e[a], q[p]), (e[a], q[n]), (q[p], q[n])))
    each = torch.relu(ap - torch.minimum(an, pn) + 0.3)
    assert torch.allclose(losses.TripletMarginLoss(margin=0.3, swap=True)(x, y, None, r, ry), each.sum() / (each > 0).sum())
    compare("TripletMarginLoss", {"margin": 0.3, "swap": True}, "mixed", "labels")
    compare("TripletMarginLoss", {"margin": 0.3, "swap": True}, "mixed", "triplets", distance=("CosineSimilarity", {}))


def test_quirk_4_lifted_structure_takes_the_negatives_of_reference_rows(runs_on):
    x, y, _, r, ry = rows("mixed", "references")
    far = torch.cdist(F.normalize(x, dim=1), F.normalize(r, dim=1))
    away = torch.where(y[:, None] == ry, -torch.inf, 1 - far)
    both_ends = torch.logaddexp(away.logsumexp(1, keepdim=True), away.logsumexp(0, keepdim=True))
    each = (torch.relu(both_ends + far).square() / 2)[y[:, None] == ry]
    wanted = each.mean()
    assert torch.allclose(losses.LiftedStructureLoss()(x, y, None, r, ry), wanted)
    assert torch.allclose(losses.LiftedStructureLoss()(x, y, lmu.get_all_pairs_indices(y, ry), r, ry), wanted)


def test_quirk_5_nt_xent_stops_at_the_smallest_number(runs_on):
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    for listed in (None, lmu.get_all_pairs_indices(labels)):
        value, (gradient,) = value_and_gradients(losses.NTXentLoss(temperature=0.01), x, labels, listed)
        wanted, (theirs,) = value_and_gradients(peer.losses.NTXentLoss(temperature=0.01), x, labels, listed)
        assert torch.allclose(value, wanted) and torch.allclose(gradient, theirs, atol=1e-6)
    assert float(value) == pytest.approx((-math.log(torch.finfo(torch.float32).tiny) + math.log(2)) / 2, rel=1e-5)


def test_quirk_6_tuplet_margin_of_parallel_rows_is_finite(runs_on):
    x = torch.randn(6, 4)
    x[1], x[3] = x[0], -x[2]
    for listed in (None, lmu.get_all_pairs_indices(torch.arange(6) // 2)):
        value, (gradient,) = value_and_gradients(losses.TupletMarginLoss(), x, torch.arange(6) // 2, listed)
        assert value.isfinite() and gradient.isfinite().all()


def test_quirk_7_angular_normalises_negatives():
    x, y = torch.randn(12, 5), PATTERNS["mixed"]
    assert torch.allclose(losses.AngularLoss()(3 * x, y), losses.AngularLoss()(x, y))
    unit = F.normalize(x, dim=1)
    assert torch.allclose(losses.AngularLoss()(x, y), peer.losses.AngularLoss()(unit, y))


def test_quirk_8_nca_without_positives_is_nan(runs_on):
    x = torch.randn(5, 3)
    assert losses.NCALoss()(x, torch.arange(5)).isnan() and peer.losses.NCALoss()(x, torch.arange(5)).isnan()


def test_quirk_9_threshold_margin_uses_the_reference_set(runs_on):
    x, y, _, r, ry = rows("mixed", "references")
    cosine = F.normalize(x, dim=1) @ F.normalize(r, dim=1).t()
    same_label = y[:, None] == ry
    pos, neg = 0.9 - cosine[same_label & (cosine < 0.9)], cosine[~same_label & (cosine > 0.5)] - 0.5
    wanted = pos.mean() + neg.mean()
    assert torch.allclose(losses.ThresholdConsistentMarginLoss()(x, y, None, r, ry), wanted)
    assert torch.allclose(losses.ThresholdConsistentMarginLoss()(x, y, lmu.get_all_pairs_indices(y, ry), r, ry), wanted)


def test_quirk_10_dynamic_soft_margin_goes_on():
    loss = losses.DynamicSoftMarginLoss()
    for _ in range(3):
        x = torch.randn(8, 4, requires_grad=True)
        loss(x, torch.arange(8) // 2).backward()
        assert x.grad.isfinite().all() and not loss.hist_.requires_grad
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert losses.DynamicSoftMarginLoss()(x, torch.tensor([0, 0, 1, 1])).isfinite()  # differences of 2, beyond the last bin
    x, r = torch.randn(2, 6, 4)
    assert torch.allclose(losses.DynamicSoftMarginLoss()(x, ref_emb=r), peer.losses.DynamicSoftMarginLoss()(x, ref_emb=r), atol=1e-6)


def test_quirk_11_histogram_of_equal_rows():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    value = losses.HistogramLoss()(x, torch.tensor([0, 0, 1, 1, 2]))
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    value.backward()
    assert x.grad.isfinite().all()


def test_quirk_12_smooth_ap_goes_by_classes():
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) // 2
    scores = F.normalize(x, dim=1) @ F.normalize(x, dim=1).t()
    precision = torch.zeros(12, dtype=torch.float64)
    for i in range(12):
        for j in (2 * (i // 2), 2 * (i // 2) + 1):
            ahead = torch.sigmoid((scores[i] - scores[i, j]) / 0.1)
            ahead[j] = 0
            precision[i] += (1 + ahead[y == y[i]].sum()) / (1 + ahead.sum()) / 2
    wanted = 1 - precision.mean()
    assert torch.allclose(losses.SmoothAPLoss(temperature=0.1)(x, y), wanted)
    shuffled = torch.randperm(12)
    assert torch.allclose(losses.SmoothAPLoss(temperature=0.1)(x[shuffled], y[shuffled]), wanted)
    with pytest.raises(ValueError, match="same number"):
        losses.SmoothAPLoss()(x[:11], y[:11])


def test_quirk_13_instance_loss_targets_the_first_row_of_a_label(runs_on):
    x, y = torch.randn(6, 4), torch.tensor([7, 3, 7, 3, 9, 9])
    unit = F.normalize(x, dim=1)
    wanted = F.cross_entropy(64 * unit @ unit.t(), torch.tensor([0, 1, 0, 1, 4, 4]))
    assert torch.allclose(losses.InstanceLoss()(x, y), wanted, rtol=1e-4)


@pytest.mark.parametrize("name", ("ArcFaceLoss", "SubCenterArcFaceLoss", "LargeMarginSoftmaxLoss", "SphereFaceLoss"))
def test_quirk_15_margins_of_parallel_rows(name, runs_on):
    loss = table.build(name)
    x = torch.eye(5)[:4]
    with torch.no_grad():
        loss.W.zero_()
        loss.W[:, :4] = torch.eye(5)[:, :4] * torch.tensor([1.0, 1.0, -1.0, -1.0])
    _, gradients = value_and_gradients(loss, x, torch.arange(4))
    assert all(gradient.isfinite().all() for gradient in gradients)


HEADS = {
    "ArcFaceLoss": {}, "CosFaceLoss": {}, "SphereFaceLoss": {}, "LargeMarginSoftmaxLoss": {}, "SubCenterArcFaceLoss": {"sub_centers": 2},
}


@pytest.mark.parametrize("name", HEADS)
def test_sampled_classes(name, runs_on):
    """A step compares with as many classes as asked for, the labels' among them, and is the loss of these alone; evaluation takes all."""
    labels, parts = torch.tensor([0, 9, 3, 3, 7, 1, 8, 5]), HEADS[name].get("sub_centers", 1)

    def build(classes: int, **more):
        return getattr(losses, name)(num_classes=classes, embedding_size=6, **HEADS[name], **more).double()

    sampled, x = build(40, sample_rate=0.3), torch.randn(8, 6, dtype=torch.float64)
    seen = set()
    for _ in range(3):
        sampled.zero_grad()
        value, (by_x, by_w) = value_and_gradients(sampled, x, labels)
        by_w = by_w.unflatten(1, (40, parts))
        used = by_w.abs().sum((0, 2)).nonzero().flatten()
        assert len(used) <= 12 and set(labels.tolist()) <= set(used.tolist())
        seen |= set(used.tolist())
        alone = build(len(used))
        alone.W.data = sampled.W.data.unflatten(1, (40, parts))[:, used].flatten(1).clone()
        wanted, wanted_gradients = value_and_gradients(alone, x, torch.searchsorted(used, labels))
        assert torch.equal(value, wanted)
        assert torch.equal(by_x, wanted_gradients[0]) and torch.equal(by_w[:, used].flatten(1), wanted_gradients[1])
    assert len(seen) > 12
    whole = build(40)
    whole.W.data = sampled.W.data.clone()
    assert torch.equal(sampled.eval()(x, labels), whole(x, labels))
    assert build(40, sample_rate=0.3)(x[:0], labels[:0]).isnan() and build(40)(x[:0], labels[:0]).isnan()
    with pytest.raises(ValueError, match="sample_rate must be above 0"):
        build(40, sample_rate=0.0)
    with pytest.raises(TypeError, match="sample_rate must be a number, got str"):
        build(40, sample_rate="0.1")


def test_noise_of_rows_without_variance(runs_on):
    labels = torch.arange(8) // 2
    assert float(losses.SignalToNoiseRatioContrastiveLoss()(torch.ones(8, 4), labels)) == 0
    x = torch.randn(8, 4, dtype=torch.float64)
    x[3] = 0.3
    x = F.normalize(x, dim=1)
    noise = ((x[:, None] - x).var(2) / x.var(1)[:, None])[[0, 1, 2, 4, 5, 6, 7]]
    alike = (labels[:, None] == labels)[[0, 1, 2, 4, 5, 6, 7]] & (noise > 0)
    pos, neg = noise[alike], torch.relu(2 - noise[(labels[:, None] != labels)[[0, 1, 2, 4, 5, 6, 7]]])
    wanted = pos.mean() + neg.sum() / (neg > 0).sum()
    for listed in (None, lmu.get_all_pairs_indices(labels)):
        value, (gradient,) = value_and_gradients(losses.SignalToNoiseRatioContrastiveLoss(neg_margin=2), x, labels, listed)
        assert torch.allclose(value, wanted) and gradient.isfinite().all()


def test_a_zero_loss_does_not_read_embeddings():
    x = torch.full((1, 4), math.inf, requires_grad=True)
    for name in ("NCALoss", "AngularLoss", "NPairsLoss"):
        value = table.build(name)(x, torch.zeros(1, dtype=torch.long))
        value.backward()
        assert float(value) == 0 and not x.grad.any()


def test_a_loss_of_ones_own():
    """Subclasses have the protocol of the interface."""

    class Own(losses.BaseMetricLossFunction):
        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            a, p, n = lmu.convert_to_triplets(indices_tuple, labels, ref_labels, t_per_anchor="all")
            if len(a) == 0:
                return self.zero_losses()
            matrix = self.distance(embeddings, ref_emb)
            return {"loss": {"losses": torch.relu(matrix[a, p] - matrix[a, n] + 0.05), "indices": (a, p, n), "reduction_type": "triplet"}}

        def get_default_reducer(self):
            return reducers.AvgNonZeroReducer()

    class Mat(losses.GenericPairLoss):
        def __init__(self, **kwargs):
            super().__init__(mat_based_loss=True, **kwargs)

        def _compute_loss(self, mat, pos_mask, neg_mask):
            return self.elements((mat * pos_mask).sum(1) - (mat * neg_mask).sum(1))

    x, y = rows("mixed", "labels")[:2]
    assert torch.allclose(Own()(x, y), losses.TripletMarginLoss()(x, y))
    far = distances.LpDistance()(x)
    matches, diffs = lmu.get_matches_and_diffs(y)
    assert torch.allclose(Mat()(x, y), ((far * matches).sum(1) - (far * diffs).sum(1)).mean())


def test_get_logits_and_outliers():
    names = "NormalizedSoftmaxLoss", "SoftTripleLoss", "CosFaceLoss", "LargeMarginSoftmaxLoss", "SphereFaceLoss", "SubCenterArcFaceLoss"
    for name in names:
        theirs, ours = both(name, table.LOSSES[name].options[0])
        x = rows("mixed", "labels")[0]
        assert torch.allclose(ours.get_logits(x), theirs.get_logits(x)), name
    y = PATTERNS["mixed"]
    (got, centers), (wanted, peers) = ours.get_outliers(x, y, threshold=60), theirs.get_outliers(x, y, threshold=60)
    assert torch.equal(got, wanted)
    assert torch.equal(centers[:, y], peers[:, y]) and not centers[:, 4].any()  # there, of a class without rows, memory as it was


def test_margins_of_listed_triplets_without_labels():
    x, listed = torch.randn(6, 4), (torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5]))
    ours, theirs = (library.MarginLoss()(x, None, listed) for library in (losses, peer.losses))
    torch.testing.assert_close(ours, theirs)
