"""Handwritten digits sort themselves without labels: a student learns to predict its own moving average's view of an image (DINO).

    python examples/self_distillation.py            # some seconds
    python examples/self_distillation.py --steps 20

Views are shifted images with noise. Labels are read only to measure: how often the nearest other image, by the student's eight features,
shows the same digit. Value and gradient of `fastloss.nn.DINOLoss` are compared with plain torch's at every step. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fastloss

FEATURES, OUTPUTS, CROPS = 8, 256, 4  # the first two crops are the teacher's too
STUDENT_TEMP, TEACHER_TEMP = 0.1, 0.02


def views(images: Tensor, generator: torch.Generator) -> list[Tensor]:
    """CROPS versions of the images (N, 8, 8), shifted by up to a pixel, with noise."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    found = []
    for _ in range(CROPS):
        dy, dx = torch.randint(3, (2,), generator=generator).tolist()
        shifted = padded[:, dy : dy + 8, dx : dx + 8].flatten(1)
        found.append(shifted + 0.2 * torch.randn(shifted.shape, generator=generator))
    return found


class Model(nn.Module):
    """Features of an image, and the cosines of what a head makes of them with OUTPUTS prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, FEATURES))
        self.head = nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, 32))
        self.prototypes = nn.Parameter(torch.randn(OUTPUTS, 32))

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.normalize(self.head(self.trunk(image)), dim=1) @ nn.functional.normalize(self.prototypes, dim=1).T


def plain_dino_loss(students: list[Tensor], teachers: list[Tensor], center: Tensor) -> Tensor:
    """The loss as its definition says, with every intermediate result stored."""
    losses = [
        -(torch.softmax((t - center) / TEACHER_TEMP, 1) * torch.log_softmax(s / STUDENT_TEMP, 1)).sum(1).mean()
        for i, t in enumerate(teachers)
        for j, s in enumerate(students)
        if i != j
    ]
    return torch.stack(losses).mean()


class Step(NamedTuple):
    """One step: both losses and the largest difference of their gradients."""

    ours: float
    plain: float
    gradient_difference: float


@torch.no_grad()
def neighbours_agree(model: Model, images: Tensor, labels: Tensor) -> float:
    """The share of images whose nearest other one, by the angle between their features, shows the same digit."""
    features = nn.functional.normalize(model.trunk(images.flatten(1)), dim=1)
    nearest = (features @ features.T).fill_diagonal_(-2).argmax(1)
    return (labels[nearest] == labels).double().mean().item()


def train(steps: int, batch: int = 128, seed: int = 0, report=lambda number, step: None) -> tuple[list[Step], float, float]:
    """The steps, and the share of neighbours that agree before and after."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
    student, teacher = Model(), Model()
    teacher.load_state_dict(student.state_dict())
    criterion = fastloss.nn.DINOLoss(OUTPUTS, STUDENT_TEMP, TEACHER_TEMP, crops=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4)
    before, history = neighbours_agree(student, images, labels), []
    for number in range(steps):
        crops = views(images[torch.randint(len(images), (batch,), generator=generator)], generator)
        with torch.no_grad():
            wanted = [teacher(crop) for crop in crops[:2]]
        found = [student(crop) for crop in crops]
        loss = criterion(found, wanted)

        leaves = [view.detach().requires_grad_() for view in found]
        plain = plain_dino_loss(leaves, wanted, criterion.center)
        pairs = zip(torch.autograd.grad(loss, found, retain_graph=True), torch.autograd.grad(plain, leaves))
        step = Step(loss.item(), plain.item(), max(float((a - b).abs().max()) for a, b in pairs))

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        criterion.update_center(wanted)
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters()):
                slow.lerp_(fast, 0.02)
        history.append(step)
        report(number, step)
    return history, before, neighbours_agree(student, images, labels)


def check(history: list[Step]) -> None:
    """Raise unless both losses agree at every step, in value and gradient."""
    for number, step in enumerate(history):
        if abs(step.ours - step.plain) > 1e-5 * abs(step.plain) or step.gradient_difference > 1e-6:
            raise SystemExit(f"step {number}: the losses differ, {step}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps

    def report(number: int, step: Step) -> None:
        if number % 50 == 0 or number + 1 == steps:
            print(f"step {number:4d}  loss {step.ours:.5f}  plain torch {step.plain:.5f}")

    started = time.perf_counter()
    history, before, after = train(steps, report=report)
    check(history)
    seconds = time.perf_counter() - started
    print(f"nearest images show the same digit: {before:.1%} before, {after:.1%} after {steps} steps in {seconds:.1f} s")
    print("both losses agree at every step, in value and gradient")


if __name__ == "__main__":
    main()
