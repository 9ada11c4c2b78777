"""Classification losses that weigh the entropy of predictions, of each sample and of the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..engine import overridden
from ..plain import reduced, widened
from ..registry import register
from .classification import cross_entropy, softmax_focal_loss

__all__ = [
    "analyze_decoupled_information_loss", "analyze_focal_uncertainty_loss", "analyze_goodhart_aware_loss", "decoupled_information_loss",
    "focal_uncertainty_loss", "goodhart_aware_loss",
]

_SMALLEST = 1e-7  # a probability whose logarithm is taken


def _logits(name: str, input: Tensor, from_logits: bool, label_smoothing: float) -> Tensor:
    if input.dim() != 2:
        raise ValueError(f"{name}: input must be (N, C), got {tuple(input.shape)}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing must be in [0, 1], got {label_smoothing}")
    return input if from_logits else input.clamp_min(_SMALLEST).log()


def _entropies(logits: Tensor, target: Tensor, label_smoothing: float, backend: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of each sample; in nats the mean of the entropies of the predictions, and the entropy of their mean."""
    losses, entropy = cross_entropy(
        logits, target, reduction="none", label_smoothing=label_smoothing, return_entropy=True, backend=backend
    )
    mean = logits.softmax(1).mean(0)
    return losses, entropy.mean(), -torch.xlogy(mean, mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()


@register(
    "plain", formula="CE(x, y) - u mean_n H(p_n) - d H(mean_n p_n)",
    source="entropy terms as in Grandvalet and Bengio 2004; Krause et al. 2010",
    operands={"input": "real", "target": "class"}, dims=(2, 2),
    params={"uncertainty_weight": (0.0, 0.5), "diversity_weight": (0.0, 0.1), "label_smoothing": (0.0, 0.2)},
)
def decoupled_information_loss(
    input: Tensor,
    target: Tensor,
    uncertainty_weight: float = 0.2,
    diversity_weight: float = 0.01,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy that rewards uncertain predictions, and a batch whose predictions differ.

    .. math:: \ell_n = \text{CE}(x_n, y_n) - \frac{u}{N} \sum_m H(p_m) - d \, H\left(\frac{1}{N} \sum_m p_m\right)

    with entropies :math:`H(p) = -\sum_c p_c \log p_c` in nats. Both entropies are of the batch: their gradients flow to all samples.

    Args:
        input: logits, or probabilities without `from_logits`; float32, float64, bfloat16 or float16, any strides.
        target: class indices, or probabilities of `input`'s shape.
        uncertainty_weight: :math:`u`, at least 0. Default: 0.2.
        diversity_weight: :math:`d`, at least 0. Default: 0.01.
        label_smoothing: as for :func:`fastloss.functional.cross_entropy`. Default: 0.
        from_logits: whether `input` is logits. Default: True.
        reduction: ``"none"``: a loss for each sample; ``"mean"`` or ``"sum"`` over the samples.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(N, C)`
        - target: :math:`(N)` or :math:`(N, C)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: `input` is not :math:`(N, C)`, a weight is negative, or `label_smoothing` is not in [0, 1]. Otherwise as
            :func:`fastloss.functional.cross_entropy`.

    Source:
        Grandvalet and Bengio 2004, equation 6, for the entropy of predictions; Krause et al. 2010, equation 3, for that of their mean.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.decoupled_information_loss(torch.zeros(2, 2), torch.tensor([0, 1]))  # log 2 (1 - 0.2 - 0.01)
        tensor(0.5476)
    """
    if has_torch_function_variadic(input, target):
        return overridden("decoupled_information", locals(), (input, target))
    name = "decoupled_information"
    _checks.positive(name, "uncertainty_weight", uncertainty_weight, zero=True)
    _checks.positive(name, "diversity_weight", diversity_weight, zero=True)
    dtype, (x, t) = widened(name, {"input": input, "target": target}, backend, reduction)
    losses, each, mean = _entropies(_logits(name, x, from_logits, label_smoothing), t, label_smoothing, backend)
    return reduced(losses - (uncertainty_weight * each + diversity_weight * mean), reduction, dtype)


def analyze_decoupled_information_loss(
    input: Tensor,
    target: Tensor,
    uncertainty_weight: float = 0.2,
    diversity_weight: float = 0.01,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
) -> dict[str, Tensor]:
    r"""What :func:`decoupled_information_loss` is made of, as tensors on the device, without gradients.

    Args:
        input, target, uncertainty_weight, diversity_weight, label_smoothing, from_logits: as for :func:`decoupled_information_loss`.

    Returns:
        ``cross_entropy``, a mean; the entropies ``h_conditional_unweighted`` (the mean of those of the samples) and
        ``h_marginal_unweighted`` (of the mean prediction), in nats; what they add to the loss, ``uncertainty_term_weighted`` and
        ``diversity_term_weighted``, both at most 0; ``total_loss``, their sum.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.analyze_decoupled_information_loss(torch.zeros(2, 2), torch.tensor([0, 1]))["h_marginal_unweighted"]
        tensor(0.6931)
    """
    name = "analyze_decoupled_information_loss"
    with torch.no_grad():
        _, (x, t) = widened(name, {"input": input, "target": target}, None)
        losses, each, mean = _entropies(_logits(name, x, from_logits, label_smoothing), t, label_smoothing, None)
        parts = {
            "cross_entropy": losses.mean(),
            "h_conditional_unweighted": each,
            "h_marginal_unweighted": mean,
            "uncertainty_term_weighted": -uncertainty_weight * each,
            "diversity_term_weighted": -diversity_weight * mean,
        }
        total = parts["cross_entropy"] + parts["uncertainty_term_weighted"] + parts["diversity_term_weighted"]
        return {"total_loss": total, **parts}


@register(
    "plain", formula="alpha sum_c -y_c (1 - p_c)^gamma log p_c - u mean_n H(p_n)",
    source="Lin et al. 2017, equation 5; Grandvalet and Bengio 2004",
    operands={"input": "real", "target": "class"}, dims=(2, 2),
    params={"uncertainty_weight": (0.0, 0.5), "alpha": (0.0, 1.0), "gamma": (0.0, 4.0), "label_smoothing": (0.0, 0.2)},
)
def focal_uncertainty_loss(
    input: Tensor,
    target: Tensor,
    uncertainty_weight: float = 0.2,
    alpha: float = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Focal loss over the softmax that rewards uncertain predictions.

    .. math:: \ell_n = -\alpha \sum_c y_{nc} (1 - p_{nc})^\gamma \log p_{nc} - \frac{u}{N} \sum_m H(p_m)

    Args:
        input: logits, or probabilities without `from_logits`; float32, float64, bfloat16 or float16, any strides.
        target: class indices, or probabilities of `input`'s shape.
        uncertainty_weight: :math:`u`, at least 0. Default: 0.2.
        alpha: factor of all classes, in [0, 1]. Default: 0.25.
        gamma: focusing parameter, at least 0. Default: 2.
        label_smoothing: how much of the target is spread evenly over the classes. Default: 0.
        from_logits: whether `input` is logits. Default: True.
        reduction: ``"none"``: a loss for each sample; ``"mean"`` or ``"sum"`` over the samples.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(N, C)`
        - target: :math:`(N)` or :math:`(N, C)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: `alpha` is not in [0, 1], or `gamma` is negative; otherwise as :func:`decoupled_information_loss`.

    Source:
        Lin et al. 2017, equation 5; Grandvalet and Bengio 2004, equation 6.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.focal_uncertainty_loss(torch.zeros(2, 2), torch.tensor([0, 1]))  # log 2 (0.25 / 4 - 0.2)
        tensor(-0.0953)
    """
    if has_torch_function_variadic(input, target):
        return overridden("focal_uncertainty", locals(), (input, target))
    name = "focal_uncertainty"
    _checks.positive(name, "uncertainty_weight", uncertainty_weight, zero=True)
    _checks.positive(name, "gamma", gamma, zero=True)
    if not 0 <= alpha <= 1:
        raise ValueError(f"{name}: alpha must be in [0, 1], got {alpha}")
    dtype, (x, t) = widened(name, {"input": input, "target": target}, backend, reduction)
    logits = _logits(name, x, from_logits, label_smoothing)
    losses = _focal(logits, t, alpha, gamma, label_smoothing, backend)
    if uncertainty_weight:
        _, entropy = cross_entropy(logits, t, reduction="none", return_entropy=True, backend=backend)
        losses = losses - uncertainty_weight * entropy.mean()
    return reduced(losses, reduction, dtype)


def _focal(logits: Tensor, target: Tensor, alpha: float, gamma: float, label_smoothing: float, backend: str | None) -> Tensor:
    """The focal loss of each sample."""
    if label_smoothing:
        classes = logits.shape[1]
        whole = target if target.is_floating_point() else torch.zeros_like(logits).scatter(1, target.long().unsqueeze(1), 1.0)
        target = (1 - label_smoothing) * whole + label_smoothing / classes
    return alpha * softmax_focal_loss(logits, target, gamma, reduction="none", backend=backend)


def analyze_focal_uncertainty_loss(
    input: Tensor,
    target: Tensor,
    uncertainty_weight: float = 0.2,
    alpha: float = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    from_logits: bool = True,
) -> dict[str, Tensor]:
    r"""What :func:`focal_uncertainty_loss` is made of, as tensors on the device, without gradients.

    Args:
        input, target, uncertainty_weight, alpha, gamma, label_smoothing, from_logits: as for :func:`focal_uncertainty_loss`.

    Returns:
        ``focal_loss``, a mean; ``h_conditional_unweighted``, the mean of the entropies of the predictions, in nats; what that adds to the
        loss, ``uncertainty_term_weighted``, at most 0; ``total_loss``, the sum.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.analyze_focal_uncertainty_loss(torch.zeros(2, 2), torch.tensor([0, 1]))["focal_loss"]
        tensor(0.0433)
    """
    name = "analyze_focal_uncertainty_loss"
    with torch.no_grad():
        _, (x, t) = widened(name, {"input": input, "target": target}, None)
        logits = _logits(name, x, from_logits, label_smoothing)
        each = _entropies(logits, t, 0.0, None)[1]
        focal = _focal(logits, t, alpha, gamma, label_smoothing, None).mean()
        return {
            "total_loss": focal - uncertainty_weight * each,
            "focal_loss": focal,
            "h_conditional_unweighted": each,
            "uncertainty_term_weighted": -uncertainty_weight * each,
        }


@register(
    "plain", formula="CE(x, y) - w_e H_c + w_m (H(mean_n p_n) - H_c), H_c = mean_n H(p_n)",
    source="mutual information of batch and prediction: Krause et al. 2010, equation 3",
    operands={"input": "real", "target": "class"}, dims=(2, 2),
    params={"label_smoothing": (0.0, 0.2), "entropy_weight": (0.0, 0.5), "mi_weight": (0.0, 0.1)},
)
def goodhart_aware_loss(
    input: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    entropy_weight: float = 0.1,
    mi_weight: float = 0.01,
    from_logits: bool = True,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy that rewards uncertain predictions and keeps what predictions tell about their input small.

    .. math:: \ell_n = \text{CE}(x_n, y_n) - w_e H_c + w_m (H_m - H_c), \qquad
        H_c = \frac{1}{N} \sum_m H(p_m), \ H_m = H\left(\frac{1}{N} \sum_m p_m\right)

    The entropy is concave, so :math:`H_m - H_c` is never negative; where predictions are so alike that its value is a rounding, its
    gradient is still right.

    Args:
        input: logits, or probabilities without `from_logits`; float32, float64, bfloat16 or float16, any strides.
        target: class indices, or probabilities of `input`'s shape.
        label_smoothing: as for :func:`fastloss.functional.cross_entropy`. Default: 0.
        entropy_weight: :math:`w_e`, at least 0. Default: 0.1.
        mi_weight: :math:`w_m`, at least 0. Default: 0.01.
        from_logits: whether `input` is logits. Default: True.
        reduction: ``"none"``: a loss for each sample; ``"mean"`` or ``"sum"`` over the samples.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input: :math:`(N, C)`
        - target: :math:`(N)` or :math:`(N, C)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        As :func:`decoupled_information_loss`. Warns of `entropy_weight` above 1 and of `mi_weight` above 0.1.

    Source:
        Krause et al. 2010, equation 3: :math:`H_m - H_c` is the mutual information of sample and prediction.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.goodhart_aware_loss(torch.zeros(2, 2), torch.tensor([0, 1]))  # log 2 (1 - 0.1)
        tensor(0.6238)
    """
    if has_torch_function_variadic(input, target):
        return overridden("goodhart_aware", locals(), (input, target))
    name = "goodhart_aware"
    _checks.positive(name, "entropy_weight", entropy_weight, zero=True)
    _checks.positive(name, "mi_weight", mi_weight, zero=True)
    if entropy_weight > 1:
        _checks.warn(f"{name}: entropy_weight={entropy_weight} outweighs the cross-entropy")
    if mi_weight > 0.1:
        _checks.warn(f"{name}: mi_weight={mi_weight} is above 0.1, where predictions tell little about their input")
    dtype, (x, t) = widened(name, {"input": input, "target": target}, backend, reduction)
    losses, each, mean = _entropies(_logits(name, x, from_logits, label_smoothing), t, label_smoothing, backend)
    return reduced(losses + (mi_weight * (mean - each) - entropy_weight * each), reduction, dtype)


def analyze_goodhart_aware_loss(
    input: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    entropy_weight: float = 0.1,
    mi_weight: float = 0.01,
    from_logits: bool = True,
) -> dict[str, Tensor]:
    r"""What :func:`goodhart_aware_loss` is made of, as tensors on the device, without gradients.

    Args:
        input, target, label_smoothing, entropy_weight, mi_weight, from_logits: as for :func:`goodhart_aware_loss`.

    Returns:
        ``cross_entropy``, a mean; ``entropy_term_unweighted``, :math:`-H_c`, and ``mi_term_unweighted``, :math:`\max(0, H_m - H_c)`, in
        nats; what they add to the loss, ``entropy_term_weighted`` and ``mi_term_weighted``; ``total_loss``, the sum.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.analyze_goodhart_aware_loss(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), torch.tensor([0, 1]))["mi_term_unweighted"]
        tensor(0.6931)
    """
    name = "analyze_goodhart_aware_loss"
    with torch.no_grad():
        _, (x, t) = widened(name, {"input": input, "target": target}, None)
        losses, each, mean = _entropies(_logits(name, x, from_logits, label_smoothing), t, label_smoothing, None)
        told = torch.relu(mean - each)
        parts = {"cross_entropy": losses.mean(), "entropy_term_weighted": -entropy_weight * each, "mi_term_weighted": mi_weight * told}
        return {
            "total_loss": parts["cross_entropy"] + parts["entropy_term_weighted"] + parts["mi_term_weighted"],
            "entropy_term_unweighted": -each,
            "mi_term_unweighted": told,
            **parts,
        }
