"""A small detector of rectangles and discs, trained with fastloss's loss, and beside it the same formula written out in plain torch.

``python examples/detector.py [--steps 240] [--assigner source]`` draws its own images, takes less than half a minute, and fails when the
two losses or their gradients differ at any step, or when the detector does not learn. It computes in float64: where two anchors are equally
good an assignment jumps, and in float32 the two may be rounded to different sides.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastloss
from fastloss.functional import anchor_points, decode_boxes

SIDE = 64  # pixels of an image
KINDS = 2  # rectangles and discs
MOST = 3  # objects of an image
BINS = 8
BATCH = 16
TOLERANCE = 1e-9  # of the two losses and of their gradients at any step, relative


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (N, 1, SIDE, SIDE) and their objects (N, MOST, 5): kind and corners as shares of the side; zeros where there is none."""
    images = 0.1 * torch.randn((count, 1, SIDE, SIDE), generator=generator, dtype=torch.float64)
    objects = torch.zeros(count, MOST, 5, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    for image, rows in zip(images, objects):
        for row in rows[: int(torch.randint(1, MOST + 1, (), generator=generator))]:
            disc = bool(torch.randint(2, (), generator=generator))
            width, height = (12 + 24 * torch.rand(2, generator=generator)).round().tolist()
            height = width if disc else height
            left, top = (torch.rand(2, generator=generator) * torch.tensor([SIDE - width, SIDE - height])).round().tolist()
            inside = (x >= left) & (x <= left + width) & (y >= top) & (y <= top + height)
            if disc:
                inside = (x - left - width / 2) ** 2 + (y - top - height / 2) ** 2 <= width**2 / 4
            image[0, inside] = 0.5 + 0.5 * torch.rand((), generator=generator, dtype=torch.float64)
            row[:] = torch.tensor([disc, left / SIDE, top / SIDE, (left + width) / SIDE, (top + height) / SIDE])
    return images, objects


class Detector(nn.Module):
    """Three maps of features, each with a head; predictions of all cells in the order of :func:`fastloss.functional.anchor_points`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU())

        self.stem = nn.Sequential(block(1, width), block(width, width))
        self.maps = nn.ModuleList([block(width, 2 * width), block(2 * width, 2 * width), block(2 * width, 2 * width)])
        self.heads = nn.ModuleList([nn.Conv2d(2 * width, 4 * BINS + KINDS, 3, 1, 1) for _ in self.maps])
        for head in self.heads:
            nn.init.constant_(head.bias[4 * BINS :], -3.0)  # most cells hold no object

    def forward(self, images: Tensor) -> Tensor:
        x, found = self.stem(images), []
        for shrink, head in zip(self.maps, self.heads):
            x = shrink(x)
            found.append(head(x).flatten(2).mT)
        return torch.cat(found, 1)


# The formula in plain torch: every image, object and anchor at once.


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and complete IoU of boxes that broadcast."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp_min(0).prod(-1)
    size, other = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    iou = inter / (size.prod(-1) + other.prod(-1) - inter + 1e-7)
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).square().sum(-1) + 1e-7
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(-1) / 4
    turn = torch.atan2(size[..., 0], size[..., 1]) - torch.atan2(other[..., 0], other[..., 1])
    v = 4 / math.pi**2 * turn**2
    return iou, iou - apart / around - (v / (1 - iou + v + 1e-7)).detach() * v


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, points: Tensor, objects: Tensor, assigner: str) -> tuple[Tensor, Tensor]:
    """Which object each anchor learns, and its weight, 0 for none."""
    corners = objects[..., 1:] * SIDE
    exists = (corners.sum(-1) > 0).unsqueeze(2)
    iou, complete = overlaps(corners.unsqueeze(2), boxes.unsqueeze(1))
    score = logits.sigmoid().gather(2, objects[:, None, :, 0].long().expand(-1, logits.shape[1], -1)).mT
    inside = ((points >= corners[:, :, None, :2]) & (points <= corners[:, :, None, 2:])).all(-1) & exists

    def best(values: Tensor) -> Tensor:
        first = values.sort(dim=2, descending=True, stable=True).indices[..., :10]
        return torch.zeros_like(values, dtype=torch.bool).scatter_(2, first, True)

    if assigner == "source":
        worth = torch.where((inside | best(iou)) & exists, 0.5 * score + 6 * complete, 0.0)
        most, index = worth.max(1)
        return index, (most > 0).double()
    worth = torch.where(inside, score.sqrt() * iou**6, 0.0)
    worth = torch.where(best(worth), worth, 0.0)
    index = torch.where(worth > 0, iou, 0.0).argmax(1)
    mine = torch.where(index.unsqueeze(1) == torch.arange(MOST).view(1, -1, 1), worth, 0.0)
    highest = torch.where(mine > 0, iou, 0.0).amax(2, keepdim=True)
    return index, (mine / (mine.amax(2, keepdim=True) + 1e-9) * highest).amax(1)


def plain_loss(predicted: Tensor, objects: Tensor, assigner: str) -> Tensor:
    """What :func:`fastloss.functional.yolov12_detection_loss` computes."""
    points, stride = anchor_points((SIDE, SIDE), dtype=predicted.dtype)
    distances, logits = predicted.split([4 * BINS, KINDS], -1)
    boxes = decode_boxes(distances, points, stride)
    index, weight = assign(logits, boxes, points, objects, assigner)
    count = weight.sum().clamp_min(1)
    learned = objects.gather(1, index.unsqueeze(2).expand(-1, -1, 5))
    truth = SIDE * learned[..., 1:]
    targets = F.one_hot(learned[..., 0].long(), KINDS) * weight.unsqueeze(2)
    p = logits.sigmoid()
    miss = (1 - p * targets - (1 - p) * (1 - targets)) ** 2
    focal = (miss * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).mean(-1).sum()
    box = (weight * (1 - overlaps(boxes, truth)[1])).sum()
    position = (torch.cat([points - truth[..., :2], truth[..., 2:] - points], -1) / stride).clamp(0, BINS - 1.01)
    left = position.long()
    log_prob = distances.unflatten(-1, (4, BINS)).log_softmax(-1)
    near, far = (-log_prob.gather(-1, bins.unsqueeze(-1)).squeeze(-1) for bins in (left, left + 1))
    dfl = (weight.unsqueeze(2) * ((left + 1 - position) * near + (position - left) * far)).sum()
    return (7.5 * box + 0.5 * focal + 1.5 * dfl) / count


# Training and what it is worth


@torch.no_grad()
def average_precision(model: nn.Module, images: Tensor, objects: Tensor, least_iou: float = 0.5) -> float:
    """The mean over kinds of the area under precision by recall, a detection being right if an object not yet found overlaps it enough."""
    points, stride = anchor_points((SIDE, SIDE), dtype=images.dtype)
    predicted = model(images)
    boxes = decode_boxes(predicted[..., : 4 * BINS], points, stride)
    areas = []
    for kind in range(KINDS):
        detections, there = [], 0
        for scores, found, rows in zip(predicted[..., 4 * BINS + kind].sigmoid(), boxes, objects):
            truth = SIDE * rows[(rows[:, 0] == kind) & (rows[:, 1:].sum(1) > 0), 1:]
            there += len(truth)
            best = scores.argsort(descending=True)[:30]
            near = overlaps(found[best].unsqueeze(1), found[best])[0] > 0.6
            matches = overlaps(found[best].unsqueeze(1), truth)[0].tolist()
            left, kept = set(range(len(truth))), []
            for a, score in enumerate(scores[best].tolist()):
                if near[a, kept].any():
                    continue  # the same object once more
                kept.append(a)
                hit = max(left, key=matches[a].__getitem__, default=None)
                right = hit is not None and matches[a][hit] >= least_iou
                if right:
                    left.remove(hit)
                detections.append((score, right))
        right = torch.tensor([hit for _, hit in sorted(detections, reverse=True)], dtype=torch.float64)
        precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
        best = precision.flip(0).cummax(0).values.flip(0)
        areas.append(float((best * right).sum()) / max(there, 1))
    return sum(areas) / KINDS


@dataclass
class Result:
    """What training gave."""

    losses: list[float]
    apart: float  # the largest difference of the two losses at any step, or of their gradients, relative to the largest number
    before: float  # average precision on held-out images
    after: float
    seconds: dict[str, float]  # in each of the losses, forward and backward


def train(steps: int, assigner: str, held_out: int = 64) -> Result:
    """Train a detector with fastloss's loss, and compute the other one of every prediction that it makes."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Detector().double()
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    images, objects = draw(BATCH * min(steps, 32), generator)
    test = draw(held_out, generator)
    fused = fastloss.nn.YOLOv12MultiTaskLoss(
        ["detection"], num_classes=KINDS, input_shape=(SIDE, SIDE), reg_max=BINS, assigner=assigner, train_negatives=True
    )
    sides = {"fastloss": fused, "plain torch": lambda x, y: plain_loss(x, y, assigner)}
    result = Result([], 0.0, average_precision(model, *test), 0.0, dict.fromkeys(sides, 0.0))
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        predicted = model(images[chosen])
        values, gradients = {}, {}
        for name, loss in sides.items():
            leaf = predicted.detach().requires_grad_()
            start = time.perf_counter()
            value = loss(leaf, objects[chosen])
            (gradients[name],) = torch.autograd.grad(value, leaf)
            result.seconds[name] += time.perf_counter() - start
            values[name] = value.detach()
        gap = max(
            float((found["fastloss"] - found["plain torch"]).abs().max() / found["plain torch"].abs().max())
            for found in (values, gradients)
        )
        result.apart = max(result.apart, gap) if gap == gap else math.inf
        result.losses.append(float(values["fastloss"]))
        if step % max(steps // 8, 1) == 0 or step == steps - 1:
            print(f"step {step:4d}: fastloss {values['fastloss']:.6f}, plain torch {values['plain torch']:.6f}, apart {gap:.1e}")
        optimiser.zero_grad()
        predicted.backward(gradients["fastloss"])
        optimiser.step()
        schedule.step()
    result.after = average_precision(model, *test)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Train, print what came of it; 1 when the losses parted or nothing was learned."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--assigner", choices=("source", "tood"), default="tood")
    options = parser.parse_args(arguments)
    result = train(options.steps, options.assigner)
    print(f"average precision at IoU 0.5 on held-out images: {result.before:.3f} before, {result.after:.3f} after {options.steps} steps")
    for name, seconds in result.seconds.items():
        print(f"{name}: {1e3 * seconds / options.steps:.1f} ms a step in the loss")
    if not result.apart <= TOLERANCE:
        print(f"failed: the losses differ by {result.apart:.1e}, at most {TOLERANCE:g} is accepted", file=sys.stderr)
        return 1
    if not result.after > result.before + 0.2:
        print("failed: the detector did not learn", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
