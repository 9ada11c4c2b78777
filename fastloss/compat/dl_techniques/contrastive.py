"""Contrastive losses of matrices of scores, and what keeps embeddings apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ... import _checks
from ... import functional as F
from ._loss import Loss, entries, fraction

__all__ = [
    "AdaptiveSigLIPLoss", "CLIPContrastiveLoss", "HybridContrastiveLoss", "KoLeoLoss", "SigLIPContrastiveLoss",
    "create_adaptive_siglip_loss", "create_hybrid_loss", "create_siglip_loss",
]

_KEYS = ("logits_per_image", "logits_per_text")


class CLIPContrastiveLoss(Loss):
    """CLIP's loss of scores that are there already; of features :func:`fastloss.functional.clip_loss` needs no matrix of them.

    Row i has ``w_1 CE(image scores_i, i) + w_2 CE(text scores_i, i)``, with :func:`fastloss.functional.cross_entropy`.

    Args:
        temperature: positive. Default: 0.07.
        label_smoothing: in [0, 1]. Default: 0.
        apply_temperature: divide the scores by `temperature`, which usually are divided already. Default: False.
        loss_weight_i2t, loss_weight_t2i: the weights, at least 0. Default: 0.5.
        name, reduction, backend: as for :class:`Loss`.

    Raises:
        ValueError: `temperature` is not positive, `label_smoothing` not in [0, 1] or a weight negative. Warns of weights that do not add
            up to 1.
    """

    def __init__(
        self, temperature: float = 0.07, label_smoothing: float = 0.0, apply_temperature: bool = False, loss_weight_i2t: float = 0.5,
        loss_weight_t2i: float = 0.5, name: str | None = "clip_contrastive_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.update_temperature(temperature)
        fraction("CLIPContrastiveLoss", "label_smoothing", label_smoothing)
        for argument, value in (("loss_weight_i2t", loss_weight_i2t), ("loss_weight_t2i", loss_weight_t2i)):
            _checks.positive("CLIPContrastiveLoss", argument, value, zero=True)
        if abs(loss_weight_i2t + loss_weight_t2i - 1) > 1e-6:
            _checks.warn(f"CLIPContrastiveLoss: the weights {loss_weight_i2t} and {loss_weight_t2i} do not add up to 1")
        self.label_smoothing, self.apply_temperature = label_smoothing, apply_temperature
        self.loss_weight_i2t, self.loss_weight_t2i = loss_weight_i2t, loss_weight_t2i

    def update_temperature(self, new_temperature: float) -> None:
        """Set the temperature, which has to be positive."""
        _checks.positive("CLIPContrastiveLoss", "temperature", new_temperature)
        self.temperature = new_temperature

    def call(self, y_true: Tensor | None, y_pred: Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
        """(B) losses of the scores (B, B) ``logits_per_image`` and ``logits_per_text``, in a dictionary or as a pair; no truth is used."""
        name = "CLIPContrastiveLoss"
        if isinstance(y_pred, (tuple, list)):
            if len(y_pred) != 2:
                raise ValueError(f"{name}: y_pred must be a pair of scores, got {len(y_pred)}")
            scores = list(y_pred)
        else:
            scores = entries(name, y_pred, *_KEYS)
        image, text = scores
        if image.dim() != 2 or image.shape != text.shape:
            raise ValueError(f"{name}: scores must be (B, B) and of one shape, got {tuple(image.shape)} and {tuple(text.shape)}")
        if image.shape[0] != image.shape[1]:
            _checks.warn(f"{name}: scores are usually square, got {tuple(image.shape)}", depth=1)
        diagonal = torch.arange(len(image), device=image.device)
        scale = 1 / self.temperature if self.apply_temperature else 1.0
        by_image, by_text = (
            F.cross_entropy(
                x, diagonal, reduction="none", label_smoothing=self.label_smoothing, logit_scale=scale, backend=self.backend
            )
            for x in scores
        )
        return self.loss_weight_i2t * by_image + self.loss_weight_t2i * by_text


def _sigmoid_loss(scores: Sequence[Tensor], temperature: float | Tensor, backend: str | None) -> Tensor:
    """The mean of ``log(1 + exp(-z T s))`` of both matrices, z = 1 on the diagonal and else -1."""
    first, second = (
        F.binary_cross_entropy_with_logits(
            temperature * x, torch.eye(*x.shape[-2:], dtype=x.dtype, device=x.device), backend=backend
        )
        for x in scores
    )
    return (first + second) / 2


class SigLIPContrastiveLoss(Loss):
    """SigLIP's loss of scores that are there already, the mean over all pairs; the temperature multiplies.

    Of features, :func:`fastloss.functional.siglip_loss` needs no matrix of scores.

    Args:
        temperature: factor of the scores. Default: 1.
        use_learnable_temperature: take the predictions' ``"temperature"`` instead, where there is one. Default: False.
        reduction, name, backend: as for :class:`Loss`.
    """

    def __init__(
        self, temperature: float = 1.0, use_learnable_temperature: bool = False, reduction: str | None = "sum_over_batch_size",
        name: str | None = "siglip_contrastive_loss", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.temperature, self.use_learnable_temperature = temperature, use_learnable_temperature

    def call(self, y_true: Tensor | None, y_pred: Mapping[str, Tensor]) -> Tensor:
        """A scalar, of a dictionary of scores (B, B) ``logits_per_image`` and ``logits_per_text``; no truth is used."""
        scores = entries("SigLIPContrastiveLoss", y_pred, *_KEYS)
        learned = y_pred.get("temperature") if self.use_learnable_temperature else None
        return _sigmoid_loss(scores, self.temperature if learned is None else learned, self.backend)


class AdaptiveSigLIPLoss(Loss):
    """:class:`SigLIPContrastiveLoss` whose factor follows the entropy of the image scores' rows, a step with each call.

    Args:
        initial_temperature: the first factor. Default: 1.
        min_temperature, max_temperature: its bounds. Default: 0.01 and 10.
        adaptation_rate: change of the factor for a nat of entropy too much or too little. Default: 0.1.
        target_entropy: the wanted entropy, in nats. Default: 0.5.
        reduction, name, backend: as for :class:`Loss`.

    Attributes:
        adaptive_temperature: the factor, a buffer.
    """

    def __init__(
        self, initial_temperature: float = 1.0, min_temperature: float = 0.01, max_temperature: float = 10.0,
        adaptation_rate: float = 0.1, target_entropy: float = 0.5, reduction: str | None = "sum_over_batch_size",
        name: str | None = "adaptive_siglip_loss", *, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.initial_temperature, self.min_temperature, self.max_temperature = initial_temperature, min_temperature, max_temperature
        self.adaptation_rate, self.target_entropy = adaptation_rate, target_entropy
        self.register_buffer("adaptive_temperature", torch.tensor(float(initial_temperature)))

    def call(self, y_true: Tensor | None, y_pred: Mapping[str, Tensor]) -> Tensor:
        """A scalar, as :meth:`SigLIPContrastiveLoss.call`, with the factor after this call's step."""
        scores = entries("AdaptiveSigLIPLoss", y_pred, *_KEYS)
        image = scores[0].detach()
        nothing = torch.zeros(len(image), dtype=torch.long, device=image.device)
        entropy = F.cross_entropy(image, nothing, reduction="none", return_entropy=True, backend=self.backend)[1].mean()
        step = self.adaptation_rate * (entropy - self.target_entropy)
        factor = (self.adaptive_temperature - step).clamp(self.min_temperature, self.max_temperature)
        self.adaptive_temperature = factor.to(self.adaptive_temperature.dtype)  # a new tensor: the last one may wait for its backward
        return _sigmoid_loss(scores, self.adaptive_temperature.to(image.dtype), self.backend)


class HybridContrastiveLoss(Loss):
    """:class:`SigLIPContrastiveLoss` and the squared distance of noisy embeddings of one kind from the other's.

    Args:
        siglip_weight, score_weight: weights of the two. Default: 1 and 0.1.
        temperature: factor of the scores. Default: 1.
        noise_level: standard deviation of the noise. Default: 0.1.
        reduction, name, backend: as for :class:`Loss`.
        generator: what noise is drawn from. Default: torch's.
    """

    def __init__(
        self, siglip_weight: float = 1.0, score_weight: float = 0.1, temperature: float = 1.0, noise_level: float = 0.1,
        reduction: str | None = "sum_over_batch_size", name: str | None = "hybrid_contrastive_loss", *,
        generator: torch.Generator | None = None, backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        self.siglip_weight, self.score_weight, self.temperature, self.noise_level = siglip_weight, score_weight, temperature, noise_level
        self.generator = generator

    def _noisy(self, x: Tensor) -> Tensor:
        return x + self.noise_level * torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=x.device)

    def call(self, y_true: Tensor | None, y_pred: Mapping[str, Tensor]) -> Tensor:
        """A scalar, as :meth:`SigLIPContrastiveLoss.call`; with ``image_embeddings`` and ``text_embeddings`` (B, D) both parts."""
        loss = self.siglip_weight * _sigmoid_loss(entries("HybridContrastiveLoss", y_pred, *_KEYS), self.temperature, self.backend)
        if "image_embeddings" not in y_pred or "text_embeddings" not in y_pred:
            return loss
        image, text = y_pred["image_embeddings"], y_pred["text_embeddings"]
        apart = [F.mse_loss(self._noisy(x), y, reduction="sum", backend=self.backend) / len(x) for x, y in ((image, text), (text, image))]
        return loss + self.score_weight * sum(apart) / 2


def create_siglip_loss(temperature: float = 1.0, use_learnable_temperature: bool = True, **options) -> SigLIPContrastiveLoss:
    """A :class:`SigLIPContrastiveLoss` that takes the predictions' temperature."""
    return SigLIPContrastiveLoss(temperature, use_learnable_temperature, **options)


def create_adaptive_siglip_loss(initial_temperature: float = 1.0, target_entropy: float = 0.5, **options) -> AdaptiveSigLIPLoss:
    """An :class:`AdaptiveSigLIPLoss`."""
    return AdaptiveSigLIPLoss(initial_temperature, target_entropy=target_entropy, **options)


def create_hybrid_loss(siglip_weight: float = 1.0, score_weight: float = 0.1, **options) -> HybridContrastiveLoss:
    """A :class:`HybridContrastiveLoss`."""
    return HybridContrastiveLoss(siglip_weight, score_weight, **options)


class KoLeoLoss(Loss):
    """:func:`fastloss.functional.koleo_loss`, the mean over the rows; equal rows have a gradient of 0, and one row has the loss 0.

    Args:
        epsilon: positive. Default: 1e-8.
        name, reduction, backend: as for :class:`Loss`.
    """

    def __init__(
        self, epsilon: float = 1e-8, name: str | None = "koleo_loss", reduction: str | None = "sum_over_batch_size", *,
        backend: str | None = None,
    ) -> None:
        super().__init__(reduction, name, backend=backend)
        _checks.positive("KoLeoLoss", "epsilon", epsilon)
        self.epsilon = epsilon

    def call(self, y_true: Tensor | None, y_pred: Tensor) -> Tensor:
        """A scalar, of features (B, D); no truth is used."""
        return F.koleo_loss(y_pred, self.epsilon, backend=self.backend)
