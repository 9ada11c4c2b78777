"""Which object each anchor of a detector learns, the task-aligned assignment of Feng et al. 2021 and an additive variant of it.

With the score s of the object's class and the overlaps of the predicted box with the object's box, an anchor is worth to an object

- ``additive``: alpha s + beta CIoU, if its point lies inside the object's box or its IoU is one of the object's `topk` largest; it learns
  the object that it is worth most to;
- else: s^alpha IoU^beta, if its point lies inside and this is one of the object's `topk` largest; it learns the object with the largest
  IoU, with a weight in (0, 1]: its worth over the largest worth of the object's anchors, times the largest IoU of these.

An anchor that is worth more than 0 to no object is background. Of equal anchors the first are taken, and of equal objects the first.
:func:`formula` says it in plain torch. No gradient flows: an assignment is of what is there, and is taken as given by the losses.

The cubes of images x objects x anchors that the formula makes are gigabytes for a usual batch. The `cpu` backend sweeps over the anchors
of one object at a time and keeps two numbers an anchor; of the other backends plain torch takes so many objects at a time as fit
:data:`MOST_PAIRS`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._backends import choose
from .box import overlap
from .engine import accumulate_dtype, define
from .registry import LOSSES

EPS = 1e-7  # added to areas and to the other denominators of CIoU
LEAST = 1e-9  # added to the largest worth before it divides
MOST_PAIRS = 2**22  # objects x anchors at a time: 16 MB for each of the formula's intermediate results


def largest(values: Tensor, count: int) -> Tensor:
    """Which of the last dimension are the `count` largest; of equal ones the first. NaN is less than any number."""
    values = torch.where(values.isnan(), -torch.inf, values)
    count = min(count, values.shape[-1])
    least = values.topk(count, -1).values[..., -1:]
    above, tied = values > least, values == least
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= count - above.sum(-1, keepdim=True)))


def _best(
    scores: Tensor,  # (B, A, C)
    boxes: Tensor,  # (B, A, 4)
    anchors: Tensor,  # (A, 2)
    labels: Tensor,  # (B, M)
    objects: Tensor,  # (B, M, 4)
    valid: Tensor,  # (B, M)
    additive: bool,
    logits: bool,
    topk: int,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each anchor what it is worth to the best of these objects (or their IoU), which one that is, and its worth."""
    x, y = anchors.unbind(-1)
    x1, y1, x2, y2 = objects.unsqueeze(2).unbind(-1)
    exists = valid.unsqueeze(2)
    inside = (x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2) & exists
    score = scores.gather(2, labels.unsqueeze(1).expand(-1, boxes.shape[1], -1)).mT.to(boxes.dtype)
    score = torch.sigmoid(score) if logits else score
    found = overlap(boxes.unsqueeze(1), objects.unsqueeze(2), EPS)
    if additive:
        candidates = inside | (largest(found.iou, topk) & exists)
        worth = alpha * score + beta * (found.iou - LOSSES["complete_box_iou"].point(found, EPS, EPS))
    else:
        worth = torch.where(inside, score**alpha * found.iou**beta, 0.0)
        candidates = largest(worth, topk)
    worth = torch.where(candidates & (worth > 0), worth, 0.0)
    key, index = (worth if additive else torch.where(worth > 0, found.iou, 0.0)).max(1)
    return key, index, worth.gather(1, index.unsqueeze(1)).squeeze(1)


def formula(
    scores: Tensor, boxes: Tensor, anchors: Tensor, labels: Tensor, objects: Tensor, valid: Tensor, *settings, at_once: int | None = None
) -> tuple[Tensor, Tensor]:
    """The object of each anchor, -1 for background, and its weight: in plain torch, for all objects together or `at_once` at a time."""
    count, additive = objects.shape[1], settings[0]
    index = labels.new_full(boxes.shape[:2], -1)
    key, worth = boxes.new_zeros(boxes.shape[:2]), boxes.new_zeros(boxes.shape[:2])
    for first in range(0, count, max(at_once or count, 1)):
        part = slice(first, first + (at_once or count))
        other = _best(scores, boxes, anchors, labels[:, part], objects[:, part], valid[:, part], *settings)
        better = other[0] > key
        key, index, worth = (torch.where(better, new, old) for new, old in zip((other[0], other[1] + first, other[2]), (key, index, worth)))
    if additive or not count:
        return index, (index >= 0).to(boxes.dtype)
    place = index.clamp_min(0)
    most_worth, most_iou = (boxes.new_zeros((len(boxes), count)).scatter_reduce(1, place, values, "amax") for values in (worth, key))
    return index, worth * most_iou.gather(1, place) / (most_worth.gather(1, place) + LEAST)


def outputs(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The uninitialised outputs of ``assign``."""
    shape = boxes.shape[0], boxes.shape[2]
    return labels.new_empty(shape), boxes.new_empty(shape)


# Boxes are (B, 4, A) and anchors (2, A), contiguous and of the accumulation dtype.
_ASSIGN = define(
    "assign",
    "(Tensor scores, Tensor boxes, Tensor anchors, Tensor labels, Tensor objects, Tensor valid, bool additive, bool logits, int topk, "
    "float alpha, float beta) -> (Tensor index, Tensor weight)",
    lambda scores, boxes, anchors, labels, *_: outputs(boxes, labels),
)


@torch.no_grad()
def assign(
    name: str,
    scores: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    labels: Tensor,
    objects: Tensor,
    valid: Tensor,
    additive: bool,
    logits: bool,
    topk: int,
    alpha: float,
    beta: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The object of each anchor, (B, A) int64 with -1 for background, and its weight, for checked arguments of the caller `name`.

    Args:
        name: of the loss, for messages.
        scores: (B, A, C) predicted scores of the classes; probabilities, or `logits`.
        boxes: (B, A, 4) predicted boxes.
        anchors: (A, 2) points.
        labels: (B, M) int64 in [0, C).
        objects: (B, M, 4) boxes.
        valid: (B, M) bool, False for what is no object.
        additive: which of the two assignments.
        topk, alpha, beta: as above.
    """
    backend, _ = choose(name, backend, scores, boxes, objects)
    dtype = accumulate_dtype(torch.promote_types(torch.promote_types(scores.dtype, boxes.dtype), objects.dtype))
    boxes, anchors, objects = (t.to(dtype) for t in (boxes, anchors, objects))
    if dtype == torch.float64:
        scores = scores.to(dtype)
    settings = additive, logits, topk, float(alpha), float(beta)
    if backend == "cpu":
        return _ASSIGN["cpu"](
            scores, boxes.mT.contiguous(), anchors.mT.contiguous(), labels.contiguous(), objects.contiguous(), valid.contiguous(), *settings
        )
    at_once = None if backend == "eager" else max(MOST_PAIRS // max(boxes.shape[:2].numel(), 1), 1)
    return formula(scores, boxes, anchors, labels, objects, valid, *settings, at_once=at_once)
