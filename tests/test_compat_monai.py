"""fastloss.compat.monai against the definitions of MONAI's losses, written out in plain torch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as T
from torch import Tensor

import fastloss
from definitions import SHAPE, W, activate, agree, focal_elements, onehot, reduced, sample, tensors
from fastloss.compat import monai

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
    grid = REGION | {"squared_pred": (False, True), "jaccard": (False, True), "soft_label": (False, True)}
    grid |= {"weight": (None, 0.5, "classes")}
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
        module = monai.MaskedDiceLoss(to_onehot_y=one, **act)
        agree(lambda x, module=module, target=target: module(x, target, mask), definition, x, (act, one))
    target = labels.unsqueeze(1)
    loss = monai.MaskedDiceLoss(softmax=True, to_onehot_y=True)
    with pytest.warns(UserWarning, match="no mask"):
        assert torch.equal(loss(x, target), monai.DiceLoss(softmax=True, to_onehot_y=True)(x, target))
    with pytest.warns(UserWarning, match=r"expected mask of shape \(2, 1, 4, 5\)"):
        loss(x, target, mask[..., :1])
    for wrong in (torch.ones(3, 1, 4, 5), torch.ones(2, 3, 4, 5)):
        with pytest.raises(ValueError, match="mask must have"):
            loss(x, target, wrong)


@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize("chosen", ["auto", "eager"])
def test_monai_focal(chosen):
    grid = {
        "target": ("labels", "dense", "bool", "soft"), "reduction": ("mean", "sum", "none"), "use_softmax": (False, True),
        "classes": (3, 2, 1), "include_background": (True, False), "gamma": (2.0, 0.5, 0.0), "alpha": (None, 0.3), "weight": (False, True),
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
            losses = focal_elements(x, t, weight=weight, **o)
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
        "squared_pred": (False, True), "weight": (False, True), "lambda_dice": (1.0, 0.5), "lambda_ce": (1.0, 2.0),
        "label_smoothing": (0.0, 0.1),
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
            losses = focal_elements(x, t, o["gamma"], o.get("alpha"), weight, include_background=o["include_background"])
            focal = losses.mean((2, 3)).sum() if o["reduction"] == "sum" else reduced(losses, o["reduction"])
            if name == "DiceFocalLoss":
                part = monai.DiceLoss(**region, weight=weight)
            else:
                part = monai.GeneralizedDiceLoss(**region)
            part.to_onehot_y = False
            return part(x, t) + o["lambda_focal"] * focal

        agree(lambda x, o=o, target=target, name=name: getattr(monai, name)(**o)(x, target), definition, x, (name, options))


@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_monai_hausdorff():
    grid = {
        "activation": ACTIVATIONS, "target": ("labels", "dense"), "classes": (3, 1), "include_background": (False, True),
        "reduction": ("mean", "sum", "none"), "batch": (False, True), "smooth": ((0.0, 0.0),), "alpha": (2.0, 1.0), "log": (False, True),
    }

    def distance(mask):  # of each pixel to the nearest one on the other side
        places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij"), -1).reshape(-1, 2).double()
        apart = torch.cdist(places, places).where(mask.flatten(-2).unsqueeze(-1) != mask.flatten(-2).unsqueeze(-2), torch.inf)
        return apart.amin(-1).nan_to_num(posinf=0.0).reshape(mask.shape)

    for options in sample(grid, 25):
        o, x, target, t = monai_call(options)
        log = o.pop("log")
        o = {key: value for key, value in o.items() if not key.startswith("smooth")}

        def definition(x, o=o, t=t, log=log):
            p = activate(x, o.get("sigmoid", False), o.get("softmax", False), o.get("other_act"))
            if not o["include_background"] and p.shape[1] > 1:
                p, t = p[:, 1:], t[:, 1:]
            field = distance(p.detach() > 0.5) ** o["alpha"] + distance(t > 0.5) ** o["alpha"]
            losses = reduced(((p - t) ** 2 * field).mean([0, 2, 3] if o["batch"] else [2, 3], keepdim=True), o["reduction"])
            return torch.log(losses + 1) if log else losses

        module = (monai.LogHausdorffDTLoss if log else monai.HausdorffDTLoss)(**o)
        agree(lambda x, module=module, target=target: module(x, target), definition, x, options)


def test_monai_warns_and_refuses():
    x, labels = torch.randn(2, 1, 4, 5), torch.randint(2, (2, 1, 4, 5))
    for name in ("DiceLoss", "TverskyLoss", "GeneralizedDiceLoss"):
        with pytest.warns(UserWarning) as found:
            getattr(monai, name)(softmax=True, to_onehot_y=True, include_background=False)(x, labels)
        assert [str(w.message).split(":")[1].split("=")[0].strip() for w in found] == ["softmax", "to_onehot_y", "include_background"]
    with pytest.warns(UserWarning, match="alpha has no effect"):
        loss = monai.FocalLoss(use_softmax=True, include_background=False, alpha=0.3, to_onehot_y=True)
        loss(torch.zeros(SHAPE), torch.zeros(2, 1, 4, 5))
