"""Losses of generative models: variational autoencoders and Wasserstein critics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..elementwise import elementwise_loss
from ..engine import overridden
from ..plain import same_shape, widened
from ..registry import register

__all__ = ["compute_gradient_penalty", "gaussian_kl_loss", "vae_elbo_loss", "wasserstein_divergence", "wasserstein_loss"]


def _gaussian_kl(mu: Tensor, logvar: Tensor, free_bits: float) -> Tensor:
    value = 0.5 * (mu**2 + (logvar.expm1() - logvar))
    return torch.where(value < free_bits, free_bits, value) if free_bits > 0 else value


@register(
    "elementwise", point=_gaussian_kl, formula="max((mu^2 + exp(v) - 1 - v) / 2, free_bits)",
    source="Kingma and Welling 2014, appendix B; free bits: Kingma et al. 2016, appendix C.8",
    operands={"mu": "real", "logvar": "rate"}, params={"free_bits": (0.0, 1.0)},
)
def gaussian_kl_loss(
    mu: Tensor, logvar: Tensor, free_bits: float = 0.0, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Divergence of :math:`N(\mu, e^v)` from :math:`N(0, 1)` in nats, of each latent number.

    .. math:: \ell = \max\left(\tfrac{1}{2} \left(\mu^2 + e^v - 1 - v\right), \text{free\_bits}\right)

    The value is infinite where :math:`e^v` is: above 88 in float32. Nothing is clamped.

    Args:
        mu: means; float32, float64, bfloat16 or float16, any strides.
        logvar: logarithms :math:`v` of the variances; broadcasts with `mu`.
        free_bits: what a latent number costs at the least, in nats; below it gradients are 0. 0 for none. Default: 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``, over the latent numbers.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - mu, logvar: any that broadcast
        - loss: scalar, or the broadcast shape for ``reduction="none"``

    Raises:
        ValueError: `free_bits` is negative; otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Kingma and Welling 2014, appendix B; free bits: Kingma et al. 2016, appendix C.8.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.gaussian_kl_loss(torch.tensor([0.0, 2.0]), torch.zeros(2), reduction="none")
        tensor([0., 2.])
    """
    _checks.positive("gaussian_kl", "free_bits", free_bits, zero=True)
    return elementwise_loss("gaussian_kl", (float(free_bits),), (mu, logvar, None), None, reduction, backend=backend)


# Reconstruction: the element-wise loss, and what it is multiplied by.
_RECONSTRUCTIONS = {
    "bce_logits": ("binary_cross_entropy_with_logits", 1.0),
    "bce": ("binary_cross_entropy", 1.0),
    "mse": ("mse", 1.0),
    "l1": ("l1", 1.0),
    "gaussian": ("mse", 0.5),
}


@register(
    "plain", formula="sum_i recon(r_i, x_i) + beta sum_d KL(N(mu_d, exp(v_d)) | N(0, 1))",
    source="Kingma and Welling 2014, equation 10; Higgins et al. 2017, equation 4",
    operands={"recon_x": "real", "x": "probability", "mu": "latent", "logvar": "log variance"},
    params={"beta": (0.1, 4.0), "kl_free_bits": (0.0, 0.5)}, choices={"recon": ("bce_logits", "mse", "l1", "gaussian")}, dims=(2, 4),
)
def vae_elbo_loss(
    recon_x: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    recon: str = "bce_logits",
    beta: float = 1.0,
    reduction: str = "mean",
    kl_free_bits: float = 0.0,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Negative evidence lower bound of a variational autoencoder with a Gaussian posterior and a standard normal prior.

    .. math:: \ell_n = \sum_i \text{recon}(r_{ni}, x_{ni}) + \beta \sum_d \max\left(\tfrac{1}{2}
        \left(\mu_{nd}^2 + e^{v_{nd}} - 1 - v_{nd}\right), \text{kl\_free\_bits}\right)

    Nothing is clamped: :math:`e^v` overflows for :math:`v` above 88 in float32.

    Args:
        recon_x: what the decoder gave; float32, float64, bfloat16 or float16, any strides.
        x: the data, of `recon_x`'s shape.
        mu: means of the latent numbers.
        logvar: logarithms :math:`v` of their variances, of `mu`'s shape.
        recon: ``"bce_logits"``, ``"bce"`` (of probabilities), ``"mse"``, ``"l1"``, or ``"gaussian"``: :math:`(x - r)^2 / 2`.
        beta: weight of the divergence, at least 0. Default: 1.
        reduction: ``"none"``: a loss for each sample; ``"mean"`` or ``"sum"`` over the samples.
        kl_free_bits: what each latent number costs at the least, in nats. Default: 0.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - recon_x, x: :math:`(N, \dots)`
        - mu, logvar: :math:`(N, \dots)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: shapes or numbers of samples differ; `recon` is unknown; `beta` or `kl_free_bits` is negative. Otherwise as
            :func:`fastloss.functional.mse_loss`.

    Source:
        Kingma and Welling 2014, equation 10; beta: Higgins et al. 2017, equation 4; free bits: Kingma et al. 2016, appendix C.8.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.vae_elbo_loss(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 4), torch.zeros(2, 4), recon="mse")
        tensor(5.)
    """
    if has_torch_function_variadic(recon_x, x, mu, logvar):
        return overridden("vae_elbo", locals(), (recon_x, x, mu, logvar))
    name = "vae_elbo"
    same_shape(name, {"recon_x": recon_x, "x": x})
    same_shape(name, {"mu": mu, "logvar": logvar})
    if recon not in _RECONSTRUCTIONS:
        raise ValueError(f"{name}: recon must be one of {', '.join(_RECONSTRUCTIONS)}, got {recon!r}")
    _checks.positive(name, "beta", beta, zero=True)
    _checks.positive(name, "kl_free_bits", kl_free_bits, zero=True)
    tensors = {"recon_x": recon_x, "x": x, "mu": mu, "logvar": logvar}
    dtype, (recon_x, x, mu, logvar) = widened(name, tensors, backend, reduction)
    if not recon_x.dim() or not mu.dim() or recon_x.shape[0] != mu.shape[0]:
        raise ValueError(f"{name}: recon_x and mu must have as many samples, got {tuple(recon_x.shape)} and {tuple(mu.shape)}")
    if recon == "bce":
        _checks.probabilities(name, recon_x)
    functor, factor = _RECONSTRUCTIONS[recon]
    error, divergence = (
        elementwise_loss(loss, params, (a.flatten(1), b.flatten(1), None), None, reduction, backend=backend, rows="sum")
        for loss, params, a, b in ((functor, (), recon_x, x), ("gaussian_kl", (float(kl_free_bits),), mu, logvar))
    )
    return ((error if factor == 1 else factor * error) + beta * divergence).to(dtype)


@register(
    "elementwise", point=lambda input, target, for_critic: (2 * for_critic * (1 - target) - 1) * input,
    formula="(1 - 2 t) x, or -x for the generator", source="Arjovsky et al. 2017, equation 3",
    operands={"input": "real", "target": "binary"}, params={"for_critic": (False, True)},
)
def wasserstein_loss(
    input: Tensor, target: Tensor, for_critic: bool = True, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Loss of a Wasserstein critic, :math:`\ell = (1 - 2 t) x`, or of the generator, :math:`\ell = -x`.

    Neither holds the critic's slope; add :func:`compute_gradient_penalty`.

    Args:
        input: the critic's scores.
        target: 1 for real samples, 0 for generated ones; broadcasts with `input`. The generator's loss does not depend on it.
        for_critic: the critic's loss, else the generator's. Default: True.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: any that broadcast

    Raises:
        As :func:`fastloss.functional.mse_loss`.

    Source:
        Arjovsky et al. 2017, equation 3.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.wasserstein_loss(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]), reduction="none")
        tensor([-3.,  1.])
    """
    return elementwise_loss("wasserstein", (float(for_critic),), (input, target, None), None, reduction, backend=backend)


@register(
    "plain", formula="mean_k |sum_(j <= k) p_j / sum p - sum_(j <= k) t_j / sum t|", source="Vallender 1974, on bins at equal distances",
    operands={"input": "positive", "target": "positive"}, params={"eps": (1e-7, 1e-3)}, name="wasserstein_divergence",
)
def wasserstein_divergence(
    input: Tensor, target: Tensor, eps: float = 1e-7, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Earth mover's distance between histograms over the last dimension, in widths of the whole range.

    .. math:: \ell = \frac{1}{K} \sum_k \left|\sum_{j \le k} \hat p_j - \hat t_j\right|, \qquad
        \hat p = \frac{\max(p, \varepsilon)}{\sum_j \max(p_j, \varepsilon) + \varepsilon}

    Args:
        input: masses of the bins; float32, float64, bfloat16 or float16, any strides.
        target: masses of the bins, of `input`'s shape.
        eps: the least mass of a bin, positive. Default: 1e-7.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the histograms.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - input, target: :math:`(\dots, K)`
        - loss: scalar, or input's shape without its last dimension for ``reduction="none"``

    Raises:
        ValueError: shapes differ; `eps` is not positive. Otherwise as :func:`fastloss.functional.mse_loss`.

    Source:
        Vallender 1974: in one dimension the distance is the area between the distribution functions.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.wasserstein_divergence(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 0.0]))
        tensor(0.5000)
    """
    if has_torch_function_variadic(input, target):
        return overridden("wasserstein_divergence", locals(), (input, target))
    name = "wasserstein_divergence"
    same_shape(name, {"input": input, "target": target})
    _checks.positive(name, "eps", eps)
    dtype, masses = widened(name, {"input": input, "target": target}, backend, reduction)
    if not masses[0].dim():
        raise ValueError(f"{name}: input must have a dimension of bins, got a scalar")
    p, t = (mass / (mass.sum(-1, keepdim=True) + eps) for mass in (m.clamp_min(eps) for m in masses))
    between = (p - t).cumsum(-1)
    return elementwise_loss("l1", (), (between, between.new_zeros(()), None), None, reduction, backend=backend, rows="mean").to(dtype)


def compute_gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    lambda_gp: float = 10.0,
    *,
    alpha: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""What keeps the slope of a Wasserstein critic near 1, between real and generated samples.

    .. math:: \frac{\lambda}{N} \sum_n \left(\sqrt{\|\nabla f(\hat x_n)\|^2 + 10^{-12}} - 1\right)^2, \qquad
        \hat x_n = \alpha_n x_n + (1 - \alpha_n) \tilde x_n, \ \alpha_n \sim U[0, 1]

    The result can be differentiated with respect to the critic's parameters. The term under the root keeps the second derivative
    finite where the slope is 0.

    Args:
        critic: gives a score for each sample; what it gives is summed.
        real: real samples :math:`x`.
        fake: generated samples :math:`\tilde x`, of `real`'s shape; detached, as is `real`.
        lambda_gp: factor :math:`\lambda`. Default: 10.
        alpha: :math:`\alpha`, one number a sample, in place of random ones.
        generator: what random numbers are drawn from. Default: torch's.

    Shape:
        - real, fake: :math:`(N, \dots)`
        - alpha: :math:`(N)`
        - penalty: scalar

    Raises:
        ValueError: shapes differ, or `alpha` has not one number a sample.
        TypeError: `real` or `fake` is not a tensor.

    Source:
        Gulrajani et al. 2017, equation 3.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> critic = torch.nn.Linear(1, 1)
        >>> _ = critic.weight.data.fill_(3.0)
        >>> F.compute_gradient_penalty(critic, torch.ones(2, 1), torch.zeros(2, 1))
        tensor(40., grad_fn=<MulBackward0>)
    """
    name = "compute_gradient_penalty"
    same_shape(name, {"real": real, "fake": fake})
    dtype, _ = widened(name, {"real": real, "fake": fake}, None)
    if not real.dim():
        raise ValueError(f"{name}: real must be (N, ...), got a scalar")
    samples = real.shape[0]
    if alpha is None:
        alpha = torch.rand(samples, generator=generator, device=real.device, dtype=real.dtype)
    elif alpha.numel() != samples:
        raise ValueError(f"{name}: alpha must have {samples} numbers, one a sample, got {tuple(alpha.shape)}")
    alpha = alpha.reshape(samples, *[1] * (real.dim() - 1)).to(real.dtype)
    with torch.enable_grad():
        between = torch.lerp(fake.detach(), real.detach(), alpha).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        length = (slope.flatten(1).to(torch.promote_types(dtype, torch.float32)).square().sum(1) + 1e-12).sqrt()
        return lambda_gp * ((length - 1) ** 2).mean()
