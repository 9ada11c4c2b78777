"""What losses are timed against where torch has no function of its own: the formulas as the libraries compute them that people use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
