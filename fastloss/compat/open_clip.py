"""open_clip's contrastive losses, following open_clip 3 (``from fastloss.compat.open_clip import ClipLoss``).

Arguments, defaults and call order are open_clip's; no logits are stored. Over several processes the features are gathered once:
`SigLipLoss` does what open_clip's ``dist_impl="gather"`` does, whichever is asked for, with the same value and gradients.
`cache_labels` makes no difference, since there are no labels; Horovod is not supported.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import functional as F
from ..functional.contrastive import clip_rows, siglip_rows

__all__ = ["ClipLoss", "SigLipLoss"]


def gathered(features: Tensor, rank: int, world_size: int, with_grad: bool, own_grad: bool) -> Tensor:
    """The features of all processes, with gradients to all of them, to the own ones, or to none."""
    if with_grad:
        from torch.distributed.nn.functional import all_gather  # which is not in every build of torch

        return torch.cat(all_gather(features.contiguous()))
    every = [torch.zeros_like(features) for _ in range(world_size)]
    dist.all_gather(every, features.detach().contiguous())
    if own_grad:
        every[rank] = features
    return torch.cat(every)


class ClipLoss(nn.Module):
    """open_clip's ``ClipLoss``: :func:`fastloss.functional.clip_loss`.

    Args:
        local_loss: whether each process takes the losses of its own rows only, over all columns. Default: False.
        gather_with_grad: whether features of other processes get gradients. Default: False.
        cache_labels: no effect. Default: False.
        rank, world_size: of this process. Default: a single one.
        use_horovod: must be False.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        NotImplementedError: `use_horovod` is True.
    """

    def __init__(
        self, local_loss: bool = False, gather_with_grad: bool = False, cache_labels: bool = False, rank: int = 0, world_size: int = 1,
        use_horovod: bool = False, *, backend: str | None = None,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise NotImplementedError("ClipLoss: Horovod is not supported; use torch.distributed")
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod, self.backend = rank, world_size, use_horovod, backend

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of normalised features, or with `output_dict` a dictionary with it as ``contrastive_loss``."""
        if self.world_size == 1:
            loss = F.clip_loss(image_features, text_features, logit_scale, logit_bias, backend=self.backend)
        else:
            own = not self.local_loss
            images, texts = (gathered(x, self.rank, self.world_size, self.gather_with_grad, own) for x in (image_features, text_features))
            if self.local_loss:
                offset = self.rank * len(image_features)
                rows = [clip_rows(x, y, logit_scale, offset, self.backend) for x, y in ((image_features, texts), (text_features, images))]
                loss = (0.5 * (rows[0] + rows[1])).mean().to(image_features.dtype)
            else:
                loss = F.clip_loss(images, texts, logit_scale, logit_bias, backend=self.backend)
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """open_clip's ``SigLipLoss``: :func:`fastloss.functional.siglip_loss`, summed over pairs and divided by the rows of this process.

    Args:
        cache_labels: no effect. Default: False.
        rank, world_size: of this process. Default: a single one.
        dist_impl: ``"bidir"``, ``"shift"``, ``"reduce"``, ``"gather"`` or None: how open_clip passes features on, which makes no difference
            to the value. Default: None.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        ValueError: unknown `dist_impl`.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None, *, backend: str | None = None
    ) -> None:
        super().__init__()
        if dist_impl not in (None, "bidir", "shift", "reduce", "gather"):
            raise ValueError(f"SigLipLoss: unknown dist_impl {dist_impl!r}; wanted 'bidir', 'shift', 'reduce' or 'gather'")
        self.cache_labels, self.rank, self.world_size, self.dist_impl = cache_labels, rank, world_size, dist_impl or "bidir"
        self.backend = backend

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of normalised features, or with `output_dict` a dictionary with it as ``contrastive_loss``."""
        if self.world_size == 1:
            loss = F.siglip_loss(image_features, text_features, logit_scale, logit_bias, backend=self.backend)
        else:
            texts = gathered(text_features, self.rank, self.world_size, True, True)
            rows = siglip_rows(image_features, texts, logit_scale, logit_bias, self.rank * len(image_features), self.backend)
            loss = rows.mean().to(image_features.dtype)
        return {"contrastive_loss": loss} if output_dict else loss
