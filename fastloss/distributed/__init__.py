"""Losses over the processes of ``torch.distributed``; what the `group` of losses is made of.

A loss with ``group=`` is that of the batch that all processes of the group have together, in the order of their ranks, and each process
gets it. Its gradients are those of the one loss, without a factor of the number of processes:

- to embeddings, the gradient of this process's rows,
- to factors that all processes share (scales, temperatures, biases), the whole gradient, on every process.

``reduction="none"`` gives the losses of this process's rows, whose backward reaches the rows of others as well. Backward has to run on all
processes, with the same upstream gradient of what all of them have.

``DistributedDataParallel`` and ``fully_shard`` take the mean of the processes' gradients. The parameters behind the embeddings need their
sum, and shared factors need what they have, which a mean leaves: :func:`for_ddp` around the embeddings brings both about.

Losses of which classes are spread over the processes (``cross_entropy``, ``linear_cross_entropy``, margin heads) want all rows on every
process; these, and weights of the classes, get their whole gradients.

What differs between processes and must not (features, dtypes, options, what requires a gradient) raises ValueError on all of them, and
what is wrong on one of them raises there and as RuntimeError on the others. A small all-gather at each call finds that out; on a group that
has a backend for the CPU it needs no synchronisation with a device. Derivatives are first ones only.
"""

from .cache import cached_backward
from .group import Group, for_ddp

__all__ = ["Group", "cached_backward", "for_ddp"]
