"""lightly's losses of embeddings, following lightly 1.6 (``from fastloss.compat.lightly import NTXentLoss``).

Classes, arguments, defaults and call order are lightly's. What differs:

- `gather_distributed` is accepted where there is a single process; over several it raises, since nothing is gathered.
- :class:`KoLeoLoss` takes the distance of the neighbours themselves (lightly adds `eps` to each difference), and rows that are the same
  have a gradient of 0. It has the Euclidean norm and one neighbour.
- :class:`VICRegLoss` takes views (batch, features).
- :class:`DINOLoss` and :class:`IBOTPatchLoss` give no gradient to the teacher's outputs. An update of the centre of
  :class:`DINOLoss` over several processes weighs every row the same (lightly: every process).
- The bank of :class:`NTXentLoss` has its features in float32, whatever the dtype of the embeddings, as in lightly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import functional as F
from ..functional.dino import between_views
from ..pair import normalised
from ..self_distillation import move_center

__all__ = ["BarlowTwinsLoss", "DCLLoss", "DCLWLoss", "DINOLoss", "IBOTPatchLoss", "KoLeoLoss", "NTXentLoss", "VICRegLoss"]


def _one_process(name: str, gather_distributed: bool) -> None:
    if gather_distributed and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise NotImplementedError(f"{name}: gather_distributed over {dist.get_world_size()} processes is not supported")


class NTXentLoss(nn.Module):
    """lightly's ``NTXentLoss``: :func:`fastloss.functional.nt_xent_loss`, or with a memory bank MoCo's loss of the first view.

    Args:
        temperature: not 0. Default: 0.5.
        memory_bank_size: number of negatives to keep, or (number, features); 0 for none. Default: 0.
        gather_distributed: see the module. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Attributes:
        bank: (number, features), normalised, random at first.
        bank_ptr: where the next batch goes.

    Raises:
        ValueError: the temperature is nearly 0, or a size negative.
    """

    def __init__(
        self, temperature: float = 0.5, memory_bank_size: int | Sequence[int] = 0, gather_distributed: bool = False, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        size = (memory_bank_size,) if isinstance(memory_bank_size, int) else tuple(memory_bank_size)
        if any(n < 0 for n in size):
            raise ValueError(f"Illegal memory bank size {memory_bank_size}, all entries must be non-negative.")
        if abs(temperature) < 1e-8:
            raise ValueError(f"Illegal temperature: abs({temperature}) < 1e-8")
        self.temperature, self.size, self.gather_distributed, self.backend = temperature, size, gather_distributed, backend
        self.register_buffer("bank", torch.empty(0), persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)
        if len(size) > 1 and size[0]:
            self._fill(size[1:])

    def _fill(self, features: Sequence[int]) -> None:
        self.bank = nn.functional.normalize(torch.randn(self.size[0], *features, device=self.bank.device), dim=-1)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of two views (batch, features); the bank takes in `out1` if `out0` requires grad."""
        _one_process("NTXentLoss", self.gather_distributed)
        if not self.size[0]:
            return F.nt_xent_loss(out0, out1, self.temperature, backend=self.backend)
        if self.bank.dim() == 1:
            self._fill(out1.shape[1:])
        negatives = self.bank.clone().to(out0.device)
        if out0.requires_grad:
            self._take_in(normalised(out1.detach()))
        loss = F.info_nce_loss(out0, out1, negatives, self.temperature, backend=self.backend)
        return loss.to(torch.promote_types(out0.dtype, out1.dtype))

    def _take_in(self, batch: Tensor) -> None:
        """The batch replaces the oldest rows; what does not fit before the end is dropped."""
        start = int(self.bank_ptr)
        end = min(start + len(batch), self.size[0])
        self.bank[start:end] = batch[: end - start]
        self.bank_ptr[0] = end % self.size[0]


class DCLLoss(nn.Module):
    """lightly's ``DCLLoss``: :func:`fastloss.functional.dcl_loss` with a logarithm for each view.

    Args:
        temperature: positive. Default: 0.1.
        weight_fn: gives the weights of the positives from both normalised views; the first view's for its rows. Default: None.
        gather_distributed: see the module. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(
        self, temperature: float = 0.1, weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None, gather_distributed: bool = False, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.temperature, self.weight_fn, self.gather_distributed, self.backend = temperature, weight_fn, gather_distributed, backend

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of two views (batch, features)."""
        _one_process(type(self).__name__, self.gather_distributed)
        loss = F.dcl_loss(out0, out1, self.temperature, denominator="split", backend=self.backend)
        if self.weight_fn is None:
            return loss
        x, y = normalised(out0), normalised(out1)
        weight = self.weight_fn(x, y) + self.weight_fn(y, x)
        return (loss + ((2 - weight) * (x * y).sum(1) / self.temperature).mean() / 2).to(loss.dtype)


class DCLWLoss(nn.Module):
    """lightly's ``DCLWLoss``: :class:`DCLLoss` with the von Mises-Fisher weights of :func:`fastloss.functional.dcl_loss`.

    Args:
        temperature: positive. Default: 0.1.
        sigma: of the weights, positive. Default: 0.5.
        gather_distributed: see the module. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(
        self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False, *, backend: str | None = None
    ) -> None:
        super().__init__()
        self.temperature, self.sigma, self.gather_distributed, self.backend = temperature, sigma, gather_distributed, backend

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of two views (batch, features)."""
        _one_process("DCLWLoss", self.gather_distributed)
        return F.dcl_loss(out0, out1, self.temperature, self.sigma, "split", backend=self.backend)


class VICRegLoss(nn.Module):
    """lightly's ``VICRegLoss``: :func:`fastloss.functional.vicreg_loss`.

    Args:
        lambda_param, mu_param, nu_param: weights of invariance, variance and covariance. Default: 25, 25, 1.
        gather_distributed: see the module. Default: False.
        eps: added to variances. Default: 1e-4.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(
        self, lambda_param: float = 25.0, mu_param: float = 25.0, nu_param: float = 1.0, gather_distributed: bool = False,
        eps: float = 0.0001, *, backend: str | None = None,
    ) -> None:
        super().__init__()
        self.lambda_param, self.mu_param, self.nu_param = lambda_param, mu_param, nu_param
        self.gather_distributed, self.eps, self.backend = gather_distributed, eps, backend

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views (batch, features)."""
        if not (z_a.shape[0] > 1 and z_b.shape[0] > 1):
            raise AssertionError(f"z_a and z_b must have batch size > 1 but found {z_a.shape[0]} and {z_b.shape[0]}")
        if z_a.shape != z_b.shape:
            raise AssertionError(f"z_a and z_b must have same shape but found {z_a.shape} and {z_b.shape}.")
        _one_process("VICRegLoss", self.gather_distributed)
        return F.vicreg_loss(z_a, z_b, self.lambda_param, self.mu_param, self.nu_param, eps=self.eps, backend=self.backend)


class BarlowTwinsLoss(nn.Module):
    """lightly's ``BarlowTwinsLoss``: :func:`fastloss.functional.barlow_twins_loss`.

    Args:
        lambda_param: weight of the off-diagonal terms. Default: 0.005.
        gather_distributed: see the module. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.
    """

    def __init__(self, lambda_param: float = 5e-3, gather_distributed: bool = False, *, backend: str | None = None) -> None:
        super().__init__()
        self.lambda_param, self.gather_distributed, self.backend = lambda_param, gather_distributed, backend

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views (batch, features)."""
        _one_process("BarlowTwinsLoss", self.gather_distributed)
        return F.barlow_twins_loss(z_a, z_b, self.lambda_param, backend=self.backend)


class KoLeoLoss(nn.Module):
    """lightly's ``KoLeoLoss``: :func:`fastloss.functional.koleo_loss`.

    Args:
        p: of the norm; 2. Default: 2.
        eps: added to norms and distances. Default: 1e-8.
        topk: how many neighbours count; 1. Default: 1.
        group_size: rows among which neighbours are searched, a divisor of the batch size; None for the batch. Default: None.
        gather_distributed: see the module. Default: False.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        ValueError: `topk` or `group_size` is not positive.
        NotImplementedError: `p` is not 2, or `topk` not 1.
    """

    def __init__(
        self, p: float = 2, eps: float = 1e-8, topk: int = 1, group_size: int | None = None, gather_distributed: bool = False, *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if topk < 1:
            raise ValueError(f"topk must be positive but is {topk}.")
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size must be positive but is {group_size}.")
        if p != 2 or topk != 1:
            raise NotImplementedError(f"KoLeoLoss: wanted p=2 and topk=1, got p={p} and topk={topk}")
        self.p, self.eps, self.topk, self.group_size = p, eps, topk, group_size
        self.gather_distributed, self.backend = gather_distributed, backend

    def forward(self, x: Tensor) -> Tensor:
        """The mean loss of features (batch, features)."""
        _one_process("KoLeoLoss", self.gather_distributed)
        if not len(x):
            raise ValueError("KoLeoLoss requires a non-empty batch.")
        size = len(x) if self.group_size is None else self.group_size
        if len(x) % size:
            raise ValueError(f"Batch size {len(x)} must be divisible by group size {size}.")
        losses = [F.koleo_loss(group, self.eps, backend=self.backend) for group in x.split(size)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _mode(center_mode: str) -> None:
    if center_mode != "mean":
        raise ValueError(f"Unknown mode '{center_mode}'. Valid modes are ['mean'].")


class DINOLoss(nn.Module):
    """lightly's ``DINOLoss``: :func:`fastloss.functional.dino_loss` of all pairs of different views, and an update of the centre.

    Args:
        output_dim: size of the outputs. Default: 65536.
        warmup_teacher_temp: the teacher's temperature in epoch 0. Default: 0.04.
        teacher_temp: the teacher's temperature after the warm-up, and where no epoch is given. Default: 0.04.
        warmup_teacher_temp_epochs: epochs over which it changes linearly. Default: 30.
        student_temp: Default: 0.1.
        center_momentum: Default: 0.9.
        center_mode: "mean". Default: "mean".
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Attributes:
        center: a buffer (1, 1, output_dim), zeros at first.

    Raises:
        ValueError: unknown `center_mode`.
    """

    def __init__(
        self, output_dim: int = 65536, warmup_teacher_temp: float = 0.04, teacher_temp: float = 0.04, warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1, center_momentum: float = 0.9, center_mode: str = "mean", *, backend: str | None = None,
    ) -> None:
        super().__init__()
        _mode(center_mode)
        self.teacher_temp, self.student_temp, self.center_momentum, self.backend = teacher_temp, student_temp, center_momentum, backend
        self.register_buffer("center", torch.zeros(1, 1, output_dim))
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.teacher_temp_schedule = torch.linspace(warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)

    def forward(
        self, teacher_out: list[Tensor], student_out: list[Tensor], teacher_temp: float | None = None, epoch: int | None = None
    ) -> Tensor:
        """The mean loss of views (batch, output_dim); the centre moves afterwards."""
        if teacher_temp is None:
            warming = epoch is not None and epoch < self.warmup_teacher_temp_epochs
            teacher_temp = float(self.teacher_temp_schedule[epoch]) if warming else self.teacher_temp
        loss = between_views(
            "DINOLoss", list(student_out), list(teacher_out), self.center, self.student_temp, teacher_temp, "mean", self.backend
        )
        self.update_center(teacher_out)
        return loss

    def update_center(self, teacher_out: Tensor | Sequence[Tensor]) -> None:
        """Move the centre towards the mean of outputs (views, batch, output_dim)."""
        move_center("DINOLoss", self.center, teacher_out, self.center_momentum)


class _Center(nn.Module):
    """The centre (1, features) of :class:`IBOTPatchLoss`, where lightly has it."""

    def __init__(self, features: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, features))

    @property
    def value(self) -> Tensor:
        """The centre."""
        return self.center

    def update(self, x: Tensor) -> None:
        """Move it towards the mean of outputs (rows, features)."""
        move_center("IBOTPatchLoss", self.center, x, self.momentum)


class IBOTPatchLoss(nn.Module):
    """lightly's ``IBOTPatchLoss``: the loss of masked tokens, every image counting the same, and an update of the centre.

    Args:
        output_dim: size of the outputs.
        teacher_temp: Default: 0.04.
        student_temp: Default: 0.1.
        center_mode: "mean". Default: "mean".
        center_momentum: Default: 0.9.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Raises:
        ValueError: unknown `center_mode`.
    """

    def __init__(
        self, output_dim: int, teacher_temp: float = 0.04, student_temp: float = 0.1, center_mode: str = "mean",
        center_momentum: float = 0.9, *, backend: str | None = None,
    ) -> None:
        super().__init__()
        _mode(center_mode)
        self.teacher_temp, self.student_temperature, self.backend = teacher_temp, student_temp, backend
        self.center = _Center(output_dim, center_momentum)

    def forward(self, teacher_out: Tensor, student_out: Tensor, mask: Tensor) -> Tensor:
        """The loss of the outputs (tokens, output_dim) of the tokens that are True in `mask` (batch, height, width)."""
        loss = F.dino_loss(
            student_out, teacher_out, self.center.value, self.student_temperature, self.teacher_temp, reduction="none", backend=self.backend
        )
        masked = mask.flatten(1).sum(1)
        # The tokens are in the order of their images; their number is known, so that nothing waits for a count.
        weight = masked.clamp_min(1).to(loss.dtype).reciprocal().repeat_interleave(masked, output_size=len(student_out))
        loss = (loss * weight).sum() / len(mask)
        self.center.update(teacher_out)
        return loss
