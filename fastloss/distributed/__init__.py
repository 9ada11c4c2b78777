"""Losses over the processes of ``torch.distributed``; what the `group` of losses is made of.

A loss with ``group=`` is that of the batch that all processes of the group have together, in the order of their ranks, and each process gets
it. Its gradients are those of the one loss, without a factor of the number of processes:

- to embeddings, the gradient of this process's rows,
- to factors that all processes share (scales, temperatures, biases), the whole gradient, on every process.

``reduction="none"`` gives the losses of this process's rows. Backward has to run on all processes, with the same upstream gradient.

``DistributedDataParallel`` takes the mean of the processes' gradients, where the parameters behind the embeddings need their sum, and
shared factors need what they have: :func:`for_ddp` around the embeddings brings both about. ``fully_shard`` is the same, or
``set_gradient_divide_factor(1)``.
"""

from .cache import cached_backward
from .group import Group, for_ddp

__all__ = ["Group", "cached_backward", "for_ddp"]
