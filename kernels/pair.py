"""The pair engine in Triton: a forward and a backward kernel over tiles of scores.

A program works for ROWS rows of one set, its own, over all rows of the other set. Statistics of the columns are those of the rows with the
sets changed over, so a term is either of the kernel's own rows or of the other ones, and its parameters p and q belong to the own or the
other rows as well. Of a set compared with itself one launch has both roles. csrc/pair.h says what a functor is; this file computes the
same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastloss.engine import library
from fastloss.pair import CONSTANTS, TRANSFORMS, Settings, backward_outputs, forward_outputs, unpack

from . import INTERPRETED, launch
from .functors import larger, tanh
from .pair_functors import PAIR
from .tuning import PAIR as TUNING

WIDENS = tl.constexpr(INTERPRETED)  # the interpreter multiplies the bits of bfloat16 numbers


class Term(NamedTuple):
    """What a kernel knows of a term; the first six are constants of the compilation."""

    functor: object
    reduce: tl.constexpr
    mask: tl.constexpr
    counts_above: tl.constexpr  # count values above 0 instead of pairs
    own_is_row: tl.constexpr  # whether the own rows are what the functor's p is of
    number: tl.constexpr  # of its constants
    own_param: Tensor | None
    other_param: Tensor | None


class Result(NamedTuple):
    """Where the forward writes a term."""

    value: Tensor
    count: Tensor


class Upstream(NamedTuple):
    """What the backward needs of a term besides."""

    own: tl.constexpr  # a statistic of the own rows, else of the other ones
    value: Tensor
    grad: Tensor
    grad_param: Tensor | None  # for the own rows' parameter


@triton.jit
def _dot(x, y, acc, PRECISION: tl.constexpr):
    if WIDENS and x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    if x.dtype == tl.float64:  # of which the compilers' own products fail beside codes
        return acc + tl.sum(x[:, :, None] * y[None, :, :], 1)
    return tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def _rows(ptr, index, live, features, first, WIDTH: tl.constexpr):
    """A tile of a set: some rows, and WIDTH features from `first` on; zeros outside."""
    d = first + tl.arange(0, WIDTH)
    return tl.load(ptr + (index * features)[:, None] + d[None, :], mask=live[:, None] & (d < features)[None, :], other=0.0)


@triton.jit
def _scores(
    own_ptr, other_ptr, x, y, own, other, own_live, other_live, features, scale, own_bias_ptr, other_bias_ptr, cap,
    TRANSFORM: tl.constexpr, FITS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A tile of scores, from tiles `x` and `y` of the sets that hold all features, or in blocks of features."""
    s = tl.zeros((own.shape[0], other.shape[0]), ACC)
    if FITS:
        s = _dot(x, tl.trans(y), s, PRECISION)
    else:
        for first in tl.range(0, features, DEPTH, num_stages=STAGES):
            own_part = _rows(own_ptr, own, own_live, features, first, DEPTH)
            other_part = _rows(other_ptr, other, other_live, features, first, DEPTH)
            s = _dot(own_part, tl.trans(other_part), s, PRECISION)
    s = scale * s
    if own_bias_ptr is not None:
        s += _down(own_bias_ptr, own, own_live)
    if other_bias_ptr is not None:
        s += _across(other_bias_ptr, other, other_live)
    if TRANSFORM == "clamp":
        s = larger(s, tl.zeros_like(s))
    elif TRANSFORM == "sqrt":
        s = tl.sqrt(larger(s, tl.zeros_like(s)))
    elif TRANSFORM == "softcap":
        s = cap * tanh(s / cap)
    return s


@triton.jit
def _transform_slope(s, cap, TRANSFORM: tl.constexpr):
    """The transform's derivative, from its value."""
    if TRANSFORM == "clamp":
        return tl.where(s > 0, 1.0, tl.zeros_like(s))
    elif TRANSFORM == "sqrt":
        return tl.where(s > 0, 0.5 / tl.where(s > 0, s, 1.0), 0.0)
    else:
        return 1.0 - (s / cap) * (s / cap)


@triton.jit
def _down(ptr, own, own_live):
    """Numbers of the own rows beside a tile."""
    if ptr is None:
        return None
    else:
        return tl.load(ptr + own, mask=own_live, other=0.0)[:, None]


@triton.jit
def _across(ptr, other, other_live):
    """Numbers of the other rows beside a tile."""
    if ptr is None:
        return None
    else:
        return tl.load(ptr + other, mask=other_live, other=0.0)[None, :]


@triton.jit
def _pairs(
    codes_ptr, own_label_ptr, other_label_ptr, own_first, start, own, other, own_rows, other_rows, own_live, other_live, skip,
    SKIPS: tl.constexpr, AS_ROW: tl.constexpr, AS_COLUMN: tl.constexpr,
):
    """Of a tile the codes where own rows are rows, and where they are columns; or the pairs that count, and those of equal labels."""
    live = own_live[:, None] & other_live[None, :]
    every = live
    if SKIPS:
        # Within the tile, so that 32 bits are enough: they take half the registers.
        left_out = tl.minimum(tl.maximum(skip + own_first - start, -(2**30)), 2**30).to(tl.int32)
        every = live & (tl.arange(0, other.shape[0])[None, :] - tl.arange(0, own.shape[0])[:, None] != left_out)
    first = every
    second = every
    if codes_ptr is not None:
        if AS_ROW:
            first = tl.where(every, tl.load(codes_ptr + (other * own_rows)[None, :] + own[:, None], mask=live, other=0), 0)
        if AS_COLUMN:
            second = tl.where(every, tl.load(codes_ptr + (own * other_rows)[:, None] + other[None, :], mask=live, other=0), 0)
    elif own_label_ptr is not None:
        second = every & (_down(own_label_ptr, own, own_live) == _across(other_label_ptr, other, other_live))
    return first, second


@triton.jit
def _of(pairs, term, codes_ptr, own_label_ptr):
    """The pairs of a term."""
    if codes_ptr is not None:
        codes = pairs[0] if term.own_is_row else pairs[1]
        return (codes & (1 if term.mask == "positive" else 2 if term.mask == "negative" else 3)) != 0
    elif own_label_ptr is None or term.mask == "all":
        return pairs[0]
    elif term.mask == "positive":
        return pairs[1]
    else:
        return pairs[0] & ~pairs[1]


@triton.jit
def _evaluate(term, s, own, other, own_live, other_live, c):
    """The functor's value and its derivatives with respect to the score and to the own rows' parameter."""
    own = _down(term.own_param, own, own_live)
    other = _across(term.other_param, other, other_live)
    c = (c[4 * term.number], c[4 * term.number + 1], c[4 * term.number + 2], c[4 * term.number + 3])
    if term.own_is_row:
        value, by_score, by_own, _ = term.functor(s, own, other, c)
    else:
        value, by_score, _, by_own = term.functor(s, other, own, c)
    return value, by_score, by_own


@triton.jit
def _constants(c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, ACC: tl.constexpr):
    given = (c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15)
    found = ()
    for k in tl.static_range(16):
        found = found + (tl.full((), given[k], ACC),)
    return found


@triton.jit
def _finite(x):
    """x, but 0 where it is infinite: what exponents are taken relative to, so that no difference of infinities arises."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def _joined(term, state, value, pair, start):
    """A term's state after a tile: maximum, sum of exponentials relative to it and count; maximum and index; or sum and count."""
    if term.reduce == "sum":
        counted = pair & (value > 0) if term.counts_above else pair
        return state[0] + tl.sum(tl.where(pair, value, 0.0), 1), state[1] + tl.sum(counted.to(value.dtype), 1)
    else:
        value = tl.where(pair, value, float("-inf"))
        best = tl.max(value, 1)
        if term.reduce == "lse":
            top = tl.maximum(state[0], best)
            shift = _finite(top)
            total = state[1] * tl.exp(state[0] - shift) + tl.sum(tl.exp(value - shift[:, None]), 1)
            return top, total, state[2] + tl.sum(pair.to(value.dtype), 1)
        else:
            lanes: tl.constexpr = value.shape[1]
            lane = tl.min(tl.where(pair & (value == best[:, None]), tl.arange(0, lanes)[None, :], lanes), 1)
            better = (lane < lanes) & ((best > state[0]) | (state[1] < 0))
            return tl.where(better, best, state[0]), tl.where(better, start + lane, state[1])


FIXED = ["skip"]


@triton.jit(do_not_specialize=FIXED)
def pair_forward_kernel(
    own_ptr,  # (own_rows, features)
    other_ptr,  # (other_rows, features)
    own_bias_ptr,  # ACC, like all that follows; None where there is none
    other_bias_ptr,
    own_label_ptr,
    other_label_ptr,
    codes_ptr,  # (columns, rows) uint8, of whose two sides either may be the own one
    terms,
    results,
    own_rows: tl.int64,
    other_rows: tl.int64,
    features: tl.int64,
    skip: tl.int64,  # when SKIPS: leave out pairs with other - own == skip
    scale: tl.float64,
    cap: tl.float64,
    c0: tl.float64, c1: tl.float64, c2: tl.float64, c3: tl.float64, c4: tl.float64, c5: tl.float64, c6: tl.float64, c7: tl.float64,
    c8: tl.float64, c9: tl.float64, c10: tl.float64, c11: tl.float64, c12: tl.float64, c13: tl.float64, c14: tl.float64, c15: tl.float64,
    SKIPS: tl.constexpr,
    AS_ROW: tl.constexpr,  # whether terms have the own rows as rows
    AS_COLUMN: tl.constexpr,  # or as columns
    TRANSFORM: tl.constexpr,
    FITS: tl.constexpr,  # whether DEPTH holds all features
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    c = _constants(c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, ACC)
    scale = tl.full((), scale, ACC)
    cap = tl.full((), cap, ACC)
    own_first = tl.program_id(0).to(tl.int64) * ROWS
    own = own_first + tl.arange(0, ROWS)
    own_live = own < own_rows
    states = ()
    for k in tl.static_range(len(terms)):
        none = tl.full((ROWS,), 0.0, ACC)
        if terms[k].reduce == "sum":
            states = states + ((none, none),)
        elif terms[k].reduce == "lse":
            states = states + ((none - float("inf"), none, none),)
        else:
            states = states + ((none - float("inf"), tl.full((ROWS,), -1, tl.int64)),)
    x = None
    if FITS:
        x = _rows(own_ptr, own, own_live, features, 0, DEPTH)

    for start in tl.range(0, other_rows, BLOCK, num_stages=STAGES):
        other = start + tl.arange(0, BLOCK)
        other_live = other < other_rows
        y = None
        if FITS:
            y = _rows(other_ptr, other, other_live, features, 0, DEPTH)
        s = _scores(
            own_ptr, other_ptr, x, y, own, other, own_live, other_live, features, scale, own_bias_ptr, other_bias_ptr, cap,
            TRANSFORM, FITS, PRECISION, ACC, DEPTH, STAGES,
        )
        pairs = _pairs(
            codes_ptr, own_label_ptr, other_label_ptr, own_first, start, own, other, own_rows, other_rows, own_live, other_live, skip,
            SKIPS, AS_ROW, AS_COLUMN,
        )
        joined = ()
        for k in tl.static_range(len(terms)):
            value, _, _ = _evaluate(terms[k], s, own, other, own_live, other_live, c)
            joined = joined + (_joined(terms[k], states[k], value, _of(pairs, terms[k], codes_ptr, own_label_ptr), start),)
        states = joined

    for k in tl.static_range(len(terms)):
        if terms[k].reduce == "lse":
            value = _finite(states[k][0]) + tl.log(states[k][1])
            count = states[k][2]
        else:
            value = states[k][0]
            count = states[k][1].to(ACC)
        tl.store(results[k].value + own, value, mask=own_live)
        tl.store(results[k].count + own, count, mask=own_live)


@triton.jit
def _weight(term, value, statistic, grad):
    """What a term's functor has for a slope in the loss; of padding, anything."""
    if term.reduce == "lse":
        empty = statistic == float("-inf")
        return tl.where(empty, 0.0, grad * tl.exp(value - tl.where(empty, 0.0, statistic)))
    else:
        return grad


@triton.jit
def _power(exponent):
    """2 to the power of `exponent` - 127; 0 where that is too small for a normal number."""
    return (tl.maximum(exponent, 0) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _add_product(acc, exponent, g, y, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """acc + g @ y with `g` as precise as float32: of narrow types it is the sum of PARTS numbers."""
    if y.dtype == acc.dtype:
        return _dot(g, y, acc, PRECISION), exponent
    else:
        if y.dtype == tl.float16:
            # float16 ends at 65504 and 6e-8, so each row is multiplied by the power of two that brings its largest number to 2^14.
            largest = tl.maximum(exponent, tl.minimum(tl.max(tl.abs(g), 1).to(tl.int32, bitcast=True) >> 23, 253))
            acc *= _power(127 + exponent - largest)[:, None]
            g *= _power(268 - largest)[:, None]
            exponent = largest
        for _ in tl.static_range(PARTS):
            part = g.to(y.dtype)
            acc = _dot(part, y, acc, PRECISION)
            g -= part.to(acc.dtype)
        return acc, exponent


@triton.jit(do_not_specialize=FIXED)
def pair_backward_kernel(
    own_ptr,
    other_ptr,
    own_bias_ptr,
    other_bias_ptr,
    own_label_ptr,
    other_label_ptr,
    codes_ptr,
    terms,  # each in one role or, of a set compared with itself, once in either
    upstreams,
    grad_ptr,  # for the own set and its biases; None where not wanted
    grad_bias_ptr,
    own_rows: tl.int64,
    other_rows: tl.int64,
    features: tl.int64,
    skip: tl.int64,
    scale: tl.float64,
    cap: tl.float64,
    c0: tl.float64, c1: tl.float64, c2: tl.float64, c3: tl.float64, c4: tl.float64, c5: tl.float64, c6: tl.float64, c7: tl.float64,
    c8: tl.float64, c9: tl.float64, c10: tl.float64, c11: tl.float64, c12: tl.float64, c13: tl.float64, c14: tl.float64, c15: tl.float64,
    SKIPS: tl.constexpr,
    AS_ROW: tl.constexpr,
    AS_COLUMN: tl.constexpr,
    TRANSFORM: tl.constexpr,
    FITS: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,  # features of a program's part of the gradient; the scores are computed for each part
    STAGES: tl.constexpr,
):
    c = _constants(c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, ACC)
    scale = tl.full((), scale, ACC)
    cap = tl.full((), cap, ACC)
    blocks = tl.cdiv(own_rows, ROWS)
    program = tl.program_id(0).to(tl.int64)
    own_first = program % blocks * ROWS
    own = own_first + tl.arange(0, ROWS)
    first = program // blocks * WIDTH
    own_live = own < own_rows
    none = tl.full((ROWS,), 0.0, ACC)
    sums = ()
    for _ in tl.static_range(len(terms)):
        sums = sums + (none,)
    grad_bias = none
    grad = tl.zeros((ROWS, WIDTH), ACC)
    exponent = tl.full((ROWS,), 16, tl.int32)  # of the largest number so far
    x = None
    if FITS:
        x = _rows(own_ptr, own, own_live, features, 0, DEPTH)

    for start in tl.range(0, other_rows, BLOCK, num_stages=STAGES):
        other = start + tl.arange(0, BLOCK)
        other_live = other < other_rows
        y = None
        if FITS:
            y = _rows(other_ptr, other, other_live, features, 0, DEPTH)
        s = _scores(
            own_ptr, other_ptr, x, y, own, other, own_live, other_live, features, scale, own_bias_ptr, other_bias_ptr, cap,
            TRANSFORM, FITS, PRECISION, ACC, DEPTH, STAGES,
        )
        pairs = _pairs(
            codes_ptr, own_label_ptr, other_label_ptr, own_first, start, own, other, own_rows, other_rows, own_live, other_live, skip,
            SKIPS, AS_ROW, AS_COLUMN,
        )
        g = tl.zeros((ROWS, BLOCK), ACC)
        added = ()
        for k in tl.static_range(len(terms)):
            value, by_score, by_own = _evaluate(terms[k], s, own, other, own_live, other_live, c)
            if upstreams[k].own:
                statistic = _down(upstreams[k].value, own, own_live)
                weight = _weight(terms[k], value, statistic, _down(upstreams[k].grad, own, own_live))
            else:
                statistic = _across(upstreams[k].value, other, other_live)
                weight = _weight(terms[k], value, statistic, _across(upstreams[k].grad, other, other_live))
            pair = _of(pairs, terms[k], codes_ptr, own_label_ptr)
            g += tl.where(pair, weight * by_score, 0.0)
            if upstreams[k].grad_param is not None:
                added = added + (sums[k] + tl.sum(tl.where(pair, weight * by_own, 0.0), 1),)
            else:
                added = added + (sums[k],)
        sums = added
        if TRANSFORM != "none":
            g *= _transform_slope(s, cap, TRANSFORM)
        if grad_bias_ptr is not None:
            grad_bias += tl.sum(g, 1)
        if grad_ptr is not None:
            if not FITS:
                y = _rows(other_ptr, other, other_live, features, first, WIDTH)
            grad, exponent = _add_product(grad, exponent, g, y, PARTS, PRECISION)

    if grad_ptr is not None:
        if own_ptr.dtype.element_ty == tl.float16:
            grad *= _power(exponent - 14)[:, None]
        d = first + tl.arange(0, WIDTH)
        tl.store(grad_ptr + (own * features)[:, None] + d[None, :], scale * grad, mask=own_live[:, None] & (d < features)[None, :])
    own_live = own_live & (first == 0)  # every part of the features has the same sums
    if grad_bias_ptr is not None:
        tl.store(grad_bias_ptr + own, grad_bias, mask=own_live)
    for k in tl.static_range(len(terms)):
        if upstreams[k].grad_param is not None:
            tl.store(upstreams[k].grad_param + own, sums[k], mask=own_live)


class Configuration(NamedTuple):
    """Tile and launch options."""

    rows: int
    block: int
    depth: int  # features of a step of the scores
    width: int  # of the gradient
    num_warps: int
    stages: int


# The interpreter pays by the operation, not by the element; still several blocks of everything for sets that tests call large.
INTERPRETER_TILE = 64, 128, 32
SMALLEST = 16  # side of a product that every tensor core takes
MOST_TERMS = 4
PARTS = 3 if INTERPRETED else 2  # of a float32 as narrow numbers: the interpreter truncates to bfloat16
FEW_TERMS = 2  # in either role; what more of them keep in registers leaves room for a quarter of a tile, or an eighth


def configuration(step: str, features: int, terms: int, dtype: torch.dtype) -> Configuration:
    """The tile of a problem: a function of its shape, never of a measurement."""
    wide = max(SMALLEST, triton.next_power_of_2(features))
    if INTERPRETED:
        rows, block, depth = INTERPRETER_TILE
        return Configuration(rows, block, min(depth, wide), min(depth, wide), 1, 1)
    for most, rows, block, depth, width, threads, stages in TUNING[step, dtype.itemsize]:
        if most is None or features <= most:
            break
    depth = min(depth, wide)
    if terms > FEW_TERMS:
        rows, block = max(rows // 2, SMALLEST), max(block // (2 if terms <= 2 * FEW_TERMS else 4), SMALLEST)
    return Configuration(rows, block, depth, depth if features <= depth else width, threads // launch.warp_size(), stages)


def precision(dtype: torch.dtype) -> str:
    """TF32 only where torch's own products of float32 may use it, on NVIDIA GPUs."""
    if dtype != torch.float32 or INTERPRETED or torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    return "tf32" if triton.runtime.driver.active.get_current_target().backend == "cuda" else "ieee"


class _Call:
    """What the launches of one call derive from its arguments."""

    def __init__(self, step: str, inputs: tuple, settings: Settings) -> None:
        a, b, row_bias, column_bias, row_label, column_label, self.codes, self.params = inputs
        self.alone = b is None  # a set compared with itself
        self.sets = a, a if self.alone else b
        self.biases = row_bias, row_bias if self.alone else column_bias
        self.labels = row_label, row_label if column_label is None else column_label
        self.settings, self.terms = settings, unpack(settings)
        if not 1 <= len(self.terms) <= MOST_TERMS:
            raise RuntimeError(f"pair engine: wanted 1 to {MOST_TERMS} terms, got {len(self.terms)}")
        self.tile = configuration(step, a.shape[1], len(self.terms) * (1 + self.alone), a.dtype)

    def term(self, k: int, own_is_row: bool) -> Term:
        functor, reduce, mask, _, _ = self.terms[k]
        function, hinge = PAIR[functor]
        p, q = self.params[2 * k : 2 * k + 2]
        own, other = (p, q) if own_is_row else (q, p)
        flags = map(tl.constexpr, (reduce, mask, hinge and reduce == "sum", own_is_row, k))
        return Term(function, *flags, own, other)

    def run(self, kernel, side: int, terms: list[Term], more: tuple, parts: int = 1, **options) -> None:
        """Launch a kernel for the rows of set `side`; `more` are the pointers that only it takes."""
        settings, tile = self.settings, self.tile
        own, other = self.sets[side], self.sets[1 - side]
        order = (slice(None), slice(None, None, -1))[side]
        skip = 0 if settings.skip is None else (settings.skip, -settings.skip)[side]
        constants = *settings.constants, *(0.0,) * (CONSTANTS * (MOST_TERMS - len(self.terms)))
        launch.run(
            kernel, triton.cdiv(len(own), tile.rows) * parts, own.device, own, other, *self.biases[order], *self.labels[order], self.codes,
            tuple(terms), *more, len(own), len(other), own.shape[1], skip, settings.scale, settings.cap, *constants,
            SKIPS=settings.skip is not None, AS_ROW=any(term.own_is_row.value for term in terms),
            AS_COLUMN=any(not term.own_is_row.value for term in terms), TRANSFORM=TRANSFORMS[settings.transform],
            FITS=own.shape[1] <= tile.depth, PRECISION=precision(own.dtype), ACC=tl.float64 if own.dtype == torch.float64 else tl.float32,
            ROWS=tile.rows, BLOCK=tile.block, DEPTH=tile.depth, STAGES=tile.stages, num_warps=tile.num_warps,
            **launch.registers(tile.num_warps), **options,
        )


def pair_forward(a, b, row_bias, column_bias, row_label, column_label, codes, params, *settings):
    call = _Call("forward", (a, b, row_bias, column_bias, row_label, column_label, codes, params), Settings(*settings))
    outputs = forward_outputs(a, b, call.settings.terms)
    rows = [of == "row" for _, _, _, of, _ in call.terms]
    for side in (0,) if call.alone else (0, 1):
        chosen = [k for k, row in enumerate(rows) if call.alone or row == (side == 0)]
        if chosen and len(call.sets[side]):
            results = tuple(Result(*outputs[2 * k : 2 * k + 2]) for k in chosen)
            call.run(pair_forward_kernel, side, [call.term(k, rows[k]) for k in chosen], (results,))
    return outputs


def pair_backward(grads, statistics, a, b, row_bias, column_bias, row_label, column_label, codes, params, *rest):
    *settings, want, _ = rest
    call = _Call("backward", (a, b, row_bias, column_bias, row_label, column_label, codes, params), Settings(*settings))
    outputs = backward_outputs(a, b, row_bias, column_bias, params, want)
    given = a, b, row_bias, column_bias, *params
    wanted = [out if asked and tensor is not None else None for out, asked, tensor in zip(outputs, want, given)]
    live = [k for k, term in enumerate(call.terms) if term[1] != "max" and grads[k] is not None]
    # What no launch writes: parameters of terms that take no part, and everything where there is no such term.
    for k in set(range(len(call.terms))) - set(live):
        for out in outputs[4 + 2 * k : 6 + 2 * k]:
            out.zero_()
    if not live:
        return [out.zero_() for out in outputs]
    for side in (0,) if call.alone else (0, 1):
        roles = [(k, own_is_row) for k in live for own_is_row in ((True, False) if call.alone else (side == 0,))]
        upstreams = tuple(
            Upstream(tl.constexpr(own_is_row == (call.terms[k][3] == "row")), statistics[k], grads[k], wanted[5 + 2 * k - own_is_row])
            for k, own_is_row in roles
        )
        grad, grad_bias = wanted[side], wanted[2 + side]
        if len(call.sets[side]) and any(t is not None for t in (grad, grad_bias, *(u.grad_param for u in upstreams))):
            parts = 1 if grad is None else max(1, triton.cdiv(a.shape[1], call.tile.width))
            call.run(
                pair_backward_kernel, side, [call.term(*role) for role in roles], (upstreams, grad, grad_bias), parts,
                WIDTH=call.tile.width, PARTS=PARTS,
            )
    return outputs


for _device in ("CPU", "CUDA", "XPU"):
    library.impl("pair_forward.triton", pair_forward, _device)
    library.impl("pair_backward.triton", pair_backward, _device)
