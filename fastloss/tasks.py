"""What losses are for. A loss's task is that of the module of :mod:`fastloss.functional` that defines it, so a new one needs no entry."""

from __future__ import annotations

from dataclasses import dataclass

from .registry import LOSSES, Loss


@dataclass(frozen=True)
class Task:
    """A kind of problem that losses are for.

    Args:
        about: what is predicted or learned, and from what.
        modules: of :mod:`fastloss.functional`, whose losses are for it.
        losses: names of those that are for it though their module is for another task.
    """

    about: str
    modules: tuple[str, ...]
    losses: tuple[str, ...] = ()


TASKS: dict[str, Task] = {
    "classification": Task(
        "scores of classes from labels: one of C classes, yes or no, or several labels at once",
        ("classification", "binary", "margin", "information", "metric", "categorical"),
    ),
    "regression": Task(
        "real numbers from real numbers, and the parameters of a distribution of them",
        ("regression", "scaled", "likelihood"),
    ),
    "segmentation": Task("a class for each pixel or voxel from masks", ("segmentation", "lovasz", "distance")),
    "detection": Task("boxes, and what is in them, from boxes and labels", ("boxes", "detection")),
    "language-model": Task("the next token from the tokens before it", ("linear", "language", "hrm")),
    "distillation": Task("a student's predictions from a teacher's", ("distillation", "linear_distillation"), ("kl_div",)),
    "contrastive": Task(
        "embeddings of pairs that belong together, against all others of the batch: two views, image and text",
        ("contrastive",), ("multiple_negatives_ranking",),
    ),
    "metric-learning": Task(
        "embeddings whose distances follow labels, scores or given triplets", ("embedding", "ranking"), ("margin_ranking",)
    ),
    "self-supervised": Task(
        "features without labels: of two views, of clusters, of a teacher that is an average of the student",
        ("bootstrap", "decorrelation", "dino", "structure"), ("koleo",),
    ),
    "generative": Task("samples: variational autoencoders and critics", ("generative",)),
    "calibration": Task("probabilities that are as often right as they say", ("calibration",)),
}

# Of a loss whose module is in no task: what most losses of its engine are for.
ENGINES = {
    "row": "classification", "elementwise": "regression", "overlap": "segmentation", "sort": "segmentation", "distance": "segmentation",
    "box": "detection", "pair": "contrastive", "divergence": "distillation", "detection": "detection",
}


def module_of(loss: Loss) -> str:
    """The last part of the name of the module that defines the loss."""
    return loss.function.__module__.rpartition(".")[2]


def task_of(loss: Loss) -> str:
    """A key of :data:`TASKS`; ``"other"`` where neither the loss nor its module nor its engine says."""
    named = (task for task, about in TASKS.items() if loss.name in about.losses)
    placed = (task for task, about in TASKS.items() if module_of(loss) in about.modules)
    return next(named, None) or next(placed, None) or ENGINES.get(loss.engine, "other")


def by_task() -> dict[str, list[Loss]]:
    """The registered losses of each task, in the tasks' order and then the registry's."""
    found: dict[str, list[Loss]] = {task: [] for task in (*TASKS, "other")}
    for loss in LOSSES.values():
        found[task_of(loss)].append(loss)
    return {task: losses for task, losses in found.items() if losses}
