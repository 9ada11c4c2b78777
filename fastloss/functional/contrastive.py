"""Contrastive losses: the pairs that belong together against all others of the batch, on the `pair` engine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..engine import over_group, overridden
from ..pair import Scores, Term, normalised, pair_statistics, softplus
from ..pair_sum import pair_sum
from ..plain import reduced, same_shape, widened
from ..registry import register

__all__ = ["clip_loss", "dcl_loss", "info_nce_loss", "koleo_loss", "nt_xent_loss", "siglip_loss", "sup_con_loss"]

def embeddings_of(
    name: str, sets: Mapping[str, Tensor], backend: str | None, reduction: str, more: Mapping[str, Tensor | None] | None = None
) -> tuple[torch.dtype, list[Tensor]]:
    """Check sets (N, D) of one shape; gives the dtype of the result, and the sets and `more` in the dtype that sums are kept in."""
    for argument, x in sets.items():
        if isinstance(x, Tensor) and x.dim() != 2:
            raise ValueError(f"{name}: {argument} must be (N, D), got {tuple(x.shape)}")
    same_shape(name, sets)
    return widened(name, {**sets, **(more or {})}, backend, reduction)


def factor(name: str, argument: str, value: Tensor | float, like: Tensor, positive: bool = True) -> Tensor | float:
    """A factor that may be learned: a number, or a tensor of one, whose value is not looked at, in the dtype of `like`."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name}: {argument} must be a number or a tensor of one number, got {tuple(value.shape)}")
        return value.reshape(()).to(like.dtype)
    if positive:
        _checks.positive(name, argument, value)
    return float(value)


def tempered(name: str, x: Tensor, temperature: Tensor | float, power: float = 1.0) -> tuple[Tensor, float]:
    """A set and the factor on its products, which together divide those by the temperature; one that is learned goes into the set.

    `power` is 1 for one of two sets, 1/2 for a set that is compared with itself.
    """
    t = factor(name, "temperature", temperature, x)
    return (x / t**power, 1.0) if isinstance(t, Tensor) else (x, 1 / t)


def info_nce_sets(
    query: Tensor, key: Tensor, negatives: Tensor | None, negative_mode: str, reduction: str, backend: str | None
) -> tuple[torch.dtype, list[Tensor]]:
    """As :func:`embeddings_of`, of queries, keys and negatives."""
    name = "info_nce"
    if negative_mode not in ("unpaired", "paired"):
        raise ValueError(f"{name}: unknown negative_mode {negative_mode!r}; wanted 'unpaired' or 'paired'")
    paired = negative_mode == "paired"
    if isinstance(negatives, Tensor) and isinstance(query, Tensor) and query.dim() == 2:
        wanted = (query.shape[0], "K", query.shape[1]) if paired else ("M", query.shape[1])
        if negatives.dim() != len(wanted) or any(type(n) is not str and n != m for n, m in zip(wanted, negatives.shape)):
            shape = ", ".join(map(str, wanted))
            raise ValueError(f"{name}: {negative_mode} negatives must be ({shape}), got {tuple(negatives.shape)}")
    return embeddings_of(name, {"query": query, "key": key}, backend, reduction, {"negatives": negatives})


@register(
    "pair", formula="log(1 + sum_j exp((q n_j - q k) / T)), cosines", source="van den Oord et al. 2018, equation 4",
    operands={"query": "rows", "key": "rows", "negatives": "negatives"}, optional=True, forward=("negatives",),
    params={"temperature": (0.05, 1.0)}, choices={"negative_mode": ("unpaired", "paired")},
)
def info_nce_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    negative_mode: str = "unpaired",
    reduction: str = "mean",
    *,
    group: object = None,
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE: how likely a query picks its key out of it and negatives, by cosine similarity.

    .. math:: \ell_i = -\log \frac{e^{s(q_i, k_i)}}{e^{s(q_i, k_i)} + \sum_n e^{s(q_i, n)}}, \qquad
        s(x, y) = \frac{x \cdot y}{T \max(\|x\|, 10^{-12}) \max(\|y\|, 10^{-12})}

    The negatives n are the keys of the other queries; or, where `negatives` are given, these and no keys: the same for every query
    (``"unpaired"``), or each query's own (``"paired"``). No score matrix is stored, so memory is :math:`O((N + M) D)`.

    Args:
        query: float32, float64, bfloat16 or float16, any strides.
        key: the positive of each query.
        negatives: None for the other keys. No negatives at all give 0.
        temperature: :math:`T`, positive; a number, or a tensor of one number, which gets a gradient. Default: 0.07.
        negative_mode: ``"unpaired"`` or ``"paired"``. Default: ``"unpaired"``.
        reduction: ``"none"``: a loss for each query; ``"mean"`` or ``"sum"`` over them.
        group: processes whose batches are one, in the order of their ranks: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension, or a
            mesh and a dimension; None for this process alone. Every process gets the loss of all, and the gradient of its rows, and of
            shared factors the whole one; ``"none"`` gives the losses of this process's rows. See :mod:`fastloss.distributed`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - query, key: :math:`(N, D)`
        - negatives: :math:`(M, D)`, paired :math:`(N, K, D)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit; `temperature` is not positive; unknown mode, reduction or backend.
        TypeError: an argument is not a tensor.
        NotImplementedError: `query` is not floating point.
        RuntimeError: tensors are on several devices, or the backend cannot run here.

    Source:
        van den Oord, Li and Vinyals 2018, "Representation learning with contrastive predictive coding", equation 4.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> q, k = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> F.info_nce_loss(q, k, temperature=1.0)
        tensor(0.3133)
    """
    if has_torch_function_variadic(query, key, negatives, temperature):
        return overridden("info_nce", locals(), (query, key, negatives))
    if group is not None:
        return over_group("contrastive", "info_nce", group, query, key, negatives, temperature, negative_mode, reduction, backend)
    name = "info_nce"
    dtype, (q, k, n) = info_nce_sets(query, key, negatives, negative_mode, reduction, backend)
    if n is None:
        t = factor(name, "temperature", temperature, q)
        learned = isinstance(t, Tensor)
        scores = Scores(normalised(q) / t, normalised(k)) if learned else Scores(q, k, scale=1 / t, unit=True)
        row = torch.arange(len(q), dtype=q.dtype, device=q.device)
        negative, own = pair_statistics(
            name, scores, [Term("lse", "negative"), Term("sum", "positive")], labels=(row, row), backend=backend
        )
        return reduced(softplus(negative.value - own.value), reduction, dtype)
    (q, scale), k = tempered(name, normalised(q), temperature), normalised(k)
    positive = (q * k).sum(1) * scale
    if negative_mode == "paired":
        others = torch.logsumexp(scale * (q.unsqueeze(1) * normalised(n.flatten(0, 1)).view(n.shape)).sum(2), 1)
    else:
        others = pair_statistics(name, Scores(q, normalised(n), scale=scale), [Term("lse")], backend=backend)[0].value
    return reduced(softplus(others - positive), reduction, dtype)


@register(
    "pair", formula="lse_(k != i) s_ik - s_i,pair(i), cosines / T of both views", source="Chen et al. 2020 (SimCLR), equation 1",
    operands={"z1": "rows", "z2": "rows"}, params={"temperature": (0.05, 1.0)},
)
def nt_xent_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.5,
    reduction: str = "mean",
    *,
    group: object = None,
    backend: str | None = None,
) -> Tensor:
    r"""NT-Xent, SimCLR's loss: each of 2N views has to find its twin among all others, by cosine similarity.

    With :math:`z` the rows of both views, normalised, and :math:`s_{ij} = z_i \cdot z_j / T`,

    .. math:: \ell_i = \log \sum_{k \ne i} e^{s_{ik}} - s_{i, \text{pair}(i)}

    The scores are symmetric and never stored; each pair is computed once forward.

    Args:
        z1: the first view; float32, float64, bfloat16 or float16, any strides.
        z2: the second view of the same samples.
        temperature: :math:`T`, positive; a number, or a tensor of one number, which gets a gradient. Default: 0.5.
        reduction: ``"none"``: a loss for each view, first those of `z1`; ``"mean"`` or ``"sum"`` over them.
        group: processes whose batches are one, in the order of their ranks: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension, or a
            mesh and a dimension; None for this process alone. Every process gets the loss of all, and the gradient of its rows, and of
            shared factors the whole one; ``"none"`` gives the losses of this process's rows. See :mod:`fastloss.distributed`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - z1, z2: :math:`(N, D)`
        - loss: scalar, or :math:`(2N)` for ``reduction="none"``; 0 of a single sample

    Raises:
        ValueError: shapes differ or are not :math:`(N, D)`. Otherwise as :func:`fastloss.functional.info_nce_loss`.

    Source:
        Chen, Kornblith, Norouzi and Hinton 2020 (SimCLR), equation 1.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.nt_xent_loss(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor(0.5514)
    """
    if has_torch_function_variadic(z1, z2, temperature):
        return overridden("nt_xent", locals(), (z1, z2))
    if group is not None:
        return over_group("contrastive", "nt_xent", group, z1, z2, temperature, reduction, backend)
    name = "nt_xent"
    dtype, views = embeddings_of(name, {"z1": z1, "z2": z2}, backend, reduction)
    z, scale = tempered(name, normalised(torch.cat(views)), temperature, 0.5)
    twin = (z[: len(views[0])] * z[len(views[0]) :]).sum(1) * scale
    lse = pair_statistics(name, Scores(z, scale=scale), [Term("lse")], skip=0, backend=backend)[0].value
    return reduced(lse - torch.cat([twin, twin]), reduction, dtype)


def clip_rows(
    rows: Tensor, columns: Tensor, logit_scale: Tensor | float, offset: int = 0, backend: str | None = None
) -> Tensor:
    """``lse_j s_ij - s_i(i + offset)`` of rows (N, D) and columns (M, D): what each process has of a loss over several."""
    _, (x, y) = widened("clip", {"rows": rows, "columns": columns}, backend)
    x = x * factor("clip", "logit_scale", logit_scale, x)
    others = pair_statistics("clip", Scores(x, y), [Term("lse")], skip=offset, backend=backend)[0].value
    return softplus(others - (x * y[offset : offset + len(x)]).sum(1))


@register(
    "pair", formula="(lse_j s_ij + lse_j s_ji) / 2 - s_ii, s = scale a b", source="Radford et al. 2021 (CLIP), figure 3",
    operands={"image": "unit", "text": "unit", "logit_scale": "scale", "logit_bias": "bias"}, optional=True,
    forward=("logit_scale", "logit_bias"),
)
def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    reduction: str = "mean",
    *,
    group: object = None,
    backend: str | None = None,
) -> Tensor:
    r"""CLIP's symmetric contrastive loss of images and their texts.

    With :math:`s_{ij} = \text{scale} \, x_i \cdot t_j`,

    .. math:: \ell_i = \tfrac12 \left(\log \sum_j e^{s_{ij}} - s_{ii}\right) + \tfrac12 \left(\log \sum_j e^{s_{ji}} - s_{ii}\right)

    Both log-sum-exps come from one sweep over scores that are never stored; memory is :math:`O(N D)`.

    Args:
        image: features, already normalised; float32, float64, bfloat16 or float16, any strides.
        text: features of the text of each image.
        logit_scale: the inverse temperature, already exponentiated, positive; a tensor of one number gets a gradient.
        logit_bias: added to all scores, which changes nothing; its gradient is 0.
        reduction: ``"none"``: a loss for each pair; ``"mean"`` or ``"sum"`` over them.
        group: processes whose batches are one, in the order of their ranks: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension, or a
            mesh and a dimension; None for this process alone. Every process gets the loss of all, and the gradient of its rows, and of
            shared factors the whole one; ``"none"`` gives the losses of this process's rows. See :mod:`fastloss.distributed`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - image, text: :math:`(N, D)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``; 0 of a single pair

    Raises:
        ValueError: shapes differ or are not :math:`(N, D)`; `logit_scale` is a number that is not positive. Otherwise as
            :func:`fastloss.functional.info_nce_loss`.

    Source:
        Radford et al. 2021 (CLIP), figure 3.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.clip_loss(torch.eye(2), torch.eye(2), 10.0)
        tensor(4.5399e-05)
    """
    if has_torch_function_variadic(image, text, logit_scale, logit_bias):
        return overridden("clip", locals(), (image, text))
    if group is not None:
        return over_group("contrastive", "clip", group, image, text, logit_scale, logit_bias, reduction, backend)
    name = "clip"
    dtype, (x, t) = embeddings_of(name, {"image": image, "text": text}, backend, reduction)
    x = x * factor(name, "logit_scale", logit_scale, t)
    matched = (x * t).sum(1)
    row, column = pair_statistics(name, Scores(x, t), [Term("lse"), Term("lse", side="column")], skip=0, backend=backend)
    rows = 0.5 * (softplus(row.value - matched) + softplus(column.value - matched))
    if logit_bias is not None:
        rows = rows + 0.0 * factor(name, "logit_bias", logit_bias, t, positive=False)
    return reduced(rows, reduction, dtype)


def siglip_reduction(name: str, reduction: str) -> None:
    """Raise for one that there is not."""
    if reduction not in ("batch_sum", "mean", "sum", "none"):
        raise ValueError(f"{name}: {reduction!r} is not a valid value for reduction; wanted 'batch_sum', 'mean', 'sum' or 'none'")


_OTHERS = Term("sum", functor="softplus")  # of a row of SigLIP all pairs but its own


def siglip_rows(
    a: Tensor, b: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float | None, offset: int = 0, backend: str | None = None
) -> Tensor:
    """The losses of rows `a` (N, D) of which i belongs to i + offset of `b` (M, D), in the dtype that sums are kept in."""
    scores, matched = _siglip_scores(a, b, logit_scale, logit_bias, offset, backend)
    return pair_statistics("siglip", scores, [_OTHERS], skip=offset, backend=backend)[0].value + softplus(-matched)


def _siglip_scores(
    a: Tensor, b: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float | None, offset: int, backend: str | None
) -> tuple[Scores, Tensor]:
    """The logits of all pairs, and those of the pairs that belong together."""
    _, (x, y) = widened("siglip", {"a": a, "b": b}, backend)
    x = x * factor("siglip", "logit_scale", logit_scale, x)
    matched, bias = (x * y[offset : offset + len(x)]).sum(1), None
    if logit_bias is not None:
        bias = torch.as_tensor(factor("siglip", "logit_bias", logit_bias, x, positive=False), dtype=x.dtype, device=x.device)
        bias = bias.expand(len(x))
        matched = matched + bias
    return Scores(x, y, bias), matched


@register(
    "pair", formula="sum_j log(1 + exp(-y_ij (scale a_i b_j + bias))), y_ii = 1, else -1", source="Zhai et al. 2023 (SigLIP), equation 1",
    operands={"a": "unit", "b": "unit", "logit_scale": "scale", "logit_bias": "bias"}, forward=("logit_scale", "logit_bias"),
)
def siglip_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None,
    reduction: str = "batch_sum",
    *,
    group: object = None,
    backend: str | None = None,
) -> Tensor:
    r"""SigLIP's pairwise sigmoid loss: each pair of an image and a text is a binary decision.

    With :math:`z_{ij} = \text{scale} \, a_i \cdot b_j + \text{bias}`,

    .. math:: \ell_i = \log(1 + e^{-z_{ii}}) + \sum_{j \ne i} \log(1 + e^{z_{ij}})

    Args:
        a: features, already normalised; float32, float64, bfloat16 or float16, any strides.
        b: the features that belong to them.
        logit_scale: positive, already exponentiated; a tensor of one number gets a gradient. Training starts from 10.
        logit_bias: None for 0; a tensor of one number gets a gradient. Training starts from -10.
        reduction: ``"batch_sum"``: the sum over all pairs, divided by the number of rows; ``"mean"``: over all pairs; ``"sum"``;
            ``"none"``: a loss for each row. Default: ``"batch_sum"``.
        group: processes whose batches are one, in the order of their ranks: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension, or a
            mesh and a dimension; None for this process alone. Every process gets the loss of all, and the gradient of its rows, and of
            shared factors the whole one; ``"none"`` gives the losses of this process's rows. See :mod:`fastloss.distributed`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - a, b: :math:`(N, D)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: shapes differ or are not :math:`(N, D)`; `logit_scale` is a number that is not positive. Otherwise as
            :func:`fastloss.functional.info_nce_loss`.

    Source:
        Zhai, Mustafa, Kolesnikov and Beyer 2023 (SigLIP), equation 1.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.siglip_loss(torch.eye(2), torch.eye(2), 10.0, -5.0)
        tensor(0.0134)
    """
    if has_torch_function_variadic(a, b, logit_scale, logit_bias):
        return overridden("siglip", locals(), (a, b))
    if group is not None:
        return over_group("contrastive", "siglip", group, a, b, logit_scale, logit_bias, reduction, backend)
    name = "siglip"
    siglip_reduction(name, reduction)
    dtype, (x, y) = embeddings_of(name, {"a": a, "b": b}, backend, "none")
    if reduction == "none" or not len(x):
        return reduced(siglip_rows(x, y, logit_scale, logit_bias, 0, backend), "mean" if reduction == "batch_sum" else reduction, dtype)
    scores, matched = _siglip_scores(x, y, logit_scale, logit_bias, 0, backend)
    each = len(x) ** -{"sum": 0.0, "batch_sum": 1.0, "mean": 2.0}[reduction]
    others, _ = pair_sum(name, scores, [_OTHERS], [matched.new_full((len(x),), each)], skip=0, backend=backend)
    return (others + each * softplus(-matched).sum()).to(dtype)


@register(
    "pair", formula="lse_(k != i) s_ik - mean of s_ij over j of i's label, cosines / T", source="Khosla et al. 2020 (SupCon), equation 2",
    operands={"embeddings": "rows", "labels": "labels"}, params={"temperature": (0.05, 1.0)},
)
def sup_con_loss(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    *,
    group: object = None,
    backend: str | None = None,
) -> Tensor:
    r"""Supervised contrastive loss: every sample of the same label is a positive.

    With :math:`s_{ij}` the cosine similarity divided by :math:`T`, and :math:`P(i)` the other samples of i's label,

    .. math:: \ell_i = \log \sum_{k \ne i} e^{s_{ik}} - \frac{1}{|P(i)|} \sum_{j \in P(i)} s_{ij}

    Args:
        embeddings: float32, float64, bfloat16 or float16, any strides.
        labels: of each embedding; any dtype, compared for equality.
        temperature: :math:`T`, positive; a number, or a tensor of one number, which gets a gradient. Default: 0.1.
        reduction: ``"none"``: a loss for each sample, 0 where no other has its label; ``"sum"``; ``"mean"`` over those that have a
            positive, 0 where none has.
        group: processes whose batches are one, in the order of their ranks: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension, or a
            mesh and a dimension; None for this process alone. Every process gets the loss of all, and the gradient of its rows, and of
            shared factors the whole one; ``"none"`` gives the losses of this process's rows. See :mod:`fastloss.distributed`.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - embeddings: :math:`(N, D)`
        - labels: :math:`(N)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: `embeddings` are not :math:`(N, D)`, or `labels` not :math:`(N)`. Otherwise as
            :func:`fastloss.functional.info_nce_loss`.

    Source:
        Khosla et al. 2020 (SupCon), equation 2.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.sup_con_loss(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]), temperature=1.0)
        tensor(0.3133)
    """
    if has_torch_function_variadic(embeddings, labels, temperature):
        return overridden("sup_con", locals(), (embeddings, labels))
    if group is not None:
        return over_group("contrastive", "sup_con", group, embeddings, labels, temperature, reduction, backend)
    name = "sup_con"
    dtype, (x,) = embeddings_of(name, {"embeddings": embeddings}, backend, reduction)
    one_label_a_row(name, labels, x)
    x, scale = tempered(name, normalised(x), temperature, 0.5)
    lse, same = pair_statistics(
        name, Scores(x, scale=scale), [Term("lse"), Term("sum", "positive")], labels=(labels, None), skip=0, backend=backend
    )
    counts = same.count > 0
    rows = torch.where(counts, torch.where(counts, lse.value, 0.0) - same.value / same.count.clamp_min(1), 0.0)
    if reduction == "mean":
        return (rows.sum() / counts.sum().clamp_min(1)).to(dtype)
    return reduced(rows, reduction, dtype)


def one_label_a_row(name: str, labels: Tensor, rows: Tensor) -> None:
    """Raise unless there is a label for each row, on the same device."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: labels must be a Tensor, got {type(labels).__name__}")
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"{name}: labels must be ({rows.shape[0]},), got {tuple(labels.shape)}")
    if labels.device != rows.device:
        raise RuntimeError(f"{name}: expected all tensors on one device, but embeddings is on {rows.device} and labels on {labels.device}")


@register(
    "pair", formula="log sum_(j != i) exp(s_ij) over both views - s_i,pair(i), cosines / T", source="Yeh et al. 2022 (DCL), equation 6",
    operands={"z1": "batch", "z2": "batch"}, params={"temperature": (0.05, 1.0)},
    choices={"denominator": ("joint", "split"), "sigma": (None, 0.5)},
)
def dcl_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.1,
    sigma: float | None = None,
    denominator: str = "joint",
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Decoupled contrastive loss: NT-Xent without the positive in the denominator, so that small batches learn as well.

    With :math:`s_{ij}` the cosine similarity of view i and view j divided by :math:`T`, over the views of other samples,

    .. math:: \ell_i = \log \sum_{j \notin \{i, \text{pair}(i)\}} e^{s_{ij}} - w_i s_{i, \text{pair}(i)}

    Args:
        z1: the first view; float32, float64, bfloat16 or float16, any strides.
        z2: the second view of the same samples.
        temperature: :math:`T`, positive; a number, or a tensor of one number, which gets a gradient. Default: 0.1.
        sigma: None for weights :math:`w = 1`; else :math:`w_i = 2 - N \operatorname{softmax}_i(c_i / \sigma)` with :math:`c_i` the
            cosine of sample i's views, without a gradient. Default: None.
        denominator: ``"joint"``: one logarithm over both views of the other samples; ``"split"``: the sum of one for each view.
        reduction: ``"none"``: a loss for each view, first those of `z1`; ``"mean"`` or ``"sum"`` over them.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - z1, z2: :math:`(N, D)` with N > 1
        - loss: scalar, or :math:`(2N)` for ``reduction="none"``

    Raises:
        ValueError: shapes differ, are not :math:`(N, D)` or have less than two rows, which have no negatives; `sigma` is not positive;
            `denominator` is unknown. Otherwise as :func:`fastloss.functional.info_nce_loss`.

    Source:
        Yeh et al. 2022, "Decoupled contrastive learning", equation 6; the weights: section 3.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.dcl_loss(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor(-0.3069)
    """
    if has_torch_function_variadic(z1, z2, temperature):
        return overridden("dcl", locals(), (z1, z2))
    name = "dcl"
    if denominator not in ("joint", "split"):
        raise ValueError(f"{name}: unknown denominator {denominator!r}; wanted 'joint' or 'split'")
    if sigma is not None:
        _checks.positive(name, "sigma", sigma)
    dtype, views = embeddings_of(name, {"z1": z1, "z2": z2}, backend, reduction)
    count = len(views[0])
    if count < 2:
        raise ValueError(f"{name}: wanted at least 2 samples, since the negatives of one are the others, got {count}")
    z, scale = tempered(name, normalised(torch.cat(views)), temperature, 0.5)
    first, second = z[:count], z[count:]
    twin = (first * second).sum(1) * scale
    if sigma is not None:
        cosine = twin.detach() * (temperature.detach() if isinstance(temperature, Tensor) else temperature)
        twin = twin * (2 - count * torch.softmax(cosine / sigma, 0))
    lse = Term("lse")
    if denominator == "joint":
        sample = (torch.arange(count, device=z.device).repeat(2), None)
        others = pair_statistics(name, Scores(z, scale=scale), [Term("lse", "negative")], labels=sample, backend=backend)[0].value
    else:
        sides = [lse, Term("lse", side="column")]
        across = pair_statistics(name, Scores(first, second, scale=scale), sides, skip=0, backend=backend)
        within = [pair_statistics(name, Scores(x, scale=scale), [lse], skip=0, backend=backend)[0].value for x in (first, second)]
        others = torch.cat([a.value + w for a, w in zip(across, within)])
    return reduced(others - torch.cat([twin, twin]), reduction, dtype)


@register(
    "pair", formula="-log(|u_i - u_j| + eps), j the nearest other row, u = x / |x|", source="Sablayrolles et al. 2019, equation 2",
    operands={"embeddings": "rows"},
)
def koleo_loss(embeddings: Tensor, eps: float = 1e-8, reduction: str = "mean", *, backend: str | None = None) -> Tensor:
    r"""KoLeo: rewards the distance of each embedding to its nearest neighbour, so that they spread over the sphere.

    .. math:: \ell_i = -\log\left(\min_{j \ne i} \|u_i - u_j\| + \epsilon\right), \qquad u_i = \frac{x_i}{\max(\|x_i\|, \epsilon)}

    The neighbour is found by the largest cosine, the first of equal ones, and the distance is that of the two rows themselves, so that it
    is exact for rows that nearly coincide. Rows at distance 0 have a gradient of 0.

    Args:
        embeddings: float32, float64, bfloat16 or float16, any strides.
        eps: positive. Default: 1e-8.
        reduction: ``"none"``: a loss for each row; ``"mean"`` or ``"sum"`` over them.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - embeddings: :math:`(N, D)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``; 0 of a single row

    Raises:
        ValueError: `embeddings` are not :math:`(N, D)`; `eps` is not positive. Otherwise as :func:`fastloss.functional.info_nce_loss`.

    Source:
        Sablayrolles, Douze, Schmid and Jegou 2019, "Spreading vectors for similarity search", equation 2; Oquab et al. 2023 (DINOv2).

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.koleo_loss(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, -3.0]]))
        tensor(-0.3466)
    """
    if has_torch_function_variadic(embeddings):
        return overridden("koleo", locals(), (embeddings,))
    name = "koleo"
    _checks.positive(name, "eps", eps)
    dtype, (x,) = embeddings_of(name, {"embeddings": embeddings}, backend, reduction)
    x = normalised(x, eps)
    nearest = pair_statistics(name, Scores(x.detach()), [Term("max")], skip=0, backend=backend)[0].count
    square = (x - x[nearest.clamp_min(0).long()]).square().sum(1)
    apart = square > 0
    distance = torch.where(apart, torch.sqrt(torch.where(apart, square, 1.0)), 0.0)
    return reduced(torch.where(nearest < 0, 0.0, -torch.log(distance + eps)), reduction, dtype)
