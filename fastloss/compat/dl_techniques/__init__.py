"""The losses of dl_techniques (``from fastloss.compat.dl_techniques import F1Loss``) as modules of torch.

Classes, functions, arguments and defaults are dl_techniques's, and so is the order ``loss(y_true, y_pred)``. Its losses are Keras's: what
they compute is reduced as `reduction` says, unless it is a scalar already, and `sample_weight` multiplies it. Every loss takes `backend`,
and runs on the functions of :mod:`fastloss.functional`, whose documentation has the formulas.

Where the original does not run, or its formula is wrong, names and defaults are its own and the mathematics is what it meant;
``source_compat=True`` gives the original's where a program may rely on it (:class:`SegmentationLosses`, :class:`HRMLoss`). Classes that the
original documents to do less than their name says are as documented: :class:`MQLoss` has one quantile, :class:`MASELoss` one scale for a
batch, :class:`SpiegelhalterZLoss` leaves out the weights of Spiegelhalter's statistic, :class:`WassersteinGradientPenaltyLoss` has no
penalty; each has a variant beside it that does all.
"""

from . import anyloss, classification, contrastive, detection, distillation, generative, language, regression, segmentation, vision
from ._loss import Loss
from .anyloss import *  # noqa: F403
from .classification import *  # noqa: F403
from .contrastive import *  # noqa: F403
from .detection import *  # noqa: F403
from .distillation import *  # noqa: F403
from .generative import *  # noqa: F403
from .language import *  # noqa: F403
from .regression import *  # noqa: F403
from .segmentation import *  # noqa: F403
from .vision import *  # noqa: F403

__all__ = [
    "Loss",
    *(
        name
        for part in (
            regression, classification, anyloss, segmentation, vision, contrastive, distillation, language, generative, detection,
        )
        for name in part.__all__
    ),
]
