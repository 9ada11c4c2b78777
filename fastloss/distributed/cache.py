"""Large contrastive batches in the memory of a micro-batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states


def cached_backward(
    encoders: Sequence[torch.nn.Module],
    inputs: Sequence[object],
    loss: Callable[..., Tensor],
    micro_batch: int,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
) -> Tensor:
    r"""The loss of a batch of embeddings and its gradients, of which the encoders see a micro-batch at a time.

    Every encoder runs over its micro-batches without a graph; the loss of all embeddings gives their gradients; every encoder runs once
    more over its micro-batches, with the same random numbers, and takes each one's gradients back. The gradients are those of the whole
    batch at once, memory is that of one micro-batch and of the embeddings, and the forward is computed twice.

    Over several processes the loss takes its ``group``. ``DistributedDataParallel`` and ``fully_shard`` exchange gradients once for each
    encoder, with its last micro-batch; under ``fully_shard`` all processes need the same number of micro-batches.

    Args:
        encoders: one for each of `inputs`; a module may be there more than once. Each gives embeddings :math:`(N, D)`. Layers that keep
            statistics of what they see, as batch normalisation, see micro-batches, and each of them twice.
        inputs: of each encoder a tensor :math:`(N, \dots)`, or a tuple, list or dictionary of such, passed as one argument.
        loss: called with the embeddings; parameters that it has of its own get their gradients as usual.
        micro_batch: rows of a micro-batch, at least 1.
        backward: called with the loss, to run its backward; ``lambda loss: scaler.scale(loss).backward()`` with a scaler.

    Returns:
        The loss, detached.

    Raises:
        ValueError: `micro_batch` is less than 1, or there are not as many encoders as inputs.

    Source:
        Gao, Zhang, Han and Callan 2021, "Scaling deep contrastive learning batch size under memory limited setup", section 3.2.

    Example:
        >>> import torch
        >>> from fastloss.distributed import cached_backward
        >>> from fastloss.functional import info_nce_loss
        >>> model, x = torch.nn.Linear(4, 2), torch.randn(8, 4)
        >>> value = cached_backward([model, model], [x, x + 0.1], info_nce_loss, micro_batch=2)
        >>> model.weight.grad.shape
        torch.Size([2, 4])
    """
    if micro_batch < 1:
        raise ValueError(f"cached_backward: micro_batch must be at least 1, got {micro_batch}")
    if len(encoders) != len(inputs):
        raise ValueError(f"cached_backward: wanted an encoder for each of {len(inputs)} inputs, got {len(encoders)}")
    parts = [_split(x, micro_batch) for x in inputs]
    states: list[_Random] = []
    embeddings = []
    with torch.no_grad():
        for encoder, chunks in zip(encoders, parts):
            found = []
            for chunk in chunks:
                states.append(_Random(chunk))
                found.append(encoder(chunk))
            embeddings.append(torch.cat(found).requires_grad_())
    with torch.enable_grad():
        value = loss(*embeddings)
        backward(value)
        calls = [
            (encoder, chunk, grad)
            for encoder, chunks, x in zip(encoders, parts, embeddings)
            for chunk, grad in zip(chunks, (torch.zeros_like(x) if x.grad is None else x.grad).split(micro_batch))
        ]
        for k, ((encoder, chunk, grad), state) in enumerate(zip(calls, states)):
            last = all(encoder is not other for other, _, _ in calls[k + 1 :])
            with state.restored(), contextlib.nullcontext() if last else _without_exchange(encoder):
                encoder(chunk).backward(grad)
    return value.detach()


def _split(x: object, rows: int) -> list:
    """Micro-batches of a tensor, or of what is made of tensors."""
    if isinstance(x, Tensor):
        return list(x.split(rows))
    if isinstance(x, dict):
        return [dict(zip(x, parts)) for parts in zip(*(_split(part, rows) for part in x.values()))]
    return [type(x)(parts) for parts in zip(*(_split(part, rows) for part in x))]


def _tensors(x: object) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    else:
        for part in x.values() if isinstance(x, dict) else x:
            yield from _tensors(part)


class _Random:
    """The state of the random numbers of the CPU and of the devices of a micro-batch."""

    def __init__(self, chunk: object) -> None:
        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(*_tensors(chunk))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """A block with this state; the one from before comes back after it."""
        device = torch.accelerator.current_accelerator() if self.devices else None
        with torch.random.fork_rng(self.devices, device_type=device.type if device else "cuda"):
            torch.set_rng_state(self.cpu)
            if self.devices:
                set_device_states(self.devices, self.states)
            yield


@contextlib.contextmanager
def _without_exchange(encoder: torch.nn.Module) -> Iterator[None]:
    """A block whose gradients stay on this process."""
    if hasattr(encoder, "no_sync"):
        with encoder.no_sync():
            yield
    elif hasattr(encoder, "set_requires_gradient_sync"):
        encoder.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            encoder.set_requires_gradient_sync(True)
    else:
        yield
