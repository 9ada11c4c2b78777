"""Ranking losses: queries and documents, anchors and their hardest positives and negatives. On the `pair` engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _checks
from ..engine import overridden
from ..pair import Scores, Term, euclidean, normalised, pair_statistics, softplus
from ..plain import reduced
from ..registry import register
from .contrastive import embeddings_of, factor, one_label_a_row

__all__ = ["batch_hard_triplet_loss", "multiple_negatives_ranking_loss"]

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")


@register(
    "pair", formula="lse over documents and other blocks - scale cos(q_i, p_i)",
    source="Henderson et al. 2017, section 4; Li et al. 2023 (GTE), section 3.3",
    operands={"queries": "rows", "documents": "rows", "negatives": "each"}, optional=True, forward=("negatives",),
    params={"scale": (1.0, 20.0), "hardness_strength": (0.0, 4.0)},
    choices={
        "directions": (("query_to_doc",), ("query_to_doc", "doc_to_query"), DIRECTIONS, ("query_to_doc", "doc_to_doc")),
        "partition_mode": ("joint", "per_direction"), "hardness_mode": (None, *HARDNESS), "similarity": ("cosine", "dot"),
    },
)
def multiple_negatives_ranking_loss(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | Sequence[Tensor] | None = None,
    scale: float | Tensor = 20.0,
    directions: Sequence[str] = ("query_to_doc",),
    partition_mode: str = "joint",
    hardness_mode: str | None = None,
    hardness_strength: float = 0.0,
    reduction: str = "mean",
    *,
    similarity: str = "cosine",
    backend: str | None = None,
) -> Tensor:
    r"""Multiple negatives ranking loss: each query has to find its document among those of all queries and explicit negatives.

    With documents :math:`d = (p, n_1, \dots, n_h)`, the similarity f and :math:`s_{xy} = \kappa f(x, y)`,

    .. math:: \ell_i = Z_i - s_{q_i p_i}, \qquad Z_i = \log \sum_{\text{blocks}} \sum e^s

    where each direction adds a block of scores to the partition: ``query_to_doc`` :math:`s_{q_i d_c}` of all documents,
    ``query_to_query`` :math:`s_{q_i q_j}` of other queries, ``doc_to_query`` :math:`s_{q_j p_i}` of all queries, ``doc_to_doc``
    :math:`s_{p_i d_c}` of the documents of other queries. Defaults are InfoNCE; with ``doc_to_query`` and ``"per_direction"`` the loss is
    CLIP's; with all four it is GTE's.

    Args:
        queries: float32, float64, bfloat16 or float16, any strides.
        documents: the positive of each query.
        negatives: explicit negatives of each query, one tensor for all, or a list with a tensor for each of them. Default: None.
        scale: :math:`\kappa`, positive, an inverse temperature; a tensor of one number gets a gradient. Default: 20.
        directions: of the four above, ``"query_to_doc"`` among them.
        partition_mode: ``"joint"``: one logarithm over all blocks; ``"per_direction"``: the mean of that of ``query_to_doc`` and that of
            ``doc_to_query``, the only ones that are allowed then.
        hardness_mode: which negatives of ``query_to_doc`` weigh more the more similar they are: ``"in_batch_negatives"`` (documents of
            other queries), ``"hard_negatives"`` (the explicit negatives of the query itself) or ``"all_negatives"``. Default: None.
        hardness_strength: :math:`\alpha \ge 0`; adds :math:`\alpha f`, without a gradient, to their scores. Default: 0.
        reduction: ``"none"``: a loss for each query; ``"mean"`` or ``"sum"`` over them.
        similarity: f: ``"cosine"`` or ``"dot"``. Default: ``"cosine"``.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - queries, documents: :math:`(N, D)`
        - negatives: :math:`(N, h, D)`, or h tensors :math:`(N, D)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: shapes do not fit; an option is unknown or out of its range; directions without ``query_to_doc``, or with others than
            ``doc_to_query`` per direction. Otherwise as :func:`fastloss.functional.info_nce_loss`.

    Source:
        Henderson et al. 2017, section 4; blocks: Li et al. 2023 (GTE), section 3.3; hardness: Lan et al. 2025 (LLaVE).

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.multiple_negatives_ranking_loss(torch.eye(2), torch.eye(2), scale=1.0)
        tensor(0.3133)
    """
    if has_torch_function_variadic(queries, documents, scale, *(negatives if isinstance(negatives, (list, tuple)) else (negatives,))):
        return overridden("multiple_negatives_ranking", locals(), (queries, documents))
    name = "multiple_negatives_ranking"
    _ranking_options(name, directions, partition_mode, hardness_mode, hardness_strength, similarity)
    own = None if negatives is None else _own_negatives(name, negatives, queries)
    dtype, (q, p, *rest) = embeddings_of(name, {"queries": queries, "documents": documents}, backend, reduction, {"negatives": own})
    unit = normalised if similarity == "cosine" else (lambda x: x)
    kappa, own, q, p = factor(name, "scale", scale, q), rest[0], unit(q), unit(p)
    every, copies = p, 1
    if own is not None:
        copies += own.shape[1]
        own = unit(own.flatten(0, 1)).unflatten(0, own.shape[:2])
        every = torch.cat([p, own.transpose(0, 1).flatten(0, 1)])
    sample = torch.arange(len(q), device=q.device)
    other = {"labels": (sample, sample.repeat(copies)), "backend": backend}  # "negative" pairs are of a query and others' documents
    scaled = q * kappa
    matched = (scaled * p).sum(1)
    column = [Term("lse", side="column")] if "doc_to_query" in directions else []

    # The positives are left out of every sum (skip=0), so that the loss is log(1 + exp(rest - matched)): exact where it is small.
    if hardness_mode is None or not hardness_strength:
        found = pair_statistics(name, Scores(scaled, every), [Term("lse"), *column], skip=0, backend=backend)
        blocks, back = [found[0].value], [f.value[: len(q)] for f in found[1:]]
    else:
        left, right = scaled, every
        if hardness_mode != "hard_negatives":
            # (kappa + alpha) f with the gradient of kappa f: alpha's part reaches neither the queries nor, by this factor, the documents.
            left = scaled + hardness_strength * q.detach()
            share = kappa / (kappa + hardness_strength)
            right = every.detach() + (every - every.detach()) * (share.detach() if isinstance(share, Tensor) else share)
        blocks = [pair_statistics(name, Scores(left, right), [Term("lse", "negative")], **other)[0].value]
        if own is not None:
            mine = (scaled.unsqueeze(1) * own).sum(2)
            if hardness_mode != "in_batch_negatives":
                mine = mine + hardness_strength * (q.unsqueeze(1) * own).sum(2).detach()
            blocks.append(torch.logsumexp(mine, 1))
        back = [f.value for f in pair_statistics(name, Scores(scaled, p), column, skip=0, backend=backend)] if column else []
    if partition_mode == "per_direction":
        lines = [softplus(_joined(block) - matched) for block in (blocks, *([line] for line in back))]
        return reduced(sum(lines) / len(lines), reduction, dtype)
    if back:
        blocks += [*back, matched]  # of a second block the positive is one among the others
    if "query_to_query" in directions:
        blocks.append(pair_statistics(name, Scores(q * kappa**0.5), [Term("lse")], skip=0, backend=backend)[0].value)
    if "doc_to_doc" in directions:
        blocks.append(pair_statistics(name, Scores(p * kappa, every), [Term("lse", "negative")], **other)[0].value)
    return reduced(softplus(_joined(blocks) - matched), reduction, dtype)


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    """The log-sum-exp of several sets from theirs, -inf where all are empty."""
    if len(blocks) == 1:
        return blocks[0]
    every = torch.stack(blocks, 1)
    some = (every > -torch.inf).any(1, keepdim=True)
    return torch.where(some.squeeze(1), torch.logsumexp(torch.where(some, every, 0.0), 1), -torch.inf)


def _ranking_options(
    name: str, directions: Sequence[str], partition_mode: str, hardness_mode: str | None, hardness_strength: float, similarity: str
) -> None:
    unknown = [d for d in directions if d not in DIRECTIONS] if not isinstance(directions, str) else [directions]
    if unknown or "query_to_doc" not in directions or len(set(directions)) != len(directions):
        raise ValueError(
            f"{name}: directions must be some of {', '.join(DIRECTIONS)}, query_to_doc among them, each once, got {directions}"
        )
    if partition_mode not in ("joint", "per_direction"):
        raise ValueError(f"{name}: unknown partition_mode {partition_mode!r}; wanted 'joint' or 'per_direction'")
    if partition_mode == "per_direction" and not set(directions) <= {"query_to_doc", "doc_to_query"}:
        raise ValueError(f"{name}: per_direction takes query_to_doc and doc_to_query only, got {directions}")
    if hardness_mode not in (None, *HARDNESS):
        raise ValueError(f"{name}: unknown hardness_mode {hardness_mode!r}; wanted None or one of {', '.join(HARDNESS)}")
    _checks.positive(name, "hardness_strength", hardness_strength, zero=True)
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"{name}: unknown similarity {similarity!r}; wanted 'cosine' or 'dot'")


def _own_negatives(name: str, negatives: Tensor | Sequence[Tensor], queries: Tensor) -> Tensor:
    """Explicit negatives as (N, h, D)."""
    if not isinstance(negatives, Tensor):
        for negative in negatives:
            if not isinstance(negative, Tensor):
                raise TypeError(f"{name}: negatives must be a Tensor or Tensors, got {type(negative).__name__}")
        shapes = {tuple(negative.shape) for negative in negatives}
        if len(shapes) != 1 or shapes != {tuple(queries.shape)}:
            raise ValueError(f"{name}: each of the negatives must be {tuple(queries.shape)}, got {sorted(shapes)}")
        negatives = torch.stack(list(negatives), 1)
    elif isinstance(queries, Tensor) and queries.dim() == 2:
        if negatives.dim() != 3 or negatives.shape[0] != queries.shape[0] or negatives.shape[2] != queries.shape[1]:
            raise ValueError(
                f"{name}: negatives must be (N, h, D) for queries of shape {tuple(queries.shape)}, got {tuple(negatives.shape)}"
            )
    return negatives


@register(
    "pair", formula="max(0, margin + max_p d(a, p) - min_n d(a, n))", source="Hermans et al. 2017, equation 5",
    operands={"embeddings": "rows", "labels": "labels"}, choices={"margin": (1.0, 5.0, None), "distance": ("euclidean", "cosine")},
)
def batch_hard_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    margin: float | None = 5.0,
    distance: str = "euclidean",
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Triplet loss of each anchor with its farthest positive and its nearest negative in the batch.

    .. math:: \ell_a = \max\left(0, \text{margin} + \max_p d(a, p) - \min_n d(a, n)\right)

    The two are found without a matrix of distances; theirs are then computed from the rows themselves, so that they are exact for rows that
    nearly coincide. Two rows that are the same have a gradient of 0.

    Args:
        embeddings: float32, float64, bfloat16 or float16, any strides.
        labels: of each embedding; any dtype, compared for equality.
        margin: at least 0; None for the soft margin :math:`\log(1 + e^x)` instead of :math:`\max(0, \text{margin} + x)`. Default: 5.
        distance: ``"euclidean"``, or ``"cosine"``: :math:`1 - \cos`. Default: ``"euclidean"``.
        reduction: ``"none"``: a loss for each anchor, 0 of one that lacks a positive or a negative; ``"mean"`` or ``"sum"`` over
            all of them.
        backend: as for :func:`fastloss.functional.cross_entropy`.

    Shape:
        - embeddings: :math:`(N, D)`
        - labels: :math:`(N)`
        - loss: scalar, or :math:`(N)` for ``reduction="none"``

    Raises:
        ValueError: `margin` is negative; unknown distance. Otherwise as :func:`fastloss.functional.sup_con_loss`.

    Source:
        Hermans, Beyer and Leibe 2017, "In defense of the triplet loss for person re-identification", equation 5.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> x = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
        >>> F.batch_hard_triplet_loss(x, torch.tensor([0, 0, 0, 1]), margin=5.0, reduction="none")
        tensor([0., 0., 1., 0.])
    """
    if has_torch_function_variadic(embeddings, labels):
        return overridden("batch_hard_triplet", locals(), (embeddings, labels))
    name = "batch_hard_triplet"
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"{name}: unknown distance {distance!r}; wanted 'euclidean' or 'cosine'")
    if margin is not None:
        _checks.positive(name, "margin", margin, zero=True)
    dtype, (x,) = embeddings_of(name, {"embeddings": embeddings}, backend, reduction)
    one_label_a_row(name, labels, x)
    sign, x = (1.0, x) if distance == "euclidean" else (-1.0, normalised(x))
    scores = euclidean(x.detach(), None, squared=True) if distance == "euclidean" else Scores(x.detach())
    terms = [Term("max", "positive", constants=(sign,)), Term("max", "negative", constants=(-sign,))]
    far, near = (f.count for f in pair_statistics(name, scores, terms, labels=(labels, None), skip=0, backend=backend))
    gap = _distance(x, x[far.clamp_min(0).long()], distance) - _distance(x, x[near.clamp_min(0).long()], distance)
    rows = softplus(gap) if margin is None else (margin + gap).clamp_min(0)
    return reduced(torch.where((far >= 0) & (near >= 0), rows, 0.0), reduction, dtype)


def _distance(x: Tensor, y: Tensor, distance: str) -> Tensor:
    square = (x - y).square().sum(1)
    if distance == "cosine":
        return 0.5 * square  # of rows of norm 1
    apart = square > 0
    return torch.where(apart, torch.sqrt(torch.where(apart, square, 1.0)), 0.0)
