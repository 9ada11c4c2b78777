"""The pair engine: statistics over the scores of all pairs of two embedding sets, of which no matrix ever exists.

The score of row i of `a` and row j of `b` is::

    s_ij = transform(scale * a_i . b_j + row_bias_i + column_bias_j)

which covers dot products, cosines of normalised rows, and Euclidean distances, whose biases are the squared norms; rows are normalised and
norms taken here, with a gradient that is written out (:func:`prepared`). A :class:`Term` asks
for one statistic a row, or a column, over some of the pairs: the sum, the log-sum-exp or the maximum of a functor of the score. All terms
of a call share one sweep over tiles of scores; the backward sweep computes the tiles again, but for those that `memory_budget` has room
for. Losses are a few lines of plain torch over these statistics, and what a second stage needs of the first (the log-sum-exp of the
negatives, say) goes into the next call as the parameter of a row or column, with its gradient.

Scores and their gradients are of the accumulation dtype, and products exact to its rounding. They are less precise where torch's own may
be: ``torch.backends.cuda.matmul.fp32_precision = "tf32"`` lets Triton's kernels use TF32 for float32. Of bfloat16 rows a CPU that
multiplies bfloat16 numbers itself rounds each score's gradient to bfloat16 before it is multiplied by rows or summed for a column's
bias, as torch's own backward does (which has rounded the scores too); ``torch.backends.mkldnn.matmul.fp32_precision = "ieee"`` leaves it
as it is.

Where `b` is left out, the set is compared with itself: the scores are symmetric, and one sweep gives the gradient of both roles.

:func:`formula` says all this in plain torch: it is the `eager` backend, the oracle of the tests, and what second derivatives and
`torch.func` run through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._backends import choose
from ._checks import small_numbers
from ._memory_budget import room
from .engine import accumulate_dtype, define, fast_apply, formula_backward, without_autocast

REDUCES = ("sum", "lse", "max")
MASKS = ("all", "positive", "negative")
TRANSFORMS = ("none", "clamp", "sqrt", "softcap")
CONSTANTS = 4  # of a functor
MOST_TERMS = 4  # of a call
LANES = 64  # rows of a block of such scores
LEAST_NORM = 1e-12  # that a row is divided by
EXACT = 2**24  # whole numbers below this are floats


def _affine(s: Tensor, c: Sequence[float], p: Tensor | float, q: Tensor | float) -> Tensor:
    return c[0] * s + c[1] + p + q


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, which from 40 on is x to the last bit of float64; torch's default, from 20 on, is not."""
    return F.softplus(x, threshold=40.0)


def _circle(s: Tensor, c: Sequence[float], p: Tensor | float, q: Tensor | float) -> Tensor:
    return c[2] * torch.relu(c[0] * s + c[1]).detach() * (s - c[3])


def _log_add_exp(p: Tensor | float, q: Tensor | float, like: Tensor) -> Tensor:
    """The log-sum-exp of two sets from theirs, 0 where both are empty."""
    p, q = torch.broadcast_tensors(*(torch.as_tensor(t, dtype=like.dtype, device=like.device) for t in (p, q)))
    empty = (p == -torch.inf) & (q == -torch.inf)
    return torch.where(empty, 0.0, torch.logaddexp(torch.where(empty, 0.0, p), torch.where(empty, 0.0, q)))


def _lifted(s: Tensor, c: Sequence[float], p: Tensor | float, q: Tensor | float) -> Tensor:
    return 0.5 * torch.relu(_log_add_exp(p, q, s) + c[0] * s + c[1]).square()


def _tuplet(s: Tensor, c: Sequence[float], p: Tensor | float, q: Tensor | float) -> Tensor:
    inside = (s > -1) & (s < 1)
    safe = torch.where(inside, s, 0.0)
    turned = c[2] * safe + c[3] * torch.sqrt((1 - safe) * (1 + safe))
    return softplus(p + q - c[0] * torch.where(inside, turned, torch.sign(s) * c[2]))


# By name: a function of the score, four constants, and the parameters of the row and of the column (0 where there are none).
# "tuplet" is softplus(p + q - c0 cos(acos(s) - m)) with c2 = cos(m), c3 = sin(m), constant for |s| >= 1. The order is csrc/pair.h's.
FUNCTORS: dict[str, Callable[..., Tensor]] = {
    "linear": _affine,
    "relu": lambda s, c, p, q: torch.relu(_affine(s, c, p, q)),
    "square": lambda s, c, p, q: torch.relu(_affine(s, c, p, q)).square(),
    "softplus": lambda s, c, p, q: softplus(_affine(s, c, p, q)),
    "circle": _circle,
    "lifted": _lifted,
    "tuplet": _tuplet,
}
_HINGES = ("relu", "square", "lifted")  # whose count is that of values above 0
_NAMES = tuple(FUNCTORS)


class Scores(NamedTuple):
    """What is compared, and how; see the module's formula.

    Args:
        a: (N, D).
        b: (M, D), or None for `a` itself; then the biases of the columns are those of the rows.
        row_bias: (N,), of the accumulation dtype, or None.
        column_bias: (M,), or None.
        scale: of the dot product.
        transform: one of :data:`TRANSFORMS`: "clamp" is max(x, 0), "sqrt" its square root, "softcap" ``cap * tanh(x / cap)``.
        cap: of "softcap".
        unit: whether rows are divided by their norms first, or by 1e-12 where that is more.
        euclidean: whether rows are moved to have the centre of `a` at 0 first, and their squared norms are the biases.
    """

    a: Tensor
    b: Tensor | None = None
    row_bias: Tensor | None = None
    column_bias: Tensor | None = None
    scale: float = 1.0
    transform: str = "none"
    cap: float = 1.0
    unit: bool = False
    euclidean: bool = False


class Term(NamedTuple):
    """One statistic a row or column.

    Args:
        reduce: "sum"; "lse", the log-sum-exp, -inf of no pair; "max", without a gradient, -inf of no pair.
        mask: over "all" pairs, those of equal labels ("positive") or of different ones ("negative").
        functor: of the score; a key of :data:`FUNCTORS`.
        constants: of the functor; what is left out is 0, of the first 1.
        side: "row" for a statistic for each row of `a`, over the rows of `b`; "column" for the converse.
        row: the functor's parameter p, one for each row of `a`, or None.
        column: its parameter q, one for each row of `b`, or None.
    """

    reduce: str
    mask: str = "all"
    functor: str = "linear"
    constants: tuple[float, ...] = (1.0,)
    side: str = "row"
    row: Tensor | None = None
    column: Tensor | None = None


class Statistic(NamedTuple):
    """What a term gives, each (N,) or (M,).

    Args:
        value: the sum, log-sum-exp or maximum.
        count: of the pairs; of a hinge's sum those above 0; of a maximum the index of the first one, -1 of no pair. Without a gradient.
    """

    value: Tensor
    count: Tensor


class Settings(NamedTuple):
    """What a call does, as operators take it: of each term functor, reduce, mask and side as numbers, and the constants."""

    skip: int | None
    scale: float
    transform: int
    cap: float
    terms: list[int]
    constants: list[float]


def unpack(settings: Settings) -> list[tuple[str, str, str, str, list[float]]]:
    """Functor, reduce, mask, side and constants of each term."""
    terms = settings.terms
    return [
        (_NAMES[terms[4 * k]], REDUCES[terms[4 * k + 1]], MASKS[terms[4 * k + 2]], ("row", "column")[terms[4 * k + 3]],
         settings.constants[CONSTANTS * k : CONSTANTS * (k + 1)])
        for k in range(len(terms) // 4)
    ]


def transformed(x: Tensor, transform: str, cap: float = 1.0) -> Tensor:
    """One of :data:`TRANSFORMS` of a sum of dot product and biases."""
    if transform == "clamp":
        return torch.relu(x)
    if transform == "sqrt":
        return torch.where(x > 0, torch.sqrt(torch.where(x > 0, x, 1.0)), torch.where(x > 0, 0.0, torch.relu(x)))
    return cap * torch.tanh(x / cap) if transform == "softcap" else x


def _masks(settings: Settings, shape: tuple[int, int], like: Tensor, row_label, column_label, codes) -> dict[str, Tensor]:
    """Which pairs are of each of :data:`MASKS`, (N, M) each."""
    rows, columns = shape
    if codes is not None:
        codes = codes.t().contiguous()  # masks laid out as those of labels, for the same bits
        found = {"positive": (codes & 1) > 0, "negative": (codes & 2) > 0, "all": codes > 0}
    else:
        every = torch.ones(shape, dtype=torch.bool, device=like.device)
        found = {"all": every, "positive": every, "negative": every}
        if row_label is not None:
            same = row_label.unsqueeze(1) == (row_label if column_label is None else column_label).unsqueeze(0)
            found |= {"positive": same, "negative": ~same}
    if settings.skip is not None:
        i, j = torch.arange(rows, device=like.device), torch.arange(columns, device=like.device)
        other = j.unsqueeze(0) - i.unsqueeze(1) != settings.skip
        found = {name: mask & other for name, mask in found.items()}
    return found


def formula(
    settings: Settings,
    a: Tensor,
    b: Tensor | None,
    row_bias: Tensor | None,
    column_bias: Tensor | None,
    row_label: Tensor | None,
    column_label: Tensor | None,
    codes: Tensor | None,
    *params: Tensor | None,
) -> list[Tensor]:
    """The value and the count of every term in plain torch, of a stored matrix of scores."""
    given = Scores(a, b, row_bias, column_bias, settings.scale, TRANSFORMS[settings.transform], settings.cap)
    return _reduced(settings, score_matrix(given), row_label, column_label, codes, params)


class Preparation(NamedTuple):
    """What is done to rows before they are multiplied: see :class:`Scores`; and whether a set that is compared with itself is given as two,
    as kernels take the pairs of one set to be symmetric."""

    unit: bool
    euclidean: bool
    apart: bool

    def rows(
        self, a: Tensor, b: Tensor | None, row_bias: Tensor | None, column_bias: Tensor | None, backend: str = "eager",
        centre_of: Callable[[Tensor], Tensor | float] | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Both sets and biases as they are multiplied and added; on a compiled backend without a gradient."""
        if any(self):
            wide = accumulate_dtype(a.dtype)
            a, b = a.to(wide), None if b is None else b.to(wide)
        if backend == "cpu" and (self.unit or self.euclidean):
            a, squares, centre = _PREPARE["cpu"](a, self.unit, self.euclidean, None, LEAST_NORM)
            row_bias = squares if self.euclidean else row_bias
            if b is not None:
                b, squares, _ = _PREPARE["cpu"](b, self.unit, self.euclidean, centre if self.euclidean else None, LEAST_NORM)
                column_bias = squares if self.euclidean else column_bias
            return (a, a, row_bias, row_bias) if self.apart else (a, b, row_bias, column_bias)
        if self.unit:
            a, b = _unit(a), None if b is None else _unit(b)
        if self.euclidean:
            mean = (lambda x: x.mean(0) if len(x) else 0.0) if centre_of is None else centre_of
            centre = mean(a.detach())
            a, b = a - centre, None if b is None else b - centre
            row_bias, column_bias = a.square().sum(1), None if b is None else b.square().sum(1)
        return (a, a, row_bias, row_bias) if self.apart else (a, b, row_bias, column_bias)

    def wanted(self, need: Sequence[bool]) -> list[bool]:
        """Which gradients of what :meth:`rows` gives are needed for those of what it takes."""
        sets, biases = ([two[0]] * 2 if self.apart else two for two in (need[:2], need[2:4]))
        return [*sets, *(bias or self.euclidean and rows for bias, rows in zip(biases, sets))]

    def gradients(
        self, given: Sequence[Tensor | None], ready: Sequence[Tensor | None], by: Sequence[Tensor | None], need: Sequence[bool],
        backend: str,
    ) -> list[Tensor | None]:
        """Gradients `by` what :meth:`rows` gives as those of what it takes."""
        a, b, row_bias, column_bias = by[:4]
        if self.apart:
            a, row_bias = (None if x is None else x + y for x, y in ((a, b), (row_bias, column_bias)))
            b = column_bias = None
        if self.unit or self.euclidean:
            a, b = (None if g is None else self._gradient(given[k], ready[k], g, bias, backend)
                    for k, (g, bias) in enumerate(((a, row_bias), (b, column_bias))))
        found = [a, b, row_bias, column_bias]
        return [grad.to(t.dtype) if wanted and grad is not None else None for grad, t, wanted in zip(found, given, need)]

    def _gradient(self, rows: Tensor, ready: Tensor, grad: Tensor, by_bias: Tensor, backend: str) -> Tensor:
        if backend == "cpu":
            return _PREPARE_BACKWARD["cpu"](rows.to(grad.dtype), ready, grad, by_bias if self.euclidean else None, self.unit, LEAST_NORM)
        if self.euclidean:
            grad = grad.addcmul(ready, by_bias.unsqueeze(1), value=2)
        if self.unit:
            rows = rows.to(grad.dtype)
            norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            held = norm.clamp_min(LEAST_NORM)
            unit = rows / held
            along = torch.where(norm < LEAST_NORM, 0.0, (grad * unit).sum(1, keepdim=True))
            grad = grad.addcmul(along, unit, value=-1) / held
        return grad


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(LEAST_NORM)


def prepared(scores: Scores, centre_of: Callable[[Tensor], Tensor | float] | None = None) -> Scores:
    """The same scores of rows that need nothing done to them; `centre_of` gives the point that they are moved by, None for their mean."""
    how = Preparation(scores.unit, scores.euclidean, False)
    return Scores(*how.rows(*scores[:4], centre_of=centre_of), scores.scale, scores.transform, scores.cap)


def score_matrix(scores: Scores) -> Tensor:
    """The score of every pair, (N, M), in the dtype that sums are kept in."""
    scores = prepared(scores)
    wide = accumulate_dtype(scores.a.dtype)
    x = scores.a.to(wide)
    y, column_bias = (x, scores.row_bias) if scores.b is None else (scores.b.to(wide), scores.column_bias)
    with without_autocast(x.device):
        matrix = scores.scale * (x @ y.t())
    if scores.row_bias is not None:
        matrix = matrix + scores.row_bias.unsqueeze(1)
    if column_bias is not None:
        matrix = matrix + column_bias.unsqueeze(0)
    return transformed(matrix, scores.transform, scores.cap)


def _reduced(settings: Settings, scores: Tensor, row_label, column_label, codes, params) -> list[Tensor]:
    """The value and the count of every term, of the scores of all pairs."""
    wide = scores.dtype
    masks = _masks(settings, scores.shape, scores, row_label, column_label, codes)
    found = []
    for k, (functor, reduce, mask, side, constants) in enumerate(unpack(settings)):
        p, q = params[2 * k], params[2 * k + 1]
        values = FUNCTORS[functor](scores, constants, 0.0 if p is None else p.unsqueeze(1), 0.0 if q is None else q.unsqueeze(0))
        pairs, dim = masks[mask], 1 if side == "row" else 0
        counted = pairs & (values > 0) if functor in _HINGES and reduce == "sum" else pairs
        count = counted.sum(dim).to(wide)
        if reduce == "sum":
            found += [torch.where(pairs, values, 0.0).sum(dim), count]
            continue
        some = pairs.any(dim, keepdim=True)
        values = torch.where(some, torch.where(pairs, values, -torch.inf), 0.0)  # a gradient of no pair would be NaN
        some = some.squeeze(dim)
        if reduce == "lse":
            found += [torch.where(some, torch.logsumexp(values, dim), -torch.inf), count]
        elif scores.shape[dim] == 0:
            found += [count - torch.inf, count - 1]
        else:
            best, index = values.detach().max(dim)
            found += [torch.where(some, best, -torch.inf), torch.where(some, index.to(wide), -1.0)]
    return found


INPUTS = (
    "Tensor a, Tensor? b, Tensor? row_bias, Tensor? column_bias, Tensor? row_label, Tensor? column_label, Tensor? codes, Tensor?[] params"
)
SETTINGS = "int? skip, float scale, int transform, float cap, int[] terms, float[] constants"


def forward_outputs(a: Tensor, b: Tensor | None, terms: Sequence[int]) -> list[Tensor]:
    """The uninitialised outputs of ``pair_forward``: value and count of every term."""
    sizes = a.shape[0], (a if b is None else b).shape[0]
    dtype = accumulate_dtype(a.dtype)
    return [a.new_empty(sizes[side], dtype=dtype) for side in terms[3::4] for _ in range(2)]


def backward_outputs(
    a: Tensor, b: Tensor | None, row_bias: Tensor | None, column_bias: Tensor | None, params: Sequence[Tensor | None], want: Sequence[bool]
) -> list[Tensor]:
    """The uninitialised outputs of ``pair_backward``: the gradients of both sets, both biases and the parameters; empty if not wanted."""
    tensors = (a, b, row_bias, column_bias, *params)
    return [torch.empty_like(t, memory_format=torch.contiguous_format) if t is not None and wanted else a.new_empty(0)
            for t, wanted in zip(tensors, want)]


def _forward_fake(a, b, row_bias, column_bias, row_label, column_label, codes, params, skip, scale, transform, cap, terms, constants,
                  keep=0):
    found, dtype = forward_outputs(a, b, terms), accumulate_dtype(a.dtype)
    if not keep:
        return found
    rows, columns = a.shape[0], (a if b is None else b).shape[0]
    blocks = torch.sym_min((rows + LANES - 1) // LANES, keep // torch.sym_max(1, columns * LANES * dtype.itemsize))
    return [*found, a.new_empty((blocks, columns, LANES), dtype=dtype)]


def _backward_fake(grads, statistics, a, b, row_bias, column_bias, row_label, column_label, codes, params, *rest):
    return backward_outputs(a, b, row_bias, column_bias, params, rest[6])


# With `keep` the forward gives the scores of as many blocks of rows as have room in that many bytes, as its last tensor, for the backward to
# take as `kept`. Its own `memory_budget` is for gradients of scores.
_FORWARD = define("pair_forward", f"({INPUTS}, {SETTINGS}, int keep=0) -> Tensor[]", _forward_fake)
_BACKWARD = define(
    "pair_backward",
    f"(Tensor?[] grads, Tensor[] statistics, {INPUTS}, {SETTINGS}, bool[] want, int memory_budget, Tensor? kept=None) -> Tensor[]",
    _backward_fake,
)


_PREPARE = define(
    "pair_prepare",
    "(Tensor rows, bool unit, bool euclidean, Tensor? centre, float least) -> (Tensor prepared, Tensor squares, Tensor centre)",
    lambda rows, unit, euclidean, *_: (
        torch.empty_like(rows), rows.new_empty(rows.shape[0] if euclidean else 0), rows.new_empty(rows.shape[1] if euclidean else 0)
    ),
)
_PREPARE_BACKWARD = define(
    "pair_prepare_backward", "(Tensor rows, Tensor prepared, Tensor by, Tensor? by_squares, bool unit, float least) -> Tensor",
    lambda rows, *_: torch.empty_like(rows),
)


class _Pair(torch.autograd.Function):
    """The statistics and their gradient on a compiled backend. Not for torch.func: there the formula runs."""

    @staticmethod
    def forward(ctx, backend, settings, room, how, *inputs):
        ready, keep = how.rows(*inputs[:4], backend), room[0]
        found = _FORWARD[backend](*ready, *inputs[4:7], list(inputs[7:]), *settings, keep)
        found, kept = (found[:-1], found[-1]) if keep else (found, None)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(out for k, out in enumerate(found) if k % 2 or settings.terms[2 * k + 1] == REDUCES.index("max")))
        ctx.save_for_backward(*inputs, *found[::2], kept)
        ctx.plan = backend, settings, room, how
        return tuple(found)

    @staticmethod
    def backward(ctx, *grads):
        backend, settings, (_, memory_budget), how = ctx.plan
        terms = len(settings.terms) // 4
        *inputs, kept = ctx.saved_tensors
        inputs, statistics = tuple(inputs[:-terms]), inputs[-terms:]
        need, grads = ctx.needs_input_grad[4:], grads[::2]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            run = lambda *given: formula(settings, *how.rows(*given[:4]), *given[4:])[::2]  # noqa: E731
            return None, None, None, None, *formula_backward(run, inputs, need, grads)
        if all(grad is None for grad in grads):
            return (None,) * (4 + len(inputs))
        ready, grads = how.rows(*inputs[:4], backend), [None if grad is None else grad.contiguous() for grad in grads]
        want = [*how.wanted(need[:4]), *need[7:]]
        more = () if kept is None else (kept,)
        found = _BACKWARD[backend](grads, statistics, *ready, *inputs[4:7], list(inputs[7:]), *settings, want, memory_budget, *more)
        by = [grad if wanted else None for grad, wanted in zip(found, want)]
        by[:4] = how.gradients(inputs, ready, by, need, backend)
        return None, None, None, None, *by[:4], None, None, None, *by[4:]


_apply = fast_apply(_Pair)


def dense_labels(rows: Tensor, columns: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Labels of any dtype as small whole numbers of `dtype`, equal where they were.

    Without a look at the values, but on CPUs, where small whole numbers stay as they are, as labels of `dtype` do anywhere.
    """
    both = (rows,) if columns is None else (rows, columns)
    if all(t.dtype == dtype or small_numbers(t, EXACT) for t in both):
        return rows.to(dtype), None if columns is None else columns.to(dtype)
    every = torch.cat(both)
    if every.numel() == 0:
        return rows.to(dtype), None if columns is None else columns.to(dtype)
    ordered, order = every.sort()
    steps = torch.cat([torch.zeros_like(order[:1]), (ordered[1:] != ordered[:-1]).to(order.dtype)]).cumsum(0)
    found = torch.empty_like(steps).scatter_(0, order, steps).to(dtype)
    return (found, None) if columns is None else (found[: len(rows)], found[len(rows) :])


def pair_statistics(
    name: str,
    scores: Scores,
    terms: Sequence[Term],
    labels: tuple[Tensor, Tensor | None] | None = None,
    codes: Tensor | None = None,
    skip: int | None = None,
    backend: str | None = None,
    memory_budget: int | None = None,
) -> list[Statistic]:
    """Statistics over the pairs of two embedding sets, for the registered loss `name`.

    Args:
        name: of the loss, for messages.
        scores: what is compared, and how.
        terms: the statistics.
        labels: (N,) and (M,), which say what pairs are positive; None in second place for the same as in the first.
        codes: uint8 (M, N), instead of labels: 1 for a positive pair, 2 for a negative one, 3 for both, 0 for a pair of no mask.
        skip: leave out the pairs with ``j - i == skip``; of a set compared with itself 0 or None.
        backend: as of every loss.
        memory_budget: bytes, as of :func:`fastloss.use_memory_budget`, for scores that are kept and for gradients of
            scores; what has no room is computed again. Default: None, what holds in the block, else no scores and 64 MB.

    Returns:
        A :class:`Statistic` for each term.
    """
    return statistics_of(prepared_call(name, scores, terms, labels, codes, skip, backend, memory_budget))


class PreparedCall(NamedTuple):
    """The arguments of :func:`pair_statistics`, checked and as operators take them."""

    backend: str
    settings: Settings
    room: tuple[int, int]  # bytes for scores that are kept for a backward, and for gradients of scores inside it
    how: Preparation
    inputs: tuple[Tensor | None, ...]  # both sets, both biases, labels of both, codes, and parameters of the terms


def statistics_of(call: PreparedCall) -> list[Statistic]:
    """What :func:`pair_statistics` gives."""
    backend, settings, _, how, inputs = call
    return paired(formula(settings, *how.rows(*inputs[:4]), *inputs[4:]) if backend == "eager" else _apply(*call[:4], *inputs))


def paired(found: Sequence[Tensor]) -> list[Statistic]:
    """The value and the count of each term, as operators and the formula give them one after another."""
    return [Statistic(value, count) for value, count in zip(found[::2], found[1::2])]


def prepared_call(
    name: str, scores: Scores, terms: Sequence[Term], labels: tuple[Tensor, Tensor | None] | None, codes: Tensor | None, skip: int | None,
    backend: str | None, memory_budget: int | None,
) -> PreparedCall:
    """The call that arguments of :func:`pair_statistics` make."""
    if not 1 <= len(terms) <= MOST_TERMS:
        raise ValueError(f"{name}: wanted 1 to {MOST_TERMS} terms, got {len(terms)}")
    sets = [t for t in scores[:2] if t is not None]
    if any(t.dim() != 2 or t.shape[1] != sets[0].shape[1] for t in sets):
        raise ValueError(f"{name}: embeddings must be (N, D) and (M, D), got {' and '.join(str(tuple(t.shape)) for t in sets)}")
    tensors = [scores.a, scores.b, *(t for term in terms for t in (term.row, term.column))]
    backend, _ = choose(name, backend, *(t for t in tensors if t is not None))
    wide = accumulate_dtype(scores.a.dtype)
    settings, params = _settings(terms, skip, float(scores.scale), TRANSFORMS.index(scores.transform), float(scores.cap))
    row_label = column_label = None
    if labels is not None and codes is None:
        row_label, column_label = dense_labels(*labels, wide)
        if column_label is None and scores.b is not None:
            column_label = row_label
    biases, params = ([None if t is None else t.to(wide) for t in some] for some in ((scores.row_bias, scores.column_bias), params))
    how = Preparation(scores.unit, scores.euclidean, codes is not None and scores.b is None)
    inputs = (scores.a, scores.b, *biases, row_label, column_label, codes, *params)
    if backend != "eager":
        inputs = tuple(None if t is None else t.contiguous() for t in inputs)
    return PreparedCall(backend, settings, room(name, backend, memory_budget, inputs), how, inputs)


def _settings(terms: Sequence[Term], skip: int | None, *scores: object) -> tuple[Settings, list[Tensor | None]]:
    """What operators take for the terms, and the terms' parameters."""
    numbers, constants, params = [], [], []
    for term in terms:
        side = term.side == "column"
        numbers += [_NAMES.index(term.functor), REDUCES.index(term.reduce), MASKS.index(term.mask), int(side)]
        constants += [float(c) for c in term.constants] + [0.0] * (CONSTANTS - len(term.constants))
        params += [term.row, term.column]
    return Settings(skip, *scores, numbers, constants), params


def matrix_statistics(
    scores: Tensor,
    terms: Sequence[Term],
    labels: tuple[Tensor, Tensor | None] | None = None,
    codes: Tensor | None = None,
    skip: int | None = None,
) -> list[Statistic]:
    """Statistics over pairs whose scores are a matrix (N, M) already; otherwise as :func:`pair_statistics`, in plain torch."""
    settings, params = _settings(terms, skip, 1.0, 0, 1.0)
    rows, columns = (None, None) if labels is None else labels
    return paired(_reduced(settings, scores, rows, columns, codes, params))


def normalised(x: Tensor, eps: float = LEAST_NORM) -> Tensor:
    """Rows of norm 1, in the accumulation dtype; rows shorter than `eps` are divided by `eps`."""
    return F.normalize(x.to(accumulate_dtype(x.dtype)), dim=1, eps=eps)


def euclidean(a: Tensor, b: Tensor | None, squared: bool = False, unit: bool = False) -> Scores:
    """Scores ``|a_i - b_j|``, or their squares, from ``|a|^2 + |b|^2 - 2 a . b`` of sets moved to have their centre at 0, of rows
    divided by their norms if `unit`."""
    return Scores(a, b, scale=-2.0, transform="clamp" if squared else "sqrt", unit=unit, euclidean=True)
