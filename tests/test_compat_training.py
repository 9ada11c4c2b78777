"""Losses of nexus and sentence-transformers that train classifiers and encoders, and finetuner's names: formulas written out, errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastloss.metric
from fastloss.compat import finetuner, nexus
from fastloss.compat import sentence_transformers as st


def real(*shape):
    return torch.randn(shape, dtype=torch.float64)


def unit(x):
    return F.normalize(x, dim=-1)


def agree(ours, definition, *tensors):
    """Equal values and gradients of all tensors in float64."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    got, wanted = ours(*leaves), definition(*leaves)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    found, right = (torch.autograd.grad(value, leaves, allow_unused=True) for value in (got, wanted))
    for mine, theirs, leaf in zip(found, right, leaves):
        mine, theirs = (torch.zeros_like(leaf) if g is None else g for g in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


# nexus


def focal(x, y, gamma, alpha):
    log_p = x.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    return -alpha[y] * (1 - log_p.exp()) ** gamma * log_p


def test_focal_losses_of_nexus():
    x, y = real(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    ones, weight = torch.ones(4, dtype=torch.float64), torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=torch.float64)
    for reduction, of in (("mean", torch.mean), ("sum", torch.sum)):
        agree(lambda x: nexus.FocalLoss(0.5, 1.5, reduction)(x, y), lambda x: of(focal(x, y, 1.5, 0.5 * ones)), x)
        agree(lambda x: nexus.FocalLoss(0.5, 1.5, reduction)(x, y, weight), lambda x: of(focal(x, y, 1.5, 0.5 * weight)), x)
        agree(lambda x: nexus.WeightedFocalLoss(weight.tolist(), 1.5, reduction)(x, y), lambda x: of(focal(x, y, 1.5, weight)), x)
        plain = nexus.WeightedFocalLoss(0.25, 0.0, reduction)
        agree(lambda x: plain(x, y), lambda x: of(0.25 * F.cross_entropy(x, y, reduction="none")), x)
    assert nexus.FocalLoss(reduction="none")(x, y).shape == (6,)
    ignored = torch.tensor([0, -100, 1, 1, 2, 0])  # counts in the mean
    torch.testing.assert_close(nexus.FocalLoss()(x, ignored), focal(x, y, 2.0, ones)[[0, 2, 3, 4, 5]].sum() / 6)
    maps = nexus.FocalLoss()(real(2, 4, 3, 3), torch.randint(4, (2, 3, 3)))
    assert maps.dim() == 0
    assert nexus.FocalLoss(gamma=1.0)(torch.zeros(2, 4), torch.tensor([0, 3])).item() == pytest.approx(0.75 * math.log(4))
    for make in (nexus.FocalLoss, lambda **how: nexus.WeightedFocalLoss(1.0, **how)):
        with pytest.raises(ValueError, match="gamma must be at least 0"):
            make(gamma=-1.0)
        with pytest.raises(ValueError, match="not a valid value for reduction"):
            make(reduction="avg")


@pytest.mark.parametrize("square", [False, True])
def test_dice_loss_of_nexus(square):
    target = (torch.rand(2, 3, 4, 5) < 0.4).double()

    def definition(x):
        p = torch.sigmoid(x)
        sizes = [(v**2 if square else v).sum((2, 3)) for v in (p, target)]
        return 1 - ((2 * (p * target).sum((2, 3)) + 0.5) / (sum(sizes) + 0.5)).mean()

    agree(lambda x: nexus.DiceLoss(0.5, square)(x, target), definition, real(2, 3, 4, 5))
    torch.testing.assert_close(nexus.DiceLoss(0.5, square)(target, target.long()), definition(target))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 4, 5\) and \(2, 4, 5\)"):
        nexus.DiceLoss()(target, target[:, 0])


def test_pairs_of_nexus():
    u, v, w, y = real(5, 3), real(5, 3), real(5, 3), torch.tensor([1, 0, 0, 1, 0])

    def contrastive(u, v):
        d = F.pairwise_distance(u, v)
        return (y * d**2 + (1 - y) * F.relu(2.0 - d) ** 2).mean()

    agree(lambda u, v: nexus.ContrastiveLoss(2.0)(u, v, y), contrastive, u, v)
    for reduction, of in (("mean", torch.mean), ("sum", torch.sum)):
        agree(
            lambda u, v, w: nexus.TripletLoss(0.5, reduction)(u, v, w),
            lambda u, v, w: of(F.relu(F.pairwise_distance(u, v) - F.pairwise_distance(u, w) + 0.5)), u, v, w,
        )
    agree(
        lambda u, v: nexus.WingLoss(0.8, 0.5)(u, v),
        lambda u, v: torch.where(
            (u - v).abs() < 0.8, 0.8 * torch.log1p((u - v).abs() / 0.5), (u - v).abs() - 0.8 + 0.8 * math.log1p(1.6)
        ).mean(), u, v,
    )


def circle(x, y, m, gamma):
    cosine, rows = unit(x) @ unit(x).T, []
    for i in range(len(x)):
        positive, negative = (y == y[i]) & (torch.arange(len(x)) != i), y != y[i]
        s, n = cosine[i][positive], cosine[i][negative]
        near = torch.logsumexp(-gamma * F.relu(1 + m - s).detach() * (s - 1 + m), 0)
        rows.append(F.softplus(near + torch.logsumexp(gamma * F.relu(n + m).detach() * (n - m), 0)))
    return torch.stack(rows)


def test_circle_loss_of_nexus():
    x, y = real(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    for reduction, of in (("mean", torch.mean), ("sum", torch.sum), ("none", torch.Tensor.clone)):
        agree(lambda x: nexus.CircleLoss(0.3, 4.0, reduction)(x, y).sum(), lambda x: of(circle(x, y, 0.3, 4.0)).sum(), x)
    assert torch.equal(nexus.CircleLoss(reduction="none")(x, torch.arange(6)), torch.zeros(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="not a valid value for reduction"):
        nexus.CircleLoss(reduction="avg")


# sentence-transformers

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def distances(x, metric):
    return torch.cdist(x, x) if metric == "euclidean" else 1 - unit(x) @ unit(x).T


def all_triplets(x, metric, margin):
    d, losses = distances(x, metric), []
    for a in range(6):
        for p in range(6):
            for n in range(6):
                if a != p and LABELS[a] == LABELS[p] and LABELS[a] != LABELS[n]:
                    losses.append(F.relu(d[a, p] - d[a, n] + margin))
    losses = torch.stack(losses)
    return losses.sum() / (losses > 0).sum()


def semi_hard(x, metric, margin):
    d, losses = distances(x, metric), []
    for a in range(6):
        for p in range(6):
            if a != p and LABELS[a] == LABELS[p]:
                negatives = d[a][LABELS != LABELS[a]]
                farther = negatives[negatives > d[a, p]]
                losses.append(F.relu(d[a, p] - (farther.amin() if len(farther) else negatives.amax()) + margin))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_triplets_of_a_batch(metric):
    x = real(6, 3)
    for margin in (0.1, 1.0):
        agree(lambda x: st.BatchAllTripletLoss(metric, margin)([x], LABELS), lambda x: all_triplets(x, metric, margin), x)
        agree(lambda x: st.BatchSemiHardTripletLoss(metric, margin)([x], LABELS), lambda x: semi_hard(x, metric, margin), x)
    line = torch.tensor([[0.0], [1.0], [1.5], [4.0]])
    # pairs (0, 1) and (1, 0); negatives at 1.5 and 4 of row 0, of row 1 at 0.5 (nearer) and 3
    found = st.BatchSemiHardTripletLoss(margin=3.0)([line], torch.tensor([0, 0, 1, 2]))
    assert found.item() == pytest.approx(((1 - 1.5 + 3) + (1 - 3 + 3)) / 2)
    # a negative as far as the positive is not farther: of row 0 the one at 4 counts; row 1 has one at 2 and one at 3
    tie = torch.tensor([[0.0], [1.0], [-1.0], [4.0]])
    found = st.BatchSemiHardTripletLoss(margin=5.0)([tie], torch.tensor([0, 0, 1, 2]))
    assert found.item() == pytest.approx(((1 - 4 + 5) + (1 - 2 + 5)) / 2)
    for made in (st.BatchAllTripletLoss(metric), st.BatchSemiHardTripletLoss(metric)):
        for labels in (torch.arange(6), torch.zeros(6, dtype=torch.long)):
            leaf = x.clone().requires_grad_()
            loss = made([leaf], labels)
            assert loss == 0 and torch.autograd.grad(loss, leaf)[0].eq(0).all()
        with pytest.raises(ValueError, match="'euclidean' or 'cosine', got 'manhattan'"):
            type(made)("manhattan")
        with pytest.raises(ValueError, match="wanted 1 tensors of embeddings, got 2"):
            made([x, x], LABELS)


def gist(a, p, negatives, guide_a, guide_p, guide_negatives, limit, anchors=True, positives=True):
    rows = []
    for i in range(len(a)):
        theta = limit(float(guide_a[i] @ guide_p[i]))
        scores = [a[i] @ p[i]]
        scores += [a[i] @ p[j] for j in range(len(a)) if j != i and guide_a[i] @ guide_p[j] <= theta]
        scores += [a[i] @ a[j] for j in range(len(a)) if anchors and j != i and guide_a[i] @ guide_a[j] <= theta]
        scores += [p[i] @ p[j] for j in range(len(a)) if positives and j != i and guide_p[i] @ guide_p[j] <= theta]
        for n, g in zip(negatives, guide_negatives):
            scores += [a[i] @ n[j] for j in range(len(a)) if guide_a[i] @ g[j] <= theta]
        scores = torch.stack(scores) / 0.1
        rows.append(scores.logsumexp(0) - scores[0])
    return torch.stack(rows).mean()


@pytest.mark.parametrize(
    ("options", "limit"),
    [({}, lambda s: s), ({"margin": 0.2}, lambda s: s - 0.2),
     ({"margin": 0.3, "margin_strategy": "relative"}, lambda s: s - 0.3 * abs(s)), ({"contrast_anchors": False}, lambda s: s),
     ({"contrast_positives": False}, lambda s: s)],
    ids=["margin 0", "margin 0.2", "relative margin", "no anchors", "no positives"],
)
def test_gist(options, limit):
    columns, guides = [real(6, 4) for _ in range(3)], [unit(real(6, 3)) for _ in range(3)]
    side = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0]).unsqueeze(1)  # the guide finds two positives unlike their anchors
    guides[1] = unit(side * guides[0] + 0.5 * guides[1])
    switches = {name.removeprefix("contrast_"): value for name, value in options.items() if name.startswith("contrast_")}

    def definition(a, p, n):
        return gist(unit(a), unit(p), [unit(n)], guides[0], guides[1], [guides[2]], limit, **switches)

    agree(lambda a, p, n: st.GISTEmbedLoss(0.1, **options)([a, p, n], guides), definition, *columns)
    with pytest.raises(ValueError, match="margin_strategy must be"):
        st.GISTEmbedLoss(margin_strategy="both")
    with pytest.raises(ValueError, match="temperature must be positive"):
        st.GISTEmbedLoss(0.0)


def test_distillation_of_scores():
    columns, teacher = [real(5, 4) for _ in range(4)], real(5, 3)

    def definition(*columns, similarity=lambda x, y: (x * y).sum(1), t=1.0):
        scores = torch.stack([similarity(columns[0], document) for document in columns[1:]], 1)
        return t * t * F.kl_div((scores / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")

    agree(lambda *columns: st.DistillKLDivLoss()(columns, teacher), definition, *columns)
    made = st.DistillKLDivLoss(F.cosine_similarity, 2.0)
    agree(lambda *columns: made(columns, teacher), lambda *columns: definition(*columns, similarity=F.cosine_similarity, t=2.0), *columns)
    with pytest.raises(ValueError, match="temperature must be positive"):
        st.DistillKLDivLoss(temperature=0.0)
    with pytest.raises(ValueError, match="wanted 3 or more tensors of embeddings, got 2"):
        made(columns[:2], teacher)


def test_orthogonal_regularization():
    def definition(*columns, dot=False, mean=1.0, second=1.0):
        losses = []
        for x in columns:
            scores = x @ x.T if dot else unit(x) @ unit(x).T
            others = scores[~torch.eye(len(x), dtype=torch.bool)]
            losses.append(mean * others.mean() ** 2 + second * F.relu((others**2).mean() - 1 / x.shape[1]))
        return torch.stack(losses)

    u, v = real(5, 8), real(5, 8) + 1
    agree(lambda u, v: st.GlobalOrthogonalRegularizationLoss()([u, v]), lambda u, v: definition(u, v).mean(), u, v)
    made = st.GlobalOrthogonalRegularizationLoss("dot", 0.5, 2.0, "sum")
    agree(lambda u, v: made([u, v]), lambda u, v: definition(u, v, dot=True, mean=0.5, second=2.0).sum(), u, v)
    made = st.GlobalOrthogonalRegularizationLoss(second_moment_weight=None)
    agree(lambda v: made([v]), lambda v: definition(v, second=0.0).sum(), v)
    with pytest.raises(ValueError, match="aggregation must be"):
        st.GlobalOrthogonalRegularizationLoss(aggregation="max")
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        made([u[:1]])


def test_mega_batch_margin():
    def definition(a, p):
        scores, rows = unit(a) @ unit(p).T, []
        for i in range(len(a)):
            hardest = torch.cat([scores[i, :i], scores[i, i + 1 :]]).amax()
            rows.append(F.relu(0.9 - scores[i, i]) + F.relu(hardest - 0.1))
        return torch.stack(rows).mean()

    agree(lambda a, p: st.MegaBatchMarginLoss(0.9, 0.1)([a, p]), definition, real(6, 4), real(6, 4))
    near = real(6, 4)
    agree(lambda a, p: st.MegaBatchMarginLoss(0.9, 0.1)([a, p]), definition, near, near + 0.1 * real(6, 4))


# finetuner

CENTRES = (
    "ArcFaceLoss", "CosFaceLoss", "SphereFaceLoss", "LargeMarginSoftmaxLoss", "NormalizedSoftmaxLoss", "SoftTripleLoss", "ProxyAnchorLoss",
    "ProxyNCALoss",
)


def test_losses_by_name():
    assert len(finetuner.LOSSES) == 32
    needed = dict.fromkeys(CENTRES, {"num_classes": 3, "embedding_size": 4}) | {
        "CrossBatchMemory": {"loss": "ContrastiveLoss", "embedding_size": 4}, "GenericPairLoss": {"mat_based_loss": True},
        "MultipleLosses": {"losses": ["TripletMarginLoss", "CircleLoss"]},
    }
    for name, kind in finetuner.LOSSES.items():
        assert type(finetuner.make_loss(name, **needed.get(name, {}))) is kind
    assert type(finetuner.make_loss()) is fastloss.metric.losses.TripletMarginLoss
    assert finetuner.NTXLoss is fastloss.metric.losses.NTXentLoss
    assert finetuner.make_loss("ContrastiveLoss", neg_margin=0.5).neg_margin == 0.5
    memory = finetuner.make_loss("CrossBatchMemory", loss="TripletMarginLoss", embedding_size=4)
    assert type(memory.loss) is fastloss.metric.losses.TripletMarginLoss
    several = finetuner.make_loss("MultipleLosses", losses={"a": "CircleLoss", "b": finetuner.make_loss()}, weights={"a": 1.0, "b": 2.0})
    x, y = real(6, 4), LABELS
    wanted = finetuner.make_loss("CircleLoss")(x, y) + 2 * finetuner.make_loss()(x, y)
    torch.testing.assert_close(several(x, y), wanted)
    assert finetuner.make_miner() is None
    assert finetuner.make_miner("TripletMarginMiner", margin=0.3).margin == 0.3
    with pytest.raises(ValueError, match="unknown loss 'HingeLoss'; wanted one of AngularLoss, ArcFaceLoss"):
        finetuner.make_loss("HingeLoss")
    with pytest.raises(ValueError, match="unknown miner 'BaseMiner'; wanted one of AngularMiner"):
        finetuner.make_miner("BaseMiner")


def test_clip_of_finetuner():
    image, text = real(5, 4), real(5, 4)
    made = finetuner.CLIPLoss(0.5)

    def definition(image, text):
        scores, target = unit(image) @ unit(text).T / 0.5, torch.arange(5)
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2

    made.double()
    agree(made, definition, image, text)
    (slope,) = torch.autograd.grad(made(image, text), made.logit_scale)
    assert slope != 0 and made(image.half(), text.half()).dtype == torch.float16
    with pytest.raises(ValueError, match="temperature must be positive"):
        finetuner.CLIPLoss(0.0)


def test_centroid_triplets():
    def definition(x, margin=0.3):
        x, losses = unit(x), []
        for i in range(6):
            mates = [j for j in range(6) if j != i and LABELS[j] == LABELS[i]]
            for k in range(3):
                if mates and k != LABELS[i]:
                    near, far = x[mates].mean(0), x[LABELS == k].mean(0)
                    losses.append(F.relu(margin + (x[i] - near).norm() - (x[i] - far).norm()))
        losses = torch.stack(losses)
        return losses.sum() / (losses > 0).sum()

    x = real(6, 4)
    agree(lambda x: finetuner.CentroidTripletLoss(0.3)(x, LABELS), definition, x)
    for labels in (torch.arange(6), torch.zeros(6, dtype=torch.long)):
        assert finetuner.CentroidTripletLoss()(x, labels) == 0
    same = torch.ones(4, 2, requires_grad=True)
    assert torch.autograd.grad(finetuner.CentroidTripletLoss()(same, torch.tensor([0, 0, 1, 1])), same)[0].isfinite().all()
    # on the circle: 0 and 90 degrees, and the opposite of the first; margin 0
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = finetuner.CentroidTripletLoss(1.0)(corners, torch.tensor([0, 0, 1]))
    assert found.item() == pytest.approx(((1 + math.sqrt(2) - 2) + 1) / 2)
    with pytest.raises(ValueError, match=r"wanted embeddings \(N, D\) and labels \(N\), got \(6, 4\) and \(5,\)"):
        finetuner.CentroidTripletLoss()(x, LABELS[:5])


def test_class_sampler():
    labels = torch.arange(24) % 6
    batches = list(finetuner.make_sampler(labels, 8, num_items_per_class=2, generator=torch.Generator().manual_seed(0)))
    assert batches and all(len(batch) == 8 for batch in batches)
    assert all(sorted(torch.bincount(labels[batch]).tolist())[-4:] == [2] * 4 for batch in batches)
    forced = list(finetuner.make_sampler(labels, 8, "TripletMarginLoss", "random", 4))
    assert all(set(torch.bincount(labels[batch]).tolist()) <= {0, 4} for batch in forced)


def test_samplers_by_loss():
    for name in finetuner.LOSSES:
        found = [finetuner.sampler_of(name, sampler) for sampler in ("auto", "class", "random")]
        if name in CENTRES:
            assert found == ["random", "class", "random"]
        else:
            assert found == [{"CosineSimilarityLoss": "random", "MarginMSELoss": "random"}.get(name, "class")] * 3
    with pytest.raises(ValueError, match="sampler must be 'auto', 'class' or 'random', got 'hard'"):
        finetuner.sampler_of(sampler="hard")
    with pytest.raises(ValueError, match="unknown loss"):
        finetuner.sampler_of("HingeLoss")
    batches = list(finetuner.make_sampler(torch.arange(10), 4, "ArcFaceLoss", generator=torch.Generator().manual_seed(0)))
    assert sorted(sum(batches, [])) == list(range(10)) and [len(batch) for batch in batches] == [4, 4, 2]
    with pytest.raises(ValueError, match="multiple of num_items_per_class=4, got 10"):
        finetuner.make_sampler(LABELS, 10)

