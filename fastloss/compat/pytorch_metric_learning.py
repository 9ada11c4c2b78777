"""pytorch-metric-learning 2.9.0's names, which :mod:`fastloss.metric` holds
(``from fastloss.compat.pytorch_metric_learning import losses``).

Its modules import by their full names too: ``from fastloss.compat.pytorch_metric_learning.losses import ContrastiveLoss``.
"""

import sys

from ..metric import __version__, distances, losses, miners, reducers, regularizers, utils

__all__ = ["__version__", "distances", "losses", "miners", "reducers", "regularizers", "utils"]
__path__: list[str] = []  # a package, whose modules are these

_HELPERS = utils.common_functions, utils.distributed, utils.loss_and_miner_utils
for _module in (distances, losses, miners, reducers, regularizers, utils, *_HELPERS):
    sys.modules[__name__ + _module.__name__.partition(".metric")[2]] = _module
