"""dl_techniques's names: signatures, values and gradients of the formulas written out, numbers by hand, reductions, errors, factories."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from fastloss.compat import dl_techniques as dl

ANY = inspect.Parameter.empty
MEAN = "sum_over_batch_size"
SCALE = {"amplifying_scale": 73.0, "from_logits": False, "reduction": MEAN, "name": None}
LOGITS = {"label_smoothing": 0.0, "from_logits": True, "epsilon": 1e-8}


def named(name, **arguments):
    return {**arguments, "name": name, "reduction": MEAN}


# Names, and the arguments of each with their defaults, as the library documents them.
SIGNATURES = {
    "HuberLoss": named("huber_loss", delta=1.0),
    "SMAPELoss": named("smape_loss", epsilon=1e-8),
    "smape_metric": {"y_true": ANY, "y_pred": ANY},
    "MASELoss": named("mase_loss", seasonal_periods=1, epsilon=1e-8),
    "mase_metric": {"seasonal_periods": 1},
    "MQLoss": named("mq_loss", quantile=0.5),
    "QuantileLoss": named("quantile_loss", quantiles=ANY, normalize=False),
    "TabMLoss": named("tabm_loss", base_loss="mse", share_training_batches=True),
    "AffineInvariantLoss": named("affine_invariant_loss", epsilon=1e-6),
    "FeatureAlignmentLoss": named("feature_alignment_loss", margin=0.85),
    "ClusteringLoss": named("clustering_loss", distance_weight=1.0, distribution_weight=0.5),
    "ClusteringMetrics": dict.fromkeys(("silhouette", "inertia", "cluster_sizes", "cluster_distribution", "mean_distance"), ANY),
    "compute_clustering_metrics": {"data": ANY, "assignments": ANY},
    "bbox_iou": {"box1": ANY, "box2": ANY, "xywh": False, "GIoU": False, "DIoU": False, "CIoU": False, "eps": 1e-7},
    "BrierScoreLoss": {"from_logits": False, "reduction": MEAN, "name": None},
    "BrierScoreMetric": {"name": "brier_score", "from_logits": False},
    "SpiegelhalterZLoss": {"use_squared": True, "from_logits": False, "reduction": MEAN, "name": None},
    "SpiegelhalterZMetric": {"name": "spiegelhalter_z", "from_logits": False},
    "CombinedCalibrationLoss": {"alpha": 0.5, "use_squared_z": True, "from_logits": False, "reduction": MEAN, "name": None},
    "CapsuleMarginLoss": named("capsule_margin_loss", positive_margin=0.9, negative_margin=0.1, downweight=0.5),
    "capsule_margin_loss": dict.fromkeys(("y_pred", "y_true", "downweight", "positive_margin", "negative_margin"), ANY),
    "analyze_margin_loss_components": {"loss_fn": ANY, "y_true": ANY, "y_pred": ANY},
    "DecoupledInformationLoss": named("decoupled_information_loss", uncertainty_weight=0.2, diversity_weight=0.01, **LOGITS),
    "analyze_decoupled_information_loss": {"loss_fn": ANY, "y_true": ANY, "y_pred": ANY},
    "FocalUncertaintyLoss": named("focal_uncertainty_loss", uncertainty_weight=0.2, alpha=0.25, gamma=2.0, **LOGITS),
    "analyze_focal_uncertainty_loss": {"loss_fn": ANY, "y_true": ANY, "y_pred": ANY},
    "GoodhartAwareLoss": named(
        "goodhart_aware_loss", label_smoothing=0.0, entropy_weight=0.1, mi_weight=0.01, from_logits=True, epsilon=1e-8
    ),
    "analyze_loss_components": {"loss_fn": ANY, "y_true": ANY, "y_pred": ANY},
    "ApproximationFunction": {"amplifying_scale": 73.0},
    **{
        name + "Loss": SCALE
        for name in ("Any", "Accuracy", "F1", "BalancedAccuracy", "GeometricMean", "Precision", "Recall", "Specificity", "YoudenJ", "MCC",
                     "CohenKappa", "IoU", "Dice")
    },
    "FBetaLoss": {"beta": 1.0, **SCALE},
    "TverskyLoss": {"alpha": 0.5, "beta": 0.5, **SCALE},
    "FocalTverskyLoss": {"alpha": 0.7, "beta": 0.3, "gamma": 0.75, **SCALE},
    "WeightedCrossEntropyWithAnyLoss": {"anyloss": ANY, "alpha": 0.5, **SCALE},
    "SegmentationLossConfig": {
        "num_classes": ANY, "smooth_factor": 1e-6, "focal_gamma": 2.0, "focal_alpha": 0.25, "tversky_alpha": 0.3, "tversky_beta": 0.7,
        "focal_tversky_gamma": 1.3, "combo_alpha": 0.5, "combo_beta": 0.5, "boundary_theta": 1.5,
    },
    "SegmentationLosses": {"config": ANY},
    "SegmentationWrapperLoss": {"loss_name": ANY, "config": None, "reduction": MEAN, "name": None},
    "create_segmentation_loss_function": {"loss_name": ANY, "config": None},
    "CLIPContrastiveLoss": named(
        "clip_contrastive_loss", temperature=0.07, label_smoothing=0.0, apply_temperature=False, loss_weight_i2t=0.5, loss_weight_t2i=0.5
    ),
    "SigLIPContrastiveLoss": {"temperature": 1.0, "use_learnable_temperature": False, "reduction": MEAN,
                              "name": "siglip_contrastive_loss"},
    "AdaptiveSigLIPLoss": {"initial_temperature": 1.0, "min_temperature": 0.01, "max_temperature": 10.0, "adaptation_rate": 0.1,
                           "target_entropy": 0.5, "reduction": MEAN, "name": "adaptive_siglip_loss"},
    "HybridContrastiveLoss": {"siglip_weight": 1.0, "score_weight": 0.1, "temperature": 1.0, "noise_level": 0.1, "reduction": MEAN,
                              "name": "hybrid_contrastive_loss"},
    "create_siglip_loss": {"temperature": 1.0, "use_learnable_temperature": True},
    "create_adaptive_siglip_loss": {"initial_temperature": 1.0, "target_entropy": 0.5},
    "create_hybrid_loss": {"siglip_weight": 1.0, "score_weight": 0.1},
    "KoLeoLoss": named("koleo_loss", epsilon=1e-8),
    "WassersteinLoss": {"for_critic": True, "reduction": MEAN, "name": None},
    "WassersteinGradientPenaltyLoss": {"for_critic": True, "lambda_gp": 10.0, "reduction": MEAN, "name": None},
    "WassersteinDivergence": {"smooth_eps": 1e-7, "reduction": MEAN, "name": None},
    "compute_gradient_penalty": {"critic": ANY, "real_samples": ANY, "fake_samples": ANY, "lambda_gp": 10.0},
    "create_wgan_losses": {"lambda_gp": 10.0},
    "create_wgan_gp_losses": {"lambda_gp": 10.0},
    "Loss": {"reduction": MEAN, "name": None},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = inspect.signature(getattr(dl, name)).parameters
    found = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(found.items()) == list(SIGNATURES[name].items())


def real(*shape):
    return torch.randn(shape, dtype=torch.float64)


def probable(*shape):
    return torch.rand(shape, dtype=torch.float64) * 0.9 + 0.05


def binary(*shape):
    return (torch.rand(shape, dtype=torch.float64) < 0.4).double()


def one_hot(*shape):
    return F.one_hot(torch.randint(shape[-1], shape[:-1]), shape[-1]).double()


def unit(x):
    return F.normalize(x, dim=-1)


def pinball(u, q):
    return torch.maximum(q * u, (q - 1) * u)


def scaled(y, p, m):
    steps = y.shape[1]
    m = m if steps > m else 1
    scale = (y[:, m:] - y[:, :-m]).abs().mean() if steps > m else y.abs().mean()
    return (y - p).abs().mean() / scale.clamp_min(1e-8)


def spiegelhalter(y, p, tilted=False):
    w = 1 - 2 * p if tilted else torch.ones_like(p)
    return (w * (y - p)).sum() / torch.sqrt((w * w * p * (1 - p)).sum() + 1e-7)


def standardised(d):
    d = d.flatten(1)
    ordered, n = d.sort(1).values, d.shape[1]
    middle = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]).unsqueeze(1) / 2
    return (d - middle) / (d - middle).abs().mean(1, keepdim=True).clamp_min(1e-6)


def confusion(y, p, scale=73.0):
    a = torch.sigmoid(scale * (p - 0.5))
    return [x.sum() + 1e-7 for x in (y * a, y * (1 - a), (1 - y) * a, (1 - y) * (1 - a))]


def rates(y, p):
    tp, fn, fp, tn = confusion(y, p)
    return tp / (tp + fn), tn / (tn + fp)


def matthews(y, p):
    tp, fn, fp, tn = confusion(y, p)
    return (tp * tn - fp * fn) / torch.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def kappa(y, p):
    tp, fn, fp, tn = confusion(y, p)
    n = tp + fn + fp + tn
    seen, by_chance = (tp + tn) / n, ((tp + fn) * (tp + fp) + (tn + fp) * (tn + fn)) / n**2
    return (seen - by_chance) / (1 - by_chance)


def overlap_of(y, p, a, b, power=1.0):
    tp, fn, fp, _ = confusion(y, p)
    return (1 - tp / (tp + a * fp + b * fn)) ** power


def f_beta(y, p, b=1.0):
    tp, fn, fp, _ = confusion(y, p)
    return (1 + b * b) * tp / ((1 + b * b) * tp + b * b * fn + fp)


def bce(y, p):
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def capsule(y, v, low=0.1, high=0.9, down=0.5):
    return (y * F.relu(high - v) ** 2 + down * (1 - y) * F.relu(v - low) ** 2).sum(-1).mean()


def entropies(x):
    p = x.softmax(1)
    mean = p.mean(0)
    return -(p * p.log()).sum(1).mean(), -(mean * mean.log()).sum()


def smooth(y, a):
    return (1 - a) * y + a / y.shape[-1]


def cross(y, x):
    return -(y * x.log_softmax(1)).sum(1).mean()


def focal(y, x, alpha, gamma):
    p = x.softmax(1)
    return (-alpha * y * (1 - p) ** gamma * p.log()).sum(1).mean()


def decoupled(y, x, u=0.2, d=0.01, a=0.0):
    each, mean = entropies(x)
    return cross(smooth(y, a), x) - u * each - d * mean


def goodhart(y, x, a=0.0, we=0.1, wm=0.01):
    each, mean = entropies(x)
    return cross(smooth(y, a), x) - we * each + wm * F.relu(mean - each)


def divergence(y, p):
    y, p = (x.clamp_min(1e-7) / (x.clamp_min(1e-7).sum(-1, keepdim=True) + 1e-7) for x in (y, p))
    return (y.cumsum(-1) - p.cumsum(-1)).abs().mean(-1).mean()


def koleo(y, x):
    n = unit(x)
    s = (n @ n.T - 2 * torch.eye(len(x), dtype=x.dtype)).amax(1)
    return -torch.log(torch.sqrt(2 - 2 * s) + 1e-8).mean()


def clustering(t, p, d=1.0, u=0.5):
    return d * ((p - t) ** 2).mean() + u * ((p.mean(0) - 1 / p.shape[1]) ** 2).mean()


def alignment(t, x, margin=0.85):
    c = (unit(x) * unit(t)).sum(-1)
    return torch.where(c > margin, 0.0, 1 - c).mean()


def huber(y, p, d=1.0):
    e = (y - p).abs()
    return torch.where(e <= d, e**2 / 2, d * (e - d / 2)).mean()


def ensemble(y, p, base, members=3):
    return base(y.repeat_interleave(members, 0).view(len(y), members, -1), p)


# id: the loss, its formula, and how truth and predictions are drawn.
FORMULAS = {
    "huber": (dl.HuberLoss(0.7), lambda y, p: huber(y, p, 0.7), real(4, 6), real(4, 6)),
    "smape": (dl.SMAPELoss(), lambda y, p: 100 * ((y - p).abs() / ((y.abs() + p.abs()) / 2)).mean(), real(4, 6), real(4, 6)),
    "smape metric": (dl.smape_metric, lambda y, p: 200 * ((y - p).abs() / (y.abs() + p.abs())).mean(), real(4, 6), real(4, 6)),
    "mase": (dl.MASELoss(), lambda y, p: scaled(y, p, 1), real(4, 7), real(4, 7)),
    "mase, season": (dl.MASELoss(3), lambda y, p: scaled(y, p, 3), real(4, 7), real(4, 7)),
    "mase, too short": (dl.MASELoss(9), lambda y, p: scaled(y, p, 9), real(4, 7), real(4, 7)),
    "mase metric": (dl.mase_metric(2), lambda y, p: scaled(y, p, 2), real(4, 7), real(4, 7)),
    "mq": (dl.MQLoss(0.8), lambda y, p: pinball(y - p, 0.8).mean(), real(4, 7), real(4, 7)),
    "quantiles": (
        dl.QuantileLoss([0.1, 0.6]), lambda y, p: (pinball(y - p[..., 0], 0.1).mean() + pinball(y - p[..., 1], 0.6).mean()) / 2,
        real(4, 7), real(4, 7, 2),
    ),
    "quantiles, normalised": (
        dl.QuantileLoss([0.3], normalize=True),
        lambda y, p: (pinball(y - p[..., 0], 0.3) / y.abs().mean(1, keepdim=True).clamp_min(1)).mean(), 3 * real(4, 7), real(4, 7, 1),
    ),
    "tabm": (dl.TabMLoss(), lambda y, p: ensemble(y, p, lambda t, x: ((t - x) ** 2).mean()), real(5, 2), real(5, 3, 2)),
    "tabm, mae of scalars": (dl.TabMLoss("mae"), lambda y, p: (y.view(5, 1, 1) - p).abs().mean(), real(5), real(5, 3, 1)),
    "tabm, binary": (dl.TabMLoss("binary_crossentropy"), lambda y, p: ensemble(y, p, bce), binary(5, 2), probable(5, 3, 2)),
    "tabm, classes": (
        dl.TabMLoss("categorical_crossentropy"),
        lambda y, p: ensemble(y, p, lambda t, x: -(t * (x / x.sum(-1, keepdim=True)).log()).sum(-1).mean()), one_hot(5, 4),
        probable(5, 3, 4),
    ),
    "tabm, a loss": (dl.TabMLoss(dl.HuberLoss(0.5)), lambda y, p: ensemble(y, p, lambda t, x: huber(t, x, 0.5)), real(5, 2), real(5, 3, 2)),
    "tabm, members apart": (
        dl.TabMLoss(share_training_batches=False), lambda y, p: ((y - p.flatten(0, 1)) ** 2).mean(), real(15, 2), real(5, 3, 2),
    ),
    "affine invariant, odd": (
        dl.AffineInvariantLoss(), lambda y, p: (standardised(y) - standardised(p)).abs().mean(), real(3, 3, 5, 1), real(3, 3, 5, 1),
    ),
    "affine invariant, even": (
        dl.AffineInvariantLoss(), lambda y, p: (standardised(y) - standardised(p)).abs().mean(), real(3, 4, 5, 1), real(3, 4, 5, 1),
    ),
    "feature alignment": (dl.FeatureAlignmentLoss(0.3), lambda y, p: alignment(y, p, 0.3), real(4, 5, 3), real(4, 5, 3)),
    "clustering": (dl.ClusteringLoss(2.0, 0.25), lambda y, p: clustering(y, p, 2.0, 0.25), probable(6, 4), probable(6, 4)),
    "brier": (dl.BrierScoreLoss(), lambda y, p: ((p - y) ** 2).mean(), binary(5, 6), probable(5, 6)),
    "brier of logits": (dl.BrierScoreLoss(True), lambda y, x: ((torch.sigmoid(x) - y) ** 2).mean(), binary(5, 6), real(5, 6)),
    "spiegelhalter": (dl.SpiegelhalterZLoss(), lambda y, p: spiegelhalter(y, p) ** 2, binary(5, 6), probable(5, 6)),
    "spiegelhalter, absolute": (
        dl.SpiegelhalterZLoss(False, True), lambda y, x: spiegelhalter(y, torch.sigmoid(x)).abs(), binary(5, 6), real(5, 6),
    ),
    "spiegelhalter, classical": (
        dl.SpiegelhalterZLoss(variant="classical"), lambda y, p: spiegelhalter(y, p, True) ** 2, binary(5, 6), probable(5, 6),
    ),
    "calibration": (
        dl.CombinedCalibrationLoss(0.3, use_squared_z=False),
        lambda y, p: 0.3 * ((p - y) ** 2).mean() + 0.7 * spiegelhalter(y, p).abs(), binary(5, 6), probable(5, 6),
    ),
    "capsule": (dl.CapsuleMarginLoss(), capsule, one_hot(6, 5), probable(6, 5)),
    "capsule, function": (
        lambda y, v: dl.capsule_margin_loss(v, y, 0.25, 0.8, 0.2).mean(), lambda y, v: capsule(y, v, 0.2, 0.8, 0.25), one_hot(6, 5),
        probable(6, 5),
    ),
    "decoupled": (dl.DecoupledInformationLoss(), decoupled, one_hot(6, 5), real(6, 5)),
    "decoupled, smoothed": (
        dl.DecoupledInformationLoss(0.4, 0.1, 0.2), lambda y, x: decoupled(y, x, 0.4, 0.1, 0.2), one_hot(6, 5), real(6, 5),
    ),
    "decoupled, probabilities": (
        dl.DecoupledInformationLoss(from_logits=False), lambda y, p: decoupled(y, p.log()), one_hot(6, 5), probable(6, 5),
    ),
    "focal uncertainty": (
        dl.FocalUncertaintyLoss(), lambda y, x: focal(y, x, 0.25, 2) - 0.2 * entropies(x)[0], one_hot(6, 5), real(6, 5),
    ),
    "focal uncertainty, smoothed": (
        dl.FocalUncertaintyLoss(0.0, 0.5, 1.0, 0.3), lambda y, x: focal(smooth(y, 0.3), x, 0.5, 1), one_hot(6, 5), real(6, 5),
    ),
    "goodhart": (dl.GoodhartAwareLoss(0.1, 0.3, 0.05), lambda y, x: goodhart(y, x, 0.1, 0.3, 0.05), one_hot(6, 5), real(6, 5)),
    "weighted anyloss": (
        dl.WeightedCrossEntropyWithAnyLoss(dl.F1Loss(), 0.25), lambda y, p: 0.25 * (1 - f_beta(y, p)) + 0.75 * bce(y, p), binary(5, 6),
        probable(5, 6),
    ),
    "weighted anyloss of logits": (
        dl.WeightedCrossEntropyWithAnyLoss(dl.RecallLoss(from_logits=True), 0.5, from_logits=True),
        lambda y, x: 0.5 * (1 - rates(y, torch.sigmoid(x))[0]) + 0.5 * bce(y, torch.sigmoid(x)), binary(5, 6), real(5, 6),
    ),
    "wasserstein, critic": (dl.WassersteinLoss(), lambda y, f: ((1 - y) * f - y * f).mean(), binary(9), real(9)),
    "wasserstein, generator": (dl.WassersteinGradientPenaltyLoss(False), lambda y, f: -f.mean(), binary(9), real(9)),
    "wasserstein divergence": (dl.WassersteinDivergence(), divergence, probable(4, 6), probable(4, 6)),
    "koleo": (dl.KoLeoLoss(), koleo, real(7, 4), real(7, 4)),
}
# One minus these of soft counts.
SCORES = {
    dl.AccuracyLoss(): lambda y, p: sum(confusion(y, p)[::3]) / sum(confusion(y, p)),
    dl.F1Loss(): f_beta,
    dl.FBetaLoss(2.0): lambda y, p: f_beta(y, p, 2.0),
    dl.BalancedAccuracyLoss(): lambda y, p: sum(rates(y, p)) / 2,
    dl.GeometricMeanLoss(): lambda y, p: torch.sqrt(math.prod(rates(y, p))),
    dl.PrecisionLoss(): lambda y, p: confusion(y, p)[0] / sum(confusion(y, p)[::2]),
    dl.RecallLoss(): lambda y, p: rates(y, p)[0],
    dl.SpecificityLoss(): lambda y, p: rates(y, p)[1],
    dl.YoudenJLoss(): lambda y, p: sum(rates(y, p)) / 2,
    dl.MCCLoss(): lambda y, p: (matthews(y, p) + 1) / 2,
    dl.CohenKappaLoss(): lambda y, p: (kappa(y, p) + 1) / 2,
    dl.IoULoss(): lambda y, p: 1 - overlap_of(y, p, 1, 1),
    dl.DiceLoss(): lambda y, p: 1 - overlap_of(y, p, 0.5, 0.5),
    dl.TverskyLoss(0.2, 0.9): lambda y, p: 1 - overlap_of(y, p, 0.2, 0.9),
    dl.FocalTverskyLoss(): lambda y, p: 1 - overlap_of(y, p, 0.7, 0.3, 0.75),
}
FORMULAS |= {
    loss.name: (loss, lambda y, p, score=score: 1 - score(y, p), binary(5, 6), probable(5, 6)) for loss, score in SCORES.items()
}


def agree(ours, definition, y, p):
    """Equal values and gradients in float64."""
    p = p.clone().requires_grad_()
    got, wanted = ours(y, p), definition(y, p)
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(got, p)[0], torch.autograd.grad(wanted, p)[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients(name):
    agree(*FORMULAS[name])


@pytest.mark.parametrize(
    ("ours", "y", "p", "wanted"),
    [
        (dl.HuberLoss(), [0.0, 0.0], [0.5, 3.0], (0.125 + 2.5) / 2),
        (dl.SMAPELoss(), [1.0, 0.0], [3.0, 0.0], 50.0),
        (dl.MASELoss(), [[1.0, 2.0, 4.0], [1.0, 1.0, 2.0]], [[2.0, 2.0, 5.0], [1.0, 1.0, 1.0]], 0.5),
        (dl.MASELoss(), [[1.0, 1.0]], [[2.0, 1.0]], 0.5e8),  # a constant series has the least scale
        (dl.MASELoss(scale="series"), [[1.0, 2.0, 4.0], [1.0, 1.0, 2.0]], [[2.0, 2.0, 5.0], [1.0, 1.0, 1.0]], (2 / 1.5 + 2) / 6),
        (dl.MQLoss(0.75), [2.0, 2.0], [1.0, 3.0], 0.5),
        (dl.QuantileLoss([0.25, 0.75]), [[2.0]], [[[1.0, 1.0]]], 0.5),
        (dl.BrierScoreLoss(), [1, 0], [0.5, 0.5], 0.25),
        (dl.SpiegelhalterZLoss(), [1, 1], [0.5, 0.5], 2.0),
        (dl.CombinedCalibrationLoss(0.75), [1, 1], [0.5, 0.5], 0.1875 + 0.5),
        (dl.SpiegelhalterZLoss(), [1.0, 0.0], [0.0, 0.0], 1e7),  # certain and wrong: huge, and finite
        (dl.CapsuleMarginLoss(), [[1, 0], [0, 1]], [[0.4, 0.6], [0.05, 1.0]], 0.1875),
        (dl.AccuracyLoss(), [1, 1, 0, 0], [1.0, 0.0, 0.0, 0.0], 0.25),
        (dl.F1Loss(), [1, 1, 0, 0], [1.0, 0.0, 0.0, 0.0], 1 / 3),
        (dl.MCCLoss(), [1, 0], [0.0, 1.0], 1.0),
        (dl.RecallLoss(), [0, 0], [0.0, 0.0], 0.5),  # no positives: 1e-7 of 2e-7
        (dl.WassersteinLoss(), [1.0, 0.0], [3.0, 1.0], -1.0),
        (dl.WassersteinDivergence(1e-12), [[0.0, 0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]], 0.5),
        (dl.ClusteringLoss(), [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], 0.625),
        (dl.FeatureAlignmentLoss(), [[0.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [3.0, 4.0]], 0.5),
        (dl.AffineInvariantLoss(), [[0.0, 1.0, 3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]], 1 / 6),
        (dl.KoLeoLoss(), [0.0], [[2.0, 0.0], [0.0, 1.0], [0.0, -3.0]], -math.log(2) / 2),
        (dl.KoLeoLoss(), [0.0], [[2.0, 0.0]], 0.0),
    ],
    ids=lambda value: value.name if isinstance(value, dl.Loss) else "",
)
def test_by_hand(ours, y, p, wanted):
    got = ours(torch.tensor(y), torch.tensor(p, dtype=torch.float64))
    assert float(got) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_equal_rows_of_koleo_have_no_gradient():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = dl.KoLeoLoss()(None, x)
    assert loss.item() == pytest.approx(-math.log(1e-8)) and torch.autograd.grad(loss, x)[0].eq(0).all()


# Reductions, weights, settings


def test_reductions_and_weights():
    y, v, w = one_hot(3, 4), probable(3, 4), torch.tensor([1.0, 0.0, 3.0])
    rows = dl.CapsuleMarginLoss(reduction="none")(y, v)
    assert rows.shape == (3,)
    wanted = dict.fromkeys((MEAN, "mean", "mean_with_sample_weight"), rows.mean()) | {"sum": rows.sum(), None: rows}
    weighted = rows * w
    for reduction, plain in wanted.items():
        loss = dl.CapsuleMarginLoss(reduction=reduction)
        torch.testing.assert_close(loss(y, v), plain)
        divided = {"sum": weighted.sum(), None: weighted, "mean_with_sample_weight": weighted.sum() / 4}.get(reduction, weighted.mean())
        torch.testing.assert_close(loss(y, v, sample_weight=w), divided)
    assert dl.CapsuleMarginLoss(reduction="mean_with_sample_weight")(y, v, torch.zeros(3)) == 0
    y, f = binary(3, 2), real(3, 2)  # a weight for each row of losses
    torch.testing.assert_close(dl.WassersteinLoss()(y, f, w), (w.unsqueeze(1) * (1 - 2 * y) * f).mean())
    torch.testing.assert_close(
        dl.WassersteinLoss(reduction="mean_with_sample_weight")(y, f, w), (w.unsqueeze(1) * (1 - 2 * y) * f).sum() / 8
    )
    y, v = one_hot(3, 4), probable(3, 4)
    for reduction in (MEAN, "sum", "none"):  # a scalar stays what it is
        torch.testing.assert_close(dl.BrierScoreLoss(reduction=reduction)(y, v), dl.BrierScoreLoss()(y, v))
    with pytest.raises(ValueError, match="'batchmean' is not a valid value for reduction"):
        dl.BrierScoreLoss(reduction="batchmean")


def test_settings_make_the_loss_again():
    for loss in (dl.FBetaLoss(2.0, from_logits=True, backend="eager"), dl.MASELoss(3, scale="series"), dl.CLIPContrastiveLoss(0.5),
                 dl.create_segmentation_loss_function("dice", channels_first=True)):
        config = loss.get_config()
        assert set(config) == set(inspect.signature(type(loss)).parameters)
        assert type(loss).from_config(config).get_config() == config
    assert repr(dl.FBetaLoss(2.0)) == "FBetaLoss(beta=2.0)"
    assert dl.HuberLoss().name == "huber_loss" and dl.F1Loss().name == "F1Loss" and dl.F1Loss(name="f").name == "f"


def test_own_metrics():
    class Unlikelihood(dl.AnyLoss):
        def call(self, y_true, y_pred):
            tn, fn, fp, tp = self.compute_confusion_matrix(y_true, y_pred)
            return fp / (fp + tn + tp + fn)

    y, p = binary(5, 6), probable(5, 6)
    tp, fn, fp, tn = confusion(y, p, 10.0)
    torch.testing.assert_close(Unlikelihood(10.0).compute_confusion_matrix(y, p), (tn, fn, fp, tp))
    agree(Unlikelihood(10.0), lambda y, p: confusion(y, p, 10.0)[2] / sum(confusion(y, p, 10.0)), y, p)
    with pytest.raises(NotImplementedError, match="AnyLoss must define call"):
        dl.AnyLoss()(y, p)
    torch.testing.assert_close(dl.ApproximationFunction(10.0)(p), torch.sigmoid(10 * (p - 0.5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dl.HuberLoss(0.0), "delta must be positive"),
        (lambda: dl.SMAPELoss(0.0), "epsilon must be positive"),
        (lambda: dl.MASELoss(0), "seasonal_periods must be at least 1"),
        (lambda: dl.MASELoss(epsilon=-1.0), "epsilon must be positive"),
        (lambda: dl.MQLoss(1.0), r"in \(0, 1\), got 1.0"),
        (lambda: dl.QuantileLoss([0.5, 0.0]), r"in \(0, 1\), got 0.0"),
        (lambda: dl.QuantileLoss([]), "at least one quantile"),
        (lambda: dl.TabMLoss("hinge"), "base_loss must be one of mse"),
        (lambda: dl.TabMLoss()(torch.rand(3), torch.rand(3, 2)), r"y_pred must be \(B, k, O\)"),
        (lambda: dl.AffineInvariantLoss(0.0), "epsilon must be positive"),
        (lambda: dl.FeatureAlignmentLoss(1.5), r"margin must be in \[0, 1\]"),
        (lambda: dl.ClusteringLoss(distance_weight=0.0), "distance_weight must be positive and finite"),
        (lambda: dl.ClusteringLoss(distribution_weight=math.inf), "distribution_weight must be positive and finite"),
        (lambda: dl.CombinedCalibrationLoss(1.5), r"alpha must be in \[0, 1\]"),
        (lambda: dl.CapsuleMarginLoss(0.1, 0.9), "0 < negative_margin < positive_margin < 1"),
        (lambda: dl.CapsuleMarginLoss()(torch.rand(3), torch.rand(3, 2)), r"must be \(..., C\)"),
        (lambda: dl.DecoupledInformationLoss(uncertainty_weight=-0.1), "uncertainty_weight must be at least 0"),
        (lambda: dl.DecoupledInformationLoss(epsilon=0.0), "epsilon must be positive"),
        (lambda: dl.FocalUncertaintyLoss(alpha=2.0), r"alpha must be in \[0, 1\]"),
        (lambda: dl.FocalUncertaintyLoss(gamma=-1.0), "gamma must be at least 0"),
        (lambda: dl.GoodhartAwareLoss(label_smoothing=1.5), r"label_smoothing must be in \[0, 1\]"),
        (lambda: dl.F1Loss(0.0), "amplifying_scale must be positive"),
        (lambda: dl.ApproximationFunction(-1.0), "amplifying_scale must be positive"),
        (lambda: dl.FBetaLoss(0.0), "beta must be positive"),
        (lambda: dl.TverskyLoss(-0.1), "alpha must be at least 0"),
        (lambda: dl.FocalTverskyLoss(gamma=0.0), "gamma must be positive"),
        (lambda: dl.WeightedCrossEntropyWithAnyLoss(dl.F1Loss(), 1.5), r"alpha must be in \[0, 1\]"),
        (lambda: dl.WassersteinDivergence(0.0), "smooth_eps must be positive"),
        (lambda: dl.KoLeoLoss(0.0), "epsilon must be positive"),
        (lambda: dl.bbox_iou(torch.rand(4), torch.rand(4), GIoU=True, CIoU=True), "GIoU and CIoU"),
        (lambda: dl.compute_clustering_metrics(torch.rand(3), torch.rand(3, 2)), "data must have 2 dimensions"),
        (lambda: dl.compute_clustering_metrics(torch.rand(3, 2), torch.rand(2, 2)), "as many rows, got 3 and 2"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_refusals_and_warnings():
    with pytest.raises(TypeError, match="anyloss must be an AnyLoss, got HuberLoss"):
        dl.WeightedCrossEntropyWithAnyLoss(dl.HuberLoss())
    with pytest.warns(UserWarning, match="less than 0.3 apart"):
        dl.CapsuleMarginLoss(0.5, 0.3)
    with pytest.warns(UserWarning, match="outweighs the cross-entropy"):
        dl.GoodhartAwareLoss(entropy_weight=1.5)(one_hot(3, 2), real(3, 2))
    with pytest.raises(NotImplementedError, match="must define call"):
        dl.Loss()(real(2), real(2))


# Metrics and analysis


def test_metrics_over_batches():
    y, p, w = binary(6, 3), probable(6, 3), torch.rand(6, dtype=torch.float64)
    score, z = dl.BrierScoreMetric(), dl.SpiegelhalterZMetric()
    assert score.result() == 0 and z.result() == 0
    for part in (slice(0, 2), slice(2, 6)):
        score.update_state(y[part], p[part])
        z.update_state(y[part], p[part])
    torch.testing.assert_close(score.result(), ((y - p) ** 2).mean())
    torch.testing.assert_close(z.result(), spiegelhalter(y, p), rtol=1e-6, atol=0)
    score.reset_state()
    z.reset_state()
    assert score.result() == 0 and z.result() == 0
    v = w.unsqueeze(1)
    torch.testing.assert_close(score(y, p, w), (v * (y - p) ** 2).mean())
    torch.testing.assert_close(z(y, p, w), (v * (y - p)).sum() / (v * p * (1 - p)).sum().sqrt(), rtol=1e-6, atol=0)
    x = real(5)
    torch.testing.assert_close(
        dl.SpiegelhalterZMetric(from_logits=True, variant="classical")(binary(5) * 0, x), spiegelhalter(0 * x, torch.sigmoid(x), True),
        rtol=1e-6, atol=0,
    )
    assert dl.SpiegelhalterZMetric()(torch.ones(3), torch.tensor([1.0, 0.0, 1.0])) == 0  # no variance


def test_clustering_metrics():
    data = torch.tensor([[0.0, 0.0], [0.0, 2.0], [6.0, 0.0], [9.0, 4.0]])
    soft = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.7, 0.1], [0.0, 1.0, 0.0]])
    found = dl.compute_clustering_metrics(data, soft)
    d = torch.cdist(data.double(), data.double())
    own = torch.tensor([d[0, 1], d[0, 1], d[2, 3], d[2, 3]])
    other = torch.stack([d[0, 2:].mean(), d[1, 2:].mean(), d[2, :2].mean(), d[3, :2].mean()])
    assert found.silhouette == pytest.approx(float(((other - own) / torch.maximum(own, other)).mean()), abs=1e-6)
    assert found.inertia == pytest.approx(2 + 12.5) and found.mean_distance == pytest.approx((2 * 1 + 2 * 2.5) / 4)
    assert found.cluster_sizes.tolist() == [2, 2, 0] and found.cluster_distribution.tolist() == [0.5, 0.5, 0.0]
    assert dl.compute_clustering_metrics(data, torch.eye(4)).silhouette == -1.0
    assert dl.compute_clustering_metrics(data, torch.ones(4, 1)).silhouette == -1.0
    alone = dl.compute_clustering_metrics(data, torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]]))
    near = [(d[i, :3].sum() / 2, d[i, 3]) for i in range(3)]
    assert alone.silhouette == pytest.approx(float(sum((b - a) / max(a, b) for a, b in near)) / 4, abs=1e-6)


def test_components_of_losses():
    y, x = one_hot(6, 5), real(6, 5)
    each, mean = entropies(x)
    loss = dl.DecoupledInformationLoss(0.3, 0.2, 0.1)
    found = dl.analyze_decoupled_information_loss(loss, y, x)
    wanted = {
        "total_loss": loss(y, x), "cross_entropy": cross(smooth(y, 0.1), x), "h_conditional_unweighted": each,
        "h_marginal_unweighted": mean, "uncertainty_term_weighted": -0.3 * each, "diversity_term_weighted": -0.2 * mean,
        "uncertainty_weight": 0.3, "diversity_weight": 0.2,
    }
    assert found == pytest.approx({name: float(value) for name, value in wanted.items()})

    loss = dl.FocalUncertaintyLoss(0.3, 0.5, 1.0, 0.1)
    found = dl.analyze_focal_uncertainty_loss(loss, y, x)
    wanted = {
        "total_loss": loss(y, x), "focal_loss": focal(smooth(y, 0.1), x, 0.5, 1.0), "h_conditional_unweighted": each,
        "uncertainty_term_weighted": -0.3 * each, "uncertainty_weight": 0.3, "focal_alpha": 0.5, "focal_gamma": 1.0,
    }
    assert found == pytest.approx({name: float(value) for name, value in wanted.items()})

    loss = dl.GoodhartAwareLoss(0.1, 0.3, 0.05)
    found = dl.analyze_loss_components(loss, y.argmax(1), x)
    ce, total = cross(smooth(y, 0.1), x), loss(y, x)
    wanted = {
        "total_loss": total, "cross_entropy": ce, "entropy_term_unweighted": -each, "mi_term_unweighted": mean - each,
        "entropy_term_weighted": -0.3 * each, "mi_term_weighted": 0.05 * (mean - each), "ce_contrib_pct": 100 * ce / total,
        "entropy_contrib_pct": -30 * each / total, "mi_contrib_pct": 5 * (mean - each) / total, "label_smoothing": 0.1,
        "entropy_weight": 0.3, "mi_weight": 0.05,
    }
    assert found == pytest.approx({name: float(value) for name, value in wanted.items()})


def test_components_of_the_capsule_margin():
    loss = dl.CapsuleMarginLoss()
    found = dl.analyze_margin_loss_components(loss, torch.tensor([[1, 0], [0, 1]]), torch.tensor([[0.4, 0.6], [0.05, 1.0]]))
    wanted = {
        "total_loss": 0.1875, "positive_loss": 0.125, "negative_loss": 0.0625, "positive_contrib_pct": 200 / 3,
        "negative_contrib_pct": 100 / 3, "avg_present_length": 0.7, "avg_absent_length": 0.325, "present_below_margin": 1,
        "absent_above_margin": 1, "positive_margin": 0.9, "negative_margin": 0.1, "downweight": 0.5, "margin_gap": 0.8,
    }
    assert found == pytest.approx(wanted, rel=1e-5)
    nothing = dl.analyze_margin_loss_components(loss, torch.tensor([[1, 0]]), torch.tensor([[1.0, 0.0]]))
    assert nothing["total_loss"] == nothing["positive_contrib_pct"] == nothing["negative_contrib_pct"] == 0.0
