"""Losses as functions: ``loss(input, target, ..., reduction="mean")``, torch's conventions throughout."""

from . import (
    binary, bootstrap, boxes, calibration, categorical, classification, contrastive, decorrelation, detection, dino, distance,
    distillation, embedding, generative, information, language, likelihood, linear, linear_distillation, lovasz, margin, metric,
    ranking, regression, scaled, segmentation, structure,
)
from .binary import *  # noqa: F403
from .bootstrap import *  # noqa: F403
from .boxes import *  # noqa: F403
from .calibration import *  # noqa: F403
from .categorical import *  # noqa: F403
from .classification import *  # noqa: F403
from .contrastive import *  # noqa: F403
from .decorrelation import *  # noqa: F403
from .detection import *  # noqa: F403
from .dino import *  # noqa: F403
from .distance import *  # noqa: F403
from .distillation import *  # noqa: F403
from .embedding import *  # noqa: F403
from .generative import *  # noqa: F403
from .information import *  # noqa: F403
from .language import *  # noqa: F403
from .likelihood import *  # noqa: F403
from .linear import *  # noqa: F403
from .linear_distillation import *  # noqa: F403
from .lovasz import *  # noqa: F403
from .margin import *  # noqa: F403
from .metric import *  # noqa: F403
from .ranking import *  # noqa: F403
from .regression import *  # noqa: F403
from .scaled import *  # noqa: F403
from .segmentation import *  # noqa: F403
from .structure import *  # noqa: F403

__all__ = [
    name
    for family in (
        classification, regression, scaled, likelihood, binary, margin, calibration, information, categorical, segmentation,
        metric, lovasz, distance, boxes, detection, generative, structure, contrastive, ranking, embedding, decorrelation, linear,
        language, distillation, linear_distillation, dino, bootstrap,
    )
    for name in family.__all__
]
