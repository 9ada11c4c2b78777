"""Sums of losses of several tasks that weigh themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["UncertaintyWeighting"]


class UncertaintyWeighting(nn.Module):
    r"""A sum of losses in which each task's weight is learned, as the inverse of its uncertainty.

    .. math:: \ell = \sum_k e^{-s_k} L_k + s_k

    with a number :math:`s_k` for each task, the logarithm of its variance. At its best :math:`s_k = \log L_k`, where the weight is
    :math:`1 / L_k`. Losses must not be negative, else the sum has no minimum.

    Args:
        tasks: the number of tasks, or their names.

    Shape:
        - forward: scalars, one for each task in order, as a sequence or a tensor :math:`(K)`; or of named tasks a mapping, in which tasks
          that did not take part may be missing
        - returns: scalar

    Raises:
        ValueError: there are no tasks, or two of one name; the number of losses or their names do not fit.

    Source:
        Kendall et al. 2018, "Multi-task learning using uncertainty to weigh losses", equation 7, times 2 and with :math:`s = \log \sigma^2`.

    Example:
        >>> import torch, fastloss
        >>> weighting = fastloss.nn.UncertaintyWeighting(["boxes", "classes"])
        >>> weighting({"boxes": torch.tensor(3.0), "classes": torch.tensor(0.5)})
        tensor(3.5000, grad_fn=<SumBackward0>)
    """

    def __init__(self, tasks: int | Sequence[str]) -> None:
        super().__init__()
        self.names = None if isinstance(tasks, int) else tuple(tasks)
        count = tasks if isinstance(tasks, int) else len(self.names)
        if count < 1 or (self.names is not None and len(set(self.names)) < count):
            raise ValueError(f"UncertaintyWeighting: tasks must be a positive number, or different names, got {tasks!r}")
        self.log_variances = nn.Parameter(torch.zeros(count))

    def forward(self, losses: Sequence[Tensor] | Mapping[str, Tensor] | Tensor) -> Tensor:
        s = self.log_variances
        if isinstance(losses, Mapping):
            unknown = [name for name in losses if self.names is None or name not in self.names]
            if unknown or not losses:
                raise ValueError(f"UncertaintyWeighting: losses must be of the tasks {self.names}, got {list(losses)}")
            s = s[[self.names.index(name) for name in losses]]
            losses = list(losses.values())
        given = losses if isinstance(losses, Tensor) else torch.stack([loss.to(s.dtype) for loss in losses])
        if given.shape != s.shape:
            raise ValueError(f"UncertaintyWeighting: losses must be {len(s)} scalars, got {tuple(given.shape)}")
        return (torch.exp(-s) * given + s).sum()

    def weights(self) -> Tensor | dict[str, Tensor]:
        """What the loss of each task is multiplied by now: a tensor, or by name."""
        weights = torch.exp(-self.log_variances.detach())
        return weights if self.names is None else dict(zip(self.names, weights))

    def extra_repr(self) -> str:
        return f"tasks={len(self.log_variances) if self.names is None else list(self.names)}"
