"""What losses are timed against where torch has no function of its own: the library that people use, where it is installed
(``pip install .[peers]``), else its formula."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor


def dfl(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Distribution focal loss by two cross-entropies."""
    position = target.clamp(0, input.shape[-1] - 1.01)
    left = position.long()
    share = position - left
    values = (1 - share) * F.cross_entropy(input, left, reduction="none") + share * F.cross_entropy(input, left + 1, reduction="none")
    return values.mean() if reduction == "mean" else values


def sigmoid_focal(input: Tensor, target: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
    """torchvision's."""
    p = torch.sigmoid(input)
    p_t = p * target + (1 - p) * (1 - target)
    loss = F.binary_cross_entropy_with_logits(input, target, reduction="none") * (1 - p_t) ** gamma
    loss = loss * (alpha * target + (1 - alpha) * (1 - target))
    return loss.mean() if reduction == "mean" else loss


def _one_hot(target: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(1, target.unsqueeze(1), 1.0)


def _dice_of(p: Tensor, y: Tensor) -> Tensor:
    over = list(range(2, p.dim()))
    score = (2 * (p * y).sum(over) + 1e-5) / (p.sum(over) + y.sum(over) + 1e-5)
    return (1 - score).mean()


def dice(input: Tensor, target: Tensor) -> Tensor:
    """MONAI's, as of the three that follow."""
    return _dice_of(torch.softmax(input, 1), _one_hot(target, input))


def tversky(input: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
    p, y = torch.softmax(input, 1), _one_hot(target, input)
    over = list(range(2, input.dim()))
    both = (p * y).sum(over)
    wrong, missed = alpha * (p * (1 - y)).sum(over), beta * ((1 - p) * y).sum(over)
    return (1 - (both + 1e-5) / (both + wrong + missed + 1e-5)).mean()


def dice_ce(input: Tensor, target: Tensor) -> Tensor:
    return dice(input, target) + F.cross_entropy(input, target)


def dice_focal(input: Tensor, target: Tensor, gamma: float, activation: str) -> Tensor:
    y = _one_hot(target, input)
    ce = F.binary_cross_entropy_with_logits(input, y, reduction="none")
    focal = torch.exp(F.logsigmoid(-input * (y * 2 - 1)) * gamma) * ce
    return _dice_of(torch.sigmoid(input), y) + focal.mean()


def focal(input: Tensor, target: Tensor, gamma: float) -> Tensor:
    """MONAI's of the sigmoid of every channel."""
    y = _one_hot(target, input)
    ce = F.binary_cross_entropy_with_logits(input, y, reduction="none")
    return (torch.exp(F.logsigmoid(-input * (y * 2 - 1)) * gamma) * ce).mean()


def box_loss(loss: str, boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """torchvision's mean of a box loss."""
    boxes1, boxes2 = (boxes if boxes.dtype == torch.float64 else boxes.float() for boxes in (boxes1, boxes2))
    x1, y1, x2, y2 = boxes1.unbind(-1)
    u1, v1, u2, v2 = boxes2.unbind(-1)
    left, right, top, bottom = torch.max(x1, u1), torch.min(x2, u2), torch.max(y1, v1), torch.min(y2, v2)
    inter, meet = torch.zeros_like(x1), (bottom > top) & (right > left)
    inter[meet] = (right[meet] - left[meet]) * (bottom[meet] - top[meet])
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter
    iou = inter / (union + eps)
    value = 1 - iou
    width, height = torch.max(x2, u2) - torch.min(x1, u1), torch.max(y2, v2) - torch.min(y1, v1)
    if loss == "generalized_box_iou":
        value = value + (width * height - union) / (width * height + eps)
    elif loss != "box_iou":
        across, down = (x1 + x2) / 2 - (u1 + u2) / 2, (y1 + y2) / 2 - (v1 + v2) / 2
        value = value + (across**2 + down**2) / (width**2 + height**2 + eps)
    if loss == "complete_box_iou":
        v = 4 / torch.pi**2 * (torch.atan((u2 - u1) / (v2 - v1)) - torch.atan((x2 - x1) / (y2 - y1))) ** 2
        with torch.no_grad():
            alpha = v / (1 - iou + v + eps)
        value = value + alpha * v
    return value.mean()


def _lovasz(error: Tensor, foreground: Tensor) -> Tensor:
    error, order = torch.sort(error, descending=True)
    foreground = foreground[order]
    total = foreground.sum()
    left, joint = total - foreground.cumsum(0), total + (1 - foreground).cumsum(0)
    loss = 1 - left / joint
    return torch.dot(torch.relu(error), torch.cat([loss[:1], loss[1:] - loss[:-1]]))


def lovasz_softmax(input: Tensor, target: Tensor) -> Tensor:
    """smp's, class by class."""
    chance = torch.softmax(input.float(), 1).movedim(1, 0).flatten(1)
    label = target.flatten()
    rows = []
    for c, p in enumerate(chance):
        foreground = (label == c).to(p.dtype)
        if foreground.sum() > 0:
            rows.append(_lovasz((foreground - p).abs(), foreground))
    return torch.stack(rows).mean()


def lovasz_hinge(input: Tensor, target: Tensor) -> Tensor:
    """smp's, image by image."""
    foreground = target.float().flatten(1)
    errors = 1 - input.float().flatten(1) * (2 * foreground - 1)
    return torch.stack([_lovasz(*row) for row in zip(errors, foreground)]).mean()


def info_nce(query: Tensor, key: Tensor, temperature: float, negative_mode: str) -> Tensor:
    """The common formula of a whole matrix of scores, as of the five that follow."""
    scores = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(query)))


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    z, n = F.normalize(torch.cat([z1, z2]), dim=1), len(z1)
    scores = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def clip(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """open_clip's."""
    scores, target = logit_scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def siglip(a: Tensor, b: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """open_clip's."""
    scores = logit_scale * a @ b.T + logit_bias
    return -F.logsigmoid((2 * torch.eye(len(a)) - 1) * scores).sum() / len(a)


def sup_con(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    x, own = F.normalize(embeddings, dim=1), torch.eye(len(embeddings), dtype=torch.bool)
    log_prob = F.log_softmax((x @ x.T / temperature).masked_fill(own, -torch.inf), 1)
    same = (labels.unsqueeze(1) == labels) & ~own
    counts = same.sum(1)
    rows = -torch.where(same, log_prob, 0.0).sum(1) / counts.clamp_min(1)
    return rows.sum() / (counts > 0).sum().clamp_min(1)


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix.flatten()[:-1].view(len(matrix) - 1, -1)[:, 1:].flatten()


def vicreg(
    z1: Tensor, z2: Tensor, sim_coeff: float, std_coeff: float, cov_coeff: float, variance_target: float
) -> Tensor:
    """The authors'."""
    loss = sim_coeff * F.mse_loss(z1, z2)
    for z in (z1, z2):
        loss = loss + std_coeff * F.relu(variance_target - torch.sqrt(z.var(0) + 1e-4)).mean() / 2
        z = z - z.mean(0)
        loss = loss + cov_coeff * _off_diagonal(z.T @ z / (len(z) - 1)).square().sum() / z.shape[1]
    return loss


def barlow_twins(z1: Tensor, z2: Tensor, lambd: float, deviation: str) -> Tensor:
    """The authors'."""
    first, second = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    matrix = first.T @ second / len(z1)
    return (matrix.diagonal() - 1).square().sum() + lambd * _off_diagonal(matrix).square().sum()


def distillation(input: Tensor, target: Tensor, temperature: float, reverse: bool, squared_temperature: bool) -> Tensor:
    """As torch's tutorials write it."""
    q, p = F.softmax(target / temperature, -1), F.log_softmax(input / temperature, -1)
    return F.kl_div(p, q, reduction="batchmean") * temperature**2


def dino(input: Tensor, target: Tensor, center: Tensor, student_temp: float, teacher_temp: float, crops: bool) -> Tensor:
    """The authors', of one pair of views."""
    q = F.softmax((target - center) / teacher_temp, -1).detach()
    return torch.sum(-q * F.log_softmax(input / student_temp, -1), -1).mean()


# Of the losses that a released library has as a class: its module, the class and the arguments that make it the same loss.
RELEASED = {
    "dice": ("monai", "losses.DiceLoss", {"to_onehot_y": True, "softmax": True}),
    "dice_ce": ("monai", "losses.DiceCELoss", {"to_onehot_y": True, "softmax": True}),
    "tversky": ("monai", "losses.TverskyLoss", {"to_onehot_y": True, "softmax": True, "alpha": 0.5, "beta": 0.5}),
    "dice_focal": ("monai", "losses.DiceFocalLoss", {"to_onehot_y": True, "sigmoid": True, "gamma": 2.0}),
    "focal": ("monai", "losses.FocalLoss", {"to_onehot_y": True, "gamma": 2.0}),
}


def released(loss: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The released library's function of logits and labels; None where it is not installed."""
    if loss not in RELEASED or importlib.util.find_spec(RELEASED[loss][0]) is None:
        return None
    library, path, arguments = RELEASED[loss]
    module, name = f"{library}.{path}".rsplit(".", 1)
    made = getattr(importlib.import_module(module), name)(**arguments)
    return lambda input, target: made(input, target.unsqueeze(1))


def find(loss: str, options: dict[str, object]) -> Callable[..., Tensor] | None:
    """What the loss is timed against, of the released library or of the formulas above; None where there is neither."""
    formula = globals().get(loss)
    return released(loss) or (functools.partial(formula, **options) if formula else None)


def name(loss: str) -> str | None:
    """Of what :func:`find` gives: library and version, or that it is a formula."""
    if released(loss):
        return f"{RELEASED[loss][0]} {version(RELEASED[loss][0])}"
    return "formula" if loss in globals() else None
