"""Losses as functions: ``loss(input, target, ..., reduction="mean")``, torch's conventions throughout."""

from . import binary, boxes, classification, distance, likelihood, lovasz, metric, regression, segmentation
from .binary import *  # noqa: F403
from .boxes import *  # noqa: F403
from .classification import *  # noqa: F403
from .distance import *  # noqa: F403
from .likelihood import *  # noqa: F403
from .metric import *  # noqa: F403
from .lovasz import *  # noqa: F403
from .regression import *  # noqa: F403
from .segmentation import *  # noqa: F403

__all__ = [
    *classification.__all__, *regression.__all__, *likelihood.__all__, *binary.__all__, *segmentation.__all__, *metric.__all__,
    *lovasz.__all__, *distance.__all__, *boxes.__all__,
]
