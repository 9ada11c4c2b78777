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

CONTEXT = 8  # words that the language model sees before the one it predicts
WIDTH = 64
BATCH_WORDS = 1536
BATCH_DIGITS = 64
HELD_OUT = 0.1
LOSSES = {"torch": nn.CrossEntropyLoss, "fastloss": fastloss.nn.CrossEntropyLoss}


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


MODELS: dict[str, Callable[[Path], Words | Digits]] = {"words": Words, "digits": Digits}


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


def train(task: Words | Digits, criterion: Callable[[Tensor, Tensor], Tensor], steps: int) -> dict:
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
    parser.add_argument("loss", choices=LOSSES)
    parser.add_argument("steps", type=int)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    task, criterion = MODELS[arguments.model](arguments.data), LOSSES[arguments.loss]()
    # The first call loads libraries and starts threads.
    warm = torch.randn(4, 3, requires_grad=True)
    torch.autograd.grad(criterion(warm, torch.tensor([0, 1, 2, 0])), warm)
    print(json.dumps(train(task, criterion, arguments.steps)), flush=True)


if __name__ == "__main__":
    main()
