"""One training run of the demonstration, in a process of its own so that its peak memory is its own.

Run as ``python -m fastloss.demo_worker MODEL LOSS STEPS DATA``; prints one JSON object a step and a last one with the summary.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

import fastloss
from fastloss.metric.losses import TripletMarginLoss
from fastloss.metric.reducers import MeanReducer

CONTEXT = 8  # words that the language model sees before the one it predicts
WIDTH = 64
BATCH_WORDS = 1536
BATCH_DIGITS = 64
BATCH_SCENES = 16
BATCH_PAIRS = 192
TEMPERATURE = 0.1
MARGIN = 0.2
HELD_OUT = 0.1
SCENE = 48  # pixels across
CLASSES = 11  # of a scene's pixels: background, and ten digits


class LanguageModel(nn.Module):
    """The next word from the last few: embeddings side by side, one hidden layer, a wide output layer."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.hidden = nn.Sequential(nn.Linear(CONTEXT * WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.output = nn.Linear(WIDTH, vocabulary)

    def forward(self, words: Tensor) -> Tensor:
        return self.output(self.hidden(self.embedding(words).flatten(1)))


class Words:
    """Batches of random places in the text; the end of the text is held out."""

    def __init__(self, data: Path) -> None:
        stored = numpy.load(data)
        text = torch.from_numpy(stored["text"].astype(numpy.int64))
        self.windows = text.unfold(0, CONTEXT + 1, 1)
        self.split = int(len(self.windows) * (1 - HELD_OUT))
        self.model = LanguageModel(int(stored["vocabulary"]))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self._at(torch.randint(self.split, (BATCH_WORDS,)))

    def _at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        windows = self.windows[places]
        return windows[:, :-1], windows[:, -1]

    def score(self) -> dict[str, float]:
        words, target = self._at(torch.linspace(self.split, len(self.windows) - 1, BATCH_WORDS).long())
        return {"perplexity": nn.functional.cross_entropy(self.model(words), target).exp().item()}


class Digits:
    """scikit-learn's 1,797 handwritten digits; a tenth is held out."""

    def __init__(self, data: Path) -> None:
        torch.set_num_threads(1)  # too small to share out: on a busy machine two threads wait for each other
        stored = numpy.load(data)
        images = torch.from_numpy(stored["images"]).unsqueeze(1).float() / 16
        order = torch.randperm(len(images))
        self.images, self.labels = images[order], torch.from_numpy(stored["labels"]).long()[order]
        self.split = int(len(images) * (1 - HELD_OUT))
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for places in torch.randperm(self.split).split(BATCH_DIGITS):
                yield self.images[places], self.labels[places]

    def score(self) -> dict[str, float]:
        correct = self.model(self.images[self.split :]).argmax(1) == self.labels[self.split :]
        return {"accuracy": correct.float().mean().item()}


class Scenes:
    """Images of four of scikit-learn's digits each, at twice their size and partly over one another, in noise; every pixel has a class.

    A tenth of the digits is held out: held-out scenes are made of these.
    """

    def __init__(self, data: Path) -> None:
        torch.set_num_threads(1)
        stored = numpy.load(data)
        digits, labels = torch.from_numpy(stored["images"]).float() / 16, torch.from_numpy(stored["labels"]).long()
        digits = digits.repeat_interleave(2, 1).repeat_interleave(2, 2)
        split = int(len(digits) * (1 - HELD_OUT))
        self.images, self.masks = self._scenes(digits[:split], labels[:split], 256)
        self.held_out = self._scenes(digits[split:], labels[split:], 64)
        self.data = data
        self.model = nn.Sequential(
            nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=2, dilation=2), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, CLASSES, 1), nn.Upsample(scale_factor=2, mode="bilinear"),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)

    @staticmethod
    def _scenes(digits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
        images, masks = 0.1 * torch.rand(count, 1, SCENE, SCENE), torch.zeros(count, SCENE, SCENE, dtype=torch.uint8)
        size = digits.shape[-1]
        for scene in range(count):
            for place in range(4):
                chosen = int(torch.randint(len(digits), ()))
                top, left = (int(torch.randint(0, SCENE // 2 - size + 6, ())) + SCENE // 2 * side for side in (place // 2, place % 2))
                top, left = min(top, SCENE - size), min(left, SCENE - size)
                part = slice(top, top + size), slice(left, left + size)
                images[scene, 0][part] = torch.maximum(images[scene, 0][part], digits[chosen])
                masks[scene][part] = torch.where(digits[chosen] > 0.3, (labels[chosen] + 1).to(torch.uint8), masks[scene][part])
        return images, masks

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for places in torch.randperm(len(self.images)).split(BATCH_SCENES):
                yield self.images[places], self.masks[places]

    def score(self) -> dict[str, float]:
        """Mean intersection over union of the digits, in held-out scenes; the masks of a few go to a file beside the data."""
        images, masks = self.held_out
        self.model.eval()
        found = self.model(images).argmax(1)
        numpy.savez(self.data.with_suffix(".masks.npz"), image=images[:3, 0], truth=masks[:3], found=found[:3].to(torch.uint8))
        shared = [((found == c) & (masks == c)).sum() / ((found == c) | (masks == c)).sum().clamp_min(1) for c in range(1, CLASSES)]
        return {"iou": torch.stack(shared).mean().item()}


class Retrieval:
    """scikit-learn's digits as vectors, near to each other for digits of one class; a tenth is held out."""

    views = 1  # of each digit in a batch: itself, or altered ones
    dtype = torch.float32

    def __init__(self, data: Path) -> None:
        torch.set_num_threads(1)
        stored = numpy.load(data)
        images, labels = torch.from_numpy(stored["images"]).unsqueeze(1).float() / 16, torch.from_numpy(stored["labels"]).long()
        order = torch.randperm(len(images))
        self.images, self.labels = images[order].to(self.dtype), labels[order]
        self.split = int(len(images) * (1 - HELD_OUT))
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.BatchNorm1d(32),
        ).to(self.dtype)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for places in torch.randperm(self.split)[: self.split // BATCH_PAIRS * BATCH_PAIRS].split(BATCH_PAIRS):
                images = [self.images[places] if self.views == 1 else self._altered(self.images[places]) for _ in range(self.views)]
                yield torch.cat(images), self.labels[places].repeat(self.views)

    @staticmethod
    def _altered(images: Tensor) -> Tensor:
        """Each moved by a pixel or not, fainter or brighter, and noisy."""
        moved = torch.stack([torch.roll(images, (down, right), (2, 3)) for down in (-1, 0, 1) for right in (-1, 0, 1)])
        moved = moved[torch.randint(len(moved), (len(images),)), torch.arange(len(images))]
        return moved * (0.7 + 0.6 * torch.rand(len(images), 1, 1, 1)) + 0.15 * torch.randn_like(images)

    def score(self) -> dict[str, float]:
        """How many held-out digits have the class of their nearest neighbour among the others."""
        self.model.eval()
        vectors = nn.functional.normalize(self.model(self.images))
        nearest = (vectors[self.split :] @ vectors[: self.split].t()).argmax(1)
        return {"retrieved": (self.labels[: self.split][nearest] == self.labels[self.split :]).float().mean().item()}


class Views(Retrieval):
    """The same from two altered views of each digit, without a look at its class."""

    views = 2
    dtype = torch.float64  # any two right losses part within 100 steps in float32: this training amplifies their rounding 10,000 times


def info_nce_in_torch(vectors: Tensor, _: Tensor) -> Tensor:
    """InfoNCE of the first half against the second, from the matrix of all scores."""
    one, other = nn.functional.normalize(vectors).chunk(2)
    scores = one @ other.t() / TEMPERATURE
    return nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def info_nce(vectors: Tensor, _: Tensor) -> Tensor:
    """The same by fastloss."""
    return fastloss.functional.info_nce_loss(*vectors.chunk(2), temperature=TEMPERATURE)


def triplets_in_torch(vectors: Tensor, labels: Tensor) -> Tensor:
    """The mean over all triplets, from their cube."""
    vectors = nn.functional.normalize(vectors)
    distance = torch.cdist(vectors, vectors)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    triplet = positive.unsqueeze(2) & ~same.unsqueeze(1)
    violation = torch.relu(distance.unsqueeze(2) - distance.unsqueeze(1) + MARGIN) * triplet
    return violation.sum() / triplet.sum()


def _dice_in_torch(probability: Tensor, target: Tensor) -> Tensor:
    hot = torch.zeros_like(probability).scatter_(1, target.long().unsqueeze(1), 1.0)
    over = list(range(2, probability.dim()))
    score = (2 * (probability * hot).sum(over) + 1e-5) / (probability.sum(over) + hot.sum(over) + 1e-5)
    return (1 - score).mean()


def dice_ce_in_torch(input: Tensor, target: Tensor) -> Tensor:
    """Dice and cross-entropy from probabilities and a one-hot target, as libraries for segmentation compute it."""
    return _dice_in_torch(torch.softmax(input, 1), target) + nn.functional.cross_entropy(input, target.long())


def dice_focal_in_torch(input: Tensor, target: Tensor) -> Tensor:
    """The same with the focal loss."""
    log_prob = torch.log_softmax(input, 1).gather(1, target.long().unsqueeze(1))
    focal = (1 - log_prob.exp()) ** 2 * -log_prob
    return _dice_in_torch(torch.softmax(input, 1), target) + focal.mean()


Model = Words | Digits | Scenes | Retrieval
MODELS: dict[str, Callable[[Path], Model]] = {
    "words": Words, "digits": Digits, "scenes": Scenes, "focal scenes": Scenes, "views": Views, "triplets": Retrieval
}
_CROSS_ENTROPY = {"torch": nn.CrossEntropyLoss, "fastloss": fastloss.nn.CrossEntropyLoss}
LOSSES: dict[str, dict[str, Callable]] = {
    "words": _CROSS_ENTROPY,
    "digits": _CROSS_ENTROPY,
    "scenes": {"torch": lambda: dice_ce_in_torch, "fastloss": fastloss.nn.DiceCeLoss},
    "focal scenes": {"torch": lambda: dice_focal_in_torch, "fastloss": fastloss.nn.DiceFocalLoss},
    "views": {"torch": lambda: info_nce_in_torch, "fastloss": lambda: info_nce},
    "triplets": {"torch": lambda: triplets_in_torch, "fastloss": lambda: TripletMarginLoss(margin=MARGIN, reducer=MeanReducer())},
}


def _resident(key: str) -> int | None:
    try:
        return 1024 * int(re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    except OSError:
        return None


def _peak() -> int:
    used = _resident("VmHWM")
    if used is not None:
        return used
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(task: Model, criterion: Callable[[Tensor, Tensor], Tensor], steps: int) -> dict:
    """Train, printing every step."""
    before = _peak() if _resident("VmRSS") is None else _resident("VmRSS")
    started, in_loss, batches = time.perf_counter(), 0.0, task.batches()
    for step in range(steps):
        inputs, target = next(batches)
        output = task.model(inputs)
        # Cut here, so that the loss, forward and backward, can be timed alone.
        logits = output.detach().requires_grad_()
        begun = time.perf_counter()
        loss = criterion(logits, target)
        (gradient,) = torch.autograd.grad(loss, logits)
        in_loss += time.perf_counter() - begun
        task.optimizer.zero_grad()
        output.backward(gradient)
        task.optimizer.step()
        print(json.dumps({"step": step, "loss": loss.item()}), flush=True)
        del inputs, target, output, logits, loss, gradient
    seconds = time.perf_counter() - started
    peak = _peak()
    with torch.no_grad():
        score = task.score()
    return {"seconds": seconds, "loss_seconds": in_loss, "peak_bytes": peak - before, **score}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("loss", choices=_CROSS_ENTROPY)
    parser.add_argument("steps", type=int)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    task, criterion = MODELS[arguments.model](arguments.data), LOSSES[arguments.model][arguments.loss]()
    # The first call loads libraries and starts threads.
    warm = torch.randn(4, 3, requires_grad=True)
    torch.autograd.grad(criterion(warm, torch.tensor([0, 1, 2, 0])), warm)
    print(json.dumps(train(task, criterion, arguments.steps)), flush=True)


if __name__ == "__main__":
    main()
