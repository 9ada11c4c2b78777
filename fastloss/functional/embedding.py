"""Losses of pairs and triplets of embeddings that are given row by row, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..engine import overridden, without_autocast
from ..plain import reduced, same_shape, widened
from ..registry import register

__all__ = [
    "angle_loss", "contrastive_loss", "cosent_loss", "cosine_embedding_loss", "cosine_similarity_loss", "margin_mse_loss",
    "triplet_margin_loss", "triplet_margin_with_distance_loss",
]


def _rows(
    name: str, sets: Mapping[str, Tensor], target: Tensor, backend: str | None, reduction: str = "mean"
) -> tuple[torch.dtype, list[Tensor]]:
    """Check sets (N, D) of one shape and a target (N); gives the dtype of the result, and all in the dtype that sums are kept in.

    The target's dtype makes no difference to the result's: scores in float64 are no reason to widen half-precision embeddings.
    """
    for argument, x in sets.items():
        if isinstance(x, Tensor) and x.dim() != 2:
            raise ValueError(f"{name}: {argument} must be (N, D), got {tuple(x.shape)}")
    same_shape(name, sets)
    dtype, wide = widened(name, sets, backend, reduction)
    if not isinstance(target, Tensor):
        raise TypeError(f"{name}: target must be a Tensor, got {type(target).__name__}")
    if target.shape != wide[0].shape[:1]:
        raise ValueError(f"{name}: target must be ({len(wide[0])},), got {tuple(target.shape)}")
    if target.device != wide[0].device:
        raise RuntimeError(f"{name}: expected all tensors on one device, but got {wide[0].device} and target on {target.device}")
    return dtype, [*wide, target.to(wide[0].dtype)]


@register(
    "plain", formula="((q p - q n_k) - target_k)^2", source="Hofstatter et al. 2020, equation 4",
    operands={"query": "real", "positive": "real", "negatives": "several", "target": "row scores"}, dims=(2, 2),
)
def margin_mse_loss(
    query: Tensor, positive: Tensor, negatives: Tensor, target: Tensor, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Squared error of the margin between a query's positive and its negatives, by dot products, to that of a teacher.

    .. math:: \ell_{ik} = \left((q_i \cdot p_i - q_i \cdot n_{ik}) - y_{ik}\right)^2

    Args:
        query: float32, float64, bfloat16 or float16, any strides.
        positive: a document for each query.
        negatives: one or several documents that are none.
        target: the teacher's margins :math:`y`; or its scores of the positive and of the negatives, whose differences are taken.
        reduction: ``"none"``: a loss for each negative; ``"mean"`` or ``"sum"`` over them.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - query, positive: :math:`(N, D)`
        - negatives: :math:`(N, D)` or :math:`(N, K, D)`
        - target: :math:`(N)` or :math:`(N, K)`, scores :math:`(N, 1 + K)`
        - loss: scalar, or :math:`(N, K)` for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit; unknown reduction or backend.
        TypeError: an argument is not a tensor.
        NotImplementedError: `query` is not floating point.
        RuntimeError: tensors are on several devices.

    Source:
        Hofstatter et al. 2020, "Improving efficient neural ranking models with cross-architecture knowledge distillation", equation 4.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> F.margin_mse_loss(one, one, other, torch.tensor([0.5]))
        tensor(0.2500)
    """
    if has_torch_function_variadic(query, positive, negatives, target):
        return overridden("margin_mse", locals(), (query, positive, negatives, target))
    name = "margin_mse"
    same_shape(name, {"query": query, "positive": positive})
    tensors = {"query": query, "positive": positive, "negatives": negatives, "target": target}
    dtype, (q, p, n, y) = widened(name, tensors, backend, reduction)
    n = n.unsqueeze(1) if n.dim() == 2 else n
    if q.dim() != 2 or n.dim() != 3 or (n.shape[0], n.shape[2]) != q.shape:
        raise ValueError(
            f"{name}: query must be (N, D) and negatives (N, D) or (N, K, D), got {tuple(query.shape)} and {tuple(negatives.shape)}"
        )
    y = y.to(q.dtype).unsqueeze(1) if y.dim() == 1 else y.to(q.dtype)
    if y.shape == (n.shape[0], n.shape[1] + 1):
        y = y[:, :1] - y[:, 1:]
    if y.shape != n.shape[:2]:
        raise ValueError(f"{name}: target must be {tuple(n.shape[:2])} or {(n.shape[0], n.shape[1] + 1)}, got {tuple(target.shape)}")
    with without_autocast(q.device):
        margin = torch.linalg.vecdot(q.unsqueeze(1), p.unsqueeze(1) - n)
    return reduced((margin - y).square(), reduction, dtype)


@register(
    "plain", formula="(cos(u, v) - y)^2", source="Reimers and Gurevych 2019, section 3",
    operands={"input1": "real", "input2": "real", "target": "row score"}, dims=(2, 2),
)
def cosine_similarity_loss(
    input1: Tensor, input2: Tensor, target: Tensor, reduction: str = "mean", *, backend: str | None = None
) -> Tensor:
    r"""Squared error of the cosine similarity of two embeddings to a wanted one.

    .. math:: \ell_i = (\cos(u_i, v_i) - y_i)^2, \qquad \cos(u, v) = \frac{u \cdot v}{\max(\|u\|, 10^{-8}) \max(\|v\|, 10^{-8})}

    Args:
        input1: float32, float64, bfloat16 or float16, any strides.
        input2: the embedding to compare each with.
        target: the wanted similarities.
        reduction: ``"none"``: a loss for each pair; ``"mean"`` or ``"sum"`` over them.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - input1, input2: :math:`(N, D)`
        - target: :math:`(N)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit. Otherwise as :func:`fastloss.functional.margin_mse_loss`.

    Source:
        Reimers and Gurevych 2019 (Sentence-BERT), section 3, the regression objective.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.cosine_similarity_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([0.1]))
        tensor(0.2500)
    """
    if has_torch_function_variadic(input1, input2, target):
        return overridden("cosine_similarity", locals(), (input1, input2, target))
    dtype, (u, v, y) = _rows("cosine_similarity", {"input1": input1, "input2": input2}, target, backend, reduction)
    return reduced((F.cosine_similarity(u, v) - y).square(), reduction, dtype)


def _log_of_pairs_in_wrong_order(score: Tensor, target: Tensor) -> Tensor:
    """``log(1 + sum of exp(s_i - s_j) over target_i < target_j)``, in time O(N log N) by sorting the targets."""
    target, order = target.sort()
    score = score[order]
    suffix = torch.logcumsumexp(-score.flip(0), 0).flip(0)  # over all from each on
    first = torch.searchsorted(target, target, right=True)  # the first of a larger target
    some = first < len(score)
    each = torch.where(some, score + suffix[torch.where(some, first, 0)], -torch.inf)
    return torch.logsumexp(torch.cat([each.new_zeros(1), each]), 0)


@register(
    "plain", formula="log(1 + sum over y_i < y_j of exp(scale (cos_i - cos_j)))", source="Su 2022 (CoSENT)",
    operands={"input1": "real", "input2": "real", "target": "row score"}, dims=(2, 2), params={"scale": (1.0, 20.0)},
)
def cosent_loss(
    input1: Tensor, input2: Tensor, target: Tensor, scale: float = 20.0, *, backend: str | None = None
) -> Tensor:
    r"""CoSENT: pairs with a larger target should have a larger cosine similarity, whatever its value.

    .. math:: \ell = \log\left(1 + \sum_{y_i < y_j} e^{\kappa (c_i - c_j)}\right), \qquad c_i = \cos(u_i, v_i)

    The sum over pairs of pairs takes :math:`O(N \log N)` time and :math:`O(N)` memory.

    Args:
        input1: float32, float64, bfloat16 or float16, any strides.
        input2: the embedding to compare each with.
        target: similarities, of which only the order counts.
        scale: :math:`\kappa`, positive. Default: 20.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - input1, input2: :math:`(N, D)`
        - target: :math:`(N)`
        - loss: scalar; 0 where no target is larger than another

    Raises:
        ValueError: shapes do not fit, or `scale` is not positive. Otherwise as :func:`fastloss.functional.margin_mse_loss`.

    Source:
        Su 2022, "CoSENT: a more efficient sentence vector scheme than Sentence-BERT".

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> u, v = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> F.cosent_loss(u, v, torch.tensor([0.2, 0.9]), scale=1.0)
        tensor(1.3133)
    """
    if has_torch_function_variadic(input1, input2, target):
        return overridden("cosent", locals(), (input1, input2, target))
    name = "cosent"
    _checks.positive(name, "scale", scale)
    dtype, (u, v, y) = _rows(name, {"input1": input1, "input2": input2}, target, backend)
    return _log_of_pairs_in_wrong_order(scale * F.cosine_similarity(u, v), y).to(dtype)


@register(
    "plain", formula="CoSENT's of |Re + Im| of the quotient of complex vectors", source="Li and Li 2024 (AnglE), equations 4 to 8",
    operands={"input1": "even", "input2": "even", "target": "row score"}, dims=(2, 2), params={"scale": (1.0, 20.0)},
)
def angle_loss(
    input1: Tensor, input2: Tensor, target: Tensor, scale: float = 20.0, *, backend: str | None = None
) -> Tensor:
    r"""AnglE: CoSENT's loss of the angles between embeddings taken as complex vectors, which has a gradient where cosines saturate.

    With :math:`u = a + b i` and :math:`v = c + d i`, the halves of each row,

    .. math:: s = \frac{\left|\sum (a c + b d) + \sum (b c - a d)\right|}{\max(\|u\|, 10^{-8}) \max(\|v\|, 10^{-8})}, \qquad
        \ell = \log\left(1 + \sum_{y_i < y_j} e^{\kappa (s_i - s_j)}\right)

    Args:
        input1: float32, float64, bfloat16 or float16, any strides; an even number of features.
        input2: the embedding to compare each with.
        target: similarities, of which only the order counts.
        scale: :math:`\kappa`, positive. Default: 20.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - input1, input2: :math:`(N, D)`
        - target: :math:`(N)`
        - loss: scalar; 0 where no target is larger than another

    Raises:
        ValueError: shapes do not fit, D is odd, or `scale` is not positive. Otherwise as :func:`fastloss.functional.margin_mse_loss`.

    Source:
        Li and Li 2024, "AnglE-optimized text embeddings", equations 4 to 8.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> u, v = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> F.angle_loss(u, v, torch.tensor([0.2, 0.9]), scale=1.0)
        tensor(1.1711)
    """
    if has_torch_function_variadic(input1, input2, target):
        return overridden("angle", locals(), (input1, input2, target))
    name = "angle"
    _checks.positive(name, "scale", scale)
    dtype, (u, v, y) = _rows(name, {"input1": input1, "input2": input2}, target, backend)
    if u.shape[1] % 2:
        raise ValueError(f"{name}: wanted an even number of features, the halves of complex numbers, got {u.shape[1]}")
    u, v = F.normalize(u, dim=1, eps=1e-8), F.normalize(v, dim=1, eps=1e-8)
    c, d = v.chunk(2, 1)
    with without_autocast(u.device):
        score = torch.linalg.vecdot(u, torch.cat((c - d, c + d), 1)).abs()  # of u = (a, b): (a c + b d) + (b c - a d)
    return _log_of_pairs_in_wrong_order(scale * score, y).to(dtype)


@register(
    "plain", formula="y d^2 + (1 - y) max(0, margin - d)^2", source="Hadsell et al. 2006, equation 4",
    operands={"input1": "real", "input2": "real", "target": "row label"}, dims=(2, 2), params={"margin": (0.5, 4.0)},
    choices={"distance": ("euclidean", "cosine")},
)
def contrastive_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 1.0,
    distance: str = "euclidean",
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Contrastive loss of labelled pairs: those that belong together are drawn together, others pushed to a margin.

    .. math:: \ell_i = y_i d_i^2 + (1 - y_i) \max(0, \text{margin} - d_i)^2

    Args:
        input1: float32, float64, bfloat16 or float16, any strides.
        input2: the embedding to compare each with.
        target: 1 for pairs that belong together, 0 for others; numbers in between mix both.
        margin: positive. Default: 1.
        distance: ``"euclidean"``: :math:`d = \|u - v + 10^{-6}\|`, torch's pairwise distance; ``"cosine"``: :math:`1 - \cos(u, v)`.
        reduction: ``"none"``: a loss for each pair; ``"mean"`` or ``"sum"`` over them.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - input1, input2: :math:`(N, D)`
        - target: :math:`(N)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit; `margin` is not positive; unknown distance. Otherwise as
            :func:`fastloss.functional.margin_mse_loss`.

    Source:
        Hadsell, Chopra and LeCun 2006, "Dimensionality reduction by learning an invariant mapping", equation 4, without its factor 1/2.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> u, v = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.5], [0.0, 0.5]])
        >>> F.contrastive_loss(u, v, torch.tensor([1, 0]), margin=2.0, reduction="none")
        tensor([0.2500, 2.2500])
    """
    if has_torch_function_variadic(input1, input2, target):
        return overridden("contrastive", locals(), (input1, input2, target))
    name = "contrastive"
    _checks.positive(name, "margin", margin)
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"{name}: unknown distance {distance!r}; wanted 'euclidean' or 'cosine'")
    dtype, (u, v, y) = _rows(name, {"input1": input1, "input2": input2}, target, backend, reduction)
    d = torch.pairwise_distance(u, v) if distance == "euclidean" else 1 - F.cosine_similarity(u, v)
    return reduced(y * d.square() + (1 - y) * (margin - d).clamp_min(0).square(), reduction, dtype)


def _triplet(
    name: str, tensors: Mapping[str, Tensor], distance: Callable[[Tensor, Tensor], Tensor], margin: float, swap: bool, reduction: str,
    backend: str | None,
) -> Tensor:
    for argument, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(x).__name__}")
    dtype, (a, p, n) = widened(name, tensors, backend, reduction)
    if not a.dim() == p.dim() == n.dim():
        raise RuntimeError(
            f"{name}: the anchor, positive, and negative tensors are expected to have the same number of dimensions, "
            f"but got {a.dim()}D, {p.dim()}D and {n.dim()}D"
        )
    if margin <= 0:
        raise ValueError(f"{name}: margin must be greater than 0, got {margin}")
    near, far = distance(a, p), distance(a, n)
    if swap:
        far = torch.minimum(far, distance(p, n))
    return reduced((margin + near - far).clamp_min(0), reduction, dtype)


@register(
    "plain", formula="max(0, margin + |a - p| - |a - n|)",
    source="Balntas et al. 2016, equation 1; torch.nn.functional.triplet_margin_loss",
    operands={"anchor": "real", "positive": "real", "negative": "real"}, dims=(1, 3), torch="triplet_margin_loss",
    params={"margin": (0.5, 4.0)}, choices={"p": (2.0, 1.0, 3.0), "swap": (False, True)},
)
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Triplet loss: an anchor should be nearer to its positive than to its negative, by a margin. Drop-in for
    :func:`torch.nn.functional.triplet_margin_loss`.

    .. math:: \ell = \max(0, \text{margin} + \|a - p + \epsilon\|_p - \|a - n + \epsilon\|_p)

    Args:
        anchor: float32, float64, bfloat16 or float16, any strides.
        positive: of `anchor`'s shape, or one that broadcasts with it.
        negative: likewise.
        margin: positive. Default: 1.
        p: the norm's degree. Default: 2.
        eps: added to each difference. Default: 1e-6.
        swap: whether the distance of positive and negative counts instead of the anchor's where it is smaller.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``: a loss for each triplet; ``"mean"`` or ``"sum"`` over them.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - anchor, positive, negative: :math:`(N, D)` or :math:`(\dots, D)`
        - loss: scalar, or the shape without its last dimension for ``reduction="none"``

    Raises:
        ValueError: `margin` is not positive; unknown reduction or backend.
        RuntimeError: numbers of dimensions differ, or shapes do not broadcast; tensors are on several devices.
        TypeError: an argument is not a tensor.
        NotImplementedError: `anchor` is not floating point.

    Source:
        Balntas, Riba, Ponsa and Mikolajczyk 2016, equation 1; torch.nn.functional.triplet_margin_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.triplet_margin_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(4.0000)
    """
    if has_torch_function_variadic(anchor, positive, negative):
        return overridden("triplet_margin", locals(), (anchor, positive, negative))
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    tensors = {"anchor": anchor, "positive": positive, "negative": negative}
    return _triplet("triplet_margin", tensors, lambda x, y: torch.pairwise_distance(x, y, p, eps), margin, swap, reduction, backend)


@register(
    "plain", formula="max(0, margin + d(a, p) - d(a, n))", source="torch.nn.functional.triplet_margin_with_distance_loss",
    operands={"anchor": "real", "positive": "real", "negative": "real"}, dims=(1, 3), torch="triplet_margin_with_distance_loss",
    params={"margin": (0.5, 4.0)}, choices={"swap": (False, True)},
)
def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Triplet loss with a distance of one's own. Drop-in for :func:`torch.nn.functional.triplet_margin_with_distance_loss`.

    .. math:: \ell = \max(0, \text{margin} + d(a, p) - d(a, n))

    Args:
        anchor: float32, float64, bfloat16 or float16, any strides.
        positive: of `anchor`'s shape, or one that the distance takes with it.
        negative: likewise.
        distance_function: d, of two tensors, which come in the dtype that sums are kept in (float32 for half precision). Default:
            :func:`torch.pairwise_distance`.
        margin: positive. Default: 1.
        swap: whether the distance of positive and negative counts instead of the anchor's where it is smaller.
        reduction: ``"none"``: a loss for each triplet; ``"mean"`` or ``"sum"`` over them.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - anchor, positive, negative: :math:`(N, D)` or :math:`(\dots, D)`
        - loss: scalar, or what the distance gives for ``reduction="none"``

    Raises:
        As :func:`fastloss.functional.triplet_margin_loss`.

    Source:
        torch.nn.functional.triplet_margin_with_distance_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> far = lambda x, y: (x - y).abs().amax(-1)
        >>> F.triplet_margin_with_distance_loss(
        ...     torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]), distance_function=far)
        tensor(3.)
    """
    if has_torch_function_variadic(anchor, positive, negative):
        return overridden("triplet_margin_with_distance", locals(), (anchor, positive, negative))
    tensors = {"anchor": anchor, "positive": positive, "negative": negative}
    distance = torch.pairwise_distance if distance_function is None else distance_function
    return _triplet("triplet_margin_with_distance", tensors, distance, margin, swap, reduction, backend)


@register(
    "plain", formula="1 - cos(x1, x2) where y = 1, max(0, cos(x1, x2) - margin) where y = -1",
    source="torch.nn.functional.cosine_embedding_loss", operands={"input1": "real", "input2": "real", "target": "row sign"}, dims=(1, 2),
    torch="cosine_embedding_loss", params={"margin": (-0.5, 0.5)},
)
def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Cosine distance of labelled pairs. Drop-in for :func:`torch.nn.functional.cosine_embedding_loss`.

    .. math:: \ell = \begin{cases} 1 - c & y = 1 \\ \max(0, c - \text{margin}) & y = -1 \end{cases}, \qquad
        c = \frac{x_1 \cdot x_2}{\sqrt{\|x_1\|^2 + 10^{-12}} \sqrt{\|x_2\|^2 + 10^{-12}}}

    Args:
        input1: float32, float64, bfloat16 or float16, any strides.
        input2: the embedding to compare each with; broadcasts with `input1`.
        target: 1 for pairs that belong together, -1 for others; other numbers give 0.
        margin: the cosine up to which others cost nothing, between -1 and 1. Default: 0.
        size_average, reduce: deprecated, as in torch.
        reduction: ``"none"``: a loss for each pair; ``"mean"`` or ``"sum"`` over them.
        backend: as for :func:`fastloss.functional.cross_entropy`; the loss is plain torch on every one.

    Shape:
        - input1, input2: :math:`(N, D)` or :math:`(D)`
        - target: :math:`(N)` or :math:`()`
        - loss: scalar, or the target's shape for ``reduction="none"``

    Raises:
        RuntimeError: shapes do not fit; tensors are on several devices.
        ValueError: unknown reduction or backend.
        TypeError: an argument is not a tensor.
        NotImplementedError: `input1` is not floating point.

    Source:
        torch.nn.functional.cosine_embedding_loss.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> u, v = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [3.0, 4.0]])
        >>> F.cosine_embedding_loss(u, v, torch.tensor([1, -1]), reduction="none")
        tensor([0.4000, 0.6000])
    """
    if has_torch_function_variadic(input1, input2, target):
        return overridden("cosine_embedding", locals(), (input1, input2, target))
    name = "cosine_embedding"
    reduction = _checks.reduction_from_legacy(size_average, reduce, reduction)
    if not isinstance(input2, Tensor):
        raise TypeError(f"{name}: input2 must be a Tensor, got {type(input2).__name__}")
    dtype, (x, y) = widened(name, {"input1": input1, "input2": input2}, backend, reduction)
    if not isinstance(target, Tensor):
        raise TypeError(f"{name}: target must be a Tensor, got {type(target).__name__}")
    if target.device != x.device:
        raise RuntimeError(f"{name}: expected all tensors on one device, but input1 is on {x.device} and target on {target.device}")
    if target.dim() > 1:
        raise RuntimeError(f"{name}: 0D or 1D target tensor expected, multi-target not supported, got {tuple(target.shape)}")
    if x.dim() != target.dim() + 1 or y.dim() != target.dim() + 1:
        raise RuntimeError(
            f"{name}: {target.dim()}D target tensor expects {target.dim() + 1}D input tensors, "
            f"but found {tuple(input1.shape)} and {tuple(input2.shape)}"
        )
    length = [torch.sqrt(t.square().sum(-1) + 1e-12) for t in (x, y)]
    cosine = (x * y).sum(-1) / (length[0] * length[1])
    rows = torch.where(target == 1, 1 - cosine, torch.where(target == -1, (cosine - margin).clamp_min(0), 0.0))
    return reduced(rows, reduction, dtype)
