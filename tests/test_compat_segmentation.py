"""fastloss.compat.smp and kornia against definitions in plain torch; what all segmentation adapters promise."""

from __future__ import annotations

import enum
import inspect
import itertools

import pytest
import torch
import torch.nn.functional as T
from torch import Tensor

import fastloss.functional as F
from definitions import SHAPE, W, activate, agree, focal_elements, kept_of, onehot, reduced, sample, tensors
from fastloss.compat import kornia, monai, smp
from fastloss.oracle import Recorder

# segmentation_models_pytorch


def smp_target(mode: str, labels: Tensor, kind: str, ignored: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss takes, the same as (N, C, P) numbers, and which elements count."""
    classes = 1 if mode == "binary" else 3
    labels = labels.clamp_max(1) if mode == "binary" else labels
    dense = onehot(labels, classes)
    out = torch.rand(labels.shape, generator=torch.Generator().manual_seed(5)) < 0.25
    if mode == "multiclass":
        target, kept = labels.clone(), ~out
        target[out] = target[out] if ignored is None else ignored
        kept = kept.unsqueeze(1).expand(dense.shape)
    else:
        out = out.unsqueeze(1).expand(dense.shape)
        target = dense if kind == "hard" else torch.rand(dense.shape, generator=torch.Generator().manual_seed(6))
        target = target.long() if kind == "hard" else target.float()
        dense, kept = target.double(), ~out
        target = target if ignored is None else torch.where(out, torch.tensor(ignored, dtype=target.dtype), target)
    return target, dense.flatten(2), (torch.ones_like(kept) if ignored is None else kept).flatten(2)


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("name", ["DiceLoss", "JaccardLoss", "TverskyLoss"])
def test_smp_regions(name, mode):
    grid = {
        "target": ("hard", "soft"), "ignore_index": (None, 255), "classes": (None, [0, 2]), "log_loss": (False, True),
        "from_logits": (True, False), "smooth": (0.0, 0.5), "eps": (1e-7, 0.1), "class_weights": (None, [1.0, 2.0, 0.5]),
        "gamma": (1.0, 2.0, 0.5),
    }
    if mode == "binary":
        grid |= {"classes": (None,), "class_weights": (None,)}
    if name != "TverskyLoss":
        grid.pop("gamma")
    price = {"DiceLoss": (0.5, 0.5), "JaccardLoss": (1.0, 1.0), "TverskyLoss": (0.3, 0.9)}[name]
    for options in sample(grid, 14):
        x, labels = tensors(1 if mode == "binary" else 3)
        labels = labels % 2 if mode == "multiclass" else labels  # class 2 is absent
        target, t, kept = smp_target(mode, labels, options["target"], options["ignore_index"])
        o = {key: value for key, value in options.items() if key != "target"}
        o |= {"alpha": 0.3, "beta": 0.9} if name == "TverskyLoss" else {}
        if not o["from_logits"]:
            x = torch.softmax(x, 1) if mode == "multiclass" else torch.sigmoid(x)

        def definition(x, o=o, t=t, kept=kept):
            p = activate(x, mode != "multiclass", mode == "multiclass", None) if o["from_logits"] else x
            p, t = p.flatten(2) * kept, t * kept
            hit = (p.sum((0, 2)) + t.sum((0, 2)) - (p - t).abs().sum((0, 2))) / 2
            bottom = hit + price[0] * (p.sum((0, 2)) - hit) + price[1] * (t.sum((0, 2)) - hit) + o["smooth"]
            score = (hit + o["smooth"]) / bottom.clamp_min(o["eps"])
            losses = -torch.log(score.clamp_min(o["eps"])) if o["log_loss"] else 1 - score
            losses = torch.where(t.sum((0, 2)) > 0, losses, 0.0)
            chosen = o["classes"] or slice(None)
            weight = torch.ones_like(losses) if o["class_weights"] is None else torch.tensor(o["class_weights"]).double()
            loss = (losses[chosen] * weight[chosen]).sum() / weight[chosen].sum()
            return loss ** o.get("gamma", 1.0)

        agree(lambda x, o=o, target=target: getattr(smp, name)(mode, **o)(x, target), definition, x, options)


@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_smp_focal(mode):
    grid = {
        "target": ("hard", "soft"), "ignore_index": (None, 255), "reduction": ("mean", "sum", "none", "batchwise_mean"),
        "alpha": (None, 0.3), "gamma": (2.0, 0.0, 0.5), "normalized": (False, True), "reduced_threshold": (None, 0.4),
        "from_logits": (True, False), "class_weights": (None, [1.0, 2.0, 0.5]),
    }
    if mode == "binary":
        grid.pop("class_weights")
    for options in sample(grid, 40):
        x, labels = tensors(1 if mode == "binary" else 3)
        target, t, kept = smp_target(mode, labels, options["target"], options["ignore_index"])
        o = {key: value for key, value in options.items() if key != "target"}
        if not o["from_logits"]:
            x = torch.softmax(x, 1) if mode == "multiclass" else torch.sigmoid(x)

        def definition(x, o=o, t=t, kept=kept):
            if not o["from_logits"]:
                x = torch.log(x) if mode == "multiclass" else torch.logit(x)
            classes = []
            for c in range(x.shape[1]):
                which = kept[:, c].flatten()
                score, of = x[:, c].flatten()[which], t[:, c].flatten()[which]
                entropy = T.binary_cross_entropy_with_logits(score, of, reduction="none")
                p = torch.exp(-entropy)
                factor = (1 - p) ** o["gamma"]
                if o["reduced_threshold"] is not None:
                    factor = torch.where(p < o["reduced_threshold"], 1.0, ((1 - p) / o["reduced_threshold"]) ** o["gamma"])
                losses = factor * entropy
                losses = losses if o["alpha"] is None else losses * (o["alpha"] * of + (1 - o["alpha"]) * (1 - of))
                losses = losses / factor.sum().clamp_min(1e-6) if o["normalized"] else losses
                if mode == "binary" and o["reduction"] == "none":
                    return losses
                samples = mode != "binary" and o["ignore_index"] is None  # not flattened
                if o["reduction"] == "sum" or o["reduction"] == "batchwise_mean" and not samples:
                    classes.append(losses.sum())
                else:
                    classes.append(losses.mean() * (2 if o["reduction"] == "batchwise_mean" else 1))  # a sum over two samples
            weight = torch.tensor(o.get("class_weights") or [1.0] * len(classes)).double()
            return (torch.stack(classes) * weight).sum() / weight.sum()

        agree(lambda x, o=o, target=target: smp.FocalLoss(mode, **o)(x, target), definition, x, options)


def test_smp_pointwise_losses():
    x, labels = tensors()
    hard = torch.randint(2, SHAPE, generator=torch.Generator().manual_seed(1))
    grid = {
        "reduction": ("mean", "sum", "none"), "smooth_factor": (None, 0.1), "ignore_index": (-100, None, 0),
        "weight": (None, torch.rand(5)), "pos_weight": (None, torch.rand(5)), "target": (hard, hard.float(), torch.rand(SHAPE)),
    }
    for o in sample(grid, 30):
        target = o.pop("target")
        if o["ignore_index"] == -100:
            target = target.clone()
            target[:, 1, 2] = -100

        def definition(x, o=o, target=target):
            t, a = target.double(), o["smooth_factor"] or 0.0
            weights = {key: None if o[key] is None else o[key].double() for key in ("weight", "pos_weight")}
            losses = T.binary_cross_entropy_with_logits(x, t * (1 - a) + (1 - t) * a, reduction="none", **weights)
            return reduced(losses if o["ignore_index"] is None else losses * (t != o["ignore_index"]), o["reduction"])

        agree(lambda x, o=o, target=target: smp.SoftBCEWithLogitsLoss(**o)(x, target), definition, x, o)
    grid = {"reduction": ("mean", "sum", "none"), "smooth_factor": (None, 0.1), "ignore_index": (-100, 0, None), "dim": (1, -1)}
    for o in sample(grid, 36):
        target = labels.clone()
        target[0, 0] = -100 if o["ignore_index"] == -100 else 1

        def definition(x, o=o, target=target):
            a, kept = o["smooth_factor"] or 0.0, kept_of(target, o["ignore_index"])
            log_p = torch.log_softmax(x, o["dim"]).movedim(o["dim"], 1)
            picked = log_p.gather(1, torch.where(kept, target, 0).unsqueeze(1)).squeeze(1)
            losses = (-(1 - a) * picked - a / 3 * log_p.sum(1)) * kept
            losses = losses.unsqueeze(o["dim"]) if o["reduction"] == "none" and o["ignore_index"] is not None else losses
            return reduced(losses, o["reduction"])

        agree(lambda x, o=o, target=target: smp.SoftCrossEntropyLoss(**o)(x, target), definition, x.movedim(1, o["dim"]), o)


# kornia


@pytest.mark.parametrize("classes", [1, 3])
def test_kornia_regions(classes):
    g = torch.Generator().manual_seed(2)
    grid = {
        "average": ("micro", "macro"), "eps": (1e-8, 0.0, 1.0), "weight": (None, W[:classes], 0 * W[:classes]),
        "ignore_index": (-100, None, 0), "empty": (False, True),
    }
    for o in sample(grid, 40):
        x, labels = tensors(classes)
        labels = labels.clamp_max(classes - 1)
        if o["ignore_index"] == -100:
            labels[torch.rand(labels.shape, generator=g) < 0.3] = -100
        if o.pop("empty") and o["ignore_index"] is not None:
            labels[1] = o["ignore_index"]
        kept = torch.ones_like(labels) if o["ignore_index"] is None else (labels != o["ignore_index"]).long()
        t = T.one_hot(labels * kept, classes).movedim(-1, 1).double() * kept.unsqueeze(1)

        def sums(x, t=t, kept=kept):
            p = torch.softmax(x, 1) * kept.unsqueeze(1)
            return (p * t).sum((2, 3)), p.sum((2, 3)), t.sum((2, 3))

        def dice(x, o=o, sums=sums):
            samples = []
            weight = torch.ones(classes).double() if o["weight"] is None else o["weight"].double()
            for shared, p, there in zip(*sums(x)):
                if o["average"] == "micro":
                    total = (weight * (p + there)).sum()
                    samples.append(1 - 2 * (weight * shared).sum() / (total + o["eps"]) if total else 1 + 0 * shared.sum())
                else:
                    present = [c for c in range(classes) if there[c] > 0]
                    total = weight[present].sum()
                    losses = 1 - 2 * shared / (p + there + o["eps"])
                    samples.append((weight * losses)[present].sum() / total if total else 1 + 0 * shared.sum())
            return torch.stack(samples).mean()

        def tversky(x, o=o, sums=sums):
            samples = []
            for hit, p, there in zip(*sums(x)):
                losses = 1 - hit / (hit + 0.3 * (p - hit) + 0.9 * (there - hit) + o["eps"])
                present = there > 0
                samples.append(losses[present].mean() if present.any() else 1 + 0 * hit.sum())
            return torch.stack(samples).mean()

        agree(lambda x, o=o, labels=labels: kornia.DiceLoss(**o)(x, labels), dice, x, o)
        rest = {key: o[key] for key in ("eps", "ignore_index")}
        agree(lambda x, rest=rest, labels=labels: kornia.TverskyLoss(0.3, 0.9, **rest)(x, labels), tversky, x, o)


def test_kornia_focal_losses():
    x, labels = tensors()
    grid = {
        "reduction": ("none", "mean", "sum"), "gamma": (2.0, 0.5, 0.0), "weight": (None, W), "ignore_index": (-100, None, 0),
        "alpha": (None, 0.3),
    }
    for o in sample(grid, 30):
        target = labels.clone()
        target[0, 0] = -100 if o["ignore_index"] == -100 else 1

        def definition(x, o=o, target=target):
            kept = kept_of(target, o["ignore_index"])
            t = T.one_hot(torch.where(kept, target, 0), 3).movedim(-1, 1) * kept.unsqueeze(1)
            return reduced(focal_elements(x, t, o["gamma"], o["alpha"], o["weight"], use_softmax=True), o["reduction"])

        agree(lambda x, o=o, target=target: kornia.FocalLoss(**o)(x, target), definition, x, o)
    hard = torch.randint(2, SHAPE, generator=torch.Generator().manual_seed(1))
    for o in sample(grid | {"pos_weight": (None, W.flip(0)), "target": (hard, hard.float(), torch.rand(SHAPE))}, 40):
        target = o.pop("target").clone()
        if o["ignore_index"] == -100:
            target[:, 1, 2] = -100

        def definition(x, o=o, target=target):
            t, p, view = target.double(), torch.sigmoid(x), (-1, 1, 1)
            alpha = (0.5, 2.0) if o["alpha"] is None else (o["alpha"], 1.0)
            positive = -alpha[0] * alpha[1] * t * (1 - p) ** o["gamma"] * T.logsigmoid(x)
            negative = -(1 - alpha[0]) * alpha[1] * (1 - t) * p ** o["gamma"] * T.logsigmoid(-x)
            losses = positive * (1.0 if o["pos_weight"] is None else o["pos_weight"].double().view(view)) + negative
            losses = losses * (1.0 if o["weight"] is None else o["weight"].double().view(view))
            return reduced(losses if o["ignore_index"] is None else torch.where(t == o["ignore_index"], 0.0, losses), o["reduction"])

        agree(lambda x, o=o, target=target: kornia.BinaryFocalLossWithLogits(**o)(x, target), definition, x, o)


# Both


def jaccard_steps(errors: Tensor, of: Tensor) -> Tensor:
    """The Lovasz extension of the Jaccard loss: flat errors, and what is of the class."""
    errors, order = errors.sort(descending=True)
    of = of[order].double()
    loss = 1 - (of.sum() - of.cumsum(0)) / (of.sum() + (1 - of).cumsum(0))
    return (errors * torch.diff(loss, prepend=loss.new_zeros(1))).sum()


def test_lovasz_losses():
    x, labels = tensors()
    few = labels.clamp_max(1)
    dense = torch.randint(2, SHAPE, generator=torch.Generator().manual_seed(1))
    for per_image, ignored in itertools.product((False, True), (None, 1, 255)):

        def groups(x, t):
            return zip(x, t) if per_image else [(x.movedim(0, 1) if x.dim() == 4 else x, t)]

        def hinge(x, t=None):
            losses = []
            for score, of in groups(x.flatten(1), t.flatten(1)):
                score, of = score.flatten()[kept_of(of, ignored).flatten()], of.flatten()[kept_of(of, ignored).flatten()]
                losses.append(jaccard_steps((1 - score * (2 * of - 1)).clamp_min(0), of == 1))
            return torch.stack(losses).mean()

        def softmax(x, t=labels):
            losses = []
            for score, of in groups(torch.softmax(x, 1), t):
                score, kept = score.flatten(1), kept_of(of, ignored).flatten()
                score, of = score[:, kept], of.flatten()[kept]
                classes = [c for c in range(3) if (of == c).any()]
                losses.append(torch.stack([jaccard_steps(((of == c).double() - score[c]).abs(), of == c) for c in classes]).mean())
            return torch.stack(losses).mean()

        about = per_image, ignored
        one = x[:, :1]
        if ignored != 1:
            agree(lambda x: smp.LovaszLoss("binary", per_image, ignored)(x, few), lambda x: hinge(x, few), one, about)
            agree(lambda x: smp.LovaszLoss("multilabel", per_image, ignored)(x, dense), lambda x: hinge(x, dense), x, about)
        agree(lambda x: smp.LovaszLoss("multiclass", per_image, ignored)(x, labels), softmax, x, about)
        if per_image and ignored is None:
            agree(lambda x: kornia.LovaszHingeLoss()(x, few), lambda x: hinge(x, few), one, "kornia")
    everything = smp.LovaszLoss("multiclass", ignore_index=7)(x.requires_grad_(), torch.full_like(labels, 7))
    assert everything.shape == () and everything == 0 and torch.autograd.grad(everything, x)[0].abs().max() == 0
    for weight, single in itertools.product((None, W), (False, True)):

        def every(x, weight=weight):
            losses = []
            for score, of in zip(torch.softmax(x, 1).expand(2, -1, -1, -1).flatten(2), labels.flatten(1)):
                for c in range(3):
                    factor = 1 if weight is None else weight[c]
                    losses.append(factor * jaccard_steps(((of == c).double() - score[c]).abs(), of == c))
            return torch.stack(losses).mean()

        logits = x.detach()[:1] if single else x.detach()
        agree(lambda x, weight=weight: kornia.LovaszSoftmaxLoss(weight)(x, labels), every, logits, (weight, single))


# All, MONAI's too


@pytest.mark.parametrize(
    "module, target",
    [
        (monai.DiceLoss(softmax=True, to_onehot_y=True), "labels"),
        (monai.DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, weight=W), "labels"),
        (monai.DiceFocalLoss(sigmoid=True, to_onehot_y=True), "labels"),
        (monai.FocalLoss(to_onehot_y=True, weight=[1, 2, 3]), "labels"),
        (monai.FocalLoss(to_onehot_y=True, use_softmax=True, alpha=0.3), "labels"),
        (smp.DiceLoss("multiclass", ignore_index=1), "plain"),
        (smp.FocalLoss("multiclass", ignore_index=1), "plain"),
        (kornia.DiceLoss("macro", weight=W), "plain"),
        (kornia.FocalLoss(0.3, reduction="mean"), "plain"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_labels_take_one_sweep(module, target):
    """Forward and backward are one operator each, and no tensor beside the gradient is as large as the logits."""
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    labels = torch.randint(3, (2, 32, 32))
    with Recorder() as recorder, torch.profiler.profile(profile_memory=True) as profile:
        module(x, labels.unsqueeze(1) if target == "labels" else labels).backward()
    assert recorder.ops == ["overlap_forward.cpu", "overlap_backward.cpu"]
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert len([size for size in sizes if size >= x.nbytes]) == 1  # the gradient


X, LABELS = torch.zeros(SHAPE), torch.zeros(2, 1, 4, 5, dtype=torch.int64)
REFUSED = [
    (lambda: monai.DiceLoss(other_act="tanh"), TypeError, "other_act must be None or callable, got str"),
    (lambda: monai.DiceLoss(sigmoid=True, softmax=True), ValueError, "at most one of sigmoid"),
    (lambda: monai.DiceLoss(reduction="average"), ValueError, "'none', 'mean', 'sum', got 'average'"),
    (lambda: monai.DiceCELoss(reduction="none"), ValueError, "'mean', 'sum', got 'none'"),
    (lambda: monai.DiceCELoss(lambda_ce=-1.0), ValueError, "lambda_ce must be at least 0"),
    (lambda: monai.DiceFocalLoss(lambda_dice=-1.0), ValueError, "lambda_dice must be at least 0"),
    (lambda: monai.GeneralizedDiceFocalLoss(lambda_gdl=-1.0), ValueError, "lambda_gdl must be at least 0"),
    (lambda: monai.GeneralizedDiceLoss(w_type="cubic"), ValueError, "w_type must be one of 'square', 'simple', 'uniform', got 'cubic'"),
    (lambda: monai.DiceLoss()(X, LABELS), AssertionError, r"expected target of shape \(2, 3, 4, 5\)"),
    (lambda: monai.DiceLoss(to_onehot_y=True)(X, X), AssertionError, "one channel"),
    (lambda: monai.TverskyLoss(to_onehot_y=True)(X, LABELS[..., :2]), AssertionError, r"expected target of shape \(2, 1, 4, 5\)"),
    (lambda: monai.FocalLoss()(X, LABELS), ValueError, r"expected target of shape \(2, 3, 4, 5\)"),
    (lambda: monai.FocalLoss(gamma=-1.0)(X, X), ValueError, "gamma must be at least 0, got -1.0"),
    (lambda: monai.FocalLoss(alpha=1.5)(X, X), ValueError, r"alpha must be in \[0, 1\] or None, got 1.5"),
    (lambda: monai.DiceLoss(weight=[1.0, 2.0])(X, X), ValueError, "each of the 3 classes"),
    (lambda: monai.FocalLoss(weight=[1.0, 2.0, 3.0], include_background=False)(X, X), ValueError, "each of the 2 classes"),
    (lambda: monai.DiceLoss(weight=[1.0, -2.0, 1.0])(X, X), ValueError, "weight has negative"),
    (lambda: monai.DiceCELoss()(X, LABELS[:, 0]), ValueError, "same number of dimensions"),
    (lambda: monai.DiceFocalLoss()(X, X[:, :2]), ValueError, "1 or 3 channels"),
    (lambda: monai.DiceCELoss()(X, X[..., :2]), AssertionError, "expected target of shape"),
    (lambda: monai.DiceLoss(to_onehot_y=True, softmax=True)(X, LABELS + 3), IndexError, "out of bounds"),
    (lambda: smp.DiceLoss("binary", class_weights=[1.0]), ValueError, "class_weights need several classes"),
    (lambda: smp.FocalLoss("binary", class_weights=[1.0]), ValueError, "class_weights need several classes"),
    (lambda: smp.JaccardLoss("binary", classes=[0]), AssertionError, "classes need several"),
    (lambda: smp.TverskyLoss("both"), AssertionError, "'binary', 'multiclass' or 'multilabel', got 'both'"),
    (lambda: smp.FocalLoss("both"), AssertionError, "'binary', 'multiclass' or 'multilabel', got 'both'"),
    (lambda: smp.FocalLoss("binary", reduction="average"), ValueError, "got 'average'"),
    (lambda: smp.DiceLoss("multiclass")(X, LABELS[:1]), AssertionError, "batch sizes differ"),
    (lambda: smp.DiceLoss("multilabel")(X, LABELS), AssertionError, "expected 120 targets"),
    (lambda: smp.FocalLoss("binary")(X, LABELS), ValueError, "y_true must have shape"),
    (lambda: smp.FocalLoss("multiclass")(X, LABELS), ValueError, r"y_true must have shape \(2, 4, 5\)"),
    (lambda: smp.SoftBCEWithLogitsLoss()(X, LABELS), ValueError, "y_pred's shape"),
    (lambda: smp.SoftCrossEntropyLoss(reduction="average")(X, LABELS), ValueError, "'average' is not a valid value"),
    (lambda: kornia.dice_loss([1.0], LABELS), kornia.TypeCheckError, "must be a Tensor, got list"),
    (lambda: kornia.tversky_loss([1.0], LABELS, 0.5, 0.5), TypeError, "must be a Tensor, got list"),
    (lambda: kornia.dice_loss(X[0], LABELS[:, 0]), ValueError, r"\(B, C, H, W\)"),
    (lambda: kornia.dice_loss(X, LABELS), ValueError, r"expected target of shape \(2, 4, 5\)"),
    (lambda: kornia.dice_loss(X, LABELS[:, 0], "median"), kornia.BaseError, "'micro' or 'macro', got 'median'"),
    (lambda: kornia.dice_loss(X, LABELS[:, 0], weight=torch.ones(2)), kornia.BaseError, "each of 3 classes"),
    (lambda: kornia.dice_loss(X, LABELS[:, 0], weight=[1.0] * 3), kornia.TypeCheckError, "weight must be a Tensor or None, got list"),
    (lambda: kornia.tversky_loss(X, LABELS[:, 0].float(), 0.5, 0.5), kornia.BaseError, "int64"),
    (lambda: kornia.focal_loss(X[0, 0, 0], LABELS, None), kornia.ShapeError, r"\(B, C, ...\)"),
    (lambda: kornia.focal_loss(X, LABELS, None), kornia.BaseError, r"expected target of shape \(2, 4, 5\)"),
    (lambda: kornia.focal_loss(X, LABELS[:, 0], None, reduction="average"), NotImplementedError, "got 'average'"),
    (lambda: kornia.focal_loss(X, LABELS[:, 0], None, gamma=-1.0), ValueError, "gamma must be at least 0"),
    (lambda: monai.HausdorffDTLoss(sigmoid=True, softmax=True), ValueError, "at most one of"),
    (lambda: monai.HausdorffDTLoss(other_act="tanh"), TypeError, "got str"),
    (lambda: monai.HausdorffDTLoss()(X[..., 0], X[..., 0]), ValueError, r"\(N, C, H, W\) or"),
    (lambda: monai.HausdorffDTLoss()(X, LABELS), AssertionError, "expected target of shape"),
    (lambda: smp.LovaszLoss("both"), AssertionError, "got 'both'"),
    (lambda: kornia.lovasz_hinge_loss(X, LABELS[:, 0]), kornia.ShapeError, r"\(B, 1, H, W\)"),
    (lambda: kornia.lovasz_hinge_loss(X[:, :1], LABELS), kornia.ShapeError, r"\(B, H, W\)"),
    (lambda: kornia.lovasz_softmax_loss(X[:, :1], LABELS[:, 0]), ValueError, r"\(B, C > 1, H, W\)"),
    (lambda: kornia.lovasz_softmax_loss(X, LABELS[:1, 0]), ValueError, r"expected target of shape \(B, H, W\)"),
    (lambda: kornia.lovasz_softmax_loss(X, LABELS[:, 0], torch.ones(2)), kornia.BaseError, "each of 3 classes"),
    (lambda: kornia.binary_focal_loss_with_logits(X, LABELS), kornia.BaseError, r"expected target of shape \(2, 3, 4, 5\)"),
    (lambda: kornia.binary_focal_loss_with_logits(X, X, alpha=2.0), ValueError, r"alpha must be in \[0, 1\]"),
]


@pytest.mark.parametrize("call, error, words", REFUSED, ids=range(len(REFUSED)))
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words) as raised:
        call()
    assert raised.type is error


def test_state_dicts_and_enumerations():
    assert set(monai.DiceLoss(weight=W).state_dict()) == set(monai.FocalLoss(weight=W).state_dict()) == {"class_weight"}
    assert set(monai.DiceCELoss(weight=W).state_dict()) == {"dice.class_weight", "cross_entropy.weight", "binary_cross_entropy.pos_weight"}
    assert not kornia.DiceLoss(weight=W).state_dict() and set(kornia.DiceLoss(weight=torch.nn.Parameter(W)).state_dict()) == {"weight"}
    assert set(smp.SoftBCEWithLogitsLoss(weight=W).state_dict()) == {"weight"}
    class Reduction(str, enum.Enum):
        SUM = "sum"

    assert monai.DiceLoss(reduction=Reduction.SUM).reduction == "sum"


REGION_ARGUMENTS = "include_background=True, to_onehot_y=False, sigmoid=False, softmax=False, other_act=None, "
DICE_ARGUMENTS = REGION_ARGUMENTS + "squared_pred=False, jaccard=False, reduction='mean', smooth_nr=1e-05, smooth_dr=1e-05, batch=False, "
SMP_ARGUMENTS = "mode, classes=None, log_loss=False, from_logits=True, smooth=0.0, ignore_index=None, eps=1e-07, "
SIGNATURES = {  # as the libraries document them
    monai.DiceLoss: DICE_ARGUMENTS + "weight=None, soft_label=False",
    monai.MaskedDiceLoss: DICE_ARGUMENTS + "weight=None, soft_label=False",
    monai.GeneralizedDiceLoss: REGION_ARGUMENTS
    + "w_type='square', reduction='mean', smooth_nr=1e-05, smooth_dr=1e-05, batch=False, soft_label=False",
    monai.TverskyLoss: REGION_ARGUMENTS
    + "alpha=0.5, beta=0.5, reduction='mean', smooth_nr=1e-05, smooth_dr=1e-05, batch=False, soft_label=False",
    monai.FocalLoss: "include_background=True, to_onehot_y=False, gamma=2.0, alpha=None, weight=None, reduction='mean', use_softmax=False",
    monai.DiceCELoss: DICE_ARGUMENTS + "weight=None, lambda_dice=1.0, lambda_ce=1.0, label_smoothing=0.0",
    monai.DiceFocalLoss: DICE_ARGUMENTS + "gamma=2.0, weight=None, lambda_dice=1.0, lambda_focal=1.0, alpha=None",
    monai.GeneralizedDiceFocalLoss: REGION_ARGUMENTS
    + "w_type='square', reduction='mean', smooth_nr=1e-05, smooth_dr=1e-05, batch=False, gamma=2.0, weight=None, lambda_gdl=1.0, "
    + "lambda_focal=1.0",
    monai.HausdorffDTLoss: "alpha=2.0, include_background=False, to_onehot_y=False, sigmoid=False, softmax=False, other_act=None, "
    + "reduction='mean', batch=False",
    smp.DiceLoss: SMP_ARGUMENTS + "class_weights=None",
    smp.JaccardLoss: SMP_ARGUMENTS + "class_weights=None",
    smp.TverskyLoss: SMP_ARGUMENTS + "alpha=0.5, beta=0.5, gamma=1.0, class_weights=None",
    smp.FocalLoss: "mode, alpha=None, gamma=2.0, ignore_index=None, from_logits=True, eps=1e-07, reduction='mean', normalized=False, "
    + "reduced_threshold=None, class_weights=None",
    smp.LovaszLoss: "mode, per_image=False, ignore_index=None, from_logits=True",
    smp.SoftBCEWithLogitsLoss: "weight=None, ignore_index=-100, reduction='mean', smooth_factor=None, pos_weight=None",
    smp.SoftCrossEntropyLoss: "reduction='mean', smooth_factor=None, ignore_index=-100, dim=1",
    kornia.dice_loss: "pred, target, average='micro', eps=1e-08, weight=None, ignore_index=-100",
    kornia.DiceLoss: "average='micro', eps=1e-08, weight=None, ignore_index=-100",
    kornia.tversky_loss: "pred, target, alpha, beta, eps=1e-08, ignore_index=-100",
    kornia.TverskyLoss: "alpha, beta, eps=1e-08, ignore_index=-100",
    kornia.focal_loss: "pred, target, alpha, gamma=2.0, reduction='none', weight=None, ignore_index=-100",
    kornia.FocalLoss: "alpha, gamma=2.0, reduction='none', weight=None, ignore_index=-100",
    kornia.binary_focal_loss_with_logits: "pred, target, alpha=0.25, gamma=2.0, reduction='none', pos_weight=None, weight=None, "
    + "ignore_index=-100",
    kornia.BinaryFocalLossWithLogits: "alpha, gamma=2.0, reduction='none', pos_weight=None, weight=None, ignore_index=-100",
    kornia.lovasz_hinge_loss: "pred, target",
    kornia.lovasz_softmax_loss: "pred, target, weight=None",
    kornia.LovaszSoftmaxLoss: "weight=None",
}


@pytest.mark.parametrize("what", SIGNATURES, ids=lambda what: f"{what.__module__.rpartition('.')[2]}.{what.__name__}")
def test_signatures(what):
    parameters = inspect.signature(what).parameters.values()
    assert ", ".join(str(p.replace(annotation=p.empty)) for p in parameters) == SIGNATURES[what]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_do_not_overflow(dtype):
    x, t = torch.full((1, 1, 512, 512), 5.0, dtype=dtype, requires_grad=True), torch.ones(1, 1, 512, 512, dtype=torch.int64)
    two, labels = torch.zeros(1, 2, 512, 512, dtype=dtype), t[:, 0]
    for loss in (
        monai.DiceLoss(sigmoid=True)(x, t), smp.DiceLoss("binary")(x, t), smp.SoftBCEWithLogitsLoss()(x, t.to(dtype)),
        kornia.dice_loss(two, labels), kornia.focal_loss(two, labels, None, reduction="mean"), smp.SoftCrossEntropyLoss()(two, labels),
        monai.DiceFocalLoss(sigmoid=True)(x, t), smp.FocalLoss("multiclass")(two, labels),
    ):
        assert loss.isfinite() and 0 <= loss < 1


def test_modules_compile_without_graph_breaks():
    x, labels = tensors()
    target = labels.unsqueeze(1)
    for module in (
        monai.DiceCELoss(softmax=True, to_onehot_y=True, weight=W), monai.DiceFocalLoss(sigmoid=True, to_onehot_y=True),
        monai.GeneralizedDiceLoss(softmax=True, to_onehot_y=True),
    ):
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, target), module(x, target))


@pytest.mark.parametrize("module", [monai, smp, kornia], ids=lambda module: module.__name__)
def test_everything_public_is_documented(module):
    for name in module.__all__:
        value = getattr(module, name)
        text = "" if isinstance(value, str) else inspect.getdoc(value)
        assert isinstance(value, str) or text, name
        if "Args:" in text:
            assert all(argument in text for argument in inspect.signature(value).parameters), name


def test_options_of_the_functions():
    x, labels = tensors()
    p, t = torch.softmax(x.double(), 1), torch.rand(SHAPE).double()
    hit, fp = (p.sum((2, 3)) + t.sum((2, 3)) - (p - t).abs().sum((2, 3))) / 2, None
    fp, fn = p.sum((2, 3)) - hit, t.sum((2, 3)) - hit
    wanted = (1 - (hit + 1) / (hit + 0.3 * fp + 0.9 * fn + 1)).mean()
    torch.testing.assert_close(F.tversky_loss(x, t.float(), 0.3, 0.9, smooth=1.0, soft_label=True).double(), wanted, rtol=1e-5, atol=0)
    wanted = (1 - 2 * (W * hit).sum(1) / (W * (p + t).sum((2, 3))).sum(1)).mean()
    found = F.generalized_dice_loss(x, t.float(), class_weighting=W, soft_label=True, smooth=0.0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    without = F.generalized_dice_loss(x, labels, class_weighting=W[1:], include_background=False)
    assert torch.equal(without, F.generalized_dice_loss(x, labels, class_weighting=W, include_background=False))
    weight = W.clone().requires_grad_()
    F.generalized_dice_loss(x, labels, class_weighting=weight).backward()
    assert weight.grad.abs().min() > 0
    with pytest.raises(ValueError, match="each of 3 classes"):
        F.generalized_dice_loss(x, labels, class_weighting=torch.ones(5))
    nothing = torch.zeros(1, 1, 4)
    assert F.dice_loss(nothing, nothing, activation="none", smooth=0.0, eps=0.0).isnan()
    assert F.dice_loss(nothing - 1, nothing + 2, activation="none", smooth=0.0, eps=0.0) == 1 + 2 * 8 / 4
    element = torch.rand(SHAPE)
    found = F.sigmoid_focal_loss(x, t.float(), weight=element, reduction="mean")
    torch.testing.assert_close(found, (F.sigmoid_focal_loss(x, t.float()) * element).mean())
