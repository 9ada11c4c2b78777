"""Metric learning: losses, distances, reducers, regularizers and miners under the names and calls of pytorch-metric-learning 2.9.0.

``from fastloss.metric import losses, miners`` in the place of ``from pytorch_metric_learning import losses, miners``. From labels, losses
over pairs, triplets and classes work on the pair engine: no matrix of scores, no list of pairs or triplets, O(N) memory beside gradients;
the docstrings of the others say what they store. ``fastloss.use_backend`` chooses the engine's backend.

Where a loss differs from that library its docstring says so. Everywhere

- what overflows or underflows there is finite here, and so are gradients of parallel and of equal rows,
- half precision is computed in float32 and rounded once, weights keep their dtype, and a zero loss does not read the embeddings,
- one loss for each row is a vector (N,), with :class:`~fastloss.metric.reducers.ClassWeightedReducer` and
  :class:`~fastloss.metric.reducers.PerAnchorReducer` too, where losses of shape (N, 1) there broadcast or fail,
- labels of classes out of range raise IndexError on CPU tensors,
- random draws have the same distributions, not the same numbers.

Samplers, testers, trainers and accuracy calculators are not part of it.
"""

from . import distances, losses, miners, reducers, regularizers, utils

__version__ = "2.9.0"  # of the interface

__all__ = ["__version__", "distances", "losses", "miners", "reducers", "regularizers", "utils"]
