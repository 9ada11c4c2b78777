"""Which pairs and triplets there are: from labels, from the indices that miners give, and from one form to the other.

Pairs are ``(a1, p, a2, n)``, triplets ``(a, p, n)``; anchors index embeddings, the others reference rows. Where ``ref_labels`` is the same
object as ``labels``, or None, a row is no partner of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IndicesTuple = Sequence[Tensor]


class Copies(NamedTuple):
    """In the place of an indices_tuple: all pairs by label, but not row i with its own copy, reference row ``i + offset``.

    Of a loss over a group, references that are `spread` lie on its processes one part after the other; others are the same on all.
    """

    offset: int
    spread: bool = False


def logsumexp(x: Tensor, keep_mask: Tensor | None = None, add_one: bool = True, dim: int = 1) -> Tensor:
    """The log of the sum of ``exp(x)`` along `dim`, which is kept; 0 where the mask keeps nothing.

    Args:
        x: exponents.
        keep_mask: of those that count, of x's shape; None for all.
        add_one: whether 1 is added to the sum.
        dim: the dimension.
    """
    keep = torch.ones_like(x, dtype=torch.bool) if keep_mask is None else keep_mask.bool()
    some = keep.any(dim, keepdim=True)
    x = torch.where(some, torch.where(keep, x, -torch.inf), 0.0)
    if add_one:
        x = torch.cat([x, torch.zeros_like(x.narrow(dim, 0, 1)) if x.shape[dim] else x.new_zeros(some.shape)], dim)
    return torch.where(some, torch.logsumexp(x, dim, keepdim=True), 0.0)


def meshgrid_from_sizes(x: Tensor, y: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Row and column numbers of a matrix as long as `x` and as wide as `y`."""
    return torch.meshgrid(torch.arange(x.size(dim), device=x.device), torch.arange(y.size(dim), device=x.device), indexing="ij")


def get_matches_and_diffs(labels: Tensor, ref_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """uint8 (N, M) matrices of equal and of different labels."""
    own = ref_labels is None or ref_labels is labels
    matches = (labels.unsqueeze(1) == (labels if own else ref_labels).unsqueeze(0)).byte()
    diffs = matches ^ 1
    return (matches.fill_diagonal_(0) if own else matches), diffs


def get_all_pairs_indices(labels: Tensor, ref_labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pairs, row by row."""
    matches, diffs = get_matches_and_diffs(labels, ref_labels)
    return *torch.where(matches), *torch.where(diffs)


def convert_to_pairs(indices_tuple: IndicesTuple | None, labels: Tensor | None, ref_labels: Tensor | None = None) -> IndicesTuple:
    """All pairs for None; pairs as they are; of triplets (a, p) and (a, n), each as often as it occurs."""
    if indices_tuple is None:
        return get_all_pairs_indices(labels, ref_labels)
    if len(indices_tuple) == 4:
        return indices_tuple
    a, p, n = indices_tuple
    return a, p, a, n


def pos_pairs_from_tuple(indices_tuple: IndicesTuple) -> IndicesTuple:
    """The positive pairs."""
    return tuple(indices_tuple[:2])


def neg_pairs_from_tuple(indices_tuple: IndicesTuple) -> IndicesTuple:
    """The negative pairs, of triplets those of the anchor."""
    return tuple(indices_tuple[2:]) if len(indices_tuple) == 4 else (indices_tuple[0], indices_tuple[2])


def get_anchors(indices_tuple: IndicesTuple) -> Tensor:
    """The anchors of triplets, or of positive and then of negative pairs."""
    return indices_tuple[0] if len(indices_tuple) == 3 else torch.cat([indices_tuple[0], indices_tuple[2]])


def convert_to_pos_pairs_with_unique_labels(indices_tuple: IndicesTuple | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each label, in order, its first positive pair."""
    if indices_tuple is None:
        ordered, order = labels.sort(stable=True)
        same = ordered[1:] == ordered[:-1]
        first = same.clone()
        first[1:] &= ~same[:-1]
        (begin,) = first.nonzero(as_tuple=True)
        return order[begin], order[begin + 1]
    a, p = convert_to_pairs(indices_tuple, labels)[:2]
    found, position = labels[a].unique(return_inverse=True)
    first = torch.full_like(found, len(a), dtype=torch.long)
    first.scatter_reduce_(0, position, torch.arange(len(a), device=a.device), "amin")
    return a[first], p[first]


def get_all_triplets_indices_vectorized_method(all_matches: Tensor, all_diffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All triplets, in order, by an (N, M, M) array."""
    return torch.where(all_matches.unsqueeze(2).bool() & all_diffs.unsqueeze(1).bool())


def get_all_triplets_indices_loop_method(labels: Tensor, all_matches: Tensor, all_diffs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All triplets, in order, from the pairs: as much memory as they take themselves."""
    a1, p = torch.where(all_matches)
    a2, n = torch.where(all_diffs)
    return _joined(a1, p, a2, n, len(all_matches))


def _joined(a1: Tensor, p: Tensor, a2: Tensor, n: Tensor, anchors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each positive pair with each negative one of its anchor, in the order of the lists."""
    order = a2.argsort(stable=True)
    number = torch.bincount(a2, minlength=anchors)
    begin = number.cumsum(0) - number
    repeats = number[a1]
    pair = torch.repeat_interleave(torch.arange(len(a1), device=a1.device), repeats)
    ends = repeats.cumsum(0)
    within = torch.arange(len(pair), device=a1.device) - (ends - repeats)[pair]
    return a1[pair], p[pair], n[order[begin[a1[pair]] + within]]


def get_all_triplets_indices(labels: Tensor, ref_labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """All triplets, ordered by anchor, positive and negative."""
    return get_all_triplets_indices_loop_method(labels, *get_matches_and_diffs(labels, ref_labels))


def get_random_triplet_indices(
    labels: Tensor, ref_labels: Tensor | None = None, t_per_anchor: int | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Triplets drawn with replacement, by the generator of the CPU.

    Args:
        labels: (N,).
        ref_labels: (M,), or None.
        t_per_anchor: how many an anchor gets; None for as many as reference rows share its label.
        weights: (N, M), how likely a negative is; None for all alike. An anchor without a positive weight takes any.

    Returns:
        Triplets, ordered by anchor; none for anchors without positives or negatives.
    """
    matches, diffs = get_matches_and_diffs(labels, ref_labels)
    positives, negatives = matches.sum(1), diffs.sum(1)
    own = ref_labels is None or ref_labels is labels
    number = positives + int(own) if t_per_anchor is None else torch.full_like(positives, t_per_anchor)
    number = torch.where((positives > 0) & (negatives > 0), number, 0)
    anchors = torch.repeat_interleave(torch.arange(len(labels), device=labels.device), number)
    p = _drawn(matches, positives, anchors)
    if weights is None or not len(anchors):
        return anchors, p, _drawn(diffs, negatives, anchors)
    weights = torch.where(diffs.bool(), torch.nan_to_num(weights.detach(), 0.0), 0.0)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, diffs.to(weights.dtype))
    return anchors, p, torch.multinomial(weights[anchors].float().cpu(), 1).squeeze(1).to(labels.device)


def _drawn(choices: Tensor, number: Tensor, anchors: Tensor) -> Tensor:
    """For each anchor one of the columns that its row of `choices` marks."""
    columns = torch.where(choices)[1]
    begin = number.cumsum(0) - number
    which = (torch.rand(len(anchors), dtype=torch.float64).to(anchors.device) * number[anchors]).long()
    return columns[begin[anchors] + which] if len(anchors) else anchors


def convert_to_triplets(
    indices_tuple: IndicesTuple | None, labels: Tensor | None, ref_labels: Tensor | None = None, t_per_anchor: int | str = 100
) -> IndicesTuple:
    """Triplets for None: ``"all"`` or a number of random ones an anchor; triplets as they are; of pairs all that share an anchor."""
    if indices_tuple is None:
        if t_per_anchor == "all":
            return get_all_triplets_indices(labels, ref_labels)
        return get_random_triplet_indices(labels, ref_labels, t_per_anchor=t_per_anchor)
    if len(indices_tuple) == 3:
        return indices_tuple
    a1, p, a2, n = indices_tuple
    if len(a1) == 0 or len(a2) == 0:
        empty = a1.new_zeros(0)
        return empty, empty, empty
    return _joined(a1, p, a2, n, int(torch.max(a1.max(), a2.max())) + 1)


def convert_to_weights(indices_tuple: IndicesTuple | None, labels: Tensor, dtype: torch.dtype, using_ref: bool = False) -> Tensor:
    """How often each row occurs, over the most; 1 for each row where nothing is listed.

    Args:
        indices_tuple: pairs or triplets, or None.
        labels: (N,), for their number.
        dtype: of the result.
        using_ref: whether the partners are rows of another tensor, so that only anchors count.
    """
    ones = torch.ones(len(labels), dtype=dtype, device=labels.device)
    if indices_tuple is None or all(len(x) == 0 for x in indices_tuple):
        return ones
    if using_ref:
        indices_tuple = indices_tuple[:1] if len(indices_tuple) == 3 else indices_tuple[::2]
    counts = torch.bincount(torch.cat(list(indices_tuple)), minlength=len(labels)).to(dtype)
    return counts / counts.max()


def repeat_to_match_size(smaller_set: Tensor, larger_size: int, smaller_size: int) -> Tensor:
    """A list from its start again until it is long enough."""
    return smaller_set.repeat(-(-larger_size // smaller_size))[:larger_size]


def matched_size_indices(curr_p_idx: Tensor, curr_n_idx: Tensor) -> tuple[Tensor, Tensor]:
    """Two lists as long as the longer one."""
    size = max(len(curr_p_idx), len(curr_n_idx))
    return repeat_to_match_size(curr_p_idx, size, len(curr_p_idx)), repeat_to_match_size(curr_n_idx, size, len(curr_n_idx))


def not_self_comparisons(
    a: Tensor, p: Tensor, s: int, e: int, curr_batch_idx: Tensor, ref_size: int, ref_is_subset: bool = False
) -> Tensor:
    """Of pairs (a, p) those that do not compare a row with its own copy, where the copies of rows 0, 1, ... are s, s + 1, ....

    Args:
        a: anchors.
        p: partners.
        s: the copy of row 0.
        e: the last one.
        curr_batch_idx: the copies that count.
        ref_size: the size of the set that they are in.
        ref_is_subset: whether the partners are the rows, and the anchors the copies.
    """
    row, copy = (p, a) if ref_is_subset else (a, p)
    return ~(torch.isin(copy, curr_batch_idx.to(a.device)) & (row == copy - s))


def remove_self_comparisons(
    indices_tuple: IndicesTuple, curr_batch_idx: Tensor, ref_size: int, ref_is_subset: bool = False
) -> IndicesTuple:
    """Pairs or triplets without those whose positive is the anchor's own copy.

    Args:
        indices_tuple: pairs or triplets.
        curr_batch_idx: of rows 0, 1, ... the copies in the set of references.
        ref_size: the size of that set.
        ref_is_subset: whether the positives are the rows, and the anchors the copies.
    """
    if len(indices_tuple) not in (3, 4):
        raise ValueError(f"remove_self_comparisons: wanted a tuple of 3 or 4 tensors, got {len(indices_tuple)}")
    row, copy = indices_tuple[1::-1] if ref_is_subset else indices_tuple[:2]
    copies = curr_batch_idx.to(row.device)
    keep = torch.ones_like(row, dtype=torch.bool)
    if len(copies):
        keep = (row >= len(copies)) | (copies[row.clamp(max=len(copies) - 1)] != copy)
    others = indices_tuple[2:] if len(indices_tuple) == 4 else (indices_tuple[2][keep],)
    return indices_tuple[0][keep], indices_tuple[1][keep], *others
