"""Contrastive losses under other libraries' names: signatures, values of the formulas written out with whole matrices, and errors."""

from __future__ import annotations

import inspect
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastloss.compat import lightly, nexus, open_clip
from fastloss.compat import sentence_transformers as st

ANY = inspect.Parameter.empty
GATHER = {"gather_distributed": False}
SIGNATURES = {
    open_clip: {
        "ClipLoss": {"local_loss": False, "gather_with_grad": False, "cache_labels": False, "rank": 0, "world_size": 1,
                     "use_horovod": False},
        "SigLipLoss": {"cache_labels": False, "rank": 0, "world_size": 1, "dist_impl": None},
    },
    nexus: {
        "InfoNCELoss": {"temperature": 0.07},
        "SigmoidContrastiveLoss": {"temperature": 0.1, "bias": 0.0},
        "NTXentLoss": {"temperature": 0.5},
        "VICRegLoss": {"sim_coeff": 25.0, "std_coeff": 25.0, "cov_coeff": 1.0, "variance_target": 1.0},
        "BarlowTwinsLoss": {"lambd": 0.005},
        "CircleLoss": {"m": 0.25, "gamma": 256, "reduction": "mean"},
        "ContrastiveLoss": {"margin": 1.0},
        "DiceLoss": {"smooth": 1.0, "square": False},
        "FocalLoss": {"alpha": 1.0, "gamma": 2.0, "reduction": "mean"},
        "TripletLoss": {"margin": 1.0, "reduction": "mean"},
        "WeightedFocalLoss": {"alpha": ANY, "gamma": 2.0, "reduction": "mean"},
        "WingLoss": {"omega": 10.0, "epsilon": 2.0},
    },
    lightly: {
        "NTXentLoss": {"temperature": 0.5, "memory_bank_size": 0} | GATHER,
        "DCLLoss": {"temperature": 0.1, "weight_fn": None} | GATHER,
        "DCLWLoss": {"temperature": 0.1, "sigma": 0.5} | GATHER,
        "VICRegLoss": {"lambda_param": 25.0, "mu_param": 25.0, "nu_param": 1.0, **GATHER, "eps": 0.0001},
        "BarlowTwinsLoss": {"lambda_param": 5e-3} | GATHER,
        "DINOLoss": {"output_dim": 65536, "warmup_teacher_temp": 0.04, "teacher_temp": 0.04, "warmup_teacher_temp_epochs": 30,
                     "student_temp": 0.1, "center_momentum": 0.9, "center_mode": "mean"},
        "IBOTPatchLoss": {"output_dim": ANY, "teacher_temp": 0.04, "student_temp": 0.1, "center_mode": "mean", "center_momentum": 0.9},
        "KoLeoLoss": {"p": 2, "eps": 1e-8, "topk": 1, "group_size": None} | GATHER,
    },
    st: {
        "MultipleNegativesRankingLoss": {"scale": 20.0, "similarity_fct": "cosine", "directions": ("query_to_doc",),
                                         "partition_mode": "joint", "hardness_mode": None, "hardness_strength": 0.0},
        "MultipleNegativesSymmetricRankingLoss": {"scale": 20.0, "similarity_fct": "cosine"},
        "MarginMSELoss": {}, "CosineSimilarityLoss": {}, "CoSENTLoss": {"scale": 20.0}, "AnglELoss": {"scale": 20.0},
        "ContrastiveLoss": {"distance_metric": "cosine", "margin": 0.5, "size_average": True},
        "OnlineContrastiveLoss": {"distance_metric": "cosine", "margin": 0.5},
        "TripletLoss": {"distance_metric": "euclidean", "triplet_margin": 5.0},
        "BatchHardTripletLoss": {"distance_metric": "euclidean", "margin": 5.0},
        "BatchHardSoftMarginTripletLoss": {"distance_metric": "euclidean"},
        "BatchAllTripletLoss": {"distance_metric": "euclidean", "margin": 5.0},
        "BatchSemiHardTripletLoss": {"distance_metric": "euclidean", "margin": 5.0},
        "DistillKLDivLoss": {"similarity_fct": None, "temperature": 1.0},
        "GISTEmbedLoss": {"temperature": 0.01, "margin_strategy": "absolute", "margin": 0.0, "contrast_anchors": True,
                          "contrast_positives": True},
        "GlobalOrthogonalRegularizationLoss": {"similarity_fct": "cosine", "mean_weight": 1.0, "second_moment_weight": 1.0,
                                               "aggregation": "mean"},
        "MegaBatchMarginLoss": {"positive_margin": 0.8, "negative_margin": 0.3},
    },
}


@pytest.mark.parametrize("module", SIGNATURES, ids=lambda module: module.__name__)
def test_names_and_signatures(module):
    assert set(module.__all__) == set(SIGNATURES[module])
    for name, wanted in SIGNATURES[module].items():
        made = getattr(module, name)
        taken = inspect.signature(made).parameters if made.__init__ is not torch.nn.Module.__init__ else {}
        found = {n: p.default for n, p in taken.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
        assert list(found.items()) == list(wanted.items()), name


def leaves(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def agree(ours, definition, tensors, extra=()) -> None:
    """Equal values and gradients in float64."""
    got, wanted = ours(*tensors, *extra), definition(*tensors, *extra)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    learned = [t for t in (*tensors, *extra) if isinstance(t, torch.Tensor) and t.requires_grad]
    for mine, theirs in zip(torch.autograd.grad(got, learned, allow_unused=True), torch.autograd.grad(wanted, learned, allow_unused=True)):
        mine = torch.zeros(()) if mine is None else mine
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-8, atol=1e-9)


def unit(x):
    return F.normalize(x, dim=-1)


def without_diagonal(scores):
    return scores[~torch.eye(len(scores), dtype=torch.bool)].view(len(scores), -1)


def clip(x, t, scale, bias=0.0):
    scores, target = scale * x @ t.T + bias, torch.arange(len(x))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def siglip(x, t, scale, bias):
    scores = scale * x @ t.T + (0.0 if bias is None else bias)
    return -F.logsigmoid((2 * torch.eye(len(x)) - 1) * scores).sum() / len(x)


def test_open_clip():
    x, t = leaves((6, 4), (6, 4))
    scale, bias = torch.tensor(3.0, dtype=torch.float64, requires_grad=True), torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    agree(open_clip.ClipLoss(), clip, (x, t), (scale,))
    agree(open_clip.ClipLoss(), clip, (x, t), (scale, bias))
    agree(open_clip.SigLipLoss(), siglip, (x, t), (scale, bias))
    agree(open_clip.SigLipLoss(), siglip, (x, t), (scale, None))
    for loss in (open_clip.ClipLoss(), open_clip.SigLipLoss()):
        named = loss(x, t, scale, bias, output_dict=True)
        assert list(named) == ["contrastive_loss"] and torch.equal(named["contrastive_loss"], loss(x, t, scale, bias))
    with pytest.raises(NotImplementedError, match="Horovod"):
        open_clip.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="ring.*bidir"):
        open_clip.SigLipLoss(dist_impl="ring")


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_compat_contrastive import clip, siglip
from fastloss.compat import open_clip
rank, world = int(sys.argv[2]), 2
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=world)
torch.manual_seed(0)
images, texts = (torch.randn(world, 3, 4, dtype=torch.float64) for _ in range(2))
x, t = (f[rank].clone().requires_grad_() for f in (images, texts))
every = [f.flatten(0, 1).clone().requires_grad_() for f in (images, texts)]
whole = torch.autograd.grad(clip(*every, 3.0), every)
mine = slice(3 * rank, 3 * rank + 3)
for local in (False, True):
    for with_grad in (False, True):
        value = open_clip.ClipLoss(local, with_grad, rank=rank, world_size=world)(x, t, 3.0)
        target = torch.arange(3) + 3 * rank
        a, b = 3.0 * every[0] @ every[1].T, 3.0 * every[1] @ every[0].T
        of_own = (torch.nn.functional.cross_entropy(a[mine], target) + torch.nn.functional.cross_entropy(b[mine], target)) / 2
        torch.testing.assert_close(value, of_own if local else clip(*every, 3.0))
        found = torch.autograd.grad(value, (x, t))
        if with_grad:  # summed over processes, a mean of which is the whole loss (local) or which each have it (not)
            for grad, wanted in zip(found, whole):
                torch.testing.assert_close(grad, wanted[mine] * world)
        elif not local:
            for grad, wanted in zip(found, whole):
                torch.testing.assert_close(grad, wanted[mine])
        else:
            one, other = (f.detach().clone() for f in every)
            u, v = (f[rank].clone().requires_grad_() for f in (images, texts))
            rows = [torch.nn.functional.cross_entropy(3.0 * f @ g.T, target) for f, g in ((u, other), (v, one))]
            for grad, wanted in zip(found, torch.autograd.grad(sum(rows) / 2, (u, v))):
                torch.testing.assert_close(grad, wanted)
for impl in (None, "gather"):
    value = open_clip.SigLipLoss(rank=rank, world_size=world, dist_impl=impl)(x, t, 3.0, -1.0)
    scores = 3.0 * every[0] @ every[1].T - 1.0
    sign = 2 * torch.eye(6) - 1
    rows = -torch.nn.functional.logsigmoid(sign * scores).sum(1)
    torch.testing.assert_close(value, rows[mine].mean())
    found = torch.autograd.grad(value, (x, t))
    for grad, wanted in zip(found, torch.autograd.grad(rows.sum() / 3, every)):
        torch.testing.assert_close(grad, wanted[mine])
dist.destroy_process_group()
print("agreed")
"""


@pytest.mark.slow
def test_open_clip_over_two_processes(tmp_path):
    folder = __file__.rsplit("/", 1)[0]
    command = [sys.executable, "-c", DISTRIBUTED, folder]
    both = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in range(2)]
    told = [process.communicate(timeout=240) for process in both]
    assert all(out.strip() == "agreed" for out, _ in told), told


def info_nce(a, p, n, temperature):
    scores = torch.cat([(unit(a) * unit(p)).sum(1, keepdim=True), unit(a) @ unit(n).T], 1) / temperature
    return F.cross_entropy(scores, torch.zeros(len(a), dtype=torch.long))


def nt_xent(x, y, temperature):
    z, n = unit(torch.cat([x, y])), len(x)
    scores = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def vicreg(x, y, sim, std, cov, eps=1e-4):
    loss = sim * F.mse_loss(x, y)
    for z in (x, y):
        loss = loss + std * F.relu(1 - torch.sqrt(z.var(0) + eps)).mean()
        loss = loss + cov * without_diagonal(torch.cov(z.T)).square().sum() / z.shape[1]
    return loss


def barlow(x, y, lambd, normal):
    c = normal(x).T @ normal(y) / len(x)
    return (c.diagonal() - 1).square().sum() + lambd * without_diagonal(c).square().sum()


def test_nexus():
    x, y, n = leaves((5, 4), (5, 4), (3, 4))
    agree(nexus.InfoNCELoss(0.2), partial(info_nce, temperature=0.2), (x, y, n))
    assert nexus.InfoNCELoss()(x, y, n[:0]) == 0
    agree(nexus.NTXentLoss(), partial(nt_xent, temperature=0.5), (x, y))
    agree(nexus.VICRegLoss(2.0, 3.0, 0.5), lambda a, b: vicreg(a, b, 2.0, 3.0, 0.5), (x, y))
    agree(nexus.BarlowTwinsLoss(0.1), lambda a, b: barlow(a, b, 0.1, lambda z: (z - z.mean(0)) / (z.std(0) + 1e-4)), (x, y))
    loss = nexus.SigmoidContrastiveLoss(0.2, -1.5).double()
    assert list(loss.state_dict()) == ["bias"]
    agree(lambda a, b, bias: loss(a, b), lambda a, b, bias: siglip(unit(a), unit(b), 5.0, bias) / len(a), (x, y), (loss.bias,))


def dcl(x, y, temperature, weight_fn=None):
    losses = []
    x, y = unit(x), unit(y)
    for a, b in ((x, y), (y, x)):
        within, across = (torch.logsumexp(without_diagonal(a @ c.T / temperature), 1) for c in (a, b))
        weight = 1.0 if weight_fn is None else weight_fn(a, b)
        losses.append((within + across - weight * (a * b).sum(1) / temperature).mean())
    return 0.5 * (losses[0] + losses[1])


def test_lightly():
    x, y = leaves((6, 4), (6, 4))
    agree(lightly.NTXentLoss(0.3), partial(nt_xent, temperature=0.3), (x, y))
    agree(lightly.DCLLoss(0.2), partial(dcl, temperature=0.2), (x, y))
    weigh = lambda a, b: (a - b).square().sum(1)  # noqa: E731
    agree(lightly.DCLLoss(0.2, weigh), partial(dcl, temperature=0.2, weight_fn=weigh), (x, y))
    mises = lambda a, b: 2 - len(a) * torch.softmax((a * b).sum(1).detach() / 0.4, 0)  # noqa: E731
    agree(lightly.DCLWLoss(0.2, 0.4), partial(dcl, temperature=0.2, weight_fn=mises), (x, y))
    agree(lightly.VICRegLoss(2.0, 3.0, 0.5, eps=1e-3), lambda a, b: vicreg(a, b, 2.0, 1.5, 0.5, 1e-3), (x, y))
    agree(lightly.BarlowTwinsLoss(0.1), lambda a, b: barlow(a, b, 0.1, partial(F.batch_norm, running_mean=None, running_var=None,
                                                                             training=True)), (x, y))

    def koleo(z):
        z = unit(z)
        nearest = (z @ z.T - 3 * torch.eye(len(z))).argmax(1)
        return -torch.log(F.pairwise_distance(z, z[nearest], eps=1e-8) + 1e-8).mean()

    got, wanted = lightly.KoLeoLoss()(x), koleo(x)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(wanted, x), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(lightly.KoLeoLoss(group_size=3)(x), (koleo(x[:3]) + koleo(x[3:])) / 2, rtol=1e-6, atol=0)


def test_lightlys_dino():
    """Two steps, the second with the centre that the first one left."""
    teachers, students = leaves((5, 7), (5, 7)), leaves((5, 7), (5, 7), (5, 7))
    loss = lightly.DINOLoss(7, warmup_teacher_temp=0.1, teacher_temp=0.3, warmup_teacher_temp_epochs=3, student_temp=0.2).double()

    def definition(center, temperature):
        q = [torch.softmax((t.detach() - center) / temperature, -1) for t in teachers]
        pairs = [(q[t], s) for t in range(2) for i, s in enumerate(students) if i != t]
        return -torch.stack([(q * F.log_softmax(s / 0.2, -1)).sum(-1).mean() for q, s in pairs]).mean()

    center = torch.zeros(7, dtype=torch.float64)
    for step, (options, temperature) in enumerate((({"epoch": 1}, 0.2), ({}, 0.3), ({"epoch": 5}, 0.3), ({"teacher_temp": 0.5}, 0.5))):
        agree(lambda *s: loss([t.detach() for t in teachers], list(s), **options), lambda *s: definition(center, temperature), students)
        center = 0.9 * center + 0.1 * torch.cat(teachers).mean(0).detach()
        torch.testing.assert_close(loss.center.flatten(), center, msg=str(step))
    assert list(loss.state_dict()) == ["center"] and loss.center.shape == (1, 1, 7)
    with pytest.raises(ValueError, match="Unknown mode 'median'"):
        lightly.DINOLoss(7, center_mode="median")


def test_lightlys_ibot():
    mask = torch.rand(3, 4, 2) < 0.4
    mask[1] = False
    (student,) = leaves((int(mask.sum()), 6))
    teacher = torch.randn_like(student)
    loss = lightly.IBOTPatchLoss(6, 0.3, 0.2).double()
    loss.center.center += 0.5

    def definition(s):
        rows = -(torch.softmax((teacher - 0.5) / 0.3, -1) * F.log_softmax(s / 0.2, -1)).sum(-1)
        image = mask.nonzero()[:, 0]
        return sum(rows[image == b].mean() for b in (0, 2)) / 3

    agree(lambda s: loss(teacher, s, mask), definition, (student,))
    torch.testing.assert_close(loss.center.value[0], 0.9 * 0.5 + 0.1 * teacher.mean(0))
    assert list(loss.state_dict()) == ["center.center"]


def test_lightlys_memory_bank():
    loss = lightly.NTXentLoss(0.2, memory_bank_size=(7, 4))
    assert loss.bank.shape == (7, 4) and not loss.state_dict()
    bank = loss.bank.clone()
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    for start in (0, 3, 6, 0):
        torch.testing.assert_close(loss(x, y), info_nce(x, y, bank, 0.2))
        bank[start : start + 3] = unit(y)[: 7 - start]
        torch.testing.assert_close(loss.bank, bank)
        y = torch.randn(3, 4)
    loss(x.detach(), y)
    torch.testing.assert_close(loss.bank, bank)
    inferred = lightly.NTXentLoss(memory_bank_size=5)
    inferred(x, y)
    assert inferred.bank.shape == (5, 4) and int(inferred.bank_ptr) == 3
    half = lightly.NTXentLoss(memory_bank_size=5)(x.bfloat16(), y.bfloat16())
    assert half.dtype == torch.bfloat16


def test_lightlys_errors():
    x = torch.randn(4, 3)
    for make, kind, words in (
        (lambda: lightly.NTXentLoss(0.0), ValueError, "Illegal temperature"),
        (lambda: lightly.NTXentLoss(memory_bank_size=-1), ValueError, "Illegal memory bank size"),
        (lambda: lightly.VICRegLoss()(x[:1], x[:1]), AssertionError, "batch size > 1"),
        (lambda: lightly.VICRegLoss()(x, x[:2]), AssertionError, "same shape"),
        (lambda: lightly.KoLeoLoss(topk=0), ValueError, "topk must be positive"),
        (lambda: lightly.KoLeoLoss(group_size=0), ValueError, "group_size must be positive"),
        (lambda: lightly.KoLeoLoss(p=1), NotImplementedError, "p=1"),
        (lambda: lightly.KoLeoLoss(group_size=3)(x), ValueError, "divisible"),
        (lambda: lightly.KoLeoLoss()(x[:0]), ValueError, "non-empty"),
    ):
        with pytest.raises(kind, match=words):
            make()


def test_sentence_transformers_ranking():
    q, p, n, m = leaves((5, 4), (5, 4), (5, 4), (5, 4))
    target = torch.arange(5)

    def ranking(q, p, *n, scale=20.0, similar=lambda a, b: unit(a) @ unit(b).T):
        return F.cross_entropy(scale * similar(q, torch.cat([p, *n])), target)

    listed = lambda loss: lambda *columns: loss(columns)  # noqa: E731
    agree(listed(st.MultipleNegativesRankingLoss()), ranking, (q, p))
    agree(listed(st.MultipleNegativesRankingLoss(5.0)), partial(ranking, scale=5.0), (q, p, n, m))

    def dot_score(a, b):
        return a @ b.T

    agree(listed(st.MultipleNegativesRankingLoss(1.0, dot_score)), partial(ranking, scale=1.0, similar=dot_score), (q, p, n))
    agree(listed(st.MultipleNegativesSymmetricRankingLoss()), lambda q, p: clip(unit(q), unit(p), 20.0), (q, p))
    with pytest.raises(ValueError, match="similarity_fct.*euclidean"):
        st.MultipleNegativesRankingLoss(similarity_fct="euclidean")
    with pytest.raises(ValueError, match="MultipleNegativesRankingLoss: wanted 2 or more tensors of embeddings, got 1"):
        st.MultipleNegativesRankingLoss()([q])


def test_sentence_transformers_pairs_and_triplets():
    u, v, w, z = leaves((6, 4), (6, 4), (6, 4), (6, 4))
    scores, y = torch.rand(6, dtype=torch.float64), torch.tensor([1, 0, 1, 0, 0, 1])
    cosine = F.cosine_similarity
    pair = lambda loss, labels: lambda *columns: loss(columns, labels)  # noqa: E731
    agree(pair(st.CosineSimilarityLoss(), scores), lambda a, b: F.mse_loss(cosine(a, b), scores), (u, v))
    margins = torch.randn(6, 2, dtype=torch.float64)

    def margin_mse(q, p, *n):
        found = torch.stack([(q * p).sum(1) - (q * x).sum(1) for x in n], 1)
        return F.mse_loss(found, margins)

    agree(pair(st.MarginMSELoss(), margins), margin_mse, (u, v, w, z))

    def order(score):
        wrong = scores.unsqueeze(1) < scores
        gaps = torch.where(wrong, 20 * (score.unsqueeze(1) - score), -torch.inf).flatten()
        return torch.logsumexp(torch.cat([torch.zeros(1, dtype=gaps.dtype), gaps]), 0)

    agree(pair(st.CoSENTLoss(), scores), lambda a, b: order(cosine(a, b)), (u, v))

    def angle(a, b):
        (a, b), (c, d) = a.chunk(2, 1), b.chunk(2, 1)
        norm = torch.sqrt((a**2 + b**2).sum(1) * (c**2 + d**2).sum(1))
        return order((((a * c + b * d) + (b * c - a * d)).sum(1) / norm).abs())

    agree(pair(st.AnglELoss(), scores), angle, (u, v))
    for metric, distance in (("cosine", lambda a, b: 1 - cosine(a, b)), ("euclidean", F.pairwise_distance),
                             ("manhattan", partial(F.pairwise_distance, p=1))):
        for size_average in (True, False):
            def contrastive(a, b, distance=distance, size_average=size_average):
                d = distance(a, b)
                rows = 0.5 * (y * d**2 + (1 - y) * F.relu(1.5 - d) ** 2)
                return rows.mean() if size_average else rows.sum()

            agree(pair(st.ContrastiveLoss(metric, 1.5, size_average), y), contrastive, (u, v))

        def online(a, b, distance=distance, y=y):
            d = distance(a, b)
            apart, together = d[y == 0], d[y == 1]
            apart_ = apart[apart < (together.max() if len(together) > 1 else apart.mean())]
            together_ = together[together > (apart.min() if len(apart) > 1 else together.mean())]
            return together_.square().sum() + F.relu(1.5 - apart_).square().sum()

        for labels in (y, torch.tensor([1, 0, 0, 0, 0, 0]), torch.tensor([1, 1, 1, 0, 1, 1])):
            agree(pair(st.OnlineContrastiveLoss(metric, 1.5), labels), partial(online, y=labels), (u, v))
        agree(pair(st.TripletLoss(metric, 2.0), None), lambda a, b, c, d=distance: F.relu(d(a, b) - d(a, c) + 2.0).mean(), (u, v, w))
    with pytest.raises(ValueError, match="ContrastiveLoss: wanted the distance.*chebyshev"):
        st.ContrastiveLoss("chebyshev")


def test_sentence_transformers_batch_hard():
    (x,), labels = leaves((8, 3)), torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    same = labels.unsqueeze(0) == labels.unsqueeze(1)

    def gaps(x):
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        return torch.where(same, d, -torch.inf).amax(1) - torch.where(same, torch.inf, d).amin(1)

    agree(lambda x: st.BatchHardTripletLoss(margin=0.5)([x], labels), lambda x: F.relu(gaps(x) + 0.5).mean(), (x,))
    agree(lambda x: st.BatchHardSoftMarginTripletLoss()([x], labels), lambda x: F.softplus(gaps(x)).mean(), (x,))
