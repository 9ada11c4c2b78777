"""fastloss.metric's miners, regularizers, reducers, wrappers and helpers against pytorch-metric-learning 2.9.0."""

from __future__ import annotations

import doctest
import itertools
import sys

import pytest
import pytorch_metric_learning as peer
import torch
import torch.multiprocessing as multiprocessing
from metric_pairs import PATTERNS, doubles, rows, same, value_and_gradients
from pytorch_metric_learning.utils import common_functions as peer_c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as peer_lmu

import fastloss
from fastloss.metric import distances, losses, miners, reducers, regularizers
from fastloss.metric.utils import common_functions as c_f
from fastloss.metric.utils import distributed
from fastloss.metric.utils import loss_and_miner_utils as lmu

STRATEGIES = ("hard", "semihard", "easy", "all")
MINERS = [
    ("PairMarginMiner", {}), ("PairMarginMiner", {"pos_margin": 0.5, "neg_margin": 1.0}), ("MultiSimilarityMiner", {}),
    ("MultiSimilarityMiner", {"epsilon": 0.5}), ("BatchHardMiner", {}), ("EmbeddingsAlreadyPackagedAsTriplets", {}), ("HDCMiner", {}),
    ("HDCMiner", {"filter_percentage": 0.3}), ("AngularMiner", {}), ("AngularMiner", {"angle": 40}),
    *(("TripletMarginMiner", {"margin": 0.3, "type_of_triplets": kind}) for kind in ("all", "hard", "semihard", "easy")),
    *(("BatchEasyHardMiner", {"pos_strategy": p, "neg_strategy": n, **limits})
      for p, n in itertools.product(STRATEGIES, STRATEGIES) if "semihard" not in (p, n) or not {p, n} <= {"semihard", "all"}
      for limits in ({}, {"allowed_pos_range": (0.2, 1.0), "allowed_neg_range": (0.5, 1.2)})),
]


@pytest.mark.slow
@pytest.mark.parametrize("elements", (2**22, 5))
def test_miners(elements, monkeypatch):
    """The same indices as there, and in blocks of single rows; of MultiSimilarityMiner in rising order."""
    monkeypatch.setattr(miners, "ELEMENTS", elements)
    found = 0
    for (name, options), pattern, mode in itertools.product(MINERS, PATTERNS, ("labels", "references")):
        x, y, _, r, ry = rows(pattern, mode)
        if name == "EmbeddingsAlreadyPackagedAsTriplets" and len(x) % 3:
            continue
        for distance in (None, ("CosineSimilarity", {}), ("LpDistance", {"normalize_embeddings": False})):
            if name == "AngularMiner" and distance is not None:
                continue
            results = []
            for library in (peer, fastloss.metric):
                more = {} if distance is None else {"distance": getattr(library.distances, distance[0])(**distance[1])}
                results.append(getattr(library.miners, name)(**options, **more)(x, y, r, ry))
            if name == "MultiSimilarityMiner":
                a1, p, a2, n = results[0]
                pos, neg = (a1 * 100 + p).argsort(), (a2 * 100 + n).argsort()
                results[0] = a1[pos], p[pos], a2[neg], n[neg]
            found += len(results[1][0])
            assert len(results[0]) == len(results[1])
            for wanted, got in zip(*results):
                assert torch.equal(wanted, got), (name, options, pattern, mode, distance)
    assert found > 1000


def test_random_miners():
    x, y = torch.randn(40, 8), torch.arange(40) // 4
    a, p, n = miners.DistanceWeightedMiner()(x, y)
    assert torch.equal(a.bincount(), torch.full((40,), 4))
    assert (y[a] == y[p]).all() and (a != p).all() and (y[a] != y[n]).all()
    weights = torch.zeros(40, 40)
    weights[:, 7] = weights[:, 30] = 1.0
    a, p, n = lmu.get_random_triplet_indices(y, t_per_anchor=20, weights=weights)
    assert set(n[y[a] == 0].tolist()) <= {7, 30} and set(n[y[a] == 1].tolist()) == {30}
    a, p, n = lmu.get_random_triplet_indices(y, t_per_anchor=200)
    assert set(p[a == 0].tolist()) == {1, 2, 3} and set(n[a == 0].tolist()) == set(range(4, 40))
    far = distances.LpDistance()(x)
    a1, p, a2, n = miners.UniformHistogramMiner(num_bins=5, pos_per_bin=3, neg_per_bin=4)(x, y)
    for rows_, columns, size, pairs in ((a1, p, 3, lmu.get_all_pairs_indices(y)[:2]), (a2, n, 4, lmu.get_all_pairs_indices(y)[2:])):
        every, drawn = far[pairs], far[rows_, columns]
        edges = torch.linspace(float(every.min()), float(every.max()), 6)
        counts = torch.histogram(drawn.clamp(edges[0], edges[-1]), edges).hist
        filled = torch.histogram(every.clamp(edges[0], edges[-1]), edges).hist > 0
        assert torch.equal(counts, filled * float(size))
    for single in (torch.arange(5), torch.zeros(5, dtype=torch.long)):
        assert all(len(i) == 0 for i in miners.DistanceWeightedMiner()(x[:5], single))


def test_hdc_miner_filters_given_pairs():
    x, y = rows("mixed", "labels")[:2]
    pairs = tuple(i[::2] for i in lmu.get_all_pairs_indices(y))
    results = []
    for library in (peer, fastloss.metric):
        miner = library.miners.HDCMiner(filter_percentage=0.4)
        miner.set_idx_externally(pairs, y)
        results.append([*miner(x, y), *miner(x, y)])  # the second call filters what the first one left
        miner.reset_idx()
        results[-1] += miner(x, y)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_bad_miners():
    x, y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="pos_strategy"):
        miners.BatchEasyHardMiner("wrong")
    for strategies in (("semihard", "semihard"), ("semihard", "all"), ("all", "semihard")):
        with pytest.raises(ValueError, match="semihard"):
            miners.BatchEasyHardMiner(*strategies)
    with pytest.raises(AssertionError, match="threes"):
        miners.EmbeddingsAlreadyPackagedAsTriplets()(x, y)
    with pytest.raises(ValueError, match="Number of embeddings"):
        miners.BatchHardMiner()(x, y[:3])
    x.requires_grad_()
    miner = miners.PairMarginMiner(0.0, 2.0)
    miner(x, y)
    assert (miner.num_pos_pairs, miner.num_neg_pairs, miner.num_triplets) == (4, 8, 0)


@pytest.mark.parametrize(("name", "options"), (
    ("LpRegularizer", {}), ("LpRegularizer", {"p": 1, "power": 2}), ("CenterInvariantRegularizer", {}), ("ZeroMeanRegularizer", {}),
    ("RegularFaceRegularizer", {}), ("SparseCentersRegularizer", {"num_classes": 4, "centers_per_class": 3}),
    ("SparseCentersRegularizer", {"num_classes": 2, "centers_per_class": 6}),
))
def test_regularizers(name, options):
    """By themselves, of embeddings and of weights."""
    x, y = rows("mixed", "labels")[:2]
    with doubles():
        results = []
        for library in (peer, fastloss.metric):
            regularizer = getattr(library.regularizers, name)(**options)
            found = [value_and_gradients(_Ignoring(regularizer), x, y)]
            loss = library.losses.ContrastiveLoss(embedding_regularizer=regularizer, embedding_reg_weight=0.3)
            found.append(value_and_gradients(loss, x, y))
            assert loss.sub_loss_names() == ["pos_loss", "neg_loss", "embedding_reg_loss"]
            one = {"centers_per_class": 1}
            for head, size in (("ArcFaceLoss", {}), ("ProxyAnchorLoss", {}), ("SoftTripleLoss", one), ("ProxyNCALoss", {})):
                torch.manual_seed(1)
                loss = getattr(library.losses, head)(12, 5, weight_regularizer=regularizer, weight_reg_weight=2, **size)
                found.append(value_and_gradients(loss, x, y))
            results.append(found)
    for k, (wanted, got) in enumerate(zip(*results)):
        same(got, wanted, f"{name} {k}")


class _Ignoring(torch.nn.Module):
    """Calls with embeddings alone."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, embeddings, *_):
        return self.inner(embeddings)


def test_bad_regularizers():
    for build in (lambda: regularizers.RegularFaceRegularizer(distance=distances.LpDistance()),
                  lambda: regularizers.SparseCentersRegularizer(4, 1),
                  lambda: regularizers.CenterInvariantRegularizer(distance=distances.LpDistance()),
                  lambda: regularizers.SparseCentersRegularizer(4, 2, distance=distances.LpDistance())):
        with pytest.raises(AssertionError):
            build()


def test_reducers_of_a_dictionary():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 2])
    values, index = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.arange(4)
    about = {"losses": values, "indices": index, "reduction_type": "element", "divisor": 3}
    for kind, options, wanted in (
        ("MeanReducer", {}, 2.0), ("SumReducer", {}, 8.0), ("AvgNonZeroReducer", {}, 8 / 3), ("ThresholdReducer", {"low": 1}, 3.5),
        ("ThresholdReducer", {"high": 5}, 1.0), ("ThresholdReducer", {"low": 5}, 0.0), ("DivisorReducer", {}, 8 / 3),
        ("ClassWeightedReducer", {"weights": torch.tensor([1.0, 2.0, 3.0])}, (0 + 2 + 4 + 15) / 4), ("PerAnchorReducer", {}, 2.0),
        ("PerAnchorReducer", {"reducer": reducers.AvgNonZeroReducer()}, 8 / 3),
    ):
        assert float(getattr(reducers, kind)(**options)({"loss": about}, x, y)) == pytest.approx(wanted), (kind, options)
    assert reducers.MeanReducer()({"loss": about | {"losses": values[:0], "indices": index[:0]}}, x, y).isnan()
    assert float(reducers.DivisorReducer()({"loss": about | {"divisor": 0}}, x, y)) == 0
    assert reducers.DoNothingReducer()({"loss": about}, x, y)["loss"] is about
    two = reducers.MultipleReducers({"a": reducers.SumReducer()})
    assert float(two({"a": about, "b": about}, x, y)) == 10
    already = {"loss": {"losses": torch.tensor(7.0), "indices": None, "reduction_type": "already_reduced"}}
    assert float(reducers.SumReducer()(already, x, y)) == float(reducers.ThresholdReducer(low=9)(already, x, y)) == 7
    with pytest.raises(NotImplementedError, match="triplet"):
        reducers.PerAnchorReducer()({"loss": about | {"indices": (index,) * 3, "reduction_type": "triplet"}}, x, y)
    for wrong in ({"indices": index[:3]}, {"reduction_type": "triplet"}, {"reduction_type": "already_reduced"}):
        with pytest.raises(AssertionError):
            reducers.MeanReducer()({"loss": about | wrong}, x, y)
    with pytest.raises(AssertionError, match="at least one"):
        reducers.ThresholdReducer()
    with pytest.raises(KeyError, match="divisor"):
        losses.ContrastiveLoss(reducer=reducers.DivisorReducer())(x, y)
    listed = losses.ContrastiveLoss(reducer=reducers.DoNothingReducer())(x, y)
    assert [len(listed[name]["losses"]) for name in ("pos_loss", "neg_loss")] == [2, 10]


def test_reducers_of_several_losses():
    shared = reducers.ThresholdReducer(low=0.5)
    loss = losses.ContrastiveLoss(reducer=shared)
    assert isinstance(loss.reducer, reducers.MultipleReducers) and loss.reducer.reducers["pos_loss"] is not shared
    mixed = reducers.MultipleReducers({"pos_loss": reducers.SumReducer()}, default_reducer=reducers.AvgNonZeroReducer())
    x, y = rows("mixed", "labels")[:2]
    theirs = peer.reducers.MultipleReducers({"pos_loss": peer.reducers.SumReducer()}, default_reducer=peer.reducers.AvgNonZeroReducer())
    assert torch.allclose(losses.ContrastiveLoss(reducer=mixed)(x, y), peer.losses.ContrastiveLoss(reducer=theirs)(x, y))


@pytest.mark.parametrize("mode", ("labels", "references"))
def test_distances(mode):
    x, _, _, r, _ = rows("mixed", mode)
    for name, options in (("LpDistance", {}), ("LpDistance", {"p": 1, "power": 2}), ("CosineSimilarity", {}), ("SNRDistance", {}),
                          ("DotProductSimilarity", {"normalize_embeddings": False}),
                          ("LpDistance", {"p": 3, "normalize_embeddings": False})):
        theirs, ours = getattr(peer.distances, name)(**options), getattr(distances, name)(**options)
        assert torch.allclose(ours(x, r), theirs(x, r)), name
        other = x.roll(1, 0)
        assert torch.allclose(ours.pairwise_distance(x, other), theirs.pairwise_distance(x, other)), name
        assert torch.equal(ours.margin(x, other), theirs.margin(x, other)) and torch.equal(ours.get_norm(x), theirs.get_norm(x))
        assert torch.equal(ours.smallest_dist(x, dim=1)[1], theirs.smallest_dist(x, dim=1)[1])
        assert torch.equal(ours.largest_dist(x, dim=1)[1], theirs.largest_dist(x, dim=1)[1])
        found = []
        batched = distances.BatchedDistance(ours, lambda matrix, start, end: found.append((matrix, start, end)), 5)  # noqa: B023
        assert batched(x, r) is None and batched.p == ours.p
        assert torch.allclose(torch.cat([matrix for matrix, _, _ in found]), ours(x, r))
        assert [f[1:] for f in found] == [(0, 5), (5, 10), (10, 12)]
    with pytest.raises(ValueError, match="2D"):
        distances.CosineSimilarity()(torch.randn(3))
    with pytest.raises(TypeError):
        distances.CosineSimilarity(normalize_embeddings=False)


def test_label_and_index_forms():
    """Pairs, triplets and weights from labels and from one another."""
    for pattern, mode in itertools.product(PATTERNS, ("labels", "references")):
        _, y, _, _, ry = rows(pattern, mode)
        pairs, triplets = peer_lmu.get_all_pairs_indices(y, ry), peer_lmu.get_all_triplets_indices(y, ry)
        some = pairs[0][::2], pairs[1][::2], pairs[2][1::3], pairs[3][1::3]
        for name, arguments in (
            ("get_matches_and_diffs", (y, ry)), ("get_all_pairs_indices", (y, ry)), ("get_all_triplets_indices", (y, ry)),
            ("convert_to_pairs", (triplets, y, ry)), ("convert_to_pairs", (None, y, ry)), ("convert_to_triplets", (some, y, ry)),
            ("convert_to_triplets", (None, y, ry, "all")), ("pos_pairs_from_tuple", (triplets,)), ("neg_pairs_from_tuple", (pairs,)),
            ("convert_to_pos_pairs_with_unique_labels", (None, y)), ("get_anchors", (some,)), ("get_anchors", (triplets,)),
            ("convert_to_weights", (some, y, torch.float64, True)), ("convert_to_weights", (None, y, torch.float64)),
        ):
            if mode == "references" and name == "convert_to_pos_pairs_with_unique_labels":
                continue
            wanted, got = getattr(peer_lmu, name)(*arguments), getattr(lmu, name)(*arguments)
            wanted, got = ((x,) if torch.is_tensor(x) else x for x in (wanted, got))
            assert len(wanted) == len(got) and all(torch.equal(a, b) for a, b in zip(wanted, got)), (name, pattern, mode)
    x, mask = torch.randn(5, 7), torch.rand(5, 7) > 0.6
    mask[2] = False
    for add_one, dim in itertools.product((True, False), (0, 1)):
        assert torch.allclose(lmu.logsumexp(x, mask, add_one, dim), peer_lmu.logsumexp(x, mask, add_one, dim))
    assert torch.equal(lmu.repeat_to_match_size(torch.arange(2), 5, 2), torch.tensor([0, 1, 0, 1, 0]))
    a, p = torch.cartesian_prod(torch.arange(6), torch.arange(6)).t()
    for subset, where in itertools.product((False, True), ([2, 3, 4], [4, 5], [5, 0, 1])):
        where = torch.tensor(where)
        wanted, got = (library.remove_self_comparisons((a, p, a, p), where, 6, subset) for library in (peer_lmu, lmu))
        assert all(torch.equal(x, y) for x, y in zip(wanted, got)), (subset, where)
        for s in (0, 2):
            wanted, got = (library.not_self_comparisons(a, p, s, s + 3, where, 6, subset) for library in (peer_lmu, lmu))
            assert torch.equal(wanted, got), (subset, where, s)


def test_common_functions():
    def plain(found: dict) -> dict:
        """With lists and numbers in the place of numpy's."""
        return {int(k): plain(v) if isinstance(v, dict) else [int(x) for x in v] if hasattr(v, "__len__") else int(v)
                for k, v in found.items()}

    x, y = torch.randn(4, 3), torch.tensor([5, 2, 5, 9])
    triplet = y % 2, y, y
    for name, arguments in (
        ("pos_inf", (torch.float16,)), ("neg_inf", (torch.float32,)), ("small_val", (torch.float64,)),
        ("shift_indices_tuple", (triplet, 4)), ("shift_indices_tuple", ((*triplet, y), 4)),
        ("concatenate_indices_tuples", (triplet, triplet)), ("torch_arange_from_size", (x,)), ("torch_standard_scaler", (x,)),
        ("torch_all_from_dim_to_end", (x > -1, 1)), ("make_label_to_rank_dict", ([5, 2, 9],)), ("get_label_map", (y.numpy(),)),
        ("exclude", ([1, 2], [2])),
        ("append_map", (["a"], "_b")), ("modelpath_creator", ("folder", "trunk", 3)), ("get_labels_to_indices", (y.numpy(),)),
        ("unslice_by_n", ([x[0::2], x[1::2]],)),
    ):
        wanted, got = getattr(peer_c_f, name)(*arguments), getattr(c_f, name)(*arguments)
        wanted, got = (list(v) if isinstance(v, (tuple, map)) else [v] for v in (wanted, got))
        assert len(wanted) == len(got), name
        for a, b in zip(wanted, got):
            if isinstance(a, dict):
                assert plain(a) == plain(b), name
            else:
                assert torch.equal(a, b) if torch.is_tensor(a) else a == b, name
    assert {name for name in vars(peer_c_f) if callable(vars(peer_c_f)[name]) and vars(peer_c_f)[name].__module__ == peer_c_f.__name__} <= {
        *vars(c_f), "_urlretrieve"
    }
    public = {name for name, value in vars(peer_lmu).items() if callable(value)}
    assert public <= set(vars(lmu))


@pytest.mark.parametrize("name", losses.SelfSupervisedLoss.supported_losses())
def test_self_supervised(name):
    x, z = torch.randn(2, 7, 5, dtype=torch.float64)
    if name == "AngularLoss":
        x, z = (torch.nn.functional.normalize(rows_, dim=1) for rows_ in (x, z))
    for symmetric in (True, False):
        if name == "LiftedStructureLoss" and not symmetric:
            continue
        with doubles():
            wanted, got = (
                library.losses.SelfSupervisedLoss(getattr(library.losses, name)(), symmetric=symmetric)(x, z)
                for library in (peer, fastloss.metric)
            )
        assert torch.allclose(wanted, got), symmetric
    with pytest.raises(Exception, match="SelfSupervisedLoss not supported for ArcFaceLoss"):
        losses.SelfSupervisedLoss(losses.ArcFaceLoss(3, 4))


@pytest.mark.parametrize("name", losses.CrossBatchMemory.supported_losses())
def test_cross_batch_memory(name):
    """Six steps around a ring of 20 rows; the copies of a batch lie in one piece or on both sides of the ring's end."""
    with doubles():
        memories = [
            library.losses.CrossBatchMemory(getattr(library.losses, name)(), 5, memory_size=20) for library in (peer, fastloss.metric)
        ]
        generator = torch.Generator().manual_seed(0)
        for _ in range(6):
            x = torch.randn(8, 5, generator=generator)
            x = torch.nn.functional.normalize(x, dim=1)
            y = torch.randint(0, 4, (8,), generator=generator)
            values = [memory(x, y) for memory in memories]
            if name != "LiftedStructureLoss":
                assert torch.allclose(*values), name
            assert torch.equal(*(memory.label_memory for memory in memories))
            assert torch.equal(*(memory.curr_batch_idx for memory in memories))
            assert memories[0].queue_idx == memories[1].queue_idx and memories[0].has_been_filled == memories[1].has_been_filled
        # A set that is its own memory: all pairs but those of a row with itself.
        alone = losses.CrossBatchMemory(getattr(losses, name)(), 5, memory_size=20)
        if name != "NCALoss":
            assert torch.allclose(alone(x, y), getattr(losses, name)()(x, y))


def test_cross_batch_memory_with_miner_mask_and_indices():
    x, y = rows("mixed", "labels")[:2]
    with doubles():
        for miner in ("MultiSimilarityMiner", "BatchHardMiner", "TripletMarginMiner"):
            memories = [
                library.losses.CrossBatchMemory(library.losses.ContrastiveLoss(), 5, 30, miner=getattr(library.miners, miner)())
                for library in (peer, fastloss.metric)
            ]
            for step in range(4):
                values = [memory(x.roll(step, 1), y) for memory in memories]
                assert torch.allclose(*values), (miner, step)
        memories = [library.losses.CrossBatchMemory(library.losses.NTXentLoss(), 5, 30) for library in (peer, fastloss.metric)]
        for mask in (torch.arange(12) < 6, torch.arange(12) % 2 == 0, torch.arange(12) < 9):
            values = [memory(x, y, enqueue_mask=mask) for memory in memories]
            assert torch.allclose(*values)
        # quirk 16: passed indices are of the batch, whose rows begin at 12 after the first step
        memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 5, 30)
        memory(x.roll(1, 1), y)
        given = tuple(i[:3] for i in lmu.get_all_pairs_indices(y))
        a1, p, a2, n = lmu.get_all_pairs_indices(y, torch.cat([y, y]))
        kept = p != a1 + 12
        every = a1[kept], p[kept], a2, n
        pairs = c_f.concatenate_indices_tuples(every, (given[0], given[1] + 12, given[2], given[3] + 12))
        ring = torch.cat([x.roll(1, 1), x])
        assert torch.allclose(memory(x, y, given), losses.ContrastiveLoss()(x, y, pairs, ring, torch.cat([y, y])))
    with pytest.raises(ValueError, match="mutually exclusive"):
        memory(x, y, given, enqueue_mask=y > 0)
    with pytest.raises(AssertionError, match="memory_size"):
        losses.CrossBatchMemory(losses.ContrastiveLoss(), 5, 4)(x.float(), y)
    with pytest.raises(Exception, match="CrossBatchMemory not supported for NPairsLoss"):
        losses.CrossBatchMemory(losses.NPairsLoss(), 5)
    memory.reset_queue()
    assert memory.queue_idx == 0 and not memory.has_been_filled and not memory.embedding_memory.any()


def test_multiple_losses():
    x, y = rows("mixed", "labels")[:2]
    pairs = lmu.get_all_triplets_indices(y)
    for build in (
        lambda m: m.losses.MultipleLosses([m.losses.ContrastiveLoss(), m.losses.NTXentLoss()]),
        lambda m: m.losses.MultipleLosses([m.losses.ContrastiveLoss(), m.losses.NTXentLoss()], weights=[0.5, 2]),
        lambda m: m.losses.MultipleLosses(
            {"a": m.losses.ContrastiveLoss(), "b": m.losses.NTXentLoss()}, {"a": m.miners.BatchHardMiner()}, {"a": 1, "b": 3}
        ),
    ):
        theirs, ours = build(peer), build(fastloss.metric)
        assert torch.allclose(theirs(x, y), ours(x, y))
        if ours.miners is None:
            assert torch.allclose(theirs(x, y, pairs), ours(x, y, pairs))
    with pytest.raises(AssertionError, match="together with miners"):
        ours(x, y, pairs)
    for wrong in ({"weights": [1, 2]}, {"miners": {}}, {"weights": {"a": 1}}):
        with pytest.raises(AssertionError, match="must go with"):
            losses.MultipleLosses([losses.ContrastiveLoss()], **wrong)


def _process(rank: int, world: int, path: str, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    x, y = torch.randn(world, 6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12).view(world, 6) % 4
    found = []
    for efficient, name in itertools.product((False, True), ("ContrastiveLoss", "MultiSimilarityLoss", "NCALoss")):
        own = x[rank].clone().requires_grad_()
        value = distributed.DistributedLossWrapper(getattr(losses, name)(), efficient)(own, y[rank])
        found += [value.detach(), torch.autograd.grad(value, own)[0]]
    for efficient in (False, True):
        found += distributed.DistributedMinerWrapper(miners.BatchHardMiner(), efficient)(x[rank], y[rank])
    found.append(distributed.DistributedLossWrapper(losses.CrossBatchMemory(losses.ContrastiveLoss(), 5, 30))(x[rank], y[rank]))
    results.put((rank, [f.tolist() for f in found]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed(tmp_path):
    """Two processes: the loss of both batches, this process's rows alone as anchors, and miners."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_process, args=(rank, 2, str(tmp_path / "meet"), results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    x, y = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12).view(2, 6) % 4
    for rank in range(2):
        got = iter(torch.tensor(value) for value in found[rank])
        own, others = x[rank].clone().requires_grad_(), x[1 - rank]
        every, labels = torch.cat([own, others]), torch.cat([y[rank], y[1 - rank]])
        pairs = lmu.remove_self_comparisons(lmu.get_all_pairs_indices(y[rank], labels), torch.arange(6), 12)
        for efficient, name in itertools.product((False, True), ("ContrastiveLoss", "MultiSimilarityLoss", "NCALoss")):
            loss = getattr(losses, name)()
            value = 2 * (loss(own, y[rank], pairs, every, labels) if efficient else loss(every, labels))
            assert torch.allclose(next(got), value)
            assert torch.allclose(next(got), torch.autograd.grad(value, own, retain_graph=True)[0], atol=1e-6)
        for wanted in miners.BatchHardMiner()(every, labels):
            assert torch.equal(next(got), wanted)
        for _ in range(3):
            next(got)
        assert torch.allclose(next(got), 2 * losses.CrossBatchMemory(losses.ContrastiveLoss(), 5, 30)(every, labels))


def test_a_loss_alone_is_not_distributed():
    x, y = rows("mixed", "labels")[:2]
    with pytest.warns(UserWarning, match="without torch.distributed"):
        assert torch.equal(distributed.DistributedLossWrapper(losses.ContrastiveLoss())(x, y), losses.ContrastiveLoss()(x, y))


def test_examples_run():
    found = doctest.testmod(sys.modules["fastloss.metric.losses.base"])
    assert found.attempted > 0 and found.failed == 0


def test_the_import_line_is_all_that_changes():
    from fastloss.compat import pytorch_metric_learning as names
    from fastloss.compat.pytorch_metric_learning.losses import ContrastiveLoss
    from fastloss.compat.pytorch_metric_learning.utils import loss_and_miner_utils

    assert names.__version__ == peer.__version__ == fastloss.metric.__version__
    assert ContrastiveLoss is losses.ContrastiveLoss and loss_and_miner_utils is lmu
    for module in ("distances", "losses", "miners", "reducers", "regularizers"):
        assert sys.modules[f"fastloss.compat.pytorch_metric_learning.{module}"] is getattr(fastloss.metric, module)
