"""Metric learning: losses, distances, reducers, regularizers and miners with the names, arguments and calls of pytorch-metric-learning
2.9.0.

``from fastloss.metric import losses, miners`` in the place of ``from pytorch_metric_learning import losses, miners``. From labels the
losses over pairs work on the pair engine: no matrix of scores, no list of pairs or triplets, O(N) memory beside gradients.
``fastloss.use_backend`` chooses its backend. Where a loss differs from that library its docstring says so; everywhere

- numbers that overflow or underflow there are finite here, NaN gradients of parallel or equal rows are finite,
- half precision is computed in float32 and rounded once, and a zero loss does not read the embeddings,
- one loss for each row is a vector (N,), with :class:`~fastloss.metric.reducers.ClassWeightedReducer` and
  :class:`~fastloss.metric.reducers.PerAnchorReducer` too, where (N, 1) losses there broadcast or fail,
- random draws have the same distributions, not the same numbers.

Samplers, testers, trainers and accuracy calculators are not part of it.
"""

from . import distances, losses, miners, reducers, regularizers, utils

__version__ = "2.9.0"  # of the interface

__all__ = ["__version__", "distances", "losses", "miners", "reducers", "regularizers", "utils"]
