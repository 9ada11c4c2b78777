"""Statistics over the pairs of two embedding sets that are spread over processes.

Each process holds its rows of `a` for good. The rows of `b`, with all that belongs to them (biases, labels, parameters), travel round a
ring of the processes; at each station the pair engine takes the statistics of the rows there with the block that has come, while the next
block is under way. Statistics of rows merge over the blocks; those of columns travel with their block and merge over the stations. The
backward goes round once more: with the block go the upstream gradients and log-sum-exps of its columns, and its gradient, which grows from
station to station and is home after the last. A process so holds its own rows and two or three blocks, whatever the number of processes.

A few small blocks are gathered at once instead, since then the number of messages is what takes time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .._backends import choose
from .._memory_budget import MEMORY_BUDGET
from ..engine import accumulate_dtype
from ..pair import (
    _BACKWARD, _FORWARD, MOST_TERMS, TRANSFORMS, Scores, Settings, Statistic, Term, _settings, dense_labels, formula, unpack,
)
from .group import Group, first_derivative

GATHER_BYTES = 2**20  # of all blocks: up to this many they are gathered, not passed on

Tensors = list[Tensor]


class _Moving(NamedTuple):
    """Tensors under way: what arrives, and what must live until it has left."""

    arriving: Tensors
    leaving: Tensors
    works: list

    def wait(self) -> Tensors:
        for work in self.works:
            work.wait()
        return self.arriving


class _Places:
    """Where tensors arrive: two places in turn, of which one is filled while the other is read and sent on."""

    def __init__(self, rows: int) -> None:
        self.rows, self.turn = rows, 0
        self.places: list[Tensors] = [[], []]

    def next(self, like: Tensors, rows: int) -> Tensors:
        """The place that is free, for as many rows."""
        self.turn = 1 - self.turn
        if not self.places[self.turn]:
            self.places[self.turn] = [t.new_empty((self.rows, *t.shape[1:])) for t in like]
        return [t[:rows] for t in self.places[self.turn]]


def _pass_on(group: Group, tensors: Tensors, places: _Places, rows: int) -> _Moving:
    """Send tensors to the next process, and receive such of `rows` rows from the one before."""
    tensors = [t.contiguous() for t in tensors]
    arriving = places.next(tensors, rows)
    following, before = (group.rank + 1) % group.world, (group.rank - 1) % group.world
    ops = [dist.P2POp(dist.isend, t, group=group.process_group, tag=k, group_peer=following) for k, t in enumerate(tensors) if t.numel()]
    ops += [dist.P2POp(dist.irecv, t, group=group.process_group, tag=k, group_peer=before) for k, t in enumerate(arriving) if t.numel()]
    return _Moving(arriving, tensors, dist.batch_isend_irecv(ops) if ops else [])


def travel(
    group: Group,
    sizes: Sequence[int],
    block: Tensors,
    visit: Callable[[int, Tensors], Tensors],
    merge: Callable[[Tensors, Tensors], Tensors],
) -> Tensors:
    """Bring the block of every process to every process.

    Args:
        group: the processes.
        sizes: rows of each one's block.
        block: the tensors of this process's, each with a row for each of the block's.
        visit: called with the rank whose block has come, and its tensors; gives tensors that belong to the rows of that block.
        merge: what becomes of what two visits of a block gave; its order does not matter but for rounding.

    Returns:
        What the visits of this process's block gave on all processes, merged.
    """
    each = sum(t.itemsize * t.shape[1:].numel() for t in block)
    if group.world > 1 and group.world * max(sizes) * each <= GATHER_BYTES:
        return _gathered(group, sizes, block, visit, merge)
    blocks, results = _Places(max(sizes)), _Places(max(sizes))
    arriving, found = None, []
    for step in range(group.world):
        owner, after = (group.rank - step) % group.world, (group.rank - step - 1) % group.world
        moving = _pass_on(group, block, blocks, sizes[after]) if step + 1 < group.world else None
        found = visit(owner, block)
        if arriving is not None:
            found = merge(arriving.wait(), found)
        if found and group.world > 1:
            arriving = _pass_on(group, found, results, sizes[after])
        if moving is not None:
            block = moving.wait()
    return found if arriving is None else arriving.wait()


def _gathered(group: Group, sizes: Sequence[int], block: Tensors, visit: Callable, merge: Callable) -> Tensors:
    """What :func:`travel` gives, with all blocks at once."""
    most, own = max(sizes), sizes[group.rank]
    blocks = []
    for t in block:
        blocks.append(group.gather(torch.cat([t, t.new_zeros((most - own, *t.shape[1:]))])))
    found = [visit(owner, [t[owner, : sizes[owner]] for t in blocks]) for owner in range(group.world)]
    merged = []
    for parts in zip(*found):
        sent = torch.cat(parts)
        got = sent.new_empty((group.world * own, *sent.shape[1:]))
        dist.all_to_all_single(got, sent, [own] * group.world, list(sizes), group=group.process_group)
        merged.append(got.view(group.world, own, *sent.shape[1:]))
    whole = [t[0] for t in merged]
    for rank in range(1, group.world):
        whole = merge(whole, [t[rank] for t in merged])
    return whole


class _Plan(NamedTuple):
    """A call, but for its tensors."""

    group: Group
    backend: str
    settings: Settings
    own: bool  # whether the sets are one
    rows: list[int]  # of each rank
    columns: list[int]
    narrow: torch.dtype  # of `b` on its way

    def departing(self, columns: _Block) -> list[Tensor | None]:
        return [columns.b.to(self.narrow), *columns.tensors()[1:]]

    @property
    def terms(self) -> list[tuple[str, str, str, str, list[float]]]:
        return unpack(self.settings)

    def offset(self, sizes: list[int], rank: int) -> int:
        return sum(sizes[:rank])

    def skip(self, owner: int) -> int | None:
        """The diagonal of one block that is left out."""
        if self.settings.skip is None:
            return None
        return self.settings.skip + self.offset(self.rows, self.group.rank) - self.offset(self.columns, owner)


class _Block(NamedTuple):
    """What comes round: the tensors of one process's columns, None where there are none."""

    b: Tensor
    bias: Tensor | None
    label: Tensor | None
    params: tuple[Tensor | None, ...]

    def tensors(self) -> list[Tensor | None]:
        return [self.b, self.bias, self.label, *self.params]


def _operands(plan: _Plan, owner: int, rows: _Block, columns: _Block) -> tuple[Settings, tuple]:
    """What the pair engine's operators take for one block."""
    params = [p for pair in zip(rows.params, columns.params) for p in pair]
    settings = plan.settings._replace(skip=plan.skip(owner))
    if plan.own and owner == plan.group.rank:  # of which the kernels compute half
        label = None if rows.label is None else dense_labels(rows.label, None, rows.b.dtype)[0]
        return settings, (rows.b, None, rows.bias, None, label, None, None, params)
    labels = (None, None) if rows.label is None else dense_labels(rows.label, columns.label, rows.b.dtype)
    return settings, (rows.b, columns.b.to(rows.b.dtype), rows.bias, columns.bias, *labels, None, params)


def _merged(terms: list, first: Tensors, second: Tensors) -> Tensors:
    """Value and count of every one of `terms` over two sets of pairs that have none in common."""
    found = []
    for k, (_, reduce, *_) in enumerate(terms):
        (x, m), (y, n) = first[2 * k : 2 * k + 2], second[2 * k : 2 * k + 2]
        if reduce == "sum":
            found += [x + y, m + n]
        elif reduce == "lse":
            found += [torch.logaddexp(x, y), m + n]
        else:  # of equal ones the first index, and none is -1
            later = (y > x) | ((y == x) & (n >= 0) & ((n < m) | (m < 0)))
            found += [torch.where(later, y, x), torch.where(later, n, m)]
    return found


class _Ring(torch.autograd.Function):
    """The statistics of all terms, and their gradients, each with one round."""

    @staticmethod
    def forward(ctx, plan, *inputs):
        rows, columns = _blocks(plan, inputs)
        terms = plan.terms
        of_rows = [k for k, term in enumerate(terms) if term[3] == "row"]
        of_columns = [k for k, term in enumerate(terms) if term[3] == "column"]
        merged: list[Tensors] = []
        names = [t is not None for t in columns.tensors()]

        def visit(owner: int, tensors: Tensors) -> Tensors:
            settings, operands = _operands(plan, owner, rows, _filled(names, tensors))
            if plan.backend == "eager":
                *fixed, params = operands
                found = formula(settings, *fixed, *params)
            else:
                found = _FORWARD[plan.backend](*operands, *settings)
            found = list(found)
            for k, (_, reduce, _, side, _) in enumerate(terms):
                if reduce == "max":
                    first = plan.offset(plan.columns, owner) if side == "row" else plan.offset(plan.rows, plan.group.rank)
                    found[2 * k + 1] = torch.where(found[2 * k + 1] < 0, -1, found[2 * k + 1] + first)
            here = [t for k in of_rows for t in found[2 * k : 2 * k + 2]]
            merged[:] = [_merged([terms[k] for k in of_rows], merged[0], here)] if merged else [here]
            return [t for k in of_columns for t in found[2 * k : 2 * k + 2]]

        home = travel(
            plan.group, plan.columns, [t for t in plan.departing(columns) if t is not None], visit,
            lambda x, y: _merged([terms[k] for k in of_columns], x, y),
        )
        by_term = dict(zip([*of_rows, *of_columns], _pairs([*merged[0], *home])))
        found = [t for k in range(len(terms)) for t in by_term[k]]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for k, t in enumerate(found) if k % 2 or terms[k // 2][1] == "max"))
        ctx.save_for_backward(*inputs, *found[::2])
        ctx.plan = plan
        return tuple(found)

    @staticmethod
    def backward(ctx, *grads):
        first_derivative(ctx.plan.group)
        plan, need = ctx.plan, ctx.needs_input_grad[1:]
        terms = plan.terms
        inputs, statistics = ctx.saved_tensors[: -len(terms)], ctx.saved_tensors[-len(terms) :]
        rows, columns = _blocks(plan, inputs)
        grads = [None if grad is None or term[1] == "max" else grad.contiguous() for grad, term in zip(grads[::2], terms)]
        of_columns = [k for k, term in enumerate(terms) if term[3] == "column" and grads[k] is not None]
        kept = [t for t in plan.departing(columns) if t is not None]
        names = [t is not None for t in columns.tensors()]
        with_block = [t for k in of_columns for t in (grads[k], statistics[k])]
        # In the order of the operators: a, b, both biases, and of each term both parameters.
        given = [rows.b, columns.b, rows.bias, columns.bias, *(p for pair in zip(rows.params, columns.params) for p in pair)]
        want = [t is not None and needed for t, needed in zip(given, [*need[:4], *need[6:]])]
        of_block = [k for k in range(len(want)) if want[k] and k % 2]
        sums: dict[int, Tensor] = {}

        def visit(owner: int, tensors: Tensors) -> Tensors:
            block, brought = _filled(names, tensors[: len(kept)]), _pairs(tensors[len(kept) :])
            upstream, values = list(grads), list(statistics)
            for k, (grad, value) in zip(of_columns, brought):
                upstream[k], values[k] = grad, value
            settings, operands = _operands(plan, owner, rows, block)
            by = list(_block_backward(plan, settings, operands, upstream, values, want))
            if operands[1] is None:  # both roles are in one gradient
                by[1], by[3] = torch.zeros_like(rows.b), None if rows.bias is None else torch.zeros_like(rows.bias)
            for k in range(0, len(want), 2):
                if want[k]:
                    sums[k] = by[k] if k not in sums else sums[k].add_(by[k])
            return [by[k] for k in of_block]

        home = travel(plan.group, plan.columns, kept + with_block, visit, lambda x, y: [a.add_(b) for a, b in zip(x, y)])
        sums |= dict(zip(of_block, home))
        found = [sums[k].to(given[k].dtype) if want[k] else None for k in range(len(want))]
        return None, *found[:4], None, None, *found[4:]


def _blocks(plan: _Plan, inputs: Sequence[Tensor | None]) -> tuple[_Block, _Block]:
    a, b, row_bias, column_bias, row_label, column_label, *params = inputs
    return _Block(a, row_bias, row_label, tuple(params[::2])), _Block(b, column_bias, column_label, tuple(params[1::2]))


def _filled(names: list[bool], tensors: Tensors) -> _Block:
    """The block of tensors of which only those are there that `names` says."""
    it = iter(tensors)
    b, bias, label, *params = [next(it) if there else None for there in names]
    return _Block(b, bias, label, tuple(params))


def _pairs(tensors: Tensors) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2]))


def _block_backward(
    plan: _Plan, settings: Settings, operands: tuple, upstream: list[Tensor | None], statistics: list[Tensor], want: list[bool]
) -> Sequence[Tensor | None]:
    """The gradients of one block to what the operators take; the statistics are those of all blocks."""
    if plan.backend != "eager":
        sizes = operands[0].shape[0], (operands[0] if operands[1] is None else operands[1]).shape[0]
        # A sum's backward does not read its value, which does not travel.
        values = [v if len(v) == sizes[term[3] == "column"] else v.new_empty(sizes[term[3] == "column"])
                  for v, term in zip(statistics, plan.terms)]
        upstream = [None if g is None else g.contiguous() for g in upstream]
        return _BACKWARD[plan.backend](upstream, [v.contiguous() for v in values], *operands, *settings, want, MEMORY_BUDGET)
    *fixed, params = operands
    flat = [*fixed[:4], *params]
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() if t is not None and w else t for t, w in zip(flat, want)]
        outputs = formula(settings, *leaves[:4], *fixed[4:], *leaves[4:])[::2]
    pairs = []
    for out, grad, value, term in zip(outputs, upstream, statistics, plan.terms):
        if grad is not None and out.requires_grad:
            if term[1] == "lse":  # whose derivative by the block's own is the share of the block
                grad = grad * torch.where(out.detach() == -torch.inf, 0.0, torch.exp(out.detach() - value))
            pairs.append((out, grad))
    wanted = [leaf for leaf, t in zip(leaves, flat) if leaf is not t]
    outs, ups = [out for out, _ in pairs], [grad for _, grad in pairs]
    found = iter(torch.autograd.grad(outs, wanted, ups, allow_unused=True) if pairs else [None] * len(wanted))
    by = [next(found) if leaf is not t else None for leaf, t in zip(leaves, flat)]
    return [torch.zeros_like(t) if grad is None and t is not None and w else grad for grad, t, w in zip(by, flat, want)]


def statistics(
    group: Group,
    scores: Scores,
    terms: Sequence[Term],
    labels: tuple[Tensor, Tensor | None] | None = None,
    skip: int | None = None,
    backend: str | None = None,
    sizes: tuple[int, int] = (0, 0),
    narrow: torch.dtype | None = None,
) -> list[Statistic]:
    """As :func:`fastloss.pair.pair_statistics`, of sets of which each process has some rows, in the order of the ranks.

    Every process gets the statistics of its rows, or of its columns, over all pairs. Gradients come back to the process that has the row.

    Args:
        group: the processes, which have agreed; see :meth:`Group.agree`.
        scores: this process's rows of `a` and of `b`, and their biases.
        terms, labels, backend: as there; labels of this process's rows and columns.
        skip: leave out the pairs with ``j - i == skip``, counted over all processes.
        sizes: which of the sizes that were agreed on are those of `a` and of `b`.
        narrow: a dtype that holds the numbers of `b` as well, in which it goes round; None for its own.
    """
    if not 1 <= len(terms) <= MOST_TERMS:
        raise ValueError(f"{group.name}: wanted 1 to {MOST_TERMS} terms, got {len(terms)}")
    wide = accumulate_dtype(scores.a.dtype)
    own = scores.b is None
    backend, _ = choose(group.name, backend, scores.a)
    settings, params = _settings(terms, skip, float(scores.scale), TRANSFORMS.index(scores.transform), float(scores.cap))
    a = scores.a.to(wide).contiguous()
    b = a if own else scores.b.to(wide).contiguous()
    row_bias = None if scores.row_bias is None else scores.row_bias.to(wide).contiguous()
    column_bias = row_bias if own else None if scores.column_bias is None else scores.column_bias.to(wide).contiguous()
    row_label, column_label = (None, None) if labels is None else labels
    column_label = row_label if column_label is None else column_label
    params = [None if p is None else p.to(wide).contiguous() for p in params]
    plan = _Plan(
        group, backend, settings, own, group.every(sizes[0]), group.every(sizes[1]), narrow or wide,
    )
    found = _Ring.apply(plan, a, b, row_bias, column_bias, row_label, column_label, *params)
    return [Statistic(value, count) for value, count in zip(found[::2], found[1::2])]
