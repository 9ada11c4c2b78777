"""dl_techniques's losses of segmentations, scores, boxes and critics: formulas written out, numbers by hand, errors, factories."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastloss.compat import dl_techniques as dl

CONFIG = dl.SegmentationLossConfig(3, focal_gamma=1.5, focal_alpha=0.4, combo_alpha=0.3, combo_beta=2.0)


def real(*shape):
    return torch.randn(shape, dtype=torch.float64)


def maps(classes=3):
    labels = torch.randint(classes, (2, 7, 6))
    return F.one_hot(labels, classes).double(), real(2, 7, 6, classes).softmax(-1)


def agree(ours, definition, *tensors, rtol=1e-6):
    """Equal values and gradients of all tensors in float64."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    got, wanted = ours(*leaves), definition(*leaves)
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=1e-9)
    for mine, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves)):
        torch.testing.assert_close(mine, theirs, rtol=10 * rtol, atol=1e-8)


# Segmentation


def cross_entropy(y, p, weights=None):
    values = -(y * p.clamp(1e-7, 1 - 1e-7).log()).sum(-1)
    return (values if weights is None else values * (y * weights).sum(-1)).mean()


def dice(y, p, e=1e-6):
    return 1 - ((2 * (y * p).sum((1, 2)) + e) / (y.sum((1, 2)) + p.sum((1, 2)) + e)).mean()


def focal(y, p, alpha=0.4, gamma=1.5):
    return (alpha * (1 - p) ** gamma * -y * p.log()).sum(-1).mean()


def tversky(y, p, power=1.0, a=0.3, b=0.7, e=1e-6):
    tp, fp, fn = ((u * v).sum((1, 2)) for u, v in ((y, p), (1 - y, p), (y, 1 - p)))
    return ((1 - (tp + e) / (tp + a * fp + b * fn + e)) ** power).mean()


def lovasz(y, p, e=1e-6):
    losses = []
    for t, q in zip(y.flatten(0, 2).T, p.flatten(0, 2).T):
        error, order = (t - q).abs().sort(descending=True)
        t, total = t[order], t.sum()
        jaccard = 1 - (total - t.cumsum(0)) / (total + (1 - t).cumsum(0) + e)
        losses.append((error * jaccard.diff(prepend=torch.zeros(1, dtype=p.dtype))).sum())
    return sum(losses) / len(losses)


def boundary(y, p, theta=1.5, e=1e-6):
    total, (batch, height, width, classes) = 0.0, y.shape
    padded = torch.zeros(batch, height + 2, width + 2, classes, dtype=y.dtype)
    padded[:, 1:-1, 1:-1] = y
    for i in range(height):
        for j in range(width):
            down = padded[:, i + 2, j + 1] - padded[:, i, j + 1]
            across = padded[:, i + 1, j + 2] - padded[:, i + 1, j]
            slope = torch.sqrt(down**2 + across**2 + e).clamp(0, theta) / theta
            total = total + (slope * (1 - p[:, i, j]) ** 2).sum()
    return total / y.numel()


def widened(m):
    for _ in range(3):
        rows = F.max_pool2d(m, (3, 1), 1, (1, 0))
        m = torch.maximum(rows, F.max_pool2d(m, (1, 3), 1, (0, 1)))
    return m


def overlaps(y, p):
    y, p = y.movedim(-1, 1), p.movedim(-1, 1)
    return torch.maximum((widened(y) * p).amax((2, 3)), (widened(p) * y).amax((2, 3))).mean()


def distances(m):
    """Of each pixel from the nearest on the other side, by all pairs."""
    result = torch.zeros_like(m)
    where = torch.stack(torch.meshgrid(*(torch.arange(n) for n in m.shape[1:3]), indexing="ij"), -1).view(-1, 2).double()
    apart = torch.cdist(where, where)
    for b in range(len(m)):
        for c in range(m.shape[-1]):
            inside = m[b, :, :, c].flatten() > 0.5
            if inside.any() and not inside.all():
                other = inside.unsqueeze(1) != inside
                result[b, :, :, c] = torch.where(other, apart, torch.inf).amin(1).view(m.shape[1:3])
    return result


def hausdorff(y, p):
    return ((p - y) ** 2 * (distances(y) ** 2 + distances(p.detach()) ** 2)).mean()


def kervadec(y, p):
    return (p * torch.where(y > 0.5, -distances(y), distances(y))).mean()


SEGMENTATION = {
    "cross_entropy": cross_entropy, "dice": dice, "focal": focal, "tversky": tversky, "focal_tversky": lambda y, p: tversky(y, p, 1.3),
    "lovasz": lovasz, "combo": lambda y, p: 0.3 * dice(y, p) + 2.0 * cross_entropy(y, p), "boundary": boundary, "hausdorff": hausdorff,
}


@pytest.mark.parametrize("classes", [3, 1])
@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation(name, classes):
    y, p = maps(3)
    y, p = y[..., :classes], p[..., :classes]
    made = dl.create_segmentation_loss_function(name, CONFIG)
    rtol = 1e-5 if name == "lovasz" else 1e-6  # ours has no term that keeps from dividing by 0, since nothing is
    agree(lambda p: made(y, p), lambda p: SEGMENTATION[name](y, p), p, rtol=rtol)
    first = dl.SegmentationWrapperLoss(name, CONFIG, channels_first=True)
    torch.testing.assert_close(first(y.movedim(-1, 1), p.movedim(-1, 1)), made(y, p))
    torch.testing.assert_close(made(y.long(), p), made(y, p))


def test_the_originals_formulas():
    y, p = maps()
    compatible = dl.create_segmentation_loss_function("hausdorff", CONFIG, source_compat=True)
    agree(lambda p: compatible(y, p), lambda p: overlaps(y, p), p)
    far = torch.arange(12, dtype=torch.float64)
    y, p = (far == 3).double().view(1, 1, 12, 1), (far / 20).view(1, 1, 12, 1)  # the truth, three wider, ends at 6
    assert float(compatible(y, p)) == pytest.approx(6 / 20)
    y, p = maps()
    losses = dl.SegmentationLosses(CONFIG)
    agree(lambda p: losses.boundary_loss(y, p, "kervadec"), lambda p: kervadec(y, p), p)
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    agree(lambda p: losses.cross_entropy_loss(y, p, weights), lambda p: cross_entropy(y, p, weights), p)


@pytest.mark.parametrize(
    ("name", "perfect", "empty", "uniform"),
    [
        ("cross_entropy", 0.0, 16.118, 1.0986), ("dice", 0.0, 1.0, None), ("focal", 0.0, 4.0295, 0.1221), ("tversky", 0.0, 1.0, None),
        ("focal_tversky", 0.0, 1.0, None), ("lovasz", 0.0, 1.0, 2 / 3), ("hausdorff", 0.0, None, None),
    ],
)
def test_anchors(name, perfect, empty, uniform):
    y, _ = maps()
    made = dl.create_segmentation_loss_function(name, dl.SegmentationLossConfig(3))
    for p, wanted in ((y, perfect), (0 * y, empty), (0 * y + 1 / 3, uniform)):
        if wanted is not None:
            assert float(made(y, p)) == pytest.approx(wanted, abs=1e-4)
    # the original's: 1 for the truth and 0 for nothing
    inverted = dl.create_segmentation_loss_function("hausdorff", source_compat=True)
    assert float(inverted(y, y)) == 1.0 and float(inverted(y, 0 * y)) == 0.0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_classes", 0), ("smooth_factor", 0.0), ("focal_gamma", -1.0), ("focal_alpha", 1.5), ("tversky_alpha", -0.1),
     ("tversky_beta", -0.1), ("combo_alpha", -1.0), ("combo_beta", -1.0), ("boundary_theta", 0.0), ("focal_tversky_gamma", 0.0)],
)
def test_segmentation_settings(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be .*got {value}"):
        dl.SegmentationLosses(dl.SegmentationLossConfig(**{"num_classes": 2, setting: value}))


def test_segmentation_refusals():
    y, p = maps()
    with pytest.raises(ValueError, match="Unknown loss function 'jaccard'; wanted one of cross_entropy, dice, focal, tversky"):
        dl.create_segmentation_loss_function("jaccard")
    assert dl.create_segmentation_loss_function("dice").config == dl.SegmentationLossConfig(1)
    assert dl.SegmentationLossConfig.from_config(CONFIG.get_config()) == CONFIG
    for name in SEGMENTATION:
        with pytest.raises(ValueError, match="must have one shape"):
            dl.create_segmentation_loss_function(name)(y[:1], p)
    with pytest.raises(ValueError, match=r"weights must have one number for each of 3 classes, got \(2,\)"):
        dl.SegmentationLosses(CONFIG).cross_entropy_loss(y, p, torch.ones(2))
    with pytest.raises(ValueError, match="variant must be 'source' or 'kervadec'"):
        dl.SegmentationLosses(CONFIG).boundary_loss(y, p, "dt")


# Scores of images and texts


def smoothed(scores, a):
    wanted = (1 - a) * torch.eye(len(scores), dtype=scores.dtype) + a / len(scores)
    return -(wanted * scores.log_softmax(1)).sum(1)


def siglip(image, text, factor):
    sign = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return sum(F.softplus(-sign * factor * x).mean() for x in (image, text)) / 2


def scores(image, text, **more):
    return {"logits_per_image": image, "logits_per_text": text, **more}


def test_clip():
    image, text = real(5, 5), real(5, 5)
    agree(lambda a, b: dl.CLIPContrastiveLoss()(None, scores(a, b)), lambda a, b: (smoothed(a, 0) + smoothed(b, 0)).mean() / 2, image, text)
    made = dl.CLIPContrastiveLoss(0.5, 0.2, True, 0.7, 0.3)
    agree(lambda a, b: made(None, (a, b)), lambda a, b: (0.7 * smoothed(2 * a, 0.2) + 0.3 * smoothed(2 * b, 0.2)).mean(), image, text)
    made.update_temperature(0.25)
    agree(lambda a, b: made(None, [a, b]), lambda a, b: (0.7 * smoothed(4 * a, 0.2) + 0.3 * smoothed(4 * b, 0.2)).mean(), image, text)
    assert dl.CLIPContrastiveLoss(reduction="none")(None, (image, text)).shape == (5,)
    # row 0: log(1 + e^-2) of each; row 1: log(1 + e) of the image's, log 2 of the text's
    image, text = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    by_hand = dl.CLIPContrastiveLoss(reduction="none")(None, (image, text))
    wanted = [math.log1p(math.exp(-2)), (math.log1p(math.e) + math.log(2)) / 2]
    assert by_hand.tolist() == pytest.approx(wanted, rel=1e-6)


def test_clip_refusals():
    for options, message in (
        ({"temperature": 0.0}, "temperature must be positive"), ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\]"),
        ({"loss_weight_i2t": -1.0}, "loss_weight_i2t must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dl.CLIPContrastiveLoss(**options)
    with pytest.warns(UserWarning, match="do not add up to 1"):
        dl.CLIPContrastiveLoss(loss_weight_i2t=1.0)
    made = dl.CLIPContrastiveLoss()
    with pytest.raises(ValueError, match="temperature must be positive"):
        made.update_temperature(-1.0)
    with pytest.raises(ValueError, match=r"dictionary with logits_per_image, logits_per_text, got \['logits_per_image'\]"):
        made(None, {"logits_per_image": real(2, 2)})
    with pytest.raises(ValueError, match="pair of scores, got 3"):
        made(None, [real(2, 2)] * 3)
    with pytest.raises(ValueError, match=r"of one shape, got \(2, 2\) and \(3, 3\)"):
        made(None, [real(2, 2), real(3, 3)])
    with pytest.raises(ValueError, match=r"\(B, B\)"):
        made(None, [real(2), real(2)])
    with pytest.warns(UserWarning, match=r"usually square, got \(2, 3\)"):
        made(None, [real(2, 3), real(2, 3)])


def test_siglip():
    image, text = real(5, 5), real(5, 5)
    agree(lambda a, b: dl.SigLIPContrastiveLoss(2.0)(None, scores(a, b)), lambda a, b: siglip(a, b, 2.0), image, text)
    learned = torch.tensor(3.0, dtype=torch.float64)
    agree(
        lambda a, b, t: dl.create_siglip_loss()(None, scores(a, b, temperature=t)), lambda a, b, t: siglip(a, b, t), image, text, learned
    )
    fixed = dl.create_siglip_loss(2.0, use_learnable_temperature=False)(None, scores(image, text, temperature=learned))
    torch.testing.assert_close(fixed, siglip(image, text, 2.0))
    with pytest.raises(ValueError, match="y_pred must be a dictionary with logits_per_image, logits_per_text, got tuple"):
        dl.SigLIPContrastiveLoss()(None, (image, text))
    half = dl.SigLIPContrastiveLoss()(None, scores(torch.zeros(2, 2), torch.zeros(2, 2)))
    assert float(half) == pytest.approx(math.log(2))


def test_adaptive_siglip():
    image, text = real(5, 5), real(5, 5)
    made = dl.create_adaptive_siglip_loss(2.0, 0.3, adaptation_rate=0.5, min_temperature=1.0)
    p = image.softmax(1)
    step = 0.5 * (-(p * p.log()).sum(1).mean() - 0.3)
    first = float(2.0 - step)
    assert 1.0 < first < 2.0
    a = image.clone().requires_grad_()
    before = made(None, scores(a, text))
    torch.testing.assert_close(before, siglip(a, text, first), rtol=1e-6, atol=0)
    assert float(made.adaptive_temperature) == pytest.approx(first)
    made(None, scores(image, text))
    assert float(made.adaptive_temperature) == pytest.approx(max(2 - 2 * float(step), 1.0))
    for _ in range(5):
        made(None, scores(image, text))
    assert float(made.adaptive_temperature) == 1.0 and "adaptive_temperature" in made.state_dict()
    late, made = image.float().requires_grad_(), dl.AdaptiveSigLIPLoss()
    early = made(None, scores(late, text.float()))
    made(None, scores(late, text.float()))
    torch.autograd.grad(early, late)
    wanted = torch.autograd.grad(siglip(a, text, first), a)[0]
    torch.testing.assert_close(torch.autograd.grad(before, a)[0], wanted, rtol=1e-6, atol=1e-9)  # a late backward


def test_hybrid():
    image, text, x, t = real(5, 5), real(5, 5), real(5, 3), real(5, 3)
    agree(lambda a, b: dl.create_hybrid_loss(2.0)(None, scores(a, b)), lambda a, b: 2 * siglip(a, b, 1.0), image, text)
    still = dl.HybridContrastiveLoss(noise_level=0.0, score_weight=0.5)

    def ours(a, b, x, t):
        return still(None, scores(a, b, image_embeddings=x, text_embeddings=t))

    agree(ours, lambda a, b, x, t: siglip(a, b, 1.0) + 0.5 * ((x - t) ** 2).sum(1).mean(), image, text, x, t)
    noisy = dl.HybridContrastiveLoss(0.0, 1.0, noise_level=0.5, generator=torch.Generator().manual_seed(3))
    noise = torch.Generator().manual_seed(3)
    n, m = (0.5 * torch.randn(5, 3, generator=noise, dtype=torch.float64) for _ in range(2))
    wanted = (((x + n - t) ** 2).sum(1).mean() + ((t + m - x) ** 2).sum(1).mean()) / 2
    torch.testing.assert_close(noisy(None, scores(image, text, image_embeddings=x, text_embeddings=t)), wanted)


# Maps and boxes


def test_pixels_that_count():
    y, p = torch.tensor([[0.0, 1.0, 77.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    found = dl.AffineInvariantLoss()(y, p, mask=torch.tensor([[True, True, False, True]]))
    assert float(found) == pytest.approx(1 / 6, rel=1e-6)


def box_score(a, b, kind, eps=1e-7):
    (x1, y1, x2, y2), (u1, v1, u2, v2) = a.unbind(-1), b.unbind(-1)
    inter = (torch.min(x2, u2) - torch.max(x1, u1)).clamp_min(0) * (torch.min(y2, v2) - torch.max(y1, v1)).clamp_min(0)
    w, h, r, s = x2 - x1, y2 - y1, u2 - u1, v2 - v1
    union = w * h + r * s - inter
    iou = inter / (union + eps)
    across, down = torch.max(x2, u2) - torch.min(x1, u1), torch.max(y2, v2) - torch.min(y1, v1)
    if kind == "GIoU":
        return iou - (across * down - union) / (across * down + eps)
    apart = ((x1 + x2 - u1 - u2) ** 2 + (y1 + y2 - v1 - v2) ** 2) / 4 / (across**2 + down**2 + eps)
    angle = 4 / math.pi**2 * (torch.atan(w / h) - torch.atan(r / s)) ** 2
    alpha = (angle / (angle - iou + 1 + eps)).detach()
    return {"IoU": iou, "DIoU": iou - apart, "CIoU": iou - apart - alpha * angle}[kind]


def boxes(*shape):
    low = torch.rand(*shape, 2, dtype=torch.float64)
    return torch.cat([low, low + 0.2 + torch.rand(*shape, 2, dtype=torch.float64)], -1)


@pytest.mark.parametrize("kind", ["IoU", "GIoU", "DIoU", "CIoU"])
def test_bbox_iou(kind):
    a, b = boxes(3, 4), boxes(4)
    chosen = {} if kind == "IoU" else {kind: True}
    agree(lambda a, b: dl.bbox_iou(a, b, **chosen).sum(), lambda a, b: box_score(a, b, kind).sum(), a, b)
    assert dl.bbox_iou(a, b, **chosen).shape == (3, 4)
    centred = [torch.cat([(x[..., :2] + x[..., 2:]) / 2, x[..., 2:] - x[..., :2]], -1) for x in (a, b)]
    torch.testing.assert_close(dl.bbox_iou(*centred, xywh=True, **chosen), box_score(a, b, kind))
    nothing = torch.zeros(4, requires_grad=True)
    score = dl.bbox_iou(nothing, torch.ones(4), **chosen)
    assert score.isfinite() and torch.autograd.grad(score, nothing)[0].isfinite().all()


# Critics


def test_gradient_penalty():
    critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1)).double()
    x, z, alpha = real(4, 2, 2, 3), real(4, 2, 2, 3), torch.rand(4, dtype=torch.float64)
    wanted = 5.0 * (critic[1].weight.norm() - 1) ** 2
    got = dl.compute_gradient_penalty(critic, x, z, 5.0, alpha=alpha)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got, critic[1].weight)[0], torch.autograd.grad(wanted, critic[1].weight)[0])
    square = dl.compute_gradient_penalty(lambda x: (x**2).sum((1, 2, 3)), x, z, alpha=alpha)
    between = alpha.view(4, 1, 1, 1) * x + (1 - alpha.view(4, 1, 1, 1)) * z
    torch.testing.assert_close(square, 10 * ((2 * between.flatten(1).norm(dim=1) - 1) ** 2).mean())
    first, again = (
        dl.compute_gradient_penalty(lambda x: (x**2).sum((1, 2, 3)), x, z, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first, again)


def test_factories_of_critics():
    for critic, generator in (dl.create_wgan_losses(), dl.create_wgan_gp_losses(5.0)):
        assert critic.for_critic and not generator.for_critic
        assert float(critic(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0]))) == -1.0
        assert float(generator(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0]))) == -2.0
    assert critic.lambda_gp == generator.lambda_gp == 5.0
    assert dl.WassersteinLoss(reduction="none")(torch.ones(3), torch.rand(3)).shape == (3,)


@pytest.mark.parametrize("make", [dl.F1Loss, dl.CapsuleMarginLoss, dl.MASELoss, lambda **how: dl.SegmentationWrapperLoss("dice", **how)])
def test_backends(make):
    y, p = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [1, 1]]])), torch.rand(1, 2, 2, 2)
    torch.testing.assert_close(make(backend="cpu")(y, p), make(backend="eager")(y, p))
    with pytest.raises((ValueError, RuntimeError), match="opencl"):
        make(backend="opencl")(y, p)
