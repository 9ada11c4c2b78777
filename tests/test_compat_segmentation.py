"""fastloss.compat.monai, smp and kornia against the definitions of these libraries' losses, written out in plain torch."""

from __future__ import annotations

import inspect
import itertools
import random

import pytest
import torch
import torch.nn.functional as T
from torch import Tensor

import fastloss
import fastloss.functional as F
from fastloss.compat import kornia, monai, smp
from fastloss.oracle import Recorder

SHAPE = (2, 3, 4, 5)
W = torch.tensor([0.5, 2.0, 1.5])


def sample(grid: dict[str, tuple], most: int, seed: int = 0) -> list[dict]:
    """A fixed sample of the combinations of options; the first of each are the defaults."""
    every = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    chosen = random.Random(seed).sample(every, min(most, len(every)))
    return [every[0], *chosen]


def tensors(classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, C, 4, 5) and labels (2, 4, 5) of which the second image lacks the last class."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(max(classes, 2), (2, 4, 5), generator=g)
    if classes > 1:
        labels[1] = labels[1].clamp_max(classes - 2)
    return 2 * torch.randn(2, classes, 4, 5, generator=g), labels


def onehot(labels: Tensor, classes: int) -> Tensor:
    return T.one_hot(labels, classes).movedim(-1, 1).double() if classes > 1 else labels.unsqueeze(1).double()


def agree(ours, definition, input: Tensor, options: object = None) -> None:
    """`ours(x)` is `definition(x)` in float64: value, shape, and gradient for an upstream of distinct numbers."""
    x, y = input.clone().requires_grad_(), input.double().requires_grad_()
    found, wanted = ours(x), definition(y)
    about = f"{options}"
    assert found.shape == wanted.shape, about
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-6, msg=lambda m: f"{about}: {m}")
    upstream = torch.linspace(0.5, 1.5, wanted.numel(), dtype=torch.float64).reshape(wanted.shape)
    (grad,), (truth,) = torch.autograd.grad(found, x, upstream.to(found.dtype)), torch.autograd.grad(wanted, y, upstream)
    torch.testing.assert_close(grad.double(), truth, rtol=1e-4, atol=2e-6, msg=lambda m: f"{about}, gradient: {m}")


def kept_of(target: Tensor, ignore_index: int | None) -> Tensor:
    return torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index


def activate(x: Tensor, sigmoid: bool, softmax: bool, other) -> Tensor:
    x = torch.sigmoid(x) if sigmoid else x
    x = torch.softmax(x, 1) if softmax and x.shape[1] > 1 else x
    return x if other is None else other(x)


def reduced(losses: Tensor, reduction: str) -> Tensor:
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()


# MONAI


ACTIVATIONS = ({"softmax": True}, {"sigmoid": True}, {"other_act": torch.tanh}, {})
REGION = {
    "activation": ACTIVATIONS, "target": ("labels", "dense", "bool"), "classes": (3, 1), "include_background": (True, False),
    "reduction": ("mean", "sum", "none"), "batch": (False, True), "smooth": ((1e-5, 1e-5), (0.0, 1.0), (0.5, 1e-8)),
}


def monai_call(options: dict) -> tuple[dict, Tensor, Tensor, Tensor]:
    """Constructor arguments, logits, the target they take, and the target as numbers in float64."""
    classes, kind = options["classes"], options["target"]
    x, labels = tensors(classes)
    x = x if options["activation"] else torch.sigmoid(x)
    dense = onehot(labels, classes)
    if kind == "labels":
        target = labels.unsqueeze(1).float()  # MONAI's transforms make floating labels
    else:
        target = dense.bool() if kind == "bool" else dense.float()
    chosen = {"to_onehot_y": kind == "labels" and classes > 1, "smooth_nr": options["smooth"][0], "smooth_dr": options["smooth"][1]}
    chosen |= {key: options[key] for key in options if key not in ("classes", "target", "activation", "smooth")} | options["activation"]
    return chosen, x, target, dense


def monai_sums(x: Tensor, t: Tensor, o: dict, power: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Intersection, predicted and true volume, and the sum of differences, of each sample and class, or class with `batch`."""
    p = activate(x, o.get("sigmoid", False), o.get("softmax", False), o.get("other_act"))
    if not o["include_background"] and p.shape[1] > 1:
        p, t = p[:, 1:], t[:, 1:]
    over = (0, 2, 3) if o["batch"] else (2, 3)
    return (p * t).sum(over), (p**power).sum(over), (t**power).sum(over), (p - t).abs().sum(over)


@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize("chosen", ["auto", "eager"])
def test_monai_dice_and_jaccard(chosen):
    grid = REGION | {"squared_pred": (False, True), "jaccard": (False, True), "soft_label": (False, True), "weight": (None, 0.5, "classes")}
    for options in sample(grid, 40):
        o, x, target, t = monai_call(options)
        counted = 1 if x.shape[1] == 1 else 3 - (not o["include_background"])
        if o["weight"] == "classes":
            o["weight"] = [0.5, 2.0, 1.5][:counted]
        soft = o["soft_label"] and not o["squared_pred"] and "other_act" not in o

        def definition(x, o=o, t=t, soft=soft, counted=counted):
            shared, p, there, difference = monai_sums(x, t, o, 2 if o["squared_pred"] else 1)
            shared = (p + there - difference) / 2 if soft else shared
            union = 2 * (p + there - shared) if o["jaccard"] else p + there
            losses = 1 - (2 * shared + o["smooth_nr"]) / (union + o["smooth_dr"])
            if o["weight"] is not None and counted > 1:
                losses = losses * torch.tensor(o["weight"], dtype=torch.float64)
            return reduced(losses.reshape(*losses.shape, 1, 1), o["reduction"])

        o["soft_label"] = o["soft_label"] and "other_act" not in o
        with fastloss.use_backend(chosen):
            agree(lambda x, o=o, target=target: monai.DiceLoss(**o)(x, target), definition, x, options)


@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_monai_tversky_and_generalized_dice():
    for options in sample(REGION | {"alpha": (0.5, 0.2), "beta": (0.5, 0.9)}, 25):
        o, x, target, t = monai_call(options)

        def definition(x, o=o, t=t):
            hit, p, there, _ = monai_sums(x, t, o)
            scores = (hit + o["smooth_nr"]) / (hit + o["alpha"] * (p - hit) + o["beta"] * (there - hit) + o["smooth_dr"])
            return reduced(1 - scores, o["reduction"])

        agree(lambda x, o=o, target=target: monai.TverskyLoss(**o)(x, target), definition, x, options)
    for options in sample(REGION | {"w_type": ("square", "simple", "uniform"), "soft_label": (False, True)}, 25):
        o, x, target, t = monai_call(options)
        o["soft_label"] = o["soft_label"] and "other_act" not in o

        def definition(x, o=o, t=t):
            shared, p, there, difference = monai_sums(x, t, o)
            shared = (p + there - difference) / 2 if o["soft_label"] else shared
            weight = there ** -{"square": 2.0, "simple": 1.0, "uniform": 0.0}[o["w_type"]]
            weight = torch.where(weight.isinf(), 0.0, weight)
            weight = torch.where(there == 0, weight.amax(-1, keepdim=True), weight) if o["w_type"] != "uniform" else weight
            numerator, denominator = (2 * weight * shared).sum(-1), (weight * (p + there)).sum(-1)
            losses = (1 - (numerator + o["smooth_nr"]) / (denominator + o["smooth_dr"])).reshape(-1, *[1] * (2 + (not o["batch"])))
            return reduced(losses, o["reduction"])

        agree(lambda x, o=o, target=target: monai.GeneralizedDiceLoss(**o)(x, target), definition, x, options)


def test_monai_masked_dice_leaves_pixels_out():
    x, labels = tensors()
    g = torch.Generator().manual_seed(3)
    mask = torch.randint(2, (2, 1, 4, 5), generator=g)
    for act, one in itertools.product(({"softmax": True}, {"sigmoid": True}, {"other_act": torch.tanh}), (True, False)):

        def definition(x, act=act):
            p, t = activate(x, act.get("sigmoid"), act.get("softmax"), act.get("other_act")) * mask, onehot(labels, 3) * mask
            return (1 - (2 * (p * t).sum((2, 3)) + 1e-5) / ((p + t).sum((2, 3)) + 1e-5)).mean()

        target = labels.unsqueeze(1) if one else onehot(labels, 3).byte()
        agree(lambda x, act=act, one=one, target=target: monai.MaskedDiceLoss(to_onehot_y=one, **act)(x, target, mask), definition, x, (act, one))
    target = labels.unsqueeze(1)
    loss = monai.MaskedDiceLoss(softmax=True, to_onehot_y=True)
    with pytest.warns(UserWarning, match="no mask"):
        assert torch.equal(loss(x, target), monai.DiceLoss(softmax=True, to_onehot_y=True)(x, target))
    with pytest.warns(UserWarning, match=r"expected mask of shape \(2, 1, 4, 5\)"):
        loss(x, target, mask[..., :1])
    for wrong in (torch.ones(3, 1, 4, 5), torch.ones(2, 3, 4, 5)):
        with pytest.raises(ValueError, match="mask must have"):
            loss(x, target, wrong)


def monai_focal(x: Tensor, t: Tensor, gamma=2.0, alpha=None, weight=None, use_softmax=False, include_background=True) -> Tensor:
    """Each element's focal loss."""
    if not include_background and x.shape[1] > 1:
        x, t = x[:, 1:], t[:, 1:]
    if use_softmax:
        log_p = torch.log_softmax(x, 1)
        losses = -((1 - log_p.exp()) ** gamma) * log_p * t
        if alpha is not None and include_background:
            losses = losses * torch.tensor([1 - alpha] + [alpha] * (x.shape[1] - 1)).view(-1, 1, 1)
    else:
        losses = torch.sigmoid(-x * (2 * t - 1)) ** gamma * T.binary_cross_entropy_with_logits(x, t, reduction="none")
        losses = losses if alpha is None else losses * (alpha * t + (1 - alpha) * (1 - t))
    return losses if weight is None or x.shape[1] == 1 else losses * weight.double().view(-1, 1, 1)


@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize("chosen", ["auto", "eager"])
def test_monai_focal(chosen):
    grid = {
        "target": ("labels", "dense", "bool", "soft"), "reduction": ("mean", "sum", "none"), "use_softmax": (False, True), "classes": (3, 2, 1),
        "include_background": (True, False), "gamma": (2.0, 0.5, 0.0), "alpha": (None, 0.3), "weight": (False, True),
    }
    for options in sample(grid, 60):
        kind, classes, reduction = options["target"], options["classes"], options["reduction"]
        x, labels = tensors(classes)
        t = onehot(labels, classes) if kind != "soft" else torch.rand(x.shape).double()
        target = {"labels": labels.unsqueeze(1), "dense": t.float(), "bool": t.bool(), "soft": t.float()}[kind]
        t = target.double() if kind == "soft" else t
        o = {key: options[key] for key in ("use_softmax", "include_background", "gamma", "alpha")}
        counted = 1 if classes == 1 else classes - (not options["include_background"])
        if options["use_softmax"] and counted == 1 and options["gamma"] == 0.5:
            continue  # p = 1 everywhere, where the definition has no gradient
        weight = W[:counted] if options["weight"] else None

        def definition(x, t=t, o=o, weight=weight, reduction=reduction):
            losses = monai_focal(x, t, weight=weight, **o)
            return losses.mean((2, 3)).sum() if reduction == "sum" else reduced(losses, reduction)

        module = monai.FocalLoss(to_onehot_y=kind == "labels" and classes > 1, weight=weight, reduction=reduction, **o)
        with fastloss.use_backend(chosen):
            agree(lambda x, module=module, target=target: module(x, target), definition, x, options)


def test_monai_focal_has_finite_gradients_and_is_float32():
    x, labels = tensors()
    for dtype, softmax, labelled in itertools.product((torch.float16, torch.float32), (False, True), (False, True)):
        extreme = (100 * x).to(dtype).requires_grad_()
        target = labels.unsqueeze(1) if labelled else onehot(labels, 3).float()
        loss = monai.FocalLoss(gamma=0.5, use_softmax=softmax, to_onehot_y=labelled)(extreme, target)
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite() and extreme.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_monai_dice_ce():
    grid = {
        "activation": ACTIVATIONS[:3], "target": ("labels", "dense"), "classes": (3, 1), "include_background": (True, False),
        "reduction": ("mean", "sum"), "batch": (False, True), "smooth": ((1e-5, 1e-5), (0.5, 1e-8)), "jaccard": (False, True),
        "squared_pred": (False, True), "weight": (False, True), "lambda_dice": (1.0, 0.5), "lambda_ce": (1.0, 2.0), "label_smoothing": (0.0, 0.1),
    }
    for options in sample(grid, 50):
        o, x, target, t = monai_call(options)
        single = options["classes"] == 1
        weight = (W if not single else W[:1]) if options["weight"] else None
        o["weight"] = weight
        region = {k: v for k, v in o.items() if k not in ("lambda_dice", "lambda_ce", "label_smoothing", "weight")}
        region["weight"] = None if weight is None else weight if o["include_background"] else weight[1:]

        def definition(x, o=o, t=t, weight=weight, single=single, kind=options["target"]):
            shared, p, there, _ = monai_sums(x, t, o, 2 if o["squared_pred"] else 1)
            union = 2 * (p + there - shared) if o["jaccard"] else p + there
            dice = 1 - (2 * shared + o["smooth_nr"]) / (union + o["smooth_dr"])
            if weight is not None and dice.shape[-1] > 1:
                dice = dice * weight[-dice.shape[-1]:].double()
            w = None if weight is None else weight.double()
            if single:
                entropy = T.binary_cross_entropy_with_logits(x, t, pos_weight=w, reduction=o["reduction"])
            else:
                of = t.argmax(1) if kind == "labels" else t
                entropy = T.cross_entropy(x, of, w, reduction=o["reduction"], label_smoothing=o["label_smoothing"])
            return o["lambda_dice"] * reduced(dice, o["reduction"]) + o["lambda_ce"] * entropy

        agree(lambda x, o=o, target=target: monai.DiceCELoss(**o)(x, target), definition, x, options)


@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_monai_dice_focal_and_generalized_dice_focal():
    grid = {
        "activation": ACTIVATIONS[:3], "target": ("labels", "dense", "bool"), "classes": (3, 1), "include_background": (True, False),
        "reduction": ("mean", "sum", "none"), "batch": (False, True), "smooth": ((1e-5, 1e-5), (0.5, 1e-8)), "weight": (False, True),
        "gamma": (2.0, 0.5), "lambda_focal": (1.0, 2.0),
    }
    for name, options in [("DiceFocalLoss", o) for o in sample(grid | {"alpha": (None, 0.3)}, 30)] + [
        ("GeneralizedDiceFocalLoss", o) for o in sample(grid, 20)
    ]:
        o, x, target, t = monai_call(options)
        counted = 1 if options["classes"] == 1 else 3 - (not o["include_background"])
        o["weight"] = weight = W[:counted] if options["weight"] else None
        region = {k: v for k, v in o.items() if k not in ("weight", "gamma", "lambda_focal", "alpha")}

        def definition(x, o=o, t=t, weight=weight, region=region, name=name):
            losses = monai_focal(x, t, o["gamma"], o.get("alpha"), weight, include_background=o["include_background"])
            focal = losses.mean((2, 3)).sum() if o["reduction"] == "sum" else reduced(losses, o["reduction"])
            if name == "DiceFocalLoss":
                part = monai.DiceLoss(**region, weight=weight)
            else:
                part = monai.GeneralizedDiceLoss(**region)
            part.to_onehot_y = False
            return part(x, t) + o["lambda_focal"] * focal

        agree(lambda x, o=o, target=target, name=name: getattr(monai, name)(**o)(x, target), definition, x, (name, options))


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


def test_monai_warns_and_refuses():
    x, labels = torch.randn(2, 1, 4, 5), torch.randint(2, (2, 1, 4, 5))
    for name in ("DiceLoss", "TverskyLoss", "GeneralizedDiceLoss"):
        with pytest.warns(UserWarning) as found:
            getattr(monai, name)(softmax=True, to_onehot_y=True, include_background=False)(x, labels)
        assert [str(w.message).split(":")[1].split("=")[0].strip() for w in found] == ["softmax", "to_onehot_y", "include_background"]
    with pytest.warns(UserWarning, match="alpha has no effect"):
        monai.FocalLoss(use_softmax=True, include_background=False, alpha=0.3, to_onehot_y=True)(torch.randn(SHAPE), torch.zeros(2, 1, 4, 5))


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
    import enum

    class Reduction(str, enum.Enum):
        SUM = "sum"

    assert monai.DiceLoss(reduction=Reduction.SUM).reduction == "sum"


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
        "target": ("hard", "soft"), "ignore_index": (None, 255), "classes": (None, [0, 2]), "log_loss": (False, True), "from_logits": (True, False),
        "smooth": (0.0, 0.5), "eps": (1e-7, 0.1), "class_weights": (None, [1.0, 2.0, 0.5]), "gamma": (1.0, 2.0, 0.5),
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
        o = {key: value for key, value in options.items() if key != "target"} | ({"alpha": 0.3, "beta": 0.9} if name == "TverskyLoss" else {})
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
        "target": ("hard", "soft"), "ignore_index": (None, 255), "reduction": ("mean", "sum", "none", "batchwise_mean"), "alpha": (None, 0.3),
        "gamma": (2.0, 0.0, 0.5), "normalized": (False, True), "reduced_threshold": (None, 0.4), "from_logits": (True, False),
        "class_weights": (None, [1.0, 2.0, 0.5]),
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
                if o["reduction"] == "sum" or o["reduction"] == "batchwise_mean" and (mode == "binary" or o["ignore_index"] is not None):
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
        "reduction": ("mean", "sum", "none"), "smooth_factor": (None, 0.1), "ignore_index": (-100, None, 0), "weight": (None, torch.rand(5)),
        "pos_weight": (None, torch.rand(5)), "target": (hard, hard.float(), torch.rand(SHAPE)),
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
    for o in sample({"reduction": ("mean", "sum", "none"), "smooth_factor": (None, 0.1), "ignore_index": (-100, 0, None), "dim": (1, -1)}, 36):
        target = labels.clone()
        target[0, 0] = -100 if o["ignore_index"] == -100 else 1

        def definition(x, o=o, target=target):
            log_p, a, kept = torch.log_softmax(x, o["dim"]).movedim(o["dim"], 1), o["smooth_factor"] or 0.0, kept_of(target, o["ignore_index"])
            picked = log_p.gather(1, torch.where(kept, target, 0).unsqueeze(1)).squeeze(1)
            losses = (-(1 - a) * picked - a / 3 * log_p.sum(1)) * kept
            losses = losses.unsqueeze(o["dim"]) if o["reduction"] == "none" and o["ignore_index"] is not None else losses
            return reduced(losses, o["reduction"])

        agree(lambda x, o=o, target=target: smp.SoftCrossEntropyLoss(**o)(x, target), definition, x.movedim(1, o["dim"]), o)


# kornia


@pytest.mark.parametrize("classes", [1, 3])
def test_kornia_regions(classes):
    g = torch.Generator().manual_seed(2)
    for o in sample(
        {"average": ("micro", "macro"), "eps": (1e-8, 0.0, 1.0), "weight": (None, W[:classes], 0 * W[:classes]), "ignore_index": (-100, None, 0),
         "empty": (False, True)}, 40,
    ):
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
    grid = {"reduction": ("none", "mean", "sum"), "gamma": (2.0, 0.5, 0.0), "weight": (None, W), "ignore_index": (-100, None, 0), "alpha": (None, 0.3)}
    for o in sample(grid, 30):
        target = labels.clone()
        target[0, 0] = -100 if o["ignore_index"] == -100 else 1

        def definition(x, o=o, target=target):
            kept = kept_of(target, o["ignore_index"])
            t = T.one_hot(torch.where(kept, target, 0), 3).movedim(-1, 1) * kept.unsqueeze(1)
            return reduced(monai_focal(x, t, o["gamma"], o["alpha"], o["weight"], use_softmax=True), o["reduction"])

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


# All


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


# Options of fastloss.functional that the adapters need


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
