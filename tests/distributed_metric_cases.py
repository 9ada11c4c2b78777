"""Cases of the losses of fastloss.metric over several processes, for distributed_cases.py."""

from __future__ import annotations

import torch
import torch.distributed as dist
from distributed_harness import FEATURES, case, close, like_one, own, raises, rows_of, splits

from fastloss.distributed import Group
from fastloss.metric import distances, losses, reducers

METRIC = {
    "ContrastiveLoss": ({}, {"pos_margin": 0.3, "neg_margin": 0.8}),
    "SignalToNoiseRatioContrastiveLoss": ({},),
    "IntraPairVarianceLoss": ({"pos_eps": 0.1, "neg_eps": 0.2},),
    "NTXentLoss": ({}, {"reducer": reducers.SumReducer()}),
    "TupletMarginLoss": ({"scale": 8},),
    "LiftedStructureLoss": ({"neg_margin": 0.6, "pos_margin": 0.2},),
    "GeneralizedLiftedStructureLoss": ({},),
    "SupConLoss": ({},),
    "MultiSimilarityLoss": ({"alpha": 1, "beta": 8}, {"distance": distances.LpDistance(power=2), "beta": 8}),
    "CircleLoss": ({"gamma": 4},),
    "TripletMarginLoss": ({"margin": 0.2}, {"swap": True, "smooth_loss": True, "distance": distances.CosineSimilarity()}),
    "MarginLoss": ({}, {"reducer": reducers.AvgNonZeroReducer()}),
    "AngularLoss": ({},),
    "ThresholdConsistentMarginLoss": ({"margin_plus": 0.8, "margin_minus": 0.3},),
    "NCALoss": ({},),
    "InstanceLoss": ({"gamma": 4},),
    "NPairsLoss": ({},),
    "FastAPLoss": ({},),
    "PNPLoss": ({"anneal": 0.1}, {"anneal": 0.1, "variant": "Ib"}),
    "RankedListLoss": ({"margin": 0.4, "Tn": 2},),
    "HistogramLoss": ({"n_bins": 10},),
    "DynamicSoftMarginLoss": ({},),
}


@case
def metric():
    for rows in splits():
        rows = [2 * n for n in rows]
        total = sum(rows)
        x = rows_of(total) + 0.5
        some = rows[1] == 0
        for labels in (torch.arange(total) % 3, torch.arange(total) // rows[0], torch.arange(total))[: 3 if some else 1]:
            for name, each in METRIC.items():
                for options in each[: 2 if some else 1]:
                    for dtype in (torch.float64, torch.float32):
                        mine = like_one(
                            lambda z, group=None, name=name, options=options, labels=labels: getattr(losses, name)(**options, group=group)(
                                z, labels if group is None else own(labels, rows)
                            ),
                            [x.to(dtype)], rows,
                        )[0]
        labels = torch.arange(total) // 2  # of which each class has as many
        like_one(lambda z, group=None: losses.SmoothAPLoss(temperature=0.1, group=group)(z, labels if group is None else own(labels, rows)),
                 [x], rows)
    for options, message in (
        ({"temperature": 0.1 + dist.get_rank()}, "the loss's settings must be the same"),
        ({"reducer": reducers.DoNothingReducer()}, "sums only"),
    ):
        loss = losses.SupConLoss(**options, group=dist.group.WORLD)
        raises(lambda loss=loss: loss(mine, own(labels, rows)), message, (ValueError, NotImplementedError))
    loss = losses.TripletMarginLoss(triplets_per_anchor=1, group=dist.group.WORLD)
    raises(lambda: loss(mine, own(labels, rows)), "all triplets count", NotImplementedError)
    some = torch.where(torch.arange(len(mine)) == 0, 3 - dist.get_rank(), 0)  # on rank 0 beyond the classes
    loss = losses.MarginLoss(num_classes=3, learn_beta=True, group=dist.group.WORLD)
    raises(lambda: loss(mine, some), "out of bounds|has failed", (IndexError, RuntimeError))
    with torch.autocast("cpu", torch.bfloat16):
        assert losses.TripletMarginLoss(group=dist.group.WORLD)(mine.float(), own(labels, rows)).dtype == torch.float32
    for name in ("InstanceLoss", "TripletMarginLoss"):
        like_one(lambda z, group=None, name=name: getattr(losses, name)(group=group)(z, labels if group is None else own(labels, rows)),
                 [x.bfloat16()], rows)


@case
def self_supervised():
    for rows in splits():
        views = torch.stack([rows_of(sum(rows)), rows_of(sum(rows))], 1)
        for name in ("NTXentLoss", "TripletMarginLoss"):
            like_one(lambda z, group=None, name=name: losses.SelfSupervisedLoss(getattr(losses, name)(group=group))(z[:, 0], z[:, 1]),
                     [views], rows)
    loss = losses.SelfSupervisedLoss(losses.NTXentLoss(group=dist.group.WORLD), symmetric=False)
    raises(lambda: loss(views[:2, 0], views[:2, 1]), "neither indices nor references", NotImplementedError)


@case
def learned_margins():
    for rows in splits():
        total = sum(rows)
        x, labels = rows_of(total), torch.arange(total) % 3
        for classes in (None, 3):
            options = {"learn_beta": True, "num_classes": classes, "nu": 0.3}
            one, over = losses.MarginLoss(**options).double(), losses.MarginLoss(**options, group=dist.group.WORLD).double()
            whole, mine = x.clone().requires_grad_(), own(x, rows).requires_grad_()
            wanted, got = one(whole, labels), over(mine, own(labels, rows))
            for value in (wanted, got):
                (3 * value).backward()
            close(got, wanted)
            close(mine.grad, own(whole.grad, rows))
            close(over.beta.grad, one.beta.grad)


@case
def histogram_over_batches():
    for rows in splits():
        total = sum(rows)
        one, over = losses.DynamicSoftMarginLoss(), losses.DynamicSoftMarginLoss(group=dist.group.WORLD)
        for labels in (torch.arange(total) % 3, torch.zeros(total).long(), torch.arange(total) // 2):  # of the second no triplets
            x = rows_of(total)
            close(over(own(x, rows), own(labels, rows)), one(x, labels))
        assert torch.allclose(over.hist_.double(), one.hist_.double(), atol=1e-12)


@case
def cross_batch_memory():
    for name in ("ContrastiveLoss", "SupConLoss", "NTXentLoss", "TripletMarginLoss", "MarginLoss", "AngularLoss"):
        for rows in splits():
            total = sum(rows)
            one = losses.CrossBatchMemory(getattr(losses, name)(), FEATURES, 2 * total + 1)  # so that the third batch goes around
            over = losses.CrossBatchMemory(getattr(losses, name)(), FEATURES, 2 * total + 1, group=dist.group.WORLD)
            for _ in range(3):
                x, labels = rows_of(total), torch.randint(3, (total,))
                whole, mine = x.clone().requires_grad_(), own(x, rows).requires_grad_()
                wanted, got = one(whole, labels), over(mine, own(labels, rows))
                wanted.backward()
                got.backward()
                close(got, wanted)
                close(mine.grad, own(whole.grad, rows))
            first, count = over._part
            assert len(over.embedding_memory) == count <= len(one.embedding_memory) / dist.get_world_size() + 1
            for whole, part in ((one.embedding_memory, over.embedding_memory), (one.label_memory, over.label_memory)):
                assert torch.equal(whole[first : first + count], part)
    wrong = losses.CrossBatchMemory(losses.TripletMarginLoss(group=dist.group.WORLD), FEATURES, 40, group=dist.group.WORLD)
    raises(lambda: wrong(mine, own(labels, rows)), "takes a group, but has none", NotImplementedError)


@case
def margins():
    rank, world = dist.get_rank(), dist.get_world_size()
    x, labels = rows_of(8), torch.tensor([0, 9, 3, 3, 7, 1, 8, 5])
    split = [len(c) for c in torch.arange(10).tensor_split(world)]
    for name, options, weights, parts in (
        ("ArcFaceLoss", {"scale": 8}, "W", 1), ("CosFaceLoss", {"scale": 4}, "W", 1), ("SphereFaceLoss", {"margin": 2}, "W", 1),
        ("LargeMarginSoftmaxLoss", {"margin": 3}, "W", 1), ("SubCenterArcFaceLoss", {"scale": 8, "sub_centers": 2}, "W", 2),
        ("NormalizedSoftmaxLoss", {"temperature": 0.3}, "W", 1), ("SoftTripleLoss", {"centers_per_class": 2, "la": 5}, "fc", 2),
        ("ProxyNCALoss", {}, "proxies", 1), ("ProxyAnchorLoss", {"alpha": 4}, "proxies", 1),
        ("ProxyAnchorLoss", {"alpha": 4, "reducer": reducers.MeanReducer()}, "proxies", 1),
    ):
        build = lambda name=name, options=options, **more: getattr(losses, name)(  # noqa: E731
            num_classes=10, embedding_size=FEATURES, **options, **more
        ).double()
        torch.manual_seed(1)  # processes have drawn different numbers of weights
        whole, local = build(), build(group=dist.group.WORLD)
        sizes, dim = [n * parts for n in split], int(weights != "proxies")
        getattr(local, weights).data = getattr(whole, weights).data.split(sizes, dim)[rank].clone()
        mine, every = x.clone().requires_grad_(), x.clone().requires_grad_()
        wanted, got = whole(every, labels), local(mine, labels)
        wanted.backward()
        got.backward()
        close(got, wanted)
        close(mine.grad, every.grad)
        close(getattr(local, weights).grad, getattr(whole, weights).grad.split(sizes, dim)[rank])
    raises(lambda: local(mine, labels - rank), "the labels must be the same", ValueError)


@case
def sampled_classes():
    """A step that draws some classes of each process is the loss of one process with these alone."""
    group = Group("test", dist.group.WORLD)
    x, labels = rows_of(8), torch.tensor([0, 59, 3, 3, 27, 41, 8, 35])
    torch.manual_seed(dist.get_rank())
    for name, options, parts in (("ArcFaceLoss", {"scale": 8}, 1), ("LargeMarginSoftmaxLoss", {"margin": 3}, 1),
                                 ("SubCenterArcFaceLoss", {"scale": 8, "sub_centers": 2}, 2)):
        build = lambda classes, name=name, options=options, **more: getattr(losses, name)(  # noqa: E731
            num_classes=classes, embedding_size=FEATURES, **options, **more
        ).double()
        local = build(60, group=dist.group.WORLD, sample_rate=0.4)
        mine = x.clone().requires_grad_()
        got = local(mine, labels)
        got.backward()
        group.agree(lambda: (None, {}, (local.own_classes,)), x)
        numbers, weights, gradients = (
            group.concatenated(t) for t in (local.first_class + torch.arange(local.own_classes), *(
                t.unflatten(1, (-1, parts)).transpose(0, 1).contiguous() for t in (local.W.data, local.W.grad)
            ))
        )
        used = gradients.abs().sum((1, 2)).nonzero().flatten()
        assert len(used) < 50 and torch.equal(numbers, torch.arange(60))
        alone = build(len(used))
        alone.W.data = weights[used].transpose(0, 1).flatten(1).clone()
        every = x.clone().requires_grad_()
        wanted = alone(every, torch.searchsorted(used, labels))
        wanted.backward()
        close(got, wanted)
        close(mine.grad, every.grad)
        close(gradients[used], alone.W.grad.unflatten(1, (-1, parts)).transpose(0, 1))
