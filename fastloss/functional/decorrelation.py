"""Self-supervised losses that decorrelate features, through the smaller of two Gram matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from .._backends import choose
from ..engine import formula_backward, over_group, overridden, without_autocast
from ..plain import same_shape, widened
from ..registry import register

__all__ = ["barlow_twins_loss", "vicreg_loss"]


def views_of(name: str, z1: Tensor, z2: Tensor, backend: str | None, least: int = 2) -> tuple[torch.dtype, list[Tensor], str]:
    """Check two views (N, D) of at least so many rows; gives the dtype of the result, the views in that of sums, and the backend."""
    if isinstance(z1, Tensor) and z1.dim() != 2:
        raise ValueError(f"{name}: z1 must be (N, D), got {tuple(z1.shape)}")
    same_shape(name, {"z1": z1, "z2": z2})
    dtype, views = widened(name, {"z1": z1, "z2": z2}, backend)
    if len(views[0]) < least:
        raise ValueError(f"{name}: wanted at least 2 samples, since features of one have no variance, got {len(views[0])}")
    return dtype, views, choose(name, backend, z1, z2)[0]


def _formula(x: Tensor, y: Tensor | None, centre: bool) -> tuple[Tensor, Tensor]:
    """The diagonal of ``x.T @ y`` for x and y (N, D), and the sum of the squares beside it; y is x where None, centred on request.

    The sum of all squares is ``<x x.T, y y.T>``; as long as there are more features than samples it is larger than that of the diagonal,
    which is subtracted, by a factor, so that nothing is lost.
    """
    x = _centred(x) if centre else x
    y = x if y is None else y
    diagonal = (x * y).sum(0)
    with without_autocast(x.device):
        if x.shape[1] <= x.shape[0]:
            product = x.t() @ y
            return diagonal, (product - torch.diag_embed(product.diagonal())).square().sum()
        gram = x @ x.t()
        other = gram if y is x else y @ y.t()
        return diagonal, (gram * other).sum() - diagonal.square().sum()


def _centred(x: Tensor) -> Tensor:
    """Less the mean of each feature, exactly 0 where a feature is constant: what the rows differ from the first one by comes first."""
    x = x - x[:1].detach()
    return x.sub_(x.mean(0))


class _OffDiagonal(torch.autograd.Function):
    """:func:`_formula` with half of its products of matrices, and few sweeps. Not for torch.func, nor while a graph is traced."""

    @staticmethod
    def forward(ctx, x, y, centre):
        given, x = (x, y), _centred(x) if centre else x
        own = y is None
        diagonal = torch.linalg.vector_norm(x, dim=0).square() if own else (x * y).sum(0)
        with without_autocast(x.device):
            if x.shape[1] <= x.shape[0]:
                products = [(x.t() @ (x if own else y)).fill_diagonal_(0.0)]
                total = torch.linalg.vector_norm(products[0]).square()
            else:
                products = [z @ z.t() for z in ((x,) if own else (x, y))]
                total = (products[0] * products[-1]).sum() - diagonal.square().sum()
        ctx.save_for_backward(*given, x, diagonal, *products)
        ctx.centre = centre
        return diagonal, total

    @staticmethod
    def backward(ctx, grad_diagonal, grad_total):
        x, y, centred, diagonal, *products = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = formula_backward(
                lambda x, y: _formula(x, y, ctx.centre), (x, y), ctx.needs_input_grad[:2], (grad_diagonal, grad_total)
            )
            return *found, None
        with without_autocast(x.device):
            if y is None:  # the gradient of centred rows is centred
                return _gradient(centred, centred, products[0], diagonal, 2 * grad_diagonal, 4 * grad_total), None, None
            of_x = _gradient(x, y, products[-1], diagonal, grad_diagonal, 2 * grad_total) if ctx.needs_input_grad[0] else None
            swapped = products[0] if x.shape[1] > x.shape[0] else products[0].t()
            of_y = _gradient(y, x, swapped, diagonal, grad_diagonal, 2 * grad_total) if ctx.needs_input_grad[1] else None
        return of_x, of_y, None


def _gradient(own: Tensor, other: Tensor, product: Tensor, diagonal: Tensor, of_diagonal: Tensor, of_total: Tensor) -> Tensor:
    """To `own`, from the other set's Gram matrix, or from ``own.T @ other`` without its diagonal."""
    if own.shape[1] <= own.shape[0]:
        return other @ (of_total * product.t() + torch.diag_embed(of_diagonal))
    return ((of_total * product) @ own).addcmul_(other, of_diagonal - of_total * diagonal)


def correlations(x: Tensor, y: Tensor | None, centre: bool, backend: str) -> tuple[Tensor, Tensor]:
    """What :func:`_formula` gives, by the fast way wherever that runs."""
    plain = backend == "eager" or torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0
    return _formula(x, y, centre) if plain else _OffDiagonal.apply(x, y, centre)


@register(
    "plain", formula="sim mean (z1 - z2)^2 + std / 2 mean max(0, 1 - sd) of both + cov sum_(i != j) C_ij^2 / D of both",
    source="Bardes et al. 2022 (VICReg), equations 1 to 6", operands={"z1": "batch", "z2": "batch"}, dims=(2, 2),
    params={"sim_coeff": (1.0, 25.0), "std_coeff": (1.0, 25.0), "cov_coeff": (0.5, 2.0), "variance_target": (0.5, 1.5)},
)
def vicreg_loss(
    z1: Tensor,
    z2: Tensor,
    sim_coeff: float = 25.0,
    std_coeff: float = 25.0,
    cov_coeff: float = 1.0,
    variance_target: float = 1.0,
    eps: float = 1e-4,
    *,
    group: object = None,
    backend: str | None = None,
) -> Tensor:
    r"""VICReg: views of a sample should agree, features should vary, and should not be correlated.

    .. math:: \ell = \frac{\lambda}{N D} \|Z_1 - Z_2\|^2
        + \frac{\mu}{2 D} \sum_{v, d} \max\left(0, \gamma - \sqrt{\operatorname{Var}(Z_v)_d + \epsilon}\right)
        + \frac{\nu}{D} \sum_v \sum_{i \ne j} \operatorname{Cov}(Z_v)_{ij}^2

    with variances and covariances over the samples, divided by :math:`N - 1`. The squares of the covariances are summed through the
    :math:`N \times N` Gram matrix where that is smaller than :math:`D \times D`, so memory is :math:`O(N D)`.

    Args:
        z1: the first view; float32, float64, bfloat16 or float16, any strides.
        z2: the second view of the same samples.
        sim_coeff: :math:`\lambda`. Default: 25.
        std_coeff: :math:`\mu`. Default: 25.
        cov_coeff: :math:`\nu`. Default: 1.
        variance_target: :math:`\gamma`, the wanted standard deviation. Default: 1.
        eps: :math:`\epsilon`, positive. Default: 1e-4.
        group: processes whose batches are one, as of :func:`fastloss.functional.clip_loss`; None for this process alone. They exchange
            sums over their rows; one of them is a matrix, :math:`D \times D`.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - z1, z2: :math:`(N, D)` with N > 1
        - loss: scalar

    Raises:
        ValueError: shapes differ or are not :math:`(N, D)` with N > 1; a coefficient is negative; `eps` is not positive; unknown backend.
        TypeError: an argument is not a tensor.
        NotImplementedError: `z1` is not floating point.
        RuntimeError: tensors are on several devices.

    Source:
        Bardes, Ponce and LeCun 2022 (VICReg), equations 1 to 6; the authors' code takes half of the variance terms.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> z = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
        >>> F.vicreg_loss(z, z).round(decimals=3)
        tensor(32.)
    """
    if has_torch_function_variadic(z1, z2):
        return overridden("vicreg", locals(), (z1, z2))
    if group is not None:
        return over_group(
            "decorrelation", "vicreg", group, z1, z2, sim_coeff, std_coeff, cov_coeff, variance_target, eps, backend
        )
    name = "vicreg"
    for option, value in (("sim_coeff", sim_coeff), ("std_coeff", std_coeff), ("cov_coeff", cov_coeff)):
        _checks.positive(name, option, value, zero=True)
    _checks.positive(name, "eps", eps)
    dtype, views, chosen = views_of(name, z1, z2, backend)
    count, features = views[0].shape
    loss = sim_coeff * F.mse_loss(*views)
    for z in views:
        square, rest = correlations(z, None, True, chosen)
        loss = loss + 0.5 * std_coeff * (variance_target - torch.sqrt(square / (count - 1) + eps)).clamp_min(0).mean()
        loss = loss + cov_coeff / features * rest / (count - 1) ** 2
    return loss.to(dtype)


@register(
    "plain", formula="sum_i (1 - C_ii)^2 + lambd sum_(i != j) C_ij^2, C the cross-correlation", source="Zbontar et al. 2021, equation 1",
    operands={"z1": "batch", "z2": "batch"}, dims=(2, 2), params={"lambd": (0.001, 0.1)}, choices={"deviation": ("biased", "unbiased")},
)
def barlow_twins_loss(
    z1: Tensor,
    z2: Tensor,
    lambd: float = 5e-3,
    deviation: str = "biased",
    eps: float | None = None,
    *,
    group: object = None,
    backend: str | None = None,
) -> Tensor:
    r"""Barlow Twins: the cross-correlation of the features of two views should be the identity.

    .. math:: \ell = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2, \qquad C = \tfrac{1}{N} \tilde Z_1^T \tilde Z_2

    where features are centred and divided by their deviation. The squares are summed through :math:`N \times N` Gram matrices where
    those are smaller than :math:`C`, so memory is :math:`O(N D)`.

    Args:
        z1: the first view; float32, float64, bfloat16 or float16, any strides.
        z2: the second view of the same samples.
        lambd: :math:`\lambda`, at least 0. Default: 0.005.
        deviation: ``"biased"``: :math:`\sqrt{\operatorname{Var} + \epsilon}` with the variance divided by N, a batch normalisation;
            ``"unbiased"``: :math:`\sqrt{\operatorname{Var}} + \epsilon` with the variance divided by :math:`N - 1`.
        eps: :math:`\epsilon`, positive. Default: 1e-5, unbiased 1e-4.
        group: processes whose batches are one, as of :func:`fastloss.functional.clip_loss`; None for this process alone. They exchange
            sums over their rows; one of them is a matrix, :math:`D \times D`.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - z1, z2: :math:`(N, D)` with N > 1
        - loss: scalar

    Raises:
        ValueError: `lambd` is negative; unknown deviation. Otherwise as :func:`fastloss.functional.vicreg_loss`.

    Source:
        Zbontar, Jing, Misra, LeCun and Deny 2021 (Barlow Twins), equation 1.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> z = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
        >>> F.barlow_twins_loss(z, z, lambd=0.5)
        tensor(1.0000)
    """
    if has_torch_function_variadic(z1, z2):
        return overridden("barlow_twins", locals(), (z1, z2))
    name = "barlow_twins"
    if deviation not in ("biased", "unbiased"):
        raise ValueError(f"{name}: unknown deviation {deviation!r}; wanted 'biased' or 'unbiased'")
    eps = (1e-5 if deviation == "biased" else 1e-4) if eps is None else eps
    if group is not None:
        return over_group("decorrelation", "barlow_twins", group, z1, z2, lambd, deviation, eps, backend)
    _checks.positive(name, "lambd", lambd, zero=True)
    _checks.positive(name, "eps", eps)
    dtype, views, chosen = views_of(name, z1, z2, backend)
    count = len(views[0])
    first, second = (_standardised(z, deviation, eps) for z in views)
    diagonal, rest = correlations(first, second, False, chosen)
    return ((1 - diagonal / count).square().sum() + lambd * rest / count**2).to(dtype)


def _standardised(z: Tensor, deviation: str, eps: float) -> Tensor:
    if deviation == "biased":
        return F.batch_norm(z, None, None, training=True, eps=eps)
    z = _centred(z)
    square = z.square().sum(0)
    # A constant feature has the slope 0, not that of a root at 0.
    varies = square > 0
    return z / (torch.where(varies, torch.sqrt(torch.where(varies, square, 1.0) / (len(z) - 1)), 0.0) + eps)
