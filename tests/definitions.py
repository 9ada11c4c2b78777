"""What the tests of segmentation losses share: options, inputs, and the comparison with a definition in float64."""

from __future__ import annotations

import itertools
import random

import torch
import torch.nn.functional as F
from torch import Tensor

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
    return F.one_hot(labels, classes).movedim(-1, 1).double() if classes > 1 else labels.unsqueeze(1).double()


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


def focal_elements(x: Tensor, t: Tensor, gamma=2.0, alpha=None, weight=None, use_softmax=False, include_background=True) -> Tensor:
    """Each element's focal loss."""
    if not include_background and x.shape[1] > 1:
        x, t = x[:, 1:], t[:, 1:]
    if use_softmax:
        log_p = torch.log_softmax(x, 1)
        losses = -((1 - log_p.exp()) ** gamma) * log_p * t
        if alpha is not None and include_background:
            losses = losses * torch.tensor([1 - alpha] + [alpha] * (x.shape[1] - 1)).view(-1, 1, 1)
    else:
        losses = torch.sigmoid(-x * (2 * t - 1)) ** gamma * F.binary_cross_entropy_with_logits(x, t, reduction="none")
        losses = losses if alpha is None else losses * (alpha * t + (1 - alpha) * (1 - t))
    return losses if weight is None or x.shape[1] == 1 else losses * weight.double().view(-1, 1, 1)
