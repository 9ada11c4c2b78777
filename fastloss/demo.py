"""`fastloss demo`: real models trained with torch's loss and with fastloss's, on data that comes with Python and scikit-learn.

Both runs of a model start from the same seed. The demonstration fails when their loss curves part or when training does not work.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

from . import functional
from ._backends import explain

VOCABULARY = 24_000
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
COLORS = {"torch": "#e8871e", "fastloss": "#1f5f99"}


@dataclass(frozen=True)
class Task:
    """A model, and what its two runs have to show."""

    model: str
    title: str
    steps: int
    tolerance: float  # the most that the two curves may differ at any step, in nats
    learned: float  # the last losses must lie below this share of the first
    sides: tuple[str, str] = ("torch.nn.CrossEntropyLoss", "fastloss.nn.CrossEntropyLoss")


# Two right losses round differently, and training amplifies the difference from step to step.
TASKS = (
    Task("words", "next word of Python's standard library", 60, tolerance=1e-3, learned=0.7),
    Task("digits", "handwritten digits", 300, tolerance=1e-3, learned=0.2),
    Task("scenes", "digits in scenes, Dice and cross-entropy", 150, tolerance=1e-2, learned=0.5,
         sides=("one-hot target, plain torch", "fastloss.nn.DiceCeLoss")),
    Task("focal scenes", "digits in scenes, Dice and focal", 150, tolerance=1e-2, learned=0.5,
         sides=("one-hot target, plain torch", "fastloss.nn.DiceFocalLoss")),
    Task("views", "two views of a digit, InfoNCE", 120, tolerance=1e-6, learned=0.6,
         sides=("matrix of scores, plain torch", "fastloss.functional.info_nce_loss")),
    Task("triplets", "digits of one class, all triplets", 80, tolerance=1e-2, learned=0.5,
         sides=("cube of triplets, plain torch", "fastloss.metric.losses.TripletMarginLoss")),
)


@dataclass
class Run:
    """What one training run gave."""

    losses: list[float] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)


class Failed(Exception):
    """The demonstration did not show what it has to."""


def standard_library_text(vocabulary: int = VOCABULARY) -> tuple[numpy.ndarray, int]:
    """Python's own sources as numbers of words and punctuation marks; 0 stands for all words beyond the vocabulary."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(root.rglob("*.py")) if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)]
    words = [word for path in files for word in re.findall(r"\w+|[^\w\s]", path.read_text("utf-8", "replace"))]
    # Equally frequent words in alphabetical order, so that every run numbers them alike.
    ranked = sorted(collections.Counter(words).items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) < vocabulary:
        raise Failed(f"the standard library at {root} holds {len(ranked)} different words; the demonstration needs {vocabulary}")
    number = {word: index for index, (word, _) in enumerate(ranked[: vocabulary - 1], 1)}
    return numpy.array([number.get(word, 0) for word in words], dtype=numpy.int32), vocabulary


def prepare(folder: Path) -> dict[str, Path]:
    """Write the data of every task to a file."""
    text, vocabulary = standard_library_text()
    digits = load_digits()
    paths = {task.model: folder / f"{task.model}.npz" for task in TASKS}
    numpy.savez(paths["words"], text=text, vocabulary=vocabulary)
    for model in [model for model in paths if model != "words"]:
        numpy.savez(paths[model], images=digits.images, labels=digits.target)
    return paths


def train(task: Task, loss: str, steps: int, data: Path, advance) -> Run:
    """Train in a fresh process; `advance` is called with the loss of every step."""
    command = [sys.executable, "-m", "fastloss.demo_worker", task.model, loss, str(steps), str(data)]
    run = Run()
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as worker,
    ):
        for line in worker.stdout:
            message = json.loads(line)
            if "step" in message:
                run.losses.append(message["loss"])
                advance(message["loss"])
            else:
                run.summary = message
        if worker.wait():
            complaints.seek(0)
            raise Failed(f"training {task.model} with {loss} ended with status {worker.returncode}:\n{complaints.read().strip()}")
    return run


def differences(runs: dict[str, Run]) -> list[float]:
    """How far the two curves are apart at each step."""
    return [abs(a - b) for a, b in zip(runs["torch"].losses, runs["fastloss"].losses, strict=True)]


def judge(task: Task, runs: dict[str, Run], full: bool) -> list[str]:
    """What is wrong with the two runs of a task; nothing when the curves agree and the model learned."""
    wrong = []
    apart = differences(runs)
    outside = [step for step, gap in enumerate(apart) if not gap <= task.tolerance]  # NaN is outside as well
    if outside:
        step = outside[0]
        wrong.append(f"{task.model}: the curves differ by {apart[step]:.2g} at step {step}; at most {task.tolerance:g} is accepted")
    for loss, run in runs.items():
        first, last = run.losses[0], sum(run.losses[-10:]) / len(run.losses[-10:])
        share = task.learned if full else 1.0
        if not last < share * first:
            wrong.append(f"{task.model}: training with {loss} went from {first:.3f} to {last:.3f}; wanted below {share * first:.3f}")
    return wrong


def _score(summary: dict[str, float]) -> str:
    if "iou" in summary:
        return f"mean IoU {summary['iou']:.3f}"
    if "retrieved" in summary:
        return f"{100 * summary['retrieved']:.1f} % of nearest alike"
    if "accuracy" in summary:
        return f"{100 * summary['accuracy']:.1f} % right"
    return f"perplexity {summary['perplexity']:.1f}"


def table(results: dict[Task, dict[str, Run]]) -> Table:
    """Time, memory and quality of every run."""
    shown = Table(title="the same training, twice", title_justify="left")
    for heading in ("model", "loss function"):
        shown.add_column(heading)
    for heading in ("loss, first to last", "curves apart", "whole run", "a step", "of it in the loss", "peak memory", "held-out data"):
        shown.add_column(heading, justify="right")
    for task, runs in results.items():
        for loss, run in runs.items():
            summary, steps = run.summary, len(run.losses)
            shown.add_row(
                task.title if loss == "torch" else "", loss, f"{run.losses[0]:.4f} to {run.losses[-1]:.4f}",
                "" if loss == "torch" else f"{max(differences(runs)):.1e}", f"{summary['seconds']:.1f} s",
                f"{1e3 * summary['seconds'] / steps:.1f} ms",
                f"{1e3 * summary['loss_seconds'] / steps:.2f} ms ({100 * summary['loss_seconds'] / summary['seconds']:.0f} %)",
                f"{summary['peak_bytes'] / 1e6:.0f} MB", _score(summary), end_section=loss == "fastloss",
            )
    return shown


def _curves(axes: Axes, below: Axes, task: Task, runs: dict[str, Run]) -> None:
    axes.plot(runs["torch"].losses, color=COLORS["torch"], linewidth=4.5, alpha=0.55, label=task.sides[0])
    axes.plot(runs["fastloss"].losses, color=COLORS["fastloss"], linewidth=1.2, label=task.sides[1])
    axes.set_title(task.title)
    axes.set_ylabel("training loss")
    axes.set_ylim(0, 1.05 * max(runs["torch"].losses))
    axes.legend(frameon=False)
    axes.tick_params(labelbottom=False)
    apart = differences(runs)
    below.set_ylim(1e-9, 30 * task.tolerance)
    below.set_yscale("log")
    below.plot([value or float("nan") for value in apart], color="#555555", marker=".", markersize=3, linestyle="none")
    below.axhline(task.tolerance, color="#b03030", linewidth=1, linestyle="--")
    below.text(0, task.tolerance, " most that is accepted", color="#b03030", fontsize=8, va="bottom")
    below.set_ylabel("difference")
    below.set_xlabel("training step")


def _bars(axes: Axes, title: str, values: dict[str, float], unit: str, inside: dict[str, float] | None = None) -> None:
    positions = range(len(values))
    axes.bar(positions, values.values(), color=[COLORS[name] for name in values], alpha=0.35 if inside else 0.85, width=0.6)
    if inside:
        axes.bar(positions, inside.values(), color=[COLORS[name] for name in inside], width=0.6)
    for position, (name, value) in enumerate(values.items()):
        label = f"{value:.0f} {unit}" + (f"\n{inside[name]:.0f} in the loss" if inside else "")
        axes.text(position, value, label, ha="center", va="bottom", fontsize=9)
    axes.set_xticks(list(positions), values)
    axes.set_ylim(0, 1.3 * max(values.values()))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(title)


def _masks(axes: list[Axes], masks: dict[str, numpy.ndarray]) -> None:
    """A held-out scene, its mask, and what the two models find."""
    shown = (
        ("held-out scene", masks["image"]), ("its classes", masks["truth"]), ("found, trained in plain torch", masks["torch"]),
        ("found, trained with fastloss", masks["fastloss"]),
    )
    for place, (title, pixels) in zip(axes, shown):
        classes = {"cmap": "gray"} if title == shown[0][0] else {"cmap": "tab20", "vmin": 0, "vmax": 19, "interpolation": "nearest"}
        place.imshow(numpy.hstack(pixels), **classes)
        place.set_title(title)
        place.axis("off")


def picture(results: dict[Task, dict[str, Run]], masks: dict[str, numpy.ndarray], path: Path) -> None:
    """Draw curves, their difference, costs, and masks that the models of the scenes predict."""
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "axes.titlesize": 11}):
        tasks = len(results)
        figure = Figure(figsize=(4 * (tasks + 1), 9), layout="constrained")
        grid = figure.add_gridspec(3, tasks + 1, height_ratios=(2.4, 1, 1.3), width_ratios=[1.2] * tasks + [1])
        for column, (task, runs) in enumerate(results.items()):
            top = figure.add_subplot(grid[0, column])
            _curves(top, figure.add_subplot(grid[1, column], sharex=top), task, runs)
        costs = grid[:, tasks].subgridspec(4, 1)
        for row, (name, runs) in enumerate({"language model": results[TASKS[0]], "scenes": results[TASKS[2]]}.items()):

            def a_step(key: str, runs: dict[str, Run] = runs) -> dict[str, float]:
                return {side: 1e3 * run.summary[key] / len(run.losses) for side, run in runs.items()}

            _bars(figure.add_subplot(costs[2 * row]), f"{name}: time a step", a_step("seconds"), "ms", a_step("loss_seconds"))
            memory = {side: run.summary["peak_bytes"] / 1e6 for side, run in runs.items()}
            _bars(figure.add_subplot(costs[2 * row + 1]), f"{name}: peak memory", memory, "MB")
        _masks([figure.add_subplot(grid[2, column]) for column in range(4)], masks)
        figure.suptitle("The same training with torch's losses and with fastloss's: same seed, same curves")
        figure.savefig(path, dpi=120)


def main(arguments: argparse.Namespace) -> int:
    """Run the demonstration; gives the exit status, 1 when it failed."""
    console, errors = (Console(stderr=stderr, width=None if sys.stdout.isatty() else 180) for stderr in (False, True))
    chosen = explain(functional.cross_entropy, torch.zeros(2, 3), torch.tensor([0, 1]))
    console.print(f"fastloss runs on its [bold]{chosen.backend}[/] backend: {escape(chosen.reason)}")
    results: dict[Task, dict[str, Run]] = {}
    masks: dict[str, numpy.ndarray] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}")
    try:
        with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
            reading = progress.add_task("reading the data", total=1, now="")
            data = prepare(Path(folder))
            progress.advance(reading)
            for task in TASKS:
                steps = 12 if arguments.quick else task.steps
                results[task] = {}
                for loss in COLORS:
                    bar = progress.add_task(f"{task.model} with {loss}", total=steps, now="")
                    results[task][loss] = train(
                        task, loss, steps, data[task.model], lambda value, bar=bar: progress.update(bar, advance=1, now=f"loss {value:.4f}")
                    )
                    if task.model == "scenes":
                        stored = numpy.load(data[task.model].with_suffix(".masks.npz"))
                        masks |= {"image": stored["image"], "truth": stored["truth"], loss: stored["found"]}
        console.print(table(results))
        picture(results, masks, arguments.out)
        wrong = [problem for task, runs in results.items() for problem in judge(task, runs, not arguments.quick)]
        if wrong:
            raise Failed("\n".join(wrong))
    except Failed as failure:
        errors.print(f"[bold red]failed[/] {escape(str(failure))}")
        return 1
    worst = max(max(differences(runs)) for runs in results.values())
    console.print(f"[green]The curves agree:[/] largest difference at any step {worst:.1e}. Picture: {arguments.out}", highlight=False)
    return 0
